//! A run that is told to stop goes on from that very step.

use hetconv_graph::zoo;
use hetconv_train::{
    EpochMetrics, RecipeName, RunConfig, StepReport, SyntheticOptions, TrainError, TrainJob, TrainObserver,
    read_metrics, run_files, synthetic, train,
};

/// Stops after so many steps.
struct After(u64);

impl TrainObserver for After {
    fn step(&mut self, _: &StepReport) {
        self.0 = self.0.saturating_sub(1);
    }

    fn evaluation(&mut self, _: usize, _: usize) {}

    fn epoch(&mut self, _: &EpochMetrics) {}

    fn stops(&mut self) -> bool {
        self.0 == 0
    }
}

/// Stops as soon as the network is judged.
struct WhileJudging(bool);

impl TrainObserver for WhileJudging {
    fn step(&mut self, _: &StepReport) {}

    fn evaluation(&mut self, _: usize, _: usize) {
        self.0 = true;
    }

    fn epoch(&mut self, _: &EpochMetrics) {}

    fn stops(&mut self) -> bool {
        self.0
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_very_same_weights() {
    let data = synthetic(&SyntheticOptions { train: 32, test: 10, ..Default::default() }).expect("images");
    let own = RunConfig::new("small-cifar_p4", "synthetic", RecipeName::OneCycle).expect("a name");
    let config = RunConfig { epochs: 2, batch_size: 8, ..own };
    let graph = zoo::build(&"small-cifar_p4".parse().expect("a name"), 10).expect("a network");
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str, observer: &mut dyn TrainObserver| {
        let out = folder.path().join(name);
        let job = TrainJob { config: &config, graph: graph.clone(), data: &data, out: &out, resume: true };
        let ended = train(job, observer).map(drop);
        (ended, std::fs::read(out.join(run_files::MODEL)).ok())
    };
    // Four steps an epoch: in the middle of one, at its end before it is judged, and in the next.
    for (steps, epochs) in [(2, 0), (2, 0), (1, 1)] {
        let (ended, model) = run("stopped", &mut After(steps));
        assert!(matches!(ended, Err(TrainError::Stopped { epochs: found }) if found == epochs), "{ended:?}");
        assert_eq!(model, None);
    }
    // In the middle of the judging, which takes two batches.
    let metrics = || read_metrics(&folder.path().join("stopped").join(run_files::METRICS)).expect("metrics").len();
    let (ended, _) = run("stopped", &mut WhileJudging(false));
    assert!(matches!(ended, Err(TrainError::Stopped { epochs: 1 })) && metrics() == 1, "{ended:?}");
    let (ended, stopped) = run("stopped", &mut ());
    assert!(ended.is_ok(), "{ended:?}");
    // At the very last step, after which there is only the judging left.
    let (ended, model) = run("whole", &mut After(8));
    assert!(matches!(ended, Err(TrainError::Stopped { epochs: 1 })) && model.is_none(), "{ended:?}");
    let (ended, whole) = run("whole", &mut ());
    assert!(ended.is_ok(), "{ended:?}");
    assert!(stopped.is_some() && stopped == whole);
}

//! A run that is refused leaves no trace, and takes nobody's place.

use std::path::Path;
use std::sync::Arc;

use hetconv_graph::{Graph, ModelName, zoo};
use hetconv_train::{
    Dataset, EpochMetrics, LoaderError, RecipeName, RunConfig, Split, StepReport, Summary, SyntheticOptions,
    TrainError, TrainJob, TrainObserver, evaluate_with, run_files, synthetic, train,
};

fn data() -> Dataset {
    synthetic(&SyntheticOptions { train: 40, test: 10, ..Default::default() }).expect("images")
}

fn config() -> RunConfig {
    let own = RunConfig::new("small-cifar_p4", "synthetic", RecipeName::OneCycle).expect("a name");
    RunConfig { epochs: 1, batch_size: 16, ..own }
}

fn network(classes: usize) -> Graph {
    zoo::build(&"small-cifar_p4".parse::<ModelName>().expect("a name"), classes).expect("a network")
}

fn run(config: &RunConfig, graph: Graph, out: &Path, resume: bool) -> Result<Summary, Box<TrainError>> {
    train(TrainJob { config, graph, data: &data(), out, resume }, &mut ()).map_err(Box::new)
}

#[test]
fn a_refused_run_makes_no_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let refused = |config: RunConfig, classes: usize| {
        let error = run(&config, network(classes), &out, false).expect_err("a refusal");
        assert!(!out.exists(), "{error}");
        error
    };
    let error = refused(RunConfig { batch_size: 64, ..config() }, 10);
    let few = |samples, batch_size| LoaderError::TooFewSamples { samples, batch_size }.to_string();
    assert_eq!(error.to_string(), few(40, 64));
    // Two batches of 16 images do not make one step of three.
    let error = refused(RunConfig { accumulate: 3, ..config() }, 10);
    assert_eq!(error.to_string(), few(40, 48));
    assert!(matches!(*refused(RunConfig { epochs: 0, ..config() }, 10), TrainError::Config(_)));
    assert!(matches!(*refused(config(), 9), TrainError::DoesNotFit { .. }));
    #[cfg(not(feature = "cuda"))]
    {
        let error = refused(RunConfig { device: hetconv_train::Device::Cuda, ..config() }, 10);
        assert!(matches!(*error, TrainError::Device(_)), "{error}");
    }
}

#[test]
fn a_finished_run_is_not_overwritten_even_without_its_checkpoints() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    run(&config(), network(10), &out, false).expect("a run");
    let model = std::fs::read(out.join(run_files::MODEL)).expect("a model");
    let other = RunConfig { seed: 5, ..config() };
    std::fs::remove_dir_all(out.join(run_files::CHECKPOINTS)).expect("checkpoints");
    for resume in [false, true] {
        let error = run(&other, network(10), &out, resume).expect_err("a refusal");
        assert!(matches!(*error, TrainError::Occupied(_)), "{error}");
    }
    assert!(std::fs::read(out.join(run_files::MODEL)).expect("a model") == model);
    // One of the two files is enough.
    std::fs::remove_file(out.join(run_files::MODEL)).expect("a model");
    assert!(matches!(*run(&other, network(10), &out, false).expect_err("a refusal"), TrainError::Occupied(_)));
    std::fs::remove_file(out.join(run_files::SUMMARY)).expect("a summary");
    run(&other, network(10), &out, false).expect("a run");
}

#[test]
fn a_run_goes_on_with_its_own_images_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let config = RunConfig { epochs: 2, ..config() };
    let run = |data: &Dataset, observer: &mut dyn TrainObserver| {
        let job = TrainJob { config: &config, graph: network(10), data, out: &out, resume: true };
        train(job, observer).map_err(Box::new)
    };
    let stopped = run(&data(), &mut Stop).expect_err("a stop");
    assert!(matches!(*stopped, TrainError::Stopped { epochs: 0 }), "{stopped}");
    let others = synthetic(&SyntheticOptions { train: 40, test: 10, seed: 9 }).expect("images");
    let mut renamed = data();
    renamed.classes.swap(2, 5);
    let relabelled = |split: &Split| {
        let mut labels = split.labels().to_vec();
        labels.rotate_left(1);
        Arc::new(Split::new(split.images().expect("images in memory").clone(), labels).expect("a split"))
    };
    let learned = Dataset { train: relabelled(&data().train), ..data() };
    let judged = Dataset { test: relabelled(&data().test), ..data() };
    for other in [others, renamed, learned, judged] {
        let error = run(&other, &mut ()).expect_err("a refusal");
        assert!(matches!(*error, TrainError::OtherData { .. }), "{error}");
    }
    // Nor while another process is at work on it.
    let lock = std::fs::File::open(out.join(run_files::LOCK)).expect("the lock");
    lock.try_lock().expect("nobody holds it");
    let error = run(&data(), &mut ()).expect_err("a refusal");
    assert!(matches!(*error, TrainError::Busy(_)), "{error}");
    drop(lock);
    run(&data(), &mut ()).expect("the rest of the run");
}

/// Stops after the first step.
struct Stop;

impl TrainObserver for Stop {
    fn step(&mut self, _: &StepReport) {}

    fn evaluation(&mut self, _: usize, _: usize) {}

    fn epoch(&mut self, _: &EpochMetrics) {}

    fn stops(&mut self) -> bool {
        true
    }
}

#[test]
fn images_are_mirrored_unless_that_is_unwanted() {
    let folder = tempfile::tempdir().expect("a folder");
    let loss = |name: &str, no_flip: bool| {
        let config = RunConfig { no_flip, ..config() };
        run(&config, network(10), &folder.path().join(name), false).expect("a run").train_loss
    };
    assert_ne!(loss("mirrored", false), loss("not mirrored", true));
}

#[test]
fn labels_of_other_classes_are_not_judged() {
    let data = data();
    let none = |_: Vec<f32>, _: usize| -> Result<Vec<f32>, Box<TrainError>> { panic!("nothing to judge") };
    let found = evaluate_with(7, &data.test, &data.train.normalisation(), 4, &mut |_, _| (), none);
    let error = *found.expect_err("ten classes");
    assert!(matches!(error, TrainError::Label { label: 7.., classes: 7 }), "{error}");
}

//! Gradients of several batches added make the step that one large batch would.

use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_graph::{Activation, Graph, GraphBuilder, ModelFile, Weights};
use hetconv_train::{RecipeName, RunConfig, SyntheticOptions, TrainJob, run_files, synthetic, train};

/// A network without batch-norm, in which an image's gradient does not depend on its neighbours.
fn network() -> Graph {
    let mut b = GraphBuilder::new("plain");
    let x = b.input("image", [3, 32, 32]);
    let x = b.conv("stem", x, 8, Conv2dGeometry::same(3, 2), ConvKind::Standard, true);
    let x = b.activation("stem.silu", x, Activation::Silu);
    let pattern = HetPattern::shifted(8, 16, 4).expect("a legal pattern");
    let x = b.conv("het", x, 16, Conv2dGeometry::same(3, 2), ConvKind::Het(pattern), true);
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("fc", x, 10, true);
    b.finish([x]).expect("a graph")
}

#[test]
fn accumulated_batches_step_as_one_large_batch() {
    // 46 images are two batches of 16, or eleven of 4: two steps of four and three batches that fill no step.
    let data = synthetic(&SyntheticOptions { train: 46, test: 10, ..Default::default() }).expect("images");
    let folder = tempfile::tempdir().expect("a folder");
    let run = |batch_size: usize, accumulate: u64| {
        let own = RunConfig::new("small-cifar", "synthetic", RecipeName::OneCycle).expect("a name");
        let config = RunConfig { epochs: 3, batch_size, accumulate, lr: 0.1, ..own };
        let out = folder.path().join(format!("{accumulate} batches of {batch_size}"));
        let job = TrainJob { config: &config, graph: network(), data: &data, out: &out, resume: false };
        let summary = train(job, &mut ()).expect("a run");
        assert_eq!(summary.steps, 6);
        (ModelFile::load(&out.join(run_files::MODEL)).expect("a model").weights, summary)
    };
    let ((one, summary), (four, accumulated)) = (run(16, 1), run(4, 4));
    let fresh = Weights::init(&network(), 0).expect("weights");
    for (((name, one), (_, four)), (_, fresh)) in one.iter().zip(four.iter()).zip(fresh.iter()) {
        let distance = |other: &[f32]| {
            let differences = one.data.iter().zip(other).map(|(a, b)| (a - b).abs());
            differences.fold(0.0, f32::max)
        };
        let (apart, moved) = (distance(&four.data), distance(&fresh.data));
        assert!(moved > 1e-3 && apart < 1e-4 * moved.max(1.0), "{name}: {apart} apart after moving by {moved}");
    }
    assert!(
        (summary.train_loss - accumulated.train_loss).abs() < 1e-5,
        "{} {}",
        summary.train_loss,
        accumulated.train_loss
    );
    assert_eq!(summary.train_top1, accumulated.train_top1);
}

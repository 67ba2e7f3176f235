//! The built-in images are told apart by structure, not by colour: without K×K kernels a network learns little of them.

use hetconv_graph::{ConvKind, Graph, ModelName, Op, zoo};
use hetconv_train::{RecipeName, RunConfig, SyntheticOptions, TrainJob, synthetic, train};

/// The same network with every convolution 1×1.
fn pointwise(mut graph: Graph) -> Graph {
    for node in &mut graph.nodes {
        if let Op::Conv2d { geometry, kind, .. } = &mut node.op {
            (geometry.kernel, geometry.padding, *kind) = ([1; 2], [0; 4], ConvKind::Standard);
        }
    }
    graph
}

#[test]
fn pointwise_convolutions_alone_end_far_below_hetconv() {
    let data = synthetic(&SyntheticOptions { train: 4000, test: 1000, ..Default::default() }).expect("images");
    let het = zoo::build(&"small-cifar_p4".parse::<ModelName>().expect("a name"), 10).expect("a network");
    let folder = tempfile::tempdir().expect("a folder");
    let top1 = |graph: Graph, name: &str| {
        let mut config = RunConfig::new("small-cifar_p4", "synthetic", RecipeName::OneCycle).expect("a name");
        config.epochs = 4;
        let out = folder.path().join(name);
        let job = TrainJob { config: &config, graph, data: &data, out: &out, resume: false };
        train(job, &mut ()).expect("a run").eval_top1
    };
    let (with, without) = (top1(het.clone(), "het"), top1(pointwise(het), "pointwise"));
    println!("top-1: HetConv {with:.3}, 1×1 alone {without:.3}");
    assert!(with >= without + 0.2, "HetConv {with:.3}, 1×1 alone {without:.3}");
}

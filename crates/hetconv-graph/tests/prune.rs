//! Pruning against the whole network with the removed filters' weights set to 0.

mod common;

use common::{distinct_weights, random_graph, random_image, run};
use hetconv_core::{Conv2dGeometry, HetPattern};
use hetconv_graph::{
    Activation, ConvKind, Graph, GraphBuilder, GraphError, Op, PruneAmount, PruneError, Pruned, WeightTensor, Weights,
    prune, zoo,
};
use proptest::prelude::*;

fn network(name: &str, input: [usize; 3]) -> Graph {
    zoo::build(&name.parse().unwrap(), 10).unwrap().with_input(input).unwrap()
}

/// Sets rows of a tensor to 0.
fn clear(weights: &mut Weights, name: &str, rows: &[usize]) {
    let Some(WeightTensor { shape, data }) = weights.get_mut(name) else { return };
    let size: usize = shape[1..].iter().product();
    rows.iter().for_each(|&row| data[row * size..][..size].fill(0.0));
}

/// The whole network's weights with those of removed filters and of their batch-norms 0, so that after a ReLU nothing is
/// left of them: an oracle that knows names alone. `depthwise` names what comes behind a convolution of MobileNet.
fn cleared(pruned: &Pruned, weights: &Weights, depthwise: impl Fn(&str) -> Option<String>) -> Weights {
    let mut weights = weights.clone();
    for layer in &pruned.layers {
        for node in std::iter::once(layer.name.clone()).chain(depthwise(&layer.name)) {
            for part in ["weight", "center", "ring", "bias", "bn.weight", "bn.bias", "bn.running_mean"] {
                clear(&mut weights, &format!("{node}.{part}"), &layer.removed);
            }
        }
    }
    weights
}

fn assert_equal(found: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        // Adding 0 changes nothing, so only the order of sums is left to differ, and it does not.
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} {expected}");
    }
}

/// Prunes a network and compares it with the whole one.
fn check(graph: &Graph, amount: PruneAmount, depthwise: impl Fn(&str) -> Option<String>) -> Pruned {
    let weights = distinct_weights(graph, 3);
    let pruned = prune(graph, &weights, amount).unwrap();
    pruned.weights.check(&pruned.graph).unwrap();
    let image = random_image(graph.input_shape().unwrap().iter().product(), 5);
    let cleared = cleared(&pruned, &weights, depthwise);
    assert_ne!(cleared, weights, "nothing was removed");
    assert_equal(&run(&pruned.graph, &pruned.weights, &image, None), &run(graph, &cleared, &image, None));
    let (before, after) = (graph.cost().unwrap(), pruned.graph.cost().unwrap());
    assert!(after.macs < before.macs && after.params < before.params);
    pruned
}

fn names(pruned: &Pruned) -> Vec<&str> {
    pruned.layers.iter().map(|layer| layer.name.as_str()).collect()
}

fn channels(graph: &Graph, name: &str) -> [usize; 2] {
    match graph.nodes[graph.find(name).unwrap()].op {
        Op::Conv2d { in_channels, out_channels, .. } => [in_channels, out_channels],
        Op::Linear { in_features, out_features, .. } => [in_features, out_features],
        Op::BatchNorm { channels, .. } => [channels; 2],
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn vgg() {
    // 32×32 pixels, because its features are flattened; every layer loses a share of its filters, the first one too.
    let pruned = check(&network("vgg16-cifar", [3, 32, 32]), PruneAmount::Ratio(0.75), |_| None);
    assert_eq!(pruned.layers.len(), 13);
    assert!(pruned.layers.iter().all(|layer| 4 * layer.removed.len() == 3 * layer.filters));
    assert_eq!(pruned.graph.name, "vgg16-cifar_pruned");
    assert_eq!(channels(&pruned.graph, "conv1_1"), [3, 16]);
    assert_eq!(channels(&pruned.graph, "conv3_1"), [32, 64]);
    assert_eq!(channels(&pruned.graph, "fc1"), [128, 512]);
    // Counted by hand: a sixteenth of every convolution but the first (a quarter), a quarter of the first linear layer.
    let convs = 313_463_808 - 1_769_472 - 512 * 512 - 512 * 10;
    assert_eq!(pruned.graph.cost().unwrap().macs, convs / 16 + 1_769_472 / 4 + 512 * 512 / 4 + 512 * 10);
}

#[test]
fn flattened_channels_of_several_pixels() {
    let mut b = GraphBuilder::new("flat");
    let x = b.input("image", [2, 5, 4]);
    let x = b.conv_bn_relu("conv", x, 6, Conv2dGeometry::same(3, 1));
    let x = b.max_pool("pool", x, Conv2dGeometry::square(2, 2, 0, 1));
    let x = b.flatten("flatten", x);
    let x = b.linear("fc", x, 5, true);
    let pruned = check(&b.finish([x]).unwrap(), PruneAmount::Ratio(0.5), |_| None);
    assert_eq!(channels(&pruned.graph, "fc"), [3 * 4, 5]);
}

#[test]
fn basic_blocks_lose_filters_of_their_first_convolution_alone() {
    for name in ["resnet20", "resnet20_se", "resnet20_p4"] {
        let pruned = check(&network(name, [3, 8, 8]), PruneAmount::Ratio(0.5), |_| None);
        let blocks = (1..=3).flat_map(|stage| (0..3).map(move |block| format!("stage{stage}.{block}.conv1")));
        assert_eq!(names(&pruned), blocks.collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn bottlenecks_lose_filters_of_their_first_two_convolutions() {
    let pruned = check(&network("resnet50", [3, 32, 32]), PruneAmount::Ratio(0.25), |_| None);
    // In the last two blocks convolutions see a single pixel, and in all of them the third meets an addition. The stem's
    // channels end in projections.
    let names = names(&pruned);
    assert_eq!((names.len(), names[0]), (1 + 2 * 14, "conv1"));
    assert!(names[1..].iter().all(|name| name.ends_with(".conv1") || name.ends_with(".conv2")));
    assert_eq!(channels(&pruned.graph, "stage4.0.conv2"), [384, 384]);
    assert_eq!(channels(&pruned.graph, "stage4.0.conv3"), [384, 2048]);
}

#[test]
fn depthwise_filters_go_with_the_channels_they_read() {
    let depthwise = |name: &str| match name.strip_prefix("block").and_then(|rest| rest.split_once('.')) {
        None => Some("block1.depthwise".to_owned()),
        Some((block, _)) => block.parse::<usize>().ok().map(|block| format!("block{}.depthwise", block + 1)),
    };
    let pruned = check(&network("mobilenet-cifar", [3, 32, 32]), PruneAmount::Ratio(0.5), depthwise);
    assert_eq!(pruned.layers.len(), 14);
    assert_eq!(channels(&pruned.graph, "block2.depthwise.bn"), [32, 32]);
    assert_eq!(channels(&pruned.graph, "block13.pointwise"), [512, 512]);
    assert_eq!(channels(&pruned.graph, "classifier"), [512, 10]);
}

#[test]
fn gates_lose_the_channels_they_scale() {
    let pruned = check(&network("small-cifar_se", [3, 16, 16]), PruneAmount::Ratio(0.5), |_| None);
    assert_eq!(names(&pruned), ["conv1", "conv2", "conv3", "conv4"]);
    assert_eq!(channels(&pruned.graph, "conv2.se.reduce"), [16, 4]);
    assert_eq!(channels(&pruned.graph, "conv2.se.expand"), [4, 16]);
}

#[test]
fn hetconv_layers_keep_the_classes_of_what_is_left() {
    for name in ["small-cifar_p4", "small-cifar_pc"] {
        let graph = network(name, [3, 16, 16]);
        let pruned = check(&graph, PruneAmount::Ratio(0.4), |_| None);
        let Op::Conv2d { kind: ConvKind::Het(pattern), .. } =
            &pruned.graph.nodes[pruned.graph.find("conv3").unwrap()].op
        else {
            panic!("conv3 is a HetConv layer")
        };
        assert_eq!((pattern.in_channels(), pattern.out_channels()), (20, 20));
    }
}

/// Classes that have lost all channels or all filters, down to a layer of one of each.
#[test]
fn classes_may_become_empty() {
    for (m, n, ratio) in [(4, 4, 0.5), (2, 2, 0.5), (3, 5, 0.7), (6, 2, 0.5), (5, 5, 0.9)] {
        for seed in 0..20 {
            let mut b = GraphBuilder::new("het");
            let x = b.input("image", [3, 4, 4]);
            let x = b.conv_bn_relu("first", x, m, Conv2dGeometry::same(3, 1));
            let kind = ConvKind::Het(HetPattern::shifted(m, n, m).unwrap());
            let x = b.conv("het", x, n, Conv2dGeometry::same(3, 1), kind, true);
            let x = b.activation("relu", x, Activation::Relu);
            let x = b.conv("last", x, 2, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
            let graph = b.finish([x]).unwrap();
            let weights = distinct_weights(&graph, seed);
            let pruned = prune(&graph, &weights, PruneAmount::Ratio(ratio)).unwrap();
            let image = random_image(3 * 4 * 4, seed);
            let whole = run(&graph, &cleared(&pruned, &weights, |_| None), &image, None);
            assert_equal(&run(&pruned.graph, &pruned.weights, &image, None), &whole);
        }
    }
}

#[test]
fn the_smallest_norms_go_first() {
    let mut b = GraphBuilder::new("norms");
    let x = b.input("image", [1, 2, 2]);
    let x = b.conv("conv", x, 4, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    let x = b.conv("last", x, 1, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    let graph = b.finish([x]).unwrap();
    let mut weights = Weights::init(&graph, 0).unwrap();
    weights.get_mut("conv.weight").unwrap().data = vec![-0.5, 0.25, -1.0, 0.25];
    weights.get_mut("last.weight").unwrap().data = vec![9.0, 8.0, 7.0, 6.0];
    let removed = |ratio| prune(&graph, &weights, PruneAmount::Ratio(ratio)).unwrap().layers[0].removed.clone();
    assert_eq!(removed(0.25), [1], "of equal norms, the first");
    assert_eq!(removed(0.5), [1, 3]);
    assert_eq!(removed(0.75), [0, 1, 3]);
    assert_eq!(removed(0.999), [0, 1, 3], "one filter stays");
    let pruned = prune(&graph, &weights, PruneAmount::Ratio(0.75)).unwrap();
    assert_eq!(pruned.weights.get("conv.weight").unwrap().data, [-1.0]);
    assert_eq!(pruned.weights.get("last.weight").unwrap().data, [7.0]);
}

#[test]
fn a_number_of_macs_is_reached_as_closely_as_a_share_can() {
    for (name, asked) in [("vgg16-cifar", 105_845_760), ("resnet56", 80_000_000), ("mobilenet-cifar", 20_000_000)] {
        let graph = network(name, [3, 32, 32]);
        let weights = Weights::init(&graph, 1).unwrap();
        let pruned = prune(&graph, &weights, PruneAmount::Macs(asked)).unwrap();
        let macs = pruned.graph.cost().unwrap().macs;
        assert!(macs <= asked && macs > asked * 98 / 100, "{name}: {macs} for {asked}");
        let again = prune(&graph, &weights, PruneAmount::Ratio(pruned.ratio)).unwrap();
        assert_eq!(again, pruned);
    }
}

#[test]
fn what_cannot_be_pruned_is_said() {
    let graph = network("resnet20", [3, 32, 32]);
    let weights = Weights::init(&graph, 1).unwrap();
    let error = |amount| prune(&graph, &weights, amount).unwrap_err();
    for ratio in [0.0, 1.0, -0.5, f64::NAN] {
        assert!(matches!(error(PruneAmount::Ratio(ratio)), PruneError::Ratio(_)));
    }
    // No layer has as many filters.
    assert!(matches!(error(PruneAmount::Ratio(1e-3)), PruneError::TooLittle { .. }));
    for macs in [40_551_040, 1_000] {
        let error = error(PruneAmount::Macs(macs));
        assert!(matches!(error, PruneError::Macs { macs: 40_551_040, .. }), "{error}");
    }
    assert!(matches!(prune(&graph, &Weights::new(), PruneAmount::Ratio(0.5)), Err(PruneError::Weights(_))));
    // Groups keep what they read, and what meets in an addition stays.
    let grouped = network("resnet20_gwc4_pwc", [3, 32, 32]);
    let weights = Weights::init(&grouped, 1).unwrap();
    assert!(matches!(prune(&grouped, &weights, PruneAmount::Ratio(0.5)), Err(PruneError::Nothing { .. })));
    let mut b = GraphBuilder::new("linear");
    let x = b.input("image", [1, 2, 2]);
    let x = b.flatten("flatten", x);
    let x = b.linear("fc", x, 5, true);
    let graph = b.finish([x]).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    assert!(matches!(prune(&graph, &weights, PruneAmount::Ratio(0.5)), Err(PruneError::Nothing { .. })));
    let built = zoo::build(&"resnet20_pruned".parse().unwrap(), 10);
    assert!(matches!(built, Err(GraphError::Pruned { .. })));
}

proptest! {
    #[test]
    fn whatever_is_pruned_is_a_network_with_the_same_outputs(seed: u64, share in 1u32..100) {
        let graph = random_graph(seed);
        let weights = distinct_weights(&graph, seed);
        match prune(&graph, &weights, PruneAmount::Ratio(f64::from(share) / 100.0)) {
            // Half as much is too little all the more.
            Err(PruneError::TooLittle { ratio, .. }) => {
                let less = prune(&graph, &weights, PruneAmount::Ratio(ratio / 2.0));
                prop_assert!(matches!(less, Err(PruneError::TooLittle { .. })), "{:?}", less);
            }
            Err(error) => prop_assert!(matches!(error, PruneError::Nothing { .. }), "{}", error),
            Ok(pruned) => {
                prop_assert_eq!(pruned.weights.check(&pruned.graph), Ok(()));
                let shapes = |graph: &Graph| {
                    let shapes = graph.shapes().unwrap();
                    graph.outputs.iter().map(|&output| shapes[output]).collect::<Vec<_>>()
                };
                prop_assert_eq!(shapes(&pruned.graph), shapes(&graph));
                let removed: usize = pruned.layers.iter().map(|layer| layer.removed.len()).sum();
                let (before, after) = (graph.cost().unwrap(), pruned.graph.cost().unwrap());
                prop_assert!(after.params <= before.params && (removed == 0) == (before == after));
                // It runs.
                let image = random_image(graph.input_shape().unwrap().iter().product(), seed);
                run(&pruned.graph, &pruned.weights, &image, None);
            }
        }
    }
}

//! The cost model against the figures of the paper, and the zoo's structure.

use hetconv_graph::{Cost, Graph, ModelName, Shape, Weights, zoo};

fn graph(name: &str) -> Graph {
    let name: ModelName = name.parse().unwrap();
    zoo::build(&name, name.usual_classes()).unwrap()
}

fn cost(name: &str) -> Cost {
    graph(name).cost().unwrap()
}

#[test]
fn macs_are_exact() {
    let expected = [
        ("vgg16-cifar", 313_463_808),
        ("vgg16-cifar_p1", 313_463_808),
        ("vgg16-cifar_p2", 175_051_776),
        ("vgg16-cifar_p4", 105_845_760),
        ("vgg16-cifar_p64", 40_965_120),
        ("vgg16-cifar_gwc4_pwc", 107_418_624),
        ("vgg16-cifar_dwc_pwc", 38_280_192),
        ("resnet56", 125_485_696),
        ("mobilenet-cifar", 46_354_432),
        ("mobilenet-cifar_p32", 55_945_216),
    ];
    for (name, macs) in expected {
        let cost = cost(name);
        assert_eq!(cost.macs, macs, "{name}");
        assert_eq!(cost.flops, 2 * macs, "{name}");
        assert_eq!(cost.layers.iter().map(|layer| layer.macs).sum::<u64>(), macs, "{name}");
    }
}

#[test]
fn imagenet_reductions() {
    for (name, reduction) in [("vgg16", 65.76), ("resnet34", 64.16), ("resnet50", 30.16)] {
        let (standard, het) = (cost(name).macs as f64, cost(&format!("{name}_p4")).macs as f64);
        let percent = 100.0 * (1.0 - het / standard);
        assert!((percent - reduction).abs() < 0.1, "{name}: {percent}");
    }
}

#[test]
fn totals_with_additions() {
    assert_eq!(cost("vgg16-cifar").macs_with_additions(), 313_740_810);
    assert_eq!(cost("resnet56").macs_with_additions(), 126_018_186);
}

#[test]
fn parameters_of_well_known_networks() {
    // As counted by their usual implementations.
    assert_eq!(cost("resnet34").params, 21_797_672);
    assert_eq!(cost("resnet50").params, 25_557_032);
    // Theirs has a bias in each convolution as well; batch-norm makes it superfluous.
    assert_eq!(cost("vgg16").params, 138_365_992 - (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512));
    assert_eq!(cost("resnet20").params, 269_722);
}

#[test]
fn stages() {
    for (name, convs) in [("vgg16-cifar", 13), ("resnet20", 19), ("resnet56", 55), ("resnet34", 33), ("resnet50", 49)] {
        assert_eq!(cost(name).stages, convs, "{name}");
        assert_eq!(cost(&format!("{name}_p4")).stages, convs, "{name}");
    }
    for (name, replaced) in [("vgg16-cifar", 12), ("resnet20", 18), ("resnet34", 32), ("resnet50", 16)] {
        for variant in ["gwc4_pwc", "dwc_pwc"] {
            assert_eq!(cost(&format!("{name}_{variant}")).stages, cost(name).stages + replaced, "{name}_{variant}");
        }
    }
    assert_eq!(cost("mobilenet-cifar").stages, 27);
    assert_eq!(cost("mobilenet-cifar_p32").stages, 14);
}

#[test]
fn rows_describe_their_layers() {
    let cost = cost("vgg16-cifar_p4");
    let row = |name: &str| cost.layers.iter().find(|layer| layer.name == name).unwrap();
    let (first, het, classifier) = (row("conv1_1"), row("conv2_1"), row("classifier"));
    assert_eq!((first.op, first.kind, first.parts), ("conv2d", Some("standard"), None));
    assert_eq!((het.kind, het.kernel, het.parts, het.stages), (Some("het"), Some([3, 3]), Some(4), 1));
    assert_eq!([het.in_channels, het.out_channels, het.out_height, het.out_width], [64, 128, 16, 16]);
    assert_eq!(het.params, 64 * 128 + 16 * 128 * 8);
    assert_eq!(het.macs, het.params * 256);
    assert_eq!(het.additions, 128 * 256);
    assert_eq!((classifier.op, classifier.params, classifier.macs), ("linear", 5130, 5120));
    let mobilenet = graph("mobilenet-cifar").cost().unwrap();
    let kinds: Vec<_> = mobilenet.layers.iter().filter_map(|layer| layer.kind).take(3).collect();
    assert_eq!(kinds, ["standard", "depthwise", "pointwise"]);
}

#[test]
fn spare_slots_are_not_parameters() {
    let graph = graph("small-cifar_p3");
    let cost = graph.cost().unwrap();
    let conv2 = cost.layers.iter().find(|layer| layer.name == "conv2").unwrap();
    // 16 channels in classes of 6, 5, 5; 32 filters in classes of 11, 11, 10.
    assert_eq!(conv2.params, 16 * 32 + 8 * (11 * 6 + 11 * 5 + 10 * 5));
    let ring = Weights::init(&graph, 0).unwrap().get("conv2.ring").unwrap().data.clone();
    assert_eq!(ring.len(), 32 * 6 * 8);
    assert_eq!(ring.iter().filter(|value| **value != 0.0).count(), 8 * (11 * 6 + 11 * 5 + 10 * 5));
}

#[test]
fn the_small_network_is_small() {
    let macs = cost("small-cifar").macs;
    assert!((2_000_000..4_000_000).contains(&macs), "{macs}");
}

#[test]
fn every_known_name_builds() {
    for name in zoo::known_names() {
        let graph = graph(&name);
        assert_eq!(graph.name, name);
        let output = graph.outputs[0];
        let classes = if graph.input_shape().unwrap()[1] == 32 { 10 } else { 1000 };
        assert_eq!(graph.shapes().unwrap()[output], Shape::Features(classes), "{name}");
    }
    let seven = zoo::build(&"resnet20".parse().unwrap(), 7).unwrap();
    assert_eq!(seven.shapes().unwrap()[seven.outputs[0]], Shape::Features(7));
}

#[test]
fn no_classes_is_an_error() {
    let error = zoo::build(&"resnet20".parse().unwrap(), 0).unwrap_err();
    assert_eq!(error.to_string(), "node `classifier`: out_features is 0, but must be at least 1");
    assert!(zoo::build(&"resnet20".parse().unwrap(), usize::MAX).is_err());
}

#[test]
fn other_input_sizes() {
    let graph = graph("resnet50");
    let larger = graph.with_input([3, 448, 448]).unwrap();
    assert_eq!(larger.input_shape(), Some([3, 448, 448]));
    assert!(larger.cost().unwrap().macs > 3 * graph.cost().unwrap().macs);
    let error = self::graph("vgg16").with_input([3, 256, 256]).unwrap_err();
    assert!(error.to_string().contains("fc1"), "{error}");
    assert!(self::graph("resnet20").with_input([3, usize::MAX, 2]).is_err());
    // The first convolution takes as many channels as there are; what it makes of them stays.
    let grey = self::graph("resnet20_p4").with_input([1, 28, 28]).unwrap();
    let layers = grey.cost().unwrap().layers;
    assert_eq!((layers[0].in_channels, layers[0].out_channels), (1, 16));
}

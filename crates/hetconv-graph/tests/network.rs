//! Graphs that are none, weights and their initialisation, names.

mod common;

use std::collections::HashSet;

use common::{Random, random_graph};
use hetconv_core::{Conv2dGeometry, HetPattern, KindError};
use hetconv_graph::{
    ConvKind, Fault, Graph, GraphBuilder, GraphError, ModelName, NameError, Node, Op, Shape, Substitution, WeightError,
    WeightRole, WeightTensor, Weights, zoo,
};
use proptest::prelude::*;

fn node(name: &str, op: Op, inputs: &[usize]) -> Node {
    Node { name: name.into(), op, inputs: inputs.to_vec() }
}

/// Input of 4×6×5 and one more node that reads it.
fn fault(op: Op, inputs: &[usize]) -> Fault {
    let nodes = vec![node("input", Op::Input { shape: [4, 6, 5] }, &[]), node("it", op, inputs)];
    let graph = Graph { name: "test".into(), nodes, outputs: vec![1] };
    match graph.validate() {
        Err(GraphError::Node { node, fault }) if node == "it" => fault,
        other => panic!("{other:?}"),
    }
}

fn conv(in_channels: usize, out_channels: usize, geometry: Conv2dGeometry, kind: ConvKind) -> Op {
    Op::Conv2d { in_channels, out_channels, geometry, kind, bias: false }
}

#[test]
fn shapes_by_hand() {
    let mut b = GraphBuilder::new("shapes");
    let x = b.input("input", [4, 6, 5]);
    let image = |channels, height, width| Shape::Image { channels, height, width };
    let c = b.conv("conv", x, 8, Conv2dGeometry::same(3, 2), ConvKind::Grouped(2), true);
    assert_eq!(b.shape(c), image(8, 3, 3));
    let p = b.max_pool("max", c, Conv2dGeometry::square(2, 2, 0, 1));
    assert_eq!(b.shape(p), image(8, 1, 1));
    let m = b.mul("mul", [p, c]);
    assert_eq!(b.shape(m), image(8, 3, 3));
    let cat = b.concat("cat", &[m, c, c]);
    assert_eq!(b.shape(cat), image(24, 3, 3));
    let g = b.push("gather", Op::Gather { channels: vec![Some(0), None, Some(3)], stride: 2 }, [x]);
    assert_eq!(b.shape(g), image(3, 3, 3));
    let f = b.flatten("flatten", cat);
    assert_eq!(b.shape(f), Shape::Features(216));
    let l = b.linear("linear", f, 7, false);
    let s = b.push("softmax", Op::Softmax, [l]);
    assert_eq!(b.shape(s), Shape::Features(7));
    b.finish([s]).unwrap();
}

#[test]
fn each_fault_of_a_node_is_found() {
    let same = Conv2dGeometry::same;
    let standard = ConvKind::Standard;
    assert_eq!(fault(Op::Add, &[2]), Fault::Order { input: 2 });
    assert_eq!(fault(Op::Add, &[1]), Fault::Order { input: 1 });
    assert_eq!(fault(Op::Add, &[]), Fault::Arity { expected: "at least one input", found: 0 });
    assert_eq!(fault(Op::Mul, &[0]), Fault::Arity { expected: "two inputs", found: 1 });
    assert_eq!(fault(Op::GlobalAvgPool, &[0, 0]), Fault::Arity { expected: "one input", found: 2 });
    assert!(matches!(fault(Op::Input { shape: [1, 1, 1] }, &[0]), Fault::Arity { .. }));
    assert_eq!(fault(Op::Input { shape: [1, 0, 1] }, &[]), Fault::Zero("height"));
    assert!(matches!(fault(Op::Softmax, &[0]), Fault::Kind { expected: "features", .. }));
    assert!(matches!(
        fault(Op::Linear { in_features: 4, out_features: 2, bias: false }, &[0]),
        Fault::Kind { expected: "features", .. }
    ));
    assert_eq!(fault(conv(3, 8, same(3, 1), standard.clone()), &[0]), Fault::Channels { expected: 3, found: 4 });
    assert_eq!(fault(conv(4, 0, same(3, 1), standard.clone()), &[0]), Fault::Zero("out_channels"));
    assert!(matches!(fault(conv(4, 8, same(3, 0), standard.clone()), &[0]), Fault::Geometry(_)));
    let too_large = Conv2dGeometry::square(7, 1, 0, 1);
    assert!(matches!(fault(conv(4, 8, too_large, standard), &[0]), Fault::Geometry(_)));
    for groups in [0, 3, 8] {
        let found = fault(conv(4, 8, same(3, 1), ConvKind::Grouped(groups)), &[0]);
        assert_eq!(found, KindError::Groups { groups, in_channels: 4, out_channels: 8 }.into());
    }
    let het = |m, n, p| ConvKind::Het(HetPattern::shifted(m, n, p).unwrap());
    let found = fault(conv(4, 8, same(3, 1), het(4, 6, 2)), &[0]);
    assert_eq!(found, KindError::PatternSize { pattern: [4, 6], layer: [4, 8] }.into());
    let even = Conv2dGeometry::square(2, 1, 0, 1);
    assert_eq!(fault(conv(4, 8, even, het(4, 8, 2)), &[0]), KindError::EvenKernel([2, 2]).into());
    assert!(matches!(fault(Op::BatchNorm { channels: 5, epsilon: 1e-5 }, &[0]), Fault::Channels { .. }));
    for epsilon in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(fault(Op::BatchNorm { channels: 4, epsilon }, &[0]), Fault::Epsilon);
    }
    let padded = Conv2dGeometry::square(2, 1, 2, 1);
    assert_eq!(fault(Op::MaxPool { geometry: padded }, &[0]), Fault::PoolPadding { padding: 2, window: 2 });
    // Two taps, one on each side of the image.
    let astride = Conv2dGeometry { dilation: [7, 1], ..Conv2dGeometry::square(2, 1, 1, 1) };
    assert!(matches!(fault(Op::MaxPool { geometry: astride }, &[0]), Fault::PoolPadding { padding: 1, window: 8 }));
    let gather = |channels, stride| Op::Gather { channels, stride };
    assert_eq!(fault(gather(vec![Some(4)], 1), &[0]), Fault::Gather { channel: 4, channels: 4 });
    assert_eq!(fault(gather(vec![Some(0)], 0), &[0]), Fault::Zero("stride"));
    assert_eq!(fault(gather(vec![], 1), &[0]), Fault::Zero("channels"));
}

#[test]
fn operands_that_do_not_go_together() {
    for op in [Op::Add, Op::Mul, Op::Concat] {
        let pool = Op::MaxPool { geometry: Conv2dGeometry::square(2, 2, 0, 1) };
        let nodes =
            vec![node("input", Op::Input { shape: [4, 6, 5] }, &[]), node("pool", pool, &[0]), node("it", op, &[0, 1])];
        let graph = Graph { name: "test".into(), nodes, outputs: vec![2] };
        let error = graph.validate().unwrap_err();
        assert!(matches!(error, GraphError::Node { fault: Fault::Operands { .. }, .. }), "{error}");
    }
}

#[test]
fn absurd_sizes_do_not_overflow() {
    let huge = usize::MAX / 2;
    let same = Conv2dGeometry::same(3, 1);
    assert_eq!(fault(conv(4, huge, same, ConvKind::Standard), &[0]), Fault::TooLarge);
    let mut b = GraphBuilder::new("many MACs");
    let mut x = b.input("input", [1 << 24, 4, 4]);
    let window = Conv2dGeometry { kernel: [32, 32], stride: [1, 1], padding: [16, 16, 15, 15], dilation: [1, 1] };
    // A fourth of what can be counted, each of them.
    for name in ["a", "b", "c", "d"] {
        x = b.conv(name, x, 1 << 24, window.clone(), ConvKind::Standard, false);
    }
    assert!(matches!(b.finish([x]), Err(GraphError::Node { fault: Fault::TooLarge, .. })));
}

#[test]
fn values_have_limits() {
    let input =
        |shape| Graph { name: "test".into(), nodes: vec![node("input", Op::Input { shape }, &[])], outputs: vec![0] };
    for shape in [[1 << 24, 4, 4], [1, 1 << 14, 1 << 14], [1 << 14, 1, 1 << 14]] {
        assert_eq!(input(shape).validate(), Ok(()), "{shape:?}");
    }
    for shape in [[(1 << 24) + 1, 1, 1], [1, (1 << 14) + 1, 1], [1, 1, (1 << 14) + 1], [2, 1 << 14, 1 << 14]] {
        let error = input(shape).validate().unwrap_err();
        assert!(matches!(error, GraphError::Node { ref node, fault: Fault::Size(_) } if node == "input"), "{error}");
    }
    assert!(matches!(input([usize::MAX; 3]).validate(), Err(GraphError::Node { fault: Fault::Size(_), .. })));
    // So have values that are computed.
    let mut b = GraphBuilder::new("wide");
    let x = b.input("input", [1 << 23, 1, 1]);
    let x = b.concat("cat", &[x, x, x]);
    let wide = Fault::Size(Shape::Image { channels: 3 << 23, height: 1, width: 1 });
    assert_eq!(b.finish([x]), Err(GraphError::Node { node: "cat".into(), fault: wide }));
    let mut b = GraphBuilder::new("flat");
    let x = b.input("input", [4, 1 << 13, 1 << 12]);
    let x = b.flatten("flatten", x);
    assert_eq!(
        b.finish([x]),
        Err(GraphError::Node { node: "flatten".into(), fault: Fault::Size(Shape::Features(1 << 27)) })
    );
}

#[test]
fn graphs_have_a_limit() {
    let chain = |nodes: usize| {
        let input = node("input", Op::Input { shape: [1, 1, 1] }, &[]);
        let more = (1..nodes).map(|i| node(&i.to_string(), Op::GlobalAvgPool, &[i - 1]));
        Graph { name: "test".into(), nodes: [input].into_iter().chain(more).collect(), outputs: vec![nodes - 1] }
    };
    assert_eq!(chain(Graph::MAX_NODES).validate(), Ok(()));
    let (nodes, limit) = (Graph::MAX_NODES + 1, Graph::MAX_NODES);
    assert_eq!(chain(nodes).validate(), Err(GraphError::TooManyNodes { nodes, limit }));
}

#[test]
fn names_and_outputs_are_checked() {
    let input = || node("input", Op::Input { shape: [1, 1, 1] }, &[]);
    let graph = |nodes, outputs| Graph { name: "test".into(), nodes, outputs };
    let twice = graph(vec![input(), node("input", Op::GlobalAvgPool, &[0])], vec![1]);
    assert_eq!(twice.validate(), Err(GraphError::Name { name: "input".into() }));
    let nameless = graph(vec![input(), node("", Op::GlobalAvgPool, &[0])], vec![1]);
    assert_eq!(nameless.validate(), Err(GraphError::Name { name: String::new() }));
    assert_eq!(graph(vec![input()], vec![]).validate(), Err(GraphError::NoOutputs));
    assert_eq!(graph(vec![input()], vec![1]).validate(), Err(GraphError::Output { output: 1, nodes: 1 }));
}

#[test]
fn a_graph_survives_json() {
    for seed in 0..50 {
        let graph = random_graph(seed);
        let text = serde_json::to_string(&graph).unwrap();
        assert_eq!(serde_json::from_str::<Graph>(&text).unwrap(), graph);
    }
}

// Weights

fn het_layer(m: usize, n: usize, parts: usize) -> Graph {
    let mut b = GraphBuilder::new("one layer");
    let x = b.input("input", [m, 3, 3]);
    let kind = ConvKind::Het(HetPattern::shifted(m, n, parts).unwrap());
    let x = b.conv("het", x, n, Conv2dGeometry::same(3, 1), kind, true);
    b.finish([x]).unwrap()
}

fn deviation(values: &[f32]) -> f64 {
    (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

#[test]
fn specs_in_node_order() {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
    let specs = graph.weight_specs().unwrap();
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).take(8).collect();
    assert_eq!(
        names,
        [
            "conv1.weight",
            "conv1.bn.weight",
            "conv1.bn.bias",
            "conv1.bn.running_mean",
            "conv1.bn.running_var",
            "conv2.center",
            "conv2.ring",
            "conv2.bn.weight",
        ]
    );
    assert_eq!((&specs[5].shape[..], &specs[6].shape[..]), (&[32, 16][..], &[32, 4, 8][..]));
    assert!(matches!(&specs[6].role, WeightRole::HetRing { fan_in, slots } if fan_in[0] == 48 && slots[0] == 4));
    let trainable: Vec<bool> = specs.iter().map(|spec| spec.role.trainable()).take(6).collect();
    assert_eq!(trainable, [true, true, true, false, false, true]);
    let decays: Vec<bool> = specs.iter().map(|spec| spec.role.decays()).take(7).collect();
    assert_eq!(decays, [true, false, false, false, false, true, true]);
}

#[test]
fn initialisation_has_one_fan_in_per_filter() {
    let weights = Weights::init(&het_layer(64, 256, 4), 7).unwrap();
    let expected = (2.0_f64 / (64.0 + 8.0 * 16.0)).sqrt();
    for name in ["het.center", "het.ring"] {
        let found = deviation(&weights.get(name).unwrap().data);
        assert!((found / expected - 1.0).abs() < 0.03, "{name}: {found} for {expected}");
    }
    // Uneven classes: filters of class 0 have 2 spatial channels, the others 1.
    let graph = het_layer(3, 4096, 2);
    let weights = Weights::init(&graph, 7).unwrap();
    for (class, slots) in [(0, 2.0), (1, 1.0)] {
        let center = &weights.get("het.center").unwrap().data;
        let of_class: Vec<f32> = center.chunks(3).skip(class).step_by(2).flatten().copied().collect();
        let expected = (2.0_f64 / (3.0 + 8.0 * slots)).sqrt();
        assert!((deviation(&of_class) / expected - 1.0).abs() < 0.04);
    }
}

#[test]
fn initialisation_of_the_other_roles() {
    let graph = zoo::build(&"vgg16-cifar_gwc4_pwc".parse().unwrap(), 10).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    for spec in graph.weight_specs().unwrap() {
        let data = &weights.get(&spec.name).unwrap().data;
        match spec.role {
            WeightRole::NormScale | WeightRole::RunningVar => assert!(data.iter().all(|&x| x == 1.0)),
            WeightRole::Bias | WeightRole::NormShift | WeightRole::RunningMean => {
                assert!(data.iter().all(|&x| x == 0.0))
            }
            WeightRole::Convolution { fan_in } if data.len() > 4000 => {
                let expected = (2.0 / fan_in as f64).sqrt();
                assert!((deviation(data) / expected - 1.0).abs() < 0.06, "{}", spec.name);
            }
            WeightRole::Linear { fan_in } => {
                let bound = (3.0 / fan_in as f64).sqrt();
                assert!(data.iter().all(|&x| f64::from(x).abs() <= bound));
                assert!((deviation(data) * (fan_in as f64).sqrt() - 1.0).abs() < 0.05, "{}", spec.name);
            }
            _ => {}
        }
    }
}

#[test]
fn a_tensor_depends_on_seed_and_name_alone() {
    let init = |name: &str, seed| Weights::init(&zoo::build(&name.parse().unwrap(), 10).unwrap(), seed).unwrap();
    let (standard, het) = (init("small-cifar", 3), init("small-cifar_p4", 3));
    assert_eq!(standard.get("conv1.weight"), het.get("conv1.weight"));
    assert_eq!(init("small-cifar_p4", 3), het);
    assert_ne!(init("small-cifar_p4", 4).get("conv1.weight"), het.get("conv1.weight"));
    // No two tensors share a stream.
    let firsts: HashSet<u32> = ["conv1.weight", "conv2.center", "conv2.ring", "conv3.center", "conv3.ring"]
        .map(|name| het.get(name).unwrap().data[0].to_bits())
        .into();
    assert_eq!(firsts.len(), 5);
}

proptest! {
    #[test]
    fn spare_slots_are_zero_and_must_be(seed: u64) {
        let mut random = Random(seed);
        let (m, n) = (1 + random.below(9), 1 + random.below(9));
        let graph = het_layer(m, n, 1 + random.below(m));
        let mut weights = Weights::init(&graph, seed).unwrap();
        prop_assert_eq!(weights.check(&graph), Ok(()));
        let specs = graph.weight_specs().unwrap();
        let WeightRole::HetRing { slots, .. } = &specs[1].role else { panic!() };
        let ring = weights.get_mut("het.ring").unwrap();
        let at = random.below(ring.data.len());
        let (filter, slot) = (at / 8 / ring.shape[1], at / 8 % ring.shape[1]);
        let spare = slot >= slots[filter];
        prop_assert_eq!(ring.data[at] == 0.0, spare);
        ring.data[at] = 0.5;
        let expected = if spare {
            Err(WeightError::SpareSlot { name: "het.ring".into(), filter, slot, value: 0.5 })
        } else {
            Ok(())
        };
        prop_assert_eq!(weights.check(&graph), expected);
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let graph = het_layer(4, 6, 2);
    let fresh = || Weights::init(&graph, 0).unwrap();
    let mut weights = fresh();
    weights.remove("het.bias");
    assert_eq!(weights.check(&graph), Err(WeightError::Missing { name: "het.bias".into() }));
    let mut weights = fresh();
    weights.insert("extra", WeightTensor { shape: vec![], data: vec![0.0] });
    assert_eq!(weights.check(&graph), Err(WeightError::Unexpected { name: "extra".into() }));
    let mut weights = fresh();
    weights.get_mut("het.center").unwrap().shape = vec![4, 6];
    let error = weights.check(&graph).unwrap_err();
    assert_eq!(error.to_string(), "tensor `het.center` has shape [4, 6], but the graph asks for [6, 4]");
    let mut weights = fresh();
    weights.get_mut("het.center").unwrap().data.pop();
    assert!(matches!(weights.check(&graph), Err(WeightError::Elements { found: 23, .. })));
}

// Names

proptest! {
    #[test]
    fn names_survive_printing_and_parsing(arch in 0usize..8, kind in 0usize..5, number in 1usize..5000, se: bool, pruned: bool) {
        let substitution = [
            Substitution::Standard,
            Substitution::Het { parts: number },
            Substitution::PointwiseChannel,
            Substitution::GroupPointwise { groups: number },
            Substitution::DepthwisePointwise,
        ][kind];
        let architecture = zoo::architectures()[arch].name.to_owned();
        let name = ModelName { architecture, substitution, se, pruned };
        prop_assert_eq!(name.to_string().parse::<ModelName>(), Ok(name.clone()));
        prop_assert_eq!(substitution.to_string().parse::<Substitution>(), Ok(substitution));
    }
}

#[test]
fn known_names_print_as_they_parse_and_are_all_different() {
    let names = zoo::known_names();
    for name in &names {
        assert_eq!(name.parse::<ModelName>().unwrap().to_string(), *name);
    }
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
}

#[test]
fn unknown_names_get_the_nearest_known_one() {
    for (name, nearest) in [
        ("vgg16-cifr_p4", "vgg16-cifar_p4"),
        ("resnet57", "resnet56"),
        ("resnet20_gwc4", "resnet20_gwc4_pwc"),
        ("resnet20_dwcpwc", "resnet20_dwc_pwc"),
        ("mobilenet_p32", "mobilenet-cifar_p32"),
        ("resnet20_p4_se_se", "resnet20_p4_se"),
        ("resnet20_p04", "resnet20_p4"),
        ("resnet20_p+4", "resnet20_p4"),
    ] {
        match name.parse::<ModelName>() {
            Err(NameError::Unknown { name: asked, suggestion }) => {
                assert_eq!(asked, name);
                assert_eq!(suggestion.as_deref(), Some(nearest), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    for name in ["resnet20_", "resnet20_standard", "resnet20_p", "resnet20_p99999999999999999999"] {
        let Err(NameError::Unknown { suggestion, .. }) = name.parse::<ModelName>() else { panic!("{name}") };
        assert!(suggestion.is_some_and(|suggestion| suggestion.parse::<ModelName>().is_ok()), "{name}");
    }
    for name in ["", "_", "_p4", "alexnet", "densenet121"] {
        let error = name.parse::<ModelName>().unwrap_err();
        assert!(matches!(&error, NameError::Unknown { suggestion: None, .. }), "{error}");
        assert!(error.to_string().contains(&format!("`{name}`. Names are ARCH")), "{error}");
    }
    assert_eq!("resnet20_p0".parse::<ModelName>(), Err(NameError::Zero { name: "resnet20_p0".into() }));
    assert_eq!("resnet20_gwc0_pwc".parse::<ModelName>(), Err(NameError::Zero { name: "resnet20_gwc0_pwc".into() }));
}

#[test]
fn values_that_are_many_and_wide_are_too_large_together() {
    let wide = Op::Input { shape: [1 << 24, 1, 1] };
    let mut nodes = vec![node("input", wide, &[]), node("flat", Op::Flatten, &[0])];
    nodes.extend((0..40).map(|i| node(&format!("softmax{i}"), Op::Softmax, &[i + 1])));
    let graph = Graph { name: "wide".into(), outputs: vec![nodes.len() - 1], nodes };
    assert!(matches!(graph.validate(), Err(GraphError::Node { fault: Fault::TooLarge, .. })));

    // So are operands, however few values they are.
    let sum = |operands: usize| {
        let nodes =
            vec![node("input", Op::Input { shape: [1024, 1, 1] }, &[]), node("sum", Op::Add, &vec![0; operands])];
        Graph { name: "sum".into(), outputs: vec![1], nodes }.validate()
    };
    assert_eq!(sum(1000), Ok(()));
    assert!(matches!(sum(1 << 17), Err(GraphError::Node { fault: Fault::TooLarge, .. })));
}

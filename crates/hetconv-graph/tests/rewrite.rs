//! The rewrite and squeeze-and-excitation.

mod common;

use common::{random_graph, random_image, run};
use hetconv_core::{Arrangement, Conv2dGeometry};
use hetconv_graph::{
    ArrangementKind, ConvKind, Fault, Graph, GraphBuilder, GraphError, NoteKind, Op, RewriteNote, RewriteOptions,
    Selection, Substitution, WeightTensor, Weights, rewrite, squeeze_excite, zoo,
};
use proptest::prelude::*;

fn network(name: &str) -> Graph {
    zoo::build(&name.parse().unwrap(), 10).unwrap()
}

fn conv_kind<'a>(graph: &'a Graph, name: &str) -> &'a ConvKind {
    match &graph.nodes[graph.find(name).unwrap()].op {
        Op::Conv2d { kind, .. } => kind,
        other => panic!("{other:?}"),
    }
}

fn parts(graph: &Graph, name: &str) -> Option<usize> {
    match conv_kind(graph, name) {
        ConvKind::Het(pattern) => Some(pattern.classes()),
        _ => None,
    }
}

fn het(parts: usize) -> RewriteOptions {
    RewriteOptions::new(Substitution::Het { parts })
}

proptest! {
    #[test]
    fn shapes_stay(seed: u64, kind in 0usize..5, number in 1usize..9, blocked: bool, keep_first: bool) {
        let substitution = [
            Substitution::Standard,
            Substitution::Het { parts: number },
            Substitution::PointwiseChannel,
            Substitution::GroupPointwise { groups: number },
            Substitution::DepthwisePointwise,
        ][kind];
        let arrangement = if blocked { ArrangementKind::Blocked } else { ArrangementKind::Shifted };
        let selection = Selection { keep_first, ..Selection::default() };
        let options = RewriteOptions { arrangement, selection, ..RewriteOptions::new(substitution) };
        for graph in [random_graph(seed), squeeze_excite(&random_graph(seed), 4).unwrap()] {
            let (rewritten, _) = rewrite(&graph, &options).unwrap();
            let (before, after) = (graph.shapes().unwrap(), rewritten.shapes().unwrap());
            for (id, node) in graph.nodes.iter().enumerate() {
                // Nodes of depthwise-pointwise pairs may vanish; whoever stays keeps its shape.
                if let Some(new) = rewritten.find(&node.name) {
                    prop_assert_eq!(before[id], after[new], "{}", node.name);
                }
            }
            let shapes = |graph: &Graph, shapes: &[_]| graph.outputs.iter().map(|&o| shapes[o]).collect::<Vec<_>>();
            prop_assert_eq!(shapes(&graph, &before), shapes(&rewritten, &after));
        }
    }
}

#[test]
fn both_batch_norms_of_one_convolution_are_scaled() {
    let mut b = GraphBuilder::new("two");
    let x = b.input("image", [3, 4, 4]);
    let x = b.conv("conv", x, 6, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    let outputs = [b.batch_norm("one", x), b.batch_norm("two", x)];
    let graph = squeeze_excite(&b.finish(outputs).unwrap(), 2).unwrap();
    assert!(graph.find("conv.se.scale").is_some() && graph.find("two.se.scale").is_some());
}

#[test]
fn every_spatial_convolution_but_the_first_is_replaced() {
    let (graph, notes) = rewrite(&network("resnet20"), &het(4)).unwrap();
    assert_eq!(notes, []);
    for node in &graph.nodes {
        if let Op::Conv2d { kind, .. } = &node.op {
            assert_eq!(matches!(kind, ConvKind::Het(_)), node.name != "conv1", "{}", node.name);
        }
    }
    let all = RewriteOptions { selection: Selection::all(), ..het(2) };
    let (graph, _) = rewrite(&network("resnet20"), &all).unwrap();
    assert_eq!(parts(&graph, "conv1"), Some(2));
}

#[test]
fn pointwise_convolutions_stay() {
    let (graph, _) = rewrite(&network("resnet50"), &het(4)).unwrap();
    assert_eq!(*conv_kind(&graph, "stage1.0.conv1"), ConvKind::Standard);
    assert_eq!(*conv_kind(&graph, "stage1.0.shortcut"), ConvKind::Standard);
    assert_eq!(parts(&graph, "stage1.0.conv2"), Some(4));
}

#[test]
fn one_part_is_the_standard_convolution() {
    let graph = network("small-cifar").with_input([3, 8, 8]).unwrap();
    let (het, _) = rewrite(&graph, &het(1)).unwrap();
    let weights = Weights::init(&het, 1).unwrap();
    let mut dense = Weights::init(&graph, 1).unwrap();
    for name in ["conv2", "conv3", "conv4"] {
        let center = weights.get(&format!("{name}.center")).unwrap();
        let ring = weights.get(&format!("{name}.ring")).unwrap();
        let kernels = center.data.iter().zip(ring.data.chunks(8));
        let data = kernels.flat_map(|(center, ring)| [&ring[..4], &[*center], &ring[4..]].concat()).collect();
        let shape = vec![center.shape[0], center.shape[1], 3, 3];
        dense.insert(format!("{name}.weight"), WeightTensor { shape, data });
    }
    for (name, tensor) in weights.iter().filter(|(name, _)| dense.get(name).is_some()) {
        assert_eq!(dense.get(name), Some(tensor));
    }
    let image = random_image(3 * 8 * 8, 1);
    assert_eq!(run(&graph, &dense, &image, None), run(&het, &weights, &image, None));
}

#[test]
fn too_many_parts_are_clamped_and_said() {
    let (graph, notes) = rewrite(&network("small-cifar"), &het(32)).unwrap();
    assert_eq!(notes, [RewriteNote { node: "conv2".into(), kind: NoteKind::PartsReduced { asked: 32, used: 16 } }]);
    assert_eq!(notes[0].to_string(), "`conv2`: P = 32 does not fit, P = 16 used");
    assert_eq!([parts(&graph, "conv2"), parts(&graph, "conv3")], [Some(16), Some(32)]);
}

#[test]
fn pc_has_as_many_parts_as_channels() {
    let graph = network("small-cifar_pc");
    assert_eq!(["conv2", "conv3", "conv4"].map(|name| parts(&graph, name)), [Some(16), Some(32), Some(32)]);
}

#[test]
fn blocked_parts_divide_both_sides() {
    let options = RewriteOptions { arrangement: ArrangementKind::Blocked, ..het(12) };
    let (graph, notes) = rewrite(&network("small-cifar"), &options).unwrap();
    assert_eq!(["conv2", "conv3", "conv4"].map(|name| parts(&graph, name)), [Some(8); 3]);
    assert_eq!(notes.len(), 3);
    let ConvKind::Het(pattern) = conv_kind(&graph, "conv2") else { panic!() };
    assert_eq!(*pattern.arrangement(), Arrangement::Blocked { parts: 8 });
}

#[test]
fn names_choose() {
    let selection = Selection::default().excluding(|name| name == "conv3").with_parts(|name| name == "conv4", 2);
    let options = RewriteOptions { selection, ..het(4) };
    let (graph, notes) = rewrite(&network("small-cifar"), &options).unwrap();
    assert_eq!(notes, []);
    assert_eq!(["conv2", "conv3", "conv4"].map(|name| parts(&graph, name)), [Some(4), None, Some(2)]);
}

#[test]
fn other_kernels_are_left_and_said() {
    let mut b = GraphBuilder::new("others");
    let x = b.input("input", [4, 6, 6]);
    let x = b.conv("first", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    let x = b.conv("even", x, 8, Conv2dGeometry::square(2, 2, 0, 1), ConvKind::Standard, false);
    let wide = Conv2dGeometry { kernel: [1, 3], padding: [0, 1, 0, 1], ..Conv2dGeometry::same(3, 1) };
    let x = b.conv("wide", x, 8, wide, ConvKind::Standard, false);
    let graph = b.finish([x]).unwrap();
    let (rewritten, notes) = rewrite(&graph, &het(4)).unwrap();
    assert_eq!(rewritten, graph);
    let note = |node: &str, kernel| RewriteNote { node: node.into(), kind: NoteKind::Kernel { kernel } };
    assert_eq!(notes, [note("even", [2, 2]), note("wide", [1, 3])]);
}

#[test]
fn no_parts_and_no_groups_are_errors() {
    let graph = network("small-cifar");
    for substitution in [Substitution::Het { parts: 0 }, Substitution::GroupPointwise { groups: 0 }] {
        assert!(matches!(rewrite(&graph, &RewriteOptions::new(substitution)), Err(GraphError::Node { .. })));
    }
    let blocked = RewriteOptions { arrangement: ArrangementKind::Blocked, ..het(0) };
    assert!(matches!(rewrite(&graph, &blocked), Err(GraphError::Node { fault: Fault::Pattern(_), .. })));
}

#[test]
fn grouped_and_pointwise_take_the_place_of_one() {
    let (graph, notes) =
        rewrite(&network("resnet20"), &RewriteOptions::new(Substitution::GroupPointwise { groups: 4 })).unwrap();
    assert_eq!(notes, []);
    let at = graph.find("stage2.0.conv1.grouped").unwrap();
    let names: Vec<&str> = graph.nodes[at..at + 6].iter().map(|node| node.name.as_str()).collect();
    let spatial = "stage2.0.conv1.grouped";
    assert_eq!(
        names,
        [
            spatial,
            &format!("{spatial}.bn"),
            &format!("{spatial}.relu"),
            "stage2.0.conv1",
            "stage2.0.conv1.bn",
            "stage2.0.conv1.relu"
        ]
    );
    let conv = |id: usize| match &graph.nodes[id].op {
        Op::Conv2d { in_channels, out_channels, geometry, kind, .. } => {
            (*in_channels, *out_channels, geometry.kernel, geometry.stride, kind.clone())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(conv(at), (16, 16, [3, 3], [2, 2], ConvKind::Grouped(4)));
    assert_eq!(conv(at + 3), (16, 32, [1, 1], [1, 1], ConvKind::Standard));
}

#[test]
fn groups_that_do_not_divide_are_reduced_and_said() {
    let (graph, notes) =
        rewrite(&network("small-cifar"), &RewriteOptions::new(Substitution::GroupPointwise { groups: 12 })).unwrap();
    assert_eq!(*conv_kind(&graph, "conv2.grouped"), ConvKind::Grouped(4));
    assert_eq!(notes[0].kind, NoteKind::GroupsReduced { asked: 12, used: 4 });
    assert_eq!(notes.len(), 3);
}

#[test]
fn a_depthwise_and_a_pointwise_convolution_become_one() {
    let standard = network("mobilenet-cifar");
    let (graph, _) = rewrite(&standard, &het(32)).unwrap();
    // Depthwise, batch-norm and ReLU vanish in each of 13 blocks.
    assert_eq!(graph.nodes.len(), standard.nodes.len() - 3 * 13);
    let id = graph.find("block2.pointwise").unwrap();
    let Op::Conv2d { in_channels: 64, out_channels: 128, geometry, kind: ConvKind::Het(_), .. } = &graph.nodes[id].op
    else {
        panic!("{:?}", graph.nodes[id])
    };
    assert_eq!(*geometry, Conv2dGeometry::same(3, 2));
    assert!(graph.nodes.iter().all(|node| !node.name.contains("depthwise")));
    assert!(graph.find("block2.pointwise.bn").is_some());
}

#[test]
fn pairs_that_are_there_already_change_groups_only() {
    let standard = network("mobilenet-cifar");
    let (same, _) = rewrite(&standard, &RewriteOptions::new(Substitution::DepthwisePointwise)).unwrap();
    assert_eq!(same, standard);
    let (grouped, _) = rewrite(&standard, &RewriteOptions::new(Substitution::GroupPointwise { groups: 4 })).unwrap();
    assert_eq!(grouped.nodes.len(), standard.nodes.len());
    assert_eq!(*conv_kind(&grouped, "block1.depthwise"), ConvKind::Grouped(4));
}

#[test]
fn grouped_and_depthwise_alone_stay() {
    let mut b = GraphBuilder::new("alone");
    let x = b.input("input", [8, 6, 6]);
    let same = Conv2dGeometry::same;
    let x = b.conv("first", x, 8, same(3, 1), ConvKind::Standard, false);
    let x = b.conv("grouped", x, 8, same(3, 1), ConvKind::Grouped(2), false);
    let x = b.conv("pointwise after grouped", x, 8, same(1, 1), ConvKind::Standard, false);
    let x = b.conv("depthwise before spatial", x, 8, same(3, 1), ConvKind::Grouped(8), false);
    let x = b.conv("strided pointwise", x, 8, same(1, 2), ConvKind::Standard, false);
    let read_twice = b.conv("depthwise read twice", x, 8, same(3, 1), ConvKind::Grouped(8), false);
    let x = b.conv("pointwise", read_twice, 8, same(1, 1), ConvKind::Standard, false);
    let x = b.add("add", &[x, read_twice]);
    let graph = b.finish([x]).unwrap();
    let (rewritten, notes) = rewrite(&graph, &het(4)).unwrap();
    assert_eq!((rewritten, notes), (graph, vec![]));
}

#[test]
fn squeeze_excitation_after_every_batch_norm_of_a_plain_network() {
    let graph = network("vgg16-cifar_se");
    let scales = graph.nodes.iter().filter(|node| node.name.ends_with(".se.scale")).count();
    assert_eq!(scales, 13);
    let relu = &graph.nodes[graph.find("conv3_2.relu").unwrap()];
    let scale = graph.find("conv3_2.se.scale").unwrap();
    assert_eq!(relu.inputs, [scale]);
    assert_eq!(graph.nodes[scale].inputs[0], graph.find("conv3_2.bn").unwrap());
    let plain = network("vgg16-cifar").cost().unwrap().macs;
    let widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
    assert_eq!(graph.cost().unwrap().macs - plain, widths.iter().map(|c: &u64| 2 * c * (c / 8)).sum::<u64>());
}

#[test]
fn squeeze_excitation_before_every_add_of_a_residual_network() {
    for (name, blocks, last) in [("resnet20", 9, "conv2"), ("resnet34", 16, "conv2"), ("resnet50", 16, "conv3")] {
        let graph = network(&format!("{name}_p4_se"));
        let scales: Vec<usize> =
            (0..graph.nodes.len()).filter(|&id| graph.nodes[id].name.ends_with(".se.scale")).collect();
        assert_eq!(scales.len(), blocks, "{name}");
        for id in scales {
            assert!(graph.nodes[id].name.ends_with(&format!(".{last}.se.scale")), "{}", graph.nodes[id].name);
            let reads_it = graph.nodes.iter().filter(|node| node.inputs.contains(&id)).collect::<Vec<_>>();
            assert!(reads_it.len() == 1 && reads_it[0].op == Op::Add, "{name}");
        }
    }
}

#[test]
fn squeeze_excitation_completes_pairs_first() {
    let graph = network("mobilenet-cifar_se");
    assert!(graph.find("block1.pointwise.se.scale").is_some() && graph.find("block1.depthwise.se.scale").is_none());
    // Before or after the rewrite: the same network.
    let (a, _) = rewrite(&graph, &het(32)).unwrap();
    let (b, _) = rewrite(&network("mobilenet-cifar"), &het(32)).unwrap();
    assert_eq!(a.nodes, squeeze_excite(&b, 8).unwrap().nodes);
    assert!(matches!(squeeze_excite(&graph, 0), Err(GraphError::Node { fault: Fault::Zero(_), .. })));
}

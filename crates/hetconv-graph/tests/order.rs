//! The channel-order pass changes where numbers are stored and nothing else.

mod common;

use common::{distinct_weights, random_graph, random_image, run};
use hetconv_core::{ChannelOrder, Conv2dGeometry, HetPattern};
use hetconv_graph::{
    ChannelPlan, ConvKind, Graph, GraphBuilder, ModelName, Op, RewriteOptions, Selection, Substitution, ValueId,
    is_contiguous, rewrite, zoo,
};
use proptest::prelude::*;

fn assert_same_result(graph: &Graph, seed: u64) {
    let plan = ChannelPlan::new(graph).unwrap();
    assert_promises(graph, &plan);
    let weights = distinct_weights(graph, seed);
    let elements = graph.input_shape().unwrap().iter().product();
    let image = random_image(elements, seed);
    let (natural, stored) = (run(graph, &weights, &image, None), run(graph, &weights, &image, Some(&plan)));
    for (natural, stored) in natural.iter().zip(&stored) {
        let largest = natural.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        assert!(largest.is_finite());
        for (a, b) in natural.iter().zip(stored) {
            assert!((a - b).abs() <= 1e-9 * largest, "{a} became {b} in {graph:?}");
        }
    }
}

/// What [`ChannelPlan`] promises to those who run a graph.
fn assert_promises(graph: &Graph, plan: &ChannelPlan) {
    for (id, node) in graph.nodes.iter().enumerate() {
        for (i, &input) in node.inputs.iter().enumerate() {
            let moved = plan.gather(id, i).map_or_else(
                || plan.order(input).channels().to_vec(),
                |gather| gather.iter().map(|&p| plan.order(input).channels()[p as usize]).collect(),
            );
            assert_eq!(moved, plan.input_order(id, i).channels());
        }
        match &node.op {
            Op::Input { .. } => assert!(plan.order(id).is_natural()),
            Op::Conv2d { kind: ConvKind::Het(pattern), .. } => {
                assert!(is_contiguous(plan.input_order(id, 0), pattern.channel_classes()), "{}", node.name);
                assert!(is_contiguous(plan.order(id), pattern.filter_classes()), "{}", node.name);
            }
            Op::Conv2d { in_channels, out_channels, kind: ConvKind::Grouped(groups), .. } if *groups > 1 => {
                if groups == in_channels && groups == out_channels {
                    assert_eq!(plan.input_order(id, 0), plan.order(id));
                } else {
                    assert!(plan.input_order(id, 0).is_natural() && plan.order(id).is_natural());
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn running_by_the_plan_changes_no_result(seed: u64) {
        assert_same_result(&random_graph(seed), seed);
    }
}

#[test]
fn the_random_graphs_are_worth_running() {
    let (mut gathers, mut reordered, mut hets) = (0, 0, 0);
    for seed in 0..200 {
        let graph = random_graph(seed);
        let plan = ChannelPlan::new(&graph).unwrap();
        gathers += usize::from(plan.gathers() > 0);
        reordered += usize::from((0..graph.nodes.len()).any(|id| !plan.order(id).is_natural()));
        hets += graph.nodes.iter().filter(|n| matches!(&n.op, Op::Conv2d { kind: ConvKind::Het(_), .. })).count();
    }
    assert!(gathers > 50 && reordered > 100 && hets > 200, "{gathers} {reordered} {hets}");
}

#[test]
fn networks_of_the_zoo_need_no_gather() {
    for architecture in zoo::architectures() {
        for variant in ["p2", "p4", "p8", "p16", "p64", "p4_se", "dwc_pwc"] {
            let name: ModelName = format!("{}_{variant}", architecture.name).parse().unwrap();
            let graph = zoo::build(&name, architecture.classes).unwrap();
            let plan = ChannelPlan::new(&graph).unwrap();
            assert_promises(&graph, &plan);
            // A classifier on images of several pixels reads features in natural order, and HetConv's filters stand in
            // another one: one gather, before the flatten.
            let flatten = graph.find("flatten").unwrap();
            let flattened = graph.shapes().unwrap()[flatten].elements();
            let many_pixels = flattened > graph.shapes().unwrap()[graph.nodes[flatten].inputs[0]].channels();
            let expected = usize::from(many_pixels && variant.starts_with('p'));
            assert_eq!(plan.gathers(), expected, "{name}");
        }
    }
}

#[test]
fn small_networks_of_the_zoo_run_the_same() {
    for name in ["small-cifar_p4", "small-cifar_p8_se", "small-cifar_gwc4_pwc"] {
        let graph = zoo::build(&name.parse().unwrap(), 10).unwrap().with_input([3, 8, 8]).unwrap();
        assert_same_result(&graph, 3);
    }
}

/// input → conv a, conv b (other patterns) → add → conv of the first pattern.
fn residual(first: HetPattern, second: HetPattern) -> (Graph, ValueId) {
    let mut b = GraphBuilder::new("residual");
    let x = b.input("input", [4, 4, 4]);
    let x = b.conv("stem", x, 8, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    let a = b.conv("a", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Het(first.clone()), false);
    let a = b.batch_norm("a.bn", a);
    let c = b.conv("b", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Het(second), false);
    let sum = b.add("sum", &[a, c]);
    let x = b.conv("last", sum, 8, Conv2dGeometry::same(3, 1), ConvKind::Het(first), false);
    let x = b.conv("out", x, 2, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    (b.finish([x]).unwrap(), sum)
}

#[test]
fn powers_of_two_share_one_order() {
    let shifted = |parts| HetPattern::shifted(8, 8, parts).unwrap();
    let (graph, sum) = residual(shifted(2), shifted(8));
    let plan = ChannelPlan::new(&graph).unwrap();
    assert_eq!(plan.gathers(), 0);
    assert_eq!(*plan.order(sum), ChannelOrder::interleaved(8));
    assert_same_result(&graph, 1);
}

#[test]
fn only_a_real_conflict_gathers() {
    let shifted = |parts| HetPattern::shifted(8, 8, parts).unwrap();
    let (graph, sum) = residual(shifted(4), shifted(3));
    let plan = ChannelPlan::new(&graph).unwrap();
    // The stem's result and the sum each serve P = 4; the layer with P = 3 reads and is read through a gather.
    assert_eq!(plan.gathers(), 2);
    assert_eq!(*plan.order(sum), ChannelOrder::interleaved(8));
    assert!(plan.gather(graph.find("b").unwrap(), 0).is_some() && plan.gather(sum, 1).is_some());
    assert_same_result(&graph, 2);
}

#[test]
fn an_output_is_brought_into_natural_order() {
    let mut b = GraphBuilder::new("het output");
    let x = b.input("input", [4, 3, 3]);
    let pattern = ConvKind::Het(HetPattern::shifted(4, 8, 4).unwrap());
    let x = b.conv("het", x, 8, Conv2dGeometry::same(3, 1), pattern, false);
    let graph = b.finish([x]).unwrap();
    let plan = ChannelPlan::new(&graph).unwrap();
    assert!(plan.output_gather(0).is_some());
    assert_same_result(&graph, 4);
}

#[test]
fn depthwise_takes_the_order_of_its_neighbours() {
    let mut b = GraphBuilder::new("depthwise between HetConv layers");
    let x = b.input("input", [4, 4, 4]);
    let x = b.conv("stem", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    let het = ConvKind::Het(HetPattern::shifted(8, 8, 4).unwrap());
    let x = b.conv("first", x, 8, Conv2dGeometry::same(3, 1), het.clone(), false);
    let x = b.conv("depthwise", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Grouped(8), false);
    let x = b.conv("second", x, 8, Conv2dGeometry::same(3, 1), het, false);
    let x = b.conv("out", x, 2, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    let graph = b.finish([x]).unwrap();
    assert_eq!(ChannelPlan::new(&graph).unwrap().gathers(), 0);
    assert_same_result(&graph, 5);
}

#[test]
fn residual_networks_with_another_p_in_every_layer_need_no_gather() {
    let graph = zoo::build(&"resnet20".parse().unwrap(), 10).unwrap();
    let selection = Selection::default()
        .with_parts(|name| name.contains("conv1"), 2)
        .with_parts(|name| name.starts_with("stage2"), 16);
    let options = RewriteOptions { selection, ..RewriteOptions::new(Substitution::Het { parts: 4 }) };
    let (graph, _) = rewrite(&graph, &options).unwrap();
    assert_eq!(ChannelPlan::new(&graph).unwrap().gathers(), 0);
}

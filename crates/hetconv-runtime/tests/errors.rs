//! What cannot be compiled or run is refused with the node's name.
#![allow(missing_docs)]

use std::sync::Arc;

use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_graph::{Graph, GraphBuilder, GraphError, Op, Shape, ValueError, WeightError, Weights};
use hetconv_runtime::{CompileError, Options, Plan, RunError, Session};

fn network() -> (Graph, Weights) {
    let mut b = GraphBuilder::new("tiny");
    let x = b.input("image", [3, 6, 6]);
    let x = b.conv_bn_relu("conv", x, 4, Conv2dGeometry::same(3, 1));
    let pattern = HetPattern::shifted(4, 4, 2).unwrap();
    let x = b.conv("het", x, 4, Conv2dGeometry::same(3, 1), ConvKind::Het(pattern), false);
    let x = b.batch_norm("het.bn", x);
    let x = b.relu("het.relu", x);
    let x = b.batch_norm("alone", x);
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("classifier", x, 2, true);
    let graph = b.finish([x]).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    (graph, weights)
}

fn refused(graph: &Graph, weights: &Weights) -> CompileError {
    let error = Plan::compile(graph, weights, &Options::default()).unwrap_err();
    assert!(!error.to_string().is_empty());
    error
}

#[test]
fn weights_that_are_no_numbers() {
    let (graph, weights) = network();
    let no_numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().cycle();
    assert_eq!(weights.iter().count(), 17);
    for ((tensor, _), value) in weights.iter().zip(no_numbers) {
        let mut weights = weights.clone();
        weights.get_mut(tensor).unwrap().data[1] = value;
        let CompileError::Values(ValueError::NotFinite { name, .. }) = refused(&graph, &weights) else {
            panic!("{tensor} was accepted");
        };
        assert_eq!(name, tensor);
    }
}

#[test]
fn numbers_that_overflow_when_they_are_folded() {
    let (graph, mut weights) = network();
    weights.get_mut("conv.weight").unwrap().data[0] = 1e30;
    weights.get_mut("conv.bn.weight").unwrap().data[0] = 1e30;
    let tensor = "conv.weight".to_owned();
    assert_eq!(refused(&graph, &weights), CompileError::Overflow { node: "conv".to_owned(), tensor });
    let (graph, mut weights) = network();
    weights.get_mut("het.bn.bias").unwrap().data[1] = 3e38;
    weights.get_mut("het.bn.running_mean").unwrap().data[1] = -3e38;
    let tensor = "het.bias".to_owned();
    assert_eq!(refused(&graph, &weights), CompileError::Overflow { node: "het".to_owned(), tensor });
    let (graph, mut weights) = network();
    weights.get_mut("alone.weight").unwrap().data[3] = 3e38;
    weights.get_mut("alone.running_var").unwrap().data[3] = 1e-3;
    let tensor = "alone.weight".to_owned();
    assert_eq!(refused(&graph, &weights), CompileError::Overflow { node: "alone".to_owned(), tensor });
    let (graph, mut weights) = network();
    weights.get_mut("alone.running_var").unwrap().data[2] = -1.0;
    let error = refused(&graph, &weights);
    assert!(matches!(error, CompileError::Values(ValueError::Variance { node, channel: 2, .. }) if node == "alone"));
}

#[test]
fn graphs_and_weights_that_do_not_fit() {
    let (mut graph, weights) = network();
    let Op::Linear { in_features, .. } = &mut graph.nodes.last_mut().unwrap().op else { unreachable!() };
    *in_features = 5;
    let error = refused(&graph, &weights);
    assert!(matches!(error, CompileError::Graph(GraphError::Node { node, .. }) if node == "classifier"));

    let (graph, mut weights) = network();
    weights.remove("conv.weight");
    let error = refused(&graph, &weights);
    assert!(matches!(error, CompileError::Weights(WeightError::Missing { name }) if name == "conv.weight"));
}

#[test]
fn batches_that_no_layer_can_be_timed_on() {
    let (graph, weights) = network();
    for batch in [1 << 44, usize::MAX / 8] {
        let options = Options { tune: true, batch, ..Options::default() };
        let error = Plan::compile(&graph, &weights, &options).unwrap_err();
        assert_eq!(error, CompileError::TooLarge { node: "conv".to_owned(), batch });
    }
}

#[test]
fn batches_and_inputs_that_do_not_fit() {
    let (graph, weights) = network();
    let plan = Arc::new(Plan::compile(&graph, &weights, &Options::default()).unwrap());
    assert_eq!(Session::new(&plan, 0).unwrap_err(), RunError::EmptyBatch);
    for batch in [1 << 44, usize::MAX / 8] {
        assert_eq!(Session::new(&plan, batch).unwrap_err(), RunError::TooLarge(batch));
    }
    let mut session = Session::new(&plan, 2).unwrap();
    let length = RunError::Length { input: "image".to_owned(), expected: 216, found: 108 };
    assert_eq!(session.run(&[0.0; 108]).unwrap_err(), length);
    assert_eq!(session.run_all(&[]).unwrap_err(), RunError::Inputs { expected: 1, found: 0 });
    assert_eq!(session.run(&[0.0; 216]).unwrap().len(), 4);
    assert_eq!(plan.output_names().zip(plan.output_shapes()).collect::<Vec<_>>(), [("classifier", Shape::Features(2))]);
}

#[test]
fn windows_that_would_need_tables_beyond_measure() {
    let mut b = GraphBuilder::new("wide");
    let x = b.input("image", [1, 61, 61]);
    let geometry = Conv2dGeometry { kernel: [31; 2], stride: [1; 2], padding: [60, 60, 60, 60], dilation: [2; 2] };
    let x = b.conv("wide", x, 2182, geometry, ConvKind::Standard, false);
    let graph = b.finish([x]).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    let windows = CompileError::Windows { node: "wide".to_owned(), filters: 2182 };
    assert_eq!(refused(&graph, &weights), windows);
}

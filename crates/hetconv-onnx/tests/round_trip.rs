//! What is exported and imported again is the same network: same results, same MACs, same HetConv layers.

#[path = "../../hetconv-graph/tests/common/mod.rs"]
mod common;

use common::{distinct_weights, random_graph, random_image, run};
use hetconv_core::{Conv2dGeometry, HetPattern};
use hetconv_graph::{ConvKind, Graph, GraphBuilder, ModelFile, ModelName, Normalisation, Op, zoo};
use hetconv_onnx::proto::ModelProto;
use hetconv_onnx::{ExportOptions, ImportOptions, Imported, OnnxError, Style, export, import};
use proptest::prelude::*;
use prost::Message;

const STYLES: [Style; 3] = [Style::Standard, Style::Dense, Style::Function];

fn model(graph: Graph, seed: u64) -> ModelFile {
    let weights = distinct_weights(&graph, seed);
    let channels = graph.input_shape().unwrap()[0];
    let normalisation = Normalisation { mean: vec![0.4; channels], std: vec![0.2; channels] };
    ModelFile { graph, weights, classes: vec![], normalisation }
}

fn round_trip(model: &ModelFile, options: &ExportOptions) -> Imported {
    let bytes = export(model, options).unwrap().bytes;
    import(&bytes, None, &ImportOptions::default()).unwrap()
}

/// Compares results on a random image, in float64: what differs is the rounding of folded weights.
fn assert_same_result(model: &ModelFile, imported: &ModelFile, seed: u64) {
    let elements = model.graph.input_shape().unwrap().iter().product();
    let image = random_image(elements, seed);
    let before = run(&model.graph, &model.weights, &image, None);
    let after = run(&imported.graph, &imported.weights, &image, None);
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        let largest = before.iter().fold(1e-3, |largest: f64, x| largest.max(x.abs()));
        assert_eq!(before.len(), after.len());
        for (a, b) in before.iter().zip(after) {
            assert!((a - b).abs() <= 2e-5 * largest, "{a} became {b} beside {largest} in {:?}", model.graph);
        }
    }
}

fn het_layers(graph: &Graph) -> Vec<String> {
    let het = graph.nodes.iter().filter(|node| matches!(node.op, Op::Conv2d { kind: ConvKind::Het(_), .. }));
    het.map(|node| node.name.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_graph_survives(seed: u64) {
        let model = model(random_graph(seed), seed);
        for style in STYLES {
            for fold_batch_norm in [true, false] {
                let options = ExportOptions { style, fold_batch_norm, ..ExportOptions::default() };
                let imported = round_trip(&model, &options);
                assert_same_result(&model, &imported.model, seed);
            }
        }
    }
}

#[test]
fn networks_of_the_zoo_survive_with_their_layers() {
    for name in [
        "small-cifar",
        "small-cifar_p4",
        "small-cifar_p8_se",
        "small-cifar_gwc4_pwc",
        "small-cifar_dwc_pwc",
        "small-cifar_pc",
        "small-cifar_p1",
        "resnet20_p4",
    ] {
        let name: ModelName = name.parse().unwrap();
        let graph = zoo::build(&name, 10).unwrap().with_input([3, 8, 8]).unwrap();
        let model = model(graph, 1);
        for style in STYLES {
            let imported = round_trip(&model, &ExportOptions { style, ..ExportOptions::default() });
            assert_same_result(&model, &imported.model, 2);
            let (before, after) = (model.graph.cost().unwrap(), imported.model.graph.cost().unwrap());
            assert_eq!((before.macs, before.stages), (after.macs, after.stages), "{name} {style:?}");
            assert_eq!(imported.het_layers, het_layers(&model.graph), "{name} {style:?}");
            assert_eq!(imported.model.normalisation, model.normalisation);
            let parts = |cost: &hetconv_graph::Cost| -> Vec<Option<usize>> {
                cost.layers.iter().filter(|layer| layer.op == "conv2d").map(|layer| layer.parts).collect()
            };
            assert_eq!(parts(&before), parts(&after), "{name} {style:?}");
        }
    }
}

#[test]
fn batch_norms_may_stay() {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap().with_input([3, 8, 8]).unwrap();
    let model = model(graph, 3);
    let options = ExportOptions { fold_batch_norm: false, ..ExportOptions::default() };
    let imported = round_trip(&model, &options).model;
    let names = |graph: &Graph| graph.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&imported.graph), names(&model.graph));
    assert_eq!(imported.graph.cost().unwrap().params, model.graph.cost().unwrap().params);
    assert_same_result(&model, &imported, 3);
}

#[test]
fn every_operator_set() {
    let in_set = |opset| ExportOptions { opset: Some(opset), ..ExportOptions::default() };
    let model = model(random_graph(5), 5);
    for opset in 19..=22 {
        assert_same_result(&model, &round_trip(&model, &in_set(opset)).model, 1);
    }
    let graph = zoo::build(&"small-cifar_p4_se".parse().unwrap(), 10).unwrap().with_input([3, 8, 8]).unwrap();
    let model = self::model(graph, 1);
    for opset in 11..=22 {
        assert_same_result(&model, &round_trip(&model, &in_set(opset)).model, 1);
    }
    for opset in [10, 23] {
        assert!(export(&model, &in_set(opset)).is_err());
    }
}

#[test]
fn the_operator_set_suffices_unless_another_is_asked_for() {
    for (dilation, suffices) in [(1, 17), (2, 19)] {
        let mut b = GraphBuilder::new("mean");
        let x = b.input("input", [2, 6, 5]);
        let geometry = Conv2dGeometry::square(2, 1, 0, dilation);
        let x = b.push("mean", Op::AvgPool { geometry, count_padding: false }, [x]);
        let model = model(b.finish([x]).unwrap(), 1);
        for style in [Style::Standard, Style::Function] {
            let options = ExportOptions { style, ..ExportOptions::default() };
            let written = ModelProto::decode(export(&model, &options).unwrap().bytes.as_slice()).unwrap();
            assert_eq!(written.opset_import[0].version, Some(suffices));
            assert_same_result(&model, &round_trip(&model, &options).model, 2);
        }
        match export(&model, &ExportOptions { opset: Some(18), ..ExportOptions::default() }) {
            Ok(_) => assert_eq!(suffices, 17),
            Err(error) => {
                assert_eq!(suffices, 19);
                assert!(matches!(error, OnnxError::NeedsOpset { needs: 19, opset: 18, .. }), "{error}");
            }
        }
    }
}

/// One HetConv layer of any geometry, on images of 9×8 pixels.
fn het_layer(pattern: HetPattern, geometry: Conv2dGeometry) -> Graph {
    let mut b = GraphBuilder::new("one layer");
    let x = b.input("input", [pattern.in_channels(), 9, 8]);
    let n = pattern.out_channels();
    let x = b.conv("het", x, n, geometry, ConvKind::Het(pattern), true);
    b.finish([x]).unwrap()
}

#[test]
fn every_geometry_and_every_kind_of_class() {
    let assigned =
        |channels: &[u32], filters: &[u32]| HetPattern::assigned(channels.to_vec(), filters.to_vec()).unwrap();
    let patterns = [
        HetPattern::shifted(8, 8, 4).unwrap(),
        HetPattern::shifted(6, 4, 2).unwrap(),
        HetPattern::shifted(7, 9, 3).unwrap(),
        HetPattern::shifted(10, 6, 4).unwrap(),
        HetPattern::shifted(5, 5, 5).unwrap(),
        HetPattern::shifted(6, 3, 6).unwrap(),
        HetPattern::shifted(4, 8, 1).unwrap(),
        HetPattern::blocked(8, 4, 2).unwrap(),
        assigned(&[0, 0, 1, 2], &[0, 1, 1, 3]),
        assigned(&[2, 0, 1, 1, 0, 2], &[1, 1, 0, 0, 2, 2]),
        assigned(&[0, 0], &[1, 1]),
    ];
    let geometries = [
        Conv2dGeometry::same(3, 1),
        Conv2dGeometry::same(3, 2),
        Conv2dGeometry::square(3, 1, 0, 1),
        Conv2dGeometry::square(3, 2, 0, 1),
        Conv2dGeometry::square(3, 1, 0, 2),
        Conv2dGeometry::square(3, 1, 2, 2),
        Conv2dGeometry::square(5, 1, 3, 1),
        Conv2dGeometry::square(1, 1, 0, 1),
        Conv2dGeometry { kernel: [3, 5], stride: [2, 1], padding: [2, 0, 0, 3], dilation: [1, 1] },
    ];
    for pattern in &patterns {
        for geometry in &geometries {
            let model = model(het_layer(pattern.clone(), geometry.clone()), 7);
            for style in STYLES {
                let imported = round_trip(&model, &ExportOptions { style, ..ExportOptions::default() });
                assert_same_result(&model, &imported.model, 8);
                let macs = |graph: &Graph| graph.cost().unwrap().macs;
                let (before, after) = (macs(&model.graph), macs(&imported.model.graph));
                assert_eq!(before, after, "{style:?} {pattern:?} {geometry:?}");
            }
        }
    }
}

#[test]
fn layers_that_become_dense_all_the_same_are_named() {
    let assigned = |channels: Vec<u32>, filters: Vec<u32>| HetPattern::assigned(channels, filters).unwrap();
    // Classes of 1, 2, 3, … channels and a filter each.
    let uneven = |classes: u32| {
        assigned((0..classes).flat_map(|class| vec![class; class as usize + 1]).collect(), (0..classes).collect())
    };
    let patterns = [
        (HetPattern::shifted(8, 8, 4).unwrap(), false),
        (uneven(8), false),
        (uneven(9), true),
        // Some filters without channels of their class, and none with any.
        (assigned(vec![0, 0, 1, 2], vec![0, 1, 1, 3]), false),
        (assigned(vec![0, 0], vec![1, 1]), true),
    ];
    for (pattern, is_dense) in patterns {
        let (m, n) = (pattern.in_channels() as i64, pattern.out_channels() as i64);
        let model = model(het_layer(pattern, Conv2dGeometry::same(3, 1)), 1);
        for style in STYLES {
            let exported = export(&model, &ExportOptions { style, ..ExportOptions::default() }).unwrap();
            let graph = ModelProto::decode(exported.bytes.as_slice()).unwrap().graph.unwrap();
            let has_dense = graph.initializer.iter().any(|weight| weight.dims == [n, m, 3, 3]);
            assert_eq!(has_dense, is_dense || style == Style::Dense, "{style:?} {:?}", model.graph);
            // What was asked for is no news.
            let named = if is_dense && style != Style::Dense { &["het"][..] } else { &[] };
            assert_eq!(exported.dense_layers, named, "{style:?} {:?}", model.graph);
        }
    }
    // One class is a standard layer from the beginning.
    let model = model(het_layer(HetPattern::shifted(4, 8, 1).unwrap(), Conv2dGeometry::same(3, 1)), 1);
    assert!(export(&model, &ExportOptions::default()).unwrap().dense_layers.is_empty());
}

#[test]
fn outputs_of_every_kind() {
    // An input as an output, a value twice, and a HetConv layer in between that stores its channels otherwise.
    let mut b = GraphBuilder::new("outputs");
    let x = b.input("input", [8, 4, 4]);
    let pattern = ConvKind::Het(HetPattern::shifted(8, 8, 4).unwrap());
    let y = b.conv("het", x, 8, Conv2dGeometry::same(3, 1), pattern, false);
    let z = b.relu("relu", y);
    let model = model(b.finish([x, z, z, y]).unwrap(), 1);
    for style in STYLES {
        let options = ExportOptions { style, ..ExportOptions::default() };
        assert_same_result(&model, &round_trip(&model, &options).model, 2);
    }
}

#[test]
fn functions_need_a_format_that_has_them() {
    let model = model(random_graph(1), 1);
    let options = ExportOptions { style: Style::Function, opset: Some(14), ..ExportOptions::default() };
    assert!(matches!(export(&model, &options), Err(OnnxError::Opset { found: 14, first: 15, .. })));
}

#[test]
fn class_names_come_back() {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 2).unwrap();
    let model = ModelFile { classes: vec!["cat".to_owned(), "dog".to_owned()], ..model(graph, 1) };
    let imported = round_trip(&model, &ExportOptions::default()).model;
    assert_eq!((imported.classes, imported.graph.name), (model.classes, model.graph.name));
    // What names mean where the result is an image is not known here.
    let graph = het_layer(HetPattern::shifted(8, 8, 4).unwrap(), Conv2dGeometry::same(3, 1));
    let model = ModelFile { classes: vec!["cat".to_owned()], ..self::model(graph, 1) };
    assert_eq!(round_trip(&model, &ExportOptions::default()).model.classes, model.classes);
}

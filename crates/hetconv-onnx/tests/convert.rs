//! HetConv in place of the convolutions of a file, and everything else as it was.

#[path = "../../hetconv-graph/tests/common/mod.rs"]
mod common;

use std::collections::HashSet;
use std::sync::Arc;

use common::{distinct_weights, random_image, run};
use hetconv_core::{Conv2dGeometry, HetPattern};
use hetconv_graph::{Activation, ArrangementKind, ConvKind, GraphBuilder, ModelFile, Normalisation, Op, zoo};
use hetconv_onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};
use hetconv_onnx::{
    ConvertError, ConvertOptions, ConvertedLayer, ExportOptions, HetLayer, ImportOptions, Init, KeptReason, OnnxError,
    Selection, convert, embed_external_data, export, import,
};
use prost::Message;

/// Convolutions of every kind between other nodes.
fn file() -> Vec<u8> {
    let mut b = GraphBuilder::new("foreign");
    let standard = ConvKind::Standard;
    let x = b.input("input", [4, 17, 16]);
    let x = b.conv("stem", x, 8, Conv2dGeometry::same(3, 1), standard.clone(), true);
    let x = b.relu("relu", x);
    let y = b.conv("wide", x, 12, Conv2dGeometry::same(3, 2), standard.clone(), true);
    let y = b.conv("point", y, 8, Conv2dGeometry::same(1, 1), standard.clone(), false);
    let y = b.conv("grouped", y, 8, Conv2dGeometry::same(3, 1), ConvKind::Grouped(2), false);
    let y = b.conv("even", y, 8, Conv2dGeometry::square(2, 1, 1, 1), standard.clone(), false);
    let flat = Conv2dGeometry { kernel: [1, 3], stride: [1, 1], padding: [0, 1, 0, 1], dilation: [1, 1] };
    let y = b.conv("flat", y, 8, flat, standard.clone(), false);
    let y = b.conv("dilated", y, 6, Conv2dGeometry::square(3, 1, 1, 2), standard.clone(), false);
    let y = b.activation("swish", y, Activation::HardSwish);
    let y = b.conv("cropped", y, 7, Conv2dGeometry::square(3, 1, 0, 1), standard, false);
    let y = b.global_avg_pool("pool", y);
    let y = b.flatten("flatten", y);
    let y = b.linear("classifier", y, 3, true);
    let graph = b.finish([y]).unwrap();
    let weights = distinct_weights(&graph, 1);
    let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(4) };
    export(&model, &ExportOptions::default()).unwrap().bytes
}

fn decode(bytes: &[u8]) -> ModelProto {
    ModelProto::decode(bytes).unwrap()
}

fn graph(model: &ModelProto) -> &GraphProto {
    model.graph.as_ref().unwrap()
}

fn results(bytes: &[u8]) -> Vec<f64> {
    let model = import(bytes, None, &ImportOptions::default()).unwrap().model;
    let elements = model.graph.input_shape().unwrap().iter().product();
    run(&model.graph, &model.weights, &random_image(elements, 1), None).remove(0)
}

fn layer<'a>(layers: &'a [ConvertedLayer], name: &str) -> &'a ConvertedLayer {
    layers.iter().find(|layer| layer.name == name).unwrap()
}

#[test]
fn each_convolution_is_converted_or_says_why_not() {
    let converted = convert(&file(), None, &ConvertOptions::new(4)).unwrap();
    let report = converted.report;
    let kept: Vec<(&str, Option<KeptReason>)> =
        report.layers.iter().map(|layer| (layer.name.as_str(), layer.kept.clone())).collect();
    assert_eq!(
        kept,
        [
            ("stem", Some(KeptReason::First)),
            ("wide", None),
            ("point", Some(KeptReason::Pointwise)),
            ("grouped", Some(KeptReason::Grouped(2))),
            ("even", Some(KeptReason::Kernel)),
            ("flat", Some(KeptReason::Kernel)),
            ("dilated", None),
            ("cropped", Some(KeptReason::Parts { asked: 4 })),
        ]
    );
    // 8 and 12 channels go by 4, 8 and 6 by 2.
    assert_eq!((layer(&report.layers, "wide").parts, layer(&report.layers, "dilated").parts), (Some(4), Some(2)));
    let wide = layer(&report.layers, "wide");
    assert_eq!((wide.in_channels, wide.out_channels, wide.kernel.as_slice()), (8, 12, &[3, 3][..]));
    assert_eq!((wide.before.params, wide.after.params), (12 * 8 * 9 + 12, 12 * (8 + 2 * 8) + 12));
    assert_eq!((wide.before.macs, wide.after.macs), (Some(72 * 12 * 8 * 9), Some(72 * 12 * (8 + 2 * 8))));
    let imported = import(&converted.bytes, None, &ImportOptions::default()).unwrap();
    assert_eq!(imported.het_layers, ["wide", "dilated"]);
    let cost = imported.model.graph.cost().unwrap();
    let convs = cost.layers.iter().filter(|layer| layer.op == "conv2d");
    let (params, macs) = convs.fold((0, 0), |sum, layer| (sum.0 + layer.params, sum.1 + layer.macs));
    assert_eq!((report.after.params, report.after.macs), (params, Some(macs)));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["layers"][0]["kept"], "first");
}

#[test]
fn everything_else_keeps_its_bytes() {
    // A field of the format's future is not lost either.
    let mut bytes = file();
    let unknown = [0x9a, 0x3f, 3, 1, 2, 3];
    bytes.extend(unknown);
    let converted = convert(&bytes, None, &ConvertOptions::new(4)).unwrap().bytes;
    assert!(converted.windows(unknown.len()).any(|window| window == unknown));
    let (before, after) = (decode(&bytes), decode(&converted));
    let gone = ["wide", "dilated"];
    for node in graph(&before).node.iter().filter(|node| !gone.contains(&node.name())) {
        assert!(graph(&after).node.contains(node), "{}", node.name());
    }
    for tensor in &graph(&before).initializer {
        let dropped = gone.iter().any(|name| tensor.name() == format!("{name}.weight"));
        assert_eq!(graph(&after).initializer.contains(tensor), !dropped, "{}", tensor.name());
    }
    let rest = |model: &ModelProto| ModelProto { graph: None, ..model.clone() };
    assert_eq!(rest(&before), rest(&after));
    assert_eq!((&graph(&before).input, &graph(&before).output), (&graph(&after).input, &graph(&after).output));
    // What is new stands where the convolution stood.
    let order = |model: &ModelProto| graph(model).node.iter().map(|node| node.name().to_owned()).collect::<Vec<_>>();
    let new = |name: &str| gone.iter().any(|gone| name.strip_prefix(gone).is_some_and(|rest| rest.starts_with('.')));
    let kept: Vec<String> = order(&after).into_iter().filter(|name| !new(name)).collect();
    assert_eq!(kept, order(&before));
    assert_eq!(order(&after)[2..5], ["wide.ring", "wide.center", "wide"]);
}

#[test]
fn projection_keeps_the_taps_that_hetconv_has() {
    for arrangement in [ArrangementKind::Blocked, ArrangementKind::Shifted] {
        for parts in [2, 3, 4, 8] {
            let options = ConvertOptions { arrangement, selection: Selection::all(), ..ConvertOptions::new(parts) };
            let converted = convert(&file(), None, &options).unwrap();
            let imported = import(&converted.bytes, None, &ImportOptions::default()).unwrap();
            // The same by hand, in the file's own graph.
            let mut by_hand = import(&file(), None, &ImportOptions::default()).unwrap().model;
            for layer in converted.report.layers.iter().filter(|layer| layer.parts.is_some()) {
                let (m, n, parts) = (layer.in_channels, layer.out_channels, layer.parts.unwrap());
                let pattern = match arrangement {
                    ArrangementKind::Blocked => HetPattern::blocked(m, n, parts).unwrap(),
                    ArrangementKind::Shifted => HetPattern::shifted(m, n, parts).unwrap(),
                };
                let weight = by_hand.weights.get_mut(&format!("{}.weight", layer.name)).unwrap();
                for (at, tap) in weight.data.iter_mut().enumerate() {
                    let (filter, channel) = (at / 9 / m, at / 9 % m);
                    if at % 9 != 4 && !pattern.is_spatial(filter, channel) {
                        *tap = 0.0;
                    }
                }
            }
            let image = random_image(4 * 17 * 16, 3);
            let expected = run(&by_hand.graph, &by_hand.weights, &image, None).remove(0);
            let found = run(&imported.model.graph, &imported.model.weights, &image, None).remove(0);
            for (a, b) in expected.iter().zip(&found) {
                assert!((a - b).abs() < 1e-6 * a.abs().max(1e-3), "{arrangement:?} P = {parts}: {a} became {b}");
            }
            let converted_layers = converted.report.layers.iter().filter(|layer| layer.parts.is_some()).count();
            assert_eq!(imported.het_layers.len(), converted_layers);
            let macs: u64 = imported.model.graph.cost().unwrap().layers.iter().map(|layer| layer.macs).sum();
            assert_eq!(Some(macs - 21), converted.report.after.macs);
        }
    }
}

#[test]
fn fresh_weights_come_from_the_seed() {
    let random = |seed| {
        convert(&file(), None, &ConvertOptions { init: Init::Random { seed }, ..ConvertOptions::new(4) }).unwrap().bytes
    };
    assert_eq!(random(1), random(1));
    assert_ne!(results(&random(1)), results(&random(2)));
}

#[test]
fn names_decide() {
    let options = ConvertOptions {
        selection: Selection::all()
            .excluding(|name| name == "wide")
            .with_parts(|name| name == "cropped", 1)
            .with_parts(|name| name == "dilated", 6),
        arrangement: ArrangementKind::Shifted,
        ..ConvertOptions::new(2)
    };
    let report = convert(&file(), None, &options).unwrap().report;
    let fates: Vec<(&str, Option<usize>)> = report
        .layers
        .iter()
        .map(|layer| (layer.name.as_str(), layer.parts))
        .filter(|(_, parts)| parts.is_some())
        .collect();
    assert_eq!(fates, [("stem", Some(2)), ("dilated", Some(6))]);
    assert_eq!(layer(&report.layers, "wide").kept, Some(KeptReason::Excluded));
    assert_eq!(layer(&report.layers, "cropped").kept, Some(KeptReason::Parts { asked: 1 }));
}

#[test]
fn nothing_converted_is_an_error_with_the_reasons() {
    let graph = zoo::build(&"mobilenet-cifar".parse().unwrap(), 10).unwrap();
    let weights = distinct_weights(&graph, 1);
    let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
    let bytes = export(&model, &ExportOptions::default()).unwrap().bytes;
    let error = convert(&bytes, None, &ConvertOptions::new(4)).unwrap_err();
    let OnnxError::Convert(ConvertError::NothingConverted { kept }) = &error else { panic!("{error}") };
    assert_eq!(kept.len(), 27);
    let message = error.to_string();
    assert!(kept.iter().all(|(name, reason)| message.contains(&format!("`{name}`")) && message.contains(reason)));
    assert!(matches!(convert(&bytes, None, &ConvertOptions::new(0)), Err(OnnxError::Convert(ConvertError::NoParts))));
}

/// The file's model with something changed.
fn changed(change: impl FnOnce(&mut ModelProto)) -> Vec<u8> {
    let mut model = decode(&file());
    change(&mut model);
    model.encode_to_vec()
}

#[test]
fn a_network_that_cannot_be_executed_is_converted_all_the_same() {
    let bytes = changed(|model| {
        let graph = model.graph.as_mut().unwrap();
        let swish = graph.node.iter_mut().find(|node| node.name() == "swish").unwrap();
        swish.op_type = Some("Erf".to_owned());
    });
    assert!(import(&bytes, None, &ImportOptions::default()).is_err());
    let converted = convert(&bytes, None, &ConvertOptions::new(4)).unwrap();
    assert_eq!(converted.report.layers.iter().filter(|layer| layer.parts.is_some()).count(), 2);
    // Image sizes are not known, and neither are MACs.
    assert_eq!(converted.report.after.macs, None);
    assert!(converted.report.after.params < converted.report.before.params);
}

#[test]
fn nodes_of_one_name_are_told_apart() {
    let convs = |model: &mut ModelProto| {
        let nodes = model.graph.as_mut().unwrap().node.iter_mut();
        nodes.filter(|node| node.op_type() == "Conv").for_each(|node| node.name = Some("conv".to_owned()));
    };
    let [known, same] = [file(), changed(convs)].map(|bytes| convert(&bytes, None, &ConvertOptions::new(4)).unwrap());
    let names: HashSet<&str> = same.report.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names.len(), known.report.layers.len(), "{names:?}");
    for (layer, known) in same.report.layers.iter().zip(&known.report.layers) {
        assert_eq!((layer.before, layer.after, &layer.kept), (known.before, known.after, &known.kept));
        assert!(layer.before.macs.is_some(), "{}", layer.name);
    }
    assert_eq!(results(&same.bytes), results(&known.bytes));
    // A number that another node has is not given away.
    let numbered = |model: &mut ModelProto| {
        let nodes = model.graph.as_mut().unwrap().node.iter_mut();
        let names = ["conv", "conv", "conv_1"].into_iter().map(|name| Some(name.to_owned()));
        nodes.filter(|node| node.op_type() == "Conv").zip(names).for_each(|(node, name)| node.name = name);
    };
    let layers = convert(&changed(numbered), None, &ConvertOptions::new(4)).unwrap().report.layers;
    assert_eq!(layers[..3].iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["conv", "conv_2", "conv_1"]);
}

/// Inputs and other values may be called like a node.
#[test]
fn a_convolution_keeps_its_name_whatever_else_has_it() {
    let bytes = changed(|model| {
        let graph = model.graph.as_mut().unwrap();
        let named = |name: &str| graph.node.iter().position(|node| node.name() == name).unwrap();
        let [wide, dilated, flat] = ["wide", "dilated", "flat"].map(named);
        graph.node[wide].name = Some("input".to_owned());
        // An image is taken apart and put together again before the convolution that one of its parts is named like.
        graph.node[dilated].name = Some("part".to_owned());
        let (input, output) = (graph.node[flat].output.clone(), vec!["part".to_owned(), "rest".to_owned()]);
        let axis = AttributeProto { name: Some("axis".to_owned()), i: Some(1), ..Default::default() };
        let node = |op: &str, input, output| NodeProto {
            input,
            output,
            op_type: Some(op.to_owned()),
            attribute: vec![axis.clone()],
            ..Default::default()
        };
        graph.node[dilated].input[0] = "whole".to_owned();
        let parts = [node("Split", input, output.clone()), node("Concat", output, vec!["whole".to_owned()])];
        graph.node.splice(dilated..dilated, parts);
    });
    let layers = convert(&bytes, None, &ConvertOptions::new(4)).unwrap().report.layers;
    for as_written in [false, true] {
        let options = ImportOptions { as_written, ..ImportOptions::default() };
        let graph = import(&bytes, None, &options).unwrap().model.graph;
        assert!(graph.inputs().all(|(input, _)| graph.nodes[input].name == "input_1"));
        for layer in &layers {
            let op = &graph.nodes[graph.find(&layer.name).unwrap()].op;
            let Op::Conv2d { in_channels, out_channels, .. } = op else { panic!("{}: {op:?}", layer.name) };
            assert_eq!((*in_channels, *out_channels), (layer.in_channels, layer.out_channels), "{}", layer.name);
        }
    }
    let [known, same] = [file(), bytes].map(|bytes| convert(&bytes, None, &ConvertOptions::new(4)).unwrap());
    assert_eq!(known.report.after, same.report.after);
    assert_eq!(results(&known.bytes), results(&same.bytes));
}

#[test]
fn old_operators_are_written_as_they_were() {
    let options = ConvertOptions { arrangement: ArrangementKind::Shifted, ..ConvertOptions::new(3) };
    for (version, inputs) in [(9, 1), (10, 5)] {
        let bytes = changed(|model| model.opset_import[0].version = Some(version));
        let converted = decode(&convert(&bytes, None, &options).unwrap().bytes);
        let slices: Vec<&NodeProto> = graph(&converted).node.iter().filter(|node| node.op_type() == "Slice").collect();
        assert!(!slices.is_empty() && slices.iter().all(|slice| slice.input.len() == inputs), "{slices:?}");
        for slice in slices.into_iter().filter(|slice| slice.input.len() == 1) {
            let names: Vec<&str> = slice.attribute.iter().map(AttributeProto::name).collect();
            assert_eq!(names, ["starts", "ends", "axes"]);
            assert!(slice.attribute.iter().all(|attribute| !attribute.ints.is_empty()), "{slice:?}");
        }
    }
    // A window whose centre begins a pixel inside the image and ends a pixel outside.
    let expected = [0, 0, -1, 0, 0, 0, 1, 0];
    for (version, inputs) in [(9, 1), (10, 1), (11, 2)] {
        let bytes = changed(|model| {
            model.opset_import[0].version = Some(version);
            let nodes = model.graph.as_mut().unwrap().node.iter_mut();
            let attributes = nodes.filter(|node| node.name() == "wide").flat_map(|node| &mut node.attribute);
            attributes.filter(|attribute| attribute.name() == "pads").for_each(|pads| pads.ints = vec![0, 1, 2, 1]);
        });
        let converted = decode(&convert(&bytes, None, &options).unwrap().bytes);
        let pad = graph(&converted).node.iter().find(|node| node.op_type() == "Pad").unwrap();
        assert_eq!(pad.input.len(), inputs, "{version}");
        let pads: Vec<i64> = match pad.input.get(1) {
            None => {
                pad.attribute.iter().filter(|pads| pads.name() == "pads").flat_map(|pads| pads.ints.clone()).collect()
            }
            Some(name) => {
                let tensor = graph(&converted).initializer.iter().find(|tensor| tensor.name() == name).unwrap();
                let (pads, _) = tensor.raw_data.as_ref().unwrap().as_chunks();
                pads.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
            }
        };
        assert_eq!(pads, expected, "{version}");
    }
}

#[test]
fn convolutions_in_functions_and_branches_are_named() {
    let bytes = changed(|model| {
        let graph = model.graph.as_mut().unwrap();
        let (in_function, in_branch): (Vec<NodeProto>, Vec<NodeProto>) =
            graph.node.drain(..).filter(|node| node.op_type() == "Conv").partition(|node| node.name() == "wide");
        model.functions.push(FunctionProto { node: in_function, ..Default::default() });
        let branch = GraphProto { node: in_branch, ..Default::default() };
        let attribute = vec![AttributeProto { g: Some(branch), ..Default::default() }];
        graph.node.push(NodeProto { op_type: Some("If".to_owned()), attribute, ..Default::default() });
    });
    let error = convert(&bytes, None, &ConvertOptions::new(4)).unwrap_err().to_string();
    let kept = error.lines().find(|line| line.contains("in a function or a subgraph")).unwrap();
    assert!(["`wide`", "`stem`", "`cropped`"].iter().all(|name| kept.contains(name)), "{error}");

    // Beside those that are converted they stand in the report.
    let bytes = changed(|model| {
        let graph = model.graph.as_ref().unwrap();
        let node = graph.node.iter().find(|node| node.name() == "wide").unwrap().clone();
        model.functions.push(FunctionProto { node: vec![node], ..Default::default() });
    });
    let report = convert(&bytes, None, &ConvertOptions::new(4)).unwrap().report;
    let last = report.layers.last().unwrap();
    assert_eq!((last.name.as_str(), &last.kept, last.before.params), ("wide", &Some(KeptReason::OutOfReach), 0));
}

#[test]
fn weights_that_others_read_stay() {
    // Another node, the graph itself, a branch of an If: whoever it is.
    let readers: [fn(&mut GraphProto); 3] = [
        |graph| {
            let input = vec!["wide.weight".to_owned()];
            let output = vec!["other".to_owned()];
            graph.node.push(NodeProto { input, output, op_type: Some("Relu".to_owned()), ..Default::default() });
        },
        |graph| graph.output.push(ValueInfoProto { name: Some("wide.weight".to_owned()), ..Default::default() }),
        |graph| {
            let reader = NodeProto { input: vec!["wide.weight".to_owned()], ..Default::default() };
            let branch = GraphProto { node: vec![reader], ..Default::default() };
            let attribute = hetconv_onnx::proto::AttributeProto { g: Some(branch), ..Default::default() };
            graph.node.push(NodeProto { attribute: vec![attribute], ..Default::default() });
        },
    ];
    for reader in readers {
        let bytes = changed(|model| reader(model.graph.as_mut().unwrap()));
        let converted = decode(&convert(&bytes, None, &ConvertOptions::new(4)).unwrap().bytes);
        let names: Vec<&str> = graph(&converted).initializer.iter().map(TensorProto::name).collect();
        assert!(names.contains(&"wide.weight") && !names.contains(&"dilated.weight"), "{names:?}");
    }
}

#[test]
fn weights_of_constant_nodes_and_old_files() {
    let bytes = changed(|model| {
        // In version 3 of the format every initializer is an input.
        model.ir_version = Some(3);
        let graph = model.graph.as_mut().unwrap();
        for tensor in &graph.initializer {
            graph.input.push(ValueInfoProto { name: tensor.name.clone(), ..Default::default() });
        }
        let at = graph.initializer.iter().position(|tensor| tensor.name() == "dilated.weight").unwrap();
        let tensor = graph.initializer.remove(at);
        graph.input.retain(|input| input.name() != "dilated.weight");
        let value = hetconv_onnx::proto::AttributeProto {
            name: Some("value".to_owned()),
            t: Some(tensor),
            ..Default::default()
        };
        let output = vec!["dilated.weight".to_owned()];
        let op_type = Some("Constant".to_owned());
        graph.node.insert(0, NodeProto { output, op_type, attribute: vec![value], ..Default::default() });
    });
    assert_eq!(results(&bytes), results(&file()));
    let converted = convert(&bytes, None, &ConvertOptions::new(4)).unwrap();
    assert_eq!(results(&converted.bytes), results(&convert(&file(), None, &ConvertOptions::new(4)).unwrap().bytes));
    let converted = decode(&converted.bytes);
    let graph = graph(&converted);
    assert!(graph.node.iter().all(|node| node.op_type() != "Constant"));
    for tensor in &graph.initializer {
        assert!(graph.input.iter().any(|input| input.name() == tensor.name()), "{}", tensor.name());
    }
    assert!(graph.input.iter().all(|input| input.name() != "wide.weight"));
}

#[test]
fn automatic_padding() {
    let with = |auto_pad: &str| {
        changed(|model| {
            let graph = model.graph.as_mut().unwrap();
            for node in graph.node.iter_mut().filter(|node| ["wide", "dilated"].contains(&node.name())) {
                node.attribute.retain(|attribute| attribute.name() != "pads");
                node.attribute.push(hetconv_onnx::proto::AttributeProto {
                    name: Some("auto_pad".to_owned()),
                    s: Some(auto_pad.as_bytes().to_vec()),
                    r#type: Some(3),
                    ..Default::default()
                });
            }
        })
    };
    for auto_pad in ["VALID", "SAME_UPPER", "SAME_LOWER"] {
        let bytes = with(auto_pad);
        let converted = convert(&bytes, None, &ConvertOptions::new(2)).unwrap();
        // At stride 2 the padding depends on the image.
        let wide = layer(&converted.report.layers, "wide").kept.clone();
        assert_eq!(wide, (auto_pad != "VALID").then_some(KeptReason::AutoPad));
        let shape = |bytes: &[u8], name: &str| {
            let graph = import(bytes, None, &ImportOptions::default()).unwrap().model.graph;
            graph.shapes().unwrap()[graph.find(name).unwrap()]
        };
        for name in ["wide", "dilated"] {
            assert_eq!(shape(&bytes, name), shape(&converted.bytes, name), "{auto_pad}");
        }
    }
}

#[test]
fn windows_that_make_no_sense_are_kept() {
    let attributes: [(&str, &[i64]); 4] =
        [("pads", &[-1, 1, 1, 1, 1]), ("strides", &[-2, 1, 1]), ("dilations", &[1]), ("kernel_shape", &[5, 5])];
    for (name, value) in attributes {
        let bytes = changed(|model| {
            let graph = model.graph.as_mut().unwrap();
            let wide = graph.node.iter_mut().find(|node| node.name() == "wide").unwrap();
            wide.attribute.retain(|attribute| attribute.name() != name);
            wide.attribute.push(hetconv_onnx::proto::AttributeProto {
                name: Some(name.to_owned()),
                ints: value.to_vec(),
                r#type: Some(7),
                ..Default::default()
            });
        });
        let converted = convert(&bytes, None, &ConvertOptions::new(2)).unwrap();
        assert_eq!(layer(&converted.report.layers, "wide").kept, Some(KeptReason::Malformed), "{name} {value:?}");
    }
}

#[test]
fn external_data_is_brought_in() {
    let folder = tempfile::tempdir().unwrap();
    let plain = file();
    let mut data = vec![7; 3];
    let mut move_out = |tensor: &mut TensorProto| {
        let raw = tensor.raw_data.take().unwrap();
        let entries =
            [("location", "data".to_owned()), ("offset", data.len().to_string()), ("length", raw.len().to_string())];
        let entry =
            |(key, value): (&str, String)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
        tensor.external_data = entries.map(entry).to_vec();
        tensor.data_location = Some(1);
        data.extend(raw);
    };
    let mut model = decode(&plain);
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.iter_mut().for_each(&mut move_out);
    // A constant node, and one in a function.
    let bias = graph.initializer.iter().position(|tensor| tensor.name() == "stem.bias").unwrap();
    let constant = |tensor: TensorProto| NodeProto {
        op_type: Some("Constant".to_owned()),
        output: vec![tensor.name().to_owned()],
        attribute: vec![AttributeProto {
            name: Some("value".to_owned()),
            r#type: Some(4),
            t: Some(tensor),
            ..Default::default()
        }],
        ..NodeProto::default()
    };
    let node = constant(graph.initializer.remove(bias));
    graph.node.insert(0, node.clone());
    model.functions.push(FunctionProto { name: Some("f".to_owned()), node: vec![node], ..Default::default() });
    std::fs::write(folder.path().join("data"), data).unwrap();

    let bytes = model.encode_to_vec();
    let embedded = embed_external_data(&bytes, folder.path()).unwrap();
    assert_eq!(results(&embedded), results(&plain));
    let text = String::from_utf8_lossy(&embedded);
    assert!(!text.contains("location") && embedded.len() > plain.len());
    assert_eq!(embed_external_data(&embedded, folder.path()).unwrap(), embedded);
    // Converted first, what is not needed any more is not brought in.
    let converted = convert(&bytes, Some(folder.path()), &ConvertOptions::new(4)).unwrap().bytes;
    let converted = embed_external_data(&converted, folder.path()).unwrap();
    assert_eq!(results(&converted), results(&convert(&plain, None, &ConvertOptions::new(4)).unwrap().bytes));
    std::fs::remove_file(folder.path().join("data")).unwrap();
    assert!(matches!(embed_external_data(&bytes, folder.path()), Err(OnnxError::Tensor { .. })));
}

#[test]
fn given_layers_are_written() {
    let bytes = file();
    let model = decode(&bytes);
    let weight = graph(&model).initializer.iter().find(|tensor| tensor.name() == "wide.weight").unwrap();
    let weight: Vec<f32> =
        weight.raw_data.as_ref().unwrap().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let pattern = HetPattern::assigned(vec![2, 0, 1, 3, 2, 1, 0, 3], (0..12).map(|f| f * 7 % 4).collect()).unwrap();
    let mut given = HetLayer::projected(pattern.clone(), &Conv2dGeometry::same(3, 2), &weight);
    given.bias = Some((0..12).map(|f| f as f32 / 4.0).collect());
    let options = |layer: HetLayer| ConvertOptions {
        init: Init::Layers(Arc::new([("wide".to_owned(), layer)].into())),
        selection: Selection::default().excluding(|name| name != "wide"),
        ..ConvertOptions::new(4)
    };
    let converted = convert(&bytes, None, &options(given.clone())).unwrap();
    let imported = import(&converted.bytes, None, &ImportOptions::default()).unwrap();
    assert_eq!(imported.het_layers, ["wide"]);
    let found = imported.model.weights;
    let bias = &found.get("wide.bias").unwrap().data;
    assert_eq!(Some(bias), given.bias.as_ref());
    assert_eq!(found.get("wide.center").unwrap().data, given.center);
    let names: Vec<String> =
        decode(&converted.bytes).graph.unwrap().initializer.iter().map(|t| t.name().to_owned()).collect();
    assert!(!names.contains(&"wide.weight".to_owned()), "{names:?}");
    let other = HetLayer { replaces: weight[1..].to_vec(), ..given };
    assert!(
        matches!(convert(&bytes, None, &options(other)), Err(OnnxError::Convert(ConvertError::Layer(name))) if name == "wide")
    );
}

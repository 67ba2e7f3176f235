//! Every way a file can lie: a typed error that names the node or tensor, no panic, no memory that the file does not have.

use std::fs;

use hetconv_graph::{ArrangementKind, ModelFile, Normalisation, Weights, zoo};
use hetconv_onnx::proto::tensor_shape_proto::{Dimension, dimension};
use hetconv_onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use hetconv_onnx::{
    ConvertOptions, ExportOptions, ImportOptions, OnnxError, TensorFault, UnsupportedNode, convert,
    embed_external_data, export, import, import_file,
};
use proptest::prelude::*;
use prost::Message;

fn model() -> ModelProto {
    ModelProto::decode(bytes().as_slice()).unwrap()
}

fn bytes() -> Vec<u8> {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap().with_input([3, 8, 8]).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
    export(&model, &ExportOptions::default()).unwrap()
}

/// What the import and the conversion say to the model once it is changed.
fn errors(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> [Option<OnnxError>; 2] {
    let mut model = model();
    let mut graph = model.graph.take().unwrap();
    change(&mut model, &mut graph);
    model.graph = Some(graph);
    let bytes = model.encode_to_vec();
    let arrangement = ArrangementKind::Shifted;
    let options = ConvertOptions { keep_first: false, arrangement, ..ConvertOptions::new(3) };
    [import(&bytes, None, &ImportOptions::default()).err(), convert(&bytes, None, &options).err()]
}

/// What the import says to it.
fn error(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> OnnxError {
    errors(change)[0].take().expect("the model was accepted")
}

/// The unsupported nodes of a changed model.
fn unsupported(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> Vec<UnsupportedNode> {
    match error(change) {
        OnnxError::Unsupported { nodes } => nodes,
        other => panic!("{other}"),
    }
}

fn tensor<'a>(graph: &'a mut GraphProto, name: &str) -> &'a mut TensorProto {
    graph.initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap()
}

fn node<'a>(graph: &'a mut GraphProto, name: &str) -> &'a mut NodeProto {
    graph.node.iter_mut().find(|node| node.name() == name).unwrap()
}

/// Makes a node of this kind, which reads `conv1`, and an output of its result.
fn add_node(graph: &mut GraphProto, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) {
    let input = inputs.iter().map(|&input| input.to_owned()).collect();
    let (name, op_type) = (Some("added".to_owned()), Some(op.to_owned()));
    graph.node.push(NodeProto {
        input,
        output: vec!["added".to_owned()],
        name,
        op_type,
        attribute,
        ..Default::default()
    });
    graph.output.push(ValueInfoProto { name: Some("added".to_owned()), ..Default::default() });
}

fn add_ints(graph: &mut GraphProto, name: &str, dims: &[i64], data: Vec<i64>) {
    let name = Some(name.to_owned());
    graph.initializer.push(TensorProto {
        dims: dims.to_vec(),
        data_type: Some(7),
        name,
        int64_data: data,
        ..Default::default()
    });
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(2), i: Some(value), ..Default::default() }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(7), ints: ints.to_vec(), ..Default::default() }
}

#[test]
fn the_unchanged_model_is_read() {
    assert!(matches!(errors(|_, _| ()), [None, None]));
}

#[test]
fn truncated_anywhere() {
    let bytes = bytes();
    for length in (0..bytes.len()).step_by(97).chain(0..400.min(bytes.len())) {
        let read = import(&bytes[..length], None, &ImportOptions::default());
        assert!(read.is_err(), "the first {length} bytes were accepted");
        let _ = convert(&bytes[..length], None, &ConvertOptions::new(4));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn damaged_bytes_never_panic(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = import(&bytes, None, &ImportOptions::default());
        let _ = convert(&bytes, None, &ConvertOptions::new(4));
    }

    #[test]
    fn bytes_of_no_kind_never_panic(bytes: Vec<u8>) {
        let _ = import(&bytes, None, &ImportOptions::default());
        let _ = convert(&bytes, None, &ConvertOptions::new(4));
    }
}

#[test]
fn claims_of_two_gibibytes() {
    // A length-delimited field of the model, the graph and a tensor that says it is 2 GiB long.
    for prefix in [&[][..], &[0x3a, 0x10][..], &[0x3a, 0x12, 0x2a, 0x10][..]] {
        let bytes = [prefix, &[0x4a, 0xff, 0xff, 0xff, 0xff, 0x07, 0x01]].concat();
        assert!(matches!(import(&bytes, None, &ImportOptions::default()), Err(OnnxError::Decode(_))));
        assert!(matches!(convert(&bytes, None, &ConvertOptions::new(4)), Err(OnnxError::Decode(_))));
    }
}

#[test]
fn no_graph_and_no_operator_set() {
    assert!(matches!(import(&[], None, &ImportOptions::default()), Err(OnnxError::Opset { found: 0, .. })));
    let graphless = ModelProto { graph: None, ..model() }.encode_to_vec();
    assert!(matches!(import(&graphless, None, &ImportOptions::default()), Err(OnnxError::NoGraph)));
    assert!(matches!(convert(&graphless, None, &ConvertOptions::new(4)), Err(OnnxError::NoGraph)));
    for version in [-1, 7, 10, 29, i64::MAX] {
        let found = error(|model, _| model.opset_import[0].version = Some(version));
        assert!(matches!(found, OnnxError::Opset { found, .. } if found == version));
    }
}

#[test]
fn dims_that_lie() {
    let lies: [&[i64]; 7] = [
        &[16, 3, 3, 4],
        &[16, 3, 3, 3, 1 << 40],
        &[i64::MAX, i64::MAX, 3, 3],
        &[-16, 3, 3, -3],
        &[0, 3, 3, 3],
        &[1 << 31, 1, 3, 3],
        &[1; 100],
    ];
    for dims in lies {
        let [read, converted] = errors(|_, graph| tensor(graph, "conv1.weight").dims = dims.to_vec());
        assert!(matches!(read, Some(OnnxError::Tensor { tensor, .. }) if tensor == "conv1.weight"), "{dims:?}");
        // What is no 4-D kernel is not converted; what claims to be one has to hold the data.
        if let [_, _, 3, 3] = dims
            && dims[0] > 0
        {
            assert!(matches!(converted, Some(OnnxError::Tensor { .. })), "{dims:?}");
        }
    }
    for data in [vec![], vec![0; 4], vec![0; 16 * 27 * 4 + 1]] {
        let found = error(|_, graph| tensor(graph, "conv1.weight").raw_data = Some(data.into()));
        assert!(matches!(found, OnnxError::Tensor { fault: TensorFault::Length { .. }, .. }));
    }
    let found = error(|_, graph| tensor(graph, "conv1.weight").raw_data = None);
    assert!(matches!(found, OnnxError::Tensor { fault: TensorFault::Length { found: 0, unit: "elements", .. }, .. }));
}

#[test]
fn element_types_that_are_not_read() {
    for data_type in [0, 8, 14, 17, 99, -1] {
        let found = unsupported(|_, graph| {
            tensor(graph, "conv1.weight").data_type = Some(data_type);
            node(graph, "conv2.relu").op_type = Some("Softplus".to_owned());
        });
        let nodes: Vec<&str> = found.iter().map(|node| node.node.as_str()).collect();
        assert_eq!(nodes, ["conv1", "conv2.relu"], "{data_type}");
        assert!(found[0].reason.contains("`conv1.weight`: its element type"), "{found:?}");
    }
    // Integers where floats belong.
    let found = unsupported(|_, graph| tensor(graph, "conv1.weight").data_type = Some(6));
    assert_eq!((found[0].node.as_str(), found[0].op.as_str()), ("conv1", "Conv"));
}

#[test]
fn shapes_that_do_not_fit() {
    let found = unsupported(|_, graph| tensor(graph, "conv1.weight").dims = vec![3, 16, 3, 3]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].node, "conv1");
    let found = unsupported(|_, graph| tensor(graph, "conv1.bias").dims = vec![4, 4]);
    assert_eq!(found[0].node, "conv1");
    let found = unsupported(|_, graph| tensor(graph, "classifier.weight").dims = vec![64, 10]);
    assert_eq!(found[0].node, "classifier");
}

#[test]
fn attributes_that_make_no_sense() {
    let attributes: [(&str, &[i64]); 12] = [
        ("pads", &[-1, 1, 1, 1, 1]),
        ("kernel_shape", &[-1, 3, 3]),
        ("strides", &[0, 1]),
        ("strides", &[1]),
        ("strides", &[i64::MAX, 1]),
        ("dilations", &[-1, 1]),
        ("dilations", &[1 << 20, 1]),
        ("pads", &[-1, 0, 0, 0]),
        ("pads", &[1, 1, 1]),
        ("pads", &[i64::MAX; 4]),
        ("kernel_shape", &[5, 5]),
        ("kernel_shape", &[]),
    ];
    for (name, value) in attributes {
        let found = unsupported(|_, graph| {
            let attributes = &mut node(graph, "conv1").attribute;
            attributes.retain(|attribute| attribute.name() != name);
            attributes.push(ints(name, value));
        });
        assert_eq!((found.len(), found[0].node.as_str()), (1, "conv1"), "{name} {value:?}");
    }
    for group in [0, -1, 2, i64::MAX] {
        let found = unsupported(|_, graph| {
            let attributes = &mut node(graph, "conv1").attribute;
            attributes.iter_mut().filter(|a| a.name() == "group").for_each(|a| a.i = Some(group));
        });
        assert_eq!(found[0].node, "conv1");
    }
    let pools: [(&str, &[i64]); 5] = [
        ("kernel_shape", &[0, 2]),
        ("kernel_shape", &[]),
        ("strides", &[0, 0]),
        ("pads", &[2, 2, 2, 2]),
        ("kernel_shape", &[99, 99]),
    ];
    for op in ["MaxPool", "AveragePool"] {
        for (name, value) in pools {
            let mut attributes = vec![ints("kernel_shape", &[2, 2])];
            attributes.retain(|attribute| attribute.name() != name);
            attributes.push(ints(name, value));
            let found = unsupported(|_, graph| add_node(graph, op, &["conv1"], attributes));
            assert_eq!(found[0].node, "added", "{op} {name} {value:?}");
        }
    }
}

#[test]
fn missing_operands() {
    for op in [
        "Conv",
        "BatchNormalization",
        "Relu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Concat",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "ReduceMean",
        "Flatten",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "Split",
        "Pad",
        "Gemm",
        "MatMul",
        "Softmax",
        "Dropout",
        "Identity",
        "Shape",
        "Constant",
        "ConstantOfShape",
        "Cast",
        "Sum",
    ] {
        let found = unsupported(|_, graph| add_node(graph, op, &[], vec![]));
        assert_eq!(found[0].node, "added", "{op}");
        // One operand where two or more belong, or one that is no image.
        for operand in ["conv1", "classifier", "conv1.weight", "conv1.bias"] {
            let _ = errors(|_, graph| add_node(graph, op, &[operand], vec![]));
            let _ = errors(|_, graph| add_node(graph, op, &[operand, operand, operand, operand, operand], vec![]));
            let _ = errors(|_, graph| add_node(graph, op, &["conv1", operand], vec![]));
        }
    }
}

#[test]
fn all_unsupported_nodes_at_once() {
    let found = unsupported(|_, graph| {
        node(graph, "conv1.relu").op_type = Some("Erf".to_owned());
        node(graph, "conv2.relu").op_type = Some("Softplus".to_owned());
        add_node(graph, "Det", &["conv1"], vec![]);
        node(graph, "added").domain = Some("others".to_owned());
    });
    let nodes: Vec<(&str, &str)> = found.iter().map(|node| (node.node.as_str(), node.op.as_str())).collect();
    assert_eq!(nodes, [("conv1.relu", "Erf"), ("conv2.relu", "Softplus"), ("added", "Det")]);
}

#[test]
fn results_that_are_not_computed() {
    let found = unsupported(|_, graph| {
        let norm = graph.node.iter_mut().find(|node| node.op_type() == "Relu").unwrap();
        norm.output.push("second".to_owned());
        add_node(graph, "Identity", &["second"], vec![]);
    });
    assert!(found[0].reason.contains("second"), "{found:?}");
}

#[test]
fn images_without_a_channel_axis() {
    // Their rows stand where channels are looked for.
    for (op, more) in [("GlobalAveragePool", &[][..]), ("Concat", &["rows"]), ("Identity", &[])] {
        let found = unsupported(|_, graph| {
            add_ints(graph, "first", &[1], vec![0]);
            add_ints(graph, "one", &[1], vec![1]);
            let picked = [("Gather", ["conv1", "first"], "picked"), ("Squeeze", ["picked", "one"], "rows")];
            for (op, inputs, output) in picked {
                let attribute = if op == "Gather" { vec![int("axis", 1)] } else { vec![] };
                graph.node.push(NodeProto {
                    input: inputs.map(str::to_owned).to_vec(),
                    output: vec![output.to_owned()],
                    op_type: Some(op.to_owned()),
                    attribute,
                    ..Default::default()
                });
            }
            let axis = if op == "Concat" { vec![int("axis", 1)] } else { vec![] };
            add_node(graph, op, &[&["rows"], more].concat(), axis);
        });
        assert!(found[0].reason.contains("0 channel axes"), "{op}: {found:?}");
    }
}

fn add_batch_norm(graph: &mut GraphProto, attribute: Vec<AttributeProto>) {
    for name in ["a", "b", "c", "d"] {
        let (dims, name, float_data) = (vec![16], Some(name.to_owned()), vec![1.0; 16]);
        graph.initializer.push(TensorProto { dims, data_type: Some(1), name, float_data, ..Default::default() });
    }
    add_node(graph, "BatchNormalization", &["conv1", "a", "b", "c", "d"], attribute);
}

#[test]
fn a_batch_norm_without_a_root() {
    let with = |epsilon: f32| {
        let epsilon = AttributeProto {
            name: Some("epsilon".to_owned()),
            r#type: Some(1),
            f: Some(epsilon),
            ..Default::default()
        };
        move |_: &mut ModelProto, graph: &mut GraphProto| add_batch_norm(graph, vec![epsilon])
    };
    for epsilon in [-1e-3, f32::NAN, f32::INFINITY] {
        let found = unsupported(with(epsilon));
        assert!(found[0].reason.contains("epsilon"), "{found:?}");
    }
    assert!(errors(with(0.0))[0].is_none(), "0 is a little more than that");
}

#[test]
fn a_batch_norm_that_is_trained() {
    // Before operator set 14 further results say so, read or not.
    let found = unsupported(|model, graph| {
        model.opset_import[0].version = Some(12);
        add_batch_norm(graph, vec![]);
        graph.node.last_mut().unwrap().output.extend(["mean".to_owned(), "var".to_owned()]);
    });
    assert!(found[0].reason.contains("training mode"), "{found:?}");
}

#[test]
fn an_axis_that_is_sliced_twice() {
    let found = unsupported(|_, graph| {
        for (name, numbers) in [("starts", [0, 1]), ("ends", [2, 2]), ("axes", [1, 1])] {
            add_ints(graph, name, &[2], numbers.to_vec());
        }
        add_node(graph, "Slice", &["conv1", "starts", "ends", "axes"], vec![]);
    });
    assert_eq!(found[0].node, "added");
}

#[test]
fn cycles_and_strangers() {
    let found = error(|_, graph| {
        let relu = node(graph, "conv2.relu").output[0].clone();
        node(graph, "conv1").input[0] = relu;
    });
    assert!(matches!(found, OnnxError::Cycle { .. }), "{found}");
    let found = error(|_, graph| {
        let own = node(graph, "conv1").output[0].clone();
        node(graph, "conv1").input[0] = own;
    });
    assert!(matches!(found, OnnxError::Cycle { node } if node == "conv1"));
    let found = error(|_, graph| node(graph, "conv1").input[0] = "nobody".to_owned());
    assert!(matches!(found, OnnxError::Undefined { node, value } if node == "conv1" && value == "nobody"));
    let found = error(|_, graph| graph.output[0].name = Some("nobody".to_owned()));
    assert!(matches!(found, OnnxError::Undefined { value, .. } if value == "nobody"));
    let found = error(|_, graph| {
        let twice = node(graph, "conv1").clone();
        graph.node.push(twice);
    });
    assert!(matches!(found, OnnxError::Twice { value } if value == "conv1"));
    // An order that is no order is put right.
    assert!(matches!(errors(|_, graph| graph.node.reverse()), [None, _]));
    let found = error(|_, graph| graph.output.clear());
    assert!(matches!(found, OnnxError::Graph(_)));
}

#[test]
fn functions_without_end() {
    let call = |name: &str, times: usize| {
        let call = |i: usize| NodeProto {
            input: vec!["X".to_owned()],
            output: vec![if i == 0 { "Y".to_owned() } else { format!("y{i}") }],
            op_type: Some(name.to_owned()),
            domain: Some("f".to_owned()),
            ..Default::default()
        };
        (0..times).map(call).collect::<Vec<_>>()
    };
    let function = |name: &str, node: Vec<NodeProto>| FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("f".to_owned()),
        input: vec!["X".to_owned()],
        output: vec!["Y".to_owned()],
        node,
        ..Default::default()
    };
    let endless = error(|model, graph| {
        model.functions = vec![function("a", call("b", 1)), function("b", call("a", 1))];
        add_node(graph, "a", &["conv1"], vec![]);
        node(graph, "added").domain = Some("f".to_owned());
    });
    assert!(matches!(endless, OnnxError::Functions { .. }));
    // Twenty-eight functions, each of which calls the next four times.
    let bomb = error(|model, graph| {
        model.functions = (0..28).map(|i| function(&format!("f{i}"), call(&format!("f{}", i + 1), 4))).collect();
        add_node(graph, "f0", &["conv1"], vec![]);
        node(graph, "added").domain = Some("f".to_owned());
    });
    assert!(matches!(bomb, OnnxError::Functions { .. }));
}

#[test]
fn inputs_that_are_no_images() {
    let with_dims = |dims: &[Option<i64>]| {
        let dim = |size: &Option<i64>| Dimension { value: size.map(dimension::Value::DimValue), ..Default::default() };
        let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
        let tensor = type_proto::Tensor { elem_type: Some(1), shape };
        Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() })
    };
    let shapes: [&[Option<i64>]; 8] = [
        &[],
        &[None, Some(3)],
        &[None, None, Some(8), Some(8)],
        &[None, Some(3), None, Some(8)],
        &[None, Some(-3), Some(8), Some(8)],
        &[None, Some(0), Some(8), Some(8)],
        &[None, Some(i64::MAX), Some(i64::MAX), Some(8)],
        &[None, Some(1 << 30), Some(1), Some(1)],
    ];
    for dims in shapes {
        let found = error(|_, graph| graph.input[0].r#type = with_dims(dims));
        assert!(matches!(found, OnnxError::Input { input, .. } if input == "input"), "{dims:?}");
    }
    assert!(matches!(error(|_, graph| graph.input[0].r#type = None), OnnxError::Input { .. }));
    // An open size can be given.
    let mut model = model();
    model.graph.as_mut().unwrap().input[0].r#type = with_dims(&[None, Some(3), None, None]);
    let options = ImportOptions { image_size: Some([16, 24]), ..ImportOptions::default() };
    let imported = import(&model.encode_to_vec(), None, &options).unwrap();
    assert_eq!(imported.model.graph.input_shape(), Some([3, 16, 24]));
}

#[test]
fn constants_out_of_all_proportion() {
    let sizes: [&[i64]; 4] = [&[1 << 40], &[1 << 20, 1 << 20], &[1 << 62, 1 << 62], &[-5]];
    for size in sizes {
        let found = unsupported(|_, graph| {
            add_ints(graph, "size", &[size.len() as i64], size.to_vec());
            add_node(graph, "ConstantOfShape", &["size"], vec![]);
        });
        assert_eq!(found[0].node, "added", "{size:?}");
    }
    // Channels added by padding, and an image of many pixels cut to pieces of many steps.
    let found = unsupported(|_, graph| {
        add_ints(graph, "pads", &[8], vec![0, 1 << 40, 0, 0, 0, 0, 0, 0]);
        add_node(graph, "Pad", &["conv1", "pads"], vec![]);
    });
    assert_eq!(found[0].node, "added");
    // Images and empty constants whose elements cannot be counted once they are flattened.
    let flattened: [(&str, &[&str], Vec<i64>); 2] = [
        ("Pad", &["conv1", "numbers"], vec![0, 0, 1 << 40, 1 << 40, 0, 0, 0, 0]),
        ("ConstantOfShape", &["numbers"], vec![0, 1 << 62, 1 << 62]),
    ];
    for (op, inputs, numbers) in flattened {
        let found = unsupported(|_, graph| {
            add_ints(graph, "numbers", &[numbers.len() as i64], numbers);
            add_node(graph, op, inputs, vec![]);
            let huge = graph.node.last_mut().unwrap();
            (huge.name, huge.output) = (Some("huge".to_owned()), vec!["huge".to_owned()]);
            add_node(graph, "Flatten", &["huge"], vec![]);
        });
        assert!(["huge", "added"].contains(&found[0].node.as_str()), "{op}");
    }
    // An empty constant with an axis that no memory holds.
    let found = unsupported(|_, graph| {
        add_ints(graph, "nothing", &[0, 1 << 50], vec![]);
        add_node(graph, "Transpose", &["nothing"], vec![]);
    });
    assert_eq!(found[0].node, "added");
    // Each gather nearly doubles the number of axes, of one element all the while.
    let found = unsupported(|_, graph| {
        add_ints(graph, "r0", &[1, 1], vec![0]);
        for i in 0..30 {
            let [from, to] = [i, i + 1].map(|i| format!("r{i}"));
            let (input, op_type) = (vec![from.clone(), from], Some("Gather".to_owned()));
            graph.node.push(NodeProto { input, output: vec![to], op_type, ..Default::default() });
        }
        add_node(graph, "Identity", &["r30"], vec![]);
    });
    assert!(!found.is_empty());
    // Copies of one large constant, each by a node of a few bytes.
    let found = unsupported(|_, graph| {
        add_ints(graph, "size", &[1], vec![4_000_000]);
        add_node(graph, "ConstantOfShape", &["size"], vec![]);
        for i in 0..20 {
            let (input, op_type) = (vec!["added".to_owned()], Some("Neg".to_owned()));
            graph.node.push(NodeProto { input, output: vec![format!("n{i}")], op_type, ..Default::default() });
        }
    });
    assert_eq!(found.iter().filter(|node| node.op == "Neg").count(), 20);
    // As lists of sizes or axes they are refused by their length, not read.
    let found = unsupported(|_, graph| {
        add_ints(graph, "size", &[1], vec![4_000_000]);
        let five = TensorProto { dims: vec![1], data_type: Some(7), int64_data: vec![5], ..Default::default() };
        let value =
            AttributeProto { name: Some("value".to_owned()), r#type: Some(4), t: Some(five), ..Default::default() };
        add_node(graph, "ConstantOfShape", &["size"], vec![value]);
        for (i, op) in
            ["Reshape", "Squeeze", "Unsqueeze", "Pad", "ReduceMean"].into_iter().cycle().take(2000).enumerate()
        {
            let (input, op_type) = (vec!["conv1".to_owned(), "added".to_owned()], Some(op.to_owned()));
            graph.node.push(NodeProto { input, output: vec![format!("n{i}")], op_type, ..Default::default() });
        }
    });
    assert_eq!(found.iter().filter(|node| node.reason.contains("list of 4000000 numbers")).count(), 2000);
    // Such a constant is not quoted.
    let found = unsupported(|_, graph| {
        add_ints(graph, "size", &[1], vec![1_000_000]);
        add_node(graph, "ConstantOfShape", &["size"], vec![]);
        let (input, op_type) = (vec!["conv1".to_owned(), "added".to_owned()], Some("Reshape".to_owned()));
        graph.node.push(NodeProto { input, output: vec!["r".to_owned()], op_type, ..Default::default() });
    });
    assert!(found[0].reason.len() < 1000, "{}", found[0].reason.len());
    // Each gather doubles what the one before it gave.
    let found = unsupported(|_, graph| {
        add_ints(graph, "twice", &[2], vec![0, 0]);
        let mut from = "twice".to_owned();
        for i in 0..40 {
            let name = format!("g{i}");
            let input = vec![from, "pairs".to_owned()];
            let op_type = Some("Gather".to_owned());
            graph.node.push(NodeProto { input, output: vec![name.clone()], op_type, ..Default::default() });
            from = name;
        }
        add_ints(graph, "pairs", &[64, 1], vec![0; 64]);
        add_node(graph, "Identity", &[&from], vec![]);
    });
    assert!(!found.is_empty());
}

#[test]
fn reshapes_that_lie() {
    let shapes: [&[i64]; 9] = [
        &[],
        &[-1, -1],
        &[0, 7],
        &[0, -1, 0],
        &[0, i64::MAX, i64::MAX],
        &[0, 0, 0, 0, 0, 0],
        &[2, -1],
        &[-1],
        &[0, -2, 3],
    ];
    for shape in shapes {
        let found = unsupported(|_, graph| {
            add_ints(graph, "shape", &[shape.len() as i64], shape.to_vec());
            add_node(graph, "Reshape", &["conv1", "shape"], vec![]);
        });
        assert_eq!(found[0].node, "added", "{shape:?}");
    }
    for axes in [&[9][..], &[-9], &[0], &[1, 1], &[2; 1000]] {
        for op in ["Squeeze", "Unsqueeze"] {
            let found = unsupported(|_, graph| {
                add_ints(graph, "axes", &[axes.len() as i64], axes.to_vec());
                add_node(graph, op, &["conv1", "axes"], vec![]);
            });
            assert_eq!(found[0].node, "added", "{op} {axes:?}");
        }
    }
    for permutation in [&[0, 1, 2][..], &[0, 0, 1, 2], &[0, 1, 3, 2], &[0, 1, 2, 9]] {
        let found = unsupported(|_, graph| add_node(graph, "Transpose", &["conv1"], vec![ints("perm", permutation)]));
        assert_eq!(found[0].node, "added", "{permutation:?}");
    }
}

#[test]
fn deep_graphs() {
    // A hundred thousand nodes in a row, each named like the one before: neither the stack nor patience runs out.
    let mut bytes = Vec::new();
    for op in ["Relu", "Identity", "Add", "Concat"] {
        let mut model = model();
        let graph = model.graph.as_mut().unwrap();
        let mut from = "conv1".to_owned();
        for i in 0..100_000 {
            let output = format!("v{i}");
            let input = if op == "Add" { vec![from, "conv1".to_owned()] } else { vec![from] };
            let attribute = if op == "Concat" {
                vec![AttributeProto { name: Some("axis".to_owned()), i: Some(1), ..Default::default() }]
            } else {
                vec![]
            };
            let (name, op_type) = (Some("same".to_owned()), Some(op.to_owned()));
            graph.node.push(NodeProto {
                input,
                output: vec![output.clone()],
                name,
                op_type,
                attribute,
                ..Default::default()
            });
            from = output;
        }
        graph.output[0].name = Some(from);
        bytes.clear();
        model.encode(&mut bytes).unwrap();
        assert!(import(&bytes, None, &ImportOptions::default()).is_ok(), "{op}");
    }
}

#[test]
fn metadata_that_lies() {
    let entry = |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    let layers = r#"{"conv1": {"in_channels": 3, "out_channels": 16, "arrangement": {"shifted": {"parts": 3}}},
        "conv2": {"in_channels": 16777216, "out_channels": 16777216, "arrangement": {"shifted": {"parts": 4}}}}"#;
    for value in ["", "7", "{", layers] {
        let mut model = model();
        model.metadata_props =
            ["hetconv.layers", "hetconv.classes", "hetconv.normalisation"].map(|key| entry(key, value)).to_vec();
        let imported = import(&model.encode_to_vec(), None, &ImportOptions::default()).unwrap();
        // `conv1` has weights where the stated pattern has none.
        assert_eq!(imported.het_layers, ["conv2", "conv3", "conv4"]);
        imported.model.to_bytes().unwrap();
    }
}

/// A model whose first weight is in another file.
fn external(location: &str, more: &[(&str, &str)]) -> (Vec<u8>, Vec<u8>) {
    let mut model = model();
    let weight = tensor(model.graph.as_mut().unwrap(), "conv1.weight");
    let data = weight.raw_data.take().unwrap();
    weight.data_location = Some(1);
    let entries = [("location", location)].into_iter().chain(more.iter().copied());
    weight.external_data = entries
        .map(|(key, value)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) })
        .collect();
    (model.encode_to_vec(), data.to_vec())
}

#[test]
fn external_data() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("model");
    fs::create_dir_all(folder.join("weights")).unwrap();
    let path = folder.join("model.onnx");
    let read = |location: &str, more: &[(&str, &str)]| {
        let (model, data) = external(location, more);
        fs::write(&path, model).unwrap();
        for place in [folder.join("weights/data"), outside.path().join("data")] {
            fs::write(place, [&[7; 10][..], &data].concat()).unwrap();
        }
        import_file(&path, &ImportOptions::default())
    };
    let length = (16 * 27 * 4).to_string();
    let whole = import(&bytes(), None, &ImportOptions::default()).unwrap();
    assert_eq!(read("weights/data", &[("offset", "10")]).unwrap(), whole);
    assert_eq!(read("./weights/data", &[("offset", "10"), ("length", &length)]).unwrap(), whole);
    let fault = |location: &str, more: &[(&str, &str)]| match read(location, more) {
        Err(OnnxError::Tensor { tensor, fault }) if tensor == "conv1.weight" => fault,
        other => panic!("{location}: {other:?}"),
    };
    let absolute = outside.path().join("data");
    for location in ["../data", "weights/../../data", absolute.to_str().unwrap(), "", "weights"] {
        assert!(matches!(fault(location, &[("offset", "10")]), TensorFault::Outside(_)), "{location}");
    }
    assert!(matches!(fault("nowhere", &[]), TensorFault::Io { .. }));
    for (key, value) in [("offset", "-1"), ("offset", "x"), ("length", "1e3")] {
        assert!(matches!(fault("weights/data", &[(key, value)]), TensorFault::External { .. }));
    }
    let largest = u64::MAX.to_string();
    for more in [("offset", "0"), ("offset", "11"), ("offset", &largest), ("length", "4")] {
        assert!(matches!(fault("weights/data", &[more]), TensorFault::Length { .. }), "{more:?}");
    }
    let found = fault("weights/data", &[("length", &largest)]);
    assert!(matches!(found, TensorFault::Missing { length: u64::MAX, offset: 0, .. }), "{found}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path().join("data"), folder.join("link")).unwrap();
        assert!(matches!(fault("link", &[("offset", "10")]), TensorFault::Outside(_)));
    }
    // What is not there is missed even where its amount is not asked for, and tensors that share data do not multiply it.
    let data = "weights/data";
    let (short, _) = external(data, &[("length", "1000000")]);
    let taken_in = embed_external_data(&short, &folder).unwrap_err();
    assert!(matches!(taken_in, OnnxError::Tensor { fault: TensorFault::Missing { .. }, .. }), "{taken_in}");
    let (shared, _) = external(data, &[("offset", "10")]);
    let mut shared = ModelProto::decode(shared.as_slice()).unwrap();
    let graph = shared.graph.as_mut().unwrap();
    for i in 0..10 {
        let copy = TensorProto { name: Some(format!("copy{i}")), ..tensor(graph, "conv1.weight").clone() };
        graph.initializer.push(copy);
    }
    let names: Vec<String> = (0..10).map(|i| format!("copy{i}")).collect();
    add_node(graph, "Concat", &names.iter().map(String::as_str).collect::<Vec<_>>(), vec![int("axis", 0)]);
    let shared = shared.encode_to_vec();
    fs::write(&path, &shared).unwrap();
    let read = import_file(&path, &ImportOptions::default()).map(drop);
    for found in [read, embed_external_data(&shared, &folder).map(drop)] {
        let error = found.unwrap_err();
        assert!(matches!(error, OnnxError::Tensor { fault: TensorFault::Shared { .. }, .. }), "{error}");
    }
    // One tensor that many convolutions read is no more than itself.
    let (unrolled, _) = external(data, &[("offset", "10")]);
    let mut unrolled = ModelProto::decode(unrolled.as_slice()).unwrap();
    let graph = unrolled.graph.as_mut().unwrap();
    for i in 0..10 {
        let (name, output) = (Some(format!("again{i}")), vec![format!("again{i}")]);
        let again = NodeProto { name, output, ..node(graph, "conv1").clone() };
        graph.node.push(again);
    }
    let arrangement = ArrangementKind::Shifted;
    let options = ConvertOptions { keep_first: false, arrangement, ..ConvertOptions::new(3) };
    convert(&unrolled.encode_to_vec(), Some(&folder), &options).unwrap();
    let (model, _) = external("weights/data", &[]);
    let from_memory = import(&model, None, &ImportOptions::default()).unwrap_err();
    assert!(matches!(from_memory, OnnxError::Tensor { fault: TensorFault::NoFolder, .. }));
}

//! Nodes that ask for what cannot be.

use super::*;

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
    for auto_pad in [&b"SAME"[..], &[0xff]] {
        let found = unsupported(|_, graph| {
            let s = Some(auto_pad.to_vec());
            let attribute = AttributeProto { name: Some("auto_pad".to_owned()), s, ..Default::default() };
            node(graph, "conv1").attribute.push(attribute);
        });
        assert!(found[0].node == "conv1" && found[0].reason.contains("auto_pad"), "{found:?}");
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
fn constants_of_more_axes_than_the_value() {
    for (value, axes) in [("conv1", 4), ("classifier", 2)] {
        for op in ["Add", "Sub", "Mul", "Div"] {
            let with = |axes: usize, swapped: bool| {
                move |_: &mut ModelProto, graph: &mut GraphProto| {
                    let (name, dims) = (Some("one".to_owned()), vec![1; axes]);
                    let float_data = vec![1.0];
                    graph.initializer.push(TensorProto {
                        dims,
                        data_type: Some(1),
                        name,
                        float_data,
                        ..Default::default()
                    });
                    add_node(graph, op, &if swapped { ["one", value] } else { [value, "one"] }, vec![]);
                }
            };
            for swapped in if op == "Div" { &[false][..] } else { &[false, true] } {
                assert!(errors(with(axes, *swapped))[0].is_none(), "{op} {value}");
                let found = unsupported(with(axes + 1, *swapped));
                assert!(found[0].reason.contains(&format!("for a value of {axes} axes")), "{op} {value}: {found:?}");
            }
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
fn inputs_that_are_no_images() {
    let of_kind = |elem_type: i32, dims: &[Option<i64>]| {
        let dim = |size: &Option<i64>| Dimension { value: size.map(dimension::Value::DimValue), ..Default::default() };
        let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
        let tensor = type_proto::Tensor { elem_type: Some(elem_type), shape };
        Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() })
    };
    let with_dims = |dims: &[Option<i64>]| of_kind(1, dims);
    let shapes: [(&[Option<i64>], &str); 9] = [
        (&[], "shape is not given"),
        (&[None, Some(3)], "it has 2 axes"),
        (&[None, None, Some(8)], "it has 3 axes"),
        (&[None, None, Some(8), Some(8)], "channels are open"),
        (&[None, Some(3), None, Some(8)], "height and width are open"),
        (&[None, Some(-3), Some(8), Some(8)], "channels are open"),
        (&[None, Some(0), Some(8), Some(8)], ""),
        (&[None, Some(i64::MAX), Some(i64::MAX), Some(8)], ""),
        (&[None, Some(1 << 30), Some(1), Some(1)], ""),
    ];
    for (dims, said) in shapes {
        let found = error(|_, graph| graph.input[0].r#type = with_dims(dims));
        let OnnxError::Input { input, reason } = found else { panic!("{dims:?}: {found}") };
        assert!(input == "input" && reason.contains(said), "{dims:?}: {reason}");
    }
    assert!(matches!(error(|_, graph| graph.input[0].r#type = None), OnnxError::Input { .. }));
    let image = [None, Some(3), Some(8), Some(8)];
    for (elem_type, name) in [(2, "UINT8"), (3, "INT8"), (6, "INT32"), (9, "BOOL")] {
        let found = error(|_, graph| graph.input[0].r#type = of_kind(elem_type, &image));
        let OnnxError::Input { reason, .. } = found else { panic!("{found}") };
        assert!(reason.contains(&format!("elements of {name}")), "{reason}");
    }
    for elem_type in [1, 10, 11, 16] {
        assert!(errors(|_, graph| graph.input[0].r#type = of_kind(elem_type, &image))[0].is_none());
    }
    // An open size can be given.
    let mut model = model();
    model.graph.as_mut().unwrap().input[0].r#type = with_dims(&[None, Some(3), None, None]);
    let options = ImportOptions { image_size: Some([16, 24]), ..ImportOptions::default() };
    let imported = import(&model.encode_to_vec(), None, &options).unwrap();
    assert_eq!(imported.model.graph.input_shape(), Some([3, 16, 24]));
}

#[test]
fn casts_that_change_numbers() {
    let push = |graph: &mut GraphProto, op: &str, inputs: &[&str], output: &str, attribute| {
        let (name, op_type) = (Some(output.to_owned()), Some(op.to_owned()));
        let (input, output) = (inputs.iter().map(|&input| input.to_owned()).collect(), vec![output.to_owned()]);
        graph.node.push(NodeProto { input, output, name, op_type, attribute, ..Default::default() });
    };
    // The product of an image with a number that is cast from an integer to floats, or back, and to this type.
    let said = |value: i64, from: &str, to: i64| {
        let [said, _] = errors(|_, graph| {
            add_ints(graph, "integer", &[1], vec![value]);
            push(graph, "Cast", &["integer"], "float", vec![int("to", 1)]);
            push(graph, "Cast", &[from], "cast", vec![int("to", to)]);
            push(graph, "Cast", &["cast"], "number", vec![int("to", 1)]);
            add_node(graph, "Mul", &["conv1", "number"], vec![]);
        });
        match said {
            Some(OnnxError::Unsupported { nodes }) => nodes[0].reason.clone(),
            Some(error) => panic!("{error}"),
            None => String::new(),
        }
    };
    assert_eq!([said(5, "integer", 6), said(65_504, "float", 10), said(70_000, "float", 16)], ["", "", ""]);
    assert!(said((1 << 33) + 5, "integer", 6).contains("casts numbers that INT32 cannot hold"));
    assert!(said(70_000, "float", 10).contains("casts numbers that FLOAT16 cannot hold"));
}

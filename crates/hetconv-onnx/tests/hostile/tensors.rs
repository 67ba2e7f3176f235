//! Tensors that claim what they have not.

use super::*;

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
        if shape == [2, -1] {
            assert_eq!(found[0].reason, "its shape [2, -1] changes the batch");
        }
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

/// Classes are made for sizes that are borne out.
#[test]
fn the_classes_of_weights_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = external("nowhere", &[]);
    let mut model = ModelProto::decode(model.as_slice()).unwrap();
    // So many filters have none, which is found out when they are made.
    tensor(model.graph.as_mut().unwrap(), "conv1.weight").dims = vec![HetPattern::LIMIT as i64 + 1, 3, 3, 3];
    let arrangement = ArrangementKind::Shifted;
    let options = ConvertOptions { selection: Selection::all(), arrangement, ..ConvertOptions::new(3) };
    let found = convert(&model.encode_to_vec(), Some(folder.path()), &options).unwrap_err();
    assert!(matches!(found, OnnxError::Tensor { fault: TensorFault::Io { .. }, .. }), "{found}");
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
    let options = ConvertOptions { selection: Selection::all(), arrangement, ..ConvertOptions::new(3) };
    convert(&unrolled.encode_to_vec(), Some(&folder), &options).unwrap();
    let (model, _) = external("weights/data", &[]);
    let from_memory = import(&model, None, &ImportOptions::default()).unwrap_err();
    assert!(matches!(from_memory, OnnxError::Tensor { fault: TensorFault::NoFolder, .. }));
}

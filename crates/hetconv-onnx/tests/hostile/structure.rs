//! Graphs and functions that have no end, or none that can be waited for.

use super::*;

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
fn deep_graphs() {
    // A hundred thousand nodes in a row, each named like the one before: neither the stack nor patience runs out.
    let mut bytes = Vec::new();
    let limit = "nodes; at most 32768 are possible";
    for (op, nodes, said) in [
        ("Relu", 30_000, ""),
        ("Identity", 100_000, ""),
        ("Add", 30_000, ""),
        ("Concat", 30_000, ""),
        ("Relu", 100_000, limit),
    ] {
        let mut model = model();
        let graph = model.graph.as_mut().unwrap();
        let mut from = "conv1".to_owned();
        for i in 0..nodes {
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
        let found = import(&bytes, None, &ImportOptions::default()).err();
        let found = found.map(|error| error.to_string()).unwrap_or_default();
        assert!(found.is_empty() == said.is_empty() && found.ends_with(said), "{op}: {found}");
    }
}

/// What a call has to be told costs, too, even of a function without nodes.
#[test]
fn calls_of_many_names() {
    let names = |count: usize| (0..count).map(|i| format!("n{i}")).collect::<Vec<_>>();
    let found = error(|model, graph| {
        let (name, domain) = (Some("empty".to_owned()), Some("f".to_owned()));
        model.functions = vec![FunctionProto { name, domain, input: names(4_000), ..Default::default() }];
        let call = NodeProto { op_type: Some("empty".to_owned()), domain: Some("f".to_owned()), ..Default::default() };
        graph.node.extend(std::iter::repeat_n(call, 20_000));
    });
    assert!(matches!(found, OnnxError::Functions { .. }), "{found}");
}

/// What was flattened is unflattened once, however often somebody asks for it.
#[test]
fn features_that_are_made_images_again_and_again() {
    let mut model = model();
    let graph = model.graph.as_mut().unwrap();
    let mut add = |op: &str, inputs: &[String], output: String, attribute: Vec<AttributeProto>| {
        let (output, op_type) = (vec![output], Some(op.to_owned()));
        graph.node.push(NodeProto { input: inputs.to_vec(), output, op_type, attribute, ..Default::default() });
    };
    add("GlobalAveragePool", &["conv1".to_owned()], "mean".to_owned(), vec![]);
    add("Flatten", &["mean".to_owned()], "flat".to_owned(), vec![]);
    let gates: Vec<String> = (0..100).map(|i| format!("gate{i}")).collect();
    gates.iter().for_each(|gate| add("Sigmoid", &["flat".to_owned()], gate.clone(), vec![]));
    add("Sum", &gates, "sum".to_owned(), vec![]);
    for i in 0..100 {
        add("Unsqueeze", &["sum".to_owned(), "axes".to_owned()], format!("image{i}"), vec![]);
        add("Add", &[format!("image{i}"), "mean".to_owned()], format!("more{i}"), vec![]);
    }
    add_ints(graph, "axes", &[2], vec![2, 3]);
    graph.output.push(ValueInfoProto { name: Some("more7".to_owned()), ..Default::default() });
    let imported = import(&model.encode_to_vec(), None, &ImportOptions::default()).unwrap().model.graph;
    assert!(imported.nodes.len() < 400, "{} nodes", imported.nodes.len());
}

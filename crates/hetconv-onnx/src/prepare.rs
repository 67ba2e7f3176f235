//! An ONNX file as a plain list of nodes: decoded, functions inlined, in an order in which it can be computed.

use std::collections::{HashMap, HashSet};

use prost::Message;
use prost::bytes::Bytes;

use crate::OnnxError;
use crate::names::Names;
use crate::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto};

/// The operator sets that are read.
pub(crate) const OPSETS: [i64; 2] = [11, 28];

/// The most nodes a file may have once its functions are inlined.
const MOST_NODES: usize = 1 << 20;
/// The most bytes that inlining may copy.
const MOST_BYTES: usize = 1 << 28;
/// How deep functions may call functions.
const DEEPEST_CALL: usize = 32;

/// A decoded model whose graph has standard nodes only, each behind the ones it reads.
pub(crate) fn prepare(bytes: Bytes) -> Result<(ModelProto, i64), OnnxError> {
    let mut model = ModelProto::decode(bytes)?;
    let mut graph = model.graph.take().ok_or(OnnxError::NoGraph)?;
    let opset = opset(&model)?;
    let functions = std::mem::take(&mut model.functions);
    tell_apart(&mut graph.node);
    graph.node = inline(std::mem::take(&mut graph.node), &functions)?;
    sort(&mut graph)?;
    model.graph = Some(graph);
    Ok((model, opset))
}

/// The version of the standard operators that a file states, 0 if none.
pub(crate) fn stated_opset(model: &ModelProto) -> i64 {
    let standard = model.opset_import.iter().find(|import| is_standard(import.domain()));
    standard.map_or(0, |import| import.version())
}

/// The version of the standard operators, if it is one that is read.
fn opset(model: &ModelProto) -> Result<i64, OnnxError> {
    let found = stated_opset(model);
    let [first, last] = OPSETS;
    if (first..=last).contains(&found) { Ok(found) } else { Err(OnnxError::Opset { found, first, last }) }
}

/// Whether a domain is that of the standard operators.
pub(crate) fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// Replaces every call of a function of the file by the function's nodes.
fn inline(nodes: Vec<NodeProto>, functions: &[FunctionProto]) -> Result<Vec<NodeProto>, OnnxError> {
    let mut by_name = HashMap::new();
    for function in functions {
        let results: HashSet<&str> = function.output.iter().map(String::as_str).collect();
        by_name.insert((function.domain(), function.name(), function.overload()), (function, results));
    }
    if by_name.is_empty() {
        return Ok(nodes);
    }
    let mut plain = Vec::with_capacity(nodes.len());
    // Nodes still to be looked at, the next one last, with the depth of the call they came from.
    let mut rest: Vec<(NodeProto, usize)> = nodes.into_iter().rev().map(|node| (node, 0)).collect();
    let (mut calls, mut copied) = (0, 0_usize);
    while let Some((node, depth)) = rest.pop() {
        let Some((function, results)) = by_name.get(&(node.domain(), node.op_type(), node.overload())) else {
            plain.push(node);
            continue;
        };
        copied = copied.saturating_add(copied_by(&node, function));
        let nodes = plain.len() + rest.len() + function.node.len();
        if depth == DEEPEST_CALL || nodes > MOST_NODES || copied > MOST_BYTES {
            return Err(OnnxError::Functions { node: node_name(&node).to_owned() });
        }
        calls += 1;
        let body = call(&node, function, results, calls);
        rest.extend(body.into_iter().rev().map(|node| (node, depth + 1)));
    }
    Ok(plain)
}

/// About as many bytes as [`call`] makes: the function's nodes, names with the caller's before them, the caller's
/// attributes where the function refers to them, and a table of the names that stand for the caller's.
fn copied_by(node: &NodeProto, function: &FunctionProto) -> usize {
    let nodes: usize = function.node.iter().map(Message::encoded_len).sum();
    let names: usize = function.node.iter().map(|body| 1 + body.input.len() + body.output.len()).sum();
    let attributes = function.node.iter().flat_map(|body| &body.attribute);
    let references = attributes.filter(|attribute| attribute.ref_attr_name.is_some()).count();
    let given: usize = node.attribute.iter().chain(&function.attribute_proto).map(Message::encoded_len).sum();
    let formals = 1 + function.input.len() + function.output.len();
    let table = formals * size_of::<(&str, String)>() + node.input.iter().map(String::len).sum::<usize>();
    let names = names.saturating_mul(node_name(node).len());
    nodes.saturating_add(names).saturating_add(references.saturating_mul(given)).saturating_add(table)
}

/// The nodes of a function in place of a call of it.
fn call(node: &NodeProto, function: &FunctionProto, results: &HashSet<&str>, number: usize) -> Vec<NodeProto> {
    let mut names: HashMap<&str, String> = HashMap::new();
    for (index, formal) in function.input.iter().enumerate() {
        names.insert(formal, node.input.get(index).cloned().unwrap_or_default());
    }
    for (index, formal) in function.output.iter().enumerate() {
        if let Some(actual) = node.output.get(index).filter(|actual| !actual.is_empty()) {
            names.insert(formal, actual.clone());
        }
    }
    let caller = node_name(node);
    let rename = |value: &str| {
        if value.is_empty() {
            return String::new();
        }
        names.get(value).cloned().unwrap_or_else(|| format!("{caller}/{number}/{value}"))
    };
    let value = |attribute: &AttributeProto| {
        let Some(formal) = attribute.ref_attr_name.as_deref().filter(|name| !name.is_empty()) else {
            return Some(attribute.clone());
        };
        let given = node.attribute.iter().find(|given| given.name() == formal);
        let value = given.or_else(|| function.attribute_proto.iter().find(|default| default.name() == formal))?;
        Some(AttributeProto { name: attribute.name.clone(), ..value.clone() })
    };
    let result = |body: &NodeProto| body.output.iter().any(|output| results.contains(output.as_str()));
    let copy = |body: &NodeProto| NodeProto {
        // The node that computes the result is the call itself.
        name: Some(if result(body) { caller.to_owned() } else { format!("{caller}/{}", node_name(body)) }),
        input: body.input.iter().map(|value| rename(value)).collect(),
        output: body.output.iter().map(|value| rename(value)).collect(),
        attribute: body.attribute.iter().filter_map(value).collect(),
        ..body.clone()
    };
    function.node.iter().map(copy).collect()
}

/// A node's name, or that of its first output.
pub(crate) fn node_name(node: &NodeProto) -> &str {
    if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() }
}

/// Gives every node a name of its own, those a number that bear one again: nothing forbids a file to call two of them the
/// same.
pub(crate) fn tell_apart(nodes: &mut [NodeProto]) {
    let mut names = Names::reserving(nodes.iter().map(node_name));
    for node in nodes {
        let name = names.take(node_name(node));
        if name != node_name(node) {
            node.name = Some(name);
        }
    }
}

/// Brings the nodes into an order in which every value is computed before it is read.
fn sort(graph: &mut GraphProto) -> Result<(), OnnxError> {
    let given = graph.input.iter().map(|value| value.name());
    let given = given.chain(graph.initializer.iter().map(|tensor| tensor.name()));
    let mut known: HashSet<&str> = given.collect();
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            if known.contains(output.as_str()) || producer.insert(output, index).is_some() {
                return Err(OnnxError::Twice { value: output.clone() });
            }
        }
    }
    // Depth first, each node behind its inputs' producers. A node is `Open` while those are being placed.
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Placed,
    }
    let mut state = vec![State::New; graph.node.len()];
    let mut order = Vec::with_capacity(graph.node.len());
    for start in 0..graph.node.len() {
        let mut stack = vec![start];
        while let Some(&index) = stack.last() {
            let node = &graph.node[index];
            if state[index] != State::New {
                stack.pop();
                if state[index] == State::Open {
                    state[index] = State::Placed;
                    order.push(index);
                }
                continue;
            }
            state[index] = State::Open;
            for input in node.input.iter().filter(|input| !input.is_empty() && !known.contains(input.as_str())) {
                let Some(&from) = producer.get(input.as_str()) else {
                    return Err(OnnxError::Undefined { node: node_name(node).to_owned(), value: input.clone() });
                };
                match state[from] {
                    State::New => stack.push(from),
                    State::Open => return Err(OnnxError::Cycle { node: node_name(node).to_owned() }),
                    State::Placed => {}
                }
            }
        }
    }
    known.clear();
    let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node = order.into_iter().filter_map(|index| nodes[index].take()).collect();
    Ok(())
}

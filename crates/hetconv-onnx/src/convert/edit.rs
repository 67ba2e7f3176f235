//! The edit of a file's bytes.

use std::collections::{HashMap, HashSet};

use prost::bytes::Bytes;

use crate::OnnxError;
use crate::export::SIZE_LIMIT;
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::wire::{self, fields};
use crate::writer::constant_info;

/// Field numbers of a model and of a graph.
const MODEL_GRAPH: u32 = 7;
const GRAPH_NODE: u32 = 1;
const GRAPH_INITIALIZER: u32 = 5;
const GRAPH_INPUT: u32 = 11;

/// The first version of the format in which an initializer need not be an input.
const FREE_INITIALIZERS: i64 = 4;

/// The file with some nodes, by number, replaced by others, and initializers added; initializers, and nodes of constants,
/// that the replaced nodes alone read are left out.
pub(super) fn edit(
    bytes: &Bytes,
    graph: &GraphProto,
    mut replaced: HashMap<usize, Vec<NodeProto>>,
    added: Vec<TensorProto>,
    ir_version: i64,
) -> Result<Vec<u8>, OnnxError> {
    let unused = unused_weights(graph, &replaced);
    let mut model = Vec::new();
    let mut edited = Vec::new();
    let mut nodes = 0..;
    let (mut initializers, mut inputs) = (graph.initializer.iter(), graph.input.iter());
    let all = fields(bytes)?;
    for field in &all {
        if field.tag != MODEL_GRAPH {
            model.extend_from_slice(&field.bytes);
            continue;
        }
        // A message in several pieces is one of all their fields.
        for field in fields(field.payload()?)? {
            let dropped = match field.tag {
                GRAPH_NODE => {
                    let index = nodes.next().unwrap_or(usize::MAX);
                    if let Some(nodes) = replaced.remove(&index) {
                        nodes.iter().for_each(|node| wire::put(GRAPH_NODE, node, &mut edited));
                        continue;
                    }
                    graph.node.get(index).is_some_and(|node| {
                        node.op_type() == "Constant"
                            && node.output.iter().all(|output| unused.contains(output.as_str()))
                    })
                }
                GRAPH_INITIALIZER => initializers.next().is_some_and(|tensor| unused.contains(tensor.name())),
                GRAPH_INPUT => inputs.next().is_some_and(|input| unused.contains(input.name())),
                _ => false,
            };
            if !dropped {
                edited.extend_from_slice(&field.bytes);
            }
        }
    }
    for tensor in &added {
        wire::put(GRAPH_INITIALIZER, tensor, &mut edited);
        if ir_version < FREE_INITIALIZERS {
            wire::put(GRAPH_INPUT, &constant_info(tensor), &mut edited);
        }
    }
    wire::put_bytes(MODEL_GRAPH, &edited, &mut model);
    if model.len() > SIZE_LIMIT {
        return Err(OnnxError::TooLarge { bytes: model.len(), limit: SIZE_LIMIT });
    }
    Ok(model)
}

/// The weights and biases of replaced convolutions that nothing reads any more.
fn unused_weights<'a>(graph: &'a GraphProto, replaced: &HashMap<usize, Vec<NodeProto>>) -> HashSet<&'a str> {
    let weights = |index: &usize| graph.node.get(*index).and_then(|node| node.input.get(1..)).unwrap_or_default();
    let mut unused: HashSet<&str> = replaced.keys().flat_map(weights).map(String::as_str).collect();
    for output in &graph.output {
        unused.remove(output.name());
    }
    let kept = graph.node.iter().enumerate().filter(|(index, _)| !replaced.contains_key(index)).map(|(_, node)| node);
    let mut nodes: Vec<&NodeProto> = kept.chain(replaced.values().flatten()).collect();
    while let Some(node) = nodes.pop() {
        for input in &node.input {
            unused.remove(input.as_str());
        }
        for graph in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            nodes.extend(&graph.node);
            for output in &graph.output {
                unused.remove(output.name());
            }
        }
    }
    unused
}

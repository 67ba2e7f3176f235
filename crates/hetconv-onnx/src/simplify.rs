//! A graph without what does nothing: gathers of gathers, gathers that leave everything in place, sums of one operand,
//! nodes that no output needs.

use std::collections::HashSet;

use hetconv_graph::{ConvKind, Graph, Node, Op, ValueId, Weights};

/// Leaves nodes out and joins gathers of a valid graph; what it computes stays the same.
pub(crate) fn simplify(graph: &mut Graph, weights: &mut Weights) {
    let mut stands_for: Vec<ValueId> = (0..graph.nodes.len()).collect();
    let Ok(shapes) = graph.shapes() else { return };
    let mut alone = alone(graph);
    for id in 0..graph.nodes.len() {
        for input in &mut graph.nodes[id].inputs {
            *input = stands_for[*input];
        }
        join_gathers(graph, &mut alone, id);
        let Some(&input) = graph.nodes[id].inputs.first() else { continue };
        let bypassed = match &graph.nodes[id].op {
            Op::Add | Op::Concat => graph.nodes[id].inputs.len() == 1,
            Op::Gather { channels, stride: 1 } => {
                let all = channels.len() == shapes[input].channels();
                let in_place = all && channels.iter().copied().eq((0..channels.len() as u32).map(Some));
                let filters = if in_place || !alone[input] { None } else { permutation(channels) };
                in_place || filters.is_some_and(|filters| permute_filters(&mut graph.nodes[input], weights, &filters))
            }
            _ => false,
        };
        if bypassed {
            stands_for[id] = input;
            // Who read the node reads its input now.
            alone[input] &= alone[id];
        }
    }
    graph.outputs.iter_mut().for_each(|output| *output = stands_for[*output]);
    drop_dead(graph, weights);
}

/// For every value, whether one node reads it once and no output is it.
pub(crate) fn alone(graph: &Graph) -> Vec<bool> {
    let readers = graph.readers();
    (0..graph.nodes.len()).map(|value| readers.only(value).is_some()).collect()
}

/// Makes a gather read what the gather before it reads.
fn join_gathers(graph: &mut Graph, alone: &mut [bool], id: ValueId) {
    let Op::Gather { channels, stride } = &graph.nodes[id].op else { return };
    let skipped = graph.nodes[id].inputs[0];
    let before = &graph.nodes[skipped];
    let Op::Gather { channels: first, stride: first_stride } = &before.op else { return };
    let Some(stride) = stride.checked_mul(*first_stride) else { return };
    let channels = channels.iter().map(|channel| channel.and_then(|channel| first[channel as usize])).collect();
    let inputs = before.inputs.clone();
    alone[inputs[0]] &= alone[skipped];
    graph.nodes[id].op = Op::Gather { channels, stride };
    graph.nodes[id].inputs = inputs;
}

/// The channels, if each stands there once.
fn permutation(channels: &[Option<u32>]) -> Option<Vec<usize>> {
    let mut seen = vec![false; channels.len()];
    let mut once = |channel: &Option<u32>| {
        let channel = (*channel)? as usize;
        (!std::mem::replace(seen.get_mut(channel)?, true)).then_some(channel)
    };
    channels.iter().map(&mut once).collect()
}

/// Reorders the filters of a standard or HetConv layer; whether it is one.
fn permute_filters(node: &mut Node, weights: &mut Weights, filters: &[usize]) -> bool {
    let Op::Conv2d { kind, out_channels, .. } = &mut node.op else { return false };
    if *out_channels != filters.len() {
        return false;
    }
    match kind {
        ConvKind::Standard => {}
        ConvKind::Het(pattern) => {
            let classes = filters.iter().map(|&filter| pattern.filter_classes()[filter]).collect();
            let Some(permuted) = crate::layer::simplest_pattern(pattern.channel_classes().to_vec(), classes) else {
                return false;
            };
            *pattern = permuted;
        }
        ConvKind::Grouped(_) => return false,
    }
    for suffix in ["weight", "bias", "center", "ring"] {
        let Some(tensor) = weights.get_mut(&format!("{}.{suffix}", node.name)) else { continue };
        let row = tensor.data.len() / filters.len();
        tensor.data = filters.iter().flat_map(|&filter| tensor.data[filter * row..][..row].to_vec()).collect();
    }
    true
}

/// Removes the nodes that no output needs, and their weights. Inputs stay.
fn drop_dead(graph: &mut Graph, weights: &mut Weights) {
    let left = graph.up_to(&graph.outputs);
    let names: HashSet<&str> = left.nodes.iter().map(|node| node.name.as_str()).collect();
    for node in graph.nodes.iter().filter(|node| !names.contains(node.name.as_str())) {
        remove_weights(node, weights);
    }
    *graph = left;
}

/// Removes all tensors of a node.
pub(crate) fn remove_weights(node: &Node, weights: &mut Weights) {
    for suffix in ["weight", "bias", "center", "ring", "running_mean", "running_var"] {
        weights.remove(&format!("{}.{suffix}", node.name));
    }
}

//! Squeeze-and-excitation, from the structure of a graph.

use std::collections::HashSet;

use hetconv_core::Conv2dGeometry;

use crate::rewrite::{Rebuild, following_pointwise};
use crate::{Activation, ConvKind, Fault, Graph, GraphError, Op, Shape, ValueId};

/// Adds squeeze-and-excitation: each channel of an image is scaled by a number in (0, 1) computed from the means of all
/// channels (global pool, 1×1 convolution C→⌈C/reduction⌉, ReLU, 1×1 convolution back to C, sigmoid). The paper's
/// reduction is 8.
///
/// Where: in a network with residual blocks, on the residual branch right before every [`Op::Add`]; that is the operand
/// with the most convolutions behind it, if it comes from a convolution and its batch-norm. In a network without, after
/// the batch-norm of every convolution; a grouped convolution followed by a pointwise one counts as one with it. The new
/// nodes are called `CONV.se.pool`, `.reduce`, `.relu`, `.expand`, `.sigmoid` and `.scale`; a second batch-norm of the same
/// convolution gives them its own name.
///
/// # Errors
/// A graph that is not valid, or a reduction of 0.
pub fn squeeze_excite(graph: &Graph, reduction: usize) -> Result<Graph, GraphError> {
    graph.validate()?;
    let shapes = graph.shapes()?;
    let has_blocks = graph.nodes.iter().any(|node| matches!(node.op, Op::Add));
    let places = if has_blocks { residual_branches(graph) } else { normalised_convolutions(graph) };
    let mut rebuild = Rebuild::new(graph);
    let mut named = HashSet::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        let Some(conv) = places.contains(&id).then(|| &graph.nodes[node.inputs[0]].name) else {
            rebuild.keep(node);
            continue;
        };
        if reduction == 0 {
            return Err(Fault::Zero("the reduction of squeeze-and-excitation").at(conv));
        }
        let Shape::Image { channels, .. } = shapes[id] else {
            rebuild.keep(node);
            continue;
        };
        let squeezed = channels.div_ceil(reduction);
        let pointwise = |in_channels: usize, out_channels: usize| Op::Conv2d {
            in_channels,
            out_channels,
            geometry: Conv2dGeometry::same(1, 1),
            kind: ConvKind::Standard,
            bias: true,
        };
        let inputs = node.inputs.iter().map(|&input| rebuild.new_id(input)).collect();
        let image = rebuild.push(node.name.clone(), node.op.clone(), inputs);
        let stem = if named.insert(conv) { conv } else { &node.name };
        let gate = [
            ("pool", Op::GlobalAvgPool),
            ("reduce", pointwise(channels, squeezed)),
            ("relu", Op::Activation { function: Activation::Relu }),
            ("expand", pointwise(squeezed, channels)),
            ("sigmoid", Op::Activation { function: Activation::Sigmoid }),
        ];
        let mut x = image;
        for (part, op) in gate {
            x = rebuild.push(format!("{stem}.se.{part}"), op, vec![x]);
        }
        let scaled = rebuild.push(format!("{stem}.se.scale"), Op::Mul, vec![image, x]);
        rebuild.produced(scaled);
    }
    rebuild.finish()
}

/// Whether a value is the batch-norm of a convolution's result.
fn is_normalised_convolution(graph: &Graph, id: ValueId) -> bool {
    let node = &graph.nodes[id];
    matches!(node.op, Op::BatchNorm { .. }) && matches!(graph.nodes[node.inputs[0]].op, Op::Conv2d { .. })
}

/// The batch-norms that end the residual branches.
fn residual_branches(graph: &Graph) -> HashSet<ValueId> {
    let mut depth = vec![0_usize; graph.nodes.len()];
    let mut ends = HashSet::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        let before = node.inputs.iter().map(|&input| depth[input]).max().unwrap_or(0);
        depth[id] = before + usize::from(matches!(node.op, Op::Conv2d { .. }));
        if matches!(node.op, Op::Add) {
            // The first of the deepest, so that the choice does not depend on anything but the graph.
            let deepest = node.inputs.iter().copied().find(|&input| depth[input] == before);
            ends.extend(deepest.filter(|&input| is_normalised_convolution(graph, input)));
        }
    }
    ends
}

/// The batch-norms of all convolutions, but for grouped ones that a pointwise one completes.
fn normalised_convolutions(graph: &Graph) -> HashSet<ValueId> {
    let readers = graph.readers();
    let completed = |conv: ValueId| match graph.nodes[conv].op {
        Op::Conv2d { kind: ConvKind::Grouped(groups), .. } if groups > 1 => {
            following_pointwise(graph, &readers, conv).is_some()
        }
        _ => false,
    };
    (0..graph.nodes.len())
        .filter(|&id| is_normalised_convolution(graph, id) && !completed(graph.nodes[id].inputs[0]))
        .collect()
}

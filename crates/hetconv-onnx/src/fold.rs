//! Batch-norms behind a convolution or linear layer, folded into its weights.

use hetconv_graph::{ChannelAffine, Graph, Node, Op, ValueId, WeightTensor, Weights};

/// The same function with every batch-norm that alone reads a convolution or linear layer made part of it. The layer
/// keeps its name and has a bias; results differ by rounding.
///
/// The graph is valid and the weights are its own.
pub(crate) fn fold_batch_norms(graph: &Graph, weights: &Weights) -> (Graph, Weights) {
    let mut weights = weights.clone();
    let readers = graph.readers();
    let mut folded = Graph { name: graph.name.clone(), nodes: Vec::new(), outputs: Vec::new() };
    let mut new_ids: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|&input| new_ids[input]).collect();
        if let Op::BatchNorm { epsilon, .. } = node.op {
            let from = node.inputs[0];
            let alone = readers.only(from).is_some();
            let layer = &mut folded.nodes[inputs[0]];
            if alone
                && let Op::Conv2d { bias, .. } | Op::Linear { bias, .. } = &mut layer.op
                && let Some(affine) = ChannelAffine::of_batch_norm(&weights, &node.name, epsilon)
            {
                *bias = true;
                fold(&mut weights, &layer.name, &node.name, &affine);
                new_ids.push(inputs[0]);
                continue;
            }
        }
        new_ids.push(folded.nodes.len());
        folded.nodes.push(Node { name: node.name.clone(), op: node.op.clone(), inputs });
    }
    folded.outputs = graph.outputs.iter().map(|&output| new_ids[output]).collect();
    (folded, weights)
}

/// Takes a batch-norm's tensors away and gives the layer before it the same effect.
fn fold(weights: &mut Weights, layer: &str, norm: &str, affine: &ChannelAffine) {
    for suffix in ["weight", "bias", "running_mean", "running_var"] {
        weights.remove(&format!("{norm}.{suffix}"));
    }
    for suffix in ["weight", "center", "ring"] {
        if let Some(tensor) = weights.get_mut(&format!("{layer}.{suffix}")) {
            affine.scale_filters(&mut tensor.data);
        }
    }
    let bias = format!("{layer}.bias");
    let data = affine.with_bias(weights.get(&bias).map(|tensor| tensor.data.as_slice()));
    weights.insert(bias, WeightTensor { shape: vec![data.len()], data });
}

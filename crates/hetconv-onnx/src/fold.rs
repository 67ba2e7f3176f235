//! Batch-norms behind a convolution or linear layer, folded into its weights.

use std::collections::HashMap;

use hetconv_graph::{Graph, Node, Op, ValueId, WeightTensor, Weights};

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
            if alone && let Op::Conv2d { bias, .. } | Op::Linear { bias, .. } = &mut layer.op {
                *bias = true;
                let name = layer.name.clone();
                scale_layer(&mut weights, &name, &node.name, epsilon);
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
fn scale_layer(weights: &mut Weights, layer: &str, norm: &str, epsilon: f32) {
    let mut taken: HashMap<&str, Vec<f32>> = ["weight", "bias", "running_mean", "running_var"]
        .into_iter()
        .filter_map(|suffix| Some((suffix, weights.remove(&format!("{norm}.{suffix}"))?.data)))
        .collect();
    let mut take = |suffix: &str| taken.remove(suffix).unwrap_or_default();
    let (gain, shift, mean, var) = (take("weight"), take("bias"), take("running_mean"), take("running_var"));
    let deviation = |&var: &f32| (f64::from(var) + f64::from(epsilon)).sqrt();
    let scale: Vec<f64> = gain.iter().zip(&var).map(|(&gain, var)| f64::from(gain) / deviation(var)).collect();
    for suffix in ["weight", "center", "ring"] {
        let Some(tensor) = weights.get_mut(&format!("{layer}.{suffix}")) else { continue };
        let row = tensor.data.len() / scale.len();
        for (value, at) in tensor.data.iter_mut().zip(0..) {
            // Zeros stay +0, which the spare slots of a ring have to be.
            *value = if *value == 0.0 { 0.0 } else { (f64::from(*value) * scale[at / row]) as f32 };
        }
    }
    let bias = format!("{layer}.bias");
    let old = weights.remove(&bias).map_or_else(|| vec![0.0; scale.len()], |tensor| tensor.data);
    let new = |f: usize| f64::from(shift[f]) + (f64::from(old[f]) - f64::from(mean[f])) * scale[f];
    let data: Vec<f32> = (0..scale.len()).map(|f| new(f) as f32).collect();
    weights.insert(bias, WeightTensor { shape: vec![data.len()], data });
}

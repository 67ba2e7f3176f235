//! Which nodes are computed together.
//!
//! A convolution or linear layer takes in the batch-norm that alone reads it, then a sum of two values that alone reads
//! that, then an activation that alone reads that. When both operands of a sum are such layers, the later one takes it, as
//! the other is then computed already. Everything else takes in the activation that alone reads it. What is fused is
//! computed where its last node stands.

use hetconv_graph::{Activation, ChannelPlan, Graph, Op, ValueId};

/// A node and those it takes in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chain {
    pub first: ValueId,
    /// The batch-norm that is folded.
    pub norm: Option<ValueId>,
    /// The sum, and which of its two operands is the residual.
    pub sum: Option<(ValueId, usize)>,
    pub activation: Option<Activation>,
    /// The node whose value is computed.
    pub last: ValueId,
}

/// The chains of a graph, in the order in which they are computed.
pub(crate) fn chains(graph: &Graph, plan: &ChannelPlan) -> Vec<Chain> {
    let consumers = graph.consumers();
    // The one reader of a value, if it reads it once and as it is stored.
    let only_reader = |value: ValueId| match consumers[value].as_slice() {
        &[reader] if !graph.outputs.contains(&value) => {
            let side = graph.nodes[reader].inputs.iter().position(|&input| input == value)?;
            plan.gather(reader, side).is_none().then_some((reader, side))
        }
        _ => None,
    };
    let mut taken = vec![false; graph.nodes.len()];
    let mut chains = Vec::new();
    let is_layer = |&id: &ValueId| matches!(graph.nodes[id].op, Op::Conv2d { .. } | Op::Linear { .. });
    // Later layers first, so that of two in one sum the later takes it; then what no layer has taken.
    let (layers, others): (Vec<ValueId>, Vec<ValueId>) = (0..graph.nodes.len()).partition(is_layer);
    for first in layers.into_iter().rev().chain(others) {
        if taken[first] {
            continue;
        }
        let op = &graph.nodes[first].op;
        let mut chain = Chain { first, norm: None, sum: None, activation: None, last: first };
        let mut next = |last: ValueId, wanted: &dyn Fn(&Op, usize) -> bool| {
            let (reader, side) = only_reader(last)?;
            let node = &graph.nodes[reader];
            let takes = !taken[reader] && wanted(&node.op, node.inputs.len());
            taken[reader] |= takes;
            takes.then_some((reader, side))
        };
        if is_layer(&first) {
            if let Some((norm, _)) = next(chain.last, &|op, _| matches!(op, Op::BatchNorm { .. })) {
                (chain.norm, chain.last) = (Some(norm), norm);
            }
            if let Some((sum, side)) = next(chain.last, &|op, operands| *op == Op::Add && operands == 2) {
                (chain.sum, chain.last) = (Some((sum, 1 - side)), sum);
            }
        }
        let hands_over = matches!(op, Op::Input { .. } | Op::Activation { .. } | Op::Softmax | Op::Flatten);
        if !hands_over
            && let Some((reader, _)) = next(chain.last, &|op, _| matches!(op, Op::Activation { .. }))
            && let Op::Activation { function } = graph.nodes[reader].op
        {
            (chain.activation, chain.last) = (Some(function), reader);
        }
        chains.push(chain);
    }
    chains.sort_by_key(|chain| chain.last);
    chains
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetconv_graph::{ModelName, zoo};

    #[test]
    fn a_residual_network_is_convolutions_and_its_ends() {
        for name in ["resnet20_p4", "resnet34", "resnet50_p4"] {
            let graph = zoo::build(&name.parse::<ModelName>().unwrap(), 10).unwrap();
            let plan = ChannelPlan::new(&graph).unwrap();
            let chains = chains(&graph, &plan);
            let alone = |op: &Op| matches!(op, Op::BatchNorm { .. } | Op::Activation { .. } | Op::Add);
            assert!(chains.iter().all(|chain| !alone(&graph.nodes[chain.first].op)), "{name}");
            let nodes: usize = chains
                .iter()
                .map(|chain| {
                    let taken = [chain.norm.is_some(), chain.sum.is_some(), chain.activation.is_some()];
                    1 + taken.into_iter().filter(|&taken| taken).count()
                })
                .sum();
            assert_eq!(nodes, graph.nodes.len(), "{name}: every node is in one chain");
            let sums = graph.nodes.iter().filter(|node| node.op == Op::Add).count();
            assert_eq!(chains.iter().filter(|chain| chain.sum.is_some()).count(), sums, "{name}");
        }
    }
}

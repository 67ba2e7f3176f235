//! Which nodes are computed together.
//!
//! A node takes in the batch-norm that alone reads it, then a sum of two values that alone reads that, then an activation
//! that alone reads that: those of them that whoever computes the graph can take in. When both operands of a sum could take
//! it, the later one does, as the other is then computed already. What is fused is computed where its last node stands.

use crate::graph::Readers;
use crate::{Activation, ChannelPlan, Graph, Op, ValueId};

/// A node and those it takes in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chain {
    /// The node.
    pub first: ValueId,
    /// The batch-norm.
    pub norm: Option<ValueId>,
    /// The sum, and which of its two operands is the other one.
    pub sum: Option<(ValueId, usize)>,
    /// The activation.
    pub activation: Option<Activation>,
    /// The node whose value is computed.
    pub last: ValueId,
}

/// What a node may take in.
#[derive(Clone, Copy, Debug)]
pub struct Takes {
    /// A batch-norm.
    pub norm: bool,
    /// A sum.
    pub sum: bool,
    /// Which activations.
    pub activation: fn(Activation) -> bool,
}

impl Takes {
    /// Nothing at all.
    pub const NOTHING: Self = Self { norm: false, sum: false, activation: |_| false };
}

/// A graph whose nodes are to be fused, values stored in the plan's orders.
#[derive(Clone, Debug)]
pub struct Fusion<'a> {
    graph: &'a Graph,
    orders: &'a ChannelPlan,
    readers: Readers,
}

impl<'a> Fusion<'a> {
    /// Of a valid graph and its plan.
    pub fn new(graph: &'a Graph, orders: &'a ChannelPlan) -> Self {
        Self { graph, orders, readers: graph.readers() }
    }

    /// The same, with one value more that is wanted as such.
    #[must_use]
    pub fn keeping(mut self, value: ValueId) -> Self {
        self.readers.keep(value);
        self
    }

    /// The one node that reads a value, as it is stored, and as which of its operands; `None` if others want it too.
    pub fn only_reader(&self, value: ValueId) -> Option<(ValueId, usize)> {
        let reader = self.readers.only(value)?;
        let side = self.graph.nodes[reader].inputs.iter().position(|&input| input == value)?;
        self.orders.gather(reader, side).is_none().then_some((reader, side))
    }

    /// All nodes in chains, in the order in which they are computed.
    ///
    /// # Examples
    /// ```
    /// use hetconv_graph::{ChannelPlan, Fusion, Op, Takes, zoo};
    ///
    /// let graph = zoo::build(&"resnet20".parse()?, 10)?;
    /// let orders = ChannelPlan::new(&graph)?;
    /// let all = Takes { norm: true, sum: true, activation: |_| true };
    /// let takes = |op: &Op| if matches!(op, Op::Conv2d { .. }) { all } else { Takes::NOTHING };
    /// let chains = Fusion::new(&graph, &orders).chains(takes);
    /// assert_eq!(chains.iter().filter(|chain| chain.sum.is_some()).count(), 9);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn chains(&self, takes: impl Fn(&Op) -> Takes) -> Vec<Chain> {
        let Self { graph, .. } = *self;
        let mut taken = vec![false; graph.nodes.len()];
        let mut chains = Vec::new();
        let takes = |id: ValueId| takes(&graph.nodes[id].op);
        // Those that could take a sum go first, the later before the earlier.
        let (sums, others): (Vec<ValueId>, Vec<ValueId>) = (0..graph.nodes.len()).partition(|&id| takes(id).sum);
        for first in sums.into_iter().rev().chain(others) {
            if std::mem::replace(&mut taken[first], true) {
                continue;
            }
            let mut chain = Chain { first, norm: None, sum: None, activation: None, last: first };
            let mut next = |last: ValueId, wanted: &dyn Fn(&Op, usize) -> bool| {
                let (reader, side) = self.only_reader(last)?;
                let node = &graph.nodes[reader];
                let takes = !taken[reader] && wanted(&node.op, node.inputs.len());
                taken[reader] |= takes;
                takes.then_some((reader, side))
            };
            let Takes { norm, sum, activation } = takes(first);
            if norm && let Some((norm, _)) = next(chain.last, &|op, _| matches!(op, Op::BatchNorm { .. })) {
                (chain.norm, chain.last) = (Some(norm), norm);
            }
            if sum && let Some((sum, side)) = next(chain.last, &|op, operands| *op == Op::Add && operands == 2) {
                (chain.sum, chain.last) = (Some((sum, 1 - side)), sum);
            }
            let wanted = |op: &Op, _| matches!(op, Op::Activation { function } if activation(*function));
            if let Some((reader, _)) = next(chain.last, &wanted)
                && let Op::Activation { function } = graph.nodes[reader].op
            {
                (chain.activation, chain.last) = (Some(function), reader);
            }
            chains.push(chain);
        }
        chains.sort_by_key(|chain| chain.last);
        chains
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConvKind, GraphBuilder, ModelName, zoo};
    use hetconv_core::Conv2dGeometry;

    const ALL: Takes = Takes { norm: true, sum: true, activation: |_| true };

    fn chains(graph: &Graph, takes: impl Fn(&Op) -> Takes) -> Vec<Chain> {
        Fusion::new(graph, &ChannelPlan::new(graph).unwrap()).chains(takes)
    }

    fn layers(op: &Op) -> Takes {
        if matches!(op, Op::Conv2d { .. } | Op::Linear { .. }) { ALL } else { Takes::NOTHING }
    }

    fn norms(op: &Op) -> Takes {
        let takes = Takes { sum: true, activation: |function| function == Activation::Relu, ..Takes::NOTHING };
        if matches!(op, Op::BatchNorm { .. }) { takes } else { Takes::NOTHING }
    }

    /// What nobody needs: a node that starts a chain could be taken in by another.
    fn everything(_: &Op) -> Takes {
        ALL
    }

    #[test]
    fn every_node_is_in_one_chain() {
        for name in ["resnet20_p4", "resnet34", "resnet50_p4", "mobilenet-cifar", "vgg16-cifar_p4_se"] {
            let graph = zoo::build(&name.parse::<ModelName>().unwrap(), 10).unwrap();
            for takes in [layers, norms, everything] {
                let nodes = |chain: Chain| {
                    let others = [chain.norm, chain.sum.map(|(sum, _)| sum), chain.activation.map(|_| chain.last)];
                    [chain.first].into_iter().chain(others.into_iter().flatten())
                };
                let mut all: Vec<ValueId> = chains(&graph, takes).into_iter().flat_map(nodes).collect();
                all.sort_unstable();
                assert_eq!(all, (0..graph.nodes.len()).collect::<Vec<_>>(), "{name}");
            }
        }
    }

    #[test]
    fn a_residual_network_is_its_layers_or_its_batch_norms_and_convolutions() {
        for name in ["resnet20_p4", "resnet34", "resnet50_p4"] {
            let graph = zoo::build(&name.parse::<ModelName>().unwrap(), 10).unwrap();
            let sums = graph.nodes.iter().filter(|node| node.op == Op::Add).count();
            for takes in [layers, norms] {
                let chains = chains(&graph, takes);
                let starts = |chain: &&Chain| matches!(graph.nodes[chain.first].op, Op::Add | Op::Activation { .. });
                assert_eq!(chains.iter().filter(starts).count(), 0, "{name}");
                assert_eq!(chains.iter().filter(|chain| chain.sum.is_some()).count(), sums, "{name}");
            }
        }
    }

    #[test]
    fn of_two_in_a_sum_the_later_takes_it() {
        let mut b = GraphBuilder::new("two");
        let x = b.input("image", [4, 2, 2]);
        let first = b.batch_norm("first", x);
        let second = b.batch_norm("second", x);
        let sum = b.add("sum", &[second, first]);
        let relu = b.relu("relu", sum);
        let y = b.global_avg_pool("pool", relu);
        let y = b.flatten("flatten", y);
        let graph = b.finish([y]).unwrap();
        let chains = chains(&graph, norms);
        let alone = |first: ValueId| Chain { first, norm: None, sum: None, activation: None, last: first };
        assert!(chains.contains(&alone(first)));
        let (sum, activation) = (Some((sum, 1)), Some(Activation::Relu));
        assert!(chains.contains(&Chain { sum, activation, last: relu, ..alone(second) }));
    }

    #[test]
    fn a_value_that_others_want_is_left_alone() {
        let mut b = GraphBuilder::new("shared");
        let x = b.input("image", [4, 2, 2]);
        let norm = b.batch_norm("norm", x);
        let twice = b.add("twice", &[norm, norm]);
        let read = b.batch_norm("read", twice);
        let relu = b.relu("relu", read);
        let sum = b.add("sum", &[relu, read]);
        let conv = b.conv("conv", sum, 4, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
        let kept = b.batch_norm("kept", conv);
        let last = b.relu("last", kept);
        let y = b.global_avg_pool("pool", last);
        let y = b.flatten("flatten", y);
        let graph = b.finish([y]).unwrap();
        let orders = ChannelPlan::new(&graph).unwrap();
        let ends = |fusion: Fusion<'_>, first: ValueId| {
            let chains = fusion.chains(norms);
            chains.iter().find(|chain| chain.first == first).unwrap().last
        };
        let fusion = Fusion::new(&graph, &orders);
        assert_eq!([norm, read].map(|first| ends(fusion.clone(), first)), [norm, read]);
        assert_eq!(ends(fusion.clone(), kept), last);
        assert_eq!(ends(fusion.clone().keeping(kept), kept), kept);
        assert_eq!([fusion.only_reader(norm), fusion.only_reader(conv)], [None, Some((kept, 0))]);
    }
}

//! Which values are stored with their pixels further apart than they have channels.
//!
//! Pixels of a multiple of 1,024 channels are all in one set of a core's first-level cache, where those that a tile reads
//! would drive each other out. A line more between them prevents that, where everybody who writes or reads the value can
//! do with it: convolutions write it, and pointwise ones, sums within convolutions, selections and global averages read it.

use std::collections::{HashMap, HashSet};

use hetconv_graph::{Chain, ChannelPlan, Graph, Op, Shape, ValueId};
use hetconv_kernels::cache::spread;

/// Whether a node is a convolution whose tiles read or write some pixels at a time.
pub(crate) fn is_tiled(op: &Op) -> bool {
    match op {
        Op::Conv2d { kind, in_channels, out_channels, .. } => !kind.is_depthwise(*in_channels, *out_channels),
        _ => false,
    }
}

/// Whether a node is such a convolution and reads one pixel for each of its own.
pub(crate) fn is_pointwise(op: &Op) -> bool {
    matches!(op, Op::Conv2d { geometry, .. } if geometry.kernel == [1; 2] && geometry.padding == [0; 4]) && is_tiled(op)
}

/// The values whose pixels lie apart, each by the last node of its chain; those of `segments` do not.
pub(crate) fn values_apart(
    graph: &Graph,
    shapes: &[Shape],
    orders: &ChannelPlan,
    chains: &[Chain],
    is_segment: impl Fn(ValueId) -> bool,
) -> HashSet<ValueId> {
    let op = |node: ValueId| &graph.nodes[node].op;
    let gains = |value: ValueId| {
        let channels = shapes[value].channels();
        spread(channels, shapes[value].size().iter().product()) > channels
    };
    let written = chains.iter().filter(|chain| is_tiled(op(chain.first))).map(|chain| chain.last);
    let mut apart: HashSet<ValueId> = written.filter(|&value| gains(value) && !is_segment(value)).collect();
    // What is brought into another order is read by a selection.
    let reads_any = |node: ValueId, side: usize| {
        is_pointwise(op(node)) || *op(node) == Op::GlobalAvgPool || orders.gather(node, side).is_some()
    };
    for chain in chains {
        for (side, input) in graph.nodes[chain.first].inputs.iter().enumerate() {
            if !reads_any(chain.first, side) {
                apart.remove(input);
            }
        }
    }
    for output in &graph.outputs {
        apart.remove(output);
    }
    // A sum's operand is laid out as its result: both lie apart, or neither.
    let mut alike: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
    for chain in chains {
        let Some((sum, side)) = chain.sum else { continue };
        if orders.gather(sum, side).is_some() {
            apart.remove(&chain.last);
            continue;
        }
        let other = graph.nodes[sum].inputs[side];
        alike.entry(chain.last).or_default().push(other);
        alike.entry(other).or_default().push(chain.last);
    }
    let mut not_apart: Vec<ValueId> = alike.keys().copied().filter(|value| !apart.contains(value)).collect();
    while let Some(value) = not_apart.pop() {
        not_apart.extend(alike[&value].iter().filter(|other| apart.remove(other)));
    }
    apart
}

#[cfg(test)]
mod tests {
    use hetconv_core::{Conv2dGeometry, ConvKind};
    use hetconv_graph::{Fusion, GraphBuilder, Takes};

    use super::*;

    /// The names of the values that lie apart in a residual block of 1,024 channels, behind which `more` stands.
    fn found(more: impl FnOnce(&mut GraphBuilder, ValueId) -> ValueId) -> Vec<String> {
        let mut b = GraphBuilder::new("block");
        let pointwise = Conv2dGeometry::same(1, 1);
        let x = b.input("image", [3, 4, 4]);
        let x = b.conv("stem", x, 1024, Conv2dGeometry::same(3, 1), ConvKind::Standard, true);
        let y = b.conv("narrow", x, 16, pointwise.clone(), ConvKind::Standard, true);
        let y = b.conv("wide", y, 1024, pointwise, ConvKind::Standard, true);
        let x = b.add("sum", &[x, y]);
        let x = more(&mut b, x);
        let graph = b.finish([x]).unwrap();
        let (shapes, orders) = (graph.shapes().unwrap(), ChannelPlan::new(&graph).unwrap());
        let all = Takes { norm: true, sum: true, activation: |_| true };
        let takes = |op: &Op| if is_tiled(op) { all } else { Takes::NOTHING };
        let chains = Fusion::new(&graph, &orders).chains(takes);
        let apart = values_apart(&graph, &shapes, &orders, &chains, |_| false);
        let mut names: Vec<String> = apart.into_iter().map(|value| graph.nodes[value].name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn values_lie_apart_where_everybody_can_do_with_it() {
        let conv = |b: &mut GraphBuilder, x, kernel| {
            b.conv("last", x, 8, Conv2dGeometry::same(kernel, 1), ConvKind::Standard, true)
        };
        assert_eq!(found(|b, x| b.global_avg_pool("pool", x)), ["stem", "sum"]);
        assert_eq!(found(|b, x| conv(b, x, 1)), ["stem", "sum"]);
        // One reader that cannot, and neither can what is added.
        assert!(found(|b, x| conv(b, x, 3)).is_empty());
        assert!(found(|b, x| b.max_pool("pool", x, Conv2dGeometry::same(3, 1))).is_empty());
        assert!(found(|_, x| x).is_empty());
    }
}

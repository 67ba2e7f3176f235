//! The channel-order pass: in which order every value's channels are stored.
//!
//! HetConv kernels are dense when the channels of a class stand side by side, so each HetConv layer wants its input
//! ordered by channel class and produces its output ordered by filter class. The order belongs to the value:
//! elementwise operators hand it on, standard and linear layers absorb any order into their weights, grouped
//! convolutions want the natural one, concatenation lines up segments. Values tied together by elementwise operators
//! vote on one order; who cannot have it reorders its operand, and says so by a *gather*.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use hetconv_core::{Arrangement, ChannelOrder, HetPattern};

use crate::sets::Sets;
use crate::{ConvKind, Graph, GraphError, Op, Shape, ValueId};

/// The stored channel order of every value of a graph, and the gathers between them.
///
/// To run a graph by a plan: before node `n` reads its `i`-th input, apply [`ChannelPlan::gather`] if there is one; the
/// operand's channels are then in [`ChannelPlan::input_order`], and the result must be in [`ChannelPlan::order`].
/// Convolutions, linear layers and batch-norm permute their weights by the two; [`Op::Gather`] reads by
/// [`ChannelPlan::sources`]; nothing else notices. At the end apply [`ChannelPlan::output_gather`].
///
/// What is guaranteed: the input order of a HetConv layer has every channel class in one run, its output order every
/// filter class ([`is_contiguous`]); elementwise operators, pooling and depthwise convolutions have equal input and
/// output orders; other grouped convolutions, `Softmax`, `Flatten` of more than one pixel, and the network's inputs are
/// in natural order.
#[derive(Clone, Debug)]
pub struct ChannelPlan {
    orders: Vec<ChannelOrder>,
    reads: Vec<Vec<Read>>,
    sources: Vec<Option<Vec<Option<u32>>>>,
    output_gathers: Vec<Option<Vec<u32>>>,
}

/// How one operand is read.
#[derive(Clone, Debug)]
struct Read {
    order: ChannelOrder,
    gather: Option<Vec<u32>>,
}

impl Read {
    fn new(stored: &ChannelOrder, wanted: ChannelOrder) -> Self {
        let gather = (*stored != wanted).then(|| wanted.gather_from(stored));
        Self { order: wanted, gather }
    }
}

/// What a set of values is asked to be ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Vote<'a> {
    Natural,
    /// Every class in one run; `interleaved` if [`ChannelOrder::interleaved`] achieves that.
    Classes {
        classes: &'a [u32],
        interleaved: bool,
    },
}

impl Vote<'_> {
    fn accepts(&self, order: &ChannelOrder) -> bool {
        match self {
            Vote::Natural => order.is_natural(),
            Vote::Classes { classes, .. } => is_contiguous(order, classes),
        }
    }

    /// The order this vote alone would choose.
    fn ideal(&self, channels: usize) -> ChannelOrder {
        match self {
            Vote::Natural => ChannelOrder::natural(channels),
            Vote::Classes { interleaved: true, .. } => ChannelOrder::interleaved(channels),
            Vote::Classes { classes, .. } => ChannelOrder::by_class(classes),
        }
    }
}

/// Whether in this order the channels of every class stand side by side.
///
/// ```
/// use hetconv_core::ChannelOrder;
/// use hetconv_graph::is_contiguous;
/// let classes = [0, 1, 0, 1];
/// assert!(!is_contiguous(&ChannelOrder::natural(4), &classes));
/// assert!(is_contiguous(&ChannelOrder::interleaved(4), &classes));
/// ```
pub fn is_contiguous(order: &ChannelOrder, classes: &[u32]) -> bool {
    let mut finished = HashSet::new();
    let mut current = None;
    order.len() == classes.len()
        && order.channels().iter().all(|&channel| {
            let class = classes[channel as usize];
            current == Some(class) || {
                current = Some(class);
                finished.insert(class)
            }
        })
}

impl ChannelPlan {
    /// Chooses the orders for a graph.
    ///
    /// # Errors
    /// The fault [`Graph::validate`] finds.
    pub fn new(graph: &Graph) -> Result<Self, GraphError> {
        graph.validate()?;
        let shapes = graph.shapes()?;
        let wishes = agreed_orders(graph, &shapes);
        let nodes = graph.nodes.len();
        let mut plan = Self {
            orders: Vec::with_capacity(nodes),
            reads: Vec::with_capacity(nodes),
            sources: vec![None; nodes],
            output_gathers: Vec::new(),
        };
        for (id, wish) in wishes.into_iter().enumerate() {
            plan.add_node(graph, &shapes, id, wish);
        }
        let natural = |&output: &ValueId| {
            Read::new(&plan.orders[output], ChannelOrder::natural(shapes[output].channels())).gather
        };
        plan.output_gathers = graph.outputs.iter().map(natural).collect();
        Ok(plan)
    }

    /// The order in which a value's channels (or features) are stored.
    ///
    /// # Panics
    /// If the graph has no such value.
    pub fn order(&self, value: ValueId) -> &ChannelOrder {
        &self.orders[value]
    }

    /// The order in which a node reads an input, after the gather if there is one.
    ///
    /// # Panics
    /// If the graph has no such node or the node no such input.
    pub fn input_order(&self, node: ValueId, input: usize) -> &ChannelOrder {
        &self.reads[node][input].order
    }

    /// For every position of the operand, the position of the stored value to read; `None` if the value can be read as
    /// it is stored.
    ///
    /// # Panics
    /// If the graph has no such node or the node no such input.
    pub fn gather(&self, node: ValueId, input: usize) -> Option<&[u32]> {
        self.reads[node][input].gather.as_deref()
    }

    /// Of an [`Op::Gather`]: for every stored position of its result, the stored position of its input to read, or
    /// `None` for zeros. `None` for any other node.
    ///
    /// # Panics
    /// If the graph has no such node.
    pub fn sources(&self, node: ValueId) -> Option<&[Option<u32>]> {
        self.sources[node].as_deref()
    }

    /// What brings the graph's `index`-th output into natural order; `None` if it is.
    ///
    /// # Panics
    /// If the graph has no such output.
    pub fn output_gather(&self, index: usize) -> Option<&[u32]> {
        self.output_gathers[index].as_deref()
    }

    /// Number of gathers, those of outputs included.
    pub fn gathers(&self) -> usize {
        let reads = self.reads.iter().flatten().filter(|read| read.gather.is_some()).count();
        reads + self.output_gathers.iter().flatten().count()
    }

    /// Settles how a node reads and in which order it produces; `wish` is what its set agreed on.
    fn add_node(&mut self, graph: &Graph, shapes: &[Shape], id: ValueId, wish: ChannelOrder) {
        let node = &graph.nodes[id];
        let stored: Vec<ChannelOrder> = node.inputs.iter().map(|&input| self.orders[input].clone()).collect();
        let natural = |value: ValueId| ChannelOrder::natural(shapes[value].channels());
        let (wanted, order): (Vec<ChannelOrder>, ChannelOrder) = match &node.op {
            Op::Input { .. } => (Vec::new(), natural(id)),
            Op::Conv2d { kind: ConvKind::Het(pattern), .. } => {
                let [channels, filters] = votes(pattern);
                let settle = |vote: Vote<'_>, order: ChannelOrder| {
                    if vote.accepts(&order) { order } else { vote.ideal(order.len()) }
                };
                (vec![settle(channels, stored[0].clone())], settle(filters, wish))
            }
            op if needs_natural(op, shapes[id], &node.inputs, shapes) => (vec![natural(node.inputs[0])], natural(id)),
            Op::Conv2d { kind: ConvKind::Grouped(2..), .. } => (stored.clone(), stored[0].clone()),
            Op::Conv2d { .. } | Op::Linear { .. } => (stored.clone(), wish),
            Op::Gather { channels, .. } => {
                let positions = stored[0].positions();
                let source = |&out: &u32| channels[out as usize].map(|channel| positions[channel as usize]);
                self.sources[id] = Some(wish.channels().iter().map(source).collect());
                (stored.clone(), wish)
            }
            Op::Concat => {
                let order = concatenated(&stored);
                (stored.clone(), order)
            }
            Op::BatchNorm { .. }
            | Op::Activation { .. }
            | Op::Add
            | Op::Mul
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::GlobalAvgPool
            | Op::Flatten
            | Op::Softmax => {
                // What no operand has is no use insisting on.
                let order = if stored.contains(&wish) { wish } else { stored[0].clone() };
                (vec![order.clone(); stored.len()], order)
            }
        };
        self.reads.push(stored.iter().zip(wanted).map(|(stored, wanted)| Read::new(stored, wanted)).collect());
        self.orders.push(order);
    }
}

/// The votes of a HetConv layer on its input and on its output.
fn votes(pattern: &HetPattern) -> [Vote<'_>; 2] {
    let interleaved = match pattern.arrangement() {
        Arrangement::Shifted { parts } => parts.is_power_of_two() && *parts <= 64,
        Arrangement::Blocked { .. } | Arrangement::Assigned { .. } => false,
    };
    [pattern.channel_classes(), pattern.filter_classes()].map(|classes| Vote::Classes { classes, interleaved })
}

/// Whether an operator of one input reads and produces natural order only.
fn needs_natural(op: &Op, output: Shape, inputs: &[ValueId], shapes: &[Shape]) -> bool {
    match op {
        Op::Conv2d { in_channels, out_channels, kind: kind @ ConvKind::Grouped(2..), .. } => {
            !kind.is_depthwise(*in_channels, *out_channels)
        }
        Op::Flatten => output.channels() != shapes[inputs[0]].channels(),
        Op::Softmax => true,
        _ => false,
    }
}

/// Whether an operator's result has its operands' channels in their order.
fn hands_on(op: &Op) -> bool {
    match op {
        Op::BatchNorm { .. }
        | Op::Activation { .. }
        | Op::Add
        | Op::Mul
        | Op::MaxPool { .. }
        | Op::AvgPool { .. }
        | Op::GlobalAvgPool
        | Op::Flatten => true,
        Op::Conv2d { in_channels, out_channels, kind, .. } => kind.is_depthwise(*in_channels, *out_channels),
        Op::Input { .. } | Op::Concat | Op::Linear { .. } | Op::Softmax | Op::Gather { .. } => false,
    }
}

/// Values whose channels stand for each other, because elementwise operators, pooling and the like tie them together; the
/// first of them is the root.
fn tied(graph: &Graph, shapes: &[Shape]) -> Sets {
    let mut sets = Sets::default();
    sets.add(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        if hands_on(&node.op) && !needs_natural(&node.op, shapes[id], &node.inputs, shapes) {
            for &input in &node.inputs {
                let roots = [id, input].map(|value| sets.find(value));
                sets.unite(roots[0].min(roots[1]), roots[0].max(roots[1]));
            }
        }
    }
    sets
}

impl Graph {
    /// For every value, the first of those it is tied to: channel `c` of one is the same as channel `c` of the other, as
    /// far as the order in which channels are stored goes, because only operators that hand channels on lie between.
    ///
    /// # Errors
    /// The fault [`Graph::validate`] finds.
    pub fn tied_values(&self) -> Result<Vec<ValueId>, GraphError> {
        self.validate()?;
        let mut sets = tied(self, &self.shapes()?);
        Ok((0..self.nodes.len()).map(|id| sets.find(id)).collect())
    }
}

/// The order each value's set agrees on: the one that satisfies most votes.
fn agreed_orders(graph: &Graph, shapes: &[Shape]) -> Vec<ChannelOrder> {
    let nodes = graph.nodes.len();
    let mut sets = tied(graph, shapes);
    let mut votes_of: Vec<Vec<Vote<'_>>> = vec![Vec::new(); nodes];
    for (id, node) in graph.nodes.iter().enumerate() {
        match &node.op {
            Op::Input { .. } => votes_of[sets.find(id)].push(Vote::Natural),
            Op::Conv2d { kind: ConvKind::Het(pattern), .. } => {
                let [channels, filters] = votes(pattern);
                votes_of[sets.find(node.inputs[0])].push(channels);
                votes_of[sets.find(id)].push(filters);
            }
            op if needs_natural(op, shapes[id], &node.inputs, shapes) => {
                votes_of[sets.find(node.inputs[0])].push(Vote::Natural);
                votes_of[sets.find(id)].push(Vote::Natural);
            }
            _ => {}
        }
    }
    for &output in &graph.outputs {
        votes_of[sets.find(output)].push(Vote::Natural);
    }
    let mut agreed: Vec<Option<ChannelOrder>> = vec![None; nodes];
    (0..nodes)
        .map(|id| {
            let set = sets.find(id);
            agreed[set].get_or_insert_with(|| elect(&votes_of[set], shapes[id].channels())).clone()
        })
        .collect()
}

/// The order that satisfies most votes; of equals the interleaved one, then the first voter's. Of many different votes the
/// most frequent ones alone are tried, so that time does not grow with their square.
fn elect(votes: &[Vote<'_>], channels: usize) -> ChannelOrder {
    const MOST_CANDIDATES: usize = 16;
    let mut numbers: HashMap<Vote<'_>, usize> = HashMap::new();
    let mut different: Vec<(Vote<'_>, usize)> = Vec::new();
    for &vote in votes {
        let number = *numbers.entry(vote).or_insert(different.len());
        match different.get_mut(number) {
            Some((_, count)) => *count += 1,
            None => different.push((vote, 1)),
        }
    }
    let mut tried = different.clone();
    if tried.len() > MOST_CANDIDATES {
        tried.sort_by_key(|&(_, count)| Reverse(count));
        tried.truncate(MOST_CANDIDATES);
    }
    // Sorting is stable, and `false` comes first.
    tried.sort_by_key(|(vote, _)| !matches!(vote, Vote::Classes { interleaved: true, .. }));
    let approval = |order: &ChannelOrder| -> usize {
        different.iter().filter(|(vote, _)| vote.accepts(order)).map(|&(_, count)| count).sum()
    };
    let candidates = tried.into_iter().map(|(vote, _)| vote.ideal(channels));
    // `max_by_key` keeps the last of equals, hence the reversal.
    candidates.rev().max_by_key(approval).unwrap_or_else(|| ChannelOrder::natural(channels))
}

/// The operands' orders one after another, each numbered on from the one before.
fn concatenated(operands: &[ChannelOrder]) -> ChannelOrder {
    let mut channels = Vec::new();
    for operand in operands {
        let offset = channels.len() as u32;
        channels.extend(operand.channels().iter().map(|channel| channel + offset));
    }
    ChannelOrder::from_channels(channels).expect("segments of permutations are a permutation")
}

//! Which channels of a network can only go together.
//!
//! A *class* is a set of channels, of one value or of several, that exist or vanish as one: what a batch-norm or a
//! depthwise convolution makes of a channel belongs to the channel, what is added or multiplied to it as well. A channel
//! that a convolution's filter makes begins a class of its own. Classes that meet others in an addition stay.

use crate::sets::Sets;
use crate::{ConvKind, Graph, Op, Shape, ValueId};

/// The classes of a network's channels.
pub(super) struct Ties {
    /// The class of every channel, or feature, of every value.
    values: Vec<Vec<usize>>,
    /// Of every class, how its filters are counted.
    roots: Vec<Root>,
}

/// What is known about a class.
#[derive(Clone, Copy, Default)]
struct Root {
    /// It holds a channel that has to stay.
    fixed: bool,
    /// Filters in it that pruning would rank; more than one means that they meet in a product.
    ranked: usize,
}

impl Ties {
    /// Of a valid graph with these shapes.
    pub fn new(graph: &Graph, shapes: &[Shape]) -> Self {
        let mut union = Union::default();
        let mut values: Vec<Vec<usize>> = Vec::with_capacity(graph.nodes.len());
        for (node, shape) in graph.nodes.iter().zip(shapes) {
            let channels = shape.channels();
            let input = |i: usize| values[node.inputs[i]].clone();
            let value = match &node.op {
                Op::Input { .. } => union.fresh(channels, Root { fixed: true, ranked: 0 }),
                op @ Op::Conv2d { in_channels, .. } if reads_one_of_several(op) => {
                    let each = channels / in_channels;
                    (0..channels).map(|filter| values[node.inputs[0]][filter / each]).collect()
                }
                // Removing a channel would leave groups of different sizes.
                Op::Conv2d { kind: ConvKind::Grouped(2..), .. } => {
                    union.fix(&values[node.inputs[0]]);
                    union.fresh(channels, Root { fixed: true, ranked: 0 })
                }
                Op::Conv2d { .. } => {
                    // What sees a single pixel, as in squeeze-and-excitation, is a linear layer by another name.
                    let ranked = usize::from(shapes[node.inputs[0]].size() != [1, 1]);
                    union.fresh(channels, Root { fixed: false, ranked })
                }
                Op::Linear { .. } => union.fresh(channels, Root::default()),
                Op::BatchNorm { .. }
                | Op::Activation { .. }
                | Op::MaxPool { .. }
                | Op::AvgPool { .. }
                | Op::GlobalAvgPool => input(0),
                Op::Add | Op::Mul => {
                    let first = input(0);
                    for &other in &node.inputs[1..] {
                        let tied = union.unite(&first, &values[other]);
                        if matches!(node.op, Op::Add) {
                            union.fix(&tied);
                        }
                    }
                    first
                }
                Op::Concat => node.inputs.iter().flat_map(|&input| values[input].clone()).collect(),
                Op::Flatten => {
                    let pixels = shapes[node.inputs[0]].size().iter().product();
                    input(0).into_iter().flat_map(|class| std::iter::repeat_n(class, pixels)).collect()
                }
                Op::Softmax => {
                    union.fix(&values[node.inputs[0]]);
                    input(0)
                }
                Op::Gather { channels, .. } => {
                    let source = |channel: &Option<u32>| match channel {
                        Some(channel) => values[node.inputs[0]][*channel as usize],
                        None => union.fresh(1, Root::default())[0],
                    };
                    channels.iter().map(source).collect()
                }
            };
            values.push(value);
        }
        graph.outputs.iter().for_each(|&output| union.fix(&values[output]));
        values.iter_mut().flatten().for_each(|class| *class = union.sets.find(*class));
        Self { values, roots: union.roots }
    }

    /// The class of every channel of a value.
    pub fn classes(&self, value: ValueId) -> &[usize] {
        &self.values[value]
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.values.len()
    }

    /// Whether a class may vanish: nothing in it has to stay, and one filter alone decides about it.
    pub fn is_free(&self, class: usize) -> bool {
        let Root { fixed, ranked } = self.roots[class];
        !fixed && ranked == 1
    }
}

/// Whether each filter of a convolution reads one channel of several.
pub(super) fn reads_one_of_several(op: &Op) -> bool {
    matches!(op, Op::Conv2d { in_channels: channels @ 2.., kind, .. } if kind.reads_one_channel(*channels))
}

/// Sets that are united, each known by one of its members.
#[derive(Default)]
struct Union {
    sets: Sets,
    /// What is known about the set a member stands for; meaningless for others.
    roots: Vec<Root>,
}

impl Union {
    /// So many new sets.
    fn fresh(&mut self, number: usize, root: Root) -> Vec<usize> {
        let added = self.sets.add(number);
        self.roots.resize(added.end, root);
        added.collect()
    }

    /// Unites two lists of sets one by one; returns those that were not one before.
    fn unite(&mut self, first: &[usize], second: &[usize]) -> Vec<usize> {
        let mut united = Vec::new();
        for (&a, &b) in first.iter().zip(second) {
            if let Some([a, b]) = self.sets.unite(a, b) {
                let Root { fixed, ranked } = self.roots[b];
                self.roots[a].fixed |= fixed;
                self.roots[a].ranked += ranked;
                united.push(a);
            }
        }
        united
    }

    fn fix(&mut self, members: &[usize]) {
        for &member in members {
            let root = self.sets.find(member);
            self.roots[root].fixed = true;
        }
    }
}

//! The paper's rewrite: standard convolutions become HetConv, or one of the alternatives it is compared with.
//!
//! A *position* is a place in a network where one spatial convolution stands: a standard convolution with K > 1, or a
//! depthwise convolution followed, through batch-norm and activation, by a pointwise one (section 4.4). Grouped and
//! depthwise convolutions alone are no positions, nor are HetConv layers.

use std::fmt;

use hetconv_core::{ArrangementKind, Conv2dGeometry};

use crate::{Activation, ConvKind, Fault, Graph, GraphError, KeptReason, Node, Op, Readers, Selection, ValueId};

/// What takes the place of a standard convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Substitution {
    /// Nothing: the network as it is.
    #[default]
    Standard,
    /// HetConv with P parts.
    Het {
        /// The paper's P.
        parts: usize,
    },
    /// HetConv with P = M in every layer, the paper's PC: each filter has one K×K kernel.
    PointwiseChannel,
    /// Grouped K×K M→M, batch-norm, ReLU, pointwise M→N: the paper's GWC followed by PWC.
    GroupPointwise {
        /// The paper's G.
        groups: usize,
    },
    /// Depthwise K×K, batch-norm, ReLU, pointwise M→N: the paper's DWC followed by PWC.
    DepthwisePointwise,
}

/// What to rewrite, and into what.
#[derive(Clone, Debug)]
pub struct RewriteOptions {
    /// What takes the place of the convolutions.
    pub substitution: Substitution,
    /// How HetConv's classes are assigned; P is reduced where it does not fit.
    pub arrangement: ArrangementKind,
    /// Which convolutions; the P of their own is that of HetConv layers.
    pub selection: Selection,
}

impl RewriteOptions {
    /// The paper's rule for this substitution: shifted, nothing excluded, the first convolution kept.
    pub fn new(substitution: Substitution) -> Self {
        Self { substitution, arrangement: ArrangementKind::default(), selection: Selection::default() }
    }
}

/// Something the rewrite did otherwise than asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteNote {
    /// The node.
    pub node: String,
    /// What happened there.
    pub kind: NoteKind,
}

/// What the rewrite did otherwise than asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// P was larger than the layer's M, or, if blocked, did not divide M and N.
    PartsReduced {
        /// The P asked for.
        asked: usize,
        /// The P used.
        used: usize,
    },
    /// G did not divide the layer's M.
    GroupsReduced {
        /// The G asked for.
        asked: usize,
        /// The G used: the greatest common divisor of both.
        used: usize,
    },
    /// HetConv needs a square kernel with a centre; the convolution stayed as it was.
    Kernel {
        /// Kernel height and width.
        kernel: [usize; 2],
    },
}

impl fmt::Display for RewriteNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node;
        match &self.kind {
            NoteKind::PartsReduced { asked, used } => write!(f, "`{node}`: P = {asked} does not fit, P = {used} used"),
            NoteKind::GroupsReduced { asked, used } => write!(f, "`{node}`: G = {asked} does not fit, G = {used} used"),
            NoteKind::Kernel { kernel: [h, w] } => {
                write!(f, "`{node}`: left as it is, because a {h}×{w} kernel is not square or has no centre")
            }
        }
    }
}

/// Replaces the convolutions of a network, position by position.
///
/// A node that stays one node keeps its name, and so do its weights; of two convolutions in place of one, the pointwise
/// one keeps the name and the K×K one is called `NAME.grouped` or `NAME.depthwise`. A depthwise and a pointwise
/// convolution that become one HetConv M→N keep the pointwise one's name and the depthwise one's kernel, stride, padding
/// and dilation; the batch-norm and activation between them vanish.
///
/// ```
/// use hetconv_graph::{RewriteOptions, Substitution, rewrite, zoo};
/// let graph = zoo::build(&"vgg16-cifar".parse()?, 10)?;
/// let (het, notes) = rewrite(&graph, &RewriteOptions::new(Substitution::Het { parts: 4 }))?;
/// assert!(notes.is_empty());
/// assert_eq!(het.cost()?.macs, 105_845_760);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A graph that is not valid, P = 0 or G = 0.
pub fn rewrite(graph: &Graph, options: &RewriteOptions) -> Result<(Graph, Vec<RewriteNote>), GraphError> {
    graph.validate()?;
    let mut notes = Vec::new();
    let mut plan: Vec<Step> = vec![Step::Keep; graph.nodes.len()];
    for position in positions(graph) {
        if options.applies_to(graph, &position) {
            options.substitute(graph, &position, &mut plan, &mut notes)?;
        }
    }
    let mut rebuild = Rebuild::new(graph);
    for (node, step) in graph.nodes.iter().zip(plan) {
        match step {
            Step::Keep => rebuild.keep(node),
            Step::Drop => rebuild.bypass(node),
            Step::Replace(op) => rebuild.replace(node, op),
            Step::Split { groups, suffix } => split(&mut rebuild, node, groups, suffix),
        }
    }
    Ok((rebuild.finish()?, notes))
}

/// What happens to one node.
#[derive(Clone, Debug)]
enum Step {
    Keep,
    /// The node vanishes; whoever read it reads its input.
    Drop,
    Replace(Op),
    /// One convolution becomes two with batch-norm and ReLU between them.
    Split {
        groups: usize,
        suffix: &'static str,
    },
}

/// One convolution, or a depthwise and a pointwise one with elementwise nodes between them.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    /// The convolution with K > 1.
    pub spatial: ValueId,
    /// The nodes between the two convolutions of a pair.
    pub between: Vec<ValueId>,
    /// The convolution that produces the position's result; the spatial one itself unless there are two.
    pub last: ValueId,
}

/// The positions of a valid graph.
pub(crate) fn positions(graph: &Graph) -> Vec<Position> {
    let readers = graph.readers();
    let spatial = |id: ValueId| match &graph.nodes[id].op {
        Op::Conv2d { geometry, .. } if geometry.taps() == 1 => None,
        Op::Conv2d { kind, .. } if kind.is_standard() => Some(Position { spatial: id, between: Vec::new(), last: id }),
        Op::Conv2d { in_channels, out_channels, kind, .. } if kind.is_depthwise(*in_channels, *out_channels) => {
            let (between, last) = following_pointwise(graph, &readers, id)?;
            Some(Position { spatial: id, between, last })
        }
        _ => None,
    };
    (0..graph.nodes.len()).filter_map(spatial).collect()
}

/// The pointwise convolution that alone reads a convolution's result through batch-norm and activation, and the nodes
/// between the two.
pub(crate) fn following_pointwise(graph: &Graph, readers: &Readers, from: ValueId) -> Option<(Vec<ValueId>, ValueId)> {
    let mut between = Vec::new();
    let mut value = from;
    loop {
        let next = readers.only(value)?;
        match &graph.nodes[next].op {
            Op::BatchNorm { .. } | Op::Activation { .. } => between.push(next),
            Op::Conv2d { geometry, kind, .. } if kind.is_standard() && *geometry == Conv2dGeometry::same(1, 1) => {
                return Some((between, next));
            }
            _ => return None,
        }
        value = next;
    }
}

impl RewriteOptions {
    fn applies_to(&self, graph: &Graph, position: &Position) -> bool {
        let first = graph.nodes.iter().position(|node| matches!(node.op, Op::Conv2d { .. }));
        let excluded = |id: ValueId| self.selection.excludes(&graph.nodes[id].name);
        let kept = self.selection.keep_first && first == Some(position.spatial);
        !kept && !excluded(position.spatial) && !excluded(position.last)
    }

    fn substitute(
        &self,
        graph: &Graph,
        position: &Position,
        plan: &mut [Step],
        notes: &mut Vec<RewriteNote>,
    ) -> Result<(), GraphError> {
        let (spatial, last) = (&graph.nodes[position.spatial], &graph.nodes[position.last]);
        let Op::Conv2d { in_channels, geometry, .. } = &spatial.op else { return Ok(()) };
        let Op::Conv2d { out_channels, bias, .. } = &last.op else { return Ok(()) };
        let (in_channels, out_channels, bias) = (*in_channels, *out_channels, *bias);
        let mut note = |node: &Node, kind| notes.push(RewriteNote { node: node.name.clone(), kind });
        let own_parts = self.selection.parts(&last.name);
        let asked = match self.substitution {
            Substitution::Standard => return Ok(()),
            Substitution::Het { parts } => own_parts.unwrap_or(parts),
            Substitution::PointwiseChannel => own_parts.unwrap_or(in_channels),
            Substitution::GroupPointwise { groups: 0 } => {
                return Err(Fault::Zero("the number of groups").at(&spatial.name));
            }
            Substitution::GroupPointwise { groups: asked } => {
                let used = gcd(asked, in_channels);
                if used != asked {
                    note(spatial, NoteKind::GroupsReduced { asked, used });
                }
                plan[position.spatial] = regroup(position, spatial, used, "grouped");
                return Ok(());
            }
            Substitution::DepthwisePointwise => {
                plan[position.spatial] = regroup(position, spatial, in_channels, "depthwise");
                return Ok(());
            }
        };
        if KeptReason::of_kernel(geometry.kernel).is_some() {
            note(last, NoteKind::Kernel { kernel: geometry.kernel });
            return Ok(());
        }
        let pattern = self.arrangement.fitting(in_channels, out_channels, asked);
        let pattern = pattern.map_err(|error| Fault::from(error).at(&last.name))?;
        let used = pattern.classes();
        if used != asked {
            note(last, NoteKind::PartsReduced { asked, used });
        }
        if position.last != position.spatial {
            plan[position.spatial] = Step::Drop;
            position.between.iter().for_each(|&id| plan[id] = Step::Drop);
        }
        let kind = ConvKind::Het(pattern);
        let geometry = geometry.clone();
        plan[position.last] = Step::Replace(Op::Conv2d { in_channels, out_channels, geometry, kind, bias });
        Ok(())
    }
}

/// The grouped half of a position: of a pair that is there already only the groups change.
fn regroup(position: &Position, spatial: &Node, groups: usize, suffix: &'static str) -> Step {
    if position.last == position.spatial {
        return Step::Split { groups, suffix };
    }
    let mut op = spatial.op.clone();
    if let Op::Conv2d { kind, .. } = &mut op {
        *kind = ConvKind::Grouped(groups);
    }
    Step::Replace(op)
}

/// Grouped K×K M→M, batch-norm, ReLU, pointwise M→N in place of one convolution.
fn split(rebuild: &mut Rebuild<'_>, node: &Node, groups: usize, suffix: &str) {
    let Op::Conv2d { in_channels, out_channels, geometry, bias, .. } = &node.op else { return rebuild.keep(node) };
    let (channels, out_channels, bias) = (*in_channels, *out_channels, *bias);
    let conv =
        |out_channels, geometry, kind, bias| Op::Conv2d { in_channels: channels, out_channels, geometry, kind, bias };
    let name = format!("{}.{suffix}", node.name);
    // The batch-norm that follows makes a bias superfluous.
    let grouped = conv(channels, geometry.clone(), ConvKind::Grouped(groups), false);
    let x = rebuild.push(name.clone(), grouped, vec![rebuild.new_id(node.inputs[0])]);
    let x = rebuild.push(format!("{name}.bn"), Op::BatchNorm { channels, epsilon: 1e-5 }, vec![x]);
    let x = rebuild.push(format!("{name}.relu"), Op::Activation { function: Activation::Relu }, vec![x]);
    let pointwise = conv(out_channels, Conv2dGeometry::same(1, 1), ConvKind::Standard, bias);
    let x = rebuild.push(node.name.clone(), pointwise, vec![x]);
    rebuild.produced(x);
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Copies a graph node by node while nodes are added, replaced or left out.
pub(crate) struct Rebuild<'a> {
    old: &'a Graph,
    graph: Graph,
    /// For every old value so far, the new value that stands for it.
    new_ids: Vec<ValueId>,
}

impl<'a> Rebuild<'a> {
    pub fn new(old: &'a Graph) -> Self {
        let graph = Graph { name: old.name.clone(), nodes: Vec::new(), outputs: Vec::new() };
        Self { old, graph, new_ids: Vec::new() }
    }

    /// The new value that stands for an old one.
    pub fn new_id(&self, old: ValueId) -> ValueId {
        self.new_ids[old]
    }

    /// Adds a node that reads new values.
    pub fn push(&mut self, name: String, op: Op, inputs: Vec<ValueId>) -> ValueId {
        self.graph.nodes.push(Node { name, op, inputs });
        self.graph.nodes.len() - 1
    }

    /// Says which new value stands for the old node at hand.
    pub fn produced(&mut self, id: ValueId) {
        self.new_ids.push(id);
    }

    /// Copies the old node at hand.
    pub fn keep(&mut self, node: &Node) {
        self.replace(node, node.op.clone());
    }

    /// Copies the old node at hand with another operator.
    pub fn replace(&mut self, node: &Node, op: Op) {
        let inputs = node.inputs.iter().map(|&input| self.new_id(input)).collect();
        let id = self.push(node.name.clone(), op, inputs);
        self.produced(id);
    }

    /// Leaves out the old node at hand: its input stands for it.
    pub fn bypass(&mut self, node: &Node) {
        self.produced(self.new_id(node.inputs[0]));
    }

    pub fn finish(mut self) -> Result<Graph, GraphError> {
        self.graph.outputs = self.old.outputs.iter().map(|&output| self.new_ids[output]).collect();
        self.graph.validate()?;
        Ok(self.graph)
    }
}

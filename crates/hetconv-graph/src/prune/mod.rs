//! Filter pruning by L1 norm (Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017), the method HetConv is
//! compared with: in every layer the filters with the smallest sums of absolute weights are removed, and with each filter
//! its batch-norm, whatever depends on its channel alone, and the kernels of the next layers that read it.
//!
//! Filters whose channels meet others in an addition are left, as Li et al. leave them: of a basic block only the first
//! convolution is pruned, of a bottleneck the first two. Linear layers keep their outputs, and so do convolutions that
//! see a single pixel, such as those of squeeze-and-excitation, except where a channel that they scale is removed.

mod slice;
mod ties;

use std::collections::HashSet;

use crate::name::pruned_name;
use crate::{Graph, GraphError, Node, Op, Shape, ValueId, WeightError, WeightTensor, Weights};
use slice::Kept;
use ties::{Ties, reads_one_of_several};

/// How much is removed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PruneAmount {
    /// This share of the filters of every layer, between 0 and 1, rounded down.
    Ratio(f64),
    /// The same share of every layer, the smallest with which the network costs at most so many MACs an image.
    Macs(u64),
}

/// A network with fewer filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned {
    /// The network, its name with `_pruned` behind it; its nodes keep their names.
    pub graph: Graph,
    /// What is left of its weights.
    pub weights: Weights,
    /// The share of every layer's filters that was removed, before rounding down.
    pub ratio: f64,
    /// The convolutions that were ranked, in the order of the nodes.
    pub layers: Vec<PrunedLayer>,
}

/// What pruning did to one convolution.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PrunedLayer {
    /// Its name.
    pub name: String,
    /// The filters it had.
    pub filters: usize,
    /// Those that were removed, ascending.
    pub removed: Vec<usize>,
}

/// Why a network was not pruned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// A share that removes nothing or everything.
    #[error("a share of {0} of the filters cannot be removed; more than 0 and less than 1 is possible")]
    Ratio(f64),
    /// No filter decides alone about a channel.
    #[error("no filter of {name} can be removed without changing more than its own channel")]
    Nothing {
        /// The network.
        name: String,
    },
    /// A share that takes no filter of any layer.
    #[error("a share of {ratio} is less than one of the filters that can be removed, in every layer of {name}")]
    TooLittle {
        /// The network.
        name: String,
        /// The share.
        ratio: f64,
    },
    /// A cost that is not below the network's own, or not reached.
    #[error("{asked} MACs cannot be reached by removing filters of {name}: it has {macs}, and at least {least}")]
    Macs {
        /// The network.
        name: String,
        /// What was asked for.
        asked: u64,
        /// What it costs.
        macs: u64,
        /// What it costs with one filter in every layer that can be pruned.
        least: u64,
    },
    /// See [`GraphError`].
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// See [`WeightError`].
    #[error(transparent)]
    Weights(#[from] WeightError),
}

/// Removes the filters with the smallest L1 norms; of equal ones, the first.
///
/// The network computes what it did with the removed filters' channels set to 0 wherever they were read.
///
/// ```
/// use hetconv_graph::{PruneAmount, Weights, prune, zoo};
/// let graph = zoo::build(&"vgg16-cifar".parse()?, 10)?;
/// let pruned = prune(&graph, &Weights::init(&graph, 1)?, PruneAmount::Ratio(0.5))?;
/// assert_eq!(pruned.layers.len(), 13);
/// assert!(pruned.graph.cost()?.macs < graph.cost()?.macs * 26 / 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// See [`PruneError`].
pub fn prune(graph: &Graph, weights: &Weights, amount: PruneAmount) -> Result<Pruned, PruneError> {
    let pruning = Pruning::new(graph, weights)?;
    let ratio = match amount {
        PruneAmount::Ratio(ratio) if ratio > 0.0 && ratio < 1.0 => ratio,
        PruneAmount::Ratio(ratio) => return Err(PruneError::Ratio(ratio)),
        PruneAmount::Macs(asked) => pruning.ratio_for(asked)?,
    };
    let removed = pruning.removed(ratio);
    if removed.is_empty() {
        let name = graph.name.clone();
        let asked = pruning.rankings.iter().any(|ranking| share(ratio, ranking.filters.len()) > 0);
        return Err(if asked { PruneError::Nothing { name } } else { PruneError::TooLittle { name, ratio } });
    }
    let layer = |ranking: &Ranking| {
        let node = &graph.nodes[ranking.node];
        let classes = pruning.ties.classes(ranking.node);
        let removed = (0..classes.len()).filter(|&filter| removed.contains(&classes[filter])).collect();
        PrunedLayer { name: node.name.clone(), filters: classes.len(), removed }
    };
    let layers = pruning.rankings.iter().map(layer).collect();
    let kept = pruning.kept(&removed);
    let mut left = Weights::new();
    let mut graph = pruning.rebuild(&kept, |kept, node, op| kept.weights(node, op, weights, &mut left))?;
    graph.name = pruned_name(&graph.name);
    left.check(&graph)?;
    Ok(Pruned { graph, weights: left, ratio, layers })
}

/// The filters of one convolution that may be removed, the least important first.
struct Ranking {
    node: ValueId,
    filters: Vec<usize>,
}

struct Pruning<'a> {
    graph: &'a Graph,
    ties: Ties,
    rankings: Vec<Ranking>,
    /// For every class, the values it has a channel in.
    places: Vec<Vec<ValueId>>,
}

impl<'a> Pruning<'a> {
    fn new(graph: &'a Graph, weights: &Weights) -> Result<Self, PruneError> {
        weights.check(graph)?;
        let shapes: Vec<Shape> = graph.shapes()?;
        let ties = Ties::new(graph, &shapes);
        let rankings: Vec<Ranking> =
            (0..graph.nodes.len()).filter_map(|node| rank(graph, weights, &shapes, &ties, node)).collect();
        if rankings.is_empty() {
            return Err(PruneError::Nothing { name: graph.name.clone() });
        }
        let mut places: Vec<Vec<ValueId>> = Vec::new();
        for value in 0..ties.values() {
            for class in distinct(ties.classes(value)) {
                places.resize(places.len().max(class + 1), Vec::new());
                places[class].push(value);
            }
        }
        Ok(Self { graph, ties, rankings, places })
    }

    /// The classes that a share of every layer's filters takes with it. No value loses its last channel.
    fn removed(&self, ratio: f64) -> HashSet<usize> {
        let mut left: Vec<usize> = (0..self.ties.values()).map(|v| distinct(self.ties.classes(v)).len()).collect();
        let mut removed = HashSet::new();
        for Ranking { node, filters } in &self.rankings {
            let classes = self.ties.classes(*node);
            for &filter in filters.iter().take(share(ratio, filters.len())) {
                let class = classes[filter];
                if self.places[class].iter().all(|&value| left[value] > 1) {
                    self.places[class].iter().for_each(|&value| left[value] -= 1);
                    removed.insert(class);
                }
            }
        }
        removed
    }

    /// The positions of every value's channels that stay.
    fn kept(&self, removed: &HashSet<usize>) -> Vec<Vec<usize>> {
        let of_value = |value| {
            let classes = self.ties.classes(value);
            (0..classes.len()).filter(|&at| !removed.contains(&classes[at])).collect()
        };
        (0..self.ties.values()).map(of_value).collect()
    }

    /// The graph of what stays; `each` sees every old node and its new operator.
    fn rebuild(&self, kept: &[Vec<usize>], mut each: impl FnMut(&Kept<'_>, &Node, &Op)) -> Result<Graph, PruneError> {
        let mut graph = self.graph.clone();
        for (id, node) in self.graph.nodes.iter().enumerate() {
            let inputs = node.inputs.first().map_or(&[][..], |&input| &kept[input]);
            let kept = Kept { inputs, outputs: &kept[id] };
            graph.nodes[id].op = kept.op(&node.op).map_err(|fault| fault.at(&node.name))?;
            each(&kept, node, &graph.nodes[id].op);
        }
        graph.validate()?;
        Ok(graph)
    }

    /// The smallest share with which the network costs at most so many MACs.
    fn ratio_for(&self, asked: u64) -> Result<f64, PruneError> {
        let macs = |ratio: f64| -> Result<u64, PruneError> {
            Ok(self.rebuild(&self.kept(&self.removed(ratio)), |_, _, _| ())?.cost()?.macs)
        };
        // All shares at which some layer loses one filter more.
        let filters = self.rankings.iter().map(|ranking| ranking.filters.len());
        let mut ratios: Vec<f64> = filters.flat_map(|of| (1..=of).map(move |n| n as f64 / of as f64)).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        ratios.dedup();
        let (all, least) = (self.graph.cost()?.macs, macs(1.0)?);
        if asked >= all || asked < least {
            return Err(PruneError::Macs { name: self.graph.name.clone(), asked, macs: all, least });
        }
        // More removed never costs more.
        let (mut low, mut high) = (0, ratios.len() - 1);
        while low < high {
            let middle = low.midpoint(high);
            if macs(ratios[middle])? <= asked { high = middle } else { low = middle + 1 }
        }
        Ok(ratios[low])
    }
}

/// A share of a number, rounded down; a share that is a fraction of it comes out exactly.
fn share(ratio: f64, of: usize) -> usize {
    (ratio * of as f64 + 1e-9).floor() as usize
}

fn distinct(classes: &[usize]) -> HashSet<usize> {
    classes.iter().copied().collect()
}

/// The filters of a convolution that may be removed, by the L1 norm of their weights.
fn rank(graph: &Graph, weights: &Weights, shapes: &[Shape], ties: &Ties, id: ValueId) -> Option<Ranking> {
    let node = &graph.nodes[id];
    // A depthwise filter goes with the channel it reads.
    if !matches!(node.op, Op::Conv2d { .. })
        || reads_one_of_several(&node.op)
        || shapes[node.inputs[0]].size() == [1, 1]
    {
        return None;
    }
    let norms: Vec<f64> = (0..shapes[id].channels()).map(|filter| l1_norm(weights, &node.name, filter)).collect();
    let classes = ties.classes(id);
    let mut filters: Vec<usize> = (0..classes.len()).filter(|&filter| ties.is_free(classes[filter])).collect();
    filters.sort_by(|&a, &b| norms[a].total_cmp(&norms[b]));
    (!filters.is_empty()).then_some(Ranking { node: id, filters })
}

/// The sum of the absolute values of a filter's weights.
fn l1_norm(weights: &Weights, node: &str, filter: usize) -> f64 {
    let row = |tensor: &WeightTensor| {
        let size: usize = tensor.shape[1..].iter().product();
        tensor.data[filter * size..][..size].iter().map(|&weight| f64::from(weight).abs()).sum::<f64>()
    };
    let tensors = ["weight", "center", "ring"].into_iter().filter_map(|part| weights.get(&format!("{node}.{part}")));
    tensors.map(row).sum()
}

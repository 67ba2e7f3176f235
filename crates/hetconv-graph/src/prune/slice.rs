//! A node and its weights with fewer channels.

use hetconv_core::HetPattern;

use crate::weights::node_specs;
use crate::{ConvKind, Fault, Node, Op, WeightRole, WeightTensor, Weights};

/// What is left of a node's first input and of its result: ascending positions of channels or features.
pub(super) struct Kept<'a> {
    pub inputs: &'a [usize],
    pub outputs: &'a [usize],
}

impl Kept<'_> {
    /// The operator with what is left.
    pub fn op(&self, op: &Op) -> Result<Op, Fault> {
        let (inputs, outputs) = (self.inputs.len(), self.outputs.len());
        let mut op = op.clone();
        match &mut op {
            Op::Conv2d { in_channels, out_channels, kind, .. } => {
                match kind {
                    ConvKind::Standard => {}
                    // The only groups that lose channels are those of one channel each.
                    kind @ ConvKind::Grouped(_) if kind.reads_one_channel(*in_channels) => {
                        *kind = ConvKind::Grouped(inputs);
                    }
                    ConvKind::Grouped(_) => {}
                    ConvKind::Het(pattern) => *pattern = self.pattern(pattern)?,
                }
                (*in_channels, *out_channels) = (inputs, outputs);
            }
            Op::BatchNorm { channels, .. } => *channels = outputs,
            Op::Linear { in_features, out_features, .. } => (*in_features, *out_features) = (inputs, outputs),
            Op::Gather { channels, .. } => {
                let place = |channel: u32| self.inputs.binary_search(&(channel as usize)).ok().map(|at| at as u32);
                *channels = self.outputs.iter().map(|&at| channels[at].and_then(place)).collect();
            }
            _ => {}
        }
        Ok(op)
    }

    /// The pattern of the channels and filters that are left, each with its class.
    fn pattern(&self, old: &HetPattern) -> Result<HetPattern, Fault> {
        if self.inputs.len() == old.in_channels() && self.outputs.len() == old.out_channels() {
            return Ok(old.clone());
        }
        let pick = |classes: &[u32], kept: &[usize]| kept.iter().map(|&at| classes[at]).collect::<Vec<u32>>();
        let mut channels = pick(old.channel_classes(), self.inputs);
        let mut filters = pick(old.filter_classes(), self.outputs);
        // Classes are numbered anew. Channels that no filter looks at closely are one class, and so are filters that look
        // closely at no channel; should there be no number left for the latter, they join the former with taps of 0.
        let mut shared: Vec<u32> = channels.iter().copied().filter(|class| filters.contains(class)).collect();
        shared.sort_unstable();
        shared.dedup();
        let limit = channels.len().max(filters.len()) as u32;
        let alone = shared.len() as u32;
        let has_alone = channels.iter().any(|class| shared.binary_search(class).is_err());
        let number = |class: &mut u32, other: u32| {
            *class = shared.binary_search(class).map_or(other, |at| at as u32);
        };
        channels.iter_mut().for_each(|class| number(class, alone));
        filters.iter_mut().for_each(|class| number(class, (alone + u32::from(has_alone)).min(limit - 1)));
        Ok(HetPattern::assigned(channels, filters)?)
    }

    /// The weights of the node that are left; `node` and `weights` are the old ones, `op` is the new operator.
    pub fn weights(&self, node: &Node, op: &Op, weights: &Weights, into: &mut Weights) {
        for spec in node_specs(node) {
            let Some(tensor) = weights.get(&spec.name) else { continue };
            let kept = match &spec.role {
                WeightRole::HetRing { .. } => self.ring(node, op, tensor),
                WeightRole::Convolution { .. } | WeightRole::HetCenter { .. } | WeightRole::Linear { .. } => {
                    let rows = select(tensor, 0, self.outputs);
                    // A depthwise filter has one channel, whichever are left.
                    let is_grouped = matches!(&node.op, Op::Conv2d { kind: ConvKind::Grouped(2..), .. });
                    if is_grouped { rows } else { select(&rows, 1, self.inputs) }
                }
                _ => select(tensor, 0, self.outputs),
            };
            into.insert(spec.name, kept);
        }
    }

    /// The off-centre taps of the filters and channels that are left, in the slots of the new pattern.
    fn ring(&self, node: &Node, op: &Op, tensor: &WeightTensor) -> WeightTensor {
        let (Op::Conv2d { kind: ConvKind::Het(old), .. }, Op::Conv2d { kind: ConvKind::Het(new), .. }) = (&node.op, op)
        else {
            return tensor.clone();
        };
        let (taps, slots) = (tensor.shape[2], new.max_spatial());
        let old_slots = old.ring_slots();
        let mut data = vec![0.0; self.outputs.len() * slots * taps];
        for (filter, &old_filter) in self.outputs.iter().enumerate() {
            for (slot, channel) in new.spatial_channels(filter).enumerate() {
                let old_channel = self.inputs[channel];
                if old.is_spatial(old_filter, old_channel) {
                    let from = (old_filter * old.max_spatial() + old_slots[old_channel]) * taps;
                    data[(filter * slots + slot) * taps..][..taps].copy_from_slice(&tensor.data[from..][..taps]);
                }
            }
        }
        WeightTensor { shape: vec![self.outputs.len(), slots, taps], data }
    }
}

/// Only these positions of an axis.
fn select(tensor: &WeightTensor, axis: usize, kept: &[usize]) -> WeightTensor {
    let extent = tensor.shape[axis];
    let inner: usize = tensor.shape[axis + 1..].iter().product();
    let outer: usize = tensor.shape[..axis].iter().product();
    let mut data = Vec::with_capacity(outer * kept.len() * inner);
    for block in 0..outer {
        for &at in kept {
            data.extend_from_slice(&tensor.data[(block * extent + at) * inner..][..inner]);
        }
    }
    let mut shape = tensor.shape.clone();
    shape[axis] = kept.len();
    WeightTensor { shape, data }
}

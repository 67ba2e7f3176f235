//! Weights in the order the kernel reads them.
//!
//! The filters (for grad-input: the channels) that a tile computes together form a [`Block`] of one or two vectors. A
//! block sees one contiguous range of the other side's positions at the centre tap and one at every other tap; that is
//! all the kernel knows of HetConv, groups or a standard convolution. Where a class is narrower than a vector, a block
//! covers several classes and the weights in between are zeros.

use std::ops::Range;

use hetconv_core::{ChannelOrder, ConvKind};
use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{ConvSpec, ConvWeights, ConvWeightsMut};

/// Outputs that are computed together.
#[derive(Debug)]
pub(crate) struct Block {
    /// First output position and number of outputs.
    pub outputs: Range<usize>,
    /// Vectors that hold them: 1 or 2.
    pub vectors: usize,
    /// Input positions read by the centre tap.
    pub center: Range<usize>,
    /// Input positions read by every other tap.
    pub ring: Range<usize>,
    /// Where each tap's weights start, `[range, vectors·LANES]`, relative to the whole packed buffer.
    pub taps: Vec<usize>,
    /// The block's part of the packed buffer.
    pub weights: Range<usize>,
}

/// The packed form for one direction and one vector length.
#[derive(Debug)]
pub(crate) struct Layout {
    pub blocks: Vec<Block>,
    pub lanes: usize,
    pub center: Option<usize>,
    pub len: usize,
}

/// Forward or backward: which of filters and channels are a kernel's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    GradInput,
}

impl Block {
    /// Input positions that a tap reads.
    pub fn range(&self, is_center: bool) -> &Range<usize> {
        if is_center { &self.center } else { &self.ring }
    }
}

impl Layout {
    /// Splits the outputs into blocks, cheapest first.
    pub fn new(spec: &ConvSpec, classes: &Classes, direction: Direction, lanes: usize) -> Self {
        let (outputs, inputs) = match direction {
            Direction::Forward => (stored(&classes.filters, &spec.out_order), stored(&classes.channels, &spec.in_order)),
            Direction::GradInput => {
                (stored(&classes.channels, &spec.in_order), stored(&classes.filters, &spec.out_order))
            }
        };
        let taps = spec.geometry.taps();
        let center = if classes.dense_center { spec.geometry.center_tap() } else { None };
        let spans = spans(&inputs, classes.count);
        let mut layout = Self { blocks: Vec::new(), lanes, center, len: 0 };
        let mut start = 0;
        while start < outputs.len() {
            let block = layout.cheapest_block(&outputs, start, &spans, inputs.len(), taps);
            start = block.outputs.end;
            layout.len = block.weights.end;
            layout.blocks.push(block);
        }
        layout
    }

    fn cheapest_block(
        &self,
        outputs: &[u32],
        start: usize,
        spans: &[Range<usize>],
        inputs: usize,
        taps: usize,
    ) -> Block {
        // A tile of one vector needs relatively more loads, so it has to save that much arithmetic to be worth it.
        const SINGLE_VECTOR_PENALTY: f64 = 1.15;
        let left = outputs.len() - start;
        let run = outputs[start..].iter().take_while(|&&class| class == outputs[start]).count();
        let widths = [2 * self.lanes, self.lanes, run.min(2 * self.lanes)];
        let candidate = |width: usize| {
            let width = width.min(left);
            let vectors = width.div_ceil(self.lanes);
            let ring = outputs[start..start + width].iter().map(|&class| spans[class as usize].clone());
            let ring = ring.filter(|span| !Range::is_empty(span)).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
            let ring = ring.unwrap_or(0..0);
            let center = if self.center.is_some() { 0..inputs } else { ring.clone() };
            let products = center.len() + (taps - 1) * ring.len();
            let penalty = if vectors == 1 { SINGLE_VECTOR_PENALTY } else { 1.0 };
            let cost = (vectors * products) as f64 * penalty / width as f64;
            (cost, width, vectors, center, ring)
        };
        let candidates = widths.map(candidate);
        let best = candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        let (_, width, vectors, center, ring) = best.expect("three candidates");
        let mut offset = self.len;
        let mut tap_offsets = Vec::with_capacity(taps);
        for tap in 0..taps {
            tap_offsets.push(offset);
            let range = if Some(tap) == self.center { &center } else { &ring };
            offset += range.len() * vectors * self.lanes;
        }
        Block {
            outputs: start..start + width,
            vectors,
            center,
            ring,
            taps: tap_offsets,
            weights: self.len..offset,
        }
    }
}

/// Class of every position.
fn stored(classes: &[u32], order: &ChannelOrder) -> Vec<u32> {
    order.channels().iter().map(|&channel| classes[channel as usize]).collect()
}

/// For every class, the positions from its first to its last.
fn spans(classes: &[u32], count: usize) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = vec![0..0; count];
    for (position, &class) in classes.iter().enumerate() {
        let span = &mut spans[class as usize];
        *span = if Range::is_empty(span) { position..position + 1 } else { span.start..position + 1 };
    }
    spans
}

/// What the three kinds of convolution have in common: classes on both sides, and whether the centre tap ignores them.
#[derive(Debug)]
pub(crate) struct Classes {
    pub channels: Vec<u32>,
    pub filters: Vec<u32>,
    pub count: usize,
    pub dense_center: bool,
    /// Rank of every channel within its class: its place in a filter's weights.
    slots: Vec<usize>,
    /// Extent of the place axis: M/groups, or the ring's S.
    width: usize,
}

impl Classes {
    pub fn new(spec: &ConvSpec) -> Self {
        let (m, n) = (spec.in_channels, spec.out_channels);
        match &spec.kind {
            ConvKind::Standard => Self::grouped(m, n, 1),
            ConvKind::Grouped(groups) => Self::grouped(m, n, *groups),
            ConvKind::Het(pattern) => Self {
                channels: pattern.channel_classes().to_vec(),
                filters: pattern.filter_classes().to_vec(),
                count: pattern.classes(),
                dense_center: true,
                slots: pattern.ring_slots(),
                width: pattern.max_spatial(),
            },
        }
    }

    fn grouped(m: usize, n: usize, groups: usize) -> Self {
        let width = m / groups;
        Self {
            channels: (0..m).map(|c| (c / width) as u32).collect(),
            filters: (0..n).map(|f| (f / (n / groups)) as u32).collect(),
            count: groups,
            dense_center: false,
            slots: (0..m).map(|c| c % width).collect(),
            width,
        }
    }
}

/// Taps whose weights stand side by side in one canonical tensor.
struct TapGroup {
    taps: Vec<usize>,
    is_center: bool,
}

impl Classes {
    /// HetConv's centre and its ring, or all taps of any other convolution.
    fn tap_groups(&self, spec: &ConvSpec) -> Vec<TapGroup> {
        let taps = spec.geometry.taps();
        match spec.geometry.center_tap().filter(|_| self.dense_center) {
            None => vec![TapGroup { taps: (0..taps).collect(), is_center: false }],
            Some(center) => vec![
                TapGroup { taps: vec![center], is_center: true },
                TapGroup { taps: (0..taps).filter(|&tap| tap != center).collect(), is_center: false },
            ],
        }
    }

    /// Where the weights of a filter and a channel start within the filter's row of a group's tensor; `None` where the
    /// layer has none.
    #[inline(always)]
    fn place(&self, group: &TapGroup, filter: usize, channel: usize) -> Option<usize> {
        if group.is_center {
            return Some(channel);
        }
        let same = self.filters[filter] == self.channels[channel];
        same.then(|| self.slots[channel] * group.taps.len())
    }

    /// Length of a filter's row in a group's tensor.
    fn row(&self, group: &TapGroup) -> usize {
        if group.is_center { self.channels.len() } else { self.width * group.taps.len() }
    }
}

/// Packs canonical weights.
pub(crate) fn pack(
    spec: &ConvSpec,
    classes: &Classes,
    layout: &Layout,
    direction: Direction,
    weights: ConvWeights<'_>,
) -> Aligned {
    let mut packed = Aligned::zeroed(layout.len);
    for group in &classes.tap_groups(spec) {
        let source = match weights {
            ConvWeights::Dense(weight) => weight,
            ConvWeights::Het { center, .. } if group.is_center => center,
            ConvWeights::Het { ring, .. } => ring,
        };
        let row = classes.row(group);
        split_blocks(&mut packed, layout).into_par_iter().for_each(|(block, packed)| {
            let range = block.range(group.is_center);
            let stride = block.vectors * layout.lanes;
            let mut copy = |filter: u32, channel: u32, position: usize, lane: usize| {
                let (filter, channel) = (filter as usize, channel as usize);
                let Some(place) = classes.place(group, filter, channel) else { return };
                let from = &source[filter * row + place..][..group.taps.len()];
                let at = (position - range.start) * stride + lane;
                for (&tap, &weight) in group.taps.iter().zip(from) {
                    packed[block.taps[tap] - block.weights.start + at] = weight;
                }
            };
            // A filter's weights are neighbours in memory: the inner loop stays in one row.
            match direction {
                Direction::Forward => {
                    let filters = &spec.out_order.channels()[block.outputs.clone()];
                    for chunk in range.clone().step_by(CHUNK) {
                        for (lane, &filter) in filters.iter().enumerate() {
                            for position in chunk..(chunk + CHUNK).min(range.end) {
                                copy(filter, spec.in_order.channels()[position], position, lane);
                            }
                        }
                    }
                }
                Direction::GradInput => {
                    let channels = &spec.in_order.channels()[block.outputs.clone()];
                    for position in range.clone() {
                        let filter = spec.out_order.channels()[position];
                        for (lane, &channel) in channels.iter().enumerate() {
                            copy(filter, channel, position, lane);
                        }
                    }
                }
            }
        });
    }
    packed
}

/// Input positions that are packed together: their packed and canonical weights share the first-level cache.
const CHUNK: usize = 32;

/// Brings a packed grad-weight (forward layout) into canonical form; spare ring slots become +0.
pub(crate) fn unpack(spec: &ConvSpec, classes: &Classes, layout: &Layout, packed: &[f32], grad: ConvWeightsMut<'_>) {
    let (mut main, mut ring) = match grad {
        ConvWeightsMut::Dense(weight) => (weight, None),
        ConvWeightsMut::Het { center, ring } => (center, Some(ring)),
    };
    for group in &classes.tap_groups(spec) {
        let target = match &mut ring {
            Some(ring) if !group.is_center => {
                ring.fill(0.0);
                ring
            }
            _ => &mut main,
        };
        let row = classes.row(group);
        if row == 0 {
            continue;
        }
        let mut rows: Vec<_> = target.chunks_exact_mut(row).map(Some).collect();
        let of_block = |block| (block, rows_of(block, &spec.out_order, &mut rows));
        let work: Vec<(&Block, Vec<&mut [f32]>)> = layout.blocks.iter().map(of_block).collect();
        work.into_par_iter().for_each(|(block, mut rows)| {
            let range = block.range(group.is_center);
            let stride = block.vectors * layout.lanes;
            let filters = &spec.out_order.channels()[block.outputs.clone()];
            for chunk in range.clone().step_by(CHUNK) {
                for (lane, (&filter, row)) in filters.iter().zip(&mut rows).enumerate() {
                    for position in chunk..(chunk + CHUNK).min(range.end) {
                        let channel = spec.in_order.channels()[position] as usize;
                        let Some(place) = classes.place(group, filter as usize, channel) else { continue };
                        let at = (position - range.start) * stride + lane;
                        for (&tap, slot) in group.taps.iter().zip(&mut row[place..]) {
                            *slot = packed[block.taps[tap] + at];
                        }
                    }
                }
            }
        });
    }
}

/// Takes the rows of a block's filters.
fn rows_of<'a>(block: &Block, order: &ChannelOrder, rows: &mut [Option<&'a mut [f32]>]) -> Vec<&'a mut [f32]> {
    let filters = &order.channels()[block.outputs.clone()];
    filters.iter().map(|&filter| rows[filter as usize].take().expect("a filter is in one block")).collect()
}

/// Pairs every block with its part of the packed buffer.
pub(crate) fn split_blocks<'a>(mut packed: &'a mut [f32], layout: &'a Layout) -> Vec<(&'a Block, &'a mut [f32])> {
    let mut parts = Vec::with_capacity(layout.blocks.len());
    for block in &layout.blocks {
        let (part, rest) = packed.split_at_mut(block.weights.len());
        parts.push((block, part));
        packed = rest;
    }
    parts
}

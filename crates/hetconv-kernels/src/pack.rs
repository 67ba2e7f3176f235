//! Weights in the order the kernel reads them.
//!
//! The filters (for grad-input: the channels) that a tile computes together form a [`Block`] of one or two vectors. A
//! block sees one contiguous range of the other side's positions at the centre tap; at every other tap each of its
//! vectors sees a range of its own class. That is all the kernel knows of HetConv, groups or a standard convolution.
//! Vectors may have half the lanes, for narrow classes; where a class is narrower still, a vector covers several and the
//! weights in between are zeros.

use std::ops::Range;

use hetconv_core::{ChannelOrder, ConvKind};
use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{ConvSpec, ConvWeights, ConvWeightsMut};
use crate::isa::Isa;

/// Outputs that are computed together.
#[derive(Debug)]
pub(crate) struct Block {
    /// First output position and number of outputs.
    pub outputs: Range<usize>,
    /// Whether its vectors have half the lanes.
    pub half: bool,
    /// Vectors that hold the outputs: 1 or 2.
    pub vectors: usize,
    /// Lanes of all vectors together.
    pub stride: usize,
    /// Input positions read by the centre tap.
    pub center: Range<usize>,
    /// Input positions read by every other tap, for each vector; of equal length, and equal with one vector.
    pub ring: [Range<usize>; 2],
    /// Where each tap's weights start, `[range, stride]`, relative to the whole packed buffer.
    pub taps: Vec<usize>,
    /// The block's part of the packed buffer.
    pub weights: Range<usize>,
}

/// The packed form for one direction and one vector length.
#[derive(Debug)]
pub(crate) struct Layout {
    pub blocks: Vec<Block>,
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
    /// Input positions that a tap reads, for each vector.
    pub fn ranges(&self, is_center: bool) -> [Range<usize>; 2] {
        if is_center { [self.center.clone(), self.center.clone()] } else { self.ring.clone() }
    }

    /// The vector that holds the block's output `lane`.
    fn vector(&self, lane: usize) -> usize {
        lane * self.vectors / self.stride
    }
}

/// What the blocks of one direction are chosen from.
struct Choice<'a> {
    /// Class of every output position.
    outputs: &'a [u32],
    /// For every class, the input positions from its first to its last.
    spans: &'a [Range<usize>],
    /// Number of input positions.
    inputs: usize,
    taps: usize,
    dense_center: bool,
    isa: Isa,
}

impl Layout {
    /// Splits the outputs into blocks, cheapest first.
    pub fn new(spec: &ConvSpec, classes: &Classes, direction: Direction, isa: Isa) -> Self {
        let (filters, channels) =
            (stored(&classes.filters, &spec.out_order), stored(&classes.channels, &spec.in_order));
        let (outputs, inputs) = match direction {
            Direction::Forward => (filters, channels),
            Direction::GradInput => (channels, filters),
        };
        let center = spec.geometry.center_tap().filter(|_| classes.dense_center);
        let choice = Choice {
            outputs: &outputs,
            spans: &spans(&inputs, classes.count),
            inputs: inputs.len(),
            taps: spec.geometry.taps(),
            dense_center: center.is_some(),
            isa,
        };
        let mut layout = Self { blocks: Vec::new(), center, len: 0 };
        let mut start = 0;
        while start < outputs.len() {
            let block = layout.place(choice.cheapest(start), choice.taps);
            start = block.outputs.end;
            layout.blocks.push(block);
        }
        layout
    }

    /// Gives a block's weights their place behind all others.
    fn place(&mut self, mut block: Block, taps: usize) -> Block {
        let first = self.len;
        for tap in 0..taps {
            block.taps.push(self.len);
            let range = if Some(tap) == self.center { &block.center } else { &block.ring[0] };
            self.len += range.len() * block.stride;
        }
        block.weights = first..self.len;
        block
    }
}

impl Choice<'_> {
    /// The block from an output on that costs least per output.
    fn cheapest(&self, start: usize) -> Block {
        // A tile of one vector, or of two that read different channels, needs more loads for its products, so it has to
        // save that much arithmetic to be worth it.
        const MORE_LOADS: f64 = 1.15;
        let run = self.outputs[start..].iter().take_while(|&&class| class == self.outputs[start]).count();
        let mut best: Option<(f64, Block)> = None;
        for half in [false, true] {
            let lanes = if half { self.isa.half_lanes() } else { self.isa.lanes() };
            let weight = if half { self.isa.half_cost() } else { 1.0 };
            for width in [2 * lanes, lanes, run.min(2 * lanes)] {
                let block = self.block(start, width.min(self.outputs.len() - start), lanes, half);
                let products = block.center.len() + (self.taps - 1) * block.ring[0].len();
                let simple = block.vectors == 2 && block.ring[0] == block.ring[1];
                let loads = if simple { 1.0 } else { MORE_LOADS };
                let cost = weight * loads * (block.vectors * products) as f64 / block.outputs.len() as f64;
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, block));
                }
            }
        }
        best.expect("six candidates").1
    }

    /// The block of `width` outputs from `start` on, in vectors of `lanes`.
    fn block(&self, start: usize, width: usize, lanes: usize, half: bool) -> Block {
        let vectors = width.div_ceil(lanes);
        let end = start + width;
        let first = self.span(start..end.min(start + lanes));
        let second = if vectors == 2 { self.span(start + lanes..end) } else { first.clone() };
        // Both vectors read equally many channels: the shorter range is extended, to zero weights.
        let len = Range::len(&first).max(Range::len(&second));
        let widen = |range: Range<usize>| {
            let from = range.start.min(self.inputs - len);
            from..from + len
        };
        let ring = [widen(first), widen(second)];
        let center = if self.dense_center { 0..self.inputs } else { ring[0].clone() };
        Block {
            outputs: start..end,
            half,
            vectors,
            stride: vectors * lanes,
            center,
            ring,
            taps: Vec::with_capacity(self.taps),
            weights: 0..0,
        }
    }

    /// The input positions that the classes of some outputs span.
    fn span(&self, outputs: Range<usize>) -> Range<usize> {
        let spans = self.outputs[outputs].iter().map(|&class| self.spans[class as usize].clone());
        let spans = spans.filter(|span| !Range::is_empty(span));
        spans.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
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
            let ranges = block.ranges(group.is_center);
            let len = Range::len(&ranges[0]);
            let mut copy = |filter: u32, channel: u32, index: usize, lane: usize| {
                let (filter, channel) = (filter as usize, channel as usize);
                let Some(place) = classes.place(group, filter, channel) else { return };
                let from = &source[filter * row + place..][..group.taps.len()];
                let at = index * block.stride + lane;
                for (&tap, &weight) in group.taps.iter().zip(from) {
                    packed[block.taps[tap] - block.weights.start + at] = weight;
                }
            };
            // A filter's weights are neighbours in memory: the inner loop stays in one row.
            match direction {
                Direction::Forward => {
                    let filters = &spec.out_order.channels()[block.outputs.clone()];
                    for chunk in (0..len).step_by(CHUNK) {
                        for (lane, &filter) in filters.iter().enumerate() {
                            let first = ranges[block.vector(lane)].start;
                            for index in chunk..(chunk + CHUNK).min(len) {
                                copy(filter, spec.in_order.channels()[first + index], index, lane);
                            }
                        }
                    }
                }
                Direction::GradInput => {
                    let channels = &spec.in_order.channels()[block.outputs.clone()];
                    for index in 0..len {
                        for (lane, &channel) in channels.iter().enumerate() {
                            let first = ranges[block.vector(lane)].start;
                            copy(spec.out_order.channels()[first + index], channel, index, lane);
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
            let ranges = block.ranges(group.is_center);
            let len = Range::len(&ranges[0]);
            let filters = &spec.out_order.channels()[block.outputs.clone()];
            for chunk in (0..len).step_by(CHUNK) {
                for (lane, (&filter, row)) in filters.iter().zip(&mut rows).enumerate() {
                    let first = ranges[block.vector(lane)].start;
                    for index in chunk..(chunk + CHUNK).min(len) {
                        let channel = spec.in_order.channels()[first + index] as usize;
                        let Some(place) = classes.place(group, filter as usize, channel) else { continue };
                        let at = index * block.stride + lane;
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

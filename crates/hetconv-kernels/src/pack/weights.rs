//! Weights from canonical form into packed form, and gradients back.

use rayon::prelude::*;

use super::classes::TapGroup;
use super::{Block, Classes, Direction, Layout, Ring, partner};
use crate::aligned::Aligned;
use crate::cache;
use crate::conv::{ConvSpec, ConvWeights, ConvWeightsMut};

/// Input positions that are packed together: their packed and canonical weights share the first-level cache.
const CHUNK: usize = 16;

/// What is done with each weight of a block.
trait Visitor {
    /// The weight at a place among the tap's, of an output and an input position. Implementations are
    /// `#[inline(always)]`: it is called in inner loops.
    fn weight(&mut self, at: usize, output: usize, input: usize);
}

impl Block {
    /// Visits every weight of a tap that has an output. Those of one output come one after another over up to [`CHUNK`]
    /// inputs, or those of one input over all outputs.
    #[inline(always)]
    fn visit(&self, is_center: bool, inputs_first: bool, visitor: &mut impl Visitor) {
        let (first, outputs, lanes) = (self.outputs.start, self.outputs.len(), self.lanes());
        let starts = match &self.ring {
            _ if is_center => [self.center.start; 2],
            Ring::Ranges(ranges) => ranges.each_ref().map(|range| range.start),
            Ring::Turned { size, sources } => {
                let of_vectors = sources.iter().enumerate();
                let sources =
                    of_vectors.flat_map(|(vector, sources)| sources.iter().map(move |source| (vector, source)));
                for (index, (vector, source)) in sources.enumerate() {
                    for turn in 0..*size {
                        for (lane, held) in source.lanes.iter().enumerate() {
                            if let Some(held) = held {
                                let output = first + vector * lanes + partner(lane, turn);
                                visitor.weight(
                                    (index * size + turn) * lanes + lane,
                                    output,
                                    source.start + *held as usize,
                                );
                            }
                        }
                    }
                }
                return;
            }
        };
        let len = self.tap_len(is_center) / self.stride;
        for chunk in (0..len).step_by(CHUNK) {
            let inputs = CHUNK.min(len - chunk);
            let [outer, inner] = if inputs_first { [inputs, outputs] } else { [outputs, inputs] };
            for a in 0..outer {
                for b in 0..inner {
                    let (index, lane) = if inputs_first { (chunk + a, b) } else { (chunk + b, a) };
                    let start = starts[usize::from(lane >= lanes)];
                    visitor.weight(index * self.stride + lane, first + lane, start + index);
                }
            }
        }
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
    let mut packed = Aligned::zeroed_by_all(layout.len);
    for group in &classes.tap_groups(spec) {
        let source = match weights {
            ConvWeights::Dense(weight) => weight,
            ConvWeights::Het { center, .. } if group.is_center => center,
            ConvWeights::Het { ring, .. } => ring,
        };
        let mut blocks = split_blocks(&mut packed, layout);
        if classes.is_matrix(group) && layout.blocks.iter().all(|block| block.reads_ranges(group.is_center)) {
            let matrix = Matrix::new(spec, direction, source);
            // Blocks share the reading of a row.
            let together = blocks.len().div_ceil(4).max(1);
            blocks.par_chunks_mut(together).for_each(|blocks| matrix.pack(group.taps[0], blocks));
            continue;
        }
        // A filter's weights are neighbours in memory.
        let inputs_first = direction == Direction::GradInput;
        blocks.into_par_iter().for_each(|(block, packed)| {
            let places = group.taps.iter().map(|&tap| block.taps[tap] - block.weights.start).collect();
            let row = classes.row(group);
            let mut visitor = Pack { spec, classes, group, direction, source, row, places, packed };
            block.visit(group.is_center, inputs_first, &mut visitor);
        });
    }
    packed
}

/// One tap of every filter and every channel, `[N, M]` in natural order. It is read in that order, because a channel's
/// neighbours in a row stand far from each other in most stored orders, and rows are read from afar.
struct Matrix<'a> {
    spec: &'a ConvSpec,
    direction: Direction,
    values: &'a [f32],
    /// The stored position of every input.
    positions: Vec<u32>,
}

impl<'a> Matrix<'a> {
    fn new(spec: &'a ConvSpec, direction: Direction, values: &'a [f32]) -> Self {
        let inputs = match direction {
            Direction::Forward => &spec.in_order,
            Direction::GradInput => &spec.out_order,
        };
        Self { spec, direction, values, positions: inputs.positions() }
    }

    /// Packs it as a tap of some blocks.
    fn pack(&self, tap: usize, blocks: &mut [(&Block, &mut [f32])]) {
        /// Values that stay in the first-level cache.
        const NEAR: usize = cache::FIRST / 2;
        let channels = self.spec.in_channels;
        let place = |block: &Block| block.taps[tap] - block.weights.start;
        match self.direction {
            Direction::Forward => {
                for (block, packed) in blocks {
                    let (filters, packed) =
                        (&self.spec.out_order.channels()[block.outputs.clone()], &mut packed[place(block)..]);
                    for first in (0..channels).step_by(CHUNK) {
                        let positions = &self.positions[first..channels.min(first + CHUNK)];
                        for (lane, &filter) in filters.iter().enumerate() {
                            let row = &self.values[filter as usize * channels + first..][..positions.len()];
                            for (&position, &value) in positions.iter().zip(row) {
                                packed[position as usize * block.stride + lane] = value;
                            }
                        }
                    }
                }
            }
            Direction::GradInput => {
                let together = (NEAR / channels).max(1);
                for (rows, positions) in self.values.chunks(together * channels).zip(self.positions.chunks(together)) {
                    for (block, packed) in &mut *blocks {
                        let (channels_of_block, packed) =
                            (&self.spec.in_order.channels()[block.outputs.clone()], &mut packed[place(block)..]);
                        for (row, &position) in rows.chunks_exact(channels).zip(positions) {
                            let target = &mut packed[position as usize * block.stride..][..channels_of_block.len()];
                            for (slot, &channel) in target.iter_mut().zip(channels_of_block) {
                                *slot = row[channel as usize];
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Puts each weight of a group of taps into a block's part of the packed buffer.
struct Pack<'a> {
    spec: &'a ConvSpec,
    classes: &'a Classes,
    group: &'a TapGroup,
    direction: Direction,
    source: &'a [f32],
    /// Length of a filter's row in `source`.
    row: usize,
    /// Where each tap's weights start.
    places: Vec<usize>,
    packed: &'a mut [f32],
}

impl Visitor for Pack<'_> {
    #[inline(always)]
    fn weight(&mut self, at: usize, output: usize, input: usize) {
        let (filter, channel) = match self.direction {
            Direction::Forward => (output, input),
            Direction::GradInput => (input, output),
        };
        let (filters, channels) = (self.spec.out_order.channels(), self.spec.in_order.channels());
        let (filter, channel) = (filters[filter] as usize, channels[channel] as usize);
        let Some(place) = self.classes.place(self.group, filter, channel) else { return };
        if let &[first] = &self.places[..] {
            self.packed[first + at] = self.source[filter * self.row + place];
            return;
        }
        let from = &self.source[filter * self.row + place..][..self.places.len()];
        for (&first, &weight) in self.places.iter().zip(from) {
            self.packed[first + at] = weight;
        }
    }
}

/// A block's filters in the canonical tensors: their rows of each group of taps, in the order of the block's outputs.
pub(crate) struct Rows<'a>(Vec<Vec<&'a mut [f32]>>);

/// The rows of every block of a layout of forward weights; a ring's spare slots are zeroed.
pub(crate) fn rows_of_blocks<'a>(
    spec: &ConvSpec,
    classes: &Classes,
    layout: &Layout,
    grad: ConvWeightsMut<'a>,
) -> Vec<Rows<'a>> {
    let (main, ring) = match grad {
        ConvWeightsMut::Dense(weight) => (weight, None),
        ConvWeightsMut::Het { center, ring } => {
            classes.clear_spare(spec, ring);
            (center, Some(ring))
        }
    };
    let mut of_blocks: Vec<Rows<'_>> = layout.blocks.iter().map(|_| Rows(Vec::new())).collect();
    for (group, target) in classes.tap_groups(spec).iter().zip([Some(main), ring].into_iter().flatten()) {
        let row = classes.row(group);
        let mut rows: Vec<_> = target.chunks_exact_mut(row.max(1)).map(Some).collect();
        for (of_block, block) in of_blocks.iter_mut().zip(&layout.blocks) {
            let filters = &spec.out_order.channels()[block.outputs.clone()];
            let take = |&filter: &u32| rows.get_mut(filter as usize).and_then(Option::take).unwrap_or_default();
            of_block.0.push(filters.iter().map(take).collect());
        }
    }
    of_blocks
}

/// Brings a block of a packed grad-weight (forward layout) into canonical form; `packed` starts at place `first`.
pub(crate) fn unpack(
    spec: &ConvSpec,
    classes: &Classes,
    block: &Block,
    packed: &[f32],
    first: usize,
    rows: &mut Rows<'_>,
) {
    for (group, rows) in classes.tap_groups(spec).iter().zip(&mut rows.0) {
        if classes.row(group) == 0 {
            continue;
        }
        if classes.is_matrix(group) && block.reads_ranges(group.is_center) {
            unpack_matrix(spec, block, &packed[block.taps[group.taps[0]] - first..], rows);
            continue;
        }
        let places = group.taps.iter().map(|&tap| block.taps[tap] - first).collect();
        let mut visitor = Unpack { spec, classes, group, packed, places, first: block.outputs.start, rows };
        block.visit(group.is_center, false, &mut visitor);
    }
}

/// As [`Matrix::pack`] forward, the other way; `packed` starts with the tap's weights, `rows` are `[outputs, M]`.
fn unpack_matrix(spec: &ConvSpec, block: &Block, packed: &[f32], rows: &mut [&mut [f32]]) {
    let positions = spec.in_order.positions();
    for (chunk, positions) in positions.chunks(CHUNK).enumerate() {
        for (lane, row) in rows.iter_mut().enumerate() {
            for (&position, slot) in positions.iter().zip(&mut row[chunk * CHUNK..]) {
                *slot = packed[position as usize * block.stride + lane];
            }
        }
    }
}

/// Puts each gradient of a group of taps into its filter's row.
struct Unpack<'a, 'r> {
    spec: &'a ConvSpec,
    classes: &'a Classes,
    group: &'a TapGroup,
    packed: &'a [f32],
    /// Where each tap's gradients start.
    places: Vec<usize>,
    /// The first output position.
    first: usize,
    rows: &'a mut [&'r mut [f32]],
}

impl Visitor for Unpack<'_, '_> {
    #[inline(always)]
    fn weight(&mut self, at: usize, output: usize, input: usize) {
        let filter = self.spec.out_order.channels()[output] as usize;
        let channel = self.spec.in_order.channels()[input] as usize;
        let Some(place) = self.classes.place(self.group, filter, channel) else { return };
        if let &[first] = &self.places[..] {
            self.rows[output - self.first][place] = self.packed[first + at];
            return;
        }
        let row = &mut self.rows[output - self.first][place..][..self.places.len()];
        for (&first, slot) in self.places.iter().zip(row) {
            *slot = self.packed[first + at];
        }
    }
}

/// Pairs every block with its part of the packed buffer.
fn split_blocks<'a>(mut packed: &'a mut [f32], layout: &'a Layout) -> Vec<(&'a Block, &'a mut [f32])> {
    let mut parts = Vec::with_capacity(layout.blocks.len());
    for block in &layout.blocks {
        let (part, rest) = packed.split_at_mut(block.weights.len());
        parts.push((block, part));
        packed = rest;
    }
    parts
}

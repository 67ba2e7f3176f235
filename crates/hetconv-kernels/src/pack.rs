//! Weights in the order the kernel reads them.
//!
//! The filters (for grad-input: the channels) that a tile computes together form a [`Block`] of one or two vectors. At the
//! centre tap of a HetConv layer a block reads all of the other side's positions. At every other tap it reads its own
//! classes, in one of two forms:
//!
//! * *Ranges*: each vector reads a range of positions, value by value, and each value meets all its lanes. Vectors may
//!   have half the lanes, for classes narrower than a whole one. Where a class is narrower still, a vector covers several
//!   and the weights in between are zeros.
//! * *Rotated*: where whole narrow classes fill a vector on both sides, the positions are read as vectors, and meet
//!   weights that pair lane i with each output of its class in turn. Sums are kept apart by rotation, and brought to
//!   their lanes at the end of a tile. No lane is idle, whatever the classes' size.
//!
//! That is all the kernel knows of HetConv, groups or a standard convolution, so all of them are equally tuned.

use std::ops::Range;

use hetconv_core::{ChannelOrder, ConvKind};
use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{Algorithm, ConvSpec, ConvWeights, ConvWeightsMut};
use crate::isa::Isa;
use crate::taps::Region;
use crate::winograd;

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
    /// Input positions read by the centre tap, if it reads all.
    pub center: Range<usize>,
    /// What every other tap reads.
    pub ring: Ring,
    /// Where each tap's weights start, relative to the whole packed buffer.
    pub taps: Vec<usize>,
    /// The block's part of the packed buffer.
    pub weights: Range<usize>,
}

/// What the taps of a block read, but for a dense centre.
#[derive(Debug)]
pub(crate) enum Ring {
    /// Input positions for each vector; of equal length, and equal with one vector. Weights are `[range, stride]`.
    Ranges([Range<usize>; 2]),
    /// For each vector, vectors of input positions. Weights are `[sources, size, lanes]`, one vector's behind the other's:
    /// lane i of rotation j belongs to the input in lane i and the output in lane [`rotated`]`(i, j, size)`.
    Rotated {
        /// Lanes that change places among themselves: 1, 2, 4 or 8.
        size: usize,
        /// The vectors that each vector reads.
        sources: Vec<Vec<Source>>,
    },
}

/// A vector of input positions.
#[derive(Debug, PartialEq)]
pub(crate) struct Source {
    /// The first of the positions that are read.
    pub start: usize,
    /// For each lane the position it holds, relative to `start`; `None` holds 0.
    pub lanes: Vec<Option<u32>>,
}

/// The output lane that input lane `lane` meets in rotation `turn` of groups of `size` lanes.
pub(crate) fn rotated(lane: usize, turn: usize, size: usize) -> usize {
    lane - lane % size + (lane + turn) % size
}

impl Source {
    /// Whether the lanes hold the positions as they are read.
    pub fn is_plain(&self) -> bool {
        self.lanes.iter().enumerate().all(|(lane, &held)| held == Some(lane as u32))
    }
}

/// The packed form for one direction and one vector length.
#[derive(Debug)]
pub(crate) struct Layout {
    pub blocks: Vec<Block>,
    pub center: Option<usize>,
    pub len: usize,
}

/// Which way a convolution's [`PackedWeights`](crate::PackedWeights) are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From input to output.
    Forward,
    /// From the output's gradient to the input's.
    GradInput,
}

impl Block {
    /// Lanes of one vector.
    pub fn lanes(&self) -> usize {
        self.stride / self.vectors
    }

    /// The positions that each tap but a dense centre reads, of a block whose vectors all read the same.
    pub fn range(&self) -> Range<usize> {
        match &self.ring {
            Ring::Ranges([first, second]) if first == second => first.clone(),
            _ => unreachable!("vectors that read differently"),
        }
    }

    /// Number of the weights of a tap.
    fn tap_len(&self, is_center: bool) -> usize {
        match &self.ring {
            _ if is_center => self.center.len() * self.stride,
            Ring::Ranges([range, _]) => range.len() * self.stride,
            Ring::Rotated { size, sources } => sources.iter().map(Vec::len).sum::<usize>() * size * self.lanes(),
        }
    }

    /// Visits every weight of a tap that has an output. Those of one output come one after another over up to [`CHUNK`]
    /// inputs, or those of one input over all outputs.
    #[inline(always)]
    fn visit(&self, is_center: bool, inputs_first: bool, visitor: &mut impl Visitor) {
        let (first, outputs, lanes) = (self.outputs.start, self.outputs.len(), self.lanes());
        let starts = match &self.ring {
            _ if is_center => [self.center.start; 2],
            Ring::Ranges(ranges) => ranges.each_ref().map(|range| range.start),
            Ring::Rotated { size, sources } => {
                let of_vectors = sources.iter().enumerate();
                let sources =
                    of_vectors.flat_map(|(vector, sources)| sources.iter().map(move |source| (vector, source)));
                for (index, (vector, source)) in sources.enumerate() {
                    for turn in 0..*size {
                        for (lane, held) in source.lanes.iter().enumerate() {
                            if let Some(held) = held {
                                let output = first + vector * lanes + rotated(lane, turn, *size);
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

/// What is done with each weight of a block.
trait Visitor {
    /// The weight at a place among the tap's, of an output and an input position. Implementations are
    /// `#[inline(always)]`: it is called in inner loops.
    fn weight(&mut self, at: usize, output: usize, input: usize);
}

/// What the blocks of one direction are chosen from.
struct Choice<'a> {
    /// Class of every output position.
    outputs: &'a [u32],
    /// Class of every input position.
    inputs: &'a [u32],
    /// For every class, the input positions from its first to its last.
    spans: &'a [Range<usize>],
    taps: usize,
    dense_center: bool,
    isa: Isa,
}

impl Layout {
    /// Splits the outputs into blocks, cheapest first.
    pub fn new(spec: &ConvSpec, classes: &Classes, direction: Direction, algorithm: Algorithm, isa: Isa) -> Self {
        let (filters, channels) =
            (stored(&classes.filters, &spec.out_order), stored(&classes.channels, &spec.in_order));
        let (outputs, inputs) = match direction {
            Direction::Forward => (filters, channels),
            Direction::GradInput => (channels, filters),
        };
        let center = spec.geometry.center_tap().filter(|_| classes.dense_center);
        let choice = Choice {
            outputs: &outputs,
            inputs: &inputs,
            spans: &spans(&inputs, classes.count),
            taps: spec.geometry.taps(),
            dense_center: center.is_some(),
            isa,
        };
        let mut layout = Self { blocks: Vec::new(), center, len: 0 };
        let mut start = 0;
        while start < outputs.len() {
            let block = match algorithm {
                Algorithm::Direct => choice.cheapest(start),
                Algorithm::Winograd => choice.cheapest_transformed(start),
            };
            let block = layout.place(block, choice.taps);
            start = block.outputs.end;
            layout.blocks.push(block);
        }
        layout
    }

    /// Whole-vector products of an image's target pixels by the direct pass.
    pub fn products(&self, regions: &[Region], isa: Isa) -> f64 {
        let of_block = |block: &Block| {
            let weight = if block.half { isa.half_cost() } else { 1.0 };
            let of_tap = |&(tap, _): &(usize, isize)| block.tap_len(Some(tap) == self.center) / isa.lanes();
            let of_region = |region: &Region| region.pixels.len() * region.taps.iter().map(of_tap).sum::<usize>();
            weight * regions.iter().map(of_region).sum::<usize>() as f64
        };
        self.blocks.iter().map(of_block).sum()
    }

    /// Gives a block's weights their place behind all others.
    fn place(&mut self, mut block: Block, taps: usize) -> Block {
        let first = self.len;
        for tap in 0..taps {
            block.taps.push(self.len);
            let len = block.tap_len(Some(tap) == self.center);
            // Weights of one filter and channel are written tap by tap: they must not all fall into one set of the cache.
            self.len += len + if len > 0 && len.is_multiple_of(PAGE) { LINE } else { 0 };
        }
        block.weights = first..self.len;
        block
    }
}

impl Choice<'_> {
    /// The block from an output on that costs least per output.
    fn cheapest(&self, start: usize) -> Block {
        let run = self.outputs[start..].iter().take_while(|&&class| class == self.outputs[start]).count();
        let left = self.outputs.len() - start;
        let mut candidates = Vec::new();
        for half in [false, true] {
            let lanes = if half { self.isa.half_lanes() } else { self.isa.lanes() };
            let widths = [2 * lanes, lanes, run.min(2 * lanes)];
            candidates.extend(widths.map(|width| self.ranges(start, width.min(left), lanes, half)));
        }
        candidates.extend(self.rotated(start, 1));
        candidates.extend(self.rotated(start, 2));
        let cheapest = candidates.into_iter().min_by(|a, b| self.cost(a).total_cmp(&self.cost(b)));
        cheapest.expect("six candidates or more")
    }

    /// As [`Choice::cheapest`] among those whose vectors read the same range, by Winograd's number of products.
    fn cheapest_transformed(&self, start: usize) -> Block {
        let run = self.outputs[start..].iter().take_while(|&&class| class == self.outputs[start]).count();
        let left = self.outputs.len() - start;
        let lanes = self.isa.lanes();
        let candidates = [2 * lanes, lanes, run.min(2 * lanes)].map(|width| {
            let outputs = start..start + width.min(left);
            let span = self.span(outputs.clone());
            self.block(outputs, false, lanes, Ring::Ranges([span.clone(), span]))
        });
        let cost = |block: &Block| {
            block.vectors as f64 * winograd::products(block, self.inputs.len()) / block.outputs.len() as f64
        };
        candidates.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("three candidates")
    }

    /// Whole-vector products per output.
    fn cost(&self, block: &Block) -> f64 {
        let weight = if block.half { self.isa.half_cost() } else { 1.0 };
        let taps = self.taps - usize::from(self.dense_center);
        let (products, loads) = match &block.ring {
            Ring::Ranges([first, second]) => {
                let simple = block.vectors == 2 && first == second;
                (block.vectors * (block.center.len() + taps * first.len()), if simple { 1.0 } else { MORE_LOADS })
            }
            // The sums of each rotation are brought to their lanes once, and written and read again.
            Ring::Rotated { size, sources } => {
                let turns = taps * size * sources.iter().map(Vec::len).sum::<usize>();
                let loads = if block.vectors == 2 { 1.0 } else { MORE_LOADS };
                (block.vectors * (block.center.len() + 2 * size + 2) + turns, loads)
            }
        };
        weight * loads * products as f64 / block.outputs.len() as f64
    }

    /// The block of `width` outputs from `start` on, in vectors of `lanes` that read ranges.
    fn ranges(&self, start: usize, width: usize, lanes: usize, half: bool) -> Block {
        let vectors = width.div_ceil(lanes);
        let end = start + width;
        let first = self.span(start..end.min(start + lanes));
        let second = if vectors == 2 { self.span(start + lanes..end) } else { first.clone() };
        // Both vectors read equally many positions: the shorter range is extended, to zero weights.
        let len = first.len().max(second.len());
        let widen = |range: Range<usize>| {
            let from = range.start.min(self.inputs.len() - len);
            from..from + len
        };
        self.block(start..end, half, lanes, Ring::Ranges([widen(first), widen(second)]))
    }

    /// The block of so many vectors of outputs from `start` on, with their inputs in vectors as well; `None` unless each can
    /// be had, all with groups of one size.
    fn rotated(&self, start: usize, vectors: usize) -> Option<Block> {
        let lanes = self.isa.lanes();
        let (mut sizes, mut sources) = (Vec::new(), Vec::new());
        for vector in 0..vectors {
            let (size, of_vector) = self.rotated_vector(start + vector * lanes)?;
            sizes.push(size);
            sources.push(of_vector);
        }
        let size = sizes[0];
        let outputs = start..start + vectors * lanes;
        let block = || self.block(outputs, false, lanes, Ring::Rotated { size, sources });
        sizes.iter().all(|&other| other == size).then(block)
    }

    /// The vector of outputs from `start` on, with its inputs in vectors as well; `None` unless it covers whole classes,
    /// contiguous on both sides, each side a multiple of the other, all of one size on the smaller side.
    fn rotated_vector(&self, start: usize) -> Option<(usize, Vec<Source>)> {
        let lanes = self.isa.lanes();
        let outputs = self.outputs.get(start..start + lanes)?;
        let mut size = None;
        // For each lane, the positions it has to hold in turn.
        let mut held: Vec<Vec<usize>> = Vec::with_capacity(lanes);
        while held.len() < lanes {
            let class = outputs[held.len()];
            let run = outputs[held.len()..].iter().take_while(|&&other| other == class).count();
            let span = self.spans[class as usize].clone();
            let whole = run == self.outputs.iter().filter(|&&other| other == class).count()
                && self.inputs[span.clone()].iter().all(|&other| other == class);
            let smaller = run.min(span.len());
            let fits = smaller > 0 && run.max(span.len()).is_multiple_of(smaller);
            if !whole || !fits || *size.get_or_insert(smaller) != smaller {
                return None;
            }
            held.extend((0..run).map(|i| (span.start + i % smaller..span.end).step_by(smaller).collect()));
        }
        let size = size.filter(|size| [1, 2, 4, 8].contains(size) && *size < lanes && self.inputs.len() >= lanes)?;
        let mut sources = Vec::new();
        let turns = held.iter().map(Vec::len).max().unwrap_or(0);
        for turn in 0..turns {
            let mut missing: Vec<Option<usize>> = held.iter().map(|positions| positions.get(turn).copied()).collect();
            while let Some(first) = missing.iter().flatten().min() {
                let start = *first.min(&(self.inputs.len() - lanes));
                let mut take = |position: &mut Option<usize>| {
                    let inside = position.filter(|&position| position < start + lanes)?;
                    *position = None;
                    Some((inside - start) as u32)
                };
                sources.push(Source { start, lanes: missing.iter_mut().map(&mut take).collect() });
            }
        }
        Some((size, sources))
    }

    fn block(&self, outputs: Range<usize>, half: bool, lanes: usize, ring: Ring) -> Block {
        let vectors = outputs.len().div_ceil(lanes);
        let center = if self.dense_center { 0..self.inputs.len() } else { 0..0 };
        Block {
            outputs,
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

/// Values of a page and of a cache line.
const PAGE: usize = 1024;
pub(crate) const LINE: usize = 16;

/// A tile of one vector, or of two that read different positions, needs more loads for its products, so it has to save
/// that much arithmetic to be worth it.
const MORE_LOADS: f64 = 1.15;

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
        // A filter's weights are neighbours in memory.
        let inputs_first = direction == Direction::GradInput;
        split_blocks(&mut packed, layout).into_par_iter().for_each(|(block, packed)| {
            let places = group.taps.iter().map(|&tap| block.taps[tap] - block.weights.start).collect();
            let row = classes.row(group);
            let mut visitor = Pack { spec, classes, group, direction, source, row, places, packed };
            block.visit(group.is_center, inputs_first, &mut visitor);
        });
    }
    packed
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

/// Input positions that are packed together: their packed and canonical weights share the first-level cache.
const CHUNK: usize = 16;

/// A block's filters in the canonical tensors: their rows of each group of taps, in the order of the block's outputs.
pub(crate) struct Rows<'a>(Vec<Vec<&'a mut [f32]>>);

/// The rows of every block of a layout of forward weights; those of a ring are zeroed.
pub(crate) fn rows_of_blocks<'a>(
    spec: &ConvSpec,
    classes: &Classes,
    layout: &Layout,
    grad: ConvWeightsMut<'a>,
) -> Vec<Rows<'a>> {
    let (main, ring) = match grad {
        ConvWeightsMut::Dense(weight) => (weight, None),
        ConvWeightsMut::Het { center, ring } => {
            ring.fill(0.0);
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
        let places = group.taps.iter().map(|&tap| block.taps[tap] - first).collect();
        let mut visitor = Unpack { spec, classes, group, packed, places, first: block.outputs.start, rows };
        block.visit(group.is_center, false, &mut visitor);
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
pub(crate) fn split_blocks<'a>(mut packed: &'a mut [f32], layout: &'a Layout) -> Vec<(&'a Block, &'a mut [f32])> {
    let mut parts = Vec::with_capacity(layout.blocks.len());
    for block in &layout.blocks {
        let (part, rest) = packed.split_at_mut(block.weights.len());
        parts.push((block, part));
        packed = rest;
    }
    parts
}

//! Which outputs form blocks, and where their weights stand.

use std::ops::Range;

use hetconv_core::ChannelOrder;

use super::{Block, Classes, Direction, Ring, Source};
use crate::cache::{LINE, WAY};
use crate::conv::{Algorithm, ConvSpec};
use crate::isa::Isa;
use crate::taps::Region;
use crate::winograd;

/// The packed form for one direction and one vector length.
#[derive(Debug)]
pub(crate) struct Layout {
    pub blocks: Vec<Block>,
    pub center: Option<usize>,
    pub len: usize,
}

/// What the blocks of one direction are chosen from.
struct Choice<'a> {
    /// Class of every output position.
    outputs: &'a [u32],
    /// Number of outputs of every class.
    sizes: Vec<usize>,
    /// Class of every input position.
    inputs: &'a [u32],
    /// For every class, the input positions from its first to its last.
    spans: &'a [Range<usize>],
    taps: usize,
    dense_center: bool,
    isa: Isa,
}

impl Layout {
    /// Splits the outputs into blocks, in their order, each the cheapest from its start on.
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
            sizes: sizes(&outputs, classes.count),
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
                Algorithm::Winograd => choice.cheapest_transformed(start),
                Algorithm::Direct => choice.cheapest(start),
                Algorithm::Depthwise => unreachable!("a depthwise layer has no blocks"),
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
            let of_tap = |&(tap, _): &(usize, isize)| block.tap_len(Some(tap) == self.center) / block.lanes();
            let of_region = |region: &Region| region.len() * region.taps.iter().map(of_tap).sum::<usize>();
            isa.cost_of(block.half) * regions.iter().map(of_region).sum::<usize>() as f64
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
            self.len += len + if len > 0 && len.is_multiple_of(WAY) { LINE } else { 0 };
        }
        block.weights = first..self.len;
        block
    }
}

impl Choice<'_> {
    /// The block from an output on that costs least per output.
    fn cheapest(&self, start: usize) -> Block {
        let left = self.outputs.len() - start;
        let run = self.run(start..start + left.min(2 * self.isa.lanes()));
        let mut candidates = Vec::new();
        for half in [false, true] {
            let lanes = if half { self.isa.half_lanes() } else { self.isa.lanes() };
            let widths = [2 * lanes, lanes, run.min(2 * lanes)];
            candidates.extend(widths.map(|width| self.ranges(start, width.min(left), lanes, half)));
        }
        candidates.extend(self.turned(start, 1));
        candidates.extend(self.turned(start, 2));
        let cheapest = candidates.into_iter().min_by(|a, b| self.cost(a).total_cmp(&self.cost(b)));
        cheapest.expect("six candidates or more")
    }

    /// How many outputs from the first one on are of its class.
    fn run(&self, outputs: Range<usize>) -> usize {
        let class = self.outputs[outputs.start];
        self.outputs[outputs].iter().take_while(|&&other| other == class).count()
    }

    /// As [`Choice::cheapest`] among those whose vectors read the same range, by Winograd's number of products.
    fn cheapest_transformed(&self, start: usize) -> Block {
        let (left, lanes) = (self.outputs.len() - start, self.isa.lanes());
        let run = self.run(start..start + left.min(2 * lanes));
        let candidates = [2 * lanes, lanes, run].map(|width| {
            let outputs = start..start + width.min(left);
            let span = self.span(outputs.clone());
            self.block(outputs, false, lanes, Ring::Ranges([span.clone(), span]))
        });
        let cost = |block: &Block| block.vectors as f64 * winograd::products(block) / block.outputs.len() as f64;
        candidates.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("three candidates")
    }

    /// Whole-vector products per output.
    fn cost(&self, block: &Block) -> f64 {
        let taps = self.taps - usize::from(self.dense_center);
        let (products, loads) = match &block.ring {
            Ring::Ranges([first, second]) => {
                let simple = block.vectors == 2 && first == second;
                let products = block.vectors * (block.center.len() + taps * first.len());
                (products as f64, if simple { 1.0 } else { MORE_LOADS })
            }
            // The sums of each turn are brought to their lanes once, and written and read again.
            Ring::Turned { size, sources } => {
                let turns = taps * size * sources.iter().map(Vec::len).sum::<usize>();
                let plain = sources.iter().flatten().all(Source::is_plain);
                let turns = if plain { 1.0 } else { SPREAD } * turns as f64;
                let loads = if block.vectors == 2 { 1.0 } else { MORE_LOADS };
                ((block.vectors * (block.center.len() + 2 * size + 2)) as f64 + turns, loads)
            }
        };
        self.isa.cost_of(block.half) * loads * products / block.outputs.len() as f64
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
    fn turned(&self, start: usize, vectors: usize) -> Option<Block> {
        let lanes = self.isa.lanes();
        let (mut sizes, mut sources) = (Vec::new(), Vec::new());
        for vector in 0..vectors {
            let (size, of_vector) = self.turned_vector(start + vector * lanes)?;
            sizes.push(size);
            sources.push(of_vector);
        }
        let size = sizes[0];
        let outputs = start..start + vectors * lanes;
        let block = || self.block(outputs, false, lanes, Ring::Turned { size, sources });
        sizes.iter().all(|&other| other == size).then(block)
    }

    /// The vector of outputs from `start` on, with its inputs in vectors as well; `None` unless it covers whole classes,
    /// contiguous on both sides, each side a multiple of the other, all of one size on the smaller side.
    fn turned_vector(&self, start: usize) -> Option<(usize, Vec<Source>)> {
        let lanes = self.isa.lanes();
        let outputs = self.outputs.get(start..start + lanes)?;
        let mut size = None;
        // For each lane, the positions it has to hold in turn.
        let mut held: Vec<Vec<usize>> = Vec::with_capacity(lanes);
        while held.len() < lanes {
            let class = outputs[held.len()];
            let run = self.run(start + held.len()..start + lanes);
            let span = self.spans[class as usize].clone();
            let whole =
                run == self.sizes[class as usize] && self.inputs[span.clone()].iter().all(|&other| other == class);
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

/// A tile of one vector, or of two that read different positions, needs more loads for its products, so it has to save
/// that much arithmetic to be worth it.
const MORE_LOADS: f64 = 1.15;

/// Values that have to be brought to their lanes first cost that much more: each time they meet weights, and in grad-weight
/// for every two turns.
const SPREAD: f64 = 1.25;

/// Class of every position.
fn stored(classes: &[u32], order: &ChannelOrder) -> Vec<u32> {
    order.channels().iter().map(|&channel| classes[channel as usize]).collect()
}

/// For every class, the number of its positions.
fn sizes(classes: &[u32], count: usize) -> Vec<usize> {
    let mut sizes = vec![0; count];
    classes.iter().for_each(|&class| sizes[class as usize] += 1);
    sizes
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

#[cfg(test)]
mod tests {
    use hetconv_core::{Conv2dGeometry, ConvKind};

    use super::*;
    use crate::conv::Conv;

    /// What a layer costs is what its instructions do, each with two operands from whole or half vectors.
    #[test]
    fn products_are_those_of_the_blocks() {
        for isa in Isa::available() {
            let [lanes, half] = [isa.lanes(), isa.half_lanes()];
            for (filters, blocks) in [(lanes, vec![(false, 1)]), (2 * lanes, vec![(false, 2)]), (half, vec![(true, 1)])]
            {
                if filters == lanes && blocks[0].0 {
                    continue;
                }
                let spec = ConvSpec::natural(3, filters, Conv2dGeometry::same(1, 1), ConvKind::Standard);
                let layout = Layout::new(&spec, &Classes::new(&spec), Direction::Forward, Algorithm::Direct, isa);
                let found: Vec<(bool, usize)> = layout.blocks.iter().map(|block| (block.half, block.vectors)).collect();
                assert_eq!(found, blocks, "{isa:?}, {filters} filters");
                let conv = Conv::new(spec, [5, 4]).unwrap();
                let expected: f64 =
                    blocks.iter().map(|&(half, vectors)| isa.cost_of(half) * (vectors * 3 * 20) as f64).sum();
                assert_eq!(conv.direct_cost(&layout, Direction::Forward, isa), expected, "{isa:?}, {filters} filters");
            }
        }
    }
}

//! Grad-weight of every convolution but depthwise: for each tap, a sum over pixels of input × grad-output.
//!
//! The result has the layout of the packed forward weights. A [`Tile`] is up to [`ROWS`] input channels by one [`Block`] of
//! filters; it stays in registers over a run of pixels, and is then added to the buffer. A run's grad-output is copied
//! into a *panel* first, so that all taps read it in sequence. Pixels that a tap would read from the padding are not in its
//! list. A block that reads vectors takes all taps at once over the pixels of a [`Region`], which have the same taps, two
//! turns of the grad-output at a time. Small images are strung together, so that runs are long everywhere.
//!
//! With Winograd's algorithm that is left to the centre taps of channels outside of a filter's class; see [`transformed`].

mod cut;
mod tile;
mod transformed;
mod turns;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use cut::Cut;
use cut::RUN;
use tile::{ROWS, Tile};
use transformed::Sums;
pub(crate) use transformed::cost as transformed_cost;
use turns::{MOST_TAPS, Turns};

use crate::aligned::Aligned;
use crate::cache;
use crate::conv::{Algorithm, ConvSpec, ConvWeightsMut, Images};
use crate::isa::Isa;
use crate::kernel::Along;
use crate::moments::SumsOfParts;
use crate::pack::{Block, Classes, Layout, Ring, Rows, partner, rows_of_blocks, unpack};
use crate::parallel::{PARTS, even_ranges, parts_of_blocks};
use crate::prefetch::Prefetch;
use crate::reading::Reading;
use crate::simd::{Simd, Task};
use crate::taps::Region;
use crate::walk::Walk;

/// Groups of blocks that each may make what it reads.
const FEW_GROUPS: usize = 2;

/// A prepared grad-weight.
#[derive(Clone, Copy)]
pub(crate) struct GradWeight<'a> {
    pub algorithm: Algorithm,
    /// Of forward weights, for the algorithm.
    pub layout: &'a Layout,
    /// Nothing where all is left to the transformed domain.
    pub cut: Option<&'a Cut>,
    /// The regions of the forward pass.
    pub regions: &'a [Region],
    pub images: &'a Images<'a>,
    pub spec: &'a ConvSpec,
    pub classes: &'a Classes,
}

impl GradWeight<'_> {
    /// Whether grad-input may be computed along: if every part reads other images, and there are enough of them.
    pub fn takes_along(&self) -> bool {
        let groups = self.groups_of_blocks().len();
        groups == 1 && parts_of_blocks(self.images.batch, groups, self.layout.len) >= PARTS
    }

    /// Overwrites `grad`, and returns what is counted of what is computed along, `[2, channels]`; see
    /// [`GradWeight::takes_along`].
    pub fn run(&self, isa: Isa, grad: ConvWeightsMut<'_>, along: Option<&Along<'_>>) -> Vec<f64> {
        let is_stored = self.images.readings[1].is_plain();
        assert!(along.is_none() || self.takes_along() && is_stored, "parts that share images");
        let batch = self.images.batch;
        let groups = self.groups_of_blocks();
        if groups.len() > FEW_GROUPS && !self.images.readings.iter().all(Reading::is_plain) {
            // Each group would make the same values.
            return self.images.brought(isa, |images| GradWeight { images, ..*self }.run(isa, grad, None));
        }
        let parts = parts_of_blocks(batch, groups.len(), self.layout.len);
        let of_part = |part: usize| part * batch / parts..(part + 1) * batch / parts;
        let mut rows = rows_of_blocks(self.spec, self.classes, self.layout, grad).into_iter();
        let rows: Vec<Vec<Rows<'_>>> = groups.iter().map(|group| rows.by_ref().take(group.len()).collect()).collect();
        let len = |blocks: &[Block]| blocks.iter().map(|block| block.weights.len()).sum::<usize>();
        let unpack = |blocks: &[Block], rows: Vec<Rows<'_>>, packed: &[f32]| {
            for (block, mut rows) in blocks.iter().zip(rows) {
                unpack(self.spec, self.classes, block, packed, blocks[0].weights.start, &mut rows);
            }
        };
        if parts == 1 {
            // What a thread has summed it unpacks while it is near.
            groups.into_par_iter().zip(rows).for_each(|(blocks, rows)| {
                let mut out = Aligned::zeroed(len(blocks));
                isa.run(Part { grad: self, images: of_part(0), blocks, out: &mut out, along: None, counted: &mut [] });
                unpack(blocks, rows, &out);
            });
            return Vec::new();
        }
        let stride = self.layout.len.next_multiple_of(16);
        let mut partial = Aligned::zeroed_by_all(parts * stride);
        let mut counted = SumsOfParts::new(parts, along.map_or(0, Along::counted));
        let mut of_parts = counted.parts();
        let mut work = Vec::new();
        for (part, mut packed) in partial.chunks_mut(stride.max(1)).enumerate() {
            for &blocks in &groups {
                let (out, others) = packed.split_at_mut(len(blocks));
                let counted = of_parts.next().unwrap_or_default();
                work.push(Part { grad: self, images: of_part(part), blocks, out, along, counted });
                packed = others;
            }
        }
        work.into_par_iter().for_each(|part| isa.run(part));
        sum_parts(&mut partial, stride);
        groups.into_par_iter().zip(rows).for_each(|(blocks, rows)| {
            unpack(blocks, rows, &partial[blocks[0].weights.start..]);
        });
        counted.total()
    }

    /// Blocks that are worked on together: they find a run's input near, and their weights stay in the second-level cache.
    fn groups_of_blocks(&self) -> Vec<&[Block]> {
        if self.algorithm == Algorithm::Winograd {
            return transformed::groups_of_blocks(self.layout);
        }
        const WEIGHTS: usize = cache::SECOND / 16 * 3;
        let mut groups = Vec::new();
        let mut rest = &self.layout.blocks[..];
        while !rest.is_empty() {
            let start = rest[0].weights.start;
            let fit = rest.iter().take_while(|block| block.weights.end - start <= WEIGHTS).count();
            let (group, others) = rest.split_at(fit.max(1));
            groups.push(group);
            rest = others;
        }
        groups
    }
}

/// Adds all parts to the first, in order.
fn sum_parts(partial: &mut [f32], len: usize) {
    const STRETCH: usize = 1 << 14;
    if partial.len() == len {
        return;
    }
    let (sum, others) = partial.split_at_mut(len);
    sum.par_chunks_mut(STRETCH).enumerate().for_each(|(stretch, sum)| {
        for other in others.chunks_exact(len) {
            for (sum, value) in sum.iter_mut().zip(&other[stretch * STRETCH..]) {
                *sum += value;
            }
        }
    });
}

/// Some blocks over some images, for one thread.
struct Part<'a> {
    grad: &'a GradWeight<'a>,
    images: Range<usize>,
    blocks: &'a [Block],
    out: &'a mut [f32],
    along: Option<&'a Along<'a>>,
    /// `[2, channels]`, if that is counted.
    counted: &'a mut [f64],
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let GradWeight { algorithm, images, spec, cut, layout, .. } = *self.grad;
        let along = self.along;
        let [of_input, of_grad_output] = images.readings;
        let mut sums = (algorithm == Algorithm::Winograd).then(|| Sums::new(self.grad, self.blocks));
        let group = cut.map_or(1, |cut| cut.group);
        let together = sums.as_ref().map_or(group, Sums::images);
        let in_len = images.in_size[0] * images.in_size[1] * spec.in_channels;
        let out_pixels = images.out_size[0] * images.out_size[1];
        let panel = |block: &Block| Aligned::zeroed(if cut.is_some() { RUN * block.stride } else { 0 });
        let mut panels: Vec<Aligned> = self.blocks.iter().map(panel).collect();
        let out_len = out_pixels * spec.out_channels;
        let most = together.min(self.images.len());
        let mut rooms = [of_input.room(most * in_len), of_grad_output.room(most * out_len)];
        let at_once = along.map_or(self.images.len().max(1), |along| along.images(together));
        let mut scratch = along.map(|along| along.scratch(at_once));
        let mut done = self.images.start;
        for start in self.images.clone().step_by(together) {
            let count = (self.images.end - start).min(together);
            let [room_in, room_out] = &mut rooms;
            let input = &images.input[start * in_len..][..count * in_len];
            let grad_output = &images.grad_output[start * out_len..][..count * out_len];
            let input = of_input.brought(simd, input, room_in);
            let grad_output = of_grad_output.brought(simd, grad_output, room_out);
            if let Some(sums) = &mut sums {
                sums.add(simd, count, input, grad_output);
            }
            // What the next images are made of is asked for while these are worked on.
            let turns = self.tiles_of_run() * count * out_pixels;
            let behind = |values: &[f32], len: usize| {
                Prefetch::new(values.as_ptr().wrapping_add((start + count) * len), count * len, turns)
            };
            let mut near = [behind(images.input, in_len), behind(images.grad_output, out_len)];
            for first in (0..count).step_by(group) {
                let Some(cut) = cut else { break };
                let in_group = (count - first).min(group);
                let input = &input[first * in_len..][..in_group * in_len];
                let grad_output = &grad_output[first * out_len..][..in_group * out_len];
                self.ranges(simd, cut, input, grad_output, &mut panels, &mut near);
                for block in self.blocks {
                    self.turns(simd, cut, block, in_group, input, grad_output);
                }
            }
            if let (Some(along), Some(scratch)) = (along, &mut scratch) {
                let end = start + count;
                if end - done >= at_once || end == self.images.end {
                    let grad_output = &images.grad_output[done * out_len..end * out_len];
                    // SAFETY: parts have images of their own.
                    unsafe { along.compute(done..end, grad_output, scratch, self.counted) };
                    done = end;
                }
            }
        }
        if let Some(sums) = sums {
            sums.add_to(simd, layout.center, self.blocks[0].weights.start, self.out);
        }
    }
}

impl Part<'_> {
    /// Where a block's weights of a tap stand in `out`.
    fn place(&self, block: &Block, tap: usize) -> usize {
        block.taps[tap] - self.blocks[0].weights.start
    }

    /// The ranges of inputs that a tap reads for a block's first vector, and how much further its second vector reads; they
    /// are nothing where that is done otherwise.
    fn reads(&self, block: &Block, tap: usize) -> ([Range<usize>; 2], isize) {
        let is_center = Some(tap) == self.grad.layout.center;
        match (self.grad.algorithm, &block.ring) {
            (Algorithm::Direct, _) if is_center => ([block.center.clone(), 0..0], 0),
            (Algorithm::Direct, Ring::Ranges([range, second])) => {
                ([range.clone(), 0..0], second.start as isize - range.start as isize)
            }
            (Algorithm::Winograd, Ring::Ranges([range, _])) if is_center => {
                ([block.center.start..range.start, range.end..block.center.end], 0)
            }
            _ => ([0..0, 0..0], 0),
        }
    }

    /// Adds what taps contribute that read ranges, of the images of a group.
    #[inline(always)]
    fn ranges<S: Simd>(
        &mut self,
        simd: S,
        cut: &Cut,
        input: &[f32],
        grad_output: &[f32],
        panels: &mut [Aligned],
        near: &mut [Prefetch; 2],
    ) {
        let (blocks, filters, layout) = (self.blocks, self.grad.spec.out_channels, self.grad.layout);
        let pixels = grad_output.len() / filters;
        // What is read as it stands is asked for a run ahead: a little with every pixel of every tile.
        let runs = pixels.div_ceil(RUN).max(1);
        let turns = self.tiles_of_run() * (pixels / runs);
        if turns == 0 {
            return;
        }
        let next = |values: &[f32]| {
            let of_run = values.len() / runs;
            Prefetch::new(values.as_ptr().wrapping_add(of_run), of_run, turns)
        };
        for (values, (near, reading)) in
            [input, grad_output].iter().zip(near.iter_mut().zip(&self.grad.images.readings))
        {
            if reading.is_plain() {
                *near = next(values);
            }
        }
        for (index, taps) in cut.runs.iter().enumerate().take(pixels.div_ceil(RUN)) {
            let rows = (pixels - index * RUN).min(RUN);
            let of_run = &grad_output[index * RUN * filters..][..rows * filters];
            for (block, panel) in blocks.iter().zip(&mut *panels) {
                for (pixel, row) in of_run.chunks_exact(filters).zip(panel.chunks_exact_mut(block.stride)) {
                    copy(simd, &pixel[block.outputs.clone()], row);
                }
                for (tap, pairs) in taps.iter().enumerate() {
                    let (ranges, shift) = self.reads(block, tap);
                    let start = if Some(tap) == layout.center { block.center.start } else { ranges[0].start };
                    // A last, smaller group uses the front of the lists: they are ordered by output pixel.
                    let pairs = &pairs[..pairs.partition_point(|&(_, row)| (row as usize) < rows)];
                    for channels in ranges.iter().flat_map(|range| even_ranges(range, ROWS)) {
                        let place = self.place(block, tap) + (channels.start - start) * block.stride;
                        let first = input.as_ptr().wrapping_add(channels.start);
                        let x = [first, first.wrapping_offset(shift)];
                        let (panel, out) = (panel.as_ptr(), &mut self.out[place..]);
                        let tile = Tile { pairs, x, panel, out, near: &mut *near };
                        // SAFETY: pairs name pixels of `input`, whose channels the range lies in, and rows of the panel.
                        unsafe { tile.compute(simd, block, channels.len()) };
                    }
                }
            }
        }
    }

    /// Tiles of a run.
    fn tiles_of_run(&self) -> usize {
        let taps = self.grad.spec.geometry.taps();
        let of_block = |block: &Block| -> usize {
            let of_tap = |tap| self.reads(block, tap).0.map(|range| range.len().div_ceil(ROWS)).iter().sum::<usize>();
            (0..taps).map(of_tap).sum()
        };
        self.blocks.iter().map(of_block).sum()
    }

    /// Adds what taps contribute that read vectors, of the images of a group.
    #[inline(always)]
    fn turns<S: Simd>(&mut self, simd: S, cut: &Cut, block: &Block, images: usize, input: &[f32], grad_output: &[f32]) {
        let Ring::Turned { size, sources } = &block.ring else { return };
        let lane = |turn: usize, lane: usize| (partner(lane, turn) % S::LANES) as u32;
        let lanes: Vec<[u32; 16]> = (0..*size).map(|turn| std::array::from_fn(|index| lane(turn, index))).collect();
        for (region, pairs) in self.grad.regions.iter().zip(&cut.regions) {
            let taps: Vec<(usize, isize)> =
                region.taps.iter().copied().filter(|&(tap, _)| Some(tap) != self.grad.layout.center).collect();
            let walk = Walk::new(block, None, &taps);
            for pairs in pairs[..images * region.len()].chunks(RUN) {
                for (vector, turns) in walk.turns.iter().enumerate().take(sources.len()) {
                    let grad_output = &grad_output[block.outputs.start + vector * S::LANES..];
                    for turns in even_ranges(&(0..turns.len()), MOST_TAPS).map(|piece| &turns[piece]) {
                        for (pair, lanes) in lanes.chunks(2).enumerate() {
                            let first = self.blocks[0].weights.start as isize - (2 * pair * S::LANES) as isize;
                            let (plain, out) = (walk.plain, &mut *self.out);
                            let turns = Turns { pairs, input, grad_output, turns, plain, lanes, first, out };
                            // SAFETY: pairs hold offsets of pixels of the group's images, which both slices span; a region
                            // only names taps that fall inside, and sources lie within a pixel.
                            unsafe { turns.compute(simd) };
                        }
                    }
                }
            }
        }
    }
}

/// Copies a few values to the front of a row.
#[inline(always)]
fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    assert!(from.len() <= to.len());
    let whole = from.len() - from.len() % S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: a whole vector is left in both.
        unsafe { simd.store(to.as_mut_ptr().add(at), simd.load(from.as_ptr().add(at))) };
    }
    to[whole..from.len()].copy_from_slice(&from[whole..]);
}

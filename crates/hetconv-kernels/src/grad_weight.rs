//! Grad-weight of every convolution but depthwise: for each tap, a sum over pixels of input × grad-output.
//!
//! The result has the layout of the packed forward weights. A tile is up to [`ROWS`] input channels by one [`Block`] of
//! filters; it stays in registers over a run of pixels, and is then added to the buffer. A run's grad-output is copied
//! into a *panel* first, so that all taps read it in sequence. Pixels that a tap would read from the padding are not in its
//! list. A block that reads vectors takes all taps at once over the pixels of a [`Region`], which have the same taps, two
//! rotations of the grad-output at a time. Small images are strung together, so that runs are long everywhere.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{ConvSpec, ConvWeightsMut, Images};
use crate::isa::Isa;
use crate::pack::{Block, Classes, Layout, Ring, Rows, rotated, rows_of_blocks, unpack};
use crate::parallel::parts_of_blocks;
use crate::prefetch::Prefetch;
use crate::reorder::Reorder;
use crate::simd::{Simd, Task};
use crate::taps::Region;
use crate::walk::{Spread, Turn, Walk};

/// The most input channels of a tile.
const ROWS: usize = 12;

/// Output pixels of a run: long enough for a tile's sums to be read and written seldom, short enough for the panel and the
/// input that meets it to stay in the second-level cache.
const RUN: usize = 256;

/// Values of input and grad-output that are strung together at most, where a run is not longer: they stay in the second-level
/// cache.
const STRUNG: usize = 128 << 10;

/// Groups of blocks that each may bring what it reads into order.
const FEW_GROUPS: usize = 2;

/// A prepared grad-weight.
#[derive(Clone, Copy)]
pub(crate) struct GradWeight<'a> {
    pub layout: &'a Layout,
    pub cut: &'a Cut,
    /// The regions of the forward pass.
    pub regions: &'a [Region],
    pub images: &'a Images<'a>,
    /// Into the kernel's orders, of input and grad-output.
    pub orders: [&'a Reorder; 2],
    pub spec: &'a ConvSpec,
    pub classes: &'a Classes,
}

/// Where a product's two factors are: the first of its input channels, and the place of its output pixel in a run or, for a
/// region, its first value.
type Pairs = Vec<(u32, u32)>;

/// How images of one size are strung together and cut.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Images of a group.
    group: usize,
    /// For every run of a group and every tap its pairs.
    runs: Vec<Vec<Pairs>>,
    /// For every region the pairs of a group, image by image.
    regions: Vec<Pairs>,
}

impl Cut {
    /// `pairs` are for every tap those of input and output pixel of one image, in the order of output pixels; `in_len` and
    /// `out_len` the values of an image.
    pub fn new(
        spec: &ConvSpec,
        pairs: &[Vec<(usize, usize)>],
        regions: &[Region],
        [in_len, out_len]: [usize; 2],
    ) -> Self {
        let out_pixels = out_len / spec.out_channels;
        let strung = if out_pixels <= RUN { (STRUNG / (in_len + out_len).max(1)).clamp(1, 8) } else { 1 };
        let group = (RUN / out_pixels.max(1)).max(strung);
        let value = |value: usize| u32::try_from(value).expect("an image group below 4 G values");
        let mut runs = vec![vec![Pairs::new(); pairs.len()]; (group * out_pixels).div_ceil(RUN)];
        for (tap, of_tap) in pairs.iter().enumerate() {
            for image in 0..group {
                for &(input, output) in of_tap {
                    let output = image * out_pixels + output;
                    let input = value(image * in_len + input * spec.in_channels);
                    runs[output / RUN][tap].push((input, (output % RUN) as u32));
                }
            }
        }
        let of_region = |region: &Region| -> Pairs {
            let of_image = |image| {
                let pair = move |&(input, output): &(usize, usize)| {
                    (value(image * in_len + input), value(image * out_len + output))
                };
                region.pixels.iter().map(pair)
            };
            (0..group).flat_map(of_image).collect()
        };
        Self { group, runs, regions: regions.iter().map(of_region).collect() }
    }
}

impl GradWeight<'_> {
    /// Overwrites `grad`.
    pub fn run(&self, isa: Isa, grad: ConvWeightsMut<'_>) {
        let batch = self.images.batch;
        let groups = self.groups_of_blocks();
        if groups.len() > FEW_GROUPS && self.orders.iter().any(|order| !order.is_none()) {
            // Each group would bring the same values into order.
            let [input, grad_output] = [(self.images.input, self.orders[0]), (self.images.grad_output, self.orders[1])];
            let mut rooms = [input.1.room(input.0.len()), grad_output.1.room(grad_output.0.len())];
            let [room_in, room_out] = &mut rooms;
            let input = input.1.brought_by_all(isa, input.0, room_in);
            let grad_output = grad_output.1.brought_by_all(isa, grad_output.0, room_out);
            let images = Images { input, grad_output, ..*self.images };
            return GradWeight { images: &images, orders: [&Reorder::NONE; 2], ..*self }.run(isa, grad);
        }
        let parts = parts_of_blocks(batch, groups.len(), self.layout.len);
        let images = batch.div_ceil(parts).max(1);
        let of_part = |part: usize| (part * images).min(batch)..((part + 1) * images).min(batch);
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
                isa.run(Part { grad: self, images: of_part(0), blocks, out: &mut out });
                unpack(blocks, rows, &out);
            });
            return;
        }
        let stride = self.layout.len.next_multiple_of(16);
        let mut partial = Aligned::zeroed(parts * stride);
        let mut work = Vec::new();
        for (part, mut packed) in partial.chunks_mut(stride.max(1)).enumerate() {
            for &blocks in &groups {
                let (out, others) = packed.split_at_mut(len(blocks));
                work.push(Part { grad: self, images: of_part(part), blocks, out });
                packed = others;
            }
        }
        work.into_par_iter().for_each(|part| isa.run(part));
        sum_parts(&mut partial, stride);
        groups.into_par_iter().zip(rows).for_each(|(blocks, rows)| {
            unpack(blocks, rows, &partial[blocks[0].weights.start..]);
        });
    }

    /// Blocks that are worked on together: they find a run's input near, and their weights stay in the second-level cache.
    fn groups_of_blocks(&self) -> Vec<&[Block]> {
        const WEIGHTS: usize = 48 << 10;
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
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let GradWeight { images, orders, spec, cut, .. } = *self.grad;
        let in_len = images.in_size[0] * images.in_size[1] * spec.in_channels;
        let out_pixels = images.out_size[0] * images.out_size[1];
        let panel = |block: &Block| Aligned::zeroed(RUN * block.stride);
        let mut panels: Vec<Aligned> = self.blocks.iter().map(panel).collect();
        let out_len = out_pixels * spec.out_channels;
        let mut rooms = [orders[0].room(cut.group * in_len), orders[1].room(cut.group * out_len)];
        for start in self.images.clone().step_by(cut.group) {
            let in_group = (self.images.end - start).min(cut.group);
            let [room_in, room_out] = &mut rooms;
            let input = &images.input[start * in_len..][..in_group * in_len];
            let grad_output = &images.grad_output[start * out_len..][..in_group * out_len];
            let input = orders[0].brought(simd, input, room_in);
            let grad_output = orders[1].brought(simd, grad_output, room_out);
            self.ranges(simd, input, grad_output, &mut panels);
            for block in self.blocks {
                self.turns(simd, block, in_group, input, grad_output);
            }
        }
    }
}

impl Part<'_> {
    /// Where a block's weights of a tap stand in `out`.
    fn place(&self, block: &Block, tap: usize) -> usize {
        block.taps[tap] - self.blocks[0].weights.start
    }

    /// Adds what taps contribute that read ranges, of the images of a group.
    #[inline(always)]
    fn ranges<S: Simd>(&mut self, simd: S, input: &[f32], grad_output: &[f32], panels: &mut [Aligned]) {
        let (blocks, filters) = (self.blocks, self.grad.spec.out_channels);
        let GradWeight { layout, cut, .. } = *self.grad;
        let pixels = grad_output.len() / filters;
        // The next run's input and grad-output, while one is worked on: a little with every pixel of every tile.
        let runs = pixels.div_ceil(RUN).max(1);
        let turns = self.tiles_of_run() * (pixels / runs);
        let next = |values: &[f32]| {
            let of_run = values.len() / runs;
            Prefetch::new(values.as_ptr().wrapping_add(of_run), of_run, turns)
        };
        let mut near = [next(input), next(grad_output)];
        for (index, taps) in cut.runs.iter().enumerate().take(pixels.div_ceil(RUN)) {
            let rows = (pixels - index * RUN).min(RUN);
            let of_run = &grad_output[index * RUN * filters..][..rows * filters];
            for (block, panel) in blocks.iter().zip(&mut *panels) {
                for (pixel, row) in of_run.chunks_exact(filters).zip(panel.chunks_exact_mut(block.stride)) {
                    copy(simd, &pixel[block.outputs.clone()], row);
                }
                for (tap, pairs) in taps.iter().enumerate() {
                    let (range, shift) = match &block.ring {
                        _ if Some(tap) == layout.center => (&block.center, 0),
                        Ring::Ranges([range, second]) => (range, second.start as isize - range.start as isize),
                        Ring::Rotated { .. } => continue,
                    };
                    // A last, smaller group uses the front of the lists: they are ordered by output pixel.
                    let pairs = &pairs[..pairs.partition_point(|&(_, row)| (row as usize) < rows)];
                    for channels in pieces(range, ROWS) {
                        let place = self.place(block, tap) + (channels.start - range.start) * block.stride;
                        let first = input.as_ptr().wrapping_add(channels.start);
                        let x = [first, first.wrapping_offset(shift)];
                        let (panel, out) = (panel.as_ptr(), &mut self.out[place..]);
                        let tile = Tile { pairs, x, panel, out, near: &mut near };
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
            let of_tap = |tap: usize| match &block.ring {
                _ if Some(tap) == self.grad.layout.center => block.center.len().div_ceil(ROWS),
                Ring::Ranges([range, _]) => range.len().div_ceil(ROWS),
                Ring::Rotated { .. } => 0,
            };
            (0..taps).map(of_tap).sum()
        };
        self.blocks.iter().map(of_block).sum()
    }

    /// Adds what taps contribute that read vectors, of the images of a group.
    #[inline(always)]
    fn turns<S: Simd>(&mut self, simd: S, block: &Block, images: usize, input: &[f32], grad_output: &[f32]) {
        let Ring::Rotated { size, sources } = &block.ring else { return };
        let lane = |rotation: usize, lane: usize| (rotated(lane, rotation, *size) % S::LANES) as u32;
        let lanes: Vec<[u32; 16]> =
            (0..*size).map(|rotation| std::array::from_fn(|index| lane(rotation, index))).collect();
        for (region, pairs) in self.grad.regions.iter().zip(&self.grad.cut.regions) {
            let taps: Vec<(usize, isize)> =
                region.taps.iter().copied().filter(|&(tap, _)| Some(tap) != self.grad.layout.center).collect();
            let walk = Walk::new(block, None, &taps);
            for pairs in pairs[..images * region.pixels.len()].chunks(RUN) {
                for (vector, turns) in walk.turns.iter().enumerate().take(sources.len()) {
                    let grad_output = &grad_output[block.outputs.start + vector * S::LANES..];
                    for turns in pieces(&(0..turns.len()), MOST_TAPS).map(|piece| &turns[piece]) {
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

/// A range in pieces of at most `most` and nearly equal length.
fn pieces(range: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let count = range.len().div_ceil(most);
    let (start, len) = (range.start, range.len());
    (0..count).map(move |piece| start + piece * len / count..start + (piece + 1) * len / count)
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

/// The most taps whose sums are kept at once.
const MOST_TAPS: usize = 8;

/// Some taps of a vector that reads vectors, over pixels of one region, in one or two rotations.
struct Turns<'a> {
    pairs: &'a [(u32, u32)],
    input: &'a [f32],
    /// From the vector's first filter on.
    grad_output: &'a [f32],
    turns: &'a [Turn],
    /// Whether all values come to their lanes as they are.
    plain: bool,
    /// For each rotation the lanes of grad-output that it takes.
    lanes: &'a [[u32; 16]],
    /// Place in the packed buffer that is the first in `out`, for the weights of the first rotation.
    first: isize,
    out: &'a mut [f32],
}

impl Turns<'_> {
    /// Adds the products.
    ///
    /// # Safety
    /// For every pair, a vector is readable at its second offset in `grad_output`, and at its first offset plus each tap's
    /// in `input`.
    #[inline(always)]
    unsafe fn compute<S: Simd>(self, simd: S) {
        if self.lanes.len() == 1 { self.taps::<S, 1>(simd) } else { self.taps::<S, 2>(simd) }
    }

    #[inline(always)]
    fn taps<S: Simd, const J: usize>(self, simd: S) {
        match self.turns.len() {
            1 => simd.apart(TurnTaps::<J, 1>(self)),
            2 => simd.apart(TurnTaps::<J, 2>(self)),
            3 => simd.apart(TurnTaps::<J, 3>(self)),
            4 => simd.apart(TurnTaps::<J, 4>(self)),
            5 => simd.apart(TurnTaps::<J, 5>(self)),
            6 => simd.apart(TurnTaps::<J, 6>(self)),
            7 => simd.apart(TurnTaps::<J, 7>(self)),
            _ => simd.apart(TurnTaps::<J, 8>(self)),
        }
    }
}

/// [`Turns`] of `T` taps in `J` rotations.
struct TurnTaps<'a, const J: usize, const T: usize>(Turns<'a>);

impl<const J: usize, const T: usize> Task for TurnTaps<'_, J, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Turns { pairs, input, grad_output, turns, plain, lanes, first, out } = self.0;
        let place = |turn: &Turn| (turn.weights as isize - first) as usize;
        assert!(turns.len() == T && turns.iter().all(|turn| place(turn) + J * S::LANES <= out.len()));
        let lanes: [S::Lanes; J] = std::array::from_fn(|j| simd.lanes(&lanes[j]));
        let offsets: [isize; T] = std::array::from_fn(|t| turns[t].source);
        let mut sums = [[simd.splat(0.0); J]; T];
        // SAFETY: made by `Turns::compute` alone, whose caller vouches for the pairs; the places in `out` were checked.
        unsafe {
            let grads = |to: u32| -> [S::V; J] {
                let grad = simd.load(grad_output.as_ptr().add(to as usize));
                std::array::from_fn(|j| simd.permute(grad, lanes[j]))
            };
            // Two loops, so that the choice is not made for every value.
            if plain {
                for &(from, to) in pairs {
                    let from = input.as_ptr().add(from as usize);
                    add_taps(simd, |t| simd.load(from.offset(offsets[t])), grads(to), &mut sums);
                }
            } else {
                let spread: [(S::Lanes, S::V); T] = std::array::from_fn(|t| {
                    let spread = turns[t].lanes.as_ref().unwrap_or(&Spread::PLAIN);
                    (simd.lanes(&spread.lanes), simd.load(spread.live.as_ptr()))
                });
                for &(from, to) in pairs {
                    let from = input.as_ptr().add(from as usize);
                    let value = |t: usize| {
                        let (lanes, live) = spread[t];
                        simd.where_positive(live, simd.permute(simd.load(from.offset(offsets[t])), lanes))
                    };
                    add_taps(simd, value, grads(to), &mut sums);
                }
            }
            for (turn, sums) in turns.iter().zip(&sums) {
                for (j, &sum) in sums.iter().enumerate() {
                    let out = out.as_mut_ptr().add(place(turn) + j * S::LANES);
                    simd.store(out, simd.add(simd.load(out), sum));
                }
            }
        }
    }
}

/// Adds the products of one pixel, `value(tap)` by its rotated grad-output.
#[inline(always)]
fn add_taps<S: Simd, const J: usize, const T: usize>(
    simd: S,
    value: impl Fn(usize) -> S::V,
    grads: [S::V; J],
    sums: &mut [[S::V; J]; T],
) {
    for t in 0..T {
        let value = value(t);
        for j in 0..J {
            sums[t][j] = simd.mul_add(value, grads[j], sums[t][j]);
        }
    }
}

/// Some input channels by one block of filters, over one run of pixels.
struct Tile<'a> {
    /// Places of input pixels, relative to `x`, and rows of the panel.
    pairs: &'a [(u32, u32)],
    /// The first channel of each vector.
    x: [*const f32; 2],
    panel: *const f32,
    /// `[channels, stride]`.
    out: &'a mut [f32],
    /// What is read later, asked for meanwhile.
    near: &'a mut [Prefetch; 2],
}

impl Tile<'_> {
    /// Adds the run's products.
    ///
    /// # Safety
    /// For every pair, as many channels are readable at its first place from each of `x`, and its row is one of the panel's.
    #[inline(always)]
    unsafe fn compute<S: Simd>(self, simd: S, block: &Block, channels: usize) {
        let same = self.x[0] == self.x[1];
        match (block.half, block.vectors, same) {
            (false, 2, true) => self.rows::<S, 2, true, false>(simd, channels),
            (false, 2, false) => self.rows::<S, 2, false, false>(simd, channels),
            (false, _, _) => self.rows::<S, 1, true, false>(simd, channels),
            (true, 2, true) => self.rows::<S, 2, true, true>(simd, channels),
            (true, 2, false) => self.rows::<S, 2, false, true>(simd, channels),
            (true, _, _) => self.rows::<S, 1, true, true>(simd, channels),
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const V: usize, const SAME: bool, const HALF: bool>(self, simd: S, channels: usize) {
        match channels {
            1 => simd.apart(TileRows::<1, V, SAME, HALF>(self)),
            2 => simd.apart(TileRows::<2, V, SAME, HALF>(self)),
            3 => simd.apart(TileRows::<3, V, SAME, HALF>(self)),
            4 => simd.apart(TileRows::<4, V, SAME, HALF>(self)),
            5 => simd.apart(TileRows::<5, V, SAME, HALF>(self)),
            6 => simd.apart(TileRows::<6, V, SAME, HALF>(self)),
            7 => simd.apart(TileRows::<7, V, SAME, HALF>(self)),
            8 => simd.apart(TileRows::<8, V, SAME, HALF>(self)),
            9 => simd.apart(TileRows::<9, V, SAME, HALF>(self)),
            10 => simd.apart(TileRows::<10, V, SAME, HALF>(self)),
            11 => simd.apart(TileRows::<11, V, SAME, HALF>(self)),
            _ => simd.apart(TileRows::<12, V, SAME, HALF>(self)),
        }
    }
}

/// [`Tile`] of `R` channels by `V` vectors, which read the same channels or each its own.
struct TileRows<'a, const R: usize, const V: usize, const SAME: bool, const HALF: bool>(Tile<'a>);

impl<const R: usize, const V: usize, const SAME: bool, const HALF: bool> Task for TileRows<'_, R, V, SAME, HALF> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: made by `Tile::rows` alone, whose caller vouches for the tile.
        unsafe { if HALF { self.compute(simd.half()) } else { self.compute(simd) } }
    }
}

impl<const R: usize, const V: usize, const SAME: bool, const HALF: bool> TileRows<'_, R, V, SAME, HALF> {
    /// # Safety
    /// As [`Tile::compute`], for `R` channels and `V` vectors of `S`.
    #[inline(always)]
    unsafe fn compute<S: Simd>(self, simd: S) {
        let Tile { pairs, x: [first, second], panel, out, near } = self.0;
        let stride = V * S::LANES;
        assert!(out.len() >= R * stride);
        for vector in 0..R * V {
            simd.prefetch_to_write(out.as_ptr().wrapping_add(vector * S::LANES));
        }
        let mut sums = [[simd.splat(0.0); V]; R];
        // SAFETY: the caller vouches for the pairs; `out` holds R·V vectors.
        unsafe {
            for &(from, row) in pairs {
                near.iter_mut().for_each(|near| near.advance(simd));
                let (x, others) = (first.add(from as usize), second.add(from as usize));
                let row = panel.add(row as usize * stride);
                let grad: [S::V; V] = std::array::from_fn(|v| simd.load(row.add(v * S::LANES)));
                for r in 0..R {
                    let value = simd.splat(*x.add(r));
                    sums[r][0] = simd.mul_add(value, grad[0], sums[r][0]);
                    for v in 1..V {
                        let value = if SAME { value } else { simd.splat(*others.add(r)) };
                        sums[r][v] = simd.mul_add(value, grad[v], sums[r][v]);
                    }
                }
            }
            for (r, row) in sums.iter().enumerate() {
                for (v, &sum) in row.iter().enumerate() {
                    let out = out.as_mut_ptr().add(r * stride + v * S::LANES);
                    simd.store(out, simd.add(simd.load(out), sum));
                }
            }
        }
    }
}

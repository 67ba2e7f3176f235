//! Grad-weight of every convolution but depthwise: for each tap, a sum over pixels of input × grad-output.
//!
//! The result has the layout of the packed forward weights. A tile is up to [`ROWS`] input channels by one [`Block`] of
//! filters; it stays in registers over a run of pixels, and is then added to the buffer. A run's grad-output is copied
//! into a *panel* first, so that all taps read it in sequence. Pixels that a tap would read from the padding are not in
//! its list. A block that reads vectors takes several taps at once over the pixels of a [`Region`], which have the same
//! taps, and turns the grad-output in registers. Small images are strung together, so that runs are long everywhere.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{ConvSpec, Images};
use crate::isa::Isa;
use crate::pack::{Block, Layout, Ring, rotated, split_blocks};
use crate::parallel::parts_of_blocks;
use crate::simd::{Simd, Task};
use crate::taps::Region;
use crate::walk::{Turn, Walk};

/// The most input channels of a tile.
const ROWS: usize = 12;

/// Values of a panel: with the input that meets it, it stays in the first-level cache.
const PANEL: usize = 6 << 10;

/// A prepared grad-weight.
pub(crate) struct GradWeight<'a> {
    pub layout: &'a Layout,
    /// For every tap, pairs of input and output pixel of one image, in the order of output pixels.
    pub pairs: &'a [Vec<(usize, usize)>],
    /// The regions of the forward pass.
    pub regions: &'a [Region],
    pub images: &'a Images<'a>,
    pub spec: &'a ConvSpec,
}

/// For one tap and one run of output pixels: offsets of input pixels from the group's first image, and the places of
/// output pixels in the run. For a region: offsets of the first tap's input pixels and of the output pixels.
type Pairs = Vec<(u32, u32)>;

/// How images are strung together and cut.
struct Cut {
    /// Images of a group.
    group: usize,
    /// Output pixels of a run.
    run: usize,
    /// For every run of a group and every tap its pairs.
    pairs: Vec<Vec<Pairs>>,
    /// For every region the pairs of a group, image by image; empty where no block needs them.
    regions: Vec<Pairs>,
}

impl GradWeight<'_> {
    /// The packed gradient.
    pub fn run(&self, isa: Isa) -> Aligned {
        let (batch, len) = (self.images.batch, self.layout.len);
        let parts = parts_of_blocks(batch, self.layout.blocks.len(), len);
        let images_per_part = batch.div_ceil(parts).max(1);
        let cut = self.cut(images_per_part);
        let stride = len.next_multiple_of(16);
        let mut partial = Aligned::zeroed(parts * stride);
        let mut work = Vec::new();
        for (part, packed) in partial.chunks_mut(stride.max(1)).enumerate() {
            let first = (part * images_per_part).min(batch);
            let last = (first + images_per_part).min(batch);
            work.extend(split_blocks(packed, self.layout).into_iter().map(|(block, out)| (first..last, block, out)));
        }
        work.into_par_iter().for_each(|(images, block, out)| {
            isa.run(Part { grad: self, cut: &cut, first: images.start, last: images.end, block, out });
        });
        sum_parts(&mut partial, stride);
        partial
    }

    fn cut(&self, images_per_part: usize) -> Cut {
        let Images { in_size, out_size, .. } = self.images;
        let (m, n) = (self.spec.in_channels, self.spec.out_channels);
        let widest = self.layout.blocks.iter().map(|block| block.stride).max().unwrap_or(1);
        let run = (PANEL / widest).max(1);
        let [in_pixels, out_pixels] = [in_size, out_size].map(|size| size[0] * size[1]);
        let group = (run / out_pixels.max(1)).clamp(1, images_per_part);
        let offset =
            |pixel: usize, channels: usize| u32::try_from(pixel * channels).expect("an image group below 4 G values");
        let runs = (group * out_pixels).div_ceil(run);
        let mut pairs = vec![vec![Pairs::new(); self.pairs.len()]; runs];
        for (tap, of_tap) in self.pairs.iter().enumerate() {
            for image in 0..group {
                for &(input, output) in of_tap {
                    let output = image * out_pixels + output;
                    pairs[output / run][tap].push((offset(image * in_pixels + input, m), (output % run) as u32));
                }
            }
        }
        let of_region = |region: &Region| -> Pairs {
            let of_image = |image| {
                let pair = move |&(input, output): &(usize, usize)| {
                    (offset(image * in_pixels * m + input, 1), offset(image * out_pixels * n + output, 1))
                };
                region.pixels.iter().map(pair)
            };
            (0..group).flat_map(of_image).collect()
        };
        let turned = self.layout.blocks.iter().any(|block| matches!(block.ring, Ring::Rotated { .. }));
        let regions = if turned { self.regions.iter().map(of_region).collect() } else { Vec::new() };
        Cut { group, run, pairs, regions }
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

/// One block over some images, for one thread.
struct Part<'a> {
    grad: &'a GradWeight<'a>,
    cut: &'a Cut,
    first: usize,
    last: usize,
    block: &'a Block,
    out: &'a mut [f32],
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let GradWeight { layout, images, spec, .. } = *self.grad;
        let in_len = images.in_size[0] * images.in_size[1] * spec.in_channels;
        let out_pixels = images.out_size[0] * images.out_size[1];
        let (block, cut) = (self.block, self.cut);
        let mut panel = Aligned::zeroed(cut.run * block.stride);
        for start in (self.first..self.last).step_by(cut.group) {
            let in_group = (self.last - start).min(cut.group);
            let input = &images.input[start * in_len..(start + in_group) * in_len];
            let pixels = in_group * out_pixels;
            let grad_output =
                &images.grad_output[start * out_pixels * spec.out_channels..][..pixels * spec.out_channels];
            for (run, taps) in cut.pairs.iter().enumerate().take(pixels.div_ceil(cut.run)) {
                let rows = (pixels - run * cut.run).min(cut.run);
                let of_run = &grad_output[run * cut.run * spec.out_channels..][..rows * spec.out_channels];
                for (pixel, row) in of_run.chunks_exact(spec.out_channels).zip(panel.chunks_exact_mut(block.stride)) {
                    copy(simd, &pixel[block.outputs.clone()], row);
                }
                for (tap, pairs) in taps.iter().enumerate() {
                    let (range, second) = match &block.ring {
                        _ if Some(tap) == layout.center => (block.center.clone(), block.center.start),
                        Ring::Ranges([range, second]) => (range.clone(), second.start),
                        Ring::Rotated { .. } => continue,
                    };
                    // A last, smaller group uses the front of the lists: they are ordered by output pixel.
                    let usable = pairs.partition_point(|&(_, row)| (row as usize) < rows);
                    let run = Run { pairs: &pairs[..usable], input, panel: &panel };
                    let second = second as isize - range.start as isize;
                    let out = &mut self.out[block.taps[tap] - block.weights.start..];
                    // SAFETY: pairs hold offsets of pixels of the first `in_group` images, which `input` spans, and rows
                    // below `rows`; the channels of ranges lie within a pixel.
                    unsafe { run.channels(simd, block, range, second, out) };
                }
            }
            let Ring::Rotated { size, sources } = &block.ring else { continue };
            for (region, pairs) in self.grad.regions.iter().zip(&cut.regions) {
                let pairs = &pairs[..in_group * region.pixels.len()];
                let taps: Vec<(usize, isize)> =
                    region.taps.iter().copied().filter(|&(tap, _)| Some(tap) != layout.center).collect();
                let walk = Walk::new(block, None, &taps);
                for (vector, turns) in walk.turns.iter().enumerate().take(sources.len()) {
                    for pairs in pairs.chunks(cut.run) {
                        let grad_output = &grad_output[block.outputs.start + vector * block.lanes()..];
                        let first = block.weights.start;
                        let turns = Turns { pairs, input, grad_output, turns, first, out: &mut *self.out };
                        // SAFETY: pairs hold offsets of pixels of the first `in_group` images, which both slices span; a
                        // region only names taps that fall inside, and sources lie within a pixel.
                        unsafe {
                            match size {
                                1 => turns.compute::<S, 1>(simd),
                                2 => turns.compute::<S, 2>(simd),
                                4 => turns.compute::<S, 4>(simd),
                                _ => turns.compute::<S, 8>(simd),
                            }
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

/// All taps of a block that reads vectors, over pixels of one region.
struct Turns<'a> {
    pairs: &'a [(u32, u32)],
    input: &'a [f32],
    /// From the vector's first filter on.
    grad_output: &'a [f32],
    turns: &'a [Turn],
    /// Where the block's part of the packed buffer starts.
    first: usize,
    out: &'a mut [f32],
}

impl Turns<'_> {
    /// Adds the products of all taps, as many at a time as fit the registers.
    ///
    /// # Safety
    /// For every pair, a vector is readable at its second offset in `grad_output`, and at its first offset plus each tap's
    /// in `input`.
    #[inline(always)]
    unsafe fn compute<S: Simd, const J: usize>(self, simd: S) {
        let Self { pairs, input, grad_output, turns: mut all, first, out } = self;
        let most = S::SUMS / J;
        while !all.is_empty() {
            let now = [8, 4, 2, 1].into_iter().find(|&now| now <= all.len() && (now <= most || now == 1)).unwrap_or(1);
            let (these, others) = all.split_at(now);
            all = others;
            let turns = Turns { pairs, input, grad_output, turns: these, first, out: &mut *out };
            // SAFETY: the caller's.
            unsafe {
                match now {
                    8 if J <= 2 => turns.sum::<S, J, 8>(simd),
                    4 if J <= 4 => turns.sum::<S, J, 4>(simd),
                    2 => turns.sum::<S, J, 2>(simd),
                    _ => turns.sum::<S, J, 1>(simd),
                }
            }
        }
    }

    /// `T` taps with groups of `J` lanes.
    ///
    /// # Safety
    /// As [`Turns::compute`].
    #[inline(always)]
    unsafe fn sum<S: Simd, const J: usize, const T: usize>(self, simd: S) {
        let place = |turn: &Turn| turn.weights - self.first;
        assert!(self.turns.len() == T && self.turns.iter().all(|turn| place(turn) + J * S::LANES <= self.out.len()));
        let lanes: [S::Lanes; J] = std::array::from_fn(|turn| {
            simd.lanes(&std::array::from_fn(|lane| (rotated(lane, turn, J) % S::LANES) as u32))
        });
        let offsets: [isize; T] = std::array::from_fn(|t| self.turns[t].source);
        let mut sums = [[simd.splat(0.0); J]; T];
        // SAFETY: the caller vouches for the pairs; the places in `out` were checked.
        unsafe {
            let (input, grad_output) = (self.input.as_ptr(), self.grad_output.as_ptr());
            // Two loops, so that the choice is not made for every value.
            if self.turns.iter().all(|turn| turn.lanes.is_none()) {
                for &(from, to) in self.pairs {
                    let grad = simd.load(grad_output.add(to as usize));
                    let grads: [S::V; J] =
                        std::array::from_fn(|j| if j == 0 { grad } else { simd.permute(grad, lanes[j]) });
                    for t in 0..T {
                        let value = simd.load(input.offset(from as isize + offsets[t]));
                        for j in 0..J {
                            sums[t][j] = simd.mul_add(value, grads[j], sums[t][j]);
                        }
                    }
                }
            } else {
                let whole = std::array::from_fn(|lane| lane as u32 % S::LANES as u32);
                let spread: [(S::Lanes, S::V); T] = std::array::from_fn(|t| match &self.turns[t].lanes {
                    None => (simd.lanes(&whole), simd.splat(1.0)),
                    Some(spread) => (simd.lanes(&spread.lanes), simd.load(spread.live.as_ptr())),
                });
                for &(from, to) in self.pairs {
                    let grad = simd.load(grad_output.add(to as usize));
                    let grads: [S::V; J] =
                        std::array::from_fn(|j| if j == 0 { grad } else { simd.permute(grad, lanes[j]) });
                    for t in 0..T {
                        let value = simd.load(input.offset(from as isize + offsets[t]));
                        let value = simd.where_positive(spread[t].1, simd.permute(value, spread[t].0));
                        for j in 0..J {
                            sums[t][j] = simd.mul_add(value, grads[j], sums[t][j]);
                        }
                    }
                }
            }
            for (turn, sums) in self.turns.iter().zip(&sums) {
                for (j, &sum) in sums.iter().enumerate() {
                    let out = self.out.as_mut_ptr().add(place(turn) + j * S::LANES);
                    simd.store(out, simd.add(simd.load(out), sum));
                }
            }
        }
    }
}

/// One tap over one run of pixels.
struct Run<'a> {
    pairs: &'a [(u32, u32)],
    input: &'a [f32],
    panel: &'a [f32],
}

impl Run<'_> {
    /// Adds the products of a range of channels with the block's filters to `out` `[range, stride]`; the second vector's
    /// channels stand `second` further on.
    ///
    /// # Safety
    /// For every pair, the range's channels are readable at its offset in `input`, with two vectors also `second` further
    /// on, and its row is one of the panel's.
    #[inline(always)]
    unsafe fn channels<S: Simd>(
        &self,
        simd: S,
        block: &Block,
        range: std::ops::Range<usize>,
        second: isize,
        out: &mut [f32],
    ) {
        for (channel, out) in range.clone().step_by(ROWS).zip(out.chunks_mut(ROWS * block.stride)) {
            let rows = ROWS.min(range.end - channel);
            let tile = Tile { run: self, channel, second, out };
            // SAFETY: the caller's; the vectors are those of the block.
            unsafe {
                if block.half {
                    tile.compute_rows(simd.half(), rows, block.vectors);
                } else {
                    tile.compute_rows(simd, rows, block.vectors);
                }
            }
        }
    }
}

/// Some input channels by one block of filters, over one run of pixels.
struct Tile<'a> {
    run: &'a Run<'a>,
    channel: usize,
    /// First channel of the second vector, relative to that of the first.
    second: isize,
    out: &'a mut [f32],
}

impl Tile<'_> {
    /// # Safety
    /// As [`Run::channels`], for `rows` channels.
    #[inline(always)]
    unsafe fn compute_rows<S: Simd>(self, simd: S, rows: usize, vectors: usize) {
        // SAFETY: the caller's.
        unsafe {
            match (rows, vectors) {
                (12, 2) => self.compute::<S, 12, 2>(simd),
                (11, 2) => self.compute::<S, 11, 2>(simd),
                (10, 2) => self.compute::<S, 10, 2>(simd),
                (9, 2) => self.compute::<S, 9, 2>(simd),
                (8, 2) => self.compute::<S, 8, 2>(simd),
                (7, 2) => self.compute::<S, 7, 2>(simd),
                (6, 2) => self.compute::<S, 6, 2>(simd),
                (5, 2) => self.compute::<S, 5, 2>(simd),
                (4, 2) => self.compute::<S, 4, 2>(simd),
                (3, 2) => self.compute::<S, 3, 2>(simd),
                (2, 2) => self.compute::<S, 2, 2>(simd),
                (_, 2) => self.compute::<S, 1, 2>(simd),
                (12, _) => self.compute::<S, 12, 1>(simd),
                (11, _) => self.compute::<S, 11, 1>(simd),
                (10, _) => self.compute::<S, 10, 1>(simd),
                (9, _) => self.compute::<S, 9, 1>(simd),
                (8, _) => self.compute::<S, 8, 1>(simd),
                (7, _) => self.compute::<S, 7, 1>(simd),
                (6, _) => self.compute::<S, 6, 1>(simd),
                (5, _) => self.compute::<S, 5, 1>(simd),
                (4, _) => self.compute::<S, 4, 1>(simd),
                (3, _) => self.compute::<S, 3, 1>(simd),
                (2, _) => self.compute::<S, 2, 1>(simd),
                (_, _) => self.compute::<S, 1, 1>(simd),
            }
        }
    }

    /// Adds the run's products to `out` `[R, V·LANES]`.
    ///
    /// # Safety
    /// As [`Run::channels`], for `R` channels.
    #[inline(always)]
    unsafe fn compute<S: Simd, const R: usize, const V: usize>(self, simd: S) {
        // Two loops, so that the choice is not made for every product.
        // SAFETY: the caller's.
        unsafe {
            if V == 1 || self.second == 0 {
                self.sum::<S, R, V>(simd, true);
            } else {
                self.sum::<S, R, V>(simd, false);
            }
        }
    }

    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn sum<S: Simd, const R: usize, const V: usize>(self, simd: S, same: bool) {
        let stride = V * S::LANES;
        assert!(self.out.len() >= R * stride);
        let mut sums = [[simd.splat(0.0); V]; R];
        let Run { pairs, input, panel } = *self.run;
        // SAFETY: the caller vouches for the pairs.
        unsafe {
            let (input, panel) = (input.as_ptr().add(self.channel), panel.as_ptr());
            for &(from, row) in pairs {
                let (x, row) = (input.add(from as usize), panel.add(row as usize * stride));
                let grad: [S::V; V] = std::array::from_fn(|v| simd.load(row.add(v * S::LANES)));
                for r in 0..R {
                    let value = simd.splat(*x.add(r));
                    sums[r][0] = simd.mul_add(value, grad[0], sums[r][0]);
                    for v in 1..V {
                        let value = if same { value } else { simd.splat(*x.add(r).offset(self.second)) };
                        sums[r][v] = simd.mul_add(value, grad[v], sums[r][v]);
                    }
                }
            }
            for (r, row) in sums.iter().enumerate() {
                for (v, &sum) in row.iter().enumerate() {
                    // SAFETY of the offsets: `out` holds R·V vectors, asserted above.
                    let out = self.out.as_mut_ptr().add(r * stride + v * S::LANES);
                    simd.store(out, simd.add(simd.load(out), sum));
                }
            }
        }
    }
}

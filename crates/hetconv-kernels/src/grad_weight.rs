//! Grad-weight of every convolution but depthwise: for each tap, a sum over pixels of input × grad-output.
//!
//! The result has the layout of the packed forward weights. A tile is up to `ROWS` input channels by one [`Block`] of
//! filters; it stays in registers over a run of pixels, and is then added to the buffer. Pixels that a tap would read
//! from the padding are not in its list. Small images are strung together, so that runs are long everywhere.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{ConvSpec, Images};
use crate::isa::Isa;
use crate::pack::{Block, Layout, split_blocks};
use crate::parallel::reduction_parts;
use crate::simd::{Simd, Task};

/// A prepared grad-weight.
pub(crate) struct GradWeight<'a> {
    pub layout: &'a Layout,
    /// For every tap, pairs of input and output pixel of one image.
    pub pairs: &'a [Vec<(usize, usize)>],
    pub images: &'a Images<'a>,
    pub spec: &'a ConvSpec,
}

/// Pixel pairs of a run, as element offsets of the pixels' first channels from the group's first image.
type Run = Vec<(u32, u32)>;

impl GradWeight<'_> {
    /// Pixels after which a tile leaves its registers: its rows of input and grad-output still are in the first-level
    /// cache for the next tile.
    const RUN: usize = 192;

    /// The packed gradient.
    pub fn run(&self, isa: Isa) -> Aligned {
        let (batch, len) = (self.images.batch, self.layout.len);
        let parts = reduction_parts(batch, len);
        let images_per_part = batch.div_ceil(parts).max(1);
        let out_pixels = self.images.out_size[0] * self.images.out_size[1];
        let group = (Self::RUN / out_pixels.max(1)).clamp(1, images_per_part);
        let runs: Vec<Vec<Run>> = self.pairs.iter().map(|pairs| self.runs_of_group(pairs, group)).collect();
        let stride = len.next_multiple_of(16);
        let mut partial = Aligned::zeroed(parts * stride);
        let mut work = Vec::new();
        for (part, packed) in partial.chunks_mut(stride.max(1)).enumerate() {
            let first = (part * images_per_part).min(batch);
            let last = (first + images_per_part).min(batch);
            work.extend(split_blocks(packed, self.layout).into_iter().map(|(block, out)| (first..last, block, out)));
        }
        work.into_par_iter().for_each(|(images, block, out)| {
            isa.run(Part { grad: self, runs: &runs, group, first: images.start, last: images.end, block, out });
        });
        sum_parts(&mut partial, stride);
        partial
    }

    /// The pairs of `group` consecutive images, cut into runs.
    fn runs_of_group(&self, pairs: &[(usize, usize)], group: usize) -> Vec<Run> {
        let Images { in_size, out_size, .. } = self.images;
        let (m, n) = (self.spec.in_channels, self.spec.out_channels);
        let (in_len, out_len) = (in_size[0] * in_size[1] * m, out_size[0] * out_size[1] * n);
        let offset = |image: usize, (input, output): (usize, usize)| {
            let input = u32::try_from(image * in_len + input * m).expect("an image group below 4 G values");
            let output = u32::try_from(image * out_len + output * n).expect("an image group below 4 G values");
            (input, output)
        };
        let all: Run = (0..group).flat_map(|image| pairs.iter().map(move |&pair| offset(image, pair))).collect();
        all.chunks(Self::RUN).map(<[_]>::to_vec).collect()
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
    runs: &'a [Vec<Run>],
    group: usize,
    first: usize,
    last: usize,
    block: &'a Block,
    out: &'a mut [f32],
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let GradWeight { layout, pairs, images, spec } = self.grad;
        let in_len = images.in_size[0] * images.in_size[1] * spec.in_channels;
        let out_len = images.out_size[0] * images.out_size[1] * spec.out_channels;
        let stride = self.block.stride;
        for start in (self.first..self.last).step_by(self.group) {
            let in_group = (self.last - start).min(self.group);
            let input = &images.input[start * in_len..(start + in_group) * in_len];
            let grad_output = &images.grad_output[start * out_len..(start + in_group) * out_len];
            let longest = self.runs.iter().map(Vec::len).max().unwrap_or(0);
            for run in 0..longest {
                for (tap, runs) in self.runs.iter().enumerate() {
                    // A last, smaller group uses the front of the lists: they are ordered by image.
                    let usable = (pairs[tap].len() * in_group).saturating_sub(run * GradWeight::RUN);
                    let Some(run) = runs.get(run) else { continue };
                    let run = &run[..run.len().min(usable)];
                    if run.is_empty() {
                        continue;
                    }
                    let [range, second] = self.block.ranges(Some(tap) == layout.center);
                    let first = self.block.taps[tap] - self.block.weights.start;
                    for channel in range.clone().step_by(S::ROWS) {
                        let tile = Tile {
                            run,
                            input: &input[channel..],
                            second: second.start as isize - range.start as isize,
                            grad_output: &grad_output[self.block.outputs.start..],
                            filters: self.block.outputs.len(),
                            out: &mut self.out[first + (channel - range.start) * stride..],
                        };
                        let rows = S::ROWS.min(range.end - channel);
                        // SAFETY: the runs hold offsets of pixels of the first `in_group` images, which the slices span;
                        // channels and filters from the tile's first on stay within their pixel, those of the second
                        // vector too, whose range has the same length.
                        unsafe {
                            if self.block.half {
                                tile.compute_rows(simd.half(), rows, self.block.vectors);
                            } else {
                                tile.compute_rows(simd, rows, self.block.vectors);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Some input channels by one block of filters, over one run of pixels.
struct Tile<'a> {
    run: &'a [(u32, u32)],
    input: &'a [f32],
    /// First channel of the second vector, relative to that of the first.
    second: isize,
    grad_output: &'a [f32],
    filters: usize,
    out: &'a mut [f32],
}

impl Tile<'_> {
    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn compute_rows<S: Simd>(self, simd: S, rows: usize, vectors: usize) {
        // SAFETY: the caller's.
        unsafe {
            match (rows, vectors) {
                (8, 2) => self.compute::<S, 8, 2>(simd),
                (7, 2) => self.compute::<S, 7, 2>(simd),
                (6, 2) => self.compute::<S, 6, 2>(simd),
                (5, 2) => self.compute::<S, 5, 2>(simd),
                (4, 2) => self.compute::<S, 4, 2>(simd),
                (3, 2) => self.compute::<S, 3, 2>(simd),
                (2, 2) => self.compute::<S, 2, 2>(simd),
                (_, 2) => self.compute::<S, 1, 2>(simd),
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
    /// For every pair of the run, `R` channels are readable at its offset in `input`, with two vectors also `second`
    /// channels further, and `filters` values at its offset in `grad_output`. `S` has the lanes that the block was made for.
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
        let whole = self.filters == stride;
        // SAFETY: the caller vouches for the pairs.
        unsafe {
            let (input, grad_output) = (self.input.as_ptr(), self.grad_output.as_ptr());
            for &(from, to) in self.run {
                let (x, dy) = (input.add(from as usize), grad_output.add(to as usize));
                let grad: [S::V; V] = std::array::from_fn(|v| {
                    let lane = v * S::LANES;
                    if whole || self.filters >= lane + S::LANES {
                        simd.load(dy.add(lane))
                    } else {
                        simd.load_first(dy.add(lane), self.filters.saturating_sub(lane))
                    }
                });
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

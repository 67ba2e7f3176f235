//! Forward and grad-input of every convolution but depthwise: one pass over the output.
//!
//! A tile is up to `ROWS` pixels of one [`Region`] by one [`Block`] of outputs. Its sums live in registers from the first
//! product to the last; each segment (one tap, one range of channels) broadcasts a pixel's channel and multiplies it with
//! the block's weights. For HetConv the centre's segment spans all channels and the others one class, so K×K and 1×1
//! kernels meet in the same registers and no intermediate tensor exists: the paper's "zero latency".

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use rayon::prelude::*;

use crate::isa::Isa;
use crate::pack::{Block, Layout};
use crate::parallel::images_per_part;
use crate::simd::{Simd, Task};
use crate::taps::Region;

/// The most rows of any instruction set's tile.
const MAX_ROWS: usize = 8;

/// A prepared gather; see the module's text.
pub(crate) struct Gather<'a> {
    pub layout: &'a Layout,
    pub regions: &'a [Region],
    pub packed: &'a [f32],
    /// One number per output position.
    pub bias: Vec<f32>,
    pub source_pixels: usize,
    pub target_pixels: usize,
    pub source_channels: usize,
    pub target_channels: usize,
}

/// One tap over one range of channels.
#[derive(Clone, Copy)]
struct Segment {
    /// First channel value of each vector, relative to the tile pixel's own first.
    sources: [isize; 2],
    /// Number of channels.
    channels: usize,
    /// First weight in the packed buffer.
    weights: usize,
}

impl Gather<'_> {
    /// Computes `target` `[batch, target pixels, target channels]` from `source`.
    pub fn run(&self, isa: Isa, batch: usize, source: &[f32], target: &mut [f32]) {
        let (source_len, target_len) =
            (self.source_pixels * self.source_channels, self.target_pixels * self.target_channels);
        assert!(source.len() == batch * source_len && target.len() == batch * target_len);
        assert!(self.packed.len() == self.layout.len && self.bias.len() == self.target_channels);
        if target.is_empty() {
            return;
        }
        let images = images_per_part(batch, 4 * source_len.max(target_len), isa.tile_rows());
        let parts = target.par_chunks_mut(images * target_len).enumerate();
        parts.for_each(|(part, target)| {
            let first = part * images * source_len;
            let images = target.len() / target_len;
            let source = &source[first..first + images * source_len];
            isa.run(Part { gather: self, images, source, target });
        });
    }
}

/// Some images of a gather, for one thread.
struct Part<'a> {
    gather: &'a Gather<'a>,
    images: usize,
    source: &'a [f32],
    target: &'a mut [f32],
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Gather { layout, regions, source_pixels, target_pixels, source_channels, target_channels, .. } =
            *self.gather;
        let mut segments = Vec::new();
        for block in &layout.blocks {
            for region in regions {
                segments.clear();
                segments.extend(region.taps.iter().filter_map(|&(tap, offset)| {
                    let ranges = block.ranges(Some(tap) == layout.center);
                    let channels = ranges[0].len();
                    let sources = ranges.map(|range| offset * source_channels as isize + range.start as isize);
                    (channels > 0).then_some(Segment { sources, channels, weights: block.taps[tap] })
                }));
                let mut tile = Tile {
                    segments: &segments,
                    packed: self.gather.packed.as_ptr(),
                    bias: &self.gather.bias[block.outputs.clone()],
                    block,
                    rows: 0,
                    sources: [self.source.as_ptr(); MAX_ROWS],
                    targets: [self.target.as_mut_ptr(); MAX_ROWS],
                };
                for image in 0..self.images {
                    for &(from, to) in &region.pixels {
                        let from = (image * source_pixels + from) * source_channels;
                        let to = (image * target_pixels + to) * target_channels + block.outputs.start;
                        // SAFETY: both pixels lie inside this part's images, whose lengths `Gather::run` checked.
                        unsafe {
                            tile.sources[tile.rows] = self.source.as_ptr().add(from);
                            tile.targets[tile.rows] = self.target.as_mut_ptr().add(to);
                        }
                        tile.rows += 1;
                        if tile.rows == S::ROWS {
                            // SAFETY: see `Tile::compute`; regions only name taps that fall inside the source image.
                            unsafe { tile.compute_full(simd) };
                            tile.rows = 0;
                        }
                    }
                }
                if tile.rows > 1 {
                    // A tile that is not full repeats its last pixel: the same value is stored again.
                    let last = tile.rows - 1;
                    let (source, target) = (tile.sources[last], tile.targets[last]);
                    tile.sources[last..].fill(source);
                    tile.targets[last..].fill(target);
                    // SAFETY: as above.
                    unsafe { tile.compute_full(simd) };
                } else if tile.rows == 1 {
                    // SAFETY: as above.
                    unsafe { tile.compute_single(simd) };
                }
            }
        }
    }
}

/// Pixels that are computed together.
struct Tile<'a> {
    segments: &'a [Segment],
    packed: *const f32,
    bias: &'a [f32],
    block: &'a Block,
    rows: usize,
    sources: [*const f32; MAX_ROWS],
    targets: [*mut f32; MAX_ROWS],
}

impl Tile<'_> {
    /// Computes `S::ROWS` pixels.
    ///
    /// # Safety
    /// As [`Tile::compute`], for the first `S::ROWS` pixels.
    #[inline(always)]
    unsafe fn compute_full<S: Simd>(&self, simd: S) {
        // SAFETY: the caller's.
        unsafe {
            match (S::ROWS, self.block.half) {
                (8, false) => self.compute_rows::<S, 8>(simd),
                (8, true) => self.compute_rows::<S::Half, 8>(simd.half()),
                (_, false) => self.compute_rows::<S, 6>(simd),
                (_, true) => self.compute_rows::<S::Half, 6>(simd.half()),
            }
        }
    }

    /// Computes the first pixel alone.
    ///
    /// # Safety
    /// As [`Tile::compute`], for the first pixel.
    #[inline(always)]
    unsafe fn compute_single<S: Simd>(&self, simd: S) {
        // SAFETY: the caller's.
        unsafe {
            if self.block.half {
                self.compute_rows::<S::Half, 1>(simd.half());
            } else {
                self.compute_rows::<S, 1>(simd);
            }
        }
    }

    /// Computes `R` pixels.
    ///
    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn compute_rows<S: Simd, const R: usize>(&self, simd: S) {
        // SAFETY: the caller's.
        unsafe {
            match self.block.vectors {
                2 => self.compute::<S, R, 2>(simd),
                _ => self.compute::<S, R, 1>(simd),
            }
        }
    }

    /// Computes the block's outputs for `R` pixels.
    ///
    /// # Safety
    /// For each of the first `R` pixels, every segment's channels are readable from its source pointer, and the block's
    /// outputs are writable at its target pointer; the segments' weights lie inside the packed buffer. `S` has the lanes
    /// that the block was made for.
    #[inline(always)]
    unsafe fn compute<S: Simd, const R: usize, const V: usize>(&self, simd: S) {
        let (sources, targets) = (&self.sources, &self.targets);
        let outputs = self.bias.len();
        let mut sums = [[simd.splat(0.0); V]; R];
        for (v, lane) in (0..outputs).step_by(S::LANES).enumerate().take(V) {
            let left = outputs - lane;
            // SAFETY: `left` biases stand from `lane` on.
            let bias = unsafe {
                let bias = self.bias.as_ptr().add(lane);
                if left >= S::LANES { simd.load(bias) } else { simd.load_first(bias, left) }
            };
            for row in &mut sums {
                row[v] = bias;
            }
        }
        for segment in self.segments {
            let [first, second] = segment.sources;
            // SAFETY: the caller vouches for every segment: sources, channels and weights.
            unsafe {
                let mut weights = self.packed.add(segment.weights);
                let pixels: [*const f32; R] = std::array::from_fn(|r| sources[r].offset(first));
                if V == 1 || first == second {
                    for channel in 0..segment.channels {
                        let weight: [S::V; V] = std::array::from_fn(|v| simd.load(weights.add(v * S::LANES)));
                        for r in 0..R {
                            let value = simd.splat(*pixels[r].add(channel));
                            for v in 0..V {
                                sums[r][v] = simd.mul_add(value, weight[v], sums[r][v]);
                            }
                        }
                        weights = weights.add(V * S::LANES);
                    }
                } else {
                    for channel in 0..segment.channels {
                        for v in 0..V {
                            let weight = simd.load(weights.add(v * S::LANES));
                            let channel = channel as isize + v as isize * (second - first);
                            for r in 0..R {
                                let value = simd.splat(*pixels[r].offset(channel));
                                sums[r][v] = simd.mul_add(value, weight, sums[r][v]);
                            }
                        }
                        weights = weights.add(V * S::LANES);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let lane = v * S::LANES;
                // SAFETY: the block's outputs are writable at the target.
                unsafe {
                    if outputs >= lane + S::LANES {
                        simd.store(targets[r].add(lane), sums[r][v]);
                    } else if outputs > lane {
                        simd.store_first(targets[r].add(lane), sums[r][v], outputs - lane);
                    }
                }
            }
        }
    }
}

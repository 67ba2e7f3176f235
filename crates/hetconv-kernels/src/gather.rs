//! Forward and grad-input of every convolution but depthwise: one pass over the output.
//!
//! A [`Tile`] takes its pixels from one [`Region`], across rows and images, so that they all read the same taps.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::isa::Isa;
use crate::moments::{ColumnSums, Moments, SumsOfParts};
use crate::pack::Layout;
use crate::parallel::{Target, groups_of_blocks, images_per_part};
use crate::simd::{Simd, Task};
use crate::taps::Region;
use crate::tile::{MAX_ROWS, Tile, Turned};
use crate::walk::Walk;

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

impl Gather<'_> {
    /// Computes `target` `[batch, target pixels, target channels]` from `source`, and, if wanted, the sum and the sum of
    /// squares of each channel.
    pub fn run(
        &self,
        isa: Isa,
        batch: usize,
        source: &[f32],
        target: &mut [MaybeUninit<f32>],
        moments: bool,
    ) -> Option<ColumnSums> {
        let (source_len, target_len) =
            (self.source_pixels * self.source_channels, self.target_pixels * self.target_channels);
        assert!(source.len() == batch * source_len && target.len() == batch * target_len);
        assert!(self.packed.len() == self.layout.len && self.bias.len() == self.target_channels);
        if target.is_empty() {
            return moments.then(|| ColumnSums::zero(self.target_channels));
        }
        let images = images_per_part(batch, 4 * source_len, MAX_ROWS);
        let image_parts = batch.div_ceil(images);
        let groups = groups_of_blocks(self.layout.blocks.len(), image_parts);
        let mut sums = moments.then(|| SumsOfParts::new(image_parts * groups.len(), self.target_channels));
        let mut of_parts = sums.iter_mut().flat_map(SumsOfParts::parts);
        let target = Target(target.as_mut_ptr().cast());
        let mut parts = Vec::with_capacity(image_parts * groups.len());
        for first in (0..batch).step_by(images) {
            for blocks in &groups {
                parts.push((first, blocks.clone(), of_parts.next()));
            }
        }
        parts.into_par_iter().for_each(|(first, blocks, moments)| {
            let images = images.min(batch - first);
            let source = &source[first * source_len..][..images * source_len];
            // SAFETY: the target has `batch` images.
            let target = unsafe { target.add(first * target_len) };
            isa.run(Part { gather: self, images, blocks, source, target, moments });
        });
        sums.map(SumsOfParts::total)
    }
}

/// Brings the sources of the next band near while one is computed, a few lines with every tile.
struct Prefetch {
    line: *const f32,
    /// Lines of a tile, and those that are due, in units of 1/2¹⁶.
    per_tile: usize,
    due: usize,
}

impl Prefetch {
    /// Values of a cache line.
    const LINE: usize = 16;

    fn new(source: &[f32], tiles: usize) -> Self {
        let lines = source.len().div_ceil(Self::LINE);
        let line = source.as_ptr().wrapping_add(BAND.min(source.len()));
        Self { line, per_tile: (lines << 16) / tiles.max(1), due: 0 }
    }

    #[inline(always)]
    fn advance<S: Simd>(&mut self, simd: S) {
        self.due += self.per_tile;
        for _ in 0..self.due >> 16 {
            simd.prefetch(self.line);
            self.line = self.line.wrapping_add(Self::LINE);
        }
        self.due &= 0xffff;
    }
}

/// Some images and blocks of a gather, for one thread.
struct Part<'a> {
    gather: &'a Gather<'a>,
    images: usize,
    blocks: Range<usize>,
    source: &'a [f32],
    /// The first image's target.
    target: Target,
    /// Sums and sums of squares, `[2, target channels]`.
    moments: Option<&'a mut [f64]>,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Gather { layout, regions, source_pixels, target_pixels, source_channels, target_channels, .. } =
            *self.gather;
        let blocks = &layout.blocks[self.blocks.clone()];
        let image_lens = [source_pixels * source_channels, target_pixels * target_channels];
        let band = pixels_of_band(image_lens[0], target_pixels);
        let tiles: usize = regions.iter().map(|r| (self.images * r.pixels.len()).div_ceil(MAX_ROWS)).sum();
        let mut prefetch = Prefetch::new(self.source, tiles * blocks.len());
        let mut turned = Turned::new();
        let mut moments: Vec<Moments> = blocks.iter().map(|_| Moments::new()).collect();
        for region in regions {
            let walks: Vec<Walk> = blocks.iter().map(|block| Walk::new(block, layout.center, &region.taps)).collect();
            let pixels = self.images * region.pixels.len();
            for first in (0..pixels).step_by(band) {
                let of_band = band.min(pixels - first);
                for (index, (block, walk)) in blocks.iter().zip(&walks).enumerate() {
                    let mut tile = Tile {
                        walk,
                        block,
                        packed: self.gather.packed.as_ptr(),
                        bias: &self.gather.bias[block.outputs.clone()],
                        rows: 0,
                        sources: [self.source.as_ptr(); MAX_ROWS],
                        targets: [self.target.0; MAX_ROWS],
                        starts: None,
                    };
                    // Tiles of nearly equal height: a last one of a few rows would waste most of its loads.
                    let rows = of_band.div_ceil(of_band.div_ceil(Tile::most_rows::<S>(block)));
                    let image = first / region.pixels.len();
                    let mut source = self.source.as_ptr().wrapping_add(image * image_lens[0]);
                    let mut target = self.target.0.wrapping_add(image * image_lens[1] + block.outputs.start);
                    let mut in_image = region.pixels[first % region.pixels.len()..].iter();
                    let mut left = of_band;
                    while left > 0 {
                        tile.rows = rows.min(left);
                        left -= tile.rows;
                        for row in 0..tile.rows {
                            let (from, to) = *in_image.next().unwrap_or_else(|| {
                                source = source.wrapping_add(image_lens[0]);
                                target = target.wrapping_add(image_lens[1]);
                                in_image = region.pixels.iter();
                                in_image.next().expect("a region has pixels")
                            });
                            tile.sources[row] = source.wrapping_add(from);
                            tile.targets[row] = target.wrapping_add(to);
                        }
                        prefetch.advance(simd);
                        for &target in &tile.targets[..tile.rows] {
                            for vector in 0..block.vectors {
                                simd.prefetch_to_write(target.wrapping_add(vector * S::LANES));
                            }
                        }
                        let moments = self.moments.is_some().then_some(&mut moments[index]);
                        // SAFETY: see `Tile::compute`; regions only name taps that fall inside the source image, and
                        // pixels that lie inside this part's images, whose lengths `Gather::run` checked.
                        unsafe { tile.compute(simd, &mut turned, moments) };
                    }
                }
            }
        }
        if let Some(sums) = &mut self.moments {
            for (moments, block) in moments.into_iter().zip(blocks) {
                moments.add_to(sums, &block.outputs);
            }
        }
    }
}

/// Values of the source that all blocks read before the next ones are begun: twice as many stay in a core's second-level
/// cache.
const BAND: usize = 64 << 10;

/// Target pixels of a band.
fn pixels_of_band(source_len: usize, target_pixels: usize) -> usize {
    let values = source_len.div_ceil(target_pixels.max(1)).max(1);
    (BAND / values).max(1).next_multiple_of(4 * MAX_ROWS)
}

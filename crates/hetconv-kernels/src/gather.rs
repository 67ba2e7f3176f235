//! Forward and grad-input of every convolution but depthwise: one pass over the output.
//!
//! A [`Tile`] takes its pixels from one [`Region`], across rows and images, so that they all read the same taps.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::isa::Isa;
use crate::moments::{ColumnSums, SumsOfParts};
use crate::pack::{Layout, Ring};
use crate::parallel::images_per_part;
use crate::simd::{Simd, Task};
use crate::taps::Region;
use crate::tile::{MAX_ROWS, Moments, Segment, Spread, Tile, Turn, extend};

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
        let images = images_per_part(batch, 4 * source_len.max(target_len), isa.sums() / 2);
        let mut sums = moments.then(|| SumsOfParts::new(batch.div_ceil(images), self.target_channels));
        let mut of_parts = sums.iter_mut().flat_map(SumsOfParts::parts);
        let parts: Vec<_> = target.chunks_mut(images * target_len).map(|target| (target, of_parts.next())).collect();
        parts.into_par_iter().enumerate().for_each(|(part, (target, moments))| {
            let first = part * images * source_len;
            let images = target.len() / target_len;
            let source = &source[first..first + images * source_len];
            isa.run(Part { gather: self, images, source, target, moments });
        });
        sums.map(SumsOfParts::total)
    }
}

/// Brings the source near while the first block is computed: a tile is longer than the CPU looks ahead.
struct Prefetch {
    line: *const f32,
    lines: usize,
    per_tile: usize,
}

impl Prefetch {
    /// Values of a cache line.
    const LINE: usize = 16;
    /// Lines that are asked for before the first tile.
    const LEAD: usize = 256;

    fn new(source: &[f32], tiles: usize) -> Self {
        let lines = source.len().div_ceil(Self::LINE);
        Self { line: source.as_ptr(), lines, per_tile: lines.div_ceil(tiles.max(1)) }
    }

    #[inline(always)]
    fn advance<S: Simd>(&mut self, simd: S, lines: usize) {
        for _ in 0..lines.min(self.lines) {
            simd.prefetch(self.line);
            self.line = self.line.wrapping_add(Self::LINE);
        }
        self.lines -= lines.min(self.lines);
    }
}

/// Some images of a gather, for one thread.
struct Part<'a> {
    gather: &'a Gather<'a>,
    images: usize,
    source: &'a [f32],
    target: &'a mut [MaybeUninit<f32>],
    /// Sums and sums of squares, `[2, target channels]`.
    moments: Option<&'a mut [f64]>,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Gather { layout, regions, source_pixels, target_pixels, source_channels, target_channels, .. } =
            *self.gather;
        let mut segments = Vec::new();
        let tiles: usize = regions.iter().map(|r| (self.images * r.pixels.len()).div_ceil(MAX_ROWS)).sum();
        let mut prefetch = Prefetch::new(self.source, tiles);
        prefetch.advance(simd, Prefetch::LEAD);
        for block in &layout.blocks {
            let spreads: Vec<Option<Spread>> = match &block.ring {
                Ring::Ranges(_) => Vec::new(),
                Ring::Rotated { sources, .. } => sources.iter().map(Spread::new).collect(),
            };
            let size = match block.ring {
                Ring::Ranges(_) => 0,
                Ring::Rotated { size, .. } => size,
            };
            let most_rows = match size {
                0 => MAX_ROWS.min(S::SUMS / 2),
                size => MAX_ROWS.min(S::SUMS / size),
            };
            let mut moments = Moments::<S>::new(simd);
            for region in regions {
                segments.clear();
                let mut turns = Vec::new();
                for &(tap, offset) in &region.taps {
                    let offset = offset * source_channels as isize;
                    let weights = block.taps[tap];
                    match &block.ring {
                        _ if Some(tap) == layout.center => {
                            let sources = [offset + block.center.start as isize; 2];
                            extend(&mut segments, block.stride, Segment { sources, len: block.center.len(), weights });
                        }
                        Ring::Ranges(ranges) => {
                            let sources = ranges.each_ref().map(|range| offset + range.start as isize);
                            extend(&mut segments, block.stride, Segment { sources, len: ranges[0].len(), weights });
                        }
                        Ring::Rotated { size, sources } => {
                            turns.extend(sources.iter().zip(&spreads).enumerate().map(|(i, (source, spread))| Turn {
                                source: offset + source.start as isize,
                                lanes: spread.as_ref(),
                                weights: weights + i * size * block.stride,
                            }));
                        }
                    }
                }
                let mut tile = Tile {
                    segments: &segments,
                    turns: &turns,
                    size,
                    packed: self.gather.packed.as_ptr(),
                    bias: &self.gather.bias[block.outputs.clone()],
                    block,
                    start: None,
                    rows: 0,
                    sources: [self.source.as_ptr(); MAX_ROWS],
                    targets: [self.target.as_mut_ptr().cast::<f32>(); MAX_ROWS],
                };
                let mut left = self.images * region.pixels.len();
                for image in 0..self.images {
                    for &(from, to) in &region.pixels {
                        let from = (image * source_pixels + from) * source_channels;
                        let to = (image * target_pixels + to) * target_channels + block.outputs.start;
                        // SAFETY: both pixels lie inside this part's images, whose lengths `Gather::run` checked.
                        unsafe {
                            tile.sources[tile.rows] = self.source.as_ptr().add(from);
                            tile.targets[tile.rows] = self.target.as_mut_ptr().cast::<f32>().add(to);
                        }
                        tile.rows += 1;
                        if tile.rows < most_rows.min(left) {
                            continue;
                        }
                        let moments = self.moments.is_some().then_some(&mut moments);
                        prefetch.advance(simd, prefetch.per_tile);
                        for &target in &tile.targets[..tile.rows] {
                            for vector in 0..block.vectors {
                                simd.prefetch_to_write(target.wrapping_add(vector * S::LANES));
                            }
                        }
                        // SAFETY: see `Tile::compute`; regions only name taps that fall inside the source image.
                        unsafe { tile.compute(simd, moments) };
                        left -= tile.rows;
                        tile.rows = 0;
                    }
                }
            }
            if let Some(sums) = &mut self.moments {
                moments.flush(simd);
                moments.add_to(sums, &block.outputs);
            }
        }
    }
}

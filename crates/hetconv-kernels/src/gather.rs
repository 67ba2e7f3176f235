//! Forward and grad-input of every convolution but depthwise: one pass over the output.
//!
//! A tile is some pixels of one [`Region`] by one [`Block`] of outputs. Its sums live in registers from the first product
//! to the last. For HetConv the centre tap spans all channels and the others one class, so K×K and 1×1 kernels meet in the
//! same registers and no intermediate tensor exists: the paper's "zero latency".

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::isa::Isa;
use crate::moments::{ColumnSums, SumsOfParts};
use crate::pack::{Block, Layout, Ring, Source, rotated};
use crate::parallel::images_per_part;
use crate::simd::{Simd, Task};
use crate::taps::Region;

/// The most pixels of any tile.
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

/// One tap over one range of positions.
#[derive(Clone, Copy)]
struct Segment {
    /// First value of each vector's range, relative to the tile pixel's own first.
    sources: [isize; 2],
    /// Number of positions.
    len: usize,
    /// First weight in the packed buffer.
    weights: usize,
}

/// One tap over one vector of positions.
struct Turn<'a> {
    /// First value that is read, relative to the tile pixel's own first.
    source: isize,
    /// How the values come to their lanes; `None` as they are.
    lanes: Option<&'a Spread>,
    /// First weight in the packed buffer.
    weights: usize,
}

/// A vector's lanes taken from others, some of them left 0.
pub(crate) struct Spread {
    pub lanes: [u32; 16],
    /// 1 for every lane that holds a value.
    pub live: [f32; 16],
}

impl Spread {
    /// `None` where the lanes hold the values as they are read.
    pub fn new(source: &Source) -> Option<Self> {
        if source.is_plain() {
            return None;
        }
        let (mut lanes, mut live) = ([0; 16], [0.0; 16]);
        for (lane, held) in source.lanes.iter().enumerate() {
            lanes[lane] = held.unwrap_or(0);
            live[lane] = if held.is_some() { 1.0 } else { 0.0 };
        }
        Some(Self { lanes, live })
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
                let (sum, squares) = sums.split_at_mut(target_channels);
                for (lane, output) in block.outputs.clone().enumerate() {
                    sum[output] += moments.total[0][lane];
                    squares[output] += moments.total[1][lane];
                }
            }
        }
    }
}

/// Adds a segment, to the last one where it goes on from there.
fn extend(segments: &mut Vec<Segment>, stride: usize, segment: Segment) {
    if segment.len == 0 {
        return;
    }
    if let Some(last) = segments.last_mut() {
        let next = last.sources.map(|source| source + last.len as isize);
        if next == segment.sources && last.weights + last.len * stride == segment.weights {
            last.len += segment.len;
            return;
        }
    }
    segments.push(segment);
}

/// Sums and sums of squares of a block's outputs: `f32` over some tiles, `f64` beyond.
struct Moments<S: Simd> {
    sums: [[S::V; 2]; 2],
    tiles: usize,
    total: [[f64; 32]; 2],
}

impl<S: Simd> Moments<S> {
    /// Tiles after which the `f32` sums are added to the others.
    const TILES: usize = 16;

    #[inline(always)]
    fn new(simd: S) -> Self {
        Self { sums: [[simd.splat(0.0); 2]; 2], tiles: 0, total: [[0.0; 32]; 2] }
    }

    #[inline(always)]
    fn flush(&mut self, simd: S) {
        for (sums, total) in self.sums.iter_mut().zip(&mut self.total) {
            for (vector, sum) in sums.iter_mut().enumerate() {
                let mut lanes = [0.0f32; 16];
                // SAFETY: a vector has at most sixteen lanes.
                unsafe { simd.store(lanes.as_mut_ptr(), *sum) };
                for (total, &lane) in total[vector * S::LANES..].iter_mut().zip(&lanes[..S::LANES]) {
                    *total += f64::from(lane);
                }
                *sum = simd.splat(0.0);
            }
        }
        self.tiles = 0;
    }
}

/// Pixels that are computed together.
struct Tile<'a> {
    segments: &'a [Segment],
    turns: &'a [Turn<'a>],
    /// Size of the rotated groups, 0 without.
    size: usize,
    packed: *const f32,
    bias: &'a [f32],
    block: &'a Block,
    rows: usize,
    sources: [*const f32; MAX_ROWS],
    targets: [*mut f32; MAX_ROWS],
}

impl Tile<'_> {
    /// Computes the tile's pixels.
    ///
    /// # Safety
    /// For each pixel, every segment's and every turn's values are readable from its source pointer, and the block's
    /// outputs are writable at its target pointer; the weights lie inside the packed buffer. `S` is the instruction set
    /// that the block was made for.
    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, simd: S, moments: Option<&mut Moments<S>>) {
        // SAFETY: the caller's.
        unsafe {
            match (self.size, self.block.half, self.block.vectors) {
                (1, ..) => self.compute_turns::<S, 1>(simd, moments),
                (2, ..) => self.compute_turns::<S, 2>(simd, moments),
                (4, ..) => self.compute_turns::<S, 4>(simd, moments),
                (8, ..) => self.compute_turns::<S, 8>(simd, moments),
                (_, false, 2) => self.compute_ranges::<S, 2>(simd, moments),
                (_, false, _) => self.compute_ranges::<S, 1>(simd, moments),
                (_, true, vectors) => {
                    let mut halves = moments.is_some().then(|| Moments::new(simd.half()));
                    match vectors {
                        2 => self.compute_ranges::<S::Half, 2>(simd.half(), halves.as_mut()),
                        _ => self.compute_ranges::<S::Half, 1>(simd.half(), halves.as_mut()),
                    }
                    if let (Some(moments), Some(mut halves)) = (moments, halves) {
                        halves.flush(simd.half());
                        for (total, half) in moments.total.iter_mut().flatten().zip(halves.total.iter().flatten()) {
                            *total += half;
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn compute_ranges<S: Simd, const V: usize>(&self, simd: S, moments: Option<&mut Moments<S>>) {
        // SAFETY: the caller's.
        unsafe {
            match self.rows {
                1 => self.ranges::<S, 1, V>(simd, moments),
                2 => self.ranges::<S, 2, V>(simd, moments),
                3 => self.ranges::<S, 3, V>(simd, moments),
                4 => self.ranges::<S, 4, V>(simd, moments),
                5 => self.ranges::<S, 5, V>(simd, moments),
                6 => self.ranges::<S, 6, V>(simd, moments),
                7 => self.ranges::<S, 7, V>(simd, moments),
                _ => self.ranges::<S, 8, V>(simd, moments),
            }
        }
    }

    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn compute_turns<S: Simd, const J: usize>(&self, simd: S, moments: Option<&mut Moments<S>>) {
        // SAFETY: the caller's.
        unsafe {
            match self.rows {
                1 => self.turns::<S, 1, J>(simd, moments),
                2 => self.turns::<S, 2, J>(simd, moments),
                3 => self.turns::<S, 3, J>(simd, moments),
                4 => self.turns::<S, 4, J>(simd, moments),
                5 => self.turns::<S, 5, J>(simd, moments),
                6 => self.turns::<S, 6, J>(simd, moments),
                7 => self.turns::<S, 7, J>(simd, moments),
                _ => self.turns::<S, 8, J>(simd, moments),
            }
        }
    }

    /// Computes `R` pixels of a block that reads ranges.
    ///
    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn ranges<S: Simd, const R: usize, const V: usize>(&self, simd: S, moments: Option<&mut Moments<S>>) {
        let mut sums = [[simd.splat(0.0); V]; R];
        // SAFETY: the caller's.
        unsafe {
            self.segments(simd, &mut sums);
            self.finish(simd, sums, moments);
        }
    }

    /// Computes `R` pixels of a block that reads vectors, in groups of `J` lanes.
    ///
    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn turns<S: Simd, const R: usize, const J: usize>(&self, simd: S, moments: Option<&mut Moments<S>>) {
        let mut turned = [[simd.splat(0.0); J]; R];
        // SAFETY: the caller vouches for sources and weights.
        unsafe {
            for turn in self.turns {
                let weights = self.packed.add(turn.weights);
                let weights: [S::V; J] = std::array::from_fn(|j| simd.load(weights.add(j * S::LANES)));
                let value = |r: usize| simd.load(self.sources[r].offset(turn.source));
                // Two loops, so that the choice is not made for every value.
                match turn.lanes {
                    None => {
                        for r in 0..R {
                            let value = value(r);
                            for j in 0..J {
                                turned[r][j] = simd.mul_add(value, weights[j], turned[r][j]);
                            }
                        }
                    }
                    Some(spread) => {
                        let (lanes, live) = (simd.lanes(&spread.lanes), simd.load(spread.live.as_ptr()));
                        for r in 0..R {
                            let value = simd.where_positive(live, simd.permute(value(r), lanes));
                            for j in 0..J {
                                turned[r][j] = simd.mul_add(value, weights[j], turned[r][j]);
                            }
                        }
                    }
                }
            }
        }
        let mut sums: [[S::V; 1]; R] = std::array::from_fn(|r| [turned[r][0]]);
        for j in 1..J {
            // Lane i's product belongs to the output in lane `rotated(i)`, so an output finds it `J - j` turns on.
            let lanes = std::array::from_fn(|lane| rotated(lane, J - j, J) as u32);
            let lanes = simd.lanes(&lanes);
            for r in 0..R {
                sums[r][0] = simd.add(sums[r][0], simd.permute(turned[r][j], lanes));
            }
        }
        // SAFETY: the caller's.
        unsafe {
            self.segments(simd, &mut sums);
            self.finish(simd, sums, moments);
        }
    }

    /// Adds the products of all segments.
    ///
    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn segments<S: Simd, const R: usize, const V: usize>(&self, simd: S, sums: &mut [[S::V; V]; R]) {
        for segment in self.segments {
            let [first, second] = segment.sources;
            // SAFETY: the caller vouches for every segment: sources and weights.
            unsafe {
                let mut weights = self.packed.add(segment.weights);
                let pixels: [*const f32; R] = std::array::from_fn(|r| self.sources[r].offset(first));
                let mut index = 0;
                if V == 1 && R <= 4 {
                    // Few sums: every other position has its own, to hide the latency of a product.
                    let mut others = [simd.splat(0.0); R];
                    while index + 2 <= segment.len {
                        let (weight, next) = (simd.load(weights), simd.load(weights.add(S::LANES)));
                        for r in 0..R {
                            sums[r][0] = simd.mul_add(simd.splat(*pixels[r].add(index)), weight, sums[r][0]);
                            others[r] = simd.mul_add(simd.splat(*pixels[r].add(index + 1)), next, others[r]);
                        }
                        weights = weights.add(2 * S::LANES);
                        index += 2;
                    }
                    for r in 0..R {
                        sums[r][0] = simd.add(sums[r][0], others[r]);
                    }
                }
                if V == 1 || first == second {
                    for index in index..segment.len {
                        let weight: [S::V; V] = std::array::from_fn(|v| simd.load(weights.add(v * S::LANES)));
                        for r in 0..R {
                            let value = simd.splat(*pixels[r].add(index));
                            for v in 0..V {
                                sums[r][v] = simd.mul_add(value, weight[v], sums[r][v]);
                            }
                        }
                        weights = weights.add(V * S::LANES);
                    }
                } else {
                    // One vector after the other: two sets of addresses do not fit the registers.
                    for v in 0..V {
                        let pixels = pixels.map(|pixel| pixel.offset(v as isize * (second - first)));
                        let weights = weights.add(v * S::LANES);
                        for index in 0..segment.len {
                            let weight = simd.load(weights.add(index * V * S::LANES));
                            for r in 0..R {
                                let value = simd.splat(*pixels[r].add(index));
                                sums[r][v] = simd.mul_add(value, weight, sums[r][v]);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Adds the bias, counts the moments and writes the outputs.
    ///
    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        mut sums: [[S::V; V]; R],
        moments: Option<&mut Moments<S>>,
    ) {
        let outputs = self.bias.len();
        for v in 0..V {
            let lane = v * S::LANES;
            if lane >= outputs {
                break;
            }
            let left = outputs - lane;
            // SAFETY: `left` biases stand from `lane` on, and as many outputs are writable at each target.
            unsafe {
                let bias = self.bias.as_ptr().add(lane);
                let bias = if left >= S::LANES { simd.load(bias) } else { simd.load_first(bias, left) };
                for r in 0..R {
                    sums[r][v] = simd.add(sums[r][v], bias);
                    let target = self.targets[r].add(lane);
                    if left >= S::LANES {
                        simd.store(target, sums[r][v]);
                    } else {
                        simd.store_first(target, sums[r][v], left);
                    }
                }
            }
        }
        let Some(moments) = moments else { return };
        for v in 0..V {
            let [mut sum, mut squares] = [moments.sums[0][v], moments.sums[1][v]];
            for r in 0..R {
                sum = simd.add(sum, sums[r][v]);
                squares = simd.mul_add(sums[r][v], sums[r][v], squares);
            }
            (moments.sums[0][v], moments.sums[1][v]) = (sum, squares);
        }
        moments.tiles += 1;
        if moments.tiles == Moments::<S>::TILES {
            moments.flush(simd);
        }
    }
}

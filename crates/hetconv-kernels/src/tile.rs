//! Some pixels by one block of outputs, in registers: the arithmetic of every convolution but depthwise.
//!
//! Sums live in registers from the first product to the last. For HetConv the centre tap spans all channels and the others
//! one class, so K×K and 1×1 kernels meet in the same registers and no intermediate tensor exists: the paper's "zero
//! latency".

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::pack::{Block, Source, rotated};
use crate::simd::Simd;

/// The most pixels of any tile.
pub(crate) const MAX_ROWS: usize = 12;

/// One tap over one range of positions.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// First value of each vector's range, relative to the tile pixel's own first.
    pub sources: [isize; 2],
    /// Number of positions.
    pub len: usize,
    /// First weight in the packed buffer.
    pub weights: usize,
}

/// One tap over one vector of positions.
pub(crate) struct Turn<'a> {
    /// First value that is read, relative to the tile pixel's own first.
    pub source: isize,
    /// How the values come to their lanes; `None` as they are.
    pub lanes: Option<&'a Spread>,
    /// First weight in the packed buffer.
    pub weights: usize,
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

/// Adds a segment, to the last one where it goes on from there.
pub(crate) fn extend(segments: &mut Vec<Segment>, stride: usize, segment: Segment) {
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
pub(crate) struct Moments<S: Simd> {
    pub sums: [[S::V; 2]; 2],
    pub tiles: usize,
    pub total: [[f64; 32]; 2],
}

impl<S: Simd> Moments<S> {
    /// Tiles after which the `f32` sums are added to the others.
    const TILES: usize = 16;

    #[inline(always)]
    pub fn new(simd: S) -> Self {
        Self { sums: [[simd.splat(0.0); 2]; 2], tiles: 0, total: [[0.0; 32]; 2] }
    }

    #[inline(always)]
    pub fn flush(&mut self, simd: S) {
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

    /// Adds what was flushed to sums and sums of squares, `[2, channels]`.
    pub fn add_to(&self, sums: &mut [f64], outputs: &Range<usize>) {
        let (sum, squares) = sums.split_at_mut(sums.len() / 2);
        for (lane, output) in outputs.clone().enumerate() {
            sum[output] += self.total[0][lane];
            squares[output] += self.total[1][lane];
        }
    }
}

/// Pixels that are computed together.
pub(crate) struct Tile<'a> {
    pub segments: &'a [Segment],
    pub turns: &'a [Turn<'a>],
    /// Size of the rotated groups, 0 without.
    pub size: usize,
    pub packed: *const f32,
    pub bias: &'a [f32],
    pub block: &'a Block,
    /// Where each pixel's sums start, if not at 0: a vector of the block's outputs, padded to whole ones.
    pub start: Option<[*const f32; MAX_ROWS]>,
    pub rows: usize,
    pub sources: [*const f32; MAX_ROWS],
    pub targets: [*mut f32; MAX_ROWS],
}

impl Tile<'_> {
    /// Computes the tile's pixels.
    ///
    /// # Safety
    /// For each pixel, every segment's and every turn's values are readable from its source pointer, and the block's
    /// outputs are writable at its target pointer; the weights lie inside the packed buffer. `S` is the instruction set
    /// that the block was made for.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(&self, simd: S, moments: Option<&mut Moments<S>>) {
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
    pub unsafe fn compute_ranges<S: Simd, const V: usize>(&self, simd: S, moments: Option<&mut Moments<S>>) {
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
                8 => self.ranges::<S, 8, V>(simd, moments),
                9 => self.ranges::<S, 9, V>(simd, moments),
                10 => self.ranges::<S, 10, V>(simd, moments),
                11 => self.ranges::<S, 11, V>(simd, moments),
                _ => self.ranges::<S, 12, V>(simd, moments),
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
                8 => self.turns::<S, 8, J>(simd, moments),
                9 => self.turns::<S, 9, J>(simd, moments),
                10 => self.turns::<S, 10, J>(simd, moments),
                11 => self.turns::<S, 11, J>(simd, moments),
                _ => self.turns::<S, 12, J>(simd, moments),
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
            if let Some(start) = &self.start {
                sums = std::array::from_fn(|r| std::array::from_fn(|v| simd.load(start[r].add(v * S::LANES))));
            }
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

//! Sums over the pixels of each channel, gathered where the values are made.

use std::ops::Range;

use crate::simd::Simd;
use crate::tile::MAX_STRIDE;

/// The sum and the sum of squares of each channel over all pixels of a batch, in stored order.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnSums {
    /// Σx.
    pub sums: Vec<f64>,
    /// Σx².
    pub squares: Vec<f64>,
}

impl ColumnSums {
    /// From `[2, channels]`.
    pub(crate) fn new(mut sums: Vec<f64>) -> Self {
        let squares = sums.split_off(sums.len() / 2);
        Self { sums, squares }
    }
}

/// Two sums a channel of each of several parts, `[parts, 2, channels]`: parts are worked on in any order and added in theirs.
pub(crate) struct SumsOfParts {
    values: Vec<f64>,
    channels: usize,
}

impl SumsOfParts {
    /// Of no channels, nothing.
    pub fn new(parts: usize, channels: usize) -> Self {
        Self { values: vec![0.0; parts * 2 * channels], channels }
    }

    /// Each part's `[2, channels]`.
    pub fn parts(&mut self) -> std::slice::ChunksExactMut<'_, f64> {
        self.values.chunks_exact_mut((2 * self.channels).max(1))
    }

    /// Of all parts, `[2, channels]`.
    pub fn total(self) -> Vec<f64> {
        let len = 2 * self.channels;
        let mut total = vec![0.0; len];
        for part in self.values.chunks_exact(len.max(1)) {
            total.iter_mut().zip(part).for_each(|(total, sum)| *total += sum);
        }
        total
    }
}

/// Adds to Σx and Σx² what `pixels` values x have, of which Σ(x − pivot) and Σ(x − pivot)² are known. Those stay small where
/// values are far from 0 and close to each other, so that `f32` has digits for their differences.
#[inline(always)]
pub(crate) fn add_about(total: [&mut f64; 2], pixels: usize, pivot: f32, [sum, square]: [f32; 2]) {
    let [sum, square, pivot] = [sum, square, pivot].map(f64::from);
    let of_pivot = pixels as f64 * pivot;
    *total[0] += sum + of_pivot;
    *total[1] += square + pivot * (2.0 * sum + of_pivot);
}

/// Sums and sums of squares of a block's outputs: `f32` over some tiles, about their first output, `f64` beyond.
pub(crate) struct Moments {
    pivot: [f32; MAX_STRIDE],
    sums: [[f32; MAX_STRIDE]; 2],
    tiles: usize,
    pixels: usize,
    total: [[f64; MAX_STRIDE]; 2],
}

impl Moments {
    /// Tiles after which the `f32` sums are added to the others.
    const TILES: usize = 16;

    pub fn new() -> Self {
        let (none, total) = ([0.0; MAX_STRIDE], [[0.0; MAX_STRIDE]; 2]);
        Self { pivot: none, sums: [none; 2], tiles: 0, pixels: 0, total }
    }

    /// Counts the outputs of a tile.
    #[inline(always)]
    pub fn add<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, outputs: &[[S::V; V]; R]) {
        let [sums, squares] = &mut self.sums;
        for v in 0..V {
            let first = v * S::LANES;
            // SAFETY: a block has at most `MAX_STRIDE` lanes.
            unsafe {
                let pivot = self.pivot[first..].as_mut_ptr();
                if self.tiles == 0 {
                    simd.store(pivot, outputs[0][v]);
                }
                let pivot = simd.load(pivot);
                let (sums, squares) = (sums[first..].as_mut_ptr(), squares[first..].as_mut_ptr());
                let (mut sum, mut square) = (simd.load(sums), simd.load(squares));
                for row in outputs {
                    let x = simd.sub(row[v], pivot);
                    sum = simd.add(sum, x);
                    square = simd.mul_add(x, x, square);
                }
                simd.store(sums, sum);
                simd.store(squares, square);
            }
        }
        self.tiles += 1;
        self.pixels += R;
        if self.tiles == Self::TILES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.tiles == 0 {
            return;
        }
        let ([sums, squares], [total, total_squares]) = (&mut self.sums, &mut self.total);
        for lane in 0..MAX_STRIDE {
            let total = [&mut total[lane], &mut total_squares[lane]];
            add_about(total, self.pixels, self.pivot[lane], [sums[lane], squares[lane]]);
            (sums[lane], squares[lane]) = (0.0, 0.0);
        }
        (self.tiles, self.pixels) = (0, 0);
    }

    /// Adds everything counted to sums and sums of squares, `[2, channels]`.
    pub fn add_to(mut self, sums: &mut [f64], outputs: &Range<usize>) {
        self.flush();
        let (sum, squares) = sums.split_at_mut(sums.len() / 2);
        for (lane, output) in outputs.clone().enumerate() {
            sum[output] += self.total[0][lane];
            squares[output] += self.total[1][lane];
        }
    }
}

/// Sums and sums of squares of all channels, row by row: `f32` over some pixels, about their first, `f64` beyond.
pub(crate) struct ChannelMoments {
    /// `[3, channels]`, channels padded to whole vectors: sums, sums of squares, and what they are about.
    sums: Vec<f32>,
    total: Vec<f64>,
    pixels: usize,
}

/// Where a channel's Σ(x − pivot), Σ(x − pivot)² and pivot stand, with those of the channels behind it.
#[derive(Clone, Copy)]
pub(crate) struct ChannelSums {
    pub places: [*mut f32; 3],
    /// Whether the next pixel is the pivot.
    pub is_first: bool,
}

impl ChannelMoments {
    /// Pixels after which the `f32` sums are added to the others.
    const PIXELS: usize = 64;

    pub fn new(padded: usize) -> Self {
        Self { sums: vec![0.0; 3 * padded], total: vec![0.0; 2 * padded], pixels: 0 }
    }

    /// Where a channel is counted.
    #[inline(always)]
    pub fn sums(&mut self, channel: usize) -> ChannelSums {
        let padded = self.sums.len() / 3;
        assert!(channel < padded);
        let first = self.sums.as_mut_ptr().wrapping_add(channel);
        let places = [0, 1, 2].map(|kind| first.wrapping_add(kind * padded));
        ChannelSums { places, is_first: self.pixels == 0 }
    }

    /// Counts pixels that were added to the sums.
    #[inline(always)]
    pub fn count(&mut self, pixels: usize) {
        self.pixels += pixels;
        if self.pixels >= Self::PIXELS {
            self.flush();
        }
    }

    #[inline(always)]
    fn flush(&mut self) {
        if self.pixels == 0 {
            return;
        }
        let padded = self.sums.len() / 3;
        let (sums, pivots) = self.sums.split_at_mut(2 * padded);
        let (total, total_squares) = self.total.split_at_mut(padded);
        for channel in 0..padded {
            let total = [&mut total[channel], &mut total_squares[channel]];
            add_about(total, self.pixels, pivots[channel], [sums[channel], sums[padded + channel]]);
        }
        sums.fill(0.0);
        self.pixels = 0;
    }

    /// Adds everything counted to sums and sums of squares, `[2, channels]`.
    pub fn add_to(mut self, sums: &mut [f64]) {
        self.flush();
        let (channels, padded) = (sums.len() / 2, self.total.len() / 2);
        for (sums, total) in sums.chunks_exact_mut(channels).zip(self.total.chunks_exact(padded)) {
            sums.iter_mut().zip(total).for_each(|(sum, total)| *sum += total);
        }
    }
}

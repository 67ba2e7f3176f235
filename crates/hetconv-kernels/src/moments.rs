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
    /// The sums of no pixel at all.
    pub fn zero(channels: usize) -> Self {
        Self { sums: vec![0.0; channels], squares: vec![0.0; channels] }
    }
}

/// The sums of each of several parts, `[parts, 2, channels]`: parts are worked on in any order and added in theirs.
pub(crate) struct SumsOfParts {
    values: Vec<f64>,
    channels: usize,
}

impl SumsOfParts {
    pub fn new(parts: usize, channels: usize) -> Self {
        Self { values: vec![0.0; parts * 2 * channels], channels }
    }

    /// Each part's `[2, channels]`.
    pub fn parts(&mut self) -> std::slice::ChunksExactMut<'_, f64> {
        self.values.chunks_exact_mut(2 * self.channels)
    }

    pub fn total(self) -> ColumnSums {
        let mut total = ColumnSums::zero(self.channels);
        for part in self.values.chunks_exact(2 * self.channels) {
            let (sums, squares) = part.split_at(self.channels);
            total.sums.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            total.squares.iter_mut().zip(squares).for_each(|(total, square)| *total += square);
        }
        total
    }
}

/// Sums and sums of squares of a block's outputs: `f32` over some tiles, `f64` beyond.
pub(crate) struct Moments {
    sums: [[f32; MAX_STRIDE]; 2],
    tiles: usize,
    total: [[f64; MAX_STRIDE]; 2],
}

impl Moments {
    /// Tiles after which the `f32` sums are added to the others.
    const TILES: usize = 16;

    pub fn new() -> Self {
        Self { sums: [[0.0; MAX_STRIDE]; 2], tiles: 0, total: [[0.0; MAX_STRIDE]; 2] }
    }

    /// Counts the outputs of a tile.
    #[inline(always)]
    pub fn add<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, outputs: &[[S::V; V]; R]) {
        let [sums, squares] = &mut self.sums;
        for v in 0..V {
            // SAFETY: a block has at most `MAX_STRIDE` lanes.
            unsafe {
                let (sums, squares) = (sums[v * S::LANES..].as_mut_ptr(), squares[v * S::LANES..].as_mut_ptr());
                let (mut sum, mut square) = (simd.load(sums), simd.load(squares));
                for row in outputs {
                    sum = simd.add(sum, row[v]);
                    square = simd.mul_add(row[v], row[v], square);
                }
                simd.store(sums, sum);
                simd.store(squares, square);
            }
        }
        self.tiles += 1;
        if self.tiles == Self::TILES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for (total, sum) in self.total.iter_mut().flatten().zip(self.sums.iter_mut().flatten()) {
            *total += f64::from(*sum);
            *sum = 0.0;
        }
        self.tiles = 0;
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

/// Sums and sums of squares of all channels, row by row: `f32` over some pixels, `f64` beyond.
pub(crate) struct ChannelMoments {
    /// `[2, channels]`, channels padded to whole vectors.
    sums: Vec<f32>,
    total: Vec<f64>,
    pixels: usize,
}

impl ChannelMoments {
    /// Pixels after which the `f32` sums are added to the others.
    const PIXELS: usize = 64;

    pub fn new(padded: usize) -> Self {
        Self { sums: vec![0.0; 2 * padded], total: vec![0.0; 2 * padded], pixels: 0 }
    }

    /// Where the sum and the sum of squares of a channel stand, with those of the channels behind it.
    #[inline(always)]
    pub fn sums(&mut self, channel: usize) -> [*mut f32; 2] {
        let padded = self.sums.len() / 2;
        let (sums, squares) = self.sums.split_at_mut(padded);
        [sums[channel..].as_mut_ptr(), squares[channel..].as_mut_ptr()]
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
        for (total, sum) in self.total.iter_mut().zip(&mut self.sums) {
            *total += f64::from(*sum);
            *sum = 0.0;
        }
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

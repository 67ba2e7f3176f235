//! Some input channels by one block of filters that reads ranges, over a run of pixels, in registers.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use crate::pack::Block;
use crate::prefetch::Prefetch;
use crate::simd::{Simd, Task, constant};

/// The most input channels of a tile.
pub(super) const ROWS: usize = 12;

/// Some input channels by one block of filters, over one run of pixels.
pub(super) struct Tile<'a> {
    /// Places of input pixels, relative to `x`, and rows of the panel.
    pub pairs: &'a [(u32, u32)],
    /// The first channel of each vector.
    pub x: [*const f32; 2],
    pub panel: *const f32,
    /// `[channels, stride]`.
    pub out: &'a mut [f32],
    /// What is read later, asked for meanwhile.
    pub near: &'a mut [Prefetch; 2],
}

impl Tile<'_> {
    /// Adds the run's products.
    ///
    /// # Safety
    /// There are from 1 to 12 channels. For every pair, as many are readable at its first place from each of `x`, and its row is one of the panel's.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(self, simd: S, block: &Block, channels: usize) {
        let same = self.x[0] == self.x[1];
        // SAFETY: the caller's.
        unsafe {
            match (block.half, block.vectors, same) {
                (false, 2, true) => self.rows::<S, 2, true, false>(simd, channels),
                (false, 2, false) => self.rows::<S, 2, false, false>(simd, channels),
                (false, _, _) => self.rows::<S, 1, true, false>(simd, channels),
                (true, 2, true) => self.rows::<S, 2, true, true>(simd, channels),
                (true, 2, false) => self.rows::<S, 2, false, true>(simd, channels),
                (true, _, _) => self.rows::<S, 1, true, true>(simd, channels),
            }
        }
    }

    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const V: usize, const SAME: bool, const HALF: bool>(self, simd: S, channels: usize) {
        constant!(R = channels, of 1 2 3 4 5 6 7 8 9 10 11 12 => simd.apart(TileRows::<R, V, SAME, HALF>(self)))
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

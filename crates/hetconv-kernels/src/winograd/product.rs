//! The products of the transformed domain.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use crate::prefetch::Ahead;
use crate::registers::Register;
use crate::simd::{Simd, Task, constant};
use crate::tile::add_positions;

/// One point of some pieces times a block's weights.
pub(super) struct Product<'a> {
    /// `[input, stride]`.
    pub weights: &'a [f32],
    /// Weights that are brought near meanwhile: a step is one piece's with one vector.
    pub ahead: &'a mut Ahead,
    /// From the first piece's point on.
    pub points: &'a [f32],
    pub points_len: usize,
    /// From the first piece's point on.
    pub products: &'a mut [f32],
    pub products_len: usize,
}

impl<'a> Product<'a> {
    /// Of so many pieces, by `V` vectors.
    #[inline(always)]
    pub fn compute<S: Simd, const V: usize>(self, simd: S, rows: usize) {
        constant!(R = rows, of 1 2 3 4 5 6 7 8 9 10 11 12 => simd.apart(Rows::<R, V>(self)))
    }
}

/// `R` pieces by `V` vectors.
struct Rows<'a, const R: usize, const V: usize>(Product<'a>);

impl<const R: usize, const V: usize> Task for Rows<'_, R, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Product { weights, ahead, points, points_len, products, products_len } = self.0;
        let inputs = weights.len() / (V * S::LANES);
        assert!(points.len() >= (R - 1) * points_len + inputs);
        assert!(products.len() >= (R - 1) * products_len + V * S::LANES);
        let mut sums = [[simd.splat(0.0); V]; R];
        // SAFETY: as was just checked.
        unsafe {
            // Every third row has a pointer, the others lie one and two strides on: as many as there are registers.
            let stride = points_len.in_a_register();
            let mut rows: [*const f32; 4] =
                std::array::from_fn(|i| points.as_ptr().wrapping_add(3 * i * points_len).in_a_register());
            let mut asked = *ahead;
            let mut weights = weights.as_ptr();
            for _ in 0..inputs / 2 {
                let at = |r: usize, input: usize| rows[r / 3].add(r % 3 * stride + input);
                add_positions::<S, R, V, 2>(simd, at, weights, &mut sums);
                rows = rows.map(|row| row.wrapping_add(2).in_a_register());
                for _ in 0..2 * V {
                    asked.advance(simd, R);
                }
                weights = weights.add(2 * V * S::LANES);
            }
            if inputs % 2 == 1 {
                add_positions::<S, R, V, 1>(simd, |r, _| rows[r / 3].add(r % 3 * stride), weights, &mut sums);
                for _ in 0..V {
                    asked.advance(simd, R);
                }
            }
            *ahead = asked;
            for (r, row) in sums.iter().enumerate() {
                for (v, &sum) in row.iter().enumerate() {
                    simd.store(products.as_mut_ptr().add(r * products_len + v * S::LANES), sum);
                }
            }
        }
    }
}

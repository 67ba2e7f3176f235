//! All taps of a vector of filters that reads vectors, over the pixels of a region, in registers.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use crate::simd::{Simd, Task, constant};
use crate::walk::{Spread, Turn};

/// The most taps whose sums are kept at once.
pub(super) const MOST_TAPS: usize = 8;

/// Some taps of a vector that reads vectors, over pixels of one region, in one or two turns.
pub(super) struct Turns<'a> {
    pub pairs: &'a [(u32, u32)],
    pub input: &'a [f32],
    /// From the vector's first filter on.
    pub grad_output: &'a [f32],
    pub turns: &'a [Turn],
    /// Whether all values come to their lanes as they are.
    pub plain: bool,
    /// For each turn the lanes of grad-output that it takes.
    pub lanes: &'a [[u32; 16]],
    /// Place in the packed buffer that is the first in `out`, for the weights of the first turn.
    pub first: isize,
    pub out: &'a mut [f32],
}

impl Turns<'_> {
    /// Adds the products.
    ///
    /// # Safety
    /// For every pair, a vector is readable at its second offset in `grad_output`, and at its first offset plus each tap's
    /// in `input`.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(self, simd: S) {
        // SAFETY: the caller's.
        unsafe { if self.lanes.len() == 1 { self.taps::<S, 1>(simd) } else { self.taps::<S, 2>(simd) } }
    }

    /// # Safety
    /// As [`Turns::compute`].
    #[inline(always)]
    unsafe fn taps<S: Simd, const J: usize>(self, simd: S) {
        constant!(T = self.turns.len(), of 1 2 3 4 5 6 7 8 => simd.apart(TurnTaps::<J, T>(self)))
    }
}

/// [`Turns`] of `T` taps in `J` turns.
struct TurnTaps<'a, const J: usize, const T: usize>(Turns<'a>);

impl<const J: usize, const T: usize> Task for TurnTaps<'_, J, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Turns { pairs, input, grad_output, turns, plain, lanes, first, out } = self.0;
        let place = |turn: &Turn| (turn.weights as isize - first) as usize;
        assert!(turns.len() == T && turns.iter().all(|turn| place(turn) + J * S::LANES <= out.len()));
        let lanes: [S::Lanes; J] = std::array::from_fn(|j| simd.lanes(&lanes[j]));
        let offsets: [isize; T] = std::array::from_fn(|t| turns[t].source);
        let mut sums = [[simd.splat(0.0); J]; T];
        // SAFETY: made by `Turns::taps` alone, whose caller vouches for the pairs; the places in `out` were checked.
        unsafe {
            let grads = |to: u32| -> [S::V; J] {
                let grad = simd.load(grad_output.as_ptr().add(to as usize));
                std::array::from_fn(|j| simd.permute(grad, lanes[j]))
            };
            // Two loops, so that the choice is not made for every value.
            if plain {
                for &(from, to) in pairs {
                    let from = input.as_ptr().add(from as usize);
                    add_taps(simd, |t| simd.load(from.offset(offsets[t])), grads(to), &mut sums);
                }
            } else {
                let spread: [(S::Lanes, S::V); T] = std::array::from_fn(|t| {
                    let spread = turns[t].lanes.as_deref().unwrap_or(&Spread::PLAIN);
                    (simd.lanes(&spread.lanes), simd.load(spread.live.as_ptr()))
                });
                for &(from, to) in pairs {
                    let from = input.as_ptr().add(from as usize);
                    let value = |t: usize| {
                        let (lanes, live) = spread[t];
                        simd.where_positive(live, simd.permute(simd.load(from.offset(offsets[t])), lanes))
                    };
                    add_taps(simd, value, grads(to), &mut sums);
                }
            }
            for (turn, sums) in turns.iter().zip(&sums) {
                for (j, &sum) in sums.iter().enumerate() {
                    let out = out.as_mut_ptr().add(place(turn) + j * S::LANES);
                    simd.store(out, simd.add(simd.load(out), sum));
                }
            }
        }
    }
}

/// Adds the products of one pixel, `value(tap)` by its turned grad-output.
#[inline(always)]
fn add_taps<S: Simd, const J: usize, const T: usize>(
    simd: S,
    value: impl Fn(usize) -> S::V,
    grads: [S::V; J],
    sums: &mut [[S::V; J]; T],
) {
    for t in 0..T {
        let value = value(t);
        for j in 0..J {
            sums[t][j] = simd.mul_add(value, grads[j], sums[t][j]);
        }
    }
}

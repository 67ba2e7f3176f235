//! One-dimensional transforms, of vectors: B, A and G as Lavin and Gray (2016) have them, and their transposes.

use super::{IN, OUT};
use crate::simd::Simd;

/// Bᵀ·d.
#[inline(always)]
pub(crate) fn source_points<S: Simd>(simd: S, d: [S::V; IN]) -> [S::V; IN] {
    let times_add = |factor: f32, a, b| simd.mul_add(simd.splat(factor), a, b);
    let (even, odd) = (times_add(-4.0, d[2], d[4]), times_add(-4.0, d[1], d[3]));
    let (near, far) = (simd.sub(d[4], d[2]), simd.sub(d[3], d[1]));
    [
        times_add(4.0, d[0], times_add(-5.0, d[2], d[4])),
        simd.add(even, odd),
        simd.sub(even, odd),
        times_add(2.0, far, near),
        times_add(-2.0, far, near),
        times_add(4.0, d[1], times_add(-5.0, d[3], d[5])),
    ]
}

/// Aᵀ·m.
#[inline(always)]
pub(crate) fn target_pixels<S: Simd>(simd: S, m: [S::V; IN]) -> [S::V; OUT] {
    let (near, near_odd) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
    let (far, far_odd) = (simd.add(m[3], m[4]), simd.sub(m[3], m[4]));
    [
        simd.add(simd.add(m[0], near), far),
        simd.mul_add(simd.splat(2.0), far_odd, near_odd),
        simd.mul_add(simd.splat(4.0), far, near),
        simd.add(simd.mul_add(simd.splat(8.0), far_odd, near_odd), m[5]),
    ]
}

/// A·y.
#[inline(always)]
pub(crate) fn target_points<S: Simd>(simd: S, y: [S::V; OUT]) -> [S::V; IN] {
    let times_add = |factor: f32, a, b| simd.mul_add(simd.splat(factor), a, b);
    let (near, near_odd) = (simd.add(y[0], y[2]), simd.add(y[1], y[3]));
    let far = times_add(4.0, y[2], y[0]);
    let far_odd = times_add(8.0, y[3], simd.add(y[1], y[1]));
    [y[0], simd.add(near, near_odd), simd.sub(near, near_odd), simd.add(far, far_odd), simd.sub(far, far_odd), y[3]]
}

/// G·g.
#[inline(always)]
pub(super) fn weight_points<S: Simd>(simd: S, g: [S::V; 3]) -> [S::V; IN] {
    let times = |factor: f32, value| simd.mul(simd.splat(factor), value);
    let outer = times(-1.0 / 6.0, simd.add(g[0], g[2]));
    let middle = times(1.0 / 6.0, g[1]);
    let far = simd.mul_add(simd.splat(1.0 / 6.0), g[2], times(1.0 / 24.0, g[0]));
    let half = times(1.0 / 12.0, g[1]);
    [
        times(0.25, g[0]),
        simd.sub(outer, middle),
        simd.add(outer, middle),
        simd.add(far, half),
        simd.sub(far, half),
        g[2],
    ]
}

/// Gᵀ·u.
#[inline(always)]
pub(crate) fn weight_taps<S: Simd>(simd: S, u: [S::V; IN]) -> [S::V; 3] {
    let times = |factor: f32, value| simd.mul(simd.splat(factor), value);
    let times_add = |factor: f32, a, b| simd.mul_add(simd.splat(factor), a, b);
    let (near, far) = (times(-1.0 / 6.0, simd.add(u[1], u[2])), simd.add(u[3], u[4]));
    [
        times_add(0.25, u[0], times_add(1.0 / 24.0, far, near)),
        times_add(1.0 / 12.0, simd.sub(u[3], u[4]), times(1.0 / 6.0, simd.sub(u[2], u[1]))),
        simd.add(times_add(1.0 / 6.0, far, near), u[5]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    /// The matrix of a transform: its column i is what becomes of the i-th unit vector.
    fn matrix<const I: usize, const O: usize>(transform: impl Fn([[f32; 4]; I]) -> [[f32; 4]; O]) -> [[f32; I]; O] {
        let column = |i: usize| transform(std::array::from_fn(|j| [if i == j { 1.0 } else { 0.0 }; 4]));
        std::array::from_fn(|o| std::array::from_fn(|i| column(i)[o][0]))
    }

    fn transposed<const I: usize, const O: usize>(matrix: [[f32; I]; O]) -> [[f32; O]; I] {
        std::array::from_fn(|i| std::array::from_fn(|o| matrix[o][i]))
    }

    #[test]
    fn transposes_are_transposes() {
        let a = matrix(|y| target_points(Portable, y));
        assert_eq!(a, transposed(matrix(|m| target_pixels(Portable, m))));
        let g = transposed(matrix(|u| weight_taps(Portable, u)));
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-7;
        assert!(g.iter().flatten().zip(matrix(|g| weight_points(Portable, g)).iter().flatten()).all(close));
    }
}

//! Channels of an image, each scaled by a number of its own, and the ReLU behind it: the end of squeeze-and-excitation.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::fresh::{fresh, place};
use crate::isa::Isa;

/// Pixels whose sums are taken in `f32`, before those of many are added in `f64`.
const PIXELS: usize = 64;

/// What passes a ReLU: what is positive, or not a number.
#[inline(always)]
fn passes(value: f32) -> bool {
    value > 0.0 || value.is_nan()
}

/// act(x·scale) of `x` `[images, pixels, channels]` and `scale` `[images, channels]`; act is ReLU or nothing. Threads share the
/// images out.
///
/// # Panics
/// If the lengths don't fit.
pub fn scale_channels(isa: Isa, channels: usize, x: &[f32], scale: &[f32], relu: bool) -> Vec<f32> {
    let len = image_len(channels, x, scale);
    let fill = |y: &mut [MaybeUninit<f32>]| {
        let images = y.par_chunks_mut(len).zip(x.par_chunks(len)).zip(scale.par_chunks(channels));
        images.for_each(|((y, x), scale)| scale_into(isa, x, scale, relu, y));
    };
    // SAFETY: every channel of every pixel is written.
    unsafe { fresh(x.len(), fill) }
}

/// x·scale of pixels `[pixels, channels]` and `scale` `[channels]`, on this thread and over what `y` holds.
///
/// # Panics
/// If the lengths don't fit.
pub fn scale_pixels(isa: Isa, x: &[f32], scale: &[f32], y: &mut [f32]) {
    assert!(!scale.is_empty() && x.len().is_multiple_of(scale.len()), "x is not [pixels, {}]", scale.len());
    assert_eq!(x.len(), y.len(), "x and its result differ in length");
    scale_into(isa, x, scale, false, place(y));
}

/// act(x·scale) of whole pixels; all of `y` is written.
fn scale_into(isa: Isa, x: &[f32], scale: &[f32], relu: bool, y: &mut [MaybeUninit<f32>]) {
    isa.plain(|| {
        for (y, x) in y.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
            for ((y, &x), &scale) in y.iter_mut().zip(x).zip(scale) {
                let value = x * scale;
                y.write(if !relu || passes(value) { value } else { 0.0 });
            }
        }
    });
}

/// The gradients of [`scale_channels`], from that by its result, which is written over with that by `x`: returns that by
/// `scale`, `[images, channels]`.
///
/// # Panics
/// If the lengths don't fit.
pub fn scale_channels_backward(
    isa: Isa,
    channels: usize,
    x: &[f32],
    scale: &[f32],
    relu: bool,
    grad: &mut [f32],
) -> Vec<f32> {
    let len = image_len(channels, x, scale);
    assert_eq!(grad.len(), x.len(), "x and its gradient differ in length");
    let mut grad_scale = vec![0.0f32; scale.len()];
    let by_image = grad_scale.par_chunks_mut(channels).zip(scale.par_chunks(channels));
    let images = grad.par_chunks_mut(len).zip(x.par_chunks(len)).zip(by_image);
    images.for_each(|((grad, x), (grad_scale, scale))| {
        let mut total = vec![0.0f64; channels];
        let mut sums = vec![0.0f32; channels];
        isa.plain(|| {
            for (grad, x) in grad.chunks_mut(PIXELS * channels).zip(x.chunks(PIXELS * channels)) {
                sums.fill(0.0);
                for (grad, x) in grad.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for (((grad, &x), &scale), sum) in grad.iter_mut().zip(x).zip(scale).zip(&mut sums) {
                        let passed = if !relu || passes(x * scale) { *grad } else { 0.0 };
                        *sum += passed * x;
                        *grad = passed * scale;
                    }
                }
                total.iter_mut().zip(&sums).for_each(|(total, &sum)| *total += f64::from(sum));
            }
        });
        grad_scale.iter_mut().zip(total).for_each(|(grad, total)| *grad = total as f32);
    });
    grad_scale
}

/// Values of an image, 1 where there are none.
fn image_len(channels: usize, x: &[f32], scale: &[f32]) -> usize {
    assert!(channels > 0 && scale.len().is_multiple_of(channels), "scale is not [images, {channels}]");
    let images = scale.len() / channels;
    assert!(
        x.len().is_multiple_of(images.max(1) * channels) && (images > 0 || x.is_empty()),
        "x is not [images, pixels, {channels}]"
    );
    (x.len() / images.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from -1 to 1.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn forward_and_backward_are_the_sums_written_out() {
        for isa in Isa::available() {
            for (images, pixels, channels) in [(1, 1, 1), (2, 64, 16), (3, 65, 17), (2, 130, 5), (1, 49, 40)] {
                for relu in [false, true] {
                    let [x, mut grad] = [1, 2].map(|seed| numbers(images * pixels * channels, seed));
                    let scale = numbers(images * channels, 3);
                    let of = |at: usize| at / (pixels * channels) * channels + at % channels;
                    let passes = |at: usize| !relu || x[at] * scale[of(at)] > 0.0;
                    let y = scale_channels(isa, channels, &x, &scale, relu);
                    if !relu {
                        let mut again = vec![f32::NAN; y.len()];
                        let images = again.chunks_mut(pixels * channels).zip(x.chunks(pixels * channels));
                        images.zip(scale.chunks(channels)).for_each(|((y, x), scale)| scale_pixels(isa, x, scale, y));
                        assert_eq!(again, y, "{isa:?}");
                    }
                    let mut by_scale = vec![0.0f64; scale.len()];
                    let mut by_x = vec![0.0f32; x.len()];
                    for at in 0..x.len() {
                        assert_eq!(y[at], if passes(at) { x[at] * scale[of(at)] } else { 0.0 }, "{isa:?}");
                        if passes(at) {
                            by_x[at] = grad[at] * scale[of(at)];
                            by_scale[of(at)] += f64::from(grad[at]) * f64::from(x[at]);
                        }
                    }
                    let got = scale_channels_backward(isa, channels, &x, &scale, relu, &mut grad);
                    assert_eq!(grad, by_x, "{isa:?}");
                    let close = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() < 1e-5 * (1.0 + want.abs());
                    assert!(got.iter().zip(&by_scale).all(close), "{isa:?} {got:?} {by_scale:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so_and_nothing_is_nothing() {
        let isa = Isa::available()[0];
        let (x, scale) = ([f32::NAN, 1.0, -1.0, f32::INFINITY], [1.0, 0.0]);
        let y = scale_channels(isa, 2, &x, &scale, true);
        assert!(y[0].is_nan() && y[3].is_nan() && y[1..3] == [0.0, 0.0], "{y:?}");
        let mut grad = [1.0; 4];
        let by_scale = scale_channels_backward(isa, 2, &x, &scale, true, &mut grad);
        assert!(by_scale.iter().all(|grad| !grad.is_finite()) && grad == [1.0, 0.0, 0.0, 0.0], "{by_scale:?} {grad:?}");
        assert!(scale_channels(isa, 2, &[], &[], false).is_empty());
        assert!(scale_channels_backward(isa, 2, &[], &[], false, &mut []).is_empty());
    }
}

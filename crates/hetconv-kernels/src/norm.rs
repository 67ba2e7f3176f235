//! Batch-norm, fused with the residual add and the ReLU that follow it: one pass over the data each way, after one that
//! gathers the sums. Rows are pixels of all images, columns are channels in stored order.
//!
//! What was just written is read from its end, which the caches still hold, to its beginning.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::fresh::fresh;
use crate::isa::Isa;
use crate::moments::{ColumnSums, add_about};
use crate::parallel::reduction_parts;
use crate::simd::{Simd, Task};

/// Mean and variance of every channel over a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchStats {
    /// Mean.
    pub mean: Vec<f32>,
    /// Biased variance (divided by the number of rows).
    pub variance: Vec<f32>,
    /// 1/√(variance + ε).
    pub inv_std: Vec<f32>,
}

/// Elements of a part of elementwise work.
const STRETCH: usize = 1 << 15;

/// Rows after which `f32` sums are added to the `f64` ones.
const SUM_ROWS: usize = 64;

/// The sums of each channel and of their squares, `x` being `[rows, channels]`.
///
/// # Panics
/// If the length doesn't fit.
pub fn column_sums(isa: Isa, channels: usize, x: &[f32]) -> ColumnSums {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
    let mut sums = two_sums(channels, x.len() / channels, |start, end, sums, total| {
        let x = &x[start * channels..end * channels];
        isa.run(Moments { channels, x, sums });
        let (total, total_squares) = total.split_at_mut(channels);
        for (channel, &pivot) in x[..channels].iter().enumerate() {
            let total = [&mut total[channel], &mut total_squares[channel]];
            add_about(total, end - start, pivot, [sums[channel], sums[channels + channel]]);
        }
    });
    let squares = sums.split_off(channels);
    ColumnSums { sums, squares }
}

impl BatchStats {
    /// From the sums over `rows` pixels; an empty batch gives zero means and variances.
    pub fn new(sums: &ColumnSums, rows: usize, epsilon: f32) -> Self {
        let count = rows.max(1) as f64;
        let mean: Vec<f64> = sums.sums.iter().map(|s| s / count).collect();
        // Rounding may leave less than nothing; what is not a number stays so.
        let positive = |variance: f64| if variance < 0.0 { 0.0 } else { variance };
        let variance: Vec<f64> = sums.squares.iter().zip(&mean).map(|(s, m)| positive(s / count - m * m)).collect();
        Self {
            inv_std: variance.iter().map(|v| (1.0 / (v + f64::from(epsilon)).sqrt()) as f32).collect(),
            mean: mean.into_iter().map(|m| m as f32).collect(),
            variance: variance.into_iter().map(|v| v as f32).collect(),
        }
    }

    /// Scale and shift that amount to γ·(x − mean)/√(variance + ε) + β.
    pub fn scale_and_shift(&self, gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let scale: Vec<f32> = gamma.iter().zip(&self.inv_std).map(|(g, s)| g * s).collect();
        let shift = beta.iter().zip(&self.mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        (scale, shift)
    }
}

/// Two sums a channel over all rows: `accumulate(start, end, sums, total)` sums up to [`SUM_ROWS`] rows in `f32`, `[2,
/// channels]` that are 0 before, and adds that to the total.
fn two_sums(
    channels: usize,
    rows: usize,
    accumulate: impl Fn(usize, usize, &mut [f32], &mut [f64]) + Sync,
) -> Vec<f64> {
    let parts = reduction_parts(rows, 2 * channels);
    let rows_per_part = rows.div_ceil(parts).max(1);
    let of_part = |part: usize| {
        let end = ((part + 1) * rows_per_part).min(rows);
        let mut total = vec![0.0f64; 2 * channels];
        let mut sums = vec![0.0f32; 2 * channels];
        for start in (part * rows_per_part..end).step_by(SUM_ROWS).rev() {
            let end = (start + SUM_ROWS).min(end);
            sums.fill(0.0);
            accumulate(start, end, &mut sums, &mut total);
        }
        total
    };
    let partial: Vec<Vec<f64>> = (0..parts).into_par_iter().rev().map(of_part).collect();
    (0..2 * channels).map(|column| partial.iter().map(|part| part[column]).sum()).collect()
}

/// Σ(x − pivot) and Σ(x − pivot)² of every channel; the pivot is the first row.
struct Moments<'a> {
    channels: usize,
    x: &'a [f32],
    sums: &'a mut [f32],
}

impl Task for Moments<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (sum, squares) = self.sums.split_at_mut(self.channels);
        let pivot = &self.x[..self.channels];
        for row in self.x.chunks_exact(self.channels) {
            let mut c = 0;
            // SAFETY: `row`, `pivot`, `sum` and `squares` each hold `channels` values, and `c + LANES <= channels`.
            unsafe {
                while c + S::LANES <= self.channels {
                    let x = simd.sub(simd.load(row.as_ptr().add(c)), simd.load(pivot.as_ptr().add(c)));
                    let (s, q) = (sum.as_mut_ptr().add(c), squares.as_mut_ptr().add(c));
                    simd.store(s, simd.add(simd.load(s), x));
                    simd.store(q, simd.mul_add(x, x, simd.load(q)));
                    c += S::LANES;
                }
            }
            for c in c..self.channels {
                let x = row[c] - pivot[c];
                sum[c] += x;
                squares[c] += x * x;
            }
        }
    }
}

/// act(scale·x + shift + residual), `[rows, channels]`: batch-norm with known statistics. `residual` counts as zeros and
/// `relu` off as the identity.
///
/// # Panics
/// If the lengths don't fit.
pub fn scale_shift(
    isa: Isa,
    channels: usize,
    x: &[f32],
    residual: Option<&[f32]>,
    scale: &[f32],
    shift: &[f32],
    relu: bool,
) -> Vec<f32> {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
    assert!(residual.is_none_or(|r| r.len() == x.len()), "x and residual differ in length");
    assert!(scale.len() == channels && shift.len() == channels, "scale and shift need {channels} values");
    let stretch = (STRETCH / channels).max(1) * channels;
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(stretch).enumerate().rev().for_each(|(part, y)| {
            let range = part * stretch..part * stretch + y.len();
            let (x, residual) = (&x[range.clone()], residual.map(|r| &r[range]));
            isa.run(ScaleShift { channels, x, residual, scale, shift, relu, y });
        });
    };
    // SAFETY: every row of every stretch is written.
    unsafe { fresh(x.len(), fill) }
}

struct ScaleShift<'a> {
    channels: usize,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    scale: &'a [f32],
    shift: &'a [f32],
    relu: bool,
    y: &'a mut [MaybeUninit<f32>],
}

impl Task for ScaleShift<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { channels, x, residual, scale, shift, relu, y } = self;
        for (row, (x, y)) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)).enumerate() {
            let residual = residual.map(|r| &r[row * channels..][..channels]);
            let mut c = 0;
            while c < channels {
                let lanes = S::LANES.min(channels - c);
                let whole = lanes == S::LANES;
                // SAFETY: every slice holds `channels` values, of which `lanes` from `c` on are touched.
                unsafe {
                    let read = |s: &[f32]| {
                        let p = s.as_ptr().add(c);
                        if whole { simd.load(p) } else { simd.load_first(p, lanes) }
                    };
                    let mut value = simd.mul_add(read(x), read(scale), read(shift));
                    if let Some(residual) = residual {
                        value = simd.add(value, read(residual));
                    }
                    if relu {
                        value = simd.relu(value);
                    }
                    let out = y.as_mut_ptr().cast::<f32>().add(c);
                    if whole { simd.store(out, value) } else { simd.store_first(out, value, lanes) }
                }
                c += lanes;
            }
        }
    }
}

/// Where a ReLU behind the batch-norm lets gradients pass.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a> {
    /// Everywhere: there is no ReLU.
    Open,
    /// Where its result, `[rows, channels]`, is positive or not a number.
    Output(&'a [f32]),
    /// Where scale·x + shift is positive or not a number: the same, without a residual.
    Input {
        /// As given to [`scale_shift`].
        scale: &'a [f32],
        /// As given to [`scale_shift`].
        shift: &'a [f32],
    },
}

/// The gradients of a batch-norm with the batch's own statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct NormGradients {
    /// By its input.
    pub x: Vec<f32>,
    /// By the residual, if it was wanted.
    pub residual: Option<Vec<f32>>,
    /// By γ.
    pub gamma: Vec<f32>,
    /// By β.
    pub beta: Vec<f32>,
}

/// The gradients of act(γ·(x − mean)/√(variance + ε) + β + residual) with the statistics of `x` itself.
///
/// # Panics
/// If the lengths don't fit.
#[allow(clippy::too_many_arguments)]
pub fn batch_norm_backward(
    isa: Isa,
    channels: usize,
    x: &[f32],
    gate: Gate<'_>,
    gamma: &[f32],
    stats: &BatchStats,
    grad_y: &[f32],
    residual: bool,
) -> NormGradients {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
    assert!(grad_y.len() == x.len(), "x and its gradient differ in length");
    match gate {
        Gate::Open => {}
        Gate::Output(y) => assert!(y.len() == x.len(), "x and y differ in length"),
        Gate::Input { scale, shift } => assert!([scale.len(), shift.len()] == [channels; 2], "channels"),
    }
    assert!([gamma.len(), stats.mean.len()] == [channels; 2], "channels");
    let rows = x.len() / channels;
    let data = Data { channels, x, gate, grad: grad_y };
    // Σ dz and Σ dz·(x − mean), where dz is the gradient that passes the ReLU.
    let mean = &stats.mean[..];
    let sums = two_sums(channels, rows, |start, end, sums, total| {
        let data = data.range(start * channels..end * channels);
        match gate {
            Gate::Open => isa.run(GradSums::<OPEN> { data, mean, sums }),
            Gate::Output(_) => isa.run(GradSums::<OUTPUT> { data, mean, sums }),
            Gate::Input { .. } => isa.run(GradSums::<INPUT> { data, mean, sums }),
        }
        total.iter_mut().zip(&*sums).for_each(|(total, &sum)| *total += f64::from(sum));
    });
    let count = rows.max(1) as f64;
    // dx = γ·inv_std·(dz − Σdz/n − x̂·Σ(dz·x̂)/n), written as a·dz + b·x + c.
    let (mut a, mut b, mut c) = (vec![0.0f32; channels], vec![0.0f32; channels], vec![0.0f32; channels]);
    let (mut grad_gamma, mut grad_beta) = (vec![0.0f32; channels], vec![0.0f32; channels]);
    for channel in 0..channels {
        let (sum, sum_x) = (sums[channel], sums[channels + channel]);
        let (mean, inv_std) = (f64::from(stats.mean[channel]), f64::from(stats.inv_std[channel]));
        let normalised = sum_x * inv_std;
        grad_beta[channel] = sum as f32;
        grad_gamma[channel] = normalised as f32;
        let scale = f64::from(gamma[channel]) * inv_std;
        a[channel] = scale as f32;
        b[channel] = (-scale * inv_std * normalised / count) as f32;
        c[channel] = (-scale * sum / count + scale * inv_std * mean * normalised / count) as f32;
    }
    let stretch = (STRETCH / channels).max(1) * channels;
    let factors = [&a[..], &b[..], &c[..]];
    let part = |part: usize, grad_x: &mut [MaybeUninit<f32>], grad_residual: Option<&mut [MaybeUninit<f32>]>| {
        let data = data.range(part * stretch..part * stretch + grad_x.len());
        match gate {
            Gate::Open => isa.run(GradX::<OPEN> { data, factors, grad_x, grad_residual }),
            Gate::Output(_) => isa.run(GradX::<OUTPUT> { data, factors, grad_x, grad_residual }),
            Gate::Input { .. } => isa.run(GradX::<INPUT> { data, factors, grad_x, grad_residual }),
        }
    };
    let mut of_residual = None;
    let fill = |grad_x: &mut [MaybeUninit<f32>]| {
        if !residual {
            grad_x.par_chunks_mut(stretch).enumerate().for_each(|(i, grad_x)| part(i, grad_x, None));
            return;
        }
        let fill = |grad_residual: &mut [MaybeUninit<f32>]| {
            let parts = grad_x.par_chunks_mut(stretch).zip(grad_residual.par_chunks_mut(stretch)).enumerate();
            parts.for_each(|(i, (grad_x, grad_residual))| part(i, grad_x, Some(grad_residual)));
        };
        // SAFETY: every row of every stretch is written, as below.
        of_residual = Some(unsafe { fresh(x.len(), fill) });
    };
    // SAFETY: every row of every stretch is written.
    let grad_x = unsafe { fresh(x.len(), fill) };
    NormGradients { x: grad_x, residual: of_residual, gamma: grad_gamma, beta: grad_beta }
}

// The three gates, as the kernels are compiled for each.
const OPEN: u8 = 0;
const OUTPUT: u8 = 1;
const INPUT: u8 = 2;

/// Rows of a batch-norm's input, gate and gradient.
#[derive(Clone, Copy)]
struct Data<'a> {
    channels: usize,
    x: &'a [f32],
    gate: Gate<'a>,
    grad: &'a [f32],
}

impl Data<'_> {
    fn range(&self, range: Range<usize>) -> Self {
        let gate = match self.gate {
            Gate::Output(y) => Gate::Output(&y[range.clone()]),
            gate => gate,
        };
        Self { x: &self.x[range.clone()], gate, grad: &self.grad[range], ..*self }
    }

    /// `lanes` values of x, and of the gradient where the gate lets it pass.
    ///
    /// # Safety
    /// `lanes` values of one row stand at `at`, the first of them of `channel`.
    #[inline(always)]
    unsafe fn read<S: Simd, const GATE: u8>(&self, simd: S, at: usize, channel: usize, lanes: usize) -> (S::V, S::V) {
        let read = |values: &[f32], at: usize| {
            debug_assert!(at + lanes <= values.len());
            // SAFETY: the caller vouches for x, and the other slices have its length or that of a row.
            unsafe {
                let values = values.as_ptr().add(at);
                if lanes == S::LANES { simd.load(values) } else { simd.load_first(values, lanes) }
            }
        };
        let (x, grad) = (read(self.x, at), read(self.grad, at));
        let passed = match (GATE, self.gate) {
            (OUTPUT, Gate::Output(y)) => simd.where_positive(read(y, at), grad),
            (INPUT, Gate::Input { scale, shift }) => {
                simd.where_positive(simd.mul_add(x, read(scale, channel), read(shift, channel)), grad)
            }
            _ => grad,
        };
        (x, passed)
    }
}

struct GradSums<'a, const GATE: u8> {
    data: Data<'a>,
    mean: &'a [f32],
    sums: &'a mut [f32],
}

impl<const GATE: u8> Task for GradSums<'_, GATE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { data, mean, sums } = self;
        let channels = data.channels;
        let (sum, sum_x) = sums.split_at_mut(channels);
        for row in (0..data.x.len()).step_by(channels) {
            for channel in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - channel);
                // SAFETY: rows hold `channels` values, as do both sums and the means.
                unsafe {
                    let (x, dz) = data.read::<S, GATE>(simd, row + channel, channel, lanes);
                    let x = simd.sub(x, simd.load_lanes(mean.as_ptr().add(channel), lanes));
                    let (s, t) = (sum.as_mut_ptr().add(channel), sum_x.as_mut_ptr().add(channel));
                    if lanes == S::LANES {
                        simd.store(s, simd.add(simd.load(s), dz));
                        simd.store(t, simd.mul_add(dz, x, simd.load(t)));
                    } else {
                        simd.store_first(s, simd.add(simd.load_first(s, lanes), dz), lanes);
                        simd.store_first(t, simd.mul_add(dz, x, simd.load_first(t, lanes)), lanes);
                    }
                }
            }
        }
    }
}

struct GradX<'a, const GATE: u8> {
    data: Data<'a>,
    factors: [&'a [f32]; 3],
    grad_x: &'a mut [MaybeUninit<f32>],
    grad_residual: Option<&'a mut [MaybeUninit<f32>]>,
}

impl<const GATE: u8> Task for GradX<'_, GATE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let data = self.data;
        let channels = data.channels;
        let [a, b, c] = self.factors;
        for row in (0..data.x.len()).step_by(channels) {
            for channel in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - channel);
                let whole = lanes == S::LANES;
                let at = row + channel;
                // SAFETY: rows hold `channels` values, as do the factors; the gradients have x's length.
                unsafe {
                    let factor = |values: &[f32]| {
                        let values = values.as_ptr().add(channel);
                        if whole { simd.load(values) } else { simd.load_first(values, lanes) }
                    };
                    let (x, dz) = data.read::<S, GATE>(simd, at, channel, lanes);
                    let dx = simd.mul_add(x, factor(b), factor(c));
                    let dx = simd.mul_add(dz, factor(a), dx);
                    let write = |values: &mut [MaybeUninit<f32>], value: S::V| {
                        let values = values.as_mut_ptr().cast::<f32>().add(at);
                        if whole { simd.store(values, value) } else { simd.store_first(values, value, lanes) }
                    };
                    write(self.grad_x, dx);
                    if let Some(grad_residual) = &mut self.grad_residual {
                        write(grad_residual, dz);
                    }
                }
            }
        }
    }
}

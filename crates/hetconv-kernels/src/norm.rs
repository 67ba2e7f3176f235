//! Batch-norm, fused with the residual add and the ReLU that follow it: one pass over the data each way, after one that
//! gathers the sums. Rows are pixels of all images, columns are channels in stored order.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::moments::ColumnSums;
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

/// Computes y = act(γ·(x − mean)/√(variance + ε) + β + residual) with the batch's own statistics, `[rows, channels]`.
///
/// `residual` counts as zeros and `relu` off as the identity. An empty batch gives zero means and variances.
///
/// # Panics
/// If the lengths don't fit.
#[allow(clippy::too_many_arguments)]
pub fn batch_norm_forward(
    isa: Isa,
    channels: usize,
    x: &[f32],
    residual: Option<&[f32]>,
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    relu: bool,
    y: &mut [f32],
) -> BatchStats {
    let sums = column_sums_of(isa, channels, x);
    let stats = BatchStats::new(&sums, x.len() / channels, epsilon);
    let scale: Vec<f32> = gamma.iter().zip(&stats.inv_std).map(|(g, s)| g * s).collect();
    let shift: Vec<f32> = beta.iter().zip(&stats.mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
    scale_shift(isa, channels, x, residual, &scale, &shift, relu, y);
    stats
}

/// The sums of each channel and of their squares, `x` being `[rows, channels]`.
///
/// # Panics
/// If the length doesn't fit.
pub fn column_sums_of(isa: Isa, channels: usize, x: &[f32]) -> ColumnSums {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
    let mut sums = column_sums(channels, x.len() / channels, |start, end, sums| {
        let x = &x[start * channels..end * channels];
        isa.run(Moments { channels, x, sums });
    });
    let squares = sums.split_off(channels);
    ColumnSums { sums, squares }
}

impl BatchStats {
    /// From the sums over `rows` pixels.
    pub fn new(sums: &ColumnSums, rows: usize, epsilon: f32) -> Self {
        let count = rows.max(1) as f64;
        let mean: Vec<f64> = sums.sums.iter().map(|s| s / count).collect();
        let variance: Vec<f64> = sums.squares.iter().zip(&mean).map(|(s, m)| (s / count - m * m).max(0.0)).collect();
        Self {
            inv_std: variance.iter().map(|v| (1.0 / (v + f64::from(epsilon)).sqrt()) as f32).collect(),
            mean: mean.into_iter().map(|m| m as f32).collect(),
            variance: variance.into_iter().map(|v| v as f32).collect(),
        }
    }
}

/// Two sums a channel over all rows: `f32` over up to [`SUM_ROWS`] rows by `accumulate(start, end, [2, channels])`, `f64`
/// beyond.
fn column_sums(channels: usize, rows: usize, accumulate: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f64> {
    let parts = reduction_parts(rows, 2 * channels);
    let rows_per_part = rows.div_ceil(parts).max(1);
    let of_part = |part: usize| {
        let end = ((part + 1) * rows_per_part).min(rows);
        let mut total = vec![0.0f64; 2 * channels];
        let mut sums = vec![0.0f32; 2 * channels];
        for start in (part * rows_per_part..end).step_by(SUM_ROWS) {
            sums.fill(0.0);
            accumulate(start, (start + SUM_ROWS).min(end), &mut sums);
            for (total, &sum) in total.iter_mut().zip(&sums) {
                *total += f64::from(sum);
            }
        }
        total
    };
    let partial: Vec<Vec<f64>> = (0..parts).into_par_iter().map(of_part).collect();
    (0..2 * channels).map(|column| partial.iter().map(|part| part[column]).sum()).collect()
}

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
        for row in self.x.chunks_exact(self.channels) {
            let mut c = 0;
            // SAFETY: `row`, `sum` and `squares` each hold `channels` values, and `c + LANES <= channels`.
            unsafe {
                while c + S::LANES <= self.channels {
                    let x = simd.load(row.as_ptr().add(c));
                    let (s, q) = (sum.as_mut_ptr().add(c), squares.as_mut_ptr().add(c));
                    simd.store(s, simd.add(simd.load(s), x));
                    simd.store(q, simd.mul_add(x, x, simd.load(q)));
                    c += S::LANES;
                }
            }
            for c in c..self.channels {
                sum[c] += row[c];
                squares[c] += row[c] * row[c];
            }
        }
    }
}

/// Computes y = act(scale·x + shift + residual), `[rows, channels]`: batch-norm with known statistics.
///
/// # Panics
/// If the lengths don't fit.
#[allow(clippy::too_many_arguments)]
pub fn scale_shift(
    isa: Isa,
    channels: usize,
    x: &[f32],
    residual: Option<&[f32]>,
    scale: &[f32],
    shift: &[f32],
    relu: bool,
    y: &mut [f32],
) {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
    assert!(x.len() == y.len() && residual.is_none_or(|r| r.len() == x.len()), "x, residual and y differ in length");
    assert!(scale.len() == channels && shift.len() == channels, "scale and shift need {channels} values");
    let stretch = (STRETCH / channels).max(1) * channels;
    y.par_chunks_mut(stretch).enumerate().for_each(|(part, y)| {
        let range = part * stretch..part * stretch + y.len();
        let (x, residual) = (&x[range.clone()], residual.map(|r| &r[range]));
        isa.run(ScaleShift { channels, x, residual, scale, shift, relu, y });
    });
}

struct ScaleShift<'a> {
    channels: usize,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    scale: &'a [f32],
    shift: &'a [f32],
    relu: bool,
    y: &'a mut [f32],
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
                    let out = y.as_mut_ptr().add(c);
                    if whole { simd.store(out, value) } else { simd.store_first(out, value, lanes) }
                }
                c += lanes;
            }
        }
    }
}

/// The gradients of [`batch_norm_forward`]: by x, by the residual, by γ and by β (the last two overwritten).
///
/// # Panics
/// If the lengths don't fit.
#[allow(clippy::too_many_arguments)]
pub fn batch_norm_backward(
    isa: Isa,
    channels: usize,
    x: &[f32],
    y: &[f32],
    gamma: &[f32],
    stats: &BatchStats,
    relu: bool,
    grad_y: &[f32],
    grad_x: &mut [f32],
    grad_residual: Option<&mut [f32]>,
    grad_gamma: &mut [f32],
    grad_beta: &mut [f32],
) {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
    let len = x.len();
    assert!(y.len() == len && grad_y.len() == len && grad_x.len() == len, "x, y and gradients differ in length");
    assert!(grad_residual.as_ref().is_none_or(|r| r.len() == len), "grad-residual length");
    assert!([gamma.len(), stats.mean.len(), grad_gamma.len(), grad_beta.len()] == [channels; 4], "channels");
    let rows = len / channels;
    // Σ dz and Σ dz·x, where dz is the gradient that passes the ReLU.
    let sums = column_sums(channels, rows, |start, end, sums| {
        let range = start * channels..end * channels;
        let (x, y, grad) = (&x[range.clone()], &y[range.clone()], &grad_y[range]);
        isa.run(GradSums { channels, x, y, grad, relu, sums });
    });
    let count = rows.max(1) as f64;
    // dx = γ·inv_std·(dz − Σdz/n − x̂·Σ(dz·x̂)/n), written as a·dz + b·x + c.
    let (mut a, mut b, mut c) = (vec![0.0f32; channels], vec![0.0f32; channels], vec![0.0f32; channels]);
    for channel in 0..channels {
        let (sum, sum_x) = (sums[channel], sums[channels + channel]);
        let (mean, inv_std) = (f64::from(stats.mean[channel]), f64::from(stats.inv_std[channel]));
        let normalised = (sum_x - mean * sum) * inv_std;
        grad_beta[channel] = sum as f32;
        grad_gamma[channel] = normalised as f32;
        let scale = f64::from(gamma[channel]) * inv_std;
        a[channel] = scale as f32;
        b[channel] = (-scale * inv_std * normalised / count) as f32;
        c[channel] = (-scale * sum / count + scale * inv_std * mean * normalised / count) as f32;
    }
    let stretch = (STRETCH / channels).max(1) * channels;
    let factors = [&a[..], &b[..], &c[..]];
    let part = |part: usize, grad_x: &mut [f32], grad_residual: Option<&mut [f32]>| {
        let range = part * stretch..part * stretch + grad_x.len();
        let (x, y, grad) = (&x[range.clone()], &y[range.clone()], &grad_y[range]);
        isa.run(GradX { channels, x, y, grad, relu, factors, grad_x, grad_residual });
    };
    match grad_residual {
        None => grad_x.par_chunks_mut(stretch).enumerate().for_each(|(i, grad_x)| part(i, grad_x, None)),
        Some(grad_residual) => {
            let parts = grad_x.par_chunks_mut(stretch).zip(grad_residual.par_chunks_mut(stretch)).enumerate();
            parts.for_each(|(i, (grad_x, grad_residual))| part(i, grad_x, Some(grad_residual)));
        }
    }
}

struct GradSums<'a> {
    channels: usize,
    x: &'a [f32],
    y: &'a [f32],
    grad: &'a [f32],
    relu: bool,
    sums: &'a mut [f32],
}

impl Task for GradSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { channels, x, y, grad, relu, sums } = self;
        let (sum, sum_x) = sums.split_at_mut(channels);
        let rows = x.chunks_exact(channels).zip(y.chunks_exact(channels)).zip(grad.chunks_exact(channels));
        for ((x, y), grad) in rows {
            let mut c = 0;
            // SAFETY: every slice holds `channels` values, and `c + LANES <= channels`.
            unsafe {
                while c + S::LANES <= channels {
                    let mut dz = simd.load(grad.as_ptr().add(c));
                    if relu {
                        dz = simd.where_positive(simd.load(y.as_ptr().add(c)), dz);
                    }
                    let (s, t) = (sum.as_mut_ptr().add(c), sum_x.as_mut_ptr().add(c));
                    simd.store(s, simd.add(simd.load(s), dz));
                    simd.store(t, simd.mul_add(dz, simd.load(x.as_ptr().add(c)), simd.load(t)));
                    c += S::LANES;
                }
            }
            for c in c..channels {
                let dz = if relu && (y[c] <= 0.0 || y[c].is_nan()) { 0.0 } else { grad[c] };
                sum[c] += dz;
                sum_x[c] += dz * x[c];
            }
        }
    }
}

struct GradX<'a> {
    channels: usize,
    x: &'a [f32],
    y: &'a [f32],
    grad: &'a [f32],
    relu: bool,
    factors: [&'a [f32]; 3],
    grad_x: &'a mut [f32],
    grad_residual: Option<&'a mut [f32]>,
}

impl Task for GradX<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let channels = self.channels;
        let [a, b, c] = self.factors;
        for row in (0..self.x.len()).step_by(channels) {
            let mut channel = 0;
            while channel < channels {
                let lanes = S::LANES.min(channels - channel);
                let whole = lanes == S::LANES;
                let at = row + channel;
                // SAFETY: the five data slices have one length, a multiple of `channels`; the factors hold `channels`.
                unsafe {
                    let read = |s: &[f32], at: usize| {
                        let p = s.as_ptr().add(at);
                        if whole { simd.load(p) } else { simd.load_first(p, lanes) }
                    };
                    let mut dz = read(self.grad, at);
                    if self.relu {
                        dz = simd.where_positive(read(self.y, at), dz);
                    }
                    let dx = simd.mul_add(read(self.x, at), read(b, channel), read(c, channel));
                    let dx = simd.mul_add(dz, read(a, channel), dx);
                    let write = |p: *mut f32, value: S::V| {
                        if whole { simd.store(p, value) } else { simd.store_first(p, value, lanes) }
                    };
                    write(self.grad_x.as_mut_ptr().add(at), dx);
                    if let Some(grad_residual) = &mut self.grad_residual {
                        write(grad_residual.as_mut_ptr().add(at), dz);
                    }
                }
                channel += lanes;
            }
        }
    }
}

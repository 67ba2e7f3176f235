//! Batch-norm, fused with the residual add and the ReLU that follow it: one pass over the data each way, after one that
//! gathers the sums. Rows are pixels of all images, columns are channels in stored order.
//!
//! What was just written is read from its end, which the caches still hold, to its beginning.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::fresh::{fresh, place};
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
    let sums = two_sums(channels, x.len() / channels, |start, end, sums, total| {
        let x = &x[start * channels..end * channels];
        isa.run(Moments { channels, x, sums });
        let (total, total_squares) = total.split_at_mut(channels);
        for (channel, &pivot) in x[..channels].iter().enumerate() {
            let total = [&mut total[channel], &mut total_squares[channel]];
            add_about(total, end - start, pivot, [sums[channel], sums[channels + channel]]);
        }
    });
    ColumnSums::new(sums)
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

/// Two sums a channel over all rows, `[2, channels]`; see [`add_in_runs`].
fn two_sums(
    channels: usize,
    rows: usize,
    accumulate: impl Fn(usize, usize, &mut [f32], &mut [f64]) + Sync,
) -> Vec<f64> {
    let parts = reduction_parts(rows, 2 * channels);
    let rows_per_part = rows.div_ceil(parts).max(1);
    let of_part = |part: usize| {
        let mut total = vec![0.0f64; 2 * channels];
        let [start, end] = [part, part + 1].map(|part| (part * rows_per_part).min(rows));
        add_in_runs(start..end, &mut total, &accumulate);
        total
    };
    let partial: Vec<Vec<f64>> = (0..parts).into_par_iter().map(of_part).collect();
    (0..2 * channels).map(|column| partial.iter().map(|part| part[column]).sum()).collect()
}

/// Adds sums over some rows to a total: `accumulate(start, end, sums, total)` sums up to [`SUM_ROWS`] of them in `f32`, as many
/// sums as the total has and 0 before, and adds that to the total.
fn add_in_runs(rows: Range<usize>, total: &mut [f64], accumulate: impl Fn(usize, usize, &mut [f32], &mut [f64])) {
    let mut sums = vec![0.0f32; total.len()];
    for start in rows.clone().step_by(SUM_ROWS).rev() {
        sums.fill(0.0);
        accumulate(start, (start + SUM_ROWS).min(rows.end), &mut sums, total);
    }
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

/// act(scale·x + shift) of each channel: what a batch-norm and a ReLU behind it make of an activation, once its statistics are
/// known.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// `[channels]`, in stored order.
    pub scale: &'a [f32],
    /// `[channels]`, in stored order.
    pub shift: &'a [f32],
    /// Whether act is ReLU, or nothing.
    pub relu: bool,
}

impl Affine<'_> {
    pub(crate) fn check(&self, channels: usize) {
        assert!([self.scale.len(), self.shift.len()] == [channels; 2], "scale and shift need {channels} values");
    }

    /// Writes what becomes of some pixels; all of `y` is written. Inlined into a task.
    #[inline(always)]
    pub(crate) fn write<S: Simd>(&self, simd: S, x: &[f32], y: &mut [MaybeUninit<f32>]) {
        simd.apart(ScaleShift { x, residual: None, affine: *self, y });
    }
}

/// act(scale·x + shift + residual), `[rows, channels]`: batch-norm with known statistics. `residual` counts as zeros.
///
/// # Panics
/// If the lengths don't fit.
pub fn scale_shift(isa: Isa, x: &[f32], residual: Option<&[f32]>, affine: Affine<'_>) -> Vec<f32> {
    // SAFETY: all of it is written.
    unsafe { fresh(x.len(), |y| scale_shift_into(isa, x, residual, affine, y)) }
}

/// As [`scale_shift`] without a residual, on this thread and over what `y` holds.
///
/// # Panics
/// If the lengths don't fit.
pub fn scale_shift_rows(isa: Isa, x: &[f32], affine: Affine<'_>, y: &mut [f32]) {
    check_rows(x, &affine, y.len());
    isa.run(ScaleShift { x, residual: None, affine, y: place(y) });
}

/// Whether lengths fit.
fn check_rows(x: &[f32], affine: &Affine<'_>, of_target: usize) {
    let channels = affine.scale.len();
    affine.check(channels);
    assert!(channels > 0 && x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
    assert!(of_target == x.len(), "x and y differ in length");
}

/// As [`scale_shift`]; all of `y` is written.
pub(crate) fn scale_shift_into(
    isa: Isa,
    x: &[f32],
    residual: Option<&[f32]>,
    affine: Affine<'_>,
    y: &mut [MaybeUninit<f32>],
) {
    check_rows(x, &affine, y.len());
    assert!(residual.is_none_or(|r| r.len() == x.len()), "x and residual differ in length");
    let channels = affine.scale.len();
    let stretch = (STRETCH / channels).max(1) * channels;
    y.par_chunks_mut(stretch).enumerate().for_each(|(part, y)| {
        let range = part * stretch..part * stretch + y.len();
        let (x, residual) = (&x[range.clone()], residual.map(|r| &r[range]));
        isa.run(ScaleShift { x, residual, affine, y });
    });
}

/// Some rows; `x`, the residual and `y` are equally long.
struct ScaleShift<'a> {
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    affine: Affine<'a>,
    y: &'a mut [MaybeUninit<f32>],
}

impl Task for ScaleShift<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, residual, affine: Affine { scale, shift, relu }, y } = self;
        let channels = scale.len();
        assert!(shift.len() == channels && x.len() == y.len());
        for (row, (x, y)) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)).enumerate() {
            let residual = residual.map(|r| &r[row * channels..][..channels]);
            let mut c = 0;
            while c < channels {
                let lanes = S::LANES.min(channels - c);
                // SAFETY: every slice holds `channels` values, of which `lanes` from `c` on are touched.
                unsafe {
                    let read = |s: &[f32]| simd.load_lanes(s.as_ptr().add(c), lanes);
                    let mut value = simd.mul_add(read(x), read(scale), read(shift));
                    if let Some(residual) = residual {
                        value = simd.add(value, read(residual));
                    }
                    if relu {
                        value = simd.relu(value);
                    }
                    simd.store_lanes(y.as_mut_ptr().cast::<f32>().add(c), value, lanes);
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

/// The gradients of a batch-norm with the batch's own statistics; that by the result has been written over.
#[derive(Clone, Debug, PartialEq)]
pub struct NormGradients {
    /// By its input, if that by the residual was wanted and stands in place of the result's.
    pub x: Option<Vec<f32>>,
    /// By γ.
    pub gamma: Vec<f32>,
    /// By β.
    pub beta: Vec<f32>,
}

/// A batch-norm on the way back: act(γ·(x − mean)/√(variance + ε) + β + residual) with the statistics of `x` itself, and what
/// its forward pass left.
#[derive(Clone, Copy, Debug)]
pub struct NormBackward<'a> {
    /// `[rows, channels]`.
    pub x: &'a [f32],
    /// Where act lets gradients pass.
    pub gate: Gate<'a>,
    /// `[channels]`, in stored order.
    pub gamma: &'a [f32],
    /// Of `x`.
    pub stats: &'a BatchStats,
}

impl NormBackward<'_> {
    /// The gradients, from that by the result, which is written over: with that by `x`, or, if that is wanted, with the
    /// residual's.
    ///
    /// # Panics
    /// If the lengths don't fit.
    pub fn gradients(&self, isa: Isa, grad: &mut [f32], residual: bool) -> NormGradients {
        self.check();
        assert!(grad.len() == self.x.len(), "x and its gradient differ in length");
        let sums = self.sums(isa, grad);
        self.gradients_from(isa, &sums, grad, residual)
    }

    /// As [`NormBackward::gradients`], from [`NormBackward::sums`].
    pub(crate) fn gradients_from(&self, isa: Isa, sums: &[f64], grad: &mut [f32], residual: bool) -> NormGradients {
        let channels = self.check();
        assert!(grad.len() == self.x.len(), "x and its gradient differ in length");
        let (factors, gamma, beta) = self.factors(sums);
        let stretch = (STRETCH / channels).max(1) * channels;
        let write = |part: usize, grad: &mut [f32], grad_x: Option<&mut [MaybeUninit<f32>]>| {
            let data = self.data(part * stretch..part * stretch + grad.len());
            let factors = factors.each_ref().map(|factor| &factor[..]);
            match self.gate {
                Gate::Open => isa.run(GradX::<OPEN> { data, factors, grad, grad_x }),
                Gate::Output(_) => isa.run(GradX::<OUTPUT> { data, factors, grad, grad_x }),
                Gate::Input { .. } => isa.run(GradX::<INPUT> { data, factors, grad, grad_x }),
            }
        };
        let grad = grad.par_chunks_mut(stretch);
        if !residual {
            grad.enumerate().for_each(|(part, grad)| write(part, grad, None));
            return NormGradients { x: None, gamma, beta };
        }
        let fill = |grad_x: &mut [MaybeUninit<f32>]| {
            let parts = grad.zip(grad_x.par_chunks_mut(stretch)).enumerate();
            parts.for_each(|(part, (grad, grad_x))| write(part, grad, Some(grad_x)));
        };
        // SAFETY: every row of every stretch is written.
        let x = unsafe { fresh(self.x.len(), fill) };
        NormGradients { x: Some(x), gamma, beta }
    }

    /// Insists on lengths, and says how many channels there are.
    pub(crate) fn check(&self) -> usize {
        let channels = self.gamma.len();
        assert!(channels > 0 && self.x.len().is_multiple_of(channels), "x is not [rows, {channels}]");
        let BatchStats { mean, inv_std, .. } = self.stats;
        assert!([mean.len(), inv_std.len()] == [channels; 2], "channels of the statistics");
        match self.gate {
            Gate::Open => {}
            Gate::Output(y) => assert!(y.len() == self.x.len(), "x and y differ in length"),
            Gate::Input { scale, shift } => assert!([scale.len(), shift.len()] == [channels; 2], "channels"),
        }
        channels
    }

    /// Σ dz and Σ dz·(x − mean) of each channel, `[2, channels]`, where dz is the gradient that passes the gate.
    pub(crate) fn sums(&self, isa: Isa, grad_y: &[f32]) -> Vec<f64> {
        let channels = self.gamma.len();
        two_sums(channels, self.x.len() / channels, |start, end, sums, total| {
            self.accumulate(isa, start..end, &grad_y[start * channels..end * channels], sums, total);
        })
    }

    /// Adds to [`NormBackward::sums`] those over some rows, whose gradients are given.
    pub(crate) fn add_sums(&self, isa: Isa, rows: Range<usize>, grad_y: &[f32], total: &mut [f64]) {
        let (first, channels) = (rows.start, self.gamma.len());
        add_in_runs(rows, total, |start, end, sums, total| {
            let grad_y = &grad_y[(start - first) * channels..(end - first) * channels];
            self.accumulate(isa, start..end, grad_y, sums, total);
        });
    }

    fn accumulate(&self, isa: Isa, rows: Range<usize>, grad_y: &[f32], sums: &mut [f32], total: &mut [f64]) {
        let channels = self.gamma.len();
        let data = self.data(rows.start * channels..rows.end * channels);
        let (grad, mean) = (grad_y, &self.stats.mean[..]);
        match self.gate {
            Gate::Open => isa.run(GradSums::<OPEN> { data, grad, mean, sums }),
            Gate::Output(_) => isa.run(GradSums::<OUTPUT> { data, grad, mean, sums }),
            Gate::Input { .. } => isa.run(GradSums::<INPUT> { data, grad, mean, sums }),
        }
        total.iter_mut().zip(&*sums).for_each(|(total, &sum)| *total += f64::from(sum));
    }

    /// dx = γ·inv_std·(dz − Σdz/n − x̂·Σ(dz·x̂)/n), written as a·dz + b·x + c: a, b and c of every channel, and the gradients by
    /// γ and β.
    fn factors(&self, sums: &[f64]) -> ([Vec<f32>; 3], Vec<f32>, Vec<f32>) {
        let Self { gamma, stats, .. } = *self;
        let channels = gamma.len();
        let count = (self.x.len() / channels).max(1) as f64;
        let [mut a, mut b, mut c, mut grad_gamma, mut grad_beta] = [(); 5].map(|()| vec![0.0f32; channels]);
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
        ([a, b, c], grad_gamma, grad_beta)
    }

    /// Some values, of whole rows.
    fn data(&self, range: Range<usize>) -> Data<'_> {
        let gate = match self.gate {
            Gate::Output(y) => Gate::Output(&y[range.clone()]),
            gate => gate,
        };
        Data { channels: self.gamma.len(), x: &self.x[range], gate }
    }
}

// The three gates, as the kernels are compiled for each.
const OPEN: u8 = 0;
const OUTPUT: u8 = 1;
const INPUT: u8 = 2;

/// Rows of a batch-norm's input and gate.
#[derive(Clone, Copy)]
struct Data<'a> {
    channels: usize,
    x: &'a [f32],
    gate: Gate<'a>,
}

impl Data<'_> {
    /// `lanes` values of x, and of the gradient, which is given with others, where the gate lets it pass.
    ///
    /// # Safety
    /// `lanes` values of one row stand at `at`, the first of them of `channel`; the gradient is as long as x.
    #[inline(always)]
    unsafe fn read<S: Simd, const GATE: u8>(
        &self,
        simd: S,
        grad: &[f32],
        at: usize,
        channel: usize,
        lanes: usize,
    ) -> (S::V, S::V) {
        let read = |values: &[f32], at: usize| {
            debug_assert!(at + lanes <= values.len());
            // SAFETY: the caller vouches for x, and the other slices have its length or that of a row.
            unsafe { simd.load_lanes(values.as_ptr().add(at), lanes) }
        };
        let (x, grad) = (read(self.x, at), read(grad, at));
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

/// Rows whose sums stay in registers.
const ROWS: usize = 4;

struct GradSums<'a, const GATE: u8> {
    data: Data<'a>,
    grad: &'a [f32],
    mean: &'a [f32],
    sums: &'a mut [f32],
}

impl<const GATE: u8> Task for GradSums<'_, GATE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { data, grad, mean, sums } = self;
        let channels = data.channels;
        assert!(grad.len() == data.x.len() && mean.len() == channels && sums.len() == 2 * channels);
        let (sum, sum_x) = sums.split_at_mut(channels);
        for rows in (0..data.x.len()).step_by(ROWS * channels) {
            let rows = (rows..data.x.len().min(rows + ROWS * channels)).step_by(channels);
            for channel in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - channel);
                // SAFETY: rows hold `channels` values, as do both sums and the means.
                unsafe {
                    let mean = simd.load_lanes(mean.as_ptr().add(channel), lanes);
                    let (s, t) = (sum.as_mut_ptr().add(channel), sum_x.as_mut_ptr().add(channel));
                    let (mut of_dz, mut of_x) = (simd.load_lanes(s, lanes), simd.load_lanes(t, lanes));
                    for row in rows.clone() {
                        let (x, dz) = data.read::<S, GATE>(simd, grad, row + channel, channel, lanes);
                        of_dz = simd.add(of_dz, dz);
                        of_x = simd.mul_add(dz, simd.sub(x, mean), of_x);
                    }
                    simd.store_lanes(s, of_dz, lanes);
                    simd.store_lanes(t, of_x, lanes);
                }
            }
        }
    }
}

/// Writes the gradient by x, over that by the result or, if the residual's stands there, into room for it.
struct GradX<'a, const GATE: u8> {
    data: Data<'a>,
    factors: [&'a [f32]; 3],
    grad: &'a mut [f32],
    grad_x: Option<&'a mut [MaybeUninit<f32>]>,
}

impl<const GATE: u8> Task for GradX<'_, GATE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { data, factors: [a, b, c], grad, mut grad_x } = self;
        let channels = data.channels;
        assert!(grad.len() == data.x.len() && grad_x.as_ref().is_none_or(|grad_x| grad_x.len() == data.x.len()));
        for row in (0..data.x.len()).step_by(channels) {
            for channel in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - channel);
                let at = row + channel;
                // SAFETY: rows hold `channels` values, as do the factors; the gradients have x's length.
                unsafe {
                    let factor = |values: &[f32]| simd.load_lanes(values.as_ptr().add(channel), lanes);
                    let (x, dz) = data.read::<S, GATE>(simd, grad, at, channel, lanes);
                    let dx = simd.mul_add(x, factor(b), factor(c));
                    let dx = simd.mul_add(dz, factor(a), dx);
                    let over = match &mut grad_x {
                        None => dx,
                        Some(grad_x) => {
                            simd.store_lanes(grad_x.as_mut_ptr().cast::<f32>().add(at), dx, lanes);
                            dz
                        }
                    };
                    simd.store_lanes(grad.as_mut_ptr().add(at), over, lanes);
                }
            }
        }
    }
}

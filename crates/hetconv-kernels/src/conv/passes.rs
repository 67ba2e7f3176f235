//! The passes over a batch: forward, grad-input, grad-weight, grad-bias.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{Algorithm, Conv, ConvWeightsMut, PackedWeights};
use crate::depthwise::Depthwise;
use crate::fresh::{fresh, place};
use crate::grad_weight::{Cut, GradWeight, transformed_cost};
use crate::isa::Isa;
use crate::moments::ColumnSums;
use crate::pack::{Direction, Layout};
use crate::parallel::reduction_parts;
use crate::reorder::Reorder;

/// The two activations of grad-weight.
#[derive(Clone, Copy)]
pub(crate) struct Images<'a> {
    pub batch: usize,
    pub input: &'a [f32],
    pub grad_output: &'a [f32],
    pub in_size: [usize; 2],
    pub out_size: [usize; 2],
}

impl Conv {
    /// Computes `output` `[batch, out height, out width, N]` from `input` `[batch, height, width, M]`.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer, or the weights were packed for something else.
    pub fn forward(
        &self,
        batch: usize,
        input: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        output: &mut [f32],
    ) {
        self.convolve(Direction::Forward, batch, input, weights, bias, place(output), false);
    }

    /// As [`Conv::forward`], into a vector of its own, and returns with it the sums of each channel's outputs and of their
    /// squares.
    ///
    /// # Panics
    /// As [`Conv::forward`].
    pub fn forward_with_sums(
        &self,
        batch: usize,
        input: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
    ) -> (Vec<f32>, ColumnSums) {
        let mut sums = None;
        let len = self.out_len(batch);
        let fill = |output: &mut [_]| {
            sums = self.convolve(Direction::Forward, batch, input, weights, bias, output, true);
        };
        // SAFETY: every target pixel is in one region, and every output in one block.
        let output = unsafe { fresh(len, fill) };
        (output, sums.expect("sums that were wanted"))
    }

    /// Computes the loss's gradient by the input, `[batch, height, width, M]`, from its gradient by the output.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer, or the weights were packed for something else.
    pub fn grad_input(&self, batch: usize, grad_output: &[f32], weights: &PackedWeights) -> Vec<f32> {
        let len = self.in_len(batch);
        let fill = |grad_input: &mut [_]| {
            self.convolve(Direction::GradInput, batch, grad_output, weights, None, grad_input, false);
        };
        // SAFETY: as in `forward_with_sums`.
        unsafe { fresh(len, fill) }
    }

    /// As [`Conv::grad_input`], overwriting `grad_input`.
    ///
    /// # Panics
    /// As [`Conv::grad_input`].
    pub fn grad_input_into(&self, batch: usize, grad_output: &[f32], weights: &PackedWeights, grad_input: &mut [f32]) {
        self.convolve(Direction::GradInput, batch, grad_output, weights, None, place(grad_input), false);
    }

    /// Forward or grad-input of one batch, with the channels' sums if they are wanted.
    #[allow(clippy::too_many_arguments)]
    fn convolve(
        &self,
        direction: Direction,
        batch: usize,
        source: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        target: &mut [MaybeUninit<f32>],
        sums: bool,
    ) -> Option<ColumnSums> {
        self.check_packed(weights, direction);
        let bias = self.stored_bias(weights.isa, bias, direction);
        self.kernel(direction, &weights.form, &bias, None).run(weights.isa, batch, source, target, sums)
    }

    /// Computes the loss's gradient by the weights, overwriting `grad`.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer, or the algorithm is none of its [`Conv::algorithms`].
    pub fn grad_weight(
        &self,
        isa: Isa,
        algorithm: Algorithm,
        batch: usize,
        input: &[f32],
        grad_output: &[f32],
        grad: ConvWeightsMut<'_>,
    ) {
        self.grad_weight_from(isa, algorithm, batch, input, grad_output, grad, [&Reorder::NONE; 2]);
    }

    /// The algorithm by which grad-weight of so many images takes less time, by a fixed cost.
    pub fn fastest_grad_weight(&self, isa: Isa, batch: usize) -> Algorithm {
        if !self.algorithms().contains(&Algorithm::Winograd) {
            return Algorithm::Direct;
        }
        let layout = |algorithm| Layout::new(&self.spec, &self.classes, Direction::Forward, algorithm, isa);
        let direct = layout(Algorithm::Direct).products(&self.forward, isa);
        let transformed = layout(Algorithm::Winograd);
        let transformed = transformed_cost(&transformed, self.out_size, batch.max(1), isa);
        if transformed < direct { Algorithm::Winograd } else { Algorithm::Direct }
    }

    /// As [`Conv::grad_weight`], of activations that are first brought into the kernel's orders.
    ///
    /// # Panics
    /// As [`Conv::grad_weight`].
    #[allow(clippy::too_many_arguments)]
    pub(super) fn grad_weight_from(
        &self,
        isa: Isa,
        algorithm: Algorithm,
        batch: usize,
        input: &[f32],
        grad_output: &[f32],
        grad: ConvWeightsMut<'_>,
        orders: [&Reorder; 2],
    ) {
        assert_eq!(input.len(), self.in_len(batch), "input length");
        assert_eq!(grad_output.len(), self.out_len(batch), "grad-output length");
        self.spec.check_weights(&grad.as_ref());
        assert!(self.algorithms().contains(&algorithm), "{algorithm:?} cannot compute this layer");
        let images = Images { batch, input, grad_output, in_size: self.in_size, out_size: self.out_size };
        if self.depthwise {
            assert!(orders.iter().all(|order| order.is_none()), "a depthwise convolution has one order");
            let ConvWeightsMut::Dense(grad) = grad else { unreachable!("depthwise weights are dense") };
            return Depthwise::new(&self.spec, isa).grad_weight(isa, &images, self.rows(Direction::Forward), grad);
        }
        let layout = Layout::new(&self.spec, &self.classes, Direction::Forward, algorithm, isa);
        let cut = || Cut::new(&self.spec, &self.pairs(), &self.forward, [self.in_len(1), self.out_len(1)]);
        let grad_weight = GradWeight {
            algorithm,
            layout: &layout,
            // Without a dense centre Winograd's algorithm leaves nothing to pairs of pixels.
            cut: (algorithm == Algorithm::Direct || layout.center.is_some()).then(|| self.cut.get_or_init(cut)),
            regions: &self.forward,
            images: &images,
            orders,
            spec: &self.spec,
            classes: &self.classes,
        };
        grad_weight.run(isa, grad);
    }

    /// Computes the loss's gradient by the bias `[N]`, overwriting `grad`.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer.
    pub fn grad_bias(&self, batch: usize, grad_output: &[f32], grad: &mut [f32]) {
        let channels = self.spec.out_channels;
        assert_eq!(grad_output.len(), self.out_len(batch), "grad-output length");
        assert_eq!(grad.len(), channels, "bias length");
        let rows = grad_output.len() / channels;
        let parts = reduction_parts(rows, channels);
        let rows_per_part = rows.div_ceil(parts).max(1);
        let partial = |part: &[f32]| {
            let mut sums = vec![0.0f64; channels];
            for row in part.chunks_exact(channels) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(value);
                }
            }
            sums
        };
        let sums: Vec<Vec<f64>> = grad_output.par_chunks(rows_per_part * channels).map(partial).collect();
        for (position, &filter) in self.spec.out_order.channels().iter().enumerate() {
            grad[filter as usize] = sums.iter().map(|part| part[position]).sum::<f64>() as f32;
        }
    }
}

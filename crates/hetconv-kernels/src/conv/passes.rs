//! The passes over a batch: forward, grad-input, grad-weight, grad-bias.

use std::mem::MaybeUninit;

use hetconv_core::ChannelOrder;
use rayon::prelude::*;

use super::{Algorithm, Conv, ConvWeightsMut, PackedWeights};
use crate::depthwise::Depthwise;
use crate::fresh::{fresh, place};
use crate::grad_weight::{Cut, GradWeight, transformed_cost};
use crate::isa::Isa;
use crate::kernel::{Along, Count};
use crate::moments::ColumnSums;
use crate::norm::{NormBackward, NormGradients};
use crate::pack::{Direction, Layout};
use crate::parallel::{PARTS, reduction_parts};
use crate::reading::{Input, Reading};
use crate::taps::Rows;

/// What a backward pass reads of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// How many images it has.
    pub images: usize,
    /// The forward pass's input, `[images, height, width, M]`.
    pub input: Input<'a>,
    /// The loss's gradient by its output, `[images, out height, out width, N]`.
    pub grad_output: &'a [f32],
}

/// The two activations of grad-weight.
#[derive(Clone, Copy)]
pub(crate) struct Images<'a> {
    pub batch: usize,
    pub input: &'a [f32],
    pub grad_output: &'a [f32],
    /// How the two are read.
    pub readings: [Reading<'a>; 2],
    pub in_size: [usize; 2],
    pub out_size: [usize; 2],
}

impl Images<'_> {
    /// Calls with both as they are read, made on all threads.
    pub fn brought<T>(&self, isa: Isa, then: impl FnOnce(&Images<'_>) -> T) -> T {
        let [of_input, of_grad_output] = self.readings;
        let mut rooms = [of_input.room(self.input.len()), of_grad_output.room(self.grad_output.len())];
        let [room_in, room_out] = &mut rooms;
        let input = of_input.brought_by_all(isa, self.input, room_in);
        let grad_output = of_grad_output.brought_by_all(isa, self.grad_output, room_out);
        then(&Images { input, grad_output, readings: [Reading::Plain; 2], ..*self })
    }
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
        let input = (input, Reading::Plain);
        self.convolve(Direction::Forward, batch, input, weights, bias, place(output), Count::Nothing);
    }

    /// As [`Conv::forward`], into a vector of its own, and returns with it the sums of each channel's outputs and of their
    /// squares.
    ///
    /// # Panics
    /// As [`Conv::forward`].
    pub fn forward_with_sums(
        &self,
        batch: usize,
        input: Input<'_>,
        weights: &PackedWeights,
        bias: Option<&[f32]>,
    ) -> (Vec<f32>, ColumnSums) {
        let (output, sums) = self.forward_counting(batch, input, weights, bias, Count::Moments);
        (output, ColumnSums::new(sums))
    }

    /// As [`Conv::forward_with_sums`] without the sums.
    ///
    /// # Panics
    /// As [`Conv::forward`].
    pub fn forward_of(
        &self,
        batch: usize,
        input: Input<'_>,
        weights: &PackedWeights,
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        self.forward_counting(batch, input, weights, bias, Count::Nothing).0
    }

    fn forward_counting(
        &self,
        batch: usize,
        input: Input<'_>,
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        count: Count<'_>,
    ) -> (Vec<f32>, Vec<f64>) {
        let mut counted = Vec::new();
        let input = input.read(self.spec.in_channels);
        let fill = |output: &mut [_]| {
            counted = self.convolve(Direction::Forward, batch, input, weights, bias, output, count);
        };
        // SAFETY: every target pixel is in one region, row or piece, and every output in one block or bundle.
        let output = unsafe { fresh(self.out_len(batch), fill) };
        (output, counted)
    }

    /// Computes the loss's gradient by the input, `[batch, height, width, M]`, from its gradient by the output.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer, or the weights were packed for something else.
    pub fn grad_input(&self, batch: usize, grad_output: &[f32], weights: &PackedWeights) -> Vec<f32> {
        self.grad_input_counting(batch, grad_output, weights, Count::Nothing).0
    }

    /// As [`Conv::grad_input`] through the batch-norm that made the input, without a residual: the gradient by what it read,
    /// and its others.
    ///
    /// # Panics
    /// As [`Conv::grad_input`], or if the batch-norm's result is not this layer's input.
    pub fn grad_input_through_norm(
        &self,
        batch: usize,
        grad_output: &[f32],
        weights: &PackedWeights,
        norm: &NormBackward<'_>,
    ) -> (Vec<f32>, NormGradients) {
        let (mut grad, sums) = self.grad_input_counting(batch, grad_output, weights, Count::Norm(norm));
        let others = norm.gradients_from(weights.isa, &sums, &mut grad, false);
        (grad, others)
    }

    fn grad_input_counting(
        &self,
        batch: usize,
        grad_output: &[f32],
        weights: &PackedWeights,
        count: Count<'_>,
    ) -> (Vec<f32>, Vec<f64>) {
        let mut sums = Vec::new();
        let source = (grad_output, Reading::Plain);
        let fill = |grad_input: &mut [_]| {
            sums = self.convolve(Direction::GradInput, batch, source, weights, None, grad_input, count);
        };
        // SAFETY: as in `forward_counting`.
        let grad_input = unsafe { fresh(self.in_len(batch), fill) };
        (grad_input, sums)
    }

    /// As [`Conv::grad_input`], overwriting `grad_input`.
    ///
    /// # Panics
    /// As [`Conv::grad_input`].
    pub fn grad_input_into(&self, batch: usize, grad_output: &[f32], weights: &PackedWeights, grad_input: &mut [f32]) {
        let source = (grad_output, Reading::Plain);
        self.convolve(Direction::GradInput, batch, source, weights, None, place(grad_input), Count::Nothing);
    }

    /// Forward or grad-input of one batch, and what is counted meanwhile.
    #[allow(clippy::too_many_arguments)]
    fn convolve(
        &self,
        direction: Direction,
        batch: usize,
        (source, reading): (&[f32], Reading<'_>),
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        target: &mut [MaybeUninit<f32>],
        count: Count<'_>,
    ) -> Vec<f64> {
        self.check_packed(weights, direction);
        let bias = self.stored_bias(weights.isa, bias, direction);
        let kernel = self.kernel(direction, &weights.form, &bias, None);
        kernel.run(weights.isa, batch, source, reading, target, count)
    }

    /// Computes the loss's gradient by the weights, overwriting `grad`.
    ///
    /// # Panics
    /// If a slice has the wrong length for the batch and the layer, or the algorithm is none of its [`Conv::algorithms`].
    pub fn grad_weight(&self, isa: Isa, algorithm: Algorithm, batch: Batch<'_>, grad: ConvWeightsMut<'_>) {
        self.spec.check_weights(&grad.as_ref());
        let images = self.images(batch);
        self.with_grad_weight(isa, algorithm, &images, |grad_weight| grad_weight.run(isa, grad, None));
    }

    /// [`Conv::grad_weight`] and [`Conv::grad_input`], or [`Conv::grad_input_through_norm`] if there is a batch-norm, whose
    /// other gradients come with it: the same results but for the order of its sums. Where every thread has images of its own,
    /// both are computed in one pass, which reads grad-output, and what the batch-norm read, once.
    ///
    /// # Panics
    /// As those.
    pub fn backward(
        &self,
        algorithm: Algorithm,
        batch: Batch<'_>,
        weights: &PackedWeights,
        grad: ConvWeightsMut<'_>,
        norm: Option<&NormBackward<'_>>,
    ) -> (Vec<f32>, Option<NormGradients>) {
        let isa = weights.isa;
        self.check_packed(weights, Direction::GradInput);
        self.spec.check_weights(&grad.as_ref());
        let images = self.images(batch);
        let bias = self.stored_bias(isa, None, Direction::GradInput);
        let mut sums = Vec::new();
        let along = self.with_grad_weight(isa, algorithm, &images, |grad_weight| {
            if !grad_weight.takes_along() || images.input.is_empty() {
                grad_weight.run(isa, grad, None);
                return None;
            }
            let fill = |grad_input: &mut [_]| {
                let kernel = self.kernel(Direction::GradInput, &weights.form, &bias, None);
                let along = Along::new(isa, kernel, images.batch, grad_input, norm);
                sums = grad_weight.run(isa, grad, Some(&along));
            };
            // SAFETY: as in `forward_counting`; grad-weight's parts have all images.
            Some(unsafe { fresh(self.in_len(images.batch), fill) })
        });
        match (along, norm) {
            (Some(mut grad_input), norm) => {
                let others = norm.map(|norm| norm.gradients_from(isa, &sums, &mut grad_input, false));
                (grad_input, others)
            }
            (None, None) => (self.grad_input(images.batch, batch.grad_output, weights), None),
            (None, Some(norm)) => {
                let (grad_input, others) = self.grad_input_through_norm(images.batch, batch.grad_output, weights, norm);
                (grad_input, Some(others))
            }
        }
    }

    /// The algorithm by which grad-weight of so many images takes less time, by a fixed cost.
    pub fn fastest_grad_weight(&self, isa: Isa, batch: usize) -> Algorithm {
        if !self.algorithms().contains(&Algorithm::Winograd) {
            return self.exact();
        }
        let layout = |algorithm| Layout::new(&self.spec, &self.classes, Direction::Forward, algorithm, isa);
        let direct = layout(Algorithm::Direct).products(self.regions(Direction::Forward), isa);
        let transformed = layout(Algorithm::Winograd);
        let transformed = transformed_cost(&transformed, self.out_size, batch.max(1), isa);
        if transformed < direct { Algorithm::Winograd } else { Algorithm::Direct }
    }

    /// The images of a backward pass.
    pub(super) fn images<'a>(&self, batch: Batch<'a>) -> Images<'a> {
        let (input, reading) = batch.input.read(self.spec.in_channels);
        assert_eq!(input.len(), self.in_len(batch.images), "input length");
        assert_eq!(batch.grad_output.len(), self.out_len(batch.images), "grad-output length");
        Images {
            batch: batch.images,
            input,
            grad_output: batch.grad_output,
            readings: [reading, Reading::Plain],
            in_size: self.in_size,
            out_size: self.out_size,
        }
    }

    /// Calls with a prepared grad-weight.
    pub(super) fn with_grad_weight<T>(
        &self,
        isa: Isa,
        algorithm: Algorithm,
        images: &Images<'_>,
        then: impl FnOnce(AnyGradWeight<'_>) -> T,
    ) -> T {
        assert!(self.algorithms().contains(&algorithm), "{algorithm:?} cannot compute this layer");
        if algorithm == Algorithm::Depthwise {
            let kernel = Depthwise::new(&self.spec, isa);
            return then(AnyGradWeight::Depthwise { kernel, rows: self.rows(Direction::Forward), images });
        }
        let layout = Layout::new(&self.spec, &self.classes, Direction::Forward, algorithm, isa);
        let cut =
            || Cut::new(&self.spec, &self.pairs(), self.regions(Direction::Forward), [self.in_len(1), self.out_len(1)]);
        then(AnyGradWeight::Products(GradWeight {
            algorithm,
            layout: &layout,
            // Without a dense centre Winograd's algorithm leaves nothing to pairs of pixels.
            cut: (algorithm == Algorithm::Direct || layout.center.is_some()).then(|| self.cut.get_or_init(cut)),
            regions: self.regions(Direction::Forward),
            images,
            spec: &self.spec,
            classes: &self.classes,
        }))
    }

    /// Computes the loss's gradient by the bias `[N]`, overwriting `grad`.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer.
    pub fn grad_bias(&self, batch: usize, grad_output: &[f32], grad: &mut [f32]) {
        self.grad_bias_in(&self.spec.out_order, batch, grad_output, grad);
    }

    /// As [`Conv::grad_bias`], of filters that stand in another order.
    pub(super) fn grad_bias_in(&self, order: &ChannelOrder, batch: usize, grad_output: &[f32], grad: &mut [f32]) {
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
        for (position, &filter) in order.channels().iter().enumerate() {
            grad[filter as usize] = sums.iter().map(|part| part[position]).sum::<f64>() as f32;
        }
    }
}

/// A prepared grad-weight of either kernel.
pub(super) enum AnyGradWeight<'a> {
    Depthwise { kernel: Depthwise<'a>, rows: &'a Rows, images: &'a Images<'a> },
    Products(GradWeight<'a>),
}

impl AnyGradWeight<'_> {
    /// Whether every thread has images of its own, so that grad-input may be computed along.
    fn takes_along(&self) -> bool {
        match self {
            Self::Depthwise { images, .. } => images.batch >= PARTS,
            Self::Products(grad_weight) => grad_weight.takes_along(),
        }
    }

    /// Overwrites `grad`, and returns what is counted along, `[2, channels]`.
    pub fn run(&self, isa: Isa, grad: ConvWeightsMut<'_>, along: Option<&Along<'_>>) -> Vec<f64> {
        match (self, grad) {
            (Self::Depthwise { kernel, rows, images }, ConvWeightsMut::Dense(grad)) => {
                kernel.grad_weight(isa, images, rows, grad, along)
            }
            (Self::Depthwise { .. }, _) => unreachable!("a depthwise layer is no HetConv"),
            (Self::Products(grad_weight), grad) => grad_weight.run(isa, grad, along),
        }
    }
}

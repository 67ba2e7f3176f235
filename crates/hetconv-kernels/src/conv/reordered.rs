//! A convolution between activations whose channels stand in other orders than its kernels want.

use hetconv_core::ChannelOrder;
use rayon::prelude::*;

use super::{Algorithm, Batch, Conv, ConvError, ConvSpec, ConvWeightsMut, Images, PackedWeights};
use crate::aligned::Aligned;
use crate::fresh::product;
use crate::isa::Isa;
use crate::kernel::{Pass, Share};
use crate::pack::Direction;
use crate::parallel::{Band, PARTS, Target};
use crate::reading::{Input, Reading};
use crate::reorder::Reorder;

/// A [`Conv`] between activations in natural order, whatever the orders of its [`ConvSpec`]: channels are brought into those
/// and back a few images at a time, while these are in a core's cache anyway.
#[derive(Debug)]
pub struct Reordered {
    conv: Conv,
    input: Ways,
    output: Ways,
}

/// From natural order to the kernels' and back.
#[derive(Debug)]
struct Ways {
    there: Reorder,
    back: Reorder,
}

impl Ways {
    fn new(order: &ChannelOrder) -> Self {
        let natural = ChannelOrder::natural(order.len());
        Self { there: Reorder::new(&natural, order), back: Reorder::new(order, &natural) }
    }
}

impl Reordered {
    /// Prepares a convolution for images of `[height, width]` pixels.
    ///
    /// # Errors
    /// As [`Conv::new`].
    pub fn new(spec: ConvSpec, in_size: [usize; 2]) -> Result<Self, ConvError> {
        let conv = Conv::new(spec, in_size)?;
        let (input, output) = (Ways::new(&conv.spec.in_order), Ways::new(&conv.spec.out_order));
        Ok(Self { conv, input, output })
    }

    /// The convolution in the kernels' orders; it packs the weights.
    pub fn conv(&self) -> &Conv {
        &self.conv
    }

    /// As [`Conv::forward`], in natural order.
    ///
    /// # Panics
    /// As [`Conv::forward`].
    pub fn forward(
        &self,
        batch: usize,
        input: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let write = |input: &[f32], output: &mut [f32]| self.conv.forward(batch, input, weights, bias, output);
        self.convolve(Direction::Forward, batch, input, weights, bias, output, write);
    }

    /// As [`Conv::grad_input`], in natural order and overwriting `grad_input`.
    ///
    /// # Panics
    /// As [`Conv::grad_input`].
    pub fn grad_input(&self, batch: usize, grad_output: &[f32], weights: &PackedWeights, grad_input: &mut [f32]) {
        let write = |source: &[f32], target: &mut [f32]| self.conv.grad_input_into(batch, source, weights, target);
        self.convolve(Direction::GradInput, batch, grad_output, weights, None, grad_input, write);
    }

    /// Forward or grad-input; `write` computes it for a whole batch in the kernels' orders.
    #[allow(clippy::too_many_arguments)]
    fn convolve(
        &self,
        direction: Direction,
        batch: usize,
        source: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        target: &mut [f32],
        write: impl FnOnce(&[f32], &mut [f32]),
    ) {
        let (conv, isa) = (&self.conv, weights.isa);
        conv.check_packed(weights, direction);
        let [there, back] = match direction {
            Direction::Forward => [&self.input.there, &self.output.back],
            Direction::GradInput => [&self.output.there, &self.input.back],
        };
        let reading = Reading::reordered(there);
        if reading.is_plain() && back.is_none() {
            return write(source, target);
        }
        let bias = conv.stored_bias(isa, bias, direction);
        let kernel = conv.kernel(direction, &weights.form, &bias, None);
        let [source_len, target_len] = kernel.lens();
        let lengths = [source_len, target_len].map(|len| product([batch, len]));
        assert!([source.len(), target.len()] == lengths, "lengths of activations");
        let images = kernel.images_together(batch, 4 * (source_len + target_len));
        if batch.div_ceil(images.max(1)) < PARTS {
            // Too few to be worked on one by one: blocks of filters have to be shared out as well.
            let (mut stored, mut written) = (reading.room(source.len()), back.room(target.len()));
            let source = reading.brought_by_all(isa, source, &mut stored);
            if back.is_none() {
                return write(source, target);
            }
            write(source, &mut written);
            return back.copy_all(isa, &written, target);
        }
        let rooms = || {
            let scratch = Aligned::zeroed(kernel.scratch_len(0..kernel.blocks(), images, Band::WHOLE));
            (reading.room(images * source_len), back.room(images * target_len), scratch)
        };
        let parts = target.par_chunks_mut(images * target_len).zip(source.par_chunks(images * source_len));
        parts.for_each_init(rooms, |(stored, written, scratch), (target, source)| {
            let images = target.len() / target_len;
            let source = reading.brought_alone(isa, source, stored);
            let results = if back.is_none() { &mut *target } else { &mut written[..target.len()] };
            let pass = Pass::new(images, source, Target(results.as_mut_ptr()));
            let share = Share { band: Band::WHOLE, blocks: 0..kernel.blocks(), moments: None };
            // SAFETY: the pass has `images` images, whose target is `results`, and this thread alone computes it.
            unsafe { kernel.compute(isa, pass, share, scratch) };
            if !back.is_none() {
                back.copy(isa, &written[..target.len()], target);
            }
        });
    }

    /// As [`Conv::grad_bias`], in natural order.
    ///
    /// # Panics
    /// As [`Conv::grad_bias`].
    pub fn grad_bias(&self, batch: usize, grad_output: &[f32], grad: &mut [f32]) {
        let natural = ChannelOrder::natural(self.conv.spec.out_channels);
        self.conv.grad_bias_in(&natural, batch, grad_output, grad);
    }

    /// As [`Conv::grad_weight`], in natural order.
    ///
    /// # Panics
    /// As [`Conv::grad_weight`].
    pub fn grad_weight(
        &self,
        isa: Isa,
        algorithm: Algorithm,
        batch: usize,
        input: &[f32],
        grad_output: &[f32],
        grad: ConvWeightsMut<'_>,
    ) {
        let readings = [&self.input.there, &self.output.there].map(Reading::reordered);
        self.conv.spec.check_weights(&grad.as_ref());
        let batch = Batch { images: batch, input: Input::Plain(input), grad_output };
        let images = Images { readings, ..self.conv.images(batch) };
        self.conv.with_grad_weight(isa, algorithm, &images, |grad_weight| grad_weight.run(isa, grad, None));
    }
}

//! Batch normalisation with the residual sum and the ReLU that follow it.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use burn_flex::FlexTensor;
use hetconv_core::ChannelOrder;
use hetconv_kernels::norm::{self, Affine, BatchStats, Gate, NormBackward};
use hetconv_kernels::{ColumnSums, Isa};

use crate::Implementation;
use crate::composed::ComposedNorm;
use crate::kernel::{Kernel, apply, array, flex, tensor, values, values_mut, wrap};

/// Scale and shift per channel, `[channels]` each, in natural order.
#[derive(Clone, Debug)]
pub struct NormTensors {
    /// γ.
    pub scale: Tensor<1>,
    /// β.
    pub shift: Tensor<1>,
}

/// Mean and biased variance of each channel, in natural order; constants without autodiff.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `[channels]`.
    pub mean: Tensor<1>,
    /// `[channels]`, the mean of squared deviations.
    pub variance: Tensor<1>,
}

/// `act(γ·(x − mean)/√(variance + ε) + β + residual)` of NHWC activations, act being ReLU or nothing.
#[derive(Clone, Debug)]
pub struct NormOp {
    order: ChannelOrder,
    epsilon: f32,
    relu: bool,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Kernels(Isa),
    Composed(Arc<ComposedNorm>),
}

impl NormOp {
    /// A normalisation of activations whose channels are stored in `order`.
    pub fn new(order: ChannelOrder, epsilon: f32, relu: bool, implementation: Implementation) -> Self {
        let form = match implementation {
            Implementation::Kernels(isa) => Form::Kernels(isa),
            Implementation::Composed => Form::Composed(Arc::new(ComposedNorm::new(&order, epsilon, relu))),
        };
        Self { order, epsilon, relu, form }
    }

    /// With the statistics of the batch itself, which are returned as well. Differentiable in everything.
    ///
    /// # Shapes
    /// * `x`, `residual`, result: `[batch, height, width, channels]`
    ///
    /// # Panics
    /// If the shapes do not fit, or the implementation is not one for the device.
    pub fn forward(&self, x: Tensor<4>, affine: NormTensors, residual: Option<Tensor<4>>) -> (Tensor<4>, Moments) {
        self.forward_with_sums(x, None, affine, residual)
    }

    /// As [`NormOp::forward`], with the channels' sums over `x` if the operation that made it counted them.
    ///
    /// # Panics
    /// As [`NormOp::forward`].
    pub fn forward_with_sums(
        &self,
        x: Tensor<4>,
        sums: Option<ColumnSums>,
        affine: NormTensors,
        residual: Option<Tensor<4>>,
    ) -> (Tensor<4>, Moments) {
        self.check(&x, &affine, residual.as_ref());
        let isa = match &self.form {
            Form::Kernels(isa) => *isa,
            Form::Composed(composed) => return composed.forward(x, affine, residual),
        };
        let device = x.device().inner();
        let kernel = self.kernel(isa, sums);
        let inputs = [x.into_dispatch(), affine.scale.into_dispatch(), affine.shift.into_dispatch()];
        let (y, stats) = match residual {
            None => apply(kernel, inputs),
            Some(residual) => {
                let [x, scale, shift] = inputs;
                apply(kernel, [x, scale, shift, residual.into_dispatch()])
            }
        };
        (Tensor::from_dispatch(y), self.moments(&stats, &device))
    }

    /// How it is computed by the kernels.
    pub(super) fn kernel(&self, isa: Isa, sums: Option<ColumnSums>) -> NormKernel {
        NormKernel { order: self.order.clone(), isa, epsilon: self.epsilon, relu: self.relu, sums }
    }

    /// Constants, on a device without autodiff.
    pub(super) fn moments(&self, stats: &BatchStats, device: &Device) -> Moments {
        let constant = |stored: &[f32]| Tensor::from_data(natural(&self.order, stored).as_slice(), device);
        Moments { mean: constant(&stats.mean), variance: constant(&stats.variance) }
    }

    /// With fixed statistics, for evaluation: on tensors without autodiff.
    ///
    /// # Shapes
    /// As of [`NormOp::forward`].
    ///
    /// # Panics
    /// If the shapes do not fit, a tensor has autodiff, or the implementation is not one for the device.
    pub fn evaluate(
        &self,
        x: Tensor<4>,
        affine: NormTensors,
        moments: Moments,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        self.check(&x, &affine, residual.as_ref());
        let isa = match &self.form {
            Form::Kernels(isa) => *isa,
            Form::Composed(composed) => return composed.evaluate(x, affine, moments, residual),
        };
        let shape = x.dims();
        let fixed = self.fixed(affine, moments);
        let x = flex(x.into_dispatch());
        let residual = residual.map(|residual| flex(residual.into_dispatch()));
        let y = norm::scale_shift(isa, values(&x), residual.as_ref().map(values), fixed.affine());
        Tensor::from_dispatch(wrap(tensor(y, shape)))
    }

    /// What fixed statistics amount to.
    pub(super) fn fixed(&self, affine: NormTensors, moments: Moments) -> ScaleAndShift {
        let [scale, shift, mean, variance] =
            [affine.scale, affine.shift, moments.mean, moments.variance].map(|t| flex(t.into_dispatch()));
        let [scale, shift, mean, variance] = [&scale, &shift, &mean, &variance].map(values);
        let factors: Vec<f32> = scale.iter().zip(variance).map(|(s, v)| s / (v + self.epsilon).sqrt()).collect();
        let summands: Vec<f32> = (0..factors.len()).map(|c| shift[c] - mean[c] * factors[c]).collect();
        let [scale, shift] = [&factors, &summands].map(|values| stored(&self.order, values));
        ScaleAndShift { scale, shift, relu: self.relu }
    }

    /// The channels' order.
    pub(super) fn order(&self) -> &ChannelOrder {
        &self.order
    }

    pub(super) fn check(&self, x: &Tensor<4>, affine: &NormTensors, residual: Option<&Tensor<4>>) {
        let shape = x.dims();
        assert_eq!(shape[3], self.order.len(), "channels of a normalisation");
        assert_eq!([affine.scale.dims(), affine.shift.dims()], [[shape[3]]; 2], "one scale and shift per channel");
        assert!(residual.is_none_or(|residual| residual.dims() == shape), "a residual of another shape");
    }
}

/// Values per channel, brought into stored order.
fn stored(order: &ChannelOrder, natural: &[f32]) -> Vec<f32> {
    order.channels().iter().map(|&channel| natural[channel as usize]).collect()
}

/// Values per channel, brought back from stored order.
fn natural(order: &ChannelOrder, stored: &[f32]) -> Vec<f32> {
    let mut natural = vec![0.0; stored.len()];
    for (&channel, &value) in order.channels().iter().zip(stored) {
        natural[channel as usize] = value;
    }
    natural
}

/// What a batch-norm with known statistics does, channels in stored order.
#[derive(Clone, Debug)]
pub(super) struct ScaleAndShift {
    scale: Vec<f32>,
    shift: Vec<f32>,
    relu: bool,
}

impl ScaleAndShift {
    pub fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, shift: &self.shift, relu: self.relu }
    }
}

/// A batch-norm whose statistics are known, channels in stored order.
#[derive(Clone, Debug)]
pub(super) struct Normalisation {
    gamma: Vec<f32>,
    pub stats: BatchStats,
    pub does: ScaleAndShift,
}

impl Normalisation {
    /// Its backward pass, where there is no residual.
    pub fn backward<'a>(&'a self, x: &'a [f32]) -> NormBackward<'a> {
        let ScaleAndShift { scale, shift, relu } = &self.does;
        let gate = if *relu { Gate::Input { scale, shift } } else { Gate::Open };
        NormBackward { x, gate, gamma: &self.gamma, stats: &self.stats }
    }
}

/// Inputs: activation, scale, shift, residual if there is one.
#[derive(Clone, Debug)]
pub(super) struct NormKernel {
    order: ChannelOrder,
    isa: Isa,
    epsilon: f32,
    relu: bool,
    sums: Option<ColumnSums>,
}

impl NormKernel {
    /// Takes the statistics of `x`.
    pub fn normalisation(&self, x: &[f32], scale: &FlexTensor, shift: &FlexTensor) -> Normalisation {
        let [gamma, beta] = [scale, shift].map(|tensor| stored(&self.order, values(tensor)));
        let counted = self.sums.is_none().then(|| norm::column_sums(self.isa, gamma.len(), x));
        let sums = self.sums.as_ref().or(counted.as_ref()).expect("one or the other");
        let stats = BatchStats::new(sums, x.len() / gamma.len(), self.epsilon);
        let (scale, shift) = stats.scale_and_shift(&gamma, &beta);
        Normalisation { gamma, stats, does: ScaleAndShift { scale, shift, relu: self.relu } }
    }

    /// Gradients by scale and shift.
    pub fn by_affine(&self, gamma: &[f32], beta: &[f32]) -> [FlexTensor; 2] {
        [gamma, beta].map(|stored| tensor(natural(&self.order, stored), [stored.len()]))
    }
}

#[derive(Clone, Debug)]
pub(super) struct NormSaved {
    x: FlexTensor,
    normalisation: Normalisation,
    /// The result, where it decides what the ReLU lets pass.
    y: Option<FlexTensor>,
}

impl<const N: usize> Kernel<N> for NormKernel {
    type Saved = NormSaved;
    type Side = BatchStats;

    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, BatchStats, NormSaved) {
        let x = values(&inputs[0]);
        let normalisation = self.normalisation(x, &inputs[1], &inputs[2]);
        let residual = inputs.get(3).map(values);
        let y = norm::scale_shift(self.isa, x, residual, normalisation.does.affine());
        let y = tensor(y, inputs[0].layout().shape().clone());
        let kept = (self.relu && residual.is_some()).then(|| y.clone());
        (y, normalisation.stats.clone(), NormSaved { x: inputs[0].clone(), normalisation, y: kept })
    }

    fn backward(&self, saved: NormSaved, mut grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let NormSaved { x, normalisation, y } = saved;
        let mut backward = normalisation.backward(values(&x));
        if let Some(y) = &y {
            backward.gate = Gate::Output(values(y));
        }
        let residual = wanted.get(3) == Some(&true);
        let grads = backward.gradients(self.isa, values_mut(&mut grad), residual);
        let (by_x, by_residual) = match grads.x {
            Some(by_x) => (tensor(by_x, x.layout().shape().clone()), Some(grad)),
            None => (grad, None),
        };
        let [by_scale, by_shift] = self.by_affine(&grads.gamma, &grads.beta);
        array([Some(by_x), Some(by_scale), Some(by_shift), by_residual].into_iter().take(N).collect())
    }
}

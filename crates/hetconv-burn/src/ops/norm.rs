//! Batch normalisation with the residual sum and the ReLU that follow it.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_core::ChannelOrder;
use hetconv_kernels::norm::{self, BatchStats, Gate};
use hetconv_kernels::{ColumnSums, Isa};

use crate::Implementation;
use crate::composed::ComposedNorm;
use crate::kernel::{Kernel, apply, flex, tensor, values, wrap};

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
        let kernel = NormKernel { order: self.order.clone(), isa, epsilon: self.epsilon, relu: self.relu, sums };
        let inputs = [x.into_dispatch(), affine.scale.into_dispatch(), affine.shift.into_dispatch()];
        let (y, stats) = match residual {
            None => apply(kernel, inputs),
            Some(residual) => {
                let [x, scale, shift] = inputs;
                apply(kernel, [x, scale, shift, residual.into_dispatch()])
            }
        };
        let constant = |stored: &[f32]| Tensor::from_data(natural(&self.order, stored).as_slice(), &device);
        let moments = Moments { mean: constant(&stats.mean), variance: constant(&stats.variance) };
        (Tensor::from_dispatch(y), moments)
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
        let [scale, shift, mean, variance] =
            [affine.scale, affine.shift, moments.mean, moments.variance].map(|t| flex(t.into_dispatch()));
        let [scale, shift, mean, variance] = [&scale, &shift, &mean, &variance].map(values);
        let factor = |c: usize| scale[c] / (variance[c] + self.epsilon).sqrt();
        let factors: Vec<f32> = (0..shape[3]).map(factor).collect();
        let summands: Vec<f32> = (0..shape[3]).map(|c| shift[c] - mean[c] * factors[c]).collect();
        let (factors, summands) = (stored(&self.order, &factors), stored(&self.order, &summands));
        let x = flex(x.into_dispatch());
        let residual = residual.map(|residual| flex(residual.into_dispatch()));
        let residual = residual.as_ref().map(values);
        let y = norm::scale_shift(isa, shape[3], values(&x), residual, &factors, &summands, self.relu);
        Tensor::from_dispatch(wrap(tensor(y, shape)))
    }

    fn check(&self, x: &Tensor<4>, affine: &NormTensors, residual: Option<&Tensor<4>>) {
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

/// Inputs: activation, scale, shift, residual if there is one.
#[derive(Clone, Debug)]
struct NormKernel {
    order: ChannelOrder,
    isa: Isa,
    epsilon: f32,
    relu: bool,
    sums: Option<ColumnSums>,
}

#[derive(Clone, Debug)]
struct NormSaved {
    x: FlexTensor,
    gate: SavedGate,
    /// γ in stored order.
    gamma: Vec<f32>,
    stats: BatchStats,
}

/// What decides where the ReLU lets gradients pass.
#[derive(Clone, Debug)]
enum SavedGate {
    Open,
    Output(FlexTensor),
    Input { scale: Vec<f32>, shift: Vec<f32> },
}

impl<const N: usize> Kernel<N> for NormKernel {
    type Saved = NormSaved;
    type Side = BatchStats;

    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, BatchStats, NormSaved) {
        let shape = inputs[0].layout().shape().clone();
        let x = values(&inputs[0]);
        let [gamma, beta] = [1, 2].map(|input| stored(&self.order, values(&inputs[input])));
        let channels = gamma.len();
        let residual = inputs.get(3).map(values);
        let counted = self.sums.is_none().then(|| norm::column_sums(self.isa, channels, x));
        let sums = self.sums.as_ref().or(counted.as_ref()).expect("one or the other");
        let stats = BatchStats::new(sums, x.len() / channels, self.epsilon);
        let (scale, shift) = stats.scale_and_shift(&gamma, &beta);
        let y = norm::scale_shift(self.isa, channels, x, residual, &scale, &shift, self.relu);
        let y = tensor(y, shape);
        let gate = match (self.relu, residual) {
            (false, _) => SavedGate::Open,
            (true, Some(_)) => SavedGate::Output(y.clone()),
            (true, None) => SavedGate::Input { scale, shift },
        };
        (y, stats.clone(), NormSaved { x: inputs[0].clone(), gate, gamma, stats })
    }

    fn backward(&self, saved: NormSaved, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let shape = saved.x.layout().shape().clone();
        let channels = saved.gamma.len();
        let gate = match &saved.gate {
            SavedGate::Open => Gate::Open,
            SavedGate::Output(y) => Gate::Output(values(y)),
            SavedGate::Input { scale, shift } => Gate::Input { scale, shift },
        };
        // Without a ReLU the residual's gradient is the output's own.
        let residual = self.relu && wanted.get(3) == Some(&true);
        let grads = norm::batch_norm_backward(
            self.isa,
            channels,
            values(&saved.x),
            gate,
            &saved.gamma,
            &saved.stats,
            values(&grad),
            residual,
        );
        let mut results = [const { None }; N];
        results[0] = Some(tensor(grads.x, shape.clone()));
        results[1] = Some(tensor(natural(&self.order, &grads.gamma), [channels]));
        results[2] = Some(tensor(natural(&self.order, &grads.beta), [channels]));
        if N == 4 {
            results[3] = match grads.residual {
                Some(data) => Some(tensor(data, shape)),
                None => wanted[3].then_some(grad),
            };
        }
        results
    }
}

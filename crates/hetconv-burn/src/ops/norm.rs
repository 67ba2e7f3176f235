//! Batch normalisation with the residual sum and the ReLU that follow it.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_core::ChannelOrder;
use hetconv_kernels::Isa;
use hetconv_kernels::norm::{self, BatchStats};

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
        self.check(&x, &affine, residual.as_ref());
        let isa = match &self.form {
            Form::Kernels(isa) => *isa,
            Form::Composed(composed) => return composed.forward(x, affine, residual),
        };
        let device = x.device().inner();
        let kernel = NormKernel { order: self.order.clone(), isa, epsilon: self.epsilon, relu: self.relu };
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
        let mut y = vec![0.0; values(&x).len()];
        let residual = residual.as_ref().map(values);
        norm::scale_shift(isa, shape[3], values(&x), residual, &factors, &summands, self.relu, &mut y);
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
}

#[derive(Clone, Debug)]
struct NormSaved {
    x: FlexTensor,
    y: FlexTensor,
    /// γ in stored order.
    scale: Vec<f32>,
    stats: BatchStats,
}

impl<const N: usize> Kernel<N> for NormKernel {
    type Saved = NormSaved;
    type Side = BatchStats;

    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, BatchStats, NormSaved) {
        let shape = inputs[0].layout().shape().clone();
        let x = values(&inputs[0]);
        let scale = stored(&self.order, values(&inputs[1]));
        let shift = stored(&self.order, values(&inputs[2]));
        let residual = inputs.get(3).map(values);
        let mut y = vec![0.0; x.len()];
        let stats = norm::batch_norm_forward(
            self.isa,
            scale.len(),
            x,
            residual,
            &scale,
            &shift,
            self.epsilon,
            self.relu,
            &mut y,
        );
        let y = tensor(y, shape);
        (y.clone(), stats.clone(), NormSaved { x: inputs[0].clone(), y, scale, stats })
    }

    fn backward(&self, saved: NormSaved, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let shape = saved.x.layout().shape().clone();
        let channels = saved.scale.len();
        let elements = values(&saved.x).len();
        let mut grad_x = vec![0.0; elements];
        // Without a ReLU the residual's gradient is the output's own.
        let mut grad_residual = (self.relu && wanted.get(3) == Some(&true)).then(|| vec![0.0; elements]);
        let (mut grad_scale, mut grad_shift) = (vec![0.0; channels], vec![0.0; channels]);
        norm::batch_norm_backward(
            self.isa,
            channels,
            values(&saved.x),
            values(&saved.y),
            &saved.scale,
            &saved.stats,
            self.relu,
            values(&grad),
            &mut grad_x,
            grad_residual.as_deref_mut(),
            &mut grad_scale,
            &mut grad_shift,
        );
        let mut results = [const { None }; N];
        results[0] = Some(tensor(grad_x, shape.clone()));
        results[1] = Some(tensor(natural(&self.order, &grad_scale), [channels]));
        results[2] = Some(tensor(natural(&self.order, &grad_shift), [channels]));
        if N == 4 {
            results[3] = match grad_residual {
                Some(data) => Some(tensor(data, shape)),
                None => wanted[3].then_some(grad),
            };
        }
        results
    }
}

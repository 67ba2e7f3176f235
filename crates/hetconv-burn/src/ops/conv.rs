//! Convolution: HetConv, standard, grouped and depthwise.

use std::sync::Arc;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_core::ConvKind;
use hetconv_kernels::norm::{BatchStats, NormBackward, NormGradients};
use hetconv_kernels::{
    Batch, ColumnSums, Conv, ConvWeights, ConvWeightsMut, Direction, Input, Isa, PackedWeights, zeros,
};

use super::norm::{Moments, NormKernel, NormOp, NormTensors, Normalisation};
use crate::Implementation;
use crate::composed::ComposedConv;
use crate::kernel::{Kernel, apply, array, flex, is_tracked, tensor, values, wrap};

/// The weights of a convolution, in canonical form and natural order.
#[derive(Clone, Debug)]
// Made for one call and taken apart by it.
#[allow(clippy::large_enum_variant)]
pub enum ConvTensors {
    /// Standard and grouped: `[N, M/groups, kh, kw]`.
    Dense(Tensor<4>),
    /// HetConv.
    Het {
        /// Centre taps `[N, M]`.
        center: Tensor<2>,
        /// The other taps of each filter's spatial channels `[N, S, kh·kw−1]`.
        ring: Tensor<3>,
    },
}

/// A convolution's input that a batch-norm makes of another activation.
#[derive(Clone, Debug)]
pub struct Normalised<'a> {
    /// The batch-norm.
    pub norm: &'a NormOp,
    /// What it reads.
    pub x: Tensor<4>,
    /// Its scale and shift.
    pub affine: NormTensors,
}

/// What is asked of a convolution beside its results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvRequest {
    /// Whether the kernels may use Winograd's algorithm in evaluation, too.
    pub fast: bool,
    /// Whether the sums of each channel's results are wanted, where the kernels can count them.
    pub sums: bool,
}

/// A convolution of NHWC activations, prepared for one image size.
#[derive(Clone, Debug)]
pub struct ConvOp {
    conv: Arc<Conv>,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Kernels(Isa),
    Composed(Arc<ComposedConv>),
}

impl ConvOp {
    /// A convolution computed by `implementation`.
    pub fn new(conv: Arc<Conv>, implementation: Implementation) -> Self {
        let form = match implementation {
            Implementation::Kernels(isa) => Form::Kernels(isa),
            Implementation::Composed => Form::Composed(Arc::new(ComposedConv::new(&conv))),
        };
        Self { conv, form }
    }

    /// The convolution's shape and orders.
    pub fn conv(&self) -> &Arc<Conv> {
        &self.conv
    }

    /// Differentiable in the input, the weights and the bias. The kernels may use Winograd's algorithm where a tensor is
    /// tracked by autodiff, and sum directly where none is: evaluation is exact.
    ///
    /// # Shapes
    /// * `input`: `[batch, height, width, M]`, channels in the convolution's input order
    /// * `bias`: `[N]`
    /// * result: `[batch, out height, out width, N]`, channels in its output order
    ///
    /// # Panics
    /// If a tensor has another shape, or the implementation is not one for its device.
    pub fn forward(&self, input: Tensor<4>, weights: ConvTensors, bias: Option<Tensor<1>>) -> Tensor<4> {
        self.forward_as_asked(input, weights, bias, ConvRequest::default()).0
    }

    /// As [`ConvOp::forward`], and the sums of each channel's results if they are asked for.
    ///
    /// # Panics
    /// As [`ConvOp::forward`].
    pub fn forward_as_asked(
        &self,
        input: Tensor<4>,
        weights: ConvTensors,
        bias: Option<Tensor<1>>,
        request: ConvRequest,
    ) -> (Tensor<4>, Option<ColumnSums>) {
        check(&self.conv, &input, &weights, bias.as_ref());
        let isa = match &self.form {
            Form::Kernels(isa) => *isa,
            Form::Composed(composed) => return (composed.forward(input, weights, bias), None),
        };
        let mut inputs = vec![input.into_dispatch()];
        inputs.extend(parameters(weights, bias));
        let kernel = self.kernel(isa, request, &inputs);
        let (output, sums) = match inputs.len() {
            2 => apply::<_, 2>(kernel, array(inputs)),
            3 => apply::<_, 3>(kernel, array(inputs)),
            _ => apply::<_, 4>(kernel, array(inputs)),
        };
        (Tensor::from_dispatch(output), sums)
    }

    /// As [`ConvOp::forward_as_asked`], of what a batch-norm without a residual makes of its input with the batch's own
    /// statistics, from the sums of that if they were counted; differentiable in the batch-norm's scale and shift too. It is
    /// computed by the convolution's implementation, whose kernels make the batch-norm's result where they read it and do
    /// not keep it.
    ///
    /// # Panics
    /// As [`ConvOp::forward`] and [`NormOp::forward`], or if the batch-norm's channels stand in another order than the
    /// convolution's input.
    pub fn forward_through_norm(
        &self,
        input: Normalised<'_>,
        sums: Option<ColumnSums>,
        weights: ConvTensors,
        bias: Option<Tensor<1>>,
        request: ConvRequest,
    ) -> (Tensor<4>, Option<ColumnSums>, Moments) {
        let Normalised { norm, x, affine } = input;
        let isa = match &self.form {
            Form::Kernels(isa) => *isa,
            Form::Composed(_) => {
                let (y, moments) = norm.forward_with_sums(x, sums, affine, None);
                let (output, sums) = self.forward_as_asked(y, weights, bias, request);
                return (output, sums, moments);
            }
        };
        self.check_norm(norm, &x, &affine);
        check(&self.conv, &x, &weights, bias.as_ref());
        let device = x.device().inner();
        let mut inputs = vec![x.into_dispatch(), affine.scale.into_dispatch(), affine.shift.into_dispatch()];
        inputs.extend(parameters(weights, bias));
        let conv = self.kernel(isa, request, &inputs);
        let kernel = NormConvKernel { norm: norm.kernel(isa, sums), conv };
        let (output, (stats, sums)) = match inputs.len() {
            4 => apply::<_, 4>(kernel, array(inputs)),
            5 => apply::<_, 5>(kernel, array(inputs)),
            _ => apply::<_, 6>(kernel, array(inputs)),
        };
        (Tensor::from_dispatch(output), sums, norm.moments(&stats, &device))
    }

    /// As [`ConvOp::forward_through_norm`] with fixed statistics, for evaluation: on tensors without autodiff.
    ///
    /// # Panics
    /// As [`ConvOp::forward_through_norm`], or if a tensor has autodiff.
    pub fn evaluate_through_norm(
        &self,
        input: Normalised<'_>,
        moments: Moments,
        weights: ConvTensors,
        bias: Option<Tensor<1>>,
        fast: bool,
    ) -> Tensor<4> {
        let request = ConvRequest { fast, sums: false };
        let Normalised { norm, x, affine } = input;
        let isa = match &self.form {
            Form::Kernels(isa) => *isa,
            Form::Composed(_) => {
                let y = norm.evaluate(x, affine, moments, None);
                return self.forward_as_asked(y, weights, bias, request).0;
            }
        };
        self.check_norm(norm, &x, &affine);
        check(&self.conv, &x, &weights, bias.as_ref());
        let fixed = norm.fixed(affine, moments);
        let mut inputs = vec![flex(x.into_dispatch())];
        inputs.extend(parameters(weights, bias).into_iter().map(flex));
        let input = Input::Scaled { x: values(&inputs[0]), affine: fixed.affine() };
        Tensor::from_dispatch(wrap(self.kernel(isa, request, &[]).compute(&inputs, input).0))
    }

    fn kernel(&self, isa: Isa, request: ConvRequest, inputs: &[DispatchTensor]) -> ConvKernel {
        let fast = request.fast || inputs.iter().any(is_tracked);
        ConvKernel { conv: self.conv.clone(), isa, request: ConvRequest { fast, ..request } }
    }

    fn check_norm(&self, norm: &NormOp, x: &Tensor<4>, affine: &NormTensors) {
        norm.check(x, affine, None);
        assert_eq!(norm.order(), &self.conv.spec().in_order, "channel order of a normalisation");
    }
}

/// Whether tensors have the shapes of a convolution.
pub(super) fn check(conv: &Conv, input: &Tensor<4>, weights: &ConvTensors, bias: Option<&Tensor<1>>) {
    let [_, height, width, channels] = input.dims();
    assert_eq!([height, width], conv.in_size(), "image size of a convolution prepared for another");
    let spec = conv.spec();
    assert_eq!(channels, spec.in_channels, "input channels of a convolution");
    let [kernel_height, kernel_width] = spec.geometry.kernel;
    match (weights, &spec.kind) {
        (ConvTensors::Dense(weight), kind) => {
            let groups = if let ConvKind::Grouped(groups) = kind { *groups } else { 1 };
            let dims = [spec.out_channels, channels / groups, kernel_height, kernel_width];
            assert_eq!(weight.dims(), dims, "shape of the weight");
        }
        (ConvTensors::Het { center, ring }, ConvKind::Het(pattern)) => {
            assert_eq!(center.dims(), [spec.out_channels, channels], "shape of the centre taps");
            let dims = [spec.out_channels, pattern.max_spatial(), spec.geometry.taps() - 1];
            assert_eq!(ring.dims(), dims, "shape of the other taps");
        }
        (ConvTensors::Het { .. }, kind) => panic!("HetConv's weights for {kind:?}"),
    }
    assert!(bias.is_none_or(|bias| bias.dims() == [spec.out_channels]), "shape of the bias");
}

/// Weight or centre and ring, and the bias if there is one.
pub(super) fn parameters(weights: ConvTensors, bias: Option<Tensor<1>>) -> Vec<DispatchTensor> {
    let mut parameters = match weights {
        ConvTensors::Dense(weight) => vec![weight.into_dispatch()],
        ConvTensors::Het { center, ring } => vec![center.into_dispatch(), ring.into_dispatch()],
    };
    parameters.extend(bias.map(Tensor::into_dispatch));
    parameters
}

/// Inputs: activation, weight or centre and ring, bias if there is one.
#[derive(Clone, Debug)]
struct ConvKernel {
    conv: Arc<Conv>,
    isa: Isa,
    request: ConvRequest,
}

impl ConvKernel {
    fn is_het(&self) -> bool {
        matches!(self.conv.spec().kind, ConvKind::Het(_))
    }

    /// Index of the bias among the inputs.
    fn bias(&self) -> usize {
        if self.is_het() { 3 } else { 2 }
    }

    fn pack(&self, direction: Direction, inputs: &[FlexTensor]) -> PackedWeights {
        let weights = if self.is_het() {
            ConvWeights::Het { center: values(&inputs[1]), ring: values(&inputs[2]) }
        } else {
            ConvWeights::Dense(values(&inputs[1]))
        };
        let algorithm = if self.request.fast { self.conv.fastest(self.isa, direction) } else { self.conv.exact() };
        self.conv.pack(self.isa, direction, algorithm, weights)
    }

    /// The output, and its sums if they are asked for; the activation is read as `input`.
    fn compute(&self, inputs: &[FlexTensor], input: Input<'_>) -> (FlexTensor, Option<ColumnSums>) {
        let batch = inputs[0].layout().shape()[0];
        let [height, width] = self.conv.out_size();
        let weights = self.pack(Direction::Forward, inputs);
        let bias = inputs.get(self.bias()).map(values);
        let (output, sums) = if self.request.sums {
            let (output, sums) = self.conv.forward_with_sums(batch, input, &weights, bias);
            (output, Some(sums))
        } else {
            (self.conv.forward_of(batch, input, &weights, bias), None)
        };
        (tensor(output, [batch, height, width, self.conv.spec().out_channels]), sums)
    }

    /// The gradients of every input that are wanted; through the batch-norm that made the activation, if there is one, whose
    /// other gradients come with them.
    fn gradients(
        &self,
        inputs: &[FlexTensor],
        batch: Batch<'_>,
        wanted: &[bool],
        norm: Option<&NormBackward<'_>>,
    ) -> (Vec<Option<FlexTensor>>, Option<NormGradients>) {
        let conv = &self.conv;
        let zeros = |index: usize| zeros(inputs[index].layout().num_elements());
        let like = |index: usize, data: Vec<f32>| tensor(data, inputs[index].layout().shape().clone());
        let mut results = vec![None; inputs.len()];
        let (mut by_input, mut others) = (None, None);
        let weights = wanted[0].then(|| self.pack(Direction::GradInput, inputs));
        if wanted[1] || (self.is_het() && wanted[2]) {
            let mut primary = zeros(1);
            let mut ring = if self.is_het() { zeros(2) } else { Vec::new() };
            let target = match self.is_het() {
                true => ConvWeightsMut::Het { center: &mut primary, ring: &mut ring },
                false => ConvWeightsMut::Dense(&mut primary),
            };
            let algorithm =
                if self.request.fast { conv.fastest_grad_weight(self.isa, batch.images) } else { conv.exact() };
            match &weights {
                Some(weights) => {
                    let (by, of_norm) = conv.backward(algorithm, batch, weights, target, norm);
                    (by_input, others) = (Some(by), of_norm);
                }
                None => conv.grad_weight(self.isa, algorithm, batch, target),
            }
            results[1] = Some(like(1, primary));
            if self.is_het() {
                results[2] = Some(like(2, ring));
            }
        } else if let Some(weights) = &weights {
            by_input = Some(match norm {
                None => conv.grad_input(batch.images, batch.grad_output, weights),
                Some(norm) => {
                    let (by, of_norm) = conv.grad_input_through_norm(batch.images, batch.grad_output, weights, norm);
                    others = Some(of_norm);
                    by
                }
            });
        }
        results[0] = by_input.map(|data| like(0, data));
        let bias = self.bias();
        if wanted.get(bias).is_some_and(|&wanted| wanted) {
            let mut grad_bias = zeros(bias);
            conv.grad_bias(batch.images, batch.grad_output, &mut grad_bias);
            results[bias] = Some(like(bias, grad_bias));
        }
        (results, others)
    }
}

/// What a backward pass reads.
fn batch<'a>(inputs: &[FlexTensor], input: Input<'a>, grad: &'a FlexTensor) -> Batch<'a> {
    Batch { images: inputs[0].layout().shape()[0], input, grad_output: values(grad) }
}

impl<const N: usize> Kernel<N> for ConvKernel {
    /// The inputs; the bias is not read again.
    type Saved = [FlexTensor; N];
    type Side = Option<ColumnSums>;

    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, Option<ColumnSums>, Self::Saved) {
        let (output, sums) = self.compute(inputs, Input::Plain(values(&inputs[0])));
        (output, sums, inputs.clone())
    }

    fn backward(&self, inputs: Self::Saved, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let batch = batch(&inputs, Input::Plain(values(&inputs[0])), &grad);
        array(self.gradients(&inputs, batch, &wanted, None).0)
    }
}

/// A convolution of what a batch-norm makes of an activation. Inputs: the activation, the batch-norm's scale and shift, and
/// those of [`ConvKernel`] behind its activation.
#[derive(Clone, Debug)]
struct NormConvKernel {
    norm: NormKernel,
    conv: ConvKernel,
}

#[derive(Clone, Debug)]
struct NormConvSaved {
    /// The activation, and the convolution's parameters.
    inputs: Vec<FlexTensor>,
    normalisation: Normalisation,
}

impl NormConvSaved {
    /// The batch-norm's result.
    fn input(&self) -> Input<'_> {
        Input::Scaled { x: values(&self.inputs[0]), affine: self.normalisation.does.affine() }
    }
}

impl<const N: usize> Kernel<N> for NormConvKernel {
    type Saved = NormConvSaved;
    type Side = (BatchStats, Option<ColumnSums>);

    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, Self::Side, NormConvSaved) {
        let normalisation = self.norm.normalisation(values(&inputs[0]), &inputs[1], &inputs[2]);
        let inputs = [&inputs[..1], &inputs[3..]].concat();
        let saved = NormConvSaved { inputs, normalisation };
        let (output, sums) = self.conv.compute(&saved.inputs, saved.input());
        (output, (saved.normalisation.stats.clone(), sums), saved)
    }

    fn backward(&self, saved: NormConvSaved, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let through = wanted[..3].contains(&true);
        let of_conv = [&[through], &wanted[3..]].concat();
        let norm = saved.normalisation.backward(values(&saved.inputs[0]));
        let batch = batch(&saved.inputs, saved.input(), &grad);
        let (results, others) = self.conv.gradients(&saved.inputs, batch, &of_conv, Some(&norm));
        let by_affine = others.map(|others| self.norm.by_affine(&others.gamma, &others.beta).map(Some));
        let mut results = results.into_iter();
        let by_x = results.next().flatten();
        array([by_x].into_iter().chain(by_affine.unwrap_or([None, None])).chain(results).collect())
    }
}

//! Convolution: HetConv, standard, grouped and depthwise.

use std::sync::Arc;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_core::ConvKind;
use hetconv_kernels::{Algorithm, ColumnSums, Conv, ConvWeights, ConvWeightsMut, Direction, Isa, PackedWeights};

use crate::Implementation;
use crate::composed::ComposedConv;
use crate::kernel::{Kernel, apply, is_tracked, tensor, values};

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
        self.forward_with_sums(input, weights, bias, false).0
    }

    /// As [`ConvOp::forward`], with the sums of each channel's results where the kernels count them. If `fast`, the kernels
    /// may use Winograd's algorithm in evaluation too.
    ///
    /// # Panics
    /// As [`ConvOp::forward`].
    pub fn forward_with_sums(
        &self,
        input: Tensor<4>,
        weights: ConvTensors,
        bias: Option<Tensor<1>>,
        fast: bool,
    ) -> (Tensor<4>, Option<ColumnSums>) {
        let [_, height, width, channels] = input.dims();
        assert_eq!([height, width], self.conv.in_size(), "image size of a convolution prepared for another");
        let spec = self.conv.spec();
        assert_eq!(channels, spec.in_channels, "input channels of a convolution");
        let [kernel_height, kernel_width] = spec.geometry.kernel;
        match (&weights, &spec.kind) {
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
        assert!(bias.as_ref().is_none_or(|bias| bias.dims() == [spec.out_channels]), "shape of the bias");
        let isa = match &self.form {
            Form::Kernels(isa) => *isa,
            Form::Composed(composed) => return (composed.forward(input, weights, bias), None),
        };
        let kernel = ConvKernel { conv: self.conv.clone(), isa, fast };
        let input = input.into_dispatch();
        let (output, sums) = match (weights, bias.map(Tensor::into_dispatch)) {
            (ConvTensors::Dense(weight), None) => kernel.apply([input, weight.into_dispatch()]),
            (ConvTensors::Dense(weight), Some(bias)) => kernel.apply([input, weight.into_dispatch(), bias]),
            (ConvTensors::Het { center, ring }, None) => {
                kernel.apply([input, center.into_dispatch(), ring.into_dispatch()])
            }
            (ConvTensors::Het { center, ring }, Some(bias)) => {
                kernel.apply([input, center.into_dispatch(), ring.into_dispatch(), bias])
            }
        };
        (Tensor::from_dispatch(output), Some(sums))
    }
}

/// Inputs: activation, weight or centre and ring, bias if there is one.
#[derive(Clone, Debug)]
struct ConvKernel {
    conv: Arc<Conv>,
    isa: Isa,
    /// Whether another algorithm than the direct one may be used.
    fast: bool,
}

impl ConvKernel {
    fn apply<const N: usize>(self, inputs: [DispatchTensor; N]) -> (DispatchTensor, ColumnSums) {
        let fast = self.fast || inputs.iter().any(is_tracked);
        apply(Self { fast, ..self }, inputs)
    }

    fn is_het(&self) -> bool {
        matches!(self.conv.spec().kind, ConvKind::Het(_))
    }

    /// Index of the bias among the inputs.
    fn bias(&self) -> usize {
        if self.is_het() { 3 } else { 2 }
    }

    fn pack(&self, direction: Direction, inputs: &[FlexTensor]) -> PackedWeights {
        let algorithm = if self.fast { self.conv.fastest(self.isa, direction) } else { Algorithm::Direct };
        self.conv.pack(self.isa, direction, algorithm, self.weights(inputs))
    }

    fn weights<'a>(&self, inputs: &'a [FlexTensor]) -> ConvWeights<'a> {
        if self.is_het() {
            ConvWeights::Het { center: values(&inputs[1]), ring: values(&inputs[2]) }
        } else {
            ConvWeights::Dense(values(&inputs[1]))
        }
    }
}

impl<const N: usize> Kernel<N> for ConvKernel {
    /// The inputs; the bias is not read again.
    type Saved = [FlexTensor; N];
    type Side = ColumnSums;

    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, ColumnSums, Self::Saved) {
        let batch = inputs[0].layout().shape()[0];
        let [height, width] = self.conv.out_size();
        let weights = self.pack(Direction::Forward, inputs);
        let bias = inputs.get(self.bias()).map(values);
        let (output, sums) = self.conv.forward_with_sums(batch, values(&inputs[0]), &weights, bias);
        (tensor(output, [batch, height, width, self.conv.spec().out_channels]), sums, inputs.clone())
    }

    fn backward(&self, inputs: Self::Saved, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let batch = inputs[0].layout().shape()[0];
        let grad_output = values(&grad);
        let zeros = |index: usize| vec![0.0f32; inputs[index].layout().num_elements()];
        let like = |index: usize, data: Vec<f32>| tensor(data, inputs[index].layout().shape().clone());
        let mut results = [const { None }; N];
        if wanted[1] || (self.is_het() && wanted[2]) {
            let mut primary = zeros(1);
            let algorithm = if self.fast { self.conv.fastest_grad_weight(self.isa, batch) } else { Algorithm::Direct };
            if self.is_het() {
                let mut ring = zeros(2);
                let target = ConvWeightsMut::Het { center: &mut primary, ring: &mut ring };
                self.conv.grad_weight(self.isa, algorithm, batch, values(&inputs[0]), grad_output, target);
                results[2] = Some(like(2, ring));
            } else {
                let target = ConvWeightsMut::Dense(&mut primary);
                self.conv.grad_weight(self.isa, algorithm, batch, values(&inputs[0]), grad_output, target);
            }
            results[1] = Some(like(1, primary));
        }
        let bias = self.bias();
        if wanted.get(bias).is_some_and(|&wanted| wanted) {
            let mut grad_bias = zeros(bias);
            self.conv.grad_bias(batch, grad_output, &mut grad_bias);
            results[bias] = Some(like(bias, grad_bias));
        }
        if wanted[0] {
            let weights = self.pack(Direction::GradInput, &inputs);
            results[0] = Some(like(0, self.conv.grad_input(batch, grad_output, &weights)));
        }
        results
    }
}

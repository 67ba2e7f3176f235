//! HetConv of activations in natural order.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_kernels::{ConvWeights, ConvWeightsMut, Direction, Isa, PackedWeights, Reordered, zeros};

use super::conv::{ConvTensors, check, parameters};
use crate::kernel::{Kernel, apply, array, is_tracked, tensor, values};

/// A HetConv layer of NHWC activations in natural order, prepared for one image size, on the CPU device: channels come into
/// the order of the kernels and back within the convolution.
#[derive(Clone, Debug)]
pub struct NaturalConvOp {
    conv: Arc<Reordered>,
    isa: Isa,
}

impl NaturalConvOp {
    /// The convolution on an instruction set.
    pub fn new(conv: Arc<Reordered>, isa: Isa) -> Self {
        Self { conv, isa }
    }

    /// The convolution in the orders of the kernels.
    pub fn conv(&self) -> &Reordered {
        &self.conv
    }

    /// As [`ConvOp::forward`](super::ConvOp::forward), with all channels in natural order.
    ///
    /// # Panics
    /// If a tensor has another shape, is not on the CPU device, or the weights are not HetConv's.
    pub fn forward(&self, input: Tensor<4>, weights: ConvTensors, bias: Option<Tensor<1>>) -> Tensor<4> {
        check(self.conv.conv(), &input, &weights, bias.as_ref());
        assert!(matches!(weights, ConvTensors::Het { .. }), "HetConv's weights");
        let mut inputs = vec![input.into_dispatch()];
        inputs.extend(parameters(weights, bias));
        let fast = inputs.iter().any(is_tracked);
        let kernel = NaturalKernel { conv: self.conv.clone(), isa: self.isa, fast };
        let (output, ()) = match inputs.len() {
            3 => apply::<_, 3>(kernel, array(inputs)),
            _ => apply::<_, 4>(kernel, array(inputs)),
        };
        Tensor::from_dispatch(output)
    }
}

/// Inputs: activation, centre, ring, bias if there is one.
#[derive(Clone, Debug)]
struct NaturalKernel {
    conv: Arc<Reordered>,
    isa: Isa,
    /// Whether Winograd's algorithm may be used.
    fast: bool,
}

impl NaturalKernel {
    fn pack(&self, direction: Direction, inputs: &[FlexTensor]) -> PackedWeights {
        let conv = self.conv.conv();
        let algorithm = if self.fast { conv.fastest(self.isa, direction) } else { conv.exact() };
        let weights = ConvWeights::Het { center: values(&inputs[1]), ring: values(&inputs[2]) };
        conv.pack(self.isa, direction, algorithm, weights)
    }
}

impl<const N: usize> Kernel<N> for NaturalKernel {
    /// The inputs; the bias is not read again.
    type Saved = [FlexTensor; N];
    type Side = ();

    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, (), Self::Saved) {
        let (conv, images) = (self.conv.conv(), inputs[0].layout().shape()[0]);
        let [height, width] = conv.out_size();
        let shape = [images, height, width, conv.spec().out_channels];
        let mut output = zeros(shape.iter().product());
        let weights = self.pack(Direction::Forward, inputs);
        self.conv.forward(images, values(&inputs[0]), &weights, inputs.get(3).map(values), &mut output);
        (tensor(output, shape), (), inputs.clone())
    }

    fn backward(&self, inputs: Self::Saved, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let (images, grad) = (inputs[0].layout().shape()[0], values(&grad));
        let zeros = |index: usize| zeros(inputs[index].layout().num_elements());
        let like = |index: usize, data: Vec<f32>| Some(tensor(data, inputs[index].layout().shape().clone()));
        let mut results = vec![None; N];
        if wanted[0] {
            let mut by_input = zeros(0);
            self.conv.grad_input(images, grad, &self.pack(Direction::GradInput, &inputs), &mut by_input);
            results[0] = like(0, by_input);
        }
        if wanted[1] || wanted[2] {
            let conv = self.conv.conv();
            let algorithm = if self.fast { conv.fastest_grad_weight(self.isa, images) } else { conv.exact() };
            let (mut center, mut ring) = (zeros(1), zeros(2));
            let target = ConvWeightsMut::Het { center: &mut center, ring: &mut ring };
            self.conv.grad_weight(self.isa, algorithm, images, values(&inputs[0]), grad, target);
            (results[1], results[2]) = (like(1, center), like(2, ring));
        }
        if wanted.get(3) == Some(&true) {
            let mut by_bias = zeros(3);
            self.conv.grad_bias(images, grad, &mut by_bias);
            results[3] = like(3, by_bias);
        }
        array(results)
    }
}

//! Channels scaled by a number of their own: the end of squeeze-and-excitation.

use burn::tensor::{Tensor, activation};
use burn_flex::FlexTensor;
use hetconv_kernels::Isa;
use hetconv_kernels::scale::{scale_channels as forward, scale_channels_backward as backward};

use crate::Implementation;
use crate::kernel::{Kernel, apply, tensor, values, values_mut};

/// act(x·scale), act being ReLU or nothing.
///
/// # Shapes
/// * `x`, result: `[batch, height, width, channels]`
/// * `scale`: `[batch, 1, 1, channels]`
///
/// # Panics
/// If the shapes do not fit, or the implementation is not one for the device.
pub fn scale_channels(implementation: Implementation, x: Tensor<4>, scale: Tensor<4>, relu: bool) -> Tensor<4> {
    let [batch, _, _, channels] = x.dims();
    assert_eq!(scale.dims(), [batch, 1, 1, channels], "shape of the scale");
    match implementation {
        Implementation::Kernels(isa) => {
            let inputs = [x.into_dispatch(), scale.into_dispatch()];
            Tensor::from_dispatch(apply(ScaleKernel { isa, relu }, inputs).0)
        }
        Implementation::Composed if relu => activation::relu(x * scale),
        Implementation::Composed => x * scale,
    }
}

#[derive(Clone, Copy, Debug)]
struct ScaleKernel {
    isa: Isa,
    relu: bool,
}

impl Kernel<2> for ScaleKernel {
    type Saved = [FlexTensor; 2];
    type Side = ();

    fn forward(&self, inputs: &[FlexTensor; 2]) -> (FlexTensor, (), [FlexTensor; 2]) {
        let [x, scale] = inputs;
        let shape = x.layout().shape().clone();
        let y = forward(self.isa, shape[3], values(x), values(scale), self.relu);
        (tensor(y, shape), (), inputs.clone())
    }

    fn backward(&self, [x, scale]: Self::Saved, mut grad: FlexTensor, _wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let channels = x.layout().shape()[3];
        let by_scale = backward(self.isa, channels, values(&x), values(&scale), self.relu, values_mut(&mut grad));
        [Some(grad), Some(tensor(by_scale, scale.layout().shape().clone()))]
    }
}

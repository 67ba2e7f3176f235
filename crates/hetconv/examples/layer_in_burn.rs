//! The layer in somebody's own Burn model.

use std::error::Error;

use burn::tensor::{Device, Distribution, Tensor, activation::relu};
use hetconv::burn::HetConv2dConfig;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex().autodiff();
    // 64 channels to 128 filters, 3×3, P = 4, stride 2.
    let layer = HetConv2dConfig::new([64, 128], [3, 3], 4).with_stride([2, 2]).init(&device);
    let images = Tensor::random([8, 64, 16, 16], Distribution::Default, &device);
    let output = relu(layer.forward(images));
    assert_eq!(output.dims(), [8, 128, 8, 8]);
    let gradients = output.sum().backward();
    drop(gradients);
    Ok(())
}

//! Pooling of NHWC activations.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_core::Conv2dGeometry;
use hetconv_kernels::pool::{self, PooledImages};
use hetconv_kernels::{Isa, zeros};

use crate::Implementation;
use crate::composed;
use crate::kernel::{Kernel, apply, tensor, values};

/// What a window gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Its largest value; padding never wins.
    Max,
    /// The mean of its values.
    Avg {
        /// Whether padded zeros count as values.
        count_padding: bool,
    },
}

/// Max or average pooling with a fixed image size.
#[derive(Clone, Debug)]
pub struct PoolOp {
    kind: PoolKind,
    geometry: Conv2dGeometry,
    in_size: [usize; 2],
    out_size: [usize; 2],
    implementation: Implementation,
}

impl PoolOp {
    /// Pooling of images of `[height, width]` pixels.
    ///
    /// # Errors
    /// The window does not fit.
    pub fn new(
        kind: PoolKind,
        geometry: Conv2dGeometry,
        in_size: [usize; 2],
        implementation: Implementation,
    ) -> Result<Self, hetconv_core::GeometryError> {
        let out_size = geometry.output_size(in_size)?;
        Ok(Self { kind, geometry, in_size, out_size, implementation })
    }

    /// # Shapes
    /// * `input`: `[batch, height, width, channels]`
    /// * result: `[batch, out height, out width, channels]`
    ///
    /// # Panics
    /// If the image size is another one, or the implementation is not one for the device.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [_, height, width, _] = input.dims();
        assert_eq!([height, width], self.in_size, "image size of a pooling prepared for another");
        match (self.implementation, self.kind) {
            (Implementation::Kernels(isa), PoolKind::Max) => {
                Tensor::from_dispatch(apply(MaxKernel { pool: self.clone(), isa }, [input.into_dispatch()]).0)
            }
            (Implementation::Kernels(isa), PoolKind::Avg { count_padding }) => {
                let kernel = AvgKernel { pool: self.clone(), isa, count_padding };
                Tensor::from_dispatch(apply(kernel, [input.into_dispatch()]).0)
            }
            (Implementation::Composed, PoolKind::Max) => composed::max_pool(&self.geometry, input),
            (Implementation::Composed, PoolKind::Avg { count_padding }) => {
                composed::avg_pool(&self.geometry, count_padding, input)
            }
        }
    }

    fn out_shape(&self, input: &FlexTensor) -> [usize; 4] {
        let shape = input.layout().shape();
        [shape[0], self.out_size[0], self.out_size[1], shape[3]]
    }

    /// The images of a batch of this shape, before or after.
    fn images(&self, [batch, .., channels]: [usize; 4]) -> PooledImages<'_> {
        PooledImages { geometry: &self.geometry, batch, size: self.in_size, channels }
    }

    fn in_shape(&self, output: &FlexTensor) -> [usize; 4] {
        let shape = output.layout().shape();
        [shape[0], self.in_size[0], self.in_size[1], shape[3]]
    }
}

/// The mean over all pixels of each channel.
///
/// # Shapes
/// * `input`: `[batch, height, width, channels]`
/// * result: `[batch, 1, 1, channels]`
pub fn global_avg_pool(implementation: Implementation, input: Tensor<4>) -> Tensor<4> {
    match implementation {
        Implementation::Kernels(isa) => Tensor::from_dispatch(apply(GlobalAvgKernel(isa), [input.into_dispatch()]).0),
        Implementation::Composed => input.mean_dim(2).mean_dim(1),
    }
}

#[derive(Clone, Debug)]
struct MaxKernel {
    pool: PoolOp,
    isa: Isa,
}

impl Kernel<1> for MaxKernel {
    /// For every output, where in the image its value stood.
    type Saved = Vec<u32>;
    type Side = ();

    fn forward(&self, [input]: &[FlexTensor; 1]) -> (FlexTensor, (), Vec<u32>) {
        let shape = self.pool.out_shape(input);
        let elements = shape.iter().product();
        let (mut output, mut argmax) = (zeros(elements), zeros(elements));
        let x = values(input);
        pool::max_pool_forward(self.isa, self.pool.images(shape), x, &mut output, &mut argmax);
        (tensor(output, shape), (), argmax)
    }

    fn backward(&self, argmax: Vec<u32>, grad: FlexTensor, _wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let shape = self.pool.in_shape(&grad);
        let mut grad_input = zeros(shape.iter().product());
        let grad = values(&grad);
        pool::max_pool_backward(self.isa, self.pool.images(shape), &argmax, grad, &mut grad_input);
        [Some(tensor(grad_input, shape))]
    }
}

#[derive(Clone, Debug)]
struct AvgKernel {
    pool: PoolOp,
    isa: Isa,
    count_padding: bool,
}

impl Kernel<1> for AvgKernel {
    type Saved = ();
    type Side = ();

    fn forward(&self, [input]: &[FlexTensor; 1]) -> (FlexTensor, (), ()) {
        let shape = self.pool.out_shape(input);
        let mut output = zeros(shape.iter().product());
        let x = values(input);
        pool::avg_pool_forward(self.isa, self.pool.images(shape), self.count_padding, x, &mut output);
        (tensor(output, shape), (), ())
    }

    fn backward(&self, (): (), grad: FlexTensor, _wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let shape = self.pool.in_shape(&grad);
        let mut grad_input = zeros(shape.iter().product());
        let grad = values(&grad);
        pool::avg_pool_backward(self.isa, self.pool.images(shape), self.count_padding, grad, &mut grad_input);
        [Some(tensor(grad_input, shape))]
    }
}

#[derive(Clone, Copy, Debug)]
struct GlobalAvgKernel(Isa);

impl Kernel<1> for GlobalAvgKernel {
    /// Shape of the input.
    type Saved = [usize; 4];
    type Side = ();

    fn forward(&self, [input]: &[FlexTensor; 1]) -> (FlexTensor, (), [usize; 4]) {
        let shape: [usize; 4] = input.layout().shape().dims();
        let [batch, height, width, channels] = shape;
        let mut output = zeros(batch * channels);
        pool::global_avg_forward(self.0, batch, height * width, channels, values(input), &mut output);
        (tensor(output, [batch, 1, 1, channels]), (), shape)
    }

    fn backward(&self, shape: [usize; 4], grad: FlexTensor, _wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let [batch, height, width, channels] = shape;
        let mut grad_input = zeros(shape.iter().product());
        pool::global_avg_backward(self.0, batch, height * width, channels, values(&grad), &mut grad_input);
        [Some(tensor(grad_input, shape))]
    }
}

//! Gradients of single convolutions against finite differences. A convolution is linear in its input, in its weights and
//! in its bias, so that a difference of any width is exact but for rounding.

mod common;

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use common::{Numbers, assert_close};
use hetconv_burn::Implementation;
use hetconv_burn::ops::{ConvOp, ConvTensors};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::{Conv, ConvSpec, Isa};

const BATCH: usize = 2;
const IN_SIZE: [usize; 2] = [6, 5];
/// Half the width of a difference.
const STEP: f32 = 0.5;

fn layers() -> Vec<ConvSpec> {
    let het = |m, n, parts| ConvKind::Het(HetPattern::shifted(m, n, parts).expect("a pattern"));
    let uneven = HetPattern::assigned(vec![0, 2, 2, 0, 2, 1], vec![2, 0, 3, 1, 2]).expect("a pattern");
    let wide = Conv2dGeometry { kernel: [3, 5], stride: [2, 1], padding: [1, 3, 0, 2], dilation: [1, 1] };
    vec![
        // P divides M and N, or neither: then some slots of the ring are spare.
        ConvSpec::natural(8, 4, Conv2dGeometry::same(3, 1), het(8, 4, 4)),
        ConvSpec::natural(7, 5, Conv2dGeometry::same(3, 2), het(7, 5, 3)),
        ConvSpec::natural(6, 5, wide.clone(), ConvKind::Het(uneven)),
        ConvSpec::natural(6, 4, Conv2dGeometry::same(3, 1), ConvKind::Grouped(2)),
        ConvSpec::natural(6, 9, wide, ConvKind::Grouped(3)),
        ConvSpec::natural(5, 5, Conv2dGeometry::same(3, 1), ConvKind::Grouped(5)),
        ConvSpec::natural(5, 5, Conv2dGeometry::square(3, 2, 2, 2), ConvKind::Grouped(5)),
        ConvSpec::natural(3, 6, Conv2dGeometry::same(3, 1), ConvKind::Standard),
    ]
}

/// What a layer is differentiated by: names and shapes.
fn leaves(spec: &ConvSpec) -> Vec<(&'static str, Vec<usize>)> {
    let (m, n, [height, width]) = (spec.in_channels, spec.out_channels, spec.geometry.kernel);
    let weights = match &spec.kind {
        ConvKind::Standard => vec![("weight", vec![n, m, height, width])],
        ConvKind::Grouped(groups) => vec![("weight", vec![n, m / groups, height, width])],
        ConvKind::Het(pattern) => {
            vec![("center", vec![n, m]), ("ring", vec![n, pattern.max_spatial(), height * width - 1])]
        }
    };
    let input = ("x", vec![BATCH, IN_SIZE[0], IN_SIZE[1], m]);
    [vec![input], weights, vec![("bias", vec![n])]].concat()
}

/// A layer's leaves as tensors, with these numbers in them.
struct Tensors {
    x: Tensor<4>,
    weights: ConvTensors,
    bias: Tensor<1>,
}

impl Tensors {
    fn new(spec: &ConvSpec, numbers: &[Vec<f32>], device: &Device) -> Self {
        fn tensor<const D: usize>(shape: &[usize], numbers: &[f32], device: &Device) -> Tensor<D> {
            let tensor = Tensor::from_data(TensorData::new(numbers.to_vec(), shape.to_vec()), device);
            if device.is_autodiff() { tensor.require_grad() } else { tensor }
        }
        let shapes = leaves(spec);
        let shape = |leaf: usize| shapes[leaf].1.as_slice();
        let last = numbers.len() - 1;
        let weights = match &spec.kind {
            ConvKind::Het(_) => ConvTensors::Het {
                center: tensor(shape(1), &numbers[1], device),
                ring: tensor(shape(2), &numbers[2], device),
            },
            ConvKind::Standard | ConvKind::Grouped(_) => ConvTensors::Dense(tensor(shape(1), &numbers[1], device)),
        };
        Self { x: tensor(shape(0), &numbers[0], device), weights, bias: tensor(shape(last), &numbers[last], device) }
    }

    fn forward(&self, op: &ConvOp) -> Tensor<4> {
        op.forward(self.x.clone(), self.weights.clone(), Some(self.bias.clone()))
    }

    /// The gradients of ⟨y, upstream⟩, in the order of [`leaves`].
    fn gradients(&self, op: &ConvOp, upstream: &[f32]) -> Vec<Vec<f32>> {
        fn read<const D: usize>(leaf: &Tensor<D>, gradients: &burn::tensor::Gradients) -> Vec<f32> {
            leaf.grad(gradients).expect("a gradient").into_data().iter::<f32>().collect()
        }
        let y = self.forward(op);
        let upstream = Tensor::from_data(TensorData::new(upstream.to_vec(), y.dims()), &y.device());
        let by = (y * upstream).sum().backward();
        let weights = match &self.weights {
            ConvTensors::Dense(weight) => vec![read(weight, &by)],
            ConvTensors::Het { center, ring } => vec![read(center, &by), read(ring, &by)],
        };
        [vec![read(&self.x, &by)], weights, vec![read(&self.bias, &by)]].concat()
    }
}

/// ⟨y, upstream⟩, summed in float64.
fn loss(spec: &ConvSpec, op: &ConvOp, numbers: &[Vec<f32>], upstream: &[f32]) -> f64 {
    let y = Tensors::new(spec, numbers, &Device::flex()).forward(op).into_data();
    y.iter::<f32>().zip(upstream).map(|(y, &upstream)| f64::from(y) * f64::from(upstream)).sum()
}

#[test]
fn every_gradient_of_a_convolution() {
    let kernels = Isa::available().into_iter().map(Implementation::Kernels);
    let implementations: Vec<Implementation> = kernels.chain([Implementation::Composed]).collect();
    println!("ran on {implementations:?}");
    for (seed, spec) in (0..).zip(layers()) {
        let conv = Arc::new(Conv::new(spec.clone(), IN_SIZE).expect("a convolution"));
        for &implementation in &implementations {
            let op = ConvOp::new(conv.clone(), implementation);
            let mut random = Numbers(seed);
            let mut numbers: Vec<Vec<f32>> =
                leaves(&spec).iter().map(|(_, shape)| random.vec(shape.iter().product())).collect();
            let [height, width] = conv.out_size();
            let upstream = random.vec(BATCH * height * width * spec.out_channels);
            let found = Tensors::new(&spec, &numbers, &Device::flex().autodiff()).gradients(&op, &upstream);
            for (leaf, (name, _)) in leaves(&spec).iter().enumerate() {
                let differences: Vec<f64> = (0..numbers[leaf].len())
                    .map(|i| {
                        let here = numbers[leaf][i];
                        let mut at = |value: f32| {
                            numbers[leaf][i] = value;
                            loss(&spec, &op, &numbers, &upstream)
                        };
                        let (above, below) = (here + STEP, here - STEP);
                        let slope = (at(above) - at(below)) / (f64::from(above) - f64::from(below));
                        numbers[leaf][i] = here;
                        slope
                    })
                    .collect();
                assert!(differences.iter().any(|&slope| slope.abs() > 0.1), "{name}: nothing to see");
                let what = format!("{name} of {spec:?} by {implementation:?}");
                assert_close(&what, &found[leaf], &differences, 2e-4);
            }
        }
    }
}

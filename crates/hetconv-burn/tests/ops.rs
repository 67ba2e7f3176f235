//! Every operation composed of Burn's own equals the kernels: results and gradients, one by one, with random upstream
//! gradients.

mod common;

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use common::{Numbers, assert_close, wide};
use hetconv_burn::Implementation;
use hetconv_burn::ops::{
    ConvOp, ConvRequest, ConvTensors, Moments, NormOp, NormTensors, Normalised, PoolKind, PoolOp, cross_entropy,
    global_avg_pool, scale_channels,
};
use hetconv_core::{ChannelOrder, Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::{Algorithm, Conv, ConvSpec, Direction, Isa};

/// Leaves of one run, and what came of them.
struct Run {
    device: Device,
    numbers: Numbers,
    results: Vec<(String, Vec<f32>)>,
}

impl Run {
    fn leaf<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let data = self.numbers.vec(shape.iter().product());
        Tensor::from_data(TensorData::new(data, shape), &self.device).require_grad()
    }

    fn record<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) {
        self.results.push((name.to_owned(), tensor.into_data().iter::<f32>().collect()));
    }

    /// Records a result and the loss's gradients by it: the sum of its products with random numbers.
    fn backward<const D: usize>(&mut self, y: Tensor<D>) -> burn::tensor::Gradients {
        self.record("y", y.clone());
        let upstream = self.leaf(y.dims()).detach();
        (y * upstream).sum().backward()
    }

    fn gradient<const D: usize>(&mut self, name: &str, leaf: &Tensor<D>, grads: &burn::tensor::Gradients) {
        let gradient = leaf.grad(grads).unwrap_or_else(|| panic!("a gradient of {name}"));
        self.record(name, gradient);
    }
}

/// Runs `scenario` with both implementations on the same numbers and compares all it recorded.
fn compare(what: &str, seed: u64, tolerance: f64, scenario: impl Fn(&mut Run, Implementation)) {
    let kernels = Implementation::Kernels(Isa::selected().expect("an instruction set"));
    let [kernels, composed] = [kernels, Implementation::Composed].map(|implementation| {
        let mut run = Run { device: Device::flex().autodiff(), numbers: Numbers(seed), results: Vec::new() };
        scenario(&mut run, implementation);
        run.results
    });
    assert_eq!(kernels.len(), composed.len());
    for ((name, got), (_, want)) in kernels.iter().zip(&composed) {
        assert!(want.iter().any(|&value| value != 0.0), "{what} {name}: nothing but zeros");
        assert_close(&format!("{what} {name}"), got, &wide(want), tolerance);
    }
}

fn random_order(channels: usize, numbers: &mut Numbers) -> ChannelOrder {
    let mut order: Vec<u32> = (0..channels as u32).collect();
    for i in (1..channels).rev() {
        order.swap(i, numbers.below(i + 1));
    }
    ChannelOrder::from_channels(order).expect("a permutation")
}

fn random_spec(numbers: &mut Numbers) -> (ConvSpec, [usize; 2]) {
    let kernel = [1 + 2 * numbers.below(2), 1 + 2 * numbers.below(3)];
    let geometry = Conv2dGeometry {
        kernel,
        stride: [1 + numbers.below(3), 1 + numbers.below(2)],
        padding: [(); 4].map(|()| numbers.below(3)),
        dilation: [1 + numbers.below(2), 1 + numbers.below(2)],
    };
    let (mut m, mut n) = (1 + numbers.below(20), 1 + numbers.below(20));
    let kind = match numbers.below(5) {
        0 => ConvKind::Standard,
        1 => {
            let groups = 1 + numbers.below(4);
            (m, n) = (groups * (1 + m / 4), groups * (1 + n / 4));
            ConvKind::Grouped(groups)
        }
        2 => {
            n = m;
            ConvKind::Grouped(m)
        }
        3 => ConvKind::Het(HetPattern::shifted(m, n, 1 + numbers.below(m)).expect("a pattern")),
        _ => {
            let mut classes = |count: usize| (0..count).map(|_| numbers.below(4.min(m.max(n))) as u32).collect();
            let (channels, filters) = (classes(m), classes(n));
            ConvKind::Het(HetPattern::assigned(channels, filters).expect("a pattern"))
        }
    };
    let in_order = random_order(m, numbers);
    let out_order = if kind == ConvKind::Grouped(m) && m == n { in_order.clone() } else { random_order(n, numbers) };
    let spec = ConvSpec { in_channels: m, out_channels: n, geometry, kind, in_order, out_order };
    (spec, [9 + numbers.below(4), 9 + numbers.below(4)])
}

#[test]
fn convolutions() {
    let mut numbers = Numbers(1);
    for case in 0..60 {
        let (spec, in_size) = random_spec(&mut numbers);
        let (bias, batch) = (numbers.below(2) == 1, 1 + numbers.below(3));
        let conv = Arc::new(Conv::new(spec.clone(), in_size).expect("a convolution"));
        compare(&format!("case {case} {spec:?} {in_size:?}"), case, 1e-4, |run, implementation| {
            let op = ConvOp::new(conv.clone(), implementation);
            let x = run.leaf([batch, in_size[0], in_size[1], spec.in_channels]);
            let bias = bias.then(|| run.leaf([spec.out_channels]));
            let (n, taps) = (spec.out_channels, spec.geometry.taps());
            match &spec.kind {
                ConvKind::Standard | ConvKind::Grouped(_) => {
                    let groups = if let ConvKind::Grouped(groups) = spec.kind { groups } else { 1 };
                    let [kh, kw] = spec.geometry.kernel;
                    let weight = run.leaf([n, spec.in_channels / groups, kh, kw]);
                    let grads = run.backward(op.forward(x.clone(), ConvTensors::Dense(weight.clone()), bias.clone()));
                    run.gradient("weight", &weight, &grads);
                    run.gradient("x", &x, &grads);
                    bias.inspect(|bias| run.gradient("bias", bias, &grads));
                }
                ConvKind::Het(pattern) => {
                    let center = run.leaf([n, spec.in_channels]);
                    let ring = run.leaf([n, pattern.max_spatial().max(1), (taps - 1).max(1)]);
                    // Nothing but a centre: an empty ring.
                    let empty = pattern.max_spatial() == 0 || taps == 1;
                    let shape = [n, pattern.max_spatial(), taps - 1];
                    let used = if empty { Tensor::zeros(shape, &run.device) } else { ring.clone() };
                    let weights = ConvTensors::Het { center: center.clone(), ring: used };
                    let grads = run.backward(op.forward(x.clone(), weights, bias.clone()));
                    run.gradient("center", &center, &grads);
                    if !empty {
                        run.gradient("ring", &ring, &grads);
                    }
                    run.gradient("x", &x, &grads);
                    bias.inspect(|bias| run.gradient("bias", bias, &grads));
                }
            }
        });
    }
}

/// The same whether a convolution reads a batch-norm's result or makes it.
#[test]
fn convolutions_of_batch_norms() {
    let mut numbers = Numbers(8);
    for case in 0..40 {
        let (mut spec, in_size) = random_spec(&mut numbers);
        let (bias, batch, relu) = (numbers.below(2) == 1, 2 + numbers.below(3), numbers.below(2) == 1);
        if case >= 36 {
            // Wide enough for Winograd's algorithm.
            let pattern = HetPattern::shifted(64, 64, 2).expect("a pattern");
            let kind = if case % 2 == 0 { ConvKind::Standard } else { ConvKind::Het(pattern) };
            spec = ConvSpec::by_class(64, 64, Conv2dGeometry::same(3, 1), kind);
        }
        let conv = Arc::new(Conv::new(spec.clone(), in_size).expect("a convolution"));
        assert!(case < 36 || conv.fastest(Isa::selected().expect("one"), Direction::Forward) == Algorithm::Winograd);
        compare(&format!("case {case} {spec:?} {in_size:?}"), case, 5e-4, |run, implementation| {
            let op = ConvOp::new(conv.clone(), implementation);
            let norm = NormOp::new(spec.in_order.clone(), 1e-2, relu, implementation);
            let x = run.leaf([batch, in_size[0], in_size[1], spec.in_channels]);
            let (scale, shift) = (run.leaf([spec.in_channels]), run.leaf([spec.in_channels]));
            let affine = NormTensors { scale: scale.clone(), shift: shift.clone() };
            let bias = bias.then(|| run.leaf([spec.out_channels]));
            let (n, [kh, kw]) = (spec.out_channels, spec.geometry.kernel);
            let dense = |run: &mut Run, groups: usize| run.leaf([n, spec.in_channels / groups, kh, kw]);
            let weights = match &spec.kind {
                ConvKind::Standard => ConvTensors::Dense(dense(run, 1)),
                ConvKind::Grouped(groups) => ConvTensors::Dense(dense(run, *groups)),
                ConvKind::Het(pattern) => {
                    let shape = [n, pattern.max_spatial(), kh * kw - 1];
                    let ring = if shape.contains(&0) { Tensor::zeros(shape, &run.device) } else { run.leaf(shape) };
                    ConvTensors::Het { center: run.leaf([n, spec.in_channels]), ring }
                }
            };
            let input = Normalised { norm: &norm, x: x.clone(), affine: affine.clone() };
            let (y, _, moments) =
                op.forward_through_norm(input, None, weights.clone(), bias.clone(), ConvRequest::default());
            let grads = run.backward(y.clone());
            run.gradient("x", &x, &grads);
            run.gradient("scale", &scale, &grads);
            run.gradient("shift", &shift, &grads);
            bias.as_ref().inspect(|bias| run.gradient("bias", bias, &grads));
            match &weights {
                ConvTensors::Dense(weight) => run.gradient("weight", weight, &grads),
                ConvTensors::Het { center, ring } => {
                    run.gradient("center", center, &grads);
                    if ring.shape().num_elements() > 0 {
                        run.gradient("ring", ring, &grads);
                    }
                }
            }
            // With the batch's own moments, evaluation gives what training gave.
            let inner = NormTensors { scale: scale.inner(), shift: shift.inner() };
            let weights = match weights {
                ConvTensors::Dense(weight) => ConvTensors::Dense(weight.inner()),
                ConvTensors::Het { center, ring } => ConvTensors::Het { center: center.inner(), ring: ring.inner() },
            };
            let want: Vec<f32> = y.into_data().iter::<f32>().collect();
            for fast in [false, true] {
                let (x, bias, affine) = (x.clone().inner(), bias.clone().map(Tensor::inner), inner.clone());
                let input = Normalised { norm: &norm, x, affine };
                let again = op.evaluate_through_norm(input, moments.clone(), weights.clone(), bias, fast);
                let got: Vec<f32> = again.into_data().iter::<f32>().collect();
                assert_close("evaluation", &got, &wide(&want), 5e-4);
            }
        });
    }
}

#[test]
fn batch_norms() {
    let mut numbers = Numbers(2);
    for case in 0..16 {
        let (residual, relu, one_pixel) = (case % 2 == 1, case / 2 % 2 == 1, case / 4 % 2 == 1);
        let channels = 1 + numbers.below(40);
        let order = random_order(channels, &mut numbers);
        let [height, width] = if one_pixel { [1, 1] } else { [5, 3] };
        compare(&format!("residual {residual} relu {relu}"), case, 1e-4, |run, implementation| {
            let op = NormOp::new(order.clone(), 1e-3, relu, implementation);
            let x = run.leaf([4, height, width, channels]);
            let (scale, shift) = (run.leaf([channels]), run.leaf([channels]));
            let affine = NormTensors { scale: scale.clone(), shift: shift.clone() };
            let residual = residual.then(|| run.leaf(x.dims()));
            let (y, moments) = op.forward(x.clone(), affine.clone(), residual.clone());
            assert!(!moments.mean.is_autodiff() && !moments.variance.is_autodiff());
            let Moments { mean, variance } = moments.clone();
            run.record("mean", mean);
            run.record("variance", variance);
            let grads = run.backward(y.clone());
            run.gradient("x", &x, &grads);
            run.gradient("scale", &scale, &grads);
            run.gradient("shift", &shift, &grads);
            residual.as_ref().inspect(|residual| run.gradient("residual", residual, &grads));
            // With the batch's own moments, evaluation gives what training gave.
            let inner = NormTensors { scale: affine.scale.inner(), shift: affine.shift.inner() };
            let again = op.evaluate(x.inner(), inner, moments, residual.map(Tensor::inner));
            let want: Vec<f32> = y.into_data().iter::<f32>().collect();
            let got: Vec<f32> = again.into_data().iter::<f32>().collect();
            assert_close("evaluation", &got, &wide(&want), 1e-4);
        });
    }
}

#[test]
fn poolings() {
    let mut numbers = Numbers(3);
    for case in 0..24 {
        let kernel = [2 + numbers.below(2), 2 + numbers.below(3)];
        let geometry = Conv2dGeometry {
            kernel,
            stride: [1 + numbers.below(3), 1 + numbers.below(3)],
            padding: [(); 4].map(|()| numbers.below(2)),
            dilation: [1 + numbers.below(2), 1 + numbers.below(2)],
        };
        let kinds = [PoolKind::Max, PoolKind::Avg { count_padding: true }, PoolKind::Avg { count_padding: false }];
        let kind = kinds[case % 3];
        let in_size = [8 + numbers.below(4), 8 + numbers.below(4)];
        compare(&format!("{kind:?} {geometry:?} {in_size:?}"), case as u64, 1e-5, |run, implementation| {
            let pool = PoolOp::new(kind, geometry.clone(), in_size, implementation).expect("a pooling");
            let x = run.leaf([2, in_size[0], in_size[1], 5]);
            let grads = run.backward(pool.forward(x.clone()));
            run.gradient("x", &x, &grads);
        });
    }
    compare("global", 4, 1e-5, |run, implementation| {
        let x = run.leaf([3, 4, 5, 7]);
        let grads = run.backward(global_avg_pool(implementation, x.clone()));
        run.gradient("x", &x, &grads);
    });
}

#[test]
fn scaled_channels() {
    for relu in [false, true] {
        compare(&format!("ReLU {relu}"), 6, 1e-5, |run, implementation| {
            let (x, scale) = (run.leaf([3, 4, 5, 7]), run.leaf([3, 1, 1, 7]));
            let y = scale_channels(implementation, x.clone(), scale.clone(), relu);
            let grads = run.backward(y);
            run.gradient("x", &x, &grads);
            run.gradient("scale", &scale, &grads);
        });
    }
}

#[test]
fn losses() {
    for smoothing in [0.0, 0.1] {
        compare(&format!("smoothing {smoothing}"), 5, 1e-5, |run, implementation| {
            let logits = run.leaf([4, 7]);
            let loss = cross_entropy(implementation, logits.clone() * 3.0, &[0, 6, 3, 3], smoothing);
            run.results.push(("sum".to_owned(), vec![loss.sum as f32]));
            // An upstream gradient that is not 1.
            let grads = run.backward(loss.mean);
            run.gradient("logits", &logits, &grads);
        });
    }
}

#[test]
fn tensors_without_autodiff_are_constants() {
    let plain = Device::flex();
    let isa = Isa::selected().expect("an instruction set");
    let mut numbers = Numbers(6);
    let spec = ConvSpec::natural(3, 4, Conv2dGeometry::same(3, 1), ConvKind::Standard);
    let op = ConvOp::new(Arc::new(Conv::new(spec, [5, 5]).expect("a convolution")), Implementation::Kernels(isa));
    let x = Tensor::<4>::from_data(TensorData::new(numbers.vec(75), [1, 5, 5, 3]), &plain);
    let weight = Tensor::<4>::from_data(TensorData::new(numbers.vec(108), [4, 3, 3, 3]), &plain);
    let y = op.forward(x.clone(), ConvTensors::Dense(weight.clone()), None);
    assert!(!y.is_autodiff());
    let leaf = weight.autodiff().require_grad();
    let tracked = op.forward(x, ConvTensors::Dense(leaf.clone()), None);
    assert!(tracked.is_tracked());
    assert_eq!(tracked.clone().into_data(), y.into_data());
    assert!(leaf.grad(&tracked.sum().backward()).is_some());
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let device = Device::flex().autodiff().gradient_checkpointing();
    let strategy = device.gradient_checkpointing_strategy();
    let isa = Isa::selected().expect("an instruction set");
    let mut numbers = Numbers(7);
    let x = Tensor::<4>::from_data(TensorData::new(numbers.vec(60), [1, 4, 5, 3]), &device).require_grad();
    // A memory-bound operation of Burn on both sides of ours.
    let y = global_avg_pool(Implementation::Kernels(isa), x.clone().exp());
    assert_eq!(y.gradient_checkpointing_strategy(), strategy);
    let grads = y.log().sum().backward();
    let want = burn::tensor::activation::softmax(x.clone().inner().reshape([20, 3]), 0);
    let want: Vec<f32> = want.into_data().iter::<f32>().collect();
    let got: Vec<f32> = x.grad(&grads).expect("a gradient").into_data().iter::<f32>().collect();
    assert_close("checkpointed", &got, &wide(&want), 1e-5);
}

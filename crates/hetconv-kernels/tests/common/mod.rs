//! What the kernel tests share: a random convolution problem, its reference results, and the comparison.
#![allow(dead_code, missing_docs)]

use std::sync::OnceLock;

use hetconv_core::{Activation, ChannelOrder, ConvKind};
use hetconv_kernels::norm::{self, Affine, BatchStats, Gate, NormBackward};
use hetconv_kernels::{
    Algorithm, Aligned, Batch, ColumnSums, Conv, ConvSpec, ConvWeights, ConvWeightsMut, Direction, Input, Isa,
    PreparedBatch, Residual, Team, reference,
};

/// A small counter-based generator: tests need distinct numbers, not good ones.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
    }

    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// A layer's weights, owned.
pub struct Weights {
    pub main: Vec<f32>,
    pub ring: Vec<f32>,
    pub het: bool,
}

impl Weights {
    pub fn new(spec: &ConvSpec, mut fill: impl FnMut() -> f32) -> Self {
        let (main, ring) = spec.weight_lengths();
        let het = matches!(spec.kind, ConvKind::Het(_));
        let main: Vec<f32> = (0..main).map(|_| fill()).collect();
        let mut ring: Vec<f32> = (0..ring).map(|_| fill()).collect();
        if let ConvKind::Het(pattern) = &spec.kind {
            let (taps, slots) = (spec.geometry.taps() - 1, pattern.max_spatial());
            for filter in 0..spec.out_channels {
                let used = pattern.spatial_channels(filter).count();
                ring[(filter * slots + used) * taps..(filter + 1) * slots * taps].fill(0.0);
            }
        }
        Self { main, ring, het }
    }

    pub fn get(&self) -> ConvWeights<'_> {
        if self.het {
            ConvWeights::Het { center: &self.main, ring: &self.ring }
        } else {
            ConvWeights::Dense(&self.main)
        }
    }

    pub fn get_mut(&mut self) -> ConvWeightsMut<'_> {
        if self.het {
            ConvWeightsMut::Het { center: &mut self.main, ring: &mut self.ring }
        } else {
            ConvWeightsMut::Dense(&mut self.main)
        }
    }

    /// Takes this layer's weights out of the dense masked form `[N, M, taps]`.
    pub fn from_dense(spec: &ConvSpec, dense: &[f32]) -> Self {
        let mut weights = Self::new(spec, || 0.0);
        let (m, taps) = (spec.in_channels, spec.geometry.taps());
        for filter in 0..spec.out_channels {
            match &spec.kind {
                ConvKind::Het(pattern) => {
                    let slots = pattern.max_spatial();
                    for channel in 0..m {
                        weights.main[filter * m + channel] = dense[(filter * m + channel) * taps + taps / 2];
                    }
                    for (slot, channel) in pattern.spatial_channels(filter).enumerate() {
                        let off_center = (0..taps).filter(|&tap| tap != taps / 2);
                        for (ring_tap, tap) in off_center.enumerate() {
                            weights.ring[(filter * slots + slot) * (taps - 1) + ring_tap] =
                                dense[(filter * m + channel) * taps + tap];
                        }
                    }
                }
                ConvKind::Standard => {
                    let of_filter = filter * m * taps..(filter + 1) * m * taps;
                    weights.main[of_filter.clone()].copy_from_slice(&dense[of_filter]);
                }
                ConvKind::Grouped(groups) => {
                    let width = m / groups;
                    let group = filter / (spec.out_channels / groups);
                    let from = (filter * m + group * width) * taps;
                    weights.main[filter * width * taps..(filter + 1) * width * taps]
                        .copy_from_slice(&dense[from..from + width * taps]);
                }
            }
        }
        weights
    }
}

/// Brings NHWC data from natural order into `order`.
pub fn store(data: &[f32], order: &ChannelOrder) -> Vec<f32> {
    let channels = order.channels();
    data.chunks_exact(order.len()).flat_map(|pixel| channels.iter().map(|&c| pixel[c as usize])).collect()
}

/// Brings NHWC data from `order` into natural order.
pub fn load(data: &[f32], order: &ChannelOrder) -> Vec<f32> {
    let positions = order.positions();
    data.chunks_exact(order.len()).flat_map(|pixel| positions.iter().map(|&p| pixel[p as usize])).collect()
}

pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance + tolerance * want.abs(), "{what}[{i}]: {got}, expected {want}");
    }
}

/// How far sums of so many terms of a size, in `f32` up to those of sixteen tiles, may be off: the terms are differences from
/// one of the values and may all have one sign, so that a sum grows to all of them together; each addition rounds it by half
/// its last digit at most, up or down, which adds up as a root.
fn rounding_of_moments(terms: usize, size: f64) -> f64 {
    const TOGETHER: usize = 16 * 12;
    f64::from(f32::EPSILON) / 2.0 * size * terms.min(TOGETHER) as f64 * (terms as f64).sqrt()
}

/// Checks each filter's sum and sum of squares of a layer's output against those of the output itself.
fn check_moments(label: &str, output: &[f32], found: &ColumnSums) {
    let n = found.sums.len();
    let (mut sums, mut squares) = (vec![0.0f64; n], vec![0.0f64; n]);
    for pixel in output.chunks_exact(n) {
        for (filter, &value) in pixel.iter().enumerate() {
            sums[filter] += f64::from(value);
            squares[filter] += f64::from(value).powi(2);
        }
    }
    let range = output.iter().fold([0.0f32; 2], |[low, high], &value| [low.min(value), high.max(value)]);
    let range = f64::from(range[1] - range[0]).max(1.0);
    for (what, power, found, expected) in
        [("sums", 1, &found.sums, &sums), ("sums of squares", 2, &found.squares, &squares)]
    {
        let exact = rounding_of_moments(output.len() / n, range.powi(power));
        for (filter, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (found - expected).abs();
            assert!(error <= exact + 1e-6 * expected.abs(), "{label}: {what}[{filter}]: {found}, expected {expected}");
        }
    }
}

/// A layer with random numbers, and what the reference makes of them; activations in natural order.
pub struct Problem {
    pub label: String,
    pub weights: Weights,
    pub input: Vec<f32>,
    pub grad: Vec<f32>,
    pub bias: Vec<f32>,
    pub output: Vec<f64>,
    pub grad_input: Vec<f64>,
    grad_weight: Weights,
    /// Sums over pixels and images are as exact as that.
    pub tolerance_of_sums: f64,
}

impl Problem {
    pub fn new(spec: &ConvSpec, isa: Isa, batch: usize, in_size: [usize; 2], seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let [h, w] = spec.geometry.output_size(in_size).expect("a convolution that fits");
        let (m, n, taps) = (spec.in_channels, spec.out_channels, spec.geometry.taps());
        let scale = 1.0 / ((m * taps) as f32).sqrt();
        let weights = Weights::new(spec, || numbers.next() * scale);
        let input = numbers.vec(batch * in_size[0] * in_size[1] * m);
        let grad = numbers.vec(batch * h * w * n);
        let bias = numbers.vec(n);
        let dense = reference::dense_weights(spec, weights.get());
        let mut output = reference::forward(spec, batch, in_size, &input, &dense);
        for pixel in output.chunks_exact_mut(n) {
            pixel.iter_mut().zip(&bias).for_each(|(value, &bias)| *value += f64::from(bias));
        }
        let grad_input = reference::grad_input(spec, batch, in_size, &grad, &dense);
        let grad_weight = reference::grad_weight(spec, batch, in_size, &input, &grad);
        let grad_weight: Vec<f32> = grad_weight.iter().map(|&value| value as f32).collect();
        Self {
            label: format!("of {spec:?} on {isa:?}, batch {batch}, {in_size:?}"),
            weights,
            input,
            grad,
            bias,
            output,
            grad_input,
            grad_weight: Weights::from_dense(spec, &grad_weight),
            // Rounding grows with the root of what is summed.
            tolerance_of_sums: 1e-6 * ((batch * h * w) as f64).max(100.0).sqrt(),
        }
    }

    /// How much less exact an algorithm is than the direct pass: Winograd's sums have terms up to some 100 times their
    /// result's size.
    pub fn more(algorithm: Algorithm) -> f64 {
        if algorithm == Algorithm::Winograd { 4.0 } else { 1.0 }
    }

    pub fn check_output(&self, what: &str, algorithm: Algorithm, got: &[f32]) {
        let label = format!("{algorithm:?} {what} {}", self.label);
        assert_close(&label, got, &self.output, Self::more(algorithm) * 1e-5);
    }

    pub fn check_grad_input(&self, algorithm: Algorithm, got: &[f32]) {
        let label = format!("{algorithm:?} grad-input {}", self.label);
        assert_close(&label, got, &self.grad_input, Self::more(algorithm) * 2e-5);
    }

    /// Checks what is written over weights that are not numbers.
    pub fn check_grad_weight(&self, spec: &ConvSpec, algorithm: Algorithm, write: impl FnOnce(ConvWeightsMut<'_>)) {
        let mut got = Weights::new(spec, || f32::NAN);
        got.ring.fill(f32::NAN);
        write(got.get_mut());
        let as_f64 = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        let (want, tolerance) = (&self.grad_weight, Self::more(algorithm) * self.tolerance_of_sums);
        let label = |what: &str| format!("{algorithm:?} {what} {}", self.label);
        assert_close(&label("grad-weight"), &got.main, &as_f64(&want.main), tolerance);
        assert_close(&label("grad-weight, ring"), &got.ring, &as_f64(&want.ring), tolerance);
    }
}

/// Checks all kernels of one layer against the reference, on random data in the layer's stored orders.
pub fn check(spec: &ConvSpec, isa: Isa, batch: usize, in_size: [usize; 2], seed: u64) {
    let problem = Problem::new(spec, isa, batch, in_size, seed);
    let Problem { weights, input, grad, bias, output: want, .. } = &problem;
    let conv = Conv::new(spec.clone(), in_size).expect("a convolution that fits");
    let n = spec.out_channels;
    let stored = store(input, &spec.in_order);
    let stored_grad = store(grad, &spec.out_order);
    for &algorithm in conv.algorithms() {
        let label = |what: &str| format!("{algorithm:?} {what} {}", problem.label);
        let mut output = vec![f32::NAN; want.len()];
        let packed = conv.pack(isa, Direction::Forward, algorithm, weights.get());
        conv.forward(batch, &stored, &packed, Some(bias), &mut output);
        problem.check_output("forward", algorithm, &load(&output, &spec.out_order));

        let (again, sums) = conv.forward_with_sums(batch, Input::Plain(&stored), &packed, Some(bias));
        assert_eq!(again, output, "{}", label("forward with sums"));
        check_moments(&label("forward with sums"), &output, &sums);

        let tolerance = Problem::more(algorithm) * 1e-5;
        // With a residual and an activation, by a team and alone.
        let residual = Numbers(seed).vec(want.len());
        let swish = |x: f64| x * (x / 6.0 + 0.5).clamp(0.0, 1.0);
        let relu = |x: f64| x.max(0.0);
        let sums = want.iter().zip(load(&residual, &spec.out_order)).map(|(&sum, residual)| sum + f64::from(residual));
        let sums: Vec<f64> = sums.collect();
        static TEAM: OnceLock<Team> = OnceLock::new();
        let team = TEAM.get_or_init(|| Team::new(3));
        for (function, exact) in [(Activation::Relu, relu as fn(f64) -> f64), (Activation::HardSwish, swish as _)] {
            let activated: Vec<f64> = sums.iter().map(|&sum| exact(sum)).collect();
            let again = Conv::new(spec.clone(), in_size).expect("as before");
            let prepared = again.prepare(isa, algorithm, weights.get(), Some(bias), Some(function));
            let mut scratch: Vec<Aligned> = (0..3).map(|_| Aligned::zeroed(prepared.scratch_len(batch))).collect();
            for (place, begun) in
                [(Residual::Values(&residual), &vec![f32::NAN; residual.len()]), (Residual::Target, &residual)]
            {
                let mut check = |what: &str, run: &mut dyn FnMut(PreparedBatch<'_>)| {
                    output.copy_from_slice(begun);
                    run(PreparedBatch { images: batch, source: &stored, residual: Some(place), target: &mut output });
                    assert_close(&label(what), &load(&output, &spec.out_order), &activated, tolerance);
                };
                check("prepared", &mut |of_all| prepared.run(team, &mut scratch, of_all, Some(&prepared)));
                check("prepared, alone", &mut |of_all| prepared.run_alone(scratch[0].as_mut(), of_all));
            }
        }

        let packed = conv.pack(isa, Direction::GradInput, algorithm, weights.get());
        let grad_input = conv.grad_input(batch, &stored_grad, &packed);
        problem.check_grad_input(algorithm, &load(&grad_input, &spec.in_order));

        let input = Input::Plain(&stored);
        let of_batch = Batch { images: batch, input, grad_output: &stored_grad };
        let grad_weight = |got: ConvWeightsMut<'_>| conv.grad_weight(isa, algorithm, of_batch, got);
        problem.check_grad_weight(spec, algorithm, grad_weight);
        let mut both = None;
        problem.check_grad_weight(spec, algorithm, |got| {
            both = Some(conv.backward(algorithm, of_batch, &packed, got, None));
        });
        let (again, none) = both.expect("a backward pass");
        assert!(none.is_none());
        problem.check_grad_input(algorithm, &load(&again, &spec.in_order));
        for relu in [false, true] {
            check_through_norm(&conv, isa, algorithm, batch, &problem, relu);
        }
    }

    let mut grad_bias = vec![f32::NAN; n];
    conv.grad_bias(batch, &stored_grad, &mut grad_bias);
    let mut want = vec![0.0f64; n];
    for pixel in grad.chunks_exact(n) {
        for (sum, &value) in want.iter_mut().zip(pixel) {
            *sum += f64::from(value);
        }
    }
    assert_close(&format!("grad-bias {}", problem.label), &grad_bias, &want, 1e-5);
}

/// A batch-norm's result that is made where it is read is the one that is stored before.
fn check_through_norm(conv: &Conv, isa: Isa, algorithm: Algorithm, batch: usize, problem: &Problem, relu: bool) {
    let label = |what: &str| format!("{algorithm:?} {what} through a batch-norm, ReLU {relu}, {}", problem.label);
    let mut numbers = Numbers(0x5ca1e);
    let (spec, channels) = (conv.spec(), conv.spec().in_channels);
    let x = store(&problem.input, &spec.in_order);
    let grad = store(&problem.grad, &spec.out_order);
    let (gamma, beta) = (numbers.vec(channels), numbers.vec(channels));
    let stats = BatchStats::new(&norm::column_sums(isa, channels, &x), x.len() / channels, 1e-3);
    let (scale, shift) = stats.scale_and_shift(&gamma, &beta);
    let affine = Affine { scale: &scale, shift: &shift, relu };
    let stored = norm::scale_shift(isa, &x, None, affine);
    let inputs = [Input::Plain(&stored), Input::Scaled { x: &x, affine }];

    let packed = conv.pack(isa, Direction::Forward, algorithm, problem.weights.get());
    let [want, got] = inputs.map(|input| conv.forward_with_sums(batch, input, &packed, Some(&problem.bias)));
    let as_f64 = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    assert_close(&label("forward"), &got.0, &as_f64(&want.0), 1e-5);
    check_moments(&label("forward"), &got.0, &got.1);

    let [want, got] = inputs.map(|input| {
        let mut grad_weight = Weights::new(spec, || f32::NAN);
        conv.grad_weight(isa, algorithm, Batch { images: batch, input, grad_output: &grad }, grad_weight.get_mut());
        grad_weight
    });
    let of_scaled = [got.main, got.ring];
    assert_eq!(of_scaled, [want.main, want.ring], "{}", label("grad-weight"));

    let gate = if affine.relu { Gate::Input { scale: &scale, shift: &shift } } else { Gate::Open };
    let backward = NormBackward { x: &x, gate, gamma: &gamma, stats: &stats };
    let packed = conv.pack(isa, Direction::GradInput, algorithm, problem.weights.get());
    let mut want_x = conv.grad_input(batch, &grad, &packed);
    let want = backward.gradients(isa, &mut want_x, false);
    let (got_x, got) = conv.grad_input_through_norm(batch, &grad, &packed, &backward);
    let mut together = Weights::new(spec, || f32::NAN);
    let input = Input::Scaled { x: &x, affine };
    let batch = Batch { images: batch, input, grad_output: &grad };
    let (both_x, both) = conv.backward(algorithm, batch, &packed, together.get_mut(), Some(&backward));
    assert_eq!([together.main, together.ring], of_scaled, "{}", label("grad-weight, with grad-input"));
    // Sums are taken in another order; of each they are a share in what is by x.
    for (got_x, got) in [(got_x, got), (both_x, both.expect("a batch-norm's"))] {
        assert!(got.x.is_none());
        assert_close(&label("grad-input"), &got_x, &as_f64(&want_x), 2e-4);
        for (what, got, want) in [("γ", &got.gamma, &want.gamma), ("β", &got.beta, &want.beta)] {
            assert_close(&label(what), got, &as_f64(want), 10.0 * problem.tolerance_of_sums);
        }
    }
}

/// Says which instruction sets a test ran on.
pub fn each_isa(test: &str, mut run: impl FnMut(Isa)) {
    let available = Isa::available();
    println!("{test}: ran on {available:?}");
    for isa in available {
        run(isa);
    }
}

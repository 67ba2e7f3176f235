//! Convolutions between activations in natural order whose kernels want another one.

mod common;

use common::{Numbers, Weights, assert_close, each_isa};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::{Algorithm, ConvSpec, Direction, Isa, Reordered, reference};

fn check(spec: &ConvSpec, isa: Isa, batch: usize, in_size: [usize; 2], seed: u64) {
    let mut numbers = Numbers(seed);
    let conv = Reordered::new(spec.clone(), in_size).expect("a convolution that fits");
    let [h, w] = conv.conv().out_size();
    let (m, n, taps) = (spec.in_channels, spec.out_channels, spec.geometry.taps());
    let scale = 1.0 / ((m * taps) as f32).sqrt();
    let weights = Weights::new(spec, || numbers.next() * scale);
    let input = numbers.vec(batch * in_size[0] * in_size[1] * m);
    let grad = numbers.vec(batch * h * w * n);
    let bias = numbers.vec(n);
    let dense = reference::dense_weights(spec, weights.get());
    let label = |what: &str| format!("{what} of {spec:?} on {isa:?}, batch {batch}, {in_size:?}");

    let mut want = reference::forward(spec, batch, in_size, &input, &dense);
    for pixel in want.chunks_exact_mut(n) {
        pixel.iter_mut().zip(&bias).for_each(|(value, &bias)| *value += f64::from(bias));
    }
    let want_grad_input = reference::grad_input(spec, batch, in_size, &grad, &dense);
    for &algorithm in conv.conv().algorithms() {
        let more = if algorithm == Algorithm::Winograd { 4.0 } else { 1.0 };
        let mut output = vec![f32::NAN; want.len()];
        let packed = conv.conv().pack(isa, Direction::Forward, algorithm, weights.get());
        conv.forward(batch, &input, &packed, Some(&bias), &mut output);
        assert_close(&label(&format!("{algorithm:?} forward")), &output, &want, more * 1e-5);
        let mut grad_input = vec![f32::NAN; input.len()];
        let packed = conv.conv().pack(isa, Direction::GradInput, algorithm, weights.get());
        conv.grad_input(batch, &grad, &packed, &mut grad_input);
        assert_close(&label(&format!("{algorithm:?} grad-input")), &grad_input, &want_grad_input, more * 2e-5);
    }

    let want: Vec<f32> =
        reference::grad_weight(spec, batch, in_size, &input, &grad).iter().map(|&value| value as f32).collect();
    let want = Weights::from_dense(spec, &want);
    let mut got = Weights::new(spec, || f32::NAN);
    got.ring.fill(f32::NAN);
    conv.grad_weight(isa, batch, &input, &grad, got.get_mut());
    let as_f64 = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    let tolerance = 1e-6 * ((batch * h * w) as f64).max(10.0);
    assert_close(&label("grad-weight"), &got.main, &as_f64(&want.main), tolerance);
    assert_close(&label("grad-weight, ring"), &got.ring, &as_f64(&want.ring), tolerance);
}

fn shifted(m: usize, n: usize, parts: usize) -> ConvKind {
    ConvKind::Het(HetPattern::shifted(m, n, parts).expect("legal"))
}

/// One order on both sides, on one side, on none; classes of equal sizes and others.
#[test]
fn few_images_are_reordered_as_a_whole() {
    each_isa("few images", |isa| {
        let assigned = HetPattern::assigned(vec![2, 0, 1, 1, 0, 2, 2], vec![0, 0, 1, 1, 2]).expect("classes in range");
        let blocked = ConvKind::Het(HetPattern::blocked(8, 8, 2).expect("legal"));
        let cases =
            [(8, 12, shifted(8, 12, 4)), (10, 7, shifted(10, 7, 3)), (7, 5, ConvKind::Het(assigned)), (8, 8, blocked)];
        for (seed, (m, n, kind)) in cases.into_iter().enumerate() {
            for stride in [1, 2] {
                let spec = ConvSpec::by_class(m, n, Conv2dGeometry::same(3, stride), kind.clone());
                for batch in [0, 1, 3] {
                    check(&spec, isa, batch, [6, 5], seed as u64);
                }
            }
        }
    });
}

/// Enough images to be worked on a few at a time, and a last part of fewer.
#[test]
fn many_images_are_reordered_part_by_part() {
    each_isa("many images", |isa| {
        for (batch, size, kind) in
            [(101, [8, 7], shifted(8, 12, 4)), (205, [4, 4], shifted(8, 12, 4)), (197, [3, 5], shifted(8, 12, 3))]
        {
            check(&ConvSpec::by_class(8, 12, Conv2dGeometry::same(3, 1), kind), isa, batch, size, 7);
        }
        // Bands of images that no core's cache holds.
        check(&ConvSpec::by_class(64, 32, Conv2dGeometry::same(3, 2), shifted(64, 32, 8)), isa, 17, [36, 36], 8);
    });
}

/// More weights than one group of blocks has.
#[test]
fn wide_layers_are_reordered_once() {
    each_isa("wide layers", |isa| {
        check(&ConvSpec::by_class(256, 256, Conv2dGeometry::same(3, 1), shifted(256, 256, 4)), isa, 3, [3, 3], 9);
    });
}

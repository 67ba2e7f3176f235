//! Convolutions between activations in natural order whose kernels want another one.

mod common;

use common::{Problem, each_isa};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::{ConvSpec, Direction, Isa, Reordered};

fn check(spec: &ConvSpec, isa: Isa, batch: usize, in_size: [usize; 2], seed: u64) {
    let problem = Problem::new(spec, isa, batch, in_size, seed);
    let Problem { weights, input, grad, bias, output: want, .. } = &problem;
    let conv = Reordered::new(spec.clone(), in_size).expect("a convolution that fits");
    for &algorithm in conv.conv().algorithms() {
        let mut output = vec![f32::NAN; want.len()];
        let packed = conv.conv().pack(isa, Direction::Forward, algorithm, weights.get());
        conv.forward(batch, input, &packed, Some(bias), &mut output);
        problem.check_output("forward", algorithm, &output);
        let mut grad_input = vec![f32::NAN; input.len()];
        let packed = conv.conv().pack(isa, Direction::GradInput, algorithm, weights.get());
        conv.grad_input(batch, grad, &packed, &mut grad_input);
        problem.check_grad_input(algorithm, &grad_input);
        let mut grad_bias = vec![f32::NAN; spec.out_channels];
        conv.grad_bias(batch, grad, &mut grad_bias);
        for (filter, &got) in grad_bias.iter().enumerate() {
            let want: f64 = grad.iter().skip(filter).step_by(spec.out_channels).map(|&grad| f64::from(grad)).sum();
            assert!((f64::from(got) - want).abs() <= 1e-5 * want.abs().max(1.0), "filter {filter}: {got}, not {want}");
        }
        problem.check_grad_weight(spec, algorithm, |got| conv.grad_weight(isa, algorithm, batch, input, grad, got));
    }
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

//! Random layers against the reference, on every instruction set of this CPU.

mod common;

use common::{check, each_isa};
use hetconv_core::{ChannelOrder, Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::{Algorithm, ConvSpec, Direction};
use proptest::prelude::*;

fn geometry() -> impl Strategy<Value = Conv2dGeometry> {
    let kernel =
        prop_oneof![Just([1, 1]), Just([3, 3]), Just([5, 5]), Just([3, 1]), Just([1, 5]), Just([2, 2]), Just([4, 3])];
    (kernel, [1..4usize, 1..4usize], [0..3usize, 0..3usize, 0..3usize, 0..3usize], [1..3usize, 1..3usize])
        .prop_map(|(kernel, stride, padding, dilation)| Conv2dGeometry { kernel, stride, padding, dilation })
}

/// HetConv only if there is a centre.
fn kind(m: usize, n: usize, has_center: bool) -> BoxedStrategy<ConvKind> {
    let shifted = (1..=m).prop_map(move |p| ConvKind::Het(HetPattern::shifted(m, n, p).expect("P ≤ M")));
    let limit = m.max(n) as u32;
    let classes = (1..=limit)
        .prop_flat_map(move |top| (proptest::collection::vec(0..top, m), proptest::collection::vec(0..top, n)));
    let assigned = classes.prop_map(|(c, f)| ConvKind::Het(HetPattern::assigned(c, f).expect("classes in range")));
    let divisors: Vec<usize> = (1..=m.min(n)).filter(|g| m.is_multiple_of(*g) && n.is_multiple_of(*g)).collect();
    let blocked = proptest::sample::select(divisors.clone())
        .prop_map(move |p| ConvKind::Het(HetPattern::blocked(m, n, p).expect("P divides")));
    let grouped = proptest::sample::select(divisors).prop_map(ConvKind::Grouped);
    if !has_center {
        return prop_oneof![Just(ConvKind::Standard), grouped].boxed();
    }
    prop_oneof![Just(ConvKind::Standard), grouped, shifted, blocked, assigned].boxed()
}

/// Natural, by class, interleaved or any order.
fn order(channels: usize) -> impl Strategy<Value = ChannelOrder> {
    let shuffled = Just((0..channels as u32).collect::<Vec<_>>()).prop_shuffle();
    prop_oneof![
        Just(ChannelOrder::natural(channels)),
        Just(ChannelOrder::interleaved(channels)),
        shuffled.prop_map(|channels| ChannelOrder::from_channels(channels).expect("a permutation")),
    ]
}

fn spec() -> impl Strategy<Value = ConvSpec> {
    (1..40usize, 1..40usize, geometry()).prop_flat_map(|(m, n, geometry)| {
        let has_center = geometry.center_tap().is_some();
        (kind(m, n, has_center), order(m), order(n), any::<bool>()).prop_map(
            move |(kind, in_order, out_order, by_class)| {
                if by_class {
                    return ConvSpec::by_class(m, n, geometry.clone(), kind);
                }
                ConvSpec { in_channels: m, out_channels: n, geometry: geometry.clone(), kind, in_order, out_order }
            },
        )
    })
}

proptest! {
    #[test]
    fn kernels_agree_with_the_reference(
        spec in spec(), batch in 0..4usize, h in 1..9usize, w in 1..9usize, seed: u64
    ) {
        prop_assume!(spec.geometry.output_size([h, w]).is_ok());
        for isa in hetconv_kernels::Isa::available() {
            check(&spec, isa, batch, [h, w], seed);
        }
    }

    #[test]
    fn one_part_is_a_standard_convolution(m in 1..20usize, n in 1..20usize, h in 1..7usize, seed: u64) {
        let geometry = Conv2dGeometry::same(3, 1);
        let het = ConvSpec::natural(m, n, geometry.clone(), ConvKind::Het(HetPattern::shifted(m, n, 1).expect("P = 1")));
        let standard = ConvSpec::natural(m, n, geometry, ConvKind::Standard);
        let mut numbers = common::Numbers(seed);
        let dense = numbers.vec(n * m * 9);
        let input = numbers.vec(2 * h * 5 * m);
        for isa in hetconv_kernels::Isa::available() {
            let run = |spec: &ConvSpec| {
                let conv = hetconv_kernels::Conv::new(spec.clone(), [h, 5]).expect("fits");
                let mut output = vec![f32::NAN; 2 * h * 5 * n];
                let packed = conv.pack(isa, Direction::Forward, Algorithm::Direct, common::Weights::from_dense(spec, &dense).get());
                conv.forward(2, &input, &packed, None, &mut output);
                output
            };
            let standard: Vec<f64> = run(&standard).iter().map(|&v| f64::from(v)).collect();
            common::assert_close("P = 1", &run(&het), &standard, 1e-5);
        }
    }
}

/// Channels, filters and pixels at and around every tile edge: two vectors of filters, and twelve pixels or channels.
#[test]
fn tile_edges() {
    each_isa("tile edges", |isa| {
        let lanes = isa.lanes();
        let around = |n: usize| [n - 1, n, n + 1];
        let mut seed = 1;
        for n in around(lanes).into_iter().chain(around(2 * lanes)) {
            for m in [1, 5, 6, 7, 11, 12, 13] {
                for width in 1..=15 {
                    for kind in [
                        ConvKind::Standard,
                        ConvKind::Het(HetPattern::shifted(m, n, 2.min(m)).expect("P ≤ M")),
                        ConvKind::Het(HetPattern::shifted(m, n, m).expect("P = M")),
                    ] {
                        let spec = ConvSpec::by_class(m, n, Conv2dGeometry::same(3, 1), kind);
                        check(&spec, isa, 1, [3, width], seed);
                        seed += 1;
                    }
                }
            }
        }
    });
}

/// Grad-weight in the transformed domain: more pieces, inputs and outputs than are worked on together.
#[test]
fn many_pieces_inputs_and_outputs() {
    each_isa("many pieces", |isa| {
        let one_part = ConvKind::Het(HetPattern::blocked(160, 160, 1).expect("legal"));
        for (n, size, kind) in [(40, [33, 34], ConvKind::Standard), (160, [13, 13], one_part)] {
            check(&ConvSpec::by_class(160, n, Conv2dGeometry::same(3, 1), kind), isa, 1, size, 9);
        }
    });
}

/// Wide layers: several blocks, several classes a block, several parts of a reduction.
#[test]
fn wide_layers() {
    each_isa("wide layers", |isa| {
        for (m, n, kind) in [
            (64, 128, ConvKind::Het(HetPattern::shifted(64, 128, 4).expect("legal"))),
            (64, 64, ConvKind::Het(HetPattern::shifted(64, 64, 64).expect("legal"))),
            (96, 48, ConvKind::Het(HetPattern::blocked(96, 48, 8).expect("legal"))),
            (32, 64, ConvKind::Het(HetPattern::shifted(32, 64, 16).expect("legal"))),
            (64, 32, ConvKind::Het(HetPattern::shifted(64, 32, 16).expect("legal"))),
            (32, 32, ConvKind::Het(HetPattern::shifted(32, 32, 4).expect("legal"))),
            (16, 16, ConvKind::Het(HetPattern::shifted(16, 16, 4).expect("legal"))),
            (16, 32, ConvKind::Het(HetPattern::shifted(16, 32, 4).expect("legal"))),
            (64, 16, ConvKind::Het(HetPattern::shifted(64, 16, 8).expect("legal"))),
            (32, 32, ConvKind::Grouped(8)),
            (16, 64, ConvKind::Grouped(16)),
            (64, 64, ConvKind::Grouped(4)),
            (48, 48, ConvKind::Grouped(48)),
            (64, 64, ConvKind::Standard),
        ] {
            for stride in [1, 2] {
                let spec = ConvSpec::by_class(m, n, Conv2dGeometry::same(3, stride), kind.clone());
                check(&spec, isa, 5, [7, 6], 7);
                let order = (ChannelOrder::interleaved(m), ChannelOrder::interleaved(n));
                let spec = ConvSpec { in_order: order.0, out_order: order.1, ..spec };
                check(&spec, isa, 19, [2, 2], 8);
            }
        }
        // Images of which each is a part of its own, and computes all blocks.
        let pointwise = ConvSpec::natural(40, 40, Conv2dGeometry::same(1, 1), ConvKind::Standard);
        check(&pointwise, isa, 16, [29, 29], 10);
        // Several of them a part, worked on one by one, and parts of unequal length.
        check(&pointwise, isa, 37, [29, 29], 10);
        let depthwise = ConvSpec::natural(40, 40, Conv2dGeometry::same(3, 1), ConvKind::Grouped(40));
        check(&depthwise, isa, 37, [29, 29], 11);
    });
}

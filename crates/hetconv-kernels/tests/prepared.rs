//! What a prepared convolution says of itself, and where it writes.
#![allow(missing_docs)]

mod common;

use common::{Numbers, Weights, check, each_isa};
use hetconv_core::{Activation, Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::{Algorithm, Aligned, Conv, ConvSpec, Isa, Prepared, PreparedBatch};

fn het(m: usize, n: usize, parts: usize) -> ConvKind {
    ConvKind::Het(HetPattern::shifted(m, n, parts).expect("legal"))
}

fn prepare(spec: &ConvSpec, size: [usize; 2], isa: Isa, algorithm: Algorithm) -> Prepared {
    let mut numbers = Numbers(3);
    let weights = Weights::new(spec, || numbers.next());
    let bias = numbers.vec(spec.out_channels);
    let conv = Conv::new(spec.clone(), size).expect("fits");
    conv.prepare(isa, algorithm, weights.get(), Some(&bias), Some(Activation::Relu))
}

#[test]
fn executed_macs_are_those_of_the_algorithm() {
    let same = Conv2dGeometry::same(3, 1);
    each_isa("executed MACs", |isa| {
        let macs = |kind, algorithm| {
            let spec = ConvSpec::by_class(64, 128, same.clone(), kind);
            prepare(&spec, [8, 7], isa, algorithm).executed_macs()
        };
        // Rows and columns of the window inside the image.
        let inside = (3 * 8 - 2) * (3 * 7 - 2);
        assert_eq!(macs(ConvKind::Standard, Algorithm::Direct), inside * 64 * 128);
        assert_eq!(macs(het(64, 128, 4), Algorithm::Direct), inside * 16 * 128 + 56 * 48 * 128);
        // Four pieces of 6×6 points, and HetConv's other centre taps.
        assert_eq!(macs(ConvKind::Standard, Algorithm::Winograd), 4 * 36 * 64 * 128);
        assert_eq!(macs(het(64, 128, 4), Algorithm::Winograd), 4 * 36 * 16 * 128 + 56 * 48 * 128);
    });
}

#[test]
fn segments_of_wider_pixels() {
    const IMAGES: usize = 3;
    each_isa("segments", |isa| {
        for (kernel, kind, size) in [
            (3, ConvKind::Standard, [6, 5]),
            (3, het(24, 40, 4), [9, 4]),
            (1, ConvKind::Standard, [3, 3]),
            (3, ConvKind::Grouped(8), [4, 7]),
        ] {
            let spec = ConvSpec::by_class(24, 40, Conv2dGeometry::same(kernel, 1), kind);
            let input = Numbers(4).vec(IMAGES * size[0] * size[1] * 24);
            let conv = Conv::new(spec.clone(), size).expect("fits");
            for &algorithm in conv.algorithms() {
                let prepared = prepare(&spec, size, isa, algorithm);
                let run = |prepared: &Prepared| {
                    let mut scratch = Aligned::zeroed(prepared.scratch_len(IMAGES));
                    let mut output = vec![-7.0; IMAGES * size[0] * size[1] * prepared.pitches()[1]];
                    let batch = PreparedBatch { images: IMAGES, source: &input, residual: None, target: &mut output };
                    prepared.run_alone(&mut scratch, batch);
                    output
                };
                let want = run(&prepared);
                let got = run(&prepared.into_segment(57, 9));
                for (got, want) in got.chunks_exact(57).zip(want.chunks_exact(40)) {
                    assert_eq!(&got[9..49], want);
                    assert!(got[..9].iter().chain(&got[49..]).all(|&other| other == -7.0));
                }
            }
        }
    });
}

#[test]
fn sources_of_wider_pixels() {
    const IMAGES: usize = 2;
    let size = [3, 5];
    each_isa("wider sources", |isa| {
        for kind in [ConvKind::Standard, ConvKind::Grouped(4)] {
            let spec = ConvSpec::by_class(24, 40, Conv2dGeometry::same(1, 1), kind);
            let run = |prepared: &Prepared, input: &[f32]| {
                let mut scratch = Aligned::zeroed(prepared.scratch_len(IMAGES));
                let mut output = vec![-7.0; IMAGES * size[0] * size[1] * prepared.pitches()[1]];
                let batch = PreparedBatch { images: IMAGES, source: input, residual: None, target: &mut output };
                prepared.run_alone(&mut scratch, batch);
                output
            };
            let input = Numbers(4).vec(IMAGES * size[0] * size[1] * 24);
            let want = run(&prepare(&spec, size, isa, Algorithm::Direct), &input);
            // What is no channel of its own is never read.
            let wider: Vec<f32> = input.chunks(24).flat_map(|pixel| [pixel, &[f32::NAN; 9]].concat()).collect();
            let prepared = prepare(&spec, size, isa, Algorithm::Direct).reading_wider(33);
            assert_eq!(run(&prepared, &wider), want);
            let got = run(&prepared.into_segment(57, 9), &wider);
            assert!(got.chunks_exact(57).zip(want.chunks_exact(40)).all(|(got, want)| got[9..49] == *want));
        }
    });
}

/// Their sources share a set of the first-level cache.
#[test]
fn pixels_of_a_thousand_channels() {
    each_isa("wide pixels", |isa| {
        for (m, stride) in [(1024, 1), (2048, 1), (512, 2)] {
            let spec = ConvSpec::by_class(m, 35, Conv2dGeometry::square(1, stride, 0, 1), ConvKind::Standard);
            check(&spec, isa, 2, [5, 7], 9);
        }
    });
}

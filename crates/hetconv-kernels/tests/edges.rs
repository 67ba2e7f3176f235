//! The ends of memory, of the numbers and of the shapes.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Numbers, Weights, assert_close, check, each_isa};
use hetconv_core::{Activation, Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::norm::{self, Affine, BatchStats, Gate, NormBackward};
use hetconv_kernels::{
    Algorithm, Batch, Conv, ConvSpec, Direction, Input, Isa, PreparedBatch, Reordered, Residual, Team, elementwise,
};

fn het(m: usize, n: usize, parts: usize) -> ConvKind {
    ConvKind::Het(HetPattern::shifted(m, n, parts).expect("legal"))
}

#[test]
fn nothing_at_all_one_pixel_and_one_channel() {
    each_isa("smallest shapes", |isa| {
        let mut seed = 0;
        for (m, n, kind) in [
            (1, 1, ConvKind::Standard),
            (1, 1, het(1, 1, 1)),
            (1, 40, het(1, 40, 1)),
            (40, 1, het(40, 1, 4)),
            (33, 35, het(33, 35, 4)),
            (7, 7, ConvKind::Grouped(7)),
            (64, 64, ConvKind::Grouped(64)),
        ] {
            for geometry in [Conv2dGeometry::same(3, 1), Conv2dGeometry::same(3, 2), Conv2dGeometry::square(1, 1, 0, 1)]
            {
                let spec = ConvSpec::by_class(m, n, geometry, kind.clone());
                for (batch, size) in [(0, [5, 4]), (1, [1, 1]), (3, [1, 1]), (2, [1, 9]), (1, [9, 1])] {
                    check(&spec, isa, batch, size, seed);
                    seed += 1;
                }
            }
        }
    });
}

/// Depthwise rows: pixels at and around those that are summed together, vectors at and around whole ones, more taps than have
/// sums in registers, images that are grouped and images that are not, and every distance between pixels.
#[test]
fn edges_of_depthwise_rows() {
    each_isa("depthwise rows", |isa| {
        let lanes = isa.lanes();
        let mut seed = 0;
        for channels in [1, lanes - 1, lanes, lanes + 1, 2 * lanes] {
            for width in (1..=15).chain([18, 19, 20, 33]) {
                for (kernel, stride, padding, dilation) in [
                    ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
                    ([3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
                    ([5, 5], [1, 2], [2, 2, 2, 2], [1, 1]),
                    ([1, 3], [3, 1], [0, 5, 0, 4], [1, 2]),
                ] {
                    let geometry = Conv2dGeometry { kernel, stride, padding, dilation };
                    if geometry.output_size([3, width]).is_err() {
                        continue;
                    }
                    let spec = ConvSpec::natural(channels, channels, geometry, ConvKind::Grouped(channels));
                    check(&spec, isa, 1 + seed as usize % 3, [3, width], seed);
                    seed += 1;
                }
            }
        }
    });
}

/// Depthwise bundles: several images, one that is just large enough or too large, rows that read too much together and alone.
#[test]
fn edges_of_depthwise_bundles() {
    each_isa("depthwise bundles", |isa| {
        let widths = [isa.lanes() + 3, 2 * isa.lanes()];
        for (seed, (batch, size)) in [
            (37, [4, 4]),
            (70, [2, 2]),
            (9, [6, 7]),
            (3, [17, 15]),
            (2, [16, 16]),
            (2, [16, 17]),
            (2, [9, 40]),
            (2, [40, 3]),
            (2, [4, 100]),
            (1, [2, 300]),
            (2, [5, 130]),
        ]
        .into_iter()
        .enumerate()
        {
            for (stride, channels) in [(1, widths[0]), (2, widths[0]), (1, widths[1])] {
                let geometry = Conv2dGeometry::same(3, stride);
                let spec = ConvSpec::natural(channels, channels, geometry, ConvKind::Grouped(channels));
                check(&spec, isa, batch, size, seed as u64);
            }
        }
    });
}

/// Pixels that lie a multiple of a cache's way apart are computed by smaller tiles.
#[test]
fn sources_that_share_a_set() {
    each_isa("sources that share a set", |isa| {
        for (kind, stride) in [(ConvKind::Standard, 1), (het(64, 40, 8), 1), (het(64, 40, 4), 2)] {
            check(&ConvSpec::by_class(64, 40, Conv2dGeometry::same(3, stride), kind), isa, 14, [4, 4], 11);
        }
        check(&ConvSpec::natural(64, 33, Conv2dGeometry::same(1, 1), ConvKind::Standard), isa, 7, [1, 16], 12);
    });
}

/// Few pixels are computed in two passes, more of them in one.
#[test]
fn few_pixels() {
    each_isa("few pixels", |isa| {
        for (seed, size) in [[1, 1], [2, 2], [3, 2], [4, 4], [5, 7], [8, 8], [9, 8]].into_iter().enumerate() {
            for (m, n, parts, stride) in [(64, 64, 2, 1), (64, 128, 4, 1), (128, 64, 2, 1), (64, 64, 2, 2)] {
                let spec = ConvSpec::by_class(m, n, Conv2dGeometry::same(3, stride), het(m, n, parts));
                check(&spec, isa, 1 + seed % 3, size, seed as u64);
            }
        }
    });
}

/// Winograd's pieces are 4×4: images at and around their multiples, and every padding.
#[test]
fn edges_of_winograd_pieces() {
    each_isa("edges of pieces", |isa| {
        let mut seed = 0;
        for size in [2, 3, 4, 5, 7, 8, 9, 12, 13] {
            for padding in [[1, 1, 1, 1], [0, 0, 0, 0], [2, 2, 2, 2], [3, 0, 1, 2]] {
                let geometry = Conv2dGeometry { padding, ..Conv2dGeometry::same(3, 1) };
                if geometry.output_size([size, size + 1]).is_err() {
                    continue;
                }
                for (m, n, kind) in [(20, 36, ConvKind::Standard), (32, 64, het(32, 64, 4)), (24, 24, het(24, 24, 3))] {
                    check(&ConvSpec::by_class(m, n, geometry.clone(), kind), isa, 3, [size, size + 1], seed);
                    seed += 1;
                }
            }
        }
    });
}

/// What one value that is not finite does to a layer without idle lanes.
fn outputs(
    spec: &ConvSpec,
    isa: Isa,
    algorithm: Algorithm,
    direction: Direction,
    spoilt: (usize, f32),
) -> [Vec<f32>; 2] {
    let conv = Conv::new(spec.clone(), [9, 9]).expect("fits");
    let mut numbers = Numbers(3);
    let weights = Weights::new(spec, || numbers.next());
    let packed = conv.pack(isa, direction, algorithm, weights.get());
    let mut input = numbers.vec(81 * spec.in_channels);
    let run = |input: &[f32]| match direction {
        Direction::Forward => conv.forward_with_sums(1, Input::Plain(input), &packed, None).0,
        Direction::GradInput => conv.grad_input(1, input, &packed),
    };
    let clean = run(&input);
    input[spoilt.0] = spoilt.1;
    [clean, run(&input)]
}

#[test]
fn values_that_are_not_finite_reach_their_windows_and_nothing_else() {
    let (channels, at) = (64, (4 * 9 + 4) * 64 + 21);
    each_isa("values that are not finite", |isa| {
        for kind in [ConvKind::Standard, het(channels, channels, 4), ConvKind::Grouped(4), ConvKind::Grouped(64)] {
            let spec = ConvSpec::by_class(channels, channels, Conv2dGeometry::same(3, 1), kind);
            let conv = Conv::new(spec.clone(), [9, 9]).expect("fits");
            // The classes of these layers are equal runs of stored channels on both sides.
            let class = |channel: usize| match &spec.kind {
                ConvKind::Grouped(groups) => channel / (channels / groups),
                ConvKind::Het(_) => channel / 16,
                ConvKind::Standard => 0,
            };
            for spoilt in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                for (&algorithm, direction) in
                    conv.algorithms().iter().flat_map(|a| [(a, Direction::Forward), (a, Direction::GradInput)])
                {
                    let [clean, got] = outputs(&spec, isa, algorithm, direction, (at, spoilt));
                    for (index, (clean, got)) in clean.iter().zip(&got).enumerate() {
                        let (pixel, channel) = (index / channels, index % channels);
                        let away = [(pixel / 9).abs_diff(4), (pixel % 9).abs_diff(4)];
                        let label = format!("{:?} {isa:?} {algorithm:?} {direction:?} {away:?}", spec.kind);
                        let het = matches!(spec.kind, ConvKind::Het(_));
                        let reads =
                            away.iter().all(|&a| a <= 1) && class(channel) == class(21) || het && away == [0, 0];
                        if reads && algorithm != Algorithm::Winograd && spoilt.is_infinite() {
                            assert!(got.is_infinite(), "{label}: {got}");
                        } else if reads {
                            assert!(!got.is_finite(), "{label}: {got}");
                        } else if algorithm != Algorithm::Winograd || [pixel / 9, pixel % 9].contains(&8) {
                            // Winograd's algorithm spreads them over the pieces of 4×4 that read them, which no piece of
                            // the last row and column does.
                            assert_eq!(got.to_bits(), clean.to_bits(), "{label}");
                        }
                    }
                }
            }
        }
    });
}

/// A slice between two pages that cannot be read: it begins right behind the one, or ends right before the other.
#[cfg(unix)]
struct Guarded {
    base: *mut u8,
    page: usize,
    /// Pages between the closed ones, in bytes.
    bytes: usize,
    first: *mut f32,
    len: usize,
}

/// Which closed page a slice touches.
#[cfg(unix)]
#[derive(Clone, Copy, Debug)]
enum Closed {
    Before,
    Behind,
}

#[cfg(unix)]
impl Guarded {
    fn new(closed: Closed, values: &[f32]) -> Self {
        // SAFETY: an anonymous mapping of its own, whose first and last page are then closed; the values are copied between.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let bytes = std::mem::size_of_val(values).next_multiple_of(page);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), bytes + 2 * page, access, kind, -1, 0);
            assert_ne!(base, libc::MAP_FAILED, "a mapping");
            let base = base.cast::<u8>();
            for end in [base, base.add(page + bytes)] {
                assert_eq!(libc::mprotect(end.cast(), page, libc::PROT_NONE), 0, "a closed page");
            }
            let first = match closed {
                Closed::Before => base.add(page),
                Closed::Behind => base.add(page + bytes - std::mem::size_of_val(values)),
            };
            let mut guarded = Self { base, page, bytes, first: first.cast(), len: values.len() };
            guarded.get_mut().copy_from_slice(values);
            guarded
        }
    }

    fn get_mut(&mut self) -> &mut [f32] {
        // SAFETY: `len` values between the closed pages, all initialised (the system clears pages), borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

#[cfg(unix)]
impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing refers to any more.
        unsafe { libc::munmap(self.base.cast(), self.bytes + 2 * self.page) };
    }
}

#[cfg(unix)]
#[test]
fn nothing_is_read_or_written_outside() {
    let team = Team::new(2);
    each_isa("closed pages", |isa| {
        for (m, n, kind) in [
            (64, 64, het(64, 64, 4)),
            (64, 64, het(64, 64, 32)),
            (16, 16, het(16, 16, 4)),
            (17, 19, het(17, 19, 3)),
            (3, 33, ConvKind::Standard),
            (31, 5, ConvKind::Standard),
            (40, 40, ConvKind::Grouped(40)),
            (32, 32, ConvKind::Grouped(32)),
        ] {
            // The window of 1×1 last: HetConv has a centre alone there.
            let windows = [
                (3, 1, [5, 6]),
                (3, 2, [5, 6]),
                (3, 1, [1, 1]),
                (3, 1, [17, 18]),
                (3, 1, [8, 8]),
                (1, 1, [7, 7]),
                (1, 2, [7, 7]),
            ];
            let closed = [Closed::Before, Closed::Behind];
            for ((kernel, stride, size), closed) in windows.into_iter().flat_map(|w| closed.map(|closed| (w, closed))) {
                let guarded = |values: &[f32]| Guarded::new(closed, values);
                let spec = ConvSpec::by_class(m, n, Conv2dGeometry::same(kernel, stride), kind.clone());
                let conv = Conv::new(spec.clone(), size).expect("fits");
                let mut numbers = Numbers(5);
                let mut weights = Weights::new(&spec, || numbers.next());
                let outputs = 2 * conv.out_size().iter().product::<usize>() * n;
                let mut input = guarded(&numbers.vec(2 * size[0] * size[1] * m));
                let mut bias = guarded(&numbers.vec(n));
                let mut output = guarded(&vec![0.0; outputs]);
                let mut grad = guarded(&numbers.vec(outputs));
                let [mut scale, mut shift] = [(); 2].map(|()| guarded(&numbers.vec(m)));
                let stats = BatchStats::new(&norm::column_sums(isa, m, input.get_mut()), 2 * size[0] * size[1], 1e-5);
                for &algorithm in conv.algorithms() {
                    let packed = conv.pack(isa, Direction::Forward, algorithm, weights.get());
                    conv.forward(2, input.get_mut(), &packed, Some(bias.get_mut()), output.get_mut());
                    let again = Conv::new(spec.clone(), size).expect("as before");
                    let activation = Some(Activation::Relu);
                    let prepared = again.prepare(isa, algorithm, weights.get(), Some(bias.get_mut()), activation);
                    let mut scratch = [(); 2].map(|()| guarded(&vec![0.0; prepared.scratch_len(2).max(1)]));
                    let mut scratch = scratch.each_mut().map(Guarded::get_mut);
                    let residual = Some(Residual::Values(grad.get_mut()));
                    let batch =
                        PreparedBatch { images: 2, source: input.get_mut(), residual, target: output.get_mut() };
                    prepared.run(&team, &mut scratch, batch, None);
                    let batch =
                        PreparedBatch { images: 2, source: input.get_mut(), residual, target: output.get_mut() };
                    prepared.run_alone(scratch[0], batch);
                    if algorithm != Algorithm::Depthwise {
                        // As the last channels of wider pixels, and of the first ones where the window has one tap.
                        let wider = kernel == 1 && algorithm == Algorithm::Direct;
                        let prepared = if wider { prepared.reading_wider(m + 7) } else { prepared };
                        let prepared = prepared.into_segment(n + 5, 5);
                        let [from, to] = prepared.pitches();
                        let mut source = guarded(&numbers.vec(input.get_mut().len() / m * from));
                        let mut target = guarded(&vec![0.0; outputs / n * to]);
                        let (source, target) = (source.get_mut(), target.get_mut());
                        prepared.run_alone(scratch[0], PreparedBatch { images: 2, source, residual: None, target });
                    }
                    let packed = conv.pack(isa, Direction::GradInput, algorithm, weights.get());
                    std::hint::black_box(conv.grad_input(2, grad.get_mut(), &packed));
                    let (x, grad) = (&*input.get_mut(), &*grad.get_mut());
                    let (scale, shift) = (&*scale.get_mut(), &*shift.get_mut());
                    let batch = |input| Batch { images: 2, input, grad_output: grad };
                    conv.grad_weight(isa, algorithm, batch(Input::Plain(x)), weights.get_mut());
                    let forward = conv.pack(isa, Direction::Forward, algorithm, weights.get());
                    for (relu, gate) in [(false, Gate::Open), (true, Gate::Input { scale, shift })] {
                        let input = Input::Scaled { x, affine: Affine { scale, shift, relu } };
                        conv.grad_weight(isa, algorithm, batch(input), weights.get_mut());
                        std::hint::black_box(conv.forward_with_sums(2, input, &forward, None));
                        let norm = NormBackward { x, gate, gamma: scale, stats: &stats };
                        std::hint::black_box(conv.grad_input_through_norm(2, grad, &packed, &norm));
                    }
                }
            }
        }
    });
}

/// Grad-input that is computed along with grad-weight: the images of a batch that falls into unequal parts.
#[cfg(unix)]
#[test]
fn nothing_is_read_or_written_outside_by_the_backward_pass() {
    each_isa("closed pages, backward pass", |isa| {
        let kinds = [ConvKind::Standard, het(18, 18, 2), ConvKind::Grouped(18)];
        for (kind, closed) in
            kinds.into_iter().flat_map(|kind| [(kind.clone(), Closed::Before), (kind, Closed::Behind)])
        {
            let spec = ConvSpec::by_class(18, 18, Conv2dGeometry::same(3, 1), kind);
            let conv = Conv::new(spec.clone(), [7, 5]).expect("fits");
            let mut numbers = Numbers(5);
            let mut weights = Weights::new(&spec, || numbers.next());
            let len = 17 * 7 * 5 * 18;
            let [mut x, mut grad] = [(); 2].map(|()| Guarded::new(closed, &numbers.vec(len)));
            for &algorithm in conv.algorithms() {
                let packed = conv.pack(isa, Direction::GradInput, algorithm, weights.get());
                let batch = Batch { images: 17, input: Input::Plain(x.get_mut()), grad_output: grad.get_mut() };
                let (got, _) = conv.backward(algorithm, batch, &packed, weights.get_mut(), None);
                let want = conv.grad_input(17, grad.get_mut(), &packed);
                let want: Vec<f64> = want.into_iter().map(f64::from).collect();
                assert_close(&format!("{algorithm:?}"), &got, &want, 1e-5);

                let forward = conv.pack(isa, Direction::Forward, algorithm, weights.get());
                let reordered = Reordered::new(spec.clone(), [7, 5]).expect("fits");
                let mut output = Guarded::new(closed, &vec![0.0; len]);
                reordered.forward(17, x.get_mut(), &forward, None, output.get_mut());
                reordered.grad_input(17, grad.get_mut(), &packed, output.get_mut());
                let (x, grad) = (x.get_mut(), grad.get_mut());
                reordered.grad_weight(isa, algorithm, 17, x, grad, weights.get_mut());
            }
        }
    });
}

/// What is computed value by value, around whole vectors.
#[cfg(unix)]
#[test]
fn nothing_is_read_or_written_outside_by_activations_and_batch_norms() {
    each_isa("closed pages, batch-norm", |isa| {
        for (channels, closed) in
            [1, 7, 16, 17, 33].into_iter().flat_map(|c| [Closed::Before, Closed::Behind].map(|closed| (c, closed)))
        {
            let mut numbers = Numbers(5);
            let [mut x, mut residual, mut grad] = [(); 3].map(|()| Guarded::new(closed, &numbers.vec(13 * channels)));
            let [mut scale, mut shift] = [(); 2].map(|()| Guarded::new(closed, &numbers.vec(channels)));
            let (scale, shift) = (&*scale.get_mut(), &*shift.get_mut());
            let stats = BatchStats::new(&norm::column_sums(isa, channels, x.get_mut()), 13, 1e-5);
            let affine = Affine { scale, shift, relu: true };
            let y = norm::scale_shift(isa, x.get_mut(), Some(residual.get_mut()), affine);
            let mut y = Guarded::new(closed, &y);
            let gate = Gate::Output(y.get_mut());
            let norm = NormBackward { x: x.get_mut(), gate, gamma: scale, stats: &stats };
            std::hint::black_box(norm.gradients(isa, grad.get_mut(), true));
            elementwise::activate_all(isa, Activation::HardSwish, x.get_mut());
        }
    });
}

/// Channels whose values are far from 0 and close to each other keep their variance.
#[test]
fn sums_of_channels_far_from_zero() {
    each_isa("far from zero", |isa| {
        for kind in [ConvKind::Standard, het(32, 32, 4), het(32, 32, 32), ConvKind::Grouped(32)] {
            let spec = ConvSpec::by_class(32, 32, Conv2dGeometry::same(3, 1), kind);
            let conv = Conv::new(spec.clone(), [9, 11]).expect("fits");
            let mut numbers = Numbers(7);
            let weights = Weights::new(&spec, || 0.02 * numbers.next());
            let (input, bias) = (numbers.vec(3 * 9 * 11 * 32), [1000.0; 32]);
            for &algorithm in conv.algorithms() {
                let packed = conv.pack(isa, Direction::Forward, algorithm, weights.get());
                let (output, sums) = conv.forward_with_sums(3, Input::Plain(&input), &packed, Some(&bias));
                let count = (output.len() / 32) as f64;
                for channel in 0..32 {
                    let values = || output.iter().skip(channel).step_by(32).map(|&value| f64::from(value));
                    let mean = values().sum::<f64>() / count;
                    let exact = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
                    let found = sums.squares[channel] / count - (sums.sums[channel] / count).powi(2);
                    assert!(
                        exact > 1e-4 && (found - exact).abs() < 1e-4 * exact,
                        "{isa:?} {algorithm:?}: {found} {exact}"
                    );
                }
            }
        }
    });
}

/// Kernels read where packed weights say, so these have to be the convolution's own.
#[test]
fn weights_packed_by_another_convolution_are_refused() {
    let packed_by = |channels: usize, size: usize, direction: Direction| {
        let spec = ConvSpec::by_class(channels, 16, Conv2dGeometry::same(3, 1), het(channels, 16, 2));
        let conv = Conv::new(spec.clone(), [size; 2]).expect("fits");
        conv.pack(
            Isa::selected().expect("an instruction set"),
            direction,
            Algorithm::Direct,
            Weights::new(&spec, || 1.0).get(),
        )
    };
    let spec = ConvSpec::by_class(16, 16, Conv2dGeometry::same(3, 1), het(16, 16, 2));
    let conv = Conv::new(spec.clone(), [8; 2]).expect("fits");
    let reordered = Reordered::new(spec, [8; 2]).expect("fits");
    let input = vec![1.0; 32 * 8 * 8 * 16];
    let mut output = vec![0.0; input.len()];
    conv.forward(32, &input, &packed_by(16, 8, Direction::Forward), None, &mut output);
    let others = [(32, 8, Direction::Forward), (16, 9, Direction::Forward), (16, 8, Direction::GradInput)];
    for (channels, size, direction) in others {
        let packed = packed_by(channels, size, direction);
        let mut refused = |run: &mut dyn FnMut(&mut [f32])| {
            catch_unwind(AssertUnwindSafe(|| run(&mut output))).expect_err("other weights")
        };
        refused(&mut |output| conv.forward(32, &input, &packed, None, output));
        refused(&mut |output| reordered.forward(32, &input, &packed, None, output));
    }
}

/// A batch-norm of another activation than the convolution's input is refused: kernels read where its lengths say.
#[test]
fn batch_norms_of_other_activations_are_refused() {
    let isa = Isa::selected().expect("an instruction set");
    for kind in [het(16, 16, 2), ConvKind::Grouped(16)] {
        let spec = ConvSpec::by_class(16, 16, Conv2dGeometry::same(3, 1), kind);
        let conv = Conv::new(spec.clone(), [4; 2]).expect("fits");
        let mut weights = Weights::new(&spec, || 1.0);
        let [forward, backward] = [Direction::Forward, Direction::GradInput]
            .map(|direction| conv.pack(isa, direction, conv.exact(), weights.get()));
        let (x, grad) = (vec![1.0; 2 * 16 * 16], vec![1.0; 2 * 16 * 16]);
        let stats = |channels: usize| BatchStats::new(&norm::column_sums(isa, channels, &x), 32, 1e-5);
        let (good, ones) = (stats(16), vec![1.0; 17]);
        let mut run = |x: &[f32], [scale, shift, gamma]: [usize; 3], stats: &BatchStats, pass: usize| {
            let (scale, shift, gamma) = (&ones[..scale], &ones[..shift], &ones[..gamma]);
            let input = Input::Scaled { x, affine: Affine { scale, shift, relu: true } };
            let backward_of = NormBackward { x, gate: Gate::Input { scale, shift }, gamma, stats };
            catch_unwind(AssertUnwindSafe(|| match pass {
                0 => drop(conv.forward_with_sums(2, input, &forward, None)),
                1 => {
                    let batch = Batch { images: 2, input, grad_output: &grad };
                    conv.grad_weight(isa, conv.exact(), batch, weights.get_mut());
                }
                _ => drop(conv.grad_input_through_norm(2, &grad, &backward, &backward_of)),
            }))
            .is_err()
        };
        for pass in 0..3 {
            assert!(!run(&x, [16; 3], &good, pass), "pass {pass}");
            assert!(run(&x, [15, 16, 16], &good, pass), "a short scale, pass {pass}");
            assert!(run(&x, [16, 17, 16], &good, pass), "a long shift, pass {pass}");
            assert!(run(&x[..16 * 16], [16; 3], &good, pass), "an image too few, pass {pass}");
        }
        assert!(run(&x, [16, 16, 8], &good, 2), "γ of other channels");
        assert!(run(&x, [16; 3], &stats(8), 2), "statistics of other channels");
    }
}

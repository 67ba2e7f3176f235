//! Batch-norm and pooling against their definitions in `f64`, and their gradients against the chain rule by definition or
//! finite differences.

mod common;

use common::{Numbers, assert_close, each_isa};
use hetconv_core::Conv2dGeometry;
use hetconv_kernels::norm::{self, Affine, BatchStats, Gate, NormBackward, NormGradients};
use hetconv_kernels::pool::{self, Pool, PooledImages};

/// Batch-norm, residual and ReLU by the definition.
fn batch_norm(x: &[f64], r: Option<&[f64]>, gamma: &[f64], beta: &[f64], relu: bool, epsilon: f64) -> Vec<f64> {
    let channels = gamma.len();
    let rows = x.len() / channels;
    let mut y = vec![0.0; x.len()];
    for c in 0..channels {
        let column = |row: usize| x[row * channels + c];
        let mean = (0..rows).map(column).sum::<f64>() / rows as f64;
        let variance = (0..rows).map(|row| (column(row) - mean).powi(2)).sum::<f64>() / rows as f64;
        for row in 0..rows {
            let at = row * channels + c;
            let value = gamma[c] * (x[at] - mean) / (variance + epsilon).sqrt() + beta[c] + r.map_or(0.0, |r| r[at]);
            y[at] = if relu { value.max(0.0) } else { value };
        }
    }
    y
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn batch_norm_and_its_gradients() {
    each_isa("batch-norm", |isa| {
        for (rows, channels, relu, with_residual) in [
            (1, 3, false, false),
            (7, 1, true, true),
            (300, 17, true, true),
            (65, 16, true, false),
            (130, 33, false, true),
        ] {
            let mut numbers = Numbers((rows * channels) as u64);
            let len = rows * channels;
            // A mean well away from 0, as activations have it.
            let x: Vec<f32> = numbers.vec(len).iter().map(|v| v * 2.0 + 1.5).collect();
            let residual = with_residual.then(|| numbers.vec(len));
            let gamma: Vec<f32> = numbers.vec(channels).iter().map(|v| v + 1.5).collect();
            let (beta, dy) = (numbers.vec(channels), numbers.vec(len));
            let stats = BatchStats::new(&norm::column_sums(isa, channels, &x), rows, 1e-5);
            let (scale, shift) = stats.scale_and_shift(&gamma, &beta);
            let affine = Affine { scale: &scale, shift: &shift, relu };
            let y = norm::scale_shift(isa, &x, residual.as_deref(), affine);
            let r64 = residual.as_deref().map(exact);
            let (x64, gamma64, beta64) = (exact(&x), exact(&gamma), exact(&beta));
            let want = batch_norm(&x64, r64.as_deref(), &gamma64, &beta64, relu, f64::from(1e-5f32));
            // A single row has no variance: 1/√ε magnifies rounding, and the result is β + residual.
            assert_close("y", &y, &want, if rows == 1 { 1e-3 } else { 2e-5 });

            let gate = match (relu, with_residual) {
                (false, _) => Gate::Open,
                (true, true) => Gate::Output(&y),
                (true, false) => Gate::Input { scale: &scale, shift: &shift },
            };
            let backward = NormBackward { x: &x, gate, gamma: &gamma, stats: &stats };
            let mut over = dy.clone();
            let NormGradients { x: dx, gamma: dgamma, beta: dbeta } = backward.gradients(isa, &mut over, with_residual);
            assert_eq!(dx.is_some(), with_residual);
            let (dx, dr) = dx.map_or((over.clone(), None), |dx| (dx, Some(over)));
            let dz: Vec<f64> = (0..len).map(|i| if relu && want[i] <= 0.0 { 0.0 } else { f64::from(dy[i]) }).collect();
            if let Some(dr) = dr {
                assert_close("grad-residual", &dr, &dz, 0.0);
            }
            if rows == 1 {
                continue;
            }
            // Σ dz·∂z/∂(one number), by central differences without the ReLU, whose gate is in dz.
            let along = |step: &dyn Fn(f64) -> (Vec<f64>, Vec<f64>, Vec<f64>)| {
                let at = |h: f64| {
                    let (x, gamma, beta) = step(h);
                    batch_norm(&x, None, &gamma, &beta, false, f64::from(1e-5f32))
                };
                let (up, down) = (at(1e-4), at(-1e-4));
                (0..len).map(|i| dz[i] * (up[i] - down[i]) / 2e-4).sum::<f64>()
            };
            let moved = |values: &[f64], i: usize, h: f64| {
                let mut values = values.to_vec();
                values[i] += h;
                values
            };
            for i in [0, len / 2, len - 1] {
                let numeric = along(&|h| (moved(&x64, i, h), gamma64.clone(), beta64.clone()));
                assert_close("grad-x", &dx[i..=i], &[numeric], 1e-4);
            }
            for c in 0..channels {
                let numeric = along(&|h| (x64.clone(), moved(&gamma64, c, h), beta64.clone()));
                assert_close("grad-gamma", &dgamma[c..=c], &[numeric], 1e-4);
                let numeric = along(&|h| (x64.clone(), gamma64.clone(), moved(&beta64, c, h)));
                assert_close("grad-beta", &dbeta[c..=c], &[numeric], 1e-4);
            }
        }
    });
}

#[test]
fn small_differences_of_large_values_have_a_variance() {
    each_isa("far from zero", |isa| {
        // 1000 and 1001 in turn, 16 and 17 channels.
        for channels in [16, 17] {
            let x: Vec<f32> = (0..1024 * channels).map(|i| 1000.0 + (i / channels % 2) as f32).collect();
            let stats = BatchStats::new(&norm::column_sums(isa, channels, &x), 1024, 1e-5);
            assert!(stats.mean.iter().all(|&mean| mean == 1000.5), "{stats:?}");
            assert!(stats.variance.iter().all(|&variance| (variance - 0.25).abs() < 1e-6), "{stats:?}");
        }
    });
}

#[test]
fn statistics_of_no_numbers_are_none() {
    each_isa("no numbers", |isa| {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for at in [0, 1] {
                let mut x = [1.0, 5.0, 2.0, 6.0];
                x[2 * at] = bad;
                let stats = BatchStats::new(&norm::column_sums(isa, 2, &x), 2, 1e-5);
                assert!(stats.variance[0].is_nan() && stats.inv_std[0].is_nan(), "{bad} {at}: {stats:?}");
                assert_eq!([stats.mean[1], stats.variance[1]], [5.5, 0.25], "the other channel");
            }
        }
    });
}

#[test]
fn known_statistics_scale_and_shift() {
    each_isa("scale and shift", |isa| {
        let x = [1.0, -2.0, 3.0, 4.0, f32::NAN, 6.0];
        let affine = Affine { scale: &[2.0, 1.0, 0.5], shift: &[1.0, 0.0, -5.0], relu: true };
        let y = norm::scale_shift(isa, &x, Some(&[10.0, 0.0, 0.0, 0.0, 0.0, -1.0]), affine);
        assert_eq!((y[0], y[1], y[2], y[3], y[5]), (13.0, 0.0, 0.0, 9.0, 0.0));
        assert!(y[4].is_nan());
        let mut rows = [f32::NAN; 6];
        norm::scale_shift_rows(isa, &x, affine, &mut rows);
        assert_eq!((rows[0], rows[1], rows[2], rows[3], rows[5]), (3.0, 0.0, 0.0, 9.0, 0.0));
        assert!(rows[4].is_nan());
    });
}

#[test]
fn pools_and_their_gradients() {
    each_isa("pooling", |isa| {
        let geometries = [
            Conv2dGeometry::square(2, 2, 0, 1),
            Conv2dGeometry::square(3, 2, 1, 1),
            Conv2dGeometry { kernel: [3, 2], stride: [1, 2], padding: [1, 0, 0, 1], dilation: [1, 2] },
            Conv2dGeometry { kernel: [4, 3], stride: [3, 1], padding: [5, 3, 2, 2], dilation: [2, 3] },
            Conv2dGeometry { kernel: [7, 6], stride: [1, 1], padding: [3, 3, 3, 2], dilation: [1, 1] },
        ];
        for geometry in geometries {
            let (batch, [h, w], channels) = (2, [7, 6], 5);
            let [oh, ow] = geometry.output_size([h, w]).expect("fits");
            let mut numbers = Numbers(3);
            let x = numbers.vec(batch * h * w * channels);
            let dy = numbers.vec(batch * oh * ow * channels);
            let mut want = [vec![f64::NEG_INFINITY; dy.len()], vec![0.0; dy.len()], vec![0.0; dy.len()]];
            let mut grads = [vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]];
            for b in 0..batch {
                for oy in 0..oh {
                    for ox in 0..ow {
                        for c in 0..channels {
                            let mut window = Vec::new();
                            for ky in 0..geometry.kernel[0] {
                                for kx in 0..geometry.kernel[1] {
                                    let y = (oy * geometry.stride[0] + ky * geometry.dilation[0]) as isize;
                                    let x = (ox * geometry.stride[1] + kx * geometry.dilation[1]) as isize;
                                    let (y, x) = (y - geometry.padding[0] as isize, x - geometry.padding[1] as isize);
                                    if (0..h as isize).contains(&y) && (0..w as isize).contains(&x) {
                                        window.push(((b * h + y as usize) * w + x as usize) * channels + c);
                                    }
                                }
                            }
                            let at = ((b * oh + oy) * ow + ox) * channels + c;
                            let best = window.iter().copied().fold(window[0], |a, i| if x[i] > x[a] { i } else { a });
                            want[0][at] = f64::from(x[best]);
                            grads[0][best] += f64::from(dy[at]);
                            for (k, count) in [(1, window.len()), (2, geometry.taps())] {
                                for &i in &window {
                                    want[k][at] += f64::from(x[i]) / count as f64;
                                    grads[k][i] += f64::from(dy[at]) / count as f64;
                                }
                            }
                        }
                    }
                }
            }
            let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
            let mut argmax = vec![0; dy.len()];
            let images = PooledImages { geometry: &geometry, batch, size: [h, w], channels };
            pool::max_pool_forward(isa, images, &x, &mut y, &mut argmax);
            assert_close("max", &y, &want[0], 0.0);
            pool::max_pool_backward(isa, images, &argmax, &dy, &mut dx);
            assert_close("max gradient", &dx, &grads[0], 1e-6);
            for (k, count_padding) in [(1, false), (2, true)] {
                pool::avg_pool_forward(isa, images, count_padding, &x, &mut y);
                assert_close("mean", &y, &want[k], 1e-6);
                pool::avg_pool_backward(isa, images, count_padding, &dy, &mut dx);
                assert_close("mean gradient", &dx, &grads[k], 1e-6);
            }
        }
    });
}

#[test]
fn global_average_and_its_gradient() {
    each_isa("global average", |isa| {
        let mut numbers = Numbers(9);
        let (x, dy) = (numbers.vec(2 * 6 * 3), numbers.vec(2 * 3));
        let (mut y, mut dx) = ([f32::NAN; 6], [f32::NAN; 36]);
        pool::global_avg_forward(isa, 2, 6, 3, &x, &mut y);
        pool::global_avg_backward(isa, 2, 6, 3, &dy, &mut dx);
        for image in 0..2 {
            for c in 0..3 {
                let mean = (0..6).map(|p| f64::from(x[(image * 6 + p) * 3 + c])).sum::<f64>() / 6.0;
                assert_close("mean", &y[image * 3 + c..=image * 3 + c], &[mean], 1e-6);
                for p in 0..6 {
                    let at = (image * 6 + p) * 3 + c;
                    assert_close("gradient", &dx[at..=at], &[f64::from(dy[image * 3 + c]) / 6.0], 1e-6);
                }
            }
        }
    });
}

#[test]
fn the_mean_of_many_pixels_is_exact() {
    each_isa("many pixels", |isa| {
        // More channels than are summed together; a sum of 90,000 tenths in one go would be off by a thousandth.
        let channels = 70;
        let x: Vec<f32> = (0..300 * 300 * channels).map(|i| (i % channels) as f32 + 0.1).collect();
        let mut y = vec![f32::NAN; channels];
        pool::global_avg_forward(isa, 1, 300 * 300, channels, &x, &mut y);
        let want: Vec<f64> = x[..channels].iter().map(|&x| f64::from(x)).collect();
        assert_close("mean", &y, &want, 2e-6);

        let geometry = Conv2dGeometry::square(300, 300, 0, 1);
        let images = PooledImages { geometry: &geometry, batch: 1, size: [300, 300], channels };
        y.fill(f32::NAN);
        pool::avg_pool_forward(isa, images, true, &x, &mut y);
        assert_close("mean of a window", &y, &want, 2e-6);
    });
}

#[test]
fn a_nan_wins_the_window_and_padding_never_does() {
    each_isa("max of unusual values", |isa| {
        let geometry = Conv2dGeometry::square(2, 2, 0, 1);
        let (mut y, mut argmax) = ([0.0; 1], [0; 1]);
        let images = PooledImages { geometry: &geometry, batch: 1, size: [2, 2], channels: 1 };
        pool::max_pool_forward(isa, images, &[1.0, f32::NAN, 3.0, 2.0], &mut y, &mut argmax);
        assert!(y[0].is_nan() && argmax[0] == 1);
        let padded = Conv2dGeometry::square(2, 1, 1, 1);
        let (mut y, mut argmax) = ([0.0; 4], [0; 4]);
        let images = PooledImages { geometry: &padded, size: [1, 1], ..images };
        pool::max_pool_forward(isa, images, &[-7.0], &mut y, &mut argmax);
        assert_eq!((y, argmax), ([-7.0; 4], [0; 4]));
    });
}

#[test]
fn inference_takes_the_same_largest_values() {
    each_isa("max without its place", |isa| {
        // Windows that overlap, and some that lie in the padding altogether.
        for geometry in [Conv2dGeometry::square(2, 2, 0, 1), Conv2dGeometry::square(3, 1, 3, 1)] {
            for channels in [1, 5, 16, 17, 70] {
                let size = [3, 4];
                let images = PooledImages { geometry: &geometry, batch: 2, size, channels };
                let pixels = 2 * size[0] * size[1];
                let finite = Numbers(11).vec(pixels * channels);
                // Unusual values at every pixel in turn, each in channels of their own, beside others and beside each other.
                for at in 0..pixels {
                    let unusual = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, 0.0];
                    let mut x = finite.clone();
                    for (c, value) in unusual.into_iter().cycle().enumerate().take(channels) {
                        x[at * channels + c] = value;
                        x[(at + 1) % pixels * channels + c] = if c % 3 == 0 { f32::NAN } else { -value };
                    }
                    let out = geometry.output_size(size).unwrap();
                    let mut want = vec![0.0; 2 * out[0] * out[1] * channels];
                    let mut argmax = vec![0; want.len()];
                    pool::max_pool_forward(isa, images, &x, &mut want, &mut argmax);
                    let mut found = vec![1.5; want.len()];
                    Pool::max(&geometry, size, channels).run_rows(isa, 0, &x, &mut found);
                    let alike = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                    assert!(want.iter().zip(&found).all(alike), "{geometry:?}, {channels} channels, pixel {at}");
                }
            }
        }
    });
}

//! Convolution by the definition: plain loops in `f64` over NHWC images in natural channel order, slow and obviously right.
//! Every kernel is tested against it.

use crate::conv::{ConvSpec, ConvWeights};
use hetconv_core::ConvKind;

/// The weight of (filter, channel, tap) in a dense masked view `[N, M, kh·kw]` of any layer's weights; 0 where the layer
/// has no weight.
pub fn dense_weights(spec: &ConvSpec, weights: ConvWeights<'_>) -> Vec<f64> {
    let (m, n, taps) = (spec.in_channels, spec.out_channels, spec.geometry.taps());
    let mut dense = vec![0.0; n * m * taps];
    for filter in 0..n {
        let mut slot = 0;
        for channel in 0..m {
            for tap in 0..taps {
                let at = (filter * m + channel) * taps + tap;
                dense[at] = match (&spec.kind, weights) {
                    (ConvKind::Het(pattern), ConvWeights::Het { center, ring }) => {
                        let middle = taps / 2;
                        if tap == middle {
                            center[filter * m + channel].into()
                        } else if pattern.is_spatial(filter, channel) {
                            let ring_tap = if tap < middle { tap } else { tap - 1 };
                            ring[(filter * pattern.max_spatial() + slot) * (taps - 1) + ring_tap].into()
                        } else {
                            0.0
                        }
                    }
                    (ConvKind::Grouped(groups), ConvWeights::Dense(weight)) => {
                        let width = m / groups;
                        let same = filter / (n / groups) == channel / width;
                        if same { weight[(filter * width + channel % width) * taps + tap].into() } else { 0.0 }
                    }
                    (_, ConvWeights::Dense(weight)) => weight[at].into(),
                    (_, ConvWeights::Het { .. }) => panic!("HetConv weights for another kind of convolution"),
                };
            }
            if let ConvKind::Het(pattern) = &spec.kind {
                slot += usize::from(pattern.is_spatial(filter, channel));
            }
        }
    }
    dense
}

/// Calls `visit(output index, input index, dense weight index)` for every product of the convolution: indices into
/// `[batch, out height, out width, N]`, `[batch, height, width, M]` and `[N, M, kh·kw]`.
fn products(spec: &ConvSpec, batch: usize, in_size: [usize; 2], mut visit: impl FnMut(usize, usize, usize)) {
    let geometry = &spec.geometry;
    let [height, width] = in_size;
    let [out_height, out_width] = geometry.output_size(in_size).expect("a window that fits");
    let (m, n, [kh, kw]) = (spec.in_channels, spec.out_channels, geometry.kernel);
    for b in 0..batch {
        for oy in 0..out_height {
            for ox in 0..out_width {
                for ky in 0..kh {
                    for kx in 0..kw {
                        let iy = (oy * geometry.stride[0] + ky * geometry.dilation[0]) as isize;
                        let ix = (ox * geometry.stride[1] + kx * geometry.dilation[1]) as isize;
                        let (iy, ix) = (iy - geometry.padding[0] as isize, ix - geometry.padding[1] as isize);
                        if iy < 0 || ix < 0 || iy >= height as isize || ix >= width as isize {
                            continue;
                        }
                        let pixel = (b * height + iy as usize) * width + ix as usize;
                        for f in 0..n {
                            for c in 0..m {
                                let output = ((b * out_height + oy) * out_width + ox) * n + f;
                                visit(output, pixel * m + c, (f * m + c) * kh * kw + ky * kw + kx);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Output, `[batch, out height, out width, N]`.
pub fn forward(spec: &ConvSpec, batch: usize, in_size: [usize; 2], input: &[f32], dense: &[f64]) -> Vec<f64> {
    let [h, w] = spec.geometry.output_size(in_size).expect("a window that fits");
    let mut output = vec![0.0; batch * h * w * spec.out_channels];
    products(spec, batch, in_size, |y, x, weight| output[y] += f64::from(input[x]) * dense[weight]);
    output
}

/// Gradient by the input, `[batch, height, width, M]`.
pub fn grad_input(spec: &ConvSpec, batch: usize, in_size: [usize; 2], grad: &[f32], dense: &[f64]) -> Vec<f64> {
    let mut grad_input = vec![0.0; batch * in_size[0] * in_size[1] * spec.in_channels];
    products(spec, batch, in_size, |y, x, weight| grad_input[x] += f64::from(grad[y]) * dense[weight]);
    grad_input
}

/// Gradient by the dense weights `[N, M, kh·kw]`, before any mask.
pub fn grad_weight(spec: &ConvSpec, batch: usize, in_size: [usize; 2], input: &[f32], grad: &[f32]) -> Vec<f64> {
    let mut grad_weight = vec![0.0; spec.out_channels * spec.in_channels * spec.geometry.taps()];
    products(spec, batch, in_size, |y, x, weight| grad_weight[weight] += f64::from(grad[y]) * f64::from(input[x]));
    grad_weight
}

//! Random numbers, comparison, and a plain float64 interpreter of graphs that trains as PyTorch does.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;

use hetconv_core::ConvKind;
use hetconv_graph::{Activation, Graph, Node, Op, Shape, Weights};

/// Pseudorandom numbers from a counter (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    /// Uniform in [−1, 1).
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        ((f64::from(self.next()) + 1.0) / 2.0 * limit as f64) as usize
    }

    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// Asserts |got − want| ≤ tolerance + tolerance·|want|, element by element.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance + tolerance * want.abs(), "{what}[{i}]: {got}, expected {want}");
    }
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// `[channel][pixel]`.
type Image = Vec<Vec<f64>>;

/// One value of a network for a whole batch.
type Value = Vec<Image>;

/// Weights by name, in float64.
pub type Numbers64 = BTreeMap<String, Vec<f64>>;

pub fn weights64(weights: &Weights) -> Numbers64 {
    weights.iter().map(|(name, tensor)| (name.to_owned(), wide(&tensor.data))).collect()
}

/// Runs a graph in natural order with plain loops. With `training`, batch-norm uses the batch's statistics and its
/// running ones are moved (momentum 0.1, unbiased variance). `images` are NHWC. Result: `[batch][feature]` of node `wanted`.
pub fn run(graph: &Graph, weights: &mut Numbers64, images: &[f64], training: bool, wanted: usize) -> Vec<Vec<f64>> {
    let shapes = graph.shapes().unwrap();
    let mut values: Vec<Value> = Vec::new();
    for (node, &shape) in graph.nodes.iter().zip(&shapes) {
        let operands: Vec<(&Value, Shape)> = node.inputs.iter().map(|&id| (&values[id], shapes[id])).collect();
        values.push(evaluate(node, &operands, shape, weights, images, training));
    }
    values[wanted].iter().map(|image| image.concat()).collect()
}

fn evaluate(
    node: &Node,
    operands: &[(&Value, Shape)],
    shape: Shape,
    weights: &mut Numbers64,
    images: &[f64],
    training: bool,
) -> Value {
    let [height, width] = shape.size();
    let channels = shape.channels();
    let name = |suffix: &str| format!("{}.{suffix}", node.name);
    let per_image = |f: &dyn Fn(&Image) -> Image| operands[0].0.iter().map(f).collect();
    let elementwise = |f: &dyn Fn(f64) -> f64| -> Value {
        per_image(&|image| image.iter().map(|plane| plane.iter().map(|&v| f(v)).collect()).collect())
    };
    match &node.op {
        Op::Input { .. } => images
            .chunks_exact(shape.elements())
            .map(|image| (0..channels).map(|c| image.iter().skip(c).step_by(channels).copied().collect()).collect())
            .collect(),
        Op::Conv2d { in_channels, geometry, kind, bias, .. } => {
            let [in_height, in_width] = operands[0].1.size();
            let taps = geometry.taps();
            let tensor = |suffix: &str| weights.get(&name(suffix)).map_or(&[][..], Vec::as_slice);
            let (dense, center, ring, shift) = (tensor("weight"), tensor("center"), tensor("ring"), tensor("bias"));
            // The weight of one filter, channel and tap; 0 where there is none.
            let weight = |f: usize, c: usize, tap: usize| match kind {
                ConvKind::Standard => dense[(f * in_channels + c) * taps + tap],
                ConvKind::Grouped(groups) => {
                    let (per, group) = (in_channels / groups, f / (channels / groups));
                    if c / per == group { dense[(f * per + c % per) * taps + tap] } else { 0.0 }
                }
                ConvKind::Het(pattern) if tap == taps / 2 => center[f * pattern.in_channels() + c],
                ConvKind::Het(pattern) => match pattern.spatial_channels(f).position(|spatial| spatial == c) {
                    Some(slot) => {
                        let tap = if tap > taps / 2 { tap - 1 } else { tap };
                        ring[(f * pattern.max_spatial() + slot) * (taps - 1) + tap]
                    }
                    None => 0.0,
                },
            };
            let triples = (0..channels).flat_map(|f| (0..*in_channels).map(move |c| (f, c)));
            let window: Vec<f64> = triples
                .flat_map(|(f, c)| (0..taps).map(move |tap| (f, c, tap)))
                .map(|(f, c, t)| weight(f, c, t))
                .collect();
            per_image(&|image| {
                let pixel = |f: usize, y: usize, x: usize| {
                    let mut sum = if *bias { shift[f] } else { 0.0 };
                    for tap in 0..taps {
                        let row = y * geometry.stride[0] + tap / geometry.kernel[1] * geometry.dilation[0];
                        let column = x * geometry.stride[1] + tap % geometry.kernel[1] * geometry.dilation[1];
                        let (Some(row), Some(column)) =
                            (row.checked_sub(geometry.padding[0]), column.checked_sub(geometry.padding[1]))
                        else {
                            continue;
                        };
                        if row < in_height && column < in_width {
                            let at = row * in_width + column;
                            let weight = |c: usize| window[(f * in_channels + c) * taps + tap];
                            sum += (0..*in_channels).map(|c| image[c][at] * weight(c)).sum::<f64>();
                        }
                    }
                    sum
                };
                planes(channels, height, width, pixel)
            })
        }
        Op::Linear { in_features, bias, .. } => per_image(&|image| {
            let features = image.concat();
            let output = |f: usize| {
                let row = &weights[&name("weight")][f * in_features..(f + 1) * in_features];
                let sum: f64 = row.iter().zip(&features).map(|(w, x)| w * x).sum();
                vec![sum + if *bias { weights[&name("bias")][f] } else { 0.0 }]
            };
            (0..channels).map(output).collect()
        }),
        Op::BatchNorm { epsilon, .. } => {
            let x = operands[0].0;
            let count = (x.len() * height * width) as f64;
            let over = |c: usize, f: &dyn Fn(f64) -> f64| -> f64 {
                x.iter().flat_map(|image| &image[c]).map(|&v| f(v)).sum::<f64>() / count
            };
            let mut y = x.clone();
            for c in 0..channels {
                let (mean, variance) = if training {
                    let mean = over(c, &|v| v);
                    let variance = over(c, &|v| (v - mean).powi(2));
                    let unbiased = variance * count / (count - 1.0);
                    for (suffix, batch) in [("running_mean", mean), ("running_var", unbiased)] {
                        let running = &mut weights.get_mut(&name(suffix)).unwrap()[c];
                        *running = 0.9 * *running + 0.1 * batch;
                    }
                    (mean, variance)
                } else {
                    (weights[&name("running_mean")][c], weights[&name("running_var")][c])
                };
                let factor = weights[&name("weight")][c] / (variance + f64::from(*epsilon)).sqrt();
                let shift = weights[&name("bias")][c];
                for image in &mut y {
                    image[c].iter_mut().for_each(|v| *v = (*v - mean) * factor + shift);
                }
            }
            y
        }
        Op::Activation { function } => elementwise(&|x| {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            let hard = (x / 6.0 + 0.5).clamp(0.0, 1.0);
            match function {
                Activation::Relu => x.max(0.0),
                Activation::Relu6 => x.clamp(0.0, 6.0),
                Activation::Sigmoid => sigmoid,
                Activation::HardSigmoid => hard,
                Activation::HardSwish => x * hard,
                Activation::Silu => x * sigmoid,
            }
        }),
        Op::Add | Op::Mul => {
            let combine = |b: usize, c: usize, at: usize| {
                let read = |(value, _): &(&Value, Shape)| {
                    let plane = &value[b][c];
                    plane[if plane.len() == 1 { 0 } else { at }]
                };
                let terms = operands.iter().map(read);
                if node.op == Op::Add { terms.sum::<f64>() } else { terms.product::<f64>() }
            };
            (0..operands[0].0.len())
                .map(|b| (0..channels).map(|c| (0..height * width).map(|at| combine(b, c, at)).collect()).collect())
                .collect()
        }
        Op::Concat => (0..operands[0].0.len())
            .map(|b| operands.iter().flat_map(|(value, _)| value[b].iter().cloned()).collect())
            .collect(),
        Op::MaxPool { geometry } | Op::AvgPool { geometry, .. } => {
            let [in_height, in_width] = operands[0].1.size();
            per_image(&|image| {
                planes(channels, height, width, |c, y, x| {
                    let mut seen = Vec::new();
                    for tap in 0..geometry.taps() {
                        let row = y * geometry.stride[0] + tap / geometry.kernel[1] * geometry.dilation[0];
                        let column = x * geometry.stride[1] + tap % geometry.kernel[1] * geometry.dilation[1];
                        let (row, column) =
                            (row.wrapping_sub(geometry.padding[0]), column.wrapping_sub(geometry.padding[1]));
                        if row < in_height && column < in_width {
                            seen.push(image[c][row * in_width + column]);
                        }
                    }
                    match node.op {
                        Op::AvgPool { count_padding: true, .. } => seen.iter().sum::<f64>() / geometry.taps() as f64,
                        Op::AvgPool { .. } => seen.iter().sum::<f64>() / seen.len() as f64,
                        _ => seen.into_iter().fold(f64::NEG_INFINITY, f64::max),
                    }
                })
            })
        }
        Op::GlobalAvgPool => {
            per_image(&|image| image.iter().map(|plane| vec![plane.iter().sum::<f64>() / plane.len() as f64]).collect())
        }
        Op::Flatten => per_image(&|image| image.concat().into_iter().map(|v| vec![v]).collect()),
        Op::Softmax => per_image(&|image| {
            let total: f64 = image.iter().map(|v| v[0].exp()).sum();
            image.iter().map(|v| vec![v[0].exp() / total]).collect()
        }),
        Op::Gather { channels: sources, stride } => {
            let in_width = operands[0].1.size()[1];
            per_image(&|image| {
                planes(channels, height, width, |c, y, x| {
                    sources[c].map_or(0.0, |source| image[source as usize][y * stride * in_width + x * stride])
                })
            })
        }
    }
}

fn planes(channels: usize, height: usize, width: usize, f: impl Fn(usize, usize, usize) -> f64) -> Image {
    let plane = |c: usize| (0..height * width).map(|at| f(c, at / width, at % width)).collect();
    (0..channels).map(plane).collect()
}

/// Mean softmax cross-entropy with label smoothing.
pub fn cross_entropy(logits: &[Vec<f64>], labels: &[u16], smoothing: f64) -> f64 {
    let of_image = |(row, &label): (&Vec<f64>, &u16)| {
        let log_total = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        let share = smoothing / row.len() as f64;
        let target = |class: usize| share + if class == usize::from(label) { 1.0 - smoothing } else { 0.0 };
        row.iter().enumerate().map(|(class, x)| target(class) * (log_total - x)).sum::<f64>()
    };
    logits.iter().zip(labels).map(of_image).sum::<f64>() / logits.len() as f64
}

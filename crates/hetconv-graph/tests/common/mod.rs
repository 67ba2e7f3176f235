//! A plain-loop interpreter of graphs in float64, and random graphs to run on it.
//!
//! With a [`ChannelPlan`] it keeps every value in its stored order and does only what the plan's documentation says a
//! runner has to do; without one every order is natural.
#![allow(dead_code)]

use hetconv_core::{ChannelOrder, Conv2dGeometry, HetPattern};
use hetconv_graph::{
    Activation, ChannelPlan, ConvKind, Graph, GraphBuilder, Op, Shape, ValueId, WeightTensor, Weights,
};

/// Runs a graph on one image per input; returns its outputs in natural order.
pub fn run(graph: &Graph, weights: &Weights, image: &[f64], plan: Option<&ChannelPlan>) -> Vec<Vec<f64>> {
    let shapes = graph.shapes().unwrap();
    let mut values: Vec<Vec<f64>> = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        let operands: Vec<Operand> = (0..node.inputs.len())
            .map(|i| {
                let value = node.inputs[i];
                let order = plan.map_or_else(|| natural(shapes[value]), |plan| plan.input_order(id, i).clone());
                let gather = plan.and_then(|plan| plan.gather(id, i));
                Operand { shape: shapes[value], order, data: gathered(&values[value], shapes[value], gather) }
            })
            .collect();
        let order = plan.map_or_else(|| natural(shapes[id]), |plan| plan.order(id).clone());
        let weight = |suffix: &str| weights.get(&format!("{}.{suffix}", node.name));
        let sources = plan.and_then(|plan| plan.sources(id));
        let value = match &node.op {
            Op::Input { .. } => image[..shapes[id].elements()].to_vec(),
            op => evaluate(op, &operands, shapes[id], &order, sources, &weight),
        };
        assert_eq!(value.len(), shapes[id].elements(), "{}", node.name);
        values.push(value);
    }
    let output = |(index, &id): (usize, &ValueId)| {
        gathered(&values[id], shapes[id], plan.and_then(|plan| plan.output_gather(index)))
    };
    graph.outputs.iter().enumerate().map(output).collect()
}

struct Operand {
    shape: Shape,
    order: ChannelOrder,
    data: Vec<f64>,
}

impl Operand {
    /// The pixel at a stored channel; zero outside the image.
    fn at(&self, position: usize, y: isize, x: isize) -> f64 {
        let [height, width] = self.shape.size().map(|size| size as isize);
        let inside = (0..height).contains(&y) && (0..width).contains(&x);
        if inside { self.data[(position as isize * height * width + y * width + x) as usize] } else { 0.0 }
    }
}

fn natural(shape: Shape) -> ChannelOrder {
    ChannelOrder::natural(shape.channels())
}

fn gathered(data: &[f64], shape: Shape, gather: Option<&[u32]>) -> Vec<f64> {
    let Some(gather) = gather else { return data.to_vec() };
    let [height, width] = shape.size();
    gather.iter().flat_map(|&p| data[p as usize * height * width..][..height * width].to_vec()).collect()
}

fn evaluate<'a>(
    op: &Op,
    operands: &[Operand],
    shape: Shape,
    order: &ChannelOrder,
    sources: Option<&[Option<u32>]>,
    weight: &dyn Fn(&str) -> Option<&'a WeightTensor>,
) -> Vec<f64> {
    let input = &operands[0];
    let per_channel = |suffix: &str| weight(suffix).map(|tensor| tensor.data.clone());
    match op {
        Op::Input { .. } => unreachable!(),
        Op::Conv2d { in_channels, out_channels, geometry, kind, .. } => {
            let dense = dense_kernels(kind, *in_channels, *out_channels, geometry, weight);
            let bias = per_channel("bias");
            conv(input, shape, order, geometry, &dense, bias.as_deref())
        }
        Op::BatchNorm { epsilon, .. } => {
            let [scale, shift, mean, var] =
                ["weight", "bias", "running_mean", "running_var"].map(|suffix| per_channel(suffix).unwrap());
            let pixels = shape.size().iter().product::<usize>();
            assert_eq!(&input.order, order);
            let normalise = |(i, x): (usize, &f64)| {
                let c = order.channels()[i / pixels] as usize;
                let deviation = (f64::from(var[c]) + f64::from(*epsilon)).sqrt();
                (x - f64::from(mean[c])) / deviation * f64::from(scale[c]) + f64::from(shift[c])
            };
            input.data.iter().enumerate().map(normalise).collect()
        }
        Op::Activation { function } => {
            assert_eq!(&input.order, order);
            input.data.iter().map(|&x| activate(*function, x)).collect()
        }
        Op::Add => {
            operands.iter().for_each(|operand| assert_eq!(&operand.order, order));
            (0..shape.elements()).map(|i| operands.iter().map(|operand| operand.data[i]).sum()).collect()
        }
        Op::Mul => {
            operands.iter().for_each(|operand| assert_eq!(&operand.order, order));
            let pixels = shape.size().iter().product::<usize>();
            let read = |o: &Operand, i: usize| if o.shape == shape { o.data[i] } else { o.data[i / pixels] };
            (0..shape.elements()).map(|i| read(&operands[0], i) * read(&operands[1], i)).collect()
        }
        Op::Concat => {
            let offsets = operands.iter().scan(0, |at, operand| {
                *at += operand.order.len() as u32;
                Some(*at - operand.order.len() as u32)
            });
            let channels = operands.iter().zip(offsets).flat_map(|(operand, offset)| {
                operand.order.channels().iter().map(move |channel| channel + offset).collect::<Vec<u32>>()
            });
            assert_eq!(order.channels(), channels.collect::<Vec<u32>>());
            operands.iter().flat_map(|operand| operand.data.clone()).collect()
        }
        Op::MaxPool { geometry } => pool(input, shape, order, geometry, true, false),
        Op::AvgPool { geometry, count_padding } => pool(input, shape, order, geometry, false, *count_padding),
        Op::GlobalAvgPool => {
            assert_eq!(&input.order, order);
            let pixels = input.shape.size().iter().product::<usize>();
            input.data.chunks(pixels).map(|channel| channel.iter().sum::<f64>() / pixels as f64).collect()
        }
        Op::Flatten => {
            let same = input.order == *order;
            assert!(same || (input.order.is_natural() && order.is_natural()));
            input.data.clone()
        }
        Op::Linear { in_features, .. } => {
            let matrix = &weight("weight").unwrap().data;
            let bias = per_channel("bias");
            let feature = |&out: &u32| {
                let row = &matrix[out as usize * in_features..][..*in_features];
                let products = input.order.channels().iter().zip(&input.data);
                let sum: f64 = products.map(|(&channel, x)| f64::from(row[channel as usize]) * x).sum();
                sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[out as usize]))
            };
            order.channels().iter().map(feature).collect()
        }
        Op::Softmax => {
            assert!(input.order.is_natural() && order.is_natural());
            let total: f64 = input.data.iter().map(|x| x.exp()).sum();
            input.data.iter().map(|x| x.exp() / total).collect()
        }
        Op::Gather { channels, stride } => {
            let plain: Vec<Option<u32>> = channels.clone();
            let sources = sources.unwrap_or(&plain);
            let [height, width] = shape.size();
            let mut out = Vec::new();
            for source in sources {
                for y in 0..height {
                    for x in 0..width {
                        let read = |&p: &u32| input.at(p as usize, (y * stride) as isize, (x * stride) as isize);
                        out.push(source.as_ref().map_or(0.0, read));
                    }
                }
            }
            out
        }
    }
}

/// `[N][M][taps]`, zero where there is no weight.
fn dense_kernels<'a>(
    kind: &ConvKind,
    in_channels: usize,
    out_channels: usize,
    geometry: &Conv2dGeometry,
    weight: &dyn Fn(&str) -> Option<&'a WeightTensor>,
) -> Vec<f64> {
    let taps = geometry.taps();
    let mut dense = vec![0.0; out_channels * in_channels * taps];
    let at = |f: usize, c: usize, t: usize| (f * in_channels + c) * taps + t;
    match kind {
        ConvKind::Standard | ConvKind::Grouped(_) => {
            let groups = if let ConvKind::Grouped(groups) = kind { *groups } else { 1 };
            let data = &weight("weight").unwrap().data;
            let (m, n) = (in_channels / groups, out_channels / groups);
            for f in 0..out_channels {
                for i in 0..m {
                    for t in 0..taps {
                        dense[at(f, f / n * m + i, t)] = f64::from(data[(f * m + i) * taps + t]);
                    }
                }
            }
        }
        ConvKind::Het(pattern) => {
            let (center, ring) = (weight("center").unwrap(), weight("ring").unwrap());
            let middle = geometry.center_tap().unwrap();
            for f in 0..out_channels {
                for c in 0..in_channels {
                    dense[at(f, c, middle)] = f64::from(center.data[f * in_channels + c]);
                }
                for (slot, c) in pattern.spatial_channels(f).enumerate() {
                    for t in (0..taps).filter(|&t| t != middle) {
                        let tap = if t < middle { t } else { t - 1 };
                        let index = (f * pattern.max_spatial() + slot) * (taps - 1) + tap;
                        dense[at(f, c, t)] = f64::from(ring.data[index]);
                    }
                }
            }
        }
    }
    dense
}

fn conv(
    input: &Operand,
    shape: Shape,
    order: &ChannelOrder,
    geometry: &Conv2dGeometry,
    dense: &[f64],
    bias: Option<&[f32]>,
) -> Vec<f64> {
    let (taps, channels, [height, width]) = (geometry.taps(), input.order.len(), shape.size());
    let mut out = Vec::new();
    for &f in order.channels() {
        for y in 0..height {
            for x in 0..width {
                let mut sum = bias.map_or(0.0, |bias| f64::from(bias[f as usize]));
                for (position, &c) in input.order.channels().iter().enumerate() {
                    for t in 0..taps {
                        let [iy, ix] = tap_pixel(geometry, t, y, x);
                        let w = dense[(f as usize * channels + c as usize) * taps + t];
                        sum += w * input.at(position, iy, ix);
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

fn tap_pixel(g: &Conv2dGeometry, tap: usize, y: usize, x: usize) -> [isize; 2] {
    let (ky, kx) = (tap / g.kernel[1], tap % g.kernel[1]);
    [
        (y * g.stride[0] + ky * g.dilation[0]) as isize - g.padding[0] as isize,
        (x * g.stride[1] + kx * g.dilation[1]) as isize - g.padding[1] as isize,
    ]
}

fn pool(
    input: &Operand,
    shape: Shape,
    order: &ChannelOrder,
    geometry: &Conv2dGeometry,
    max: bool,
    count_padding: bool,
) -> Vec<f64> {
    assert_eq!(&input.order, order);
    let ([height, width], [ih, iw]) = (shape.size(), input.shape.size().map(|size| size as isize));
    let mut out = Vec::new();
    for position in 0..order.len() {
        for y in 0..height {
            for x in 0..width {
                let pixels = (0..geometry.taps()).map(|t| tap_pixel(geometry, t, y, x));
                let inside = pixels.filter(|[y, x]| (0..ih).contains(y) && (0..iw).contains(x));
                let seen: Vec<f64> = inside.map(|[y, x]| input.at(position, y, x)).collect();
                let count = if count_padding { geometry.taps() } else { seen.len() };
                let largest = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                out.push(if max { largest } else { seen.iter().sum::<f64>() / count as f64 });
            }
        }
    }
    out
}

fn activate(function: Activation, x: f64) -> f64 {
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
}

/// SplitMix64: enough randomness for choices, the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn pick<T: Clone>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())].clone()
    }

    /// A number in [−1, 1).
    pub fn signed(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

/// Weights in which every number, running statistics included, is different.
pub fn distinct_weights(graph: &Graph, seed: u64) -> Weights {
    let mut weights = Weights::init(graph, seed).unwrap();
    let mut random = Random(seed);
    for (name, tensor) in weights.iter_mut() {
        if name.ends_with(".bias") || name.ends_with(".running_mean") {
            tensor.data.fill_with(|| random.signed() as f32);
        } else if name.ends_with(".running_var") || name.contains(".bn.weight") {
            tensor.data.fill_with(|| (1.5 + random.signed()) as f32);
        }
    }
    weights.check(graph).unwrap();
    weights
}

pub fn random_image(elements: usize, seed: u64) -> Vec<f64> {
    let mut random = Random(seed);
    (0..elements).map(|_| random.signed()).collect()
}

/// A random network of HetConv layers with different P, standard, grouped and depthwise convolutions, residual adds,
/// gates, concatenations, pools and shortcuts, ending in a classifier, in images, or in both.
pub fn random_graph(seed: u64) -> Graph {
    let mut random = Random(seed);
    let r = &mut random;
    let mut b = GraphBuilder::new(format!("random {seed}"));
    let channels = r.pick(&[3, 4, 6]);
    let mut values = vec![b.input("input", [channels, 5, 4])];
    for i in 0..6 + r.below(10) {
        let newest = values.len() - 1;
        let from = if r.below(3) == 0 { r.pick(&values) } else { values[newest] };
        let shape = b.shape(from);
        let same: Vec<ValueId> = values.iter().copied().filter(|&value| b.shape(value) == shape).collect();
        let name = format!("n{i}");
        let value = match r.below(12) {
            0..=3 => random_conv(r, &mut b, &name, from),
            4 => {
                let x = b.batch_norm(format!("{name}.bn"), from);
                let functions = [Activation::Relu, Activation::HardSwish, Activation::Silu, Activation::Relu6];
                b.activation(name, x, r.pick(&functions))
            }
            5..=7 => b.add(name, &[from, r.pick(&same), r.pick(&same)][..2 + r.below(2)]),
            8 => {
                let gate = b.global_avg_pool(format!("{name}.pool"), from);
                let gate = random_conv(r, &mut b, &format!("{name}.conv"), gate);
                let channels = shape.channels();
                let one = Conv2dGeometry::same(1, 1);
                let gate = b.conv(format!("{name}.back"), gate, channels, one, ConvKind::Standard, true);
                let gate = b.activation(format!("{name}.gate"), gate, Activation::Sigmoid);
                let operands = if r.below(2) == 0 { [from, gate] } else { [gate, from] };
                b.mul(name, operands)
            }
            9 => {
                let fits: Vec<ValueId> =
                    values.iter().copied().filter(|&value| b.shape(value).size() == shape.size()).collect();
                let other = r.pick(&fits);
                if b.shape(other).channels() + shape.channels() > 24 {
                    continue;
                }
                b.concat(name, &[other, from])
            }
            10 => {
                let uneven = Conv2dGeometry { padding: [0, 1, 1, 0], ..Conv2dGeometry::square(2, 2, 0, 1) };
                let geometry = r.pick(&[Conv2dGeometry::square(2, 1, 1, 1), uneven]);
                if r.below(2) == 0 {
                    b.max_pool(name, from, geometry)
                } else {
                    b.push(name, Op::AvgPool { geometry, count_padding: r.below(2) == 0 }, [from])
                }
            }
            _ => {
                let present = shape.channels();
                let source = |_| (r.below(4) > 0).then(|| r.below(present) as u32);
                let channels = (0..6).map(source).collect();
                b.push(name, Op::Gather { channels, stride: 1 + r.below(2) }, [from])
            }
        };
        values.push(value);
    }
    let last = values[values.len() - 1];
    let mut outputs = Vec::new();
    if r.below(2) == 0 {
        let x = if r.below(2) == 0 { b.global_avg_pool("pool", last) } else { last };
        let x = b.flatten("flatten", x);
        let x = if r.below(2) == 0 { b.batch_norm("flat.bn", x) } else { x };
        let x = b.linear("classifier", x, 5, true);
        outputs.push(b.push("softmax", Op::Softmax, [x]));
    }
    if outputs.is_empty() || r.below(2) == 0 {
        outputs.push(last);
    }
    b.finish(outputs).unwrap()
}

fn random_conv(r: &mut Random, b: &mut GraphBuilder, name: &str, from: ValueId) -> ValueId {
    let m = b.shape(from).channels();
    let n = r.pick(&[4, 6, 8]);
    let geometry = r.pick(&[
        Conv2dGeometry::same(3, 1),
        Conv2dGeometry::same(3, 1),
        Conv2dGeometry::same(3, 2),
        Conv2dGeometry::square(3, 1, 2, 2),
        Conv2dGeometry { kernel: [1, 3], stride: [1, 1], padding: [0, 1, 0, 1], dilation: [1, 1] },
        Conv2dGeometry { kernel: [3, 3], stride: [1, 2], padding: [2, 0, 0, 2], dilation: [1, 1] },
        Conv2dGeometry { kernel: [2, 4], stride: [1, 1], padding: [1, 1, 0, 2], dilation: [1, 1] },
    ]);
    let bias = r.below(2) == 0;
    let class = |r: &mut Random, n: usize| (0..n).map(|_| r.below(m.min(3)) as u32).collect();
    let choice = match geometry.center_tap() {
        Some(_) => r.below(8),
        // Kernels of even sides have no middle, where a HetConv filter's 1×1 kernels are.
        None => 5 + r.below(3),
    };
    let (n, kind) = match choice {
        0..=2 => (n, ConvKind::Het(HetPattern::shifted(m, n, 1 + r.below(m)).unwrap())),
        3 => {
            let parts = [4, 3, 2, 1].into_iter().find(|&p| m.is_multiple_of(p) && n.is_multiple_of(p)).unwrap();
            (n, ConvKind::Het(HetPattern::blocked(m, n, parts).unwrap()))
        }
        4 => {
            let (channels, filters) = (class(r, m), class(r, n));
            (n, ConvKind::Het(HetPattern::assigned(channels, filters).unwrap()))
        }
        5 => (m, ConvKind::Grouped(m)),
        6 if m.is_multiple_of(2) => (n, ConvKind::Grouped(2)),
        6 => (2 * m, ConvKind::Grouped(m)),
        _ => (n, ConvKind::Standard),
    };
    b.conv(name, from, n, geometry, kind, bias)
}

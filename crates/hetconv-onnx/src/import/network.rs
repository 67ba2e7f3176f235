//! The graph that an import builds, node by node.

use std::collections::{HashMap, HashSet};
use std::mem;

use hetconv_core::Conv2dGeometry;
use hetconv_graph::{Activation, ConvKind, Graph, Node, Op, Shape, ValueId, WeightTensor, Weights};

use super::value::{Padded, Ramp, Read, Refusal};
use crate::names::Names;

/// A graph with its shapes and weights so far.
pub(crate) struct Network {
    pub graph: Graph,
    pub weights: Weights,
    shapes: Vec<Shape>,
    names: Names,
    /// How many numbers may still be made that are not in the file.
    budget: usize,
    /// Numbers that nodes may still have without asking.
    in_nodes: usize,
    /// The images of flattened values, where they were asked for.
    images: HashMap<ValueId, ValueId>,
    /// Those of them that were made for it: one of several names may stand for each.
    made_images: HashSet<ValueId>,
}

impl Network {
    /// Numbers that an import may make up, and how many more for each that it reads: a few bytes of a file could ask for
    /// any amount.
    const BUDGET: usize = 1 << 22;
    const PER_NUMBER: usize = 16;

    /// Of a file of so many bytes, with the names that are kept for some of its nodes.
    pub fn new(name: &str, len: usize, names: Names) -> Self {
        let graph = Graph { name: name.to_owned(), nodes: Vec::new(), outputs: Vec::new() };
        Self {
            graph,
            weights: Weights::new(),
            shapes: Vec::new(),
            names,
            images: HashMap::new(),
            made_images: HashSet::new(),
            budget: Self::BUDGET,
            in_nodes: len,
        }
    }

    /// Takes note of so many numbers that are in the file.
    pub fn earn(&mut self, numbers: usize) {
        self.budget = self.budget.saturating_add(numbers.saturating_mul(Self::PER_NUMBER));
    }

    /// Takes note of so many numbers of a node. A node may be a copy of one in a function, so those beyond what the file can
    /// hold are not in it.
    pub fn earn_in_node(&mut self, numbers: usize) -> Read<()> {
        let within = numbers.min(self.in_nodes);
        self.in_nodes -= within;
        self.earn(within);
        self.spend(numbers - within)
    }

    /// Asks for so many numbers that are not in the file.
    pub fn spend(&mut self, numbers: usize) -> Read<()> {
        let left = self.budget.checked_sub(numbers);
        self.budget = left.ok_or_else(|| Refusal::because("makes constants out of all proportion to the file"))?;
        Ok(())
    }

    pub fn shape(&self, value: ValueId) -> Shape {
        self.shapes[value]
    }

    /// `[channels, height, width]` of an image.
    pub fn image(&self, value: ValueId) -> Read<[usize; 3]> {
        match self.shapes[value] {
            Shape::Image { channels, height, width } => Ok([channels, height, width]),
            Shape::Features(features) => Err(Refusal::because(format!("takes an image, but gets {features} features"))),
        }
    }

    pub fn op(&self, value: ValueId) -> &Op {
        &self.graph.nodes[value].op
    }

    /// Adds a node under the wanted name or one like it.
    pub fn push(&mut self, wanted: &str, op: Op, inputs: &[ValueId]) -> Read<ValueId> {
        let name = self.names.claim(if wanted.is_empty() { "node" } else { wanted });
        self.push_named(name, op, inputs)
    }

    /// Adds a node under a name that is kept for it.
    pub fn push_own(&mut self, own: &str, op: Op, inputs: &[ValueId]) -> Read<ValueId> {
        let name = self.names.take(if own.is_empty() { "node" } else { own });
        self.push_named(name, op, inputs)
    }

    fn push_named(&mut self, name: String, op: Op, inputs: &[ValueId]) -> Read<ValueId> {
        let node = Node { name, op, inputs: inputs.to_vec() };
        let shapes: Vec<Shape> = inputs.iter().map(|&input| self.shapes[input]).collect();
        let shape = node.shape(&shapes).map_err(|error| Refusal::because(error.to_string()))?;
        self.graph.nodes.push(node);
        self.shapes.push(shape);
        Ok(self.graph.nodes.len() - 1)
    }

    /// Whether a node of one value could be added.
    pub fn admits(&self, op: Op, of: ValueId) -> bool {
        let node = Node { name: String::new(), op, inputs: vec![of] };
        node.shape(&[self.shapes[of]]).is_ok()
    }

    /// Gives a node a weight tensor.
    pub fn set_weight(&mut self, node: ValueId, suffix: &str, shape: &[usize], data: Vec<f32>) {
        let name = format!("{}.{suffix}", self.graph.nodes[node].name);
        self.weights.insert(name, WeightTensor { shape: shape.to_vec(), data });
    }

    /// `scale · x + shift` per channel: a batch-norm of statistics that change nothing.
    pub fn affine(&mut self, name: &str, of: ValueId, scale: Vec<f32>, shift: Vec<f32>) -> Read<ValueId> {
        let channels = self.shapes[of].channels();
        self.spend(channels.saturating_mul(4))?;
        // 1 + the smallest of all floats is 1.
        let norm = self.push(name, Op::BatchNorm { channels, epsilon: f32::MIN_POSITIVE }, &[of])?;
        self.set_weight(norm, "weight", &[channels], scale);
        self.set_weight(norm, "bias", &[channels], shift);
        self.set_weight(norm, "running_mean", &[channels], vec![0.0; channels]);
        self.set_weight(norm, "running_var", &[channels], vec![1.0; channels]);
        Ok(norm)
    }

    /// `scale · x + shift`, the same for all channels; x itself if that changes nothing.
    fn uniform_affine(&mut self, name: &str, of: ValueId, scale: f64, shift: f64) -> Read<ValueId> {
        let (scale, shift) = (scale as f32, shift as f32);
        if !(scale.is_finite() && shift.is_finite()) {
            return Err(Refusal::because("multiplies or adds a number that is not finite"));
        }
        // 6 · 1/6 in floats.
        if (scale - 1.0).abs() <= 2.0 * f32::EPSILON && shift == 0.0 {
            return Ok(of);
        }
        let channels = self.shapes[of].channels();
        self.spend(channels.saturating_mul(2))?;
        self.affine(name, of, vec![scale; channels], vec![shift; channels])
    }

    /// The elementwise function as nodes.
    pub fn ramp(&mut self, ramp: &Ramp) -> Read<ValueId> {
        let Ramp { ref name, of, a, b, low, high, c, d } = *ramp;
        if !ramp.is_clipped() {
            return self.uniform_affine(name, of, a, b);
        }
        if low >= high {
            return Err(Refusal::because(format!("clips to an empty range, {low} to {high}")));
        }
        if let Some(k) = ramp.hard_sigmoid_factor() {
            let x = self.push(name, Op::Activation { function: Activation::HardSigmoid }, &[of])?;
            return self.uniform_affine(&format!("{name}.scaled"), x, k, 0.0);
        }
        if low < 0.0 && high > 0.0 {
            return self.clipped_about_zero(ramp);
        }
        // Everything else is a ReLU or ReLU6 with its argument and result moved and stretched.
        let (function, sign, from, stretch) = match (low.is_finite(), high.is_finite()) {
            (true, false) => (Activation::Relu, 1.0, low, 1.0),
            (false, true) => (Activation::Relu, -1.0, high, 1.0),
            _ => (Activation::Relu6, 1.0, low, 6.0 / (high - low)),
        };
        let inner = sign * stretch;
        let x = self.uniform_affine(&format!("{name}.argument"), of, inner * a, inner * (b - from))?;
        let x = self.push(name, Op::Activation { function }, &[x])?;
        self.uniform_affine(&format!("{name}.scaled"), x, c * sign / stretch, c * from + d)
    }

    /// A clip to a range with 0 inside: what is above 0 and what is below, each a ReLU or a stretched ReLU6. Moved to where a
    /// single one clips, numbers near 0 would lose their digits in a wide range.
    fn clipped_about_zero(&mut self, ramp: &Ramp) -> Read<ValueId> {
        let Ramp { ref name, of, a, b, low, high, c, d } = *ramp;
        let mut halves = Vec::new();
        for (part, sign, bound) in [("above", 1.0, high), ("below", -1.0, -low)] {
            let (function, stretch) =
                if bound.is_finite() { (Activation::Relu6, 6.0 / bound) } else { (Activation::Relu, 1.0) };
            let inner = sign * stretch;
            let x = self.uniform_affine(&format!("{name}.{part}.argument"), of, inner * a, inner * b)?;
            let x = self.push(&format!("{name}.{part}"), Op::Activation { function }, &[x])?;
            let shift = if halves.is_empty() { d } else { 0.0 };
            halves.push(self.uniform_affine(&format!("{name}.{part}.scaled"), x, c * sign / stretch, shift)?);
        }
        self.push(name, Op::Add, &halves)
    }

    /// Padding or cropping that no window takes up: depthwise convolutions with one tap of 1.
    pub fn padded(&mut self, name: &str, padded: Padded) -> Read<ValueId> {
        let [channels, ..] = self.image(padded.of)?;
        if padded.pads != [0; 4] && padded.fill != 0.0 {
            return Err(Refusal::because(format!("pads with {} what no pooling takes up", padded.fill)));
        }
        let mut padding = padded.pads.map(|pad| pad.max(0) as usize);
        let cut = padded.pads.map(|pad| pad.min(0).unsigned_abs() as usize);
        let mut of = padded.of;
        // Cutting off a pixel is reading past it by a tap of 0, and rows and columns one after the other take few taps.
        for axis in 0..2 {
            let mut kernel = [1; 2];
            kernel[axis] = cut[axis].saturating_add(cut[axis + 2]).saturating_add(1);
            if kernel == [1; 2] && padding == [0; 4] {
                continue;
            }
            let padding = mem::take(&mut padding);
            let geometry = Conv2dGeometry { kernel, stride: [1; 2], padding, dilation: [1; 2] };
            geometry.validate().map_err(|error| Refusal::because(error.to_string()))?;
            self.spend(channels.saturating_mul(geometry.taps()))?;
            let mut one = vec![0.0; geometry.taps()];
            one[cut[axis]] = 1.0;
            let kind = ConvKind::Grouped(channels);
            let op = Op::Conv2d { in_channels: channels, out_channels: channels, geometry, kind, bias: false };
            of = self.push(name, op, &[of])?;
            self.set_weight(of, "weight", &[channels, 1, kernel[0], kernel[1]], one.repeat(channels));
        }
        Ok(of)
    }

    /// A value as an image of 1×1 pixels: what was flattened is unflattened, with the layers behind it.
    pub fn as_image(&mut self, value: ValueId) -> Read<ValueId> {
        self.unflattened(value, 16)
    }

    /// As [`Network::as_image`], looking back so many nodes.
    fn unflattened(&mut self, value: ValueId, depth: usize) -> Read<ValueId> {
        if let Shape::Image { .. } = self.shapes[value] {
            return Ok(value);
        }
        if let Some(&image) = self.images.get(&value) {
            return Ok(image);
        }
        let Node { name, op, inputs } = self.graph.nodes[value].clone();
        let refused = || Refusal::because("makes an image of features that were none");
        let from = *inputs.first().ok_or_else(refused)?;
        let image = match op {
            Op::Flatten if self.shapes[from].size() == [1, 1] => from,
            Op::Add if depth > 0 => {
                let images: Vec<ValueId> =
                    inputs.iter().map(|&input| self.unflattened(input, depth - 1)).collect::<Read<_>>()?;
                self.push(&name, op, &images)?
            }
            Op::Activation { .. } | Op::BatchNorm { .. } | Op::Linear { .. } if depth > 0 => {
                let input = self.unflattened(from, depth - 1)?;
                let op = match op {
                    Op::Linear { in_features, out_features, bias } => Op::Conv2d {
                        in_channels: in_features,
                        out_channels: out_features,
                        geometry: Conv2dGeometry::same(1, 1),
                        kind: ConvKind::Standard,
                        bias,
                    },
                    other => other,
                };
                let image = self.push(&name, op, &[input])?;
                for suffix in ["weight", "bias", "running_mean", "running_var"] {
                    let Some(tensor) = self.weights.get(&format!("{name}.{suffix}")).cloned() else { continue };
                    self.spend(tensor.data.len())?;
                    let extra = if tensor.shape.len() == 2 { &[1, 1][..] } else { &[] };
                    self.set_weight(image, suffix, &[&tensor.shape, extra].concat(), tensor.data);
                }
                image
            }
            _ => return Err(refused()),
        };
        if !matches!(self.graph.nodes[value].op, Op::Flatten) {
            self.made_images.insert(image);
        }
        self.images.insert(value, image);
        Ok(image)
    }

    /// Whether a value was made as the image of another, which whoever asks for that image gets as well.
    pub fn is_made_image(&self, value: ValueId) -> bool {
        self.made_images.contains(&value)
    }
}

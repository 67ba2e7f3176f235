//! Shape inference, and with it the check that a graph makes sense.

use std::collections::HashSet;
use std::fmt;

use hetconv_core::{Conv2dGeometry, HetPattern};

use crate::{ConvKind, Fault, Graph, GraphError, Node, Op, ValueId};

/// The shape of one value for one image; the batch is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Channels of pixels.
    Image {
        /// Number of channels.
        channels: usize,
        /// Pixels from top to bottom.
        height: usize,
        /// Pixels from left to right.
        width: usize,
    },
    /// So many numbers without a place.
    Features(usize),
}

/// The most taps a convolution's window may have: 32×32.
const MAX_TAPS: usize = 1 << 10;

impl Shape {
    /// The most channels or features a value may have.
    pub const MAX_CHANNELS: usize = HetPattern::LIMIT;
    /// The most pixels a side of an image may have.
    pub const MAX_SIDE: usize = 1 << 14;
    /// The most elements a value may have for one image: 1 GiB of `f32`.
    pub const MAX_ELEMENTS: usize = 1 << 28;

    /// Number of channels of an image, or of features.
    pub fn channels(&self) -> usize {
        match *self {
            Shape::Image { channels, .. } => channels,
            Shape::Features(features) => features,
        }
    }

    /// Height and width; features count as one pixel.
    pub fn size(&self) -> [usize; 2] {
        match *self {
            Shape::Image { height, width, .. } => [height, width],
            Shape::Features(_) => [1, 1],
        }
    }

    /// Number of elements. Shapes that come from [`Graph::shapes`] never overflow.
    pub fn elements(&self) -> usize {
        let [height, width] = self.size();
        self.channels() * height * width
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Image { channels, height, width } => write!(f, "an image of {channels}×{height}×{width}"),
            Shape::Features(features) => write!(f, "{features} features"),
        }
    }
}

impl Graph {
    /// The most nodes a graph may have: what reads one looks at every pair of values.
    pub const MAX_NODES: usize = 1 << 15;

    /// The shape of every value, for one image.
    ///
    /// # Errors
    /// The first node that cannot compute what it claims to, or more than [`Graph::MAX_NODES`].
    pub fn shapes(&self) -> Result<Vec<Shape>, GraphError> {
        /// Channels of all values and of all operands: each may have an order and classes of its own.
        const MAX_CHANNELS: usize = 1 << 26;
        if self.nodes.len() > Self::MAX_NODES {
            return Err(GraphError::TooManyNodes { nodes: self.nodes.len(), limit: Self::MAX_NODES });
        }
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.nodes.len());
        let mut channels = 0_usize;
        for node in &self.nodes {
            let read = |&input: &usize| shapes.get(input).copied().ok_or(Fault::Order { input });
            let inputs: Result<Vec<Shape>, Fault> = node.inputs.iter().map(read).collect();
            let inputs = inputs.map_err(|fault| fault.at(&node.name))?;
            let shape = infer(node, &inputs).map_err(|fault| fault.at(&node.name))?;
            let own = inputs.iter().chain([&shape]).map(Shape::channels);
            channels = own.fold(channels, usize::saturating_add);
            if channels > MAX_CHANNELS {
                return Err(Fault::TooLarge.at(&node.name));
            }
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// Checks everything a graph promises: topological order, unique names, operands that fit, parameters that are
    /// consistent, outputs that exist, sizes that can be counted.
    ///
    /// # Errors
    /// The first fault found.
    pub fn validate(&self) -> Result<(), GraphError> {
        self.shapes()?;
        let mut names = HashSet::new();
        for Node { name, .. } in &self.nodes {
            if name.is_empty() || !names.insert(name) {
                return Err(GraphError::Name { name: name.clone() });
            }
        }
        if self.outputs.is_empty() {
            return Err(GraphError::NoOutputs);
        }
        match self.outputs.iter().find(|&&output| output >= self.nodes.len()) {
            Some(&output) => Err(GraphError::Output { output, nodes: self.nodes.len() }),
            None => Ok(()),
        }
    }

    /// The same network for images of `[channels, height, width]`: standard convolutions that read them get as many
    /// channels.
    ///
    /// # Errors
    /// A network that does not fit the size, such as one whose classifier expects a fixed number of features.
    pub fn with_input(&self, input: [usize; 3]) -> Result<Graph, GraphError> {
        let mut graph = self.clone();
        let inputs: Vec<ValueId> = self.inputs().map(|(id, _)| id).collect();
        for node in &mut graph.nodes {
            let reads_input = node.inputs.iter().any(|id| inputs.contains(id));
            match &mut node.op {
                Op::Input { shape } => *shape = input,
                Op::Conv2d { in_channels, kind, .. } if reads_input && kind.is_standard() => *in_channels = input[0],
                _ => {}
            }
        }
        graph.validate()?;
        Ok(graph)
    }
}

impl Node {
    /// The shape of the node's value, given those of its inputs; checks the node on the way.
    ///
    /// # Errors
    /// What keeps the node from computing what it claims to.
    pub fn shape(&self, inputs: &[Shape]) -> Result<Shape, GraphError> {
        infer(self, inputs).map_err(|fault| fault.at(&self.name))
    }
}

/// The product of sizes, if it can be stored as that many f32.
pub(crate) fn product(sizes: &[usize]) -> Result<usize, Fault> {
    let product = sizes.iter().try_fold(1_usize, |total, &size| total.checked_mul(size));
    product.filter(|&total| total <= isize::MAX as usize / size_of::<f32>()).ok_or(Fault::TooLarge)
}

/// The shape of a node's value given those of its inputs; checks the node on the way.
pub(crate) fn infer(node: &Node, inputs: &[Shape]) -> Result<Shape, Fault> {
    check_arity(&node.op, inputs.len())?;
    let shape = match &node.op {
        Op::Input { shape: [channels, height, width] } => {
            for (what, size) in [("channels", channels), ("height", height), ("width", width)] {
                nonzero(what, *size)?;
            }
            Shape::Image { channels: *channels, height: *height, width: *width }
        }
        Op::Conv2d { in_channels, out_channels, geometry, kind, .. } => {
            let size = image(inputs[0])?;
            check_channels(*in_channels, inputs[0])?;
            check_conv(*in_channels, *out_channels, geometry, kind)?;
            let [height, width] = geometry.output_size(size)?;
            Shape::Image { channels: *out_channels, height, width }
        }
        Op::BatchNorm { channels, epsilon } => {
            if !(epsilon.is_finite() && *epsilon > 0.0) {
                return Err(Fault::Epsilon);
            }
            check_channels(*channels, inputs[0])?;
            inputs[0]
        }
        Op::Activation { .. } => inputs[0],
        Op::Add => match inputs.iter().find(|&&other| other != inputs[0]) {
            Some(&other) => return Err(Fault::Operands { first: inputs[0], other }),
            None => inputs[0],
        },
        Op::Mul => product_shape(inputs[0], inputs[1])?,
        Op::Concat => concat_shape(inputs)?,
        Op::MaxPool { geometry } | Op::AvgPool { geometry, .. } => {
            let size = image(inputs[0])?;
            let [height, width] = geometry.output_size(size)?;
            check_pool_padding(geometry, size)?;
            Shape::Image { channels: inputs[0].channels(), height, width }
        }
        Op::GlobalAvgPool => {
            image(inputs[0])?;
            Shape::Image { channels: inputs[0].channels(), height: 1, width: 1 }
        }
        Op::Flatten => {
            image(inputs[0])?;
            Shape::Features(inputs[0].elements())
        }
        Op::Linear { in_features, out_features, .. } => {
            features(inputs[0])?;
            check_channels(*in_features, inputs[0])?;
            nonzero("out_features", *out_features)?;
            product(&[*in_features, *out_features])?;
            Shape::Features(*out_features)
        }
        Op::Softmax => {
            features(inputs[0])?;
            inputs[0]
        }
        Op::Gather { channels, stride } => {
            let [height, width] = image(inputs[0])?;
            let available = inputs[0].channels();
            nonzero("stride", *stride)?;
            nonzero("channels", channels.len())?;
            if let Some(&channel) = channels.iter().flatten().find(|&&channel| channel as usize >= available) {
                return Err(Fault::Gather { channel, channels: available });
            }
            Shape::Image { channels: channels.len(), height: height.div_ceil(*stride), width: width.div_ceil(*stride) }
        }
    };
    check_limits(shape)?;
    Ok(shape)
}

/// A few bytes of a file can name any size; whoever runs a valid graph can take it that its values may be allocated.
fn check_limits(shape: Shape) -> Result<(), Fault> {
    let [height, width] = shape.size();
    let within = shape.channels() <= Shape::MAX_CHANNELS && height.max(width) <= Shape::MAX_SIDE;
    if within && shape.elements() <= Shape::MAX_ELEMENTS { Ok(()) } else { Err(Fault::Size(shape)) }
}

fn check_arity(op: &Op, found: usize) -> Result<(), Fault> {
    let (expected, legal) = match op {
        Op::Input { .. } => ("no inputs", found == 0),
        Op::Add | Op::Concat => ("at least one input", found >= 1),
        Op::Mul => ("two inputs", found == 2),
        _ => ("one input", found == 1),
    };
    if legal { Ok(()) } else { Err(Fault::Arity { expected, found }) }
}

fn check_conv(
    in_channels: usize,
    out_channels: usize,
    geometry: &Conv2dGeometry,
    kind: &ConvKind,
) -> Result<(), Fault> {
    nonzero("in_channels", in_channels)?;
    nonzero("out_channels", out_channels)?;
    geometry.validate()?;
    // HetConv may have taps without weights, and every tap takes memory in whatever computes it.
    if geometry.taps() > MAX_TAPS {
        return Err(Fault::Taps { taps: geometry.taps(), limit: MAX_TAPS });
    }
    let weights = [in_channels, out_channels, geometry.kernel[0], geometry.kernel[1]];
    product(&weights)?;
    Ok(kind.check(in_channels, out_channels, geometry)?)
}

/// A pooling window must see at least one pixel: none may lie in the padding, or have the image between two of its taps.
fn check_pool_padding(geometry: &Conv2dGeometry, size: [usize; 2]) -> Result<(), Fault> {
    for (axis, size) in size.into_iter().enumerate() {
        let window = geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1;
        let padding = geometry.padding[axis].max(geometry.padding[axis + 2]);
        let straddles = geometry.padding[axis] > 0 && geometry.dilation[axis] > size;
        if padding >= window || straddles {
            return Err(Fault::PoolPadding { padding, window });
        }
    }
    Ok(())
}

fn product_shape(first: Shape, other: Shape) -> Result<Shape, Fault> {
    let scales = |gate: Shape, of: Shape| gate.channels() == of.channels() && gate.size() == [1, 1];
    match (first, other) {
        _ if first == other => Ok(first),
        (Shape::Image { .. }, Shape::Image { .. }) if scales(other, first) => Ok(first),
        (Shape::Image { .. }, Shape::Image { .. }) if scales(first, other) => Ok(other),
        _ => Err(Fault::Operands { first, other }),
    }
}

fn concat_shape(inputs: &[Shape]) -> Result<Shape, Fault> {
    let first = inputs[0];
    let mut total = 0_usize;
    for &other in inputs {
        let same_kind = matches!(first, Shape::Image { .. }) == matches!(other, Shape::Image { .. });
        if !same_kind || first.size() != other.size() {
            return Err(Fault::Operands { first, other });
        }
        total = total.checked_add(other.channels()).ok_or(Fault::TooLarge)?;
    }
    Ok(match first {
        Shape::Image { height, width, .. } => Shape::Image { channels: total, height, width },
        Shape::Features(_) => Shape::Features(total),
    })
}

fn image(shape: Shape) -> Result<[usize; 2], Fault> {
    match shape {
        Shape::Image { height, width, .. } => Ok([height, width]),
        Shape::Features(_) => Err(Fault::Kind { expected: "an image", found: shape }),
    }
}

fn features(shape: Shape) -> Result<usize, Fault> {
    match shape {
        Shape::Features(features) => Ok(features),
        Shape::Image { .. } => Err(Fault::Kind { expected: "features", found: shape }),
    }
}

fn check_channels(expected: usize, input: Shape) -> Result<(), Fault> {
    let found = input.channels();
    if expected == found { Ok(()) } else { Err(Fault::Channels { expected, found }) }
}

fn nonzero(what: &'static str, value: usize) -> Result<(), Fault> {
    if value == 0 { Err(Fault::Zero(what)) } else { Ok(()) }
}

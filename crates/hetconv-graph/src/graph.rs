//! The network as data: nodes, operators and the values between them.

use hetconv_core::Conv2dGeometry;
pub use hetconv_core::{Activation, ArrangementKind, ConvKind};
use serde::{Deserialize, Serialize};

use crate::{GraphError, Shape};

/// Index of a node in [`Graph::nodes`], and of the one value it produces.
pub type ValueId = usize;

/// A convolutional network: nodes in topological order, each producing one value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    /// What the network calls itself, such as `vgg16-cifar_p4`.
    pub name: String,
    /// The nodes; a node's inputs stand before it.
    pub nodes: Vec<Node>,
    /// The values that are the network's results.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// The value produced by the node of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Who reads each value.
    pub fn readers(&self) -> Readers {
        let mut of_values = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                if let Some(readers) = of_values.get_mut(input) {
                    readers.push(id);
                }
            }
        }
        let mut readers = Readers { of_values, kept: vec![false; self.nodes.len()] };
        self.outputs.iter().for_each(|&output| readers.keep(output));
        readers
    }

    /// The images that the network takes, and `[channels, height, width]` of each.
    pub fn inputs(&self) -> impl Iterator<Item = (ValueId, [usize; 3])> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| match node.op {
            Op::Input { shape } => Some((id, shape)),
            _ => None,
        })
    }

    /// What the network says of an image's class.
    ///
    /// # Errors
    /// A graph that is not valid, or one of another kind: [`GraphError::NoClassifier`].
    pub fn classifier(&self) -> Result<Classifier, GraphError> {
        let shapes = self.shapes()?;
        let inputs: Vec<[usize; 3]> = self.inputs().map(|(_, shape)| shape).collect();
        if let (&[image], &[output]) = (&inputs[..], &self.outputs[..])
            && let Shape::Features(classes) = shapes[output]
        {
            let logits = match &self.nodes[output] {
                node if node.op == Op::Softmax => node.inputs[0],
                _ => output,
            };
            return Ok(Classifier { image, output, logits, classes });
        }
        let outputs: Vec<String> = self.outputs.iter().map(|&output| shapes[output].to_string()).collect();
        let (name, outputs) = (self.name.clone(), outputs.join(" and "));
        Err(GraphError::NoClassifier { name, inputs: inputs.len(), outputs })
    }

    /// The same network with a standard convolution in place of every HetConv layer.
    #[must_use]
    pub fn with_standard_convs(&self) -> Self {
        let mut graph = self.clone();
        for node in &mut graph.nodes {
            if let Op::Conv2d { kind: kind @ ConvKind::Het(_), .. } = &mut node.op {
                *kind = ConvKind::Standard;
            }
        }
        graph
    }

    /// Whether there are batch-norms, which let a network learn at high rates; exporters fold them into convolutions.
    pub fn has_batch_norm(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.op, Op::BatchNorm { .. }))
    }

    /// `[channels, height, width]` of the first input, if there is one.
    pub fn input_shape(&self) -> Option<[usize; 3]> {
        self.inputs().next().map(|(_, shape)| shape)
    }

    /// The part of a valid graph that computes these values, which become its outputs. Inputs stay, even those that it does
    /// not read.
    ///
    /// ```
    /// use hetconv_graph::{Weights, zoo};
    /// let graph = zoo::build(&"small-cifar".parse()?, 10)?;
    /// let first = graph.up_to(&[graph.find("conv1").expect("a convolution")]);
    /// assert_eq!(first.nodes.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If there is no such value.
    #[must_use]
    pub fn up_to(&self, values: &[ValueId]) -> Graph {
        let mut needed = vec![false; self.nodes.len()];
        values.iter().for_each(|&value| needed[value] = true);
        self.inputs().for_each(|(id, _)| needed[id] = true);
        for (id, node) in self.nodes.iter().enumerate().rev() {
            if needed[id] {
                node.inputs.iter().for_each(|&input| needed[input] = true);
            }
        }
        let mut new_ids = vec![0; self.nodes.len()];
        let mut part = Graph { name: self.name.clone(), nodes: Vec::new(), outputs: Vec::new() };
        for (id, node) in self.nodes.iter().enumerate().filter(|&(id, _)| needed[id]) {
            let inputs = node.inputs.iter().map(|&input| new_ids[input]).collect();
            new_ids[id] = part.nodes.len();
            part.nodes.push(Node { inputs, ..node.clone() });
        }
        part.outputs = values.iter().map(|&value| new_ids[value]).collect();
        part
    }
}

/// A network that takes one image and gives a number for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classifier {
    /// `[channels, height, width]` of the image.
    pub image: [usize; 3],
    /// The network's result.
    pub output: ValueId,
    /// The same before any softmax at the end.
    pub logits: ValueId,
    /// How many classes there are.
    pub classes: usize,
}

/// The nodes that read each value of a graph, and the values that are wanted as such: the network's results, and others.
#[derive(Clone, Debug)]
pub struct Readers {
    of_values: Vec<Vec<ValueId>>,
    kept: Vec<bool>,
}

impl Readers {
    /// Counts a value among those that are wanted; nothing happens if the graph has no such value.
    pub fn keep(&mut self, value: ValueId) {
        if let Some(kept) = self.kept.get_mut(value) {
            *kept = true;
        }
    }

    /// The nodes that read a value, ascending; a node that reads it twice stands there twice.
    ///
    /// # Panics
    /// If the graph has no such value.
    pub fn of(&self, value: ValueId) -> &[ValueId] {
        &self.of_values[value]
    }

    /// The node that alone reads a value, and once; `None` if the value is wanted as such.
    ///
    /// # Panics
    /// If the graph has no such value.
    pub fn only(&self, value: ValueId) -> Option<ValueId> {
        match self.of(value) {
            &[reader] if !self.kept[value] => Some(reader),
            _ => None,
        }
    }
}

/// One operator application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Unique name; its weights are called `NAME.weight` and so on.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// The values it reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<ValueId>,
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// The network's input: images of `[channels, height, width]`.
    Input {
        /// Channels, height, width of one image.
        shape: [usize; 3],
    },
    /// A convolution. Weights: `weight` `[N, M/groups, kh, kw]` (standard, grouped) or `center` `[N, M]` and `ring`
    /// `[N, S, kh·kw−1]` (HetConv; ring taps in row-major order without the centre); `bias` `[N]` if asked for.
    Conv2d {
        /// M.
        in_channels: usize,
        /// N.
        out_channels: usize,
        /// Kernel, stride, padding, dilation.
        geometry: Conv2dGeometry,
        /// Which kernels the filters have.
        kind: ConvKind,
        /// Whether one number per filter is added to the result.
        bias: bool,
    },
    /// Normalisation of each channel. Weights: `weight`, `bias`, `running_mean`, `running_var`, each `[channels]`.
    BatchNorm {
        /// Number of channels.
        channels: usize,
        /// Added to the variance under the square root.
        epsilon: f32,
    },
    /// An elementwise function.
    Activation {
        /// Which one.
        function: Activation,
    },
    /// Elementwise sum of all inputs.
    Add,
    /// Elementwise product of two inputs; an input of 1×1 pixels scales the channels of the other.
    Mul,
    /// Concatenation of all inputs along the channels.
    Concat,
    /// Largest value of each window.
    MaxPool {
        /// The window; padding never wins.
        geometry: Conv2dGeometry,
    },
    /// Mean of each window.
    AvgPool {
        /// The window.
        geometry: Conv2dGeometry,
        /// Whether padded zeros count as pixels.
        count_padding: bool,
    },
    /// Mean over all pixels of each channel; keeps 1×1 pixels.
    GlobalAvgPool,
    /// Image to features, channel by channel, row by row.
    Flatten,
    /// Fully connected layer. Weights: `weight` `[out, in]`; `bias` `[out]` if asked for.
    Linear {
        /// Number of input features.
        in_features: usize,
        /// Number of output features.
        out_features: usize,
        /// Whether one number per output feature is added.
        bias: bool,
    },
    /// Softmax over features.
    Softmax,
    /// Output channel `i` is input channel `channels[i]`; a subsampled, zero-padded shortcut is `stride` with
    /// `None` for zero channels.
    Gather {
        /// Source channel of every output channel; `None` gives zeros.
        channels: Vec<Option<u32>>,
        /// Every `stride`-th pixel of every `stride`-th row is kept.
        stride: usize,
    },
}

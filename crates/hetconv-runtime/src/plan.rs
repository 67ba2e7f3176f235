//! The compiled network.

use std::borrow::Cow;

use hetconv_graph::{Graph, Shape, Weights};
use hetconv_kernels::{Algorithm, Isa};

use crate::CompileError;
use crate::compile::{algorithms, compile};
use crate::step::{Kind, Step, Value};

/// What a network is compiled for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The instruction set; [`Isa::selected`] unless given.
    pub isa: Option<Isa>,
    /// Images that are run at a time, for which algorithms are chosen; sessions may have any other number. 0 counts as 1.
    pub batch: usize,
    /// Leave out algorithms whose results differ by more than the order of a sum: Winograd's.
    pub exact: bool,
    /// Time the algorithms of every layer on this machine, on one thread, rather than choose by a fixed cost. Other
    /// choices give other bits.
    pub tune: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { isa: None, batch: 1, exact: false, tune: false }
    }
}

/// A network compiled for inference; see [`Plan::compile`].
#[derive(Debug)]
pub struct Plan {
    pub(crate) isa: Isa,
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) values: Vec<Value>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) layers: Vec<Layer>,
}

/// An input of the network.
#[derive(Debug)]
pub(crate) struct Input {
    pub name: String,
    /// `[channels, height, width]`.
    pub shape: [usize; 3],
}

/// A result of the network.
#[derive(Debug)]
pub(crate) struct Output {
    pub name: String,
    pub shape: Shape,
}

/// How one convolution or linear layer is computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its node's name.
    pub name: String,
    /// How it is computed.
    pub algorithm: Algorithm,
    /// Bytes of its packed weights and bias.
    pub packed_bytes: usize,
    /// MACs that its algorithm carries out for one image: none on padding, and with Winograd's those of the transformed
    /// domain.
    pub executed_macs: usize,
}

impl Plan {
    /// Compiles a network.
    ///
    /// # Errors
    /// A graph that is not a network, weights that are not its own, or a number that is not finite; the error names the
    /// node or the tensor.
    pub fn compile(graph: &Graph, weights: &Weights, options: &Options) -> Result<Self, CompileError> {
        compile(graph, Cow::Borrowed(weights), options)
    }

    /// As [`Plan::compile`], and frees each layer's weights as soon as they are packed: never are all of them in memory twice.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn compile_owned(graph: &Graph, weights: Weights, options: &Options) -> Result<Self, CompileError> {
        compile(graph, Cow::Owned(weights), options)
    }

    /// Name and algorithm of every convolution and linear layer, as the fixed cost has it, without any weights.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn algorithms(graph: &Graph, options: &Options) -> Result<Vec<(String, Algorithm)>, CompileError> {
        algorithms(graph, options)
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The instruction set it was compiled for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `[channels, height, width]` of every input.
    pub fn input_shapes(&self) -> impl Iterator<Item = [usize; 3]> {
        self.inputs.iter().map(|input| input.shape)
    }

    /// Name of every input.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.name.as_str())
    }

    /// Shape of every output, in the order of [`Session::output`](crate::Session::output): features, or an image of
    /// `[channels, height, width]`.
    pub fn output_shapes(&self) -> impl Iterator<Item = Shape> {
        self.outputs.iter().map(|output| output.shape)
    }

    /// Name of every output: that of the node whose value it is.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|output| output.name.as_str())
    }

    /// Every convolution and linear layer, in the order in which they are computed.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What a session computes, one after another: for each step the first of the nodes that it stands for, and the layer
    /// if it is one. Steps of an input, an output, a change of order or a choice of pixels are named as the node whose value
    /// they move or the first that reads it.
    pub fn steps(&self) -> impl Iterator<Item = (&str, Option<&Layer>)> {
        let mut layers = self.layers.iter();
        self.steps.iter().map(move |step| {
            let layer = matches!(step.kind, Kind::Conv(_)).then(|| layers.next()).flatten();
            (step.node.as_str(), layer)
        })
    }

    /// Bytes of all packed weights and biases.
    pub fn packed_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.packed_bytes).sum()
    }
}

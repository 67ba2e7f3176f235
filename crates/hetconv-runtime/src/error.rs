//! What can go wrong.

use hetconv_graph::{GraphError, ValueError, WeightError};
use hetconv_kernels::{ConvError, IsaError};

/// Why a graph cannot be compiled.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The graph is not a network; the error names the node.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The weights are not the graph's.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The instruction set that was asked for cannot be used.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// A convolution that cannot be computed.
    #[error("node `{node}`: {source}")]
    Conv {
        /// The node.
        node: String,
        /// Why.
        source: ConvError,
    },
    /// A weight that is NaN or infinite, or a variance without a root.
    #[error(transparent)]
    Values(#[from] ValueError),
    /// A weight or bias that is too large for `f32` once a batch-norm's statistics are taken in: its own, or those of the one
    /// behind a layer.
    #[error("node `{node}`: tensor `{tensor}` is not finite once a batch-norm's statistics are taken in")]
    Overflow {
        /// The node.
        node: String,
        /// The tensor.
        tensor: String,
    },
    /// Windows that would need tables beyond all measure: large ones, of many filters, that meet the image's edges in many ways.
    #[error("node `{node}`: its window meets the image's edges in too many ways for its {filters} filters")]
    Windows {
        /// The node.
        node: String,
        /// Number of filters.
        filters: usize,
    },
    /// More images than there is memory to time a layer with.
    #[error("node `{node}`: there is no memory to time it on {batch} images")]
    TooLarge {
        /// The node.
        node: String,
        /// Number of images.
        batch: usize,
    },
}

/// Why a session cannot be made or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A batch of no images.
    #[error("a batch has at least one image")]
    EmptyBatch,
    /// More images than there is memory for.
    #[error("there is no memory for a batch of {0} images")]
    TooLarge(usize),
    /// Another number of inputs than the network has.
    #[error("{found} inputs for a network that has {expected}")]
    Inputs {
        /// Those of the network.
        expected: usize,
        /// Those given.
        found: usize,
    },
    /// An input of the wrong length.
    #[error("input `{input}` has {found} values; the batch needs {expected}")]
    Length {
        /// The input's name.
        input: String,
        /// Values of the batch.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

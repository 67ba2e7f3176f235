//! What can be wrong with an ONNX file.

use std::fmt;
use std::path::PathBuf;

use hetconv_graph::{ConvertError, GraphError, ValueError, WeightError};

use crate::TensorFault;

/// Why a model could not be written as ONNX, or an ONNX file not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The network is not valid.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The weights do not belong to the network.
    #[error("the weights do not fit the graph: {0}")]
    Weights(#[from] WeightError),
    /// Weights that no network computes with, or that become it when a batch-norm is folded into them.
    #[error(transparent)]
    Values(#[from] ValueError),
    /// An operator set that cannot be read or written.
    #[error("version {found} of the operator set is not supported; {first} to {last} are")]
    Opset {
        /// The version; 0 if none is stated.
        found: i64,
        /// The first that is supported.
        first: i64,
        /// The last that is supported.
        last: i64,
    },
    /// An operator that the operator set does not have.
    #[error("node `{node}`: {what} needs operator set {needs}, but {opset} was asked for")]
    NeedsOpset {
        /// The graph's node.
        node: String,
        /// What has to be expressed.
        what: &'static str,
        /// The first operator set that can.
        needs: i64,
        /// The one asked for.
        opset: i64,
    },
    /// A file that no protobuf reader would open.
    #[error("the model takes {bytes} bytes, but an ONNX file without external data holds at most {limit}")]
    TooLarge {
        /// The encoded size.
        bytes: usize,
        /// The limit of the format.
        limit: usize,
    },
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: std::io::Error,
    },
    /// Bytes that are no ONNX file: truncated, or something else altogether.
    #[error("not an ONNX file: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A model without a graph.
    #[error("the file holds no graph")]
    NoGraph,
    /// An input that is not an image.
    #[error("input `{input}`: {reason}")]
    Input {
        /// The input.
        input: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// Metadata that cannot be read, or is about another network.
    #[error("metadata `{key}`: {reason}")]
    Metadata {
        /// The entry.
        key: &'static str,
        /// Why it cannot be used.
        reason: String,
    },
    /// A tensor whose claims do not hold.
    #[error("tensor `{tensor}`: {fault}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        fault: TensorFault,
    },
    /// A value with two producers.
    #[error("value `{value}` is produced twice")]
    Twice {
        /// The value.
        value: String,
    },
    /// A value that nothing produces.
    #[error("node `{node}` reads `{value}`, which nothing produces")]
    Undefined {
        /// The node that reads it, or `output`.
        node: String,
        /// The value.
        value: String,
    },
    /// Nodes that read each other's results.
    #[error("node `{node}` reads a value that depends on its own result")]
    Cycle {
        /// One of them.
        node: String,
    },
    /// A file that cannot be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// Functions that call themselves, or come to too many nodes.
    #[error("node `{node}` calls a function that calls itself or is too large when written out")]
    Functions {
        /// The call.
        node: String,
    },
    /// Nodes that have no counterpart in a graph of this project.
    #[error("{} not supported:{}", count(nodes.len()), lines(nodes))]
    Unsupported {
        /// All of them; what only depends on them is not among them.
        nodes: Vec<UnsupportedNode>,
    },
}

/// A node that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedNode {
    /// Its name, or that of its first output.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why it could not be read.
    pub reason: String,
}

impl fmt::Display for UnsupportedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`: {}", self.op, self.node, self.reason)
    }
}

fn count(nodes: usize) -> String {
    if nodes == 1 { "1 node is".to_owned() } else { format!("{nodes} nodes are") }
}

fn lines(nodes: &[UnsupportedNode]) -> String {
    nodes.iter().map(|node| format!("\n  {node}")).collect()
}

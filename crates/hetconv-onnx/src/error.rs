//! What can be wrong with an ONNX file.

use hetconv_graph::{GraphError, WeightError};

/// Why a model could not be written as ONNX, or an ONNX file not be read.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The network is not valid.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The weights do not belong to the network.
    #[error("the weights do not fit the graph: {0}")]
    Weights(#[from] WeightError),
    /// An operator set that cannot be written.
    #[error("operator set {found} cannot be written; {first} to {last} can")]
    Opset {
        /// The version asked for.
        found: i64,
        /// The first that can be written.
        first: i64,
        /// The last that can be written.
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
}

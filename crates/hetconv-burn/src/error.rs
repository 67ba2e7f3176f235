//! What can be wrong with a network or a batch.

use hetconv_core::{GeometryError, KindError, PatternError};
use hetconv_graph::{GraphError, WeightError};
use hetconv_kernels::{ConvError, IsaError};

/// Why a network cannot be built or run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The graph is not one.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The weights do not belong to the graph.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The instruction set asked for cannot be used.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// A convolution or linear layer that cannot be computed.
    #[error("node `{node}`: {source}")]
    Conv {
        /// Its name.
        node: String,
        /// What is wrong.
        source: ConvError,
    },
    /// Windows that would need tables beyond all measure: large ones, of many filters, that meet the image's edges in many ways.
    #[error("node `{node}`: its window meets the image's edges in too many ways for its {filters} filters")]
    Windows {
        /// The node.
        node: String,
        /// Number of filters.
        filters: usize,
    },
    /// A pooling whose window does not fit.
    #[error("node `{node}`: {source}")]
    Pool {
        /// Its name.
        node: String,
        /// What is wrong.
        source: GeometryError,
    },
    /// Images that are not `[batch, height, width, channels]` of the network's size.
    #[error("images of shape {found:?}, but the network takes [batch, {height}, {width}, {channels}]")]
    Images {
        /// The shape given, or the number of values.
        found: Vec<usize>,
        /// Pixels from top to bottom.
        height: usize,
        /// Pixels from left to right.
        width: usize,
        /// Number of channels.
        channels: usize,
    },
    /// A batch of one image in training, of which a batch-norm sees one value a channel: that has no variance.
    #[error("node `{node}` sees one value of each channel of one image; training needs a batch of two or more")]
    SingleValue {
        /// The batch-norm.
        node: String,
    },
    /// Another number of labels than of images.
    #[error("{labels} labels for a batch of {batch} images")]
    Labels {
        /// Number of labels.
        labels: usize,
        /// Number of images.
        batch: usize,
    },
    /// A label that is not a class of the network.
    #[error("label {label} of image {image} is out of range: the network has {classes} classes")]
    LabelRange {
        /// Index of the image in the batch.
        image: usize,
        /// Its label.
        label: u16,
        /// Number of classes.
        classes: usize,
    },
}

/// Why a [`HetConv2d`](crate::HetConv2d) layer cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// P does not fit the channels.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Unusable stride, padding or dilation.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// There is no such convolution: an even kernel has no centre.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// A 1×1 kernel has nothing but a centre.
    #[error("a 1×1 kernel is the same for every filter and channel; use an ordinary convolution")]
    PointwiseKernel,
    /// The instruction set asked for cannot be used.
    #[error(transparent)]
    Isa(#[from] IsaError),
}

/// Why a velocity cannot be taken over.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VelocityError {
    /// No trainable parameter has this name.
    #[error("velocity `{0}` belongs to no trainable parameter of the network")]
    Unexpected(String),
    /// Another shape than the parameter's.
    #[error("velocity `{name}` has shape {found:?} and {elements} values, but the parameter has shape {expected:?}")]
    Shape {
        /// The parameter's name.
        name: String,
        /// The parameter's shape.
        expected: Vec<usize>,
        /// The velocity's shape.
        found: Vec<usize>,
        /// Number of values given.
        elements: usize,
    },
}

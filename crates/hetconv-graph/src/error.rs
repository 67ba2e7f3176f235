//! What can be wrong with a graph.

use hetconv_core::{GeometryError, KindError, PatternError};

use crate::Shape;

/// Why a graph is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A node that cannot compute what it claims to.
    #[error("node `{node}`: {fault}")]
    Node {
        /// The node's name.
        node: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// More nodes than any network has.
    #[error("the graph has {nodes} nodes; at most {limit} are possible")]
    TooManyNodes {
        /// Number of nodes.
        nodes: usize,
        /// The most there may be.
        limit: usize,
    },
    /// Two nodes of one name, or a node without a name.
    #[error("node name `{name}` is {}", if name.is_empty() { "empty" } else { "used twice" })]
    Name {
        /// The name.
        name: String,
    },
    /// A graph without results.
    #[error("the graph has no outputs")]
    NoOutputs,
    /// An output that no node produces.
    #[error("output {output} does not exist: the graph has {nodes} nodes")]
    Output {
        /// The output's value.
        output: usize,
        /// Number of nodes.
        nodes: usize,
    },
    /// A network that does not tell classes of images apart.
    #[error("`{name}` gives {outputs} and has {inputs} inputs; one input, and a number for each class, are needed")]
    NoClassifier {
        /// The network's name.
        name: String,
        /// How many inputs it has.
        inputs: usize,
        /// The shapes of its outputs.
        outputs: String,
    },
    /// A network that cannot be built from its name.
    #[error(
        "`{name}` says not which filters are left; a pruned network is made from a trained one and exists in files"
    )]
    Pruned {
        /// The name.
        name: String,
    },
    /// A name that is no architecture of the zoo.
    #[error("unknown architecture `{name}`")]
    UnknownArchitecture {
        /// The name.
        name: String,
    },
}

/// What is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// An input that is not an earlier node.
    #[error("reads value {input}, which is not produced before it")]
    Order {
        /// The value read.
        input: usize,
    },
    /// The wrong number of inputs.
    #[error("takes {expected}, but has {found}")]
    Arity {
        /// What it takes.
        expected: &'static str,
        /// What it has.
        found: usize,
    },
    /// An image where features are needed, or the reverse.
    #[error("takes {expected}, but its input is {found}")]
    Kind {
        /// What it takes.
        expected: &'static str,
        /// What it is given.
        found: Shape,
    },
    /// The wrong number of channels or features.
    #[error("takes {expected} channels, but its input has {found}")]
    Channels {
        /// What it takes.
        expected: usize,
        /// What it is given.
        found: usize,
    },
    /// Operands that do not go together.
    #[error("its operands are {first} and {other}, which do not go together")]
    Operands {
        /// The first operand.
        first: Shape,
        /// The one that does not match.
        other: Shape,
    },
    /// A number that must not be zero.
    #[error("{0} is 0, but must be at least 1")]
    Zero(&'static str),
    /// A window that cannot be applied.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A convolution's window with more taps than any network needs.
    #[error("its window has {taps} taps; at most {limit} are possible")]
    Taps {
        /// Height times width of the window.
        taps: usize,
        /// The most taps.
        limit: usize,
    },
    /// A pooling window that sees no pixel: it may lie wholly in the padding, or have the image between two of its taps.
    #[error("with padding of {padding} pixels a pooling window of {window} may see no pixel of the image")]
    PoolPadding {
        /// Padding on the offending side.
        padding: usize,
        /// Extent of the window.
        window: usize,
    },
    /// A convolution that there is not.
    #[error(transparent)]
    Convolution(#[from] KindError),
    /// A HetConv pattern that cannot be made.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A batch-norm epsilon that is not a positive number.
    #[error("epsilon must be a positive finite number")]
    Epsilon,
    /// A gather from a channel that does not exist.
    #[error("gathers channel {channel} of an input with {channels}")]
    Gather {
        /// The channel asked for.
        channel: u32,
        /// The channels there are.
        channels: usize,
    },
    /// A value larger than any network needs, and perhaps than the memory.
    #[error(
        "its result would be {0}; at most {channels} channels, {side} pixels a side and {elements} elements are possible",
        channels = Shape::MAX_CHANNELS, side = Shape::MAX_SIDE, elements = Shape::MAX_ELEMENTS
    )]
    Size(Shape),
    /// Weights or costs beyond what can be counted or stored.
    #[error("its sizes are too large to count")]
    TooLarge,
}

impl Fault {
    /// The error that says where the fault is.
    pub(crate) fn at(self, node: &str) -> GraphError {
        GraphError::Node { node: node.to_owned(), fault: self }
    }
}

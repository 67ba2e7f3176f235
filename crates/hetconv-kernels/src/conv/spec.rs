//! What a convolution is: its shape, its kind, its weights.

use hetconv_core::{ChannelOrder, Conv2dGeometry, ConvKind, GeometryError, KindError};

/// A convolution: its shape, its kind and the channel orders of its two activations.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvSpec {
    /// M.
    pub in_channels: usize,
    /// N.
    pub out_channels: usize,
    /// Kernel, stride, padding, dilation.
    pub geometry: Conv2dGeometry,
    /// Standard, grouped or HetConv.
    pub kind: ConvKind,
    /// Order in which the input's channels are stored.
    pub in_order: ChannelOrder,
    /// Order in which the filters' results are stored.
    pub out_order: ChannelOrder,
}

/// Why a convolution cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvError {
    /// The window does not fit the image.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Images without pixels.
    #[error("images of {}×{} pixels", .0[0], .0[1])]
    NoPixels([usize; 2]),
    /// Images or weights of more values than can be addressed.
    #[error("images of {}×{} pixels with {} channels, and {} filters: more values than can be addressed", size[0], size[1], layer[0], layer[1])]
    TooLarge {
        /// Height and width of the images.
        size: [usize; 2],
        /// M and N.
        layer: [usize; 2],
    },
    /// There is no such convolution.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// Channel orders for another number of channels or filters.
    #[error("channel orders of {orders:?} channels and filters for a convolution of {layer:?}")]
    Orders {
        /// Channels and filters of the orders.
        orders: [usize; 2],
        /// M and N.
        layer: [usize; 2],
    },
}

/// A layer's weights, in canonical form and natural order.
#[derive(Clone, Copy, Debug)]
pub enum ConvWeights<'a> {
    /// Standard and grouped: `[N, M/groups, kh, kw]`.
    Dense(&'a [f32]),
    /// HetConv.
    Het {
        /// Centre taps `[N, M]`.
        center: &'a [f32],
        /// The other taps of the spatial channels `[N, S, kh·kw−1]`.
        ring: &'a [f32],
    },
}

/// Where a layer's weight gradients go; shaped as [`ConvWeights`].
#[derive(Debug)]
pub enum ConvWeightsMut<'a> {
    /// Standard and grouped: `[N, M/groups, kh, kw]`.
    Dense(&'a mut [f32]),
    /// HetConv.
    Het {
        /// Centre taps `[N, M]`.
        center: &'a mut [f32],
        /// The other taps of the spatial channels `[N, S, kh·kw−1]`; spare slots become +0.
        ring: &'a mut [f32],
    },
}

impl ConvWeightsMut<'_> {
    pub(super) fn as_ref(&self) -> ConvWeights<'_> {
        match self {
            Self::Dense(weight) => ConvWeights::Dense(weight),
            Self::Het { center, ring } => ConvWeights::Het { center, ring },
        }
    }
}

impl ConvSpec {
    /// A convolution whose activations are stored in natural order. Where the channels of a class do not stand together then, as
    /// those of shifted classes, the kernels multiply all channels with all taps, as of a standard convolution; what HetConv saves
    /// is saved by [`ConvSpec::by_class`].
    pub fn natural(in_channels: usize, out_channels: usize, geometry: Conv2dGeometry, kind: ConvKind) -> Self {
        let (in_order, out_order) = (ChannelOrder::natural(in_channels), ChannelOrder::natural(out_channels));
        Self { in_channels, out_channels, geometry, kind, in_order, out_order }
    }

    /// A convolution whose activations are stored class by class.
    pub fn by_class(in_channels: usize, out_channels: usize, geometry: Conv2dGeometry, kind: ConvKind) -> Self {
        let natural = Self::natural(in_channels, out_channels, geometry, kind);
        match &natural.kind {
            ConvKind::Het(pattern) => Self {
                in_order: ChannelOrder::by_class(pattern.channel_classes()),
                out_order: ChannelOrder::by_class(pattern.filter_classes()),
                ..natural
            },
            _ => natural,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConvError> {
        self.kind.check(self.in_channels, self.out_channels, &self.geometry)?;
        let (orders, layer) = ([self.in_order.len(), self.out_order.len()], [self.in_channels, self.out_channels]);
        if orders == layer { Ok(()) } else { Err(ConvError::Orders { orders, layer }) }
    }

    /// Lengths of the canonical weight tensors: `weight` alone, or `center` and `ring`.
    pub fn weight_lengths(&self) -> (usize, usize) {
        let (m, n, taps) = (self.in_channels, self.out_channels, self.geometry.taps());
        match &self.kind {
            ConvKind::Standard => (n * m * taps, 0),
            ConvKind::Grouped(groups) => (n * (m / groups) * taps, 0),
            ConvKind::Het(pattern) => (n * m, n * pattern.max_spatial() * (taps - 1)),
        }
    }

    pub(super) fn check_weights(&self, weights: &ConvWeights<'_>) {
        let lengths = match (weights, &self.kind) {
            (ConvWeights::Dense(weight), ConvKind::Standard | ConvKind::Grouped(_)) => (weight.len(), 0),
            (ConvWeights::Het { center, ring }, ConvKind::Het(_)) => (center.len(), ring.len()),
            _ => panic!("weights of another kind of convolution"),
        };
        assert_eq!(lengths, self.weight_lengths(), "weight lengths");
    }
}

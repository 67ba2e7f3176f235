//! The differentiable operations of this crate.
//!
//! Activations are NHWC, `[batch, height, width, channels]`, with channels in whatever order the caller stores them;
//! weights are in canonical form and natural order.

mod conv;
mod loss;
mod natural;
mod norm;
mod pool;
mod scale;
mod select;

pub use conv::{ConvOp, ConvRequest, ConvTensors, Normalised};
pub use loss::{Loss, cross_entropy};
pub use natural::NaturalConvOp;
pub use norm::{Moments, NormOp, NormTensors};
pub use pool::{PoolKind, PoolOp, global_avg_pool};
pub use scale::scale_channels;
pub use select::SelectOp;

//! The differentiable operations of this crate.
//!
//! Activations are NHWC, `[batch, height, width, channels]`, with channels in whatever order the caller stores them;
//! weights are in canonical form and natural order.

mod conv;
mod loss;
mod norm;
mod pool;

pub use conv::{ConvOp, ConvTensors};
pub use loss::{Loss, cross_entropy};
pub use norm::{Moments, NormOp, NormTensors};
pub use pool::{PoolKind, PoolOp, global_avg_pool};

use burn::tensor::Tensor;

/// `max(x, 0)` if asked for.
pub(crate) fn relu_if<const D: usize>(relu: bool, x: Tensor<D>) -> Tensor<D> {
    if relu { burn::tensor::activation::relu(x) } else { x }
}

//! The arithmetic under training and inference: convolutions (HetConv, standard, grouped, depthwise) forward,
//! grad-input and grad-weight, batch-norm, pooling, loss and optimizer, over plain `f32` slices.
//!
//! # Layout
//! Activations are NHWC: `[batch, height, width, channels]`, contiguous, and channels stand in a
//! [`ChannelOrder`](hetconv_core::ChannelOrder) that makes the classes of a HetConv layer contiguous. Weights stay in
//! their canonical form and natural order; [`Conv::pack`] brings them into the order that a kernel reads.
//!
//! # One algorithm, several instruction sets
//! Every kernel is written once, generic over a [`Simd`] token, and compiled for each instruction set. A token can only be
//! had from a check of the CPU ([`Isa`]), so holding one is the proof that its instructions may run.
//! `HETCONV_ISA=portable|avx2|avx512` forces one; an unavailable one is an error.
//!
//! # Determinism
//! Work is split into parts that depend on shapes only, never on the number of threads, and partial results are summed
//! in a fixed order: the same instruction set gives the same bits on any number of threads.

// Words, from the whole to the part:
//
// * a *pass* computes a *target* from a *source*, of a batch; a thread has a *share* of it, a *band* of pixels and some
//   blocks;
// * a *region* is pixels of an image that read the same taps; a *tile*, the pixels of a region that are computed together;
// * a *block* is one or two *vectors* of outputs (forward: filters) that are computed together; a vector has *lanes*;
// * a block reads a *range* of the inputs at each tap, or *turns*: vectors of inputs that meet their weights lane by lane;
// * a *piece* is 4×4 target pixels in Winograd's algorithm, whose transformed domain has 36 *points*.

mod aligned;
mod conv;
mod depthwise;
mod direct;
pub mod elementwise;
mod fresh;
mod grad_weight;
mod isa;
mod kernel;
mod moments;
mod pack;
mod parallel;
mod prefetch;
mod prepared;
mod reading;
mod registers;
mod reorder;
mod scratch;
mod simd;
mod taps;
mod team;
mod tile;
mod walk;
mod winograd;

pub mod alloc;
pub mod cache;
pub mod loss;
pub mod measure;
pub mod norm;
pub mod optim;
pub mod pool;
pub mod reference;
pub mod scale;
pub mod select;

pub use aligned::Aligned;
pub use conv::{
    Algorithm, Batch, Conv, ConvError, ConvSpec, ConvWeights, ConvWeightsMut, PackedWeights, Reordered, Tables,
};
pub use fresh::zeros;
pub use isa::{Isa, IsaError};
pub use moments::ColumnSums;
pub use pack::Direction;
pub use prepared::{Prepared, PreparedBatch, Residual};
pub use reading::Input;
pub use simd::{Simd, Task};
pub use team::Team;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

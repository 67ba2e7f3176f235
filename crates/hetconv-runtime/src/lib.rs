//! Inference: a graph and its weights compiled to a [`Plan`], which a [`Session`] runs.
//!
//! * Compiling folds batch-norm into the convolution before it, fuses residual adds and activations into convolutions,
//!   settles in which order every value's channels are stored, chooses an algorithm for every layer and packs its weights.
//! * A plan is shared: any number of sessions, on any threads, run it at the same time.
//! * A session holds the memory of one batch size. Running it allocates nothing, and gives the same bits on any number of
//!   threads.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod apart;
mod compile;
mod error;
mod fold;
mod memory;
mod plan;
mod schedule;
mod session;
mod step;

pub use error::{CompileError, RunError};
pub use hetconv_kernels::{Algorithm, Isa, Team};
pub use plan::{Layer, Options, Plan};
pub use session::Session;

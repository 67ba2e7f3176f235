//! HetConv for [Burn](https://burn.dev).
//!
//! * [`HetConv2d`] is the layer for your own Burn model: NCHW in and out.
//! * [`GraphModule`] trains a whole network of [`hetconv_graph`]; [`Sgd`] is its optimizer, [`WeightAverage`] the moving
//!   average of its weights.
//! * [`ops`] holds the differentiable operations under both.
//!
//! On Burn's CPU device, Flex, the operations are custom ones with a hand-written backward over the kernels of
//! [`hetconv_kernels`]; on every other device they are composed of Burn's own differentiable operations. The features
//! `wgpu`, `vulkan`, `metal` and `cuda` switch on those devices of Burn.
#![forbid(unsafe_code)]

mod average;
mod composed;
mod error;
mod implementation;
mod kernel;
mod layer;
mod module;
pub mod ops;
mod optim;
mod parameters;
mod program;
mod selection;

pub use average::WeightAverage;
pub use error::{LayerError, ModuleError, VelocityError};
pub use hetconv_core::ArrangementKind;
pub use implementation::Implementation;
pub use layer::{HetConv2d, HetConv2dConfig};
pub use module::{GraphModule, StepOutput, TrainingPass};
pub use optim::{DecayScope, Sgd, SgdConfig};
pub use parameters::Gradients;

/// The README's example compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! The HetConv operator of Singh, Verma, Rai and Namboodiri, "HetConv: Heterogeneous Kernel-Based Convolutions for
//! Deep CNNs" (CVPR 2019, arXiv 1903.04120): what it is, not how it is computed.
//!
//! * [`HetPattern`] says which channels a filter sees through its full K×K window and which through the centre tap only.
//! * [`Conv2dGeometry`] holds kernel, stride, padding and dilation, and the output size they give.
//! * [`equations`] holds the paper's numbered equations as functions.
#![forbid(unsafe_code)]

mod activation;
pub mod equations;
mod geometry;
mod kind;
mod order;
mod pattern;

pub use activation::Activation;
pub use geometry::{Conv2dGeometry, GeometryError};
pub use kind::{ConvKind, KindError};
pub use order::ChannelOrder;
pub use pattern::{Arrangement, ArrangementKind, HetPattern, PatternError};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

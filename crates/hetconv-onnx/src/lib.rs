//! ONNX files to and from the graphs of [`hetconv_graph`].
//!
//! * [`export()`] writes a model as an ONNX file, with HetConv in one of three [`Style`]s.
//!
//! ```
//! use hetconv_graph::{ModelFile, Normalisation, Weights, zoo};
//! use hetconv_onnx::{ExportOptions, export};
//! let graph = zoo::build(&"small-cifar_p4".parse()?, 10)?;
//! let weights = Weights::init(&graph, 1)?;
//! let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
//! let onnx = export(&model, &ExportOptions::default())?;
//! assert!(onnx.len() > 100_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod export;
mod fold;
mod layer;
mod metadata;
pub mod proto;
mod writer;

pub use error::OnnxError;
pub use export::{ExportOptions, Style, export};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! ONNX files to and from the graphs of [`hetconv_graph`].
//!
//! * [`import()`] reads a network; grouped K×K + 1×1 convolutions over one image become HetConv layers.
//! * [`convert()`] puts HetConv in place of the convolutions of any file and leaves everything else as it is.
//! * [`export()`] writes a model as an ONNX file, with HetConv in one of three [`Style`]s.
//!
//! ```
//! use hetconv_graph::{ModelFile, Normalisation, Weights, zoo};
//! use hetconv_onnx::{ExportOptions, ImportOptions, export, import};
//! let graph = zoo::build(&"small-cifar_p4".parse()?, 10)?;
//! let weights = Weights::init(&graph, 1)?;
//! let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
//! let onnx = export(&model, &ExportOptions::default())?;
//! let imported = import(&onnx.bytes, None, &ImportOptions::default())?;
//! assert_eq!(imported.het_layers, ["conv2", "conv3", "conv4"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod convert;
mod decompose;
mod error;
mod export;
mod external;
mod fold;
mod import;
mod layer;
mod metadata;
mod names;
mod prepare;
pub mod proto;
mod recognise;
mod simplify;
mod tensor;
mod wire;
mod writer;

pub use convert::{Converted, convert};
pub use error::{OnnxError, UnsupportedNode};
pub use export::{ExportOptions, Exported, Style, export};
pub use external::{data_files, embed_external_data};
pub use hetconv_graph::{
    ConvCost, ConvertError, ConvertOptions, ConvertReport, ConvertedLayer, HetLayer, Init, KeptReason, Selection,
};
pub use import::{ImportOptions, Imported, import, import_file, is_onnx};
pub use metadata::{state_classes, state_normalisation};
pub use tensor::TensorFault;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! Convolutional networks as a graph, and everything that can be said about one without running it.
//!
//! * [`Graph`] is the network: nodes in topological order, each producing one value. [`GraphBuilder`] writes one in a few
//!   lines, [`zoo`] holds the paper's networks, [`ModelName`] is their naming scheme.
//! * [`Graph::shapes`] infers and checks every value's [`Shape`]; [`Graph::cost`] counts MACs, parameters and stages.
//! * [`rewrite()`] replaces standard convolutions by HetConv or by the paper's alternatives; [`squeeze_excite`] adds SE.
//! * [`convert()`] puts HetConv in place of the standard convolutions of a network that has weights.
//! * [`prune()`] removes the filters with the smallest norms, and everything that depends on them.
//! * [`Weights`] holds the numbers by name; [`ModelFile`] stores graph and weights in one `.safetensors` file.
//! * [`ChannelPlan`] decides in which order every value's channels are stored, so that HetConv's classes are contiguous;
//!   [`Fusion`] which nodes are computed together.
//!
//! ```
//! use hetconv_graph::{ModelName, Weights, zoo};
//! let name: ModelName = "small-cifar_p4".parse()?;
//! let graph = zoo::build(&name, 10)?;
//! let cost = graph.cost()?;
//! println!("{}: {} MACs, {} parameters, {} stages", graph.name, cost.macs, cost.params, cost.stages);
//! let weights = Weights::init(&graph, 1)?;
//! weights.check(&graph)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod atomic;
mod builder;
mod convert;
mod cost;
mod error;
mod file;
mod fuse;
mod graph;
mod name;
mod norm;
mod order;
mod prune;
mod rewrite;
mod se;
mod selection;
mod sets;
mod shape;
mod weights;
pub mod zoo;

pub use atomic::{atomic_write, remove_unfinished};
pub use builder::GraphBuilder;
pub use convert::{
    ConvCost, ConvertError, ConvertOptions, ConvertReport, ConvertedLayer, HetLayer, Init, KeptReason, convert,
    kept_lines,
};
pub use cost::{Cost, LayerCost};
pub use error::{Fault, GraphError};
pub use file::{FileError, FileFault, ModelFile, Normalisation};
pub use fuse::{Chain, Fusion, Takes};
pub use graph::*;
pub use name::{ModelName, NameError, nearest, pruned_name};
pub use norm::ChannelAffine;
pub use order::{ChannelPlan, is_contiguous};
pub use prune::{PruneAmount, PruneError, Pruned, PrunedLayer, prune};
pub use rewrite::{NoteKind, RewriteNote, RewriteOptions, Substitution, rewrite};
pub use se::squeeze_excite;
pub use selection::{NameFilter, Selection};
pub use shape::Shape;
pub use weights::{ValueError, WeightError, WeightRole, WeightSpec, WeightTensor, Weights};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

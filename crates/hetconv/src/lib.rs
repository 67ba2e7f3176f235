//! Heterogeneous convolutions (HetConv; Singh et al., CVPR 2019): networks that are cheaper on the clock.
//!
//! In a HetConv layer a filter has full K×K kernels on one P-th of the channels and 1×1 kernels on the others. It computes
//! in one pass what grouped or depthwise convolutions need two for.
//!
//! This crate gathers the others under one name, and holds the `hetconv` command (feature `cli`, on by default) and the
//! [`report`] it writes:
//!
//! * [`core`]: the operator: patterns, geometry, the paper's equations;
//! * [`kernels`]: its arithmetic over slices, forward and backward;
//! * [`graph`]: networks as data: the paper's zoo, the rewrite to HetConv, costs, the model file;
//! * [`runtime`]: inference, compiled and without allocation;
//! * [`onnx`]: ONNX files in and out, and HetConv in place of their convolutions;
//! * [`calibrate`]: HetConv layers fitted to a trained network's convolutions;
//! * [`burn`]: networks and layers for [Burn](https://burn.dev);
//! * [`train`]: data sets, recipes, the training loop.
//!
//! # Examples
//! What HetConv saves of a network, and one step of training it:
//! ```
//! use burn::tensor::Device;
//! use hetconv::burn::{GraphModule, Sgd, SgdConfig};
//! use hetconv::graph::{Weights, zoo};
//!
//! let standard = zoo::build(&"small-cifar".parse()?, 10)?;
//! let het = zoo::build(&"small-cifar_p4".parse()?, 10)?;
//! assert!(het.cost()?.macs < standard.cost()?.macs / 2);
//! assert_eq!(het.cost()?.stages, standard.cost()?.stages);
//!
//! let mut network = GraphModule::new(&het, &Weights::init(&het, 1)?, &Device::flex())?;
//! let mut optimizer = Sgd::new(SgdConfig::default());
//! let images = vec![0.5; 4 * 32 * 32 * 3]; // batch, height, width, channels
//! let step = network.step(images, 4, &[0, 1, 2, 3], 0.1)?;
//! println!("loss {:.3}", step.loss);
//! optimizer.step(&mut network, step.gradients, 0.05);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub use hetconv_burn as burn;
pub use hetconv_calibrate as calibrate;
pub use hetconv_core as core;
pub use hetconv_graph as graph;
pub use hetconv_kernels as kernels;
pub use hetconv_onnx as onnx;
pub use hetconv_runtime as runtime;
pub use hetconv_train as train;

pub mod report;
pub mod units;

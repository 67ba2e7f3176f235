//! HetConv layers fitted to the convolutions of a trained network, without training.
//!
//! 1. *Classes.* Every value of the network has one class for each of its channels, which all converted layers of one P that
//!    write or read it share, so that channels can be stored class by class. They begin as the patterns asked for and
//!    change as long as more of what only off-centre taps can carry survives. Class sizes stay, and so does the cost.
//! 2. *Weights.* Layer by layer, in the network's order, the taps that HetConv has are fitted by ridge regression: what the
//!    layer reads comes from the network as converted so far, what it should give from the original one. So a
//!    layer also makes up for what the layers before it lost.
//!
//! Everything is deterministic: the same network, images and options give the same weights, whatever the number of threads.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod activations;
mod assign;
mod linear;
mod refit;
mod windows;

use std::collections::BTreeMap;

use hetconv_core::{Conv2dGeometry, HetPattern};
use hetconv_graph::{Graph, GraphError, HetLayer, Op, Shape, ValueId, WeightError, Weights};
use hetconv_kernels::{Isa, IsaError};
use hetconv_runtime::{CompileError, RunError};

use activations::Images;
use windows::Sampling;

/// How to calibrate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Weight of the distance from the projected weights, as a share of the inputs' mean second moment.
    pub ridge: f64,
    /// Windows of a layer that are fitted, for each of a filter's weights.
    pub windows_per_weight: usize,
    /// Whether classes are assigned anew, or stay as they are asked for.
    pub assign: bool,
    /// Images that are run at a time.
    pub batch: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { ridge: 1e-3, windows_per_weight: 12, assign: true, batch: 16 }
    }
}

/// Why a network cannot be calibrated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// The network is not valid.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The weights are not the network's.
    #[error("the weights do not fit the graph: {0}")]
    Weights(#[from] WeightError),
    /// A part of the network cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A part of the network cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No instruction set to compute with.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// A pattern for something that is no standard convolution of its size.
    #[error(
        "`{layer}` is not a standard convolution with a centre, of {in_channels} channels and {out_channels} filters"
    )]
    Layer {
        /// The name it was given for.
        layer: String,
        /// M of the pattern.
        in_channels: usize,
        /// N of the pattern.
        out_channels: usize,
    },
    /// A network that images alone do not feed.
    #[error("the network has {0} inputs; only networks of one input can be calibrated")]
    Inputs(usize),
    /// No images, or a part of one.
    #[error("{found} values are no whole number of images of {image} values each")]
    Images {
        /// Values given.
        found: usize,
        /// Values of an image.
        image: usize,
    },
    /// A ridge that holds nothing down.
    #[error("a ridge of {0}; a number that is positive or 0 is needed")]
    Ridge(f64),
    /// Images that do not determine a layer's weights, and no ridge that does.
    #[error("the images do not determine the weights of `{layer}`; more images or a larger ridge would")]
    Singular {
        /// The layer.
        layer: String,
    },
    /// An activation that is not a number.
    #[error("the activations that `{layer}` reads or gives are not finite")]
    NotFinite {
        /// The layer.
        layer: String,
    },
}

/// A convolution that is to become HetConv.
struct Layer {
    /// Its node in the graph.
    id: ValueId,
    name: String,
    geometry: Conv2dGeometry,
    /// Height and width of what it reads.
    in_size: [usize; 2],
    pattern: HetPattern,
    sampling: Sampling,
    /// `[N, M, K, K]`.
    weight: Vec<f32>,
    /// `[N]`; zeros if it has none.
    bias: Vec<f32>,
}

impl Layer {
    fn new(
        graph: &Graph,
        shapes: &[Shape],
        weights: &Weights,
        (name, pattern): (&String, &HetPattern),
        images: usize,
        options: &Options,
    ) -> Result<Self, CalibrateError> {
        let (in_channels, out_channels) = (pattern.in_channels(), pattern.out_channels());
        let wrong = || CalibrateError::Layer { layer: name.clone(), in_channels, out_channels };
        let id = graph.find(name).ok_or_else(wrong)?;
        let node = &graph.nodes[id];
        let geometry = match &node.op {
            Op::Conv2d { in_channels: m, out_channels: n, geometry, kind, .. }
                if kind.is_standard() && (*m, *n) == (in_channels, out_channels) && geometry.center_tap().is_some() =>
            {
                geometry.clone()
            }
            _ => return Err(wrong()),
        };
        let tensor = |suffix: &str| weights.get(&format!("{name}.{suffix}")).map(|tensor| tensor.data.clone());
        let unknowns = in_channels + pattern.max_spatial() * (geometry.taps() - 1) + 1;
        let wanted = options.windows_per_weight.saturating_mul(unknowns).max(4096);
        Ok(Self {
            id,
            name: name.clone(),
            in_size: shapes[node.inputs[0]].size(),
            sampling: Sampling::new(shapes[id].size(), images, wanted),
            pattern: pattern.clone(),
            geometry,
            weight: tensor("weight").unwrap_or_default(),
            bias: tensor("bias").unwrap_or_else(|| vec![0.0; out_channels]),
        })
    }
}

/// Fits HetConv layers to the standard convolutions of these names. The patterns say how many channels and filters each
/// class has, and which, unless [`Options::assign`] moves them.
///
/// `images` are `[images, channels, height, width]`, as the network takes them; `watch` is told how many of how many layers
/// are done. The result has a bias for every layer and is what [`hetconv_graph::Init::Layers`] takes.
///
/// # Errors
/// See [`CalibrateError`].
pub fn calibrate(
    graph: &Graph,
    weights: &Weights,
    patterns: &BTreeMap<String, HetPattern>,
    images: &[f32],
    options: &Options,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<String, HetLayer>, CalibrateError> {
    if !options.ridge.is_finite() || options.ridge < 0.0 {
        return Err(CalibrateError::Ridge(options.ridge));
    }
    weights.check(graph)?;
    let shapes = graph.shapes()?;
    let images = Images::new(graph, images, options.batch)?;
    let isa = Isa::selected()?;
    let layer = |entry| Layer::new(graph, &shapes, weights, entry, images.count(), options);
    let mut layers: Vec<Layer> = patterns.iter().map(layer).collect::<Result<_, _>>()?;
    layers.sort_by_key(|layer| layer.id);
    watch(0, layers.len());
    let targets = observe(graph, weights, &images, &mut layers, options)?;
    let (mut so_far, mut its_weights) = (graph.clone(), weights.clone());
    let mut fitted = BTreeMap::new();
    for (index, (layer, target)) in layers.iter().zip(targets).enumerate() {
        let read = so_far.nodes[layer.id].inputs[0];
        let mut windows = Vec::new();
        images.run(&so_far, &its_weights, &[read], &mut |first, count, values| {
            windows.extend(layer.sampling.windows(layer, first, count, values[0]));
        })?;
        let het = refit::refit(isa, layer, &windows, &target, options.ridge)?;
        het.install(&mut so_far.nodes[layer.id], &mut its_weights);
        fitted.insert(layer.name.clone(), het);
        watch(index + 1, layers.len());
    }
    Ok(fitted)
}

/// Runs the original network once: assigns classes by what its layers read, and returns what each of them gives,
/// `[windows, N]`.
fn observe(
    graph: &Graph,
    weights: &Weights,
    images: &Images<'_>,
    layers: &mut [Layer],
    options: &Options,
) -> Result<Vec<Vec<f32>>, CalibrateError> {
    let mut values: Vec<ValueId> =
        layers.iter().flat_map(|layer| [graph.nodes[layer.id].inputs[0], layer.id]).collect();
    values.sort_unstable();
    values.dedup();
    let place = |value: ValueId| values.binary_search(&value).unwrap_or_default();
    let mut moments: Vec<assign::Moments> = layers.iter().map(assign::Moments::new).collect();
    let mut targets: Vec<Vec<f32>> = layers.iter().map(|_| Vec::new()).collect();
    images.run(graph, weights, &values, &mut |first, count, found| {
        for ((layer, moments), target) in layers.iter().zip(&mut moments).zip(&mut targets) {
            if options.assign {
                let read = found[place(graph.nodes[layer.id].inputs[0])];
                moments.add(&layer.sampling.windows(layer, first, count, read));
            }
            target.extend(layer.sampling.pixels(layer.pattern.out_channels(), first, count, found[place(layer.id)]));
        }
    })?;
    if options.assign {
        let tied = graph.tied_values()?;
        let energies: Vec<assign::Energy> =
            layers.iter().zip(&moments).map(|(layer, moments)| moments.energy(layer)).collect();
        let ends = |layer: &Layer| [tied[graph.nodes[layer.id].inputs[0]], tied[layer.id]];
        let ends: Vec<[ValueId; 2]> = layers.iter().map(ends).collect();
        assign::assign(layers, &ends, &energies);
    }
    Ok(targets)
}

//! HetConv in place of the standard convolutions of a network that has weights.
//!
//! [`rewrite()`](crate::rewrite()) changes what a network is; this also says what becomes of its numbers, and why a
//! convolution stays as it is. [`ConvertOptions`] and [`ConvertReport`] are those of ONNX files, too.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hetconv_core::{ArrangementKind, Conv2dGeometry, HetPattern};
use serde::Serialize;

use crate::weights::{draw, node_specs};
use crate::{ConvKind, GraphError, ModelFile, Node, Op, Selection, ValueError, WeightError, WeightTensor, Weights};

/// What to convert, and into what.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The paper's P. It is reduced where it is more than a layer's channels or, if blocked, does not divide M and N.
    pub parts: usize,
    /// How classes are assigned.
    pub arrangement: ArrangementKind,
    /// Where the weights come from.
    pub init: Init,
    /// Which convolutions, by the node's name.
    pub selection: Selection,
    /// Height and width of the images that costs are counted for, where an ONNX file leaves them open.
    pub image_size: Option<[usize; 2]>,
}

impl ConvertOptions {
    /// P parts in blocked classes, the taps kept that fit, nothing excluded, the first convolution as it is.
    pub fn new(parts: usize) -> Self {
        let (init, selection) = (Init::Project, Selection::default());
        Self { parts, arrangement: ArrangementKind::Blocked, init, selection, image_size: None }
    }

    /// Whether every P is one.
    pub fn has_parts(&self) -> bool {
        self.parts > 0 && self.selection.parts_by_name.iter().all(|(_, parts)| *parts > 0)
    }

    /// Why a convolution stays as it is because of its name or place.
    pub fn keeps(&self, name: &str, first: bool) -> Option<KeptReason> {
        if first && self.selection.keep_first {
            return Some(KeptReason::First);
        }
        self.selection.excludes(name).then_some(KeptReason::Excluded)
    }

    /// The classes of a layer of this name, or why it has none.
    ///
    /// # Errors
    /// [`KeptReason::Parts`] if no P from 2 on fits, [`KeptReason::Malformed`] if there are no such layers.
    pub fn pattern(&self, name: &str, in_channels: usize, out_channels: usize) -> Result<HetPattern, KeptReason> {
        let asked = self.selection.parts(name).unwrap_or(self.parts);
        match self.arrangement.fitting(in_channels, out_channels, asked) {
            Ok(pattern) if pattern.classes() > 1 => Ok(pattern),
            Ok(_) => Err(KeptReason::Parts { asked }),
            Err(_) => Err(KeptReason::Malformed),
        }
    }
}

/// Where a converted layer's weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// The taps of the convolution that HetConv has, too; the others are dropped.
    Project,
    /// Fresh weights, as of [`Weights::init`]; biases stay.
    Random {
        /// The seed.
        seed: u64,
    },
    /// Those of these layers, by name: what calibration gives.
    Layers(Arc<BTreeMap<String, HetLayer>>),
}

impl Init {
    /// The HetConv layer of these classes in place of a standard convolution with the weights `[N, M, K, K]`.
    ///
    /// # Errors
    /// [`ConvertError::Layer`] if it is to be one that was not written out for them.
    ///
    /// # Panics
    /// If the kernel has no centre or the weights are not so many.
    pub fn layer(
        &self,
        name: &str,
        pattern: HetPattern,
        geometry: &Conv2dGeometry,
        weight: &[f32],
    ) -> Result<HetLayer, ConvertError> {
        let projected = |pattern| HetLayer::projected(pattern, geometry, weight);
        match self {
            Init::Project => Ok(projected(pattern)),
            Init::Random { seed } => Ok(projected(pattern).with_fresh_weights(name, geometry, *seed)),
            Init::Layers(layers) => {
                let layer = layers.get(name).filter(|layer| layer.replaces == weight);
                layer.cloned().ok_or_else(|| ConvertError::Layer(name.to_owned()))
            }
        }
    }
}

/// A HetConv layer in place of a standard convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct HetLayer {
    /// Its classes.
    pub pattern: HetPattern,
    /// `[N, M]`, the centre taps.
    pub center: Vec<f32>,
    /// `[N, S, K²−1]`, the off-centre taps.
    pub ring: Vec<f32>,
    /// `[N]`; if there is none, the convolution's own stays.
    pub bias: Option<Vec<f32>>,
    /// `[N, M, K, K]`, the weights of the convolution that it was made for.
    pub replaces: Vec<f32>,
}

impl HetLayer {
    /// The taps of a standard convolution `[N, M, K, K]` that HetConv has, too.
    ///
    /// # Panics
    /// If the kernel has no centre or the weights are not so many.
    pub fn projected(pattern: HetPattern, geometry: &Conv2dGeometry, weight: &[f32]) -> Self {
        let (taps, middle) = (geometry.taps(), geometry.center_tap().expect("a kernel with a centre"));
        let (channels, filters) = (pattern.in_channels(), pattern.out_channels());
        assert_eq!(weight.len(), filters * channels * taps, "number of weights");
        let center = weight.iter().skip(middle).step_by(taps).copied().collect();
        let (slots, width, around) = (pattern.ring_slots(), pattern.max_spatial(), taps - 1);
        let mut ring = vec![0.0; filters * width * around];
        for filter in 0..filters {
            for channel in pattern.spatial_channels(filter) {
                let kernel = &weight[(filter * channels + channel) * taps..][..taps];
                let slot = &mut ring[(filter * width + slots[channel]) * around..][..around];
                slot[..middle].copy_from_slice(&kernel[..middle]);
                slot[middle..].copy_from_slice(&kernel[middle + 1..]);
            }
        }
        Self { pattern, center, ring, bias: None, replaces: weight.to_vec() }
    }

    /// The same with the taps that [`Weights::init`] gives a layer of this name.
    fn with_fresh_weights(self, name: &str, geometry: &Conv2dGeometry, seed: u64) -> Self {
        let op = Op::Conv2d {
            in_channels: self.pattern.in_channels(),
            out_channels: self.pattern.out_channels(),
            geometry: geometry.clone(),
            kind: ConvKind::Het(self.pattern.clone()),
            bias: false,
        };
        let layer = Node { name: name.to_owned(), op, inputs: Vec::new() };
        let fresh: Vec<_> = node_specs(&layer).iter().map(|spec| draw(spec, seed)).collect();
        let [center, ring] = fresh.try_into().expect("a layer without bias has two tensors");
        Self { center, ring, ..self }
    }

    /// Takes the place of a standard convolution and of its weights. Anything but a convolution stays as it is.
    pub fn install(&self, node: &mut Node, weights: &mut Weights) {
        let Op::Conv2d { geometry, kind, bias, .. } = &mut node.op else { return };
        let (channels, filters) = (self.pattern.in_channels(), self.pattern.out_channels());
        let mut set = |suffix: &str, shape: Vec<usize>, data: &[f32]| {
            weights.insert(format!("{}.{suffix}", node.name), WeightTensor { shape, data: data.to_vec() });
        };
        set("center", vec![filters, channels], &self.center);
        set("ring", vec![filters, self.pattern.max_spatial(), geometry.taps() - 1], &self.ring);
        if let Some(numbers) = &self.bias {
            set("bias", vec![filters], numbers);
            *bias = true;
        }
        weights.remove(&format!("{}.weight", node.name));
        *kind = ConvKind::Het(self.pattern.clone());
    }
}

/// What a conversion did, convolution by convolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConvertReport {
    /// All convolutions of the network, in its order.
    pub layers: Vec<ConvertedLayer>,
    /// Cost of all convolutions before.
    pub before: ConvCost,
    /// Cost of all convolutions after.
    pub after: ConvCost,
}

impl ConvertReport {
    /// The sums of the layers' costs.
    pub fn new(layers: Vec<ConvertedLayer>) -> Self {
        // What stays as it is may lie about its size.
        let total = |cost: fn(&ConvertedLayer) -> ConvCost| {
            let none = ConvCost { params: 0, macs: Some(0) };
            layers.iter().map(cost).fold(none, |total, layer| ConvCost {
                params: total.params.saturating_add(layer.params),
                macs: total.macs.zip(layer.macs).map(|(total, layer)| total.saturating_add(layer)),
            })
        };
        let (before, after) = (total(|layer| layer.before), total(|layer| layer.after));
        Self { layers, before, after }
    }

    /// The layers that are HetConv now.
    pub fn converted(&self) -> impl Iterator<Item = &ConvertedLayer> {
        self.layers.iter().filter(|layer| layer.parts.is_some())
    }

    /// Name and reason of every convolution that stays.
    pub fn kept(&self) -> Vec<(String, String)> {
        self.layers.iter().filter_map(|layer| Some((layer.name.clone(), layer.kept.as_ref()?.to_string()))).collect()
    }
}

/// What convolutions cost, for one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConvCost {
    /// Weights and biases.
    pub params: u64,
    /// Multiply-accumulates, what the paper calls FLOPs; `None` if the image sizes are not known.
    pub macs: Option<u64>,
}

/// One convolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConvertedLayer {
    /// The node's name.
    pub name: String,
    /// Kernel height and width, in taps.
    pub kernel: Vec<usize>,
    /// M.
    pub in_channels: usize,
    /// N.
    pub out_channels: usize,
    /// The paper's P, if it is HetConv now.
    pub parts: Option<usize>,
    /// Why it is not.
    pub kept: Option<KeptReason>,
    /// Its cost before.
    pub before: ConvCost,
    /// Its cost after.
    pub after: ConvCost,
}

/// Why a convolution was not converted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeptReason {
    /// It is the network's first.
    First,
    /// Its name is excluded.
    Excluded,
    /// It has groups.
    Grouped(usize),
    /// It is HetConv already.
    Het,
    /// A 1×1 kernel has nothing but its centre.
    Pointwise,
    /// Its kernel has no centre or is not square.
    Kernel,
    /// No P from 2 to the one asked for fits its channels and filters.
    Parts {
        /// The P asked for.
        asked: usize,
    },
    /// Its weight is computed by other nodes.
    NoWeight,
    /// Its weight is not of 32-bit floats.
    ElementType,
    /// Its padding depends on the image size.
    AutoPad,
    /// It is not a 2-D convolution, or its attributes make no sense.
    Malformed,
    /// It stands in a function or a subgraph of the file.
    OutOfReach,
}

impl KeptReason {
    /// Why a convolution with this kernel stays.
    pub fn of_kernel(kernel: [usize; 2]) -> Option<Self> {
        match kernel {
            [1, 1] => Some(Self::Pointwise),
            [height, width] if height != width || height % 2 == 0 => Some(Self::Kernel),
            _ => None,
        }
    }
}

impl fmt::Display for KeptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => write!(f, "the first convolution"),
            Self::Excluded => write!(f, "excluded by name"),
            Self::Grouped(groups) => write!(f, "{groups} groups"),
            Self::Het => write!(f, "HetConv already"),
            Self::Pointwise => write!(f, "a 1×1 kernel"),
            Self::Kernel => write!(f, "a kernel that is not square or has no centre"),
            Self::Parts { asked } => write!(f, "no P up to {asked} fits its channels and filters"),
            Self::NoWeight => write!(f, "a weight that other nodes compute"),
            Self::ElementType => write!(f, "a weight that is not of 32-bit floats"),
            Self::AutoPad => write!(f, "padding that depends on the image size"),
            Self::Malformed => write!(f, "no 2-D convolution"),
            Self::OutOfReach => write!(f, "in a function or a subgraph of the file"),
        }
    }
}

/// Why a model was not converted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The network is not valid.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The weights are not the network's.
    #[error("the weights do not fit the graph: {0}")]
    Weights(#[from] WeightError),
    /// Weights that no network computes with.
    #[error(transparent)]
    Values(#[from] ValueError),
    /// P = 0.
    #[error("HetConv needs at least 1 part, got P = 0")]
    NoParts,
    /// A network without a convolution that could be converted.
    #[error("nothing was converted:{}", kept_lines(kept))]
    NothingConverted {
        /// The name of every convolution, and why it stays as it is.
        kept: Vec<(String, String)>,
    },
    /// Written-out layers that are not this network's.
    #[error("no weights were given for layer `{0}`, or those of another layer")]
    Layer(String),
}

/// Reasons as the lines of an error, the convolutions of one reason together.
pub fn kept_lines(kept: &[(String, String)]) -> String {
    if kept.is_empty() {
        return " the network has no convolutions".to_owned();
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    kept.iter().for_each(|(name, reason)| by_reason.entry(reason).or_default().push(name));
    let quoted = |names: Vec<&str>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let line = |(reason, names): (&str, Vec<&str>)| format!("\n  {}: {reason}", quoted(names));
    by_reason.into_iter().map(line).collect()
}

/// Replaces the standard convolutions of a network by HetConv, and its weights.
///
/// Convolutions without groups and with an odd square kernel of K > 1 are converted; everything else stays as it is.
///
/// ```
/// use hetconv_graph::{ConvertOptions, ModelFile, Normalisation, Weights, convert, zoo};
/// let graph = zoo::build(&"vgg16-cifar".parse()?, 10)?;
/// let weights = Weights::init(&graph, 1)?;
/// let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
/// let (converted, report) = convert(&model, &ConvertOptions::new(4))?;
/// assert_eq!(report.converted().count(), 12);
/// assert_eq!(converted.graph.cost()?.macs, 105_845_760);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A model that does not fit together, weights that are not finite, P = 0, or one in which nothing could be converted, with
/// the reasons.
pub fn convert(model: &ModelFile, options: &ConvertOptions) -> Result<(ModelFile, ConvertReport), ConvertError> {
    if !options.has_parts() {
        return Err(ConvertError::NoParts);
    }
    model.weights.check(&model.graph)?;
    model.weights.check_values(&model.graph)?;
    let costs = |model: &ModelFile| -> Result<BTreeMap<String, ConvCost>, GraphError> {
        let layers = model.graph.cost()?.layers.into_iter();
        Ok(layers.map(|layer| (layer.name, ConvCost { params: layer.params, macs: Some(layer.macs) })).collect())
    };
    let before = costs(model)?;
    let mut converted = model.clone();
    let mut layers = Vec::new();
    for node in &mut converted.graph.nodes {
        let Op::Conv2d { in_channels, out_channels, geometry, kind, .. } = &node.op else { continue };
        let (geometry, channels) = (geometry.clone(), [*in_channels, *out_channels]);
        let decided = decide(options, &node.name, layers.is_empty(), channels, &geometry, kind);
        let (parts, kept) = match decided {
            Ok(pattern) => {
                let weight = model.weights.get(&format!("{}.weight", node.name)).map_or(&[][..], |w| &w.data);
                let layer = options.init.layer(&node.name, pattern, &geometry, weight)?;
                layer.install(node, &mut converted.weights);
                (Some(layer.pattern.classes()), None)
            }
            Err(reason) => (None, Some(reason)),
        };
        layers.push(ConvertedLayer {
            name: node.name.clone(),
            kernel: geometry.kernel.to_vec(),
            in_channels: channels[0],
            out_channels: channels[1],
            parts,
            kept,
            before: before.get(&node.name).copied().unwrap_or_default(),
            after: ConvCost::default(),
        });
    }
    if layers.iter().all(|layer| layer.parts.is_none()) {
        return Err(ConvertError::NothingConverted { kept: ConvertReport::new(layers).kept() });
    }
    let mut parts: Vec<usize> = layers.iter().filter_map(|layer| layer.parts).collect();
    parts.sort_unstable();
    parts.dedup();
    let parts = if let [parts] = parts[..] { parts.to_string() } else { String::new() };
    converted.graph.name = format!("{}-het{parts}", model.graph.name);
    let after = costs(&converted)?;
    layers.iter_mut().for_each(|layer| layer.after = after.get(&layer.name).copied().unwrap_or_default());
    converted.weights.check(&converted.graph)?;
    Ok((converted, ConvertReport::new(layers)))
}

/// The classes of a convolution that is converted, or why it is not.
fn decide(
    options: &ConvertOptions,
    name: &str,
    first: bool,
    [in_channels, out_channels]: [usize; 2],
    geometry: &Conv2dGeometry,
    kind: &ConvKind,
) -> Result<HetPattern, KeptReason> {
    let of_kind = match kind {
        ConvKind::Standard | ConvKind::Grouped(1) => None,
        ConvKind::Grouped(groups) => Some(KeptReason::Grouped(*groups)),
        ConvKind::Het(_) => Some(KeptReason::Het),
    };
    match options.keeps(name, first).or(of_kind).or(KeptReason::of_kernel(geometry.kernel)) {
        Some(reason) => Err(reason),
        None => options.pattern(name, in_channels, out_channels),
    }
}

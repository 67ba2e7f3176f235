//! HetConv in place of the convolutions of any ONNX file.
//!
//! The file is edited as a list of fields: nodes that are not converted, and everything else, keep their very bytes. So it
//! works on networks that this project cannot execute, too.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use hetconv_core::{ChannelOrder, Conv2dGeometry, HetPattern};
use hetconv_graph::{ArrangementKind, ConvKind, GraphBuilder, NameFilter, Op, Shape, Weights};
use prost::Message;
use prost::bytes::Bytes;
use serde::Serialize;

use crate::OnnxError;
use crate::decompose::Layer;
use crate::import::{ImportOptions, import_bytes};
use crate::layer::{dense_kernels, grouped_parts, stored_pattern};
use crate::prepare::{is_standard, node_name};
use crate::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use crate::writer::Writer;

mod edit;
mod select;

/// What to convert, and into what.
#[derive(Clone)]
pub struct ConvertOptions {
    /// The paper's P. It is reduced where it is more than a layer's channels or, if blocked, does not divide M and N.
    pub parts: usize,
    /// How classes are assigned. Blocked classes need no other nodes than the two convolutions and their sum; shifted
    /// ones a gather before and behind the grouped convolution.
    pub arrangement: ArrangementKind,
    /// Where the weights come from.
    pub init: Init,
    /// Convolutions that stay as they are, by the node's name.
    pub exclude: Option<NameFilter>,
    /// Convolutions with a P of their own; the first filter that matches counts.
    pub parts_by_name: Vec<(NameFilter, usize)>,
    /// Whether the file's first convolution stays as it is: the paper's rule.
    pub keep_first: bool,
}

impl ConvertOptions {
    /// P parts in blocked classes, the taps kept that fit, nothing excluded, the first convolution as it is.
    pub fn new(parts: usize) -> Self {
        Self {
            parts,
            arrangement: ArrangementKind::Blocked,
            init: Init::Project,
            exclude: None,
            parts_by_name: Vec::new(),
            keep_first: true,
        }
    }
}

impl fmt::Debug for ConvertOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<usize> = self.parts_by_name.iter().map(|(_, parts)| *parts).collect();
        f.debug_struct("ConvertOptions")
            .field("parts", &self.parts)
            .field("arrangement", &self.arrangement)
            .field("init", &self.init)
            .field("exclude", &self.exclude.is_some())
            .field("parts_by_name", &parts)
            .field("keep_first", &self.keep_first)
            .finish()
    }
}

/// Where a converted layer's weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// The taps of the convolution that HetConv has, too; the others are dropped.
    Project,
    /// Fresh weights, as of [`Weights::init`].
    Random {
        /// The seed.
        seed: u64,
    },
}

/// A converted file.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Its bytes. External data stays where it is: next to the file that was converted.
    pub bytes: Vec<u8>,
    /// What was done.
    pub report: ConvertReport,
}

/// What a conversion did, convolution by convolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConvertReport {
    /// All convolutions of the file, in its order.
    pub layers: Vec<ConvertedLayer>,
    /// Cost of all convolutions before.
    pub before: ConvCost,
    /// Cost of all convolutions after.
    pub after: ConvCost,
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
pub enum KeptReason {
    /// It is the file's first.
    First,
    /// Its name is excluded.
    Excluded,
    /// It has groups.
    Grouped(usize),
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
}

impl fmt::Display for KeptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => write!(f, "the first convolution"),
            Self::Excluded => write!(f, "excluded by name"),
            Self::Grouped(groups) => write!(f, "{groups} groups"),
            Self::Pointwise => write!(f, "a 1×1 kernel"),
            Self::Kernel => write!(f, "a kernel that is not square or has no centre"),
            Self::Parts { asked } => write!(f, "no P up to {asked} fits its channels and filters"),
            Self::NoWeight => write!(f, "a weight that other nodes compute"),
            Self::ElementType => write!(f, "a weight that is not of 32-bit floats"),
            Self::AutoPad => write!(f, "padding that depends on the image size"),
            Self::Malformed => write!(f, "no 2-D convolution"),
        }
    }
}

/// A convolution that is to become HetConv.
struct Candidate {
    geometry: Conv2dGeometry,
    pattern: HetPattern,
    /// The convolution's kernels, `[N, M, K, K]`.
    kernels: Vec<f32>,
}

/// Replaces the convolutions of an ONNX file by HetConv and leaves everything else as it is, byte for byte.
///
/// Convolutions without groups and with an odd square kernel of K > 1 are converted: each becomes a grouped convolution
/// (centre taps 0), a 1×1 convolution that keeps the bias, and their sum, which has the convolution's name. `folder` is
/// where external data may be.
///
/// # Errors
/// A file that is none, P = 0, or one in which nothing could be converted, with the reasons.
pub fn convert(bytes: &[u8], folder: Option<&Path>, options: &ConvertOptions) -> Result<Converted, OnnxError> {
    if options.parts == 0 || options.parts_by_name.iter().any(|(_, parts)| *parts == 0) {
        return Err(OnnxError::NoParts);
    }
    let bytes = Bytes::copy_from_slice(bytes);
    let model = ModelProto::decode(bytes.clone())?;
    let graph = model.graph.as_ref().ok_or(OnnxError::NoGraph)?;
    let weights = select::weights(graph);
    let pixels = output_pixels(graph, &bytes, folder);
    let mut writer = Writer::default();
    all_names(graph).into_iter().for_each(|name| drop(writer.claim(name)));
    let mut layers = Vec::new();
    let mut replaced: HashMap<usize, Vec<NodeProto>> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        if node.op_type() != "Conv" || !is_standard(node.domain()) {
            continue;
        }
        let tensor = node.input.get(1).and_then(|name| weights.get(name.as_str())).copied();
        let choice = select::candidate(node, tensor, folder, layers.is_empty(), options);
        let result = choice.and_then(|candidate| {
            let nodes = replacement(node, &candidate, options.init, &mut writer);
            Ok((candidate, nodes.map_err(|error| Stop::Failed(Box::new(error)))?))
        });
        let pixels = pixels.get(node.output.first().map_or("", String::as_str)).copied();
        let (candidate, kept) = match result {
            Ok((candidate, nodes)) => {
                replaced.insert(index, nodes);
                (Some(candidate), None)
            }
            Err(Stop::Kept(reason)) => (None, Some(reason)),
            Err(Stop::Failed(error)) => return Err(*error),
        };
        layers.push(row(node, tensor, candidate.as_ref(), kept, pixels));
    }
    if replaced.is_empty() {
        let kept = |layer: ConvertedLayer| Some((layer.name, layer.kept?.to_string()));
        return Err(OnnxError::NothingConverted { kept: layers.into_iter().filter_map(kept).collect() });
    }
    let bytes = edit::edit(&bytes, graph, replaced, writer.initializers, model.ir_version())?;
    // What stays as it is may lie about its size.
    let total = |cost: fn(&ConvertedLayer) -> ConvCost| {
        let none = ConvCost { params: 0, macs: Some(0) };
        layers.iter().map(cost).fold(none, |total, layer| ConvCost {
            params: total.params.saturating_add(layer.params),
            macs: total.macs.zip(layer.macs).map(|(total, layer)| total.saturating_add(layer)),
        })
    };
    let (before, after) = (total(|layer| layer.before), total(|layer| layer.after));
    Ok(Converted { bytes, report: ConvertReport { layers, before, after } })
}

/// Why a convolution is not converted: it stays as it is, or the file is at fault.
enum Stop {
    Kept(KeptReason),
    Failed(Box<OnnxError>),
}

/// The nodes in place of a convolution; their weights go to the writer.
fn replacement(
    node: &NodeProto,
    candidate: &Candidate,
    init: Init,
    writer: &mut Writer,
) -> Result<Vec<NodeProto>, OnnxError> {
    let name = node_name(node);
    let Candidate { geometry, pattern, kernels } = candidate;
    let kernels = match init {
        Init::Project => projected(pattern, geometry, kernels),
        Init::Random { seed } => random(name, pattern, geometry, seed)?,
    };
    let filters = ChannelOrder::by_class(pattern.filter_classes());
    let natural = ChannelOrder::natural(pattern.in_channels());
    let bias = node.input.get(2).map(String::as_str).filter(|bias| !bias.is_empty());
    let (first, input) = (writer.nodes.len(), node.input[0].as_str());
    let layer = Layer { name, input, geometry, kernels: &kernels, bias, filters: &filters };
    match grouped_parts(&stored_pattern(pattern, [&natural, &filters])) {
        Some(parts) => layer.write_sum(writer, &parts),
        None => layer.write_dense(writer),
    }
    let mut nodes = writer.nodes.split_off(first);
    if let Some(last) = nodes.last_mut() {
        (last.name, last.output) = (node.name.clone(), node.output.clone());
        (last.doc_string, last.metadata_props) = (node.doc_string.clone(), node.metadata_props.clone());
    }
    Ok(nodes)
}

/// Dense kernels without the taps that HetConv does not have.
fn projected(pattern: &HetPattern, geometry: &Conv2dGeometry, dense: &[f32]) -> Vec<f32> {
    let mut dense = dense.to_vec();
    let (taps, middle, m) = (geometry.taps(), geometry.center_tap(), pattern.in_channels());
    for (pair, kernel) in dense.chunks_mut(taps).enumerate() {
        if !pattern.is_spatial(pair / m, pair % m) {
            kernel.iter_mut().enumerate().filter(|(t, _)| Some(*t) != middle).for_each(|(_, tap)| *tap = 0.0);
        }
    }
    dense
}

/// Dense kernels of fresh HetConv weights.
fn random(name: &str, pattern: &HetPattern, geometry: &Conv2dGeometry, seed: u64) -> Result<Vec<f32>, OnnxError> {
    // A network of this layer alone; its image is as large as the window.
    let mut alone = GraphBuilder::new(name);
    let extent = |axis: usize| geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1;
    let x = alone.input("input", [pattern.in_channels(), extent(0), extent(1)]);
    let name = if name == "input" { "layer" } else { name };
    let kind = ConvKind::Het(pattern.clone());
    let x = alone.conv(name, x, pattern.out_channels(), geometry.clone(), kind, false);
    let weights = Weights::init(&alone.finish([x])?, seed)?;
    let tensor = |suffix: &str| weights.get(&format!("{name}.{suffix}")).map_or(&[][..], |tensor| &tensor.data);
    let orders = [pattern.in_channels(), pattern.out_channels()].map(ChannelOrder::natural);
    Ok(dense_kernels(pattern, geometry, [tensor("center"), tensor("ring")], [&orders[0], &orders[1]]))
}

/// The report's row of one convolution.
fn row(
    node: &NodeProto,
    weight: Option<&TensorProto>,
    candidate: Option<&Candidate>,
    kept: Option<KeptReason>,
    pixels: Option<u64>,
) -> ConvertedLayer {
    let dims: Vec<usize> =
        weight.map_or(&[][..], |tensor| &tensor.dims).iter().map(|&dim| dim.max(0) as usize).collect();
    let dim = |axis: usize| dims.get(axis).copied().unwrap_or(0);
    let groups = node.attribute.iter().find(|attribute| attribute.name() == "group").map_or(1, |group| group.i());
    let kernel = dims.get(2..).unwrap_or_default().to_vec();
    let weights = dims.iter().fold(1_u64, |total, &dim| total.saturating_mul(dim as u64));
    let bias = if node.input.get(2).is_some_and(|bias| !bias.is_empty()) { dim(0) as u64 } else { 0 };
    let cost = |weights: u64| ConvCost {
        params: weights.saturating_add(bias),
        macs: pixels.map(|pixels| weights.saturating_mul(pixels)),
    };
    let after = candidate.map_or(weights, |layer| layer.pattern.weights(layer.geometry.taps()) as u64);
    ConvertedLayer {
        name: node_name(node).to_owned(),
        kernel,
        in_channels: dim(1).saturating_mul(usize::try_from(groups).unwrap_or(0)),
        out_channels: dim(0),
        parts: candidate.map(|layer| layer.pattern.classes()),
        kept,
        before: cost(weights),
        after: cost(after),
    }
}

/// Output pixels of convolutions by their values' names, as far as they are known: from what the file says about its
/// values, or from the import if the network can be read.
fn output_pixels(graph: &GraphProto, bytes: &Bytes, folder: Option<&Path>) -> HashMap<String, u64> {
    use crate::proto::tensor_shape_proto::dimension::Value::DimValue;
    use crate::proto::type_proto::Value::TensorType;
    let mut pixels = HashMap::new();
    for value in graph.value_info.iter().chain(&graph.output) {
        let Some(TensorType(tensor)) = value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else { continue };
        let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
        if let [_, _, height, width] = dims
            && let (Some(DimValue(height)), Some(DimValue(width))) = (&height.value, &width.value)
            && let (Ok(height), Ok(width)) = (u64::try_from(*height), u64::try_from(*width))
        {
            pixels.insert(value.name().to_owned(), height.saturating_mul(width));
        }
    }
    let Ok(imported) = import_bytes(bytes.clone(), folder, &ImportOptions::default()) else { return pixels };
    let Ok(shapes) = imported.model.graph.shapes() else { return pixels };
    let known = imported.model.graph.nodes.iter().zip(shapes).filter_map(|(node, shape)| match (&node.op, shape) {
        (Op::Conv2d { .. }, Shape::Image { height, width, .. }) => Some((node.name.as_str(), (height * width) as u64)),
        _ => None,
    });
    let by_node: HashMap<&str, u64> = known.collect();
    for node in &graph.node {
        if let (Some(output), Some(&size)) = (node.output.first(), by_node.get(node_name(node))) {
            pixels.insert(output.clone(), size);
        }
    }
    pixels
}

/// Every name that is taken, of nodes and of values, subgraphs included.
fn all_names(graph: &GraphProto) -> HashSet<&str> {
    let mut names = HashSet::new();
    let mut graphs = vec![graph];
    while let Some(graph) = graphs.pop() {
        names.extend(graph.initializer.iter().map(|tensor| tensor.name()));
        names.extend(graph.input.iter().chain(&graph.output).map(|value| value.name()));
        for node in &graph.node {
            names.insert(node.name());
            names.extend(node.input.iter().chain(&node.output).map(String::as_str));
            graphs.extend(node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)));
        }
    }
    names
}

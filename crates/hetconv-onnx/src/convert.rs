//! HetConv in place of the convolutions of any ONNX file.
//!
//! The file is edited as a list of fields: nodes that are not converted, and everything else, keep their very bytes. So it
//! works on networks that this project cannot execute, too.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use hetconv_core::{ChannelOrder, Conv2dGeometry, HetPattern};
use hetconv_graph::{
    ConvCost, ConvertError, ConvertOptions, ConvertReport, ConvertedLayer, Init, KeptReason, Op, Shape,
};
use prost::Message;
use prost::bytes::Bytes;

use crate::OnnxError;
use crate::decompose::Layer;
use crate::export::SIZE_LIMIT;
use crate::import::{Attributes, ImportOptions, import_bytes};
use crate::layer::{dense_kernels, grouped_parts, stored_pattern};
use crate::prepare::{is_standard, node_name, stated_opset, tell_apart};
use crate::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use crate::tensor::DataFiles;
use crate::writer::Writer;

mod edit;
mod select;

/// A converted file.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Its bytes. External data stays where it is, next to the file that was converted; see
    /// [`embed_external_data`](crate::embed_external_data).
    pub bytes: Vec<u8>,
    /// What was done.
    pub report: ConvertReport,
}

/// A convolution that is to become HetConv.
struct Candidate {
    geometry: Conv2dGeometry,
    pattern: HetPattern,
    /// `[N, M, K, K]`: the convolution's kernels, then those of the HetConv layer.
    kernels: Vec<f32>,
    /// `[N]`, if the bias changes as well.
    bias: Option<Vec<f32>>,
}

/// Replaces the convolutions of an ONNX file by HetConv and leaves everything else as it is, byte for byte.
///
/// Convolutions without groups and with an odd square kernel of K > 1 are converted: each becomes a grouped convolution
/// (centre taps 0), a 1×1 convolution that keeps the bias, and their sum, which has the convolution's name (with a number, if
/// another node before it has the same). `folder` is where external data may be.
///
/// # Errors
/// A file that is none, weights to be converted that are not finite, P = 0, or a file in which nothing could be converted, with the reasons.
pub fn convert(bytes: &[u8], folder: Option<&Path>, options: &ConvertOptions) -> Result<Converted, OnnxError> {
    if !options.has_parts() {
        return Err(ConvertError::NoParts.into());
    }
    let bytes = Bytes::copy_from_slice(bytes);
    let mut model = ModelProto::decode(bytes.clone())?;
    tell_apart(&mut model.graph.as_mut().ok_or(OnnxError::NoGraph)?.node);
    let graph = model.graph.as_ref().ok_or(OnnxError::NoGraph)?;
    let weights = select::weights(graph);
    let pixels = output_pixels(graph, &bytes, folder, options.image_size);
    let files = DataFiles::by_name(folder);
    let mut writer = Writer::for_opset(stated_opset(&model));
    all_names(graph).into_iter().for_each(|name| drop(writer.claim(name)));
    let mut layers = Vec::new();
    let mut replaced: HashMap<usize, Vec<NodeProto>> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        if node.op_type() != "Conv" || !is_standard(node.domain()) {
            continue;
        }
        let tensor = node.input.get(1).and_then(|name| weights.get(name.as_str())).copied();
        let choice = select::candidate(node, tensor, &files, layers.is_empty(), options);
        let result = choice.and_then(|candidate| {
            let candidate =
                candidate.with(&options.init, node_name(node)).map_err(|error| Stop::Failed(Box::new(error)))?;
            let nodes = replacement(node, &candidate, &mut writer);
            match writer.bytes() {
                bytes if bytes > SIZE_LIMIT => {
                    Err(Stop::Failed(Box::new(OnnxError::TooLarge { bytes, limit: SIZE_LIMIT })))
                }
                _ => Ok((candidate, nodes)),
            }
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
    layers
        .extend(out_of_reach(&model).into_iter().map(|node| row(node, None, None, Some(KeptReason::OutOfReach), None)));
    let report = ConvertReport::new(layers);
    if replaced.is_empty() {
        return Err(ConvertError::NothingConverted { kept: report.kept() }.into());
    }
    let bytes = edit::edit(&bytes, graph, replaced, writer.initializers, model.ir_version())?;
    Ok(Converted { bytes, report })
}

/// Why a convolution is not converted: it stays as it is, or the file is at fault.
enum Stop {
    Kept(KeptReason),
    Failed(Box<OnnxError>),
}

impl Candidate {
    /// With the weights that it is to have.
    fn with(self, init: &Init, name: &str) -> Result<Self, OnnxError> {
        let Self { geometry, pattern, kernels, .. } = self;
        let layer = init.layer(name, pattern, &geometry, &kernels)?;
        let orders = [layer.pattern.in_channels(), layer.pattern.out_channels()].map(ChannelOrder::natural);
        let tensors = [layer.center.as_slice(), &layer.ring];
        let kernels = dense_kernels(&layer.pattern, &geometry, tensors, [&orders[0], &orders[1]]);
        Ok(Self { geometry, pattern: layer.pattern, kernels, bias: layer.bias })
    }
}

/// The nodes in place of a convolution; their weights go to the writer.
fn replacement(node: &NodeProto, candidate: &Candidate, writer: &mut Writer) -> Vec<NodeProto> {
    let name = node_name(node);
    let Candidate { geometry, pattern, kernels, bias } = candidate;
    let filters = ChannelOrder::by_class(pattern.filter_classes());
    let natural = ChannelOrder::natural(pattern.in_channels());
    let bias = match bias {
        Some(bias) => Some(writer.floats(&format!("{name}.bias"), &[bias.len()], bias)),
        None => node.input.get(2).filter(|bias| !bias.is_empty()).cloned(),
    };
    let bias = bias.as_deref();
    let (first, input) = (writer.nodes.len(), node.input[0].as_str());
    let layer = Layer { name, input, geometry, kernels, bias, filters: &filters };
    match grouped_parts(&stored_pattern(pattern, [&natural, &filters])) {
        Some(parts) => layer.write_sum(writer, &parts),
        None => layer.write_dense(writer),
    }
    let mut nodes = writer.nodes.split_off(first);
    if let Some(last) = nodes.last_mut() {
        (last.name, last.output) = (node.name.clone(), node.output.clone());
        (last.doc_string, last.metadata_props) = (node.doc_string.clone(), node.metadata_props.clone());
    }
    nodes
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
    let kernel = dims.get(2..).unwrap_or_default().to_vec();
    // Nothing is known of a weight that other nodes compute.
    let weights =
        if dims.is_empty() { 0 } else { dims.iter().fold(1_u64, |total, &dim| total.saturating_mul(dim as u64)) };
    let bias = if node.input.get(2).is_some_and(|bias| !bias.is_empty()) { dim(0) as u64 } else { 0 };
    let cost = |weights: u64, bias: u64| ConvCost {
        params: weights.saturating_add(bias),
        macs: pixels.map(|pixels| weights.saturating_mul(pixels)),
    };
    let bias_after = candidate.and_then(|layer| layer.bias.as_ref()).map_or(bias, |bias| bias.len() as u64);
    let after = candidate.map_or(weights, |layer| layer.pattern.weights(layer.geometry.taps()) as u64);
    ConvertedLayer {
        name: node_name(node).to_owned(),
        kernel,
        in_channels: dim(1).saturating_mul(Attributes(node).groups()),
        out_channels: dim(0),
        parts: candidate.map(|layer| layer.pattern.classes()),
        kept,
        before: cost(weights, bias),
        after: cost(after, bias_after),
    }
}

/// Output pixels of convolutions by their values' names, as far as they are known: from what the file says about its
/// values, or from the import if the network can be read.
fn output_pixels(
    graph: &GraphProto,
    bytes: &Bytes,
    folder: Option<&Path>,
    image_size: Option<[usize; 2]>,
) -> HashMap<String, u64> {
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
    let options = ImportOptions { image_size, ..ImportOptions::default() };
    let Ok(imported) = import_bytes(bytes.clone(), folder, &options) else { return pixels };
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

/// The convolutions that are not in the graph itself, but in functions or subgraphs.
fn out_of_reach(model: &ModelProto) -> Vec<&NodeProto> {
    let mut found = Vec::new();
    let main = model.graph.iter().flat_map(|graph| &graph.node).map(|node| (node, true));
    let functions = model.functions.iter().flat_map(|function| &function.node).map(|node| (node, false));
    let mut nodes: Vec<(&NodeProto, bool)> = main.chain(functions).collect();
    while let Some((node, is_main)) = nodes.pop() {
        if !is_main && node.op_type() == "Conv" && is_standard(node.domain()) {
            found.push(node);
        }
        let graphs = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
        nodes.extend(graphs.flat_map(|graph| &graph.node).map(|node| (node, false)));
    }
    found.reverse();
    found
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

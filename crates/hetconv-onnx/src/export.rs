//! A model of this project as an ONNX file.
//!
//! Every value is stored in the channel order that the graph's [`ChannelPlan`] gives it, so that the classes of HetConv
//! layers are contiguous and become the groups of grouped convolutions; the permutations are absorbed by the weights.

use std::collections::BTreeMap;
use std::mem;

use hetconv_core::{Conv2dGeometry, HetPattern};
use hetconv_graph::{Activation, ChannelPlan, ConvKind, Graph, ModelFile, Node, Op, Shape, ValueId, Weights};
use prost::Message;

use crate::OnnxError;
use crate::decompose::{conv_attributes, window_attributes};
use crate::fold::fold_batch_norms;
use crate::metadata;
use crate::proto::{FunctionProto, GraphProto, ModelProto, OperatorSetIdProto};
use crate::writer::{Slice, Writer, batch_of, float, int};

mod het;

/// How an ONNX file says HetConv.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Standard operators: a grouped K×K convolution, whose centre taps are 0, plus a 1×1 convolution over all channels.
    ///
    /// Classes of different sizes take one grouped convolution for every run of equal ones; a layer where that is more
    /// than eight, or none because no filter has a spatial channel, is written as under [`Style::Dense`].
    #[default]
    Standard,
    /// A K×K convolution over all channels with zero taps: what every reader computes, at the cost of the standard layer.
    Dense,
    /// One node `HetConv` of the domain `hetconv`, a function defined in the file by the two convolutions of
    /// [`Style::Standard`]. Layers that take more than those two are written as under that style.
    Function,
}

/// How to write an ONNX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// How HetConv layers are written.
    pub style: Style,
    /// Version of the operator set, 11 to 22; functions need 15. Without one, 17 or the first after it that has what the
    /// network needs.
    pub opset: Option<i64>,
    /// Whether batch-norms become part of the convolution or linear layer before them. Results differ by rounding.
    pub fold_batch_norm: bool,
    /// Whether the file says how pixels are normalised: not where that is but a guess.
    pub states_normalisation: bool,
}

impl Default for ExportOptions {
    /// Standard operators, batch-norms folded, normalisation stated.
    fn default() -> Self {
        Self { style: Style::Standard, opset: None, fold_batch_norm: true, states_normalisation: true }
    }
}

/// A network as an ONNX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// The names of the HetConv layers that are written as under [`Style::Dense`] though another style was asked for: they
    /// cost what standard layers do.
    pub dense_layers: Vec<String>,
}

/// The operator sets that can be written, and the version of the format that came with each.
const IR_VERSIONS: [(i64, i64); 12] =
    [(11, 6), (12, 7), (13, 7), (14, 7), (15, 8), (16, 8), (17, 8), (18, 8), (19, 9), (20, 9), (21, 10), (22, 10)];

/// The operator set that is written unless another is asked for or needed.
const USUAL: i64 = 17;

/// The first operator set of a format that has functions.
const FUNCTIONS: i64 = 15;

/// What a protobuf message may take.
pub(crate) const SIZE_LIMIT: usize = i32::MAX as usize;

/// An ONNX file that computes what the model computes.
///
/// The batch size is symbolic (`N`), values are named after the graph's nodes, inputs and outputs are in natural channel
/// order. HetConv layers, class names and normalisation stand in the file's metadata, where the import finds them.
///
/// # Errors
/// A model that does not fit together, weights that are not finite, an operator set that cannot express it, or more than 2
/// GiB of weights.
pub fn export(model: &ModelFile, options: &ExportOptions) -> Result<Exported, OnnxError> {
    let (proto, dense_layers) = export_model(model, options)?;
    let bytes = proto.encoded_len();
    if bytes > SIZE_LIMIT {
        return Err(OnnxError::TooLarge { bytes, limit: SIZE_LIMIT });
    }
    Ok(Exported { bytes: proto.encode_to_vec(), dense_layers })
}

/// The operator set to write a graph in.
fn opset(graph: &Graph, asked: Option<i64>) -> Result<i64, OnnxError> {
    let (what, needs) = ("average pooling with dilation", 19);
    let dilated = |node: &&Node| matches!(&node.op, Op::AvgPool { geometry, .. } if geometry.dilation != [1, 1]);
    match (graph.nodes.iter().find(dilated), asked) {
        (Some(node), Some(opset)) if opset < needs => {
            Err(OnnxError::NeedsOpset { node: node.name.clone(), what, needs, opset })
        }
        (_, Some(opset)) => Ok(opset),
        (Some(_), None) => Ok(needs),
        (None, None) => Ok(USUAL),
    }
}

/// The file's message, and the names of its [`Exported::dense_layers`].
fn export_model(model: &ModelFile, options: &ExportOptions) -> Result<(ModelProto, Vec<String>), OnnxError> {
    let opset = opset(&model.graph, options.opset)?;
    let ir_version = IR_VERSIONS.iter().find(|(version, _)| *version == opset).map(|(_, ir)| *ir);
    let ((first, _), (last, _)) = (IR_VERSIONS[0], IR_VERSIONS[IR_VERSIONS.len() - 1]);
    let first = if options.style == Style::Function { FUNCTIONS } else { first };
    let ir_version = ir_version.filter(|_| opset >= first);
    let ir_version = ir_version.ok_or(OnnxError::Opset { found: opset, first, last })?;
    model.weights.check(&model.graph)?;
    model.weights.check_values(&model.graph)?;
    let folded = options.fold_batch_norm.then(|| fold_batch_norms(&model.graph, &model.weights));
    let (graph, weights) = folded.as_ref().map_or((&model.graph, &model.weights), |(g, w)| (g, w));
    weights.check_values(graph)?;
    let mut exporter = Exporter::new(graph, weights, options.style, opset)?;
    (0..graph.nodes.len()).for_each(|id| exporter.node(id));
    let metadata_props = metadata::write(model, &exporter.layers, options.states_normalisation);
    let dense_layers = mem::take(&mut exporter.dense_layers);
    let (graph, functions) = exporter.finish();
    let domains = [("", opset)].into_iter().chain((!functions.is_empty()).then_some((het::DOMAIN, 1)));
    let import =
        |(domain, version): (&str, i64)| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    let proto = ModelProto {
        ir_version: Some(ir_version),
        opset_import: domains.map(import).collect(),
        producer_name: Some("hetconv".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(graph),
        metadata_props,
        functions,
        ..ModelProto::default()
    };
    Ok((proto, dense_layers))
}

/// The graph being written.
struct Exporter<'a> {
    graph: &'a Graph,
    weights: &'a Weights,
    style: Style,
    opset: i64,
    plan: ChannelPlan,
    shapes: Vec<Shape>,
    writer: Writer,
    /// The bounds of ReLU6, once they are needed.
    relu6: Option<[String; 2]>,
    /// The HetConv layers by name, as they are stored.
    layers: BTreeMap<String, HetPattern>,
    /// Those that had to be written as dense convolutions.
    dense_layers: Vec<String>,
    functions: Vec<FunctionProto>,
}

impl<'a> Exporter<'a> {
    fn new(graph: &'a Graph, weights: &'a Weights, style: Style, opset: i64) -> Result<Self, OnnxError> {
        let mut writer = Writer::for_opset(opset);
        // Every node's own value gets its name before any helper asks for one.
        graph.nodes.iter().for_each(|node| drop(writer.claim(&node.name)));
        Ok(Self {
            graph,
            weights,
            style,
            opset,
            plan: if style == Style::Dense {
                ChannelPlan::new(&graph.with_standard_convs())?
            } else {
                ChannelPlan::new(graph)?
            },
            shapes: graph.shapes()?,
            writer,
            relu6: None,
            layers: BTreeMap::new(),
            dense_layers: Vec::new(),
            functions: Vec::new(),
        })
    }

    /// The names of a node's operands, gathered where the plan says so.
    fn operands(&mut self, id: ValueId) -> Vec<String> {
        let node = &self.graph.nodes[id];
        let operand = |(i, &input): (usize, &ValueId)| {
            let stored = &self.graph.nodes[input].name;
            match self.plan.gather(id, i) {
                Some(channels) => self.writer.gather(&format!("{}.reordered", node.name), stored, channels),
                None => stored.clone(),
            }
        };
        node.inputs.iter().enumerate().map(operand).collect()
    }

    fn node(&mut self, id: ValueId) {
        let node = &self.graph.nodes[id];
        let name = node.name.as_str();
        let operands = self.operands(id);
        let inputs: Vec<&str> = operands.iter().map(String::as_str).collect();
        match &node.op {
            Op::Input { .. } => {}
            Op::Conv2d { geometry, kind: ConvKind::Het(pattern), .. } => {
                self.het_conv(id, inputs[0], geometry, pattern);
            }
            Op::Conv2d { geometry, kind, .. } => {
                let groups = if let ConvKind::Grouped(groups) = kind { *groups } else { 1 };
                let weight = self.conv_weight(id, geometry, groups);
                let bias = self.bias(id);
                let inputs: Vec<&str> = [inputs[0], &weight].into_iter().chain(bias.as_deref()).collect();
                self.writer.node(name, "Conv", &inputs, conv_attributes(geometry, groups));
            }
            Op::BatchNorm { epsilon, .. } => {
                let order = self.plan.order(id).channels();
                let mut parameter = |suffix: &str| {
                    let data = permuted(self.weights, name, suffix, order);
                    self.writer.floats(&format!("{name}.{suffix}"), &[order.len()], &data)
                };
                let parameters = ["weight", "bias", "running_mean", "running_var"].map(&mut parameter);
                let inputs: Vec<&str> = [inputs[0]].into_iter().chain(parameters.iter().map(String::as_str)).collect();
                self.writer.node(name, "BatchNormalization", &inputs, vec![float("epsilon", *epsilon)]);
            }
            Op::Activation { function } => self.activation(name, inputs[0], *function),
            Op::Add => self.add(name, &inputs),
            Op::Mul => self.writer.node(name, "Mul", &inputs, vec![]),
            Op::Concat => self.writer.node(name, "Concat", &inputs, vec![int("axis", 1)]),
            Op::MaxPool { geometry } => {
                let (input, geometry) = self.padded(name, inputs[0], geometry, f32::NEG_INFINITY);
                self.writer.node(name, "MaxPool", &[&input], window_attributes(&geometry));
            }
            Op::AvgPool { geometry, count_padding } => {
                // What is not counted cannot be there before.
                let (input, geometry) = match count_padding {
                    true => self.padded(name, inputs[0], geometry, 0.0),
                    false => (inputs[0].to_owned(), geometry.clone()),
                };
                let mut attributes = window_attributes(&geometry);
                // Older sets have none.
                attributes.retain(|attribute| attribute.name() != "dilations" || geometry.dilation != [1, 1]);
                attributes.push(int("count_include_pad", usize::from(*count_padding)));
                self.writer.node(name, "AveragePool", &[&input], attributes);
            }
            Op::GlobalAvgPool => self.writer.node(name, "GlobalAveragePool", &inputs, vec![]),
            Op::Flatten => self.writer.node(name, "Flatten", &inputs, vec![int("axis", 1)]),
            Op::Linear { .. } => self.linear(id, inputs[0]),
            Op::Softmax => self.writer.node(name, "Softmax", &inputs, vec![int("axis", 1)]),
            Op::Gather { stride, .. } => self.gather(id, inputs[0], *stride),
        }
    }

    /// The weight of a standard or grouped convolution, in stored order.
    fn conv_weight(&mut self, id: ValueId, geometry: &Conv2dGeometry, groups: usize) -> String {
        let name = &self.graph.nodes[id].name;
        let weight = self.weights.get(&format!("{name}.weight"));
        let data = weight.map_or(&[][..], |tensor| &tensor.data);
        let filters = self.plan.order(id).channels();
        let channels = self.plan.input_order(id, 0).channels();
        let (taps, m) = (geometry.taps(), channels.len() / groups);
        let mut stored = Vec::with_capacity(data.len());
        for &filter in filters {
            let kernels = &data[filter as usize * m * taps..][..m * taps];
            if groups > 1 {
                // In natural order but for depthwise kernels, which have one channel.
                stored.extend_from_slice(kernels);
            } else {
                channels.iter().for_each(|&c| stored.extend_from_slice(&kernels[c as usize * taps..][..taps]));
            }
        }
        let [height, width] = geometry.kernel;
        self.writer.floats(&format!("{name}.weight"), &[filters.len(), m, height, width], &stored)
    }

    /// The bias of a convolution or linear layer in stored order, if it has one.
    fn bias(&mut self, id: ValueId) -> Option<String> {
        let node = &self.graph.nodes[id];
        let (Op::Conv2d { bias: true, .. } | Op::Linear { bias: true, .. }) = node.op else { return None };
        let order = self.plan.order(id).channels();
        let data = permuted(self.weights, &node.name, "bias", order);
        Some(self.writer.floats(&format!("{}.bias", node.name), &[order.len()], &data))
    }

    fn linear(&mut self, id: ValueId, input: &str) {
        let name = &self.graph.nodes[id].name;
        let weight = self.weights.get(&format!("{name}.weight"));
        let data = weight.map_or(&[][..], |tensor| &tensor.data);
        let (rows, columns) = (self.plan.order(id).channels(), self.plan.input_order(id, 0).channels());
        let row = |&out: &u32| &data[out as usize * columns.len()..][..columns.len()];
        let stored: Vec<f32> =
            rows.iter().map(row).flat_map(|row| columns.iter().map(|&column| row[column as usize])).collect();
        let weight = self.writer.floats(&format!("{name}.weight"), &[rows.len(), columns.len()], &stored);
        let bias = self.bias(id);
        let inputs: Vec<&str> = [input, &weight].into_iter().chain(bias.as_deref()).collect();
        self.writer.node(name, "Gemm", &inputs, vec![int("transB", 1)]);
    }

    fn activation(&mut self, name: &str, input: &str, function: Activation) {
        let hard_sigmoid = || vec![float("alpha", 1.0 / 6.0), float("beta", 0.5)];
        match function {
            Activation::Relu => self.writer.node(name, "Relu", &[input], vec![]),
            Activation::Relu6 => {
                let writer = &mut self.writer;
                let bounds = self.relu6.get_or_insert_with(|| {
                    [("relu6.min", 0.0), ("relu6.max", 6.0)].map(|(name, bound)| writer.floats(name, &[], &[bound]))
                });
                writer.node(name, "Clip", &[input, &bounds[0], &bounds[1]], vec![]);
            }
            Activation::Sigmoid => self.writer.node(name, "Sigmoid", &[input], vec![]),
            Activation::HardSigmoid => self.writer.node(name, "HardSigmoid", &[input], hard_sigmoid()),
            Activation::HardSwish if self.opset >= 14 => self.writer.node(name, "HardSwish", &[input], vec![]),
            Activation::HardSwish => {
                let gate = self.writer.helper(&format!("{name}.gate"), "HardSigmoid", &[input], hard_sigmoid());
                self.writer.node(name, "Mul", &[input, &gate], vec![]);
            }
            Activation::Silu => {
                let gate = self.writer.helper(&format!("{name}.gate"), "Sigmoid", &[input], vec![]);
                self.writer.node(name, "Mul", &[input, &gate], vec![]);
            }
        }
    }

    /// A sum of any number of operands as a chain of sums of two.
    fn add(&mut self, name: &str, inputs: &[&str]) {
        let [first, middle @ .., last] = inputs else { return self.writer.node(name, "Identity", inputs, vec![]) };
        let mut sum = (*first).to_owned();
        for operand in middle {
            sum = self.writer.helper(&format!("{name}.sum"), "Add", &[&sum, operand], vec![]);
        }
        self.writer.node(name, "Add", &[&sum, last], vec![]);
    }

    /// What a pooling reads, and its window, with padding that not every engine takes before it: a window may lie in the
    /// padding with all its taps where dilation spreads them.
    fn padded(&mut self, name: &str, input: &str, geometry: &Conv2dGeometry, fill: f32) -> (String, Conv2dGeometry) {
        let Conv2dGeometry { kernel, padding, .. } = geometry;
        if (0..2).all(|axis| padding[axis].max(padding[axis + 2]) < kernel[axis]) {
            return (input.to_owned(), geometry.clone());
        }
        let [top, left, bottom, right] = padding.map(|pixels| pixels as i64);
        let pads = [0, 0, top, left, 0, 0, bottom, right];
        let padded = self.writer.pad_with(&format!("{name}.padded"), input, &pads, fill);
        (padded, Conv2dGeometry { padding: [0; 4], ..geometry.clone() })
    }

    /// Subsampling, then channels picked or zero.
    fn gather(&mut self, id: ValueId, input: &str, stride: usize) {
        let name = self.graph.nodes[id].name.clone();
        let sources: Vec<Option<u32>> = self.plan.sources(id).unwrap_or_default().to_vec();
        let available = self.plan.input_order(id, 0).len();
        let kept = sources.iter().take_while(|source| source.is_some()).count();
        let in_place = kept == available && sources.iter().take(kept).zip(0..).all(|(source, c)| *source == Some(c));
        let appended = in_place && sources[kept..].iter().all(Option::is_none);
        let mut input = input.to_owned();
        if stride > 1 {
            let every = |axis| Slice { axis, start: 0, end: i64::MAX, step: stride as i64 };
            let slices = [every(2), every(3)];
            if appended && sources.len() == available {
                return self.writer.slice_into(&name, &input, &slices);
            }
            input = self.writer.slice(&format!("{name}.subsampled"), &input, &slices);
        }
        let zeros = |count: usize| [0, 0, 0, 0, 0, count as i64, 0, 0];
        if appended && sources.len() == available {
            self.writer.node(&name, "Identity", &[&input], vec![]);
        } else if appended {
            self.writer.pad_into(&name, &input, &zeros(sources.len() - available));
        } else {
            if sources.contains(&None) {
                input = self.writer.pad(&format!("{name}.padded"), &input, &zeros(1));
            }
            let channels: Vec<u32> = sources.iter().map(|source| source.unwrap_or(available as u32)).collect();
            self.writer.gather_into(&name, &input, &channels);
        }
    }

    /// The finished graph: inputs, and outputs in natural order, each under a name of its own.
    fn finish(mut self) -> (GraphProto, Vec<FunctionProto>) {
        let dims = |shape: Shape| match shape {
            Shape::Image { channels, height, width } => vec![channels, height, width],
            Shape::Features(features) => vec![features],
        };
        let mut output = Vec::new();
        for (index, &id) in self.graph.outputs.iter().enumerate() {
            let Node { name, op, .. } = &self.graph.nodes[id];
            let again = self.graph.outputs[..index].contains(&id) || matches!(op, Op::Input { .. });
            let result = match self.plan.output_gather(index) {
                Some(channels) => self.writer.gather(&format!("{name}.natural"), name, channels),
                None if again => self.writer.helper(&format!("{name}.output"), "Identity", &[name], vec![]),
                None => name.clone(),
            };
            output.push(batch_of(&result, &dims(self.shapes[id])));
        }
        let input = |(id, _): (ValueId, _)| batch_of(&self.graph.nodes[id].name, &dims(self.shapes[id]));
        let graph = GraphProto {
            node: self.writer.nodes,
            name: Some(self.graph.name.clone()),
            initializer: self.writer.initializers,
            input: self.graph.inputs().map(input).collect(),
            output,
            ..GraphProto::default()
        };
        (graph, self.functions)
    }
}

/// One number per channel, in stored order.
fn permuted(weights: &Weights, node: &str, suffix: &str, order: &[u32]) -> Vec<f32> {
    let data = weights.get(&format!("{node}.{suffix}")).map_or(&[][..], |tensor| &tensor.data);
    order.iter().map(|&channel| data[channel as usize]).collect()
}

//! An ONNX file as a graph of this project.
//!
//! Every name in the file stands for a [`Value`]: a constant, a value of the network, or something in between, such as an
//! image with a split channel axis, which becomes part of the node that reads it. Shape arithmetic is computed on the
//! way; the batch size stays unknown. What cannot be read is noted and the rest is read on, so that an error names all.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use hetconv_core::ConvKind;
use hetconv_graph::{Activation, ModelFile, Normalisation, Op, Shape, ValueId};

use prost::bytes::Bytes;

use crate::metadata::Metadata;
use crate::names::Names;
use crate::prepare::{is_standard, node_name, prepare};
use crate::proto::tensor_proto::DataType;
use crate::proto::tensor_shape_proto::dimension;
use crate::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto};
use crate::tensor::{self, DataFiles, Elements};
use crate::{OnnxError, TensorFault, UnsupportedNode, recognise, simplify};

mod attributes;
mod constant;
mod elementwise;
mod fold;
mod layers;
mod layout;
mod network;
mod value;

pub(crate) use attributes::Attributes;
use network::Network;
use value::{Constant, Data, Int, Ramp, Read, Refusal, Value};

/// The operators that are read.
const OPERATORS: [&str; 42] = [
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "Div",
    "Dropout",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "MatMul",
    "MaxPool",
    "Mul",
    "Neg",
    "Pad",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Transpose",
    "Unsqueeze",
];

/// How to read an ONNX file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Height and width, in pixels, of images whose size the file leaves open.
    pub image_size: Option<[usize; 2]>,
    /// Leave every convolution as its node has it: no bias taken from a sum behind it, no HetConv recognised, nothing
    /// simplified. It is slower to run, and what is computed for a layer fits its node.
    pub as_written: bool,
}

/// A network read from an ONNX file.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The network, its weights, and what the file says about classes and normalisation.
    pub model: ModelFile,
    /// The names of its HetConv layers.
    pub het_layers: Vec<String>,
    /// Whether the file says how images are normalised; if not, the model leaves them as they are.
    pub states_normalisation: bool,
}

/// Whether a file is taken for one of ONNX's: by the end of its name, `.onnx`.
pub fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

/// Reads an ONNX file; external data must lie in its folder.
///
/// # Errors
/// As of [`import()`], or what the file system reports.
pub fn import_file(path: &Path, options: &ImportOptions) -> Result<Imported, OnnxError> {
    let bytes = fs::read(path).map_err(|source| OnnxError::Io { path: path.to_owned(), source })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    import_bytes(Bytes::from(bytes), Some(folder), options)
}

/// Reads the bytes of an ONNX file; `folder` is where its external data may be, if it may have any.
///
/// Sums of a grouped K×K and a 1×1 convolution over one image become HetConv layers, whoever wrote them.
///
/// # Errors
/// Whatever is wrong with the file, naming the node, tensor or metadata; all nodes that are not supported at once.
pub fn import(bytes: &[u8], folder: Option<&Path>, options: &ImportOptions) -> Result<Imported, OnnxError> {
    import_bytes(Bytes::copy_from_slice(bytes), folder, options)
}

/// As [`import()`]; the tensors of the file are slices of its bytes.
pub(crate) fn import_bytes(
    bytes: Bytes,
    folder: Option<&Path>,
    options: &ImportOptions,
) -> Result<Imported, OnnxError> {
    let len = bytes.len();
    let (mut proto, opset) = prepare(bytes)?;
    let metadata = Metadata::read(&proto)?;
    let graph = proto.graph.take().ok_or(OnnxError::NoGraph)?;
    let data = DataFiles::by_name(folder);
    let mut network = Importer::new(&graph, opset, &data, len, options.as_written).run(options)?;
    if !options.as_written {
        simplify::simplify(&mut network.graph, &mut network.weights);
        recognise::recognise(&mut network.graph, &mut network.weights, &metadata.layers)?;
        simplify::simplify(&mut network.graph, &mut network.weights);
    }
    network.weights.check(&network.graph)?;
    let channels = network.graph.input_shape().map_or(0, |[channels, ..]| channels);
    metadata.check(channels, network.graph.shapes()?[network.graph.outputs[0]])?;
    let Metadata { classes, normalisation, .. } = metadata;
    let het = network.graph.nodes.iter().filter(|node| matches!(node.op, Op::Conv2d { kind: ConvKind::Het(_), .. }));
    let het_layers = het.map(|node| node.name.clone()).collect();
    let states_normalisation = normalisation.is_some();
    let model = ModelFile {
        graph: network.graph,
        weights: network.weights,
        classes,
        normalisation: normalisation.unwrap_or_else(|| Normalisation::identity(channels)),
    };
    Ok(Imported { model, het_layers, states_normalisation })
}

/// The graph being read.
struct Importer<'a> {
    proto: &'a GraphProto,
    opset: i64,
    as_written: bool,
    data: &'a DataFiles<'a>,
    initializers: HashMap<&'a str, &'a TensorProto>,
    values: HashMap<&'a str, Value>,
    /// How often a value is read, outputs of the graph included.
    readers: HashMap<&'a str, usize>,
    /// The first name of every network value that a node gave.
    first_names: HashMap<ValueId, &'a str>,
    /// The batch size that the file's inputs fix, if they do.
    batch: Option<i64>,
    network: Network,
    unsupported: Vec<UnsupportedNode>,
}

impl<'a> Importer<'a> {
    /// `len` is the file's number of bytes.
    fn new(proto: &'a GraphProto, opset: i64, data: &'a DataFiles<'a>, len: usize, as_written: bool) -> Self {
        let mut readers = HashMap::new();
        let outputs = proto.output.iter().map(|output| output.name());
        for name in proto.node.iter().flat_map(|node| node.input.iter().map(String::as_str)).chain(outputs) {
            *readers.entry(name).or_insert(0) += 1;
        }
        // Convolutions keep their nodes' names, whatever else is called so: by these they are converted and calibrated.
        let convolutions = proto.node.iter().filter(|node| node.op_type() == "Conv");
        let names = Names::reserving(convolutions.map(node_name));
        Self {
            proto,
            opset,
            as_written,
            data,
            initializers: proto.initializer.iter().map(|tensor| (tensor.name(), tensor)).collect(),
            values: HashMap::new(),
            readers,
            first_names: HashMap::new(),
            batch: None,
            network: Network::new(if proto.name().is_empty() { "onnx" } else { proto.name() }, len, names),
            unsupported: Vec::new(),
        }
    }

    fn run(mut self, options: &ImportOptions) -> Result<Network, OnnxError> {
        for input in &self.proto.input {
            if !self.initializers.contains_key(input.name()) {
                self.input(input, options)?;
            }
        }
        for node in &self.proto.node {
            let ready = match supported(node) {
                Ok(()) => self.load_initializers(node)?,
                refused => refused,
            };
            match ready.and_then(|()| self.node(node)) {
                Ok(results) => {
                    self.surplus(node, results.len());
                    for (name, value) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
                        if let Value::Network(id) = value {
                            self.first_names.entry(id).or_insert(name);
                        }
                        self.values.insert(name, value);
                    }
                }
                Err(refusal) => self.refuse(node, refusal),
            }
        }
        let proto = self.proto;
        let mut outputs = Vec::new();
        for output in &proto.output {
            match self.values.get(output.name()) {
                // An output that is read nowhere is one that nothing computes.
                None => {
                    return Err(OnnxError::Undefined { node: "output".to_owned(), value: output.name().to_owned() });
                }
                Some(Value::Constant(_)) => self.unsupported.push(UnsupportedNode {
                    node: output.name().to_owned(),
                    op: "output".to_owned(),
                    reason: "does not depend on the input".to_owned(),
                }),
                Some(_) => match self.network_value(output.name()) {
                    Ok(id) => outputs.push(id),
                    Err(Refusal::Downstream) => {}
                    Err(Refusal::Because(reason)) => {
                        let (node, op) = (output.name().to_owned(), "output".to_owned());
                        self.unsupported.push(UnsupportedNode { node, op, reason });
                    }
                },
            }
        }
        if !self.unsupported.is_empty() {
            return Err(OnnxError::Unsupported { nodes: self.unsupported });
        }
        self.network.graph.outputs = outputs;
        self.network.graph.validate()?;
        Ok(self.network)
    }

    /// Refuses a node whose results from this number on are read: they are not computed.
    fn surplus(&mut self, node: &'a NodeProto, computed: usize) {
        for name in node.output.iter().skip(computed).map(String::as_str) {
            if !name.is_empty() && self.readers.contains_key(name) {
                let (node, op) = (node_name(node).to_owned(), node.op_type().to_owned());
                self.unsupported.push(UnsupportedNode { node, op, reason: format!("gives a further result `{name}`") });
                self.values.insert(name, Value::Unknown);
            }
        }
    }

    /// Notes a node that cannot be read; who reads its results is not asked for more.
    fn refuse(&mut self, node: &'a NodeProto, refusal: Refusal) {
        if let Refusal::Because(reason) = refusal {
            let (node, op) = (node_name(node).to_owned(), node.op_type().to_owned());
            self.unsupported.push(UnsupportedNode { node, op, reason });
        }
        self.values.extend(node.output.iter().map(|output| (output.as_str(), Value::Unknown)));
    }

    /// An image, whose batch size may be open.
    fn input(&mut self, input: &'a ValueInfoProto, options: &ImportOptions) -> Result<(), OnnxError> {
        let fault = |reason: String| OnnxError::Input { input: input.name().to_owned(), reason };
        let tensor = match input.r#type.as_ref().and_then(|r#type| r#type.value.as_ref()) {
            Some(type_proto::Value::TensorType(tensor)) => tensor,
            _ => return Err(fault("it is no tensor".to_owned())),
        };
        // As floats they would not wrap around, nor would quotients be rounded.
        if let Some(kind) = integers(tensor.elem_type()) {
            return Err(fault(format!("it has elements of {kind}; images of floats are read")));
        }
        let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
        let [batch, channels, height, width] = dims else {
            return Err(fault(match dims.len() {
                0 => "its shape is not given".to_owned(),
                axes => format!("images of [N, channels, height, width] are read, but it has {axes} axes"),
            }));
        };
        let size = |value: &Option<dimension::Value>| match value {
            Some(dimension::Value::DimValue(size)) => usize::try_from(*size).ok(),
            _ => None,
        };
        let [channels, height, width] = [channels, height, width].map(|dim| size(&dim.value));
        let Some(channels) = channels else {
            return Err(fault("its channels are open: how many there are has to be stated".to_owned()));
        };
        let [default_height, default_width] = options.image_size.map_or([None; 2], |size| size.map(Some));
        let (Some(height), Some(width)) = (height.or(default_height), width.or(default_width)) else {
            let fault =
                fault("its height and width are open: say for which image size to read it (--image-size)".to_owned());
            return Err(fault);
        };
        self.batch = size(&batch.value).map(|batch| batch as i64).or(self.batch);
        let pushed = self.network.push(input.name(), Op::Input { shape: [channels, height, width] }, &[]);
        let id = pushed.map_err(|refusal| {
            fault(match refusal {
                Refusal::Because(reason) => reason,
                Refusal::Downstream => String::new(),
            })
        })?;
        self.values.insert(input.name(), Value::Network(id));
        Ok(())
    }

    /// Decodes the initializers that a node reads, unless they are already; refuses the node for one of a type that is not
    /// read.
    fn load_initializers(&mut self, node: &'a NodeProto) -> Result<Read<()>, OnnxError> {
        for name in node.input.iter().map(String::as_str) {
            let Some(tensor) = self.initializers.get(name).filter(|_| !self.values.contains_key(name)) else {
                continue;
            };
            let constant = match self.constant(tensor, name) {
                Err(OnnxError::Tensor { fault: fault @ TensorFault::ElementType(_), .. }) => {
                    return Ok(Err(Refusal::because(format!("reads `{name}`: {fault}"))));
                }
                constant => constant?,
            };
            self.network.earn(constant.len());
            self.values.insert(name, Value::Constant(Rc::new(constant)));
        }
        Ok(Ok(()))
    }

    fn constant(&self, tensor: &TensorProto, name: &str) -> Result<Constant, OnnxError> {
        let read = tensor::read(tensor, self.data);
        let (dims, elements) = read.map_err(|fault| OnnxError::Tensor { tensor: name.to_owned(), fault })?;
        let data = match elements {
            Elements::Float(data) => Data::Float(data),
            Elements::Int(data) => Data::Int(data.into_iter().map(Int::Known).collect()),
        };
        Ok(Constant { dims, data })
    }

    /// The values a node gives, in the order of its outputs.
    fn node(&mut self, node: &'a NodeProto) -> Read<Vec<Value>> {
        let attributes = Attributes(node);
        if node.op_type() == "Constant" {
            return Ok(vec![self.constant_node(node)?]);
        }
        if let Some(folded) = self.fold(node, &attributes)? {
            return Ok(folded);
        }
        let value = match node.op_type() {
            "Conv" => self.conv(node, &attributes)?,
            "BatchNormalization" => self.batch_norm(node, &attributes)?,
            "Relu" | "Clip" => self.clip(node)?,
            "Sigmoid" => self.activation(node, Activation::Sigmoid)?,
            "HardSwish" => self.activation(node, Activation::HardSwish)?,
            "HardSigmoid" => self.hard_sigmoid(node, &attributes)?,
            "Add" | "Sum" => self.add(node)?,
            "Sub" => self.sub(node)?,
            "Mul" => self.mul(node)?,
            "Div" => self.div(node)?,
            "Concat" => self.concat(node, &attributes)?,
            "MaxPool" => self.max_pool(node, &attributes)?,
            "AveragePool" => self.average_pool(node, &attributes)?,
            "GlobalAveragePool" => self.unary(node, Op::GlobalAvgPool)?,
            "GlobalMaxPool" => self.global_max_pool(node)?,
            "ReduceMean" => self.reduce_mean(node, &attributes)?,
            "Flatten" => self.flatten(node, &attributes)?,
            "Reshape" => self.reshape(node, &attributes)?,
            "Squeeze" => self.squeeze(node, &attributes)?,
            "Unsqueeze" => self.unsqueeze(node, &attributes)?,
            "Transpose" => self.transpose(node, &attributes)?,
            "Slice" => self.slice(node)?,
            "Gather" => self.gather(node, &attributes)?,
            "Split" => return self.split(node, &attributes),
            "Pad" => self.pad(node, &attributes)?,
            "Gemm" => self.gemm(node, &attributes)?,
            "MatMul" => self.mat_mul(node)?,
            "Softmax" => self.softmax(node, &attributes)?,
            "Dropout" => self.dropout(node)?,
            "Identity" => self.operand(node, 0)?,
            "CastLike" => self.cast_like(node)?,
            "Shape" => self.shape(node, &attributes)?,
            _ => return Err(Refusal::because("is supported for constants only")),
        };
        Ok(vec![value])
    }

    /// What a node reads at a place where it must read something.
    fn operand(&self, node: &NodeProto, index: usize) -> Read<Value> {
        self.optional(node, index)?.ok_or_else(|| Refusal::because(format!("its input {index} is missing")))
    }

    /// What a node reads at a place, if it does.
    fn optional(&self, node: &NodeProto, index: usize) -> Read<Option<Value>> {
        let Some(name) = node.input.get(index).filter(|name| !name.is_empty()) else { return Ok(None) };
        match self.values.get(name.as_str()) {
            Some(Value::Unknown) | None => Err(Refusal::Downstream),
            Some(value) => Ok(Some(value.clone())),
        }
    }

    /// A constant that a node reads, if it reads any there.
    fn optional_constant(&self, node: &NodeProto, index: usize, what: &str) -> Read<Option<Rc<Constant>>> {
        match self.optional(node, index)? {
            None => Ok(None),
            Some(Value::Constant(constant)) => Ok(Some(constant)),
            Some(_) => Err(Refusal::because(format!("its {what} is not a constant"))),
        }
    }

    /// A constant that a node must read.
    fn constant_operand(&self, node: &NodeProto, index: usize, what: &str) -> Read<Rc<Constant>> {
        let constant = self.optional_constant(node, index, what)?;
        constant.ok_or_else(|| Refusal::because(format!("its {what} is missing")))
    }

    /// A network value that a node must read; what was pending becomes nodes.
    fn network_operand(&mut self, node: &'a NodeProto, index: usize) -> Read<ValueId> {
        self.operand(node, index)?;
        let name = &node.input[index];
        self.network_value(name)
    }

    fn network_value(&mut self, name: &'a str) -> Read<ValueId> {
        let value = self.values.get(name).cloned().unwrap_or(Value::Unknown);
        let id = match &value {
            Value::Network(id) => return Ok(*id),
            Value::Unknown => return Err(Refusal::Downstream),
            Value::Constant(_) => return Err(Refusal::because(format!("reads the constant `{name}` as an image"))),
            Value::Ramp(ramp) => self.network.ramp(ramp)?,
            Value::Padded(padded) => self.network.padded(name, *padded)?,
            Value::Channels(channels) => self.picked_channels(name, channels)?,
        };
        self.values.insert(name, Value::Network(id));
        Ok(id)
    }

    /// A node of one network value.
    fn unary(&mut self, node: &'a NodeProto, op: Op) -> Read<Value> {
        let of = self.network_operand(node, 0)?;
        Ok(Value::Network(self.network.push(node_name(node), op, &[of])?))
    }

    /// Whether a node alone reads a network value, under this or any other name.
    fn reads_alone(&self, node: &NodeProto, index: usize, value: ValueId) -> bool {
        let name = node.input[index].as_str();
        // Other names come from nodes that read the first one, or from others that see the same features as an image.
        let is_only = self.first_names.get(&value) == Some(&name) && self.readers.get(name) == Some(&1);
        is_only && !self.network.is_made_image(value)
    }

    /// The extents of a value behind the batch.
    fn dims(&self, value: &Value) -> Read<Vec<usize>> {
        let image = |of: ValueId| match self.network.shape(of) {
            Shape::Image { channels, height, width } => vec![channels, height, width],
            Shape::Features(features) => vec![features],
        };
        match value {
            Value::Network(id) => Ok(image(*id)),
            Value::Ramp(ramp) => Ok(image(ramp.of)),
            Value::Channels(channels) => {
                let [_, height, width] = self.network.image(channels.of)?;
                Ok([channels.dims.as_slice(), &[height, width]].concat())
            }
            Value::Padded(padded) => {
                let [channels, height, width] = self.network.image(padded.of)?;
                let [height, width] = layers::padded_size([height, width], padded.pads)?;
                Ok(vec![channels, height, width])
            }
            Value::Constant(_) | Value::Unknown => Err(Refusal::because("reads a constant as an image")),
        }
    }
}

/// Whether a node's operator is one that is read. Asked before its operands are looked at: one that is not is named,
/// wherever it stands.
fn supported(node: &NodeProto) -> Read<()> {
    if !is_standard(node.domain()) {
        return Err(Refusal::because(format!("domain `{}` is not known", node.domain())));
    }
    if !OPERATORS.contains(&node.op_type()) {
        return Err(Refusal::because("is not supported"));
    }
    Ok(())
}

/// A network value that an elementwise function can be pending on.
fn as_ramp(value: &Value, name: &str) -> Option<Ramp> {
    match value {
        Value::Network(id) => Some(Ramp::identity(name, *id)),
        Value::Ramp(ramp) => Some((**ramp).clone()),
        _ => None,
    }
}

/// The name of a type of elements that are no floats.
fn integers(elem_type: i32) -> Option<&'static str> {
    use DataType::{Bfloat16, Double, Float, Float16, Undefined};
    let kind = DataType::try_from(elem_type).ok()?;
    (!matches!(kind, Float | Double | Float16 | Bfloat16 | Undefined)).then(|| kind.as_str_name())
}

//! Writing an ONNX graph node by node.

use prost::bytes::Bytes;

use crate::names::Names;
use crate::proto::attribute_proto::AttributeType;
use crate::proto::tensor_proto::DataType;
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{AttributeProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto};

/// Nodes and initializers under names that are unique.
pub(crate) struct Writer {
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    names: Names,
    opset: i64,
    /// Of the initializers' elements.
    bytes: usize,
}

impl Writer {
    /// Of nodes of this version of the operators.
    pub fn for_opset(opset: i64) -> Self {
        Self { nodes: Vec::new(), initializers: Vec::new(), names: Names::default(), opset, bytes: 0 }
    }

    /// How many bytes the elements of all initializers take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A name not used so far: the wanted one, or that with a number.
    pub fn claim(&mut self, wanted: &str) -> String {
        self.names.claim(wanted)
    }

    /// A float constant; gives its name.
    pub fn floats(&mut self, wanted: &str, dims: &[usize], data: &[f32]) -> String {
        let name = self.claim(wanted);
        self.bytes += size_of_val(data);
        self.initializers.push(float_tensor(&name, dims, data));
        name
    }

    /// An integer constant; gives its name.
    pub fn ints(&mut self, wanted: &str, data: &[i64]) -> String {
        let name = self.claim(wanted);
        let raw = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes += size_of_val(data);
        self.initializers.push(tensor(&name, DataType::Int64, &[data.len()], raw));
        name
    }

    /// A node of one output, which has the node's name; the name is the caller's, claimed.
    pub fn node(&mut self, name: &str, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) {
        self.nodes.push(node(name, op, inputs, attributes));
    }

    /// A node that only helps another; gives the name of its output.
    pub fn helper(&mut self, wanted: &str, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let name = self.claim(wanted);
        self.node(&name, op, inputs, attributes);
        name
    }

    /// `data` with channels (axis 1) picked by number.
    pub fn gather(&mut self, wanted: &str, data: &str, channels: &[u32]) -> String {
        let name = self.claim(wanted);
        self.gather_into(&name, data, channels);
        name
    }

    /// As [`Writer::gather`], with a claimed name.
    pub fn gather_into(&mut self, name: &str, data: &str, channels: &[u32]) {
        let channels: Vec<i64> = channels.iter().map(|&channel| channel.into()).collect();
        let indices = self.ints(&format!("{name}.channels"), &channels);
        self.node(name, "Gather", &[data, &indices], vec![int("axis", 1)]);
    }

    /// `data` from `starts` to `ends` on some axes; gives the name of the slice.
    pub fn slice(&mut self, wanted: &str, data: &str, slices: &[Slice]) -> String {
        let name = self.claim(wanted);
        self.slice_into(&name, data, slices);
        name
    }

    /// As [`Writer::slice`], with a claimed name.
    pub fn slice_into(&mut self, name: &str, data: &str, slices: &[Slice]) {
        // An older one has no steps, which only graphs that are exported to a newer one need.
        if self.opset < 10 {
            let column = |of: fn(&Slice) -> i64| slices.iter().map(of).collect();
            let attributes = vec![
                signed("starts", column(|slice| slice.start)),
                signed("ends", column(|slice| slice.end)),
                signed("axes", column(|slice| slice.axis)),
            ];
            return self.node(name, "Slice", &[data], attributes);
        }
        let mut column = |suffix: &str, of: fn(&Slice) -> i64| {
            let column: Vec<i64> = slices.iter().map(of).collect();
            self.ints(&format!("{name}.{suffix}"), &column)
        };
        let starts = column("starts", |slice| slice.start);
        let ends = column("ends", |slice| slice.end);
        let axes = column("axes", |slice| slice.axis);
        let steps = column("steps", |slice| slice.step);
        self.node(name, "Slice", &[data, &starts, &ends, &axes, &steps], vec![]);
    }

    /// `data` with so many zeros before all axes, then behind all, or cut off where negative; gives the result's name.
    pub fn pad(&mut self, wanted: &str, data: &str, pads: &[i64]) -> String {
        let name = self.claim(wanted);
        self.pad_into(&name, data, pads);
        name
    }

    /// As [`Writer::pad`], with another number than zeros.
    pub fn pad_with(&mut self, wanted: &str, data: &str, pads: &[i64], fill: f32) -> String {
        let name = self.claim(wanted);
        if self.opset < 11 {
            self.node(&name, "Pad", &[data], vec![signed("pads", pads.to_vec()), float("value", fill)]);
        } else {
            let pads = self.ints(&format!("{name}.pads"), pads);
            let fill = self.floats(&format!("{name}.fill"), &[], &[fill]);
            self.node(&name, "Pad", &[data, &pads, &fill], vec![]);
        }
        name
    }

    /// As [`Writer::pad`], with a claimed name.
    pub fn pad_into(&mut self, name: &str, data: &str, pads: &[i64]) {
        if self.opset < 11 {
            return self.node(name, "Pad", &[data], vec![signed("pads", pads.to_vec())]);
        }
        let pads = self.ints(&format!("{name}.pads"), pads);
        self.node(name, "Pad", &[data, &pads], vec![]);
    }
}

/// A range on one axis; a negative end counts from the axis's end.
pub(crate) struct Slice {
    pub axis: i64,
    pub start: i64,
    pub end: i64,
    pub step: i64,
}

/// A node of one output, which has the node's name.
pub(crate) fn node(name: &str, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![name.to_owned()],
        name: Some(name.to_owned()),
        op_type: Some(op.to_owned()),
        attribute: attributes,
        ..NodeProto::default()
    }
}

/// A float tensor.
pub(crate) fn float_tensor(name: &str, dims: &[usize], data: &[f32]) -> TensorProto {
    tensor(name, DataType::Float, dims, data.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn tensor(name: &str, data_type: DataType, dims: &[usize], raw: Vec<u8>) -> TensorProto {
    TensorProto {
        dims: dims.iter().map(|&dim| dim as i64).collect(),
        data_type: Some(data_type as i32),
        name: Some(name.to_owned()),
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    }
}

/// An integer attribute.
pub(crate) fn int(name: &str, value: usize) -> AttributeProto {
    let i = Some(value as i64);
    AttributeProto { name: Some(name.to_owned()), r#type: Some(AttributeType::Int as i32), i, ..Default::default() }
}

/// A float attribute.
pub(crate) fn float(name: &str, value: f32) -> AttributeProto {
    let f = Some(value);
    AttributeProto { name: Some(name.to_owned()), r#type: Some(AttributeType::Float as i32), f, ..Default::default() }
}

/// An attribute of several integers.
pub(crate) fn ints(name: &str, values: &[usize]) -> AttributeProto {
    signed(name, values.iter().map(|&value| value as i64).collect())
}

/// An attribute of several integers that may be negative.
fn signed(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(AttributeType::Ints as i32), ints, ..Default::default() }
}

/// An attribute of a function's node whose value is the function's own attribute `of`.
pub(crate) fn reference(name: &str, of: &str, kind: AttributeType) -> AttributeProto {
    let (name, of) = (Some(name.to_owned()), Some(of.to_owned()));
    AttributeProto { name, ref_attr_name: of, r#type: Some(kind as i32), ..AttributeProto::default() }
}

/// The type of a constant, as an input of the graph states it.
pub(crate) fn constant_info(tensor: &TensorProto) -> ValueInfoProto {
    let dimension = |&dim: &i64| Dimension { value: Some(dimension::Value::DimValue(dim)), ..Dimension::default() };
    let shape = TensorShapeProto { dim: tensor.dims.iter().map(dimension).collect() };
    let kind = type_proto::Tensor { elem_type: tensor.data_type, shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(kind)), ..TypeProto::default() };
    ValueInfoProto { name: tensor.name.clone(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// A float value of any batch size and `[N, dims…]` elements.
pub(crate) fn batch_of(name: &str, dims: &[usize]) -> ValueInfoProto {
    let dimension = |value| Dimension { value: Some(value), ..Dimension::default() };
    let batch = dimension(dimension::Value::DimParam("N".to_owned()));
    let rest = dims.iter().map(|&dim| dimension(dimension::Value::DimValue(dim as i64)));
    let shape = TensorShapeProto { dim: std::iter::once(batch).chain(rest).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(DataType::Float as i32), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(r#type), ..ValueInfoProto::default() }
}

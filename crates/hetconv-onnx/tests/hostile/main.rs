//! Every way a file can lie: a typed error that names the node or tensor, no panic, no memory that the file does not have.

mod bytes;
mod nodes;
mod structure;
mod tensors;

use std::fs;

use hetconv_core::HetPattern;
use hetconv_graph::{ArrangementKind, ModelFile, Normalisation, Weights, zoo};
use hetconv_onnx::proto::tensor_shape_proto::{Dimension, dimension};
use hetconv_onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use hetconv_onnx::{
    ConvertOptions, ExportOptions, ImportOptions, OnnxError, Selection, TensorFault, UnsupportedNode, convert,
    data_files, embed_external_data, export, import, import_file,
};
use proptest::prelude::*;
use prost::Message;

fn model() -> ModelProto {
    ModelProto::decode(bytes().as_slice()).unwrap()
}

fn bytes() -> Vec<u8> {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap().with_input([3, 8, 8]).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
    export(&model, &ExportOptions::default()).unwrap().bytes
}

/// What the import and the conversion say to the model once it is changed.
fn errors(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> [Option<OnnxError>; 2] {
    let mut model = model();
    let mut graph = model.graph.take().unwrap();
    change(&mut model, &mut graph);
    model.graph = Some(graph);
    let bytes = model.encode_to_vec();
    let arrangement = ArrangementKind::Shifted;
    let options = ConvertOptions { selection: Selection::all(), arrangement, ..ConvertOptions::new(3) };
    [import(&bytes, None, &ImportOptions::default()).err(), convert(&bytes, None, &options).err()]
}

/// What the import says to it.
fn error(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> OnnxError {
    errors(change)[0].take().expect("the model was accepted")
}

/// The unsupported nodes of a changed model.
fn unsupported(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> Vec<UnsupportedNode> {
    match error(change) {
        OnnxError::Unsupported { nodes } => nodes,
        other => panic!("{other}"),
    }
}

fn tensor<'a>(graph: &'a mut GraphProto, name: &str) -> &'a mut TensorProto {
    graph.initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap()
}

fn node<'a>(graph: &'a mut GraphProto, name: &str) -> &'a mut NodeProto {
    graph.node.iter_mut().find(|node| node.name() == name).unwrap()
}

/// Makes a node of this kind, which reads `conv1`, and an output of its result.
fn add_node(graph: &mut GraphProto, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) {
    let input = inputs.iter().map(|&input| input.to_owned()).collect();
    let (name, op_type) = (Some("added".to_owned()), Some(op.to_owned()));
    graph.node.push(NodeProto {
        input,
        output: vec!["added".to_owned()],
        name,
        op_type,
        attribute,
        ..Default::default()
    });
    graph.output.push(ValueInfoProto { name: Some("added".to_owned()), ..Default::default() });
}

fn add_ints(graph: &mut GraphProto, name: &str, dims: &[i64], data: Vec<i64>) {
    let name = Some(name.to_owned());
    graph.initializer.push(TensorProto {
        dims: dims.to_vec(),
        data_type: Some(7),
        name,
        int64_data: data,
        ..Default::default()
    });
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(2), i: Some(value), ..Default::default() }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(7), ints: ints.to_vec(), ..Default::default() }
}

#[test]
fn the_unchanged_model_is_read() {
    assert!(matches!(errors(|_, _| ()), [None, None]));
}

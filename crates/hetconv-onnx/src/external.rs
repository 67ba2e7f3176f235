//! Data that lies beside an ONNX file, brought into it.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use crate::OnnxError;
use crate::export::SIZE_LIMIT;
use crate::proto::tensor_proto::DataLocation;
use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use crate::tensor::DataFiles;
use crate::wire::{self, fields};

/// Field numbers of a model and of a graph.
const MODEL_GRAPH: u32 = 7;
const MODEL_FUNCTIONS: u32 = 25;
const GRAPH_NODE: u32 = 1;
const GRAPH_INITIALIZER: u32 = 5;
const GRAPH_SPARSE_INITIALIZER: u32 = 15;

/// The same ONNX file with all external data in it, so that it needs no other file. What has none keeps its bytes.
/// `folder` is where the data is.
///
/// # Errors
/// A file that is none, data that is not there, or more of it than an ONNX file can hold.
///
/// ```
/// use hetconv_graph::{ModelFile, Normalisation, Weights, zoo};
/// let graph = zoo::build(&"small-cifar".parse()?, 10)?;
/// let weights = Weights::init(&graph, 1)?;
/// let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
/// let alone = hetconv_onnx::export(&model, &Default::default())?;
/// assert_eq!(hetconv_onnx::embed_external_data(&alone, ".".as_ref())?, alone);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn embed_external_data(bytes: &[u8], folder: &Path) -> Result<Vec<u8>, OnnxError> {
    let embed = Embed(DataFiles::new(Some(folder)));
    let mut model = Vec::with_capacity(bytes.len());
    for field in fields(&Bytes::copy_from_slice(bytes))? {
        match field.tag {
            MODEL_GRAPH => {
                let mut graph = Vec::with_capacity(field.payload.len());
                for field in fields(&field.payload)? {
                    match field.tag {
                        GRAPH_NODE => embed.field(&field, Embed::node, &mut graph)?,
                        GRAPH_INITIALIZER => embed.field(&field, Embed::tensor, &mut graph)?,
                        GRAPH_SPARSE_INITIALIZER => embed.field(&field, Embed::sparse, &mut graph)?,
                        _ => graph.extend_from_slice(&field.bytes),
                    }
                }
                wire::put_bytes(MODEL_GRAPH, &graph, &mut model);
            }
            MODEL_FUNCTIONS => embed.field(&field, Embed::function, &mut model)?,
            _ => model.extend_from_slice(&field.bytes),
        }
    }
    if model.len() > SIZE_LIMIT {
        return Err(OnnxError::TooLarge { bytes: model.len(), limit: SIZE_LIMIT });
    }
    Ok(model)
}

/// The files that an ONNX file's tensors have their data in, as it names them.
///
/// # Errors
/// A file that is none.
pub fn data_files(bytes: &[u8]) -> Result<BTreeSet<String>, OnnxError> {
    let model = ModelProto::decode(bytes)?;
    let mut files = BTreeSet::new();
    let mut graphs: Vec<&GraphProto> = model.graph.iter().collect();
    let mut nodes: Vec<&NodeProto> = model.functions.iter().flat_map(|function| &function.node).collect();
    while !graphs.is_empty() || !nodes.is_empty() {
        let mut tensors: Vec<&TensorProto> = Vec::new();
        for graph in std::mem::take(&mut graphs) {
            let sparse = graph.sparse_initializer.iter();
            tensors.extend(graph.initializer.iter().chain(sparse.flat_map(|s| s.values.iter().chain(&s.indices))));
            nodes.extend(&graph.node);
        }
        for attribute in std::mem::take(&mut nodes).into_iter().flat_map(|node| &node.attribute) {
            let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
            tensors.extend(attribute.t.iter().chain(&attribute.tensors));
            tensors.extend(sparse.flat_map(|s| s.values.iter().chain(&s.indices)));
            graphs.extend(attribute.g.iter().chain(&attribute.graphs));
        }
        let external = tensors.into_iter().filter(|tensor| tensor.data_location() == DataLocation::External);
        let locations = external.flat_map(|tensor| &tensor.external_data).filter(|entry| entry.key() == "location");
        files.extend(locations.map(|entry| entry.value().to_owned()));
    }
    Ok(files)
}

/// Brings in the data from a folder. Every method says whether there was any.
struct Embed<'a>(DataFiles<'a>);

impl Embed<'_> {
    /// Copies a field, with its message changed if need be.
    fn field<M: Message + Default>(
        &self,
        field: &wire::Field,
        change: impl Fn(&Self, &mut M) -> Result<bool, OnnxError>,
        to: &mut Vec<u8>,
    ) -> Result<(), OnnxError> {
        let mut message = M::decode(field.payload.clone())?;
        if change(self, &mut message)? {
            wire::put(field.tag, &message, to);
        } else {
            to.extend_from_slice(&field.bytes);
        }
        Ok(())
    }

    fn tensor(&self, tensor: &mut TensorProto) -> Result<bool, OnnxError> {
        if tensor.data_location() != DataLocation::External {
            return Ok(false);
        }
        let bytes =
            self.0.read(tensor).map_err(|fault| OnnxError::Tensor { tensor: tensor.name().to_owned(), fault })?;
        tensor.raw_data = Some(bytes);
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(true)
    }

    fn sparse(&self, sparse: &mut SparseTensorProto) -> Result<bool, OnnxError> {
        any(sparse.values.iter_mut().chain(&mut sparse.indices), |tensor| self.tensor(tensor))
    }

    fn node(&self, node: &mut NodeProto) -> Result<bool, OnnxError> {
        any(&mut node.attribute, |attribute| {
            Ok(any(attribute.t.iter_mut().chain(&mut attribute.tensors), |tensor| self.tensor(tensor))?
                | any(attribute.g.iter_mut().chain(&mut attribute.graphs), |graph| self.graph(graph))?
                | any(attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors), |s| self.sparse(s))?)
        })
    }

    fn graph(&self, graph: &mut GraphProto) -> Result<bool, OnnxError> {
        Ok(any(&mut graph.node, |node| self.node(node))?
            | any(&mut graph.initializer, |tensor| self.tensor(tensor))?
            | any(&mut graph.sparse_initializer, |sparse| self.sparse(sparse))?)
    }

    fn function(&self, function: &mut FunctionProto) -> Result<bool, OnnxError> {
        any(&mut function.node, |node| self.node(node))
    }
}

/// Changes all, and says whether any had something to change.
fn any<'a, T: 'a>(
    all: impl IntoIterator<Item = &'a mut T>,
    mut change: impl FnMut(&mut T) -> Result<bool, OnnxError>,
) -> Result<bool, OnnxError> {
    all.into_iter().try_fold(false, |changed, one| Ok(changed | change(one)?))
}

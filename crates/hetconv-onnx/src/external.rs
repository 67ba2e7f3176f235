//! Data that lies beside an ONNX file.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use crate::OnnxError;
use crate::export::SIZE_LIMIT;
use crate::proto::tensor_proto::DataLocation;
use crate::proto::{FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto};
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
/// let alone = hetconv_onnx::export(&model, &Default::default())?.bytes;
/// assert_eq!(hetconv_onnx::embed_external_data(&alone, ".".as_ref())?, alone);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn embed_external_data(bytes: &[u8], folder: &Path) -> Result<Vec<u8>, OnnxError> {
    let files = DataFiles::new(Some(folder));
    let model = Tensors(|tensor: &mut TensorProto| {
        if tensor.data_location() != DataLocation::External {
            return Ok(false);
        }
        let read = files.read(tensor);
        let bytes = read.map_err(|fault| OnnxError::Tensor { tensor: tensor.name().to_owned(), fault })?;
        tensor.raw_data = Some(bytes);
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(true)
    })
    .model(bytes)?;
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
    let mut files = BTreeSet::new();
    Tensors(|tensor: &mut TensorProto| {
        if tensor.data_location() == DataLocation::External {
            let locations = tensor.external_data.iter().filter(|entry| entry.key() == "location");
            files.extend(locations.map(|entry| entry.value().to_owned()));
        }
        Ok(false)
    })
    .model(bytes)?;
    Ok(files)
}

/// Goes through all tensors of a file with a function that may change one, and says whether it did. So do the methods,
/// of all tensors in what they are given.
struct Tensors<F>(F);

impl<F: FnMut(&mut TensorProto) -> Result<bool, OnnxError>> Tensors<F> {
    /// The file with its tensors changed. What has none that changed keeps its bytes.
    fn model(&mut self, bytes: &[u8]) -> Result<Vec<u8>, OnnxError> {
        let mut model = Vec::with_capacity(bytes.len());
        for field in fields(&Bytes::copy_from_slice(bytes))? {
            match field.tag {
                MODEL_GRAPH => {
                    let payload = field.payload()?;
                    let mut graph = Vec::with_capacity(payload.len());
                    for field in fields(payload)? {
                        match field.tag {
                            GRAPH_NODE => self.field(&field, Self::node, &mut graph)?,
                            GRAPH_INITIALIZER => self.field(&field, |of, tensor| of.0(tensor), &mut graph)?,
                            GRAPH_SPARSE_INITIALIZER => self.field(&field, Self::sparse, &mut graph)?,
                            _ => graph.extend_from_slice(&field.bytes),
                        }
                    }
                    wire::put_bytes(MODEL_GRAPH, &graph, &mut model);
                }
                MODEL_FUNCTIONS => self.field(&field, Self::function, &mut model)?,
                _ => model.extend_from_slice(&field.bytes),
            }
        }
        Ok(model)
    }

    /// Copies a field, with its message changed if need be.
    fn field<M: Message + Default>(
        &mut self,
        field: &wire::Field,
        change: impl Fn(&mut Self, &mut M) -> Result<bool, OnnxError>,
        to: &mut Vec<u8>,
    ) -> Result<(), OnnxError> {
        let mut message = M::decode(field.payload()?.clone())?;
        if change(self, &mut message)? {
            wire::put(field.tag, &message, to);
        } else {
            to.extend_from_slice(&field.bytes);
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: &mut SparseTensorProto) -> Result<bool, OnnxError> {
        any(sparse.values.iter_mut().chain(&mut sparse.indices), |tensor| self.0(tensor))
    }

    fn node(&mut self, node: &mut NodeProto) -> Result<bool, OnnxError> {
        any(&mut node.attribute, |attribute| {
            Ok(any(attribute.t.iter_mut().chain(&mut attribute.tensors), |tensor| self.0(tensor))?
                | any(attribute.g.iter_mut().chain(&mut attribute.graphs), |graph| self.graph(graph))?
                | any(attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors), |s| self.sparse(s))?)
        })
    }

    fn graph(&mut self, graph: &mut GraphProto) -> Result<bool, OnnxError> {
        Ok(any(&mut graph.node, |node| self.node(node))?
            | any(&mut graph.initializer, |tensor| self.0(tensor))?
            | any(&mut graph.sparse_initializer, |sparse| self.sparse(sparse))?)
    }

    fn function(&mut self, function: &mut FunctionProto) -> Result<bool, OnnxError> {
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

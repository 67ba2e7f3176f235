//! The model file: one `.safetensors` file that alone is enough to predict.
//!
//! The tensors stand under their names. The one metadata key, `hetconv`, holds JSON:
//! `{"format": 1, "graph": …, "classes": [names], "normalisation": {"mean": […], "std": […]}}`. Any safetensors reader
//! opens it. Everything in it is checked before it is believed.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Graph, GraphError, Shape, WeightError, WeightTensor, Weights, atomic_write};

/// The metadata key.
const KEY: &str = "hetconv";
/// The version this code writes and reads.
const FORMAT: u64 = 1;

/// A network ready to be run: what it computes, its numbers, what its inputs and outputs mean.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    /// The network.
    pub graph: Graph,
    /// Its weights.
    pub weights: Weights,
    /// A name for every output feature, or none at all.
    pub classes: Vec<String>,
    /// What was done to the images it was trained on.
    pub normalisation: Normalisation,
}

/// Pixels are scaled to 0…1, then `(x − mean) / std` per channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Mean of every input channel.
    pub mean: Vec<f32>,
    /// Standard deviation of every input channel.
    pub std: Vec<f32>,
}

impl Normalisation {
    /// Mean 0 and standard deviation 1: images as they are.
    pub fn identity(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], std: vec![1.0; channels] }
    }

    /// Whether it can be applied to images of so many channels: a finite mean and a positive, finite standard deviation for
    /// each.
    pub fn fits(&self, channels: usize) -> bool {
        let Self { mean, std } = self;
        let usable = mean.iter().all(|mean| mean.is_finite()) && std.iter().all(|std| std.is_finite() && *std > 0.0);
        usable && mean.len() == channels && std.len() == channels
    }
}

/// A model file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: FileFault,
}

/// What is wrong with a model file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// The file system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not a safetensors file: truncated, a header length or offsets that lie, header JSON that does not parse.
    #[error("not a safetensors file: {0}")]
    Container(#[from] SafeTensorError),
    /// A tensor of another element type.
    #[error("tensor `{name}` holds {dtype:?}, but only F32 is supported")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: Dtype,
    },
    /// A safetensors file of something else.
    #[error("no `hetconv` entry in the metadata: not a model file of this project")]
    NoMetadata,
    /// Metadata that is not what it should be.
    #[error("the `hetconv` metadata is not a model description: {0}")]
    Metadata(#[from] serde_json::Error),
    /// A file from another version.
    #[error("format version {found} is not supported; this version reads {FORMAT}")]
    Version {
        /// The version it states.
        found: String,
    },
    /// HetConv layers that claim more weights than the file holds.
    #[error("its HetConv layers claim more weights than the {elements} numbers in the file")]
    Claims {
        /// Numbers in the file.
        elements: u64,
    },
    /// A graph that is not a network.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Tensors that do not belong to the graph.
    #[error("the weights do not fit the graph: {0}")]
    Weights(#[from] WeightError),
    /// Class names that do not match the outputs.
    #[error("{found} class names for {outputs} outputs")]
    Classes {
        /// Number of names.
        found: usize,
        /// Number of outputs.
        outputs: usize,
    },
    /// A normalisation that cannot be applied.
    #[error("the normalisation needs a finite mean and a positive std for each of {channels} channels")]
    Normalisation {
        /// Channels of the input.
        channels: usize,
    },
}

#[derive(Serialize)]
struct Description<'a> {
    format: u64,
    graph: &'a Graph,
    classes: &'a [String],
    normalisation: &'a Normalisation,
}

#[derive(Deserialize)]
#[serde(rename = "Description", deny_unknown_fields)]
struct StoredDescription {
    #[serde(rename = "format")]
    _format: u64,
    graph: Graph,
    classes: Vec<String>,
    normalisation: Normalisation,
}

impl ModelFile {
    /// Writes the model to a file; see [`atomic_write`]. The same model always gives the same bytes.
    ///
    /// # Errors
    /// A model that does not fit together, or what the file system reports; both name the file.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        let write = || {
            let bytes = self.to_bytes()?;
            Ok(atomic_write(path, |file| file.write_all(&bytes))?)
        };
        write().map_err(|fault| FileError { path: path.to_owned(), fault })
    }

    /// Reads a model from a file.
    ///
    /// # Errors
    /// Whatever is wrong with the file, naming it.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let read = || Self::from_bytes(&std::fs::read(path)?);
        read().map_err(|fault| FileError { path: path.to_owned(), fault })
    }

    /// The bytes of the model's file.
    ///
    /// # Errors
    /// A model that does not fit together.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FileFault> {
        self.check()?;
        let Self { graph, weights, classes, normalisation } = self;
        let description = serde_json::to_string(&Description { format: FORMAT, graph, classes, normalisation })?;
        let bytes: Vec<(&str, &[usize], Vec<u8>)> = weights
            .iter()
            .map(|(name, tensor)| {
                let bytes = tensor.data.iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, tensor.shape.as_slice(), bytes)
            })
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (name, shape, bytes) in &bytes {
            views.push((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?));
        }
        let metadata = HashMap::from([(KEY.to_owned(), description)]);
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    /// The model in the bytes of a file.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileFault> {
        let tensors = SafeTensors::deserialize(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let description = header.metadata().as_ref().and_then(|entries| entries.get(KEY));
        let description: Value = serde_json::from_str(description.ok_or(FileFault::NoMetadata)?)?;
        check_version(&description)?;
        check_claims(&description, (bytes.len() / size_of::<f32>()) as u64)?;
        let StoredDescription { graph, classes, normalisation, .. } = serde_json::from_value(description)?;
        let weights = tensors.iter().map(|(name, view)| read_tensor(name, &view)).collect::<Result<Weights, _>>()?;
        let model = Self { graph, weights, classes, normalisation };
        model.check()?;
        Ok(model)
    }

    /// Whether graph, weights, class names and normalisation belong together.
    fn check(&self) -> Result<(), FileFault> {
        let shapes = self.graph.shapes()?;
        self.graph.validate()?;
        self.weights.check(&self.graph)?;
        let found = self.classes.len();
        match self.graph.outputs.first().map(|&output| shapes[output]) {
            Some(Shape::Features(outputs)) if found != 0 && found != outputs => {
                return Err(FileFault::Classes { found, outputs });
            }
            _ => {}
        }
        let channels = self.graph.input_shape().map_or(0, |[channels, ..]| channels);
        if self.normalisation.fits(channels) { Ok(()) } else { Err(FileFault::Normalisation { channels }) }
    }
}

fn read_tensor(name: &str, view: &TensorView<'_>) -> Result<(String, WeightTensor), FileFault> {
    if view.dtype() != Dtype::F32 {
        return Err(FileFault::Dtype { name: name.to_owned(), dtype: view.dtype() });
    }
    let (values, _) = view.data().as_chunks();
    let data = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok((name.to_owned(), WeightTensor { shape: view.shape().to_vec(), data }))
}

/// The version comes first: the rest of another version's description may look quite different.
fn check_version(description: &Value) -> Result<(), FileFault> {
    match description.get("format") {
        Some(format) if format.as_u64() == Some(FORMAT) => Ok(()),
        found => Err(FileFault::Version { found: found.map_or("missing".to_owned(), Value::to_string) }),
    }
}

/// A HetConv pattern is stored as two sizes and P, but held as a class for every channel and filter: a few bytes could
/// ask for gigabytes. A layer has N·M centre taps, so honest sizes are bounded by the numbers in the file. Only what is
/// written as objects is read, so that nothing is claimed where it is not looked for.
fn check_claims(description: &Value, elements: u64) -> Result<(), FileFault> {
    let graph = object(description.get("graph"), "graph")?;
    let nodes = graph.get("nodes").and_then(Value::as_array).ok_or_else(|| malformed("nodes"))?;
    let mut claimed = 0_u64;
    for node in nodes {
        let op = object(object(Some(node), "a node")?.get("op"), "op")?;
        let Some(kind) = op.get("kind").filter(|kind| !kind.is_string()) else { continue };
        let Some(pattern) = object(Some(kind), "kind")?.get("het") else { continue };
        let pattern = object(Some(pattern), "het")?;
        let size = |key| pattern.get(key).and_then(Value::as_u64).ok_or_else(|| malformed(key));
        claimed = claimed.saturating_add(size("in_channels")?.saturating_mul(size("out_channels")?));
    }
    if claimed > elements { Err(FileFault::Claims { elements }) } else { Ok(()) }
}

fn malformed(what: &str) -> FileFault {
    FileFault::Metadata(serde_json::Error::custom(format!("{what} is not what it should be")))
}

fn object<'a>(value: Option<&'a Value>, what: &str) -> Result<&'a serde_json::Map<String, Value>, FileFault> {
    value.and_then(Value::as_object).ok_or_else(|| malformed(what))
}

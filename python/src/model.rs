//! Model files, ONNX files and the networks of the paper, taken apart for Python.

use std::path::{Path, PathBuf};

use hetconv_graph::{Graph, ModelFile, ModelName, Normalisation, WeightTensor, Weights, atomic_write, zoo};
use hetconv_onnx::{ImportOptions, OnnxError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde::{Deserialize, Serialize};

use crate::error::{error, file_error, onnx_error};

/// What a file says besides its tensors; in Python, JSON.
#[derive(Serialize, Deserialize)]
pub struct Description {
    pub graph: Graph,
    pub classes: Vec<String>,
    /// `None` where nothing says how images are normalised.
    pub normalisation: Option<Normalisation>,
}

/// Description and tensors, each a shape and the bytes of its `f32` values.
type Parts<'py> = (String, Bound<'py, PyDict>);

/// Reads a model file, or an ONNX file by its extension; `image_size` is the height and width of images whose size an ONNX
/// file leaves open, and no other than it has.
pub fn open(path: &Path, image_size: Option<[usize; 2]>) -> PyResult<(Description, Weights)> {
    let (model, states_normalisation) = if hetconv_onnx::is_onnx(path) {
        let options = ImportOptions { image_size, ..ImportOptions::default() };
        let imported = hetconv_onnx::import_file(path, &options).map_err(|error| onnx_error(path, error))?;
        (imported.model, imported.states_normalisation)
    } else {
        (ModelFile::load(path).map_err(file_error)?, true)
    };
    let ModelFile { graph, weights, classes, normalisation } = model;
    if let (Some(asked), Some([_, own @ ..])) = (image_size, graph.input_shape())
        && asked != own
    {
        let ([height, width], [h, w]) = (own, asked);
        return Err(error(format!("{}: it is for images of {height}×{width}, not {h}×{w}", path.display())));
    }
    let normalisation = states_normalisation.then_some(normalisation);
    Ok((Description { graph, classes, normalisation }, weights))
}

/// Takes a file apart; `image_size` as of [`open`].
#[pyfunction]
pub fn read_model(py: Python<'_>, path: PathBuf, image_size: Option<[usize; 2]>) -> PyResult<Parts<'_>> {
    let (description, weights) = py.detach(|| open(&path, image_size))?;
    parts(py, &description, weights)
}

/// A network of the zoo with fresh weights, for images of this height and width if they are given.
#[pyfunction]
pub fn build_model<'py>(
    py: Python<'py>,
    name: &str,
    classes: Option<usize>,
    seed: u64,
    image_size: Option<[usize; 2]>,
) -> PyResult<Parts<'py>> {
    let name: ModelName = name.parse().map_err(error)?;
    let mut graph = zoo::build(&name, classes.unwrap_or(name.usual_classes())).map_err(error)?;
    if let (Some([height, width]), Some([channels, ..])) = (image_size, graph.input_shape()) {
        graph = graph.with_input([channels, height, width]).map_err(error)?;
    }
    let weights = py.detach(|| Weights::init(&graph, seed)).map_err(error)?;
    parts(py, &Description { graph, classes: Vec::new(), normalisation: None }, weights)
}

/// The names that [`build_model`] is usually asked for.
#[pyfunction]
pub fn network_names() -> Vec<String> {
    zoo::known_names()
}

/// Writes a model file.
#[pyfunction]
pub fn write_model(py: Python<'_>, path: PathBuf, description: &str, tensors: &Bound<'_, PyDict>) -> PyResult<()> {
    let Description { graph, classes, normalisation } = serde_json::from_str(description).map_err(error)?;
    let normalisation = normalisation.ok_or_else(|| {
        error(
            "the network does not say how its images are normalised, which a model file has to: give `normalisation`, the \
             mean and standard deviation of every channel (0 and 1 if it takes pixels from 0 to 1 as they are)",
        )
    })?;
    let mut weights = Weights::default();
    for (name, tensor) in tensors.iter() {
        let (shape, bytes): (Vec<usize>, Bound<'_, PyBytes>) = tensor.extract()?;
        let (values, _) = bytes.as_bytes().as_chunks();
        let data = values.iter().map(|&bytes| f32::from_ne_bytes(bytes)).collect();
        weights.insert(name.extract::<String>()?, WeightTensor { shape, data });
    }
    let model = ModelFile { graph, weights, classes, normalisation };
    py.detach(|| model.save(&path)).map_err(file_error)
}

/// Has an ONNX file say what a description says of classes and normalisation.
#[pyfunction]
pub fn state_in_onnx(py: Python<'_>, path: PathBuf, description: &str) -> PyResult<()> {
    let Description { classes, normalisation, .. } = serde_json::from_str(description).map_err(error)?;
    let io = |source| OnnxError::Io { path: path.clone(), source };
    let state = || {
        let mut bytes = std::fs::read(&path).map_err(io)?;
        if !classes.is_empty() {
            bytes = hetconv_onnx::state_classes(&bytes, &classes)?;
        }
        if let Some(normalisation) = &normalisation {
            bytes = hetconv_onnx::state_normalisation(&bytes, normalisation)?;
        }
        atomic_write(&path, |file| file.write_all(&bytes)).map_err(io)
    };
    py.detach(state).map_err(|error| onnx_error(&path, error))
}

fn parts<'py>(py: Python<'py>, description: &Description, weights: Weights) -> PyResult<Parts<'py>> {
    let description = serde_json::to_string(description).map_err(error)?;
    let tensors = PyDict::new(py);
    for (name, WeightTensor { shape, data }) in weights {
        let bytes: Vec<u8> = data.into_iter().flat_map(f32::to_ne_bytes).collect();
        tensors.set_item(name, (shape, PyBytes::new(py, &bytes)))?;
    }
    Ok((description, tensors))
}

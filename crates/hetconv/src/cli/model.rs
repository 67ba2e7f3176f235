//! What a person means by MODEL: a network's name, a model file or an ONNX file.

use std::path::Path;

use anyhow::Result;
use hetconv::graph::{ConvKind, Graph, ModelFile, ModelName, Op, Substitution, Weights, zoo};
use hetconv::onnx::{self, ImportOptions, OnnxError};

use super::usage::bad_usage;

/// A network with or without weights.
pub enum Model {
    Name(ModelName),
    File(Box<ModelFile>),
}

/// Reads the argument MODEL.
pub fn open(model: &str) -> Result<Model> {
    let path = Path::new(model);
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension == "onnx" {
        let imported = onnx::import_file(path, &ImportOptions::default()).map_err(|error| match error {
            // It names the file already.
            OnnxError::Io { .. } => error.into(),
            error => anyhow::Error::new(error).context(model.to_owned()),
        })?;
        return Ok(Model::File(Box::new(imported.model)));
    }
    // No network's name looks like this, so a file is meant even if it isn't there.
    if path.exists() || extension == "safetensors" || path.components().count() > 1 {
        return load(path).map(|file| Model::File(Box::new(file)));
    }
    Ok(Model::Name(model.parse()?))
}

/// Reads a model file.
pub fn load(path: &Path) -> Result<ModelFile> {
    Ok(ModelFile::load(path)?)
}

/// Builds a network for images of `[channels, height, width]`, and says where P or G did not fit.
pub fn build(name: &ModelName, classes: usize, input: Option<[usize; 3]>) -> Result<Graph> {
    let (graph, notes) = zoo::build_with_notes(name, classes)?;
    for note in notes {
        tracing::warn!("{name}: {note}");
    }
    match input {
        Some(input) => with_input(&graph, input),
        None => Ok(graph),
    }
}

/// The same network for images of `[channels, height, width]`.
pub fn with_input(graph: &Graph, input: [usize; 3]) -> Result<Graph> {
    let [channels, height, width] = input;
    graph.with_input(input).or_else(|fault| {
        let name = &graph.name;
        bad_usage!("{name} does not take images of {channels}×{height}×{width} (channels, height, width): {fault}")
    })
}

/// The network as it would be with standard convolutions: by its name, or, if its name is none of ours, with every
/// HetConv layer dense.
pub fn standard(graph: &Graph) -> Result<Graph> {
    if let (Ok(name), Some(input)) = (graph.name.parse::<ModelName>(), graph.input_shape()) {
        let classes =
            graph.outputs.first().and_then(|&output| graph.shapes().ok().map(|shapes| shapes[output].channels()));
        let standard = zoo::build(&name.with_substitution(Substitution::Standard), classes.unwrap_or(0))?;
        return Ok(standard.with_input(input)?);
    }
    let mut graph = graph.clone();
    for node in &mut graph.nodes {
        if let Op::Conv2d { kind: kind @ ConvKind::Het(_), .. } = &mut node.op {
            *kind = ConvKind::Standard;
        }
    }
    graph.validate()?;
    Ok(graph)
}

/// A network with weights: a name's are fresh.
pub fn with_weights(model: &str) -> Result<(Graph, Weights)> {
    match open(model)? {
        Model::Name(name) => {
            let graph = build(&name, name.usual_classes(), None)?;
            let weights = Weights::init(&graph, 0)?;
            Ok((graph, weights))
        }
        Model::File(file) => Ok((file.graph, file.weights)),
    }
}

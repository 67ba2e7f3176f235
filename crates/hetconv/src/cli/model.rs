//! What a person means by MODEL: a network's name or a model file.

use std::path::Path;

use anyhow::{Context, Result};
use hetconv::graph::{
    ConvKind, Graph, ModelFile, ModelName, Op, RewriteNote, RewriteOptions, Substitution, rewrite, zoo,
};

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
        bad_usage!("{model}: ONNX files are not supported; give a network's name or a .safetensors model file");
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

/// The number of classes that a network of this name usually has.
pub fn usual_classes(name: &ModelName) -> usize {
    let known = zoo::architectures().iter().find(|known| known.name == name.architecture);
    known.map_or(10, |known| known.classes)
}

/// Builds a network for images of `[channels, height, width]`, and says where P or G did not fit.
pub fn build(name: &ModelName, classes: usize, input: Option<[usize; 3]>) -> Result<Graph> {
    for note in notes(name, classes)? {
        tracing::warn!("{name}: {note}");
    }
    build_quietly(name, classes, input)
}

/// As [`build`], without a word.
pub fn build_quietly(name: &ModelName, classes: usize, input: Option<[usize; 3]>) -> Result<Graph> {
    let graph = zoo::build(name, classes)?;
    match input {
        Some(input) => with_input(&graph, input).with_context(|| does_not_fit(&graph, input)),
        None => Ok(graph),
    }
}

fn notes(name: &ModelName, classes: usize) -> Result<Vec<RewriteNote>> {
    let standard = zoo::build(&name.with_substitution(Substitution::Standard), classes)?;
    let (_, notes) = rewrite(&standard, &RewriteOptions::new(name.substitution))?;
    // The very P of a `pc` network is one that is chosen for each layer.
    Ok(if name.substitution == Substitution::PointwiseChannel { Vec::new() } else { notes })
}

fn does_not_fit(graph: &Graph, [channels, height, width]: [usize; 3]) -> String {
    format!("{} does not take images of {channels}×{height}×{width} (channels, height, width)", graph.name)
}

/// The same network for images of `[channels, height, width]`: its first convolutions get as many channels.
pub fn with_input(graph: &Graph, input: [usize; 3]) -> Result<Graph> {
    let mut graph = graph.clone();
    for id in 0..graph.nodes.len() {
        if let Op::Input { shape } = &mut graph.nodes[id].op {
            *shape = input;
            continue;
        }
        let reads_input = graph.nodes[id].inputs.iter().any(|&from| matches!(graph.nodes[from].op, Op::Input { .. }));
        if let Op::Conv2d { in_channels, kind: ConvKind::Standard, .. } = &mut graph.nodes[id].op
            && reads_input
        {
            *in_channels = input[0];
        }
    }
    graph.validate()?;
    Ok(graph)
}

/// The network as it would be with standard convolutions: by its name, or, if its name is none of ours, with every
/// HetConv layer dense.
pub fn standard(graph: &Graph) -> Result<Graph> {
    if let (Ok(name), Some(input)) = (graph.name.parse::<ModelName>(), graph.input_shape()) {
        let classes =
            graph.outputs.first().and_then(|&output| graph.shapes().ok().map(|shapes| shapes[output].channels()));
        let standard = zoo::build(&name.with_substitution(Substitution::Standard), classes.unwrap_or(0))?;
        return with_input(&standard, input);
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

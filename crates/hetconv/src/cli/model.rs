//! What a person means by MODEL: a network's name, a model file or an ONNX file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::builder::{OsStringValueParser, StringValueParser, TypedValueParser};
use hetconv::graph::{FileError, FileFault, Graph, ModelFile, ModelName, Substitution, Weights, zoo};
use hetconv::onnx::{self, ImportOptions, OnnxError};
use hetconv::train::{Checkpoint, CheckpointError, CheckpointFault, run_files};

use super::usage::bad_usage;

/// A file that was opened.
pub struct Opened {
    pub file: ModelFile,
    /// Whether it says how images are normalised.
    pub states_normalisation: bool,
}

/// A network with or without weights.
pub enum Model {
    Name(ModelName),
    File(Box<Opened>),
}

/// The height and width that images are to have.
#[derive(Clone, Copy)]
pub enum Size {
    /// What the file or the network's name says.
    Own,
    /// These where an ONNX file leaves them open, else its own.
    IfOpen([usize; 2]),
    /// These.
    Exactly([usize; 2]),
}

impl Size {
    /// What an ONNX file that leaves it open is read for.
    pub fn if_open(self) -> Option<[usize; 2]> {
        match self {
            Size::Own => None,
            Size::IfOpen(size) | Size::Exactly(size) => Some(size),
        }
    }
}

/// An argument that names a file: a run's folder stands for its model file.
pub fn file_argument() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(|given| of_run(&given).unwrap_or_else(|| given.into()))
}

/// As [`file_argument`], of one that may name a network as well, or is kept as it was written.
pub fn name_argument() -> impl TypedValueParser<Value = String> {
    StringValueParser::new().map(|given| {
        let is_name = given.parse::<ModelName>().is_ok();
        let of_run = of_run(given.as_ref()).filter(|_| !is_name);
        of_run.and_then(|model| Some(model.to_str()?.to_owned())).unwrap_or(given)
    })
}

/// The model file of a run's folder.
fn of_run(folder: &OsStr) -> Option<PathBuf> {
    Some(Path::new(folder).join(run_files::MODEL)).filter(|model| model.is_file())
}

/// Reads the argument MODEL; a name's size is left to whoever builds it.
pub fn open(model: &str, size: Size) -> Result<Model> {
    let path = Path::new(model);
    // No network's name looks like this, so a file is meant even if it isn't there.
    let is_file = onnx::is_onnx(path) || path.extension().is_some_and(|extension| extension == "safetensors");
    if is_file || path.is_file() || path.components().count() > 1 {
        return open_file(path, size).map(|opened| Model::File(Box::new(opened)));
    }
    match model.parse() {
        Err(_) if path.is_dir() => open_file(path, size).map(|opened| Model::File(Box::new(opened))),
        name => Ok(Model::Name(name?)),
    }
}

/// Reads a model file or an ONNX file.
pub fn open_file(path: &Path, size: Size) -> Result<Opened> {
    is_no_name(path)?;
    if !onnx::is_onnx(path) {
        let file = load(path)?;
        let file = ModelFile { graph: at_size(file.graph, size)?, ..file };
        return Ok(Opened { file, states_normalisation: true });
    }
    let options = ImportOptions { image_size: size.if_open(), ..ImportOptions::default() };
    let imported = onnx::import_file(path, &options).map_err(|error| match error {
        // It names the file already.
        OnnxError::Io { .. } => error.into(),
        error => anyhow::Error::new(error).context(path.display().to_string()),
    })?;
    has_size(path, &imported.model.graph, size)?;
    Ok(Opened { file: imported.model, states_normalisation: imported.states_normalisation })
}

/// Whether images have the size asked for. Paddings and reshapes of an ONNX file are for the size that it states, so that
/// none is read for another.
pub fn has_size(path: &Path, graph: &Graph, asked: Size) -> Result<()> {
    if let (Size::Exactly(asked), Some([_, own @ ..])) = (asked, graph.input_shape())
        && asked != own
    {
        let ([height, width], [h, w]) = (own, asked);
        bad_usage!("{} is for images of {height}×{width}; it cannot be read for {h}×{w}", path.display());
    }
    Ok(())
}

/// Whether nobody has given a network's name for a file, or a folder.
pub fn is_no_name(path: &Path) -> Result<()> {
    if path.is_dir() {
        let (folder, file) = (path.display(), run_files::MODEL);
        bad_usage!(
            "{folder} is a folder, without the {file} of a finished run; a model file or an ONNX file is needed"
        );
    }
    if !path.is_file() && path.to_str().is_some_and(|name| name.parse::<ModelName>().is_ok()) {
        bad_usage!("{} is a network's name; a model file or an ONNX file is needed", path.display());
    }
    Ok(())
}

/// Reads a model file, or the network of a run's checkpoint.
pub fn load(path: &Path) -> Result<ModelFile> {
    is_no_name(path)?;
    let is_checkpoint =
        path.extension().is_some_and(|of| ["pt", "pth", "ckpt"].iter().any(|checkpoint| of == *checkpoint));
    let is_named = path.extension().is_some_and(|extension| extension == "safetensors");
    if onnx::is_onnx(path) {
        let file = path.display();
        bad_usage!(
            "{file} is an ONNX file, and a model file (.safetensors) is needed; hetconv train --from {file} makes one"
        );
    }
    let found = ModelFile::load(path);
    if let Err(FileError { fault: FileFault::NoMetadata, .. }) = &found {
        match Checkpoint::load(path) {
            Ok(checkpoint) => return Ok(checkpoint.judged()),
            // No checkpoint either.
            Err(CheckpointError { fault: CheckpointFault::NoMetadata, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.map_err(|error| match error {
        _ if is_checkpoint => anyhow::Error::new(error).context(
            "PyTorch's checkpoints hold no network: export the model to ONNX, by torch.onnx.export or hetconv.torch.export_onnx",
        ),
        FileError { ref fault, .. } if !is_named && !matches!(fault, FileFault::Io(_)) => {
            anyhow::Error::new(error).context("a model file (.safetensors) or an ONNX file (.onnx) is needed")
        }
        error => error.into(),
    })
}

/// A model file, or an ONNX file with those that its tensors have their data in.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    let mut files = vec![path.to_owned()];
    // Whoever reads it says what is wrong with it.
    if let (true, Ok(bytes)) = (onnx::is_onnx(path), std::fs::read(path)) {
        files.extend(onnx::data_files(&bytes).unwrap_or_default().iter().map(|name| path.with_file_name(name)));
    }
    files
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

/// The same network for images of this size.
pub fn at_size(graph: Graph, size: Size) -> Result<Graph> {
    match (size, graph.input_shape()) {
        (Size::Exactly([height, width]), Some([channels, ..])) => with_input(&graph, [channels, height, width]),
        _ => Ok(graph),
    }
}

/// The network as it would be with standard convolutions: the zoo's, or, if it is none of the zoo's, with every HetConv
/// layer dense.
pub fn standard(graph: &Graph) -> Result<Graph> {
    if let Some(standard) = standard_of_zoo(graph)? {
        return Ok(standard);
    }
    let standard = graph.with_standard_convs();
    standard.validate()?;
    Ok(standard)
}

/// The zoo's standard network of the graph's name, if the graph is what the zoo has under that name or was pruned from it:
/// files from elsewhere may bear any name.
fn standard_of_zoo(graph: &Graph) -> Result<Option<Graph>> {
    let (Ok(name), Ok(like)) = (graph.name.parse::<ModelName>(), graph.classifier()) else { return Ok(None) };
    let of_zoo = |name: &ModelName| zoo::build(name, like.classes)?.with_input(like.image);
    let whole = ModelName { pruned: false, ..name.clone() };
    let Ok(of_name) = of_zoo(&whole) else { return Ok(None) };
    // Batch-norms may be folded and nodes have other names, but neither changes what convolutions cost.
    let (expected, found) = (of_name.cost()?, graph.cost()?);
    let same_macs = if name.pruned { found.macs <= expected.macs } else { found.macs == expected.macs };
    if !same_macs || found.stages != expected.stages {
        return Ok(None);
    }
    Ok(Some(of_zoo(&whole.with_substitution(Substitution::Standard))?))
}

/// A network with weights; a name's are fresh.
pub fn with_weights(model: &str, size: Size) -> Result<(Graph, Weights)> {
    match open(model, size)? {
        Model::Name(name) => {
            let graph = at_size(build(&name, name.usual_classes(), None)?, size)?;
            let weights = Weights::init(&graph, 0)?;
            Ok((graph, weights))
        }
        Model::File(opened) => Ok((opened.file.graph, opened.file.weights)),
    }
}

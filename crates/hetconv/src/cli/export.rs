//! `hetconv export`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::graph::{ModelFile, Normalisation, Weights, atomic_write};
use hetconv::onnx::{self, ExportOptions, Style};
use serde::Serialize;

use super::images::ImageSize;
use super::model::{self, Model, Opened};
use super::output::Output;
use super::usage::{bad_usage, keep_apart};

/// Write a network as an ONNX file
#[derive(clap::Args)]
#[command(after_help = "\
Styles: `standard` has a HetConv layer as a grouped convolution, a 1×1 convolution and their sum, which any runtime \
executes; `dense` as one convolution with zeros; `function` as a call of a function that the file brings along. Uneven \
classes, such as pruning leaves, take several grouped convolutions; a layer that would take more than eight is one \
convolution with zeros in every style, at the cost of a standard layer, and a warning names it. Batch-norm becomes part of \
the convolution before it unless --keep-batch-norm is given.

Examples:
  hetconv export runs/p4/model.safetensors -o p4.onnx
  hetconv export vgg16-cifar_p4 --seed 1 --style dense -o fresh.onnx")]
pub struct Args {
    /// A model file, the folder of its run, an ONNX file, or a network's name (see `hetconv list`) for fresh weights
    #[arg(value_parser = model::name_argument())]
    model: String,

    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// How HetConv layers are written
    #[arg(long, value_enum, default_value_t = StyleName::Standard)]
    style: StyleName,

    /// Leave batch-norms as they are
    #[arg(long)]
    keep_batch_norm: bool,

    /// Where fresh weights come from, of a network's name [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    image_size: ImageSize,
}

/// [`Style`] as the command line names it.
#[derive(Clone, Copy, clap::ValueEnum)]
enum StyleName {
    Standard,
    Dense,
    Function,
}

#[derive(Serialize)]
struct Exported {
    model: String,
    file: String,
    bytes: usize,
    /// HetConv layers that are written dense, though another style was asked for.
    dense_layers: Vec<String>,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let size = args.image_size.get();
    // Read again, it would be taken for a model file. What is no file, such as a pipe, is read by others.
    let is_file = args.output.symlink_metadata().map_or(true, |found| found.is_file());
    if is_file && !onnx::is_onnx(&args.output) {
        bad_usage!("an ONNX file is written, whose name has to end in .onnx, not {}", args.output.display());
    }
    let Opened { file: model, states_normalisation } = match model::open(&args.model, size)? {
        Model::File(_) if args.seed.is_some() => {
            bad_usage!("--seed is for a network's name; {} has weights", args.model)
        }
        Model::File(opened) => {
            keep_apart(std::slice::from_ref(&args.output), &model::files_of(Path::new(&args.model)))?;
            *opened
        }
        Model::Name(name) => {
            let graph = model::at_size(model::build(&name, name.usual_classes(), None)?, size)?;
            let channels = graph.input_shape().map_or(0, |[channels, ..]| channels);
            let weights = Weights::init(&graph, args.seed.unwrap_or(0))?;
            let normalisation = Normalisation::identity(channels);
            let file = ModelFile { graph, weights, classes: Vec::new(), normalisation };
            Opened { file, states_normalisation: false }
        }
    };
    let style = match args.style {
        StyleName::Standard => Style::Standard,
        StyleName::Dense => Style::Dense,
        StyleName::Function => Style::Function,
    };
    let fold_batch_norm = !args.keep_batch_norm;
    let options = ExportOptions { style, fold_batch_norm, states_normalisation, ..ExportOptions::default() };
    let onnx::Exported { bytes, dense_layers } = onnx::export(&model, &options).with_context(|| args.model.clone())?;
    let file = args.output.display().to_string();
    atomic_write(&args.output, |to| to.write_all(&bytes)).with_context(|| format!("cannot write {file}"))?;
    if !dense_layers.is_empty() {
        tracing::warn!(
            "written as dense convolutions, at the cost of standard layers, because their classes are too uneven: `{}`",
            dense_layers.join("`, `")
        );
    }
    let exported = Exported { model: model.graph.name, file, bytes: bytes.len(), dense_layers };
    output.result(&exported, |exported| format!("{}: {}, {} bytes", exported.file, exported.model, exported.bytes))
}

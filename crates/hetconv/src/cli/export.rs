//! `hetconv export`

use std::path::PathBuf;

use anyhow::Result;
use hetconv::graph::{ModelFile, Normalisation, Weights, atomic_write};
use hetconv::onnx::{self, ExportOptions, Style};
use serde::Serialize;

use super::images::ImageSize;
use super::model::{self, Model};
use super::output::Output;

/// Write a network as an ONNX file
#[derive(clap::Args)]
#[command(after_help = "\
Styles: `standard` has every HetConv layer as a grouped convolution, a 1×1 convolution and their sum, which any runtime
executes; `dense` as one convolution with zeros; `function` as a call of a function that the file brings along. Batch-norm
becomes part of the convolution before it unless --keep-batch-norm is given.

Examples:
  hetconv export runs/p4/model.safetensors -o p4.onnx
  hetconv export vgg16-cifar_p4 --seed 1 --style dense -o fresh.onnx")]
pub struct Args {
    /// A model file, an ONNX file, or a network's name (see `hetconv list`) for fresh weights
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

    /// Where fresh weights come from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

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
    file: PathBuf,
    bytes: usize,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let size = args.image_size.get();
    let model = match model::open(&args.model, size)? {
        Model::File(file) => *file,
        Model::Name(name) => {
            let graph = model::at_size(model::build(&name, name.usual_classes(), None)?, size)?;
            let channels = graph.input_shape().map_or(0, |[channels, ..]| channels);
            let weights = Weights::init(&graph, args.seed)?;
            ModelFile { graph, weights, classes: Vec::new(), normalisation: Normalisation::identity(channels) }
        }
    };
    let style = match args.style {
        StyleName::Standard => Style::Standard,
        StyleName::Dense => Style::Dense,
        StyleName::Function => Style::Function,
    };
    let options = ExportOptions { style, fold_batch_norm: !args.keep_batch_norm, ..ExportOptions::default() };
    let bytes = onnx::export(&model, &options)?;
    atomic_write(&args.output, |file| file.write_all(&bytes))?;
    let exported = Exported { model: model.graph.name, file: args.output.clone(), bytes: bytes.len() };
    output.result(&exported, |exported| {
        format!("{}: {}, {} bytes", exported.file.display(), exported.model, exported.bytes)
    })
}

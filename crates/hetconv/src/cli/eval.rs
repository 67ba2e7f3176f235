//! `hetconv eval`

use std::mem;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::train::{Dataset, LoadOptions, evaluate_with};
use hetconv::units::{duration, grouped};
use serde::Serialize;

use super::classifier::Classifier;
use super::data::open_data_for;
use super::give_memory_back;
use super::images::{ImageSize, Normalise};
use super::model::{self, Opened};
use super::output::Output;
use super::progress::StepProgress;
use super::train::{hold_out, warn_of_other_images};
use super::usage::bad_usage;

/// Measure a trained network on the held-out images of a data set
#[derive(clap::Args)]
#[command(after_help = "\
Image files of another size than the network takes are seen as seven eighths of their middle square, scaled to it. \
In JSON top1 and top5 are shares from 0 to 1, and the loss is in nats. Convolutions sum directly unless --fast is given.

Examples:
  hetconv eval runs/resnet20_p4/model.safetensors --data cifar10
  hetconv eval resnet18.onnx --data photos --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225")]
pub struct Args {
    /// A model file, the folder of its run, or an ONNX file
    #[arg(value_parser = model::file_argument())]
    file: PathBuf,

    /// The data set: a path or a known name (see `hetconv data list`)
    #[arg(long, value_name = "PATH")]
    data: String,

    /// Hold out so many percent of the images, as in training [default: as in FILE's own run]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..100))]
    hold_out: Option<u8>,

    /// Images in a batch
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,

    /// Allow Winograd's algorithm: results differ by rounding
    #[arg(long)]
    fast: bool,

    #[command(flatten)]
    image_size: ImageSize,

    #[command(flatten)]
    normalise: Normalise,
}

#[derive(Serialize)]
struct Evaluated {
    model: String,
    top1: f64,
    top5: f64,
    loss: f64,
    images: usize,
    seconds: f64,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    give_memory_back();
    let Opened { mut file, states_normalisation } = model::open_file(&args.file, args.image_size.get())?;
    let hold_out = hold_out(args.hold_out, &args.file, &args.data)?;
    let options = LoadOptions { hold_out, ..LoadOptions::default() };
    let data = open_data_for(&file.graph, args.file.display(), &args.data, options)?;
    warn_of_other_images(&args.file, &args.data, hold_out, &data.test);
    let [_, _, channels] = data.test.shape();
    let normalisation = args.normalise.or(&file.normalisation, states_normalisation, channels)?;
    let batch = args.batch_size as usize;
    let network = Classifier::new(&file.graph, mem::take(&mut file.weights), batch, !args.fast);
    let mut network = network.with_context(|| args.file.display().to_string())?;
    same_classes(&args.file, &file.classes, network.classes(), &data)?;
    let classes = network.classes();
    let mut progress = StepProgress::new(&file.graph.name, "images");
    let mut watch = |done, images| progress.at(done, images);
    let logits = |pixels: Vec<f32>, images: usize| network.logits(&pixels, images);
    let found = evaluate_with(classes, &data.test, &normalisation, batch, &mut watch, logits)?;
    drop(progress);
    let evaluated = Evaluated {
        model: file.graph.name,
        top1: found.top1,
        top5: found.top5,
        loss: found.loss,
        images: found.images,
        seconds: found.seconds,
    };
    output.result(&evaluated, |found| {
        format!(
            "{}: top-1 {:.2} %, top-5 {:.2} %, loss {:.4} on {} images, in {}",
            found.model,
            100.0 * found.top1,
            100.0 * found.top5,
            found.loss,
            grouped(found.images as u64),
            duration(found.seconds)
        )
    })
}

/// Whether a network knows the classes of a data set.
pub fn same_classes(file: &Path, classes: &[String], number: usize, data: &Dataset) -> Result<()> {
    if number != data.classes.len() || (!classes.is_empty() && classes != data.classes) {
        bad_usage!(
            "{} was trained for other classes than those of {}: {} against {}",
            file.display(),
            data.name,
            name_some(classes, number),
            name_some(&data.classes, data.classes.len())
        );
    }
    Ok(())
}

fn name_some(classes: &[String], number: usize) -> String {
    let first: Vec<&str> = classes.iter().take(3).map(String::as_str).collect();
    let more = if classes.len() > first.len() { ", …" } else { "" };
    if first.is_empty() { format!("{number}") } else { format!("{number} ({}{more})", first.join(", ")) }
}

//! `hetconv predict`

use std::mem;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::graph::ModelFile;
use hetconv::train::{Augment, Images, PixelTable, Split, fill_batch};
use serde::Serialize;

use super::classifier::Classifier;
use super::give_memory_back;
use super::images::{ImageSize, Normalise};
use super::model::{self, Opened};
use super::output::{Output, table};
use super::usage::bad_usage;

/// Say what a trained network sees in images
#[derive(clap::Args)]
#[command(after_help = "\
Each image (JPEG, PNG or BMP) is seen as evaluation sees it: if it has not the size the network takes, seven eighths of the \
middle square are scaled to it.

Example:
  hetconv predict runs/resnet20_p4/model.safetensors cat.jpg dog.png --top 3")]
pub struct Args {
    /// A model file, the folder of its run, or an ONNX file
    #[arg(value_parser = model::file_argument())]
    file: PathBuf,

    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// How many of the likeliest classes to name
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,

    #[command(flatten)]
    image_size: ImageSize,

    #[command(flatten)]
    normalise: Normalise,
}

#[derive(Serialize)]
struct Predicted {
    image: String,
    /// The likeliest first.
    classes: Vec<Class>,
}

#[derive(Serialize)]
struct Class {
    label: String,
    probability: f64,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    give_memory_back();
    let Opened { mut file, states_normalisation } = model::open_file(&args.file, args.image_size.get())?;
    let channels = file.graph.input_shape().map_or(0, |[channels, ..]| channels);
    file.normalisation = args.normalise.or(&file.normalisation, states_normalisation, channels)?;
    let network = Classifier::new(&file.graph, mem::take(&mut file.weights), 1, true);
    let mut network = network.with_context(|| args.file.display().to_string())?;
    let predictions: Vec<Predicted> =
        args.images.iter().map(|image| predict(&file, &mut network, image, args.top.into())).collect::<Result<_>>()?;
    output.result(&predictions, |predictions| {
        let mut rows = table(&["image", "class", "probability"], &["image", "class"]);
        for Predicted { image, classes } in predictions {
            for (i, class) in classes.iter().enumerate() {
                let image = if i == 0 { image.as_str() } else { "" };
                rows.add_row([image, &class.label, &format!("{:.2} %", 100.0 * class.probability)]);
            }
        }
        rows.to_string()
    })
}

fn predict(file: &ModelFile, network: &mut Classifier, path: &Path, top: usize) -> Result<Predicted> {
    let [channels, height, width] = file.graph.input_shape().unwrap_or_default();
    if height != width {
        bad_usage!("the network takes images of {height}×{width} pixels; only square ones can be made from files");
    }
    let image = Split::new(Images::read(path, height, channels)?, vec![0])?;
    let mut pixels = vec![0.0; channels * height * width];
    fill_batch(&image, &[0], &Augment::NONE, &PixelTable::new(&file.normalisation), 0, 0, &mut pixels)?;
    let logits = network.logits(&pixels, 1).with_context(|| path.display().to_string())?;
    let probabilities = softmax(logits.into_iter().map(f64::from).collect());
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let class = |&i: &usize| Class {
        label: file.classes.get(i).cloned().unwrap_or_else(|| i.to_string()),
        probability: probabilities[i],
    };
    Ok(Predicted { image: path.display().to_string(), classes: order.iter().take(top).map(class).collect() })
}

fn softmax(logits: Vec<f64>) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.into_iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::softmax;

    #[test]
    fn probabilities_add_up_whatever_the_logits() {
        let found = softmax(vec![0.0, 3f64.ln()]);
        assert!((found[0] - 0.25).abs() < 1e-12 && (found[1] - 0.75).abs() < 1e-12);
        let large = softmax(vec![1000.0, 1000.0, -1000.0]);
        assert!((large[0] - 0.5).abs() < 1e-12 && large[2] == 0.0);
    }
}

//! `hetconv summary`

use std::collections::HashMap;

use anyhow::{Context, Result};
use hetconv::graph::{Cost, Graph, LayerCost};
use hetconv::runtime::{Algorithm, Options, Plan};
use hetconv::units::{count, grouped};
use serde::Serialize;

use super::model::{self, Model, Size};
use super::output::{Output, table};
use super::usage::bad_usage;

/// Count a network layer by layer: parameters, MACs, stages
#[derive(clap::Args)]
#[command(after_help = "\
MACs are multiply-accumulates of convolutions and linear layers, which the HetConv paper calls FLOPs; biases and \
batch-norm are not counted. FLOPs here are 2 · MACs. Stages are convolutions that have to run one after another.

Examples:
  hetconv summary vgg16-cifar_p4
  hetconv summary resnet50_p4 --input 1,3,256,256 --format json
  hetconv summary runs/p4/model.safetensors
  hetconv summary network.onnx")]
pub struct Args {
    /// A network's name (see `hetconv list`), a model file, the folder of its run, or an ONNX file
    #[arg(value_parser = model::name_argument())]
    model: String,

    /// Images, channels, height, width; MACs and FLOPs are those of so many images
    #[arg(long, value_name = "N,C,H,W", value_delimiter = ',', num_args = 1)]
    input: Vec<usize>,

    /// Number of classes, for a name
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    classes: Option<u32>,

    /// Count one addition per output element of a convolution or linear layer as well, as the paper does
    #[arg(long)]
    count_additions: bool,
}

/// The result, as JSON has it.
#[derive(Serialize)]
struct Summary {
    model: String,
    /// Images, channels, height, width.
    input: [usize; 4],
    params: u64,
    macs: u64,
    flops: u64,
    macs_standard: u64,
    macs_reduction_percent: f64,
    stages: u64,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    /// MACs are those of all images, and of additions if they are counted.
    #[serde(flatten)]
    cost: LayerCost,
    /// How the runtime computes it: `direct` is a single pass over the taps that don't fall on padding.
    algorithm: Option<String>,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let (images, input) = match args.input[..] {
        [] => (1, None),
        [0, ..] => bad_usage!("--input {}: at least one image is needed", join(&args.input)),
        [images, channels, height, width] => (images, Some([channels, height, width])),
        _ => bad_usage!("--input {}: four numbers are needed, N,C,H,W, such as 1,3,32,32", join(&args.input)),
    };
    let size = input.map_or(Size::Own, |[_, height, width]| Size::Exactly([height, width]));
    let graph = match model::open(&args.model, size)? {
        Model::Name(name) => {
            let classes = args.classes.map_or_else(|| name.usual_classes(), |classes| classes as usize);
            model::build(&name, classes, input)?
        }
        Model::File(_) if args.classes.is_some() => bad_usage!("--classes is for names; a model file has its own"),
        Model::File(opened) => match input {
            Some(input) => model::with_input(&opened.file.graph, input)?,
            None => opened.file.graph,
        },
    };
    let summary = summarise(&graph, images as u64, args.count_additions)?;
    output.result(&summary, |summary| text(summary, args.count_additions))
}

fn summarise(graph: &Graph, images: u64, count_additions: bool) -> Result<Summary> {
    let [channels, height, width] = graph.input_shape().context("the network has no input")?;
    let times_images = |n: u64| -> Result<u64> {
        let Some(all) = n.checked_mul(images) else { bad_usage!("--input: {images} images are too many to count") };
        Ok(all)
    };
    let total = |cost: &Cost| times_images(if count_additions { cost.macs_with_additions() } else { cost.macs });
    let cost = graph.cost()?;
    let (macs, macs_standard) = (total(&cost)?, total(&model::standard(graph)?.cost()?)?);
    let options = Options { batch: images as usize, ..Options::default() };
    let algorithms: HashMap<String, Algorithm> = Plan::algorithms(graph, &options)?.into_iter().collect();
    let layer = |layer: &LayerCost| {
        let additions = if count_additions { layer.additions } else { 0 };
        let macs = times_images(layer.macs + additions)?;
        Ok(Layer {
            cost: LayerCost { macs, ..layer.clone() },
            algorithm: algorithms.get(&layer.name).map(ToString::to_string),
        })
    };
    // An addition is one floating-point operation, a MAC two.
    let additions = if count_additions { cost.activations } else { 0 };
    Ok(Summary {
        model: graph.name.clone(),
        input: [images as usize, channels, height, width],
        params: cost.params,
        macs,
        flops: times_images(cost.flops + additions)?,
        macs_standard,
        macs_reduction_percent: reduction(macs, macs_standard),
        stages: cost.stages,
        layers: cost.layers.iter().map(layer).collect::<Result<_>>()?,
    })
}

/// By how much `macs` is less than `standard`, in per cent.
pub fn reduction(macs: u64, standard: u64) -> f64 {
    if standard == 0 { 0.0 } else { 100.0 * (1.0 - macs as f64 / standard as f64) }
}

fn text(summary: &Summary, count_additions: bool) -> String {
    let heads = ["layer", "op", "kernel", "in→out", "size", "P", "params", "MACs", "stages", "algorithm"];
    let mut layers = table(&heads, &["layer", "op", "algorithm"]);
    let (batch_norms, others): (Vec<&Layer>, Vec<&Layer>) =
        summary.layers.iter().partition(|layer| layer.cost.op == "batch_norm");
    for Layer { cost: layer, algorithm } in others {
        layers.add_row([
            layer.name.clone(),
            layer.kind.unwrap_or(layer.op).to_owned(),
            layer.kernel.map_or(String::new(), |[h, w]| format!("{h}×{w}")),
            format!("{}→{}", layer.in_channels, layer.out_channels),
            format!("{}×{}", layer.out_height, layer.out_width),
            layer.parts.map_or(String::new(), |parts| parts.to_string()),
            grouped(layer.params),
            grouped(layer.macs),
            layer.stages.to_string(),
            algorithm.clone().unwrap_or_default(),
        ]);
    }
    if !batch_norms.is_empty() {
        let mut row = vec![String::new(); heads.len()];
        row[0] = format!("{} batch-norms", batch_norms.len());
        row[6] = grouped(batch_norms.iter().map(|layer| layer.cost.params).sum());
        layers.add_row(row);
    }
    let [n, channels, height, width] = summary.input;
    let images = if n == 1 { "an image".to_owned() } else { format!("{n} images") };
    let macs_are = if count_additions { "MACs and one addition per output element" } else { "MACs" };
    let versus = match summary.macs_reduction_percent {
        percent if summary.macs == summary.macs_standard && percent == 0.0 => "as the standard network".to_owned(),
        percent if percent >= 0.0 => format!("{percent:.2} % fewer than the standard network"),
        percent => format!("{:.2} % more than the standard network", -percent),
    };
    format!(
        "{}, {images} of {channels}×{height}×{width}\n\n{layers}\n\n\
         Parameters  {}\n\
         MACs        {} ({}), {versus} ({})\n\
         FLOPs       {} ({}) = 2 · MACs{}\n\
         Stages      {} convolutions one after another\n\n\
         Counted: {macs_are} of convolutions and linear layers.",
        summary.model,
        grouped(summary.params),
        grouped(summary.macs),
        count(summary.macs),
        grouped(summary.macs_standard),
        grouped(summary.flops),
        count(summary.flops),
        if count_additions { ", an addition being one" } else { "" },
        summary.stages,
    )
}

fn join(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

//! `hetconv train`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::graph::Graph;
use hetconv::train::{Dataset, Device, LoadOptions, RecipeName, RunConfig, Summary, TrainJob, run_files, train};
use hetconv::units::{count, duration, grouped};

use super::data::open_data;
use super::model;
use super::output::Output;
use super::progress::TrainingProgress;
use super::usage::bad_usage;

/// Train a network
#[derive(clap::Args)]
#[command(after_help = "\
The run's folder gets config.toml, metrics.csv (a line an epoch), checkpoints/, and at the end summary.json and
model.safetensors. A run that was stopped, however roughly, goes on with --resume and ends with the very same weights.

Examples:
  hetconv train --model resnet20_p4 --data cifar10 --epochs 10
  hetconv train --resume --out runs/resnet20_p4")]
pub struct Args {
    /// The network (see `hetconv list`)
    #[arg(long, value_name = "NAME", required_unless_present = "resume")]
    model: Option<String>,

    /// The data set: a path or a known name (see `hetconv data list`) [default: synthetic]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,

    /// The run's folder [default: runs/NAME]
    #[arg(long, value_name = "DIR", required_unless_present = "model")]
    out: Option<PathBuf>,

    /// Go on with the run in the folder, with its own settings; without one there, begin it
    #[arg(long)]
    resume: bool,

    #[command(flatten)]
    settings: Settings,

    /// Seed of weights, order and augmentation [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Add the gradients of so many batches before each step [default: 1]
    #[arg(long, value_name = "N")]
    accumulate: Option<u64>,

    /// Make a checkpoint every so many steps, besides those after every epoch
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<u64>,

    /// Where to compute: cpu, cuda, vulkan or metal; all but cpu need a build with that feature [default: cpu]
    #[arg(long, value_name = "DEVICE", value_parser = parse_device)]
    device: Option<Device>,
}

/// Settings that several commands take.
#[derive(clap::Args, Clone)]
pub struct Settings {
    /// The recipe: `paper` (long) or `onecycle` (short) [default: onecycle]
    #[arg(long, value_name = "RECIPE", value_parser = parse_recipe)]
    pub recipe: Option<RecipeName>,

    /// Passes over the training images [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,

    /// Images in a batch [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,

    /// Highest learning rate [default: the recipe's]
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,

    /// Learn from so many images only, the same share of every class
    #[arg(long, value_name = "N")]
    pub limit_train: Option<usize>,

    /// Scale the middle square of every image file to so many pixels
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
}

fn parse_recipe(text: &str) -> Result<RecipeName, String> {
    text.parse().map_err(|error: hetconv::train::UnknownRecipe| error.to_string())
}

fn parse_device(text: &str) -> Result<Device, String> {
    let known = [Device::Cpu, Device::Cuda, Device::Vulkan, Device::Metal];
    let found = known.into_iter().find(|device| device.to_string() == text);
    found.ok_or_else(|| "there are cpu, cuda, vulkan and metal".to_owned())
}

impl Settings {
    /// A run's configuration, with the recipe's own settings where none are given.
    pub fn config(&self, model: &str, data: &str, recipe: RecipeName) -> Result<RunConfig> {
        let own = RunConfig::new(model, data, self.recipe.unwrap_or(recipe))?;
        Ok(RunConfig {
            epochs: self.epochs.unwrap_or(own.epochs),
            batch_size: self.batch_size.unwrap_or(own.batch_size),
            lr: self.lr.unwrap_or(own.lr),
            limit_train: self.limit_train,
            image_size: self.image_size,
            ..own
        })
    }
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let (config, out) = configure(args)?;
    config.validate()?;
    let data = data_of(&config)?;
    let (graph, recipe) = (network(&config, &data)?, config.complete_recipe()?);
    let job = TrainJob { config: &config, graph, data: &data, recipe, out: &out, resume: args.resume };
    let summary = train_one(job, &config.model)?;
    output.result(&summary, |summary| text(summary, &out))
}

/// Opens a run's data set.
pub fn data_of(config: &RunConfig) -> Result<Dataset> {
    open_data(&config.data, &LoadOptions { image_size: config.image_size, limit_train: config.limit_train })
}

/// The network of a run, for the images and classes of its data.
pub fn network(config: &RunConfig, data: &Dataset) -> Result<Graph> {
    let [height, width, channels] = data.train.images().shape();
    model::build(&config.model.parse()?, data.classes.len(), Some([channels, height, width]))
}

/// Trains one network, with progress under this name.
pub fn train_one(job: TrainJob<'_>, name: &str) -> Result<Summary> {
    let out = job.out;
    train(job, &mut TrainingProgress::new(name)).with_context(|| format!("training {name} in {} failed", out.display()))
}

/// The settings of the run, and its folder.
fn configure(args: &Args) -> Result<(RunConfig, PathBuf)> {
    let out = match (&args.out, &args.model) {
        (Some(out), _) => out.clone(),
        (None, Some(model)) => Path::new("runs").join(model),
        (None, None) => bad_usage!("--out or --model is needed to find the run's folder"),
    };
    let stored = out.join(run_files::CONFIG);
    if args.resume && stored.is_file() {
        let mut config = RunConfig::load(&stored)?;
        agree(args, &config, &stored)?;
        config.checkpoint_every = args.checkpoint_every.or(config.checkpoint_every);
        return Ok((config, out));
    }
    let Some(model) = &args.model else {
        bad_usage!("there is no run in {} to go on with; to begin one, give its --model", out.display());
    };
    let data = args.data.as_deref().unwrap_or("synthetic");
    let config = args.settings.config(model, data, RecipeName::OneCycle)?;
    let config = RunConfig {
        seed: args.seed.unwrap_or(0),
        accumulate: args.accumulate.unwrap_or(1),
        checkpoint_every: args.checkpoint_every,
        device: args.device.unwrap_or_default(),
        ..config
    };
    Ok((config, out))
}

/// Whether the settings given are those of the run that is to go on.
fn agree(args: &Args, config: &RunConfig, stored: &Path) -> Result<()> {
    let Settings { recipe, epochs, batch_size, lr, limit_train, image_size } = &args.settings;
    let text = |value: Option<String>, stored: Option<String>| value.map(|value| (value, stored));
    let given = [
        ("model", text(args.model.clone(), Some(config.model.clone()))),
        ("data", text(args.data.clone(), Some(config.data.clone()))),
        ("recipe", text(recipe.map(|v| v.to_string()), Some(config.recipe.to_string()))),
        ("epochs", text(epochs.map(|v| v.to_string()), Some(config.epochs.to_string()))),
        ("batch-size", text(batch_size.map(|v| v.to_string()), Some(config.batch_size.to_string()))),
        ("lr", text(lr.map(|v| v.to_string()), Some(config.lr.to_string()))),
        ("seed", text(args.seed.map(|v| v.to_string()), Some(config.seed.to_string()))),
        ("accumulate", text(args.accumulate.map(|v| v.to_string()), Some(config.accumulate.to_string()))),
        ("limit-train", text(limit_train.map(|v| v.to_string()), config.limit_train.map(|v| v.to_string()))),
        ("image-size", text(image_size.map(|v| v.to_string()), config.image_size.map(|v| v.to_string()))),
        ("device", text(args.device.map(|v| v.to_string()), Some(config.device.to_string()))),
    ];
    for (flag, values) in given {
        if let Some((given, stored_value)) = values
            && Some(&given) != stored_value.as_ref()
        {
            let stored_value = stored_value.unwrap_or_else(|| "nothing".to_owned());
            bad_usage!(
                "--{flag} {given}, but {} says {stored_value}; leave the flag out, or begin another run in another --out",
                stored.display()
            );
        }
    }
    Ok(())
}

fn text(summary: &Summary, out: &Path) -> String {
    format!(
        "{}: top-1 {:.2} %, top-5 {:.2} %, loss {:.4} on {} held-out images\n\
         {} parameters, {} MACs; {} {} in {} ({:.0} images/s)\n\
         {}",
        summary.model,
        100.0 * summary.eval_top1,
        100.0 * summary.eval_top5,
        summary.eval_loss,
        grouped(summary.eval_images as u64),
        count(summary.params),
        count(summary.macs),
        summary.epochs,
        if summary.epochs == 1 { "epoch" } else { "epochs" },
        duration(summary.seconds),
        summary.images_per_second,
        out.join(run_files::MODEL).display()
    )
}

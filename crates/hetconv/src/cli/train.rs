//! `hetconv train`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::graph::{Classifier, Graph, ModelFile};
use hetconv::train::{
    Dataset, Device, LoadOptions, RecipeName, RunConfig, Split, Summary, TrainError, TrainJob, TrainObserver,
    fine_tune, is_same_data, name_of, run_files, train,
};
use hetconv::units::{count, duration, grouped, rate};

use super::data::open_data_at_size;
use super::eval::same_classes;
use super::images::{Normalise, join, or_stated};
use super::model::{self, Opened, Size};
use super::output::Output;
use super::progress::TrainingProgress;
use super::runs;
use super::usage::bad_usage;

/// Train a network
#[derive(clap::Args)]
#[command(after_help = "\
The run's folder gets config.toml, metrics.csv (a line an epoch), checkpoints/, and at the end summary.json and \
model.safetensors. A run that was stopped, however roughly, goes on with --resume and ends with the very same weights. Ctrl-C makes a checkpoint first.

Photos of any size, with --image-size: training sees a random part of each (8 to 100 % of its area), mirrored every other \
time, evaluation seven eighths of the middle; a step learns from --batch-size times --accumulate of them.

With --from the network of a file is trained further, such as one that `hetconv convert` has made cheaper: its weights are \
where the run begins, and images are normalised as they were for them. Batches are smaller then, of 64 images, and rates \
lower. FILE is needed until the run has come to its end, and has its model. Of the model file of a run, what was held out and whether images were \
mirrored is known; after a conversion, give the same --hold-out and --no-flip again. Networks without batch-norms, which \
exporters fold into convolutions, are trained at a 33rd of the rate.

Examples:
  hetconv train --model resnet20_p4 --data cifar10 --epochs 10
  hetconv train --resume --out runs/resnet20_p4
  hetconv train --model resnet50_p4 --data imagenet --image-size 224 --recipe paper --batch-size 32 --accumulate 8
  hetconv train --from cheaper.onnx --data photos.zip --image-size 224 --epochs 5 --out runs/cheaper")]
pub struct Args {
    /// The network (see `hetconv list`)
    #[arg(long, value_name = "NAME", required_unless_present_any = ["resume", "from"])]
    model: Option<String>,

    /// Begin with the network and the weights of a model file, of a run's folder or of an ONNX file
    #[arg(long, value_name = "FILE", conflicts_with = "model", requires = "out", value_parser = model::name_argument())]
    from: Option<String>,

    #[command(flatten)]
    normalise: Normalise,

    #[command(flatten)]
    run: RunArgs,
}

/// What commands that train one network take.
#[derive(clap::Args)]
pub struct RunArgs {
    /// The data set: a path or a known name (see `hetconv data list`) [default: synthetic]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,

    /// The run's folder [default: runs/NAME; train --from: none; prune: runs/NAME_pruned]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Go on with the run in the folder, with its own settings; without one there, begin it
    #[arg(long)]
    pub resume: bool,

    #[command(flatten)]
    settings: Settings,

    /// Seed of weights, order and augmentation [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Add the gradients of so many batches before each step [default: 1]
    #[arg(long, value_name = "N")]
    accumulate: Option<u64>,

    /// Make a checkpoint every so many steps, besides those after every epoch and after ten minutes without one
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<u64>,

    /// Where to compute: cpu, cuda, vulkan or metal; all but cpu need a build with that feature [default: cpu]
    #[arg(long, value_name = "DEVICE", value_parser = parse_device)]
    device: Option<Device>,
}

/// Settings that several commands take.
#[derive(clap::Args, Clone, Default, PartialEq)]
pub struct Settings {
    /// The recipe: `paper` (long), `onecycle` (short) or `finetune` (a small rate) [default: onecycle; prune: finetune]
    #[arg(long, value_name = "RECIPE", value_parser = parse_recipe)]
    pub recipe: Option<RecipeName>,

    /// Passes over the training images [default: the recipe's; compare on synthetic: 6]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,

    /// Images in a batch [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,

    /// Highest learning rate [default: the recipe's]
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,

    /// Learn from so many images only, as many of every class
    #[arg(long, value_name = "N")]
    pub limit_train: Option<usize>,

    /// See image files, of whatever size, as squares of so many pixels a side
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,

    /// Hold out so many percent of the images, for class folders that are not split into train/ and test/
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..100))]
    pub hold_out: Option<u8>,

    /// Blank a random square of so many pixels a side in every training image
    #[arg(long, value_name = "PIXELS")]
    pub cutout: Option<usize>,

    /// Judge and save the exponential moving average of the weights, of which this share stays in every step: 0.999, say
    #[arg(long, value_name = "DECAY")]
    pub ema: Option<f64>,

    /// Never mirror training images: for digits and the like
    #[arg(long)]
    pub no_flip: bool,
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
    /// A run's configuration, with those of its recipe, `own`, where no settings are given.
    pub fn config(&self, recipe: RecipeName, own: impl FnOnce(RecipeName) -> Result<RunConfig>) -> Result<RunConfig> {
        let own = own(self.recipe.unwrap_or(recipe))?;
        Ok(RunConfig {
            epochs: self.epochs.unwrap_or(own.epochs),
            batch_size: self.batch_size.unwrap_or(own.batch_size),
            lr: self.lr.unwrap_or(own.lr),
            limit_train: self.limit_train,
            image_size: self.image_size,
            hold_out: self.hold_out,
            cutout: self.cutout,
            ema: self.ema,
            no_flip: self.no_flip,
            ..own
        })
    }
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let Configured { config, out, opened, is_stored } = configure(args)?;
    config.validate()?;
    if config.pruned.is_some() {
        bad_usage!("{} holds a run of a pruned network; go on with it by `hetconv prune --resume`", out.display());
    }
    // A model that was lost is made again from the checkpoint.
    if is_stored && runs::is_whole(&out) {
        let summary = Summary::load(&out.join(run_files::SUMMARY))?;
        return output.result(&summary, |summary| text(summary, &out));
    }
    let data = data_of(&config)?;
    let start = opened.map(|opened| start(&config, opened, &data)).transpose()?;
    let graph = match &start {
        Some(start) => start.graph.clone(),
        None => network(&config, &data)?,
    };
    let job = TrainJob { config: &config, graph, data: &data, out: &out, resume: args.run.resume };
    let summary = train_one(job, start.as_ref(), &config.model)?;
    output.result(&summary, |summary| text(summary, &out))
}

/// What a run begins with: the network of its file, for its data.
fn start(config: &RunConfig, opened: Opened, data: &Dataset) -> Result<ModelFile> {
    let Opened { file, states_normalisation } = opened;
    let path = Path::new(config.from.as_deref().unwrap_or_default());
    let Classifier { classes, .. } = file.graph.classifier().with_context(|| path.display().to_string())?;
    same_classes(path, &file.classes, classes, data)?;
    warn_of_other_images(path, &config.data, config.hold_out, &data.test);
    let normalisation = or_stated(config.normalisation.clone(), &file.normalisation, states_normalisation);
    Ok(ModelFile { normalisation, ..file })
}

/// Opens a run's data set.
pub fn data_of(config: &RunConfig) -> Result<Dataset> {
    let &RunConfig { image_size, limit_train, hold_out, .. } = config;
    let data = open_data_at_size(&config.data, &LoadOptions { image_size, limit_train, hold_out })?;
    let [height, width, _] = data.train.shape();
    if let Some(side) = config.cutout.filter(|&side| side >= height.min(width)) {
        bad_usage!("--cutout {side} leaves nothing of images of {height}×{width}; a smaller square is needed");
    }
    Ok(data)
}

/// The network of a run, for the images and classes of its data.
pub fn network(config: &RunConfig, data: &Dataset) -> Result<Graph> {
    let [height, width, channels] = data.train.shape();
    model::build(&config.model.parse()?, data.classes.len(), Some([channels, height, width]))
}

/// Trains one network, from fresh weights or those of `start`, with progress under this name.
pub fn train_one(job: TrainJob<'_>, start: Option<&ModelFile>, name: &str) -> Result<Summary> {
    train_watched(job, start, name, &mut TrainingProgress::new(name))
}

/// As [`train_one`], with somebody else watching, who may stop it.
pub fn train_watched(
    job: TrainJob<'_>,
    start: Option<&ModelFile>,
    name: &str,
    observer: &mut dyn TrainObserver,
) -> Result<Summary> {
    let out = job.out;
    if job.keeps_its_rate()? {
        let RunConfig { recipe, lr, epochs, .. } = job.config;
        tracing::warn!("{name}: recipe {recipe} lowers the rate later than {epochs} epochs; it stays at {lr}");
    }
    let summary = match start {
        None => train(job, observer),
        Some(start) => fine_tune(job, start, observer),
    };
    summary.map_err(|error| {
        let out = out.display();
        let context = match error {
            TrainError::Stopped { .. } => {
                format!("{name} was interrupted; the same command (train and prune with --resume) goes on, in {out}")
            }
            _ => format!("training {name} in {out} failed"),
        };
        anyhow::Error::new(error).context(context)
    })
}

/// A run to do.
struct Configured {
    config: RunConfig,
    out: PathBuf,
    /// The file that it begins with, if it begins with one and has not come to its end, or lost its model.
    opened: Option<Opened>,
    /// Whether it is the run that the folder holds.
    is_stored: bool,
}

/// The settings of the run.
fn configure(args: &Args) -> Result<Configured> {
    let out = match (&args.run.out, &args.model) {
        (Some(out), _) => out.clone(),
        (None, Some(model)) => Path::new("runs").join(model),
        (None, None) => bad_usage!("--out or --model is needed to find the run's folder"),
    };
    let from = args.from.clone();
    let [mean, std] = [&args.normalise.mean, &args.normalise.std].map(|given| (!given.is_empty()).then(|| join(given)));
    let given: [Given<'_>; 4] = [
        ("--model", args.model.clone(), &|config| match &config.from {
            None => config.model.clone(),
            Some(file) => format!("--from {file}"),
        }),
        ("--from", from.clone(), &|config| config.from.clone().unwrap_or_else(nothing)),
        ("--mean", mean, &|config| config.normalisation.as_ref().map_or_else(nothing, |given| join(&given.mean))),
        ("--std", std, &|config| config.normalisation.as_ref().map_or_else(nothing, |given| join(&given.std))),
    ];
    if let Some(config) = args.run.stored(&out, &given)? {
        let from = config.from.as_deref().filter(|_| !runs::is_whole(&out));
        let opened = from.map(|file| open(Path::new(file), config.image_size)).transpose();
        let opened = opened.with_context(|| format!("the run in {} needs the file it began with", out.display()))?;
        return Ok(Configured { config, out, opened, is_stored: true });
    }
    if args.from.is_none() && args.normalise.is_given() {
        bad_usage!("--mean and --std are for the network of a file, --from; fresh ones get those of the data");
    }
    let (config, opened) = match (&args.model, from) {
        (Some(model), _) => {
            let own = |data: &str, recipe| Ok(RunConfig::new(model, data, recipe)?);
            (args.run.config(RecipeName::OneCycle, own)?, None)
        }
        (None, Some(file)) => {
            let opened = open(Path::new(&file), args.run.settings.image_size)?;
            let graph = &opened.file.graph;
            let own = |data: &str, recipe| Ok(RunConfig::from_file(&file, graph, data, recipe));
            let config = as_trained(args.run.config(RecipeName::OneCycle, own)?, Path::new(&file))?;
            if !graph.has_batch_norm() && args.run.settings.lr.is_none() {
                tracing::warn!(
                    "{file} has no batch-norms, which exporters fold into convolutions: its rate is {} (--lr), so that it \
                     learns slowly; export it with them to train it at the usual one",
                    config.lr
                );
            }
            let [channels, ..] = graph.input_shape().unwrap_or_default();
            (RunConfig { normalisation: args.normalise.given(channels)?, ..config }, Some(opened))
        }
        (None, None) => {
            bad_usage!("there is no run in {} to go on with; to begin one, give its --model or --from", out.display())
        }
    };
    Ok(Configured { config, out, opened, is_stored: false })
}

/// The file that a run begins with.
fn open(file: &Path, image_size: Option<usize>) -> Result<Opened> {
    model::open_file(file, image_size.map_or(Size::Own, |side| Size::Exactly([side; 2])))
}

/// What is said of a setting that a run does not have.
pub fn nothing() -> String {
    "nothing".to_owned()
}

/// The same settings, with images split and seen as they were by the run that `file` comes from, if it is on the same data.
pub fn as_trained(mut config: RunConfig, file: &Path) -> Result<RunConfig> {
    if let Some(own) = run_of(file, &config.data, config.hold_out) {
        config.hold_out = same_hold_out(config.hold_out, file, &own)?;
        config.image_size = config.image_size.or(own.image_size);
        config.no_flip |= own.no_flip;
    }
    Ok(config)
}

/// The share of images to hold out: that of the run that `file` comes from, if it is on the same data, or else the given one.
pub fn hold_out(given: Option<u8>, file: &Path, data: &str) -> Result<Option<u8>> {
    match run_of(file, data, given) {
        Some(own) => same_hold_out(given, file, &own),
        None => Ok(given),
    }
}

/// The settings of the run that `file` comes from, if it still lies where the run left it and learned from the same data.
/// Where that may be the same, and another share than `given` was held out, a warning says so.
fn run_of(file: &Path, data: &str, given: Option<u8>) -> Option<RunConfig> {
    let config = runs::run_of(file)?.join(run_files::CONFIG);
    if !config.is_file() {
        return None;
    }
    match RunConfig::load(&config) {
        Ok(own) => match is_same_data(&own.data, data) {
            Some(is_same) => Some(own).filter(|_| is_same),
            None => {
                if own.hold_out != given && name_of(&own.data) == name_of(data) {
                    let held_out = share(own.hold_out);
                    tracing::warn!(
                        "{} was trained on {}, with --hold-out {held_out}; if {data} is the same, the network has learned \
                         from images that are held out now",
                        file.display(),
                        own.data
                    );
                }
                None
            }
        },
        Err(error) => {
            tracing::warn!("passing over what {} was trained with: {error}", file.display());
            None
        }
    }
}

/// Warns where the images held out from a run's data are not those that were held out while the network of `file` learned:
/// some were added or removed since, and every so many-th is another one now.
pub fn warn_of_other_images(file: &Path, data: &str, hold_out: Option<u8>, held_out: &Split) {
    let then = || {
        let folder = runs::run_of(file)?;
        let own = RunConfig::load(&folder.join(run_files::CONFIG)).ok()?;
        let is_same = own.hold_out == hold_out && is_same_data(&own.data, data) == Some(true);
        Summary::load(&folder.join(run_files::SUMMARY)).ok().filter(|_| is_same)?.images
    };
    if hold_out.is_some() && then().is_some_and(|[_, then]| then != held_out.digest()) {
        tracing::warn!(
            "{data} has other images than when {} was trained: the network has learned from some that are held out now",
            file.display()
        );
    }
}

fn share(hold_out: Option<u8>) -> String {
    hold_out.map_or("none".to_owned(), |percent| percent.to_string())
}

/// A run's own share; with another one its network would be judged by images that it learned from.
fn same_hold_out(given: Option<u8>, file: &Path, own: &RunConfig) -> Result<Option<u8>> {
    if given.is_some() && given != own.hold_out {
        let (file, given, own) = (file.display(), share(given), share(own.hold_out));
        bad_usage!("--hold-out {given}, but {file} was trained with {own}: it has learned from images held out now");
    }
    Ok(own.hold_out)
}

/// A flag that not all commands have, the value given, and what a run's settings say.
pub type Given<'a> = (&'static str, Option<String>, &'a dyn Fn(&RunConfig) -> String);

impl RunArgs {
    /// The settings of a new run, over those that `own` gives for its data and recipe.
    pub fn config(
        &self,
        recipe: RecipeName,
        own: impl FnOnce(&str, RecipeName) -> Result<RunConfig>,
    ) -> Result<RunConfig> {
        let data = self.data.as_deref().unwrap_or(Dataset::BUILT_IN);
        Ok(RunConfig {
            seed: self.seed.unwrap_or(0),
            accumulate: self.accumulate.unwrap_or(1),
            checkpoint_every: self.checkpoint_every,
            device: self.device.unwrap_or_default(),
            ..self.settings.config(recipe, |recipe| own(data, recipe))?
        })
    }

    /// The settings of the run that is to go on, if there is one in the folder; those given must be the same.
    pub fn stored(&self, out: &Path, more: &[Given<'_>]) -> Result<Option<RunConfig>> {
        let stored = out.join(run_files::CONFIG);
        if !self.resume || !stored.is_file() {
            return Ok(None);
        }
        let mut config = RunConfig::load(&stored)?;
        let own = more.iter().map(|(flag, given, of)| (*flag, given.clone(), Some(of(&config))));
        agree(self.given(&config).into_iter().chain(own), &stored)?;
        config.checkpoint_every = self.checkpoint_every.or(config.checkpoint_every);
        Ok(Some(config))
    }

    /// The settings given, each beside that of a run.
    fn given(&self, config: &RunConfig) -> Vec<Setting> {
        fn text<T: ToString>(value: &Option<T>, stored: Option<&T>) -> [Option<String>; 2] {
            [value.as_ref().map(T::to_string), stored.map(T::to_string)]
        }
        let Settings { recipe, epochs, batch_size, lr, limit_train, image_size, hold_out, cutout, ema, no_flip } =
            &self.settings;
        let settings = [
            ("--data", text(&self.data, Some(&config.data))),
            ("--recipe", text(recipe, Some(&config.recipe))),
            ("--epochs", text(epochs, Some(&config.epochs))),
            ("--batch-size", text(batch_size, Some(&config.batch_size))),
            ("--lr", text(lr, Some(&config.lr))),
            ("--seed", text(&self.seed, Some(&config.seed))),
            ("--accumulate", text(&self.accumulate, Some(&config.accumulate))),
            ("--limit-train", text(limit_train, config.limit_train.as_ref())),
            ("--image-size", text(image_size, config.image_size.as_ref())),
            ("--hold-out", text(hold_out, config.hold_out.as_ref())),
            ("--cutout", text(cutout, config.cutout.as_ref())),
            ("--ema", text(ema, config.ema.as_ref())),
            ("--no-flip", text(&no_flip.then_some(true), Some(&config.no_flip))),
            ("--device", text(&self.device, Some(&config.device))),
        ];
        settings.map(|(flag, [given, stored])| (flag, given, stored)).into()
    }
}

/// A flag, the value given, and that of a run.
type Setting = (&'static str, Option<String>, Option<String>);

/// Whether the settings given are those of the run that is to go on.
fn agree(settings: impl Iterator<Item = Setting>, stored: &Path) -> Result<()> {
    for (flag, given, stored_value) in settings {
        if let Some(given) = given
            && Some(&given) != stored_value.as_ref()
        {
            let stored_value = stored_value.unwrap_or_else(nothing);
            bad_usage!(
                "{flag} {given}, but {} says {stored_value}; leave it out, or begin another run in another --out",
                stored.display()
            );
        }
    }
    Ok(())
}

pub fn text(summary: &Summary, out: &Path) -> String {
    format!(
        "{}: top-1 {:.2} %, top-5 {:.2} %, loss {:.4} on {} held-out images\n\
         {} parameters, {} MACs; {} {} in {} ({} images/s)\n\
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
        rate(summary.images_per_second),
        out.join(run_files::MODEL).display()
    )
}

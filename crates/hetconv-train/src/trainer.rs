//! The training loop.
//!
//! A run is a folder: `config.toml`, `metrics.csv` (a line an epoch), `checkpoints/`, and at the end `summary.json` and
//! `model.safetensors`. A line of metrics is on the disk before the checkpoint that follows it, so a run killed at any
//! moment finds everything up to its newest checkpoint, and computes the rest as if it had never stopped.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hetconv_burn::{DecayScope, GraphModule, ModuleError, SgdConfig, VelocityError};
use hetconv_graph::{FileError, Graph, GraphError, ModelFile, Normalisation, Shape, WeightTensor, Weights};
use hetconv_kernels::{Isa, IsaError, loss::softmax_cross_entropy};

use crate::augment::Augment;
use crate::checkpoint::{Checkpoint, CheckpointError, EpochSums, Progress};
use crate::config::{ConfigError, Device, RunConfig};
use crate::data::{Dataset, Split, Watch};
use crate::loader::{Batch, BatchLoader, LoaderError, Position, TrainingBatches, steps_per_epoch};
use crate::metrics::{EpochMetrics, MetricsError, MetricsWriter, Summary};
use crate::recipe::{Recipe, Sgd};

/// A run to do.
#[derive(Debug)]
pub struct TrainJob<'a> {
    /// Its settings.
    pub config: &'a RunConfig,
    /// The network, with the data set's classes and image size.
    pub graph: Graph,
    /// What to learn from.
    pub data: &'a Dataset,
    /// How to learn; [`RunConfig::complete_recipe`] gives the one that belongs to the settings.
    pub recipe: Recipe,
    /// The run's folder.
    pub out: &'a Path,
    /// Whether to go on with a run that is in the folder; without one in it, a new run begins.
    pub resume: bool,
}

/// Where a run is, after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Steps of this epoch that are done.
    pub step: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Mean loss of this epoch's images so far.
    pub loss: f64,
    /// Top-1 accuracy on this epoch's images so far, from 0 to 1.
    pub top1: f64,
    /// Training images per second in this epoch.
    pub images_per_second: f64,
}

/// Somebody who watches a run.
pub trait TrainObserver {
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// During an epoch's evaluation: so many of so many images are done.
    fn evaluation(&mut self, done: usize, images: usize);
    /// After every epoch and its evaluation.
    fn epoch(&mut self, metrics: &EpochMetrics);
    /// After every step: whether the run is to stop here, with a checkpoint from which it can go on.
    fn stops(&mut self) -> bool {
        false
    }
}

/// Nobody watches.
impl TrainObserver for () {
    fn step(&mut self, _: &StepReport) {}
    fn evaluation(&mut self, _: usize, _: usize) {}
    fn epoch(&mut self, _: &EpochMetrics) {}
}

/// How well a network does on a split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Share of images whose label has the largest logit.
    pub top1: f64,
    /// Share of images whose label is among the five largest logits.
    pub top5: f64,
    /// Number of images.
    pub images: usize,
    /// Seconds it took.
    pub seconds: f64,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The loss or a weight is not finite any more.
    #[error("training diverged: {what} in epoch {epoch}, step {step}; {kept}")]
    Diverged {
        /// The epoch, from 1 as in `metrics.csv`.
        epoch: u64,
        /// The step of the epoch, from 1.
        step: u64,
        /// What is not finite.
        what: String,
        /// Which checkpoint is left.
        kept: String,
    },
    /// A folder that holds a run already.
    #[error("{} already holds a run; resume it if its checkpoints are there, or choose another folder", .0.display())]
    Occupied(PathBuf),
    /// A checkpoint of other settings.
    #[error("{}: the checkpoint was made with other settings than these; resume with its own config.toml", .0.display())]
    OtherSettings(PathBuf),
    /// A network and data that do not belong together.
    #[error("network {model} takes {network}, the data set {data} has {found}")]
    DoesNotFit {
        /// The network.
        model: String,
        /// The data set.
        data: String,
        /// What the network takes.
        network: String,
        /// What the data set has.
        found: String,
    },
    /// [`TrainObserver::stops`] said so; the newest checkpoint is of this moment.
    #[error("stopped after {epochs} whole epochs")]
    Stopped {
        /// Epochs that were finished.
        epochs: u64,
    },
    /// A device this build has no support for.
    #[error("this build cannot compute on {0}; build with --features {0}")]
    Device(Device),
    /// The folder cannot be made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`LoaderError`].
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// See [`CheckpointError`].
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// See [`MetricsError`].
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// See [`GraphError`].
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// See [`ModuleError`].
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// See [`VelocityError`].
    #[error(transparent)]
    Velocity(#[from] VelocityError),
    /// See [`FileError`].
    #[error(transparent)]
    File(#[from] FileError),
    /// See [`IsaError`].
    #[error(transparent)]
    Isa(#[from] IsaError),
}

/// The names of what is in a run's folder.
pub mod run_files {
    /// The run's settings.
    pub const CONFIG: &str = "config.toml";
    /// A line an epoch.
    pub const METRICS: &str = "metrics.csv";
    /// The run in a nutshell.
    pub const SUMMARY: &str = "summary.json";
    /// The trained network.
    pub const MODEL: &str = "model.safetensors";
    /// The folder of checkpoints.
    pub const CHECKPOINTS: &str = "checkpoints";
}

/// Burn's device of a run.
///
/// # Errors
/// [`TrainError::Device`] if this build has no support for it.
pub fn burn_device(device: Device) -> Result<burn::tensor::Device, TrainError> {
    match device {
        Device::Cpu => Ok(burn::tensor::Device::flex()),
        #[cfg(feature = "cuda")]
        Device::Cuda => Ok(burn::tensor::Device::cuda(0)),
        #[cfg(feature = "vulkan")]
        Device::Vulkan => Ok(burn::tensor::Device::vulkan(Default::default())),
        #[cfg(feature = "metal")]
        Device::Metal => Ok(burn::tensor::Device::metal(Default::default())),
        #[allow(unreachable_patterns)]
        other => Err(TrainError::Device(other)),
    }
}

impl TrainJob<'_> {
    /// Whether the run can be done: settings that are possible, a network and data that belong together, a device that
    /// this build supports, images enough for a step. Nothing is written, and the folder is not looked at.
    ///
    /// # Errors
    /// The first that is not so.
    pub fn check(&self) -> Result<(), TrainError> {
        self.config.validate()?;
        burn_device(self.config.device)?;
        check_fit(&self.graph, self.data)?;
        self.steps_per_epoch().map(drop)
    }

    /// Steps of an epoch; there is at least one. What does not fill a step is dropped.
    fn steps_per_epoch(&self) -> Result<u64, TrainError> {
        let (samples, accumulate) = (self.data.train.len(), self.config.accumulate);
        match steps_per_epoch(samples, self.recipe.batch_size) as u64 / accumulate.max(1) {
            0 => {
                let batch_size = self.recipe.batch_size.saturating_mul(accumulate as usize);
                Err(LoaderError::TooFewSamples { samples, batch_size }.into())
            }
            steps => Ok(steps),
        }
    }
}

/// Trains a network; see the module's text for what is left in the folder.
///
/// # Errors
/// See [`TrainError`]. A run that is refused leaves nothing behind, and whatever happens, the newest checkpoint stays.
pub fn train(job: TrainJob<'_>, observer: &mut dyn TrainObserver) -> Result<Summary, TrainError> {
    Run::whole(&job, None, observer)
}

/// Trains a network further: as [`train`], but the run begins with the weights of `start`, whose graph is the job's, and
/// images are normalised as `start` says.
///
/// # Errors
/// As [`train`], and weights that are not those of the graph.
pub fn fine_tune(
    job: TrainJob<'_>,
    start: &ModelFile,
    observer: &mut dyn TrainObserver,
) -> Result<Summary, TrainError> {
    Run::whole(&job, Some(start), observer)
}

/// Measures a network on a split, in batches of `batch` images; `watch` is told how many images are done.
///
/// # Errors
/// Images that do not fit the network, or a loader that failed.
pub fn evaluate(
    network: &GraphModule,
    split: &std::sync::Arc<Split>,
    normalisation: &Normalisation,
    batch: usize,
    watch: Watch<'_>,
) -> Result<Evaluation, TrainError> {
    evaluate_with(network.classes(), split, normalisation, batch, watch, |pixels, images| {
        let logits = network.logits(network.upload_images(pixels, images)?)?;
        Ok(logits.into_data().iter::<f32>().collect())
    })
}

/// As [`evaluate`], of whatever gives the logits `[images, classes]` of so many images `[images, height, width, channels]`.
///
/// # Errors
/// What `logits` or the loading of images reports.
pub fn evaluate_with<E: From<TrainError>>(
    classes: usize,
    split: &std::sync::Arc<Split>,
    normalisation: &Normalisation,
    batch: usize,
    watch: Watch<'_>,
    mut logits: impl FnMut(Vec<f32>, usize) -> Result<Vec<f32>, E>,
) -> Result<Evaluation, E> {
    let start = Instant::now();
    let isa = Isa::selected().map_err(TrainError::from)?;
    let mut loader = BatchLoader::evaluation(split.clone(), normalisation, batch).map_err(TrainError::from)?;
    let (mut loss, mut top1, mut top5, mut images) = (0.0, 0, 0, 0);
    while let Some(Batch { images: pixels, labels, .. }) = loader.next().transpose().map_err(TrainError::from)? {
        let logits = logits(pixels, labels.len())?;
        let sums = softmax_cross_entropy(isa, classes, &logits, &labels, 0.0, None);
        loss += sums.loss;
        top1 += sums.top1;
        top5 += sums.top5;
        images += labels.len();
        watch(images, split.len());
    }
    let share = |count: usize| count as f64 / images.max(1) as f64;
    Ok(Evaluation {
        loss: loss / images.max(1) as f64,
        top1: share(top1),
        top5: share(top5),
        images,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The network takes the data's images and has a logit for every class.
fn check_fit(graph: &Graph, data: &Dataset) -> Result<(), TrainError> {
    let [height, width, channels] = data.train.shape();
    let takes = graph.input_shape();
    let shapes = graph.shapes()?;
    let classes = graph.outputs.first().and_then(|&output| shapes.get(output)).map(Shape::elements);
    if takes == Some([channels, height, width]) && classes == Some(data.classes.len()) {
        return Ok(());
    }
    let [c, h, w] = takes.unwrap_or_default();
    Err(TrainError::DoesNotFit {
        model: graph.name.clone(),
        data: data.name.clone(),
        network: format!("images of {h}×{w}×{c} and has {} classes", classes.unwrap_or(0)),
        found: format!("images of {height}×{width}×{channels} and {} classes", data.classes.len()),
    })
}

/// A run under way.
struct Run<'a> {
    job: &'a TrainJob<'a>,
    network: GraphModule,
    optimizer: hetconv_burn::Sgd,
    normalisation: Normalisation,
    metrics: MetricsWriter,
    progress: Progress,
    /// The line of the newest finished epoch.
    newest: Option<EpochMetrics>,
    steps_per_epoch: u64,
}

impl<'a> Run<'a> {
    /// All of the run that is still to do.
    fn whole(
        job: &'a TrainJob<'a>,
        start: Option<&ModelFile>,
        observer: &mut dyn TrainObserver,
    ) -> Result<Summary, TrainError> {
        job.check()?;
        let mut run = Run::open(job, start)?;
        run.train(observer)?;
        run.finish()
    }

    /// Begins the run, or takes up the one in the folder.
    fn open(job: &'a TrainJob<'a>, start: Option<&ModelFile>) -> Result<Self, TrainError> {
        let TrainJob { config, graph, data, recipe, out, .. } = job;
        let checkpoints = out.join(run_files::CHECKPOINTS);
        let found = Checkpoint::latest(&checkpoints)?;
        let holds_results = [run_files::MODEL, run_files::SUMMARY].iter().any(|file| out.join(file).exists());
        let is_occupied = found.is_some() || holds_results;
        let goes_on = found.is_some() && job.resume;
        if is_occupied && !goes_on {
            return Err(TrainError::Occupied(out.to_path_buf()));
        }
        let device = burn_device(config.device)?;
        let mut optimizer = hetconv_burn::Sgd::new(sgd_config(&recipe.optimizer));
        let (network, progress) = match found {
            None => {
                let weights = match start {
                    Some(start) => start.weights.clone(),
                    None => Weights::init(graph, config.seed)?,
                };
                let network = GraphModule::new(graph, &weights, &device)?;
                (network, Progress { seed: config.seed, ..Progress::default() })
            }
            Some((path, checkpoint)) => {
                if checkpoint.config_digest != config.digest() || checkpoint.model.graph != *graph {
                    return Err(TrainError::OtherSettings(path));
                }
                let network = GraphModule::new(graph, &checkpoint.model.weights, &device)?;
                for (name, tensor) in checkpoint.velocity.iter() {
                    optimizer.import(&network, name, &tensor.shape, tensor.data.clone())?;
                }
                (network, checkpoint.progress)
            }
        };
        // Nothing is written before nothing can be wrong with the run.
        std::fs::create_dir_all(out).map_err(|source| TrainError::Io { path: out.to_path_buf(), source })?;
        if !goes_on {
            config.save(&out.join(run_files::CONFIG))?;
        }
        let metrics_path = out.join(run_files::METRICS);
        let metrics = MetricsWriter::resume(&metrics_path, progress.position.epoch)?;
        Ok(Self {
            newest: crate::metrics::read_metrics(&metrics_path)?.pop(),
            job,
            network,
            optimizer,
            normalisation: start.map_or_else(|| data.train.normalisation(), |start| start.normalisation.clone()),
            metrics,
            progress,
            steps_per_epoch: job.steps_per_epoch()?,
        })
    }

    fn train(&mut self, observer: &mut dyn TrainObserver) -> Result<(), TrainError> {
        let TrainJob { config, data, recipe, .. } = self.job;
        let position = self.progress.position;
        if position.epoch >= config.epochs {
            return Ok(());
        }
        // The loader counts batches, the run counts steps.
        let start = Position { epoch: position.epoch, step: position.step * config.accumulate };
        let batches = TrainingBatches {
            batch_size: recipe.batch_size,
            augment: Augment::usual(&data.train),
            seed: config.seed,
            start,
            epochs: config.epochs,
        };
        let mut loader = BatchLoader::training(data.train.clone(), &self.normalisation, batches)?;
        let total_steps = self.steps_per_epoch * config.epochs;
        while self.progress.position.epoch < config.epochs {
            let started = Instant::now();
            let position = self.progress.position;
            let rate = recipe.schedule.lr(self.progress.steps, self.steps_per_epoch, total_steps);
            self.step(&mut loader, position, rate)?;
            self.progress.sums.seconds += started.elapsed().as_secs_f64();
            self.progress.steps += 1;
            self.progress.position.step += 1;
            observer.step(&self.report());
            let epoch_is_done = self.progress.position.step == self.steps_per_epoch;
            let stops = observer.stops();
            let due = stops || config.checkpoint_every.is_some_and(|every| self.progress.steps.is_multiple_of(every));
            if epoch_is_done || due {
                self.check_weights(position)?;
            }
            if epoch_is_done {
                self.end_epoch(rate, observer)?;
                self.progress.position = Position { epoch: position.epoch + 1, step: 0 };
            }
            if epoch_is_done || due {
                self.checkpoint()?;
            }
            if stops && self.progress.position.epoch < config.epochs {
                return Err(TrainError::Stopped { epochs: self.progress.position.epoch });
            }
        }
        Ok(())
    }

    /// One step of the optimizer, from as many batches as the settings say.
    fn step(&mut self, loader: &mut BatchLoader, position: Position, rate: f64) -> Result<(), TrainError> {
        let TrainJob { config, recipe, .. } = self.job;
        let mut gradients: Option<hetconv_burn::Gradients> = None;
        let mut taken = 0;
        while taken < config.accumulate {
            let gone = || LoaderError::Failed("it ended before the run".into());
            let batch = loader.next().transpose()?.ok_or_else(gone)?;
            // What does not fill a step at the end of an epoch is dropped, as what does not fill a batch is.
            let belongs = Position { step: batch.position.step / config.accumulate, ..batch.position };
            match belongs.cmp(&position) {
                Ordering::Less => continue,
                Ordering::Equal => {}
                Ordering::Greater => return Err(gone().into()),
            }
            taken += 1;
            let images = batch.labels.len();
            let out = self.network.step(batch.images, images, &batch.labels, recipe.label_smoothing as f32)?;
            if !out.loss.is_finite() {
                return Err(self.diverged(position, format!("the loss is {}", out.loss)));
            }
            let sums = &mut self.progress.sums;
            sums.loss += out.loss * images as f64;
            sums.correct += out.top1 as u64;
            sums.images += images as u64;
            gradients = Some(match gradients {
                None => out.gradients,
                Some(so_far) => so_far.plus(out.gradients),
            });
        }
        if let Some(gradients) = gradients {
            // The gradient of the mean over all images of the step.
            let gradients = if taken == 1 { gradients } else { gradients.scaled(1.0 / taken as f32) };
            self.optimizer.step(&mut self.network, gradients, rate as f32);
        }
        Ok(())
    }

    fn diverged(&self, position: Position, what: String) -> TrainError {
        let kept = match Checkpoint::latest(&self.checkpoints()) {
            Ok(Some((path, _))) => format!("the last good checkpoint is {}", path.display()),
            _ => "there is no checkpoint yet".to_owned(),
        };
        TrainError::Diverged { epoch: position.epoch + 1, step: position.step + 1, what, kept }
    }

    fn report(&self) -> StepReport {
        let position = self.progress.position;
        let EpochSums { loss, correct, images, seconds } = self.progress.sums;
        let images = images.max(1) as f64;
        StepReport {
            epoch: position.epoch,
            epochs: self.job.config.epochs,
            step: position.step,
            steps_per_epoch: self.steps_per_epoch,
            loss: loss / images,
            top1: correct as f64 / images,
            images_per_second: images / seconds.max(f64::MIN_POSITIVE),
        }
    }

    fn end_epoch(&mut self, lr: f64, observer: &mut dyn TrainObserver) -> Result<(), TrainError> {
        let batch = self.job.recipe.batch_size;
        let mut watch = |done, images| observer.evaluation(done, images);
        let evaluation = evaluate(&self.network, &self.job.data.test, &self.normalisation, batch, &mut watch)?;
        let report = self.report();
        let sums = std::mem::take(&mut self.progress.sums);
        self.progress.seconds += sums.seconds;
        let row = EpochMetrics {
            epoch: report.epoch + 1,
            lr,
            train_loss: report.loss,
            train_top1: report.top1,
            eval_loss: evaluation.loss,
            eval_top1: evaluation.top1,
            eval_top5: evaluation.top5,
            images_per_second: report.images_per_second,
            seconds: sums.seconds,
        };
        self.metrics.append(&row)?;
        observer.epoch(&row);
        self.newest = Some(row);
        Ok(())
    }

    fn checkpoints(&self) -> PathBuf {
        self.job.out.join(run_files::CHECKPOINTS)
    }

    fn model(&self) -> ModelFile {
        ModelFile {
            graph: self.job.graph.clone(),
            weights: self.network.weights(),
            classes: self.job.data.classes.clone(),
            normalisation: self.normalisation.clone(),
        }
    }

    /// Weights that are not finite never take the place of a good checkpoint.
    fn check_weights(&self, position: Position) -> Result<(), TrainError> {
        let weights = self.network.weights();
        let infinite = |(_, tensor): &(&str, &WeightTensor)| !tensor.data.iter().all(|value| value.is_finite());
        match weights.iter().find(infinite) {
            Some((name, _)) => Err(self.diverged(position, format!("weight {name} is not finite"))),
            None => Ok(()),
        }
    }

    fn checkpoint(&self) -> Result<(), TrainError> {
        let mut velocity = Weights::new();
        for (name, shape, data) in self.optimizer.export() {
            velocity.insert(name.to_owned(), WeightTensor { shape: shape.to_vec(), data });
        }
        let checkpoint = Checkpoint {
            model: self.model(),
            velocity,
            progress: self.progress,
            config_digest: self.job.config.digest(),
        };
        checkpoint.save(&self.checkpoints())?;
        Ok(())
    }

    /// Writes the model and the summary.
    fn finish(self) -> Result<Summary, TrainError> {
        let TrainJob { config, graph, data, out, recipe, .. } = self.job;
        self.model().save(&out.join(run_files::MODEL))?;
        let cost = graph.cost()?;
        let last = self.newest.unwrap_or_default();
        let images = self.progress.steps * config.accumulate * recipe.batch_size as u64;
        let summary = Summary {
            model: graph.name.clone(),
            data: config.data.clone(),
            recipe: config.recipe.to_string(),
            seed: config.seed,
            epochs: config.epochs,
            steps: self.progress.steps,
            batch_size: recipe.batch_size,
            train_images: data.train.len(),
            eval_images: data.test.len(),
            params: cost.params,
            macs: cost.macs,
            train_loss: last.train_loss,
            train_top1: last.train_top1,
            eval_loss: last.eval_loss,
            eval_top1: last.eval_top1,
            eval_top5: last.eval_top5,
            seconds: self.progress.seconds,
            images_per_second: images as f64 / self.progress.seconds.max(f64::MIN_POSITIVE),
            threads: rayon::current_num_threads(),
            device: config.device.to_string(),
        };
        summary.save(&out.join(run_files::SUMMARY))?;
        Ok(summary)
    }
}

fn sgd_config(sgd: &Sgd) -> SgdConfig {
    SgdConfig {
        momentum: sgd.momentum as f32,
        nesterov: sgd.nesterov,
        weight_decay: sgd.weight_decay as f32,
        decay: DecayScope::Kernels,
    }
}

//! The training loop.
//!
//! A run is a folder: `config.toml`, `metrics.csv` (a line an epoch), `checkpoints/`, a `.lock` that the process at work holds,
//! and at the end `summary.json` and `model.safetensors`. A line of metrics is on the disk before the checkpoint that follows it, so a run killed at any
//! moment finds everything up to its newest checkpoint, and computes the rest as if it had never stopped.

mod error;
mod evaluation;
mod learner;
mod run;

use std::path::Path;

use hetconv_graph::{Classifier, Graph, ModelFile};

pub use error::TrainError;
pub use evaluation::{Evaluation, evaluate, evaluate_with};
use run::Run;

use crate::config::{Device, RunConfig};
use crate::data::Dataset;
use crate::loader::{LoaderError, steps_per_epoch};
use crate::metrics::{EpochMetrics, Summary};

/// A run to do.
#[derive(Debug)]
pub struct TrainJob<'a> {
    /// Its settings.
    pub config: &'a RunConfig,
    /// The network, with the data set's classes and image size.
    pub graph: Graph,
    /// What to learn from.
    pub data: &'a Dataset,
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
    /// After every step, and during an evaluation: whether the run is to stop here, with a checkpoint from which it can go on.
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
    /// Locked by the process that is at work on the run; empty.
    pub const LOCK: &str = ".lock";
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
        self.config.complete_recipe()?;
        burn_device(self.config.device)?;
        check_fit(&self.graph, self.data)?;
        self.steps_per_epoch().map(drop)
    }

    /// Whether the recipe lowers the rate step by step, but first after the run's end.
    ///
    /// # Errors
    /// As [`TrainJob::check`].
    pub fn keeps_its_rate(&self) -> Result<bool, TrainError> {
        let steps_per_epoch = self.steps_per_epoch()?;
        let total = steps_per_epoch.saturating_mul(self.config.epochs);
        Ok(self.config.complete_recipe()?.schedule.is_too_long_for(steps_per_epoch, total))
    }

    /// Steps of an epoch; there is at least one. What does not fill a step is dropped.
    fn steps_per_epoch(&self) -> Result<u64, TrainError> {
        let (samples, accumulate) = (self.data.train.len(), self.config.accumulate);
        match steps_per_epoch(samples, self.config.batch_size) as u64 / accumulate.max(1) {
            0 => {
                let batch_size = self.config.batch_size.saturating_mul(accumulate as usize);
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

/// The network takes the data's images and has a logit for every class.
fn check_fit(graph: &Graph, data: &Dataset) -> Result<(), TrainError> {
    let [height, width, channels] = data.train.shape();
    let Classifier { image, classes, .. } = graph.classifier()?;
    if image == [channels, height, width] && classes == data.classes.len() {
        return Ok(());
    }
    let [c, h, w] = image;
    Err(TrainError::DoesNotFit {
        model: graph.name.clone(),
        data: data.name.clone(),
        network: format!("images of {h}×{w}×{c} and has {classes} classes"),
        found: format!("images of {height}×{width}×{channels} and {} classes", data.classes.len()),
    })
}

//! Results that rows are made of: runs from folders, and lines of `runs.csv`, `epochs.csv` and `measurements.csv`, each
//! with where it came from.

use std::path::Path;

use anyhow::{Context, Result, bail};
use hetconv::train::{EpochMetrics, RunConfig, read_metrics, run_files};
use serde::{Deserialize, Serialize};

use crate::cli::checks::cpu_name;
use crate::cli::files::{read_csv, write_csv};
use crate::cli::runs::{self, FinishedRun};

/// The names of the files of results.
pub const RUNS: &str = "runs.csv";
const EPOCHS: &str = "epochs.csv";
pub const MEASUREMENTS: &str = "measurements.csv";

/// A finished run: a line of `runs.csv`. Accuracies are shares from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunLine {
    /// Made of the settings: a run with the same name is the same run.
    pub run: String,
    pub model: String,
    pub data: String,
    pub recipe: String,
    pub epochs: u64,
    pub seed: u64,
    pub batch_size: usize,
    pub train_images: usize,
    pub eval_images: usize,
    pub params: u64,
    pub macs: u64,
    pub steps: u64,
    pub train_loss: f64,
    pub train_top1: f64,
    pub eval_loss: f64,
    pub eval_top1: f64,
    pub eval_top5: f64,
    pub seconds: f64,
    pub images_per_second: f64,
    pub threads: usize,
    pub device: String,
    pub machine: String,
    pub command: String,
}

/// An epoch of a run: a line of `epochs.csv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct EpochLine {
    run: String,
    epoch: u64,
    lr: f64,
    train_loss: f64,
    train_top1: f64,
    eval_loss: f64,
    eval_top1: f64,
    eval_top5: f64,
    images_per_second: f64,
    seconds: f64,
}

/// What was measured of one network in one way: a line of `measurements.csv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub what: What,
    pub network: String,
    pub batch: usize,
    pub repetitions: usize,
    /// For the whole batch.
    pub median_ms: f64,
    pub p10_ms: f64,
    pub p90_ms: f64,
    pub threads: usize,
    pub isa: String,
    pub machine: String,
    pub command: String,
}

/// What is measured of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Inference with the algorithms that a fixed cost chooses.
    Inference,
    /// Inference without Winograd's algorithm.
    ExactInference,
    /// A whole training step.
    TrainingStep,
}

/// A finished run and where it was found.
#[derive(Clone, Debug)]
pub struct StoredRun {
    pub line: RunLine,
    pub epochs: Vec<EpochMetrics>,
    pub origin: String,
}

/// A run that was begun.
#[derive(Clone, Debug)]
pub struct UnfinishedRun {
    pub model: String,
    pub epochs: u64,
    pub done: usize,
}

/// All results there are.
#[derive(Default)]
pub struct Results {
    pub runs: Vec<StoredRun>,
    pub unfinished: Vec<UnfinishedRun>,
    pub measurements: Vec<(Measurement, String)>,
}

impl Results {
    /// Reads the folders of runs below `runs`, and the files of results in each of `folders`. What is found first counts.
    pub fn read(run_folders: &Path, folders: &[&Path]) -> Result<Self> {
        let mut results = Self::default();
        if run_folders.is_dir() {
            for folder in runs::find(&[run_folders.to_owned()])? {
                let run = runs::load(&folder)?;
                let origin = folder.join(run_files::SUMMARY).display().to_string();
                results.add_run(StoredRun { line: RunLine::of(&run)?, epochs: run.epochs, origin });
            }
            results.unfinished = unfinished(run_folders)?;
        }
        for folder in folders {
            let (path, epochs) = (folder.join(RUNS), read_csv::<EpochLine>(&folder.join(EPOCHS))?);
            for (i, line) in read_csv::<RunLine>(&path)?.into_iter().enumerate() {
                let own = epochs.iter().filter(|epoch| epoch.run == line.run).map(EpochMetrics::from);
                results.add_run(StoredRun { epochs: own.collect(), origin: origin(&path, i), line });
            }
            let path = folder.join(MEASUREMENTS);
            for (i, line) in read_csv::<Measurement>(&path)?.into_iter().enumerate() {
                if results.measurement(line.what, &line.network, line.batch).is_none() {
                    results.measurements.push((line, origin(&path, i)));
                }
            }
        }
        Ok(results)
    }

    fn add_run(&mut self, run: StoredRun) {
        if self.runs.iter().all(|known| known.line.run != run.line.run) {
            self.runs.push(run);
        }
    }

    /// A measurement and where it was found.
    pub fn measurement(&self, what: What, network: &str, batch: usize) -> Option<&(Measurement, String)> {
        let is_meant = |line: &Measurement| line.what == what && line.network == network && line.batch == batch;
        self.measurements.iter().find(|(line, _)| is_meant(line))
    }
}

/// The line of a file of results, whose first line has the names.
fn origin(path: &Path, line: usize) -> String {
    format!("{}:{}", path.display(), line + 2)
}

/// Adds runs to the files of results in a folder; a run of the same settings takes the place of the earlier one.
pub fn add(folder: &Path, found: &[FinishedRun]) -> Result<()> {
    let mut lines: Vec<RunLine> = Vec::new();
    let mut epochs: Vec<EpochLine> = Vec::new();
    for run in found {
        let line = RunLine::of(run)?;
        if lines.iter().any(|known| known.run == line.run) {
            bail!("{} holds a run with the settings of another one, {}", run.folder.display(), line.run);
        }
        epochs.extend(run.epochs.iter().map(|epoch| EpochLine::new(&line.run, epoch)));
        lines.push(line);
    }
    let is_new = |run: &str| lines.iter().any(|line| line.run == run);
    let (runs_path, epochs_path) = (folder.join(RUNS), folder.join(EPOCHS));
    let old: Vec<RunLine> = read_csv(&runs_path)?.into_iter().filter(|line: &RunLine| !is_new(&line.run)).collect();
    let old_epochs = read_csv(&epochs_path)?.into_iter().filter(|line: &EpochLine| !is_new(&line.run));
    epochs.extend(old_epochs.collect::<Vec<_>>());
    lines.extend(old);
    lines.sort_by(|a, b| a.run.cmp(&b.run));
    epochs.sort_by(|a, b| (&a.run, a.epoch).cmp(&(&b.run, b.epoch)));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_csv(&runs_path, &lines)?;
    write_csv(&epochs_path, &epochs)
}

/// Adds measurements to the file in a folder; one of the same thing takes the place of the earlier one.
pub fn add_measurements(folder: &Path, found: Vec<Measurement>) -> Result<()> {
    let path = folder.join(MEASUREMENTS);
    let key = |line: &Measurement| (line.network.clone(), line.what, line.batch);
    let mut lines: Vec<Measurement> = read_csv(&path)?;
    lines.retain(|old| found.iter().all(|new| key(new) != key(old)));
    lines.extend(found);
    lines.sort_by_key(key);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_csv(&path, &lines)
}

/// The runs below a folder that were begun and not finished.
fn unfinished(folder: &Path) -> Result<Vec<UnfinishedRun>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let run = entry?.path();
        let config = run.join(run_files::CONFIG);
        if config.is_file() && !runs::is_finished(&run) {
            let Ok(config) = RunConfig::load(&config) else { continue };
            // A line that a kill tore stands at the end of what was done.
            let done = read_metrics(&run.join(run_files::METRICS)).map_or(0, |epochs| epochs.len());
            found.push(UnfinishedRun { model: config.model, epochs: config.epochs, done });
        }
    }
    Ok(found)
}

impl RunLine {
    fn of(run: &FinishedRun) -> Result<Self> {
        let summary = &run.summary;
        let config = run.folder.join(run_files::CONFIG);
        // A run that another command made has other settings in it.
        let config = RunConfig::load(&config).ok();
        let data = without_folders(&summary.data);
        let stem = data.split('.').next().unwrap_or(&data);
        let limited = config.as_ref().and_then(|config| config.limit_train);
        let name = format!(
            "{}-{stem}-{}-e{}{}-s{}",
            summary.model,
            summary.recipe,
            summary.epochs,
            limited.map_or(String::new(), |images| format!("-n{images}")),
            summary.seed
        );
        Ok(Self {
            run: name,
            model: summary.model.clone(),
            recipe: summary.recipe.clone(),
            epochs: summary.epochs,
            seed: summary.seed,
            batch_size: summary.batch_size,
            train_images: summary.train_images,
            eval_images: summary.eval_images,
            params: summary.params,
            macs: summary.macs,
            steps: summary.steps,
            train_loss: summary.train_loss,
            train_top1: summary.train_top1,
            eval_loss: summary.eval_loss,
            eval_top1: summary.eval_top1,
            eval_top5: summary.eval_top5,
            seconds: summary.seconds,
            images_per_second: summary.images_per_second,
            threads: summary.threads,
            device: summary.device.clone(),
            machine: cpu_name(),
            command: config.map_or(String::new(), |config| command(&config, &data)),
            data,
        })
    }
}

/// A path's last part: where data lies on a machine says nothing to others.
pub fn without_folders(data: &str) -> String {
    Path::new(data).file_name().map_or_else(|| data.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The command that makes a run.
fn command(config: &RunConfig, data: &str) -> String {
    let RunConfig { model, recipe, epochs, seed, .. } = config;
    let own = RunConfig::new(model, data, *recipe).ok();
    let mut command =
        format!("hetconv train --model {model} --data {data} --recipe {recipe} --epochs {epochs} --seed {seed}");
    let mut add = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            command.push_str(&format!(" --{flag} {value}"));
        }
    };
    let changed = |is_own: Option<bool>, value: String| if is_own == Some(true) { None } else { Some(value) };
    let batch_size = own.as_ref().map(|own| own.batch_size == config.batch_size);
    add("batch-size", changed(batch_size, config.batch_size.to_string()));
    add("lr", changed(own.as_ref().map(|own| own.lr == config.lr), config.lr.to_string()));
    add("accumulate", (config.accumulate != 1).then(|| config.accumulate.to_string()));
    add("limit-train", config.limit_train.map(|images| images.to_string()));
    add("image-size", config.image_size.map(|pixels| pixels.to_string()));
    command
}

impl EpochLine {
    fn new(run: &str, epoch: &EpochMetrics) -> Self {
        Self {
            run: run.to_owned(),
            epoch: epoch.epoch,
            lr: epoch.lr,
            train_loss: epoch.train_loss,
            train_top1: epoch.train_top1,
            eval_loss: epoch.eval_loss,
            eval_top1: epoch.eval_top1,
            eval_top5: epoch.eval_top5,
            images_per_second: epoch.images_per_second,
            seconds: epoch.seconds,
        }
    }
}

impl From<&EpochLine> for EpochMetrics {
    fn from(line: &EpochLine) -> Self {
        Self {
            epoch: line.epoch,
            lr: line.lr,
            train_loss: line.train_loss,
            train_top1: line.train_top1,
            eval_loss: line.eval_loss,
            eval_top1: line.eval_top1,
            eval_top5: line.eval_top5,
            images_per_second: line.images_per_second,
            seconds: line.seconds,
        }
    }
}

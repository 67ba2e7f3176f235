//! A run under way: steps, epochs, checkpoints.

use std::cell::Cell;
use std::cmp::Ordering;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hetconv_burn::GraphModule;
use hetconv_graph::{ModelFile, Normalisation, Weights, remove_unfinished};
use hetconv_kernels::measure::cpu_name;

use super::evaluation::logits;
use super::learner::Learner;
use super::{StepReport, TrainError, TrainJob, TrainObserver, burn_device, evaluate_with, run_files};
use crate::augment::Augment;
use crate::checkpoint::{Checkpoint, EpochSums, Progress};
use crate::config::{ConfigError, RunConfig};
use crate::loader::{BatchLoader, LoaderError, Position, TrainingBatches};
use crate::metrics::{EpochMetrics, MetricsWriter, Summary, is_metrics};
use crate::recipe::Recipe;

/// A run under way.
pub(super) struct Run<'a> {
    job: &'a TrainJob<'a>,
    recipe: Recipe,
    learner: Learner,
    normalisation: Normalisation,
    /// Digests of the training and of the held-out images.
    images: [String; 2],
    metrics: MetricsWriter,
    progress: Progress,
    /// The line of the newest finished epoch.
    newest: Option<EpochMetrics>,
    steps_per_epoch: u64,
    /// Whether a step was made in this process.
    has_learned: bool,
    /// When the last checkpoint was made, or the run began.
    kept: Instant,
    /// Held while the run is under way.
    _lock: Option<File>,
}

/// No more work than that is lost when a run is killed.
const LONGEST_WITHOUT_CHECKPOINT: Duration = Duration::from_secs(600);

impl<'a> Run<'a> {
    /// All of the run that is still to do.
    pub fn whole(
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
        let TrainJob { config, graph, data, out, .. } = job;
        let checkpoints = out.join(run_files::CHECKPOINTS);
        let [config_path, metrics_path] = [run_files::CONFIG, run_files::METRICS].map(|file| out.join(file));
        let found = Checkpoint::latest(&checkpoints)?;
        let newest = found.as_ref().map(|(path, _)| path.clone());
        let goes_on = found.is_some() && job.resume;
        if !goes_on {
            is_free(out, found.is_some())?;
        }
        let normalisation = start.map_or_else(|| data.train.normalisation(), |start| start.normalisation.clone());
        let images = data.digests();
        let steps_per_epoch = job.steps_per_epoch()?;
        let device = burn_device(config.device)?;
        let recipe = config.complete_recipe()?;
        let (learner, progress) = match &found {
            None => {
                let fresh = || Weights::init(graph, config.seed);
                let weights = start.map_or_else(fresh, |start| Ok(start.weights.clone()))?;
                (Learner::new(graph, &weights, recipe.optimizer, config.ema, &device)?, Progress::default())
            }
            Some((path, checkpoint)) => {
                is_of_job(job, checkpoint, path, &normalisation, &images, steps_per_epoch)?;
                (Learner::resumed(checkpoint, recipe.optimizer, config.ema, &device)?, checkpoint.progress)
            }
        };
        // Nothing is written before nothing can be wrong with the run.
        std::fs::create_dir_all(out).map_err(|source| TrainError::Io { path: out.to_path_buf(), source })?;
        let lock = lock(out)?;
        if lock.is_some() {
            // Of a run that was killed while it wrote.
            remove_unfinished(&checkpoints);
            remove_unfinished(out);
        }
        // Another process may have been at work until now.
        let has_moved = Checkpoint::latest(&checkpoints)?.map(|(path, _)| path) != newest;
        if has_moved || (!goes_on && holds_results(out)) {
            return Err(TrainError::Busy(out.to_path_buf()));
        }
        if !goes_on {
            config.save(&config_path)?;
        }
        let metrics = MetricsWriter::resume(&metrics_path, progress.position.epoch)?;
        Ok(Self {
            newest: crate::metrics::read_metrics(&metrics_path)?.pop(),
            job,
            recipe,
            learner,
            normalisation,
            images,
            metrics,
            progress,
            steps_per_epoch,
            has_learned: false,
            kept: Instant::now(),
            _lock: lock,
        })
    }

    fn train(&mut self, observer: &mut dyn TrainObserver) -> Result<(), TrainError> {
        let TrainJob { config, .. } = self.job;
        let mut loader = None;
        while self.progress.position.epoch < config.epochs {
            if self.progress.position.step == self.steps_per_epoch {
                self.end_epoch(observer)?;
                self.progress.position = Position { epoch: self.progress.position.epoch + 1, step: 0 };
                self.checkpoint()?;
                continue;
            }
            let loader = match &mut loader {
                Some(loader) => loader,
                none => none.insert(self.loader()?),
            };
            let started = Instant::now();
            let position = self.progress.position;
            self.step(loader, position, self.rate(self.progress.steps))?;
            self.progress.sums.seconds += started.elapsed().as_secs_f64();
            self.progress.steps += 1;
            self.has_learned = true;
            self.progress.position.step += 1;
            observer.step(&self.report());
            let stops = observer.stops();
            let is_step = config.checkpoint_every.is_some_and(|every| self.progress.steps.is_multiple_of(every));
            // At an epoch's end, too: evaluation may take longer than anybody wants to lose.
            let epoch_is_done = self.progress.position.step == self.steps_per_epoch;
            if epoch_is_done || stops || is_step || self.kept.elapsed() >= LONGEST_WITHOUT_CHECKPOINT {
                self.check_weights(position)?;
                self.checkpoint()?;
            }
            if stops {
                return Err(TrainError::Stopped { epochs: self.progress.position.epoch });
            }
        }
        Ok(())
    }

    /// The batches that are still to come.
    fn loader(&self) -> Result<BatchLoader, TrainError> {
        let TrainJob { config, data, .. } = self.job;
        let Position { epoch, step } = self.progress.position;
        let usual = Augment::usual(&data.train);
        let batches = TrainingBatches {
            batch_size: config.batch_size,
            augment: Augment { cutout: config.cutout.unwrap_or(0), flip: usual.flip && !config.no_flip, ..usual },
            seed: config.seed,
            // The loader counts batches, the run counts steps.
            start: Position { epoch, step: step * config.accumulate },
            epochs: config.epochs,
        };
        Ok(BatchLoader::training(data.train.clone(), &self.normalisation, batches)?)
    }

    /// The learning rate of a step of the run, counted from 0.
    fn rate(&self, step: u64) -> f64 {
        let total = self.steps_per_epoch * self.job.config.epochs;
        self.recipe.schedule.lr(step, self.steps_per_epoch, total)
    }

    /// One step of the optimizer, from as many batches as the settings say.
    fn step(&mut self, loader: &mut BatchLoader, position: Position, rate: f64) -> Result<(), TrainError> {
        let TrainJob { config, .. } = self.job;
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
            let out =
                self.learner.network.step(batch.images, images, &batch.labels, self.recipe.label_smoothing as f32)?;
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
            self.learner.learn(gradients, rate);
        }
        Ok(())
    }

    fn diverged(&self, position: Position, what: String) -> TrainError {
        let kept = match Checkpoint::latest(&self.checkpoints()) {
            Ok(Some((path, _))) => format!("a run at a lower rate can begin with {}", path.display()),
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

    /// Judges the network after an epoch's last step.
    fn end_epoch(&mut self, observer: &mut dyn TrainObserver) -> Result<(), TrainError> {
        let TrainJob { config, data, .. } = self.job;
        let network = self.learner.judged();
        // After the epoch's last step there is a checkpoint.
        let stops = Cell::new(false);
        let mut watch = |done, images| {
            observer.evaluation(done, images);
            stops.set(observer.stops());
        };
        let logits = |pixels, images| match stops.get() {
            true => Err(TrainError::Stopped { epochs: self.progress.position.epoch }),
            false => logits(network, pixels, images),
        };
        let (split, batch) = (&data.test, config.batch_size);
        let evaluation = evaluate_with(network.classes(), split, &self.normalisation, batch, &mut watch, logits)?;
        if !evaluation.loss.is_finite() {
            let Position { epoch, step } = self.progress.position;
            let last = Position { epoch, step: step.saturating_sub(1) };
            return Err(self.diverged(last, format!("the held-out loss is {}", evaluation.loss)));
        }
        let report = self.report();
        let sums = std::mem::take(&mut self.progress.sums);
        self.progress.seconds += sums.seconds;
        let row = EpochMetrics {
            epoch: report.epoch + 1,
            lr: self.rate(self.progress.steps - 1),
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

    fn model(&self, network: &GraphModule) -> ModelFile {
        ModelFile {
            graph: self.job.graph.clone(),
            weights: network.weights(),
            classes: self.job.data.classes.clone(),
            normalisation: self.normalisation.clone(),
        }
    }

    /// Weights that are not finite never take the place of a good checkpoint.
    fn check_weights(&self, position: Position) -> Result<(), TrainError> {
        let checked = self.learner.network.weights().check_values(&self.job.graph);
        checked.map_err(|error| self.diverged(position, error.to_string()))
    }

    fn checkpoint(&mut self) -> Result<(), TrainError> {
        let checkpoint = Checkpoint {
            model: self.model(&self.learner.network),
            velocity: self.learner.velocity(),
            average: self.learner.average(),
            progress: self.progress,
            config_digest: self.job.config.digest(),
            images: Some(self.images.clone()),
        };
        checkpoint.save(&self.checkpoints())?;
        self.kept = Instant::now();
        Ok(())
    }

    /// Writes the model and the summary.
    fn finish(self) -> Result<Summary, TrainError> {
        let TrainJob { config, graph, data, out, .. } = self.job;
        self.model(self.learner.judged()).save(&out.join(run_files::MODEL))?;
        let cost = graph.cost()?;
        let last = self.newest.unwrap_or_default();
        let images = self.progress.steps * config.accumulate * config.batch_size as u64;
        // A run that had come to its end, and lost its model, was trained where its summary says.
        let path = out.join(run_files::SUMMARY);
        let finished = Summary::load(&path).ok().filter(|_| !self.has_learned);
        let (threads, machine) = match finished {
            Some(earlier) => (earlier.threads, earlier.machine),
            None => (rayon::current_num_threads(), cpu_name()),
        };
        let summary = Summary {
            model: graph.name.clone(),
            data: data.name.clone(),
            recipe: config.recipe.to_string(),
            seed: config.seed,
            epochs: config.epochs,
            steps: self.progress.steps,
            batch_size: config.batch_size,
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
            threads,
            device: config.device.to_string(),
            machine,
            images: Some(self.images.clone()),
        };
        summary.save(&path)?;
        Ok(summary)
    }
}

fn holds_results(out: &Path) -> bool {
    [run_files::MODEL, run_files::SUMMARY].iter().any(|file| out.join(file).exists())
}

/// Whether a run may begin in the folder: no other is there, and no file of somebody's that it would replace.
fn is_free(out: &Path, has_checkpoint: bool) -> Result<(), TrainError> {
    if has_checkpoint || holds_results(out) {
        return Err(TrainError::Occupied(out.to_path_buf()));
    }
    let [config, metrics] = [run_files::CONFIG, run_files::METRICS].map(|file| out.join(file));
    if config.exists() {
        match RunConfig::load(&config) {
            Ok(_) => {}
            Err(error @ ConfigError::Io { .. }) => return Err(error.into()),
            Err(_) => return Err(TrainError::Foreign(config)),
        }
    }
    if metrics.exists() && !is_metrics(&metrics)? {
        return Err(TrainError::Foreign(metrics));
    }
    Ok(())
}

/// Whether a checkpoint is one of this run: of its settings, and of its images and classes.
fn is_of_job(
    job: &TrainJob<'_>,
    checkpoint: &Checkpoint,
    path: &Path,
    normalisation: &Normalisation,
    images: &[String; 2],
    steps_per_epoch: u64,
) -> Result<(), TrainError> {
    let TrainJob { config, graph, data, .. } = job;
    let Checkpoint { model, average, progress, config_digest, .. } = checkpoint;
    if *config_digest != config.digest() || model.graph != *graph || average.is_some() != config.ema.is_some() {
        return Err(TrainError::OtherSettings(path.to_path_buf()));
    }
    // Older checkpoints do not say of which images they are; the mean and deviation of all pixels tell those in memory from
    // any others, and of photos there are as many as made the steps so far.
    let Progress { position, steps, .. } = progress;
    let expected = position.epoch.checked_mul(steps_per_epoch).and_then(|all| all.checked_add(position.step));
    if model.classes != data.classes
        || model.normalisation != *normalisation
        || checkpoint.images.as_ref().is_some_and(|stated| stated != images)
        || Some(*steps) != expected
        || position.step > steps_per_epoch
    {
        return Err(TrainError::OtherData { data: data.name.clone(), checkpoint: path.to_path_buf() });
    }
    Ok(())
}

/// A lock on a run's folder, which goes with this process whatever happens to it; nothing where files cannot be locked.
fn lock(folder: &Path) -> Result<Option<File>, TrainError> {
    let path = folder.join(run_files::LOCK);
    let fault = |source| TrainError::Io { path: path.clone(), source };
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(fault)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
            tracing::warn!("{} cannot be locked against a second process: {error}", path.display());
            Ok(None)
        }
        Err(TryLockError::WouldBlock) => Err(TrainError::Busy(folder.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(fault(source)),
    }
}

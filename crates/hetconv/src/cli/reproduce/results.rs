//! Results that rows are made of: runs from folders, and lines of `runs.csv`, `epochs.csv` and `measurements.csv`, each
//! with where it came from.

use std::path::Path;

use anyhow::{Context, Result, bail};
use hetconv::kernels::measure::cpu_name;
use hetconv::train::{Device, EpochMetrics, Recipe, RunConfig, read_whole_metrics, run_files};
use serde::{Deserialize, Serialize};

use super::measure::Wanted;
use crate::cli::files::{read_csv, write_csv};
use crate::cli::images::join;
use crate::cli::output::causes;
use crate::cli::prune;
use crate::cli::runs::{self, FinishedRun};

/// The names of the files of results.
pub const RUNS: &str = "runs.csv";
const EPOCHS: &str = "epochs.csv";
pub const MEASUREMENTS: &str = "measurements.csv";

/// A finished run: a line of `runs.csv`. Accuracies are shares from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunLine {
    /// Network, setting and seed: a run with the same name is the same run.
    pub run: String,
    pub model: String,
    /// All that decides what is computed besides network and seed: see [`setting`].
    pub setting: String,
    pub data: String,
    pub recipe: String,
    pub epochs: u64,
    pub seed: u64,
    pub batch_size: usize,
    pub train_images: usize,
    pub eval_images: usize,
    pub params: u64,
    pub macs: u64,
    /// Of the whole network, if this one was pruned from it and that is known.
    #[serde(default)]
    pub macs_before_pruning: Option<u64>,
    /// Of all training, that before pruning included; nothing if not known.
    pub training_macs: Option<u64>,
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
    /// Where it was trained, as its summary says; where it was taken into the results, if that says nothing.
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

/// Machine, instruction set and threads.
pub type Conditions<'a> = (&'a str, &'a str, usize);

impl Measurement {
    fn conditions(&self) -> Conditions<'_> {
        (&self.machine, &self.isa, self.threads)
    }

    /// Of lines with the same key one is enough.
    fn key(&self) -> (&str, What, usize, Conditions<'_>) {
        (&self.network, self.what, self.batch, self.conditions())
    }
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

/// Measurements, and where each was found.
#[derive(Debug, Default)]
pub struct Measurements(Vec<(Measurement, String)>);

/// All results there are.
#[derive(Default)]
pub struct Results {
    pub runs: Vec<StoredRun>,
    pub unfinished: Vec<UnfinishedRun>,
    pub measurements: Measurements,
}

impl Results {
    /// Reads the folders of runs below `runs`, and the files of results in each of `folders`. What is found first counts.
    pub fn read(run_folders: &Path, folders: &[&Path]) -> Result<Self> {
        let mut results = Self::default();
        if run_folders.is_dir() {
            for folder in runs::find(&[run_folders.to_owned()])? {
                let stored = || {
                    let run = runs::load(&folder)?;
                    let origin = folder.join(run_files::SUMMARY).display().to_string();
                    anyhow::Ok(StoredRun { line: RunLine::of(&run)?, epochs: run.epochs, origin })
                };
                match stored() {
                    Ok(run) => results.add_run(run),
                    Err(error) => {
                        tracing::warn!("passing over the run in {}: {}", folder.display(), causes(&error).join(": "));
                    }
                }
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
                if results.measurements.0.iter().all(|(known, _)| known.key() != line.key()) {
                    results.measurements.0.push((line, origin(&path, i)));
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
}

impl Measurements {
    /// Those of one machine, instruction set and number of threads, since times of different ones are not to be compared:
    /// those under which most of `wanted` was measured; of several `here`, or else those found first.
    pub fn alike(&self, wanted: &[Wanted], here: Conditions<'_>) -> Self {
        let is_wanted = |line: &Measurement| {
            wanted.iter().any(|wanted| {
                (wanted.what, wanted.subject.name(), wanted.batch) == (line.what, &*line.network, line.batch)
            })
        };
        let mut counts: Vec<(Conditions<'_>, usize)> = Vec::new();
        for (line, _) in self.0.iter().filter(|(line, _)| is_wanted(line)) {
            match counts.iter_mut().find(|(known, _)| *known == line.conditions()) {
                Some((_, count)) => *count += 1,
                None => counts.push((line.conditions(), 1)),
            }
        }
        // Of equal ones the last is the largest.
        let chosen = counts.iter().rev().max_by_key(|(conditions, count)| (*count, *conditions == here));
        let chosen = chosen.map(|(conditions, _)| *conditions);
        Self(self.0.iter().filter(|(line, _)| Some(line.conditions()) == chosen).cloned().collect())
    }

    /// A measurement and where it was found.
    pub fn get(&self, what: What, network: &str, batch: usize) -> Option<&(Measurement, String)> {
        let is_meant = |line: &Measurement| line.what == what && line.network == network && line.batch == batch;
        self.0.iter().find(|(line, _)| is_meant(line))
    }

    /// On what those of these networks were made.
    pub fn made_on(&self, networks: &[&str]) -> Option<String> {
        let (line, _) = self.0.iter().find(|(line, _)| networks.contains(&&*line.network))?;
        Some(format!("{}, {} threads, {}", line.machine, line.threads, line.isa))
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
    let (runs_path, epochs_path) = (folder.join(RUNS), folder.join(EPOCHS));
    let mut old: Vec<RunLine> = read_csv(&runs_path)?;
    for (new, old) in lines.iter().flat_map(|new| old.iter().map(move |old| (new, old))) {
        let network = |line: &RunLine| (line.params, line.macs);
        if new.run == old.run && network(new) != network(old) {
            bail!(
                "{} has {} of a network with {} parameters and {} MACs, not {} and {}: another one of that name",
                runs_path.display(),
                old.run,
                old.params,
                old.macs,
                new.params,
                new.macs
            );
        }
        if new.run == old.run && new.images() != old.images() {
            let ([train, eval], [old_train, old_eval]) = (new.images(), old.images());
            bail!(
                "{} has {} of {old_train} and {old_eval} images, not {train} and {eval}: another data set of that name",
                runs_path.display(),
                old.run
            );
        }
    }
    let is_new = |run: &str| lines.iter().any(|line| line.run == run);
    old.retain(|line| !is_new(&line.run));
    let old_epochs = read_csv(&epochs_path)?.into_iter().filter(|line: &EpochLine| !is_new(&line.run));
    epochs.extend(old_epochs.collect::<Vec<_>>());
    lines.extend(old);
    lines.sort_by(|a, b| a.run.cmp(&b.run));
    epochs.sort_by(|a, b| (&a.run, a.epoch).cmp(&(&b.run, b.epoch)));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_csv(&runs_path, &lines)?;
    write_csv(&epochs_path, &epochs)
}

/// Adds measurements to the file in a folder; one of the same thing under the same conditions takes the place of the earlier
/// one.
pub fn add_measurements(folder: &Path, found: Vec<Measurement>) -> Result<()> {
    let path = folder.join(MEASUREMENTS);
    let mut lines: Vec<Measurement> = read_csv(&path)?;
    lines.retain(|old| found.iter().all(|new| new.key() != old.key()));
    lines.extend(found);
    lines.sort_by(|a, b| a.key().cmp(&b.key()));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_csv(&path, &lines)
}

/// The runs below a folder that were begun and not finished; settings of other versions or programs are passed over with a
/// warning.
fn unfinished(folder: &Path) -> Result<Vec<UnfinishedRun>> {
    let mut found = Vec::new();
    for run in runs::find_unfinished(&[folder.to_owned()])? {
        match RunConfig::load(&run.join(run_files::CONFIG)) {
            // A file's network may be called like one of the zoo's.
            Ok(RunConfig { from: Some(_), .. }) => {}
            Ok(RunConfig { model, epochs, .. }) => {
                let done = read_whole_metrics(&run.join(run_files::METRICS)).map_or(0, |epochs| epochs.len());
                found.push(UnfinishedRun { model, epochs, done });
            }
            Err(error) => tracing::warn!("passing over {}: {error}", run.display()),
        }
    }
    Ok(found)
}

impl RunLine {
    /// Whether the run began with fresh weights, or with those of a pruned run whose training is known. The network of a
    /// file may be called like one of the zoo's.
    pub fn is_whole(&self) -> bool {
        self.training_macs.is_some()
    }

    /// Training and held-out images: data sets of one name may be different ones.
    pub fn images(&self) -> [usize; 2] {
        [self.train_images, self.eval_images]
    }

    /// What its setting has besides data, recipe and epochs.
    pub fn more_settings(&self) -> String {
        let usual = format!("{}-e{}", self.recipe, self.epochs);
        let more = self.setting.split_once(&usual).map_or("", |(_, more)| more);
        more.trim_start_matches('-').to_owned()
    }

    fn of(run: &FinishedRun) -> Result<Self> {
        let FinishedRun { config, summary, .. } = run;
        let setting = setting(config, &summary.data);
        Ok(Self {
            run: format!("{}-{setting}-s{}", summary.model, summary.seed),
            setting,
            model: summary.model.clone(),
            data: without_folders(&summary.data),
            recipe: summary.recipe.clone(),
            epochs: summary.epochs,
            seed: summary.seed,
            batch_size: summary.batch_size,
            train_images: summary.train_images,
            eval_images: summary.eval_images,
            params: summary.params,
            macs: summary.macs,
            macs_before_pruning: prune::macs_before(run)?,
            training_macs: prune::training_macs(run)?,
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
            machine: Some(&summary.machine).filter(|name| !name.is_empty()).cloned().unwrap_or_else(cpu_name),
            command: command(config, &summary.data),
        })
    }
}

/// A path's last part: where data lies on a machine says nothing to others.
pub fn without_folders(data: &str) -> String {
    Path::new(data).file_name().map_or_else(|| data.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Settings by their flags of the command line, as far as they are not those that a recipe has by itself.
pub fn changed_settings(config: &RunConfig) -> Vec<(&'static str, String)> {
    let own = config.own_recipe().ok();
    let is_own = |is_same: &dyn Fn(&Recipe) -> bool| own.as_ref().is_some_and(is_same);
    // All of them by name, so that none is forgotten.
    let RunConfig {
        // Told otherwise.
        model: _,
        from: _,
        data: _,
        recipe: _,
        epochs: _,
        seed: _,
        // Changes no result.
        checkpoint_every: _,
        batch_size,
        lr,
        accumulate,
        limit_train,
        image_size,
        hold_out,
        cutout,
        ema,
        no_flip,
        device,
        normalisation,
        pruned,
    } = config;
    let changed = |is_changed: bool, value: String| is_changed.then_some(value);
    let from = pruned.as_ref();
    let settings = [
        ("batch-size", changed(!is_own(&|own| *batch_size == own.batch_size), batch_size.to_string())),
        ("lr", changed(!is_own(&|own| *lr == own.schedule.peak()), lr.to_string())),
        ("accumulate", changed(*accumulate != 1, accumulate.to_string())),
        ("limit-train", limit_train.map(|images| images.to_string())),
        ("image-size", image_size.map(|pixels| pixels.to_string())),
        ("hold-out", hold_out.map(|percent| percent.to_string())),
        ("cutout", cutout.map(|pixels| pixels.to_string())),
        ("ema", ema.map(|decay| decay.to_string())),
        ("no-flip", changed(*no_flip, String::new())),
        ("device", changed(*device != Device::default(), device.to_string())),
        ("mean", normalisation.as_ref().map(|given| join(&given.mean))),
        ("std", normalisation.as_ref().map(|given| join(&given.std))),
        ("ratio", from.and_then(|from| from.ratio).map(|ratio| ratio.to_string())),
        ("macs", from.and_then(|from| from.macs).map(|macs| macs.to_string())),
    ];
    settings.into_iter().filter_map(|(flag, value)| Some((flag, value?))).collect()
}

/// Settings as the command line takes them, each behind a space; a flag without a value has an empty one.
pub fn as_flags(settings: &[(&str, String)]) -> String {
    let flag = |(flag, value): &(&str, String)| format!(" {}", format!("--{flag} {value}").trim_end());
    settings.iter().map(flag).collect()
}

/// What a run's setting on some data is called: data, recipe, epochs, and whatever is not the recipe's own. Runs of one
/// setting differ in network and seed only.
pub fn setting(config: &RunConfig, data: &str) -> String {
    let data = without_folders(data);
    let data = data.strip_suffix(".zip").unwrap_or(&data);
    let more = changed_settings(config).into_iter().map(|(flag, value)| format!("-{flag}{value}"));
    let from = match (&config.pruned, &config.from) {
        (Some(from), _) => format!("-of-{}", source_name(&from.file)),
        (None, Some(file)) => format!("-from-{}", source_name(file)),
        (None, None) => String::new(),
    };
    format!("{data}-{}-e{}{}{from}", config.recipe, config.epochs, more.collect::<String>())
}

/// What the file is called that a network came from: the model file of a run goes by the run's folder, any other by its own
/// name and the last folder's.
pub fn source_name(file: &str) -> String {
    let path = Path::new(file);
    if let Some(folder) = runs::folder_of(path) {
        return without_folders(&folder.to_string_lossy());
    }
    let folder = path.parent().and_then(Path::file_name).map(Path::new).unwrap_or(Path::new(""));
    folder.join(without_folders(file)).display().to_string()
}

/// The command that makes a run.
fn command(config: &RunConfig, data: &str) -> String {
    let RunConfig { model, recipe, epochs, seed, .. } = config;
    // The run that a file comes from is known by its folder.
    let short = |file: &str| match runs::folder_of(Path::new(file)) {
        Some(_) => Path::new(&source_name(file)).join(run_files::MODEL).display().to_string(),
        None => source_name(file),
    };
    let what = match (&config.pruned, &config.from) {
        (Some(from), _) => format!("prune {}", short(&from.file)),
        (None, Some(file)) => format!("train --from {}", short(file)),
        (None, None) => format!("train --model {model}"),
    };
    let data = without_folders(data);
    let more = as_flags(&changed_settings(config));
    format!("hetconv {what} --data {data} --recipe {recipe} --epochs {epochs} --seed {seed}{more}")
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

#[cfg(test)]
mod tests {
    use super::super::measure::Subject;
    use super::*;
    use crate::cli::reproduce::tables::network;

    fn measurement(network: &str, machine: &str, threads: usize, median_ms: f64) -> Measurement {
        Measurement {
            what: What::Inference,
            network: network.into(),
            batch: 1,
            repetitions: 9,
            median_ms,
            p10_ms: median_ms,
            p90_ms: median_ms,
            threads,
            isa: "avx512".into(),
            machine: machine.into(),
            command: String::new(),
        }
    }

    #[test]
    fn times_of_one_table_are_of_one_machine_and_number_of_threads() {
        let wanted: Vec<Wanted> = ["small-cifar", "small-cifar_p4"]
            .map(|name| Wanted {
                what: What::Inference,
                subject: Subject::OfZoo(name, network(name).unwrap()),
                batch: 1,
            })
            .into();
        let folder = tempfile::tempdir().unwrap();
        let measured = |lines: Vec<Measurement>| {
            let ways = |line: &Measurement| (line.machine.clone(), line.threads, line.median_ms);
            add_measurements(folder.path(), lines).unwrap();
            let results = Results::read(Path::new("none"), &[folder.path()]).unwrap();
            let alike = results.measurements.alike(&wanted, ("one", "avx512", 2));
            alike.0.iter().map(|(line, _)| ways(line)).collect::<Vec<_>>()
        };
        let both = ["small-cifar", "small-cifar_p4"].map(|name| measurement(name, "one", 2, 1.0));
        measured(both.into());
        // One network measured elsewhere, or with other threads, stands beside them in the file and not in the table.
        let found = measured(vec![measurement("small-cifar_p4", "one", 1, 2.0), measurement("x", "other", 2, 3.0)]);
        assert_eq!(found, [("one".into(), 2, 1.0), ("one".into(), 2, 1.0)]);
        // With both measured so, too, what was measured as it would be here counts; what is measured again takes the place of
        // the old.
        let found =
            measured(vec![measurement("small-cifar", "one", 1, 4.0), measurement("small-cifar", "one", 2, 5.0)]);
        assert_eq!(found, [("one".into(), 2, 5.0), ("one".into(), 2, 1.0)]);
        let results = Results::read(Path::new("none"), &[folder.path()]).unwrap();
        let elsewhere = results.measurements.alike(&wanted, ("other", "avx2", 2));
        assert_eq!(elsewhere.made_on(&["small-cifar"]).unwrap(), "one, 1 threads, avx512");
    }
}

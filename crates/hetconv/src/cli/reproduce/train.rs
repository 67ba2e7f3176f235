//! `--run`: training of what is missing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hetconv::train::{Dataset, name_of, train};
use hetconv::train::{EpochMetrics, RecipeName, RunConfig, StepReport, TrainError, TrainJob, TrainObserver, run_files};

use super::paper::{Network, Table};
use super::results::{self, Results, RunLine, StoredRun};
use crate::cli::output::say;
use crate::cli::progress::TrainingProgress;
use crate::cli::train::{data_of, network};
use crate::cli::{runs, train::Settings};

/// What is trained, and for how long.
pub struct Order<'a> {
    pub data: &'a str,
    pub settings: &'a Settings,
    pub seeds: &'a [u64],
    /// The folder of runs.
    pub folder: &'a Path,
    pub time: Option<Duration>,
}

/// Trains every network of the tables that has no run yet with these settings, and goes on with what was interrupted.
/// Says what is left when time is up.
pub fn missing(tables: &[&Table], order: &Order<'_>, results: &Results) -> Result<()> {
    let until = order.time.map(|time| Instant::now() + time);
    for table in tables.iter().filter(|table| !table.is_trained) {
        say(&format!("{}: its networks are not trained by --run, but by `hetconv train`", table.name));
    }
    let rows = tables.iter().filter(|table| table.is_trained).flat_map(|table| table.rows);
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        match row.network {
            Network::Named(name) if !names.contains(&name) => names.push(name),
            Network::Named(_) | Network::Elsewhere(_) => {}
            Network::Pruned(of) => say(&format!("{of}, pruned: made by `hetconv prune` from a run of {of}")),
        }
    }
    let mut wanted: Vec<(RunConfig, PathBuf)> = Vec::new();
    let mut data: Option<Dataset> = None;
    for &seed in order.seeds {
        for name in &names {
            let own = |recipe| Ok(RunConfig::new(name, order.data, recipe)?);
            let config = RunConfig { seed, ..order.settings.config(RecipeName::OneCycle, own)? };
            config.validate()?;
            let run = known(&config, results)?;
            if run.is_some() && data.is_none() {
                data = Some(data_of(&config)?);
            }
            let images = data.as_ref().map(|data| [data.train.len(), data.test.len()]);
            match run.filter(|run| Some(run.line.images()) == images) {
                Some(run) => say(&format!("{name} seed {seed}: already trained, {}", run.origin)),
                None => {
                    let folder = order.folder.join(format!("{name}-s{seed}-e{}", config.epochs));
                    check_stored(&config, &folder)?;
                    wanted.push((config, folder));
                }
            }
        }
    }
    let Some((first, _)) = wanted.first() else { return Ok(()) };
    let data = data.map_or_else(|| data_of(first), Ok)?;
    for (done, (config, folder)) in wanted.iter().enumerate() {
        let name = format!("{} seed {} ({} of {})", config.model, config.seed, done + 1, wanted.len());
        if until.is_some_and(|until| Instant::now() >= until) || !one(config, folder, &data, &name, until)? {
            let left: Vec<String> =
                wanted[done..].iter().map(|(config, _)| format!("{} seed {}", config.model, config.seed)).collect();
            say(&format!("time is up; left to train: {}", left.join(", ")));
            break;
        }
    }
    Ok(())
}

/// The run of these settings on data of this name, if there is one.
fn known<'a>(config: &RunConfig, results: &'a Results) -> Result<Option<&'a StoredRun>> {
    let setting = results::setting(config, &name_of(&config.data));
    let is_same = |line: &RunLine| line.model == config.model && line.setting == setting && line.seed == config.seed;
    Ok(results.runs.iter().find(|run| is_same(&run.line)))
}

/// Whether the run in a folder, if there is one, has these very settings: said before hours are spent on others.
fn check_stored(config: &RunConfig, folder: &Path) -> Result<()> {
    let stored = folder.join(run_files::CONFIG);
    if stored.is_file() && RunConfig::load(&stored)?.digest() != config.digest() {
        bail!("{} holds a run with other settings; choose another --runs, or remove the folder", folder.display());
    }
    Ok(())
}

/// Trains one network, or goes on with it; whether it came to its end before time was up.
fn one(config: &RunConfig, folder: &Path, data: &Dataset, name: &str, until: Option<Instant>) -> Result<bool> {
    if runs::is_finished(folder) {
        return Ok(true);
    }
    let graph = network(config, data)?;
    let job = TrainJob { config, graph, data, recipe: config.complete_recipe()?, out: folder, resume: true };
    match train(job, &mut Until { progress: TrainingProgress::new(name), until }) {
        Ok(_) => Ok(true),
        Err(TrainError::Stopped { .. }) => Ok(false),
        Err(error) => Err(anyhow::Error::new(error).context(format!("training {name} in {} failed", folder.display()))),
    }
}

/// Shows progress, and stops at some moment.
struct Until {
    progress: TrainingProgress,
    until: Option<Instant>,
}

impl TrainObserver for Until {
    fn step(&mut self, report: &StepReport) {
        self.progress.step(report);
    }

    fn evaluation(&mut self, done: usize, images: usize) {
        self.progress.evaluation(done, images);
    }

    fn epoch(&mut self, metrics: &EpochMetrics) {
        self.progress.epoch(metrics);
    }

    fn stops(&mut self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

//! `--run`: training of what is missing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hetconv::train::{
    Dataset, EpochMetrics, PrunedFrom, RecipeName, RunConfig, StepReport, TrainError, TrainJob, TrainObserver, name_of,
    run_files,
};

use super::paper::{Network, Table};
use super::results::{self, Results, RunLine, StoredRun};
use crate::cli::files::place;
use crate::cli::interrupt;
use crate::cli::output::say;
use crate::cli::progress::TrainingProgress;
use crate::cli::prune::{self, Pruning};
use crate::cli::runs;
use crate::cli::train::{Settings, data_of, network, train_watched};

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
    let mut networks: Vec<Network> = Vec::new();
    for row in tables.iter().filter(|table| table.is_trained).flat_map(|table| table.rows) {
        if !networks.contains(&row.network) {
            networks.push(row.network);
        }
    }
    // A network is pruned when it has been trained.
    networks.sort_by_key(|network| matches!(network, Network::Pruned { .. }));
    let Some(first) = networks.iter().find_map(|network| named(*network)) else { return Ok(()) };
    let data = data_of(&order.config(first, order.seeds.first().copied().unwrap_or(0))?)?;
    let mut wanted: Vec<RunConfig> = Vec::new();
    for &seed in order.seeds {
        for &network in &networks {
            let config = match network {
                Network::Named(name) => order.config(name, seed)?,
                Network::Pruned { of, like } => order.config_of_pruned(of, like, seed, &data)?,
                Network::Elsewhere(_) => continue,
            };
            let images = [data.train.len(), data.test.len()];
            // Of a pruned run that was cut short before its report, only that is missing.
            let is_whole = |line: &RunLine| config.pruned.is_none() || line.macs_before_pruning.is_some();
            let known = known(&config, results)?;
            if let Some(run) = known.filter(|run| run.line.images() == images && is_whole(&run.line)) {
                say(&format!("{} seed {seed}: already trained, {}", config.model, run.origin));
                continue;
            }
            if let Network::Pruned { of, .. } = network {
                let whole = order.config(of, seed)?;
                let folder = order.folder_of(&whole);
                runs::check_settings(&whole, &folder, "--runs")?;
                if runs::is_finished(&folder) && !folder.join(run_files::MODEL).is_file() {
                    bail!("{} holds a finished run without its weights; remove it to train it again", folder.display());
                }
                if !runs::is_finished(&folder) && !wanted.contains(&whole) {
                    say(&format!(
                        "{of} seed {seed}: trained once more, for its weights are not in {}",
                        order.folder.display()
                    ));
                    wanted.push(whole);
                }
            }
            wanted.push(config);
        }
    }
    for config in &wanted {
        runs::check_settings(config, &order.folder_of(config), "--runs")?;
    }
    for (done, config) in wanted.iter().enumerate() {
        let name = format!("{} seed {} ({} of {})", config.model, config.seed, done + 1, wanted.len());
        let is_up = until.is_some_and(|until| Instant::now() >= until);
        if is_up || !one(config, &order.folder_of(config), &data, &name, until)? {
            let left: Vec<String> =
                wanted[done..].iter().map(|config| format!("{} seed {}", config.model, config.seed)).collect();
            say(&format!("time is up; left to train: {}", left.join(", ")));
            break;
        }
    }
    Ok(())
}

fn named(network: Network) -> Option<&'static str> {
    match network {
        Network::Named(name) => Some(name),
        Network::Pruned { .. } | Network::Elsewhere(_) => None,
    }
}

impl Order<'_> {
    /// The settings of a network's run.
    fn config(&self, name: &str, seed: u64) -> Result<RunConfig> {
        self.completed(seed, |recipe| Ok(RunConfig::new(name, self.data, recipe)?))
    }

    /// The settings of the run of a network pruned to the MACs of another one.
    fn config_of_pruned(&self, of: &str, like: &str, seed: u64, data: &Dataset) -> Result<RunConfig> {
        let whole = self.config(of, seed)?;
        let file = self.folder_of(&whole).join(run_files::MODEL);
        let whole = network(&whole, data)?;
        let macs = network(&self.config(like, seed)?, data)?.cost()?.macs;
        let from = PrunedFrom { file: file.display().to_string(), ratio: None, macs: Some(macs) };
        let own = |recipe| Ok(RunConfig::of_pruned(from, &whole, self.data, recipe));
        let mut config = self.completed(seed, own)?;
        // The same file may have been called otherwise when the run began.
        let stored = RunConfig::load(&self.folder_of(&config).join(run_files::CONFIG)).ok();
        if let (Some(from), Some(stored)) = (&mut config.pruned, stored.and_then(|stored| stored.pruned))
            && place(&from.file) == place(&stored.file)
        {
            from.file = stored.file;
        }
        Ok(config)
    }

    fn completed(&self, seed: u64, own: impl FnOnce(RecipeName) -> Result<RunConfig>) -> Result<RunConfig> {
        let config = RunConfig { seed, ..self.settings.config(RecipeName::OneCycle, own)? };
        config.validate()?;
        Ok(config)
    }

    /// The folder of a run.
    fn folder_of(&self, config: &RunConfig) -> PathBuf {
        self.folder.join(format!("{}-s{}-e{}", config.model, config.seed, config.epochs))
    }
}

/// The run of these settings on data of this name, if there is one.
fn known<'a>(config: &RunConfig, results: &'a Results) -> Result<Option<&'a StoredRun>> {
    let setting = results::setting(config, &name_of(&config.data));
    let is_same = |line: &RunLine| line.model == config.model && line.setting == setting && line.seed == config.seed;
    Ok(results.runs.iter().find(|run| is_same(&run.line)))
}

/// Trains one network, or goes on with it; whether it came to its end before time was up.
fn one(config: &RunConfig, folder: &Path, data: &Dataset, name: &str, until: Option<Instant>) -> Result<bool> {
    let mut observer = Until { progress: TrainingProgress::new(name), until };
    let trained = match &config.pruned {
        Some(from) if !prune::is_finished(folder) => {
            Pruning::of(from)?.train(config, data, folder, true, name, &mut observer).map(drop)
        }
        None if !runs::is_finished(folder) => {
            let job = TrainJob { config, graph: network(config, data)?, data, out: folder, resume: true };
            train_watched(job, None, name, &mut observer).map(drop)
        }
        _ => Ok(()),
    };
    match trained {
        Err(error) if matches!(error.downcast_ref(), Some(TrainError::Stopped { .. })) && !interrupt::is_asked() => {
            Ok(false)
        }
        trained => trained.map(|()| true),
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
        self.progress.stops() || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

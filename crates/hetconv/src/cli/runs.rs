//! Finished runs on disk, and what a report tells of them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hetconv::graph::{Graph, ModelFile};
use hetconv::report::{Epoch, Run, Variant};
use hetconv::train::{EpochMetrics, RunConfig, Summary, read_metrics, run_files};

use super::files::place;
use super::{model, summary::reduction};

/// A run's folder, read.
pub struct FinishedRun {
    pub folder: PathBuf,
    pub config: RunConfig,
    pub summary: Summary,
    pub epochs: Vec<EpochMetrics>,
    pub graph: Graph,
}

/// Whether a folder holds a run that has come to its end.
pub fn is_finished(folder: &Path) -> bool {
    folder.join(run_files::SUMMARY).is_file()
}

/// As [`is_finished`], and its model is there; one that was lost is made again from the newest checkpoint.
pub fn is_whole(folder: &Path) -> bool {
    is_finished(folder) && folder.join(run_files::MODEL).is_file()
}

/// The folder of the run that made a model file, if it still lies where the run left it.
pub fn folder_of(file: &Path) -> Option<&Path> {
    file.parent().filter(|_| file.file_name().is_some_and(|name| name == run_files::MODEL))
}

/// The folder of the run that a model file or a checkpoint comes from, if it still lies where the run left it.
pub fn run_of(file: &Path) -> Option<&Path> {
    let of_checkpoint = || file.parent().filter(|folder| folder.ends_with(run_files::CHECKPOINTS))?.parent();
    folder_of(file).or_else(of_checkpoint)
}

/// Whether the run in a folder, if there is one, has these very settings: said before hours are spent on others. `flag` names
/// another folder.
pub fn check_settings(config: &RunConfig, folder: &Path, flag: &str) -> Result<()> {
    let stored = folder.join(run_files::CONFIG);
    if stored.is_file() && RunConfig::load(&stored)?.digest() != config.digest() {
        bail!(
            "{} holds a run with other settings than these; choose another {flag}, or remove the folder",
            folder.display()
        );
    }
    Ok(())
}

/// Reads a finished run.
pub fn load(folder: &Path) -> Result<FinishedRun> {
    let config = RunConfig::load(&folder.join(run_files::CONFIG))?;
    let summary = Summary::load(&folder.join(run_files::SUMMARY))?;
    let epochs = read_metrics(&folder.join(run_files::METRICS))?;
    let graph = load_model(folder)?.graph;
    Ok(FinishedRun { folder: folder.to_owned(), config, summary, epochs, graph })
}

/// Reads the network of a finished run.
pub fn load_model(folder: &Path) -> Result<ModelFile> {
    model::load(&folder.join(run_files::MODEL))
}

/// Whether a folder holds a run that was begun, and has not come to its end.
fn is_unfinished(folder: &Path) -> bool {
    folder.join(run_files::CONFIG).is_file() && !is_finished(folder)
}

/// The folders of finished runs in and below these, in the order of their names, each once.
pub fn find(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    search(folders, is_finished)
}

/// As [`find`], of unfinished runs.
pub fn find_unfinished(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    search(folders, is_unfinished)
}

fn search(folders: &[PathBuf], wanted: fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        walk(folder, 4, wanted, &mut found).with_context(|| format!("cannot read {}", folder.display()))?;
    }
    let mut places = HashSet::new();
    found.retain(|folder| places.insert(place(folder)));
    Ok(found)
}

fn walk(folder: &Path, depth: usize, wanted: fn(&Path) -> bool, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if wanted(folder) {
        found.push(folder.to_owned());
    }
    if is_finished(folder) {
        return Ok(());
    }
    let entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut below: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    below.sort();
    if depth > 0 {
        below.iter().try_for_each(|path| walk(path, depth - 1, wanted, found))?;
    }
    Ok(())
}

/// A network as a row of a report, beside the standard one.
pub fn describe(label: impl Into<String>, graph: &Graph) -> Result<Variant> {
    let variant = Variant::of_graph(label, graph)?;
    let standard = model::standard(graph)?.cost()?;
    Ok(Variant { macs_reduction_percent: Some(reduction(variant.macs, standard.macs)), ..variant })
}

/// Runs of one network as a row of a report.
pub fn variant(label: String, ms_per_image: Option<f64>, runs: &[&FinishedRun]) -> Result<Variant> {
    let first = runs.first().context("a network without a run")?;
    let by_the_clock = |epoch: &EpochMetrics| epoch.seconds;
    let runs = runs.iter().map(|run| report_run(run.summary.seed, run.summary.eval_top1, &run.epochs, by_the_clock));
    Ok(Variant { ms_per_image, runs: runs.collect(), ..describe(label, &first.graph)? })
}

/// On what runs were trained, each once: where there are several, their times of training are not to be compared.
pub fn trained_on<'a>(runs: impl Iterator<Item = &'a FinishedRun>) -> Vec<String> {
    let on = |Summary { machine, device, threads, .. }: &Summary| {
        let machine = if machine.is_empty() { "an unnamed CPU" } else { machine };
        let threads = format!("{threads} {}", if *threads == 1 { "thread" } else { "threads" });
        match device.as_str() {
            "cpu" => format!("{machine}, {threads}"),
            device => format!("{device} beside {machine}, {threads}"),
        }
    };
    let mut found: Vec<String> = runs.map(|run| on(&run.summary)).collect();
    found.sort();
    found.dedup();
    found
}

/// What a page says of them.
pub fn about_training(trained_on: &[String]) -> String {
    match trained_on {
        [only] => only.clone(),
        several => format!("{}: times of training are left out, since they do not compare", several.join("; ")),
    }
}

/// A run as a report tells of it, with the seconds that each epoch took; accuracies come as shares, and are told in per
/// cent.
pub fn report_run(seed: u64, top1: f64, epochs: &[EpochMetrics], seconds: impl Fn(&EpochMetrics) -> f64) -> Run {
    let mut so_far = 0.0;
    let told = epochs.iter().map(|row| {
        so_far += seconds(row);
        Epoch {
            seconds: so_far,
            train_loss: row.train_loss,
            eval_loss: row.eval_loss,
            eval_top1: 100.0 * row.eval_top1,
        }
    });
    let told: Vec<Epoch> = told.collect();
    Run { seed, top1: 100.0 * top1, seconds: so_far, epochs: told }
}

//! Finished runs on disk, and what a report tells of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::report::{Epoch, Run, Variant};
use hetconv::train::{EpochMetrics, Summary, read_metrics, run_files};

use super::{model, summary::reduction};

/// A run's folder, read.
pub struct FinishedRun {
    pub summary: Summary,
    pub epochs: Vec<EpochMetrics>,
    /// Parameters, MACs and so on of its network, and of the standard one.
    pub size: Size,
}

/// What a network costs, beside the standard one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub params: u64,
    pub macs: u64,
    pub macs_reduction_percent: f64,
    pub stages: u64,
}

impl Size {
    pub fn of(graph: &hetconv::graph::Graph) -> Result<Self> {
        let (cost, standard) = (graph.cost()?, model::standard(graph)?.cost()?);
        let macs_reduction_percent = reduction(cost.macs, standard.macs);
        Ok(Self { params: cost.params, macs: cost.macs, macs_reduction_percent, stages: cost.stages })
    }
}

/// Whether a folder holds a run that has come to its end.
pub fn is_finished(folder: &Path) -> bool {
    folder.join(run_files::SUMMARY).is_file()
}

/// Reads a finished run.
pub fn load(folder: &Path) -> Result<FinishedRun> {
    let summary = Summary::load(&folder.join(run_files::SUMMARY))?;
    let epochs = read_metrics(&folder.join(run_files::METRICS))?;
    let size = Size::of(&model::load(&folder.join(run_files::MODEL))?.graph)?;
    Ok(FinishedRun { summary, epochs, size })
}

/// The folders of finished runs in and below these, in the order of their names.
pub fn find(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        walk(folder, 4, &mut found).with_context(|| format!("cannot read {}", folder.display()))?;
    }
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if is_finished(folder) {
        found.push(folder.to_owned());
        return Ok(());
    }
    let entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut below: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    below.sort();
    if depth > 0 {
        below.iter().try_for_each(|path| walk(path, depth - 1, found))?;
    }
    Ok(())
}

/// Runs of one network as a row of a report.
pub fn variant(label: String, size: Size, ms_per_image: Option<f64>, runs: &[&FinishedRun]) -> Variant {
    Variant {
        label,
        params: size.params,
        macs: size.macs,
        macs_reduction_percent: Some(size.macs_reduction_percent),
        stages: size.stages,
        ms_per_image,
        runs: runs.iter().map(|run| report_run(run)).collect(),
    }
}

fn report_run(run: &FinishedRun) -> Run {
    let mut seconds = 0.0;
    let epochs = run.epochs.iter().map(|row| {
        seconds += row.seconds;
        Epoch { seconds, train_loss: row.train_loss, eval_loss: row.eval_loss, eval_top1: 100.0 * row.eval_top1 }
    });
    let epochs = epochs.collect();
    let Summary { seed, eval_top1, seconds, .. } = run.summary;
    Run { seed, top1: 100.0 * eval_top1, seconds, epochs }
}

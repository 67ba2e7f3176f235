//! A table of the paper from what there is: costs from the graphs, times and accuracies from results.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anyhow::Result;
use hetconv::graph::{Graph, ModelName, Substitution, pruned_name};
use hetconv::report::Variant;
use hetconv::units;
use serde::Serialize;

use super::measure::TRAINING_BATCH;
use super::paper::{Network, Row, Table};
use super::results::{Measurements, Results, RunLine, StoredRun, What};
use crate::cli::summary::reduction;
use crate::cli::{model, runs};

/// A row as it is printed: one for each setting in which its network was trained.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    pub table: &'static str,
    pub network: String,
    pub params: Option<u64>,
    pub macs: Option<u64>,
    pub macs_reduction_percent: Option<f64>,
    pub stages: Option<u64>,
    /// A batch of one image.
    pub ms_batch_1: Option<f64>,
    /// One image of a batch of 64.
    pub ms_per_image_batch_64: Option<f64>,
    /// Mean over the seeds, from 0 to 1.
    pub top1: Option<f64>,
    /// Half the range over the seeds.
    pub top1_spread: Option<f64>,
    pub seeds: usize,
    pub epochs: Option<u64>,
    pub data: String,
    pub recipe: String,
    /// What the setting of its runs has besides data, recipe and epochs.
    pub more_settings: String,
    /// MACs of all training of one run, that before pruning included.
    pub training_macs: Option<u64>,
    /// One step of 128 images.
    pub training_step_ms: Option<f64>,
    /// A run's steps, each at the measured time: what a run took by the clock is told by its own files.
    pub training_seconds: Option<f64>,
    /// What the standard network ended with in the same setting, mean over its seeds.
    pub standard_top1: Option<f64>,
    /// Epochs until the mean over the seeds was as good; none if it never was.
    pub epochs_to_standard_top1: Option<u64>,
    /// Those epochs at the measured time of a step.
    pub seconds_to_standard_top1: Option<f64>,
    /// Why there is no accuracy.
    pub status: String,
    pub published: String,
    /// Where the figures of this row stand.
    pub files: String,
}

/// A line and what charts need of it.
#[derive(Clone)]
pub struct Filled {
    pub line: Line,
    pub variant: Option<Variant>,
}

/// Fills a table: a row for each setting in which a network was trained, or one.
pub fn filled(spec: &Table, results: &Results, measured: &Measurements) -> Result<Vec<Filled>> {
    let mut filled = Vec::new();
    for row in spec.rows {
        let mut found = fill(spec, row, results, measured)?;
        label_apart(&mut found);
        found.iter_mut().for_each(|filled| filled.line.files = compact([filled.line.files.as_str()].into_iter()));
        filled.extend(found);
    }
    Ok(filled)
}

/// Adds to the names of one network's rows what their runs differ in.
fn label_apart(found: &mut [Filled]) {
    let ways: [fn(&Line) -> String; 5] = [
        |line| line.data.clone(),
        |line| format!("{} recipe", line.recipe),
        |line| format!("{} epochs", line.epochs.unwrap_or(0)),
        |line| if line.more_settings.is_empty() { "usual".to_owned() } else { line.more_settings.clone() },
        |line| units::count(line.macs.unwrap_or(0)),
    ];
    for way in ways {
        let texts: Vec<String> = found.iter().map(|filled| way(&filled.line)).collect();
        if texts.iter().all(|text| *text == texts[0]) {
            continue;
        }
        for (filled, text) in found.iter_mut().zip(texts) {
            if let Some(variant) = &mut filled.variant {
                variant.label.push_str(&format!(", {text}"));
            }
        }
    }
}

/// A list of files and lines, the lines of one file together: `a.csv:2; b.csv:3; a.csv:3,5` is `a.csv:2–3,5; b.csv:3`.
pub fn compact<'a>(files: impl Iterator<Item = &'a str>) -> String {
    let mut found: Vec<(&str, BTreeSet<u64>)> = Vec::new();
    for origin in files.flat_map(|files| files.split("; ")).filter(|origin| !origin.is_empty()) {
        let of_lines = origin.rsplit_once(':').and_then(|(file, lines)| Some((file, numbers(lines)?)));
        let (file, lines) = of_lines.unwrap_or((origin, BTreeSet::new()));
        match found.iter_mut().find(|(known, _)| *known == file) {
            Some((_, known)) => known.extend(lines),
            None => found.push((file, lines)),
        }
    }
    let text = |(file, lines): &(&str, BTreeSet<u64>)| {
        if lines.is_empty() { (*file).to_owned() } else { format!("{file}:{}", ranges(lines)) }
    };
    found.iter().map(text).collect::<Vec<_>>().join("; ")
}

/// The numbers that [`ranges`] writes.
fn numbers(text: &str) -> Option<BTreeSet<u64>> {
    let range = |range: &str| -> Option<RangeInclusive<u64>> {
        let (first, last) = range.split_once('–').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    Some(text.split(',').map(range).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Numbers in their order, those that follow each other as first and last.
fn ranges(numbers: &BTreeSet<u64>) -> String {
    let mut ranges: Vec<[u64; 2]> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some([_, last]) if *last + 1 == number => *last = number,
            _ => ranges.push([number; 2]),
        }
    }
    let text = |[first, last]: &[u64; 2]| if first == last { first.to_string() } else { format!("{first}–{last}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

fn fill(spec: &Table, row: &Row, results: &Results, measured: &Measurements) -> Result<Vec<Filled>> {
    let published = row.published.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let line = |network: &str| Line {
        table: spec.name,
        network: network.to_owned(),
        published: published.clone(),
        ..Line::default()
    };
    match row.network {
        Network::Elsewhere(name) => {
            Ok(vec![Filled { line: Line { status: "published only".into(), ..line(name) }, variant: None }])
        }
        Network::Pruned { of, .. } => {
            let name: ModelName = of.parse()?;
            let standard = model::build(&name, name.usual_classes(), None)?.cost()?.macs;
            // With other classes or image sizes it was another network.
            let is_pruned = |line: &RunLine| {
                line.model == pruned_name(of) && line.macs_before_pruning == Some(standard) && line.is_whole()
            };
            let label = format!("{of}, pruned");
            let groups = groups(results.runs.iter().filter(|run| is_pruned(&run.line)));
            if groups.is_empty() {
                let status = without_run(&pruned_name(of), results);
                return Ok(vec![Filled { line: Line { status, ..line(&label) }, variant: None }]);
            }
            let fill = |runs: &Vec<&StoredRun>| {
                let [params, macs] = [runs[0].line.params, runs[0].line.macs];
                let percent = reduction(macs, standard);
                let variant = Variant {
                    label: label.clone(),
                    params,
                    macs,
                    macs_reduction_percent: Some(percent),
                    ..Variant::default()
                };
                trained(Filled { line: line(&label).costing(&variant, false), variant: Some(variant) }, runs)
            };
            Ok(groups.iter().map(fill).collect())
        }
        Network::Named(name) => named(spec, line(name), results, measured),
    }
}

fn named(spec: &Table, line: Line, results: &Results, measured: &Measurements) -> Result<Vec<Filled>> {
    let name = &line.network.clone();
    let mut variant = runs::describe(name, &network(name)?)?;
    let mut line = line.costing(&variant, true);
    let mut files = Vec::new();
    for (i, &batch) in spec.batches.iter().enumerate() {
        let Some((found, origin)) = measured.get(What::Inference, name, batch) else { continue };
        files.push(origin.clone());
        let per_image = found.median_ms / batch as f64;
        if i == 0 {
            variant.ms_per_image = Some(per_image);
        }
        match batch {
            1 => line.ms_batch_1 = Some(per_image),
            _ => line.ms_per_image_batch_64 = Some(per_image),
        }
    }
    if spec.is_trained
        && let Some((step, origin)) = measured.get(What::TrainingStep, name, TRAINING_BATCH)
    {
        files.push(origin.clone());
        line.training_step_ms = Some(step.median_ms);
    }
    line.files = files.join("; ");
    // With other classes or image sizes it is another network.
    let is_own = |line: &RunLine| line.model == *name && line.macs == variant.macs && line.is_whole();
    let own = results.runs.iter().filter(|run| is_own(&run.line));
    let groups = groups(own);
    if groups.is_empty() {
        line.status = if spec.is_trained { without_run(name, results) } else { "not trained here".to_owned() };
        return Ok(vec![Filled { line, variant: Some(variant) }]);
    }
    let filled = Filled { line, variant: Some(variant) };
    groups.iter().map(|runs| to_standard(trained(filled.clone(), runs), runs, results)).collect()
}

/// The network of this name, for the classes it usually has.
pub fn network(name: &str) -> Result<Graph> {
    let name: ModelName = name.parse()?;
    model::build(&name, name.usual_classes(), None)
}

/// Runs that differ in their seed only, together.
fn groups<'a>(found: impl Iterator<Item = &'a StoredRun>) -> Vec<Vec<&'a StoredRun>> {
    let mut groups: Vec<Vec<&StoredRun>> = Vec::new();
    for run in found {
        match groups.iter_mut().find(|group| setting(group[0]) == setting(run)) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups
}

/// What two runs of one row must share.
fn setting(run: &StoredRun) -> (String, u64, [usize; 2]) {
    (seedless(&run.line.setting, run.line.seed), run.line.macs, run.line.images())
}

/// A run's setting without the seed of the run that its network was pruned from, if that is its own.
fn seedless(setting: &str, seed: u64) -> String {
    match setting.split_once("-of-") {
        Some((before, of)) => format!("{before}-of-{}", of.replacen(&format!("-s{seed}-"), "-", 1)),
        None => setting.to_owned(),
    }
}

fn without_run(name: &str, results: &Results) -> String {
    match results.unfinished.iter().find(|run| run.model == name) {
        Some(run) => format!("{} of {} epochs done", run.done, run.epochs),
        None => "no run".to_owned(),
    }
}

impl Line {
    fn costing(self, variant: &Variant, has_stages: bool) -> Self {
        Self {
            params: Some(variant.params),
            macs: Some(variant.macs),
            macs_reduction_percent: variant.macs_reduction_percent,
            stages: has_stages.then_some(variant.stages),
            ..self
        }
    }
}

/// A row with the accuracy of its runs.
fn trained(filled: Filled, group: &[&StoredRun]) -> Filled {
    let Filled { mut line, variant } = filled;
    let first = &group[0].line;
    let per_epoch = line.training_step_ms.and_then(|step| seconds_per_epoch(first, step));
    let runs = group.iter().map(|run| {
        let RunLine { seed, eval_top1, .. } = run.line;
        runs::report_run(seed, eval_top1, &run.epochs, |_| per_epoch.unwrap_or(f64::NAN))
    });
    let variant = variant.map(|variant| Variant { runs: runs.collect(), ..variant });
    if let Some(variant) = &variant {
        line.top1 = variant.top1().map(|percent| percent / 100.0);
        line.top1_spread = variant.top1_spread().map(|points| points / 100.0);
    }
    line.training_seconds = per_epoch.map(|seconds| first.epochs as f64 * seconds);
    line.training_macs = group.iter().map(|run| run.line.training_macs).max().flatten();
    line.seeds = group.len();
    line.epochs = Some(first.epochs);
    line.data.clone_from(&first.data);
    line.recipe.clone_from(&first.recipe);
    line.more_settings = first.more_settings();
    let origins = group.iter().map(|run| run.origin.as_str());
    let files = line.files.split("; ").filter(|file| !file.is_empty());
    line.files = files.chain(origins).collect::<Vec<_>>().join("; ");
    Filled { line, variant }
}

/// What an epoch takes when a step of [`TRAINING_BATCH`] images takes so many milliseconds on a CPU; nothing if the run had
/// other steps, or another device.
fn seconds_per_epoch(run: &RunLine, step_ms: f64) -> Option<f64> {
    (run.batch_size == TRAINING_BATCH && run.device == "cpu")
        .then(|| (run.train_images / TRAINING_BATCH) as f64 * step_ms / 1e3)
}

/// How long it took a network to become as good as the standard one of its kind ended, in runs of the same setting.
fn to_standard(filled: Filled, group: &[&StoredRun], results: &Results) -> Result<Filled> {
    let Filled { mut line, variant } = filled;
    let first = &group[0].line;
    let name: ModelName = first.model.parse()?;
    // Squeeze-and-excitation is an addition to HetConv, not to what it is compared with.
    let standard = ModelName { se: false, ..name.with_substitution(Substitution::Standard) }.to_string();
    let is_standard = |line: &RunLine| {
        let same = line.setting == first.setting && line.images() == first.images();
        line.model == standard && same && line.is_whole()
    };
    let runs = results.runs.iter().filter(|run| is_standard(&run.line));
    line.standard_top1 = units::mean(runs.map(|run| run.line.eval_top1));
    if let Some(goal) = line.standard_top1 {
        let shared = group.iter().map(|run| run.epochs.len()).min().unwrap_or(0);
        let mean = |i: usize| units::mean(group.iter().map(|run| run.epochs[i].eval_top1));
        let reached = (0..shared).find(|&i| mean(i).is_some_and(|top1| top1 >= goal));
        line.epochs_to_standard_top1 = reached.map(|i| group[0].epochs[i].epoch);
        let per_epoch = line.training_step_ms.and_then(|step| seconds_per_epoch(first, step));
        line.seconds_to_standard_top1 =
            line.epochs_to_standard_top1.zip(per_epoch).map(|(epochs, seconds)| epochs as f64 * seconds);
    }
    Ok(Filled { line, variant })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_pruned_from_those_of_their_own_seeds_have_one_setting() {
        let of = |seed: u64| seedless(&format!("images-s1-e2-of-vgg16-cifar-s{seed}-e10"), seed);
        assert_eq!(of(0), "images-s1-e2-of-vgg16-cifar-e10");
        assert_eq!(of(1), of(0));
        assert_ne!(seedless("images-e2-of-vgg16-cifar-s1-e10", 0), seedless("images-e2-of-vgg16-cifar-s0-e10", 0));
        assert_eq!(seedless("images-s1-e2", 1), "images-s1-e2");
    }

    #[test]
    fn lines_of_one_file_stand_together() {
        let files = ["a.csv:15; b/summary.json; a.csv:2; c:x", "", "a.csv:3,2"];
        assert_eq!(compact(files.into_iter()), "a.csv:2–3,15; b/summary.json; c:x");
        assert_eq!(compact(["a.csv:2–4; a.csv:7", "a.csv:5,9–11"].into_iter()), "a.csv:2–5,7,9–11");
        assert_eq!(compact(std::iter::once("")), "");
    }
}

//! `hetconv report`

use std::path::PathBuf;

use anyhow::{Result, bail};
use hetconv::graph::{ModelFile, ModelName, Substitution};
use hetconv::kernels::Isa;
use hetconv::report::{Report, Variant};
use hetconv::train::{Summary, run_files};
use serde::Serialize;

use super::output::Output;
use super::reproduce::results;
use super::runs::{self, FinishedRun};
use super::{checks, files, timing};

/// Write one self-contained HTML page about finished training runs
#[derive(clap::Args)]
#[command(after_help = "\
Runs of one network that differ in their seed only become one row, with mean and spread.

Example:
  hetconv report runs/standard runs/p4 --out report.html
  hetconv report runs/reproduce --results docs/results")]
pub struct Args {
    /// Folders of runs, or folders with such folders below
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,

    /// Images in a batch when inference is measured
    #[arg(long, value_name = "N", default_value_t = timing::BATCH as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// Do not measure inference
    #[arg(long)]
    no_timing: bool,

    /// Add the runs to runs.csv and epochs.csv in this folder, which `hetconv reproduce` reads
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,

    /// The page
    #[arg(short, long, value_name = "PAGE", default_value = "report.html")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Written<'a> {
    report: &'a PathBuf,
    runs: usize,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let folders = runs::find(&args.folders)?;
    if folders.is_empty() {
        let all: Vec<String> = args.folders.iter().map(|folder| folder.display().to_string()).collect();
        bail!("no finished run (a folder with a {}) in {}", run_files::SUMMARY, all.join(", "));
    }
    let runs: Vec<FinishedRun> = folders.iter().map(|folder| runs::load(folder)).collect::<Result<_>>()?;
    if let Some(folder) = &args.results {
        results::add(folder, &runs)?;
    }
    files::write_text(&args.out, &report(&runs, (!args.no_timing).then_some(args.batch as usize))?.page())?;
    output.result(&Written { report: &args.out, runs: runs.len() }, |written| {
        let runs = if written.runs == 1 { "run" } else { "runs" };
        format!("{} {runs} in {}", written.runs, written.report.display())
    })
}

/// Something a summary says, as text.
type Setting = fn(&Summary) -> String;

/// What runs may differ in besides the network and the seed.
const SETTINGS: [(&str, Setting); 5] = [
    ("data", |summary| results::without_folders(&summary.data)),
    ("recipe", |summary| summary.recipe.clone()),
    ("epochs", |summary| summary.epochs.to_string()),
    ("batch size", |summary| summary.batch_size.to_string()),
    ("training images", |summary| summary.train_images.to_string()),
];

/// The report; inference is measured in batches of so many images, or not at all.
fn report(runs: &[FinishedRun], batch: Option<usize>) -> Result<Report> {
    let differs = |value: Setting| {
        let first = value(&runs[0].summary);
        runs.iter().any(|run| value(&run.summary) != first)
    };
    let (varying, common): (Vec<_>, Vec<_>) = SETTINGS.into_iter().partition(|(_, value)| differs(*value));
    let names: Vec<Option<ModelName>> = runs.iter().map(|run| run.summary.model.parse().ok()).collect();
    let architecture = |name: &Option<ModelName>| name.as_ref().map(|name| (name.architecture.clone(), name.se));
    let one_architecture = Some(&names[0])
        .filter(|first| names.iter().all(|name| name.is_some() && architecture(name) == architecture(first)));

    let mut groups: Vec<(String, Vec<&FinishedRun>)> = Vec::new();
    for (run, name) in runs.iter().zip(&names) {
        let network = match name {
            Some(name) if one_architecture.is_some() => name.substitution.to_string(),
            _ => run.summary.model.clone(),
        };
        let settings: String =
            varying.iter().map(|(name, value)| format!(", {name} {}", value(&run.summary))).collect();
        let label = format!("{network}{settings}");
        match groups.iter_mut().find(|(known, _)| *known == label) {
            Some((_, group)) => group.push(run),
            None => groups.push((label, vec![run])),
        }
    }
    let standard = Substitution::Standard.to_string();
    let reference = groups.iter().position(|(label, _)| *label == standard);
    let title = match one_architecture.and_then(architecture) {
        Some((architecture, _)) => format!("{architecture} with several convolutions"),
        None => "Training runs".to_owned(),
    };
    let mut setup: Vec<(String, String)> =
        common.iter().map(|(name, value)| ((*name).to_owned(), value(&runs[0].summary))).collect();
    setup.push(("runs".to_owned(), runs.len().to_string()));
    let mut times = vec![None; groups.len()];
    if let Some(batch) = batch {
        let load = |(_, group): &(String, Vec<&FinishedRun>)| runs::load_model(&group[0].folder);
        let networks: Vec<ModelFile> = groups.iter().map(load).collect::<Result<_>>()?;
        let measured = timing::per_image(networks.iter().map(|network| (&network.graph, &network.weights)), batch)?;
        times = measured.into_iter().map(Some).collect();
        let (threads, isa) = (rayon::current_num_threads(), Isa::selected()?.name());
        setup.push((
            "time per image".to_owned(),
            format!("batches of {batch}, {}, {threads} threads, {isa}", checks::cpu_name()),
        ));
    }
    let variants = groups.into_iter().zip(times).map(|((label, group), ms)| runs::variant(label, ms, &group));
    Ok(Report {
        title,
        subtitle: "Networks side by side, from the files of their training runs.".to_owned(),
        setup,
        variants: variants.collect::<Result<Vec<Variant>>>()?,
        reference,
    })
}

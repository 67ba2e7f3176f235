//! `hetconv report`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hetconv::graph::{ModelName, Substitution, atomic_write};
use hetconv::report::Report;
use hetconv::train::{Summary, run_files};
use serde::Serialize;

use super::output::Output;
use super::runs::{self, FinishedRun};

/// Write one self-contained HTML page about finished training runs
#[derive(clap::Args)]
#[command(after_help = "\
Runs of one network that differ in their seed only become one row, with mean and spread.

Example:
  hetconv report runs/standard runs/p4 --out report.html")]
pub struct Args {
    /// Folders of runs, or folders with such folders below
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,

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
    write(&args.out, &report(&runs))?;
    output.result(&Written { report: &args.out, runs: runs.len() }, |written| {
        let runs = if written.runs == 1 { "run" } else { "runs" };
        format!("{} {runs} in {}", written.runs, written.report.display())
    })
}

/// Writes the page, whole or not at all.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    let page = report.page();
    atomic_write(path, |file| file.write_all(page.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Something a summary says, as text.
type Setting = fn(&Summary) -> String;

/// What runs may differ in besides the network and the seed.
const SETTINGS: [(&str, Setting); 5] = [
    ("data", |summary| summary.data.clone()),
    ("recipe", |summary| summary.recipe.clone()),
    ("epochs", |summary| summary.epochs.to_string()),
    ("batch size", |summary| summary.batch_size.to_string()),
    ("training images", |summary| summary.train_images.to_string()),
];

fn report(runs: &[FinishedRun]) -> Report {
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
    Report {
        title,
        subtitle: "Networks side by side, from the files of their training runs.".to_owned(),
        setup,
        variants: groups.into_iter().map(|(label, group)| runs::variant(label, group[0].size, None, &group)).collect(),
        reference,
    }
}

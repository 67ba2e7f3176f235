//! `hetconv report`

use std::path::PathBuf;

use anyhow::{Result, bail};
use hetconv::graph::{ModelFile, ModelName, Substitution};
use hetconv::kernels::Isa;
use hetconv::kernels::measure::cpu_name;
use hetconv::report::{Report, Variant};
use hetconv::train::{Summary, run_files};
use serde::Serialize;

use super::output::Output;
use super::reproduce::results;
use super::runs::{self, FinishedRun};
use super::{files, timing};

/// Write one self-contained HTML page about finished training runs
#[derive(clap::Args)]
#[command(after_help = "\
Runs of one network that differ in their seed only become one row, with mean and spread.

Examples:
  hetconv report runs/standard runs/p4 --out report.html
  hetconv report runs/reproduce --results docs/results --no-timing")]
pub struct Args {
    /// Folders of runs, or folders with such folders below
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,

    /// Images in a batch when inference is measured
    #[arg(long, value_name = "N", default_value_t = timing::BATCH as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "no_timing")]
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
struct Written {
    report: String,
    runs: usize,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let folders = runs::find(&args.folders)?;
    if folders.is_empty() {
        let all: Vec<String> = args.folders.iter().map(|folder| folder.display().to_string()).collect();
        bail!("no finished run (a folder with a {}) in {}", run_files::SUMMARY, all.join(", "));
    }
    files::is_page_or_new(&args.out)?;
    let runs: Vec<FinishedRun> = folders.iter().map(|folder| runs::load(folder)).collect::<Result<_>>()?;
    files::write_text(&args.out, &report(&runs, (!args.no_timing).then_some(args.batch as usize))?.page())?;
    if let Some(folder) = &args.results {
        results::add(folder, &runs)?;
    }
    output.result(&Written { report: args.out.display().to_string(), runs: runs.len() }, |written| {
        let runs = if written.runs == 1 { "run" } else { "runs" };
        format!("{} {runs} in {}", written.runs, written.report)
    })
}

/// What a run was made with, its network and seed left out: names and values.
fn settings(run: &FinishedRun) -> Vec<(&'static str, String)> {
    let Summary { data, recipe, epochs, batch_size, train_images, .. } = &run.summary;
    let always = [
        ("data", results::without_folders(data)),
        ("recipe", recipe.clone()),
        ("epochs", epochs.to_string()),
        ("batch size", batch_size.to_string()),
        ("training images", train_images.to_string()),
    ];
    let told = ["batch-size", "limit-train"];
    let changed = results::changed_settings(&run.config).into_iter().filter(|(flag, _)| !told.contains(flag));
    let pruned = run.config.pruned.as_ref().map(|from| ("pruned from", results::source_name(&from.file)));
    let from = run.config.from.as_ref().map(|file| ("trained on from", results::source_name(file)));
    always.into_iter().chain(changed).chain(pruned).chain(from).collect()
}

/// A network's name, if it is one of the zoo's; a file's may be called like one and be another.
fn zoo_name(run: &FinishedRun) -> Option<ModelName> {
    run.config.from.is_none().then(|| run.summary.model.parse().ok()).flatten()
}

/// Its name among networks of one architecture.
fn short_name(name: &ModelName) -> String {
    match (name.pruned, name.substitution) {
        (false, substitution) => substitution.to_string(),
        (true, Substitution::Standard) => "pruned".to_owned(),
        (true, substitution) => format!("{substitution} pruned"),
    }
}

/// The report; inference is measured in batches of so many images, or not at all.
fn report(runs: &[FinishedRun], batch: Option<usize>) -> Result<Report> {
    let settings: Vec<_> = runs.iter().map(settings).collect();
    let names: Vec<Option<ModelName>> = runs.iter().map(zoo_name).collect();
    let architecture = |name: &ModelName| (name.architecture.clone(), name.se);
    let of_architecture: Option<Vec<&ModelName>> = names.iter().map(Option::as_ref).collect();
    // The names, if all networks are of one architecture.
    let of_architecture =
        of_architecture.filter(|names| names.iter().all(|name| architecture(name) == architecture(names[0])));
    let is_common = |setting: &&(&str, String)| settings.iter().all(|other| other.contains(setting));

    // Runs that differ in their seed only have the same name.
    let mut groups: Vec<(String, Vec<&FinishedRun>)> = Vec::new();
    // The first run of each group, and the groups with standard networks.
    let (mut firsts, mut standards): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (i, (run, own)) in runs.iter().zip(&settings).enumerate() {
        let varying = own.iter().filter(|setting| !is_common(setting));
        let varying: String = varying.map(|(name, value)| format!(", {name} {value}")).collect();
        let name = of_architecture.as_ref().map(|names| names[i]);
        let label = format!("{}{varying}", name.map_or_else(|| run.summary.model.clone(), short_name));
        let is_same = |other: &FinishedRun| other.graph == run.graph;
        match groups.iter_mut().find(|(known, group)| *known == label && is_same(group[0])) {
            Some((_, group)) => group.push(run),
            None => {
                if name.is_some_and(|name| name.substitution == Substitution::Standard && !name.pruned) {
                    standards.push(groups.len());
                }
                groups.push((label, vec![run]));
                firsts.push(i);
            }
        }
    }
    // What was trained otherwise is not compared in words; a pruned network has settings of its own for good.
    let is_pruned = |i: usize| runs[i].config.pruned.is_some();
    let is_alike = |a: usize, b: usize| match is_pruned(a) || is_pruned(b) {
        true => runs[a].summary.data == runs[b].summary.data,
        false => settings[a] == settings[b],
    };
    let reference = match standards[..] {
        [only] => Some(only).filter(|&only| firsts.iter().all(|&first| is_alike(first, firsts[only]))),
        _ => None,
    };
    let title = match &of_architecture {
        Some(names) => format!("{} with several convolutions", names[0].architecture),
        None => "Training runs".to_owned(),
    };
    let common = settings[0].iter().filter(is_common);
    let mut setup: Vec<(String, String)> = common.map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    setup.push(("runs".to_owned(), runs.len().to_string()));
    let trained_on = runs::trained_on(runs.iter());
    setup.push(("training".to_owned(), runs::about_training(&trained_on)));
    let mut times = vec![None; groups.len()];
    if let Some(batch) = batch {
        let load = |(_, group): &(String, Vec<&FinishedRun>)| runs::load_model(&group[0].folder);
        let networks: Vec<ModelFile> = groups.iter().map(load).collect::<Result<_>>()?;
        let measured = timing::per_image(networks.iter().map(|network| (&network.graph, &network.weights)), batch)?;
        times = measured.into_iter().map(Some).collect();
        let (threads, isa) = (rayon::current_num_threads(), Isa::selected()?.name());
        setup.push((
            "time per image".to_owned(),
            format!("batches of {batch}, {}, {threads} threads, {isa}", cpu_name()),
        ));
    }
    let variants = groups.into_iter().zip(times).map(|((label, group), ms)| runs::variant(label, ms, &group));
    let mut variants = variants.collect::<Result<Vec<Variant>>>()?;
    if trained_on.len() > 1 {
        variants = variants.into_iter().map(Variant::without_training_times).collect();
    }
    Ok(Report {
        title,
        subtitle: "Networks side by side, from the files of their training runs.".to_owned(),
        setup,
        variants,
        reference,
    })
}

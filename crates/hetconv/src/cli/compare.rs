//! `hetconv compare`: the same network with several convolutions, trained by one recipe.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hetconv::graph::{Graph, ModelFile, ModelName, Substitution};
use hetconv::kernels::Isa;
use hetconv::kernels::measure::cpu_name;
use hetconv::report::{Report, Variant};
use hetconv::train::{Dataset, RecipeName, RunConfig, Summary, TrainJob, run_files};
use hetconv::units::{count, duration, grouped, milliseconds};
use serde::Serialize;

use super::output::{Output, say, table};
use super::reproduce::results::{as_flags, changed_settings};
use super::runs::{self, FinishedRun};
use super::train::{Settings, data_of, network, train_one};
use super::usage::bad_usage;
use super::{files, timing};

/// Train one network with several convolutions and set them side by side: the main job
#[derive(clap::Args)]
#[command(after_help = "\
Without arguments it takes a few minutes on two cores: a small network on generated images. Every network gets the same \
recipe, data and seeds. Each run is a folder OUT/runs/NAME-seedS; when a comparison that was stopped is started again, \
finished runs are kept and an unfinished one goes on where it was.

Writes OUT/compare.csv (accuracies as shares from 0 to 1) and OUT/report.html.

Examples:
  hetconv compare
  hetconv compare --model resnet20 --variants standard,p2,p4,gwc4_pwc,dwc_pwc --data cifar10 --epochs 10 --seeds 1,2")]
pub struct Args {
    /// The architecture (see `hetconv list`), perhaps with _se
    #[arg(long, value_name = "ARCH", default_value = "small-cifar")]
    model: String,

    /// What takes the place of its standard convolutions: standard, pP, pc, gwcG_pwc, dwc_pwc
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "standard,p2,p4,gwc4_pwc,dwc_pwc")]
    variants: Vec<String>,

    /// The data set: a path or a known name (see `hetconv data list`)
    #[arg(long, value_name = "PATH", default_value = Dataset::BUILT_IN)]
    data: String,

    /// Seeds; each variant is trained once with each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,

    #[command(flatten)]
    settings: Settings,

    /// Where results go
    #[arg(long, value_name = "OUT", default_value = "runs/compare")]
    out: PathBuf,
}

/// Epochs for the built-in data, where a few are enough.
const SYNTHETIC_EPOCHS: u64 = 6;

/// One line of `compare.csv`, and of the JSON.
#[derive(Serialize)]
struct Row {
    variant: String,
    model: String,
    params: u64,
    macs: u64,
    flops: u64,
    macs_reduction_percent: f64,
    stages: u64,
    /// Mean over the seeds, from 0 to 1.
    top1: f64,
    /// Half the range over the seeds; empty with one seed.
    top1_spread: Option<f64>,
    ms_per_image: f64,
    train_seconds: f64,
    seeds: usize,
    epochs: u64,
    data: String,
    recipe: String,
}

#[derive(Serialize)]
struct Compared {
    variants: Vec<Row>,
    csv: PathBuf,
    report: PathBuf,
    #[serde(skip)]
    table: Vec<Variant>,
    #[serde(skip)]
    training: String,
}

/// One network of the comparison.
struct Candidate {
    label: String,
    name: ModelName,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let candidates = candidates(args)?;
    let configs: Vec<Vec<RunConfig>> =
        candidates.iter().map(|candidate| configs(args, candidate)).collect::<Result<_>>()?;
    let data = data_of(&configs[0][0])?;
    let images = data.digests();
    let graphs: Vec<Graph> = configs.iter().map(|configs| network(&configs[0], &data)).collect::<Result<_>>()?;
    // Everything that can be known to be wrong is said before hours are spent.
    for (graph, configs) in graphs.iter().zip(&configs) {
        for config in configs {
            let out = folder(&args.out, config);
            job(config, graph, &data, &out).check()?;
            check_stored(config, &data, &images, &out)?;
        }
    }
    let (csv, report) = (args.out.join("compare.csv"), args.out.join("report.html"));
    files::is_table_or_new(&csv, "variant,model,")?;
    files::is_page_or_new(&report)?;

    let mut trained = Vec::new();
    for ((candidate, graph), configs) in candidates.iter().zip(&graphs).zip(&configs) {
        let mut runs = Vec::new();
        for config in configs {
            let out = folder(&args.out, config);
            let name = format!("{} seed {}", candidate.label, config.seed);
            runs.push(train_or_reuse(job(config, graph, &data, &out), &name)?);
        }
        trained.push(runs);
    }
    let times = time_inference(&configs, &args.out)?;

    let label = |i: usize| candidates[i].label.clone();
    let variant = |(i, runs): (usize, &Vec<FinishedRun>)| {
        runs::variant(label(i), Some(times[i]), &runs.iter().collect::<Vec<_>>())
    };
    let mut variants: Vec<Variant> = trained.iter().enumerate().map(variant).collect::<Result<_>>()?;
    let rows = candidates.iter().zip(&configs).zip(&variants);
    let rows = rows.map(|((candidate, configs), variant)| row(candidate, &configs[0], variant));
    let rows: Vec<Row> = rows.collect::<Option<_>>().context("a variant has no run")?;
    let trained_on = runs::trained_on(trained.iter().flatten());
    if trained_on.len() > 1 {
        variants = variants.into_iter().map(Variant::without_training_times).collect();
    }
    let compared =
        Compared { variants: rows, csv, report, table: variants.clone(), training: runs::about_training(&trained_on) };
    files::write_csv(&compared.csv, &compared.variants)?;
    files::write_text(&compared.report, &page(args, &configs[0][0], &data, variants, &compared.training)?.page())?;
    output.result(&compared, text)
}

fn candidates(args: &Args) -> Result<Vec<Candidate>> {
    let base: ModelName = args.model.parse()?;
    if base.substitution != Substitution::Standard || base.pruned {
        bad_usage!(
            "--model {} is a variant already; give the architecture, {}, and name variants with --variants",
            args.model,
            base.with_substitution(Substitution::Standard)
        );
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for variant in &args.variants {
        let substitution: Substitution = variant.trim().parse().with_context(|| format!("--variants {variant}"))?;
        let candidate = Candidate { label: substitution.to_string(), name: base.with_substitution(substitution) };
        if candidates.iter().any(|other| other.label == candidate.label) {
            bad_usage!("--variants names {} twice", candidate.label);
        }
        candidates.push(candidate);
    }
    if args.seeds.iter().enumerate().any(|(i, seed)| args.seeds[..i].contains(seed)) {
        bad_usage!("--seeds names one twice; different seeds are needed to see how much chance there is");
    }
    Ok(candidates)
}

/// The settings of one network's runs, one for each seed.
fn configs(args: &Args, candidate: &Candidate) -> Result<Vec<RunConfig>> {
    let own = |recipe| Ok(RunConfig::new(&candidate.name.to_string(), &args.data, recipe)?);
    let mut config = args.settings.config(RecipeName::OneCycle, own)?;
    let is_usual = args.settings.epochs.is_none() && config.recipe == RecipeName::OneCycle;
    if args.data == Dataset::BUILT_IN && is_usual {
        config.epochs = SYNTHETIC_EPOCHS;
    }
    let configs: Vec<RunConfig> = args.seeds.iter().map(|&seed| RunConfig { seed, ..config.clone() }).collect();
    configs.iter().try_for_each(RunConfig::validate)?;
    Ok(configs)
}

fn folder(out: &Path, config: &RunConfig) -> PathBuf {
    out.join("runs").join(format!("{}-seed{}", config.model, config.seed))
}

/// One run, which goes on where an unfinished one was.
fn job<'a>(config: &'a RunConfig, graph: &Graph, data: &'a Dataset, out: &'a Path) -> TrainJob<'a> {
    TrainJob { config, graph: graph.clone(), data, out, resume: true }
}

/// Whether the run in a folder, if there is one, has these very settings and was made on this data.
fn check_stored(config: &RunConfig, data: &Dataset, images: &[String; 2], out: &Path) -> Result<()> {
    runs::check_settings(config, out, "--out")?;
    if !runs::is_finished(out) {
        return Ok(());
    }
    let Summary { data: name, train_images, eval_images, images: then, .. } =
        Summary::load(&out.join(run_files::SUMMARY))?;
    let is_same = (&name, train_images, eval_images) == (&data.name, data.train.len(), data.test.len());
    if !is_same || then.is_some_and(|then| then != *images) {
        let [train, eval] = [train_images, eval_images].map(|images| grouped(images as u64));
        bail!(
            "{} holds a run on {name} ({train} and {eval} images), not on {} as it is now; choose another --out, or remove \
             the folder",
            out.display(),
            data.name
        );
    }
    Ok(())
}

/// Takes a finished run as it is; otherwise trains.
fn train_or_reuse(job: TrainJob<'_>, name: &str) -> Result<FinishedRun> {
    let out = job.out;
    if runs::is_whole(out) {
        say(&format!("{name}: already trained, in {}", out.display()));
    } else {
        train_one(job, None, name)?;
    }
    runs::load(out)
}

/// Milliseconds per image of every network in the inference runtime.
fn time_inference(configs: &[Vec<RunConfig>], out: &Path) -> Result<Vec<f64>> {
    let load = |configs: &Vec<RunConfig>| runs::load_model(&folder(out, &configs[0]));
    let networks: Vec<ModelFile> = configs.iter().map(load).collect::<Result<_>>()?;
    timing::per_image(networks.iter().map(|network| (&network.graph, &network.weights)), timing::BATCH)
}

fn row(candidate: &Candidate, config: &RunConfig, variant: &Variant) -> Option<Row> {
    Some(Row {
        variant: candidate.label.clone(),
        model: candidate.name.to_string(),
        params: variant.params,
        macs: variant.macs,
        flops: 2 * variant.macs,
        macs_reduction_percent: variant.macs_reduction_percent?,
        stages: variant.stages,
        top1: variant.top1()? / 100.0,
        top1_spread: variant.top1_spread().map(|spread| spread / 100.0),
        ms_per_image: variant.ms_per_image?,
        train_seconds: variant.seconds()?,
        seeds: variant.runs.len(),
        epochs: config.epochs,
        data: config.data.clone(),
        recipe: config.recipe.to_string(),
    })
}

fn page(args: &Args, config: &RunConfig, data: &Dataset, variants: Vec<Variant>, training: &str) -> Result<Report> {
    let images = |n: usize| grouped(n as u64);
    let [height, width, channels] = data.train.shape();
    let isa = Isa::selected().map_or("none", Isa::name);
    let threads = rayon::current_num_threads();
    let seeds: Vec<String> = args.seeds.iter().map(u64::to_string).collect();
    // Batch and rate are told in any case.
    let mut more = changed_settings(config);
    more.retain(|(flag, _)| !["batch-size", "lr"].contains(flag));
    let setup = [
        (
            "Data",
            format!(
                "{}: {} images to learn from, {} held out, {} classes, {channels}×{height}×{width}",
                data.name,
                images(data.train.len()),
                images(data.test.len()),
                data.classes.len()
            ),
        ),
        (
            "Recipe",
            format!(
                "{}, {} epochs, batch {}, learning rate {}{}",
                config.recipe,
                config.epochs,
                config.batch_size,
                config.lr,
                as_flags(&more)
            ),
        ),
        ("Seeds", seeds.join(", ")),
        ("Training", training.to_owned()),
        ("Time per image", format!("batch of {}, {}, {threads} threads, {isa}", timing::BATCH, cpu_name())),
        ("Program", format!("hetconv {}", env!("CARGO_PKG_VERSION"))),
    ];
    Ok(Report {
        title: format!("{}: one network, {} convolutions", args.model, number(variants.len())),
        subtitle: "The same network trained by the same recipe on the same images. Only its convolutions differ."
            .to_owned(),
        setup: setup.map(|(name, value)| (name.to_owned(), value)).into(),
        reference: variants.iter().position(|variant| variant.label == Substitution::Standard.to_string()),
        variants,
    })
}

fn number(n: usize) -> String {
    const WORDS: [&str; 10] = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    WORDS.get(n).map_or_else(|| n.to_string(), |word| (*word).to_owned())
}

fn text(compared: &Compared) -> String {
    let heads = ["variant", "params", "MACs", "fewer MACs", "stages", "top-1", "time per image", "training"];
    let mut rows = table(&heads, &["variant"]);
    for variant in &compared.table {
        let percent = variant.macs_reduction_percent.filter(|&percent| percent != 0.0);
        rows.add_row([
            variant.label.clone(),
            count(variant.params),
            count(variant.macs),
            percent.map_or("–".to_owned(), |percent| format!("{percent:.2} %")),
            variant.stages.to_string(),
            variant.top1_text(),
            variant.ms_per_image.map_or("–".to_owned(), milliseconds),
            variant.seconds().map_or("–".to_owned(), duration),
        ]);
    }
    let has_spread = compared.table.iter().any(|variant| variant.top1_spread().is_some());
    let spread = if has_spread { "\n± is half of the range over the seeds." } else { "" };
    let has_times = compared.table.iter().all(|variant| variant.seconds().is_some());
    let training = if has_times { String::new() } else { format!("\nTrained on {}.", compared.training) };
    format!(
        "{rows}\n\nMACs per image are what the HetConv paper calls FLOPs (here FLOPs = 2 · MACs); stages are convolutions \
         one after another.{spread}{training}\nReport  {}\nTable   {}",
        compared.report.display(),
        compared.csv.display()
    )
}

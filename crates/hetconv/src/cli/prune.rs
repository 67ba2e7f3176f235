//! `hetconv prune`: the method HetConv is compared with. Train, remove the filters with the smallest norms, train again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::graph::{Classifier, ModelFile, PruneAmount, Pruned, atomic_write, prune, pruned_name};
use hetconv::train::{
    Dataset, PrunedFrom, RecipeName, RunConfig, Summary, TrainJob, TrainObserver, is_same_data, run_files,
};
use hetconv::units::{count, duration};
use serde::{Deserialize, Serialize};

use super::eval::same_classes;
use super::output::{Output, table};
use super::progress::TrainingProgress;
use super::runs::{self, FinishedRun};
use super::train::{self, RunArgs, as_trained, data_of, nothing, train_watched, warn_of_other_images};
use super::usage::bad_usage;
use super::{model, summary::reduction};

/// Remove the filters with the smallest L1 norms from a trained network, and train it further
#[derive(clap::Args)]
#[command(after_help = "\
In every convolution the same share of filters is removed, with everything that depends on them (Li et al., 2017). Filters \
whose channels meet in an addition stay, so that of a residual block only the inner convolutions are pruned.

The run's folder gets what `hetconv train` writes, and pruned.json: what was removed, and what training cost before and \
after, as far as FILE lies in its own run's folder. FILE is needed until the \
run has come to its end, and again if its model was lost.

Examples:
  hetconv prune runs/vgg16-cifar/model.safetensors --ratio 0.5 --data cifar10
  hetconv prune runs/vgg16-cifar/model.safetensors --match vgg16-cifar_p4 --data cifar10 --recipe onecycle --epochs 10
  hetconv prune --resume --out runs/vgg16-cifar_pruned")]
pub struct Args {
    /// The trained network's model file, or the folder of its run
    #[arg(required_unless_present = "resume", value_parser = model::name_argument())]
    file: Option<String>,

    #[command(flatten)]
    amount: Amount,

    #[command(flatten)]
    run: RunArgs,
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct Amount {
    /// Remove this share of the filters of every layer, between 0 and 1
    #[arg(long, value_name = "SHARE")]
    ratio: Option<f64>,

    /// Remove as many as bring the network down to so many MACs an image, such as 105.8M
    #[arg(long, value_name = "MACS", value_parser = parse_count)]
    macs: Option<u64>,

    /// Remove as many as bring the network down to the MACs of this one (see `hetconv list`)
    #[arg(long = "match", value_name = "NAME")]
    like: Option<String>,
}

/// What `pruned.json` says.
#[derive(Serialize, Deserialize)]
pub struct Report {
    model: String,
    /// The whole network's file.
    file: String,
    /// The share of every layer's filters that was removed.
    ratio: f64,
    params: u64,
    params_before: u64,
    macs: u64,
    macs_before: u64,
    layers: Vec<Layer>,
    /// Shares of held-out images, from 0 to 1; none before if nothing is known of FILE's run.
    top1_before: Option<f64>,
    top1: f64,
    top5: f64,
    /// Until FILE was there; nothing if its run's summary is not beside it.
    training: Option<TrainingCost>,
    fine_tuning: TrainingCost,
    total: Option<TrainingCost>,
}

#[derive(Serialize, Deserialize)]
struct Layer {
    name: String,
    filters: usize,
    kept: usize,
}

/// What it took to train. A training image costs three times the MACs of a forward pass: that, and both gradients.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct TrainingCost {
    seconds: f64,
    images: u64,
    macs: u64,
}

impl TrainingCost {
    fn of(summary: &Summary) -> Self {
        let images = summary.images_seen();
        Self { seconds: summary.seconds, images, macs: images.saturating_mul(3).saturating_mul(summary.macs) }
    }

    fn plus(self, other: Self) -> Self {
        let (images, macs) = (self.images.saturating_add(other.images), self.macs.saturating_add(other.macs));
        Self { seconds: self.seconds + other.seconds, images, macs }
    }
}

/// The name of the file with what pruning did.
const REPORT: &str = "pruned.json";

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let (config, out) = configure(args)?;
    config.validate()?;
    let Some(from) = &config.pruned else {
        bad_usage!("{} holds a run of a whole network; go on with it by `hetconv train --resume`", out.display());
    };
    if args.run.resume && is_finished(&out) && runs::is_whole(&out) {
        let summary = Summary::load(&out.join(run_files::SUMMARY))?;
        return output.result(&load_report(&out.join(REPORT))?, |report| text(report, &summary, &out));
    }
    let pruning = Pruning::of(from)?;
    let data = data_of(&config)?;
    let name = &config.model;
    let (report, summary) =
        pruning.train(&config, &data, &out, args.run.resume, name, &mut TrainingProgress::new(name))?;
    output.result(&report, |report| text(report, &summary, &out))
}

/// Whether a folder holds a run of a pruned network that has come to its end, with its report.
pub fn is_finished(folder: &Path) -> bool {
    runs::is_finished(folder) && folder.join(REPORT).is_file()
}

/// A network that filters were removed from.
pub struct Pruning {
    file: PathBuf,
    whole: ModelFile,
    pruned: Pruned,
}

impl Pruning {
    /// Removes the filters.
    pub fn of(from: &PrunedFrom) -> Result<Self> {
        let file = PathBuf::from(&from.file);
        let whole = model::load(&file)?;
        let pruned = prune(&whole.graph, &whole.weights, amount(from)?)?;
        Ok(Self { file, whole, pruned })
    }

    /// Trains what is left under this name, and writes the report into the run's folder.
    pub fn train(
        self,
        config: &RunConfig,
        data: &Dataset,
        out: &Path,
        resume: bool,
        name: &str,
        observer: &mut dyn TrainObserver,
    ) -> Result<(Report, Summary)> {
        let Self { file, whole, pruned: Pruned { graph, weights, ratio, layers } } = self;
        let Classifier { classes, .. } = graph.classifier().with_context(|| file.display().to_string())?;
        same_classes(&file, &whole.classes, classes, data)?;
        // Before hours are spent: a run that cannot be read would leave them without a report, and so would somebody else's.
        let (training, top1_before) = history(&file, config, data)?;
        warn_of_other_images(&file, &config.data, config.hold_out, &data.test);
        if out.join(REPORT).exists() {
            load_report(&out.join(REPORT))?;
        }
        let before = whole.graph.cost()?;
        let start = ModelFile { graph: graph.clone(), weights, ..whole };
        let job = TrainJob { config, graph, data, out, resume };
        let summary = train_watched(job, Some(&start), name, observer)?;
        let fine_tuning = TrainingCost::of(&summary);
        let layer = |layer: &hetconv::graph::PrunedLayer| {
            let (name, filters) = (layer.name.clone(), layer.filters);
            Layer { name, filters, kept: filters - layer.removed.len() }
        };
        let report = Report {
            model: summary.model.clone(),
            file: file.display().to_string(),
            ratio,
            params: summary.params,
            params_before: before.params,
            macs: summary.macs,
            macs_before: before.macs,
            layers: layers.iter().map(layer).collect(),
            top1_before,
            top1: summary.eval_top1,
            top5: summary.eval_top5,
            training,
            fine_tuning,
            total: training.map(|training| training.plus(fine_tuning)),
        };
        let (path, json) = (out.join(REPORT), serde_json::to_string_pretty(&report)?);
        atomic_write(&path, |file| writeln!(file, "{json}"))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok((report, summary))
    }
}

/// The settings of the run, and its folder.
fn configure(args: &Args) -> Result<(RunConfig, PathBuf)> {
    let whole = args.file.as_deref().map(|file| model::load(Path::new(file))).transpose()?;
    let name = whole.as_ref().map(|whole| pruned_name(&whole.graph.name));
    let out = match (&args.run.out, &name) {
        (Some(out), _) => out.clone(),
        (None, Some(name)) => Path::new("runs").join(name),
        (None, None) => bad_usage!("--out or FILE is needed to find the run's folder"),
    };
    let macs = match (&args.amount.like, &whole) {
        (Some(like), Some(whole)) => {
            let Classifier { classes, image, .. } = whole.graph.classifier()?;
            let like = model::build(&like.parse()?, classes, Some(image))?;
            Some(like.cost()?.macs)
        }
        (Some(_), None) => bad_usage!("--match needs FILE, whose classes and image size the other network gets"),
        (None, _) => args.amount.macs,
    };
    let file = args.file.clone();
    let of = |get: fn(&PrunedFrom) -> Option<String>| {
        move |config: &RunConfig| config.pruned.as_ref().and_then(get).unwrap_or_else(nothing)
    };
    let (of_file, of_ratio, of_macs) = (
        of(|from| Some(from.file.clone())),
        of(|from| from.ratio.map(|ratio| ratio.to_string())),
        of(|from| from.macs.map(|macs| macs.to_string())),
    );
    let given: [train::Given<'_>; 3] = [
        ("FILE", file.clone(), &of_file),
        ("--ratio", args.amount.ratio.map(|ratio| ratio.to_string()), &of_ratio),
        ("--macs", macs.map(|macs| macs.to_string()), &of_macs),
    ];
    if let Some(config) = args.run.stored(&out, &given)? {
        return Ok((config, out));
    }
    let (Some(file), Some(whole)) = (file, whole) else {
        bad_usage!("there is no run in {} to go on with; to begin one, give a model file", out.display());
    };
    let from = PrunedFrom { file, ratio: args.amount.ratio, macs };
    amount(&from)?;
    let file = PathBuf::from(&from.file);
    let own = |data: &str, recipe| Ok(RunConfig::of_pruned(from, &whole.graph, data, recipe));
    Ok((as_trained(args.run.config(RecipeName::FineTune, own)?, &file)?, out))
}

/// How much is to be removed.
fn amount(from: &PrunedFrom) -> Result<PruneAmount> {
    match (from.ratio, from.macs) {
        (Some(ratio), None) => Ok(PruneAmount::Ratio(ratio)),
        (None, Some(macs)) => Ok(PruneAmount::Macs(macs)),
        _ => bad_usage!("say how much to remove: --ratio SHARE, --macs MACS or --match NAME, one of them"),
    }
}

/// What it took to train a model file, and its accuracy on the images that are held out from this run, too, as far as the
/// files of its own say so.
fn history(file: &Path, pruned: &RunConfig, data: &Dataset) -> Result<(Option<TrainingCost>, Option<f64>)> {
    let Some(folder) = runs::folder_of(file).filter(|folder| runs::is_finished(folder)) else {
        return Ok((None, None));
    };
    let run = runs::load(folder)?;
    let own = &run.config;
    let is_same = is_same_data(&own.data, &pruned.data) == Some(true) && own.hold_out == pruned.hold_out;
    let is_same = is_same && run.summary.images.as_ref().is_none_or(|[_, then]| *then == data.test.digest());
    Ok((whole_cost(&run)?, is_same.then_some(run.summary.eval_top1)))
}

/// What all training of a run's network took, what came before it was pruned included; nothing if that is not known.
fn whole_cost(run: &FinishedRun) -> Result<Option<TrainingCost>> {
    match run.config {
        RunConfig { from: Some(_), .. } => Ok(None),
        RunConfig { pruned: Some(_), .. } => Ok(report_of(run)?.and_then(|report| report.total)),
        _ => Ok(Some(TrainingCost::of(&run.summary))),
    }
}

fn load_report(path: &Path) -> Result<Report> {
    let read = || anyhow::Ok(serde_json::from_slice(&std::fs::read(path)?)?);
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// MACs that all training of a run's network took, what came before it was pruned included; nothing if that is not known.
pub fn training_macs(run: &FinishedRun) -> Result<Option<u64>> {
    Ok(whole_cost(run)?.map(|cost| cost.macs))
}

/// MACs of the network that a run's was pruned from, if it was and that is known.
pub fn macs_before(run: &FinishedRun) -> Result<Option<u64>> {
    Ok(report_of(run)?.map(|report| report.macs_before))
}

fn report_of(run: &FinishedRun) -> Result<Option<Report>> {
    let path = run.folder.join(REPORT);
    (run.config.pruned.is_some() && path.is_file()).then(|| load_report(&path)).transpose()
}

/// A count such as `105845760` or `105.8M`.
fn parse_count(text: &str) -> Result<u64, String> {
    let units = [('k', 1e3), ('M', 1e6), ('G', 1e9)];
    let (digits, unit) = match units.iter().find(|(unit, _)| text.ends_with(*unit)) {
        Some((_, factor)) => (&text[..text.len() - 1], *factor),
        None => (text, 1.0),
    };
    let number = digits.trim().parse().ok().filter(|number: &f64| (0.0..1e15).contains(&(number * unit)));
    number.map(|number| (number * unit).round() as u64).ok_or_else(|| "a number is needed, such as 105.8M".to_owned())
}

fn text(report: &Report, summary: &Summary, out: &Path) -> String {
    let mut layers = table(&["layer", "filters", "kept"], &["layer"]);
    for Layer { name, filters, kept } in &report.layers {
        layers.add_row([name.clone(), filters.to_string(), kept.to_string()]);
    }
    let mut costs = table(&["", "time", "images", "MACs"], &[""]);
    let rows = [("training", report.training), ("fine-tuning", Some(report.fine_tuning)), ("both", report.total)];
    for (name, cost) in rows {
        let unknown = || ["–".to_owned(), "–".to_owned(), "–".to_owned()];
        let [time, images, macs] =
            cost.map_or_else(unknown, |cost| [duration(cost.seconds), count(cost.images), count(cost.macs)]);
        costs.add_row([name.to_owned(), time, images, macs]);
    }
    let filters = |of: fn(&Layer) -> usize| report.layers.iter().map(of).sum::<usize>();
    let [all, kept] = [filters(|layer| layer.filters), filters(|layer| layer.kept)];
    let before = report.top1_before.map(|top1| format!("Before: top-1 {:.2} %\n", 100.0 * top1)).unwrap_or_default();
    format!(
        "{layers}\n\n{costs}\n\n{} of {} MACs, {:.2} % fewer; {:.2} % of the filters of these layers removed\n\
         {before}{}",
        count(report.macs),
        count(report.macs_before),
        reduction(report.macs, report.macs_before),
        100.0 * (all - kept) as f64 / all as f64,
        train::text(summary, out)
    )
}

#[cfg(test)]
mod tests {
    use super::parse_count;

    #[test]
    fn counts_have_units() {
        let cases = [("105845760", 105_845_760), ("105.8M", 105_800_000), ("1.5 G", 1_500_000_000), ("40k", 40_000)];
        for (text, count) in cases {
            assert_eq!(parse_count(text), Ok(count));
        }
        for text in ["", "M", "-3M", "many", "1e99", "NaN"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }
}

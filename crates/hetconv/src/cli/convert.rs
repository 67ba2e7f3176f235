//! `hetconv convert`

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use hetconv::calibrate;
use hetconv::core::HetPattern;
use hetconv::graph::{
    self, ArrangementKind, ConvCost, ConvertOptions, ConvertReport, ConvertedLayer, Graph, HetLayer, Init, ModelFile,
    NameFilter, Normalisation, Selection, atomic_write,
};
use hetconv::onnx::{self, ImportOptions, OnnxError};
use hetconv::train::{BatchLoader, LoadOptions};
use hetconv::units::{count, grouped};
use regex::Regex;
use serde::Serialize;

use super::classifier::planes;
use super::data::open_data_for;
use super::files::{folder_of, place};
use super::images::{ImageSize, Normalise};
use super::model;
use super::output::{Output, table};
use super::progress::StepProgress;
use super::summary::reduction;
use super::train::{hold_out, warn_of_other_images};
use super::usage::{bad_usage, keep_apart};

/// Put HetConv in place of the convolutions of an ONNX file or a model file
#[derive(clap::Args)]
#[command(after_help = "\
Convolutions without groups and with an odd square kernel of more than one tap are converted, but for the first. Of an ONNX \
file everything else keeps its very bytes, so networks that cannot be run here are converted, too; external data is taken \
into the new file if that is in another folder.

`--init project` keeps the taps that HetConv has, too. With --calibrate images are run through the network, channels are \
assigned to classes by what their off-centre taps carry, and every layer is fitted by least squares to what the convolution \
computed; the network must be one that can be run here. Training afterwards regains more. --mean and --std are written \
into the new file, so that every other command knows how its images are normalised.

Examples:
  hetconv convert network.onnx -p 4 -o cheaper.onnx
  hetconv convert network.onnx -p 4 -o cheaper.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  hetconv convert network.onnx -p 4 -o cheaper.onnx --calibrate photos.zip
  hetconv convert model.safetensors -p 4 -o p4.safetensors --parts 'layer4.*=8' --exclude '^stem'
  hetconv convert network.onnx -p 4 --dry-run")]
pub struct Args {
    /// An ONNX file, a model file, or the folder of its run
    #[arg(value_parser = model::file_argument())]
    file: PathBuf,

    /// The paper's P; less where it does not fit a layer
    #[arg(short, long = "p", value_name = "P", value_parser = clap::value_parser!(u32).range(1..))]
    p: u32,

    /// The file to write, of the same kind
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,

    /// Where the weights come from
    #[arg(long, value_enum, default_value_t = InitName::Project)]
    init: InitName,

    /// Fit the weights to what the network computes on training images of this data set
    #[arg(long, value_name = "DATA")]
    calibrate: Option<String>,

    /// How many images that takes
    #[arg(long, value_name = "N", default_value_t = 1024, requires = "calibrate", value_parser = clap::value_parser!(u32).range(1..))]
    calibration_images: u32,

    /// Leave out so many percent of class folders that have no split: those that the network is evaluated on [default: as
    /// in FILE's own run]
    #[arg(long, value_name = "PERCENT", requires = "calibrate", value_parser = clap::value_parser!(u8).range(1..=99))]
    hold_out: Option<u8>,

    #[command(flatten)]
    image_size: ImageSize,

    #[command(flatten)]
    normalise: Normalise,

    /// How classes are assigned to begin with: the paper's way, or contiguous
    #[arg(long, value_enum, default_value_t = ArrangementName::Blocked)]
    arrangement: ArrangementName,

    /// Leave out the convolutions whose name it matches
    #[arg(long, value_name = "REGEX")]
    exclude: Option<Regex>,

    /// Another P for the convolutions whose name it matches; the first that matches counts
    #[arg(long, value_name = "REGEX=P", value_parser = named_parts)]
    parts: Vec<(Regex, usize)>,

    /// Keep the first convolution: this is what happens unless --keep-first=false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    keep_first: bool,

    /// Say what would happen, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Where fresh weights come from, with --init random [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// [`Init`] as the command line names it.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum InitName {
    /// Fresh weights, to be trained
    Random,
    /// The taps of the convolution that HetConv has, too
    Project,
}

/// [`ArrangementKind`] as the command line names it.
#[derive(Clone, Copy, clap::ValueEnum)]
enum ArrangementName {
    Shifted,
    Blocked,
}

/// `REGEX=P`; the regex may have `=` in it.
fn named_parts(given: &str) -> Result<(Regex, usize), String> {
    let (regex, parts) = given.rsplit_once('=').ok_or("REGEX=P is needed, such as 'layer4.*=8'")?;
    let parts =
        parts.parse().ok().filter(|&parts| parts > 0).ok_or_else(|| format!("P is {parts:?}, not 1 or more"))?;
    Ok((Regex::new(regex).map_err(|error| error.to_string())?, parts))
}

/// The result, as JSON has it.
#[derive(Serialize)]
struct Done {
    model: String,
    /// Where it was written, unless nothing was to be.
    file: Option<String>,
    /// The files with data of it, which have to lie beside it.
    needs: BTreeSet<String>,
    /// Images it was calibrated on.
    calibration_images: usize,
    macs_reduction_percent: Option<f64>,
    #[serde(flatten)]
    report: ConvertReport,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    if args.calibrate.is_some() && args.init == InitName::Random {
        bad_usage!("--calibrate fits what --init project keeps; fresh weights have to be trained");
    }
    if args.seed.is_some() && args.init != InitName::Random {
        bad_usage!("--seed is for fresh weights, --init random");
    }
    let source = Source::open(&args.file, &args.normalise)?;
    let image_size = args.image_size.get();
    match &source {
        Source::Model { .. } if args.calibrate.is_none() && args.image_size.is_given() => {
            bad_usage!(
                "--image-size is about the images of --calibrate, or of an ONNX file that leaves their size open"
            )
        }
        Source::Onnx { path, bytes } if args.image_size.is_given() => {
            let options = ImportOptions { image_size: image_size.if_open(), ..ImportOptions::default() };
            // What cannot be read is converted as well.
            if let Ok(imported) = onnx::import(bytes, Some(folder_of(path)), &options) {
                model::has_size(path, &imported.model.graph, image_size)?;
            }
        }
        _ => {}
    }
    if let Some(output) = args.output.as_deref().filter(|output| !source.is_kind_of(output)) {
        let (from, to) = (args.file.display(), output.display());
        match source {
            Source::Onnx { .. } => bad_usage!("{from} becomes an ONNX file, whose name has to end in .onnx, not {to}"),
            Source::Model { .. } => {
                bad_usage!("{from} becomes a model file (.safetensors), not an ONNX file as {to} says")
            }
        }
    }
    let data = args.calibrate.iter().map(PathBuf::from).collect::<Vec<_>>();
    keep_apart(args.output.as_slice(), model::files_of(&args.file).iter().chain(&data))?;
    if let Some(folder) = args.output.as_deref().map(folder_of).filter(|folder| !args.dry_run && !folder.is_dir()) {
        bad_usage!("there is no folder {} to write into", folder.display());
    }
    let mut options = options(args);
    let mut calibration_images = 0;
    if let Some(data) = args.calibrate.as_deref().filter(|_| !args.dry_run) {
        let report = source.convert(&options)?.1;
        let (layers, images) = source.calibrated(args, data, &report, &options)?;
        options.init = Init::Layers(Arc::new(layers));
        calibration_images = images;
    }
    let (bytes, report) = source.convert(&options)?;
    let file = args.output.clone().filter(|_| !args.dry_run);
    let mut needs = BTreeSet::new();
    if let Some(file) = &file {
        let bytes = source.moved_to(file, bytes)?;
        if let Source::Onnx { .. } = source {
            needs = onnx::data_files(&bytes)?;
        }
        atomic_write(file, |to| to.write_all(&bytes)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    warn_of_names(args, &report);
    let macs_reduction_percent =
        report.before.macs.zip(report.after.macs).map(|(before, after)| reduction(after, before));
    let model = args.file.display().to_string();
    let file = file.map(|file| file.display().to_string());
    let asked = |layer: &ConvertedLayer| options.selection.parts(&layer.name).unwrap_or(options.parts);
    let is_less = |layer: &&ConvertedLayer| layer.parts.is_some_and(|parts| parts < asked(layer));
    let less = report.converted().filter(is_less).count();
    if less > 0 {
        let why = match options.arrangement {
            ArrangementKind::Blocked => "does not divide their channels; --arrangement shifted takes any",
            ArrangementKind::Shifted => "is more than they have channels",
        };
        tracing::warn!("P is smaller in {less} layers than was asked for, which {why}");
    }
    output.result(&Done { model, file, needs, calibration_images, macs_reduction_percent, report }, text)
}

/// Warns of patterns that no convolution's name matches: they do nothing.
fn warn_of_names(args: &Args, report: &ConvertReport) {
    let excluded = args.exclude.iter().map(|regex| ("--exclude", regex));
    let with_parts = args.parts.iter().map(|(regex, _)| ("--parts", regex));
    for (flag, regex) in excluded.chain(with_parts) {
        if !report.layers.iter().any(|layer| regex.is_match(&layer.name)) {
            tracing::warn!("{flag} {regex} matches no convolution's name");
        }
    }
}

fn options(args: &Args) -> ConvertOptions {
    let filter = |regex: &Regex| -> NameFilter {
        let regex = regex.clone();
        Arc::new(move |name| regex.is_match(name))
    };
    ConvertOptions {
        arrangement: match args.arrangement {
            ArrangementName::Shifted => ArrangementKind::Shifted,
            ArrangementName::Blocked => ArrangementKind::Blocked,
        },
        init: match args.init {
            InitName::Random => Init::Random { seed: args.seed.unwrap_or(0) },
            InitName::Project => Init::Project,
        },
        image_size: args.image_size.get().if_open(),
        selection: Selection {
            exclude: args.exclude.as_ref().map(filter),
            parts_by_name: args.parts.iter().map(|(regex, parts)| (filter(regex), *parts)).collect(),
            keep_first: args.keep_first,
        },
        ..ConvertOptions::new(args.p as usize)
    }
}

/// What is converted.
enum Source {
    Model { path: PathBuf, file: Box<ModelFile> },
    Onnx { path: PathBuf, bytes: Vec<u8> },
}

impl Source {
    /// Opens it, saying how images are normalised if that was given.
    fn open(path: &Path, normalise: &Normalise) -> Result<Self> {
        let path = path.to_owned();
        if onnx::is_onnx(&path) {
            let mut bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if let Some(given) = normalise.given(normalise.mean.len())? {
                bytes = match onnx::state_normalisation(&bytes, &given) {
                    Err(error @ OnnxError::Input { .. }) => bad_usage!("{}: {error}", path.display()),
                    stated => stated.with_context(|| path.display().to_string())?,
                };
            }
            return Ok(Self::Onnx { path, bytes });
        }
        let mut file = Box::new(model::load(&path)?);
        let [channels, ..] = file.graph.input_shape().unwrap_or_default();
        if let Some(given) = normalise.given(channels)? {
            file.normalisation = given;
        }
        Ok(Self::Model { path, file })
    }

    /// Whether a file of this name would be taken for one of the same kind.
    fn is_kind_of(&self, path: &Path) -> bool {
        onnx::is_onnx(path) == matches!(self, Self::Onnx { .. })
    }

    /// The bytes of the converted file, and what was done.
    fn convert(&self, options: &ConvertOptions) -> Result<(Vec<u8>, ConvertReport)> {
        match self {
            Self::Model { path, file } => {
                let converted = graph::convert(file, options).with_context(|| path.display().to_string());
                let (converted, report) = converted?;
                Ok((converted.to_bytes()?, report))
            }
            Self::Onnx { path, bytes } => {
                let converted = onnx::convert(bytes, Some(folder_of(path)), options);
                let converted = converted.with_context(|| path.display().to_string())?;
                Ok((converted.bytes, converted.report))
            }
        }
    }

    /// The bytes as they are to stand in a file: external data that would not be found from there is taken in.
    fn moved_to(&self, file: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Self::Onnx { path, .. } = self else { return Ok(bytes) };
        if place(folder_of(path)) == place(folder_of(file)) {
            return Ok(bytes);
        }
        onnx::embed_external_data(&bytes, folder_of(path))
            .with_context(|| format!("{}: its data cannot be taken into {}", path.display(), file.display()))
    }

    /// The layers that the report names, fitted, and on how many images.
    fn calibrated(
        &self,
        args: &Args,
        data: &str,
        report: &ConvertReport,
        options: &ConvertOptions,
    ) -> Result<(BTreeMap<String, HetLayer>, usize)> {
        let imported;
        let mut states_normalisation = true;
        let model = match self {
            Self::Model { file, .. } => &**file,
            Self::Onnx { path, bytes } => {
                let options = ImportOptions { image_size: args.image_size.get().if_open(), as_written: true };
                let network = onnx::import(bytes, Some(folder_of(path)), &options);
                let network = network.with_context(|| format!("{}: it cannot be run here", path.display()))?;
                model::has_size(path, &network.model.graph, args.image_size.get())?;
                states_normalisation = network.states_normalisation;
                imported = network.model;
                &imported
            }
        };
        let graph = match self {
            Self::Model { .. } => model::at_size(model.graph.clone(), args.image_size.get())?,
            Self::Onnx { .. } => model.graph.clone(),
        };
        let normalise = |channels| args.normalise.or(&model.normalisation, states_normalisation, channels);
        let images = images(&graph, normalise, data, args)?;
        let pattern = |layer: &ConvertedLayer| -> Option<(String, HetPattern)> {
            Some((layer.name.clone(), options.pattern(&layer.name, layer.in_channels, layer.out_channels).ok()?))
        };
        let patterns: BTreeMap<String, HetPattern> = report.converted().filter_map(pattern).collect();
        let mut progress = StepProgress::new("calibration", "layers");
        let how = calibrate::Options::default();
        let mut watch = |done, layers| progress.at(done, layers);
        let layers = calibrate::calibrate(&graph, &model.weights, &patterns, &images, &how, &mut watch)
            .with_context(|| args.file.display().to_string())?;
        let image: usize = graph.input_shape().unwrap_or_default().iter().product();
        Ok((layers, images.len() / image.max(1)))
    }
}

/// Training images as the network takes them, `[images, channels, height, width]`.
fn images(
    graph: &Graph,
    normalise: impl Fn(usize) -> Result<Normalisation>,
    data: &str,
    args: &Args,
) -> Result<Vec<f32>> {
    let limit_train = Some(args.calibration_images as usize);
    let hold_out = hold_out(args.hold_out, &args.file, data)?;
    let options = LoadOptions { limit_train, hold_out, ..LoadOptions::default() };
    let set = open_data_for(graph, args.file.display(), data, options)?;
    warn_of_other_images(&args.file, data, hold_out, &set.test);
    let [_, _, channels] = set.train.shape();
    let normalisation = normalise(channels)?;
    let mut images = Vec::new();
    let mut loader = BatchLoader::evaluation(set.train.clone(), &normalisation, 64)?;
    while let Some(batch) = loader.next().transpose()? {
        images.extend(planes(&batch.images, batch.labels.len(), channels));
    }
    Ok(images)
}

fn text(done: &Done) -> String {
    let heads = ["layer", "kernel", "in→out", "P", "params", "after", "MACs", "after ", "kept because"];
    let mut rows = table(&heads, &["layer", "kept because"]);
    let known = |macs: Option<u64>| macs.map_or("?".to_owned(), grouped);
    for layer in &done.report.layers {
        rows.add_row([
            layer.name.clone(),
            layer.kernel.iter().map(usize::to_string).collect::<Vec<_>>().join("×"),
            format!("{}→{}", layer.in_channels, layer.out_channels),
            layer.parts.map_or(String::new(), |parts| parts.to_string()),
            grouped(layer.before.params),
            grouped(layer.after.params),
            known(layer.before.macs),
            known(layer.after.macs),
            layer.kept.as_ref().map_or(String::new(), ToString::to_string),
        ]);
    }
    let ConvertReport { layers, before, after } = &done.report;
    let macs =
        |cost: &ConvCost| cost.macs.map_or("unknown".to_owned(), |macs| format!("{} ({})", grouped(macs), count(macs)));
    let fewer = done.macs_reduction_percent.map_or(String::new(), |percent| format!(", {percent:.2} % fewer"));
    let written = match &done.file {
        Some(file) if !done.needs.is_empty() => {
            let needs: Vec<&str> = done.needs.iter().map(String::as_str).collect();
            format!("Written to {file}, which needs {} beside it", needs.join(", "))
        }
        Some(file) => format!("Written to {file}"),
        None => "Nothing was written".to_owned(),
    };
    let unknown = match before.macs {
        Some(_) => "",
        None => "MACs need the images' size: where the file leaves it open, --image-size says it. ",
    };
    let calibrated = match done.calibration_images {
        0 => String::new(),
        images => format!(", fitted on {} images", grouped(images as u64)),
    };
    format!(
        "{}: {} of {} convolutions become HetConv{calibrated}\n\n{rows}\n\n\
         Parameters  {} → {}\n\
         MACs        {} → {}{fewer}\n\n\
         Counted: convolutions, for one image. {unknown}{written}.",
        done.model,
        done.report.converted().count(),
        layers.len(),
        grouped(before.params),
        grouped(after.params),
        macs(before),
        macs(after),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_by_name_are_a_regex_and_a_number() {
        let (regex, parts) = named_parts("^layer[34]=x=8").unwrap();
        assert_eq!((regex.as_str(), parts), ("^layer[34]=x", 8));
        for wrong in ["layer", "layer=0", "layer=x", "(=4"] {
            assert!(named_parts(wrong).is_err(), "{wrong}");
        }
    }
}

//! `hetconv data`

use std::fmt::Display;
use std::path::Path;

use anyhow::{Result, bail};
use clap::Subcommand;
use hetconv::graph::{Graph, Normalisation, nearest};
use hetconv::train::{CatalogEntry, Dataset, LoadOptions, Split, catalog, search_folders};
use hetconv::units::grouped;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::output::{Output, table};
use super::progress::StepProgress;
use super::usage::bad_usage;

/// Say which data sets are known and where they are, or check one
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hetconv data list
  hetconv data prepare cifar10.zip")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the data sets known by name, where each is looked for and how to get it
    #[command(after_help = "Example:\n  hetconv data list")]
    List,
    /// Decode a whole data set and say what is in it, or what is wrong with it
    #[command(after_help = "\
A data set is `synthetic`, a known name, a folder or .zip of class folders (train/CLASS/IMAGE and test/CLASS/IMAGE or \
val/; or CLASS/IMAGE, with --hold-out), a folder of CIFAR-10 or CIFAR-100 binary batches, or a folder of IDX files (MNIST \
family).

Examples:
  hetconv data prepare synthetic
  hetconv data prepare photos.zip --image-size 224 --hold-out 10")]
    Prepare {
        /// Path or known name
        data: String,
        /// See image files, of whatever size, as squares of so many pixels a side
        #[arg(long, value_name = "PIXELS")]
        image_size: Option<usize>,
        /// Hold out so many percent of the images, for class folders that are not split into train/ and test/
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..100))]
        hold_out: Option<u8>,
    },
    /// Say where a known data set is; if it isn't here, how to get it
    #[command(after_help = "\
Nothing is downloaded: the answer names the place it comes from and the folders it may be put into. The exit status is 0 \
if the data set is there and 1 if it is not.

Example:
  hetconv data fetch fashion-mnist")]
    Fetch {
        /// A name from `hetconv data list`
        name: String,
    },
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    match &args.command {
        Command::List => output.result(&catalog(&search_folders()), |entries| list(entries)),
        &Command::Prepare { ref data, image_size, hold_out } => {
            prepare(data, &LoadOptions { image_size, limit_train: None, hold_out }, output)
        }
        Command::Fetch { name } => fetch(name, output),
    }
}

fn list(entries: &[CatalogEntry]) -> String {
    let mut rows = table(&["name", "what it is", "here"], &["name", "what it is", "here"]);
    for entry in entries {
        rows.add_row([entry.name, entry.description, &place(entry)]);
    }
    let folders: Vec<String> = search_folders().iter().map(|folder| folder.display().to_string()).collect();
    format!(
        "{rows}\n\nLooked for in {} ($HETCONV_DATA names another folder). Any path to a data set will do as well.",
        folders.join(", ")
    )
}

fn place(entry: &CatalogEntry) -> String {
    match &entry.path {
        Some(path) => path.display().to_string(),
        None if entry.present => "built in".to_owned(),
        None => format!("no: hetconv data fetch {}", entry.name),
    }
}

fn fetch(name: &str, output: &Output) -> Result<()> {
    let entries = catalog(&search_folders());
    let Some(entry) = entries.iter().find(|entry| entry.name == name) else {
        let all: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
        let like = nearest(name, all.iter().copied());
        let meant = like.map(|like| format!("; did you mean {like:?}?")).unwrap_or_default();
        bad_usage!("no data set {name:?} is known, only {}{meant}", all.join(", "));
    };
    if entry.present {
        return output.result(entry, |entry| format!("{}: {}", entry.name, place(entry)));
    }
    let looked: Vec<String> = entry.looked.iter().map(|path| path.display().to_string()).collect();
    bail!("{name} is not here (looked for {}); to get it, {}", looked.join(", "), entry.how)
}

/// Opens a data set, and shows how many of its files are decoded.
fn open_data(data: &str, options: &LoadOptions) -> Result<Dataset> {
    let mut progress = StepProgress::new(data, "images");
    Ok(Dataset::open_watched(data, options, &mut |done, images| progress.at(done, images))?)
}

/// As [`open_data`]; a size of images that the data set does not have is an error.
pub fn open_data_at_size(data: &str, options: &LoadOptions) -> Result<Dataset> {
    let set = open_data(data, options)?;
    let [height, width, _] = set.train.shape();
    if let Some(size) = options.image_size.filter(|&size| [size, size] != [height, width]) {
        bad_usage!("--image-size {size} is for image files; the images of {} are {height}×{width}", set.name);
    }
    Ok(set)
}

/// Opens a data set as a network takes its images; `what` is what the network is called where they do not fit.
pub fn open_data_for(graph: &Graph, what: impl Display, data: &str, options: LoadOptions) -> Result<Dataset> {
    let input = graph.input_shape().unwrap_or_default();
    // Image files are seen as the network takes them; other data sets have a size of their own.
    let image_size = Some(input[1]).filter(|_| input[1] == input[2]);
    let set = open_data(data, &LoadOptions { image_size, ..options })?;
    let [height, width, channels] = set.test.shape();
    if input != [channels, height, width] {
        let [c, h, w] = input;
        bad_usage!(
            "{what} takes images of {c}×{h}×{w} (channels, height, width), but {} has {channels}×{height}×{width}",
            set.name
        );
    }
    Ok(set)
}

/// What `prepare` found.
#[derive(Serialize)]
struct Prepared {
    data: String,
    /// Height, width, channels.
    image: [usize; 3],
    train: Half,
    test: Half,
    classes: Vec<String>,
    /// Of the training split, for pixels between 0 and 1.
    normalisation: Normalisation,
    memory_mib: f64,
}

/// Bytes of images that are looked at before their digest is taken, and of one more.
const PORTION: usize = 64 << 20;

#[derive(Serialize)]
struct Half {
    images: usize,
    /// Images of each class, in the order of `classes`.
    per_class: Vec<usize>,
    /// Of all pixels that evaluation sees and then all labels, as little-endian 16-bit numbers.
    sha256: String,
}

impl Half {
    /// Looks at every image, in parallel, a few at a time; `watch` is told how many are done.
    fn new(split: &Split, classes: usize, watch: &mut dyn FnMut(usize)) -> Result<Self> {
        let mut per_class = vec![0; classes];
        let mut digest = Sha256::new();
        let together = (PORTION / split.shape().iter().product::<usize>().max(1)).clamp(1, 256);
        for first in (0..split.len()).step_by(together) {
            let last = (first + together).min(split.len());
            let images: Vec<_> = (first..last).into_par_iter().map(|index| split.image(index)).collect();
            // One after another, so that of several faults always the first is reported.
            images.into_iter().try_for_each(|image| image.map(|image| digest.update(image)))?;
            watch(last);
        }
        for &label in split.labels() {
            per_class[usize::from(label)] += 1;
            digest.update(label.to_le_bytes());
        }
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { images: split.len(), per_class, sha256 })
    }
}

fn prepare(data: &str, options: &LoadOptions, output: &Output) -> Result<()> {
    let set = open_data_at_size(data, options)?;
    let bytes: usize =
        [&set.train, &set.test].iter().filter_map(|split| split.images()).map(|i| i.pixels().len()).sum();
    let images = set.train.len() + set.test.len();
    let mut progress = StepProgress::new(data, "images");
    let train = Half::new(&set.train, set.classes.len(), &mut |done| progress.at(done, images))?;
    let test = Half::new(&set.test, set.classes.len(), &mut |done| progress.at(set.train.len() + done, images))?;
    drop(progress);
    let prepared = Prepared {
        data: set.name.clone(),
        image: set.train.shape(),
        train,
        test,
        normalisation: set.train.normalisation(),
        memory_mib: bytes as f64 / f64::from(1 << 20),
        classes: set.classes,
    };
    output.result(&prepared, text)
}

fn text(prepared: &Prepared) -> String {
    let mut classes = table(&["class", "training images", "test images"], &["class"]);
    let (train, test) = (&prepared.train, &prepared.test);
    for (i, class) in prepared.classes.iter().enumerate() {
        classes.add_row([class.clone(), grouped(train.per_class[i] as u64), grouped(test.per_class[i] as u64)]);
    }
    classes.add_row(["all".to_owned(), grouped(train.images as u64), grouped(test.images as u64)]);
    let [height, width, channels] = prepared.image;
    let Normalisation { mean, std } = &prepared.normalisation;
    let name = Path::new(&prepared.data).display();
    let memory = if prepared.memory_mib > 0.0 {
        format!("{:.1} MiB in memory", prepared.memory_mib)
    } else {
        "decoded whenever they are looked at".to_owned()
    };
    format!(
        "{name}: {channels}×{height}×{width} (channels, height, width), {memory}\n\n{classes}\n\n\
         Mean      {}\nStd       {}\nSHA-256   training {}\n          test     {}",
        numbers(mean),
        numbers(std),
        train.sha256,
        test.sha256
    )
}

fn numbers(values: &[f32]) -> String {
    values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(", ")
}

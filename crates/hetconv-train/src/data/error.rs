//! What can be wrong with a data set.

use std::io;
use std::path::{Path, PathBuf};

/// Why a data set could not be opened. Every variant names the file at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file in a class folder cannot be decoded as an image.
    #[error("{file} is not a readable image (JPEG, PNG or BMP): {reason}")]
    NotAnImage {
        /// The file, with its archive if it lies in one.
        file: String,
        /// What the decoder said.
        reason: String,
    },
    /// Images of several sizes, and no size asked for.
    #[error(
        "{file} has {}×{} pixels but the images before it {}×{}; give an image size (--image-size) to scale all to one",
        found[1], found[0], expected[1], expected[0]
    )]
    SizeDiffers {
        /// The first file that differs.
        file: String,
        /// Height and width of the others.
        expected: [usize; 2],
        /// Height and width of this one.
        found: [usize; 2],
    },
    /// More images than are decoded into memory.
    #[error(
        "{images} images of {}×{} pixels, as {file} has, take more than {} GiB of memory; give an image size \
         (--image-size) to leave them in their files",
        size[1], size[0], limit >> 30
    )]
    TooManyPixels {
        /// The first file.
        file: String,
        /// How many there are.
        images: usize,
        /// Height and width.
        size: [usize; 2],
        /// What decoded images may take, in bytes.
        limit: usize,
    },
    /// A size that no image is scaled to.
    #[error("image size {size}: sizes from 1 to {limit} pixels are possible")]
    ImageSize {
        /// What was asked for, in pixels.
        size: usize,
        /// The largest size.
        limit: u32,
    },
    /// A class folder without a single image.
    #[error("the class folder {folder} is empty; put images into it or remove it")]
    EmptyClass {
        /// The folder.
        folder: String,
    },
    /// A split without class folders.
    #[error(
        "{folder} holds no class folders; expected {folder}/CLASS/IMAGE, or a share to hold out (--hold-out 10, in percent)"
    )]
    NoClasses {
        /// The split's folder.
        folder: String,
    },
    /// A share that nobody can hold out.
    #[error("{percent} % of {images} images cannot be held out: some must be left on both sides")]
    HoldOut {
        /// What was asked for, in percent.
        percent: u8,
        /// Images there are.
        images: usize,
    },
    /// A data set that has held-out images of its own.
    #[error("{data} has test images of its own; nothing is held out of its training images")]
    AlreadySplit {
        /// The data set.
        data: String,
    },
    /// The training and test splits have different classes.
    #[error("training and test classes of {data} differ: {}", difference(only_train, only_test))]
    ClassMismatch {
        /// The data set.
        data: String,
        /// Classes that only the training split has.
        only_train: Vec<String>,
        /// Classes that only the test split has.
        only_test: Vec<String>,
    },
    /// A folder or archive in none of the known layouts.
    #[error(
        "{} is no data set: expected train/CLASS/IMAGE and test/CLASS/IMAGE (or val/), data_batch_1.bin … (CIFAR-10), \
         train.bin (CIFAR-100) or train-images-idx3-ubyte[.gz] (MNIST family). Of class folders without train/ and test/ \
         a share of the images can be held out (--hold-out 10, in percent)", path.display()
    )]
    UnknownLayout {
        /// The folder or archive.
        path: PathBuf,
    },
    /// A binary file that does not follow its format.
    #[error("{} is malformed: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// A label that names no class.
    #[error("{}, record {record}: label {label} is out of range, there are {classes} classes", path.display())]
    LabelOutOfRange {
        /// The file.
        path: PathBuf,
        /// Number of the record, from 0.
        record: usize,
        /// The label found.
        label: usize,
        /// Number of classes.
        classes: usize,
    },
    /// An archive that cannot be read, or one whose entries point outside it.
    #[error("{}: {fault}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong, with the entry's name.
        fault: String,
    },
    /// A file that holds more than is ever read.
    #[error("{file} holds more than {limit} bytes, the most that is read of one file")]
    TooLarge {
        /// The file, with its archive if it lies in one.
        file: String,
        /// The limit.
        limit: u64,
    },
    /// A name that is neither a path nor a known data set.
    #[error("no data set {name:?}: {}{}", places(looked), suggestion(nearest.as_deref()))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
        /// The known name most like it, unless a path is meant.
        nearest: Option<String>,
    },
    /// A known data set that is not on this machine.
    #[error("the data set {name:?} is not here: {}; to get it, {how}", places(looked))]
    NotPresent {
        /// The data set.
        name: String,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
        /// How to get it.
        how: String,
    },
    /// Pixels or labels that do not fit each other.
    #[error("{data}: {fault}")]
    Inconsistent {
        /// The data set or split.
        data: String,
        /// What does not fit.
        fault: String,
    },
}

impl DataError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }

    pub(crate) fn malformed(path: &Path, fault: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), fault: fault.into() }
    }
}

fn difference(only_train: &[String], only_test: &[String]) -> String {
    let side = |classes: &[String], name| match classes {
        [] => None,
        [first] => Some(format!("{first:?} is only in {name}")),
        [first, rest @ ..] => Some(format!("{first:?} and {} more are only in {name}", rest.len())),
    };
    let sides: Vec<String> =
        [side(only_train, "the training split"), side(only_test, "the test split")].into_iter().flatten().collect();
    sides.join("; ")
}

fn places(looked: &[PathBuf]) -> String {
    let paths: Vec<String> = looked.iter().map(|path| path.display().to_string()).collect();
    format!("looked for {}", paths.join(", "))
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

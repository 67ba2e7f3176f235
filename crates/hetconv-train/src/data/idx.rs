//! The MNIST family: IDX files of images and labels, gzip or not.
//!
//! An IDX file of bytes begins with `00 00 08 D` (D the number of dimensions) and D big-endian 32-bit sizes.

use super::{DataError, Dataset, Images, LoadOptions, Split};
use flate2::read::GzDecoder;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The most bytes a file may unpack to.
const LIMIT: usize = 1 << 30;

/// The classes of Fashion-MNIST, whose files do not name them.
const FASHION: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// The first labels of its held-out images, by which it is known wherever it lies.
const FASHION_LABELS: [u16; 32] =
    [9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5, 7, 3, 4, 1, 2, 4, 8, 0, 2, 5, 7, 9, 1, 4, 6, 0, 9, 3, 8, 8];

/// The four files.
pub(super) struct Layout {
    train: [PathBuf; 2],
    test: [PathBuf; 2],
}

/// A folder of IDX files.
pub(super) fn detect(path: &Path) -> Option<Layout> {
    let name = |split: &str, kind: &str| {
        let plain = path.join(format!("{split}-{kind}-ubyte"));
        let gzip = path.join(format!("{split}-{kind}-ubyte.gz"));
        if gzip.exists() && !plain.exists() { gzip } else { plain }
    };
    let pair = |split| [name(split, "images-idx3"), name(split, "labels-idx1")];
    let layout = Layout { train: pair("train"), test: pair("t10k") };
    layout.train[0].exists().then_some(layout)
}

pub(super) fn open(layout: &Layout, path: &Path, options: &LoadOptions) -> Result<Dataset, DataError> {
    let (train, test) = (split(&layout.train)?, split(&layout.test)?);
    let classes = class_names(path, &train, &test)?;
    for (split, [_, file]) in [(&train, &layout.train), (&test, &layout.test)] {
        if let Some(record) = split.labels().iter().position(|&label| usize::from(label) >= classes.len()) {
            let (path, label) = (file.clone(), usize::from(split.labels()[record]));
            return Err(DataError::LabelOutOfRange { path, record, label, classes: classes.len() });
        }
    }
    Dataset::new(path.display().to_string(), train.limited(options.limit_train), test, classes)
}

/// The lines of a `classes.txt`, the names of Fashion-MNIST if it is that, else the training labels' numbers.
fn class_names(folder: &Path, train: &Split, test: &Split) -> Result<Vec<String>, DataError> {
    let path = folder.join("classes.txt");
    if path.exists() {
        let text = fs::read_to_string(&path).map_err(DataError::io(&path))?;
        let names: Vec<String> =
            text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        return match train.labels().iter().chain(test.labels()).max() {
            Some(&last) if usize::from(last) >= names.len() => {
                Err(DataError::malformed(&path, format!("{} class names, but labels up to {last}", names.len())))
            }
            _ => Ok(names),
        };
    }
    if test.labels().starts_with(&FASHION_LABELS) {
        return Ok(FASHION.map(str::to_owned).into());
    }
    let last = train.labels().iter().max().copied().unwrap_or(0);
    Ok((0..=last).map(|label| label.to_string()).collect())
}

fn split([images, labels]: &[PathBuf; 2]) -> Result<Split, DataError> {
    let (dims, pixels) = read::<3>(images)?;
    let ([count], bytes) = read::<1>(labels)?;
    if dims[0] != count {
        return Err(DataError::malformed(labels, format!("{count} labels for {} images", dims[0])));
    }
    if dims[1] == 0 || dims[2] == 0 || count == 0 {
        return Err(DataError::malformed(images, format!("{} images of {}×{} pixels", dims[0], dims[1], dims[2])));
    }
    Split::new(Images::new([dims[1], dims[2], 1], pixels)?, bytes.into_iter().map(u16::from).collect())
}

/// The sizes and bytes of an IDX file of `D` dimensions.
fn read<const D: usize>(path: &Path) -> Result<([usize; D], Vec<u8>), DataError> {
    let file = BufReader::new(File::open(path).map_err(DataError::io(path))?);
    if path.extension().is_some_and(|extension| extension == "gz") {
        parse(GzDecoder::new(file), path)
    } else {
        parse(file, path)
    }
}

fn parse<const D: usize>(mut source: impl Read, path: &Path) -> Result<([usize; D], Vec<u8>), DataError> {
    let mut word = || {
        let mut bytes = [0; 4];
        source
            .read_exact(&mut bytes)
            .map(|()| bytes)
            .map_err(|e| DataError::malformed(path, format!("its header: {e}")))
    };
    let magic = word()?;
    if magic != [0, 0, 8, D as u8] {
        let fault = format!("it begins with {magic:02x?} instead of {:02x?}", [0, 0, 8, D as u8]);
        return Err(DataError::malformed(path, fault));
    }
    let mut dims = [0; D];
    for size in &mut dims {
        *size = u32::from_be_bytes(word()?) as usize;
    }
    let total = dims.iter().try_fold(1usize, |total, &size| total.checked_mul(size)).filter(|&total| total <= LIMIT);
    let Some(total) = total else {
        return Err(DataError::malformed(path, format!("its header announces {dims:?}, more than {LIMIT} bytes")));
    };
    // Grows with what is really there; the header only says where to stop.
    let mut bytes = Vec::new();
    source.take(total as u64 + 1).read_to_end(&mut bytes).map_err(|e| DataError::malformed(path, e.to_string()))?;
    if bytes.len() != total {
        let found = if bytes.len() > total { "more".into() } else { format!("only {}", bytes.len()) };
        return Err(DataError::malformed(path, format!("its header announces {total} bytes but there are {found}")));
    }
    Ok((dims, bytes))
}

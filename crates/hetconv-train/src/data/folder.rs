//! Image files in class folders: `train/CLASS/IMAGE` and `test/CLASS/IMAGE` (or `val/`), in a folder or an archive,
//! possibly below one folder that holds everything; or class folders without splits, of which a share is held out.

use super::decode::{Decoded, Undecoded, decode_at, is_grey};
use super::files::{Entry, Files};
use super::photos::Photos;
use super::{DataError, Dataset, Images, LoadOptions, Split, Watch, balanced};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Decoded images wait for their turn in portions of so many bytes, which bounds the memory beside the data set itself.
const PORTION: usize = 64 << 20;

/// What decoded images may take altogether: a small archive could hold images of any size.
const LIMIT: usize = 2 << 30;

/// The image files of each class of one split, by class name.
type Classes<'a> = BTreeMap<&'a str, Vec<&'a Entry>>;
/// Image files and the class of each.
type Labelled<'a> = Vec<(&'a Entry, u16)>;

/// Without an image size, images are decoded into memory; with one, they stay in their files (see [`Photos`]).
pub(super) fn open(
    files: Arc<dyn Files>,
    path: &Path,
    options: &LoadOptions,
    watch: Watch<'_>,
) -> Result<Dataset, DataError> {
    let name = path.display().to_string();
    let size = options.checked_size()?;
    let (classes, mut train, test) = match options.hold_out {
        None => split(&*files, path)?,
        Some(percent) => unsplit(&*files, path, percent)?,
    };
    if u16::try_from(classes.len()).is_err() {
        let fault = format!("{} classes are more than labels can number (65,535)", classes.len());
        return Err(DataError::Inconsistent { data: name, fault });
    }
    if let Some(limit) = options.limit_train {
        let labels: Vec<u16> = train.iter().map(|&(_, label)| label).collect();
        train = balanced(&labels, limit).into_iter().map(|i| train[i]).collect();
    }
    let labels = |items: &Labelled<'_>| items.iter().map(|&(_, label)| label).collect::<Vec<u16>>();
    let (train_labels, test_labels) = (labels(&train), labels(&test));
    if let Some(size) = size {
        let channels = channels(&*files, &[&train, &test])?;
        let photos = |items: &Labelled<'_>| {
            Photos::new(files.clone(), items.iter().map(|&(entry, _)| entry.clone()).collect(), size, channels)
        };
        let split = |items: Labelled<'_>, labels| {
            Ok::<_, DataError>(Split::photos(photos(&items), labels)?.with_paths(paths(&items)))
        };
        return Dataset::new(name, split(train, train_labels)?, split(test, test_labels)?, classes);
    }
    let mut pixels = Pixels::default();
    let mut watch = |done| watch(done, train.len() + test.len());
    pixels.append(&*files, &train, &mut watch)?;
    pixels.append(&*files, &test, &mut watch)?;
    let [train_images, test_images] = pixels.into_images(train_labels.len())?;
    let train = Split::new(train_images, train_labels)?.with_paths(paths(&train));
    let test = Split::new(test_images, test_labels)?.with_paths(paths(&test));
    Dataset::new(name, train, test, classes)
}

/// The names of the classes, and the files of `train/` and of `test/` or `val/`.
fn split<'a>(files: &'a dyn Files, path: &Path) -> Result<(Vec<String>, Labelled<'a>, Labelled<'a>), DataError> {
    let top = top(files.entries()).ok_or_else(|| DataError::UnknownLayout { path: path.to_owned() })?;
    let train = split_classes(files, &format!("{top}train"))?;
    let test = match split_classes(files, &format!("{top}test")) {
        Err(DataError::NoClasses { folder }) => match split_classes(files, &format!("{top}val")) {
            Err(DataError::NoClasses { .. }) => Err(DataError::NoClasses { folder }),
            found => found,
        },
        found => found,
    }?;
    let missing = |from: &Classes<'_>, other: &Classes<'_>| -> Vec<String> {
        from.keys().filter(|class| !other.contains_key(*class)).map(|&class| class.to_owned()).collect()
    };
    let (only_train, only_test) = (missing(&train, &test), missing(&test, &train));
    if !only_train.is_empty() || !only_test.is_empty() {
        return Err(DataError::ClassMismatch { data: path.display().to_string(), only_train, only_test });
    }
    Ok((names(&train), labelled(&train), labelled(&test)))
}

/// The names of the classes of `train/`, or of class folders that belong to no split, and their files without and with the
/// share that is held out: every so many-th, through all classes.
fn unsplit<'a>(
    files: &'a dyn Files,
    path: &Path,
    percent: u8,
) -> Result<(Vec<String>, Labelled<'a>, Labelled<'a>), DataError> {
    // A class may be called `train`, too: there are no class folders in it.
    let holds_classes =
        |top: &String| !matches!(split_classes(files, &format!("{top}train")), Err(DataError::NoClasses { .. }));
    let classes = match top(files.entries()).filter(holds_classes) {
        Some(top) => {
            for other in ["test", "val"] {
                match split_classes(files, &format!("{top}{other}")) {
                    Err(DataError::NoClasses { .. }) => {}
                    _ => return Err(DataError::AlreadySplit { data: path.display().to_string() }),
                }
            }
            split_classes(files, &format!("{top}train"))?
        }
        None => split_classes(files, single_top(files.entries()).unwrap_or_default())?,
    };
    let all = labelled(&classes);
    let images = all.len();
    let is_held =
        |&(i, _): &(usize, (&Entry, u16))| (i + 1) * usize::from(percent) / 100 > i * usize::from(percent) / 100;
    let (test, train): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(is_held);
    if !(1..100).contains(&percent) || train.is_empty() || test.is_empty() {
        return Err(DataError::HoldOut { percent, images });
    }
    let items = |side: Vec<(usize, (&'a Entry, u16))>| side.into_iter().map(|(_, item)| item).collect();
    Ok((names(&classes), items(train), items(test)))
}

fn names(classes: &Classes<'_>) -> Vec<String> {
    classes.keys().map(|&class| class.to_owned()).collect()
}

/// How many channels images have: 1 if none has colours, else 3, as in [`Pixels::into_images`]. The first one with colours
/// ends the search.
fn channels(files: &dyn Files, items: &[&Labelled<'_>]) -> Result<usize, DataError> {
    /// Bytes that nearly all headers are in.
    const HEAD: u64 = 16 << 10;
    let is_grey = |&(entry, _): &(&Entry, u16)| match is_grey(&files.head(entry, HEAD)?) {
        Ok(is_grey) => Ok(is_grey),
        Err(_) => is_grey(&files.read(entry)?)
            .map_err(|reason| DataError::NotAnImage { file: files.display(&entry.path), reason }),
    };
    let other =
        items.par_iter().flat_map(|items| items.par_iter()).map(is_grey).find_first(|found| !matches!(found, Ok(true)));
    other.map_or(Ok(1), |found| found.map(|_| 3))
}

/// The folder everything lies in: none, or the only one with a training split.
fn top(entries: &[Entry]) -> Option<String> {
    if entries.iter().any(|entry| entry.path.starts_with("train/")) {
        return Some(String::new());
    }
    let mut tops = entries.iter().filter_map(|entry| {
        let (top, rest) = entry.path.split_once('/')?;
        rest.starts_with("train/").then_some(top)
    });
    let top = tops.next()?;
    tops.all(|other| other == top).then(|| format!("{top}/"))
}

/// The only folder at the top, if there are folders in it.
fn single_top(entries: &[Entry]) -> Option<&str> {
    let first = entries.iter().find_map(|entry| entry.path.split_once('/')).map(|(top, _)| top)?;
    let mut below = entries.iter().filter_map(|entry| entry.path.split_once('/'));
    let has_folders = entries.iter().any(|entry| entry.path.matches('/').count() >= 2);
    (has_folders && below.all(|(top, _)| top == first)).then_some(first)
}

/// The classes in one folder, or of all files; files beside the class folders are none of ours.
fn split_classes<'a>(files: &'a dyn Files, split: &str) -> Result<Classes<'a>, DataError> {
    let mut classes = Classes::new();
    for entry in files.entries() {
        let inside = if split.is_empty() {
            Some(&entry.path[..])
        } else {
            entry.path.strip_prefix(split).and_then(|rest| rest.strip_prefix('/'))
        };
        let Some(rest) = inside else { continue };
        match rest.split_once('/') {
            Some((class, _)) if !entry.is_folder => classes.entry(class).or_default().push(entry),
            None if entry.is_folder => drop(classes.entry(rest).or_default()),
            _ => {}
        }
    }
    if classes.is_empty() {
        return Err(DataError::NoClasses { folder: files.display(split) });
    }
    if let Some((class, _)) = classes.iter().find(|(_, images)| images.is_empty()) {
        return Err(DataError::EmptyClass { folder: files.display(&format!("{split}/{class}")) });
    }
    Ok(classes)
}

/// Where files are in their data set.
fn paths<'a>(items: &'a Labelled<'_>) -> impl Iterator<Item = &'a str> {
    items.iter().map(|&(entry, _)| &entry.path[..])
}

/// All files of a split with their labels, class by class.
fn labelled<'a>(classes: &Classes<'a>) -> Labelled<'a> {
    (0..).zip(classes.values()).flat_map(|(label, images)| images.iter().map(move |&image| (image, label))).collect()
}

/// The decoded images so far; grows only by what has really been decoded.
#[derive(Default)]
struct Pixels {
    size: Option<[usize; 2]>,
    has_colour: bool,
    rgb: Vec<u8>,
    images: usize,
}

impl Pixels {
    /// Decodes the files in parallel and appends them in order. `watch` is told the images so far.
    fn append(
        &mut self,
        files: &dyn Files,
        items: &[(&Entry, u16)],
        watch: &mut dyn FnMut(usize),
    ) -> Result<(), DataError> {
        let decoded = |entry: &Entry, expected| {
            let file = || files.display(&entry.path);
            decode_at(&files.read(entry)?, expected).map_err(|fault| match fault {
                Undecoded::NotAnImage(reason) => DataError::NotAnImage { file: file(), reason },
                Undecoded::OtherSize(found) => {
                    DataError::SizeDiffers { file: file(), expected: expected.unwrap_or_default(), found }
                }
            })
        };
        let size = |image: &Decoded| [image.rgb.height() as usize, image.rgb.width() as usize];
        let expected = match (self.size, items.first()) {
            (Some(size), _) => size,
            (None, Some((entry, _))) => size(&decoded(entry, None)?),
            (None, None) => return Ok(()),
        };
        self.size = Some(expected);
        let needed = items.len().saturating_mul(3 * expected[0] * expected[1]).saturating_add(self.rgb.len());
        if needed > LIMIT {
            let file = items.first().map_or_else(String::new, |(entry, _)| files.display(&entry.path));
            return Err(DataError::TooManyPixels { file, images: items.len(), size: expected, limit: LIMIT });
        }
        let of_portion = (PORTION / (3 * expected[0] * expected[1]).max(1)).max(1);
        for portion in items.chunks(of_portion) {
            let images: Vec<_> = portion.par_iter().map(|(entry, _)| decoded(entry, Some(expected))).collect();
            // One after another, so that of several faults always the first is reported.
            for image in images {
                let image = image?;
                self.has_colour |= !image.is_grey;
                self.rgb.extend_from_slice(image.rgb.as_raw());
            }
            self.images += portion.len();
            watch(self.images);
        }
        Ok(())
    }

    /// The first `train` images, and the others; one channel each if no image has colours.
    fn into_images(mut self, train: usize) -> Result<[Images; 2], DataError> {
        let [height, width] = self.size.unwrap_or_default();
        let mut channels = 3;
        if !self.has_colour {
            channels = 1;
            self.rgb = self.rgb.into_iter().step_by(3).collect();
        }
        let test = self.rgb.split_off(train * height * width * channels);
        let shape = [height, width, channels];
        Ok([Images::new(shape, self.rgb)?, Images::new(shape, test)?])
    }
}

//! Image files in class folders: `train/CLASS/IMAGE` and `test/CLASS/IMAGE` (or `val/`), in a folder or an archive,
//! possibly below one folder that holds everything.

use super::decode::decode;
use super::files::{Entry, Files};
use super::{DataError, Dataset, Images, LoadOptions, Split, Watch, balanced};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Decoded images wait for their turn in portions of so many, which bounds the memory beside the data set itself.
const PORTION: usize = 2048;

/// The image files of each class of one split, by class name.
type Classes<'a> = BTreeMap<&'a str, Vec<&'a Entry>>;

pub(super) fn open(
    files: &dyn Files,
    path: &Path,
    options: &LoadOptions,
    watch: Watch<'_>,
) -> Result<Dataset, DataError> {
    let name = path.display().to_string();
    let size = options.checked_size()?;
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
        return Err(DataError::ClassMismatch { data: name, only_train, only_test });
    }
    let classes: Vec<String> = train.keys().map(|&class| class.to_owned()).collect();
    if u16::try_from(classes.len()).is_err() {
        let fault = format!("{} classes are more than labels can number (65,535)", classes.len());
        return Err(DataError::Inconsistent { data: name, fault });
    }

    let mut train = labelled(&train);
    if let Some(limit) = options.limit_train {
        let labels: Vec<u16> = train.iter().map(|&(_, label)| label).collect();
        train = balanced(&labels, limit).into_iter().map(|i| train[i]).collect();
    }
    let test = labelled(&test);
    let mut pixels = Pixels::default();
    let mut watch = |done| watch(done, train.len() + test.len());
    let train_labels = pixels.append(files, &train, size, &mut watch)?;
    let test_labels = pixels.append(files, &test, size, &mut watch)?;
    let [train, test] = pixels.into_images(train_labels.len())?;
    Dataset::new(name, Split::new(train, train_labels)?, Split::new(test, test_labels)?, classes)
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

/// The classes of one split; files beside the class folders are none of ours.
fn split_classes<'a>(files: &'a dyn Files, split: &str) -> Result<Classes<'a>, DataError> {
    let mut classes = Classes::new();
    for entry in files.entries() {
        let Some(rest) = entry.path.strip_prefix(split).and_then(|rest| rest.strip_prefix('/')) else { continue };
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

/// All files of a split with their labels, class by class.
fn labelled<'a>(classes: &Classes<'a>) -> Vec<(&'a Entry, u16)> {
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
    /// Decodes the files in parallel and appends them in order; returns their labels. `watch` is told the images so far.
    fn append(
        &mut self,
        files: &dyn Files,
        items: &[(&Entry, u16)],
        size: Option<u32>,
        watch: &mut dyn FnMut(usize),
    ) -> Result<Vec<u16>, DataError> {
        for portion in items.chunks(PORTION) {
            let decoded: Vec<_> = portion
                .par_iter()
                .map(|(entry, _)| {
                    decode(&files.read(entry)?, size)
                        .map_err(|reason| DataError::NotAnImage { file: files.display(&entry.path), reason })
                })
                .collect();
            // One after another, so that of several faults always the first is reported.
            for (image, (entry, _)) in decoded.into_iter().zip(portion) {
                let image = image?;
                let expected = *self.size.get_or_insert(image.size);
                if image.size != expected {
                    let file = files.display(&entry.path);
                    return Err(DataError::SizeDiffers { file, expected, found: image.size });
                }
                self.has_colour |= !image.is_grey;
                self.rgb.extend_from_slice(&image.rgb);
            }
            self.images += portion.len();
            watch(self.images);
        }
        Ok(items.iter().map(|&(_, label)| label).collect())
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

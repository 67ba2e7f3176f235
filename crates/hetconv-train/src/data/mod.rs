//! Data sets: images decoded once into memory as bytes, or image files of any size that are decoded when they are looked at.

mod catalog;
mod cifar;
mod decode;
mod error;
mod files;
mod folder;
mod idx;
mod normalisation;
mod photos;
mod single;
mod synthetic;
mod view;

pub use catalog::{CatalogEntry, KNOWN, KnownDataset, catalog, is_same_data, name_of, search_folders};
pub use error::DataError;
pub use photos::Photos;
pub use synthetic::{SyntheticOptions, synthetic};

use crate::digest::digest_parts;
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

/// Images of one size in memory: bytes in the order image, row, column, channel (NHWC), 0 black and 255 full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    shape: [usize; 3],
    pixels: Vec<u8>,
}

impl Images {
    /// Images of `[height, width, channels]` from their bytes.
    ///
    /// # Errors
    /// A shape with a zero in it, or bytes that are not a whole number of images.
    pub fn new(shape: [usize; 3], pixels: Vec<u8>) -> Result<Self, DataError> {
        let size = shape.iter().try_fold(1usize, |size, &n| size.checked_mul(n)).unwrap_or(0);
        if size == 0 || !pixels.len().is_multiple_of(size) {
            return Err(DataError::Inconsistent {
                data: "images".into(),
                fault: format!("{} bytes are no whole number of images of {shape:?}", pixels.len()),
            });
        }
        Ok(Self { shape, pixels })
    }

    /// Height, width and channels of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Bytes of one image: height · width · channels.
    pub fn image_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.image_len()
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// The bytes of one image.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn image(&self, index: usize) -> &[u8] {
        &self.pixels[index * self.image_len()..][..self.image_len()]
    }

    /// The bytes of all images.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Only the images of these indices, in their order.
    fn select(&self, indices: &[usize]) -> Self {
        Self { shape: self.shape, pixels: indices.iter().flat_map(|&i| self.image(i)).copied().collect() }
    }
}

/// Images and the class of each.
#[derive(Clone, Debug)]
pub struct Split {
    source: Source,
    labels: Vec<u16>,
    /// The digest of the images' paths in the data set, if they come from files of their own.
    paths: Option<String>,
}

/// Where a split's images are.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Memory(Images),
    Files(Photos),
}

impl Split {
    /// Images with their labels.
    ///
    /// # Errors
    /// Not as many labels as images, or more of them than 2³² − 1.
    pub fn new(images: Images, labels: Vec<u16>) -> Result<Self, DataError> {
        Self::checked(images.len(), Source::Memory(images), labels)
    }

    /// Image files with their labels.
    fn photos(photos: Photos, labels: Vec<u16>) -> Result<Self, DataError> {
        Self::checked(photos.len(), Source::Files(photos), labels)
    }

    /// The same images, which come from files of these paths.
    fn with_paths<'a>(self, paths: impl Iterator<Item = &'a str>) -> Self {
        Self { paths: Some(digest_parts(paths.map(str::as_bytes))), ..self }
    }

    fn checked(images: usize, source: Source, labels: Vec<u16>) -> Result<Self, DataError> {
        if images != labels.len() || u32::try_from(images).is_err() {
            let fault = format!("{images} images and {} labels", labels.len());
            return Err(DataError::Inconsistent { data: "split".into(), fault });
        }
        Ok(Self { source, labels, paths: None })
    }

    /// The images, if they are in memory and not in files.
    pub fn images(&self) -> Option<&Images> {
        match &self.source {
            Source::Memory(images) => Some(images),
            Source::Files(_) => None,
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Height, width and channels of every image, as a network gets it.
    pub fn shape(&self) -> [usize; 3] {
        match &self.source {
            Source::Memory(images) => images.shape(),
            Source::Files(photos) => photos.shape(),
        }
    }

    /// The bytes of one image as evaluation sees it: height · width · channels.
    ///
    /// # Errors
    /// A file that cannot be read or is no image.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn image(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        match &self.source {
            Source::Memory(images) => Ok(images.image(index).into()),
            Source::Files(photos) => Ok(photos.middle(index)?.into()),
        }
    }

    /// The class of each image, an index into [`Dataset::classes`].
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// SHA-256, in hexadecimal, of which images these are: the class of each, and the paths of their files in the data set,
    /// whatever the size at which they are seen, or, of images that have no files of their own, shape and pixels.
    pub fn digest(&self) -> String {
        let labels: Vec<u8> = self.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        match (&self.paths, &self.source) {
            (None, Source::Memory(images)) => {
                let shape = images.shape().map(|n| (n as u64).to_le_bytes());
                digest_parts([&labels, shape.as_flattened(), images.pixels()])
            }
            (paths, _) => digest_parts([&labels, paths.as_deref().unwrap_or_default().as_bytes()]),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The part of a split in memory that [`LoadOptions::limit_train`] leaves.
    fn limited(self, limit: Option<usize>) -> Self {
        match (limit, &self.source) {
            (Some(limit), Source::Memory(images)) if limit < self.len() => {
                let kept = balanced(&self.labels, limit);
                let labels = kept.iter().map(|&i| self.labels[i]).collect();
                Self { source: Source::Memory(images.select(&kept)), labels, paths: None }
            }
            _ => self,
        }
    }
}

/// A training split, a held-out split, and the names of the classes. The splits are shared with loader threads.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What the data set is called: the path it came from, or of one that was found by a known name, the name of its file or
    /// folder.
    pub name: String,
    /// What the network learns from.
    pub train: Arc<Split>,
    /// What it is judged by.
    pub test: Arc<Split>,
    /// The names of the classes, by label.
    pub classes: Vec<String>,
}

/// Who wants to know how far long work has come: is told how many of how many are done.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize);

/// How to open a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// See every image file as a square of so many pixels a side: training a random part of it, evaluation its middle.
    /// The files are then decoded whenever they are looked at. Other data sets have a size of their own.
    pub image_size: Option<usize>,
    /// Keep only so many training images: the first of every class in turn, so that classes stay balanced.
    pub limit_train: Option<usize>,
    /// Hold out so many percent of the images of class folders that have no test images.
    pub hold_out: Option<u8>,
}

impl LoadOptions {
    /// The size to scale to, if images can have it.
    fn checked_size(&self) -> Result<Option<usize>, DataError> {
        self.image_size.map(decode::checked_size).transpose()
    }

    /// Whether a data set with test images of its own is opened as it is.
    fn nothing_held_out(&self, data: &str) -> Result<(), DataError> {
        if self.hold_out.is_some() { Err(DataError::AlreadySplit { data: data.to_owned() }) } else { Ok(()) }
    }
}

impl Dataset {
    /// The name of the data set that needs no files: see [`synthetic()`].
    pub const BUILT_IN: &str = synthetic::NAME;

    /// A data set from its splits.
    ///
    /// # Errors
    /// An empty split, splits whose images differ in shape, or a label that names no class.
    pub fn new(name: String, train: Split, test: Split, classes: Vec<String>) -> Result<Self, DataError> {
        let inconsistent = |fault| Err(DataError::Inconsistent { data: name.clone(), fault });
        if train.is_empty() || test.is_empty() {
            return inconsistent(format!("{} training and {} test images", train.len(), test.len()));
        }
        let (shape, other) = (train.shape(), test.shape());
        if shape != other {
            return inconsistent(format!(
                "training images are {shape:?} (height, width, channels) and test images {other:?}"
            ));
        }
        if let Some(label) = train.labels.iter().chain(&test.labels).find(|&&l| usize::from(l) >= classes.len()) {
            return inconsistent(format!("label {label} is out of range, there are {} classes", classes.len()));
        }
        Ok(Self { name, train: Arc::new(train), test: Arc::new(test), classes })
    }

    /// [`Split::digest`] of the training and of the held-out images.
    pub fn digests(&self) -> [String; 2] {
        [self.train.digest(), self.test.digest()]
    }

    /// Opens a data set: `synthetic`, a path, or a known name (see [`KNOWN`]).
    ///
    /// A path is a folder or .zip of `train/CLASS/IMAGE` and `test/CLASS/IMAGE` (or `val/`), one of `CLASS/IMAGE` if a share
    /// is held out, a folder of CIFAR-10 or CIFAR-100 binary batches, or a folder of IDX files. A path that exists wins over
    /// a known name.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn open(spec: &str, options: &LoadOptions) -> Result<Self, DataError> {
        Self::open_watched(spec, options, &mut |_, _| ())
    }

    /// As [`Dataset::open`]; `watch` is told how many image files are decoded.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn open_watched(spec: &str, options: &LoadOptions, watch: Watch<'_>) -> Result<Self, DataError> {
        // An impossible size is refused even where nothing is to be scaled.
        options.checked_size()?;
        if spec == synthetic::NAME {
            options.nothing_held_out(spec)?;
            let default = SyntheticOptions::default();
            let train = options.limit_train.map_or(default.train, |limit| limit.min(default.train));
            return synthetic(&SyntheticOptions { train, ..default });
        }
        if Path::new(spec).exists() {
            return Self::open_path(Path::new(spec), options, watch);
        }
        let (name, path) = catalog::find(spec, &search_folders())?;
        Ok(Self { name: catalog::own_name(name, &path), ..Self::open_path(&path, options, watch)? })
    }

    /// Opens a folder or archive, whichever of the known layouts it has; `watch` as of [`Dataset::open_watched`].
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn open_path(path: &Path, options: &LoadOptions, watch: Watch<'_>) -> Result<Self, DataError> {
        let kind = std::fs::metadata(path).map_err(DataError::io(path))?;
        if kind.is_file() {
            return folder::open(Arc::new(files::Archive::open(path)?), path, options, watch);
        }
        if let Some(layout) = cifar::detect(path) {
            options.nothing_held_out(&path.display().to_string())?;
            return cifar::open(&layout, path, options);
        }
        if let Some(layout) = idx::detect(path) {
            options.nothing_held_out(&path.display().to_string())?;
            return idx::open(&layout, path, options);
        }
        let scope = if options.hold_out.is_some() { files::Scope::All } else { files::Scope::Splits };
        folder::open(Arc::new(files::Folder::open(path, scope)?), path, options, watch)
    }
}

/// Indices of the first `limit` samples when the classes take turns, in ascending order.
fn balanced(labels: &[u16], limit: usize) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    let mut turns: Vec<(usize, usize)> = Vec::with_capacity(labels.len());
    for (index, label) in labels.iter().enumerate() {
        let turn = seen.entry(label).or_insert(0usize);
        turns.push((*turn, index));
        *turn += 1;
    }
    turns.sort_unstable();
    let mut kept: Vec<usize> = turns.into_iter().take(limit).map(|(_, index)| index).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_turns_between_classes() {
        assert_eq!(balanced(&[0, 0, 0, 1, 1, 2], 4), [0, 1, 3, 5]);
        assert_eq!(balanced(&[0, 0, 0, 1, 1, 2], 2), [0, 3]);
        assert_eq!(balanced(&[1, 0], 9), [0, 1]);
    }

    #[test]
    fn pixels_and_labels_must_fit() {
        assert!(Images::new([2, 2, 3], vec![0; 13]).is_err());
        assert!(Images::new([2, 0, 3], vec![0; 12]).is_err());
        let images = Images::new([2, 2, 3], (0..24).collect()).unwrap();
        assert_eq!(images.image(1)[0], 12);
        assert!(Split::new(images.clone(), vec![0]).is_err());
        let split = Split::new(images, vec![0, 2]).unwrap();
        let error = Dataset::new("x".into(), split.clone(), split, vec!["a".into(), "b".into()]).unwrap_err();
        assert!(error.to_string().contains("label 2 is out of range, there are 2 classes"), "{error}");
    }
}

//! Data sets: images decoded once into memory as bytes.

mod catalog;
mod cifar;
mod decode;
mod error;
mod files;
mod folder;
mod idx;
mod normalisation;
mod single;
mod synthetic;

pub use catalog::{CatalogEntry, KNOWN, KnownDataset, catalog, search_folders};
pub use error::DataError;
pub use synthetic::{SyntheticOptions, synthetic};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    images: Images,
    labels: Vec<u16>,
}

impl Split {
    /// Images with their labels.
    ///
    /// # Errors
    /// Not as many labels as images, or more of them than 2³² − 1.
    pub fn new(images: Images, labels: Vec<u16>) -> Result<Self, DataError> {
        if images.len() != labels.len() || u32::try_from(labels.len()).is_err() {
            let fault = format!("{} images and {} labels", images.len(), labels.len());
            return Err(DataError::Inconsistent { data: "split".into(), fault });
        }
        Ok(Self { images, labels })
    }

    /// The images.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The class of each image, an index into [`Dataset::classes`].
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The part of the split that [`LoadOptions::limit_train`] leaves.
    fn limited(self, limit: Option<usize>) -> Self {
        match limit {
            Some(limit) if limit < self.len() => {
                let kept = balanced(&self.labels, limit);
                let labels = kept.iter().map(|&i| self.labels[i]).collect();
                Self { images: self.images.select(&kept), labels }
            }
            _ => self,
        }
    }
}

/// A training split, a held-out split, and the names of the classes. The splits are shared with loader threads.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What the data set is called: a known name or the path it came from.
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
    /// Scale the shorter side of every image to so many pixels and keep the square in the middle. Only for image
    /// files; images that already have this size are left alone.
    pub image_size: Option<usize>,
    /// Keep only so many training images: the first of every class in turn, so that classes stay balanced.
    pub limit_train: Option<usize>,
}

impl LoadOptions {
    /// The size to scale to, if images can have it.
    fn checked_size(&self) -> Result<Option<u32>, DataError> {
        self.image_size.map(decode::checked_size).transpose()
    }
}

impl Dataset {
    /// A data set from its splits.
    ///
    /// # Errors
    /// An empty split, splits whose images differ in shape, or a label that names no class.
    pub fn new(name: String, train: Split, test: Split, classes: Vec<String>) -> Result<Self, DataError> {
        let inconsistent = |fault| Err(DataError::Inconsistent { data: name.clone(), fault });
        if train.is_empty() || test.is_empty() {
            return inconsistent(format!("{} training and {} test images", train.len(), test.len()));
        }
        if train.images.shape != test.images.shape {
            return inconsistent(format!(
                "training images are {:?} (height, width, channels) and test images {:?}",
                train.images.shape, test.images.shape
            ));
        }
        if let Some(label) = train.labels.iter().chain(&test.labels).find(|&&l| usize::from(l) >= classes.len()) {
            return inconsistent(format!("label {label} is out of range, there are {} classes", classes.len()));
        }
        Ok(Self { name, train: Arc::new(train), test: Arc::new(test), classes })
    }

    /// Opens a data set: `synthetic`, a path, or a known name (see [`KNOWN`]).
    ///
    /// A path is a folder or .zip of `train/CLASS/IMAGE` and `test/CLASS/IMAGE` (or `val/`), a folder of CIFAR-10 or
    /// CIFAR-100 binary batches, or a folder of IDX files. A path that exists wins over a known name.
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
            let default = SyntheticOptions::default();
            let train = options.limit_train.map_or(default.train, |limit| limit.min(default.train));
            return synthetic(&SyntheticOptions { train, ..default });
        }
        if Path::new(spec).exists() {
            return Self::open_path(Path::new(spec), options, watch);
        }
        let (name, path) = catalog::find(spec, &search_folders())?;
        Ok(Self { name: name.to_owned(), ..Self::open_path(&path, options, watch)? })
    }

    /// Opens a folder or archive, whichever of the known layouts it has; `watch` as of [`Dataset::open_watched`].
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn open_path(path: &Path, options: &LoadOptions, watch: Watch<'_>) -> Result<Self, DataError> {
        let kind = std::fs::metadata(path).map_err(DataError::io(path))?;
        if kind.is_file() {
            return folder::open(&files::Archive::open(path)?, path, options, watch);
        }
        if let Some(layout) = cifar::detect(path) {
            return cifar::open(&layout, path, options);
        }
        if let Some(layout) = idx::detect(path) {
            return idx::open(&layout, path, options);
        }
        folder::open(&files::Folder::open(path)?, path, options, watch)
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

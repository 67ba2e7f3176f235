//! Images of any size that stay in their files and are decoded whenever they are looked at.

use super::files::{Entry, Files};
use super::{DataError, decode, view};
use hetconv_graph::Normalisation;
use rand_chacha::ChaCha8Rng;
use std::fmt;
use std::sync::Arc;

/// Image files, each seen as a square of one size. Only their names are in memory.
#[derive(Clone)]
pub struct Photos {
    files: Arc<dyn Files>,
    entries: Vec<Entry>,
    size: usize,
    channels: usize,
}

impl Photos {
    /// These files, seen with so many pixels a side and so many channels, 1 or 3.
    pub(super) fn new(files: Arc<dyn Files>, entries: Vec<Entry>, size: usize, channels: usize) -> Self {
        Self { files, entries, size, channels }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Height, width and channels of the squares.
    pub fn shape(&self) -> [usize; 3] {
        [self.size, self.size, self.channels]
    }

    /// The mean and standard deviation of ImageNet's pixels, as everybody uses them; of their brightness for grey images.
    pub fn normalisation(&self) -> Normalisation {
        match self.channels {
            3 => Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] },
            _ => Normalisation { mean: vec![0.449], std: vec![0.226] },
        }
    }

    /// The bytes of one image's middle, as evaluation sees it: height · width · channels.
    ///
    /// # Errors
    /// A file that cannot be read or is no image.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn middle(&self, index: usize) -> Result<Vec<u8>, DataError> {
        self.square(index, None)
    }

    /// The bytes of a random part of one image, as training sees it.
    pub(crate) fn part(&self, index: usize, rng: &mut ChaCha8Rng) -> Result<Vec<u8>, DataError> {
        self.square(index, Some(rng))
    }

    fn square(&self, index: usize, rng: Option<&mut ChaCha8Rng>) -> Result<Vec<u8>, DataError> {
        let entry = &self.entries[index];
        let bytes = self.files.read(entry)?;
        decode::decode(&bytes)
            .and_then(|image| view::square(&image, self.size, self.channels, rng))
            .map_err(|reason| DataError::NotAnImage { file: self.files.display(&entry.path), reason })
    }
}

impl fmt::Debug for Photos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, size, channels, .. } = self;
        f.debug_struct("Photos")
            .field("images", &entries.len())
            .field("size", size)
            .field("channels", channels)
            .finish()
    }
}

//! Mean and standard deviation of each channel.

use super::{Images, Source, Split};
use hetconv_graph::Normalisation;

impl Split {
    /// The normalisation that belongs to the split: that of [`Images::normalisation`] or [`super::Photos::normalisation`].
    pub fn normalisation(&self) -> Normalisation {
        match self.source() {
            Source::Memory(images) => images.normalisation(),
            Source::Files(photos) => photos.normalisation(),
        }
    }
}

impl Images {
    /// The normalisation that gives each channel mean 0 and variance 1 over these images, of pixels between 0 and 1. A
    /// channel that is the same everywhere keeps its scale. Sums are of integers, hence exact in any order.
    pub fn normalisation(&self) -> Normalisation {
        let channels = self.shape()[2];
        let mut sums = vec![(0u64, 0u64); channels];
        for pixel in self.pixels().chunks_exact(channels) {
            for ((sum, squares), &value) in sums.iter_mut().zip(pixel) {
                *sum += u64::from(value);
                *squares += u64::from(value) * u64::from(value);
            }
        }
        let count = (self.pixels().len() / channels).max(1) as f64;
        let moments = sums.into_iter().map(|(sum, squares)| {
            let mean = sum as f64 / count;
            let variance = (squares as f64 / count - mean * mean).max(0.0);
            let std = if variance > 0.0 { variance.sqrt() / 255.0 } else { 1.0 };
            ((mean / 255.0) as f32, std as f32)
        });
        let (mean, std) = moments.unzip();
        Normalisation { mean, std }
    }
}

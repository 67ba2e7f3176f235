//! Bundles: the rows that are worked on together, and their sources one behind the other.

use std::ops::Range;

use crate::cache;
use crate::norm::Affine;
use crate::simd::{Simd, Task};
use crate::taps::Rows;

/// The most lanes of a vector.
const MAX_LANES: usize = 16;

/// Source pixels of a bundle whose vectors are strung together, unless a row alone reads more: half of the first-level
/// cache.
const PIXELS_STRUNG: usize = cache::FIRST / 2 / MAX_LANES;

/// Rows of targets that are worked on together: all those of one or several small images, or some of a larger one.
#[derive(Clone, Copy)]
pub(super) struct Bundles {
    /// Images and rows that there are.
    all: [usize; 2],
    /// Images and rows of a bundle.
    pub of: [usize; 2],
    /// Whether the sources are strung together, or read where they stand, row by row.
    pub strings: bool,
}

/// Images, and rows of each of them.
pub(super) type Bundle = [Range<usize>; 2];

impl Bundles {
    /// The better way to cut so many images for so many parts. What a batch-norm has to be applied to is strung together if
    /// bundles share little; what is read as it stands only if no image is cut, so that they share nothing.
    pub fn new(table: &Rows, images: usize, parts: usize, is_scaled: bool) -> Self {
        let strung = Self::strung(table, images, parts);
        let is_better = match is_scaled {
            true => 2 * strung.reads(table).sum::<usize>() <= 3 * table.reads(0..table.rows.len()).len(),
            false => strung.per_image() == 1,
        };
        if is_better { strung } else { Self { of: [1, 1], strings: false, ..strung } }
    }

    /// Whose sources are strung together: of so many images, at least `count` bundles if there are so many rows.
    fn strung(table: &Rows, images: usize, count: usize) -> Self {
        let all = table.rows.len();
        let fits = |rows: usize| {
            let bundles = (0..all).step_by(rows).map(|first| first..all.min(first + rows));
            bundles.map(|rows| table.reads(rows).len()).max().is_none_or(|most| most <= PIXELS_STRUNG)
        };
        // Rows share what they read: that many fit at most.
        let of_image = table.reads(0..all).len().max(1);
        let most = (images * all / count).min(PIXELS_STRUNG * all / of_image).clamp(1, all.max(1));
        let rows = (1..=most).rev().find(|&rows| fits(rows)).unwrap_or(1);
        let together = (PIXELS_STRUNG / of_image).min(images / count).max(1);
        Self { all: [images, all], of: [if rows == all { together } else { 1 }, rows], strings: true }
    }

    pub fn len(&self) -> usize {
        self.all[0].div_ceil(self.of[0]) * self.per_image()
    }

    /// Bundles of an image, or of some that are worked on together.
    fn per_image(&self) -> usize {
        self.all[1].div_ceil(self.of[1])
    }

    pub fn at(&self, index: usize) -> Bundle {
        let [image, row] = [index / self.per_image() * self.of[0], index % self.per_image() * self.of[1]];
        let end = |first: usize, side: usize| self.all[side].min(first + self.of[side]);
        [image..end(image, 0), row..end(row, 1)]
    }

    /// The most values of a bundle's sources, if they are strung together.
    pub fn scratch_len(&self, table: &Rows) -> usize {
        if self.strings { self.of[0] * self.reads(table).max().unwrap_or(0) * MAX_LANES } else { 0 }
    }

    /// Source pixels of an image that each of its bundles reads.
    fn reads(&self, table: &Rows) -> impl Iterator<Item = usize> {
        let [all, of] = [self.all[1], self.of[1]];
        (0..all).step_by(of).map(move |first| table.reads(first..all.min(first + of)).len())
    }
}

/// A vector of channels of some pixels of some images, one behind the other.
pub(super) struct Strung<'a> {
    /// Of all images, `[pixels, channels]`.
    pub source: &'a [f32],
    pub images: usize,
    /// Values from one image to the next.
    pub image_len: usize,
    /// Of each image.
    pub pixels: Range<usize>,
    pub channels: usize,
    /// The first of the vector.
    pub channel: usize,
    /// What becomes of them.
    pub scaled: Option<Affine<'a>>,
    pub to: &'a mut [f32],
}

impl Task for Strung<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, images, image_len, pixels, channels, channel, scaled, to } = self;
        let lanes = S::LANES.min(channels - channel);
        assert!(to.len() >= images * pixels.len() * S::LANES);
        assert!(images == 0 || source.len() >= (images - 1) * image_len + pixels.end * channels);
        let of_channels = |values: &[f32]| {
            let values = &values[channel..channel + lanes];
            // SAFETY: as many values as that.
            unsafe { simd.load_lanes(values.as_ptr(), lanes) }
        };
        let affine = scaled.map(|Affine { scale, shift, relu }| (of_channels(scale), of_channels(shift), relu));
        let mut to = to.as_mut_ptr();
        for image in 0..images {
            let mut from = source.as_ptr().wrapping_add(image * image_len + pixels.start * channels + channel);
            for _ in pixels.clone() {
                // SAFETY: `lanes` channels of a pixel, which the source has, and room for a vector of each, as was checked.
                unsafe {
                    let mut value = simd.load_lanes(from, lanes);
                    if let Some((scale, shift, relu)) = affine {
                        value = simd.mul_add(value, scale, shift);
                        if relu {
                            value = simd.relu(value);
                        }
                    }
                    simd.store(to, value);
                }
                from = from.wrapping_add(channels);
                to = to.wrapping_add(S::LANES);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::taps;

    #[test]
    fn bundles_have_every_row_once_and_fit() {
        for (size, images) in [
            ([4, 4], 37),
            ([4, 4], 10),
            ([10, 10], 1),
            ([10, 10], 2),
            ([16, 16], 2),
            ([16, 17], 2),
            ([40, 9], 3),
            ([5, 100], 2),
            ([7, 300], 1),
        ] {
            for (stride, count) in [(1, 1), (2, 1), (1, 8), (1, 16)] {
                let geometry = hetconv_core::Conv2dGeometry::same(3, stride);
                let out = geometry.output_size(size).unwrap();
                let axis = |axis: usize| taps::forward_axis(&geometry, axis, size[axis], out[axis]);
                let table = Rows::new(3, &axis(0), &axis(1), size[1], 1);
                let bundles = Bundles::strung(&table, images, count);
                assert!(bundles.len() >= count.min(images * out[0]));
                let mut rows = Vec::new();
                for bundle in 0..bundles.len() {
                    let [of_images, of_rows] = bundles.at(bundle);
                    let strung = of_images.len() * table.reads(of_rows.clone()).len();
                    assert!(strung * MAX_LANES <= bundles.scratch_len(&table));
                    assert!(strung <= PIXELS_STRUNG || (of_images.len(), of_rows.len()) == (1, 1), "{size:?}");
                    rows.extend(of_images.flat_map(|image| of_rows.clone().map(move |row| (image, row))));
                }
                rows.sort_unstable();
                let all: Vec<_> = (0..images).flat_map(|image| (0..out[0]).map(move |row| (image, row))).collect();
                assert_eq!(rows, all, "{size:?}");
            }
        }
    }
}

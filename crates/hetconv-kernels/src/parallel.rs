//! How work is split: into parts that depend on shapes only, so that results don't depend on the number of threads.

use std::ops::Range;

use crate::cache;

/// Parts that a pass over a batch has at least, if there is enough to split: enough for a straggler not to matter.
pub(crate) const PARTS: usize = 16;

/// A target that several threads write, each its own values.
#[derive(Clone, Copy)]
pub(crate) struct Target(pub *mut f32);

// SAFETY: parts write disjoint values: other images, pixels or blocks.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    /// As of the pointer's own `add`.
    pub unsafe fn add(self, values: usize) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { self.0.add(values) })
    }
}

/// Images of each part when `images` of them, `bytes` each, are worked on independently.
///
/// A part's data should stay in a core's second-level cache. Small images are at least as many as a tile has `rows`: a
/// region that has one pixel an image then fills a tile.
pub(crate) fn images_per_part(images: usize, bytes: usize, rows: usize) -> usize {
    const CACHE: usize = cache::HALF_SECOND_BYTES;
    let cached = (CACHE / bytes.max(1)).max(1).min(images.div_ceil(PARTS).max(1));
    let fills = if bytes * rows <= 3 * CACHE { rows } else { 1 };
    cached.next_multiple_of(fills).min(images.max(1))
}

/// Blocks that one part works on: all, or some where there are few parts of images.
pub(crate) fn groups_of_blocks(blocks: usize, image_parts: usize) -> Vec<Range<usize>> {
    let together = blocks.div_ceil(PARTS.div_ceil(image_parts.max(1))).max(1);
    (0..blocks).step_by(together).map(|first| first..blocks.min(first + together)).collect()
}

/// Values of the scratch of all parts of a reduction.
const SCRATCH: usize = 4 << 20;

/// Number of parts for a reduction over `rows` that needs `floats` of scratch for each part.
pub(crate) fn reduction_parts(rows: usize, floats: usize) -> usize {
    (SCRATCH / floats.max(1)).clamp(1, PARTS).min(rows.max(1))
}

/// Parts of a batch of `images` for a reduction that is split by blocks as well, `floats` of scratch for each part.
pub(crate) fn parts_of_blocks(images: usize, blocks: usize, floats: usize) -> usize {
    PARTS.div_ceil(blocks.max(1)).min(SCRATCH / floats.max(1)).clamp(1, images.max(1))
}

/// A range in pieces of at most `most` and nearly equal length.
pub(crate) fn even_ranges(range: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let count = range.len().div_ceil(most);
    let (start, len) = (range.start, range.len());
    (0..count).map(move |piece| start + piece * len / count..start + (piece + 1) * len / count)
}

/// One of several nearly equal stretches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Band {
    pub index: usize,
    pub count: usize,
}

impl Band {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Its share of `len` items.
    pub fn of(self, len: usize) -> Range<usize> {
        self.among(0, len, len, 1)
    }

    /// Of its share of `total` items, those among the `len` that follow the first `before`; a share ends at a multiple of
    /// `step` of them, or with them.
    pub fn among(self, before: usize, len: usize, total: usize, step: usize) -> Range<usize> {
        let edge = |index: usize| match (total * index / self.count).saturating_sub(before) {
            at if at >= len => len,
            at => at / step * step,
        };
        edge(self.index)..edge(self.index + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_everything_once_and_are_nearly_alike() {
        for (lens, step, count) in [
            (vec![0], 4, 3),
            (vec![1, 0, 2], 4, 4),
            (vec![196, 14, 14, 14, 14, 1, 1, 1, 1], 4, 8),
            (vec![36, 6, 6, 6, 6, 1, 1, 1, 1], 4, 2),
            (vec![1000], 12, 16),
        ] {
            let total: usize = lens.iter().sum();
            let mut sizes = vec![0; count];
            let mut before = 0;
            for len in lens {
                let mut next = 0;
                for (index, size) in sizes.iter_mut().enumerate() {
                    let band = Band { index, count }.among(before, len, total, step);
                    assert_eq!(band.start, next);
                    assert!(band.end.is_multiple_of(step) || band.end == len);
                    next = band.end;
                    *size += band.len();
                }
                assert_eq!(next, len);
                before += len;
            }
            assert!(sizes.iter().all(|size| size.abs_diff(total / count) <= step), "{sizes:?} of {total}");
        }
        assert_eq!(Band { index: 1, count: 3 }.of(10), 3..6);
    }
}

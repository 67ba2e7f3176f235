//! How work is split: into parts that depend on shapes only, so that results don't depend on the number of threads.

/// Images of each part when `images` of them, `bytes` each, are worked on independently.
///
/// A part's data should stay in a core's second-level cache, and there should be enough parts for a straggler not to
/// matter. Where images are small, their number is a multiple of a tile's `rows`: a region that has one pixel an image
/// then fills whole tiles.
pub(crate) fn images_per_part(images: usize, bytes: usize, rows: usize) -> usize {
    const CACHE: usize = 256 << 10;
    const PARTS: usize = 8;
    let cached = (CACHE / bytes.max(1)).clamp(1, images.div_ceil(PARTS).max(1));
    if cached > rows / 2 { cached.next_multiple_of(rows) } else { cached }
}

/// Number of parts for a reduction over `rows` that needs `floats` of scratch for each part.
pub(crate) fn reduction_parts(rows: usize, floats: usize) -> usize {
    const SCRATCH: usize = 4 << 20;
    const PARTS: usize = 16;
    (SCRATCH / floats.max(1)).clamp(1, PARTS).min(rows.max(1))
}

/// Parts of a batch of `images` for a reduction that is split by blocks as well, `floats` of scratch for each part.
pub(crate) fn parts_of_blocks(images: usize, blocks: usize, floats: usize) -> usize {
    const SCRATCH: usize = 4 << 20;
    const PIECES: usize = 16;
    PIECES.div_ceil(blocks.max(1)).min(SCRATCH / floats.max(1)).clamp(1, images.max(1))
}

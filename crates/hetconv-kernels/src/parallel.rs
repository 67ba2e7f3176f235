//! How work is split: into parts that depend on shapes only, so that results don't depend on the number of threads.

/// Rows (or images) of each part when `rows` of them, `bytes` each, are worked on independently.
///
/// A part's data should stay in a core's second-level cache, and there should be enough parts for a straggler not to
/// matter; `multiple` rows together fill a kernel's tile.
pub(crate) fn rows_per_part(rows: usize, bytes: usize, multiple: usize) -> usize {
    const CACHE: usize = 256 << 10;
    const PARTS: usize = 8;
    let cached = CACHE / bytes.max(1);
    let balanced = rows.div_ceil(PARTS);
    cached.clamp(1, balanced.max(1)).next_multiple_of(if cached >= multiple { multiple } else { 1 })
}

/// Number of parts for a reduction over `rows` that needs `floats` of scratch for each part.
pub(crate) fn reduction_parts(rows: usize, floats: usize) -> usize {
    const SCRATCH: usize = 4 << 20;
    const PARTS: usize = 16;
    (SCRATCH / floats.max(1)).clamp(1, PARTS).min(rows.max(1))
}

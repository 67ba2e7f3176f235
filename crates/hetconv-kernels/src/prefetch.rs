//! Bringing near what will be read soon: the CPU looks less far ahead than a tile is long.

use crate::simd::Simd;

/// Asks for the cache lines of a stretch of memory, a few with every tile.
pub(crate) struct Prefetch {
    line: *const f32,
    /// Lines of a tile, and those that are due, in units of 1/2¹⁶.
    per_tile: usize,
    due: usize,
}

impl Prefetch {
    /// Values of a cache line.
    const LINE: usize = 16;

    /// `values` from `first` on, over so many tiles; more tiles go on behind them. The memory need not be there.
    pub fn new(first: *const f32, values: usize, tiles: usize) -> Self {
        Self { line: first, per_tile: (values.div_ceil(Self::LINE) << 16) / tiles.max(1), due: 0 }
    }

    /// A tile's share.
    #[inline(always)]
    pub fn advance<S: Simd>(&mut self, simd: S) {
        self.due += self.per_tile;
        for _ in 0..self.due >> 16 {
            simd.prefetch(self.line);
            self.line = self.line.wrapping_add(Self::LINE);
        }
        self.due &= 0xffff;
    }
}

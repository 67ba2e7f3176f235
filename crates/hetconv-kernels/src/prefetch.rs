//! Bringing near what will be read soon: the CPU looks less far ahead than a tile is long.

use crate::cache::LINE;
use crate::simd::Simd;

/// Weights that will be read next. The inner loops bring them near, a line for each of their steps, in which they read one
/// or two: so two tiles bring as many as they read themselves.
pub(crate) struct Ahead<'a> {
    weights: &'a [f32],
    /// Tiles so far.
    tiles: usize,
}

impl<'a> Ahead<'a> {
    pub fn new(weights: &'a [f32]) -> Self {
        Self { weights, tiles: 0 }
    }

    /// For the next tile, how far what it brings near lies from the weights that it reads, which are these.
    pub fn distance(&mut self, read: &[f32]) -> isize {
        let at = self.tiles / 2 * read.len() + self.tiles % 2 * LINE;
        self.tiles += 1;
        match self.weights.get(at) {
            // They need not lie in the same memory: the address is but asked for.
            Some(first) => (first as *const f32 as isize).wrapping_sub(read.as_ptr() as isize),
            None => 0,
        }
    }
}

/// Asks for the cache lines of a stretch of memory, a few at a time: a core waits for few at once.
pub(crate) struct Prefetch {
    line: *const f32,
    /// Lines of a step, and those that are due, in units of 1/2¹⁶.
    per_step: usize,
    due: usize,
}

impl Prefetch {
    /// `values` from `first` on, over so many steps; more steps go on behind them. The memory need not be there.
    pub fn new(first: *const f32, values: usize, steps: usize) -> Self {
        Self { line: first, per_step: (values.div_ceil(LINE) << 16) / steps.max(1), due: 0 }
    }

    /// A step's share.
    #[inline(always)]
    pub fn advance<S: Simd>(&mut self, simd: S) {
        self.due += self.per_step;
        for _ in 0..self.due >> 16 {
            simd.prefetch(self.line);
            self.line = self.line.wrapping_add(LINE);
        }
        self.due &= 0xffff;
    }
}

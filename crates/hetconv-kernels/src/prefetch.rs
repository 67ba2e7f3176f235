//! Bringing near what will be read soon: the CPU looks less far ahead than a tile is long.

use crate::cache::LINE;
use crate::simd::Simd;

/// Weights, or a source, that will be read next. The inner loops bring them near as they go, evenly over all their steps: a
/// core waits for few lines at once, and what it reads meanwhile, near as it is, waits behind those.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    next: *const f32,
    /// Bytes from one step to the next.
    pace: usize,
}

impl Ahead {
    /// Nothing: it asks for the same line again and again.
    pub fn nothing() -> Self {
        static NEAR: f32 = 0.0;
        Self { next: &NEAR, pace: 0 }
    }

    /// Two lines: CPUs bring the other of a pair, too.
    const MOST: usize = 128;

    /// Some weights, over so many steps.
    pub fn new(weights: &[f32], steps: usize) -> Self {
        match weights {
            [] => Self::nothing(),
            _ => Self { next: weights.as_ptr(), pace: size_of_val(weights).div_ceil(steps.max(1)).min(Self::MOST) },
        }
    }

    /// Whether the steps are free for something else.
    pub fn is_nothing(&self) -> bool {
        self.pace == 0
    }

    /// Asks for a step's share, or for that of several, of which nothing is left out: rather some at the end.
    #[inline(always)]
    pub fn advance<S: Simd>(&mut self, simd: S, steps: usize) {
        simd.prefetch(self.next);
        self.next = self.next.wrapping_byte_add((steps * self.pace).min(Self::MOST));
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

    /// A step's share, at once.
    #[inline(always)]
    pub fn advance<S: Simd>(&mut self, simd: S) {
        let (first, lines) = self.share();
        for line in 0..lines {
            simd.prefetch(first.wrapping_add(line * LINE));
        }
    }

    /// A step's share, to be asked for in so many smaller ones.
    #[inline(always)]
    pub fn spread(&mut self, steps: usize) -> Ahead {
        let (first, lines) = self.share();
        Ahead { next: first, pace: (lines * LINE * size_of::<f32>()).div_ceil(steps) }
    }

    /// The first line of a step's share, and how many there are.
    #[inline(always)]
    fn share(&mut self) -> (*const f32, usize) {
        self.due += self.per_step;
        let (first, lines) = (self.line, self.due >> 16);
        self.line = first.wrapping_add(lines * LINE);
        self.due &= 0xffff;
        (first, lines)
    }
}

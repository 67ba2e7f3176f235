//! Memory whose vectors never straddle a cache line.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::slice;

use crate::fresh::write_zeros;
use crate::measure::has_memory;

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Zeroed `f32` values that start at a cache line.
#[derive(Debug)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    /// So many zeros.
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// So many zeros, written by all threads.
    pub(crate) fn zeroed_by_all(len: usize) -> Self {
        // SAFETY: all values are written.
        let zeros = unsafe { Self::fresh(16 * len.div_ceil(16), write_zeros) };
        Self { len, ..zeros }
    }

    /// So many zeros; nothing if there is no memory for them.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        if !has_memory(len) {
            return None;
        }
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(16)).ok()?;
        lines.resize(len.div_ceil(16), Line([0.0; 16]));
        Some(Self { lines, len })
    }

    /// So many values, all of which `fill` writes; `len` is a multiple of 16.
    ///
    /// # Safety
    /// `fill` writes every value.
    pub(crate) unsafe fn fresh(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Self {
        assert!(len.is_multiple_of(16), "whole lines");
        let mut lines: Vec<Line> = Vec::with_capacity(len / 16);
        // SAFETY: there is room for as many; values that may be uninitialised need no initialisation.
        fill(unsafe { slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) });
        // SAFETY: by the caller's word all of them were written.
        unsafe { lines.set_len(len / 16) };
        Self { lines, len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a `Line` is sixteen `f32` without padding, and there are `len.div_ceil(16)` lines.
        unsafe { slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; the borrow is unique.
        unsafe { slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl AsMut<[f32]> for Aligned {
    fn as_mut(&mut self) -> &mut [f32] {
        self
    }
}

//! Memory whose vectors never straddle a cache line.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};
use std::slice;
use std::sync::Arc;

use crate::alloc::advise_large_pages;
use crate::cache::LINE;
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

/// Values that are no longer written: some of a memory of which others may hold parts.
pub(crate) struct Shared {
    memory: Arc<Aligned>,
    part: Range<usize>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} values", self.part.len(), self.memory.len())
    }
}

impl From<Aligned> for Shared {
    fn from(values: Aligned) -> Self {
        let part = 0..values.len();
        Self { memory: Arc::new(values), part }
    }
}

impl Deref for Shared {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.part.clone()]
    }
}

impl Shared {
    /// Moves some values into one memory, one behind the other from a cache line on. It is in large pages where the system
    /// has them. The memory of each is freed once they have moved: if the allocator gives it back, and they did not share
    /// one already, they are never all in memory twice.
    pub fn gather(all: &mut [&mut Self]) {
        let lens: Vec<usize> = all.iter().map(|values| values.len()).collect();
        let room = |len: usize| len.next_multiple_of(LINE);
        let fill = |mut rest: &mut [MaybeUninit<f32>]| {
            advise_large_pages(rest.as_mut_ptr().cast(), size_of_val(rest));
            for values in all.iter_mut() {
                let (place, others) = rest.split_at_mut(room(values.len()));
                let (own, behind) = place.split_at_mut(values.len());
                own.write_copy_of_slice(values);
                behind.fill(MaybeUninit::new(0.0));
                **values = Aligned::zeroed(0).into();
                rest = others;
            }
        };
        // SAFETY: there is room for the values and what is behind each up to a line's end, and all of it is written.
        let memory = Arc::new(unsafe { Aligned::fresh(lens.iter().map(|&len| room(len)).sum(), fill) });
        let mut first = 0;
        for (values, len) in all.iter_mut().zip(lens) {
            **values = Self { memory: Arc::clone(&memory), part: first..first + len };
            first += room(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathered_values_stay_what_they_are() {
        // More than a large page, a part of a line, nothing, whole lines.
        let lens = [3 << 19, 5, 0, 32, 17];
        let value = |of: usize, i: usize| (of * 1000 + i % 999) as f32;
        let made = lens.iter().enumerate().map(|(of, &len)| {
            let mut values = Aligned::zeroed(len);
            values.iter_mut().enumerate().for_each(|(i, x)| *x = value(of, i));
            Shared::from(values)
        });
        let mut all: Vec<Shared> = made.collect();
        // Again, from the same memory.
        for _ in 0..2 {
            Shared::gather(&mut all.iter_mut().collect::<Vec<_>>());
            for (of, (values, len)) in all.iter().zip(lens).enumerate() {
                assert_eq!(values.len(), len);
                assert!(values.iter().enumerate().all(|(i, &x)| x == value(of, i)), "values {of}");
                assert_eq!(values.as_ptr().align_offset(64), 0);
            }
            assert_eq!(all[4].as_ptr(), all[3].as_ptr().wrapping_add(32));
        }
    }
}

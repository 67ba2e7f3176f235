//! Results that are written once, without being zeroed first.

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// A vector of `len` values, all of which `fill` writes.
///
/// # Safety
/// `fill` writes every element.
pub(crate) unsafe fn fresh<T>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: there is room for `len`, and by the caller's word all of them were written.
    unsafe { values.set_len(len) };
    values
}

/// So many zeros, or whatever else is the type's default, written by all threads: what one writes alone, the others wait for.
///
/// ```
/// assert_eq!(hetconv_kernels::zeros::<u32>(3), [0, 0, 0]);
/// ```
pub fn zeros<T: Copy + Default + Send + Sync>(len: usize) -> Vec<T> {
    // SAFETY: all values are written.
    unsafe { fresh(len, write_zeros) }
}

/// Writes zeros over all values, on all threads.
pub(crate) fn write_zeros<T: Copy + Default + Send + Sync>(values: &mut [MaybeUninit<T>]) {
    const STRETCH: usize = 1 << 15;
    values.par_chunks_mut(STRETCH).for_each(|part| part.fill(MaybeUninit::new(T::default())));
}

/// Values that are there already, as a place to write.
pub(crate) fn place(values: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layout is the same, and nothing in this crate writes an uninitialised value.
    unsafe { &mut *(values as *mut [f32] as *mut [MaybeUninit<f32>]) }
}

/// A length, which in memory can only be one that does not overflow.
///
/// # Panics
/// If it does: a length that wraps around would pass for a small one.
pub(crate) fn product<const N: usize>(factors: [usize; N]) -> usize {
    let length = factors.iter().try_fold(1usize, |length, &factor| length.checked_mul(factor));
    length.expect("no more values than can be addressed")
}

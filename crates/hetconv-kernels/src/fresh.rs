//! Results that are written once, without being zeroed first.

use std::mem::MaybeUninit;

/// A vector of `len` values, all of which `fill` writes.
///
/// # Safety
/// `fill` writes every element.
pub(crate) unsafe fn fresh(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: there is room for `len`, and by the caller's word all of them were written.
    unsafe { values.set_len(len) };
    values
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

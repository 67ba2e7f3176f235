//! Tensors and buffers of Python as slices.

use std::slice;

/// The `len` values at an address.
///
/// # Safety
/// There are as many initialised values, nobody writes them meanwhile, and they outlive the slice.
pub unsafe fn values<'a>(address: usize, len: usize) -> &'a [f32] {
    let address = address as *const f32;
    if len == 0 {
        return &[];
    }
    assert!(!address.is_null() && address.is_aligned(), "the address of a tensor");
    // SAFETY: the caller's.
    unsafe { slice::from_raw_parts(address, len) }
}

/// The `len` values at an address, to be written.
///
/// # Safety
/// There is room for as many, nobody else reads or writes them meanwhile, and they outlive the slice.
pub unsafe fn values_mut<'a>(address: usize, len: usize) -> &'a mut [f32] {
    let address = address as *mut f32;
    if len == 0 {
        return &mut [];
    }
    assert!(!address.is_null() && address.is_aligned(), "the address of a tensor");
    // SAFETY: the caller's. Memory of a foreign allocator holds some bytes or other, and all of them are an `f32`.
    unsafe { slice::from_raw_parts_mut(address, len) }
}

//! An allocator for programs that train: large blocks are kept for the next allocation of their size.
//!
//! Every operation of a training step allocates its result, the same sizes step after step. General allocators give large
//! blocks back to the system, which takes time, and faults them in again page by page, which takes more.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Hands large blocks out again; everything else is the inner allocator's.
///
/// Large blocks start at a cache line, so vectors never straddle two; very large ones at a large page, which the system is
/// asked to use (where it does, the CPU looks up 512 times fewer pages).
///
/// ```
/// use hetconv_kernels::alloc::Recycler;
/// use std::alloc::System;
///
/// #[global_allocator]
/// static ALLOCATOR: Recycler<System> = Recycler::new(System);
///
/// let tensor = vec![0.5f32; 1 << 20];
/// assert_eq!(tensor.as_ptr().align_offset(64), 0);
/// let address = tensor.as_ptr();
/// drop(tensor);
/// assert_eq!(vec![1.5f32; 1 << 20].as_ptr(), address);
/// ```
#[derive(Debug)]
pub struct Recycler<A> {
    inner: A,
    classes: [Class; CLASSES],
    /// Bytes of all blocks that are kept.
    kept: AtomicUsize,
    /// Bytes that are kept at most; further blocks are given back.
    most: AtomicUsize,
    /// Those that are under way, see [`Recycler::pause`].
    pauses: AtomicUsize,
}

/// The smallest block that is kept, in bytes.
const SMALLEST: usize = 1 << STEPS_FROM;
const STEPS_FROM: u32 = 13;

/// Bytes of a large page.
const PAGE: usize = 2 << 20;

/// Classes between a power of two and the next: a block is at most an eighth larger than asked for.
const STEPS: usize = 8;

/// Up to 16 GiB.
const CLASSES: usize = 21 * STEPS;

/// Bytes that are kept at most, unless [`Recycler::keep`] says otherwise.
const MOST_KEPT: usize = 2 << 30;

/// Blocks of one size, each with the address of the next in its first bytes.
#[derive(Debug)]
struct Class {
    locked: AtomicBool,
    /// Address of the first block, 0 without.
    first: AtomicUsize,
}

impl Class {
    const fn empty() -> Self {
        Self { locked: AtomicBool::new(false), first: AtomicUsize::new(0) }
    }

    /// Runs with the address of the first block, which may be changed.
    fn with<T>(&self, change: impl FnOnce(&mut usize) -> T) -> T {
        while self.locked.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        let mut first = self.first.load(Ordering::Relaxed);
        let result = change(&mut first);
        self.first.store(first, Ordering::Relaxed);
        self.locked.store(false, Ordering::Release);
        result
    }
}

impl<A> Recycler<A> {
    /// An allocator that keeps nothing yet, and later 2 GiB at most.
    pub const fn new(inner: A) -> Self {
        let classes = [const { Class::empty() }; CLASSES];
        let [kept, pauses] = [const { AtomicUsize::new(0) }; 2];
        Self { inner, classes, kept, most: AtomicUsize::new(MOST_KEPT), pauses }
    }

    /// Keeps so many bytes at most from now on: 0 where memory that is freed had better go back to the system, as what was
    /// made once and is not made again. What is kept already stays.
    pub fn keep(&self, bytes: usize) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Keeps nothing more, whatever thread frees it, until what this returns is dropped: while something large is made
    /// once, in a process that goes on.
    #[must_use]
    pub fn pause(&self) -> Pause<'_> {
        self.pauses.fetch_add(1, Ordering::Relaxed);
        Pause(&self.pauses)
    }

    fn most(&self) -> usize {
        if self.pauses.load(Ordering::Relaxed) > 0 { 0 } else { self.most.load(Ordering::Relaxed) }
    }

    /// The class of a layout and the layout of its blocks; `None` where blocks are not kept.
    fn class(&self, layout: Layout) -> Option<(&Class, Layout)> {
        if layout.size() < SMALLEST || layout.align() > 64 {
            return None;
        }
        let power = layout.size().ilog2();
        let step = 1usize << (power - STEPS.ilog2());
        let size = layout.size().checked_next_multiple_of(step)?;
        let class = (size.ilog2() - STEPS_FROM) as usize * STEPS + (size >> (size.ilog2() - STEPS.ilog2())) % STEPS;
        let align = if size >= PAGE { PAGE } else { 64 };
        Some((self.classes.get(class)?, Layout::from_size_align(size, align).ok()?))
    }
}

/// While it is there, its [`Recycler`] keeps nothing more.
#[derive(Debug)]
pub struct Pause<'a>(&'a AtomicUsize);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks for large pages where new memory, that is not yet in any, fills whole ones: the rest stays in small ones, so that none
/// is wasted.
#[cfg(target_os = "linux")]
pub(crate) fn advise_large_pages(address: *mut u8, bytes: usize) {
    let before = address.align_offset(PAGE);
    let whole = bytes.saturating_sub(before) / PAGE * PAGE;
    if whole > 0 && !address.is_null() {
        // SAFETY: whole pages of memory that was just allocated; the advice changes nothing that can be seen, and a system
        // that knows no large pages refuses it.
        unsafe { libc::madvise(address.wrapping_add(before).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_large_pages(_: *mut u8, _: usize) {}

// SAFETY: blocks come from the inner allocator and are given back with the layout they were made with, which depends on
// the caller's layout alone. A kept block is in one list, and leaves it before it is handed out.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Recycler<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((class, block)) = self.class(layout) else {
            // SAFETY: the caller's.
            return unsafe { self.inner.alloc(layout) };
        };
        let kept = class.with(|first| {
            let taken = *first as *mut u8;
            if !taken.is_null() {
                // SAFETY: a block in the list holds the address of the next.
                *first = unsafe { taken.cast::<usize>().read() };
            }
            taken
        });
        if kept.is_null() {
            // SAFETY: the size is not zero.
            let address = unsafe { self.inner.alloc(block) };
            advise_large_pages(address, block.size());
            return address;
        }
        self.kept.fetch_sub(block.size(), Ordering::Relaxed);
        kept
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        let Some((class, block)) = self.class(layout) else {
            // SAFETY: the caller's.
            return unsafe { self.inner.dealloc(address, layout) };
        };
        if self.kept.fetch_add(block.size(), Ordering::Relaxed) + block.size() > self.most() {
            self.kept.fetch_sub(block.size(), Ordering::Relaxed);
            // SAFETY: a block of this layout was made with `block`.
            return unsafe { self.inner.dealloc(address, block) };
        }
        class.with(|first| {
            // SAFETY: the block is free, large enough and aligned for an address.
            unsafe { address.cast::<usize>().write(*first) };
            *first = address as usize;
        });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.class(layout).is_none() {
            // SAFETY: the caller's.
            return unsafe { self.inner.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's; a block has at least `layout.size()` bytes.
        unsafe {
            let address = self.alloc(layout);
            if !address.is_null() {
                ptr::write_bytes(address, 0, layout.size());
            }
            address
        }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller vouches for the size, and the alignment was one before.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (self.class(layout), self.class(new_layout)) {
            // SAFETY: the caller's.
            (None, None) => unsafe { self.inner.realloc(address, layout, new_size) },
            (Some((_, old)), Some((_, new))) if old == new => address,
            // SAFETY: the caller's; the two blocks do not overlap.
            _ => unsafe {
                let moved = self.alloc(new_layout);
                if !moved.is_null() {
                    ptr::copy_nonoverlapping(address, moved, layout.size().min(new_size));
                    self.dealloc(address, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    #[test]
    fn classes_grow_with_sizes_and_waste_little() {
        let recycler = Recycler::new(System);
        let index = |size| {
            let (class, block) = recycler.class(Layout::from_size_align(size, 4).unwrap()).unwrap();
            assert!(block.size() >= size && block.size() - size <= size / STEPS);
            let index = recycler.classes.iter().position(|other| ptr::eq(class, other)).unwrap();
            (index, block.size())
        };
        let mut last = index(SMALLEST);
        for size in (SMALLEST..SMALLEST * 70).step_by(SMALLEST / 33) {
            let next = index(size);
            // One size for each class, and larger ones for later classes.
            assert_eq!(next.0 == last.0, next.1 == last.1, "{size}");
            assert!(next.0 == last.0 || next.0 == last.0 + 1, "{size}: {last:?} {next:?}");
            last = next;
        }
        assert!(recycler.class(Layout::from_size_align(SMALLEST - 1, 4).unwrap()).is_none());
        assert!(recycler.class(Layout::from_size_align(SMALLEST, 128).unwrap()).is_none());
        assert!(recycler.class(Layout::from_size_align(usize::MAX / 4, 4).unwrap()).is_none());
    }

    #[test]
    fn very_large_blocks_start_at_a_large_page() {
        let recycler = Recycler::new(System);
        for size in [PAGE, PAGE + 5, 3 * PAGE] {
            let layout = Layout::from_size_align(size, 4).unwrap();
            // SAFETY: the block is used within its size and given back once.
            unsafe {
                let block = recycler.alloc_zeroed(layout);
                assert_eq!(block.align_offset(PAGE), 0);
                block.add(size - 1).write(1);
                assert_eq!(
                    std::slice::from_raw_parts(block, size).iter().map(|&byte| usize::from(byte)).sum::<usize>(),
                    1
                );
                recycler.dealloc(block, layout);
            }
        }
    }

    #[test]
    fn blocks_come_back_and_keep_their_values_when_they_move() {
        let recycler = Recycler::new(System);
        let layout = |size| Layout::from_size_align(size, 4).unwrap();
        // SAFETY: every block is used within its size and given back once, with its layout.
        unsafe {
            let a = recycler.alloc(layout(SMALLEST));
            let b = recycler.alloc(layout(SMALLEST));
            recycler.dealloc(a, layout(SMALLEST));
            recycler.dealloc(b, layout(SMALLEST));
            assert_eq!(recycler.kept.load(Ordering::Relaxed), 2 * SMALLEST);
            let zeroed = recycler.alloc_zeroed(layout(SMALLEST));
            assert_eq!(zeroed, b);
            assert!(std::slice::from_raw_parts(zeroed, SMALLEST).iter().all(|&byte| byte == 0));
            zeroed.add(99).write(7);
            let grown = recycler.realloc(zeroed, layout(SMALLEST), 5 * SMALLEST);
            assert_eq!(grown.add(99).read(), 7);
            let shrunk = recycler.realloc(grown, layout(5 * SMALLEST), 1000);
            assert_eq!(shrunk.add(99).read(), 7);
            recycler.dealloc(shrunk, layout(1000));
            assert_eq!(recycler.kept.load(Ordering::Relaxed), 7 * SMALLEST);
        }
    }

    #[test]
    fn beyond_the_limit_blocks_are_given_back() {
        let recycler = Recycler::new(System);
        let layout = Layout::from_size_align(SMALLEST, 4).unwrap();
        let kept_after = |blocks: usize| {
            // SAFETY: the blocks are given back once.
            unsafe {
                let blocks: Vec<*mut u8> = (0..blocks).map(|_| recycler.alloc(layout)).collect();
                blocks.into_iter().for_each(|block| recycler.dealloc(block, layout));
            }
            recycler.kept.load(Ordering::Relaxed)
        };
        recycler.keep(0);
        assert_eq!(kept_after(2), 0);
        recycler.keep(2 * SMALLEST);
        let pauses = [recycler.pause(), recycler.pause()];
        for pause in pauses {
            assert_eq!(kept_after(2), 0);
            drop(pause);
        }
        assert_eq!(kept_after(3), 2 * SMALLEST);
    }

    #[test]
    fn threads_never_share_a_block() {
        static RECYCLER: Recycler<System> = Recycler::new(System);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                scope.spawn(move || {
                    let layout = Layout::from_size_align(SMALLEST, 4).unwrap();
                    for _ in 0..500 {
                        // SAFETY: the block is used within its size and given back once.
                        unsafe {
                            let block = RECYCLER.alloc(layout);
                            block.add(64).write(thread);
                            std::thread::yield_now();
                            assert_eq!(block.add(64).read(), thread);
                            RECYCLER.dealloc(block, layout);
                        }
                    }
                });
            }
        });
    }
}

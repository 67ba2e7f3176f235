//! Vectors of `f32`: one trait, a token type for each instruction set.
//!
//! A kernel is a [`Task`]: a struct of its arguments with a `run` that is generic over [`Simd`]. `vectorize` compiles that
//! `run` inside a function that has the instruction set enabled, so everything it inlines is vectorised for it.

/// A number that is one of some, as a constant: what is made for each of them is chosen when the program runs.
macro_rules! constant {
    ($name:ident = $number:expr, of $($one:literal)* => $body:expr) => {
        match $number {
            $($one => { const $name: usize = $one; $body })*
            other => unreachable!("{other} is none of the {} that there are", stringify!($name)),
        }
    };
}
pub(crate) use constant;

/// A kernel, generic over the instruction set.
pub trait Task {
    /// What it returns.
    type Output;

    /// Runs with the given instruction set. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// What only this crate's tokens are.
mod sealed {
    pub trait Sealed {}
}

/// A token that proves an instruction set is available, and its vectors of `f32`; there are those of [`Isa`](crate::Isa) and no others.
///
/// # Safety
/// `load` and `store` (whole and partial) are unsafe for the usual reason: the pointer must be valid for the lanes
/// touched. Everything else is safe because a token only exists where its instructions do.
pub trait Simd: sealed::Sealed + Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// Numbers of lanes, for [`Simd::permute`].
    type Lanes: Copy;
    /// Vectors of half the lanes, or the same ones where there are no shorter.
    type Half: Simd;
    /// Lanes of a vector.
    const LANES: usize;
    /// Sums of a tile that fit the registers beside the vectors they are made of.
    const SUMS: usize;

    /// Instructions of half the lanes cost this share of whole ones.
    const HALF_COST: f64;

    /// The token of the half-length vectors.
    fn half(self) -> Self::Half;
    /// Runs a task in a function of its own: an inner loop's registers are then given out for it alone.
    fn apart<T: Task>(self, task: T) -> T::Output;
    /// All lanes equal.
    fn splat(self, value: f32) -> Self::V;
    /// a·b + c, in one rounding where the instruction set has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a − b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a·b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a/b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// 2ⁿ, where n, from −126 to 127, stands in the lowest bits of a's mantissa.
    fn power_of_two(self, a: Self::V) -> Self::V;
    /// max(a, 0); NaN stays NaN.
    fn relu(self, a: Self::V) -> Self::V;
    /// min(max(a, low), high); NaN stays NaN.
    fn clamp(self, a: Self::V, low: Self::V, high: Self::V) -> Self::V;
    /// The greater of two, the first of equals; NaN where one of them is.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `value` where `gate` is positive or not a number, 0 elsewhere.
    fn where_positive(self, gate: Self::V, value: Self::V) -> Self::V;
    /// The first `LANES` numbers, each below `LANES`.
    fn lanes(self, numbers: &[u32; 16]) -> Self::Lanes;
    /// A vector whose lane i is lane `lanes[i]` of `value`.
    fn permute(self, value: Self::V, lanes: Self::Lanes) -> Self::V;
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `source` is valid for reading `LANES` values; no alignment is needed.
    unsafe fn load(self, source: *const f32) -> Self::V;
    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `target` is valid for writing `LANES` values; no alignment is needed.
    unsafe fn store(self, target: *mut f32, value: Self::V);
    /// Asks for the cache line at an address to be brought into the second-level cache; any address will do.
    fn prefetch(self, address: *const f32);
    /// As [`Simd::prefetch`], for a line that will be written.
    fn prefetch_to_write(self, address: *const f32);
    /// Reads `count < LANES` values; the other lanes are 0.
    ///
    /// # Safety
    /// `source` is valid for reading `count` values.
    #[inline(always)]
    unsafe fn load_first(self, source: *const f32, count: usize) -> Self::V {
        const { assert!(Self::LANES <= 16) };
        let mut lanes = [0.0f32; 16];
        // SAFETY: `count < LANES <= 16` values are valid by the caller's word, and `lanes` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(source, lanes.as_mut_ptr(), count);
            self.load(lanes.as_ptr())
        }
    }
    /// Reads `count <= LANES` values; the other lanes are 0.
    ///
    /// # Safety
    /// `source` is valid for reading `count` values.
    #[inline(always)]
    unsafe fn load_lanes(self, source: *const f32, count: usize) -> Self::V {
        // SAFETY: the caller's.
        unsafe { if count == Self::LANES { self.load(source) } else { self.load_first(source, count) } }
    }
    /// Writes the first `count <= LANES` lanes.
    ///
    /// # Safety
    /// `target` is valid for writing `count` values.
    #[inline(always)]
    unsafe fn store_lanes(self, target: *mut f32, value: Self::V, count: usize) {
        // SAFETY: the caller's.
        unsafe { if count == Self::LANES { self.store(target, value) } else { self.store_first(target, value, count) } }
    }
    /// Writes the first `count < LANES` lanes.
    ///
    /// # Safety
    /// `target` is valid for writing `count` values.
    #[inline(always)]
    unsafe fn store_first(self, target: *mut f32, value: Self::V, count: usize) {
        const { assert!(Self::LANES <= 16) };
        let mut lanes = [0.0f32; 16];
        // SAFETY: as in `load_first`.
        unsafe {
            self.store(lanes.as_mut_ptr(), value);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), target, count);
        }
    }
}

/// Plain Rust, on any CPU: four lanes, which every 64-bit CPU has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Portable;

impl sealed::Sealed for Portable {}

impl Simd for Portable {
    type V = [f32; 4];
    type Lanes = [u32; 4];
    type Half = Self;
    const LANES: usize = 4;
    const SUMS: usize = 12;
    const HALF_COST: f64 = 1.0;

    #[inline(always)]
    fn half(self) -> Self {
        self
    }
    #[inline(never)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }
    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 4] {
        [value; 4]
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn power_of_two(self, a: [f32; 4]) -> [f32; 4] {
        a.map(|a| f32::from_bits(a.to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    fn relu(self, a: [f32; 4]) -> [f32; 4] {
        a.map(|v| if v < 0.0 { 0.0 } else { v })
    }
    #[inline(always)]
    fn clamp(self, a: [f32; 4], low: [f32; 4], high: [f32; 4]) -> [f32; 4] {
        // Compared this way round, NaN fails both tests and stays.
        std::array::from_fn(|i| match a[i] {
            a if a < low[i] => low[i],
            a if a > high[i] => high[i],
            a => a,
        })
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if (b[i] > a[i]) | (b[i].is_nan() & !a[i].is_nan()) { b[i] } else { a[i] })
    }
    #[inline(always)]
    fn where_positive(self, gate: [f32; 4], value: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if gate[i] <= 0.0 { 0.0 } else { value[i] })
    }
    #[inline(always)]
    fn lanes(self, numbers: &[u32; 16]) -> [u32; 4] {
        std::array::from_fn(|i| numbers[i])
    }
    #[inline(always)]
    fn permute(self, value: [f32; 4], lanes: [u32; 4]) -> [f32; 4] {
        lanes.map(|lane| value[lane as usize % 4])
    }
    #[inline(always)]
    fn prefetch(self, _address: *const f32) {}
    #[inline(always)]
    fn prefetch_to_write(self, _address: *const f32) {}
    #[inline(always)]
    unsafe fn load(self, source: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for four values; `read_unaligned` needs no alignment.
        unsafe { source.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32, value: [f32; 4]) {
        // SAFETY: the caller vouches for four values; `write_unaligned` needs no alignment.
        unsafe { target.cast::<[f32; 4]>().write_unaligned(value) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

//! Vectors of `f32`: one trait, a token type for each instruction set.
//!
//! A kernel is a [`Task`]: a struct of its arguments with a `run` that is generic over [`Simd`]. `vectorize` compiles that
//! `run` inside a function that has the instruction set enabled, so everything it inlines is vectorised for it.

/// A kernel, generic over the instruction set.
pub trait Task {
    /// What it returns.
    type Output;

    /// Runs with the given instruction set. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A token that proves an instruction set is available, and its vectors of `f32`.
///
/// # Safety
/// `load` and `store` (whole and partial) are unsafe for the usual reason: the pointer must be valid for the lanes
/// touched. Everything else is safe because a token only exists where its instructions do.
pub trait Simd: Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// Vectors of half the lanes, or the same ones where there are no shorter.
    type Half: Simd;
    /// Lanes of a vector.
    const LANES: usize;
    /// Rows of a convolution tile of two vectors: as many as leave registers for two weights and a broadcast.
    const ROWS: usize;

    /// Instructions of half the lanes cost this share of whole ones.
    const HALF_COST: f64;

    /// The token of the half-length vectors.
    fn half(self) -> Self::Half;
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
    /// max(a, 0); NaN stays NaN.
    fn relu(self, a: Self::V) -> Self::V;
    /// `value` where `gate > 0`, 0 elsewhere.
    fn where_positive(self, gate: Self::V, value: Self::V) -> Self::V;
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
    /// Reads `count < LANES` values; the other lanes are 0.
    ///
    /// # Safety
    /// `source` is valid for reading `count` values.
    #[inline(always)]
    unsafe fn load_first(self, source: *const f32, count: usize) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `count < LANES <= 16` values are valid by the caller's word, and `lanes` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(source, lanes.as_mut_ptr(), count);
            self.load(lanes.as_ptr())
        }
    }
    /// Writes the first `count < LANES` lanes.
    ///
    /// # Safety
    /// `target` is valid for writing `count` values.
    #[inline(always)]
    unsafe fn store_first(self, target: *mut f32, value: Self::V, count: usize) {
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

impl Simd for Portable {
    type V = [f32; 4];
    type Half = Self;
    const LANES: usize = 4;
    const ROWS: usize = 6;
    const HALF_COST: f64 = 1.0;

    #[inline(always)]
    fn half(self) -> Self {
        self
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
    fn relu(self, a: [f32; 4]) -> [f32; 4] {
        a.map(|v| if v < 0.0 { 0.0 } else { v })
    }
    #[inline(always)]
    fn where_positive(self, gate: [f32; 4], value: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if gate[i] > 0.0 { value[i] } else { 0.0 })
    }
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
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Simd, Task};

    /// AVX2 and FMA: eight lanes, sixteen registers.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Avx2(());

    impl Avx2 {
        /// The token, if this CPU has AVX2 and FMA.
        pub fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
        }

        /// Runs a task compiled for AVX2 and FMA.
        #[inline]
        pub fn vectorize<T: Task>(self, task: T) -> T::Output {
            #[target_feature(enable = "avx2,fma")]
            fn inner<T: Task>(token: Avx2, task: T) -> T::Output {
                task.run(token)
            }
            // SAFETY: the token proves that the CPU has both features.
            unsafe { inner(self, task) }
        }
    }

    /// AVX2 and FMA with vectors of four lanes, for classes that are narrower than eight.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Avx2Half(Avx2);

    /// AVX-512 F: sixteen lanes, thirty-two registers.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Avx512(());

    impl Avx512 {
        /// The token, if this CPU has AVX-512 F, AVX2 and FMA.
        pub fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx512f") && Avx2::detect().is_some()).then_some(Self(()))
        }

        /// Runs a task compiled for AVX-512 F.
        #[inline]
        pub fn vectorize<T: Task>(self, task: T) -> T::Output {
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn inner<T: Task>(token: Avx512, task: T) -> T::Output {
                task.run(token)
            }
            // SAFETY: the token proves that the CPU has the features.
            unsafe { inner(self, task) }
        }
    }

    impl Simd for Avx2 {
        type V = __m256;
        type Half = Avx2Half;
        const LANES: usize = 8;
        const ROWS: usize = 6;
        // Between CPUs that execute 256 bits as two halves and those that do it at once.
        const HALF_COST: f64 = 0.75;

        #[inline(always)]
        fn half(self) -> Avx2Half {
            Avx2Half(self)
        }

        #[inline(always)]
        fn splat(self, value: f32) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the token proves FMA.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn relu(self, a: __m256) -> __m256 {
            // SAFETY: the token proves AVX2. The second operand is returned where one is NaN.
            unsafe { _mm256_max_ps(_mm256_setzero_ps(), a) }
        }
        #[inline(always)]
        fn where_positive(self, gate: __m256, value: __m256) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(gate, _mm256_setzero_ps()), value) }
        }
        #[inline(always)]
        unsafe fn load(self, source: *const f32) -> __m256 {
            // SAFETY: the token proves AVX2; the caller vouches for eight values.
            unsafe { _mm256_loadu_ps(source) }
        }
        #[inline(always)]
        unsafe fn store(self, target: *mut f32, value: __m256) {
            // SAFETY: the token proves AVX2; the caller vouches for eight values.
            unsafe { _mm256_storeu_ps(target, value) }
        }
    }

    impl Simd for Avx2Half {
        type V = __m128;
        type Half = Self;
        const LANES: usize = 4;
        const ROWS: usize = 6;
        const HALF_COST: f64 = 1.0;

        #[inline(always)]
        fn half(self) -> Self {
            self
        }

        #[inline(always)]
        fn splat(self, value: f32) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA.
            unsafe { _mm_set1_ps(value) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m128, b: __m128, c: __m128) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA.
            unsafe { _mm_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn add(self, a: __m128, b: __m128) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA.
            unsafe { _mm_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m128, b: __m128) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA.
            unsafe { _mm_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m128, b: __m128) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA.
            unsafe { _mm_mul_ps(a, b) }
        }
        #[inline(always)]
        fn relu(self, a: __m128) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA. The second operand is returned where one is NaN.
            unsafe { _mm_max_ps(_mm_setzero_ps(), a) }
        }
        #[inline(always)]
        fn where_positive(self, gate: __m128, value: __m128) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA.
            unsafe { _mm_and_ps(_mm_cmp_ps::<_CMP_GT_OQ>(gate, _mm_setzero_ps()), value) }
        }
        #[inline(always)]
        unsafe fn load(self, source: *const f32) -> __m128 {
            // SAFETY: the token proves AVX2 and FMA; the caller vouches for four values.
            unsafe { _mm_loadu_ps(source) }
        }
        #[inline(always)]
        unsafe fn store(self, target: *mut f32, value: __m128) {
            // SAFETY: the token proves AVX2 and FMA; the caller vouches for four values.
            unsafe { _mm_storeu_ps(target, value) }
        }
    }

    impl Simd for Avx512 {
        type V = __m512;
        type Half = Avx2;
        const LANES: usize = 16;
        const ROWS: usize = 8;
        const HALF_COST: f64 = 0.6;

        #[inline(always)]
        fn half(self) -> Avx2 {
            Avx2(())
        }

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn relu(self, a: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F. The second operand is returned where one is NaN.
            unsafe { _mm512_max_ps(_mm512_setzero_ps(), a) }
        }
        #[inline(always)]
        fn where_positive(self, gate: __m512, value: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(gate, _mm512_setzero_ps());
                _mm512_maskz_mov_ps(positive, value)
            }
        }
        #[inline(always)]
        unsafe fn load(self, source: *const f32) -> __m512 {
            // SAFETY: the token proves AVX-512 F; the caller vouches for sixteen values.
            unsafe { _mm512_loadu_ps(source) }
        }
        #[inline(always)]
        unsafe fn store(self, target: *mut f32, value: __m512) {
            // SAFETY: the token proves AVX-512 F; the caller vouches for sixteen values.
            unsafe { _mm512_storeu_ps(target, value) }
        }
    }
}

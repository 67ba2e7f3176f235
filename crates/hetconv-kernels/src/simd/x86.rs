//! The instruction sets of x86-64.

use std::arch::x86_64::*;

use super::{Simd, Task};

/// AVX2 and FMA: eight lanes, sixteen registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

/// AVX2 and FMA with vectors of four lanes, for classes that are narrower than eight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Avx2Half(Avx2);

/// AVX-512 F and VL: sixteen lanes, thirty-two registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Avx512(());

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

impl Avx512 {
    /// The token, if this CPU has AVX-512 F and VL (its thirty-two registers for shorter vectors too), AVX2 and FMA.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") && Avx2::detect().is_some())
            .then_some(Self(()))
    }

    /// Runs a task compiled for AVX-512 F and VL.
    #[inline]
    pub fn vectorize<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
        fn inner<T: Task>(token: Avx512, task: T) -> T::Output {
            task.run(token)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { inner(self, task) }
    }
}

/// Implements [`Simd`] by one intrinsic an operation; the block is what the instruction sets do not share.
macro_rules! implement {
    (
        $token:ident, $vector:ty, $set1:ident, $zero:ident, $fmadd:ident, $add:ident, $sub:ident, $mul:ident, $div:ident,
        $max:ident, $min:ident, $load:ident, $store:ident, { $($own:item)* }
    ) => {
        impl super::sealed::Sealed for $token {}

        impl Simd for $token {
            type V = $vector;
            $($own)*

            #[inline(always)]
            fn splat(self, value: f32) -> $vector {
                // SAFETY: the token proves the instruction set.
                unsafe { $set1(value) }
            }
            #[inline(always)]
            fn mul_add(self, a: $vector, b: $vector, c: $vector) -> $vector {
                // SAFETY: the token proves the instruction set.
                unsafe { $fmadd(a, b, c) }
            }
            #[inline(always)]
            fn add(self, a: $vector, b: $vector) -> $vector {
                // SAFETY: the token proves the instruction set.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            fn sub(self, a: $vector, b: $vector) -> $vector {
                // SAFETY: the token proves the instruction set.
                unsafe { $sub(a, b) }
            }
            #[inline(always)]
            fn mul(self, a: $vector, b: $vector) -> $vector {
                // SAFETY: the token proves the instruction set.
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            fn div(self, a: $vector, b: $vector) -> $vector {
                // SAFETY: the token proves the instruction set.
                unsafe { $div(a, b) }
            }
            #[inline(always)]
            fn relu(self, a: $vector) -> $vector {
                // SAFETY: the token proves the instruction set. Where one operand is NaN the second is returned.
                unsafe { $max($zero(), a) }
            }
            #[inline(always)]
            fn clamp(self, a: $vector, low: $vector, high: $vector) -> $vector {
                // SAFETY: the token proves the instruction set. Where one operand is NaN the second is returned.
                unsafe { $min(high, $max(low, a)) }
            }
            #[inline(always)]
            fn prefetch(self, address: *const f32) {
                // SAFETY: the token proves SSE; a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
            }
            #[inline(always)]
            fn prefetch_to_write(self, address: *const f32) {
                // SAFETY: the token proves SSE; a prefetch never faults, and one to write does nothing on a CPU that has none.
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
            }
            #[inline(always)]
            unsafe fn load(self, source: *const f32) -> $vector {
                // SAFETY: the token proves the instruction set; the caller vouches for the values.
                unsafe { $load(source) }
            }
            #[inline(always)]
            unsafe fn store(self, target: *mut f32, value: $vector) {
                // SAFETY: the token proves the instruction set; the caller vouches for the values.
                unsafe { $store(target, value) }
            }
        }
    };
}

implement!(
    Avx2,
    __m256,
    _mm256_set1_ps,
    _mm256_setzero_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_div_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    {
        type Lanes = __m256i;
        type Half = Avx2Half;
        const LANES: usize = 8;
        const SUMS: usize = 12;
        // Between CPUs that execute 256 bits as two halves and those that do it at once.
        const HALF_COST: f64 = 0.75;

        #[inline(always)]
        fn half(self) -> Avx2Half {
            Avx2Half(self)
        }
        #[inline(always)]
        fn apart<T: Task>(self, task: T) -> T::Output {
            #[target_feature(enable = "avx2,fma")]
            #[inline(never)]
            fn inner<T: Task>(token: Avx2, task: T) -> T::Output {
                task.run(token)
            }
            // SAFETY: the token proves that the CPU has both features.
            unsafe { inner(self, task) }
        }
        #[inline(always)]
        fn power_of_two(self, a: __m256) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: the token proves AVX2. Where one operand is NaN the second is returned.
            unsafe { _mm256_blendv_ps(_mm256_max_ps(b, a), b, _mm256_cmp_ps::<_CMP_UNORD_Q>(b, b)) }
        }
        #[inline(always)]
        fn where_positive(self, gate: __m256, value: __m256) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLE_UQ>(gate, _mm256_setzero_ps()), value) }
        }
        #[inline(always)]
        fn lanes(self, numbers: &[u32; 16]) -> __m256i {
            // SAFETY: the token proves AVX2; there are more than eight numbers.
            unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
        }
        #[inline(always)]
        fn permute(self, value: __m256, lanes: __m256i) -> __m256 {
            // SAFETY: the token proves AVX2.
            unsafe { _mm256_permutevar8x32_ps(value, lanes) }
        }
    }
);

implement!(
    Avx2Half,
    __m128,
    _mm_set1_ps,
    _mm_setzero_ps,
    _mm_fmadd_ps,
    _mm_add_ps,
    _mm_sub_ps,
    _mm_mul_ps,
    _mm_div_ps,
    _mm_max_ps,
    _mm_min_ps,
    _mm_loadu_ps,
    _mm_storeu_ps,
    {
        type Lanes = __m128i;
        type Half = Self;
        const LANES: usize = 4;
        const SUMS: usize = 12;
        const HALF_COST: f64 = 1.0;

        #[inline(always)]
        fn half(self) -> Self {
            self
        }
        #[inline(always)]
        fn apart<T: Task>(self, task: T) -> T::Output {
            #[target_feature(enable = "avx2,fma")]
            #[inline(never)]
            fn inner<T: Task>(token: Avx2Half, task: T) -> T::Output {
                task.run(token)
            }
            // SAFETY: the token proves that the CPU has both features.
            unsafe { inner(self, task) }
        }
        #[inline(always)]
        fn power_of_two(self, a: __m128) -> __m128 {
            // SAFETY: the token proves AVX2, which includes SSE2.
            unsafe {
                let exponent = _mm_add_epi32(_mm_castps_si128(a), _mm_set1_epi32(127));
                _mm_castsi128_ps(_mm_slli_epi32::<23>(exponent))
            }
        }
        #[inline(always)]
        fn max(self, a: __m128, b: __m128) -> __m128 {
            // SAFETY: the token proves AVX2, which includes AVX. Where one operand is NaN the second is returned.
            unsafe { _mm_blendv_ps(_mm_max_ps(b, a), b, _mm_cmp_ps::<_CMP_UNORD_Q>(b, b)) }
        }
        #[inline(always)]
        fn where_positive(self, gate: __m128, value: __m128) -> __m128 {
            // SAFETY: the token proves AVX2, which includes AVX.
            unsafe { _mm_and_ps(_mm_cmp_ps::<_CMP_NLE_UQ>(gate, _mm_setzero_ps()), value) }
        }
        #[inline(always)]
        fn lanes(self, numbers: &[u32; 16]) -> __m128i {
            // SAFETY: the token proves AVX2; there are more than four numbers.
            unsafe { _mm_loadu_si128(numbers.as_ptr().cast()) }
        }
        #[inline(always)]
        fn permute(self, value: __m128, lanes: __m128i) -> __m128 {
            // SAFETY: the token proves AVX2, which includes AVX.
            unsafe { _mm_permutevar_ps(value, lanes) }
        }
    }
);

implement!(
    Avx512,
    __m512,
    _mm512_set1_ps,
    _mm512_setzero_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_div_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    {
        type Lanes = __m512i;
        type Half = Avx2;
        const LANES: usize = 16;
        const SUMS: usize = 24;
        const HALF_COST: f64 = 0.6;

        #[inline(always)]
        fn half(self) -> Avx2 {
            Avx2(())
        }
        #[inline(always)]
        fn apart<T: Task>(self, task: T) -> T::Output {
            #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
            #[inline(never)]
            fn inner<T: Task>(token: Avx512, task: T) -> T::Output {
                task.run(token)
            }
            // SAFETY: the token proves that the CPU has the features.
            unsafe { inner(self, task) }
        }
        #[inline(always)]
        fn power_of_two(self, a: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe {
                let exponent = _mm512_add_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
            }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F. Where one operand is NaN the second is returned.
            unsafe { _mm512_mask_mov_ps(_mm512_max_ps(b, a), _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(b, b), b) }
        }
        #[inline(always)]
        fn where_positive(self, gate: __m512, value: __m512) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(gate, _mm512_setzero_ps());
                _mm512_maskz_mov_ps(positive, value)
            }
        }
        #[inline(always)]
        fn lanes(self, numbers: &[u32; 16]) -> __m512i {
            // SAFETY: the token proves AVX-512 F; there are sixteen numbers.
            unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
        }
        #[inline(always)]
        fn permute(self, value: __m512, lanes: __m512i) -> __m512 {
            // SAFETY: the token proves AVX-512 F.
            unsafe { _mm512_permutexvar_ps(lanes, value) }
        }
    }
);

//! [`Lanes`] on AVX2, AVX-512, and AVX-512 with VNNI.
//!
//! SAFETY of every block here: the trait's contract gives the instruction set and the memory.

use super::lanes::Lanes;
use crate::simd::x86::{Avx2, Avx512};
use std::arch::x86_64::*;

const LOW: i32 = 0x0f0f_0f0f;

impl Lanes for Avx2 {
    type S = Avx2;
    type I = [__m256i; 2];
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self::I {
        unsafe {
            [
                _mm256_loadu_si256(p.cast()),
                _mm256_loadu_si256(p.add(8).cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> Self::I {
        unsafe { [_mm256_set1_epi32(*p as i32); 2] }
    }
    #[inline(always)]
    unsafe fn low(w: Self::I) -> Self::I {
        unsafe {
            let mask = _mm256_set1_epi32(LOW);
            [_mm256_and_si256(w[0], mask), _mm256_and_si256(w[1], mask)]
        }
    }
    #[inline(always)]
    unsafe fn high(w: Self::I) -> Self::I {
        unsafe { Self::low([_mm256_srli_epi32::<4>(w[0]), _mm256_srli_epi32::<4>(w[1])]) }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::I, x: *const u32) -> Self::I {
        /// Even and odd bytes as 16-bit numbers, whose products a 32-bit sum of two holds: the
        /// 16-bit sums of `VPMADDUBSW` would saturate.
        #[inline(always)]
        unsafe fn half(acc: __m256i, w: __m256i, even: __m256i, odd: __m256i) -> __m256i {
            unsafe {
                let w_even = _mm256_and_si256(w, _mm256_set1_epi16(0xff));
                let sum = _mm256_add_epi32(acc, _mm256_madd_epi16(w_even, even));
                let w_odd = _mm256_srli_epi16::<8>(w);
                _mm256_add_epi32(sum, _mm256_madd_epi16(w_odd, odd))
            }
        }
        unsafe {
            let x = _mm256_set1_epi32(*x as i32);
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let odd = _mm256_srai_epi16::<8>(x);
            [half(acc[0], w[0], even, odd), half(acc[1], w[1], even, odd)]
        }
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I) -> [__m256; 2] {
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u32) -> [__m256; 2] {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(4).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// AVX-512 with `VPDPBUSD`.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

#[inline(always)]
unsafe fn dot_by_words(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
    unsafe {
        let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
        let odd = _mm512_srai_epi16::<8>(x);
        let w_even = _mm512_and_si512(w, _mm512_set1_epi16(0xff));
        let sum = _mm512_add_epi32(acc, _mm512_madd_epi16(w_even, even));
        let w_odd = _mm512_srli_epi16::<8>(w);
        _mm512_add_epi32(sum, _mm512_madd_epi16(w_odd, odd))
    }
}

#[inline(always)]
unsafe fn dot_in_hardware(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
    unsafe { _mm512_dpbusd_epi32(acc, w, x) }
}

macro_rules! lanes_avx512 {
    ($name:ident, $dot:ident) => {
        impl Lanes for $name {
            type S = Avx512;
            type I = __m512i;
            const ROWS: usize = 6;

            #[inline(always)]
            unsafe fn load(p: *const u32) -> __m512i {
                unsafe { _mm512_loadu_si512(p.cast()) }
            }
            #[inline(always)]
            unsafe fn splat(p: *const u32) -> __m512i {
                unsafe { _mm512_set1_epi32(*p as i32) }
            }
            #[inline(always)]
            unsafe fn low(w: __m512i) -> __m512i {
                unsafe { _mm512_and_si512(w, _mm512_set1_epi32(LOW)) }
            }
            #[inline(always)]
            unsafe fn high(w: __m512i) -> __m512i {
                unsafe { Self::low(_mm512_srli_epi32::<4>(w)) }
            }
            #[inline(always)]
            unsafe fn dot(acc: __m512i, w: __m512i, x: *const u32) -> __m512i {
                unsafe { $dot(acc, w, Self::splat(x)) }
            }
            #[inline(always)]
            unsafe fn to_f32(a: __m512i) -> __m512 {
                unsafe { _mm512_cvtepi32_ps(a) }
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u32) -> __m512 {
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
            }
            #[inline(always)]
            unsafe fn prefetch(p: *const u32) {
                unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            }
        }
    };
}
lanes_avx512!(Avx512, dot_by_words);
lanes_avx512!(Vnni, dot_in_hardware);

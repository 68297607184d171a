//! [`Simd`] on AVX2 with FMA, AVX-512, and AVX-512-BF16.
//!
//! SAFETY of every block here: the trait's contract gives the instruction set and the memory.

use super::{LANES, MIN_NORMAL, Simd};
use std::arch::x86_64::*;

/// Two 256-bit registers: lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

const ROUND_NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

#[inline(always)]
unsafe fn flush256(x: __m256) -> __m256 {
    unsafe {
        let sign = _mm256_set1_ps(-0.0);
        let magnitude = _mm256_andnot_ps(sign, x);
        let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(magnitude, _mm256_set1_ps(MIN_NORMAL));
        _mm256_and_ps(x, _mm256_or_ps(normal, sign))
    }
}

/// The odd bf16 of each pair as f32.
#[inline(always)]
unsafe fn odd256(x: __m256i) -> __m256 {
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
        flush256(_mm256_castsi256_ps(_mm256_and_si256(x, high)))
    }
}

#[inline(always)]
unsafe fn even256(x: __m256i) -> __m256 {
    unsafe { flush256(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))) }
}

#[inline(always)]
unsafe fn mask256(n: usize) -> __m256i {
    unsafe {
        let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), index)
    }
}

macro_rules! both {
    ($f:ident, $a:ident, $b:ident) => {
        unsafe { [$f($a[0], $b[0]), $f($a[1], $b[1])] }
    };
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        unsafe {
            if n >= LANES {
                return Self::load(p);
            }
            let high = n.saturating_sub(8);
            [
                _mm256_maskload_ps(p, mask256(n)),
                _mm256_maskload_ps(p.wrapping_add(8), mask256(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, v: Self::V) {
        unsafe {
            if n >= LANES {
                return Self::store(p, v);
            }
            _mm256_maskstore_ps(p, mask256(n), v[0]);
            _mm256_maskstore_ps(p.wrapping_add(8), mask256(n.saturating_sub(8)), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::V, b: Self::V, t: Self::V, f: Self::V) -> Self::V {
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]);
            [
                _mm256_blendv_ps(f[0], t[0], low),
                _mm256_blendv_ps(f[1], t[1], high),
            ]
        }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe {
            [
                _mm256_round_ps::<ROUND_NEAREST>(a[0]),
                _mm256_round_ps::<ROUND_NEAREST>(a[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: Self::V, n: Self::V) -> Self::V {
        #[inline(always)]
        unsafe fn half(a: __m256, n: __m256) -> __m256 {
            unsafe {
                let shift = _mm256_slli_epi32::<23>(_mm256_cvttps_epi32(n));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shift))
            }
        }
        unsafe { [half(a[0], n[0]), half(a[1], n[1])] }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        unsafe {
            let v = _mm256_add_ps(a[0], a[1]);
            sum128(_mm_add_ps(
                _mm256_castps256_ps128(v),
                _mm256_extractf128_ps::<1>(v),
            ))
        }
    }
    #[inline(always)]
    unsafe fn greatest(a: Self::V) -> f32 {
        unsafe {
            let v = _mm256_max_ps(a[0], a[1]);
            greatest128(_mm_max_ps(
                _mm256_castps256_ps128(v),
                _mm256_extractf128_ps::<1>(v),
            ))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::V) {
        unsafe {
            let packed = _mm256_packus_epi32(bf16_of256(v[0]), bf16_of256(v[1]));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_pairs(p: *mut u32, even: Self::V, odd: Self::V) {
        unsafe {
            for i in [0, 1] {
                let odd = _mm256_slli_epi32::<16>(bf16_of256(odd[i]));
                let pairs = _mm256_or_si256(bf16_of256(even[i]), odd);
                _mm256_storeu_si256(p.add(8 * i).cast(), pairs);
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::V, a: *const u32, b: *const u32) -> Self::V {
        #[inline(always)]
        unsafe fn half(acc: __m256, pair: __m256i, b: *const u32) -> __m256 {
            unsafe {
                let b = _mm256_loadu_si256(b.cast());
                let first = _mm256_fmadd_ps(odd256(pair), odd256(b), flush256(acc));
                flush256(_mm256_fmadd_ps(even256(pair), even256(b), flush256(first)))
            }
        }
        unsafe {
            let pair = _mm256_set1_epi32(*a as i32);
            [half(acc[0], pair, b), half(acc[1], pair, b.add(8))]
        }
    }
}

/// The bits of [`super::bf16_bits`] in the low half of each lane.
#[inline(always)]
unsafe fn bf16_of256(v: __m256) -> __m256i {
    unsafe {
        let bits = _mm256_castps_si256(v);
        let high = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up));
        let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff));
        let nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f80_0000));
        let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x0080_0000), magnitude);
        let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        let zero = _mm256_and_si256(high, _mm256_set1_epi32(0x8000));
        let x = _mm256_blendv_epi8(rounded, quiet, nan);
        _mm256_blendv_epi8(x, zero, small)
    }
}

#[inline(always)]
unsafe fn sum128(v: __m128) -> f32 {
    unsafe {
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

#[inline(always)]
unsafe fn greatest128(v: __m128) -> f32 {
    unsafe {
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// One 512-bit register, bf16 dot products in hardware.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16;

#[inline(always)]
unsafe fn mask512(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

#[inline(always)]
unsafe fn flush512(x: __m512) -> __m512 {
    unsafe {
        let magnitude = _mm512_abs_ps(x);
        let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(magnitude, _mm512_set1_ps(MIN_NORMAL));
        _mm512_mask_and_ps(x, small, x, _mm512_set1_ps(-0.0))
    }
}

/// The odd bf16 of each pair as f32.
#[inline(always)]
unsafe fn odd512(x: __m512i) -> __m512 {
    unsafe {
        let high = _mm512_set1_epi32(0xffff_0000u32 as i32);
        flush512(_mm512_castsi512_ps(_mm512_and_si512(x, high)))
    }
}

#[inline(always)]
unsafe fn even512(x: __m512i) -> __m512 {
    unsafe { flush512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))) }
}

#[inline(always)]
unsafe fn dot_by_fma(acc: __m512, a: *const u32, b: *const u32) -> __m512 {
    unsafe {
        let pair = _mm512_set1_epi32(*a as i32);
        let b = _mm512_loadu_si512(b.cast());
        let first = _mm512_fmadd_ps(odd512(pair), odd512(b), flush512(acc));
        flush512(_mm512_fmadd_ps(even512(pair), even512(b), flush512(first)))
    }
}

/// The bits of [`super::bf16_bits`] in the low half of each lane.
#[inline(always)]
unsafe fn bf16_of512(v: __m512) -> __m512i {
    unsafe {
        let bits = _mm512_castps_si512(v);
        let high = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
        let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
        let nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f80_0000));
        let small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x0080_0000));
        let x = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
        _mm512_mask_and_epi32(x, small, high, _mm512_set1_epi32(0x8000))
    }
}

#[inline(always)]
unsafe fn dot_in_hardware(acc: __m512, a: *const u32, b: *const u32) -> __m512 {
    use std::mem::transmute;
    unsafe {
        let pair = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a as i32));
        let b = transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast()));
        _mm512_dpbf16_ps(acc, pair, b)
    }
}

macro_rules! simd_avx512 {
    ($name:ident, $dot:ident) => {
        impl Simd for $name {
            type V = __m512;
            const TILE_ROWS: usize = 12;
            const TILE_VECTORS: usize = 2;

            #[inline(always)]
            unsafe fn splat(x: f32) -> __m512 {
                unsafe { _mm512_set1_ps(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> __m512 {
                unsafe { _mm512_loadu_ps(p) }
            }
            #[inline(always)]
            unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
                unsafe { _mm512_maskz_loadu_ps(mask512(n), p) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: __m512) {
                unsafe { _mm512_storeu_ps(p, v) }
            }
            #[inline(always)]
            unsafe fn store_first(p: *mut f32, n: usize, v: __m512) {
                unsafe { _mm512_mask_storeu_ps(p, mask512(n), v) }
            }
            #[inline(always)]
            unsafe fn add(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_add_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_sub_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_mul_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn div(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_div_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn sqrt(a: __m512) -> __m512 {
                unsafe { _mm512_sqrt_ps(a) }
            }
            #[inline(always)]
            unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }
            #[inline(always)]
            unsafe fn max(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_max_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn min(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_min_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn select_lt(a: __m512, b: __m512, t: __m512, f: __m512) -> __m512 {
                unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), f, t) }
            }
            #[inline(always)]
            unsafe fn round(a: __m512) -> __m512 {
                unsafe { _mm512_roundscale_ps::<ROUND_NEAREST>(a) }
            }
            #[inline(always)]
            unsafe fn scale_by_power(a: __m512, n: __m512) -> __m512 {
                unsafe {
                    let shift = _mm512_slli_epi32::<23>(_mm512_cvttps_epi32(n));
                    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shift))
                }
            }
            #[inline(always)]
            unsafe fn sum(a: __m512) -> f32 {
                unsafe {
                    let v =
                        _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
                    sum128(_mm_add_ps(
                        _mm256_castps256_ps128(v),
                        _mm256_extractf128_ps::<1>(v),
                    ))
                }
            }
            #[inline(always)]
            unsafe fn greatest(a: __m512) -> f32 {
                unsafe { _mm512_reduce_max_ps(a) }
            }
            #[inline(always)]
            unsafe fn store_bf16(p: *mut u16, v: __m512) {
                unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(bf16_of512(v))) }
            }
            #[inline(always)]
            unsafe fn store_bf16_pairs(p: *mut u32, even: __m512, odd: __m512) {
                unsafe {
                    let odd = _mm512_slli_epi32::<16>(bf16_of512(odd));
                    _mm512_storeu_si512(p.cast(), _mm512_or_si512(bf16_of512(even), odd))
                }
            }
            #[inline(always)]
            unsafe fn dot_bf16(acc: __m512, a: *const u32, b: *const u32) -> __m512 {
                unsafe { $dot(acc, a, b) }
            }
        }
    };
}
simd_avx512!(Avx512, dot_by_fma);
simd_avx512!(Avx512Bf16, dot_in_hardware);

//! Stored elements as f32, sixteen at a time.

use crate::simd::{LANES, Portable, Simd};

/// Scale of an e4m3 whose bits stand in the exponent and mantissa of an f32: the difference of
/// the exponents' biases, 127 - 7.
const F8_SCALE: f32 = f32::from_bits((127 + 120) << 23);
/// The same between an e4m3 and an f16, whose bias is 15.
#[cfg(target_arch = "x86_64")]
const F8_OVER_F16: f32 = 256.0;
/// The same for an f16: 127 - 15.
const F16_SCALE: f32 = f32::from_bits((127 + 112) << 23);

/// What [`Simd`] lacks to read other element types. Every function is exact.
///
/// # Safety
/// As [`Simd`]: the instruction set of the type, and memory where it is read or written; pointers
/// may have any alignment.
pub(crate) trait Widen: Simd {
    /// Sixteen bf16.
    unsafe fn widen_bf16(p: *const u8) -> Self::V;
    /// Sixteen IEEE half-precision numbers.
    unsafe fn widen_f16(p: *const u8) -> Self::V;
    /// Sixteen e4m3 without infinities ("e4m3fn"): 0x7f and 0xff are NaN, the largest is 448.
    unsafe fn widen_f8(p: *const u8) -> Self::V;
    /// Sixteen pairs of bf16: the values in the low halves, and those in the high halves.
    unsafe fn split_pairs(p: *const u32) -> [Self::V; 2];
    /// The reverse of [`Widen::split_pairs`], for values that are bf16 already.
    unsafe fn join_pairs(p: *mut u32, even: Self::V, odd: Self::V);
    /// [`Simd::store_bf16`], in hardware where that rounds in the same way.
    #[inline(always)]
    unsafe fn round_bf16(p: *mut u16, v: Self::V) {
        // SAFETY: the same contract.
        unsafe { Self::store_bf16(p, v) }
    }
    /// Lane j of result i is lane i of row j.
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES];
    /// Asks for a cache line that will be read soon; the address may be any.
    unsafe fn prefetch(p: *const u8);
}

fn half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * F16_SCALE;
    let special = if bits & 0x7c00 == 0x7c00 {
        // Infinity, or NaN made quiet as the hardware does.
        0x7f80_0000 | if bits & 0x03ff == 0 { 0 } else { 0x0040_0000 }
    } else {
        0
    };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

fn e4m3(bits: u8) -> f32 {
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7f) << 20) * F8_SCALE;
    let nan = if bits & 0x7f == 0x7f { 0x7fc0_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | nan | (bits & 0x80) << 24)
}

impl Widen for Portable {
    unsafe fn widen_bf16(p: *const u8) -> Self::V {
        // SAFETY: the caller vouches for sixteen elements.
        let x = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        x.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    unsafe fn widen_f16(p: *const u8) -> Self::V {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(half)
    }
    unsafe fn widen_f8(p: *const u8) -> Self::V {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { p.cast::<[u8; LANES]>().read() }.map(e4m3)
    }
    unsafe fn split_pairs(p: *const u32) -> [Self::V; 2] {
        // SAFETY: the caller vouches for sixteen pairs.
        let x = unsafe { p.cast::<[u32; LANES]>().read_unaligned() };
        [
            x.map(|x| f32::from_bits(x << 16)),
            x.map(|x| f32::from_bits(x & 0xffff_0000)),
        ]
    }
    unsafe fn join_pairs(p: *mut u32, even: Self::V, odd: Self::V) {
        let pair = |i: usize| even[i].to_bits() >> 16 | odd[i].to_bits() & 0xffff_0000;
        // SAFETY: the caller vouches for sixteen pairs.
        unsafe {
            p.cast::<[u32; LANES]>()
                .write_unaligned(std::array::from_fn(pair))
        }
    }
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! SAFETY of every block here: the trait's contract gives the instruction set and the memory.

    use super::{F8_OVER_F16, F8_SCALE, F16_SCALE, LANES, Widen};
    use crate::simd::x86::{Avx2, Avx512, Avx512Bf16};
    use std::arch::x86_64::*;

    const HIGH: i32 = 0xffff_0000u32 as i32;

    /// A number whose magnitude bits stand in an f32's place, scaled by the difference of the
    /// biases; `special` and `sign` are or-ed in.
    #[inline(always)]
    unsafe fn rebias256(magnitude: __m256i, scale: f32, special: __m256i, sign: __m256i) -> __m256 {
        // SAFETY: as the module says.
        unsafe {
            let x = _mm256_mul_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(scale));
            let more = _mm256_castsi256_ps(_mm256_or_si256(special, sign));
            _mm256_or_ps(x, more)
        }
    }

    #[inline(always)]
    unsafe fn f16_256(x: __m256i) -> __m256 {
        // SAFETY: as the module says.
        unsafe {
            let low = _mm256_and_si256(x, _mm256_set1_epi32(0x7fff));
            let sign = _mm256_slli_epi32::<16>(_mm256_andnot_si256(_mm256_set1_epi32(0x7fff), x));
            let special = _mm256_cmpgt_epi32(low, _mm256_set1_epi32(0x7bff));
            let nan = _mm256_cmpgt_epi32(low, _mm256_set1_epi32(0x7c00));
            let special = _mm256_or_si256(
                _mm256_and_si256(special, _mm256_set1_epi32(0x7f80_0000)),
                _mm256_and_si256(nan, _mm256_set1_epi32(0x0040_0000)),
            );
            rebias256(_mm256_slli_epi32::<13>(low), F16_SCALE, special, sign)
        }
    }

    #[inline(always)]
    unsafe fn f8_256(x: __m256i) -> __m256 {
        // SAFETY: as the module says.
        unsafe {
            let low = _mm256_and_si256(x, _mm256_set1_epi32(0x7f));
            let sign = _mm256_slli_epi32::<24>(_mm256_andnot_si256(_mm256_set1_epi32(0x7f), x));
            let nan = _mm256_cmpeq_epi32(low, _mm256_set1_epi32(0x7f));
            let nan = _mm256_and_si256(nan, _mm256_set1_epi32(0x7fc0_0000));
            rebias256(_mm256_slli_epi32::<20>(low), F8_SCALE, nan, sign)
        }
    }

    /// Eight rows of eight.
    #[inline(always)]
    unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: as the module says.
        unsafe {
            let mut u = r;
            for g in [0, 4] {
                let a = _mm256_castps_pd(_mm256_unpacklo_ps(r[g], r[g + 1]));
                let b = _mm256_castps_pd(_mm256_unpackhi_ps(r[g], r[g + 1]));
                let c = _mm256_castps_pd(_mm256_unpacklo_ps(r[g + 2], r[g + 3]));
                let d = _mm256_castps_pd(_mm256_unpackhi_ps(r[g + 2], r[g + 3]));
                u[g] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
                u[g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
                u[g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
                u[g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
            }
            let mut out = u;
            for m in 0..4 {
                out[m] = _mm256_permute2f128_ps::<0x20>(u[m], u[4 + m]);
                out[4 + m] = _mm256_permute2f128_ps::<0x31>(u[m], u[4 + m]);
            }
            out
        }
    }

    impl Widen for Avx2 {
        #[inline(always)]
        unsafe fn widen_bf16(p: *const u8) -> Self::V {
            // SAFETY: as the module says.
            unsafe {
                let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn widen_f16(p: *const u8) -> Self::V {
            // SAFETY: as the module says.
            unsafe {
                [
                    f16_256(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))),
                    f16_256(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()))),
                ]
            }
        }
        #[inline(always)]
        unsafe fn widen_f8(p: *const u8) -> Self::V {
            // SAFETY: as the module says.
            unsafe {
                [
                    f8_256(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))),
                    f8_256(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))),
                ]
            }
        }
        #[inline(always)]
        unsafe fn split_pairs(p: *const u32) -> [Self::V; 2] {
            // SAFETY: as the module says.
            unsafe {
                let mut out = [[_mm256_setzero_ps(); 2]; 2];
                for i in [0, 1] {
                    let x = _mm256_loadu_si256(p.add(8 * i).cast());
                    let high = _mm256_and_si256(x, _mm256_set1_epi32(HIGH));
                    out[0][i] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
                    out[1][i] = _mm256_castsi256_ps(high);
                }
                out
            }
        }
        #[inline(always)]
        unsafe fn join_pairs(p: *mut u32, even: Self::V, odd: Self::V) {
            // SAFETY: as the module says.
            unsafe {
                for i in [0, 1] {
                    let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(even[i]));
                    let high =
                        _mm256_and_si256(_mm256_castps_si256(odd[i]), _mm256_set1_epi32(HIGH));
                    _mm256_storeu_si256(p.add(8 * i).cast(), _mm256_or_si256(low, high));
                }
            }
        }
        #[inline(always)]
        // Indices over arrays of registers unroll; iterators over them do not.
        #[allow(clippy::needless_range_loop)]
        unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
            // SAFETY: as the module says.
            unsafe {
                let mut out = rows;
                for down in [0, 1] {
                    for across in [0, 1] {
                        let mut square = [_mm256_setzero_ps(); 8];
                        for i in 0..8 {
                            square[i] = rows[8 * down + i][across];
                        }
                        let square = transpose8(square);
                        for i in 0..8 {
                            out[8 * across + i][down] = square[i];
                        }
                    }
                }
                out
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
    }

    #[inline(always)]
    unsafe fn f8_512(x: __m128i) -> __m512 {
        // SAFETY: as the module says.
        unsafe {
            let low = _mm_and_si128(x, _mm_set1_epi8(0x7f));
            let nan = _mm_cmpeq_epi8_mask(low, _mm_set1_epi8(0x7f));
            // By way of f16, which has the same order of bits and whose subnormals cost nothing;
            // the sign is spread upwards to where that of an f16 is.
            let bits = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(x));
            let bits = _mm256_and_si256(bits, _mm256_set1_epi16(0xbf80u16 as i16));
            let value = _mm512_mul_ps(_mm512_cvtph_ps(bits), _mm512_set1_ps(F8_OVER_F16));
            let value = _mm512_castps_si512(value);
            let quiet = _mm512_set1_epi32(0x7fc0_0000);
            _mm512_castsi512_ps(_mm512_mask_or_epi32(value, nan, value, quiet))
        }
    }

    /// Sixteen rows of sixteen.
    #[inline(always)]
    unsafe fn transpose16(r: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: as the module says.
        unsafe {
            let mut u = r;
            // Squares of four within each quarter of a register.
            for g in [0, 4, 8, 12] {
                let a = _mm512_castps_pd(_mm512_unpacklo_ps(r[g], r[g + 1]));
                let b = _mm512_castps_pd(_mm512_unpackhi_ps(r[g], r[g + 1]));
                let c = _mm512_castps_pd(_mm512_unpacklo_ps(r[g + 2], r[g + 3]));
                let d = _mm512_castps_pd(_mm512_unpackhi_ps(r[g + 2], r[g + 3]));
                u[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                u[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                u[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                u[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            let mut out = u;
            // Then the quarters themselves.
            for m in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(u[m], u[4 + m]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(u[m], u[4 + m]);
                let even_below = _mm512_shuffle_f32x4::<0x88>(u[8 + m], u[12 + m]);
                let odd_below = _mm512_shuffle_f32x4::<0xdd>(u[8 + m], u[12 + m]);
                out[m] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
                out[4 + m] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
                out[8 + m] = _mm512_shuffle_f32x4::<0xdd>(even, even_below);
                out[12 + m] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_below);
            }
            out
        }
    }

    macro_rules! widen_avx512 {
        ($name:ident, $($round:item)?) => {
            impl Widen for $name {
                $($round)?
                #[inline(always)]
                unsafe fn widen_bf16(p: *const u8) -> __m512 {
                    // SAFETY: as the module says.
                    unsafe {
                        let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
                    }
                }
                #[inline(always)]
                unsafe fn widen_f16(p: *const u8) -> __m512 {
                    // SAFETY: as the module says.
                    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
                }
                #[inline(always)]
                unsafe fn widen_f8(p: *const u8) -> __m512 {
                    // SAFETY: as the module says.
                    unsafe { f8_512(_mm_loadu_si128(p.cast())) }
                }
                #[inline(always)]
                unsafe fn split_pairs(p: *const u32) -> [__m512; 2] {
                    // SAFETY: as the module says.
                    unsafe {
                        let x = _mm512_loadu_si512(p.cast());
                        let high = _mm512_and_si512(x, _mm512_set1_epi32(HIGH));
                        let low = _mm512_slli_epi32::<16>(x);
                        [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
                    }
                }
                #[inline(always)]
                unsafe fn join_pairs(p: *mut u32, even: __m512, odd: __m512) {
                    // SAFETY: as the module says.
                    unsafe {
                        let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
                        let odd = _mm512_castps_si512(odd);
                        let high = _mm512_and_si512(odd, _mm512_set1_epi32(HIGH));
                        _mm512_storeu_si512(p.cast(), _mm512_or_si512(low, high));
                    }
                }
                #[inline(always)]
                unsafe fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
                    // SAFETY: as the module says.
                    unsafe { transpose16(rows) }
                }
                #[inline(always)]
                unsafe fn prefetch(p: *const u8) {
                    // SAFETY: a prefetch of any address is harmless.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
                }
            }
        };
    }
    widen_avx512!(Avx512,);
    widen_avx512!(
        Avx512Bf16,
        #[inline(always)]
        unsafe fn round_bf16(p: *mut u16, v: __m512) {
            // SAFETY: as the module says.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(v);
                _mm256_storeu_si256(p.cast(), std::mem::transmute::<__m256bh, __m256i>(rounded));
            }
        }
    );
}

//! Sixteen columns of four codes each: integer dot products, the same on every instruction set
//! because they are exact.

use super::half::from_f16;
use crate::simd::{LANES, Portable, Simd};

/// Sixteen 32-bit lanes of four bytes, or of one integer.
///
/// # Safety
/// Every function requires the instruction set of the implementing type, and the words it names to
/// be valid memory.
pub(crate) trait Lanes: Copy + 'static {
    type S: Simd;
    type I: Copy;
    /// Rows of a tile whose accumulators fit the registers.
    const ROWS: usize;

    /// Sixteen words.
    unsafe fn load(p: *const u32) -> Self::I;
    /// One word in every lane.
    unsafe fn splat(p: *const u32) -> Self::I;
    /// The low four bits of each byte.
    unsafe fn low(w: Self::I) -> Self::I;
    /// The high four bits of each byte.
    unsafe fn high(w: Self::I) -> Self::I;
    /// `acc` + the four products of the unsigned bytes of `w` and the signed bytes of the word at
    /// `x`.
    unsafe fn dot(acc: Self::I, w: Self::I, x: *const u32) -> Self::I;
    /// The integers as f32.
    unsafe fn to_f32(a: Self::I) -> <Self::S as Simd>::V;
    /// Sixteen f16 in eight words, the first in the low half.
    unsafe fn load_f16(p: *const u32) -> <Self::S as Simd>::V;
    /// Asks for a cache line that will be read soon; any address will do.
    unsafe fn prefetch(p: *const u32);
}

fn lanes<T>(f: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(f)
}

impl Lanes for Portable {
    type S = Portable;
    type I = [u32; LANES];
    const ROWS: usize = 2;

    unsafe fn load(p: *const u32) -> Self::I {
        // SAFETY: the caller vouches for sixteen words.
        unsafe { p.cast::<Self::I>().read_unaligned() }
    }
    unsafe fn splat(p: *const u32) -> Self::I {
        // SAFETY: the caller vouches for one word.
        [unsafe { *p }; LANES]
    }
    unsafe fn low(w: Self::I) -> Self::I {
        lanes(|i| w[i] & 0x0f0f_0f0f)
    }
    unsafe fn high(w: Self::I) -> Self::I {
        lanes(|i| (w[i] >> 4) & 0x0f0f_0f0f)
    }
    unsafe fn dot(acc: Self::I, w: Self::I, x: *const u32) -> Self::I {
        // SAFETY: the caller vouches for one word.
        let x = unsafe { *x }.to_le_bytes().map(|b| i32::from(b as i8));
        lanes(|i| {
            let w = w[i].to_le_bytes().map(i32::from);
            let sum = w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
            acc[i].wrapping_add(sum as u32)
        })
    }
    unsafe fn to_f32(a: Self::I) -> [f32; LANES] {
        lanes(|i| a[i] as i32 as f32)
    }
    unsafe fn load_f16(p: *const u32) -> [f32; LANES] {
        // SAFETY: the caller vouches for eight words.
        lanes(|i| from_f16((unsafe { *p.add(i / 2) } >> (16 * (i % 2))) as u16))
    }
    unsafe fn prefetch(_: *const u32) {}
}

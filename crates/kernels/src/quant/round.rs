//! Rounding blocks of f32 to codes: rows of activations, and panels of weights.

use super::half::{from_f16, to_f16};
use super::{BLOCK, Bits, RECORD};
use crate::gemm::PANEL;
use crate::mat::Mat;
use crate::simd::{LANES, Simd, simd_fn};

/// The f16 of a block that holds no numbers.
const NAN: u16 = 0x7e00;

/// 2^23 + 2^22: an f32 of this size has units for its last bit.
const INTEGER_BASE: f32 = 12_582_912.0;

/// The first `left` values of a block, zeros after them, and what decides about its scale.
struct Block<V> {
    values: [V; 2],
    finite: bool,
    greatest: f32,
    least: f32,
}

#[inline(always)]
unsafe fn read_block<S: Simd>(p: *const f32, left: usize) -> Block<S::V> {
    // SAFETY: the caller vouches for the instruction set and for `left` floats.
    unsafe {
        let a = S::load_first(p, left);
        let b = S::load_first(p.wrapping_add(LANES), left.saturating_sub(LANES));
        // x - x is zero of a number, and NaN of anything else.
        let zeros = S::add(S::sub(a, a), S::sub(b, b));
        let zero = S::splat(0.0);
        Block {
            values: [a, b],
            finite: S::sum(zeros) == 0.0,
            greatest: S::greatest(S::max(a, b)),
            least: -S::greatest(S::max(S::sub(zero, a), S::sub(zero, b))),
        }
    }
}

/// `v / scale` to the nearest integer, ties to even, clamped to `low..=high`; as f32.
#[inline(always)]
unsafe fn integers<S: Simd>(values: [S::V; 2], scale: f32, low: f32, high: f32) -> [S::V; 2] {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let (low, high, scale) = (S::splat(low), S::splat(high), S::splat(scale));
        let a = S::min(high, S::max(low, S::div(values[0], scale)));
        let b = S::min(high, S::max(low, S::div(values[1], scale)));
        [S::round(a), S::round(b)]
    }
}

/// The low bytes of integers plus `offset`, four to a word.
#[inline(always)]
unsafe fn words<S: Simd>(integers: [S::V; 2], offset: f32) -> [u32; BLOCK / 4] {
    // So large a sum has the integer in its low bits.
    let base = INTEGER_BASE + offset;
    let mut wide = [0f32; BLOCK];
    // SAFETY: the caller vouches for the instruction set; two vectors fill the array.
    unsafe {
        S::store(wide.as_mut_ptr(), S::add(integers[0], S::splat(base)));
        let second = S::add(integers[1], S::splat(base));
        S::store(wide.as_mut_ptr().add(LANES), second);
    }
    let bytes = wide.map(|x| x.to_bits() as u8);
    std::array::from_fn(|q| u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * q + i])))
}

simd_fn! {
    /// The records of a row of activations, one a block (see [`super`]). A block that holds
    /// infinities or NaNs gets the scale NaN, so that what depends on it is NaN too.
    pub(crate) fn round_row<S>(row: &[f32], records: &mut [u32]) {
        assert_eq!(records.len(), row.len().div_ceil(BLOCK) * RECORD, "records of a row");
        for (b, record) in records.chunks_exact_mut(RECORD).enumerate() {
            let left = row.len() - b * BLOCK;
            let block = read_block::<S>(row.as_ptr().add(b * BLOCK), left);
            let scale = block.greatest.max(-block.least) / 127.0;
            if !block.finite || scale == 0.0 {
                record.fill(0);
                record[8] = (if block.finite { 0.0 } else { f32::NAN }).to_bits();
                continue;
            }
            let codes = integers::<S>(block.values, scale, -127.0, 127.0);
            // At most 32 * 127: exact in any order.
            let sum = S::sum(S::add(codes[0], codes[1])) as i32;
            record[..8].copy_from_slice(&words::<S>(codes, 0.0));
            record[8] = scale.to_bits();
            record[9] = (-128 * sum) as u32;
            record[10] = (-8 * sum) as u32;
        }
    }
}

simd_fn! {
    /// A panel of weights from its rows `[n, in_features]`, n at most [`PANEL`].
    pub(crate) fn round_panel<S>(bits: Bits, rows: Mat, panel: &mut [u32]) {
        let block_words = bits.block_words();
        assert!(rows.rows <= PANEL, "{} rows in a panel", rows.rows);
        assert_eq!(panel.len(), rows.cols.div_ceil(BLOCK) * block_words, "words of a panel");
        for (b, out) in panel.chunks_exact_mut(block_words).enumerate() {
            let left = rows.cols - b * BLOCK;
            for c in 0..rows.rows {
                let block = read_block::<S>(rows.row(c).as_ptr().add(b * BLOCK), left);
                let half = scale_of(bits, block.finite, block.greatest, block.least);
                let scale = from_f16(half);
                let zero = S::splat(0.0);
                let codes = if scale == 0.0 || half == NAN {
                    [zero, zero]
                } else {
                    let (low, high) = bits.range();
                    integers::<S>(block.values, scale, low, high)
                };
                write_column(bits, &words::<S>(codes, bits.offset()), half, c, out);
            }
        }
    }
}

/// The scale of a block; NaN for one with values that f16 cannot scale, because a model that is
/// beyond its format should say so.
fn scale_of(bits: Bits, finite: bool, greatest: f32, least: f32) -> u16 {
    let scale = match bits {
        Bits::Eight => greatest.max(-least) / 127.0,
        Bits::Four if greatest >= -least => greatest / -8.0,
        Bits::Four => least / -8.0,
    };
    let half = to_f16(scale);
    if !finite || half & 0x7c00 == 0x7c00 {
        NAN
    } else if half & 0x7fff == 0 {
        0
    } else {
        half
    }
}

/// Writes the codes and the scale of column c into a block of a panel.
#[inline(always)]
fn write_column(bits: Bits, words: &[u32; BLOCK / 4], half: u16, c: usize, out: &mut [u32]) {
    match bits {
        Bits::Eight => {
            for (q, word) in words.iter().enumerate() {
                out[q * PANEL + c] = *word;
            }
        }
        Bits::Four => {
            for (g, pair) in words.as_chunks::<2>().0.iter().enumerate() {
                out[g * PANEL + c] = pair[0] | pair[1] << 4;
            }
        }
    }
    let scales = bits.code_words();
    let shift = 16 * (c % 2);
    let word = &mut out[scales + c / 2];
    *word = (*word & !(0xffff << shift)) | u32::from(half) << shift;
}

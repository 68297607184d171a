//! Elements widened to f32: the plain types, and the types with 32 elements to a block.
//!
//! Layouts: `block_q4_0` and its like in `ggml-common.h`; order of operations: the functions
//! `dequantize_row_*` in `ggml-quants.c` of <https://github.com/ggml-org/llama.cpp>. A 16-bit scale
//! times a small integer is exact in f32, so at most one rounding is left in each element, except
//! in Q6_K where the product itself is rounded once: any order gives the same bits.

use super::k_quants::{q2_k, q3_k, q4_k, q5_k, q6_k};
use super::kind::GgmlType;
use crate::checkpoint::float::{bf16_to_f32, f16_to_f32};

/// Widens whole blocks: `bytes` as the file stores them, `out` as many elements as they hold.
///
/// # Panics
/// If the sizes differ, or the type is not [read](GgmlType::is_read).
pub fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    let (len, size) = (kind.block_len(), kind.block_bytes());
    assert!(
        bytes.len().is_multiple_of(size) && bytes.len() / size * len == out.len(),
        "{} bytes of {} are not {} elements",
        bytes.len(),
        kind.name(),
        out.len()
    );
    let block: fn(&[u8], &mut [f32]) = match kind {
        GgmlType::F32 => return widen(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => return widen(bytes, out, |two| f16_to_f32(u16::from_le_bytes(two))),
        GgmlType::BF16 => return widen(bytes, out, |two| bf16_to_f32(u16::from_le_bytes(two))),
        GgmlType::F64 => return widen(bytes, out, |eight| f64::from_le_bytes(eight) as f32),
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q2K => q2_k,
        GgmlType::Q3K => q3_k,
        GgmlType::Q4K => q4_k,
        GgmlType::Q5K => q5_k,
        GgmlType::Q6K => q6_k,
        GgmlType::Other(_) => panic!("{} is not a type read here", kind.name()),
    };
    for (bytes, values) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(len)) {
        block(bytes, values);
    }
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn([u8; N]) -> f32) {
    for (value, stored) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = one(*stored);
    }
}

/// The 16-bit floating-point number at byte `at` of a block.
pub(super) fn f16(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// d: f16, 16 bytes of nibbles. Low nibbles are elements 0 to 15, high ones 16 to 31.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 0);
    let (low, high) = out.split_at_mut(16);
    for (j, &byte) in block[2..].iter().enumerate() {
        low[j] = (i32::from(byte & 15) - 8) as f32 * d;
        high[j] = (i32::from(byte >> 4) - 8) as f32 * d;
    }
}

/// d, m: f16, then nibbles as in [`q4_0`].
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16(block, 0), f16(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (j, &byte) in block[4..].iter().enumerate() {
        low[j] = f32::from(byte & 15) * d + m;
        high[j] = f32::from(byte >> 4) * d + m;
    }
}

/// d: f16, the fifth bits of all elements in 32 bits, then nibbles as in [`q4_0`].
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 0);
    five_bits(&block[2..], out, |q| (q as i32 - 16) as f32 * d);
}

/// d, m: f16, then as [`q5_0`].
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16(block, 0), f16(block, 2));
    five_bits(&block[4..], out, |q| q as f32 * d + m);
}

fn five_bits(block: &[u8], out: &mut [f32], value: impl Fn(u32) -> f32) {
    let fifth = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let (low, high) = out.split_at_mut(16);
    for (j, &byte) in block[4..].iter().enumerate() {
        low[j] = value(u32::from(byte & 15) | (fifth >> j & 1) << 4);
        high[j] = value(u32::from(byte >> 4) | (fifth >> (j + 16) & 1) << 4);
    }
}

/// d: f16, 32 signed bytes.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte as i8) * d;
    }
}

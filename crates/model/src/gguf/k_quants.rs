//! The K types of ggml: 256 elements to a block, with scales of scales.

use super::blocks::f16;

/// Sixteen scales and minima of 4 bits, 64 bytes of 2-bit elements, d and dmin: f16.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16(block, 80), f16(block, 82));
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let scale = block[group];
        let (d, m) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        for (j, value) in values.iter_mut().enumerate() {
            let (byte, shift) = two_bits(group, j);
            let q = block[16 + byte] >> shift & 3;
            *value = d * f32::from(q) - m;
        }
    }
}

/// The third bits of all elements in 32 bytes, 64 bytes of 2-bit elements, sixteen scales of 6
/// bits in 12 bytes, d: f16. Where the third bit is clear, 4 is taken away.
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 108);
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let d = d * (i32::from(q3_k_scale(&block[96..108], group)) - 32) as f32;
        for (j, value) in values.iter_mut().enumerate() {
            let (byte, shift) = two_bits(group, j);
            let q = i32::from(block[32 + byte] >> shift & 3);
            // Bit `group / 2` of byte `j` (of 32) belongs to the group's element.
            let third = block[group % 2 * 16 + j] >> (group / 2) & 1;
            *value = d * (q - if third == 0 { 4 } else { 0 }) as f32;
        }
    }
}

/// Where element `j` of the 16 of a group stands in 64 bytes of 2-bit elements: each run of 32
/// bytes holds four runs of 32 elements, one in each pair of bits.
fn two_bits(group: usize, j: usize) -> (usize, usize) {
    (group / 8 * 32 + group % 2 * 16 + j, group % 8 / 2 * 2)
}

/// Bytes 0 to 7 hold the low nibbles of scales 0 to 7 and 8 to 15, bytes 8 to 11 the upper pairs
/// of bits.
fn q3_k_scale(packed: &[u8], group: usize) -> u8 {
    let low = packed[group % 8] >> (group / 8 * 4) & 15;
    let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
    low | high << 4
}

/// d, dmin: f16, eight scales and minima of 6 bits in 12 bytes, 128 bytes of nibbles. Each run of
/// 32 bytes holds two groups of 32 elements, the first in the low nibbles.
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let nibbles = &block[16..];
    scaled_groups(block, out, |group, j| {
        nibbles[group / 2 * 32 + j] >> (group % 2 * 4) & 15
    });
}

/// As [`q4_k`], with the fifth bits in 32 bytes before the nibbles: bit `group` of byte `j`.
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (fifth, nibbles) = (&block[16..48], &block[48..]);
    scaled_groups(block, out, |group, j| {
        let low = nibbles[group / 2 * 32 + j] >> (group % 2 * 4) & 15;
        low | (fifth[j] >> group & 1) << 4
    });
}

fn scaled_groups(block: &[u8], out: &mut [f32], q: impl Fn(usize, usize) -> u8) {
    let (d, dmin) = (f16(block, 0), f16(block, 2));
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = six_bit_scale(&block[4..16], group);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        for (j, value) in values.iter_mut().enumerate() {
            *value = d * f32::from(q(group, j)) - m;
        }
    }
}

/// Scale and minimum of a group. Groups 0 to 3 have them in the low 6 bits of bytes 0 to 3 and 4
/// to 7; the others in the nibbles of bytes 8 to 11, topped by the high bits of the former.
fn six_bit_scale(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let low = packed[group + 4];
    let scale = low & 15 | packed[group - 4] >> 6 << 4;
    let min = low >> 4 | packed[group] >> 6 << 4;
    (scale, min)
}

/// 128 bytes of low nibbles, 64 bytes of upper pairs of bits, sixteen signed scales, d: f16. Each
/// half of the block has 64 bytes of nibbles and 32 of pairs for four runs of 32 elements.
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = f16(block, 208);
    for (run, values) in out.chunks_exact_mut(32).enumerate() {
        let (half, run_of_half) = (run / 4, run % 4);
        let nibbles = &block[half * 64 + run_of_half % 2 * 32..];
        let pairs = &block[128 + half * 32..];
        for (j, value) in values.iter_mut().enumerate() {
            let low = nibbles[j] >> (run_of_half / 2 * 4) & 15;
            let high = pairs[j] >> (run_of_half * 2) & 3;
            let scale = block[192 + run * 2 + j / 16] as i8;
            *value = d * f32::from(scale) * (i32::from(low | high << 4) - 32) as f32;
        }
    }
}

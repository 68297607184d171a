//! f32 narrowed to what a file stores.

use super::kind::GgmlType;
use crate::checkpoint::float::f32_to_bf16;

/// Appends `values` to `out` as whole blocks of a type: F32, F16, BF16 (both to nearest, ties to
/// even), Q8_0 or Q4_0 (as `quantize_row_*_ref` in `ggml-quants.c`, bit for bit).
///
/// # Errors
/// Says which value the type cannot hold: one that is not finite in a block with a scale, or one
/// that f16 would turn into infinity.
///
/// # Panics
/// If the values are no whole blocks, or the type is not [written](GgmlType::is_written).
pub fn quantize(kind: GgmlType, values: &[f32], out: &mut Vec<u8>) -> Result<(), String> {
    assert!(
        values.len().is_multiple_of(kind.block_len()),
        "{} values are no whole blocks of {}",
        values.len(),
        kind.name()
    );
    match kind {
        GgmlType::F32 => {
            values
                .iter()
                .for_each(|value| out.extend(value.to_le_bytes()));
            Ok(())
        }
        GgmlType::BF16 => {
            values
                .iter()
                .for_each(|&value| out.extend(f32_to_bf16(value).to_le_bytes()));
            Ok(())
        }
        GgmlType::F16 => values.iter().try_for_each(|&value| {
            let half = f32_to_f16(value);
            if value.is_finite() && half & 0x7fff == 0x7c00 {
                return Err(format!("{value} is beyond what F16 holds; BF16 holds it"));
            }
            out.extend(half.to_le_bytes());
            Ok(())
        }),
        GgmlType::Q8_0 => values
            .chunks_exact(32)
            .try_for_each(|block| q8_0(block, out)),
        GgmlType::Q4_0 => values
            .chunks_exact(32)
            .try_for_each(|block| q4_0(block, out)),
        other => panic!("{} is not a type written here", other.name()),
    }
}

/// The scale goes to 127 for the largest magnitude; elements round half away from zero.
fn q8_0(block: &[f32], out: &mut Vec<u8>) -> Result<(), String> {
    let largest = block.iter().fold(0f32, |most, value| most.max(value.abs()));
    let d = largest / 127.0;
    out.extend(scale(block, d)?);
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(
        block
            .iter()
            .map(|value| (value * inverse).round() as i8 as u8),
    );
    Ok(())
}

/// The scale takes the first value of largest magnitude, with its sign, to -8.
fn q4_0(block: &[f32], out: &mut Vec<u8>) -> Result<(), String> {
    let signed = block.iter().fold(0f32, |most, &value| {
        if value.abs() > most.abs() {
            value
        } else {
            most
        }
    });
    let d = signed / -8.0;
    out.extend(scale(block, d)?);
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let nibble = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    let (low, high) = block.split_at(16);
    out.extend(
        low.iter()
            .zip(high)
            .map(|(&low, &high)| nibble(low) | nibble(high) << 4),
    );
    Ok(())
}

/// The scale as it is stored, unless a value cannot be represented through it.
fn scale(block: &[f32], d: f32) -> Result<[u8; 2], String> {
    if let Some(value) = block.iter().find(|value| !value.is_finite()) {
        return Err(format!("{value} cannot be stored in blocks with a scale"));
    }
    let half = f32_to_f16(d);
    if half & 0x7fff == 0x7c00 {
        return Err(format!(
            "a block needs the scale {d}, which F16 does not hold; BF16 holds its values"
        ));
    }
    Ok(half.to_le_bytes())
}

/// Rounds to the nearest IEEE binary16, ties to the even one. NaN stays NaN.
fn f32_to_f16(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let bits = value.to_bits() & 0x7fff_ffff;
    let magnitude = match bits {
        0x7f80_0001.. => 0x7e00 | (bits >> 13) as u16 & 0x03ff,
        // 65536 and more, infinity too.
        0x4780_0000.. => 0x7c00,
        // Normal: the biases differ by 127 - 15. From 65520 this rounds to infinity.
        0x3880_0000.. => ((bits + 0x0fff + (bits >> 13 & 1) - 0x3800_0000) >> 13) as u16,
        // Subnormal: a multiple of 2^-24, and the product with a power of two is exact.
        _ => (f32::from_bits(bits) * 16_777_216.0).round_ties_even() as u16,
    };
    sign | magnitude
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_rounds_as_the_half_crate_rounds() {
        // Around every f16 value: the exact one, its neighbours in f32, and both sides of the tie.
        for half in 0..=u16::MAX {
            let exact = half::f16::from_bits(half).to_f32();
            if exact.is_nan() {
                assert!(half::f16::from_bits(f32_to_f16(exact)).is_nan());
                continue;
            }
            let next = half::f16::from_bits(half.wrapping_add(1)).to_f32();
            let tie = exact + (next - exact) / 2.0;
            for value in [exact, tie, tie.next_up(), tie.next_down(), exact.next_up()] {
                let theirs = half::f16::from_f32(value);
                let ours = half::f16::from_bits(f32_to_f16(value));
                let same = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
                assert!(same, "{value:e}: {ours:?} against {theirs:?}");
            }
        }
        assert_eq!(f32_to_f16(f32::MAX), 0x7c00);
        assert_eq!(f32_to_f16(-f32::MIN_POSITIVE), 0x8000);
    }
}

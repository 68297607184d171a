//! The two 16-bit floating-point formats, to and from f32.

/// bfloat16 is the upper half of an f32.
pub(super) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest bfloat16, ties to the even one. NaN stays NaN.
pub(super) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Rounding could carry a NaN into infinity; its quiet bit keeps it one.
        return (bits >> 16) as u16 | 0x0040;
    }
    let odd = (bits >> 16) & 1;
    ((bits + 0x7fff + odd) >> 16) as u16
}

/// IEEE binary16; every value, subnormals included, is exact in f32.
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let mantissa = u32::from(bits & 0x03ff);
    let magnitude = match exponent {
        // The product with a power of two is exact.
        0 => (mantissa as f32 * (1.0 / 16_777_216.0)).to_bits(),
        31 => 0x7f80_0000 | mantissa << 13,
        // The biases differ by 127 - 15.
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_16_bit_patterns_widen_as_the_half_crate_widens_them() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (bf16_to_f32(bits), half::bf16::from_bits(bits).to_f32());
            assert!(
                same(ours, theirs),
                "bf16 {bits:#06x}: {ours} against {theirs}"
            );
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                same(ours, theirs),
                "f16 {bits:#06x}: {ours} against {theirs}"
            );
        }
    }

    #[test]
    fn bf16_survives_a_trip_through_f32() {
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            let back = f32_to_bf16(value);
            let quiet = if value.is_nan() { bits | 0x0040 } else { bits };
            assert_eq!(back, quiet, "pattern {bits:#06x}");
        }
    }

    #[test]
    fn narrowing_rounds_as_the_half_crate_rounds() {
        // Around every bf16 value: the exact one, its neighbours, and both sides of the tie.
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let (ours, theirs) = (f32_to_bf16(value), half::bf16::from_f32(value).to_bits());
                assert_eq!(ours, theirs, "f32 bits {:#010x}", value.to_bits());
            }
        }
    }

    /// Bitwise, but for the payload of a NaN, which hardware may change.
    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }
}

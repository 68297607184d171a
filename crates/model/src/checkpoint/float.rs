//! The small floating-point formats, to and from f32.

/// bfloat16 is the upper half of an f32.
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest bfloat16, ties to the even one. NaN stays NaN.
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Rounding could carry a NaN into infinity; its quiet bit keeps it one.
        return (bits >> 16) as u16 | 0x0040;
    }
    let odd = (bits >> 16) & 1;
    ((bits + 0x7fff + odd) >> 16) as u16
}

/// IEEE binary16; every value, subnormals included, is exact in f32.
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
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

/// Eight bits, four of exponent and three of mantissa, without infinities (arXiv 2209.05433).
pub(super) fn e4m3_to_f32(bits: u8) -> f32 {
    let magnitude = match (bits >> 3 & 0xf, bits & 7) {
        (15, 7) => f32::NAN,
        // Subnormal: a multiple of 2^-9.
        (0, mantissa) => f32::from(mantissa) / 512.0,
        (exponent, mantissa) => {
            f32::from_bits((u32::from(exponent) + 120) << 23 | u32::from(mantissa) << 20)
        }
    };
    if bits & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// Rounds to the nearest e4m3, ties to the even one; beyond 448 it is 448. NaN stays NaN.
pub(crate) fn f32_to_e4m3(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    let code = if magnitude.is_nan() {
        0x7f
    } else if magnitude >= 448.0 {
        0x7e
    } else if magnitude < 1.0 / 64.0 {
        // Subnormal: a multiple of 2^-9, and the product with a power of two is exact.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        // The biases differ by 127 - 7, the mantissas by 20 bits.
        let bits = magnitude.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1) - (120 << 23)) >> 20) as u8
    };
    sign | code
}

/// A power of two: 2^(bits - 127); 255 is NaN.
pub(super) fn e8m0_to_f32(bits: u8) -> f32 {
    match bits {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
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
    fn eight_bit_patterns_are_their_sign_exponent_and_mantissa() {
        for bits in 0..=u8::MAX {
            let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
            let magnitude = match exponent {
                0 => mantissa / 8.0 * 2f64.powi(-6),
                _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            let sign = if bits < 128 { 1.0 } else { -1.0 };
            if bits & 0x7f == 0x7f {
                assert!(e4m3_to_f32(bits).is_nan());
            } else {
                assert_eq!(
                    f64::from(e4m3_to_f32(bits)),
                    sign * magnitude,
                    "{bits:#04x}"
                );
            }
            if bits == 255 {
                assert!(e8m0_to_f32(bits).is_nan());
            } else {
                let power = 2f64.powi(i32::from(bits) - 127);
                assert_eq!(f64::from(e8m0_to_f32(bits)), power, "{bits:#04x}");
            }
        }
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
    }

    /// The nearest of all 127 magnitudes, looked for one by one; of two the one with an even code.
    fn nearest_e4m3(value: f32) -> u8 {
        let distance = |code: u8| (f64::from(e4m3_to_f32(code)) - f64::from(value.abs())).abs();
        let nearer = |&a: &u8, &b: &u8| {
            distance(a)
                .total_cmp(&distance(b))
                .then((a & 1).cmp(&(b & 1)))
        };
        let code = (0..=0x7e).min_by(nearer).unwrap();
        if value.is_sign_negative() {
            code | 0x80
        } else {
            code
        }
    }

    #[test]
    fn e4m3_rounds_to_the_nearest_code() {
        for code in 0..0x7e_u8 {
            let (low, high) = (e4m3_to_f32(code), e4m3_to_f32(code + 1));
            let tie = low + (high - low) / 2.0;
            for value in [
                low,
                low.next_up(),
                tie.next_down(),
                tie,
                tie.next_up(),
                high,
            ] {
                for value in [value, -value] {
                    assert_eq!(f32_to_e4m3(value), nearest_e4m3(value), "{value:e}");
                }
            }
        }
        for value in [448.0, 463.0, 465.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!(
                [f32_to_e4m3(value), f32_to_e4m3(-value)],
                [0x7e, 0xfe],
                "{value}"
            );
        }
        assert_eq!(f32_to_e4m3(f32::NAN) & 0x7f, 0x7f);
        assert_eq!(f32_to_e4m3(f32::MIN_POSITIVE), 0);
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

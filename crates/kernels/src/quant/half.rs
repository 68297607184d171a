//! IEEE half precision, for the scales of blocks.

/// The nearest f16, ties to even; too large a magnitude becomes infinite.
pub(crate) fn to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 65520f32.to_bits() {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14 an f16 is a whole number of 2^-24, to which scaling is exact.
        (f32::from_bits(magnitude) * (1 << 24) as f32).round_ties_even() as u16
    } else {
        let rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
        ((rounded >> 13) - (112 << 10)) as u16
    };
    sign | half
}

/// The value of an f16, exactly.
pub(crate) fn from_f16(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    let value = if magnitude >= 0x7c00 {
        0x7f80_0000 | (magnitude & 0x3ff) << 13
    } else {
        // The bits as an f32 lack 112 in the exponent; a product by 2^112 is exact for subnormals
        // too.
        let power = f32::from_bits((127 + 112) << 23);
        (f32::from_bits(magnitude << 13) * power).to_bits()
    };
    f32::from_bits(sign | value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a finite f16 by its definition.
    fn value(half: u16) -> f64 {
        let (exponent, mantissa) = (i32::from(half >> 10) & 31, f64::from(half & 0x3ff));
        let magnitude = if exponent == 0 {
            mantissa * 2f64.powi(-24)
        } else {
            (1024.0 + mantissa) * 2f64.powi(exponent - 25)
        };
        if half & 0x8000 == 0 {
            magnitude
        } else {
            -magnitude
        }
    }

    #[test]
    fn every_f16_is_what_its_bits_say_and_comes_back() {
        for half in 0..=u16::MAX {
            if half & 0x7c00 != 0x7c00 {
                assert_eq!(f64::from(from_f16(half)), value(half), "{half:04x}");
                assert_eq!(to_f16(from_f16(half)), half);
            }
        }
        assert_eq!(from_f16(0x7c00), f32::INFINITY);
        assert_eq!(from_f16(0xfc00), f32::NEG_INFINITY);
        assert!(from_f16(0x7e00).is_nan() && from_f16(to_f16(f32::NAN)).is_nan());
        assert_eq!(to_f16(f32::MAX), 0x7c00);
    }

    /// Between two neighbours: the midpoint goes to the even one, its f32 neighbours to the nearer.
    #[test]
    fn rounding_goes_to_the_nearest_and_ties_to_even() {
        for half in 0..0x7bffu16 {
            let middle = ((value(half) + value(half + 1)) / 2.0) as f32;
            let even = half + (half & 1);
            assert_eq!(to_f16(middle), even, "{half:04x}");
            assert_eq!(to_f16(-middle), even | 0x8000, "{half:04x}");
            assert_eq!(to_f16(f32::from_bits(middle.to_bits() - 1)), half);
            assert_eq!(to_f16(f32::from_bits(middle.to_bits() + 1)), half + 1);
        }
        assert_eq!(to_f16(65519.996), 0x7bff);
        assert_eq!(to_f16(65520.0), 0x7c00);
    }
}

//! Elementary functions in f64 from additions and multiplications alone.
//!
//! The standard library's call the platform's C library, whose last bits differ between systems;
//! these are the same everywhere. They serve where a handful of values is needed (tables, a
//! logarithm per row, initial weights), not in inner loops.

/// e^x, relative error below 1e-14; 0 below -700, infinite above 709.
pub fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts, the first short enough that n times it is exact.
    let r = (x - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10;
    let mut sum = 1.0;
    for i in (1..=13).rev() {
        sum = 1.0 + sum * r / f64::from(i);
    }
    sum * f64::from_bits(((1023 + n as i64) as u64) << 52)
}

/// The natural logarithm of a positive normal number, relative error below 1e-14.
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x < f64::MIN_POSITIVE {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1.0;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)); |s| <= 0.172 makes eleven terms enough.
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for i in (0..11).rev() {
        sum = sum * square + 1.0 / f64::from(2 * i + 1);
    }
    exponent * std::f64::consts::LN_2 + 2.0 * s * sum
}

/// Sine and cosine of an angle in radians, absolute error below 1e-12 for |x| < 1e6.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let quarter = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    // pi / 2 in three parts of few bits, so that the products are exact.
    let r = ((x - quarter * 1.570_796_251_296_997) - quarter * 7.549_789_415_861_596e-8)
        - quarter * 5.390_302_858_158_114e-15;
    let square = r * r;
    let (mut sin, mut cos) = (1.0, 1.0);
    for i in (1..=9).rev() {
        let i = f64::from(i);
        sin = 1.0 - sin * square / ((2.0 * i) * (2.0 * i + 1.0));
        cos = 1.0 - cos * square / ((2.0 * i) * (2.0 * i - 1.0));
    }
    sin *= r;
    match (quarter as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agree_with_the_c_library_to_its_own_precision() {
        for i in -4000..4000 {
            let x = f64::from(i) * 0.1737;
            let e = exp(x);
            assert!(
                (e - x.exp()).abs() <= 1e-13 * x.exp(),
                "exp {x}: {e} {}",
                x.exp()
            );
            let (s, c) = sin_cos(x * 100.0);
            assert!((s - (x * 100.0).sin()).abs() < 1e-11, "sin {x}");
            assert!((c - (x * 100.0).cos()).abs() < 1e-11, "cos {x}");
            let y = x.abs() + 1e-9;
            assert!(
                (ln(y) - y.ln()).abs() <= 1e-13 * y.ln().abs().max(1e-2),
                "ln {y}"
            );
        }
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }
}

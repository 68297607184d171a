//! Numbers of planning, read and written as people write them.

use plan::interval::Interval;

/// A number from 0 on: `2048`, `14.8e12`, or with K, M, B or T behind it.
pub fn parse(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is no number; write it as 2048, 14.8e12 or 14.8T");
    let text = text.trim();
    let unit = |c: char| match c.to_ascii_uppercase() {
        'K' => Some(1e3),
        'M' => Some(1e6),
        'B' => Some(1e9),
        'T' => Some(1e12),
        _ => None,
    };
    let (digits, factor) = match text.chars().last().and_then(|c| Some((c, unit(c)?))) {
        Some((c, factor)) => (&text[..text.len() - c.len_utf8()], factor),
        None => (text, 1.0),
    };
    let value = digits.trim().parse::<f64>().map_err(|_| wrong())?;
    let value = value * factor;
    match value.is_finite() && value >= 0.0 {
        true => Ok(value),
        false => Err(wrong()),
    }
}

/// As [`parse`], of things that come whole, one at least.
pub fn parse_whole(text: &str) -> Result<u64, String> {
    let value = parse(text)?;
    // Beyond this an f64 no longer holds every whole number.
    match value.fract() == 0.0 && (1.0..=9e15).contains(&value) {
        true => Ok(value as u64),
        false => Err(format!("{text:?} is not a whole number above 0")),
    }
}

/// A price or another number that must be above 0.
pub fn parse_positive(text: &str) -> Result<f64, String> {
    match parse(text)? {
        value if value > 0.0 => Ok(value),
        _ => Err(format!("{text:?} is not a number above 0")),
    }
}

/// A large number in words short enough for a table: 14.80 T.
pub fn counted(number: f64) -> String {
    for (unit, size) in [("T", 1e12), ("B", 1e9), ("M", 1e6)] {
        if number >= size {
            let digits = if number < 100.0 * size { 2 } else { 0 };
            return format!("{:.digits$} {unit}", number / size);
        }
    }
    format!("{number:.0}")
}

/// Three digits that count, and all digits of a number above 1,000, in groups.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".to_string();
    }
    if !(1e-3..1e15).contains(&size) {
        return format!("{value:.2e}");
    }
    if size >= 999.5 {
        return grouped(value);
    }
    let before = size.log10().floor() as i32 + 1;
    let digits = usize::try_from(3 - before).unwrap_or(0);
    format!("{value:.digits$}")
}

/// To the next whole number, with commas.
pub fn grouped(value: f64) -> String {
    let text = in_groups(&format!("{:.0}", value.abs()));
    match value <= -0.5 {
        true => format!("-{text}"),
        false => text,
    }
}

/// Digits with a comma before each three.
pub fn in_groups(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "mid unit (low to high)", or the one number where the three are one; the unit begins with a
/// space where it needs one.
pub fn spanned(interval: &Interval<f64>, unit: &str, write: impl Fn(f64) -> String) -> String {
    let Interval { low, mid, high } = *interval;
    match low == high {
        true => write(mid) + unit,
        false => format!("{}{unit} ({} to {})", write(mid), write(low), write(high)),
    }
}

/// Millions and more as [`counted`] writes them, less as [`short`] does.
pub fn amount(value: f64) -> String {
    match value >= 1e6 {
        true => counted(value),
        false => short(value),
    }
}

#[cfg(test)]
mod tests {
    use super::{counted, grouped, parse, parse_positive, parse_whole, short};

    #[test]
    fn what_people_write_is_read() {
        for (text, value) in [
            ("2048", 2048.0),
            ("14.8e12", 14.8e12),
            ("14.8T", 14.8e12),
            ("15t", 15e12),
            ("2 K", 2000.0),
            ("0", 0.0),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
        for text in ["", "T", "-1", "nan", "inf", "1e999", "1_0", "漢", "1ü"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_whole("2K"), Ok(2000));
        for text in ["0", "1.5", "1e30"] {
            assert!(parse_whole(text).is_err(), "{text:?}");
        }
        assert!(parse_positive("0").is_err());
    }

    #[test]
    fn what_is_written_is_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.012_345, "0.0123"),
            (1.234, "1.23"),
            (19.926, "19.9"),
            (541.7, "542"),
            (999.7, "1,000"),
            (2_664_000.4, "2,664,000"),
            (1e-7, "1.00e-7"),
        ] {
            assert_eq!(short(value), text);
        }
        assert_eq!(grouped(-1234.0), "-1,234");
        assert_eq!(counted(14.8e12), "14.80 T");
    }
}

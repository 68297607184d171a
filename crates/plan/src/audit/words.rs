//! Numbers as a reader takes them in: four digits and a unit.

use crate::interval::Interval;

/// `3.707e24`, `14.8 T`, `2.664 M`, `2,048`, `54.2`, `0.39`: four digits at most.
pub fn short(value: f64) -> String {
    let size = value.abs();
    for (least, scale, letter) in [
        (1e15, 0.0, ""),
        (1e12, 1e12, " T"),
        (1e9, 1e9, " B"),
        (1e6, 1e6, " M"),
        (1e5, 1e3, " K"),
    ] {
        if size >= least {
            return match letter {
                "" => format!("{value:.3e}"),
                letter => format!("{}{letter}", digits(value / scale)),
            };
        }
    }
    if size >= 1000.0 {
        return grouped(value.round());
    }
    digits(value)
}

/// Four digits that count, without zeros at the end.
fn digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_string();
    }
    let before = value.abs().log10().floor() as i32;
    let places = (3 - before).clamp(0, 9) as usize;
    let text = format!("{value:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// Thousands apart.
fn grouped(value: f64) -> String {
    let text = format!("{value:.0}");
    let first = text.len() % 3;
    let mut parts: Vec<&str> = Vec::new();
    if first > 0 {
        parts.push(&text[..first]);
    }
    let rest = (first..text.len()).step_by(3);
    parts.extend(rest.map(|start| &text[start..start + 3]));
    parts.join(",")
}

/// One number, or from the lowest to the highest.
pub fn range(interval: &Interval<f64>) -> String {
    let [low, high] = [interval.low, interval.high].map(short);
    if low == high {
        return short(interval.mid);
    }
    // A letter that both share stands once.
    match (low.rsplit_once(' '), high.rsplit_once(' ')) {
        (Some((low, a)), Some((_, b))) if a == b => format!("{low} to {high}"),
        _ => format!("{low} to {high}"),
    }
}

pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent >= 100.0 {
        return format!("{} %", short(percent));
    }
    let places = if percent < 1.0 { 3 } else { 1 };
    format!("{percent:.places$} %")
}

pub fn dollars(value: f64) -> String {
    if value < 1000.0 {
        return format!("${value:.2}");
    }
    format!("${}", short(value))
}

//! All that is known of one chip.

use plan::chip::Chip;
use plan::export::{Precision, VERSIONS, classify, total_processing_performance};
use plan::quantity::{BytesPerSecond, FlopsPerSecond};

use super::facts::shown;
use super::table::fixed;
use super::{Day, Entry};
use crate::lines::{WIDTH, wrapped};
use crate::plain::plain;

/// Where values begin.
const INDENT: usize = 24;

pub fn text(entry: &Entry<'_>, day: &Day) -> String {
    let chip = entry.chip;
    let mut rows = figures(chip);
    rows.extend(money(chip));
    rows.extend(controls(entry));
    rows.push(("source", chip.source.clone()));
    if !chip.notes.is_empty() {
        rows.push(("notes", chip.notes.clone()));
    }
    rows.push(("export class", day.remark()));
    let lines = rows.iter().map(|(name, value)| row(name, value));
    lines.collect()
}

/// A name and a value, which goes on under itself where it is long.
fn row(name: &str, value: &str) -> String {
    let value = match value {
        "" => "-".to_string(),
        value => plain(value),
    };
    let mut lines = wrapped(&value, WIDTH - INDENT - 1).into_iter();
    let first = lines.next().unwrap_or_default();
    let mut text = format!("{name:<INDENT$} {first}\n");
    for line in lines {
        text.push_str(&format!("{:<INDENT$} {line}\n", ""));
    }
    text
}

fn figures(chip: &Chip) -> Vec<(&'static str, String)> {
    let tera = |rate: Option<FlopsPerSecond>| shown(rate.map(|rate| rate.0 / 1e12));
    let giga = |rate: Option<BytesPerSecond>| shown(rate.map(|rate| rate.0 / 1e9));
    let launch = chip.launch.map(|launch| launch.to_string());
    let share = |share: Option<f64>| match share {
        None => "-".to_string(),
        Some(share) => format!("{:.1} %", 100.0 * share),
    };
    let domain = chip
        .scale_up_chips
        .map_or("-".to_string(), |n| n.to_string());
    let market = chip.market.as_str();
    vec![
        ("chip", format!("{} ({})", chip.name, chip.key)),
        ("vendor", format!("{}, {market}", chip.vendor)),
        ("launch", launch.unwrap_or_default()),
        (
            "bf16, fp8",
            format!("{}, {} TFLOPS dense", tera(chip.bf16), tera(chip.fp8)),
        ),
        (
            "int8, fp4",
            format!("{}, {} TOPS dense", tera(chip.int8), tera(chip.fp4)),
        ),
        (
            "best matmul measured",
            format!(
                "{} of bf16, {} of fp8",
                share(chip.gemm_bf16),
                share(chip.gemm_fp8)
            ),
        ),
        (
            "memory",
            format!(
                "{} GB {}, {} GB/s",
                shown(chip.memory.map(|memory| memory.0 / 1e9)),
                chip.memory_kind,
                giga(chip.memory_bandwidth),
            ),
        ),
        (
            "scale-up",
            format!(
                "{}, {} GB/s per direction, {} in all, {domain} chips",
                chip.scale_up_link,
                giga(chip.scale_up),
                giga(chip.scale_up_total),
            ),
        ),
        (
            "scale-out",
            format!("{} GB/s per direction", giga(chip.scale_out)),
        ),
        (
            "power",
            with_note(
                shown(chip.power.map(|power| power.0)) + " W",
                &chip.power_kind,
            ),
        ),
        (
            "die",
            with_note(shown(chip.die_mm2) + " mm2", &chip.die_note),
        ),
    ]
}

fn with_note(value: String, note: &str) -> String {
    match note {
        "" => value,
        note => format!("{value} ({note})"),
    }
}

fn money(chip: &Chip) -> Vec<(&'static str, String)> {
    let price = match chip.price {
        None => "unknown".to_string(),
        Some(price) => format!("${} at release", shown(Some(price.0))),
    };
    let rent = match chip.hourly {
        None => "price unknown".to_string(),
        Some(rent) if rent.low == rent.high => {
            format!(
                "${:.2} per hour ({})",
                rent.mid.hourly(),
                chip.hourly_source
            )
        }
        Some(rent) => format!(
            "${:.2} per hour, {:.2} to {:.2} ({})",
            rent.mid.hourly(),
            rent.low.hourly(),
            rent.high.hourly(),
            chip.hourly_source
        ),
    };
    vec![("price", price), ("rent", rent)]
}

/// What each version of the rules that changed the answer says, and what holds on the day.
fn controls(entry: &Entry<'_>) -> Vec<(&'static str, String)> {
    let Entry { chip, export } = entry;
    let basis = total_processing_performance(chip).map(|tpp| match tpp.basis {
        Precision::Fp8 => " (fp8 x 8 bits)",
        Precision::Int8 => " (int8 x 8 bits)",
        Precision::Bf16 => " (bf16 x 16 bits)",
        Precision::Fp4 => " (fp4 x 4 bits)",
        Precision::Stated => " (as the press states it)",
    });
    let tpp = fixed(export.total_processing_performance, 1) + basis.unwrap_or_default();
    let density = fixed(export.performance_density, 2) + " per mm2";
    let mut rows = vec![("TPP", tpp), ("performance density", density)];
    let mut last = None;
    for version in &VERSIONS {
        let then = classify(chip, version.in_force);
        let answers = (then.class, then.bandwidth_letter, then.china_review);
        if last.as_ref() != Some(&answers) {
            let mut words = format!("{} {}", version.in_force, answers.0);
            if let Some(letter) = &answers.1 {
                words.push_str(&format!("; letter of April 2025: {letter}"));
            }
            if let Some(review) = &answers.2 {
                words.push_str(&format!("; to China: {review}"));
            }
            rows.push(("from", format!("{words} [{}]", version.citation)));
            last = Some(answers);
        }
    }
    rows.push((
        "class on that day",
        format!("{}: {}", export.as_of, export.class),
    ));
    if let Some(exception) = &export.notified_exception {
        rows.push(("exception NAC or ACA", exception.to_string()));
    }
    let notes = export.notes.iter();
    rows.extend(notes.map(|note| ("note", note.clone())));
    rows
}

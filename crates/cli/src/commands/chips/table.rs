//! Chips as a table that fits a terminal of 100 columns.

use crate::lines::{WIDTH, wrapped};
use plan::chip::Chip;
use plan::export::{Classification, Review, Verdict};

use super::facts::shown;
use super::selection::Selection;
use super::{Day, Entry};
use crate::plain::plain;

/// A column: its title and its width; the first is set to the left.
const COLUMNS: [(&str, usize); 14] = [
    ("chip", 11),
    ("bf16", 6),
    ("fp8", 6),
    ("fp4", 6),
    ("GB", 5),
    ("TB/s", 5),
    ("link", 5),
    ("W", 4),
    ("launch", 7),
    ("TPP", 6),
    ("PD", 5),
    ("class", 7),
    ("China", 7),
    ("$/h", 5),
];

pub fn text(selection: &Selection<'_>, day: &Day) -> String {
    let titles = COLUMNS.map(|(title, _)| title.to_string());
    let mut lines = vec![line(&titles)];
    lines.extend(selection.taken.iter().map(|entry| line(&cells(entry))));
    if selection.taken.is_empty() {
        lines.push("no chip is like that".to_string());
    }
    lines.push(String::new());
    let legend = "bf16, fp8, fp4: dense TFLOPS (FP16 where there is no BF16). link: scale-up, GB/s \
                  per direction. TPP, PD: total processing performance, and that per mm2. class: \
                  under 3A090. China: how a licence for China is reviewed; \"letter\": outside \
                  3A090, but needs one by the letter of April 2025. $/h: rent per hour. \"-\": not \
                  published, or does not apply.";
    lines.extend(wrapped(legend, WIDTH));
    lines.extend(wrapped(&left_out(selection), WIDTH));
    lines.extend(wrapped(&day.remark(), WIDTH));
    lines.join("\n") + "\n"
}

/// Which chips are not shown because nobody can say whether they should be; empty if none.
pub fn left_out(selection: &Selection<'_>) -> String {
    match selection.unknown_keys() {
        [] => String::new(),
        keys => format!("Left out for want of data: {}.", plain(&keys.join(", "))),
    }
}

fn line(cells: &[String; 14]) -> String {
    let mut line = String::new();
    for (index, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
        let cell: String = cell.chars().take(width).collect();
        match index {
            0 => line.push_str(&format!("{cell:<width$}")),
            _ => line.push_str(&format!(" {cell:>width$}")),
        }
    }
    line.trim_end().to_string()
}

fn cells(entry: &Entry<'_>) -> [String; 14] {
    let Entry { chip, export } = entry;
    let tera = |rate: Option<plan::quantity::FlopsPerSecond>| shown(rate.map(|rate| rate.0 / 1e12));
    let bandwidth = chip.memory_bandwidth.map(|bandwidth| bandwidth.0 / 1e12);
    [
        plain(&chip.key),
        tera(chip.bf16),
        tera(chip.fp8),
        tera(chip.fp4),
        shown(chip.memory.map(|memory| memory.0 / 1e9)),
        fixed(bandwidth, 2),
        shown(chip.scale_up.map(|bandwidth| bandwidth.0 / 1e9)),
        shown(chip.power.map(|power| power.0)),
        month(chip),
        fixed(export.total_processing_performance, 0),
        fixed(export.performance_density, 2),
        export.class.as_str().to_string(),
        review(chip, export),
        fixed(chip.hourly.map(|rent| rent.mid.hourly()), 2),
    ]
}

/// How a licence for China is reviewed, or why one is needed, in one word.
fn review(chip: &Chip, export: &Classification) -> String {
    let word = match &export.china_review {
        None if chip.prc_origin => "PRC",
        None if export.bandwidth_letter == Some(Verdict::Yes) => "letter",
        None => "-",
        Some(Review::CaseByCase) => "case",
        Some(review) => review.as_str(),
    };
    word.to_string()
}

fn month(chip: &Chip) -> String {
    match chip.launch {
        None => "-".to_string(),
        Some(launch) => launch.to_string().chars().take(7).collect(),
    }
}

/// With this many digits behind the point.
pub fn fixed(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_string(), |value| format!("{value:.digits$}"))
}

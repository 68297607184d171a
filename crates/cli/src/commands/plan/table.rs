//! A plan on one screen of 100 columns.

use plan::interval::Interval;
use plan::stages::WholeRun;
use plan::training::{Alternative, Plan};

use super::answer::Answer;
use super::words;
use crate::lines::{WIDTH, wrapped};
use crate::numbers::{amount, counted, grouped, short, spanned};
use crate::plain::plain;

/// The longest bar of a share.
const BAR: f64 = 14.0;
/// Other layouts that are shown.
const OTHERS: usize = 4;
/// Columns of the left one of two tables side by side.
const LEFT: usize = 54;

pub fn text(answer: &Answer) -> String {
    let plan = &answer.plan;
    let mut lines = head(answer);
    lines.push(String::new());
    lines.extend(side_by_side(&step(plan), &memory(answer)));
    lines.push(String::new());
    for line in words::results(plan) {
        lines.push(format!("{:<19} {}", line.name, line.value));
    }
    lines.push(String::new());
    lines.extend(answer.run.as_ref().map_or_else(Vec::new, stages));
    lines.extend(others(plan));
    let taken = format!("Taken: {}.", plain(&answer.assumptions.join("; ")));
    lines.extend(wrapped(&taken, WIDTH));
    lines.join("\n") + "\n"
}

fn head(answer: &Answer) -> Vec<String> {
    let plan = &answer.plan;
    let title = format!(
        "{} on {} x {}: {} tokens in {}",
        plain(&plan.model),
        grouped(plan.chips as f64),
        plan.chip,
        counted(plan.tokens),
        plan.precision.name(),
    );
    let tokens = (plan.batch_seqs * plan.seq_len) as f64;
    let rows = [
        ("model", words::size(plan)),
        (
            "operations",
            format!(
                "{} per token, {:.3e} in all",
                words::flops(plan.flops_per_token),
                plan.flops_total
            ),
        ),
        (
            "batch",
            format!(
                "{} sequences of {}: {} tokens; {} steps",
                grouped(plan.batch_seqs as f64),
                plan.seq_len,
                counted(tokens),
                grouped(plan.campaign.steps),
            ),
        ),
        ("layout", words::layout(plan)),
        ("export class", answer.export_words()),
    ];
    let mut lines = vec![title];
    for (name, value) in rows {
        lines.extend(hanging(name, &value));
    }
    lines
}

/// A name in the margin, and beside it what is wrapped.
fn hanging(name: &str, value: &str) -> Vec<String> {
    let value = wrapped(value, WIDTH - 13);
    let line = |(index, line): (usize, &String)| match index {
        0 => format!("{name:<12} {line}"),
        _ => format!("{:<12} {line}", ""),
    };
    value.iter().enumerate().map(line).collect()
}

fn step(plan: &Plan) -> Vec<String> {
    let seconds = plan.step_seconds.mid;
    let mut lines = vec![format!("{:<17} {:>9} {:>7}", "a step", "seconds", "share")];
    for &(name, part) in plan.step_parts.iter().filter(|(_, part)| *part > 0.0) {
        let share = part / seconds;
        let bar = "#".repeat((share * BAR).round() as usize);
        let row = format!(
            "{name:<17} {:>9} {:>5.1} % {bar}",
            short(part),
            100.0 * share
        );
        lines.push(row.trim_end().to_string());
    }
    lines.push(format!("{:<17} {:>9}", "together", short(seconds)));
    lines
}

fn memory(answer: &Answer) -> Vec<String> {
    let plan = &answer.plan;
    let mut lines = vec![format!("{:<17} {:>7}", "the fullest chip", "GB")];
    for &(name, bytes) in &plan.memory_parts {
        let bar = "#".repeat((bytes / plan.memory_usable_bytes * BAR).round().min(99.0) as usize);
        let bar: String = bar.chars().take(BAR as usize).collect();
        let row = format!("{name:<17} {:>7} {bar}", words::gigabytes(bytes));
        lines.push(row.trim_end().to_string());
    }
    lines.push(format!(
        "{:<17} {:>7}",
        "together",
        words::gigabytes(plan.memory_bytes_per_chip)
    ));
    let usable = words::gigabytes(plan.memory_usable_bytes);
    let memory = answer.chip().memory.map_or(0.0, |memory| memory.0);
    let row = format!("{:<17} {usable:>7} of {:.0}", "can be used", memory / 1e9);
    lines.push(row);
    if !plan.fits {
        lines.push("IT DOES NOT FIT".to_string());
    }
    lines
}

fn side_by_side(left: &[String], right: &[String]) -> Vec<String> {
    let rows = left.len().max(right.len());
    let cell = |lines: &[String], row: usize| lines.get(row).cloned().unwrap_or_default();
    let line = |row| format!("{:<LEFT$} {}", cell(left, row), cell(right, row));
    let rows = (0..rows).map(line);
    rows.map(|line| line.trim_end().to_string()).collect()
}

/// Further stages, and all together.
fn stages(run: &WholeRun) -> Vec<String> {
    let line = |name: &str, tokens: &str, seq_len: &str, numbers: [String; 3]| {
        let [hours, days, cost] = numbers;
        let line = format!("{name:<10} {tokens:>9} {seq_len:>8}   {hours:<27} {days:<22} {cost}");
        line.trim_end().to_string()
    };
    let cost = |cost: &Option<Interval<f64>>| match cost {
        None => "no price".to_string(),
        Some(cost) => words::dollars(cost.mid),
    };
    let numbers = |hours: &Interval<f64>, days: &Interval<f64>, usd: &Option<Interval<f64>>| {
        [
            spanned(hours, "", amount),
            spanned(days, "", short),
            cost(usd),
        ]
    };
    let heading = ["chip-hours", "days", "cost"].map(str::to_string);
    let mut lines = vec![line("stage", "tokens", "length", heading)];
    for stage in &run.stages {
        let numbers = numbers(&stage.chip_hours, &stage.days, &stage.cost_usd);
        let (tokens, length) = (counted(stage.tokens), grouped(stage.seq_len as f64));
        lines.push(line(stage.name, &tokens, &length, numbers));
    }
    let all = numbers(&run.chip_hours, &run.days, &run.cost_usd);
    lines.push(line("together", "", "", all));
    lines.push(String::new());
    lines
}

fn others(plan: &Plan) -> Vec<String> {
    if plan.alternatives.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("{:>8} {:>6}  next best layouts", "step s", "GB")];
    let line = |other: &Alternative| {
        format!(
            "{:>8} {:>6}  {}",
            short(other.step_seconds),
            words::gigabytes(other.memory_bytes_per_chip),
            words::short_layout(&other.layout)
        )
    };
    lines.extend(plan.alternatives.iter().take(OTHERS).map(line));
    lines.push(String::new());
    lines
}

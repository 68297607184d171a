//! Words and numbers that the table, the page and the explanations share.

use plan::interval::Interval;
use plan::training::{Plan, Request};

use crate::numbers::{amount, grouped, short, spanned};

/// One result with its interval.
pub struct Line {
    pub name: &'static str,
    pub value: String,
}

/// What follows from the time of a step, each "mid (low to high)".
pub fn results(plan: &Plan) -> Vec<Line> {
    let run = &plan.campaign;
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let line = |name, value| Line { name, value };
    let unknown = |what: Option<String>, why: &str| what.unwrap_or_else(|| why.to_string());
    let energy = run.energy_mwh;
    let energy = energy.map(|energy| spanned(&energy, " MWh", short));
    let cost = run.cost_usd.map(|cost| spanned(&cost, "", dollars));
    let rate = &plan.tokens_per_second_per_chip;
    let between = &run.hours_between_failures;
    let save = run.checkpoint_seconds.map(|seconds| seconds / 60.0);
    vec![
        line("step", spanned(&plan.step_seconds, " s", short)),
        line("tokens/s per chip", spanned(rate, "", short)),
        line("MFU of 16-bit peak", spanned(&plan.mfu, " %", percent)),
        line("goodput", spanned(&run.goodput, " %", percent)),
        line("between failures", spanned(between, " h", short)),
        line("save every", spanned(&save, " min", short)),
        line("days", spanned(&run.days, "", short)),
        line("chip-hours", spanned(&run.chip_hours, "", amount)),
        line("energy", unknown(energy, "the chip's power is not known")),
        line("cost", unknown(cost, "no price is known; give --price")),
    ]
}

pub fn dollars(usd: f64) -> String {
    format!("${}", amount(usd))
}

/// Bytes in GB, which in a small model are few.
pub fn gigabytes(bytes: f64) -> String {
    match bytes / 1e9 {
        large if large >= 1.0 => format!("{large:.1}"),
        small => short(small),
    }
}

/// Operations with a unit, such as 250.46 GFLOP.
pub fn flops(flops: f64) -> String {
    for (unit, size) in [("T", 1e12), ("G", 1e9), ("M", 1e6)] {
        if flops >= size {
            return format!("{:.2} {unit}FLOP", flops / size);
        }
    }
    format!("{flops:.0} FLOP")
}

/// A layout without the fields that say "not at all"; `--layout` takes it as it is.
pub fn short_layout(layout: &str) -> String {
    let said = |item: &&str| !matches!(*item, "cp=1" | "ep=1" | "chunks=1");
    let items: Vec<&str> = layout.split(',').filter(said).collect();
    items.join(",")
}

/// What a chip-hour is taken to cost, and who says so.
pub fn price(request: &Request) -> String {
    let hourly = |price: Interval<plan::quantity::DollarsPerChipSecond>| {
        spanned(&price.map(|price| price.hourly()), "", |usd| {
            format!("${usd:.2}")
        })
    };
    match (request.price, request.chip.hourly) {
        (Some(price), _) => format!("{} per chip-hour, as given", hourly(price)),
        (None, Some(price)) => format!(
            "{} per chip-hour, {} (--price)",
            hourly(price),
            request.chip.hourly_source
        ),
        (None, None) => "no price (--price)".to_string(),
    }
}

/// Parameters and operations, in one line.
pub fn size(plan: &Plan) -> String {
    let billions = |count: u64| match count {
        0..10_000_000 => grouped(count as f64),
        count => format!("{:.2} B", count as f64 / 1e9),
    };
    let mtp = match plan.parameters.multi_token_prediction {
        0 => String::new(),
        more => format!(", {} more for multi-token prediction", billions(more)),
    };
    format!(
        "{} parameters, {} active per token{mtp}",
        billions(plan.parameters_total),
        billions(plan.parameters_active),
    )
}

/// The layout and where it comes from.
pub fn layout(plan: &Plan) -> String {
    let found = match plan.layout_searched {
        true => "the fastest that fits",
        false => "as given",
    };
    format!(
        "{} ({found}; dp={}, {} micro-batches)",
        short_layout(&plan.layout.to_string()),
        plan.dp,
        plan.micro_batches
    )
}

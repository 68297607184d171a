//! What a claim about a run implies: every part that it leaves out and that can be solved for.

use super::known::Known;
use super::published::{Precedents, facts};
use super::words::{dollars, percent, range, short};
use super::{Line, Value};
use crate::campaign::{Failures, POWER_SHARE};
use crate::interval::Interval;
use crate::quantity::{ChipSeconds, Chips, DollarsPerChipSecond, Joules, Seconds, Tokens, Watts};

pub fn number(
    name: &'static str,
    value: Interval<f64>,
    unit: &'static str,
    how: String,
    source: &str,
) -> Line {
    Line {
        name,
        value: Value::Number(value),
        unit,
        how,
        source: source.to_string(),
    }
}

pub fn exact(name: &'static str, value: f64, unit: &'static str, how: String) -> Line {
    number(name, Interval::exact(value), unit, how, "")
}

pub fn lines(known: &Known) -> Vec<Line> {
    let mut lines: Vec<Line> = [operations(known), share(known)]
        .into_iter()
        .flatten()
        .collect();
    match known.run {
        Some(run) => lines.extend(of_time(known, run)),
        None => lines.extend(of_band(known)),
    }
    lines.extend(tokens(known));
    lines.extend(cost(known));
    lines
}

fn operations(known: &Known) -> Option<Line> {
    let (per_token, tokens) = (known.per_token()?, known.tokens()?);
    let giga = per_token.causal.0 / 1e9;
    let how = format!(
        "{giga:.2} GFLOP a token x {} tokens (causal{})",
        short(tokens.0),
        match per_token.with_mtp.0 > per_token.causal.0 {
            true => format!("; {:.2} with MTP", per_token.with_mtp.0 / 1e9),
            false => String::new(),
        }
    );
    let operations = Interval::exact((per_token.causal * tokens).0);
    let source = "three forward passes over the model's own matrices and attention";
    Some(number("operations", operations, "FLOP", how, source))
}

fn share(known: &Known) -> Option<Line> {
    let (share, per_token, tokens) = (known.share()?, known.per_token()?, known.tokens()?);
    let peak = known.peak()?.0 / 1e12;
    let mut how = format!(
        "of {} TFLOPS x {} chip-hours; {} with all of attention",
        short(peak),
        short(known.run?.hours()),
        percent(known.share_of(per_token.non_causal * tokens)?),
    );
    if per_token.with_mtp.0 > per_token.causal.0 {
        let with_mtp = percent(known.share_of(per_token.with_mtp * tokens)?);
        how = format!("{how}, {with_mtp} with MTP");
    }
    Some(exact("share of 16-bit peak", 100.0 * share, "%", how))
}

/// What follows from chip-hours that are known.
fn of_time(known: &Known, run: ChipSeconds) -> Vec<Line> {
    let mut lines = Vec::new();
    let chips = known.chips.map(|chips| chips.mid);
    if let (Some(chips), Some(time)) = (chips, known.time) {
        let stage = known.claim.stages.first();
        let stage = stage.map_or(String::new(), |stage| format!("{}: ", stage.name));
        let hours = short(run.hours());
        let how = format!("{stage}{hours} chip-hours / {} / 24", short(chips));
        lines.push(exact("time", time.days(), "days", how));
        if known.kinds.iter().any(|kind| kind.count.is_none()) {
            let how = format!(
                "{} chip-hours / {} days / 24",
                short(run.hours()),
                short(time.days())
            );
            lines.push(exact("chips", chips, "chips", how));
        }
    }
    if let Some(tokens) = known.tokens() {
        let hours = run.hours() / (tokens.0 / 1e12);
        let how = format!("{} / {}", short(run.hours()), short(tokens.0));
        lines.push(exact("chip-hours per T tokens", hours, "hours", how));
        if let Some(time) = known.time {
            let how = format!("{} / {} days", short(tokens.0), short(time.days()));
            lines.push(exact("tokens a day", tokens.0 / time.days(), "tokens", how));
        }
    }
    lines
}

/// The time that is missing, from what runs of the kind have reached.
fn of_band(known: &Known) -> Vec<Line> {
    let mut lines = Vec::new();
    if known.claim.yardstick.is_some() || known.work().is_none() {
        return lines;
    }
    let precedents = precedents(known);
    let shares = precedents.shares();
    let Some(needed) = shares_to_hours(known, shares) else {
        return lines;
    };
    let band = Interval {
        low: shares.low,
        mid: shares.mid,
        high: shares.high,
    };
    let reached = format!("at {} to {} of peak", percent(band.low), percent(band.high));
    let source = &precedents.best().source;
    lines.push(number(
        "chip-hours",
        needed,
        "hours",
        reached.clone(),
        source,
    ));
    if let Some(chips) = known.chips {
        let days = needed.map(|hours| hours / chips.mid / 24.0);
        let how = format!("these / {} / 24, {reached}", short(chips.mid));
        lines.push(number("time", days, "days", how, source));
    } else if let Some(time) = known.time {
        let chips = needed.map(|hours| hours / time.hours());
        let how = format!("these / {} days / 24, {reached}", short(time.days()));
        lines.push(number("chips", chips, "chips", how, source));
    }
    if let Some(price) = price(known) {
        let cost = needed * price.map(DollarsPerChipSecond::hourly);
        let how = format!(
            "these x ${} an hour",
            range(&price.map(DollarsPerChipSecond::hourly))
        );
        lines.push(number("cost", cost, "USD", how, price_source(known)));
    }
    lines
}

/// Chip-hours at the shares of a band.
fn shares_to_hours(known: &Known, shares: Interval<f64>) -> Option<Interval<f64>> {
    known.needed(1.0)?;
    Some(shares.map(|share| known.needed(share).map_or(0.0, ChipSeconds::hours)))
}

pub fn precedents(known: &Known) -> Precedents {
    Precedents::of(
        known.is_mixture(),
        known.narrowest(),
        known.chips.map(|chips| chips.mid),
        known.newest(),
        |row| known.is_own(row),
    )
}

/// The tokens that are missing, or without a model the operations.
fn tokens(known: &Known) -> Option<Line> {
    let (run, peak) = (known.run?, known.peak()?);
    let shares = precedents(known).shares();
    let possible = shares.map(|share| (peak * share * Seconds(run.0)).0);
    let how = format!(
        "{} chip-hours x {} TFLOPS x {} to {}",
        short(run.hours()),
        short(peak.0 / 1e12),
        percent(shares.low),
        percent(shares.high)
    );
    if !known.claim.stages.is_empty() || known.tokens().is_some() {
        return None;
    }
    match known.per_token() {
        None => Some(number("operations", possible, "FLOP", how, "")),
        Some(per_token) => {
            let tokens: Interval<f64> = possible.map(|flops| flops / per_token.causal.0);
            let giga = per_token.causal.0 / 1e9;
            let how = format!("{how} / {} GFLOP", short(giga));
            Some(number("tokens", tokens, "tokens", how, ""))
        }
    }
}

/// The claimed price of a chip-hour, or what is asked for such a chip.
fn price(known: &Known) -> Option<Interval<DollarsPerChipSecond>> {
    let stated = known.price.map(Interval::exact);
    let [kind] = known.kinds.as_slice() else {
        return stated;
    };
    stated.or(kind.chip.hourly)
}

fn price_source<'a>(known: &Known<'a>) -> &'a str {
    match (known.price, known.kinds.first()) {
        (None, Some(kind)) => &kind.chip.hourly_source,
        _ => "",
    }
}

fn cost(known: &Known) -> Vec<Line> {
    let mut lines = Vec::new();
    let Some(all) = known.all else {
        return lines;
    };
    if let Some(watts) = known.mean(|chip| chip.power.map(|power| power.0)) {
        let energy = POWER_SHARE.map(|over| {
            let joules: Joules = Watts(watts * over) * Seconds(all.0);
            joules.megawatt_hours()
        });
        let how = format!(
            "{} chip-hours x {} W x {}",
            short(all.hours()),
            short(watts),
            range(&POWER_SHARE)
        );
        let source = "Olmo 3 and BLOOM, at the wall without cooling (arXiv 2211.02001)";
        lines.push(number("energy", energy, "MWh", how, source));
    }
    if let Some(price) = price(known) {
        let hourly = price.map(DollarsPerChipSecond::hourly);
        let cost = hourly.map(|hourly| hourly * all.hours());
        let how = format!("{} chip-hours x ${}", short(all.hours()), range(&hourly));
        lines.push(number(
            "cost, final run",
            cost,
            "USD",
            how,
            price_source(known),
        ));
        let over = &facts().programme_over_run;
        let programme = over.bounds() * cost;
        let how = format!(
            "x {}: trials and research, as at Ai2",
            range(&over.bounds())
        );
        lines.push(number(
            "cost, programme",
            programme,
            "USD",
            how,
            &over.source,
        ));
    } else if let (Some(dollars_all), None) = (known.dollars, known.price) {
        let how = format!("stated: {}", dollars(dollars_all.0));
        lines.push(exact("cost, final run", dollars_all.0, "USD", how));
    }
    lines
}

/// Interruptions of the run at Meta's rate, and the share of its time that they take.
pub fn interruptions(known: &Known) -> Option<(f64, Interval<f64>)> {
    let (chips, time) = (known.chips?.mid, known.time?);
    let failures = Failures::of_about(chips);
    let lost = failures.at_usual_rate.map(|goodput| 1.0 - goodput);
    Some((time / failures.between.mid, lost))
}

/// Chip-hours that a published step needs for all tokens.
pub fn by_step(known: &Known) -> Option<ChipSeconds> {
    let (step, tokens) = (known.claim.step?, known.tokens()?);
    let steps: f64 = tokens / Tokens(step.tokens);
    Some(Chips(known.chips?.mid) * Seconds(steps * step.seconds))
}

//! Chips without a time: what they amount to, what they could train, and whether the money, the
//! power and their number go together.

use super::claim::shipped;
use super::implied::{exact, number};
use super::known::Known;
use super::published::{facts, share_of};
use super::words::{dollars, percent, range, short};
use super::{Check, Line, Value, Verdict};
use crate::chip::Chip;
use crate::interval::Interval;

/// Shares of the 16-bit peak for which days are shown.
const SHARES: [f64; 4] = [1.0, 0.55, 0.4, 0.2];

pub fn lines(known: &Known) -> Vec<Line> {
    if known.run.is_some() || (known.claim.capital.is_none() && known.kinds.len() < 2) {
        return Vec::new();
    }
    let mut lines: Vec<Line> = [bought(known), power(known), peak(known)]
        .into_iter()
        .flatten()
        .collect();
    lines.extend(processing(known));
    lines.extend(bandwidth(known));
    lines.extend(days(known));
    lines.extend(yardstick(known));
    lines.extend(shares_of_sum(known));
    lines
}

/// Chips that the sum buys, or what each of those claimed costs.
fn bought(known: &Known) -> Option<Line> {
    let (capital, chips) = (known.claim.capital?, known.chips?);
    if known.kinds.iter().all(|kind| kind.count.is_some()) {
        let how = format!("{} / {} chips", dollars(capital), short(chips.mid));
        return Some(exact("capital a chip", capital / chips.mid, "USD", how));
    }
    let fact = &facts().usd_per_chip_in_place;
    let how = format!(
        "{} / ${} a {} in place",
        dollars(capital),
        range(&fact.bounds()),
        known.fleet()
    );
    Some(number("chips", chips, "chips", how, &fact.source))
}

fn power(known: &Known) -> Option<Line> {
    let capital = known.claim.capital?;
    // Servers without a building have no price by the gigawatt.
    if known.kinds.iter().any(|kind| kind.count.is_some()) {
        return None;
    }
    let fact = &facts().usd_per_gigawatt;
    let gigawatts = fact.bounds().map(|each| capital / each);
    let each = fact.bounds().map(|each| each / 1e9);
    let how = format!("{} / ${} B a gigawatt", dollars(capital), range(&each));
    Some(number("power", gigawatts, "GW", how, &fact.source))
}

fn peak(known: &Known) -> Option<Line> {
    let (peak, chips) = (known.peak()?, known.chips?);
    let all = chips.map(|chips| chips * peak.0 / 1e18);
    let how = format!(
        "{} chips x {} TFLOPS (mean)",
        range(&chips),
        short(peak.0 / 1e12)
    );
    Some(number("16-bit peak of all", all, "EFLOPS", how, ""))
}

/// Total processing performance in the sense of export rules: bits times dense rate, the largest
/// of all formats (88 FR 73458).
fn processing(known: &Known) -> Option<Line> {
    let tpp = |chip: &Chip| {
        let rates = [
            (16.0, chip.bf16),
            (8.0, chip.fp8),
            (8.0, chip.int8),
            (4.0, chip.fp4),
        ];
        let rates = rates
            .into_iter()
            .filter_map(|(bits, rate)| Some(bits * rate?.0 / 1e12));
        rates.reduce(f64::max)
    };
    let all = known.mean(tpp)? * known.chips?.mid / 1e6;
    let how = "bits x dense TOPS, the largest of all formats, over all chips".to_string();
    (known.kinds.len() > 1).then(|| exact("processing performance", all, "M TPP", how))
}

/// Bandwidth of memory, which answering needs as training needs operations, and the kind that has
/// most of it.
fn bandwidth(known: &Known) -> Option<Line> {
    let all = known.bandwidth()?;
    let peak = known.peak()?.0 * known.chips?.mid;
    let most = known.kinds.iter().filter_map(|kind| {
        let count = kind.count?;
        Some((
            count * kind.chip.memory_bandwidth?.0,
            count * kind.chip.bf16?.0,
            kind,
        ))
    });
    let (bytes, operations, kind) = most.max_by(|a, b| a.0.total_cmp(&b.0))?;
    let how = format!(
        "{} have {} of it and {} of the operations: to answer, not to train",
        kind.chip.key.to_uppercase(),
        percent(bytes / all.0),
        percent(operations / peak)
    );
    (known.kinds.len() > 1).then(|| exact("memory bandwidth", all.0 / 1e15, "PB/s", how))
}

/// Days for the work of `tokens` at some shares of the peak.
fn days(known: &Known) -> Option<Line> {
    let chips = known.chips?.mid;
    let days = |share: f64| Some(known.needed(share)?.hours() / chips / 24.0);
    let days = SHARES.map(days).into_iter().collect::<Option<Vec<f64>>>()?;
    // Buildings do such a run in minutes, which the next line says better.
    let worth = days[0] >= 0.1;
    let days: Vec<String> = days.iter().map(|days| format!("{days:.1}")).collect();
    let shares = SHARES.map(|share| short(100.0 * share)).join(", ");
    worth.then(|| Line {
        name: "days for one such run",
        value: Value::Words(days.join(", ")),
        unit: "",
        how: format!("at {shares} % of the 16-bit peak of all"),
        source: String::new(),
    })
}

/// The same at the share that a published run reached.
fn yardstick(known: &Known) -> Option<Line> {
    let row = share_of(known.claim.yardstick.as_deref()?)?;
    let hours = known.needed(row.share)?.hours();
    let days = known.chips?.map(|chips| hours / chips / 24.0);
    let how = format!("at {} of peak, as {} ran", percent(row.share), row.title);
    if days.high >= 1.0 {
        return Some(number("days, at least", days, "days", how, &row.source));
    }
    let runs = days.map(|days| 1.0 / days);
    Some(number(
        "such runs a day at most",
        runs,
        "",
        how,
        &row.source,
    ))
}

/// What the run of a shipped claim on the same model costs, beside the sum.
fn shares_of_sum(known: &Known) -> Option<Line> {
    let capital = known.claim.capital?;
    let of_model = |claim: &&super::Claim| claim.model == known.claim.model && claim.step.is_some();
    let run = shipped().iter().find(of_model)?;
    let cost = run.dollars.filter(|_| known.claim.model.is_some())?;
    let how = format!(
        "{} of {}: 1 part in {} (rent of one run; a sum spent for years)",
        dollars(cost),
        dollars(capital),
        short(capital / cost)
    );
    Some(exact(
        "final run's cost in it",
        100.0 * cost / capital,
        "%",
        how,
    ))
}

pub fn checks(known: &Known) -> Vec<Check> {
    let checks = [price(known), by_power(known), fed(known), built(known)];
    checks.into_iter().flatten().collect()
}

/// Whether so many chips cost so much.
fn price(known: &Known) -> Option<Check> {
    let capital = known.claim.capital?;
    // Of kinds without a price nothing is known; the others stand for them.
    let (mut sum, mut chips, mut all) = (0.0, 0.0, 0.0);
    for kind in &known.kinds {
        let count = kind.count?;
        all += count;
        if let Some(price) = kind.chip.price {
            sum += count * price.0;
            chips += count;
        }
    }
    if chips == 0.0 {
        return None;
    }
    let (each, paid) = (sum / chips, capital / all);
    let bounds = facts().capital_over_chips.bounds();
    let (low, high) = (each * bounds.low, each * bounds.high);
    let verdict = within(paid, low, high);
    let reason = format!(
        "{} a chip, where their prices at release ({} on average, of those that have one) make \
         {} to {} with servers and buildings",
        dollars(paid),
        dollars(each),
        dollars(low),
        dollars(high)
    );
    Some(Check {
        verdict,
        question: "Do chips and capital go together?",
        reason,
        decides: true,
    })
}

/// Whether so many gigawatts cost so much.
fn by_power(known: &Known) -> Option<Check> {
    let (capital, gigawatts) = (known.claim.capital?, known.claim.gigawatts?);
    let bounds = facts().usd_per_gigawatt.bounds();
    let each = capital / gigawatts;
    let reason = format!(
        "{} a gigawatt, where {} to {} have been published",
        dollars(each),
        dollars(bounds.low),
        dollars(bounds.high)
    );
    let verdict = within(each, bounds.low, bounds.high);
    Some(Check {
        verdict,
        question: "Do power and capital go together?",
        reason,
        decides: true,
    })
}

/// Whether anyone has built so much.
fn built(known: &Known) -> Option<Check> {
    let gigawatts = known.claim.gigawatts?;
    let bounds = facts().gigawatts_built.bounds();
    let verdict = if gigawatts <= bounds.low {
        Verdict::Typical
    } else if gigawatts <= bounds.high {
        Verdict::Plausible
    } else {
        Verdict::Implausible
    };
    let reason = format!(
        "{} GW, {} times the largest site with published chips ({} GW); all data centres of North \
         America had {} GW at the end of 2024",
        short(gigawatts),
        short((gigawatts / bounds.low * 10.0).round() / 10.0),
        short(bounds.low),
        short(bounds.high)
    );
    Some(Check {
        verdict,
        question: "Has anyone built so much?",
        reason,
        decides: false,
    })
}

/// Typical between what has been published, plausible up to twice beyond.
pub fn within(value: f64, low: f64, high: f64) -> Verdict {
    if (low..=high).contains(&value) {
        Verdict::Typical
    } else if (low / 2.0..=2.0 * high).contains(&value) {
        Verdict::Plausible
    } else {
        Verdict::Implausible
    }
}

/// Whether the power feeds the chips.
fn fed(known: &Known) -> Option<Check> {
    let (gigawatts, chips) = (known.claim.gigawatts?, known.chips?);
    let sheet = known.mean(|chip| chip.power.map(|power| power.0))?;
    let each = chips.map(|chips| Interval::exact(gigawatts * 1e9 / chips).mid);
    let verdict = if each.high < sheet {
        Verdict::Impossible
    } else if each.mid < sheet {
        Verdict::Implausible
    } else if each.low < sheet {
        Verdict::Plausible
    } else {
        Verdict::Typical
    };
    let reason = format!(
        "{} GW are {} W for each of {} chips, which take {} W before all else",
        short(gigawatts),
        range(&each),
        range(&chips),
        short(sheet)
    );
    Some(Check {
        verdict,
        question: "Does the power feed the chips?",
        reason,
        decides: false,
    })
}

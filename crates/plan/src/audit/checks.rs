//! The questions that a claim about a run is asked.

use super::estate::within;
use super::implied::{by_step, interruptions, precedents};
use super::known::Known;
use super::published::Precedents;
use super::words::{dollars, percent, range, short};
use super::{Check, Verdict};
use crate::chip;
use crate::memory::USABLE;
use crate::quantity::{Bytes, DollarsPerChipSecond, Seconds};

/// Bytes of a parameter while Adam trains it in 16 bits: weight, gradient, master, two moments.
const STATE_BYTES: f64 = 16.0;

pub fn checks(known: &Known) -> Vec<Check> {
    let checks = [
        physics(known),
        utilisation(known),
        own_step(known),
        memory(known),
        failures(known),
        price(known),
        agreement(known),
    ];
    checks.into_iter().flatten().collect()
}

/// More operations than the chips can do at their fastest?
fn physics(known: &Known) -> Option<Check> {
    let (work, run, fastest) = (known.work()?, known.run?, known.fastest()?);
    let share = work / (fastest * Seconds(run.0));
    let format = known.narrowest().name();
    let verdict = if share > 1.0 {
        Verdict::Impossible
    } else {
        Verdict::Typical
    };
    let reason = format!(
        "its operations are {} of what the chips can do in {format}",
        percent(share)
    );
    Some(Check {
        verdict,
        question: "Can the chips do it at all?",
        reason,
        decides: true,
    })
}

/// A larger share of the peak than others reached?
fn utilisation(known: &Known) -> Option<Check> {
    let share = known.share()?;
    let precedents = precedents(known);
    let best = precedents.best();
    let verdict = if share <= precedents.typical() && precedents.at_scale {
        Verdict::Typical
    } else if share <= best.share {
        Verdict::Plausible
    } else {
        Verdict::Implausible
    };
    let held = match (known.chips, known.time, known.run) {
        (Some(_), Some(time), _) => format!("{} in {} days", known.fleet(), short(time.days())),
        (_, _, Some(run)) => format!("{} hours of {}", short(run.hours()), known.fleet()),
        _ => known.fleet(),
    };
    let mut reason = format!(
        "{held} must reach {} of their 16-bit peak; {}: half of {} campaigns reached {}, the best \
         step {} ({})",
        percent(share),
        precedents.which,
        precedents.campaigns(),
        percent(precedents.typical()),
        percent(best.share),
        best.title
    );
    if let Some(row) = precedents.same_chips(known) {
        reason = format!(
            "{reason}; nearest step: {} on {} chips, {}",
            row.title,
            row.chips
                .map_or("?".to_string(), |chips| short(chips as f64)),
            percent(row.share)
        );
    }
    if share < precedents.lowest() / 4.0 {
        reason = format!("{reason}; so low that the chips did something else most of the time");
    }
    Some(Check {
        verdict,
        question: "Has anyone done as well?",
        reason,
        decides: true,
    })
}

/// Do the hours agree with the step that was published of the run?
fn own_step(known: &Known) -> Option<Check> {
    let (step, needed, run) = (known.claim.step?, by_step(known)?, known.run?);
    let over = run / needed - 1.0;
    let (verdict, finding) = if over < -0.02 {
        (Verdict::Implausible, "less than the step needs")
    } else if over < 0.02 {
        (Verdict::Plausible, "lost hours are none, or not in the sum")
    } else {
        (Verdict::Typical, "the rest is for restarts and tests")
    };
    let reason = format!(
        "{} s for {} tokens make {} chip-hours, {} stated ({:+.1} %); {finding}",
        short(step.seconds),
        short(step.tokens),
        short(needed.hours()),
        short(run.hours()),
        100.0 * over
    );
    Some(Check {
        verdict,
        question: "Does its own step agree?",
        reason,
        decides: false,
    })
}

/// Do weights, gradients and optimizer fit all chips together?
fn memory(known: &Known) -> Option<Check> {
    let (shape, memory) = (known.shape?, known.memory()?);
    // An estate is no run, and holds any model.
    if known.run.is_none() && known.claim.capital.is_some() {
        return None;
    }
    let parameters = shape.parameters();
    let parameters = (parameters.total() + parameters.multi_token_prediction) as f64;
    let narrowest = known.narrowest().bytes();
    let (weights, state) = (
        Bytes(parameters * narrowest),
        Bytes(parameters * STATE_BYTES),
    );
    let verdict = if weights > memory {
        Verdict::Impossible
    } else if state > memory * USABLE {
        Verdict::Implausible
    } else {
        Verdict::Typical
    };
    let reason = match verdict {
        Verdict::Impossible => format!(
            "its weights alone take {} GB, all chips together have {} GB",
            short(weights.0 / 1e9),
            short(memory.0 / 1e9)
        ),
        _ => format!(
            "weights, gradients and Adam take {} of {} TB ({})",
            short(state.0 / 1e12),
            short(memory.0 / 1e12),
            percent(state / memory)
        ),
    };
    Some(Check {
        verdict,
        question: "Does the model fit?",
        reason,
        decides: false,
    })
}

/// Do the days leave room for machines that fail?
fn failures(known: &Known) -> Option<Check> {
    let (count, lost) = interruptions(known)?;
    let reason = format!(
        "{} interruptions at Meta's rate; saving and starting again take {} to {} of the time",
        short(count.round()),
        percent(lost.low),
        percent(lost.high)
    );
    let question = "Is there room for failures?";
    let Some(share) = known.share() else {
        return Some(Check {
            verdict: Verdict::Typical,
            question,
            reason,
            decides: false,
        });
    };
    let best = precedents(known).best().share;
    let between = |lost: f64| share / (1.0 - lost).max(1e-9);
    let verdict = if between(lost.low) > best {
        Verdict::Implausible
    } else if between(lost.high) > best {
        Verdict::Plausible
    } else {
        Verdict::Typical
    };
    let reason = match lost.mid < 1.0 {
        true => format!("{reason}: {} between them", percent(between(lost.mid))),
        false => format!("{reason}: nothing is left between them"),
    };
    Some(Check {
        verdict,
        question,
        reason,
        decides: false,
    })
}

/// Is the price one that is asked?
fn price(known: &Known) -> Option<Check> {
    let price = known.price?.hourly();
    let alike = known.claim.rent_like.as_deref();
    let chip = match (alike, known.kinds.as_slice()) {
        (Some(name), _) => chip::find(name).ok()?,
        (None, [only]) => only.chip,
        _ => return None,
    };
    let rent = chip.hourly?.map(DollarsPerChipSecond::hourly);
    let verdict = within(price, rent.low, rent.high);
    let key = chip.key.to_uppercase();
    let reason = match known.all {
        Some(all) => format!(
            "{} an hour; {key} are let for ${}, at which it would cost ${}",
            dollars(price),
            range(&rent),
            range(&rent.map(|rent| rent * all.hours()))
        ),
        None => format!(
            "{} an hour; {key} are let for ${}",
            dollars(price),
            range(&rent)
        ),
    };
    Some(Check {
        verdict,
        question: "Is the price one that is paid?",
        reason,
        decides: false,
    })
}

/// What can be reckoned from each other agrees; else there would be no audit.
fn agreement(known: &Known) -> Option<Check> {
    let reason = known.agreements.join("; ");
    let question = "Do its parts agree?";
    let check = Check {
        verdict: Verdict::Typical,
        question,
        reason,
        decides: false,
    };
    (!known.agreements.is_empty()).then_some(check)
}

/// What would settle a claim that says too little.
pub fn missing(known: &Known) -> Check {
    let claim = known.claim;
    let mut wanted = Vec::new();
    if claim.capital.is_some() {
        wanted.push("the number of chips, or the power (gigawatts)");
    } else {
        if known.shape.is_none() {
            wanted.push("the model");
        }
        if claim.tokens.is_none() {
            wanted.push("the tokens");
        }
        if known.kinds.is_empty() {
            wanted.push("the chips");
        }
        if known.run.is_none() {
            let number = known.kinds.iter().any(|kind| kind.count.is_none());
            wanted.push(match (number, known.time) {
                (true, Some(_)) => "their number",
                (true, None) => "the chip-hours",
                _ => "the days or the chip-hours",
            });
        }
    }
    Check {
        verdict: Verdict::NotEnough,
        question: "Is enough said?",
        reason: format!("what would settle it: {}", wanted.join(", ")),
        decides: true,
    }
}

impl Precedents {
    /// The published step of the claimed number of chips or nearest to it.
    fn same_chips(&self, known: &Known) -> Option<&'static super::Published> {
        let chips = known.chips?.mid;
        let distance = |count: u64| (count as f64 / chips).ln().abs();
        let rows = self.steps().filter(|row| row.chips.is_some());
        rows.min_by(|a, b| {
            let [a, b] = [a, b].map(|row| row.chips.map_or(f64::INFINITY, distance));
            a.total_cmp(&b)
        })
    }
}

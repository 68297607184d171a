//! Whether a claim about computing can be true: what it implies for all that it leaves out, and a
//! verdict with its reasons.
//!
//! Every bound is data with a source, `data/utilisation.toml` and `data/audit.toml`.

mod checks;
mod claim;
mod estate;
mod implied;
mod known;
mod published;
mod rollouts;
mod words;

use serde::Serialize;

pub use claim::{Chips, Claim, Stage, Step, find, from_toml, shipped};
pub use published::{Kind, Published, published};

use crate::error::Error;
use crate::interval::Interval;
use crate::preset;
use crate::shape::Shape;
use known::Known;

/// What became of a claim.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    pub claim: Claim,
    /// What follows from it, the given numbers included.
    pub implied: Vec<Line>,
    pub checks: Vec<Check>,
    pub verdict: Verdict,
    /// The verdict in a sentence.
    pub sentence: String,
    pub leaves_out: Vec<String>,
}

/// One number that follows from a claim.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub name: &'static str,
    pub value: Value,
    /// Of the value; empty for words and for counts of what the name says.
    pub unit: &'static str,
    /// The formula, with the numbers in it.
    pub how: String,
    /// Where what is not in the claim comes from; may be empty.
    pub source: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    Number(Interval<f64>),
    Words(String),
}

/// One question to a claim, and the answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub verdict: Verdict,
    pub question: &'static str,
    pub reason: String,
    /// Whether it alone makes the claim one that can be judged.
    #[serde(skip)]
    pub decides: bool,
}

/// From what anyone does to what nobody can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No more than half of those who published have reached.
    Typical,
    /// No more than the best has published.
    Plausible,
    /// Too little is said; the reason names what would settle it.
    NotEnough,
    /// More than anyone has published at such scale.
    Implausible,
    /// More than the chips can do, or can hold.
    Impossible,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Typical => "typical",
            Verdict::Plausible => "plausible",
            Verdict::NotEnough => "not enough",
            Verdict::Implausible => "implausible",
            Verdict::Impossible => "impossible",
        }
    }
}

impl Line {
    /// The value with its unit, four digits of it.
    pub fn shown(&self) -> String {
        match &self.value {
            Value::Words(words) => words.clone(),
            Value::Number(number) if self.unit == "%" => {
                let share = number.map(|percent| percent / 100.0);
                if share.low == share.high {
                    return words::percent(share.mid);
                }
                let [low, high] = [share.low, share.high].map(words::percent);
                format!("{} to {high}", low.trim_end_matches(" %"))
            }
            Value::Number(number) if self.unit == "USD" => format!("${}", words::range(number)),
            Value::Number(number) => {
                let shown = format!("{} {}", words::range(number), self.unit);
                shown.trim_end().to_string()
            }
        }
    }
}

/// Judges a claim about a preset, or about no model.
///
/// # Errors
/// [`Error::UnknownModel`], [`Error::UnknownChip`]; [`Error::Asked`] with a number that cannot be
/// meant, or with two parts that contradict each other.
pub fn audit(claim: &Claim) -> Result<Audit, Error> {
    let model = claim.model.as_deref().map(preset::find).transpose()?;
    audit_of(claim, model.map(|preset| &preset.shape))
}

/// Judges a claim about a model of this shape, whatever its `model` says.
///
/// # Errors
/// As [`audit`], but for the model.
pub fn audit_of(claim: &Claim, shape: Option<&Shape>) -> Result<Audit, Error> {
    let known = Known::of(claim, shape)?;
    let mut implied = implied::lines(&known);
    implied.extend(rollouts::lines(&known));
    implied.extend(estate::lines(&known));
    let mut checks = checks::checks(&known);
    checks.extend(rollouts::check(&known));
    checks.extend(estate::checks(&known));
    let decided = checks.iter().any(|check| check.decides);
    if !decided {
        checks.push(checks::missing(&known));
    }
    let worst = checks
        .iter()
        .max_by_key(|check| (check.verdict, check.decides));
    let worst = worst.expect("a claim without a check lacks something, which is one");
    Ok(Audit {
        claim: claim.clone(),
        verdict: worst.verdict,
        sentence: sentence(worst),
        implied,
        leaves_out: claim.leaves_out.clone(),
        checks,
    })
}

/// The verdict, what it means, and the finding that led to it.
fn sentence(worst: &Check) -> String {
    let meaning = match worst.verdict {
        Verdict::Typical => "all of it is what others publish",
        Verdict::Plausible => "nothing in it is beyond what has been published",
        Verdict::NotEnough => "too little is said to judge it",
        Verdict::Implausible => "part of it is beyond what anyone has published",
        Verdict::Impossible => "part of it is beyond what the chips can do",
    };
    let (verdict, finding) = (worst.verdict.name(), worst.finding());
    match worst.verdict {
        Verdict::Typical => format!("{verdict}: {meaning}"),
        Verdict::NotEnough => format!("{verdict}: {meaning}; {finding}"),
        _ => format!("{verdict}: {meaning}; what decides: {finding}"),
    }
}

impl Check {
    /// The first clause of the reason; what follows says what it is set beside.
    pub fn finding(&self) -> &str {
        let end = self.reason.find(';').unwrap_or(self.reason.len());
        &self.reason[..end]
    }
}

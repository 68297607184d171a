//! What somebody says about a run, an estate or a building, any part of it left out.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::published::published;
use crate::error::Error;
use crate::job::Precision;
use crate::nearest::nearest;

/// A claim. Of its numbers any subset may be there.
///
/// In a file it is TOML with these names; a name that is none of them is an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Claim {
    /// What a user types.
    pub name: String,
    pub title: String,
    /// What was said, in our words.
    pub statement: String,
    /// A preset.
    pub model: Option<String>,
    /// Tokens of the run, or of the run by which an estate is measured.
    pub tokens: Option<f64>,
    /// 4,096 where nothing is said.
    pub seq_len: Option<u64>,
    /// What the large products are rounded to; any format of the chip where nothing is said.
    pub precision: Option<Precision>,
    pub chips: Vec<Chips>,
    /// Of the run, or of its first stage.
    pub days: Option<f64>,
    /// Of all stages together.
    pub chip_hours: Option<f64>,
    /// For all chip-hours.
    pub dollars: Option<f64>,
    pub usd_per_chip_hour: Option<f64>,
    /// Dollars for chips bought, not rented.
    pub capital: Option<f64>,
    /// Power of the building.
    pub gigawatts: Option<f64>,
    /// Parts of `chip_hours`; the first is that of `tokens`.
    pub stages: Vec<Stage>,
    pub step: Option<Step>,
    /// The run in `utilisation.toml` that the claim is about, which may not vouch for itself.
    pub run: Option<String>,
    /// The run in `utilisation.toml` at whose share of the peak chips without a time are measured.
    pub yardstick: Option<String>,
    /// A chip with a published rent, near the claimed one.
    pub rent_like: Option<String>,
    /// Other runs, to set beside it.
    pub beside: Vec<String>,
    /// What the claim does not say and a reader might think that it does.
    pub leaves_out: Vec<String>,
    pub sources: Vec<String>,
}

/// Chips of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chips {
    /// A key or a name of the catalogue.
    pub chip: String,
    /// `None` where nobody said how many; then there is one kind only.
    pub count: Option<u64>,
}

/// A part of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage {
    pub name: String,
    pub chips: Option<u64>,
    /// On the clock.
    pub hours: Option<f64>,
    pub chip_hours: Option<f64>,
    /// Answers that reinforcement learning generated and learnt from.
    pub rollouts: Option<f64>,
    /// Tokens at which a rollout was cut off.
    pub longest: Option<f64>,
    /// Tokens of a rollout, as far as it is known.
    pub mean_length: Option<f64>,
}

/// A published step of the same run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub tokens: f64,
    pub seconds: f64,
}

const SHIPPED: [(&str, &str); 4] = [
    ("deepseek-v3", include_str!("../../claims/deepseek-v3.toml")),
    ("deepseek-r1", include_str!("../../claims/deepseek-r1.toml")),
    (
        "deepseek-estate",
        include_str!("../../claims/deepseek-estate.toml"),
    ),
    (
        "stargate-500b",
        include_str!("../../claims/stargate-500b.toml"),
    ),
];

/// The claims that ship with the program, in the order in which they are listed.
pub fn shipped() -> &'static [Claim] {
    static CLAIMS: OnceLock<Vec<Claim>> = OnceLock::new();
    CLAIMS.get_or_init(|| {
        let read = |(name, text): (&str, &str)| {
            let claim = from_toml(&format!("{name}.toml"), text);
            claim.unwrap_or_else(|error| panic!("a claim that ships with the program: {error}"))
        };
        SHIPPED.into_iter().map(read).collect()
    })
}

/// A claim of [`shipped`]; otherwise the names that are spelt alike, best first.
///
/// # Errors
/// These names, of which there may be none.
pub fn find(name: &str) -> Result<&'static Claim, Vec<String>> {
    let claims = shipped();
    let found = claims.iter().find(|claim| claim.name == name);
    let names = || nearest(name, claims.iter().map(|claim| claim.name.as_str()));
    found.ok_or_else(names)
}

/// A claim from TOML; `file` is what errors call it.
///
/// # Errors
/// [`Error::Data`] with the line and what is wrong, or with the field that holds what cannot be.
pub fn from_toml(file: &str, text: &str) -> Result<Claim, Error> {
    let claim: Claim = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = &text.as_bytes()[..start];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Error::Data {
            file: file.to_string(),
            line: line as u64,
            field: String::new(),
            message: error.message().trim().replace('\n', " "),
        }
    })?;
    match claim.check() {
        Err(Error::Asked { what, message }) => Err(Error::Data {
            file: file.to_string(),
            line: 0,
            field: what,
            message,
        }),
        Err(error) => Err(error),
        Ok(()) => Ok(claim),
    }
}

/// A field, its number, and the least and the greatest that can be meant.
type Bounded<'a> = (&'a str, Option<f64>, f64, f64);

impl Claim {
    /// # Errors
    /// [`Error::Asked`] with the field whose number cannot be meant: not above zero, not a number,
    /// or beyond anything that exists.
    pub fn check(&self) -> Result<(), Error> {
        let seq_len = self.seq_len.map(|tokens| tokens as f64);
        let numbers: [Bounded; 8] = [
            ("tokens", self.tokens, 1.0, 1e18),
            ("seq_len", seq_len, 1.0, 1e9),
            ("days", self.days, 1e-6, 36_525.0),
            ("chip_hours", self.chip_hours, 1e-6, 1e13),
            ("dollars", self.dollars, 1e-6, 1e14),
            ("usd_per_chip_hour", self.usd_per_chip_hour, 1e-6, 1e5),
            ("capital", self.capital, 1e-6, 1e14),
            ("gigawatts", self.gigawatts, 1e-9, 1e4),
        ];
        numbers.into_iter().try_for_each(in_bounds)?;
        for stage in &self.stages {
            stage.check()?;
        }
        if let Some(step) = self.step {
            in_bounds(("step.tokens", Some(step.tokens), 1.0, 1e12))?;
            in_bounds(("step.seconds", Some(step.seconds), 1e-6, 1e7))?;
        }
        if let Some(run) = &self.run
            && !published().iter().any(|row| row.run == *run)
        {
            let message = format!("{run:?} is no run whose share of the peak is published");
            return Err(Error::asked("run", message));
        }
        self.check_chips()
    }

    fn check_chips(&self) -> Result<(), Error> {
        for chips in &self.chips {
            let count = chips.count.map(|count| count as f64);
            in_bounds(("chips", count, 1.0, 1e9))?;
            if chips.count.is_none() && self.chips.len() > 1 {
                let message = format!(
                    "the number of {} is missing, and other kinds are there: say how many of each",
                    chips.chip
                );
                return Err(Error::asked("chips", message));
            }
        }
        Ok(())
    }

    /// Tokens of a sequence.
    pub(super) fn sequence(&self) -> u64 {
        self.seq_len.unwrap_or(4096)
    }
}

impl Stage {
    fn check(&self) -> Result<(), Error> {
        let chips = self.chips.map(|chips| chips as f64);
        let numbers: [Bounded; 6] = [
            ("chips", chips, 1.0, 1e9),
            ("hours", self.hours, 1e-6, 1e6),
            ("chip_hours", self.chip_hours, 1e-6, 1e13),
            ("rollouts", self.rollouts, 1.0, 1e15),
            ("longest", self.longest, 1.0, 1e9),
            ("mean_length", self.mean_length, 1.0, 1e9),
        ];
        for (field, value, low, high) in numbers {
            let field = format!("stage {:?}, {field}", self.name);
            in_bounds((&field, value, low, high))?;
        }
        Ok(())
    }
}

fn in_bounds((field, value, low, high): Bounded) -> Result<(), Error> {
    match value {
        // A NaN is in no range.
        Some(value) if !(low..=high).contains(&value) => {
            let why = if value.is_nan() {
                "not a number".to_string()
            } else if value > high {
                format!("{value:e} is beyond {high:e}, more than anything there is")
            } else {
                format!("{value} is not above zero by anything that counts")
            };
            Err(Error::asked(field, why))
        }
        _ => Ok(()),
    }
}

//! US rules of export for accelerators as predicates on their parameters, each from the day on
//! which it came into force.
//!
//! Parameters only, and not legal advice: end use, end user, destination and other entries of the
//! control list count too. Definitions: 3A090, technical notes (88 FR 73458).

mod measure;
mod rules;
mod verdict;

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::chip::Chip;
use crate::date::Date;

pub use measure::{Precision, Tpp, io_total, performance_density, total_processing_performance};
pub use rules::{VERSIONS, Version};
pub use verdict::Verdict;

/// Goes with every answer of this module.
pub const DISCLAIMER: &str = "not legal advice: by published parameters alone";

/// What the rules that were in force on a day say of a chip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    pub as_of: Date,
    /// The rule that `class` comes from; `None` before the first.
    pub rule: Option<&'static Version>,
    pub class: Class,
    pub total_processing_performance: Option<f64>,
    /// Per mm2 of logic die.
    pub performance_density: Option<f64>,
    /// License Exceptions NAC and ACA (2023 on): export after a notice instead of a licence.
    /// `None` where no paragraph applies, or under earlier rules.
    pub notified_exception: Option<Verdict>,
    /// The letters of April 2025, by criteria that the press reported; `None` before them.
    pub bandwidth_letter: Option<Verdict>,
    /// How a licence for China or Macau is reviewed since 2026-01-15; `None` before, and where
    /// 3A090.a does not apply.
    pub china_review: Option<Review>,
    /// Sentences that belong to the answer.
    pub notes: Vec<String>,
}

/// Under which paragraph of 3A090 a chip falls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// There was no rule yet.
    NoRule,
    Outside,
    /// Outside by Note 2 of 2023: not designed or marketed for datacentres, and TPP below 4,800.
    OutsideByNote2,
    /// 3A090 as it stood from 2022-10-07, which had no paragraphs.
    Controlled2022,
    A,
    B,
    /// What would have to be known.
    Unknown(String),
}

/// How a licence for China or Macau is looked at (91 FR 1684).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Review {
    CaseByCase,
    PresumptionOfDenial,
    Unknown(String),
}

/// What the rules in force on `date` say of `chip`.
///
/// A date that is known to the month or year alone stands for its last day.
pub fn classify(chip: &Chip, date: Date) -> Classification {
    let day = date.last_day();
    let rule = rules::classifying(day);
    let tpp = total_processing_performance(chip);
    let class = rule.map_or(Class::NoRule, |version| version.class(chip));
    let notified_exception = rule.and_then(|version| version.notified_exception(chip, &class));
    let since = |from: Date| day >= from;
    let bandwidth_letter = since(rules::BANDWIDTH_LETTER).then(|| rules::bandwidth_letter(chip));
    let china_review = since(rules::CHINA_REVIEW)
        .then(|| rules::china_review(chip, &class))
        .flatten();
    Classification {
        as_of: date,
        rule,
        total_processing_performance: tpp.map(|tpp| tpp.value),
        performance_density: performance_density(chip),
        notified_exception,
        bandwidth_letter,
        china_review,
        notes: notes(chip, day, &class),
        class,
    }
}

/// The day since which the newest rule known is in force: the date to ask for by default.
pub fn newest() -> Date {
    VERSIONS
        .last()
        .map(|version| version.in_force)
        .expect("there are rules")
}

fn notes(chip: &Chip, day: Date, class: &Class) -> Vec<String> {
    let mut notes = Vec::new();
    if chip.prc_origin && *class != Class::NoRule {
        let mut note =
            "made in China: a licence to export it there is not the question".to_string();
        if day >= rules::GENERAL_PROHIBITION_10 {
            note.push_str(
                "; BIS guidance of 2025-05-13 puts the use of Ascend 910B, 910C and 910D \
                 anywhere under General Prohibition 10",
            );
        }
        notes.push(note);
    }
    if chip.launch.is_some_and(|launch| launch.first_day() > day) {
        notes.push("the chip came later than this date".to_string());
    }
    if chip.launch.is_none() && *class != Class::NoRule {
        notes.push("its day of launch is not known".to_string());
    }
    if day >= rules::HBM && !matches!(class, Class::NoRule) {
        let note = "3A090.c (2024-12) is about stacks of memory alone, not about a chip in one \
                    package with them";
        notes.push(note.to_string());
    }
    if day >= rules::BANDWIDTH_LETTER {
        notes.push(
            "the letter of April 2025 binds whom it was sent to (NVIDIA; AMD reported the same); \
             its criteria are the press's"
                .to_string(),
        );
    }
    notes
}

impl Class {
    /// Whether a licence is needed for it under the rule that the class comes from.
    pub fn is_controlled(&self) -> Verdict {
        match self {
            Class::NoRule | Class::Outside | Class::OutsideByNote2 => Verdict::No,
            Class::Controlled2022 | Class::A | Class::B => Verdict::Yes,
            Class::Unknown(reason) => Verdict::Unknown(reason.clone()),
        }
    }

    /// Short enough for a table; `Display` says the reason as well.
    pub fn as_str(&self) -> &'static str {
        match self {
            Class::NoRule => "none",
            Class::Outside | Class::OutsideByNote2 => "outside",
            Class::Controlled2022 => "3A090",
            Class::A => "3A090.a",
            Class::B => "3A090.b",
            Class::Unknown(_) => "unknown",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::NoRule => write!(f, "none: no rule was in force"),
            Class::OutsideByNote2 => {
                write!(
                    f,
                    "outside by Note 2 (not for datacentres, TPP below 4,800)"
                )
            }
            Class::Unknown(reason) => write!(f, "unknown: {reason}"),
            other => write!(f, "{}", other.as_str()),
        }
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Review {
    pub fn as_str(&self) -> &'static str {
        match self {
            Review::CaseByCase => "case by case",
            Review::PresumptionOfDenial => "denial",
            Review::Unknown(_) => "unknown",
        }
    }
}

impl fmt::Display for Review {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Review::CaseByCase => write!(f, "case by case"),
            Review::PresumptionOfDenial => write!(f, "presumption of denial"),
            Review::Unknown(reason) => write!(f, "unknown: {reason}"),
        }
    }
}

/// A class to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassFilter(&'static str);

impl ClassFilter {
    /// What can be asked for.
    pub const NAMES: [&'static str; 6] =
        ["3A090.a", "3A090.b", "3A090", "outside", "none", "unknown"];

    /// `3A090` takes all paragraphs.
    pub fn takes(self, class: &Class) -> bool {
        match self.0 {
            "3A090" => class.is_controlled() == Verdict::Yes,
            name => class.as_str() == name,
        }
    }
}

impl FromStr for ClassFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<ClassFilter, String> {
        let names = ClassFilter::NAMES.into_iter();
        let mut same = names.filter(|name| name.eq_ignore_ascii_case(text));
        same.next().map(ClassFilter).ok_or_else(|| {
            let names = ClassFilter::NAMES.join(", ").to_lowercase();
            format!("{text:?} is no class; there are {names}")
        })
    }
}

//! The rules, in the order in which they came into force, and those of them that are predicates.

use serde::Serialize;

use super::measure::{io_total, performance_density, total_processing_performance};
use super::{Class, Review, Verdict};
use crate::chip::{Chip, Market};
use crate::date::Date;

/// A version of the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    pub in_force: Date,
    pub title: &'static str,
    /// Where its text is.
    pub citation: &'static str,
    /// What it asks of a chip.
    pub predicate: &'static str,
    #[serde(skip)]
    classes: Classes,
}

/// Whether a version changes under which paragraph chips fall, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Classes {
    Of2022,
    Of2023,
    Unchanged,
}

pub const HBM: Date = Date::new(2024, 12, 2);
pub const BANDWIDTH_LETTER: Date = Date::new(2025, 4, 9);
pub const GENERAL_PROHIBITION_10: Date = Date::new(2025, 5, 13);
pub const CHINA_REVIEW: Date = Date::new(2026, 1, 15);

/// Every version, in the order of its date.
pub static VERSIONS: [Version; 9] = [
    Version {
        in_force: Date::new(2022, 10, 7),
        title: "first rule",
        citation: "87 FR 62186 (2022-21658)",
        predicate: "links of at least 600 GB/s in all, both ways, and TPP of at least 4,800",
        classes: Classes::Of2022,
    },
    Version {
        in_force: Date::new(2023, 11, 17),
        title: "performance density",
        citation: "88 FR 73458 (2023-23055)",
        predicate: "3A090.a: TPP >= 4,800, or TPP >= 1,600 and PD >= 5.92; 3A090.b: TPP 2,400 to \
                    4,800 and PD 1.6 to 5.92, or TPP >= 1,600 and PD 3.2 to 5.92; Note 2: outside \
                    if not for datacentres and TPP < 4,800",
        classes: Classes::Of2023,
    },
    Version {
        in_force: Date::new(2024, 4, 4),
        title: "corrections",
        citation: "89 FR 23876",
        predicate: "as before",
        classes: Classes::Unchanged,
    },
    Version {
        in_force: HBM,
        title: "high-bandwidth memory",
        citation: "89 FR 96790",
        predicate: "3A090.c: memory stacks above 2 GB/s per mm2; not for memory in one package \
                    with dominant logic",
        classes: Classes::Unchanged,
    },
    Version {
        in_force: Date::new(2025, 1, 15),
        title: "AI diffusion",
        citation: "90 FR 4544",
        predicate: "quotas of TPP by country, due 2025-05-15 and not enforced from 2025-05-13",
        classes: Classes::Unchanged,
    },
    Version {
        in_force: BANDWIDTH_LETTER,
        title: "\"is informed\" letters",
        citation: "NVIDIA 8-K of 2025-04-15; criteria by the press",
        predicate: "memory of at least 1,400 GB/s, or links of at least 1,100, or both together \
                    at least 1,700",
        classes: Classes::Unchanged,
    },
    Version {
        in_force: GENERAL_PROHIBITION_10,
        title: "guidance on Ascend",
        citation: "BIS announcement",
        predicate: "use of Ascend 910B, 910C and 910D anywhere risks General Prohibition 10",
        classes: Classes::Unchanged,
    },
    Version {
        in_force: CHINA_REVIEW,
        title: "review for China",
        citation: "91 FR 1684 (2026-00789)",
        predicate: "3A090.a to China: case by case if TPP < 21,000 and memory < 6,500 GB/s, else \
                    presumption of denial",
        classes: Classes::Unchanged,
    },
    Version {
        in_force: Date::new(2026, 5, 31),
        title: "guidance on headquarters",
        citation: "BIS guidance on 742.6(a)(6)(iii)",
        predicate: "as before, also where the buyer's headquarters are in D:5 or Macau",
        classes: Classes::Unchanged,
    },
];

/// The version that says under which paragraph a chip falls on a day.
pub fn classifying(day: Date) -> Option<&'static Version> {
    let says = |version: &&Version| version.classes != Classes::Unchanged;
    VERSIONS
        .iter()
        .rfind(|version| version.in_force <= day && says(version))
}

impl Version {
    pub(super) fn class(&self, chip: &Chip) -> Class {
        match self.classes {
            Classes::Of2022 => class_2022(chip),
            Classes::Of2023 | Classes::Unchanged => class_2023(chip),
        }
    }

    /// NAC and ACA: items of .a that are not for datacentres, items of .b that are.
    pub(super) fn notified_exception(&self, chip: &Chip, class: &Class) -> Option<Verdict> {
        if self.classes == Classes::Of2022 {
            return None;
        }
        match class {
            Class::A => Some(Verdict::from(!for_datacentres(chip))),
            Class::B => Some(Verdict::from(for_datacentres(chip))),
            Class::Unknown(reason) => Some(Verdict::Unknown(reason.clone())),
            _ => None,
        }
    }
}

/// A chip that only its maker rents out was designed for datacentres.
fn for_datacentres(chip: &Chip) -> bool {
    chip.market != Market::Consumer
}

fn tpp_at_least(chip: &Chip, limit: f64) -> Verdict {
    let tpp = total_processing_performance(chip).map(|tpp| tpp.value);
    Verdict::at_least(tpp, limit, "the throughput")
}

fn density_at_least(chip: &Chip, limit: f64) -> Verdict {
    Verdict::at_least(performance_density(chip), limit, "the die area")
}

/// 3A090 of 2022: all links but those to memory, both directions, and TPP.
fn class_2022(chip: &Chip) -> Class {
    match tpp_at_least(chip, 4800.0).and(links_of_600(chip)) {
        Verdict::Yes => Class::Controlled2022,
        Verdict::No => Class::Outside,
        Verdict::Unknown(reason) => Class::Unknown(reason),
    }
}

/// Whether all links together reach 600 GB/s.
///
/// The catalogue knows the scale-up link alone; the one to the host adds no more than PCIe 5 x16,
/// so close below the limit nothing can be said.
fn links_of_600(chip: &Chip) -> Verdict {
    const HOST_AT_MOST: f64 = 128.0;
    match io_total(chip) {
        None => Verdict::Unknown("needs the bandwidth of its links".to_string()),
        Some(io) if io >= 600.0 => Verdict::Yes,
        Some(io) if io + HOST_AT_MOST < 600.0 => Verdict::No,
        Some(_) => Verdict::Unknown("needs the bandwidth of its link to the host".to_string()),
    }
}

/// 3A090.a and .b of 2023, and Note 2.
fn class_2023(chip: &Chip) -> Class {
    let large = tpp_at_least(chip, 4800.0);
    if !for_datacentres(chip) && large == Verdict::No {
        return Class::OutsideByNote2;
    }
    let dense = density_at_least(chip, 5.92);
    let notable = tpp_at_least(chip, 1600.0);
    let a = large.clone().or(notable.clone().and(dense.clone()));
    let middling = tpp_at_least(chip, 2400.0)
        .and(large.negated())
        .and(density_at_least(chip, 1.6));
    let b = middling
        .or(notable.and(density_at_least(chip, 3.2)))
        .and(dense.negated());
    // Paragraph .a goes before .b; a chip without .a that is known to be in neither is outside.
    match (a, b) {
        (Verdict::Yes, _) => Class::A,
        (Verdict::No, Verdict::Yes) => Class::B,
        (Verdict::No, Verdict::No) => Class::Outside,
        (Verdict::Unknown(reason), _) | (_, Verdict::Unknown(reason)) => Class::Unknown(reason),
    }
}

/// The criteria of April 2025 as the press reported them.
pub fn bandwidth_letter(chip: &Chip) -> Verdict {
    let memory = chip.memory_bandwidth.map(|bandwidth| bandwidth.0 / 1e9);
    let links = io_total(chip);
    let both = memory.zip(links).map(|(memory, links)| memory + links);
    Verdict::at_least(memory, 1400.0, "the memory's bandwidth")
        .or(Verdict::at_least(
            links,
            1100.0,
            "the bandwidth of its links",
        ))
        .or(Verdict::at_least(both, 1700.0, "both bandwidths"))
}

/// The review of licences for China since 2026; `None` where 3A090.a does not apply, or where the
/// chip is made there.
pub fn china_review(chip: &Chip, class: &Class) -> Option<Review> {
    if chip.prc_origin {
        return None;
    }
    let memory = chip.memory_bandwidth.map(|bandwidth| bandwidth.0 / 1e9);
    let above = tpp_at_least(chip, 21_000.0).or(Verdict::at_least(
        memory,
        6500.0,
        "the memory's bandwidth",
    ));
    match (class, above) {
        (Class::Unknown(reason), _) => Some(Review::Unknown(reason.clone())),
        (Class::A, Verdict::Yes) => Some(Review::PresumptionOfDenial),
        (Class::A, Verdict::No) => Some(Review::CaseByCase),
        (Class::A, Verdict::Unknown(reason)) => Some(Review::Unknown(reason)),
        _ => None,
    }
}

//! What others have published, to set beside a claim: data, each with its source.

use std::sync::OnceLock;

use serde::Deserialize;

use super::words::short;
use crate::chip::{self, Chip};
use crate::interval::Interval;
use crate::job::Precision;

/// A published share of the dense 16-bit peak.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    pub run: String,
    pub title: String,
    pub kind: Kind,
    /// Whether the model is a mixture of experts.
    pub mixture: bool,
    pub precision: Precision,
    pub chip: String,
    /// `None` where the number was not published.
    pub chips: Option<u64>,
    pub share: f64,
    pub source: String,
}

/// Of what a share is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// While training runs.
    Step,
    /// Of all chip-hours, restarts and tests among them.
    Campaign,
}

/// `data/utilisation.toml`.
pub fn published() -> &'static [Published] {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        published: Vec<Published>,
    }
    static ROWS: OnceLock<Vec<Published>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let text = include_str!("../../data/utilisation.toml");
        let file: File = toml::from_str(text).expect("data/utilisation.toml parses");
        file.published
    })
}

/// The published steps and campaigns with which a claim can be compared.
#[derive(Clone, Debug)]
pub struct Precedents {
    rows: Vec<&'static Published>,
    /// Which they are, in words.
    pub which: String,
    /// Whether they ran on a tenth of the claim's chips or more.
    pub at_scale: bool,
}

/// Generations of chips by the narrowest float that they multiply: 16, 8 or 4 bits.
pub fn generation(chip: &Chip) -> u8 {
    match (chip.fp4, chip.fp8) {
        (Some(_), _) => 2,
        (None, Some(_)) => 1,
        (None, None) => 0,
    }
}

/// How many times as many chips a claim may have and still be of the scale of what was published.
const SCALE: f64 = 10.0;

/// Chips of a run whose number was not published, as most runs of such models had.
const UNSAID: u64 = 2048;

impl Precedents {
    /// Those of the kind of model, in a format no narrower, on a tenth of the chips or more; where
    /// there are none, those on any number of chips.
    ///
    /// `own` says of a row that it is the claim's own run, which may not vouch for itself; `newest`
    /// is the last generation of chips that counts.
    pub fn of(
        mixture: bool,
        narrowest: Precision,
        chips: Option<f64>,
        newest: Option<u8>,
        own: impl Fn(&Published) -> bool,
    ) -> Precedents {
        let alike = published().iter().filter(|row| {
            row.mixture == mixture && row.precision.bytes() >= narrowest.bytes() && !own(row)
        });
        let mut alike: Vec<_> = alike.collect();
        // What later chips reach says nothing of earlier ones, unless nothing else is published.
        let earlier = |row: &&&'static Published| {
            let chip = chip::find(&row.chip).ok();
            let generation = chip.map_or(u8::MAX, generation);
            newest.is_none_or(|newest| generation <= newest)
        };
        let of_time: Vec<_> = alike.iter().filter(earlier).copied().collect();
        let kinds = |kind: Kind| of_time.iter().any(|row| row.kind == kind);
        if kinds(Kind::Step) && kinds(Kind::Campaign) {
            alike = of_time;
        }
        let least = chips.unwrap_or(0.0) / SCALE;
        let at_scale = |row: &&Published| row.chips.unwrap_or(UNSAID) as f64 >= least;
        let near: Vec<_> = alike.iter().copied().filter(at_scale).collect();
        let models = if mixture { "mixtures" } else { "dense models" };
        let has = |kind: Kind| near.iter().any(|row| row.kind == kind);
        if has(Kind::Step) && has(Kind::Campaign) {
            let which = match chips {
                Some(_) => format!("{models} on {} chips or more", short(least.ceil())),
                None => models.to_string(),
            };
            return Precedents {
                rows: near,
                which,
                at_scale: true,
            };
        }
        let which = format!("{models} on fewer chips, none being published at such scale");
        Precedents {
            rows: alike,
            which,
            at_scale: false,
        }
    }

    /// How many campaigns there are among them.
    pub fn campaigns(&self) -> usize {
        let rows = self.rows.iter();
        rows.filter(|row| row.kind == Kind::Campaign).count()
    }

    /// The highest.
    pub fn best(&self) -> &'static Published {
        let by_share = |a: &&&Published, b: &&&Published| a.share.total_cmp(&b.share);
        let best = self.rows.iter().max_by(by_share);
        best.expect("both kinds of model have been published")
    }

    /// The middle campaign: what half of them reached.
    pub fn typical(&self) -> f64 {
        self.median(Kind::Campaign)
    }

    /// Half the campaigns, half the steps, and the best step.
    pub fn shares(&self) -> Interval<f64> {
        let (typical, best) = (self.typical(), self.best().share);
        let mid = self.median(Kind::Step).clamp(typical, best);
        Interval::new(typical, mid, best)
    }

    pub fn lowest(&self) -> f64 {
        let shares = self.rows.iter().map(|row| row.share);
        shares.fold(f64::INFINITY, f64::min)
    }

    pub fn steps(&self) -> impl Iterator<Item = &'static Published> {
        let rows = self.rows.iter().copied();
        rows.filter(|row| row.kind == Kind::Step)
    }

    fn median(&self, kind: Kind) -> f64 {
        let rows = self.rows.iter().filter(|row| row.kind == kind);
        let mut shares: Vec<f64> = rows.map(|row| row.share).collect();
        shares.sort_by(f64::total_cmp);
        let middle = shares.len() / 2;
        if shares.len() % 2 == 1 {
            shares[middle]
        } else {
            (shares[middle - 1] + shares[middle]) / 2.0
        }
    }
}

/// The share at which a published run ran.
pub fn share_of(run: &str) -> Option<&'static Published> {
    let mut rows = published().iter();
    rows.find(|row| row.run == run && row.kind == Kind::Step)
}

/// A fact that is known within bounds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    low: f64,
    mid: f64,
    high: f64,
    pub source: String,
}

impl Fact {
    pub fn bounds(&self) -> Interval<f64> {
        Interval::new(self.low, self.mid, self.high)
    }
}

/// `data/audit.toml`, which says what each is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    pub programme_over_run: Fact,
    pub decode_per_node: Fact,
    pub passes_per_rollout: Fact,
    pub usd_per_gigawatt: Fact,
    pub usd_per_chip_in_place: Fact,
    pub capital_over_chips: Fact,
    pub gigawatts_built: Fact,
}

pub fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get_or_init(|| {
        let text = include_str!("../../data/audit.toml");
        toml::from_str(text).expect("data/audit.toml parses")
    })
}

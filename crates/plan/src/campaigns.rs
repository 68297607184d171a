//! Published runs, `data/runs.csv`: what each took, and what a steady run would take by the model
//! of a step.
//!
//! A campaign takes longer than its steady steps: failures, restarts, evaluations, stages that
//! hours include and tokens do not, layouts that are not the best. How much longer is read off the
//! campaigns of other models, and the efficiencies are those of a fit without the model's steps.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::chip;
use crate::efficiency::Efficiencies;
use crate::error::Error;
use crate::fit::Told;
use crate::interval::Interval;
use crate::job::{Cluster, Job, Precision, Software};
use crate::layout::Layout;
use crate::measured::{self, Measured};
use crate::preset;
use crate::search::search;
use crate::step::{Step, step};
use crate::table::rows;

/// Published by steady time of the campaigns here, from the tenth to the ninetieth of a hundred (a
/// test compares).
pub const CAMPAIGN_SPREAD: Interval<f64> = Interval {
    low: 0.92,
    mid: 1.20,
    high: 2.05,
};

/// What was published of a run; the columns of the file that are compared.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Run {
    pub id: String,
    pub kind: String,
    pub model: String,
    pub org: String,
    pub tokens_t: Option<f64>,
    pub chip: String,
    pub chip_count: Option<u64>,
    pub precision: String,
    pub chip_hours: Option<f64>,
    pub tok_s_per_chip: Option<f64>,
    pub mfu_pct: Option<f64>,
    pub source: String,
    pub notes: String,
}

/// What predicting a run takes, `data/campaigns.csv`; several rows are stages of one run.
#[derive(Clone, Debug, Deserialize)]
struct Stage {
    id: String,
    model: String,
    chip: String,
    chips: u64,
    precision: Precision,
    seq_len: u64,
    batch_seqs: u64,
    tokens_t: f64,
    software: String,
    /// Empty: searched.
    layout: String,
    /// What is not published and was chosen.
    assumed: String,
    /// Why the run cannot be predicted; empty where it can.
    missing: String,
}

/// A published run beside its prediction.
#[derive(Clone, Debug, Serialize)]
pub struct Campaign {
    pub run: Run,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its step is in `data/steps.csv`, and nothing else of it was published.
    Step,
    NotPredicted {
        why: String,
    },
    Predicted(Box<Predicted>),
}

#[derive(Clone, Debug, Serialize)]
pub struct Predicted {
    pub what: Quantity,
    pub published: f64,
    /// By the model of a step alone.
    pub steady: f64,
    /// `steady` with what the campaigns of other models took beyond theirs, from the tenth to the
    /// ninetieth of a hundred.
    pub interval: Interval<f64>,
    pub layouts: Vec<String>,
    pub searched: bool,
    pub assumed: String,
}

/// What is compared: the first of these that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    ChipHours,
    TokensPerSecondPerChip,
    /// Percent of the 16-bit peak.
    Utilisation,
}

impl Quantity {
    pub fn unit(self) -> &'static str {
        match self {
            Quantity::ChipHours => "chip-hours",
            Quantity::TokensPerSecondPerChip => "tokens/s/chip",
            Quantity::Utilisation => "% MFU",
        }
    }
}

impl Predicted {
    pub fn inside(&self) -> bool {
        self.interval.contains(self.published)
    }

    /// Steady by published time, less 1: below 0 where the campaign took longer.
    pub fn error(&self) -> f64 {
        1.0 / self.longer() - 1.0
    }

    /// How many times its steady time the campaign took.
    fn longer(&self) -> f64 {
        match self.what {
            Quantity::ChipHours => self.published / self.steady,
            _ => self.steady / self.published,
        }
    }
}

/// Every row of `data/runs.csv`, in its order.
///
/// # Panics
/// If a row of the shipped data cannot be read or reckoned; a test reckons all.
pub fn campaigns() -> &'static [Campaign] {
    static ALL: OnceLock<Vec<Campaign>> = OnceLock::new();
    ALL.get_or_init(|| read().unwrap_or_else(|error| panic!("the shipped runs: {error}")))
}

/// The preset of a run of either list.
pub fn model_of(run: &str) -> Option<String> {
    let measured = measured::all().iter().find(|one| one.row.id == run);
    if let Some(measured) = measured {
        return Some(measured.row.model.clone());
    }
    let stage = stages().iter().find(|stage| stage.id == run);
    stage.map(|stage| stage.model.clone())
}

/// `data/campaigns.csv`.
fn stages() -> &'static [Stage] {
    static STAGES: OnceLock<Vec<Stage>> = OnceLock::new();
    STAGES.get_or_init(|| {
        let text = include_str!("../data/campaigns.csv");
        rows("campaigns.csv", text).unwrap_or_else(|error| panic!("the shipped runs: {error}"))
    })
}

fn read() -> Result<Vec<Campaign>, Error> {
    let runs: Vec<Run> = rows("runs.csv", include_str!("../data/runs.csv"))?;
    let mut of_run: BTreeMap<&str, Vec<&Stage>> = BTreeMap::new();
    for stage in stages() {
        of_run.entry(&stage.id).or_default().push(stage);
    }
    let mut campaigns = Vec::with_capacity(runs.len());
    let mut models = Vec::with_capacity(runs.len());
    let mut known = BTreeMap::new();
    for run in runs {
        let stages = of_run.get(run.id.as_str()).map_or(&[][..], Vec::as_slice);
        let outcome = outcome(&run, stages, &mut known)?;
        models.push(stages.first().map_or("", |stage| stage.model.as_str()));
        campaigns.push(Campaign { run, outcome });
    }
    spread(&mut campaigns, &models);
    Ok(campaigns)
}

/// What steps of other models tell.
fn told_without(model: &str) -> Told {
    let own = format!("{model}@");
    let rows: Vec<&Measured> = measured::all().iter().collect();
    let others = rows.iter().filter(|row| !row.row.group.starts_with(&own));
    let others: Vec<&Measured> = others.copied().collect();
    match others.len() == rows.len() {
        true => Told::with(&rows, Efficiencies::shipped()),
        false => Told::by(&others),
    }
}

fn outcome(
    run: &Run,
    stages: &[&Stage],
    known: &mut BTreeMap<String, Told>,
) -> Result<Outcome, Error> {
    let published = [
        (Quantity::ChipHours, run.chip_hours),
        (Quantity::TokensPerSecondPerChip, run.tok_s_per_chip),
        (Quantity::Utilisation, run.mfu_pct),
    ];
    let published = published.into_iter().find_map(|(what, v)| Some((what, v?)));
    let Some(first) = stages.first() else {
        return Ok(Outcome::Step);
    };
    if !first.missing.is_empty() {
        let why = first.missing.clone();
        return Ok(Outcome::NotPredicted { why });
    }
    let Some((what, published)) = published else {
        let why = "nothing of its time was published".to_string();
        return Ok(Outcome::NotPredicted { why });
    };
    let mut steady = 0.0;
    let mut layouts = Vec::new();
    for stage in stages {
        let told = known.entry(stage.model.clone());
        let told = told.or_insert_with(|| told_without(&stage.model));
        let (layout, step) = reckon(stage, told)?;
        let rate = step.tokens_per_second_per_chip.0;
        steady += match what {
            Quantity::ChipHours => stage.tokens_t * 1e12 / rate / 3600.0,
            Quantity::TokensPerSecondPerChip => rate,
            Quantity::Utilisation => 100.0 * step.mfu,
        };
        layouts.push(layout.to_string());
    }
    Ok(Outcome::Predicted(Box::new(Predicted {
        what,
        published,
        steady,
        interval: Interval::exact(steady),
        layouts,
        searched: first.layout.is_empty(),
        assumed: first.assumed.clone(),
    })))
}

/// The step of a stage, with its own layout or the fastest.
fn reckon(stage: &Stage, told: &Told) -> Result<(Layout, Step), Error> {
    let preset = preset::find(&stage.model)?;
    let cluster = Cluster::new(chip::find(&stage.chip)?.clone(), stage.chips);
    let job = Job {
        shape: &preset.shape,
        cluster: &cluster,
        seq_len: stage.seq_len,
        batch_seqs: stage.batch_seqs,
        precision: stage.precision,
        with_mtp: preset.shape.mtp_modules > 0,
        layout: Layout::default(),
        software: Software {
            slowdown: told.slowdown(&stage.software),
            ..measured::software(&stage.software)?
        },
        efficiencies: &told.efficiencies,
    };
    if stage.layout.is_empty() {
        let best = search(&job, 1)?.best.remove(0);
        return Ok((best.layout, best.step));
    }
    let layout = stage.layout.parse()?;
    let step = step(&Job { layout, ..job })?;
    Ok((layout, step))
}

/// What [`CAMPAIGN_SPREAD`] should be.
pub fn spread_of_campaigns() -> Interval<f64> {
    let predicted = campaigns().iter().filter_map(|campaign| {
        let Outcome::Predicted(predicted) = &campaign.outcome else {
            return None;
        };
        Some(predicted.longer())
    });
    tenths(predicted.collect())
}

/// Gives each prediction its interval, from the campaigns of other models.
fn spread(campaigns: &mut [Campaign], models: &[&str]) {
    let longer: Vec<Option<f64>> = campaigns
        .iter()
        .map(|campaign| match &campaign.outcome {
            Outcome::Predicted(predicted) => Some(predicted.longer()),
            _ => None,
        })
        .collect();
    for (at, campaign) in campaigns.iter_mut().enumerate() {
        if let Outcome::Predicted(predicted) = &mut campaign.outcome {
            let pairs = longer.iter().zip(models);
            let others = pairs.filter(|(_, model)| **model != models[at]);
            let factors = tenths(others.filter_map(|(factor, _)| *factor).collect());
            let steady = predicted.steady;
            predicted.interval = match predicted.what {
                Quantity::ChipHours => factors.map(|factor| steady * factor),
                _ => factors.map(|factor| steady / factor),
            };
        }
    }
}

/// The values that a tenth lies below, half, and nine tenths.
fn tenths(mut values: Vec<f64>) -> Interval<f64> {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    Interval::new(at(0.1), at(0.5), at(0.9))
}

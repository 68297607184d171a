//! What comes behind the first stage of a run: long contexts, fine-tuning, reinforcement learning.

use serde::Serialize;

use crate::error::Error;
use crate::interval::Interval;
use crate::quantity::{ChipSeconds, Chips, Tokens};
use crate::serving::Service;
use crate::training::{Plan, Request, plan};

/// A further stage. Its layout is searched anew, as its sequences are of another length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Further {
    pub tokens: Tokens,
    pub seq_len: u64,
    pub batch_seqs: u64,
    /// Whether the model writes the tokens itself before it is trained on them, on the same chips.
    pub rollouts: bool,
}

/// A stage of a run, planned.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    pub name: &'static str,
    pub tokens: f64,
    pub seq_len: u64,
    pub batch_seqs: u64,
    pub layout: String,
    pub step_seconds: Interval<f64>,
    /// Of writing the tokens; 0 where they are given.
    pub writing_chip_hours: Interval<f64>,
    pub days: Interval<f64>,
    pub chip_hours: Interval<f64>,
    pub energy_mwh: Option<Interval<f64>>,
    pub cost_usd: Option<Interval<f64>>,
}

/// All stages together.
#[derive(Clone, Debug, Serialize)]
pub struct WholeRun {
    pub stages: Vec<Stage>,
    pub days: Interval<f64>,
    pub chip_hours: Interval<f64>,
    pub energy_mwh: Option<Interval<f64>>,
    pub cost_usd: Option<Interval<f64>>,
}

/// Plans what comes behind `first`; `None` where nothing does.
///
/// # Errors
/// Those of [`plan`] and, for rollouts, of [`Service::decode`].
pub fn whole_run(
    request: &Request,
    first: &Plan,
    further: &[Further],
) -> Result<Option<WholeRun>, Error> {
    if further.is_empty() {
        return Ok(None);
    }
    let mut stages = vec![Stage::new("first", first)];
    for stage in further {
        stages.push(stage.plan(request)?);
    }
    let optional = |of: fn(&Stage) -> Option<Interval<f64>>| {
        let all: Option<Vec<Interval<f64>>> = stages.iter().map(of).collect();
        all.map(|all| sum(all.into_iter()))
    };
    Ok(Some(WholeRun {
        days: sum(stages.iter().map(|stage| stage.days)),
        chip_hours: sum(stages.iter().map(|stage| stage.chip_hours)),
        energy_mwh: optional(|stage| stage.energy_mwh),
        cost_usd: optional(|stage| stage.cost_usd),
        stages,
    }))
}

/// Bounds that are low or high together.
fn sum(intervals: impl Iterator<Item = Interval<f64>>) -> Interval<f64> {
    intervals.fold(Interval::exact(0.0), |sum, next| Interval {
        low: sum.low + next.low,
        mid: sum.mid + next.mid,
        high: sum.high + next.high,
    })
}

impl Stage {
    fn new(name: &'static str, plan: &Plan) -> Stage {
        Stage {
            name,
            tokens: plan.tokens,
            seq_len: plan.seq_len,
            batch_seqs: plan.batch_seqs,
            layout: plan.layout.to_string(),
            step_seconds: plan.step_seconds,
            writing_chip_hours: Interval::exact(0.0),
            days: plan.campaign.days,
            chip_hours: plan.campaign.chip_hours,
            energy_mwh: plan.campaign.energy_mwh,
            cost_usd: plan.campaign.cost_usd,
        }
    }
}

impl Further {
    fn plan(&self, request: &Request) -> Result<Stage, Error> {
        let own = Request {
            tokens: self.tokens,
            seq_len: self.seq_len,
            batch_seqs: self.batch_seqs,
            layout: None,
            ..request.clone()
        };
        let mut stage = Stage::new("further", &plan(&own)?);
        if self.rollouts {
            stage.name = "rollouts";
            self.add_writing(&own, &mut stage)?;
        }
        Ok(stage)
    }

    /// Time, energy and cost of writing, from the rate of a service whose answers are as long.
    fn add_writing(&self, request: &Request, stage: &mut Stage) -> Result<(), Error> {
        let service = Service {
            chips: request.chips,
            context: (self.seq_len / 2).max(1),
            precision: request.precision,
            ..Service::new(&request.shape, &request.chip)
        };
        let rate = service.decode()?.tokens_per_second_per_chip;
        let held: Interval<ChipSeconds> = rate.map(|rate| Chips(1.0) * (self.tokens / rate));
        let trained = stage.chip_hours;
        stage.writing_chip_hours = held.map(ChipSeconds::hours);
        stage.chip_hours = sum([trained, stage.writing_chip_hours].into_iter());
        let chips = Chips(request.chips as f64);
        let days = held.map(|held| (held / chips).days());
        stage.days = sum([stage.days, days].into_iter());
        // A chip-hour draws and costs the same, whatever it is for.
        let grown = |of: Interval<f64>| Interval {
            low: of.low * stage.chip_hours.low / trained.low,
            mid: of.mid * stage.chip_hours.mid / trained.mid,
            high: of.high * stage.chip_hours.high / trained.high,
        };
        stage.energy_mwh = stage.energy_mwh.map(grown);
        stage.cost_usd = stage.cost_usd.map(grown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Further, whole_run};
    use crate::chip;
    use crate::job::{Precision, Software};
    use crate::preset;
    use crate::quantity::Tokens;
    use crate::training::{Request, plan};

    #[test]
    fn stages_add_up_and_rollouts_cost_their_writing() {
        let request = Request {
            title: "V3".to_string(),
            shape: preset::find("deepseek-v3").expect("a preset").shape.clone(),
            chip: chip::find("h800").expect("a chip").clone(),
            chips: 512,
            tokens: Tokens(1e12),
            seq_len: 4096,
            batch_seqs: 4096,
            precision: Precision::Fp8,
            with_mtp: false,
            layout: None,
            software: Some(Software::default()),
            price: None,
        };
        let first = plan(&request).expect("it fits");
        assert!(whole_run(&request, &first, &[]).expect("nothing").is_none());
        let further = Further {
            tokens: Tokens(5e10),
            seq_len: 8192,
            batch_seqs: 512,
            rollouts: false,
        };
        let written = Further {
            rollouts: true,
            ..further
        };
        let run = whole_run(&request, &first, &[further, written]);
        let run = run.expect("both fit").expect("stages");
        let [a, b, c] = run.stages.as_slice() else {
            panic!("three stages");
        };
        let together = a.chip_hours.mid + b.chip_hours.mid + c.chip_hours.mid;
        assert!((run.chip_hours.mid / together - 1.0).abs() < 1e-12);
        let writing = c.writing_chip_hours;
        assert!((c.chip_hours.mid - b.chip_hours.mid - writing.mid).abs() < 1e-6);
        assert!(writing.low > 0.0 && writing.low < writing.high);
        // The same price for every hour.
        let price = |stage: &super::Stage| {
            let cost = stage.cost_usd.expect("a price");
            cost.mid / stage.chip_hours.mid
        };
        assert!((price(c) - 2.0).abs() < 1e-9 && (price(a) - 2.0).abs() < 1e-9);
        let days = c.chip_hours.mid / 512.0 / 24.0;
        assert!((c.days.mid / days - 1.0).abs() < 1e-9);
    }
}

//! From the time of a step to a run: failures, days, chip-hours, energy, cost.

use serde::Serialize;

use crate::interval::Interval;
use crate::job::Cluster;
use crate::quantity::{
    ChipSeconds, Chips, Dollars, DollarsPerChipSecond, Seconds, Tokens, TokensPerSecond, Watts,
};

/// Unexpected interruptions per chip and day. Mid: Llama 3, 419 in 54 days on 16,384 H100 (arXiv
/// 2407.21783, section 3.3.4). Low and high: Meta's two research clusters, 2.34 and 6.5 per
/// thousand days of nodes with eight chips (arXiv 2410.21680).
pub const FAILURES_PER_CHIP_DAY: Interval<f64> = Interval {
    low: 2.9e-4,
    mid: 4.736e-4,
    high: 8.1e-4,
};

/// Seconds that saving a checkpoint stops a run for, and that coming back from a failure takes.
/// The fast ends explain Llama 3's "over 90 %" of effective time on 16,384 chips.
pub const CHECKPOINT: Interval<Seconds> = Interval {
    low: Seconds(10.0),
    mid: Seconds(30.0),
    high: Seconds(60.0),
};
pub const RESTART: Interval<Seconds> = Interval {
    low: Seconds(300.0),
    mid: Seconds(450.0),
    high: Seconds(600.0),
};

/// Watts drawn from the wall per watt of a chip's rating, host and network included, cooling of the
/// building not: Olmo 3, 624 to 649 W an H100-hour of 700; BLOOM, 400 W an A100-hour of 400 (arXiv
/// 2211.02001).
pub const POWER_SHARE: Interval<f64> = Interval {
    low: 0.891,
    mid: 0.927,
    high: 1.0,
};

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Campaign {
    pub steps: f64,
    /// Hours between interruptions.
    pub hours_between_failures: Interval<f64>,
    /// Seconds from one checkpoint to the next that lose least (Young's formula).
    pub checkpoint_seconds: Interval<f64>,
    /// Share of the time in which the run advances.
    pub goodput: Interval<f64>,
    pub days: Interval<f64>,
    pub chip_hours: Interval<f64>,
    /// `None` where the catalogue has no rating of the chip's power.
    pub energy_mwh: Option<Interval<f64>>,
    /// `None` where nobody named a price.
    pub cost_usd: Option<Interval<f64>>,
}

/// Goodput of so many chips: what saving and coming back leave.
pub struct Failures {
    pub between: Interval<Seconds>,
    pub checkpoint_every: Interval<Seconds>,
    pub goodput: Interval<f64>,
    /// With failures as frequent as at Meta, and saving and coming back slow to fast.
    pub at_usual_rate: Interval<f64>,
}

impl Failures {
    pub fn of(chips: u64) -> Failures {
        Failures::of_about(chips as f64)
    }

    /// The same of a number that is known within bounds, or a mean.
    pub fn of_about(chips: f64) -> Failures {
        let between = |rate: f64| Seconds::from_days(1.0) / (rate * chips);
        let rate = FAILURES_PER_CHIP_DAY;
        // Rare failures go with a fast way back for the best case, and the other way round.
        let best = Case::new(between(rate.low), CHECKPOINT.low, RESTART.low);
        let usual = Case::new(between(rate.mid), CHECKPOINT.mid, RESTART.mid);
        let worst = Case::new(between(rate.high), CHECKPOINT.high, RESTART.high);
        let fast = Case::new(usual.between, CHECKPOINT.low, RESTART.low);
        let slow = Case::new(usual.between, CHECKPOINT.high, RESTART.high);
        let mut every = [best.every, usual.every, worst.every];
        every.sort_by(|a, b| a.0.total_cmp(&b.0));
        Failures {
            between: Interval::new(worst.between, usual.between, best.between),
            checkpoint_every: Interval::new(every[0], every[1], every[2]),
            goodput: Interval::new(worst.goodput, usual.goodput, best.goodput),
            at_usual_rate: Interval::new(slow.goodput, usual.goodput, fast.goodput),
        }
    }
}

struct Case {
    between: Seconds,
    every: Seconds,
    goodput: f64,
}

impl Case {
    /// Of each interval between checkpoints the saving is lost; of each time between failures the
    /// way back and, on average, half an interval that is done again.
    fn new(between: Seconds, save: Seconds, restart: Seconds) -> Case {
        // Young's formula, as far as there is time to save at all.
        let every = Seconds((2.0 * save.0 * between.0).sqrt()).max(save * 2.0);
        let saved = 1.0 - save / every;
        let kept = between / (between + restart + every / 2.0);
        Case {
            between,
            every,
            goodput: saved * kept,
        }
    }
}

impl Campaign {
    /// `rate` is that of the whole cluster while it advances; `price` as rented.
    pub fn new(
        cluster: &Cluster,
        tokens: Tokens,
        tokens_per_step: Tokens,
        rate: Interval<TokensPerSecond>,
        price: Option<Interval<DollarsPerChipSecond>>,
    ) -> Campaign {
        let failures = Failures::of(cluster.chips);
        let goodput = failures.goodput;
        let time = Interval::new(
            tokens / (rate.high * goodput.high),
            tokens / (rate.mid * goodput.mid),
            tokens / (rate.low * goodput.low),
        );
        let held: Interval<ChipSeconds> = time.map(|time| Chips(cluster.chips as f64) * time);
        let energy = cluster.chip.power.map(|power| {
            let drawn: Interval<Watts> = POWER_SHARE.map(|share| power * share);
            let of = |watts: Watts, held: ChipSeconds| (watts * Seconds(held.0)).megawatt_hours();
            Interval::new(
                of(drawn.low, held.low),
                of(drawn.mid, held.mid),
                of(drawn.high, held.high),
            )
        });
        let cost: Option<Interval<Dollars>> = price.map(|price| price * held);
        Campaign {
            steps: (tokens / tokens_per_step).ceil(),
            hours_between_failures: failures.between.map(Seconds::hours),
            checkpoint_seconds: failures.checkpoint_every.map(|time| time.0),
            goodput,
            days: time.map(Seconds::days),
            chip_hours: held.map(ChipSeconds::hours),
            energy_mwh: energy,
            cost_usd: cost.map(|cost| cost.map(|dollars| dollars.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Case, Failures};
    use crate::quantity::Seconds;

    #[test]
    fn goodput_is_the_published_arithmetic() {
        // To first order 4.3 % are lost with 60 s a checkpoint and 10 min a restart on 2,048 chips
        // at Llama 3's rate, one failure in 24.7 hours; with 10 s and 5 min 6.9 % on 16,384 (3.09
        // h). The products here lose a little less.
        let case = Case::new(Seconds::from_hours(24.7), Seconds(60.0), Seconds(600.0));
        assert!(
            (1.0 - case.goodput - 0.043).abs() < 4e-3,
            "{}",
            case.goodput
        );
        let case = Case::new(Seconds::from_hours(3.09), Seconds(10.0), Seconds(300.0));
        assert!(
            (1.0 - case.goodput - 0.069).abs() < 4e-3,
            "{}",
            case.goodput
        );
        let hours = Failures::of(16_384).between.mid.hours();
        assert!((hours - 3.09).abs() < 0.01, "{hours}");
    }
}

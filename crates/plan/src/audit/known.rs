//! What a claim says and what follows from it by one product or quotient.

use super::claim::{Claim, Stage};
use super::published::{Published, facts, generation};
use super::words::{dollars, percent, short};
use crate::campaigns::model_of;
use crate::chip::{self, Chip};
use crate::error::Error;
use crate::interval::Interval;
use crate::job::Precision;
use crate::preset;
use crate::quantity::{
    Bytes, BytesPerSecond, ChipSeconds, Chips, Dollars, DollarsPerChipSecond, Flops,
    FlopsPerSecond, FlopsPerToken, Seconds, Tokens,
};
use crate::shape::Shape;

/// How far two parts of a claim may lie apart: published numbers are rounded.
const ROUNDING: f64 = 0.02;

/// A kind of chip and how many there are of it.
pub struct Kind {
    pub chip: &'static Chip,
    pub count: Option<f64>,
}

pub struct Known<'a> {
    pub claim: &'a Claim,
    pub shape: Option<&'a Shape>,
    pub kinds: Vec<Kind>,
    /// Stated, or chip-hours by days, or what the capital buys.
    pub chips: Option<Interval<f64>>,
    /// Chips held for the stage of `tokens`.
    pub run: Option<ChipSeconds>,
    /// Chips held for all stages.
    pub all: Option<ChipSeconds>,
    /// Of the stage of `tokens`.
    pub time: Option<Seconds>,
    pub price: Option<DollarsPerChipSecond>,
    pub dollars: Option<Dollars>,
    /// Parts that can be reckoned from each other and agree: both, in words.
    pub agreements: Vec<String>,
}

/// Operations to train on one token.
pub struct PerToken {
    /// Half of the attention matrix, without multi-token prediction.
    pub causal: FlopsPerToken,
    /// With multi-token prediction where the model has it.
    pub with_mtp: FlopsPerToken,
    /// The whole attention matrix, without multi-token prediction.
    pub non_causal: FlopsPerToken,
}

impl<'a> Known<'a> {
    /// # Errors
    /// [`Error::UnknownChip`]; [`Error::Chip`] where its rate is unknown; [`Error::Asked`] that
    /// names two parts which contradict each other.
    pub fn of(claim: &'a Claim, shape: Option<&'a Shape>) -> Result<Known<'a>, Error> {
        claim.check()?;
        let kinds = claim.chips.iter().map(|chips| {
            let count = chips.count.map(|count| count as f64);
            let chip = chip::find(&chips.chip)?;
            if chip.bf16.is_none() {
                let message = format!(
                    "no 16-bit rate of {} is published to reckon with",
                    chip.name
                );
                return Err(Error::Chip(message));
            }
            Ok(Kind { chip, count })
        });
        let mut known = Known {
            claim,
            shape,
            kinds: kinds.collect::<Result<_, Error>>()?,
            chips: None,
            run: None,
            all: None,
            time: claim.days.map(Seconds::from_days),
            price: claim
                .usd_per_chip_hour
                .map(DollarsPerChipSecond::from_hourly),
            dollars: claim.dollars.map(Dollars),
            agreements: Vec::new(),
        };
        known.solve()?;
        Ok(known)
    }

    fn solve(&mut self) -> Result<(), Error> {
        let counts: Option<f64> = self.kinds.iter().map(|kind| kind.count).sum();
        let counted = counts.filter(|_| !self.kinds.is_empty());
        self.chips = counted.map(Interval::exact);
        self.solve_hours(counted)?;
        if let (None, Some(all), Some(dollars)) = (self.price, self.all, self.dollars) {
            self.price = Some(dollars / all);
        }
        if let (None, Some(all), Some(price)) = (self.dollars, self.all, self.price) {
            self.dollars = Some(price * all);
        }
        if let (Some(run), Some(time), None) = (self.run, self.time, self.chips) {
            let chips: Chips = run / time;
            self.chips = Some(Interval::exact(chips.0));
        }
        if let (Some(run), Some(chips), None) = (self.run, counted, self.time) {
            self.time = Some(run / Chips(chips));
        }
        if let (None, Some(capital)) = (self.chips, self.claim.capital) {
            let each = facts().usd_per_chip_in_place.bounds();
            let bought = !self.kinds.is_empty();
            self.chips = bought.then(|| each.map(|each| capital / each));
        }
        Ok(())
    }

    fn solve_hours(&mut self, counted: Option<f64>) -> Result<(), Error> {
        let claim = self.claim;
        let stages = claim.stages.iter().map(|stage| self.stage_hours(stage));
        let stages = stages.collect::<Result<Vec<_>, _>>()?;
        let held = stages.iter().copied().collect::<Option<Vec<f64>>>();
        let together: Option<f64> = held
            .filter(|held| !held.is_empty())
            .map(|held| held.iter().sum());
        let mut all = claim.chip_hours;
        if let (Some(stated), Some(together)) = (all, together) {
            let reckoned = format!("the stages together take {} chip-hours", short(together));
            self.agree(
                ["stages", "chip_hours"],
                (reckoned, together),
                stated,
                short,
            )?;
        }
        all = all.or(together);
        if let (Some(hours), Some(price), Some(stated)) =
            (all, claim.usd_per_chip_hour, claim.dollars)
        {
            let cost = hours * price;
            let reckoned = format!(
                "{} chip-hours x {} are {}",
                short(hours),
                dollars(price),
                dollars(cost)
            );
            self.agree(["chip_hours", "dollars"], (reckoned, cost), stated, dollars)?;
        }
        let bought = claim.dollars.zip(claim.usd_per_chip_hour);
        all = all.or(bought.map(|(dollars, price)| dollars / price));
        let by_days = claim
            .days
            .zip(counted)
            .map(|(days, chips)| days * chips * 24.0);
        let mut run = if stages.is_empty() { all } else { stages[0] };
        if let (Some(by_days), Some(run)) = (by_days, run) {
            let days = short(claim.days.unwrap_or_default());
            let chips = short(counted.unwrap_or_default());
            let reckoned = format!(
                "{chips} chips x {days} days x 24 are {} chip-hours",
                short(by_days)
            );
            self.agree(["days", "chip_hours"], (reckoned, by_days), run, short)?;
        }
        run = run.or(by_days);
        if stages.is_empty() {
            all = all.or(by_days);
        }
        self.run = run.map(ChipSeconds::from_hours);
        self.all = all.map(ChipSeconds::from_hours);
        Ok(())
    }

    fn stage_hours(&mut self, stage: &Stage) -> Result<Option<f64>, Error> {
        let product = stage.chips.zip(stage.hours);
        let product = product.map(|(chips, hours)| chips as f64 * hours);
        if let (Some(product), Some(stated)) = (product, stage.chip_hours) {
            let reckoned = format!(
                "chips x hours of stage {:?} are {} chip-hours",
                stage.name,
                short(product)
            );
            self.agree(["hours", "chip_hours"], (reckoned, product), stated, short)?;
        }
        Ok(product.or(stage.chip_hours))
    }

    /// Notes that two parts agree.
    ///
    /// # Errors
    /// [`Error::Asked`] if they lie apart by more than rounding explains.
    fn agree(
        &mut self,
        parts: [&str; 2],
        (reckoned, value): (String, f64),
        stated: f64,
        show: fn(f64) -> String,
    ) -> Result<(), Error> {
        let apart = value / stated - 1.0;
        let [one, other] = parts;
        if apart.abs() > ROUNDING {
            let message = format!(
                "the claim contradicts itself: {reckoned}, but {other} says {}; {one} and {other} \
                 cannot both be right",
                show(stated)
            );
            return Err(Error::asked(&format!("{one} and {other}"), message));
        }
        let stated = show(stated);
        self.agreements.push(match apart.abs() < 5e-4 {
            true => reckoned,
            false => format!(
                "{reckoned}, {} off the stated {stated}",
                percent(apart.abs())
            ),
        });
        Ok(())
    }

    pub fn tokens(&self) -> Option<Tokens> {
        self.claim.tokens.map(Tokens)
    }

    pub fn per_token(&self) -> Option<PerToken> {
        let shape = self.shape?;
        let sequence = self.claim.sequence();
        Some(PerToken {
            causal: shape.training_flops(sequence, true, false),
            with_mtp: shape.training_flops(sequence, true, true),
            non_causal: shape.training_flops(sequence, false, false),
        })
    }

    /// Operations of the stage of `tokens`: causal, without multi-token prediction, as published
    /// shares count them.
    pub fn work(&self) -> Option<Flops> {
        Some(self.per_token()?.causal * self.tokens()?)
    }

    /// The mean over all chips of what a data sheet says, if it says it of every kind.
    pub fn mean(&self, of: impl Fn(&Chip) -> Option<f64>) -> Option<f64> {
        if let [only] = self.kinds.as_slice() {
            return of(only.chip);
        }
        let (mut sum, mut chips) = (0.0, 0.0);
        for kind in &self.kinds {
            sum += kind.count? * of(kind.chip)?;
            chips += kind.count?;
        }
        (chips > 0.0).then(|| sum / chips)
    }

    /// The dense 16-bit peak of a chip.
    pub fn peak(&self) -> Option<FlopsPerSecond> {
        self.mean(|chip| chip.bf16.map(|rate| rate.0))
            .map(FlopsPerSecond)
    }

    /// The narrowest format that the claim allows and a chip of it has.
    pub fn narrowest(&self) -> Precision {
        let allowed = self.claim.precision.map_or(0.0, Precision::bytes);
        let has = |format: &Precision| {
            let mut kinds = self.kinds.iter();
            kinds.any(|kind| format.peak(kind.chip).is_some())
        };
        let formats = Precision::ALL.into_iter();
        let formats = formats.filter(|format| format.bytes() >= allowed && has(format));
        formats
            .min_by(|a, b| a.bytes().total_cmp(&b.bytes()))
            .unwrap_or(Precision::Bf16)
    }

    /// The fastest dense peak of a chip in a format that the claim allows.
    pub fn fastest(&self) -> Option<FlopsPerSecond> {
        let narrowest = self.narrowest();
        let fastest = |chip: &Chip| {
            let allowed = Precision::ALL.into_iter();
            let allowed = allowed.filter(|format| format.bytes() >= narrowest.bytes());
            let rates = allowed.filter_map(|format| format.peak(chip));
            rates.map(|rate| rate.0).reduce(f64::max)
        };
        self.mean(fastest).map(FlopsPerSecond)
    }

    /// Memory of all chips.
    pub fn memory(&self) -> Option<Bytes> {
        let each = self.mean(|chip| chip.memory.map(|memory| memory.0))?;
        Some(Bytes(each * self.chips?.mid))
    }

    pub fn bandwidth(&self) -> Option<BytesPerSecond> {
        let each = self.mean(|chip| chip.memory_bandwidth.map(|rate| rate.0))?;
        Some(BytesPerSecond(each * self.chips?.mid))
    }

    /// Operations of the run over what the chips' 16-bit peak allows in its time.
    pub fn share(&self) -> Option<f64> {
        self.share_of(self.work()?)
    }

    pub fn share_of(&self, work: Flops) -> Option<f64> {
        let possible: Flops = self.peak()? * Seconds(self.run?.0);
        Some(work / possible)
    }

    /// Chips held that long do the work at that share of their 16-bit peak.
    pub fn needed(&self, share: f64) -> Option<ChipSeconds> {
        let seconds: Seconds = self.work()? / (self.peak()? * share);
        Some(ChipSeconds(seconds.0))
    }

    /// The latest generation among the chips; `None` where there are none.
    pub fn newest(&self) -> Option<u8> {
        self.kinds.iter().map(|kind| generation(kind.chip)).max()
    }

    /// Whether a published row is the run that the claim is about: the one it names, or its model
    /// on its chip.
    pub fn is_own(&self, row: &Published) -> bool {
        if self.claim.run.as_deref() == Some(row.run.as_str()) {
            return true;
        }
        let asked = self
            .claim
            .model
            .as_deref()
            .and_then(|name| preset::find(name).ok());
        let published = model_of(&row.run).and_then(|name| preset::find(&name).ok());
        let chips = self.kinds.iter().map(|kind| kind.chip.key.as_str());
        asked.is_some()
            && asked.map(|preset| &preset.name) == published.map(|preset| &preset.name)
            && chips.into_iter().any(|key| key == row.chip)
    }

    pub fn is_mixture(&self) -> bool {
        self.shape.is_some_and(|shape| shape.experts().is_some())
    }

    /// `2,048 H800`, or the kinds of a mixed fleet.
    pub fn fleet(&self) -> String {
        let kinds = self.kinds.iter().map(|kind| {
            let key = kind.chip.key.to_uppercase();
            match kind.count {
                Some(count) => format!("{} {key}", short(count)),
                None => key,
            }
        });
        kinds.collect::<Vec<_>>().join(" + ")
    }
}

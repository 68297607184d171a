//! What one sum of money trains on each chip, at the rents of the catalogue.

use crate::chip::Chip;
use crate::efficiency::Efficiencies;
use crate::interval::Interval;
use crate::job::{Cluster, Job, Precision, Software};
use crate::layout::Layout;
use crate::quantity::{ChipSeconds, Dollars, Flops, FlopsPerSecond, FlopsPerToken, Tokens};
use crate::search::search;
use crate::shape::Shape;
use crate::training::usual_batch;

/// The share of its 16-bit peak that DeepSeek-V3's pre-training reached on 2,048 H800: 385 of 989
/// TFLOPS (arXiv 2505.09343, Table 4, causal attention).
pub const SHARE_OF_PEAK: f64 = 0.3894;

/// The best matrix product that anyone measured on the H100, whose die is the H800's, as a share of
/// its 16-bit peak (github.com/stas00/ml-engineering, compute/accelerator).
const MATMUL_OF_HOPPER: f64 = 0.803;

/// One chip's answer; `None` where the catalogue lacks what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetRow<'a> {
    pub chip: &'a Chip,
    /// Of one chip, over a whole run.
    pub achieved: Option<FlopsPerSecond>,
    /// Most where the rent is lowest.
    pub chip_time: Option<Interval<ChipSeconds>>,
    pub flops: Option<Interval<Flops>>,
}

impl BudgetRow<'_> {
    pub fn tokens(&self, per_token: FlopsPerToken) -> Option<Interval<Tokens>> {
        self.flops.map(|flops| flops.map(|flops| flops / per_token))
    }

    /// Why there is no answer.
    pub fn missing(&self) -> Option<&'static str> {
        match (self.chip_time, self.achieved) {
            (None, _) => Some("price unknown"),
            (_, None) if self.chip.bf16.is_none() => Some("throughput unknown"),
            (_, None) => Some("cannot hold the model"),
            _ => None,
        }
    }
}

/// What a chip is taken to reach where nothing better is known of it and the model:
/// [`SHARE_OF_PEAK`], times the chip's best measured matrix product over Hopper's where there is
/// such a measurement.
pub fn default_achieved(chip: &Chip) -> Option<FlopsPerSecond> {
    let matmul = chip.gemm_bf16.unwrap_or(MATMUL_OF_HOPPER);
    let share = SHARE_OF_PEAK * matmul / MATMUL_OF_HOPPER;
    chip.bf16.map(|peak| peak * share)
}

/// What a chip reaches of model operations when so many of them train a model in the narrowest
/// format of 8 bits or more that they have, with the fastest layout; `None` where the catalogue
/// knows too little of the chip, or they cannot hold the model.
pub fn planned_achieved(
    chip: &Chip,
    chips: u64,
    shape: &Shape,
    seq_len: u64,
) -> Option<FlopsPerSecond> {
    let cluster = Cluster::new(chip.clone(), chips);
    let efficiencies = Efficiencies::shipped();
    let job = Job {
        shape,
        cluster: &cluster,
        seq_len,
        batch_seqs: usual_batch(shape, seq_len, chips),
        precision: match chip.fp8 {
            Some(_) => Precision::Fp8,
            None => Precision::Bf16,
        },
        with_mtp: shape.mtp_modules > 0,
        layout: Layout::default(),
        software: Software::default(),
        efficiencies: &efficiencies,
    };
    let found = search(&job, 1).ok()?;
    Some(found.best[0].step.flops_per_chip)
}

/// What `budget` trains on each chip if one of them computes at `achieved`; most operations first,
/// chips without an answer last, in the order given.
///
/// Neither memory nor the network is asked whether a cluster of that chip can run the model: that
/// is for `achieved`, which gives `None` where it cannot.
pub fn budget_rows<'a>(
    chips: impl Iterator<Item = &'a Chip>,
    budget: Dollars,
    achieved: impl Fn(&Chip) -> Option<FlopsPerSecond>,
) -> Vec<BudgetRow<'a>> {
    let row = |chip: &'a Chip| {
        let achieved = achieved(chip);
        let chip_time = chip.hourly.map(|rent| rent.map(|rent| budget / rent));
        let flops = chip_time.zip(achieved).map(|(time, rate)| {
            // Each chip works for the seconds that it is held.
            time.map(|time| Flops(rate.0 * time.0))
        });
        BudgetRow {
            chip,
            achieved,
            chip_time,
            flops,
        }
    };
    let mut rows: Vec<BudgetRow<'a>> = chips.map(row).collect();
    // No answer counts as less than any.
    let size = |row: &BudgetRow<'_>| row.flops.map_or(-1.0, |flops| flops.mid.0);
    rows.sort_by(|a, b| size(b).total_cmp(&size(a)));
    rows
}

#[cfg(test)]
mod tests {
    use super::{BudgetRow, budget_rows, default_achieved};
    use crate::chip::{catalogue, find, from_csv};
    use crate::quantity::{Dollars, FlopsPerToken};

    #[test]
    fn what_deepseek_spent_buys_what_deepseek_trained() {
        // arXiv 2412.19437, Table 1: $5.328 M for pre-training on 14.8 T tokens; 250.46 GFLOP per
        // token without the module of multi-token prediction, 3.69e24 in all by the same counting.
        let chip = find("h800").expect("a chip");
        let rows = budget_rows([chip].into_iter(), Dollars(5.328e6), default_achieved);
        let time = rows[0].chip_time.expect("a price is known");
        assert!((time.mid.hours() - 2.664e6).abs() < 1.0, "{time:?}");
        let tokens = rows[0].tokens(FlopsPerToken(250.46e9)).expect("known");
        assert!((tokens.mid.0 / 14.8e12 - 1.0).abs() < 0.01, "{tokens:?}");
        assert_eq!(tokens.low, tokens.high, "one price, one answer");
    }

    #[test]
    fn the_lowest_rent_buys_the_most() {
        let rows = budget_rows(catalogue().iter(), Dollars(1e6), default_achieved);
        assert_eq!(rows.len(), catalogue().len());
        for row in &rows {
            let Some(flops) = row.flops else { continue };
            let rent = row.chip.hourly.expect("there is an answer");
            let peak = row.chip.bf16.expect("there is an answer").0;
            let matmul = row.chip.gemm_bf16.unwrap_or(0.803) / 0.803;
            let most = 1e6 / rent.low.hourly() * 3600.0 * peak * 0.3894 * matmul;
            assert!((flops.high.0 / most - 1.0).abs() < 1e-9, "{}", row.chip.key);
        }
        let sizes: Vec<f64> = rows
            .iter()
            .filter_map(|r| r.flops)
            .map(|f| f.mid.0)
            .collect();
        assert!(sizes.windows(2).all(|pair| pair[0] >= pair[1]));
        let answered = |row: &&BudgetRow<'_>| row.flops.is_some();
        assert!(rows[..sizes.len()].iter().all(|row| answered(&row)));
    }

    #[test]
    fn what_is_not_known_is_said_and_not_zero() {
        let text = "key,name,vendor,market,bf16_fp16_dense_tflops,usd_per_hour_low,\
                    usd_per_hour_mid,usd_per_hour_high\na,A,V,dc,100,,,\nb,B,V,dc,,1,2,3\n";
        let chips = from_csv("test", text).expect("a catalogue");
        let rows = budget_rows(chips.iter(), Dollars(10.0), default_achieved);
        let words: Vec<Option<&str>> = rows.iter().map(BudgetRow::missing).collect();
        assert_eq!(words, [Some("price unknown"), Some("throughput unknown")]);
        assert!(rows.iter().all(|row| row.flops.is_none()));
        assert!(rows[0].tokens(FlopsPerToken(1.0)).is_none());
    }
}

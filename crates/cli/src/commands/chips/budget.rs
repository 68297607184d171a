//! What one sum of money trains on each chip.

use clap::Args;
use plan::budget::{BudgetRow, SHARE_OF_PEAK, budget_rows, default_achieved};
use plan::export;
use plan::interval::Interval;
use plan::quantity::{Dollars, FlopsPerToken, Tokens};
use serde_json::{Value, json};

use super::facts::tidy;
use super::selection::Selection;
use super::table::{WIDTH, left_out, wrapped};
use super::{Day, positive};
use crate::commands::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::model_choice;
use crate::numbers::counted;
use crate::plain::plain;
use crate::settings::Settings;

#[derive(Args, Debug)]
pub struct Budget {
    /// Show what this many dollars train on each chip at its rent
    #[arg(long, value_name = "USD", value_parser = positive)]
    budget: Option<f64>,
    /// A model to train with the budget: a preset (`bruchteil plan --list`), a config.json, a
    /// Hugging Face folder, a GGUF file, or the TOML file of a run
    #[arg(long, value_name = "MODEL", requires = "budget")]
    model: Option<String>,
    /// Tokens of the sequences that the model is trained on
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "model")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    seq_len: u64,
}

/// A budget, and what a token of its model takes.
pub struct Purse {
    budget: Dollars,
    per_token: Option<FlopsPerToken>,
}

impl Budget {
    /// `None` where none was given.
    pub fn resolved(&self) -> Result<Option<Purse>, Failure> {
        let Some(budget) = self.budget else {
            return Ok(None);
        };
        let per_token = match &self.model {
            None => None,
            Some(model) => {
                let shape = model_choice::choose(model)?.shape;
                Some(shape.training_flops(self.seq_len, true, true))
            }
        };
        Ok(Some(Purse {
            budget: Dollars(budget),
            per_token,
        }))
    }
}

impl Purse {
    pub fn show(&self, selection: &Selection<'_>, day: &Day, settings: &Settings) -> Outcome {
        let chips = selection.taken.iter().map(|entry| entry.chip);
        let rows = budget_rows(chips, self.budget, default_achieved);
        if settings.json {
            return print_json(&self.json(&rows, selection, day));
        }
        print(&self.text(&rows, selection, day))
    }

    fn tokens(&self, row: &BudgetRow<'_>) -> Option<Interval<Tokens>> {
        self.per_token.and_then(|per_token| row.tokens(per_token))
    }

    fn json(&self, rows: &[BudgetRow<'_>], selection: &Selection<'_>, day: &Day) -> Value {
        let class = |row: &BudgetRow<'_>| {
            let mut entries = selection.taken.iter();
            let entry = entries.find(|entry| entry.chip.key == row.chip.key);
            entry.map(|entry| &entry.export.class)
        };
        let rows = rows.iter().map(|row| {
            let rent = row.chip.hourly;
            json!({
                "key": row.chip.key,
                "class": class(row),
                "rent_usd_per_hour": rent.map(|rent| rent.map(|rent| tidy(rent.hourly()))),
                "rent_source": row.chip.hourly_source,
                "chip_hours": row.chip_time.map(|time| time.map(|time| tidy(time.hours()))),
                "flops": row.flops,
                "tokens": self.tokens(row),
                "missing": row.missing(),
            })
        });
        json!({
            "budget_usd": self.budget,
            "share_of_bf16_peak": SHARE_OF_PEAK,
            "flops_per_token": self.per_token,
            "as_of": day.date,
            "disclaimer": export::DISCLAIMER,
            "rows": rows.collect::<Vec<Value>>(),
            "left_out_for_want_of_data": selection.unknown_keys(),
        })
    }

    fn text(&self, rows: &[BudgetRow<'_>], selection: &Selection<'_>, day: &Day) -> String {
        let title = format!("What ${} trains on each chip", tidy(self.budget.0));
        let mut lines = vec![
            title,
            String::new(),
            format!(
                "{:<12} {:>8} {:>6} {:>13} {:>11} {:>9} {:>9} {:>19}",
                "chip",
                "class",
                "$/h",
                "low to high",
                "chip-hours",
                "FLOP",
                "tokens",
                "low to high"
            ),
        ];
        for row in rows {
            let mut entries = selection.taken.iter();
            let entry = entries.find(|entry| entry.chip.key == row.chip.key);
            let class = entry.map_or("-", |entry| entry.export.class.as_str());
            let key: String = plain(&row.chip.key).chars().take(12).collect();
            lines.push(format!("{key:<12} {class:>8} {}", self.cells(row)));
        }
        lines.push(String::new());
        let remarks = [
            left_out(selection),
            format!(
                "Every chip is taken to reach {:.1} % of its 16-bit peak, the share that \
                 DeepSeek-V3 published for the H800 (arXiv 2505.09343), or as much less or more \
                 as its best measured matrix product is below or above the H100's; a slow link or \
                 little memory costs further. Rents are the catalogue's, on demand: `bruchteil \
                 chips NAME` says whose; --rent gives another.",
                100.0 * SHARE_OF_PEAK
            ),
            day.remark(),
        ];
        lines.extend(remarks.iter().flat_map(|remark| wrapped(remark, WIDTH)));
        lines.join("\n") + "\n"
    }

    fn cells(&self, row: &BudgetRow<'_>) -> String {
        let dash = || "-".to_string();
        let rent = row.chip.hourly;
        let mid = rent.map_or_else(dash, |rent| format!("{:.2}", rent.mid.hourly()));
        let range = rent.filter(|rent| rent.low < rent.high);
        let range = range.map_or_else(dash, |rent| {
            format!("{:.2} to {:.2}", rent.low.hourly(), rent.high.hourly())
        });
        let (Some(time), Some(flops)) = (row.chip_time, row.flops) else {
            let missing = row.missing().unwrap_or_default();
            return format!("{mid:>6} {range:>13} {missing:>22}");
        };
        let hours = format!("{:.0}", time.mid.hours());
        let flops = format!("{:.2e}", flops.mid.0);
        let tokens = self.tokens(row);
        let mid_tokens = tokens.map_or_else(dash, |tokens| counted(tokens.mid.0));
        let span = tokens.filter(|tokens| tokens.low < tokens.high);
        let span = span.map_or_else(dash, |tokens| {
            format!("{} to {}", counted(tokens.low.0), counted(tokens.high.0))
        });
        format!("{mid:>6} {range:>13} {hours:>11} {flops:>9} {mid_tokens:>9} {span:>19}")
    }
}

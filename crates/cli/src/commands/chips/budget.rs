//! What one sum of money trains on each chip.

use std::cell::RefCell;

use clap::Args;
use plan::budget::{BudgetRow, SHARE_OF_PEAK, budget_rows, default_achieved, planned_achieved};
use plan::export;
use plan::interval::Interval;
use plan::quantity::{Dollars, FlopsPerToken, Tokens};
use plan::shape::Shape;
use serde_json::{Value, json};

use super::Day;
use super::facts::tidy;
use super::selection::Selection;
use super::table::left_out;
use crate::commands::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::lines::{WIDTH, wrapped};
use crate::model_choice;
use crate::numbers::{counted, parse_positive};
use crate::plain::plain;
use crate::settings::Settings;

#[derive(Args, Debug)]
pub struct Budget {
    /// Show what this many dollars train on each chip at its rent
    #[arg(long, value_name = "USD", value_parser = parse_positive)]
    budget: Option<f64>,
    /// A model to train with the budget: a preset (`bruchteil plan --list`), a config.json, a
    /// Hugging Face folder, a GGUF file, or the TOML file of a run
    #[arg(long, value_name = "MODEL", requires = "budget")]
    model: Option<String>,
    /// Tokens of the sequences that the model is trained on
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "model")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    seq_len: u64,
    /// Chips that train it together
    #[arg(long, value_name = "N", default_value_t = 1024, requires = "model")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1 << 17))]
    together: u64,
}

/// A model, and how it is trained.
struct Trained {
    shape: Shape,
    seq_len: u64,
    together: u64,
}

/// A budget, and what a token of its model takes.
pub struct Purse {
    budget: Dollars,
    model: Option<Trained>,
}

impl Budget {
    /// `None` where none was given.
    pub fn resolved(&self) -> Result<Option<Purse>, Failure> {
        let Some(budget) = self.budget else {
            return Ok(None);
        };
        let chosen = self.model.as_deref().map(model_choice::choose);
        Ok(Some(Purse {
            budget: Dollars(budget),
            model: chosen.transpose()?.map(|chosen| Trained {
                shape: chosen.shape,
                seq_len: self.seq_len,
                together: self.together,
            }),
        }))
    }
}

impl Purse {
    pub fn show(&self, selection: &Selection<'_>, day: &Day, settings: &Settings) -> Outcome {
        let chips = selection.taken.iter().map(|entry| entry.chip);
        let rows = match &self.model {
            None => budget_rows(chips, self.budget, default_achieved),
            Some(model) => {
                let total = selection.taken.len() as u64;
                let progress = RefCell::new((0, settings.ui().start("chips", total)));
                budget_rows(chips, self.budget, |chip| {
                    let (done, bar) = &mut *progress.borrow_mut();
                    bar.update(*done, &format!("planning on {}", chip.key));
                    *done += 1;
                    // Of a chip without a price nothing would be shown.
                    chip.hourly?;
                    planned_achieved(chip, model.together, &model.shape, model.seq_len)
                })
            }
        };
        if settings.json {
            return print_json(&self.json(&rows, selection, day));
        }
        print(&self.text(&rows, selection, day))
    }

    fn tokens(&self, row: &BudgetRow<'_>) -> Option<Interval<Tokens>> {
        self.per_token().and_then(|per_token| row.tokens(per_token))
    }

    fn per_token(&self) -> Option<FlopsPerToken> {
        let model = self.model.as_ref()?;
        Some(model.shape.training_flops(model.seq_len, true, true))
    }

    /// How the operations of a chip were found.
    fn reached(&self) -> String {
        let rents = "Rents are the catalogue's, on demand: `bruchteil chips NAME` says whose; \
                     --rent gives another.";
        match &self.model {
            Some(model) => format!(
                "Every chip as {} of them train the model with their fastest layout, in 8 bits \
                 where they can, by the model of a step that `bruchteil plan` has; where the \
                 catalogue names no link between machines, 400 Gbit/s a chip are taken, which few \
                 rented consumer cards have. {rents}",
                model.together
            ),
            None => format!(
                "Every chip is taken to reach {:.1} % of its 16-bit peak, the share that \
                 DeepSeek-V3 published for the H800 (arXiv 2505.09343), or as much less or more \
                 as its best measured matrix product is below or above the H100's; --model \
                 reckons with a model, its memory and the links. {rents}",
                100.0 * SHARE_OF_PEAK
            ),
        }
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
            "share_of_bf16_peak": self.model.is_none().then_some(SHARE_OF_PEAK),
            "chips_together": self.model.as_ref().map(|model| model.together),
            "flops_per_token": self.per_token(),
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
        let remarks = [left_out(selection), self.reached(), day.remark()];
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

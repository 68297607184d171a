//! `chips`: accelerators, what each can do, its class under rules of export, and what a budget
//! trains on it.

mod budget;
mod detail;
mod facts;
mod selection;
mod table;

use std::path::{Path, PathBuf};

use clap::Args;
use plan::chip::{self, Chip};
use plan::date::Date;
use plan::export::{self, Classification, classify};
use plan::interval::Interval;
use plan::quantity::DollarsPerChipSecond;
use serde_json::json;

use super::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::numbers::parse_positive;
use crate::settings::Settings;
use crate::small_text;
use budget::Budget;
use selection::{Filter, Selection};

/// A catalogue of chips is small; a larger file is none.
const LARGEST_CATALOGUE: u64 = 16 << 20;

/// Accelerators: figures with sources, export class by date, and what a budget trains on each
///
/// One name shows all that is known of that chip; several, or none, a table. A figure that nobody
/// published is shown as "-", never as 0.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  bruchteil chips\n  bruchteil chips h800\n  \
    bruchteil chips --class 3a090.a --date 2023-11-17 --vendor nvidia\n  \
    bruchteil chips h100 h800 a800 h20 --budget 5.3e6 --rent h20=1.1"
)]
pub struct Chips {
    /// Chips by key or name, such as h800 or "A100 PCIe 80GB" [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// A CSV of chips to read instead of the catalogue that ships with the program
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
    /// The day whose rules of export count [default: that of the newest rule known]
    #[arg(long, value_name = "DATE")]
    date: Option<Date>,
    #[command(flatten)]
    budget: Budget,
    /// What a chip rents for, in dollars per hour, such as h20=1.1; may be given again
    #[arg(long = "rent", value_name = "NAME=USD", value_parser = rent)]
    rents: Vec<(String, f64)>,
}

/// A chip, and what the rules say of it on the day asked for.
struct Entry<'a> {
    chip: &'a Chip,
    export: Classification,
}

impl Chips {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let mut chips = match &self.catalogue {
            None => chip::catalogue().to_vec(),
            Some(path) => own_catalogue(path)?,
        };
        self.set_rents(&mut chips)?;
        let date = self.date.unwrap_or_else(export::newest);
        let mut named = Vec::new();
        for name in &self.names {
            let found = chip::find_in(&chips, name).map_err(Failure::from)?;
            if !named.iter().any(|chip: &&Chip| chip.key == found.key) {
                named.push(found);
            }
        }
        let one = named.len() == 1 && self.filter.is_empty();
        if named.is_empty() {
            named = chips.iter().collect();
        }
        let entries = named.into_iter().map(|chip| Entry {
            chip,
            export: classify(chip, date),
        });
        let selection = self.filter.select(entries);
        let day = Day {
            date,
            chosen: self.date.is_some(),
        };
        match (self.budget.resolved()?, one) {
            (Some(budget), _) => budget.show(&selection, &day, settings),
            (None, true) if !settings.json => print(&detail::text(&selection.taken[0], &day)),
            (None, _) => show(&selection, &day, settings),
        }
    }

    /// Rents that the user gave stand in place of the catalogue's.
    fn set_rents(&self, chips: &mut [Chip]) -> Outcome {
        for (name, dollars) in &self.rents {
            let key = chip::find_in(chips, name)
                .map_err(Failure::from)?
                .key
                .clone();
            for chip in chips.iter_mut().filter(|chip| chip.key == key) {
                let rent = DollarsPerChipSecond::from_hourly(*dollars);
                chip.hourly = Some(Interval::exact(rent));
                chip.hourly_source = "given with --rent".to_string();
            }
        }
        Ok(())
    }
}

/// The day whose rules are shown.
struct Day {
    date: Date,
    /// By the user, rather than by default.
    chosen: bool,
}

impl Day {
    /// The line that goes with every class.
    fn remark(&self) -> String {
        let which = match self.chosen {
            true => "",
            false => " (the newest rule known)",
        };
        format!("As of {}{which}, {}.", self.date, export::DISCLAIMER)
    }
}

fn show(selection: &Selection<'_>, day: &Day, settings: &Settings) -> Outcome {
    if !settings.json {
        return print(&table::text(selection, day));
    }
    let chips: Vec<_> = selection.taken.iter().map(facts::json).collect();
    print_json(&json!({
        "as_of": day.date,
        "disclaimer": export::DISCLAIMER,
        "chips": chips,
        "left_out_for_want_of_data": selection.unknown_keys(),
    }))
}

fn own_catalogue(path: &Path) -> Result<Vec<Chip>, Failure> {
    let advice = "give a CSV with the columns of the catalogue that ships with the program";
    let text = small_text::read(path, LARGEST_CATALOGUE, advice)?;
    chip::from_csv(&path.display().to_string(), &text).map_err(Failure::from)
}

fn rent(text: &str) -> Result<(String, f64), String> {
    let (name, dollars) = text
        .split_once('=')
        .ok_or("write a chip and dollars per hour, as h20=1.1")?;
    Ok((name.to_string(), parse_positive(dollars)?))
}

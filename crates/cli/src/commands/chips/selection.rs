//! Which chips are shown.

use clap::Args;
use plan::chip::Market;
use plan::date::Date;
use plan::export::{ClassFilter, Verdict};
use plan::quantity::Bytes;

use super::Entry;
use crate::numbers::parse_positive;

#[derive(Args, Debug)]
pub struct Filter {
    /// Only of this vendor, such as nvidia
    #[arg(long, value_name = "NAME")]
    vendor: Option<String>,
    /// Only of this market: datacentre, consumer or cloud
    #[arg(long, value_name = "MARKET", value_parser = market)]
    market: Option<Market>,
    /// Only with at least this total processing performance, such as 4800
    #[arg(long, value_name = "TPP", value_parser = parse_positive)]
    min_tpp: Option<f64>,
    /// Only with at least this memory in GB
    #[arg(long, value_name = "GB", value_parser = parse_positive)]
    min_memory: Option<f64>,
    /// Only of this class on the day of --date: 3a090.a, 3a090.b, 3a090 (any), outside, none or
    /// unknown
    #[arg(long, value_name = "CLASS")]
    class: Option<ClassFilter>,
    /// Only launched before this day
    #[arg(long, value_name = "DATE")]
    launched_before: Option<Date>,
}

/// The chips that a filter takes, and those of which it cannot be said.
pub struct Selection<'a> {
    pub taken: Vec<Entry<'a>>,
    unknown: Vec<&'a str>,
}

impl Selection<'_> {
    /// Keys of chips that are left out because what the filter asks for is not published.
    pub fn unknown_keys(&self) -> &[&str] {
        &self.unknown
    }
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        let Filter {
            vendor,
            market,
            min_tpp,
            min_memory,
            class,
            launched_before,
        } = self;
        vendor.is_none()
            && market.is_none()
            && min_tpp.is_none()
            && min_memory.is_none()
            && class.is_none()
            && launched_before.is_none()
    }

    pub fn select<'a>(&self, entries: impl Iterator<Item = Entry<'a>>) -> Selection<'a> {
        let mut selection = Selection {
            taken: Vec::new(),
            unknown: Vec::new(),
        };
        for entry in entries {
            match self.takes(&entry) {
                Verdict::Yes => selection.taken.push(entry),
                Verdict::No => {}
                Verdict::Unknown(_) => selection.unknown.push(&entry.chip.key),
            }
        }
        selection
    }

    fn takes(&self, entry: &Entry<'_>) -> Verdict {
        let chip = entry.chip;
        let mut verdict = Verdict::Yes;
        if let Some(vendor) = &self.vendor {
            verdict = verdict.and(chip.vendor.eq_ignore_ascii_case(vendor).into());
        }
        if let Some(market) = self.market {
            verdict = verdict.and((chip.market == market).into());
        }
        if let Some(limit) = self.min_tpp {
            let tpp = entry.export.total_processing_performance;
            verdict = verdict.and(Verdict::at_least(tpp, limit, "the throughput"));
        }
        if let Some(limit) = self.min_memory {
            let memory = chip.memory.map(|memory| memory / Bytes(1e9));
            verdict = verdict.and(Verdict::at_least(memory, limit, "the memory"));
        }
        if let Some(class) = self.class {
            verdict = verdict.and(class.takes(&entry.export.class).into());
        }
        if let Some(day) = self.launched_before {
            let before = match chip.launch {
                Some(launch) => (launch.last_day() < day.first_day()).into(),
                None => Verdict::Unknown("needs the launch".to_string()),
            };
            verdict = verdict.and(before);
        }
        verdict
    }
}

fn market(text: &str) -> Result<Market, String> {
    Market::parse(&text.to_lowercase())
        .ok_or_else(|| "there are datacentre (or dc), consumer and cloud".to_string())
}

//! A day of a service: nodes, rent, and what users would pay.

use crate::quantity::{Dollars, Seconds};

/// What one day brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Day {
    /// Prompt tokens, those with a cache at hand included.
    pub input: f64,
    /// Of `input`, those with a cache at hand.
    pub hits: f64,
    pub output: f64,
    /// Of 8 chips, on average.
    pub nodes: f64,
    /// Dollars an hour and chip.
    pub hourly: f64,
    /// Dollars a million tokens: input with a cache, input without, output.
    pub prices: [f64; 3],
    /// Tokens a second that each user got.
    pub per_user: f64,
    pub rates: Rates,
}

/// Tokens a second and node, as a mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub prefill: f64,
    pub decode: f64,
}

/// DeepSeek's own day, 2025-02-27 to 28: github.com/deepseek-ai/open-infra-index,
/// 202502OpenSourceWeek/day_6.
pub fn deepseek_day() -> Day {
    Day {
        input: 608e9,
        hits: 342e9,
        output: 168e9,
        nodes: 226.75,
        hourly: 2.0,
        prices: [0.14, 0.55, 2.19],
        per_user: 21.0,
        rates: Rates {
            prefill: 73_700.0,
            decode: 14_800.0,
        },
    }
}

impl Day {
    /// Nodes for prompts and for answers that such rates take, all day.
    pub fn nodes_at(&self, rates: Rates) -> [f64; 2] {
        let day = Seconds::from_days(1.0).0;
        [
            self.input / day / rates.prefill,
            self.output / day / rates.decode,
        ]
    }

    /// Rent of so many nodes for a day.
    pub fn rent(&self, nodes: f64) -> Dollars {
        Dollars(nodes * super::NODE * self.hourly * 24.0)
    }

    /// All tokens at the listed prices; DeepSeek's own revenue was lower, as it says.
    pub fn revenue(&self) -> Dollars {
        let [hit, miss, output] = self.prices;
        let input = self.hits * hit + (self.input - self.hits) * miss;
        Dollars((input + self.output * output) / 1e6)
    }

    /// What is left over of revenue, per dollar of rent.
    pub fn margin(&self) -> f64 {
        let rent = self.rent(self.nodes);
        (self.revenue() - rent) / rent
    }

    pub fn hit_share(&self) -> f64 {
        self.hits / self.input
    }
}

//! Services whose rates were published, beside what is predicted for them.

use serde::Serialize;

use super::{Service, deepseek_day};
use crate::chip;
use crate::error::Error;
use crate::interval::Interval;
use crate::quantity::TokensPerSecond;
use crate::shape::Shape;

/// One published number.
#[derive(Clone, Debug, Serialize)]
pub struct Published {
    pub what: &'static str,
    pub unit: &'static str,
    pub published: f64,
    pub predicted: Interval<f64>,
    /// Of the middle of the prediction: 0.1 is a tenth too much.
    pub error: f64,
    pub source: &'static str,
    /// What separates the two that a roofline does not know.
    pub note: &'static str,
}

const DEEPSEEK: &str =
    "github.com/deepseek-ai/open-infra-index 202502OpenSourceWeek/day_6 (mean of a day)";
const SGLANG: &str = "lmsys.org/blog/2025-05-05-large-scale-ep (benchmark)";
const SGLANG_GB200: &str = "lmsys.org/blog/2025-06-16-gb200-part-1 (benchmark, 12 nodes of 4)";
const SGLANG_H20: &str = "lmsys.org/blog/2025-09-26-sglang-ant-group (benchmark)";

const LOAD: &str = "published: a mean over the load of a day; predicted: a full pool";
const FULL: &str = "a saturated pool; the published cache limit of sequences is not known";

impl Published {
    fn new(
        [what, unit, source, note]: [&'static str; 4],
        published: f64,
        predicted: Interval<f64>,
    ) -> Published {
        Published {
            what,
            unit,
            published,
            predicted,
            error: predicted.mid / published - 1.0,
            source,
            note,
        }
    }
}

/// DeepSeek's service, and SGLang's benchmarks of the same model, each from chips, layout and
/// lengths alone. `v3` is DeepSeek-V3's shape.
///
/// # Errors
/// Those of [`Service::prefill`] and [`Service::decode`]; none where `v3` is what it should be.
pub fn published(v3: &Shape) -> Result<Vec<Published>, Error> {
    let mut rows = deepseek(v3)?;
    rows.extend(sglang(v3)?);
    Ok(rows)
}

fn plain(rate: Interval<TokensPerSecond>) -> Interval<f64> {
    rate.map(|rate| rate.0)
}

fn deepseek(v3: &Shape) -> Result<Vec<Published>, Error> {
    let day = deepseek_day();
    let service = Service {
        cache_hits: day.hit_share(),
        prefill_chips: Some(32),
        decode_chips: Some(144),
        ..Service::new(v3, chip::find("h800")?)
    };
    let prefill = service.prefill()?;
    let paced = Service {
        per_user: Some(day.per_user),
        ..service
    };
    let paced = paced.decode()?;
    // Little's law on the published rates: 14,800 / 8 / 21 sequences on each chip.
    let sequences = (day.rates.decode / super::NODE / day.per_user).round() as u64;
    let peopled = Service {
        sequences: Some(sequences),
        ..service
    };
    let peopled = peopled.decode()?;
    let node = "tokens/s per node";
    Ok(vec![
        Published::new(
            [
                "DeepSeek H800 prefill, EP32, 56.3 % hits",
                node,
                DEEPSEEK,
                LOAD,
            ],
            day.rates.prefill,
            plain(prefill.tokens_per_second_per_node),
        ),
        Published::new(
            [
                "DeepSeek H800 decode, EP144, at 21 tokens/s per user",
                node,
                DEEPSEEK,
                LOAD,
            ],
            day.rates.decode,
            plain(paced.tokens_per_second_per_node),
        ),
        Published::new(
            [
                "DeepSeek H800 decode, EP144, with 88 sequences per chip",
                "tokens/s per user",
                DEEPSEEK,
                "sequences per chip follow from the published rates",
            ],
            day.per_user,
            plain(peopled.tokens_per_second_per_user),
        ),
    ])
}

fn sglang(v3: &Shape) -> Result<Vec<Published>, Error> {
    // Prompts of 2,000 tokens; the length of the answers is assumed, some 100.
    let h100 = Service {
        prompt: 2000,
        context: 2050,
        cache_hits: 0.0,
        prefill_chips: Some(32),
        decode_chips: Some(72),
        ..Service::new(v3, chip::find("h100")?)
    };
    let gb200 = Service {
        decode_chips: Some(48),
        ..Service {
            chip: chip::find("gb200")?,
            ..h100
        }
    };
    let h20 = Service {
        prompt: 4096,
        context: 4096,
        prefill_chips: Some(8),
        decode_chips: Some(16),
        ..Service {
            chip: chip::find("h20")?,
            ..h100
        }
    };
    let node = "tokens/s per node";
    let row = |what, source, note, published, predicted: Interval<TokensPerSecond>| {
        Published::new([what, node, source, note], published, plain(predicted))
    };
    let even = "predicted with an even load of the experts, which the benchmark had to balance";
    Ok(vec![
        row(
            "SGLang H100 prefill, EP32, 2,000 tokens",
            SGLANG,
            even,
            52_300.0,
            h100.prefill()?.tokens_per_second_per_node,
        ),
        row(
            "SGLang H100 decode, EP72, 2,000 tokens",
            SGLANG,
            FULL,
            22_300.0,
            h100.decode()?.tokens_per_second_per_node,
        ),
        row(
            "SGLang GB200 decode, 48 chips, 2,000 tokens",
            SGLANG_GB200,
            FULL,
            8.0 * 7583.0,
            gb200.decode()?.tokens_per_second_per_node,
        ),
        row(
            "SGLang H20 prefill, one node, 4,096 tokens",
            SGLANG_H20,
            "published with tensor parallelism 8, predicted with the best",
            16_500.0,
            h20.prefill()?.tokens_per_second_per_node,
        ),
        row(
            "SGLang H20 decode, EP16, 4,096 tokens",
            SGLANG_H20,
            "published within a limit of time per token that is not stated",
            5700.0,
            h20.decode()?.tokens_per_second_per_node,
        ),
    ])
}

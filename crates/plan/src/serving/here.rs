//! This machine: what its memory and its arithmetic allow of a model that this program runs.

use model::Config;
use serde::Serialize;

use crate::error::Error;
use crate::executed::{Chunk, Executed, decode, prefill};
use crate::interval::Interval;
use crate::quantity::{Bytes, BytesPerSecond, Flops, FlopsPerSecond, Seconds, TokensPerSecond};

/// What was measured of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Machine {
    /// Reading, with all threads, as many bytes as the weights are, over and over: what a cache
    /// holds counts at the cache's rate.
    pub bandwidth: BytesPerSecond,
    /// Of a large matrix product in the precision that the model runs in.
    pub peak: FlopsPerSecond,
}

/// Rates of one process.
#[derive(Clone, Debug, Serialize)]
pub struct Here {
    pub machine: Machine,
    /// Of weights that one token reads.
    pub weight_bytes: Bytes,
    /// Alone, one token after the other.
    pub decode_alone: Interval<TokensPerSecond>,
    pub batch: u64,
    /// All sequences of a batch together.
    pub decode_batch: Interval<TokensPerSecond>,
    pub prefill: Interval<TokensPerSecond>,
}

/// What a model does here; `bytes_per_weight` is that of the form it is stored in, `None` that of
/// bf16 panels ([`Executed::weight_bytes`]).
///
/// Each rate lies between that of reading and computing one after the other and that of both at
/// once, which is its middle too: a bound that programs stay under.
///
/// # Errors
/// [`Error::Asked`] for a batch, prompt or context of no token.
pub fn here(
    config: &Config,
    machine: Machine,
    bytes_per_weight: Option<f64>,
    [batch, context, prompt]: [u64; 3],
) -> Result<Here, Error> {
    for (what, value) in [("batch", batch), ("context", context), ("prompt", prompt)] {
        if value == 0 {
            return Err(Error::asked(what, "0; at least 1 is needed"));
        }
    }
    let contexts = vec![context; batch as usize];
    let alone = decode(config, &contexts[..1]);
    let together = decode(config, &contexts);
    let whole = Chunk {
        new: prompt,
        context: prompt,
    };
    let prompts = prefill(config, &[whole], 1);
    let rate =
        |executed: &Executed, tokens: u64| machine.rate(executed, bytes_per_weight, tokens as f64);
    Ok(Here {
        machine,
        weight_bytes: weights(&alone, bytes_per_weight),
        decode_alone: rate(&alone, 1),
        batch,
        decode_batch: rate(&together, batch),
        prefill: rate(&prompts, prompt),
    })
}

fn weights(executed: &Executed, bytes_per_weight: Option<f64>) -> Bytes {
    match bytes_per_weight {
        Some(width) => Bytes(executed.weights as f64 * width),
        None => Bytes(executed.weight_bytes as f64),
    }
}

impl Machine {
    fn rate(
        &self,
        executed: &Executed,
        bytes_per_weight: Option<f64>,
        tokens: f64,
    ) -> Interval<TokensPerSecond> {
        let bytes = weights(executed, bytes_per_weight) + Bytes(executed.key_bytes as f64);
        let (read, computed) = (
            bytes / self.bandwidth,
            Flops(executed.flops() as f64) / self.peak,
        );
        let rate = |seconds: Seconds| TokensPerSecond(tokens / seconds.0);
        let both = rate(read.max(computed));
        Interval::new(rate(read + computed), both, both)
    }
}

//! Time of prompts: a forward pass of whole micro-batches, exchanges behind compute.

use super::pool::{Holding, Pool};
use crate::layer_time::{Work, layer_time};
use crate::quantity::{Flops, Seconds, TokensPerSecond};
use crate::shape::{Attention, Layer};

/// Tokens of a micro-batch on one chip: two of them are the 16K of DeepSeek's profile of its
/// prefill (github.com/deepseek-ai/profile-data).
const MICRO_BATCH: u64 = 8192;
/// The smallest that is tried where memory is short.
const LEAST: u64 = 128;

/// One micro-batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    pub work: Work,
    pub compute: Seconds,
    pub seconds: Seconds,
}

impl Pool<'_> {
    /// Tokens of a micro-batch that memory has room for, on one chip; `None` if there are none.
    pub fn micro_batch(&self) -> Option<u64> {
        let mut tokens = MICRO_BATCH;
        while tokens >= LEAST {
            if self.holding_of_prompts(tokens).total() <= self.usable() {
                return Some(tokens);
            }
            tokens /= 2;
        }
        None
    }

    /// With two micro-batches under way, of which one layer's activations are held each, and the
    /// caches of their prompts whole, hits included.
    pub fn holding_of_prompts(&self, tokens: u64) -> Holding {
        let group = 2.0 * (tokens * self.tp) as f64;
        let prompt = self.service.prompt as f64;
        let prompts = (group / (prompt * (1.0 - self.service.cache_hits))).ceil();
        Holding {
            weights: self.weights(),
            cache: self.cache(prompt) * prompts,
            activations: self.activation() * group,
        }
    }

    /// A micro-batch of so many tokens on each chip.
    pub fn prompts(&self, tokens: u64) -> Pass {
        let job = self.job(tokens * self.tp);
        let mut work = Work::default();
        for blocks in &self.service.shape.blocks {
            let layer = self.layer_of_prompts(&blocks.layer, tokens);
            work.add(&layer, blocks.count as f64);
        }
        // Logits of each prompt's last token only.
        let prompts = job.tokens() / (self.service.prompt as f64 * (1.0 - self.service.cache_hits));
        work.add(
            &self.product(&job, &self.service.shape.head(), prompts),
            1.0,
        );
        let compute = work.compute(&job);
        let busy = match self.exchanges() {
            true => self.overlapped(compute, work.experts),
            false => compute,
        };
        Pass {
            work,
            compute,
            seconds: busy,
        }
    }

    /// A layer's forward as in training, with the keys that the tokens behind a cached prefix
    /// meet.
    fn layer_of_prompts(&self, layer: &Layer, tokens: u64) -> Work {
        let job = self.job(tokens * self.tp);
        let mut work = layer_time(&job, layer).forward;
        let prompt = self.service.prompt as f64;
        let cached = prompt * self.service.cache_hits;
        let attention = &layer.attention;
        let keys = keys_behind(attention, cached, prompt);
        let reckoned = attention.mean_keys(job.seq_len as f64, true);
        work.attention = work.attention * (keys / reckoned);
        // Keys and values of the prefix are made of its latents once more.
        let repeated = job.tokens() * cached / (prompt - cached);
        for product in layer.products(self.service.shape.hidden_size) {
            if product.name == "kv_b_proj" {
                let flops = 2.0 * repeated * product.active_parameters() as f64;
                work.matmul += Flops(flops / self.tp as f64) / job.matmul_rate(job.precision);
            }
        }
        work
    }

    /// Prompt tokens a second and chip, those included whose cache was at hand.
    pub fn prefill_rate(&self, tokens: u64) -> TokensPerSecond {
        let computed = tokens as f64 / self.prompts(tokens).seconds.0;
        TokensPerSecond(computed / (1.0 - self.service.cache_hits))
    }
}

/// Mean keys of the queries from `cached` to the end of a prompt.
fn keys_behind(attention: &Attention, cached: f64, prompt: f64) -> f64 {
    let all = prompt * attention.mean_keys(prompt, true);
    let before = match cached > 0.0 {
        true => cached * attention.mean_keys(cached, true),
        false => 0.0,
    };
    (all - before) / (prompt - cached)
}

#[cfg(test)]
mod tests {
    use super::keys_behind;
    use crate::shape::{Attention, Grouped, Span};

    #[test]
    fn queries_behind_a_prefix_meet_it_and_each_other() {
        let grouped = |span| {
            Attention::Grouped(Grouped {
                num_heads: 1,
                num_kv_heads: 1,
                head_dim: 1,
                span,
                output_gate: false,
                relative_positions: false,
                vectors: 0,
            })
        };
        for (span, most) in [(Span::Full, u64::MAX), (Span::Window(7), 7)] {
            for (cached, prompt) in [(0, 1), (0, 20), (5, 20), (12, 13)] {
                let counted: u64 = (cached + 1..=prompt).map(|keys| keys.min(most)).sum();
                let mean = counted as f64 / (prompt - cached) as f64;
                let found = keys_behind(&grouped(span), cached as f64, prompt as f64);
                assert!((found - mean).abs() < 1e-9, "{span:?} {cached} of {prompt}");
            }
        }
    }
}

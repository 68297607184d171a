//! Time of a step of decoding: a token of each sequence, or two where the second is guessed.

use super::pool::{CACHE_BYTES, Holding, Pool, kept_values};
use crate::efficiency::Efficiency;
use crate::layer_time::{Work, layer_time};
use crate::quantity::{Bytes, BytesPerSecond, Flops, Seconds, TokensPerSecond};
use crate::shape::{Attention, Experts, Layer, Mla};

/// Bytes of a hidden value on its way to an expert, and on its way back.
const DISPATCHED: f64 = 1.0;
const COMBINED: f64 = 2.0;

/// One pair of exchanges: `tokens` go to `experts` each and come back (arXiv 2505.09343, section
/// 2.3.2, whose 120.96 us it gives).
pub fn all_to_all(tokens: f64, experts: f64, hidden: f64, link: BytesPerSecond) -> Seconds {
    Bytes((DISPATCHED + COMBINED) * tokens * experts * hidden) / link
}

/// Least time of a token where only exchanges count: two micro-batches that hide each other's
/// compute, through so many layers (section 2.3.2 there).
pub fn exchange_bound(pair: Seconds, layers: u64) -> Seconds {
    pair * (2 * layers) as f64
}

/// Routed experts of a layer that `tokens` are expected to meet, routing being even and tokens
/// independent.
pub fn distinct_experts(routed: u64, active: u64, tokens: f64) -> f64 {
    let missed = 1.0 - active as f64 / routed as f64;
    routed as f64 * (1.0 - missed.powf(tokens))
}

/// A step with a number of sequences in each group of chips.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub work: Work,
    pub compute: Seconds,
    pub seconds: Seconds,
    /// New tokens of each sequence.
    pub tokens: f64,
    /// Whether two micro-batches hide each other's exchanges.
    pub overlapped: bool,
}

impl Pool<'_> {
    /// Tokens that go through the model for a sequence in one step.
    fn queries(&self) -> u64 {
        match self.service.acceptance {
            Some(_) => 2,
            None => 1,
        }
    }

    /// The faster of one micro-batch and of two that overlap.
    pub fn step(&self, sequences: u64) -> Step {
        let tokens = 1.0 + self.service.acceptance.unwrap_or(0.0);
        let job = self.job(1);
        let whole = self.pass(sequences);
        let compute = whole.compute(&job);
        let one = Step {
            work: whole,
            compute,
            seconds: compute + whole.experts,
            tokens,
            overlapped: false,
        };
        if !self.exchanges() || sequences < 2 {
            return one;
        }
        let halves = self.pass(sequences.div_ceil(2)).times(2.0);
        let compute = halves.compute(&job);
        let two = Step {
            work: halves,
            compute,
            seconds: self.overlapped(compute, halves.experts),
            tokens,
            overlapped: true,
        };
        if two.seconds < one.seconds { two } else { one }
    }

    /// One micro-batch through the whole model.
    fn pass(&self, sequences: u64) -> Work {
        let shape = self.service.shape;
        let rows = sequences * self.queries();
        let job = self.job(rows);
        let mut work = Work::default();
        for blocks in &shape.blocks {
            let layer = self.layer(&blocks.layer, sequences);
            work.add(&layer, blocks.count as f64);
        }
        let head = self.product(&job, &shape.head(), rows as f64);
        work.add(&head, 1.0);
        if self.service.acceptance.is_some() {
            // The guess: one more layer, the projection, and the head again.
            work.add(&self.layer(shape.last_layer(), sequences), 1.0);
            let join = self.product(&job, &shape.mtp_projection(), rows as f64);
            work.add(&join, 1.0);
            work.add(&head, 1.0);
        }
        work
    }

    fn layer(&self, layer: &Layer, sequences: u64) -> Work {
        let rows = sequences * self.queries();
        let mut job = self.job(rows);
        // Of a few tokens nothing is left to hide tensor parallelism's exchanges behind.
        job.software.overlap_tensor = false;
        let forward = layer_time(&job, layer).forward;
        let mut work = Work {
            elementwise: forward.elementwise,
            tensor: forward.tensor,
            kernels: forward.kernels + if self.tp > 1 { 4.0 } else { 0.0 },
            ..Work::default()
        };
        for product in layer.products(self.service.shape.hidden_size) {
            work.add(&self.product(&job, &product, rows as f64), 1.0);
        }
        work.attention = self.core(&layer.attention, sequences);
        if let Some(experts) = &layer.feed_forward.experts {
            work.experts = self.exchange(experts, rows);
        }
        work
    }

    /// Scores and values over what is cached: arithmetic or reading, the slower. MLA is absorbed.
    fn core(&self, attention: &Attention, sequences: u64) -> Seconds {
        let job = self.job(1);
        let (tp, context) = (self.tp as f64, self.service.context as f64);
        let keys = attention.keys_met(context);
        let flops = attention.core_flops_decode(keys) + attention.index_flops(context);
        let rows = (sequences * self.queries()) as f64;
        let peak = self.service.chip.bf16.expect("a chip that was checked");
        let rate = peak * job.efficiency(Efficiency::AttentionForward);
        let arithmetic = Flops(rows * flops / tp) / rate;
        let values = read_values(attention, context) / self.shares(attention);
        let read = Bytes(CACHE_BYTES * sequences as f64 * values);
        arithmetic.max(read / job.memory_rate())
    }

    /// Tokens to their experts and back, each expert apart, as DeepEP's kernels of low latency do.
    fn exchange(&self, experts: &Experts, rows: u64) -> Seconds {
        if self.chips == 1 {
            return Seconds::ZERO;
        }
        let job = self.job(1);
        let hidden = self.service.shape.hidden_size as f64;
        let tokens = rows as f64 / self.tp as f64;
        let (chips, domain) = (
            self.chips as f64,
            self.cluster.domain().min(self.chips) as f64,
        );
        let active = experts.active as f64;
        let near = active * (domain - 1.0) / chips;
        let far = active * (chips - domain) / chips;
        let inside = all_to_all(tokens, near, hidden, job.link_rate(1));
        let outside = job.link_rate(self.cluster.domain() + 1);
        inside.max(all_to_all(tokens, far, hidden, outside))
    }

    /// What each chip holds with so many sequences in its group.
    pub fn holding(&self, sequences: u64) -> Holding {
        let rows = (sequences * self.queries()) as f64;
        Holding {
            weights: self.weights(),
            cache: self.cache(self.service.context as f64) * sequences as f64,
            activations: self.activation() * rows,
        }
    }

    /// Sequences of a group that memory has room for; 0 if the model alone has none.
    pub fn most_sequences(&self) -> u64 {
        let room = self.usable() - self.weights();
        let each = self.holding(1).total() - self.weights();
        (room / each).max(0.0) as u64
    }

    /// The largest batch that memory holds and that still gives each user enough; `None` if there
    /// is none.
    pub fn batch(&self) -> Option<u64> {
        let most = self.most_sequences();
        if most == 0 {
            return None;
        }
        if let Some(per_chip) = self.service.sequences {
            let wanted = per_chip * self.tp;
            return (wanted <= most).then_some(wanted);
        }
        let Some(per_user) = self.service.per_user else {
            return Some(most);
        };
        let enough = |sequences: u64| {
            let step = self.step(sequences);
            step.tokens / step.seconds.0 >= per_user
        };
        if !enough(1) {
            return None;
        }
        let (mut good, mut bad) = (1, most + 1);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if enough(middle) {
                good = middle;
            } else {
                bad = middle;
            }
        }
        Some(good)
    }

    pub fn decode_rate(&self, sequences: u64) -> TokensPerSecond {
        let step = self.step(sequences);
        TokensPerSecond(sequences as f64 * step.tokens / step.seconds.0 / self.tp as f64)
    }
}

/// Cached values of one sequence that a step reads in one layer.
fn read_values(attention: &Attention, context: f64) -> f64 {
    match attention {
        Attention::Mla(Mla {
            indexer: Some(indexer),
            ..
        }) => {
            let index = indexer.head_dim as f64;
            let latent = attention.cache_values() as f64 - index;
            latent * attention.keys_met(context) + index * context
        }
        _ => kept_values(attention, context),
    }
}

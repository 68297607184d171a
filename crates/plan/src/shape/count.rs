//! Parameters, operations and cache of a model: closed sums over its products.

use serde::Serialize;

use super::{Layer, Part, Product, Shape};
use crate::quantity::{Bytes, FlopsPerToken};

/// Parameters by what holds them. Multi-token prediction stands apart, as published counts leave
/// it out; its layers are not in the other parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ParameterParts {
    pub embedding: u64,
    pub attention: u64,
    pub dense_feed_forward: u64,
    pub shared_experts: u64,
    pub routed_experts: u64,
    pub router: u64,
    pub norms_and_biases: u64,
    /// 0 where it is the embedding.
    pub head: u64,
    pub multi_token_prediction: u64,
}

/// Of what a cached value takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheWidth(pub f64);

impl ParameterParts {
    /// The model without multi-token prediction.
    pub fn total(&self) -> u64 {
        self.embedding
            + self.attention
            + self.dense_feed_forward
            + self.shared_experts
            + self.routed_experts
            + self.router
            + self.norms_and_biases
            + self.head
    }

    fn add(&mut self, part: Part, parameters: u64) {
        *match part {
            Part::Attention | Part::Indexer => &mut self.attention,
            Part::DenseFeedForward => &mut self.dense_feed_forward,
            Part::SharedExperts => &mut self.shared_experts,
            Part::RoutedExperts => &mut self.routed_experts,
            Part::Router => &mut self.router,
            Part::MtpProjection => &mut self.multi_token_prediction,
            Part::Head => &mut self.head,
        } += parameters;
    }
}

impl Shape {
    /// All numbers of the model.
    pub fn parameters(&self) -> ParameterParts {
        self.count(false)
    }

    /// Numbers that one token meets. Input embedding and head are both counted, which for
    /// DeepSeek-V3 gives 37.55 billion.
    pub fn active_parameters(&self) -> ParameterParts {
        self.count(true)
    }

    fn count(&self, active: bool) -> ParameterParts {
        let hidden = self.hidden_size;
        // A matrix for positions counts although no token is multiplied with it.
        let of = |product: &Product| match active && product.used > 0 {
            true => product.active_parameters(),
            false => product.parameters(),
        };
        let vectors = |layer: &Layer| {
            let idle = if active {
                layer.idle_vectors(hidden)
            } else {
                0
            };
            layer.vectors(hidden, self.norm_vectors) - idle
        };
        let mut parts = ParameterParts {
            embedding: hidden * (self.vocab_size + self.learned_positions),
            norms_and_biases: self.norms * hidden * self.norm_vectors,
            ..ParameterParts::default()
        };
        for blocks in &self.blocks {
            for product in blocks.layer.products(hidden) {
                parts.add(product.part, blocks.count * of(&product));
            }
            parts.norms_and_biases += blocks.count * vectors(&blocks.layer);
        }
        if !self.tie_word_embeddings {
            parts.add(Part::Head, of(&self.head()));
        }
        if self.mtp_modules > 0 {
            let layer = self.last_layer();
            let products = layer.products(hidden);
            let module: u64 = products.iter().map(of).sum::<u64>()
                + of(&self.mtp_projection())
                + vectors(layer)
                + 3 * hidden * self.norm_vectors;
            parts.multi_token_prediction = self.mtp_modules * module;
        }
        parts
    }

    /// Operations of one token's forward pass through the matrices: two for each parameter met,
    /// the input embedding, which is looked up, left out.
    pub fn matmul_flops(&self, with_mtp: bool) -> FlopsPerToken {
        let mut active: u64 = self
            .blocks
            .iter()
            .map(|blocks| blocks.count * active(&blocks.layer, self.hidden_size))
            .sum();
        active += self.head().active_parameters();
        if with_mtp {
            let module = active_of_mtp(self);
            active += self.mtp_modules * module;
        }
        FlopsPerToken(2.0 * active as f64)
    }

    /// Operations of one token's attention cores, forward, a mean over a sequence.
    pub fn core_flops(&self, seq_len: u64, causal: bool, with_mtp: bool) -> FlopsPerToken {
        let layer = |layer: &Layer| {
            let attention = &layer.attention;
            let keys = attention.mean_keys(seq_len as f64, causal);
            let all = if causal {
                (seq_len as f64 + 1.0) / 2.0
            } else {
                seq_len as f64
            };
            attention.core_flops(keys) + attention.index_flops(all)
        };
        let blocks = self.blocks.iter();
        let mut flops: f64 = blocks.map(|b| b.count as f64 * layer(&b.layer)).sum();
        if with_mtp {
            flops += self.mtp_modules as f64 * layer(self.last_layer());
        }
        FlopsPerToken(flops)
    }

    /// Operations to train on one token: forward once, backward twice that, nothing computed again.
    pub fn training_flops(&self, seq_len: u64, causal: bool, with_mtp: bool) -> FlopsPerToken {
        let forward = self.matmul_flops(with_mtp) + self.core_flops(seq_len, causal, with_mtp);
        forward * 3.0
    }

    /// Bytes that the cache keeps of one token over all layers.
    pub fn cache_bytes_per_token(&self, width: CacheWidth) -> Bytes {
        let blocks = self.blocks.iter();
        let values: u64 = blocks
            .map(|b| b.count * b.layer.attention.cache_values())
            .sum();
        Bytes(values as f64 * width.0)
    }
}

fn active(layer: &Layer, hidden_size: u64) -> u64 {
    let products = layer.products(hidden_size);
    products.iter().map(Product::active_parameters).sum()
}

/// Of one module: its layer, its projection, and the shared head once more.
fn active_of_mtp(shape: &Shape) -> u64 {
    active(shape.last_layer(), shape.hidden_size)
        + shape.mtp_projection().active_parameters()
        + shape.head().active_parameters()
}

//! From the configuration of a model that this program runs.

use model::{Attention as ModelAttention, Config, Gqa, Mla as ModelMla, Moe};

use super::attention::Span;
use super::{Attention, Blocks, Experts, FeedForward, Grouped, Layer, Mla, Shape};

impl From<&Config> for Shape {
    fn from(config: &Config) -> Shape {
        let heads = config.num_attention_heads as u64;
        let attention = match &config.attention {
            ModelAttention::Mla(mla) => Attention::Mla(latent(mla, heads)),
            ModelAttention::Gqa(gqa) => {
                Attention::Grouped(grouped(gqa, heads, config.hidden_size as u64))
            }
        };
        let mut shape = Shape {
            vocab_size: config.vocab_size as u64,
            hidden_size: config.hidden_size as u64,
            blocks: Vec::new(),
            mtp_modules: config.num_nextn_predict_layers as u64,
            tie_word_embeddings: config.tie_word_embeddings,
            learned_positions: 0,
            norms: 1,
            norm_vectors: 1,
            max_position_embeddings: Some(config.max_position_embeddings as u64),
        };
        for layer_idx in 0..config.num_hidden_layers {
            shape.push(Layer {
                attention: attention.clone(),
                feed_forward: feed_forward(config, layer_idx),
                norms: 2,
            });
        }
        shape
    }
}

impl Shape {
    /// One more layer behind the last.
    pub(crate) fn push(&mut self, layer: Layer) {
        match self.blocks.last_mut() {
            Some(last) if last.layer == layer => last.count += 1,
            _ => self.blocks.push(Blocks { count: 1, layer }),
        }
    }
}

fn latent(mla: &ModelMla, num_heads: u64) -> Mla {
    Mla {
        num_heads,
        q_lora_rank: mla.q_lora_rank.map(|rank| rank as u64),
        kv_lora_rank: mla.kv_lora_rank as u64,
        qk_nope_head_dim: mla.qk_nope_head_dim as u64,
        qk_rope_head_dim: mla.qk_rope_head_dim as u64,
        v_head_dim: mla.v_head_dim as u64,
        indexer: None,
    }
}

fn grouped(gqa: &Gqa, num_heads: u64, hidden_size: u64) -> Grouped {
    let (kv, dim) = (gqa.num_key_value_heads as u64, gqa.head_dim as u64);
    let mut vectors = 0;
    if gqa.qkv_bias {
        vectors += dim * (num_heads + 2 * kv);
    }
    if gqa.o_bias {
        vectors += hidden_size;
    }
    if gqa.qk_norm {
        vectors += 2 * dim;
    }
    Grouped {
        num_heads,
        num_kv_heads: kv,
        head_dim: dim,
        span: Span::Full,
        output_gate: false,
        relative_positions: false,
        vectors,
    }
}

fn feed_forward(config: &Config, layer_idx: usize) -> FeedForward {
    let moe = config.moe.as_ref();
    let moe = moe.filter(|_| config.is_moe_layer(layer_idx));
    FeedForward {
        width: if moe.is_some() {
            0
        } else {
            config.intermediate_size as u64
        },
        gated: true,
        bias: false,
        experts: moe.map(experts),
    }
}

fn experts(moe: &Moe) -> Experts {
    let limited = moe.n_group > 1 && moe.topk_group < moe.n_group;
    Experts {
        routed: moe.n_routed_experts as u64,
        active: moe.num_experts_per_tok as u64,
        width: moe.moe_intermediate_size as u64,
        shared_width: moe.shared_width() as u64,
        router_vectors: if moe.has_correction_bias() {
            moe.n_routed_experts as u64
        } else {
            0
        },
        groups: limited.then_some([moe.n_group as u64, moe.topk_group as u64]),
    }
}

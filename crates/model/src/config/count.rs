//! Arithmetic on a configuration: parameters, operations, cache.

use super::{Attention, Config, Moe};

impl Config {
    /// Every number of the model: input embedding, head (once, if tied to it), router biases, and
    /// the multi-token prediction layer without its copies of embedding and head.
    pub fn parameters_total(&self) -> u64 {
        self.count_all() as u64
    }

    /// Parameters that one token touches: as [`parameters_total`](Config::parameters_total), but
    /// with only `num_experts_per_tok` routed experts in each MoE layer, and without multi-token
    /// prediction. Input embedding and head are both counted, which for DeepSeek-V3 gives 37.55
    /// billion; the 37 billion of its report lie between this and the 36.63 billion without the
    /// input embedding.
    pub fn parameters_active(&self) -> u64 {
        let active = self.moe.as_ref().map_or(0, |moe| moe.num_experts_per_tok);
        self.count_parameters(active) as u64
    }

    pub(super) fn count_all(&self) -> u128 {
        let experts = self.n_routed_experts();
        self.count_parameters(experts) + self.count_mtp(experts)
    }

    /// Values cached per token over all layers.
    pub fn cache_elements_per_token(&self) -> usize {
        self.num_hidden_layers * self.attention.cache_elements()
    }

    /// Floating-point operations of one token's forward pass that attends to `mean_context` keys
    /// (its own included), a multiply-add counted as two.
    ///
    /// Two per matmul weight touched (so the input embedding, which is looked up, and the norms
    /// do not count, and of the routed experts only the chosen ones), and per layer, head and key
    /// the width of a score and of a value, twice each. For MLA these are
    /// `kv_lora_rank + qk_rope_head_dim` and `kv_lora_rank`, of its absorbed form; absorbing moves
    /// `kv_b_proj` to the queries and outputs, and its cost per token stays the same. A training
    /// step costs three times this.
    pub fn flops_per_token_forward(&self, mean_context: f64) -> f64 {
        let per_key = match &self.attention {
            Attention::Mla(mla) => 2 * (mla.latent_width() + mla.kv_lora_rank),
            Attention::Gqa(gqa) => 4 * gqa.head_dim,
        };
        let active = self.moe.as_ref().map_or(0, |moe| moe.num_experts_per_tok);
        let heads = (self.num_hidden_layers * self.num_attention_heads) as f64;
        2.0 * self.matmul_weights(active) as f64 + heads * mean_context * per_key as f64
    }

    /// Matmul weights of the whole model, head included, with `experts` routed experts counted in
    /// each MoE layer. `u128`, so that no allowed field can overflow it.
    fn matmul_weights(&self, experts: usize) -> u128 {
        let layers = 0..self.num_hidden_layers;
        let moe_layers = layers.filter(|&i| self.is_moe_layer(i)).count();
        let dense_layers = self.num_hidden_layers - moe_layers;
        let head = self.hidden_size as u128 * self.vocab_size as u128;
        self.num_hidden_layers as u128 * self.attention_weights()
            + dense_layers as u128 * self.mlp_weights(false, experts)
            + moe_layers as u128 * self.mlp_weights(true, experts)
            + head
    }

    /// Of one layer.
    fn attention_weights(&self) -> u128 {
        let [hidden, heads] = [self.hidden_size, self.num_attention_heads].map(|n| n as u128);
        match &self.attention {
            Attention::Mla(mla) => {
                let queries = heads * mla.qk_head_dim() as u128;
                let query = match mla.q_lora_rank {
                    Some(rank) => rank as u128 * (hidden + queries),
                    None => hidden * queries,
                };
                let expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim) as u128;
                query
                    + hidden * mla.latent_width() as u128
                    + mla.kv_lora_rank as u128 * expanded
                    + hidden * heads * mla.v_head_dim as u128
            }
            Attention::Gqa(gqa) => {
                let [kv, dim] = [gqa.num_key_value_heads, gqa.head_dim].map(|n| n as u128);
                2 * hidden * dim * (heads + kv)
            }
        }
    }

    /// Of one layer's feed-forward half.
    fn mlp_weights(&self, is_moe: bool, experts: usize) -> u128 {
        let hidden = self.hidden_size as u128;
        match &self.moe {
            Some(moe) if is_moe => {
                let counted = (experts + moe.n_shared_experts) as u128;
                let width = moe.moe_intermediate_size as u128;
                hidden * moe.n_routed_experts as u128 + 3 * hidden * width * counted
            }
            _ => 3 * hidden * self.intermediate_size as u128,
        }
    }

    /// Norms and biases of one layer.
    fn layer_vectors(&self, is_moe: bool) -> u128 {
        let [hidden, heads] = [self.hidden_size, self.num_attention_heads].map(|n| n as u128);
        let attention = match &self.attention {
            Attention::Mla(mla) => (mla.q_lora_rank.unwrap_or(0) + mla.kv_lora_rank) as u128,
            Attention::Gqa(gqa) => {
                let [kv, dim] = [gqa.num_key_value_heads, gqa.head_dim].map(|n| n as u128);
                let qkv = if gqa.qkv_bias {
                    dim * (heads + 2 * kv)
                } else {
                    0
                };
                let norms = if gqa.qk_norm { 2 * dim } else { 0 };
                qkv + norms + if gqa.o_bias { hidden } else { 0 }
            }
        };
        let bias = match &self.moe {
            Some(moe) if is_moe && moe.has_correction_bias() => moe.n_routed_experts,
            _ => 0,
        };
        2 * hidden + attention + bias as u128
    }

    /// All numbers without multi-token prediction, with `experts` routed experts counted in each
    /// MoE layer.
    fn count_parameters(&self, experts: usize) -> u128 {
        let hidden = self.hidden_size as u128;
        let embedding = match self.tie_word_embeddings {
            true => 0,
            false => hidden * self.vocab_size as u128,
        };
        let vectors: u128 = (0..self.num_hidden_layers)
            .map(|i| self.layer_vectors(self.is_moe_layer(i)))
            .sum();
        self.matmul_weights(experts) + embedding + hidden + vectors
    }

    fn count_mtp(&self, experts: usize) -> u128 {
        let hidden = self.hidden_size as u128;
        let is_moe = self.is_moe_layer(self.num_hidden_layers);
        let block = self.attention_weights()
            + self.mlp_weights(is_moe, experts)
            + self.layer_vectors(is_moe);
        self.num_nextn_predict_layers as u128 * (block + 2 * hidden * hidden + 3 * hidden)
    }
}

impl Moe {
    /// Width of the shared experts' block.
    pub fn shared_width(&self) -> usize {
        self.moe_intermediate_size * self.n_shared_experts
    }
}

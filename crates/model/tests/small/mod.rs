//! A model small enough to read and write many times, with every kind of tensor in it.

use model::{
    Architecture, Attention, Config, DenseLayers, Mla, Moe, Rope, ScoringFunc, TopkMethod,
};

pub fn small_config() -> Config {
    Config {
        architecture: Architecture::DeepseekV3,
        vocab_size: 20,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        attention: Attention::Mla(Mla {
            q_lora_rank: Some(6),
            kv_lora_rank: 10,
            qk_nope_head_dim: 4,
            qk_rope_head_dim: 2,
            v_head_dim: 3,
        }),
        moe: Some(Moe {
            n_routed_experts: 4,
            n_shared_experts: 2,
            num_experts_per_tok: 2,
            moe_intermediate_size: 6,
            dense_layers: DenseLayers::First(1),
            scoring_func: ScoringFunc::Sigmoid,
            topk_method: TopkMethod::NoauxTc,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
        }),
        rope: Rope::plain(10_000.0, true),
        num_nextn_predict_layers: 0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        bos_token_id: Some(0),
        eos_token_id: vec![1],
        pad_token_id: Some(2),
        max_position_embeddings: 128,
        initializer_range: 0.02,
        torch_dtype: "float32".to_string(),
        fp8: None,
        ignored_keys: Vec::new(),
    }
}

//! A model small enough to read and write many times, with every kind of tensor in it.

use model::Config;

pub fn small_config() -> Config {
    Config {
        vocab_size: 20,
        hidden_size: 8,
        intermediate_size: 12,
        moe_intermediate_size: 6,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        n_routed_experts: 4,
        n_shared_experts: 2,
        num_experts_per_tok: 2,
        first_k_dense_replace: 1,
        q_lora_rank: Some(6),
        kv_lora_rank: 10,
        qk_nope_head_dim: 4,
        qk_rope_head_dim: 2,
        v_head_dim: 3,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_interleave: true,
        norm_topk_prob: true,
        routed_scaling_factor: 2.5,
        bos_token_id: Some(0),
        eos_token_id: vec![1],
        pad_token_id: Some(2),
        max_position_embeddings: 128,
        initializer_range: 0.02,
        torch_dtype: "float32".to_string(),
        ignored_keys: Vec::new(),
    }
}

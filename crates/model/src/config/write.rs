//! A configuration as the text of a `config.json`.

use super::{
    Architecture, Attention, Config, DenseLayers, Moe, Rope, RopeScaling, ScoringFunc, TopkMethod,
};
use crate::checkpoint::WeightDtype;
use serde_json::{Map, Value, json};

impl Config {
    /// The text of a `config.json` that transformers opens, for weights stored as `dtype`. Keys
    /// are sorted, so the same configuration gives the same bytes.
    pub fn to_json(&self, dtype: WeightDtype) -> String {
        let mut fields = self.shared_fields(dtype);
        match &self.attention {
            Attention::Mla(mla) => insert(
                &mut fields,
                json!({
                    "kv_lora_rank": mla.kv_lora_rank,
                    "num_key_value_heads": self.num_attention_heads,
                    "q_lora_rank": mla.q_lora_rank,
                    "qk_nope_head_dim": mla.qk_nope_head_dim,
                    "qk_rope_head_dim": mla.qk_rope_head_dim,
                    "v_head_dim": mla.v_head_dim,
                }),
            ),
            Attention::Gqa(gqa) => insert(
                &mut fields,
                json!({
                    "head_dim": gqa.head_dim,
                    "num_key_value_heads": gqa.num_key_value_heads,
                }),
            ),
        }
        match self.architecture {
            Architecture::DeepseekV3 | Architecture::DeepseekV2 => {
                insert(&mut fields, self.deepseek_fields());
            }
            Architecture::Qwen2 => insert(&mut fields, json!({"use_sliding_window": false})),
            Architecture::Qwen3 | Architecture::Llama => {}
            Architecture::Qwen3Moe => insert(&mut fields, self.qwen3_moe_fields()),
        }
        pretty(fields)
    }

    fn shared_fields(&self, dtype: WeightDtype) -> Map<String, Value> {
        let mut fields = Map::new();
        insert(
            &mut fields,
            json!({
                "architectures": [self.architecture.class()],
                "attention_dropout": 0.0,
                "bos_token_id": self.bos_token_id,
                "eos_token_id": self.eos_json(),
                "hidden_act": "silu",
                "hidden_size": self.hidden_size,
                "initializer_range": self.initializer_range,
                "intermediate_size": self.intermediate_size,
                "max_position_embeddings": self.max_position_embeddings,
                "model_type": self.architecture.model_type(),
                "num_attention_heads": self.num_attention_heads,
                "num_hidden_layers": self.num_hidden_layers,
                "pad_token_id": self.pad_token_id,
                "rms_norm_eps": self.rms_norm_eps,
                "rope_scaling": self.rope.to_json(),
                "rope_theta": self.rope.theta,
                "tie_word_embeddings": self.tie_word_embeddings,
                "torch_dtype": dtype.torch_name(),
                "use_cache": true,
                "vocab_size": self.vocab_size,
            }),
        );
        if let Attention::Gqa(gqa) = &self.attention
            && self.architecture != Architecture::Qwen2
        {
            insert(&mut fields, json!({"attention_bias": gqa.qkv_bias}));
        }
        if let (Some(fp8), WeightDtype::Fp8) = (&self.fp8, dtype) {
            let mut quantization = json!({
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": fp8.block,
            });
            if fp8.ue8m0 {
                quantization["scale_fmt"] = json!("ue8m0");
            }
            insert(&mut fields, json!({"quantization_config": quantization}));
        }
        fields
    }

    fn deepseek_fields(&self) -> Value {
        let is_v3 = self.architecture == Architecture::DeepseekV3;
        let scoring_func = if is_v3 { "sigmoid" } else { "softmax" };
        let moe = self.moe.as_ref();
        let number = |of: fn(&Moe) -> usize| moe.map_or(0, of);
        // Transformers goes by `first_k_dense_replace` alone to tell which layers are dense.
        let first_k_dense_replace = match moe.map(|moe| &moe.dense_layers) {
            Some(DenseLayers::First(first)) => *first,
            _ => self.num_hidden_layers,
        };
        let topk_method = match moe.map(|moe| moe.topk_method) {
            Some(TopkMethod::GroupLimitedGreedy) => "group_limited_greedy",
            _ if is_v3 => "noaux_tc",
            _ => "greedy",
        };
        debug_assert!(moe.is_none_or(|moe| is_v3 == (moe.scoring_func == ScoringFunc::Sigmoid)));
        let mut fields = json!({
            "attention_bias": false,
            "first_k_dense_replace": first_k_dense_replace,
            "moe_intermediate_size": number(|moe| moe.moe_intermediate_size),
            "moe_layer_freq": 1,
            "n_group": moe.map_or(1, |moe| moe.n_group),
            "n_routed_experts": number(|moe| moe.n_routed_experts),
            "n_shared_experts": number(|moe| moe.n_shared_experts),
            "norm_topk_prob": moe.map_or(is_v3, |moe| moe.norm_topk_prob),
            "num_experts_per_tok": number(|moe| moe.num_experts_per_tok),
            "routed_scaling_factor": moe.map_or(1.0, |moe| moe.routed_scaling_factor),
            "scoring_func": scoring_func,
            "topk_group": moe.map_or(1, |moe| moe.topk_group),
            "topk_method": topk_method,
        });
        if is_v3 {
            // Transformers supposes one multi-token prediction layer when this is absent.
            fields["num_nextn_predict_layers"] = json!(self.num_nextn_predict_layers);
            fields["rope_interleave"] = json!(self.rope.interleave);
        }
        fields
    }

    fn qwen3_moe_fields(&self) -> Value {
        let Some(moe) = &self.moe else {
            return json!({});
        };
        let (listed, step) = match &moe.dense_layers {
            DenseLayers::Listed {
                mlp_only_layers,
                decoder_sparse_step,
            } => (mlp_only_layers.clone(), *decoder_sparse_step),
            DenseLayers::First(first) => ((0..*first).collect(), 1),
        };
        json!({
            "decoder_sparse_step": step,
            "mlp_only_layers": listed,
            "moe_intermediate_size": moe.moe_intermediate_size,
            "norm_topk_prob": moe.norm_topk_prob,
            "num_experts": moe.n_routed_experts,
            "num_experts_per_tok": moe.num_experts_per_tok,
        })
    }

    /// The text of the `generation_config.json` that goes with this configuration.
    pub fn to_generation_json(&self) -> String {
        let mut fields = Map::new();
        insert(
            &mut fields,
            json!({
                "bos_token_id": self.bos_token_id,
                "eos_token_id": self.eos_json(),
                "pad_token_id": self.pad_token_id,
            }),
        );
        pretty(fields)
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_id.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        }
    }
}

impl Rope {
    fn to_json(&self) -> Value {
        match &self.scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => {
                json!({"factor": factor, "rope_type": "linear", "type": "linear"})
            }
            RopeScaling::Yarn(yarn) => {
                let mut fields = json!({
                    "beta_fast": yarn.beta_fast,
                    "beta_slow": yarn.beta_slow,
                    "factor": yarn.factor,
                    "original_max_position_embeddings": yarn.original_max_position_embeddings,
                    "rope_type": "yarn",
                    "type": "yarn",
                });
                for (field, value) in [
                    ("mscale", yarn.mscale),
                    ("mscale_all_dim", yarn.mscale_all_dim),
                    ("attention_factor", yarn.attention_factor),
                    ("attn_factor", yarn.attn_factor),
                ] {
                    if let Some(value) = value {
                        fields[field] = json!(value);
                    }
                }
                if !yarn.truncate {
                    fields["truncate"] = json!(false);
                }
                fields
            }
            RopeScaling::Llama3(llama) => json!({
                "factor": llama.factor,
                "high_freq_factor": llama.high_freq_factor,
                "low_freq_factor": llama.low_freq_factor,
                "original_max_position_embeddings": llama.original_max_position_embeddings,
                "rope_type": "llama3",
            }),
        }
    }
}

fn insert(fields: &mut Map<String, Value>, more: Value) {
    fields.extend(more.as_object().cloned().unwrap_or_default());
}

/// Indented JSON with a final newline and the keys in order, whichever map serde_json was built
/// with (another crate of the workspace may turn on its insertion-ordered one).
fn pretty(fields: Map<String, Value>) -> String {
    let mut entries: Vec<_> = fields.into_iter().collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let sorted: Map<String, Value> = entries.into_iter().collect();
    format!("{:#}\n", Value::Object(sorted))
}

//! Where the parameters and the bytes of a model are.

use std::collections::BTreeMap;

use crate::numbers::in_groups;
use model::{Config, Layout, StoredTensor};
use serde::Serialize;

/// Some of the tensors together.
#[derive(Debug, PartialEq, Serialize)]
pub struct Part {
    pub name: &'static str,
    pub parameters: u64,
    /// As the files have them; `None` without files.
    pub bytes: Option<u64>,
    /// Bytes of each type, such as `BF16`.
    pub dtypes: BTreeMap<String, u64>,
}

const NAMES: [&str; 10] = [
    "embedding",
    "attention",
    "dense_mlp",
    "routed_experts",
    "shared_experts",
    "router",
    "norms",
    "head",
    "multi_token_prediction",
    "fp8_scales",
];

/// Which of [`NAMES`] a tensor belongs to, by its Hugging Face name.
fn part_of(tensor: &str, config: &Config) -> usize {
    let has = |piece: &str| tensor.contains(piece);
    match () {
        () if tensor.ends_with("_scale_inv") => 9,
        () if config.is_mtp_tensor(tensor) => 8,
        () if has("embed_tokens") => 0,
        () if has("norm") => 6,
        () if has("self_attn") => 1,
        () if has(".experts.") => 3,
        () if has("shared_experts") => 4,
        () if has("mlp.gate.") => 5,
        () if has("lm_head") => 7,
        () => 2,
    }
}

/// Parameters by the configuration, and bytes by the files: copies and scales are no parameters.
pub fn parts(config: &Config, stored: Option<&[StoredTensor]>) -> Vec<Part> {
    let mut parts = NAMES.map(|name| Part {
        name,
        parameters: 0,
        bytes: stored.map(|_| 0),
        dtypes: BTreeMap::new(),
    });
    for spec in &Layout::new(config).tensors {
        parts[part_of(&spec.name, config)].parameters += spec.len as u64;
    }
    for tensor in stored.unwrap_or_default() {
        let part = &mut parts[part_of(&tensor.name, config)];
        part.bytes = part.bytes.map(|bytes| bytes + tensor.bytes);
        *part.dtypes.entry(tensor.dtype.clone()).or_default() += tensor.bytes;
    }
    let held = |part: &Part| part.parameters > 0 || part.bytes.is_some_and(|bytes| bytes > 0);
    parts.into_iter().filter(held).collect()
}

/// All files together.
#[derive(Serialize)]
pub struct Stored {
    pub tensors: usize,
    pub bytes: u64,
    /// Bytes of each type.
    pub dtypes: BTreeMap<String, u64>,
}

impl Stored {
    pub fn new(tensors: &[StoredTensor]) -> Stored {
        let mut dtypes = BTreeMap::new();
        for tensor in tensors {
            *dtypes.entry(tensor.dtype.clone()).or_default() += tensor.bytes;
        }
        Stored {
            tensors: tensors.len(),
            bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
            dtypes,
        }
    }
}

impl Part {
    /// The name and what is in the part.
    pub fn in_words(&self) -> (String, String) {
        let name = match self.name {
            "dense_mlp" => "dense MLP".to_string(),
            "multi_token_prediction" => "multi-token prediction".to_string(),
            "fp8_scales" => "FP8 scales".to_string(),
            name => name.replace('_', " "),
        };
        let mut words = grouped(self.parameters);
        if let Some(bytes) = self.bytes {
            let types: Vec<&str> = self.dtypes.keys().map(String::as_str).collect();
            words += &format!(", {} bytes {}", grouped(bytes), types.join(" and "));
        }
        (format!("  {name}"), words)
    }
}

/// 1234567 as 1,234,567.
pub fn grouped(number: u64) -> String {
    in_groups(&number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_tensor_belongs_to_the_part_that_its_name_says() {
        let json = r#"{"model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 12,
            "num_attention_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1,
            "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
            "q_lora_rank": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
            "v_head_dim": 8, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1}"#;
        let config = Config::from_json(json).expect("a valid configuration");
        let in_layer = |layer: usize, rest: &str| format!("model.layers.{layer}.{rest}");
        for (tensor, part) in [
            ("model.embed_tokens.weight".to_string(), "embedding"),
            ("lm_head.weight".to_string(), "head"),
            ("model.norm.weight".to_string(), "norms"),
            (in_layer(1, "self_attn.kv_a_layernorm.weight"), "norms"),
            (in_layer(1, "self_attn.q_proj.bias"), "attention"),
            (in_layer(0, "mlp.gate_proj.weight"), "dense_mlp"),
            (in_layer(1, "mlp.gate.weight"), "router"),
            (in_layer(1, "mlp.gate.e_score_correction_bias"), "router"),
            (
                in_layer(1, "mlp.experts.3.up_proj.weight"),
                "routed_experts",
            ),
            (
                in_layer(1, "mlp.shared_experts.up_proj.weight"),
                "shared_experts",
            ),
            (
                in_layer(12, "embed_tokens.weight"),
                "multi_token_prediction",
            ),
            (
                in_layer(12, "mlp.experts.0.up_proj.weight"),
                "multi_token_prediction",
            ),
            (in_layer(12, "eh_proj.weight_scale_inv"), "fp8_scales"),
        ] {
            assert_eq!(NAMES[part_of(&tensor, &config)], part, "{tensor}");
        }
        let counted: u64 = parts(&config, None)
            .iter()
            .map(|part| part.parameters)
            .sum();
        assert_eq!(counted, config.parameters_total());
    }
}

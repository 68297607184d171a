//! `inspect`: what a model folder holds, from its small files alone.

use std::path::PathBuf;

use clap::Args;
use model::{Attention, Config, Layout, TensorSpec};
use serde::Serialize;

use super::{print, print_json};
use crate::failure::Outcome;
use crate::folder::Folder;
use crate::settings::Settings;

/// What a model folder holds
#[derive(Args)]
#[command(after_help = "Example:\n  bruchteil inspect demo-out/grpo")]
pub struct Inspect {
    /// A Hugging Face model folder
    model: PathBuf,
}

#[derive(Serialize)]
struct Facts {
    architecture: &'static str,
    layers: usize,
    moe_layers: usize,
    hidden_size: usize,
    attention_heads: usize,
    /// Of grouped heads.
    key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    /// Of latent attention.
    q_lora_rank: Option<usize>,
    kv_lora_rank: Option<usize>,
    tied_embeddings: bool,
    multi_token_prediction_layers: usize,
    routed_experts: usize,
    experts_per_token: usize,
    shared_experts: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    dtype: String,
    parameters_total: u64,
    parameters_active: u64,
    parts: Vec<Part>,
    /// In f32, as this program holds the cache.
    cache_bytes_per_token: usize,
    flops_per_token: f64,
    tokenizer_tokens: Option<usize>,
    chat_template: Option<String>,
    bos_token: String,
    eos_token: String,
    stop_token_ids: Vec<u32>,
    ignored_keys: Vec<String>,
}

/// Some of the tensors together.
#[derive(Serialize)]
struct Part {
    name: &'static str,
    parameters: u64,
    bytes: u64,
}

impl Inspect {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let facts = Facts::new(Folder::open(&self.model)?);
        if settings.json {
            print_json(&facts)
        } else {
            print(&facts.in_words())
        }
    }
}

impl Facts {
    fn new(folder: Folder) -> Facts {
        let config = folder.config;
        let (mla, gqa) = match &config.attention {
            Attention::Mla(mla) => (Some(mla), None),
            Attention::Gqa(gqa) => (None, Some(gqa)),
        };
        let moe = config.moe.as_ref();
        Facts {
            architecture: config.architecture.class(),
            layers: config.num_hidden_layers,
            moe_layers: config.num_moe_layers(),
            hidden_size: config.hidden_size,
            attention_heads: config.num_attention_heads,
            key_value_heads: gqa.map(|gqa| gqa.num_key_value_heads),
            head_dim: gqa.map(|gqa| gqa.head_dim),
            q_lora_rank: mla.and_then(|mla| mla.q_lora_rank),
            kv_lora_rank: mla.map(|mla| mla.kv_lora_rank),
            tied_embeddings: config.tie_word_embeddings,
            multi_token_prediction_layers: config.num_nextn_predict_layers,
            routed_experts: config.n_routed_experts(),
            experts_per_token: moe.map_or(0, |moe| moe.num_experts_per_tok),
            shared_experts: moe.map_or(0, |moe| moe.n_shared_experts),
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            parameters_total: config.parameters_total(),
            parameters_active: config.parameters_active(),
            parts: parts(&config),
            cache_bytes_per_token: 4 * config.cache_elements_per_token(),
            flops_per_token: config.flops_per_token_forward(1.0),
            tokenizer_tokens: folder.tokenizer.map(|tokenizer| tokenizer.vocab_size()),
            chat_template: folder.chat_template,
            bos_token: folder.bos_token,
            eos_token: folder.eos_token,
            stop_token_ids: folder.stop_token_ids,
            dtype: config.torch_dtype,
            ignored_keys: config.ignored_keys,
        }
    }

    fn in_words(&self) -> String {
        let yes = |there: bool| if there { "yes" } else { "none" }.to_string();
        let experts = match self.moe_layers {
            0 => "none (dense)".to_string(),
            layers => format!(
                "{} routed, {} chosen, {} shared, in {layers} of {} layers",
                self.routed_experts, self.experts_per_token, self.shared_experts, self.layers
            ),
        };
        let heads = self.attention_heads;
        let attention = match (self.kv_lora_rank, self.q_lora_rank) {
            (Some(latent), None) => format!("{heads} heads, latent of {latent}, queries direct"),
            (Some(latent), Some(rank)) => {
                format!("{heads} heads, latent of {latent}, queries through {rank}")
            }
            (None, _) => format!(
                "{heads} heads of {}, {} of keys and values",
                self.head_dim.unwrap_or_default(),
                self.key_value_heads.unwrap_or_default()
            ),
        };
        let mut rows = vec![
            ("architecture", self.architecture.to_string()),
            ("layers", self.layers.to_string()),
            ("hidden size", self.hidden_size.to_string()),
            ("attention", attention),
            ("experts", experts),
            ("vocabulary", self.vocab_size.to_string()),
            ("positions", self.max_position_embeddings.to_string()),
            ("parameters", grouped(self.parameters_total)),
            ("active per token", grouped(self.parameters_active)),
        ];
        for part in &self.parts {
            let Part {
                name,
                parameters,
                bytes,
            } = part;
            rows.push((
                *name,
                format!("{}, {} bytes", grouped(*parameters), grouped(*bytes)),
            ));
        }
        let tokens = self.tokenizer_tokens;
        rows.extend([
            ("dtype", self.dtype.clone()),
            (
                "cache per token",
                format!("{} bytes", self.cache_bytes_per_token),
            ),
            (
                "forward per token",
                format!("{:.3e} FLOPs", self.flops_per_token),
            ),
            (
                "tokenizer",
                tokens.map_or("none".to_string(), |n| format!("{n} tokens")),
            ),
            ("chat template", yes(self.chat_template.is_some())),
            ("bos token", format!("{:?}", self.bos_token)),
            ("eos token", format!("{:?}", self.eos_token)),
            ("stop token ids", format!("{:?}", self.stop_token_ids)),
        ]);
        if !self.ignored_keys.is_empty() {
            rows.push(("ignored keys", self.ignored_keys.join(", ")));
        }
        rows.iter()
            .map(|(name, value)| format!("{name:<18} {value}\n"))
            .collect()
    }
}

const PARTS: [&str; 8] = [
    "  embedding",
    "  attention",
    "  dense MLP",
    "  routed experts",
    "  shared experts",
    "  router",
    "  norms",
    "  head",
];

/// Which of [`PARTS`] a tensor belongs to, by its Hugging Face name.
fn part_of(tensor: &str) -> usize {
    let has = |piece: &str| tensor.contains(piece);
    match () {
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

/// Bytes as the file stores them, by the configuration's `torch_dtype`.
fn parts(config: &Config) -> Vec<Part> {
    let layout = Layout::new(config);
    let half = matches!(config.torch_dtype.as_str(), "bfloat16" | "float16");
    let bytes_each = |spec: &TensorSpec| if half && spec.trainable { 2 } else { 4 };
    let mut parts = PARTS.map(|name| Part {
        name,
        parameters: 0,
        bytes: 0,
    });
    for spec in &layout.tensors {
        let part = &mut parts[part_of(&spec.name)];
        part.parameters += spec.len as u64;
        part.bytes += spec.len as u64 * bytes_each(spec);
    }
    parts
        .into_iter()
        .filter(|part| part.parameters > 0)
        .collect()
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

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
}

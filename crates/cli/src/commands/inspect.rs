//! `inspect`: what a model holds, from its small files and the headers of its weights.

mod parts;
mod shape;

use std::path::PathBuf;

use clap::Args;
use model::{Checkpoint, Config};
use serde::Serialize;
use serde_json::{Value, json};

use super::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::memory;
use crate::plain::plain;
use crate::settings::Settings;
use parts::{Part, Stored, grouped};

/// What a model folder or GGUF file holds
///
/// Reads no weights, only where they are. Without weights, config.json alone is shown; weights that
/// do not fit it are refused with a list of all differences.
#[derive(Args)]
#[command(after_help = "Example:\n  bruchteil inspect demo-out/grpo")]
pub struct Inspect {
    /// A Hugging Face model folder, the directory of a run, or a GGUF file
    model: PathBuf,
}

#[derive(Serialize)]
struct Facts {
    architecture: &'static str,
    model_type: &'static str,
    layers: usize,
    moe_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    attention: Value,
    /// `None` where every layer is dense.
    experts: Option<Value>,
    rope: Value,
    rms_norm_eps: f64,
    tied_embeddings: bool,
    /// Those that the weights have, or config.json where there are no weights.
    multi_token_prediction_layers: usize,
    quantisation: Option<Value>,
    vocab_size: usize,
    max_position_embeddings: usize,
    /// What config.json says; `weights` says what is there.
    dtype: String,
    parameters_total: u64,
    parameters_active: u64,
    /// `None` where there are none.
    weights: Option<Stored>,
    parts: Vec<Part>,
    /// In f32, as this program holds the cache.
    cache_bytes_per_token: usize,
    /// Of a token that attends to itself alone.
    flops_per_token: f64,
    tokenizer_tokens: Option<usize>,
    chat_template: Option<String>,
    /// Whether the prompt of an answer ends inside `<think>`; `None` if there is no template that
    /// renders.
    chat_template_opens_thinking: Option<bool>,
    chat_template_error: Option<String>,
    special_tokens: Vec<SpecialToken>,
    stop_token_ids: Vec<u32>,
    ignored_keys: Vec<String>,
}

#[derive(Serialize)]
struct SpecialToken {
    role: &'static str,
    text: String,
    id: Option<u32>,
}

impl Inspect {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let folder = Folder::open(&self.model)?;
        let stored = folder.checkpoint().map(Checkpoint::tensors);
        let parts = parts::parts(&folder.config, stored.as_deref());
        let weights = stored.as_deref().map(Stored::new);
        let facts = Facts::new(&folder, weights, parts);
        if settings.json {
            return print_json(&facts);
        }
        let rows = facts.rows(&folder.config);
        let lines = rows
            .iter()
            .map(|(name, value)| format!("{:<24} {}\n", plain(name), plain(value)));
        print(&lines.collect::<String>())
    }
}

impl Facts {
    fn new(folder: &Folder, weights: Option<Stored>, parts: Vec<Part>) -> Facts {
        let config = &folder.config;
        let prompt = folder
            .chat_template
            .as_ref()
            .map(|_| folder.chat_prompt("1 2 3 4"));
        let opens_thinking = |prompt: &String| text::opens_thinking(prompt);
        let rendered = prompt.as_ref().and_then(|prompt| prompt.as_ref().ok());
        let failed = prompt.as_ref().and_then(|prompt| prompt.as_ref().err());
        Facts {
            architecture: config.architecture.class(),
            model_type: config.architecture.model_type(),
            layers: config.num_hidden_layers,
            moe_layers: config.num_moe_layers(),
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            attention: shape::attention_json(config),
            experts: shape::experts_json(config),
            rope: shape::rope_json(&config.rope),
            rms_norm_eps: config.rms_norm_eps,
            tied_embeddings: config.tie_word_embeddings,
            multi_token_prediction_layers: config.num_nextn_predict_layers,
            quantisation: config.fp8.map(|fp8| {
                let scales = if fp8.ue8m0 { "ue8m0" } else { "f32" };
                json!({"type": "fp8", "block": fp8.block, "scales": scales})
            }),
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            dtype: config.torch_dtype.clone(),
            parameters_total: config.parameters_total(),
            parameters_active: config.parameters_active(),
            weights,
            parts,
            cache_bytes_per_token: 4 * config.cache_elements_per_token(),
            flops_per_token: config.flops_per_token_forward(1.0),
            tokenizer_tokens: folder
                .tokenizer
                .as_ref()
                .map(|tokenizer| tokenizer.vocab_size()),
            chat_template: folder.chat_template.clone(),
            chat_template_opens_thinking: rendered.map(opens_thinking),
            chat_template_error: failed.map(Failure::words),
            special_tokens: special_tokens(folder),
            stop_token_ids: folder.stop_token_ids.clone(),
            ignored_keys: config.ignored_keys.clone(),
        }
    }

    fn rows(&self, config: &Config) -> Vec<(String, String)> {
        let mut rows = shape_rows(config);
        rows.push(("parameters".to_string(), grouped(self.parameters_total)));
        rows.extend(self.parts.iter().map(Part::in_words));
        let weights = match &self.weights {
            None => "none".to_string(),
            Some(stored) => {
                let shares = stored.dtypes.iter();
                let shares =
                    shares.map(|(name, &bytes)| format!("{} {name}", memory::shown(bytes)));
                let shares: Vec<String> = shares.collect();
                format!("{} tensors, {}", stored.tensors, shares.join(", "))
            }
        };
        let tokenizer = match self.tokenizer_tokens {
            Some(tokens) => format!("{tokens} tokens"),
            None => "none".to_string(),
        };
        let template = match (&self.chat_template_error, self.chat_template_opens_thinking) {
            (Some(error), _) => format!("fails: {error}"),
            (None, None) => "none".to_string(),
            (None, Some(true)) => "yes; answers begin inside <think>".to_string(),
            (None, Some(false)) => "yes".to_string(),
        };
        let named = |name: &str, value: String| (name.to_string(), value);
        rows.extend([
            named("active per token", grouped(self.parameters_active)),
            named("weights", weights),
            named(
                "cache per token",
                format!("{} bytes", grouped(self.cache_bytes_per_token as u64)),
            ),
            named(
                "forward per token",
                format!("{:.3e} FLOPs", self.flops_per_token),
            ),
            named("tokenizer", tokenizer),
            named("chat template", template),
        ]);
        rows.extend(self.special_tokens.iter().map(SpecialToken::in_words));
        rows.push(named(
            "stop token ids",
            format!("{:?}", self.stop_token_ids),
        ));
        if !self.ignored_keys.is_empty() {
            rows.push(named("ignored keys", self.ignored_keys.join(", ")));
        }
        rows
    }
}

impl SpecialToken {
    /// Its role, and text and id as far as they are known.
    fn in_words(&self) -> (String, String) {
        let words = match (self.text.as_str(), self.id) {
            (text, None) => format!("{text:?}, which the tokenizer does not have"),
            ("", Some(id)) => id.to_string(),
            (text, Some(id)) => format!("{text:?} {id}"),
        };
        (format!("{} token", self.role), words)
    }
}

/// What `config.json` says of the architecture.
fn shape_rows(config: &Config) -> Vec<(String, String)> {
    let dense = shape::dense_words(config);
    let head = match config.tie_word_embeddings {
        true => "tied to the embedding",
        false => "own",
    };
    let mut rows = vec![
        ("architecture", config.architecture.class().to_string()),
        ("layers", config.num_hidden_layers.to_string()),
        ("hidden size", config.hidden_size.to_string()),
        ("attention", shape::attention_words(config)),
        ("experts", shape::experts_words(config)),
    ];
    rows.extend(
        config
            .moe
            .as_ref()
            .map(|moe| ("routing", shape::routing_words(moe))),
    );
    rows.extend([
        ("dense layers", dense),
        ("RoPE", shape::rope_words(&config.rope)),
        ("positions", config.max_position_embeddings.to_string()),
        ("norms", format!("RMS, epsilon {:e}", config.rms_norm_eps)),
        ("vocabulary", config.vocab_size.to_string()),
        ("head", head.to_string()),
    ]);
    if config.num_nextn_predict_layers > 0 {
        let layers = format!("{} layer", config.num_nextn_predict_layers);
        rows.push(("multi-token prediction", layers));
    }
    if let Some(fp8) = config.fp8 {
        let [height, width] = fp8.block;
        let kind = if fp8.ue8m0 { "powers of two" } else { "f32" };
        let words = format!("FP8 (e4m3), a scale for each block of {height} x {width}, {kind}");
        rows.push(("quantisation", words));
    }
    rows.push(("dtype", config.torch_dtype.clone()));
    rows.into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect()
}

/// Tokens with a role, by `config.json` and by the tokenizer's settings, and the marks of thinking.
fn special_tokens(folder: &Folder) -> Vec<SpecialToken> {
    let (config, tokenizer) = (&folder.config, folder.tokenizer.as_ref());
    let id_of = |text: &str| tokenizer.and_then(|tokenizer| tokenizer.token_to_id(text));
    let text_of = |id: u32| tokenizer.and_then(|tokenizer| tokenizer.id_to_token(id));
    let one = |id: Option<u32>| id.into_iter().collect::<Vec<u32>>();
    let mut found = Vec::new();
    for (role, mut ids) in [
        ("bos", one(config.bos_token_id)),
        ("eos", config.eos_token_id.clone()),
        ("pad", one(config.pad_token_id)),
        ("unk", Vec::new()),
    ] {
        let text = folder.special_token(role);
        let id = id_of(text).filter(|_| !text.is_empty());
        ids.extend(id.filter(|id| !ids.contains(id)));
        if ids.is_empty() && !text.is_empty() {
            let text = text.to_string();
            found.push(SpecialToken {
                role,
                text,
                id: None,
            });
        }
        found.extend(ids.into_iter().map(|id| SpecialToken {
            role,
            text: text_of(id).unwrap_or_default(),
            id: Some(id),
        }));
    }
    for (role, text) in [
        ("think_open", tasks::THINK_OPEN),
        ("think_close", tasks::THINK_CLOSE),
    ] {
        let text = text.to_string();
        found.extend(id_of(&text).map(|id| SpecialToken {
            role,
            text,
            id: Some(id),
        }));
    }
    found
}

//! `config.json` of `model_type` `deepseek_v3`, field names verbatim, and the arithmetic on it.
//!
//! Source of names and defaults: `DeepseekV3Config` in Hugging Face transformers, and the
//! `config.json` published with DeepSeek-V3. Fields without which no shape is known are required;
//! the others default to what transformers takes when they are absent.

mod fields;

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::WeightDtype;
use crate::error::Error;
use fields::Fields;

/// A `config.json` larger than this is not a configuration.
const LARGEST_FILE: u64 = 16 << 20;

/// More tensors than any published model has (DeepSeek-V3: 45,000), few enough that a table of
/// their names is small. It bounds what a hostile configuration or header can make us allocate.
pub(crate) const MAX_TENSORS: u64 = 1 << 17;

/// 1,600 times DeepSeek-V3. Below this, every offset and byte count fits 64 bits.
const MAX_PARAMETERS: u128 = 1 << 50;

/// Sines and cosines of all positions, 1 GiB: 25 times DeepSeek-V3's.
const MAX_ROPE_TABLE: u128 = 1 << 28;

const COUNT: RangeInclusive<usize> = 1..=1 << 22;
const LAYERS: RangeInclusive<usize> = 1..=1 << 12;
const HEADS: RangeInclusive<usize> = 1..=1 << 14;
const VOCABULARY: RangeInclusive<usize> = 1..=1 << 24;
const POSITIONS: RangeInclusive<usize> = 1..=1 << 31;
/// One expert would be no routing, and transformers takes the best two of a group.
const EXPERTS: RangeInclusive<usize> = 2..=1 << 16;

/// The shape and the constants of a DeepSeek-V3 model.
///
/// Read from a file it is validated; one built in code must pass [`Config::validate`] before
/// anything is made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Width of the dense SwiGLU layers.
    pub intermediate_size: usize,
    /// Width of one routed expert.
    pub moe_intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// 0 makes the model dense.
    pub n_routed_experts: usize,
    /// Shared experts, held as one block of `moe_intermediate_size * n_shared_experts`.
    pub n_shared_experts: usize,
    pub num_experts_per_tok: usize,
    /// Leading dense layers. `num_hidden_layers` or more makes the model dense.
    pub first_k_dense_replace: usize,
    /// `None`: queries are projected directly, by `q_proj`.
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// True: rotated pairs are neighbours `(2i, 2i + 1)`; false: `(i, i + dim / 2)`.
    pub rope_interleave: bool,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f64,
    pub bos_token_id: Option<u32>,
    /// One or several; empty when the file names none.
    pub eos_token_id: Vec<u32>,
    pub pad_token_id: Option<u32>,
    pub max_position_embeddings: usize,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// What the file says its weights are; [`read_weights`](crate::read_weights) goes by the
    /// weights themselves.
    pub torch_dtype: String,
    /// Keys of the file that mean nothing to this program, sorted: worth a warning.
    pub ignored_keys: Vec<String>,
}

impl Config {
    /// Reads and validates `config.json` of a model folder.
    ///
    /// # Errors
    /// [`Error::File`] if there is no such file, [`Error::Config`] naming the field otherwise.
    pub fn read(dir: &Path) -> Result<Config, Error> {
        let path = dir.join("config.json");
        let bytes = crate::checkpoint::read_small_file(dir, "config.json", LARGEST_FILE)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::file(&path, "not UTF-8 text; fetch the file again"))?;
        Config::from_json(&text).map_err(|error| error.in_file(&path))
    }

    /// Parses and validates the text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field: absent, out of range, or not supported.
    pub fn from_json(text: &str) -> Result<Config, Error> {
        let mut fields = Fields::parse(text)?;
        fields.refuse_unsupported()?;
        let num_attention_heads = fields.required("num_attention_heads", &HEADS)?;
        let heads = num_attention_heads..=num_attention_heads;
        fields.or("num_key_value_heads", &heads, num_attention_heads)?;
        let moe = MoeFields::take(&mut fields)?;
        let config = Config {
            vocab_size: fields.required("vocab_size", &VOCABULARY)?,
            hidden_size: fields.required("hidden_size", &COUNT)?,
            intermediate_size: fields.required("intermediate_size", &COUNT)?,
            moe_intermediate_size: moe.moe_intermediate_size,
            num_hidden_layers: moe.num_hidden_layers,
            num_attention_heads,
            n_routed_experts: moe.n_routed_experts,
            n_shared_experts: moe.n_shared_experts,
            num_experts_per_tok: moe.num_experts_per_tok,
            first_k_dense_replace: moe.first_k_dense_replace,
            q_lora_rank: fields.required_or_null("q_lora_rank", &COUNT)?,
            kv_lora_rank: fields.required("kv_lora_rank", &COUNT)?,
            qk_nope_head_dim: fields.required("qk_nope_head_dim", &COUNT)?,
            qk_rope_head_dim: fields.required("qk_rope_head_dim", &COUNT)?,
            v_head_dim: fields.required("v_head_dim", &COUNT)?,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            rope_theta: fields.rope_theta()?,
            rope_interleave: fields.boolean("rope_interleave", true)?,
            norm_topk_prob: fields.boolean("norm_topk_prob", true)?,
            routed_scaling_factor: moe.routed_scaling_factor,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
            eos_token_id: fields.token_ids("eos_token_id")?,
            pad_token_id: fields.token_ids("pad_token_id")?.first().copied(),
            max_position_embeddings: fields.or("max_position_embeddings", &POSITIONS, 4096)?,
            initializer_range: fields.number("initializer_range", 0.02)?,
            torch_dtype: fields.torch_dtype()?,
            ignored_keys: fields.leftover(),
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks every range and every relation between fields, and that the model can be counted.
    /// Nothing of the model's size is allocated before this passes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        in_range("vocab_size", self.vocab_size, &VOCABULARY)?;
        in_range("num_hidden_layers", self.num_hidden_layers, &LAYERS)?;
        in_range("num_attention_heads", self.num_attention_heads, &HEADS)?;
        in_range(
            "max_position_embeddings",
            self.max_position_embeddings,
            &POSITIONS,
        )?;
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
        ] {
            in_range(field, value, &COUNT)?;
        }
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            let value = self.qk_rope_head_dim;
            return Err(Error::field(
                "qk_rope_head_dim",
                format!("{value} is odd; RoPE turns pairs"),
            ));
        }
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("rope_theta", self.rope_theta)?;
        if self.initializer_range != 0.0 {
            positive("initializer_range", self.initializer_range)?;
        }
        self.validate_moe()?;
        self.validate_token_ids()?;
        self.validate_size()
    }

    fn validate_moe(&self) -> Result<(), Error> {
        in_range(
            "n_routed_experts",
            self.n_routed_experts,
            &(0..=*EXPERTS.end()),
        )?;
        if self.num_moe_layers() == 0 {
            return Ok(());
        }
        in_range("n_routed_experts", self.n_routed_experts, &EXPERTS)?;
        in_range("moe_intermediate_size", self.moe_intermediate_size, &COUNT)?;
        in_range("n_shared_experts", self.n_shared_experts, &(1..=1 << 10))?;
        in_range(
            "num_experts_per_tok",
            self.num_experts_per_tok,
            &(1..=self.n_routed_experts),
        )?;
        positive("routed_scaling_factor", self.routed_scaling_factor)
    }

    fn validate_token_ids(&self) -> Result<(), Error> {
        let eos = self.eos_token_id.iter().map(|id| ("eos_token_id", id));
        let others = [
            ("bos_token_id", &self.bos_token_id),
            ("pad_token_id", &self.pad_token_id),
        ];
        let others = others
            .into_iter()
            .filter_map(|(field, id)| id.as_ref().map(|id| (field, id)));
        for (field, &id) in eos.chain(others) {
            in_range(field, id as usize, &(0..=self.vocab_size - 1))?;
        }
        Ok(())
    }

    fn validate_size(&self) -> Result<(), Error> {
        let tensors_per_moe_layer = 3 * self.n_routed_experts as u64 + 14;
        let tensors = tensors_per_moe_layer * self.num_moe_layers() as u64
            + 12 * self.num_hidden_layers as u64;
        if tensors > MAX_TENSORS {
            let message = format!(
                "{} with {} layers makes {tensors} tensors, more than {MAX_TENSORS}",
                self.n_routed_experts, self.num_hidden_layers
            );
            return Err(Error::field("n_routed_experts", message));
        }
        let table = self.max_position_embeddings as u128 * self.qk_rope_head_dim as u128;
        if table > MAX_ROPE_TABLE {
            let message = format!(
                "{} positions of {} rotated values are more than the table holds: at most {}",
                self.max_position_embeddings,
                self.qk_rope_head_dim,
                MAX_ROPE_TABLE / self.qk_rope_head_dim as u128
            );
            return Err(Error::field("max_position_embeddings", message));
        }
        let parameters = self.count_parameters(self.n_routed_experts);
        if parameters > MAX_PARAMETERS {
            let message = format!("the sizes make {parameters} parameters; check each of them");
            return Err(Error::field("hidden_size", message));
        }
        Ok(())
    }

    /// Dimension of one query or key head, position-free part and rotated part together.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Whether layer `layer_idx` routes to experts. `moe_layer_freq` is always 1 here.
    pub fn is_moe_layer(&self, layer_idx: usize) -> bool {
        self.n_routed_experts > 0 && layer_idx >= self.first_k_dense_replace
    }

    /// How many of the layers route to experts; 0 for a dense model.
    pub fn num_moe_layers(&self) -> usize {
        if self.n_routed_experts == 0 {
            return 0;
        }
        self.num_hidden_layers
            .saturating_sub(self.first_k_dense_replace)
    }

    /// Every number the checkpoint holds, input embedding, head and `e_score_correction_bias`
    /// included.
    pub fn parameters_total(&self) -> u64 {
        self.count_parameters(self.n_routed_experts) as u64
    }

    /// As [`parameters_total`](Config::parameters_total), but with only `num_experts_per_tok`
    /// routed experts in each MoE layer. Input embedding and head are both counted, which for
    /// DeepSeek-V3 gives 37.55 billion; the 37 billion of its report lie between this and the
    /// 36.63 billion without the input embedding.
    pub fn parameters_active(&self) -> u64 {
        self.count_parameters(self.num_experts_per_tok) as u64
    }

    /// Values cached per token over all layers: the latent and the shared rotated key.
    pub fn cache_elements_per_token(&self) -> usize {
        self.num_hidden_layers * (self.kv_lora_rank + self.qk_rope_head_dim)
    }

    /// Floating-point operations of one token's forward pass that attends to `mean_context` keys
    /// (its own included), a multiply-add counted as two.
    ///
    /// Two per matmul weight touched (so the input embedding, which is looked up, and the norms
    /// do not count, and of the routed experts only the chosen ones), and per layer, head and key
    /// `2 (kv_lora_rank + qk_rope_head_dim) + 2 kv_lora_rank`: scores and values of the absorbed
    /// form of MLA. Absorbing moves `kv_b_proj` to the queries and outputs; its cost per token
    /// stays the same. A training step costs three times this.
    pub fn flops_per_token_forward(&self, mean_context: f64) -> f64 {
        let latent = self.kv_lora_rank as f64;
        let per_key = 2.0 * (latent + self.qk_rope_head_dim as f64) + 2.0 * latent;
        let heads = (self.num_hidden_layers * self.num_attention_heads) as f64;
        2.0 * self.matmul_weights(self.num_experts_per_tok) as f64 + heads * mean_context * per_key
    }

    /// Matmul weights of the whole model, head included, with `experts` routed experts counted in
    /// each MoE layer. `u128`, so that no allowed field can overflow it.
    fn matmul_weights(&self, experts: usize) -> u128 {
        let [hidden, heads, layers, moe_layers, width] = [
            self.hidden_size,
            self.num_attention_heads,
            self.num_hidden_layers,
            self.num_moe_layers(),
            self.moe_intermediate_size,
        ]
        .map(|n| n as u128);
        let latent = self.kv_lora_rank as u128;
        let queries = heads * self.qk_head_dim() as u128;
        let query = match self.q_lora_rank {
            Some(rank) => rank as u128 * (hidden + queries),
            None => hidden * queries,
        };
        let expanded = heads * (self.qk_nope_head_dim + self.v_head_dim) as u128;
        let attention = query
            + hidden * (latent + self.qk_rope_head_dim as u128)
            + latent * expanded
            + hidden * heads * self.v_head_dim as u128;
        let dense = 3 * hidden * self.intermediate_size as u128;
        let counted_experts = (experts + self.n_shared_experts) as u128;
        let moe = hidden * self.n_routed_experts as u128 + 3 * hidden * width * counted_experts;
        let head = hidden * self.vocab_size as u128;
        layers * attention + (layers - moe_layers) * dense + moe_layers * moe + head
    }

    /// All numbers of the checkpoint, with `experts` routed experts counted in each MoE layer.
    fn count_parameters(&self, experts: usize) -> u128 {
        let [hidden, layers] = [self.hidden_size, self.num_hidden_layers].map(|n| n as u128);
        let norms = 2 * hidden + (self.q_lora_rank.unwrap_or(0) + self.kv_lora_rank) as u128;
        let router_biases = (self.num_moe_layers() * self.n_routed_experts) as u128;
        let embedding = hidden * self.vocab_size as u128;
        self.matmul_weights(experts) + embedding + hidden + layers * norms + router_biases
    }

    /// The text of a `config.json` that transformers' `DeepseekV3ForCausalLM` opens, for weights
    /// stored as `dtype`. Keys are sorted, so the same configuration gives the same bytes.
    pub fn to_json(&self, dtype: WeightDtype) -> String {
        // Transformers goes by `first_k_dense_replace` alone to tell which layers are dense.
        let first_k_dense_replace = self.num_hidden_layers - self.num_moe_layers();
        let fields = json!({
            "architectures": ["DeepseekV3ForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "first_k_dense_replace": first_k_dense_replace,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "kv_lora_rank": self.kv_lora_rank,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "deepseek_v3",
            "moe_intermediate_size": self.moe_intermediate_size,
            "moe_layer_freq": 1,
            "n_group": 1,
            "n_routed_experts": self.n_routed_experts,
            "n_shared_experts": self.n_shared_experts,
            "norm_topk_prob": self.norm_topk_prob,
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_attention_heads,
            // Transformers supposes one multi-token prediction layer when this is absent.
            "num_nextn_predict_layers": 0,
            "pad_token_id": self.pad_token_id,
            "q_lora_rank": self.q_lora_rank,
            "qk_nope_head_dim": self.qk_nope_head_dim,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_interleave": self.rope_interleave,
            "rope_scaling": null,
            "rope_theta": self.rope_theta,
            "routed_scaling_factor": self.routed_scaling_factor,
            "scoring_func": "sigmoid",
            "tie_word_embeddings": false,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "torch_dtype": dtype.torch_name(),
            "use_cache": true,
            "v_head_dim": self.v_head_dim,
            "vocab_size": self.vocab_size,
        });
        pretty(&fields)
    }

    /// The text of the `generation_config.json` that goes with this configuration.
    pub fn to_generation_json(&self) -> String {
        pretty(&json!({
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "pad_token_id": self.pad_token_id,
        }))
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_id.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        }
    }
}

/// Indented JSON with a final newline and the keys in order, whichever map serde_json was built
/// with (another crate of the workspace may turn on its insertion-ordered one).
fn pretty(object: &Value) -> String {
    let mut entries: Vec<_> = object.as_object().into_iter().flatten().collect();
    entries.sort_by_key(|(key, _)| key.as_str());
    let sorted: Map<String, Value> = entries
        .into_iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    format!("{:#}\n", Value::Object(sorted))
}

/// The fields that only a mixture of experts needs; a dense model may leave them out.
struct MoeFields {
    num_hidden_layers: usize,
    first_k_dense_replace: usize,
    n_routed_experts: usize,
    n_shared_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    routed_scaling_factor: f64,
}

impl MoeFields {
    fn take(fields: &mut Fields) -> Result<MoeFields, Error> {
        let num_hidden_layers = fields.required("num_hidden_layers", &LAYERS)?;
        let n_routed_experts = fields.or("n_routed_experts", &(0..=*EXPERTS.end()), 0)?;
        let first_k_dense_replace = fields.or("first_k_dense_replace", &(0..=usize::MAX), 0)?;
        if n_routed_experts == 0 || first_k_dense_replace >= num_hidden_layers {
            for unused in ["n_group", "topk_group"] {
                fields.or(unused, &(0..=usize::MAX), 0)?;
            }
            return Ok(MoeFields {
                num_hidden_layers,
                // One way to say it, whichever way the file had.
                first_k_dense_replace: num_hidden_layers,
                n_routed_experts,
                n_shared_experts: fields.or("n_shared_experts", &(0..=*COUNT.end()), 0)?,
                num_experts_per_tok: fields.or("num_experts_per_tok", &(0..=*COUNT.end()), 0)?,
                moe_intermediate_size: fields.or(
                    "moe_intermediate_size",
                    &(0..=*COUNT.end()),
                    0,
                )?,
                routed_scaling_factor: fields.number("routed_scaling_factor", 1.0)?,
            });
        }
        for field in ["n_group", "topk_group"] {
            match fields.required(field, &COUNT)? {
                1 => {}
                groups => {
                    let message =
                        format!("{groups} groups of experts are not supported yet, only 1");
                    return Err(Error::field(field, message));
                }
            }
        }
        Ok(MoeFields {
            num_hidden_layers,
            first_k_dense_replace,
            n_routed_experts,
            n_shared_experts: fields.required("n_shared_experts", &COUNT)?,
            num_experts_per_tok: fields.required("num_experts_per_tok", &COUNT)?,
            moe_intermediate_size: fields.required("moe_intermediate_size", &COUNT)?,
            routed_scaling_factor: fields.required_number("routed_scaling_factor")?,
        })
    }
}

fn in_range(field: &str, value: usize, range: &RangeInclusive<usize>) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    Err(Error::field(
        field,
        format!("{value} is outside {low}..={high}"),
    ))
}

fn positive(field: &str, value: f64) -> Result<(), Error> {
    // The kernels compute in f32, where a smaller positive number would become zero.
    if value.is_finite() && value >= f64::from(f32::MIN_POSITIVE) && value <= f64::from(f32::MAX) {
        return Ok(());
    }
    Err(Error::field(
        field,
        format!("{value} is not a positive number that f32 can hold"),
    ))
}

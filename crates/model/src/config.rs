//! `config.json` of the supported families, field names verbatim.
//!
//! Source of names and defaults: the configuration classes of Hugging Face transformers and the
//! `config.json` published with each model. Fields without which no shape is known are required;
//! the others default to what transformers takes when they are absent.

mod count;
mod families;
mod fields;
mod rope;
mod write;

use std::ops::RangeInclusive;
use std::path::Path;

use crate::error::Error;
pub use rope::{Llama3Scaling, Rope, RopeScaling, YarnScaling};

/// A `config.json` larger than this is not a configuration.
const LARGEST_FILE: u64 = 16 << 20;

/// More tensors than any published model has (DeepSeek-V3: 45,000 and as many scales), few enough
/// that a table of their names is small. It bounds what a hostile configuration or header can make
/// us allocate.
pub(crate) const MAX_TENSORS: u64 = 1 << 17;

/// 1,600 times DeepSeek-V3. Below this, every offset and byte count fits 64 bits.
const MAX_PARAMETERS: u128 = 1 << 50;

const COUNT: RangeInclusive<usize> = 1..=1 << 22;
const LAYERS: RangeInclusive<usize> = 1..=1 << 12;
const HEADS: RangeInclusive<usize> = 1..=1 << 14;
const VOCABULARY: RangeInclusive<usize> = 1..=1 << 24;
const POSITIONS: RangeInclusive<usize> = 1..=1 << 31;
/// One expert would be no routing, and transformers takes the best two of a group.
const EXPERTS: RangeInclusive<usize> = 2..=1 << 16;

/// `model_type` of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    DeepseekV3,
    DeepseekV2,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Llama,
}

impl Architecture {
    pub const ALL: [Architecture; 6] = [
        Architecture::DeepseekV3,
        Architecture::DeepseekV2,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Qwen3Moe,
        Architecture::Llama,
    ];

    /// The name in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Architecture::DeepseekV3 => "deepseek_v3",
            Architecture::DeepseekV2 => "deepseek_v2",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3_moe",
            Architecture::Llama => "llama",
        }
    }

    /// The class of transformers, as in `architectures`.
    pub fn class(self) -> &'static str {
        match self {
            Architecture::DeepseekV3 => "DeepseekV3ForCausalLM",
            Architecture::DeepseekV2 => "DeepseekV2ForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Qwen3Moe => "Qwen3MoeForCausalLM",
            Architecture::Llama => "LlamaForCausalLM",
        }
    }

    /// Whether attention is multi-head latent attention.
    pub fn is_deepseek(self) -> bool {
        matches!(self, Architecture::DeepseekV3 | Architecture::DeepseekV2)
    }
}

/// The shape and the constants of a model.
///
/// Read from a file it is validated; one built in code must pass [`Config::validate`] before
/// anything is made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Width of the dense SwiGLU layers.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub attention: Attention,
    /// `None`: every layer is dense.
    pub moe: Option<Moe>,
    pub rope: Rope,
    /// Multi-token prediction layers behind the last: 0 or 1.
    pub num_nextn_predict_layers: usize,
    pub rms_norm_eps: f64,
    /// Whether the head is the input embedding.
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// One or several; empty when the file names none.
    pub eos_token_id: Vec<u32>,
    pub pad_token_id: Option<u32>,
    pub max_position_embeddings: usize,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// What the file says its weights are; the weights themselves decide.
    pub torch_dtype: String,
    /// Blocks of FP8 weights, where the file says that they are quantised so.
    pub fp8: Option<Fp8Blocks>,
    /// Keys of the file that mean nothing to this program, sorted: worth a warning.
    pub ignored_keys: Vec<String>,
}

/// How a layer attends.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    Mla(Mla),
    Gqa(Gqa),
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Mla {
    /// `None`: queries are projected directly, by `q_proj`.
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
}

/// Grouped-query attention; multi-head where the heads are as many.
#[derive(Clone, Debug, PartialEq)]
pub struct Gqa {
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    /// Of `q_proj`, `k_proj` and `v_proj`.
    pub qkv_bias: bool,
    /// Of `o_proj`.
    pub o_bias: bool,
    /// RMSNorm of each query and key head before RoPE (`q_norm`, `k_norm`).
    pub qk_norm: bool,
}

/// A mixture of experts (DeepSeek-V3, section 2.1.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// `num_experts` in Qwen's configurations.
    pub n_routed_experts: usize,
    /// Held as one block of `moe_intermediate_size * n_shared_experts`; may be 0.
    pub n_shared_experts: usize,
    pub num_experts_per_tok: usize,
    /// Width of one routed expert.
    pub moe_intermediate_size: usize,
    /// The layers that are dense all the same.
    pub dense_layers: DenseLayers,
    pub scoring_func: ScoringFunc,
    pub topk_method: TopkMethod,
    /// Groups of experts, and how many of them a token may choose from.
    pub n_group: usize,
    pub topk_group: usize,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f64,
}

/// Which layers of a mixture have no experts.
#[derive(Clone, Debug, PartialEq)]
pub enum DenseLayers {
    /// The leading ones: `first_k_dense_replace`.
    First(usize),
    /// `mlp_only_layers`, sorted, and those that `decoder_sparse_step` passes over.
    Listed {
        mlp_only_layers: Vec<usize>,
        decoder_sparse_step: usize,
    },
}

/// What makes scores of the router's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoringFunc {
    Softmax,
    Sigmoid,
}

/// How experts are chosen by their scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopkMethod {
    /// The best of all.
    Greedy,
    /// The best of the groups whose best expert is best (DeepSeek-V2).
    GroupLimitedGreedy,
    /// With `e_score_correction_bias`, of the groups whose two best are best (DeepSeek-V3).
    NoauxTc,
}

/// `quantization_config` of DeepSeek's FP8 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Blocks {
    /// `weight_block_size`: rows and columns that share a scale.
    pub block: [usize; 2],
    /// `scale_fmt: "ue8m0"`: scales are powers of two.
    pub ue8m0: bool,
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
        let config = families::parse(text)?;
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
        let positions = self.max_position_embeddings;
        in_range("max_position_embeddings", positions, &POSITIONS)?;
        in_range("hidden_size", self.hidden_size, &COUNT)?;
        in_range("intermediate_size", self.intermediate_size, &COUNT)?;
        let mtp = self.num_nextn_predict_layers;
        in_range("num_nextn_predict_layers", mtp, &(0..=1))?;
        self.validate_attention()?;
        positive("rms_norm_eps", self.rms_norm_eps)?;
        self.rope.validate()?;
        if self.initializer_range != 0.0 {
            positive("initializer_range", self.initializer_range)?;
        }
        if let Some(moe) = &self.moe {
            moe.validate()?;
            self.refuse_unclear_scaling(moe)?;
        }
        self.validate_token_ids()?;
        self.validate_size()
    }

    fn validate_attention(&self) -> Result<(), Error> {
        let rotated = match &self.attention {
            Attention::Mla(mla) => {
                for (field, value) in [
                    ("q_lora_rank", mla.q_lora_rank.unwrap_or(1)),
                    ("kv_lora_rank", mla.kv_lora_rank),
                    ("qk_nope_head_dim", mla.qk_nope_head_dim),
                    ("qk_rope_head_dim", mla.qk_rope_head_dim),
                    ("v_head_dim", mla.v_head_dim),
                ] {
                    in_range(field, value, &COUNT)?;
                }
                ("qk_rope_head_dim", mla.qk_rope_head_dim)
            }
            Attention::Gqa(gqa) => {
                let (heads, kv) = (self.num_attention_heads, gqa.num_key_value_heads);
                in_range("num_key_value_heads", kv, &(1..=heads))?;
                if !heads.is_multiple_of(kv) {
                    let message = format!("{kv} does not divide num_attention_heads, {heads}");
                    return Err(Error::field("num_key_value_heads", message));
                }
                in_range("head_dim", gqa.head_dim, &COUNT)?;
                ("head_dim", gqa.head_dim)
            }
        };
        if rotated.1.is_multiple_of(2) {
            return Ok(());
        }
        let message = format!("{} is odd; RoPE turns pairs", rotated.1);
        Err(Error::field(rotated.0, message))
    }

    /// DeepSeek-V2's code leaves out the scaling of weights that it normalises, copies of it do
    /// not, and no published model has both: whichever were taken might be wrong.
    fn refuse_unclear_scaling(&self, moe: &Moe) -> Result<(), Error> {
        let clear = moe.num_experts_per_tok > 1 && moe.routed_scaling_factor == 1.0;
        if self.architecture == Architecture::DeepseekV2 && moe.norm_topk_prob && !clear {
            let message = "true with a routed_scaling_factor, or with one expert per token, is \
                           not supported in deepseek_v2";
            return Err(Error::field("norm_topk_prob", message));
        }
        Ok(())
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
        let experts = self.moe.as_ref().map_or(0, |moe| moe.n_routed_experts) as u64;
        let blocks = (self.num_hidden_layers + self.num_nextn_predict_layers) as u64;
        let tensors = (3 * experts + 14) * self.num_moe_layers() as u64 + 16 * blocks;
        if tensors > MAX_TENSORS {
            let message = format!(
                "{experts} with {} layers makes {tensors} tensors, more than {MAX_TENSORS}",
                self.num_hidden_layers
            );
            return Err(Error::field("n_routed_experts", message));
        }
        let parameters = self.count_all();
        if parameters > MAX_PARAMETERS {
            let message = format!("the sizes make {parameters} parameters; check each of them");
            return Err(Error::field("hidden_size", message));
        }
        Ok(())
    }

    /// Whether layer `layer_idx` routes to experts. The multi-token prediction layer is number
    /// `num_hidden_layers`. `moe_layer_freq` is always 1 here.
    pub fn is_moe_layer(&self, layer_idx: usize) -> bool {
        let Some(moe) = &self.moe else { return false };
        match &moe.dense_layers {
            DenseLayers::First(first) => layer_idx >= *first,
            DenseLayers::Listed {
                mlp_only_layers,
                decoder_sparse_step,
            } => {
                !mlp_only_layers.contains(&layer_idx)
                    && (layer_idx + 1).is_multiple_of(*decoder_sparse_step)
            }
        }
    }

    /// How many layers route to experts, the multi-token prediction layer included; 0 for a dense
    /// model.
    pub fn num_moe_layers(&self) -> usize {
        let blocks = self.num_hidden_layers + self.num_nextn_predict_layers;
        (0..blocks).filter(|&i| self.is_moe_layer(i)).count()
    }

    /// Routed experts of a layer that has any; 0 for a dense model.
    pub fn n_routed_experts(&self) -> usize {
        self.moe.as_ref().map_or(0, |moe| moe.n_routed_experts)
    }
}

impl Moe {
    fn validate(&self) -> Result<(), Error> {
        let experts = self.n_routed_experts;
        in_range("n_routed_experts", experts, &EXPERTS)?;
        in_range("moe_intermediate_size", self.moe_intermediate_size, &COUNT)?;
        in_range("n_shared_experts", self.n_shared_experts, &(0..=1 << 10))?;
        let chosen = self.num_experts_per_tok;
        in_range("num_experts_per_tok", chosen, &(1..=experts))?;
        in_range("n_group", self.n_group, &(1..=experts))?;
        in_range("topk_group", self.topk_group, &(1..=self.n_group))?;
        if !experts.is_multiple_of(self.n_group) {
            let message = format!("{} does not divide {experts} experts", self.n_group);
            return Err(Error::field("n_group", message));
        }
        let per_group = experts / self.n_group;
        if self.topk_method == TopkMethod::NoauxTc && self.n_group > 1 && per_group < 2 {
            let message = "groups of one expert; a group's score is the sum of its best two";
            return Err(Error::field("n_group", message));
        }
        let open = self.topk_group * per_group;
        if chosen > open {
            let message = format!("{chosen}, but {open} experts remain in the chosen groups");
            return Err(Error::field("num_experts_per_tok", message));
        }
        positive("routed_scaling_factor", self.routed_scaling_factor)
    }

    /// Whether a correction bias steers the choice of experts.
    pub fn has_correction_bias(&self) -> bool {
        self.topk_method == TopkMethod::NoauxTc
    }
}

impl Mla {
    /// Dimension of one query or key head, position-free part and rotated part together.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Of a latent with its rotary key: what the cache holds per token.
    pub fn latent_width(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}

impl Attention {
    /// The latent attention of a DeepSeek model.
    ///
    /// # Panics
    /// If the attention is another.
    pub fn mla(&self) -> &Mla {
        match self {
            Attention::Mla(mla) => mla,
            Attention::Gqa(_) => panic!("this model's attention is not latent"),
        }
    }

    /// Elements of a head that RoPE turns.
    pub fn rope_dim(&self) -> usize {
        match self {
            Attention::Mla(mla) => mla.qk_rope_head_dim,
            Attention::Gqa(gqa) => gqa.head_dim,
        }
    }

    /// Values cached per token and layer.
    pub fn cache_elements(&self) -> usize {
        match self {
            Attention::Mla(mla) => mla.latent_width(),
            Attention::Gqa(gqa) => 2 * gqa.num_key_value_heads * gqa.head_dim,
        }
    }
}

fn in_range(field: &str, value: usize, range: &RangeInclusive<usize>) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    let message = format!("{value} is outside {low}..={high}");
    Err(Error::field(field, message))
}

fn positive(field: &str, value: f64) -> Result<(), Error> {
    // The kernels compute in f32, where a smaller positive number would become zero.
    if value.is_finite() && value >= f64::from(f32::MIN_POSITIVE) && value <= f64::from(f32::MAX) {
        return Ok(());
    }
    let message = format!("{value} is not a positive number that f32 can hold");
    Err(Error::field(field, message))
}

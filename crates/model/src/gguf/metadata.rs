//! The metadata that a `config.json` becomes, under the keys that llama.cpp reads.
//!
//! Source: `TextModel.set_gguf_parameters` in `conversion/base.py` and its overrides in
//! `conversion/{llama,qwen,deepseek}.py` of <https://github.com/ggml-org/llama.cpp>.

use serde_json::Value as Json;

use super::value::Value;
use crate::error::{Error, shown};

/// The metadata of a model, without its tokenizer, in the order of llama.cpp's converters.
///
/// `mtp_layers` is how many layers of multi-token prediction the file will hold behind the others;
/// give 0 where llama.cpp must open it, for it refuses them in `deepseek2`.
///
/// # Errors
/// [`Error::Config`] naming a field that is absent, or whose value GGUF cannot say.
pub fn metadata_of(config: &Json, mtp_layers: usize) -> Result<Vec<(String, Value)>, Error> {
    let fields = Fields(config);
    let arch = fields.architecture()?;
    let mut out = Out {
        arch,
        keys: vec![
            ("general.architecture".to_string(), Value::Str(arch.into())),
            ("general.type".to_string(), Value::Str("model".into())),
            ("general.quantization_version".to_string(), Value::U32(2)),
        ],
    };
    fields.refuse_unsayable(arch)?;
    let layers = fields.integer("num_hidden_layers")?;
    out.integer("block_count", layers.saturating_add(mtp_layers))?;
    out.integer("context_length", fields.integer("max_position_embeddings")?)?;
    out.integer("embedding_length", fields.integer("hidden_size")?)?;
    out.integer("feed_forward_length", fields.integer("intermediate_size")?)?;
    let heads = fields.integer("num_attention_heads")?;
    out.integer("attention.head_count", heads)?;
    // With its latents, DeepSeek's attention is one of a single key head.
    let kv_heads = match arch {
        "deepseek2" => 1,
        _ => fields.integer_or("num_key_value_heads", heads)?,
    };
    out.integer("attention.head_count_kv", kv_heads)?;
    fields.rope_keys(&mut out)?;
    let eps = fields.number_or("rms_norm_eps", 1e-6)?;
    out.float("attention.layer_norm_rms_epsilon", eps);
    match arch {
        "deepseek2" => fields.deepseek_keys(&mut out)?,
        _ => fields.grouped_query_keys(&mut out)?,
    }
    if mtp_layers > 0 {
        out.integer("nextn_predict_layers", mtp_layers)?;
    }
    out.integer("vocab_size", fields.integer("vocab_size")?)?;
    Ok(out.keys)
}

/// The keys so far.
struct Out {
    arch: &'static str,
    keys: Vec<(String, Value)>,
}

impl Out {
    fn put(&mut self, name: &str, value: Value) {
        self.keys.push((format!("{}.{name}", self.arch), value));
    }

    fn integer(&mut self, name: &str, value: usize) -> Result<(), Error> {
        let value = u32::try_from(value)
            .map_err(|_| Error::field("", format!("{value} does not fit GGUF's `{name}`")))?;
        self.put(name, Value::U32(value));
        Ok(())
    }

    fn float(&mut self, name: &str, value: f64) {
        self.put(name, Value::F32(value as f32));
    }
}

/// The fields of a `config.json`.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub &'a Json);

impl<'a> Fields<'a> {
    fn find(self, name: &str) -> Option<&'a Json> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn integer_or_none(self, name: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.find(name) else {
            return Ok(None);
        };
        let value = value.as_u64().and_then(|value| usize::try_from(value).ok());
        let value = value.ok_or_else(|| Error::field(name, "is no whole number"))?;
        Ok(Some(value))
    }

    pub fn integer_or(self, name: &str, default: usize) -> Result<usize, Error> {
        Ok(self.integer_or_none(name)?.unwrap_or(default))
    }

    pub fn integer(self, name: &str) -> Result<usize, Error> {
        let found = self.integer_or_none(name)?;
        found.ok_or_else(|| Error::field(name, "is absent"))
    }

    fn number_or_none(self, name: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.find(name) else {
            return Ok(None);
        };
        let value = value.as_f64();
        let value = value.ok_or_else(|| Error::field(name, "is no number"))?;
        Ok(Some(value))
    }

    fn number_or(self, name: &str, default: f64) -> Result<f64, Error> {
        Ok(self.number_or_none(name)?.unwrap_or(default))
    }

    fn is_true(self, name: &str) -> bool {
        self.find(name).and_then(Json::as_bool).unwrap_or(false)
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.find(name).and_then(Json::as_str)
    }

    /// `head_dim`, or what it is when absent.
    pub fn head_dim(self) -> Result<usize, Error> {
        let heads = self.integer("num_attention_heads")?.max(1);
        let default = self.integer("hidden_size")? / heads;
        self.integer_or("head_dim", default)
    }

    /// GGUF's name of the architecture.
    pub fn architecture(self) -> Result<&'static str, Error> {
        match self.text("model_type") {
            Some("llama") => Ok("llama"),
            Some("qwen2") => Ok("qwen2"),
            Some("qwen3") => Ok("qwen3"),
            Some("qwen3_moe") => Ok("qwen3moe"),
            Some("deepseek_v2" | "deepseek_v3") => Ok("deepseek2"),
            other => {
                let other = shown(other.unwrap_or("(absent)"));
                let message = format!("{other} has no GGUF architecture that is written here");
                Err(Error::field("model_type", message))
            }
        }
    }

    /// What GGUF, or llama.cpp's graph of the architecture, has no key for.
    fn refuse_unsayable(self, arch: &str) -> Result<(), Error> {
        let refuse = |name: &str, why: &str| Err(Error::field(name, why));
        if self.is_true("use_sliding_window") {
            return refuse(
                "use_sliding_window",
                "a sliding window is not written to GGUF",
            );
        }
        if arch == "deepseek2" && self.find("rope_interleave").is_some_and(|it| it == false) {
            return refuse(
                "rope_interleave",
                "GGUF's deepseek2 turns neighbouring pairs",
            );
        }
        let rope = self.rope();
        if arch == "deepseek2" && rope.kind() == Some("llama3") {
            return refuse("rope_scaling", "GGUF's deepseek2 has no llama3 scaling");
        }
        if rope.kind() == Some("yarn") {
            for field in ["mscale", "mscale_all_dim"] {
                if arch == "deepseek2" && rope.optional(field)? == Some(0.0) {
                    return refuse(field, "0 means the default in GGUF");
                }
            }
            let truncate = rope.object.and_then(|object| object.find("truncate"));
            if truncate.is_some_and(|truncate| truncate == false) {
                return refuse("truncate", "in GGUF the range of YaRN's ramp is whole");
            }
        }
        if arch == "qwen3moe" && !self.is_true("norm_topk_prob") {
            return refuse("norm_topk_prob", "GGUF's qwen3moe always normalises");
        }
        if arch == "qwen3moe" && self.integer_or("decoder_sparse_step", 1)? != 1 {
            return refuse(
                "decoder_sparse_step",
                "in GGUF's qwen3moe every layer has experts",
            );
        }
        let dense = self.find("mlp_only_layers").and_then(Json::as_array);
        if arch == "qwen3moe" && dense.is_some_and(|layers| !layers.is_empty()) {
            return refuse(
                "mlp_only_layers",
                "in GGUF's qwen3moe every layer has experts",
            );
        }
        Ok(())
    }

    pub fn rope(self) -> Rope<'a> {
        let object = self.find("rope_parameters").or(self.find("rope_scaling"));
        Rope {
            object: object.map(Fields),
            config: self,
        }
    }

    fn rope_keys(self, out: &mut Out) -> Result<(), Error> {
        let rope = self.rope();
        match rope.kind() {
            // Llama 3's goes into a tensor.
            None | Some("default" | "llama3") => {}
            Some("linear") => {
                out.put("rope.scaling.type", Value::Str("linear".into()));
                out.float("rope.scaling.factor", rope.number("factor")?);
            }
            Some("yarn") => rope.yarn_keys(out)?,
            Some(other) => {
                let message = format!("`{}` is not written to GGUF", shown(other));
                return Err(Error::field("rope_scaling.rope_type", message));
            }
        }
        out.float("rope.freq_base", rope.theta()?);
        Ok(())
    }

    fn grouped_query_keys(self, out: &mut Out) -> Result<(), Error> {
        let head_dim = self.head_dim()?;
        if out.arch == "qwen3moe" {
            // transformers 5 writes the second name.
            let experts = match self.integer_or_none("num_experts")? {
                None => self.integer("num_local_experts")?,
                Some(experts) => experts,
            };
            out.integer("expert_count", experts)?;
            out.integer("expert_used_count", self.integer("num_experts_per_tok")?)?;
        }
        out.integer("attention.key_length", head_dim)?;
        out.integer("attention.value_length", head_dim)?;
        if out.arch == "llama" {
            out.integer("rope.dimension_count", head_dim)?;
        }
        if out.arch == "qwen3moe" {
            let width = self.integer("moe_intermediate_size")?;
            out.integer("expert_feed_forward_length", width)?;
        }
        Ok(())
    }

    fn deepseek_keys(self, out: &mut Out) -> Result<(), Error> {
        let experts = self.integer_or("n_routed_experts", 0)?;
        let layers = self.integer("num_hidden_layers")?;
        if experts > 0 {
            out.integer("expert_count", experts)?;
            out.integer("expert_used_count", self.integer("num_experts_per_tok")?)?;
            out.integer("expert_group_count", self.integer_or("n_group", 1)?)?;
            out.integer("expert_group_used_count", self.integer_or("topk_group", 1)?)?;
            let default = match self.text("model_type") {
                Some("deepseek_v3") => "sigmoid",
                _ => "softmax",
            };
            let gating = match self.text("scoring_func").unwrap_or(default) {
                "softmax" => 1,
                "sigmoid" => 2,
                other => {
                    let message = format!("`{}` is not written to GGUF", shown(other));
                    return Err(Error::field("scoring_func", message));
                }
            };
            out.integer("expert_gating_func", gating)?;
        }
        let dense = match experts {
            0 => layers,
            _ => self.integer_or("first_k_dense_replace", 0)?.min(layers),
        };
        out.integer("leading_dense_block_count", dense)?;
        if let Some(rank) = self.integer_or_none("q_lora_rank")? {
            out.integer("attention.q_lora_rank", rank)?;
        }
        self.mla_keys(out)?;
        let default = self.integer("intermediate_size")?;
        let width = self.integer_or("moe_intermediate_size", default)?;
        out.integer("expert_feed_forward_length", width)?;
        out.integer(
            "expert_shared_count",
            self.integer_or("n_shared_experts", 0)?,
        )?;
        let scale = self.number_or("routed_scaling_factor", 1.0)?;
        out.float("expert_weights_scale", scale);
        out.put(
            "expert_weights_norm",
            Value::Bool(self.is_true("norm_topk_prob")),
        );
        Ok(())
    }

    /// The compressed attention that is computed, then (`_mla`) the one it stands for.
    fn mla_keys(self, out: &mut Out) -> Result<(), Error> {
        let rank = self.integer("kv_lora_rank")?;
        let rope = self.integer("qk_rope_head_dim")?;
        let nope = self.integer("qk_nope_head_dim")?;
        out.integer("attention.kv_lora_rank", rank)?;
        out.integer("attention.key_length", rank.saturating_add(rope))?;
        out.integer("attention.value_length", rank)?;
        out.integer("attention.key_length_mla", nope.saturating_add(rope))?;
        out.integer("attention.value_length_mla", self.integer("v_head_dim")?)?;
        out.integer("rope.dimension_count", rope)
    }
}

/// RoPE's parameters in either spelling: `rope_parameters`, or `rope_scaling` and `rope_theta`.
pub(super) struct Rope<'a> {
    object: Option<Fields<'a>>,
    config: Fields<'a>,
}

impl<'a> Rope<'a> {
    /// Its type, `None` if nothing is said.
    pub fn kind(&self) -> Option<&'a str> {
        let object = self.object?;
        object.text("rope_type").or(object.text("type"))
    }

    /// The base of the frequencies.
    pub fn theta(&self) -> Result<f64, Error> {
        let inside = self.optional("rope_theta")?;
        inside.map_or_else(|| self.config.number_or("rope_theta", 10000.0), Ok)
    }

    fn optional(&self, name: &str) -> Result<Option<f64>, Error> {
        match self.object {
            Some(object) => object.number_or_none(name),
            None => Ok(None),
        }
    }

    pub fn number(&self, name: &str) -> Result<f64, Error> {
        let found = self.optional(name)?;
        found.ok_or_else(|| Error::field(&format!("rope_scaling.{name}"), "is absent"))
    }

    /// What llama.cpp computes for the factor on cosine and sine: with DeepSeek's two equal
    /// `mscale`s their quotient.
    fn computed_factor(&self) -> Result<f64, Error> {
        match self.optional("mscale_all_dim")? {
            Some(_) => Ok(1.0),
            None => Ok(0.1 * self.number("factor")?.max(1.0).ln() + 1.0),
        }
    }

    fn yarn_keys(&self, out: &mut Out) -> Result<(), Error> {
        out.put("rope.scaling.type", Value::Str("yarn".into()));
        out.float("rope.scaling.factor", self.number("factor")?);
        let original = self.number("original_max_position_embeddings")?;
        out.integer("rope.scaling.original_context_length", original as usize)?;
        // llama.cpp multiplies what it computes itself by this key (`llama-context.cpp`) and passes
        // over its converter's `yarn_attn_factor`; transformers' `attention_factor` replaces it.
        let multiplier = match self.optional("attention_factor")? {
            Some(whole) => Some(whole / self.computed_factor()?),
            None => self.optional("attn_factor")?,
        };
        if let Some(value) = multiplier {
            out.float("rope.scaling.attn_factor", value);
        }
        for (field, key) in [
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            if let Some(value) = self.optional(field)? {
                out.float(key, value);
            }
        }
        let (mscale, all) = (self.optional("mscale")?, self.optional("mscale_all_dim")?);
        if mscale != all || all.is_some() && out.arch != "deepseek2" {
            let message = "GGUF has one key for `mscale` and `mscale_all_dim`, in deepseek2 alone";
            return Err(Error::field("rope_scaling.mscale", message));
        }
        if let Some(all) = all {
            out.float("rope.scaling.yarn_log_multiplier", 0.1 * all);
        }
        Ok(())
    }
}

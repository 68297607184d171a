//! The `config.json` that a GGUF file was made from, told by its metadata.
//!
//! Keys: `gguf-py/gguf/constants.py`; what the converters put there: `conversion/*.py`; what absent
//! keys mean: `src/models/*.cpp` and `src/llama-context.cpp`, all of
//! <https://github.com/ggml-org/llama.cpp>.

use serde_json::{Map, Value as Json, json};

use super::file::Gguf;
use super::rope::llama3_scaling;
use super::tensors::{head_count, known_architecture, per_layer};
use super::tokenizer::token_id;
use crate::error::{Error, shown};

/// The text of a Hugging Face `config.json`: `model_type` `llama`, `qwen2`, `qwen3`, `qwen3_moe`,
/// `deepseek_v2` (softmax router) or `deepseek_v3` (sigmoid), with the old spelling of RoPE's
/// parameters. Floating-point numbers are the shortest decimals that give the file's f32.
///
/// Early files of DeepSeek-V2 and V3 do not say that routing is limited to groups; by their sizes
/// they are known and get the groups they were published with.
///
/// # Errors
/// [`Error::File`] naming the key or the tensor: absent, of another type, or not supported.
pub fn config_json(gguf: &Gguf) -> Result<String, Error> {
    let arch = known_architecture(gguf)?;
    let keys = Keys { gguf, arch };
    let mut config = Map::new();
    keys.common(&mut config)?;
    match arch {
        "deepseek2" => keys.deepseek(&mut config)?,
        "qwen3moe" => keys.qwen3_moe(&mut config)?,
        _ => keys.dense(&mut config)?,
    }
    keys.token_ids(&mut config)?;
    Ok(format!("{:#}\n", Json::Object(config)))
}

/// The number that was rounded to this f32, as far as it can be told: 1e-6, not
/// 9.99999997475e-7.
pub(super) fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The metadata under one architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn integer_or_none(&self, name: &str) -> Result<Option<usize>, Error> {
        per_layer(self.gguf, &self.key(name))
    }

    fn integer(&self, name: &str) -> Result<usize, Error> {
        let found = self.integer_or_none(name)?;
        found.ok_or_else(|| self.gguf.bad_key(&self.key(name), "is absent"))
    }

    fn float_or_none(&self, name: &str) -> Result<Option<f64>, Error> {
        let key = self.key(name);
        match self.gguf.f32(&key)? {
            Some(value) if !value.is_finite() => {
                Err(self.gguf.bad_key(&key, format!("is {value}")))
            }
            found => Ok(found.map(decimal)),
        }
    }

    fn common(&self, config: &mut Map<String, Json>) -> Result<(), Error> {
        let heads = head_count(self.gguf, self.arch, "attention.head_count")?;
        let mut set = |name: &str, value: Json| config.insert(name.to_string(), value);
        set("hidden_act", json!("silu"));
        set("hidden_size", json!(self.integer("embedding_length")?));
        set(
            "max_position_embeddings",
            json!(self.integer("context_length")?),
        );
        set("num_attention_heads", json!(heads));
        let name = "attention.layer_norm_rms_epsilon";
        let eps = self.float_or_none(name)?;
        let eps = eps.ok_or_else(|| self.gguf.bad_key(&self.key(name), "is absent"))?;
        set("rms_norm_eps", json!(eps));
        set("rope_theta", json!(self.theta()?));
        set("vocab_size", json!(self.vocab_size()?));
        let tied = self.gguf.find("output.weight").is_none();
        set("tie_word_embeddings", json!(tied));
        let dtype = match self.gguf.u32("general.file_type")? {
            Some(0) => "float32",
            Some(1) => "float16",
            _ => "bfloat16",
        };
        set("torch_dtype", json!(dtype));
        Ok(())
    }

    /// 10000 where the key is absent, as in llama.cpp.
    fn theta(&self) -> Result<f64, Error> {
        Ok(self.float_or_none("rope.freq_base")?.unwrap_or(10000.0))
    }

    /// The rows of the embedding; the tokenizer must have as many tokens.
    fn vocab_size(&self) -> Result<usize, Error> {
        let name = "token_embd.weight";
        let Some(number) = self.gguf.find(name) else {
            return Err(self.gguf.bad_tensor(name, "is missing"));
        };
        let rows = self.gguf.tensors[number].rows();
        let key = "tokenizer.ggml.tokens";
        match self.gguf.strings(key)? {
            Some(tokens) if tokens.len() != rows => {
                let message = format!("has {} entries, `{name}` {rows} rows", tokens.len());
                Err(self.gguf.bad_key(key, message))
            }
            _ => Ok(rows),
        }
    }

    fn token_ids(&self, config: &mut Map<String, Json>) -> Result<(), Error> {
        let rows = self.vocab_size()?;
        for (field, name) in [
            ("bos_token_id", "bos_token_id"),
            ("pad_token_id", "padding_token_id"),
        ] {
            if let Some(id) = token_id(self.gguf, name, rows)? {
                config.insert(field.to_string(), json!(id));
            }
        }
        // The end of a turn and the end of a message end a completion too.
        let mut ends = Vec::new();
        for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            let id = token_id(self.gguf, name, rows)?;
            ends.extend(id.filter(|id| !ends.contains(id)));
        }
        let ends = match ends[..] {
            [] => return Ok(()),
            [id] => json!(id),
            _ => json!(ends),
        };
        config.insert("eos_token_id".to_string(), ends);
        Ok(())
    }

    /// Heads of grouped-query attention, and what scales RoPE there.
    fn attention(&self, config: &mut Map<String, Json>) -> Result<(), Error> {
        let heads = head_count(self.gguf, self.arch, "attention.head_count")?;
        let kv_heads = head_count(self.gguf, self.arch, "attention.head_count_kv")?;
        let hidden = self.integer("embedding_length")?;
        let head_dim = match self.integer_or_none("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden / heads.max(1),
        };
        for name in ["attention.value_length", "rope.dimension_count"] {
            let found = self.integer_or_none(name)?;
            if found.is_some_and(|found| found != head_dim) {
                let message = format!("differs from the keys' {head_dim}, which is not supported");
                return Err(self.gguf.bad_key(&self.key(name), message));
            }
        }
        let mut set = |name: &str, value: Json| config.insert(name.to_string(), value);
        set("num_key_value_heads", json!(kv_heads));
        // Qwen2's configuration has no such field, and needs none unless it says something.
        if self.arch != "qwen2" || head_dim.checked_mul(heads) != Some(hidden) {
            set("head_dim", json!(head_dim));
        }
        if self.arch != "qwen2" {
            let bias = self.gguf.find("blk.0.attn_q.bias").is_some();
            set("attention_bias", json!(bias));
        }
        if let Some(window @ 1..) = self.integer_or_none("attention.sliding_window")? {
            set("sliding_window", json!(window));
            set("use_sliding_window", json!(true));
        }
        let scaling = match llama3_scaling(self.gguf, head_dim, self.theta()?)? {
            Some(scaling) => Some(scaling),
            None => self.scaling()?,
        };
        if let Some(scaling) = scaling {
            set("rope_scaling", scaling);
        }
        Ok(())
    }

    fn dense(&self, config: &mut Map<String, Json>) -> Result<(), Error> {
        if let Some(experts @ 1..) = self.integer_or_none("expert_count")? {
            let message = format!("is {experts}; this architecture is known without experts");
            return Err(self.gguf.bad_key(&self.key("expert_count"), message));
        }
        let (model_type, class) = match self.arch {
            "llama" => ("llama", "LlamaForCausalLM"),
            "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
            _ => ("qwen3", "Qwen3ForCausalLM"),
        };
        config.insert("model_type".to_string(), json!(model_type));
        config.insert("architectures".to_string(), json!([class]));
        let layers = json!(self.integer("block_count")?);
        config.insert("num_hidden_layers".to_string(), layers);
        let width = json!(self.integer("feed_forward_length")?);
        config.insert("intermediate_size".to_string(), width);
        self.attention(config)
    }

    fn qwen3_moe(&self, config: &mut Map<String, Json>) -> Result<(), Error> {
        self.attention(config)?;
        let mut set = |name: &str, value: Json| config.insert(name.to_string(), value);
        set("model_type", json!("qwen3_moe"));
        set("architectures", json!(["Qwen3MoeForCausalLM"]));
        set("num_hidden_layers", json!(self.integer("block_count")?));
        let width = self.integer("expert_feed_forward_length")?;
        let dense = self.integer_or_none("feed_forward_length")?;
        set("moe_intermediate_size", json!(width));
        set("intermediate_size", json!(dense.unwrap_or(width)));
        set("num_experts", json!(self.integer("expert_count")?));
        set(
            "num_experts_per_tok",
            json!(self.integer("expert_used_count")?),
        );
        // llama.cpp's graph of this architecture always normalises, and the key is not written.
        set("norm_topk_prob", json!(true));
        set("decoder_sparse_step", json!(1));
        set("mlp_only_layers", json!([]));
        Ok(())
    }

    fn deepseek(&self, config: &mut Map<String, Json>) -> Result<(), Error> {
        let blocks = self.integer("block_count")?;
        let nextn = self.integer_or_none("nextn_predict_layers")?.unwrap_or(0);
        if nextn >= blocks {
            let message = format!("is {nextn} of {blocks} blocks");
            return Err(self
                .gguf
                .bad_key(&self.key("nextn_predict_layers"), message));
        }
        let layers = blocks - nextn;
        let sigmoid = self.has_sigmoid_router(blocks)?;
        let (model_type, class) = match sigmoid {
            true => ("deepseek_v3", "DeepseekV3ForCausalLM"),
            false => ("deepseek_v2", "DeepseekV2ForCausalLM"),
        };
        let heads = head_count(self.gguf, self.arch, "attention.head_count")?;
        let mut set = |name: &str, value: Json| config.insert(name.to_string(), value);
        set("model_type", json!(model_type));
        set("architectures", json!([class]));
        set("num_hidden_layers", json!(layers));
        set("num_nextn_predict_layers", json!(nextn));
        set("num_key_value_heads", json!(heads));
        set("attention_bias", json!(false));
        set(
            "intermediate_size",
            json!(self.integer("feed_forward_length")?),
        );
        set(
            "kv_lora_rank",
            json!(self.integer("attention.kv_lora_rank")?),
        );
        let q_lora_rank = self.integer_or_none("attention.q_lora_rank")?;
        set("q_lora_rank", json!(q_lora_rank.filter(|&rank| rank > 0)));
        if let Some(scaling) = self.scaling()? {
            set("rope_scaling", scaling);
        }
        self.mla_dims(config)?;
        self.deepseek_experts(config, layers, sigmoid)
    }

    /// Newer files describe the compressed attention in `key_length` and the true one in
    /// `key_length_mla`; older ones have the true one in `key_length`.
    fn mla_dims(&self, config: &mut Map<String, Json>) -> Result<(), Error> {
        let key = match self.integer_or_none("attention.key_length_mla")? {
            Some(length @ 1..) => length,
            _ => self.integer("attention.key_length")?,
        };
        let value = match self.integer_or_none("attention.value_length_mla")? {
            Some(length @ 1..) => length,
            _ => self.integer("attention.value_length")?,
        };
        let rope = self.integer("rope.dimension_count")?;
        let Some(nope @ 1..) = key.checked_sub(rope) else {
            let message = format!("is {rope}, of keys of {key}");
            return Err(self
                .gguf
                .bad_key(&self.key("rope.dimension_count"), message));
        };
        config.insert("qk_nope_head_dim".to_string(), json!(nope));
        config.insert("qk_rope_head_dim".to_string(), json!(rope));
        config.insert("v_head_dim".to_string(), json!(value));
        Ok(())
    }

    fn deepseek_experts(
        &self,
        config: &mut Map<String, Json>,
        layers: usize,
        sigmoid: bool,
    ) -> Result<(), Error> {
        let mut set = |name: &str, value: Json| config.insert(name.to_string(), value);
        let Some(experts @ 1..) = self.integer_or_none("expert_count")? else {
            set("n_routed_experts", json!(0));
            set("first_k_dense_replace", json!(layers));
            return Ok(());
        };
        set("n_routed_experts", json!(experts));
        let dense = self.integer_or_none("leading_dense_block_count")?;
        set("first_k_dense_replace", json!(dense.unwrap_or(0)));
        set("moe_layer_freq", json!(1));
        let width = self.integer("expert_feed_forward_length")?;
        set("moe_intermediate_size", json!(width));
        let shared = self.integer_or_none("expert_shared_count")?;
        set("n_shared_experts", json!(shared.unwrap_or(0)));
        set(
            "num_experts_per_tok",
            json!(self.integer("expert_used_count")?),
        );
        let scale = self.float_or_none("expert_weights_scale")?;
        // llama.cpp takes 0 for absent.
        let scale = scale.filter(|&scale| scale != 0.0).unwrap_or(1.0);
        set("routed_scaling_factor", json!(scale));
        let norm = self.gguf.bool(&self.key("expert_weights_norm"))?;
        set("norm_topk_prob", json!(norm.unwrap_or(false)));
        let (groups, used) = self.expert_groups(experts)?;
        set("n_group", json!(groups));
        set("topk_group", json!(used));
        let (scoring, method) = match (sigmoid, groups) {
            (true, _) => ("sigmoid", "noaux_tc"),
            (false, 1) => ("softmax", "greedy"),
            (false, _) => ("softmax", "group_limited_greedy"),
        };
        set("scoring_func", json!(scoring));
        set("topk_method", json!(method));
        Ok(())
    }

    /// How many groups of experts there are, and how many a token may use.
    fn expert_groups(&self, experts: usize) -> Result<(usize, usize), Error> {
        let groups = self.integer_or_none("expert_group_count")?;
        let used = self.integer_or_none("expert_group_used_count")?;
        if let (Some(groups @ 1..), Some(used @ 1..)) = (groups, used) {
            return Ok((groups, used));
        }
        Ok(match (self.integer("embedding_length")?, experts) {
            (7168, 256) => (8, 4),
            (5120, 160) => (8, 3),
            _ => (1, 1),
        })
    }

    fn has_sigmoid_router(&self, blocks: usize) -> Result<bool, Error> {
        let name = "expert_gating_func";
        match self.integer_or_none(name)?.unwrap_or(0) {
            // GLM-4.7-Flash was first converted without the key; DeepSeek-V2 never had it.
            0 => Ok(matches!(blocks, 47 | 48) && self.vocab_size()? == 154_880),
            1 => Ok(false),
            2 => Ok(true),
            other => {
                let message = format!("is {other}; known are 1 (softmax) and 2 (sigmoid)");
                Err(self.gguf.bad_key(&self.key(name), message))
            }
        }
    }

    /// `rope_scaling` out of the keys `rope.scaling.*`, or `None`.
    fn scaling(&self) -> Result<Option<Json>, Error> {
        let key = self.key("rope.scaling.type");
        let factor = self.float_or_none("rope.scaling.factor")?;
        // The name of the only scaling there was at first.
        let factor = match factor {
            None => self.float_or_none("rope.scale_linear")?,
            found => found,
        };
        // llama.cpp takes a factor without a type for a linear one.
        let kind = self.gguf.str(&key)?.unwrap_or("linear");
        let scaled = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
        match (kind, scaled) {
            ("none", _) | ("linear", None) => Ok(None),
            ("linear", Some(factor)) => Ok(Some(
                json!({ "rope_type": "linear", "type": "linear", "factor": factor }),
            )),
            ("yarn", Some(factor)) => self.yarn(factor).map(Some),
            ("yarn", None) => Err(self.gguf.bad_key(&key, "is `yarn`, without a factor")),
            (other, _) => {
                let message = format!("is `{}`; known are none, linear and yarn", shown(other));
                Err(self.gguf.bad_key(&key, message))
            }
        }
    }

    fn yarn(&self, factor: f64) -> Result<Json, Error> {
        let mut scaling = Map::new();
        let mut set = |name: &str, value: Json| scaling.insert(name.to_string(), value);
        set("rope_type", json!("yarn"));
        set("type", json!("yarn"));
        set("factor", json!(factor));
        let original = self.integer_or_none("rope.scaling.original_context_length")?;
        let original = original.map_or_else(|| self.integer("context_length"), Ok)?;
        set("original_max_position_embeddings", json!(original));
        let fast = self.float_or_none("rope.scaling.yarn_beta_fast")?;
        set("beta_fast", json!(fast.unwrap_or(32.0)));
        let slow = self.float_or_none("rope.scaling.yarn_beta_slow")?;
        set("beta_slow", json!(slow.unwrap_or(1.0)));
        // The first is what llama.cpp reads. Its converter writes the second, out of `attn_factor`
        // or of transformers' `attention_factor`; of models known here only the former is published
        // (DeepSeek-R1-0528-Qwen3-8B).
        let attention = match self.float_or_none("rope.scaling.attn_factor")? {
            None => self.float_or_none("rope.scaling.yarn_attn_factor")?,
            found => found,
        };
        if let Some(attention) = attention {
            // It multiplies what YaRN computes, as in `llama-context.cpp`.
            set("attn_factor", json!(attention));
        }
        let name = "rope.scaling.yarn_log_multiplier";
        if let Some(log) = self.float_or_none(name)?
            && self.arch == "deepseek2"
            && log != 0.0
        {
            // The converter stored a tenth of `mscale_all_dim`, and not `mscale`: they are equal
            // in every published model.
            let mscale = decimal((log / 0.1) as f32);
            if !mscale.is_finite() {
                let message = format!("is {log}, too large a number");
                return Err(self.gguf.bad_key(&self.key(name), message));
            }
            set("mscale", json!(mscale));
            set("mscale_all_dim", json!(mscale));
        }
        Ok(Json::Object(scaling))
    }
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn a_decimal_survives_its_trip_through_f32() {
        for value in [
            1e-6, 1e-5, 2.5, 0.707, 0.0707, 10_000.0, 5e5, 1e6, 16.0, 2.827,
        ] {
            assert_eq!(decimal(value as f32), value);
        }
    }
}

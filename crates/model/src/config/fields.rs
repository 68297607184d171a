//! The keys of a `config.json`, taken one by one, so that what is left over is known.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::{Architecture, Fp8Blocks, Llama3Scaling, POSITIONS, Rope, RopeScaling, YarnScaling};
use crate::error::{Error, shown};

/// Keys that change nothing about what the model computes here.
const HARMLESS: [&str; 29] = [
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "aux_loss_alpha",
    "chunk_size_feed_forward",
    "ep_size",
    "id2label",
    "is_decoder",
    "is_training",
    "label2id",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "qk_head_dim",
    "return_dict",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "seq_aux",
    "task_specific_params",
    "tokenizer_class",
    "torchscript",
    "transformers_version",
    "use_cache",
    "use_mrope",
];

const ORIGINAL_POSITIONS: &str = "original_max_position_embeddings";

/// Most of a value is enough to recognise it by; a hostile one can be megabytes.
fn brief(value: &Value) -> String {
    shown(&value.to_string())
}

pub(super) struct Fields {
    map: Map<String, Value>,
    /// Qwen's configurations declare windows that they do not use.
    pub is_qwen: bool,
}

impl Fields {
    pub(super) fn parse(text: &str) -> Result<Fields, Error> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| Error::field("", format!("not valid JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Fields {
                map,
                is_qwen: false,
            }),
            other => Err(Error::field(
                "",
                format!("{} is not a JSON object", brief(&other)),
            )),
        }
    }

    /// `model_type`.
    pub(super) fn architecture(&mut self) -> Result<Architecture, Error> {
        let value = self
            .take("model_type")
            .ok_or_else(|| missing("model_type"))?;
        let name = value.as_str().unwrap_or_default();
        // Kimi-K2 is DeepSeek-V3 under another name.
        let name = if name == "kimi_k2" {
            "deepseek_v3"
        } else {
            name
        };
        let known = Architecture::ALL.into_iter();
        known
            .clone()
            .find(|architecture| architecture.model_type() == name)
            .ok_or_else(|| {
                let names: Vec<_> = known.map(Architecture::model_type).collect();
                let value = brief(&value);
                let message = format!("{value} is not supported; {} are", names.join(", "));
                Error::field("model_type", message)
            })
    }

    /// Refuses every key that would change the computation into one we do not have.
    pub(super) fn refuse_unsupported(&mut self) -> Result<(), Error> {
        for (field, only) in [
            ("hidden_act", json!("silu")),
            ("mlp_bias", json!(false)),
            ("attention_dropout", json!(0)),
            ("moe_layer_freq", json!(1)),
            ("num_mtp_layers", json!(0)),
            ("partial_rotary_factor", json!(1)),
            ("is_encoder_decoder", json!(false)),
            ("add_cross_attention", json!(false)),
            ("attention_multiplier", Value::Null),
            ("attn_logit_softcapping", Value::Null),
            ("final_logit_softcapping", Value::Null),
            ("logit_softcapping", Value::Null),
            ("embedding_multiplier", json!(1)),
            ("residual_multiplier", json!(1)),
            ("logits_scaling", json!(1)),
            ("scale_emb", json!(1)),
            ("scale_depth", Value::Null),
            ("qk_layernorm", json!(false)),
            ("use_qk_norm", json!(false)),
            ("index_topk", Value::Null),
        ] {
            self.only(field, &only)?;
        }
        self.refuse_sliding_windows()
    }

    /// A window that the file declares but does not use (Qwen2 writes one always) is no window.
    fn refuse_sliding_windows(&mut self) -> Result<(), Error> {
        let used = self.boolean("use_sliding_window", false);
        let has_switch = self.map.contains_key("use_sliding_window");
        let used = used?;
        let window = self
            .map
            .get("sliding_window")
            .is_some_and(|window| !window.is_null());
        let number = |field: &str| self.map.get(field).and_then(Value::as_u64);
        let first = number("max_window_layers").unwrap_or(0);
        let reached = number("num_hidden_layers").is_none_or(|layers| first < layers);
        if used && window && reached {
            let message = "sliding windows of attention are not supported";
            return Err(Error::field("use_sliding_window", message));
        }
        let window = self.take("sliding_window");
        self.take("max_window_layers");
        if let (Some(window), false) = (window, has_switch || self.is_qwen) {
            let message = format!("{}: sliding windows are not supported", brief(&window));
            return Err(Error::field("sliding_window", message));
        }
        let Some(types) = self.take("layer_types") else {
            return Ok(());
        };
        let full = |kinds: &Vec<Value>| kinds.iter().all(|kind| kind == "full_attention");
        if types.as_array().is_some_and(full) {
            return Ok(());
        }
        let message = format!("{}: only full_attention is supported", brief(&types));
        Err(Error::field("layer_types", message))
    }

    /// DeepSeek's FP8 blocks, or no quantisation.
    pub(super) fn fp8(&mut self) -> Result<Option<Fp8Blocks>, Error> {
        let field = "quantization_config";
        let Some(mut inner) = self.object(field)? else {
            return Ok(None);
        };
        let blocks = inner.fp8_blocks().map_err(|error| within(field, error))?;
        self.keep_leftover(field, &mut inner);
        Ok(Some(blocks))
    }

    fn fp8_blocks(&mut self) -> Result<Fp8Blocks, Error> {
        let method = self
            .take("quant_method")
            .ok_or_else(|| missing("quant_method"))?;
        if method != "fp8" {
            let message = format!("{} is not supported, only \"fp8\"", brief(&method));
            return Err(Error::field("quant_method", message));
        }
        self.only("fmt", &json!("e4m3"))?;
        self.only("activation_scheme", &json!("dynamic"))?;
        let ue8m0 = match self.take("scale_fmt") {
            None => false,
            Some(format) if format == "ue8m0" => true,
            Some(other) => {
                let message = format!("{} is not supported, only \"ue8m0\"", brief(&other));
                return Err(Error::field("scale_fmt", message));
            }
        };
        let field = "weight_block_size";
        let value = self.take(field).ok_or_else(|| missing(field))?;
        let sizes = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let [rows, columns] = sizes else {
            let message = format!("{} is not a pair of sizes", brief(&value));
            return Err(Error::field(field, message));
        };
        let size = |value| whole_number(field, value, &(1..=1 << 16));
        let block = [size(rows)?, size(columns)?];
        Ok(Fp8Blocks { block, ue8m0 })
    }

    pub(super) fn only(&mut self, field: &str, only: &Value) -> Result<(), Error> {
        match self.take(field) {
            None => Ok(()),
            Some(value) if same(&value, only) => Ok(()),
            Some(value) => {
                let message = format!("{} is not supported yet, only {only}", brief(&value));
                Err(Error::field(field, message))
            }
        }
    }

    /// Removes `field`; null counts as absent.
    fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// A whole number that must be there.
    pub(super) fn required(
        &mut self,
        field: &str,
        range: &RangeInclusive<usize>,
    ) -> Result<usize, Error> {
        let value = self.take(field).ok_or_else(|| missing(field))?;
        whole_number(field, &value, range)
    }

    /// A whole number with a default.
    pub(super) fn or(
        &mut self,
        field: &str,
        range: &RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize, Error> {
        match self.take(field) {
            Some(value) => whole_number(field, &value, range),
            None => Ok(default),
        }
    }

    /// A whole number or an explicit null. Absence is an error, because transformers would put
    /// a number in its place.
    pub(super) fn required_or_null(
        &mut self,
        field: &str,
        range: &RangeInclusive<usize>,
    ) -> Result<Option<usize>, Error> {
        match self.map.remove(field) {
            None => Err(Error::field(
                field,
                "absent; write a number, or null for none",
            )),
            Some(Value::Null) => Ok(None),
            Some(value) => whole_number(field, &value, range).map(Some),
        }
    }

    pub(super) fn required_number(&mut self, field: &str) -> Result<f64, Error> {
        let value = self.take(field).ok_or_else(|| missing(field))?;
        number(field, &value)
    }

    pub(super) fn number(&mut self, field: &str, default: f64) -> Result<f64, Error> {
        self.take(field)
            .map_or(Ok(default), |value| number(field, &value))
    }

    pub(super) fn boolean(&mut self, field: &str, default: bool) -> Result<bool, Error> {
        match self.map.remove(field) {
            None => Ok(default),
            // As Python has it.
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(Error::field(
                field,
                format!("{} is not true or false", brief(&other)),
            )),
        }
    }

    /// One token id, a list of them, or none.
    pub(super) fn token_ids(&mut self, field: &str) -> Result<Vec<u32>, Error> {
        let values = match self.take(field) {
            None => return Ok(Vec::new()),
            // Older files say so that there is none.
            Some(value) if field == "pad_token_id" && value == -1 => return Ok(Vec::new()),
            Some(Value::Array(values)) if field == "eos_token_id" => values,
            Some(value) => vec![value],
        };
        let ids = 0..=(1 << 24) - 1;
        values
            .iter()
            .map(|value| whole_number(field, value, &ids).map(|id| id as u32))
            .collect()
    }

    /// RoPE as published (`rope_theta`, `rope_scaling`) or as transformers 5 writes it
    /// (`rope_parameters`). `positions` is `max_position_embeddings`.
    pub(super) fn rope(&mut self, interleave: bool, positions: usize) -> Result<Rope, Error> {
        let mut theta = self
            .take("rope_theta")
            .map(|value| number("rope_theta", &value));
        // Some files have it here; transformers then takes it before any other.
        let original = match self.take(ORIGINAL_POSITIONS) {
            Some(value) => Some(whole_number(ORIGINAL_POSITIONS, &value, &POSITIONS)?),
            None => None,
        };
        let mut scaling = RopeScaling::None;
        for field in ["rope_parameters", "rope_scaling"] {
            let Some(mut inner) = self.object(field)? else {
                continue;
            };
            let (own, found) = inner
                .rope_scaling(original, positions)
                .map_err(|error| within(field, error))?;
            if let Some(value) = own {
                if theta
                    .as_ref()
                    .is_some_and(|t| t.as_ref().is_ok_and(|t| *t != value))
                {
                    let message = format!("{value} contradicts the other rope_theta of this file");
                    return Err(Error::field(&format!("{field}.rope_theta"), message));
                }
                theta = Some(Ok(value));
            }
            if scaling != RopeScaling::None && found != scaling {
                let message = "contradicts rope_parameters; keep one of them";
                return Err(Error::field(field, message));
            }
            scaling = found;
            self.keep_leftover(field, &mut inner);
        }
        let theta = theta.unwrap_or(Ok(10_000.0))?;
        Ok(Rope {
            theta,
            interleave,
            scaling,
        })
    }

    /// The `rope_theta` inside, if any, and the kind of scaling.
    fn rope_scaling(
        &mut self,
        original: Option<usize>,
        positions: usize,
    ) -> Result<(Option<f64>, RopeScaling), Error> {
        self.only("partial_rotary_factor", &json!(1))?;
        if let Some((key, _)) = self.map.iter().find(|(_, value)| value.is_object()) {
            let message = "RoPE for each kind of layer is not supported";
            return Err(Error::field(&shown(key), message));
        }
        let own = self.or(ORIGINAL_POSITIONS, &POSITIONS, positions)?;
        let original_max_position_embeddings = original.unwrap_or(own);
        let theta = match self.take("rope_theta") {
            Some(value) => Some(number("rope_theta", &value)?),
            None => None,
        };
        let (new, old) = (self.take("rope_type"), self.take("type"));
        let kind = new.or(old).unwrap_or_else(|| json!("default"));
        let scaling = match kind.as_str().unwrap_or_default() {
            "default" => RopeScaling::None,
            "linear" => {
                // It would sharpen the softmax of DeepSeek's models.
                self.only("mscale_all_dim", &json!(0))?;
                RopeScaling::Linear {
                    factor: self.required_number("factor")?,
                }
            }
            "yarn" => RopeScaling::Yarn(YarnScaling {
                factor: self.required_number("factor")?,
                original_max_position_embeddings,
                beta_fast: self.number("beta_fast", 32.0)?,
                beta_slow: self.number("beta_slow", 1.0)?,
                mscale: self.optional_number("mscale")?,
                mscale_all_dim: self.optional_number("mscale_all_dim")?,
                attention_factor: self.optional_number("attention_factor")?,
                attn_factor: self.optional_number("attn_factor")?,
                truncate: self.boolean("truncate", true)?,
            }),
            "llama3" => RopeScaling::Llama3(Llama3Scaling {
                factor: self.required_number("factor")?,
                low_freq_factor: self.required_number("low_freq_factor")?,
                high_freq_factor: self.required_number("high_freq_factor")?,
                original_max_position_embeddings,
            }),
            _ => {
                let message = format!(
                    "{} is not supported; \"default\", \"linear\", \"yarn\" and \"llama3\" are",
                    brief(&kind)
                );
                return Err(Error::field("rope_type", message));
            }
        };
        Ok((theta, scaling))
    }

    /// An object in its own right; null counts as absent.
    fn object(&mut self, field: &str) -> Result<Option<Fields>, Error> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                map,
                is_qwen: self.is_qwen,
            })),
            Some(other) => {
                let message = format!("{} is not an object", brief(&other));
                Err(Error::field(field, message))
            }
        }
    }

    /// What an object of its own left over is left over here.
    fn keep_leftover(&mut self, field: &str, inner: &mut Fields) {
        for key in inner.leftover() {
            self.map.insert(format!("{field}.{key}"), Value::Bool(true));
        }
    }

    fn optional_number(&mut self, field: &str) -> Result<Option<f64>, Error> {
        let value = self.take(field);
        value.map(|value| number(field, &value)).transpose()
    }

    /// One of several names.
    pub(super) fn choice<T: Copy>(
        &mut self,
        field: &str,
        choices: &[(&str, T)],
        default: Option<T>,
    ) -> Result<T, Error> {
        let Some(value) = self.take(field) else {
            return default.ok_or_else(|| missing(field));
        };
        let found = choices.iter().find(|(name, _)| value == *name);
        found.map(|&(_, choice)| choice).ok_or_else(|| {
            let names: Vec<_> = choices
                .iter()
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            let message = format!(
                "{} is not supported, only {}",
                brief(&value),
                names.join(", ")
            );
            Error::field(field, message)
        })
    }

    /// A list of whole numbers, sorted; absent is empty.
    pub(super) fn list(
        &mut self,
        field: &str,
        range: &RangeInclusive<usize>,
    ) -> Result<Vec<usize>, Error> {
        let values = match self.take(field) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values,
            Some(other) => {
                let message = format!("{} is not a list", brief(&other));
                return Err(Error::field(field, message));
            }
        };
        let numbers = values.iter().map(|value| whole_number(field, value, range));
        let mut numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    pub(super) fn torch_dtype(&mut self) -> Result<String, Error> {
        let known = ["float32", "bfloat16", "float16"];
        let mut dtype = known[0].to_string();
        for field in ["torch_dtype", "dtype"] {
            match self.take(field) {
                None => {}
                Some(Value::String(name)) if known.contains(&name.as_str()) => dtype = name,
                Some(other) => {
                    let message = format!("{} is none of {}", brief(&other), known.join(", "));
                    return Err(Error::field(field, message));
                }
            }
        }
        Ok(dtype)
    }

    /// The keys that nobody took, without the harmless ones and without nulls, sorted.
    pub(super) fn leftover(&mut self) -> Vec<String> {
        let mut keys: Vec<String> = std::mem::take(&mut self.map)
            .into_iter()
            .filter(|(key, value)| !value.is_null() && !HARMLESS.contains(&key.as_str()))
            .map(|(key, _)| key)
            .collect();
        keys.sort();
        keys
    }
}

fn within(field: &str, error: Error) -> Error {
    match error {
        Error::Config {
            path,
            field: inner,
            message,
        } => Error::Config {
            path,
            field: format!("{field}.{inner}"),
            message,
        },
        other => other,
    }
}

fn missing(field: &str) -> Error {
    Error::field(field, "absent, but the model cannot be known without it")
}

/// Equality in which 0 and 0.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn whole_number(field: &str, value: &Value, range: &RangeInclusive<usize>) -> Result<usize, Error> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            let message = format!("{} is not a whole number in {low}..={high}", brief(value));
            Error::field(field, message)
        })
}

fn number(field: &str, value: &Value) -> Result<f64, Error> {
    value
        .as_f64()
        .ok_or_else(|| Error::field(field, format!("{} is not a number", brief(value))))
}

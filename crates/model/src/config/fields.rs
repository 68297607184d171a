//! The keys of a `config.json`, taken one by one, so that what is left over is known.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::error::{Error, shown};

/// Keys that change nothing about what the model computes here.
const HARMLESS: [&str; 27] = [
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "auto_map",
    "aux_loss_alpha",
    "chunk_size_feed_forward",
    "ep_size",
    "head_dim",
    "id2label",
    "is_decoder",
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
];

/// Most of a value is enough to recognise it by; a hostile one can be megabytes.
fn brief(value: &Value) -> String {
    shown(&value.to_string())
}

pub(super) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn parse(text: &str) -> Result<Fields, Error> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| Error::field("", format!("not valid JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Fields { map }),
            other => Err(Error::field(
                "",
                format!("{} is not a JSON object", brief(&other)),
            )),
        }
    }

    /// Refuses every key that would change the computation into one we do not have.
    pub(super) fn refuse_unsupported(&mut self) -> Result<(), Error> {
        match self.map.remove("model_type") {
            Some(Value::String(name)) if name == "deepseek_v3" => {}
            Some(other) => {
                let message = format!(
                    "{} is not supported yet, only \"deepseek_v3\"",
                    brief(&other)
                );
                return Err(Error::field("model_type", message));
            }
            None => return Err(missing("model_type")),
        }
        for (field, only) in [
            ("hidden_act", json!("silu")),
            ("scoring_func", json!("sigmoid")),
            ("topk_method", json!("noaux_tc")),
            ("tie_word_embeddings", json!(false)),
            ("attention_bias", json!(false)),
            ("mlp_bias", json!(false)),
            ("attention_dropout", json!(0)),
            ("moe_layer_freq", json!(1)),
            ("num_nextn_predict_layers", json!(0)),
            ("num_mtp_layers", json!(0)),
            ("partial_rotary_factor", json!(1)),
            ("quantization_config", Value::Null),
            ("sliding_window", Value::Null),
            ("is_encoder_decoder", json!(false)),
            ("add_cross_attention", json!(false)),
        ] {
            self.only(field, &only)?;
        }
        Ok(())
    }

    fn only(&mut self, field: &str, only: &Value) -> Result<(), Error> {
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
        match self.take(field) {
            None => Ok(default),
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
            Some(Value::Array(values)) if field == "eos_token_id" => values,
            Some(value) => vec![value],
        };
        let ids = 0..=(1 << 24) - 1;
        values
            .iter()
            .map(|value| whole_number(field, value, &ids).map(|id| id as u32))
            .collect()
    }

    /// `rope_theta`, at the top (as published) or in `rope_parameters` (as transformers 5 writes).
    pub(super) fn rope_theta(&mut self) -> Result<f64, Error> {
        let mut theta = None;
        let top = self
            .take("rope_theta")
            .map(|value| ("rope_theta".to_string(), value));
        let mut found: Vec<(String, Value)> = top.into_iter().collect();
        for field in ["rope_parameters", "rope_scaling"] {
            found.extend(self.plain_rope(field)?);
        }
        for (field, value) in found {
            let value = number(&field, &value)?;
            if theta.is_some_and(|other| other != value) {
                let message = format!("{value} contradicts the other rope_theta of this file");
                return Err(Error::field(&field, message));
            }
            theta = Some(value);
        }
        Ok(theta.unwrap_or(10_000.0))
    }

    /// Refuses every scaled form of RoPE; gives back the `rope_theta` inside, if any.
    fn plain_rope(&mut self, field: &str) -> Result<Option<(String, Value)>, Error> {
        let mut inner = match self.take(field) {
            None => return Ok(None),
            Some(Value::Object(map)) => Fields { map },
            Some(other) => {
                return Err(Error::field(
                    field,
                    format!("{} is not an object", brief(&other)),
                ));
            }
        };
        for kind in ["rope_type", "type"] {
            inner
                .only(kind, &json!("default"))
                .map_err(|error| within(field, error))?;
        }
        inner
            .only("partial_rotary_factor", &json!(1))
            .map_err(|error| within(field, error))?;
        let theta = inner
            .take("rope_theta")
            .map(|value| (format!("{field}.rope_theta"), value));
        for key in inner.leftover() {
            self.map.insert(format!("{field}.{key}"), Value::Bool(true));
        }
        Ok(theta)
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

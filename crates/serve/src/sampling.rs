//! The fields of a request that say how tokens are chosen, the same in every API.

use engine::{LogprobsOf, SamplingParams};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, whole, wrong};
use crate::service::App;

pub const MAX_N: u64 = 128;
pub const MAX_TOP_LOGPROBS: u64 = 20;
pub const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_IDS: usize = 256;
/// Temperatures below are taken as 0: the engine divides by them.
const SMALLEST_TEMPERATURE: f32 = 1e-5;

/// What all of a request's sequences share.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// `max_tokens` is set once the prompt is known.
    pub params: SamplingParams,
    pub stop: Vec<String>,
}

/// # Errors
/// A field of the wrong kind or out of its range.
pub fn sampling(fields: &Fields, app: &App, fresh_seed: u64) -> Result<Sampling, ApiError> {
    let params = SamplingParams {
        temperature: temperature(fields)?,
        // OpenAI allows 0, which leaves the likeliest token.
        top_p: fields
            .float("top_p", 0.0..=1.0)?
            .map_or(1.0, |share| share.max(f32::MIN_POSITIVE)),
        top_k: top_k(fields)?,
        min_p: fields.float("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        presence_penalty: fields.float("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields
            .float("frequency_penalty", -2.0..=2.0)?
            .unwrap_or(0.0),
        repetition_penalty: fields
            .float("repetition_penalty", 0.01..=100.0)?
            .unwrap_or(1.0),
        logit_bias: logit_bias(fields, app.served.vocab_size)?,
        logprobs: LogprobsOf::Raw,
        top_logprobs: 0,
        max_tokens: 1,
        stop_token_ids: stop_token_ids(fields, app)?,
        seed: seed(fields)?.unwrap_or(fresh_seed),
    };
    let stop = stops(fields, "stop")?;
    Ok(Sampling { params, stop })
}

fn temperature(fields: &Fields) -> Result<f32, ApiError> {
    let temperature = fields.float("temperature", 0.0..=100.0)?.unwrap_or(1.0);
    match temperature < SMALLEST_TEMPERATURE {
        true => Ok(0.0),
        false => Ok(temperature),
    }
}

/// 0 and -1 keep all.
fn top_k(fields: &Fields) -> Result<usize, ApiError> {
    match fields.value("top_k") {
        Some(value) if value.as_i64() == Some(-1) => Ok(0),
        _ => Ok(fields
            .clamped("top_k", 0..=u64::from(u32::MAX))?
            .unwrap_or(0) as usize),
    }
}

/// Any whole number of 64 bits, negative ones too.
fn seed(fields: &Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.value("seed") else {
        return Ok(None);
    };
    let exact = value.as_u64().or(value.as_i64().map(i64::cast_unsigned));
    // Written with a point or an exponent, it is exact up to 53 bits.
    let number = exact.or(whole(value).filter(|&seed| seed <= 1 << 53));
    match number {
        Some(seed) => Ok(Some(seed)),
        None => Err(wrong(
            &fields.path("seed"),
            value,
            "a whole number of 64 bits",
        )),
    }
}

/// `{"token id": bias}`, or pairs of them.
fn logit_bias(fields: &Fields, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(bias) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let object = fields.value("logit_bias").and_then(Value::as_object);
    let mut pairs = Vec::new();
    for name in object.into_iter().flat_map(serde_json::Map::keys) {
        // Written in one way only, so that no id comes twice.
        let id = name
            .parse::<u32>()
            .ok()
            .filter(|id| id.to_string() == *name);
        let id = id.filter(|&id| (id as usize) < vocab_size);
        let Some(id) = id else {
            let message = format!(
                "is no token id; the model's ids are 0 to {}",
                vocab_size - 1
            );
            let name: String = name.chars().take(40).collect();
            return Err(bias.error(&name, message));
        };
        if let Some(value) = bias.float(name, -100.0..=100.0)? {
            pairs.push((id, value));
        }
    }
    Ok(pairs)
}

/// The model's own, unless `ignore_eos`, and those of the request.
fn stop_token_ids(fields: &Fields, app: &App) -> Result<Vec<u32>, ApiError> {
    let mut ids = match fields.flag("ignore_eos")? {
        Some(true) => Vec::new(),
        _ => app.served.stop_token_ids.clone(),
    };
    let given = fields.list("stop_token_ids")?.unwrap_or_default();
    if given.len() > MAX_STOP_IDS {
        let message = format!(
            "has {} ids; at most {MAX_STOP_IDS} are allowed",
            given.len()
        );
        return Err(fields.error("stop_token_ids", message));
    }
    let path = fields.path("stop_token_ids");
    ids.extend(token_ids(given, &path, app.served.vocab_size)?);
    Ok(ids)
}

/// # Errors
/// One is no id of the model.
pub fn token_ids(list: &[Value], path: &str, vocab_size: usize) -> Result<Vec<u32>, ApiError> {
    let id = |(place, value): (usize, &Value)| {
        let id = whole(value).filter(|&id| id < vocab_size as u64);
        let expected = || format!("a token id from 0 to {}", vocab_size - 1);
        id.map(|id| id as u32)
            .ok_or_else(|| wrong(&format!("{path}[{place}]"), value, &expected()))
    };
    list.iter().enumerate().map(id).collect()
}

/// One string or several.
///
/// # Errors
/// Too many, too long, empty, or no strings.
pub fn stops(fields: &Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let texts = match fields.value(name) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let text = |(place, value): (usize, &Value)| {
                let text = value.as_str().map(str::to_string);
                let path = format!("{}[{place}]", fields.path(name));
                text.ok_or_else(|| wrong(&path, value, "a string"))
            };
            list.iter()
                .enumerate()
                .map(text)
                .collect::<Result<_, _>>()?
        }
        Some(value) => {
            return Err(wrong(
                &fields.path(name),
                value,
                "a string or a list of them",
            ));
        }
    };
    if texts.len() > MAX_STOPS {
        let message = format!(
            "has {} strings; at most {MAX_STOPS} are allowed",
            texts.len()
        );
        return Err(fields.error(name, message));
    }
    match texts
        .iter()
        .find(|text| text.is_empty() || text.len() > MAX_STOP_BYTES)
    {
        Some(text) => {
            let (bytes, most) = (text.len(), MAX_STOP_BYTES);
            let message = format!("has a string of {bytes} bytes; 1 to {most} are allowed");
            Err(fields.error(name, message))
        }
        None => Ok(texts),
    }
}

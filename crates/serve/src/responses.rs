//! `/v1/responses`, without a memory: nothing is stored, a conversation comes whole with every
//! request.

mod input;
mod output;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::blocks;
use crate::chat::{Planned, streaming, thinking_budget};
use crate::conversation::{Conversation, flat_tool, kwargs, not_taken, tool_list};
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::reply::Head;
use crate::sampling::{MAX_TOP_LOGPROBS, sampling};
use crate::service::{App, Arrival};
use crate::shape::{shape, tool_choice};

use output::Voice;

/// What asks for log-probabilities, in the list of things to include.
const LOGPROBS: &str = "message.output_text.logprobs";
/// What else may be asked for; there is never any of it in an answer.
const INCLUDED: [&str; 7] = [
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
];
const MAX_METADATA: usize = 16;
/// In characters.
const MAX_METADATA_NAME: usize = 64;
const MAX_METADATA_TEXT: usize = 512;

/// A request that has been read.
pub type Prepared = blocks::Prepared<Voice>;

/// # Errors
/// Whatever is wrong with the request.
pub fn prepare(app: &App, body: &Value, arrival: Arrival) -> Result<Prepared, ApiError> {
    let fields = Fields::new(body, "")?;
    app.check_model(&fields)?;
    not_taken(&fields)?;
    no_memory(&fields)?;
    let (stream, _) = streaming(&fields)?;
    let mut sampling = sampling(&fields, app, app.fresh_seed(arrival.number))?;
    let logprobs = includes_logprobs(&fields)?;
    let top = fields.whole("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    sampling.params.top_logprobs = top.filter(|_| logprobs).unwrap_or(0) as usize;
    let max_tokens = fields.clamped("max_output_tokens", 1..=u64::from(u32::MAX))?;
    let reasoning = fields.object("reasoning")?;
    let conversation = Conversation {
        messages: input::read(&fields, app.tool_format)?,
        tools: tools(&fields)?,
        kwargs: kwargs(&fields, reasoning.as_ref(), "effort")?,
    };
    let plan = Planned {
        choice: tool_choice(&fields, &conversation.tool_names())?,
        conversation: &conversation,
        n: 1,
        max_tokens: max_tokens.map(|tokens| tokens as usize),
        structure: shape(&fields, "text.format")?,
        parallel: fields.flag("parallel_tool_calls")?.unwrap_or(true),
        thinking_budget: thinking_budget(&fields)?,
    };
    let head = Head::new(app, "resp", arrival, sampling.params.seed);
    let told = told(&fields, sampling.params.seed)?;
    let tokenizer = logprobs.then(|| Arc::clone(&app.tokenizer));
    Ok(Prepared {
        plan: plan.plan(app, sampling)?,
        voice: Voice::new(head, told, tokenizer),
        stream,
    })
}

/// What would need a server that keeps things.
fn no_memory(fields: &Fields) -> Result<(), ApiError> {
    for name in ["previous_response_id", "conversation", "prompt"] {
        if fields.value(name).is_some() {
            let message = "cannot be used: nothing is stored here; send the whole input";
            return Err(fields.error(name, message));
        }
    }
    if fields.flag("background")? == Some(true) {
        return Err(fields.error("background", "cannot be true: nothing is stored here"));
    }
    fields.flag("store")?;
    match fields.text("truncation")? {
        None | Some("disabled") => Ok(()),
        Some(_) => {
            let message = "must be disabled: no part of an input is left out here";
            Err(fields.error("truncation", message))
        }
    }
}

/// Whether `include` asks for log-probabilities.
fn includes_logprobs(fields: &Fields) -> Result<bool, ApiError> {
    let list = fields.list("include")?.unwrap_or_default();
    for (place, value) in list.iter().enumerate() {
        let known = |name: &str| name == LOGPROBS || INCLUDED.contains(&name);
        if !value.as_str().is_some_and(known) {
            let path = format!("{}[{place}]", fields.path("include"));
            return Err(wrong(&path, value, &format!("such as {LOGPROBS}")));
        }
    }
    Ok(list.iter().any(|value| value == LOGPROBS))
}

/// Functions, which lie flat in the list.
fn tools(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut tools = Vec::new();
    for (place, value) in tool_list(fields)?.iter().enumerate() {
        let tool = Fields::new(value, &format!("{}[{place}]", fields.path("tools")))?;
        if tool.text("type")? != Some("function") {
            let message = "must be function: this server runs no tools of its own";
            return Err(tool.error("type", message));
        }
        tool.flag("strict")?;
        tools.push(flat_tool(&tool, "parameters", &tools)?);
    }
    Ok(tools)
}

/// What an answer says again of its request.
fn told(fields: &Fields, seed: u64) -> Result<Value, ApiError> {
    let given = |name, otherwise: Value| fields.value(name).cloned().unwrap_or(otherwise);
    let text = fields.object("text")?;
    let format = text.as_ref().and_then(|text| text.value("format")).cloned();
    let reasoning = fields.object("reasoning")?;
    let effort = reasoning.as_ref().and_then(|r| r.value("effort")).cloned();
    Ok(json!({
        "background": false,
        "instructions": fields.value("instructions"),
        "max_output_tokens": fields.value("max_output_tokens"),
        "metadata": metadata(fields)?,
        "parallel_tool_calls": given("parallel_tool_calls", json!(true)),
        "previous_response_id": null,
        "reasoning": {"effort": effort, "summary": null},
        "seed": seed,
        "store": false,
        "temperature": given("temperature", json!(1.0)),
        "text": {"format": format.unwrap_or_else(|| json!({"type": "text"}))},
        "tool_choice": given("tool_choice", json!("auto")),
        "tools": given("tools", json!([])),
        "top_logprobs": given("top_logprobs", json!(0)),
        "top_p": given("top_p", json!(1.0)),
        "truncation": "disabled",
    }))
}

/// A few short texts under short names.
fn metadata(fields: &Fields) -> Result<Value, ApiError> {
    let object = fields.object("metadata")?;
    let pairs = fields.value("metadata").and_then(Value::as_object);
    let (Some(object), Some(pairs)) = (object, pairs) else {
        return Ok(json!({}));
    };
    if pairs.len() > MAX_METADATA {
        let message = format!(
            "has {} entries; at most {MAX_METADATA} are allowed",
            pairs.len()
        );
        return Err(fields.error("metadata", message));
    }
    for (name, value) in pairs {
        let is_short = |text: &str| text.chars().count() <= MAX_METADATA_TEXT;
        if name.chars().count() > MAX_METADATA_NAME || !value.as_str().is_some_and(is_short) {
            let name: String = name.chars().take(MAX_METADATA_NAME).collect();
            let message = format!(
                "must be a text of at most {MAX_METADATA_TEXT} characters, and its name of at \
                 most {MAX_METADATA_NAME}"
            );
            return Err(object.error(&name, message));
        }
    }
    Ok(Value::Object(pairs.clone()))
}

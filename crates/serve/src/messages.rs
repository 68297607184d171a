//! `/v1/messages`, in Anthropic's shape.

mod input;
mod output;

use serde_json::{Value, json};

use crate::blocks;
use crate::chat::{Planned, streaming, thinking_budget};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::reply::Head;
use crate::sampling::{sampling, stops};
use crate::service::{App, Arrival};
use crate::shape::{ToolChoice, checked, shape};

use output::Voice;

/// Anthropic's own is 1; other clients go up to OpenAI's.
const MAX_TEMPERATURE: f64 = 2.0;

/// A request that has been read.
pub type Prepared = blocks::Prepared<Voice>;

/// # Errors
/// Whatever is wrong with the request.
pub fn prepare(app: &App, body: &Value, arrival: Arrival) -> Result<Prepared, ApiError> {
    let fields = Fields::new(body, "")?;
    app.check_model(&fields)?;
    fields.required("max_tokens")?;
    let max_tokens = fields.clamped("max_tokens", 1..=u64::from(u32::MAX))?;
    let (stream, _) = streaming(&fields)?;
    if let Some(metadata) = fields.object("metadata")? {
        metadata.text("user_id")?;
    }
    fields.float("temperature", 0.0..=MAX_TEMPERATURE)?;
    fields.list("stop_sequences")?;
    let mut sampling = sampling(&fields, app, app.fresh_seed(arrival.number))?;
    sampling.stop.extend(stops(&fields, "stop_sequences")?);
    let conversation = input::read(&fields, app.tool_format)?;
    let (choice, parallel) = tool_choice(&fields, &conversation.tool_names())?;
    let plan = Planned {
        conversation: &conversation,
        n: 1,
        max_tokens: max_tokens.map(|tokens| tokens as usize),
        choice,
        structure: shape(&fields, "output_config.format")?,
        parallel,
        thinking_budget: thinking_budget(&fields)?,
    };
    let head = Head::new(app, "msg", arrival, sampling.params.seed);
    let plan = plan.plan(app, sampling)?;
    let prompt_tokens = plan.prompts.iter().map(Vec::len).sum();
    Ok(Prepared {
        plan,
        voice: Voice::new(head, prompt_tokens),
        stream,
    })
}

/// `tool_choice`, and whether several calls may be made at once.
fn tool_choice(fields: &Fields, names: &[String]) -> Result<(ToolChoice, bool), ApiError> {
    let auto = match names.is_empty() {
        true => ToolChoice::None,
        false => ToolChoice::Auto,
    };
    let Some(object) = fields.object("tool_choice")? else {
        return Ok((auto, true));
    };
    let choice = match object.text("type")? {
        Some("auto") => auto,
        Some("none") => ToolChoice::None,
        Some("any") => ToolChoice::Required,
        Some("tool") => {
            let name = object.text("name")?;
            let name = name.ok_or_else(|| object.error("name", "is required and missing"))?;
            ToolChoice::Named(name.to_string())
        }
        _ => return Err(object.error("type", "must be one of auto, any, tool and none")),
    };
    let alone = object.flag("disable_parallel_tool_use")?.unwrap_or(false);
    Ok((checked(choice, names)?, !alone))
}

/// `/v1/messages/count_tokens`
///
/// # Errors
/// Whatever is wrong with the request.
pub fn count_tokens(app: &App, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::new(body, "")?;
    app.check_model(&fields)?;
    let conversation = input::read(&fields, app.tool_format)?;
    tool_choice(&fields, &conversation.tool_names())?;
    let prompted = conversation.prompt(app)?;
    Ok(json!({"input_tokens": prompted.token_ids.len()}))
}

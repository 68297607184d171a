//! From the messages of a chat to the tokens of a prompt.

use serde_json::{Map, Value};
use text::{Message, Prompt, TEMPLATE_KWARGS, Tokenizer, ToolFormat};

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::service::App;

const MAX_MESSAGES: usize = 10_000;
const MAX_TOOLS: usize = 128;
const MAX_NAME_BYTES: usize = 64;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// What no client may bring along: code, files, tensors.
const NOT_TAKEN: [&str; 3] = ["chat_template", "prompt_embeds", "documents"];

/// A chat as the template is given it.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// Of functions, as the API has them.
    pub tools: Vec<Value>,
    pub kwargs: Kwargs,
}

/// What a template is told beside the messages.
pub type Kwargs = Vec<(&'static str, Value)>;

/// A prompt, and where it leaves the model.
#[derive(Clone, Debug)]
pub struct Prompted {
    pub token_ids: Vec<u32>,
    /// It ends inside `<think>`.
    pub primed: bool,
    /// It ends behind `</think>`: there is nothing left to think.
    pub has_thought: bool,
}

impl Conversation {
    /// `messages`, `tools` and `chat_template_kwargs` of a request.
    ///
    /// # Errors
    /// Whatever is wrong with them, by its place.
    pub fn read(fields: &Fields, format: Option<ToolFormat>) -> Result<Conversation, ApiError> {
        not_taken(fields)?;
        let list = messages(fields, "messages")?;
        let read = |(place, value): (usize, &Value)| {
            message(&Fields::new(value, &format!("messages[{place}]"))?, format)
        };
        Ok(Conversation {
            messages: list
                .iter()
                .enumerate()
                .map(read)
                .collect::<Result<_, _>>()?,
            tools: tools(fields)?,
            kwargs: kwargs(fields, Some(fields), "reasoning_effort")?,
        })
    }

    /// # Errors
    /// The model has no chat template, or it refuses these messages.
    pub fn prompt(&self, app: &App) -> Result<Prompted, ApiError> {
        let Some(template) = &app.chat_template else {
            let message = "this model has no chat template; use /v1/completions";
            return Err(ApiError::bad_request(message));
        };
        let tokenizer = &app.tokenizer;
        let messages: Vec<Message> = self
            .messages
            .iter()
            .map(|m| protected(tokenizer, m))
            .collect();
        let tools: Vec<Value> = self
            .tools
            .iter()
            .map(|t| protected_value(tokenizer, t))
            .collect();
        let text = template
            .render_prompt(&Prompt {
                messages: &messages,
                tools: &tools,
                add_generation_prompt: true,
                bos_token: &app.served.bos_token,
                eos_token: &app.served.eos_token,
                kwargs: &self.kwargs,
                now: app.served.now.map(|now| now()),
            })
            .map_err(|error| ApiError::field("messages", format!("cannot be rendered: {error}")))?;
        let token_ids = app.encode(&text)?;
        if token_ids.is_empty() {
            return Err(ApiError::field("messages", "give a prompt without tokens"));
        }
        Ok(Prompted {
            token_ids,
            primed: text::opens_thinking(&text),
            has_thought: text.trim_end().ends_with("</think>"),
        })
    }

    /// The names of the tools.
    pub fn tool_names(&self) -> Vec<String> {
        let name = |tool: &Value| tool["function"]["name"].as_str().map(str::to_string);
        self.tools.iter().filter_map(name).collect()
    }
}

fn message(fields: &Fields, format: Option<ToolFormat>) -> Result<Message, ApiError> {
    let role = match fields.text("role")? {
        Some(role) if ROLES.contains(&role) => role,
        Some("function") => "tool",
        Some(_) => {
            let expected = format!("one of {}", ROLES.join(", "));
            return Err(wrong(
                &fields.path("role"),
                fields.required("role")?,
                &expected,
            ));
        }
        None => return Err(fields.error("role", "is required and missing")),
    };
    let content = content(fields, "content")?;
    let tool_calls = match role {
        "assistant" => tool_calls(fields, format)?,
        _ => None,
    };
    if content.is_none() && tool_calls.is_none() {
        return Err(fields.error("content", "is required and missing"));
    }
    // Both names are in use for the same thing.
    let thought = fields
        .text("reasoning_content")?
        .or(fields.text("reasoning")?);
    Ok(Message {
        role: match role {
            "developer" => "system".to_string(),
            role => role.to_string(),
        },
        content,
        reasoning_content: thought.filter(|_| role == "assistant").map(str::to_string),
        tool_calls,
        name: fields.text("name")?.map(str::to_string),
        tool_call_id: fields.text("tool_call_id")?.map(str::to_string),
    })
}

/// What no request may bring along.
///
/// # Errors
/// It is there.
pub fn not_taken(fields: &Fields) -> Result<(), ApiError> {
    let given = NOT_TAKEN.iter().find(|name| fields.value(name).is_some());
    given.map_or(Ok(()), |name| {
        Err(fields.error(name, "is not taken from requests"))
    })
}

/// A list of messages, neither empty nor endless.
///
/// # Errors
/// It is.
pub fn messages<'a>(fields: &Fields<'a>, name: &str) -> Result<&'a [Value], ApiError> {
    fields.required(name)?;
    let list = fields.list(name)?.unwrap_or_default();
    match list.len() {
        1..=MAX_MESSAGES => Ok(list),
        count => {
            let message = format!("has {count} messages; 1 to {MAX_MESSAGES} are allowed");
            Err(fields.error(name, message))
        }
    }
}

/// A string, or parts of type text, which are joined.
///
/// # Errors
/// Anything else.
pub fn content(fields: &Fields, name: &str) -> Result<Option<String>, ApiError> {
    let parts = match fields.value(name) {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(parts)) => parts,
        Some(value) => {
            return Err(wrong(
                &fields.path(name),
                value,
                "a string or a list of parts",
            ));
        }
    };
    let mut text = String::new();
    for (place, part) in parts.iter().enumerate() {
        let part = Fields::new(part, &format!("{}[{place}]", fields.path(name)))?;
        match part.text("type")? {
            Some("text" | "input_text" | "output_text") => {
                let piece = part.text("text")?;
                text += piece.ok_or_else(|| part.error("text", "is required and missing"))?;
            }
            Some("refusal") => text += part.text("refusal")?.unwrap_or(""),
            Some(_) => return Err(part.error("type", "must be text: this model reads text only")),
            None => return Err(part.error("type", "is required and missing")),
        }
    }
    Ok(Some(text))
}

/// Calls of an earlier answer, their arguments as the model's template wants them: DeepSeek's joins
/// a string, others print an object.
fn tool_calls(fields: &Fields, format: Option<ToolFormat>) -> Result<Option<Vec<Value>>, ApiError> {
    let Some(list) = fields.list("tool_calls")?.filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let mut calls = Vec::new();
    for (place, call) in list.iter().enumerate() {
        let call = Fields::new(call, &format!("{}[{place}]", fields.path("tool_calls")))?;
        let function = call.object("function")?;
        let function = function.ok_or_else(|| call.error("function", "is required and missing"))?;
        let name = function.text("name")?;
        let name = name.ok_or_else(|| function.error("name", "is required and missing"))?;
        let arguments = arguments(&function, "arguments", format)?;
        calls.push(call_value(call.text("id")?.unwrap_or(""), name, arguments));
    }
    Ok(Some(calls))
}

/// A call as templates have it.
pub fn call_value(id: &str, name: &str, arguments: Value) -> Value {
    serde_json::json!({
        "id": id, "type": "function", "function": {"name": name, "arguments": arguments},
    })
}

/// The arguments of a call: JSON in a string, or an object.
///
/// # Errors
/// Neither.
pub fn arguments(
    function: &Fields,
    name: &str,
    format: Option<ToolFormat>,
) -> Result<Value, ApiError> {
    let as_text = matches!(format, Some(ToolFormat::DeepSeek | ToolFormat::DeepSeekV31));
    Ok(match (function.value(name), as_text) {
        (None, true) => Value::from("{}"),
        (None, false) => Value::Object(Map::new()),
        (Some(text @ Value::String(_)), true) => text.clone(),
        (Some(Value::String(text)), false) => serde_json::from_str(text)
            .map_err(|error| function.error(name, format!("must be JSON in a string: {error}")))?,
        (Some(object @ Value::Object(_)), true) => Value::from(object.to_string()),
        (Some(object @ Value::Object(_)), false) => object.clone(),
        (Some(value), _) => {
            return Err(wrong(&function.path(name), value, "JSON in a string"));
        }
    })
}

/// Functions that the model may call.
fn tools(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let list = tool_list(fields)?;
    let mut tools: Vec<Value> = Vec::new();
    for (place, tool) in list.iter().enumerate() {
        let path = format!("{}[{place}]", fields.path("tools"));
        let tool = Fields::new(tool, &path)?;
        match tool.text("type")? {
            Some("function") | None => {}
            Some(_) => return Err(tool.error("type", "must be function")),
        }
        let function = tool.object("function")?;
        let function = function.ok_or_else(|| tool.error("function", "is required and missing"))?;
        check_function(&function, "parameters", &tools)?;
        let function = list[place]["function"].clone();
        tools.push(serde_json::json!({"type": "function", "function": function}));
    }
    Ok(tools)
}

/// The list in `tools`.
///
/// # Errors
/// It is too long, or none.
pub fn tool_list<'a>(fields: &Fields<'a>) -> Result<&'a [Value], ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    match list.len() <= MAX_TOOLS {
        true => Ok(list),
        false => {
            let message = format!("has {} tools; at most {MAX_TOOLS} are allowed", list.len());
            Err(fields.error("tools", message))
        }
    }
}

/// The name of a function, which the tools before it do not have, with its description and, under
/// the name that the API has for it, its schema.
///
/// # Errors
/// Whatever is wrong with these.
pub fn check_function<'a>(
    function: &Fields<'a>,
    schema: &str,
    earlier: &[Value],
) -> Result<&'a str, ApiError> {
    let name = function.text("name")?;
    let name = name.ok_or_else(|| function.error("name", "is required and missing"))?;
    check_name(function, name)?;
    if earlier
        .iter()
        .any(|other| other["function"]["name"] == name)
    {
        return Err(function.error("name", "is the name of an earlier tool too"));
    }
    function.text("description")?;
    function.object(schema)?;
    Ok(name)
}

/// A function in the form that templates and chats have, from one that lies flat in its list.
///
/// # Errors
/// Whatever is wrong with it.
pub fn flat_tool(tool: &Fields, schema: &str, earlier: &[Value]) -> Result<Value, ApiError> {
    let mut function = Map::new();
    let name = check_function(tool, schema, earlier)?;
    function.insert("name".to_string(), Value::from(name));
    for (key, value) in [
        ("description", tool.value("description")),
        ("parameters", tool.value(schema)),
    ] {
        function.extend(value.map(|value| (key.to_string(), value.clone())));
    }
    Ok(serde_json::json!({"type": "function", "function": function}))
}

fn check_name(function: &Fields, name: &str) -> Result<(), ApiError> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    match !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(is_plain) {
        true => Ok(()),
        false => Err(function.error(
            "name",
            format!("must be 1 to {MAX_NAME_BYTES} of a-z, A-Z, 0-9, `_`, `-` and `.`"),
        )),
    }
}

/// Settings of the template: those that a client may set, and no others; among them the effort of
/// thinking, under the name that the API has for it.
///
/// # Errors
/// Whatever is wrong with them.
pub fn kwargs(fields: &Fields, holder: Option<&Fields>, effort: &str) -> Result<Kwargs, ApiError> {
    let mut kwargs = Kwargs::new();
    if let Some(given) = fields.object("chat_template_kwargs")? {
        let object = fields
            .value("chat_template_kwargs")
            .and_then(Value::as_object);
        for (name, value) in object.into_iter().flatten() {
            let Some(known) = TEMPLATE_KWARGS.into_iter().find(|known| known == name) else {
                let allowed = TEMPLATE_KWARGS.join(", ");
                let name: String = name.chars().take(40).collect();
                return Err(given.error(&name, format!("may not be set; known are {allowed}")));
            };
            let simple = matches!(value, Value::Bool(_) | Value::String(_) | Value::Null);
            if !simple
                || value
                    .as_str()
                    .is_some_and(|text| text.len() > MAX_NAME_BYTES)
            {
                return Err(wrong(
                    &given.path(name),
                    value,
                    "true, false or a short word",
                ));
            }
            kwargs.push((known, value.clone()));
        }
    }
    if let Some(holder) = holder
        && let Some(word) = holder.text(effort)?
    {
        let known = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
        if !known.contains(&word) {
            let message = format!("must be one of {}", known.join(", "));
            return Err(holder.error(effort, message));
        }
        set_default(&mut kwargs, "reasoning_effort", Value::from(word));
        if word == "none" {
            set_thinking(&mut kwargs, false);
        }
    }
    Ok(kwargs)
}

/// Whether to think, in the two names that templates have for it, unless the client says otherwise.
pub fn set_thinking(kwargs: &mut Kwargs, thinks: bool) {
    for name in ["enable_thinking", "thinking"] {
        set_default(kwargs, name, Value::Bool(thinks));
    }
}

fn set_default(kwargs: &mut Kwargs, name: &'static str, value: Value) {
    if kwargs.iter().all(|(known, _)| *known != name) {
        kwargs.push((name, value));
    }
}

/// The message with its texts marked, so that nothing in them becomes a control token.
fn protected(tokenizer: &Tokenizer, message: &Message) -> Message {
    let protect = |text: &Option<String>| text.as_deref().map(|text| tokenizer.protect(text));
    let content = match message.role.as_str() {
        // Templates look for the end of an earlier answer's thinking.
        "assistant" => message
            .content
            .as_deref()
            .map(|text| protected_answer(tokenizer, text)),
        _ => protect(&message.content),
    };
    let calls = message.tool_calls.as_ref();
    let protect_call = |call: &Value| protected_value(tokenizer, call);
    Message {
        role: message.role.clone(),
        content,
        reasoning_content: protect(&message.reasoning_content),
        tool_calls: calls.map(|calls| calls.iter().map(protect_call).collect()),
        name: protect(&message.name),
        tool_call_id: protect(&message.tool_call_id),
    }
}

/// All but the marks of thinking.
fn protected_answer(tokenizer: &Tokenizer, text: &str) -> String {
    let mut parts = Vec::new();
    for part in text.split("</think>") {
        let inner: Vec<String> = part
            .split("<think>")
            .map(|piece| tokenizer.protect(piece))
            .collect();
        parts.push(inner.join("<think>"));
    }
    parts.join("</think>")
}

fn protected_value(tokenizer: &Tokenizer, value: &Value) -> Value {
    match value {
        Value::String(text) => Value::from(tokenizer.protect(text)),
        Value::Array(items) => items
            .iter()
            .map(|item| protected_value(tokenizer, item))
            .collect(),
        Value::Object(object) => {
            let entry = |(key, value): (&String, &Value)| {
                (tokenizer.protect(key), protected_value(tokenizer, value))
            };
            Value::Object(object.iter().map(entry).collect())
        }
        other => other.clone(),
    }
}

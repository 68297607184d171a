//! A conversation in Anthropic's blocks, as messages.

use serde_json::Value;
use text::{Message, ToolFormat};

use crate::conversation::{
    Conversation, arguments, call_value, content, flat_tool, kwargs, messages, not_taken,
    set_thinking, tool_list,
};
use crate::error::ApiError;
use crate::fields::{Fields, wrong};

/// `system`, `messages`, `tools` and what says whether to think.
///
/// # Errors
/// Whatever is wrong with them, by its place.
pub fn read(fields: &Fields, format: Option<ToolFormat>) -> Result<Conversation, ApiError> {
    not_taken(fields)?;
    let mut turns = Vec::new();
    if let Some(system) = content(fields, "system")? {
        turns.push(Message::new("system", &system));
    }
    let list = messages(fields, "messages")?;
    let mut last = "";
    for (place, value) in list.iter().enumerate() {
        let turn = Fields::new(value, &format!("messages[{place}]"))?;
        last = match turn.required("role")?.as_str() {
            Some("user") => {
                user(&turn, &mut turns)?;
                "user"
            }
            Some("assistant") => {
                turns.push(assistant(&turn, format)?);
                "assistant"
            }
            _ => {
                let role = turn.required("role")?;
                return Err(wrong(&turn.path("role"), role, "user or assistant"));
            }
        };
    }
    if last == "assistant" {
        let path = format!("messages[{}].role", list.len() - 1);
        let message = "of the last message must be user: answers are not gone on with here";
        return Err(ApiError::field(path, message));
    }
    Ok(Conversation {
        messages: turns,
        tools: tools(fields)?,
        kwargs: thinking(fields)?,
    })
}

/// The blocks of a turn; a string is one block of text.
fn blocks<'a>(turn: &Fields<'a>) -> Result<Vec<Fields<'a>>, ApiError> {
    let path = turn.path("content");
    match turn.required("content")? {
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(place, value)| Fields::new(value, &format!("{path}[{place}]")))
            .collect(),
        value => Err(wrong(&path, value, "a string or a list of blocks")),
    }
}

fn text_of<'a>(block: &Fields<'a>, name: &str) -> Result<&'a str, ApiError> {
    let text = block.text(name)?;
    text.ok_or_else(|| block.error(name, "is required and missing"))
}

/// Text is the user's message; results of tools are messages of their own, where they stand.
fn user(turn: &Fields, turns: &mut Vec<Message>) -> Result<(), ApiError> {
    if let Some(Value::String(text)) = turn.value("content") {
        turns.push(Message::new("user", text));
        return Ok(());
    }
    let blocks = blocks(turn)?;
    let mut text: Option<String> = None;
    for block in &blocks {
        match text_of(block, "type")? {
            "text" => *text.get_or_insert_default() += text_of(block, "text")?,
            "tool_result" => {
                turns.extend(text.take().map(|text| Message::new("user", &text)));
                block.flag("is_error")?;
                let result = content(block, "content")?.unwrap_or_default();
                turns.push(Message {
                    tool_call_id: Some(text_of(block, "tool_use_id")?.to_string()),
                    ..Message::new("tool", &result)
                });
            }
            _ => {
                let kind = block.required("type")?;
                let expected = "text or tool_result: this model reads text only";
                return Err(wrong(&block.path("type"), kind, expected));
            }
        }
    }
    if blocks.is_empty() {
        text = Some(String::new());
    }
    turns.extend(text.map(|text| Message::new("user", &text)));
    Ok(())
}

fn assistant(turn: &Fields, format: Option<ToolFormat>) -> Result<Message, ApiError> {
    if let Some(Value::String(text)) = turn.value("content") {
        return Ok(Message::new("assistant", text));
    }
    let (mut text, mut thinking) = (String::new(), String::new());
    let mut calls = Vec::new();
    for block in blocks(turn)? {
        match text_of(&block, "type")? {
            "text" => text += text_of(&block, "text")?,
            "thinking" => thinking += text_of(&block, "thinking")?,
            // Nobody here can read it.
            "redacted_thinking" => {}
            "tool_use" => {
                let (id, name) = (text_of(&block, "id")?, text_of(&block, "name")?);
                block.object("input")?;
                let arguments = arguments(&block, "input", format)?;
                calls.push(call_value(id, name, arguments));
            }
            _ => {
                let kind = block.required("type")?;
                let expected = "one of text, thinking, redacted_thinking and tool_use";
                return Err(wrong(&block.path("type"), kind, expected));
            }
        }
    }
    let says_nothing = text.is_empty() && !calls.is_empty();
    Ok(Message {
        role: "assistant".to_string(),
        content: (!says_nothing).then_some(text),
        reasoning_content: (!thinking.is_empty()).then_some(thinking),
        tool_calls: (!calls.is_empty()).then_some(calls),
        ..Message::default()
    })
}

fn tools(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut tools = Vec::new();
    for (place, value) in tool_list(fields)?.iter().enumerate() {
        let tool = Fields::new(value, &format!("{}[{place}]", fields.path("tools")))?;
        if !matches!(tool.text("type")?, None | Some("custom")) {
            let message = "must be custom: this server runs no tools of its own";
            return Err(tool.error("type", message));
        }
        tool.required("input_schema")?;
        tools.push(flat_tool(&tool, "input_schema", &tools)?);
    }
    Ok(tools)
}

/// Settings of the template; without a word the model thinks as it is used to.
fn thinking(fields: &Fields) -> Result<crate::conversation::Kwargs, ApiError> {
    let config = fields.object("output_config")?;
    let mut kwargs = kwargs(fields, config.as_ref(), "effort")?;
    if let Some(thinking) = fields.object("thinking")? {
        match thinking.text("type")? {
            Some("enabled" | "adaptive") => set_thinking(&mut kwargs, true),
            Some("disabled") => set_thinking(&mut kwargs, false),
            _ => {
                let message = "must be one of enabled, adaptive and disabled";
                return Err(thinking.error("type", message));
            }
        }
    }
    Ok(kwargs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_of(body: &Value) -> Result<Conversation, ApiError> {
        read(&Fields::new(body, "")?, Some(ToolFormat::DeepSeek))
    }

    #[test]
    fn blocks_become_messages() {
        let body = json!({
            "system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
            "thinking": {"type": "disabled"},
            "tools": [{"name": "mul", "description": "times", "input_schema": {"type": "object"}}],
            "messages": [
                {"role": "user", "content": "6*7?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "use a tool", "signature": ""},
                    {"type": "tool_use", "id": "t1", "name": "mul", "input": {"a": 6}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "42"},
                    {"type": "tool_result", "tool_use_id": "t2",
                     "content": [{"type": "text", "text": "no"}], "is_error": true},
                    {"type": "text", "text": "And?"},
                ]},
            ],
        });
        let conversation = read_of(&body).expect("a conversation");
        let told: Vec<(&str, Option<&str>)> = conversation
            .messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_deref()))
            .collect();
        let expected = [
            ("system", Some("Be brief.")),
            ("user", Some("6*7?")),
            ("assistant", None),
            ("tool", Some("42")),
            ("tool", Some("no")),
            ("user", Some("And?")),
        ];
        assert_eq!(told, expected);
        let call = &conversation.messages[2];
        assert_eq!(call.reasoning_content.as_deref(), Some("use a tool"));
        let calls = call.tool_calls.as_ref().expect("a call");
        // DeepSeek's template wants text.
        assert_eq!(calls[0]["function"]["arguments"], r#"{"a":6}"#);
        assert_eq!(conversation.messages[3].tool_call_id.as_deref(), Some("t1"));
        let function = &conversation.tools[0]["function"];
        assert_eq!(function["parameters"], json!({"type": "object"}));
        let off = Value::Bool(false);
        let expected = [("enable_thinking", off.clone()), ("thinking", off)];
        assert_eq!(conversation.kwargs, expected);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let user = json!({"role": "user", "content": "x"});
        for (messages, param) in [
            (json!("x"), "messages"),
            (json!([]), "messages"),
            (
                json!([{"role": "system", "content": "x"}]),
                "messages[0].role",
            ),
            (json!([{"role": "user"}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": 3}]),
                "messages[0].content",
            ),
            (
                json!([{"role": "user", "content": [{"type": "image"}]}]),
                "messages[0].content[0].type",
            ),
            (
                json!([user, {"role": "assistant", "content": "y"}]),
                "messages[1].role",
            ),
            (
                json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "a",
                "name": "b", "input": "{}"}]}, user]),
                "messages[0].content[0].input",
            ),
        ] {
            let error = match read_of(&json!({"messages": messages})) {
                Err(error) => error,
                Ok(_) => panic!("{param} is accepted"),
            };
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}

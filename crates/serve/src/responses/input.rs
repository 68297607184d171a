//! The `input` of a response: a text, or the items of a conversation, which become messages.

use serde_json::Value;
use text::{Message, ToolFormat};

use crate::conversation::{arguments, call_value, content, messages};
use crate::error::ApiError;
use crate::fields::{Fields, wrong};

/// `instructions` and `input`.
///
/// # Errors
/// Whatever is wrong with them, by its place.
pub fn read(fields: &Fields, format: Option<ToolFormat>) -> Result<Vec<Message>, ApiError> {
    let mut turns = Turns::default();
    if let Some(instructions) = fields.text("instructions")? {
        turns.push(Message::new("system", instructions));
    }
    match fields.required("input")? {
        Value::String(text) => turns.push(Message::new("user", text)),
        Value::Array(_) => {
            for (place, value) in messages(fields, "input")?.iter().enumerate() {
                let item = Fields::new(value, &format!("input[{place}]"))?;
                turns.item(&item, format)?;
            }
        }
        value => return Err(wrong("input", value, "a string or a list of items")),
    }
    Ok(turns.done())
}

/// Messages so far. Thinking, text and calls come as items of their own, and are one message.
#[derive(Default)]
struct Turns {
    messages: Vec<Message>,
    /// The answer that is not whole yet.
    answer: Option<Message>,
}

impl Turns {
    fn item(&mut self, item: &Fields, format: Option<ToolFormat>) -> Result<(), ApiError> {
        match item.text("type")? {
            None | Some("message") => self.message(item),
            Some("reasoning") => self.reasoning(item),
            Some("function_call") => self.call(item, format),
            Some("function_call_output") => self.output(item),
            Some("item_reference") => {
                Err(item.error("type", "names a stored item, and nothing is stored here"))
            }
            Some(_) => {
                let known = "one of message, reasoning, function_call and function_call_output";
                Err(wrong(&item.path("type"), item.required("type")?, known))
            }
        }
    }

    fn message(&mut self, item: &Fields) -> Result<(), ApiError> {
        let role = match item.required("role")?.as_str() {
            Some(role @ ("system" | "user" | "assistant")) => role,
            Some("developer") => "system",
            _ => {
                let expected = "one of system, developer, user and assistant";
                return Err(wrong(&item.path("role"), item.required("role")?, expected));
            }
        };
        let text = content(item, "content")?;
        let text = text.ok_or_else(|| item.error("content", "is required and missing"))?;
        match role {
            "assistant" => {
                let answer = self
                    .answer_where(|answer| answer.content.is_none() && answer.tool_calls.is_none());
                answer.content = Some(text);
            }
            role => self.push(Message::new(role, &text)),
        }
        Ok(())
    }

    /// The thinking of the answer that follows: its text, or else its summary.
    fn reasoning(&mut self, item: &Fields) -> Result<(), ApiError> {
        let mut texts = Vec::new();
        for (name, kind) in [("content", "reasoning_text"), ("summary", "summary_text")] {
            let list = item.list(name)?.unwrap_or_default();
            let path = item.path(name);
            let mut text = String::new();
            for (place, part) in list.iter().enumerate() {
                let part = Fields::new(part, &format!("{path}[{place}]"))?;
                if part.text("type")? != Some(kind) {
                    return Err(part.error("type", format!("must be {kind}")));
                }
                text += part
                    .text("text")?
                    .ok_or_else(|| part.error("text", "is required and missing"))?;
            }
            texts.push(text);
        }
        let answer =
            self.answer_where(|answer| answer.content.is_none() && answer.tool_calls.is_none());
        if let Some(text) = texts.into_iter().find(|text| !text.is_empty()) {
            *answer.reasoning_content.get_or_insert_default() += &text;
        }
        Ok(())
    }

    fn call(&mut self, item: &Fields, format: Option<ToolFormat>) -> Result<(), ApiError> {
        let missing = |name| item.error(name, "is required and missing");
        let name = item.text("name")?.ok_or_else(|| missing("name"))?;
        let id = item.text("call_id")?.ok_or_else(|| missing("call_id"))?;
        let arguments = arguments(item, "arguments", format)?;
        let answer = self.answer_where(|_| true);
        let calls = answer.tool_calls.get_or_insert_default();
        calls.push(call_value(id, name, arguments));
        Ok(())
    }

    fn output(&mut self, item: &Fields) -> Result<(), ApiError> {
        let missing = |name| item.error(name, "is required and missing");
        let id = item.text("call_id")?.ok_or_else(|| missing("call_id"))?;
        let output = content(item, "output")?.ok_or_else(|| missing("output"))?;
        self.push(Message {
            tool_call_id: Some(id.to_string()),
            ..Message::new("tool", &output)
        });
        Ok(())
    }

    /// The answer under way if it can take more of this, else a new one.
    fn answer_where(&mut self, takes: impl FnOnce(&Message) -> bool) -> &mut Message {
        if !self.answer.as_ref().is_some_and(takes) {
            self.flush();
        }
        self.answer.get_or_insert_with(|| Message {
            role: "assistant".to_string(),
            ..Message::default()
        })
    }

    fn push(&mut self, message: Message) {
        self.flush();
        self.messages.push(message);
    }

    fn flush(&mut self) {
        if let Some(mut answer) = self.answer.take() {
            if answer.tool_calls.is_none() {
                // Thinking that led to nothing is an empty answer.
                answer.content.get_or_insert_default();
            }
            self.messages.push(answer);
        }
    }

    fn done(mut self) -> Vec<Message> {
        self.flush();
        self.messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_of(body: &Value) -> Result<Vec<Message>, ApiError> {
        read(&Fields::new(body, "")?, Some(ToolFormat::Hermes))
    }

    #[test]
    fn items_of_one_answer_become_one_message() {
        let body = json!({"instructions": "Be brief.", "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "6"},
                                         {"type": "input_text", "text": "*7?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
             "content": [{"type": "reasoning_text", "text": "use a tool"}]},
            {"type": "function_call", "call_id": "c1", "name": "mul", "arguments": "{\"a\": 6}"},
            {"type": "function_call", "call_id": "c2", "name": "mul", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
            {"type": "function_call_output", "call_id": "c2",
             "output": [{"type": "input_text", "text": "0"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
             "content": [{"type": "output_text", "text": "42", "annotations": []}]},
            {"type": "message", "role": "developer", "content": "now"},
        ]});
        let messages = read_of(&body).expect("a conversation");
        let roles: Vec<&str> = messages.iter().map(|m| m.role.as_str()).collect();
        let expected = [
            "system",
            "user",
            "assistant",
            "tool",
            "tool",
            "assistant",
            "system",
        ];
        assert_eq!(roles, expected);
        assert_eq!(messages[1].content.as_deref(), Some("6*7?"));
        let call = &messages[2];
        assert_eq!(call.reasoning_content.as_deref(), Some("use a tool"));
        assert_eq!(call.content, None);
        let calls = call.tool_calls.as_ref().expect("two calls");
        assert_eq!(calls[0]["function"]["arguments"], json!({"a": 6}));
        assert_eq!(calls[1]["id"], "c2");
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("c1"));
        assert_eq!(messages[4].content.as_deref(), Some("0"));
        assert_eq!(messages[5].reasoning_content.as_deref(), Some("short"));
        assert_eq!(messages[5].content.as_deref(), Some("42"));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let user = json!({"role": "user", "content": "x"});
        for (input, param) in [
            (json!(3), "input"),
            (json!([]), "input"),
            (json!([3]), "input[0]"),
            (
                json!([user, {"type": "item_reference", "id": "x"}]),
                "input[1].type",
            ),
            (json!([{"type": "computer_call"}]), "input[0].type"),
            (json!([{"role": "judge", "content": "x"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (
                json!([{"type": "reasoning", "content": [{"type": "text"}]}]),
                "input[0].content[0].type",
            ),
            (
                json!([{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]),
                "input[0].arguments",
            ),
            (
                json!([{"type": "function_call_output", "output": "x"}]),
                "input[0].call_id",
            ),
            (
                json!([{"role": "user", "content": [{"type": "input_image"}]}]),
                "input[0].content[0].type",
            ),
        ] {
            let error = read_of(&json!({"input": input})).expect_err(param);
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}

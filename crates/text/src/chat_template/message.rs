//! What a template is given.

use minijinja::value::{Serde, Value};
use serde::{Deserialize, Serialize};

/// One turn of a conversation, as the OpenAI API has it. What is absent is undefined in the
/// template, but for `content`, which is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    /// May be null beside tool calls.
    #[serde(default)]
    pub content: Option<String>,
    /// The thinking that led to the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The calls as the API has them; templates want `arguments` as text or as an object, each in
    /// its own way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of a message of role `tool`: the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    pub fn new(role: &str, content: &str) -> Message {
        Message {
            role: role.to_string(),
            content: Some(content.to_string()),
            ..Message::default()
        }
    }

    pub(super) fn value(&self) -> Value {
        let mut fields = vec![
            ("role", Value::from(self.role.as_str())),
            (
                "content",
                self.content.as_deref().map_or(Value::from(()), Value::from),
            ),
        ];
        let texts = [
            ("reasoning_content", &self.reasoning_content),
            ("name", &self.name),
            ("tool_call_id", &self.tool_call_id),
        ];
        for (name, text) in texts {
            fields.extend(text.as_deref().map(|text| (name, Value::from(text))));
        }
        let calls = self.tool_calls.as_ref();
        fields.extend(calls.map(|calls| ("tool_calls", Value::from(Serde(calls)))));
        Value::from_pairs(fields)
    }

    pub(super) fn bytes(&self) -> usize {
        let texts = [
            &self.content,
            &self.reasoning_content,
            &self.name,
            &self.tool_call_id,
        ];
        let calls = self.tool_calls.iter().flatten().map(json_bytes);
        // 256 for the map itself.
        256 + self.role.len()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
            + calls.sum::<usize>()
    }
}

pub(super) fn json_bytes(value: &serde_json::Value) -> usize {
    use serde_json::Value::{Array, Object, String};
    32 + match value {
        String(text) => text.len(),
        Array(items) => items.iter().map(json_bytes).sum(),
        Object(map) => map
            .iter()
            .map(|(key, value)| 32 + key.len() + json_bytes(value))
            .sum(),
        _ => 0,
    }
}

/// Everything that decides a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prompt<'a> {
    pub messages: &'a [Message],
    /// JSON schemas of functions; none in the template if empty.
    pub tools: &'a [serde_json::Value],
    pub add_generation_prompt: bool,
    /// The tokens' texts, empty where the model has none.
    pub bos_token: &'a str,
    pub eos_token: &'a str,
    /// Of [`TEMPLATE_KWARGS`].
    pub kwargs: &'a [(&'a str, serde_json::Value)],
    /// Seconds since 1970 for `strftime_now`, in UTC. Without it the function is undefined, and
    /// templates fall back to a date of their own.
    pub now: Option<i64>,
}

/// What a request may set in a template beside messages and tools.
pub const TEMPLATE_KWARGS: [&str; 3] = ["enable_thinking", "reasoning_effort", "thinking"];

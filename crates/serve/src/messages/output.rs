//! A message as it adds up, and the events of its course.

use serde_json::{Value, json};

use crate::blocks::{self, Block, Blocks, Kind, Step};
use crate::error::ApiError;
use crate::generation::{Delta, Finish, Usage};
use crate::reply::Head;
use crate::stream::{self, Frames};

/// What is said of a message, at once or as it comes.
pub struct Voice {
    head: Head,
    prompt_tokens: usize,
    blocks: Blocks,
}

impl Voice {
    pub fn new(head: Head, prompt_tokens: usize) -> Voice {
        Voice {
            head,
            prompt_tokens,
            blocks: Blocks::default(),
        }
    }

    fn message(&self, content: Value, usage: Usage) -> Value {
        json!({
            "id": format!("msg_{}", self.head.token()),
            "type": "message",
            "role": "assistant",
            "model": self.head.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage_reply(usage),
        })
    }

    /// `stop_reason`, and the stop string that was met.
    fn stop(&self) -> (Option<&'static str>, Option<&str>) {
        match &self.blocks.finish {
            None => (None, None),
            Some(Finish::Stop) => (Some("end_turn"), None),
            Some(Finish::StopString(stop)) => (Some("stop_sequence"), Some(stop)),
            Some(Finish::Length) => (Some("max_tokens"), None),
            Some(Finish::ToolCalls) => (Some("tool_use"), None),
        }
    }

    /// A block with so much of its text.
    fn block(&self, block: &Block, text: &str) -> Value {
        match &block.kind {
            Kind::Thinking => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Kind::Text => json!({"type": "text", "text": text}),
            Kind::Call { name, number } => json!({
                "type": "tool_use", "id": format!("toolu_{}_{number}", self.head.token()),
                "name": name, "input": input(text),
            }),
        }
    }

    fn step(&self, step: &Step, out: &mut String) {
        match step {
            Step::Begins(index) => {
                let block = self.block(&self.blocks.blocks[*index], "");
                event(
                    "content_block_start",
                    json!({"index": index, "content_block": block}),
                    out,
                );
            }
            Step::Grows { block, text, .. } => {
                let delta = match self.blocks.blocks[*block].kind {
                    Kind::Thinking => json!({"type": "thinking_delta", "thinking": text}),
                    Kind::Text => json!({"type": "text_delta", "text": text}),
                    Kind::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                };
                event(
                    "content_block_delta",
                    json!({"index": block, "delta": delta}),
                    out,
                );
            }
            Step::Ends(index) => {
                if self.blocks.blocks[*index].kind == Kind::Thinking {
                    let delta = json!({"type": "signature_delta", "signature": ""});
                    event(
                        "content_block_delta",
                        json!({"index": index, "delta": delta}),
                        out,
                    );
                }
                event("content_block_stop", json!({"index": index}), out);
            }
        }
    }
}

/// The arguments of a call, which may have been cut off or never have been an object.
fn input(text: &str) -> Value {
    match serde_json::from_str(text) {
        _ if text.is_empty() => json!({}),
        Ok(object @ Value::Object(_)) => object,
        // Anthropic's own way to hand on what is no JSON.
        _ => json!({"INVALID_JSON": text}),
    }
}

/// An event with its name in it.
fn event(name: &str, of: Value, out: &mut String) {
    let mut event = json!({"type": name});
    if let (Value::Object(event), Value::Object(of)) = (&mut event, of) {
        event.extend(of);
    }
    stream::event(name, &event, out);
}

impl blocks::Voice for Voice {
    fn blocks(&mut self) -> &mut Blocks {
        &mut self.blocks
    }

    fn whole(&self, usage: Usage) -> Value {
        let blocks = self.blocks.blocks.iter();
        let content = blocks.map(|block| self.block(block, &block.text)).collect();
        let mut message = self.message(content, usage);
        let (reason, sequence) = self.stop();
        message["stop_reason"] = json!(reason);
        message["stop_sequence"] = json!(sequence);
        message
    }
}

impl Frames for Voice {
    fn begin(&mut self, out: &mut String) {
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            ..Usage::default()
        };
        let message = self.message(json!([]), usage);
        event("message_start", json!({"message": message}), out);
        event("ping", json!({}), out);
    }

    fn delta(&mut self, delta: &Delta, out: &mut String) {
        for step in self.blocks.take(delta) {
            self.step(&step, out);
        }
    }

    fn end(&mut self, usage: Usage, out: &mut String) {
        let (reason, sequence) = self.stop();
        let end = json!({
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_reply(usage),
        });
        event("message_delta", end, out);
        event("message_stop", json!({}), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut String) {
        stream::event("error", &error.anthropic(), out);
    }
}

/// Anthropic counts what came from the cache beside the rest of the input.
fn usage_reply(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::tests::deltas;

    #[test]
    fn events_come_in_the_documented_order() {
        let mut voice = Voice::new(Head::made_up("msg"), 5);
        let mut out = String::new();
        voice.begin(&mut out);
        for delta in deltas(Finish::ToolCalls) {
            voice.delta(&delta, &mut out);
        }
        let usage = Usage {
            prompt_tokens: 5,
            cached_tokens: 4,
            completion_tokens: 7,
            ..Usage::default()
        };
        voice.end(usage, &mut out);
        let lines = out.lines().filter_map(|line| line.strip_prefix("data: "));
        let events: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let told: Vec<String> = events
            .iter()
            .map(|event| {
                let kind = event["type"].as_str().expect("a type");
                let index = event["index"]
                    .as_u64()
                    .map_or(String::new(), |i| i.to_string());
                let delta = event["delta"]["type"].as_str().unwrap_or("");
                format!("{kind} {index} {delta}").trim().to_string()
            })
            .collect();
        let expected = [
            "message_start",
            "ping",
            "content_block_start 0",
            "content_block_delta 0 thinking_delta",
            "content_block_delta 0 thinking_delta",
            "content_block_delta 0 signature_delta",
            "content_block_stop 0",
            "content_block_start 1",
            "content_block_delta 1 text_delta",
            "content_block_delta 1 text_delta",
            "content_block_stop 1",
            "content_block_start 2",
            "content_block_delta 2 input_json_delta",
            "content_block_delta 2 input_json_delta",
            "content_block_stop 2",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(told, expected);
        assert_eq!(events[0]["message"]["usage"]["input_tokens"], 5);
        assert_eq!(events[11]["content_block"]["input"], json!({}));
        assert_eq!(events[15]["delta"]["stop_reason"], "tool_use");
        assert_eq!(events[15]["usage"]["input_tokens"], 1);
        let whole = blocks::Voice::whole(&voice, usage);
        let content = json!([
            {"type": "thinking", "thinking": "six times", "signature": ""},
            {"type": "text", "text": "forty"},
            {"type": "tool_use", "id": events[11]["content_block"]["id"], "name": "add",
             "input": {"a": 6}},
        ]);
        assert_eq!(whole["content"], content);
        assert_eq!(whole["stop_reason"], "tool_use");
        assert_eq!(whole["usage"], events[15]["usage"]);
    }

    #[test]
    fn arguments_are_an_object_whatever_they_are() {
        assert_eq!(input(""), json!({}));
        assert_eq!(input(r#"{"a": [1]}"#), json!({"a": [1]}));
        for cut in [r#"{"a": [1"#, "[1]", "x"] {
            assert_eq!(input(cut), json!({"INVALID_JSON": cut}));
        }
    }
}

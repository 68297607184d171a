//! A response as it adds up, and the events of its course.

use std::sync::Arc;

use engine::ScoredToken;
use serde_json::{Value, json};
use text::Tokenizer;

use crate::blocks::{self, Blocks, Kind, Step};
use crate::chat::call_id;
use crate::error::ApiError;
use crate::generation::{Delta, Finish, Usage};
use crate::logprobs::chat_logprobs;
use crate::reply::Head;
use crate::stream::{self, Frames};

/// What is said of a response, at once or as it comes.
pub struct Voice {
    head: Head,
    /// The fields that repeat the request.
    told: Value,
    blocks: Blocks,
    /// Where log-probabilities are wanted.
    tokenizer: Option<Arc<Tokenizer>>,
    next_event: u64,
}

impl Voice {
    pub fn new(head: Head, told: Value, tokenizer: Option<Arc<Tokenizer>>) -> Voice {
        Voice {
            head,
            told,
            blocks: Blocks::new(tokenizer.clone()),
            tokenizer,
            next_event: 0,
        }
    }

    /// The response without its items.
    fn response(&self, status: &str) -> Value {
        let mut response = json!({
            "id": format!("resp_{}", self.head.token()),
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "model": self.head.model,
            "output": [],
            "usage": null,
        });
        if let (Value::Object(response), Value::Object(told)) = (&mut response, &self.told) {
            response.extend(told.clone());
        }
        response
    }

    /// An item as it is at its end.
    fn item(&self, block: usize) -> Value {
        let status = match self.blocks.is_cut(block) {
            true => "incomplete",
            false => "completed",
        };
        let content = json!([self.part(block)]);
        self.item_with(block, status, content, &self.blocks.blocks[block].text)
    }

    fn item_with(&self, block: usize, status: &str, content: Value, arguments: &str) -> Value {
        let id = self.item_id(block);
        match &self.blocks.blocks[block].kind {
            Kind::Thinking => json!({
                "id": id, "type": "reasoning", "summary": [], "content": content, "status": status,
            }),
            Kind::Text => json!({
                "id": id, "type": "message", "role": "assistant", "content": content,
                "status": status,
            }),
            Kind::Call { name, number } => json!({
                "id": id, "type": "function_call", "call_id": call_id(&self.head, 0, *number),
                "name": name, "arguments": arguments, "status": status,
            }),
        }
    }

    fn item_id(&self, block: usize) -> String {
        let prefix = match self.blocks.blocks[block].kind {
            Kind::Thinking => "rs",
            Kind::Text => "msg",
            Kind::Call { .. } => "fc",
        };
        format!("{prefix}_{}_{block}", self.head.token())
    }

    /// The content of an item that is thinking or text, as it is at its end.
    fn part(&self, block: usize) -> Value {
        let block = &self.blocks.blocks[block];
        self.part_of(&block.kind, &block.text, &block.tokens)
    }

    fn part_of(&self, kind: &Kind, text: &str, tokens: &[ScoredToken]) -> Value {
        match kind {
            Kind::Thinking => json!({"type": "reasoning_text", "text": text}),
            _ => json!({
                "type": "output_text", "text": text, "annotations": [],
                "logprobs": self.logprobs(tokens),
            }),
        }
    }

    fn logprobs(&self, tokens: &[ScoredToken]) -> Value {
        match &self.tokenizer {
            None => json!([]),
            Some(tokenizer) => {
                // Through text, which keeps the digits that the other APIs write.
                let text = serde_json::to_string(&chat_logprobs(tokenizer, tokens));
                let text = text.expect("log-probabilities have string keys only");
                let mut value: Value = serde_json::from_str(&text).expect("it is JSON");
                value["content"].take()
            }
        }
    }

    /// One event: its name stands in it, its number, then what it is of.
    fn event(&mut self, name: &str, of: Value, out: &mut String) {
        let mut event = json!({"type": name, "sequence_number": self.next_event});
        self.next_event += 1;
        if let (Value::Object(event), Value::Object(of)) = (&mut event, of) {
            event.extend(of);
        }
        stream::event(name, &event, out);
    }

    /// An event within an item, and within its content unless that is a call.
    fn inner_event(&mut self, name: &str, block: usize, of: Value, out: &mut String) {
        let mut place = json!({"item_id": self.item_id(block), "output_index": block});
        if let (Value::Object(place), Value::Object(of)) = (&mut place, of) {
            if !matches!(self.blocks.blocks[block].kind, Kind::Call { .. }) {
                place.insert("content_index".to_string(), json!(0));
            }
            place.extend(of);
        }
        self.event(&format!("response.{name}"), place, out);
    }

    fn begins(&mut self, block: usize, out: &mut String) {
        let item = self.item_with(block, "in_progress", json!([]), "");
        let added = json!({"output_index": block, "item": item});
        self.event("response.output_item.added", added, out);
        let kind = self.blocks.blocks[block].kind.clone();
        if !matches!(kind, Kind::Call { .. }) {
            let part = self.part_of(&kind, "", &[]);
            self.inner_event("content_part.added", block, json!({"part": part}), out);
        }
    }

    fn grows(&mut self, block: usize, text: &str, tokens: &[ScoredToken], out: &mut String) {
        let (name, of) = match self.blocks.blocks[block].kind {
            Kind::Thinking => ("reasoning_text.delta", json!({"delta": text})),
            Kind::Text => {
                let of = json!({"delta": text, "logprobs": self.logprobs(tokens)});
                ("output_text.delta", of)
            }
            Kind::Call { .. } => ("function_call_arguments.delta", json!({"delta": text})),
        };
        self.inner_event(name, block, of, out);
    }

    fn ends(&mut self, block: usize, out: &mut String) {
        let whole = self.blocks.blocks[block].clone();
        let (name, of) = match whole.kind {
            Kind::Thinking => ("reasoning_text.done", json!({"text": whole.text})),
            Kind::Text => {
                let logprobs = self.logprobs(&whole.tokens);
                let of = json!({"text": whole.text, "logprobs": logprobs});
                ("output_text.done", of)
            }
            Kind::Call { name, .. } => {
                let of = json!({"name": name, "arguments": whole.text});
                self.inner_event("function_call_arguments.done", block, of, out);
                return self.item_done(block, out);
            }
        };
        self.inner_event(name, block, of, out);
        let part = json!({"part": self.part(block)});
        self.inner_event("content_part.done", block, part, out);
        self.item_done(block, out);
    }

    fn item_done(&mut self, block: usize, out: &mut String) {
        let done = json!({"output_index": block, "item": self.item(block)});
        self.event("response.output_item.done", done, out);
    }
}

impl blocks::Voice for Voice {
    fn blocks(&mut self) -> &mut Blocks {
        &mut self.blocks
    }

    fn whole(&self, usage: Usage) -> Value {
        let cut = self.blocks.finish == Some(Finish::Length);
        let mut response = self.response(match cut {
            true => "incomplete",
            false => "completed",
        });
        let items = 0..self.blocks.blocks.len();
        response["output"] = items.map(|block| self.item(block)).collect();
        response["usage"] = usage_reply(usage);
        if cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response
    }
}

impl Frames for Voice {
    fn begin(&mut self, out: &mut String) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress");
            self.event(name, json!({"response": response}), out);
        }
    }

    fn delta(&mut self, delta: &Delta, out: &mut String) {
        for step in self.blocks.take(delta) {
            match step {
                Step::Begins(block) => self.begins(block, out),
                Step::Grows {
                    block,
                    text,
                    tokens,
                } => self.grows(block, &text, &tokens, out),
                Step::Ends(block) => self.ends(block, out),
            }
        }
    }

    fn end(&mut self, usage: Usage, out: &mut String) {
        let response = blocks::Voice::whole(self, usage);
        let name = match self.blocks.finish {
            Some(Finish::Length) => "response.incomplete",
            _ => "response.completed",
        };
        self.event(name, json!({"response": response}), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut String) {
        let code = match error.status.is_server_error() {
            true => "server_error",
            false => "invalid_prompt",
        };
        let mut response = self.response("failed");
        response["error"] = json!({"code": code, "message": error.message});
        self.event("response.failed", json!({"response": response}), out);
    }
}

fn usage_reply(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::tests::deltas;

    /// The events of a made-up answer.
    fn events(finish: Finish) -> Vec<Value> {
        let mut voice = Voice::new(Head::made_up("resp"), json!({"store": false}), None);
        let mut out = String::new();
        voice.begin(&mut out);
        for delta in deltas(finish) {
            voice.delta(&delta, &mut out);
        }
        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 7,
            ..Usage::default()
        };
        voice.end(usage, &mut out);
        let mut events = Vec::new();
        for block in out.split_terminator("\n\n") {
            let (name, data) = block.split_once('\n').expect("a name and data");
            let data = data.strip_prefix("data: ").expect("data");
            let event: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(event["type"], name.strip_prefix("event: ").expect("a name"));
            assert_eq!(event["sequence_number"], events.len());
            events.push(event);
        }
        events
    }

    #[test]
    fn events_come_in_the_documented_order() {
        let events = events(Finish::ToolCalls);
        let names: Vec<&str> = events
            .iter()
            .filter_map(|event| event["type"].as_str()?.strip_prefix("response."))
            .collect();
        let expected = [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ];
        assert_eq!(names, expected);
        assert_eq!(events[2]["item"]["status"], "in_progress");
        assert_eq!(events[6]["text"], "six times");
        assert_eq!(events[11]["item_id"], events[9]["item"]["id"]);
        assert_eq!(events[16]["item"]["name"], "add");
        assert_eq!(events[16]["item"]["arguments"], "");
        assert_eq!(events[19]["arguments"], r#"{"a": 6}"#);
        // The response at the end has the items as they were when they were done.
        let output = &events[21]["response"]["output"];
        for (place, done) in [8, 15, 20].into_iter().enumerate() {
            assert_eq!(output[place], events[done]["item"], "item {place}");
            assert_eq!(events[done]["output_index"], place);
        }
        assert_eq!(output[1]["content"][0]["text"], "forty");
        assert_eq!(events[21]["response"]["usage"]["total_tokens"], 10);
    }

    #[test]
    fn a_cut_answer_is_incomplete() {
        let events = events(Finish::Length);
        let last = events.last().expect("an event");
        assert_eq!(last["type"], "response.incomplete");
        let response = &last["response"];
        assert_eq!(response["status"], "incomplete");
        let details = json!({"reason": "max_output_tokens"});
        assert_eq!(response["incomplete_details"], details);
        let status = |item: usize| response["output"][item]["status"].as_str();
        assert_eq!(status(0), Some("completed"));
        assert_eq!(status(2), Some("incomplete"));
    }

    #[test]
    fn a_failure_is_told_with_its_reason() {
        let mut voice = Voice::new(Head::made_up("resp"), json!({}), None);
        let mut out = String::new();
        voice.error(&ApiError::unavailable("gone"), &mut out);
        let data = out
            .lines()
            .nth(1)
            .and_then(|line| line.strip_prefix("data: "));
        let event: Value = serde_json::from_str(data.expect("data")).expect("JSON");
        assert_eq!(event["type"], "response.failed");
        assert_eq!(event["response"]["status"], "failed");
        let error = json!({"code": "server_error", "message": "gone"});
        assert_eq!(event["response"]["error"], error);
    }
}

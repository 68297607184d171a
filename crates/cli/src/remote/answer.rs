//! What a server says of a chat, bit by bit or at once.

use std::io::BufRead;

use serde::Serialize;
use serde_json::Value;
use text::{Piece, ReasoningSplitter};

use super::Events;

/// Tokens that an answer took, as the server counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    /// Of the prompt's, those that were computed before; absent where the server does not say.
    pub cached_tokens: Option<u64>,
    pub completion_tokens: u64,
}

impl Usage {
    /// The field `usage` of an answer; `None` where it is absent or null.
    pub fn read(usage: &Value) -> Option<Usage> {
        Some(Usage {
            prompt_tokens: usage["prompt_tokens"].as_u64()?,
            cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
            completion_tokens: usage["completion_tokens"].as_u64()?,
        })
    }
}

/// The message of an error, which may come instead of an answer or in the middle of a stream.
pub fn error_in(answer: &Value) -> Option<String> {
    let error = answer.get("error").filter(|error| !error.is_null())?;
    let text = error.as_str().or_else(|| error["message"].as_str());
    Some(text.map_or_else(|| error.to_string(), str::to_string))
}

/// The thinking of a message or of a stream's delta, under either of its names.
pub fn reasoning(message: &Value) -> Option<&str> {
    let names = ["reasoning", "reasoning_content"];
    names.iter().find_map(|name| message[name].as_str())
}

/// Why a choice ended; `None` while it goes on.
pub fn finish_reason(choice: &Value) -> Option<String> {
    choice["finish_reason"].as_str().map(str::to_string)
}

/// What became known with an event.
#[derive(Debug, PartialEq)]
pub enum Said {
    Piece(Piece),
    End(End),
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// `stop` where the model was done, `length` where it was cut off; others are the server's.
    pub finish_reason: String,
    pub usage: Option<Usage>,
}

/// The answer of a stream.
pub struct Stream<R> {
    events: Events<R>,
    finish_reason: Option<String>,
    usage: Option<Usage>,
    /// For servers that leave the thinking in the answer; `None` once one was seen that does not.
    splitter: Option<ReasoningSplitter>,
    ended: bool,
}

impl<R: BufRead> Stream<R> {
    pub fn new(events: Events<R>) -> Stream<R> {
        Stream {
            events,
            finish_reason: None,
            usage: None,
            splitter: Some(ReasoningSplitter::new(false)),
            ended: false,
        }
    }

    /// The next piece, which may be empty, or the end.
    ///
    /// # Errors
    /// What is wrong, in words: the stream breaks or holds what is no answer, or the server says
    /// that it failed.
    pub fn next(&mut self) -> Result<Said, String> {
        if self.ended {
            return Ok(Said::End(End {
                finish_reason: self.finish_reason.clone().unwrap_or_default(),
                usage: self.usage,
            }));
        }
        match self.events.next().map_err(|broken| broken.to_string())? {
            None if self.finish_reason.is_none() => {
                Err("the stream ended before the answer did".to_string())
            }
            Some(data) if data.trim() != "[DONE]" => self.event(&data).map(Said::Piece),
            _ => {
                self.ended = true;
                let held = self.splitter.take().map(ReasoningSplitter::finish);
                Ok(Said::Piece(held.unwrap_or_default()))
            }
        }
    }

    fn event(&mut self, data: &str) -> Result<Piece, String> {
        let event: Value =
            serde_json::from_str(data).map_err(|error| format!("an event is not JSON: {error}"))?;
        if let Some(message) = error_in(&event) {
            return Err(format!("the server failed: {message}"));
        }
        self.usage = Usage::read(&event["usage"]).or(self.usage);
        let choice = &event["choices"][0];
        self.finish_reason = finish_reason(choice).or(self.finish_reason.take());
        let delta = &choice["delta"];
        let thought = reasoning(delta).unwrap_or_default();
        let content = delta["content"].as_str().unwrap_or_default();
        let mut piece = Piece::default();
        if !thought.is_empty() {
            piece = self
                .splitter
                .take()
                .map(ReasoningSplitter::finish)
                .unwrap_or_default();
        }
        match &mut self.splitter {
            Some(splitter) => piece = splitter.push(content),
            None => piece.answer += content,
        }
        piece.reasoning += thought;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Thinking, answer and end of a stream of these events.
    fn heard(events: &[Value], tail: &str) -> Result<(String, String, Said), String> {
        let mut text: String = events
            .iter()
            .map(|event| format!("data: {event}\n\n"))
            .collect();
        text += tail;
        let mut stream = Stream::new(Events::new(text.as_bytes()));
        let (mut thinking, mut answer) = (String::new(), String::new());
        loop {
            match stream.next()? {
                Said::Piece(piece) => {
                    thinking += &piece.reasoning;
                    answer += &piece.answer;
                }
                end => return Ok((thinking, answer, end)),
            }
        }
    }

    fn delta(delta: Value, finish_reason: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})
    }

    const DONE: &str = "data: [DONE]\n\n";

    #[test]
    fn thinking_comes_under_either_name_or_within_the_answer() {
        let stop = || delta(json!({}), json!("stop"));
        let end = Said::End(End {
            finish_reason: "stop".to_string(),
            usage: None,
        });
        for name in ["reasoning", "reasoning_content"] {
            let both = json!({"content": null, "reasoning": "a", "reasoning_content": "a"});
            let events = [
                delta(json!({"role": "assistant", "content": ""}), Value::Null),
                delta(both, Value::Null),
                delta(json!({name: " b"}), Value::Null),
                delta(json!({"content": "<think>c</think>"}), Value::Null),
                stop(),
            ];
            let (thinking, answer, found) = heard(&events, DONE).expect("an answer");
            assert_eq!(
                (thinking.as_str(), answer.as_str()),
                ("a b", "<think>c</think>")
            );
            assert_eq!(found, end);
        }
        let events = ["<thi", "nk>a b</thi", "nk> c"]
            .map(|content| delta(json!({ "content": content }), Value::Null));
        let events = [&events[..], &[stop()]].concat();
        let (thinking, answer, found) = heard(&events, DONE).expect("an answer");
        assert_eq!((thinking.as_str(), answer.as_str()), ("a b", "c"));
        assert_eq!(found, end);
    }

    #[test]
    fn usage_comes_last_and_a_stream_may_end_without_a_word() {
        let details = json!({"cached_tokens": 3});
        let usage = json!({"prompt_tokens": 5, "completion_tokens": 7,
            "prompt_tokens_details": details});
        let mut first = delta(json!({"content": "a"}), json!("length"));
        first["usage"] = Value::Null;
        let events = [first, json!({"choices": [], "usage": usage})];
        let (_, answer, end) = heard(&events, "").expect("an answer");
        let usage = Usage {
            prompt_tokens: 5,
            cached_tokens: Some(3),
            completion_tokens: 7,
        };
        assert_eq!(answer, "a");
        let finish_reason = "length".to_string();
        let usage = Some(usage);
        let expected = End {
            finish_reason,
            usage,
        };
        assert_eq!(end, Said::End(expected));
    }

    #[test]
    fn a_stream_that_fails_says_why() {
        let begun = delta(json!({"content": "a"}), Value::Null);
        let error = json!({"error": {"message": "out of memory", "type": "server_error"}});
        for (events, tail, words) in [
            (vec![begun.clone(), error], DONE, "out of memory"),
            (vec![begun.clone()], "", "ended before"),
            (vec![begun], "data: {\n\n", "not JSON"),
        ] {
            let said = heard(&events, tail).expect_err(words);
            assert!(said.contains(words), "{said}");
        }
    }
}

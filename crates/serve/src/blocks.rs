//! An answer as the newer APIs have it: a list of blocks, of which one at a time grows. A stream
//! and a whole answer are made of the same steps.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::ScoredToken;
use serde_json::Value;
use text::{AnswerPiece, Tokenizer};

use crate::error::ApiError;
use crate::generation::{Delta, Finish, Generation, Plan, Usage};
use crate::logprobs::token_text;
use crate::reply::json_response;
use crate::service::{App, Arrival};
use crate::stream::{self, Frames};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Thinking,
    Text,
    /// Of a tool, with the number of the call.
    Call {
        name: String,
        number: usize,
    },
}

#[derive(Clone, Debug)]
pub struct Block {
    pub kind: Kind,
    /// Thinking, text, or the JSON of a call's arguments.
    pub text: String,
    /// The tokens behind it, where log-probabilities are wanted.
    pub tokens: Vec<ScoredToken>,
}

/// What happens to the block of that number.
#[derive(Debug)]
pub enum Step {
    Begins(usize),
    Grows {
        block: usize,
        text: String,
        tokens: Vec<ScoredToken>,
    },
    Ends(usize),
}

/// An API whose answers are blocks.
pub trait Voice: Frames {
    fn blocks(&mut self) -> &mut Blocks;
    /// The answer at its end.
    fn whole(&self, usage: Usage) -> Value;
}

/// A request that has been read.
pub struct Prepared<V> {
    pub plan: Plan,
    pub voice: V,
    pub stream: bool,
}

impl<V: Voice> Prepared<V> {
    /// Generates, and answers at once or as it comes.
    ///
    /// # Errors
    /// The engine refuses, or ends.
    pub async fn answer(
        mut self,
        app: Arc<App>,
        arrival: Arrival,
    ) -> Result<Response<Body>, ApiError> {
        let mut generation = Generation::start(app, self.plan, arrival).await?;
        if self.stream {
            return Ok(stream::response(generation, self.voice));
        }
        while let Some(delta) = generation.next().await {
            self.voice.blocks().take(&delta?);
        }
        Ok(json_response(&self.voice.whole(generation.usage())))
    }
}

/// The blocks so far.
#[derive(Default)]
pub struct Blocks {
    pub blocks: Vec<Block>,
    pub finish: Option<Finish>,
    /// Whether the last block may still grow.
    open: bool,
    /// To keep tokens beside their text.
    tokenizer: Option<Arc<Tokenizer>>,
    /// Tokens whose text is held back.
    waiting: Vec<ScoredToken>,
}

impl Blocks {
    /// With a tokenizer, text keeps the tokens behind it.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>) -> Blocks {
        Blocks {
            tokenizer,
            ..Blocks::default()
        }
    }

    /// The steps that a delta makes, in their order.
    pub fn take(&mut self, delta: &Delta) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.tokenizer.is_some() {
            self.waiting.extend(delta.tokens.iter().cloned());
        }
        if !delta.reasoning.is_empty() {
            self.grow(Kind::Thinking, &delta.reasoning, &mut steps);
        }
        for piece in &delta.answer {
            match piece {
                AnswerPiece::Text(text) => self.grow(Kind::Text, text, &mut steps),
                AnswerPiece::CallBegins { index, name } => {
                    let kind = Kind::Call {
                        name: name.clone(),
                        number: *index,
                    };
                    self.begin(kind, &mut steps);
                }
                AnswerPiece::CallArguments { fragment, .. } => self.add(fragment, &mut steps),
            }
        }
        if delta.finish.is_some() {
            self.finish.clone_from(&delta.finish);
            self.end(&mut steps);
        }
        steps
    }

    /// Whether the answer was cut off within this block.
    pub fn is_cut(&self, block: usize) -> bool {
        self.finish == Some(Finish::Length) && block + 1 == self.blocks.len()
    }

    /// Adds to the open block if it is of this kind, else to a new one.
    fn grow(&mut self, kind: Kind, text: &str, steps: &mut Vec<Step>) {
        let fits = |last: &Block| last.kind == kind;
        if !(self.open && self.blocks.last().is_some_and(fits)) {
            self.drop_tokens_before(text);
            self.begin(kind, steps);
        }
        self.add(text, steps);
    }

    fn begin(&mut self, kind: Kind, steps: &mut Vec<Step>) {
        self.end(steps);
        self.open = true;
        self.blocks.push(Block {
            kind,
            text: String::new(),
            tokens: Vec::new(),
        });
        steps.push(Step::Begins(self.blocks.len() - 1));
    }

    fn add(&mut self, text: &str, steps: &mut Vec<Step>) {
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        let tokens = std::mem::take(&mut self.waiting);
        block.text += text;
        block.tokens.extend(tokens.iter().cloned());
        steps.push(Step::Grows {
            block: number,
            text: text.to_string(),
            tokens,
        });
    }

    fn end(&mut self, steps: &mut Vec<Step>) {
        if std::mem::take(&mut self.open) {
            steps.push(Step::Ends(self.blocks.len() - 1));
        }
    }

    /// Of the tokens that wait, those stay that a block's first text is made of; before them come
    /// the marks between blocks.
    fn drop_tokens_before(&mut self, text: &str) {
        let Some(tokenizer) = &self.tokenizer else {
            return;
        };
        let bytes = |id| match tokenizer.token_bytes(id) {
            Some(bytes) => bytes.len(),
            None => token_text(tokenizer, id).len(),
        };
        let mut wanted = text.trim_start().len();
        let mut first = self.waiting.len();
        while wanted > 0 && first > 0 {
            first -= 1;
            wanted = wanted.saturating_sub(bytes(self.waiting[first].token_id));
        }
        self.waiting.drain(..first);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A made-up answer: thinking in two pieces, text, a call in two pieces.
    pub fn deltas(finish: Finish) -> Vec<Delta> {
        let reasoning = |text: &str| Delta {
            reasoning: text.to_string(),
            ..Delta::default()
        };
        let answer = |answer: Vec<AnswerPiece>| Delta {
            answer,
            ..Delta::default()
        };
        let arguments = |text: &str| AnswerPiece::CallArguments {
            index: 0,
            fragment: text.to_string(),
        };
        let name = "add".to_string();
        let begins = AnswerPiece::CallBegins { index: 0, name };
        let text = |text: &str| AnswerPiece::Text(text.to_string());
        vec![
            reasoning("six "),
            Delta::default(),
            Delta {
                answer: vec![text("for")],
                ..reasoning("times")
            },
            answer(vec![text("ty")]),
            answer(vec![begins, arguments(r#"{"a": "#)]),
            Delta {
                finish: Some(finish),
                ..answer(vec![arguments("6}")])
            },
        ]
    }

    #[test]
    fn blocks_begin_grow_and_end_one_after_another() {
        let mut blocks = Blocks::new(None);
        let mut said = String::new();
        for delta in deltas(Finish::ToolCalls) {
            for step in blocks.take(&delta) {
                said += &match step {
                    Step::Begins(block) => format!("<{block}"),
                    Step::Grows { text, .. } => format!("[{text}]"),
                    Step::Ends(block) => format!("{block}>"),
                };
            }
        }
        assert_eq!(said, r#"<0[six ][times]0><1[for][ty]1><2[{"a": ][6}]2>"#);
        let texts: Vec<&str> = blocks.blocks.iter().map(|b| b.text.as_str()).collect();
        assert_eq!(texts, ["six times", "forty", r#"{"a": 6}"#]);
        assert!(!blocks.is_cut(2));
    }
}

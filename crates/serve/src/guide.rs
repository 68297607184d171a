//! What an answer may be: thinking first, within a budget, then a text of a given shape.
//!
//! [`Grammars`] compiles shapes (JSON, a schema, a pattern, a grammar, calls of tools) for one
//! tokenizer; a [`Guide`] is one completion's way through its shape, asked by the engine before
//! every token. Whatever goes wrong ends the completion: a shape never falls back to free text.

mod cache;
mod grammars;
mod limits;
mod marks;
mod shape;
mod tools;

pub use grammars::{BUSY, Compiled, Grammars};
pub use shape::Shape;

use engine::{Allowed, Constraint};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use marks::{Beginning, Marks};
use std::sync::{Arc, OnceLock};
use text::Tokenizer;

/// How a completion thinks before it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thinking {
    /// The prompt ends inside `<think>`.
    pub primed: bool,
    /// The tokens of `<think>`, with which a completion that is not primed may begin; empty if it
    /// may not. Beside a grammar, only a single token is heeded.
    pub opens: Vec<u32>,
    /// The tokens of `</think>`; at least one.
    pub close: Vec<u32>,
    /// After so many tokens of thinking, those of `</think>` are forced.
    pub budget: Option<usize>,
}

/// Why a grammar could not go on; empty while it could.
#[derive(Clone, Debug, Default)]
pub struct Failure(Arc<OnceLock<String>>);

impl Failure {
    pub fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Only the first reason is kept.
    fn set(&self, reason: String) {
        let _ = self.0.set(reason);
    }
}

/// One completion's constraint.
///
/// While it thinks, everything is allowed, but for the model's stop tokens where a grammar still
/// waits: an answer that has to have a shape cannot be left out. The grammar begins with the token
/// after `</think>`. Where it is whole and cannot go on, the completion ends; where it may go on,
/// stop tokens are allowed beside what may come.
pub struct Guide {
    phase: Phase,
    thinking: Option<Thinking>,
    grammar: Option<Armed>,
    /// The last tokens of the thinking, as many as `</think>` may have.
    recent: Vec<u32>,
    /// Judges by the text, where it is known.
    marks: Option<Marks>,
    failure: Failure,
}

/// A grammar that is being followed.
struct Armed {
    compiled: Compiled,
    matcher: Matcher,
    mask: SimpleVob,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// In front of the first token, or after so many tokens of `<think>`.
    Start {
        opened: usize,
    },
    Thinking {
        used: usize,
    },
    Answer,
    Done,
}

impl Guide {
    /// # Panics
    /// If there are no tokens for `</think>`.
    pub fn new(thinking: Option<Thinking>, grammar: Option<Compiled>) -> Guide {
        let phase = match &thinking {
            Some(thinking) => {
                assert!(!thinking.close.is_empty(), "</think> has tokens");
                let opens = thinking.opens.len();
                match thinking.primed {
                    true => Phase::Thinking { used: 0 },
                    false if opens == 0 || (opens > 1 && grammar.is_some()) => Phase::Answer,
                    false => Phase::Start { opened: 0 },
                }
            }
            None => Phase::Answer,
        };
        Guide {
            phase,
            thinking,
            grammar: grammar.map(|compiled| Armed {
                matcher: compiled.matcher(),
                compiled,
                mask: SimpleVob::new(),
            }),
            recent: Vec::new(),
            marks: None,
            failure: Failure::default(),
        }
    }

    /// The same, judging where thinking begins and ends by the text and not by single tokens, as
    /// [`text::ReasoningSplitter`] does.
    pub fn by_text(self, tokenizer: Arc<Tokenizer>) -> Guide {
        Guide {
            marks: Some(Marks::new(tokenizer)),
            ..self
        }
    }

    /// Tells later, from elsewhere, why the completion ended early.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// How much of `</think>` stands at the end of the thinking, in tokens.
    fn closed(&self, close: &[u32]) -> usize {
        let lengths = (1..=close.len()).rev();
        lengths
            .into_iter()
            .find(|&length| self.recent.ends_with(&close[..length]))
            .unwrap_or(0)
    }

    fn fail(&mut self, reason: &str) {
        self.failure.set(grammars::shortened(reason));
        self.phase = Phase::Done;
    }

    /// Computes the grammar's mask; false where the answer ends.
    fn refresh(&mut self) -> bool {
        let Some(armed) = &mut self.grammar else {
            return true;
        };
        if armed.matcher.is_stopped() {
            let reason = armed.matcher.stop_reason();
            if !reason.is_ok() {
                let error = armed.matcher.get_error();
                self.fail(&error.unwrap_or_else(|| reason.to_string()));
            }
            return false;
        }
        match armed.matcher.compute_mask() {
            Ok(mask) => {
                armed.mask = mask;
                true
            }
            Err(error) => {
                self.fail(&error.to_string());
                false
            }
        }
    }

    fn accept_thinking(&mut self, token_id: u32, used: usize) {
        let Some(thinking) = self.thinking.take() else {
            return;
        };
        self.recent.push(token_id);
        if self.recent.len() > thinking.close.len() {
            self.recent.remove(0);
        }
        let closed = match &mut self.marks {
            Some(marks) => marks.think(token_id),
            None => (self.recent == thinking.close).then_some(false),
        };
        self.phase = match closed {
            Some(_) => Phase::Answer,
            None => Phase::Thinking { used: used + 1 },
        };
        self.thinking = Some(thinking);
        if closed == Some(true) && self.grammar.is_some() {
            // That text was not asked for, and cannot be taken back.
            self.fail("the answer began in the middle of a token");
        }
    }

    fn accept_start(&mut self, token_id: u32, opened: usize) {
        if let (Some(marks), None) = (&mut self.marks, &self.grammar) {
            self.phase = match marks.begin(token_id) {
                Beginning::Unknown => Phase::Start { opened },
                Beginning::Thinking => Phase::Thinking { used: 0 },
                Beginning::Answer => Phase::Answer,
            };
            return;
        }
        let opens = self
            .thinking
            .as_ref()
            .map_or(&[][..], |thinking| &thinking.opens);
        if opens.get(opened) != Some(&token_id) {
            self.phase = Phase::Answer;
            self.accept_answer(token_id);
        } else if opened + 1 == opens.len() {
            self.phase = Phase::Thinking { used: 0 };
        } else {
            self.phase = Phase::Start { opened: opened + 1 };
        }
    }

    fn accept_answer(&mut self, token_id: u32) {
        let Some(armed) = &mut self.grammar else {
            return;
        };
        if armed.compiled.stop_token_ids().contains(&token_id) {
            self.phase = Phase::Done;
        } else if let Err(error) = armed.matcher.consume_token(token_id) {
            self.fail(&error.to_string());
        }
    }
}

impl Constraint for Guide {
    fn allowed(&mut self) -> Allowed<'_> {
        match self.phase {
            Phase::Done => return Allowed::Nothing,
            Phase::Thinking { used } => {
                if let Some(thinking) = &self.thinking
                    && thinking.budget.is_some_and(|budget| used >= budget)
                {
                    return Allowed::Exactly(thinking.close[self.closed(&thinking.close)]);
                }
                return match &self.grammar {
                    Some(armed) => Allowed::Only(armed.compiled.all_but_stops()),
                    None => Allowed::Any,
                };
            }
            Phase::Start { .. } | Phase::Answer => {}
        }
        if !self.refresh() {
            return Allowed::Nothing;
        }
        let Some(armed) = &mut self.grammar else {
            return Allowed::Any;
        };
        if let (Phase::Start { opened }, Some(thinking)) = (self.phase, &self.thinking)
            && (thinking.opens[opened] as usize) < armed.mask.len()
        {
            armed.mask.allow_token(thinking.opens[opened]);
        }
        Allowed::Only(armed.mask.as_slice())
    }

    fn accept(&mut self, token_id: u32) {
        match self.phase {
            Phase::Start { opened } => self.accept_start(token_id, opened),
            Phase::Thinking { used } => self.accept_thinking(token_id, used),
            Phase::Answer => self.accept_answer(token_id),
            Phase::Done => {}
        }
    }
}

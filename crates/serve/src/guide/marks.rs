//! Where thinking begins and ends in the text that tokens make: models may spell the marks in
//! tokens of their own choice, and whoever reads the text goes by the text.

use std::sync::Arc;

use text::Tokenizer;

const OPEN: &[u8] = b"<think>";
const CLOSE: &[u8] = b"</think>";

/// The text of a completion as far as it may still hold a mark.
#[derive(Clone)]
pub struct Marks {
    tokenizer: Arc<Tokenizer>,
    text: Vec<u8>,
}

/// What the beginning of a completion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// White space, or part of `<think>`.
    Unknown,
    Thinking,
    Answer,
}

impl Marks {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Marks {
        Marks {
            tokenizer,
            text: Vec::new(),
        }
    }

    /// Takes a token of the beginning; what follows `<think>` is kept.
    pub fn begin(&mut self, token_id: u32) -> Beginning {
        self.push(token_id);
        let text = self.text.trim_ascii_start();
        if let Some(rest) = text.strip_prefix(OPEN) {
            self.text = rest.to_vec();
            Beginning::Thinking
        } else if OPEN.starts_with(text) {
            Beginning::Unknown
        } else {
            Beginning::Answer
        }
    }

    /// Takes a token of the thinking. Once `</think>` is there: whether something else than white
    /// space follows it in the same token.
    pub fn think(&mut self, token_id: u32) -> Option<bool> {
        self.push(token_id);
        let at = self
            .text
            .windows(CLOSE.len())
            .position(|part| part == CLOSE);
        if let Some(at) = at {
            let rest = &self.text[at + CLOSE.len()..];
            return Some(!rest.trim_ascii().is_empty());
        }
        let kept = self.text.len().min(CLOSE.len() - 1);
        self.text.drain(..self.text.len() - kept);
        None
    }

    fn push(&mut self, token_id: u32) {
        let bytes = self.tokenizer.token_bytes(token_id);
        // Where tokens are words that blanks join, a mark is a word.
        let word = || self.tokenizer.id_to_token(token_id).map(String::into_bytes);
        self.text.extend(bytes.or_else(word).unwrap_or_default());
    }
}

//! Text from tokens that come one by one.

use super::Tokenizer;
use crate::Result;
use std::ops::Deref;

/// Beyond so many tokens without a clean end, the beginning is let go wherever it can stand alone.
const LONG: usize = 32;

/// Decodes tokens as they come, giving valid UTF-8 only: what may still change (the beginning of a
/// character that is spread over tokens) is held back. The pieces and [`StreamDecoder::finish`]
/// together are what [`Tokenizer::decode`] gives for all ids at once. That holds for tokenizers
/// whose decoder is byte-level, byte fallback with or without a blank stripped in front,
/// metaspace, or none: DeepSeek's, Qwen's, Llama's and ours.
#[derive(Clone)]
pub struct StreamDecoder<T> {
    tokenizer: T,
    skip_special: bool,
    /// The last ids: as few as decode like the whole does.
    window: Vec<u32>,
    /// Bytes of the window's text that are out already.
    given: usize,
    /// The text of the ids before this place in the window is out, and ends with a character.
    clean: usize,
}

impl<T: Deref<Target = Tokenizer>> StreamDecoder<T> {
    /// Of a tokenizer that is borrowed or shared. `skip_special` as for [`Tokenizer::decode`].
    pub fn new(tokenizer: T, skip_special: bool) -> StreamDecoder<T> {
        StreamDecoder {
            tokenizer,
            skip_special,
            window: Vec::new(),
            given: 0,
            clean: 0,
        }
    }

    /// The text that this token completes; may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Ok(String::new());
        };
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        // A run of byte tokens is text only as a whole: a bad byte at its end spoils all of it.
        if self.tokenizer.has_byte_tokens && is_byte_token(&token) {
            return Ok(String::new());
        }
        let text = self.decode(&self.window)?;
        // Only the last replacement character can be a beginning; those before it stay.
        let end = text.strip_suffix('\u{FFFD}').unwrap_or(&text).len();
        let piece = text.get(self.given..end).unwrap_or("").to_string();
        self.given = self.given.max(end);
        if end == text.len() {
            self.forget(self.clean)?;
            self.clean = self.window.len();
        } else if self.window.len() >= 2 * LONG {
            self.cut(&text)?;
        }
        Ok(piece)
    }

    /// What is still held back, after the last token.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let text = self.decode(&self.window)?;
        Ok(text.get(self.given..).unwrap_or("").to_string())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, self.skip_special)
    }

    /// Drops the first ids. What remains is never the very beginning again, so at least one id
    /// stays before the next one: decoders treat the first token differently.
    fn forget(&mut self, count: usize) -> Result<()> {
        if count > 0 {
            let before = self.decode(&self.window)?.len() - self.given;
            self.window.drain(..count);
            self.given = self.decode(&self.window)?.len() - before;
        }
        Ok(())
    }

    /// Bytes that are never text must not make the window grow without end.
    fn cut(&mut self, text: &str) -> Result<()> {
        for count in LONG..self.window.len() {
            let (first, second) = self.window.split_at(count);
            if self.decode(first)? + &self.decode(second)? == text {
                self.clean = 0;
                return self.forget(count);
            }
        }
        Ok(())
    }
}

/// `<0xE5>` and its like.
pub(super) fn is_byte_token(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

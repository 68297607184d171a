//! Words joined by one blank, counted as they are written.

use std::fmt::{Display, Write};

#[derive(Default)]
pub(crate) struct Writer {
    text: String,
    words: usize,
}

impl Writer {
    pub(crate) fn word(&mut self, word: impl Display) {
        if self.words > 0 {
            self.text.push(' ');
        }
        write!(self.text, "{word}").expect("writing to a String cannot fail");
        self.words += 1;
    }

    pub(crate) fn words(&mut self, words: impl IntoIterator<Item = impl Display>) {
        words.into_iter().for_each(|word| self.word(word));
    }

    /// The text, unless it has more than `limit` words.
    pub(crate) fn finish(self, limit: usize) -> Option<String> {
        (self.words <= limit).then_some(self.text)
    }
}

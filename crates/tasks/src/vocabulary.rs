//! The words that all tasks share. A word's id is its place in the list, so the number `n` has id
//! `n`: a model may then start its number rows from the numbers' values.

/// How many words there are; a round number, so that the embedding needs no padding.
pub const VOCABULARY_SIZE: usize = 1024;
/// The largest number that is one word.
pub const LARGEST_NUMBER: u32 = 999;

pub const PAD: &str = "<pad>";
pub const EOS: &str = "<eos>";
pub const UNK: &str = "<unk>";
pub const THINK_OPEN: &str = "<think>";
pub const THINK_CLOSE: &str = "</think>";

/// The words that a tokenizer must find as a whole wherever they stand.
pub const SPECIAL_WORDS: [&str; 5] = [PAD, EOS, UNK, THINK_OPEN, THINK_CLOSE];

/// The words after the numbers and the special words. `~`: no usable value. `x`: a dead end.
/// `try`: start again. `;` `:` `=`: punctuation of worked steps. `(` `)`: answers as expressions.
const SYMBOLS: [&str; 13] = [
    "+", "-", "*", "/", "=", "~", "x", "(", ")", ";", "?", "try", ":",
];

/// All words in the order of their ids: `0..=999`, the special words, symbols, then reserved words.
pub fn vocabulary() -> Vec<String> {
    let mut words: Vec<String> = (0..=LARGEST_NUMBER).map(|n| n.to_string()).collect();
    words.extend(
        SPECIAL_WORDS
            .iter()
            .chain(&SYMBOLS)
            .map(|word| word.to_string()),
    );
    let reserved = VOCABULARY_SIZE - words.len();
    words.extend((0..reserved).map(|n| format!("<reserved_{n}>")));
    words
}

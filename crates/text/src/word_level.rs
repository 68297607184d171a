//! A tokenizer of whole words, written so that Hugging Face's libraries open it.

use crate::{Error, Result, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The word for whatever is not in the vocabulary; [`word_level`] needs it.
const UNKNOWN: &str = "<unk>";
/// Found as a whole like special tokens, but text to the reader: decoding without special tokens
/// keeps them, as in DeepSeek-R1's tokenizer.
const THINKING: [&str; 2] = ["<think>", "</think>"];

/// The text of a `tokenizer.json` in which a word's id is its place in `vocabulary`, text is split
/// at white space, and decoding joins with one blank.
///
/// `special` are words found as a whole wherever they stand, even without blanks around them. They
/// are marked special, but for `<think>` and `</think>`.
///
/// # Errors
/// A word that is empty, has white space in it, or comes twice; a special word or `<unk>` that is
/// not in the vocabulary.
pub fn word_level(vocabulary: &[String], special: &[&str]) -> Result<String> {
    let ids = ids(vocabulary)?;
    for word in special.iter().chain(&[UNKNOWN]) {
        if !ids.contains_key(*word) {
            return Err(unusable(word, "is special but not in the list"));
        }
    }
    let added: Vec<Value> = special
        .iter()
        .map(|word| {
            json!({
                "id": ids[*word],
                "content": word,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": !THINKING.contains(word),
            })
        })
        .collect();
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        // Without a decoder, tokens are joined with one blank.
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN },
    });
    // Through the library: the file is known to load, and its order of keys does not depend on how
    // serde_json was built.
    Tokenizer::from_json(&file.to_string())?.to_json()
}

fn ids(vocabulary: &[String]) -> Result<Map<String, Value>> {
    let mut ids = Map::new();
    for (id, word) in vocabulary.iter().enumerate() {
        if word.is_empty() || word.contains(char::is_whitespace) {
            return Err(unusable(word, "is empty or has white space in it"));
        }
        if ids.insert(word.clone(), Value::from(id)).is_some() {
            return Err(unusable(word, "comes twice"));
        }
    }
    Ok(ids)
}

fn unusable(word: &str, reason: &'static str) -> Error {
    Error::Vocabulary {
        word: word.to_string(),
        reason,
    }
}

/// What `tokenizer_config.json` says beside the tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerConfig<'a> {
    pub eos_token: &'a str,
    pub pad_token: &'a str,
    pub unk_token: &'a str,
    /// Jinja text.
    pub chat_template: &'a str,
    /// In tokens.
    pub model_max_length: usize,
}

/// The text of a `tokenizer_config.json` for a tokenizer of [`word_level`].
pub fn tokenizer_config(config: &TokenizerConfig) -> String {
    /// Serialised in this order.
    #[derive(Serialize)]
    struct File<'a> {
        chat_template: &'a str,
        clean_up_tokenization_spaces: bool,
        eos_token: &'a str,
        model_input_names: [&'a str; 2],
        model_max_length: usize,
        pad_token: &'a str,
        tokenizer_class: &'a str,
        unk_token: &'a str,
    }
    let file = File {
        chat_template: config.chat_template,
        clean_up_tokenization_spaces: false,
        eos_token: config.eos_token,
        // Otherwise transformers also returns token_type_ids, which DeepSeek's models do not take.
        model_input_names: ["input_ids", "attention_mask"],
        model_max_length: config.model_max_length,
        pad_token: config.pad_token,
        tokenizer_class: "PreTrainedTokenizerFast",
        unk_token: config.unk_token,
    };
    serde_json::to_string_pretty(&file).expect("strings and numbers always serialise")
}

//! Tokenizers of GGUF files: a `tokenizer.json` from what such a file holds, and back.
//!
//! A GGUF file names its pre-tokenizer and leaves the pattern to the reader. The patterns are those
//! of the models' own `tokenizer.json` files; the names are llama.cpp's (`src/llama-vocab.cpp`).

mod export;
mod pre;
mod sentencepiece;

use crate::{Error, Result, Tokenizer};
pub use export::parts_of;
use serde_json::{Map, Value, json};

/// A vocabulary larger than this is refused.
const MAX_TOKENS: usize = 1 << 24;

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const NORMAL: i32 = 1;

/// What a GGUF file says of its tokenizer (`tokenizer.ggml.*`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerParts {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// The name of the pre-tokenizer; without meaning for `llama`.
    pub pre: String,
    /// By id.
    pub tokens: Vec<String>,
    /// By id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `a b`, first merged first; for `gpt2`.
    pub merges: Vec<String>,
    /// By id, higher merged first; for `llama`.
    pub scores: Vec<f32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub add_bos: bool,
}

impl TokenizerParts {
    fn kind(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(NORMAL)
    }

    fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        let types = self.token_types.len();
        if count >= MAX_TOKENS || types > 0 && types != count {
            return Err(refused(format!("{count} tokens and {types} token types")));
        }
        for (name, id) in [("bos", self.bos), ("eos", self.eos), ("unk", self.unk)] {
            if id.is_some_and(|id| id as usize >= count) {
                return Err(refused(format!("{name} is {id:?} of {count} tokens")));
            }
        }
        Ok(())
    }

    fn vocabulary(&self) -> Result<Map<String, Value>> {
        let mut vocabulary = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = vocabulary.insert(token.clone(), Value::from(id)) {
                return Err(refused(format!("token {token:?} has ids {first} and {id}")));
            }
        }
        Ok(vocabulary)
    }

    /// Control tokens are special; tokens that a user defined are found as a whole, but are text.
    fn added_tokens(&self) -> Vec<Value> {
        let tokens = self.tokens.iter().enumerate();
        tokens
            .filter(|(id, token)| {
                matches!(self.kind(*id), CONTROL | USER_DEFINED) && !token.is_empty()
            })
            .map(|(id, token)| {
                json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": self.kind(id) == CONTROL,
                })
            })
            .collect()
    }

    fn text(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(id? as usize).map(String::as_str)
    }

    /// Puts the first token in front where a library is asked to add special tokens; ours never is.
    fn post_processor(&self) -> Value {
        let (true, Some(id), Some(bos)) = (self.add_bos, self.bos, self.text(self.bos)) else {
            return Value::Null;
        };
        let special = json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
        let sequence = |name, kind| json!({ "Sequence": { "id": name, "type_id": kind } });
        let mut ids = Map::new();
        ids.insert(
            bos.to_string(),
            json!({ "id": bos, "ids": [id], "tokens": [bos] }),
        );
        json!({
            "type": "TemplateProcessing",
            "single": [special, sequence("A", 0)],
            "pair": [special, sequence("A", 0), special, sequence("B", 1)],
            "special_tokens": ids,
        })
    }
}

fn refused(reason: String) -> Error {
    Error::Tokenizer {
        reason: format!("from GGUF: {reason}"),
    }
}

/// The text of a `tokenizer.json` that does what the GGUF file's tokenizer does. It loads as a
/// [`Tokenizer`]. For `llama`, a blank is put in front of texts, as SentencePiece does by default.
///
/// # Errors
/// Another model than `gpt2` and `llama`, or a pre-tokenizer that is not known, by name; parts that
/// do not fit together; what [`Tokenizer::from_json`] refuses.
pub fn tokenizer_json(parts: &TokenizerParts) -> Result<String> {
    parts.check()?;
    let added = parts.added_tokens();
    let post_processor = parts.post_processor();
    let file = match parts.model.as_str() {
        "gpt2" => {
            let Some(pre) = pre::named(&parts.pre) else {
                return Err(refused(format!(
                    "pre-tokenizer {:?} is not known; known are {}",
                    parts.pre,
                    pre::NAMES.join(", ")
                )));
            };
            json!({
                "version": "1.0",
                "added_tokens": added,
                "normalizer": pre.normalizer,
                "pre_tokenizer": pre.pre_tokenizer,
                "post_processor": post_processor,
                "decoder": pre::byte_level(false),
                "model": byte_level_model(parts, pre.ignore_merges)?,
            })
        }
        "llama" => json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": sentencepiece::normalizer(),
            "pre_tokenizer": null,
            "post_processor": post_processor,
            "decoder": sentencepiece::decoder(),
            "model": sentencepiece::model(parts)?,
        }),
        other => {
            return Err(refused(format!(
                "tokenizer model {other:?} is not supported; gpt2 and llama are"
            )));
        }
    };
    Tokenizer::from_json(&file.to_string())?.to_json()
}

fn byte_level_model(parts: &TokenizerParts, ignore_merges: bool) -> Result<Value> {
    let mut merges = Vec::with_capacity(parts.merges.len());
    for (index, merge) in parts.merges.iter().enumerate() {
        // A token may start with a blank in vocabularies that are not quite byte-level.
        let second = merge.char_indices().skip(1).find(|(_, c)| *c == ' ');
        let Some((at, _)) = second else {
            return Err(refused(format!(
                "merge {index}, {merge:?}, is not two tokens"
            )));
        };
        merges.push(json!([&merge[..at], &merge[at + 1..]]));
    }
    Ok(json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": parts.text(parts.unk.filter(|&id| parts.kind(id as usize) == UNKNOWN)),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": ignore_merges,
        "vocab": parts.vocabulary()?,
        "merges": merges,
    }))
}

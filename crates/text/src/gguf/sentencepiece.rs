//! SentencePiece BPE by scores, as `tokenizers` has it: merges, and bytes for what is unknown.

use super::{NORMAL, TokenizerParts, UNKNOWN, USER_DEFINED, refused};
use crate::Result;
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::collections::HashMap;

/// SentencePiece's sign for a blank.
const BLANK: &str = "\u{2581}";
/// Tokens of more characters than this are made by no merge; SentencePiece's default is 16.
const MAX_CHARS: usize = 256;

pub(super) fn normalizer() -> Value {
    json!({
        "type": "Sequence",
        "normalizers": [
            { "type": "Prepend", "prepend": BLANK },
            { "type": "Replace", "pattern": { "String": " " }, "content": BLANK },
        ],
    })
}

pub(super) fn decoder() -> Value {
    json!({
        "type": "Sequence",
        "decoders": [
            { "type": "Replace", "pattern": { "String": BLANK }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ],
    })
}

/// SentencePiece joins the pair whose token has the highest score. So each token is a merge of
/// every pair of tokens that makes it, in the order of scores; ties as in Hugging Face's converter
/// (`transformers`, `convert_slow_tokenizer.py`): longer first parts first.
pub(super) fn model(parts: &TokenizerParts) -> Result<Value> {
    let count = parts.tokens.len();
    if parts.scores.len() != count {
        let scores = parts.scores.len();
        return Err(refused(format!("{count} tokens and {scores} scores")));
    }
    if let Some(id) = parts.scores.iter().position(|score| score.is_nan()) {
        return Err(refused(format!("the score of token {id} is not a number")));
    }
    let unknown = (0..count).find(|&id| parts.kind(id) == UNKNOWN);
    let unknown = parts.unk.map(|id| id as usize).or(unknown);
    Ok(json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown.map(|id| &parts.tokens[id]),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
        "vocab": parts.vocabulary()?,
        "merges": merges(parts),
    }))
}

struct Merge<'a> {
    first: &'a str,
    second: &'a str,
    score: f32,
    /// Characters of the first part.
    length: usize,
}

fn merges(parts: &TokenizerParts) -> Vec<[&str; 2]> {
    let joinable = |id: usize| matches!(parts.kind(id), NORMAL | USER_DEFINED);
    let tokens = parts.tokens.iter().enumerate();
    let ids: HashMap<&str, usize> = tokens
        .filter(|(id, _)| joinable(*id))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (id, token) in parts.tokens.iter().enumerate() {
        if parts.kind(id) != NORMAL || token.chars().count() > MAX_CHARS {
            continue;
        }
        for (length, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (first, second) = token.split_at(at);
            if ids.contains_key(first) && ids.contains_key(second) {
                merges.push(Merge {
                    first,
                    second,
                    score: parts.scores[id],
                    length,
                });
            }
        }
    }
    merges.sort_by(|a, b| {
        let scores = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
        scores.then(b.length.cmp(&a.length))
    });
    merges
        .iter()
        .map(|merge| [merge.first, merge.second])
        .collect()
}

//! From a `tokenizer.json` to what a GGUF file holds.

use super::pre::{NAMES, Pre, named};
use super::{CONTROL, MAX_TOKENS, NORMAL, TokenizerParts, UNKNOWN, UNUSED, USER_DEFINED, refused};
use crate::{Result, Tokenizer};
use serde_json::Value;
use std::collections::HashMap;

/// More ids than this times the tokens would be mostly padding.
const MAX_PADDING: usize = 4;

/// The parts of a byte-level BPE tokenizer for a GGUF file, such that [`super::tokenizer_json`] of
/// them encodes alike. Ids without a token become unused tokens `[PAD7]`, as llama.cpp names them.
/// `eos` stays empty: `tokenizer.json` does not tell it, nor `bos` where no template of the file
/// puts it in front.
///
/// # Errors
/// What [`Tokenizer::from_json`] refuses; another model than byte-level BPE; a pre-tokenizer for
/// which GGUF readers have no name that is known here.
pub fn parts_of(tokenizer_json: &str) -> Result<TokenizerParts> {
    // Through the library: old and new ways to write a file become one.
    let json = Tokenizer::from_json(tokenizer_json)?.to_json()?;
    let file: Value = serde_json::from_str(&json).map_err(|error| refused(error.to_string()))?;
    let model = &file["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == true {
        let kind = model["type"].as_str().unwrap_or("unknown");
        return Err(refused(format!(
            "a {kind} tokenizer that is not byte-level BPE cannot be written to GGUF"
        )));
    }
    let (tokens, token_types) = tokens(&file)?;
    let pair = |merge: &Value| Some(format!("{} {}", merge[0].as_str()?, merge[1].as_str()?));
    let merges = model["merges"].as_array().into_iter().flatten();
    let bos = crate::tokenizer::first_token(&file["post_processor"]);
    let unk = model["unk_token"].as_str();
    Ok(TokenizerParts {
        model: "gpt2".to_string(),
        pre: pre_name(&file)?.to_string(),
        token_types,
        merges: merges.filter_map(pair).collect(),
        scores: Vec::new(),
        bos,
        eos: None,
        unk: unk
            .and_then(|unk| tokens.iter().position(|token| token == unk))
            .map(|id| id as u32),
        add_bos: bos.is_some(),
        tokens,
    })
}

/// Tokens and their types by id.
fn tokens(file: &Value) -> Result<(Vec<String>, Vec<i32>)> {
    let id = |value: &Value| value.as_u64().map_or(usize::MAX, |id| id as usize);
    let mut by_id: HashMap<usize, (&str, i32)> = HashMap::new();
    let unknown = file["model"]["unk_token"].as_str();
    for (token, place) in file["model"]["vocab"].as_object().into_iter().flatten() {
        let kind = if Some(token.as_str()) == unknown {
            UNKNOWN
        } else {
            NORMAL
        };
        by_id.insert(id(place), (token, kind));
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true {
            CONTROL
        } else {
            USER_DEFINED
        };
        let content = added["content"].as_str().unwrap_or_default();
        by_id.insert(id(&added["id"]), (content, kind));
    }
    let count = by_id.keys().max().map_or(0, |&last| last.saturating_add(1));
    if count >= MAX_TOKENS || count > MAX_PADDING * by_id.len() + 1024 {
        return Err(refused(format!(
            "{} tokens with ids up to {count}",
            by_id.len()
        )));
    }
    let padded = |id| {
        let known = by_id
            .get(&id)
            .map(|&(token, kind)| (token.to_string(), kind));
        known.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))
    };
    Ok((0..count).map(padded).unzip())
}

fn pre_name(file: &Value) -> Result<&'static str> {
    let found = Pre {
        normalizer: plain(&file["normalizer"]),
        pre_tokenizer: file["pre_tokenizer"].clone(),
        ignore_merges: file["model"]["ignore_merges"] == true,
    };
    let matches = |name: &&str| {
        named(name).is_some_and(|pre| {
            let same = |key: &str| {
                patterns(&pre.pre_tokenizer, key) == patterns(&found.pre_tokenizer, key)
            };
            pre.normalizer == found.normalizer && same("type") && same("Regex") && same("use_regex")
        })
    };
    NAMES.into_iter().find(matches).ok_or_else(|| {
        refused(format!(
            "the pre-tokenizer has no name; those with one are {}",
            NAMES.join(", ")
        ))
    })
}

/// A normalizer; none where it is an empty sequence, as in DeepSeek's files.
fn plain(normalizer: &Value) -> Value {
    match normalizer["normalizers"].as_array() {
        Some(list) if list.is_empty() => Value::Null,
        _ => normalizer.clone(),
    }
}

/// What stands under a key anywhere inside, in order. Other settings do not change the pieces.
fn patterns(part: &Value, key: &str) -> Vec<Value> {
    match part {
        Value::Object(map) => {
            let inside = map.values().flat_map(|part| patterns(part, key));
            map.get(key).cloned().into_iter().chain(inside).collect()
        }
        Value::Array(list) => list.iter().flat_map(|part| patterns(part, key)).collect(),
        _ => Vec::new(),
    }
}

//! What is checked of a `tokenizer.json` before the library sees it.
//!
//! A crafted file makes the library panic while loading (a merge longer than every token of the
//! vocabulary, huggingface/tokenizers issue 2094), wrap ids around 2^32, or blow texts up; and a
//! file with two tokens under one id loads, and decodes to one of them by chance.

use crate::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::HashSet;
use std::fmt;

/// Ids at or above this are refused; the largest vocabularies in use have about 300,000 tokens.
const MAX_ID: u32 = 1 << 24;
/// More added tokens than this are refused; DeepSeek-V3 has about 800.
const MAX_ADDED: usize = 1 << 16;
/// Bytes of the longest added token.
const MAX_ADDED_BYTES: usize = 1 << 12;
/// How many times longer the normalizer or the decoder may make a text.
const MAX_GROWTH: usize = 64;

/// The parts of a `tokenizer.json` that are checked.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    model: Option<Model>,
    #[serde(default)]
    added_tokens: Option<Vec<Added>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Vocabulary,
    #[serde(default)]
    merges: Option<Vec<Merge>>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: Option<bool>,
}

/// Both ways in which merges are written.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// Token texts. A vocabulary that is a list (Unigram) has scores, no ids and no merges.
#[derive(Default)]
struct Vocabulary {
    tokens: HashSet<String>,
    longest: usize,
    is_list: bool,
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_any(Tokens)
    }
}

struct Tokens;

impl<'de> Visitor<'de> for Tokens {
    type Value = Vocabulary;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a vocabulary: tokens with their ids, or a list of tokens with scores"
        )
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Vocabulary, M::Error> {
        let mut vocabulary = Vocabulary::default();
        let mut ids = HashSet::new();
        while let Some((token, id)) = map.next_entry::<String, u32>()? {
            if id >= MAX_ID {
                let reason = format!("token {token:?} has id {id}, and ids end at {MAX_ID}");
                return Err(M::Error::custom(reason));
            }
            if !ids.insert(id) {
                return Err(M::Error::custom(format!("two tokens have id {id}")));
            }
            vocabulary.longest = vocabulary.longest.max(token.len());
            if let Some(token) = vocabulary.tokens.replace(token) {
                return Err(M::Error::custom(format!("token {token:?} comes twice")));
            }
        }
        Ok(vocabulary)
    }

    fn visit_seq<S: SeqAccess<'de>>(
        self,
        mut list: S,
    ) -> std::result::Result<Vocabulary, S::Error> {
        let mut length: u32 = 0;
        while list.next_element::<(String, f64)>()?.is_some() {
            length += 1;
            if length >= MAX_ID {
                return Err(S::Error::custom(format!("more than {MAX_ID} tokens")));
            }
        }
        Ok(Vocabulary {
            is_list: true,
            ..Vocabulary::default()
        })
    }
}

/// Checks the text of a `tokenizer.json`; gives its added tokens.
pub(super) fn check(json: &str) -> Result<Vec<Added>> {
    let file: File = serde_json::from_str(json).map_err(|error| refused(error.to_string()))?;
    let added = file.added_tokens.unwrap_or_default();
    check_added(&added)?;
    for (name, part) in [("normalizer", &file.normalizer), ("decoder", &file.decoder)] {
        if growth(part).is_none_or(|growth| growth > MAX_GROWTH) {
            return Err(refused(format!(
                "the {name} makes texts more than {MAX_GROWTH} times longer"
            )));
        }
    }
    for part in [&file.normalizer, &file.pre_tokenizer, &file.decoder] {
        check_patterns(part)?;
    }
    if let Some(model) = &file.model {
        check_merges(model)?;
        let parts = [&file.normalizer, &file.pre_tokenizer];
        if parts.into_iter().any(|part| mentions(part, "ByteLevel")) {
            check_bytes(model)?;
        }
    }
    Ok(added)
}

fn refused(reason: String) -> Error {
    Error::Tokenizer { reason }
}

fn check_added(added: &[Added]) -> Result<()> {
    if added.len() > MAX_ADDED {
        return Err(refused(format!(
            "{} added tokens; the limit is {MAX_ADDED}",
            added.len()
        )));
    }
    let mut ids = HashSet::new();
    let mut texts = HashSet::new();
    for (index, Added { id, content }) in added.iter().enumerate() {
        let reason = if content.is_empty() {
            "is empty"
        } else if content.len() > MAX_ADDED_BYTES {
            "is longer than 4096 bytes"
        } else if *id >= MAX_ID {
            "has an id beyond 2^24"
        } else if !ids.insert(*id) {
            "has the id of another one"
        } else if !texts.insert(content) {
            "comes twice"
        } else {
            continue;
        };
        return Err(refused(format!("added token {index} (id {id}) {reason}")));
    }
    Ok(())
}

fn check_merges(model: &Model) -> Result<()> {
    let prefix = model
        .continuing_subword_prefix
        .as_deref()
        .unwrap_or_default();
    for (index, merge) in model.merges.iter().flatten().enumerate() {
        let (first, second) = match merge {
            Merge::Pair(first, second) => (first.as_str(), second.as_str()),
            // A line with no blank is refused, and explained, by the library.
            Merge::Line(line) => line.split_once(' ').unwrap_or((line, prefix)),
        };
        let joined = second
            .get(prefix.len()..)
            .map(|rest| first.len() + rest.len());
        if joined.is_none_or(|length| length > model.vocab.longest) {
            return Err(refused(format!(
                "merge {index} makes a token that is not in the vocabulary"
            )));
        }
    }
    Ok(())
}

/// The library drops what a byte-level vocabulary lacks without a word, unless there is a token for
/// the unknown.
fn check_bytes(model: &Model) -> Result<()> {
    let catches_all = model.unk_token.is_some() || model.byte_fallback == Some(true);
    if catches_all || model.vocab.is_list {
        return Ok(());
    }
    for (byte, symbol) in byte_alphabet().into_iter().enumerate() {
        // These never occur in UTF-8; DeepSeek's older vocabularies lack them.
        let never = matches!(byte, 0xC0 | 0xC1 | 0xF5..=0xFF);
        if !never && !model.vocab.tokens.contains(&symbol.to_string()) {
            return Err(refused(format!(
                "the vocabulary is byte-level, byte {byte:#04X} ({symbol:?}) is not in it, and \
                 there is no unk_token"
            )));
        }
    }
    Ok(())
}

/// The library matches patterns by backtracking. All that published tokenizers need of that is
/// the one alternative for white space at a line's end; without it, their patterns compile for an
/// engine that takes linear time.
fn check_patterns(part: &Value) -> Result<()> {
    match part {
        Value::Object(map) => {
            if let Some(pattern) = map.get("Regex").and_then(Value::as_str)
                && !is_linear(pattern)
            {
                let shown: String = pattern.chars().take(60).collect();
                return Err(refused(format!(
                    "pattern {shown:?} is wrong, or could take very long"
                )));
            }
            map.values().try_for_each(check_patterns)
        }
        Value::Array(list) => list.iter().try_for_each(check_patterns),
        _ => Ok(()),
    }
}

/// Whether a pattern is an alternation of patterns without backtracking and `\s+(?!\S)`.
fn is_linear(pattern: &str) -> bool {
    let parts: Vec<&str> = pattern.split(r"\s+(?!\S)").collect();
    let last = parts.len() - 1;
    // What compiles by itself is no half of a group, so the cuts are between alternatives.
    parts.iter().enumerate().all(|(index, &part)| {
        let after = match part.strip_prefix('|') {
            Some(rest) if index > 0 => rest,
            _ if index > 0 && !part.is_empty() => return false,
            _ => part,
        };
        let between = match after.strip_suffix('|') {
            Some(rest) if index < last => rest,
            _ if index < last && !after.is_empty() => return false,
            _ => after,
        };
        regex::Regex::new(between).is_ok()
    })
}

/// The character that stands for each byte in byte-level vocabularies: itself where it is printable
/// Latin-1, else the next one from U+0100 on (GPT-2's `bytes_to_unicode`).
pub(super) fn byte_alphabet() -> [char; 256] {
    let mut alphabet = ['\0'; 256];
    let mut next = 0x100;
    for (byte, symbol) in (0..=u8::MAX).zip(&mut alphabet) {
        *symbol = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
        };
    }
    alphabet
}

/// Whether some part inside has this type.
pub(super) fn mentions(part: &Value, kind: &str) -> bool {
    match part {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(kind)
                || map.values().any(|part| mentions(part, kind))
        }
        Value::Array(list) => list.iter().any(|part| mentions(part, kind)),
        _ => false,
    }
}

/// How many times longer a text can become by the replacements in a normalizer or decoder, one
/// after another; `None` if that overflows.
fn growth(part: &Value) -> Option<usize> {
    match part {
        Value::Object(map) => {
            let mut product = 1;
            let bytes = |key: &str| map.get(key).and_then(Value::as_str).map_or(0, str::len);
            let kind = map.get("type").and_then(Value::as_str);
            if kind == Some("Prepend") {
                product = bytes("prepend") + 1;
            }
            if kind == Some("Replace") {
                let content = bytes("content");
                let pattern = map.get("pattern").and_then(|pattern| pattern.get("String"));
                let replaced = pattern.and_then(Value::as_str).map_or(1, str::len).max(1);
                product = content.div_ceil(replaced).max(1);
            }
            map.values()
                .try_fold(product, |product, part| product.checked_mul(growth(part)?))
        }
        Value::Array(list) => list
            .iter()
            .try_fold(1, |product: usize, part| product.checked_mul(growth(part)?)),
        _ => Some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::is_linear;

    #[test]
    fn patterns_that_backtrack_are_told_from_published_ones() {
        for pattern in [
            r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"\s+(?!\S)",
            r"[\r\n]",
            r" ?[^(\s|[.,!?…。，、।۔،])]+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\s+(?!\S)|\s+",
        ] {
            assert!(is_linear(pattern), "{pattern}");
        }
        for pattern in [
            r"(a|aa)+(?=b)",
            r"(a)\1",
            r"(?:(?:a|a)*c|\s+(?!\S))x",
            r"(?:a|a)*\s+(?!\S)",
            r"\s+(?!\S)(?:a|a)*b",
            r"(?:a|\s+(?!\S)|b)*c",
            "((((",
            "((a{1000}){1000}){1000}",
        ] {
            assert!(!is_linear(pattern), "{pattern}");
        }
    }
}

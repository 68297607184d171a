//! The tokenizer that a GGUF file holds, as its keys have it.

use super::file::Gguf;
use super::value::{Array, Value};
use crate::error::Error;

/// The keys `tokenizer.*` of a file, checked against each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece), for the architectures known here.
    pub model: String,
    /// Which splitting rules come before BPE: `deepseek-v3`, `qwen2`, `llama-bpe` and so on.
    pub pre: Option<String>,
    /// Every token by its id.
    pub tokens: Vec<String>,
    /// For each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty if
    /// the file has none.
    pub token_type: Vec<i32>,
    /// SentencePiece's scores, one for each token, or empty.
    pub scores: Vec<f32>,
    /// Pairs with a space between, best first; or empty.
    pub merges: Vec<String>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
    /// Ends a turn; stops a completion too.
    pub eot_token_id: Option<u32>,
    /// Ends a message; stops a completion too.
    pub eom_token_id: Option<u32>,
    pub padding_token_id: Option<u32>,
    pub unknown_token_id: Option<u32>,
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
    /// SentencePiece: whether a space is put before the text.
    pub add_space_prefix: Option<bool>,
    pub chat_template: Option<String>,
}

/// [`GgufTokenizer::model`] where there are no tokens, as llama.cpp has it.
const NO_MODEL: &str = "none";

impl GgufTokenizer {
    /// Reads the keys; `None` if the file holds neither tokens nor a chat template.
    ///
    /// # Errors
    /// [`Error::File`] naming the key: of another type, of another length than the tokens, or an
    /// id without a token.
    pub fn read(gguf: &Gguf) -> Result<Option<GgufTokenizer>, Error> {
        let tokens = gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let chat_template = owned(gguf.str("tokenizer.chat_template")?);
        if tokens.is_empty() && chat_template.is_none() {
            return Ok(None);
        }
        let key = "tokenizer.ggml.model";
        let model = match gguf.str(key)? {
            None if !tokens.is_empty() => {
                return Err(gguf.bad_key(key, "is absent, though there are tokens"));
            }
            model => model.unwrap_or(NO_MODEL),
        };
        let id = |name: &str| match tokens.len() {
            // The configuration's then, which are compared with the rows of the embedding.
            0 => token_id(gguf, name, usize::MAX),
            tokens => token_id(gguf, name, tokens),
        };
        Ok(Some(GgufTokenizer {
            model: model.to_string(),
            pre: owned(gguf.str("tokenizer.ggml.pre")?),
            tokens: tokens.to_vec(),
            token_type: token_types(gguf, tokens.len())?,
            scores: scores(gguf, tokens.len())?,
            merges: gguf
                .strings("tokenizer.ggml.merges")?
                .unwrap_or_default()
                .to_vec(),
            bos_token_id: id("bos_token_id")?,
            eos_token_id: id("eos_token_id")?,
            eot_token_id: id("eot_token_id")?,
            eom_token_id: id("eom_token_id")?,
            padding_token_id: id("padding_token_id")?,
            unknown_token_id: id("unknown_token_id")?,
            add_bos_token: gguf.bool("tokenizer.ggml.add_bos_token")?,
            add_eos_token: gguf.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?,
            chat_template,
        }))
    }

    /// The keys again, for writing. What is empty or absent gives none.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let flag = |value: Option<bool>| value.map(Value::Bool);
        let id = |value: Option<u32>| value.map(Value::U32);
        let text = |value: &Option<String>| value.clone().map(Value::Str);
        let (types, scores) = (self.token_type.clone(), self.scores.clone());
        let types = (!types.is_empty()).then_some(Value::Array(Array::I32(types)));
        let scores = (!scores.is_empty()).then_some(Value::Array(Array::F32(scores)));
        let merges = self.merges.clone();
        let merges = (!merges.is_empty()).then_some(Value::Array(Array::Str(merges)));
        let tokens = self.tokens.clone();
        let tokens = (!tokens.is_empty()).then_some(Value::Array(Array::Str(tokens)));
        [
            ("ggml.model", Some(Value::Str(self.model.clone()))),
            ("ggml.pre", text(&self.pre)),
            ("ggml.tokens", tokens),
            ("ggml.scores", scores),
            ("ggml.token_type", types),
            ("ggml.merges", merges),
            ("ggml.bos_token_id", id(self.bos_token_id)),
            ("ggml.eos_token_id", id(self.eos_token_id)),
            ("ggml.eot_token_id", id(self.eot_token_id)),
            ("ggml.eom_token_id", id(self.eom_token_id)),
            ("ggml.padding_token_id", id(self.padding_token_id)),
            ("ggml.unknown_token_id", id(self.unknown_token_id)),
            ("ggml.add_bos_token", flag(self.add_bos_token)),
            ("ggml.add_eos_token", flag(self.add_eos_token)),
            ("ggml.add_space_prefix", flag(self.add_space_prefix)),
            ("chat_template", text(&self.chat_template)),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.map(|value| (format!("tokenizer.{key}"), value)))
        .collect()
    }
}

fn owned(text: Option<&str>) -> Option<String> {
    text.map(str::to_string)
}

fn check_length(gguf: &Gguf, key: &str, found: usize, tokens: usize) -> Result<(), Error> {
    if found == 0 || found == tokens {
        return Ok(());
    }
    Err(gguf.bad_key(key, format!("has {found} entries for {tokens} tokens")))
}

fn token_types(gguf: &Gguf, tokens: usize) -> Result<Vec<i32>, Error> {
    let key = "tokenizer.ggml.token_type";
    let types = gguf.integers(key)?.unwrap_or_default();
    check_length(gguf, key, types.len(), tokens)?;
    let narrow = |value: i64| match value {
        0..=6 => Ok(value as i32),
        _ => Err(gguf.bad_key(key, format!("holds {value}; 1 to 6 are types of tokens"))),
    };
    types.into_iter().map(narrow).collect()
}

fn scores(gguf: &Gguf, tokens: usize) -> Result<Vec<f32>, Error> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.floats(key)?.unwrap_or_default();
    check_length(gguf, key, scores.len(), tokens)?;
    Ok(scores)
}

/// An id that has a token; the largest u32 stands for none in some files.
pub(super) fn token_id(gguf: &Gguf, name: &str, tokens: usize) -> Result<Option<u32>, Error> {
    let key = format!("tokenizer.ggml.{name}");
    match gguf.u32(&key)? {
        None | Some(u32::MAX) => Ok(None),
        Some(id) if (id as usize) < tokens => Ok(Some(id)),
        Some(id) => Err(gguf.bad_key(&key, format!("is {id}, of {tokens} tokens"))),
    }
}

//! A Hugging Face `tokenizer.json`, guarded.
//!
//! The file is checked before the library sees it (`tokenizer/check.rs`), and whatever panics
//! inside the library becomes an error. Texts go through the library's normalizer, pre-tokenizer
//! and model, but not through its post-processor: a template of the file could repeat the text.

mod bytes;
mod check;
mod stream;

use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
pub use stream::StreamDecoder;
use tokenizers::{
    Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

/// Larger `tokenizer.json` files are refused; the largest in use have about 35 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Longer texts are refused by [`Tokenizer::encode`].
pub const MAX_ENCODE_BYTES: u64 = 4 << 20;

/// Breaks the texts of added tokens in [`Tokenizer::protect`]; a noncharacter, so that no text has
/// a use for it. Encoding drops it.
const MARK: char = '\u{FDD0}';

/// Text to token ids and back.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The first two characters of the added tokens that have two.
    beginnings: BTreeSet<(char, char)>,
    /// The decoder joins tokens like `<0xE5>` to characters.
    has_byte_tokens: bool,
    token_bytes: Option<bytes::TokenBytes>,
}

/// A token outside of the model's own vocabulary, or one that is found in texts as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    /// Left out by decoding without special tokens. `<think>` is usually not marked so.
    pub special: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` file.
    ///
    /// # Errors
    /// The file cannot be read, is over [`MAX_TOKENIZER_BYTES`], or is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        let failed = |error: std::io::Error| Error::File {
            path: path.to_path_buf(),
            reason: error.to_string(),
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        // The length in the file's metadata may be a lie; reading stops by itself past the limit.
        file.take(MAX_TOKENIZER_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        check_size("tokenizer.json", bytes.len(), MAX_TOKENIZER_BYTES)?;
        let json = String::from_utf8(bytes).map_err(|error| Error::Tokenizer {
            reason: error.utf8_error().to_string(),
        })?;
        Tokenizer::from_json(&json)
    }

    /// The tokenizer of a `tokenizer.json` text. Truncation and padding settings in it are dropped:
    /// they would change what [`Tokenizer::encode`] returns.
    ///
    /// # Errors
    /// The text is over [`MAX_TOKENIZER_BYTES`], is no tokenizer, or is one that would misbehave:
    /// two tokens under one id, ids from 2^24 on, an added token that is empty or would get
    /// another id than the file says, a byte-level vocabulary that lacks bytes.
    pub fn from_json(json: &str) -> Result<Tokenizer> {
        check_size("tokenizer.json", json.len(), MAX_TOKENIZER_BYTES)?;
        let written = check::check(json)?;
        let mut inner = guarded(|| json.parse::<tokenizers::Tokenizer>())?;
        inner.with_padding(None);
        guarded(|| inner.with_truncation(None).map(|_| ()))?;
        // The library numbers added tokens by itself and only warns where the file says otherwise.
        for check::Added { id, content } in &written {
            let given = inner.token_to_id(content);
            if given != Some(*id) {
                let reason = format!("added token {content:?} has id {id}, but loads as {given:?}");
                return Err(Error::Tokenizer { reason });
            }
        }
        let decoder = serde_json::to_value(inner.get_decoder()).unwrap_or_default();
        let first_two = |content: &str| {
            let mut characters = content.chars();
            Some((characters.next()?, characters.next()?))
        };
        Ok(Tokenizer {
            beginnings: written
                .iter()
                .filter_map(|token| first_two(&token.content))
                .collect(),
            has_byte_tokens: check::mentions(&decoder, "ByteFallback"),
            token_bytes: bytes::TokenBytes::of(&decoder),
            inner,
        })
    }

    /// The ids of a text. No special tokens are put around it; those written in it are found: for
    /// the output of a chat template.
    ///
    /// # Errors
    /// The text is over [`MAX_ENCODE_BYTES`], or the tokenizer cannot handle it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    /// As [`Tokenizer::encode`], but nothing in the text becomes an added token: for text of users.
    /// `<think>` or `<｜User｜>` in it are spelled out, special or not. An added token that is a
    /// single character and a word of the model's own vocabulary stays what it is.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, true)
    }

    /// The text, marked so that [`Tokenizer::encode`] finds no added token in it and yet gives what
    /// [`Tokenizer::encode_plain`] would: for a message of a user on its way through a chat
    /// template. A noncharacter (U+FDD0) is put inside whatever starts like an added token;
    /// encoding drops it. Unchanged if nothing does.
    pub fn protect(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len());
        let mut previous = None;
        for character in text.chars().filter(|&character| character != MARK) {
            if previous.is_some_and(|previous| self.beginnings.contains(&(previous, character))) {
                marked.push(MARK);
            }
            marked.push(character);
            previous = Some(character);
        }
        marked
    }

    fn ids(&self, text: &str, plain: bool) -> Result<Vec<u32>> {
        check_size("the text to encode", text.len(), MAX_ENCODE_BYTES)?;
        guarded(|| {
            let normalizer = self.inner.get_normalizer();
            let marked = text.contains(MARK);
            let mut pieces = if plain {
                PreTokenizedString::from(text)
            } else {
                // The marks must be gone before the normalizer comes, which then comes below.
                let at_once = normalizer.filter(|_| !marked);
                let added = self.inner.get_added_vocabulary();
                added.extract_and_normalize(at_once, text)
            };
            if plain || marked {
                pieces.normalize(|piece| {
                    piece.filter(|character| character != MARK);
                    normalizer.map_or(Ok(()), |normalizer| normalizer.normalize(piece))
                })?;
            }
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.tokens(piece.get()))?;
            let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
            let tokens = splits.iter().filter_map(|(_, _, tokens)| tokens.as_ref());
            Ok(tokens.flatten().map(|token| token.id).collect())
        })
    }

    /// The model's tokens of a piece. The model's own vocabulary may hold added tokens too (ours
    /// does); one that it finds in plain text is spelled out: its first character, then the rest.
    fn tokens(&self, piece: &str) -> tokenizers::Result<Vec<Token>> {
        let model = self.inner.get_model();
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        // The token for the unknown is often an added one too, and stands for another text.
        let is_added = |token: &Token, text: &str| {
            let content = added.get(&token.id).map(|added| added.content.as_str());
            content == Some(text)
        };
        let mut tokens = model.tokenize(piece)?;
        let text = |token: &Token| piece.get(token.offsets.0..token.offsets.1).unwrap_or("");
        if tokens.iter().any(|token| is_added(token, text(token))) {
            let found = std::mem::take(&mut tokens);
            for token in found {
                let text = text(&token);
                let first = text.chars().next().map_or(0, char::len_utf8);
                if first == text.len() || !is_added(&token, text) {
                    tokens.push(token);
                } else {
                    tokens.extend(model.tokenize(&text[..first])?);
                    tokens.extend(self.tokens(&text[first..])?);
                }
            }
        }
        Ok(tokens)
    }

    /// The text of ids. Ids that the tokenizer does not know give no text, as in Hugging Face's:
    /// models have padded vocabularies. `skip_special` leaves out tokens marked special.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special))
    }

    /// A decoder for tokens that come one by one.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<&Tokenizer> {
        StreamDecoder::new(self, skip_special)
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the text of ids is their [`Tokenizer::token_bytes`] side by side. False where the
    /// decoder does more, as joining words with blanks.
    ///
    /// Decoders of SentencePiece's kind also drop blanks in front of a whole text, which this does
    /// not count.
    pub fn has_token_bytes(&self) -> bool {
        self.token_bytes.is_some()
    }

    /// The bytes that a token stands for, which may be a part of a character only; for an added
    /// token, its content. `None` if there is no such token, or not
    /// [`Tokenizer::has_token_bytes`].
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        Some(self.token_bytes.as_ref()?.bytes(&token))
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// One more than the largest id; 0 where there is none. A model's `vocab_size` is at least
    /// this.
    pub fn id_bound(&self) -> u32 {
        let ids = self.inner.get_vocab(true);
        ids.values().max().map_or(0, |id| id + 1)
    }

    /// The token that the file's post-processor puts in front of a text, which no method here does
    /// by itself: a chat template writes it, a text that is completed as it is wants it.
    pub fn first_token(&self) -> Option<u32> {
        let processor = self.inner.get_post_processor()?;
        first_token(&serde_json::to_value(processor).ok()?)
    }

    /// All added tokens, by id.
    pub fn added_tokens(&self) -> Vec<AddedToken> {
        let by_id: BTreeMap<_, _> = self.inner.get_added_tokens_decoder().into_iter().collect();
        by_id
            .into_iter()
            .map(|(id, token)| AddedToken {
                id,
                content: token.content,
                special: token.special,
            })
            .collect()
    }

    fn is_special(&self, id: u32) -> bool {
        let vocabulary = self.inner.get_added_vocabulary();
        self.inner
            .id_to_token(id)
            .is_some_and(|token| vocabulary.is_special_token(&token))
    }

    /// The text of a `tokenizer.json` that loads as this tokenizer; equal tokenizers give equal
    /// bytes.
    ///
    /// # Errors
    /// The library cannot write it.
    pub fn to_json(&self) -> Result<String> {
        guarded(|| self.inner.to_string(true))
    }
}

fn check_size(what: &'static str, bytes: usize, limit: u64) -> Result<()> {
    let bytes = bytes as u64;
    if bytes > limit {
        Err(Error::TooLarge { what, bytes, limit })
    } else {
        Ok(())
    }
}

/// Runs a call of the library; a panic in it becomes an error. The values it was working on are
/// dropped or read-only, so nothing half-changed is seen afterwards.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::Tokenizer {
            reason: error.to_string(),
        }),
        Err(_) => Err(Error::Tokenizer {
            reason: "the tokenizer library panicked".to_string(),
        }),
    }
}

/// The special token that a post-processor puts in front of a text.
pub(crate) fn first_token(post_processor: &serde_json::Value) -> Option<u32> {
    match post_processor["type"].as_str()? {
        "TemplateProcessing" => {
            let name = post_processor["single"][0]["SpecialToken"]["id"].as_str()?;
            let id = &post_processor["special_tokens"][name]["ids"][0];
            id.as_u64().and_then(|id| u32::try_from(id).ok())
        }
        "Sequence" => {
            let processors = post_processor["processors"].as_array()?;
            processors.iter().find_map(first_token)
        }
        _ => None,
    }
}

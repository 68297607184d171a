//! A Hugging Face `tokenizer.json`, guarded.
//!
//! A crafted file makes the library panic while loading (a merge longer than every token of the
//! vocabulary, huggingface/tokenizers issue 2094), so merges are checked before it sees them, and
//! whatever else panics inside becomes an error.

use crate::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Larger `tokenizer.json` files are refused; the largest in use have about 35 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Longer texts are refused by [`Tokenizer::encode`].
pub const MAX_ENCODE_BYTES: u64 = 4 << 20;

/// Text to token ids and back.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
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
    /// The text is over [`MAX_TOKENIZER_BYTES`] or is no tokenizer.
    pub fn from_json(json: &str) -> Result<Tokenizer> {
        check_size("tokenizer.json", json.len(), MAX_TOKENIZER_BYTES)?;
        check_merges(json)?;
        let mut inner = guarded(|| json.parse::<tokenizers::Tokenizer>())?;
        inner.with_padding(None);
        guarded(|| inner.with_truncation(None).map(|_| ()))?;
        Ok(Tokenizer { inner })
    }

    /// The ids of a text. No special tokens are put around it; those written in it are found.
    ///
    /// # Errors
    /// The text is over [`MAX_ENCODE_BYTES`], or the tokenizer cannot handle it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        check_size("the text to encode", text.len(), MAX_ENCODE_BYTES)?;
        guarded(|| self.inner.encode_fast(text, false)).map(|encoding| encoding.get_ids().to_vec())
    }

    /// The text of ids. Ids that the tokenizer does not know give no text, as in Hugging Face's:
    /// models have padded vocabularies. `skip_special` leaves out tokens marked special.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special))
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
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

/// The parts of a `tokenizer.json` that decide whether its merges fit its vocabulary.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: LongestToken,
    #[serde(default)]
    merges: Option<Vec<Merge>>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// Both ways in which merges are written.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// The bytes of the longest token; a vocabulary that is a list (Unigram) has no merges.
#[derive(Default)]
struct LongestToken(usize);

impl<'de> Deserialize<'de> for LongestToken {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Longest;
        impl<'de> Visitor<'de> for Longest {
            type Value = LongestToken;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "a vocabulary: tokens with their ids, or a list of tokens with scores"
                )
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<LongestToken, M::Error> {
                let mut longest = 0;
                while let Some((token, _)) = map.next_entry::<String, IgnoredAny>()? {
                    longest = longest.max(token.len());
                }
                Ok(LongestToken(longest))
            }

            fn visit_seq<S: SeqAccess<'de>>(
                self,
                mut list: S,
            ) -> std::result::Result<LongestToken, S::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(LongestToken(0))
            }
        }
        from.deserialize_any(Longest)
    }
}

fn check_merges(json: &str) -> Result<()> {
    let file: File = serde_json::from_str(json).map_err(|error| Error::Tokenizer {
        reason: error.to_string(),
    })?;
    let Some(model) = file.model else {
        return Ok(());
    };
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
        if joined.is_none_or(|length| length > model.vocab.0) {
            let reason = format!("merge {index} makes a token that is not in the vocabulary");
            return Err(Error::Tokenizer { reason });
        }
    }
    Ok(())
}

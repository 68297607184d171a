//! The bytes that each token stands for.

use super::check::byte_alphabet;
use super::stream::is_byte_token;
use serde_json::Value;
use std::collections::HashMap;

/// How a decoder makes bytes of one token, where a text is nothing but its tokens' bytes.
#[derive(Clone)]
pub(super) enum TokenBytes {
    /// GPT-2's characters for bytes. A token with another character stands for itself.
    ByteLevel(HashMap<char, u8>),
    /// Replacements in the token's text, one after another, as for `▁`; where `fallback`, tokens
    /// like `<0xE5>` are bytes.
    Plain {
        replacements: Vec<(String, String)>,
        fallback: bool,
    },
}

impl TokenBytes {
    /// `None` if the decoder does more than to put tokens side by side: one that joins words with
    /// blanks, say. Dropping blanks in front of a whole text is not held against it.
    pub(super) fn of(decoder: &Value) -> Option<TokenBytes> {
        let steps = match decoder["type"].as_str()? {
            "Sequence" => decoder["decoders"].as_array()?.as_slice(),
            _ => std::slice::from_ref(decoder),
        };
        let mut replacements = Vec::new();
        let (mut fallback, mut fused) = (false, false);
        for step in steps {
            match step["type"].as_str()? {
                "ByteLevel" if replacements.is_empty() && !fallback && !fused => {
                    return steps
                        .iter()
                        .all(|step| matches!(step["type"].as_str(), Some("ByteLevel" | "Fuse")))
                        .then(TokenBytes::byte_level);
                }
                "Replace" if !fallback && !fused => {
                    let from = step["pattern"]["String"].as_str()?;
                    replacements.push((from.to_string(), step["content"].as_str()?.to_string()));
                }
                "Metaspace" if !fallback && !fused => {
                    let from = step["replacement"].as_str()?;
                    replacements.push((from.to_string(), " ".to_string()));
                }
                "ByteFallback" if !fallback && !fused => fallback = true,
                "Fuse" => fused = true,
                // Of the fused text, that is blanks in front of the whole.
                "Strip" if fused && step["stop"] == 0 && step["content"] == " " => {}
                _ => return None,
            }
        }
        Some(TokenBytes::Plain {
            replacements,
            fallback,
        })
    }

    fn byte_level() -> TokenBytes {
        let bytes = byte_alphabet().into_iter().zip(0..=u8::MAX);
        TokenBytes::ByteLevel(bytes.collect())
    }

    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            TokenBytes::ByteLevel(bytes) => {
                let spelled: Option<Vec<u8>> = token
                    .chars()
                    .map(|character| bytes.get(&character).copied())
                    .collect();
                spelled.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            TokenBytes::Plain { fallback, .. } if *fallback && is_byte_token(token) => {
                let byte = u8::from_str_radix(&token[3..5], 16);
                byte.map_or_else(|_| token.as_bytes().to_vec(), |byte| vec![byte])
            }
            TokenBytes::Plain { replacements, .. } => {
                let replace = |text: String, (from, to): &(String, String)| text.replace(from, to);
                let text = replacements.iter().fold(token.to_string(), replace);
                text.into_bytes()
            }
        }
    }
}

//! Log-probabilities as the two OpenAI APIs show them: of the model's own distribution, at
//! temperature 1 and before anything else.

use engine::ScoredToken;
use serde::ser::{Serialize, SerializeMap, Serializer};
use text::Tokenizer;

/// Of `/v1/chat/completions`.
#[derive(Debug, serde::Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
}

#[derive(Debug, serde::Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<TopToken>,
}

#[derive(Debug, serde::Serialize)]
struct TopToken {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

pub fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[ScoredToken]) -> ChatLogprobs {
    let shown = |id: u32| (token_text(tokenizer, id), tokenizer.token_bytes(id));
    let content = tokens.iter().map(|scored| {
        let (token, bytes) = shown(scored.token_id);
        let top = scored.top.iter().map(|&(id, logprob)| {
            let (token, bytes) = shown(id);
            TopToken {
                token,
                logprob: finite(logprob),
                bytes,
            }
        });
        ChatToken {
            token,
            logprob: finite(scored.logprob),
            bytes,
            top_logprobs: top.collect(),
        }
    });
    ChatLogprobs {
        content: content.collect(),
    }
}

/// Log-probabilities by the tokens' texts, the likeliest first. In JSON an object whose numbers
/// are written like those of the tokens themselves, so that a reader finds them equal.
#[derive(Debug)]
struct ByText(Vec<(String, f32)>);

impl ByText {
    /// Two ids may have one text; the likelier comes first and stays.
    fn add(&mut self, text: String, logprob: f32) {
        if self.0.iter().all(|(known, _)| *known != text) {
            self.0.push((text, finite(logprob)));
        }
    }
}

impl Serialize for ByText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (text, logprob) in &self.0 {
            map.serialize_entry(text, logprob)?;
        }
        map.end()
    }
}

/// Of `/v1/completions`: four lists of equal length.
#[derive(Debug, Default, serde::Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<ByText>>,
    text_offset: Vec<usize>,
    /// Characters of text so far.
    #[serde(skip)]
    offset: usize,
}

impl TextLogprobs {
    /// Adds a token without a score: the first of a prompt has none.
    pub fn unscored(&mut self, tokenizer: &Tokenizer, token_id: u32) {
        self.add(tokenizer, token_id, None, None);
    }

    pub fn scored(&mut self, tokenizer: &Tokenizer, scored: &ScoredToken) {
        let mut top = ByText(Vec::new());
        for &(id, logprob) in &scored.top {
            top.add(token_text(tokenizer, id), logprob);
        }
        // As OpenAI has it, the token itself is always among them.
        top.add(token_text(tokenizer, scored.token_id), scored.logprob);
        let logprob = Some(finite(scored.logprob));
        self.add(tokenizer, scored.token_id, logprob, Some(top));
    }

    fn add(
        &mut self,
        tokenizer: &Tokenizer,
        token_id: u32,
        logprob: Option<f32>,
        top: Option<ByText>,
    ) {
        let text = token_text(tokenizer, token_id);
        self.text_offset.push(self.offset);
        self.offset += text.chars().count();
        self.tokens.push(text);
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
    }

    /// What has been added, as a list of its own; offsets go on.
    pub fn take(&mut self) -> TextLogprobs {
        let offset = self.offset;
        let next = TextLogprobs {
            offset,
            ..TextLogprobs::default()
        };
        std::mem::replace(self, next)
    }
}

/// The text of one token; bytes that are no text of their own as OpenAI writes them.
pub fn token_text(tokenizer: &Tokenizer, token_id: u32) -> String {
    match tokenizer.token_bytes(token_id).map(String::from_utf8) {
        Some(Ok(text)) => text,
        Some(Err(error)) => {
            let bytes = error.as_bytes().iter();
            let hex: String = bytes.map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{hex}")
        }
        None => tokenizer.id_to_token(token_id).unwrap_or_default(),
    }
}

/// JSON has no infinities.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

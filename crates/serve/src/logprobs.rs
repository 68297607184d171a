//! Log-probabilities as the two OpenAI APIs show them: of the model's own distribution, at
//! temperature 1 and before anything else.

use std::sync::Arc;

use engine::ScoredToken;
use serde::ser::{Serialize, SerializeMap, Serializer};
use text::{StreamDecoder, Tokenizer};

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
    /// Where in the text, in characters, each token begins.
    text_offset: Vec<usize>,
}

/// Fills [`TextLogprobs`] token by token.
pub struct TextScorer {
    tokenizer: Arc<Tokenizer>,
    /// Tells how much text each token adds.
    decoder: StreamDecoder<Arc<Tokenizer>>,
    /// Characters of text so far.
    offset: usize,
    told: TextLogprobs,
}

impl TextScorer {
    pub fn new(tokenizer: &Arc<Tokenizer>) -> TextScorer {
        TextScorer {
            tokenizer: Arc::clone(tokenizer),
            decoder: StreamDecoder::new(Arc::clone(tokenizer), true),
            offset: 0,
            told: TextLogprobs::default(),
        }
    }

    /// An echoed prompt, whose first token has no score. Where that was put in front of the
    /// client's text, it has no text there.
    pub fn prompt(&mut self, first: u32, has_text: bool, rest: &[ScoredToken]) {
        let mut decoder = StreamDecoder::new(Arc::clone(&self.tokenizer), false);
        self.add(first, None, None);
        if has_text {
            self.offset += characters(decoder.push(first));
        }
        for scored in rest {
            self.add_scored(scored);
            self.offset += characters(decoder.push(scored.token_id));
        }
        self.offset += characters(decoder.finish());
    }

    /// A token of the completion.
    pub fn token(&mut self, scored: &ScoredToken) {
        self.add_scored(scored);
        self.offset += characters(self.decoder.push(scored.token_id));
    }

    fn add_scored(&mut self, scored: &ScoredToken) {
        let mut top = ByText(Vec::new());
        for &(id, logprob) in &scored.top {
            top.add(token_text(&self.tokenizer, id), logprob);
        }
        // As OpenAI has it, the token itself is always among them.
        top.add(token_text(&self.tokenizer, scored.token_id), scored.logprob);
        self.add(scored.token_id, Some(finite(scored.logprob)), Some(top));
    }

    fn add(&mut self, token_id: u32, logprob: Option<f32>, top: Option<ByText>) {
        let told = &mut self.told;
        told.text_offset.push(self.offset);
        told.tokens.push(token_text(&self.tokenizer, token_id));
        told.token_logprobs.push(logprob);
        told.top_logprobs.push(top);
    }

    /// What has been added since it was last asked for.
    pub fn take(&mut self) -> TextLogprobs {
        std::mem::take(&mut self.told)
    }
}

/// Tokens that the decoder refuses have ended the request elsewhere.
fn characters(piece: text::Result<String>) -> usize {
    piece.map_or(0, |piece| piece.chars().count())
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

//! What can be wrong with a request or with the settings of an engine.

use std::fmt;

/// An error of this crate. All of them come from the caller's settings; none leaves a trace in the
/// engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// A field of [`EngineConfig`](crate::EngineConfig).
    Config {
        field: &'static str,
        value: usize,
        message: &'static str,
    },
    /// A prompt without tokens: there is nothing to predict from.
    EmptyPrompt { sequence: u64 },
    /// Prompt and completion together exceed what the model or the cache can hold, in tokens.
    TooLong {
        sequence: u64,
        prompt_tokens: usize,
        max_tokens: usize,
        max_position_embeddings: usize,
        cache_tokens: usize,
    },
    /// A token id outside the vocabulary, at `position` of `field`.
    TokenId {
        sequence: u64,
        field: &'static str,
        position: usize,
        token_id: u32,
        vocab_size: usize,
    },
    /// A field of [`SamplingParams`](crate::SamplingParams).
    SamplingParams {
        sequence: u64,
        field: &'static str,
        value: String,
        allowed: &'static str,
    },
}

impl Error {
    /// The process exit code for this error: 2, usage or configuration.
    pub fn exit_code(&self) -> u8 {
        2
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config {
                field,
                value,
                message,
            } => write!(f, "engine configuration: `{field}` is {value}: {message}"),
            Error::EmptyPrompt { sequence } => write!(
                f,
                "sequence {sequence}: the prompt is empty; give at least one token, such as the \
                 one that begins a text"
            ),
            Error::TooLong {
                sequence,
                prompt_tokens,
                max_tokens,
                max_position_embeddings,
                cache_tokens,
            } => write!(
                f,
                "sequence {sequence}: a prompt of {prompt_tokens} tokens and `max_tokens` \
                 {max_tokens} exceed {}; the model has {max_position_embeddings} positions \
                 (`max_position_embeddings`) and the cache holds {cache_tokens} tokens; shorten \
                 either, or enlarge the cache if that is the smaller",
                (*max_position_embeddings).min(*cache_tokens)
            ),
            Error::TokenId {
                sequence,
                field,
                position,
                token_id,
                vocab_size,
            } => write!(
                f,
                "sequence {sequence}: `{field}` holds token id {token_id} at position {position}, \
                 but `vocab_size` is {vocab_size}; check that tokenizer and model belong together"
            ),
            Error::SamplingParams {
                sequence,
                field,
                value,
                allowed,
            } => write!(
                f,
                "sequence {sequence}: `{field}` is {value}; it must be {allowed}"
            ),
        }
    }
}

impl std::error::Error for Error {}

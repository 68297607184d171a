//! Tokens and back: `tokenizer.json`, chat templates, and where thinking ends.
//!
//! Files of other people's models come through here, so everything is bounded: sizes, work, and
//! panics of the libraries underneath, which become errors.
#![forbid(unsafe_code)]

mod chat_template;
mod gguf;
mod reasoning;
mod stop;
mod tokenizer;
mod tool_calls;
mod word_level;

use std::fmt;
use std::path::PathBuf;

pub use chat_template::{ChatTemplate, Message, Prompt, REASONING_TEMPLATE, TEMPLATE_KWARGS};
pub use gguf::{TokenizerParts, parts_of, tokenizer_json};
pub use reasoning::{Piece, ReasoningSplitter, opens_thinking, split_reasoning};
pub use stop::{Passed, StopMatcher};
pub use tokenizer::{AddedToken, MAX_ENCODE_BYTES, MAX_TOKENIZER_BYTES, StreamDecoder, Tokenizer};
pub use tool_calls::{AnswerPiece, ToolCallSplitter, ToolFormat};
pub use word_level::{TokenizerConfig, tokenizer_config, word_level};

pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, where, and what to do.
#[derive(Debug)]
pub enum Error {
    /// A file that cannot be read.
    File { path: PathBuf, reason: String },
    /// Something beyond a limit of this crate.
    TooLarge {
        what: &'static str,
        bytes: u64,
        limit: u64,
    },
    /// A `tokenizer.json` that is not one, or a text that it cannot handle.
    Tokenizer { reason: String },
    /// A vocabulary from which no tokenizer can be made.
    Vocabulary { word: String, reason: &'static str },
    /// A chat template that does not parse or does not render.
    Template { reason: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { path, reason } => {
                write!(
                    f,
                    "{}: {reason}; check the path and the file",
                    path.display()
                )
            }
            Error::TooLarge { what, bytes, limit } => {
                write!(
                    f,
                    "{what} has {bytes} bytes and the limit is {limit}; give less"
                )
            }
            Error::Tokenizer { reason } => {
                write!(
                    f,
                    "tokenizer.json: {reason}; download or export the tokenizer again"
                )
            }
            Error::Vocabulary { word, reason } => {
                write!(
                    f,
                    "vocabulary: word {word:?} {reason}; mend the list of words"
                )
            }
            Error::Template { reason } => {
                write!(
                    f,
                    "chat_template: {reason}; mend it in tokenizer_config.json"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

//! What can go wrong between this crate and its input.

use std::fmt;

/// An error of this crate. Broken invariants panic; everything that a user or a file gives is one
/// of these.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// A chip that the catalogue does not have.
    UnknownChip {
        name: String,
        /// Keys of the catalogue that are spelt alike, best first; may be empty.
        nearest: Vec<String>,
    },
    /// A model that no preset has.
    UnknownModel {
        name: String,
        /// Names of presets that are spelt alike, best first; may be empty.
        nearest: Vec<String>,
    },
    /// A field of a `config.json`, or of a preset.
    Config { field: String, message: String },
    /// A chip that lacks what a job needs, as far as the catalogue knows.
    Chip(String),
    /// A layout that does not divide model, chips or batch; `item` is the part that is wrong.
    Layout { item: String, message: String },
    /// A model that the chips cannot hold: the whole sentence.
    DoesNotFit(String),
    /// What a user asks or claims that cannot be reckoned with: the part, and what is wrong.
    Asked { what: String, message: String },
    /// A table of data that cannot be read.
    Data {
        /// As the user named it, or the name of a table that ships with the program.
        file: String,
        /// Counted from 1, the header included; 0 where it concerns the file as a whole.
        line: u64,
        /// Empty where it concerns the line as a whole.
        field: String,
        message: String,
    },
}

impl Error {
    pub(crate) fn layout(item: &str, message: impl Into<String>) -> Error {
        Error::Layout {
            item: item.to_string(),
            message: message.into(),
        }
    }

    pub(crate) fn config(field: &str, message: impl Into<String>) -> Error {
        Error::Config {
            field: field.to_string(),
            message: message.into(),
        }
    }

    pub(crate) fn asked(what: &str, message: impl Into<String>) -> Error {
        Error::Asked {
            what: what.to_string(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::UnknownChip { name, nearest } => {
                write!(f, "no chip is called {name:?}")?;
                match nearest.as_slice() {
                    [] => Ok(()),
                    nearest => write!(f, "; nearest: {}", nearest.join(", ")),
                }
            }
            Error::UnknownModel { name, nearest } => {
                write!(
                    f,
                    "no preset is called {name:?}, and no file or folder either"
                )?;
                match nearest.as_slice() {
                    [] => Ok(()),
                    nearest => write!(f, "; nearest: {}", nearest.join(", ")),
                }
            }
            Error::Config { field, message } => write!(f, "{field}: {message}"),
            Error::Layout { item, message } => write!(f, "layout {item}: {message}"),
            Error::Chip(message) | Error::DoesNotFit(message) => write!(f, "{message}"),
            Error::Asked { what, message } => write!(f, "{what}: {message}"),
            Error::Data {
                file,
                line,
                field,
                message,
            } => {
                write!(f, "{file}")?;
                if *line > 0 {
                    write!(f, ", line {line}")?;
                }
                if !field.is_empty() {
                    write!(f, ", {field}")?;
                }
                write!(f, ": {message}")
            }
        }
    }
}

impl std::error::Error for Error {}

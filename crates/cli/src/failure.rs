//! Why the program stops: what happened, what to do next, and the exit code.
//!
//! 1 failure, 2 usage or configuration, 3 bad input file, 4 out of disk or memory, 5 locked,
//! 130 or 143 stopped by a signal after a clean save.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::Path;

use model::Error as ModelError;

use crate::plain::plain;

pub type Outcome = Result<(), Failure>;

/// The end of a command that did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// Whoever read our output has gone; that is their right.
    BrokenPipe,
    /// SIGINT or SIGTERM, after a clean save.
    Stopped { signal: i32, saved: String },
    Error {
        code: u8,
        cause: String,
        /// Further lines of the cause.
        more: Vec<String>,
        advice: String,
    },
}

pub const FAILURE: u8 = 1;
pub const USAGE: u8 = 2;
pub const BAD_INPUT: u8 = 3;
pub const RESOURCES: u8 = 4;
pub const LOCKED: u8 = 5;

impl From<plan::error::Error> for Failure {
    fn from(error: plan::error::Error) -> Failure {
        use plan::error::Error;
        let (code, advice) = match &error {
            Error::UnknownChip { .. } => (USAGE, "`bruchteil chips` lists all"),
            Error::UnknownModel { .. } => (USAGE, "`bruchteil plan --list` names all presets"),
            Error::Config { .. } => (BAD_INPUT, "mend that field of the configuration"),
            Error::Chip(_) => (
                USAGE,
                "take another chip or precision; see `bruchteil chips`",
            ),
            Error::Layout { .. } => (USAGE, "leave --layout out to have all layouts searched"),
            Error::DoesNotFit(_) => (USAGE, "take more chips, or chips with more memory"),
            Error::Asked { .. } => (USAGE, "change it; `--help` says what is meant"),
            Error::Data { .. } => (BAD_INPUT, "mend that file there"),
        };
        Failure::new(code, error, advice)
    }
}

impl Failure {
    pub fn new(code: u8, cause: impl Display, advice: impl Display) -> Failure {
        Failure::Error {
            code,
            cause: cause.to_string(),
            more: Vec::new(),
            advice: advice.to_string(),
        }
    }

    pub fn usage(cause: impl Display, advice: impl Display) -> Failure {
        Failure::new(USAGE, cause, advice)
    }

    /// An input file of which something is wrong, named in `cause` after the path.
    pub fn input(path: &Path, cause: impl Display, advice: impl Display) -> Failure {
        Failure::new(BAD_INPUT, format!("{}: {cause}", path.display()), advice)
    }

    /// A `tokenizer.json` or a chat template, and the file that it is in.
    pub fn text(path: &Path, error: text::Error) -> Failure {
        let cause = match error {
            text::Error::Tokenizer { reason } => reason,
            text::Error::Template { reason } => format!("chat template: {reason}"),
            other => other.to_string(),
        };
        Failure::input(path, cause, "mend it, or fetch or export the file again")
    }

    /// The same with other advice.
    pub fn advise(self, advice: impl Display) -> Failure {
        match self {
            Failure::Error {
                code, cause, more, ..
            } => Failure::Error {
                code,
                cause,
                more,
                advice: advice.to_string(),
            },
            other => other,
        }
    }

    /// A line of an input file, counted from 1.
    pub fn line(path: &Path, line: usize, cause: impl Display) -> Failure {
        let advice = "mend that line; nothing was written";
        Failure::input(path, format!("line {line}: {cause}"), advice)
    }

    /// What the shell sees.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::BrokenPipe => 0,
            Failure::Stopped { signal, .. } => 128 + u8::try_from(*signal).unwrap_or(0),
            Failure::Error { code, .. } => *code,
        }
    }

    /// Cause and advice as they are, for a field of JSON.
    pub fn words(&self) -> String {
        match self {
            Failure::BrokenPipe => String::new(),
            Failure::Stopped { saved, .. } => saved.clone(),
            Failure::Error {
                cause,
                more,
                advice,
                ..
            } => {
                let lines: Vec<&str> = std::iter::once(cause)
                    .chain(more)
                    .map(String::as_str)
                    .collect();
                format!("error: {}; help: {advice}", lines.join("; "))
            }
        }
    }

    /// The lines for standard error, without the program's name; nothing in them is obeyed by a
    /// terminal, whatever file it came from.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Failure::BrokenPipe => Vec::new(),
            Failure::Stopped { saved, .. } => {
                vec![format!("stopped by a signal; {}", plain(saved))]
            }
            Failure::Error {
                cause,
                more,
                advice,
                ..
            } => {
                let cause = std::iter::once(cause).chain(more);
                let cause: Vec<String> = cause.map(|line| plain(line)).collect();
                let cause = format!("error: {}", cause.join("\n"));
                vec![cause, format!("  help: {}", plain(advice))]
            }
        }
    }
}

/// Turns an error of the disk into a failure that names the file.
pub fn disk<'a>(path: &'a Path, action: &'a str) -> impl FnOnce(io::Error) -> Failure + 'a {
    move |error| {
        let (code, advice) = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                (RESOURCES, "free some room, or choose another place")
            }
            _ => (FAILURE, "check that the place exists and is writable"),
        };
        Failure::new(
            code,
            format!("{}: {action} failed: {error}", path.display()),
            advice,
        )
    }
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::BrokenPipe,
            ErrorKind::StorageFull => Failure::new(
                RESOURCES,
                format!("standard output: {error}"),
                "free some room, or write elsewhere",
            ),
            _ => Failure::new(
                FAILURE,
                format!("standard output: {error}"),
                "check where the output goes",
            ),
        }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Failure {
        let advice = match &error {
            ModelError::Usage(_) => "give another path or option; `--help` shows an example",
            ModelError::Config { path: None, .. } => "mend that field of the run's configuration",
            ModelError::Config { .. } => "mend that field of config.json, or fetch the file again",
            ModelError::File { .. } => {
                "give a model folder (config.json, model.safetensors, tokenizer.json) whose files \
                 are whole, or a GGUF file: check the path, or fetch or export it again"
            }
            ModelError::Mismatch { .. } => "fetch weights and configuration again from one place",
            ModelError::Resources { .. } => "free disk or memory, or choose a smaller model",
            ModelError::Write { .. } => "check that the place exists and is writable",
            ModelError::Stopped => "start it again",
        };
        let text = error.to_string();
        // Of these alone the lines are our own; names in them are escaped already.
        let mut lines = match &error {
            ModelError::Mismatch { .. } => text.lines().map(str::to_string).collect(),
            _ => vec![text],
        };
        let more = lines.split_off(1);
        Failure::Error {
            code: error.exit_code(),
            cause: lines.remove(0),
            more,
            advice: advice.to_string(),
        }
    }
}

impl From<text::Error> for Failure {
    fn from(error: text::Error) -> Failure {
        let (code, advice) = match &error {
            text::Error::File { .. } => (BAD_INPUT, "check the path, or fetch the file again"),
            text::Error::TooLarge { .. } => (BAD_INPUT, "give less, or in parts"),
            text::Error::Vocabulary { .. } => (FAILURE, "this is a bug: please report it"),
            text::Error::Tokenizer { .. } | text::Error::Template { .. } => {
                (BAD_INPUT, "fetch or export the tokenizer's files again")
            }
        };
        Failure::new(code, error, advice)
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Failure {
        Failure::new(
            error.exit_code(),
            &error,
            "`--help` shows what the options take",
        )
    }
}

impl From<train::Error> for Failure {
    fn from(error: train::Error) -> Failure {
        use train::Error;
        let code = error.exit_code();
        let advice = match error {
            Error::Model(error) => return error.into(),
            Error::Engine(error) => return error.into(),
            Error::Text(error) => return error.into(),
            Error::Config(_) => "mend that setting",
            Error::Input { .. } => "check the path, or choose another directory",
            Error::Disk { .. } => "make room or choose a writable place, then use --resume",
            Error::Locked { .. } => "wait for the other run, or choose another --out",
            Error::NonFinite { .. } => "use --resume with a lower learning rate in a new --out",
        };
        Failure::new(code, error, advice)
    }
}

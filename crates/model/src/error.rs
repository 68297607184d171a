//! What can go wrong between this crate and the disk.

use std::fmt;
use std::path::{Path, PathBuf};

/// How many differences [`Error::Mismatch`] prints before it only counts the rest.
const SHOWN_DIFFERENCES: usize = 1000;

/// An error of this crate. Wrong shapes inside the program panic; everything that comes from a
/// file, from the caller's settings or from the machine is one of these.
#[derive(Debug)]
pub enum Error {
    /// The caller asked for something that cannot be done, such as replacing a folder that is no
    /// model.
    Usage(String),
    /// A field of `config.json`, or of a configuration made in code (`path` is `None`).
    Config {
        path: Option<PathBuf>,
        field: String,
        message: String,
    },
    /// An input file that is missing, truncated or malformed.
    File { path: PathBuf, message: String },
    /// Weights that do not fit the configuration: every difference, one line each.
    Mismatch {
        path: PathBuf,
        differences: Vec<String>,
    },
    /// Disk or memory ran out.
    Resources { path: PathBuf, message: String },
    /// The caller asked to stop; what was begun has been removed.
    Stopped,
    /// A write failed for a reason other than lack of room.
    Write {
        path: PathBuf,
        action: &'static str,
        source: std::io::Error,
    },
}

impl Error {
    /// The process exit code for this error: 1 failure, 2 usage or configuration, 3 bad input
    /// file, 4 out of resources.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Config { path: None, .. } => 2,
            Error::Config { path: Some(_), .. } | Error::File { .. } | Error::Mismatch { .. } => 3,
            Error::Resources { .. } => 4,
            Error::Write { .. } | Error::Stopped => 1,
        }
    }

    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Error {
        Error::File {
            path: path.to_path_buf(),
            message: message.into(),
        }
    }

    /// [`Error::Mismatch`], if there are any differences.
    pub(crate) fn mismatch(path: &Path, differences: Vec<String>) -> Result<(), Error> {
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Mismatch {
            path: path.to_path_buf(),
            differences,
        })
    }

    pub(crate) fn field(field: &str, message: impl Into<String>) -> Error {
        Error::Config {
            path: None,
            field: field.to_string(),
            message: message.into(),
        }
    }

    /// Says which file a configuration error came from; other errors know already.
    pub(crate) fn in_file(self, file: &Path) -> Error {
        match self {
            Error::Config {
                path: None,
                field,
                message,
            } => Error::Config {
                path: Some(file.to_path_buf()),
                field,
                message,
            },
            other => other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(message) => f.write_str(message),
            Error::Config {
                path,
                field,
                message,
            } => {
                match path {
                    Some(path) => write!(f, "{}: ", path.display())?,
                    None => f.write_str("model configuration: ")?,
                }
                if !field.is_empty() {
                    write!(f, "`{}`: ", shown(field))?;
                }
                f.write_str(message)
            }
            Error::File { path, message } | Error::Resources { path, message } => {
                write!(f, "{}: {message}", path.display())
            }
            Error::Stopped => f.write_str("stopped as asked; nothing was written"),
            Error::Mismatch { path, differences } => fmt_mismatch(f, path, differences),
            Error::Write {
                path,
                action,
                source,
            } => {
                write!(
                    f,
                    "{}: {action} failed: {source}; check that the place exists and is writable",
                    path.display()
                )
            }
        }
    }
}

fn fmt_mismatch(f: &mut fmt::Formatter<'_>, path: &Path, differences: &[String]) -> fmt::Result {
    let count = differences.len();
    let noun = if count == 1 {
        "difference"
    } else {
        "differences"
    };
    write!(
        f,
        "{}: the weights do not fit their configuration, {count} {noun}; check that both belong to \
         the same model",
        path.display()
    )?;
    for difference in differences.iter().take(SHOWN_DIFFERENCES) {
        write!(f, "\n  {difference}")?;
    }
    if count > SHOWN_DIFFERENCES {
        write!(f, "\n  and {} more", count - SHOWN_DIFFERENCES)?;
    }
    Ok(())
}

/// While a file is written, only `io::Error` comes through; this one is taken out again behind it.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::other(error)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Write { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A name out of a file we did not write, made fit to print: control characters escaped, and cut
/// so that a hostile name of megabytes cannot flood the terminal.
pub(crate) fn shown(name: &str) -> String {
    const LONGEST: usize = 160;
    let mut escaped: String = name
        .chars()
        .take(LONGEST)
        .flat_map(|c| {
            let quote = matches!(c, '"' | '\'' | '\\');
            let escaped = (!quote).then(|| c.escape_debug());
            quote
                .then_some(c)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect();
    if name.chars().nth(LONGEST).is_some() {
        escaped.push('…');
    }
    escaped
}

/// A parser's error, which may quote the file at any length: control characters escaped, and the
/// middle cut out, because the place stands at the end.
pub(crate) fn brief_reason(error: &impl fmt::Display) -> String {
    const START: usize = 240;
    const END: usize = 80;
    let text = error.to_string();
    let length = text.chars().count();
    let mut brief = String::new();
    for (at, character) in text.chars().enumerate() {
        if length > START + END && (START..length - END).contains(&at) {
            if at == START {
                brief.push('…');
            }
        } else if character.is_control() {
            brief.extend(character.escape_debug());
        } else {
            brief.push(character);
        }
    }
    brief
}

//! What can go wrong in a run.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// An error of this crate. Wrong shapes inside the program panic; settings, files and the machine
/// give one of these.
#[derive(Debug)]
pub enum Error {
    /// A setting that cannot be used; says where and what to change.
    Config(String),
    /// A file of a run that is missing, damaged or of another run.
    Input {
        path: PathBuf,
        message: String,
    },
    /// A write that failed; the exit code tells whether for lack of room. What to do about it
    /// depends on how the run was started, so whoever started it says so.
    Disk {
        path: PathBuf,
        action: &'static str,
        source: std::io::Error,
    },
    /// Another process trains in this run directory.
    Locked {
        path: PathBuf,
        pid: Option<u32>,
    },
    /// Too many steps in a row had a loss or a gradient that is not finite.
    NonFinite {
        step: u64,
        in_a_row: u32,
    },
    Model(model::Error),
    Engine(engine::Error),
    Text(text::Error),
}

impl Error {
    /// The process exit code: 1 failure, 2 configuration, 3 bad input, 4 no room on the
    /// disk, 5 locked.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => 2,
            Error::Input { .. } | Error::Text(_) => 3,
            Error::Disk { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => 4,
                _ => 1,
            },
            Error::Locked { .. } => 5,
            Error::Model(error) => error.exit_code(),
            Error::Engine(error) => error.exit_code(),
            Error::NonFinite { .. } => 1,
        }
    }

    pub(crate) fn input(path: &Path, message: impl Into<String>) -> Error {
        Error::Input {
            path: path.to_path_buf(),
            message: message.into(),
        }
    }

    pub(crate) fn disk<'a>(
        path: &'a Path,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Disk {
            path: path.to_path_buf(),
            action,
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(message) => f.write_str(message),
            Error::Input { path, message } => write!(f, "{}: {message}", path.display()),
            Error::Disk {
                path,
                action,
                source,
            } => write!(f, "{}: {action} failed: {source}", path.display()),
            Error::Locked { path, pid } => {
                let holder = pid.map_or("another process".to_string(), |pid| {
                    format!("process {pid}")
                });
                write!(
                    f,
                    "{}: {holder} is training in this directory; wait for it or choose another",
                    path.display()
                )
            }
            Error::NonFinite { step, in_a_row } => write!(
                f,
                "step {step}: {in_a_row} steps in a row had a loss or gradient that is not finite; \
                 resume from the last checkpoint with a lower learning_rate"
            ),
            Error::Model(error) => error.fmt(f),
            Error::Engine(error) => error.fmt(f),
            Error::Text(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<model::Error> for Error {
    fn from(error: model::Error) -> Error {
        Error::Model(error)
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Error {
        Error::Engine(error)
    }
}

impl From<text::Error> for Error {
    fn from(error: text::Error) -> Error {
        Error::Text(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lack_of_room_is_a_lack_of_resources() {
        for (kind, code) in [
            (ErrorKind::StorageFull, 4),
            (ErrorKind::QuotaExceeded, 4),
            (ErrorKind::FileTooLarge, 4),
            (ErrorKind::PermissionDenied, 1),
            (ErrorKind::NotFound, 1),
            (ErrorKind::ReadOnlyFilesystem, 1),
        ] {
            let error = Error::disk(Path::new("run/latest"), "renaming")(kind.into());
            assert_eq!(error.exit_code(), code, "{kind:?}");
            let text = error.to_string();
            assert!(text.starts_with("run/latest: renaming failed: "), "{text}");
            assert!(!text.contains("make room"), "{text}");
        }
    }
}

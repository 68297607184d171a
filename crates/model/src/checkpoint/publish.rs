//! Changes to the disk that are whole or absent: write beside, sync, rename.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Large enough that a full checkpoint is not slowed by system calls.
const BUFFER_BYTES: usize = 1 << 20;

/// Every change to the disk passes through here, announced before it happens, so that a test can
/// fail or stop each one of them in turn.
pub(crate) struct Disk<'a> {
    before: &'a mut dyn FnMut(&'static str) -> io::Result<()>,
    /// Bytes that the whole operation needs, for the message when there is no room.
    needed: u64,
}

impl<'a> Disk<'a> {
    pub fn new(needed: u64, before: &'a mut dyn FnMut(&'static str) -> io::Result<()>) -> Self {
        Disk { before, needed }
    }

    fn fail(&self, path: &Path, action: &'static str, source: io::Error) -> Error {
        // What fills a file may fail in reading another one.
        let source = match source.downcast::<Error>() {
            Ok(error) => return error,
            Err(source) => source,
        };
        let path = path.to_path_buf();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                let message = format!(
                    "no room ({source}): {} bytes needed in all; free some or choose another place",
                    self.needed
                );
                Error::Resources { path, message }
            }
            _ => Error::Write {
                path,
                action,
                source,
            },
        }
    }

    fn attempt(
        &mut self,
        path: &Path,
        action: &'static str,
        change: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Error> {
        (self.before)(action)
            .and_then(|()| change())
            .map_err(|e| self.fail(path, action, e))
    }

    pub fn create_dir(&mut self, path: &Path) -> Result<(), Error> {
        self.attempt(path, "creating the folder", || fs::create_dir(path))
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        self.attempt(to, "renaming into place", || fs::rename(from, to))
    }

    /// Makes the names inside `path` durable.
    pub fn sync_dir(&mut self, path: &Path) -> Result<(), Error> {
        self.attempt(path, "syncing the folder", || File::open(path)?.sync_all())
    }

    /// Writes and syncs a new file at `path`; `fill` gives its bytes.
    pub fn write_file(
        &mut self,
        path: &Path,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        (self.before)("creating the file")
            .and_then(|()| File::create(path))
            .map_err(|e| self.fail(path, "creating the file", e))
            .and_then(|file| self.fill_file(file, path, fill))
    }

    fn fill_file(
        &mut self,
        file: File,
        path: &Path,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let announced = Announced {
            file: &file,
            before: &mut *self.before,
        };
        let mut buffer = BufWriter::with_capacity(BUFFER_BYTES, announced);
        let written = fill(&mut buffer).and_then(|()| buffer.flush());
        // After a failure nothing more may reach the file, which dropping the buffer would try.
        drop(buffer.into_parts());
        written.map_err(|e| self.fail(path, "writing", e))?;
        self.attempt(path, "syncing the file", || file.sync_all())
    }
}

/// A file whose every write is announced.
struct Announced<'a> {
    file: &'a File,
    before: &'a mut dyn FnMut(&'static str) -> io::Result<()>,
}

impl Write for Announced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.before)("writing")?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file whole or not at all: into `.tmp-NAME-PID` beside it, synced, renamed into place.
/// A file that was there before stays as it was until the rename.
///
/// # Errors
/// [`Error::Resources`] when the disk is full, [`Error::Write`] for other failures,
/// [`Error::Usage`] if `path` is no place for a regular file.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut disk_is_fine = |_: &'static str| Ok(());
    let mut disk = Disk::new(bytes.len() as u64, &mut disk_is_fine);
    replace_file(&mut disk, path, &mut |out| out.write_all(bytes))
}

/// As [`write_atomic`], for a file whose bytes `fill` makes.
pub(crate) fn replace_file(
    disk: &mut Disk,
    path: &Path,
    fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let message = format!("{}: not a regular file, so not replaced", path.display());
        return Err(Error::Usage(message));
    }
    let path = behind_links(path);
    for left in left_overs(&path)? {
        // A leftover that cannot be removed harms nobody.
        let _ = fs::remove_file(left);
    }
    let (parent, name) = parent_and_name(&path)?;
    let temporary = parent.join(format!(".tmp-{name}-{}", std::process::id()));
    let done = disk
        .write_file(&temporary, fill)
        .and_then(|()| disk.rename(&temporary, &path))
        .and_then(|()| disk.sync_dir(&parent));
    if done.is_err() {
        // It may never have been created, or be in place already; either way none is left.
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// What killed writers left beside `path`, sorted: `.tmp-NAME-PID` and `.old-NAME-PID` of processes
/// that have ended, or of this one, which is not writing there now.
pub(super) fn left_overs(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let (parent, name) = parent_and_name(path)?;
    let Ok(entries) = fs::read_dir(&parent) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|found| is_left_over(found, &name))
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

fn is_left_over(found: &str, name: &str) -> bool {
    let pid = found
        .strip_prefix(".tmp-")
        .or_else(|| found.strip_prefix(".old-"))
        .and_then(|rest| rest.strip_prefix(name))
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| {
        pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()
    })
}

/// Where a link leads, so that a rename replaces the target and not the link.
pub(super) fn behind_links(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Refuses a link to what is not there: a rename would put something else in the link's place.
///
/// # Errors
/// [`Error::Usage`].
pub(crate) fn refuse_dangling_link(path: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) && !path.exists() {
        let message = format!(
            "{}: a link that leads nowhere; remove it, or choose another place",
            path.display()
        );
        return Err(Error::Usage(message));
    }
    Ok(())
}

/// The folder that holds `path`, and its last component as text.
pub(super) fn parent_and_name(path: &Path) -> Result<(PathBuf, String), Error> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| {
            Error::Usage(format!(
                "{}: not a name that can be written to",
                path.display()
            ))
        })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_reported_with_the_bytes_needed_and_the_path() {
        let path = Path::new("/dev/full");
        if !path.exists() {
            println!("no /dev/full on this system: nothing to test");
            return;
        }
        let mut fine = |_: &'static str| Ok(());
        let mut disk = Disk::new(123_456, &mut fine);
        let error = disk
            .write_file(path, &mut |out| out.write_all(b"some bytes"))
            .unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        assert!(
            text.contains("/dev/full") && text.contains("123456 bytes"),
            "{text}"
        );
    }
}

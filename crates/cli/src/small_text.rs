//! Files that a user names and that are small if they are what they should be.

use std::path::Path;

use crate::failure::Failure;

/// The whole text of a file.
///
/// # Errors
/// There is no such file, it is larger than `largest` bytes, or it is not UTF-8; `advice` says what
/// to give instead.
pub fn read(path: &Path, largest: u64, advice: &str) -> Result<String, Failure> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::input(path, "no name of a file", advice))?;
    let bytes = model::read_small_file_if_there(dir, name, largest)?;
    let bytes = bytes.ok_or_else(|| Failure::input(path, "no such file", advice))?;
    String::from_utf8(bytes)
        .map_err(|error| Failure::input(path, format!("not UTF-8: {error}"), advice))
}

//! The demo's folder: its own or a new one, and for one demo at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use crate::failure::{Failure, LOCKED, disk};

/// Held for as long as this lives.
#[derive(Debug)]
pub struct Place {
    _lock: File,
}

/// Makes the folder where there is none, and takes its lock.
///
/// # Errors
/// Exit code 2 if the folder holds what no demo made, 5 if another demo is at work there.
pub fn take(dir: &Path) -> Result<Place, Failure> {
    check(dir)?;
    fs::create_dir_all(dir).map_err(disk(dir, "creating the folder"))?;
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(disk(&path, "opening"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(locked(dir, &mut file)),
        Err(TryLockError::Error(error)) => return Err(disk(&path, "locking")(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(disk(&path, "writing"))?;
    Ok(Place { _lock: file })
}

fn locked(dir: &Path, file: &mut File) -> Failure {
    let mut holder = String::new();
    // The holder's number is a courtesy; without it the message is still true.
    let _ = file.read_to_string(&mut holder);
    let holder = match holder.trim() {
        "" => "another process".to_string(),
        id => format!("process {id}"),
    };
    let cause = format!("{}: {holder} is at work in this folder", dir.display());
    Failure::new(LOCKED, cause, "wait for it, or choose another --out")
}

/// Refuses to write over what is not a demo's.
fn check(dir: &Path) -> Result<(), Failure> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(disk(dir, "listing the folder"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(disk(dir, "listing the folder"))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    let is_run = |dir: &Path| dir.join("latest").exists() || dir.join("config.toml").exists();
    let holds_run = is_run(dir)
        || ["sft", "grpo"].iter().any(|name| is_run(&dir.join(name)))
        || names.iter().any(|name| name.starts_with("step-"));
    let fresh = names.iter().all(|name| name == "lock");
    if !holds_run && (fresh || has_journal(dir)) {
        return Ok(());
    }
    let what = match holds_run {
        true => "holds a training run",
        false => "is not empty, and no demo made it",
    };
    let cause = format!("{}: {what}; a demo would write over it", dir.display());
    let advice = "choose another --out: a new or empty folder, or one of an earlier demo";
    Err(Failure::usage(cause, advice))
}

/// Whether the folder has a demo's journal, whose lines begin with the stage. A demo that was
/// stopped before its first step left it empty, beside its lock.
fn has_journal(dir: &Path) -> bool {
    let mut start = String::new();
    let read = File::open(dir.join("metrics.jsonl"))
        .and_then(|file| file.take(9).read_to_string(&mut start));
    read.is_ok()
        && match start.as_str() {
            "" => dir.join("lock").exists() && dir.join("samples.jsonl").exists(),
            line => line == "{\"stage\":",
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and texts.
    type Files = &'static [(&'static str, &'static str)];

    const JOURNAL: &str = "{\"stage\":\"sft\",\"step\":0}\n";

    #[test]
    fn a_folder_is_taken_if_it_is_new_empty_or_a_demos() {
        let root = std::env::temp_dir().join(format!("bruchteil-place-{}", std::process::id()));
        let cases: [(&str, Files, Option<u8>); 9] = [
            ("absent", &[], None),
            ("lock-alone", &[("lock", "1\n")], None),
            (
                "stopped",
                &[("lock", ""), ("metrics.jsonl", ""), ("samples.jsonl", "")],
                None,
            ),
            (
                "demo",
                &[("metrics.jsonl", JOURNAL), ("sft/config.json", "{}")],
                None,
            ),
            ("mine", &[("thesis.txt", "all of it")], Some(2)),
            ("other-log", &[("metrics.jsonl", "{\"step\":0}\n")], Some(2)),
            (
                "run",
                &[
                    ("lock", ""),
                    ("metrics.jsonl", ""),
                    ("step-0/state.json", "{}"),
                ],
                Some(2),
            ),
            (
                "begun",
                &[("lock", ""), ("metrics.jsonl", ""), ("config.toml", "")],
                Some(2),
            ),
            (
                "runs",
                &[("metrics.jsonl", JOURNAL), ("sft/latest", "step-3")],
                Some(2),
            ),
        ];
        for (name, files, expected) in cases {
            let dir = root.join(name);
            for (file, text) in files {
                let path = dir.join(file);
                fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                fs::write(&path, text).expect("a file");
            }
            let found = take(&dir).map_err(|failure| failure.exit_code());
            assert_eq!(found.as_ref().err().copied(), expected, "{name}");
            if found.is_ok() {
                let again = take(&dir).expect_err("it is held");
                assert_eq!(again.exit_code(), 5, "{name}");
                drop(found);
                take(&dir).expect("it is free again, and still a demo's or new");
            } else {
                for (file, text) in files {
                    let left = fs::read_to_string(dir.join(file)).expect("the file");
                    assert_eq!(&left, text, "{name}: {file} was touched");
                }
            }
        }
        let _ = fs::remove_dir_all(&root);
    }
}

//! What may be in a run directory, and what a killed trainer leaves there.
//!
//! A user may name any directory for a run. So nothing is cut or removed but what this crate wrote,
//! known by its exact name.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::checkpoint::{self, OLD, SAVING};
use crate::error::Error;
use crate::run_config::RunConfig;

const LOGS: [&str; 2] = ["metrics.jsonl", "samples.jsonl"];

/// Accepts a directory that is absent, empty or a run.
///
/// # Errors
/// [`Error::Config`] naming something that is not a run's.
pub(super) fn check_place(path: &Path) -> Result<(), Error> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::disk(path, "looking into the directory")(error)),
        Ok(found) if !found.is_dir() => {
            let message = "a file, not a directory; choose a new or empty directory";
            return Err(Error::Config(format!("{}: {message}", path.display())));
        }
        Ok(_) => {}
    }
    let mut names = names(path)?;
    names.retain(|name| !is_beginning(path, name));
    let Some(stranger) = names.iter().min() else {
        return Ok(());
    };
    if is_run(path)? {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{}: holds `{stranger}` and is no run with a checkpoint, so what is in it would be lost; \
         choose a new or empty directory",
        path.display()
    )))
}

/// What a trainer makes before `config.toml` is there, in which no step is recorded yet.
fn is_beginning(path: &Path, name: &str) -> bool {
    match name {
        "lock" => is_lock(&path.join(name)),
        _ if LOGS.contains(&name) => is_empty_file(&path.join(name)),
        _ => temporary_of(name) == Some("config.toml"),
    }
}

/// A lock and settings of ours; and before the first checkpoint no step, since the trainer saves
/// before it steps.
fn is_run(path: &Path) -> Result<bool, Error> {
    let settings = path.join("config.toml");
    if !is_lock(&path.join("lock")) || !settings.is_file() {
        return Ok(false);
    }
    let log_is_empty = |name: &&str| {
        let log = path.join(name);
        !log.exists() || is_empty_file(&log)
    };
    // Settings beside a checkpoint are read and compared later, where what is wrong can be said.
    Ok(!checkpoints(path)?.is_empty()
        || (LOGS.iter().all(log_is_empty) && RunConfig::read(&settings).is_ok()))
}

/// A process id, or nothing where the trainer was killed before it wrote one.
fn is_lock(path: &Path) -> bool {
    let is_small = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() < 20);
    is_small
        && fs::read_to_string(path)
            .is_ok_and(|text| text.is_empty() || text.trim_end().parse::<u32>().is_ok())
}

fn is_empty_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0)
}

/// Removes what a killed trainer was writing, and puts back a checkpoint that it was about to
/// replace; whoever holds the lock knows that nobody is writing now.
pub(super) fn sweep(path: &Path) -> Result<(), Error> {
    for name in names(path)? {
        let place = path.join(&name);
        if let Some(step) = step_of(&name, &format!("{OLD}step-")) {
            put_back(&place, &path.join(folder(step)))?;
        } else if is_left_over(&name) {
            match place.is_dir() {
                true => checkpoint::remove_folder(&place)?,
                false => fs::remove_file(&place).map_err(Error::disk(&place, "removing"))?,
            }
        }
    }
    Ok(())
}

fn put_back(old: &Path, place: &Path) -> Result<(), Error> {
    if place.exists() {
        return checkpoint::remove_folder(old);
    }
    fs::rename(old, place).map_err(Error::disk(place, "putting back"))
}

fn is_left_over(name: &str) -> bool {
    let is_saving = |name: &str| step_of(name, &format!("{SAVING}step-")).is_some();
    let is_ours = |name: &str| ["config.toml", "latest"].contains(&name) || is_saving(name);
    is_saving(name) || temporary_of(name).is_some_and(is_ours)
}

/// What was being written as `.tmp-NAME-PID`.
fn temporary_of(name: &str) -> Option<&str> {
    let (name, pid) = name.strip_prefix(".tmp-")?.rsplit_once('-')?;
    let is_number = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(name)
}

pub(super) fn folder(step: u64) -> String {
    format!("step-{step}")
}

/// The number after `prefix`, written as this crate writes it.
fn step_of(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    let step: u64 = digits.parse().ok()?;
    (digits == step.to_string()).then_some(step)
}

/// The steps of all checkpoints, newest first.
pub(super) fn checkpoints(path: &Path) -> Result<Vec<u64>, Error> {
    let names = names(path)?;
    let mut steps: Vec<u64> = names
        .iter()
        .filter_map(|name| step_of(name, "step-"))
        .collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

pub(super) fn names(path: &Path) -> Result<Vec<String>, Error> {
    let unreadable =
        |error: std::io::Error| Error::input(path, format!("cannot be listed: {error}"));
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    Ok(names)
}

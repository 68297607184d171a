//! The directory of one stage of a run.
//!
//! ```text
//! lock           held while a trainer runs; holds its process id
//! config.toml    all settings of the run
//! metrics.jsonl  one line per step, each step once
//! samples.jsonl  completions kept for a reader
//! step-N/        the state after N steps: a Hugging Face folder with moments and counters
//! latest         the name of the newest step-N
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::{self, Checkpoint, Contents, State};
use crate::error::Error;
use crate::examples::check_examples;
use crate::progress::Stage;
use crate::run_config::RunConfig;
use crate::samples::Sample;
use crate::setup::{Setup, tokenizer_files};

use place::{check_place, checkpoints, folder, sweep};

mod place;

/// A run directory, locked for as long as this lives.
pub struct RunDir {
    path: PathBuf,
    stage: &'static str,
    /// `config.toml` as it ought to be.
    settings: String,
    every_steps: u64,
    keep: usize,
    seed: u64,
    config_blake3: String,
    tokenizer_json: String,
    metrics: Log,
    samples: Log,
    /// The lock ends with the file.
    _lock: File,
}

impl RunDir {
    /// Opens a directory for stage `S`, making it where there is none, and takes its lock. What a
    /// killed trainer left half-written is removed. Nothing is made or changed in a directory that
    /// holds anything else than a run.
    ///
    /// # Errors
    /// [`Error::Config`] if the directory is neither empty nor a run, or if there are no worked
    /// texts for these settings; [`Error::Locked`] if another trainer is at work there;
    /// [`Error::Input`] if it holds a run of other settings, each difference named;
    /// [`Error::Disk`].
    pub fn open<S: Stage>(path: &Path, setup: &Setup) -> Result<RunDir, Error> {
        check_place(path)?;
        if S::NAME == "sft" {
            check_examples(setup, &setup.model_config()?)?;
        }
        fs::create_dir_all(path).map_err(Error::disk(path, "creating the run directory"))?;
        let lock = lock(&path.join("lock"))?;
        sweep(path)?;
        let ours = relevant(&setup.config, S::NAME).to_toml();
        if !checkpoints(path)?.is_empty() {
            compare_settings(&path.join("config.toml"), S::NAME, &ours)?;
        }
        Ok(RunDir {
            path: path.to_path_buf(),
            stage: S::NAME,
            settings: setup.config.to_toml(),
            every_steps: setup.config.checkpoint.every_steps,
            keep: setup.config.checkpoint.keep,
            seed: setup.config.seed,
            config_blake3: blake3::hash(ours.as_bytes()).to_hex().to_string(),
            tokenizer_json: setup.tokenizer.to_json()?,
            metrics: Log::open(path.join("metrics.jsonl"))?,
            samples: Log::open(path.join("samples.jsonl"))?,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest whole checkpoint, and a line for each newer one that is damaged. `None`: nothing
    /// is saved yet. The logs are cut back to where it was saved, `latest` is moved to it, and
    /// `config.toml` is written; so this is called once, before the first step.
    ///
    /// # Errors
    /// [`Error::Input`] if all checkpoints are damaged, or it is one of another stage or settings.
    pub fn resume(&mut self) -> Result<Option<(Checkpoint, Vec<String>)>, Error> {
        let mut notes = Vec::new();
        let mut last = None;
        for step in checkpoints(&self.path)? {
            match Checkpoint::read(&self.path.join(folder(step))) {
                Ok(found) => {
                    self.check(&found.state, step)?;
                    self.write_settings()?;
                    self.metrics.cut(found.state.metrics_bytes)?;
                    self.samples.cut(found.state.samples_bytes)?;
                    self.point_at(&folder(step))?;
                    return Ok(Some((found, notes)));
                }
                Err(error) => {
                    notes.push(format!(
                        "step-{step} is damaged and was passed over: {error}"
                    ));
                    last = Some(error);
                }
            }
        }
        if let Some(error) = last {
            return Err(error);
        }
        self.write_settings()?;
        Ok(None)
    }

    fn point_at(&self, name: &str) -> Result<(), Error> {
        let latest = self.path.join("latest");
        Ok(model::write_atomic(
            &latest,
            format!("{name}\n").as_bytes(),
        )?)
    }

    fn write_settings(&self) -> Result<(), Error> {
        Ok(model::write_atomic(
            &self.path.join("config.toml"),
            self.settings.as_bytes(),
        )?)
    }

    /// Whether a checkpoint is due after this many steps.
    pub(crate) fn is_due(&self, step: u64) -> bool {
        self.every_steps > 0 && step.is_multiple_of(self.every_steps)
    }

    /// The checkpoint of step 0: the model that this run started from.
    ///
    /// # Errors
    /// [`Error::Input`] if it is missing or damaged.
    pub fn start(&self) -> Result<Checkpoint, Error> {
        Checkpoint::read(&self.path.join(folder(0)))
    }

    fn check(&self, state: &State, step: u64) -> Result<(), Error> {
        let place = self.path.join(folder(step));
        if state.stage != self.stage {
            let message = format!(
                "a run of {}, not {}; choose another directory",
                state.stage, self.stage
            );
            return Err(Error::input(&place, message));
        }
        if state.config_blake3 != self.config_blake3 || state.progress.step != step {
            let message =
                "saved under other settings than config.toml says; choose another directory";
            return Err(Error::input(&place, message));
        }
        Ok(())
    }

    /// Saves the state of a stage as `step-N`, moves `latest` to it, and removes old ones beyond
    /// `checkpoint.keep`; that of step 0 stays.
    ///
    /// # Errors
    /// [`Error::Disk`] or [`Error::Model`]; the checkpoints that were there are still there.
    pub fn save<S: Stage>(&mut self, stage: &S) -> Result<PathBuf, Error> {
        let progress = *stage.progress();
        let mut state = State::new(S::NAME, self.seed, &self.config_blake3);
        state.metrics_bytes = self.metrics.sync()?;
        state.samples_bytes = self.samples.sync()?;
        state.optimizer_updates = stage.optimizer().updates;
        state.progress = progress;
        let name = folder(progress.step);
        let positions = stage.model().config.max_position_embeddings;
        let contents = Contents {
            model: stage.model(),
            optimizer: stage.optimizer(),
            tokenizer_files: &tokenizer_files(&self.tokenizer_json, positions),
            state: &state,
        };
        checkpoint::write(&self.path, &name, &contents)?;
        self.point_at(&name)?;
        self.prune()?;
        Ok(self.path.join(name))
    }

    fn prune(&self) -> Result<(), Error> {
        let old = checkpoints(&self.path)?.into_iter().skip(self.keep);
        for step in old.filter(|&step| step > 0) {
            checkpoint::remove_folder(&self.path.join(folder(step)))?;
        }
        Ok(())
    }

    /// Writes one step's line of metrics, and its samples.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn log(&mut self, metrics: &impl Serialize, samples: &[Sample]) -> Result<(), Error> {
        self.metrics.line(metrics)?;
        samples
            .iter()
            .try_for_each(|sample| self.samples.line(sample))
    }
}

/// A file of JSON lines whose length is known.
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: PathBuf) -> Result<Log, Error> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(Error::disk(&path, "opening"))?;
        let bytes = file
            .metadata()
            .map_err(Error::disk(&path, "opening"))?
            .len();
        Ok(Log { path, file, bytes })
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_vec(value).expect("plain values always serialise");
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(Error::disk(&self.path, "writing"))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<u64, Error> {
        self.file
            .sync_all()
            .map_err(Error::disk(&self.path, "syncing"))?;
        Ok(self.bytes)
    }

    /// Forgets what was written after a checkpoint; the steps to come write it again.
    fn cut(&mut self, bytes: u64) -> Result<(), Error> {
        if self.bytes < bytes {
            let message = format!(
                "has {} bytes and had {bytes} when the checkpoint was saved; restore the file, or \
                 choose another directory",
                self.bytes
            );
            return Err(Error::input(&self.path, message));
        }
        self.file
            .set_len(bytes)
            .map_err(Error::disk(&self.path, "cutting back"))?;
        self.bytes = bytes;
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::disk(path, "opening"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The holder's name is a courtesy; without it the message is still true.
            let _ = file.read_to_string(&mut holder);
            let place = path.parent().unwrap_or(path);
            return Err(Error::Locked {
                path: place.to_path_buf(),
                pid: holder.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(Error::disk(path, "locking")(error)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(Error::disk(path, "writing"))?;
    Ok(file)
}

/// The settings that a stage's numbers depend on; the others may change between two parts of a run.
fn relevant(config: &RunConfig, stage: &str) -> RunConfig {
    let defaults = RunConfig::default();
    let mut relevant = RunConfig {
        engine: defaults.engine,
        eval: defaults.eval,
        checkpoint: defaults.checkpoint,
        ..config.clone()
    };
    match stage {
        "sft" => relevant.grpo = defaults.grpo,
        // The weights it started from are in the directory.
        _ => (relevant.sft, relevant.model) = (defaults.sft, defaults.model),
    }
    relevant.grpo.samples_per_step = 0;
    relevant
}

/// Refuses to go on under other settings, and says which lines differ.
fn compare_settings(path: &Path, stage: &str, ours: &str) -> Result<(), Error> {
    let theirs = relevant(&RunConfig::read(path)?, stage).to_toml();
    let lines = |text: &str, other: &str, sign: &str| {
        let missing = |line: &&str| !other.lines().any(|found| found == *line);
        text.lines()
            .filter(missing)
            .map(|line| format!("\n  {sign} {line}"))
            .collect::<String>()
    };
    if theirs == ours {
        return Ok(());
    }
    let was = lines(&theirs, ours, "was");
    let now = lines(ours, &theirs, "now");
    let message = format!(
        "this directory holds a run of other settings; restore them or choose another \
         directory{was}{now}"
    );
    Err(Error::input(path, message))
}

#[cfg(test)]
mod tests;

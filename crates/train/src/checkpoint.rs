//! A training state on disk: a Hugging Face folder that also holds the moments and the counters.
//!
//! Everything is written and synced under another name, hashed as it lies on the disk, and renamed
//! into place; so a folder called `step-N` was whole once, and its manifest tells whether it still
//! is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use kernels::Backend;
use model::{Config, Layout, Model, NamedTensor, Numerics, TensorData, WeightDtype};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::optimizer::Optimizer;
use crate::progress::Progress;

const FORMAT_VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const MOMENTS: &str = "optimizer.safetensors";

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub format_version: u32,
    /// `sft` or `grpo`.
    pub stage: String,
    pub seed: u64,
    /// Of the settings that the stage depends on.
    pub config_blake3: String,
    /// Length of `metrics.jsonl` and `samples.jsonl` when this was saved.
    pub metrics_bytes: u64,
    pub samples_bytes: u64,
    /// Optimizer updates made, which Adam's bias correction counts.
    pub optimizer_updates: u64,
    #[serde(flatten)]
    pub progress: Progress,
}

impl State {
    pub(crate) fn new(stage: &str, seed: u64, config_blake3: &str) -> State {
        State {
            format_version: FORMAT_VERSION,
            stage: stage.to_string(),
            seed,
            config_blake3: config_blake3.to_string(),
            metrics_bytes: 0,
            samples_bytes: 0,
            optimizer_updates: 0,
            progress: Progress::default(),
        }
    }
}

/// A training state read back.
pub struct Checkpoint {
    pub config: Config,
    pub layout: Layout,
    /// `[layout.total_len]`
    pub params: Vec<f32>,
    /// `[layout.trainable_len]` each.
    pub exp_avg: Vec<f32>,
    pub exp_avg_sq: Vec<f32>,
    pub state: State,
}

impl Checkpoint {
    /// The parts of a stage.
    pub(crate) fn restore(
        self,
        numerics: Numerics,
        backend: &dyn Backend,
    ) -> (Model, Optimizer, Progress) {
        let updates = self.state.optimizer_updates;
        let optimizer = Optimizer::restored(&self.layout, self.exp_avg, self.exp_avg_sq, updates);
        let model = Model::from_params(self.config, self.params, numerics, backend);
        (model, optimizer, self.state.progress)
    }

    /// Reads `step-N`, every file checked against the manifest first.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file that is missing, changed or of an unknown version.
    pub fn read(dir: &Path) -> Result<Checkpoint, Error> {
        check_manifest(dir)?;
        let state: State = read_json(&dir.join(STATE))?;
        if state.format_version != FORMAT_VERSION {
            let message = format!(
                "format version {}, and this program knows {FORMAT_VERSION}; use the program that \
                 wrote it",
                state.format_version
            );
            return Err(Error::input(&dir.join(STATE), message));
        }
        let config = Config::read(dir)?;
        let layout = Layout::new(&config);
        let params = model::read_weights(dir, &config, &layout)?.finite()?;
        let path = dir.join(MOMENTS);
        let mut tensors = model::read_tensors(&path)?;
        let exp_avg_sq = moments(&mut tensors, "exp_avg_sq", &layout, &path)?;
        let exp_avg = moments(&mut tensors, "exp_avg", &layout, &path)?;
        Ok(Checkpoint {
            config,
            layout,
            params,
            exp_avg,
            exp_avg_sq,
            state,
        })
    }
}

fn moments(
    tensors: &mut Vec<NamedTensor>,
    name: &str,
    layout: &Layout,
    path: &Path,
) -> Result<Vec<f32>, Error> {
    let found = tensors.iter().position(|tensor| tensor.name == name);
    match found.map(|index| tensors.swap_remove(index).data) {
        Some(TensorData::F32(values)) if values.len() == layout.trainable_len => Ok(values),
        _ => Err(Error::input(
            path,
            format!("no tensor `{name}` of the model's length"),
        )),
    }
}

/// What [`write`] puts into a folder.
pub(crate) struct Contents<'a> {
    pub model: &'a Model,
    pub optimizer: &'a Optimizer,
    pub tokenizer_files: &'a [(String, Vec<u8>)],
    pub state: &'a State,
}

/// Writes the folder `parent/name` whole or not at all; one that was there is replaced.
pub(crate) fn write(parent: &Path, name: &str, contents: &Contents) -> Result<(), Error> {
    let saving = parent.join(format!("{SAVING}{name}"));
    remove_folder(&saving)?;
    let state = json(contents.state);
    let mut files: Vec<(&str, &[u8])> = vec![(STATE, &state)];
    files.extend(
        contents
            .tokenizer_files
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..])),
    );
    let model = contents.model;
    model::write_folder(
        &saving,
        &model.config,
        &model.layout,
        model.params(),
        &files,
        WeightDtype::F32,
    )?;
    let len = [model.layout.trainable_len];
    let optimizer = contents.optimizer;
    model::write_tensors(
        &saving.join(MOMENTS),
        &[
            ("exp_avg", &len, &optimizer.exp_avg),
            ("exp_avg_sq", &len, &optimizer.exp_avg_sq),
        ],
    )?;
    let manifest = json(&Manifest::of(&saving)?);
    model::write_atomic(&saving.join(MANIFEST), &manifest)?;
    move_into_place(parent, name, &saving)
}

/// A kill at any moment leaves the folder that was there in its place or under [`OLD`], from where
/// the next trainer puts it back.
fn move_into_place(parent: &Path, name: &str, saving: &Path) -> Result<(), Error> {
    let (place, old) = (parent.join(name), parent.join(format!("{OLD}{name}")));
    let replaces = place.exists();
    if replaces {
        remove_folder(&old)?;
        fs::rename(&place, &old).map_err(Error::disk(&old, "renaming"))?;
    }
    if let Err(error) = fs::rename(saving, &place) {
        if replaces {
            // If this fails too, the next trainer does it.
            let _ = fs::rename(&old, &place);
        }
        return Err(Error::disk(&place, "renaming into place")(error));
    }
    sync_folder(parent)?;
    remove_folder(&old)
}

/// Prefix of a folder that is being written.
pub(crate) const SAVING: &str = "saving-";

/// Prefix of a folder that is being replaced.
pub(crate) const OLD: &str = ".old-";

pub(crate) fn remove_folder(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::disk(dir, "removing the folder")(error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn sync_folder(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(Error::disk(dir, "syncing the folder"))
}

/// `manifest.json`: every other file of the folder.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    format_version: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    blake3: String,
}

impl Manifest {
    /// Of the files as they lie on the disk.
    fn of(dir: &Path) -> Result<Manifest, Error> {
        let unreadable =
            |error: std::io::Error| Error::input(dir, format!("cannot be listed: {error}"));
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(unreadable)? {
            let name = entry
                .map_err(unreadable)?
                .file_name()
                .to_string_lossy()
                .into_owned();
            if name != MANIFEST {
                let entry = Entry::of(&dir.join(&name))?;
                files.insert(name, entry);
            }
        }
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            files,
        })
    }
}

impl Entry {
    fn of(path: &Path) -> Result<Entry, Error> {
        let fail = |error: std::io::Error| Error::input(path, format!("cannot be read: {error}"));
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(File::open(path).map_err(fail)?)
            .map_err(fail)?;
        Ok(Entry {
            bytes: hasher.count(),
            blake3: hasher.finalize().to_hex().to_string(),
        })
    }
}

/// Files that the manifest does not name are nobody's business; those that it names must be there
/// and as they were.
fn check_manifest(dir: &Path) -> Result<(), Error> {
    let manifest: Manifest = read_json(&dir.join(MANIFEST))?;
    for name in [STATE, MOMENTS, "config.json", "model.safetensors"] {
        if !manifest.files.contains_key(name) {
            return Err(Error::input(
                &dir.join(MANIFEST),
                format!("does not name {name}"),
            ));
        }
    }
    for (name, expected) in &manifest.files {
        let path = dir.join(name);
        if Path::new(name).components().count() != 1 || Entry::of(&path)? != *expected {
            return Err(Error::input(&path, "changed since it was saved"));
        }
    }
    Ok(())
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(|e| Error::input(path, format!("cannot be read: {e}")))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::input(path, format!("not as expected: {e}")))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain values always serialise");
    bytes.push(b'\n');
    bytes
}

//! A model folder as a whole: opening files inside it, and replacing it in one piece.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Component, Path};

use super::WeightDtype;
use super::publish::{Disk, behind_links, left_overs, parent_and_name, refuse_dangling_link};
use super::weights::WeightsFile;
use crate::config::Config;
use crate::error::{Error, shown};
use crate::layout::Layout;

/// Files that a model folder usually holds. A folder with others in it is not replaced, because
/// replacing would delete them.
const MODEL_FILES: [&str; 12] = [
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Opens a regular file of `dir` by its plain name. Neither a name nor a symbolic link can lead
/// out of the folder; the one exception is the Hugging Face cache, whose `snapshots/REVISION`
/// folders are links into the `blobs` folder beside `snapshots`.
pub(super) fn open_inside(dir: &Path, name: &str) -> Result<File, Error> {
    if let Some(file) = open_if_there(dir, name)? {
        return Ok(file);
    }
    Err(match dir.is_dir() {
        true => Error::file(&dir.join(shown(name)), "there is no such file"),
        false => Error::file(dir, "there is no such folder"),
    })
}

/// As [`open_inside`]; `None` where there is no such file.
fn open_if_there(dir: &Path, name: &str) -> Result<Option<File>, Error> {
    let path = dir.join(shown(name));
    let mut parts = Path::new(name).components();
    let plain = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    if !plain || name.contains(['/', '\\', '\0']) {
        let message = format!(
            "`{}` is not the plain name of a file in the folder",
            shown(name)
        );
        return Err(Error::file(dir, message));
    }
    let fail = |error: io::Error| Error::file(&path, format!("cannot be opened: {error}"));
    let found = fs::canonicalize(dir).and_then(|dir| Ok((dir, fs::canonicalize(&path)?)));
    let (folder, target) = match found {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    if !target.starts_with(&folder) && !in_blobs(&folder, &target) {
        return Err(Error::file(
            &path,
            "a link that leads out of its folder; copy the file instead",
        ));
    }
    // Looked at before it is opened: opening a named pipe would wait for ever.
    if !fs::metadata(&target).map_err(fail)?.is_file() {
        return Err(Error::file(&path, "not a regular file"));
    }
    File::open(&target).map(Some).map_err(fail)
}

fn in_blobs(folder: &Path, target: &Path) -> bool {
    let Some(snapshots) = folder
        .parent()
        .filter(|parent| parent.ends_with("snapshots"))
    else {
        return false;
    };
    snapshots
        .parent()
        .is_some_and(|repository| target.starts_with(repository.join("blobs")))
}

/// Reads a file of `dir` that ought to be small.
pub(crate) fn read_small_file(dir: &Path, name: &str, largest: u64) -> Result<Vec<u8>, Error> {
    read_at_most(open_inside(dir, name)?, &dir.join(name), largest)
}

/// The bytes of a file of a model folder, such as `tokenizer.json`, by its plain name; `None` where
/// there is no such file. A link that leads out of the folder is not followed, but for the links
/// of the Hugging Face cache into its own `blobs`.
///
/// # Errors
/// [`Error::File`]: not a plain name, a link that leads out, not a regular file, more than
/// `largest` bytes, or not to be read.
pub fn read_small_file_if_there(
    dir: &Path,
    name: &str,
    largest: u64,
) -> Result<Option<Vec<u8>>, Error> {
    match open_if_there(dir, name)? {
        Some(file) => read_at_most(file, &dir.join(name), largest).map(Some),
        None => Ok(None),
    }
}

fn read_at_most(file: File, path: &Path, largest: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(largest + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > largest {
        let message = format!("larger than {largest} bytes, which is more than it can need");
        return Err(Error::file(path, message));
    }
    Ok(bytes)
}

/// Writes a whole Hugging Face folder: `config.json`, `generation_config.json`,
/// `model.safetensors` and `extra_files` (plain name, contents), such as the tokenizer's. The same
/// arguments give the same bytes.
///
/// The folder appears whole or not at all. Everything is written and synced in `.tmp-NAME-PID`
/// beside it; then a folder that was there is renamed to `.old-NAME-PID`, the new one is renamed
/// into place, and the old one is removed. A kill at any moment leaves a whole folder either in
/// its place or under the `.old-` name, from where [`recover_folder`] puts it back. Two writers of
/// one folder at a time are not provided for: the caller holds a lock.
///
/// # Errors
/// After an error the old folder stands as it was and nothing is left beside it, except where the
/// last sync failed, when the new folder stands in its place.
/// [`Error::Resources`] if the disk is full; [`Error::Usage`] if `dir` holds files that are not
/// part of a model, or holds something but no model, or is a link that leads nowhere, or an extra
/// name is not plain; [`Error::Write`] otherwise.
///
/// # Panics
/// If `weights` is not `layout.total_len` long, or `dtype` is FP8, which
/// [`Checkpoint::export_folder`](crate::Checkpoint::export_folder) writes.
pub fn write_folder(
    dir: &Path,
    config: &Config,
    layout: &Layout,
    weights: &[f32],
    extra_files: &[(&str, &[u8])],
    dtype: WeightDtype,
) -> Result<(), Error> {
    let mut contents = flat_contents(config, layout, weights, extra_files, dtype);
    contents.publish(dir)
}

/// A folder of weights in a flat buffer.
fn flat_contents<'a>(
    config: &Config,
    layout: &'a Layout,
    weights: &'a [f32],
    extra_files: &[(&str, &[u8])],
    dtype: WeightDtype,
) -> Contents<WeightsFile<'a>> {
    let generation = config.to_generation_json();
    let mut contents = Contents {
        small_files: vec![
            small_file("config.json", config.to_json(dtype).as_bytes()),
            small_file("generation_config.json", generation.as_bytes()),
        ],
        weights: WeightsFile::new(layout, weights, dtype),
    };
    contents.add(extra_files);
    contents
}

/// The files of a model folder that hold its weights, made as they are written.
pub(crate) trait WeightFiles {
    /// Plain names, in the order in which the files are written.
    fn names(&self) -> Vec<String>;

    /// Bytes of all of them.
    fn bytes(&self) -> u64;

    /// Writes file `number` of [`names`](WeightFiles::names) from start to end.
    ///
    /// # Errors
    /// Those of `out`, and an [`Error`] of this crate turned into one.
    fn write(&mut self, number: usize, out: &mut dyn Write) -> io::Result<()>;
}

/// A file of a few megabytes at most: its plain name and its contents.
pub(crate) type SmallFile = (String, Vec<u8>);

pub(crate) fn small_file(name: &str, bytes: &[u8]) -> SmallFile {
    (name.to_string(), bytes.to_vec())
}

/// All that goes into a model folder.
pub(crate) struct Contents<W> {
    pub small_files: Vec<SmallFile>,
    pub weights: W,
}

impl<W: WeightFiles> Contents<W> {
    pub fn add(&mut self, extra_files: &[(&str, &[u8])]) {
        let extra = extra_files.iter();
        self.small_files
            .extend(extra.map(|(name, bytes)| small_file(name, bytes)));
    }

    /// Makes the folder, or puts it in the place of the one that is there, as [`write_folder`]
    /// says.
    pub fn publish(&mut self, dir: &Path) -> Result<(), Error> {
        self.check_names()?;
        let mut disk_is_fine = |_: &'static str| Ok(());
        let mut disk = Disk::new(self.bytes(), &mut disk_is_fine);
        self.replace(dir, &mut disk)
    }

    fn check_names(&self) -> Result<(), Error> {
        let mut seen = self.weights.names();
        for (name, _) in &self.small_files {
            let plain = Path::new(name)
                .file_name()
                .is_some_and(|last| last == name.as_str());
            if !plain || name.starts_with('.') || seen.contains(name) {
                let name = shown(name);
                let message = format!("`{name}` cannot be an extra file: not plain, or taken");
                return Err(Error::Usage(message));
            }
            seen.push(name.clone());
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let small: usize = self.small_files.iter().map(|(_, bytes)| bytes.len()).sum();
        small as u64 + self.weights.bytes()
    }

    fn replace(&mut self, dir: &Path, disk: &mut Disk) -> Result<(), Error> {
        refuse_dangling_link(dir)?;
        recover_folder(dir)?;
        let dir = behind_links(dir);
        let (parent, name) = parent_and_name(&dir)?;
        self.refuse_strangers(&dir)?;
        fs::create_dir_all(&parent).map_err(|source| Error::Write {
            path: parent.clone(),
            action: "creating the folder",
            source,
        })?;
        let pid = std::process::id();
        let temporary = parent.join(format!(".tmp-{name}-{pid}"));
        let old = parent.join(format!(".old-{name}-{pid}"));
        let done = self
            .write(&temporary, disk)
            .and_then(|()| swap(disk, &temporary, &dir, &old));
        if done.is_err() {
            // Not there if creating it failed, or if it is in place already.
            let _ = fs::remove_dir_all(&temporary);
        }
        done
    }

    fn write(&mut self, temporary: &Path, disk: &mut Disk) -> Result<(), Error> {
        disk.create_dir(temporary)?;
        for (name, bytes) in &self.small_files {
            disk.write_file(&temporary.join(name), &mut |out| out.write_all(bytes))?;
        }
        for (number, name) in self.weights.names().iter().enumerate() {
            let weights = &mut self.weights;
            disk.write_file(&temporary.join(name), &mut |out| weights.write(number, out))?;
        }
        disk.sync_dir(temporary)
    }

    /// A folder is replaced only if it is empty, or is a model and holds nothing else.
    fn refuse_strangers(&self, dir: &Path) -> Result<(), Error> {
        let Ok(found) = fs::metadata(dir) else {
            return Ok(());
        };
        if !found.is_dir() {
            return Err(Error::Usage(format!(
                "{}: a file, not a folder",
                dir.display()
            )));
        }
        let unreadable = |error: io::Error| {
            Error::Usage(format!("{}: cannot be looked into: {error}", dir.display()))
        };
        let (mut entries, mut configured, mut weighty) = (0, false, false);
        for entry in fs::read_dir(dir).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let name = name.to_string_lossy();
            entries += 1;
            configured |= name == "config.json";
            weighty |= name.ends_with(".safetensors");
            let shard = name.starts_with("model-") && name.ends_with(".safetensors");
            let ours = self.small_files.iter().any(|(small, _)| name == *small);
            if !shard && !ours && !MODEL_FILES.contains(&name.as_ref()) {
                let message = format!(
                    "{}: holds `{}`, which is not part of a model and would be lost; choose \
                     another folder or move it away",
                    dir.display(),
                    shown(&name)
                );
                return Err(Error::Usage(message));
            }
        }
        if entries > 0 && !(configured && weighty) {
            let message = format!(
                "{}: is no model (config.json with weights in *.safetensors), so not replaced; \
                 choose another folder or move it away",
                dir.display()
            );
            return Err(Error::Usage(message));
        }
        Ok(())
    }
}

fn swap(disk: &mut Disk, temporary: &Path, dir: &Path, old: &Path) -> Result<(), Error> {
    let replaces = dir.is_dir();
    if replaces {
        disk.rename(dir, old)?;
    }
    if let Err(error) = disk.rename(temporary, dir) {
        if replaces {
            // If even this fails, `recover_folder` does it later.
            let _ = fs::rename(old, dir);
        }
        return Err(error);
    }
    let (parent, _) = parent_and_name(dir)?;
    disk.sync_dir(&parent)?;
    if replaces {
        // The new folder is durable; what may be left of the old one, `recover_folder` removes.
        let _ = fs::remove_dir_all(old);
    }
    Ok(())
}

/// Undoes what a killed [`write_folder`] left beside `dir`: if `dir` is gone, the folder it
/// replaced is put back; temporary and replaced folders are removed. Those of a process that is
/// still running are left alone. Call it before looking for a checkpoint; `write_folder` does.
///
/// # Errors
/// [`Error::Write`] if the folder cannot be put back.
pub fn recover_folder(dir: &Path) -> Result<(), Error> {
    let dir = behind_links(dir);
    for path in left_overs(&dir)? {
        let replaced = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(".old-"));
        if replaced && !dir.exists() {
            let action = "putting the replaced folder back";
            fs::rename(&path, &dir).map_err(|source| Error::Write {
                path,
                action,
                source,
            })?;
        } else {
            // A leftover that cannot be removed harms nobody.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

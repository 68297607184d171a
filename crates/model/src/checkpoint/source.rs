//! The opened files of a model folder: what is where, and whether it fits the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::float::e8m0_to_f32;
use super::folder::{open_inside, read_small_file};
use super::positioned::read_exact_at;
use super::rows::{FilePart, TensorRows, TensorSource, expanded};
use super::safetensors::{Entry, Reader, is_float};
use crate::config::Config;
use crate::error::{Error, brief_reason, shown};
use crate::layout::{Layout, TensorSpec};
use crate::mtp::shared_copies;
use crate::open::StoredTensor;
use kernels::{BlockScales, Bytes, Dtype, MappedFile};

const INDEX: &str = "model.safetensors.index.json";
const LARGEST_INDEX: u64 = 64 << 20;
/// Bytes of each of two tensors that are compared at once.
const CHUNK: usize = 1 << 20;
/// The type of DeepSeek's quantised matrices.
pub(crate) const FP8: &str = "F8_E4M3";

/// The scales of an FP8 tensor; each value is multiplied by its scale, in spite of the name.
pub(crate) fn scale_name(weight: &str) -> String {
    format!("{weight}_scale_inv")
}

/// Names under which a checkpoint may hold the embedding or the head once more.
pub(super) fn repeated(config: &Config) -> Vec<(String, &'static str)> {
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let own_head = if config.tie_word_embeddings {
        embedding
    } else {
        head
    };
    let mut names = Vec::new();
    if config.num_nextn_predict_layers > 0 {
        let copies = shared_copies(config.num_hidden_layers);
        names.extend(copies.into_iter().zip([embedding, own_head]));
    }
    if config.tie_word_embeddings {
        names.push((head.to_string(), embedding));
    }
    names
}

fn wrong_shape(entry: &Entry, expected: &[usize]) -> Option<String> {
    (entry.shape != expected).then(|| {
        format!(
            "shape: `{}` is {:?} in the file, {expected:?} by config.json",
            shown(&entry.name),
            entry.shape
        )
    })
}

/// The opened files of a folder, and where each tensor is.
pub(crate) struct Source {
    dir: PathBuf,
    shards: Vec<Reader>,
    /// The same files mapped, or none.
    maps: Vec<Bytes>,
    /// Tensor name to (file, index in it).
    places: BTreeMap<String, (usize, usize)>,
    /// What is wrong between the files themselves.
    conflicts: Vec<String>,
}

impl Source {
    pub fn open(dir: &Path) -> Result<Source, Error> {
        let mut source = Source {
            dir: dir.to_path_buf(),
            shards: Vec::new(),
            maps: Vec::new(),
            places: BTreeMap::new(),
            conflicts: Vec::new(),
        };
        if exists(dir, "model.safetensors") {
            source.add(dir, "model.safetensors")?;
        } else if exists(dir, INDEX) {
            let weight_map = read_index(dir)?;
            let files: BTreeSet<&String> = weight_map.values().collect();
            for file in files {
                source.add(dir, file)?;
            }
            source.compare_with_index(&weight_map);
        } else {
            return Err(no_weights(dir));
        }
        Ok(source)
    }

    fn add(&mut self, dir: &Path, file: &str) -> Result<(), Error> {
        let reader = Reader::new(open_inside(dir, file)?, &dir.join(file))?;
        let shard = self.shards.len();
        for (index, entry) in reader.entries.iter().enumerate() {
            if let Some((first, _)) = self.places.insert(entry.name.clone(), (shard, index)) {
                let (name, first) = (shown(&entry.name), self.shards[first].path.display());
                self.conflicts
                    .push(format!("twice: `{name}`, in {first} and in {file}"));
            }
        }
        self.shards.push(reader);
        Ok(())
    }

    fn compare_with_index(&mut self, weight_map: &BTreeMap<String, String>) {
        for (name, file) in weight_map {
            let Some(&(shard, _)) = self.places.get(name) else {
                let (name, file) = (shown(name), shown(file));
                self.conflicts.push(format!(
                    "missing: `{name}`, which {INDEX} says is in {file}"
                ));
                continue;
            };
            let found = &self.shards[shard].path;
            if found.file_name().is_none_or(|found| found != file.as_str()) {
                let (name, file) = (shown(name), shown(file));
                self.conflicts.push(format!(
                    "misplaced: `{name}` is in {}, {INDEX} says {file}",
                    found.display()
                ));
            }
        }
    }

    /// Whether two tensors are the same, byte for byte.
    fn are_equal(&self, one: &str, other: &str) -> Result<bool, Error> {
        let [a, b] = [one, other].map(|name| {
            let &(shard, index) = self.places.get(name)?;
            Some((&self.shards[shard], &self.shards[shard].entries[index]))
        });
        let (Some((reader, entry)), Some((other_reader, other_entry))) = (a, b) else {
            return Ok(true);
        };
        if (&entry.dtype, entry.bytes) != (&other_entry.dtype, other_entry.bytes) {
            return Ok(false);
        }
        let mut chunks = [vec![0; CHUNK], vec![0; CHUNK]];
        for start in (0..entry.bytes).step_by(CHUNK) {
            let len = CHUNK.min((entry.bytes - start) as usize);
            let parts = [(reader, entry), (other_reader, other_entry)];
            for ((reader, entry), chunk) in parts.into_iter().zip(&mut chunks) {
                let read = read_exact_at(&reader.file, &mut chunk[..len], entry.start + start);
                read.map_err(|error| {
                    let message = format!("tensor `{}`: {error}", shown(&entry.name));
                    Error::file(&reader.path, message)
                })?;
            }
            if chunks[0][..len] != chunks[1][..len] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The descriptions of all tensors, file by file, in the order of the data.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.shards.iter().flat_map(|shard| &shard.entries)
    }

    /// Hands the bytes of a tensor to `each` as they are stored, in order.
    pub fn copy(&self, name: &str, each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let (shard, index) = self.places[name];
        self.shards[shard].try_stream(index, each)
    }

    fn differences(&self, config: &Config, layout: &Layout) -> Vec<String> {
        let mut lines = self.conflicts.clone();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for spec in &layout.tensors {
            wanted.insert(spec.name.clone());
            let Some(entry) = self.entry(&spec.name) else {
                lines.push(format!("missing: `{}` {:?}", spec.name, spec.shape));
                continue;
            };
            lines.extend(wrong_shape(entry, &spec.shape));
            if entry.dtype == FP8 {
                wanted.insert(scale_name(&spec.name));
                lines.extend(self.wrong_scales(config, spec));
            } else if !is_float(&entry.dtype) {
                lines.push(format!(
                    "type: `{}` is {}, not F32, BF16, F16 or {FP8}",
                    spec.name, entry.dtype
                ));
            }
        }
        for (name, _) in repeated(config) {
            if let Some(entry) = self.entry(&name) {
                let embedding = [config.vocab_size, config.hidden_size];
                lines.extend(wrong_shape(entry, &embedding));
                wanted.insert(name);
            }
        }
        for name in self.places.keys().filter(|name| !wanted.contains(*name)) {
            if let Some(entry) = self.entry(name)
                && !name.ends_with("rotary_emb.inv_freq")
            {
                lines.push(format!("unexpected: `{}` {:?}", shown(name), entry.shape));
            }
        }
        lines
    }

    /// What is wrong with the scales of an FP8 tensor.
    fn wrong_scales(&self, config: &Config, spec: &TensorSpec) -> Option<String> {
        let name = scale_name(&spec.name);
        let Some(fp8) = config.fp8 else {
            let message = "but config.json has no quantization_config";
            return Some(format!("type: `{}` is {FP8}, {message}", spec.name));
        };
        let [rows, columns] = spec.shape[..] else {
            return Some(format!("type: `{}` is {FP8}, but no matrix", spec.name));
        };
        let shape = [rows.div_ceil(fp8.block[0]), columns.div_ceil(fp8.block[1])];
        let Some(entry) = self.entry(&name) else {
            return Some(format!("missing: `{name}` {shape:?}"));
        };
        if !matches!(entry.dtype.as_str(), "F32" | "BF16" | "F8_E8M0") {
            let dtype = shown(&entry.dtype);
            return Some(format!(
                "type: `{name}` is {dtype}, not F32, BF16 or F8_E8M0"
            ));
        }
        wrong_shape(entry, &shape)
    }

    /// A tensor's description.
    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        let &(shard, index) = self.places.get(name)?;
        Some(&self.shards[shard].entries[index])
    }

    /// The scales of an FP8 tensor that was checked.
    fn block_scales(&self, config: &Config, spec: &TensorSpec) -> Result<BlockScales, Error> {
        let fp8 = config.fp8.expect("checked against the configuration");
        let (shard, index) = self.places[&scale_name(&spec.name)];
        let reader = &self.shards[shard];
        let entry = &reader.entries[index];
        let mut scales = vec![0.0; entry.shape.iter().product()];
        if entry.dtype == "F8_E8M0" {
            let mut at = scales.iter_mut();
            reader.stream(index, |bytes| {
                for (&bits, scale) in bytes.iter().zip(at.by_ref()) {
                    *scale = e8m0_to_f32(bits);
                }
            })?;
        } else {
            reader.read_f32(index, &mut scales)?;
        }
        Ok(BlockScales {
            block: fp8.block,
            values: Arc::from(scales),
        })
    }
}

impl TensorSource for Source {
    fn check_copies(&self, config: &Config) -> Result<(), Error> {
        let mut differences = Vec::new();
        for (name, original) in repeated(config) {
            if !self.are_equal(&name, original)? {
                differences.push(format!(
                    "differs: `{name}` is not `{original}`, which stands for both here; if the \
                     head is its own, set tie_word_embeddings to false"
                ));
            }
        }
        Error::mismatch(&self.dir, differences)
    }

    fn check(&self, config: &Config, layout: &Layout) -> Result<(), Error> {
        Error::mismatch(&self.dir, self.differences(config, layout))
    }

    fn rows(
        &self,
        config: &Config,
        spec: &TensorSpec,
        first_row: usize,
        rows: usize,
    ) -> Result<TensorRows<'_>, Error> {
        let (shard, index) = self.places[&spec.name];
        let reader = &self.shards[shard];
        let entry = &reader.entries[index];
        let dtype = match entry.dtype.as_str() {
            "F32" => Dtype::F32,
            "BF16" => Dtype::Bf16,
            "F16" => Dtype::F16,
            FP8 => Dtype::F8E4m3,
            other => unreachable!("{other} was refused before"),
        };
        let row_bytes = spec.shape[1..].iter().product::<usize>() * dtype.bytes();
        let offset = entry.start + (first_row * row_bytes) as u64;
        let scales = match dtype {
            Dtype::F8E4m3 => Some(self.block_scales(config, spec)?),
            _ => None,
        };
        let mapped = self.maps.get(shard).map(|map| {
            let start = offset as usize;
            map.slice(start..start + rows * row_bytes)
        });
        Ok(TensorRows {
            dtype,
            reader: Box::new(FilePart {
                file: &reader.file,
                offset,
            }),
            mapped,
            scales,
            first_row,
        })
    }

    fn read_f32(&self, config: &Config, spec: &TensorSpec, out: &mut [f32]) -> Result<(), Error> {
        let (shard, index) = self.places[&spec.name];
        let reader = &self.shards[shard];
        if reader.entries[index].dtype != FP8 {
            return reader.read_f32(index, out);
        }
        let scales = self.block_scales(config, spec)?;
        let mut values = out.iter_mut().enumerate();
        reader.stream(index, |bytes| {
            // The bytes lead: what leads a `zip` that ends has given one element too many.
            for (&code, (at, value)) in bytes.iter().zip(values.by_ref()) {
                *value = expanded(code, &scales, spec.shape[1], at);
            }
        })
    }

    fn map(&mut self) -> Result<(), Error> {
        for reader in &self.shards {
            let map = MappedFile::new(&reader.file).map_err(|error| {
                let message = format!("cannot be mapped: {error}; read it instead");
                Error::file(&reader.path, message)
            })?;
            self.maps.push(Bytes::from(map));
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<StoredTensor> {
        let places = self.places.iter();
        let tensors = places.map(|(name, &(shard, index))| {
            let entry = &self.shards[shard].entries[index];
            StoredTensor {
                name: name.clone(),
                dtype: entry.dtype.clone(),
                shape: entry.shape.clone(),
                bytes: entry.bytes,
            }
        });
        tensors.collect()
    }

    fn stored_bytes(&self, name: &str) -> u64 {
        self.entry(name).map_or(0, |entry| entry.bytes)
    }

    fn file_of(&self, name: &str) -> &Path {
        &self.shards[self.places[name].0].path
    }
}

fn exists(dir: &Path, name: &str) -> bool {
    // A dangling link exists too: opening it then says what is wrong with it.
    fs::symlink_metadata(dir.join(name)).is_ok()
}

fn read_index(dir: &Path) -> Result<BTreeMap<String, String>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = read_small_file(dir, INDEX, LARGEST_INDEX)?;
    let path = dir.join(INDEX);
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| {
        let reason = brief_reason(&error);
        Error::file(&path, format!("not a weight index: {reason}"))
    })?;
    if index.weight_map.is_empty() {
        return Err(Error::file(
            &path,
            "its weight_map is empty; fetch the file again",
        ));
    }
    match index
        .weight_map
        .values()
        .find(|file| !file.ends_with(".safetensors"))
    {
        None => Ok(index.weight_map),
        Some(file) => {
            let message = format!("`{}` is not a .safetensors file", shown(file));
            Err(Error::file(&path, message))
        }
    }
}

/// Why a folder has no weights to read.
fn no_weights(dir: &Path) -> Error {
    let Ok(entries) = fs::read_dir(dir) else {
        return Error::file(dir, "there is no such folder, or it may not be read");
    };
    let names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let has = |endings: &[&str]| {
        names
            .iter()
            .any(|n| endings.iter().any(|end| n.ends_with(end)))
    };
    if has(&[".bin", ".pt", ".pth", ".ckpt"]) {
        let message = "holds only pickled weights, which can run code when opened and are never \
                       read; convert them where you trust them: python3 -c \"from transformers \
                       import AutoModelForCausalLM as M; \
                       M.from_pretrained('IN').save_pretrained('OUT')\"";
        return Error::file(dir, message);
    }
    if has(&[".gguf"]) {
        return Error::file(dir, "holds GGUF weights; give the path of one .gguf file");
    }
    Error::file(dir, format!("has neither model.safetensors nor {INDEX}"))
}

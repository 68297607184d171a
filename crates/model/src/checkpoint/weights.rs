//! The weights of a model folder, one file or several, against its configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::WeightDtype;
use super::float::f32_to_bf16;
use super::folder::{open_inside, read_small_file};
use super::safetensors::{Planned, Reader, float_bytes, header, is_float};
use crate::config::Config;
use crate::error::{Error, shown};
use crate::layout::{Layout, TensorSpec};

const INDEX: &str = "model.safetensors.index.json";
const LARGEST_INDEX: u64 = 64 << 20;
/// Elements converted at once while writing.
const CHUNK: usize = 1 << 16;

/// Weights as read from a folder.
#[derive(Debug)]
pub struct Weights {
    /// The flat buffer of the [`Layout`], `total_len` floats.
    pub data: Vec<f32>,
    /// Tensors with NaN or infinite values, in the order of the layout; normally empty.
    pub non_finite: Vec<NonFinite>,
    dir: PathBuf,
}

/// How many values of a tensor are not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    pub tensor: String,
    pub nan: usize,
    pub infinite: usize,
}

impl Weights {
    /// The buffer, if every value in it is finite; training starts from no other.
    ///
    /// # Errors
    /// [`Error::File`] naming the tensors and the counts.
    pub fn finite(self) -> Result<Vec<f32>, Error> {
        if self.non_finite.is_empty() {
            return Ok(self.data);
        }
        let counts: Vec<String> = self.non_finite.iter().map(NonFinite::to_string).collect();
        let message = format!("{}; start from an earlier checkpoint", counts.join("; "));
        Err(Error::file(&self.dir, message))
    }
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NonFinite {
            tensor,
            nan,
            infinite,
        } = self;
        write!(
            f,
            "tensor `{tensor}` has {nan} NaN and {infinite} infinite values"
        )
    }
}

/// Reads `model.safetensors`, or the files that `model.safetensors.index.json` names, into the
/// flat buffer of `layout`. F32, BF16 and F16 are converted to f32; padding is zero.
///
/// Only headers are read, and nothing of the model's size is allocated, until names, types, shapes
/// and byte ranges all agree with `layout`.
///
/// # Errors
/// [`Error::Mismatch`] with every difference between the files and `layout`; [`Error::File`] for a
/// file that is missing, truncated, malformed or not safetensors; [`Error::Resources`] if memory
/// does not suffice.
///
/// # Panics
/// If `layout` is not the layout of `config`.
pub fn read_weights(dir: &Path, config: &Config, layout: &Layout) -> Result<Weights, Error> {
    assert_eq!(
        layout.layers.len(),
        config.num_hidden_layers,
        "layout of another configuration"
    );
    let mut source = Source::open(dir)?;
    let differences = source.differences(layout);
    if !differences.is_empty() {
        return Err(Error::Mismatch {
            path: dir.to_path_buf(),
            differences,
        });
    }
    let mut data = allocate(dir, layout.total_len)?;
    let mut non_finite = Vec::new();
    for spec in &layout.tensors {
        let (shard, index) = source.places[&spec.name];
        let out = &mut data[spec.range()];
        source.shards[shard].read_f32(index, out)?;
        non_finite.extend(count_non_finite(spec, out));
    }
    Ok(Weights {
        data,
        non_finite,
        dir: dir.to_path_buf(),
    })
}

fn allocate(dir: &Path, len: usize) -> Result<Vec<f32>, Error> {
    let mut data: Vec<f32> = Vec::new();
    data.try_reserve_exact(len).map_err(|_| Error::Resources {
        path: dir.to_path_buf(),
        message: format!(
            "{} bytes of memory needed for the weights alone; choose a smaller model or a larger \
             machine",
            4 * len as u64
        ),
    })?;
    data.resize(len, 0.0);
    Ok(data)
}

fn count_non_finite(spec: &TensorSpec, values: &[f32]) -> Option<NonFinite> {
    let bad = values.iter().filter(|value| !value.is_finite()).count();
    let nan = values.iter().filter(|value| value.is_nan()).count();
    (bad > 0).then(|| NonFinite {
        tensor: spec.name.clone(),
        nan,
        infinite: bad - nan,
    })
}

/// The opened files of a folder, and where each tensor is.
struct Source {
    shards: Vec<Reader>,
    /// Tensor name to (file, index in it).
    places: BTreeMap<String, (usize, usize)>,
    /// What is wrong between the files themselves.
    conflicts: Vec<String>,
}

impl Source {
    fn open(dir: &Path) -> Result<Source, Error> {
        let mut source = Source {
            shards: Vec::new(),
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

    /// Every way in which the files are not what the layout needs, one line each.
    fn differences(&self, layout: &Layout) -> Vec<String> {
        let mut lines = self.conflicts.clone();
        let mut wanted = BTreeSet::new();
        for spec in &layout.tensors {
            wanted.insert(spec.name.as_str());
            let Some(&(shard, index)) = self.places.get(&spec.name) else {
                lines.push(format!("missing: `{}` {:?}", spec.name, spec.shape));
                continue;
            };
            let entry = &self.shards[shard].entries[index];
            if entry.shape != spec.shape {
                lines.push(format!(
                    "shape: `{}` is {:?} in the file, {:?} by config.json",
                    spec.name, entry.shape, spec.shape
                ));
            }
            if !is_float(&entry.dtype) {
                lines.push(format!(
                    "type: `{}` is {}, not F32, BF16 or F16",
                    spec.name, entry.dtype
                ));
            }
        }
        let unexpected = self.places.iter().filter(|(name, _)| {
            !wanted.contains(name.as_str()) && !name.ends_with("rotary_emb.inv_freq")
        });
        for (name, &(shard, index)) in unexpected {
            let shape = &self.shards[shard].entries[index].shape;
            lines.push(format!("unexpected: `{}` {shape:?}", shown(name)));
        }
        lines
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
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(&path, format!("not a weight index: {error}")))?;
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
        return Error::file(
            dir,
            "holds GGUF weights, which are not supported yet, only safetensors",
        );
    }
    Error::file(dir, format!("has neither model.safetensors nor {INDEX}"))
}

/// `model.safetensors` as it will be written.
pub(super) struct WeightsFile<'a> {
    specs: Vec<(&'a TensorSpec, &'static str)>,
    weights: &'a [f32],
    header: Vec<u8>,
    data_bytes: u64,
}

impl<'a> WeightsFile<'a> {
    pub fn new(layout: &'a Layout, weights: &'a [f32], dtype: WeightDtype) -> WeightsFile<'a> {
        assert_eq!(
            weights.len(),
            layout.total_len,
            "weights and layout differ in length"
        );
        let stored = |spec: &TensorSpec| match dtype {
            WeightDtype::Bf16 if spec.trainable => "BF16",
            _ => "F32",
        };
        let mut specs: Vec<_> = layout
            .tensors
            .iter()
            .map(|spec| (spec, stored(spec)))
            .collect();
        // Wider types first, so that every tensor is aligned to its own element.
        specs.sort_by_key(|&(_, dtype)| dtype == "BF16");
        let planned: Vec<Planned> = specs
            .iter()
            .map(|&(spec, dtype)| Planned {
                name: &spec.name,
                dtype,
                shape: &spec.shape,
            })
            .collect();
        let data_bytes = planned.iter().map(Planned::bytes).sum();
        let header = header(&planned);
        WeightsFile {
            specs,
            weights,
            header,
            data_bytes,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }

    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        for &(spec, dtype) in &self.specs {
            write_values(out, &self.weights[spec.range()], dtype)?;
        }
        Ok(())
    }
}

/// Writes `values` as `F32` or `BF16`, little-endian.
pub(super) fn write_values(
    out: &mut dyn Write,
    values: &[f32],
    dtype: &'static str,
) -> io::Result<()> {
    let width = float_bytes(dtype);
    let mut bytes = vec![0; width * CHUNK.min(values.len())];
    for chunk in values.chunks(CHUNK) {
        let bytes = &mut bytes[..width * chunk.len()];
        match dtype {
            "BF16" => {
                for (two, &value) in bytes.as_chunks_mut().0.iter_mut().zip(chunk) {
                    *two = f32_to_bf16(value).to_le_bytes();
                }
            }
            "F32" => {
                for (four, &value) in bytes.as_chunks_mut().0.iter_mut().zip(chunk) {
                    *four = value.to_le_bytes();
                }
            }
            other => panic!("{other} is not a type written here"),
        }
        out.write_all(bytes)?;
    }
    Ok(())
}

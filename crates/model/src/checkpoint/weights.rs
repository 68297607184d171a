//! The weights of a model folder, one file or several, against its configuration.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::WeightDtype;
use super::float::f32_to_bf16;
use super::folder::WeightFiles;
use super::rows::TensorSource;
use super::safetensors::{Planned, float_bytes, header};
use super::source::Source;
use crate::config::Config;
use crate::error::Error;
use crate::layout::{Layout, TensorSpec};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
/// flat buffer of `layout`. F32, BF16, F16 and FP8 in blocks are converted to f32; padding is zero.
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
    let source = Source::open(dir)?;
    source.check(config, layout)?;
    read_all(&source, config, layout, dir)
}

/// Reads every tensor of a source that was checked.
pub(crate) fn read_all(
    source: &dyn TensorSource,
    config: &Config,
    layout: &Layout,
    dir: &Path,
) -> Result<Weights, Error> {
    let mut data = allocate(dir, layout.total_len)?;
    let mut non_finite = Vec::new();
    for spec in &layout.tensors {
        let out = &mut data[spec.range()];
        source.read_f32(config, spec, out)?;
        non_finite.extend(NonFinite::count(spec, out));
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

impl NonFinite {
    /// What a tensor holds of them, if anything.
    pub(crate) fn count(spec: &TensorSpec, values: &[f32]) -> Option<NonFinite> {
        let bad = values.iter().filter(|value| !value.is_finite()).count();
        let nan = values.iter().filter(|value| value.is_nan()).count();
        (bad > 0).then(|| NonFinite {
            tensor: spec.name.clone(),
            nan,
            infinite: bad - nan,
        })
    }
}

/// `model.safetensors` as it will be written.
pub(super) struct WeightsFile<'a> {
    /// Name, place and type of each tensor.
    specs: Vec<(String, &'a TensorSpec, &'static str)>,
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
            WeightDtype::Bf16 | WeightDtype::F32 => "F32",
            WeightDtype::Fp8 => panic!("FP8 is written by Checkpoint::export_folder"),
        };
        let mut specs: Vec<_> = layout
            .written()
            .map(|(name, spec)| (name, spec, stored(spec)))
            .collect();
        // Wider types first, so that every tensor is aligned to its own element.
        specs.sort_by_key(|&(_, _, dtype)| dtype == "BF16");
        let planned: Vec<Planned> = specs
            .iter()
            .map(|(name, spec, dtype)| Planned {
                name,
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
}

impl WeightFiles for WeightsFile<'_> {
    fn names(&self) -> Vec<String> {
        vec!["model.safetensors".to_string()]
    }

    fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }

    fn write(&mut self, _number: usize, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        for (_, spec, dtype) in &self.specs {
            write_values(out, &self.weights[spec.range()], dtype)?;
        }
        Ok(())
    }
}

/// Writes `values` as `F32` or `BF16`, little-endian.
pub(crate) fn write_values(
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

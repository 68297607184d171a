//! A checkpoint written in another form, tensor by tensor: no more than one is in memory.

mod folder;
mod fp8;
mod gguf;

use std::collections::TryReserveError;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use crate::checkpoint::{
    Contents, WeightDtype, read_small_file, read_small_file_if_there, small_file,
};
use crate::config::{Config, Fp8Blocks};
use crate::error::Error;
use crate::layout::{Layout, TensorSpec};
use crate::open::{Checkpoint, Files};
use folder::Shards;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// No configuration is larger.
const LARGEST_JSON: u64 = 16 << 20;

/// How [`Checkpoint::export_folder`] stores the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportDtype {
    /// From safetensors: every tensor of the files byte for byte, scales of FP8 and further copies
    /// of embedding and head included. From GGUF: f32 where all of it is F32, else bf16.
    AsStored,
    /// FP8 and GGUF's blocks expanded: exact.
    F32,
    /// Rounded to nearest, ties to even; `e_score_correction_bias` stays f32.
    Bf16,
    /// DeepSeek's: the projections in e4m3 with an f32 scale for each block of 128 x 128, the rest
    /// as [`Bf16`](ExportDtype::Bf16). What holds FP8 already is copied as stored.
    Fp8,
}

impl Checkpoint {
    /// Writes a Hugging Face folder: `config.json`, `generation_config.json`, the weights and
    /// `extra_files` (plain name, contents), such as the tokenizer's. The weights are one
    /// `model.safetensors`, or, where they are more than `shard_bytes`, files of no more than that
    /// (but for a larger tensor) with an index. A `generation_config.json` among the extra files
    /// stands in the place of the source folder's.
    ///
    /// Weights as stored keep the `config.json` of their folder; others get one without what this
    /// program does not know, and a tied head is not repeated; copies of embedding and head for
    /// multi-token prediction are written as DeepSeek's checkpoints have them.
    /// `progress` is told bytes written and bytes in all, and may stop it. The folder appears whole
    /// or not at all, as [`write_folder`](crate::write_folder) says; it may be the one that is
    /// read.
    ///
    /// FP8 follows `inference/kernel.py` of <https://github.com/deepseek-ai/DeepSeek-V3>: the scale
    /// of a block is its largest magnitude over 448 (`act_quant_kernel`), and a weight is its code
    /// times its block's scale (`weight_dequant_kernel`). Each matrix is read twice for it.
    ///
    /// # Errors
    /// As [`write_folder`](crate::write_folder); a tensor that cannot be read, or whose values are
    /// not finite where scales are made of them; [`Error::Stopped`].
    pub fn export_folder(
        &self,
        out: &Path,
        dtype: ExportDtype,
        extra_files: &[(&str, &[u8])],
        shard_bytes: u64,
        progress: &mut Report,
    ) -> Result<(), Error> {
        if shard_bytes == 0 {
            let message = "files of 0 bytes hold no weights; 5 GB are usual";
            return Err(Error::Usage(message.to_string()));
        }
        let (config, shards) = match (&self.files, self.weight_dtype(dtype)) {
            (Files::Folder(source), None) => {
                let config = read_small_file(self.path(), CONFIG, LARGEST_JSON)?;
                (config, Shards::copied(self, source, shard_bytes, progress))
            }
            (_, dtype) => {
                let dtype = dtype.unwrap_or(WeightDtype::Bf16);
                let config = self.config_for(dtype).to_json(dtype);
                let layout = Layout::new(self.config());
                let shards = Shards::converted(self, &layout, dtype, shard_bytes, progress);
                (config.into_bytes(), shards)
            }
        };
        let mut small_files = vec![small_file(CONFIG, &config)];
        small_files.extend(shards.index());
        if !extra_files
            .iter()
            .any(|(name, _)| *name == GENERATION_CONFIG)
        {
            small_files.push(small_file(GENERATION_CONFIG, &self.generation_config()?));
        }
        let mut contents = Contents {
            small_files,
            weights: shards,
        };
        contents.add(extra_files);
        contents.publish(out)
    }

    /// What the weights become; `None`: they are copied.
    fn weight_dtype(&self, dtype: ExportDtype) -> Option<WeightDtype> {
        let source = self.files.source();
        let all = |wanted: &str| source.tensors().iter().all(|tensor| tensor.dtype == wanted);
        let any = |wanted: &str| source.tensors().iter().any(|tensor| tensor.dtype == wanted);
        match dtype {
            ExportDtype::AsStored if !self.is_gguf() => None,
            ExportDtype::AsStored if all("F32") => Some(WeightDtype::F32),
            ExportDtype::AsStored | ExportDtype::Bf16 => Some(WeightDtype::Bf16),
            ExportDtype::F32 => Some(WeightDtype::F32),
            ExportDtype::Fp8 if any(crate::checkpoint::FP8) => None,
            ExportDtype::Fp8 => Some(WeightDtype::Fp8),
        }
    }

    fn config_for(&self, dtype: WeightDtype) -> Config {
        let mut config = self.config().clone();
        config.fp8 = (dtype == WeightDtype::Fp8).then_some(Fp8Blocks {
            block: [fp8::BLOCK; 2],
            ue8m0: false,
        });
        config
    }

    /// The folder's own, or one made of the configuration.
    fn generation_config(&self) -> Result<Vec<u8>, Error> {
        let found = match self.is_gguf() {
            true => None,
            false => read_small_file_if_there(self.path(), GENERATION_CONFIG, LARGEST_JSON)?,
        };
        Ok(found.unwrap_or_else(|| self.config().to_generation_json().into_bytes()))
    }
}

/// Is told bytes written and bytes in all, and says whether to go on.
type Report<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// How far an export is.
struct Progress<'a> {
    done: u64,
    total: u64,
    report: &'a mut Report<'a>,
}

impl Progress<'_> {
    /// # Errors
    /// [`Error::Stopped`] where that is asked for.
    fn add(&mut self, bytes: usize) -> io::Result<()> {
        self.done += bytes as u64;
        match (self.report)(self.done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped.into()),
        }
    }
}

/// Reads a tensor whole into a buffer that was used before.
fn read_into(
    checkpoint: &Checkpoint,
    spec: &TensorSpec,
    buffer: &mut Vec<f32>,
) -> Result<(), Error> {
    buffer.clear();
    let room = buffer.try_reserve_exact(spec.len);
    room.map_err(|_: TryReserveError| Error::Resources {
        path: checkpoint.path().to_path_buf(),
        message: format!(
            "{} bytes of memory needed for tensor `{}` alone; use a larger machine",
            4 * spec.len as u64,
            spec.name
        ),
    })?;
    buffer.resize(spec.len, 0.0);
    checkpoint
        .files
        .source()
        .read_f32(checkpoint.config(), spec, buffer)
}

//! Weights on disk: Hugging Face folders in and out, and single safetensors files.
//!
//! Everything read is taken for hostile: it is parsed, then validated, then allocated for, in that
//! order. Everything written is written beside its place, synced and renamed.

pub(crate) mod float;
mod folder;
mod gguf_source;
mod positioned;
mod publish;
mod rows;
mod safetensors;
mod source;
mod tensors;
mod weights;

pub use folder::{read_small_file_if_there, recover_folder, write_folder};
pub use publish::write_atomic;
pub use safetensors::check_safetensors;
pub use tensors::{NamedTensor, TensorData, read_tensors, write_tensors};
pub use weights::{NonFinite, Weights, read_weights};

pub(crate) use folder::{Contents, WeightFiles, read_small_file, small_file};
pub(crate) use gguf_source::GgufSource;
pub(crate) use publish::{Disk, refuse_dangling_link, replace_file};
pub(crate) use rows::{Counting, Expanded, Rounded, TensorSource};
pub(crate) use safetensors::{Planned, header};
pub(crate) use source::{FP8, Source, scale_name};
pub(crate) use weights::{read_all, write_values};

/// How [`write_folder`] stores the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// Exact.
    F32,
    /// Rounded to nearest, ties to even. `e_score_correction_bias` stays f32, as in DeepSeek-V3.
    Bf16,
    /// DeepSeek's: e4m3 with a scale per block for the matrices of the blocks, bf16 for the rest.
    Fp8,
}

impl WeightDtype {
    /// The name in `torch_dtype` of `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            WeightDtype::F32 => "float32",
            WeightDtype::Bf16 | WeightDtype::Fp8 => "bfloat16",
        }
    }
}

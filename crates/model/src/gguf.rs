//! GGUF, the container of llama.cpp: one file with the metadata, the tokenizer and the weights.
//!
//! Format: `docs/gguf.md` of <https://github.com/ggml-org/ggml>, versions 2 and 3, little-endian.
//! Reading goes through [`Gguf`], then [`config_json`] and [`HfTensors`], so that the rest of the
//! program sees one kind of configuration and one kind of tensor name. Writing goes through
//! [`metadata_of`], [`export_plan`] and [`GgufWriter`]. Every number of a file is taken for a lie
//! until it has been checked against the size of the file.

mod blocks;
mod config;
mod cursor;
mod export;
mod file;
mod k_quants;
mod kind;
mod metadata;
mod names;
mod quantize;
mod rope;
mod tensors;
mod tokenizer;
mod value;
mod writer;

pub use blocks::dequantize;
pub use config::config_json;
pub use export::{Export, Order, export_plan};
pub use file::{Gguf, GgufTensor};
pub use kind::{GgmlType, OtherType};
pub use metadata::metadata_of;
pub use names::{GgufName, HfName, gguf_name, hf_name};
pub use quantize::quantize;
pub use rope::rope_freqs;
pub use tensors::{HfTensor, HfTensors, Part};
pub use tokenizer::GgufTokenizer;
pub use value::{Array, Value};
pub use writer::{GgufWriter, TensorPlan};

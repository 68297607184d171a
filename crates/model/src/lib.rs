//! The DeepSeek-V3 architecture: its configuration, its weights and its checkpoint folders, and one
//! forward with its backward for training, prefill and decoding.

#![forbid(unsafe_code)]

mod activations;
mod batch;
mod checkpoint;
mod config;
mod error;
mod layout;
mod mla;
mod mlp;
mod model;

pub use activations::Activations;
pub use batch::{Batch, CachePlaces, KvCache};
pub use checkpoint::{
    NamedTensor, NonFinite, TensorData, WeightDtype, Weights, read_tensors, read_weights,
    recover_folder, write_atomic, write_folder, write_tensors,
};
pub use config::Config;
pub use error::Error;
pub use layout::{
    LayerOffsets, Layout, MlpOffsets, MoeOffsets, QueryOffsets, SwigluOffsets, TensorSpec,
};
pub use model::{Loss, Model, Numerics, Targets};

//! The DeepSeek-V3 architecture: its configuration, its weights and its checkpoint folders.

#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod error;
mod layout;

pub use checkpoint::{
    NamedTensor, NonFinite, TensorData, WeightDtype, Weights, read_tensors, read_weights,
    recover_folder, write_atomic, write_folder, write_tensors,
};
pub use config::Config;
pub use error::Error;
pub use layout::{
    LayerOffsets, Layout, MlpOffsets, MoeOffsets, QueryOffsets, SwigluOffsets, TensorSpec,
};

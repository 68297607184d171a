//! The architectures of DeepSeek's family and of what was distilled from it: their configuration,
//! their weights and checkpoints, and one forward with its backward for training, prefill and
//! decoding.

#![forbid(unsafe_code)]

mod activations;
mod batch;
mod block;
mod checkpoint;
mod config;
mod error;
mod export;
pub mod gguf;
mod gqa;
mod layout;
mod mla;
mod mlp;
mod model;
mod mtp;
mod open;
mod params;

pub use activations::Activations;
pub use batch::{Batch, CachePlaces, KvCache};
pub use checkpoint::{
    NamedTensor, NonFinite, TensorData, WeightDtype, Weights, check_safetensors,
    read_small_file_if_there, read_tensors, read_weights, recover_folder, write_atomic,
    write_folder, write_tensors,
};
pub use config::{
    Architecture, Attention, Config, DenseLayers, Fp8Blocks, Gqa, Llama3Scaling, Mla, Moe, Rope,
    RopeScaling, ScoringFunc, TopkMethod, YarnScaling,
};
pub use error::Error;
pub use export::ExportDtype;
pub use layout::{
    AttentionOffsets, GqaOffsets, LayerOffsets, Layout, LinearOffsets, MlaOffsets, MlpOffsets,
    MoeOffsets, MtpOffsets, QueryOffsets, SwigluOffsets, TensorSpec,
};
pub use model::{Loss, Model, Numerics, Targets};
pub use mtp::MtpLoss;
pub use open::{Checkpoint, KeptWeights, Loading, Opened, Opening, StoredTensor};

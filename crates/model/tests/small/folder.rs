//! Models and files made by hand.

use std::fs;
use std::path::Path;

use model::{Config, Layout, WeightDtype, write_folder};

/// Different in every place, exact in bf16 for small models, zero in the padding.
pub fn counting_weights(layout: &Layout) -> Vec<f32> {
    let mut weights = vec![0.0; layout.total_len];
    for (number, spec) in layout.tensors.iter().enumerate() {
        for (idx, value) in weights[spec.range()].iter_mut().enumerate() {
            *value = ((number * 37 + idx * 11) % 255) as f32 / 8.0 - 15.0;
        }
    }
    weights
}

/// Writes a small model to `dir` and gives back its configuration, layout and weights.
pub fn write_small(dir: &Path) -> (Config, Layout, Vec<f32>) {
    let config = super::small::small_config();
    let layout = Layout::new(&config);
    let weights = counting_weights(&layout);
    write_folder(dir, &config, &layout, &weights, &[], WeightDtype::F32).unwrap();
    (config, layout, weights)
}

/// A safetensors file with this header and `data_bytes` zeros behind it.
pub fn write_raw(path: &Path, header: &str, data_bytes: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    fs::write(path, bytes).unwrap();
}

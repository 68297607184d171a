//! Llama 3's scaling of the rotary frequencies, which GGUF holds as a tensor of divisors.
//!
//! Formula: `_compute_llama3_parameters` in `modeling_rope_utils.py` of transformers, and
//! `LlamaModel.generate_extra_tensors` in `conversion/llama.py` of llama.cpp.

use std::f64::consts::PI;

use serde_json::{Value as Json, json};

use super::config::decimal;
use super::file::Gguf;
use crate::error::Error;

/// What Llama 3.1 and its successors were published with.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
/// Contexts before scaling that are tried, Llama 3's first.
const ORIGINAL_CONTEXTS: [u32; 12] = [
    8192, 4096, 16384, 32768, 65536, 2048, 1024, 512, 256, 128, 64, 32,
];
/// The divisors come from f32 arithmetic.
const TOLERANCE: f64 = 1e-4;

/// The parameters of `rope_type` `llama3`.
struct Llama3 {
    theta: f64,
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_context: f64,
}

impl Llama3 {
    /// What each frequency is divided by; `[head_dim / 2]`.
    fn divisors(&self, head_dim: usize) -> Vec<f64> {
        let divisor = |pair: usize| {
            let exponent = (2 * pair) as f64 / head_dim as f64;
            let wavelength = 2.0 * PI * self.theta.powf(exponent);
            // How often the wave turns within the context that the model first learned.
            let turns = self.original_context / wavelength;
            if turns > self.high_freq_factor {
                1.0
            } else if turns < self.low_freq_factor {
                self.factor
            } else {
                let width = self.high_freq_factor - self.low_freq_factor;
                let smooth = (turns - self.low_freq_factor) / width;
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        };
        (0..head_dim / 2).map(divisor).collect()
    }
}

/// The tensor `rope_freqs.weight` `[head_dim / 2]` that a `config.json` asks for, or `None` if its
/// rotary embedding is not of type `llama3`.
///
/// # Errors
/// [`Error::Config`] naming the field that is absent.
pub fn rope_freqs(config: &Json) -> Result<Option<Vec<f32>>, Error> {
    let rope = super::metadata::Fields(config).rope();
    if rope.kind() != Some("llama3") {
        return Ok(None);
    }
    let llama3 = Llama3 {
        theta: rope.theta()?,
        factor: rope.number("factor")?,
        low_freq_factor: rope.number("low_freq_factor")?,
        high_freq_factor: rope.number("high_freq_factor")?,
        original_context: rope.number("original_max_position_embeddings")?,
    };
    let known = (llama3.low_freq_factor, llama3.high_freq_factor)
        == (LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR)
        && ORIGINAL_CONTEXTS
            .map(f64::from)
            .contains(&llama3.original_context);
    if !known {
        let message = "GGUF does not say these parameters of llama3, and a reader knows the usual \
                       ones alone; write a folder instead";
        return Err(Error::field("rope_scaling", message));
    }
    let head_dim = super::metadata::Fields(config).head_dim()?;
    let divisors = llama3.divisors(head_dim).into_iter();
    Ok(Some(divisors.map(|value| value as f32).collect()))
}

/// The `rope_scaling` that `rope_freqs.weight` says, or `None` if there is no such tensor.
///
/// The tensor does not say its parameters; those of Llama 3.1 are tried, with the factor and the
/// original context that fit.
///
/// # Errors
/// [`Error::File`] naming the tensor, if they do not give its values.
pub(super) fn llama3_scaling(
    gguf: &Gguf,
    head_dim: usize,
    theta: f64,
) -> Result<Option<Json>, Error> {
    let name = "rope_freqs.weight";
    let Some(number) = gguf.find(name) else {
        return Ok(None);
    };
    let tensor = &gguf.tensors[number];
    if tensor.shape != [head_dim / 2] {
        let message = format!("shape {:?}, expected [{}]", tensor.shape, head_dim / 2);
        return Err(gguf.bad_tensor(name, message));
    }
    let mut stored = vec![0.0; head_dim / 2];
    gguf.read_rows_f32(number, 0..1, &mut stored)?;
    if stored.iter().all(|&value| value == 1.0) {
        return Ok(None);
    }
    let factor = decimal(stored.iter().fold(1.0, |most, &value| value.max(most)));
    for original_context in ORIGINAL_CONTEXTS {
        let llama3 = Llama3 {
            theta,
            factor,
            low_freq_factor: LOW_FREQ_FACTOR,
            high_freq_factor: HIGH_FREQ_FACTOR,
            original_context: f64::from(original_context),
        };
        let same = |(stored, divisor): (&f32, f64)| {
            (f64::from(*stored) - divisor).abs() <= TOLERANCE * divisor
        };
        if stored.iter().zip(llama3.divisors(head_dim)).all(same) {
            return Ok(Some(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW_FREQ_FACTOR,
                "high_freq_factor": HIGH_FREQ_FACTOR,
                "original_max_position_embeddings": original_context,
            })));
        }
    }
    let message = "its divisors are not those of Llama 3.1's scaling; no other is known";
    Err(gguf.bad_tensor(name, message))
}

//! Rotary positions and the ways in which they are stretched over longer contexts.

use super::{Attention, Config, positive};
use crate::error::Error;
use kernels::{RopeFrequencies, math};
use std::f64::consts::PI;

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `rope_theta`
    pub theta: f64,
    /// `rope_interleave`; true: rotated pairs are neighbours `(2i, 2i + 1)`; false:
    /// `(i, i + dim / 2)`.
    pub interleave: bool,
    pub scaling: RopeScaling,
}

/// `rope_scaling`, or `rope_parameters` as transformers 5 writes it.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by a factor.
    Linear {
        factor: f64,
    },
    Yarn(YarnScaling),
    Llama3(Llama3Scaling),
}

/// YaRN (arXiv 2309.00071) with DeepSeek's two `mscale`s.
#[derive(Clone, Debug, PartialEq)]
pub struct YarnScaling {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Absent in configurations that are not DeepSeek's.
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    /// Overrides the factor on cosine and sine.
    pub attention_factor: Option<f64>,
    /// Multiplies it, as in YaRN's own code; DeepSeek-R1-0528-Qwen3-8B has it, and transformers
    /// passes it over.
    pub attn_factor: Option<f64>,
    /// Whether the range of the ramp is rounded to whole dimensions.
    pub truncate: bool,
}

/// Llama 3.1's scaling by wavelength.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

impl Rope {
    /// Unscaled.
    pub fn plain(theta: f64, interleave: bool) -> Rope {
        Rope {
            theta,
            interleave,
            scaling: RopeScaling::None,
        }
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        positive("rope_theta", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("rope_scaling.factor", *factor),
            RopeScaling::Yarn(yarn) => yarn.validate(self.theta),
            RopeScaling::Llama3(llama) => llama.validate(),
        }
    }
}

impl YarnScaling {
    fn validate(&self, theta: f64) -> Result<(), Error> {
        at_least_one("rope_scaling.factor", self.factor)?;
        positive("rope_scaling.beta_fast", self.beta_fast)?;
        positive("rope_scaling.beta_slow", self.beta_slow)?;
        if theta <= 1.0 {
            let message = format!("{theta} with YaRN; it must be above 1");
            return Err(Error::field("rope_theta", message));
        }
        for (field, value) in [
            ("rope_scaling.mscale", self.mscale),
            ("rope_scaling.mscale_all_dim", self.mscale_all_dim),
        ] {
            if value.is_some_and(|value| !(0.0..=1e3).contains(&value)) {
                let message = format!("{} is outside 0..=1000", value.unwrap_or_default());
                return Err(Error::field(field, message));
            }
        }
        for (field, value) in [
            ("rope_scaling.attention_factor", self.attention_factor),
            ("rope_scaling.attn_factor", self.attn_factor),
        ] {
            positive(field, value.unwrap_or(1.0))?;
        }
        Ok(())
    }

    /// 0.1 mscale ln(factor) + 1.
    fn magnitude(&self, mscale: f64) -> f64 {
        0.1 * mscale * math::ln(self.factor) + 1.0
    }

    /// The factor on cosine and sine. DeepSeek's code has defaults of 1 and 0 for the two
    /// `mscale`s; elsewhere (transformers' `_compute_yarn_parameters`) they count only together.
    fn rotation_factor(&self, is_deepseek: bool) -> f64 {
        if let Some(factor) = self.attention_factor {
            return factor;
        }
        let own = match (self.mscale, self.mscale_all_dim) {
            (mscale, all_dim) if is_deepseek => {
                self.magnitude(mscale.unwrap_or(1.0)) / self.magnitude(all_dim.unwrap_or(0.0))
            }
            (Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
                self.magnitude(mscale) / self.magnitude(all_dim)
            }
            _ => self.magnitude(1.0),
        };
        own * self.attn_factor.unwrap_or(1.0)
    }

    /// Pairs that turn often within the original context keep their speed, pairs that turn less
    /// than once are slowed by `factor`, and a ramp lies between.
    fn stretch(&self, theta: f64, dim: usize, inverse: &mut [f64]) {
        let original = self.original_max_position_embeddings as f64;
        let dimension = |turns: f64| {
            dim as f64 * math::ln(original / (turns * 2.0 * PI)) / (2.0 * math::ln(theta))
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, speed) in inverse.iter_mut().enumerate() {
            let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *speed = *speed / self.factor * slowed + *speed * (1.0 - slowed);
        }
    }
}

impl Llama3Scaling {
    fn validate(&self) -> Result<(), Error> {
        at_least_one("rope_scaling.factor", self.factor)?;
        positive("rope_scaling.low_freq_factor", self.low_freq_factor)?;
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        if high.is_finite() && high > low {
            return Ok(());
        }
        let message = format!("{high} is not above low_freq_factor, {low}");
        Err(Error::field("rope_scaling.high_freq_factor", message))
    }

    /// Wavelengths beyond the original context are slowed by `factor`, short ones kept.
    fn stretch(&self, inverse: &mut [f64]) {
        let original = self.original_max_position_embeddings as f64;
        for speed in inverse {
            let turns = original * *speed / (2.0 * PI);
            let span = self.high_freq_factor - self.low_freq_factor;
            let kept = ((turns - self.low_freq_factor) / span).clamp(0.0, 1.0);
            *speed = (1.0 - kept) * *speed / self.factor + kept * *speed;
        }
    }
}

fn at_least_one(field: &str, value: f64) -> Result<(), Error> {
    positive(field, value)?;
    if value >= 1.0 {
        return Ok(());
    }
    Err(Error::field(field, format!("{value} is below 1")))
}

impl Config {
    /// How fast each pair turns.
    pub fn rope_frequencies(&self) -> RopeFrequencies {
        let dim = self.attention.rope_dim();
        let mut frequencies = RopeFrequencies::new(self.rope.theta, dim);
        match &self.rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                frequencies.inverse.iter_mut().for_each(|f| *f /= factor);
            }
            RopeScaling::Yarn(yarn) => {
                yarn.stretch(self.rope.theta, dim, &mut frequencies.inverse);
                frequencies.factor = yarn.rotation_factor(self.architecture.is_deepseek());
            }
            RopeScaling::Llama3(llama) => llama.stretch(&mut frequencies.inverse),
        }
        frequencies
    }

    /// The factor on attention scores. DeepSeek's models with YaRN sharpen it by the square of the
    /// magnitude of `mscale_all_dim`.
    pub fn softmax_scale(&self) -> f32 {
        let width = match &self.attention {
            Attention::Mla(mla) => mla.qk_head_dim(),
            Attention::Gqa(gqa) => gqa.head_dim,
        };
        let plain = 1.0 / (width as f64).sqrt();
        let sharpened = match &self.rope.scaling {
            RopeScaling::Yarn(yarn) if self.architecture.is_deepseek() => {
                let magnitude = yarn.magnitude(yarn.mscale_all_dim.unwrap_or(0.0));
                magnitude * magnitude
            }
            _ => 1.0,
        };
        (plain * sharpened) as f32
    }
}

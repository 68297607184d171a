//! One decoder layer: attention of either kind, then a feed-forward half of either kind, each
//! behind a norm and beside the residual stream.

use crate::activations::{Gradients, LayerActivations};
use crate::batch::{Batch, KvCache};
use crate::config::{Attention, Config};
use crate::error::Error;
use crate::gqa::{Gqa, GqaWeights};
use crate::layout::{AttentionOffsets, LayerOffsets};
use crate::mla::{Mla, MlaWeights};
use crate::mlp::{Mlp, MlpWeights};
use crate::model::Numerics;
use crate::params::Params;
use kernels::{Backend, Mat, MatMut, Precision, RopeAngles, Weight};
use std::ops::Range;

/// What a matrix is for, which decides how it may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Projection,
    /// It decides which weights are used at all: always f32.
    Router,
    /// One head's rows of `kv_b_proj` that belong to its key; multiplied from the left.
    KeyUp,
    /// One head's rows of `kv_b_proj` that belong to its value.
    ValueUp,
    Head,
    /// Rows are looked up, never multiplied.
    Embedding,
}

impl Role {
    /// What operands of its products are rounded to.
    pub fn precision(self, numerics: Numerics) -> Precision {
        match self {
            Role::Router => Precision::F32,
            Role::Head | Role::Embedding => numerics.head_precision,
            Role::Projection | Role::KeyUp | Role::ValueUp => numerics.precision,
        }
    }
}

/// Makes the weights of products: empty ones that training fills, or those of a checkpoint.
pub(crate) trait Maker {
    /// The matrix `[out_features, in_features]` at a range of the flat buffer.
    fn weight(
        &mut self,
        range: Range<usize>,
        shape: [usize; 2],
        role: Role,
    ) -> Result<Weight, Error>;
}

/// Copies a matrix out of the flat buffer into its panels.
pub(crate) fn pack(backend: &dyn Backend, p: &[f32], range: Range<usize>, to: &mut Weight) {
    backend.pack(Mat::new(&p[range], to.in_features()), to);
}

/// The packed weights of one layer.
pub(crate) struct BlockWeights {
    attention: AttentionWeights,
    mlp: MlpWeights,
}

enum AttentionWeights {
    Mla(MlaWeights),
    Gqa(GqaWeights),
}

impl BlockWeights {
    pub fn make(
        config: &Config,
        at: &LayerOffsets,
        maker: &mut dyn Maker,
    ) -> Result<BlockWeights, Error> {
        let attention = match (&config.attention, &at.attention) {
            (Attention::Mla(mla), AttentionOffsets::Mla(at)) => {
                AttentionWeights::Mla(MlaWeights::make(config, mla, at, maker)?)
            }
            (Attention::Gqa(gqa), AttentionOffsets::Gqa(at)) => {
                AttentionWeights::Gqa(GqaWeights::make(config, gqa, at, maker)?)
            }
            _ => unreachable!("configuration and layout belong together"),
        };
        let mlp = MlpWeights::make(config, &at.mlp, maker)?;
        Ok(BlockWeights { attention, mlp })
    }

    /// Repacks after a change of the weights.
    pub fn pack(&mut self, backend: &dyn Backend, config: &Config, at: &LayerOffsets, p: &[f32]) {
        match (&mut self.attention, &at.attention) {
            (AttentionWeights::Mla(weights), AttentionOffsets::Mla(at)) => {
                weights.pack(backend, config, at, p);
            }
            (AttentionWeights::Gqa(weights), AttentionOffsets::Gqa(at)) => {
                weights.pack(backend, at, p);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
        self.mlp.pack(backend, &at.mlp, p);
    }
}

/// What the layers of one pass share.
pub(crate) struct Pass<'a> {
    pub config: &'a Config,
    pub numerics: Numerics,
    pub backend: &'a dyn Backend,
    pub params: &'a Params,
    /// Cosines and sines of the batch's positions.
    pub angles: &'a RopeAngles,
}

impl Pass<'_> {
    /// out = layer(residual).
    pub fn forward(
        &self,
        weights: &BlockWeights,
        at: &LayerOffsets,
        batch: &Batch,
        residual: &[f32],
        acts: &mut LayerActivations,
        cache: Option<(&mut KvCache, usize)>,
        out: &mut [f32],
    ) {
        // 1. h = norm(residual)
        let (norm, h) = (&at.input_layernorm, &mut acts.attention_input);
        self.norm(norm, residual, h, &mut acts.attention_inv_rms);
        // 2. middle = residual + attention(h)
        acts.middle.copy_from_slice(residual);
        match (&weights.attention, &at.attention) {
            (AttentionWeights::Mla(weights), AttentionOffsets::Mla(at)) => {
                Mla(self).forward(weights, at, batch, acts, cache);
            }
            (AttentionWeights::Gqa(weights), AttentionOffsets::Gqa(at)) => {
                Gqa(self).forward(weights, at, batch, acts, cache);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
        // 3. h = norm(middle)
        let (norm, h) = (&at.post_attention_layernorm, &mut acts.mlp_input);
        self.norm(norm, &acts.middle, h, &mut acts.mlp_inv_rms);
        // 4. out = middle + mlp(h)
        out.copy_from_slice(&acts.middle);
        Mlp(self).forward(&weights.mlp, &at.mlp, acts, out);
    }

    /// The gradient of the residual stream, d.residual, from after the layer to before it; adds
    /// the sequence-wise balance loss, whose value is returned.
    pub fn backward(
        &self,
        weights: &BlockWeights,
        at: &LayerOffsets,
        batch: &Batch,
        balance_loss_alpha: f32,
        residual: &[f32],
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) -> f32 {
        // 4. out = middle + mlp(h)
        let mlp = Mlp(self);
        let alpha = balance_loss_alpha;
        let balance_loss = mlp.backward(&weights.mlp, &at.mlp, batch, alpha, acts, d, grads);
        // 3. h = norm(middle)
        let norm = &at.post_attention_layernorm;
        self.norm_backward(norm, &acts.middle, &acts.mlp_inv_rms, d, grads);
        // 2. middle = residual + attention(h)
        match (&weights.attention, &at.attention) {
            (AttentionWeights::Mla(weights), AttentionOffsets::Mla(at)) => {
                Mla(self).backward(weights, at, batch, acts, d, grads);
            }
            (AttentionWeights::Gqa(weights), AttentionOffsets::Gqa(at)) => {
                Gqa(self).backward(weights, at, batch, acts, d, grads);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
        // 1. h = norm(residual)
        let norm = &at.input_layernorm;
        self.norm_backward(norm, residual, &acts.attention_inv_rms, d, grads);
        balance_loss
    }

    /// h = norm(x), rows of `hidden_size`.
    pub fn norm(&self, weight: &Range<usize>, x: &[f32], h: &mut [f32], inv_rms: &mut [f32]) {
        let (hidden, eps) = (self.config.hidden_size, self.config.rms_norm_eps as f32);
        let (x, h) = (Mat::new(x, hidden), MatMut::new(h, hidden));
        self.backend
            .rmsnorm(x, self.params.get(weight), eps, h, inv_rms);
    }

    /// Adds to d.residual what d.normed says.
    fn norm_backward(
        &self,
        weight: &Range<usize>,
        x: &[f32],
        inv_rms: &[f32],
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let hidden = self.config.hidden_size;
        self.backend.rmsnorm_backward(
            Mat::new(x, hidden),
            self.params.get(weight),
            inv_rms,
            Mat::new(&d.normed, hidden),
            MatMut::new(&mut d.residual, hidden),
            true,
            &mut grads[weight.clone()],
        );
    }
}

//! Grouped-query attention (Ainslie et al. 2023) of Llama and Qwen: several query heads share a
//! key and a value head; Qwen2 adds biases, Qwen3 norms of queries and keys.

use crate::activations::{Gradients, LayerActivations};
use crate::batch::{Batch, KvCache};
use crate::block::{Maker, Pass, Role, pack};
use crate::config::{self, Attention, Config};
use crate::error::Error;
use crate::layout::{GqaOffsets, LinearOffsets};
use kernels::{Backend, Heads, Mat, MatMut, Weight};
use std::ops::{Deref, Range};

/// The packed weights of one attention.
pub(crate) struct GqaWeights {
    q_proj: Weight,
    k_proj: Weight,
    v_proj: Weight,
    o_proj: Weight,
}

impl GqaWeights {
    pub fn make(
        config: &Config,
        gqa: &config::Gqa,
        at: &GqaOffsets,
        maker: &mut dyn Maker,
    ) -> Result<GqaWeights, Error> {
        let hidden = config.hidden_size;
        let queries = config.num_attention_heads * gqa.head_dim;
        let keys = gqa.num_key_value_heads * gqa.head_dim;
        let mut new =
            |at: &LinearOffsets, shape| maker.weight(at.weight.clone(), shape, Role::Projection);
        Ok(GqaWeights {
            q_proj: new(&at.q_proj, [queries, hidden])?,
            k_proj: new(&at.k_proj, [keys, hidden])?,
            v_proj: new(&at.v_proj, [keys, hidden])?,
            o_proj: new(&at.o_proj, [hidden, queries])?,
        })
    }

    /// Repacks after a change of the weights.
    pub fn pack(&mut self, backend: &dyn Backend, at: &GqaOffsets, p: &[f32]) {
        for (at, packed) in [
            (&at.q_proj, &mut self.q_proj),
            (&at.k_proj, &mut self.k_proj),
            (&at.v_proj, &mut self.v_proj),
            (&at.o_proj, &mut self.o_proj),
        ] {
            pack(backend, p, at.weight.clone(), packed);
        }
    }
}

/// The attention of a pass's layers.
pub(crate) struct Gqa<'a>(pub &'a Pass<'a>);

impl<'a> Deref for Gqa<'a> {
    type Target = Pass<'a>;

    fn deref(&self) -> &Pass<'a> {
        self.0
    }
}

impl Gqa<'_> {
    fn shape(&self) -> &config::Gqa {
        match &self.config.attention {
            Attention::Gqa(gqa) => gqa,
            Attention::Mla(_) => unreachable!("weights and layout come from one configuration"),
        }
    }

    fn heads(&self) -> Heads {
        let shape = self.shape();
        Heads {
            heads: self.config.num_attention_heads,
            kv_heads: shape.num_key_value_heads,
            qk_dim: shape.head_dim,
            v_dim: shape.head_dim,
            scale: self.config.softmax_scale(),
        }
    }

    /// acts.middle += attention(acts.attention_input).
    pub fn forward(
        &self,
        weights: &GqaWeights,
        at: &GqaOffsets,
        batch: &Batch,
        acts: &mut LayerActivations,
        cache: Option<(&mut KvCache, usize)>,
    ) {
        // 1. q, k, v = W h + b
        self.project(weights, at, acts);
        // 2. q, k = norm(q), norm(k), head by head
        self.norm_heads(at, acts);
        // 3. q, k rotated
        let Heads {
            heads, kv_heads, ..
        } = self.heads();
        self.rotate(&mut acts.q, heads, false);
        self.rotate(&mut acts.k, kv_heads, false);
        // 4. out = softmax(scale q kᵀ) v
        self.attend(batch, acts, cache);
        // 5. middle += W_O out + b
        let hidden = self.config.hidden_size;
        let out = Mat::new(&acts.attention_out, weights.o_proj.in_features());
        let mut middle = MatMut::new(&mut acts.middle, hidden);
        self.backend
            .matmul_nt(out, &weights.o_proj, middle.reborrow(), true);
        self.add_bias(&at.o_proj, middle);
    }

    /// d.normed from d.residual, which stays.
    pub fn backward(
        &self,
        weights: &GqaWeights,
        at: &GqaOffsets,
        batch: &Batch,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        // 5. middle += W_O out + b
        let hidden = self.config.hidden_size;
        let out = Mat::new(&acts.attention_out, weights.o_proj.in_features());
        let dmiddle = Mat::new(&d.residual, hidden);
        let dout = MatMut::new(&mut d.attention_out, weights.o_proj.in_features());
        self.linear_backward(
            &weights.o_proj,
            &at.o_proj,
            out,
            dmiddle,
            dout,
            false,
            grads,
        );
        // 4. out = softmax(scale q kᵀ) v
        self.attend_backward(batch, acts, d);
        // 3. q, k rotated
        let Heads {
            heads, kv_heads, ..
        } = self.heads();
        self.rotate(&mut d.q, heads, true);
        self.rotate(&mut d.k, kv_heads, true);
        // 2. q, k = norm(q), norm(k), head by head
        self.norm_heads_backward(at, acts, d, grads);
        // 1. q, k, v = W h + b
        let (dq, dk) = match at.qk_norm {
            Some(_) => (&d.q_raw, &d.k_raw),
            None => (&d.q, &d.k),
        };
        let h = Mat::new(&acts.attention_input, hidden);
        for (i, (weight, at, dy)) in [
            (&weights.q_proj, &at.q_proj, dq),
            (&weights.k_proj, &at.k_proj, dk),
            (&weights.v_proj, &at.v_proj, &d.v),
        ]
        .into_iter()
        .enumerate()
        {
            let dy = Mat::new(dy, weight.out_features());
            let dh = MatMut::new(&mut d.normed, hidden);
            self.linear_backward(weight, at, h, dy, dh, i > 0, grads);
        }
    }

    fn project(&self, weights: &GqaWeights, at: &GqaOffsets, acts: &mut LayerActivations) {
        let h = Mat::new(&acts.attention_input, self.config.hidden_size);
        let (q, k) = match at.qk_norm {
            Some(_) => (&mut acts.q_raw, &mut acts.k_raw),
            None => (&mut acts.q, &mut acts.k),
        };
        let products = [
            (&weights.q_proj, q),
            (&weights.k_proj, k),
            (&weights.v_proj, &mut acts.v),
        ];
        let mut products = products.map(|(w, y)| (w, MatMut::new(y, w.out_features())));
        self.backend.matmul_nt_each(h, &mut products);
        for (at, (_, y)) in [&at.q_proj, &at.k_proj, &at.v_proj]
            .into_iter()
            .zip(products)
        {
            self.add_bias(at, y);
        }
    }

    fn add_bias(&self, at: &LinearOffsets, y: MatMut) {
        if let Some(bias) = &at.bias {
            self.backend.add_bias(y, self.params.get(bias));
        }
    }

    /// Of y = W x + b: gradients of W and b are added, that of x is written or added.
    fn linear_backward(
        &self,
        weight: &Weight,
        at: &LinearOffsets,
        x: Mat,
        dy: Mat,
        dx: MatMut,
        add: bool,
        grads: &mut [f32],
    ) {
        if let Some(bias) = &at.bias {
            self.backend.add_bias_backward(dy, &mut grads[bias.clone()]);
        }
        let dweight = &mut grads[at.weight.clone()];
        self.backend
            .matmul_tn(dy, x, self.numerics.precision, dweight);
        self.backend.matmul_nn(dy, weight, dx, add);
    }

    fn norm_heads(&self, at: &GqaOffsets, acts: &mut LayerActivations) {
        let Some([q_norm, k_norm]) = &at.qk_norm else {
            return;
        };
        let (dim, eps) = (self.shape().head_dim, self.config.rms_norm_eps as f32);
        for (weight, raw, normed, inv_rms) in [
            (q_norm, &acts.q_raw, &mut acts.q, &mut acts.q_inv_rms),
            (k_norm, &acts.k_raw, &mut acts.k, &mut acts.k_inv_rms),
        ] {
            let (x, y) = (Mat::new(raw, dim), MatMut::new(normed, dim));
            self.backend
                .rmsnorm(x, self.params.get(weight), eps, y, inv_rms);
        }
    }

    /// d.q_raw and d.k_raw from d.q and d.k.
    fn norm_heads_backward(
        &self,
        at: &GqaOffsets,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let Some([q_norm, k_norm]) = &at.qk_norm else {
            return;
        };
        for (weight, raw, inv_rms, dy, dx) in [
            (q_norm, &acts.q_raw, &acts.q_inv_rms, &d.q, &mut d.q_raw),
            (k_norm, &acts.k_raw, &acts.k_inv_rms, &d.k, &mut d.k_raw),
        ] {
            self.norm_head_backward(weight, raw, inv_rms, dy, dx, grads);
        }
    }

    fn norm_head_backward(
        &self,
        weight: &Range<usize>,
        raw: &[f32],
        inv_rms: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        grads: &mut [f32],
    ) {
        let dim = self.shape().head_dim;
        self.backend.rmsnorm_backward(
            Mat::new(raw, dim),
            self.params.get(weight),
            inv_rms,
            Mat::new(dy, dim),
            MatMut::new(dx, dim),
            false,
            &mut grads[weight.clone()],
        );
    }

    fn rotate(&self, x: &mut [f32], heads: usize, transposed: bool) {
        let (dim, interleave) = (self.shape().head_dim, self.config.rope.interleave);
        let x = MatMut::new(x, heads * dim);
        self.backend
            .rope(x, dim, dim, self.angles, interleave, transposed);
    }

    fn attend(
        &self,
        batch: &Batch,
        acts: &mut LayerActivations,
        cache: Option<(&mut KvCache, usize)>,
    ) {
        let (backend, shape) = (self.backend, self.heads());
        let width = shape.kv_heads * shape.qk_dim;
        let q = Mat::new(&acts.q, shape.heads * shape.qk_dim);
        let own = [Mat::new(&acts.k, width), Mat::new(&acts.v, width)];
        let ([k, v], block_size) = match (cache, &batch.places) {
            (Some((cache, layer)), Some(places)) => {
                let block_size = cache.block_size();
                let layer = &mut cache.layers[layer];
                for (own, rows) in own.into_iter().zip([&mut layer.keys, &mut layer.values]) {
                    let rows = MatMut::new(rows, width);
                    backend.write_rows(own, &places.slot_mapping, rows);
                }
                let kv = [Mat::new(&layer.keys, width), Mat::new(&layer.values, width)];
                (kv, block_size)
            }
            (None, None) => (own, 1),
            _ => panic!("a cache and places in it go together"),
        };
        let sequences = batch.sequences(block_size);
        let out = MatMut::new(&mut acts.attention_out, q.cols);
        backend.attention(
            [q, k, v],
            &shape,
            &sequences,
            out,
            &mut acts.attention_stats,
        );
    }

    /// d.q, d.k and d.v from d.attention_out.
    fn attend_backward(&self, batch: &Batch, acts: &LayerActivations, d: &mut Gradients) {
        let shape = self.heads();
        let (width, kv_width) = (shape.heads * shape.qk_dim, shape.kv_heads * shape.qk_dim);
        let qkv = [
            Mat::new(&acts.q, width),
            Mat::new(&acts.k, kv_width),
            Mat::new(&acts.v, kv_width),
        ];
        let dqkv = [
            MatMut::new(&mut d.q, width),
            MatMut::new(&mut d.k, kv_width),
            MatMut::new(&mut d.v, kv_width),
        ];
        let out = Mat::new(&acts.attention_out, width);
        let dout = Mat::new(&d.attention_out, width);
        let (stats, sequences) = (&acts.attention_stats, batch.sequences(1));
        self.backend
            .attention_backward(qkv, &shape, &sequences, out, stats, dout, dqkv);
    }
}

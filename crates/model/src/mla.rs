//! Multi-head latent attention (DeepSeek-V2, section 2.1), in the absorbed form: queries are taken
//! to the latent's space, so keys and values *are* the cached latent. Rollout, prefill and training
//! run the same lines, which is why their log-probabilities agree bit for bit.

use crate::activations::{Gradients, LayerActivations};
use crate::batch::{Batch, KvCache};
use crate::config::Config;
use crate::layout::{LayerOffsets, QueryOffsets};
use crate::model::Numerics;
use kernels::{Backend, Heads, Mat, MatMut, PackedWeight, RopeTable};
use std::ops::Range;

/// The norms of the latents have an epsilon of their own, whatever `rms_norm_eps` says (RMSNorm of
/// DeepSeek-V3's `inference/model.py`; transformers' `DeepseekV3RMSNorm`).
const LATENT_NORM_EPS: f32 = 1e-6;

/// The packed weights of one attention.
pub(crate) struct MlaWeights {
    query: QueryWeights,
    kv_a_proj_with_mqa: PackedWeight,
    /// W_UK of each head: `[qk_nope_head_dim, kv_lora_rank]`, rows of kv_b_proj.
    key_up: Vec<PackedWeight>,
    /// W_UV of each head: `[v_head_dim, kv_lora_rank]`, rows of kv_b_proj.
    value_up: Vec<PackedWeight>,
    o_proj: PackedWeight,
}

enum QueryWeights {
    Direct {
        q_proj: PackedWeight,
    },
    LowRank {
        q_a_proj: PackedWeight,
        q_b_proj: PackedWeight,
    },
}

/// What every layer's attention shares.
pub(crate) struct Mla<'a> {
    pub config: &'a Config,
    pub numerics: Numerics,
    pub backend: &'a dyn Backend,
    pub rope: &'a RopeTable,
    pub params: &'a [f32],
}

impl MlaWeights {
    pub fn new(config: &Config, numerics: Numerics) -> MlaWeights {
        let new = |out, input| PackedWeight::new(out, input, numerics.precision);
        let (heads, rank) = (config.num_attention_heads, config.kv_lora_rank);
        let (hidden, queries) = (config.hidden_size, heads * config.qk_head_dim());
        let query = match config.q_lora_rank {
            None => QueryWeights::Direct {
                q_proj: new(queries, hidden),
            },
            Some(rank) => QueryWeights::LowRank {
                q_a_proj: new(rank, hidden),
                q_b_proj: new(queries, rank),
            },
        };
        MlaWeights {
            query,
            kv_a_proj_with_mqa: new(rank + config.qk_rope_head_dim, hidden),
            key_up: (0..heads)
                .map(|_| new(config.qk_nope_head_dim, rank))
                .collect(),
            value_up: (0..heads).map(|_| new(config.v_head_dim, rank)).collect(),
            o_proj: new(hidden, heads * config.v_head_dim),
        }
    }

    /// Repacks after a change of the weights.
    pub fn pack(&mut self, backend: &dyn Backend, config: &Config, at: &LayerOffsets, p: &[f32]) {
        let hidden = config.hidden_size;
        let pack = |range: &Range<usize>, columns, packed: &mut PackedWeight| {
            backend.pack(Mat::new(&p[range.clone()], columns), packed);
        };
        match (&mut self.query, &at.query) {
            (QueryWeights::Direct { q_proj }, QueryOffsets::Direct { q_proj: range }) => {
                pack(range, hidden, q_proj);
            }
            (QueryWeights::LowRank { q_a_proj, q_b_proj }, QueryOffsets::LowRank { .. }) => {
                let QueryOffsets::LowRank {
                    q_a_proj: a,
                    q_b_proj: b,
                    ..
                } = &at.query
                else {
                    unreachable!("matched above")
                };
                pack(a, hidden, q_a_proj);
                pack(b, q_a_proj.out_features(), q_b_proj);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
        pack(&at.kv_a_proj_with_mqa, hidden, &mut self.kv_a_proj_with_mqa);
        pack(
            &at.o_proj,
            config.num_attention_heads * config.v_head_dim,
            &mut self.o_proj,
        );
        let kv_b = Mat::new(&p[at.kv_b_proj.clone()], config.kv_lora_rank);
        let (nope, value) = (config.qk_nope_head_dim, config.v_head_dim);
        for (h, (key_up, value_up)) in self.key_up.iter_mut().zip(&mut self.value_up).enumerate() {
            let start = h * (nope + value);
            backend.pack(kv_b.rows(start..start + nope), key_up);
            backend.pack(kv_b.rows(start + nope..start + nope + value), value_up);
        }
    }
}

impl Mla<'_> {
    fn heads(&self) -> Heads {
        let config = self.config;
        Heads {
            heads: config.num_attention_heads,
            kv_heads: 1,
            qk_dim: config.kv_lora_rank + config.qk_rope_head_dim,
            v_dim: config.kv_lora_rank,
            scale: (1.0 / (config.qk_head_dim() as f64).sqrt()) as f32,
        }
    }

    fn rotate(&self, x: MatMut, head_dim: usize, positions: &[u32], inverse: bool) {
        let (dim, interleave) = (self.config.qk_rope_head_dim, self.config.rope_interleave);
        self.backend
            .rope(x, head_dim, dim, positions, self.rope, interleave, inverse);
    }

    /// middle = residual + attention(norm(residual)).
    pub fn forward(
        &self,
        weights: &MlaWeights,
        at: &LayerOffsets,
        batch: &Batch,
        residual: &[f32],
        acts: &mut LayerActivations,
        cache: Option<(&mut KvCache, usize)>,
    ) {
        let (backend, config) = (self.backend, self.config);
        let (hidden, rank, rope) = (
            config.hidden_size,
            config.kv_lora_rank,
            config.qk_rope_head_dim,
        );
        let (heads, nope, value) = (
            config.num_attention_heads,
            config.qk_nope_head_dim,
            config.v_head_dim,
        );
        let (head_dim, width) = (nope + rope, rank + rope);
        let LayerActivations {
            attention_input,
            q,
            kv_a,
            latent,
            q_latent,
            ..
        } = acts;
        let (out_latent, attention_out) = (&mut acts.out_latent, &mut acts.attention_out);

        // 1. h = norm(x)
        let weight = &self.params[at.input_layernorm.clone()];
        let x = Mat::new(residual, hidden);
        let h = MatMut::new(attention_input, hidden);
        backend.rmsnorm(
            x,
            weight,
            config.rms_norm_eps as f32,
            h,
            &mut acts.attention_inv_rms,
        );
        let h = Mat::new(attention_input, hidden);

        // 2. q = W_Q h, or W_UQ norm(W_DQ h)
        match (&weights.query, &at.query) {
            (
                QueryWeights::LowRank { q_a_proj, q_b_proj },
                QueryOffsets::LowRank { q_a_layernorm, .. },
            ) => {
                let r = q_a_proj.out_features();
                backend.matmul_nt(h, q_a_proj, MatMut::new(&mut acts.q_a, r), false);
                let weight = &self.params[q_a_layernorm.clone()];
                let normed = MatMut::new(&mut acts.q_a_normed, r);
                let q_a = Mat::new(&acts.q_a, r);
                backend.rmsnorm(q_a, weight, LATENT_NORM_EPS, normed, &mut acts.q_a_inv_rms);
                let normed = Mat::new(&acts.q_a_normed, r);
                backend.matmul_nt(normed, q_b_proj, MatMut::new(q, heads * head_dim), false);
            }
            (QueryWeights::Direct { q_proj }, _) => {
                backend.matmul_nt(h, q_proj, MatMut::new(q, heads * head_dim), false);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }

        // 3. c, k_rope = W_DKV h
        backend.matmul_nt(
            h,
            &weights.kv_a_proj_with_mqa,
            MatMut::new(kv_a, width),
            false,
        );

        // 4. latent = norm(c), rotated k_rope; q_rope rotated
        let kv = Mat::new(kv_a, width);
        let weight = &self.params[at.kv_a_layernorm.clone()];
        let normed = MatMut::new(latent, width).columns(0, rank);
        backend.rmsnorm(
            kv.columns(0, rank),
            weight,
            LATENT_NORM_EPS,
            normed,
            &mut acts.kv_a_inv_rms,
        );
        let rotary = (MatMut::new(latent, width).columns(rank, rope), rope);
        backend.copy_heads((kv.columns(rank, rope), rope), rotary, 1, rope, false);
        self.rotate(MatMut::new(latent, width), width, &batch.positions, false);
        self.rotate(
            MatMut::new(q, heads * head_dim),
            head_dim,
            &batch.positions,
            false,
        );

        // 5. q_latent = W_UKᵀ q_nope, q_rope
        let q = Mat::new(q, heads * head_dim);
        let to = MatMut::new(q_latent, heads * width);
        backend.per_head_nn(q, head_dim, &weights.key_up, to, width, false);
        let rotary = MatMut::new(q_latent, heads * width).columns(rank, heads * width - rank);
        let from = q.columns(nope, heads * head_dim - nope);
        backend.copy_heads((from, head_dim), (rotary, width), heads, rope, false);

        // 6. out_latent = softmax(scale q_latent latentᵀ) latent
        let queries = Mat::new(q_latent, heads * width);
        let to = MatMut::new(out_latent, heads * rank);
        let stats = &mut acts.attention_stats;
        let own = Mat::new(latent, width);
        match (cache, &batch.places) {
            (Some((cache, layer)), Some(places)) => {
                let block_size = cache.block_size();
                let rows = &mut cache.layers[layer];
                backend.write_rows(own, &places.slot_mapping, MatMut::new(rows, width));
                let keys = Mat::new(rows, width);
                let qkv = [queries, keys, keys.columns(0, rank)];
                backend.attention(qkv, &self.heads(), &batch.sequences(block_size), to, stats);
            }
            (None, None) => {
                let qkv = [queries, own, own.columns(0, rank)];
                backend.attention(qkv, &self.heads(), &batch.sequences(1), to, stats);
            }
            _ => panic!("a cache and places in it go together"),
        }

        // 7. out = W_UV out_latent
        let from = Mat::new(out_latent, heads * rank);
        let to = MatMut::new(attention_out, heads * value);
        backend.per_head_nt(from, rank, &weights.value_up, to, value, false);

        // 8. middle = x + W_O out
        acts.middle.copy_from_slice(residual);
        let out = Mat::new(attention_out, heads * value);
        backend.matmul_nt(
            out,
            &weights.o_proj,
            MatMut::new(&mut acts.middle, hidden),
            true,
        );
    }

    /// The gradient of the residual stream, d.residual, from after the attention to before it.
    pub fn backward(
        &self,
        weights: &MlaWeights,
        at: &LayerOffsets,
        batch: &Batch,
        residual: &[f32],
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, config, precision) = (self.backend, self.config, self.numerics.precision);
        let (hidden, rank, rope) = (
            config.hidden_size,
            config.kv_lora_rank,
            config.qk_rope_head_dim,
        );
        let (heads, nope, value) = (
            config.num_attention_heads,
            config.qk_nope_head_dim,
            config.v_head_dim,
        );
        let (head_dim, width) = (nope + rope, rank + rope);
        let h = Mat::new(&acts.attention_input, hidden);
        let latent = Mat::new(&acts.latent, width);
        let out_latent = Mat::new(&acts.out_latent, heads * rank);

        // 8. middle = x + W_O out
        let out = Mat::new(&acts.attention_out, heads * value);
        let dmiddle = Mat::new(&d.residual, hidden);
        backend.matmul_tn(dmiddle, out, precision, &mut grads[at.o_proj.clone()]);
        let dout = MatMut::new(&mut d.attention_out, heads * value);
        backend.matmul_nn(dmiddle, &weights.o_proj, dout, false);

        // 7. out = W_UV out_latent
        let dout = Mat::new(&d.attention_out, heads * value);
        let dkv_b = &mut grads[at.kv_b_proj.clone()];
        let step = (nope + value) * rank;
        let (dy, x) = ((dout, value), (out_latent, rank));
        backend.per_head_tn(
            dy,
            value,
            x,
            rank,
            precision,
            &mut dkv_b[nope * rank..],
            step,
        );
        let to = MatMut::new(&mut d.out_latent, heads * rank);
        backend.per_head_nn(dout, value, &weights.value_up, to, rank, false);

        // 6. out_latent = softmax(scale q_latent latentᵀ) latent
        let qkv = [
            Mat::new(&acts.q_latent, heads * width),
            latent,
            latent.columns(0, rank),
        ];
        let dqkv = [
            MatMut::new(&mut d.q_latent, heads * width),
            MatMut::new(&mut d.latent, width),
            MatMut::new(&mut d.values, rank),
        ];
        let (shape, sequences) = (self.heads(), batch.sequences(1));
        let (stats, dto) = (&acts.attention_stats, Mat::new(&d.out_latent, heads * rank));
        backend.attention_backward(qkv, &shape, &sequences, out_latent, stats, dto, dqkv);
        let keys = (MatMut::new(&mut d.latent, width), width);
        backend.copy_heads((Mat::new(&d.values, rank), rank), keys, 1, rank, true);

        // 5. q_latent = W_UKᵀ q_nope, q_rope
        let dq_latent = Mat::new(&d.q_latent, heads * width);
        let q = Mat::new(&acts.q, heads * head_dim);
        let (dy, x) = ((q, head_dim), (dq_latent, width));
        backend.per_head_tn(dy, nope, x, rank, precision, dkv_b, step);
        let dq = MatMut::new(&mut d.q, heads * head_dim);
        backend.per_head_nt(dq_latent, width, &weights.key_up, dq, head_dim, false);
        let from = dq_latent.columns(rank, heads * width - rank);
        let to = MatMut::new(&mut d.q, heads * head_dim).columns(nope, heads * head_dim - nope);
        backend.copy_heads((from, width), (to, head_dim), heads, rope, false);

        // 4. latent = norm(c), rotated k_rope; q_rope rotated
        self.rotate(
            MatMut::new(&mut d.q, heads * head_dim),
            head_dim,
            &batch.positions,
            true,
        );
        self.rotate(
            MatMut::new(&mut d.latent, width),
            width,
            &batch.positions,
            true,
        );
        let dlatent = Mat::new(&d.latent, width);
        let rotary = (MatMut::new(&mut d.kv_a, width).columns(rank, rope), rope);
        backend.copy_heads((dlatent.columns(rank, rope), rope), rotary, 1, rope, false);
        let c = Mat::new(&acts.kv_a, width).columns(0, rank);
        backend.rmsnorm_backward(
            c,
            &self.params[at.kv_a_layernorm.clone()],
            &acts.kv_a_inv_rms,
            dlatent.columns(0, rank),
            MatMut::new(&mut d.kv_a, width).columns(0, rank),
            false,
            &mut grads[at.kv_a_layernorm.clone()],
        );

        // 3. c, k_rope = W_DKV h
        let dkv_a = Mat::new(&d.kv_a, width);
        backend.matmul_tn(
            dkv_a,
            h,
            precision,
            &mut grads[at.kv_a_proj_with_mqa.clone()],
        );
        let dh = MatMut::new(&mut d.normed, hidden);
        backend.matmul_nn(dkv_a, &weights.kv_a_proj_with_mqa, dh, false);

        // 2. q = W_Q h, or W_UQ norm(W_DQ h)
        let dq = Mat::new(&d.q, heads * head_dim);
        match (&weights.query, &at.query) {
            (QueryWeights::Direct { q_proj }, QueryOffsets::Direct { q_proj: range }) => {
                backend.matmul_tn(dq, h, precision, &mut grads[range.clone()]);
                backend.matmul_nn(dq, q_proj, MatMut::new(&mut d.normed, hidden), true);
            }
            (
                QueryWeights::LowRank { q_a_proj, q_b_proj },
                QueryOffsets::LowRank {
                    q_a_proj: a,
                    q_a_layernorm,
                    q_b_proj: b,
                },
            ) => {
                let r = q_a_proj.out_features();
                let normed = Mat::new(&acts.q_a_normed, r);
                backend.matmul_tn(dq, normed, precision, &mut grads[b.clone()]);
                let dnormed = MatMut::new(&mut d.q_a_normed, r);
                backend.matmul_nn(dq, q_b_proj, dnormed, false);
                backend.rmsnorm_backward(
                    Mat::new(&acts.q_a, r),
                    &self.params[q_a_layernorm.clone()],
                    &acts.q_a_inv_rms,
                    Mat::new(&d.q_a_normed, r),
                    MatMut::new(&mut d.q_a, r),
                    false,
                    &mut grads[q_a_layernorm.clone()],
                );
                let dq_a = Mat::new(&d.q_a, r);
                backend.matmul_tn(dq_a, h, precision, &mut grads[a.clone()]);
                backend.matmul_nn(dq_a, q_a_proj, MatMut::new(&mut d.normed, hidden), true);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }

        // 1. h = norm(x)
        backend.rmsnorm_backward(
            Mat::new(residual, hidden),
            &self.params[at.input_layernorm.clone()],
            &acts.attention_inv_rms,
            Mat::new(&d.normed, hidden),
            MatMut::new(&mut d.residual, hidden),
            true,
            &mut grads[at.input_layernorm.clone()],
        );
    }
}

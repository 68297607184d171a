//! Multi-head latent attention (DeepSeek-V2, section 2.1), in the absorbed form: queries are taken
//! to the latent's space, so keys and values *are* the cached latent. Rollout, prefill and training
//! run the same lines, which is why their log-probabilities agree bit for bit.

use crate::activations::{Gradients, LayerActivations};
use crate::batch::{Batch, KvCache};
use crate::block::{Maker, Pass, Role, pack};
use crate::config::{self, Config};
use crate::error::Error;
use crate::layout::{MlaOffsets, QueryOffsets};
use kernels::{Backend, Heads, Mat, MatMut, Weight};
use std::ops::{Deref, Range};

/// The norms of the latents have an epsilon of their own, whatever `rms_norm_eps` says (RMSNorm of
/// DeepSeek-V3's `inference/model.py`; transformers' `DeepseekV3RMSNorm`).
const LATENT_NORM_EPS: f32 = 1e-6;

/// The packed weights of one attention.
pub(crate) struct MlaWeights {
    query: QueryWeights,
    kv_a_proj_with_mqa: Weight,
    /// W_UK of each head: `[qk_nope_head_dim, kv_lora_rank]`, rows of kv_b_proj.
    key_up: Vec<Weight>,
    /// W_UV of each head: `[v_head_dim, kv_lora_rank]`, rows of kv_b_proj.
    value_up: Vec<Weight>,
    o_proj: Weight,
}

enum QueryWeights {
    Direct { q_proj: Weight },
    LowRank { q_a_proj: Weight, q_b_proj: Weight },
}

/// The widths that the steps name again and again.
#[derive(Clone, Copy)]
struct Dims {
    hidden: usize,
    heads: usize,
    /// `kv_lora_rank`
    rank: usize,
    /// `qk_rope_head_dim`
    rope: usize,
    /// `qk_nope_head_dim`
    nope: usize,
    /// `v_head_dim`
    value: usize,
    /// Of a query: nope + rope.
    head_dim: usize,
    /// Of a latent with its rotary key: rank + rope.
    width: usize,
}

impl Dims {
    fn new(config: &Config, mla: &config::Mla) -> Dims {
        Dims {
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            rank: mla.kv_lora_rank,
            rope: mla.qk_rope_head_dim,
            nope: mla.qk_nope_head_dim,
            value: mla.v_head_dim,
            head_dim: mla.qk_head_dim(),
            width: mla.latent_width(),
        }
    }

    /// Floats from one head of kv_b_proj to the next.
    fn kv_b_step(&self) -> usize {
        (self.nope + self.value) * self.rank
    }

    /// A head's rows of kv_b_proj: first those of its key, then those of its value.
    fn kv_b_parts(&self, at: &MlaOffsets, head: usize) -> [Range<usize>; 2] {
        let start = at.kv_b_proj.start + head * self.kv_b_step();
        let middle = start + self.nope * self.rank;
        [start..middle, middle..start + self.kv_b_step()]
    }
}

impl MlaWeights {
    pub fn make(
        config: &Config,
        mla: &config::Mla,
        at: &MlaOffsets,
        maker: &mut dyn Maker,
    ) -> Result<MlaWeights, Error> {
        let dims = Dims::new(config, mla);
        let (hidden, queries) = (dims.hidden, dims.heads * dims.head_dim);
        let mut new =
            |range: &Range<usize>, shape| maker.weight(range.clone(), shape, Role::Projection);
        let query = match &at.query {
            QueryOffsets::Direct { q_proj } => QueryWeights::Direct {
                q_proj: new(q_proj, [queries, hidden])?,
            },
            QueryOffsets::LowRank {
                q_a_proj, q_b_proj, ..
            } => {
                let rank = q_a_proj.len() / hidden;
                QueryWeights::LowRank {
                    q_a_proj: new(q_a_proj, [rank, hidden])?,
                    q_b_proj: new(q_b_proj, [queries, rank])?,
                }
            }
        };
        let kv_a_proj_with_mqa = new(&at.kv_a_proj_with_mqa, [dims.width, hidden])?;
        let o_proj = new(&at.o_proj, [hidden, dims.heads * dims.value])?;
        let (mut key_up, mut value_up) = (Vec::new(), Vec::new());
        for h in 0..dims.heads {
            let [key, value] = dims.kv_b_parts(at, h);
            key_up.push(maker.weight(key, [dims.nope, dims.rank], Role::KeyUp)?);
            value_up.push(maker.weight(value, [dims.value, dims.rank], Role::ValueUp)?);
        }
        Ok(MlaWeights {
            query,
            kv_a_proj_with_mqa,
            key_up,
            value_up,
            o_proj,
        })
    }

    /// Repacks after a change of the weights.
    pub fn pack(&mut self, backend: &dyn Backend, config: &Config, at: &MlaOffsets, p: &[f32]) {
        let pack = |range: &Range<usize>, to: &mut Weight| {
            pack(backend, p, range.clone(), to);
        };
        match (&mut self.query, &at.query) {
            (QueryWeights::Direct { q_proj }, QueryOffsets::Direct { q_proj: range }) => {
                pack(range, q_proj);
            }
            (
                QueryWeights::LowRank { q_a_proj, q_b_proj },
                QueryOffsets::LowRank {
                    q_a_proj: a,
                    q_b_proj: b,
                    ..
                },
            ) => {
                pack(a, q_a_proj);
                pack(b, q_b_proj);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
        pack(&at.kv_a_proj_with_mqa, &mut self.kv_a_proj_with_mqa);
        pack(&at.o_proj, &mut self.o_proj);
        let dims = Dims::new(config, config.attention.mla());
        for (h, (key_up, value_up)) in self.key_up.iter_mut().zip(&mut self.value_up).enumerate() {
            let [key, value] = dims.kv_b_parts(at, h);
            pack(&key, key_up);
            pack(&value, value_up);
        }
    }
}

/// The attention of a pass's layers.
pub(crate) struct Mla<'a>(pub &'a Pass<'a>);

impl<'a> Deref for Mla<'a> {
    type Target = Pass<'a>;

    fn deref(&self) -> &Pass<'a> {
        self.0
    }
}

impl Mla<'_> {
    fn dims(&self) -> Dims {
        Dims::new(self.config, self.config.attention.mla())
    }

    /// The absorbed form: every head attends to the one latent.
    fn heads(&self) -> Heads {
        let dims = self.dims();
        Heads {
            heads: dims.heads,
            kv_heads: 1,
            qk_dim: dims.width,
            v_dim: dims.rank,
            scale: self.config.softmax_scale(),
        }
    }

    fn rotate(&self, x: MatMut, head_dim: usize, transposed: bool) {
        let (dim, interleave) = (self.dims().rope, self.config.rope.interleave);
        self.backend
            .rope(x, head_dim, dim, self.angles, interleave, transposed);
    }

    /// acts.middle += attention(acts.attention_input).
    pub fn forward(
        &self,
        weights: &MlaWeights,
        at: &MlaOffsets,
        batch: &Batch,
        acts: &mut LayerActivations,
        cache: Option<(&mut KvCache, usize)>,
    ) {
        // 1. q = W_Q h, or W_UQ norm(W_DQ h)
        // 2. c, k_rope = W_DKV h
        self.project(weights, at, acts);
        // 3. latent = norm(c), rotated k_rope; q_rope rotated
        self.norm_and_rotate(at, acts);
        // 4. q_latent = W_UKᵀ q_nope, q_rope
        self.absorb_queries(weights, acts);
        // 5. out_latent = softmax(scale q_latent latentᵀ) latent
        self.attend(batch, acts, cache);
        // 6. out = W_UV out_latent
        self.expand_values(weights, acts);
        // 7. middle += W_O out
        self.project_out(weights, acts);
    }

    /// d.normed from d.residual, which stays.
    pub fn backward(
        &self,
        weights: &MlaWeights,
        at: &MlaOffsets,
        batch: &Batch,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        // 7. middle += W_O out
        self.project_out_backward(weights, at, acts, d, grads);
        // 6. out = W_UV out_latent
        self.expand_values_backward(weights, at, acts, d, grads);
        // 5. out_latent = softmax(scale q_latent latentᵀ) latent
        self.attend_backward(batch, acts, d);
        // 4. q_latent = W_UKᵀ q_nope, q_rope
        self.absorb_queries_backward(weights, at, acts, d, grads);
        // 3. latent = norm(c), rotated k_rope; q_rope rotated
        self.norm_and_rotate_backward(at, acts, d, grads);
        // 2. c, k_rope = W_DKV h
        self.project_latent_backward(weights, at, acts, d, grads);
        // 1. q = W_Q h, or W_UQ norm(W_DQ h)
        self.project_queries_backward(weights, at, acts, d, grads);
    }

    fn project(&self, weights: &MlaWeights, at: &MlaOffsets, acts: &mut LayerActivations) {
        let (backend, dims) = (self.backend, self.dims());
        let h = Mat::new(&acts.attention_input, dims.hidden);
        let kv_a = MatMut::new(&mut acts.kv_a, dims.width);
        let kv_a = (&weights.kv_a_proj_with_mqa, kv_a);
        let q = MatMut::new(&mut acts.q, dims.heads * dims.head_dim);
        match (&weights.query, &at.query) {
            (QueryWeights::Direct { q_proj }, _) => {
                backend.matmul_nt_each(h, &mut [(q_proj, q), kv_a]);
            }
            (
                QueryWeights::LowRank { q_a_proj, q_b_proj },
                QueryOffsets::LowRank { q_a_layernorm, .. },
            ) => {
                let r = q_a_proj.out_features();
                let q_a = (q_a_proj, MatMut::new(&mut acts.q_a, r));
                backend.matmul_nt_each(h, &mut [q_a, kv_a]);
                let weight = self.params.get(q_a_layernorm);
                let normed = MatMut::new(&mut acts.q_a_normed, r);
                let q_a = Mat::new(&acts.q_a, r);
                backend.rmsnorm(q_a, weight, LATENT_NORM_EPS, normed, &mut acts.q_a_inv_rms);
                let normed = Mat::new(&acts.q_a_normed, r);
                backend.matmul_nt(normed, q_b_proj, q, false);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
    }

    /// Adds to d.normed.
    fn project_queries_backward(
        &self,
        weights: &MlaWeights,
        at: &MlaOffsets,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, dims, precision) = (self.backend, self.dims(), self.numerics.precision);
        let h = Mat::new(&acts.attention_input, dims.hidden);
        let dq = Mat::new(&d.q, dims.heads * dims.head_dim);
        let dh = MatMut::new(&mut d.normed, dims.hidden);
        match (&weights.query, &at.query) {
            (QueryWeights::Direct { q_proj }, QueryOffsets::Direct { q_proj: range }) => {
                backend.matmul_tn(dq, h, precision, &mut grads[range.clone()]);
                backend.matmul_nn(dq, q_proj, dh, true);
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
                    self.params.get(q_a_layernorm),
                    &acts.q_a_inv_rms,
                    Mat::new(&d.q_a_normed, r),
                    MatMut::new(&mut d.q_a, r),
                    false,
                    &mut grads[q_a_layernorm.clone()],
                );
                let dq_a = Mat::new(&d.q_a, r);
                backend.matmul_tn(dq_a, h, precision, &mut grads[a.clone()]);
                backend.matmul_nn(dq_a, q_a_proj, dh, true);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
    }

    /// Writes d.normed.
    fn project_latent_backward(
        &self,
        weights: &MlaWeights,
        at: &MlaOffsets,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, dims, precision) = (self.backend, self.dims(), self.numerics.precision);
        let h = Mat::new(&acts.attention_input, dims.hidden);
        let dkv_a = Mat::new(&d.kv_a, dims.width);
        let dweight = &mut grads[at.kv_a_proj_with_mqa.clone()];
        backend.matmul_tn(dkv_a, h, precision, dweight);
        let dh = MatMut::new(&mut d.normed, dims.hidden);
        backend.matmul_nn(dkv_a, &weights.kv_a_proj_with_mqa, dh, false);
    }

    fn norm_and_rotate(&self, at: &MlaOffsets, acts: &mut LayerActivations) {
        let (backend, dims) = (self.backend, self.dims());
        let (rank, rope, width) = (dims.rank, dims.rope, dims.width);
        let kv = Mat::new(&acts.kv_a, width);
        let (c, weight) = (kv.columns(0, rank), self.params.get(&at.kv_a_layernorm));
        let normed = MatMut::new(&mut acts.latent, width).columns(0, rank);
        backend.rmsnorm(c, weight, LATENT_NORM_EPS, normed, &mut acts.kv_a_inv_rms);
        let to = MatMut::new(&mut acts.latent, width).columns(rank, rope);
        backend.copy_heads((kv.columns(rank, rope), rope), (to, rope), 1, rope, false);
        self.rotate(MatMut::new(&mut acts.latent, width), width, false);
        let q = MatMut::new(&mut acts.q, dims.heads * dims.head_dim);
        self.rotate(q, dims.head_dim, false);
    }

    /// d.kv_a from d.latent; d.q rotated back.
    fn norm_and_rotate_backward(
        &self,
        at: &MlaOffsets,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, dims) = (self.backend, self.dims());
        let (rank, rope, width) = (dims.rank, dims.rope, dims.width);
        let dq = MatMut::new(&mut d.q, dims.heads * dims.head_dim);
        self.rotate(dq, dims.head_dim, true);
        let dlatent = MatMut::new(&mut d.latent, width);
        self.rotate(dlatent, width, true);
        let dlatent = Mat::new(&d.latent, width);
        let (from, to) = (dlatent.columns(rank, rope), MatMut::new(&mut d.kv_a, width));
        backend.copy_heads((from, rope), (to.columns(rank, rope), rope), 1, rope, false);
        backend.rmsnorm_backward(
            Mat::new(&acts.kv_a, width).columns(0, rank),
            self.params.get(&at.kv_a_layernorm),
            &acts.kv_a_inv_rms,
            dlatent.columns(0, rank),
            MatMut::new(&mut d.kv_a, width).columns(0, rank),
            false,
            &mut grads[at.kv_a_layernorm.clone()],
        );
    }

    fn absorb_queries(&self, weights: &MlaWeights, acts: &mut LayerActivations) {
        let (backend, dims) = (self.backend, self.dims());
        let (heads, head_dim, width) = (dims.heads, dims.head_dim, dims.width);
        let q = Mat::new(&acts.q, heads * head_dim);
        let to = MatMut::new(&mut acts.q_latent, heads * width);
        backend.per_head_nn(q, head_dim, &weights.key_up, to, width, false);
        let from = q.columns(dims.nope, heads * head_dim - dims.nope);
        let to = MatMut::new(&mut acts.q_latent, heads * width);
        let to = to.columns(dims.rank, heads * width - dims.rank);
        backend.copy_heads((from, head_dim), (to, width), heads, dims.rope, false);
    }

    /// d.q from d.q_latent.
    fn absorb_queries_backward(
        &self,
        weights: &MlaWeights,
        at: &MlaOffsets,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, dims, precision) = (self.backend, self.dims(), self.numerics.precision);
        let (heads, head_dim, width) = (dims.heads, dims.head_dim, dims.width);
        let q = (Mat::new(&acts.q, heads * head_dim), head_dim);
        let dq_latent = Mat::new(&d.q_latent, heads * width);
        let x = (dq_latent, width);
        let (dkey_up, step) = (&mut grads[at.kv_b_proj.clone()], dims.kv_b_step());
        backend.per_head_tn(q, dims.nope, x, dims.rank, precision, dkey_up, step);
        let dq = MatMut::new(&mut d.q, heads * head_dim);
        backend.per_head_nt(dq_latent, width, &weights.key_up, dq, head_dim, false);
        let from = dq_latent.columns(dims.rank, heads * width - dims.rank);
        let to = MatMut::new(&mut d.q, heads * head_dim);
        let to = to.columns(dims.nope, heads * head_dim - dims.nope);
        backend.copy_heads((from, width), (to, head_dim), heads, dims.rope, false);
    }

    fn attend(
        &self,
        batch: &Batch,
        acts: &mut LayerActivations,
        cache: Option<(&mut KvCache, usize)>,
    ) {
        let (backend, dims) = (self.backend, self.dims());
        let queries = Mat::new(&acts.q_latent, dims.heads * dims.width);
        let own = Mat::new(&acts.latent, dims.width);
        let (keys, block_size) = match (cache, &batch.places) {
            (Some((cache, layer)), Some(places)) => {
                let block_size = cache.block_size();
                // The latent is key and value.
                let rows = &mut cache.layers[layer].keys;
                backend.write_rows(own, &places.slot_mapping, MatMut::new(rows, dims.width));
                (Mat::new(rows, dims.width), block_size)
            }
            (None, None) => (own, 1),
            _ => panic!("a cache and places in it go together"),
        };
        let qkv = [queries, keys, keys.columns(0, dims.rank)];
        let (shape, sequences) = (self.heads(), batch.sequences(block_size));
        let to = MatMut::new(&mut acts.out_latent, dims.heads * dims.rank);
        backend.attention(qkv, &shape, &sequences, to, &mut acts.attention_stats);
    }

    /// d.q_latent and d.latent from d.out_latent.
    fn attend_backward(&self, batch: &Batch, acts: &LayerActivations, d: &mut Gradients) {
        let (backend, dims) = (self.backend, self.dims());
        let (heads, rank, width) = (dims.heads, dims.rank, dims.width);
        let keys = Mat::new(&acts.latent, width);
        let queries = Mat::new(&acts.q_latent, heads * width);
        let qkv = [queries, keys, keys.columns(0, rank)];
        let dqkv = [
            MatMut::new(&mut d.q_latent, heads * width),
            MatMut::new(&mut d.latent, width),
            MatMut::new(&mut d.values, rank),
        ];
        let (shape, sequences) = (self.heads(), batch.sequences(1));
        let out = Mat::new(&acts.out_latent, heads * rank);
        let dout = Mat::new(&d.out_latent, heads * rank);
        let stats = &acts.attention_stats;
        backend.attention_backward(qkv, &shape, &sequences, out, stats, dout, dqkv);
        // The latent is key and value.
        let dvalues = (Mat::new(&d.values, rank), rank);
        let dkeys = (MatMut::new(&mut d.latent, width), width);
        backend.copy_heads(dvalues, dkeys, 1, rank, true);
    }

    fn expand_values(&self, weights: &MlaWeights, acts: &mut LayerActivations) {
        let dims = self.dims();
        let (rank, value) = (dims.rank, dims.value);
        let out_latent = Mat::new(&acts.out_latent, dims.heads * rank);
        let out = MatMut::new(&mut acts.attention_out, dims.heads * value);
        self.backend
            .per_head_nt(out_latent, rank, &weights.value_up, out, value, false);
    }

    /// d.out_latent from d.attention_out.
    fn expand_values_backward(
        &self,
        weights: &MlaWeights,
        at: &MlaOffsets,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, dims, precision) = (self.backend, self.dims(), self.numerics.precision);
        let (heads, rank, value) = (dims.heads, dims.rank, dims.value);
        let dout = Mat::new(&d.attention_out, heads * value);
        let out_latent = Mat::new(&acts.out_latent, heads * rank);
        let (dy, x) = ((dout, value), (out_latent, rank));
        // A head's rows of kv_b_proj: first those of its key, then those of its value.
        let dvalue_up = &mut grads[at.kv_b_proj.clone()][dims.nope * rank..];
        backend.per_head_tn(dy, value, x, rank, precision, dvalue_up, dims.kv_b_step());
        let to = MatMut::new(&mut d.out_latent, heads * rank);
        backend.per_head_nn(dout, value, &weights.value_up, to, rank, false);
    }

    fn project_out(&self, weights: &MlaWeights, acts: &mut LayerActivations) {
        let dims = self.dims();
        let out = Mat::new(&acts.attention_out, dims.heads * dims.value);
        let middle = MatMut::new(&mut acts.middle, dims.hidden);
        self.backend.matmul_nt(out, &weights.o_proj, middle, true);
    }

    /// d.attention_out from d.residual, which stays: x is added as it is.
    fn project_out_backward(
        &self,
        weights: &MlaWeights,
        at: &MlaOffsets,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, dims, precision) = (self.backend, self.dims(), self.numerics.precision);
        let out = Mat::new(&acts.attention_out, dims.heads * dims.value);
        let dmiddle = Mat::new(&d.residual, dims.hidden);
        backend.matmul_tn(dmiddle, out, precision, &mut grads[at.o_proj.clone()]);
        let dout = MatMut::new(&mut d.attention_out, dims.heads * dims.value);
        backend.matmul_nn(dmiddle, &weights.o_proj, dout, false);
    }
}

//! Arithmetic: every operation of the model, forward and backward, behind one interface.
//!
//! [`Backend`] is the whole machine as the rest of the project sees it. Its buffers are slices; a
//! device with its own memory stands behind the same trait with memory that both sides can address.
//! No operation needs a value back on the host to start the next: expert counts and offsets stay
//! in buffers.
//!
//! # The law of the numbers
//! - A row of a result depends on that row's inputs and the weights alone: every element is one
//!   chain in fixed order. Threads split outputs, never a reduction.
//! - Sums over tokens run over the rows of one call in order; whoever splits a batch into pieces
//!   joins their sums in a fixed tree.
//! - No elementary function of the platform's C library is used ([`math`], `simd::exp`).
//!
//! So the number of threads, the instruction set, and what else shares a batch cannot change a bit.
//! Shapes are asserted at the front of each operation; a wrong one is a bug and panics.
//!
//! Conventions: `d` before a name is a gradient. Gradients of weights are added to, those of
//! activations are written, unless an `add` flag says otherwise. A weight is
//! `[out_features, in_features]`, as in PyTorch.

mod bytes;
mod chance;
mod count;
mod cpu;
mod gemm;
mod isa;
mod mat;
pub mod math;
mod memory;
mod ops;
mod pool;
mod quant;
mod simd;
mod stored;

pub use bytes::{Bytes, MappedFile};
pub use chance::{Chance, Purpose};
pub use count::{Count, Counts};
pub use cpu::Cpu;
pub use gemm::Weight;
pub use isa::Isa;
pub use mat::{Mat, MatMut};
pub use memory::release_unused_memory;
pub use ops::attention::{Heads, KeyRows, Sequences};
pub use ops::head::{HeadGradient, LogNormalizer};
pub use ops::optimizer::{AdamW, clip_factor};
pub use ops::rope::{RopeAngles, RopeFrequencies};
pub use ops::router::{ExpertGroups, GroupScore, Routing, Scoring};
pub use stored::{BlockScales, Dtype, Keep, ReadAt, RowSource, StoredMatrix};

/// What the operands of a matrix product are rounded to; sums are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// 32-bit lanes that hold k values.
    fn lanes(self, k: usize) -> usize {
        match self {
            Precision::F32 => k,
            Precision::Bf16 => k.div_ceil(2),
        }
    }
}

/// The machine.
pub trait Backend: Sync {
    // ---- matrix products: one chain over k per element ----

    /// Fills the panels of a weight from its rows, once per change of the weight.
    fn pack(&self, weight: Mat, packed: &mut Weight);

    /// Takes over a matrix `[out_features, in_features]` as a checkpoint stores it, in a form for
    /// inference; `precision` is that of its products, whose bits do not depend on the form.
    ///
    /// # Errors
    /// That of the matrix's reader.
    fn store(
        &self,
        matrix: &StoredMatrix,
        keep: Keep,
        precision: Precision,
    ) -> std::io::Result<Weight>;

    /// y (+)= x wᵀ; x `[tokens, in_features]`, y `[tokens, out_features]`.
    fn matmul_nt(&self, x: Mat, w: &Weight, y: MatMut, add: bool);

    /// [`Backend::matmul_nt`] of one x with several weights, each to its own y: x is converted
    /// once, and threads wait once.
    fn matmul_nt_each(&self, x: Mat, products: &mut [(&Weight, MatMut)]);

    /// dx (+)= dy w.
    fn matmul_nn(&self, dy: Mat, w: &Weight, dx: MatMut, add: bool);

    /// dw += dyᵀ x, a chain over the rows.
    fn matmul_tn(&self, dy: Mat, x: Mat, precision: Precision, dw: &mut [f32]);

    /// [`Backend::matmul_nt`] for each group of rows `offsets[g]..offsets[g + 1]` with `w[g]`.
    fn grouped_matmul_nt(&self, x: Mat, w: &[Weight], offsets: &[u32], y: MatMut, add: bool);

    /// [`Backend::matmul_nn`] for each group of rows.
    fn grouped_matmul_nn(&self, dy: Mat, w: &[Weight], offsets: &[u32], dx: MatMut, add: bool);

    /// [`Backend::matmul_tn`] for each group of rows; dw is `[groups, dy.cols, x.cols]`.
    fn grouped_matmul_tn(
        &self,
        dy: Mat,
        x: Mat,
        offsets: &[u32],
        precision: Precision,
        dw: &mut [f32],
    );

    /// For each head h: columns from `h * y_step` of y (+)= columns from `h * x_step` of x times
    /// `w[h]ᵀ`.
    fn per_head_nt(&self, x: Mat, x_step: usize, w: &[Weight], y: MatMut, y_step: usize, add: bool);

    /// As [`Backend::per_head_nt`], times `w[h]`.
    fn per_head_nn(&self, x: Mat, x_step: usize, w: &[Weight], y: MatMut, y_step: usize, add: bool);

    /// For each head h: dw from `h * dw_step` += (`dy_cols` columns of dy)ᵀ (`x_cols` columns of
    /// x).
    fn per_head_tn(
        &self,
        dy: (Mat, usize),
        dy_cols: usize,
        x: (Mat, usize),
        x_cols: usize,
        precision: Precision,
        dw: &mut [f32],
        dw_step: usize,
    );

    // ---- rows ----

    /// y = x / rms(x) * weight per row; `inv_rms [tokens]` is kept for the backward.
    fn rmsnorm(&self, x: Mat, weight: &[f32], eps: f32, y: MatMut, inv_rms: &mut [f32]);

    fn rmsnorm_backward(
        &self,
        x: Mat,
        weight: &[f32],
        inv_rms: &[f32],
        dy: Mat,
        dx: MatMut,
        add: bool,
        dweight: &mut [f32],
    );

    /// Each row of y += bias.
    fn add_bias(&self, y: MatMut, bias: &[f32]);

    /// dbias += the rows of dy, a chain over them.
    fn add_bias_backward(&self, dy: Mat, dbias: &mut [f32]);

    /// Cosines and sines of a batch's `positions [tokens]`, times the frequencies' factor.
    fn rope_angles(
        &self,
        positions: &[u32],
        frequencies: &RopeFrequencies,
        angles: &mut RopeAngles,
    );

    /// Rotates the last `rope_dim` columns of each head of x `[tokens, heads * head_dim]` in place
    /// by its token's angles; `transposed` applies the transpose, which is the backward.
    fn rope(
        &self,
        x: MatMut,
        head_dim: usize,
        rope_dim: usize,
        angles: &RopeAngles,
        interleaved: bool,
        transposed: bool,
    );

    /// y = silu(gate) * up.
    fn swiglu(&self, gate: Mat, up: Mat, y: MatMut);

    fn swiglu_backward(&self, gate: Mat, up: Mat, dy: Mat, dgate: MatMut, dup: MatMut);

    /// Row t of y = row `ids[t]` of weight `[vocab_size, hidden_size]`.
    fn embedding(&self, ids: &[u32], weight: &[f32], y: MatMut);

    /// [`Backend::embedding`] from a weight in any form, as [`Weight::read_row`] reads it.
    fn embedding_of(&self, ids: &[u32], weight: &Weight, y: MatMut);

    fn embedding_backward(&self, ids: &[u32], dy: Mat, dweight: &mut [f32]);

    /// For each head h: `width` columns of y from `h * y.1` = (or +=) those of x from `h * x.1`.
    fn copy_heads(
        &self,
        x: (Mat, usize),
        y: (MatMut, usize),
        heads: usize,
        width: usize,
        add: bool,
    );

    /// Row `rows[t]` of y = row t of x; the rows named are distinct.
    fn write_rows(&self, x: Mat, rows: &[u32], y: MatMut);

    // ---- attention ----

    /// Causal attention; `stats [tokens, heads, 2]` is kept for the backward.
    fn attention(
        &self,
        qkv: [Mat; 3],
        heads: &Heads,
        sequences: &Sequences,
        out: MatMut,
        stats: &mut [f32],
    );

    /// Gradients of [`Backend::attention`] over packed keys.
    fn attention_backward(
        &self,
        qkv: [Mat; 3],
        heads: &Heads,
        sequences: &Sequences,
        out: Mat,
        stats: &[f32],
        dout: Mat,
        dqkv: [MatMut; 3],
    );

    // ---- mixture of experts ----

    /// scores `[tokens, experts]` = sigmoid or softmax of the logits; the top k of the kept groups
    /// by score + bias (empty: none), weighted by score.
    fn router(
        &self,
        logits: Mat,
        bias: &[f32],
        routing: &Routing,
        scores: &mut [f32],
        expert_ids: &mut [u32],
        expert_weights: &mut [f32],
    );

    /// dlogits, written, from the gradients of the weights and (`dscores`) of the scores.
    fn router_backward(
        &self,
        scores: &[f32],
        expert_ids: &[u32],
        dexpert_weights: &[f32],
        routing: &Routing,
        dscores: &[f32],
        dlogits: &mut [f32],
    );

    /// The sequence-wise balance loss (eq. 17-20) and its gradient with respect to the scores.
    fn balance_loss(
        &self,
        scores: &[f32],
        expert_ids: &[u32],
        routing: &Routing,
        cu_seqlens: &[u32],
        alpha: f32,
        dscores: &mut [f32],
    ) -> f32;

    /// Sorts (token, choice) by expert: rows of expert e are `offsets[e]..offsets[e + 1]`.
    fn dispatch(
        &self,
        expert_ids: &[u32],
        routing: &Routing,
        offsets: &mut [u32],
        token_of: &mut [u32],
        slot_of: &mut [u32],
    );

    /// Row p of y = row `token_of[p]` of x.
    fn gather_rows(&self, x: Mat, token_of: &[u32], y: MatMut);

    /// Row t of out += the weighted rows of its choices, in order of choice.
    fn combine(&self, y: Mat, slot_of: &[u32], expert_weights: &[f32], out: MatMut);

    fn combine_backward(
        &self,
        dout: Mat,
        y: Mat,
        slot_of: &[u32],
        expert_weights: &[f32],
        dy: MatMut,
        dexpert_weights: &mut [f32],
    );

    /// The backward of [`Backend::gather_rows`]: row t of dx += its rows of dy, in order of choice.
    fn scatter_add(&self, dy: Mat, slot_of: &[u32], dx: MatMut);

    // ---- head ----

    /// hidden through the head, `logits` being room for a chunk of rows: the log-probability of
    /// each row's target at a temperature, the entropy, and gradients where they are asked for.
    fn head(
        &self,
        hidden: Mat,
        weight: &Weight,
        targets: &[u32],
        temperature: f32,
        logits: &mut Vec<f32>,
        outcome: [&mut [f32]; 2],
        gradient: Option<HeadGradient>,
    );

    /// Log-probabilities and entropies from logits: the same bits as [`Backend::head`].
    fn logprobs(
        &self,
        logits: Mat,
        targets: &[u32],
        temperature: f32,
        logprobs: &mut [f32],
        entropies: &mut [f32],
    );

    /// Of each row at its own temperature, what [`Backend::logprobs`] subtracts: for where several
    /// log-probabilities of one row are wanted.
    fn log_normalizers(&self, logits: Mat, temperatures: &[f32], out: &mut [LogNormalizer]);

    /// Rows of logits become probabilities at a temperature, in place.
    fn softmax(&self, logits: MatMut, temperature: f32);

    // ---- optimizer ----

    fn adamw(&self, h: &AdamW, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32]);

    /// Σ x² in fixed pieces joined by a fixed tree.
    fn sum_of_squares(&self, x: &[f32]) -> f64;

    /// x *= factor.
    fn scale(&self, x: &mut [f32], factor: f32);

    /// dst += src.
    fn add_assign(&self, dst: &mut [f32], src: &[f32]);
}

//! The processor as a backend: threads and an instruction set.

use crate::mat::{Mat, MatMut};
use crate::ops::{
    self,
    attention::{Heads, Sequences},
    head::{HeadGradient, LogNormalizer},
    optimizer::AdamW,
    rope::{RopeAngles, RopeFrequencies},
    router::Routing,
};
use crate::pool::Pool;
use crate::{Backend, Isa, Keep, Precision, StoredMatrix, Weight};
use std::sync::Mutex;

/// Runs every op on this machine's cores.
pub struct Cpu {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    /// Operands converted or packed for one product; kept so that no step allocates.
    pub(crate) scratch: Mutex<Vec<u32>>,
}

impl Cpu {
    /// `threads` in all, on the instruction set given.
    ///
    /// # Panics
    /// If the machine lacks the instruction set.
    pub fn new(threads: usize, isa: Isa) -> Cpu {
        assert!(isa.is_available(), "this machine has no {isa}");
        Cpu {
            pool: Pool::new(threads),
            isa,
            scratch: Mutex::new(Vec::new()),
        }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

impl Backend for Cpu {
    fn pack(&self, weight: Mat, packed: &mut Weight) {
        self.pack_weight(weight, packed);
    }

    fn store(
        &self,
        matrix: &StoredMatrix,
        keep: Keep,
        precision: Precision,
    ) -> std::io::Result<Weight> {
        self.store_weight(matrix, keep, precision)
    }

    fn matmul_nt(&self, x: Mat, w: &Weight, y: MatMut, add: bool) {
        self.grouped_nt(x, std::slice::from_ref(w), &[0, x.rows as u32], y, add);
    }

    fn matmul_nt_each(&self, x: Mat, products: &mut [(&Weight, MatMut)]) {
        self.each_nt(x, products);
    }

    fn matmul_nn(&self, dy: Mat, w: &Weight, dx: MatMut, add: bool) {
        self.grouped_nn(dy, std::slice::from_ref(w), &[0, dy.rows as u32], dx, add);
    }

    fn matmul_tn(&self, dy: Mat, x: Mat, precision: Precision, dw: &mut [f32]) {
        self.grouped_tn(dy, x, &[0, dy.rows as u32], precision, dw, true);
    }

    fn grouped_matmul_nt(&self, x: Mat, w: &[Weight], offsets: &[u32], y: MatMut, add: bool) {
        self.grouped_nt(x, w, offsets, y, add);
    }

    fn grouped_matmul_nn(&self, dy: Mat, w: &[Weight], offsets: &[u32], dx: MatMut, add: bool) {
        self.grouped_nn(dy, w, offsets, dx, add);
    }

    fn grouped_matmul_tn(
        &self,
        dy: Mat,
        x: Mat,
        offsets: &[u32],
        precision: Precision,
        dw: &mut [f32],
    ) {
        self.grouped_tn(dy, x, offsets, precision, dw, true);
    }

    fn per_head_nt(
        &self,
        x: Mat,
        x_step: usize,
        w: &[Weight],
        y: MatMut,
        y_step: usize,
        add: bool,
    ) {
        self.per_head(x, x_step, w, true, y, y_step, add);
    }

    fn per_head_nn(
        &self,
        x: Mat,
        x_step: usize,
        w: &[Weight],
        y: MatMut,
        y_step: usize,
        add: bool,
    ) {
        self.per_head(x, x_step, w, false, y, y_step, add);
    }

    fn per_head_tn(
        &self,
        dy: (Mat, usize),
        dy_cols: usize,
        x: (Mat, usize),
        x_cols: usize,
        precision: Precision,
        dw: &mut [f32],
        dw_step: usize,
    ) {
        self.per_head_transposed(dy, dy_cols, x, x_cols, precision, dw, dw_step);
    }

    fn rmsnorm(&self, x: Mat, weight: &[f32], eps: f32, y: MatMut, inv_rms: &mut [f32]) {
        ops::rmsnorm::rmsnorm(self, x, weight, eps, y, inv_rms);
    }

    fn rmsnorm_backward(
        &self,
        x: Mat,
        weight: &[f32],
        inv_rms: &[f32],
        dy: Mat,
        dx: MatMut,
        add: bool,
        dweight: &mut [f32],
    ) {
        ops::rmsnorm::rmsnorm_backward(self, x, weight, inv_rms, dy, dx, add, dweight);
    }

    fn add_bias(&self, y: MatMut, bias: &[f32]) {
        ops::bias::add_bias(self, y, bias);
    }

    fn add_bias_backward(&self, dy: Mat, dbias: &mut [f32]) {
        ops::bias::add_bias_backward(self, dy, dbias);
    }

    fn rope_angles(
        &self,
        positions: &[u32],
        frequencies: &RopeFrequencies,
        angles: &mut RopeAngles,
    ) {
        ops::rope::rope_angles(self, positions, frequencies, angles);
    }

    fn rope(
        &self,
        x: MatMut,
        head_dim: usize,
        rope_dim: usize,
        angles: &RopeAngles,
        interleaved: bool,
        transposed: bool,
    ) {
        ops::rope::rope(self, x, head_dim, rope_dim, angles, interleaved, transposed);
    }

    fn swiglu(&self, gate: Mat, up: Mat, y: MatMut) {
        ops::swiglu::swiglu(self, gate, up, y);
    }

    fn swiglu_backward(&self, gate: Mat, up: Mat, dy: Mat, dgate: MatMut, dup: MatMut) {
        ops::swiglu::swiglu_backward(self, gate, up, dy, dgate, dup);
    }

    fn embedding(&self, ids: &[u32], weight: &[f32], y: MatMut) {
        ops::embedding::embedding(self, ids, weight, y);
    }

    fn embedding_of(&self, ids: &[u32], weight: &Weight, y: MatMut) {
        self.embed(ids, weight, y);
    }

    fn embedding_backward(&self, ids: &[u32], dy: Mat, dweight: &mut [f32]) {
        ops::embedding::embedding_backward(self, ids, dy, dweight);
    }

    fn copy_heads(
        &self,
        x: (Mat, usize),
        y: (MatMut, usize),
        heads: usize,
        width: usize,
        add: bool,
    ) {
        ops::copy::copy_heads(self, x, y, heads, width, add);
    }

    fn write_rows(&self, x: Mat, rows: &[u32], y: MatMut) {
        ops::copy::write_rows(x, rows, y);
    }

    fn attention(
        &self,
        [q, k, v]: [Mat; 3],
        heads: &Heads,
        sequences: &Sequences,
        out: MatMut,
        stats: &mut [f32],
    ) {
        ops::attention::attention(self, q, k, v, heads, sequences, out, stats);
    }

    fn attention_backward(
        &self,
        qkv: [Mat; 3],
        heads: &Heads,
        sequences: &Sequences,
        out: Mat,
        stats: &[f32],
        dout: Mat,
        dqkv: [MatMut; 3],
    ) {
        let ([q, k, v], [dq, dk, dv]) = (qkv, dqkv);
        ops::attention::attention_backward(
            self, q, k, v, heads, sequences, out, stats, dout, dq, dk, dv,
        );
    }

    fn router(
        &self,
        logits: Mat,
        bias: &[f32],
        r: &Routing,
        scores: &mut [f32],
        expert_ids: &mut [u32],
        expert_weights: &mut [f32],
    ) {
        ops::router::router(self, logits, bias, r, scores, expert_ids, expert_weights);
    }

    fn router_backward(
        &self,
        scores: &[f32],
        ids: &[u32],
        dexpert_weights: &[f32],
        r: &Routing,
        dscores: &[f32],
        dlogits: &mut [f32],
    ) {
        ops::router::router_backward(self, scores, ids, dexpert_weights, r, dscores, dlogits);
    }

    fn balance_loss(
        &self,
        scores: &[f32],
        expert_ids: &[u32],
        r: &Routing,
        cu_seqlens: &[u32],
        alpha: f32,
        dscores: &mut [f32],
    ) -> f32 {
        ops::router::balance_loss(self, scores, expert_ids, r, cu_seqlens, alpha, dscores)
    }

    fn dispatch(
        &self,
        expert_ids: &[u32],
        r: &Routing,
        offsets: &mut [u32],
        token_of: &mut [u32],
        slot_of: &mut [u32],
    ) {
        ops::experts::plan(
            self, expert_ids, r.top_k, r.experts, offsets, token_of, slot_of,
        );
    }

    fn gather_rows(&self, x: Mat, token_of: &[u32], y: MatMut) {
        ops::experts::gather_rows(self, x, token_of, y);
    }

    fn combine(&self, y: Mat, slot_of: &[u32], expert_weights: &[f32], out: MatMut) {
        let k = slot_of.len() / out.rows.max(1);
        ops::experts::combine(self, y, slot_of, expert_weights, k, out);
    }

    fn combine_backward(
        &self,
        dout: Mat,
        y: Mat,
        slot_of: &[u32],
        expert_weights: &[f32],
        dy: MatMut,
        dexpert_weights: &mut [f32],
    ) {
        let k = slot_of.len() / dout.rows.max(1);
        ops::experts::combine_backward(
            self,
            dout,
            y,
            slot_of,
            expert_weights,
            k,
            dy,
            dexpert_weights,
        );
    }

    fn scatter_add(&self, dy: Mat, slot_of: &[u32], dx: MatMut) {
        let k = slot_of.len() / dx.rows.max(1);
        ops::experts::scatter_add(self, dy, slot_of, k, dx);
    }

    fn head(
        &self,
        hidden: Mat,
        weight: &Weight,
        targets: &[u32],
        temperature: f32,
        logits: &mut Vec<f32>,
        [logprobs, entropies]: [&mut [f32]; 2],
        gradient: Option<HeadGradient>,
    ) {
        ops::head::head(
            self,
            hidden,
            weight,
            targets,
            temperature,
            logits,
            logprobs,
            entropies,
            gradient,
        );
    }

    fn logprobs(
        &self,
        logits: Mat,
        targets: &[u32],
        temperature: f32,
        logprobs: &mut [f32],
        entropies: &mut [f32],
    ) {
        ops::head::logprobs(self, logits, targets, temperature, logprobs, entropies);
    }

    fn log_normalizers(&self, logits: Mat, temperatures: &[f32], out: &mut [LogNormalizer]) {
        ops::head::log_normalizers(self, logits, temperatures, out);
    }

    fn softmax(&self, logits: MatMut, temperature: f32) {
        ops::head::softmax(self, logits, temperature);
    }

    fn adamw(&self, h: &AdamW, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32]) {
        ops::optimizer::adamw(self, h, params, grads, m, v);
    }

    fn sum_of_squares(&self, x: &[f32]) -> f64 {
        ops::optimizer::sum_of_squares(self, x)
    }

    fn scale(&self, x: &mut [f32], factor: f32) {
        ops::optimizer::scale(self, x, factor);
    }

    fn add_assign(&self, dst: &mut [f32], src: &[f32]) {
        ops::optimizer::add_assign(self, dst, src);
    }
}

//! The operations, each as what it asks for.

use super::Count;
use crate::gemm::Direction;
use crate::mat::{Mat, MatMut};
use crate::ops::attention::{Heads, Sequences};
use crate::ops::head::{HeadGradient, LogNormalizer};
use crate::ops::optimizer::AdamW;
use crate::ops::rope::{RopeAngles, RopeFrequencies};
use crate::ops::router::Routing;
use crate::{Backend, Keep, Precision, StoredMatrix, Weight};
use std::slice::from_ref;

impl Backend for Count {
    fn pack(&self, weight: Mat, packed: &mut Weight) {
        let shape = (packed.out_features(), packed.in_features());
        assert_eq!((weight.rows, weight.cols), shape, "shape of the weight");
    }

    fn store(
        &self,
        matrix: &StoredMatrix,
        keep: Keep,
        precision: Precision,
    ) -> std::io::Result<Weight> {
        self.cpu.store(matrix, keep, precision)
    }

    fn matmul_nt(&self, x: Mat, w: &Weight, y: MatMut, _add: bool) {
        self.by_rows(x, from_ref(w), &[0, x.rows as u32], y, Direction::Nt);
    }

    fn matmul_nt_each(&self, x: Mat, products: &mut [(&Weight, MatMut)]) {
        self.call();
        for (w, y) in products {
            let shape = (x.rows, w.out_features(), w.in_features());
            assert_eq!((y.rows, y.cols, x.cols), shape, "x and y");
            self.product(x.rows, w, Direction::Nt);
        }
    }

    fn matmul_nn(&self, dy: Mat, w: &Weight, dx: MatMut, _add: bool) {
        self.by_rows(dy, from_ref(w), &[0, dy.rows as u32], dx, Direction::Nn);
    }

    fn matmul_tn(&self, dy: Mat, x: Mat, precision: Precision, dw: &mut [f32]) {
        self.grouped_matmul_tn(dy, x, &[0, dy.rows as u32], precision, dw);
    }

    fn grouped_matmul_nt(&self, x: Mat, w: &[Weight], offsets: &[u32], y: MatMut, _add: bool) {
        self.by_rows(x, w, offsets, y, Direction::Nt);
    }

    fn grouped_matmul_nn(&self, dy: Mat, w: &[Weight], offsets: &[u32], dx: MatMut, _add: bool) {
        self.by_rows(dy, w, offsets, dx, Direction::Nn);
    }

    fn grouped_matmul_tn(
        &self,
        dy: Mat,
        x: Mat,
        offsets: &[u32],
        _precision: Precision,
        dw: &mut [f32],
    ) {
        super::check_groups(offsets, offsets.len() - 1, dy.rows);
        assert_eq!(dy.rows, x.rows, "rows of dy and x");
        let size = (offsets.len() - 1) * dy.cols * x.cols;
        assert_eq!(dw.len(), size, "size of dw");
        self.call();
        self.product_of_rows(dy.rows, dy.cols, x.cols);
    }

    fn per_head_nt(
        &self,
        x: Mat,
        x_step: usize,
        w: &[Weight],
        y: MatMut,
        y_step: usize,
        _add: bool,
    ) {
        self.per_head((x, x_step), w, (y, y_step), Direction::Nt);
    }

    fn per_head_nn(
        &self,
        x: Mat,
        x_step: usize,
        w: &[Weight],
        y: MatMut,
        y_step: usize,
        _add: bool,
    ) {
        self.per_head((x, x_step), w, (y, y_step), Direction::Nn);
    }

    fn per_head_tn(
        &self,
        (dy, dy_step): (Mat, usize),
        dy_cols: usize,
        (x, x_step): (Mat, usize),
        x_cols: usize,
        _precision: Precision,
        dw: &mut [f32],
        dw_step: usize,
    ) {
        assert_eq!(dy.rows, x.rows, "rows of dy and x");
        let heads = dw.len().div_ceil(dw_step);
        let last = heads - 1;
        assert!(last * dy_step + dy_cols <= dy.cols, "heads beyond dy");
        assert!(last * x_step + x_cols <= x.cols, "heads beyond x");
        assert!(last * dw_step + dy_cols * x_cols <= dw.len(), "size of dw");
        self.call();
        self.product_of_rows(heads * dy.rows, dy_cols, x_cols);
    }

    fn rmsnorm(&self, x: Mat, weight: &[f32], _eps: f32, y: MatMut, inv_rms: &mut [f32]) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "shapes of x and y");
        let lengths = (weight.len(), inv_rms.len());
        assert_eq!(lengths, (x.cols, x.rows), "weight and inv_rms");
        self.call();
    }

    fn rmsnorm_backward(
        &self,
        x: Mat,
        weight: &[f32],
        inv_rms: &[f32],
        dy: Mat,
        dx: MatMut,
        _add: bool,
        dweight: &mut [f32],
    ) {
        assert_eq!((x.rows, x.cols), (dy.rows, dy.cols), "shapes of x and dy");
        assert_eq!((x.rows, x.cols), (dx.rows, dx.cols), "shapes of x and dx");
        let lengths = (weight.len(), dweight.len(), inv_rms.len());
        assert_eq!(lengths, (x.cols, x.cols, x.rows), "weights and inv_rms");
        self.call();
    }

    fn add_bias(&self, y: MatMut, bias: &[f32]) {
        assert_eq!(bias.len(), y.cols, "length of bias");
        self.call();
    }

    fn add_bias_backward(&self, dy: Mat, dbias: &mut [f32]) {
        assert_eq!(dbias.len(), dy.cols, "length of dbias");
        self.call();
    }

    fn rope_angles(&self, _: &[u32], _: &RopeFrequencies, _: &mut RopeAngles) {
        self.call();
    }

    fn rope(
        &self,
        x: MatMut,
        head_dim: usize,
        rope_dim: usize,
        _angles: &RopeAngles,
        _interleaved: bool,
        _transposed: bool,
    ) {
        assert!(x.cols.is_multiple_of(head_dim), "heads of {head_dim}");
        assert!(rope_dim <= head_dim, "rope over {rope_dim} of {head_dim}");
        self.call();
    }

    fn swiglu(&self, gate: Mat, up: Mat, y: MatMut) {
        let shape = (y.rows, y.cols);
        assert_eq!((gate.rows, gate.cols), shape, "shape of gate");
        assert_eq!((up.rows, up.cols), shape, "shape of up");
        self.call();
    }

    fn swiglu_backward(&self, gate: Mat, up: Mat, dy: Mat, dgate: MatMut, dup: MatMut) {
        let shape = (dy.rows, dy.cols);
        assert_eq!((gate.rows, gate.cols), shape, "shape of gate");
        assert_eq!((up.rows, up.cols), shape, "shape of up");
        assert_eq!((dgate.rows, dgate.cols), shape, "shape of dgate");
        assert_eq!((dup.rows, dup.cols), shape, "shape of dup");
        self.call();
    }

    fn embedding(&self, ids: &[u32], weight: &[f32], y: MatMut) {
        assert_eq!(y.rows, ids.len(), "one row a token");
        assert!(weight.len().is_multiple_of(y.cols), "columns of y");
        self.call();
    }

    fn embedding_of(&self, ids: &[u32], weight: &Weight, y: MatMut) {
        let shape = (ids.len(), weight.in_features());
        assert_eq!((y.rows, y.cols), shape, "shape of y");
        self.call();
    }

    fn embedding_backward(&self, ids: &[u32], dy: Mat, dweight: &mut [f32]) {
        assert_eq!(dy.rows, ids.len(), "one row a token");
        assert!(dweight.len().is_multiple_of(dy.cols), "columns of dy");
        self.call();
    }

    fn copy_heads(
        &self,
        (x, x_step): (Mat, usize),
        (y, y_step): (MatMut, usize),
        heads: usize,
        width: usize,
        _add: bool,
    ) {
        assert_eq!(x.rows, y.rows, "rows of x and y");
        let last = heads - 1;
        assert!(last * x_step + width <= x.cols, "heads beyond x");
        assert!(last * y_step + width <= y.cols, "heads beyond y");
        self.call();
    }

    fn write_rows(&self, x: Mat, rows: &[u32], y: MatMut) {
        assert_eq!((x.rows, x.cols), (rows.len(), y.cols), "shape of x");
        self.call();
    }

    fn attention(
        &self,
        qkv: [Mat; 3],
        heads: &Heads,
        sequences: &Sequences,
        out: MatMut,
        stats: &mut [f32],
    ) {
        let rows = qkv[0].rows;
        let shape = (rows, heads.heads * heads.v_dim);
        assert_eq!((out.rows, out.cols), shape, "shape of out");
        assert_eq!(stats.len(), rows * heads.heads * 2, "size of stats");
        self.attend(qkv, heads, sequences, heads.qk_dim + heads.v_dim);
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
        let rows = qkv[0].rows;
        let shape = (rows, heads.heads * heads.v_dim);
        assert_eq!((out.rows, out.cols), shape, "shape of out");
        assert_eq!((dout.rows, dout.cols), shape, "shape of dout");
        assert_eq!(stats.len(), rows * heads.heads * 2, "size of stats");
        for (x, dx) in qkv.iter().zip(&dqkv) {
            assert_eq!((dx.rows, dx.cols), (x.rows, x.cols), "shapes of gradients");
        }
        // The scores again, dq and dk are as wide as a key; d weights and dv as a value.
        let widths = 3 * heads.qk_dim + 2 * heads.v_dim;
        self.attend(qkv, heads, sequences, widths);
    }

    fn router(
        &self,
        logits: Mat,
        _bias: &[f32],
        routing: &Routing,
        scores: &mut [f32],
        expert_ids: &mut [u32],
        expert_weights: &mut [f32],
    ) {
        assert_eq!(logits.cols, routing.experts, "logits of every expert");
        assert_eq!(scores.len(), logits.rows * logits.cols, "size of scores");
        let chosen = logits.rows * routing.top_k;
        let lengths = (expert_ids.len(), expert_weights.len());
        assert_eq!(lengths, (chosen, chosen), "sizes of ids and weights");
        self.call();
        for (i, id) in expert_ids.iter_mut().enumerate() {
            *id = (i % routing.experts) as u32;
        }
    }

    fn router_backward(
        &self,
        scores: &[f32],
        _expert_ids: &[u32],
        _dexpert_weights: &[f32],
        _routing: &Routing,
        dscores: &[f32],
        dlogits: &mut [f32],
    ) {
        let lengths = (dscores.len(), dlogits.len());
        assert_eq!(lengths, (scores.len(), scores.len()), "sizes of gradients");
        self.call();
    }

    fn balance_loss(
        &self,
        scores: &[f32],
        _expert_ids: &[u32],
        _routing: &Routing,
        _cu_seqlens: &[u32],
        _alpha: f32,
        dscores: &mut [f32],
    ) -> f32 {
        assert_eq!(dscores.len(), scores.len(), "size of dscores");
        self.call();
        0.0
    }

    fn dispatch(
        &self,
        expert_ids: &[u32],
        routing: &Routing,
        offsets: &mut [u32],
        token_of: &mut [u32],
        slot_of: &mut [u32],
    ) {
        self.call();
        self.cpu
            .dispatch(expert_ids, routing, offsets, token_of, slot_of);
    }

    fn gather_rows(&self, x: Mat, token_of: &[u32], y: MatMut) {
        assert_eq!((y.rows, y.cols), (token_of.len(), x.cols), "shape of y");
        self.call();
    }

    fn combine(&self, y: Mat, slot_of: &[u32], expert_weights: &[f32], out: MatMut) {
        let lengths = (slot_of.len(), expert_weights.len());
        assert_eq!(lengths, (y.rows, y.rows), "slots and weights");
        assert_eq!(y.cols, out.cols, "columns");
        self.call();
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
        let lengths = (slot_of.len(), expert_weights.len(), dexpert_weights.len());
        assert_eq!(lengths, (y.rows, y.rows, y.rows), "slots and weights");
        assert_eq!((dy.rows, dy.cols), (y.rows, dout.cols), "shape of dy");
        self.call();
    }

    fn scatter_add(&self, dy: Mat, slot_of: &[u32], dx: MatMut) {
        assert_eq!((dy.rows, dy.cols), (slot_of.len(), dx.cols), "shape of dy");
        self.call();
    }

    fn head(
        &self,
        hidden: Mat,
        weight: &Weight,
        targets: &[u32],
        _temperature: f32,
        _logits: &mut Vec<f32>,
        outcome: [&mut [f32]; 2],
        gradient: Option<HeadGradient>,
    ) {
        let (rows, width, vocab) = (hidden.rows, hidden.cols, weight.out_features());
        assert_eq!(width, weight.in_features(), "columns of hidden");
        for length in [targets.len(), outcome[0].len(), outcome[1].len()] {
            assert_eq!(length, rows, "rows");
        }
        self.call();
        self.product(rows, weight, Direction::Nt);
        if let Some(gradient) = gradient {
            let dhidden = &gradient.dhidden;
            assert_eq!((dhidden.rows, dhidden.cols), (rows, width), "dhidden");
            assert_eq!(gradient.dlogprobs.len(), rows, "rows of dlogprobs");
            assert_eq!(gradient.dweight.len(), vocab * width, "size of dweight");
            self.product(rows, weight, Direction::Nn);
            self.product_of_rows(rows, vocab, width);
        }
    }

    fn logprobs(
        &self,
        logits: Mat,
        targets: &[u32],
        _temperature: f32,
        logprobs: &mut [f32],
        entropies: &mut [f32],
    ) {
        for length in [targets.len(), logprobs.len(), entropies.len()] {
            assert_eq!(length, logits.rows, "rows");
        }
        self.call();
    }

    fn log_normalizers(&self, logits: Mat, temperatures: &[f32], out: &mut [LogNormalizer]) {
        let lengths = (temperatures.len(), out.len());
        assert_eq!(lengths, (logits.rows, logits.rows), "rows");
        self.call();
    }

    fn softmax(&self, _logits: MatMut, _temperature: f32) {
        self.call();
    }

    fn adamw(&self, _: &AdamW, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32]) {
        for length in [grads.len(), m.len(), v.len()] {
            assert_eq!(length, params.len(), "one for each parameter");
        }
        self.call();
    }

    fn sum_of_squares(&self, _x: &[f32]) -> f64 {
        self.call();
        0.0
    }

    fn scale(&self, _x: &mut [f32], _factor: f32) {
        self.call();
    }

    fn add_assign(&self, dst: &mut [f32], src: &[f32]) {
        assert_eq!(dst.len(), src.len(), "lengths");
        self.call();
    }
}

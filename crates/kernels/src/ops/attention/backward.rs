//! Gradients of attention: weights again from scores and the saved sums, then five products.

use super::{
    Heads, Item, KeyRows, RowPlaces, SCORE_ROWS, SCRATCH, Scratch, Sequences, check, items,
    panels_of_columns, panels_of_rows, product,
};
use crate::cpu::Cpu;
use crate::gemm::{Lanes, PANEL, item_function};
use crate::mat::{Mat, MatMut};
use crate::pool::SharedMut;
use crate::simd::{LANES, simd_fn};
use crate::{Isa, Precision};
use std::ops::Range;

simd_fn! {
    /// Weights from scores and their saved maximum and sum: e^(scale s - max) / sum for the first
    /// `seen` keys, 0 beyond; then d_scores = weights * (d_weights - delta) * scale.
    fn softmax_row_backward<S>(row: &mut [f32], d_row: &mut [f32], seen: usize, scale: f32,
                               max: f32, inverse_sum: f32, delta: f32) {
        let (p, d, n) = (row.as_mut_ptr(), d_row.as_mut_ptr(), row.len());
        for i in (0..seen).step_by(LANES) {
            let s = S::mul(S::load_first(p.add(i), n - i), S::splat(scale));
            let weight = crate::simd::exp::<S>(S::sub(s, S::splat(max)));
            let weight = S::mul(weight, S::splat(inverse_sum));
            let centred = S::sub(S::load_first(d.add(i), n - i), S::splat(delta));
            S::store_first(p.add(i), seen - i, weight);
            let d_score = S::mul(S::mul(weight, centred), S::splat(scale));
            S::store_first(d.add(i), seen - i, d_score);
        }
        row[seen..].fill(0.0);
        d_row[seen..].fill(0.0);
    }
}

simd_fn! {
    /// The sum of products of two rows.
    fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "rows of one width");
        crate::simd::dot::<S>(a.as_ptr(), b.as_ptr(), a.len())
    }
}

/// Gradients of [`attention`] over packed keys; dq, dk and dv are written.
pub(crate) fn attention_backward(
    cpu: &Cpu,
    q: Mat,
    k: Mat,
    v: Mat,
    shape: &Heads,
    sequences: &Sequences,
    out: Mat,
    stats: &[f32],
    dout: Mat,
    dq: MatMut,
    dk: MatMut,
    dv: MatMut,
) {
    check(shape, sequences, &q, &k, &v);
    assert!(
        matches!(sequences.key_rows, KeyRows::Packed),
        "gradients need packed keys"
    );
    assert_eq!((dq.rows, dq.cols), (q.rows, q.cols), "shape of dq");
    assert_eq!((dk.rows, dk.cols), (k.rows, k.cols), "shape of dk");
    assert_eq!((dv.rows, dv.cols), (v.rows, v.cols), "shape of dv");
    for m in [&out, &dout] {
        let want = (q.rows, shape.heads * shape.v_dim);
        assert_eq!((m.rows, m.cols), want, "shape of out and dout");
        m.check();
    }
    assert_eq!(stats.len(), q.rows * shape.heads * 2, "size of stats");
    for m in [&dq, &dk, &dv] {
        m.check();
    }
    let items = items(sequences, shape, q.rows, true);
    let backward = Backward {
        isa: cpu.isa,
        q,
        k,
        v,
        shape,
        out,
        stats,
        dout,
        dq: Gradient::new(dq),
        dk: Gradient::new(dk),
        dv: Gradient::new(dv),
    };
    cpu.pool.run(items.len(), |i| {
        SCRATCH.with_borrow_mut(|scratch| backward.sequence(&items[i], scratch));
    });
}

/// A gradient that threads write disjoint parts of.
struct Gradient {
    data: SharedMut<f32>,
    stride: usize,
}

impl Gradient {
    fn new(m: MatMut) -> Gradient {
        Gradient {
            stride: m.stride,
            data: SharedMut::new(m.data),
        }
    }

    /// Where the `width` columns of a key head begin in a row.
    fn offset(&self, row: usize, kv_head: usize, width: usize) -> usize {
        row * self.stride + kv_head * width
    }

    fn clear(&self, rows: Range<usize>, kv_head: usize, width: usize) {
        for row in rows {
            let at = self.offset(row, kv_head, width);
            // SAFETY: the rows of a sequence and columns of a head belong to one item.
            unsafe { self.data.slice(at..at + width) }.fill(0.0);
        }
    }
}

/// What the work items of one backward share.
struct Backward<'a> {
    isa: Isa,
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    shape: &'a Heads,
    out: Mat<'a>,
    stats: &'a [f32],
    dout: Mat<'a>,
    dq: Gradient,
    dk: Gradient,
    dv: Gradient,
}

impl Item {
    /// The first row of the item's sequence, whose keys are packed beside its queries.
    fn sequence_start(&self) -> usize {
        self.queries.start - self.position
    }
}

impl Backward<'_> {
    /// All queries of one sequence and key head, block after block: dk and dv are chains over them.
    fn sequence(&self, whole: &Item, scratch: &mut Scratch) {
        let (kv_head, start) = (whole.kv_head, whole.queries.start);
        let keys = start..start + whole.keys();
        self.dk.clear(keys.clone(), kv_head, self.shape.qk_dim);
        self.dv.clear(keys, kv_head, self.shape.v_dim);
        let block = (SCORE_ROWS / self.shape.group()).max(1);
        for first in whole.queries.clone().step_by(block) {
            let item = Item {
                sequence: whole.sequence,
                kv_head,
                queries: first..whole.queries.end.min(first + block),
                position: first - start,
            };
            self.block(&item, scratch);
        }
    }

    fn block(&self, item: &Item, scratch: &mut Scratch) {
        // 1. scores = q kᵀ once more, beside the d_weights of 3
        self.scores_and_d_weights(item, scratch);
        // 2. weights = e^(scale scores - max) / sum, and d_scores
        self.weights_and_d_scores(item, scratch);
        // 3. out = weights v
        self.d_values(item, scratch);
        // 1. scores = q kᵀ
        self.d_queries_and_keys(item, scratch);
    }

    /// Rows of the sequence's keys or values that the item sees.
    fn seen_rows<'m>(&self, m: Mat<'m>, item: &Item, width: usize) -> Mat<'m> {
        let start = item.sequence_start();
        m.rows(start..start + item.keys())
            .columns(item.kv_head * width, width)
    }

    /// scores = q kᵀ, d_weights = dout vᵀ; these lie where d_scores will.
    fn scores_and_d_weights(&self, item: &Item, scratch: &mut Scratch) {
        let (isa, shape) = (self.isa, self.shape);
        let (rows, padded) = (item.rows(shape), item.padded_keys());
        let Scratch {
            key_panels,
            value_panels,
            scores,
            d_scores,
            ..
        } = scratch;
        let (kd, vd) = (shape.qk_dim, shape.v_dim);
        panels_of_rows(isa, self.seen_rows(self.k, item, kd), key_panels);
        panels_of_rows(isa, self.seen_rows(self.v, item, vd), value_panels);
        scores.resize(rows * padded, 0.0);
        d_scores.resize(rows * padded, 0.0);
        let places = RowPlaces::of_scores(item, shape);
        let (s, ds) = (scores.as_mut_ptr(), d_scores.as_mut_ptr());
        let q_places = RowPlaces::new(item, shape, self.q.stride, kd);
        let q = (self.q.data.as_ptr(), q_places);
        product(isa, q, key_panels, (s, places), rows, padded, kd);
        let dout_places = RowPlaces::new(item, shape, self.dout.stride, vd);
        let dout = (self.dout.data.as_ptr(), dout_places);
        product(isa, dout, value_panels, (ds, places), rows, padded, vd);
    }

    /// In place.
    fn weights_and_d_scores(&self, item: &Item, scratch: &mut Scratch) {
        let (isa, shape) = (self.isa, self.shape);
        let (rows, padded, vd) = (item.rows(shape), item.padded_keys(), shape.v_dim);
        let scores = scratch.scores.chunks_exact_mut(padded);
        let d_scores = scratch.d_scores.chunks_exact_mut(padded);
        for (r, (row, d_row)) in scores.zip(d_scores).take(rows).enumerate() {
            let (token, head) = item.token_and_head(shape, r);
            let columns = head * vd..(head + 1) * vd;
            let dout = &self.dout.row(token)[columns.clone()];
            let delta = dot(isa, dout, &self.out.row(token)[columns]);
            let at = 2 * (token * shape.heads + head);
            let (max, inverse) = (self.stats[at], 1.0 / self.stats[at + 1]);
            let (seen, scale) = (item.seen(shape, r), shape.scale);
            softmax_row_backward(isa, row, d_row, seen, scale, max, inverse, delta);
        }
    }

    /// dv += weightsᵀ dout.
    fn d_values(&self, item: &Item, scratch: &mut Scratch) {
        let (weights, panels) = (&scratch.scores, &mut scratch.other_panels);
        let width = self.shape.v_dim;
        self.add_transposed(weights, self.dout, item, width, &self.dv, panels);
    }

    /// dq = d_scores k, dk += d_scoresᵀ q.
    fn d_queries_and_keys(&self, item: &Item, scratch: &mut Scratch) {
        let (isa, shape, width) = (self.isa, self.shape, self.shape.qk_dim);
        let Scratch {
            key_panels,
            other_panels,
            d_scores,
            ..
        } = scratch;
        panels_of_columns(isa, self.seen_rows(self.k, item, width), key_panels);
        let ds = (d_scores.as_ptr(), RowPlaces::of_scores(item, shape));
        let places = RowPlaces::new(item, shape, self.dq.stride, width);
        let dq = (self.dq.data.pointer(), places);
        let (rows, keys) = (item.rows(shape), item.keys());
        product(isa, ds, key_panels, dq, rows, width, keys);
        self.add_transposed(d_scores, self.q, item, width, &self.dk, other_panels);
    }

    /// d `[keys, width]` += weightsᵀ m, where the rows of `m` are the heads and queries of the
    /// item: one chain over them in order.
    fn add_transposed(
        &self,
        weights: &[f32],
        m: Mat,
        item: &Item,
        width: usize,
        d: &Gradient,
        panels: &mut Vec<u32>,
    ) {
        let (rows, keys, padded) = (item.rows(self.shape), item.keys(), item.padded_keys());
        let places = RowPlaces::new(item, self.shape, m.stride, width);
        panels_of_places(m, places, rows, panels);
        let at = d.offset(item.sequence_start(), item.kv_head, width);
        let lanes = Lanes {
            a: weights.as_ptr().cast(),
            row_step: 1,
            lane_step: padded,
            b: panels.as_ptr(),
            c: d.data.pointer().wrapping_add(at),
            c_stride: d.stride,
            rows: keys,
            columns: width,
            depth: rows,
            accumulate: true,
        };
        let run = item_function(self.isa, Precision::F32);
        // SAFETY: weights is [rows, padded], keys <= padded; d has `keys` rows of this sequence.
        unsafe { run(&lanes, 0..keys, 0..width.div_ceil(PANEL)) }
    }
}

/// Panels whose columns are the columns of `m`, over the rows of a work item.
fn panels_of_places(m: Mat, places: RowPlaces, rows: usize, panels: &mut Vec<u32>) {
    let width = places.width;
    panels.resize(width.div_ceil(PANEL) * rows * PANEL, 0);
    for (j, panel) in panels.chunks_exact_mut(rows * PANEL).enumerate() {
        let n = PANEL.min(width - j * PANEL);
        for (r, lane) in panel.chunks_exact_mut(PANEL).enumerate() {
            let at = places.at(r) + j * PANEL;
            lane[n..].fill(0);
            lane[..n]
                .iter_mut()
                .zip(&m.data[at..at + n])
                .for_each(|(l, x)| *l = x.to_bits());
        }
    }
}

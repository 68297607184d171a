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
    assert_eq!(
        (out.cols, dout.cols),
        (shape.heads * shape.v_dim, shape.heads * shape.v_dim)
    );
    for m in [&dq, &dk, &dv] {
        m.check();
    }
    let items = items(sequences, shape, q.rows, true);
    let (dq_stride, dk_stride, dv_stride) = (dq.stride, dk.stride, dv.stride);
    let dq = SharedMut::new(dq.data);
    let (dk, dv) = (SharedMut::new(dk.data), SharedMut::new(dv.data));
    let isa = cpu.isa;
    let group = shape.group();
    let (kd, vd) = (shape.qk_dim, shape.v_dim);
    cpu.pool.run(items.len(), |i| {
        SCRATCH.with_borrow_mut(|scratch| {
            let whole = &items[i];
            let (kh, start) = (whole.kv_head, whole.queries.start);
            let all = whole.keys();
            let zero = |m: &SharedMut<f32>, stride: usize, width: usize| {
                for j in start..start + all {
                    let at = j * stride + kh * width;
                    // SAFETY: the rows of a sequence and columns of a head belong to one item.
                    unsafe { m.slice(at..at + width) }.fill(0.0);
                }
            };
            zero(&dk, dk_stride, kd);
            zero(&dv, dv_stride, vd);
            let block = (SCORE_ROWS / group).max(1);
            for first in whole.queries.clone().step_by(block) {
                let last = whole.queries.end.min(first + block);
                let position = first - start;
                let item = Item {
                    sequence: whole.sequence,
                    kv_head: kh,
                    queries: first..last,
                    position,
                };
                let keys = item.keys();
                let rows = item.queries.len() * group;
                let padded = keys.next_multiple_of(PANEL);
                let k = k.rows(start..start + keys).columns(kh * kd, kd);
                let v = v.rows(start..start + keys).columns(kh * vd, vd);
                let Scratch {
                    key_panels,
                    value_panels,
                    other_panels,
                    scores,
                    d_scores,
                    ..
                } = scratch;
                panels_of_rows(isa, k, key_panels);
                panels_of_rows(isa, v, value_panels);
                scores.resize(rows * padded, 0.0);
                d_scores.resize(rows * padded, 0.0);
                let s_places = RowPlaces {
                    start: 0,
                    stride: group * padded,
                    width: padded,
                    group,
                };
                let q_places = RowPlaces::new(&item, shape, q.stride, kd);
                let o_places = RowPlaces::new(&item, shape, dout.stride, vd);
                let (s, ds) = (scores.as_mut_ptr(), d_scores.as_mut_ptr());
                let (qp, dop) = (q.data.as_ptr(), dout.data.as_ptr());
                product(isa, qp, q_places, key_panels, s, s_places, rows, padded, kd);
                product(
                    isa,
                    dop,
                    o_places,
                    value_panels,
                    ds,
                    s_places,
                    rows,
                    padded,
                    vd,
                );
                let rows_of = scores
                    .chunks_exact_mut(padded)
                    .zip(d_scores.chunks_exact_mut(padded));
                for (r, (row, d_row)) in rows_of.take(rows).enumerate() {
                    let seen = item.position + r / group + 1;
                    let t = item.queries.start + r / group;
                    let head = kh * group + r % group;
                    let columns = head * vd..(head + 1) * vd;
                    let delta = dot(isa, &dout.row(t)[columns.clone()], &out.row(t)[columns]);
                    let at = 2 * (t * shape.heads + head);
                    let (max, inverse) = (stats[at], 1.0 / stats[at + 1]);
                    softmax_row_backward(isa, row, d_row, seen, shape.scale, max, inverse, delta);
                }
                panels_of_columns(isa, k, key_panels);
                let dq_places = RowPlaces::new(&item, shape, dq_stride, kd);
                product(
                    isa,
                    ds,
                    s_places,
                    key_panels,
                    dq.pointer(),
                    dq_places,
                    rows,
                    kd,
                    keys,
                );
                let to = |m: &SharedMut<f32>, stride: usize, width: usize| {
                    m.pointer().wrapping_add(start * stride + kh * width)
                };
                transposed_product(
                    isa,
                    s,
                    padded,
                    keys,
                    dout,
                    &item,
                    shape,
                    vd,
                    to(&dv, dv_stride, vd),
                    dv_stride,
                    other_panels,
                );
                transposed_product(
                    isa,
                    ds,
                    padded,
                    keys,
                    q,
                    &item,
                    shape,
                    kd,
                    to(&dk, dk_stride, kd),
                    dk_stride,
                    other_panels,
                );
            }
        });
    });
}

/// c `[keys, width]` += weightsᵀ m, where the rows of `m` are the heads and queries of the item:
/// one chain over them in order.
fn transposed_product(
    isa: Isa,
    weights: *const f32,
    padded: usize,
    keys: usize,
    m: Mat,
    item: &Item,
    shape: &Heads,
    width: usize,
    c: *mut f32,
    c_stride: usize,
    panels: &mut Vec<u32>,
) {
    let group = shape.group();
    let rows = item.queries.len() * group;
    let places = RowPlaces::new(item, shape, m.stride, width);
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
    let lanes = Lanes {
        a: weights.cast(),
        row_step: 1,
        lane_step: padded,
        b: panels.as_ptr(),
        c,
        c_stride,
        rows: keys,
        columns: width,
        depth: rows,
        accumulate: true,
    };
    // SAFETY: weights is [rows, padded] with keys <= padded; c has `keys` rows of this sequence.
    unsafe { item_function(isa, Precision::F32)(&lanes, 0..keys, 0..width.div_ceil(PANEL)) }
}

//! Causal attention over sequences of a packed batch, keys packed beside the queries or in blocks
//! of a cache. f32 throughout.
//!
//! One op serves every form: multi-head, grouped (`kv_heads < heads`), and MLA's absorbed form, in
//! which all heads share one key, the latent with its rotary part, and the values are the latent
//! itself. The weights of a query are computed from all its keys before any value is touched, so
//! no running maximum exists whose history could depend on chunks or blocks (the row law).

mod backward;
mod rows;

pub(crate) use backward::attention_backward;

use crate::cpu::Cpu;
use crate::gemm::{Lanes, PANEL, item_function, pack_panel_nt, pack_rows};
use crate::mat::{Mat, MatMut};
use crate::pool::SharedMut;
use crate::simd::{LANES, simd_fn};
use crate::{Isa, Precision};
use std::cell::RefCell;

/// Rows of scores that one work item holds: a row is one head of one query.
const SCORE_ROWS: usize = 96;

/// Up to so many rows of scores read keys and values in place: packing them would cost more than
/// the products.
const ROWS_IN_PLACE: usize = 4;

/// Where the keys of a sequence lie.
#[derive(Clone, Copy)]
pub enum KeyRows<'a> {
    /// In the same rows as its queries.
    Packed,
    /// In blocks of a cache: row `table[p / block_size] * block_size + p % block_size` for position
    /// p, with `blocks_per_sequence` entries of `tables` for each sequence.
    Blocks {
        tables: &'a [u32],
        blocks_per_sequence: usize,
        block_size: usize,
    },
}

/// The sequences of a packed batch.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// Query rows of sequence s: `cu_seqlens[s]..cu_seqlens[s + 1]`.
    pub cu_seqlens: &'a [u32],
    /// Keys of each sequence, its newest tokens included.
    pub context_lens: &'a [u32],
    pub key_rows: KeyRows<'a>,
}

/// Shapes of one attention.
#[derive(Clone, Copy)]
pub struct Heads {
    pub heads: usize,
    /// Divides `heads`; each serves `heads / kv_heads` of them.
    pub kv_heads: usize,
    /// Width of a query and of a key.
    pub qk_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Factor on the scores before the softmax.
    pub scale: f32,
}

impl Heads {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Buffers of one thread, kept between calls.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Where rows read in place begin.
    starts: Vec<usize>,
    key_panels: Vec<u32>,
    value_panels: Vec<u32>,
    other_panels: Vec<u32>,
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    /// One over the sum of each row's weights.
    inverse_sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One block of queries that share their keys.
struct Item {
    sequence: usize,
    kv_head: usize,
    /// Rows of the batch.
    queries: std::ops::Range<usize>,
    /// Position of the first query in its sequence.
    position: usize,
}

impl Item {
    /// Keys that the last query of the item sees.
    fn keys(&self) -> usize {
        self.position + self.queries.len()
    }

    /// Width of a row of scores: whole panels.
    fn padded_keys(&self) -> usize {
        self.keys().next_multiple_of(PANEL)
    }

    /// Rows of scores: each head of each query.
    fn rows(&self, shape: &Heads) -> usize {
        self.queries.len() * shape.group()
    }

    /// The token and the head of row r.
    fn token_and_head(&self, shape: &Heads, r: usize) -> (usize, usize) {
        let group = shape.group();
        (
            self.queries.start + r / group,
            self.kv_head * group + r % group,
        )
    }

    /// Keys that the query of row r sees.
    fn seen(&self, shape: &Heads, r: usize) -> usize {
        self.position + r / shape.group() + 1
    }
}

simd_fn! {
    /// Turns a row of scores into unnormalised weights: e^(scale s - max) for the first `seen`
    /// keys, 0 up to the end of the row. Returns the maximum and the sum.
    fn softmax_row<S>(row: &mut [f32], seen: usize, scale: f32) -> (f32, f32) {
        let p = row.as_mut_ptr();
        let factor = S::splat(scale);
        let lowest = S::splat(f32::MIN);
        let mut greatest = lowest;
        let full = seen / LANES * LANES;
        for i in (0..full).step_by(LANES) {
            greatest = S::max(S::mul(S::load(p.add(i)), factor), greatest);
        }
        let mut max = S::greatest(greatest);
        for i in full..seen {
            let s = *p.add(i) * scale;
            max = if s > max { s } else { max };
        }
        let shift = S::splat(max);
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < seen {
            let s = S::sub(S::mul(S::load_first(p.add(i), row.len() - i), factor), shift);
            S::store_first(p.add(i), seen - i, crate::simd::exp::<S>(s));
            if i + LANES > seen {
                for j in seen..row.len().min(i + LANES) {
                    *p.add(j) = 0.0;
                }
            }
            sum = S::add(sum, S::load_first(p.add(i), seen - i));
            i += LANES;
        }
        for j in i..row.len() {
            *p.add(j) = 0.0;
        }
        (max, S::sum(sum))
    }
}

simd_fn! {
    /// y = y * factor + 0: the sum turns a negative zero positive, whose sign would otherwise tell
    /// how many masked keys followed.
    fn normalise<S>(y: &mut [f32], factor: f32) {
        let (p, n) = (y.as_mut_ptr(), y.len());
        for i in (0..n).step_by(LANES) {
            let v = S::load_first(p.add(i), n - i);
            S::store_first(p.add(i), n - i, S::fma(v, S::splat(factor), S::splat(0.0)));
        }
    }
}

fn items(sequences: &Sequences, shape: &Heads, rows: usize, whole: bool) -> Vec<Item> {
    let count = sequences.context_lens.len();
    assert_eq!(sequences.cu_seqlens.len(), count + 1, "cu_seqlens");
    assert_eq!(sequences.cu_seqlens[count] as usize, rows, "queries");
    let block = if whole {
        usize::MAX
    } else {
        (SCORE_ROWS / shape.group()).max(1)
    };
    let mut items = Vec::new();
    for sequence in 0..count {
        let start = sequences.cu_seqlens[sequence] as usize;
        let end = sequences.cu_seqlens[sequence + 1] as usize;
        let context = sequences.context_lens[sequence] as usize;
        assert!(
            end - start <= context,
            "sequence {sequence}: more queries than keys"
        );
        let mut first = start;
        while first < end {
            let last = end.min(first.saturating_add(block));
            let position = context - (end - first);
            for kv_head in 0..shape.kv_heads {
                items.push(Item {
                    sequence,
                    kv_head,
                    queries: first..last,
                    position,
                });
            }
            first = last;
        }
    }
    items
}

/// `count` rows of `width` floats: packed rows as they are, cached rows gathered into `buffer`.
fn key_rows<'a>(
    source: Mat<'a>,
    sequences: &Sequences,
    item: &Item,
    count: usize,
    column: usize,
    width: usize,
    buffer: &'a mut Vec<f32>,
) -> Mat<'a> {
    match sequences.key_rows {
        KeyRows::Packed => {
            let start = sequences.cu_seqlens[item.sequence] as usize;
            source.rows(start..start + count).columns(column, width)
        }
        KeyRows::Blocks {
            tables,
            blocks_per_sequence,
            block_size,
        } => {
            buffer.clear();
            let table = &tables[item.sequence * blocks_per_sequence..][..blocks_per_sequence];
            for p in 0..count {
                let row = table[p / block_size] as usize * block_size + p % block_size;
                buffer.extend_from_slice(&source.row(row)[column..column + width]);
            }
            Mat {
                data: buffer,
                rows: count,
                cols: width,
                stride: width,
            }
        }
    }
}

/// Panels whose columns are the rows of `m` (for products over its columns).
fn panels_of_rows(isa: Isa, m: Mat, panels: &mut Vec<u32>) {
    let per_panel = m.cols * PANEL;
    panels.resize(m.rows.div_ceil(PANEL) * per_panel, 0);
    for (j, panel) in panels.chunks_exact_mut(per_panel).enumerate() {
        let n = PANEL.min(m.rows - j * PANEL);
        let source = &m.data[j * PANEL * m.stride..];
        pack_panel_nt(isa, source, m.stride, n, m.cols, false, panel);
    }
}

/// Panels whose columns are the columns of `m` (for products over its rows).
fn panels_of_columns(isa: Isa, m: Mat, panels: &mut Vec<u32>) {
    panels.resize(m.cols.div_ceil(PANEL) * m.rows * PANEL, 0);
    pack_rows(isa, m, 0..m.rows, false, &SharedMut::new(panels), 0);
}

/// Row r of a work item, query r / group and head r % group, as an offset into a matrix of
/// `[tokens, heads * width]`; and the distance between rows where it is even.
#[derive(Clone, Copy)]
struct RowPlaces {
    start: usize,
    stride: usize,
    width: usize,
    group: usize,
}

impl RowPlaces {
    fn new(item: &Item, shape: &Heads, stride: usize, width: usize) -> RowPlaces {
        let group = shape.group();
        let start = item.queries.start * stride + item.kv_head * group * width;
        RowPlaces {
            start,
            stride,
            width,
            group,
        }
    }

    /// Rows of a matrix of scores, which are evenly spaced.
    fn of_scores(item: &Item, shape: &Heads) -> RowPlaces {
        let (group, width) = (shape.group(), item.padded_keys());
        RowPlaces {
            start: 0,
            stride: group * width,
            width,
            group,
        }
    }

    fn at(&self, r: usize) -> usize {
        self.start + r / self.group * self.stride + r % self.group * self.width
    }
}

/// Runs one small product whose rows may lie in groups (heads of a token): in one call where the
/// rows are evenly spaced, head by head where they are not.
fn product(
    isa: Isa,
    (a, a_places): (*const f32, RowPlaces),
    b: &[u32],
    (c, c_places): (*mut f32, RowPlaces),
    rows: usize,
    columns: usize,
    depth: usize,
) {
    let group = a_places.group;
    let even = |p: &RowPlaces| group == 1 || p.stride == group * p.width;
    let step = |p: &RowPlaces| if group == 1 { p.stride } else { p.width };
    let run = item_function(isa, Precision::F32);
    let mut lanes = Lanes {
        a: a.wrapping_add(a_places.start).cast(),
        row_step: step(&a_places),
        lane_step: 1,
        b: b.as_ptr(),
        c: c.wrapping_add(c_places.start),
        c_stride: step(&c_places),
        rows,
        columns,
        depth,
        accumulate: false,
    };
    let panels = 0..columns.div_ceil(PANEL);
    if even(&a_places) && even(&c_places) {
        // SAFETY: the rows lie inside both matrices, whose shapes the callers assert.
        unsafe { run(&lanes, 0..rows, panels) };
        return;
    }
    for head in 0..group {
        lanes.a = a
            .wrapping_add(a_places.start + head * a_places.width)
            .cast();
        lanes.row_step = a_places.stride;
        lanes.c = c.wrapping_add(c_places.start + head * c_places.width);
        lanes.c_stride = c_places.stride;
        lanes.rows = rows / group;
        // SAFETY: as above.
        unsafe { run(&lanes, 0..rows / group, panels.clone()) };
    }
}

fn check(shape: &Heads, sequences: &Sequences, q: &Mat, k: &Mat, v: &Mat) {
    assert_eq!(shape.heads % shape.kv_heads, 0, "heads per key head");
    assert_eq!(q.cols, shape.heads * shape.qk_dim, "width of q");
    assert_eq!(k.cols, shape.kv_heads * shape.qk_dim, "width of k");
    assert_eq!(v.cols, shape.kv_heads * shape.v_dim, "width of v");
    assert_eq!(k.rows, v.rows, "rows of k and v");
    if let KeyRows::Packed = sequences.key_rows {
        assert_eq!(k.rows, q.rows, "packed keys lie beside their queries");
        let lengths = sequences.cu_seqlens.windows(2).zip(sequences.context_lens);
        for (bounds, &context) in lengths {
            assert_eq!(
                bounds[0] + context,
                bounds[1],
                "a packed document is its context"
            );
        }
    }
    assert_eq!(
        sequences.cu_seqlens[0], 0,
        "the first sequence begins at row 0"
    );
    assert!(sequences.cu_seqlens.is_sorted(), "cu_seqlens go up");
    q.check();
    k.check();
    v.check();
}

/// out `[tokens, heads * v_dim]` = softmax(scale q kᵀ) v, each query over the keys up to its own
/// position. `stats [tokens, heads, 2]` receives each row's maximum and sum for the backward.
pub(crate) fn attention(
    cpu: &Cpu,
    q: Mat,
    k: Mat,
    v: Mat,
    shape: &Heads,
    sequences: &Sequences,
    out: MatMut,
    stats: &mut [f32],
) {
    check(shape, sequences, &q, &k, &v);
    assert_eq!(
        (out.rows, out.cols),
        (q.rows, shape.heads * shape.v_dim),
        "shape of out"
    );
    assert_eq!(stats.len(), q.rows * shape.heads * 2, "size of stats");
    out.check();
    let items = items(sequences, shape, q.rows, false);
    let forward = Forward {
        isa: cpu.isa,
        q,
        k,
        v,
        shape,
        sequences,
        out_stride: out.stride,
        out: SharedMut::new(out.data),
        stats: SharedMut::new(stats),
    };
    cpu.pool.run(items.len(), |i| {
        SCRATCH.with_borrow_mut(|scratch| forward.block(&items[i], scratch));
    });
}

/// What the work items of one forward share.
struct Forward<'a> {
    isa: Isa,
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    shape: &'a Heads,
    sequences: &'a Sequences<'a>,
    out_stride: usize,
    out: SharedMut<f32>,
    stats: SharedMut<f32>,
}

impl Forward<'_> {
    fn block(&self, item: &Item, scratch: &mut Scratch) {
        // 1. scores = q kᵀ
        self.scores(item, scratch);
        // 2. weights = e^(scale scores - max)
        self.weights(item, scratch);
        // 3. out = weights v / sum of weights
        self.weighted_values(item, scratch);
    }

    fn scores(&self, item: &Item, scratch: &mut Scratch) {
        let (rows, keys) = (item.rows(self.shape), item.keys());
        let padded = item.padded_keys();
        let Scratch {
            keys: gathered,
            starts,
            key_panels,
            scores,
            ..
        } = scratch;
        let width = self.shape.qk_dim;
        let (column, sequences) = (item.kv_head * width, self.sequences);
        if rows <= ROWS_IN_PLACE {
            scores.resize(rows * padded, 0.0);
            rows::starts(self.k, sequences, item, keys, column, starts);
            let places = RowPlaces::new(item, self.shape, self.q.stride, width);
            for (r, row) in scores.chunks_exact_mut(padded).take(rows).enumerate() {
                let q = &self.q.data[places.at(r)..][..width];
                rows::scores(self.isa, q, self.k.data, starts, row);
            }
            return;
        }
        let k = key_rows(self.k, sequences, item, keys, column, width, gathered);
        panels_of_rows(self.isa, k, key_panels);
        scores.resize(rows * padded, 0.0);
        let places = RowPlaces::new(item, self.shape, self.q.stride, width);
        let q = (self.q.data.as_ptr(), places);
        let to = (scores.as_mut_ptr(), RowPlaces::of_scores(item, self.shape));
        product(self.isa, q, key_panels, to, rows, padded, width);
    }

    /// Writes each row's maximum and sum to `stats`, and leaves one over the sum in scratch.
    fn weights(&self, item: &Item, scratch: &mut Scratch) {
        let (shape, rows) = (self.shape, item.rows(self.shape));
        let Scratch {
            scores,
            inverse_sums,
            ..
        } = scratch;
        inverse_sums.clear();
        let scores = scores.chunks_exact_mut(item.padded_keys());
        for (r, row) in scores.take(rows).enumerate() {
            let (max, sum) = softmax_row(self.isa, row, item.seen(shape, r), shape.scale);
            inverse_sums.push(1.0 / sum);
            let (token, head) = item.token_and_head(shape, r);
            let at = 2 * (token * shape.heads + head);
            // SAFETY: each row of stats belongs to one item.
            unsafe { self.stats.slice(at..at + 2) }.copy_from_slice(&[max, sum]);
        }
    }

    fn weighted_values(&self, item: &Item, scratch: &mut Scratch) {
        let (rows, keys) = (item.rows(self.shape), item.keys());
        let Scratch {
            values: gathered,
            starts,
            value_panels,
            scores,
            inverse_sums,
            ..
        } = scratch;
        let width = self.shape.v_dim;
        let (column, sequences) = (item.kv_head * width, self.sequences);
        let places = RowPlaces::new(item, self.shape, self.out_stride, width);
        let in_place = rows <= ROWS_IN_PLACE;
        if in_place {
            rows::starts(self.v, sequences, item, keys, column, starts);
        } else {
            let v = key_rows(self.v, sequences, item, keys, column, width, gathered);
            panels_of_columns(self.isa, v, value_panels);
            let weights = (scores.as_ptr(), RowPlaces::of_scores(item, self.shape));
            let to = (self.out.pointer(), places);
            product(self.isa, weights, value_panels, to, rows, width, keys);
        }
        let weights = scores.chunks_exact(item.padded_keys());
        for (r, (weights, &inverse_sum)) in weights.zip(inverse_sums.iter()).enumerate() {
            let at = places.at(r);
            // SAFETY: each row of out belongs to one item.
            let row = unsafe { self.out.slice(at..at + width) };
            if in_place {
                rows::weighted_sum(self.isa, weights, self.v.data, starts, row);
            }
            normalise(self.isa, row, inverse_sum);
        }
    }
}

#[cfg(test)]
mod tests;

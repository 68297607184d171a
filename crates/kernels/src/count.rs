//! A backend that computes nothing and counts what a machine would have to do.
//!
//! A model runs on it as on any other: its products, its attention and its bytes are counted where
//! they are asked for, so that a formula about the model can be held against the model itself.

mod backend;

use crate::gemm::Direction;
use crate::mat::{Mat, MatMut};
use crate::ops::attention::{Heads, KeyRows, Sequences};
use crate::{Cpu, Isa, Weight};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the calls since the last [`Count::take`] asked for. A multiply-add is two operations.
///
/// Norms, rotations, activation functions, softmax, routing, biases, sums over rows and the
/// optimizer are not in the operations; the lookup of embeddings is in nothing but `calls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of matrix products: with a weight (grouped, per head, and the head included), and of two
    /// activations for the gradient of a weight. Without what tiles add to fill themselves.
    pub matmul_flops: u64,
    /// Of attention, over the pairs of a query and a key that it sees. Forward: score and weighted
    /// value, `2 (qk_dim + v_dim)` a pair and head. Backward: the score once more, and the products
    /// that give d weights, dv, dq and dk, `2 (3 qk_dim + 2 v_dim)`.
    pub attention_flops: u64,
    /// Weights that products read, each once a product however many rows it has, and not at all
    /// where it has none (an expert without tokens). The gradient of a weight reads none.
    pub weights: u64,
    /// The bytes of these, in the form they are held: of [`Weight::new`] the panels of the
    /// product's direction, of [`crate::Backend::store`] what was kept; padding and scales
    /// included.
    pub weight_bytes: u64,
    /// Keys and values (f32) that attention reads: those of every sequence that has a query, once a
    /// call, and once where the values are part of the keys.
    pub key_bytes: u64,
    /// Operations called, without [`crate::Backend::pack`] and [`crate::Backend::store`].
    pub calls: u64,
}

/// Counts in place of computing.
///
/// Outputs keep what they held and what is returned is zero, with one exception: the router sends
/// token t to experts `t k, t k + 1, ..` modulo their number, which is as even as routing can be,
/// and the dispatch sorts that. So later steps have valid rows and groups to work on.
///
/// [`crate::Backend::pack`] leaves a weight as it is. [`crate::Backend::store`] reads and keeps a
/// matrix as [`Cpu`] does, on one thread.
pub struct Count {
    cpu: Cpu,
    counts: Mutex<Counts>,
}

impl Default for Count {
    fn default() -> Count {
        Count::new()
    }
}

impl Count {
    pub fn new() -> Count {
        Count {
            cpu: Cpu::new(1, Isa::Portable),
            counts: Mutex::default(),
        }
    }

    /// What was counted; counting begins anew.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.lock())
    }

    /// Numbers are whole whatever panicked beside them.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) {
        self.lock().calls += 1;
    }

    /// Groups of rows times their weights, in either direction.
    fn by_rows(&self, x: Mat, w: &[Weight], offsets: &[u32], y: MatMut, direction: Direction) {
        check_groups(offsets, w.len(), x.rows);
        assert_eq!(x.rows, y.rows, "rows of x and y");
        x.check();
        y.check();
        self.call();
        for (w, rows) in w.iter().zip(offsets.windows(2)) {
            assert_eq!((x.cols, y.cols), w.shape(direction), "x.cols and y.cols");
            self.product((rows[1] - rows[0]) as usize, w, direction);
        }
    }

    /// Columns of x from `h * x_step` times the weight of head h.
    fn per_head(
        &self,
        (x, x_step): (Mat, usize),
        w: &[Weight],
        (y, y_step): (MatMut, usize),
        direction: Direction,
    ) {
        assert_eq!(x.rows, y.rows, "rows of x and y");
        x.check();
        y.check();
        self.call();
        for (h, w) in w.iter().enumerate() {
            let (k, columns) = w.shape(direction);
            assert!(h * x_step + k <= x.cols, "head {h} beyond x");
            assert!(h * y_step + columns <= y.cols, "head {h} beyond y");
            self.product(x.rows, w, direction);
        }
    }

    /// One product of some rows with a weight.
    fn product(&self, rows: usize, w: &Weight, direction: Direction) {
        if rows == 0 {
            return;
        }
        let (k, columns) = w.shape(direction);
        let mut counts = self.lock();
        counts.matmul_flops += multiply_adds([rows, k, columns]);
        counts.weights += (k * columns) as u64;
        counts.weight_bytes += w.bytes_read(direction) as u64;
    }

    /// One product of two activations.
    fn product_of_rows(&self, rows: usize, dy_cols: usize, x_cols: usize) {
        self.lock().matmul_flops += multiply_adds([rows, dy_cols, x_cols]);
    }

    /// Attention whose products have `widths` columns in all, a pair of query and key.
    fn attend(&self, [q, k, v]: [Mat; 3], heads: &Heads, sequences: &Sequences, widths: usize) {
        check_attention([&q, &k, &v], heads, sequences);
        self.call();
        let width = match values_are_keys(&k, &v) {
            true => heads.qk_dim,
            false => heads.qk_dim + heads.v_dim,
        };
        let (mut pairs, mut keys) = (0, 0);
        let bounds = sequences.cu_seqlens.windows(2);
        for (rows, &context) in bounds.zip(sequences.context_lens) {
            let queries = (rows[1] - rows[0]) as usize;
            pairs += pairs_seen(queries, context as usize);
            keys += if queries > 0 { context as usize } else { 0 };
        }
        let mut counts = self.lock();
        counts.attention_flops += multiply_adds([pairs, heads.heads, widths]);
        counts.key_bytes += (keys * heads.kv_heads * width * size_of::<f32>()) as u64;
    }
}

fn multiply_adds(sizes: [usize; 3]) -> u64 {
    2 * sizes.map(|size| size as u64).iter().product::<u64>()
}

/// The last of `context` tokens ask, each about those up to itself.
fn pairs_seen(queries: usize, context: usize) -> usize {
    assert!(queries <= context, "more queries than keys");
    queries * (context - queries) + queries * (queries + 1) / 2
}

/// Whether the values lie within the keys, as the latent of MLA does.
fn values_are_keys(k: &Mat, v: &Mat) -> bool {
    let (keys, values) = (k.data.as_ptr().addr(), v.data.as_ptr().addr());
    let column = values
        .checked_sub(keys)
        .map(|bytes| bytes / size_of::<f32>());
    k.stride == v.stride && column.is_some_and(|column| column + v.cols <= k.cols)
}

fn check_groups(offsets: &[u32], groups: usize, rows: usize) {
    assert_eq!(offsets.len(), groups + 1, "offsets of {groups} groups");
    assert!(offsets.is_sorted(), "offsets go up");
    let ends = (offsets[0] as usize, offsets[groups] as usize);
    assert_eq!(ends, (0, rows), "offsets from the first row to the last");
}

fn check_attention([q, k, v]: [&Mat; 3], heads: &Heads, sequences: &Sequences) {
    assert_eq!(heads.heads % heads.kv_heads, 0, "heads per key head");
    assert_eq!(q.cols, heads.heads * heads.qk_dim, "width of q");
    assert_eq!(k.cols, heads.kv_heads * heads.qk_dim, "width of k");
    assert_eq!(v.cols, heads.kv_heads * heads.v_dim, "width of v");
    assert_eq!(k.rows, v.rows, "rows of k and v");
    check_groups(sequences.cu_seqlens, sequences.context_lens.len(), q.rows);
    if let KeyRows::Packed = sequences.key_rows {
        assert_eq!(k.rows, q.rows, "packed keys lie beside their queries");
    }
    [q, k, v].into_iter().for_each(Mat::check);
}

#[cfg(test)]
mod tests;

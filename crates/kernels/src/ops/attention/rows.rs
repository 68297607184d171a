//! Few queries over many keys, as in decoding: keys and values are read where they lie, without
//! being gathered and packed first. The chains are those of the packed products (over the width for
//! a score, over the keys for a value, each from 0), so the bits are too.

use super::{Item, KeyRows, Sequences};
use crate::mat::Mat;
use crate::simd::{LANES, simd_fn};

/// Where the first `count` keys of an item's sequence begin in `source.data`, at a column.
pub(super) fn starts(
    source: Mat,
    sequences: &Sequences,
    item: &Item,
    count: usize,
    column: usize,
    starts: &mut Vec<usize>,
) {
    starts.clear();
    match sequences.key_rows {
        KeyRows::Packed => {
            let first = sequences.cu_seqlens[item.sequence] as usize;
            starts.extend((first..first + count).map(|row| row * source.stride + column));
        }
        KeyRows::Blocks {
            tables,
            blocks_per_sequence,
            block_size,
        } => {
            let table = &tables[item.sequence * blocks_per_sequence..][..blocks_per_sequence];
            for (block, first) in table.iter().zip((0..count).step_by(block_size)) {
                let row = *block as usize * block_size;
                let rows = row..row + block_size.min(count - first);
                starts.extend(rows.map(|row| row * source.stride + column));
            }
        }
    }
    assert_eq!(starts.len(), count, "a table holds its sequence");
}

/// Rows of `width` floats lie inside the data.
fn check(data: &[f32], starts: &[usize], width: usize) {
    let last = starts.iter().max().map_or(0, |start| start + width);
    assert!(last <= data.len(), "rows lie inside their matrix");
}

simd_fn! {
    /// scores[i] = q · row i, each a chain of its own: sixteen rows at a time, a row for each lane.
    pub(super) fn scores<S>(q: &[f32], data: &[f32], starts: &[usize], scores: &mut [f32]) {
        let (width, count) = (q.len(), starts.len());
        check(data, starts, width);
        assert!(scores.len() >= count, "a score for each row");
        let row = |i: usize| data.as_ptr().wrapping_add(starts[i]);
        for first in (0..count).step_by(LANES) {
            // The rows after these: they lie apart, so the hardware does not fetch them ahead.
            for i in first + LANES..count.min(first + 2 * LANES) {
                for d in (0..width).step_by(LANES) {
                    S::prefetch(row(i).wrapping_add(d).cast());
                }
            }
            let mut sums = S::splat(0.0);
            for d in (0..width).step_by(LANES) {
                let mut square = [S::splat(0.0); LANES];
                for (i, vector) in square.iter_mut().enumerate() {
                    // What is beyond the last row is computed again and not written.
                    let p = row((first + i).min(count - 1));
                    *vector = S::load_first(p.add(d), width - d);
                }
                let square = S::transpose(square);
                for (column, &x) in square.iter().zip(&q[d..]) {
                    sums = S::fma(S::splat(x), *column, sums);
                }
            }
            S::store_first(scores.as_mut_ptr().add(first), count - first, sums);
        }
    }
}

simd_fn! {
    /// out = sum over i of weights[i] * row i, a chain for each element.
    pub(super) fn weighted_sum<S>(weights: &[f32], data: &[f32], starts: &[usize],
                                  out: &mut [f32]) {
        check(data, starts, out.len());
        assert!(weights.len() >= starts.len(), "a weight for each row");
        let (p, n) = (out.as_mut_ptr(), out.len());
        let mut at = 0;
        while at + 4 * LANES <= n {
            let zero = S::splat(0.0);
            let [mut a, mut b, mut c, mut d] = [zero, zero, zero, zero];
            for (i, (&start, &weight)) in starts.iter().zip(weights).enumerate() {
                if let Some(&ahead) = starts.get(i + LANES) {
                    let ahead = data.as_ptr().wrapping_add(ahead + at);
                    for line in 0..4 {
                        S::prefetch(ahead.wrapping_add(line * LANES).cast());
                    }
                }
                let row = data.as_ptr().add(start + at);
                let weight = S::splat(weight);
                a = S::fma(weight, S::load(row), a);
                b = S::fma(weight, S::load(row.add(LANES)), b);
                c = S::fma(weight, S::load(row.add(2 * LANES)), c);
                d = S::fma(weight, S::load(row.add(3 * LANES)), d);
            }
            S::store(p.add(at), a);
            S::store(p.add(at + LANES), b);
            S::store(p.add(at + 2 * LANES), c);
            S::store(p.add(at + 3 * LANES), d);
            at += 4 * LANES;
        }
        while at < n {
            let mut sum = S::splat(0.0);
            for (&start, &weight) in starts.iter().zip(weights) {
                let row = S::load_first(data.as_ptr().add(start + at), n - at);
                sum = S::fma(S::splat(weight), row, sum);
            }
            S::store_first(p.add(at), n - at, sum);
            at += LANES;
        }
    }
}

//! One file per op: its forward and its backward.

use crate::simd::LANES;

pub(crate) mod attention;
pub(crate) mod bias;
pub(crate) mod copy;
pub(crate) mod embedding;
pub(crate) mod experts;
pub(crate) mod head;
pub(crate) mod optimizer;
pub(crate) mod rmsnorm;
pub(crate) mod rope;
pub(crate) mod router;
pub(crate) mod swiglu;
#[cfg(test)]
mod testing;

/// Elements that are worth handing to a thread: some microseconds of work.
pub(crate) const ITEM: usize = 1 << 14;

/// Rows that one thread takes at a time: a function of the shape alone.
pub(crate) fn rows_per_item(cols: usize) -> usize {
    (ITEM / cols.max(1)).max(1)
}

/// Columns that one thread takes at a time where each column is a chain over all rows. Two cache
/// lines at least, so that no two threads write one line of an aligned buffer.
pub(crate) fn columns_per_item(rows: usize) -> usize {
    (ITEM / rows.max(1))
        .next_multiple_of(2 * LANES)
        .max(2 * LANES)
}

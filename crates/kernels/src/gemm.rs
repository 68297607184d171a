//! The one matrix product of the project.
//!
//! Every element of a result is one chain over k in fixed order: in f32 one FMA per k, in bf16 one
//! pair of FMAs per two k (see [`Simd::dot_bf16`]). Tiles, k blocks, threads and grouping choose
//! *when* a step of the chain is taken, never its place in it: between k blocks the accumulators
//! go through memory, which is exact. That is the row law for matrices.
//!
//! The right operand lies in panels of [`PANEL`] columns, `[depth lanes][PANEL]`; a lane is 32
//! bits: one f32, or two bf16 with the even k in the low half. Weights keep their panels, or are
//! converted to blocks of panels as the tiles come to them ([`Weight`]); a product of two
//! activations packs one of them into scratch memory.

mod operands;
mod pack;
mod tile;
mod weight;

pub(crate) use pack::{pack_panel_nt, pack_rows};
pub(crate) use tile::{Lanes, item_function};
pub use weight::Weight;
pub(crate) use weight::{Direction, Panels};

use crate::cpu::Cpu;
use crate::mat::{Mat, MatMut};
use crate::stored::{BLOCK_LANES, Source, fill};
use crate::{Isa, Precision};
use operands::{Reading, reserve};
use std::ops::Range;
use std::sync::PoisonError;
use tile::{Item, pairs_function};

/// Columns of a panel, on every instruction set.
pub(crate) const PANEL: usize = 32;
/// Rows per work item: eight tiles of twelve share each panel block.
const ROW_BLOCK: usize = 96;
/// Rows per work item where a block has to be converted first, which more rows then share.
const STORED_ROW_BLOCK: usize = 384;
/// Lanes of a block that serves a few rows.
const SHORT_BLOCK: usize = 64;
/// Up to so many rows a product is bound by the reading of its right operand.
const FEW_ROWS: usize = 12;
/// Multiply-adds below which waking another thread costs more than it saves.
const MIN_ITEM: usize = 1 << 17;

/// The right operand of a product.
#[derive(Clone, Copy)]
enum Right<'a> {
    Weight(&'a Weight, Direction),
    /// `[k, columns]`, packed into scratch for this product.
    Rows(Mat<'a>),
}

/// One product `c (+)= a b`; `a` is `[rows, k]`, or `[k, rows]` when transposed.
struct Product<'a> {
    a: Mat<'a>,
    a_transposed: bool,
    b: Right<'a>,
    c: *mut f32,
    c_stride: usize,
    rows: usize,
    columns: usize,
    k: usize,
}

// SAFETY: c is only written through work items, whose tiles are disjoint.
unsafe impl Sync for Product<'_> {}

/// A contiguous run of work items that belong to one product.
struct Grid {
    first: usize,
    row_block: usize,
    row_blocks: usize,
    panel_group: usize,
}

impl Cpu {
    /// y (+)= x wᵀ for each group: group g takes rows `offsets[g]..offsets[g + 1]`.
    pub(crate) fn grouped_nt(&self, x: Mat, w: &[Weight], offsets: &[u32], y: MatMut, add: bool) {
        self.by_rows(x, w, offsets, y, add, Direction::Nt);
    }

    /// y = x wᵀ for each weight and its y.
    pub(crate) fn each_nt(&self, x: Mat, products: &mut [(&Weight, MatMut)]) {
        x.check();
        let few_bits = products.iter().filter(|(w, _)| w.quantised().is_some());
        let few_bits = few_bits.count();
        if few_bits > 0 {
            assert_eq!(few_bits, products.len(), "all weights in few bits, or none");
            let products = products.iter_mut();
            let each = products.filter_map(|(w, y)| Some((w.quantised()?, y.reborrow())));
            self.quantised_each(x, &mut each.collect::<Vec<_>>());
            return;
        }
        let precision = products
            .first()
            .map_or(Precision::F32, |(w, _)| w.precision());
        let each = products.iter_mut().map(|(w, y)| {
            assert_eq!(w.precision(), precision, "weights of one precision");
            let (k, columns) = w.shape(Direction::Nt);
            assert_eq!((x.cols, y.rows, y.cols), (k, x.rows, columns), "x and y");
            y.check();
            Product {
                a: x,
                a_transposed: false,
                b: Right::Weight(w, Direction::Nt),
                c: y.data.as_mut_ptr(),
                c_stride: y.stride,
                rows: x.rows,
                columns,
                k,
            }
        });
        self.multiply(precision, &each.collect::<Vec<_>>(), false);
    }

    /// dx (+)= dy w for each group of rows.
    pub(crate) fn grouped_nn(&self, dy: Mat, w: &[Weight], offsets: &[u32], dx: MatMut, add: bool) {
        self.by_rows(dy, w, offsets, dx, add, Direction::Nn);
    }

    fn by_rows(
        &self,
        x: Mat,
        w: &[Weight],
        offsets: &[u32],
        y: MatMut,
        add: bool,
        direction: Direction,
    ) {
        assert_eq!(offsets.len(), w.len() + 1, "offsets of {} groups", w.len());
        assert!(offsets.is_sorted(), "offsets go up");
        assert_eq!(
            (offsets[0] as usize, offsets[w.len()] as usize),
            (0, x.rows)
        );
        assert_eq!(x.rows, y.rows, "rows of x and y");
        x.check();
        y.check();
        let few_bits: Vec<_> = w.iter().filter_map(Weight::quantised).collect();
        if !few_bits.is_empty() {
            assert_eq!(
                few_bits.len(),
                w.len(),
                "all weights of a group in few bits, or none"
            );
            assert_eq!(
                direction,
                Direction::Nt,
                "a weight in few bits serves x w' alone"
            );
            self.quantised_nt(x, &few_bits, offsets, y, add);
            return;
        }
        let (c, c_stride) = (y.data.as_mut_ptr(), y.stride);
        let products = w.iter().zip(offsets.windows(2)).map(|(w, o)| {
            let (k, columns) = w.shape(direction);
            assert_eq!((x.cols, y.cols), (k, columns), "x.cols and y.cols");
            let rows = o[0] as usize..o[1] as usize;
            Product {
                a: x.rows(rows.clone()),
                a_transposed: false,
                b: Right::Weight(w, direction),
                // The pointer of an empty group may be one row past the end; it is never used.
                c: c.wrapping_add(rows.start * c_stride),
                c_stride,
                rows: rows.len(),
                columns,
                k,
            }
        });
        self.multiply(one_precision(w), &products.collect::<Vec<_>>(), add);
    }

    /// dw[g] (+)= dyᵀ x over the rows of each group; `dw` is `[groups, dy.cols, x.cols]`.
    pub(crate) fn grouped_tn(
        &self,
        dy: Mat,
        x: Mat,
        offsets: &[u32],
        precision: Precision,
        dw: &mut [f32],
        add: bool,
    ) {
        let groups = offsets.len() - 1;
        assert!(offsets.is_sorted(), "offsets go up");
        assert_eq!(dy.rows, x.rows, "rows of dy and x");
        assert_eq!(dw.len(), groups * dy.cols * x.cols, "size of dw");
        assert_eq!((offsets[0] as usize, offsets[groups] as usize), (0, x.rows));
        dy.check();
        x.check();
        let c = dw.as_mut_ptr();
        let products = offsets.windows(2).enumerate().map(|(g, o)| {
            let rows = o[0] as usize..o[1] as usize;
            Product {
                a: dy.rows(rows.clone()),
                a_transposed: true,
                b: Right::Rows(x.rows(rows.clone())),
                // SAFETY: inside dw by the assertion on its size.
                c: unsafe { c.add(g * dy.cols * x.cols) },
                c_stride: x.cols,
                rows: dy.cols,
                columns: x.cols,
                k: rows.len(),
            }
        });
        self.multiply(precision, &products.collect::<Vec<_>>(), add);
    }

    /// For each head h: y's columns from `h * y_step` (+)= x's columns from `h * x_step`, times
    /// `w[h]ᵀ` (or `w[h]` where `transposed` is false).
    pub(crate) fn per_head(
        &self,
        x: Mat,
        x_step: usize,
        w: &[Weight],
        transposed: bool,
        y: MatMut,
        y_step: usize,
        add: bool,
    ) {
        assert_eq!(x.rows, y.rows, "rows of x and y");
        x.check();
        y.check();
        let (c, c_stride, rows, y_cols) = (y.data.as_mut_ptr(), y.stride, y.rows, y.cols);
        let products = w.iter().enumerate().map(|(h, w)| {
            let direction = if transposed {
                Direction::Nt
            } else {
                Direction::Nn
            };
            let (k, columns) = w.shape(direction);
            assert!(
                columns <= y_step || w_is_single(h, y_step, columns),
                "heads of y overlap"
            );
            assert!(h * y_step + columns <= y_cols, "head {h} beyond y");
            Product {
                a: x.columns(h * x_step, k),
                a_transposed: false,
                b: Right::Weight(w, direction),
                c: c.wrapping_add(h * y_step),
                c_stride,
                rows,
                columns,
                k,
            }
        });
        self.multiply(one_precision(w), &products.collect::<Vec<_>>(), add);
    }

    /// For each head h: dw from `h * dw_step` += (`n` columns of dy)ᵀ (`k` columns of x), where
    /// each operand comes with the distance between its heads' columns.
    pub(crate) fn per_head_transposed(
        &self,
        (dy, dy_step): (Mat, usize),
        n: usize,
        (x, x_step): (Mat, usize),
        k: usize,
        precision: Precision,
        dw: &mut [f32],
        dw_step: usize,
    ) {
        assert_eq!(dy.rows, x.rows, "rows of dy and x");
        let heads = dw.len().div_ceil(dw_step);
        assert!(
            dw_step >= n * k && dw.len() >= (heads - 1) * dw_step + n * k,
            "size of dw"
        );
        dy.check();
        x.check();
        let c = dw.as_mut_ptr();
        let products = (0..heads).map(|h| Product {
            a: dy.columns(h * dy_step, n),
            a_transposed: true,
            b: Right::Rows(x.columns(h * x_step, k)),
            // SAFETY: inside dw by the assertion on its size.
            c: unsafe { c.add(h * dw_step) },
            c_stride: k,
            rows: n,
            columns: k,
            k: dy.rows,
        });
        self.multiply(precision, &products.collect::<Vec<_>>(), true);
    }

    /// Runs the products; `add` starts each chain from c instead of zero.
    fn multiply(&self, precision: Precision, products: &[Product], add: bool) {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let places = reserve(&mut scratch, precision, products);
        let operands = self.prepare(precision, products, &places, &mut scratch, add);
        let (grids, items, shared) = self.grids(products, &operands);
        let run = item_function(self.isa, precision);
        let run_pairs = pairs_function(self.isa);
        let one = |i: usize| {
            let g = grids.partition_point(|g| g.first <= i) - 1;
            let ((p, reading), grid) = (&operands[g], &grids[g]);
            let i = i - grid.first;
            let (row_block, group) = (i % grid.row_blocks, i / grid.row_blocks);
            let first = row_block * grid.row_block;
            let rows = first..p.rows.min(first + grid.row_block);
            let panels = p.columns.div_ceil(PANEL);
            let panels = group * grid.panel_group..panels.min((group + 1) * grid.panel_group);
            // SAFETY: items cover disjoint rows and panels; the operands outlive the call.
            unsafe {
                match reading {
                    Reading::Lanes => run_panels(run, p, rows, panels),
                    Reading::Pairs => run_panels(run_pairs, p, rows, panels),
                    Reading::Stored(source) => {
                        run_stored(self.isa, precision, run, p, source, rows, panels)
                    }
                    Reading::StoredPairs(source) => {
                        let lane = Precision::Bf16;
                        run_stored(self.isa, lane, run_pairs, p, source, rows, panels)
                    }
                }
            }
        };
        if shared {
            self.pool.run(items, one);
        } else {
            (0..items).for_each(one);
        }
    }

    /// How the products are cut into items, how many there are, and whether threads share them.
    fn grids(
        &self,
        products: &[Product],
        operands: &[(Lanes, Reading)],
    ) -> (Vec<Grid>, usize, bool) {
        // A few rows cost what reading the weight costs.
        let cost = |p: &Product| match p.rows {
            0 => 0,
            rows => rows.max(FEW_ROWS) * p.columns * p.k,
        };
        let few = products.iter().all(|p| p.rows <= FEW_ROWS);
        let work: usize = products.iter().map(cost).sum();
        let per_thread = if few { 16 } else { 8 };
        let wanted = (per_thread * self.threads()).min(work / MIN_ITEM).max(1);
        let mut grids = Vec::with_capacity(operands.len());
        let mut items = 0;
        for (p, reading) in operands {
            let row_block = match reading {
                Reading::Lanes | Reading::Pairs => ROW_BLOCK,
                Reading::Stored(_) | Reading::StoredPairs(_) => STORED_ROW_BLOCK,
            };
            let row_blocks = p.rows.div_ceil(row_block);
            let panels = p.columns.div_ceil(PANEL);
            // Panels are split only as far as rows alone do not give every thread work.
            let groups = wanted
                .div_ceil((row_blocks * operands.len()).max(1))
                .clamp(1, panels.max(1));
            let panel_group = panels.div_ceil(groups).max(1);
            grids.push(Grid {
                first: items,
                row_block,
                row_blocks,
                panel_group,
            });
            items += row_blocks * panels.div_ceil(panel_group);
        }
        (grids, items, wanted > 1)
    }
}

/// The tiles of one work item.
///
/// # Safety
/// Rows and panels inside the product, and no other thread at them.
unsafe fn run_panels(run: Item, p: &Lanes, rows: Range<usize>, panels: Range<usize>) {
    // SAFETY: passed on from the caller.
    unsafe {
        if rows.len() <= FEW_ROWS {
            // Panel after panel, a few rows read the weight in the order of memory.
            panels.for_each(|j| run(p, rows.clone(), j..j + 1));
        } else {
            run(p, rows, panels);
        }
    }
}

/// A block of a panel, on a cache line.
#[repr(align(64))]
struct Block([u32; BLOCK_LANES * PANEL]);

/// The tiles of one work item whose right operand is converted block by block.
///
/// # Safety
/// As [`run_panels`].
unsafe fn run_stored(
    isa: Isa,
    lane: Precision,
    run: Item,
    p: &Lanes,
    source: &Source,
    rows: Range<usize>,
    panels: Range<usize>,
) {
    let mut block = Block([0; BLOCK_LANES * PANEL]);
    // A few rows are done with a block at once: a short one leaves the cache to the prefetches.
    let lanes = if rows.len() <= FEW_ROWS {
        SHORT_BLOCK
    } else {
        BLOCK_LANES
    };
    let mut step = |k0: usize, j: usize| {
        let depth = lanes.min(p.depth - k0);
        let out = &mut block.0[..depth * PANEL];
        fill(isa, source, lane, j, k0..k0 + depth, out);
        let tiles = Lanes {
            a: p.a.wrapping_add(k0 * p.lane_step),
            b: out.as_ptr(),
            c: p.c.wrapping_add(j * PANEL),
            columns: p.columns - j * PANEL,
            depth,
            accumulate: p.accumulate || k0 > 0,
            ..*p
        };
        // SAFETY: passed on from the caller; the block is one panel of `depth` lanes.
        unsafe { run(&tiles, rows.clone(), 0..1) }
    };
    let blocks = (0..p.depth.max(1)).step_by(lanes);
    // The order follows the rows of memory where there is a choice.
    if matches!(source, Source::Lanes(_)) {
        blocks.for_each(|k0| panels.clone().for_each(|j| step(k0, j)));
    } else {
        panels.for_each(|j| blocks.clone().for_each(|k0| step(k0, j)));
    }
}

/// The precision of weights that one call multiplies by; their forms may differ.
fn one_precision(w: &[Weight]) -> Precision {
    let precision = w.first().map_or(Precision::F32, |w| w.precision());
    assert!(
        w.iter().all(|w| w.precision() == precision),
        "weights of one precision"
    );
    precision
}

/// Heads may share columns only if there is one.
fn w_is_single(h: usize, y_step: usize, columns: usize) -> bool {
    h == 0 && y_step <= columns
}

#[cfg(test)]
mod tests;

//! The one matrix product of the project.
//!
//! Every element of a result is one chain over k in fixed order: in f32 one FMA per k, in bf16 one
//! pair of FMAs per two k (see [`Simd::dot_bf16`]). Tiles, k blocks, threads and grouping choose
//! *when* a step of the chain is taken, never its place in it: between k blocks the accumulators
//! go through memory, which is exact. That is the row law for matrices.
//!
//! The right operand lies in panels of [`PANEL`] columns, `[depth lanes][PANEL]`; a lane is 32
//! bits: one f32, or two bf16 with the even k in the low half. Weights keep their panels
//! ([`PackedWeight`]); a product of two activations packs one of them into scratch memory.

mod pack;
mod tile;

pub(crate) use pack::{pack_panel_nt, pack_rows};
pub(crate) use tile::{Lanes, item_function};

use crate::cpu::Cpu;
use crate::mat::{Mat, MatMut};
use crate::pool::SharedMut;
use crate::simd::LANES;
use crate::{Isa, Precision};
use pack::{pairs_across, pairs_along};
use std::ops::Range;
use std::sync::PoisonError;

/// Columns of a panel, on every instruction set.
pub(crate) const PANEL: usize = 32;
/// Rows per work item: eight tiles of twelve share each panel block.
const ROW_BLOCK: usize = 96;
/// Multiply-adds below which waking another thread costs more than it saves.
const MIN_ITEM: usize = 1 << 17;
/// Units of a [`Piece`].
const PIECE: usize = 64;

/// A matrix as panels: the right operand of a product.
#[derive(Clone, Debug, Default)]
struct Panels {
    lanes: Vec<u32>,
    depth: usize,
    columns: usize,
}

/// A weight `[out_features, in_features]` in the two forms that products need.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    out_features: usize,
    in_features: usize,
    precision: Precision,
    /// For `x wᵀ`: k runs over in_features.
    nt: Panels,
    /// For `dy w`: k runs over out_features.
    nn: Panels,
}

impl PackedWeight {
    /// Room for a weight; filled by [`crate::Backend::pack`].
    pub fn new(out_features: usize, in_features: usize, precision: Precision) -> PackedWeight {
        let panels = |columns: usize, k: usize| {
            let depth = precision.lanes(k);
            let lanes = vec![0; columns.div_ceil(PANEL) * depth * PANEL];
            Panels {
                lanes,
                depth,
                columns,
            }
        };
        PackedWeight {
            out_features,
            in_features,
            precision,
            nt: panels(out_features, in_features),
            nn: panels(in_features, out_features),
        }
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// The right operand of a product.
#[derive(Clone, Copy)]
enum Right<'a> {
    Packed(&'a Panels),
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
    row_blocks: usize,
    panel_group: usize,
}

/// Where scratch lanes of each product begin.
struct Scratch {
    a: usize,
    b: usize,
}

/// Which side of a product.
#[derive(Clone, Copy)]
enum Operand {
    A,
    B,
}

/// A part of an operand that the tiles cannot read as it is.
struct Piece {
    product: usize,
    operand: Operand,
    /// Lanes; of an `a` that is not transposed, rows.
    units: Range<usize>,
}

impl Cpu {
    /// Fills a weight's panels from `weight [out_features, in_features]` (rows may be strided).
    pub(crate) fn pack_weight(&self, weight: Mat, packed: &mut PackedWeight) {
        assert_eq!(
            (weight.rows, weight.cols),
            (packed.out_features, packed.in_features)
        );
        weight.check();
        let (isa, bf16) = (self.isa, packed.precision == Precision::Bf16);
        let per_panel = packed.nt.depth * PANEL;
        let nt = SharedMut::new(&mut packed.nt.lanes);
        self.pool.run(weight.rows.div_ceil(PANEL), |j| {
            // SAFETY: panels are disjoint.
            let panel = unsafe { nt.slice(j * per_panel..(j + 1) * per_panel) };
            let rows = j * PANEL..weight.rows.min((j + 1) * PANEL);
            let n = rows.len();
            let source = &weight.rows(rows).data;
            pack_panel_nt(isa, source, weight.stride, n, weight.cols, bf16, panel);
        });
        let depth = packed.nn.depth;
        let nn = SharedMut::new(&mut packed.nn.lanes);
        self.pool.run_chunks(depth, 64, |lanes| {
            pack_rows(isa, weight, lanes, bf16, &nn, 0);
        });
    }

    /// y (+)= x wᵀ for each group: group g takes rows `offsets[g]..offsets[g + 1]`.
    pub(crate) fn grouped_nt(
        &self,
        x: Mat,
        w: &[PackedWeight],
        offsets: &[u32],
        y: MatMut,
        add: bool,
    ) {
        self.by_rows(x, w, offsets, y, add, |w| {
            (&w.nt, w.in_features, w.out_features)
        });
    }

    /// dx (+)= dy w for each group of rows.
    pub(crate) fn grouped_nn(
        &self,
        dy: Mat,
        w: &[PackedWeight],
        offsets: &[u32],
        dx: MatMut,
        add: bool,
    ) {
        self.by_rows(dy, w, offsets, dx, add, |w| {
            (&w.nn, w.out_features, w.in_features)
        });
    }

    fn by_rows(
        &self,
        x: Mat,
        w: &[PackedWeight],
        offsets: &[u32],
        y: MatMut,
        add: bool,
        side: impl Fn(&PackedWeight) -> (&Panels, usize, usize),
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
        let (c, c_stride) = (y.data.as_mut_ptr(), y.stride);
        let products = w.iter().zip(offsets.windows(2)).map(|(w, o)| {
            let (panels, k, columns) = side(w);
            assert_eq!((x.cols, y.cols), (k, columns), "x.cols and y.cols");
            let rows = o[0] as usize..o[1] as usize;
            Product {
                a: x.rows(rows.clone()),
                a_transposed: false,
                b: Right::Packed(panels),
                // The pointer of an empty group may be one row past the end; it is never used.
                c: c.wrapping_add(rows.start * c_stride),
                c_stride,
                rows: rows.len(),
                columns,
                k,
            }
        });
        self.multiply(
            w.first().map_or(Precision::F32, |w| w.precision),
            &products.collect::<Vec<_>>(),
            add,
        );
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
        w: &[PackedWeight],
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
            let (panels, k, columns) = if transposed {
                (&w.nt, w.in_features, w.out_features)
            } else {
                (&w.nn, w.out_features, w.in_features)
            };
            assert!(
                columns <= y_step || w_is_single(h, y_step, columns),
                "heads of y overlap"
            );
            assert!(h * y_step + columns <= y_cols, "head {h} beyond y");
            Product {
                a: x.columns(h * x_step, k),
                a_transposed: false,
                b: Right::Packed(panels),
                c: c.wrapping_add(h * y_step),
                c_stride,
                rows,
                columns,
                k,
            }
        });
        self.multiply(w[0].precision, &products.collect::<Vec<_>>(), add);
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
        let lanes = self.prepare(precision, products, &places, &mut scratch, add);
        let run = item_function(self.isa, precision);
        let work: usize = products.iter().map(|p| p.rows * p.columns * p.k).sum();
        let wanted = (8 * self.threads()).min(work / MIN_ITEM).max(1);
        let mut grids = Vec::with_capacity(products.len());
        let mut items = 0;
        for p in &lanes {
            let row_blocks = p.rows.div_ceil(ROW_BLOCK);
            let panels = p.columns.div_ceil(PANEL);
            // Panels are split only as far as rows alone do not give every thread work.
            let groups = wanted
                .div_ceil((row_blocks * lanes.len()).max(1))
                .clamp(1, panels.max(1));
            let panel_group = panels.div_ceil(groups).max(1);
            grids.push(Grid {
                first: items,
                row_blocks,
                panel_group,
            });
            items += row_blocks * panels.div_ceil(panel_group);
        }
        let one = |i: usize| {
            let g = grids.partition_point(|g| g.first <= i) - 1;
            let (p, grid) = (&lanes[g], &grids[g]);
            let (row_block, group) = (
                (i - grid.first) % grid.row_blocks,
                (i - grid.first) / grid.row_blocks,
            );
            let rows = row_block * ROW_BLOCK..p.rows.min((row_block + 1) * ROW_BLOCK);
            let panels = p.columns.div_ceil(PANEL);
            let panels = group * grid.panel_group..panels.min((group + 1) * grid.panel_group);
            // SAFETY: items cover disjoint rows and panels; the operands outlive the call.
            unsafe { run(p, rows, panels) }
        };
        if wanted == 1 {
            (0..items).for_each(one);
        } else {
            self.pool.run(items, one);
        }
    }

    /// Converts and packs what the tiles cannot read as it is.
    fn prepare(
        &self,
        precision: Precision,
        products: &[Product],
        places: &[Scratch],
        scratch: &mut [u32],
        accumulate: bool,
    ) -> Vec<Lanes> {
        let shared = SharedMut::new(scratch);
        let pieces = pieces(precision, products);
        let one = |i: usize| {
            let piece = &pieces[i];
            let (product, place) = (&products[piece.product], &places[piece.product]);
            product.convert(self.isa, precision, piece, place, &shared);
        };
        let size: usize = products.iter().map(|p| p.rows * p.k).sum();
        if size < 1 << 14 {
            (0..pieces.len()).for_each(one);
        } else {
            self.pool.run(pieces.len(), one);
        }
        let base = shared.pointer();
        let lanes = products.iter().zip(places);
        lanes
            .map(|(product, place)| product.lanes(precision, place, base, accumulate))
            .collect()
    }
}

/// The conversions that the products need, in pieces that threads share.
fn pieces(precision: Precision, products: &[Product]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (product, p) in products.iter().enumerate() {
        let depth = precision.lanes(p.k);
        let mut split = |operand: Operand, units: usize| {
            pieces.extend((0..units).step_by(PIECE).map(|first| Piece {
                product,
                operand,
                units: first..units.min(first + PIECE),
            }));
        };
        if precision == Precision::Bf16 {
            split(Operand::A, if p.a_transposed { depth } else { p.rows });
        }
        if matches!(p.b, Right::Rows(_)) {
            split(Operand::B, depth);
        }
    }
    pieces
}

impl Product<'_> {
    /// Writes the lanes of one piece into scratch.
    fn convert(
        &self,
        isa: Isa,
        precision: Precision,
        piece: &Piece,
        place: &Scratch,
        scratch: &SharedMut<u32>,
    ) {
        let units = piece.units.clone();
        match (piece.operand, self.b) {
            (Operand::A, _) if self.a_transposed => self.pair_rows(isa, units, place.a, scratch),
            (Operand::A, _) => self.pair_columns(isa, precision, units, place.a, scratch),
            (Operand::B, Right::Rows(b)) => {
                let bf16 = precision == Precision::Bf16;
                pack_rows(isa, b, units, bf16, scratch, place.b);
            }
            (Operand::B, Right::Packed(_)) => unreachable!("panels are packed already"),
        }
    }

    /// Lanes of a transposed `a`: two of its rows each.
    fn pair_rows(&self, isa: Isa, lanes: Range<usize>, place: usize, scratch: &SharedMut<u32>) {
        for lane in lanes {
            let start = place + lane * self.rows;
            // SAFETY: one lane row per step, lanes of a piece disjoint from others'.
            let out = unsafe { scratch.slice(start..start + self.rows) };
            let odd = if 2 * lane + 1 < self.k {
                self.a.row(2 * lane + 1)
            } else {
                &[]
            };
            pairs_across(isa, self.a.row(2 * lane), odd, out);
        }
    }

    /// Lanes of `a` as it stands: two of its columns each.
    fn pair_columns(
        &self,
        isa: Isa,
        precision: Precision,
        rows: Range<usize>,
        place: usize,
        scratch: &SharedMut<u32>,
    ) {
        let depth = precision.lanes(self.k);
        for row in rows {
            let start = place + row * depth;
            // SAFETY: rows are disjoint.
            let out = unsafe { scratch.slice(start..start + depth) };
            pairs_along(isa, self.a.row(row), out);
        }
    }

    /// What the tiles read: operands as they are, or from `base` in scratch.
    fn lanes(
        &self,
        precision: Precision,
        place: &Scratch,
        base: *mut u32,
        accumulate: bool,
    ) -> Lanes {
        let depth = precision.lanes(self.k);
        let converted = base.wrapping_add(place.a).cast_const();
        let (a, row_step, lane_step) = match (precision, self.a_transposed) {
            (Precision::F32, false) => (self.a.data.as_ptr().cast(), self.a.stride, 1),
            (Precision::F32, true) => (self.a.data.as_ptr().cast(), 1, self.a.stride),
            (Precision::Bf16, false) => (converted, depth, 1),
            (Precision::Bf16, true) => (converted, 1, self.rows),
        };
        let b = match self.b {
            Right::Packed(panels) => {
                let packed = (panels.depth, panels.columns);
                assert_eq!(packed, (depth, self.columns), "panels");
                panels.lanes.as_ptr()
            }
            Right::Rows(_) => base.wrapping_add(place.b).cast_const(),
        };
        Lanes {
            a,
            row_step,
            lane_step,
            b,
            c: self.c,
            c_stride: self.c_stride,
            rows: self.rows,
            columns: self.columns,
            depth,
            accumulate,
        }
    }
}

/// Heads may share columns only if there is one.
fn w_is_single(h: usize, y_step: usize, columns: usize) -> bool {
    h == 0 && y_step <= columns
}

/// Makes room for converted operands and says where each goes.
fn reserve(scratch: &mut Vec<u32>, precision: Precision, products: &[Product]) -> Vec<Scratch> {
    let mut used = 0;
    let places = products.iter().map(|p| {
        let depth = precision.lanes(p.k);
        let a = used;
        if precision == Precision::Bf16 {
            used += depth * p.rows;
        }
        // Panels start on a cache line of the buffer.
        used = used.next_multiple_of(LANES);
        let b = used;
        if matches!(p.b, Right::Rows(_)) {
            used += p.columns.div_ceil(PANEL) * depth * PANEL;
        }
        used = used.next_multiple_of(LANES);
        Scratch { a, b }
    });
    let places = places.collect();
    if scratch.len() < used {
        scratch.resize(used, 0);
    }
    places
}

#[cfg(test)]
mod tests;

//! Operands that the tiles cannot read as they are, converted into scratch memory.

use super::pack::{pairs_across, pairs_along};
use super::weight::{Operands, Panels};
use super::{Lanes, PANEL, Product, Right, pack_rows};
use crate::cpu::Cpu;
use crate::pool::SharedMut;
use crate::simd::LANES;
use crate::stored::Source;
use crate::{Isa, Precision};
use std::ops::Range;

/// Units of a [`Piece`].
const PIECE: usize = 64;

/// Where scratch lanes of each product begin.
pub(super) struct Scratch {
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

/// How the tiles read their right operand.
pub(super) enum Reading<'a> {
    Lanes,
    /// Pairs of bf16 in a product in f32.
    Pairs,
    /// Not at all: it is converted block by block.
    Stored(Source<'a>),
    /// Converted block by block to pairs.
    StoredPairs(Source<'a>),
}

impl Cpu {
    /// Converts and packs what the tiles cannot read as it is.
    pub(super) fn prepare<'a>(
        &self,
        precision: Precision,
        products: &[Product<'a>],
        places: &[Scratch],
        scratch: &mut [u32],
        accumulate: bool,
    ) -> Vec<(Lanes, Reading<'a>)> {
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
        if precision == Precision::Bf16 && !(product > 0 && p.has_a_of(&products[0])) {
            split(Operand::A, if p.a_transposed { depth } else { p.rows });
        }
        if matches!(p.b, Right::Rows(_)) {
            split(Operand::B, depth);
        }
    }
    pieces
}

impl<'a> Product<'a> {
    /// Whether its `a` is that of another, which is then converted once for both.
    fn has_a_of(&self, other: &Product) -> bool {
        let shape = |p: &Product| (p.a.data.as_ptr(), p.a.stride, p.rows, p.k, p.a_transposed);
        shape(self) == shape(other)
    }

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
            (Operand::B, Right::Weight(..)) => unreachable!("a weight has its own form"),
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

    /// What the tiles read: operands as they are, or from `base` in scratch; and how.
    fn lanes(
        &self,
        precision: Precision,
        place: &Scratch,
        base: *mut u32,
        accumulate: bool,
    ) -> (Lanes, Reading<'a>) {
        let depth = precision.lanes(self.k);
        let converted = base.wrapping_add(place.a).cast_const();
        let (a, row_step, lane_step) = match (precision, self.a_transposed) {
            (Precision::F32, false) => (self.a.data.as_ptr().cast(), self.a.stride, 1),
            (Precision::F32, true) => (self.a.data.as_ptr().cast(), 1, self.a.stride),
            (Precision::Bf16, false) => (converted, depth, 1),
            (Precision::Bf16, true) => (converted, 1, self.rows),
        };
        let panels_of = |panels: &Panels, depth: usize| {
            let packed = (panels.depth, panels.columns);
            assert_eq!(packed, (depth, self.columns), "panels");
            panels.lanes.as_ptr()
        };
        let mut steps = (depth, lane_step);
        let (b, reading) = match self.b {
            Right::Weight(weight, direction) => match weight.operand(direction) {
                Operands::Panels(panels) => (panels_of(panels, depth), Reading::Lanes),
                Operands::Pairs(panels) => {
                    assert_eq!(lane_step, 1, "the two of a pair follow each other");
                    steps = (depth / 2, 2);
                    (panels_of(panels, depth / 2), Reading::Pairs)
                }
                Operands::Stored(source) => (std::ptr::null(), Reading::Stored(source)),
                Operands::StoredPairs(source) => {
                    assert_eq!(lane_step, 1, "the two of a pair follow each other");
                    steps = (depth / 2, 2);
                    (std::ptr::null(), Reading::StoredPairs(source))
                }
            },
            Right::Rows(_) => (base.wrapping_add(place.b).cast_const(), Reading::Lanes),
        };
        let (depth, lane_step) = steps;
        let lanes = Lanes {
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
        };
        (lanes, reading)
    }
}

/// Makes room for converted operands and says where each goes.
pub(super) fn reserve(
    scratch: &mut Vec<u32>,
    precision: Precision,
    products: &[Product],
) -> Vec<Scratch> {
    let mut used = 0;
    let places = products.iter().enumerate().map(|(i, p)| {
        let depth = precision.lanes(p.k);
        let shared = i > 0 && p.has_a_of(&products[0]);
        let a = if shared { 0 } else { used };
        if precision == Precision::Bf16 && !shared {
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

//! The chain of an element, and the tiles of registers that take its steps.

use super::PANEL;
use crate::simd::{LANES, Portable, Simd};
use crate::stored::Widen;
use crate::{Isa, Precision};

/// Lanes of k per block: a panel block of 16 KiB stays in the first-level cache.
const DEPTH_BLOCK: usize = 128;

/// A product with its operands as lanes: what the tiles read.
#[derive(Clone, Copy)]
pub(crate) struct Lanes {
    pub a: *const u32,
    pub row_step: usize,
    pub lane_step: usize,
    pub b: *const u32,
    pub c: *mut f32,
    pub c_stride: usize,
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub accumulate: bool,
}
// SAFETY: work items read operands and write disjoint tiles of c.
unsafe impl Sync for Lanes {}
unsafe impl Send for Lanes {}

/// One step of the chain of an element.
trait Step<S: Simd> {
    unsafe fn step(acc: S::V, a: *const u32, b: *const u32) -> S::V;
}
struct F32;
struct Bf16;
impl<S: Simd> Step<S> for F32 {
    #[inline(always)]
    unsafe fn step(acc: S::V, a: *const u32, b: *const u32) -> S::V {
        // SAFETY: the caller vouches for one lane at a and sixteen at b.
        unsafe { S::fma(S::splat(*a.cast()), S::load(b.cast()), acc) }
    }
}
impl<S: Simd> Step<S> for Bf16 {
    #[inline(always)]
    unsafe fn step(acc: S::V, a: *const u32, b: *const u32) -> S::V {
        // SAFETY: as above.
        unsafe { S::dot_bf16(acc, a, b) }
    }
}

/// Two steps of f32 at once, whose right operands are a pair of bf16.
struct F32OfPairs;
impl<S: Widen> Step<S> for F32OfPairs {
    #[inline(always)]
    unsafe fn step(acc: S::V, a: *const u32, b: *const u32) -> S::V {
        // SAFETY: the caller vouches for two lanes at a and sixteen at b.
        unsafe {
            let [even, odd] = S::split_pairs(b);
            let acc = S::fma(S::splat(*a.cast()), even, acc);
            S::fma(S::splat(*a.add(1).cast()), odd, acc)
        }
    }
}

/// Rows `R` by `V` vectors of c, over `depth` lanes.
#[inline(always)]
// Indices over arrays of registers unroll; iterators over them do not.
#[allow(clippy::needless_range_loop)]
unsafe fn tile<S: Simd, P: Step<S>, const R: usize, const V: usize>(
    p: &Lanes,
    mut a: *const u32,
    mut b: *const u32,
    depth: usize,
    c: *mut f32,
    columns: usize,
    from_c: bool,
) {
    // SAFETY: the driver hands over pointers inside the operands of `p`.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        if from_c {
            for r in 0..R {
                for v in 0..V {
                    let left = columns.saturating_sub(v * LANES);
                    acc[r][v] = S::load_first(c.wrapping_add(r * p.c_stride + v * LANES), left);
                }
            }
        }
        for _ in 0..depth {
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = P::step(acc[r][v], a.add(r * p.row_step), b.add(v * LANES));
                }
            }
            a = a.wrapping_add(p.lane_step);
            b = b.wrapping_add(PANEL);
        }
        for r in 0..R {
            for v in 0..V {
                let left = columns.saturating_sub(v * LANES);
                S::store_first(c.wrapping_add(r * p.c_stride + v * LANES), left, acc[r][v]);
            }
        }
    }
}

/// The tiles of one work item: rows by panels.
#[inline(always)]
unsafe fn item<S: Simd, P: Step<S>>(
    p: &Lanes,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
) {
    for k0 in (0..p.depth.max(1)).step_by(DEPTH_BLOCK) {
        let depth = DEPTH_BLOCK.min(p.depth - k0);
        let from_c = p.accumulate || k0 > 0;
        for j in panels.clone() {
            for v0 in (0..PANEL / LANES).step_by(S::TILE_VECTORS) {
                let column = j * PANEL + v0 * LANES;
                if column >= p.columns {
                    break;
                }
                // SAFETY: rows, panels and k0 lie inside the operands.
                let b = p.b.wrapping_add((j * p.depth + k0) * PANEL + v0 * LANES);
                let columns = p.columns - column;
                let mut i = rows.start;
                while i < rows.end {
                    let n = S::TILE_ROWS.min(rows.end - i);
                    // SAFETY: as above.
                    unsafe {
                        let a = p.a.wrapping_add(i * p.row_step + k0 * p.lane_step);
                        let c = p.c.wrapping_add(i * p.c_stride + column);
                        rows_tile::<S, P>(n, p, a, b, depth, c, columns, from_c);
                    }
                    i += n;
                }
            }
        }
    }
}

/// Chooses the tile for `n` rows; tiles wider than the instruction set's are never reached.
#[inline(always)]
unsafe fn rows_tile<S: Simd, P: Step<S>>(
    n: usize,
    p: &Lanes,
    a: *const u32,
    b: *const u32,
    depth: usize,
    c: *mut f32,
    columns: usize,
    from_c: bool,
) {
    macro_rules! choose {
        ($v:literal: $($r:literal)*) => {
            match n {
                $($r if $r <= S::TILE_ROWS => {
                    tile::<S, P, $r, $v>(p, a, b, depth, c, columns, from_c)
                })*
                _ => unreachable!("a tile of {n} rows"),
            }
        };
    }
    // SAFETY: passed on from the caller.
    unsafe {
        if S::TILE_VECTORS == 2 {
            choose!(2: 1 2 3 4 5 6 7 8 9 10 11 12)
        } else {
            choose!(1: 1 2 3 4 5 6)
        }
    }
}

pub(crate) type Item = unsafe fn(&Lanes, std::ops::Range<usize>, std::ops::Range<usize>);

#[cfg(target_arch = "x86_64")]
mod built {
    use super::*;
    use crate::simd::x86::{Avx2, Avx512, Avx512Bf16};
    use std::ops::Range;
    macro_rules! build {
        ($name:ident, $features:literal, $simd:ty, $step:ty) => {
            #[target_feature(enable = $features)]
            pub unsafe fn $name(p: &Lanes, rows: Range<usize>, panels: Range<usize>) {
                // SAFETY: the attribute above; operands by the caller.
                unsafe { item::<$simd, $step>(p, rows, panels) }
            }
        };
    }
    build!(avx2_f32, "avx2,fma", Avx2, F32);
    build!(avx2_bf16, "avx2,fma", Avx2, Bf16);
    build!(
        avx512_f32,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
        Avx512,
        F32
    );
    build!(
        avx512_bf16,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
        Avx512,
        Bf16
    );
    build!(avx2_pairs, "avx2,fma", Avx2, F32OfPairs);
    build!(
        avx512_pairs,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
        Avx512,
        F32OfPairs
    );
    build!(
        avx512bf16_bf16,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma",
        Avx512Bf16,
        Bf16
    );
}

/// The work-item function of an instruction set and precision.
pub(crate) fn item_function(isa: Isa, precision: Precision) -> Item {
    match (isa, precision) {
        (Isa::Portable, Precision::F32) => item::<Portable, F32>,
        (Isa::Portable, Precision::Bf16) => item::<Portable, Bf16>,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Precision::F32) => built::avx2_f32,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Precision::Bf16) => built::avx2_bf16,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16, Precision::F32) => built::avx512_f32,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Precision::Bf16) => built::avx512_bf16,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, Precision::Bf16) => built::avx512bf16_bf16,
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("only the portable set exists here"),
    }
}

/// The work-item function for products in f32 whose panels hold bf16 pairs: a lane of them takes
/// two of `a`, which must follow each other.
pub(super) fn pairs_function(isa: Isa) -> Item {
    match isa {
        Isa::Portable => item::<Portable, F32OfPairs>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => built::avx2_pairs,
        #[cfg(target_arch = "x86_64")]
        _ => built::avx512_pairs,
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("only the portable set exists here"),
    }
}

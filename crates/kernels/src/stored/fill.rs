//! Blocks of panels from matrices that lie as they were stored.

use super::widen::Widen;
use super::{BlockScales, Dtype};
use crate::gemm::PANEL;
use crate::simd::{LANES, Portable};
use crate::{Isa, Precision};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Lanes of the longest block: with [`PANEL`] columns 16 KiB, which stays in the first-level cache.
pub(crate) const BLOCK_LANES: usize = 128;
/// Elements that a block takes of one row, at two to the lane.
const BLOCK_ELEMENTS: usize = 2 * BLOCK_LANES;

/// Consecutive rows of a stored matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredRows<'a> {
    /// The rows from `first_row` on, one after the other.
    pub bytes: &'a [u8],
    pub first_row: usize,
    /// The row after the last one.
    pub end_row: usize,
    pub cols: usize,
    pub dtype: Dtype,
    pub scales: Option<&'a BlockScales>,
}

/// What a block is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// Stored rows are the columns of the panels; k runs along them.
    Columns(StoredRows<'a>),
    /// Stored rows are the lanes of the panels; k runs across them.
    Lanes(StoredRows<'a>),
    /// Panels of bf16 pairs, to be widened to f32; each panel has so many lanes of pairs.
    Pairs(&'a [u32], usize),
}

impl<'a> StoredRows<'a> {
    /// The row's elements from column `first` on.
    fn row(&self, row: usize, first: usize) -> *const u8 {
        assert!(self.first_row <= row && row < self.end_row && first <= self.cols);
        let at = (row - self.first_row) * self.cols + first;
        // The slice check is what the readers of whole rows rely on.
        let end = (row + 1 - self.first_row) * self.cols * self.dtype.bytes();
        self.bytes[at * self.dtype.bytes()..end].as_ptr()
    }
}

/// Writes lanes `lanes` of panel `panel`, as `[lanes][PANEL]`, to `out`; a lane is an f32 or a
/// bf16 pair as `lane` says. Columns beyond the matrix hold what they may: nothing reads them.
/// At most [`BLOCK_LANES`] at a time.
pub(crate) fn fill(
    isa: Isa,
    source: &Source,
    lane: Precision,
    panel: usize,
    lanes: Range<usize>,
    out: &mut [u32],
) {
    assert!(lanes.len() <= BLOCK_LANES, "a block of {lanes:?}");
    assert_eq!(out.len(), lanes.len() * PANEL, "room for a block");
    #[cfg(target_arch = "x86_64")]
    {
        use crate::simd::x86::{Avx2, Avx512, Avx512Bf16};
        macro_rules! build {
            ($name:ident, $features:literal, $simd:ty) => {
                #[target_feature(enable = $features)]
                unsafe fn $name(s: &Source, l: Precision, j: usize, k: Range<usize>, o: *mut u32) {
                    // SAFETY: the attribute above; memory by the caller.
                    unsafe { block::<$simd>(s, l, j, k, o) }
                }
            };
        }
        build!(avx2, "avx2,fma", Avx2);
        build!(
            avx512,
            "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
            Avx512
        );
        build!(
            avx512bf16,
            "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma",
            Avx512Bf16
        );
        let out = out.as_mut_ptr();
        // SAFETY: an Isa other than Portable exists only where the machine has it; room above.
        match isa {
            Isa::Portable => {}
            Isa::Avx2 => return unsafe { avx2(source, lane, panel, lanes, out) },
            Isa::Avx512 => return unsafe { avx512(source, lane, panel, lanes, out) },
            Isa::Avx512Bf16 => return unsafe { avx512bf16(source, lane, panel, lanes, out) },
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    // SAFETY: Portable needs no instruction set; room by the assertion above.
    unsafe { block::<Portable>(source, lane, panel, lanes, out.as_mut_ptr()) }
}

#[inline(always)]
unsafe fn block<S: Widen>(
    source: &Source,
    lane: Precision,
    panel: usize,
    lanes: Range<usize>,
    out: *mut u32,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        match source {
            Source::Columns(rows) => columns::<S>(rows, lane, panel, lanes, out),
            Source::Lanes(rows) => across::<S>(rows, lane, panel, lanes, out),
            Source::Pairs(pairs, depth) => {
                assert_eq!(lane, Precision::F32, "pairs are widened to f32");
                let start = (panel * depth + lanes.start / 2) * PANEL;
                let end = (panel * depth + lanes.end.div_ceil(2)) * PANEL;
                assert!(lanes.start.is_multiple_of(2), "a block begins with a pair");
                widen_pairs::<S>(pairs[start..end].as_ptr(), lanes.len(), out);
            }
        }
    }
}

/// Lanes of pairs `[lanes / 2][PANEL]` as lanes of f32.
#[inline(always)]
unsafe fn widen_pairs<S: Widen>(pairs: *const u32, lanes: usize, out: *mut u32) {
    // SAFETY: the caller vouches for both blocks.
    unsafe {
        for lane in (0..lanes).step_by(2) {
            for v in (0..PANEL).step_by(LANES) {
                let p = pairs.add(lane / 2 * PANEL + v);
                let [even, odd] = S::split_pairs(p);
                S::store(out.add(lane * PANEL + v).cast(), even);
                if lane + 1 < lanes {
                    S::store(out.add((lane + 1) * PANEL + v).cast(), odd);
                }
            }
        }
    }
}

/// [`Source::Columns`]: rows become columns, sixteen by sixteen.
#[inline(always)]
unsafe fn columns<S: Widen>(
    rows: &StoredRows,
    lane: Precision,
    panel: usize,
    lanes: Range<usize>,
    out: *mut u32,
) {
    let per_lane = match lane {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
    };
    let first = per_lane * lanes.start;
    let n = (per_lane * lanes.end).min(rows.cols) - first;
    // SAFETY: rows and columns lie inside the matrix, and the scratch below holds a block.
    unsafe {
        for half in (0..PANEL).step_by(LANES) {
            let top = panel * PANEL + half;
            let count = LANES.min(rows.end_row.saturating_sub(top));
            let out = out.add(half);
            if count == 0 {
                for l in 0..lanes.len() {
                    S::store(out.add(l * PANEL).cast(), S::splat(0.0));
                }
                continue;
            }
            // The last row's check covers the others.
            rows.row(top + count - 1, first);
            let p = rows.row(top, first);
            let stride = rows.cols * rows.dtype.bytes();
            // As large a part of the next panel's bytes, in the order of memory: the hardware
            // fetches ahead along one stream, not along sixteen.
            let row_part = n * rows.dtype.bytes();
            let panel_start = p.wrapping_sub(half * stride + first * rows.dtype.bytes());
            let next = panel_start
                .wrapping_add(PANEL * (stride + first * rows.dtype.bytes()) + half * row_part);
            match (rows.dtype, lane) {
                (Dtype::F32, Precision::F32) => {
                    transpose::<S>(p, stride, count, 4 * n, lanes.len(), next, out);
                }
                (Dtype::Bf16, Precision::Bf16) => {
                    transpose::<S>(p, stride, count, 2 * n, lanes.len(), next, out);
                }
                _ => {
                    let mut square = MaybeUninit::<[u32; BLOCK_LANES * LANES + LANES]>::uninit();
                    let square = square.as_mut_ptr().cast::<u8>();
                    let step = 4 * BLOCK_LANES;
                    for r in 0..count {
                        for line in (0..row_part).step_by(64) {
                            S::prefetch(next.wrapping_add(r * row_part + line));
                        }
                        decode::<S>(rows, top + r, first..first + n, lane, square.add(r * step));
                    }
                    let bytes = n * 4 / per_lane;
                    transpose::<S>(square, step, count, bytes, lanes.len(), square, out);
                }
            }
        }
    }
}

/// Sixteen columns of a panel from `count` rows of lanes, `stride` bytes apart, each of which has
/// `bytes` bytes; what is missing of the last lanes is zero. As many bytes are asked for from
/// `next` on.
#[inline(always)]
// Indices over arrays of registers unroll; iterators over them do not.
#[allow(clippy::needless_range_loop)]
unsafe fn transpose<S: Widen>(
    p: *const u8,
    stride: usize,
    count: usize,
    bytes: usize,
    lanes: usize,
    next: *const u8,
    out: *mut u32,
) {
    const WIDTH: usize = 4 * LANES;
    // SAFETY: the caller vouches for the rows and for the block.
    unsafe {
        for l in (0..lanes).step_by(LANES) {
            let (at, out) = (4 * l, out.add(l * PANEL));
            let mut square = [S::splat(0.0); LANES];
            if at + WIDTH <= bytes && count == LANES {
                for r in 0..LANES {
                    let p = p.add(r * stride + at);
                    S::prefetch(next.wrapping_add(LANES * at + r * WIDTH));
                    square[r] = S::load(p.cast());
                }
                let square = S::transpose(square);
                for i in 0..LANES {
                    S::store(out.add(i * PANEL).cast(), square[i]);
                }
            } else {
                let mut edge = [[0u32; LANES]; LANES];
                for (r, edge) in edge.iter_mut().enumerate().take(count) {
                    let p = p.add(r * stride + at);
                    let left = WIDTH.min(bytes - at);
                    std::ptr::copy_nonoverlapping(p, edge.as_mut_ptr().cast(), left);
                }
                for r in 0..LANES {
                    square[r] = S::load(edge[r].as_ptr().cast());
                }
                let square = S::transpose(square);
                for i in 0..LANES {
                    S::store(edge[i].as_mut_ptr().cast(), square[i]);
                }
                for (i, edge) in edge.iter().enumerate().take(lanes - l) {
                    S::store(out.add(i * PANEL).cast(), S::load(edge.as_ptr().cast()));
                }
            }
        }
    }
}

/// [`Source::Lanes`]: rows are lanes already, or pair up to be.
#[inline(always)]
unsafe fn across<S: Widen>(
    rows: &StoredRows,
    lane: Precision,
    panel: usize,
    lanes: Range<usize>,
    out: *mut u32,
) {
    let first = panel * PANEL;
    let columns = first..rows.cols.min(first + PANEL);
    let (mut even, mut odd) = ([0.0f32; PANEL + LANES], [0.0f32; PANEL + LANES]);
    // SAFETY: rows and columns lie inside the matrix; scratch holds a row of the panel and slack.
    unsafe {
        for (i, l) in lanes.enumerate() {
            let out = out.add(i * PANEL);
            let f32 = Precision::F32;
            if lane == Precision::F32 {
                decode::<S>(rows, l, columns.clone(), f32, even.as_mut_ptr().cast());
                for v in (0..PANEL).step_by(LANES) {
                    S::store(out.add(v).cast(), S::load(even.as_ptr().add(v)));
                }
                continue;
            }
            decode::<S>(rows, 2 * l, columns.clone(), f32, even.as_mut_ptr().cast());
            if 2 * l + 1 < rows.end_row {
                let odd = odd.as_mut_ptr().cast();
                decode::<S>(rows, 2 * l + 1, columns.clone(), f32, odd);
            } else {
                odd = [0.0; PANEL + LANES];
            }
            for v in (0..PANEL).step_by(LANES) {
                let (e, o) = (S::load(even.as_ptr().add(v)), S::load(odd.as_ptr().add(v)));
                if rows.dtype == Dtype::Bf16 {
                    S::join_pairs(out.add(v), e, o);
                } else {
                    S::store_bf16_pairs(out.add(v), e, o);
                }
            }
        }
    }
}

/// A kind of stored element.
trait Element {
    const BYTES: usize;
    unsafe fn widen<S: Widen>(p: *const u8) -> S::V;
}
struct F32;
struct Bf16;
struct F16;
struct F8;
impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn widen<S: Widen>(p: *const u8) -> S::V {
        // SAFETY: passed on from the caller, as in the three below.
        unsafe { S::load(p.cast()) }
    }
}
impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn widen<S: Widen>(p: *const u8) -> S::V {
        // SAFETY: as above.
        unsafe { S::widen_bf16(p) }
    }
}
impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn widen<S: Widen>(p: *const u8) -> S::V {
        // SAFETY: as above.
        unsafe { S::widen_f16(p) }
    }
}
impl Element for F8 {
    const BYTES: usize = 1;
    #[inline(always)]
    unsafe fn widen<S: Widen>(p: *const u8) -> S::V {
        // SAFETY: as above.
        unsafe { S::widen_f8(p) }
    }
}

/// Columns of a row as f32, or as bf16, to `out`, which has room for fifteen values more.
#[inline(always)]
unsafe fn decode<S: Widen>(
    rows: &StoredRows,
    row: usize,
    columns: Range<usize>,
    to: Precision,
    out: *mut u8,
) {
    debug_assert!(columns.len() <= BLOCK_ELEMENTS);
    let p = rows.row(row, columns.start);
    let n = columns.len();
    // SAFETY: the columns lie inside the row, which the slice in `row` has checked.
    unsafe {
        match (rows.dtype, rows.scales) {
            (Dtype::F32, _) => run::<S, F32>(p, n, None, to, out),
            (Dtype::Bf16, _) => run::<S, Bf16>(p, n, None, to, out),
            (Dtype::F16, _) => run::<S, F16>(p, n, None, to, out),
            (Dtype::F8E4m3, None) => run::<S, F8>(p, n, None, to, out),
            (Dtype::F8E4m3, Some(scales)) => {
                let size = if to == Precision::F32 { 4 } else { 2 };
                let [height, width] = scales.block;
                let scales = &scales.values[row / height * rows.cols.div_ceil(width)..];
                let mut c = columns.start;
                while c < columns.end {
                    let end = ((c / width + 1) * width).min(columns.end);
                    let at = c - columns.start;
                    let scale = Some(scales[c / width]);
                    run::<S, F8>(p.add(at), end - c, scale, to, out.add(at * size));
                    c = end;
                }
            }
        }
    }
}

/// `n` elements that share a scale; whole vectors are written.
#[inline(always)]
unsafe fn run<S: Widen, E: Element>(
    p: *const u8,
    n: usize,
    scale: Option<f32>,
    to: Precision,
    out: *mut u8,
) {
    // SAFETY: the caller vouches for n elements, and for room up to a whole vector.
    unsafe {
        let whole = n / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let p = p.add(i * E::BYTES);
            emit::<S>(E::widen::<S>(p), scale, to, i, out);
        }
        if whole < n {
            let mut edge = [0u32; LANES];
            let left = (n - whole) * E::BYTES;
            std::ptr::copy_nonoverlapping(
                p.add(whole * E::BYTES),
                edge.as_mut_ptr().cast::<u8>(),
                left,
            );
            let x = E::widen::<S>(edge.as_ptr().cast());
            emit::<S>(x, scale, to, whole, out);
        }
    }
}

/// Scales sixteen values and writes them as elements from `i` on.
#[inline(always)]
unsafe fn emit<S: Widen>(x: S::V, scale: Option<f32>, to: Precision, i: usize, out: *mut u8) {
    // SAFETY: the caller vouches for the room.
    unsafe {
        let x = match scale {
            Some(scale) => S::mul(x, S::splat(scale)),
            None => x,
        };
        match to {
            Precision::F32 => S::store(out.add(4 * i).cast(), x),
            Precision::Bf16 => S::round_bf16(out.add(2 * i).cast(), x),
        }
    }
}

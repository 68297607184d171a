//! The one matrix product of the project.
//!
//! Every element of a result is one chain over k in fixed order: in f32 one FMA per k, in bf16 one
//! pair of FMAs per two k (see [`Simd::dot_bf16`]). Tiles, k blocks, threads and grouping choose
//! *when* a step of the chain is taken, never its place in it: between k blocks the accumulators
//! go through memory, which is exact. That is the row law for matrices.
//!
//! The right operand lies in panels of [`PANEL`] columns, `[depth lanes][PANEL]`; a lane is 32 bits:
//! one f32, or two bf16 with the even k in the low half. Weights keep their panels
//! ([`PackedWeight`]); a product of two activations packs one of them into scratch memory.

use crate::cpu::Cpu;
use crate::mat::{Mat, MatMut};
use crate::pool::SharedMut;
use crate::simd::{LANES, Portable, Simd, simd_fn};
use crate::{Isa, Precision};

/// Columns of a panel, on every instruction set.
pub(crate) const PANEL: usize = 32;
/// Lanes of k per block: a panel block of 16 KiB stays in the first-level cache.
const DEPTH_BLOCK: usize = 128;
/// Rows per work item: eight tiles of twelve share each panel block.
const ROW_BLOCK: usize = 96;
/// Multiply-adds below which waking another thread costs more than it saves.
const MIN_ITEM: usize = 1 << 17;

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

/// The nearest bf16, ties to even; subnormals become zero, as the dot product takes them.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        (bits >> 16) | 0x40
    } else if magnitude < 0x0080_0000 {
        (bits >> 16) & 0x8000
    } else {
        rounded
    }
}

simd_fn! {
    /// One panel of columns `0..n` from rows that hold k contiguously: `source[c][k]`.
    pub(crate) fn pack_panel_nt<S>(source: &[f32], stride: usize, n: usize, k: usize, bf16: bool,
                        panel: &mut [u32]) {
        let _ = S::splat;
        for (lane, out) in panel.chunks_exact_mut(PANEL).enumerate() {
            for (c, out) in out.iter_mut().enumerate() {
                *out = if c >= n {
                    0
                } else if bf16 {
                    let at = c * stride + 2 * lane;
                    let odd = if 2 * lane + 1 < k { bf16_bits(source[at + 1]) } else { 0 };
                    bf16_bits(source[at]) | odd << 16
                } else {
                    source[c * stride + lane].to_bits()
                };
            }
        }
    }
}

simd_fn! {
    /// Lanes from rows of k: one lane row per f32 row, or per two rows as bf16 pairs.
    fn lanes_nn<S>(even: &[f32], odd: &[f32], bf16: bool, out: &mut [u32]) {
        let _ = S::splat;
        if bf16 {
            if odd.is_empty() {
                out.iter_mut().zip(even).for_each(|(o, &e)| *o = bf16_bits(e));
            } else {
                for ((o, &e), &d) in out.iter_mut().zip(even).zip(odd) {
                    *o = bf16_bits(e) | bf16_bits(d) << 16;
                }
            }
        } else {
            out.iter_mut().zip(even).for_each(|(o, &e)| *o = e.to_bits());
        }
    }
}

simd_fn! {
    /// A row of f32 as bf16 pairs along the row.
    fn pairs_along<S>(row: &[f32], out: &mut [u32]) {
        let _ = S::splat;
        let mut pairs = row.chunks_exact(2);
        for (o, p) in out.iter_mut().zip(&mut pairs) {
            *o = bf16_bits(p[0]) | bf16_bits(p[1]) << 16;
        }
        if let [last] = pairs.remainder() {
            out[row.len() / 2] = bf16_bits(*last);
        }
    }
}

/// Panel `j` of a matrix whose rows run over k: rows become lanes, columns stay columns.
pub(crate) fn pack_panel_nn(isa: Isa, source: Mat, j: usize, bf16: bool, panel: &mut [u32]) {
    let n = PANEL.min(source.cols - j * PANEL);
    for (lane, out) in panel.chunks_exact_mut(PANEL).enumerate() {
        let row = |k: usize| {
            if k < source.rows {
                &source.row(k)[j * PANEL..j * PANEL + n]
            } else {
                &[][..]
            }
        };
        let (even, odd) = if bf16 {
            (row(2 * lane), row(2 * lane + 1))
        } else {
            (row(lane), &[][..])
        };
        out[n..].fill(0);
        lanes_nn(isa, even, odd, bf16, &mut out[..n]);
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

/// Rows `R` by `V` vectors of c, over `depth` lanes.
#[inline(always)]
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
                let b = unsafe { p.b.add((j * p.depth + k0) * PANEL + v0 * LANES) };
                let columns = p.columns - column;
                let mut i = rows.start;
                while i < rows.end {
                    let n = S::TILE_ROWS.min(rows.end - i);
                    // SAFETY: as above.
                    unsafe {
                        let a = p.a.add(i * p.row_step + k0 * p.lane_step);
                        let c = p.c.add(i * p.c_stride + column);
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
#[allow(clippy::too_many_arguments)]
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

/// The work-item function of an instruction set and precision.
pub(crate) fn item_function(isa: Isa, precision: Precision) -> Item {
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
        build!(
            avx512bf16_bf16,
            "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma",
            Avx512Bf16,
            Bf16
        );
    }
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
        let per_panel = packed.nn.depth * PANEL;
        let nn = SharedMut::new(&mut packed.nn.lanes);
        self.pool.run(weight.cols.div_ceil(PANEL), |j| {
            // SAFETY: panels are disjoint.
            let panel = unsafe { nn.slice(j * per_panel..(j + 1) * per_panel) };
            pack_panel_nn(isa, weight, j, bf16, panel);
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
    #[allow(clippy::too_many_arguments)]
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
    #[allow(clippy::too_many_arguments)]
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
        let mut scratch = self
            .scratch
            .lock()
            .expect("no thread panics while it holds this lock");
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
        let bf16 = precision == Precision::Bf16;
        let shared = SharedMut::new(scratch);
        let mut tasks = Vec::new();
        for (i, p) in products.iter().enumerate() {
            if bf16 {
                let units = if p.a_transposed {
                    precision.lanes(p.k)
                } else {
                    p.rows
                };
                tasks.extend((0..units.div_ceil(64)).map(|t| (i, false, t)));
            }
            if matches!(p.b, Right::Rows(_)) {
                tasks.extend((0..p.columns.div_ceil(PANEL)).map(|t| (i, true, t)));
            }
        }
        let isa = self.isa;
        let one = |t: usize| {
            let (i, is_b, t) = tasks[t];
            let (p, place) = (&products[i], &places[i]);
            let depth = precision.lanes(p.k);
            if is_b {
                let Right::Rows(b) = p.b else {
                    unreachable!("only rows are packed here")
                };
                let start = place.b + t * depth * PANEL;
                // SAFETY: one panel per task.
                let panel = unsafe { shared.slice(start..start + depth * PANEL) };
                pack_panel_nn(isa, b, t, bf16, panel);
            } else if p.a_transposed {
                for lane in t * 64..depth.min((t + 1) * 64) {
                    let start = place.a + lane * p.rows;
                    // SAFETY: one lane row per step, lanes of a task disjoint from others'.
                    let out = unsafe { shared.slice(start..start + p.rows) };
                    let odd = if 2 * lane + 1 < p.k {
                        p.a.row(2 * lane + 1)
                    } else {
                        &[]
                    };
                    lanes_nn(isa, p.a.row(2 * lane), odd, true, out);
                }
            } else {
                for row in t * 64..p.rows.min((t + 1) * 64) {
                    let start = place.a + row * depth;
                    // SAFETY: rows are disjoint.
                    let out = unsafe { shared.slice(start..start + depth) };
                    pairs_along(isa, p.a.row(row), out);
                }
            }
        };
        let size: usize = products.iter().map(|p| p.rows * p.k).sum();
        if size < 1 << 14 {
            (0..tasks.len()).for_each(one);
        } else {
            self.pool.run(tasks.len(), one);
        }
        let base = shared.pointer();
        let lanes = products.iter().zip(places).map(|(p, place)| {
            let depth = precision.lanes(p.k);
            let (a, row_step, lane_step) = match (bf16, p.a_transposed) {
                (false, false) => (p.a.data.as_ptr().cast(), p.a.stride, 1),
                (false, true) => (p.a.data.as_ptr().cast(), 1, p.a.stride),
                (true, false) => (base.wrapping_add(place.a).cast_const(), depth, 1),
                (true, true) => (base.wrapping_add(place.a).cast_const(), 1, p.rows),
            };
            let b = match p.b {
                Right::Packed(panels) => {
                    assert_eq!((panels.depth, panels.columns), (depth, p.columns), "panels");
                    panels.lanes.as_ptr()
                }
                Right::Rows(_) => base.wrapping_add(place.b).cast_const(),
            };
            let (c, c_stride) = (p.c, p.c_stride);
            let (rows, columns) = (p.rows, p.columns);
            Lanes {
                a,
                row_step,
                lane_step,
                b,
                c,
                c_stride,
                rows,
                columns,
                depth,
                accumulate,
            }
        });
        lanes.collect()
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
#[path = "gemm_tests.rs"]
mod tests;

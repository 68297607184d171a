//! The chain of an element, block after block, and the tiles of registers that take its steps.

use super::lanes::Lanes;
use super::{BLOCK, Bits, RECORD};
use crate::Isa;
use crate::gemm::PANEL;
use crate::simd::{LANES, Portable, Simd};
use std::ops::Range;

/// Words ahead of the reader that are asked for, four pages: hardware prefetching ends at a page.
const AHEAD: usize = 4096;

/// A product of rounded rows and the panels of one weight: what the tiles read.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub bits: Bits,
    /// The first row's, among the records of the call.
    pub first_record: usize,
    /// Records, `blocks` to a row.
    pub x: *const u32,
    pub panels: *const u32,
    pub c: *mut f32,
    pub c_stride: usize,
    pub rows: usize,
    pub columns: usize,
    pub blocks: usize,
    pub add: bool,
}
// SAFETY: work items read operands and write disjoint tiles of c.
unsafe impl Sync for Job {}
// SAFETY: as above.
unsafe impl Send for Job {}

impl Job {
    /// Multiply-adds.
    pub(super) fn work(&self) -> usize {
        self.rows * self.columns * self.blocks * BLOCK
    }
}

impl Bits {
    /// Words of codes in a block of a panel.
    pub(super) const fn code_words(self) -> usize {
        match self {
            Bits::Eight => PANEL * BLOCK / 4,
            Bits::Four => PANEL * BLOCK / 8,
        }
    }

    /// Words of a block of a panel: codes, and a scale of 16 bits a column.
    pub(super) const fn block_words(self) -> usize {
        self.code_words() + PANEL / 2
    }
}

/// `R` rows of two vectors of c, over all blocks. Per block
/// `c = fma(dot, weight_scale * row_scale, c)`, where dot is the exact sum over its codes.
#[inline(always)]
// Indices over arrays of registers unroll; iterators over them do not.
#[allow(clippy::needless_range_loop)]
unsafe fn tile<L: Lanes, const FOUR: bool, const R: usize>(
    p: &Job,
    mut x: *const u32,
    mut w: *const u32,
    c: *mut f32,
    columns: usize,
) {
    let bits = if FOUR { Bits::Four } else { Bits::Eight };
    let row_words = p.blocks * RECORD;
    // SAFETY: the driver hands over pointers inside the operands of `p`; addresses past them are
    // only prefetched.
    unsafe {
        let mut acc = [[L::S::splat(0.0); 2]; R];
        if p.add {
            for r in 0..R {
                for v in 0..2 {
                    let left = columns.saturating_sub(v * LANES);
                    let from = c.wrapping_add(r * p.c_stride + v * LANES);
                    acc[r][v] = L::S::load_first(from, left);
                }
            }
        }
        for _ in 0..p.blocks {
            let dots = block::<L, FOUR, R>(x, row_words, w);
            let scales = w.add(bits.code_words());
            let scales = [L::load_f16(scales), L::load_f16(scales.add(LANES / 2))];
            for r in 0..R {
                let row_scale = L::S::splat(f32::from_bits(*x.add(r * row_words + 8)));
                for v in 0..2 {
                    let scale = L::S::mul(scales[v], row_scale);
                    acc[r][v] = L::S::fma(L::to_f32(dots[r][v]), scale, acc[r][v]);
                }
            }
            x = x.wrapping_add(RECORD);
            w = w.wrapping_add(bits.block_words());
        }
        for r in 0..R {
            for v in 0..2 {
                let left = columns.saturating_sub(v * LANES);
                let to = c.wrapping_add(r * p.c_stride + v * LANES);
                L::S::store_first(to, left, acc[r][v]);
            }
        }
    }
}

/// The integer dot products of one block.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn block<L: Lanes, const FOUR: bool, const R: usize>(
    x: *const u32,
    row_words: usize,
    w: *const u32,
) -> [[L::I; 2]; R] {
    // SAFETY: the caller vouches for a block at w and a record of each row from x.
    unsafe {
        // Weights are stored with an offset; the records hold what takes it back.
        let start = if FOUR { 10 } else { 9 };
        let mut dots = [[L::splat(x.add(start)); 2]; R];
        for r in 1..R {
            dots[r] = [L::splat(x.add(r * row_words + start)); 2];
        }
        let steps = if FOUR { BLOCK / 8 } else { BLOCK / 4 };
        for step in 0..steps {
            for v in 0..2 {
                let at = w.add(step * PANEL + v * LANES);
                L::prefetch(at.wrapping_add(AHEAD));
                let codes = L::load(at);
                for r in 0..R {
                    let x = x.add(r * row_words);
                    dots[r][v] = if FOUR {
                        let low = L::dot(dots[r][v], L::low(codes), x.add(2 * step));
                        L::dot(low, L::high(codes), x.add(2 * step + 1))
                    } else {
                        L::dot(dots[r][v], codes, x.add(step))
                    };
                }
            }
        }
        dots
    }
}

/// The tiles of one work item: rows by panels.
#[inline(always)]
unsafe fn item<L: Lanes>(p: &Job, rows: Range<usize>, panels: Range<usize>) {
    for j in panels {
        let w = p.panels.wrapping_add(j * p.blocks * p.bits.block_words());
        let mut i = rows.start;
        while i < rows.end {
            let n = L::ROWS.min(rows.end - i);
            let x = p.x.wrapping_add(i * p.blocks * RECORD);
            let c = p.c.wrapping_add(i * p.c_stride + j * PANEL);
            // SAFETY: rows and panels lie inside the operands.
            unsafe {
                match p.bits {
                    Bits::Eight => rows_tile::<L, false>(n, p, x, w, c, p.columns - j * PANEL),
                    Bits::Four => rows_tile::<L, true>(n, p, x, w, c, p.columns - j * PANEL),
                }
            }
            i += n;
        }
    }
}

/// Chooses the tile for `n` rows; tiles taller than the instruction set's are never reached.
#[inline(always)]
unsafe fn rows_tile<L: Lanes, const FOUR: bool>(
    n: usize,
    p: &Job,
    x: *const u32,
    w: *const u32,
    c: *mut f32,
    columns: usize,
) {
    macro_rules! choose {
        ($($r:literal)*) => {
            match n {
                // SAFETY: passed on from the caller.
                $($r if $r <= L::ROWS => unsafe { tile::<L, FOUR, $r>(p, x, w, c, columns) },)*
                _ => unreachable!("a tile of {n} rows"),
            }
        };
    }
    choose!(1 2 3 4 5 6)
}

/// How the integer dot products are computed; the bits are the same by every path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Path {
    /// The fastest path of an instruction set that this machine has.
    pub(super) fn of(isa: Isa) -> Path {
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Portable => {}
            Isa::Avx2 if is_x86_feature_detected!("f16c") => return Path::Avx2,
            Isa::Avx2 => {}
            _ if is_x86_feature_detected!("avx512vnni") => return Path::Vnni,
            _ => return Path::Avx512,
        }
        let _ = isa;
        Path::Portable
    }

    /// Runs the rows and panels of one work item.
    ///
    /// # Safety
    /// The machine has the path; the operands of `p` are valid, and no other thread writes these
    /// rows and panels of c.
    pub(super) unsafe fn run(self, p: &Job, rows: Range<usize>, panels: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        use built::{avx2, avx512, vnni};
        // SAFETY: by the caller.
        unsafe {
            match self {
                Path::Portable => item::<Portable>(p, rows, panels),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => avx2(p, rows, panels),
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 => avx512(p, rows, panels),
                #[cfg(target_arch = "x86_64")]
                Path::Vnni => vnni(p, rows, panels),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod built {
    use super::{Job, Range, item};
    use crate::quant::x86::Vnni;
    use crate::simd::x86::{Avx2, Avx512};

    macro_rules! build {
        ($name:ident, $features:literal, $lanes:ty) => {
            #[target_feature(enable = $features)]
            pub unsafe fn $name(p: &Job, rows: Range<usize>, panels: Range<usize>) {
                // SAFETY: the attribute above; operands by the caller.
                unsafe { item::<$lanes>(p, rows, panels) }
            }
        };
    }
    build!(avx2, "avx2,fma,f16c", Avx2);
    build!(
        avx512,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
        Avx512
    );
    build!(
        vnni,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
        Vnni
    );
}

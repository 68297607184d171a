//! Operands as lanes and panels: rounding to bf16, pairing, transposing.

use super::PANEL;
use crate::Isa;
use crate::mat::Mat;
use crate::pool::SharedMut;
use crate::simd::{LANES, bf16_bits, simd_fn};

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
    /// Two rows of f32 as bf16 pairs, `even` in the low halves; an absent odd row is zero.
    pub(crate) fn pairs_across<S>(even: &[f32], odd: &[f32], out: &mut [u32]) {
        let n = out.len();
        assert!(even.len() >= n && (odd.is_empty() || odd.len() >= n), "rows of {n}");
        for i in (0..n).step_by(LANES) {
            let left = n - i;
            let e = S::load_first(even.as_ptr().add(i), left);
            let o = if odd.is_empty() {
                S::splat(0.0)
            } else {
                S::load_first(odd.as_ptr().add(i), left)
            };
            if left >= LANES {
                S::store_bf16_pairs(out.as_mut_ptr().add(i), e, o);
            } else {
                let mut last = [0; LANES];
                S::store_bf16_pairs(last.as_mut_ptr(), e, o);
                out[i..].copy_from_slice(&last[..left]);
            }
        }
    }
}

simd_fn! {
    /// A row of f32 as bf16 pairs along the row: its values as bf16, one after the other.
    pub(crate) fn pairs_along<S>(row: &[f32], out: &mut [u32]) {
        let n = row.len();
        assert_eq!(out.len(), n.div_ceil(2), "pairs of a row of {n}");
        let to = out.as_mut_ptr().cast::<u16>();
        for i in (0..n).step_by(LANES) {
            let x = S::load_first(row.as_ptr().add(i), n - i);
            if n - i >= LANES {
                S::store_bf16(to.add(i), x);
            } else {
                let mut last = [0u32; LANES / 2];
                S::store_bf16(last.as_mut_ptr().cast(), x);
                out[i / 2..].copy_from_slice(&last[..(n - i).div_ceil(2)]);
            }
        }
    }
}

simd_fn! {
    /// One lane row of every panel, from a row of k (or two, as bf16 pairs): columns beyond the
    /// row are zero. `out` is the lane row of the first panel, `step` the distance between panels.
    fn row_to_panels<S>(even: &[f32], odd: &[f32], bf16: bool, out: *mut u32, step: usize) {
        let n = even.len();
        assert!(odd.is_empty() || odd.len() == n, "rows of {n}");
        for i in (0..n.next_multiple_of(PANEL)).step_by(LANES) {
            let left = n.saturating_sub(i);
            let to = out.add(i / PANEL * step + i % PANEL);
            let e = S::load_first(even.as_ptr().wrapping_add(i), left);
            if !bf16 {
                S::store(to.cast(), e);
            } else if odd.is_empty() {
                S::store_bf16_pairs(to, e, S::splat(0.0));
            } else {
                let o = S::load_first(odd.as_ptr().wrapping_add(i), left);
                S::store_bf16_pairs(to, e, o);
            }
        }
    }
}

/// Lanes `lanes` of the panels of a matrix whose rows run over k: rows become lanes, columns stay
/// columns. `panels` begins with the first panel.
pub(crate) fn pack_rows(
    isa: Isa,
    source: Mat,
    lanes: std::ops::Range<usize>,
    bf16: bool,
    panels: &SharedMut<u32>,
    start: usize,
) {
    let per_lane = if bf16 { 2 } else { 1 };
    let step = source.rows.div_ceil(per_lane) * PANEL;
    for lane in lanes {
        let even = source.row(per_lane * lane);
        let odd = if bf16 && 2 * lane + 1 < source.rows {
            source.row(2 * lane + 1)
        } else {
            &[]
        };
        // SAFETY: the lane row of every panel lies inside the buffer, and belongs to this call.
        let out = panels.pointer().wrapping_add(start + lane * PANEL);
        row_to_panels(isa, even, odd, bf16, out, step);
    }
}

//! A bias added to every row (`q_proj.bias` of Qwen2), and its gradient.

use super::{columns_per_item, rows_per_item};
use crate::pool::SharedMut;
use crate::simd::{LANES, for_vectors, simd_fn};
use crate::{Cpu, Mat, MatMut};

/// y[t] += bias, row by row. `y`: [tokens, d]; `bias`: [d].
pub(crate) fn add_bias(cpu: &Cpu, y: MatMut, bias: &[f32]) {
    y.check();
    let (tokens, d, stride) = (y.rows, y.cols, y.stride);
    assert_eq!(bias.len(), d, "length of bias");
    let y = SharedMut::new(y.data);
    cpu.pool.run_chunks(tokens, rows_per_item(d), |rows| {
        for t in rows {
            // SAFETY: one thread has row t.
            let y = unsafe { y.slice(t * stride..t * stride + d) };
            add_row(cpu.isa, bias, y);
        }
    });
}

simd_fn! {
    fn add_row<S>(bias: &[f32], y: &mut [f32]) {
        let (n, bias, y) = (y.len(), bias.as_ptr(), y.as_mut_ptr());
        for_vectors!(c, m in n, {
            let sum = S::add(S::load_first(y.add(c), m), S::load_first(bias.add(c), m));
            S::store_first(y.add(c), m, sum);
        });
    }
}

/// Gradient of [`add_bias`]: dbias[c] += dy[t][c], token after token.
pub(crate) fn add_bias_backward(cpu: &Cpu, dy: Mat, dbias: &mut [f32]) {
    dy.check();
    let (tokens, d) = (dy.rows, dy.cols);
    assert_eq!(dbias.len(), d, "length of dbias");
    let dbias = SharedMut::new(dbias);
    cpu.pool.run_chunks(d, columns_per_item(tokens), |columns| {
        // SAFETY: one thread has these columns.
        let dbias = unsafe { dbias.slice(columns.clone()) };
        add_rows(cpu.isa, dy.columns(columns.start, columns.len()), dbias);
    });
}

simd_fn! {
    fn add_rows<S>(dy: Mat, dbias: &mut [f32]) {
        let (n, dbias) = (dbias.len(), dbias.as_mut_ptr());
        let mut c = 0;
        // Two vectors at once: two chains hide each other's latency.
        while c < n {
            let (m, m2) = (n - c, (n - c).saturating_sub(LANES));
            let (sum, sum2) = (dbias.add(c), dbias.wrapping_add(c + LANES));
            let (mut acc, mut acc2) = (S::load_first(sum, m), S::load_first(sum2, m2));
            for t in 0..dy.rows {
                let row = dy.data.as_ptr().add(t * dy.stride + c);
                acc = S::add(acc, S::load_first(row, m));
                acc2 = S::add(acc2, S::load_first(row.wrapping_add(LANES), m2));
            }
            S::store_first(sum, m, acc);
            S::store_first(sum2, m2, acc2);
            c += 2 * LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    /// y and dbias of `tokens` rows in a buffer of stride d + 3, from values that were there.
    fn run(cpu: &Cpu, tokens: usize, d: usize) -> Vec<Vec<f32>> {
        let stride = d + 3;
        let mut y = normals(1, tokens * stride);
        add_bias(cpu, view_mut(&mut y, tokens, d, stride), &normals(2, d));
        let (dy, mut dbias) = (normals(3, tokens * stride), normals(4, d));
        add_bias_backward(cpu, view(&dy, tokens, d, stride), &mut dbias);
        vec![y, dbias]
    }

    #[test]
    fn adds_to_each_row_and_sums_over_rows() {
        for (tokens, d) in [(0, 3), (1, 1), (5, 7), (29, 16), (29, 33), (600, 100)] {
            let (stride, out) = (d + 3, run(&cpu(), tokens, d));
            let (before, bias) = (normals(1, tokens * stride), normals(2, d));
            let (dy, mut dbias) = (normals(3, tokens * stride), normals(4, d));
            let mut sums = wide(&dbias);
            for i in 0..tokens * stride {
                let c = i % stride;
                if c < d {
                    assert_eq!(out[0][i], before[i] + bias[c], "[{i}]");
                    sums[c] += f64::from(dy[i]);
                    // One chain per column: these very roundings.
                    dbias[c] += dy[i];
                } else {
                    assert_eq!(out[0][i], before[i], "wrote past a row");
                }
            }
            assert_close("dbias", &out[1], &sums, 1e-5);
            assert_eq!(out[1], dbias);
        }
    }

    #[test]
    fn backward_is_the_gradient_of_the_forward() {
        let (tokens, d) = (6, 19);
        let (x, dy) = (normals(1, tokens * d), normals(3, tokens * d));
        let mut dbias = vec![0.0; d];
        add_bias_backward(&cpu(), Mat::new(&dy, d), &mut dbias);
        // The loss is linear in the bias, so that one step of size 1 measures its slope.
        for c in 0..d {
            let (mut y, mut bias) = (x.clone(), vec![0.0; d]);
            bias[c] = 1.0;
            add_bias(&cpu(), MatMut::new(&mut y, d), &bias);
            let moved = y.iter().zip(&x).zip(&dy);
            let slope: f64 = moved
                .map(|((y, x), dy)| (f64::from(*y) - f64::from(*x)) * f64::from(*dy))
                .sum();
            assert!((slope - f64::from(dbias[c])).abs() < 1e-5, "{c}");
        }
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        for (tokens, d) in [(0, 3), (1, 17), (700, 100), (40, 1500)] {
            same_everywhere("bias", |cpu| run(cpu, tokens, d));
        }
    }
}

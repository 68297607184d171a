//! Root-mean-square norm (Zhang and Sennrich 2019), as `DeepseekV3RMSNorm` of Hugging Face.

use super::{columns_per_item, rows_per_item};
use crate::pool::SharedMut;
use crate::simd::{LANES, dot, for_vectors, simd_fn};
use crate::{Cpu, Mat, MatMut};

/// y = x * inv_rms * weight, row by row, with inv_rms = 1 / sqrt(mean(x^2) + eps).
///
/// `x` and `y`: [tokens, d]; `weight`: [d]; `inv_rms`: [tokens], kept for the backward.
pub(crate) fn rmsnorm(cpu: &Cpu, x: Mat, weight: &[f32], eps: f32, y: MatMut, inv_rms: &mut [f32]) {
    x.check();
    y.check();
    let (tokens, d, stride) = (x.rows, x.cols, y.stride);
    assert_eq!((y.rows, y.cols), (tokens, d), "shape of y");
    assert_eq!(
        (weight.len(), inv_rms.len()),
        (d, tokens),
        "lengths of weight and inv_rms"
    );
    let (y, inv_rms) = (SharedMut::new(y.data), SharedMut::new(inv_rms));
    cpu.pool.run_chunks(tokens, rows_per_item(d), |rows| {
        for t in rows {
            // SAFETY: one thread has row t.
            let (y, inv) =
                unsafe { (y.slice(t * stride..t * stride + d), inv_rms.slice(t..t + 1)) };
            inv[0] = norm_row(cpu.isa, x.row(t), weight, eps, y);
        }
    });
}

simd_fn! {
    fn norm_row<S>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) -> f32 {
        let n = x.len();
        let (x, weight, y) = (x.as_ptr(), weight.as_ptr(), y.as_mut_ptr());
        let inv = 1.0 / (dot::<S>(x, x, n) / n as f32 + eps).sqrt();
        let scale = S::splat(inv);
        for_vectors!(c, m in n, {
            let unit = S::mul(S::load_first(x.add(c), m), scale);
            S::store_first(y.add(c), m, S::mul(unit, S::load_first(weight.add(c), m)));
        });
        inv
    }
}

/// Gradients of [`rmsnorm`]: with x' = x * inv_rms and g = dy * weight,
/// dx = inv_rms * (g - x' * mean(g * x')), and dweight += sum over tokens of dy * x'.
///
/// `dx` is written, or added to if `accumulate_dx` (the residual stream).
pub(crate) fn rmsnorm_backward(
    cpu: &Cpu,
    x: Mat,
    weight: &[f32],
    inv_rms: &[f32],
    dy: Mat,
    dx: MatMut,
    accumulate_dx: bool,
    dweight: &mut [f32],
) {
    x.check();
    dy.check();
    dx.check();
    let (tokens, d, stride) = (x.rows, x.cols, dx.stride);
    assert_eq!((dy.rows, dy.cols), (tokens, d), "shape of dy");
    assert_eq!((dx.rows, dx.cols), (tokens, d), "shape of dx");
    assert_eq!(
        (weight.len(), inv_rms.len()),
        (d, tokens),
        "lengths of weight and inv_rms"
    );
    assert_eq!(dweight.len(), d, "length of dweight");
    let dx = SharedMut::new(dx.data);
    cpu.pool.run_chunks(tokens, rows_per_item(d), |rows| {
        for t in rows {
            // SAFETY: one thread has row t.
            let dx = unsafe { dx.slice(t * stride..t * stride + d) };
            input_gradient(
                cpu.isa,
                x.row(t),
                weight,
                inv_rms[t],
                dy.row(t),
                dx,
                accumulate_dx,
            );
        }
    });
    let dweight = SharedMut::new(dweight);
    cpu.pool.run_chunks(d, columns_per_item(tokens), |columns| {
        // SAFETY: one thread has these columns.
        let dweight = unsafe { dweight.slice(columns.clone()) };
        let (x, dy) = (
            x.columns(columns.start, columns.len()),
            dy.columns(columns.start, columns.len()),
        );
        weight_gradient(cpu.isa, x, inv_rms, dy, dweight);
    });
}

simd_fn! {
    fn input_gradient<S>(
        x: &[f32],
        weight: &[f32],
        inv: f32,
        dy: &[f32],
        dx: &mut [f32],
        accumulate: bool,
    ) {
        let n = x.len();
        let (x, weight, dy, dx) = (x.as_ptr(), weight.as_ptr(), dy.as_ptr(), dx.as_mut_ptr());
        let mut acc = S::splat(0.0);
        for_vectors!(c, m in n, {
            let g = S::mul(S::load_first(dy.add(c), m), S::load_first(weight.add(c), m));
            acc = S::fma(g, S::load_first(x.add(c), m), acc);
        });
        // mean(g * x') * inv, to be taken times x.
        let pull = S::splat(-(S::sum(acc) * inv / n as f32 * inv));
        let scale = S::splat(inv);
        for_vectors!(c, m in n, {
            let g = S::mul(S::load_first(dy.add(c), m), S::load_first(weight.add(c), m));
            let inner = S::fma(S::load_first(x.add(c), m), pull, g);
            let before = if accumulate { S::load_first(dx.add(c), m) } else { S::splat(0.0) };
            S::store_first(dx.add(c), m, S::fma(inner, scale, before));
        });
    }
}

simd_fn! {
    fn weight_gradient<S>(x: Mat, inv_rms: &[f32], dy: Mat, dweight: &mut [f32]) {
        let (n, dweight) = (dweight.len(), dweight.as_mut_ptr());
        let mut c = 0;
        // Two vectors at once: two chains hide each other's latency, and share a pair of lines.
        while c < n {
            let (m, m2) = (n - c, (n - c).saturating_sub(LANES));
            let (sum, sum2) = (dweight.add(c), dweight.wrapping_add(c + LANES));
            let (mut acc, mut acc2) = (S::load_first(sum, m), S::load_first(sum2, m2));
            for (t, &inv) in inv_rms.iter().enumerate() {
                let (px, pdy) = (x.data.as_ptr().add(t * x.stride + c), dy.data.as_ptr());
                let pdy = pdy.add(t * dy.stride + c);
                let (px2, pdy2) = (px.wrapping_add(LANES), pdy.wrapping_add(LANES));
                let unit = S::mul(S::load_first(px, m), S::splat(inv));
                let unit2 = S::mul(S::load_first(px2, m2), S::splat(inv));
                acc = S::fma(S::load_first(pdy, m), unit, acc);
                acc2 = S::fma(S::load_first(pdy2, m2), unit2, acc2);
            }
            S::store_first(sum, m, acc);
            S::store_first(sum2, m2, acc2);
            c += 2 * LANES;
        }
    }
}

/// What the tests of every op need: inputs, and one answer from every processor.
#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const EPS: f32 = 1e-6;
    const WIDTHS: [usize; 7] = [1, 7, 16, 17, 33, 100, 192];

    fn oracle(x: &[f64], weight: &[f64]) -> Vec<f64> {
        let d = weight.len();
        x.chunks(d)
            .flat_map(|x| {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / d as f64;
                let inv = 1.0 / (mean + f64::from(EPS)).sqrt();
                x.iter()
                    .zip(weight)
                    .map(move |(x, w)| x * inv * w)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// y, inv_rms, dx and dweight of `tokens` rows in a buffer of stride d + 5.
    fn run(cpu: &Cpu, seed: u64, tokens: usize, d: usize, accumulate: bool) -> Vec<Vec<f32>> {
        let stride = d + 5;
        let (x, dy) = (
            normals(seed, tokens * stride),
            normals(seed + 1, tokens * stride),
        );
        let weight = normals(seed + 2, d);
        let (mut y, mut inv) = (vec![9.0; tokens * stride], vec![0.0; tokens]);
        let x = view(&x, tokens, d, stride);
        rmsnorm(
            cpu,
            x,
            &weight,
            EPS,
            view_mut(&mut y, tokens, d, stride),
            &mut inv,
        );
        let (mut dx, mut dweight) = (normals(seed + 3, tokens * stride), normals(seed + 4, d));
        let (dx_view, dy) = (
            view_mut(&mut dx, tokens, d, stride),
            view(&dy, tokens, d, stride),
        );
        rmsnorm_backward(cpu, x, &weight, &inv, dy, dx_view, accumulate, &mut dweight);
        vec![y, inv, dx, dweight]
    }

    #[test]
    fn forward_and_backward_agree_with_the_oracle() {
        for (i, d) in WIDTHS.into_iter().enumerate() {
            let (tokens, stride, seed, accumulate) = (3, d + 5, 10 * i as u64, i % 2 == 0);
            let out = run(&cpu(), seed, tokens, d, accumulate);
            let x = wide(&dense(view(
                &normals(seed, tokens * stride),
                tokens,
                d,
                stride,
            )));
            let dy = wide(&dense(view(
                &normals(seed + 1, tokens * stride),
                tokens,
                d,
                stride,
            )));
            let weight = wide(&normals(seed + 2, d));
            let y = dense(view(&out[0], tokens, d, stride));
            assert_close("y", &y, &oracle(&x, &weight), 1e-6);
            assert!(
                (0..tokens - 1).all(|t| out[0][t * stride + d] == 9.0),
                "wrote past a row"
            );

            let loss = |x: &[f64], w: &[f64]| -> f64 {
                oracle(x, w).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            let mut dx = numeric_gradient(&x, |x| loss(x, &weight));
            if accumulate {
                let before = normals(seed + 3, tokens * stride);
                let before = dense(view(&before, tokens, d, stride));
                dx.iter_mut()
                    .zip(before)
                    .for_each(|(dx, b)| *dx += f64::from(b));
            }
            assert_close("dx", &dense(view(&out[2], tokens, d, stride)), &dx, 1e-5);
            let mut dweight = numeric_gradient(&weight, |w| loss(&x, w));
            let before = normals(seed + 4, d);
            dweight
                .iter_mut()
                .zip(before)
                .for_each(|(dw, b)| *dw += f64::from(b));
            assert_close("dweight", &out[3], &dweight, 1e-5);
        }
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        for (tokens, d) in [(0, 3), (1, 17), (200, 192), (700, 33)] {
            let what = format!("rmsnorm {tokens} x {d}");
            same_everywhere(&what, |cpu| run(cpu, 5, tokens, d, tokens % 2 == 0));
        }
    }

    /// `q_norm` and `k_norm`: [tokens, heads * head_dim] seen as [tokens * heads, head_dim], one
    /// weight for all heads.
    #[test]
    fn heads_are_rows_that_share_a_weight() {
        let (tokens, heads, head_dim) = (3, 4, 24);
        let n = tokens * heads * head_dim;
        let (x, dy, weight) = (normals(1, n), normals(2, n), normals(3, head_dim));
        let (mut y, mut inv) = (vec![0.0; n], vec![0.0; tokens * heads]);
        let rows = Mat::new(&x, head_dim);
        let out = MatMut::new(&mut y, head_dim);
        rmsnorm(&cpu(), rows, &weight, EPS, out, &mut inv);
        let (mut dx, mut dweight) = (vec![0.0; n], vec![0.0; head_dim]);
        let (dy_rows, out) = (Mat::new(&dy, head_dim), MatMut::new(&mut dx, head_dim));
        rmsnorm_backward(
            &cpu(),
            rows,
            &weight,
            &inv,
            dy_rows,
            out,
            false,
            &mut dweight,
        );
        let by_heads = |x: &[f64], w: &[f64]| -> Vec<f64> {
            let tokens = x.chunks(heads * head_dim);
            tokens
                .flat_map(|token| (0..heads).map(move |h| &token[h * head_dim..][..head_dim]))
                .flat_map(|head| oracle(head, w))
                .collect()
        };
        let (x, dy, weight) = (wide(&x), wide(&dy), wide(&weight));
        let loss = |y: Vec<f64>| -> f64 { y.iter().zip(&dy).map(|(y, dy)| y * dy).sum() };
        assert_close("y", &y, &by_heads(&x, &weight), 1e-6);
        let want = numeric_gradient(&x, |x| loss(by_heads(x, &weight)));
        assert_close("dx", &dx, &want, 1e-5);
        let want = numeric_gradient(&weight, |w| loss(by_heads(&x, w)));
        assert_close("dweight", &dweight, &want, 1e-5);
    }

    #[test]
    fn a_row_alone_is_that_row_of_the_batch() {
        let (tokens, d) = (40, 33);
        let (x, weight) = (normals(1, tokens * d), normals(2, d));
        let forward = |x: &[f32]| {
            let (mut y, mut inv) = (vec![0.0; x.len()], vec![0.0; x.len() / d]);
            rmsnorm(
                &cpu(),
                Mat::new(x, d),
                &weight,
                EPS,
                MatMut::new(&mut y, d),
                &mut inv,
            );
            let mut dx = vec![0.0; x.len()];
            let (rows, out) = (Mat::new(x, d), MatMut::new(&mut dx, d));
            rmsnorm_backward(
                &cpu(),
                rows,
                &weight,
                &inv,
                rows,
                out,
                false,
                &mut vec![0.0; d],
            );
            (y, dx)
        };
        let (y, dx) = forward(&x);
        for t in 0..tokens {
            let row = t * d..(t + 1) * d;
            assert_eq!(
                forward(&x[row.clone()]),
                (y[row.clone()].to_vec(), dx[row].to_vec())
            );
        }
    }
}

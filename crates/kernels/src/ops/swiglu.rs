//! The gated activation of the MLP (Shazeer 2020): silu(gate) * up, silu(x) = x * sigmoid(x).

use super::rows_per_item;
use crate::pool::SharedMut;
use crate::simd::{for_vectors, sigmoid, simd_fn};
use crate::{Cpu, Mat, MatMut};

/// y = silu(gate) * up; all [tokens, intermediate_size].
pub(crate) fn swiglu(cpu: &Cpu, gate: Mat, up: Mat, y: MatMut) {
    gate.check();
    up.check();
    y.check();
    let (tokens, n, stride) = (gate.rows, gate.cols, y.stride);
    assert_eq!((up.rows, up.cols), (tokens, n), "shape of up");
    assert_eq!((y.rows, y.cols), (tokens, n), "shape of y");
    let y = SharedMut::new(y.data);
    cpu.pool.run_chunks(tokens, rows_per_item(n), |rows| {
        for t in rows {
            // SAFETY: one thread has row t.
            let y = unsafe { y.slice(t * stride..t * stride + n) };
            forward_row(cpu.isa, gate.row(t), up.row(t), y);
        }
    });
}

simd_fn! {
    fn forward_row<S>(gate: &[f32], up: &[f32], y: &mut [f32]) {
        let (n, gate, up, y) = (y.len(), gate.as_ptr(), up.as_ptr(), y.as_mut_ptr());
        for_vectors!(c, m in n, {
            let g = S::load_first(gate.add(c), m);
            let silu = S::mul(g, sigmoid::<S>(g));
            S::store_first(y.add(c), m, S::mul(silu, S::load_first(up.add(c), m)));
        });
    }
}

/// Gradients of [`swiglu`], written: with s = sigmoid(gate),
/// dgate = dy * up * s * (1 + gate * (1 - s)) and dup = dy * gate * s.
pub(crate) fn swiglu_backward(cpu: &Cpu, gate: Mat, up: Mat, dy: Mat, dgate: MatMut, dup: MatMut) {
    gate.check();
    up.check();
    dy.check();
    dgate.check();
    dup.check();
    let (tokens, n) = (gate.rows, gate.cols);
    assert_eq!((up.rows, up.cols), (tokens, n), "shape of up");
    assert_eq!((dy.rows, dy.cols), (tokens, n), "shape of dy");
    assert_eq!((dgate.rows, dgate.cols), (tokens, n), "shape of dgate");
    assert_eq!((dup.rows, dup.cols), (tokens, n), "shape of dup");
    let (gate_stride, up_stride) = (dgate.stride, dup.stride);
    let (dgate, dup) = (SharedMut::new(dgate.data), SharedMut::new(dup.data));
    cpu.pool.run_chunks(tokens, rows_per_item(n), |rows| {
        for t in rows {
            // SAFETY: one thread has row t.
            let (dgate, dup) = unsafe {
                let dgate = dgate.slice(t * gate_stride..t * gate_stride + n);
                (dgate, dup.slice(t * up_stride..t * up_stride + n))
            };
            backward_row(cpu.isa, gate.row(t), up.row(t), dy.row(t), dgate, dup);
        }
    });
}

simd_fn! {
    fn backward_row<S>(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let (n, gate, up, dy) = (dy.len(), gate.as_ptr(), up.as_ptr(), dy.as_ptr());
        let (dgate, dup) = (dgate.as_mut_ptr(), dup.as_mut_ptr());
        let one = S::splat(1.0);
        for_vectors!(c, m in n, {
            let (g, dy) = (S::load_first(gate.add(c), m), S::load_first(dy.add(c), m));
            let s = sigmoid::<S>(g);
            let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
            let from_up = S::mul(dy, S::load_first(up.add(c), m));
            S::store_first(dgate.add(c), m, S::mul(from_up, slope));
            S::store_first(dup.add(c), m, S::mul(dy, S::mul(g, s)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn silu(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    /// y, dgate and dup, where gate and up (and their gradients) are halves of one buffer, as the
    /// model has them; the gates are wide enough to saturate.
    fn run(cpu: &Cpu, seed: u64, tokens: usize, n: usize) -> Vec<Vec<f32>> {
        let both: Vec<f32> = normals(seed, tokens * 2 * n)
            .iter()
            .map(|x| 8.0 * x)
            .collect();
        let both = Mat::new(&both, 2 * n);
        let (gate, up) = (both.columns(0, n), both.columns(n, n));
        let (dy, mut y) = (normals(seed + 1, tokens * n), vec![0.0; tokens * n]);
        swiglu(cpu, gate, up, MatMut::new(&mut y, n));
        let (mut dgate, mut dup) = (vec![0.0; tokens * (n + 1)], vec![0.0; tokens * n]);
        let dgate_view = view_mut(&mut dgate, tokens, n, n + 1);
        swiglu_backward(
            cpu,
            gate,
            up,
            Mat::new(&dy, n),
            dgate_view,
            MatMut::new(&mut dup, n),
        );
        vec![y, dense(view(&dgate, tokens, n, n + 1)), dup]
    }

    #[test]
    fn forward_and_backward_agree_with_the_oracle() {
        for (seed, n) in [1, 7, 16, 17, 33, 192].into_iter().enumerate() {
            let (tokens, seed) = (3, 10 * seed as u64);
            let out = run(&cpu(), seed, tokens, n);
            let both: Vec<f32> = normals(seed, tokens * 2 * n)
                .iter()
                .map(|x| 8.0 * x)
                .collect();
            let both = Mat::new(&both, 2 * n);
            let gate = wide(&dense(both.columns(0, n)));
            let up = wide(&dense(both.columns(n, n)));
            let dy = wide(&normals(seed + 1, tokens * n));
            let y: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(*g) * u).collect();
            assert_close("y", &out[0], &y, 1e-6);
            // No element reaches another, so that each has its own difference.
            let h = 1e-5;
            let slopes = gate.iter().map(|g| (silu(g + h) - silu(g - h)) / (2.0 * h));
            let dgate: Vec<f64> = slopes
                .zip(&up)
                .zip(&dy)
                .map(|((s, u), dy)| s * u * dy)
                .collect();
            assert_close("dgate", &out[1], &dgate, 1e-6);
            let dup: Vec<f64> = gate.iter().zip(&dy).map(|(g, dy)| silu(*g) * dy).collect();
            assert_close("dup", &out[2], &dup, 1e-6);
        }
    }

    #[test]
    fn extreme_gates_stay_finite_and_a_nan_shows() {
        let gate = [-1e30, -200.0, 200.0, 1e30, f32::NAN];
        let mut y = [0.0; 5];
        swiglu(
            &cpu(),
            Mat::new(&gate, 5),
            Mat::new(&[1.0; 5], 5),
            MatMut::new(&mut y, 5),
        );
        assert!(y[0].abs() < 1e-6 && y[1].abs() < 1e-30, "{y:?}");
        assert!(y[2..4] == [200.0, 1e30] && y[4].is_nan(), "{y:?}");
    }

    #[test]
    fn every_processor_gives_the_same_bits_and_a_row_alone_too() {
        for (tokens, n) in [(0, 5), (1, 17), (250, 100), (2, 9001)] {
            let batch = same_everywhere("swiglu", |cpu| run(cpu, 4, tokens, n));
            let one_row = same_everywhere("swiglu", |cpu| run(cpu, 4, tokens.min(1), n));
            for (batch, row) in batch.iter().zip(&one_row) {
                assert_eq!(batch[..row.len()], row[..]);
            }
        }
    }
}

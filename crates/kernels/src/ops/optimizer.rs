//! The step of the optimizer: AdamW (Loshchilov and Hutter 2019), and the norm it is clipped by.

use super::ITEM;
use crate::Cpu;
use crate::pool::SharedMut;
use crate::simd::{dot, for_vectors, simd_fn};

/// Elements of a sum of squares that one f32 sum takes; part of the result's definition.
const PIECE: usize = 4096;
const _: () = assert!(
    ITEM.is_multiple_of(PIECE),
    "a piece must not straddle two items"
);

/// Hyperparameters of one step, as `torch.optim.AdamW` names them.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled: parameters shrink by `lr * weight_decay`, whatever their gradient.
    pub weight_decay: f64,
    pub lr: f64,
    /// The first step is 1.
    pub step: u64,
    /// Multiplies the gradient first: what clipping leaves, see [`clip_factor`].
    pub grad_scale: f32,
}

/// The scalars of a step, rounded to f32 once.
#[derive(Clone, Copy)]
struct Scalars {
    grad_scale: f32,
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction2: f32,
    eps: f32,
    minus_step_size: f32,
}

impl AdamW {
    fn scalars(&self) -> Scalars {
        assert!(self.step > 0, "the first optimizer step is 1");
        let correction1 = 1.0 - power(self.beta1, self.step);
        let correction2 = 1.0 - power(self.beta2, self.step);
        Scalars {
            grad_scale: self.grad_scale,
            keep: (1.0 - self.lr * self.weight_decay) as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            root_correction2: correction2.sqrt() as f32,
            eps: self.eps as f32,
            minus_step_size: (-self.lr / correction1) as f32,
        }
    }
}

/// x^n by squaring, so that no platform's `pow` has a say.
fn power(x: f64, n: u64) -> f64 {
    let (mut result, mut square, mut n) = (1.0, x, n);
    while n > 0 {
        if n % 2 == 1 {
            result *= square;
        }
        square *= square;
        n /= 2;
    }
    result
}

/// One step of AdamW; `params`, `grads`, `m` and `v` have one length.
pub(crate) fn adamw(
    cpu: &Cpu,
    h: &AdamW,
    params: &mut [f32],
    grads: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    let n = params.len();
    assert_eq!(
        (grads.len(), m.len(), v.len()),
        (n, n, n),
        "lengths of grads, m and v"
    );
    let scalars = h.scalars();
    let (params, m, v) = (SharedMut::new(params), SharedMut::new(m), SharedMut::new(v));
    cpu.pool.run_chunks(n, ITEM, |range| {
        // SAFETY: one thread has this range.
        let (p, m, v) = unsafe {
            (
                params.slice(range.clone()),
                m.slice(range.clone()),
                v.slice(range.clone()),
            )
        };
        adamw_piece(cpu.isa, scalars, p, &grads[range], m, v);
    });
}

simd_fn! {
    fn adamw_piece<S>(
        h: Scalars,
        params: &mut [f32],
        grads: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        let (n, params, grads) = (params.len(), params.as_mut_ptr(), grads.as_ptr());
        let (first, second) = (first.as_mut_ptr(), second.as_mut_ptr());
        for_vectors!(c, lanes in n, {
            let g = S::mul(S::load_first(grads.add(c), lanes), S::splat(h.grad_scale));
            let m = S::load_first(first.add(c), lanes);
            let m = S::fma(S::splat(h.one_minus_beta1), S::sub(g, m), m);
            S::store_first(first.add(c), lanes, m);
            let kept = S::mul(S::load_first(second.add(c), lanes), S::splat(h.beta2));
            let v = S::fma(S::mul(g, S::splat(h.one_minus_beta2)), g, kept);
            S::store_first(second.add(c), lanes, v);
            let root = S::div(S::sqrt(v), S::splat(h.root_correction2));
            let ratio = S::div(m, S::add(root, S::splat(h.eps)));
            let p = S::mul(S::load_first(params.add(c), lanes), S::splat(h.keep));
            let p = S::fma(S::splat(h.minus_step_size), ratio, p);
            S::store_first(params.add(c), lanes, p);
        });
    }
}

/// Sum of x^2: pieces of 4,096 elements in f32, joined in f64 by a binary tree over the pieces.
pub(crate) fn sum_of_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    let mut sums = vec![0.0f64; x.len().div_ceil(PIECE)];
    let shared = SharedMut::new(&mut sums);
    cpu.pool.run_chunks(x.len(), ITEM, |range| {
        let first = range.start / PIECE;
        for (i, piece) in x[range].chunks(PIECE).enumerate() {
            // SAFETY: one thread has the pieces of this range.
            let sum = unsafe { shared.slice(first + i..first + i + 1) };
            sum[0] = f64::from(squares(cpu.isa, piece));
        }
    });
    while sums.len() > 1 {
        for i in 0..sums.len().div_ceil(2) {
            sums[i] = sums[2 * i] + sums.get(2 * i + 1).unwrap_or(&0.0);
        }
        sums.truncate(sums.len().div_ceil(2));
    }
    sums.first().copied().unwrap_or(0.0)
}

simd_fn! {
    fn squares<S>(x: &[f32]) -> f32 {
        dot::<S>(x.as_ptr(), x.as_ptr(), x.len())
    }
}

/// dst += src.
pub(crate) fn add_assign(cpu: &Cpu, dst: &mut [f32], src: &[f32]) {
    assert_eq!(dst.len(), src.len(), "lengths");
    let dst = SharedMut::new(dst);
    cpu.pool.run_chunks(src.len(), ITEM, |range| {
        // SAFETY: one thread has this range.
        let dst = unsafe { dst.slice(range.clone()) };
        dst.iter_mut()
            .zip(&src[range])
            .for_each(|(dst, src)| *dst += src);
    });
}

/// x *= factor.
pub(crate) fn scale(cpu: &Cpu, x: &mut [f32], factor: f32) {
    let n = x.len();
    let x = SharedMut::new(x);
    cpu.pool.run_chunks(n, ITEM, |range| {
        // SAFETY: one thread has this range.
        let x = unsafe { x.slice(range) };
        x.iter_mut().for_each(|x| *x *= factor);
    });
}

/// What a gradient of this norm is multiplied by so that its norm is at most `max`, as
/// `torch.nn.utils.clip_grad_norm_`: max / (norm + 1e-6), at most 1; NaN for a norm that is NaN.
pub fn clip_factor(norm: f64, max: f64) -> f32 {
    let factor = max / (norm + 1e-6);
    if factor > 1.0 { 1.0 } else { factor as f32 }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const SIZES: [usize; 8] = [0, 1, 7, 16, 17, 33, 192, 4099];

    fn step(step: u64) -> AdamW {
        AdamW {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            lr: 3e-3 / step as f64,
            step,
            grad_scale: 0.5,
        }
    }

    fn run(cpu: &Cpu, n: usize, steps: u64) -> Vec<Vec<f32>> {
        let (mut p, mut m, mut v) = (normals(1, n), vec![0.0; n], vec![0.0; n]);
        for t in 1..=steps {
            adamw(cpu, &step(t), &mut p, &normals(1 + t, n), &mut m, &mut v);
        }
        vec![p, m, v]
    }

    /// The update as the paper's algorithm 2 states it, with biased moments corrected first.
    fn oracle(n: usize, steps: u64) -> Vec<f64> {
        let (mut p, mut m, mut v) = (wide(&normals(1, n)), vec![0.0; n], vec![0.0; n]);
        for t in 1..=steps {
            let (h, g) = (step(t), wide(&normals(1 + t, n)));
            for i in 0..n {
                let g = g[i] * 0.5;
                m[i] = h.beta1 * m[i] + (1.0 - h.beta1) * g;
                v[i] = h.beta2 * v[i] + (1.0 - h.beta2) * g * g;
                let m = m[i] / (1.0 - h.beta1.powi(t as i32));
                let v: f64 = v[i] / (1.0 - h.beta2.powi(t as i32));
                p[i] -= h.lr * (m / (v.sqrt() + h.eps) + h.weight_decay * p[i]);
            }
        }
        p
    }

    #[test]
    fn ten_steps_agree_with_the_algorithm() {
        for n in SIZES {
            assert_close("params", &run(&cpu(), n, 10)[0], &oracle(n, 10), 1e-6);
        }
    }

    /// The first step of Adam moves each parameter by the learning rate against its gradient.
    #[test]
    fn the_first_step_is_the_sign_of_the_gradient() {
        let h = AdamW {
            weight_decay: 0.0,
            lr: 0.25,
            ..step(1)
        };
        let mut p = [1.0; 3];
        adamw(
            &cpu(),
            &h,
            &mut p,
            &[5.0, -1e-3, 0.0],
            &mut [0.0; 3],
            &mut [0.0; 3],
        );
        assert_close("params", &p, &[0.75, 1.25, 1.0], 1e-5);
    }

    #[test]
    fn powers_agree_with_repeated_multiplication() {
        let mut product = 1.0f64;
        for n in 0..3000 {
            assert!(
                (power(0.999, n) - product).abs() <= 1e-12 * product,
                "0.999^{n}"
            );
            product *= 0.999;
        }
    }

    #[test]
    fn sums_of_squares_and_elementwise_ops_agree_with_the_oracle() {
        for n in SIZES.into_iter().chain([4096, 20_000]) {
            let (x, mut y) = (normals(1, n), normals(2, n));
            let want: f64 = wide(&x).iter().map(|x| x * x).sum();
            let got = sum_of_squares(&cpu(), &x);
            assert!(
                (got - want).abs() <= 1e-6 * want,
                "{n}: {got}, should be {want}"
            );
            let before = y.clone();
            add_assign(&cpu(), &mut y, &x);
            assert!((0..n).all(|i| y[i] == before[i] + x[i]));
            scale(&cpu(), &mut y, -0.3);
            assert!((0..n).all(|i| y[i] == (before[i] + x[i]) * -0.3));
        }
    }

    #[test]
    fn clipping_as_torch_does() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(f64::INFINITY, 1.0), 0.0);
        assert!(clip_factor(f64::NAN, 1.0).is_nan());
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        for n in [17, 70_001] {
            same_everywhere("optimizer", |cpu| {
                let mut out = run(cpu, n, 2);
                let mut x = normals(7, n);
                let sum = sum_of_squares(cpu, &x);
                add_assign(cpu, &mut x, &out[0]);
                scale(cpu, &mut x, 0.7);
                out.extend([x, vec![sum as f32, (sum - f64::from(sum as f32)) as f32]]);
                out
            });
        }
    }
}

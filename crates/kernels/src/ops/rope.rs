//! Rotary position embedding (Su et al. 2021), in both layouts of the field.
//!
//! DeepSeek's own code rotates neighbours (2i, 2i + 1); Hugging Face's Llama and Qwen rotate
//! halves (i, i + dim / 2).

use super::rows_per_item;
use crate::pool::SharedMut;
use crate::simd::simd_fn;
use crate::{Cpu, MatMut, math};

/// A sine and a cosine in f64 cost about as much as this many elements of other ops.
const ANGLE_COST: usize = 16;

/// How fast each pair turns, and a factor on both cosine and sine.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    /// `[rope_dim / 2]`, radians per position.
    pub inverse: Vec<f64>,
    /// YaRN's attention factor (arXiv 2309.00071, section 3.4), 1 otherwise.
    pub factor: f64,
}

impl RopeFrequencies {
    /// theta^(-2i / dim) with a factor of 1: `dim` counts the rotated elements of a head
    /// (`qk_rope_head_dim`), `theta` is `rope_theta`.
    ///
    /// # Panics
    /// If `dim` is odd or zero, or `theta` is not positive.
    pub fn new(theta: f64, dim: usize) -> RopeFrequencies {
        assert!(
            dim > 0 && dim.is_multiple_of(2),
            "rope over {dim} elements: must be even"
        );
        assert!(theta > 0.0, "rope_theta is {theta}: must be positive");
        let exponent = -2.0 * math::ln(theta) / dim as f64;
        RopeFrequencies {
            inverse: (0..dim / 2)
                .map(|i| math::exp(exponent * i as f64))
                .collect(),
            factor: 1.0,
        }
    }
}

/// Cosines and sines of one batch's positions, written by `Backend::rope_angles`.
///
/// Each is `[tokens, rope_dim / 2]`; their memory grows with the largest batch and never shrinks.
#[derive(Clone, Debug, Default)]
pub struct RopeAngles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    tokens: usize,
}

/// Fills `angles` for `positions`, [tokens]: factor * cos and factor * sin of
/// position * frequency.
///
/// Angles are formed in f64 and only the results rounded, so that late positions are exact too.
pub(crate) fn rope_angles(
    cpu: &Cpu,
    positions: &[u32],
    frequencies: &RopeFrequencies,
    angles: &mut RopeAngles,
) {
    let (tokens, half) = (positions.len(), frequencies.inverse.len());
    let factor = frequencies.factor;
    angles.tokens = tokens;
    angles.cos.resize(tokens * half, 0.0);
    angles.sin.resize(tokens * half, 0.0);
    let (cos, sin) = (
        SharedMut::new(&mut angles.cos),
        SharedMut::new(&mut angles.sin),
    );
    let chunk = rows_per_item(ANGLE_COST * half);
    cpu.pool.run_chunks(tokens, chunk, |rows| {
        for t in rows {
            let row = t * half..(t + 1) * half;
            // SAFETY: one thread has token t.
            let (cos, sin) = unsafe { (cos.slice(row.clone()), sin.slice(row)) };
            let outputs = cos.iter_mut().zip(sin);
            for ((cos, sin), frequency) in outputs.zip(&frequencies.inverse) {
                let (s, c) = math::sin_cos(frequency * f64::from(positions[t]));
                (*cos, *sin) = ((c * factor) as f32, (s * factor) as f32);
            }
        }
    });
}

/// Rotates the last `rope_dim` elements of every head, in place, by the token's angles.
///
/// `x`: [tokens, heads * head_dim]. `interleaved` pairs (2i, 2i + 1), else
/// (i, i + rope_dim / 2). `transposed` applies the transpose, which is the backward; it turns back,
/// and multiplies by the factor as the forward does.
///
/// # Panics
/// If the angles are those of another width or number of tokens.
pub(crate) fn rope(
    cpu: &Cpu,
    x: MatMut,
    head_dim: usize,
    rope_dim: usize,
    angles: &RopeAngles,
    interleaved: bool,
    transposed: bool,
) {
    x.check();
    let (tokens, cols, stride) = (x.rows, x.cols, x.stride);
    let half = rope_dim / 2;
    assert!(
        head_dim > 0 && cols.is_multiple_of(head_dim),
        "{cols} columns, heads of {head_dim}"
    );
    assert!(
        rope_dim <= head_dim && rope_dim.is_multiple_of(2),
        "rope over {rope_dim} of a head of {head_dim}"
    );
    assert_eq!(angles.tokens, tokens, "tokens of the rope angles");
    assert_eq!(
        (angles.cos.len(), angles.sin.len()),
        (tokens * half, tokens * half),
        "the rope angles are for another width"
    );
    let x = SharedMut::new(x.data);
    let sign = if transposed { -1.0 } else { 1.0 };
    cpu.pool.run_chunks(tokens, rows_per_item(cols), |rows| {
        for t in rows {
            // SAFETY: one thread has row t.
            let x = unsafe { x.slice(t * stride..t * stride + cols) };
            let row = t * half..(t + 1) * half;
            let (cos, sin) = (&angles.cos[row.clone()], &angles.sin[row]);
            if interleaved {
                rotate_neighbours(cpu.isa, x, head_dim, cos, sin, sign);
            } else {
                rotate_halves(cpu.isa, x, head_dim, cos, sin, sign);
            }
        }
    });
}

// Both loops are plain arithmetic without sums: the compiler vectorises them for each instruction
// set, and cannot change their bits.

simd_fn! {
    fn rotate_neighbours<S>(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        for head in x.chunks_exact_mut(head_dim) {
            let pairs = head[head_dim - 2 * cos.len()..].chunks_exact_mut(2);
            for ((pair, &cos), &sin) in pairs.zip(cos).zip(sin) {
                let (a, b, sin) = (pair[0], pair[1], sin * sign);
                pair[0] = a * cos - b * sin;
                pair[1] = b * cos + a * sin;
            }
        }
    }
}

simd_fn! {
    fn rotate_halves<S>(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head[head_dim - 2 * cos.len()..].split_at_mut(cos.len());
            for (((x, y), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (a, b, sin) = (*x, *y, sin * sign);
                *x = a * cos - b * sin;
                *y = b * cos + a * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const THETA: f64 = 10_000.0;

    fn frequencies(dim: usize, factor: f64) -> RopeFrequencies {
        RopeFrequencies {
            factor,
            ..RopeFrequencies::new(THETA, dim)
        }
    }

    fn angles(cpu: &Cpu, positions: &[u32], frequencies: &RopeFrequencies) -> RopeAngles {
        let mut angles = RopeAngles::default();
        rope_angles(cpu, positions, frequencies, &mut angles);
        angles
    }

    /// The definition, as a product of complex numbers in f64.
    fn oracle(
        x: &[f32],
        (head_dim, dim): (usize, usize),
        position: u32,
        factor: f64,
        interleaved: bool,
    ) -> Vec<f64> {
        let mut y = wide(x);
        for head in y.chunks_mut(head_dim) {
            let head = &mut head[head_dim - dim..];
            for i in 0..dim / 2 {
                let (first, second) = if interleaved {
                    (2 * i, 2 * i + 1)
                } else {
                    (i, i + dim / 2)
                };
                let angle = f64::from(position) * THETA.powf(-2.0 * i as f64 / dim as f64);
                let (cos, sin) = (factor * angle.cos(), factor * angle.sin());
                let (a, b) = (head[first], head[second]);
                head[first] = a * cos - b * sin;
                head[second] = b * cos + a * sin;
            }
        }
        y
    }

    const SHAPES: [(usize, usize, usize); 5] = [
        (2, 2, 1),
        (16, 16, 3),
        (24, 6, 2),
        (40, 34, 2),
        (192, 64, 1),
    ];
    const CASES: [(bool, f64); 4] = [(false, 1.0), (true, 1.0), (false, 1.3), (true, 1.3)];

    #[test]
    fn rotates_the_last_elements_of_each_head_and_back() {
        for (head_dim, dim, heads) in SHAPES {
            for (interleaved, factor) in CASES {
                let (tokens, cols, stride) = (4, head_dim * heads, head_dim * heads + 3);
                let positions = [0, 1, 7, 163_839];
                let angles = angles(&cpu(), &positions, &frequencies(dim, factor));
                let before = normals(1, tokens * stride);
                let mut x = before.clone();
                let at = |x: &mut [f32], transposed| {
                    let x = view_mut(x, tokens, cols, stride);
                    rope(&cpu(), x, head_dim, dim, &angles, interleaved, transposed);
                };
                at(&mut x, false);
                for t in 0..tokens {
                    let (x, before) = (&x[t * stride..], &before[t * stride..]);
                    let sizes = (head_dim, dim);
                    let want = oracle(&before[..cols], sizes, positions[t], factor, interleaved);
                    assert_close("rope", &x[..cols], &want, 4e-7);
                    assert_eq!(x[cols..stride], before[cols..stride], "past row {t}");
                }
                // A rotation is orthogonal: its transpose, the backward, is its inverse.
                if factor == 1.0 {
                    at(&mut x, true);
                    assert_close("rope and back", &x, &wide(&before), 5e-7);
                }
            }
        }
    }

    #[test]
    fn transposed_is_the_adjoint_whatever_the_factor() {
        for (head_dim, dim, heads) in SHAPES {
            for (interleaved, factor) in CASES {
                let (tokens, cols) = (3, head_dim * heads);
                let angles = angles(&cpu(), &[2, 0, 511], &frequencies(dim, factor));
                let (x, y) = (normals(4, tokens * cols), normals(5, tokens * cols));
                let turned = |x: &[f32], transposed| {
                    let mut x = x.to_vec();
                    let view = MatMut::new(&mut x, cols);
                    rope(
                        &cpu(),
                        view,
                        head_dim,
                        dim,
                        &angles,
                        interleaved,
                        transposed,
                    );
                    x
                };
                let product = |a: &[f32], b: &[f32]| -> f64 {
                    wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum()
                };
                let (left, right) = (
                    product(&turned(&x, false), &y),
                    product(&x, &turned(&y, true)),
                );
                assert!((left - right).abs() < 2e-5, "{left} {right}");
            }
        }
    }

    #[test]
    fn the_angle_between_two_tokens_depends_on_their_distance_alone() {
        let dim = 32;
        for interleaved in [false, true] {
            let product = |p: u32, q: u32| -> f64 {
                let mut x = normals(3, 2 * dim);
                let angles = angles(&cpu(), &[p, q], &frequencies(dim, 1.0));
                let view = MatMut::new(&mut x, dim);
                rope(&cpu(), view, dim, dim, &angles, interleaved, false);
                (0..dim)
                    .map(|i| f64::from(x[i]) * f64::from(x[dim + i]))
                    .sum()
            };
            assert!((product(5, 2) - product(503, 500)).abs() < 1e-4);
            assert!((product(5, 2) - product(5, 4)).abs() > 1e-2);
        }
    }

    #[test]
    fn angles_keep_the_bits_that_runs_were_trained_with() {
        // FNV-1a of the cosines and then the sines of the first positions, recorded when they came
        // from a table made once: a change would part every resumed run from its past.
        let recorded = [
            (10_000.0, 64, 3000, 0x911a_9c36_e294_c123),
            (1_000_000.0, 128, 1000, 0x85f7_d887_89ae_da7d),
        ];
        for (theta, dim, end, want) in recorded {
            let positions: Vec<u32> = (0..end).collect();
            let angles = angles(&cpu(), &positions, &RopeFrequencies::new(theta, dim));
            let values = angles.cos.iter().chain(&angles.sin);
            let hash = values
                .flat_map(|x| x.to_bits().to_le_bytes())
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
                });
            assert_eq!(hash, want, "theta {theta}");
        }
    }

    #[test]
    fn a_batch_leaves_nothing_behind_for_the_next() {
        let (positions, frequencies) = ([3, 900, 4, 0], frequencies(6, 1.3));
        let mut used = RopeAngles::default();
        for count in [2, 4, 1, 0, 3] {
            rope_angles(&cpu(), &positions[..count], &frequencies, &mut used);
            let fresh = angles(&cpu(), &positions[..count], &frequencies);
            assert_eq!((&used.cos, &used.sin), (&fresh.cos, &fresh.sin));
            assert_eq!((used.tokens, used.cos.len()), (count, 3 * count));
        }
        assert!(used.cos.capacity() >= 12 && used.sin.capacity() >= 12);
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        let (tokens, heads, head_dim, dim) = (300, 3, 50, 34);
        let positions: Vec<u32> = (0..tokens as u32).rev().collect();
        for (interleaved, factor) in CASES {
            same_everywhere("rope", |cpu| {
                let angles = angles(cpu, &positions, &frequencies(dim, factor));
                let mut x = normals(2, tokens * heads * head_dim);
                let view = MatMut::new(&mut x, heads * head_dim);
                rope(cpu, view, head_dim, dim, &angles, interleaved, false);
                vec![x, angles.cos, angles.sin]
            });
        }
    }

    #[test]
    #[should_panic(expected = "tokens of the rope angles")]
    fn angles_of_another_batch_are_refused() {
        let angles = angles(&cpu(), &[7, 8, 9], &frequencies(2, 1.0));
        let x = &mut [0.0; 4];
        rope(&cpu(), MatMut::new(x, 2), 2, 2, &angles, true, false);
    }
}

//! Rotary position embedding (Su et al. 2021), in both layouts of the field.
//!
//! DeepSeek's own code rotates neighbours (2i, 2i + 1); Hugging Face's Llama and Qwen rotate
//! halves (i, i + dim / 2).

use super::rows_per_item;
use crate::pool::SharedMut;
use crate::simd::simd_fn;
use crate::{Cpu, MatMut, math};

/// Cosines and sines of position * theta^(-2i / dim), each [max_positions, dim / 2].
///
/// Angles are formed in f64 and only the results rounded, so that late positions are exact too.
pub struct RopeTable {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// `dim` counts the rotated elements of a head (`qk_rope_head_dim`), `theta` is `rope_theta`.
    ///
    /// # Panics
    /// If `dim` is odd or zero, or `theta` is not positive.
    pub fn new(theta: f64, dim: usize, max_positions: usize) -> RopeTable {
        assert!(
            dim > 0 && dim.is_multiple_of(2),
            "rope over {dim} elements: must be even"
        );
        assert!(theta > 0.0, "rope_theta is {theta}: must be positive");
        let half = dim / 2;
        let exponent = -2.0 * math::ln(theta) / dim as f64;
        let frequencies: Vec<f64> = (0..half).map(|i| math::exp(exponent * i as f64)).collect();
        let (sin, cos) = (0..max_positions)
            .flat_map(|position| frequencies.iter().map(move |f| f * position as f64))
            .map(|angle| {
                let (sin, cos) = math::sin_cos(angle);
                (sin as f32, cos as f32)
            })
            .unzip();
        RopeTable { cos, sin, half }
    }

    pub fn max_positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

/// Rotates the last `rope_dim` elements of every head, in place, by the token's position.
///
/// `x`: [tokens, heads * head_dim]; `positions`: [tokens]. `interleaved` pairs (2i, 2i + 1), else
/// (i, i + rope_dim / 2). `inverse` rotates back, which is the backward.
///
/// # Panics
/// If a position lies beyond the table.
pub(crate) fn rope(
    cpu: &Cpu,
    x: MatMut,
    head_dim: usize,
    rope_dim: usize,
    positions: &[u32],
    table: &RopeTable,
    interleaved: bool,
    inverse: bool,
) {
    x.check();
    let (tokens, cols, stride) = (x.rows, x.cols, x.stride);
    let half = rope_dim / 2;
    assert!(
        head_dim > 0 && cols.is_multiple_of(head_dim),
        "{cols} columns, heads of {head_dim}"
    );
    assert!(
        rope_dim <= head_dim,
        "rope over {rope_dim} of a head of {head_dim}"
    );
    assert_eq!(
        (table.half, 2 * half),
        (half, rope_dim),
        "the table is for another width"
    );
    assert_eq!(positions.len(), tokens, "one position a token");
    let limit = table.max_positions();
    if let Some(position) = positions.iter().find(|&&p| p as usize >= limit) {
        panic!("position {position}, but the rope table ends at {limit} positions");
    }
    let x = SharedMut::new(x.data);
    let sign = if inverse { -1.0 } else { 1.0 };
    cpu.pool.run_chunks(tokens, rows_per_item(cols), |rows| {
        for t in rows {
            // SAFETY: one thread has row t.
            let x = unsafe { x.slice(t * stride..t * stride + cols) };
            let angles = positions[t] as usize * half..(positions[t] as usize + 1) * half;
            let (cos, sin) = (&table.cos[angles.clone()], &table.sin[angles]);
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

    /// The definition, as a product of complex numbers in f64.
    fn oracle(
        x: &[f32],
        head_dim: usize,
        dim: usize,
        position: u32,
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
                let (a, b) = (head[first], head[second]);
                head[first] = a * angle.cos() - b * angle.sin();
                head[second] = b * angle.cos() + a * angle.sin();
            }
        }
        y
    }

    #[test]
    fn rotates_the_last_elements_of_each_head_and_back() {
        for (head_dim, dim, heads) in [
            (2, 2, 1),
            (16, 16, 3),
            (24, 6, 2),
            (40, 34, 2),
            (192, 64, 1),
        ] {
            for interleaved in [false, true] {
                let (tokens, cols, stride) = (4, head_dim * heads, head_dim * heads + 3);
                let table = RopeTable::new(THETA, dim, 2000);
                let positions = [0, 1, 7, 1999];
                let before = normals(1, tokens * stride);
                let mut x = before.clone();
                let at = |x: &mut [f32], inverse| {
                    let x = view_mut(x, tokens, cols, stride);
                    rope(
                        &cpu(),
                        x,
                        head_dim,
                        dim,
                        &positions,
                        &table,
                        interleaved,
                        inverse,
                    );
                };
                at(&mut x, false);
                for t in 0..tokens {
                    let row = t * stride..t * stride + cols;
                    let want = oracle(
                        &before[row.clone()],
                        head_dim,
                        dim,
                        positions[t],
                        interleaved,
                    );
                    assert_close("rope", &x[row.clone()], &want, 3e-7);
                    assert_eq!(
                        x[row.end..(t + 1) * stride],
                        before[row.end..(t + 1) * stride]
                    );
                }
                // A rotation is orthogonal: its transpose, the backward, is its inverse.
                at(&mut x, true);
                assert_close("rope and back", &x, &wide(&before), 5e-7);
            }
        }
    }

    #[test]
    fn the_angle_between_two_tokens_depends_on_their_distance_alone() {
        let (dim, table) = (32, RopeTable::new(THETA, 32, 600));
        for interleaved in [false, true] {
            let product = |p: u32, q: u32| -> f64 {
                let mut x = normals(3, 2 * dim);
                let x_view = MatMut::new(&mut x, dim);
                rope(
                    &cpu(),
                    x_view,
                    dim,
                    dim,
                    &[p, q],
                    &table,
                    interleaved,
                    false,
                );
                (0..dim)
                    .map(|i| f64::from(x[i]) * f64::from(x[dim + i]))
                    .sum()
            };
            assert!((product(5, 2) - product(503, 500)).abs() < 1e-4);
            assert!((product(5, 2) - product(5, 4)).abs() > 1e-2);
        }
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        let (tokens, heads, head_dim, dim) = (300, 3, 50, 34);
        let table = RopeTable::new(THETA, dim, tokens);
        let positions: Vec<u32> = (0..tokens as u32).rev().collect();
        for interleaved in [false, true] {
            same_everywhere("rope", |cpu| {
                let mut x = normals(2, tokens * heads * head_dim);
                let view = MatMut::new(&mut x, heads * head_dim);
                rope(
                    cpu,
                    view,
                    head_dim,
                    dim,
                    &positions,
                    &table,
                    interleaved,
                    false,
                );
                vec![x]
            });
        }
    }

    #[test]
    #[should_panic(expected = "position 8, but the rope table ends at 8 positions")]
    fn a_position_beyond_the_table_is_named() {
        let table = RopeTable::new(THETA, 2, 8);
        rope(
            &cpu(),
            MatMut::new(&mut [0.0; 4], 2),
            2,
            2,
            &[7, 8],
            &table,
            true,
            false,
        );
    }
}

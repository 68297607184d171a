//! Tokens to their experts and back: rows sorted by expert, and sums over a token's experts.

use super::rows_per_item;
use crate::pool::SharedMut;
use crate::simd::{dot, for_vectors, simd_fn};
use crate::{Cpu, Mat, MatMut};

/// Sorts the (token, choice) pairs by expert, then token, then choice.
///
/// `expert_ids`: [tokens, top_k]. Written: `offsets`, [experts + 1], the rows of expert e being
/// `offsets[e]..offsets[e + 1]`; `token_of`, [tokens * top_k], the token of each row; `slot_of`,
/// [tokens, top_k], the row of each pair.
///
/// # Panics
/// If an id is beyond the experts.
pub(crate) fn plan(
    _cpu: &Cpu,
    expert_ids: &[u32],
    top_k: usize,
    experts: usize,
    offsets: &mut [u32],
    token_of: &mut [u32],
    slot_of: &mut [u32],
) {
    assert!(
        top_k > 0 && expert_ids.len().is_multiple_of(top_k),
        "expert_ids in rows of {top_k}"
    );
    assert_eq!(offsets.len(), experts + 1, "length of offsets");
    assert_eq!(token_of.len(), expert_ids.len(), "length of token_of");
    assert_eq!(slot_of.len(), expert_ids.len(), "length of slot_of");
    offsets.fill(0);
    for &e in expert_ids {
        assert!((e as usize) < experts, "expert {e} of {experts}");
        offsets[e as usize + 1] += 1;
    }
    for e in 0..experts {
        offsets[e + 1] += offsets[e];
    }
    for (i, &e) in expert_ids.iter().enumerate() {
        let next = &mut offsets[e as usize];
        token_of[*next as usize] = (i / top_k) as u32;
        slot_of[i] = *next;
        *next += 1;
    }
    // Each offset has moved to where the next expert begins.
    offsets.copy_within(..experts, 1);
    offsets[0] = 0;
}

/// y[row] = x[token_of[row]]. `x`: [tokens, d]; `y`: [rows, d].
pub(crate) fn gather_rows(cpu: &Cpu, x: Mat, token_of: &[u32], y: MatMut) {
    x.check();
    y.check();
    let (d, stride) = (x.cols, y.stride);
    assert_eq!((y.rows, y.cols), (token_of.len(), d), "shape of y");
    let y = SharedMut::new(y.data);
    cpu.pool
        .run_chunks(token_of.len(), rows_per_item(d), |rows| {
            for i in rows {
                // SAFETY: one thread has row i.
                let y = unsafe { y.slice(i * stride..i * stride + d) };
                y.copy_from_slice(x.row(token_of[i] as usize));
            }
        });
}

/// out[t] += sum over j of expert_weights[t, j] * y[slot_of[t, j]], choice after choice.
///
/// `y`: [tokens * top_k, d]; `slot_of`, `expert_weights`: [tokens, top_k]; `out`: [tokens, d].
pub(crate) fn combine(
    cpu: &Cpu,
    y: Mat,
    slot_of: &[u32],
    expert_weights: &[f32],
    top_k: usize,
    out: MatMut,
) {
    assert_eq!(
        expert_weights.len(),
        slot_of.len(),
        "length of expert_weights"
    );
    sum_slots(cpu, y, slot_of, top_k, out, |t, slots, sum| {
        let weights = &expert_weights[t * top_k..(t + 1) * top_k];
        add_weighted_rows(cpu.isa, y, slots, weights, sum);
    });
}

/// dx[t] += sum over j of dy[slot_of[t, j]], choice after choice: the backward of
/// [`gather_rows`]. `dy`: [tokens * top_k, d]; `slot_of`: [tokens, top_k]; `dx`: [tokens, d].
pub(crate) fn scatter_add(cpu: &Cpu, dy: Mat, slot_of: &[u32], top_k: usize, dx: MatMut) {
    sum_slots(cpu, dy, slot_of, top_k, dx, |_, slots, sum| {
        add_rows(cpu.isa, dy, slots, sum)
    });
}

/// Calls `add(t, slots of t, row t of out)` for every token.
fn sum_slots(
    cpu: &Cpu,
    y: Mat,
    slot_of: &[u32],
    top_k: usize,
    out: MatMut,
    add: impl Fn(usize, &[u32], &mut [f32]) + Sync,
) {
    y.check();
    out.check();
    let (tokens, d, stride) = (out.rows, out.cols, out.stride);
    assert_eq!(y.cols, d, "columns");
    assert_eq!(slot_of.len(), tokens * top_k, "length of slot_of");
    assert!(
        slot_of.iter().all(|&slot| (slot as usize) < y.rows),
        "a slot beyond {} rows",
        y.rows
    );
    let out = SharedMut::new(out.data);
    cpu.pool
        .run_chunks(tokens, rows_per_item(top_k * d), |rows| {
            for t in rows {
                // SAFETY: one thread has row t.
                let out = unsafe { out.slice(t * stride..t * stride + d) };
                add(t, &slot_of[t * top_k..(t + 1) * top_k], out);
            }
        });
}

simd_fn! {
    fn add_weighted_rows<S>(y: Mat, slots: &[u32], weights: &[f32], sum: &mut [f32]) {
        let (n, y, stride, sum) = (sum.len(), y.data.as_ptr(), y.stride, sum.as_mut_ptr());
        for_vectors!(c, m in n, {
            let mut acc = S::load_first(sum.add(c), m);
            for (&slot, &weight) in slots.iter().zip(weights) {
                let row = y.add(slot as usize * stride + c);
                acc = S::fma(S::splat(weight), S::load_first(row, m), acc);
            }
            S::store_first(sum.add(c), m, acc);
        });
    }
}

simd_fn! {
    fn add_rows<S>(y: Mat, slots: &[u32], sum: &mut [f32]) {
        let (n, y, stride, sum) = (sum.len(), y.data.as_ptr(), y.stride, sum.as_mut_ptr());
        for_vectors!(c, m in n, {
            let mut acc = S::load_first(sum.add(c), m);
            for &slot in slots {
                acc = S::add(acc, S::load_first(y.add(slot as usize * stride + c), m));
            }
            S::store_first(sum.add(c), m, acc);
        });
    }
}

/// Gradients of [`combine`], written: dy[slot] = weight * dout[t], and the weight's own is
/// dout[t] . y[slot].
///
/// `dout`: [tokens, d]; `y`, `dy`: [tokens * top_k, d]; `slot_of`, `expert_weights`,
/// `dexpert_weights`: [tokens, top_k].
///
/// # Panics
/// If two pairs share a slot: each row of `dy` has one writer.
pub(crate) fn combine_backward(
    cpu: &Cpu,
    dout: Mat,
    y: Mat,
    slot_of: &[u32],
    expert_weights: &[f32],
    top_k: usize,
    dy: MatMut,
    dexpert_weights: &mut [f32],
) {
    dout.check();
    y.check();
    dy.check();
    let (tokens, d, stride) = (dout.rows, dout.cols, dy.stride);
    assert_eq!(slot_of.len(), tokens * top_k, "length of slot_of");
    assert_eq!((y.rows, y.cols), (slot_of.len(), d), "shape of y");
    assert_eq!((dy.rows, dy.cols), (slot_of.len(), d), "shape of dy");
    assert_eq!(
        expert_weights.len(),
        slot_of.len(),
        "length of expert_weights"
    );
    assert_eq!(
        dexpert_weights.len(),
        slot_of.len(),
        "length of dexpert_weights"
    );
    assert_permutation(slot_of);
    let (dy, dweights) = (SharedMut::new(dy.data), SharedMut::new(dexpert_weights));
    cpu.pool
        .run_chunks(tokens, rows_per_item(top_k * d), |rows| {
            for i in rows.start * top_k..rows.end * top_k {
                let slot = slot_of[i] as usize;
                // SAFETY: one thread has pair i, and no other pair has its slot.
                let (dy, dweight) = unsafe {
                    (
                        dy.slice(slot * stride..slot * stride + d),
                        dweights.slice(i..i + 1),
                    )
                };
                let dout = dout.row(i / top_k);
                dweight[0] = slot_gradient(cpu.isa, dout, y.row(slot), expert_weights[i], dy);
            }
        });
}

/// Threads write the rows that the slots name, so a slot named twice would be a data race.
fn assert_permutation(slot_of: &[u32]) {
    let mut seen = vec![false; slot_of.len()];
    for &slot in slot_of {
        assert!(
            !std::mem::replace(&mut seen[slot as usize], true),
            "slot {slot} is used twice"
        );
    }
}

simd_fn! {
    fn slot_gradient<S>(dout: &[f32], y: &[f32], weight: f32, dy: &mut [f32]) -> f32 {
        let (n, dout, dy) = (dout.len(), dout.as_ptr(), dy.as_mut_ptr());
        let weight = S::splat(weight);
        for_vectors!(c, m in n, {
            S::store_first(dy.add(c), m, S::mul(weight, S::load_first(dout.add(c), m)));
        });
        dot::<S>(dout, y.as_ptr(), n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::{Chance, Purpose};

    struct Plan {
        ids: Vec<u32>,
        offsets: Vec<u32>,
        token_of: Vec<u32>,
        slot_of: Vec<u32>,
    }

    /// `top_k` distinct experts for every token.
    fn random_plan(seed: u64, tokens: usize, top_k: usize, experts: usize) -> Plan {
        let mut draw = Chance::new(seed, Purpose::Problem).draws(1);
        let mut ids = Vec::new();
        for _ in 0..tokens {
            let mut left: Vec<u32> = (0..experts as u32).collect();
            ids.extend((0..top_k).map(|_| left.remove(draw(left.len() as u64) as usize)));
        }
        let (mut offsets, mut token_of) = (vec![7; experts + 1], vec![7; ids.len()]);
        let mut slot_of = vec![7; ids.len()];
        plan(
            &cpu(),
            &ids,
            top_k,
            experts,
            &mut offsets,
            &mut token_of,
            &mut slot_of,
        );
        Plan {
            ids,
            offsets,
            token_of,
            slot_of,
        }
    }

    #[test]
    fn the_plan_is_a_stable_sort_by_expert() {
        for (tokens, top_k, experts) in [(0, 1, 1), (1, 1, 1), (9, 2, 5), (40, 6, 17), (3, 1, 64)] {
            let plan = random_plan(3, tokens, top_k, experts);
            let mut order: Vec<usize> = (0..plan.ids.len()).collect();
            order.sort_by_key(|&i| plan.ids[i]);
            for (row, &i) in order.iter().enumerate() {
                assert_eq!(plan.token_of[row] as usize, i / top_k);
                assert_eq!(plan.slot_of[i] as usize, row);
            }
            for e in 0..=experts {
                let below = plan.ids.iter().filter(|&&id| (id as usize) < e).count();
                assert_eq!(plan.offsets[e] as usize, below);
            }
        }
    }

    /// Everything that the expert layer does with its rows, on views of stride d + 3.
    fn run(cpu: &Cpu, tokens: usize, top_k: usize, d: usize) -> Vec<Vec<f32>> {
        let (plan, rows, stride) = (random_plan(1, tokens, top_k, 9), tokens * top_k, d + 3);
        let (x, y) = (normals(1, tokens * stride), normals(2, rows * stride));
        let (weights, dout) = (normals(3, rows), normals(4, tokens * stride));
        let (x, y) = (view(&x, tokens, d, stride), view(&y, rows, d, stride));
        let mut gathered = vec![0.0; rows * stride];
        gather_rows(
            cpu,
            x,
            &plan.token_of,
            view_mut(&mut gathered, rows, d, stride),
        );
        let mut out = normals(5, tokens * stride);
        let out_view = view_mut(&mut out, tokens, d, stride);
        combine(cpu, y, &plan.slot_of, &weights, top_k, out_view);
        let (mut dy, mut dweights) = (vec![0.0; rows * stride], vec![0.0; rows]);
        let (dout, dy_view) = (
            view(&dout, tokens, d, stride),
            view_mut(&mut dy, rows, d, stride),
        );
        combine_backward(
            cpu,
            dout,
            y,
            &plan.slot_of,
            &weights,
            top_k,
            dy_view,
            &mut dweights,
        );
        let mut dx = normals(6, tokens * stride);
        scatter_add(
            cpu,
            y,
            &plan.slot_of,
            top_k,
            view_mut(&mut dx, tokens, d, stride),
        );
        vec![gathered, out, dy, dweights, dx]
    }

    const WIDTHS: [usize; 6] = [1, 7, 16, 17, 33, 192];

    fn combine_oracle(y: &[f64], weights: &[f64], plan: &Plan, tokens: usize) -> Vec<f64> {
        let (top_k, d) = (weights.len() / tokens, y.len() / weights.len());
        let mut out = vec![0.0; tokens * d];
        for (i, &slot) in plan.slot_of.iter().enumerate() {
            for c in 0..d {
                out[i / top_k * d + c] += weights[i] * y[slot as usize * d + c];
            }
        }
        out
    }

    #[test]
    fn gather_combine_and_scatter_agree_with_the_oracle() {
        for d in WIDTHS {
            let (tokens, top_k, stride) = (10, 3, d + 3);
            let (plan, rows) = (random_plan(1, tokens, top_k, 9), tokens * top_k);
            let got = run(&cpu(), tokens, top_k, d);
            let x = normals(1, tokens * stride);
            for (row, &token) in plan.token_of.iter().enumerate() {
                let (from, to) = (token as usize * stride, row * stride);
                assert_eq!(got[0][to..to + d], x[from..from + d]);
            }
            let y = wide(&dense(view(&normals(2, rows * stride), rows, d, stride)));
            let after = |before: u64, weights: &[f64]| -> Vec<f64> {
                let before = dense(view(&normals(before, tokens * stride), tokens, d, stride));
                let sums = combine_oracle(&y, weights, &plan, tokens);
                wide(&before).iter().zip(sums).map(|(b, s)| b + s).collect()
            };
            let out = dense(view(&got[1], tokens, d, stride));
            assert_close("out", &out, &after(5, &wide(&normals(3, rows))), 1e-6);
            let dx = dense(view(&got[4], tokens, d, stride));
            assert_close("dx", &dx, &after(6, &vec![1.0; rows]), 1e-6);
        }
    }

    #[test]
    fn combine_backward_agrees_with_finite_differences() {
        for d in [1, 7, 17, 33] {
            let (tokens, top_k, stride) = (4, 2, d + 3);
            let (plan, rows) = (random_plan(1, tokens, top_k, 9), tokens * top_k);
            let got = run(&cpu(), tokens, top_k, d);
            let y = wide(&dense(view(&normals(2, rows * stride), rows, d, stride)));
            let weights = wide(&normals(3, rows));
            let dout = wide(&dense(view(
                &normals(4, tokens * stride),
                tokens,
                d,
                stride,
            )));
            let loss = |y: &[f64], weights: &[f64]| -> f64 {
                let out = combine_oracle(y, weights, &plan, tokens);
                out.iter().zip(&dout).map(|(out, d)| out * d).sum()
            };
            let dy = numeric_gradient(&y, |y| loss(y, &weights));
            assert_close("dy", &dense(view(&got[2], rows, d, stride)), &dy, 1e-6);
            let dweights = numeric_gradient(&weights, |w| loss(&y, w));
            assert_close("dexpert_weights", &got[3], &dweights, 2e-6);
        }
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        for (tokens, top_k, d) in [(0, 2, 5), (1, 1, 17), (150, 4, 100)] {
            same_everywhere("experts", |cpu| run(cpu, tokens, top_k, d));
        }
    }

    /// The experts' rows move with the batch, but a token's sum is over its own choices in order.
    #[test]
    fn a_token_alone_is_that_token_of_the_batch() {
        let (tokens, top_k, d) = (12, 3, 33);
        let (plan, y) = (
            random_plan(1, tokens, top_k, 9),
            normals(2, tokens * top_k * d),
        );
        let weights = normals(3, tokens * top_k);
        let mut batch = vec![0.0; tokens * d];
        let out = MatMut::new(&mut batch, d);
        combine(&cpu(), Mat::new(&y, d), &plan.slot_of, &weights, top_k, out);
        for t in 0..tokens {
            let own = t * top_k..(t + 1) * top_k;
            let rows: Vec<f32> = plan.slot_of[own.clone()]
                .iter()
                .flat_map(|&slot| y[slot as usize * d..(slot as usize + 1) * d].to_vec())
                .collect();
            let mut alone = vec![0.0; d];
            let out = MatMut::new(&mut alone, d);
            combine(
                &cpu(),
                Mat::new(&rows, d),
                &[0, 1, 2],
                &weights[own],
                top_k,
                out,
            );
            assert_eq!(alone, batch[t * d..(t + 1) * d]);
        }
    }

    #[test]
    #[should_panic(expected = "slot 1 is used twice")]
    fn a_slot_used_twice_is_refused() {
        let (x, mut dy) = ([1.0; 2], [0.0; 2]);
        let (x, dy) = (Mat::new(&x, 1), MatMut::new(&mut dy, 1));
        combine_backward(&cpu(), x, x, &[1, 1], &[1.0; 2], 1, dy, &mut [0.0; 2]);
    }
}

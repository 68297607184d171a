//! Which experts a token visits, and what that costs the balance: DeepSeek-V3 (arXiv 2412.19437),
//! section 2.1.2, and `DeepseekV3TopkRouter` of Hugging Face.

use super::rows_per_item;
use crate::pool::SharedMut;
use crate::simd::{dot, for_vectors, sigmoid, simd_fn};
use crate::{Cpu, Mat};

/// Keeps the division by a sum of scores finite, as Hugging Face's code does.
const TINY: f32 = 1e-20;

/// Chooses `top_k` experts for each token.
///
/// `logits`: [tokens, experts]; `bias` (`e_score_correction_bias`): [experts]. Written: `scores` =
/// sigmoid(logits), [tokens, experts]; `expert_ids`, [tokens, top_k], those of greatest score +
/// bias, greatest first, the lower index first among equals; `expert_weights`, [tokens, top_k],
/// their scores without bias, divided by their sum if `norm_topk_prob`, times `scale`
/// (`routed_scaling_factor`). NaN counts as the least.
pub(crate) fn router(
    cpu: &Cpu,
    logits: Mat,
    bias: &[f32],
    top_k: usize,
    norm_topk_prob: bool,
    scale: f32,
    scores: &mut [f32],
    expert_ids: &mut [u32],
    expert_weights: &mut [f32],
) {
    logits.check();
    let (tokens, experts) = (logits.rows, logits.cols);
    assert!(
        0 < top_k && top_k <= experts,
        "{top_k} of {experts} experts"
    );
    assert_eq!(bias.len(), experts, "length of bias");
    assert_eq!(scores.len(), tokens * experts, "length of scores");
    assert_eq!(expert_ids.len(), tokens * top_k, "length of expert_ids");
    assert_eq!(
        expert_weights.len(),
        tokens * top_k,
        "length of expert_weights"
    );
    let (scores, ids) = (SharedMut::new(scores), SharedMut::new(expert_ids));
    let weights = SharedMut::new(expert_weights);
    cpu.pool.run_chunks(tokens, rows_per_item(experts), |rows| {
        for t in rows {
            let (all, chosen) = (t * experts..(t + 1) * experts, t * top_k..(t + 1) * top_k);
            // SAFETY: one thread has token t.
            let (scores, ids, weights) = unsafe {
                (
                    scores.slice(all),
                    ids.slice(chosen.clone()),
                    weights.slice(chosen),
                )
            };
            score_row(cpu.isa, logits.row(t), scores);
            choose(scores, bias, ids);
            weigh(scores, ids, norm_topk_prob, scale, weights);
        }
    });
}

simd_fn! {
    fn score_row<S>(logits: &[f32], scores: &mut [f32]) {
        let (n, logits, scores) = (logits.len(), logits.as_ptr(), scores.as_mut_ptr());
        for_vectors!(c, m in n, {
            S::store_first(scores.add(c), m, sigmoid::<S>(S::load_first(logits.add(c), m)));
        });
    }
}

/// Fills `ids` with the experts of greatest score + bias: a list kept sorted, into which few
/// experts are ever inserted.
fn choose(scores: &[f32], bias: &[f32], ids: &mut [u32]) {
    let key = |e: usize| {
        let key = scores[e] + bias[e];
        if key.is_nan() { f32::NEG_INFINITY } else { key }
    };
    let k = ids.len();
    let mut least = f32::NEG_INFINITY;
    for e in 0..scores.len() {
        let own = key(e);
        if e >= k && own <= least {
            continue;
        }
        // Equal keys stay behind: the lower index was there first.
        let mut place = e.min(k - 1);
        while place > 0 && own > key(ids[place - 1] as usize) {
            ids[place] = ids[place - 1];
            place -= 1;
        }
        ids[place] = e as u32;
        if e + 1 >= k {
            least = key(ids[k - 1] as usize);
        }
    }
}

fn weigh(scores: &[f32], ids: &[u32], normalise: bool, scale: f32, weights: &mut [f32]) {
    let sum = chosen_sum(scores, ids, normalise);
    for (weight, &e) in weights.iter_mut().zip(ids) {
        *weight = scores[e as usize] / sum * scale;
    }
}

/// What the chosen scores are divided by.
fn chosen_sum(scores: &[f32], ids: &[u32], normalise: bool) -> f32 {
    if normalise {
        ids.iter().fold(0.0, |sum, &e| sum + scores[e as usize]) + TINY
    } else {
        1.0
    }
}

/// Gradient of [`router`] with respect to the logits, written; the choice itself has none.
///
/// `scores`, `expert_ids` as the forward wrote them; `dexpert_weights`: [tokens, top_k];
/// `dscores_extra`: [tokens, experts], a gradient that reaches the scores by another way (the
/// balance loss); `dlogits`: [tokens, experts].
pub(crate) fn router_backward(
    cpu: &Cpu,
    scores: &[f32],
    expert_ids: &[u32],
    dexpert_weights: &[f32],
    top_k: usize,
    norm_topk_prob: bool,
    scale: f32,
    dscores_extra: Option<&[f32]>,
    dlogits: &mut [f32],
) {
    let (tokens, experts) = shape(scores, expert_ids, top_k);
    assert_eq!(
        dexpert_weights.len(),
        expert_ids.len(),
        "length of dexpert_weights"
    );
    assert_eq!(dlogits.len(), scores.len(), "length of dlogits");
    assert!(
        dscores_extra.is_none_or(|d| d.len() == scores.len()),
        "length of dscores_extra"
    );
    let dlogits = SharedMut::new(dlogits);
    cpu.pool.run_chunks(tokens, rows_per_item(experts), |rows| {
        for t in rows {
            let (all, chosen) = (t * experts..(t + 1) * experts, t * top_k..(t + 1) * top_k);
            // SAFETY: one thread has token t.
            let d = unsafe { dlogits.slice(all.clone()) };
            match dscores_extra {
                Some(extra) => d.copy_from_slice(&extra[all.clone()]),
                None => d.fill(0.0),
            }
            let scores = &scores[all];
            let (ids, dweights) = (&expert_ids[chosen.clone()], &dexpert_weights[chosen]);
            score_gradient(scores, ids, dweights, norm_topk_prob, scale, d);
            through_sigmoid(cpu.isa, scores, d);
        }
    });
}

/// Tokens and experts of the buffers, which must agree.
fn shape(scores: &[f32], expert_ids: &[u32], top_k: usize) -> (usize, usize) {
    assert!(
        top_k > 0 && expert_ids.len().is_multiple_of(top_k),
        "expert_ids in rows of {top_k}"
    );
    let tokens = expert_ids.len() / top_k;
    assert!(
        scores.len().is_multiple_of(tokens.max(1)),
        "scores of {tokens} tokens"
    );
    (tokens, scores.len() / tokens.max(1))
}

/// d[e] += dL/dscore of every chosen expert. With w = scale * s / sum, and dL/dw given:
/// ds = scale / sum * (dw - mean of dw over the chosen, weighted by s / sum).
fn score_gradient(
    scores: &[f32],
    ids: &[u32],
    dweights: &[f32],
    normalise: bool,
    scale: f32,
    d: &mut [f32],
) {
    let sum = chosen_sum(scores, ids, normalise);
    let mut mean = 0.0;
    if normalise {
        for (&e, &dw) in ids.iter().zip(dweights) {
            mean += dw * (scores[e as usize] / sum);
        }
    }
    for (&e, &dw) in ids.iter().zip(dweights) {
        d[e as usize] += scale / sum * (dw - mean);
    }
}

simd_fn! {
    fn through_sigmoid<S>(scores: &[f32], d: &mut [f32]) {
        let (n, scores, d) = (scores.len(), scores.as_ptr(), d.as_mut_ptr());
        for_vectors!(c, m in n, {
            let s = S::load_first(scores.add(c), m);
            let slope = S::mul(s, S::sub(S::splat(1.0), s));
            S::store_first(d.add(c), m, S::mul(S::load_first(d.add(c), m), slope));
        });
    }
}

/// The sequence-wise balance loss (equations 17 to 20) and its gradient.
///
/// Of each sequence `cu_seqlens[i]..cu_seqlens[i + 1]` of T tokens: f_e = experts / (top_k * T) *
/// how often e was chosen, P_e = mean over its tokens of score_e / (sum of the token's scores), and
/// alpha * sum over e of f_e * P_e; the result is the mean over the sequences that have tokens.
/// f counts the choice actually made (with bias), and is a constant to the gradient.
/// `dscores`: [tokens, experts], written.
pub(crate) fn balance_loss(
    cpu: &Cpu,
    scores: &[f32],
    expert_ids: &[u32],
    top_k: usize,
    experts: usize,
    cu_seqlens: &[u32],
    alpha: f32,
    dscores: &mut [f32],
) -> f32 {
    let tokens = check_sequences(cu_seqlens);
    assert_eq!(scores.len(), tokens * experts, "length of scores");
    assert_eq!(expert_ids.len(), tokens * top_k, "length of expert_ids");
    assert_eq!(dscores.len(), scores.len(), "length of dscores");
    assert!(
        expert_ids.iter().all(|&e| (e as usize) < experts),
        "an expert beyond {experts}"
    );
    let sequences = cu_seqlens.windows(2).filter(|w| w[0] < w[1]).count();
    let mut losses = vec![0.0f64; cu_seqlens.len() - 1];
    let chunk = rows_per_item(scores.len() / sequences.max(1));
    let (dscores, shared) = (SharedMut::new(dscores), SharedMut::new(&mut losses));
    cpu.pool.run_chunks(cu_seqlens.len() - 1, chunk, |range| {
        for i in range {
            let (start, end) = (cu_seqlens[i] as usize, cu_seqlens[i + 1] as usize);
            let (rows, chosen) = (start * experts..end * experts, start * top_k..end * top_k);
            // SAFETY: one thread has sequence i.
            let (loss, d) = unsafe { (shared.slice(i..i + 1), dscores.slice(rows.clone())) };
            let weight = alpha / sequences as f32;
            loss[0] = sequence_loss(cpu, &scores[rows], &expert_ids[chosen], experts, weight, d);
        }
    });
    (f64::from(alpha) * losses.iter().sum::<f64>() / sequences.max(1) as f64) as f32
}

fn check_sequences(cu_seqlens: &[u32]) -> usize {
    assert_eq!(cu_seqlens.first(), Some(&0), "cu_seqlens begins with 0");
    assert!(cu_seqlens.is_sorted(), "cu_seqlens must not fall");
    cu_seqlens[cu_seqlens.len() - 1] as usize
}

/// Sum of f_e * P_e over one sequence; `dscores` is its gradient times `weight`.
fn sequence_loss(
    cpu: &Cpu,
    scores: &[f32],
    expert_ids: &[u32],
    experts: usize,
    weight: f32,
    dscores: &mut [f32],
) -> f64 {
    let tokens = scores.len() / experts;
    let mut frequency = vec![0.0f32; experts];
    for &e in expert_ids {
        frequency[e as usize] += 1.0;
    }
    let each = experts as f32 / expert_ids.len() as f32;
    frequency.iter_mut().for_each(|f| *f *= each);
    let rows = scores
        .chunks_exact(experts)
        .zip(dscores.chunks_exact_mut(experts));
    let weight = weight / tokens as f32;
    let sum: f64 = rows
        .map(|(s, d)| f64::from(balance_row(cpu.isa, s, &frequency, weight, d)))
        .sum();
    sum / tokens.max(1) as f64
}

simd_fn! {
    /// q = sum of f * s / sum of s, and d = weight * (f - q) / sum of s.
    fn balance_row<S>(scores: &[f32], frequency: &[f32], weight: f32, d: &mut [f32]) -> f32 {
        let (n, f) = (scores.len(), frequency.as_ptr());
        let mut total = S::splat(0.0);
        for_vectors!(c, m in n, {
            total = S::add(total, S::load_first(scores.as_ptr().add(c), m));
        });
        let total = S::sum(total) + TINY;
        let q = dot::<S>(scores.as_ptr(), f, n) / total;
        let (pull, each) = (S::splat(q), S::splat(weight / total));
        for_vectors!(c, m in n, {
            let gradient = S::mul(S::sub(S::load_first(f.add(c), m), pull), each);
            S::store_first(d.as_mut_ptr().add(c), m, gradient);
        });
        q
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    type Routes = (Vec<f32>, Vec<u32>, Vec<f32>);

    fn route(cpu: &Cpu, logits: Mat, bias: &[f32], k: usize, norm: bool, scale: f32) -> Routes {
        let tokens = logits.rows;
        let mut scores = vec![0.0; tokens * logits.cols];
        let (mut ids, mut weights) = (vec![0; tokens * k], vec![0.0; tokens * k]);
        router(
            cpu,
            logits,
            bias,
            k,
            norm,
            scale,
            &mut scores,
            &mut ids,
            &mut weights,
        );
        (scores, ids, weights)
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// A token's weights, for a choice that is given.
    fn weights_oracle(logits: &[f64], ids: &[u32], norm: bool, scale: f64) -> Vec<f64> {
        let chosen: Vec<f64> = ids.iter().map(|&e| sigmoid(logits[e as usize])).collect();
        let sum = if norm { chosen.iter().sum() } else { 1.0 };
        chosen.iter().map(|s| scale * s / sum).collect()
    }

    const SHAPES: [(usize, usize); 6] = [(1, 1), (7, 3), (16, 16), (17, 6), (33, 8), (64, 1)];

    #[test]
    fn chooses_as_a_full_sort_does_and_weighs_as_the_oracle_does() {
        for (experts, k) in SHAPES {
            let (tokens, stride) = (20, experts + 2);
            let (logits, bias) = (normals(1, tokens * stride), normals(2, experts));
            for norm in [false, true] {
                let logits = view(&logits, tokens, experts, stride);
                let (scores, ids, weights) = route(&cpu(), logits, &bias, k, norm, 2.5);
                let want: Vec<f64> = wide(&dense(logits)).iter().map(|&x| sigmoid(x)).collect();
                assert_close("scores", &scores, &want, 3e-7);
                for t in 0..tokens {
                    let key = |e: usize| scores[t * experts + e] + bias[e];
                    let mut order: Vec<usize> = (0..experts).collect();
                    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
                    let ids = &ids[t * k..(t + 1) * k];
                    assert!(ids.iter().zip(&order).all(|(&e, &want)| e as usize == want));
                    let want = weights_oracle(&wide(logits.row(t)), ids, norm, 2.5);
                    assert_close("weights", &weights[t * k..(t + 1) * k], &want, 1e-6);
                }
            }
        }
    }

    #[test]
    fn the_bias_chooses_but_does_not_weigh() {
        let logits = Mat::new(&[0.0, 1.0, 2.0], 3);
        let (scores, ids, weights) = route(&cpu(), logits, &[5.0, 0.0, 0.0], 2, true, 1.0);
        assert_eq!(ids, [0, 2]);
        let sum = scores[0] + scores[2];
        assert!((weights[0] - scores[0] / sum).abs() < 1e-7 && weights[0] < weights[1]);
    }

    #[test]
    fn equals_go_to_the_lower_index() {
        let logits = Mat::new(&[1.0, 3.0, 1.0, 3.0, 1.0, 1.0], 6);
        assert_eq!(
            route(&cpu(), logits, &[0.0; 6], 4, true, 1.0).1,
            [1, 3, 0, 2]
        );
    }

    #[test]
    fn nan_and_infinity_choose_distinct_experts_within_range() {
        let (nan, infinite) = (f32::NAN, f32::INFINITY);
        let rows = [
            nan, nan, nan, nan, infinite, nan, -infinite, 0.0, -infinite, -1e9, nan, nan,
        ];
        for bias in [[0.0; 4], [nan; 4], [nan, 1.0, -infinite, nan]] {
            let (_, ids, _) = route(&cpu(), Mat::new(&rows, 4), &bias, 3, true, 1.0);
            for ids in ids.chunks(3) {
                assert!(ids.iter().all(|&e| e < 4), "{ids:?}");
                assert!(
                    ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2],
                    "{ids:?}"
                );
            }
        }
        let bias = [nan, 0.0, nan, 0.0];
        assert_eq!(
            route(&cpu(), Mat::new(&[0.0; 4], 4), &bias, 3, true, 1.0).1,
            [1, 3, 0]
        );
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        for (experts, k) in SHAPES {
            let tokens = 3;
            let (logits, bias) = (normals(1, tokens * experts), normals(2, experts));
            let (dweights, extra) = (normals(3, tokens * k), normals(4, tokens * experts));
            for (norm, extra) in [(false, None), (true, None), (true, Some(&extra[..]))] {
                let view = Mat::new(&logits, experts);
                let (scores, ids, _) = route(&cpu(), view, &bias, k, norm, 2.5);
                let mut d = vec![9.0; tokens * experts];
                router_backward(
                    &cpu(),
                    &scores,
                    &ids,
                    &dweights,
                    k,
                    norm,
                    2.5,
                    extra,
                    &mut d,
                );
                // The choice is held: it has no gradient.
                let want = numeric_gradient(&wide(&logits), |logits| {
                    let rows = logits.chunks(experts).zip(ids.chunks(k));
                    let weights = rows.flat_map(|(row, ids)| weights_oracle(row, ids, norm, 2.5));
                    let by_weights: f64 =
                        weights.zip(&dweights).map(|(w, &d)| w * f64::from(d)).sum();
                    let by_scores: f64 = extra.map_or(0.0, |extra| {
                        logits
                            .iter()
                            .zip(extra)
                            .map(|(&x, &d)| sigmoid(x) * f64::from(d))
                            .sum()
                    });
                    by_weights + by_scores
                });
                assert_close("dlogits", &d, &want, 2e-6);
            }
        }
    }

    /// Equations 17 to 20 as they stand.
    fn balance_oracle(s: &[f64], ids: &[u32], k: usize, experts: usize, ends: &[u32]) -> f64 {
        let mut losses = Vec::new();
        for ends in ends.windows(2).filter(|w| w[0] < w[1]) {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            let length = (end - start) as f64;
            let mut loss = 0.0;
            for e in 0..experts {
                let chosen = ids[start * k..end * k]
                    .iter()
                    .filter(|&&id| id as usize == e)
                    .count();
                let f = experts as f64 / (k as f64 * length) * chosen as f64;
                let share = |t: usize| {
                    let row = &s[t * experts..(t + 1) * experts];
                    row[e] / row.iter().sum::<f64>()
                };
                loss += f * (start..end).map(share).sum::<f64>() / length;
            }
            losses.push(0.3 * loss);
        }
        losses.iter().sum::<f64>() / losses.len() as f64
    }

    #[test]
    fn balance_loss_and_gradient_agree_with_the_equations() {
        for (experts, k) in SHAPES {
            let (tokens, ends) = (13, [0, 1, 6, 6, 13]);
            let (logits, bias) = (normals(1, tokens * experts), normals(2, experts));
            let (scores, ids, _) = route(&cpu(), Mat::new(&logits, experts), &bias, k, true, 1.0);
            let mut d = vec![9.0; tokens * experts];
            let loss = balance_loss(&cpu(), &scores, &ids, k, experts, &ends, 0.3, &mut d);
            let oracle = |s: &[f64]| balance_oracle(s, &ids, k, experts, &ends);
            assert_close("loss", &[loss], &[oracle(&wide(&scores))], 1e-6);
            assert_close(
                "dscores",
                &d,
                &numeric_gradient(&wide(&scores), oracle),
                1e-6,
            );
        }
    }

    /// Where every expert is chosen equally often, the loss is alpha, whatever the sizes.

    #[test]
    fn every_processor_gives_the_same_bits_and_a_row_alone_too() {
        let run = |cpu: &Cpu, tokens: usize| {
            let (experts, k) = (70, 6);
            let (logits, bias) = (normals(1, tokens * experts), normals(2, experts));
            let (scores, ids, weights) =
                route(cpu, Mat::new(&logits, experts), &bias, k, true, 2.5);
            let end = tokens as u32;
            let (mut extra, mut d) = (vec![0.0; scores.len()], vec![0.0; scores.len()]);
            let ends = [0, end / 3, end / 2, end];
            let loss = balance_loss(cpu, &scores, &ids, k, experts, &ends, 0.1, &mut extra);
            router_backward(
                cpu,
                &scores,
                &ids,
                &weights,
                k,
                true,
                2.5,
                Some(&extra),
                &mut d,
            );
            let extra_free = {
                let mut d = vec![0.0; scores.len()];
                router_backward(cpu, &scores, &ids, &weights, k, true, 2.5, None, &mut d);
                d
            };
            let ids = ids.iter().map(|&e| e as f32).collect();
            vec![scores, ids, weights, extra_free, d, extra, vec![loss]]
        };
        let batch = same_everywhere("router", |cpu| run(cpu, 600));
        let row = same_everywhere("router", |cpu| run(cpu, 1));
        for (batch, row) in batch.iter().zip(&row).take(4) {
            assert_eq!(batch[..row.len()], row[..]);
        }
    }

    #[test]
    fn a_balanced_choice_costs_alpha() {
        let mut d = [0.0; 16];
        let ids = [0, 1, 2, 3, 0, 1, 2, 3];
        let even = balance_loss(&cpu(), &[0.5; 16], &ids, 2, 4, &[0, 4], 0.25, &mut d);
        assert!((even - 0.25).abs() < 1e-7, "{even}");
        let empty = balance_loss(&cpu(), &[], &[], 2, 4, &[0], 0.25, &mut []);
        assert_eq!(empty, 0.0);
    }
}

//! Which experts a token visits, and what that costs the balance: DeepSeek-V3 (arXiv 2412.19437),
//! section 2.1.2, DeepSeek-V2 (arXiv 2405.04434), section 2.1.2, and `Gate` of DeepSeek's own
//! inference code.

use super::{head, rows_per_item};
use crate::pool::SharedMut;
use crate::simd::{dot, for_vectors, sigmoid, simd_fn};
use crate::{Cpu, Mat, MatMut};

/// Keeps the division by a sum of scores finite, as Hugging Face's code does.
const TINY: f32 = 1e-20;

/// How the router turns logits into experts and weights.
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    /// `n_routed_experts`.
    pub experts: usize,
    /// `num_experts_per_tok`.
    pub top_k: usize,
    /// `scoring_func`.
    pub scoring: Scoring,
    /// `None`: every expert may be chosen.
    pub groups: Option<ExpertGroups>,
    /// Whether the chosen scores are divided by their sum.
    pub norm_topk_prob: bool,
    /// The factor on every weight (`routed_scaling_factor` where the model applies it).
    pub scale: f32,
}

/// How a logit becomes a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Each expert by itself (DeepSeek-V3).
    Sigmoid,
    /// Over all experts (DeepSeek-V2, Qwen3-MoE).
    Softmax,
}

/// Group-limited choice: of `count` groups of neighbouring experts, `kept` may be chosen from.
#[derive(Clone, Copy, Debug)]
pub struct ExpertGroups {
    /// `n_group`.
    pub count: usize,
    /// `topk_group`.
    pub kept: usize,
    pub score: GroupScore,
}

/// What a group is judged by, of its experts' score + bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// `group_limited_greedy` (DeepSeek-V2).
    Greatest,
    /// `noaux_tc` (DeepSeek-V3).
    SumOfTwoGreatest,
}

impl Routing {
    fn check(&self) {
        let (experts, top_k) = (self.experts, self.top_k);
        assert!(
            0 < top_k && top_k <= experts,
            "{top_k} of {experts} experts"
        );
        let Some(groups) = self.groups else { return };
        let (count, kept) = (groups.count, groups.kept);
        assert!(
            count > 0 && experts.is_multiple_of(count),
            "{experts} experts in {count} groups"
        );
        let size = experts / count;
        assert!(0 < kept && kept <= count, "{kept} of {count} groups");
        assert!(
            kept * size >= top_k,
            "{top_k} experts out of {kept} groups of {size}"
        );
        assert!(
            groups.score == GroupScore::Greatest || size > 1,
            "two greatest scores in groups of one expert"
        );
    }
}

/// Chooses `top_k` experts for each token.
///
/// `logits`: [tokens, experts]; `bias` (`e_score_correction_bias`): [experts], or empty for none.
/// Written: `scores`, [tokens, experts]; `expert_ids`, [tokens, top_k], those of greatest
/// score + bias within the kept groups, greatest first, the lower index first among equals;
/// `expert_weights`, [tokens, top_k], their scores without bias, divided by their sum if
/// `norm_topk_prob`, times `scale`. NaN counts as the least.
///
/// # Panics
/// If the sizes do not agree, or the groups kept hold fewer than `top_k` experts.
pub(crate) fn router(
    cpu: &Cpu,
    logits: Mat,
    bias: &[f32],
    routing: &Routing,
    scores: &mut [f32],
    expert_ids: &mut [u32],
    expert_weights: &mut [f32],
) {
    logits.check();
    routing.check();
    let (tokens, experts, top_k) = (logits.rows, routing.experts, routing.top_k);
    assert_eq!(logits.cols, experts, "one logit an expert");
    assert!(
        bias.is_empty() || bias.len() == experts,
        "{} biases of {experts} experts",
        bias.len()
    );
    assert_eq!(scores.len(), tokens * experts, "length of scores");
    assert_eq!(expert_ids.len(), tokens * top_k, "length of expert_ids");
    assert_eq!(
        expert_weights.len(),
        tokens * top_k,
        "length of expert_weights"
    );
    score(cpu, logits, routing.scoring, scores);
    let scores = &*scores;
    let (ids, weights) = (SharedMut::new(expert_ids), SharedMut::new(expert_weights));
    cpu.pool.run_chunks(tokens, rows_per_item(experts), |rows| {
        let mut chooser = Chooser::new(routing);
        for t in rows {
            let chosen = t * top_k..(t + 1) * top_k;
            // SAFETY: one thread has token t.
            let (ids, weights) = unsafe { (ids.slice(chosen.clone()), weights.slice(chosen)) };
            let scores = &scores[t * experts..(t + 1) * experts];
            chooser.choose(scores, bias, ids);
            weigh(scores, ids, routing, weights);
        }
    });
}

fn score(cpu: &Cpu, logits: Mat, scoring: Scoring, scores: &mut [f32]) {
    let (tokens, experts) = (logits.rows, logits.cols);
    if scoring == Scoring::Softmax {
        for (t, scores) in scores.chunks_exact_mut(experts).enumerate() {
            scores.copy_from_slice(logits.row(t));
        }
        return head::softmax(cpu, MatMut::new(scores, experts), 1.0);
    }
    let scores = SharedMut::new(scores);
    cpu.pool.run_chunks(tokens, rows_per_item(experts), |rows| {
        for t in rows {
            // SAFETY: one thread has token t.
            let scores = unsafe { scores.slice(t * experts..(t + 1) * experts) };
            sigmoid_row(cpu.isa, logits.row(t), scores);
        }
    });
}

simd_fn! {
    fn sigmoid_row<S>(logits: &[f32], scores: &mut [f32]) {
        let (n, logits, scores) = (logits.len(), logits.as_ptr(), scores.as_mut_ptr());
        for_vectors!(c, m in n, {
            S::store_first(scores.add(c), m, sigmoid::<S>(S::load_first(logits.add(c), m)));
        });
    }
}

/// Room that the choices of many tokens share.
struct Chooser {
    groups: Option<ExpertGroups>,
    /// score + bias of each expert.
    keys: Vec<f32>,
    group_scores: Vec<f32>,
    kept_groups: Vec<u32>,
}

impl Chooser {
    fn new(routing: &Routing) -> Chooser {
        let groups = routing.groups.filter(|groups| groups.kept < groups.count);
        let (count, kept) = groups.map_or((0, 0), |groups| (groups.count, groups.kept));
        Chooser {
            groups,
            keys: vec![0.0; routing.experts],
            group_scores: vec![0.0; count],
            kept_groups: vec![0; kept],
        }
    }

    /// Fills `ids` with one token's experts.
    fn choose(&mut self, scores: &[f32], bias: &[f32], ids: &mut [u32]) {
        for (e, (key, &score)) in self.keys.iter_mut().zip(scores).enumerate() {
            *key = least_if_nan(score + bias.get(e).unwrap_or(&0.0));
        }
        if let Some(groups) = self.groups {
            self.close_groups(groups);
        }
        greatest(&self.keys, ids);
    }

    /// Makes the keys of all but the kept groups NaN. Zero, as in Hugging Face's code, would not
    /// close them: a bias can make every key of the kept groups negative.
    fn close_groups(&mut self, groups: ExpertGroups) {
        let size = self.keys.len() / groups.count;
        for (score, keys) in self.group_scores.iter_mut().zip(self.keys.chunks(size)) {
            *score = group_score(keys, groups.score);
        }
        greatest(&self.group_scores, &mut self.kept_groups);
        for (g, keys) in self.keys.chunks_mut(size).enumerate() {
            if !self.kept_groups.contains(&(g as u32)) {
                keys.fill(f32::NAN);
            }
        }
    }
}

fn least_if_nan(key: f32) -> f32 {
    if key.is_nan() { f32::NEG_INFINITY } else { key }
}

fn group_score(keys: &[f32], score: GroupScore) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &key in keys {
        if key > first {
            (first, second) = (key, first);
        } else if key > second {
            second = key;
        }
    }
    match score {
        GroupScore::Greatest => first,
        GroupScore::SumOfTwoGreatest => least_if_nan(first + second),
    }
}

/// Fills `ids` with the indices of the greatest keys, of which NaN are passed over: a list kept
/// sorted, into which few are ever inserted. At least as many keys as `ids` are not NaN.
fn greatest(keys: &[f32], ids: &mut [u32]) {
    let last = ids.len() - 1;
    let mut seen = 0;
    for (i, &own) in keys.iter().enumerate() {
        if own.is_nan() || (seen > last && own <= keys[ids[last] as usize]) {
            continue;
        }
        // Equal keys stay behind: the lower index was there first.
        let mut place = seen.min(last);
        while place > 0 && own > keys[ids[place - 1] as usize] {
            ids[place] = ids[place - 1];
            place -= 1;
        }
        ids[place] = i as u32;
        seen += 1;
    }
}

fn weigh(scores: &[f32], ids: &[u32], routing: &Routing, weights: &mut [f32]) {
    let sum = chosen_sum(scores, ids, routing);
    for (weight, &e) in weights.iter_mut().zip(ids) {
        *weight = scores[e as usize] / sum * routing.scale;
    }
}

/// What the chosen scores are divided by.
fn chosen_sum(scores: &[f32], ids: &[u32], routing: &Routing) -> f32 {
    if routing.norm_topk_prob {
        ids.iter().fold(0.0, |sum, &e| sum + scores[e as usize]) + TINY
    } else {
        1.0
    }
}

/// Gradient of [`router`] with respect to the logits, written; the choice itself has none.
///
/// `scores`, `expert_ids` as the forward wrote them; `dexpert_weights`: [tokens, top_k];
/// `dscores`: [tokens, experts], a gradient that reaches the scores by another way (the balance
/// loss); `dlogits`: [tokens, experts].
pub(crate) fn router_backward(
    cpu: &Cpu,
    scores: &[f32],
    expert_ids: &[u32],
    dexpert_weights: &[f32],
    routing: &Routing,
    dscores: &[f32],
    dlogits: &mut [f32],
) {
    routing.check();
    let (experts, top_k) = (routing.experts, routing.top_k);
    let tokens = expert_ids.len() / top_k;
    assert_eq!(expert_ids.len(), tokens * top_k, "length of expert_ids");
    assert_eq!(scores.len(), tokens * experts, "length of scores");
    assert_eq!(
        dexpert_weights.len(),
        expert_ids.len(),
        "length of dexpert_weights"
    );
    assert_eq!(dscores.len(), scores.len(), "length of dscores");
    assert_eq!(dlogits.len(), scores.len(), "length of dlogits");
    let dlogits = SharedMut::new(dlogits);
    cpu.pool.run_chunks(tokens, rows_per_item(experts), |rows| {
        for t in rows {
            let (all, chosen) = (t * experts..(t + 1) * experts, t * top_k..(t + 1) * top_k);
            // SAFETY: one thread has token t.
            let d = unsafe { dlogits.slice(all.clone()) };
            d.copy_from_slice(&dscores[all.clone()]);
            let scores = &scores[all];
            let (ids, dweights) = (&expert_ids[chosen.clone()], &dexpert_weights[chosen]);
            score_gradient(scores, ids, dweights, routing, d);
            match routing.scoring {
                Scoring::Sigmoid => through_sigmoid(cpu.isa, scores, d),
                Scoring::Softmax => through_softmax(cpu.isa, scores, d),
            }
        }
    });
}

/// d[e] += dL/dscore of every chosen expert. With w = scale * s / sum, and dL/dw given:
/// ds = scale / sum * (dw - mean of dw over the chosen, weighted by s / sum).
fn score_gradient(scores: &[f32], ids: &[u32], dweights: &[f32], routing: &Routing, d: &mut [f32]) {
    let sum = chosen_sum(scores, ids, routing);
    let mut mean = 0.0;
    if routing.norm_topk_prob {
        for (&e, &dw) in ids.iter().zip(dweights) {
            mean += dw * (scores[e as usize] / sum);
        }
    }
    for (&e, &dw) in ids.iter().zip(dweights) {
        d[e as usize] += routing.scale / sum * (dw - mean);
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

simd_fn! {
    /// d = s * (d - sum of s * d).
    fn through_softmax<S>(scores: &[f32], d: &mut [f32]) {
        let (n, scores, d) = (scores.len(), scores.as_ptr(), d.as_mut_ptr());
        let mean = S::splat(dot::<S>(scores, d, n));
        for_vectors!(c, m in n, {
            let pull = S::sub(S::load_first(d.add(c), m), mean);
            S::store_first(d.add(c), m, S::mul(S::load_first(scores.add(c), m), pull));
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
    routing: &Routing,
    cu_seqlens: &[u32],
    alpha: f32,
    dscores: &mut [f32],
) -> f32 {
    let (top_k, experts) = (routing.top_k, routing.experts);
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
mod tests;

use super::super::testing::*;
use super::*;

type Routes = (Vec<f32>, Vec<u32>, Vec<f32>);

const SHAPES: [(usize, usize); 6] = [(1, 1), (7, 3), (16, 16), (17, 6), (33, 8), (64, 1)];
const SCORINGS: [Scoring; 2] = [Scoring::Sigmoid, Scoring::Softmax];
const GROUP_SCORES: [GroupScore; 2] = [GroupScore::Greatest, GroupScore::SumOfTwoGreatest];

fn routing(experts: usize, top_k: usize, scoring: Scoring, norm_topk_prob: bool) -> Routing {
    Routing {
        experts,
        top_k,
        scoring,
        groups: None,
        norm_topk_prob,
        scale: 2.5,
    }
}

/// As [`routing`] by normalised sigmoids, from `kept` of `count` groups.
fn grouped(experts: usize, top_k: usize, count: usize, kept: usize, score: GroupScore) -> Routing {
    Routing {
        groups: Some(ExpertGroups { count, kept, score }),
        ..routing(experts, top_k, Scoring::Sigmoid, true)
    }
}

fn route(cpu: &Cpu, logits: Mat, bias: &[f32], routing: &Routing) -> Routes {
    let (tokens, k) = (logits.rows, routing.top_k);
    let mut scores = vec![0.0; tokens * logits.cols];
    let (mut ids, mut weights) = (vec![0; tokens * k], vec![0.0; tokens * k]);
    router(
        cpu,
        logits,
        bias,
        routing,
        &mut scores,
        &mut ids,
        &mut weights,
    );
    (scores, ids, weights)
}

/// A token's scores by their definition.
fn scores_oracle(logits: &[f64], scoring: Scoring) -> Vec<f64> {
    match scoring {
        Scoring::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scoring::Softmax => {
            let sum: f64 = logits.iter().map(|x| x.exp()).sum();
            logits.iter().map(|x| x.exp() / sum).collect()
        }
    }
}

/// A token's weights, for a choice that is given.
fn weights_oracle(logits: &[f64], ids: &[u32], routing: &Routing) -> Vec<f64> {
    let scores = scores_oracle(logits, routing.scoring);
    let chosen: Vec<f64> = ids.iter().map(|&e| scores[e as usize]).collect();
    let norm = routing.norm_topk_prob;
    let sum = if norm { chosen.iter().sum() } else { 1.0 };
    let scale = f64::from(routing.scale);
    chosen.iter().map(|s| scale * s / sum).collect()
}

/// The choice by full sorts, `closed` being what stands for the keys of the groups not kept.
fn choice_oracle(keys: &[f32], routing: &Routing, closed: f32) -> Vec<u32> {
    let mut keys = keys.to_vec();
    if let Some(groups) = routing.groups {
        let size = keys.len() / groups.count;
        let value = |g: &usize| {
            let mut keys = keys[g * size..(g + 1) * size].to_vec();
            keys.sort_by(|a, b| b.total_cmp(a));
            match groups.score {
                GroupScore::Greatest => keys[0],
                GroupScore::SumOfTwoGreatest => keys[0] + keys[1],
            }
        };
        let mut order: Vec<usize> = (0..groups.count).collect();
        order.sort_by(|a, b| value(b).total_cmp(&value(a)));
        for &g in &order[groups.kept..] {
            keys[g * size..(g + 1) * size].fill(closed);
        }
    }
    let mut order: Vec<u32> = (0..keys.len() as u32).collect();
    order.sort_by(|&a, &b| keys[b as usize].total_cmp(&keys[a as usize]));
    order[..routing.top_k].to_vec()
}

fn add_bias(scores: &[f32], bias: &[f32]) -> Vec<f32> {
    scores.iter().zip(bias).map(|(s, b)| s + b).collect()
}

#[test]
fn chooses_as_a_full_sort_does_and_weighs_as_the_oracle_does() {
    for ((experts, k), scoring) in SHAPES.into_iter().flat_map(|s| SCORINGS.map(|f| (s, f))) {
        let (tokens, stride) = (20, experts + 2);
        let (logits, bias) = (normals(1, tokens * stride), normals(2, experts));
        let logits = view(&logits, tokens, experts, stride);
        for (norm, bias) in [(false, &bias), (true, &bias), (true, &vec![0.0; experts])] {
            let routing = routing(experts, k, scoring, norm);
            let (scores, ids, weights) = route(&cpu(), logits, bias, &routing);
            for t in 0..tokens {
                let row = wide(logits.row(t));
                let scores = &scores[t * experts..(t + 1) * experts];
                assert_close("scores", scores, &scores_oracle(&row, scoring), 3e-7);
                let ids = &ids[t * k..(t + 1) * k];
                let keys = add_bias(scores, bias);
                assert_eq!(ids, choice_oracle(&keys, &routing, f32::NEG_INFINITY));
                let want = weights_oracle(&row, ids, &routing);
                assert_close("weights", &weights[t * k..(t + 1) * k], &want, 1e-6);
            }
        }
    }
}

#[test]
fn no_bias_is_a_bias_of_zero() {
    let logits = normals(1, 40 * 12);
    for scoring in SCORINGS {
        let routing = routing(12, 3, scoring, false);
        let run = |bias: &[f32]| route(&cpu(), Mat::new(&logits, 12), bias, &routing);
        assert_eq!(run(&[]), run(&[0.0; 12]));
    }
}

#[test]
fn softmax_survives_logits_that_overflow_an_exponential() {
    let routing = routing(3, 2, Scoring::Softmax, false);
    let (scores, ids, weights) = route(&cpu(), Mat::new(&[-5e4, 200.0, 201.0], 3), &[], &routing);
    let small = 1.0 / (1.0 + 1f64.exp());
    assert_close("scores", &scores, &[0.0, small, 1.0 - small], 3e-7);
    assert_eq!(ids, [2, 1]);
    assert_close("weights", &weights, &[2.5 - 2.5 * small, 2.5 * small], 1e-6);
    let (scores, ids, _) = route(&cpu(), Mat::new(&[-3e4, -2e4, -3e4], 3), &[], &routing);
    assert_eq!((scores, ids), (vec![0.0, 1.0, 0.0], vec![1, 0]));
}

#[test]
fn the_bias_chooses_but_does_not_weigh() {
    let logits = Mat::new(&[0.0, 1.0, 2.0], 3);
    for scoring in SCORINGS {
        let routing = routing(3, 2, scoring, true);
        let (scores, ids, weights) = route(&cpu(), logits, &[5.0, 0.0, 0.0], &routing);
        assert_eq!(ids, [0, 2]);
        let want = 2.5 * scores[0] / (scores[0] + scores[2]);
        assert!((weights[0] - want).abs() < 1e-6 && weights[0] < weights[1]);
    }
}

#[test]
fn equals_go_to_the_lower_index() {
    let logits = Mat::new(&[1.0, 3.0, 1.0, 3.0, 1.0, 1.0], 6);
    for scoring in SCORINGS {
        let ids = route(&cpu(), logits, &[], &routing(6, 4, scoring, true)).1;
        assert_eq!(ids, [1, 3, 0, 2]);
    }
    // Groups 0 (1, 3) and 1 (1, 3) are equal, 2 (1, 1) is less.
    for score in GROUP_SCORES {
        let ids = route(&cpu(), logits, &[], &grouped(6, 2, 3, 1, score)).1;
        assert_eq!(ids, [1, 0]);
    }
}

#[test]
fn groups_are_judged_by_one_or_by_two_experts_and_closed_below_any_bias() {
    // Sigmoids of 0.95, 0.88 | 0.73, 0.98: the second group has the greatest, the first the sum.
    let logits = Mat::new(&[3.0, 2.0, 1.0, 4.0], 4);
    let run = |score, bias: &[f32]| route(&cpu(), logits, bias, &grouped(4, 2, 2, 1, score)).1;
    // With the bias every key is negative: closed groups at zero would be chosen first.
    for bias in [&[][..], &[-2.0; 4]] {
        assert_eq!(run(GroupScore::Greatest, bias), [3, 2]);
        assert_eq!(run(GroupScore::SumOfTwoGreatest, bias), [0, 1]);
    }
    // The bias counts in the judgement of groups.
    let bias = [0.0, 0.5, 0.0, 0.0];
    assert_eq!(run(GroupScore::Greatest, &bias), [1, 0]);
}

#[test]
fn groups_are_kept_as_full_sorts_keep_them() {
    let shapes = [
        (8, 4, 2, 3),
        (12, 3, 2, 8),
        (64, 8, 3, 6),
        (256, 8, 4, 8),
        (30, 5, 5, 7),
    ];
    for (experts, count, kept, k) in shapes {
        for (score, scoring) in GROUP_SCORES.into_iter().zip(SCORINGS.into_iter().rev()) {
            let tokens = 50;
            let routing = Routing {
                scoring,
                ..grouped(experts, k, count, kept, score)
            };
            let logits = normals(1, tokens * experts);
            let mut zero_would_differ = 0;
            for shift in [0.0, -4.0] {
                let bias: Vec<f32> = normals(2, experts).iter().map(|b| b + shift).collect();
                let (scores, ids, _) = route(&cpu(), Mat::new(&logits, experts), &bias, &routing);
                for (scores, ids) in scores.chunks(experts).zip(ids.chunks(k)) {
                    let keys = add_bias(scores, &bias);
                    assert_eq!(ids, choice_oracle(&keys, &routing, f32::NEG_INFINITY));
                    let by_zero = choice_oracle(&keys, &routing, 0.0);
                    zero_would_differ += usize::from(ids != by_zero);
                }
            }
            assert!(kept == count || zero_would_differ > 0, "too tame a bias");
        }
    }
}

fn assert_distinct(ids: &[u32], experts: usize) {
    for (i, e) in ids.iter().enumerate() {
        assert!((*e as usize) < experts && !ids[..i].contains(e), "{ids:?}");
    }
}

#[test]
fn nan_and_infinity_choose_distinct_experts_within_range() {
    let (nan, infinite) = (f32::NAN, f32::INFINITY);
    let rows = [
        nan, nan, nan, nan, infinite, nan, -infinite, 0.0, -infinite, -1e9, nan, nan, -infinite,
        -infinite, -infinite, -infinite, infinite, infinite, infinite, infinite,
    ];
    let logits = Mat::new(&rows, 4);
    for bias in [
        [0.0; 4],
        [nan; 4],
        [nan, 1.0, -infinite, nan],
        [infinite; 4],
    ] {
        for scoring in SCORINGS {
            let ids = route(&cpu(), logits, &bias, &routing(4, 3, scoring, true)).1;
            ids.chunks(3).for_each(|ids| assert_distinct(ids, 4));
            for score in GROUP_SCORES {
                let routing = Routing {
                    scoring,
                    ..grouped(4, 2, 2, 1, score)
                };
                for ids in route(&cpu(), logits, &bias, &routing).1.chunks(2) {
                    assert_distinct(ids, 4);
                    assert_eq!(ids[0] / 2, ids[1] / 2, "from a closed group");
                }
            }
        }
    }
    let bias = [nan, 0.0, nan, 0.0];
    let zeros = Mat::new(&[0.0; 4], 4);
    for scoring in SCORINGS {
        let ids = route(&cpu(), zeros, &bias, &routing(4, 3, scoring, true)).1;
        assert_eq!(ids, [1, 3, 0]);
    }
    // A NaN does not hide its group's other expert; a group of NaN alone is the least.
    let row = [nan, -3.0, nan, nan, -9.0, -9.0];
    let logits = Mat::new(&row, 6);
    let kept = |score, kept| route(&cpu(), logits, &[], &grouped(6, 2, 3, kept, score)).1;
    assert_eq!(kept(GroupScore::Greatest, 1), [1, 0]);
    assert_eq!(kept(GroupScore::Greatest, 2), [1, 4]);
    assert_eq!(kept(GroupScore::SumOfTwoGreatest, 1), [4, 5]);
    // Infinities that cancel make a group's sum NaN, and the group eligible all the same.
    let bias = [infinite, -infinite].repeat(3);
    let routing = grouped(6, 4, 3, 2, GroupScore::SumOfTwoGreatest);
    let ids = route(&cpu(), Mat::new(&[0.0; 6], 6), &bias, &routing).1;
    assert_eq!(ids, [0, 2, 1, 3]);
}

#[test]
#[should_panic(expected = "5 experts out of 2 groups of 2")]
fn groups_too_small_for_the_choice_are_refused() {
    let routing = grouped(8, 5, 4, 2, GroupScore::Greatest);
    route(&cpu(), Mat::new(&[0.0; 8], 8), &[], &routing);
}

#[test]
fn backward_agrees_with_finite_differences() {
    for ((experts, k), scoring) in SHAPES.into_iter().flat_map(|s| SCORINGS.map(|f| (s, f))) {
        let tokens = 3;
        let (logits, bias) = (normals(1, tokens * experts), normals(2, experts));
        let (dweights, extra) = (normals(3, tokens * k), normals(4, tokens * experts));
        let none = vec![0.0; tokens * experts];
        let cases = [
            (false, &none),
            (true, &none),
            (false, &extra),
            (true, &extra),
        ];
        for (norm, extra) in cases {
            let routing = routing(experts, k, scoring, norm);
            let (scores, ids, _) = route(&cpu(), Mat::new(&logits, experts), &bias, &routing);
            let mut d = vec![9.0; tokens * experts];
            router_backward(&cpu(), &scores, &ids, &dweights, &routing, extra, &mut d);
            // The choice is held: it has no gradient.
            let product = |x: &[f64], d: &[f32]| -> f64 {
                x.iter().zip(d).map(|(x, &d)| x * f64::from(d)).sum()
            };
            let want = numeric_gradient(&wide(&logits), |logits| {
                let rows = logits.chunks(experts).enumerate();
                rows.map(|(t, row)| {
                    let chosen = t * k..(t + 1) * k;
                    let weights = weights_oracle(row, &ids[chosen.clone()], &routing);
                    let extra = &extra[t * experts..(t + 1) * experts];
                    product(&weights, &dweights[chosen])
                        + product(&scores_oracle(row, scoring), extra)
                })
                .sum()
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
    for ((experts, k), scoring) in SHAPES.into_iter().flat_map(|s| SCORINGS.map(|f| (s, f))) {
        let (tokens, ends) = (13, [0, 1, 6, 6, 13]);
        let (logits, bias) = (normals(1, tokens * experts), normals(2, experts));
        let routing = routing(experts, k, scoring, true);
        let (scores, ids, weights) = route(&cpu(), Mat::new(&logits, experts), &bias, &routing);
        let mut d = vec![9.0; tokens * experts];
        let loss = balance_loss(&cpu(), &scores, &ids, &routing, &ends, 0.3, &mut d);
        let oracle = |s: &[f64]| balance_oracle(s, &ids, k, experts, &ends);
        assert_close("loss", &[loss], &[oracle(&wide(&scores))], 1e-6);
        let want = numeric_gradient(&wide(&scores), oracle);
        assert_close("dscores", &d, &want, 1e-6);
        // And on to the logits.
        let (none, mut dlogits) = (vec![0.0; weights.len()], vec![9.0; d.len()]);
        router_backward(&cpu(), &scores, &ids, &none, &routing, &d, &mut dlogits);
        let want = numeric_gradient(&wide(&logits), |logits| {
            let rows = logits.chunks(experts);
            let scores: Vec<f64> = rows.flat_map(|row| scores_oracle(row, scoring)).collect();
            oracle(&scores)
        });
        assert_close("dlogits", &dlogits, &want, 1e-6);
    }
}

#[test]
fn a_balanced_choice_costs_alpha() {
    let mut d = [0.0; 16];
    let ids = [0, 1, 2, 3, 0, 1, 2, 3];
    // Where every expert is chosen equally often, the loss is alpha, whatever the sizes.
    for (score, scoring) in [0.5, 0.25].into_iter().zip(SCORINGS) {
        let (routing, scores) = (routing(4, 2, scoring, true), [score; 16]);
        let even = balance_loss(&cpu(), &scores, &ids, &routing, &[0, 4], 0.25, &mut d);
        assert!((even - 0.25).abs() < 1e-7, "{even}");
        let empty = balance_loss(&cpu(), &[], &[], &routing, &[0], 0.25, &mut []);
        assert_eq!(empty, 0.0);
    }
}

#[test]
fn every_processor_gives_the_same_bits_and_a_row_alone_too() {
    let (experts, k) = (70, 6);
    let routings = [
        routing(experts, k, Scoring::Sigmoid, true),
        routing(experts, k, Scoring::Softmax, false),
        grouped(experts, k, 7, 3, GroupScore::SumOfTwoGreatest),
        Routing {
            scoring: Scoring::Softmax,
            ..grouped(experts, k, 7, 2, GroupScore::Greatest)
        },
    ];
    for routing in &routings {
        let run = |cpu: &Cpu, tokens: usize| {
            let (logits, bias) = (normals(1, tokens * experts), normals(2, experts));
            let (scores, ids, weights) = route(cpu, Mat::new(&logits, experts), &bias, routing);
            let end = tokens as u32;
            let (none, mut extra) = (vec![0.0; scores.len()], vec![0.0; scores.len()]);
            let ends = [0, end / 3, end / 2, end];
            let loss = balance_loss(cpu, &scores, &ids, routing, &ends, 0.1, &mut extra);
            let backward = |dscores: &[f32]| {
                let mut d = vec![0.0; scores.len()];
                router_backward(cpu, &scores, &ids, &weights, routing, dscores, &mut d);
                d
            };
            let (without, with) = (backward(&none), backward(&extra));
            let ids = ids.iter().map(|&e| e as f32).collect();
            vec![scores, ids, weights, without, with, extra, vec![loss]]
        };
        let batch = same_everywhere("router", |cpu| run(cpu, 600));
        let row = same_everywhere("router", |cpu| run(cpu, 1));
        for (batch, row) in batch.iter().zip(&row).take(4) {
            assert_eq!(batch[..row.len()], row[..]);
        }
    }
}

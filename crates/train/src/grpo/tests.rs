use super::*;
use crate::run_config::{AdvantageName, RunConfig};
use crate::testing::{backend, easy_setup};

fn grpo<'a>(setup: &'a Setup, backend: &dyn Backend) -> Grpo<'a> {
    Grpo::new(setup, setup.initial_model(backend).expect("model"), backend)
}

#[test]
fn rollout_and_training_agree_to_the_bit_and_the_reward_rises() {
    let setup = easy_setup(|config| {
        config.grpo.learning_rate = 3e-2;
        config.grpo.problems_per_step = 8;
        config.grpo.max_completion_tokens = 4;
    });
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    let metrics: Vec<GrpoMetrics> = (0..12)
        .map(|_| grpo.step(&backend).expect("step"))
        .collect();
    for m in &metrics {
        assert_eq!(m.max_abs_logp_diff, 0.0, "step {}", m.step);
        assert_eq!((m.kl, m.clip_region_mean), (0.0, 0.0));
        assert!(!m.skipped && m.grad_norm > 0.0);
        assert!(m.entropy > 0.0 && m.completion_tokens <= 8 * 4 * 4);
    }
    let reward = |range: std::ops::Range<usize>| {
        let n = range.len() as f64;
        metrics[range].iter().map(|m| m.reward).sum::<f64>() / n
    };
    let (before, after) = (reward(0..2), reward(10..12));
    assert!((before - 0.5).abs() < 0.2, "{before}");
    assert!(after > before + 0.25, "{before} {after}");
}

#[test]
fn the_step_is_the_policy_gradient_of_its_samples() {
    let setup = easy_setup(|_| ());
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    let (groups, rounds) = grpo.groups(&backend).expect("groups");
    assert_eq!((groups.len(), rounds), (3, 1));
    let batch = training_batch(
        &setup.config.grpo,
        &groups,
        !setup.config.grpo.drop_zero_variance,
    );
    // Written out by hand: minus the advantage over all tokens, token by token.
    let kept = groups.iter().filter(|group| group.advantages.is_some());
    let mut expected = Vec::new();
    for group in kept {
        let rewards: Vec<f64> = group.judged.iter().map(|j| j.reward.total).collect();
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        for (completion, reward) in group.completions.iter().zip(&rewards) {
            expected.extend(completion.token_ids.iter().map(|_| mean - reward));
        }
    }
    assert!(
        !expected.is_empty(),
        "no group had a difference; choose another seed"
    );
    let result = grpo.loss(&batch, &batch.rollout_logprobs, None);
    assert_eq!(result.dlogprobs.len(), expected.len());
    let tokens = expected.len() as f64;
    for (a, b) in result.dlogprobs.iter().zip(&expected) {
        assert!(
            (f64::from(*a) - b / tokens).abs() < 1e-7,
            "{a} {}",
            b / tokens
        );
    }
    let targets: usize = batch
        .pieces
        .iter()
        .map(|piece| piece.targets.rows.len())
        .sum();
    assert_eq!(targets, expected.len());
}

#[test]
fn sequence_normalisation_counts_completions_alike() {
    let change = |config: &mut RunConfig| {
        config.grpo.normalisation = Normalisation::Sequence;
        config.grpo.advantage = AdvantageName::Std;
        config.grpo.drop_zero_variance = false;
    };
    let setup = easy_setup(change);
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    let (groups, _) = grpo.groups(&backend).expect("groups");
    let batch = training_batch(
        &setup.config.grpo,
        &groups,
        !setup.config.grpo.drop_zero_variance,
    );
    let mut place = 0;
    for completion in groups.iter().flat_map(|group| &group.completions) {
        let end = place + completion.token_ids.len();
        let weight: f64 = batch.weights[place..end].iter().sum();
        assert!((weight - 1.0 / 12.0).abs() < 1e-12, "{weight}");
        place = end;
    }
    assert_eq!(place, batch.weights.len());
}

#[test]
fn groups_without_a_difference_are_replaced_as_often_as_allowed() {
    let setup = easy_setup(|config| {
        config.grpo.format_reward = 0.0;
        config.grpo.group_size = 2;
        config.grpo.problems_per_step = 8;
        config.grpo.refill_rounds = 2;
    });
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    let (groups, rounds) = grpo.groups(&backend).expect("groups");
    let kept = groups
        .iter()
        .filter(|group| group.advantages.is_some())
        .count();
    // Two coins agree half of the time: eight groups lose about four.
    assert!(
        groups.len() > 8 && kept <= 8 && (2..=3).contains(&rounds),
        "{kept} {rounds}"
    );
    assert_eq!(grpo.progress.cursor, groups.len() as u64);
    let metrics = Totals::of(&groups).metrics();
    let zero = groups.len() - kept;
    assert_eq!(
        metrics.frac_reward_zero_std,
        zero as f64 / groups.len() as f64
    );
    let batch = training_batch(
        &setup.config.grpo,
        &groups,
        !setup.config.grpo.drop_zero_variance,
    );
    let documents: usize = batch.pieces.iter().map(Piece::documents).sum();
    assert_eq!(documents, 2 * kept);
}

#[test]
fn a_step_that_teaches_nothing_changes_nothing() {
    let setup = easy_setup(|config| {
        config.grpo.max_completion_tokens = 1;
        // Every completion is given the same.
        config.grpo.format_reward = 0.0;
        config.grpo.group_size = 2;
        config.grpo.problems_per_step = 1;
        config.seed = 3;
    });
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    let mut quiet = 0;
    for _ in 0..12 {
        let before = grpo.model().params().to_vec();
        let metrics = grpo.step(&backend).expect("step");
        if metrics.groups_kept == 0 {
            quiet += 1;
            assert_eq!(grpo.model().params(), before);
            assert_eq!(
                (metrics.grad_norm, metrics.loss, metrics.skipped),
                (0.0, 0.0, false)
            );
            assert_eq!(metrics.max_abs_logp_diff, 0.0);
        }
    }
    assert!(
        quiet > 0,
        "every group had a difference; choose another seed"
    );
}

#[test]
fn a_divergence_from_the_start_is_measured_and_held_down() {
    let run = |kl_coef| {
        let setup = easy_setup(|config| {
            config.grpo.learning_rate = 3e-2;
            config.grpo.kl_coef = kl_coef;
            config.grpo.problems_per_step = 8;
            config.grpo.max_completion_tokens = 4;
        });
        let backend = backend();
        let mut grpo = grpo(&setup, &backend);
        let kl: Vec<f64> = (0..8)
            .map(|_| grpo.step(&backend).expect("step").kl)
            .collect();
        assert_eq!(
            kl[0], 0.0,
            "the first step samples from the reference itself"
        );
        assert!(kl[1..].iter().all(|&kl| kl > 0.0), "{kl:?}");
        kl[7]
    };
    let (free, held) = (run(1e-6), run(5.0));
    assert!(held < 0.5 * free, "{free} {held}");
}

#[test]
fn later_updates_on_a_batch_see_the_ratio() {
    let setup = easy_setup(|config| {
        config.grpo.learning_rate = 3e-2;
        config.grpo.updates_per_batch = 4;
        config.grpo.clip_eps_low = 0.01;
        config.grpo.clip_eps_high = 0.01;
    });
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    let metrics = grpo.step(&backend).expect("step");
    assert_eq!(grpo.optimizer().updates, 4);
    assert_eq!(metrics.max_abs_logp_diff, 0.0);
    assert!(
        metrics.clip_region_mean > 0.0,
        "after three large updates the ratio is off 1"
    );
}

#[test]
fn a_difference_that_is_not_a_number_is_infinite() {
    assert_eq!(largest_difference(&[1.0, 2.0], &[1.0, 2.5]), 0.5);
    assert_eq!(
        largest_difference(&[1.0, f32::NAN], &[1.0, 2.0]),
        f64::INFINITY
    );
}

#[test]
fn samples_show_what_was_trained_on_first() {
    let setup = easy_setup(|config| config.grpo.samples_per_step = 3);
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    grpo.step(&backend).expect("step");
    let samples = grpo.samples();
    assert_eq!(samples.len(), 3);
    assert_ne!(samples[0].advantage, 0.0);
    for sample in samples {
        assert!(sample.prompt.ends_with("<think>") && sample.length > 0);
        let expected = sample.accuracy + setup.config.grpo.format_reward * sample.format;
        assert_eq!(sample.reward, expected);
    }
}

#[test]
fn rollouts_are_compared_where_every_group_is_left_out() {
    let setup = easy_setup(|_| ());
    let backend = backend();
    let mut grpo = grpo(&setup, &backend);
    let mut groups = grpo.groups(&backend).expect("groups").0;
    for group in &mut groups {
        group.advantages = None;
    }
    assert!(
        training_batch(&setup.config.grpo, &groups, false)
            .pieces
            .is_empty()
    );
    assert_eq!(grpo.compare_rollout(&groups, &backend), 0.0);
    groups[1].completions[2].logprobs[0] -= 0.5;
    let difference = grpo.compare_rollout(&groups, &backend);
    assert!((difference - 0.5).abs() < 1e-5, "{difference}");
}

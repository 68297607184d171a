//! The demo's numbers: for the report, and as the one JSON object at its end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use train::{MixPart, RunConfig, StyleName};

use super::{Course, Results};
use crate::report::{Compute, Report, Series, Timing};

/// A chart of more points than this would show no more.
const CHART_POINTS: usize = 200;

/// What the same compute gives without reinforcement learning.
const CONTROL: &str = "The control, measured once for the settings of size small (LOG.md): the \
                       same operations spent on worked traces alone, without the mixture, reach \
                       77.8 % at T = 1 (95 %: 75.1 to 80.3) and 85.8 % greedy; the best such run \
                       seen reached 82.0 %. Reinforcement learning is to be judged beside that, \
                       not beside the cold start alone.";

/// The last line of `demo --json`. Accuracies are shares of `eval_problems`, one completion each:
/// at temperature 1 (pass@1), and greedy where the name says so.
#[derive(Serialize)]
pub struct Summary {
    task: String,
    seed: u64,
    base_accuracy: f64,
    sft_accuracy: f64,
    grpo_accuracy: f64,
    base_greedy_accuracy: f64,
    sft_greedy_accuracy: f64,
    grpo_greedy_accuracy: f64,
    /// 95 % intervals, [low, high], by the names above without `_accuracy`.
    ci95: BTreeMap<String, [f64; 2]>,
    eval_problems: usize,
    parameters_total: u64,
    parameters_active: u64,
    /// `sft_tokens + rollout_tokens`.
    train_tokens: u64,
    sft_tokens: u64,
    rollout_tokens: u64,
    train_flops: f64,
    max_abs_logp_diff: f64,
    checkpoint: String,
    report: String,
    weights_blake3: String,
    /// Wall time of the whole demo: all that the clock decides.
    seconds: f64,
}

impl Summary {
    pub fn new(
        report: &Report,
        results: &Results,
        (checkpoint, page): (PathBuf, PathBuf),
        seconds: f64,
    ) -> Summary {
        let [base, sft, grpo] = &results.stages;
        let mut ci95 = BTreeMap::new();
        for (name, stage) in [("base", base), ("sft", sft), ("grpo", grpo)] {
            ci95.insert(name.to_string(), stage.sampled.ci95);
            ci95.insert(format!("{name}_greedy"), stage.greedy.ci95);
        }
        let compute = &report.compute;
        Summary {
            task: report.task.clone(),
            seed: report.seed,
            base_accuracy: base.sampled.accuracy,
            sft_accuracy: sft.sampled.accuracy,
            grpo_accuracy: grpo.sampled.accuracy,
            base_greedy_accuracy: base.greedy.accuracy,
            sft_greedy_accuracy: sft.greedy.accuracy,
            grpo_greedy_accuracy: grpo.greedy.accuracy,
            ci95,
            eval_problems: base.sampled.problems,
            parameters_total: compute.parameters_total,
            parameters_active: compute.parameters_active,
            train_tokens: compute.sft_tokens + compute.rollout_tokens,
            sft_tokens: compute.sft_tokens,
            rollout_tokens: compute.rollout_tokens,
            train_flops: compute.train_flops,
            max_abs_logp_diff: report.max_abs_logp_diff,
            checkpoint: checkpoint.display().to_string(),
            report: page.display().to_string(),
            weights_blake3: report.weights_blake3.clone(),
            seconds,
        }
    }
}

pub fn report(
    course: &Course,
    results: &Results,
    command: String,
    weights_blake3: String,
) -> Report {
    let (setup, backend) = (course.setup, course.backend);
    let sft = results
        .sft
        .iter()
        .map(|metrics| [metrics.step as f64, metrics.loss]);
    let reward = results
        .grpo
        .iter()
        .map(|metrics| [metrics.step as f64, metrics.reward]);
    let accuracy = results
        .grpo
        .iter()
        .map(|metrics| [metrics.step as f64, metrics.accuracy_mean]);
    let length = results
        .grpo
        .iter()
        .map(|metrics| [metrics.step as f64, metrics.mean_length]);
    let differences = results.grpo.iter().map(|metrics| metrics.max_abs_logp_diff);
    Report {
        command,
        seed: setup.config.seed,
        task: setup.task.name(),
        stages: results.stages.clone(),
        sft_loss: thinned(sft.collect()),
        reward: thinned(reward.collect()),
        accuracy: thinned(accuracy.collect()),
        response_length: thinned(length.collect()),
        compute: compute(results),
        cold_start: cold_start(&setup.config),
        control: CONTROL.to_string(),
        max_abs_logp_diff: differences.fold(0.0, f64::max),
        weights_blake3,
        timing: Timing {
            machine: format!("{} threads, {}", backend.threads(), backend.isa()),
            stages: course.times.clone(),
            seconds: course.started.elapsed().as_secs_f64(),
        },
    }
}

/// Tokens and operations of training; evaluation is not counted.
///
/// A token costs `flops_per_token_forward` in a forward pass and three times that in a training
/// step. Its mean context is half the mean length of its sequence. Rollouts are one forward pass;
/// groups whose rewards are all equal are not trained on, and their share of the tokens is taken to
/// be their share of the groups.
fn compute(results: &Results) -> Compute {
    let config = &results.model.config;
    let sft_tokens = results.sft.last().map_or(0, |metrics| metrics.num_tokens);
    let rollout_tokens = results.grpo.last().map_or(0, |metrics| metrics.num_tokens);
    let (mut before, mut trained) = (0, 0.0);
    for metrics in &results.grpo {
        let generated = metrics.num_tokens.saturating_sub(before);
        before = metrics.num_tokens;
        trained += generated as f64 * (1.0 - metrics.frac_reward_zero_std);
    }
    let forward = |tokens: u64, documents: u64| {
        let mean_length = tokens as f64 / documents.max(1) as f64;
        config.flops_per_token_forward(0.5 * (mean_length + 1.0))
    };
    let sft_forward = forward(sft_tokens, results.sft_documents);
    let grpo_forward = forward(rollout_tokens, results.grpo_documents);
    let train_flops = 3.0 * sft_forward * sft_tokens as f64
        + grpo_forward * (rollout_tokens as f64 + 3.0 * trained);
    Compute {
        parameters_total: config.parameters_total(),
        parameters_active: config.parameters_active(),
        sft_tokens,
        rollout_tokens,
        trained_rollout_tokens: trained.round() as u64,
        train_flops,
    }
}

/// Means of equally many neighbours, few enough for a chart.
fn thinned(points: Series) -> Series {
    let together = points.len().div_ceil(CHART_POINTS).max(1);
    let mean = |points: &[[f64; 2]]| {
        let sum = points
            .iter()
            .fold([0.0, 0.0], |[x, y], point| [x + point[0], y + point[1]]);
        sum.map(|sum| sum / points.len() as f64)
    };
    points.chunks(together).map(mean).collect()
}

/// What the cold start was made of, phase by phase.
fn cold_start(config: &RunConfig) -> String {
    let sft = &config.sft;
    let mut borders: Vec<u64> = sft
        .mix
        .iter()
        .flat_map(|part| [part.from_step, part.until_step])
        .chain([0, sft.steps])
        .map(|step| step.min(sft.steps))
        .collect();
    borders.sort_unstable();
    borders.dedup();
    let phases: Vec<String> = borders
        .windows(2)
        .map(|pair| {
            format!(
                "steps {} to {}: {}",
                pair[0] + 1,
                pair[1],
                shares(&sft.mix, pair[0])
            )
        })
        .collect();
    format!(
        "The cold start was supervised training on traces made by a program, {} steps of {} \
         tokens. Its composition: {}. {}What reinforcement learning can add depends on it: it \
         makes likelier what the model already does sometimes.",
        sft.steps,
        sft.tokens_per_step,
        phases.join("; "),
        oversampling(&sft.attempt_weights)
    )
}

/// One sentence with a space after it, or nothing where problems are as they are drawn.
fn oversampling(attempt_weights: &[f64]) -> String {
    if attempt_weights.is_empty() {
        return String::new();
    }
    let weights: Vec<String> = attempt_weights.iter().map(f64::to_string).collect();
    format!(
        "Problems were not shown as often as they come: those whose worked search needs 1, 2, ... \
         attempts were weighted {}, the last weight holding for all beyond. ",
        weights.join(", ")
    )
}

fn shares(mix: &[MixPart], step: u64) -> String {
    let active = |part: &&MixPart| (part.from_step..part.until_step).contains(&step);
    let total: f64 = mix.iter().filter(active).map(|part| part.weight).sum();
    let parts: Vec<String> = mix
        .iter()
        .filter(active)
        .map(|part| {
            format!(
                "{:.0} % {}",
                100.0 * part.weight / total,
                in_words(part.style)
            )
        })
        .collect();
    match parts.is_empty() {
        true => format!("100 % {}", in_words(StyleName::Row)),
        false => parts.join(", "),
    }
}

fn in_words(style: StyleName) -> &'static str {
    match style {
        StyleName::Row => "worked search",
        StyleName::Blurt => "right answers at once, without working",
        StyleName::DepthFirst => "depth-first search with dead ends",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_curve_keeps_its_mean_and_is_short() {
        let points: Series = (0..1300)
            .map(|i| [f64::from(i), f64::from(i * 2)])
            .collect();
        let thin = thinned(points);
        assert!(thin.len() <= CHART_POINTS);
        assert_eq!(thin[0], [3.0, 6.0], "the mean of 0 to 6");
        assert_eq!(thinned(vec![[1.0, 5.0]]), [[1.0, 5.0]]);
        assert!(thinned(Vec::new()).is_empty());
    }

    #[test]
    fn the_cold_start_names_its_phases() {
        let mut config = RunConfig::default();
        config.sft.steps = 100;
        let part = |style, weight, from_step| MixPart {
            style,
            weight,
            from_step,
            until_step: 1_000,
        };
        config.sft.mix = vec![
            part(StyleName::Row, 0.4, 0),
            part(StyleName::Blurt, 0.6, 80),
        ];
        assert!(!cold_start(&config).contains("attempts"));
        config.sft.attempt_weights = vec![1.0, 2.5];
        let text = cold_start(&config);
        assert!(text.contains("attempts were weighted 1, 2.5, "), "{text}");
        assert!(
            text.contains("steps 1 to 80: 100 % worked search; "),
            "{text}"
        );
        assert!(
            text.contains("steps 81 to 100: 40 % worked search, 60 % right answers at once"),
            "{text}"
        );
    }
}

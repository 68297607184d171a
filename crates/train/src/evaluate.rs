//! Accuracy on held-out problems.

use kernels::Backend;
use model::Model;
use serde::Serialize;
use tasks::Problem;

use crate::error::Error;
use crate::rewards::Reward;
use crate::rollout::{Prompt, Rollout, Sampling};
use crate::samples::{Judged, Sample};
use crate::setup::Setup;

/// Evaluation's streams of chance, apart from those of rollouts.
const SEQUENCES: u64 = 1 << 63;

/// How a model did, one completion for each problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalResult {
    pub problems: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Share of right answers (pass@1).
    pub accuracy: f64,
    /// Wilson's 95 % interval of the accuracy.
    pub ci95: [f64; 2],
    /// Share of well-formed completions.
    pub well_formed: f64,
    /// Tokens of a completion.
    pub mean_length: f64,
    pub max_length: usize,
    /// Share of completions that were cut off.
    pub clipped_ratio: f64,
    /// Tokens of all prompts and completions.
    pub num_tokens: u64,
    /// The first few completions.
    pub transcripts: Vec<Sample>,
}

/// Completes each problem once and judges it. The same problems, seed, weights and temperature give
/// the same result. `progress` hears from the engine.
///
/// # Errors
/// [`Error::Config`] or [`Error::Engine`] if the prompts do not fit the model.
pub fn evaluate(
    setup: &Setup,
    model: &Model,
    backend: &dyn Backend,
    problems: &[Problem],
    temperature: f64,
    progress: &mut dyn FnMut(engine::Progress),
) -> Result<EvalResult, Error> {
    let prompt = |(index, problem): (usize, &Problem)| {
        let text = setup.task.prompt(problem);
        Ok(Prompt {
            sequence: SEQUENCES + index as u64,
            token_ids: setup.encode(&text, model.config.vocab_size)?,
        })
    };
    let prompts = problems
        .iter()
        .enumerate()
        .map(prompt)
        .collect::<Result<Vec<_>, Error>>()?;
    let prompt_tokens: usize = prompts.iter().map(|prompt| prompt.token_ids.len()).sum();
    let sampling = Sampling {
        temperature,
        max_tokens: setup.completion_limit(setup.config.eval.max_completion_tokens),
    };
    let completions =
        Rollout::default().generate(setup, model, backend, prompts, sampling, progress)?;
    let judged = problems
        .iter()
        .zip(&completions)
        .map(|(problem, completion)| judge(setup, problem, &completion.token_ids))
        .collect::<Result<Vec<_>, Error>>()?;
    let clipped = completions
        .iter()
        .filter(|c| c.finish_reason == engine::FinishReason::Length)
        .count();
    let mut result = summary(&judged, clipped, temperature);
    result.num_tokens += prompt_tokens as u64;
    let pairs = problems
        .iter()
        .zip(&judged)
        .take(setup.config.eval.transcripts);
    result.transcripts = pairs
        .map(|(problem, j)| j.sample(setup, problem, 0, 0.0))
        .collect();
    Ok(result)
}

/// Decodes and judges one completion, with the reward that GRPO would give.
pub(crate) fn judge(setup: &Setup, problem: &Problem, ids: &[u32]) -> Result<Judged, Error> {
    let text = setup.tokenizer.decode(ids, false)?;
    let verdict = setup.task.verify(problem, &text);
    Ok(Judged {
        reward: Reward::new(&verdict, setup.config.grpo.format_reward),
        text,
        verdict,
        length: ids.len(),
    })
}

fn summary(judged: &[Judged], clipped: usize, temperature: f64) -> EvalResult {
    let n = judged.len().max(1) as f64;
    let right = judged.iter().filter(|j| j.verdict.accurate).count();
    let well_formed = judged.iter().filter(|j| j.verdict.well_formed).count();
    let tokens: usize = judged.iter().map(|j| j.length).sum();
    EvalResult {
        problems: judged.len(),
        temperature,
        accuracy: right as f64 / n,
        ci95: wilson(right, judged.len()),
        well_formed: well_formed as f64 / n,
        mean_length: tokens as f64 / n,
        max_length: judged.iter().map(|j| j.length).max().unwrap_or(0),
        clipped_ratio: clipped as f64 / n,
        num_tokens: tokens as u64,
        transcripts: Vec::new(),
    }
}

/// The 95 % score interval of a share (Wilson 1927): the shares from which `right` of `n` is less
/// than 1.96 standard deviations away.
pub fn wilson(right: usize, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let z = 1.959_963_984_540_054_f64;
    let (share, n) = (right as f64 / n as f64, n as f64);
    let centre = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // The ends are exact where every or no answer is right; the formula would miss by rounding.
    let low = if right == 0 {
        0.0
    } else {
        (centre - half) / scale
    };
    let high = if share == 1.0 {
        1.0
    } else {
        (centre + half) / scale
    };
    [low, high]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::held_out_problems;
    use crate::testing::{backend, tiny_setup};

    /// The ends of the interval are the shares p with |share - p| = z sqrt(p (1 - p) / n).
    #[test]
    fn wilson_solves_its_equation() {
        for (right, n) in [(1, 10), (7, 10), (500, 1000), (736, 1000), (3, 4)] {
            let share = right as f64 / n as f64;
            let [low, high] = wilson(right, n);
            assert!(low < share && share < high);
            for p in [low, high] {
                let z = (share - p).abs() / (p * (1.0 - p) / n as f64).sqrt();
                assert!((z - 1.96).abs() < 1e-3, "{right} {n}: {z}");
            }
        }
        // Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
        let [low, high] = wilson(81, 263);
        assert!(
            (low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5,
            "{low} {high}"
        );
        assert_eq!(wilson(0, 20)[0], 0.0);
        assert_eq!(wilson(20, 20)[1], 1.0);
    }

    #[test]
    fn an_untrained_model_is_wrong_and_evaluation_repeats() {
        let setup = tiny_setup(|config| config.eval.transcripts = 3);
        let backend = backend();
        let model = setup.initial_model(&backend).expect("model");
        let problems = held_out_problems(setup.task.as_ref(), 1, 12);
        let run = |temperature| {
            evaluate(
                &setup,
                &model,
                &backend,
                &problems,
                temperature,
                &mut |_| (),
            )
            .expect("result")
        };
        let result = run(1.0);
        assert_eq!((result.problems, result.accuracy), (12, 0.0));
        assert_eq!(result.transcripts.len(), 3);
        assert!(result.max_length <= setup.task.max_completion_tokens());
        assert_eq!(result, run(1.0));
        assert_ne!(result.transcripts, run(0.0).transcripts);
    }
}

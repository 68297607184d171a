//! Problems and worked texts by number: example `i` of a seed is the same in every run.

use kernels::{Chance, Purpose};
use tasks::{Problem, Task, TraceStyle};

use crate::error::Error;
use crate::run_config::{MixPart, SftConfig};
use crate::setup::Setup;

/// Where the three uses of problems start in the streams of [`Purpose::Problem`], so that none
/// draws another's.
const SFT: u64 = 0;
const GRPO: u64 = 1 << 48;
const HELD_OUT: u64 = 2 << 48;

/// Redraws before a task and its mixture are taken to have no worked text at all.
const MOST_REDRAWS: usize = 10_000;

/// Enough to meet a text of the usual length, and made in a moment.
const EXAMPLES_LOOKED_AT: u64 = 32;

/// A prompt and what should follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Prompt, then completion.
    pub token_ids: Vec<u32>,
    pub prompt_len: usize,
}

/// Worked example `index`, of the mixture at `step`.
///
/// # Errors
/// [`Error::Config`] if the mixture's styles have no worked text for this task.
pub(crate) fn example(
    setup: &Setup,
    model: &model::Config,
    index: u64,
    step: u64,
) -> Result<Example, Error> {
    let seed = setup.config.seed;
    let sft = &setup.config.sft;
    let task = setup.task.as_ref();
    let mut problem_draw = Chance::new(seed, Purpose::Problem).draws(SFT + index);
    let mut trace_draw = Chance::new(seed, Purpose::Trace).draws(index);
    for _ in 0..MOST_REDRAWS {
        let problem = wanted_problem(task, &sft.attempt_weights, &mut problem_draw)?;
        let style = style(sft, step, &mut trace_draw);
        if let Some(trace) = task.trace(&problem, style, &mut trace_draw) {
            let mut token_ids = setup.encode(&task.prompt(&problem), model.vocab_size)?;
            let prompt_len = token_ids.len();
            token_ids.extend(setup.encode(&trace, model.vocab_size)?);
            check_length(token_ids.len(), model.max_position_embeddings)?;
            return Ok(Example {
                token_ids,
                prompt_len,
            });
        }
    }
    Err(Error::Config(format!(
        "sft.mix: {MOST_REDRAWS} problems of {} had no worked text of these styles; choose others",
        task.name()
    )))
}

/// The first worked texts of every part of the mixture, so that settings without any, or with texts
/// beyond the model's positions, are refused before a directory is made.
///
/// # Errors
/// [`Error::Config`] naming the setting.
pub(crate) fn check_examples(setup: &Setup, model: &model::Config) -> Result<(), Error> {
    let sft = &setup.config.sft;
    let starts = sft.mix.iter().map(|part| part.from_step);
    let starts = starts.chain([0]).filter(|&step| step < sft.steps);
    for step in starts.collect::<std::collections::BTreeSet<u64>>() {
        for index in 0..EXAMPLES_LOOKED_AT {
            example(setup, model, index, step)?;
        }
    }
    Ok(())
}

fn check_length(tokens: usize, max_position_embeddings: usize) -> Result<(), Error> {
    if tokens <= max_position_embeddings {
        return Ok(());
    }
    Err(Error::Config(format!(
        "model.max_position_embeddings = {max_position_embeddings}: a worked text has {tokens} \
         tokens; raise it, or lower task.max_trace_tokens"
    )))
}

/// Draws until one is accepted with probability weight / greatest weight, which makes a problem
/// likelier by its weight.
///
/// # Errors
/// [`Error::Config`] if the task has no problems, or next to none, with the greater weights.
fn wanted_problem(
    task: &dyn Task,
    weights: &[f64],
    draw: &mut tasks::Draw,
) -> Result<Problem, Error> {
    let greatest = weights.iter().copied().fold(0.0, f64::max);
    for _ in 0..MOST_REDRAWS {
        let problem = task.training_problem(draw);
        let Some(&last) = weights.last() else {
            return Ok(problem);
        };
        let weight = match task.attempts(&problem) {
            Some(attempts) => weights.get(attempts.max(1) - 1).copied().unwrap_or(last),
            None => last,
        };
        if unit(draw) * greatest < weight {
            return Ok(problem);
        }
    }
    Err(Error::Config(format!(
        "sft.attempt_weights: {MOST_REDRAWS} problems of {} were all turned down; give weight to \
         the numbers of attempts that its problems need",
        task.name()
    )))
}

/// The style of one worked text, by the weights that are active at `step`.
fn style(sft: &SftConfig, step: u64, draw: &mut tasks::Draw) -> TraceStyle {
    let active = |part: &&MixPart| (part.from_step..part.until_step).contains(&step);
    let total: f64 = sft.mix.iter().filter(active).map(|part| part.weight).sum();
    let mut left = unit(draw) * total;
    let mut chosen = TraceStyle::Row;
    for part in sft
        .mix
        .iter()
        .filter(active)
        .filter(|part| part.weight > 0.0)
    {
        chosen = part.style.into();
        left -= part.weight;
        if left < 0.0 {
            break;
        }
    }
    chosen
}

/// Uniform in [0, 1), in steps of 2^-32.
fn unit(draw: &mut tasks::Draw) -> f64 {
    draw(1 << 32) as f64 / (1u64 << 32) as f64
}

/// Problem `index` of reinforcement learning.
pub(crate) fn rl_problem(setup: &Setup, index: u64) -> Problem {
    let chance = Chance::new(setup.config.seed, Purpose::Problem);
    setup.task.training_problem(&mut chance.draws(GRPO + index))
}

/// `count` held-out problems, all different and the same for the same task and seed; fewer only
/// where the task has no more.
pub fn held_out_problems(task: &dyn Task, seed: u64, count: usize) -> Vec<Problem> {
    let chance = Chance::new(seed, Purpose::Problem);
    let mut seen = std::collections::BTreeSet::new();
    let mut problems = Vec::new();
    let tries = 100 * count as u64 + 1000;
    for index in 0..tries {
        if problems.len() == count {
            break;
        }
        let problem = task.held_out_problem(&mut chance.draws(HELD_OUT + index));
        if seen.insert(problem.clone()) {
            problems.push(problem);
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_config::{StyleName, TaskName};
    use crate::testing::tiny_setup;

    #[test]
    fn an_example_is_its_prompt_and_a_right_completion() {
        let setup = tiny_setup(|_| ());
        let model = setup.model_config().expect("config");
        for index in 0..50 {
            let example = example(&setup, &model, index, 0).expect("example");
            let (prompt, completion) = example.token_ids.split_at(example.prompt_len);
            assert_eq!(example.prompt_len, 5);
            let problem = Problem {
                numbers: prompt[..3].to_vec(),
                target: prompt[3],
            };
            assert!(!setup.task.is_held_out(&problem), "{problem:?}");
            let completion = setup.tokenizer.decode(completion, false).expect("decode");
            let verdict = setup.task.verify(&problem, &completion);
            assert!(
                verdict.accurate && verdict.well_formed,
                "{completion}: {}",
                verdict.reason
            );
        }
    }

    #[test]
    fn a_text_beyond_the_positions_is_a_configuration_error() {
        let setup = tiny_setup(|config| config.model.max_position_embeddings = 20);
        let model = setup.model_config().expect("config");
        let error = (0..50).find_map(|index| example(&setup, &model, index, 0).err());
        let error = error.expect("worked texts of more than 20 tokens");
        assert_eq!(error.exit_code(), 2);
        assert!(
            error.to_string().contains("max_position_embeddings = 20"),
            "{error}"
        );
    }

    #[test]
    fn the_mixture_has_its_shares_and_its_time() {
        let setup = tiny_setup(|config| {
            let part = |style, weight, from_step| MixPart {
                style,
                weight,
                from_step,
                until_step: 100,
            };
            config.sft.steps = 100;
            config.sft.mix = vec![
                part(StyleName::Row, 2.0, 0),
                part(StyleName::Blurt, 3.0, 50),
            ];
        });
        let model = setup.model_config().expect("config");
        let blurts = |step| {
            let is_blurt = |index: &u64| {
                let example = example(&setup, &model, *index, step).expect("example");
                example.token_ids.len() - example.prompt_len == 10
            };
            (0..1000).filter(is_blurt).count()
        };
        assert_eq!(blurts(49), 0);
        // Binomial(1000, 0.6) has a standard deviation of 15.5.
        let later = blurts(50);
        assert!((530..670).contains(&later), "{later}");
    }

    #[test]
    fn attempt_weights_shift_the_problems() {
        let share = |weights: &[f64]| {
            let setup = tiny_setup(|config| config.sft.attempt_weights = weights.to_vec());
            let mut draw = Chance::new(1, Purpose::Problem).draws(0);
            let task = setup.task.as_ref();
            let later = |_: &u32| {
                let problem = wanted_problem(task, weights, &mut draw).expect("a problem");
                task.attempts(&problem).is_none_or(|attempts| attempts > 1)
            };
            (0..3000).filter(later).count() as f64 / 3000.0
        };
        let (nature, heavy, none) = (share(&[]), share(&[1.0, 4.0]), share(&[1.0, 0.0]));
        let expected = 4.0 * nature / (4.0 * nature + 1.0 - nature);
        assert!(
            (heavy - expected).abs() < 0.05,
            "{nature} {heavy} {expected}"
        );
        assert_eq!(none, 0.0);
    }

    #[test]
    fn weights_that_no_problem_has_are_a_configuration_error() {
        // Every multiplication takes one attempt.
        let setup = tiny_setup(|config| {
            config.task.name = TaskName::Multiplication;
            config.sft.attempt_weights = vec![0.0, 1.0];
        });
        let model = setup.model_config().expect("config");
        let error = example(&setup, &model, 0, 0).expect_err("no problem at all");
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("sft.attempt_weights"), "{text}");
    }

    #[test]
    fn every_part_of_the_mixture_is_looked_at_before_the_start() {
        let part = |style, from_step, until_step| MixPart {
            style,
            weight: 1.0,
            from_step,
            until_step,
        };
        let check = |positions, steps| {
            let setup = tiny_setup(|config| {
                config.model.max_position_embeddings = positions;
                config.sft.steps = steps;
                config.sft.mix = vec![part(StyleName::Blurt, 0, 5), part(StyleName::Row, 5, 1000)];
            });
            check_examples(&setup, &setup.model_config().expect("config"))
        };
        // A prompt of 5 tokens and an answer of 10 fit into 20, and workings do not.
        check(20, 5).expect("the second part never comes");
        check(64, 10).expect("all fit");
        let error = check(20, 10).expect_err("the second part does not fit");
        assert!(
            error.to_string().contains("max_position_embeddings"),
            "{error}"
        );
    }

    #[test]
    fn held_out_problems_are_fixed_and_all_different() {
        let setup = tiny_setup(|_| ());
        let task = setup.task.as_ref();
        let problems = held_out_problems(task, 5, 300);
        assert_eq!(problems[..100], held_out_problems(task, 5, 100));
        assert!(problems.iter().all(|problem| task.is_held_out(problem)));
        let distinct: std::collections::BTreeSet<_> = problems.iter().collect();
        assert_eq!(distinct.len(), 300);
        assert_ne!(problems, held_out_problems(task, 6, 300));
    }
}

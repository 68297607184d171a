//! Held-out accuracy with progress, and in words.

mod remote;

use kernels::Cpu;
use model::Model;
use tasks::Problem;
use train::{EvalResult, Setup};

pub use remote::{Asking, Unanswered};

use crate::failure::Failure;
use crate::progress::Ui;

/// The held-out problems of a setup's seed.
///
/// # Errors
/// The task has fewer than `count`.
pub fn problems(setup: &Setup, count: usize) -> Result<Vec<Problem>, Failure> {
    let problems = train::held_out_problems(setup.task.as_ref(), setup.config.seed, count);
    let found = problems.len();
    if found < count {
        let cause = format!(
            "{} has no more than {found} held-out problems",
            setup.task.name()
        );
        return Err(Failure::usage(
            cause,
            format!("ask for at most {found} problems"),
        ));
    }
    Ok(problems)
}

/// One completion for each problem, judged.
///
/// # Errors
/// As [`train::evaluate`].
pub fn evaluate(
    setup: &Setup,
    model: &Model,
    backend: &Cpu,
    problems: &[Problem],
    temperature: f64,
    (ui, label): (Ui, &str),
) -> Result<EvalResult, Failure> {
    let mut progress = ui.start(label, problems.len() as u64);
    let mut show = |state: engine::Progress| {
        progress.update_tokens(state.finished as u64, state.generated_tokens as u64);
    };
    let result = train::evaluate(setup, model, backend, problems, temperature, &mut show)?;
    progress.finish(&format!("{} problems answered", result.problems));
    Ok(result)
}

/// One line for a reader.
pub fn in_words(result: &EvalResult) -> String {
    let [low, high] = result.ci95.map(|share| 100.0 * share);
    let how = match result.temperature {
        0.0 => "greedy".to_string(),
        temperature => format!("one sample at T = {temperature}"),
    };
    format!(
        "{:.1} % right (95 %: {low:.1} to {high:.1}), {:.1} % well formed, {:.1} tokens on \
         average; {} held-out problems, {how}",
        100.0 * result.accuracy,
        100.0 * result.well_formed,
        result.mean_length,
        result.problems,
    )
}

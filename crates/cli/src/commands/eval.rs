//! `eval`: accuracy on held-out problems.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use train::{EvalResult, RunConfig, Setup, TaskName};

use super::{generate, print, print_json};
use crate::evaluation;
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::generation;
use crate::run;
use crate::settings::Settings;

/// Accuracy of a model on held-out problems of a task
///
/// One completion for each problem. Held-out problems are never trained on, by any run.
#[derive(Args)]
#[command(
    after_help = "Example:\n  bruchteil eval demo-out/grpo --task countdown --problems 1000 \
--greedy"
)]
pub struct Eval {
    /// A Hugging Face model folder, or the directory of a run
    model: PathBuf,
    /// countdown or multiplication
    #[arg(long, value_name = "NAME")]
    task: String,
    /// Countdown: how many numbers are given, 3 or 4
    #[arg(long, value_name = "N", default_value_t = 3)]
    numbers: usize,
    /// Multiplication: digits of the two factors
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        num_args = 1,
        default_value = "2,2"
    )]
    digits: Vec<u32>,
    /// Held-out problems to answer
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    problems: u32,
    /// Of the samples
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = generate::temperature)]
    temperature: f32,
    /// The likeliest token each time; the same as --temperature 0
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// Transcripts to show, of the first problems
    #[arg(long, value_name = "N", default_value_t = 0)]
    show: usize,
}

#[derive(Serialize)]
struct Evaluation {
    task: String,
    seed: u64,
    #[serde(flatten)]
    result: EvalResult,
}

impl Eval {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let config = self.config(settings)?;
        let folder = Folder::open(&self.model)?;
        let tokenizer = folder.tokenizer()?;
        let ui = settings.ui();
        if !generation::speaks_our_words(tokenizer) {
            ui.warn("this tokenizer's words are not those of the tasks: answers may be misread");
        }
        let setup = Setup::with_tokenizer(config, tokenizer.clone())?;
        let problems = evaluation::problems(&setup, self.problems as usize)?;
        let backend = settings.backend();
        let model = folder.model(settings, &backend)?;
        // Through its decimal digits, so that 0.7 stays 0.7.
        let temperature = self.temperature.to_string().parse().unwrap_or(1.0);
        let temperature = if self.greedy { 0.0 } else { temperature };
        let result = evaluation::evaluate(
            &setup,
            &model,
            &backend,
            &problems,
            temperature,
            (ui, "eval"),
        )?;
        let (task, seed) = (setup.task.name(), setup.config.seed);
        let evaluation = Evaluation { task, seed, result };
        if settings.json {
            print_json(&evaluation)
        } else {
            print(&evaluation.in_words())
        }
    }

    fn config(&self, settings: &Settings) -> Result<RunConfig, Failure> {
        let mut config = RunConfig::default();
        config.task.name = match self.task.as_str() {
            "countdown" => TaskName::Countdown,
            "multiplication" => TaskName::Multiplication,
            other => {
                let cause = format!("--task {other}: there is no such task");
                return Err(Failure::usage(
                    cause,
                    "the tasks are countdown and multiplication",
                ));
            }
        };
        config.task.numbers = self.numbers;
        config.task.digits = self.digits.as_slice().try_into().map_err(|_| {
            let cause = format!("--digits: {} numbers given", self.digits.len());
            Failure::usage(cause, "give two, such as --digits 2,1")
        })?;
        config.eval.transcripts = self.show;
        run::changed(config, &[], settings)
    }
}

impl Evaluation {
    fn in_words(&self) -> String {
        let mut text = String::new();
        for sample in &self.result.transcripts {
            text += &format!("{} {}\n", sample.prompt, sample.completion);
            text += &format!("{}\nVerdict: {}\n\n", sample.explained, sample.reason);
        }
        text + &format!("{}: {}\n", self.task, evaluation::in_words(&self.result))
    }
}

//! `eval`: accuracy on held-out problems.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use train::{EvalResult, RunConfig, Setup, TaskName};

use super::{generate, print, print_json};
use crate::evaluation::{self, Asking, Unanswered};
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::generation;
use crate::remote::{Remote, RemoteOptions, is_url};
use crate::run;
use crate::settings::Settings;
use crate::weights::WeightOptions;

/// Accuracy of a model on held-out problems of a task
///
/// One completion for each problem. Held-out problems are never trained on, by any run. With
/// --config there is one evaluation for each of eval.temperatures, unless the command line names
/// one; with --json each is one object on a line of its own. The model's tokenizer must have the
/// tasks' words, as those of `sft`, `grpo` and `demo` have.
///
/// Where MODEL is the address of an OpenAI-compatible server, each problem is a user's message to
/// it, and thinking and answer are joined again for the verifier. Problem i is asked with the
/// seed's i-th successor: the same server gives the same result again. Greedy results of our own
/// server are those of its model evaluated here; samples differ by chance.
#[derive(Args)]
#[command(
    after_help = "Example:\n  bruchteil eval demo-out/grpo --task countdown --problems 1000 \
--greedy\n  bruchteil eval runs/countdown4-grpo --config runs/countdown4.toml\n  \
bruchteil eval http://127.0.0.1:8080 --task countdown --greedy"
)]
pub struct Eval {
    /// A Hugging Face model folder, the directory of a run, a GGUF file, or a server's address
    model: PathBuf,
    /// A run's settings, a TOML file: task, seed, numerics and `[eval]`; other options come first
    #[arg(long, value_name = "FILE", required_unless_present = "task")]
    config: Option<PathBuf>,
    /// countdown or multiplication
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Countdown: how many numbers are given, 3 or 4 [default: 3]
    #[arg(long, value_name = "N")]
    numbers: Option<usize>,
    /// Multiplication: digits of the two factors [default: 2,2]
    #[arg(long, value_name = "N,N", value_delimiter = ',', num_args = 1)]
    digits: Option<Vec<u32>>,
    /// Held-out problems to answer [default: 1000]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    problems: Option<u32>,
    /// Of the samples [default: 1]
    #[arg(long, value_name = "X", value_parser = generate::temperature)]
    temperature: Option<f32>,
    /// The likeliest token each time; the same as --temperature 0
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// Transcripts to show, of the first problems [default: 0]
    #[arg(long, value_name = "N")]
    show: Option<usize>,
    /// Server: requests at one time
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Server: complete the task's own prompt, with its thinking opened, instead of chatting
    #[arg(long)]
    completions: bool,
    #[command(flatten)]
    remote: RemoteOptions,
    #[command(flatten)]
    weights: WeightOptions,
}

const NEEDS_OUR_WORDS: &str = "give a model whose tokenizer has the tasks' words, such as one that \
    `demo`, `sft` or `grpo` wrote";

#[derive(Serialize)]
struct Evaluation {
    task: String,
    seed: u64,
    #[serde(flatten)]
    result: EvalResult,
    /// Problems that a server did not answer, which count neither as right nor as wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unanswered: Vec<Unanswered>,
}

impl Eval {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let config = self.config(settings)?;
        if is_url(&self.model) {
            self.weights.none_given()?;
            return self.run_remote(config, settings);
        }
        self.remote.none_given()?;
        let mut folder = Folder::open(&self.model)?;
        let tokenizer = folder.tokenizer();
        let tokenizer = tokenizer.map_err(|failure| failure.advise(NEEDS_OUR_WORDS))?;
        let ui = settings.ui();
        let ours = generation::speaks_our_words(tokenizer);
        if !ours {
            ui.warn("this tokenizer's words are not those of the tasks: answers may be misread");
        }
        let setup = Setup::with_tokenizer(config, tokenizer.clone());
        let setup = setup.map_err(|error| match (ours, Failure::from(error)) {
            (true, failure) => failure,
            (false, failure) => failure.advise(NEEDS_OUR_WORDS),
        })?;
        let problems = evaluation::problems(&setup, setup.config.eval.problems)?;
        let backend = settings.backend();
        let model = self
            .weights
            .open(&mut folder, setup.numerics(), settings, &backend)?;
        for &temperature in &setup.config.eval.temperatures {
            let shown = (ui, "eval");
            let result =
                evaluation::evaluate(&setup, &model, &backend, &problems, temperature, shown)?;
            Evaluation::new(&setup, result, Vec::new()).show(settings)?;
        }
        Ok(())
    }

    fn run_remote(&self, config: RunConfig, settings: &Settings) -> Outcome {
        let setup = Setup::new(config)?;
        let problems = evaluation::problems(&setup, setup.config.eval.problems)?;
        let ui = settings.ui();
        let remote = Remote::new(&self.model.to_string_lossy(), &self.remote, ui)?;
        let asking = Asking {
            model: remote.model(self.remote.model_name.as_deref())?,
            remote: Arc::new(remote),
            completions: self.completions,
            concurrency: self.concurrency.into(),
        };
        for &temperature in &setup.config.eval.temperatures {
            let (result, unanswered) = asking.evaluate(&setup, &problems, temperature, ui)?;
            for Unanswered { problem, error } in &unanswered {
                ui.warn(format_args!("problem {problem}: {error}"));
            }
            Evaluation::new(&setup, result, unanswered).show(settings)?;
        }
        Ok(())
    }

    /// What the file says, or the defaults of this command, under what the command line says.
    fn config(&self, settings: &Settings) -> Result<RunConfig, Failure> {
        let mut config = match &self.config {
            Some(path) => RunConfig::read(path)?,
            None => {
                let mut config = RunConfig::default();
                (config.eval.temperatures, config.eval.transcripts) = (vec![1.0], 0);
                config
            }
        };
        if let Some(name) = &self.task {
            config.task.name = task_name(name)?;
        }
        config.task.numbers = self.numbers.unwrap_or(config.task.numbers);
        if let Some(digits) = &self.digits {
            config.task.digits = digits.as_slice().try_into().map_err(|_| {
                let cause = format!("--digits: {} numbers given", digits.len());
                Failure::usage(cause, "give two, such as --digits 2,1")
            })?;
        }
        let eval = &mut config.eval;
        eval.problems = self.problems.map_or(eval.problems, |count| count as usize);
        eval.transcripts = self.show.unwrap_or(eval.transcripts);
        match self.temperature {
            _ if self.greedy => eval.temperatures = vec![0.0],
            // Through its decimal digits, so that 0.7 stays 0.7.
            Some(given) => eval.temperatures = vec![given.to_string().parse().unwrap_or(1.0)],
            None if eval.temperatures.is_empty() => {
                let cause = "eval.temperatures: none is given";
                return Err(Failure::usage(cause, "add --temperature or --greedy"));
            }
            None => {}
        }
        run::changed(config, &[], settings)
    }
}

fn task_name(name: &str) -> Result<TaskName, Failure> {
    match name {
        "countdown" => Ok(TaskName::Countdown),
        "multiplication" => Ok(TaskName::Multiplication),
        other => Err(Failure::usage(
            format!("--task {other}: there is no such task"),
            "the tasks are countdown and multiplication",
        )),
    }
}

impl Evaluation {
    fn new(setup: &Setup, result: EvalResult, unanswered: Vec<Unanswered>) -> Evaluation {
        Evaluation {
            task: setup.task.name(),
            seed: setup.config.seed,
            result,
            unanswered,
        }
    }

    fn show(&self, settings: &Settings) -> Outcome {
        match settings.json {
            true => print_json(self),
            false => print(&self.in_words()),
        }
    }

    fn in_words(&self) -> String {
        let mut text = String::new();
        for sample in &self.result.transcripts {
            text += &format!("{} {}\n", sample.prompt, sample.completion);
            text += &format!("{}\nVerdict: {}\n\n", sample.explained, sample.reason);
        }
        text + &format!("{}: {}\n", self.task, evaluation::in_words(&self.result))
    }
}

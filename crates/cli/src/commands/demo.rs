//! `demo`: the whole loop, from random weights to a report.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use train::{RunConfig, Setup};

use crate::demo;
use crate::failure::{Failure, Outcome};
use crate::run;
use crate::settings::{PrecisionName, Settings};

/// The whole loop in minutes: random weights, cold start, reinforcement learning, a report
///
/// The work is fixed by the size, never by the clock: the same command and seed give the same
/// weights on any machine, thread count and instruction set. --out is a new or empty folder, or one
/// of an earlier demo, which is replaced. In it stand afterwards the models
/// sft/ and grpo/ (Hugging Face folders), report.html, metrics.jsonl and samples.jsonl. With --json
/// the last line on standard output is one object with all results.
#[derive(Args)]
#[command(after_help = "Example:\n  bruchteil demo\n  bruchteil demo --out second --seed 2 --json")]
pub struct Demo {
    /// Where models and report go
    #[arg(long, value_name = "DIR", default_value = "demo-out")]
    out: PathBuf,
    /// How much work
    #[arg(long, value_enum, default_value = "small")]
    size: Size,
    /// Change a setting of the size, such as grpo.steps=20; the report names the change
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Size {
    /// A few minutes on two cores
    Small,
}

impl Size {
    fn settings(self) -> &'static str {
        match self {
            Size::Small => include_str!("../demo/small.toml"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Size::Small => "small",
        }
    }
}

impl Demo {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let source = format!("demo --size {}", self.size.name());
        let config = RunConfig::from_toml(self.size.settings(), &source)?;
        let config = run::changed(config, &self.changes, settings)?;
        if config.eval.temperatures != [1.0, 0.0] {
            let cause = "eval.temperatures: a demo evaluates at temperature 1 and greedy, no other";
            return Err(Failure::usage(cause, "leave that setting as it is"));
        }
        let command = self.command(&config);
        let setup = Setup::new(config)?;
        demo::run(&setup, settings, &self.out, command)
    }

    /// What gives the same numbers again: all that decides them, and nothing else.
    fn command(&self, config: &RunConfig) -> String {
        let mut command = format!(
            "bruchteil demo --size {} --seed {}",
            self.size.name(),
            config.seed
        );
        if config.numerics.precision == PrecisionName::F32.into() {
            command += " --precision f32";
        }
        for change in &self.changes {
            command += &format!(" --set '{change}'");
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_every_size_are_valid() {
        for size in Size::value_variants() {
            let config =
                RunConfig::from_toml(size.settings(), size.name()).expect("valid settings");
            let setup = Setup::new(config).expect("a setup");
            let model = setup.model_config().expect("a model");
            let longest = setup.task.max_completion_tokens() + 8;
            assert!(
                model.max_position_embeddings >= longest,
                "completions fit the model"
            );
            assert_eq!(setup.config.eval.problems, 1_000);
        }
    }
}

//! The subcommands, one file each.

mod audit;
mod chat;
mod chips;
mod convert;
mod demo;
mod doctor;
mod eval;
pub mod generate;
mod grpo;
mod inspect;
mod plan;
mod score;
mod serve;
mod sft;

use std::io::Write;

use clap::Subcommand;
use serde::Serialize;

use crate::failure::Outcome;
use crate::settings::Settings;

#[derive(Subcommand)]
pub enum Command {
    /// The whole loop in minutes: random weights, cold start, reinforcement learning, a report
    Demo(demo::Demo),
    /// Supervised training on worked traces of a task
    Sft(sft::Sft),
    /// Reinforcement learning of a model on a task with checkable answers
    Grpo(grpo::Grpo),
    /// Accuracy of a model on held-out problems of a task
    Eval(eval::Eval),
    /// Complete a prompt
    Generate(generate::Generate),
    /// Serve a model behind the OpenAI API, with a page to chat with it
    Serve(Box<serve::Serve>),
    /// Talk with a model, here or on a server
    Chat(Box<chat::Chat>),
    /// Log-probabilities, and on request logits, of given texts
    Score(score::Score),
    /// What a model folder or GGUF file holds
    Inspect(inspect::Inspect),
    /// Write a model in another form: a Hugging Face folder, or one GGUF file
    Convert(convert::Convert),
    /// What a claim about a training run implies, and whether it can be true
    Audit(Box<audit::AuditCommand>),
    /// Accelerators: figures, export class by date, and what a budget trains on each
    Chips(Box<chips::Chips>),
    /// What a training run takes: layout, time, memory, energy and cost, with intervals
    Plan(Box<plan::PlanCommand>),
    /// Check this machine, this program, and on request a model
    Doctor(doctor::Doctor),
}

impl Command {
    /// # Errors
    /// Whatever kept the command from doing what was asked.
    pub fn run(&self, settings: &Settings) -> Outcome {
        if !self.reckons() {
            settings.check_computed()?;
        }
        match self {
            Command::Demo(command) => command.run(settings),
            Command::Sft(command) => command.run(settings),
            Command::Grpo(command) => command.run(settings),
            Command::Eval(command) => command.run(settings),
            Command::Generate(command) => command.run(settings),
            Command::Serve(command) => command.run(settings),
            Command::Chat(command) => command.run(settings),
            Command::Score(command) => command.run(settings),
            Command::Inspect(command) => command.run(settings),
            Command::Convert(command) => command.run(settings),
            Command::Audit(command) => command.run(settings),
            Command::Chips(command) => command.run(settings),
            Command::Plan(command) => command.run(settings),
            Command::Doctor(command) => command.run(settings),
        }
    }

    /// Whether `--precision` is that of other machines' products, not of this program's.
    fn reckons(&self) -> bool {
        matches!(self, Command::Plan(_) | Command::Audit(_))
    }
}

/// One line of JSON on standard output.
pub fn print_json(value: &impl Serialize) -> Outcome {
    print(&json_line(value))
}

pub fn json_line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).expect("results have string keys only");
    line.push('\n');
    line
}

/// Text on standard output.
pub fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

//! `bruchteil`: train, evaluate and run small reasoning models of the DeepSeek architecture.
//!
//! This crate alone reads the command line, the environment and the clock, and turns errors into
//! words and exit codes.
#![forbid(unsafe_code)]

mod chat;
mod commands;
mod default_model;
mod demo;
mod evaluation;
mod failure;
mod folder;
mod generation;
mod gguf_tokenizer;
mod lines;
mod memory;
mod model_choice;
mod numbers;
mod plain;
mod progress;
mod remote;
mod report;
mod rows;
mod run;
mod settings;
mod signals;
mod small_text;
mod weights;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Parser;

use commands::Command;
use settings::Settings;

/// Train a DeepSeek-architecture model, teach it to reason by reinforcement learning, and run it.
#[derive(Parser)]
#[command(
    name = "bruchteil",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Example:\n  bruchteil demo\n\nExit codes: 0 done, 1 failure, 2 usage or \
configuration, 3 bad input file, 4 out of disk\nor memory, 5 locked, 130 or 143 stopped by a \
signal after a clean save."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    settings: Settings,
}

/// What the last panic said. Libraries' panics are caught and become errors, so a panic is shown
/// only if it ends the program.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        panic::set_hook(Box::new(|info| {
            if let Ok(mut last) = LAST_PANIC.lock() {
                *last = info.to_string().replace('\n', " ");
            }
        }));
    }
    let arguments = Arguments::parse();
    match panic::catch_unwind(AssertUnwindSafe(|| {
        arguments.command.run(&arguments.settings)
    })) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            for line in failure.lines() {
                eprintln!("bruchteil: {line}");
            }
            ExitCode::from(failure.exit_code())
        }
        Err(_) => {
            let said = LAST_PANIC
                .lock()
                .map(|last| last.clone())
                .unwrap_or_default();
            eprintln!(
                "bruchteil: error: a broken invariant: {}",
                plain::plain(&said)
            );
            eprintln!(
                "  help: this is a bug; report it with the command (RUST_BACKTRACE=1 shows where)"
            );
            ExitCode::from(failure::FAILURE)
        }
    }
}

//! `sft`: supervised training on worked traces.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use train::{RunDir, Setup, Sft as Stage};

use super::{print, print_json};
use crate::failure::Outcome;
use crate::run;
use crate::settings::Settings;

/// Supervised training on worked traces of a task
///
/// Starts from random weights and saves checkpoints that are Hugging Face model folders. Stopped by
/// SIGINT or SIGTERM it saves first; resumed, it goes on to the bit as if there had been no stop.
#[derive(Args)]
#[command(
    after_help = "Example:\n  bruchteil sft --config runs/countdown4.toml --out \
runs/countdown4-sft --set sft.steps=500"
)]
pub struct Sft {
    /// The run's settings, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The run's directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Change a setting, such as sft.steps=500
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Go on with the run in --out
    #[arg(long)]
    resume: bool,
}

/// How a run ended.
#[derive(Serialize)]
pub struct Finished {
    /// The last checkpoint, a model folder.
    pub model: PathBuf,
    pub steps: u64,
    pub num_tokens: u64,
}

impl Sft {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let config = run::config(&self.config, &self.changes, settings)?;
        run::check_directory(&self.out, self.resume)?;
        let (backend, ui) = (settings.backend(), settings.ui());
        let setup = Setup::new(config)?;
        let mut dir = RunDir::open::<Stage>(&self.out, &setup)?;
        let mut stage = match dir.resume()? {
            Some((checkpoint, notes)) => {
                notes.iter().for_each(|note| ui.warn(note));
                Stage::resume(&setup, checkpoint, &backend)
            }
            None => Stage::new(&setup, setup.initial_model(&backend)?),
        };
        let model = run::drive(&mut stage, &mut dir, &backend, ui)?;
        let progress = *train::Stage::progress(&stage);
        let finished = Finished {
            model,
            steps: progress.step,
            num_tokens: progress.num_tokens,
        };
        finished.tell(settings, &self.next_commands())
    }

    /// With the settings that the run's directory keeps, so that changes by --set hold there too.
    fn next_commands(&self) -> String {
        let out = self.out.display();
        format!(
            "  bruchteil eval {out} --config {out}/config.toml\n  \
             bruchteil grpo {out} --config {out}/config.toml --out NEW_DIR\n"
        )
    }
}

impl Finished {
    /// The result, and what to type next.
    pub fn tell(&self, settings: &Settings, next: &str) -> Outcome {
        if settings.json {
            return print_json(self);
        }
        print(&format!("model: {}\nnext:\n{next}", self.model.display()))
    }
}

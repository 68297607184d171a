//! `grpo`: reinforcement learning from checked answers.

use std::path::PathBuf;

use clap::Args;
use model::Model;
use train::{Grpo as Stage, RunDir, Setup};

use super::sft::Finished;
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::run;
use crate::settings::Settings;

/// Reinforcement learning of a model on a task with checkable answers
///
/// Group-relative policy optimisation. The model needs a tokenizer with the tasks' words, as those
/// of `sft` and `demo` have. Stopped by SIGINT or SIGTERM it saves first; resumed, it goes on to
/// the bit as if there had been no stop.
#[derive(Args)]
#[command(
    after_help = "Example:\n  bruchteil grpo runs/countdown4-sft --config runs/countdown4.toml \
--out runs/countdown4-grpo"
)]
pub struct Grpo {
    /// The Hugging Face model folder, or the directory of a run, to start from; with --resume it is
    /// not read, because the run in --out has a copy
    model: PathBuf,
    /// The run's settings, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The run's directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Change a setting, such as grpo.learning_rate=1e-5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Go on with the run in --out
    #[arg(long)]
    resume: bool,
}

impl Grpo {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let config = run::config(&self.config, &self.changes, settings)?;
        run::check_directory(&self.out, self.resume)?;
        let folder = self.source()?;
        let tokenizer = folder.tokenizer()?.clone();
        let (backend, ui) = (settings.backend(), settings.ui());
        let setup = Setup::with_tokenizer(config, tokenizer)?;
        setup.check_lengths(&folder.config)?;
        let mut dir = RunDir::open::<Stage>(&self.out, &setup)?;
        let mut stage = match dir.resume()? {
            Some((checkpoint, notes)) => {
                notes.iter().for_each(|note| ui.warn(note));
                Stage::resume(&setup, checkpoint, || dir.start(), &backend)?
            }
            None => {
                let (model, non_finite) = Model::open(&folder.path, setup.numerics(), &backend)?;
                run::check_finite(&folder.path, &non_finite)?;
                Stage::new(&setup, model, &backend)
            }
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

    /// Where model and tokenizer come from. A run that goes on has both in its checkpoints, so
    /// MODEL may be gone or another; before its first checkpoint it starts again, from MODEL.
    ///
    /// # Errors
    /// As [`Folder::open`].
    fn source(&self) -> Result<Folder, Failure> {
        if !self.resume || !self.out.join("latest").exists() {
            return Folder::open(&self.model);
        }
        // A damaged checkpoint is passed over when the run goes on; that of step 0 always stays.
        Folder::open(&self.out).or_else(|_| Folder::open(&self.out.join("step-0")))
    }

    fn next_commands(&self) -> String {
        let out = self.out.display();
        format!("  bruchteil eval {out} --config {out}/config.toml\n  bruchteil inspect {out}\n")
    }
}

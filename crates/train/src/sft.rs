//! Supervised training on worked texts.

use kernels::Backend;
use model::Model;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::examples::{Example, example};
use crate::learner::{Learner, SideLosses};
use crate::optimizer::{Hyperparameters, Optimizer};
use crate::pairwise::pairwise_sum;
use crate::pieces::{Piece, pack};
use crate::progress::{Progress, Stage};
use crate::run_config::SftConfig;
use crate::schedule::Schedule;
use crate::setup::Setup;

/// One step, under TRL's names where it has one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SftMetrics {
    /// Counted from 1.
    pub step: u64,
    /// Mean cross-entropy of the learnt tokens, in nats.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens so far, prompts included.
    pub num_tokens: u64,
    /// Mean over the learnt tokens, in nats.
    pub entropy: f64,
    /// Summed over the layers, times `balance_loss_alpha`.
    pub balance_loss: f64,
    /// Mean cross-entropy of multi-token prediction, in nats, before its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtp_loss: Option<f64>,
    /// The busiest expert's tokens over the mean, in the worst layer; 1 is balance.
    pub load_violation: f64,
    /// The update was left out because it was not finite.
    pub skipped: bool,
}

/// The stage: every step draws the next worked texts, so no text is ever seen twice.
pub struct Sft<'a> {
    setup: &'a Setup,
    learner: Learner,
    progress: Progress,
}

impl<'a> Sft<'a> {
    /// Starts from a model as it is.
    pub fn new(setup: &'a Setup, model: Model) -> Sft<'a> {
        let optimizer = Optimizer::new(&model.layout);
        Sft::standing_at(setup, model, optimizer, Progress::default())
    }

    /// Goes on from a checkpoint of this stage, to the bit as if there had been no stop.
    pub fn resume(setup: &'a Setup, checkpoint: Checkpoint, backend: &dyn Backend) -> Sft<'a> {
        let (model, optimizer, progress) = checkpoint.restore(setup.numerics(), backend);
        Sft::standing_at(setup, model, optimizer, progress)
    }

    fn standing_at(
        setup: &'a Setup,
        model: Model,
        mut optimizer: Optimizer,
        progress: Progress,
    ) -> Sft<'a> {
        if setup.config.sft.mtp_loss_weight == 0.0 {
            optimizer.leave_out_mtp(&model.layout);
        }
        let (rates, schedule) = rates(&setup.config.sft);
        Sft {
            setup,
            learner: Learner::new(model, optimizer, rates, schedule),
            progress,
        }
    }

    pub fn into_model(self) -> Model {
        self.learner.model
    }

    /// The next texts that fill the pieces of one step, and the cursor after them. A text that
    /// would need one piece more is left for the next step.
    fn documents(&self) -> Result<(Vec<Example>, u64), Error> {
        let sft = &self.setup.config.sft;
        let model = &self.learner.model.config;
        let (mut documents, mut cursor) = (Vec::new(), self.progress.cursor);
        let (mut pieces_left, mut filled) = (sft.tokens_per_step / sft.piece_tokens, 0);
        loop {
            let next = example(self.setup, model, cursor, self.progress.step)?;
            if filled > 0 && filled + next.token_ids.len() > sft.piece_tokens {
                pieces_left -= 1;
                filled = 0;
            }
            if pieces_left == 0 {
                return Ok((documents, cursor));
            }
            filled += next.token_ids.len();
            documents.push(next);
            cursor += 1;
        }
    }
}

impl Stage for Sft<'_> {
    type Metrics = SftMetrics;
    const NAME: &'static str = "sft";

    fn steps(&self) -> u64 {
        self.setup.config.sft.steps
    }

    /// # Errors
    /// [`Error::Config`] if the settings give no worked texts; [`Error::NonFinite`].
    fn step(&mut self, backend: &dyn Backend) -> Result<SftMetrics, Error> {
        let sft = &self.setup.config.sft;
        let (documents, cursor) = self.documents()?;
        let pieces = pack(&documents, sft.piece_tokens, sft.loss_on_prompt);
        let targets: usize = pieces.iter().map(|piece| piece.targets.rows.len()).sum();
        let dlogprobs = vec![(-1.0 / targets as f64) as f32; targets];
        let side = SideLosses {
            balance_alpha: sft.balance_loss_alpha,
            mtp_weight: sft.mtp_loss_weight,
        };
        let outputs = self
            .learner
            .backward(backend, &pieces, 1.0, &dlogprobs, side);
        let loss = -mean(&pieces, &outputs.logprobs);
        let update = self.learner.update(backend, &mut self.progress, loss)?;
        // Loads that were counted from numbers that are not finite say nothing.
        let speed = if update.skipped {
            0.0
        } else {
            sft.bias_update_speed
        };
        let load_violation = self.learner.balance(speed);
        self.progress.step += 1;
        self.progress.cursor = cursor;
        self.progress.num_tokens += documents
            .iter()
            .map(|document| document.token_ids.len() as u64)
            .sum::<u64>();
        Ok(SftMetrics {
            step: self.progress.step,
            loss,
            grad_norm: update.grad_norm,
            learning_rate: update.learning_rate,
            num_tokens: self.progress.num_tokens,
            entropy: mean(&pieces, &outputs.entropies),
            balance_loss: outputs.balance_loss,
            mtp_loss: mean_loss(&outputs.mtp_logprobs),
            load_violation,
            skipped: update.skipped,
        })
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn model(&self) -> &Model {
        &self.learner.model
    }

    fn optimizer(&self) -> &Optimizer {
        &self.learner.optimizer
    }
}

/// The mean over all targets, summed piece by piece as the gradient is.
pub(crate) fn mean(pieces: &[Piece], values: &[f32]) -> f64 {
    let of_piece = |piece: &Piece| piece.of(values).iter().map(|&x| f64::from(x)).sum::<f64>();
    pairwise_sum(pieces.iter().map(of_piece)) / values.len().max(1) as f64
}

/// `None` without multi-token prediction.
fn mean_loss(logprobs: &[f32]) -> Option<f64> {
    let sum: f64 = logprobs.iter().map(|&logprob| f64::from(logprob)).sum();
    (!logprobs.is_empty()).then(|| -sum / logprobs.len() as f64)
}

fn rates(sft: &SftConfig) -> (Hyperparameters, Schedule) {
    let rates = Hyperparameters {
        beta1: sft.beta1,
        beta2: sft.beta2,
        eps: sft.eps,
        weight_decay: sft.weight_decay,
        max_grad_norm: sft.max_grad_norm,
    };
    let schedule = Schedule {
        shape: sft.schedule,
        peak: sft.learning_rate,
        warmup_steps: sft.warmup_steps,
        final_fraction: sft.final_lr_fraction,
        steps: sft.steps,
    };
    (rates, schedule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backend, tiny_setup};

    #[test]
    fn a_step_fills_its_pieces_and_draws_each_text_once() {
        let setup = tiny_setup(|config| {
            config.sft.tokens_per_step = 256;
            config.sft.piece_tokens = 128;
        });
        let backend = backend();
        let model = setup.initial_model(&backend).expect("model");
        let mut sft = Sft::new(&setup, model);
        let mut next = 0;
        for _ in 0..3 {
            let (documents, cursor) = sft.documents().expect("documents");
            let pieces = pack(&documents, 128, false);
            assert_eq!(pieces.len(), 2);
            assert_eq!(sft.progress.cursor, next);
            next += documents.len() as u64;
            assert_eq!(cursor, next);
            let tokens: usize = documents.iter().map(|d| d.token_ids.len()).sum();
            // No text is longer than 53 tokens.
            assert!((256 - 2 * 53..=256).contains(&tokens), "{tokens}");
            sft.step(&backend).expect("step");
        }
    }

    #[test]
    fn the_first_loss_is_that_of_guessing_and_training_lowers_it() {
        let setup = tiny_setup(|config| {
            config.sft.steps = 30;
            config.sft.warmup_steps = 2;
            config.sft.learning_rate = 1e-2;
            config.model.fourier = false;
        });
        let backend = backend();
        let mut sft = Sft::new(&setup, setup.initial_model(&backend).expect("model"));
        let first = sft.step(&backend).expect("step");
        // Small initial weights guess all 1,024 words alike.
        assert!((first.loss - 1024f64.ln()).abs() < 0.1, "{}", first.loss);
        assert!(
            (first.entropy - 1024f64.ln()).abs() < 0.1,
            "{}",
            first.entropy
        );
        assert_eq!((first.step, first.learning_rate), (1, 5e-3));
        let mut last = first.loss;
        while sft.progress().step < 30 {
            last = sft.step(&backend).expect("step").loss;
        }
        assert!(last < first.loss - 1.0, "{last}");
    }

    #[test]
    fn steps_that_are_not_finite_change_nothing_and_stop_the_run_in_the_end() {
        let setup = tiny_setup(|_| ());
        let backend = backend();
        let mut model = setup.initial_model(&backend).expect("model");
        let norm = model.layout.norm.start;
        model.update(&backend, |params| params[norm] = f32::NAN);
        let hash = |model: &Model| {
            model
                .params()
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>()
        };
        let before = hash(&model);
        let mut sft = Sft::new(&setup, model);
        for _ in 0..10 {
            assert!(sft.step(&backend).expect("a skipped step").skipped);
        }
        let error = sft.step(&backend).expect_err("the eleventh");
        assert!(
            matches!(
                error,
                Error::NonFinite {
                    step: 11,
                    in_a_row: 11
                }
            ),
            "{error}"
        );
        assert!(
            hash(sft.model()) == before,
            "a skipped step changed the weights"
        );
        assert_eq!(sft.optimizer().updates, 0);
    }

    #[test]
    fn multi_token_prediction_learns_beside_the_model() {
        let setup = tiny_setup(|config| {
            config.model.num_nextn_predict_layers = 1;
            config.model.fourier = false;
            config.sft.steps = 40;
            config.sft.warmup_steps = 2;
            config.sft.learning_rate = 1e-2;
        });
        let backend = backend();
        let mut sft = Sft::new(&setup, setup.initial_model(&backend).expect("model"));
        let first = sft.step(&backend).expect("step");
        let first_mtp = first.mtp_loss.expect("two losses");
        assert!((first_mtp - 1024f64.ln()).abs() < 0.1, "{first_mtp}");
        let mut last = first;
        while sft.progress().step < 40 {
            last = sft.step(&backend).expect("step");
        }
        assert!(last.loss < 1024f64.ln() - 1.0, "{}", last.loss);
        assert!(
            last.mtp_loss.expect("two losses") < first_mtp - 1.0,
            "{last:?}"
        );
    }
}

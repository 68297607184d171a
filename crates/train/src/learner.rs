//! One model being trained: pieces in, one update out. What SFT and GRPO share.

use kernels::Backend;
use model::{Activations, Loss, Model, MtpLoss, Targets};

use crate::error::Error;
use crate::optimizer::{Hyperparameters, Optimizer};
use crate::pairwise::PairwiseSum;
use crate::pieces::Piece;
use crate::progress::Progress;
use crate::schedule::Schedule;

/// More steps in a row without a finite gradient than this stop the run.
const MOST_SKIPPED: u32 = 10;

pub(crate) struct Learner {
    pub model: Model,
    pub optimizer: Optimizer,
    rates: Hyperparameters,
    schedule: Schedule,
    acts: Activations,
    sum: PairwiseSum<Vec<f32>>,
    /// Gradient buffers not in use.
    spare: Vec<Vec<f32>>,
    /// Tokens of this step routed to each expert, `[moe_layers * n_routed_experts]`.
    loads: Vec<u64>,
}

/// What the passes over the pieces of a step gave, one entry per target in the step's order.
#[derive(Default)]
pub(crate) struct Outputs {
    pub logprobs: Vec<f32>,
    pub entropies: Vec<f32>,
    /// Times its factor, summed over the layers.
    pub balance_loss: f64,
    /// Of multi-token prediction, in the order of the pieces; empty without it.
    pub mtp_logprobs: Vec<f32>,
}

/// Factors of the losses beside the main one.
#[derive(Clone, Copy)]
pub(crate) struct SideLosses {
    pub balance_alpha: f64,
    /// Of multi-token prediction, where the model has it.
    pub mtp_weight: f64,
}

/// What multi-token prediction is asked of one piece.
struct TwoAhead {
    next_token_ids: Vec<u32>,
    targets: Targets,
    dlogprobs: Vec<f32>,
}

/// How an update went.
pub(crate) struct Update {
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Not made: the loss or the gradient was not finite.
    pub skipped: bool,
}

impl Learner {
    pub fn new(
        model: Model,
        optimizer: Optimizer,
        rates: Hyperparameters,
        schedule: Schedule,
    ) -> Learner {
        let experts = model.config.num_moe_layers() * model.config.n_routed_experts();
        Learner {
            acts: Activations::new(&model.config),
            model,
            optimizer,
            rates,
            schedule,
            sum: PairwiseSum::default(),
            spare: Vec::new(),
            loads: vec![0; experts],
        }
    }

    /// Log-probabilities of the pieces' targets under a model, this one's or another of its shape.
    pub fn score(
        acts: &mut Activations,
        model: &Model,
        backend: &dyn Backend,
        pieces: &[Piece],
        temperature: f32,
    ) -> Vec<f32> {
        let mut all = Vec::new();
        let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
        for piece in pieces {
            model.forward(backend, &piece.batch, acts, None);
            model.logprobs(
                backend,
                acts,
                &piece.targets,
                temperature,
                &mut logprobs,
                &mut entropies,
            );
            all.extend_from_slice(&logprobs);
        }
        all
    }

    /// As [`Learner::score`] under the weights as they are now.
    pub fn score_own(
        &mut self,
        backend: &dyn Backend,
        pieces: &[Piece],
        temperature: f32,
    ) -> Vec<f32> {
        Learner::score(&mut self.acts, &self.model, backend, pieces, temperature)
    }

    /// As [`Learner::score`] under another model.
    pub fn score_other(
        &mut self,
        other: &Model,
        backend: &dyn Backend,
        pieces: &[Piece],
        temperature: f32,
    ) -> Vec<f32> {
        Learner::score(&mut self.acts, other, backend, pieces, temperature)
    }

    /// Forward and backward of every piece; the gradients wait in the tree for
    /// [`Learner::update`]. `dlogprobs` has one entry per target of the step.
    pub fn backward(
        &mut self,
        backend: &dyn Backend,
        pieces: &[Piece],
        temperature: f32,
        dlogprobs: &[f32],
        side: SideLosses,
    ) -> Outputs {
        let mut outputs = Outputs::default();
        let [
            mut logprobs,
            mut entropies,
            mut mtp_logprobs,
            mut mtp_entropies,
        ] = [const { Vec::new() }; 4];
        let documents: usize = pieces.iter().map(Piece::documents).sum();
        let two_ahead = self.two_ahead(pieces, side.mtp_weight);
        for (i, piece) in pieces.iter().enumerate() {
            let mut grads = self.zeroed_gradient();
            let (batch, acts) = (&piece.batch, &mut self.acts);
            self.model.forward(backend, batch, acts, None);
            let mtp = two_ahead.get(i);
            if let Some(mtp) = mtp {
                let next = &mtp.next_token_ids;
                self.model.forward_mtp(backend, batch, next, acts, None);
            }
            self.model.add_expert_loads(&self.acts, &mut self.loads);
            // The balance loss of a step is a mean over its documents, of a piece over its own.
            let share = piece.documents() as f64 / documents as f64;
            let loss = Loss {
                targets: &piece.targets,
                temperature,
                dlogprobs: piece.of(dlogprobs),
                balance_loss_alpha: (side.balance_alpha * share) as f32,
                logprobs: &mut logprobs,
                entropies: &mut entropies,
                mtp: mtp.map(|mtp| MtpLoss {
                    next_token_ids: &mtp.next_token_ids,
                    targets: &mtp.targets,
                    dlogprobs: &mtp.dlogprobs,
                    logprobs: &mut mtp_logprobs,
                    entropies: &mut mtp_entropies,
                }),
            };
            let acts = &mut self.acts;
            let balance_loss = self.model.backward(backend, batch, acts, loss, &mut grads);
            outputs.logprobs.extend_from_slice(&logprobs);
            outputs.entropies.extend_from_slice(&entropies);
            if mtp.is_some() {
                outputs.mtp_logprobs.extend_from_slice(&mtp_logprobs);
            }
            outputs.balance_loss += f64::from(balance_loss);
            let spare = &mut self.spare;
            self.sum.push(grads, |earlier, later| {
                joined(backend, spare, earlier, later)
            });
        }
        outputs
    }

    /// For each piece the mean loss of its share of all tokens two ahead; nothing where the model
    /// predicts one token at a time.
    fn two_ahead(&self, pieces: &[Piece], weight: f64) -> Vec<TwoAhead> {
        if self.model.config.num_nextn_predict_layers == 0 || weight == 0.0 {
            return Vec::new();
        }
        let targets: Vec<Targets> = pieces.iter().map(Piece::targets_two_ahead).collect();
        let all: usize = targets.iter().map(|targets| targets.rows.len()).sum();
        let each = (-weight / all.max(1) as f64) as f32;
        let one = |(piece, targets): (&Piece, Targets)| TwoAhead {
            next_token_ids: piece.next_token_ids(),
            dlogprobs: vec![each; targets.rows.len()],
            targets,
        };
        pieces.iter().zip(targets).map(one).collect()
    }

    fn zeroed_gradient(&mut self) -> Vec<f32> {
        match self.spare.pop() {
            Some(mut grads) => {
                grads.fill(0.0);
                grads
            }
            None => vec![0.0; self.model.layout.trainable_len],
        }
    }

    /// Joins the waiting gradients and makes one optimizer update, unless the loss or the gradient
    /// is not finite.
    ///
    /// # Errors
    /// [`Error::NonFinite`] after too many updates in a row that could not be made.
    pub fn update(
        &mut self,
        backend: &dyn Backend,
        progress: &mut Progress,
        loss: f64,
    ) -> Result<Update, Error> {
        let learning_rate = self.schedule.learning_rate(progress.step);
        let spare = &mut self.spare;
        let sum = self
            .sum
            .finish(|earlier, later| joined(backend, spare, earlier, later));
        let Some(grads) = sum else {
            // Nothing to learn from: every group was left out.
            return Ok(Update {
                grad_norm: 0.0,
                learning_rate,
                skipped: false,
            });
        };
        let grad_norm = backend.sum_of_squares(&grads).sqrt();
        let skipped = !(loss.is_finite() && grad_norm.is_finite());
        if skipped {
            progress.skipped_in_a_row += 1;
        } else {
            progress.skipped_in_a_row = 0;
            let (optimizer, rates) = (&mut self.optimizer, &self.rates);
            self.model.update(backend, |params| {
                optimizer.update(backend, rates, learning_rate, grad_norm, params, &grads);
            });
        }
        self.spare.push(grads);
        if progress.skipped_in_a_row > MOST_SKIPPED {
            return Err(Error::NonFinite {
                step: progress.step + 1,
                in_a_row: progress.skipped_in_a_row,
            });
        }
        Ok(Update {
            grad_norm,
            learning_rate,
            skipped,
        })
    }

    /// Moves the routers' biases towards balance by the loads of this step, and forgets the loads.
    /// A speed of 0 leaves the biases alone. Returns the greatest load over the mean one, of the
    /// worst layer; 1 for a dense model.
    pub fn balance(&mut self, bias_update_speed: f64) -> f64 {
        let experts = self.model.config.n_routed_experts().max(1);
        let mut violation: f64 = 1.0;
        for layer in self.loads.chunks_exact(experts) {
            let total: u64 = layer.iter().sum();
            let greatest = layer.iter().copied().max().unwrap_or(0);
            if total > 0 {
                violation = violation.max(greatest as f64 * experts as f64 / total as f64);
            }
        }
        if bias_update_speed > 0.0 && self.loads.iter().any(|&load| load > 0) {
            self.model
                .update_expert_bias(&self.loads, bias_update_speed as f32);
        }
        self.loads.fill(0);
        violation
    }
}

/// `earlier + later` in the place of `earlier`.
fn joined(
    backend: &dyn Backend,
    spare: &mut Vec<Vec<f32>>,
    mut earlier: Vec<f32>,
    later: Vec<f32>,
) -> Vec<f32> {
    backend.add_assign(&mut earlier, &later);
    spare.push(later);
    earlier
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::{Example, example};
    use crate::pieces::pack;
    use crate::schedule::Shape;
    use crate::testing::{backend, tiny_setup};

    const RATES: Hyperparameters = Hyperparameters {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
    };

    const SCHEDULE: Schedule = Schedule {
        shape: Shape::Constant,
        peak: 1.0,
        warmup_steps: 0,
        final_fraction: 1.0,
        steps: 1,
    };

    /// However the documents are packed, the gradient is that of the whole step's mean loss and of
    /// the balance loss averaged over its documents.
    #[test]
    fn the_gradient_does_not_depend_on_the_packing_but_for_rounding() {
        let setup = tiny_setup(|_| ());
        let backend = backend();
        let config = setup.model_config().expect("config");
        let text = |index| example(&setup, &config, index, 0).expect("example");
        let documents: Vec<Example> = (0..13).map(text).collect();
        let gradient = |piece_tokens: usize| {
            let model = setup.initial_model(&backend).expect("model");
            let optimizer = Optimizer::new(&model.layout);
            let mut learner = Learner::new(model, optimizer, RATES, SCHEDULE);
            let pieces = pack(&documents, piece_tokens, false);
            let targets = pieces
                .iter()
                .map(|piece| piece.targets.rows.len())
                .sum::<usize>();
            let dlogprobs = vec![-1.0 / targets as f32; targets];
            let side = SideLosses {
                balance_alpha: 0.5,
                mtp_weight: 0.3,
            };
            let outputs = learner.backward(&backend, &pieces, 1.0, &dlogprobs, side);
            assert_eq!(outputs.logprobs.len(), targets);
            let add = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let grads = learner.sum.finish(add).expect("a gradient");
            (pieces.len(), grads, outputs.balance_loss, outputs.logprobs)
        };
        let (one, whole, balance, logprobs) = gradient(100_000);
        assert_eq!(one, 1);
        for piece_tokens in [1, 60, 130] {
            let (count, parts, parts_balance, parts_logprobs) = gradient(piece_tokens);
            assert!(count > 2, "{count}");
            assert_eq!(logprobs, parts_logprobs, "the row law");
            let difference: f64 = whole
                .iter()
                .zip(&parts)
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum();
            let size: f64 = whole.iter().map(|&a| f64::from(a).powi(2)).sum();
            assert!(
                difference.sqrt() < 1e-5 * size.sqrt(),
                "{difference} {size}"
            );
            assert!(
                (balance - parts_balance).abs() < 1e-5 * balance,
                "{balance} {parts_balance}"
            );
        }
    }
}

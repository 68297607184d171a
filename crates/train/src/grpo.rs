//! Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300) as practised now.
//!
//! Each step: the next problems, `group_size` completions of each by the engine under the weights
//! as they are, a reward for each, and an update that makes the better ones of a group likelier.
//! Rollout and training share weights and kernels, so the log-probabilities that the engine
//! recorded are, to the bit, those that the training pass computes; each step says so.

use engine::{Completion, FinishReason};
use kernels::Backend;
use model::Model;
use tasks::Problem;

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::evaluate::judge;
use crate::examples::{Example, rl_problem};
use crate::grpo_metrics::{GrpoMetrics, Totals};
use crate::learner::{Learner, SideLosses};
use crate::loss::{Clip, TokenInputs, TokenLoss, token_loss_and_gradient};
use crate::optimizer::{Hyperparameters, Optimizer};
use crate::pieces::{Piece, pack};
use crate::progress::{Progress, Stage};
use crate::rewards::advantages;
use crate::rollout::{Prompt, Rollout, Sampling};
use crate::run_config::{GrpoConfig, Normalisation};
use crate::samples::{Judged, Sample};
use crate::schedule::Schedule;
use crate::setup::Setup;
use crate::sft::mean;

/// The stage.
pub struct Grpo<'a> {
    setup: &'a Setup,
    learner: Learner,
    /// The model that training started from; only with a `kl_coef`.
    reference: Option<Model>,
    rollout: Rollout,
    progress: Progress,
    samples: Vec<Sample>,
}

/// All completions of one problem.
pub(crate) struct Group {
    problem: Problem,
    prompt: Vec<u32>,
    pub completions: Vec<Completion>,
    pub judged: Vec<Judged>,
    /// `None`: all rewards are equal.
    pub advantages: Option<Vec<f32>>,
}

/// The completions that are trained on, token by token.
struct TrainingBatch {
    pieces: Vec<Piece>,
    /// The lists below have one entry per completion token.
    rollout_logprobs: Vec<f32>,
    advantages: Vec<f32>,
    weights: Vec<f64>,
}

impl<'a> Grpo<'a> {
    /// Starts from a model as it is.
    pub fn new(setup: &'a Setup, model: Model, backend: &dyn Backend) -> Grpo<'a> {
        let reference = (setup.config.grpo.kl_coef > 0.0).then(|| {
            let (config, params) = (model.config.clone(), model.params().to_vec());
            Model::from_params(config, params, setup.numerics(), backend)
        });
        let optimizer = Optimizer::new(&model.layout);
        Grpo::standing_at(setup, model, optimizer, Progress::default(), reference)
    }

    /// Goes on from a checkpoint of this stage, to the bit as if there had been no stop. `start`
    /// gives the checkpoint of step 0 and is called only with a `kl_coef`.
    ///
    /// # Errors
    /// Those of `start`.
    pub fn resume(
        setup: &'a Setup,
        checkpoint: Checkpoint,
        start: impl FnOnce() -> Result<Checkpoint, Error>,
        backend: &dyn Backend,
    ) -> Result<Grpo<'a>, Error> {
        let numerics = setup.numerics();
        let reference = if setup.config.grpo.kl_coef > 0.0 {
            let start = start()?;
            Some(Model::from_params(
                start.config,
                start.params,
                setup.numerics(),
                backend,
            ))
        } else {
            None
        };
        let (model, optimizer, progress) = checkpoint.restore(numerics, backend);
        Ok(Grpo::standing_at(
            setup, model, optimizer, progress, reference,
        ))
    }

    fn standing_at(
        setup: &'a Setup,
        model: Model,
        mut optimizer: Optimizer,
        progress: Progress,
        reference: Option<Model>,
    ) -> Grpo<'a> {
        optimizer.leave_out_mtp(&model.layout);
        let (rates, schedule) = rates(&setup.config.grpo);
        Grpo {
            setup,
            learner: Learner::new(model, optimizer, rates, schedule),
            reference,
            rollout: Rollout::default(),
            progress,
            samples: Vec::new(),
        }
    }

    pub fn into_model(self) -> Model {
        self.learner.model
    }

    /// The groups of a step: those that teach something, the others, and the new ones tried in
    /// their place. The second value counts rounds of generation.
    fn groups(&mut self, backend: &dyn Backend) -> Result<(Vec<Group>, u32), Error> {
        let grpo = &self.setup.config.grpo;
        let mut groups = Vec::new();
        let (mut wanted, mut rounds) = (grpo.problems_per_step, 0);
        loop {
            let new = self.generate(wanted, backend)?;
            wanted = new
                .iter()
                .filter(|group| group.advantages.is_none())
                .count();
            groups.extend(new);
            rounds += 1;
            if wanted == 0 || !grpo.drop_zero_variance || rounds > grpo.refill_rounds {
                return Ok((groups, rounds));
            }
        }
    }

    /// The next `count` problems, completed and judged.
    fn generate(&mut self, count: usize, backend: &dyn Backend) -> Result<Vec<Group>, Error> {
        let (setup, grpo) = (self.setup, &self.setup.config.grpo);
        let mut problems = Vec::new();
        let mut prompts = Vec::new();
        for index in self.progress.cursor..self.progress.cursor + count as u64 {
            let problem = rl_problem(setup, index);
            let text = setup.task.prompt(&problem);
            let ids = setup.encode(&text, self.learner.model.config.vocab_size)?;
            prompts.extend((0..grpo.group_size as u64).map(|sample| Prompt {
                sequence: index * grpo.group_size as u64 + sample,
                token_ids: ids.clone(),
            }));
            problems.push((problem, ids));
        }
        self.progress.cursor += count as u64;
        let sampling = Sampling {
            temperature: grpo.temperature,
            max_tokens: setup.completion_limit(grpo.max_completion_tokens),
        };
        let model = &self.learner.model;
        let mut completions = self
            .rollout
            .generate(setup, model, backend, prompts, sampling, &mut |_| ())?
            .into_iter();
        let group = |(problem, prompt)| {
            Group::judged(
                setup,
                problem,
                prompt,
                completions.by_ref().take(grpo.group_size).collect(),
            )
        };
        problems.into_iter().map(group).collect()
    }

    /// Greatest difference between the log-probabilities of rollout and model over all completions,
    /// for a step that trains on none: the law is looked at in every step.
    fn compare_rollout(&mut self, groups: &[Group], backend: &dyn Backend) -> f64 {
        let grpo = &self.setup.config.grpo;
        let batch = training_batch(grpo, groups, true);
        let temperature = grpo.temperature as f32;
        let logprobs = self.learner.score_own(backend, &batch.pieces, temperature);
        largest_difference(&logprobs, &batch.rollout_logprobs)
    }

    /// Updates on one batch; the metrics of loss are those of the last, which with one update is
    /// the only one.
    fn learn(
        &mut self,
        batch: &TrainingBatch,
        backend: &dyn Backend,
        metrics: &mut GrpoMetrics,
    ) -> Result<(), Error> {
        let grpo = &self.setup.config.grpo;
        let temperature = grpo.temperature as f32;
        let reference = self.reference.as_ref();
        let ref_logprobs = reference.map(|model| {
            self.learner
                .score_other(model, backend, &batch.pieces, temperature)
        });
        for update in 0..grpo.updates_per_batch {
            // Before the first update the weights are those of the rollout.
            let logprobs = match update {
                0 => batch.rollout_logprobs.clone(),
                _ => self.learner.score_own(backend, &batch.pieces, temperature),
            };
            let result = self.loss(batch, &logprobs, ref_logprobs.as_deref());
            let outputs = self.learner.backward(
                backend,
                &batch.pieces,
                temperature,
                &result.dlogprobs,
                SideLosses {
                    balance_alpha: grpo.balance_loss_alpha,
                    mtp_weight: 0.0,
                },
            );
            if update == 0 {
                metrics.max_abs_logp_diff = largest_difference(&outputs.logprobs, &logprobs);
                metrics.entropy = mean(&batch.pieces, &outputs.entropies);
            }
            let done = self
                .learner
                .update(backend, &mut self.progress, result.loss)?;
            metrics.set_loss(&result, &done);
        }
        Ok(())
    }

    fn loss(
        &self,
        batch: &TrainingBatch,
        logprobs: &[f32],
        ref_logprobs: Option<&[f32]>,
    ) -> TokenLoss {
        let grpo = &self.setup.config.grpo;
        let inputs = TokenInputs {
            logprobs,
            old_logprobs: &batch.rollout_logprobs,
            ref_logprobs,
            advantages: &batch.advantages,
            weights: &batch.weights,
        };
        let clip = Clip {
            clip_eps_low: grpo.clip_eps_low,
            clip_eps_high: grpo.clip_eps_high,
            kl_coef: grpo.kl_coef,
        };
        token_loss_and_gradient(&inputs, &clip)
    }
}

impl Stage for Grpo<'_> {
    type Metrics = GrpoMetrics;
    const NAME: &'static str = "grpo";

    fn steps(&self) -> u64 {
        self.setup.config.grpo.steps
    }

    /// # Errors
    /// [`Error::Engine`] if the prompts do not fit the model; [`Error::NonFinite`].
    fn step(&mut self, backend: &dyn Backend) -> Result<GrpoMetrics, Error> {
        let grpo = &self.setup.config.grpo;
        let (groups, rounds) = self.groups(backend)?;
        let tokens = |group: &Group| {
            let completions: usize = group.completions.iter().map(|c| c.token_ids.len()).sum();
            (group.prompt.len() * group.completions.len() + completions) as u64
        };
        self.progress.num_tokens += groups.iter().map(tokens).sum::<u64>();
        self.samples = samples(self.setup, &groups, self.progress.step);
        let mut metrics = Totals::of(&groups).metrics();
        metrics.rollout_rounds = rounds;
        let batch = training_batch(grpo, &groups, !grpo.drop_zero_variance);
        if batch.pieces.is_empty() {
            metrics.max_abs_logp_diff = self.compare_rollout(&groups, backend);
        }
        self.learn(&batch, backend, &mut metrics)?;
        let speed = if metrics.skipped {
            0.0
        } else {
            grpo.bias_update_speed
        };
        metrics.load_violation = self.learner.balance(speed);
        self.progress.step += 1;
        metrics.step = self.progress.step;
        metrics.num_tokens = self.progress.num_tokens;
        Ok(metrics)
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

    fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

impl Group {
    fn judged(
        setup: &Setup,
        problem: Problem,
        prompt: Vec<u32>,
        completions: Vec<Completion>,
    ) -> Result<Group, Error> {
        let judged = completions
            .iter()
            .map(|completion| judge(setup, &problem, &completion.token_ids))
            .collect::<Result<Vec<_>, Error>>()?;
        let rewards: Vec<f64> = judged.iter().map(|j| j.reward.total).collect();
        Ok(Group {
            problem,
            prompt,
            completions,
            judged,
            advantages: advantages(&rewards, setup.config.grpo.advantage),
        })
    }

    pub fn cut_off(&self) -> usize {
        self.completions
            .iter()
            .filter(|c| c.finish_reason == FinishReason::Length)
            .count()
    }
}

/// The first completion of the first groups, those that teach something before the others.
fn samples(setup: &Setup, groups: &[Group], step: u64) -> Vec<Sample> {
    let (mut first, others): (Vec<&Group>, Vec<&Group>) =
        groups.iter().partition(|group| group.advantages.is_some());
    first.extend(others);
    let sample = |group: &&Group| {
        let advantage = group.advantages.as_ref().map_or(0.0, |list| list[0]);
        group.judged[0].sample(setup, &group.problem, step, advantage)
    };
    first
        .iter()
        .take(setup.config.grpo.samples_per_step)
        .map(sample)
        .collect()
}

/// The completions of the groups that teach something, or with `all` of every group.
fn training_batch(grpo: &GrpoConfig, groups: &[Group], all: bool) -> TrainingBatch {
    let zeros = vec![0.0; grpo.group_size];
    let mut chosen: Vec<(&Group, &Completion, f32)> = Vec::new();
    for group in groups {
        let advantages = match &group.advantages {
            Some(advantages) => advantages,
            None if all => &zeros,
            None => continue,
        };
        chosen.extend(
            group
                .completions
                .iter()
                .zip(advantages)
                .map(|(c, &a)| (group, c, a)),
        );
    }
    let documents: Vec<Example> = chosen
        .iter()
        .map(|(group, completion, _)| Example {
            token_ids: [&group.prompt[..], &completion.token_ids].concat(),
            prompt_len: group.prompt.len(),
        })
        .collect();
    let tokens: usize = chosen.iter().map(|(_, c, _)| c.token_ids.len()).sum();
    let mut batch = TrainingBatch {
        pieces: pack(&documents, grpo.piece_tokens, false),
        rollout_logprobs: Vec::with_capacity(tokens),
        advantages: Vec::with_capacity(tokens),
        weights: Vec::with_capacity(tokens),
    };
    for (_, completion, advantage) in &chosen {
        let length = completion.token_ids.len();
        let weight = match grpo.normalisation {
            Normalisation::Token => 1.0 / tokens as f64,
            Normalisation::Sequence => 1.0 / (chosen.len() * length) as f64,
        };
        batch
            .rollout_logprobs
            .extend_from_slice(&completion.logprobs);
        batch
            .advantages
            .extend(std::iter::repeat_n(*advantage, length));
        batch.weights.extend(std::iter::repeat_n(weight, length));
    }
    batch
}

/// Infinite where one of the two is not a number, so that nothing hides behind a comparison.
fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "one log-probability for each token");
    let difference = |(a, b): (&f32, &f32)| {
        let difference = f64::from((a - b).abs());
        if difference.is_nan() {
            f64::INFINITY
        } else {
            difference
        }
    };
    a.iter().zip(b).map(difference).fold(0.0, f64::max)
}

fn rates(grpo: &GrpoConfig) -> (Hyperparameters, Schedule) {
    let rates = Hyperparameters {
        beta1: grpo.beta1,
        beta2: grpo.beta2,
        eps: grpo.eps,
        weight_decay: grpo.weight_decay,
        max_grad_norm: grpo.max_grad_norm,
    };
    let schedule = Schedule {
        shape: grpo.schedule,
        peak: grpo.learning_rate,
        warmup_steps: grpo.warmup_steps,
        final_fraction: grpo.final_lr_fraction,
        steps: grpo.steps,
    };
    (rates, schedule)
}

#[cfg(test)]
mod tests;

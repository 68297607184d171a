//! Tokens out: requests in, completions out, as many at a time as a cache of latents holds.
//!
//! Continuous batching (Yu et al. 2022, "Orca") over a block-paged cache (Kwon et al. 2023,
//! "Efficient memory management for large language model serving with PagedAttention"), with
//! prompts computed in chunks beside the sequences that decode. Beginnings of text that were
//! computed before are found in the cache, and guesses at the tokens to come are verified several
//! at a time (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding").
//! Token ids only: text is another crate's business.
//!
//! # What a completion depends on
//! The weights and its own request, to the bit. Not the other requests, the size of batches, blocks
//! or cache, what the cache holds, which guesses were tried, a preemption, the threads, or the
//! instruction set. A guess is kept only if it is the very token that would have been drawn. So the
//! log-probabilities recorded here are those that a training pass over the same tokens computes.

#![forbid(unsafe_code)]

mod adjust;
mod block_manager;
mod config;
mod draft;
mod error;
mod filter;
mod output;
mod params;
mod prefix;
mod queue;
mod request;
mod sampler;
mod scheduler;
mod sequence;
mod step;

pub use config::{EngineConfig, Speculation};
pub use error::Error;
pub use output::{Completion, FinishReason, Output, Progress, PromptOutcome, ScoredToken, Stats};
pub use params::{LogprobsOf, SamplingParams};
pub use request::{Allowed, Constraint, Request, SequenceId, Submission};

use kernels::Backend;
use model::{Config, KvCache, Model};
use scheduler::Scheduler;
use sequence::Sequence;
use step::Step;

/// Turns requests into completions with any model of one configuration.
///
/// The weights may change while the engine is idle and keeps no blocks
/// ([`EngineConfig::prefix_caching`]), and must not otherwise: the latents in the cache would be
/// those of the old weights.
pub struct Engine {
    config: Config,
    scheduler: Scheduler,
    step: Step,
    num_arrived: u64,
}

impl Engine {
    /// An engine for models of one configuration, its cache allocated.
    ///
    /// # Errors
    /// [`Error::Config`] if a size is 0 or out of range, or the cache too large to address.
    pub fn new(model: &Config, engine: EngineConfig) -> Result<Engine, Error> {
        engine.validate(model)?;
        let predicts = engine.drafts_with_mtp(model);
        let cache = match predicts {
            false => KvCache::new(model, engine.num_blocks, engine.block_size),
            true => KvCache::with_mtp(model, engine.num_blocks, engine.block_size),
        };
        Ok(Engine {
            config: model.clone(),
            scheduler: Scheduler::new(engine),
            step: Step::new(cache, predicts.then_some(engine.speculation.max_num_seqs)),
            num_arrived: 0,
        })
    }

    /// Takes a request; [`advance`](Engine::advance) will give its tokens as they come.
    ///
    /// # Errors
    /// An empty prompt, a token id outside the vocabulary, parameters out of range, or more tokens
    /// than the model has positions or the whole cache holds. Nothing is taken then.
    pub fn submit(&mut self, submission: Submission) -> Result<SequenceId, Error> {
        self.validate(&submission.request, submission.prompt_logprobs.is_some())?;
        Ok(self.take(submission))
    }

    /// Takes a request; [`step`](Engine::step) will return its completion some day.
    ///
    /// # Errors
    /// As [`submit`](Engine::submit).
    pub fn add(&mut self, request: Request) -> Result<(), Error> {
        self.submit(request.into()).map(|_| ())
    }

    fn take(&mut self, submission: Submission) -> SequenceId {
        let id = SequenceId(self.num_arrived);
        self.num_arrived += 1;
        self.scheduler.add(Sequence::new(submission, id));
        id
    }

    /// Forgets a sequence, waiting or running; its blocks are free before the next batch. False if
    /// it is not there, or not any more.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.scheduler.cancel(id)
    }

    fn validate(&self, request: &Request, scores_prompt: bool) -> Result<(), Error> {
        let Request {
            sequence,
            ref prompt,
            ref params,
        } = *request;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt { sequence });
        }
        params.validate(sequence, scores_prompt)?;
        let biased: Vec<u32> = params.logit_bias.iter().map(|&(id, _)| id).collect();
        self.check_token_ids(sequence, "prompt", prompt)?;
        self.check_token_ids(sequence, "stop_token_ids", &params.stop_token_ids)?;
        self.check_token_ids(sequence, "logit_bias", &biased)?;
        let max_position_embeddings = self.config.max_position_embeddings;
        let blocks = self.scheduler.blocks();
        let cache_tokens = blocks.num_blocks() * blocks.block_size();
        if prompt.len().saturating_add(params.max_tokens)
            > max_position_embeddings.min(cache_tokens)
        {
            return Err(Error::TooLong {
                sequence,
                prompt_tokens: prompt.len(),
                max_tokens: params.max_tokens,
                max_position_embeddings,
                cache_tokens,
            });
        }
        Ok(())
    }

    fn check_token_ids(
        &self,
        sequence: u64,
        field: &'static str,
        token_ids: &[u32],
    ) -> Result<(), Error> {
        let vocab_size = self.config.vocab_size;
        match token_ids.iter().position(|&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(position) => Err(Error::TokenId {
                sequence,
                field,
                position,
                token_id: token_ids[position],
                vocab_size,
            }),
        }
    }

    /// Computes one batch, and returns what it gave to each sequence, oldest first. Does nothing
    /// when idle.
    ///
    /// # Panics
    /// If the model has another configuration than the engine was made for.
    pub fn advance(&mut self, model: &Model, backend: &dyn Backend) -> Vec<Output> {
        self.compute(model, backend).0
    }

    /// Computes one batch, and returns the completions that it finished, oldest first. Does
    /// nothing when idle.
    ///
    /// # Panics
    /// If the model has another configuration than the engine was made for.
    pub fn step(&mut self, model: &Model, backend: &dyn Backend) -> Vec<Completion> {
        let (_, finished) = self.compute(model, backend);
        finished
            .into_iter()
            .map(Sequence::into_completion)
            .collect()
    }

    /// Completions of all requests, in their order. `progress` is called after every batch.
    ///
    /// # Errors
    /// As [`add`](Engine::add), for the first request that is wrong; none is taken then.
    ///
    /// # Panics
    /// If other requests are under way, or as [`step`](Engine::step).
    pub fn generate(
        &mut self,
        model: &Model,
        backend: &dyn Backend,
        requests: Vec<Request>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Completion>, Error> {
        assert!(self.is_idle(), "generate beside requests under way");
        requests
            .iter()
            .try_for_each(|request| self.validate(request, false))?;
        let total = requests.len();
        let (first, before) = (self.num_arrived, self.scheduler.stats.generated_tokens);
        for request in requests {
            self.take(request.into());
        }
        let mut completions: Vec<Option<Completion>> = vec![None; total];
        let mut finished = 0;
        while !self.is_idle() {
            for sequence in self.compute(model, backend).1 {
                let place = (sequence.id.0 - first) as usize;
                completions[place] = Some(sequence.into_completion());
                finished += 1;
            }
            let generated_tokens = (self.scheduler.stats.generated_tokens - before) as usize;
            progress(Progress {
                finished,
                total,
                generated_tokens,
            });
        }
        assert_eq!(
            finished, total,
            "an idle engine has completed every request"
        );
        Ok(completions.into_iter().flatten().collect())
    }

    /// One batch: schedule, compute, sample, retire.
    fn compute(&mut self, model: &Model, backend: &dyn Backend) -> (Vec<Output>, Vec<Sequence>) {
        assert_eq!(
            self.config, model.config,
            "the engine was made for another model"
        );
        if self.is_idle() {
            return (Vec::new(), Vec::new());
        }
        self.scheduler.schedule();
        let outputs = self.step.run(model, backend, &mut self.scheduler);
        (outputs, self.scheduler.retire())
    }

    /// Whether every request has its completion.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// How the engine is doing.
    pub fn stats(&self) -> Stats {
        self.scheduler.stats()
    }
}

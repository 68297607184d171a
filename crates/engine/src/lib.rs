//! Tokens out: requests in, completions out, as many at a time as a cache of latents holds.
//!
//! Continuous batching (Yu et al. 2022, "Orca") over a block-paged cache (Kwon et al. 2023,
//! "Efficient memory management for large language model serving with PagedAttention"), with
//! prompts computed in chunks beside the sequences that decode. Token ids only: text is another
//! crate's business.
//!
//! # What a completion depends on
//! The weights and its own request, to the bit. Not the other requests, the size of batches, blocks
//! or cache, a preemption, the threads, or the instruction set. So the log-probabilities recorded
//! here are those that a training pass over the same tokens computes.

#![forbid(unsafe_code)]

mod block_manager;
mod error;
mod sampler;
mod scheduler;
mod sequence;

pub use error::Error;
pub use sequence::{Completion, FinishReason, Request, SamplingParams};

use block_manager::BlockManager;
use kernels::{Backend, Mat};
use model::{Activations, Batch, CachePlaces, Config, KvCache, Model};
use sampler::Sampler;
use scheduler::Scheduler;
use sequence::Sequence;

/// Rows whose logits exist at one time, which bounds memory where the vocabulary is large.
const LOGIT_ROWS: usize = 256;

/// The sizes of an engine. They change speed and memory, never a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences that run at one time at most.
    pub max_num_seqs: usize,
    /// Tokens of one batch at most; longer prompts are computed in chunks.
    pub max_num_batched_tokens: usize,
    /// Tokens per block of the cache.
    pub block_size: usize,
    /// Blocks of the cache, shared by all sequences that run.
    pub num_blocks: usize,
}

impl EngineConfig {
    fn validate(&self, model: &Config) -> Result<(), Error> {
        let fields = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
        ];
        if let Some((field, value)) = fields.into_iter().find(|&(_, value)| value == 0) {
            return Err(Error::Config {
                field,
                value,
                message: "it must be at least 1",
            });
        }
        let token_bytes = model.cache_elements_per_token() * size_of::<f32>();
        let tokens = self.num_blocks.checked_mul(self.block_size);
        let fits = tokens.is_some_and(|tokens| {
            tokens <= u32::MAX as usize
                && tokens
                    .checked_mul(token_bytes)
                    .is_some_and(|bytes| bytes <= isize::MAX as usize)
        });
        if !fits {
            return Err(Error::Config {
                field: "num_blocks",
                value: self.num_blocks,
                message: "times `block_size` it makes a cache that cannot be addressed; lower \
                          either",
            });
        }
        Ok(())
    }
}

/// How far [`Engine::generate`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Requests that have their completion.
    pub finished: usize,
    /// Requests in all.
    pub total: usize,
    /// Tokens generated so far, over all requests.
    pub generated_tokens: usize,
}

/// Turns requests into completions with any model of one configuration.
///
/// The weights may change while the engine is idle, and must not while sequences are under way:
/// their latents in the cache would be those of the old weights.
pub struct Engine {
    config: Config,
    scheduler: Scheduler,
    cache: KvCache,
    activations: Activations,
    batch: Batch,
    sampler: Sampler,
    /// Of the sequences due a token: place among those running, and last row in the batch.
    due: Vec<usize>,
    rows: Vec<u32>,
    logits: Vec<f32>,
    num_arrived: u64,
    num_generated: u64,
}

impl Engine {
    /// An engine for models of one configuration, its cache allocated.
    ///
    /// # Errors
    /// [`Error::Config`] if a size is 0, or the cache too large to address.
    pub fn new(model: &Config, engine: EngineConfig) -> Result<Engine, Error> {
        engine.validate(model)?;
        let blocks = BlockManager::new(engine.num_blocks, engine.block_size);
        let scheduler = Scheduler::new(blocks, engine.max_num_seqs, engine.max_num_batched_tokens);
        Ok(Engine {
            config: model.clone(),
            scheduler,
            cache: KvCache::new(model, engine.num_blocks, engine.block_size),
            activations: Activations::for_inference(),
            batch: Batch::default(),
            sampler: Sampler::default(),
            due: Vec::new(),
            rows: Vec::new(),
            logits: Vec::new(),
            num_arrived: 0,
            num_generated: 0,
        })
    }

    /// Takes a request; [`step`](Engine::step) will return its completion some day.
    ///
    /// # Errors
    /// An empty prompt, a token id outside the vocabulary, parameters out of range, or more tokens
    /// than the model has positions or the whole cache holds. Nothing is taken then.
    pub fn add(&mut self, request: Request) -> Result<(), Error> {
        self.validate(&request)?;
        self.take(request);
        Ok(())
    }

    fn take(&mut self, request: Request) {
        self.scheduler.add(Sequence::new(request, self.num_arrived));
        self.num_arrived += 1;
    }

    fn validate(&self, request: &Request) -> Result<(), Error> {
        let Request {
            sequence,
            ref prompt,
            ref params,
        } = *request;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt { sequence });
        }
        params.validate(sequence)?;
        self.check_token_ids(sequence, "prompt", prompt)?;
        self.check_token_ids(sequence, "stop_token_ids", &params.stop_token_ids)?;
        let max_position_embeddings = self.config.max_position_embeddings;
        let cache_tokens = self.cache.num_blocks() * self.cache.block_size();
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

    /// Computes one batch, and returns the completions that it finished, oldest first. Does
    /// nothing when idle.
    ///
    /// # Panics
    /// If the model has another configuration than the engine was made for.
    pub fn step(&mut self, model: &Model, backend: &dyn Backend) -> Vec<Completion> {
        let finished = self.advance(model, backend);
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
            .try_for_each(|request| self.validate(request))?;
        let total = requests.len();
        let (first, generated_before) = (self.num_arrived, self.num_generated);
        requests.into_iter().for_each(|request| self.take(request));
        let mut completions: Vec<Option<Completion>> = vec![None; total];
        let mut finished = 0;
        while !self.is_idle() {
            for sequence in self.advance(model, backend) {
                let place = (sequence.arrival - first) as usize;
                completions[place] = Some(sequence.into_completion());
                finished += 1;
            }
            let generated_tokens = (self.num_generated - generated_before) as usize;
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
    fn advance(&mut self, model: &Model, backend: &dyn Backend) -> Vec<Sequence> {
        assert_eq!(
            self.config, model.config,
            "the engine was made for another model"
        );
        if self.is_idle() {
            return Vec::new();
        }
        self.scheduler.schedule();
        self.fill_batch();
        model.forward(
            backend,
            &self.batch,
            &mut self.activations,
            Some(&mut self.cache),
        );
        self.note_computed();
        self.sample(model, backend);
        self.scheduler.retire()
    }

    /// Writes the scheduled chunks into `batch`.
    fn fill_batch(&mut self) {
        let scheduler = &self.scheduler;
        let chunks = scheduler.chunks();
        let mut places = self.batch.places.take().unwrap_or_default();
        let CachePlaces {
            slot_mapping,
            block_tables,
            blocks_per_sequence,
        } = &mut places;
        let batch = &mut self.batch;
        batch.token_ids.clear();
        batch.positions.clear();
        batch.cu_seqlens.clear();
        batch.cu_seqlens.push(0);
        batch.context_lens.clear();
        slot_mapping.clear();
        block_tables.clear();
        let tables = chunks
            .iter()
            .map(|chunk| &scheduler.running[chunk.index].block_table);
        *blocks_per_sequence = tables.map(Vec::len).max().unwrap_or(0);
        for (i, chunk) in chunks.iter().enumerate() {
            let sequence = &scheduler.running[chunk.index];
            let positions = sequence.num_computed..sequence.num_computed + chunk.tokens;
            batch
                .token_ids
                .extend_from_slice(&sequence.token_ids[positions.clone()]);
            batch.positions.extend(positions.clone().map(|p| p as u32));
            batch.cu_seqlens.push(batch.token_ids.len() as u32);
            batch.context_lens.push(positions.end as u32);
            let table = &sequence.block_table;
            slot_mapping.extend(positions.map(|p| scheduler.blocks().slot(table, p)));
            block_tables.extend_from_slice(table);
            // Entries beyond a sequence's own blocks are never read.
            block_tables.resize((i + 1) * *blocks_per_sequence, 0);
        }
        batch.places = Some(places);
    }

    /// Counts the batch as computed, and finds the sequences whose last token was in it.
    fn note_computed(&mut self) {
        self.due.clear();
        self.rows.clear();
        self.scheduler.note_computed();
        for (chunk, ends) in self
            .scheduler
            .chunks()
            .iter()
            .zip(&self.batch.cu_seqlens[1..])
        {
            if self.scheduler.running[chunk.index].num_uncomputed() == 0 {
                self.due.push(chunk.index);
                self.rows.push(ends - 1);
            }
        }
    }

    /// Gives every sequence in `due` its next token.
    fn sample(&mut self, model: &Model, backend: &dyn Backend) {
        let vocab_size = self.config.vocab_size;
        for (rows, due) in self
            .rows
            .chunks(LOGIT_ROWS)
            .zip(self.due.chunks(LOGIT_ROWS))
        {
            model.logits(backend, &mut self.activations, rows, &mut self.logits);
            let logits = Mat::new(&self.logits, vocab_size);
            self.sampler
                .sample(backend, logits, &self.scheduler.running, due);
            let tokens = self.sampler.token_ids.iter().zip(&self.sampler.logprobs);
            for (&index, (&token_id, &logprob)) in due.iter().zip(tokens) {
                self.scheduler.running[index].push(token_id, logprob);
            }
            self.num_generated += due.len() as u64;
        }
    }

    /// Whether every request has its completion.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Sequences whose latents the cache holds, in whole or in part.
    pub fn num_running(&self) -> usize {
        self.scheduler.running.len()
    }

    /// Sequences that wait for blocks, those preempted included.
    pub fn num_waiting(&self) -> usize {
        self.scheduler.num_waiting()
    }

    /// Blocks of the cache that no sequence owns.
    pub fn num_free_blocks(&self) -> usize {
        self.scheduler.blocks().num_free()
    }

    /// Times that a sequence lost its blocks and had to be computed again. Many of them ask for
    /// more blocks, or for fewer sequences at a time.
    pub fn num_preemptions(&self) -> u64 {
        self.scheduler.num_preemptions()
    }
}

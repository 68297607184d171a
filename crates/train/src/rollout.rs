//! Completions from the engine, for rollouts and evaluation.

use engine::{Completion, Engine, EngineConfig, Progress, Request, SamplingParams, Speculation};
use kernels::Backend;
use model::Model;

use crate::error::Error;
use crate::run_config::RunConfig;
use crate::setup::Setup;

/// A prompt to be completed.
pub(crate) struct Prompt {
    /// Names the stream of chance; equal only for equal draws.
    pub sequence: u64,
    pub token_ids: Vec<u32>,
}

/// How all prompts of a call are completed.
#[derive(Clone, Copy)]
pub(crate) struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    pub max_tokens: usize,
}

/// An engine, with a cache as large as the prompts so far needed.
#[derive(Default)]
pub(crate) struct Rollout {
    engine: Option<(Engine, usize)>,
}

impl Rollout {
    /// Completions in the order of the prompts.
    ///
    /// # Errors
    /// [`Error::Engine`] if a prompt does not fit the model.
    pub fn generate(
        &mut self,
        setup: &Setup,
        model: &Model,
        backend: &dyn Backend,
        prompts: Vec<Prompt>,
        sampling: Sampling,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Completion>, Error> {
        let longest = prompts
            .iter()
            .map(|prompt| prompt.token_ids.len())
            .max()
            .unwrap_or(0);
        let needed = engine_config(&setup.config, longest + sampling.max_tokens, prompts.len());
        let params = SamplingParams {
            temperature: sampling.temperature as f32,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_tokens: sampling.max_tokens,
            stop_token_ids: vec![setup.eos_token_id],
            seed: setup.config.seed,
            ..SamplingParams::default()
        };
        let request = |prompt: Prompt| Request {
            sequence: prompt.sequence,
            prompt: prompt.token_ids,
            params: params.clone(),
        };
        let requests = prompts.into_iter().map(request).collect();
        let engine = self.engine(&model.config, needed)?;
        Ok(engine.generate(model, backend, requests, progress)?)
    }

    fn engine(
        &mut self,
        config: &model::Config,
        needed: EngineConfig,
    ) -> Result<&mut Engine, Error> {
        let blocks = needed.num_blocks;
        let engine = match self.engine.take() {
            Some((engine, enough)) if enough >= blocks => (engine, enough),
            _ => (Engine::new(config, needed)?, blocks),
        };
        Ok(&mut self.engine.insert(engine).0)
    }
}

/// Blocks for as many sequences of the greatest length as run at a time, so that none ever waits
/// for a block.
fn engine_config(config: &RunConfig, longest: usize, prompts: usize) -> EngineConfig {
    let engine = &config.engine;
    let at_a_time = engine.max_num_seqs.min(prompts.max(1));
    EngineConfig {
        max_num_seqs: engine.max_num_seqs,
        max_num_batched_tokens: engine.max_num_batched_tokens.max(engine.max_num_seqs),
        block_size: engine.block_size,
        num_blocks: at_a_time * longest.div_ceil(engine.block_size),
        // Weights change between rollouts, and so would what the blocks hold.
        prefix_caching: false,
        speculation: Speculation::default(),
    }
}

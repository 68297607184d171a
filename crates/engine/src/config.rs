//! The sizes of an engine.

use crate::error::Error;
use model::Config;

/// Drafts of one sequence at most, so that their rows of logits fit one round.
const MOST_DRAFTS: usize = 64;

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
    /// Keep the blocks of finished sequences for prompts that begin alike. The weights may not
    /// change then.
    pub prefix_caching: bool,
    pub speculation: Speculation,
}

/// Guessing tokens ahead, which changes speed and never a token. The default guesses none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Longest continuation taken from the sequence's own earlier text; 0 for none, 64 at most.
    pub prompt_lookup: usize,
    /// Draft one token with the model's multi-token prediction, where it has it. The cache holds
    /// one layer more then, and every batch is computed by it too.
    pub mtp: bool,
    /// Draft only while no more sequences than this run.
    pub max_num_seqs: usize,
}

impl EngineConfig {
    pub(crate) fn validate(&self, model: &Config) -> Result<(), Error> {
        let fields = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
        ];
        let refuse = |field, value, message| {
            Err(Error::Config {
                field,
                value,
                message,
            })
        };
        if let Some((field, value)) = fields.into_iter().find(|&(_, value)| value == 0) {
            return refuse(field, value, "it must be at least 1");
        }
        let prompt_lookup = self.speculation.prompt_lookup;
        if prompt_lookup > MOST_DRAFTS {
            return refuse("prompt_lookup", prompt_lookup, "it must be at most 64");
        }
        if !self.cache_fits(model) {
            let message = "times `block_size` it makes a cache that cannot be addressed; lower \
                           either";
            return refuse("num_blocks", self.num_blocks, message);
        }
        Ok(())
    }

    fn cache_fits(&self, model: &Config) -> bool {
        let layers = model.num_hidden_layers;
        let per_layer = model.cache_elements_per_token() / layers;
        let layers = layers + usize::from(self.drafts_with_mtp(model));
        let token_bytes = layers * per_layer * size_of::<f32>();
        let tokens = self.num_blocks.checked_mul(self.block_size);
        tokens.is_some_and(|tokens| {
            tokens <= u32::MAX as usize
                && tokens
                    .checked_mul(token_bytes)
                    .is_some_and(|bytes| bytes <= isize::MAX as usize)
        })
    }

    /// Whether multi-token prediction is asked for and there.
    pub(crate) fn drafts_with_mtp(&self, model: &Config) -> bool {
        self.speculation.mtp && model.num_nextn_predict_layers > 0
    }
}

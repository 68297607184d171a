//! What the engine gives back.

use crate::request::SequenceId;

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// With one of its stop tokens, or because its constraint allows nothing more.
    Stop,
    /// With `max_tokens` tokens.
    Length,
}

/// What was generated for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The request's number.
    pub sequence: u64,
    /// The stop token included.
    pub token_ids: Vec<u32>,
    /// Of each token in nats, of the distribution that the request names.
    pub logprobs: Vec<f32>,
    pub finish_reason: FinishReason,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    pub token_id: u32,
    /// In nats.
    pub logprob: f32,
    /// The likeliest tokens in its place and their log-probabilities, the likeliest first and lower
    /// ids first among equal logits; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// What became known of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptOutcome {
    /// Tokens that were found in the prefix cache when the sequence first ran.
    pub cached_tokens: usize,
    /// Of every token of the prompt but the first; empty unless asked for.
    pub logprobs: Vec<ScoredToken>,
}

/// What one step gave to one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub id: SequenceId,
    /// With the first output of a sequence only.
    pub prompt: Option<PromptOutcome>,
    /// One, or several where drafts were right; none for `max_tokens` 0 or where the constraint
    /// allows nothing.
    pub tokens: Vec<ScoredToken>,
    /// With the last output of a sequence.
    pub finish_reason: Option<FinishReason>,
}

/// How far [`Engine::generate`](crate::Engine::generate) has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Requests that have their completion.
    pub finished: usize,
    /// Requests in all.
    pub total: usize,
    /// Tokens generated so far, over all requests.
    pub generated_tokens: usize,
}

/// How an engine is doing, and what it did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that own blocks of the cache.
    pub running: usize,
    /// Sequences that wait for blocks, those preempted included.
    pub waiting: usize,
    pub num_blocks: usize,
    /// Blocks that no sequence owns: never used, or kept for prompts to come and evicted at need.
    pub free_blocks: usize,
    /// Blocks that prompts to come can share, owned or not.
    pub cached_blocks: usize,
    /// Tokens of prompts whose sequence began to run.
    pub prompt_tokens: u64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u64,
    pub generated_tokens: u64,
    /// Times that a sequence lost its blocks and had to be computed again. Many of them ask for
    /// more blocks, or for fewer sequences at a time.
    pub preemptions: u64,
    /// Tokens guessed ahead.
    pub draft_tokens: u64,
    /// Of these, those that turned out right.
    pub accepted_draft_tokens: u64,
    /// Batches computed.
    pub steps: u64,
}

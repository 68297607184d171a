//! A request on its way to becoming a completion.

use crate::error::Error;

/// Smallest temperature above 0: below, logits over temperature leave the range of f32.
const SMALLEST_TEMPERATURE: f32 = 1e-5;

/// How the next token is chosen. The default is plain sampling at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 takes the likeliest token, the lowest id on ties.
    pub temperature: f32,
    /// Of the tokens that `top_k` leaves, keep the fewest likeliest ones whose share of the
    /// probability reaches this. 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the likeliest tokens, lower ids first on ties. 0 keeps all.
    pub top_k: usize,
    /// Drop tokens less likely than this times the likeliest. 0 drops none.
    pub min_p: f32,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Generation ends with the first of these; it is part of the completion.
    pub stop_token_ids: Vec<u32>,
    /// With the request's sequence number and the position it determines every draw.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_tokens: 16,
            stop_token_ids: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks every range; `sequence` is for the message alone.
    pub(crate) fn validate(&self, sequence: u64) -> Result<(), Error> {
        let temperature = self.temperature;
        let warm = temperature.is_finite() && temperature >= SMALLEST_TEMPERATURE;
        let checks = [
            (
                "temperature",
                temperature.to_string(),
                temperature == 0.0 || warm,
                "0 (the likeliest token always) or a finite number of at least 0.00001",
            ),
            (
                "top_p",
                self.top_p.to_string(),
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0 and at most 1",
            ),
            (
                "min_p",
                self.min_p.to_string(),
                (0.0..=1.0).contains(&self.min_p),
                "from 0 to 1",
            ),
            (
                "max_tokens",
                self.max_tokens.to_string(),
                self.max_tokens > 0,
                "at least 1",
            ),
        ];
        match checks.into_iter().find(|(_, _, good, _)| !good) {
            None => Ok(()),
            Some((field, value, _, allowed)) => Err(Error::SamplingParams {
                sequence,
                field,
                value,
                allowed,
            }),
        }
    }
}

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Names its stream of chance: the same number, seed and prompt give the same completion.
    pub sequence: u64,
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// With one of its stop tokens.
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
    /// Of each token in nats, after temperature (1 when greedy) and before top-k, top-p and min-p.
    pub logprobs: Vec<f32>,
    pub finish_reason: FinishReason,
}

/// A request under way: its tokens, and how far the cache holds them.
pub(crate) struct Sequence {
    /// Position among all requests the engine ever took; the smaller the older.
    pub(crate) arrival: u64,
    pub(crate) sequence: u64,
    pub(crate) params: SamplingParams,
    /// Prompt and sampled tokens.
    pub(crate) token_ids: Vec<u32>,
    pub(crate) num_prompt_tokens: usize,
    /// Tokens whose latents are in the cache.
    pub(crate) num_computed: usize,
    /// Blocks of the cache, oldest positions first.
    pub(crate) block_table: Vec<u32>,
    logprobs: Vec<f32>,
    pub(crate) finish_reason: Option<FinishReason>,
}

impl Sequence {
    pub(crate) fn new(request: Request, arrival: u64) -> Sequence {
        Sequence {
            arrival,
            sequence: request.sequence,
            params: request.params,
            num_prompt_tokens: request.prompt.len(),
            token_ids: request.prompt,
            num_computed: 0,
            block_table: Vec::new(),
            logprobs: Vec::new(),
            finish_reason: None,
        }
    }

    pub(crate) fn num_uncomputed(&self) -> usize {
        self.token_ids.len() - self.num_computed
    }

    /// Tokens sampled so far, which is the position of the next in its stream of chance.
    pub(crate) fn num_sampled(&self) -> usize {
        self.token_ids.len() - self.num_prompt_tokens
    }

    /// Takes a sampled token, and notes whether it was the last.
    pub(crate) fn push(&mut self, token_id: u32, logprob: f32) {
        self.token_ids.push(token_id);
        self.logprobs.push(logprob);
        if self.params.stop_token_ids.contains(&token_id) {
            self.finish_reason = Some(FinishReason::Stop);
        } else if self.num_sampled() >= self.params.max_tokens {
            self.finish_reason = Some(FinishReason::Length);
        }
    }

    /// # Panics
    /// If the sequence is still under way.
    pub(crate) fn into_completion(mut self) -> Completion {
        let finish_reason = self.finish_reason.expect("an unfinished sequence");
        Completion {
            sequence: self.sequence,
            token_ids: self.token_ids.split_off(self.num_prompt_tokens),
            logprobs: self.logprobs,
            finish_reason,
        }
    }
}

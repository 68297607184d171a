//! A request under way: its tokens, and how far the cache holds them.

use crate::adjust::{TokenCounts, mask};
use crate::draft::{Lookup, Pacing};
use crate::output::{Completion, FinishReason, Output, PromptOutcome, ScoredToken};
use crate::params::SamplingParams;
use crate::prefix::Parent;
use crate::request::{Allowed, Constraint, SequenceId, Submission};

/// What became of a row of logits before it is a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adjusted {
    /// It is the model's own.
    Untouched,
    /// It was changed: all logits are finite, but minus infinity where not allowed.
    Changed,
    /// No token may follow.
    Over,
}

/// Where a sequence stands in the prefix cache.
pub(crate) struct Chain {
    /// Blocks of its table whose text is known.
    pub(crate) registered: usize,
    /// What they are to the next.
    pub(crate) parent: Parent,
    /// Blocks from `registered` to here are announced: others may wait for them.
    pub(crate) announced: usize,
    /// Of the full blocks of its tokens, as far as they were needed.
    pub(crate) hashes: Vec<u64>,
}

/// Tokens guessed ahead, and how the guesses fare.
#[derive(Default)]
pub(crate) struct Drafts {
    /// Of the next batch; they follow the last token.
    pub(crate) token_ids: Vec<u32>,
    is_looked_up: bool,
    lookup: Lookup,
    lookup_pacing: Pacing,
    /// What multi-token prediction guesses.
    pub(crate) predicted: Option<u32>,
    prediction_pacing: Pacing,
}

/// A request under way: its tokens, and how far the cache holds them.
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) sequence: u64,
    pub(crate) params: SamplingParams,
    pub(crate) client: u64,
    pub(crate) cache_salt: u64,
    pub(crate) prompt_logprobs: Option<usize>,
    constraint: Option<Box<dyn Constraint>>,
    counts: TokenCounts,
    /// Prompt and sampled tokens.
    pub(crate) token_ids: Vec<u32>,
    pub(crate) num_prompt_tokens: usize,
    /// Tokens whose latents are in the cache.
    pub(crate) num_computed: usize,
    /// Blocks of the cache, oldest positions first.
    pub(crate) block_table: Vec<u32>,
    pub(crate) chain: Chain,
    pub(crate) drafts: Drafts,
    /// Of the prompt's tokens from the second on, as far as they are known.
    prompt_scores: Vec<ScoredToken>,
    /// How many of them are known, reported ones included.
    num_scored: usize,
    /// Tokens found in the prefix cache; `None` until the sequence first runs.
    pub(crate) cached_tokens: Option<usize>,
    logprobs: Vec<f32>,
    /// Tokens of this step.
    fresh: Vec<ScoredToken>,
    was_reported: bool,
    pub(crate) finish_reason: Option<FinishReason>,
}

impl Sequence {
    pub(crate) fn new(submission: Submission, id: SequenceId) -> Sequence {
        let request = submission.request;
        let mut params = request.params;
        params.logit_bias.sort_unstable_by_key(|&(id, _)| id);
        Sequence {
            id,
            sequence: request.sequence,
            counts: TokenCounts::new(&params, &request.prompt),
            params,
            client: submission.client,
            cache_salt: submission.cache_salt,
            prompt_logprobs: submission.prompt_logprobs,
            constraint: submission.constraint,
            num_prompt_tokens: request.prompt.len(),
            token_ids: request.prompt,
            num_computed: 0,
            block_table: Vec::new(),
            chain: Chain {
                registered: 0,
                parent: Parent::Root(submission.cache_salt),
                announced: 0,
                hashes: Vec::new(),
            },
            drafts: Drafts::default(),
            prompt_scores: Vec::new(),
            num_scored: 0,
            cached_tokens: None,
            logprobs: Vec::new(),
            fresh: Vec::new(),
            was_reported: false,
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

    /// Tokens that need not be computed where the cache holds them: the row of the last one gives
    /// the next, and scores of the prompt come from their rows too.
    pub(crate) fn reusable_tokens(&self) -> usize {
        let unscored = self.unscored();
        if unscored.is_empty() {
            self.token_ids.len() - 1
        } else {
            unscored.start
        }
    }

    /// Guesses `most` tokens at most: those that followed before, or the one that multi-token
    /// prediction says.
    pub(crate) fn propose(&mut self, prompt_lookup: usize, most: usize) {
        let drafts = &mut self.drafts;
        let predicted = drafts.predicted.take();
        drafts.token_ids.clear();
        if most == 0 {
            return;
        }
        if prompt_lookup > 0 && drafts.lookup_pacing.is_due() {
            let most = most.min(prompt_lookup);
            drafts.token_ids = drafts.lookup.propose(&self.token_ids, most);
        }
        drafts.is_looked_up = !drafts.token_ids.is_empty();
        if !drafts.is_looked_up && drafts.prediction_pacing.is_due() {
            drafts.token_ids.extend(predicted);
        }
    }

    /// Learns how many of the drafts were right; the rest is forgotten.
    pub(crate) fn note_drafts(&mut self, accepted: usize) {
        let drafts = &mut self.drafts;
        let proposed = drafts.token_ids.len();
        if proposed > 0 && drafts.is_looked_up {
            drafts.lookup.note(proposed, accepted);
            drafts.lookup_pacing.note(accepted > 0);
        } else if proposed > 0 {
            drafts.prediction_pacing.note(accepted > 0);
        }
        drafts.token_ids.clear();
    }

    /// Positions of the prompt whose next token is to be scored still.
    pub(crate) fn unscored(&self) -> std::ops::Range<usize> {
        match self.prompt_logprobs {
            None => 0..0,
            Some(_) => self.num_scored..self.num_prompt_tokens - 1,
        }
    }

    /// Takes the score of the next prompt token.
    pub(crate) fn push_prompt_score(&mut self, score: ScoredToken) {
        self.prompt_scores.push(score);
        self.num_scored += 1;
    }

    /// Whether the row of logits before the next token may be other than the model's.
    pub(crate) fn adjusts(&self) -> bool {
        self.constraint.is_some() || self.params.adjusts()
    }

    /// Changes a row of logits as the parameters and the constraint want it before the next token
    /// is chosen. Called once for each token.
    pub(crate) fn adjust(&mut self, row: &mut [f32]) -> Adjusted {
        let allowed = match &mut self.constraint {
            None => Allowed::Any,
            Some(constraint) => constraint.allowed(),
        };
        if allowed == Allowed::Any && !self.params.adjusts() {
            return Adjusted::Untouched;
        }
        self.counts.adjust(&self.params, row);
        if mask(allowed, row) {
            Adjusted::Changed
        } else {
            Adjusted::Over
        }
    }

    /// Takes a chosen token, and notes whether it was the last.
    pub(crate) fn push(&mut self, token: ScoredToken) {
        let token_id = token.token_id;
        self.token_ids.push(token_id);
        self.logprobs.push(token.logprob);
        self.fresh.push(token);
        if self.params.penalizes() {
            self.counts.add(token_id);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token_id);
        }
        if self.params.stop_token_ids.contains(&token_id) {
            self.finish_reason = Some(FinishReason::Stop);
        } else if self.num_sampled() >= self.params.max_tokens {
            self.finish_reason = Some(FinishReason::Length);
        }
    }

    /// Ends here, without a further token.
    pub(crate) fn finish(&mut self, reason: FinishReason) {
        self.finish_reason = Some(reason);
    }

    /// Takes what this step gave, if it gave anything.
    pub(crate) fn take_output(&mut self) -> Option<Output> {
        if self.fresh.is_empty() && self.finish_reason.is_none() {
            return None;
        }
        let prompt = (!self.was_reported).then(|| PromptOutcome {
            cached_tokens: self.cached_tokens.unwrap_or(0),
            logprobs: std::mem::take(&mut self.prompt_scores),
        });
        self.was_reported = true;
        Some(Output {
            id: self.id,
            prompt,
            tokens: std::mem::take(&mut self.fresh),
            finish_reason: self.finish_reason,
        })
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

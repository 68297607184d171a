//! Logits before they become a distribution: bias, penalties, and what a constraint allows.

use crate::params::SamplingParams;
use crate::request::Allowed;
use std::collections::BTreeMap;

/// Logits beyond this are overflow: clamped, and not-a-number to the lower end, so that every row
/// has a distribution. Over the smallest temperature it still is a finite f32.
pub(crate) const LARGEST_LOGIT: f32 = 1e30;

/// A logit that softmax can work with.
pub(crate) fn finite(logit: f32) -> f32 {
    if logit.is_nan() {
        -LARGEST_LOGIT
    } else {
        logit.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    }
}

/// The tokens that penalties are about; empty where there are none.
#[derive(Default)]
pub(crate) struct TokenCounts {
    /// Distinct ids of the prompt, for the repetition penalty.
    prompt: Vec<u32>,
    /// How often the completion holds each of its ids.
    completion: BTreeMap<u32, u32>,
}

impl TokenCounts {
    pub(crate) fn new(params: &SamplingParams, prompt: &[u32]) -> TokenCounts {
        let mut counts = TokenCounts::default();
        if params.repetition_penalty != 1.0 {
            counts.prompt = prompt.to_vec();
            counts.prompt.sort_unstable();
            counts.prompt.dedup();
        }
        counts
    }

    pub(crate) fn add(&mut self, token_id: u32) {
        *self.completion.entry(token_id).or_default() += 1;
    }

    /// Applies bias and penalties to a row of logits, and makes all of them finite.
    pub(crate) fn adjust(&self, params: &SamplingParams, row: &mut [f32]) {
        for &(id, bias) in &params.logit_bias {
            row[id as usize] += bias;
        }
        let repetition = params.repetition_penalty;
        if repetition != 1.0 {
            let is_new = |id: &&u32| self.prompt.binary_search(id).is_err();
            for &id in self
                .prompt
                .iter()
                .chain(self.completion.keys().filter(is_new))
            {
                let logit = &mut row[id as usize];
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
            }
        }
        for (&id, &count) in &self.completion {
            let logit = &mut row[id as usize];
            *logit = *logit - params.frequency_penalty * count as f32 - params.presence_penalty;
        }
        row.iter_mut().for_each(|logit| *logit = finite(*logit));
    }
}

/// Makes every id that is not allowed impossible. False if none is left.
pub(crate) fn mask(allowed: Allowed, row: &mut [f32]) -> bool {
    match allowed {
        Allowed::Any => true,
        Allowed::Nothing => false,
        Allowed::Exactly(id) => match row.get(id as usize) {
            None => false,
            Some(&logit) => {
                row.fill(f32::NEG_INFINITY);
                row[id as usize] = logit;
                true
            }
        },
        Allowed::Only(words) => {
            let mut is_left = false;
            for (i, ids) in row.chunks_mut(32).enumerate() {
                let word = words.get(i).copied().unwrap_or(0);
                // Most words of a large vocabulary allow nothing.
                if word == 0 {
                    ids.fill(f32::NEG_INFINITY);
                    continue;
                }
                for (bit, logit) in ids.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    } else {
                        is_left = true;
                    }
                }
            }
            is_left
        }
    }
}

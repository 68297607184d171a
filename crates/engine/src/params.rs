//! How the next token is chosen, and which ranges that may have.

use crate::error::Error;

/// Smallest temperature above 0: below, logits over temperature leave the range of f32.
const SMALLEST_TEMPERATURE: f32 = 1e-5;

/// How the next token is chosen. The default is plain sampling at temperature 1.
///
/// The model's logits are changed in this order: `logit_bias`, `repetition_penalty`,
/// `frequency_penalty`, `presence_penalty`, a [`Constraint`](crate::Constraint)'s mask,
/// `temperature`, then `top_k`, `top_p` and `min_p`.
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
    /// Subtracted from the logit of every token that the completion already holds, as OpenAI
    /// defines it; from -2 to 2. 0 changes nothing.
    pub presence_penalty: f32,
    /// The same, times how often the completion holds the token.
    pub frequency_penalty: f32,
    /// Logits of tokens that prompt or completion hold are divided by it if positive and
    /// multiplied if negative (Keskar et al. 2019, "CTRL", as vLLM and Hugging Face apply it); from
    /// 0.01 to 100. 1 changes nothing.
    pub repetition_penalty: f32,
    /// Added to the logits of these ids, from -100 to 100; each id once, in any order.
    pub logit_bias: Vec<(u32, f32)>,
    /// Which distribution log-probabilities are of.
    pub logprobs: LogprobsOf,
    /// Report so many of the likeliest tokens beside each, or the whole vocabulary where that is
    /// smaller, always of the [`Raw`](LogprobsOf::Raw) distribution.
    pub top_logprobs: usize,
}

/// Which distribution log-probabilities are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogprobsOf {
    /// That of the token's draw: after bias, penalties, mask and temperature (1 when greedy), and
    /// before top-k, top-p and min-p. Of plain sampling it is what training recomputes.
    #[default]
    Sampled,
    /// That of the model's own logits at temperature 1.
    Raw,
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
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            logprobs: LogprobsOf::Sampled,
            top_logprobs: 0,
        }
    }
}

impl SamplingParams {
    /// Checks every range; `sequence` is for the message alone. Only a prompt that is scored may
    /// go without a completion.
    pub(crate) fn validate(&self, sequence: u64, scores_prompt: bool) -> Result<(), Error> {
        let refuse = |field, value: String, allowed| Error::SamplingParams {
            sequence,
            field,
            value,
            allowed,
        };
        let numbers = self.numbers();
        if let Some(&(field, value, _, allowed)) = numbers.iter().find(|(_, _, good, _)| !good) {
            return Err(refuse(field, value.to_string(), allowed));
        }
        if self.max_tokens == 0 && !scores_prompt {
            return Err(refuse("max_tokens", "0".to_string(), "at least 1"));
        }
        let bias = &self.logit_bias;
        let mut ids: Vec<u32> = bias.iter().map(|&(id, _)| id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            let value = format!("token id {} twice", twice[0]);
            return Err(refuse("logit_bias", value, "each token id once"));
        }
        match bias
            .iter()
            .find(|(_, bias)| !(-100.0..=100.0).contains(bias))
        {
            None => Ok(()),
            Some((id, bias)) => {
                let value = format!("{bias} for token id {id}");
                Err(refuse("logit_bias", value, "from -100 to 100"))
            }
        }
    }

    /// Fields with their values, whether these are within bounds, and the bounds in words.
    fn numbers(&self) -> [(&'static str, f32, bool, &'static str); 6] {
        let (t, top_p, min_p) = (self.temperature, self.top_p, self.min_p);
        let warm = t == 0.0 || t.is_finite() && t >= SMALLEST_TEMPERATURE;
        let within = "from 0 to 1";
        let (presence, frequency) = (self.presence_penalty, self.frequency_penalty);
        let is_penalty = |penalty| (-2.0..=2.0).contains(penalty);
        let penalty = "from -2 to 2";
        let repetition = self.repetition_penalty;
        let is_factor = (0.01..=100.0).contains(&repetition);
        [
            (
                "temperature",
                t,
                warm,
                "0 (the likeliest token always) or a finite number of at least 0.00001",
            ),
            (
                "top_p",
                top_p,
                top_p > 0.0 && top_p <= 1.0,
                "above 0 and at most 1",
            ),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), within),
            ("presence_penalty", presence, is_penalty(&presence), penalty),
            (
                "frequency_penalty",
                frequency,
                is_penalty(&frequency),
                penalty,
            ),
            (
                "repetition_penalty",
                repetition,
                is_factor,
                "from 0.01 to 100",
            ),
        ]
    }

    /// Whether the model's logits are changed before the temperature.
    pub(crate) fn adjusts(&self) -> bool {
        self.penalizes() || !self.logit_bias.is_empty()
    }

    /// Whether the choice depends on which tokens came before.
    pub(crate) fn penalizes(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }

    /// The temperature of the distribution that log-probabilities are of.
    pub(crate) fn scoring_temperature(&self) -> f32 {
        match (self.logprobs, self.temperature) {
            (LogprobsOf::Raw, _) | (LogprobsOf::Sampled, 0.0) => 1.0,
            (LogprobsOf::Sampled, temperature) => temperature,
        }
    }
}

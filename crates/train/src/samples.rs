//! Completions kept in full for a reader: in reports and in `samples.jsonl`.

use serde::Serialize;
use tasks::Problem;

use crate::setup::Setup;

/// One completion and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Steps of training before it was made.
    pub step: u64,
    pub prompt: String,
    pub completion: String,
    /// The completion in words, wrong arithmetic marked.
    pub explained: String,
    /// `right`, or what is wrong with it.
    pub reason: String,
    pub accuracy: f64,
    pub format: f64,
    pub reward: f64,
    /// 0 where it was not trained on.
    pub advantage: f32,
    /// Tokens of the completion.
    pub length: usize,
}

/// A judged completion.
pub(crate) struct Judged {
    pub text: String,
    pub verdict: tasks::Verdict,
    pub reward: crate::rewards::Reward,
    pub length: usize,
}

impl Judged {
    pub fn sample(&self, setup: &Setup, problem: &Problem, step: u64, advantage: f32) -> Sample {
        Sample {
            step,
            prompt: setup.task.prompt(problem),
            completion: self.text.clone(),
            explained: setup.task.explain(problem, &self.text),
            reason: self.verdict.reason.to_string(),
            accuracy: self.reward.accuracy,
            format: self.reward.format,
            reward: self.reward.total,
            advantage,
            length: self.length,
        }
    }
}

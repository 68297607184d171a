//! Where a stage stands, and what every stage offers to whoever runs it.

use kernels::Backend;
use model::Model;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::optimizer::Optimizer;
use crate::samples::Sample;

/// All that a stage remembers beside weights and moments. Randomness needs nothing here: it is a
/// function of the seed and these counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// The next example or problem to be drawn.
    pub cursor: u64,
    /// Tokens trained on or generated so far, prompts included.
    pub num_tokens: u64,
    /// Steps whose update was skipped because it was not finite, since the last good one.
    pub skipped_in_a_row: u32,
}

/// A stage of training, one step at a time.
pub trait Stage {
    /// One line of `metrics.jsonl`.
    type Metrics: Serialize;
    /// `sft` or `grpo`.
    const NAME: &'static str;

    /// How many steps the whole stage has.
    fn steps(&self) -> u64;

    /// Makes the next step.
    ///
    /// # Errors
    /// See the stage.
    fn step(&mut self, backend: &dyn Backend) -> Result<Self::Metrics, Error>;

    fn progress(&self) -> &Progress;
    fn model(&self) -> &Model;
    fn optimizer(&self) -> &Optimizer;

    /// Completions of the last step for a reader.
    fn samples(&self) -> &[Sample] {
        &[]
    }
}

//! Weights change: supervised training on worked texts, reinforcement learning from checked
//! answers, evaluation, and the run directory that makes both resumable to the bit.
//!
//! A [`RunConfig`] and a tokenizer make a [`Setup`]; [`Sft`] and [`Grpo`] are stages over it, each
//! a loop of [`Stage::step`]; [`drive`] runs a stage inside a [`RunDir`].
//!
//! # What makes a resumed run the same run
//! Randomness is a function of the seed and of counters (the chance law), sums have one order (the
//! sum law), and a checkpoint holds the weights, the moments and the counters: [`Progress`] is all
//! there is.

#![forbid(unsafe_code)]

mod checkpoint;
mod config_text;
mod drive;
mod error;
mod evaluate;
mod examples;
mod fourier;
mod grpo;
mod grpo_metrics;
mod learner;
mod loss;
mod optimizer;
mod pairwise;
mod pieces;
mod progress;
mod rewards;
mod rollout;
mod run_config;
mod run_dir;
mod samples;
mod schedule;
mod setup;
mod sft;
#[cfg(test)]
mod testing;

pub use checkpoint::{Checkpoint, State};
pub use drive::{Control, drive};
pub use error::Error;
pub use evaluate::{EvalResult, evaluate, wilson};
pub use examples::{Example, held_out_problems};
pub use fourier::fourier_init;
pub use grpo::Grpo;
pub use grpo_metrics::GrpoMetrics;
pub use loss::{Clip, TokenInputs, TokenLoss, token_loss_and_gradient};
pub use optimizer::{Hyperparameters, Optimizer};
pub use pairwise::{PairwiseSum, pairwise_sum};
pub use pieces::{Piece, pack};
pub use progress::{Progress, Stage};
pub use rewards::{Reward, advantages, mean_and_std};
pub use run_config::{
    AdvantageName, CheckpointConfig, EngineSettings, EvalConfig, GrpoConfig, MixPart, ModelConfig,
    Normalisation, NumericsConfig, PrecisionName, RunConfig, SftConfig, StyleName, TaskConfig,
    TaskName,
};
pub use run_dir::RunDir;
pub use samples::Sample;
pub use schedule::{Schedule, Shape};
pub use setup::Setup;
pub use sft::{Sft, SftMetrics};

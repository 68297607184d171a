//! What one step of GRPO reports, under TRL's names where it has one.

use serde::Serialize;

use crate::grpo::Group;
use crate::learner::Update;
use crate::loss::TokenLoss;
use crate::rewards::mean_and_std;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GrpoMetrics {
    /// Counted from 1.
    pub step: u64,
    /// Mean reward of all completions, those of groups left out included.
    pub reward: f64,
    /// Mean of the groups' standard deviations.
    pub reward_std: f64,
    #[serde(rename = "rewards/accuracy/mean")]
    pub accuracy_mean: f64,
    #[serde(rename = "rewards/accuracy/std")]
    pub accuracy_std: f64,
    /// Before its weight.
    #[serde(rename = "rewards/format/mean")]
    pub format_mean: f64,
    #[serde(rename = "rewards/format/std")]
    pub format_std: f64,
    pub frac_reward_zero_std: f64,
    /// Tokens.
    #[serde(rename = "completions/mean_length")]
    pub mean_length: f64,
    #[serde(rename = "completions/min_length")]
    pub min_length: usize,
    #[serde(rename = "completions/max_length")]
    pub max_length: usize,
    /// Share of completions that were cut off.
    #[serde(rename = "completions/clipped_ratio")]
    pub clipped_ratio: f64,
    /// Mean over the tokens trained on, in nats. This, `kl`, the clip ratios, `loss` and
    /// `grad_norm` are 0 where `groups_kept` is 0 and no token was trained on.
    pub entropy: f64,
    /// Mean k3 from the reference over the tokens trained on; 0 without a reference.
    pub kl: f64,
    #[serde(rename = "clip_ratio/low_mean")]
    pub clip_low_mean: f64,
    #[serde(rename = "clip_ratio/high_mean")]
    pub clip_high_mean: f64,
    #[serde(rename = "clip_ratio/region_mean")]
    pub clip_region_mean: f64,
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens generated so far, prompts included.
    pub num_tokens: u64,
    /// Tokens of this step's completions.
    pub completion_tokens: u64,
    /// Greatest difference, over all tokens trained on, or in a step that trains on none over all
    /// completions, between the log-probability that the engine recorded and the training pass's.
    /// 0, or a law is broken.
    pub max_abs_logp_diff: f64,
    /// The busiest expert's tokens over the mean, in the worst layer.
    pub load_violation: f64,
    /// Groups that were trained on.
    pub groups_kept: usize,
    /// 1, and one more for each time groups were replaced.
    pub rollout_rounds: u32,
    /// An update was left out because it was not finite.
    pub skipped: bool,
}

impl GrpoMetrics {
    pub(crate) fn set_loss(&mut self, result: &TokenLoss, update: &Update) {
        self.loss = result.loss;
        self.kl = result.kl;
        self.clip_low_mean = result.clipped_low;
        self.clip_high_mean = result.clipped_high;
        self.clip_region_mean = result.clipped_low + result.clipped_high;
        self.grad_norm = update.grad_norm;
        self.learning_rate = update.learning_rate;
        self.skipped |= update.skipped;
    }
}

/// The rewards and lengths of all completions of a step.
pub(crate) struct Totals {
    rewards: Vec<f64>,
    accuracy: Vec<f64>,
    format: Vec<f64>,
    lengths: Vec<usize>,
    group_stds: Vec<f64>,
    cut_off: usize,
    kept: usize,
}

impl Totals {
    pub fn of(groups: &[Group]) -> Totals {
        let judged = || groups.iter().flat_map(|group| &group.judged);
        let group_std = |group: &Group| {
            let rewards: Vec<f64> = group.judged.iter().map(|j| j.reward.total).collect();
            if group.advantages.is_none() {
                0.0
            } else {
                mean_and_std(&rewards).1
            }
        };
        Totals {
            rewards: judged().map(|j| j.reward.total).collect(),
            accuracy: judged().map(|j| j.reward.accuracy).collect(),
            format: judged().map(|j| j.reward.format).collect(),
            lengths: judged().map(|j| j.length).collect(),
            group_stds: groups.iter().map(group_std).collect(),
            cut_off: groups.iter().map(Group::cut_off).sum(),
            kept: groups
                .iter()
                .filter(|group| group.advantages.is_some())
                .count(),
        }
    }

    pub fn metrics(&self) -> GrpoMetrics {
        let tokens: usize = self.lengths.iter().sum();
        let completions = self.lengths.len() as f64;
        let groups = self.group_stds.len();
        let (accuracy_mean, accuracy_std) = mean_and_std(&self.accuracy);
        let (format_mean, format_std) = mean_and_std(&self.format);
        GrpoMetrics {
            reward: mean_and_std(&self.rewards).0,
            reward_std: mean_and_std(&self.group_stds).0,
            accuracy_mean,
            accuracy_std,
            format_mean,
            format_std,
            frac_reward_zero_std: (groups - self.kept) as f64 / groups as f64,
            mean_length: tokens as f64 / completions,
            min_length: self.lengths.iter().copied().min().unwrap_or(0),
            max_length: self.lengths.iter().copied().max().unwrap_or(0),
            clipped_ratio: self.cut_off as f64 / completions,
            completion_tokens: tokens as u64,
            groups_kept: self.kept,
            ..GrpoMetrics::default()
        }
    }
}

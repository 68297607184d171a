//! All settings of a run, as its TOML file has them.
//!
//! Every field has a default, a key that nobody knows is an error, and the merged settings are
//! written back beside the results, so that a run can be repeated from its own directory.

use serde::{Deserialize, Serialize};

use crate::schedule::Shape;

/// A run: what is learnt, by what model, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The one seed of all randomness: weights, problems, traces, sampling.
    pub seed: u64,
    /// What is learnt.
    pub task: TaskConfig,
    /// The shape of a model that starts from nothing.
    pub model: ModelConfig,
    /// How matrix products round.
    pub numerics: NumericsConfig,
    /// Sizes of the engine; speed and memory, never a result.
    pub engine: EngineSettings,
    /// The first stage.
    pub sft: SftConfig,
    /// The second stage.
    pub grpo: GrpoConfig,
    /// How models are judged.
    pub eval: EvalConfig,
    /// When the state is saved.
    pub checkpoint: CheckpointConfig,
}

/// Which task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskName {
    Countdown,
    Multiplication,
}

/// The task and its settings; those of the other task are not looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskConfig {
    /// `countdown` or `multiplication`.
    pub name: TaskName,
    /// Countdown: how many numbers, 3 or 4.
    pub numbers: usize,
    /// Countdown: numbers are uniform in 1 to this, at most 999.
    pub max_number: u32,
    /// Countdown of four numbers: how many first steps a worked text tries at most.
    pub first_step_tries: usize,
    /// Countdown of four numbers: how many last numbers each first step gets, 1 to 3.
    pub last_numbers_per_try: usize,
    /// Countdown: the most words of a worked text; 0 takes the task's own limit.
    pub max_trace_tokens: usize,
    /// Multiplication: digits of the two factors, 1 to 3 each.
    pub digits: [u32; 2],
}

impl Default for TaskConfig {
    fn default() -> TaskConfig {
        TaskConfig {
            name: TaskName::Countdown,
            numbers: 3,
            max_number: 99,
            first_step_tries: 6,
            last_numbers_per_try: 3,
            max_trace_tokens: 0,
            digits: [2, 2],
        }
    }
}

/// The shape of a model trained from nothing: fields of `config.json` by their own names. The
/// vocabulary and the special tokens come from the tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the leading dense layers.
    pub intermediate_size: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    /// Dense and routed layers together.
    pub num_hidden_layers: usize,
    /// Query heads; each has its own keys and values, expanded from one latent.
    pub num_attention_heads: usize,
    /// 0 makes the model dense.
    pub n_routed_experts: usize,
    /// Experts that every token visits.
    pub n_shared_experts: usize,
    /// Routed experts that a token visits.
    pub num_experts_per_tok: usize,
    /// How many leading layers are dense.
    pub first_k_dense_replace: usize,
    /// 0 projects queries directly.
    pub q_lora_rank: usize,
    /// Width of the latent that is cached in place of keys and values.
    pub kv_lora_rank: usize,
    /// Of each query and key head, the part without position.
    pub qk_nope_head_dim: usize,
    /// Of each query and key head, the rotated part; even.
    pub qk_rope_head_dim: usize,
    /// Of each value head.
    pub v_head_dim: usize,
    /// Base of the rotation's wavelengths.
    pub rope_theta: f64,
    /// What the output of the routed experts is multiplied by.
    pub routed_scaling_factor: f64,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// The longest sequence, prompt and completion together.
    pub max_position_embeddings: usize,
    /// 1 adds a layer that learns to predict the token after the next (DeepSeek-V3 2.2).
    pub num_nextn_predict_layers: usize,
    /// Start the rows of numbers, in the embedding and in the head, as Fourier features of their
    /// values.
    pub fourier: bool,
}

impl ModelConfig {
    /// The experts, if any layer has some.
    pub(crate) fn mixture(&self) -> Option<model::Moe> {
        let routed =
            self.n_routed_experts > 0 && self.first_k_dense_replace < self.num_hidden_layers;
        routed.then_some(model::Moe {
            n_routed_experts: self.n_routed_experts,
            n_shared_experts: self.n_shared_experts,
            num_experts_per_tok: self.num_experts_per_tok,
            moe_intermediate_size: self.moe_intermediate_size,
            dense_layers: model::DenseLayers::First(self.first_k_dense_replace),
            scoring_func: model::ScoringFunc::Sigmoid,
            topk_method: model::TopkMethod::NoauxTc,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: self.routed_scaling_factor,
        })
    }
}

impl Default for ModelConfig {
    fn default() -> ModelConfig {
        ModelConfig {
            hidden_size: 192,
            intermediate_size: 512,
            moe_intermediate_size: 128,
            num_hidden_layers: 3,
            num_attention_heads: 6,
            n_routed_experts: 8,
            n_shared_experts: 1,
            num_experts_per_tok: 3,
            first_k_dense_replace: 1,
            q_lora_rank: 0,
            kv_lora_rank: 64,
            qk_nope_head_dim: 32,
            qk_rope_head_dim: 16,
            v_head_dim: 32,
            rope_theta: 10_000.0,
            routed_scaling_factor: 1.0,
            initializer_range: 0.02,
            max_position_embeddings: 512,
            num_nextn_predict_layers: 0,
            fourier: true,
        }
    }
}

/// What the operands of matrix products are rounded to; sums are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionName {
    F32,
    Bf16,
}

impl From<PrecisionName> for kernels::Precision {
    fn from(name: PrecisionName) -> kernels::Precision {
        match name {
            PrecisionName::F32 => kernels::Precision::F32,
            PrecisionName::Bf16 => kernels::Precision::Bf16,
        }
    }
}

/// How matrix products round their operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NumericsConfig {
    /// Of all products but the head's: `bf16` or `f32`.
    pub precision: PrecisionName,
    /// Of the output head. In f32 the asymptote of RL is higher (ScaleRL, arXiv 2510.13786).
    pub head_precision: PrecisionName,
}

impl Default for NumericsConfig {
    fn default() -> NumericsConfig {
        NumericsConfig {
            precision: PrecisionName::Bf16,
            head_precision: PrecisionName::F32,
        }
    }
}

/// The engine behind rollouts and evaluation. None of these changes a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Sequences decoded at a time.
    pub max_num_seqs: usize,
    /// Tokens of one forward pass.
    pub max_num_batched_tokens: usize,
    /// Tokens of one cache block.
    pub block_size: usize,
}

impl Default for EngineSettings {
    fn default() -> EngineSettings {
        EngineSettings {
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            block_size: 16,
        }
    }
}

/// How a worked text goes about its problem: [`tasks::TraceStyle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StyleName {
    /// The task's own way of working in full.
    Row,
    /// The answer at once.
    Blurt,
    /// Depth-first search with dead ends.
    DepthFirst,
}

impl From<StyleName> for tasks::TraceStyle {
    fn from(name: StyleName) -> tasks::TraceStyle {
        match name {
            StyleName::Row => tasks::TraceStyle::Row,
            StyleName::Blurt => tasks::TraceStyle::Blurt,
            StyleName::DepthFirst => tasks::TraceStyle::DepthFirst,
        }
    }
}

/// One part of the mixture of worked texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixPart {
    /// `row`, `blurt` or `depth_first`.
    pub style: StyleName,
    /// Share among the parts that are active at the step; the shares need not add up to 1.
    pub weight: f64,
    /// The first step (counted from 0) with this part.
    #[serde(default)]
    pub from_step: u64,
    /// The first step without it again.
    #[serde(default = "end_of_time")]
    pub until_step: u64,
}

/// The largest integer TOML has, so that the default can be written back.
fn end_of_time() -> u64 {
    i64::MAX as u64
}

/// Supervised training on worked texts made as they are needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of one step, prompts included; a multiple of `piece_tokens`.
    pub tokens_per_step: usize,
    /// Tokens of one piece: gradients are taken per piece and joined in a fixed tree. Part of the
    /// result: another size is another rounding.
    pub piece_tokens: usize,
    /// The peak.
    pub learning_rate: f64,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: u64,
    /// What the schedule ends at, as a fraction of `learning_rate`.
    pub final_lr_fraction: f64,
    /// `cosine`, `linear` or `constant`.
    pub schedule: Shape,
    /// Adam's memory of gradients.
    pub beta1: f64,
    /// Adam's memory of their squares.
    pub beta2: f64,
    /// Added to the root of the squares.
    pub eps: f64,
    /// Of matrices; vectors (norms) have none.
    pub weight_decay: f64,
    /// The gradient's norm is clipped to this.
    pub max_grad_norm: f64,
    /// Learn to write the prompts too.
    pub loss_on_prompt: bool,
    /// Weight of the sequence-wise balance loss (DeepSeek-V3 2.1.2).
    pub balance_loss_alpha: f64,
    /// Speed of the router's bias towards balance (DeepSeek-V3 2.1.2).
    pub bias_update_speed: f64,
    /// Weight of the loss of multi-token prediction, where the model has it (DeepSeek-V3 4.2: 0.3,
    /// later 0.1). Reinforcement learning leaves that layer alone.
    pub mtp_loss_weight: f64,
    /// The mixture of worked texts; empty means `row` alone.
    pub mix: Vec<MixPart>,
    /// How much likelier than by nature a problem is whose `row` working needs 1, 2, 3 … attempts;
    /// the last entry holds for all beyond. Empty leaves the problems as they are drawn.
    pub attempt_weights: Vec<f64>,
}

impl Default for SftConfig {
    fn default() -> SftConfig {
        SftConfig {
            steps: 2000,
            tokens_per_step: 2048,
            piece_tokens: 1024,
            learning_rate: 3e-3,
            warmup_steps: 60,
            final_lr_fraction: 0.05,
            schedule: Shape::Cosine,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            loss_on_prompt: false,
            balance_loss_alpha: 1e-4,
            bias_update_speed: 1e-3,
            mtp_loss_weight: 0.3,
            mix: Vec::new(),
            attempt_weights: Vec::new(),
        }
    }
}

/// How a step's loss weighs its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalisation {
    /// Every completion token of the step the same (DAPO, arXiv 2503.14476).
    Token,
    /// Every completion the same, whatever its length (GRPO, arXiv 2402.03300).
    Sequence,
}

/// What a reward is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdvantageName {
    /// Reward less its group's mean (Dr. GRPO, arXiv 2503.20783).
    Mean,
    /// The same, divided by the group's standard deviation (GRPO).
    Std,
}

/// Reinforcement learning from checked answers (GRPO).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoConfig {
    /// Batches of rollouts.
    pub steps: u64,
    /// Problems of one step.
    pub problems_per_step: usize,
    /// Completions of each problem.
    pub group_size: usize,
    /// Of sampling and of the log-probabilities in the loss.
    pub temperature: f64,
    /// Completions are cut here; 0 takes the task's own limit.
    pub max_completion_tokens: usize,
    /// Optimizer steps on one batch. 1 is exactly on-policy: the ratio is 1 and nothing is clipped.
    pub updates_per_batch: u64,
    /// Tokens of one piece; see `sft.piece_tokens`.
    pub piece_tokens: usize,
    /// See `sft.learning_rate`.
    pub learning_rate: f64,
    /// See `sft.warmup_steps`.
    pub warmup_steps: u64,
    /// See `sft.final_lr_fraction`.
    pub final_lr_fraction: f64,
    /// See `sft.schedule`.
    pub schedule: Shape,
    /// See `sft.beta1`.
    pub beta1: f64,
    /// See `sft.beta2`.
    pub beta2: f64,
    /// See `sft.eps`.
    pub eps: f64,
    /// See `sft.weight_decay`.
    pub weight_decay: f64,
    /// See `sft.max_grad_norm`.
    pub max_grad_norm: f64,
    /// The ratio counts from 1 - this ...
    pub clip_eps_low: f64,
    /// ... to 1 + this.
    pub clip_eps_high: f64,
    /// Weight of the divergence (k3) from the model that training started from; 0 keeps no copy of
    /// it.
    pub kl_coef: f64,
    /// `token` or `sequence`.
    pub normalisation: Normalisation,
    /// `mean` or `std`.
    pub advantage: AdvantageName,
    /// Leave out groups whose rewards are all equal: they teach nothing.
    pub drop_zero_variance: bool,
    /// How often at most new problems are tried in place of those left out.
    pub refill_rounds: u32,
    /// Reward of a well-formed completion; a right answer gives 1.
    pub format_reward: f64,
    /// See `sft.balance_loss_alpha`.
    pub balance_loss_alpha: f64,
    /// See `sft.bias_update_speed`.
    pub bias_update_speed: f64,
    /// Completions of each step kept in full, for a reader.
    pub samples_per_step: usize,
}

impl Default for GrpoConfig {
    fn default() -> GrpoConfig {
        GrpoConfig {
            steps: 80,
            problems_per_step: 64,
            group_size: 8,
            temperature: 1.0,
            max_completion_tokens: 0,
            updates_per_batch: 1,
            piece_tokens: 1024,
            learning_rate: 3e-5,
            warmup_steps: 0,
            final_lr_fraction: 1.0,
            schedule: Shape::Constant,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            clip_eps_low: 0.2,
            clip_eps_high: 0.28,
            kl_coef: 0.0,
            normalisation: Normalisation::Token,
            advantage: AdvantageName::Mean,
            drop_zero_variance: true,
            refill_rounds: 0,
            format_reward: 0.1,
            balance_loss_alpha: 0.0,
            bias_update_speed: 0.0,
            samples_per_step: 2,
        }
    }
}

/// Accuracy on held-out problems, one sample each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// How many; the same ones every time.
    pub problems: usize,
    /// One evaluation for each; 0 is greedy.
    pub temperatures: Vec<f64>,
    /// Completions are cut here; 0 takes the task's own limit.
    pub max_completion_tokens: usize,
    /// Completions kept in full, for a reader.
    pub transcripts: usize,
}

impl Default for EvalConfig {
    fn default() -> EvalConfig {
        EvalConfig {
            problems: 1000,
            temperatures: vec![1.0, 0.0],
            max_completion_tokens: 0,
            transcripts: 8,
        }
    }
}

/// When the state of a run is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 saves at the start and the end only.
    pub every_steps: u64,
    /// How many are kept beside the one of the start.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> CheckpointConfig {
        CheckpointConfig {
            every_steps: 200,
            keep: 2,
        }
    }
}

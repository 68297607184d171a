//! What the tests of this crate share: a setup small enough to train in a moment.

use kernels::{Cpu, Isa};
use tasks::{Countdown, Draw, Problem, Task, TraceStyle, Verdict};

use crate::run_config::{PrecisionName, RunConfig};
use crate::setup::Setup;

pub fn backend() -> Cpu {
    Cpu::new(1, Isa::best())
}

/// Three-number Countdown for a model of one dense and one routed layer, `change` applied.
pub fn tiny_setup(change: impl FnOnce(&mut RunConfig)) -> Setup {
    let mut config = RunConfig::default();
    let model = &mut config.model;
    model.hidden_size = 16;
    model.intermediate_size = 32;
    model.moe_intermediate_size = 16;
    model.num_hidden_layers = 2;
    model.num_attention_heads = 2;
    model.n_routed_experts = 4;
    model.num_experts_per_tok = 2;
    model.kv_lora_rank = 8;
    model.qk_nope_head_dim = 8;
    model.qk_rope_head_dim = 4;
    model.v_head_dim = 8;
    model.max_position_embeddings = 64;
    config.numerics.precision = PrecisionName::F32;
    config.sft.tokens_per_step = 192;
    config.sft.piece_tokens = 96;
    config.grpo.problems_per_step = 3;
    config.grpo.group_size = 4;
    config.grpo.piece_tokens = 96;
    config.grpo.max_completion_tokens = 12;
    change(&mut config);
    Setup::new(config).expect("a small setup")
}

/// Countdown's prompts, where every completion that starts with a number below 500 is right: a coin
/// for an untrained model, and learnt in a few steps.
struct SmallFirst(Countdown);

impl Task for SmallFirst {
    fn name(&self) -> String {
        "small-first".to_string()
    }

    fn problem(&self, draw: &mut Draw) -> Problem {
        self.0.problem(draw)
    }

    fn is_held_out(&self, problem: &Problem) -> bool {
        self.0.is_held_out(problem)
    }

    fn question(&self, problem: &Problem) -> String {
        self.0.question(problem)
    }

    fn trace(&self, problem: &Problem, style: TraceStyle, draw: &mut Draw) -> Option<String> {
        self.0.trace(problem, style, draw)
    }

    fn verify(&self, _: &Problem, completion: &str) -> Verdict {
        let first = completion
            .split(' ')
            .next()
            .and_then(|word| word.parse::<u32>().ok());
        Verdict {
            accurate: first.is_some_and(|number| number < 500),
            well_formed: first.is_some(),
            reason: "by its first word",
        }
    }

    fn explain(&self, _: &Problem, completion: &str) -> String {
        completion.to_string()
    }

    fn max_completion_tokens(&self) -> usize {
        self.0.max_completion_tokens()
    }

    fn attempts(&self, problem: &Problem) -> Option<usize> {
        self.0.attempts(problem)
    }
}

/// As [`tiny_setup`] with a task that reinforcement learning gets right in a few steps.
pub fn easy_setup(change: impl FnOnce(&mut RunConfig)) -> Setup {
    let mut setup = tiny_setup(change);
    setup.task = Box::new(SmallFirst(Countdown::three()));
    setup
}

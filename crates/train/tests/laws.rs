//! The law of the numbers over whole training runs: threads and instruction sets change no bit.

use kernels::{Cpu, Isa};
use train::{Grpo, PrecisionName, RunConfig, Setup, Sft, Stage};

fn config(precision: PrecisionName) -> RunConfig {
    let mut config = RunConfig::default();
    config.model.hidden_size = 24;
    config.model.intermediate_size = 40;
    config.model.moe_intermediate_size = 16;
    config.model.num_hidden_layers = 2;
    config.model.num_attention_heads = 2;
    config.model.q_lora_rank = 12;
    config.model.kv_lora_rank = 8;
    config.model.qk_nope_head_dim = 8;
    config.model.qk_rope_head_dim = 4;
    config.model.v_head_dim = 8;
    config.model.max_position_embeddings = 64;
    config.numerics.precision = precision;
    config.sft.tokens_per_step = 384;
    config.sft.piece_tokens = 128;
    config.sft.warmup_steps = 1;
    config.grpo.problems_per_step = 2;
    config.grpo.group_size = 3;
    config.grpo.max_completion_tokens = 10;
    // Untrained completions are all wrong: keep their groups, so that the update runs all the same.
    config.grpo.drop_zero_variance = false;
    config.grpo.balance_loss_alpha = 0.01;
    config.grpo.kl_coef = 0.1;
    config.grpo.updates_per_batch = 2;
    config
}

/// Hash of weights and moments after two steps of each stage.
fn trained(setup: &Setup, threads: usize, isa: Isa) -> blake3::Hash {
    let backend = Cpu::new(threads, isa);
    let mut hasher = blake3::Hasher::new();
    let mut add = |values: &[f32]| {
        for value in values {
            hasher.update(&value.to_le_bytes());
        }
    };
    let mut sft = Sft::new(setup, setup.initial_model(&backend).expect("model"));
    for _ in 0..2 {
        sft.step(&backend).expect("step");
    }
    add(&sft.optimizer().exp_avg_sq);
    let mut grpo = Grpo::new(setup, sft.into_model(), &backend);
    for _ in 0..2 {
        let metrics = grpo.step(&backend).expect("step");
        assert_eq!(metrics.max_abs_logp_diff, 0.0);
        assert!(metrics.grad_norm > 0.0);
    }
    add(grpo.model().params());
    add(&grpo.optimizer().exp_avg);
    hasher.finalize()
}

#[test]
fn threads_and_instruction_sets_change_no_bit() {
    for precision in [PrecisionName::F32, PrecisionName::Bf16] {
        let setup = Setup::new(config(precision)).expect("setup");
        let expected = trained(&setup, 1, Isa::Portable);
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let found = trained(&setup, threads, isa);
                assert_eq!(found, expected, "{precision:?} {isa} {threads} threads");
            }
        }
    }
}

/// How the engine batches is a matter of speed.
#[test]
fn the_engine_s_sizes_change_no_bit() {
    let expected = trained(
        &Setup::new(config(PrecisionName::Bf16)).expect("setup"),
        2,
        Isa::best(),
    );
    for (max_num_seqs, max_num_batched_tokens, block_size) in [(1, 3, 1), (2, 7, 5), (64, 512, 16)]
    {
        let mut config = config(PrecisionName::Bf16);
        config.engine.max_num_seqs = max_num_seqs;
        config.engine.max_num_batched_tokens = max_num_batched_tokens;
        config.engine.block_size = block_size;
        let setup = Setup::new(config).expect("setup");
        assert_eq!(
            trained(&setup, 2, Isa::best()),
            expected,
            "{max_num_seqs} sequences"
        );
    }
}

//! The closed formulas against what real models ask of a backend that counts.

use kernels::{Count, Counts, Precision};
use model::{
    Activations, Batch, CachePlaces, Config, KvCache, Loss, Model, MtpLoss, Numerics, Targets,
};
use plan::executed::{self, Chunk, Executed};

/// Tokens of a block of the cache.
const BLOCK: usize = 4;

/// The shape of `bruchteil demo` but for its vocabulary: MLA without q_lora_rank, experts behind
/// one dense layer.
const DEMO: &str = r#"{"model_type": "deepseek_v3", "vocab_size": 131, "hidden_size": 192,
    "intermediate_size": 512, "moe_intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 6, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": null,
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5,
    "max_position_embeddings": 128, "num_nextn_predict_layers": 0}"#;

/// Widths that fill neither panels nor pairs, q_lora_rank, groups of experts.
const ODD: &str = r#"{"model_type": "deepseek_v3", "vocab_size": 67, "hidden_size": 35,
    "intermediate_size": 51, "moe_intermediate_size": 13, "num_hidden_layers": 4,
    "num_attention_heads": 3, "n_routed_experts": 12, "n_shared_experts": 3,
    "num_experts_per_tok": 5, "first_k_dense_replace": 2, "q_lora_rank": 21,
    "kv_lora_rank": 33, "qk_nope_head_dim": 7, "qk_rope_head_dim": 6, "v_head_dim": 9,
    "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
    "max_position_embeddings": 128, "num_nextn_predict_layers": 0}"#;

const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 97, "hidden_size": 48,
    "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 128,
    "tie_word_embeddings": true}"#;

const QWEN2: &str = r#"{"model_type": "qwen2", "vocab_size": 97, "hidden_size": 40,
    "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 5,
    "num_key_value_heads": 1, "max_position_embeddings": 128}"#;

const QWEN3_MOE: &str = r#"{"model_type": "qwen3_moe", "vocab_size": 97, "hidden_size": 40,
    "intermediate_size": 72, "moe_intermediate_size": 24, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "num_experts": 10,
    "num_experts_per_tok": 3, "decoder_sparse_step": 2, "mlp_only_layers": [3],
    "norm_topk_prob": true, "max_position_embeddings": 128}"#;

const DEEPSEEK_V2: &str = r#"{"model_type": "deepseek_v2", "vocab_size": 97, "hidden_size": 40,
    "intermediate_size": 72, "moe_intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "n_routed_experts": 6, "n_shared_experts": 2,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": null,
    "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
    "norm_topk_prob": false, "routed_scaling_factor": 1.0, "max_position_embeddings": 128}"#;

/// Every family, and the two of DeepSeek-V3 with multi-token prediction too.
fn configs() -> Vec<Config> {
    let read = |json: &str| Config::from_json(json).unwrap_or_else(|error| panic!("{error}"));
    let texts = [DEMO, ODD, LLAMA, QWEN2, QWEN3_MOE, DEEPSEEK_V2];
    let mut configs: Vec<Config> = texts.into_iter().map(read).collect();
    for json in [DEMO, ODD] {
        let mut config = read(json);
        config.num_nextn_predict_layers = 1;
        configs.push(config);
    }
    configs
}

/// Runs `check` on every model, its products in bf16 and in f32.
fn each_model(check: impl Fn(&Model, &Count)) {
    for precision in [Precision::Bf16, Precision::F32] {
        for config in configs() {
            let count = Count::new();
            let model = Model::random(config, Numerics::new(precision), 1, &count);
            assert_eq!(count.take(), Counts::default(), "packing is not counted");
            check(&model, &count);
        }
    }
}

/// The formulas' bytes are those of products in bf16; all else does not depend on the precision.
fn assert_counted(model: &Model, counts: Counts, formula: Executed, what: &str) {
    let is_bf16 = model.numerics.precision == Precision::Bf16;
    let counted = Executed {
        matmul_flops: counts.matmul_flops.into(),
        attention_flops: counts.attention_flops.into(),
        weights: counts.weights.into(),
        weight_bytes: match is_bf16 {
            true => counts.weight_bytes.into(),
            false => formula.weight_bytes,
        },
        key_bytes: counts.key_bytes.into(),
    };
    let of = (model.config.architecture, model.numerics, what);
    assert_eq!(counted, formula, "{of:?}");
}

fn documents(lengths: &[u64]) -> Batch {
    let documents: Vec<Vec<u32>> = lengths.iter().map(|&n| (0..n as u32).collect()).collect();
    let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let mut batch = Batch::documents(&slices);
    batch.token_ids.iter_mut().for_each(|id| *id %= 60);
    batch
}

fn all_rows(rows: usize) -> Targets {
    Targets {
        rows: (0..rows as u32).collect(),
        token_ids: vec![3; rows],
    }
}

/// Rows of the batch that have a token of their document `ahead` behind them.
fn learnt(batch: &Batch, ahead: usize) -> Targets {
    let mut targets = Targets::default();
    for bounds in batch.cu_seqlens.windows(2) {
        for row in bounds[0]..bounds[1] {
            if row + (ahead as u32) < bounds[1] {
                targets.rows.push(row);
                targets
                    .token_ids
                    .push(batch.token_ids[row as usize + ahead]);
            }
        }
    }
    targets
}

/// Chunks of sequences in a cache of their own.
fn cached(config: &Config, chunks: &[Chunk]) -> (Batch, KvCache) {
    let context = |chunk: &Chunk| chunk.context as usize;
    let most = chunks.iter().map(context).max().unwrap_or(1);
    let blocks = most.div_ceil(BLOCK);
    let mut places = CachePlaces {
        blocks_per_sequence: blocks,
        block_tables: (0..(chunks.len() * blocks) as u32).collect(),
        ..CachePlaces::default()
    };
    let mut batch = Batch {
        cu_seqlens: vec![0],
        ..Batch::default()
    };
    for (sequence, chunk) in chunks.iter().enumerate() {
        for position in chunk.context - chunk.new..chunk.context {
            batch.token_ids.push(5);
            batch.positions.push(position as u32);
            let slot = sequence * blocks * BLOCK + position as usize;
            places.slot_mapping.push(slot as u32);
        }
        batch.cu_seqlens.push(batch.token_ids.len() as u32);
        batch.context_lens.push(chunk.context as u32);
    }
    batch.places = Some(places);
    let cache = KvCache::with_mtp(config, chunks.len() * blocks, BLOCK);
    (batch, cache)
}

#[test]
fn a_forward_of_documents() {
    each_model(|model, count| {
        let mut acts = Activations::for_inference();
        for lengths in [&[1][..], &[9], &[128], &[5, 1, 17], &[1, 1, 1, 1]] {
            let batch = documents(lengths);
            model.forward(count, &batch, &mut acts, None);
            let targets = all_rows(batch.tokens());
            let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
            let outcome = (&mut logprobs, &mut entropies);
            model.logprobs(count, &mut acts, &targets, 1.0, outcome.0, outcome.1);
            let formula = executed::forward(&model.config, lengths);
            assert_counted(model, count.take(), formula, "forward");
        }
    });
}

#[test]
fn a_training_step() {
    each_model(|model, count| {
        let mut acts = Activations::new(&model.config);
        let mut grads = vec![0.0; model.layout.trainable_len];
        for lengths in [&[1][..], &[2], &[40], &[3, 1, 22, 2]] {
            train(model, count, &documents(lengths), &mut acts, &mut grads);
            let formula = executed::training_step(&model.config, lengths);
            assert_counted(model, count.take(), formula, "training step");
        }
    });
}

fn train(model: &Model, count: &Count, batch: &Batch, acts: &mut Activations, grads: &mut [f32]) {
    let next = batch.token_ids.clone();
    let (one, two) = (learnt(batch, 1), learnt(batch, 2));
    let (done, done_two) = (vec![1.0; one.rows.len()], vec![1.0; two.rows.len()]);
    let mut outcomes: [Vec<f32>; 4] = Default::default();
    let [logprobs, entropies, mtp_logprobs, mtp_entropies] = &mut outcomes;
    model.forward(count, batch, acts, None);
    let predicts_more = model.config.num_nextn_predict_layers > 0;
    if predicts_more {
        model.forward_mtp(count, batch, &next, acts, None);
    }
    let loss = Loss {
        targets: &one,
        temperature: 1.0,
        dlogprobs: &done,
        balance_loss_alpha: 0.1,
        logprobs,
        entropies,
        mtp: predicts_more.then_some(MtpLoss {
            next_token_ids: &next,
            targets: &two,
            dlogprobs: &done_two,
            logprobs: mtp_logprobs,
            entropies: mtp_entropies,
        }),
    };
    model.backward(count, batch, acts, loss, grads);
}

#[test]
fn a_step_of_decoding() {
    each_model(|model, count| {
        let mut acts = Activations::for_inference();
        for contexts in [&[1][..], &[128], &[7, 1, 33], &[12; 9]] {
            let one = |&context| Chunk { new: 1, context };
            let chunks: Vec<Chunk> = contexts.iter().map(one).collect();
            run_cached(model, count, &chunks, &all_rows(contexts.len()), &mut acts);
            let formula = executed::decode(&model.config, contexts);
            assert_counted(model, count.take(), formula, "decode");
        }
    });
}

#[test]
fn chunks_of_prompts() {
    let chunk = |new, context| Chunk { new, context };
    each_model(|model, count| {
        let mut acts = Activations::for_inference();
        for chunks in [
            &[chunk(8, 8)][..],
            &[chunk(16, 48)],
            &[chunk(3, 3), chunk(1, 20), chunk(11, 12)],
        ] {
            let sampled = all_rows(chunks.len() - 1);
            run_cached(model, count, chunks, &sampled, &mut acts);
            let formula = executed::prefill(&model.config, chunks, sampled.rows.len() as u64);
            assert_counted(model, count.take(), formula, "prefill");
        }
    });
}

fn run_cached(
    model: &Model,
    count: &Count,
    chunks: &[Chunk],
    sampled: &Targets,
    acts: &mut Activations,
) {
    let (batch, mut cache) = cached(&model.config, chunks);
    model.forward(count, &batch, acts, Some(&mut cache));
    model.logits(count, acts, &sampled.rows, &mut Vec::new());
}

/// Drafting runs on a cache too; it is one more layer behind the projection of two halves.
#[test]
fn a_draft_is_what_a_training_step_adds_to_its_forward() {
    each_model(|model, count| {
        if model.config.num_nextn_predict_layers == 0 {
            return;
        }
        let mut acts = Activations::for_inference();
        let (batch, mut cache) = cached(&model.config, &[Chunk { new: 6, context: 6 }]);
        model.forward(count, &batch, &mut acts, Some(&mut cache));
        count.take();
        let next = vec![1; 6];
        model.forward_mtp(count, &batch, &next, &mut acts, Some(&mut cache));
        let draft = count.take();
        let (with, mut config) = (
            executed::training_step(&model.config, &[6]),
            model.config.clone(),
        );
        config.num_nextn_predict_layers = 0;
        let without = executed::training_step(&config, &[6]);
        let head = 3 * 2 * 4 * (config.hidden_size * config.vocab_size) as u128;
        let added = with.matmul_flops - without.matmul_flops - head;
        assert_eq!(3 * u128::from(draft.matmul_flops), added);
        assert_eq!(
            2 * u128::from(draft.key_bytes),
            with.key_bytes - without.key_bytes
        );
    });
}

/// A document's mean context is (length + 1) / 2.
#[test]
fn the_configuration_counts_the_same_operations_per_token() {
    for config in configs() {
        for length in [1, 2, 9, 128, 1_000_001] {
            let whole = executed::forward(&config, &[length]).flops() as f64;
            let mean_context = (length as f64 + 1.0) / 2.0;
            let per_token = config.flops_per_token_forward(mean_context);
            assert_eq!(whole, length as f64 * per_token, "{length} tokens");
        }
    }
}

/// The operations of a large batch of long documents do not fit 64 bits.
#[test]
fn a_large_batch_is_exact() {
    let config = Config::from_json(DEMO).expect("a configuration");
    let one = executed::training_step(&config, &[1 << 20]);
    let many = executed::training_step(&config, &vec![1 << 20; 3_000]);
    assert_eq!(many.flops(), 3_000 * one.flops());
    assert!(many.flops() > u128::from(u64::MAX));
}

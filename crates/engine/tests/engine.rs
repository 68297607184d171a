//! The engine with a small random model: nothing beside a request may change its completion, to the
//! bit.

use engine::{
    Completion, Engine, EngineConfig, Error, FinishReason, Progress, Request, SamplingParams,
    Speculation,
};
use kernels::{Backend, Chance, Cpu, Isa, Precision, Purpose};
use model::{Activations, Batch, Config, Model, Numerics, Targets};

const PLAIN: Speculation = Speculation {
    prompt_lookup: 0,
    mtp: false,
    max_num_seqs: 0,
};

/// Roomy: every request runs at once, whole prompts in one batch, and nothing is preempted.
const ROOMY: EngineConfig = EngineConfig {
    max_num_seqs: 512,
    max_num_batched_tokens: 4096,
    block_size: 16,
    num_blocks: 1024,
    prefix_caching: false,
    speculation: PLAIN,
};

/// One dense layer and one of four experts; weights large enough that distributions are not flat.
fn config() -> Config {
    Config::from_json(
        r#"{
            "model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1,
            "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": null,
            "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 12,
            "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5,
            "max_position_embeddings": 128, "initializer_range": 0.25
        }"#,
    )
    .expect("a valid configuration")
}

fn model(precision: Precision, backend: &dyn Backend) -> Model {
    Model::random(config(), Numerics::new(precision), 42, backend)
}

/// Requests of every kind: prompts of 1 to 40 tokens, greedy and sampled, filtered and not, with
/// and without stop tokens.
fn requests(seed: u64, count: u64) -> Vec<Request> {
    println!("requests of seed {seed}");
    let mut draw = Chance::new(seed, Purpose::Problem).draws(0);
    let request = |sequence| {
        let prompt_tokens = 1 + draw(40);
        Request {
            sequence,
            prompt: (0..prompt_tokens).map(|_| draw(64) as u32).collect(),
            params: SamplingParams {
                temperature: [0.0, 0.8, 1.0, 1.0][draw(4) as usize],
                top_p: [1.0, 1.0, 0.9][draw(3) as usize],
                top_k: [0, 0, 5][draw(3) as usize],
                min_p: [0.0, 0.0, 0.05][draw(3) as usize],
                max_tokens: 1 + draw(30) as usize,
                stop_token_ids: (0..draw(3)).map(|_| draw(64) as u32).collect(),
                seed: draw(2),
                ..SamplingParams::default()
            },
        }
    };
    (0..count).map(request).collect()
}

/// Completions, after which all blocks must be free; and the number of preemptions.
fn generate(
    model: &Model,
    backend: &dyn Backend,
    sizes: EngineConfig,
    requests: &[Request],
) -> (Vec<Completion>, u64) {
    let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
    let completions = engine
        .generate(model, backend, requests.to_vec(), &mut |_| {})
        .expect("valid requests");
    assert_eq!(engine.stats().free_blocks, sizes.num_blocks, "{sizes:?}");
    assert!(engine.is_idle());
    (completions, engine.stats().preemptions)
}

/// Each request by itself in an engine of its own.
fn alone(model: &Model, backend: &dyn Backend, requests: &[Request]) -> Vec<Completion> {
    let one = |request| generate(model, backend, ROOMY, std::slice::from_ref(request)).0;
    requests.iter().flat_map(one).collect()
}

#[track_caller]
fn assert_same_bits(got: &[Completion], want: &[Completion], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        let sequence = want.sequence;
        assert_eq!(got.sequence, sequence, "{what}");
        assert_eq!(got.token_ids, want.token_ids, "{what}: {sequence}");
        assert_eq!(got.finish_reason, want.finish_reason, "{what}: {sequence}");
        let bits = |c: &Completion| c.logprobs.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(got), bits(want), "{what}: {sequence}");
    }
}

/// Log-probabilities of a completion by one forward over the whole document without a cache, as
/// training takes it.
fn teacher_forced(
    model: &Model,
    backend: &dyn Backend,
    request: &Request,
    completion: &Completion,
) -> Vec<f32> {
    let document = [&request.prompt[..], &completion.token_ids].concat();
    let first = request.prompt.len() as u32 - 1;
    let targets = Targets {
        rows: (first..first + completion.token_ids.len() as u32).collect(),
        token_ids: completion.token_ids.clone(),
    };
    let temperature = match request.params.temperature {
        0.0 => 1.0,
        temperature => temperature,
    };
    let mut acts = Activations::new(&model.config);
    let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
    model.forward(backend, &Batch::documents(&[&document]), &mut acts, None);
    let (l, e) = (&mut logprobs, &mut entropies);
    model.logprobs(backend, &mut acts, &targets, temperature, l, e);
    logprobs
}

#[test]
fn recorded_logprobs_are_those_of_training() {
    let backend = Cpu::new(2, Isa::best());
    for precision in [Precision::F32, Precision::Bf16] {
        let model = model(precision, &backend);
        let requests = requests(1, 24);
        let (completions, _) = generate(&model, &backend, ROOMY, &requests);
        let mut lowest = 0.0_f32;
        for (request, completion) in requests.iter().zip(&completions) {
            let expected = teacher_forced(&model, &backend, request, completion);
            assert_eq!(completion.logprobs.len(), completion.token_ids.len());
            for (i, (got, want)) in completion.logprobs.iter().zip(&expected).enumerate() {
                let sequence = request.sequence;
                assert_eq!(
                    got.to_bits(),
                    want.to_bits(),
                    "{precision:?} {sequence} {i}"
                );
                lowest = lowest.min(*got);
            }
        }
        assert!(lowest < -2.0, "distributions too sharp to tell: {lowest}");
    }
}

#[test]
fn greedy_is_the_argmax_of_the_whole_document() {
    let backend = Cpu::new(1, Isa::best());
    let model = model(Precision::F32, &backend);
    for mut request in requests(2, 8) {
        request.params.temperature = 0.0;
        let requests = [request.clone()];
        let (completions, _) = generate(&model, &backend, ROOMY, &requests);
        let generated = &completions[0].token_ids;
        let document = [&request.prompt[..], generated].concat();
        let first = request.prompt.len() - 1;
        let rows: Vec<u32> = (first..first + generated.len()).map(|r| r as u32).collect();
        let mut acts = Activations::new(&model.config);
        let mut logits = Vec::new();
        model.forward(&backend, &Batch::documents(&[&document]), &mut acts, None);
        model.logits(&backend, &mut acts, &rows, &mut logits);
        for (row, &token_id) in logits.chunks(64).zip(generated) {
            assert!(row.iter().all(|&logit| logit <= row[token_id as usize]));
        }
    }
}

#[test]
fn batched_chunked_paged_and_preempted_are_as_alone() {
    let backend = Cpu::new(2, Isa::best());
    for precision in [Precision::F32, Precision::Bf16] {
        let model = model(precision, &backend);
        let requests = requests(3, 20);
        let expected = alone(&model, &backend, &requests);
        let (mut preempting, mut draw) = (0, Chance::new(4, Purpose::Problem).draws(0));
        for trial in 0..24 {
            let block_size = [1, 2, 3, 7, 16, 64][draw(6) as usize];
            // From just enough for the longest request, 70 tokens, to enough for most.
            let num_blocks = 70_usize.div_ceil(block_size) + draw(150) as usize / block_size;
            let sizes = EngineConfig {
                max_num_seqs: [1, 3, 8, 64][draw(4) as usize],
                max_num_batched_tokens: [1, 2, 5, 17, 64, 1000][draw(6) as usize],
                block_size,
                num_blocks,
                ..ROOMY
            };
            let (completions, preemptions) = generate(&model, &backend, sizes, &requests);
            let what = format!("trial {trial}, {precision:?}, {sizes:?}");
            assert_same_bits(&completions, &expected, &what);
            preempting += u64::from(preemptions > 0);
        }
        assert!(preempting >= 5, "only {preempting} trials preempted");
    }
}

#[test]
fn threads_and_instruction_sets_are_as_one() {
    let requests = requests(5, 10);
    let sizes = EngineConfig {
        max_num_seqs: 6,
        max_num_batched_tokens: 23,
        block_size: 5,
        num_blocks: 30,
        ..ROOMY
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let portable = Cpu::new(1, Isa::Portable);
        let (expected, _) = generate(&model(precision, &portable), &portable, sizes, &requests);
        for isa in Isa::available() {
            for threads in 1..=3 {
                let backend = Cpu::new(threads, isa);
                let model = model(precision, &backend);
                let (completions, _) = generate(&model, &backend, sizes, &requests);
                let what = format!("{precision:?}, {isa}, {threads} threads");
                assert_same_bits(&completions, &expected, &what);
            }
        }
    }
}

#[test]
fn requests_may_arrive_at_any_time() {
    let backend = Cpu::new(2, Isa::best());
    let model = model(Precision::Bf16, &backend);
    let requests = requests(6, 20);
    let expected = alone(&model, &backend, &requests);
    let sizes = EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        block_size: 4,
        num_blocks: 30,
        ..ROOMY
    };
    let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
    let mut draw = Chance::new(7, Purpose::Problem).draws(0);
    let mut coming = requests.into_iter();
    let mut completions = Vec::new();
    while completions.len() < expected.len() {
        for request in coming.by_ref().take(draw(3) as usize) {
            engine.add(request).expect("a valid request");
        }
        completions.extend(engine.step(&model, &backend));
        if engine.is_idle() {
            assert_eq!(engine.stats().free_blocks, sizes.num_blocks);
        }
    }
    completions.sort_by_key(|completion| completion.sequence);
    assert_same_bits(&completions, &expected, "arriving one by one");
}

#[test]
fn more_rows_than_one_round_of_logits() {
    let backend = Cpu::new(2, Isa::best());
    let model = model(Precision::Bf16, &backend);
    let mut requests = requests(8, 300);
    requests.iter_mut().for_each(|request| {
        request.prompt.truncate(3);
        request.params.max_tokens = 3;
    });
    let (completions, _) = generate(&model, &backend, ROOMY, &requests);
    assert_eq!(completions.len(), 300);
    for i in [0, 1, 255, 256, 257, 299] {
        let expected = alone(&model, &backend, &requests[i..=i]);
        assert_same_bits(&completions[i..=i], &expected, "of 300");
    }
}

#[test]
fn an_idle_engine_takes_new_weights() {
    let backend = Cpu::new(1, Isa::best());
    let mut model = model(Precision::F32, &backend);
    let requests = requests(9, 6);
    let mut engine = Engine::new(&model.config, ROOMY).expect("valid sizes");
    let mut run = |model: &Model| {
        let generated = engine.generate(model, &backend, requests.clone(), &mut |_| {});
        generated.expect("valid requests")
    };
    let before = run(&model);
    model.update(&backend, |params| {
        params.iter_mut().for_each(|x| *x *= 1.25)
    });
    let after = run(&model);
    assert_ne!(before, after, "the weights are larger by a quarter");
    let (expected, _) = generate(&model, &backend, ROOMY, &requests);
    assert_same_bits(&after, &expected, "new weights");
}

/// The same number and seed give the same tokens; another of either gives others.
#[test]
fn sequence_and_seed_name_the_stream_of_chance() {
    let backend = Cpu::new(1, Isa::best());
    let model = model(Precision::F32, &backend);
    let request = |sequence, seed| Request {
        sequence,
        prompt: vec![3, 1, 4],
        params: SamplingParams {
            max_tokens: 40,
            seed,
            ..SamplingParams::default()
        },
    };
    let requests = [request(1, 1), request(1, 1), request(2, 1), request(1, 2)];
    let (completions, _) = generate(&model, &backend, ROOMY, &requests);
    assert_eq!(completions[0], completions[1]);
    assert_ne!(completions[0].token_ids, completions[2].token_ids);
    assert_ne!(completions[0].token_ids, completions[3].token_ids);
}

#[test]
fn a_stop_token_ends_a_completion_and_belongs_to_it() {
    let backend = Cpu::new(1, Isa::best());
    let model = model(Precision::F32, &backend);
    let mut request = requests(10, 1).remove(0);
    request.params = SamplingParams {
        max_tokens: 30,
        ..SamplingParams::default()
    };
    let (whole, _) = generate(&model, &backend, ROOMY, &[request.clone()]);
    assert_eq!(whole[0].finish_reason, FinishReason::Length);
    assert_eq!(whole[0].token_ids.len(), 30);
    let stop = whole[0].token_ids[12];
    let first = whole[0]
        .token_ids
        .iter()
        .position(|&id| id == stop)
        .expect("it is there");
    request.params.stop_token_ids = vec![stop];
    let (stopped, _) = generate(&model, &backend, ROOMY, &[request.clone()]);
    assert_eq!(stopped[0].finish_reason, FinishReason::Stop);
    assert_eq!(stopped[0].token_ids, whole[0].token_ids[..=first]);
    assert_eq!(stopped[0].logprobs, whole[0].logprobs[..=first]);
    // A stop token that comes as the last one allowed still is a stop.
    request.params.max_tokens = first + 1;
    let (both, _) = generate(&model, &backend, ROOMY, &[request]);
    assert_eq!(both[0].finish_reason, FinishReason::Stop);
}

#[test]
fn progress_counts_up_to_everything() {
    let backend = Cpu::new(1, Isa::best());
    let model = model(Precision::F32, &backend);
    let requests = requests(11, 9);
    let mut engine = Engine::new(&model.config, ROOMY).expect("valid sizes");
    for _ in 0..2 {
        let mut seen: Vec<Progress> = Vec::new();
        let completions = engine
            .generate(&model, &backend, requests.clone(), &mut |p| seen.push(p))
            .expect("valid requests");
        let generated_tokens = completions.iter().map(|c| c.token_ids.len()).sum();
        let (finished, total) = (9, 9);
        let last = Progress {
            finished,
            total,
            generated_tokens,
        };
        assert_eq!(seen.last(), Some(&last));
        assert!(seen.is_sorted_by_key(|p| (p.finished, p.generated_tokens)));
        assert!(seen.len() > 5, "one report for every batch");
    }
    let none = engine.generate(&model, &backend, Vec::new(), &mut |_| {});
    assert_eq!(none, Ok(Vec::new()));
}

fn good() -> Request {
    Request {
        sequence: 77,
        prompt: vec![1, 2, 3],
        params: SamplingParams {
            max_tokens: 4,
            ..SamplingParams::default()
        },
    }
}

/// Adds `good()` with one change, expects a refusal, and returns its words.
#[track_caller]
fn refusal(sizes: EngineConfig, change: impl FnOnce(&mut Request)) -> String {
    let backend = Cpu::new(1, Isa::best());
    let model = model(Precision::F32, &backend);
    let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
    let mut request = good();
    change(&mut request);
    let error = engine.add(request.clone()).expect_err("a bad request");
    let requests = vec![good(), request, good()];
    let generated = engine.generate(&model, &backend, requests, &mut |_| {});
    assert_eq!(generated, Err(error.clone()));
    assert!(engine.is_idle(), "a refused call leaves requests behind");
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

#[test]
fn bad_requests_are_refused_in_words() {
    let message = refusal(ROOMY, |r| r.prompt.clear());
    assert_says(&message, &["sequence 77", "empty"]);
    let message = refusal(ROOMY, |r| r.prompt[2] = 64);
    assert_says(
        &message,
        &["`prompt`", "64", "position 2", "`vocab_size` is 64"],
    );
    let message = refusal(ROOMY, |r| r.params.stop_token_ids = vec![1, u32::MAX]);
    assert_says(&message, &["`stop_token_ids`", "4294967295", "position 1"]);
    for (change, words) in [
        (
            (|p| p.temperature = -0.5) as fn(&mut SamplingParams),
            ["temperature", "-0.5"],
        ),
        (|p| p.temperature = f32::NAN, ["temperature", "NaN"]),
        (|p| p.temperature = f32::INFINITY, ["temperature", "inf"]),
        (|p| p.temperature = 1e-9, ["temperature", "0.000000001"]),
        (|p| p.top_p = 0.0, ["top_p", "0"]),
        (|p| p.top_p = 1.1, ["top_p", "1.1;"]),
        (|p| p.top_p = f32::NAN, ["top_p", "NaN"]),
        (|p| p.min_p = -0.25, ["min_p", "-0.25"]),
        (|p| p.min_p = 1.5, ["min_p", "1.5"]),
        (|p| p.min_p = f32::NAN, ["min_p", "NaN"]),
        (|p| p.max_tokens = 0, ["max_tokens", "0"]),
    ] {
        assert_says(&refusal(ROOMY, |r| change(&mut r.params)), &words);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_what_just_fits_is_not() {
    let small = EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 7,
        block_size: 3,
        num_blocks: 5,
        ..ROOMY
    };
    let words = [
        "3 tokens",
        "`max_tokens` 126",
        "128 positions",
        "15 tokens",
        "exceed 15",
    ];
    assert_says(&refusal(small, |r| r.params.max_tokens = 126), &words);
    let words = ["`max_tokens` 126", "exceed 128"];
    assert_says(&refusal(ROOMY, |r| r.params.max_tokens = 126), &words);
    assert_says(
        &refusal(ROOMY, |r| r.params.max_tokens = usize::MAX),
        &["exceed 128"],
    );
    let backend = Cpu::new(1, Isa::best());
    let model = model(Precision::F32, &backend);
    for (sizes, max_tokens) in [(small, 12), (ROOMY, 125)] {
        let mut request = good();
        request.params.max_tokens = max_tokens;
        let (completions, _) = generate(&model, &backend, sizes, &[request.clone(), request]);
        assert!(completions.iter().all(|c| c.token_ids.len() == max_tokens));
    }
}

#[test]
fn bad_sizes_are_refused_in_words() {
    type Change = fn(&mut EngineConfig);
    let changes: [(Change, &str); 5] = [
        (|c| c.max_num_seqs = 0, "max_num_seqs"),
        (|c| c.max_num_batched_tokens = 0, "max_num_batched_tokens"),
        (|c| c.block_size = 0, "block_size"),
        (|c| c.num_blocks = 0, "num_blocks"),
        (|c| c.num_blocks = usize::MAX / 8, "num_blocks"),
    ];
    for (change, field) in changes {
        let mut sizes = ROOMY;
        change(&mut sizes);
        let error = Engine::new(&config(), sizes).err().expect("bad sizes");
        assert!(matches!(error, Error::Config { field: f, .. } if f == field));
        assert_says(&error.to_string(), &["engine configuration", field]);
    }
}

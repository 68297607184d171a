//! The row law and the chance law in the engine: nothing beside a request may change a bit of what
//! it gives, and that something else was at work is asserted too.

use engine::{Engine, EngineConfig, Request, SamplingParams, Speculation, Stats};
use kernels::{Cpu, Isa, Precision};
use model::{Activations, Batch};

mod small;
use small::{
    CACHED, PLAIN, Spec, Stream, Streams, alone, assert_same_bits, draws, fresh, model, run, specs,
};

fn greedy(sequence: u64, prompt: Vec<u32>, max_tokens: usize) -> Spec {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens,
        ..SamplingParams::default()
    };
    let request = Request {
        sequence,
        prompt,
        params,
    };
    request.into()
}

/// Sizes of every kind, in which the longest request, 72 tokens, still fits.
fn sizes(draw: &mut dyn FnMut(u64) -> u64) -> EngineConfig {
    let block_size = [1, 2, 3, 7, 16][draw(5) as usize];
    EngineConfig {
        max_num_seqs: [1, 3, 8, 64][draw(4) as usize],
        max_num_batched_tokens: [1, 2, 5, 17, 64, 1000][draw(6) as usize],
        block_size,
        num_blocks: 72_usize.div_ceil(block_size) + draw(300) as usize / block_size,
        prefix_caching: draw(3) > 0,
        speculation: Speculation {
            prompt_lookup: [0, 1, 8][draw(3) as usize],
            mtp: draw(2) == 0,
            max_num_seqs: [2, 64][draw(2) as usize],
        },
    }
}

/// An engine runs on a thread of its own.
#[test]
fn an_engine_may_go_to_another_thread() {
    fn goes<T: Send>() {}
    goes::<Engine>();
}

fn add(totals: &mut Stats, stats: Stats) {
    totals.preemptions += stats.preemptions;
    totals.cached_tokens += stats.cached_tokens;
    totals.draft_tokens += stats.draft_tokens;
    totals.accepted_draft_tokens += stats.accepted_draft_tokens;
}

#[test]
fn nothing_beside_a_request_changes_a_bit() {
    for (precision, seed) in [(Precision::F32, 1), (Precision::Bf16, 2)] {
        let model = model(64, precision);
        let specs = specs(seed, 30, 64);
        let expected = alone(&model, &Cpu::new(1, Isa::best()), &specs);
        let draw = &mut draws(seed + 10);
        let mut totals = Stats::default();
        for trial in 0..16 {
            let backend = Cpu::new(1 + trial % 3, Isa::best());
            let sizes = sizes(draw);
            let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
            let what = format!("trial {trial}, {precision:?}, {sizes:?}");
            // The second time over what the first left in the cache.
            for _ in 0..2 {
                let got = run(&mut engine, &model, &backend, &specs, draw);
                assert_same_bits(&got, &expected, &what);
            }
            add(&mut totals, engine.stats());
        }
        println!("{totals:?}");
        assert!(
            totals.preemptions > 10 && totals.cached_tokens > 1000,
            "{totals:?}"
        );
        assert!(totals.draft_tokens > 300, "{totals:?}");
        assert!(totals.accepted_draft_tokens > 60, "{totals:?}");
    }
}

#[test]
fn among_a_hundred_others_as_alone_on_every_instruction_set() {
    let specs = specs(3, 100, 64);
    let sizes = EngineConfig {
        max_num_seqs: 128,
        max_num_batched_tokens: 300,
        num_blocks: 700,
        speculation: Speculation {
            prompt_lookup: 6,
            mtp: true,
            max_num_seqs: 128,
        },
        ..CACHED
    };
    let model = model(64, Precision::Bf16);
    let some = [0, 33, 66, 99].map(|i| specs[i].clone());
    let portable = Cpu::new(1, Isa::Portable);
    let expected = alone(&model, &portable, &some);
    for isa in Isa::available() {
        let (got, stats) = fresh(&model, &Cpu::new(2, isa), sizes, &specs);
        let got = [0, 33, 66, 99].map(|i| got[i].clone());
        assert_same_bits(&got, &expected, &isa.to_string());
        assert!(
            stats.accepted_draft_tokens > 50 && stats.cached_tokens > 500,
            "{stats:?}"
        );
    }
}

#[test]
fn choices_of_one_prompt_compute_it_once_and_are_as_alone() {
    let backend = Cpu::new(2, Isa::best());
    let model = model(64, Precision::Bf16);
    let prompt: Vec<u32> = (0..37).map(|i| i * 7 % 64).collect();
    let choices: Vec<Spec> = (0..12)
        .map(|sequence| {
            let mut spec = greedy(sequence, prompt.clone(), 12);
            spec.request.params.temperature = 1.0;
            spec
        })
        .collect();
    let expected = alone(&model, &backend, &choices);
    for max_num_batched_tokens in [12, 20, 1000] {
        let sizes = EngineConfig {
            max_num_batched_tokens,
            ..CACHED
        };
        let (got, stats) = fresh(&model, &backend, sizes, &choices);
        assert_same_bits(&got, &expected, "choices");
        // Nine full blocks of four, found by all but the first.
        let cached: Vec<usize> = got.iter().map(|stream| stream.cached_tokens).collect();
        assert_eq!(cached[0], 0);
        assert_eq!(cached[1..], [36; 11]);
        assert_eq!(
            (stats.prompt_tokens, stats.cached_tokens),
            (12 * 37, 11 * 36)
        );
    }
    let distinct: std::collections::BTreeSet<Vec<u32>> =
        expected.iter().map(Stream::token_ids).collect();
    assert!(distinct.len() > 6, "the choices are not all one");
}

#[test]
fn a_prompt_seen_before_computes_no_full_block_again_and_salts_never_share() {
    let backend = Cpu::new(1, Isa::best());
    let model = model(64, Precision::F32);
    let prompt: Vec<u32> = (0..36).collect();
    let mut engine = Engine::new(&model.config, CACHED).expect("valid sizes");
    let mut cached = |prompt: &[u32], cache_salt, prompt_logprobs| {
        let mut spec = greedy(1, prompt.to_vec(), 10);
        (spec.cache_salt, spec.prompt_logprobs) = (cache_salt, prompt_logprobs);
        let got = run(&mut engine, &model, &backend, &[spec.clone()], &mut |n| {
            n - 1
        });
        assert_same_bits(&got, &alone(&model, &backend, &[spec]), "cached");
        (got[0].cached_tokens, got[0].token_ids())
    };
    let (first, completion) = cached(&prompt, 5, None);
    assert_eq!(first, 0);
    // The last token's row is always computed, and with it its block.
    assert_eq!(cached(&prompt, 5, None).0, 32);
    assert_eq!(cached(&prompt[..35], 5, None).0, 32);
    assert_eq!(cached(&prompt[..7], 5, None).0, 4);
    assert_eq!(cached(&prompt[1..], 5, None).0, 0);
    assert_eq!(cached(&prompt, 6, None).0, 0);
    assert_eq!(cached(&prompt, 6, None).0, 32);
    // A conversation goes on behind what was generated; its last token was never computed.
    let next = [&prompt[..], &completion, &[9, 9]].concat();
    assert_eq!(cached(&next, 5, None).0, 44);
    // Scores need their rows; what was computed for them is there for others.
    assert_eq!(cached(&prompt, 5, Some(0)).0, 0);
    assert_eq!(cached(&prompt[3..], 5, Some(0)).0, 0);
    assert_eq!(cached(&prompt[3..], 5, None).0, 32);
}

#[test]
fn drafts_of_repeating_text_are_right_and_save_steps() {
    let backend = Cpu::new(2, Isa::best());
    let model = model(6, Precision::Bf16);
    // Greedy completions of small vocabularies run into loops.
    let specs: Vec<Spec> = (0..4)
        .map(|i| greedy(i, vec![i as u32, 5, 4], 100))
        .collect();
    let (expected, plain) = fresh(&model, &backend, PLAIN, &specs);
    let speculation = Speculation {
        prompt_lookup: 8,
        mtp: false,
        max_num_seqs: 4,
    };
    let sizes = EngineConfig {
        speculation,
        ..PLAIN
    };
    let (got, stats) = fresh(&model, &backend, sizes, &specs);
    assert_same_bits(&got, &expected, "looked up");
    assert_eq!((plain.draft_tokens, plain.steps), (0, 100));
    assert!(stats.accepted_draft_tokens > 100, "{stats:?}");
    assert!(stats.steps < 20, "{stats:?}");
    assert_eq!(stats.generated_tokens, 400);
    // More than may draft: none does.
    let speculation = Speculation {
        max_num_seqs: 3,
        ..speculation
    };
    let sizes = EngineConfig {
        speculation,
        ..PLAIN
    };
    let (got, stats) = fresh(&model, &backend, sizes, &specs);
    assert_same_bits(&got, &expected, "too many");
    assert_eq!(stats.draft_tokens, 0);
}

/// Of six tokens the prediction of random weights is right now and then.
#[test]
fn drafts_of_multi_token_prediction_change_no_bit() {
    let backend = Cpu::new(2, Isa::best());
    for precision in [Precision::F32, Precision::Bf16] {
        let model = model(6, precision);
        let specs = specs(4, 30, 6);
        let expected = alone(&model, &backend, &specs);
        let draw = &mut draws(5);
        let mut totals = Stats::default();
        for prompt_lookup in [0, 0, 5] {
            let speculation = Speculation {
                prompt_lookup,
                mtp: true,
                max_num_seqs: 64,
            };
            let mut sizes = sizes(draw);
            sizes.speculation = speculation;
            let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
            let got = run(&mut engine, &model, &backend, &specs, draw);
            assert_same_bits(&got, &expected, &format!("{precision:?} {sizes:?}"));
            if prompt_lookup == 0 {
                add(&mut totals, engine.stats());
            }
        }
        println!("{totals:?}");
        assert!(totals.accepted_draft_tokens > 10, "{totals:?}");
        assert!(
            totals.draft_tokens > totals.accepted_draft_tokens + 10,
            "{totals:?}"
        );
    }
}

/// The first guess of each sequence is what the whole text says, however the prompt was chunked.
#[test]
fn predictions_are_those_of_the_whole_text() {
    let backend = Cpu::new(2, Isa::best());
    let model = model(6, Precision::F32);
    let draw = &mut draws(8);
    let prompts: Vec<Vec<u32>> = (0..80)
        .map(|_| (0..1 + draw(20)).map(|_| draw(6) as u32).collect())
        .collect();
    let sizes = EngineConfig {
        max_num_batched_tokens: 7,
        block_size: 3,
        speculation: Speculation {
            prompt_lookup: 0,
            mtp: true,
            max_num_seqs: 1,
        },
        ..PLAIN
    };
    let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
    let mut right = 0;
    for prompt in &prompts {
        let submission = greedy(0, prompt.clone(), 3).submission();
        engine.submit(submission).expect("a valid request");
        let (mut counts, mut completion) = (Vec::new(), Vec::new());
        while !engine.is_idle() {
            for output in engine.advance(&model, &backend) {
                counts.push(output.tokens.len());
                completion.extend(output.tokens.iter().map(|token| token.token_id));
            }
        }
        let next = [&prompt[1..], &completion[..1]].concat();
        let (batch, mut acts) = (Batch::documents(&[prompt]), Activations::for_inference());
        model.forward(&backend, &batch, &mut acts, None);
        model.forward_mtp(&backend, &batch, &next, &mut acts, None);
        let (last, mut logits) = (prompt.len() as u32 - 1, Vec::new());
        model.mtp_logits(&backend, &mut acts, &[last], &mut logits);
        let guess = (0..6).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let is_right = guess == Some(completion[1] as usize);
        assert_eq!(counts, if is_right { vec![1, 2] } else { vec![1, 1, 1] });
        right += usize::from(is_right);
    }
    assert!(right > 8 && right < 60, "{right}");
    assert_eq!(engine.stats().accepted_draft_tokens, right as u64);
}

#[test]
fn cancelling_frees_the_blocks_and_touches_no_other() {
    let backend = Cpu::new(2, Isa::best());
    let model = model(64, Precision::Bf16);
    let specs = specs(6, 30, 64);
    let expected = alone(&model, &backend, &specs);
    let draw = &mut draws(7);
    let mut cancelled_running = 0;
    for trial in 0..12 {
        let sizes = sizes(draw);
        let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
        let (mut streams, mut ids) = (Streams::default(), Vec::new());
        let mut cancelled = vec![false; specs.len()];
        let mut coming = specs.iter();
        while coming.len() > 0 || !engine.is_idle() {
            for spec in coming.by_ref().take(draw(8) as usize) {
                ids.push(engine.submit(spec.submission()).expect("a valid request"));
            }
            if draw(4) == 0 && !ids.is_empty() {
                let which = draw(ids.len() as u64) as usize;
                let was_over = cancelled[which]
                    || streams
                        .0
                        .get(&ids[which])
                        .is_some_and(|s| s.finish_reason.is_some());
                let before = engine.stats();
                assert_eq!(engine.cancel(ids[which]), !was_over, "trial {trial}");
                let after = engine.stats();
                let gone = before.running + before.waiting - after.running - after.waiting;
                assert_eq!(gone, usize::from(!was_over), "trial {trial}");
                cancelled_running += before.running - after.running;
                cancelled[which] |= !was_over;
            }
            streams.take(engine.advance(&model, &backend));
        }
        let stats = engine.stats();
        assert_eq!(stats.free_blocks, stats.num_blocks, "trial {trial}");
        for (i, id) in ids.iter().enumerate() {
            let got = streams.0.remove(id).unwrap_or_default();
            let (prompt, tokens, finish) = got.bits();
            let want = expected[i].bits();
            if cancelled[i] {
                assert_eq!(finish, None);
                assert_eq!(tokens, want.1[..tokens.len()], "trial {trial}, {i}");
            } else {
                assert_eq!((prompt, tokens, finish), want, "trial {trial}, {i}");
            }
        }
    }
    assert!(cancelled_running > 20, "only {cancelled_running}");
}

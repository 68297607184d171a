//! What many sequences at once cost, without a server: whole engine steps, and of these the model.
//! `cargo run --release -p engine --example batch -- FOLDER [sequences] [tokens] [f32|bf16]`
//!
//! Prompts of 16 tokens. `model_tokens_per_s` runs forward and head over the same positions, with
//! no scheduler and no sampler: the share that the engine adds is `engine_share`.

use engine::{Engine, EngineConfig, LogprobsOf, Request, SamplingParams, Speculation, Submission};
use kernels::{Backend, Chance, Cpu, Isa, Precision, Purpose};
use model::{
    Activations, Batch, CachePlaces, Checkpoint, KeptWeights, KvCache, Loading, Model, Numerics,
    Opening,
};
use std::path::Path;
use std::time::Instant;

const PROMPT: usize = 16;
const BLOCK: usize = 16;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let folder = args
        .first()
        .expect("usage: batch FOLDER [sequences] [tokens] [f32|bf16]");
    let number = |i: usize, default| {
        args.get(i)
            .map_or(default, |n| n.parse().expect("a number"))
    };
    let (sequences, tokens) = (number(1, 64), number(2, 128));
    let precision = match args.get(3).map(String::as_str) {
        Some("f32") => Precision::F32,
        _ => Precision::Bf16,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = Cpu::new(threads, Isa::best());
    let opening = Opening {
        numerics: Numerics::new(precision),
        weights: KeptWeights::AsStored,
        loading: Loading::Read,
        mtp: false,
    };
    let checkpoint = Checkpoint::open(Path::new(folder)).expect("a model folder");
    let opened = checkpoint.model(opening, &cpu, &mut |_, _| {});
    let model = opened.expect("a model").model;
    let mut engine_seconds = Vec::new();
    let mut model_seconds = Vec::new();
    for round in 0..5 {
        engine_seconds.push(through_engine(&model, &cpu, sequences, tokens, round));
        model_seconds.push(model_alone(&model, &cpu, sequences, tokens));
    }
    let [engine, alone] = [engine_seconds, model_seconds].map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    });
    let generated = (sequences * tokens) as f64;
    println!(
        "{{\"sequences\": {sequences}, \"tokens\": {tokens}, \"engine_tokens_per_s\": {:.0}, \
         \"model_tokens_per_s\": {:.0}, \"engine_share\": {:.3}}}",
        generated / engine,
        generated / alone,
        1.0 - alone / engine
    );
}

fn blocks_each(tokens: usize) -> usize {
    (PROMPT + tokens).div_ceil(BLOCK) + 1
}

/// Seconds for all tokens, sampled at temperature 1 as a server does.
fn through_engine(model: &Model, cpu: &Cpu, sequences: usize, tokens: usize, seed: u64) -> f64 {
    let sizes = EngineConfig {
        max_num_seqs: sequences,
        max_num_batched_tokens: sequences.max(512),
        block_size: BLOCK,
        num_blocks: sequences * blocks_each(tokens),
        prefix_caching: true,
        speculation: Speculation::default(),
    };
    let mut engine = Engine::new(&model.config, sizes).expect("sizes");
    let mut draw = Chance::new(seed, Purpose::Problem).draws(0);
    for _ in 0..sequences {
        let mut id = || draw(model.config.vocab_size as u64) as u32;
        let request = Request {
            sequence: 0,
            prompt: (0..PROMPT).map(|_| id()).collect(),
            params: SamplingParams {
                max_tokens: tokens,
                seed,
                logprobs: LogprobsOf::Raw,
                ..SamplingParams::default()
            },
        };
        engine.submit(Submission::from(request)).expect("a request");
    }
    let start = Instant::now();
    while !engine.is_idle() {
        engine.advance(model, cpu);
    }
    start.elapsed().as_secs_f64()
}

/// Seconds for the same rows: the prompts at once, then a token of each sequence per step.
fn model_alone(model: &Model, cpu: &Cpu, sequences: usize, tokens: usize) -> f64 {
    let each = blocks_each(tokens);
    let mut cache = KvCache::new(&model.config, sequences * each, BLOCK);
    let mut acts = Activations::for_inference();
    let mut logits = Vec::new();
    let start = Instant::now();
    for step in 0..tokens {
        let (first, count) = match step {
            0 => (0, PROMPT),
            step => (PROMPT + step - 1, 1),
        };
        let batch = rows(sequences, each, first, count);
        model.forward(cpu, &batch, &mut acts, Some(&mut cache));
        let last: Vec<u32> = batch.cu_seqlens[1..].iter().map(|end| end - 1).collect();
        model.logits(cpu as &dyn Backend, &mut acts, &last, &mut logits);
    }
    start.elapsed().as_secs_f64()
}

fn rows(sequences: usize, each: usize, first: usize, count: usize) -> Batch {
    let mut batch = Batch {
        cu_seqlens: vec![0],
        ..Batch::default()
    };
    let mut slot_mapping = Vec::new();
    for s in 0..sequences {
        for position in first..first + count {
            batch.token_ids.push((7 * s + position) as u32 % 1000);
            batch.positions.push(position as u32);
            slot_mapping.push((s * each * BLOCK + position) as u32);
        }
        batch.cu_seqlens.push(batch.token_ids.len() as u32);
        batch.context_lens.push((first + count) as u32);
    }
    batch.places = Some(CachePlaces {
        slot_mapping,
        block_tables: (0..(sequences * each) as u32).collect(),
        blocks_per_sequence: each,
    });
    batch
}

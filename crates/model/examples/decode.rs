//! How fast a model opens, and decodes one sequence, beside the memory's read bandwidth:
//! `cargo run --release -p model --example decode -- FOLDER [as-stored|bf16|q8|q4] [read|map]
//! [tokens]`.

use kernels::{Backend, Cpu, Isa, Precision};
use model::{
    Activations, Batch, CachePlaces, Checkpoint, KeptWeights, KvCache, Loading, Numerics, Opening,
};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

/// Bytes per second that all threads together read from a buffer far larger than any cache.
fn read_bandwidth(words: &[u64], threads: usize) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in words.chunks(words.len().div_ceil(threads)) {
            scope.spawn(move || black_box(part.iter().fold(0u64, |a, &b| a.wrapping_add(b))));
        }
    });
    8.0 * words.len() as f64 / start.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One token at a position of the only sequence.
fn step(token: u32, position: usize, blocks: usize) -> Batch {
    Batch {
        token_ids: vec![token],
        positions: vec![position as u32],
        cu_seqlens: vec![0, 1],
        context_lens: vec![position as u32 + 1],
        places: Some(CachePlaces {
            slot_mapping: vec![position as u32],
            block_tables: (0..blocks as u32).collect(),
            blocks_per_sequence: blocks,
        }),
    }
}

/// Tokens of a stretch, the first of which is not counted.
const WARM: usize = 16;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let weights = match () {
        () if has("bf16") => KeptWeights::Bf16,
        () if has("q8") => KeptWeights::Q8,
        () if has("q4") => KeptWeights::Q4,
        () => KeptWeights::AsStored,
    };
    let loading = if has("map") {
        Loading::Map
    } else {
        Loading::Read
    };
    let tokens: usize = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(64);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cpu = Cpu::new(threads, Isa::best());
    let backend: &dyn Backend = &cpu;
    let precision = if has("f32") {
        Precision::F32
    } else {
        Precision::Bf16
    };
    let opening = Opening {
        numerics: Numerics::new(precision),
        weights,
        loading,
        mtp: false,
    };
    let start = Instant::now();
    let opened = Checkpoint::open(Path::new(&args[0]))
        .and_then(|checkpoint| checkpoint.model(opening, backend, &mut |_, _| {}))
        .unwrap_or_else(|error| panic!("{error}"));
    let load = start.elapsed().as_secs_f64();
    let model = opened.model;
    let words = vec![1u64; (1 << 30) / 8];
    let blocks = (tokens + WARM).div_ceil(16);
    let mut cache = KvCache::new(&model.config, blocks, 16);
    let mut acts = Activations::for_inference();
    let (mut logits, mut token) = (Vec::new(), 1);
    let (mut rates, mut bandwidths, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let mut start = Instant::now();
    for position in 0..tokens + WARM {
        let batch = step(token, position, blocks);
        model.forward(backend, &batch, &mut acts, Some(&mut cache));
        model.logits(backend, &mut acts, &[0], &mut logits);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        token = best.unwrap_or(0) as u32;
        // A shared machine changes by the second: each stretch of tokens has the bandwidth of
        // its own moment beside it.
        if (position + 1).is_multiple_of(WARM) {
            let rate = WARM as f64 / start.elapsed().as_secs_f64();
            let bandwidth = read_bandwidth(&words, threads);
            if position >= WARM {
                rates.push(rate);
                bandwidths.push(bandwidth);
                shares.push(opened.weight_bytes as f64 * rate / bandwidth);
            }
            start = Instant::now();
        }
    }
    let (rate, bandwidth) = (median(&mut rates), median(&mut bandwidths));
    let bytes = opened.weight_bytes as f64;
    println!(
        "load {load:.3} s  weights {:.1} MB  decode {rate:.2} tokens/s  {:.2} GB/s of weights  \
         read bandwidth {:.2} GB/s  share {:.1} % (medians of {} stretches)",
        bytes / 1e6,
        bytes * rate / 1e9,
        bandwidth / 1e9,
        100.0 * median(&mut shares),
        rates.len()
    );
}

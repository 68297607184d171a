//! Tokens/s of a forward and backward over packed documents, for a configuration:
//! `cargo run --release -p model --example train_step -- config.json [tokens] [document] [f32]`.

use kernels::{Backend, Chance, Cpu, Isa, Precision, Purpose};
use model::{Activations, Batch, Config, Loss, Model, Numerics, Targets};
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = std::fs::read_to_string(&args[0]).expect("a config.json");
    let config = Config::from_json(&text).expect("a configuration");
    let number = |i: usize, default: usize| {
        args.get(i)
            .map_or(default, |a| a.parse().expect("a number"))
    };
    let (tokens, length) = (number(1, 4096), number(2, 32));
    let f32_only = args.iter().any(|a| a == "f32");
    let precision = if f32_only {
        Precision::F32
    } else {
        Precision::Bf16
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cpu = Cpu::new(threads, Isa::best());
    let backend: &dyn Backend = &cpu;
    let mut model = Model::random(config, Numerics::new(precision), 1, backend);
    let mut draw = Chance::new(1, Purpose::Problem).draws(0);
    let vocab = model.config.vocab_size as u64;
    let documents: Vec<Vec<u32>> = (0..tokens / length)
        .map(|_| (0..length).map(|_| draw(vocab) as u32).collect())
        .collect();
    let batch = Batch::documents(&documents.iter().map(|d| &d[..]).collect::<Vec<_>>());
    let targets = Targets {
        rows: (0..batch.tokens() as u32 - 1).collect(),
        token_ids: batch.token_ids[1..].to_vec(),
    };
    let dlogprobs = vec![-1.0 / tokens as f32; targets.rows.len()];
    let mut acts = Activations::new(&model.config);
    let mut grads = vec![0.0; model.layout.trainable_len];
    let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..7 {
        let start = Instant::now();
        model.forward(backend, &batch, &mut acts, None);
        let forward = start.elapsed();
        let loss = Loss {
            targets: &targets,
            temperature: 1.0,
            dlogprobs: &dlogprobs,
            balance_loss_alpha: 1e-4,
            logprobs: &mut logprobs,
            entropies: &mut entropies,
            mtp: None,
        };
        model.backward(backend, &batch, &mut acts, loss, &mut grads);
        let backward = start.elapsed();
        model.update(backend, |_| {});
        let whole = start.elapsed();
        for (times, t) in times
            .iter_mut()
            .zip([forward, backward - forward, whole - backward])
        {
            times.push(t.as_secs_f64() * 1e3);
        }
    }
    let [forward, backward, pack] = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    });
    let c = &model.config;
    let flops = 3.0 * c.flops_per_token_forward((length as f64 + 1.0) / 2.0) * tokens as f64;
    println!(
        "{} parameters, {} active",
        c.parameters_total(),
        c.parameters_active()
    );
    println!("{tokens} tokens: forward {forward:.1} ms, backward {backward:.1}, repack {pack:.1}");
    let ms = forward + backward + pack;
    println!(
        "{:.0} tokens/s, {:.0} GFLOP/s",
        tokens as f64 / ms * 1e3,
        flops / ms / 1e6
    );
}

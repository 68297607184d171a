//! Tokens/s of a training step of a plain dense transformer made of these kernels: the model that
//! `bench/peers/train_step_torch.py` trains in PyTorch (multi-head attention, SwiGLU, RMSNorm,
//! RoPE, untied head; forward, backward, clipping, AdamW, repacking).
//!
//! `cargo run --release -p kernels --example dense_step -- [bf16|f32] [steps] [threads]`

use kernels::{
    AdamW, Backend, Chance, Cpu, HeadGradient, Heads, Isa, KeyRows, Mat, MatMut, Precision,
    Purpose, RopeAngles, RopeFrequencies, Sequences, Weight, clip_factor,
};
use std::ops::Range;
use std::time::Instant;

const HIDDEN: usize = 256;
const LAYERS: usize = 6;
const HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const WIDTH: usize = 1024;
const VOCAB: usize = 4096;
const SEQUENCE: usize = 256;
const BATCH: usize = 16;
const TOKENS: usize = SEQUENCE * BATCH;
const EPS: f32 = 1e-6;

/// Matrices of a layer, `[out, in]` each, in the order of [`Layer`]'s packed weights.
const SHAPES: [(usize, usize); 7] = [
    (HIDDEN, HIDDEN),
    (HIDDEN, HIDDEN),
    (HIDDEN, HIDDEN),
    (HIDDEN, HIDDEN),
    (WIDTH, HIDDEN),
    (WIDTH, HIDDEN),
    (HIDDEN, WIDTH),
];
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// Where a layer's weights lie in the flat buffer, their panels, and its activations.
struct Layer {
    norms: [Range<usize>; 2],
    matrices: Vec<Range<usize>>,
    packed: Vec<Weight>,
    x: [Vec<f32>; 2],
    inv_rms: [Vec<f32>; 2],
    qkv: [Vec<f32>; 3],
    stats: Vec<f32>,
    attended: Vec<f32>,
    swiglu: [Vec<f32>; 2],
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let precision = match args.first().map(String::as_str) {
        Some("f32") => Precision::F32,
        _ => Precision::Bf16,
    };
    let number = |i: usize| args.get(i).and_then(|a| a.parse().ok());
    let steps = number(1).unwrap_or(10);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cpu = Cpu::new(number(2).unwrap_or(threads), Isa::best());
    let mut step = Step::new(&cpu, precision);
    let mut times = Vec::new();
    for i in 0..steps + 2 {
        let start = Instant::now();
        let loss = step.run(i as u64 + 1);
        if i >= 2 {
            times.push(start.elapsed().as_secs_f64());
        }
        eprintln!("step {i}: loss {loss:.4}");
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{{\"precision\": \"{precision:?}\", \"isa\": \"{}\", \"threads\": {}, \"parameters\": {}, \
         \"step_ms\": {:.1}, \"tokens_per_second\": {:.0}}}",
        cpu.isa(),
        cpu.threads(),
        step.params.len(),
        median * 1e3,
        TOKENS as f64 / median
    );
}

struct Step<'a> {
    cpu: &'a Cpu,
    precision: Precision,
    layers: Vec<Layer>,
    params: Vec<f32>,
    grads: Vec<f32>,
    moments: [Vec<f32>; 2],
    embed: Range<usize>,
    norm: Range<usize>,
    head: Range<usize>,
    packed_head: Weight,
    rope: RopeFrequencies,
    angles: RopeAngles,
    ids: Vec<u32>,
    targets: Vec<u32>,
    positions: Vec<u32>,
    cu_seqlens: Vec<u32>,
    context_lens: Vec<u32>,
    last: Vec<f32>,
    hidden: Vec<f32>,
    inv_rms: Vec<f32>,
    logits: Vec<f32>,
    /// Of the layer at hand, as are the products.
    normed: [Vec<f32>; 2],
    product: Vec<f32>,
    /// Gradients of the residual stream, a normed input, out, q, k, v, gate, up and product.
    d: [Vec<f32>; 9],
}

fn floats(width: usize) -> Vec<f32> {
    vec![0.0; TOKENS * width]
}

impl<'a> Step<'a> {
    fn new(cpu: &'a Cpu, precision: Precision) -> Step<'a> {
        let mut end = 0;
        let mut take = |n: usize| {
            end += n;
            end - n..end
        };
        let embed = take(VOCAB * HIDDEN);
        let layers: Vec<Layer> = (0..LAYERS)
            .map(|_| Layer {
                norms: [take(HIDDEN), take(HIDDEN)],
                matrices: SHAPES
                    .iter()
                    .map(|(out, input)| take(out * input))
                    .collect(),
                packed: SHAPES.map(|(o, i)| Weight::new(o, i, precision)).to_vec(),
                x: [floats(HIDDEN), floats(HIDDEN)],
                inv_rms: [floats(1), floats(1)],
                qkv: [floats(HIDDEN), floats(HIDDEN), floats(HIDDEN)],
                stats: floats(2 * HEADS),
                attended: floats(HIDDEN),
                swiglu: [floats(WIDTH), floats(WIDTH)],
            })
            .collect();
        let (norm, head) = (take(HIDDEN), take(VOCAB * HIDDEN));
        let chance = Chance::new(1, Purpose::InitialWeights);
        let params: Vec<f32> = (0..end as u32)
            .map(|i| 0.02 * chance.normal(0, i) as f32)
            .collect();
        let mut draw = Chance::new(1, Purpose::Problem).draws(0);
        let ids: Vec<u32> = (0..TOKENS).map(|_| draw(VOCAB as u64) as u32).collect();
        let mut step = Step {
            cpu,
            precision,
            grads: vec![0.0; params.len()],
            moments: [vec![0.0; params.len()], vec![0.0; params.len()]],
            embed,
            norm,
            head,
            packed_head: Weight::new(VOCAB, HIDDEN, precision),
            rope: RopeFrequencies::new(10_000.0, HEAD_DIM),
            angles: RopeAngles::default(),
            targets: ids.iter().skip(1).chain([&ids[0]]).copied().collect(),
            ids,
            positions: (0..TOKENS).map(|t| (t % SEQUENCE) as u32).collect(),
            cu_seqlens: (0..=BATCH).map(|s| (s * SEQUENCE) as u32).collect(),
            context_lens: vec![SEQUENCE as u32; BATCH],
            last: floats(HIDDEN),
            hidden: floats(HIDDEN),
            inv_rms: floats(1),
            logits: Vec::new(),
            normed: [floats(HIDDEN), floats(HIDDEN)],
            product: floats(WIDTH),
            d: [
                HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, WIDTH, WIDTH, WIDTH,
            ]
            .map(floats),
            layers,
            params,
        };
        let norms = step
            .layers
            .iter()
            .flat_map(|l| l.norms.clone())
            .chain([step.norm.clone()]);
        norms.for_each(|range| step.params[range].fill(1.0));
        step.pack();
        step
    }

    fn pack(&mut self) {
        for layer in &mut self.layers {
            for (range, packed) in layer.matrices.iter().zip(&mut layer.packed) {
                let weight = Mat::new(&self.params[range.clone()], packed.in_features());
                self.cpu.pack(weight, packed);
            }
        }
        let head = Mat::new(&self.params[self.head.clone()], HIDDEN);
        self.cpu.pack(head, &mut self.packed_head);
    }

    fn run(&mut self, number: u64) -> f64 {
        self.forward();
        self.grads.fill(0.0);
        let loss = self.backward();
        let grad_norm = self.cpu.sum_of_squares(&self.grads).sqrt();
        let adamw = AdamW {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            lr: 3e-4,
            step: number,
            grad_scale: clip_factor(grad_norm, 1.0),
        };
        let [m, v] = &mut self.moments;
        self.cpu.adamw(&adamw, &mut self.params, &self.grads, m, v);
        self.pack();
        loss
    }

    fn forward(&mut self) {
        let (cpu, params) = (self.cpu, &self.params);
        let embed = &params[self.embed.clone()];
        let sequences = sequences(&self.cu_seqlens, &self.context_lens);
        cpu.embedding(
            &self.ids,
            embed,
            MatMut::new(&mut self.layers[0].x[0], HIDDEN),
        );
        cpu.rope_angles(&self.positions, &self.rope, &mut self.angles);
        for i in 0..LAYERS {
            let (now, next) = self.layers.split_at_mut(i + 1);
            let Layer {
                norms,
                packed,
                x,
                inv_rms,
                qkv,
                stats,
                attended,
                swiglu,
                ..
            } = &mut now[i];
            let [x, middle] = x;
            let [h1, h2] = &mut self.normed;
            let weight = &params[norms[0].clone()];
            let to = MatMut::new(h1, HIDDEN);
            cpu.rmsnorm(Mat::new(x, HIDDEN), weight, EPS, to, &mut inv_rms[0]);
            for (which, out) in [Q, K, V].into_iter().zip(&mut *qkv) {
                let to = MatMut::new(out, HIDDEN);
                cpu.matmul_nt(Mat::new(h1, HIDDEN), &packed[which], to, false);
            }
            for which in [0, 1] {
                let to = MatMut::new(&mut qkv[which], HIDDEN);
                cpu.rope(to, HEAD_DIM, HEAD_DIM, &self.angles, false, false);
            }
            let [q, k, v] = qkv.each_ref().map(|m| Mat::new(m, HIDDEN));
            let to = MatMut::new(attended, HIDDEN);
            cpu.attention([q, k, v], &heads(), &sequences, to, stats);
            middle.copy_from_slice(x);
            let from = Mat::new(attended, HIDDEN);
            cpu.matmul_nt(from, &packed[O], MatMut::new(middle, HIDDEN), true);
            let weight = &params[norms[1].clone()];
            let to = MatMut::new(h2, HIDDEN);
            cpu.rmsnorm(Mat::new(middle, HIDDEN), weight, EPS, to, &mut inv_rms[1]);
            let [gate, up] = swiglu;
            let product = &mut self.product;
            let h2 = Mat::new(h2, HIDDEN);
            cpu.matmul_nt(h2, &packed[GATE], MatMut::new(gate, WIDTH), false);
            cpu.matmul_nt(h2, &packed[UP], MatMut::new(up, WIDTH), false);
            let to = MatMut::new(product, WIDTH);
            cpu.swiglu(Mat::new(gate, WIDTH), Mat::new(up, WIDTH), to);
            let out = next.first_mut().map_or(&mut self.last, |l| &mut l.x[0]);
            out.copy_from_slice(middle);
            let from = Mat::new(product, WIDTH);
            cpu.matmul_nt(from, &packed[DOWN], MatMut::new(out, HIDDEN), true);
        }
        let weight = &params[self.norm.clone()];
        let to = MatMut::new(&mut self.hidden, HIDDEN);
        cpu.rmsnorm(
            Mat::new(&self.last, HIDDEN),
            weight,
            EPS,
            to,
            &mut self.inv_rms,
        );
    }

    fn backward(&mut self) -> f64 {
        let (cpu, precision, params) = (self.cpu, self.precision, &self.params);
        let grads = &mut self.grads;
        let sequences = sequences(&self.cu_seqlens, &self.context_lens);
        let [dx, dh, dout, dq, dk, dv, dgate, dup, dproduct] = &mut self.d;
        let (mut logprobs, mut entropies) = (floats(1), floats(1));
        let gradient = HeadGradient {
            dlogprobs: &[-1.0 / TOKENS as f32; TOKENS],
            dhidden: MatMut::new(dh, HIDDEN),
            dweight: &mut grads[self.head.clone()],
        };
        let (hidden, outcome) = (
            Mat::new(&self.hidden, HIDDEN),
            [&mut logprobs[..], &mut entropies[..]],
        );
        let (head, logits) = (&self.packed_head, &mut self.logits);
        cpu.head(
            hidden,
            head,
            &self.targets,
            1.0,
            logits,
            outcome,
            Some(gradient),
        );
        let weight = &params[self.norm.clone()];
        let (x, d) = (Mat::new(&self.last, HIDDEN), Mat::new(dh, HIDDEN));
        let dweight = &mut grads[self.norm.clone()];
        cpu.rmsnorm_backward(
            x,
            weight,
            &self.inv_rms,
            d,
            MatMut::new(dx, HIDDEN),
            false,
            dweight,
        );
        for layer in self.layers.iter().rev() {
            let at = |which: usize| layer.matrices[which].clone();
            let [gate, up] = layer.swiglu.each_ref().map(|m| Mat::new(m, WIDTH));
            // Norms and products are made again rather than kept: an eighth of the memory.
            cpu.swiglu(gate, up, MatMut::new(&mut self.product, WIDTH));
            for (which, h) in self.normed.iter_mut().enumerate() {
                let weight = &params[layer.norms[which].clone()];
                let x = Mat::new(&layer.x[which], HIDDEN);
                cpu.rmsnorm(x, weight, EPS, MatMut::new(h, HIDDEN), &mut self.inv_rms);
            }
            let product = Mat::new(&self.product, WIDTH);
            let h2 = Mat::new(&self.normed[1], HIDDEN);
            let dy = Mat::new(dx, HIDDEN);
            cpu.matmul_tn(dy, product, precision, &mut grads[at(DOWN)]);
            cpu.matmul_nn(dy, &layer.packed[DOWN], MatMut::new(dproduct, WIDTH), false);
            let (to_gate, to_up) = (MatMut::new(dgate, WIDTH), MatMut::new(dup, WIDTH));
            cpu.swiglu_backward(gate, up, Mat::new(dproduct, WIDTH), to_gate, to_up);
            for (which, d) in [(GATE, &*dgate), (UP, &*dup)] {
                let d = Mat::new(d, WIDTH);
                cpu.matmul_tn(d, h2, precision, &mut grads[at(which)]);
                let to = MatMut::new(dh, HIDDEN);
                cpu.matmul_nn(d, &layer.packed[which], to, which == UP);
            }
            norm_backward(cpu, params, layer, 1, dh, dx, grads);
            let attended = Mat::new(&layer.attended, HIDDEN);
            let dy = Mat::new(dx, HIDDEN);
            cpu.matmul_tn(dy, attended, precision, &mut grads[at(O)]);
            cpu.matmul_nn(dy, &layer.packed[O], MatMut::new(dout, HIDDEN), false);
            let qkv = layer.qkv.each_ref().map(|m| Mat::new(m, HIDDEN));
            let (d, dqkv) = (Mat::new(dout, HIDDEN), [&mut *dq, &mut *dk, &mut *dv]);
            let dqkv = dqkv.map(|m| MatMut::new(m, HIDDEN));
            cpu.attention_backward(qkv, &heads(), &sequences, attended, &layer.stats, d, dqkv);
            for d in [&mut *dq, &mut *dk] {
                let to = MatMut::new(d, HIDDEN);
                cpu.rope(to, HEAD_DIM, HEAD_DIM, &self.angles, false, true);
            }
            let h1 = Mat::new(&self.normed[0], HIDDEN);
            for (which, d) in [(Q, &*dq), (K, &*dk), (V, &*dv)] {
                let d = Mat::new(d, HIDDEN);
                cpu.matmul_tn(d, h1, precision, &mut grads[at(which)]);
                cpu.matmul_nn(d, &layer.packed[which], MatMut::new(dh, HIDDEN), which != Q);
            }
            norm_backward(cpu, params, layer, 0, dh, dx, grads);
        }
        cpu.embedding_backward(
            &self.ids,
            Mat::new(dx, HIDDEN),
            &mut grads[self.embed.clone()],
        );
        -logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / TOKENS as f64
    }
}

fn norm_backward(
    cpu: &Cpu,
    params: &[f32],
    layer: &Layer,
    which: usize,
    dh: &[f32],
    dx: &mut [f32],
    grads: &mut [f32],
) {
    let range = layer.norms[which].clone();
    let (x, dh) = (Mat::new(&layer.x[which], HIDDEN), Mat::new(dh, HIDDEN));
    let (weight, dx) = (&params[range.clone()], MatMut::new(dx, HIDDEN));
    cpu.rmsnorm_backward(
        x,
        weight,
        &layer.inv_rms[which],
        dh,
        dx,
        true,
        &mut grads[range],
    );
}

fn heads() -> Heads {
    let scale = 1.0 / (HEAD_DIM as f32).sqrt();
    Heads {
        heads: HEADS,
        kv_heads: HEADS,
        qk_dim: HEAD_DIM,
        v_dim: HEAD_DIM,
        scale,
    }
}

fn sequences<'a>(cu_seqlens: &'a [u32], context_lens: &'a [u32]) -> Sequences<'a> {
    Sequences {
        cu_seqlens,
        context_lens,
        key_rows: KeyRows::Packed,
    }
}

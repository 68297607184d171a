//! How fast decoding can read its weights: GB/s of stored bytes through the matrices of a
//! Qwen2-shaped model of half a billion parameters, by the form they are kept in, beside what the
//! machine reads at most. `cargo run --release -p kernels --example decode
//! [LAYERS] [THREADS]`.

use kernels::{
    Backend, BlockScales, Chance, Cpu, Dtype, Isa, Keep, Mat, MatMut, Precision, Purpose, ReadAt,
    RowSource, StoredMatrix, Weight,
};
use std::hint::black_box;
use std::time::Instant;

const HIDDEN: usize = 896;
const INTERMEDIATE: usize = 4864;
const KV: usize = 128;
const VOCAB: usize = 151_936;

/// [out_features, in_features] of a layer: q, k, v, o, gate, up, down.
const LAYER: [(usize, usize); 7] = [
    (HIDDEN, HIDDEN),
    (KV, HIDDEN),
    (KV, HIDDEN),
    (HIDDEN, HIDDEN),
    (INTERMEDIATE, HIDDEN),
    (INTERMEDIATE, HIDDEN),
    (HIDDEN, INTERMEDIATE),
];

/// A file of any size: a megabyte over and over, always of finite values.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Pattern {
        let chance = Chance::new(1, Purpose::Problem);
        let bytes = (0..1 << 18).flat_map(|i| (chance.bits(0, i)[0] & 0xbcff_bcff).to_le_bytes());
        Pattern(bytes.collect())
    }
}

impl ReadAt for Pattern {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> std::io::Result<()> {
        let mut done = 0;
        while done < out.len() {
            let from = (offset + done) % self.0.len();
            let n = (out.len() - done).min(self.0.len() - from);
            out[done..done + n].copy_from_slice(&self.0[from..from + n]);
            done += n;
        }
        Ok(())
    }
}

/// How often everything is timed. Each piece counts with its best time, and every other piece is
/// read in between, so that no cache holds it: other programs of the machine disturb less so.
const PASSES: usize = 9;

/// Seconds for all pieces, each at its best.
fn best(pieces: usize, mut f: impl FnMut(usize)) -> f64 {
    let mut times = vec![f64::INFINITY; pieces];
    for _ in 0..PASSES {
        for (i, time) in times.iter_mut().enumerate() {
            let start = Instant::now();
            f(i);
            *time = time.min(start.elapsed().as_secs_f64());
        }
    }
    times.iter().sum()
}

/// GB/s at which all threads together sum a gibibyte that no cache holds.
fn read_bandwidth(threads: usize) -> f64 {
    let mut map = memmap2::MmapMut::map_anon(1 << 30).expect("a gibibyte of memory");
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    map.fill(1);
    let pieces: Vec<&[u8]> = map.chunks(128 << 20).collect();
    let seconds = best(pieces.len(), |i| {
        std::thread::scope(|scope| {
            for part in pieces[i].chunks(pieces[i].len().div_ceil(threads)) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
    });
    map.len() as f64 / seconds / 1e9
}

/// Sum of 64-bit words in sixteen chains, which no addition has to wait for.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for line in bytes.chunks_exact(128) {
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            let word: [u8; 8] = word.try_into().expect("chunks of eight");
            *sum = sum.wrapping_add(u64::from_le_bytes(word));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

fn weights(
    cpu: &Cpu,
    shapes: &[(usize, usize)],
    dtype: Dtype,
    keep: Keep,
    precision: Precision,
) -> Vec<Weight> {
    let pattern = Pattern::new();
    let one = |&(rows, cols): &(usize, usize)| {
        let block = [128, 128];
        let blocks = rows.div_ceil(128) * cols.div_ceil(128);
        let scales = (dtype == Dtype::F8E4m3).then(|| BlockScales {
            block,
            values: vec![1e-3; blocks].into(),
        });
        let source = RowSource::Reader(&pattern);
        let matrix = StoredMatrix {
            rows,
            cols,
            dtype,
            source,
            scales,
        };
        cpu.store(&matrix, keep, precision)
            .expect("a pattern can be read")
    };
    shapes.iter().map(one).collect()
}

/// Seconds for `m` rows through every matrix.
fn pass(cpu: &Cpu, weights: &[Weight], m: usize) -> f64 {
    let x = vec![0.01f32; m * INTERMEDIATE];
    let mut y = vec![0.0f32; m * VOCAB];
    best(weights.len(), |i| {
        let (k, n) = (weights[i].in_features(), weights[i].out_features());
        let out = MatMut::new(&mut y[..m * n], n);
        cpu.matmul_nt(Mat::new(&x[..m * k], k), &weights[i], out, false);
    })
}

fn main() {
    let argument = |i: usize, default: usize| {
        let given = std::env::args().nth(i);
        given.map_or(default, |n| n.parse().expect("a whole number"))
    };
    let layers = argument(1, 24);
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = argument(2, all);
    let cpu = Cpu::new(threads, Isa::best());
    let peak = read_bandwidth(threads);
    println!("{} x {threads}: reads {peak:.1} GB/s", cpu.isa());
    let mut shapes: Vec<_> = (0..layers).flat_map(|_| LAYER).collect();
    shapes.push((VOCAB, HIDDEN));
    println!(
        "{:>24} {:>6} {:>10} {:>14} {:>14}",
        "form", "MB", "load GB/s", "M=1 GB/s (%)", "M=8 GB/s (%)"
    );
    for (name, dtype, keep, precision) in [
        ("panels bf16", Dtype::Bf16, Keep::Panels, Precision::Bf16),
        (
            "panels bf16, f32",
            Dtype::Bf16,
            Keep::Panels,
            Precision::F32,
        ),
        ("rows bf16", Dtype::Bf16, Keep::Rows, Precision::Bf16),
        ("rows bf16, f32", Dtype::Bf16, Keep::Rows, Precision::F32),
        ("rows fp8", Dtype::F8E4m3, Keep::Rows, Precision::Bf16),
    ] {
        let start = Instant::now();
        let weights = weights(&cpu, &shapes, dtype, keep, precision);
        let loading = start.elapsed().as_secs_f64();
        let bytes = weights.iter().map(Weight::bytes).sum::<usize>() as f64;
        let rate = |m| bytes / pass(&cpu, &weights, m) / 1e9;
        let (one, eight) = (rate(1), rate(8));
        println!(
            "{name:>24} {:>6.0} {:>10.1} {one:>8.1} ({:>3.0}) {eight:>8.1} ({:>3.0})",
            bytes / 1e6,
            bytes / loading / 1e9,
            100.0 * one / peak,
            100.0 * eight / peak
        );
    }
}

//! What this machine reaches: reading memory, and matrix products.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::{Backend, Mat, MatMut, Precision, Weight};
use model::Config;
use plan::error::Error;
use plan::executed;
use plan::quantity::{BytesPerSecond, FlopsPerSecond};
use plan::serving::{Here, Machine, here};

use crate::settings::Settings;

/// How long each is measured.
const DURATION: Duration = Duration::from_secs(1);
/// Bytes that are read over and over: as many as the weights, between these.
const LEAST_READ: u64 = 1 << 20;
const MOST_READ: u64 = 1 << 30;
/// Rows, inputs and outputs of the product that counts as the peak; a training step's size.
const PRODUCT: [usize; 3] = [2048, 512, 2048];

/// Bytes of a weight as products read it: FP8 and bf16 stay as they are; others become panels, of
/// bf16 with their padding where products are (`None`).
pub fn stored_width(config: &Config, precision: Precision) -> Option<f64> {
    match (config.fp8, config.torch_dtype.as_str(), precision) {
        (Some(_), _, _) => Some(1.0),
        (None, "bfloat16", _) => Some(2.0),
        (None, _, Precision::F32) => Some(4.0),
        (None, _, Precision::Bf16) => None,
    }
}

/// Measures, then reckons; `asked` is batch, context and prompt.
///
/// # Errors
/// Those of [`here`].
pub fn predicted(
    config: &Config,
    bytes_per_weight: Option<f64>,
    asked: [u64; 3],
    settings: &Settings,
) -> Result<Here, Error> {
    let token = executed::decode(config, &[1]);
    let bytes = match bytes_per_weight {
        Some(width) => (token.weights as f64 * width) as u64,
        None => u64::try_from(token.weight_bytes).unwrap_or(MOST_READ),
    };
    let machine = Machine {
        bandwidth: bandwidth(bytes.clamp(LEAST_READ, MOST_READ), settings.thread_count()),
        peak: peak(settings),
    };
    here(config, machine, bytes_per_weight, asked)
}

/// All threads sum a share of so many bytes over and over; each counts with the median of its
/// passes, so that a pause of the machine does not.
fn bandwidth(bytes: u64, threads: usize) -> BytesPerSecond {
    let share = (bytes as usize / threads).next_multiple_of(LINE);
    let rates = std::thread::scope(|scope| {
        let reader = || {
            let memory = vec![1u8; share];
            let started = Instant::now();
            let mut passes = Vec::new();
            while started.elapsed() < DURATION || passes.is_empty() {
                let start = Instant::now();
                black_box(sum(black_box(&memory)));
                passes.push(start.elapsed().as_secs_f64());
            }
            passes.sort_by(f64::total_cmp);
            share as f64 / passes[passes.len() / 2]
        };
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(reader)).collect();
        let rates = readers.into_iter().map(|reader| reader.join());
        rates.map(|rate| rate.expect("a sum does not fail")).sum()
    });
    BytesPerSecond(rates)
}

/// Bytes that the sum takes at a time.
const LINE: usize = 128;

/// Of 64-bit words in sixteen chains, which no addition has to wait for.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; LINE / 8];
    for line in bytes.chunks_exact(LINE) {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// The best of a second of products of weights that were packed before.
fn peak(settings: &Settings) -> FlopsPerSecond {
    let [rows, inputs, outputs] = PRODUCT;
    let backend = settings.backend();
    let mut weight = Weight::new(outputs, inputs, settings.precision());
    backend.pack(Mat::new(&vec![0.25; outputs * inputs], inputs), &mut weight);
    let x = vec![0.5f32; rows * inputs];
    let mut y = vec![0.0f32; rows * outputs];
    let started = Instant::now();
    let mut best = f64::INFINITY;
    while started.elapsed() < DURATION {
        let start = Instant::now();
        let out = MatMut::new(&mut y, outputs);
        backend.matmul_nt(Mat::new(&x, inputs), &weight, out, false);
        best = best.min(start.elapsed().as_secs_f64());
    }
    FlopsPerSecond(2.0 * (rows * inputs * outputs) as f64 / best)
}

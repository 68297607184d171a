//! GFLOP/s of the matrix products by shape: `cargo run --release -p kernels --example gemm`.

use kernels::{Backend, Cpu, Isa, Mat, MatMut, Precision, Weight};
use std::time::Instant;

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cpu = Cpu::new(threads, Isa::best());
    println!("{} x {threads}", cpu.isa());
    println!(
        "{:>24} {:>8} {:>8} {:>8} {:>8}",
        "tokens x in x out", "", "x w'", "dy w", "dy' x"
    );
    for (t, k, n) in [
        (1, 256, 1024),
        (8, 256, 1024),
        (64, 256, 1024),
        (512, 192, 192),
        (2048, 192, 192),
        (2048, 192, 512),
        (2048, 256, 256),
        (4096, 256, 1024),
        (4096, 1024, 256),
        (2048, 512, 2048),
        (4096, 256, 4096),
    ] {
        for precision in [Precision::F32, Precision::Bf16] {
            let (x, w, dy) = (
                vec![0.5f32; t * k],
                vec![0.25f32; n * k],
                vec![0.1f32; t * n],
            );
            let (mut y, mut dx, mut dw) = (vec![0.0; t * n], vec![0.0; t * k], vec![0.0; n * k]);
            let mut packed = Weight::new(n, k, precision);
            cpu.pack(Mat::new(&w, k), &mut packed);
            let (x, dy) = (Mat::new(&x, k), Mat::new(&dy, n));
            let rate = |f: &mut dyn FnMut()| {
                let mut best = f64::INFINITY;
                for _ in 0..9 {
                    let start = Instant::now();
                    f();
                    best = best.min(start.elapsed().as_secs_f64());
                }
                2.0 * (t * k * n) as f64 / best / 1e9
            };
            let nt = rate(&mut || cpu.matmul_nt(x, &packed, MatMut::new(&mut y, n), false));
            let nn = rate(&mut || cpu.matmul_nn(dy, &packed, MatMut::new(&mut dx, k), false));
            let tn = rate(&mut || cpu.matmul_tn(dy, x, precision, &mut dw));
            let shape = format!("{t} x {k} x {n}");
            println!(
                "{shape:>24} {:>8} {nt:>8.0} {nn:>8.0} {tn:>8.0}",
                format!("{precision:?}")
            );
        }
    }
}

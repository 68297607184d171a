use super::half::to_f16;
use super::*;
use crate::{Chance, Purpose};

fn normals(seed: u64, n: usize) -> Vec<f32> {
    let chance = Chance::new(seed, Purpose::Problem);
    (0..n).map(|i| chance.normal(0, i as u32) as f32).collect()
}

/// Every path of this machine, on 1, 2 and 3 threads.
fn machines() -> Vec<(Cpu, Path)> {
    let mut all = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            all.push((Cpu::new(threads, isa), Path::of(isa)));
            // What a machine with AVX-512 but no VNNI takes.
            #[cfg(target_arch = "x86_64")]
            if isa == Isa::Avx512 {
                all.push((Cpu::new(threads, isa), Path::Avx512));
            }
        }
    }
    all
}

/// A row of activations as the module's page defines it: scale and codes of each block.
fn rounded_x(x: &[f32]) -> Vec<(f32, Vec<i32>)> {
    let block = |x: &[f32]| {
        let scale = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
        let code = |x: &f32| (x / scale).round_ties_even().clamp(-127.0, 127.0) as i32;
        let codes = x.iter().map(|x| if scale == 0.0 { 0 } else { code(x) });
        (scale, codes.collect())
    };
    x.chunks(BLOCK).map(block).collect()
}

/// A row of a weight, likewise.
fn rounded_w(w: &[f32], bits: Bits) -> Vec<(f32, Vec<i32>)> {
    let block = |w: &[f32]| {
        let further = |m: f32, &w: &f32| {
            if w.abs() > m.abs() || w == m.abs() {
                w
            } else {
                m
            }
        };
        let extreme = w.iter().fold(0f32, further);
        let (scale, low, high) = match bits {
            Bits::Eight => (extreme.abs() / 127.0, -127.0, 127.0),
            Bits::Four => (extreme / -8.0, -8.0, 7.0),
        };
        let scale = from_f16(to_f16(scale));
        let code = |w: &f32| (w / scale).round_ties_even().clamp(low, high) as i32;
        let codes = w.iter().map(|w| if scale == 0.0 { 0 } else { code(w) });
        (scale, codes.collect())
    };
    w.chunks(BLOCK).map(block).collect()
}

/// The chain of one element, in three lines.
fn chain(x: &[(f32, Vec<i32>)], w: &[(f32, Vec<i32>)], start: f32) -> f32 {
    x.iter()
        .zip(w)
        .fold(start, |c, ((x_scale, x), (w_scale, w))| {
            let dot: i32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            (dot as f32).mul_add(w_scale * x_scale, c)
        })
}

fn quantised(cpu: &Cpu, bits: Bits, w: &[f32], k: usize) -> QuantPanels {
    let mut panels = QuantPanels::new(bits, w.len() / k, k);
    cpu.quantise(Mat::new(w, k), &mut panels);
    panels
}

/// Every path against the chain, bit for bit, for m rows and the weight `[n, k]`.
fn check(x: &[f32], w: &[f32], [m, k, n]: [usize; 3], bits: Bits) {
    let xs: Vec<_> = x.chunks(k).map(rounded_x).collect();
    let ws: Vec<_> = w.chunks(k).map(|w| rounded_w(w, bits)).collect();
    let start = normals(3, m * n);
    for add in [false, true] {
        let element = |i: usize| {
            let from = if add { start[i] } else { 0.0 };
            chain(&xs[i / n], &ws[i % n], from).to_bits()
        };
        let want: Vec<u32> = (0..m * n).map(element).collect();
        for (cpu, path) in machines() {
            let panels = quantised(&cpu, bits, w, k);
            let mut y = start.clone();
            let (x, out) = (Mat::new(x, k), MatMut::new(&mut y, n));
            cpu.quantised_by(path, x, &[&panels], &[0, m as u32], out, add);
            let got: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            let label = format!("{m}x{k}x{n} {bits:?} {path:?} x{} {add}", cpu.threads());
            assert!(got == want, "{label}");
        }
    }
}

#[test]
fn every_product_is_its_three_line_chain_bit_for_bit() {
    for [k, n] in [[1, 1], [31, 33], [32, 32], [100, 70], [257, 129], [640, 97]] {
        let w = normals(2, n * k);
        for m in [1, 2, 5, 17, 40] {
            let x = normals(1, m * k);
            for bits in [Bits::Eight, Bits::Four] {
                check(&x, &w, [m, k, n], bits);
            }
        }
    }
    // More rows than a work item takes.
    check(
        &normals(4, 200 * 33),
        &normals(5, 33 * 40),
        [200, 33, 40],
        Bits::Eight,
    );
}

/// Codes of the greatest magnitude everywhere: the sums at which 16-bit arithmetic would saturate.
#[test]
fn the_greatest_sums_are_exact() {
    let (m, k, n) = (7, 96, 34);
    let sign = |i: usize, period: usize| {
        if (i / period).is_multiple_of(2) {
            1.0
        } else {
            -1.0
        }
    };
    for period in [1, 2, 4, 1000] {
        let x: Vec<f32> = (0..m * k).map(|i| sign(i, period)).collect();
        for other in [1, 2, 3, 1000] {
            let w: Vec<f32> = (0..n * k).map(|i| 0.3 * sign(i, other)).collect();
            check(&x, &w, [m, k, n], Bits::Eight);
            check(&x, &w, [m, k, n], Bits::Four);
        }
    }
}

/// Scales that are zero, subnormal, or beyond f16's normal numbers.
#[test]
fn tiny_values_round_as_the_rule_says() {
    let (m, k, n) = (3, 160, 33);
    let powers = |seed: u64, len: usize, step: i32| -> Vec<f32> {
        let draws = normals(seed, len).into_iter().enumerate();
        draws
            .map(|(i, x)| (f64::from(x) * 2f64.powi(-step * (i / BLOCK % 5) as i32)) as f32)
            .collect()
    };
    let (x, w) = (powers(6, m * k, 36), powers(7, n * k, 7));
    assert!(x.iter().any(|x| x.is_subnormal()), "x of powers of two");
    check(&x, &w, [m, k, n], Bits::Eight);
    check(&x, &w, [m, k, n], Bits::Four);
}

#[test]
fn groups_are_products_of_their_own_on_strided_rows() {
    let (k, n, rows) = (70, 45, 64);
    let offsets = [0u32, 3, 3, 20, 21, 64];
    let x = normals(8, rows * 80);
    let start = normals(9, rows * 50);
    for bits in [Bits::Eight, Bits::Four] {
        for (cpu, path) in machines() {
            let weight = |g: u64| quantised(&cpu, bits, &normals(20 + g, n * k), k);
            let w: Vec<QuantPanels> = (0..5).map(weight).collect();
            let w: Vec<&QuantPanels> = w.iter().collect();
            let mut y = start.clone();
            let xm = Mat::new(&x, 80).columns(0, k);
            let ym = MatMut::new(&mut y, 50).columns(0, n);
            cpu.quantised_by(path, xm, &w, &offsets, ym, true);
            for (g, o) in offsets.windows(2).enumerate() {
                for i in o[0] as usize..o[1] as usize {
                    let mut one = start[i * 50..i * 50 + n].to_vec();
                    let out = MatMut::new(&mut one, n);
                    cpu.quantised_nt(xm.rows(i..i + 1), &w[g..g + 1], &[0, 1], out, true);
                    assert_eq!(one, y[i * 50..i * 50 + n], "row {i} of group {g}");
                    let beyond = i * 50 + n..(i + 1) * 50;
                    assert_eq!(y[beyond.clone()], start[beyond], "columns beyond {n}");
                }
            }
        }
    }
}

#[test]
fn a_row_that_holds_no_number_gives_none_and_leaves_the_others_alone() {
    let (k, n) = (100, 40);
    let w = normals(10, n * k);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 20, 37, 99] {
            for (cpu, path) in machines() {
                let panels = quantised(&cpu, Bits::Four, &w, k);
                let mut x = normals(11, 3 * k);
                let product = |x: &[f32]| {
                    let mut y = vec![0.0; 3 * n];
                    let out = MatMut::new(&mut y, n);
                    cpu.quantised_by(path, Mat::new(x, k), &[&panels], &[0, 3], out, false);
                    y
                };
                let whole = product(&x);
                x[k + at] = bad;
                let y = product(&x);
                assert!(y[n..2 * n].iter().all(|y| y.is_nan()), "{bad} {path:?}");
                assert_eq!((&y[..n], &y[2 * n..]), (&whole[..n], &whole[2 * n..]));
            }
        }
    }
}

#[test]
fn a_weight_beyond_its_format_is_not_a_number_and_others_are_near() {
    let (k, n) = (80, 35);
    for (bits, levels) in [(Bits::Eight, 127.0), (Bits::Four, 8.0)] {
        let mut w = normals(12, n * k);
        w[3 * k + 5] = f32::INFINITY;
        w[34 * k + 40] = 1e8;
        w[7 * k + 64] = f32::NAN;
        w[8 * k..9 * k].fill(0.0);
        for isa in Isa::available() {
            let cpu = Cpu::new(2, isa);
            let panels = quantised(&cpu, bits, &w, k);
            let mut row = vec![0.0; k];
            for r in 0..n {
                panels.read_row(r, &mut row);
                for (b, (got, want)) in row.chunks(BLOCK).zip(w[r * k..].chunks(BLOCK)).enumerate()
                {
                    if [(3, 0), (34, 1), (7, 2)].contains(&(r, b)) {
                        assert!(got.iter().all(|x| x.is_nan()), "{bits:?} row {r} block {b}");
                        continue;
                    }
                    let most = want
                        .iter()
                        .take(got.len())
                        .fold(0f32, |m, w| m.max(w.abs()));
                    // Half a step; in four bits a whole one where +8 is not a code. The scale's
                    // own rounding, 2^-11, moves the greatest code by that much.
                    let steps = if bits == Bits::Four { 1.0 } else { 0.5 };
                    let bound = most * (steps / levels + 1.0 / 2048.0);
                    for (got, want) in got.iter().zip(want) {
                        assert!((got - want).abs() <= bound, "{got}, should be near {want}");
                    }
                }
            }
        }
    }
}

/// Blocks that are in the format already (llama.cpp's `Q8_0` and `Q4_0` hold a code of greatest
/// magnitude in every block) come back as they were.
#[test]
fn values_of_the_format_are_kept_exactly() {
    let k = 96;
    for (bits, least, codes, extreme) in [(Bits::Eight, -127, 255, 127), (Bits::Four, -8, 16, -8)] {
        let value = |i: usize| {
            let scale = from_f16(to_f16(0.01 * (1 + i / BLOCK) as f32));
            let code = least + (i * i * 31 % codes) as i32;
            scale * (if i % BLOCK == 9 { extreme } else { code }) as f32
        };
        let w: Vec<f32> = (0..40 * k).map(value).collect();
        let panels = quantised(&Cpu::new(1, Isa::best()), bits, &w, k);
        let mut row = vec![0.0; k];
        for (r, want) in w.chunks(k).enumerate() {
            panels.read_row(r, &mut row);
            assert_eq!(row, want, "{bits:?} row {r}");
        }
    }
}

/// Of 32 standard normals the greatest magnitude is 2.5 (root mean square). Rounding to a step s
/// adds noise of s / sqrt(12): with s = 2.5 / 127 that is 0.57 % of each operand, 0.8 % of the
/// product; with s = 2.5 / 8 it is 9 % of the weights.
#[test]
fn the_error_against_f64_is_that_of_rounding() {
    let (m, k, n) = (8, 1024, 256);
    let (x, w) = (normals(13, m * k), normals(14, n * k));
    let cpu = Cpu::new(2, Isa::best());
    for (bits, least, most) in [(Bits::Eight, 0.005, 0.01), (Bits::Four, 0.05, 0.1)] {
        let panels = quantised(&cpu, bits, &w, k);
        assert_eq!(
            panels.bytes(),
            n * k / 32 * if bits == Bits::Eight { 34 } else { 18 }
        );
        let mut y = vec![0.0; m * n];
        let out = MatMut::new(&mut y, n);
        cpu.quantised_nt(Mat::new(&x, k), &[&panels], &[0, m as u32], out, false);
        let (mut error, mut size) = (0.0, 0.0);
        for (i, &got) in y.iter().enumerate() {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            let want: f64 = x
                .iter()
                .zip(w)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum();
            error += (f64::from(got) - want).powi(2);
            size += want * want;
        }
        let relative = (error / size).sqrt();
        assert!((least..most).contains(&relative), "{bits:?}: {relative}");
    }
}

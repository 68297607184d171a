use super::*;
use crate::Isa;
use crate::simd::bf16_bits;
use crate::{Backend, Chance, Purpose};

fn random(seed: u64, n: usize) -> Vec<f32> {
    let chance = Chance::new(seed, Purpose::InitialWeights);
    (0..n).map(|i| chance.normal(0, i as u32) as f32).collect()
}

fn bf16(x: f32) -> f32 {
    f32::from_bits(bf16_bits(x) << 16)
}

/// The chain of one element, in three lines, as `design.md` states it.
fn chain(a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, k: usize, p: Precision) -> f32 {
    let flush = |x: f32| {
        if x.abs() < f32::MIN_POSITIVE {
            0.0f32.copysign(x)
        } else {
            x
        }
    };
    match p {
        Precision::F32 => (0..k).fold(0.0, |c, i| a(i).mul_add(b(i), c)),
        Precision::Bf16 => (0..k.div_ceil(2)).fold(0.0, |c, i| {
            let at = |f: &dyn Fn(usize) -> f32, i| if i < k { bf16(f(i)) } else { 0.0 };
            let c = flush(at(&a, 2 * i + 1).mul_add(at(&b, 2 * i + 1), c));
            flush(at(&a, 2 * i).mul_add(at(&b, 2 * i), c))
        }),
    }
}

fn machines() -> Vec<Cpu> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [1, 2, 3].map(|threads| Cpu::new(threads, isa)))
        .collect()
}

/// (tokens, in_features, out_features): edges of tiles, panels and depth blocks.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (1, 33, 70),
    (5, 16, 31),
    (13, 300, 33),
    (12, 64, 32),
    (97, 17, 65),
    (100, 520, 40),
    (200, 95, 129),
];

#[test]
fn every_product_is_its_three_line_chain_bit_for_bit() {
    for (t, k, n) in SHAPES {
        let (x, w, dy) = (random(1, t * k), random(2, n * k), random(3, t * n));
        for precision in [Precision::F32, Precision::Bf16] {
            for cpu in machines() {
                let mut packed = Weight::new(n, k, precision);
                cpu.pack(Mat::new(&w, k), &mut packed);
                let w_group = std::slice::from_ref(&packed);
                let all = [0, t as u32];
                let (mut y, mut dx) = (vec![9.0; t * n], vec![9.0; t * k]);
                let mut dw = vec![9.0; n * k];
                cpu.grouped_nt(
                    Mat::new(&x, k),
                    w_group,
                    &all,
                    MatMut::new(&mut y, n),
                    false,
                );
                cpu.grouped_nn(
                    Mat::new(&dy, n),
                    w_group,
                    &all,
                    MatMut::new(&mut dx, k),
                    false,
                );
                let (dy, x) = (Mat::new(&dy, n), Mat::new(&x, k));
                cpu.grouped_tn(dy, x, &all, precision, &mut dw, false);
                let label = format!("{t}x{k}x{n} {precision:?} {} x{}", cpu.isa(), cpu.threads());
                let probe = |i: usize| i.is_multiple_of(7) || t * n * k < 20_000;
                for i in (0..t * n).filter(|&i| probe(i)) {
                    let (r, c) = (i / n, i % n);
                    let want = chain(|i| x.row(r)[i], |i| w[c * k + i], k, precision);
                    assert_eq!(y[i].to_bits(), want.to_bits(), "nt {label} at {r},{c}");
                }
                for i in (0..t * k).filter(|&i| probe(i)) {
                    let (r, c) = (i / k, i % k);
                    let want = chain(|i| dy.row(r)[i], |i| w[i * k + c], n, precision);
                    assert_eq!(dx[i].to_bits(), want.to_bits(), "nn {label} at {r},{c}");
                }
                for i in (0..n * k).filter(|&i| probe(i)) {
                    let (r, c) = (i / k, i % k);
                    let want = chain(|i| dy.row(i)[r], |i| x.row(i)[c], t, precision);
                    assert_eq!(dw[i].to_bits(), want.to_bits(), "tn {label} at {r},{c}");
                }
            }
        }
    }
}

#[test]
fn a_grouped_product_is_its_groups_one_by_one_and_adding_continues_the_chain() {
    let (k, n) = (48, 37);
    let offsets = [0u32, 3, 3, 20, 21, 64];
    let (x, dy) = (random(4, 64 * k), random(5, 64 * n));
    for precision in [Precision::F32, Precision::Bf16] {
        let mut whole: Option<[Vec<f32>; 3]> = None;
        for cpu in machines() {
            let w: Vec<Weight> = (0..5).map(|g| weight(&cpu, g, n, k, precision)).collect();
            let start = random(6, 64 * n.max(k));
            let mut y = start[..64 * n].to_vec();
            let mut dx = start[..64 * k].to_vec();
            let mut dw = vec![0.0; 5 * n * k];
            let (xm, dym) = (Mat::new(&x, k), Mat::new(&dy, n));
            cpu.grouped_nt(xm, &w, &offsets, MatMut::new(&mut y, n), true);
            cpu.grouped_nn(dym, &w, &offsets, MatMut::new(&mut dx, k), true);
            cpu.grouped_tn(dym, xm, &offsets, precision, &mut dw, false);
            for (g, o) in offsets.windows(2).enumerate() {
                let rows = o[0] as usize..o[1] as usize;
                let (all, wg) = ([0, rows.len() as u32], &w[g..g + 1]);
                let mut one = start[rows.start * n..rows.end * n].to_vec();
                let out = MatMut::new(&mut one, n);
                cpu.grouped_nt(xm.rows(rows.clone()), wg, &all, out, true);
                assert_eq!(one, y[rows.start * n..rows.end * n]);
                let mut one = vec![0.0; n * k];
                let (dyg, xg) = (dym.rows(rows.clone()), xm.rows(rows));
                cpu.grouped_tn(dyg, xg, &all, precision, &mut one, false);
                assert_eq!(one, dw[g * n * k..(g + 1) * n * k]);
            }
            let now = [y, dx, dw];
            assert_eq!(
                whole.get_or_insert_with(|| now.clone()),
                &now,
                "{}",
                cpu.isa()
            );
        }
    }
}

fn weight(cpu: &Cpu, g: u64, n: usize, k: usize, precision: Precision) -> Weight {
    let mut packed = Weight::new(n, k, precision);
    cpu.pack(Mat::new(&random(10 + g, n * k), k), &mut packed);
    packed
}

#[test]
fn products_per_head_read_and_write_their_own_columns() {
    let (t, heads, a, b) = (9, 3, 8, 20);
    let (x, w) = (random(1, t * heads * 12), random(2, heads * a * b));
    for precision in [Precision::F32, Precision::Bf16] {
        for cpu in machines() {
            let weights: Vec<Weight> = (0..heads)
                .map(|h| {
                    let mut packed = Weight::new(a, b, precision);
                    cpu.pack(Mat::new(&w[h * a * b..(h + 1) * a * b], b), &mut packed);
                    packed
                })
                .collect();
            let mut y = vec![0.0; t * heads * b];
            let xm = Mat::new(&x, heads * 12);
            let out = MatMut::new(&mut y, heads * b);
            cpu.per_head(xm, 12, &weights, false, out, b, false);
            let mut dw = vec![0.0; heads * a * b];
            let ym = Mat::new(&y, heads * b);
            cpu.per_head_transposed((xm, 12), a, (ym, b), b, precision, &mut dw, a * b);
            for h in 0..heads {
                for (r, c) in (0..t).flat_map(|r| (0..b).map(move |c| (r, c))) {
                    let wh = &w[h * a * b..];
                    let want = chain(|i| xm.row(r)[h * 12 + i], |i| wh[i * b + c], a, precision);
                    assert_eq!(
                        ym.row(r)[h * b + c].to_bits(),
                        want.to_bits(),
                        "{}",
                        cpu.isa()
                    );
                }
                for (r, c) in (0..a).flat_map(|r| (0..b).map(move |c| (r, c))) {
                    let (l, m) = (|i| xm.row(i)[h * 12 + r], |i| ym.row(i)[h * b + c]);
                    let want = chain(l, m, t, precision);
                    assert_eq!(dw[h * a * b + r * b + c].to_bits(), want.to_bits());
                }
            }
        }
    }
}

/// Every pair of special values, subnormals among them, through every instruction set: the
/// hardware's dot product must be the two FMAs that stand for it elsewhere.
#[test]
fn bf16_dot_products_agree_on_all_instruction_sets_for_extreme_values() {
    let bits = |i: u32| {
        let x = Chance::new(u64::from(i), Purpose::Shuffle).bits(0, 0)[0];
        let special = [
            0,
            0x8000_0000,
            1,
            0x8000_0001,
            0x0080_0000,
            0x007f_ffff,
            0x0001_0000,
        ];
        match i % 4 {
            0 => f32::from_bits(special[(x % 7) as usize]),
            // Products of these reach far below the smallest normal number.
            1 => f32::from_bits((x & 0x81ff_ffff) | 0x1f00_0000),
            2 => f32::from_bits(x & 0x8fff_ffff),
            _ => f32::from_bits((x & 0x83ff_ffff) | 0x3d00_0000),
        }
    };
    let (t, k, n) = (64, 6, 512);
    let x: Vec<f32> = (0..(t * k) as u32).map(bits).collect();
    let w: Vec<f32> = (0..(n * k) as u32).map(|i| bits(i + 10_000)).collect();
    let mut first: Option<Vec<u32>> = None;
    for cpu in machines() {
        let mut packed = Weight::new(n, k, Precision::Bf16);
        cpu.pack(Mat::new(&w, k), &mut packed);
        let mut y = vec![0.0; t * n];
        let all = [0, t as u32];
        let out = MatMut::new(&mut y, n);
        cpu.grouped_nt(
            Mat::new(&x, k),
            std::slice::from_ref(&packed),
            &all,
            out,
            false,
        );
        let now: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
        let want = first.get_or_insert_with(|| now.clone());
        let differ = now.iter().zip(&*want).filter(|(a, b)| a != b).count();
        assert_eq!(
            differ,
            0,
            "{} differs from the oracle in {differ} of {}",
            cpu.isa(),
            t * n
        );
    }
}

use super::*;
use crate::{Chance, Purpose};

fn random(seed: u64, n: usize) -> Vec<f32> {
    let chance = Chance::new(seed, Purpose::InitialWeights);
    (0..n)
        .map(|i| 0.7 * chance.normal(0, i as u32) as f32)
        .collect()
}

fn machines() -> Vec<Cpu> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [1, 2, 3].map(|threads| Cpu::new(threads, isa)))
        .collect()
}

const SHAPES: [Heads; 3] = [
    Heads {
        heads: 4,
        kv_heads: 1,
        qk_dim: 20,
        v_dim: 16,
        scale: 0.3,
    },
    Heads {
        heads: 3,
        kv_heads: 3,
        qk_dim: 9,
        v_dim: 5,
        scale: 0.4,
    },
    Heads {
        heads: 4,
        kv_heads: 2,
        qk_dim: 33,
        v_dim: 34,
        scale: 0.2,
    },
];
const LENGTHS: [u32; 5] = [1, 40, 7, 33, 64];

struct Case {
    shape: Heads,
    cu_seqlens: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn case(shape: Heads) -> Case {
    let mut cu_seqlens = vec![0];
    LENGTHS
        .iter()
        .for_each(|l| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + l));
    let t = cu_seqlens[LENGTHS.len()] as usize;
    let q = random(1, t * shape.heads * shape.qk_dim);
    let k = random(2, t * shape.kv_heads * shape.qk_dim);
    let v = random(3, t * shape.kv_heads * shape.v_dim);
    Case {
        shape,
        cu_seqlens,
        q,
        k,
        v,
    }
}

impl Case {
    fn tokens(&self) -> usize {
        self.cu_seqlens[LENGTHS.len()] as usize
    }

    fn mats(&self) -> [Mat<'_>; 3] {
        let s = &self.shape;
        [
            Mat::new(&self.q, s.heads * s.qk_dim),
            Mat::new(&self.k, s.kv_heads * s.qk_dim),
            Mat::new(&self.v, s.kv_heads * s.v_dim),
        ]
    }

    fn packed(&self) -> Sequences<'_> {
        let key_rows = KeyRows::Packed;
        Sequences {
            cu_seqlens: &self.cu_seqlens,
            context_lens: &LENGTHS,
            key_rows,
        }
    }

    fn run(&self, cpu: &Cpu) -> (Vec<f32>, Vec<f32>) {
        let width = self.shape.heads * self.shape.v_dim;
        let mut out = vec![0.0; self.tokens() * width];
        let mut stats = vec![0.0; self.tokens() * self.shape.heads * 2];
        let [q, k, v] = self.mats();
        let to = MatMut::new(&mut out, width);
        attention(cpu, q, k, v, &self.shape, &self.packed(), to, &mut stats);
        (out, stats)
    }
}

/// Attention in f64, one query at a time.
fn oracle(case: &Case, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let s = &case.shape;
    let mut out = Vec::new();
    for bounds in case.cu_seqlens.windows(2) {
        let (start, end) = (bounds[0] as usize, bounds[1] as usize);
        for (t, h) in (start..end).flat_map(|t| (0..s.heads).map(move |h| (t, h))) {
            let kh = h / s.group();
            let score = |j: usize| -> f64 {
                let q = &q[(t * s.heads + h) * s.qk_dim..][..s.qk_dim];
                let k = &k[(j * s.kv_heads + kh) * s.qk_dim..][..s.qk_dim];
                (q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * f64::from(s.scale)).exp()
            };
            let weights: Vec<f64> = (start..=t).map(score).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..s.v_dim).map(|d| {
                let value = |j: usize| v[((start + j) * s.kv_heads + kh) * s.v_dim + d];
                weights
                    .iter()
                    .enumerate()
                    .map(|(j, w)| w * value(j))
                    .sum::<f64>()
                    / sum
            }));
        }
    }
    out
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn forward_is_the_formula_and_the_same_bits_everywhere() {
    for shape in SHAPES {
        let case = case(shape);
        let want = oracle(&case, &wide(&case.q), &wide(&case.k), &wide(&case.v));
        let first = case.run(&Cpu::new(1, Isa::Portable));
        for (i, (a, b)) in first.0.iter().zip(&want).enumerate() {
            assert!((f64::from(*a) - b).abs() < 2e-6, "element {i}: {a} {b}");
        }
        for cpu in machines() {
            let now = case.run(&cpu);
            assert!(now == first, "{} x{}", cpu.isa(), cpu.threads());
        }
    }
}

/// The row law: keys in a cache's blocks, queries in chunks of any size, one at a time as in
/// decoding: the same bits as the whole document packed.
#[test]
fn chunks_over_a_block_table_equal_the_packed_document_bit_for_bit() {
    let cpu = Cpu::new(2, Isa::best());
    for shape in SHAPES {
        let case = case(shape);
        let (want, _) = case.run(&cpu);
        let (block_size, blocks) = (16, 4);
        // Blocks in a scattered order, each sequence with its own.
        let tables: Vec<u32> = (0..LENGTHS.len() * blocks)
            .map(|i| (i * 7 % 20) as u32)
            .collect();
        let [q, k, v] = case.mats();
        let (mut kc, mut vc) = (
            vec![f32::NAN; 20 * 16 * k.cols],
            vec![f32::NAN; 20 * 16 * v.cols],
        );
        for (s, bounds) in case.cu_seqlens.windows(2).enumerate() {
            for (p, t) in (bounds[0] as usize..bounds[1] as usize).enumerate() {
                let row = tables[s * blocks + p / 16] as usize * 16 + p % 16;
                kc[row * k.cols..][..k.cols].copy_from_slice(k.row(t));
                vc[row * v.cols..][..v.cols].copy_from_slice(v.row(t));
            }
        }
        for chunk in [1u32, 3, 17, 64] {
            for from in (0..64).step_by(chunk as usize) {
                let mut cu_seqlens = vec![0u32];
                let mut context_lens = Vec::new();
                let (mut queries, mut rows) = (Vec::new(), Vec::new());
                for (s, &len) in LENGTHS.iter().enumerate() {
                    let (first, last) = (from.min(len), (from + chunk).min(len));
                    for p in first..last {
                        let t = (case.cu_seqlens[s] + p) as usize;
                        queries.extend_from_slice(q.row(t));
                        rows.push(t);
                    }
                    cu_seqlens.push(rows.len() as u32);
                    context_lens.push(last);
                }
                let key_rows = KeyRows::Blocks {
                    tables: &tables,
                    blocks_per_sequence: blocks,
                    block_size,
                };
                let sequences = Sequences {
                    cu_seqlens: &cu_seqlens,
                    context_lens: &context_lens,
                    key_rows,
                };
                let width = shape.heads * shape.v_dim;
                let mut out = vec![0.0; rows.len() * width];
                let mut stats = vec![0.0; rows.len() * shape.heads * 2];
                let (kc, vc) = (Mat::new(&kc, k.cols), Mat::new(&vc, v.cols));
                let (q, to) = (Mat::new(&queries, q.cols), MatMut::new(&mut out, width));
                attention(&cpu, q, kc, vc, &shape, &sequences, to, &mut stats);
                for (i, t) in rows.into_iter().enumerate() {
                    let want = &want[t * width..(t + 1) * width];
                    assert_eq!(
                        &out[i * width..(i + 1) * width],
                        want,
                        "chunk {chunk} from {from}"
                    );
                }
            }
        }
    }
}

#[test]
fn backward_is_the_slope_of_the_formula_and_the_same_bits_everywhere() {
    for shape in SHAPES {
        let case = case(shape);
        let dout = random(4, case.tokens() * shape.heads * shape.v_dim);
        let backward = |cpu: &Cpu| {
            let (out, stats) = case.run(cpu);
            let [q, k, v] = case.mats();
            let width = shape.heads * shape.v_dim;
            let (mut dq, mut dk, mut dv) = (
                vec![9.0; case.q.len()],
                vec![9.0; case.k.len()],
                vec![9.0; case.v.len()],
            );
            let (out, dout) = (Mat::new(&out, width), Mat::new(&dout, width));
            let (a, b) = (MatMut::new(&mut dq, q.cols), MatMut::new(&mut dk, k.cols));
            let c = MatMut::new(&mut dv, v.cols);
            let packed = case.packed();
            attention_backward(cpu, q, k, v, &shape, &packed, out, &stats, dout, a, b, c);
            [dq, dk, dv]
        };
        let first = backward(&Cpu::new(1, Isa::Portable));
        for cpu in machines() {
            assert!(backward(&cpu) == first, "{} x{}", cpu.isa(), cpu.threads());
        }
        let inputs = [wide(&case.q), wide(&case.k), wide(&case.v)];
        let loss = |x: &[Vec<f64>; 3]| -> f64 {
            let out = oracle(&case, &x[0], &x[1], &x[2]);
            out.iter().zip(&dout).map(|(o, d)| o * f64::from(*d)).sum()
        };
        for which in 0..3 {
            for i in (0..inputs[which].len()).step_by(inputs[which].len() / 25) {
                let slope = |h: f64| {
                    let mut x = inputs.clone();
                    x[which][i] += h;
                    loss(&x)
                };
                let want = (slope(1e-5) - slope(-1e-5)) / 2e-5;
                let got = f64::from(first[which][i]);
                assert!(
                    (got - want).abs() < 1e-5 * (1.0 + want.abs()),
                    "{which} {i}: {got} {want}"
                );
            }
        }
    }
}

/// Few queries read keys where they lie, many have them packed: whatever the shape, the chunks and
/// the instruction set, the bits are those of the whole sequence at once.
#[test]
fn few_rows_in_place_are_the_packed_products() {
    let mut draw = Chance::new(77, Purpose::Problem).draws(9);
    for trial in 0..120 {
        let kv_heads = 1 + draw(3) as usize;
        let group = 1 + draw(6) as usize;
        let (a, b) = (
            [20, 80, 200][draw(3) as usize],
            [20, 80, 200][draw(3) as usize],
        );
        let shape = Heads {
            heads: kv_heads * group,
            kv_heads,
            qk_dim: 1 + draw(a) as usize,
            v_dim: 1 + draw(b) as usize,
            scale: 0.3,
        };
        let n_most = [3, 20, 90][draw(3) as usize];
        let n = 1 + draw(n_most) as usize;
        let bs = 1 + draw(20) as usize;
        let blocks = n.div_ceil(bs);
        let total = blocks + 3;
        let mut table: Vec<u32> = (0..total as u32).collect();
        for i in (1..total).rev() {
            table.swap(i, draw(i as u64 + 1) as usize);
        }
        table.truncate(blocks);
        let q = random(trial as u64 * 3, n * shape.heads * shape.qk_dim);
        let k = random(trial as u64 * 3 + 1, total * bs * kv_heads * shape.qk_dim);
        let v = random(trial as u64 * 3 + 2, total * bs * kv_heads * shape.v_dim);
        let (qw, ow) = (shape.heads * shape.qk_dim, shape.heads * shape.v_dim);
        let mut expected: Option<(Vec<u32>, Vec<u32>)> = None;
        for isa in Isa::available() {
            let cpu = Cpu::new(1 + trial as usize % 2, isa);
            for chunk in [n, 1, 2, 3, 5] {
                let mut out = vec![7.0; n * ow];
                let mut stats = vec![0.0; n * shape.heads * 2];
                let mut first = 0;
                while first < n {
                    let last = n.min(first + chunk);
                    let s = Sequences {
                        cu_seqlens: &[0, (last - first) as u32],
                        context_lens: &[last as u32],
                        key_rows: KeyRows::Blocks {
                            tables: &table,
                            blocks_per_sequence: blocks,
                            block_size: bs,
                        },
                    };
                    attention(
                        &cpu,
                        Mat::new(&q[first * qw..last * qw], qw),
                        Mat::new(&k, kv_heads * shape.qk_dim),
                        Mat::new(&v, kv_heads * shape.v_dim),
                        &shape,
                        &s,
                        MatMut::new(&mut out[first * ow..last * ow], ow),
                        &mut stats[first * shape.heads * 2..last * shape.heads * 2],
                    );
                    first = last;
                }
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
                let got = (bits(&out), bits(&stats));
                match &expected {
                    None => expected = Some(got),
                    Some(expected) => {
                        let Heads {
                            heads,
                            kv_heads,
                            qk_dim,
                            v_dim,
                            ..
                        } = shape;
                        assert!(
                            *expected == got,
                            "trial {trial}, {isa}, chunks of {chunk}: {heads} heads on {kv_heads}, \
                             widths {qk_dim} and {v_dim}, {n} keys in blocks of {bs}"
                        );
                    }
                }
            }
        }
    }
}

//! The head fused with what is asked of its logits: log-probabilities, entropies, and the gradient
//! of a loss over them. Logits exist for a chunk of rows at a time, never for all.

use crate::cpu::Cpu;
use crate::gemm::Weight;
use crate::mat::{Mat, MatMut};
use crate::math;
use crate::pool::SharedMut;
use crate::simd::{LANES, simd_fn};
use crate::{Backend, Isa};

/// Rows whose logits exist at one time. Even, so that bf16 pairs of rows never straddle chunks.
const CHUNK: usize = 256;
/// Stands in lanes beyond the vocabulary, at any temperature: far below any logit over it, far
/// above what would overflow.
const PAD: f32 = -1e38;

simd_fn! {
    /// For the logits s of a row over a temperature: their maximum, the sum of e^(s - max), and
    /// the sum of (s - max) e^(s - max).
    fn row_sums<S>(row: &[f32], inverse_temperature: f32) -> (f32, f32, f32) {
        let factor = S::splat(inverse_temperature);
        let full = row.len() / LANES * LANES;
        let mut tail = [PAD; LANES];
        for (scaled, logit) in tail.iter_mut().zip(&row[full..]) {
            *scaled = logit * inverse_temperature;
        }
        let mut greatest = S::splat(f32::MIN);
        for i in (0..full).step_by(LANES) {
            greatest = S::max(S::mul(S::load(row.as_ptr().add(i)), factor), greatest);
        }
        greatest = S::max(S::load(tail.as_ptr()), greatest);
        let max = S::greatest(greatest);
        let (mut sum, mut weighted) = (S::splat(0.0), S::splat(0.0));
        for i in (0..=full).step_by(LANES) {
            let s = if i < full {
                S::mul(S::load(row.as_ptr().add(i)), factor)
            } else {
                S::load(tail.as_ptr())
            };
            let s = S::sub(s, S::splat(max));
            let e = crate::simd::exp::<S>(s);
            sum = S::add(sum, e);
            weighted = S::fma(e, s, weighted);
        }
        (max, S::sum(sum), S::sum(weighted))
    }
}

simd_fn! {
    /// Replaces a row of logits by `factor * softmax`.
    fn scaled_softmax<S>(row: &mut [f32], inverse_temperature: f32, max: f32, factor: f32) {
        let (p, n) = (row.as_mut_ptr(), row.len());
        for i in (0..n).step_by(LANES) {
            let s = S::mul(S::load_first(p.add(i), n - i), S::splat(inverse_temperature));
            let e = crate::simd::exp::<S>(S::sub(s, S::splat(max)));
            S::store_first(p.add(i), n - i, S::mul(e, S::splat(factor)));
        }
    }
}

/// What turns the logits of one row into log-probabilities at one temperature.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogNormalizer {
    inverse_temperature: f32,
    max: f32,
    ln_sum: f32,
}

impl LogNormalizer {
    /// The log-probability, in nats, of the token that has this logit: the bits of
    /// [`Backend::logprobs`](crate::Backend::logprobs).
    pub fn logprob(&self, logit: f32) -> f32 {
        logit * self.inverse_temperature - self.max - self.ln_sum
    }
}

fn log_normalizer(inverse_temperature: f32, max: f32, sum: f32) -> LogNormalizer {
    LogNormalizer {
        inverse_temperature,
        max,
        ln_sum: math::ln(f64::from(sum)) as f32,
    }
}

/// The normalizer of each row at its own temperature.
pub(crate) fn log_normalizers(
    cpu: &Cpu,
    logits: Mat,
    temperatures: &[f32],
    normalizers: &mut [LogNormalizer],
) {
    assert_eq!(
        (temperatures.len(), normalizers.len()),
        (logits.rows, logits.rows),
        "rows"
    );
    let shared = SharedMut::new(normalizers);
    cpu.pool.run_chunks(logits.rows, 16, |rows| {
        for i in rows {
            let inverse_temperature = 1.0 / temperatures[i];
            let (max, sum, _) = row_sums(cpu.isa, logits.row(i), inverse_temperature);
            // SAFETY: row i belongs to this chunk alone.
            let normalizer = unsafe { &mut shared.slice(i..i + 1)[0] };
            *normalizer = log_normalizer(inverse_temperature, max, sum);
        }
    });
}

/// A row's log-probability of `target`, entropy (both in nats), maximum and sum.
fn row_outcome(isa: Isa, row: &[f32], target: u32, inverse_temperature: f32) -> [f32; 4] {
    let (max, sum, weighted) = row_sums(isa, row, inverse_temperature);
    let normalizer = log_normalizer(inverse_temperature, max, sum);
    let logprob = normalizer.logprob(row[target as usize]);
    [logprob, normalizer.ln_sum - weighted / sum, max, sum]
}

/// Log-probability of each row's target and the entropy of its distribution, in nats, at a
/// temperature.
pub(crate) fn logprobs(
    cpu: &Cpu,
    logits: Mat,
    targets: &[u32],
    temperature: f32,
    logprobs: &mut [f32],
    entropies: &mut [f32],
) {
    assert_eq!(
        (targets.len(), logprobs.len()),
        (logits.rows, logits.rows),
        "rows"
    );
    assert_eq!(entropies.len(), logits.rows, "entropies");
    let (lp, en) = (SharedMut::new(logprobs), SharedMut::new(entropies));
    cpu.pool.run_chunks(logits.rows, 16, |rows| {
        for i in rows {
            let [l, e, ..] = row_outcome(cpu.isa, logits.row(i), targets[i], 1.0 / temperature);
            // SAFETY: row i belongs to this chunk alone.
            unsafe {
                lp.slice(i..i + 1)[0] = l;
                en.slice(i..i + 1)[0] = e;
            }
        }
    });
}

/// Rows of logits become probabilities at a temperature, in place.
pub(crate) fn softmax(cpu: &Cpu, logits: MatMut, temperature: f32) {
    logits.check();
    let (rows, cols, stride) = (logits.rows, logits.cols, logits.stride);
    let shared = SharedMut::new(logits.data);
    let inverse_temperature = 1.0 / temperature;
    cpu.pool.run_chunks(rows, 16, |rows| {
        for i in rows {
            // SAFETY: row i belongs to this chunk alone.
            let row = unsafe { shared.slice(i * stride..i * stride + cols) };
            let (max, sum, _) = row_sums(cpu.isa, row, inverse_temperature);
            scaled_softmax(cpu.isa, row, inverse_temperature, max, 1.0 / sum);
        }
    });
}

/// What a loss over log-probabilities asks of the backward.
pub struct HeadGradient<'a> {
    /// d loss / d logprob of each row's target.
    pub dlogprobs: &'a [f32],
    /// Written.
    pub dhidden: MatMut<'a>,
    /// `[vocab_size, hidden_size]`, added to.
    pub dweight: &'a mut [f32],
}

/// hidden `[tokens, hidden_size]` through the head: log-probabilities of the targets and
/// entropies, and where a gradient is asked for, d hidden and d weight.
pub(crate) fn head(
    cpu: &Cpu,
    hidden: Mat,
    weight: &Weight,
    targets: &[u32],
    temperature: f32,
    logits: &mut Vec<f32>,
    logprob_out: &mut [f32],
    entropy_out: &mut [f32],
    mut gradient: Option<HeadGradient>,
) {
    let (tokens, vocab) = (hidden.rows, weight.out_features());
    assert_eq!((targets.len(), logprob_out.len()), (tokens, tokens), "rows");
    assert_eq!(entropy_out.len(), tokens, "entropies");
    logits.resize(CHUNK.min(tokens.max(1)) * vocab, 0.0);
    let inverse_temperature = 1.0 / temperature;
    for first in (0..tokens).step_by(CHUNK) {
        let range = first..tokens.min(first + CHUNK);
        let rows = range.len();
        let x = hidden.rows(range.clone());
        let chunk = &mut logits[..rows * vocab];
        cpu.matmul_nt(x, weight, MatMut::new(chunk, vocab), false);
        let targets = &targets[range.clone()];
        let dlogprobs = gradient.as_ref().map(|g| &g.dlogprobs[range.clone()]);
        let shared = SharedMut::new(chunk);
        let lp = SharedMut::new(&mut logprob_out[range.clone()]);
        let en = SharedMut::new(&mut entropy_out[range.clone()]);
        cpu.pool.run_chunks(rows, 16, |rows| {
            for i in rows {
                // SAFETY: row i belongs to this chunk alone.
                let row = unsafe { shared.slice(i * vocab..(i + 1) * vocab) };
                let [l, e, max, sum] = row_outcome(cpu.isa, row, targets[i], inverse_temperature);
                // SAFETY: as above.
                unsafe {
                    lp.slice(i..i + 1)[0] = l;
                    en.slice(i..i + 1)[0] = e;
                }
                if let Some(d) = dlogprobs {
                    let factor = d[i] * inverse_temperature;
                    scaled_softmax(cpu.isa, row, inverse_temperature, max, -factor / sum);
                    row[targets[i] as usize] += factor;
                }
            }
        });
        if let Some(g) = &mut gradient {
            let d = Mat::new(&logits[..rows * vocab], vocab);
            let width = g.dhidden.cols;
            let dhidden = g.dhidden.reborrow().rows(range);
            cpu.matmul_nn(d, weight, dhidden, false);
            assert_eq!(g.dweight.len(), vocab * width, "size of dweight");
            cpu.matmul_tn(d, x, weight.precision(), g.dweight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chance, Precision, Purpose};

    fn random(seed: u64, n: usize) -> Vec<f32> {
        let chance = Chance::new(seed, Purpose::InitialWeights);
        (0..n).map(|i| chance.normal(0, i as u32) as f32).collect()
    }

    /// Log-probabilities, entropies and the gradient of a weighted sum of the former, in f64.
    fn oracle(
        h: &[f32],
        w: &[f32],
        d: usize,
        targets: &[u32],
        weights: &[f32],
        temperature: f64,
    ) -> [Vec<f64>; 4] {
        let (t, v) = (h.len() / d, w.len() / d);
        let [mut lp, mut en] = [vec![], vec![]];
        let (mut dh, mut dw) = (vec![0.0; h.len()], vec![0.0; w.len()]);
        for i in 0..t {
            let h = &h[i * d..(i + 1) * d];
            let logit = |j: usize| -> f64 {
                let w = &w[j * d..(j + 1) * d];
                h.iter()
                    .zip(w)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum::<f64>()
                    / temperature
            };
            let s: Vec<f64> = (0..v).map(logit).collect();
            let z = s.iter().map(|s| s.exp()).sum::<f64>().ln();
            lp.push(s[targets[i] as usize] - z);
            en.push(s.iter().map(|s| -(s - z) * (s - z).exp()).sum());
            for j in 0..v {
                let one = f64::from(u8::from(j == targets[i] as usize));
                let g = f64::from(weights[i]) * (one - (s[j] - z).exp()) / temperature;
                for c in 0..d {
                    dh[i * d + c] += g * f64::from(w[j * d + c]);
                    dw[j * d + c] += g * f64::from(h[c]);
                }
            }
        }
        [lp, en, dh, dw]
    }

    #[test]
    fn head_is_the_formula_and_the_same_bits_everywhere() {
        for (t, d, v, temperature) in [(1, 8, 5, 1.0), (300, 12, 37, 0.7), (20, 16, 64, 1.5)] {
            let (h, w, weights) = (random(1, t * d), random(2, v * d), random(3, t));
            let targets: Vec<u32> = (0..t).map(|i| (i * 31 % v) as u32).collect();
            let want = oracle(&h, &w, d, &targets, &weights, f64::from(temperature));
            let mut first: Option<[Vec<f32>; 4]> = None;
            let isas = Isa::available().into_iter();
            for (isa, threads) in isas.flat_map(|isa| [(isa, 1), (isa, 2), (isa, 3)]) {
                let cpu = Cpu::new(threads, isa);
                let mut packed = Weight::new(v, d, Precision::F32);
                cpu.pack(Mat::new(&w, d), &mut packed);
                let [mut lp, mut en] = [vec![0.0; t], vec![0.0; t]];
                let (mut dh, mut dw) = (vec![9.0; t * d], vec![0.0; v * d]);
                let gradient = HeadGradient {
                    dlogprobs: &weights,
                    dhidden: MatMut::new(&mut dh, d),
                    dweight: &mut dw,
                };
                let (hidden, logits) = (Mat::new(&h, d), &mut Vec::new());
                let g = Some(gradient);
                head(
                    &cpu,
                    hidden,
                    &packed,
                    &targets,
                    temperature,
                    logits,
                    &mut lp,
                    &mut en,
                    g,
                );
                let mut all = vec![0.0; t * v];
                cpu.matmul_nt(hidden, &packed, MatMut::new(&mut all, v), false);
                let [mut lp2, mut en2] = [vec![0.0; t], vec![0.0; t]];
                logprobs(
                    &cpu,
                    Mat::new(&all, v),
                    &targets,
                    temperature,
                    &mut lp2,
                    &mut en2,
                );
                assert!((lp2 == lp) && (en2 == en), "whole logits and chunks differ");
                let mut normalizers = vec![LogNormalizer::default(); t];
                let temperatures = vec![temperature; t];
                log_normalizers(&cpu, Mat::new(&all, v), &temperatures, &mut normalizers);
                for (i, (normalizer, &target)) in normalizers.iter().zip(&targets).enumerate() {
                    assert_eq!(normalizer.logprob(all[i * v + target as usize]), lp[i]);
                }
                let now = [lp, en, dh, dw];
                for (which, (got, want)) in now.iter().zip(&want).enumerate() {
                    for (i, (g, w)) in got.iter().zip(want).enumerate() {
                        let bound = 5e-6 * (1.0 + w.abs());
                        assert!((f64::from(*g) - w).abs() < bound, "{which} {i}: {g} {w}");
                    }
                }
                assert!(
                    first.get_or_insert_with(|| now.clone()) == &now,
                    "{isa} x{threads}"
                );
            }
        }
    }

    /// At a temperature without end every token is as likely as another, at the least only the
    /// first is; what is impossible stays so, and nothing beyond the vocabulary counts.
    #[test]
    fn extreme_temperatures_count_the_vocabulary_alone() {
        let never = f32::NEG_INFINITY;
        let row = [1e30, -1e30, never, 0.0, 2.0];
        for isa in Isa::available() {
            let cpu = Cpu::new(1, isa);
            let mut normalizers = [LogNormalizer::default(); 2];
            let logits = [row, row].concat();
            let temperatures = [f32::MAX, 1e-5];
            log_normalizers(&cpu, Mat::new(&logits, 5), &temperatures, &mut normalizers);
            let [hot, cold] = normalizers.map(|n| row.map(|logit| n.logprob(logit)));
            let even = -4.0_f32.ln();
            for (hot, want) in hot.into_iter().zip([even, even, never, even, even]) {
                assert!(
                    hot == want || (hot - want).abs() < 1e-6,
                    "{isa}: {hot} {want}"
                );
            }
            assert_eq!((cold[0], cold[2]), (0.0, never), "{isa}");
            assert!(
                cold[1] < -1e34 && cold[3] < -1e34 && cold[4] < -1e34,
                "{isa}"
            );
            for (temperature, want) in [(f32::MAX, 0.25), (1e-5, 1.0)] {
                let mut p = row;
                softmax(&cpu, MatMut::new(&mut p, 5), temperature);
                assert!((p[0] - want).abs() < 1e-6 && p[2] == 0.0, "{isa}: {p:?}");
            }
        }
    }
}

//! Number words that start with a sense of their value.
//!
//! A model that must learn each of a thousand numbers as an unrelated word spends its first million
//! tokens on that. Here the rows of a number, in the embedding and in the head, start as waves of
//! the number (what it is modulo many periods) and of its logarithm (how large it is), mixed by one
//! fixed Gaussian matrix.

use kernels::{Chance, Purpose, math};
use model::Layout;

/// Periods whose cosine and sine a number is described by: its remainders and its digits.
const PERIODS: [u32; 26] = [
    2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 20, 25, 32, 40, 50, 64, 100, 128, 200, 256, 400, 512,
    1000, 2000,
];
/// Frequencies of the logarithm: 0.7 * 1.8^k for k below this.
const LOG_WAVES: usize = 8;
const FEATURES: usize = 2 * (PERIODS.len() + LOG_WAVES);
/// Root mean square of the rows in the embedding, and in the head.
const EMBEDDING_RMS: f64 = 0.5;
const HEAD_RMS: f64 = 0.05;
/// The stream of the Gaussian matrix, far from those of the tensors, which count from 0.
const STREAM: u64 = u64::MAX;

/// Overwrites the rows of the words `0..=999` (id = value, as in [`tasks::vocabulary`]) in
/// `model.embed_tokens` and `lm_head`; all other weights stay.
///
/// # Panics
/// If the vocabulary has no row for every number.
pub fn fourier_init(layout: &Layout, params: &mut [f32], seed: u64) {
    let numbers = tasks::LARGEST_NUMBER as usize + 1;
    let hidden_size = layout.norm.len();
    assert!(
        layout.embed_tokens.len() >= numbers * hidden_size,
        "a vocabulary without numbers"
    );
    let rows = rows(numbers, hidden_size, seed);
    let square: f64 = rows.iter().map(|x| x * x).sum();
    let rms = (square / rows.len() as f64).sqrt();
    for (start, scale) in [
        (layout.embed_tokens.start, EMBEDDING_RMS),
        (layout.lm_head.start, HEAD_RMS),
    ] {
        for (param, x) in params[start..start + rows.len()].iter_mut().zip(&rows) {
            *param = (x / rms * scale) as f32;
        }
    }
}

/// Features `[numbers, FEATURES]` times a Gaussian `[FEATURES, hidden_size]`.
fn rows(numbers: usize, hidden_size: usize, seed: u64) -> Vec<f64> {
    let chance = Chance::new(seed, Purpose::InitialWeights);
    let gaussian: Vec<f64> = (0..FEATURES * hidden_size)
        .map(|i| chance.normal(STREAM, i as u32))
        .collect();
    let mut rows = vec![0.0; numbers * hidden_size];
    for (value, row) in rows.chunks_exact_mut(hidden_size).enumerate() {
        for (feature, weights) in features(value)
            .iter()
            .zip(gaussian.chunks_exact(hidden_size))
        {
            for (x, weight) in row.iter_mut().zip(weights) {
                *x += feature * weight;
            }
        }
    }
    rows
}

fn features(value: usize) -> [f64; FEATURES] {
    let mut angles = [0.0; FEATURES / 2];
    for (angle, &period) in angles.iter_mut().zip(&PERIODS) {
        *angle = std::f64::consts::TAU * value as f64 / f64::from(period);
    }
    let logarithm = math::ln((value as f64).max(0.5));
    let mut frequency = 0.7;
    for angle in &mut angles[PERIODS.len()..] {
        *angle = frequency * logarithm;
        frequency *= 1.8;
    }
    let mut features = [0.0; FEATURES];
    for (pair, angle) in features.chunks_exact_mut(2).zip(angles) {
        let (sin, cos) = math::sin_cos(angle);
        pair.copy_from_slice(&[cos, sin]);
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_setup;

    #[test]
    fn equal_remainders_give_equal_waves() {
        assert_eq!(FEATURES, 68);
        let period = |p: u32| PERIODS.iter().position(|&q| q == p).expect("a period");
        let wave = |value, p| features(value)[2 * period(p)..][..2].to_vec();
        for (a, b, p) in [(3, 13, 10), (41, 141, 100), (5, 7, 2)] {
            let (x, y) = (wave(a, p), wave(b, p));
            assert!(
                x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-9),
                "{a} {b} mod {p}"
            );
        }
        assert!((wave(3, 10)[0] - (0.6 * std::f64::consts::PI).cos()).abs() < 1e-12);
        let last = features(7)[FEATURES - 1];
        assert!(
            (last - (0.7 * 1.8f64.powi(7) * 7f64.ln()).sin()).abs() < 1e-9,
            "{last}"
        );
    }

    #[test]
    fn only_number_rows_change_and_they_have_the_stated_size() {
        let config = tiny_setup(|_| ()).model_config().expect("config");
        let layout = Layout::new(&config);
        let mut params = vec![9.0; layout.total_len];
        fourier_init(&layout, &mut params, 3);
        let len = 1000 * config.hidden_size;
        let mut expected = vec![false; layout.total_len];
        for (range, rms) in [(&layout.embed_tokens, 0.5), (&layout.lm_head, 0.05)] {
            let rows = &params[range.start..range.start + len];
            let square: f64 = rows.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!(((square / len as f64).sqrt() - rms).abs() < 1e-6 * rms);
            expected[range.start..range.start + len].fill(true);
        }
        assert!(
            params
                .iter()
                .zip(&expected)
                .all(|(&x, &number)| (x != 9.0) == number)
        );
    }
}

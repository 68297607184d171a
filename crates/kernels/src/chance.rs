//! Randomness as a function: of a seed, what it is for, a sequence, and a position (the chance
//! law).
//!
//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). No state is
//! carried, so a resumed or reordered run draws what it would have drawn.

use crate::math;

/// What a draw is for; two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    InitialWeights = 1,
    Problem = 2,
    Trace = 3,
    Sampling = 4,
    Shuffle = 5,
}

/// Draws for one seed and purpose.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    key: [u32; 2],
    purpose: u32,
}

impl Chance {
    pub fn new(seed: u64, purpose: Purpose) -> Chance {
        Chance {
            key: [seed as u32, (seed >> 32) as u32],
            purpose: purpose as u32,
        }
    }

    /// 128 random bits for a position of a sequence.
    pub fn bits(&self, sequence: u64, position: u32) -> [u32; 4] {
        let counter = [
            position,
            sequence as u32,
            (sequence >> 32) as u32,
            self.purpose,
        ];
        philox4x32_10(counter, self.key)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&self, sequence: u64, position: u32) -> f64 {
        let [a, b, ..] = self.bits(sequence, position);
        unit(a, b)
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&self, sequence: u64, position: u32) -> f64 {
        let [a, b, c, d] = self.bits(sequence, position);
        let radius = (-2.0 * math::ln(1.0 - unit(a, b))).sqrt();
        radius * math::sin_cos(std::f64::consts::TAU * unit(c, d)).1
    }

    /// A source of integers below n for one sequence, position after position.
    pub fn draws(self, sequence: u64) -> impl FnMut(u64) -> u64 {
        let mut position = 0;
        move |n| {
            assert!(n > 0, "a draw below zero");
            let [a, b, ..] = self.bits(sequence, position);
            position += 1;
            let wide = u128::from(u64::from(a) | u64::from(b) << 32) * u128::from(n);
            (wide >> 64) as u64
        }
    }
}

fn unit(a: u32, b: u32) -> f64 {
    let bits = (u64::from(a) | u64::from(b) << 32) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

fn philox4x32_10(mut x: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(x[0]) * 0xd251_1f53;
        let b = u64::from(x[2]) * 0xcd9e_8d57;
        let (a_high, b_high) = ((a >> 32) as u32, (b >> 32) as u32);
        x = [
            b_high ^ x[1] ^ key[0],
            b as u32,
            a_high ^ x[3] ^ key[1],
            a as u32,
        ];
        key = [
            key[0].wrapping_add(0x9e37_79b9),
            key[1].wrapping_add(0xbb67_ae85),
        ];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123's `kat_vectors`.
    #[test]
    fn philox_known_answers() {
        let zero = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = philox4x32_10(
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
        );
        assert_eq!(pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn moments_of_the_draws() {
        let chance = Chance::new(7, Purpose::Shuffle);
        let n = 100_000;
        let (mut sum, mut square, mut uniform) = (0.0, 0.0, 0.0);
        for i in 0..n {
            let x = chance.normal(3, i);
            sum += x;
            square += x * x;
            uniform += chance.uniform(4, i);
        }
        let n = f64::from(n);
        assert!((sum / n).abs() < 0.015, "mean {}", sum / n);
        assert!((square / n - 1.0).abs() < 0.02, "variance {}", square / n);
        assert!((uniform / n - 0.5).abs() < 0.005, "uniform {}", uniform / n);
        let mut draw = chance.draws(1);
        let mut seen = [0u32; 6];
        (0..60_000).for_each(|_| seen[draw(6) as usize] += 1);
        assert!(
            seen.iter().all(|&c| (9_500..10_500).contains(&c)),
            "{seen:?}"
        );
    }
}

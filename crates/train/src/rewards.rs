//! Rewards of completions, and what each is worth beside its group.

use tasks::Verdict;

use crate::run_config::AdvantageName;

/// The parts of one completion's reward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reward {
    /// 1 for a right answer.
    pub accuracy: f64,
    /// 1 for a well-formed completion, before its weight.
    pub format: f64,
    /// `accuracy + format_reward * format`.
    pub total: f64,
}

impl Reward {
    pub fn new(verdict: &Verdict, format_reward: f64) -> Reward {
        let accuracy = f64::from(u8::from(verdict.accurate));
        let format = f64::from(u8::from(verdict.well_formed));
        Reward {
            accuracy,
            format,
            total: accuracy + format_reward * format,
        }
    }
}

/// Mean, and standard deviation over n - 1 as PyTorch's and TRL's.
pub fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let square: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, (square / (n - 1.0).max(1.0)).sqrt())
}

/// What TRL adds to a standard deviation before dividing by it.
const STD_EPS: f64 = 1e-4;

/// The advantage of each completion of one group; `None` if all rewards are equal, so that every
/// advantage is exactly zero.
pub fn advantages(rewards: &[f64], name: AdvantageName) -> Option<Vec<f32>> {
    if rewards.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let (mean, std) = mean_and_std(rewards);
    let divisor = match name {
        AdvantageName::Mean => 1.0,
        AdvantageName::Std => std + STD_EPS,
    };
    Some(
        rewards
            .iter()
            .map(|reward| ((reward - mean) / divisor) as f32)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        let verdict = |accurate, well_formed| Verdict {
            accurate,
            well_formed,
            reason: "",
        };
        for (accurate, well_formed, total) in [
            (true, true, 1.25),
            (true, false, 1.0),
            (false, true, 0.25),
            (false, false, 0.0),
        ] {
            assert_eq!(
                Reward::new(&verdict(accurate, well_formed), 0.25).total,
                total
            );
        }
    }

    #[test]
    fn advantages_by_hand() {
        let rewards = [1.0, 0.0, 0.0, 1.0, 0.0];
        let mean = advantages(&rewards, AdvantageName::Mean).expect("a group with a difference");
        assert_eq!(mean, [0.6, -0.4, -0.4, 0.6, -0.4]);
        // Variance over n - 1: (2 * 0.36 + 3 * 0.16) / 4 = 0.3.
        let std = advantages(&rewards, AdvantageName::Std).expect("a group with a difference");
        assert!((f64::from(std[0]) - 0.6 / (0.3f64.sqrt() + 1e-4)).abs() < 1e-6);
        // The mean of ten times 0.1 is not 0.1 to the bit; such a group still has no advantage.
        assert_eq!(advantages(&[0.1; 10], AdvantageName::Mean), None);
    }
}

//! The learning rate of a step.

use kernels::math;
use serde::{Deserialize, Serialize};

/// How the rate goes from its peak to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Half a cosine wave.
    Cosine,
    Linear,
    /// Stays at its peak, whatever the final fraction.
    Constant,
}

/// A rise over `warmup_steps`, then a way down to `final_fraction` of the peak at the last step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub shape: Shape,
    pub peak: f64,
    pub warmup_steps: u64,
    pub final_fraction: f64,
    pub steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0. The first step of a warm-up is not zero, and the
    /// last step has the final rate.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let last = self
            .steps
            .saturating_sub(1)
            .saturating_sub(self.warmup_steps);
        let done = (step - self.warmup_steps).min(last) as f64 / last.max(1) as f64;
        let share = match self.shape {
            Shape::Constant => return self.peak,
            Shape::Linear => 1.0 - done,
            Shape::Cosine => 0.5 * (1.0 + math::sin_cos(std::f64::consts::PI * done).1),
        };
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_to_its_end() {
        let schedule = |shape| Schedule {
            shape,
            peak: 2.0,
            warmup_steps: 4,
            final_fraction: 0.25,
            steps: 15,
        };
        for shape in [Shape::Cosine, Shape::Linear, Shape::Constant] {
            let rate = |step| schedule(shape).learning_rate(step);
            assert_eq!([0, 1, 2, 3].map(rate), [0.5, 1.0, 1.5, 2.0]);
            assert_eq!(rate(4), 2.0);
        }
        let cosine = |step| schedule(Shape::Cosine).learning_rate(step);
        assert!((cosine(9) - 1.25).abs() < 1e-12, "{}", cosine(9));
        assert!((cosine(14) - 0.5).abs() < 1e-12, "{}", cosine(14));
        // cos(pi / 5) = (1 + sqrt 5) / 4.
        let at_a_fifth = 0.5 + 1.5 * 0.5 * (1.0 + (1.0 + 5f64.sqrt()) / 4.0);
        assert!((cosine(6) - at_a_fifth).abs() < 1e-12);
        assert_eq!(schedule(Shape::Linear).learning_rate(14), 0.5);
        assert_eq!(schedule(Shape::Constant).learning_rate(14), 2.0);
    }

    #[test]
    fn a_run_of_one_step_has_the_peak() {
        let schedule = Schedule {
            shape: Shape::Cosine,
            peak: 1.0,
            warmup_steps: 0,
            final_fraction: 0.0,
            steps: 1,
        };
        assert_eq!(schedule.learning_rate(0), 1.0);
    }
}

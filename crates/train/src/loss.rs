//! The clipped policy loss of GRPO with the k3 divergence, token by token.
//!
//! ```text
//! ratio = exp(logp - old_logp)
//! k3    = exp(ref_logp - logp) - (ref_logp - logp) - 1
//! loss  = -min(ratio A, clip(ratio, 1 - low, 1 + high) A) + kl_coef k3
//! ```
//!
//! DeepSeekMath (arXiv 2402.03300) section 4.1; separate bounds as in DAPO (arXiv 2503.14476).

use kernels::math;

use crate::pairwise::pairwise_sum;

/// The constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    pub clip_eps_low: f64,
    pub clip_eps_high: f64,
    pub kl_coef: f64,
}

/// What the loss is taken of: one entry for each completion token of a step.
#[derive(Clone, Copy, Debug)]
pub struct TokenInputs<'a> {
    pub logprobs: &'a [f32],
    /// Under the weights that sampled the tokens.
    pub old_logprobs: &'a [f32],
    /// Under the frozen reference; `None` leaves the divergence out.
    pub ref_logprobs: Option<&'a [f32]>,
    pub advantages: &'a [f32],
    /// What each token counts; normally they sum to 1.
    pub weights: &'a [f64],
}

/// The loss of a step and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLoss {
    pub loss: f64,
    /// d loss / d logprob of each token.
    pub dlogprobs: Vec<f32>,
    /// Means over the tokens, each counting the same.
    pub kl: f64,
    pub clipped_low: f64,
    pub clipped_high: f64,
}

struct Token {
    loss: f64,
    dlogprob: f64,
    kl: f64,
    low: bool,
    high: bool,
}

/// The weighted loss of all tokens and its gradient; see the module.
///
/// # Panics
/// If the lists differ in length.
pub fn token_loss_and_gradient(inputs: &TokenInputs, clip: &Clip) -> TokenLoss {
    let tokens = inputs.logprobs.len();
    let lengths = [
        inputs.old_logprobs.len(),
        inputs.advantages.len(),
        inputs.weights.len(),
    ];
    assert_eq!(lengths, [tokens; 3], "one entry for each token");
    assert!(
        inputs.ref_logprobs.is_none_or(|list| list.len() == tokens),
        "one entry for each token"
    );
    let results: Vec<Token> = (0..tokens).map(|i| token(inputs, clip, i)).collect();
    let mean = |value: &dyn Fn(&Token) -> f64| {
        pairwise_sum(results.iter().map(value)) / tokens.max(1) as f64
    };
    let weighted = results.iter().zip(inputs.weights);
    TokenLoss {
        loss: pairwise_sum(weighted.clone().map(|(token, weight)| token.loss * weight)),
        dlogprobs: weighted
            .map(|(token, weight)| (token.dlogprob * weight) as f32)
            .collect(),
        kl: mean(&|token| token.kl),
        clipped_low: mean(&|token| f64::from(u8::from(token.low))),
        clipped_high: mean(&|token| f64::from(u8::from(token.high))),
    }
}

fn token(inputs: &TokenInputs, clip: &Clip, i: usize) -> Token {
    let logprob = f64::from(inputs.logprobs[i]);
    let advantage = f64::from(inputs.advantages[i]);
    let ratio = math::exp(logprob - f64::from(inputs.old_logprobs[i]));
    let low = ratio < 1.0 - clip.clip_eps_low && advantage < 0.0;
    let high = ratio > 1.0 + clip.clip_eps_high && advantage > 0.0;
    let bounded = ratio.clamp(1.0 - clip.clip_eps_low, 1.0 + clip.clip_eps_high);
    let gain = (ratio * advantage).min(bounded * advantage);
    // d ratio / d logprob is the ratio itself; beyond the bounds the gain is constant.
    let dgain = if low || high { 0.0 } else { ratio * advantage };
    let (kl, dkl) = inputs.ref_logprobs.map_or((0.0, 0.0), |reference| {
        let delta = f64::from(reference[i]) - logprob;
        let e = math::exp(delta);
        (e - delta - 1.0, 1.0 - e)
    });
    Token {
        loss: clip.kl_coef * kl - gain,
        dlogprob: clip.kl_coef * dkl - dgain,
        kl,
        low,
        high,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/grpo/grpo.json");

    /// A matrix of the golden file, its masked entries left out.
    fn masked(case: &Value, name: &str) -> Vec<f64> {
        let mut out = Vec::new();
        for (row, mask) in rows(&case[name]).iter().zip(rows(&case["mask"])) {
            let kept = row.iter().zip(mask).filter(|(_, mask)| *mask == 1.0);
            out.extend(kept.map(|(x, _)| *x));
        }
        out
    }

    fn rows(value: &Value) -> Vec<Vec<f64>> {
        let row = |row: &Value| row.as_array().expect("row").iter().map(number).collect();
        value.as_array().expect("rows").iter().map(row).collect()
    }

    fn number(value: &Value) -> f64 {
        value.as_f64().expect("number")
    }

    fn f32s(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&x| x as f32).collect()
    }

    #[test]
    fn agrees_with_pytorch() {
        let text = std::fs::read_to_string(GOLDEN).expect("golden/grpo/grpo.json");
        let golden: Value = serde_json::from_str(&text).expect("JSON");
        let cases = golden["cases"].as_object().expect("cases");
        assert_eq!(cases.len(), 4);
        for (name, case) in cases {
            let [logprobs, old, reference] =
                ["logps", "old_logps", "ref_logps"].map(|key| f32s(&masked(case, key)));
            let of_row = case["advantages"].as_array().expect("advantages");
            let advantages: Vec<f32> = rows(&case["mask"])
                .iter()
                .zip(of_row)
                .flat_map(|(mask, a)| {
                    let tokens = mask.iter().filter(|&&m| m == 1.0).count();
                    vec![number(a) as f32; tokens]
                })
                .collect();
            let weights = vec![1.0 / logprobs.len() as f64; logprobs.len()];
            let inputs = TokenInputs {
                logprobs: &logprobs,
                old_logprobs: &old,
                ref_logprobs: Some(&reference),
                advantages: &advantages,
                weights: &weights,
            };
            let clip = Clip {
                clip_eps_low: number(&case["clip_low"]),
                clip_eps_high: number(&case["clip_high"]),
                kl_coef: number(&case["kl_coef"]),
            };
            let result = token_loss_and_gradient(&inputs, &clip);
            // The golden inputs are f64; rounded to f32 they move results by about 1e-7.
            let near = |a: f64, b: f64, what: &str| {
                assert!((a - b).abs() < 1e-6, "{name} {what}: {a} {b}");
            };
            near(result.loss, number(&case["loss"]), "loss");
            near(result.kl, number(&case["kl"]), "kl");
            near(
                result.clipped_low,
                number(&case["clip_ratio/low_mean"]),
                "low",
            );
            near(
                result.clipped_high,
                number(&case["clip_ratio/high_mean"]),
                "high",
            );
            let expected = masked(case, "dlogp");
            assert_eq!(result.dlogprobs.len(), expected.len());
            for (a, b) in result.dlogprobs.iter().zip(expected) {
                near(f64::from(*a), b, "dlogp");
            }
        }
    }

    #[test]
    fn on_policy_the_gradient_is_the_advantage_to_the_bit() {
        let old = [-0.3f32, -7.25, -1e-6];
        let advantages = [0.625f32, -0.375, 0.1];
        let inputs = TokenInputs {
            logprobs: &old,
            old_logprobs: &old,
            ref_logprobs: None,
            advantages: &advantages,
            weights: &[0.25; 3],
        };
        let clip = Clip {
            clip_eps_low: 0.2,
            clip_eps_high: 0.28,
            kl_coef: 0.0,
        };
        let result = token_loss_and_gradient(&inputs, &clip);
        let expected: Vec<f32> = advantages.iter().map(|a| -0.25 * a).collect();
        assert_eq!(result.dlogprobs, expected);
        assert_eq!(
            (result.kl, result.clipped_low, result.clipped_high),
            (0.0, 0.0, 0.0)
        );
    }

    #[test]
    fn gradient_by_finite_differences() {
        let clip = Clip {
            clip_eps_low: 0.2,
            clip_eps_high: 0.28,
            kl_coef: 0.3,
        };
        let chance = kernels::Chance::new(11, kernels::Purpose::Shuffle);
        println!("seed 11");
        let mut checked = 0;
        for i in 0..500 {
            let value = |position, scale: f64| scale * chance.normal(i, position);
            let (logprob, old, reference) = (
                -1.0 + value(0, 0.3),
                -1.0 + value(1, 0.1),
                -1.0 + value(2, 0.3),
            );
            let advantages = [value(3, 1.0) as f32];
            let at = |logprob: f32| {
                let inputs = TokenInputs {
                    logprobs: &[logprob],
                    old_logprobs: &[old as f32],
                    ref_logprobs: Some(&[reference as f32]),
                    advantages: &advantages,
                    weights: &[1.0],
                };
                token_loss_and_gradient(&inputs, &clip)
            };
            let ratio = (logprob - old).exp();
            if (ratio - 0.8).abs() < 0.01 || (ratio - 1.28).abs() < 0.01 {
                continue; // The loss has a kink here.
            }
            let (up, down) = ((logprob + 1e-3) as f32, (logprob - 1e-3) as f32);
            let slope = (at(up).loss - at(down).loss) / (f64::from(up) - f64::from(down));
            let gradient = f64::from(at(logprob as f32).dlogprobs[0]);
            assert!(
                (slope - gradient).abs() < 1e-4 * (1.0 + slope.abs()),
                "{i}: {slope} {gradient}"
            );
            checked += 1;
        }
        assert!(checked > 400, "{checked}");
    }
}

//! AdamW over the flat buffer of weights (Loshchilov and Hutter, arXiv 1711.05101).

use std::ops::Range;

use kernels::{AdamW, Backend};
use model::Layout;

/// The rates that stay the same for all steps of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Of matrices only.
    pub weight_decay: f64,
    pub max_grad_norm: f64,
}

/// The moments of every trainable weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// First moments, `[trainable_len]`; PyTorch's name.
    pub exp_avg: Vec<f32>,
    /// Second moments, `[trainable_len]`.
    pub exp_avg_sq: Vec<f32>,
    /// Updates made so far.
    pub updates: u64,
    /// Neighbouring tensors that are treated alike, and whether their weights decay.
    runs: Vec<(Range<usize>, bool)>,
}

impl Optimizer {
    pub fn new(layout: &Layout) -> Optimizer {
        let len = layout.trainable_len;
        Optimizer::restored(layout, vec![0.0; len], vec![0.0; len], 0)
    }

    /// # Panics
    /// If the moments are not `layout.trainable_len` long.
    pub fn restored(
        layout: &Layout,
        exp_avg: Vec<f32>,
        exp_avg_sq: Vec<f32>,
        updates: u64,
    ) -> Optimizer {
        let len = layout.trainable_len;
        assert_eq!(
            (exp_avg.len(), exp_avg_sq.len()),
            (len, len),
            "moments of another model"
        );
        Optimizer {
            exp_avg,
            exp_avg_sq,
            updates,
            runs: runs(layout),
        }
    }

    /// Leaves multi-token prediction as it is, without decay too: for training without its loss.
    pub fn leave_out_mtp(&mut self, layout: &Layout) {
        let Some(mtp) = &layout.mtp else { return };
        // It lies behind everything else that is trained.
        let end = mtp.enorm.start;
        self.runs.retain(|(run, _)| run.start < end);
        for (run, _) in &mut self.runs {
            run.end = run.end.min(end);
        }
    }

    /// One update of the trainable weights, the gradient scaled so that its norm is at most
    /// `max_grad_norm`. `norm` is the gradient's own.
    pub fn update(
        &mut self,
        backend: &dyn Backend,
        rates: &Hyperparameters,
        learning_rate: f64,
        norm: f64,
        params: &mut [f32],
        grads: &[f32],
    ) {
        self.updates += 1;
        for (run, decays) in &self.runs {
            let adamw = AdamW {
                beta1: rates.beta1,
                beta2: rates.beta2,
                eps: rates.eps,
                weight_decay: if *decays { rates.weight_decay } else { 0.0 },
                lr: learning_rate,
                step: self.updates,
                grad_scale: kernels::clip_factor(norm, rates.max_grad_norm),
            };
            backend.adamw(
                &adamw,
                &mut params[run.clone()],
                &grads[run.clone()],
                &mut self.exp_avg[run.clone()],
                &mut self.exp_avg_sq[run.clone()],
            );
        }
    }
}

/// Weight decay pulls matrices towards zero; a norm's scale has no reason to be there.
fn runs(layout: &Layout) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for tensor in layout.tensors.iter().filter(|tensor| tensor.trainable) {
        let decays = tensor.shape.len() >= 2;
        match runs.last_mut() {
            // The padding between two tensors is zero and has no gradient, so it stays zero.
            Some((run, same)) if *same == decays => run.end = tensor.range().end,
            _ => runs.push((tensor.range(), decays)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backend, tiny_setup};

    const RATES: Hyperparameters = Hyperparameters {
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-8,
        weight_decay: 0.1,
        max_grad_norm: 1.0,
    };

    #[test]
    fn every_weight_is_in_one_run_and_vectors_do_not_decay() {
        let layout = Layout::new(&tiny_setup(|_| ()).model_config().expect("config"));
        let mut decays = vec![None; layout.trainable_len];
        for (run, decay) in runs(&layout) {
            for place in &mut decays[run] {
                assert_eq!(place.replace(decay), None, "two runs overlap");
            }
        }
        for tensor in layout.tensors.iter().filter(|tensor| tensor.trainable) {
            let expected = Some(!tensor.name.contains("norm"));
            assert!(
                decays[tensor.range()].iter().all(|&d| d == expected),
                "{}",
                tensor.name
            );
        }
    }

    /// The first update of Adam is the learning rate times the gradient's sign, whatever its size.
    #[test]
    fn the_first_update_is_a_step_along_the_sign_after_decay() {
        let layout = Layout::new(&tiny_setup(|_| ()).model_config().expect("config"));
        let mut optimizer = Optimizer::new(&layout);
        let backend = backend();
        let grads: Vec<f32> = (0..layout.trainable_len)
            .map(|i| [0.3, -0.7, 2.0][i % 3])
            .collect();
        let norm = backend.sum_of_squares(&grads).sqrt();
        let mut params = vec![1.0; layout.total_len];
        optimizer.update(&backend, &RATES, 0.01, norm, &mut params, &grads);
        for tensor in layout.tensors.iter().filter(|tensor| tensor.trainable) {
            let decay = if tensor.shape.len() >= 2 { 0.001 } else { 0.0 };
            for place in tensor.range() {
                let expected = 1.0 - decay - 0.01 * grads[place].signum();
                assert!(
                    (params[place] - expected).abs() < 1e-4,
                    "{} {}",
                    tensor.name,
                    params[place]
                );
            }
        }
        assert_eq!(
            params[layout.trainable_len..],
            vec![1.0; params.len() - layout.trainable_len]
        );
        // Clipped to a norm of 1: the second moment is (1 - beta2) (g / norm)^2.
        let expected = 0.02 * (0.3 / norm).powi(2);
        assert!((f64::from(optimizer.exp_avg_sq[0]) / expected - 1.0).abs() < 1e-4);
    }
}

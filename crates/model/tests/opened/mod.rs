//! Checkpoints of every kind, opened and run.

use kernels::{Cpu, Isa, Precision};
use model::{Batch, Checkpoint, KeptWeights, Loading, Numerics, Opening};
use std::ops::ControlFlow;
use std::path::Path;

/// The logits of every row of a batch.
pub fn logits_of(path: &Path, precision: Precision, loading: Loading, batch: &Batch) -> Vec<f32> {
    let opening = Opening {
        numerics: Numerics::new(precision),
        weights: KeptWeights::AsStored,
        loading,
        mtp: false,
    };
    let cpu = Cpu::new(2, Isa::best());
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|error| panic!("{error}"));
    let (mut last, mut total) = (0, 0);
    let mut progress = |done, all| (last, total) = (done, all);
    let opened = checkpoint.model(opening, &cpu, &mut progress).unwrap();
    assert!(opened.non_finite.is_empty());
    assert_eq!(last, total, "all bytes were read");
    super::reference::logits(&opened.model, &cpu, batch)
}

/// A report of progress that only grows, to the end.
#[derive(Default)]
pub struct Watched {
    done: u64,
    total: u64,
}

impl Watched {
    pub fn see(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        assert!(done >= self.done && done <= total, "{done} of {total}");
        (self.done, self.total) = (done, total);
        ControlFlow::Continue(())
    }

    pub fn assert_whole(&self) {
        assert!(
            self.total > 0 && self.done == self.total,
            "{} of {}",
            self.done,
            self.total
        );
    }
}

/// The middle of the rows' errors, each relative to its spread: where rounding flips the choice of
/// an expert a row is another one altogether.
pub fn median_error(got: &[f32], want: &[f32], vocab: usize) -> f64 {
    let rows = got.chunks_exact(vocab).zip(want.chunks_exact(vocab));
    let mut errors: Vec<f64> = rows
        .map(|(a, b)| super::reference::relative_to_spread(a, b))
        .collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

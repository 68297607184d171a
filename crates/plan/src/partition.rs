//! Which layers stand on which stage of a pipeline.

use crate::job::Job;
use crate::layer_time::{LayerTime, head_time, layer_time, mtp_time};
use crate::layout::Schedule;
use crate::quantity::Seconds;
use crate::shape::Layer;

/// What a stage may hold one of: never divided between stages.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    pub kind: UnitKind<'a>,
    pub time: LayerTime,
    /// Seconds of all passes, exchanges included: what the stages are balanced by.
    pub weight: f64,
}

#[derive(Clone, Copy, Debug)]
pub enum UnitKind<'a> {
    /// Looked up, not multiplied.
    Embedding,
    Layer(&'a Layer),
    /// A module of multi-token prediction: its layer, projection and share of the head.
    Mtp(&'a Layer),
    Head,
}

/// Everything that a micro-batch passes, in order.
pub fn units<'a>(job: &Job<'a>) -> Vec<Unit<'a>> {
    let mut units = vec![Unit::new(job, UnitKind::Embedding, LayerTime::default())];
    for blocks in &job.shape.blocks {
        let unit = Unit::new(
            job,
            UnitKind::Layer(&blocks.layer),
            layer_time(job, &blocks.layer),
        );
        units.extend((0..blocks.count).map(|_| unit));
    }
    let head = head_time(job);
    if job.with_mtp && job.shape.mtp_modules > 0 {
        let layer = job.shape.last_layer();
        let mut time = mtp_time(job);
        time.add(&head, 1.0);
        let unit = Unit::new(job, UnitKind::Mtp(layer), time);
        units.extend((0..job.shape.mtp_modules).map(|_| unit));
    }
    units.push(Unit::new(job, UnitKind::Head, head));
    units
}

impl<'a> Unit<'a> {
    fn new(job: &Job, kind: UnitKind<'a>, time: LayerTime) -> Unit<'a> {
        let passes = [&time.forward, &time.backward, &time.weights];
        let seconds: Seconds = passes
            .iter()
            .map(|work| work.compute(job) + work.experts)
            .sum();
        Unit {
            kind,
            time,
            weight: seconds.0,
        }
    }
}

/// The units cut into `parts` runs whose heaviest is as light as can be: where each run ends.
pub fn cut(weights: &[f64], parts: usize) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let heaviest = weights
        .iter()
        .fold(0.0, |most: f64, &weight| most.max(weight));
    let (mut low, mut high) = (heaviest.max(total / parts as f64), total);
    // Fifty halvings leave less than a rounding between the bounds.
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        if runs_needed(weights, middle) <= parts {
            high = middle;
        } else {
            low = middle;
        }
    }
    ends(weights, high, parts)
}

fn runs_needed(weights: &[f64], most: f64) -> usize {
    let (mut runs, mut sum) = (1, 0.0);
    for &weight in weights {
        if sum + weight > most {
            runs += 1;
            sum = 0.0;
        }
        sum += weight;
    }
    runs
}

/// Greedy runs of at most `most`, with at least one unit left for each run to come.
fn ends(weights: &[f64], most: f64, parts: usize) -> Vec<usize> {
    let mut ends = Vec::with_capacity(parts);
    let mut sum = 0.0;
    for (at, &weight) in weights.iter().enumerate() {
        let runs_after = parts - ends.len() - 1;
        let full = sum + weight > most * (1.0 + 1e-12);
        if runs_after > 0 && at > 0 && (full || weights.len() - at <= runs_after) {
            ends.push(at);
            sum = 0.0;
        }
        sum += weight;
    }
    ends.resize(parts, weights.len());
    ends
}

/// For each stage, the units it holds.
pub fn stages(job: &Job, units: &[Unit]) -> Vec<Vec<usize>> {
    let (pp, chunks) = (job.layout.pp as usize, job.layout.chunks as usize);
    let weights: Vec<f64> = units.iter().map(|unit| unit.weight).collect();
    let mut stages = vec![Vec::new(); pp];
    let mut start = 0;
    for (chunk, end) in cut(&weights, pp * chunks).into_iter().enumerate() {
        stages[chunk % pp].extend(start..end);
        start = end;
    }
    if job.layout.schedule == Schedule::DualPipe {
        // A chip holds a stage and its mirror image, and gives each half of the micro-batches.
        let mirrored = stages.clone();
        for (stage, mirror) in stages.iter_mut().zip(mirrored.iter().rev()) {
            stage.extend(mirror);
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::cut;

    /// All ways to cut, tried.
    fn lightest(weights: &[f64], parts: usize) -> f64 {
        if parts == 1 {
            return weights.iter().sum();
        }
        let mut best = f64::INFINITY;
        for end in 1..=weights.len() - (parts - 1) {
            let first: f64 = weights[..end].iter().sum();
            best = best.min(first.max(lightest(&weights[end..], parts - 1)));
        }
        best
    }

    #[test]
    fn a_cut_is_the_best_of_all() {
        let mut state = 7_u64;
        for case in 0..300 {
            let mut draw = |n: u64| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 33) % n
            };
            let parts = 1 + draw(4) as usize;
            let count = parts + draw(7) as usize;
            let weights: Vec<f64> = (0..count).map(|_| 1.0 + draw(9) as f64).collect();
            let (mut start, mut heaviest) = (0, 0.0_f64);
            let ends = cut(&weights, parts);
            assert_eq!(ends.len(), parts);
            assert_eq!(ends.last(), Some(&count));
            for end in ends {
                assert!(
                    end > start,
                    "case {case}: {weights:?} in {parts}: an empty run"
                );
                heaviest = heaviest.max(weights[start..end].iter().sum());
                start = end;
            }
            let best = lightest(&weights, parts);
            assert!(
                (heaviest - best).abs() < 1e-9,
                "case {case}: {weights:?} in {parts}: {heaviest}, not {best}"
            );
        }
    }
}

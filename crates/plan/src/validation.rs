//! Predictions of published steps, each without the row that it is compared with.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::Serialize;

use crate::efficiency::Efficiencies;
use crate::fit::{Told, residuals};
use crate::interval::Interval;
use crate::measured::{Measured, all};

/// Measured by predicted time of a step, where nineteen in twenty published steps lie between the
/// bounds when they are predicted without themselves (a test compares).
pub const STEP_SPREAD: Interval<f64> = Interval {
    low: 0.86,
    mid: 1.0,
    high: 1.16,
};

/// The same where nobody says what software runs, so that the step of the default is compared with
/// those of all softwares (a test compares).
pub const UNKNOWN_SOFTWARE_SPREAD: Interval<f64> = Interval {
    low: 0.81,
    mid: 1.0,
    high: 1.49,
};

/// A published step and what was said of it.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    pub id: String,
    pub model: String,
    pub chip: String,
    pub chips: u64,
    pub precision: &'static str,
    pub layout: String,
    pub software: String,
    pub source: String,
    pub note: String,
    pub measured_seconds: f64,
    /// From efficiencies fitted to all other rows, and the slowdown of its software in these.
    pub without_row: f64,
    /// From efficiencies fitted to all rows of other groups.
    pub without_group: f64,
    pub memory_bytes: f64,
}

impl Compared {
    /// Predicted by measured, less 1.
    pub fn error(&self) -> f64 {
        self.without_row / self.measured_seconds - 1.0
    }

    pub fn error_without_group(&self) -> f64 {
        self.without_group / self.measured_seconds - 1.0
    }
}

/// All published steps, each predicted twice, on so many threads. `progress` is told how many are
/// done.
///
/// # Panics
/// If a row of the shipped data cannot be predicted.
pub fn compare(threads: usize, progress: impl Fn(usize) + Sync) -> Vec<Compared> {
    let rows: Vec<&Measured> = all().iter().collect();
    let shipped = Efficiencies::shipped();
    let done = AtomicUsize::new(0);
    let one = |row: &&Measured| {
        let own = |other: &&&Measured| other.row.id == row.row.id;
        let group = |other: &&&Measured| other.row.group == row.row.group;
        let without_row = predict_without(&rows, row, own);
        let without_group = predict_without(&rows, row, group);
        progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        Compared::new(row, without_row, without_group, &shipped)
    };
    let share = rows.len().div_ceil(threads.max(1));
    thread::scope(|scope| {
        let parts = rows.chunks(share);
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(|| part.iter().map(one).collect::<Vec<_>>()))
            .collect();
        let joined = parts.into_iter().map(|part| part.join());
        joined
            .flat_map(|part| part.expect("rows are predicted"))
            .collect()
    })
}

/// Seconds of `row` from a fit that never saw the rows that are `left_out`.
fn predict_without(
    rows: &[&Measured],
    row: &Measured,
    left_out: impl Fn(&&&Measured) -> bool,
) -> f64 {
    let others: Vec<&Measured> = rows.iter().filter(|r| !left_out(r)).copied().collect();
    let told = Told::by(&others);
    let own = residuals(&[row], &told.efficiencies)[0];
    row.row.step_seconds * own.exp() * told.slowdown(&row.row.software)
}

impl Compared {
    fn new(
        measured: &Measured,
        without_row: f64,
        without_group: f64,
        shipped: &Efficiencies,
    ) -> Compared {
        let row = &measured.row;
        let step = measured.predict(shipped).expect("a row that was predicted");
        Compared {
            id: row.id.clone(),
            model: row.model.clone(),
            chip: row.chip.clone(),
            chips: row.chips,
            precision: row.precision.name(),
            layout: measured.layout.to_string(),
            software: row.software.clone(),
            source: row.source.clone(),
            note: row.note.clone(),
            measured_seconds: row.step_seconds,
            without_row,
            without_group,
            memory_bytes: step.memory.total().0,
        }
    }
}

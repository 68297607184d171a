//! Finds the efficiencies that make predictions of published steps least wrong.
//!
//! Levenberg-Marquardt on the logarithms of predicted by measured, each weighted so that a few
//! rows that no efficiency explains do not bend all the others (Huber's weights).

use std::collections::BTreeMap;

use crate::efficiency::{Efficiencies, Efficiency, Entry, entries};
use crate::measured::Measured;

/// Errors beyond this (in logarithms) count by their size, not its square.
const USUAL: f64 = 0.05;

/// Fitted efficiencies among those shipped.
pub fn fitted() -> Vec<&'static Entry> {
    entries().iter().filter(|entry| entry.fitted).collect()
}

/// ln(predicted / measured) of each row, whose software's slowdown is left out.
///
/// # Panics
/// If a row cannot be predicted: the rows ship with the program, and a test predicts all.
pub fn residuals(rows: &[&Measured], efficiencies: &Efficiencies) -> Vec<f64> {
    rows.iter()
        .map(|row| {
            let step = row.predict(efficiencies);
            let step = step.unwrap_or_else(|error| panic!("{}: {error}", row.row.id));
            (step.seconds.0 / row.software.slowdown / row.row.step_seconds).ln()
        })
        .collect()
}

/// What a software's steps take of what the formulas say, in logarithms: the mean over its rows,
/// drawn towards none as if there were one more row that shows none.
pub fn slowdowns(rows: &[&Measured], errors: &[f64]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (row, error) in rows.iter().zip(errors) {
        let sum = sums.entry(row.row.software.clone()).or_default();
        sum.0 -= error;
        sum.1 += 1.0;
    }
    let drawn = |(name, (sum, count))| (name, sum / (count + 1.0));
    sums.into_iter().map(drawn).collect()
}

/// What some steps tell of others: efficiencies, and softwares' slowdowns (in logarithms).
pub struct Told {
    pub efficiencies: Efficiencies,
    slowdowns: BTreeMap<String, f64>,
}

/// Rounds of a fit that suffice from the shipped efficiencies.
const ROUNDS: usize = 12;

impl Told {
    /// From these efficiencies, what `rows` tell of their softwares.
    pub fn with(rows: &[&Measured], efficiencies: Efficiencies) -> Told {
        let slowdowns = slowdowns(rows, &residuals(rows, &efficiencies));
        Told {
            efficiencies,
            slowdowns,
        }
    }

    /// From a fit to `rows` alone.
    pub fn by(rows: &[&Measured]) -> Told {
        Told::with(rows, fit(rows, &Efficiencies::shipped(), ROUNDS))
    }

    /// How many times what the formulas say a software's steps take; 1 where nothing is told.
    pub fn slowdown(&self, software: &str) -> f64 {
        self.slowdowns.get(software).copied().unwrap_or(0.0).exp()
    }
}

/// Residuals with each software's own share taken out.
pub fn centred(rows: &[&Measured], errors: &[f64]) -> Vec<f64> {
    let slowdowns = slowdowns(rows, errors);
    let pairs = rows.iter().zip(errors);
    pairs
        .map(|(row, error)| error + slowdowns[&row.row.software])
        .collect()
}

/// From `start`, the efficiencies that fit `rows` best; deterministic.
pub fn fit(rows: &[&Measured], start: &Efficiencies, rounds: usize) -> Efficiencies {
    let parameters = fitted();
    let mut best = start.clone();
    let mut damping = 1e-2;
    let mut errors = centred(rows, &residuals(rows, &best));
    for _ in 0..rounds {
        let jacobian = jacobian(rows, &parameters, &best, &errors);
        let step = solve(&normal(&jacobian, &errors, damping));
        let mut tried = best.clone();
        for (entry, change) in parameters.iter().zip(&step) {
            let [low, high] = entry.range;
            // In logarithms, no more than a fifth at once.
            let value = tried.get(entry.name) * change.clamp(-0.2, 0.2).exp();
            tried = tried.with(entry.name, value.clamp(low, high));
        }
        let now = centred(rows, &residuals(rows, &tried));
        if cost(&now) < cost(&errors) {
            (best, errors) = (tried, now);
            damping = (damping / 3.0_f64).max(1e-6);
        } else {
            damping *= 5.0;
        }
    }
    best
}

/// Huber's loss, summed.
fn cost(errors: &[f64]) -> f64 {
    let loss = |error: &f64| match error.abs() {
        small if small <= USUAL => small * small / 2.0,
        large => USUAL * (large - USUAL / 2.0),
    };
    errors.iter().map(loss).sum()
}

/// d residual / d ln(efficiency), a row for each residual.
fn jacobian(
    rows: &[&Measured],
    parameters: &[&Entry],
    at: &Efficiencies,
    errors: &[f64],
) -> Vec<Vec<f64>> {
    const NUDGE: f64 = 1e-3;
    let mut jacobian = vec![Vec::with_capacity(parameters.len()); rows.len()];
    for entry in parameters {
        let name: Efficiency = entry.name;
        let nudged = at.with(name, at.get(name) * NUDGE.exp());
        let moved = centred(rows, &residuals(rows, &nudged));
        for ((row, moved), error) in jacobian.iter_mut().zip(moved).zip(errors) {
            row.push((moved - error) / NUDGE);
        }
    }
    jacobian
}

/// The damped normal equations, with the right side as the last column.
fn normal(jacobian: &[Vec<f64>], errors: &[f64], damping: f64) -> Vec<Vec<f64>> {
    let size = jacobian.first().map_or(0, Vec::len);
    let mut system = vec![vec![0.0; size + 1]; size];
    for (row, &error) in jacobian.iter().zip(errors) {
        let weight = USUAL / error.abs().max(USUAL);
        for i in 0..size {
            for j in 0..size {
                system[i][j] += weight * row[i] * row[j];
            }
            system[i][size] -= weight * row[i] * error;
        }
    }
    for (i, row) in system.iter_mut().enumerate() {
        // An efficiency that no row shows stays where it is.
        row[i] = row[i] * (1.0 + damping) + 1e-9;
    }
    system
}

/// Gaussian elimination with pivots; the systems are small.
fn solve(system: &[Vec<f64>]) -> Vec<f64> {
    let mut system = system.to_vec();
    let size = system.len();
    for column in 0..size {
        let pivot = (column..size)
            .max_by(|&a, &b| system[a][column].abs().total_cmp(&system[b][column].abs()))
            .expect("a column has rows");
        system.swap(column, pivot);
        for row in column + 1..size {
            let factor = system[row][column] / system[column][column];
            let (above, below) = system.split_at_mut(row);
            for (value, known) in below[0][column..].iter_mut().zip(&above[column][column..]) {
                *value -= factor * known;
            }
        }
    }
    let mut solution = vec![0.0; size];
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|k| system[row][k] * solution[k]).sum();
        solution[row] = (system[row][size] - known) / system[row][row];
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn a_known_system() {
        // 2x + y = 5, x + 3y = 10; the first pivot is not the first row of the second.
        let solution = solve(&[vec![0.0, 2.0, 6.0], vec![4.0, 1.0, 7.0]]);
        assert!((solution[0] - 1.0).abs() < 1e-12 && (solution[1] - 3.0).abs() < 1e-12);
    }
}

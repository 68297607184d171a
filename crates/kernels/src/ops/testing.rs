//! What the tests of the ops share: inputs, oracles in f64, and equality of bits everywhere.

use crate::{Chance, Cpu, Isa, Mat, MatMut, Purpose};

/// Standard normal draws for a test's own seed.
pub fn normals(seed: u64, n: usize) -> Vec<f32> {
    let chance = Chance::new(seed, Purpose::Problem);
    (0..n).map(|i| chance.normal(0, i as u32) as f32).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

pub fn cpu() -> Cpu {
    Cpu::new(1, Isa::best())
}

/// The one result that `f` must give on every instruction set and 1, 2 and 3 threads.
pub fn same_everywhere(what: &str, f: impl Fn(&Cpu) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let bits = |x: &[Vec<f32>]| -> Vec<Vec<u32>> {
        x.iter()
            .map(|x| x.iter().map(|x| x.to_bits()).collect())
            .collect()
    };
    let first = f(&Cpu::new(1, Isa::Portable));
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            let other = f(&Cpu::new(threads, isa));
            assert!(
                bits(&first) == bits(&other),
                "{what}: {isa}, {threads} threads differ"
            );
        }
    }
    first
}

/// |got - want| <= bound * (1 + |want|), element by element.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= bound * (1.0 + want.abs()),
            "{what}[{i}]: {got}, should be {want}"
        );
    }
}

/// The gradient of `f` at x by central differences.
pub fn numeric_gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    let h = 1e-5;
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + h;
            let above = f(&x);
            x[i] = at - h;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * h)
        })
        .collect()
}

pub fn view(data: &[f32], rows: usize, cols: usize, stride: usize) -> Mat<'_> {
    Mat {
        data,
        rows,
        cols,
        stride,
    }
}

pub fn view_mut(data: &mut [f32], rows: usize, cols: usize, stride: usize) -> MatMut<'_> {
    MatMut {
        data,
        rows,
        cols,
        stride,
    }
}

/// The elements of a strided view, row after row.
pub fn dense(x: Mat) -> Vec<f32> {
    (0..x.rows).flat_map(|i| x.row(i).to_vec()).collect()
}

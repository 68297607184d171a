//! Rows of the embedding table, and their gradient.

use super::{columns_per_item, rows_per_item};
use crate::pool::SharedMut;
use crate::simd::{for_vectors, simd_fn};
use crate::{Cpu, Mat, MatMut};

/// y[t] = weight[ids[t]]. `ids`: [tokens]; `weight`: [vocab_size, d]; `y`: [tokens, d].
///
/// # Panics
/// If an id is beyond the vocabulary.
pub(crate) fn embedding(cpu: &Cpu, ids: &[u32], weight: &[f32], y: MatMut) {
    y.check();
    let (d, stride) = (y.cols, y.stride);
    assert_eq!(y.rows, ids.len(), "one row a token");
    check_ids(ids, weight, d);
    let y = SharedMut::new(y.data);
    cpu.pool.run_chunks(ids.len(), rows_per_item(d), |rows| {
        for t in rows {
            let id = ids[t] as usize;
            // SAFETY: one thread has row t.
            let y = unsafe { y.slice(t * stride..t * stride + d) };
            y.copy_from_slice(&weight[id * d..(id + 1) * d]);
        }
    });
}

/// Gradient of [`embedding`]: dweight[ids[t]] += dy[t], token after token.
pub(crate) fn embedding_backward(cpu: &Cpu, ids: &[u32], dy: Mat, dweight: &mut [f32]) {
    dy.check();
    let d = dy.cols;
    assert_eq!(dy.rows, ids.len(), "one row a token");
    check_ids(ids, dweight, d);
    let dweight = SharedMut::new(dweight);
    cpu.pool
        .run_chunks(d, columns_per_item(ids.len()), |columns| {
            let dy = dy.columns(columns.start, columns.len());
            for (t, &id) in ids.iter().enumerate() {
                let row = id as usize * d;
                // SAFETY: one thread has these columns.
                let dweight = unsafe { dweight.slice(row + columns.start..row + columns.end) };
                add_row(cpu.isa, dy.row(t), dweight);
            }
        });
}

fn check_ids(ids: &[u32], weight: &[f32], d: usize) {
    assert!(
        d > 0 && weight.len().is_multiple_of(d),
        "{} weights in rows of {d}",
        weight.len()
    );
    let vocab_size = weight.len() / d;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        panic!("token id {id}, but the vocabulary has {vocab_size} tokens");
    }
}

simd_fn! {
    fn add_row<S>(x: &[f32], sum: &mut [f32]) {
        let (n, x, sum) = (x.len(), x.as_ptr(), sum.as_mut_ptr());
        for_vectors!(c, m in n, {
            let total = S::add(S::load_first(sum.add(c), m), S::load_first(x.add(c), m));
            S::store_first(sum.add(c), m, total);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::{Chance, Purpose};

    const VOCAB_SIZE: usize = 11;

    fn ids(seed: u64, tokens: usize) -> Vec<u32> {
        let mut draw = Chance::new(seed, Purpose::Problem).draws(9);
        (0..tokens)
            .map(|_| draw(VOCAB_SIZE as u64) as u32)
            .collect()
    }

    fn run(cpu: &Cpu, tokens: usize, d: usize) -> Vec<Vec<f32>> {
        let (ids, weight) = (ids(1, tokens), normals(2, VOCAB_SIZE * d));
        let (mut y, dy) = (vec![0.0; tokens * (d + 2)], normals(3, tokens * (d + 2)));
        embedding(cpu, &ids, &weight, view_mut(&mut y, tokens, d, d + 2));
        let mut dweight = normals(4, VOCAB_SIZE * d);
        embedding_backward(cpu, &ids, view(&dy, tokens, d, d + 2), &mut dweight);
        vec![y, dweight]
    }

    #[test]
    fn looks_up_rows_and_sums_their_gradients() {
        for d in [1, 7, 16, 17, 33, 192] {
            let tokens = 29;
            let out = run(&cpu(), tokens, d);
            let (weight, dy) = (normals(2, VOCAB_SIZE * d), normals(3, tokens * (d + 2)));
            let mut dweight = wide(&normals(4, VOCAB_SIZE * d));
            for (t, id) in ids(1, tokens).into_iter().enumerate() {
                for c in 0..d {
                    assert_eq!(out[0][t * (d + 2) + c], weight[id as usize * d + c]);
                    dweight[id as usize * d + c] += f64::from(dy[t * (d + 2) + c]);
                }
            }
            assert_close("dweight", &out[1], &dweight, 2e-6);
        }
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        for (tokens, d) in [(0, 3), (1, 17), (700, 100)] {
            same_everywhere("embedding", |cpu| run(cpu, tokens, d));
        }
    }

    #[test]
    #[should_panic(expected = "token id 2, but the vocabulary has 2 tokens")]
    fn an_id_beyond_the_vocabulary_is_named() {
        embedding(&cpu(), &[1, 2], &[0.0; 6], MatMut::new(&mut [0.0; 6], 3));
    }
}

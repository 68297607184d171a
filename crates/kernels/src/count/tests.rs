use super::*;
use crate::{
    Backend, BlockScales, Dtype, HeadGradient, Keep, Precision, ReadAt, Routing, RowSource,
    Scoring, StoredMatrix,
};

/// A matrix of zeros to multiply.
fn zeros(rows: usize, cols: usize) -> Vec<f32> {
    vec![0.0; rows * cols]
}

/// Counts of products alone.
fn products(matmul_flops: u64, weights: u64, weight_bytes: u64) -> Counts {
    Counts {
        matmul_flops,
        weights,
        weight_bytes,
        calls: 1,
        ..Counts::default()
    }
}

#[test]
fn a_product_is_two_operations_for_each_row_and_weight() {
    let count = Count::new();
    let w = Weight::new(7, 5, Precision::F32);
    let (x, mut y) = (zeros(3, 5), zeros(3, 7));
    count.matmul_nt(Mat::new(&x, 5), &w, MatMut::new(&mut y, 7), false);
    // One panel of 32 columns, 5 deep, of f32.
    assert_eq!(count.take(), products(2 * 3 * 7 * 5, 35, 32 * 5 * 4));
    let mut dx = zeros(3, 5);
    count.matmul_nn(Mat::new(&y, 7), &w, MatMut::new(&mut dx, 5), true);
    assert_eq!(count.take(), products(2 * 3 * 7 * 5, 35, 32 * 7 * 4));
    let mut dw = zeros(7, 5);
    count.matmul_tn(Mat::new(&y, 7), Mat::new(&x, 5), Precision::F32, &mut dw);
    assert_eq!(count.take(), products(2 * 3 * 7 * 5, 0, 0));
    assert_eq!(count.take(), Counts::default(), "counting began anew");
}

#[test]
fn several_products_of_one_x_are_one_call() {
    let count = Count::new();
    // 40 columns are two panels; 5 of bf16 are 3 pairs.
    let (a, b) = (
        Weight::new(40, 5, Precision::Bf16),
        Weight::new(2, 5, Precision::Bf16),
    );
    let (x, mut to_a, mut to_b) = (zeros(3, 5), zeros(3, 40), zeros(3, 2));
    let each = &mut [
        (&a, MatMut::new(&mut to_a, 40)),
        (&b, MatMut::new(&mut to_b, 2)),
    ];
    count.matmul_nt_each(Mat::new(&x, 5), each);
    let bytes = 2 * 32 * 3 * 4 + 32 * 3 * 4;
    assert_eq!(count.take(), products(2 * 3 * 42 * 5, 42 * 5, bytes));
}

#[test]
fn a_group_without_rows_reads_no_weight() {
    let count = Count::new();
    let w: Vec<Weight> = (0..3).map(|_| Weight::new(4, 6, Precision::F32)).collect();
    let (x, mut y) = (zeros(5, 6), zeros(5, 4));
    let offsets = [0, 2, 2, 5];
    let (rows, to) = (Mat::new(&x, 6), MatMut::new(&mut y, 4));
    count.grouped_matmul_nt(rows, &w, &offsets, to, false);
    let want = products(2 * 5 * 4 * 6, 2 * 24, 2 * 32 * 6 * 4);
    assert_eq!(count.take(), want);
    let mut dx = zeros(5, 6);
    let to = MatMut::new(&mut dx, 6);
    count.grouped_matmul_nn(Mat::new(&y, 4), &w, &offsets, to, false);
    let want = products(2 * 5 * 4 * 6, 2 * 24, 2 * 32 * 4 * 4);
    assert_eq!(count.take(), want);
    let mut dw = zeros(3 * 4, 6);
    let (dy, x) = (Mat::new(&y, 4), Mat::new(&x, 6));
    count.grouped_matmul_tn(dy, x, &offsets, Precision::F32, &mut dw);
    assert_eq!(count.take(), products(2 * 5 * 4 * 6, 0, 0));
}

#[test]
fn heads_are_products_of_their_own() {
    let count = Count::new();
    let w: Vec<Weight> = (0..3).map(|_| Weight::new(2, 4, Precision::F32)).collect();
    let (x, mut y) = (zeros(5, 3 * 4), zeros(5, 3 * 2));
    let to = MatMut::new(&mut y, 6);
    count.per_head_nt(Mat::new(&x, 12), 4, &w, to, 2, false);
    let want = products(3 * 2 * 5 * 2 * 4, 3 * 8, 3 * 32 * 4 * 4);
    assert_eq!(count.take(), want);
    let mut dx = zeros(5, 3 * 4);
    let to = MatMut::new(&mut dx, 12);
    count.per_head_nn(Mat::new(&y, 6), 2, &w, to, 4, false);
    let want = products(3 * 2 * 5 * 2 * 4, 3 * 8, 3 * 32 * 2 * 4);
    assert_eq!(count.take(), want);
    let mut dw = zeros(3, 11);
    let (dy, x) = ((Mat::new(&y, 6), 2), (Mat::new(&x, 12), 4));
    count.per_head_tn(dy, 2, x, 4, Precision::F32, &mut dw, 11);
    assert_eq!(count.take(), products(3 * 2 * 5 * 2 * 4, 0, 0));
}

#[test]
fn the_head_is_one_product_and_its_gradient_two_more() {
    let count = Count::new();
    let w = Weight::new(9, 4, Precision::F32);
    let (hidden, mut dhidden, mut dweight) = (zeros(3, 4), zeros(3, 4), zeros(9, 4));
    let (mut logprobs, mut entropies) = (zeros(3, 1), zeros(3, 1));
    for gradient in [false, true] {
        let gradient = gradient.then_some(HeadGradient {
            dlogprobs: &[0.0; 3],
            dhidden: MatMut::new(&mut dhidden, 4),
            dweight: &mut dweight,
        });
        let (factor, both) = if gradient.is_some() {
            (3, 32 * 9 * 4)
        } else {
            (1, 0)
        };
        let outcome = [&mut logprobs[..], &mut entropies[..]];
        let (x, logits) = (Mat::new(&hidden, 4), &mut Vec::new());
        count.head(x, &w, &[0, 8, 1], 1.0, logits, outcome, gradient);
        let reads = 1 + factor / 3;
        let want = products(factor * 2 * 3 * 9 * 4, reads * 36, 32 * 4 * 4 + both);
        assert_eq!(count.take(), want);
    }
}

/// Pairs of a query and a key no later than it, one by one.
fn pairs_one_by_one(cu_seqlens: &[u32], context_lens: &[u32]) -> u64 {
    let mut pairs = 0;
    for (rows, &context) in cu_seqlens.windows(2).zip(context_lens) {
        let new = rows[1] - rows[0];
        for position in context - new..context {
            pairs += (0..context).filter(|&key| key <= position).count() as u64;
        }
    }
    pairs
}

#[test]
fn attention_counts_the_pairs_that_are_seen() {
    let count = Count::new();
    let heads = Heads {
        heads: 4,
        kv_heads: 2,
        qk_dim: 6,
        v_dim: 3,
        scale: 1.0,
    };
    // A document of one token, an empty one, and one of 7.
    let (cu_seqlens, context_lens) = ([0, 1, 1, 8], [1, 0, 7]);
    let sequences = Sequences {
        cu_seqlens: &cu_seqlens,
        context_lens: &context_lens,
        key_rows: KeyRows::Packed,
    };
    let pairs = pairs_one_by_one(&cu_seqlens, &context_lens);
    let (q, k, v) = (zeros(8, 24), zeros(8, 12), zeros(8, 6));
    let qkv = [Mat::new(&q, 24), Mat::new(&k, 12), Mat::new(&v, 6)];
    let (mut out, mut stats) = (zeros(8, 12), zeros(8, 8));
    count.attention(
        qkv,
        &heads,
        &sequences,
        MatMut::new(&mut out, 12),
        &mut stats,
    );
    let want = Counts {
        attention_flops: 2 * pairs * 4 * (6 + 3),
        key_bytes: 8 * 2 * (6 + 3) * 4,
        calls: 1,
        ..Counts::default()
    };
    assert_eq!(count.take(), want);
    let (mut dq, mut dk, mut dv) = (zeros(8, 24), zeros(8, 12), zeros(8, 6));
    let dqkv = [
        MatMut::new(&mut dq, 24),
        MatMut::new(&mut dk, 12),
        MatMut::new(&mut dv, 6),
    ];
    let (out, dout) = (Mat::new(&out, 12), zeros(8, 12));
    let dout = Mat::new(&dout, 12);
    count.attention_backward(qkv, &heads, &sequences, out, &stats, dout, dqkv);
    // Scores, dq, dk of width 6; d weights, dv of width 3.
    let attention_flops = 2 * pairs * 4 * (6 + 6 + 6 + 3 + 3);
    let want = Counts {
        attention_flops,
        ..want
    };
    assert_eq!(count.take(), want);
}

#[test]
fn cached_latents_are_read_once_as_keys_and_values() {
    let count = Count::new();
    let heads = Heads {
        heads: 3,
        kv_heads: 1,
        qk_dim: 5,
        v_dim: 4,
        scale: 1.0,
    };
    // Three new tokens of nine, none of four, one of six, in a cache of blocks of two.
    let (cu_seqlens, context_lens) = ([0, 3, 3, 4], [9, 4, 6]);
    let tables = [0; 15];
    let sequences = Sequences {
        cu_seqlens: &cu_seqlens,
        context_lens: &context_lens,
        key_rows: KeyRows::Blocks {
            tables: &tables,
            blocks_per_sequence: 5,
            block_size: 2,
        },
    };
    let pairs = pairs_one_by_one(&cu_seqlens, &context_lens);
    assert_eq!(pairs, 7 + 8 + 9 + 6);
    let (q, cache, values) = (zeros(4, 15), zeros(40, 5), zeros(40, 4));
    let (q, keys) = (Mat::new(&q, 15), Mat::new(&cache, 5));
    for (v, width) in [(keys.columns(0, 4), 5), (Mat::new(&values, 4), 5 + 4)] {
        let (mut out, mut stats) = (zeros(4, 12), zeros(4, 6));
        let to = MatMut::new(&mut out, 12);
        count.attention([q, keys, v], &heads, &sequences, to, &mut stats);
        let want = Counts {
            attention_flops: 2 * pairs * 3 * (5 + 4),
            key_bytes: (9 + 6) * width * 4,
            calls: 1,
            ..Counts::default()
        };
        assert_eq!(count.take(), want);
    }
}

/// Each token has experts of its own, all groups are whole, and the loads differ by one at most.
#[test]
fn routing_is_valid_and_even() {
    let (tokens, experts, top_k) = (7, 5, 3);
    let routing = Routing {
        experts,
        top_k,
        scoring: Scoring::Sigmoid,
        groups: None,
        norm_topk_prob: true,
        scale: 1.0,
    };
    let count = Count::new();
    let (logits, mut scores) = (zeros(tokens, experts), zeros(tokens, experts));
    let mut ids = vec![0; tokens * top_k];
    let mut weights = zeros(tokens, top_k);
    let x = Mat::new(&logits, experts);
    count.router(x, &[], &routing, &mut scores, &mut ids, &mut weights);
    for chosen in ids.chunks_exact(top_k) {
        let others = |i: usize| chosen[..i].contains(&chosen[i]);
        assert!(!(0..top_k).any(others), "{chosen:?}");
    }
    let (mut offsets, mut token_of, mut slot_of) = (vec![0; experts + 1], ids.clone(), ids.clone());
    count.dispatch(&ids, &routing, &mut offsets, &mut token_of, &mut slot_of);
    assert_eq!(offsets, [0, 5, 9, 13, 17, 21]);
    for (choice, &slot) in slot_of.iter().enumerate() {
        assert_eq!(token_of[slot as usize] as usize, choice / top_k);
    }
    assert_eq!(count.take().calls, 2);
}

/// A file of zeros.
struct Zeros;

impl ReadAt for Zeros {
    fn read_at(&self, _: usize, out: &mut [u8]) -> std::io::Result<()> {
        out.fill(0);
        Ok(())
    }
}

/// 40 x 64 is two panels of 32 columns, or two blocks of 32 along each of 64 padded rows.
#[test]
fn bytes_are_those_of_the_form_that_is_kept() {
    let count = Count::new();
    for (dtype, keep, bytes) in [
        (Dtype::F32, Keep::Rows, 40 * 64 * 4),
        (Dtype::Bf16, Keep::Rows, 40 * 64 * 2),
        (Dtype::F8E4m3, Keep::Rows, 40 * 64 + 2 * 4 * 4),
        (Dtype::F32, Keep::Panels, 64 * 64 * 4),
        (Dtype::Bf16, Keep::Panels, 64 * 32 * 4),
        (Dtype::F32, Keep::Q8, 64 * (64 + 2 * 2)),
        (Dtype::F32, Keep::Q4, 64 * (64 / 2 + 2 * 2)),
    ] {
        let scales = BlockScales {
            block: [20, 16],
            values: vec![1.0; 2 * 4].into(),
        };
        let matrix = StoredMatrix {
            rows: 40,
            cols: 64,
            dtype,
            source: RowSource::Reader(&Zeros),
            scales: (dtype == Dtype::F8E4m3).then_some(scales),
        };
        let w = count.store(&matrix, keep, Precision::F32);
        let w = w.expect("a file of zeros can be read");
        let (x, mut y) = (zeros(3, 64), zeros(3, 40));
        count.matmul_nt(Mat::new(&x, 64), &w, MatMut::new(&mut y, 40), false);
        let want = products(2 * 3 * 40 * 64, 40 * 64, bytes);
        assert_eq!(count.take(), want, "{dtype:?} {keep:?}");
    }
}

#[test]
#[should_panic(expected = "x.cols and y.cols")]
fn a_wrong_shape_panics_as_it_would_elsewhere() {
    let w = Weight::new(4, 6, Precision::F32);
    let (x, mut y) = (zeros(2, 5), zeros(2, 4));
    Count::new().matmul_nt(Mat::new(&x, 5), &w, MatMut::new(&mut y, 4), false);
}

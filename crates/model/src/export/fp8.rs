//! DeepSeek's FP8 blocks, from f32.

use crate::checkpoint::float::f32_to_e4m3;
use crate::layout::TensorSpec;

/// Rows, and columns, that share a scale.
pub(super) const BLOCK: usize = 128;
/// The largest number of e4m3.
const LARGEST: f32 = 448.0;

/// Whether DeepSeek's scheme quantises a tensor: the projections of attention, MLPs, experts. The
/// one that joins the two inputs of multi-token prediction is not among them.
pub(super) fn is_quantised(spec: &TensorSpec) -> bool {
    let module = spec.name.strip_suffix(".weight").unwrap_or_default();
    let projects = module.ends_with("_proj") || module.ends_with(".kv_a_proj_with_mqa");
    spec.shape.len() == 2 && projects && !module.ends_with(".eh_proj")
}

/// The shape of the scales of a matrix.
pub(super) fn scales_shape(shape: &[usize]) -> Vec<usize> {
    shape.iter().map(|dim| dim.div_ceil(BLOCK)).collect()
}

/// The scales of a matrix of `cols` columns, `[ceil(rows / 128), ceil(cols / 128)]`; `None` if a
/// value is not finite. A block without a magnitude that an f32 scale could bring to 448 has the
/// scale 1, and its values become zero.
pub(super) fn scales(values: &[f32], cols: usize) -> Option<Vec<f32>> {
    let mut scales = Vec::new();
    for rows in values.chunks(BLOCK * cols) {
        let mut largest = vec![0f32; cols.div_ceil(BLOCK)];
        for row in rows.chunks_exact(cols) {
            for (largest, part) in largest.iter_mut().zip(row.chunks(BLOCK)) {
                for value in part {
                    if !value.is_finite() {
                        return None;
                    }
                    *largest = largest.max(value.abs());
                }
            }
        }
        scales.extend(largest.into_iter().map(|largest| {
            let scale = largest / LARGEST;
            if scale < f32::MIN_POSITIVE {
                1.0
            } else {
                scale
            }
        }));
    }
    Some(scales)
}

/// The codes of the rows of one row of blocks, whose scales these are.
pub(super) fn codes(rows: &[f32], cols: usize, scales: &[f32], out: &mut Vec<u8>) {
    out.clear();
    for row in rows.chunks_exact(cols) {
        for (part, scale) in row.chunks(BLOCK).zip(scales) {
            out.extend(part.iter().map(|value| f32_to_e4m3(value / scale)));
        }
    }
}

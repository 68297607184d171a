//! Rows of a tensor as products take them over, wherever they lie.

use super::float::{e4m3_to_f32, f16_to_f32, f32_to_bf16};
use super::positioned::read_exact_at;
use super::weights::NonFinite;
use crate::config::Config;
use crate::error::Error;
use crate::layout::{Layout, TensorSpec};
use crate::open::StoredTensor;
use kernels::{BlockScales, Bytes, Dtype, ReadAt};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A checkpoint whose tensors can be read by their Hugging Face names, in any order.
pub(crate) trait TensorSource: Sync {
    /// Compares what is there with what the configuration needs.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every difference, one line each.
    fn check(&self, config: &Config, layout: &Layout) -> Result<(), Error>;

    /// Rows `first_row..first_row + rows` of a matrix that was checked.
    ///
    /// # Errors
    /// The scales of the tensor cannot be read.
    fn rows(
        &self,
        config: &Config,
        spec: &TensorSpec,
        first_row: usize,
        rows: usize,
    ) -> Result<TensorRows<'_>, Error>;

    /// Reads a whole tensor that was checked, as f32.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_f32(&self, config: &Config, spec: &TensorSpec, out: &mut [f32]) -> Result<(), Error>;

    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool {
        self.stored_bytes(name) > 0
    }

    /// Compares repeated tensors (a tied head, embedding and head of multi-token prediction) with
    /// those that they repeat.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming those that differ; [`Error::File`] if one cannot be read.
    fn check_copies(&self, config: &Config) -> Result<(), Error>;

    /// Maps the files, for [`TensorRows::mapped`].
    ///
    /// # Errors
    /// The system refuses.
    fn map(&mut self) -> Result<(), Error>;

    /// Every tensor, in the order of their names.
    fn tensors(&self) -> Vec<StoredTensor>;

    /// Bytes of a tensor in its file; 0 if it is not there.
    fn stored_bytes(&self, name: &str) -> u64;

    /// The file that holds a tensor.
    fn file_of(&self, name: &str) -> &Path;
}

/// Rows of a matrix, one after the other.
pub(crate) struct TensorRows<'a> {
    pub dtype: Dtype,
    /// The first row begins at offset 0.
    pub reader: Box<dyn ReadAt + 'a>,
    /// The same bytes, where their file is mapped.
    pub mapped: Option<Bytes>,
    /// Of the whole tensor; `first_row` is where these rows are in it.
    pub scales: Option<BlockScales>,
    pub first_row: usize,
}

/// A part of a file.
pub(crate) struct FilePart<'a> {
    pub file: &'a File,
    pub offset: u64,
}

impl ReadAt for FilePart<'_> {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        read_exact_at(self.file, out, self.offset + offset as u64)
    }
}

/// FP8 with its scales, read as f32: for rows that do not begin where a block does.
pub(crate) struct Expanded<'a> {
    pub codes: &'a dyn ReadAt,
    pub scales: &'a BlockScales,
    pub first_row: usize,
    pub cols: usize,
}

impl ReadAt for Expanded<'_> {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let (values, _) = out.as_chunks_mut::<4>();
        let mut codes = vec![0; values.len()];
        self.codes.read_at(offset / 4, &mut codes)?;
        let first = self.first_row * self.cols + offset / 4;
        for (at, (value, &code)) in (first..).zip(values.iter_mut().zip(&codes)) {
            *value = expanded(code, self.scales, self.cols, at).to_le_bytes();
        }
        Ok(())
    }
}

/// The value of element `at` of a whole FP8 matrix of `cols` columns.
pub(super) fn expanded(code: u8, scales: &BlockScales, cols: usize, at: usize) -> f32 {
    let [height, width] = scales.block;
    let (row, column) = (at / cols, at % cols);
    let across = cols.div_ceil(width);
    e4m3_to_f32(code) * scales.values[row / height * across + column / width]
}

/// F32 or F16 read as bf16, to nearest, ties to even.
pub(crate) struct Rounded<'a> {
    pub values: &'a dyn ReadAt,
    pub dtype: Dtype,
}

impl ReadAt for Rounded<'_> {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let width = self.dtype.bytes();
        let (halves, _) = out.as_chunks_mut::<2>();
        let mut stored = vec![0; halves.len() * width];
        self.values.read_at(offset / 2 * width, &mut stored)?;
        for (half, value) in halves.iter_mut().zip(stored.chunks_exact(width)) {
            let value = match *value {
                [a, b] => f16_to_f32(u16::from_le_bytes([a, b])),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => unreachable!("an element of F16 or F32"),
            };
            *half = f32_to_bf16(value).to_le_bytes();
        }
        Ok(())
    }
}

/// Counts the values that are not finite as they pass.
pub(crate) struct Counting<'a> {
    inner: &'a dyn ReadAt,
    dtype: Dtype,
    nan: AtomicUsize,
    infinite: AtomicUsize,
}

impl<'a> Counting<'a> {
    pub fn new(inner: &'a dyn ReadAt, dtype: Dtype) -> Counting<'a> {
        Counting {
            inner,
            dtype,
            nan: AtomicUsize::new(0),
            infinite: AtomicUsize::new(0),
        }
    }

    /// What was found, if anything.
    pub fn found(&self, tensor: &str) -> Option<NonFinite> {
        let (nan, infinite) = (
            self.nan.load(Ordering::Relaxed),
            self.infinite.load(Ordering::Relaxed),
        );
        (nan + infinite > 0).then(|| NonFinite {
            tensor: tensor.to_string(),
            nan,
            infinite,
        })
    }
}

impl ReadAt for Counting<'_> {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, out)?;
        let [nan, infinite] = non_finite(self.dtype, out);
        if nan + infinite > 0 {
            self.nan.fetch_add(nan, Ordering::Relaxed);
            self.infinite.fetch_add(infinite, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// How many elements are NaN, and how many infinite.
fn non_finite(dtype: Dtype, bytes: &[u8]) -> [usize; 2] {
    /// Exponent all ones: infinite with an empty mantissa, else NaN.
    fn count<T: Copy + Ord>(values: impl Iterator<Item = T> + Clone, infinity: T) -> [usize; 2] {
        // The common case is one pass that the compiler vectorises.
        if values.clone().all(|magnitude| magnitude < infinity) {
            return [0, 0];
        }
        let nan = values.clone().filter(|&magnitude| magnitude > infinity);
        let infinite = values.clone().filter(|&magnitude| magnitude == infinity);
        [nan.count(), infinite.count()]
    }
    let halves = bytes.as_chunks::<2>().0.iter();
    let halves = halves.map(|two| u16::from_le_bytes(*two) & 0x7fff);
    match dtype {
        Dtype::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            let words = words.map(|four| u32::from_le_bytes(*four) & 0x7fff_ffff);
            count(words, 0x7f80_0000)
        }
        Dtype::Bf16 => count(halves, 0x7f80),
        Dtype::F16 => count(halves, 0x7c00),
        Dtype::F8E4m3 => [bytes.iter().filter(|&&b| b & 0x7f == 0x7f).count(), 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_finite_are_counted_by_kind() {
        let values = [1.0, f32::NAN, f32::INFINITY, -f32::INFINITY, -0.0, f32::MAX];
        let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(non_finite(Dtype::F32, &f32s), [1, 2]);
        let bf16: Vec<u8> = f32s.chunks(4).flat_map(|four| four[2..].to_vec()).collect();
        assert_eq!(non_finite(Dtype::Bf16, &bf16), [1, 2]);
        let f16 = values.map(half::f16::from_f32);
        let f16: Vec<u8> = f16.iter().flat_map(|v| v.to_le_bytes()).collect();
        // The greatest f32 is infinite in f16.
        assert_eq!(non_finite(Dtype::F16, &f16), [1, 3]);
        assert_eq!(non_finite(Dtype::F8E4m3, &[0x7f, 0xff, 0x7e, 0x80]), [2, 0]);
    }
}

//! Matrices as a checkpoint stores them, and the forms in which they can be kept.
//!
//! A form decides where the bytes lie and when they are converted, never a bit of a result: the
//! products of every form are those of [`Weight`] packed from the values in f32, at the same
//! [`Precision`].

mod fill;
mod widen;

pub(crate) use fill::{BLOCK_LANES, Source, StoredRows, fill};
pub(crate) use widen::Widen;

use crate::bytes::{Bytes, LaneBuffer};
use crate::gemm::{PANEL, Panels};
use crate::mat::Mat;
use crate::pool::SharedMut;
use crate::quant::{Bits, QuantPanels};
use crate::{Cpu, Isa, Precision, Weight};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What a stored element is; little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
    /// IEEE half precision.
    F16,
    /// Sign, four bits of exponent with bias 7, three of mantissa; no infinities, 0x7f and 0xff
    /// are NaN, the largest number is 448 ("e4m3fn").
    F8E4m3,
}

impl Dtype {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F8E4m3 => 1,
        }
    }
}

/// One scale for each block of a matrix: the value of an element is its own times its block's,
/// multiplied once in f32 (DeepSeek-V3, `weight_scale_inv`).
#[derive(Clone, Debug)]
pub struct BlockScales {
    /// Rows and columns of a block; those at the edges may be cut off.
    pub block: [usize; 2],
    /// `[ceil(rows / block[0]), ceil(cols / block[1])]`.
    pub values: Arc<[f32]>,
}

/// A file, or whatever else gives bytes by their place.
pub trait ReadAt: Sync {
    /// Fills `out` with the bytes from `offset` on, or fails.
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()>;
}

/// Where the rows of a matrix are.
pub enum RowSource<'a> {
    /// In memory or a mapped file, exactly the matrix.
    Memory(Bytes),
    /// To be read; the matrix begins at offset 0.
    Reader(&'a dyn ReadAt),
}

/// A matrix `[rows, cols]` as a checkpoint stores it: row after row without gaps.
pub struct StoredMatrix<'a> {
    pub rows: usize,
    pub cols: usize,
    pub dtype: Dtype,
    pub source: RowSource<'a>,
    /// Only of [`Dtype::F8E4m3`].
    pub scales: Option<BlockScales>,
}

/// The form in which [`crate::Backend::store`] keeps a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Panels for `x wᵀ` alone: bf16 pairs where the file or the precision is bf16, else f32. The
    /// fastest form.
    Panels,
    /// Panels for `dy w` alone.
    PanelsTransposed,
    /// The bytes as they are, mapped or read, converted as products touch them. Serves both
    /// directions.
    Rows,
    /// Eight bits in blocks of 32 along in_features, each with an f16 scale, for `x wᵀ` alone.
    /// Rows of x are rounded to eight bits too, each for itself: the form that changes results,
    /// by about 1 %, though not with the batch, the threads or the instruction set.
    Q8,
    /// As [`Keep::Q8`], four bits: about 10 %.
    Q4,
}

/// A matrix kept as its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub bytes: Bytes,
    pub dtype: Dtype,
    pub scales: Option<BlockScales>,
}

/// Bytes that one work item reads or packs, about: they stay in the second-level cache.
const ITEM_BYTES: usize = 128 << 10;
/// Bytes that one work item copies where nothing is packed.
const COPY_BYTES: usize = 4 << 20;

impl StoredMatrix<'_> {
    fn row_bytes(&self) -> usize {
        self.cols * self.dtype.bytes()
    }

    fn check(&self) {
        let bytes = self
            .rows
            .checked_mul(self.cols)
            .and_then(|n| n.checked_mul(self.dtype.bytes()));
        let bytes = bytes.expect("a matrix fits the address space");
        if let RowSource::Memory(memory) = &self.source {
            assert_eq!(
                memory.len(),
                bytes,
                "bytes of {} x {}",
                self.rows,
                self.cols
            );
        }
        if let Some(scales) = &self.scales {
            assert_eq!(self.dtype, Dtype::F8E4m3, "only e4m3 has scales");
            let [height, width] = scales.block;
            assert!(height > 0 && width > 0, "a block of {height} x {width}");
            let blocks = self.rows.div_ceil(height) * self.cols.div_ceil(width);
            assert_eq!(scales.values.len(), blocks, "scales of the blocks");
        }
    }

    /// Some rows: where they lie, or read into `buffer`.
    fn rows<'a>(
        &'a self,
        rows: Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<StoredRows<'a>> {
        let bytes = rows.start * self.row_bytes()..rows.end * self.row_bytes();
        let bytes = match &self.source {
            RowSource::Memory(memory) => &memory.as_slice()[bytes],
            RowSource::Reader(reader) => {
                if buffer.len() < bytes.len() {
                    buffer.resize(bytes.len(), 0);
                }
                let out = &mut buffer[..bytes.len()];
                reader.read_at(bytes.start, out)?;
                out
            }
        };
        Ok(StoredRows {
            bytes,
            first_row: rows.start,
            end_row: rows.end,
            cols: self.cols,
            dtype: self.dtype,
            scales: self.scales.as_ref(),
        })
    }

    /// Rows of about [`ITEM_BYTES`], a multiple of [`PANEL`].
    fn item_rows(&self) -> usize {
        (ITEM_BYTES / self.row_bytes().max(1))
            .max(1)
            .next_multiple_of(PANEL)
    }
}

impl Cpu {
    /// Takes a matrix over in the form asked for.
    pub(crate) fn store_weight(
        &self,
        matrix: &StoredMatrix,
        keep: Keep,
        precision: Precision,
    ) -> io::Result<Weight> {
        matrix.check();
        let (rows, cols) = (matrix.rows, matrix.cols);
        let lane = match matrix.dtype {
            Dtype::Bf16 => Precision::Bf16,
            _ => precision,
        };
        Ok(match keep {
            Keep::Panels => {
                let panels = self.panels_nt(matrix, lane)?;
                Weight::of_panels(rows, cols, precision, lane, Some(panels), None)
            }
            Keep::PanelsTransposed => {
                let panels = self.panels_nn(matrix, lane)?;
                Weight::of_panels(rows, cols, precision, lane, None, Some(panels))
            }
            Keep::Rows => {
                let bytes = match &matrix.source {
                    RowSource::Memory(memory) => memory.clone(),
                    RowSource::Reader(reader) => {
                        self.read_all(*reader, rows * matrix.row_bytes())?
                    }
                };
                let (dtype, scales) = (matrix.dtype, matrix.scales.clone());
                let kept = Rows {
                    bytes,
                    dtype,
                    scales,
                };
                Weight::of_rows(rows, cols, precision, kept)
            }
            Keep::Q8 => self.quantised(matrix, Bits::Eight, precision)?,
            Keep::Q4 => self.quantised(matrix, Bits::Four, precision)?,
        })
    }

    /// Panels whose columns are the rows of the matrix.
    fn panels_nt(&self, matrix: &StoredMatrix, lane: Precision) -> io::Result<Panels> {
        let mut panels = Panels::new(matrix.rows, lane.lanes(matrix.cols));
        let (depth, item) = (panels.depth, matrix.item_rows());
        let out = SharedMut::new(&mut panels.lanes);
        self.try_run(matrix.rows.div_ceil(item), |i, buffer| {
            let rows = i * item..matrix.rows.min((i + 1) * item);
            let source = Source::Columns(matrix.rows(rows.clone(), buffer)?);
            for panel in rows.start / PANEL..rows.end.div_ceil(PANEL) {
                // SAFETY: panels are disjoint.
                let out = unsafe { out.slice(panel * depth * PANEL..(panel + 1) * depth * PANEL) };
                fill_lanes(self.isa, &source, lane, panel, 0..depth, out);
            }
            Ok(())
        })?;
        Ok(panels)
    }

    /// Panels whose lanes are the rows of the matrix.
    fn panels_nn(&self, matrix: &StoredMatrix, lane: Precision) -> io::Result<Panels> {
        let mut panels = Panels::new(matrix.cols, lane.lanes(matrix.rows));
        let (depth, item) = (panels.depth, matrix.item_rows());
        let out = SharedMut::new(&mut panels.lanes);
        self.try_run(matrix.rows.div_ceil(item), |i, buffer| {
            let rows = i * item..matrix.rows.min((i + 1) * item);
            let source = Source::Lanes(matrix.rows(rows.clone(), buffer)?);
            // Items begin at even rows, so that no pair is torn.
            let all = lane.lanes(rows.start)..lane.lanes(rows.end);
            for panel in 0..matrix.cols.div_ceil(PANEL) {
                let start = panel * depth;
                // SAFETY: lanes of items are disjoint.
                let out =
                    unsafe { out.slice((start + all.start) * PANEL..(start + all.end) * PANEL) };
                fill_lanes(self.isa, &source, lane, panel, all.clone(), out);
            }
            Ok(())
        })?;
        Ok(panels)
    }

    /// Rounds a matrix to few bits, panel after panel.
    fn quantised(
        &self,
        matrix: &StoredMatrix,
        bits: Bits,
        precision: Precision,
    ) -> io::Result<Weight> {
        let mut panels = QuantPanels::new(bits, matrix.rows, matrix.cols);
        let (item, to_fill) = (matrix.item_rows(), panels.panels_mut());
        self.try_run(matrix.rows.div_ceil(item), |i, buffer| {
            let rows = i * item..matrix.rows.min((i + 1) * item);
            let source = Source::Lanes(matrix.rows(rows.clone(), buffer)?);
            let mut wide = vec![0.0; PANEL.min(rows.len()) * matrix.cols];
            for first in rows.clone().step_by(PANEL) {
                let own = first..rows.end.min(first + PANEL);
                let wide = &mut wide[..own.len() * matrix.cols];
                widen_rows(self.isa, &source, own, matrix.cols, wide);
                // SAFETY: items are other panels.
                unsafe { to_fill.fill(self.isa, first / PANEL, Mat::new(wide, matrix.cols)) };
            }
            Ok(())
        })?;
        Ok(Weight::of_quantised(precision, panels))
    }

    /// All bytes of a matrix.
    fn read_all(&self, reader: &dyn ReadAt, bytes: usize) -> io::Result<Bytes> {
        let mut all = LaneBuffer::zeroed(bytes.div_ceil(size_of::<u32>()));
        let out = SharedMut::new(all.bytes_mut());
        self.try_run(bytes.div_ceil(COPY_BYTES), |i, _| {
            let range = i * COPY_BYTES..bytes.min((i + 1) * COPY_BYTES);
            // SAFETY: ranges are disjoint.
            reader.read_at(range.start, unsafe { out.slice(range) })
        })?;
        Ok(Bytes::from(all).slice(0..bytes))
    }

    /// Runs items that may fail, each with a buffer to read into, and returns the error of the
    /// first one in order; items behind a failed one may be left out.
    fn try_run(
        &self,
        items: usize,
        item: impl Fn(usize, &mut Vec<u8>) -> io::Result<()> + Sync,
    ) -> io::Result<()> {
        let buffers = Mutex::new(Vec::new());
        let failed: Mutex<Option<(usize, io::Error)>> = Mutex::new(None);
        self.pool.run(items, |i| {
            let before = |f: &Option<(usize, io::Error)>| f.as_ref().is_some_and(|f| f.0 < i);
            if before(&lock(&failed)) {
                return;
            }
            let mut buffer = lock(&buffers).pop().unwrap_or_default();
            if let Err(error) = item(i, &mut buffer) {
                let mut failed = lock(&failed);
                if !before(&failed) {
                    *failed = Some((i, error));
                }
            }
            lock(&buffers).push(buffer);
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// [`fill`] for any number of lanes; `out` begins with the first of them.
fn fill_lanes(
    isa: Isa,
    source: &Source,
    lane: Precision,
    panel: usize,
    lanes: Range<usize>,
    out: &mut [u32],
) {
    let firsts = lanes.clone().step_by(BLOCK_LANES);
    for (first, block) in firsts.zip(out.chunks_mut(BLOCK_LANES * PANEL)) {
        let these = first..lanes.end.min(first + BLOCK_LANES);
        fill(isa, source, lane, panel, these, block);
    }
}

/// Some rows in f32, `[rows, cols]`; at most [`PANEL`] of them.
fn widen_rows(isa: Isa, source: &Source, rows: Range<usize>, cols: usize, out: &mut [f32]) {
    let mut block = [0; PANEL * PANEL];
    for first in (0..cols).step_by(PANEL) {
        let block = &mut block[..rows.len() * PANEL];
        fill(
            isa,
            source,
            Precision::F32,
            first / PANEL,
            rows.clone(),
            block,
        );
        let width = PANEL.min(cols - first);
        for (row, lanes) in block.chunks_exact(PANEL).enumerate() {
            let out = &mut out[row * cols + first..][..width];
            for (out, &lane) in out.iter_mut().zip(lanes) {
                *out = f32::from_bits(lane);
            }
        }
    }
}

/// A panic elsewhere leaves these lists whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! Weights in eight or four bits, for decoding: a step at batch one reads every weight once, so
//! fewer bytes are a faster step.
//!
//! A row of a weight is cut into blocks of [`BLOCK`] along in_features; a block holds integer
//! codes and one f16 scale, its values being `scale * code`. Rows of activations are rounded per
//! block to eight bits with an f32 scale, each row for itself. Of every block the integer dot
//! product is exact, and an element of the result is one chain over the blocks in order,
//! `c = fma(dot, weight_scale * row_scale, c)`: that is the row law here, and why VNNI and its
//! substitutes cannot differ.
//!
//! Rounding is to nearest, ties to even, of `value / scale`:
//! - eight bits: scale = max|w| / 127, codes -127..=127, stored plus 128;
//! - four bits: scale = (the w of greatest magnitude) / -8, codes -8..=7, stored plus 8, the rule
//!   of llama.cpp's `Q4_0` (`ggml-quants.c`); of two such values the positive one counts;
//! - activations: scale = max|x| / 127, codes -127..=127.
//!
//! Weights lie in panels of [`PANEL`] columns, `[panel][block]`, a block being whole cache lines
//! that are read from first to last: codes `[k / 4][PANEL][4]` in eight bits; in four
//! `[k / 8][PANEL][4]`, with the first four k of eight in the low halves of the bytes and the
//! others in the high ones; then the scales `[PANEL]`.
//!
//! A block of activations is a record of [`RECORD`] words: eight of codes, the scale, and the sum
//! of the codes times -128 and times -8, which takes back the offset of the weights' codes.

mod half;
mod lanes;
mod round;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::Isa;
use crate::cpu::Cpu;
use crate::gemm::PANEL;
use crate::mat::{Mat, MatMut};
use crate::pool::SharedMut;
use half::from_f16;
use round::{round_panel, round_row};
use std::ops::Range;
use std::sync::PoisonError;
use tile::{Job, Path};

/// Weights that share a scale.
const BLOCK: usize = 32;
/// Words of a block of activations.
const RECORD: usize = 11;
/// Words of a cache line.
const LINE: usize = 16;
/// Rows per work item: their records stay in the second-level cache.
const ROW_BLOCK: usize = 96;
/// Multiply-adds below which waking another thread costs more than it saves.
const MIN_ITEM: usize = 1 << 17;

/// Bits of a weight's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Eight,
    Four,
}

impl Bits {
    /// The least and the greatest code.
    fn range(self) -> (f32, f32) {
        match self {
            Bits::Eight => (-127.0, 127.0),
            Bits::Four => (-8.0, 7.0),
        }
    }

    /// What is added to a code to store it without a sign.
    fn offset(self) -> f32 {
        match self {
            Bits::Eight => 128.0,
            Bits::Four => 8.0,
        }
    }
}

/// Words that start on a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// A weight `[out_features, in_features]` in few bits.
#[derive(Clone, Debug)]
pub(crate) struct QuantPanels {
    bits: Bits,
    out_features: usize,
    in_features: usize,
    lines: Box<[Line]>,
}

impl QuantPanels {
    /// A weight of zeros. Pages of the memory come into being when they are filled.
    pub(crate) fn new(bits: Bits, out_features: usize, in_features: usize) -> QuantPanels {
        let panel = in_features.div_ceil(BLOCK) * bits.block_words();
        let lines = Box::new_zeroed_slice(out_features.div_ceil(PANEL) * panel / LINE);
        QuantPanels {
            bits,
            out_features,
            in_features,
            // SAFETY: words of zeros are words.
            lines: unsafe { lines.assume_init() },
        }
    }

    pub(crate) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(crate) fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes of codes and scales.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// The panels, for threads to fill.
    pub(crate) fn panels_mut(&mut self) -> PanelsToFill<'_> {
        let (bits, out_features, in_features) = (self.bits, self.out_features, self.in_features);
        PanelsToFill {
            bits,
            out_features,
            in_features,
            words: SharedMut::new(self.words_mut()),
            weight: std::marker::PhantomData,
        }
    }

    /// The values of one row, `scale * code` each.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.out_features,
            "row {row} of {}",
            self.out_features
        );
        assert_eq!(out.len(), self.in_features, "elements of a row");
        let (panel, c) = (row / PANEL, row % PANEL);
        let block_words = self.bits.block_words();
        let first = panel * self.in_features.div_ceil(BLOCK) * block_words;
        let blocks = self.words()[first..].chunks_exact(block_words);
        for (block, out) in blocks.zip(out.chunks_mut(BLOCK)) {
            let scales = block[self.bits.code_words() + c / 2];
            let scale = from_f16((scales >> (16 * (c % 2))) as u16);
            for (k, out) in out.iter_mut().enumerate() {
                let code = match self.bits {
                    Bits::Eight => block[k / 4 * PANEL + c].to_le_bytes()[k % 4],
                    Bits::Four => {
                        let byte = block[k / 8 * PANEL + c].to_le_bytes()[k % 4];
                        (byte >> (k % 8 / 4 * 4)) & 15
                    }
                };
                *out = scale * (f32::from(code) - self.bits.offset());
            }
        }
    }

    fn words(&self) -> &[u32] {
        let words = self.lines.len() * LINE;
        // SAFETY: a line is sixteen words and nothing else.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), words) }
    }

    fn words_mut(&mut self) -> &mut [u32] {
        let words = self.lines.len() * LINE;
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), words) }
    }
}

/// A weight whose panels several threads fill.
pub(crate) struct PanelsToFill<'a> {
    bits: Bits,
    out_features: usize,
    in_features: usize,
    words: SharedMut<u32>,
    weight: std::marker::PhantomData<&'a mut QuantPanels>,
}

impl PanelsToFill<'_> {
    /// Rounds the rows of panel j, `[at most 32, in_features]`, into it.
    ///
    /// # Safety
    /// No two threads fill one panel at one time.
    pub(crate) unsafe fn fill(&self, isa: Isa, j: usize, rows: Mat) {
        let all = (j * PANEL).min(self.out_features)..self.out_features.min((j + 1) * PANEL);
        let shape = (all.len(), self.in_features);
        assert_eq!((rows.rows, rows.cols), shape, "rows of panel {j}");
        rows.check();
        let words = self.in_features.div_ceil(BLOCK) * self.bits.block_words();
        // SAFETY: panels are disjoint, and this one is the caller's.
        let panel = unsafe { self.words.slice(j * words..(j + 1) * words) };
        round_panel(isa, self.bits, rows, panel);
    }
}

/// A part of a product for one thread.
struct Item {
    job: usize,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl Cpu {
    /// Rounds a weight into its panels.
    #[cfg(test)]
    pub(crate) fn quantise(&self, weight: Mat, panels: &mut QuantPanels) {
        let shape = (panels.out_features, panels.in_features);
        assert_eq!((weight.rows, weight.cols), shape, "shape of the weight");
        let (isa, to_fill) = (self.isa, panels.panels_mut());
        self.pool.run(weight.rows.div_ceil(PANEL), |j| {
            let rows = weight.rows(j * PANEL..weight.rows.min((j + 1) * PANEL));
            // SAFETY: every item is another panel.
            unsafe { to_fill.fill(isa, j, rows) }
        });
    }

    /// y (+)= x wᵀ for each group: group g takes rows `offsets[g]..offsets[g + 1]`.
    pub(crate) fn quantised_nt(
        &self,
        x: Mat,
        w: &[&QuantPanels],
        offsets: &[u32],
        y: MatMut,
        add: bool,
    ) {
        self.quantised_by(Path::of(self.isa), x, w, offsets, y, add);
    }

    fn quantised_by(
        &self,
        path: Path,
        x: Mat,
        w: &[&QuantPanels],
        offsets: &[u32],
        y: MatMut,
        add: bool,
    ) {
        assert_eq!(offsets.len(), w.len() + 1, "offsets of {} groups", w.len());
        assert!(offsets.is_sorted(), "offsets go up");
        let ends = (offsets[0] as usize, offsets[w.len()] as usize);
        assert_eq!(ends, (0, x.rows), "offsets cover the rows");
        assert_eq!(x.rows, y.rows, "rows of x and y");
        x.check();
        y.check();
        let blocks = x.cols.div_ceil(BLOCK);
        let c = y.data.as_mut_ptr();
        let jobs = w.iter().zip(offsets.windows(2)).map(|(w, o)| {
            let shape = (w.in_features, w.out_features);
            assert_eq!((x.cols, y.cols), shape, "x.cols and y.cols");
            let (first, end) = (o[0] as usize, o[1] as usize);
            Job {
                bits: w.bits,
                first_record: first * blocks,
                x: std::ptr::null(),
                // The pointer of an empty group may be past the end; it is never used.
                panels: w.words().as_ptr(),
                c: c.wrapping_add(first * y.stride),
                c_stride: y.stride,
                rows: end - first,
                columns: y.cols,
                blocks,
                add,
            }
        });
        self.run_jobs(path, x, jobs.collect());
    }

    /// y = x wᵀ for each weight and its y.
    pub(crate) fn quantised_each(&self, x: Mat, products: &mut [(&QuantPanels, MatMut)]) {
        let jobs = products.iter_mut().map(|(w, y)| {
            let shape = (w.in_features, x.rows, w.out_features);
            assert_eq!((x.cols, y.rows, y.cols), shape, "x and y");
            y.check();
            Job {
                bits: w.bits,
                first_record: 0,
                x: std::ptr::null(),
                panels: w.words().as_ptr(),
                c: y.data.as_mut_ptr(),
                c_stride: y.stride,
                rows: x.rows,
                columns: y.cols,
                blocks: x.cols.div_ceil(BLOCK),
                add: false,
            }
        });
        self.run_jobs(Path::of(self.isa), x, jobs.collect());
    }

    /// Rounds x and runs the jobs over its records.
    fn run_jobs(&self, path: Path, x: Mat, mut jobs: Vec<Job>) {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let records = self.round_rows(x, &mut scratch).as_ptr();
        for job in &mut jobs {
            job.x = records.wrapping_add(job.first_record * RECORD);
        }
        let work: usize = jobs.iter().map(Job::work).sum();
        let wanted = (8 * self.threads()).min(work / MIN_ITEM).max(1);
        let items = split(&jobs, wanted);
        let one = |i: usize| {
            let Item { job, rows, panels } = &items[i];
            // SAFETY: items cover disjoint rows and panels; the operands outlive the call, and
            // the path is one of this machine's.
            unsafe { path.run(&jobs[*job], rows.clone(), panels.clone()) }
        };
        if wanted == 1 {
            (0..items.len()).for_each(one);
        } else {
            self.pool.run(items.len(), one);
        }
    }

    /// The records of every row of x, in scratch.
    fn round_rows<'a>(&self, x: Mat, scratch: &'a mut Vec<u32>) -> &'a [u32] {
        let row_words = x.cols.div_ceil(BLOCK) * RECORD;
        let words = x.rows * row_words;
        if scratch.len() < words {
            scratch.resize(words, 0);
        }
        let shared = SharedMut::new(&mut scratch[..words]);
        let rows = |rows: Range<usize>| {
            for i in rows {
                // SAFETY: rows are disjoint.
                let records = unsafe { shared.slice(i * row_words..(i + 1) * row_words) };
                round_row(self.isa, x.row(i), records);
            }
        };
        if x.rows * x.cols < 1 << 15 {
            rows(0..x.rows);
        } else {
            self.pool.run_chunks(x.rows, 4, rows);
        }
        &scratch[..words]
    }
}

/// Work items that cover the rows and panels of every job. Panels are split only as far as rows
/// alone do not give every thread work.
fn split(jobs: &[Job], wanted: usize) -> Vec<Item> {
    let row_blocks: usize = jobs.iter().map(|p| p.rows.div_ceil(ROW_BLOCK)).sum();
    let groups = wanted.div_ceil(row_blocks.max(1));
    let mut items = Vec::new();
    for (job, p) in jobs.iter().enumerate() {
        let panels = p.columns.div_ceil(PANEL);
        let step = panels.div_ceil(groups).max(1);
        for first in (0..panels).step_by(step) {
            for row in (0..p.rows).step_by(ROW_BLOCK) {
                items.push(Item {
                    job,
                    rows: row..p.rows.min(row + ROW_BLOCK),
                    panels: first..panels.min(first + step),
                });
            }
        }
    }
    items
}

#[cfg(test)]
mod tests;

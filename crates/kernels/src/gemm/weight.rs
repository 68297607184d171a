//! A weight in the forms that products read.

use super::{PANEL, pack_panel_nt, pack_rows};
use crate::bytes::LaneBuffer;
use crate::mat::{Mat, MatMut};
use crate::pool::SharedMut;
use crate::quant::QuantPanels;
use crate::stored::{Dtype, Rows, Source, StoredRows, fill};
use crate::{Cpu, Isa, Precision};

/// A matrix as panels: the right operand of a product.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    pub lanes: LaneBuffer,
    /// Lanes of k.
    pub depth: usize,
    pub columns: usize,
}

impl Panels {
    pub fn new(columns: usize, depth: usize) -> Panels {
        Panels {
            lanes: LaneBuffer::zeroed(columns.div_ceil(PANEL) * depth * PANEL),
            depth,
            columns,
        }
    }

    fn lane(&self, column: usize, lane: usize) -> u32 {
        self.lanes[(column / PANEL * self.depth + lane) * PANEL + column % PANEL]
    }
}

/// A weight `[out_features, in_features]` in a form that products read: panels for both
/// directions, filled by [`crate::Backend::pack`], where it is trained; one of
/// [`crate::Keep`], made by [`crate::Backend::store`], where it is used as it was stored. The form
/// never changes a bit of a product.
#[derive(Clone, Debug)]
pub struct Weight {
    out_features: usize,
    in_features: usize,
    precision: Precision,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Panels {
        /// For `x wᵀ`: k runs over in_features.
        nt: Option<Panels>,
        /// For `dy w`: k runs over out_features.
        nn: Option<Panels>,
        /// What a lane is: bf16 pairs of a bf16 file may serve products in f32.
        lane: Precision,
    },
    Rows(Rows),
    /// For `x wᵀ`, whose chains are another kind: exact integers within a block.
    Quantised(QuantPanels),
}

/// Which product a weight serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// `x wᵀ`.
    Nt,
    /// `dy w`.
    Nn,
}

/// A weight as the right operand of one product.
pub(super) enum Operands<'a> {
    /// The tiles read these lanes.
    Panels(&'a Panels),
    /// The tiles read these pairs of bf16 and multiply in f32.
    Pairs(&'a Panels),
    /// Converted block by block to the lanes of its precision.
    Stored(Source<'a>),
    /// Converted block by block to pairs of bf16, which are multiplied in f32.
    StoredPairs(Source<'a>),
}

impl Weight {
    /// Room for a weight; filled by [`crate::Backend::pack`].
    pub fn new(out_features: usize, in_features: usize, precision: Precision) -> Weight {
        let nt = Panels::new(out_features, precision.lanes(in_features));
        let nn = Panels::new(in_features, precision.lanes(out_features));
        let (nt, nn) = (Some(nt), Some(nn));
        Weight::of_panels(out_features, in_features, precision, precision, nt, nn)
    }

    pub(crate) fn of_panels(
        out_features: usize,
        in_features: usize,
        precision: Precision,
        lane: Precision,
        nt: Option<Panels>,
        nn: Option<Panels>,
    ) -> Weight {
        Weight {
            out_features,
            in_features,
            precision,
            form: Form::Panels { nt, nn, lane },
        }
    }

    pub(crate) fn of_rows(
        out_features: usize,
        in_features: usize,
        precision: Precision,
        rows: Rows,
    ) -> Weight {
        Weight {
            out_features,
            in_features,
            precision,
            form: Form::Rows(rows),
        }
    }

    pub(crate) fn of_quantised(precision: Precision, panels: QuantPanels) -> Weight {
        Weight {
            out_features: panels.out_features(),
            in_features: panels.in_features(),
            precision,
            form: Form::Quantised(panels),
        }
    }

    /// The weight in few bits, if it is kept so.
    pub(super) fn quantised(&self) -> Option<&QuantPanels> {
        match &self.form {
            Form::Quantised(panels) => Some(panels),
            Form::Panels { .. } | Form::Rows(_) => None,
        }
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of memory that this weight owns or has mapped.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Panels { nt, nn, .. } => {
                let panels = [nt, nn].into_iter().flatten();
                panels.map(|p| p.lanes.len() * size_of::<u32>()).sum()
            }
            Form::Rows(rows) => {
                let scales = rows.scales.as_ref().map_or(0, |s| s.values.len());
                rows.bytes.len() + scales * size_of::<f32>()
            }
            Form::Quantised(panels) => panels.bytes(),
        }
    }

    /// Bytes that a product in this direction reads: the panels of the other one lie still.
    pub(crate) fn bytes_read(&self, direction: Direction) -> usize {
        let Form::Panels { nt, nn, .. } = &self.form else {
            return self.bytes();
        };
        let panels = match direction {
            Direction::Nt => nt,
            Direction::Nn => nn,
        };
        let panels = panels.as_ref().expect("panels for the direction");
        panels.lanes.len() * size_of::<u32>()
    }

    /// Row `row` of the weight as the form holds it, in f32; `out [in_features]`. Panels of bf16
    /// pairs hold what rounding left of it.
    ///
    /// # Panics
    /// If the weight has no such row, or `out` another length.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.read_row_on(Isa::Portable, row, out);
    }

    fn read_row_on(&self, isa: Isa, row: usize, out: &mut [f32]) {
        assert!(
            row < self.out_features,
            "row {row} of {}",
            self.out_features
        );
        assert_eq!(out.len(), self.in_features, "room for a row");
        match &self.form {
            Form::Panels {
                nt: Some(nt), lane, ..
            } => {
                for (k, out) in out.iter_mut().enumerate() {
                    *out = match lane {
                        Precision::F32 => f32::from_bits(nt.lane(row, k)),
                        Precision::Bf16 => half_of(nt.lane(row, k / 2), k),
                    };
                }
            }
            Form::Panels {
                nn: Some(nn), lane, ..
            } => {
                for (c, out) in out.iter_mut().enumerate() {
                    *out = match lane {
                        Precision::F32 => f32::from_bits(nn.lane(c, row)),
                        Precision::Bf16 => half_of(nn.lane(c, row / 2), row),
                    };
                }
            }
            Form::Panels { .. } => unreachable!("a weight has panels in one direction at least"),
            Form::Quantised(panels) => panels.read_row(row, out),
            Form::Rows(rows) => {
                let source = Source::Lanes(self.stored_rows(rows));
                for (panel, out) in out.chunks_mut(PANEL).enumerate() {
                    let mut block = [0; PANEL];
                    fill(
                        isa,
                        &source,
                        Precision::F32,
                        panel,
                        row..row + 1,
                        &mut block,
                    );
                    for (out, bits) in out.iter_mut().zip(block) {
                        *out = f32::from_bits(bits);
                    }
                }
            }
        }
    }

    fn stored_rows<'a>(&self, rows: &'a Rows) -> StoredRows<'a> {
        StoredRows {
            bytes: rows.bytes.as_slice(),
            first_row: 0,
            end_row: self.out_features,
            cols: self.in_features,
            dtype: rows.dtype,
            scales: rows.scales.as_ref(),
        }
    }

    /// Depth in k and columns of the weight in a direction.
    pub(crate) fn shape(&self, direction: Direction) -> (usize, usize) {
        match direction {
            Direction::Nt => (self.in_features, self.out_features),
            Direction::Nn => (self.out_features, self.in_features),
        }
    }

    /// The weight as a right operand: the one place that tells the forms apart for the products.
    pub(super) fn operand(&self, direction: Direction) -> Operands<'_> {
        // Else the last pair has no second row of `x` to go with.
        let pairs = self.shape(direction).0.is_multiple_of(2);
        match &self.form {
            Form::Panels { nt, nn, lane } => {
                let panels = match direction {
                    Direction::Nt => nt.as_ref(),
                    Direction::Nn => nn.as_ref(),
                };
                let panels = panels.unwrap_or_else(|| match direction {
                    Direction::Nt => panic!("x w' needs Keep::Panels or Keep::Rows of the weight"),
                    Direction::Nn => {
                        panic!("dy w needs Keep::PanelsTransposed or Keep::Rows of the weight")
                    }
                });
                if *lane == self.precision {
                    Operands::Panels(panels)
                } else if pairs {
                    Operands::Pairs(panels)
                } else {
                    Operands::Stored(Source::Pairs(&panels.lanes, panels.depth))
                }
            }
            Form::Quantised(_) => panic!("a weight in few bits serves x w' alone"),
            Form::Rows(rows) => {
                let source = match direction {
                    Direction::Nt => Source::Columns(self.stored_rows(rows)),
                    Direction::Nn => Source::Lanes(self.stored_rows(rows)),
                };
                let widens = (rows.dtype, self.precision) == (Dtype::Bf16, Precision::F32);
                if widens && pairs {
                    Operands::StoredPairs(source)
                } else {
                    Operands::Stored(source)
                }
            }
        }
    }
}

/// The bf16 at an even or odd place of a pair, as f32.
fn half_of(pair: u32, place: usize) -> f32 {
    f32::from_bits(if place.is_multiple_of(2) {
        pair << 16
    } else {
        pair & 0xffff_0000
    })
}

impl Cpu {
    /// Fills a weight's panels from `weight [out_features, in_features]` (rows may be strided).
    pub(crate) fn pack_weight(&self, weight: Mat, packed: &mut Weight) {
        assert_eq!(
            (weight.rows, weight.cols),
            (packed.out_features, packed.in_features)
        );
        weight.check();
        let Form::Panels {
            nt: Some(nt),
            nn: Some(nn),
            ..
        } = &mut packed.form
        else {
            panic!("a weight made by `store` is not packed again");
        };
        let (isa, bf16) = (self.isa, packed.precision == Precision::Bf16);
        let per_panel = nt.depth * PANEL;
        let nt = SharedMut::new(&mut nt.lanes);
        self.pool.run(weight.rows.div_ceil(PANEL), |j| {
            // SAFETY: panels are disjoint.
            let panel = unsafe { nt.slice(j * per_panel..(j + 1) * per_panel) };
            let rows = j * PANEL..weight.rows.min((j + 1) * PANEL);
            let n = rows.len();
            let source = &weight.rows(rows).data;
            pack_panel_nt(isa, source, weight.stride, n, weight.cols, bf16, panel);
        });
        let depth = nn.depth;
        let nn = SharedMut::new(&mut nn.lanes);
        self.pool.run_chunks(depth, 64, |lanes| {
            pack_rows(isa, weight, lanes, bf16, &nn, 0);
        });
    }

    /// y[t] = row `ids[t]` of `weight`; `y [tokens, in_features]`.
    pub(crate) fn embed(&self, ids: &[u32], weight: &Weight, y: MatMut) {
        y.check();
        let (d, stride) = (y.cols, y.stride);
        assert_eq!(y.rows, ids.len(), "one row a token");
        assert_eq!(d, weight.in_features, "columns of y");
        if let Some(id) = ids.iter().find(|&&id| id as usize >= weight.out_features) {
            let tokens = weight.out_features;
            panic!("token id {id}, but the vocabulary has {tokens} tokens");
        }
        let y = SharedMut::new(y.data);
        self.pool.run_chunks(ids.len(), 4, |rows| {
            for t in rows {
                // SAFETY: one thread has row t.
                let y = unsafe { y.slice(t * stride..t * stride + d) };
                weight.read_row_on(self.isa, ids[t] as usize, y);
            }
        });
    }
}

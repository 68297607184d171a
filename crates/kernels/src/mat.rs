//! Views of row-major matrices.

/// A matrix to read: element (i, j) at `data[i * stride + j]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

/// A matrix to write: element (i, j) at `data[i * stride + j]`.
pub struct MatMut<'a> {
    pub data: &'a mut [f32],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

/// Elements from the first of row 0 to the last of the last row.
fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 {
        0
    } else {
        (rows - 1) * stride + cols
    }
}

impl<'a> Mat<'a> {
    /// All of `data` as rows of `cols`.
    pub fn new(data: &'a [f32], cols: usize) -> Mat<'a> {
        assert_eq!(
            data.len() % cols,
            0,
            "{} elements in rows of {cols}",
            data.len()
        );
        Mat {
            data,
            rows: data.len() / cols,
            cols,
            stride: cols,
        }
    }

    /// Columns `start..start + cols` of every row.
    pub fn columns(self, start: usize, cols: usize) -> Mat<'a> {
        assert!(
            start + cols <= self.cols,
            "columns {start}..{} of {}",
            start + cols,
            self.cols
        );
        let end = extent(self.rows, self.cols, self.stride);
        Mat {
            data: &self.data[start.min(end)..end],
            cols,
            ..self
        }
    }

    /// Rows `range`.
    pub fn rows(self, range: std::ops::Range<usize>) -> Mat<'a> {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let rows = range.len();
        let start = range.start * self.stride;
        let end = start + extent(rows, self.cols, self.stride);
        Mat {
            data: &self.data[start.min(end)..end],
            rows,
            ..self
        }
    }

    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        &self.data[i * self.stride..i * self.stride + self.cols]
    }

    pub(crate) fn check(&self) {
        assert!(self.cols <= self.stride || self.rows <= 1, "rows overlap");
        assert!(
            extent(self.rows, self.cols, self.stride) <= self.data.len(),
            "matrix too short"
        );
    }
}

impl<'a> MatMut<'a> {
    /// All of `data` as rows of `cols`.
    pub fn new(data: &'a mut [f32], cols: usize) -> MatMut<'a> {
        assert_eq!(
            data.len() % cols,
            0,
            "{} elements in rows of {cols}",
            data.len()
        );
        MatMut {
            rows: data.len() / cols,
            data,
            cols,
            stride: cols,
        }
    }

    /// Columns `start..start + cols` of every row.
    pub fn columns(self, start: usize, cols: usize) -> MatMut<'a> {
        assert!(
            start + cols <= self.cols,
            "columns {start}..{} of {}",
            start + cols,
            self.cols
        );
        let end = extent(self.rows, self.cols, self.stride);
        MatMut {
            data: &mut self.data[start.min(end)..end],
            cols,
            ..self
        }
    }

    /// Rows `range`.
    pub fn rows(self, range: std::ops::Range<usize>) -> MatMut<'a> {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let rows = range.len();
        let start = range.start * self.stride;
        let end = start + extent(rows, self.cols, self.stride);
        MatMut {
            data: &mut self.data[start.min(end)..end],
            rows,
            ..self
        }
    }

    pub fn as_mat(&self) -> Mat<'_> {
        Mat {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    pub(crate) fn check(&self) {
        self.as_mat().check();
    }
}

//! Moving rows and columns between buffers of different shape.

use crate::cpu::Cpu;
use crate::mat::{Mat, MatMut};
use crate::pool::SharedMut;

/// Rows per work item.
const CHUNK: usize = 64;

/// For each head h: `width` columns of y from `h * y_step` = (or +=) those of x from `h * x_step`.
pub(crate) fn copy_heads(
    cpu: &Cpu,
    x: (Mat, usize),
    y: (MatMut, usize),
    heads: usize,
    width: usize,
    add: bool,
) {
    let ((x, x_step), (y, y_step)) = (x, y);
    assert_eq!(x.rows, y.rows, "rows of x and y");
    assert!(x.cols >= (heads - 1) * x_step + width, "columns of x");
    assert!(y.cols >= (heads - 1) * y_step + width, "columns of y");
    x.check();
    y.check();
    let (cols, stride) = (y.cols, y.stride);
    let shared = SharedMut::new(y.data);
    cpu.pool.run_chunks(x.rows, CHUNK, |rows| {
        for t in rows {
            let from = x.row(t);
            // SAFETY: rows are disjoint.
            let to = unsafe { shared.slice(t * stride..t * stride + cols) };
            for h in 0..heads {
                let from = &from[h * x_step..h * x_step + width];
                let to = &mut to[h * y_step..h * y_step + width];
                if add {
                    to.iter_mut().zip(from).for_each(|(y, x)| *y += x);
                } else {
                    to.copy_from_slice(from);
                }
            }
        }
    });
}

/// Row `rows[t]` of y = row t of x. The rows named are distinct.
pub(crate) fn write_rows(x: Mat, rows: &[u32], y: MatMut) {
    assert_eq!((x.rows, x.cols), (rows.len(), y.cols), "shapes of x and y");
    x.check();
    y.check();
    for (t, &row) in rows.iter().enumerate() {
        let start = row as usize * y.stride;
        y.data[start..start + y.cols].copy_from_slice(x.row(t));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn heads_move_between_widths_and_rows_to_their_places() {
        let cpu = Cpu::new(2, Isa::Portable);
        let x: Vec<f32> = (0..200 * 10).map(|i| i as f32).collect();
        let mut y = vec![-1.0; 200 * 9];
        let from = (Mat::new(&x, 10).columns(3, 7), 5);
        copy_heads(&cpu, from, (MatMut::new(&mut y, 9), 4), 2, 2, false);
        copy_heads(&cpu, from, (MatMut::new(&mut y, 9), 4), 2, 1, true);
        for t in 0..200 {
            let a = |c: usize| (t * 10 + c) as f32;
            let want = [
                2.0 * a(3),
                a(4),
                -1.0,
                -1.0,
                2.0 * a(8),
                a(9),
                -1.0,
                -1.0,
                -1.0,
            ];
            assert_eq!(y[t * 9..(t + 1) * 9], want, "row {t}");
        }
        let mut z = vec![0.0; 4 * 2];
        write_rows(
            Mat::new(&[1.0, 2.0, 3.0, 4.0], 2),
            &[3, 1],
            MatMut::new(&mut z, 2),
        );
        assert_eq!(z, [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    }
}

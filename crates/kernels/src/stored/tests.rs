use super::*;
use crate::{Backend, Chance, Isa, Mat, MatMut, Purpose};

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F8E4m3];
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// (rows, cols, block of scales): edges of panels, pairs, vectors and blocks of lanes.
const SHAPES: [(usize, usize, [usize; 2]); 7] = [
    (1, 1, [1, 1]),
    (31, 33, [7, 5]),
    (33, 31, [128, 128]),
    (64, 256, [128, 128]),
    (127, 130, [128, 128]),
    (130, 127, [64, 20]),
    (40, 389, [16, 48]),
];

fn machines() -> Vec<Cpu> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [1, 2, 3].map(|threads| Cpu::new(threads, isa)))
        .collect()
}

fn normals(seed: u64, n: usize) -> Vec<f32> {
    let chance = Chance::new(seed, Purpose::Problem);
    (0..n).map(|i| chance.normal(0, i as u32) as f32).collect()
}

/// An element's value from its sign, exponent and mantissa, in f64.
fn value(bits: u32, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let mantissa = f64::from(bits & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    let exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = if bits >> (exponent_bits + mantissa_bits) & 1 == 1 {
        -1.0
    } else {
        1.0
    };
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(1 - bias),
        e => (1.0 + mantissa) * 2f64.powi(e as i32 - bias),
    };
    sign * magnitude
}

/// What the bits of an element mean; `None` for infinities and NaN.
fn finite(dtype: Dtype, bits: u32) -> Option<f32> {
    let special = |mask: u32| bits & mask == mask;
    match dtype {
        Dtype::F32 => (!special(0x7f80_0000)).then(|| f32::from_bits(bits)),
        Dtype::Bf16 => (!special(0x7f80)).then(|| value(bits, 8, 7) as f32),
        Dtype::F16 => (!special(0x7c00)).then(|| value(bits, 5, 10) as f32),
        Dtype::F8E4m3 => (!special(0x7f)).then(|| value(bits, 4, 3) as f32),
    }
}

/// A matrix of random elements, its bytes, and its values in f32.
struct Example {
    rows: usize,
    cols: usize,
    dtype: Dtype,
    bytes: Bytes,
    scales: Option<BlockScales>,
    values: Vec<f32>,
}

impl Example {
    fn new(seed: u64, (rows, cols, block): (usize, usize, [usize; 2]), dtype: Dtype) -> Example {
        let chance = Chance::new(seed, Purpose::Problem);
        let blocks = rows.div_ceil(block[0]) * cols.div_ceil(block[1]);
        let scales = (dtype == Dtype::F8E4m3).then(|| BlockScales {
            block,
            values: normals(seed + 1, blocks).into(),
        });
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for i in 0..rows * cols {
            let random = chance.bits(1, i as u32)[0];
            let bits = match dtype {
                // Exponents near zero, and subnormals now and then.
                Dtype::F32 | Dtype::Bf16 => {
                    let near = random & 0x83ff_ffff | 0x3c00_0000;
                    let x = if i % 17 == 3 {
                        random & 0x807f_ffff
                    } else {
                        near
                    };
                    if dtype == Dtype::F32 { x } else { x >> 16 }
                }
                Dtype::F16 => random & 0xbfff,
                Dtype::F8E4m3 if random & 0x7f == 0x7f => 0,
                Dtype::F8E4m3 => random & 0xff,
            };
            bytes.extend(&bits.to_le_bytes()[..dtype.bytes()]);
            let value = finite(dtype, bits).expect("only finite elements are drawn");
            values.push(match &scales {
                Some(s) => {
                    let (r, c) = (i / cols / block[0], i % cols / block[1]);
                    value * s.values[r * cols.div_ceil(block[1]) + c]
                }
                None => value,
            });
        }
        let bytes = Bytes::from(bytes);
        Example {
            rows,
            cols,
            dtype,
            bytes,
            scales,
            values,
        }
    }

    fn matrix<'a>(&self, source: RowSource<'a>) -> StoredMatrix<'a> {
        StoredMatrix {
            rows: self.rows,
            cols: self.cols,
            dtype: self.dtype,
            source,
            scales: self.scales.clone(),
        }
    }

    fn store(&self, cpu: &Cpu, keep: Keep, precision: Precision, read: bool) -> Weight {
        let reader = Reader(&self.bytes, usize::MAX);
        let matrix = self.matrix(if read {
            RowSource::Reader(&reader)
        } else {
            RowSource::Memory(self.bytes.clone())
        });
        cpu.store(&matrix, keep, precision)
            .expect("this reader does not fail")
    }

    /// The oracle: packed from the values in f32.
    fn packed(&self, cpu: &Cpu, precision: Precision) -> Weight {
        let mut packed = Weight::new(self.rows, self.cols, precision);
        cpu.pack(Mat::new(&self.values, self.cols), &mut packed);
        packed
    }
}

/// Bytes to be read, of which those from some offset on cannot be.
struct Reader<'a>(&'a Bytes, usize);

impl ReadAt for Reader<'_> {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len();
        if end > self.1 {
            return Err(io::Error::other(format!("no byte {}", self.1.max(offset))));
        }
        out.copy_from_slice(&self.0.as_slice()[offset..end]);
        Ok(())
    }
}

fn product(cpu: &Cpu, w: &Weight, x: &[f32], transposed: bool, add: bool) -> Vec<u32> {
    let (k, n) = if transposed {
        (w.in_features(), w.out_features())
    } else {
        (w.out_features(), w.in_features())
    };
    let mut y = vec![0.75; x.len() / k * n];
    let (x, out) = (Mat::new(x, k), MatMut::new(&mut y, n));
    if transposed {
        cpu.matmul_nt(x, w, out, add);
    } else {
        cpu.matmul_nn(x, w, out, add);
    }
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn every_form_multiplies_as_panels_packed_from_f32_bit_for_bit() {
    let machines = machines();
    let oracle = Cpu::new(1, Isa::Portable);
    for (shape, dtype) in SHAPES.into_iter().flat_map(|s| DTYPES.map(|d| (s, d))) {
        let example = Example::new(7, shape, dtype);
        for (precision, transposed) in PRECISIONS.into_iter().flat_map(|p| [(p, true), (p, false)])
        {
            let packed = example.packed(&oracle, precision);
            let k = if transposed { shape.1 } else { shape.0 };
            let inputs = [1, 2, 7, 13, 97].map(|m| normals(m as u64, m * k));
            let want = inputs
                .each_ref()
                .map(|x| product(&oracle, &packed, x, transposed, x.len() > k));
            let panels = if transposed {
                Keep::Panels
            } else {
                Keep::PanelsTransposed
            };
            for (i, cpu) in machines.iter().enumerate() {
                for keep in [panels, Keep::Rows] {
                    let w = example.store(cpu, keep, precision, i % 2 == 0);
                    for (x, want) in inputs.iter().zip(&want) {
                        assert!(
                            *want == product(cpu, &w, x, transposed, x.len() > k),
                            "{shape:?} {dtype:?} {precision:?} {keep:?} transposed {transposed} \
                             {} x{}, {} rows",
                            cpu.isa(),
                            cpu.threads(),
                            x.len() / k
                        );
                    }
                }
            }
        }
    }
}

/// The halves of a last pair that no k fills meet a zero of the other operand, so only an infinity
/// there can show.
#[test]
fn an_infinity_stays_in_its_own_row() {
    let machines = machines();
    let oracle = Cpu::new(1, Isa::Portable);
    for dtype in DTYPES {
        let mut example = Example::new(21, (35, 33, [1, 4]), dtype);
        let mut bytes = example.bytes.as_slice().to_vec();
        // The elements beside the end of an odd row, and of the last one of an odd number.
        for at in [2 * 33, 34 * 33] {
            let infinity: &[u8] = match dtype {
                Dtype::F32 => &[0, 0, 0x80, 0x7f],
                Dtype::Bf16 => &[0x80, 0x7f],
                Dtype::F16 => &[0, 0x7c],
                // Infinite is its scale.
                Dtype::F8E4m3 => &[0x31],
            };
            bytes[at * infinity.len()..][..infinity.len()].copy_from_slice(infinity);
            example.values[at] = f32::INFINITY;
        }
        example.bytes = Bytes::from(bytes);
        if let Some(scales) = &mut example.scales {
            let mut values = scales.values.to_vec();
            (values[2 * 9], values[34 * 9]) = (f32::INFINITY, f32::INFINITY);
            scales.values = values.into();
            for row in [2 * 33, 34 * 33] {
                for at in row + 1..row + 4 {
                    let element = finite(dtype, example.bytes.as_slice()[at].into());
                    example.values[at] = element.expect("finite") * f32::INFINITY;
                }
            }
        }
        for precision in PRECISIONS {
            let packed = example.packed(&oracle, precision);
            for (transposed, panels) in [(true, Keep::Panels), (false, Keep::PanelsTransposed)] {
                let x = normals(4, 3 * if transposed { 33 } else { 35 });
                let numbers = |bits: Vec<u32>| -> Vec<Option<u32>> {
                    let number = |&b: &u32| !f32::from_bits(b).is_nan();
                    bits.into_iter().map(|b| Some(b).filter(number)).collect()
                };
                let want = numbers(product(&oracle, &packed, &x, transposed, false));
                assert!(want.iter().flatten().count() > want.len() / 2);
                for cpu in &machines {
                    for keep in [panels, Keep::Rows] {
                        let w = example.store(cpu, keep, precision, true);
                        let got = numbers(product(cpu, &w, &x, transposed, false));
                        assert!(
                            got == want,
                            "{dtype:?} {precision:?} {keep:?} {}",
                            cpu.isa()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn more_rows_than_an_item_takes_and_items_of_many_panels_change_nothing() {
    let (shape, m) = ((700, 300, [128, 128]), 2 * STORED_ROWS + 5);
    for dtype in DTYPES {
        let example = Example::new(3, shape, dtype);
        for precision in PRECISIONS {
            let x = normals(5, m * shape.1);
            let cpu = Cpu::new(2, Isa::best());
            let want = product(&cpu, &example.packed(&cpu, precision), &x, true, false);
            for keep in [Keep::Panels, Keep::Rows] {
                let w = example.store(&cpu, keep, precision, true);
                assert!(
                    want == product(&cpu, &w, &x, true, false),
                    "{dtype:?} {keep:?}"
                );
            }
        }
    }
}

/// The row block of forms that are converted.
const STORED_ROWS: usize = 384;

#[test]
fn one_grouped_call_takes_weights_in_different_forms() {
    let shape = (40, 130, [16, 32]);
    let offsets = [0u32, 3, 3, 20, 21, 40, 64];
    let x = normals(9, 64 * 130);
    for precision in PRECISIONS {
        for cpu in machines() {
            let examples: Vec<Example> = (0..6u64)
                .map(|g| Example::new(g, shape, DTYPES[g as usize % 4]))
                .collect();
            let packed: Vec<_> = examples.iter().map(|e| e.packed(&cpu, precision)).collect();
            let mixed: Vec<_> = examples
                .iter()
                .zip(&packed)
                .enumerate()
                .map(|(g, (e, packed))| match g % 3 {
                    0 => e.store(&cpu, Keep::Rows, precision, false),
                    1 => e.store(&cpu, Keep::Panels, precision, true),
                    _ => packed.clone(),
                })
                .collect();
            let run = |w: &[Weight]| {
                let mut y = vec![0.0; 64 * 40];
                let out = MatMut::new(&mut y, 40);
                cpu.grouped_matmul_nt(Mat::new(&x, 130), w, &offsets, out, false);
                let mut heads = vec![0.0; 3 * 240];
                let out = MatMut::new(&mut heads, 240);
                cpu.per_head_nt(Mat::new(&x[..3 * 780], 780), 130, w, out, 40, false);
                [y, heads]
            };
            assert_eq!(run(&packed), run(&mixed), "{precision:?} {}", cpu.isa());
        }
    }
}

#[test]
fn every_code_of_every_type_reads_as_its_definition_says() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F8E4m3] {
        let codes = 1u32 << (8 * dtype.bytes());
        let bytes: Vec<u8> = (0..codes)
            .flat_map(|c| c.to_le_bytes()[..dtype.bytes()].to_vec())
            .collect();
        let (rows, cols) = (codes as usize / 32, 32);
        let matrix = StoredMatrix {
            rows,
            cols,
            dtype,
            source: RowSource::Memory(Bytes::from(bytes)),
            scales: None,
        };
        for cpu in machines() {
            let w = cpu
                .store(&matrix, Keep::Rows, Precision::F32)
                .expect("memory does not fail");
            let ids: Vec<u32> = (0..rows as u32).collect();
            let mut got = vec![0.0; rows * cols];
            cpu.embedding_of(&ids, &w, MatMut::new(&mut got, cols));
            for (code, got) in (0..codes).zip(got) {
                let size = 8 * dtype.bytes() as u32;
                let negative = code >> (size - 1) == 1;
                let infinity = match dtype {
                    Dtype::Bf16 => code & 0x7fff == 0x7f80,
                    Dtype::F16 => code & 0x7fff == 0x7c00,
                    _ => false,
                };
                let right = match finite(dtype, code) {
                    Some(want) => got.to_bits() == want.to_bits(),
                    None if infinity => got.is_infinite() && got.is_sign_negative() == negative,
                    None => got.is_nan(),
                };
                assert!(right, "{dtype:?} {code:#x} is {got} on {}", cpu.isa());
            }
        }
    }
    assert_eq!(finite(Dtype::F8E4m3, 0x7e), Some(448.0));
}

#[test]
fn read_row_and_embedding_of_give_the_values_that_the_form_holds() {
    let shape = (70, 131, [32, 50]);
    let cpu = Cpu::new(2, Isa::best());
    let rounded = |x: f32| f32::from_bits(crate::simd::bf16_bits(x) << 16);
    for dtype in DTYPES {
        let example = Example::new(11, shape, dtype);
        for precision in PRECISIONS {
            let held = |keep: Option<Keep>, x: f32| match (keep, dtype) {
                (Some(Keep::Rows), _) => x,
                (Some(_), Dtype::Bf16) => x,
                _ if precision == Precision::Bf16 => rounded(x),
                _ => x,
            };
            let forms = [Keep::Rows, Keep::Panels, Keep::PanelsTransposed].map(Some);
            for keep in forms.into_iter().chain([None]) {
                let w = match keep {
                    Some(keep) => example.store(&cpu, keep, precision, true),
                    None => example.packed(&cpu, precision),
                };
                let ids = [69, 0, 33, 33, 31, 64];
                let mut y = vec![0.0; ids.len() * 131];
                cpu.embedding_of(&ids, &w, MatMut::new(&mut y, 131));
                for (&id, y) in ids.iter().zip(y.chunks_exact(131)) {
                    let row = &example.values[id as usize * 131..][..131];
                    let want: Vec<f32> = row.iter().map(|&x| held(keep, x)).collect();
                    let mut one = vec![0.0; 131];
                    w.read_row(id as usize, &mut one);
                    assert_eq!(one, want, "{dtype:?} {precision:?} {keep:?} row {id}");
                    assert_eq!(y, want, "{dtype:?} {precision:?} {keep:?} token {id}");
                }
            }
        }
    }
}

#[test]
fn bytes_are_those_of_the_form() {
    let cpu = Cpu::new(1, Isa::best());
    let example = Example::new(1, (64, 100, [32, 50]), Dtype::F8E4m3);
    let bytes = |keep, precision| example.store(&cpu, keep, precision, false).bytes();
    assert_eq!(bytes(Keep::Rows, Precision::F32), 6400 + 4 * 4);
    assert_eq!(bytes(Keep::Panels, Precision::F32), 4 * 6400);
    assert_eq!(bytes(Keep::Panels, Precision::Bf16), 2 * 6400);
    // 100 columns are four panels.
    assert_eq!(bytes(Keep::PanelsTransposed, Precision::Bf16), 2 * 64 * 128);
    let example = Example::new(1, (64, 100, [32, 50]), Dtype::Bf16);
    let w = example.store(&cpu, Keep::Panels, Precision::F32, false);
    assert_eq!(w.bytes(), 2 * 6400);
}

#[test]
fn the_error_of_a_reader_is_the_first_one_in_order() {
    let example = Example::new(2, (4000, 130, [1, 1]), Dtype::Bf16);
    // The first item that cannot be read begins with row 1024, at 260 bytes a row.
    let reader = Reader(&example.bytes, 300_000);
    for cpu in machines() {
        let matrix = example.matrix(RowSource::Reader(&reader));
        for keep in [Keep::Panels, Keep::PanelsTransposed] {
            let error = cpu
                .store(&matrix, keep, Precision::F32)
                .expect_err("bytes are missing");
            assert_eq!(error.to_string(), "no byte 300000");
        }
        assert!(cpu.store(&matrix, Keep::Rows, Precision::F32).is_err());
    }
}

#[test]
#[should_panic(expected = "dy w needs Keep::PanelsTransposed or Keep::Rows")]
fn a_direction_that_a_form_lacks_is_named() {
    let cpu = Cpu::new(1, Isa::best());
    let example = Example::new(2, (3, 4, [1, 1]), Dtype::Bf16);
    let w = example.store(&cpu, Keep::Panels, Precision::F32, false);
    product(&cpu, &w, &[1.0; 3], false, false);
}

#[test]
#[should_panic(expected = "bytes of 3 x 4")]
fn bytes_that_are_not_the_matrix_are_refused() {
    let mut example = Example::new(2, (3, 4, [1, 1]), Dtype::F32);
    example.bytes = example.bytes.slice(0..44);
    example.store(&Cpu::new(1, Isa::best()), Keep::Rows, Precision::F32, false);
}

#[test]
#[should_panic(expected = "token id 3, but the vocabulary has 3 tokens")]
fn a_token_beyond_the_weight_is_named() {
    let cpu = Cpu::new(1, Isa::best());
    let example = Example::new(2, (3, 4, [1, 1]), Dtype::F16);
    let w = example.store(&cpu, Keep::Rows, Precision::F32, false);
    cpu.embedding_of(&[2, 3], &w, MatMut::new(&mut [0.0; 8], 4));
}

/// One x with several weights at once, in every form: each product is what it is alone.
#[test]
fn several_weights_of_one_x_are_each_product_alone() {
    let chance = crate::Chance::new(11, crate::Purpose::Problem);
    let normals = |stream: u64, n: usize| -> Vec<f32> {
        (0..n)
            .map(|i| chance.normal(stream, i as u32) as f32)
            .collect()
    };
    for (keep, precision) in [
        (Keep::Panels, Precision::F32),
        (Keep::Panels, Precision::Bf16),
        (Keep::Rows, Precision::Bf16),
        (Keep::Q8, Precision::Bf16),
        (Keep::Q4, Precision::Bf16),
    ] {
        for (threads, rows, k) in [(1, 1, 70), (2, 5, 70), (3, 40, 130)] {
            let cpu = Cpu::new(threads, Isa::best());
            let x = normals(1, rows * k);
            let x = crate::Mat::new(&x, k);
            let weights = [33, 64, 7].map(|out| {
                let values = normals(out as u64, out * k);
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let matrix = StoredMatrix {
                    rows: out,
                    cols: k,
                    dtype: Dtype::F32,
                    source: RowSource::Memory(Bytes::from(bytes)),
                    scales: None,
                };
                cpu.store_weight(&matrix, keep, precision)
                    .expect("in memory")
            });
            let mut alone = weights
                .each_ref()
                .map(|w| vec![0.0; rows * w.out_features()]);
            for (w, y) in weights.iter().zip(&mut alone) {
                let y = crate::MatMut::new(y, w.out_features());
                crate::Backend::matmul_nt(&cpu, x, w, y, false);
            }
            let mut together = weights
                .each_ref()
                .map(|w| vec![7.0; rows * w.out_features()]);
            let outputs = weights.iter().zip(&mut together);
            let outputs = outputs.map(|(w, y)| (w, crate::MatMut::new(y, w.out_features())));
            crate::Backend::matmul_nt_each(&cpu, x, &mut outputs.collect::<Vec<_>>());
            assert!(alone == together, "{keep:?} {precision:?} {rows} rows");
        }
    }
}

/// What few bits keep of a file's rows is what they keep of the same values in f32.
#[test]
fn few_bits_of_a_file_are_those_of_its_values() {
    let chance = crate::Chance::new(12, crate::Purpose::Problem);
    let (rows, cols) = (70, 45);
    let values: Vec<f32> = (0..rows * cols)
        .map(|i| chance.normal(0, i as u32) as f32)
        .collect();
    let bf16: Vec<u16> = values.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
    let widened: Vec<f32> = bf16
        .iter()
        .map(|&b| f32::from_bits(u32::from(b) << 16))
        .collect();
    for (keep, bits) in [(Keep::Q8, Bits::Eight), (Keep::Q4, Bits::Four)] {
        for threads in [1, 3] {
            let cpu = Cpu::new(threads, Isa::best());
            let matrix = StoredMatrix {
                rows,
                cols,
                dtype: Dtype::Bf16,
                source: RowSource::Memory(Bytes::from(
                    bf16.iter()
                        .flat_map(|b| b.to_le_bytes())
                        .collect::<Vec<u8>>(),
                )),
                scales: None,
            };
            let kept = cpu
                .store_weight(&matrix, keep, Precision::Bf16)
                .expect("in memory");
            let mut panels = QuantPanels::new(bits, rows, cols);
            cpu.quantise(crate::Mat::new(&widened, cols), &mut panels);
            for row in 0..rows {
                let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
                kept.read_row(row, &mut got);
                panels.read_row(row, &mut want);
                assert!(got == want, "{keep:?} row {row}");
            }
        }
    }
}

//! The ways ggml stores the elements of a tensor: their numbers, names and block sizes.

/// How the elements of a tensor are stored. Numbers and sizes: `enum ggml_type` in `ggml.h` and
/// the block structures in `ggml-common.h` of <https://github.com/ggml-org/llama.cpp>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    F64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    /// A type of known size whose elements are not read here.
    Other(OtherType),
}

/// A type that [`dequantize`](super::dequantize) does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherType(Row);

/// Number, name, elements in a block, bytes of a block.
type Row = (u32, &'static str, usize, usize);

const READ: [(GgmlType, Row); 14] = [
    (GgmlType::F32, (0, "F32", 1, 4)),
    (GgmlType::F16, (1, "F16", 1, 2)),
    (GgmlType::BF16, (30, "BF16", 1, 2)),
    (GgmlType::F64, (28, "F64", 1, 8)),
    (GgmlType::Q4_0, (2, "Q4_0", 32, 18)),
    (GgmlType::Q4_1, (3, "Q4_1", 32, 20)),
    (GgmlType::Q5_0, (6, "Q5_0", 32, 22)),
    (GgmlType::Q5_1, (7, "Q5_1", 32, 24)),
    (GgmlType::Q8_0, (8, "Q8_0", 32, 34)),
    (GgmlType::Q2K, (10, "Q2_K", 256, 84)),
    (GgmlType::Q3K, (11, "Q3_K", 256, 110)),
    (GgmlType::Q4K, (12, "Q4_K", 256, 144)),
    (GgmlType::Q5K, (13, "Q5_K", 256, 176)),
    (GgmlType::Q6K, (14, "Q6_K", 256, 210)),
];

const OTHERS: [Row; 20] = [
    (9, "Q8_1", 32, 40),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl GgmlType {
    /// The type of this number in a file, or `None` if no such type is known.
    pub fn from_number(number: u32) -> Option<GgmlType> {
        let read = READ.iter().find(|(_, row)| row.0 == number);
        let other = || OTHERS.iter().find(|row| row.0 == number);
        match read {
            Some((kind, _)) => Some(*kind),
            None => other().map(|row| GgmlType::Other(OtherType(*row))),
        }
    }

    fn row(self) -> Row {
        if let GgmlType::Other(OtherType(row)) = self {
            return row;
        }
        let found = READ.iter().find(|(kind, _)| *kind == self);
        found.expect("every type that is read has a row").1
    }

    /// Its number in a file.
    pub fn number(self) -> u32 {
        self.row().0
    }

    /// ggml's name for it, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements that share one block: 1, 32 or 256. A row holds whole blocks.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Whether [`dequantize`](super::dequantize) knows it.
    pub fn is_read(self) -> bool {
        !matches!(self, GgmlType::Other(_))
    }

    /// Whether [`quantize`](super::quantize) knows it.
    pub fn is_written(self) -> bool {
        use GgmlType::{BF16, F16, F32, Q4_0, Q8_0};
        matches!(self, F32 | F16 | BF16 | Q8_0 | Q4_0)
    }

    /// Bytes of a tensor of this shape, or `None` if that overflows or a row is no whole number
    /// of blocks. The last dimension is the row.
    pub fn tensor_bytes(self, shape: &[u64]) -> Option<u64> {
        let row = *shape.last()?;
        if !row.is_multiple_of(self.block_len() as u64) {
            return None;
        }
        let elements = shape
            .iter()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
        (elements / self.block_len() as u64).checked_mul(self.block_bytes() as u64)
    }
}

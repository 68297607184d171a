//! Arithmetic.
mod chance;
mod cpu;
mod gemm;
mod isa;
mod mat;
pub mod math;
mod ops;
mod pool;
mod simd;
pub use chance::{Chance, Purpose};
pub use cpu::Cpu;
pub use gemm::PackedWeight;
pub use isa::Isa;
pub use mat::{Mat, MatMut};
pub use pool::Pool;

/// What the operands of a matrix product are rounded to; sums are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// 32-bit lanes that hold k values.
    fn lanes(self, k: usize) -> usize {
        match self {
            Precision::F32 => k,
            Precision::Bf16 => k.div_ceil(2),
        }
    }
}

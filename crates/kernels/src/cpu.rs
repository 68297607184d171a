//! The processor as a backend: threads and an instruction set.

use crate::{Isa, Pool};
use std::sync::Mutex;

/// Runs every op on this machine's cores.
pub struct Cpu {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    /// Operands converted or packed for one product; kept so that no step allocates.
    pub(crate) scratch: Mutex<Vec<u32>>,
}

impl Cpu {
    /// `threads` in all, on the instruction set given.
    ///
    /// # Panics
    /// If the machine lacks the instruction set.
    pub fn new(threads: usize, isa: Isa) -> Cpu {
        assert!(isa.is_available(), "this machine has no {isa}");
        Cpu { pool: Pool::new(threads), isa, scratch: Mutex::new(Vec::new()) }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

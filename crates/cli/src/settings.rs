//! Options that every command has, the environment variables read, and the machine they choose.

use std::env;
use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use kernels::{Cpu, Isa, Precision};
use model::Numerics;

use crate::failure::{Failure, Outcome};
use crate::progress::{Style, Ui};

/// The thread count when `--threads` is not given; a convention shared with other programs.
pub const THREADS_VARIABLE: &str = "OMP_NUM_THREADS";

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Settings {
    /// Threads to compute with; results are the same bytes for any number [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set: portable, avx2, avx512 or avx512bf16 [default: the fastest here]
    #[arg(long, global = true, value_name = "NAME")]
    pub isa: Option<Isa>,
    /// What matrix products round their inputs to; sums are f32. Commands that compute take bf16 or
    /// f32; `plan` and `audit`, which only reckon, take bf16, fp8 or fp4 [default: bf16]
    #[arg(long, global = true, value_name = "NAME")]
    pub precision: Option<PrecisionName>,
    /// Seed of all randomness [default: 0, or what the run's configuration says]
    #[arg(long, global = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Results as JSON on standard output; everything else goes to standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no remarks; errors and results only
    #[arg(long, global = true)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    F32,
    Bf16,
    Fp8,
    Fp4,
}

impl PrecisionName {
    fn name(self) -> &'static str {
        match self {
            PrecisionName::F32 => "f32",
            PrecisionName::Bf16 => "bf16",
            PrecisionName::Fp8 => "fp8",
            PrecisionName::Fp4 => "fp4",
        }
    }
}

/// # Panics
/// On a precision that nothing here computes in: [`Settings::check_computed`] comes first.
impl From<PrecisionName> for train::PrecisionName {
    fn from(name: PrecisionName) -> train::PrecisionName {
        match name {
            PrecisionName::F32 => train::PrecisionName::F32,
            PrecisionName::Bf16 => train::PrecisionName::Bf16,
            other => panic!("{} was refused before the command ran", other.name()),
        }
    }
}

impl Settings {
    pub fn backend(&self) -> Cpu {
        Cpu::new(self.thread_count(), self.isa())
    }

    pub fn isa(&self) -> Isa {
        self.isa.unwrap_or_else(Isa::best)
    }

    pub fn thread_count(&self) -> usize {
        let given = self.threads.map(usize::from);
        given.or_else(threads_variable).unwrap_or_else(cores)
    }

    pub fn precision(&self) -> Precision {
        train::PrecisionName::from(self.precision.unwrap_or(PrecisionName::Bf16)).into()
    }

    /// For commands that compute.
    ///
    /// # Errors
    /// The precision asked for is one that this program only reckons with.
    pub fn check_computed(&self) -> Outcome {
        match self.precision {
            Some(name @ (PrecisionName::Fp8 | PrecisionName::Fp4)) => Err(Failure::usage(
                format!("{} is a precision of `plan` and `audit`", name.name()),
                "this command computes in bf16 or f32",
            )),
            _ => Ok(()),
        }
    }

    /// For commands that reckon: bf16 where none was asked for.
    ///
    /// # Errors
    /// The precision asked for is one that nobody trains large models in.
    pub fn planned_precision(&self) -> Result<plan::job::Precision, Failure> {
        match self.precision.unwrap_or(PrecisionName::Bf16) {
            PrecisionName::Bf16 => Ok(plan::job::Precision::Bf16),
            PrecisionName::Fp8 => Ok(plan::job::Precision::Fp8),
            PrecisionName::Fp4 => Ok(plan::job::Precision::Fp4),
            PrecisionName::F32 => Err(Failure::usage(
                "f32 is a precision of commands that compute",
                "reckon with bf16, fp8 or fp4",
            )),
        }
    }

    pub fn numerics(&self) -> Numerics {
        Numerics::new(self.precision())
    }

    pub fn ui(&self) -> Ui {
        let style = match (self.quiet, std::io::stderr().is_terminal()) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        Ui::new(style)
    }
}

/// A positive number in [`THREADS_VARIABLE`]; anything else counts as absent.
pub fn threads_variable() -> Option<usize> {
    let value = env::var(THREADS_VARIABLE).ok()?;
    value
        .trim()
        .parse()
        .ok()
        .filter(|threads| (1..=1024).contains(threads))
}

/// Cores this process may use, a container's quota included.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

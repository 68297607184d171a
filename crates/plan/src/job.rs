//! What is to be computed, by which machine, and how.

use serde::{Deserialize, Serialize};

use crate::chip::Chip;
use crate::efficiency::{Efficiencies, Efficiency};
use crate::layout::Layout;
use crate::quantity::{BytesPerSecond, FlopsPerSecond};
use crate::shape::Shape;

/// What operands of the large products are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Or FP16, which is as fast.
    Bf16,
    /// With scales per tensor, per block or in hardware (MXFP8).
    Fp8,
    /// NVFP4.
    Fp4,
}

impl Precision {
    pub const ALL: [Precision; 3] = [Precision::Bf16, Precision::Fp8, Precision::Fp4];

    pub fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::Fp8 => "fp8",
            Precision::Fp4 => "fp4",
        }
    }

    /// Bytes of an operand.
    pub fn bytes(self) -> f64 {
        match self {
            Precision::Bf16 => 2.0,
            Precision::Fp8 => 1.0,
            Precision::Fp4 => 0.5,
        }
    }

    /// What the chip's data sheet says of it.
    pub fn peak(self, chip: &Chip) -> Option<FlopsPerSecond> {
        match self {
            Precision::Bf16 => chip.bf16,
            Precision::Fp8 => chip.fp8,
            Precision::Fp4 => chip.fp4,
        }
    }
}

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionKernel {
    /// Scores go through memory.
    Unfused,
    /// FlashAttention-2, written for A100: slower than can be on what came later.
    Flash2,
    /// Written for the chip at hand (FlashAttention-3, cuDNN).
    Native,
}

/// What software does of what is known to be possible. The default is what the best does now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Software {
    pub attention: AttentionKernel,
    /// Attention's products in 8 bits where the others are.
    pub fp8_attention: bool,
    /// Norms and residual stream divided over tensor parallelism, along the sequence.
    pub sequence_parallel: bool,
    /// Tensor parallelism's exchanges beside products.
    pub overlap_tensor: bool,
    /// Experts' exchanges beside another micro-batch's compute.
    pub overlap_experts: bool,
    /// Gradients and weights of data parallelism beside compute.
    pub overlap_data: bool,
    /// Share of kernels that the host starts one by one; graphs replay the others.
    pub launched: f64,
    /// Bytes of a gradient while it is summed over micro-batches.
    pub gradient_bytes: u64,
    /// Bytes of each of Adam's two moments.
    pub moment_bytes: u64,
    /// Whether a token's experts are sent to each machine once (DeepEP), not once per expert.
    pub deduplicated: bool,
    /// Whether each chip of tensor parallelism sends its part of the stream to the next stage, and
    /// not all of them the whole.
    pub scattered: bool,
    /// Its steps by what the formulas say, as published steps have shown.
    pub slowdown: f64,
}

impl Default for Software {
    fn default() -> Software {
        Software {
            attention: AttentionKernel::Native,
            fp8_attention: false,
            sequence_parallel: true,
            overlap_tensor: false,
            overlap_experts: true,
            overlap_data: true,
            launched: 0.0,
            gradient_bytes: 4,
            moment_bytes: 4,
            deduplicated: true,
            scattered: true,
            slowdown: 1.0,
        }
    }
}

/// Chips and what joins them.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub chip: Chip,
    pub chips: u64,
}

/// A step of training.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub shape: &'a Shape,
    pub cluster: &'a Cluster,
    pub seq_len: u64,
    pub batch_seqs: u64,
    pub precision: Precision,
    /// Whether the modules of multi-token prediction are trained too.
    pub with_mtp: bool,
    pub layout: Layout,
    pub software: Software,
    pub efficiencies: &'a Efficiencies,
}

/// 400 Gbit/s: what is taken where the catalogue names no link between machines.
const USUAL_SCALE_OUT: BytesPerSecond = BytesPerSecond(50e9);

/// Chips with 8-bit floats, and all that came after them; not the A800, which is an A100.
fn lowers_its_clocks(chip: &Chip) -> bool {
    let since = chip.launch.is_some_and(|launch| launch.year() >= 2023);
    chip.fp8.is_some() || since
}

impl Cluster {
    pub fn new(chip: Chip, chips: u64) -> Cluster {
        Cluster { chip, chips }
    }

    /// Chips that are joined by the fast links.
    pub fn domain(&self) -> u64 {
        self.chip.scale_up_chips.unwrap_or(1).max(1)
    }

    /// Rate of the links inside a domain, per chip and direction, by the data sheet.
    pub fn scale_up(&self) -> BytesPerSecond {
        self.chip.scale_up.unwrap_or(self.scale_out())
    }

    /// Rate of the links between domains, per chip and direction, by the data sheet.
    pub fn scale_out(&self) -> BytesPerSecond {
        self.chip.scale_out.unwrap_or(USUAL_SCALE_OUT)
    }
}

impl Job<'_> {
    /// Whether attention's scores stay out of memory.
    pub fn fused_attention(&self) -> bool {
        self.software.attention != AttentionKernel::Unfused
    }

    pub fn efficiency(&self, name: Efficiency) -> f64 {
        self.efficiencies.get(name)
    }

    /// Tokens of a micro-batch on one chip, before tensor parallelism divides anything.
    pub fn tokens(&self) -> f64 {
        (self.layout.mbs * self.seq_len) as f64 / self.layout.cp as f64
    }

    /// Rate of products in a precision, as reached.
    ///
    /// # Panics
    /// If the chip has no such rate; [`crate::step::step`] asks first.
    pub fn matmul_rate(&self, precision: Precision) -> FlopsPerSecond {
        let chip = &self.cluster.chip;
        let peak = precision.peak(chip).expect("a precision that the chip has");
        let unmeasured = self.efficiency(Efficiency::Unmeasured);
        let share = match precision {
            Precision::Bf16 => chip.gemm_bf16.or(chip.gemm_fp8).unwrap_or(unmeasured),
            Precision::Fp8 => chip.gemm_fp8.or(chip.gemm_bf16).unwrap_or(unmeasured),
            Precision::Fp4 => self.efficiency(Efficiency::MatmulFp4),
        };
        let clocks = if lowers_its_clocks(chip) {
            self.efficiency(Efficiency::Clocks)
        } else {
            1.0
        };
        peak * share * clocks
    }

    pub fn memory_rate(&self) -> BytesPerSecond {
        let rate = self.cluster.chip.memory_bandwidth;
        rate.expect("a chip with a memory") * self.efficiency(Efficiency::Memory)
    }

    /// Rate of an exchange among `chips` neighbours, per chip and direction.
    pub fn link_rate(&self, chips: u64) -> BytesPerSecond {
        if chips <= self.cluster.domain() {
            self.cluster.scale_up() * self.efficiency(Efficiency::ScaleUp)
        } else {
            self.cluster.scale_out() * self.efficiency(Efficiency::ScaleOut)
        }
    }
}

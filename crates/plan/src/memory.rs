//! Bytes on the fullest chip, by what they hold.

use serde::Serialize;

use crate::job::{Job, Precision};
use crate::layout::{Recompute, Schedule};
use crate::partition::{Unit, UnitKind};
use crate::quantity::Bytes;
use crate::shape::{Attention, Layer, Part, Product, Split};

/// What programs leave of a chip's memory after driver, libraries, exchange buffers and gaps.
pub const USABLE: f64 = 0.94;

/// Bytes on the fullest chip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    pub weights: Bytes,
    pub gradients: Bytes,
    /// Masters in f32 and Adam's moments.
    pub optimizer: Bytes,
    pub activations: Bytes,
    /// Logits and their gradients, on the stage that has the head.
    pub logits: Bytes,
    /// The largest gradient of a matrix outside the experts in f32, before it is added (gate and up
    /// are one matrix); with ZeRO 3 what is gathered of a layer, too.
    pub workspace: Bytes,
    /// Weights outside the experts that the chip works with.
    #[serde(skip)]
    pub dense_parameters: f64,
    #[serde(skip)]
    pub expert_parameters: f64,
    /// Gradients that the chip's share of the optimizer reads.
    #[serde(skip)]
    pub gradients_of_optimizer: Bytes,
}

impl Memory {
    pub fn total(&self) -> Bytes {
        self.named().iter().map(|(_, bytes)| *bytes).sum()
    }

    pub fn named(&self) -> [(&'static str, Bytes); 6] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("logits", self.logits),
            ("workspace", self.workspace),
        ]
    }

    /// Whether a chip with so much memory holds it.
    pub fn fits(&self, memory: Bytes) -> bool {
        self.total() <= memory * USABLE
    }
}

/// Of the stage that needs most.
pub fn memory(job: &Job, units: &[Unit], stages: &[Vec<usize>]) -> Memory {
    let all = stages.iter().enumerate();
    let all = all.map(|(stage, held)| of_stage(job, units, held, stage as u64));
    all.max_by(|a, b| a.total().0.total_cmp(&b.total().0))
        .expect("a pipeline has stages")
}

fn of_stage(job: &Job, units: &[Unit], held: &[usize], stage: u64) -> Memory {
    let layout = &job.layout;
    let [mut dense, mut expert] = [0.0, 0.0];
    let [mut kept, mut largest] = [0.0, 0.0_f64];
    for &unit in held {
        let [of_dense, of_expert] = parameters(job, &units[unit].kind);
        dense += of_dense;
        expert += of_expert;
        kept += match units[unit].kind {
            UnitKind::Layer(layer) | UnitKind::Mtp(layer) => {
                largest = largest.max(largest_matrix(job, layer));
                activation_bytes(job, layer)
            }
            UnitKind::Embedding | UnitKind::Head => 0.0,
        };
    }
    let copies = layout.schedule.copies() as f64;
    let in_flight = in_flight(job, stage) / copies;
    let mut memory = states(job, dense, expert, copies);
    memory.activations = Bytes(kept * job.tokens() * in_flight);
    memory.workspace = Bytes(4.0 * largest);
    if layout.zero == 3 {
        // A unit's weights whole, those of the next on their way, and its gradients.
        let unit = held.iter().map(|&unit| {
            let [dense, expert] = parameters(job, &units[unit].kind);
            dense + expert
        });
        let unit = unit.fold(0.0, f64::max);
        memory.workspace += Bytes((2.0 * 2.0 + job.software.gradient_bytes as f64) * unit);
    }
    let has = |wanted: fn(&UnitKind) -> bool| held.iter().any(|&unit| wanted(&units[unit].kind));
    if has(|kind| matches!(kind, UnitKind::Head)) {
        // In 16 bits, and their gradient in f32.
        let logits = job.tokens() * job.shape.vocab_size as f64 / layout.tp as f64;
        memory.logits = Bytes(6.0 * logits);
    }
    memory
}

/// Weights, gradients and optimizer of a chip that holds so many parameters.
fn states(job: &Job, dense: f64, expert: f64, copies: f64) -> Memory {
    let (layout, software) = (&job.layout, &job.software);
    let groups = [
        (dense, (layout.dp(job.cluster.chips) * layout.cp) as f64),
        (expert, layout.expert_dp(job.cluster.chips) as f64),
    ];
    let sharded = |from: u64, bytes: f64| {
        let per_group = groups.map(|(parameters, group)| {
            let group = if layout.zero >= from { group } else { 1.0 };
            parameters * bytes / group
        });
        Bytes(per_group.iter().sum())
    };
    let gradient = software.gradient_bytes as f64;
    let state = 4.0 + 2.0 * software.moment_bytes as f64;
    // Two stages' weights are on each chip of DualPipe, and each stage's on two chips: the state
    // is divided among both.
    Memory {
        weights: sharded(3, 2.0),
        gradients: sharded(2, gradient),
        optimizer: sharded(1, state) / copies,
        dense_parameters: dense,
        expert_parameters: expert,
        gradients_of_optimizer: sharded(1, gradient) / copies,
        ..Memory::default()
    }
}

/// Parameters of the largest matrix outside the experts that a chip works with.
fn largest_matrix(job: &Job, layer: &Layer) -> f64 {
    let products = layer.products(job.shape.hidden_size);
    let single = products.iter().filter(|product| product.stored == 1);
    let size = |product: &Product| {
        let fused = if product.name == "up_proj" && layer.feed_forward.gated {
            2
        } else {
            1
        };
        (fused * product.inputs * product.outputs) as f64
    };
    single.map(size).fold(0.0, f64::max) / job.layout.tp as f64
}

/// Dense and expert parameters of a unit on one chip.
fn parameters(job: &Job, kind: &UnitKind) -> [f64; 2] {
    let (layout, shape) = (&job.layout, job.shape);
    let tp = layout.tp as f64;
    let of_layer = |layer: &Layer| {
        let [mut dense, mut expert] = [0.0, 0.0];
        for product in layer.products(shape.hidden_size) {
            let parameters = product.parameters() as f64;
            match (product.part, product.split) {
                (Part::RoutedExperts, _) if layout.ep > 1 => {
                    expert += parameters / layout.ep as f64
                }
                (Part::RoutedExperts, _) => dense += parameters / tp,
                (_, Split::Whole) => dense += parameters,
                _ => dense += parameters / tp,
            }
        }
        [
            dense + layer.vectors(shape.hidden_size, shape.norm_vectors) as f64,
            expert,
        ]
    };
    let table = (shape.vocab_size * shape.hidden_size) as f64 / tp;
    match kind {
        UnitKind::Embedding => [table, 0.0],
        UnitKind::Layer(layer) => of_layer(layer),
        UnitKind::Mtp(layer) => {
            let [dense, expert] = of_layer(layer);
            [dense + shape.mtp_projection().parameters() as f64, expert]
        }
        // A tied head on another stage is a copy of the table.
        UnitKind::Head if shape.tie_word_embeddings && layout.pp == 1 => [0.0, 0.0],
        UnitKind::Head => [table, 0.0],
    }
}

/// Micro-batches whose activations a stage holds at once.
fn in_flight(job: &Job, stage: u64) -> f64 {
    let layout = &job.layout;
    let rounds = layout.micro_batches(job.cluster.chips, job.batch_seqs) as f64;
    let (pp, chunks) = (layout.pp as f64, layout.chunks as f64);
    let most = match layout.schedule {
        Schedule::OneForwardOneBackward | Schedule::Zb1p => pp - stage as f64,
        // In chunks: 2 (p - stage - 1) + (v - 1) p + 1, of v to a stage.
        Schedule::Interleaved => (2.0 * (pp - stage as f64) - 1.0 + (chunks - 1.0) * pp) / chunks,
        Schedule::DualPipe => pp + 1.0,
    };
    most.min(rounds)
}

/// Bytes that one layer keeps of one token for the backward pass (Korthikanti et al., section 4,
/// with MLA and experts).
pub fn activation_bytes(job: &Job, layer: &Layer) -> f64 {
    let hidden = job.shape.hidden_size as f64;
    let tp = job.layout.tp as f64;
    let stream = if job.software.sequence_parallel {
        hidden / tp
    } else {
        hidden
    };
    if job.layout.recompute == Recompute::Full {
        return 2.0 * stream;
    }
    let selective = job.layout.recompute == Recompute::Selective;
    let cheap = selective && job.fused_attention();
    let operand = if job.precision == Precision::Bf16 {
        2.0
    } else {
        1.0
    };
    // What the two norms see, and what they give unless it is computed again.
    let mut bytes = 4.0 * stream;
    if !cheap {
        bytes += 2.0 * operand * stream;
    }
    bytes += attention_bytes(&layer.attention, tp, cheap, operand);
    let feed_forward = &layer.feed_forward;
    let mut width = feed_forward.width as f64 / tp;
    if let Some(experts) = &feed_forward.experts {
        let active = experts.active as f64;
        width += (active * experts.width as f64 + experts.shared_width as f64) / tp;
        // Copies that went to experts, and what they gave back.
        bytes += active * hidden / tp * (operand + if cheap { 0.0 } else { 2.0 });
    }
    let matrices = if feed_forward.gated { 2.0 } else { 1.0 };
    // Whoever computes activations again may keep their inputs rounded (DeepSeek-V3, 3.3.3).
    bytes += if cheap { operand } else { 2.0 } * matrices * width;
    if !cheap {
        bytes += operand * width;
    }
    if !job.fused_attention() {
        // Masks of dropout, and the scores unless they are computed again.
        bytes += 2.0 * stream;
        if !selective {
            let heads = layer.attention.num_heads() as f64 / tp;
            bytes += 5.0 * heads * job.seq_len as f64;
        }
    }
    bytes
}

/// Queries, keys, values and what the output projection sees.
fn attention_bytes(attention: &Attention, tp: f64, cheap: bool, operand: f64) -> f64 {
    match attention {
        Attention::Mla(mla) => {
            let latents = (mla.q_lora_rank.unwrap_or(0) + mla.latent_width()) as f64;
            let out = (mla.num_heads * mla.v_head_dim) as f64 / tp;
            let expanded = (mla.num_heads * (2 * mla.qk_head_dim() + mla.v_head_dim)) as f64 / tp;
            let kept = if cheap { 0.0 } else { 2.0 * expanded };
            2.0 * latents + kept + 2.0 * out
        }
        Attention::Grouped(grouped) => {
            let heads = (grouped.num_heads + 2 * grouped.num_kv_heads) * grouped.head_dim;
            let out = (grouped.num_heads * grouped.head_dim) as f64 / tp;
            2.0 * heads as f64 / tp + operand.max(1.0) * out
        }
    }
}

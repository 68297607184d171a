//! Time that one chip spends on one layer for one micro-batch.

use crate::efficiency::Efficiency;
use crate::job::{AttentionKernel, Job, Precision};
use crate::layout::Recompute;
use crate::quantity::{Bytes, Flops, FlopsPerSecond, Seconds};
use crate::shape::{Attention, Experts, Layer, Part, Product, Split};

/// Rows and columns of what one processor of a chip works out at a time, and how many work at once:
/// usual figures of accelerators with about 130 processors.
const TILE: [f64; 2] = [128.0, 256.0];
const WAVE: f64 = 128.0;

/// The chip that [`WAVE`] and [`TILE`] are meant for.
const A100: FlopsPerSecond = FlopsPerSecond(312e12);

/// Elements of a product that a chip works out at once: the faster it is, the larger its tiles.
fn wave(job: &Job) -> f64 {
    let peak = job.cluster.chip.bf16.expect("a chip that was checked");
    let growth = (peak / A100).powf(job.efficiency(Efficiency::TileGrowth));
    WAVE * TILE[0] * TILE[1] * growth
}

/// Time on the chip by what it is spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub matmul: Seconds,
    pub attention: Seconds,
    pub elementwise: Seconds,
    /// Tensor and context parallelism's exchanges, as far as nothing hides them.
    pub tensor: Seconds,
    /// Experts' exchanges, whole.
    pub experts: Seconds,
    /// Kernels started.
    pub kernels: f64,
}

/// A layer's passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerTime {
    pub forward: Work,
    /// Gradients of what came in, and what is computed again for them.
    pub backward: Work,
    /// Gradients of the weights.
    pub weights: Work,
}

impl Work {
    pub fn add(&mut self, other: &Work, times: f64) {
        self.matmul += other.matmul * times;
        self.attention += other.attention * times;
        self.elementwise += other.elementwise * times;
        self.tensor += other.tensor * times;
        self.experts += other.experts * times;
        self.kernels += other.kernels * times;
    }

    pub fn times(&self, factor: f64) -> Work {
        let mut work = Work::default();
        work.add(self, factor);
        work
    }

    /// All but the experts' exchanges.
    pub fn compute(&self, job: &Job) -> Seconds {
        let each = job.efficiency(Efficiency::Kernel)
            + job.software.launched * job.efficiency(Efficiency::Launch);
        let kernels = Seconds(self.kernels * each);
        self.matmul + self.attention + self.elementwise + self.tensor + kernels
    }
}

impl LayerTime {
    pub fn add(&mut self, other: &LayerTime, times: f64) {
        self.forward.add(&other.forward, times);
        self.backward.add(&other.backward, times);
        self.weights.add(&other.weights, times);
    }
}

/// One layer of the model.
pub fn layer_time(job: &Job, layer: &Layer) -> LayerTime {
    let hidden = job.shape.hidden_size;
    let mut time = LayerTime::default();
    for product in layer.products(hidden) {
        let once = matmul(job, &product);
        time.forward.add(&once, 1.0);
        time.backward.add(&once, 1.0);
        time.weights.add(&once, 1.0);
        if job.layout.recompute == Recompute::Selective && is_up_projection(&product) {
            time.backward.add(&once, 1.0);
        }
    }
    let [core, core_backward] = attention_core(job, &layer.attention);
    time.forward.add(&core, 1.0);
    time.backward.add(&core_backward, 1.0);
    let ring = context_exchange(job, layer, 1.0, &core);
    time.forward.add(&ring, 1.0);
    let ring = context_exchange(job, layer, 2.0, &core_backward);
    time.backward.add(&ring, 1.0);
    let [moved, moved_backward] = elementwise(job, layer);
    time.forward.add(&moved, 1.0);
    time.backward.add(&moved_backward, 1.0);
    let tensor = tensor_exchange(job, layer);
    time.forward.add(&tensor, 1.0);
    time.backward.add(&tensor, 1.0);
    let experts = expert_exchange(job, layer);
    time.forward.add(&experts, 1.0);
    time.backward.add(&experts, 1.0);
    match job.layout.recompute {
        Recompute::None => {}
        Recompute::Selective => {
            // Norms and activations once more; the core where its scores were not kept.
            time.backward.add(&moved, 0.5);
            if !job.fused_attention() {
                time.backward.add(&core, 1.0);
            }
        }
        Recompute::Full => time.backward.add(&time.forward.clone(), 1.0),
    }
    time
}

/// Hidden states to logits, the loss, and back.
pub fn head_time(job: &Job) -> LayerTime {
    let head = job.shape.head();
    let once = matmul(job, &head);
    let logits = job.tokens() * head.outputs as f64 / job.layout.tp as f64;
    // Written in 16 bits, read and written in f32 by the loss, once each way.
    let loss = Work {
        elementwise: Bytes(8.0 * logits) / job.memory_rate(),
        kernels: 4.0,
        ..Work::default()
    };
    let mut time = LayerTime::default();
    time.forward.add(&once, 1.0);
    time.forward.add(&loss, 1.0);
    time.backward.add(&once, 1.0);
    time.backward.add(&loss, 1.0);
    time.weights.add(&once, 1.0);
    time
}

/// A module of multi-token prediction, its share of the head left out.
pub fn mtp_time(job: &Job) -> LayerTime {
    let mut time = layer_time(job, job.shape.last_layer());
    let once = matmul(job, &job.shape.mtp_projection());
    time.forward.add(&once, 1.0);
    time.backward.add(&once, 1.0);
    time.weights.add(&once, 1.0);
    time
}

/// MLA's projections out of its latents: what DeepSeek computes again.
fn is_up_projection(product: &Product) -> bool {
    matches!(product.name, "q_b_proj" | "kv_b_proj")
}

/// One pass through a product: forward, or one of the two of the backward.
fn matmul(job: &Job, product: &Product) -> Work {
    let precision = match product.part {
        Part::Router | Part::Head | Part::MtpProjection => Precision::Bf16,
        _ => job.precision,
    };
    let tp = job.layout.tp as f64;
    let mut rows = job.tokens() * product.used as f64;
    let (mut inputs, mut outputs) = (product.inputs as f64, product.outputs as f64);
    let grouped = product.stored > 1;
    match product.split {
        _ if grouped => rows /= tp,
        Split::Outputs => outputs /= tp,
        Split::Inputs => inputs /= tp,
        Split::Whole if job.software.sequence_parallel => rows /= tp,
        Split::Whole => {}
    }
    let held = if grouped {
        (product.stored as f64 / job.layout.ep as f64).max(1.0)
    } else {
        1.0
    };
    let rate = job.matmul_rate(precision);
    let mut padded = rows;
    if grouped {
        // Each expert's rows fill whole tiles.
        padded += held * TILE[0] / 2.0;
    }
    let lost = job.efficiency(Efficiency::Tail) * wave(job) * inputs;
    let arithmetic = Flops(2.0 * (padded * inputs * outputs + lost)) / rate;
    let width = precision.bytes();
    let moved = Bytes(width * (rows * inputs + held * inputs * outputs) + 2.0 * rows * outputs);
    Work {
        matmul: arithmetic.max(moved / job.memory_rate()),
        // Libraries start one for each expert.
        kernels: held,
        ..Work::default()
    }
}

/// Forward and backward.
fn attention_core(job: &Job, attention: &Attention) -> [Work; 2] {
    let (tp, seq_len) = (job.layout.tp as f64, job.seq_len as f64);
    let tokens = job.tokens();
    if job.fused_attention() {
        let keys = attention.mean_keys(seq_len, true);
        let flops = Flops(tokens * attention.core_flops(keys) / tp);
        let index = attention.index_flops((seq_len + 1.0) / 2.0);
        let index = Flops(tokens * index / tp) / job.matmul_rate(job.precision);
        let chip = &job.cluster.chip;
        let mut peak = chip.bf16.expect("a chip with a 16-bit rate");
        if job.software.fp8_attention {
            peak = chip.fp8.unwrap_or(peak);
        }
        if job.software.attention == AttentionKernel::Flash2 && chip.fp8.is_some() {
            peak = peak * job.efficiency(Efficiency::Flash2);
        }
        let work = |passes: f64, share| Work {
            attention: flops * passes / (peak * job.efficiency(share)) + index * passes,
            kernels: 2.0,
            ..Work::default()
        };
        // The backward computes the scores again: five products against two.
        return [
            work(1.0, Efficiency::AttentionForward),
            work(2.5, Efficiency::AttentionBackward),
        ];
    }
    // All scores are computed, masked ones too, and go through memory: written and read by the
    // product, softmax and dropout (with its mask).
    let flops = Flops(tokens * attention.core_flops(seq_len) / tp);
    let scores = tokens * seq_len * attention.num_heads() as f64 / tp;
    let work = |passes: f64, moves: f64| Work {
        attention: flops * passes / job.matmul_rate(Precision::Bf16)
            + Bytes(2.0 * scores * moves) / job.memory_rate(),
        kernels: 5.0 * passes,
        ..Work::default()
    };
    [work(1.0, 6.5), work(2.0, 9.0)]
}

/// Norms, residual stream, rotations, activations, copies to and from experts, and roundings to 8
/// or 4 bits: values moved, forward and backward.
fn elementwise(job: &Job, layer: &Layer) -> [Work; 2] {
    let hidden = job.shape.hidden_size as f64;
    let tp = job.layout.tp as f64;
    let stream = if job.software.sequence_parallel {
        hidden / tp
    } else {
        hidden
    };
    // Two norms (read, write) and two additions (read twice, write); backward the norms read once
    // more.
    let (mut forward, mut backward) = (10.0 * stream, 12.0 * stream);
    let rotated = match &layer.attention {
        Attention::Mla(mla) => {
            let heads = mla.num_heads * (2 * mla.qk_head_dim() + mla.v_head_dim);
            let latents = mla.q_lora_rank.unwrap_or(0) + mla.latent_width();
            2.0 * (heads as f64 / tp + latents as f64)
        }
        Attention::Grouped(grouped) => {
            let heads = (grouped.num_heads + grouped.num_kv_heads) * grouped.head_dim;
            2.0 * heads as f64 / tp
        }
    };
    forward += rotated;
    backward += rotated;
    let feed_forward = &layer.feed_forward;
    let mut width = feed_forward.width as f64;
    let mut kernels = 14.0;
    if let Some(experts) = &feed_forward.experts {
        let active = experts.active as f64;
        width += active * experts.width as f64 + experts.shared_width as f64;
        // Sorted by expert, and added up again.
        let copies = (3.0 * active + 1.0) * hidden / tp;
        forward += copies;
        backward += copies;
        kernels += 30.0;
    }
    let matrices = if feed_forward.gated { 2.0 } else { 1.0 };
    forward += (matrices + 1.0) * width / tp;
    backward += (2.0 * matrices + 1.0) * width / tp;
    let mut bytes = [2.0 * forward, 2.0 * backward];
    if job.precision != Precision::Bf16 {
        // Read in 16 bits, written rounded along rows and along columns.
        let rounded = 2.0 + 2.0 * job.precision.bytes();
        let active = feed_forward
            .experts
            .as_ref()
            .map_or(0.0, |e| e.active as f64);
        let inputs = 3.0 * hidden / tp + (width + active * hidden) / tp;
        let outputs = inputs + matrices * width / tp;
        bytes[0] += rounded * inputs;
        bytes[1] += rounded * outputs;
        kernels += 6.0;
    }
    bytes.map(|bytes| Work {
        elementwise: Bytes(job.tokens() * bytes) / job.memory_rate(),
        kernels,
        ..Work::default()
    })
}

/// Of one pass: tensor parallelism gathers and scatters the stream around attention and around a
/// dense feed-forward half.
fn tensor_exchange(job: &Job, layer: &Layer) -> Work {
    let hidden = job.shape.hidden_size as f64;
    let layout = &job.layout;
    let mut exposed = Seconds::ZERO;
    if layout.tp > 1 {
        let tp = layout.tp as f64;
        let halves = if layer.feed_forward.width > 0 {
            2.0
        } else {
            1.0
        };
        let bytes = halves * 2.0 * (tp - 1.0) / tp * 2.0 * job.tokens() * hidden;
        let time = Bytes(bytes) / job.link_rate(layout.tp);
        exposed += if job.software.overlap_tensor {
            time * job.efficiency(Efficiency::Exposed)
        } else {
            time
        };
    }
    Work {
        tensor: exposed,
        ..Work::default()
    }
}

/// Context parallelism passes keys and values round, and in the backward their gradients too; the
/// core of attention hides it, as far as it takes as long.
fn context_exchange(job: &Job, layer: &Layer, passes: f64, core: &Work) -> Work {
    let layout = &job.layout;
    if layout.cp == 1 {
        return Work::default();
    }
    let values = layer.attention.num_kv_heads() as f64 * head_width(&layer.attention);
    let bytes = 2.0 * values / layout.tp as f64 * job.tokens() * (layout.cp - 1) as f64;
    let time = Bytes(passes * bytes) / job.link_rate(layout.tp * layout.cp);
    let hidden = time.min(core.attention);
    Work {
        tensor: time - hidden + hidden * job.efficiency(Efficiency::Exposed),
        ..Work::default()
    }
}

/// Key and value of one head.
fn head_width(attention: &Attention) -> f64 {
    match attention {
        Attention::Mla(mla) => (mla.qk_head_dim() + mla.v_head_dim) as f64,
        Attention::Grouped(grouped) => 2.0 * grouped.head_dim as f64,
    }
}

/// Distinct domains, of those that share the experts, in which a token's experts stand: chosen
/// evenly among the domains of the groups that it is limited to.
fn domains_met(experts: &Experts, domains: f64) -> f64 {
    let active = experts.active as f64;
    let reached = |among: f64| among * (1.0 - (1.0 - 1.0 / among).powf(active));
    let Some([groups, chosen]) = experts.groups.map(|groups| groups.map(|n| n as f64)) else {
        return reached(domains);
    };
    if domains >= groups {
        // A group is several domains.
        return reached(chosen * domains / groups);
    }
    // A domain holds several groups: those of the chosen groups, as if drawn one by one.
    let among = domains * (1.0 - (1.0 - 1.0 / domains).powf(chosen));
    reached(among.max(1.0))
}

/// Of one pass: tokens go to their experts and what these make of them comes back.
fn expert_exchange(job: &Job, layer: &Layer) -> Work {
    let Some(experts) = &layer.feed_forward.experts else {
        return Work::default();
    };
    let ep = job.layout.ep;
    if ep == 1 {
        return Work::default();
    }
    let tokens = job.tokens() / job.layout.tp as f64;
    let hidden = job.shape.hidden_size as f64;
    // Sent rounded where products are; what comes back is summed, so in 16 bits.
    let width = job.precision.bytes().max(1.0) + 2.0;
    let active = experts.active as f64;
    let near = active * (ep - 1) as f64 / ep as f64;
    let up = Bytes(tokens * near * hidden * width) / job.link_rate(job.cluster.domain());
    let domains = ep.div_ceil(job.cluster.domain()) as f64;
    let mut time = up;
    if domains > 1.0 {
        let met = if job.software.deduplicated {
            domains_met(experts, domains) * (1.0 - 1.0 / domains)
        } else {
            active * (1.0 - 1.0 / domains)
        };
        let bytes = Bytes(tokens * met * hidden * width);
        let out = bytes / job.link_rate(job.cluster.domain() + 1);
        time = up.max(out);
    }
    Work {
        experts: time,
        ..Work::default()
    }
}

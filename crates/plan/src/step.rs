//! The time of one step, by what it is spent on.

use serde::Serialize;

use crate::efficiency::Efficiency;
use crate::error::Error;
use crate::job::Job;
use crate::layer_time::LayerTime;
use crate::layout::{Layout, Schedule};
use crate::memory::{self, Memory};
use crate::partition::{Unit, stages, units};
use crate::quantity::{Bytes, Chips, FlopsPerSecond, Seconds, Tokens, TokensPerSecond};

/// Seconds of a step on the busiest chip; the parts add up to the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Parts {
    pub matmul: Seconds,
    pub attention: Seconds,
    pub elementwise: Seconds,
    /// Starting kernels, on the chip and, where it is the slower, on the host.
    pub kernels: Seconds,
    /// Tensor and context parallelism's exchanges that nothing hides.
    pub tensor: Seconds,
    /// Experts' exchanges that nothing hides.
    pub experts: Seconds,
    /// Passing the stream from stage to stage.
    pub pipeline: Seconds,
    pub bubble: Seconds,
    /// Gradients and weights of data parallelism that nothing hides.
    pub data: Seconds,
    pub optimizer: Seconds,
}

impl Parts {
    /// What a software loses that no formula here explains is in every part alike.
    fn scale(&mut self, factor: f64) {
        for part in [
            &mut self.matmul,
            &mut self.attention,
            &mut self.elementwise,
            &mut self.kernels,
            &mut self.tensor,
            &mut self.experts,
            &mut self.pipeline,
            &mut self.bubble,
            &mut self.data,
            &mut self.optimizer,
        ] {
            *part = *part * factor;
        }
    }

    pub fn named(&self) -> [(&'static str, Seconds); 10] {
        [
            ("products", self.matmul),
            ("attention", self.attention),
            ("elementwise", self.elementwise),
            ("starting kernels", self.kernels),
            ("tensor exchange", self.tensor),
            ("expert exchange", self.experts),
            ("between stages", self.pipeline),
            ("bubble", self.bubble),
            ("data exchange", self.data),
            ("optimizer", self.optimizer),
        ]
    }
}

/// One step of training, as predicted.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub parts: Parts,
    pub seconds: Seconds,
    pub tokens_per_second_per_chip: TokensPerSecond,
    /// Model operations (causal, nothing computed again counted) per chip.
    pub flops_per_chip: FlopsPerSecond,
    /// Of the 16-bit peak, whatever the precision, as DeepSeek reports it.
    pub mfu: f64,
    pub memory: Memory,
}

/// Predicts a step.
///
/// # Errors
/// [`Error::Layout`] if the layout does not divide the model, the chips or the batch;
/// [`Error::Chip`] if the chip lacks a rate that is needed. Whether the model fits into memory is
/// for the caller to ask: [`Memory::total`].
pub fn step(job: &Job) -> Result<Step, Error> {
    check_chip(job)?;
    check_layout(job)?;
    let units = units(job);
    Ok(timed(job, &units))
}

/// [`step`] of a job that was checked, with its units at hand.
pub fn timed(job: &Job, units: &[Unit]) -> Step {
    let stages = stages(job, units);
    let memory = memory::memory(job, units, &stages);
    let mut parts = pipeline(job, units, &stages);
    parts.optimizer = optimizer(job, &memory);
    parts.data = data_exchange(job, &memory, &parts);
    parts.scale(job.software.slowdown);
    let seconds: Seconds = parts.named().iter().map(|(_, seconds)| *seconds).sum();
    let tokens = Tokens((job.batch_seqs * job.seq_len) as f64);
    let per_token = job.shape.training_flops(job.seq_len, true, job.with_mtp);
    let rate = per_token * tokens / seconds / job.cluster.chips as f64;
    let peak = job.cluster.chip.bf16.expect("a chip that was checked");
    Step {
        parts,
        seconds,
        tokens_per_second_per_chip: tokens / seconds / Chips(job.cluster.chips as f64).0,
        flops_per_chip: rate,
        mfu: rate / peak,
        memory,
    }
}

/// Whether the chip has the rates that a job needs.
///
/// # Errors
/// [`Error::Chip`] naming the first that is missing.
pub fn check_chip(job: &Job) -> Result<(), Error> {
    let chip = &job.cluster.chip;
    for (missing, what) in [
        (chip.bf16.is_none(), "a 16-bit rate"),
        (chip.memory.is_none(), "a memory size"),
        (chip.memory_bandwidth.is_none(), "a memory bandwidth"),
        (
            job.precision.peak(chip).is_none(),
            "a rate in that precision",
        ),
    ] {
        if missing {
            let message = format!(
                "the catalogue has no {} for {} ({} asked)",
                what.trim_start_matches("a "),
                chip.name,
                job.precision.name()
            );
            return Err(Error::Chip(message));
        }
    }
    Ok(())
}

/// Whether the layout divides model, chips and batch.
///
/// # Errors
/// [`Error::Layout`] naming the field and what it must divide.
pub fn check_layout(job: &Job) -> Result<(), Error> {
    let (layout, chips) = (&job.layout, job.cluster.chips);
    let wrong = |item: String, message: String| Err(Error::layout(&item, message));
    let Layout { tp, pp, ep, cp, .. } = *layout;
    if !chips.is_multiple_of(tp * pp * cp) {
        let product = tp * pp * cp;
        return wrong(
            format!("tp={tp},pp={pp},cp={cp}"),
            format!("their product {product} does not divide {chips} chips"),
        );
    }
    if !(chips / pp).is_multiple_of(ep) {
        let stage = chips / pp;
        return wrong(
            format!("ep={ep}"),
            format!("does not divide the {stage} chips of a stage"),
        );
    }
    if ep > 1 {
        match job.shape.experts() {
            None => return wrong(format!("ep={ep}"), "the model has no experts".into()),
            Some(experts) if !experts.routed.is_multiple_of(ep) => {
                let message = format!("does not divide {} experts", experts.routed);
                return wrong(format!("ep={ep}"), message);
            }
            Some(_) => {}
        }
    }
    let attention = &job.shape.last_layer().attention;
    if !attention.num_heads().is_multiple_of(tp) {
        let message = format!("does not divide {} heads", attention.num_heads());
        return wrong(format!("tp={tp}"), message);
    }
    check_schedule(job)
}

fn check_schedule(job: &Job) -> Result<(), Error> {
    let (layout, chips) = (&job.layout, job.cluster.chips);
    let Layout {
        pp, chunks, mbs, ..
    } = *layout;
    let wrong = |item: String, message: String| Err(Error::layout(&item, message));
    // Embedding and head may stand alone.
    let layers = job.shape.num_layers();
    if pp * chunks > layers + 2 {
        let message = format!("more parts than the model has layers, {layers}");
        return wrong(format!("pp={pp},chunks={chunks}"), message);
    }
    let interleaved = layout.schedule == Schedule::Interleaved;
    if chunks > 1 && !interleaved {
        let message = "only schedule=interleaved has several".to_string();
        return wrong(format!("chunks={chunks}"), message);
    }
    if layout.schedule == Schedule::DualPipe && !pp.is_multiple_of(2) {
        let message = "schedule=dualpipe needs an even number of stages".to_string();
        return wrong(format!("pp={pp}"), message);
    }
    let at_once = layout.dp(chips) * mbs;
    if !job.batch_seqs.is_multiple_of(at_once) {
        let message = format!(
            "{} micro-batches in parallel do not divide a batch of {} sequences",
            at_once, job.batch_seqs
        );
        return wrong(format!("mbs={mbs}"), message);
    }
    let rounds = layout.micro_batches(chips, job.batch_seqs);
    let least = match layout.schedule {
        Schedule::DualPipe => 2 * pp,
        _ => 1,
    };
    if rounds < least {
        let message = format!("{rounds} micro-batches; schedule=dualpipe needs {least}");
        return wrong(format!("pp={pp}"), message);
    }
    Ok(())
}

/// Sums of one stage.
#[derive(Clone, Copy, Default)]
struct Stage {
    time: LayerTime,
    forward: Seconds,
    backward: Seconds,
    weights: Seconds,
    /// Experts' exchanges of one direction.
    experts: Seconds,
}

impl Stage {
    fn new(job: &Job, units: &[Unit], held: &[usize]) -> Stage {
        let mut time = LayerTime::default();
        // A chip of DualPipe holds two stages, each for half of the micro-batches.
        let share = 1.0 / job.layout.schedule.copies() as f64;
        for &unit in held {
            time.add(&units[unit].time, share);
        }
        Stage {
            forward: time.forward.compute(job),
            backward: time.backward.compute(job),
            weights: time.weights.compute(job),
            experts: time.forward.experts,
            time,
        }
    }

    fn compute(&self) -> Seconds {
        self.forward + self.backward + self.weights
    }

    /// Experts' exchanges of both directions.
    fn exchange(&self) -> Seconds {
        self.time.forward.experts + self.time.backward.experts
    }

    /// Of a forward and a backward pass side by side, what exchanges add to compute.
    fn exposed(&self, job: &Job) -> Seconds {
        let (compute, exchange) = (self.compute(), self.exchange());
        // Two micro-batches in opposite directions must be at hand: DualPipe is built for that, and
        // interleaved parts and single stages have them.
        let one_way = matches!(
            job.layout.schedule,
            Schedule::OneForwardOneBackward | Schedule::Zb1p
        );
        if !job.software.overlap_experts || (one_way && job.layout.pp > 1) {
            return exchange;
        }
        let hidden = compute.min(exchange);
        compute.max(exchange) - compute + hidden * job.efficiency(Efficiency::Exposed)
    }

    /// Forward and backward of one micro-batch, one after the other.
    fn alone(&self) -> Seconds {
        self.compute() + self.exchange()
    }
}

/// All micro-batches through the busiest stage, and the bubble.
fn pipeline(job: &Job, units: &[Unit], held: &[Vec<usize>]) -> Parts {
    let stages: Vec<Stage> = held
        .iter()
        .map(|held| Stage::new(job, units, held))
        .collect();
    let layout = &job.layout;
    let rounds = layout.micro_batches(job.cluster.chips, job.batch_seqs) as f64;
    let pp = layout.pp as f64;
    let busiest = stages
        .iter()
        .max_by(|a, b| a.alone().0.total_cmp(&b.alone().0))
        .expect("a pipeline has stages");
    let count = stages.len() as f64;
    let mean = |of: fn(&Stage) -> Seconds| stages.iter().map(of).sum::<Seconds>() / count;
    let forward = mean(|stage| stage.forward + stage.experts);
    let full_backward = mean(|stage| stage.backward + stage.weights + stage.experts);
    let weights = mean(|stage| stage.weights);
    let mut parts = Parts::default();
    let mut paired = rounds;
    let bubble = match layout.schedule {
        Schedule::OneForwardOneBackward => (forward + full_backward) * (pp - 1.0),
        Schedule::Interleaved => (forward + full_backward) * ((pp - 1.0) / layout.chunks as f64),
        Schedule::Zb1p => (forward + full_backward - weights * 2.0) * (pp - 1.0),
        Schedule::DualPipe => {
            // Mean over the ranks of its schedule: 97 to 104 of 120 with 16 stages.
            paired = rounds - 1.25 * pp + 0.5;
            let pair = busiest.compute() + busiest.exposed(job);
            (pair + full_backward - weights * 3.0) * (pp / 2.0 - 1.0)
        }
    };
    parts.bubble = bubble.max(Seconds::ZERO);
    parts.experts = busiest.exposed(job) * paired + busiest.exchange() * (rounds - paired);
    spend(busiest, rounds, &mut parts);
    if pp > 1.0 {
        parts.pipeline = between_stages(job, rounds);
    }
    parts
}

/// Compute of the busiest stage, by kind.
fn spend(stage: &Stage, rounds: f64, parts: &mut Parts) {
    let time = &stage.time;
    for work in [&time.forward, &time.backward, &time.weights] {
        parts.matmul += work.matmul * rounds;
        parts.attention += work.attention * rounds;
        parts.elementwise += work.elementwise * rounds;
        parts.tensor += work.tensor * rounds;
    }
    let known = parts.matmul + parts.attention + parts.elementwise + parts.tensor;
    parts.kernels = stage.compute() * rounds - known;
}

/// Each micro-batch enters and leaves each part of a stage, forward and backward.
fn between_stages(job: &Job, rounds: f64) -> Seconds {
    let layout = &job.layout;
    let mut values = job.tokens() * job.shape.hidden_size as f64;
    if job.software.scattered {
        values /= layout.tp as f64;
    }
    let once = Bytes(2.0 * values) / job.link_rate(job.cluster.chips);
    let sent = once * (2.0 * rounds * layout.chunks as f64);
    if job.software.overlap_tensor {
        sent * job.efficiency(Efficiency::Exposed)
    } else {
        sent
    }
}

/// Reads weights' masters, moments and gradients, and writes them.
fn optimizer(job: &Job, memory: &Memory) -> Seconds {
    let state = memory.optimizer;
    let gradients = memory.gradients_of_optimizer;
    let moved = state * 2.0 + gradients + memory.weights;
    moved / job.memory_rate()
}

/// Sums gradients over data parallelism and gathers what the optimizer wrote.
fn data_exchange(job: &Job, memory: &Memory, parts: &Parts) -> Seconds {
    let layout = &job.layout;
    let chips = job.cluster.chips;
    let rounds = layout.micro_batches(chips, job.batch_seqs) as f64;
    let dense = group_exchange(job, memory.dense_parameters, layout.dp(chips) * layout.cp);
    let expert = group_exchange(job, memory.expert_parameters, layout.expert_dp(chips));
    let per_byte = dense + expert;
    let gradient = job.software.gradient_bytes as f64;
    // Weights travel rounded as products take them.
    let weight = job.precision.bytes().max(1.0);
    if layout.zero == 3 {
        // Weights are gathered for each pass of each micro-batch; gradients leave once each.
        let bytes = 2.0 * weight + gradient;
        let all = per_byte * (bytes * rounds);
        let compute = parts.matmul + parts.attention + parts.elementwise + parts.tensor;
        return hidden_behind(job, all, compute);
    }
    let bytes = match layout.zero {
        // All-reduced, and every chip keeps all weights.
        0 => 2.0 * gradient,
        _ => gradient + weight,
    };
    let all = per_byte * bytes;
    // The last backward pass hides the gradients, the next first forward pass the weights.
    let compute = parts.matmul + parts.attention + parts.elementwise;
    hidden_behind(job, all, compute / rounds)
}

fn hidden_behind(job: &Job, exchange: Seconds, compute: Seconds) -> Seconds {
    if !job.software.overlap_data {
        return exchange;
    }
    let hidden = exchange.min(compute);
    exchange - hidden + hidden * job.efficiency(Efficiency::Exposed)
}

/// Seconds per byte of each parameter that a reduce-scatter or an all-gather takes in a group.
fn group_exchange(job: &Job, parameters: f64, group: u64) -> Seconds {
    if group <= 1 || parameters == 0.0 {
        return Seconds::ZERO;
    }
    let cluster = job.cluster;
    let layout = &job.layout;
    let stage = cluster.chips / layout.pp;
    // Members of the group that stand in one domain: those that model parallelism leaves there.
    let apart = (stage / group).max(1);
    let near = (cluster.domain() / apart).clamp(1, group) as f64;
    let bytes = Bytes(parameters * (group - 1) as f64 / group as f64);
    let inside = if near > 1.0 {
        bytes / job.link_rate(cluster.domain())
    } else {
        Seconds::ZERO
    };
    if near >= group as f64 {
        return inside;
    }
    let outside = bytes / near / job.link_rate(cluster.domain() + 1);
    inside.max(outside)
}

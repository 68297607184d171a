//! Every layout that divides model, chips and batch and fits into memory, fastest first.

use crate::error::Error;
use crate::job::{Cluster, Job};
use crate::layout::{Layout, Recompute, Schedule};
use crate::partition::units;
use crate::quantity::Bytes;
use crate::step::{Step, check_chip, check_layout, timed};

/// Sequences longer than this may be shared between chips.
const LONG: u64 = 16_384;

/// A layout and what it gives.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub layout: Layout,
    pub step: Step,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Fastest first; at most the number asked for.
    pub best: Vec<Candidate>,
    /// Layouts that were timed.
    pub timed: u64,
}

/// Tries all layouts of a job, whose own layout is not looked at, and keeps the `keep` fastest.
///
/// # Errors
/// [`Error::Chip`] if the chip lacks a rate; [`Error::DoesNotFit`] if none fits, with what the
/// smallest would take; [`Error::Layout`] if none divides the batch.
pub fn search(job: &Job, keep: usize) -> Result<Found, Error> {
    check_chip(job)?;
    let memory = job.cluster.chip.memory.expect("a chip that was checked");
    let mut found = Found {
        best: Vec::new(),
        timed: 0,
    };
    let mut least: Option<(Bytes, Layout)> = None;
    for base in bases(job) {
        // The least recomputation that fits is the fastest.
        let mut left = pipelines(job, &base);
        for recompute in Recompute::ALL {
            let of_base = Job {
                layout: Layout { recompute, ..base },
                ..*job
            };
            let units = units(&of_base);
            left.retain(|pipeline| {
                let layout = Layout {
                    recompute,
                    ..*pipeline
                };
                let step = timed(&Job { layout, ..*job }, &units);
                found.timed += 1;
                let total = step.memory.total();
                if least.is_none_or(|(bytes, _)| total < bytes) {
                    least = Some((total, layout));
                }
                let fits = step.memory.fits(memory);
                if fits {
                    insert(&mut found.best, Candidate { layout, step }, keep);
                }
                !fits
            });
        }
    }
    if found.best.is_empty() {
        return Err(nothing(job, least, memory));
    }
    Ok(found)
}

fn insert(best: &mut Vec<Candidate>, candidate: Candidate, keep: usize) {
    let seconds = candidate.step.seconds.0;
    let at = best.partition_point(|other| other.step.seconds.0 <= seconds);
    if at < keep {
        best.insert(at, candidate);
        best.truncate(keep);
    }
}

fn nothing(job: &Job, least: Option<(Bytes, Layout)>, memory: Bytes) -> Error {
    let Some((bytes, layout)) = least else {
        let message = format!(
            "no layout divides {} chips and a batch of {} sequences; take a batch that is a \
             multiple of a large part of the chips",
            job.cluster.chips, job.batch_seqs
        );
        return Error::layout("searched", message);
    };
    let usable = memory * crate::memory::USABLE;
    Error::DoesNotFit(format!(
        "{} x {} cannot hold the model in training: the leanest layout ({layout}) needs {:.1} GB \
         on a chip, {:.1} GB more than the {:.1} GB that can be used",
        job.cluster.chips,
        job.cluster.chip.name,
        bytes.0 / 1e9,
        (bytes - usable).0 / 1e9,
        usable.0 / 1e9,
    ))
}

/// The fewest chips, in doublings of one scale-up domain (of 8 at most), that hold the job.
pub fn smallest_cluster(job: &Job) -> Option<u64> {
    let mut chips = job.cluster.domain().min(8);
    while chips <= 1 << 17 {
        let cluster = Cluster::new(job.cluster.chip.clone(), chips);
        // A batch that every layout of so many chips divides.
        let batch_seqs = job.batch_seqs.next_multiple_of(4 * chips);
        let smaller = Job {
            cluster: &cluster,
            batch_seqs,
            ..*job
        };
        if search(&smaller, 1).is_ok() {
            return Some(chips);
        }
        chips *= 2;
    }
    None
}

/// Degrees that do not concern the pipeline, and the size of a micro-batch.
fn bases(job: &Job) -> Vec<Layout> {
    let chips = job.cluster.chips;
    let most_tensor = job.cluster.domain().min(16);
    let mut bases = Vec::new();
    for tp in powers_of_two(most_tensor) {
        for cp in powers_of_two((job.seq_len / LONG).max(1)) {
            for ep in expert_degrees(job) {
                for mbs in [1, 2, 4, 8] {
                    let layout = Layout {
                        tp,
                        cp,
                        ep,
                        mbs,
                        ..Layout::default()
                    };
                    let tokens = mbs * job.seq_len / cp;
                    let large = mbs > 1 && tokens > 2 * LONG;
                    if chips.is_multiple_of(tp * cp) && !large {
                        bases.push(layout);
                    }
                }
            }
        }
    }
    bases
}

fn powers_of_two(most: u64) -> impl Iterator<Item = u64> {
    (0..63).map(|i| 1 << i).take_while(move |&n| n <= most)
}

/// Divisors of the number of experts, at most 512.
fn expert_degrees(job: &Job) -> Vec<u64> {
    let Some(experts) = job.shape.experts() else {
        return vec![1];
    };
    let most = job.cluster.chips.min(experts.routed).min(512);
    (1..=most)
        .filter(|&ep| experts.routed.is_multiple_of(ep))
        .collect()
}

/// Stages, schedules, parts and sharding for a base; only those that divide what they must.
fn pipelines(job: &Job, base: &Layout) -> Vec<Layout> {
    let most = (job.shape.num_layers() + 2).min(job.cluster.chips);
    let mut layouts = Vec::new();
    for pp in (1..=most).filter(|&pp| job.cluster.chips.is_multiple_of(pp)) {
        let schedules: &[(Schedule, u64)] = match pp {
            1 => &[(Schedule::OneForwardOneBackward, 1)],
            _ => &[
                (Schedule::OneForwardOneBackward, 1),
                (Schedule::Interleaved, 2),
                (Schedule::Interleaved, 4),
                (Schedule::Interleaved, 8),
                (Schedule::Zb1p, 1),
                (Schedule::DualPipe, 1),
            ],
        };
        for &(schedule, chunks) in schedules {
            for zero in [1, 3] {
                let layout = Layout {
                    pp,
                    schedule,
                    chunks,
                    zero,
                    ..*base
                };
                // Weights are not gathered anew for every micro-batch of a pipeline.
                let sensible = zero == 1 || pp == 1;
                if sensible && check_layout(&Job { layout, ..*job }).is_ok() {
                    layouts.push(layout);
                }
            }
        }
    }
    layouts
}

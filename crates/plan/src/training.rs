//! What a training run takes: everything of `bruchteil plan` but serving.

use serde::Serialize;

use crate::campaign::Campaign;
use crate::chip::Chip;
use crate::efficiency::Efficiencies;
use crate::error::Error;
use crate::interval::Interval;
use crate::job::{Cluster, Job, Precision, Software};
use crate::layout::Layout;
use crate::quantity::{Bytes, DollarsPerChipSecond, Flops, Seconds, Tokens, TokensPerSecond};
use crate::search::{Candidate, search, smallest_cluster};
use crate::shape::{ParameterParts, Shape};
use crate::step::{Parts, Step, step};
use crate::validation::{STEP_SPREAD, UNKNOWN_SOFTWARE_SPREAD};

/// Layouts shown besides the best.
const ALTERNATIVES: usize = 6;

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct Request {
    pub title: String,
    pub shape: Shape,
    pub chip: Chip,
    pub chips: u64,
    pub tokens: Tokens,
    pub seq_len: u64,
    pub batch_seqs: u64,
    pub precision: Precision,
    /// Whether the modules of multi-token prediction, if there are any, are trained.
    pub with_mtp: bool,
    /// `None`: the fastest that fits.
    pub layout: Option<Layout>,
    /// `None`: [`Software::default`], and wider intervals.
    pub software: Option<Software>,
    /// `None`: what the catalogue knows.
    pub price: Option<Interval<DollarsPerChipSecond>>,
}

/// A planned run. Times and what follows from them are intervals; counts are exact.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub model: String,
    pub chip: String,
    pub chips: u64,
    pub precision: Precision,
    pub tokens: f64,
    pub seq_len: u64,
    pub batch_seqs: u64,
    pub parameters_total: u64,
    pub parameters_active: u64,
    pub parameters: ParameterParts,
    /// Causal, forward and backward, nothing computed again.
    pub flops_per_token: f64,
    pub flops_total: f64,
    pub layout: Layout,
    /// Data parallelism, which follows from the others.
    pub dp: u64,
    pub micro_batches: u64,
    /// Whether all layouts were tried; else the layout is the one asked for.
    pub layout_searched: bool,
    pub memory_bytes_per_chip: f64,
    pub memory_parts: Vec<(&'static str, f64)>,
    pub memory_usable_bytes: f64,
    pub fits: bool,
    pub step_seconds: Interval<f64>,
    pub step_parts: Vec<(&'static str, f64)>,
    pub tokens_per_second_per_chip: Interval<f64>,
    /// Of the 16-bit peak.
    pub mfu: Interval<f64>,
    #[serde(flatten)]
    pub campaign: Campaign,
    pub alternatives: Vec<Alternative>,
}

/// A layout that would do as well.
#[derive(Clone, Debug, Serialize)]
pub struct Alternative {
    pub layout: String,
    pub step_seconds: f64,
    pub memory_bytes_per_chip: f64,
}

/// Sequences of a step where nobody says: 4 million tokens for small models, as Llama 2 had, 16
/// million for large ones, as Llama 3's 405 billion had, and no less than one sequence on each
/// chip; a number that many layouts divide.
pub fn usual_batch(shape: &Shape, seq_len: u64, chips: u64) -> u64 {
    let active = shape.active_parameters().total();
    let tokens: u64 = if active < 20_000_000_000 {
        4 << 20
    } else {
        16 << 20
    };
    let wanted = (tokens / seq_len).max(1);
    wanted.next_multiple_of(chips)
}

/// Plans a run.
///
/// # Errors
/// Those of [`step`] and [`search`]; a cluster that is too small names the smallest that is not.
pub fn plan(request: &Request) -> Result<Plan, Error> {
    check(request)?;
    let cluster = Cluster::new(request.chip.clone(), request.chips);
    let efficiencies = Efficiencies::shipped();
    let job = request.job(&cluster, &efficiencies);
    let (layout, step, others) = match request.layout {
        Some(layout) => (layout, step(&job)?, Vec::new()),
        None => {
            let found = search(&job, ALTERNATIVES + 1).map_err(|error| enlarge(&job, error))?;
            let mut best = found.best;
            let first = best.remove(0);
            (first.layout, first.step, best)
        }
    };
    Ok(request.result(&cluster, layout, &step, &others))
}

fn enlarge(job: &Job, error: Error) -> Error {
    let Error::DoesNotFit(message) = error else {
        return error;
    };
    let size = match smallest_cluster(job) {
        Some(chips) => format!("; {chips} chips can"),
        None => "; no number up to 131,072 can".to_string(),
    };
    Error::DoesNotFit(message + &size)
}

/// Bounds beyond which nothing that follows would mean anything.
fn check(request: &Request) -> Result<(), Error> {
    let tokens = request.tokens.0;
    if !(tokens.is_finite() && (1.0..=1e18).contains(&tokens)) {
        let message = format!("{tokens} is not a number of tokens from 1 to 1e18");
        return Err(Error::asked("tokens", message));
    }
    for (what, value, most) in [
        ("chips", request.chips, 1 << 24),
        ("seq-len", request.seq_len, 1 << 24),
        ("batch-seqs", request.batch_seqs, 1 << 32),
    ] {
        if !(1..=most).contains(&value) {
            let message = format!("{value} is not from 1 to {most}");
            return Err(Error::asked(what, message));
        }
    }
    Ok(())
}

impl Request {
    /// Bounds of a step's time by its prediction.
    pub fn spread(&self) -> Interval<f64> {
        match self.software {
            Some(_) => STEP_SPREAD,
            None => UNKNOWN_SOFTWARE_SPREAD,
        }
    }

    fn job<'a>(&'a self, cluster: &'a Cluster, efficiencies: &'a Efficiencies) -> Job<'a> {
        Job {
            shape: &self.shape,
            cluster,
            seq_len: self.seq_len,
            batch_seqs: self.batch_seqs,
            precision: self.precision,
            with_mtp: self.with_mtp && self.shape.mtp_modules > 0,
            layout: self.layout.unwrap_or_default(),
            software: self.software.unwrap_or_default(),
            efficiencies,
        }
    }

    fn result(&self, cluster: &Cluster, layout: Layout, step: &Step, others: &[Candidate]) -> Plan {
        let parameters = self.shape.parameters();
        let with_mtp = self.with_mtp && self.shape.mtp_modules > 0;
        let per_token = self.shape.training_flops(self.seq_len, true, with_mtp);
        let total: Flops = per_token * self.tokens;
        let spread = self.spread();
        let seconds = spread.map(|factor| step.seconds * factor);
        let in_step = Tokens((self.batch_seqs * self.seq_len) as f64);
        let rate: Interval<TokensPerSecond> = seconds.map(|seconds: Seconds| in_step / seconds);
        let price = self.price.or(self.chip.hourly);
        let usable: Bytes = cluster.chip.memory.unwrap_or(Bytes::ZERO) * crate::memory::USABLE;
        let named = |parts: &Parts| parts.named().map(|(name, time)| (name, time.0)).to_vec();
        Plan {
            model: self.title.clone(),
            chip: self.chip.name.clone(),
            chips: self.chips,
            precision: self.precision,
            tokens: self.tokens.0,
            seq_len: self.seq_len,
            batch_seqs: self.batch_seqs,
            parameters_total: parameters.total(),
            parameters_active: self.shape.active_parameters().total(),
            parameters,
            flops_per_token: per_token.0,
            flops_total: total.0,
            layout,
            dp: layout.dp(self.chips),
            micro_batches: layout.micro_batches(self.chips, self.batch_seqs),
            layout_searched: self.layout.is_none(),
            memory_bytes_per_chip: step.memory.total().0,
            memory_parts: step
                .memory
                .named()
                .map(|(name, bytes)| (name, bytes.0))
                .to_vec(),
            memory_usable_bytes: usable.0,
            fits: step.memory.total() <= usable,
            step_seconds: seconds.map(|seconds| seconds.0),
            step_parts: named(&step.parts),
            tokens_per_second_per_chip: rate.map(|rate| rate.0 / self.chips as f64),
            mfu: spread.map(|factor| step.mfu / factor),
            campaign: Campaign::new(cluster, self.tokens, in_step, rate, price),
            alternatives: others.iter().map(Alternative::new).collect(),
        }
    }
}

impl Alternative {
    fn new(candidate: &Candidate) -> Alternative {
        Alternative {
            layout: candidate.layout.to_string(),
            step_seconds: candidate.step.seconds.0,
            memory_bytes_per_chip: candidate.step.memory.total().0,
        }
    }
}

//! How a model is laid over chips.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::nearest::nearest;

/// Degrees of parallelism, the schedule, and what is kept for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Tensor parallelism, with its activations split along the sequence.
    pub tp: u64,
    /// Stages of the pipeline.
    pub pp: u64,
    /// Chips that share one copy of a layer's experts.
    pub ep: u64,
    /// Chips that share one sequence.
    pub cp: u64,
    /// ZeRO: 0 nothing is sharded over data parallelism, 1 the optimizer's state, 2 gradients too
    /// (which still leave once a step, with its last micro-batch), 3 weights too (FSDP).
    pub zero: u64,
    pub schedule: Schedule,
    /// Parts of the model on each stage (virtual pipeline); 1 unless interleaved.
    pub chunks: u64,
    pub recompute: Recompute,
    /// Sequences in a micro-batch.
    pub mbs: u64,
}

/// The order of forward and backward passes in a pipeline (DualPipe's README compares them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    #[serde(rename = "1f1b")]
    OneForwardOneBackward,
    Interleaved,
    Zb1p,
    DualPipe,
}

/// What is computed again in the backward pass instead of being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    None,
    /// What is cheap and large: norms, activation functions, MLA's up-projections; the core of
    /// attention where it is not fused.
    Selective,
    /// Everything but the inputs of layers.
    Full,
}

impl Schedule {
    pub const ALL: [Schedule; 4] = [
        Schedule::OneForwardOneBackward,
        Schedule::Interleaved,
        Schedule::Zb1p,
        Schedule::DualPipe,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Schedule::OneForwardOneBackward => "1f1b",
            Schedule::Interleaved => "interleaved",
            Schedule::Zb1p => "zb1p",
            Schedule::DualPipe => "dualpipe",
        }
    }

    /// Copies of its weights that a chip holds.
    pub fn copies(self) -> u64 {
        match self {
            Schedule::DualPipe => 2,
            _ => 1,
        }
    }
}

impl Recompute {
    pub const ALL: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

    pub fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::Selective => "selective",
            Recompute::Full => "full",
        }
    }
}

/// One chip that holds everything.
impl Default for Layout {
    fn default() -> Layout {
        Layout {
            tp: 1,
            pp: 1,
            ep: 1,
            cp: 1,
            zero: 1,
            schedule: Schedule::OneForwardOneBackward,
            chunks: 1,
            recompute: Recompute::None,
            mbs: 1,
        }
    }
}

impl Layout {
    /// Chips that hold the same weights outside the experts and work on other sequences.
    pub fn dp(&self, chips: u64) -> u64 {
        chips / self.model_chips()
    }

    /// Chips that work on one micro-batch.
    pub fn model_chips(&self) -> u64 {
        self.tp * self.pp * self.cp
    }

    /// Copies of each expert.
    pub fn expert_dp(&self, chips: u64) -> u64 {
        chips / (self.pp * self.ep)
    }

    /// Micro-batches that one pipeline works through in a step.
    pub fn micro_batches(&self, chips: u64, batch_seqs: u64) -> u64 {
        batch_seqs / (self.dp(chips) * self.mbs)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "tp={},pp={},ep={},cp={},zero={},schedule={},chunks={},recompute={},mbs={}",
            self.tp,
            self.pp,
            self.ep,
            self.cp,
            self.zero,
            self.schedule.name(),
            self.chunks,
            self.recompute.name(),
            self.mbs,
        )
    }
}

const FIELDS: [&str; 9] = [
    "tp",
    "pp",
    "ep",
    "cp",
    "zero",
    "schedule",
    "chunks",
    "recompute",
    "mbs",
];

/// `tp=1,pp=16,ep=64,...` in any order; what is absent is as in [`Layout::default`].
impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Layout, Error> {
        let mut layout = Layout::default();
        let mut seen: Vec<&str> = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            let Some((field, value)) = item.split_once('=') else {
                return Err(Error::layout(
                    item,
                    "expected FIELD=VALUE, as in tp=1,pp=16",
                ));
            };
            let (field, value) = (field.trim(), value.trim());
            if seen.contains(&field) {
                return Err(Error::layout(item, format!("{field} is given twice")));
            }
            seen.push(field);
            layout.set(field, value)?;
        }
        if layout.chunks > 1 && !seen.contains(&"schedule") {
            layout.schedule = Schedule::Interleaved;
        }
        Ok(layout)
    }
}

impl Layout {
    fn set(&mut self, field: &str, value: &str) -> Result<(), Error> {
        let item = format!("{field}={value}");
        let number = |most: u64| match value.parse::<u64>() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(Error::layout(
                &item,
                format!("a whole number from 1 to {most}"),
            )),
        };
        match field {
            "tp" => self.tp = number(1 << 20)?,
            "pp" => self.pp = number(1 << 20)?,
            "ep" => self.ep = number(1 << 20)?,
            "cp" => self.cp = number(1 << 20)?,
            "chunks" => self.chunks = number(1 << 10)?,
            "mbs" => self.mbs = number(1 << 20)?,
            "zero" => {
                self.zero = match value.parse() {
                    Ok(stage @ 0..=3) => stage,
                    _ => return Err(Error::layout(&item, "one of 0, 1, 2, 3")),
                }
            }
            "schedule" => {
                let found = Schedule::ALL.into_iter().find(|s| s.name() == value);
                let names = Schedule::ALL.map(Schedule::name).join(", ");
                self.schedule = found.ok_or_else(|| Error::layout(&item, one_of(&names)))?;
            }
            "recompute" => {
                let found = Recompute::ALL.into_iter().find(|r| r.name() == value);
                let names = Recompute::ALL.map(Recompute::name).join(", ");
                self.recompute = found.ok_or_else(|| Error::layout(&item, one_of(&names)))?;
            }
            _ => {
                let near = nearest(field, FIELDS.into_iter());
                let near = near.first().map(String::as_str).unwrap_or("tp");
                let message = format!("no such field; the nearest is {near}");
                return Err(Error::layout(&item, message));
            }
        }
        Ok(())
    }
}

fn one_of(names: &str) -> String {
    format!("one of {names}")
}

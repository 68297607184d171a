//! Published steps of training that name their layout: `data/steps.csv`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::chip;
use crate::efficiency::Efficiencies;
use crate::error::Error;
use crate::job::{Cluster, Job, Precision, Software};
use crate::layout::{Layout, Recompute, Schedule};
use crate::nearest::nearest;
use crate::preset;
use crate::shape::Shape;
use crate::step::{Step, step};
use crate::table::rows;

/// A row of the file.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    pub id: String,
    /// Rows that are held out together, because one nearly tells the others: the same model on the
    /// same chip.
    pub group: String,
    pub model: String,
    pub chip: String,
    pub chips: u64,
    pub precision: Precision,
    pub seq_len: u64,
    pub batch_seqs: u64,
    pub mbs: u64,
    pub tp: u64,
    pub pp: u64,
    pub cp: u64,
    pub ep: u64,
    pub chunks: u64,
    pub zero: u64,
    pub schedule: Schedule,
    pub recompute: Recompute,
    /// 1 where norms and residual stream were divided over tensor parallelism.
    pub sequence_parallel: u8,
    /// A name of `data/software.toml`.
    pub software: String,
    /// 1 where multi-token prediction was trained too.
    pub mtp: u8,
    pub step_seconds: f64,
    pub source: String,
    pub note: String,
}

/// A published step with everything that predicting it takes.
#[derive(Clone, Debug)]
pub struct Measured {
    pub row: Row,
    pub shape: &'static Shape,
    pub cluster: Cluster,
    pub layout: Layout,
    pub software: Software,
}

impl Measured {
    fn new(row: Row) -> Result<Measured, Error> {
        let layout = Layout {
            tp: row.tp,
            pp: row.pp,
            ep: row.ep,
            cp: row.cp,
            zero: row.zero,
            schedule: row.schedule,
            chunks: row.chunks,
            recompute: row.recompute,
            mbs: row.mbs,
        };
        Ok(Measured {
            shape: &preset::find(&row.model)?.shape,
            cluster: Cluster::new(chip::find(&row.chip)?.clone(), row.chips),
            layout,
            software: Software {
                sequence_parallel: row.sequence_parallel == 1,
                ..software(&row.software)?
            },
            row,
        })
    }

    /// What the model of a step says of it.
    ///
    /// # Errors
    /// Those of [`step`].
    pub fn predict(&self, efficiencies: &Efficiencies) -> Result<Step, Error> {
        step(&Job {
            shape: self.shape,
            cluster: &self.cluster,
            seq_len: self.row.seq_len,
            batch_seqs: self.row.batch_seqs,
            precision: self.row.precision,
            with_mtp: self.row.mtp == 1,
            layout: self.layout,
            software: self.software,
            efficiencies,
        })
    }
}

/// All of them, in the order of the file.
pub fn all() -> &'static [Measured] {
    static ALL: OnceLock<Vec<Measured>> = OnceLock::new();
    ALL.get_or_init(|| read().expect("data/steps.csv and data/software.toml are whole"))
}

fn read() -> Result<Vec<Measured>, Error> {
    let rows: Vec<Row> = rows("steps.csv", include_str!("../data/steps.csv"))?;
    rows.into_iter().map(Measured::new).collect()
}

/// What a software does, by its name in `data/software.toml`.
///
/// # Errors
/// [`Error::Asked`] with the nearest names.
pub fn software(name: &str) -> Result<Software, Error> {
    let all = softwares();
    all.get(name).copied().ok_or_else(|| {
        let near = nearest(name, all.keys().map(String::as_str));
        let offer = match near.as_slice() {
            [] => {
                let all: Vec<&str> = all.keys().map(String::as_str).collect();
                format!("there are {}", all.join(", "))
            }
            near => format!("nearest: {}", near.join(", ")),
        };
        let message = format!("no software is called {name:?}; {offer}");
        Error::asked("software", message)
    })
}

/// All softwares of which steps were published.
pub fn softwares() -> &'static BTreeMap<String, Software> {
    static ALL: OnceLock<BTreeMap<String, Software>> = OnceLock::new();
    ALL.get_or_init(|| {
        let text = include_str!("../data/software.toml");
        toml::from_str(text).expect("data/software.toml parses")
    })
}

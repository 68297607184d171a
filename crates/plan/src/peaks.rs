//! Measured peaks of memory, `data/memory.csv`, beside what is predicted: 8 B200, BF16, one
//! sequence of 4,096 tokens a micro-batch, so many leading layers of a model, two on each stage
//! where there are two stages. Peaks of `max_memory_allocated`: github.com/MooreThreads/SimuMax
//! docs/b200/b200_release_v1.2_summary.md @1b8ca90b.

use serde::{Deserialize, Serialize};

use crate::chip;
use crate::efficiency::Efficiencies;
use crate::error::Error;
use crate::job::{Cluster, Job, Precision};
use crate::layout::Layout;
use crate::measured::software;
use crate::memory::memory;
use crate::partition::units;
use crate::preset;
use crate::shape::{Blocks, Shape};
use crate::step::check_layout;
use crate::table::rows;

const CHIPS: u64 = 8;
const GIB: f64 = (1 << 30) as f64;

#[derive(Clone, Debug, Deserialize)]
struct Row {
    model: String,
    layers: u64,
    layout: String,
    published_gib: f64,
}

/// A measured peak and its prediction, in GiB.
#[derive(Clone, Debug, Serialize)]
pub struct Peak {
    pub model: String,
    pub layers: u64,
    pub layout: String,
    pub published: f64,
    pub predicted: f64,
}

impl Peak {
    /// Predicted by published, less 1.
    pub fn error(&self) -> f64 {
        self.predicted / self.published - 1.0
    }
}

/// All of them.
///
/// # Errors
/// None with the shipped data; a test reckons all.
pub fn peaks() -> Result<Vec<Peak>, Error> {
    let rows: Vec<Row> = rows("memory.csv", include_str!("../data/memory.csv"))?;
    let peak = |row: Row| {
        let predicted = predicted(&row)?;
        Ok(Peak {
            predicted,
            model: row.model,
            layers: row.layers,
            layout: row.layout,
            published: row.published_gib,
        })
    };
    rows.into_iter().map(peak).collect()
}

fn predicted(row: &Row) -> Result<f64, Error> {
    let shape = leading(&preset::find(&row.model)?.shape, row.layers);
    let cluster = Cluster::new(chip::find("b200")?.clone(), CHIPS);
    let layout: Layout = row.layout.parse()?;
    let efficiencies = Efficiencies::shipped();
    let job = Job {
        shape: &shape,
        cluster: &cluster,
        seq_len: 4096,
        batch_seqs: 8 * layout.dp(CHIPS),
        precision: Precision::Bf16,
        with_mtp: false,
        layout,
        software: software("simumax")?,
        efficiencies: &efficiencies,
    };
    check_layout(&job)?;
    let units = units(&job);
    // Embedding and head are units of their own, before and behind the layers.
    let stages: Vec<Vec<usize>> = match layout.pp {
        1 => vec![(0..units.len()).collect()],
        _ => {
            let half = 1 + row.layers as usize / 2;
            vec![(0..half).collect(), (half..units.len()).collect()]
        }
    };
    Ok(memory(&job, &units, &stages).total().0 / GIB)
}

/// A model cut off behind so many layers.
fn leading(shape: &Shape, mut layers: u64) -> Shape {
    let mut blocks = Vec::new();
    for block in &shape.blocks {
        let count = block.count.min(layers);
        layers -= count;
        if count > 0 {
            let layer = block.layer.clone();
            blocks.push(Blocks { count, layer });
        }
    }
    Shape {
        blocks,
        ..shape.clone()
    }
}

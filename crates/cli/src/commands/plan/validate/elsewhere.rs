//! What else was published: peaks of memory, and rates of services.

use plan::chip;
use plan::memory::USABLE;
use plan::peaks::{Peak, peaks};
use plan::preset;
use plan::serving::{Published, RATE_SPREAD, published};
use plan::validation::Compared;

use super::cell;
use crate::failure::Failure;

/// # Errors
/// None with the shipped data.
pub fn memory(rows: &[Compared]) -> Result<String, Failure> {
    let row = |peak: &Peak| {
        format!(
            "| {} | {} | {} | {:.2} | {:.2} | {:+.1} |\n",
            peak.model,
            peak.layers,
            peak.layout,
            peak.published,
            peak.predicted,
            100.0 * peak.error()
        )
    };
    let lines: String = peaks()?.iter().map(row).collect();
    Ok(format!(
        "## Memory\n\nPeaks of allocated memory on 8 B200 in BF16, one sequence of 4,096 tokens a \
         micro-batch, the leading layers of a model (github.com/MooreThreads/SimuMax \
         docs/b200/b200_release_v1.2_summary.md). Nothing is fitted.\n\n\
         | Model | Layers | Layout | Published GiB | Predicted GiB | Error % |\n\
         |---|--:|---|--:|--:|--:|\n{lines}\n\
         Of the steps above, which all ran, these are said not to fit, most of them with \
         recomputation or sharding that was not printed: {}.\n\n",
        too_large(rows)?.join(", ")
    ))
}

/// Steps whose memory is predicted beyond their chip's, with both in GB.
fn too_large(rows: &[Compared]) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for row in rows {
        let memory = chip::find(&row.chip)?.memory.map_or(0.0, |memory| memory.0);
        let usable = memory * USABLE;
        if row.memory_bytes > usable {
            let [needed, usable] = [row.memory_bytes, usable].map(|bytes| bytes / 1e9);
            found.push(format!("{} ({needed:.0} of {usable:.0} GB)", row.id));
        }
    }
    Ok(found)
}

/// # Errors
/// None with the shipped data.
pub fn services() -> Result<String, Failure> {
    let row = |rate: &Published| {
        format!(
            "| {} | {} | {:.0} | {:.0} | {:+.1} | {} | {} |\n",
            cell(rate.what),
            rate.unit,
            rate.published,
            rate.predicted.mid,
            100.0 * rate.error,
            cell(rate.note),
            cell(rate.source)
        )
    };
    let v3 = preset::find("deepseek-v3")?;
    let lines: String = published(&v3.shape)?.iter().map(row).collect();
    Ok(format!(
        "## Services\n\nDeepSeek-V3 as it was served, from chips, layout and lengths alone; \
         nothing is fitted. The bounds that `plan --serve` shows, {} to {} of its prediction, are \
         those of this table.\n\n\
         | Service | Unit | Published | Predicted | Error % | Note | Source |\n\
         |---|---|--:|--:|--:|---|---|\n{lines}\n",
        RATE_SPREAD.low, RATE_SPREAD.high
    ))
}

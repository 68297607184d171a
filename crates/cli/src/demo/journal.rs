//! `metrics.jsonl` and `samples.jsonl`, a line at a time, so that a run can be watched.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use train::Sample;

use crate::failure::{Failure, Outcome, disk};

pub struct Journal {
    metrics: Lines,
    samples: Lines,
}

/// A line with the stage that it belongs to.
#[derive(Serialize)]
struct Line<'a, T> {
    stage: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

impl Journal {
    /// New files; those of an earlier demo are replaced.
    ///
    /// # Errors
    /// The files cannot be made.
    pub fn create(dir: &Path) -> Result<Journal, Failure> {
        Ok(Journal {
            metrics: Lines::create(dir.join("metrics.jsonl"))?,
            samples: Lines::create(dir.join("samples.jsonl"))?,
        })
    }

    /// # Errors
    /// The disk fails.
    pub fn step(
        &mut self,
        stage: &'static str,
        metrics: &impl Serialize,
        samples: &[Sample],
    ) -> Outcome {
        self.metrics.write(&Line {
            stage,
            value: metrics,
        })?;
        samples
            .iter()
            .try_for_each(|value| self.samples.write(&Line { stage, value }))
    }
}

struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    fn create(path: PathBuf) -> Result<Lines, Failure> {
        let file = File::create(&path).map_err(disk(&path, "creating the file"))?;
        Ok(Lines { path, file })
    }

    fn write(&mut self, value: &impl Serialize) -> Outcome {
        let line = crate::commands::json_line(value);
        self.file
            .write_all(line.as_bytes())
            .map_err(disk(&self.path, "writing"))
    }
}

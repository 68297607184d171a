//! `score`: how likely a model finds given texts.

use std::path::PathBuf;

use clap::Args;
use kernels::Cpu;
use model::{Activations, Batch, Model, Targets};
use serde::Serialize;

use super::{json_line, print};
use crate::failure::Outcome;
use crate::folder::Folder;
use crate::rows;
use crate::settings::Settings;
use crate::weights::WeightOptions;

/// Tokens of one forward pass; a row's numbers do not depend on what shares its batch.
const BATCH_TOKENS: usize = 2048;

/// Log-probabilities, and on request logits, of given texts
///
/// Rows are JSON objects, one a line, with `text` or `token_ids`. For each comes one line
/// {"token_ids": [...], "logprobs": [null, ...], "sum_logprob": x}; the first token has no
/// log-probability, because nothing stands before it.
#[derive(Args)]
#[command(
    after_help = "Example:\n  bruchteil score demo-out/grpo --input rows.jsonl --logits \
logits.safetensors"
)]
pub struct Score {
    /// A Hugging Face model folder, or a GGUF file
    model: PathBuf,
    /// JSONL file of rows
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the results go [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also write all logits in f32: tensor `logits.N`, [tokens, vocab_size], for row N from 0
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightOptions,
}

#[derive(Serialize)]
struct Scored<'a> {
    token_ids: &'a [u32],
    logprobs: Vec<Option<f32>>,
    sum_logprob: f64,
}

impl Score {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let mut folder = Folder::open(&self.model)?;
        let rows = rows::read(&self.input, &folder)?;
        let backend = settings.backend();
        let numerics = settings.numerics();
        let model = self
            .weights
            .open(&mut folder, numerics, settings, &backend)?;
        let mut progress = settings.ui().start("score", rows.len() as u64);
        let mut scorer = Scorer::new(&model, &backend, self.logits.is_some());
        let mut lines = String::new();
        let (mut done, mut tokens) = (0, 0);
        for batch in batches(&rows) {
            lines += &scorer.score(batch);
            done += batch.len();
            tokens += batch.iter().map(Vec::len).sum::<usize>();
            progress.update_tokens(done as u64, tokens as u64);
        }
        if let Some(path) = &self.logits {
            scorer.write_logits(path)?;
        }
        progress.finish(&format!("{done} rows"));
        match &self.output {
            Some(path) => Ok(model::write_atomic(path, lines.as_bytes())?),
            None => print(&lines),
        }
    }
}

/// Consecutive rows of at most `BATCH_TOKENS` tokens together, or one longer row.
fn batches(rows: &[Vec<u32>]) -> impl Iterator<Item = &[Vec<u32>]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|row| {
            tokens += row.len();
            tokens <= BATCH_TOKENS
        });
        let (batch, after) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

struct Scorer<'a> {
    model: &'a Model,
    backend: &'a Cpu,
    acts: Activations,
    /// `None` where they are not asked for; else one per row, [tokens, vocab_size].
    logits: Option<Vec<Vec<f32>>>,
}

impl<'a> Scorer<'a> {
    fn new(model: &'a Model, backend: &'a Cpu, keeps_logits: bool) -> Scorer<'a> {
        Scorer {
            model,
            backend,
            acts: Activations::for_inference(),
            logits: keeps_logits.then(Vec::new),
        }
    }

    /// The result lines of rows that share one forward pass.
    fn score(&mut self, rows: &[Vec<u32>]) -> String {
        let documents: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let batch = Batch::documents(&documents);
        self.model
            .forward(self.backend, &batch, &mut self.acts, None);
        let logprobs = self.logprobs(rows);
        self.keep_logits(rows);
        let mut rest = logprobs.as_slice();
        let mut lines = String::new();
        for token_ids in rows {
            let (own, after) = rest.split_at(token_ids.len() - 1);
            rest = after;
            let sum_logprob = own.iter().map(|&logprob| f64::from(logprob)).sum();
            let own = own.iter().map(|&logprob| Some(logprob));
            let logprobs = std::iter::once(None).chain(own).collect();
            lines += &json_line(&Scored {
                token_ids,
                logprobs,
                sum_logprob,
            });
        }
        lines
    }

    /// Of every token but each row's first.
    fn logprobs(&mut self, rows: &[Vec<u32>]) -> Vec<f32> {
        let mut targets = Targets {
            rows: Vec::new(),
            token_ids: Vec::new(),
        };
        let mut start = 0;
        for row in rows {
            let end = start + row.len() as u32;
            targets.rows.extend(start..end - 1);
            targets.token_ids.extend(&row[1..]);
            start = end;
        }
        let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
        if !targets.rows.is_empty() {
            let (logprobs, entropies) = (&mut logprobs, &mut entropies);
            self.model.logprobs(
                self.backend,
                &mut self.acts,
                &targets,
                1.0,
                logprobs,
                entropies,
            );
        }
        logprobs
    }

    fn keep_logits(&mut self, rows: &[Vec<u32>]) {
        let Some(kept) = &mut self.logits else {
            return;
        };
        let mut start = 0;
        for row in rows {
            let end = start + row.len() as u32;
            let wanted: Vec<u32> = (start..end).collect();
            let mut logits = Vec::new();
            self.model
                .logits(self.backend, &mut self.acts, &wanted, &mut logits);
            kept.push(logits);
            start = end;
        }
    }

    fn write_logits(&self, path: &std::path::Path) -> Outcome {
        let logits = self.logits.as_deref().unwrap_or_default();
        let vocab_size = self.model.config.vocab_size;
        let named: Vec<(String, [usize; 2])> = logits
            .iter()
            .enumerate()
            .map(|(row, logits)| {
                (
                    format!("logits.{row}"),
                    [logits.len() / vocab_size, vocab_size],
                )
            })
            .collect();
        let tensors: Vec<(&str, &[usize], &[f32])> = named
            .iter()
            .zip(logits)
            .map(|((name, shape), logits)| (name.as_str(), shape.as_slice(), logits.as_slice()))
            .collect();
        Ok(model::write_tensors(path, &tensors)?)
    }
}

#[cfg(test)]
mod tests {
    use super::batches;

    #[test]
    fn batches_are_the_rows_in_order_and_bounded() {
        let rows: Vec<Vec<u32>> = [2000, 48, 1, 5000, 3, 2045, 7].map(|n| vec![0; n]).to_vec();
        let sizes: Vec<Vec<usize>> = batches(&rows)
            .map(|batch| batch.iter().map(Vec::len).collect())
            .collect();
        assert_eq!(
            sizes,
            [vec![2000, 48], vec![1], vec![5000], vec![3, 2045], vec![7]]
        );
    }
}

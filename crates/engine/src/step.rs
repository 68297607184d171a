//! One batch: from the chunks that were scheduled to the tokens that came of them.

use crate::output::{FinishReason, Output};
use crate::sampler::{Due, Sampler};
use crate::scheduler::Scheduler;
use kernels::{Backend, Mat};
use model::{Activations, Batch, CachePlaces, KvCache, Model};
use std::ops::Range;

/// Rows whose logits exist at one time, which bounds memory where the vocabulary is large.
const LOGIT_ROWS: usize = 256;

/// The rows of one sequence that may each give a token: that of its last token, then those of its
/// drafts.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// Place among those running.
    index: usize,
    /// Of the last token, in the batch.
    row: usize,
    /// First row in the round of logits.
    first: usize,
    drafts: usize,
}

/// What computing takes: the cache, and buffers that are never allocated again.
pub(crate) struct Step {
    cache: KvCache,
    activations: Activations,
    batch: Batch,
    sampler: Sampler,
    groups: Vec<Group>,
    /// Rows of prompts that are scored, and the place of their sequence among those running.
    scored: Vec<(u32, usize)>,
    rows: Vec<u32>,
    logits: Vec<f32>,
    pub(crate) generated_tokens: u64,
    pub(crate) steps: u64,
}

impl Step {
    pub(crate) fn new(cache: KvCache) -> Step {
        Step {
            cache,
            activations: Activations::for_inference(),
            batch: Batch::default(),
            sampler: Sampler::default(),
            groups: Vec::new(),
            scored: Vec::new(),
            rows: Vec::new(),
            logits: Vec::new(),
            generated_tokens: 0,
            steps: 0,
        }
    }

    /// Computes what was scheduled, and gives every sequence that is due its next tokens.
    pub(crate) fn run(
        &mut self,
        model: &Model,
        backend: &dyn Backend,
        scheduler: &mut Scheduler,
    ) -> Vec<Output> {
        self.steps += 1;
        self.fill_batch(scheduler);
        let cache = Some(&mut self.cache);
        model.forward(backend, &self.batch, &mut self.activations, cache);
        self.find_rows(scheduler);
        scheduler.note_computed();
        self.score_prompts(model, backend, scheduler);
        self.sample(model, backend, scheduler);
        let outputs = scheduler.running.iter_mut();
        outputs
            .filter_map(|sequence| sequence.take_output())
            .collect()
    }

    /// Writes the scheduled chunks into `batch`.
    fn fill_batch(&mut self, scheduler: &Scheduler) {
        let chunks = scheduler.chunks();
        let mut places = self.batch.places.take().unwrap_or_default();
        let CachePlaces {
            slot_mapping,
            block_tables,
            blocks_per_sequence,
        } = &mut places;
        let batch = &mut self.batch;
        batch.token_ids.clear();
        batch.positions.clear();
        batch.cu_seqlens.clear();
        batch.cu_seqlens.push(0);
        batch.context_lens.clear();
        slot_mapping.clear();
        block_tables.clear();
        let tables = chunks
            .iter()
            .map(|chunk| &scheduler.running[chunk.index].block_table);
        *blocks_per_sequence = tables.map(Vec::len).max().unwrap_or(0);
        for (i, chunk) in chunks.iter().enumerate() {
            let sequence = &scheduler.running[chunk.index];
            let positions = sequence.num_computed..sequence.num_computed + chunk.tokens;
            batch
                .token_ids
                .extend_from_slice(&sequence.token_ids[positions.clone()]);
            batch.positions.extend(positions.clone().map(|p| p as u32));
            batch.cu_seqlens.push(batch.token_ids.len() as u32);
            batch.context_lens.push(positions.end as u32);
            let table = &sequence.block_table;
            slot_mapping.extend(positions.map(|p| scheduler.blocks().slot(table, p)));
            block_tables.extend_from_slice(table);
            // Entries beyond a sequence's own blocks are never read.
            block_tables.resize((i + 1) * *blocks_per_sequence, 0);
        }
        batch.places = Some(places);
    }

    /// Finds the rows whose logits are wanted.
    fn find_rows(&mut self, scheduler: &Scheduler) {
        self.groups.clear();
        self.scored.clear();
        for (chunk, &start) in scheduler.chunks().iter().zip(&self.batch.cu_seqlens) {
            let sequence = &scheduler.running[chunk.index];
            let start = start as usize;
            let computed = sequence.num_computed..sequence.num_computed + chunk.tokens;
            let unscored = sequence.unscored();
            let positions = unscored.start.max(computed.start)..unscored.end.min(computed.end);
            let row = |position: usize| (start + position - computed.start) as u32;
            self.scored
                .extend(positions.map(|position| (row(position), chunk.index)));
            if computed.end == sequence.token_ids.len() {
                self.groups.push(Group {
                    index: chunk.index,
                    row: start + chunk.tokens - 1,
                    first: 0,
                    drafts: 0,
                });
            }
        }
    }

    /// Scores prompts, each token by the row before it.
    fn score_prompts(&mut self, model: &Model, backend: &dyn Backend, scheduler: &mut Scheduler) {
        let running = &mut scheduler.running;
        for scored in self.scored.chunks(LOGIT_ROWS) {
            self.rows.clear();
            self.rows.extend(scored.iter().map(|&(row, _)| row));
            model.logits(backend, &mut self.activations, &self.rows, &mut self.logits);
            let logits = Mat::new(&self.logits, model.config.vocab_size);
            let mut tokens = Vec::with_capacity(scored.len());
            for &(row, index) in scored {
                let sequence = &running[index];
                let next = self.batch.positions[row as usize] as usize + 1;
                tokens.push((
                    sequence.token_ids[next],
                    sequence.prompt_logprobs.unwrap_or(0),
                ));
            }
            self.sampler
                .score(backend, logits, tokens.into_iter(), |i, score| {
                    running[scored[i].1].push_prompt_score(score);
                });
        }
    }

    /// Gives every sequence in `groups` its next tokens, in rounds of logits.
    fn sample(&mut self, model: &Model, backend: &dyn Backend, scheduler: &mut Scheduler) {
        let mut start = 0;
        while start < self.groups.len() {
            self.rows.clear();
            let mut end = start;
            while let Some(group) = self.groups.get_mut(end) {
                if end > start && self.rows.len() + group.drafts >= LOGIT_ROWS {
                    break;
                }
                group.first = self.rows.len();
                let rows = group.row..group.row + group.drafts + 1;
                self.rows.extend(rows.map(|row| row as u32));
                end += 1;
            }
            model.logits(backend, &mut self.activations, &self.rows, &mut self.logits);
            self.sample_round(model.config.vocab_size, backend, scheduler, start..end);
            start = end;
        }
    }

    /// Samples from one round of logits.
    fn sample_round(
        &mut self,
        vocab_size: usize,
        backend: &dyn Backend,
        scheduler: &mut Scheduler,
        groups: Range<usize>,
    ) {
        let groups = &self.groups[groups];
        let running = &mut scheduler.running;
        let logits = Mat::new(&self.logits, vocab_size);
        let params = groups.iter().flat_map(|group| {
            let params = &running[group.index].params;
            std::iter::repeat_n(params, group.drafts + 1)
        });
        self.sampler.begin(backend, logits, params);
        let mut due: Vec<Due> = Vec::with_capacity(groups.len());
        for group in groups {
            if running[group.index].params.max_tokens == 0 {
                running[group.index].finish(FinishReason::Length);
            } else {
                due.push(Due {
                    row: group.first,
                    index: group.index,
                });
            }
        }
        self.sampler.choose(backend, logits, &due, running);
        for (due, token) in due.iter().zip(self.sampler.chosen.drain(..)) {
            match token {
                None => running[due.index].finish(FinishReason::Stop),
                Some(token) => {
                    running[due.index].push(token);
                    self.generated_tokens += 1;
                }
            }
        }
    }
}

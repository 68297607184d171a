//! One batch: from the chunks that were scheduled to the tokens that came of them.

use crate::output::{FinishReason, Output, ScoredToken, Stats};
use crate::sampler::{Due, Sampler, argmax};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
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
    /// Draft with multi-token prediction while no more sequences than this run.
    predicts: Option<usize>,
    next_token_ids: Vec<u32>,
}

impl Step {
    pub(crate) fn new(cache: KvCache, predicts: Option<usize>) -> Step {
        Step {
            cache,
            activations: Activations::for_inference(),
            batch: Batch::default(),
            sampler: Sampler::default(),
            groups: Vec::new(),
            scored: Vec::new(),
            rows: Vec::new(),
            logits: Vec::new(),
            predicts,
            next_token_ids: Vec::new(),
        }
    }

    /// Computes what was scheduled, and gives every sequence that is due its next tokens.
    pub(crate) fn run(
        &mut self,
        model: &Model,
        backend: &dyn Backend,
        scheduler: &mut Scheduler,
    ) -> Vec<Output> {
        scheduler.stats.steps += 1;
        self.fill_batch(scheduler);
        let cache = Some(&mut self.cache);
        model.forward(backend, &self.batch, &mut self.activations, cache);
        self.find_rows(scheduler);
        self.score_prompts(model, backend, scheduler);
        self.sample(model, backend, scheduler);
        if let Some(most) = self.predicts {
            self.predict(model, backend, scheduler, most);
        }
        scheduler.settle();
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
            let start = sequence.num_computed;
            let known = start..start + chunk.tokens;
            let positions = start..known.end + chunk.drafts;
            batch
                .token_ids
                .extend_from_slice(&sequence.token_ids[known]);
            batch
                .token_ids
                .extend_from_slice(&sequence.drafts.token_ids);
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

    /// Counts the batch as computed, and finds the rows whose logits are wanted.
    fn find_rows(&mut self, scheduler: &mut Scheduler) {
        self.groups.clear();
        self.scored.clear();
        for (i, &start) in self
            .batch
            .cu_seqlens
            .iter()
            .take(scheduler.chunks().len())
            .enumerate()
        {
            let chunk = scheduler.chunks()[i];
            let sequence = &mut scheduler.running[chunk.index];
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
                    drafts: chunk.drafts,
                });
            }
            sequence.num_computed = computed.end;
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
        let mut alive = Vec::with_capacity(groups.len());
        for group in groups {
            let sequence = &mut running[group.index];
            if sequence.params.max_tokens == 0 {
                sequence.finish(FinishReason::Length);
            } else {
                alive.push(*group);
            }
        }
        let mut due: Vec<Due> = Vec::with_capacity(groups.len());
        // First the token after each sequence's last, then the one after each right draft: a
        // penalty or a constraint has seen all before it.
        for drafts in 0.. {
            due.clear();
            due.extend(alive.iter().map(|group| Due {
                row: group.first + drafts,
                index: group.index,
            }));
            self.sampler.choose(backend, logits, &due, running);
            let mut chosen = self.sampler.chosen.drain(..);
            alive.retain(|group| {
                let token = chosen.next().expect("one for each row");
                accept(
                    &mut running[group.index],
                    token,
                    drafts,
                    &mut scheduler.stats,
                )
            });
            if alive.is_empty() {
                break;
            }
        }
    }

    /// Runs multi-token prediction over the batch, once the tokens after each row are known, and
    /// keeps its guesses. Rows of wrong drafts say nothing and are written over later.
    fn predict(
        &mut self,
        model: &Model,
        backend: &dyn Backend,
        scheduler: &mut Scheduler,
        most: usize,
    ) {
        self.next_token_ids.clear();
        for (i, chunk) in scheduler.chunks().iter().enumerate() {
            let rows = self.batch.cu_seqlens[i] as usize..self.batch.cu_seqlens[i + 1] as usize;
            let token_ids = &scheduler.running[chunk.index].token_ids;
            let next = self.batch.positions[rows]
                .iter()
                .map(|&p| token_ids.get(p as usize + 1));
            self.next_token_ids
                .extend(next.map(|next| next.copied().unwrap_or(0)));
        }
        let (batch, cache) = (&self.batch, Some(&mut self.cache));
        let acts = &mut self.activations;
        model.forward_mtp(backend, batch, &self.next_token_ids, acts, cache);
        let running = &mut scheduler.running;
        if running.len() > most {
            return;
        }
        self.groups
            .retain(|group| running[group.index].finish_reason.is_none());
        for groups in self.groups.chunks(LOGIT_ROWS) {
            self.rows.clear();
            // Of the last token but one, whose next is the last: it tells the one after that.
            self.rows.extend(groups.iter().map(|group| {
                let computed = running[group.index].num_computed as u32;
                group.row as u32 + computed - 1 - self.batch.positions[group.row]
            }));
            model.mtp_logits(backend, acts, &self.rows, &mut self.logits);
            let logits = Mat::new(&self.logits, model.config.vocab_size);
            for (i, group) in groups.iter().enumerate() {
                running[group.index].drafts.predicted = Some(argmax(logits.row(i)));
            }
        }
    }
}

/// Gives a sequence the token after `drafts` right ones. Returns whether that was the next draft,
/// so that the row after it counts too.
fn accept(
    sequence: &mut Sequence,
    token: Option<ScoredToken>,
    drafts: usize,
    stats: &mut Stats,
) -> bool {
    let Some(token) = token else {
        sequence.finish(FinishReason::Stop);
        sequence.note_drafts(drafts);
        return false;
    };
    let is_right = sequence.drafts.token_ids.get(drafts) == Some(&token.token_id);
    sequence.push(token);
    stats.generated_tokens += 1;
    if is_right {
        sequence.num_computed += 1;
        stats.accepted_draft_tokens += 1;
    }
    let goes_on = is_right && sequence.finish_reason.is_none();
    if !goes_on {
        sequence.note_drafts(drafts + usize::from(is_right));
    }
    goes_on
}

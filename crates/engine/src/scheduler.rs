//! Which tokens of which sequences the next batch computes.
//!
//! First come, first served. `running` and `waiting` are each ordered by arrival, and everything
//! that waits is younger than everything that runs: new requests join the back, a preempted
//! sequence is the youngest that ran and returns to the front. Blocks are taken from the young for
//! the old only, so the oldest sequence always advances and none starves.

use crate::block_manager::BlockManager;
use crate::request::SequenceId;
use crate::sequence::Sequence;
use std::collections::VecDeque;

/// Tokens of one sequence in the next batch: its first uncomputed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// In [`Scheduler::running`].
    pub(crate) index: usize,
    pub(crate) tokens: usize,
}

/// Sequences that run, sequences that wait, and the blocks they share.
pub(crate) struct Scheduler {
    pub(crate) running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    blocks: BlockManager,
    /// No more than a batch has tokens, so that every running sequence can decode in each step.
    max_running: usize,
    max_num_batched_tokens: usize,
    chunks: Vec<Chunk>,
    num_preemptions: u64,
    prompt_tokens: u64,
}

impl Scheduler {
    pub(crate) fn new(
        blocks: BlockManager,
        max_num_seqs: usize,
        max_num_batched_tokens: usize,
    ) -> Scheduler {
        Scheduler {
            running: Vec::new(),
            waiting: VecDeque::new(),
            blocks,
            max_running: max_num_seqs.min(max_num_batched_tokens),
            max_num_batched_tokens,
            chunks: Vec::new(),
            num_preemptions: 0,
            prompt_tokens: 0,
        }
    }

    /// Takes a sequence that the whole cache can hold.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Forgets a sequence and takes back its blocks. False if it is not there.
    pub(crate) fn cancel(&mut self, id: SequenceId) -> bool {
        let mut gone = match self
            .running
            .binary_search_by_key(&id, |sequence| sequence.id)
        {
            Ok(index) => Some(self.running.remove(index)),
            Err(_) => match self
                .waiting
                .binary_search_by_key(&id, |sequence| sequence.id)
            {
                Ok(index) => self.waiting.remove(index),
                Err(_) => None,
            },
        };
        if let Some(sequence) = &mut gone {
            self.blocks.release(&mut sequence.block_table);
        }
        gone.is_some()
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// The batch that [`schedule`](Scheduler::schedule) chose.
    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Chooses the next batch: the next token of every sequence that decodes, then the rest of a
    /// prompt begun before, then new prompts for as long as tokens and blocks suffice. Blocks for
    /// all tokens chosen are in place afterwards. Never empty unless idle.
    pub(crate) fn schedule(&mut self) {
        self.chunks.clear();
        let mut budget = self.max_num_batched_tokens;
        self.schedule_decodes(&mut budget);
        self.continue_prefills(&mut budget);
        self.admit(&mut budget);
        assert!(
            self.is_idle() || !self.chunks.is_empty(),
            "nothing to compute, yet sequences are under way"
        );
    }

    /// Oldest first, so that whoever loses its blocks to it has not been scheduled yet.
    fn schedule_decodes(&mut self, budget: &mut usize) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].num_uncomputed() == 1 {
                if !self.make_room(index) {
                    return;
                }
                self.chunks.push(Chunk { index, tokens: 1 });
                *budget -= 1;
            }
            index += 1;
        }
    }

    /// Blocks for all tokens of a running sequence, taken from the youngest if need be. False if
    /// that was the sequence itself, which then waits again.
    fn make_room(&mut self, index: usize) -> bool {
        loop {
            let sequence = &mut self.running[index];
            let tokens = sequence.token_ids.len();
            if self.blocks.grow(&mut sequence.block_table, tokens) {
                return true;
            }
            self.preempt_youngest();
            if index == self.running.len() {
                return false;
            }
        }
    }

    /// The youngest loses its blocks and keeps its tokens; they are computed again when it is
    /// readmitted, to the same bits.
    fn preempt_youngest(&mut self) {
        let mut youngest = self
            .running
            .pop()
            .expect("only running sequences hold blocks");
        self.blocks.release(&mut youngest.block_table);
        youngest.num_computed = 0;
        self.num_preemptions += 1;
        self.waiting.push_front(youngest);
    }

    /// Blocks for the whole prompt were taken at admission. At most the youngest sequence is in the
    /// middle of its prompt, because admission stops at the first that does not fit the batch.
    fn continue_prefills(&mut self, budget: &mut usize) {
        for (index, sequence) in self.running.iter().enumerate() {
            let tokens = sequence.num_uncomputed();
            if tokens > 1 && *budget > 0 {
                let tokens = tokens.min(*budget);
                self.chunks.push(Chunk { index, tokens });
                *budget -= tokens;
            }
        }
    }

    /// Admits from the front of the queue. Besides its own blocks, one per running sequence must be
    /// free: without that margin a newcomer would soon be preempted, and computed twice.
    fn admit(&mut self, budget: &mut usize) {
        while *budget > 0 && self.running.len() < self.max_running {
            let Some(next) = self.waiting.front() else {
                return;
            };
            let length = next.token_ids.len();
            let needed = self.blocks.blocks_for(length) + self.running.len();
            if needed > self.blocks.num_free() {
                return;
            }
            let mut sequence = self.waiting.pop_front().expect("it was looked at above");
            let granted = self.blocks.grow(&mut sequence.block_table, length);
            assert!(granted, "blocks were counted above");
            if sequence.cached_tokens.replace(0).is_none() {
                self.prompt_tokens += length as u64;
            }
            let tokens = length.min(*budget);
            self.chunks.push(Chunk {
                index: self.running.len(),
                tokens,
            });
            self.running.push(sequence);
            *budget -= tokens;
        }
    }

    /// Counts the tokens of the batch as computed.
    pub(crate) fn note_computed(&mut self) {
        for chunk in &self.chunks {
            self.running[chunk.index].num_computed += chunk.tokens;
        }
    }

    /// Removes finished sequences, oldest first, and takes back their blocks.
    pub(crate) fn retire(&mut self) -> Vec<Sequence> {
        let is_finished = |sequence: &mut Sequence| sequence.finish_reason.is_some();
        let mut finished: Vec<Sequence> = self.running.extract_if(.., is_finished).collect();
        for sequence in &mut finished {
            self.blocks.release(&mut sequence.block_table);
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ScoredToken;
    use crate::params::SamplingParams;
    use crate::request::Request;
    use kernels::{Chance, Purpose};

    fn sequence(arrival: u64, prompt_tokens: usize, max_tokens: usize) -> Sequence {
        let params = SamplingParams {
            max_tokens,
            ..SamplingParams::default()
        };
        let prompt = vec![1; prompt_tokens];
        let request = Request {
            sequence: arrival,
            prompt,
            params,
        };
        Sequence::new(request.into(), SequenceId(arrival))
    }

    fn scheduler(num_blocks: usize, block_size: usize, seqs: usize, tokens: usize) -> Scheduler {
        Scheduler::new(BlockManager::new(num_blocks, block_size), seqs, tokens)
    }

    /// Computes the batch as an engine would; sampled tokens count up within a sequence.
    fn compute(scheduler: &mut Scheduler) -> Vec<Sequence> {
        scheduler.note_computed();
        for chunk in scheduler.chunks.clone() {
            let sequence = &mut scheduler.running[chunk.index];
            if sequence.num_uncomputed() == 0 {
                sequence.push(ScoredToken {
                    token_id: sequence.num_sampled() as u32,
                    logprob: 0.0,
                    top: Vec::new(),
                });
            }
        }
        scheduler.retire()
    }

    fn chunks(scheduler: &Scheduler) -> Vec<(usize, usize)> {
        let pair = |chunk: &Chunk| (chunk.index, chunk.tokens);
        scheduler.chunks.iter().map(pair).collect()
    }

    #[test]
    fn prompts_are_chunked_beside_decodes() {
        let mut scheduler = scheduler(100, 4, 8, 6);
        for (arrival, prompt_tokens) in [4, 9, 2].into_iter().enumerate() {
            scheduler.add(sequence(arrival as u64, prompt_tokens, 10));
        }
        let mut batches = Vec::new();
        for _ in 0..5 {
            scheduler.schedule();
            batches.push(chunks(&scheduler));
            compute(&mut scheduler);
        }
        let expected: [&[(usize, usize)]; 5] = [
            &[(0, 4), (1, 2)],
            &[(0, 1), (1, 5)],
            &[(0, 1), (1, 2), (2, 2)],
            &[(0, 1), (1, 1), (2, 1)],
            &[(0, 1), (1, 1), (2, 1)],
        ];
        assert_eq!(batches, expected);
    }

    #[test]
    fn the_youngest_gives_its_blocks_and_keeps_its_tokens() {
        // Two prompts of a block each, and one block to spare: both want it at once.
        let mut scheduler = scheduler(4, 2, 8, 100);
        scheduler.add(sequence(0, 2, 5));
        scheduler.add(sequence(1, 1, 5));
        scheduler.schedule();
        assert_eq!(chunks(&scheduler), [(0, 2), (1, 1)]);
        let mut finished = Vec::new();
        let mut preempted_with = None;
        while !scheduler.is_idle() {
            finished.extend(compute(&mut scheduler));
            let before = scheduler.num_preemptions();
            scheduler.schedule();
            if scheduler.num_preemptions() > before {
                let victim = &scheduler.waiting[0];
                assert_eq!((victim.id.0, victim.num_computed), (1, 0));
                assert!(victim.block_table.is_empty());
                preempted_with = Some(victim.num_sampled());
            }
        }
        assert!(
            preempted_with > Some(0),
            "nothing was preempted: {preempted_with:?}"
        );
        for (arrival, sequence) in finished.into_iter().enumerate() {
            assert_eq!(sequence.id.0, arrival as u64);
            assert_eq!(sequence.into_completion().token_ids, [0, 1, 2, 3, 4]);
        }
        assert_eq!(scheduler.blocks.num_free(), 4);
    }

    #[test]
    fn a_newcomer_leaves_room_to_grow() {
        // Two of these fit side by side only until the first grows.
        let mut scheduler = scheduler(4, 2, 8, 100);
        (0..2).for_each(|arrival| scheduler.add(sequence(arrival, 4, 3)));
        let mut finished = 0;
        while !scheduler.is_idle() {
            scheduler.schedule();
            assert_eq!(scheduler.running.len(), 1);
            finished += compute(&mut scheduler).len();
        }
        assert_eq!((finished, scheduler.num_preemptions()), (2, 0));
        // Small ones do run together.
        (0..2).for_each(|arrival| scheduler.add(sequence(arrival, 1, 2)));
        scheduler.schedule();
        assert_eq!(scheduler.running.len(), 2);
    }

    /// What must hold of every batch.
    fn check_batch(scheduler: &Scheduler, num_blocks: usize, seed: u64) {
        let tokens: usize = scheduler.chunks.iter().map(|chunk| chunk.tokens).sum();
        assert!(tokens > 0, "seed {seed}: an empty batch");
        assert!(tokens <= scheduler.max_num_batched_tokens, "seed {seed}");
        assert!(
            scheduler.running.len() <= scheduler.max_running,
            "seed {seed}"
        );
        let all = scheduler.running.iter().chain(&scheduler.waiting);
        assert!(all.map(|sequence| sequence.id).is_sorted(), "seed {seed}");
        assert!(
            scheduler.chunks.iter().any(|chunk| chunk.index == 0),
            "seed {seed}: the oldest sequence stands still"
        );
        let owned: usize = scheduler.running.iter().map(|s| s.block_table.len()).sum();
        let num_free = scheduler.blocks.num_free();
        assert_eq!(owned + num_free, num_blocks, "seed {seed}: leak");
        let mut scheduled = vec![0; scheduler.running.len()];
        for chunk in &scheduler.chunks {
            scheduled[chunk.index] += 1;
            let sequence = &scheduler.running[chunk.index];
            let end = sequence.num_computed + chunk.tokens;
            assert!(end <= sequence.token_ids.len(), "seed {seed}");
            let blocks = scheduler.blocks.blocks_for(end);
            assert!(blocks <= sequence.block_table.len(), "seed {seed}");
        }
        assert!(
            scheduled.iter().all(|&times| times == 1),
            "seed {seed}: every running sequence has its part in every batch"
        );
    }

    /// Random requests, arriving as others run, in caches of every size that can hold them.
    #[test]
    fn every_sequence_finishes_and_no_block_is_lost() {
        let mut num_preemptions = 0;
        for seed in 0..300 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(1);
            let block_size = 1 + draw(6) as usize;
            let longest = 40;
            let num_blocks = longest / block_size + 1 + draw(20) as usize;
            let seqs = 1 + draw(8) as usize;
            let tokens = 1 + draw(30) as usize;
            let mut scheduler = scheduler(num_blocks, block_size, seqs, tokens);
            let (total, mut arrived, mut finished) = (30, 0, 0);
            let mut steps = 0;
            while finished < total {
                while arrived < total && (scheduler.is_idle() || draw(3) > 0) {
                    let prompt_tokens = 1 + draw(20) as usize;
                    scheduler.add(sequence(arrived, prompt_tokens, 1 + draw(20) as usize));
                    arrived += 1;
                }
                scheduler.schedule();
                check_batch(&scheduler, num_blocks, seed);
                for sequence in compute(&mut scheduler) {
                    assert!(sequence.block_table.is_empty(), "seed {seed}");
                    let max_tokens = sequence.params.max_tokens as u32;
                    let completion = sequence.into_completion();
                    let expected: Vec<u32> = (0..max_tokens).collect();
                    assert_eq!(completion.token_ids, expected, "seed {seed}");
                    finished += 1;
                }
                steps += 1;
                assert!(steps < 10_000, "seed {seed}: no end in sight");
            }
            assert!(scheduler.is_idle(), "seed {seed}");
            assert_eq!(scheduler.blocks.num_free(), num_blocks, "seed {seed}: leak");
            num_preemptions += scheduler.num_preemptions();
        }
        assert!(num_preemptions > 100, "only {num_preemptions} preemptions");
    }
}

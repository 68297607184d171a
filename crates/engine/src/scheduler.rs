//! Which tokens of which sequences the next batch computes.
//!
//! Clients take turns to have a sequence admitted ([`Queue`]). The one whose turn it is may have
//! to wait for blocks, but is not overtaken, so everybody is admitted some day. `running` is
//! ordered by arrival: blocks are taken from the young for the old only, so the oldest sequence
//! always advances. Every sequence that runs has its part in every batch: one that decodes its next
//! token, one in the middle of its prompt a share of what is left.

use crate::block_manager::BlockManager;
use crate::config::EngineConfig;
use crate::output::Stats;
use crate::prefix::{Parent, hash_blocks};
use crate::queue::Queue;
use crate::request::SequenceId;
use crate::sequence::Sequence;
use std::collections::HashMap;

/// Prompts that are begun although the batch has no room for all of them. With several of them a
/// short prompt need not wait for the end of a long one; with many, all would end late.
const MOST_PREFILLS: usize = 8;
/// The oldest unfinished prompt has this share of the tokens for prompts; the rest goes to those
/// that need the least.
const SHARE_OF_OLDEST: usize = 4;

/// Tokens of one sequence in the next batch: its first uncomputed ones, and drafts behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// In [`Scheduler::running`].
    pub(crate) index: usize,
    pub(crate) tokens: usize,
    pub(crate) drafts: usize,
}

/// What admission keeps count of.
struct Load {
    /// Tokens of the batch that are left to prompts.
    budget: usize,
    /// Sequences with more than one uncomputed token, and these tokens.
    prefills: usize,
    uncomputed: usize,
}

/// Sequences that run, sequences that wait, and the blocks they share.
pub(crate) struct Scheduler {
    /// Ordered by arrival.
    pub(crate) running: Vec<Sequence>,
    queue: Queue,
    blocks: BlockManager,
    config: EngineConfig,
    /// No more than a batch has tokens, so that every running sequence can decode in each step.
    max_running: usize,
    /// How many running sequences are about to compute a block, by the hash of its text.
    announced: HashMap<u64, usize>,
    chunks: Vec<Chunk>,
    pub(crate) stats: Stats,
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig) -> Scheduler {
        Scheduler {
            running: Vec::new(),
            queue: Queue::default(),
            blocks: BlockManager::new(config.num_blocks, config.block_size),
            max_running: config.max_num_seqs.min(config.max_num_batched_tokens),
            config,
            announced: HashMap::new(),
            chunks: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// Takes a sequence that the whole cache can hold.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.queue.push(sequence);
    }

    /// Forgets a sequence and takes back its blocks. False if it is not there.
    pub(crate) fn cancel(&mut self, id: SequenceId) -> bool {
        match self
            .running
            .binary_search_by_key(&id, |sequence| sequence.id)
        {
            Ok(index) => {
                let mut sequence = self.running.remove(index);
                self.take_blocks(&mut sequence);
                true
            }
            Err(_) => self.queue.remove(id).is_some(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Gauges as they are, counters as they were counted.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.queue.len(),
            num_blocks: self.blocks.num_blocks(),
            free_blocks: self.blocks.num_free(),
            cached_blocks: self.blocks.num_cached(),
            ..self.stats
        }
    }

    /// The batch that [`schedule`](Scheduler::schedule) chose, in the order of `running`.
    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Chooses the next batch: the next token of every sequence that decodes, then prompts, then
    /// drafts. Blocks for all tokens chosen are in place afterwards. Never empty unless idle.
    pub(crate) fn schedule(&mut self) {
        self.chunks.clear();
        self.make_room();
        self.admit();
        self.fill();
        assert!(
            self.is_idle() || !self.chunks.is_empty(),
            "nothing to compute, yet sequences are under way"
        );
    }

    /// Blocks for the next token of all that decode, oldest first, taken from the youngest if need
    /// be. Blocks for a prompt were taken at admission.
    fn make_room(&mut self) {
        let mut index = 0;
        while let Some(sequence) = self.running.get_mut(index) {
            let tokens = sequence.token_ids.len();
            if self.blocks.grow(&mut sequence.block_table, tokens) {
                index += 1;
            } else {
                self.preempt_youngest();
            }
        }
    }

    /// The youngest loses its blocks and keeps its tokens; they are computed again when it is
    /// readmitted, to the same bits, if the cache does not hold them still.
    fn preempt_youngest(&mut self) {
        let youngest = self.running.pop();
        let mut youngest = youngest.expect("only running sequences hold blocks");
        self.take_blocks(&mut youngest);
        self.stats.preemptions += 1;
        self.queue.push_preempted(youngest);
    }

    /// Takes all blocks of a sequence, and back its word that it would compute some.
    fn take_blocks(&mut self, sequence: &mut Sequence) {
        for block in sequence.chain.registered..sequence.chain.announced {
            self.settle_announcement(sequence.chain.hashes[block]);
        }
        sequence.chain.registered = 0;
        sequence.chain.announced = 0;
        sequence.chain.parent = Parent::Root(sequence.cache_salt);
        self.blocks.release(&mut sequence.block_table);
        sequence.num_computed = 0;
    }

    /// A block that was announced is there, or will not come.
    fn settle_announcement(&mut self, hash: u64) {
        if let Some(count) = self.announced.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.announced.remove(&hash);
            }
        }
        self.queue.unpark(hash);
    }

    /// Admits those whose turn it is as long as there is room.
    fn admit(&mut self) {
        let mut load = self.load();
        while self.running.len() < self.max_running && load.admits() {
            let Some(found) = self.find_room() else {
                return;
            };
            let mut sequence = self.queue.take();
            self.blocks.share(&mut sequence.block_table, &found);
            let tokens = sequence.token_ids.len();
            let granted = self.blocks.grow(&mut sequence.block_table, tokens);
            assert!(granted, "blocks were counted above");
            sequence.num_computed = found.len() * self.config.block_size;
            if let Some(&(_, parent)) = found.last() {
                sequence.chain.parent = parent;
            }
            sequence.chain.registered = found.len();
            self.announce(&mut sequence);
            if sequence.cached_tokens.is_none() {
                sequence.cached_tokens = Some(sequence.num_computed);
                self.stats.prompt_tokens += tokens as u64;
                self.stats.cached_tokens += sequence.num_computed as u64;
            }
            load.add(sequence.num_uncomputed());
            let place = self.running.partition_point(|other| other.id < sequence.id);
            self.running.insert(place, sequence);
        }
    }

    fn load(&self) -> Load {
        let mut load = Load {
            budget: self.config.max_num_batched_tokens,
            prefills: 0,
            uncomputed: 0,
        };
        for sequence in &self.running {
            load.add(sequence.num_uncomputed());
        }
        load
    }

    /// What the cache holds of the sequence whose turn it is, if there is room for the rest of it.
    /// Those who would compute what another is about to compute are parked.
    ///
    /// Besides its own blocks, one per running sequence must be free: without that margin a
    /// newcomer would soon be preempted, and computed twice.
    fn find_room(&mut self) -> Option<Vec<(u32, Parent)>> {
        let block_size = self.config.block_size;
        loop {
            let sequence = self.queue.next()?;
            let mut found = Vec::new();
            if self.config.prefix_caching {
                let (salt, text) = (sequence.cache_salt, &sequence.token_ids);
                hash_blocks(salt, text, block_size, &mut sequence.chain.hashes);
                let most = sequence.reusable_tokens() / block_size;
                found = self.blocks.find(salt, text, most);
                let hashes = &sequence.chain.hashes[found.len()..most];
                let coming = hashes
                    .iter()
                    .take_while(|&hash| self.announced.contains_key(hash));
                if let Some(&last) = coming.last() {
                    self.queue.park(last);
                    continue;
                }
            }
            let missing = self.blocks.blocks_for(sequence.token_ids.len()) - found.len();
            let taken = missing + self.blocks.num_free_among(&found);
            let has_room = taken + self.running.len() <= self.blocks.num_free();
            return has_room.then_some(found);
        }
    }

    /// Lets others know which blocks this sequence is about to compute.
    fn announce(&mut self, sequence: &mut Sequence) {
        let chain = &mut sequence.chain;
        chain.announced = chain.hashes.len();
        for &hash in &chain.hashes[chain.registered..] {
            *self.announced.entry(hash).or_default() += 1;
        }
    }

    /// Divides the batch among all that run.
    fn fill(&mut self) {
        let load = self.load();
        let mut prefills = Vec::with_capacity(load.prefills);
        for (index, sequence) in self.running.iter().enumerate() {
            let needed = sequence.num_uncomputed();
            if needed > 1 {
                prefills.push((needed, index));
            }
            self.chunks.push(Chunk {
                index,
                tokens: 1,
                drafts: 0,
            });
        }
        let mut left = load.budget - load.prefills;
        if let Some(&(needed, oldest)) = prefills.first() {
            let share = (needed - 1).min(left / SHARE_OF_OLDEST);
            self.chunks[oldest].tokens += share;
            left -= share;
        }
        // Of equal needs the older comes first.
        prefills.sort_unstable();
        for (needed, index) in prefills {
            let tokens = &mut self.chunks[index].tokens;
            let share = (needed - *tokens).min(left);
            *tokens += share;
            left -= share;
        }
        if self.running.len() <= self.config.speculation.max_num_seqs {
            self.draft(left);
        }
    }

    /// Fills up to `left` tokens with drafts for those that decode, where blocks are free.
    fn draft(&mut self, mut left: usize) {
        let prompt_lookup = self.config.speculation.prompt_lookup;
        for chunk in &mut self.chunks {
            let sequence = &mut self.running[chunk.index];
            if sequence.num_uncomputed() > 1 {
                continue;
            }
            // Beside them one more token comes, the last that is allowed perhaps.
            let wanted = sequence.params.max_tokens - sequence.num_sampled();
            sequence.propose(prompt_lookup, left.min(wanted.saturating_sub(1)));
            let drafts = sequence.drafts.token_ids.len();
            let tokens = sequence.token_ids.len() + drafts;
            if self.blocks.grow(&mut sequence.block_table, tokens) {
                chunk.drafts = drafts;
                left -= drafts;
                self.stats.draft_tokens += drafts as u64;
            } else {
                sequence.drafts.token_ids.clear();
            }
        }
    }

    /// Makes the text of computed blocks known, and takes back blocks of drafts that were wrong.
    pub(crate) fn settle(&mut self) {
        for i in 0..self.chunks.len() {
            let sequence = &mut self.running[self.chunks[i].index];
            let needed = self.blocks.blocks_for(sequence.token_ids.len());
            self.blocks.shorten(&mut sequence.block_table, needed);
            if self.config.prefix_caching {
                self.register(self.chunks[i].index);
            }
        }
    }

    fn register(&mut self, index: usize) {
        let block_size = self.config.block_size;
        let sequence = &mut self.running[index];
        let from = sequence.chain.registered;
        let full = sequence.num_computed / block_size;
        for i in from..full {
            let text = &sequence.token_ids[i * block_size..(i + 1) * block_size];
            let block = &mut sequence.block_table[i];
            sequence.chain.parent = self.blocks.register(sequence.chain.parent, text, block);
        }
        sequence.chain.registered = full;
        let announced = full.min(sequence.chain.announced);
        for block in from..announced {
            self.settle_announcement(self.running[index].chain.hashes[block]);
        }
    }

    /// Removes finished sequences, oldest first, and takes back their blocks.
    pub(crate) fn retire(&mut self) -> Vec<Sequence> {
        let is_finished = |sequence: &mut Sequence| sequence.finish_reason.is_some();
        let mut finished: Vec<Sequence> = self.running.extract_if(.., is_finished).collect();
        for sequence in &mut finished {
            self.take_blocks(sequence);
        }
        finished
    }
}

impl Load {
    fn add(&mut self, uncomputed: usize) {
        if uncomputed > 1 {
            self.prefills += 1;
            self.uncomputed += uncomputed;
        } else {
            self.budget -= uncomputed;
        }
    }

    /// Whether one more prompt has a part in the batch.
    fn admits(&self) -> bool {
        self.uncomputed < self.budget || self.prefills < MOST_PREFILLS.min(self.budget)
    }
}

#[cfg(test)]
mod tests;

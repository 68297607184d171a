//! Which blocks of the latent cache belong to which sequences, and what they hold.

use crate::prefix::{Parent, PrefixIndex};
use std::collections::BTreeMap;

/// One block of the cache.
#[derive(Default)]
struct Block {
    /// Sequences in whose table it is.
    owners: u32,
    /// Its key in the index, once all its tokens are computed: from then on it is never written.
    key: Option<(Parent, Box<[u32]>)>,
    /// When its last owner left it.
    released: u64,
}

/// Hands out the blocks of a cache. Blocks that hold a known text are kept when their owners leave,
/// until others are needed: the one left longest ago goes first, and of one sequence the last.
pub(crate) struct BlockManager {
    block_size: usize,
    blocks: Vec<Block>,
    /// Without owner and key.
    free: Vec<u32>,
    /// Without owner, with a key, by `released`.
    evictable: BTreeMap<u64, u32>,
    releases: u64,
    index: PrefixIndex,
}

impl BlockManager {
    /// `num_blocks` free blocks of `block_size` tokens.
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> BlockManager {
        let count = u32::try_from(num_blocks).expect("block numbers are 32 bits wide");
        BlockManager {
            block_size,
            blocks: (0..count).map(|_| Block::default()).collect(),
            free: (0..count).rev().collect(),
            evictable: BTreeMap::new(),
            releases: 0,
            index: PrefixIndex::default(),
        }
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks without an owner.
    pub(crate) fn num_free(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// Blocks whose text is known.
    pub(crate) fn num_cached(&self) -> usize {
        self.index.len()
    }

    /// Blocks that hold `tokens` tokens.
    pub(crate) fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Lengthens a table until it holds `tokens` tokens. Where too few blocks are free it changes
    /// nothing and returns false.
    pub(crate) fn grow(&mut self, block_table: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(block_table.len());
        if missing > self.num_free() {
            return false;
        }
        for _ in 0..missing {
            let block = match self.free.pop() {
                Some(block) => block,
                None => self.evict(),
            };
            self.blocks[block as usize].owners = 1;
            block_table.push(block);
        }
        true
    }

    /// Forgets the text of the block that was left longest ago.
    fn evict(&mut self) -> u32 {
        let oldest = self.evictable.pop_first();
        let (_, block) = oldest.expect("free blocks were counted");
        let key = self.blocks[block as usize].key.take();
        let (parent, tokens) = key.expect("an evictable block has a key");
        self.index.remove(parent, &tokens);
        block
    }

    /// Takes back all blocks of a table.
    pub(crate) fn release(&mut self, block_table: &mut Vec<u32>) {
        self.shorten(block_table, 0);
    }

    /// Takes back the blocks of a table from the one at `len` on.
    pub(crate) fn shorten(&mut self, block_table: &mut Vec<u32>, len: usize) {
        // Last block first, so that a text is forgotten from its end, and that the next sequence
        // gets unused blocks in the order this one had them.
        while block_table.len() > len {
            let block = block_table.pop();
            self.leave(block.expect("it is longer than `len`"));
        }
    }

    fn leave(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        assert!(block.owners > 0, "a block was freed twice");
        block.owners -= 1;
        if block.owners > 0 {
            return;
        }
        if block.key.is_some() {
            self.releases += 1;
            block.released = self.releases;
            self.evictable.insert(self.releases, number);
        } else {
            self.free.push(number);
        }
    }

    fn join(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        if block.owners == 0 {
            self.evictable.remove(&block.released);
        }
        block.owners += 1;
    }

    /// The blocks that hold the beginning of `tokens`, `most` at the most, each with what it is to
    /// the next.
    pub(crate) fn find(&self, salt: u64, tokens: &[u32], most: usize) -> Vec<(u32, Parent)> {
        let mut found = Vec::new();
        let mut parent = Parent::Root(salt);
        for text in tokens.chunks_exact(self.block_size).take(most) {
            let Some(next) = self.index.find(parent, text) else {
                break;
            };
            found.push(next);
            parent = next.1;
        }
        found
    }

    /// How many of these have no owner.
    pub(crate) fn num_free_among(&self, found: &[(u32, Parent)]) -> usize {
        let is_free = |&&(block, _): &&(u32, Parent)| self.blocks[block as usize].owners == 0;
        found.iter().filter(is_free).count()
    }

    /// Begins an empty table with blocks that [`find`](BlockManager::find) found just now.
    pub(crate) fn share(&mut self, block_table: &mut Vec<u32>, found: &[(u32, Parent)]) {
        assert!(block_table.is_empty(), "a shared block is a beginning");
        for &(block, _) in found {
            self.join(block);
            block_table.push(block);
        }
    }

    /// Makes a block's text known, its owner's tokens after `parent` being computed. If another
    /// block holds them already, which has the same bits by the row law, the owner gets that one.
    /// Returns what the block is to the next.
    pub(crate) fn register(&mut self, parent: Parent, tokens: &[u32], block: &mut u32) -> Parent {
        assert_eq!(tokens.len(), self.block_size, "a full block");
        if let Some((known, entry)) = self.index.find(parent, tokens) {
            assert_ne!(known, *block, "a block was registered twice");
            self.join(known);
            self.leave(*block);
            *block = known;
            return entry;
        }
        let own = &mut self.blocks[*block as usize];
        assert!(own.key.is_none() && own.owners == 1, "a block of its own");
        own.key = Some((parent, tokens.into()));
        self.index.insert(parent, tokens, *block)
    }

    /// Whether a sequence may write to a block of its own: nobody else reads it.
    #[cfg(test)]
    pub(crate) fn is_private(&self, number: u32) -> bool {
        let block = &self.blocks[number as usize];
        block.owners == 1 && block.key.is_none()
    }

    #[cfg(test)]
    pub(crate) fn owners(&self) -> Vec<usize> {
        let owners = self.blocks.iter().map(|block| block.owners as usize);
        owners.collect()
    }

    /// The row of the cache that holds `position` of the sequence that owns this table.
    pub(crate) fn slot(&self, block_table: &[u32], position: usize) -> u32 {
        let block = block_table[position / self.block_size] as usize;
        (block * self.block_size + position % self.block_size) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{Chance, Purpose};
    use std::collections::BTreeSet;

    /// Random growing and releasing against a set of owned blocks: no block is lost, none has two
    /// owners, a refusal changes nothing, and tables only grow by what is missing.
    #[test]
    fn blocks_are_neither_lost_nor_shared() {
        for seed in 0..20 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(1);
            let num_blocks = 1 + draw(40) as usize;
            let block_size = 1 + draw(9) as usize;
            let mut blocks = BlockManager::new(num_blocks, block_size);
            let mut tables = vec![Vec::new(); 6];
            for _ in 0..2_000 {
                let which = draw(6) as usize;
                let before = tables[which].clone();
                if draw(4) == 0 {
                    blocks.release(&mut tables[which]);
                    assert!(tables[which].is_empty(), "seed {seed}");
                } else {
                    let tokens = draw(200) as usize;
                    let wanted = (0..).find(|blocks| blocks * block_size >= tokens).unwrap();
                    let needed = before.len().max(wanted);
                    let owned: usize = tables.iter().map(Vec::len).sum();
                    let fits = needed - before.len() <= num_blocks - owned;
                    assert_eq!(blocks.grow(&mut tables[which], tokens), fits, "seed {seed}");
                    let length = if fits { needed } else { before.len() };
                    assert_eq!(tables[which].len(), length, "seed {seed}");
                    assert!(tables[which].starts_with(&before), "seed {seed}");
                }
                let owned: Vec<u32> = tables.iter().flatten().copied().collect();
                let distinct: BTreeSet<u32> = owned.iter().copied().collect();
                assert_eq!(
                    distinct.len(),
                    owned.len(),
                    "seed {seed}: a block has two owners"
                );
                assert!(
                    owned.iter().all(|&b| (b as usize) < num_blocks),
                    "seed {seed}"
                );
                assert_eq!(
                    blocks.num_free() + owned.len(),
                    num_blocks,
                    "seed {seed}: leak"
                );
            }
        }
    }

    #[test]
    fn slots_are_rows_of_the_cache() {
        let blocks = BlockManager::new(10, 4);
        let table = [7, 2];
        let slots: Vec<u32> = (0..8).map(|p| blocks.slot(&table, p)).collect();
        assert_eq!(slots, [28, 29, 30, 31, 8, 9, 10, 11]);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        let mut blocks = BlockManager::new(2, 1);
        let mut table = Vec::new();
        assert!(blocks.grow(&mut table, 1));
        blocks.release(&mut table.clone());
        blocks.release(&mut table);
    }

    /// Random texts of few tokens, so that many begin alike, in a cache too small for them: what is
    /// found is what was registered under the same salt and text, owners are counted, and of a text
    /// that is kept in part it is the beginning.
    #[test]
    fn what_is_found_is_what_was_computed() {
        let (mut found_blocks, mut evictions) = (0, 0);
        for seed in 0..40 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(2);
            let block_size = 1 + draw(3) as usize;
            let num_blocks = 8 + draw(12) as usize;
            let mut blocks = BlockManager::new(num_blocks, block_size);
            // What each block holds, by its last writer: the salt and the whole text to its end.
            let mut holds: Vec<(u64, Vec<u32>)> = vec![(0, Vec::new()); num_blocks];
            let mut tables: Vec<Vec<u32>> = Vec::new();
            for _ in 0..600 {
                if !tables.is_empty() && draw(2) == 0 {
                    let which = draw(tables.len() as u64) as usize;
                    blocks.release(&mut tables.swap_remove(which));
                    continue;
                }
                let (salt, full) = (draw(2), 1 + draw(4) as usize);
                let text: Vec<u32> = (0..full * block_size).map(|_| draw(2) as u32).collect();
                let found = blocks.find(salt, &text, full);
                for (i, &(block, _)) in found.iter().enumerate() {
                    let held = (salt, text[..(i + 1) * block_size].to_vec());
                    assert_eq!(holds[block as usize], held, "seed {seed}");
                }
                let missing = full - found.len();
                let cached = blocks.num_cached();
                if blocks.num_free() - blocks.num_free_among(&found) < missing {
                    continue;
                }
                let mut table = Vec::new();
                blocks.share(&mut table, &found);
                assert!(blocks.grow(&mut table, text.len()), "seed {seed}");
                evictions += cached - blocks.num_cached();
                found_blocks += found.len();
                let mut parent = found
                    .last()
                    .map_or(Parent::Root(salt), |&(_, parent)| parent);
                for i in found.len()..full {
                    let to_its_end = text[..(i + 1) * block_size].to_vec();
                    holds[table[i] as usize] = (salt, to_its_end);
                    let own = &text[i * block_size..(i + 1) * block_size];
                    parent = blocks.register(parent, own, &mut table[i]);
                }
                tables.push(table);
                let owned: BTreeSet<u32> = tables.iter().flatten().copied().collect();
                assert_eq!(blocks.num_free() + owned.len(), num_blocks, "seed {seed}");
                for (number, block) in blocks.blocks.iter().enumerate() {
                    let tables = tables.iter().flatten();
                    let owners = tables.filter(|&&owned| owned as usize == number).count();
                    assert_eq!(block.owners as usize, owners, "seed {seed}");
                }
            }
            tables.iter_mut().for_each(|table| blocks.release(table));
            assert_eq!(blocks.num_free(), num_blocks, "seed {seed}");
        }
        assert!(
            found_blocks > 1000 && evictions > 1000,
            "{found_blocks} {evictions}"
        );
    }

    /// Two compute one text at a time; the later gets the block of the earlier.
    #[test]
    fn one_text_ends_in_one_block() {
        let mut blocks = BlockManager::new(3, 2);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        assert!(blocks.grow(&mut first, 2) && blocks.grow(&mut second, 4));
        let one = blocks.register(Parent::Root(7), &[5, 6], &mut first[0]);
        let same = blocks.register(Parent::Root(7), &[5, 6], &mut second[0]);
        assert_eq!((one, first[0]), (same, second[0]));
        assert_eq!((blocks.num_free(), blocks.num_cached()), (1, 1));
        blocks.release(&mut first);
        assert_eq!(blocks.num_free(), 1);
        blocks.release(&mut second);
        assert_eq!((blocks.num_free(), blocks.num_cached()), (3, 1));
        assert!(blocks.find(8, &[5, 6], 1).is_empty(), "another salt");
    }

    #[test]
    fn a_text_is_forgotten_from_its_end_and_the_longest_left_first() {
        let mut blocks = BlockManager::new(4, 1);
        let mut tables = [Vec::new(), Vec::new()];
        for (table, salt) in tables.iter_mut().zip([1, 2]) {
            assert!(blocks.grow(table, 2));
            let parent = blocks.register(Parent::Root(salt), &[3], &mut table[0]);
            blocks.register(parent, &[4], &mut table[1]);
        }
        tables.iter_mut().for_each(|table| blocks.release(table));
        let kept = |blocks: &BlockManager| [1, 2].map(|salt| blocks.find(salt, &[3, 4], 2).len());
        let (mut other, mut seen) = (Vec::new(), Vec::new());
        for tokens in 1..=4 {
            assert!(blocks.grow(&mut other, tokens));
            seen.push(kept(&blocks));
        }
        assert_eq!(seen, [[1, 2], [0, 2], [0, 1], [0, 0]]);
    }
}

//! Which blocks of the latent cache belong to which sequence.

/// Hands out the blocks of a cache. A sequence owns the blocks of its table; all others are here.
pub(crate) struct BlockManager {
    block_size: usize,
    num_blocks: usize,
    free: Vec<u32>,
}

impl BlockManager {
    /// `num_blocks` free blocks of `block_size` tokens.
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> BlockManager {
        let count = u32::try_from(num_blocks).expect("block numbers are 32 bits wide");
        BlockManager {
            block_size,
            num_blocks,
            free: (0..count).rev().collect(),
        }
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that hold `tokens` tokens.
    pub(crate) fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Lengthens a table until it holds `tokens` tokens. Where too few blocks are free it changes
    /// nothing and returns false.
    pub(crate) fn grow(&mut self, block_table: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(block_table.len());
        if missing > self.free.len() {
            return false;
        }
        block_table.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Takes back all blocks of a table.
    pub(crate) fn release(&mut self, block_table: &mut Vec<u32>) {
        // Last block first, so that the next sequence gets them in the order this one had them.
        self.free.extend(block_table.drain(..).rev());
        assert!(
            self.free.len() <= self.num_blocks,
            "a block was freed twice"
        );
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
        blocks.release(&mut vec![0]);
    }
}

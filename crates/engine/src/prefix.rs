//! Which blocks of the cache hold which beginnings of text.
//!
//! A block's latents depend on all tokens up to its end, so its key is that of the block before it
//! and its own tokens. The key is compared whole, never by a hash alone: another's text cannot be
//! taken for one's own.

use std::collections::HashMap;

/// What comes before a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    /// Nothing; the salt sets those apart who must not share.
    Root(u64),
    /// The entry of this number, which no other ever has.
    Entry(u64),
}

struct Entry {
    number: u64,
    block: u32,
}

/// Full blocks by their text.
#[derive(Default)]
pub(crate) struct PrefixIndex {
    children: HashMap<Parent, HashMap<Box<[u32]>, Entry>>,
    next_number: u64,
    len: usize,
}

impl PrefixIndex {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The block with these tokens after `parent`, and what it is to the next.
    pub(crate) fn find(&self, parent: Parent, tokens: &[u32]) -> Option<(u32, Parent)> {
        let entry = self.children.get(&parent)?.get(tokens)?;
        Some((entry.block, Parent::Entry(entry.number)))
    }

    /// Enters a block whose key is new; returns what it is to the next.
    pub(crate) fn insert(&mut self, parent: Parent, tokens: &[u32], block: u32) -> Parent {
        let number = self.next_number;
        self.next_number += 1;
        let siblings = self.children.entry(parent).or_default();
        let before = siblings.insert(tokens.into(), Entry { number, block });
        assert!(before.is_none(), "one text in two blocks");
        self.len += 1;
        Parent::Entry(number)
    }

    pub(crate) fn remove(&mut self, parent: Parent, tokens: &[u32]) {
        let siblings = self.children.get_mut(&parent);
        let siblings = siblings.expect("the parent of a block that is known");
        siblings.remove(tokens).expect("a block that is known");
        if siblings.is_empty() {
            self.children.remove(&parent);
        }
        self.len -= 1;
    }
}

/// Extends `hashes` to one for each full block of a text, each of all tokens up to its end. They
/// tell who may wait for whose blocks; nothing is ever read because hashes are equal.
pub(crate) fn hash_blocks(salt: u64, tokens: &[u32], block_size: usize, hashes: &mut Vec<u64>) {
    let done = hashes.len() * block_size;
    let mut hash = hashes.last().copied().unwrap_or(salt);
    for block in tokens[done..].chunks_exact(block_size) {
        for &token_id in block {
            hash ^= u64::from(token_id) + 1;
            hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        hashes.push(hash);
    }
}

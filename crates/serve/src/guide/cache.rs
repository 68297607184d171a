//! The last compiled grammars.

use super::Compiled;
use super::shape::Source;
use std::collections::BTreeMap;

/// Keeps the most recently used values, within a number and a sum of bytes.
pub(super) struct Cache {
    max_entries: usize,
    max_bytes: usize,
    bytes: usize,
    /// Counts uses; larger is later.
    clock: u64,
    entries: BTreeMap<Source, Entry>,
}

struct Entry {
    value: Compiled,
    bytes: usize,
    used: u64,
}

impl Cache {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Cache {
        Cache {
            max_entries,
            max_bytes,
            bytes: 0,
            clock: 0,
            entries: BTreeMap::new(),
        }
    }

    pub(super) fn get(&mut self, key: &Source) -> Option<Compiled> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.value.clone())
    }

    /// `bytes`: what the value is taken to weigh. One that alone is too heavy is not kept.
    pub(super) fn insert(&mut self, key: Source, value: Compiled, bytes: usize) {
        if bytes > self.max_bytes {
            return;
        }
        self.clock += 1;
        let used = self.clock;
        let entry = Entry { value, bytes, used };
        self.bytes += bytes;
        if let Some(before) = self.entries.insert(key, entry) {
            self.bytes -= before.bytes;
        }
        while self.entries.len() > self.max_entries || self.bytes > self.max_bytes {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            if let Some(entry) = self.entries.remove(&key) {
                self.bytes -= entry.bytes;
            }
        }
    }

    /// Entries and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

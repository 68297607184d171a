//! The fuzz target's promise about requests, without a fuzzer: every file of the corpus, and some
//! thousand random changes of them.

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/promises/chat_request.rs"]
mod chat_request;

use chat_request::{PATHS, check};

/// Random changes of each file.
const CHANGES: u64 = 600;

/// The files by name, sorted.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/chat_request");
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a file"))
        .map(|entry| {
            let name = entry.file_name().into_string().expect("a plain name");
            (
                name,
                fs::read(entry.path()).expect("a file that can be read"),
            )
        })
        .collect();
    files.sort();
    assert!(files.len() >= 20, "{} files", files.len());
    files
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// Values that stand where others are expected.
const ODD: [&str; 12] = [
    "null",
    "-1",
    "0",
    "1e308",
    "18446744073709551616",
    "\"\"",
    "[]",
    "{}",
    "true",
    "0.5",
    "\"\\ud83d\"",
    "[[\"a\"]]",
];

/// One value of the JSON, as far as commas and colons tell, is another now; or a byte is.
fn changed(bytes: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let marks: Vec<usize> = (1..bytes.len())
        .filter(|&place| matches!(bytes[place], b':' | b',' | b'[' | b'{'))
        .collect();
    if marks.is_empty() || chance.below(4) == 0 {
        let place = chance.below(bytes.len());
        changed[place] = chance.below(256) as u8;
        return changed;
    }
    let begin = marks[chance.below(marks.len())] + 1;
    let ends = |&byte: &u8| matches!(byte, b',' | b'}' | b']');
    let length = bytes[begin..].iter().position(ends).unwrap_or(0);
    let odd = ODD[chance.below(ODD.len())].bytes();
    changed.splice(begin..begin + length, odd);
    changed
}

#[test]
fn the_corpus_keeps_the_promise() {
    for (name, bytes) in corpus() {
        let result = check(&bytes);
        // Those are read to the end that are named so, as the only ones.
        assert_eq!(
            result.is_ok(),
            name.starts_with("valid"),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn changed_requests_keep_the_promise() {
    let seed = 0x5eed_0042;
    println!("seed {seed:#x}");
    let mut chance = Chance(seed);
    let (mut read, mut refused) = (0, 0);
    for (name, bytes) in corpus().into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
        for round in 0..CHANGES {
            let changed = changed(&bytes, &mut chance);
            match std::panic::catch_unwind(|| check(&changed)) {
                Ok(Ok(())) => read += 1,
                Ok(Err(_)) => refused += 1,
                Err(_) => panic!("{name}, round {round}: \"{}\"", changed.escape_ascii()),
            }
        }
    }
    assert!(
        read > 100 && refused > 500,
        "{read} read, {refused} refused"
    );
}

#[test]
fn every_path_has_a_file_that_is_read() {
    let files = corpus();
    for (first, path) in (b'0'..).zip(PATHS) {
        let is_read = |(name, bytes): &(String, Vec<u8>)| {
            name.starts_with("valid") && bytes.first() == Some(&first)
        };
        assert!(files.iter().any(is_read), "{path}");
    }
}

//! The fuzz targets' promises about bytes that we did not write, without a fuzzer: every file of
//! `fuzz/corpus`, and some thousand random changes of them.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use model::{Config, Error};

#[path = "../../../fuzz/promises/config.rs"]
mod config;
#[path = "../../../fuzz/promises/gguf.rs"]
mod gguf;
#[path = "corpus/mutate.rs"]
mod mutate;
#[path = "../../../fuzz/promises/safetensors.rs"]
mod safetensors;

use mutate::Mutator;

/// Random changes of each file of the corpus.
const CHANGES: usize = 200;

type Check = fn(&[u8]) -> Result<(), Error>;

/// The files of a corpus by name, sorted.
fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(kind);
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(
        files.len() >= 15,
        "{} files in {}",
        files.len(),
        folder.display()
    );
    files
}

/// Files that keep the promise are named `valid*`, as the only ones.
fn replay(kind: &str, check: Check) {
    for (name, bytes) in corpus(kind) {
        assert!(bytes.len() < 2048, "{name} has {} bytes", bytes.len());
        let result = check(&bytes);
        let text = result.as_ref().err().map(Error::to_string);
        assert_eq!(
            result.is_ok(),
            name.starts_with("valid"),
            "{name}: {text:?}"
        );
    }
}

/// Checks changed files; `mend` makes some of them whole enough to be read further.
fn replay_changed(kind: &str, check: Check, mend: fn(&mut [u8])) {
    let seed = 0x5eed_0000 + kind.len() as u64;
    println!("seed {seed:#x}");
    let mut mutator = Mutator::new(seed);
    let files = corpus(kind);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..CHANGES {
        for (number, (name, bytes)) in files.iter().enumerate() {
            let other = &files[(number + round) % files.len()].1;
            let mut changed = mutator.change(bytes, other);
            if round % 2 == 0 {
                mend(&mut changed);
            }
            match catch_unwind(|| check(&changed)) {
                Ok(Ok(())) => accepted += 1,
                Ok(Err(_)) => refused += 1,
                Err(_) => panic!("{name}, round {round}: \"{}\"", changed.escape_ascii()),
            }
        }
    }
    // Changes that break nothing, or that break everything, would test little.
    assert!(
        accepted > 10 && refused > 200,
        "{accepted} accepted, {refused} refused"
    );
}

/// A true length before the header: without it hardly any changed file would be read further.
fn mend_header_length(bytes: &mut [u8]) {
    let end = bytes.iter().rposition(|&byte| byte == b'}');
    if let Some(end @ 8..) = end {
        let length = (end - 7) as u64;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
    }
}

#[test]
fn the_safetensors_corpus_keeps_the_promise() {
    replay("safetensors", safetensors::check);
}

#[test]
fn the_gguf_corpus_keeps_the_promise() {
    for (name, bytes) in corpus("gguf") {
        let result = gguf::check(&bytes);
        let text = result.as_ref().err().map(Error::to_string);
        // The others are broken, but for those that nothing is wrong with beside their contents.
        assert!(
            !name.starts_with("valid_model") || result.is_ok(),
            "{name}: {text:?}"
        );
        assert!(!name.starts_with("model_") || result.is_err(), "{name}");
    }
}

#[test]
fn the_config_corpus_keeps_the_promise() {
    replay("config", config::check);
}

#[test]
fn changed_safetensors_keep_the_promise() {
    replay_changed("safetensors", safetensors::check, mend_header_length);
}

#[test]
fn changed_gguf_keeps_the_promise() {
    replay_changed("gguf", gguf::check, |_| {});
}

#[test]
fn changed_configs_keep_the_promise() {
    replay_changed("config", config::check, |_| {});
}

#[test]
fn numbers_are_read_to_the_last_bit() {
    for step in 0..1000 {
        let digits = 12_345_678_901_269_134u64 + 7_919_831 * step;
        let written = format!(
            "{}.{:012}",
            digits / 1_000_000_000_000,
            digits % 1_000_000_000_000
        );
        let text = format!(
            r#"{{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "vocab_size": 20,
            "num_hidden_layers": 2, "num_attention_heads": 2, "rope_theta": {written}}}"#
        );
        let theta = Config::from_json(&text).unwrap().rope.theta;
        assert_eq!(
            theta.to_bits(),
            written.parse::<f64>().unwrap().to_bits(),
            "{written}"
        );
    }
}

#[test]
fn a_parser_does_not_quote_a_file_at_length() {
    let long = "x\u{1b}[2J".repeat(100_000);
    let entry = format!(r#"{{"{}":1}}"#, long.escape_default());
    for header in [
        format!(r#"{{"w":{{"{}":1}}}}"#, "y".repeat(1 << 20)),
        format!(
            r#"{{"w":{{"dtype":"F32","shape":"{}"}}}}"#,
            "y".repeat(1 << 20)
        ),
        format!(r#"{{"{}":1}}"#, "y".repeat(1 << 20)),
        format!(r#"{{"w":{entry}}}"#).replace("\\u{1b}", "\\u001b"),
    ] {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        assert!(safetensors::check(&bytes).is_err());
    }
    let text = format!(r#"{{"model_type":"{}"}}"#, "\\u001b[2J".repeat(100_000));
    assert!(config::check(text.as_bytes()).is_err());
    assert!(Config::from_json(&entry).is_err());
}

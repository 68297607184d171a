//! GGUF files that are broken, or made to do harm: a clean error that says what and where.

use std::path::{Path, PathBuf};

use model::gguf::{
    Array, GgmlType, Gguf, GgufTokenizer, GgufWriter, HfTensors, TensorPlan, Value, config_json,
};

/// Bytes of a file, one field after the other.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    fn u32(mut self, value: u32) -> Raw {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Raw {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn str(mut self, text: &str) -> Raw {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    /// A key with a u32.
    fn key(self, key: &str, value: u32) -> Raw {
        self.str(key).u32(4).u32(value)
    }

    fn tensor(mut self, name: &str, ne: &[u64], kind: u32, offset: u64) -> Raw {
        self = self.str(name).u32(ne.len() as u32);
        for &dim in ne {
            self = self.u64(dim);
        }
        self.u32(kind).u64(offset)
    }

    /// Zeros to the next multiple of 32, and `bytes` more.
    fn data(mut self, bytes: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self
    }
}

fn open(bytes: &[u8]) -> Result<Gguf, model::Error> {
    Gguf::from_bytes(bytes.to_vec(), Path::new("bad.gguf"))
}

fn refused(bytes: &[u8], words: &[&str]) {
    let error = open(bytes)
        .map(|_| ())
        .expect_err(&format!("expected {words:?}"));
    let text = error.to_string();
    assert_eq!(error.exit_code(), 3, "{text}");
    assert!(text.len() < 1000, "{} bytes of error", text.len());
    for word in ["bad.gguf"].iter().chain(words) {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn counts_that_lie_are_refused() {
    for count in [u64::from(u32::MAX), u64::MAX, 1 << 60, 100_000] {
        refused(&Raw::header(count, 0).0, &["tensors", &count.to_string()]);
        refused(&Raw::header(0, count).0, &["keys", &count.to_string()]);
    }
    refused(&Raw::header(1, 0).0, &["truncated"]);
}

#[test]
fn other_files_and_versions_are_refused_by_name() {
    let version = |version: u32| Raw(b"GGUF".to_vec()).u32(version).u64(0).u64(0).0;
    refused(&version(1), &["version 1"]);
    refused(&version(4), &["version 4"]);
    refused(&version(0), &["version 0"]);
    refused(&version(3 << 24), &["big-endian"]);
    refused(b"version https://git-lfs.github.com/spec/v1\noid", &["LFS"]);
    refused(
        b"tjgg\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        &["convert"],
    );
    refused(b"PK\x03\x04 not a model at all, but a zip file", &["PK"]);
    refused(b"", &["truncated"]);
    assert!(open(&version(2)).is_ok() && open(&version(3)).is_ok());
}

#[test]
fn strings_and_keys_that_lie_are_refused() {
    for length in [1 << 60, u64::MAX, 1 << 31, 100] {
        let long = length.to_string();
        refused(&Raw::header(0, 1).u64(length).data(40).0, &["key 0", &long]);
        let value = Raw::header(0, 1).str("text").u32(8).u64(length).data(40).0;
        refused(&value, &["key `text`", &long]);
        let name = Raw::header(1, 0).u64(length).data(40).0;
        refused(&name, &["tensor 0", &long]);
    }
    let twice = Raw::header(0, 2).key("again", 1).key("again", 1);
    refused(&twice.0, &["key `again`", "twice"]);
    refused(
        &Raw::header(0, 1).str("k").u32(13).data(8).0,
        &["key `k`", "type 13"],
    );
    let mut not_utf8 = Raw::header(0, 1).str("kk").u32(4).u32(1).0;
    let place = not_utf8.len() - 10;
    not_utf8[place] = 0xff;
    refused(&not_utf8, &["key 0", "UTF-8"]);
    let mut not_bool = Raw::header(0, 1).str("k").u32(7).0;
    not_bool.push(2);
    refused(&not_bool, &["key `k`", "truth"]);
}

fn array(element: u32, count: u64) -> Raw {
    Raw::header(0, 1).str("list").u32(9).u32(element).u64(count)
}

#[test]
fn arrays_that_lie_are_refused() {
    for count in [u64::MAX, 1 << 61, u64::from(u32::MAX), 1 << 24] {
        for element in 0..=12 {
            let words = ["key `list`", &count.to_string()];
            refused(&array(element, count).data(64).0, &words);
        }
    }
    refused(&array(99, 1).data(64).0, &["key `list`", "type 99"]);
    let mut nested = array(9, 1);
    for _ in 0..1000 {
        nested = nested.u32(9).u64(1);
    }
    refused(&nested.0, &["key `list`", "nested"]);
    // Nesting in width is bounded by the bytes of the file.
    let mut wide = array(9, 4);
    for _ in 0..4 {
        wide = wide.u32(9).u64(1 << 20);
    }
    refused(&wide.0, &["key `list`"]);
}

#[test]
fn arrays_of_another_type_are_never_taken_for_the_one_wanted() {
    let scores = Value::Array(Array::I8(vec![1, 2, 3]));
    let tokens = Value::Array(Array::Str(vec!["a".into(), "b".into(), "c".into()]));
    let metadata = [
        (
            "tokenizer.ggml.model".to_string(),
            Value::Str("llama".into()),
        ),
        ("tokenizer.ggml.tokens".to_string(), tokens),
        ("tokenizer.ggml.scores".to_string(), scores),
    ];
    let mut bytes = Vec::new();
    let writer = GgufWriter::new(&mut bytes, Path::new("x"), &metadata, vec![]).unwrap();
    writer.finish().unwrap();
    let error = GgufTokenizer::read(&open(&bytes).unwrap()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("tokenizer.ggml.scores") && text.contains("array of i8"),
        "{text}"
    );
}

#[test]
fn alignments_that_are_none_are_refused() {
    for alignment in [0, 1, 3, 4, 48, 1 << 17, 1 << 31, u32::MAX] {
        let bytes = Raw::header(0, 1).key("general.alignment", alignment).0;
        refused(&bytes, &["general.alignment", &alignment.to_string()]);
    }
    let text = Raw::header(0, 1).str("general.alignment").u32(8).str("32");
    refused(&text.0, &["general.alignment", "string"]);
    let aligned = Raw::header(1, 1).key("general.alignment", 64);
    let moved = aligned.clone().tensor("t", &[4], 0, 32).data(200).0;
    refused(&moved, &["tensor `t`", "no multiple of 64"]);
    assert!(open(&aligned.tensor("t", &[4], 0, 64).data(200).0).is_ok());
}

#[test]
fn shapes_that_lie_are_refused() {
    let one = |ne: &[u64], kind: u32| Raw::header(1, 0).tensor("t", ne, kind, 0).data(64).0;
    for ne in [
        &[u64::MAX][..],
        &[1 << 32, 1 << 32],
        &[1 << 33, 1 << 31, 1],
        &[1 << 62, 4],
        &[32, u64::MAX / 32, 3, 7],
        &[u64::MAX - 31, 2],
    ] {
        refused(&one(ne, 0), &["tensor `t`", "shape"]);
        refused(&one(ne, 12), &["tensor `t`", "shape"]);
    }
    refused(&one(&[0, 4], 0), &["tensor `t`", "zero"]);
    refused(&one(&[], 0), &["tensor `t`", "0 dimensions"]);
    refused(&one(&[1; 5], 0), &["tensor `t`", "5 dimensions"]);
    refused(&one(&[33], 8), &["tensor `t`", "Q8_0", "multiples of 32"]);
    refused(
        &one(&[128], 12),
        &["tensor `t`", "Q4_K", "multiples of 256"],
    );
    for kind in [4, 5, 31, 33, 36, 42, 1000, u32::MAX] {
        refused(&one(&[32], kind), &["tensor `t`", &format!("type {kind}")]);
    }
    let dims = Raw::header(1, 0).str("t").u32(u32::MAX).data(64).0;
    refused(&dims, &["tensor `t`", "4294967295 dimensions"]);
}

#[test]
fn tensors_beyond_the_file_or_on_each_other_are_refused() {
    let one = |offset: u64| Raw::header(1, 0).tensor("t", &[16], 0, offset).data(64).0;
    assert!(open(&one(0)).is_ok());
    refused(&one(32), &["tensor `t`", "truncated"]);
    refused(&one(1 << 40), &["tensor `t`", "truncated"]);
    refused(&one(u64::MAX - 31), &["tensor `t`", "2^64"]);
    refused(&one(8), &["tensor `t`", "no multiple of 32"]);
    let two = |first: u64, second: u64| {
        let raw = Raw::header(2, 0).tensor("a", &[16], 0, first);
        raw.tensor("b", &[16], 0, second).data(128).0
    };
    assert!(open(&two(64, 0)).is_ok());
    refused(&two(0, 32), &["tensor `b`", "overlaps `a`"]);
    refused(&two(64, 64), &["overlaps"]);
    let twice = Raw::header(2, 0).tensor("a", &[16], 0, 0);
    let twice = twice.tensor("a", &[16], 0, 64).data(128).0;
    refused(&twice, &["tensor `a`", "twice"]);
}

#[test]
fn a_type_that_is_not_read_is_refused_when_it_is_read() {
    let bytes = Raw::header(1, 0).tensor("t", &[32], 20, 0).data(18).0;
    let gguf = open(&bytes).unwrap();
    let error = gguf.read_rows_f32(0, 0..1, &mut [0.0; 32]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("tensor `t`") && text.contains("IQ4_NL"),
        "{text}"
    );
}

/// A whole small model.
fn valid() -> Vec<u8> {
    let text = |value: &str| Value::Str(value.into());
    let mut metadata = vec![("general.architecture".to_string(), text("llama"))];
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 2),
    ] {
        metadata.push((format!("llama.{key}"), Value::U32(value)));
    }
    let eps = "llama.attention.layer_norm_rms_epsilon".to_string();
    metadata.push((eps, Value::F32(1e-5)));
    let tokens = ["<s>", "a", "b", "ab"].map(String::from).to_vec();
    metadata.push(("tokenizer.ggml.model".to_string(), text("gpt2")));
    let tokens = Value::Array(Array::Str(tokens));
    metadata.push(("tokenizer.ggml.tokens".to_string(), tokens));
    let types = Value::Array(Array::I32(vec![3, 1, 1, 1]));
    metadata.push(("tokenizer.ggml.token_type".to_string(), types));
    metadata.push(("tokenizer.ggml.bos_token_id".to_string(), Value::U32(0)));
    let tensors = [
        ("token_embd.weight", vec![4, 32], GgmlType::F16),
        ("blk.0.attn_q.weight", vec![4, 32], GgmlType::Q8_0),
        ("blk.0.attn_norm.weight", vec![32], GgmlType::F32),
    ];
    let tensors = tensors.map(|(name, shape, kind)| TensorPlan {
        name: name.to_string(),
        shape,
        kind,
    });
    let mut bytes = Vec::new();
    let path = Path::new("valid.gguf");
    let mut writer = GgufWriter::new(&mut bytes, path, &metadata, tensors.to_vec()).unwrap();
    for tensor in &tensors {
        let count = tensor.shape.iter().product();
        writer.write_f32(&vec![0.5; count]).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

/// Everything that can be asked of a file; only a panic is wrong.
fn use_up(bytes: &[u8]) -> Result<(), model::Error> {
    let gguf = open(bytes)?;
    config_json(&gguf)?;
    GgufTokenizer::read(&gguf)?;
    let hf = HfTensors::new(&gguf)?;
    for (name, tensor) in &hf.tensors {
        let mut out = vec![0.0; tensor.shape.iter().product()];
        hf.read_f32(name, &mut out)?;
    }
    Ok(())
}

#[test]
fn a_file_cut_at_every_percent_is_refused() {
    let whole = valid();
    use_up(&whole).unwrap();
    for percent in 0..100 {
        refused(
            &whole[..whole.len() * percent / 100],
            &["truncated", "expected"],
        );
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let whole = valid();
    let header = open(&whole).unwrap().tensors[0].offset;
    let mut state = 0x2545_f491_4f6c_dd1du64;
    println!("seed {state:#x}");
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut refusals = 0;
    for round in 0..2000 {
        let mut flipped = whole.clone();
        for _ in 0..1 + round % 3 {
            flipped[next(header) as usize] = next(256) as u8;
        }
        refusals += usize::from(use_up(&flipped).is_err());
    }
    assert!(refusals > 500, "{refusals} of 2000 were refused");
}

#[test]
fn the_corpus_gives_a_file_or_a_clean_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    for path in files {
        let opened = Gguf::open(&path);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() < 2048, "{}", path.display());
        assert_eq!(opened.is_ok(), open(&bytes).is_ok(), "{}", path.display());
        if let Err(error) = use_up(&bytes) {
            assert_eq!(error.exit_code(), 3, "{error}");
        }
    }
}

#[test]
fn a_file_larger_than_memory_opens_and_its_lies_take_no_room() {
    let path = std::env::temp_dir().join(format!("bruchteil-sparse-{}.gguf", std::process::id()));
    let sparse = |start: &Raw| {
        std::fs::write(&path, &start.0).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(1 << 36).unwrap();
        let result = Gguf::open(&path);
        std::fs::remove_file(&path).unwrap();
        result
    };
    let long = Raw::header(0, 1).str("text").u32(8).u64(1 << 35);
    let many = array(12, 1 << 24);
    for lie in [long, many] {
        let text = sparse(&lie).unwrap_err().to_string();
        assert!(
            text.contains("more than") || text.contains("longer than"),
            "{text}"
        );
    }
    let large = Raw::header(1, 0).tensor("t", &[1 << 16, 1 << 17], 0, 0);
    let gguf = sparse(&large).unwrap();
    let mut row = vec![1.0; 1 << 16];
    let last = (1 << 17) - 1;
    gguf.read_rows_f32(0, last..last + 1, &mut row).unwrap();
    assert!(row.iter().all(|&value| value == 0.0));
}

#[test]
fn what_is_no_file_is_refused() {
    let error = Gguf::open(&std::env::temp_dir()).unwrap_err();
    assert!(error.to_string().contains("regular"), "{error}");
    let missing = std::env::temp_dir().join("bruchteil-no-such.gguf");
    assert_eq!(Gguf::open(&missing).unwrap_err().exit_code(), 3);
}

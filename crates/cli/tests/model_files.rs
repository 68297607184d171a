//! Model files that are broken, or made to do harm: exit code 3 and the names of file and tensor,
//! whichever command meets them.

mod fixture;
#[path = "fixture/golden.rs"]
mod golden;

use std::fs;
use std::path::{Path, PathBuf};

use fixture::{Ran, Scratch, run};
use golden::Parts;
use serde_json::{Value, json};

const WEIGHTS: &str = "model.safetensors";
const TENSOR: &str = "model.layers.0.mlp.up_proj.weight";

/// A safetensors file with a header, whatever it says.
fn joined(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

fn write(path: &Path, parts: &Parts) {
    let header = serde_json::to_vec(&parts.header).expect("a header");
    fs::write(path, joined(&header, &parts.data)).expect("a file");
}

/// A small dense model in one file, to spoil.
fn model(scratch: &Scratch) -> PathBuf {
    golden::copy(scratch, "qwen2-untied")
}

/// Exit code, nothing on standard output, and these words in what is said.
fn refused(ran: Ran, code: i32, words: &[&str]) {
    let ran = ran.expect_code(code);
    assert_eq!(ran.stdout, "");
    for word in words {
        assert!(
            ran.stderr.contains(word),
            "`{word}` is not in: {}",
            ran.stderr
        );
    }
    assert!(
        ran.stderr.contains("\nbruchteil:   help: "),
        "{}",
        ran.stderr
    );
    for panic in ["panicked", "RUST_BACKTRACE", "broken invariant"] {
        assert!(!ran.stderr.contains(panic), "{}", ran.stderr);
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn inspect(dir: &Path) -> Ran {
    run(&["inspect", &shown(dir)])
}

fn generate(dir: &Path) -> Ran {
    let arguments = [
        "generate",
        &shown(dir),
        "--token-ids",
        "1,2",
        "--max-tokens",
        "2",
    ];
    run(&[&arguments[..], &["--quiet"]].concat())
}

#[test]
fn weights_cut_anywhere_tell_the_bytes_expected_and_found() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let path = dir.join(WEIGHTS);
    let whole = fs::read(&path).expect("the weights");
    for percent in 0..100 {
        let cut = whole.len() * percent / 100;
        fs::write(&path, &whole[..cut]).expect("fewer bytes");
        let found = format!("{cut} found");
        refused(inspect(&dir), 3, &[WEIGHTS, "bytes expected", &found]);
        if percent % 25 == 3 {
            refused(generate(&dir), 3, &[WEIGHTS, "bytes expected", &found]);
        }
    }
    fs::write(&path, [&whole[..], b"PK\x03\x04"].concat()).expect("more bytes");
    refused(inspect(&dir), 3, &[WEIGHTS, "bytes expected"]);
}

#[test]
fn a_lie_about_the_length_of_the_header() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let path = dir.join(WEIGHTS);
    let mut bytes = fs::read(&path).expect("the weights");
    let beyond = bytes.len() as u64 + 1;
    for length in [0, 7, 1 << 63, u64::MAX, beyond, (100 << 20) + 1] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, &bytes).expect("another header");
        refused(inspect(&dir), 3, &[WEIGHTS]);
        refused(generate(&dir), 3, &[WEIGHTS]);
    }
}

#[test]
fn a_lie_in_the_header_names_the_tensor() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let path = dir.join(WEIGHTS);
    let whole = Parts::read(&path);
    let offsets = whole.header[TENSOR]["data_offsets"].clone();
    let [start, end] = [0, 1].map(|i| offsets[i].as_u64().expect("an offset"));
    let all = whole.data.len() as u64;
    for (key, value) in [
        ("data_offsets", json!([start - 4, end])),
        ("data_offsets", json!([end, start])),
        ("data_offsets", json!([start + 4, end])),
        ("data_offsets", json!([all, all + end - start])),
        ("data_offsets", json!([start, u64::MAX])),
        ("shape", json!([56, 33])),
        ("shape", json!([0, 32])),
        ("shape", json!([1u64 << 40, 1u64 << 40])),
        ("dtype", json!("I32")),
        ("dtype", json!("BF16")),
    ] {
        let mut header = whole.header.clone();
        header[TENSOR][key] = value.clone();
        let data = whole.data.clone();
        write(&path, &Parts { header, data });
        for ran in [inspect(&dir), generate(&dir)] {
            let ran = ran.expect_code(3);
            let named = ran.stderr.contains("model.") && ran.stderr.contains("weight`");
            assert!(named, "{key} = {value}: {}", ran.stderr);
        }
    }
}

#[test]
fn headers_that_are_no_table_of_tensors() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let path = dir.join(WEIGHTS);
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let many: Vec<String> = (0..1_000_000).map(|i| format!("\"{i}\":{entry}")).collect();
    for header in [
        b"{\"\xff\xfe\": 1}".to_vec(),
        format!("{{\"a\":{entry},\"a\":{entry}}}").into_bytes(),
        format!("{{{}}}", many.join(",")).into_bytes(),
        format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes(),
        b"[]".to_vec(),
        Vec::new(),
    ] {
        fs::write(&path, joined(&header, &[0; 4])).expect("another file");
        refused(inspect(&dir), 3, &[WEIGHTS]);
        refused(generate(&dir), 3, &[WEIGHTS]);
    }
}

/// Infinity in the first value of a tensor of f32, NaN in the last.
fn spoil(path: &Path) {
    let mut parts = Parts::read(path);
    assert_eq!(parts.header[TENSOR]["dtype"], "F32");
    let offsets = &parts.header[TENSOR]["data_offsets"];
    let [start, end] = [0, 1].map(|i| offsets[i].as_u64().expect("an offset") as usize);
    parts.data[start..start + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    parts.data[end - 4..end].copy_from_slice(&f32::NAN.to_le_bytes());
    write(path, &parts);
}

#[test]
fn values_that_are_not_finite_warn_and_are_refused_where_asked() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    spoil(&dir.join(WEIGHTS));
    let counts = format!("tensor `{TENSOR}` has 1 NaN and 1 infinite values");
    let model = shown(&dir);
    let input = scratch.file("rows.jsonl", "{\"token_ids\": [1, 2]}");
    let score = ["score", &model, "--input", &input];
    let warned = run(&score).expect_code(0);
    assert!(
        warned
            .stderr
            .contains(&format!("warning: {model}: {counts}")),
        "{}",
        warned.stderr
    );
    let strict = [&score[..], &["--strict"]].concat();
    refused(run(&strict), 3, &[&counts]);
    let mapped = [&strict[..], &["--load", "map"]].concat();
    refused(run(&mapped), 2, &["--strict", "--load map"]);
    let doctor = run(&["doctor", &model]).expect_code(3);
    let line = doctor
        .stdout
        .lines()
        .find(|line| line.starts_with("values"));
    let line = line.expect("a line about the values");
    assert!(line.contains("BAD") && line.contains(&counts), "{line}");
}

#[test]
fn all_differences_are_in_one_report() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let path = dir.join(WEIGHTS);
    let mut parts = Parts::read(&path);
    let bias = "model.layers.1.self_attn.q_proj.bias";
    let moved = parts.header.remove("model.norm.weight").expect("a norm");
    parts.header.insert("model.extra.weight".to_string(), moved);
    let shape = parts.header[TENSOR]["shape"].clone();
    parts.header[TENSOR]["shape"] = json!([shape[1], shape[0]]);
    parts.header[bias]["dtype"] = json!("I32");
    write(&path, &parts);
    let words = [
        "missing: `model.norm.weight`",
        "unexpected: `model.extra.weight`",
    ];
    let shape = format!("shape: `{TENSOR}`");
    let kind = format!("type: `{bias}`");
    let words = [&words[..], &["4 differences", &shape, &kind]].concat();
    for ran in [
        inspect(&dir),
        generate(&dir),
        run(&["doctor", &shown(&dir)]),
    ] {
        refused(ran, 3, &words);
    }
}

fn edit_config(dir: &Path, key: &str, value: Value) -> String {
    let path = dir.join("config.json");
    let whole = fs::read_to_string(&path).expect("a configuration");
    let mut config: Value = serde_json::from_str(&whole).expect("a configuration is JSON");
    config[key] = value;
    fs::write(&path, config.to_string()).expect("another configuration");
    whole
}

#[test]
fn another_hidden_size_differs_everywhere() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    edit_config(&dir, "hidden_size", json!(64));
    refused(
        inspect(&dir),
        3,
        &["shape: `lm_head.weight`", "shape: `model.norm.weight`"],
    );
}

#[test]
fn an_index_that_leads_elsewhere() {
    let scratch = Scratch::new();
    let dir = golden::copy(&scratch, "qwen2");
    let secret = scratch.file("secret.safetensors", "nobody reads this");
    let path = dir.join("model.safetensors.index.json");
    let whole = fs::read_to_string(&path).expect("the index");
    let first = "model-00001-of-00002.safetensors";
    for (shard, word) in [
        ("model-00003-of-00002.safetensors", "no such file"),
        ("../../etc/passwd", "not a .safetensors file"),
        ("../secret.safetensors", "plain name"),
        (secret.as_str(), "plain name"),
    ] {
        fs::write(&path, whole.replace(first, shard)).expect("another index");
        refused(inspect(&dir), 3, &[word]);
        refused(generate(&dir), 3, &[word]);
    }
    fs::write(&path, &whole).expect("the index again");
    fs::remove_file(dir.join(first)).expect("one file less");
    std::os::unix::fs::symlink(&secret, dir.join(first)).expect("a link");
    refused(inspect(&dir), 3, &[first, "leads out of its folder"]);
}

#[test]
fn a_configuration_that_no_model_has() {
    let scratch = Scratch::new();
    let dir = golden::copy(&scratch, "v2-lite");
    for (key, value, word) in [
        ("num_hidden_layers", json!(-1), "`num_hidden_layers`"),
        (
            "num_hidden_layers",
            json!(1u64 << 60),
            "`num_hidden_layers`",
        ),
        // Dense, then, but the weights have experts.
        (
            "n_routed_experts",
            json!(0),
            "unexpected: `model.layers.1.mlp.experts.0",
        ),
        ("num_experts_per_tok", json!(9), "`num_experts_per_tok`"),
        ("rope_theta", json!("NaN"), "`rope_theta`"),
        ("rope_theta", json!(0), "`rope_theta`"),
        ("vocab_size", json!(71), "shape: `lm_head.weight`"),
        ("hidden_size", json!(1u64 << 40), "`hidden_size`"),
    ] {
        let whole = edit_config(&dir, key, value);
        for ran in [inspect(&dir), generate(&dir)] {
            refused(ran, 3, &[word]);
        }
        fs::write(dir.join("config.json"), whole).expect("the configuration again");
    }
}

/// Without a hash a changed weight is a weight; whatever else is changed is refused.
#[test]
fn flipped_bits_give_a_model_or_a_clean_error() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let path = dir.join(WEIGHTS);
    let whole = fs::read(&path).expect("the weights");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let places = (0..header).step_by(header / 120);
    for place in places.chain((header..whole.len()).step_by(whole.len() / 8)) {
        let mut flipped = whole.clone();
        flipped[place] ^= 1 << (place % 8);
        fs::write(&path, &flipped).expect("other bytes");
        let ran = generate(&dir);
        assert!(
            [0, 3].contains(&ran.code),
            "byte {place}: {} {}",
            ran.code,
            ran.stderr
        );
        assert!(
            !ran.stderr.contains("panicked"),
            "byte {place}: {}",
            ran.stderr
        );
    }
}

#[test]
fn a_pickle_is_never_opened() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    fs::remove_file(dir.join(WEIGHTS)).expect("no weights");
    let touched = scratch.path().join("touched");
    // What Python's pickle would run: os.system("touch ...").
    let payload = format!("cos\nsystem\n(S'touch {}'\ntR.", touched.display());
    fs::write(dir.join("pytorch_model.bin"), payload).expect("a pickle");
    let model = shown(&dir);
    for ran in [inspect(&dir), generate(&dir), run(&["doctor", &model])] {
        refused(ran, 3, &["pickled weights", "save_pretrained"]);
    }
    let out = shown(&scratch.path().join("out"));
    refused(run(&["convert", &model, &out]), 3, &["pickled weights"]);
    assert!(!touched.exists());
}

/// What the fuzzer starts from: each breaks one rule of the format.
#[test]
fn hostile_gguf_files_are_named() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf");
    let mut count = 0;
    for entry in fs::read_dir(corpus).expect("the corpus").flatten() {
        let path = entry.path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".gguf") && !name.starts_with("valid") {
            refused(inspect(&path), 3, &[&name]);
            refused(generate(&path), 3, &[&name]);
            count += 1;
        }
    }
    assert!(count >= 15, "{count} files");
}

/// Tebibytes that are not there: sparse on disk, and nothing of them is read.
#[test]
fn weights_larger_than_the_memory_are_refused_before_they_are_read() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let path = dir.join(WEIGHTS);
    let rows = 1u64 << 24;
    edit_config(&dir, "vocab_size", json!(rows));
    edit_config(&dir, "hidden_size", json!(1 << 14));
    let (mut end, mut header) = (0, serde_json::Map::new());
    for (name, entry) in &Parts::read(&path).header {
        let Some(shape) = entry["shape"].as_array() else {
            continue;
        };
        let sizes = shape.iter().filter_map(Value::as_u64);
        let sizes = sizes.map(|size| match size {
            16 => 1 << 13,
            32 => 1 << 14,
            80 => rows,
            size => size,
        });
        let shape: Vec<u64> = sizes.collect();
        let start = end;
        end += 2 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let data = Vec::new();
    write(&path, &Parts { header, data });
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("the file");
    let header = file.metadata().expect("its length").len();
    file.set_len(header + end)
        .expect("a file system with sparse files");
    let found = inspect(&dir).expect_code(0).stdout;
    assert!(found.contains("TiB BF16"), "{found}");
    refused(generate(&dir), 4, &["of memory", "available", "--load map"]);
}

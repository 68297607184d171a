//! `convert`: what is in the place of OUT, what GGUF keeps of a tokenizer, and a stop half way.

#[path = "fixture/dense_model.rs"]
mod dense_model;
mod fixture;
#[path = "fixture/small_model.rs"]
mod small_model;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dense_model::{golden, inspected, shown};
use fixture::{Scratch, command, ran, run};
use serde_json::{Map, Value, json};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("one JSON object")
}

#[test]
fn only_a_model_is_replaced() {
    let scratch = Scratch::new();
    let model = golden();
    let convert = |out: &Path, code: i32| {
        let ran = run(&["convert", &model, &shown(out)]).expect_code(code);
        ran.stderr
    };
    let file = PathBuf::from(scratch.file("notes.gguf", "years of work"));
    assert!(convert(&file, 2).contains("is no GGUF file"));
    assert_eq!(fs::read(&file).expect("the file"), b"years of work");
    for replaced in [&b""[..], b"GGUF\x03\0"] {
        fs::write(&file, replaced).expect("a file");
        convert(&file, 0);
        assert!(fs::metadata(&file).expect("the file").len() > 30_000);
    }
    fs::remove_file(&file).expect("removed");
    let made = Command::new("mkfifo").arg(&file).status();
    assert!(made.expect("mkfifo runs").success());
    assert!(convert(&file, 2).contains("not a regular file"));

    let dir = scratch.path().join("out");
    fs::create_dir(&dir).expect("a folder");
    convert(&dir, 0);
    convert(&dir, 0);
    fs::remove_file(dir.join("model.safetensors")).expect("removed");
    assert!(convert(&dir, 2).contains("is no model"));
    assert!(dir.join("config.json").exists());

    for name in ["link", "link.gguf"] {
        let link = scratch.path().join(name);
        std::os::unix::fs::symlink("nowhere", &link).expect("a link");
        assert!(convert(&link, 2).contains("leads nowhere"));
        assert!(link.is_symlink());
    }
}

#[test]
fn without_a_tokenizer_a_gguf_file_keeps_template_and_ids() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let path = Path::new(&model).join("generation_config.json");
    fs::write(&path, json!({"eos_token_id": [1001, 3, 7]}).to_string()).expect("a file");
    let [file, again, back] =
        ["a.gguf", "b.gguf", "back"].map(|name| shown(&scratch.path().join(name)));
    for (from, to, tokenizer) in [(&model, &file, false), (&file, &again, false)] {
        let told = run(&["convert", from, to, "--json"]).expect_code(0).stdout;
        assert_eq!(parsed(&told)["tokenizer"], tokenizer);
    }
    run(&["convert", &again, &back]).expect_code(0);
    let want = inspected(&model);
    assert!(
        want["chat_template"]
            .as_str()
            .is_some_and(|text| text.contains("<think>"))
    );
    for model in [&file, &again, &back] {
        let found = inspected(model);
        assert_eq!(found["chat_template"], want["chat_template"], "{model}");
        assert_eq!(found["stop_token_ids"], json!([3, 7, 1001]), "{model}");
        let pad = found["special_tokens"].as_array().expect("tokens");
        let pad = pad.iter().find(|token| token["role"] == "pad");
        assert_eq!(pad.expect("a pad token")["id"], 1000, "{model}");
    }
    let bytes = fs::read(&file).expect("the file");
    for key in ["eos", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let found = bytes
            .windows(key.len())
            .any(|window| window == key.as_bytes());
        assert!(found, "{key}");
    }
    fs::write(&path, json!({"eos_token_id": [1001, 3, 7, 9]}).to_string()).expect("a file");
    let ran = run(&["convert", &model, &file]).expect_code(0);
    assert!(ran.stderr.contains("1 more are left out"), "{}", ran.stderr);
    let told = run(&["convert", &model, &back, "--json"]).expect_code(0);
    assert_eq!(parsed(&told.stdout)["tokenizer"], true);
}

/// A model of a gigabyte of zeros, sparse on disk.
fn sparse_model(dir: &Path) {
    let config = json!({"model_type": "qwen2", "vocab_size": 1000, "hidden_size": 1024,
        "intermediate_size": 8192, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 8, "max_position_embeddings": 128, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "eos_token_id": 1});
    let text = config.to_string();
    fs::create_dir_all(dir).expect("a folder");
    fs::write(dir.join("config.json"), &text).expect("a configuration");
    let config = model::Config::from_json(&text).expect("a valid configuration");
    let (mut header, mut end) = (Map::new(), 0);
    for spec in &model::Layout::new(&config).tensors {
        let start = end;
        end += 2 * spec.len as u64;
        let entry = json!({"dtype": "BF16", "shape": spec.shape, "data_offsets": [start, end]});
        header.insert(spec.name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    let mut file = fs::File::create(dir.join("model.safetensors")).expect("a file");
    let length = header.len() as u64;
    file.write_all(&length.to_le_bytes()).expect("a length");
    file.write_all(header.as_bytes()).expect("a header");
    file.set_len(8 + length + end)
        .expect("a file system with sparse files");
}

#[test]
fn a_signal_stops_a_conversion_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("model");
    sparse_model(&dir);
    let before = || {
        let entries = fs::read_dir(scratch.path()).expect("the folder").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let names = before();
    for (out, signal, code) in [("out", "INT", 130), ("out.gguf", "TERM", 143)] {
        let out = shown(&scratch.path().join(out));
        let mut convert = command(&["convert", &shown(&dir), &out]);
        let child = convert
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.expect("the binary starts");
        let started = Instant::now();
        while before() == names {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "nothing begins"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
        let ran = ran(child.wait_with_output().expect("it ends")).expect_code(code);
        assert!(
            ran.stderr
                .contains("stopped by a signal; nothing was written"),
            "{}",
            ran.stderr
        );
        assert_eq!(before(), names, "{out}");
    }
}

//! `convert`: there and back, what comes along, and what is refused.

mod fixture;
#[path = "fixture/golden.rs"]
mod golden;
#[path = "fixture/small_model.rs"]
mod small_model;

use std::fs;
use std::path::Path;

use fixture::{Scratch, run};
use serde_json::Value;

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn inspected(model: &str) -> Value {
    let json = run(&["inspect", model, "--json"]).expect_code(0).stdout;
    serde_json::from_str(&json).expect("one JSON object")
}

/// Every tensor of a folder by its name: type, shape, bytes.
fn tensors(dir: &Path) -> Vec<(String, Value, Value, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("model") || !name.ends_with(".safetensors") {
            continue;
        }
        let golden::Parts { mut header, data } = golden::Parts::read(&entry.path());
        header.remove("__metadata__");
        for (name, entry) in header {
            let offset = |i: usize| entry["data_offsets"][i].as_u64().expect("an offset") as usize;
            let bytes = data[offset(0)..offset(1)].to_vec();
            found.push((name, entry["dtype"].clone(), entry["shape"].clone(), bytes));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty());
    found
}

#[test]
fn as_stored_keeps_every_tensor_in_one_file_and_in_many() {
    let scratch = Scratch::new();
    for case in ["v3-mtp", "v3-fp8-ue8m0", "qwen2"] {
        let from = golden::root().join(case);
        let out = scratch.path().join(case);
        for shards in [&[][..], &["--shard-bytes", "20000"]] {
            let (model, to) = (shown(&from), shown(&out));
            let arguments = [&["convert", &model, &to, "--json"], shards].concat();
            let ran = run(&arguments).expect_code(0);
            let told: Value = serde_json::from_str(&ran.stdout).expect("one JSON object");
            assert_eq!(told["model"], to.as_str());
            assert!(told["bytes"].as_u64().is_some_and(|bytes| bytes > 30_000));
            assert!(tensors(&from) == tensors(&out), "{case} {shards:?}");
            assert_eq!(out.join("model.safetensors").exists(), shards.is_empty());
            assert_eq!(inspected(&model)["parts"], inspected(&to)["parts"]);
        }
    }
}

#[test]
fn folder_to_gguf_and_back_gives_the_same_scores() {
    let scratch = Scratch::new();
    let input = scratch.file("rows.jsonl", "{\"token_ids\": [1, 9, 33, 7, 5, 60]}");
    let [file, back] = ["model.gguf", "back"].map(|name| shown(&scratch.path().join(name)));
    for case in ["v2-lite", "llama", "qwen2", "qwen3", "v3-groups-yarn"] {
        let from = shown(&golden::root().join(case));
        run(&["convert", &from, &file, "--gguf", "f32"]).expect_code(0);
        run(&["convert", &file, &back]).expect_code(0);
        let score = |model: &str| {
            let arguments = ["score", model, "--input", &input, "--precision", "f32"];
            run(&arguments).expect_code(0).stdout
        };
        let wanted = score(&from);
        assert_eq!(wanted, score(&file), "{case} in GGUF");
        assert_eq!(wanted, score(&back), "{case} and back");
        run(&["convert", &from, &file, "--gguf", "q8_0"]).expect_code(0);
        assert!(fs::read(&file).expect("the file").starts_with(b"GGUF"));
    }
}

#[test]
fn types_of_a_folder() {
    let scratch = Scratch::new();
    let from = shown(&golden::root().join("deepseek_v3_q_lora"));
    for (dtype, name) in [("f32", "F32"), ("bf16", "BF16"), ("fp8", "F8_E4M3")] {
        let out = shown(&scratch.path().join(dtype));
        run(&["convert", &from, &out, "--dtype", dtype]).expect_code(0);
        let found = inspected(&out);
        assert!(
            found["weights"]["dtypes"][name].is_u64(),
            "{dtype}: {found}"
        );
        let arguments = ["generate", &out, "--token-ids", "1,2", "--max-tokens", "2"];
        run(&arguments).expect_code(0);
    }
}

#[test]
fn tokenizer_and_template_come_along() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let out = scratch.path().join("out");
    let to = shown(&out);
    run(&["convert", &model, &to, "--dtype", "bf16"]).expect_code(0);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let [from, to] = [Path::new(&model), &out].map(|dir| fs::read(dir.join(name)));
        assert_eq!(from.expect("a file"), to.expect("a copy"), "{name}");
    }
    let chat = [
        "generate",
        &to,
        "--prompt",
        "1 2 3 6",
        "--chat",
        "--max-tokens",
        "3",
    ];
    run(&chat).expect_code(0);
    // Our own words are no byte pairs, which GGUF would need.
    let file = shown(&scratch.path().join("out.gguf"));
    let ran = run(&["convert", &model, &file]).expect_code(0);
    assert!(
        ran.stderr.contains("warning: the tokenizer is left out"),
        "{}",
        ran.stderr
    );
    let ran = run(&["generate", &file, "--prompt", "1"]).expect_code(3);
    assert!(
        ran.stderr.contains("out.gguf: holds no tokenizer"),
        "{}",
        ran.stderr
    );
}

/// The text of a `tokenizer.json`: a token for each byte, "th", and the marks of thinking.
fn byte_level() -> String {
    let printable = |byte: &u8| (33..=126).contains(byte) || *byte >= 161 && *byte != 173;
    let mut rest = (256..).filter_map(char::from_u32);
    let symbols = (0..=255).map(|byte| match printable(&byte) {
        true => char::from(byte),
        false => rest.next().expect("characters"),
    });
    let mut tokens: Vec<String> = symbols.map(String::from).collect();
    tokens.extend(["th", "<think>", "</think>"].map(str::to_string));
    let mut token_types = vec![1; tokens.len()];
    token_types[257..].fill(4);
    let parts = text::TokenizerParts {
        model: "gpt2".to_string(),
        pre: "qwen2".to_string(),
        merges: vec!["t h".to_string()],
        tokens,
        token_types,
        ..text::TokenizerParts::default()
    };
    text::tokenizer_json(&parts).expect("a tokenizer")
}

#[test]
fn a_byte_level_tokenizer_goes_into_gguf_and_out_again() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    fs::write(Path::new(&model).join("tokenizer.json"), byte_level()).expect("a tokenizer");
    let [file, back] = ["out.gguf", "back"].map(|name| shown(&scratch.path().join(name)));
    run(&["convert", &model, &file, "--gguf", "f32"]).expect_code(0);
    run(&["convert", &file, &back]).expect_code(0);
    let answers = [&model, &file, &back].map(|model| {
        let prompt = ["generate", model, "--chat", "--prompt", "the 12th ü"];
        let options = ["--max-tokens", "9", "--json", "--precision", "f32"];
        let ran = run(&[&prompt[..], &options].concat()).expect_code(0);
        let answer: Value = serde_json::from_str(&ran.stdout).expect("one JSON object");
        let ids = answer["completions"][0]["token_ids"].clone();
        assert_eq!(
            inspected(model)["stop_token_ids"],
            serde_json::json!([1001]),
            "{model}"
        );
        assert_eq!(
            inspected(model)["chat_template_opens_thinking"],
            true,
            "{model}"
        );
        (answer["prompt_token_ids"].clone(), ids)
    });
    // "th" is one token, "ü" two bytes, and the template adds a blank and the mark.
    let prompt = answers[0].0.as_array().expect("ids");
    assert_eq!(prompt.len(), "the 12th ".len() - 2 + 2 + " ".len() + 1);
    assert_eq!(prompt.last(), Some(&Value::from(257)));
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_written() {
    let scratch = Scratch::new();
    let dir = golden::copy(&scratch, "qwen3");
    let model = shown(&dir);
    let [out, file] = ["out", "out.gguf"].map(|name| shown(&scratch.path().join(name)));
    for (arguments, word) in [
        (&["convert", &model, &model][..], "is what would be read"),
        (
            &["convert", &model, &out, "--gguf", "q8_0"],
            "does not end in .gguf",
        ),
        (
            &["convert", &model, &file, "--dtype", "f32"],
            "ends in .gguf",
        ),
        (
            &["convert", &model, &file, "--shard-bytes", "9"],
            "ends in .gguf",
        ),
        (&["convert", &model, &out, "--dtype", "int3"], "int3"),
        (&["convert", &model, &file, "--gguf", "q9"], "q9"),
        (&["convert", &model, &out, "--shard-bytes", "0"], "0"),
        (&["convert", &model], "OUT"),
    ] {
        let ran = run(arguments).expect_code(2);
        assert!(ran.stderr.contains(word), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
    // In GGUF every layer of this family has experts.
    let mixed = shown(&golden::root().join("qwen3-moe"));
    let ran = run(&["convert", &mixed, &file]).expect_code(2);
    for word in ["`mlp_only_layers`", "GGUF", "write a folder"] {
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
    }
    assert!(!Path::new(&out).exists() && !Path::new(&file).exists());
    // A folder with other things in it is not replaced.
    let precious = scratch.path().join("precious");
    fs::create_dir_all(&precious).expect("a folder");
    fs::write(precious.join("thesis.txt"), "years of work").expect("a file");
    let ran = run(&["convert", &model, &shown(&precious)]).expect_code(2);
    assert!(ran.stderr.contains("thesis.txt"), "{}", ran.stderr);
    let kept = fs::read_to_string(precious.join("thesis.txt"));
    assert_eq!(kept.expect("the file"), "years of work");
    assert!(tensors(&dir).len() > 20, "the model is as it was");
}

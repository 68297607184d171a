//! Every family of `golden/` from the command line: what the models hold, and their numbers.

mod fixture;
#[path = "fixture/golden.rs"]
mod golden;

use std::fs;
use std::path::{Path, PathBuf};

use fixture::{Scratch, run};
use model::TensorData;
use serde_json::Value;

/// Every folder of `golden/` with a model in it.
fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(golden::root()).expect("golden/").flatten();
    let folders = entries.map(|entry| entry.path());
    let mut cases: Vec<PathBuf> = folders
        .filter(|folder| folder.join("golden.safetensors").exists())
        .collect();
    cases.sort();
    assert!(cases.len() >= 16, "{cases:?}");
    cases
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).expect("one JSON object")
}

/// Token ids of every document of a golden folder.
fn documents(dir: &Path) -> Vec<Vec<u32>> {
    let tensors = model::read_tensors(&dir.join("golden.safetensors")).expect("golden values");
    let ids = |index: usize| {
        let name = format!("input_ids.{index}");
        let tensor = tensors.iter().find(|tensor| tensor.name == name)?;
        let TensorData::I32(ids) = &tensor.data else {
            panic!("{name} are integers")
        };
        Some(ids.iter().map(|&id| id as u32).collect())
    };
    (0..).map_while(ids).collect()
}

/// The documents as the rows of a file for `score`.
fn rows(scratch: &Scratch, documents: &[Vec<u32>]) -> String {
    let rows: Vec<String> = documents
        .iter()
        .map(|token_ids| serde_json::json!({"token_ids": token_ids}).to_string())
        .collect();
    scratch.file("rows.jsonl", &rows.join("\n"))
}

#[test]
fn inspect_tells_what_the_files_and_the_configuration_say() {
    for case in cases() {
        let found = run(&["inspect", &text(&case), "--json"]).expect_code(0);
        let found = parsed(&found.stdout);
        let config = fs::read_to_string(case.join("config.json")).expect("a configuration");
        let config = parsed(&config);
        for (key, field) in [
            ("model_type", "model_type"),
            ("hidden_size", "hidden_size"),
            ("layers", "num_hidden_layers"),
            ("vocab_size", "vocab_size"),
            ("rms_norm_eps", "rms_norm_eps"),
        ] {
            assert_eq!(found[key], config[field], "{case:?} {key}");
        }
        let attention = &found["attention"];
        assert_eq!(
            attention["heads"], config["num_attention_heads"],
            "{case:?}"
        );
        let is_deepseek = found["model_type"]
            .as_str()
            .unwrap_or("")
            .starts_with("deepseek");
        let kind = if is_deepseek { "mla" } else { "gqa" };
        assert_eq!(attention["kind"], kind, "{case:?}");
        let experts = [&config["n_routed_experts"], &config["num_experts"]];
        let experts = experts.into_iter().find(|count| !count.is_null());
        assert_eq!(
            found["experts"]["routed"],
            experts.cloned().unwrap_or(Value::Null)
        );
        let (tensors, bytes) = held(&case);
        assert_eq!(found["weights"]["tensors"], tensors, "{case:?}");
        assert_eq!(found["weights"]["bytes"], bytes, "{case:?}");
        let parts = found["parts"].as_array().expect("parts");
        let sum = |key: &str| {
            parts
                .iter()
                .filter_map(|part| part[key].as_u64())
                .sum::<u64>()
        };
        assert_eq!(sum("bytes"), bytes, "{case:?}");
        assert_eq!(found["parameters_total"], sum("parameters"), "{case:?}");
        let words = run(&["inspect", &text(&case)]).expect_code(0).stdout;
        assert!(
            words.contains("\nRoPE ") && words.contains("\ndense layers "),
            "{words}"
        );
    }
}

/// Tensors and bytes of the weights, by the files alone.
fn held(case: &Path) -> (usize, u64) {
    let (mut tensors, mut bytes) = (0, 0);
    for entry in fs::read_dir(case).expect("a folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let parts = golden::Parts::read(&entry.path());
            tensors += parts
                .header
                .keys()
                .filter(|key| *key != "__metadata__")
                .count();
            bytes += parts.data.len() as u64;
        }
    }
    (tensors, bytes)
}

#[test]
fn score_gives_the_logits_of_the_reference() {
    let scratch = Scratch::new();
    for case in cases() {
        let documents = documents(&case);
        let input = rows(&scratch, &documents);
        let logits = text(&scratch.path().join("logits.safetensors"));
        let model = text(&case);
        let arguments = ["score", &model, "--input", &input, "--logits", &logits];
        run(&[&arguments[..], &["--precision", "f32"]].concat()).expect_code(0);
        let found = floats(logits.as_ref(), documents.len());
        let wanted = floats(&case.join("golden.safetensors"), documents.len());
        for (index, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert_eq!(found.len(), wanted.len());
            let worst = worst_by_spread(found, wanted);
            assert!(worst < 1e-4, "{case:?} document {index}: {worst:e}");
        }
    }
}

/// The tensors `logits.0`, `logits.1` and so on.
fn floats(path: &Path, count: usize) -> Vec<Vec<f32>> {
    let tensors = model::read_tensors(path).expect("a tensor file");
    let of = |index: usize| {
        let name = format!("logits.{index}");
        let tensor = tensors.iter().find(|tensor| tensor.name == name);
        match &tensor.expect("logits of every document").data {
            TensorData::F32(values) => values.clone(),
            TensorData::I32(_) => panic!("logits are f32"),
        }
    };
    (0..count).map(of).collect()
}

/// The greatest difference over the standard deviation of what is wanted.
fn worst_by_spread(found: &[f32], wanted: &[f32]) -> f64 {
    let count = wanted.len() as f64;
    let mean = wanted.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let squares = wanted
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>();
    let differences = found
        .iter()
        .zip(wanted)
        .map(|(a, b)| f64::from((a - b).abs()));
    differences.fold(0.0, f64::max) / (squares / count).sqrt()
}

/// The form that rounds gives other numbers; where the bytes lie gives none.
#[test]
fn mapped_weights_give_the_same_output_and_eight_bits_another() {
    let scratch = Scratch::new();
    let mut rounded = 0;
    for case in cases() {
        let model = text(&case);
        let input = rows(&scratch, &documents(&case));
        for command in [
            &["score", &model, "--input", &input][..],
            &[
                "generate",
                &model,
                "--token-ids",
                "1,5,9",
                "--max-tokens",
                "6",
                "--json",
            ],
        ] {
            let with = |options: &[&str]| {
                let ran = run(&[command, options].concat()).expect_code(0);
                assert!(!ran.stdout.is_empty());
                ran.stdout
            };
            let read = with(&[]);
            assert_eq!(read, with(&["--load", "map"]), "{case:?} {command:?}");
            assert_eq!(read, with(&["--strict"]), "{case:?} {command:?}");
            let few_bits = with(&["--weights", "q8"]);
            assert_eq!(
                few_bits,
                with(&["--weights", "q8", "--load", "map"]),
                "{case:?}"
            );
            rounded += usize::from(few_bits != read);
        }
    }
    assert!(rounded >= 16, "eight bits change {rounded} outputs only");
}

#[test]
fn every_form_of_the_weights_opens() {
    let model = text(&golden::root().join("v3-fp8"));
    for form in ["as-stored", "bf16", "q8", "q4"] {
        let arguments = ["generate", &model, "--token-ids", "1,2", "--weights", form];
        let ran = run(&[&arguments[..], &["--max-tokens", "3"]].concat()).expect_code(0);
        assert!(!ran.stdout.is_empty(), "{form}");
    }
}

#[test]
fn doctor_finds_nothing_but_the_missing_tokenizer() {
    for case in ["v3-mtp", "qwen3-moe"] {
        let path = text(&golden::root().join(case));
        let ran = run(&["doctor", &path, "--json"]).expect_code(3);
        let found = parsed(&ran.stdout);
        let checks = found["model"].as_array().expect("checks");
        let bad: Vec<&Value> = checks
            .iter()
            .filter(|check| check["good"] != true)
            .collect();
        assert_eq!(bad.len(), 1, "{case}: {bad:?}");
        assert_eq!(bad[0]["what"], "tokenizer");
        assert_eq!(bad[0]["found"], "there is no tokenizer.json");
        let names: Vec<&str> = checks
            .iter()
            .filter_map(|check| check["what"].as_str())
            .collect();
        assert_eq!(
            names.contains(&"token prediction"),
            case == "v3-mtp",
            "{names:?}"
        );
        for name in [
            "shapes",
            "values",
            "forward",
            "chat template",
            "stop tokens",
        ] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
    }
}

#[test]
fn a_configuration_alone_is_inspected() {
    let scratch = Scratch::new();
    let copy = golden::copy(&scratch, "v2-lite");
    fs::remove_file(copy.join("model.safetensors")).expect("no weights");
    let dir = text(&copy);
    let found = run(&["inspect", &dir, "--json"]).expect_code(0);
    let found = parsed(&found.stdout);
    assert_eq!(found["weights"], Value::Null);
    assert_eq!(found["parts"][0]["bytes"], Value::Null);
    let whole = run(&["inspect", &text(&golden::root().join("v2-lite")), "--json"]);
    let whole = parsed(&whole.stdout);
    assert_eq!(found["parameters_total"], whole["parameters_total"]);
    assert_eq!(found["parameters_active"], whole["parameters_active"]);
    let words = run(&["inspect", &dir]).expect_code(0).stdout;
    assert!(
        words.contains("\nweights                  none\n"),
        "{words}"
    );
    let ran = run(&["score", &dir, "--input", &rows(&scratch, &[vec![1]])]);
    let ran = ran.expect_code(3);
    assert!(
        ran.stderr.contains("has neither model.safetensors"),
        "{}",
        ran.stderr
    );
}

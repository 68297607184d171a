//! The real binary on a small exported model: same bytes everywhere, and results that parse.

mod fixture;
#[path = "fixture/small_model.rs"]
mod small_model;

use std::fs;

use fixture::{Scratch, run};
use kernels::{Cpu, Isa};
use model::{Activations, Batch, Model, Numerics, TensorData};
use serde_json::Value;

const ROWS: &str = "{\"text\": \"69 64 4 20 <think> 20 ~ </think> 69 - 64 <eos>\"}\n\n\
                    {\"token_ids\": [5]}\n{\"token_ids\": [7, 999, 3, 0, 1001]}";

/// Every instruction set of the machine with 1, 2 and 3 threads.
fn ways() -> Vec<[String; 4]> {
    let mut ways = Vec::new();
    for isa in Isa::available() {
        for threads in 1..=3 {
            let [isa_option, threads_option] = ["--isa", "--threads"].map(str::to_string);
            ways.push([
                isa_option,
                isa.to_string(),
                threads_option,
                threads.to_string(),
            ]);
        }
    }
    ways
}

/// Runs a command in every way; all must print and write the same. Gives back what was printed.
fn same_in_every_way(arguments: &[&str], written: Option<&str>) -> String {
    let mut first: Option<(String, Vec<u8>)> = None;
    for way in ways() {
        let way: Vec<&str> = way.iter().map(String::as_str).collect();
        let ran = run(&[arguments, &way].concat()).expect_code(0);
        let file = written.map(|path| fs::read(path).expect("the written file"));
        let found = (ran.stdout, file.unwrap_or_default());
        let expected = first.get_or_insert_with(|| found.clone());
        assert!(
            *expected == found,
            "{arguments:?} gives other bytes with {way:?}"
        );
    }
    first.expect("at least one way").0
}

#[test]
fn score_is_the_same_in_every_way_and_agrees_with_its_own_logits() {
    let scratch = Scratch::new();
    let (model, input) = (
        small_model::write(&scratch),
        scratch.file("rows.jsonl", ROWS),
    );
    let logits = scratch
        .path()
        .join("logits.safetensors")
        .display()
        .to_string();
    for precision in ["f32", "bf16"] {
        let arguments = [
            "score",
            &model,
            "--input",
            &input,
            "--logits",
            &logits,
            "--precision",
            precision,
        ];
        let printed = same_in_every_way(&arguments, Some(&logits));
        let tensors = model::read_tensors(logits.as_ref()).expect("the logits");
        let rows: Vec<Value> = printed
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line is JSON"))
            .collect();
        assert_eq!(rows.len(), 3);
        for (number, row) in rows.iter().enumerate() {
            let tensor = tensors
                .iter()
                .find(|tensor| tensor.name == format!("logits.{number}"))
                .expect("a tensor for each row");
            let TensorData::F32(logits) = &tensor.data else {
                panic!("logits are f32")
            };
            check_row(row, &tensor.shape, logits);
        }
    }
}

/// Each log-probability is the log-softmax, in f64, of the logits before it.
fn check_row(row: &Value, shape: &[usize], logits: &[f32]) {
    let token_ids = row["token_ids"].as_array().expect("ids");
    let logprobs = row["logprobs"].as_array().expect("log-probabilities");
    assert_eq!(shape, [token_ids.len(), 1024]);
    assert_eq!(logprobs.len(), token_ids.len());
    assert!(logprobs[0].is_null());
    let mut sum = 0.0;
    for position in 1..token_ids.len() {
        let before = &logits[(position - 1) * 1024..position * 1024];
        let total: f64 = before.iter().map(|&logit| f64::from(logit).exp()).sum();
        let id = token_ids[position].as_u64().expect("an id") as usize;
        let expected = f64::from(before[id]) - total.ln();
        let found = logprobs[position].as_f64().expect("a number");
        assert!(
            (found - expected).abs() < 1e-4,
            "position {position}: {found} {expected}"
        );
        sum += expected;
    }
    let found = row["sum_logprob"].as_f64().expect("a number");
    assert!((found - sum).abs() < 1e-3, "{found} {sum}");
}

#[test]
fn score_writes_a_file_with_the_same_lines() {
    let scratch = Scratch::new();
    let (model, input) = (
        small_model::write(&scratch),
        scratch.file("rows.jsonl", ROWS),
    );
    let output = scratch.path().join("scored.jsonl").display().to_string();
    let printed = run(&["score", &model, "--input", &input])
        .expect_code(0)
        .stdout;
    let silent = run(&["score", &model, "--input", &input, "--output", &output]).expect_code(0);
    assert_eq!(silent.stdout, "");
    assert_eq!(fs::read_to_string(&output).expect("the output"), printed);
}

#[test]
fn generate_is_the_same_in_every_way() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let arguments = [
        "generate",
        &model,
        "--prompt",
        "69 64 4 20 <think>",
        "--max-tokens",
        "12",
        "--n",
        "3",
        "--seed",
        "5",
        "--json",
    ];
    let printed = same_in_every_way(&arguments, None);
    let answer: Value = serde_json::from_str(&printed).expect("one JSON object");
    assert_eq!(
        answer["prompt_token_ids"],
        serde_json::json!([69, 64, 4, 20, 1003])
    );
    let completions = answer["completions"].as_array().expect("completions");
    assert_eq!(completions.len(), 3);
    for completion in completions {
        let ids = completion["token_ids"].as_array().expect("ids");
        let logprobs = completion["logprobs"]
            .as_array()
            .expect("log-probabilities");
        assert_eq!(ids.len(), logprobs.len());
        assert!(
            logprobs
                .iter()
                .all(|logprob| logprob.as_f64().is_some_and(|value| value <= 0.0))
        );
        assert!(completion["text"].is_string() && completion["answer"].is_string());
        let reason = completion["finish_reason"].as_str().expect("a reason");
        assert_eq!(
            reason == "stop",
            ids.last() == Some(&Value::from(1001)),
            "{reason} {ids:?}"
        );
    }
    assert_ne!(
        completions[0]["token_ids"], completions[1]["token_ids"],
        "each has its own chance"
    );
}

/// Greedy generation against the argmax of whole forward passes, one for each token.
#[test]
fn greedy_generation_takes_the_likeliest_token() {
    let scratch = Scratch::new();
    let dir = small_model::write(&scratch);
    let arguments = [
        "generate",
        &dir,
        "--token-ids",
        "69,64,4,20",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "--precision",
        "f32",
        "--json",
    ];
    let answer = run(&arguments).expect_code(0).stdout;
    let answer: Value = serde_json::from_str(&answer).expect("one JSON object");
    let backend = Cpu::new(1, Isa::Portable);
    let numerics = Numerics::new(kernels::Precision::F32);
    let (model, _) = Model::open(dir.as_ref(), numerics, &backend).expect("the model");
    let mut ids = vec![69, 64, 4, 20];
    for _ in 0..8 {
        let mut acts = Activations::new(&model.config);
        model.forward(
            &backend,
            &Batch::documents(&[ids.as_slice()]),
            &mut acts,
            None,
        );
        let mut logits = Vec::new();
        model.logits(&backend, &mut acts, &[ids.len() as u32 - 1], &mut logits);
        let best =
            (0..1024).max_by(|&a: &usize, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        ids.push(best.expect("a token") as u32);
        if ids.last() == Some(&1001) {
            break;
        }
    }
    assert_eq!(
        answer["completions"][0]["token_ids"],
        serde_json::json!(ids[4..])
    );
}

#[test]
fn a_chat_prompt_goes_through_the_template_and_the_thinking_is_shown_in_words() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let chat = [
        "generate",
        &model,
        "--prompt",
        "69 64 4 20",
        "--chat",
        "--max-tokens",
        "9",
    ];
    let raw = [
        "generate",
        &model,
        "--prompt",
        "69 64 4 20 <think>",
        "--max-tokens",
        "9",
    ];
    let chat = run(&chat).expect_code(0).stdout;
    assert_eq!(chat, run(&raw).expect_code(0).stdout);
    assert!(chat.starts_with("<think> "), "{chat}");
    assert!(
        chat.contains("In words:\n") && chat.contains("\nVerdict: "),
        "{chat}"
    );
}

#[test]
fn inspect_counts_what_the_files_hold() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let words = run(&["inspect", &model]).expect_code(0).stdout;
    let facts = run(&["inspect", &model, "--json"]).expect_code(0).stdout;
    let facts: Value = serde_json::from_str(&facts).expect("one JSON object");
    let tensors = model::read_tensors(&scratch.path().join("model/model.safetensors"));
    let held: usize = tensors
        .expect("the weights")
        .iter()
        .map(|tensor| tensor.shape.iter().product::<usize>())
        .sum();
    assert_eq!(facts["parameters_total"], held);
    let parts = facts["parts"].as_array().expect("parts");
    let in_parts: u64 = parts
        .iter()
        .filter_map(|part| part["parameters"].as_u64())
        .sum();
    assert_eq!(in_parts, held as u64);
    // Two layers of a latent of 24 and a rotated key of 4, in f32.
    assert_eq!(facts["cache_bytes_per_token"], 2 * (24 + 4) * 4);
    assert_eq!(facts["stop_token_ids"], serde_json::json!([1001]));
    assert_eq!(facts["chat_template_opens_thinking"], true);
    let tokens = facts["special_tokens"].as_array().expect("special tokens");
    for (role, text, id) in [
        ("eos", "<eos>", 1001),
        ("pad", "<pad>", 1000),
        ("think_open", "<think>", 1003),
    ] {
        let token = serde_json::json!({"role": role, "text": text, "id": id});
        assert!(tokens.contains(&token), "{token} in {tokens:?}");
    }
    assert!(
        words.contains("DeepseekV3ForCausalLM") && words.contains("1024 tokens"),
        "{words}"
    );
}

#[test]
fn doctor_finds_a_good_machine_and_a_good_model() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let found = run(&["doctor", &model, "--json"]).expect_code(0).stdout;
    let found: Value = serde_json::from_str(&found).expect("one JSON object");
    assert_eq!(found["healthy"], true);
    let laws = found["laws"].as_array().expect("laws");
    assert_eq!(laws.len(), 2);
    for law in laws {
        assert_eq!(law["ways"], 3 * Isa::available().len());
        assert_eq!(law["differing"], serde_json::json!([]));
    }
    assert_ne!(
        laws[0]["hash"], laws[1]["hash"],
        "bf16 rounds, f32 does not"
    );
}

/// The weights stand in the folder that `latest` names, never beside it.
#[test]
fn doctor_reads_the_newest_checkpoint_of_a_run() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let run_dir = scratch.path().join("run");
    fs::create_dir_all(&run_dir).expect("a folder");
    fs::rename(&model, run_dir.join("step-7")).expect("a checkpoint");
    fs::write(run_dir.join("latest"), "step-7\n").expect("its name");
    let run_dir = run_dir.display().to_string();
    let found = run(&["doctor", &run_dir, "--json"]).expect_code(0).stdout;
    let found: Value = serde_json::from_str(&found).expect("one JSON object");
    assert_eq!(
        (&found["healthy"], &found["model"][0]["what"]),
        (&true.into(), &"shapes".into())
    );
}

#[test]
fn doctor_finds_a_tokenizer_that_is_too_large_for_the_model() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let path = scratch.path().join("model/tokenizer.json");
    let text = fs::read_to_string(&path).expect("the tokenizer");
    let more = text.replace("\"999\": 999", "\"999\": 999, \"one more\": 1024");
    assert_ne!(text, more);
    fs::write(&path, more).expect("another tokenizer");
    let ran = run(&["doctor", &model]).expect_code(3);
    assert!(
        ran.stdout
            .contains("BAD: 1025 tokens, but vocab_size is 1024"),
        "{}",
        ran.stdout
    );
}

#[test]
fn eval_reports_what_it_did() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let arguments = [
        "eval",
        &model,
        "--task",
        "countdown",
        "--problems",
        "20",
        "--show",
        "2",
        "--seed",
        "4",
    ];
    let words = run(&arguments).expect_code(0).stdout;
    assert_eq!(words.matches("Verdict: ").count(), 2, "{words}");
    assert!(
        words.contains("\ncountdown3: ") && words.contains("20 held-out problems"),
        "{words}"
    );
    let json = run(&[&arguments[..], &["--json"]].concat())
        .expect_code(0)
        .stdout;
    let json: Value = serde_json::from_str(&json).expect("one JSON object");
    assert_eq!(json["problems"], 20);
    let [low, high] = [0, 1].map(|index| json["ci95"][index].as_f64().expect("a bound"));
    let accuracy = json["accuracy"].as_f64().expect("a share");
    assert!(low <= accuracy && accuracy <= high);
}

/// As in transformers: a text begins with what the tokenizer's post-processor puts first, unless
/// `add_bos_token` says otherwise; a chat has it from its template alone, and what a user writes
/// is never a control token.
#[test]
fn a_text_begins_as_its_tokenizer_says_and_a_chat_as_its_template_says() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let ids = |arguments: &[&str]| -> Vec<u64> {
        let mut all = vec![
            "generate",
            &model,
            "--json",
            "--max-tokens",
            "1",
            "--prompt",
        ];
        all.extend(arguments);
        let answer: Value = serde_json::from_str(&run(&all).expect_code(0).stdout).expect("JSON");
        let ids = answer["prompt_token_ids"].as_array().expect("ids").iter();
        ids.map(|id| id.as_u64().expect("an id")).collect()
    };
    let plain = ids(&["1 2"]);
    assert_eq!(plain, [1, 2]);
    let path = std::path::Path::new(&model).join("tokenizer.json");
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).expect("tokenizer.json");
    let sequence = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    tokenizer["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, sequence],
        "pair": [sequence.clone(), {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [1000], "tokens": ["<pad>"]}},
    });
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    assert_eq!(ids(&["1 2"]), [1000, 1, 2]);
    assert_eq!(ids(&["<pad> 1"]), [1000, 1], "not twice");
    let chat = ids(&["1 2", "--chat"]);
    assert!(!chat.contains(&1000), "{chat:?}");
    let eos = ids(&["1 <eos>", "--chat"]);
    assert!(!eos.contains(&1001), "a user's <eos> is text: {eos:?}");
    let path = std::path::Path::new(&model).join("tokenizer_config.json");
    let mut settings: Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).expect("tokenizer_config.json");
    settings["add_bos_token"] = serde_json::json!(false);
    std::fs::write(&path, settings.to_string()).unwrap();
    assert_eq!(ids(&["1 2"]), [1, 2]);
    settings["add_bos_token"] = serde_json::json!(true);
    settings["bos_token"] = serde_json::json!({"content": "<eos>"});
    std::fs::write(&path, settings.to_string()).unwrap();
    assert_eq!(ids(&["1 2"]), [1001, 1, 2]);
}

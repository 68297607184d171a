//! Wrong input gives the documented exit code and says what, where and what to do.

mod fixture;
#[path = "fixture/small_model.rs"]
mod small_model;

use std::fs;
use std::process::Stdio;

use fixture::{Ran, Scratch, command, ran, run};

const COMMANDS: [&str; 11] = [
    "demo", "sft", "grpo", "eval", "generate", "serve", "chat", "score", "inspect", "convert",
    "doctor",
];

/// The exit code, nothing on standard output, one line of cause that has these words, one of help.
fn refused(ran: Ran, code: i32, words: &[&str]) {
    let ran = ran.expect_code(code);
    assert_eq!(ran.stdout, "");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let start = lines
        .iter()
        .position(|line| line.starts_with("bruchteil: error: "));
    let [cause, help] = lines[start.expect("a cause")..] else {
        panic!("one line of cause and one of help, not:\n{}", ran.stderr);
    };
    assert!(
        help.starts_with("bruchteil:   help: ") && help.len() > 25,
        "{help}"
    );
    for word in words {
        assert!(cause.contains(word), "`{word}` is not in: {cause}");
    }
    for panic in ["panicked", "RUST_BACKTRACE", "unwrap", "broken invariant"] {
        assert!(!ran.stderr.contains(panic), "{}", ran.stderr);
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for name in COMMANDS {
        let help = run(&[name, "--help"]).expect_code(0).stdout;
        assert!(
            help.contains(&format!("Example:\n  bruchteil {name}")),
            "{help}"
        );
        for option in [
            "--threads",
            "--isa",
            "--precision",
            "--seed",
            "--json",
            "--quiet",
        ] {
            assert!(help.contains(option), "{name} {option}");
        }
    }
    let help = run(&["--help"]).expect_code(0).stdout;
    assert!(COMMANDS.iter().all(|name| help.contains(name)), "{help}");
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [
        &["--isa", "sse9", "doctor"][..],
        &["doctor", "--isa", "sse9"],
        &["doctor", "--threads", "0"],
        &["generate", "nowhere"],
        &["generate", "nowhere", "--prompt", "1", "--token-ids", "1"],
        &[
            "generate",
            "nowhere",
            "--prompt",
            "1",
            "--temperature",
            "-1",
        ],
        &["generate", "nowhere", "--prompt", "1", "--top-p", "nan"],
        &["no-such-command"],
    ] {
        let ran = run(arguments).expect_code(2);
        assert_eq!(ran.stdout, "");
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    }
    let ran = run(&["doctor", "--isa", "sse9"]);
    assert!(
        ran.stderr.contains("unknown instruction set `sse9`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_missing_model_folder() {
    for arguments in [
        &["generate", "/no/such model", "--prompt", "1"][..],
        &["chat", "/no/such model", "--prompt", "1"],
        &["score", "/no/such model", "--input", "x"],
        &["inspect", "/no/such model"],
        &["doctor", "/no/such model"],
        &["eval", "/no/such model", "--task", "countdown"],
    ] {
        refused(run(arguments), 3, &["/no/such model", "no such folder"]);
    }
}

#[test]
fn truncated_weights() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let path = scratch.path().join("model/model.safetensors");
    let whole = fs::read(&path).expect("the weights");
    for kept in [0, 5, 300, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..kept]).expect("fewer bytes");
        let arguments = ["generate", &model, "--prompt", "1"];
        refused(run(&arguments), 3, &["model.safetensors"]);
    }
}

#[test]
fn a_configuration_that_does_not_fit() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let path = scratch.path().join("model/config.json");
    let whole = fs::read_to_string(&path).expect("the configuration");
    for (from, to, word) in [
        ("\"hidden_size\": 40", "\"hidden_size\": -3", "hidden_size"),
        (
            "\"hidden_act\": \"silu\"",
            "\"hidden_act\": \"tanh\"",
            "hidden_act",
        ),
        ("\"kv_lora_rank\"", "\"kv_lora_rang\"", "kv_lora_rank"),
    ] {
        let changed = whole.replace(from, to);
        assert_ne!(changed, whole);
        fs::write(&path, changed).expect("another configuration");
        refused(run(&["inspect", &model]), 3, &["config.json", word]);
    }
}

#[test]
fn token_ids_out_of_range() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let arguments = ["generate", &model, "--token-ids", "1,1024"];
    refused(
        run(&arguments),
        2,
        &["token id 1024 is out of range", "0 to 1023"],
    );
    let stops = [
        "generate",
        &model,
        "--token-ids",
        "1",
        "--stop-token-ids",
        "5000",
    ];
    refused(run(&stops), 2, &["stop_token_ids", "5000"]);
}

#[test]
fn a_prompt_that_does_not_fit() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let long = vec!["1"; 128].join(" ");
    refused(
        run(&["generate", &model, "--prompt", &long]),
        2,
        &["128 tokens", "takes 128"],
    );
    refused(
        run(&["generate", &model, "--prompt", ""]),
        2,
        &["no tokens"],
    );
}

#[test]
fn bad_rows_name_their_line() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let output = scratch.path().join("out.jsonl").display().to_string();
    for (row, word) in [
        ("{\"text\": \"1 2\"", "not JSON"),
        ("[1, 2]", "`text` or `token_ids`"),
        ("{\"text\": 3}", "`text` is not a string"),
        ("{\"token_ids\": [1, -2]}", "`token_ids`[1]"),
        ("{\"token_ids\": [1, 4294967296]}", "`token_ids`[1]"),
        ("{\"token_ids\": []}", "no tokens"),
        (
            "{\"token_ids\": [3, 1024]}",
            "token id 1024 is out of range",
        ),
        ("{\"text\": \"1\", \"token_ids\": [1]}", "either"),
        ("{}", "either"),
        ("{\"text\": \"\"}", "no tokens"),
    ] {
        let input = scratch.file("rows.jsonl", &format!("{{\"text\": \"1 2\"}}\n\n{row}\n"));
        let arguments = ["score", &model, "--input", &input, "--output", &output];
        refused(run(&arguments), 3, &["rows.jsonl", "line 3", word]);
        assert!(
            fs::metadata(&output).is_err(),
            "nothing is written for bad rows"
        );
    }
    let empty = scratch.file("empty.jsonl", "");
    refused(
        run(&["score", &model, "--input", &empty]),
        3,
        &["empty.jsonl", "no rows"],
    );
    refused(
        run(&["score", &model, "--input", "/no/rows"]),
        3,
        &["/no/rows"],
    );
}

#[test]
fn files_of_the_tokenizer_that_are_no_json() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    for name in ["tokenizer_config.json", "tokenizer.json"] {
        let path = scratch.path().join("model").join(name);
        let whole = fs::read(&path).expect("the file");
        fs::write(&path, "{\"model\": [").expect("a bad file");
        refused(run(&["generate", &model, "--prompt", "1"]), 3, &[name]);
        fs::write(&path, whole).expect("the file again");
    }
}

#[test]
fn a_chat_template_that_runs_for_ever_is_stopped() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    fs::write(scratch.path().join("model/chat_template.jinja"), endless).expect("a template");
    let arguments = ["generate", &model, "--prompt", "1", "--chat"];
    refused(run(&arguments), 3, &["chat_template"]);
}

#[test]
fn an_unknown_task() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    refused(
        run(&["eval", &model, "--task", "sudoku"]),
        2,
        &["sudoku", "no such task"],
    );
    let arguments = ["eval", &model, "--task", "countdown", "--numbers", "9"];
    refused(run(&arguments), 2, &["task.numbers = 9"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut inspect = command(&["inspect", &model]);
    let child = inspect
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .spawn();
    let output = child
        .expect("the binary starts")
        .wait_with_output()
        .expect("and ends");
    let ran = ran(output).expect_code(0);
    assert_eq!(ran.stderr, "");
}

//! `chat` with a model here.

mod fixture;
#[path = "fixture/small_model.rs"]
mod small_model;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use fixture::{Ran, Scratch, command, ran, run};
use serde_json::Value;

/// 40 numbers: more than two blocks of the cache.
fn question() -> String {
    let numbers: Vec<String> = (1..=40).map(|n| n.to_string()).collect();
    numbers.join(" ")
}

fn object(ran: Ran) -> Value {
    serde_json::from_str(&ran.expect_code(0).stdout).expect("one object")
}

/// What `generate` says of a prompt: thinking, answer, finish reason and tokens.
fn generated(arguments: &[&str]) -> (String, String, String, usize) {
    let found = object(run(&[&["generate"], arguments, &["--json"]].concat()));
    let completion = &found["completions"][0];
    let text = |name: &str| completion[name].as_str().unwrap_or_default().to_string();
    let tokens = completion["token_ids"].as_array().expect("ids").len();
    (
        text("thinking"),
        text("answer"),
        text("finish_reason"),
        tokens,
    )
}

fn chatted(object: &Value) -> (String, String, String, usize) {
    let text = |name: &str| object[name].as_str().unwrap_or_default().to_string();
    let tokens = object["completion_tokens"].as_u64().expect("a count") as usize;
    (
        text("thinking"),
        text("answer"),
        text("finish_reason"),
        tokens,
    )
}

#[test]
fn an_answer_is_what_generate_says() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    for sampling in [
        &["--temperature", "0"][..],
        &[],
        &[
            "--seed",
            "5",
            "--temperature",
            "0.7",
            "--top-p",
            "0.9",
            "--top-k",
            "30",
        ],
    ] {
        let same = [
            sampling,
            &["--max-tokens", "24", "--prompt", "69 64 4 20 <eos>"],
        ]
        .concat();
        let expected = generated(&[&[model.as_str(), "--chat"], &same[..]].concat());
        let chat = [&["chat", &model], &same[..]].concat();
        let found = object(run(&[&chat[..], &["--json"]].concat()));
        assert_eq!(chatted(&found), expected, "{sampling:?}");
        let shown = run(&chat).expect_code(0);
        let (thinking, answer, ..) = &expected;
        match shown.stdout.contains(tasks::THINK_CLOSE) {
            true => assert_eq!(
                shown.stdout,
                format!("<think> {thinking} </think>\n{answer}\n")
            ),
            false => assert_eq!(shown.stdout, format!("<think> {thinking}\n")),
        }
        assert!(
            shown.stderr.contains(" tokens/s; prompt of "),
            "{}",
            shown.stderr
        );
    }
}

#[test]
fn turns_follow_the_template_and_the_first_costs_no_prefill_again() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let (first, second) = (question(), "69 64 4 20");
    let lines = format!("{first}\n{second}\n/regenerate\n");
    let arguments = [
        "chat",
        &model,
        "--interactive",
        "--json",
        "--max-tokens",
        "20",
    ];
    let mut chat = command(&arguments);
    let chat = chat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = chat.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(lines.as_bytes()).expect("it reads");
    drop(stdin);
    let found = ran(child.wait_with_output().expect("it ends")).expect_code(0);
    let answers: Vec<Value> = found
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object"))
        .collect();
    let [one, two, again] = &answers[..] else {
        panic!("three answers, not {}", found.stdout)
    };
    assert_eq!(one["cached_tokens"], 0);
    assert_eq!(
        (one["seed"].as_u64(), again["seed"].as_u64()),
        (Some(0), Some(1))
    );
    // The template puts an answer and <eos> after the first question, and no thinking.
    let said = one["answer"].as_str().expect("text");
    let prompt = format!("{first} {said} <eos> {second} <think>");
    for (answer, seed) in [(two, "0"), (again, "1")] {
        let cached = answer["cached_tokens"].as_u64().expect("a count");
        assert!(cached >= 32, "{cached} tokens were not computed again");
        let same = ["--max-tokens", "20", "--prompt", &prompt, "--seed", seed];
        let expected = generated(&[&[model.as_str()], &same[..]].concat());
        assert_eq!(chatted(answer), expected);
    }
}

#[test]
fn without_a_model_it_is_the_demos_or_a_word_on_how_to_get_one() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let chat = || {
        let mut chat = command(&["chat", "--prompt", "1", "--max-tokens", "2", "--json"]);
        chat.current_dir(scratch.path());
        ran(chat.output().expect("the binary runs"))
    };
    let none = chat().expect_code(2);
    assert!(
        none.stderr.contains("run `bruchteil demo`"),
        "{}",
        none.stderr
    );
    fs::create_dir(scratch.path().join("demo-out")).expect("a folder");
    fs::rename(&model, scratch.path().join("demo-out/grpo")).expect("the demo's model");
    let found = object(chat());
    assert_eq!(found["model"], "demo-out/grpo");
}

#[test]
fn what_does_not_fit_is_refused() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let long = vec!["1"; 128].join(" ");
    for (arguments, code, word) in [
        (&["--prompt", &long][..], 2, "129 tokens"),
        (&["--prompt", "1 2 3", "--ctx-size", "4"], 2, "4 tokens"),
        (&["--prompt", "1", "--top-p", "0"], 2, "top_p"),
        (&["--prompt", "1", "--max-tokens", "x"], 2, "--max-tokens"),
    ] {
        let found = run(&[&["chat", &model], arguments].concat()).expect_code(code);
        assert_eq!(found.stdout, "");
        assert!(found.stderr.contains(word), "{}", found.stderr);
    }
    scratch.file("model/tokenizer_config.json", "{}");
    let found = run(&["chat", &model, "--prompt", "1"]).expect_code(3);
    assert!(found.stderr.contains("chat_template"), "{}", found.stderr);
}

//! `sft`, `grpo` and `demo` by the real binary, on models so small that a step takes a moment.

mod fixture;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fixture::{Scratch, command, ran, run};
use serde_json::Value;

/// A model and a run in which everything is as small as it can be.
const SMALL: &str = "seed = 5\n[model]\nhidden_size = 24\nintermediate_size = 24\n\
                     moe_intermediate_size = 8\nnum_hidden_layers = 2\nnum_attention_heads = 2\n\
                     n_routed_experts = 4\nnum_experts_per_tok = 2\nkv_lora_rank = 12\n\
                     qk_nope_head_dim = 8\nqk_rope_head_dim = 4\nv_head_dim = 8\n\
                     max_position_embeddings = 64\n\
                     [sft]\nsteps = 6\ntokens_per_step = 128\npiece_tokens = 64\n\
                     [grpo]\nsteps = 3\nproblems_per_step = 2\ngroup_size = 4\n\
                     [checkpoint]\nevery_steps = 2\n";

/// The same for `demo`, as changes of its own settings.
const CHANGES: [&str; 16] = [
    "model.hidden_size=24",
    "model.intermediate_size=24",
    "model.moe_intermediate_size=8",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.kv_lora_rank=12",
    "model.qk_nope_head_dim=8",
    "model.qk_rope_head_dim=4",
    "model.v_head_dim=8",
    "sft.steps=6",
    "sft.mix=[]",
    "grpo.steps=2",
    "grpo.problems_per_step=2",
    "grpo.group_size=4",
    "eval.problems=12",
    "eval.transcripts=3",
];

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits until a run has written its first metrics, so that it is between two steps.
fn wait_for_metrics(dir: &Path) {
    for _ in 0..3_000 {
        if fs::metadata(dir.join("metrics.jsonl")).is_ok_and(|found| found.len() > 0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no metrics after 30 s");
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill")
        .args(["-s", name, &id])
        .status()
        .expect("kill runs");
    assert!(sent.success());
}

#[test]
fn sft_stopped_by_signals_and_resumed_is_the_run_without_a_stop() {
    let scratch = Scratch::new();
    let config = scratch.file("run.toml", SMALL);
    let whole = scratch.path().join("whole").display().to_string();
    let parts = scratch.path().join("parts");
    let out = parts.display().to_string();
    let steps = [
        "--set",
        "sft.steps=150",
        "--set",
        "checkpoint.every_steps=0",
    ];
    let start = ["sft", "--config", &config, "--threads", "1"];
    let run_whole = [&start[..], &steps, &["--out", &whole, "--json"]].concat();
    let finished = run(&run_whole).expect_code(0).stdout;
    let finished: Value = serde_json::from_str(&finished).expect("one JSON object");
    assert_eq!(finished["steps"], 150);

    let arguments = [&start[..], &steps, &["--out", &out]].concat();
    let mut first = command(&arguments);
    let child = first
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    wait_for_metrics(&parts);
    signal(&child, "TERM");
    let stopped = ran(child.wait_with_output().expect("it ends")).expect_code(143);
    assert!(
        stopped.stderr.contains("stopped by a signal; saved "),
        "{}",
        stopped.stderr
    );
    assert_eq!(
        run(&arguments).expect_code(2).stdout,
        "",
        "without --resume it is refused"
    );

    run(&[&arguments[..], &["--resume"]].concat()).expect_code(0);
    for file in [
        "step-150/model.safetensors",
        "step-150/optimizer.safetensors",
        "metrics.jsonl",
    ] {
        assert!(
            bytes(&parts.join(file)) == bytes(&Path::new(&whole).join(file)),
            "{file} differs"
        );
    }
}

/// No signal handler helps here: the process is gone between two instructions, five times, during
/// steps and saves alike.
#[test]
fn sft_killed_again_and_again_and_resumed_is_the_run_without_a_stop() {
    let scratch = Scratch::new();
    let config = scratch.file("run.toml", SMALL);
    let [whole, parts] = ["whole", "parts"].map(|name| scratch.path().join(name));
    let arguments = |out: &Path| -> Vec<String> {
        let out = out.display().to_string();
        let of = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let steps = [
            "--set",
            "sft.steps=200",
            "--set",
            "checkpoint.every_steps=3",
        ];
        [of(&["sft", "--config", &config, "--out", &out]), of(&steps)].concat()
    };
    let start = |resume: bool| {
        let mut list = arguments(&parts);
        list.extend(resume.then(|| "--resume".to_string()));
        list
    };
    run(&borrowed(&arguments(&whole))).expect_code(0);
    for (i, delay_ms) in [0, 13, 37, 71, 120].into_iter().enumerate() {
        let mut child = command(&borrowed(&start(i > 0)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for_metrics(&parts);
        std::thread::sleep(Duration::from_millis(delay_ms));
        signal(&child, "KILL");
        child.wait().expect("it ends");
    }
    run(&borrowed(&start(true))).expect_code(0);
    for file in [
        "step-200/model.safetensors",
        "step-200/optimizer.safetensors",
        "metrics.jsonl",
    ] {
        assert!(
            bytes(&parts.join(file)) == bytes(&whole.join(file)),
            "{file} differs"
        );
    }
    let left = fs::read_dir(&parts).expect("the run").flatten();
    let names: Vec<String> = left
        .map(|e| e.file_name().to_string_lossy().into())
        .collect();
    let temporary: Vec<&String> = names.iter().filter(|n| n.starts_with(".tmp")).collect();
    assert!(temporary.is_empty(), "left behind: {temporary:?}");
}

#[test]
fn grpo_goes_on_from_an_sft_run_and_evaluates() {
    let scratch = Scratch::new();
    let config = scratch.file("run.toml", SMALL);
    let [sft, grpo] = ["sft", "grpo"].map(|name| scratch.path().join(name).display().to_string());
    run(&["sft", "--config", &config, "--out", &sft]).expect_code(0);
    let told = run(&["grpo", &sft, "--config", &config, "--out", &grpo])
        .expect_code(0)
        .stdout;
    assert!(
        told.contains("step-3") && told.contains("bruchteil eval "),
        "{told}"
    );
    let metrics = fs::read_to_string(Path::new(&grpo).join("metrics.jsonl")).expect("metrics");
    let lines: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines.iter().all(|line| line["max_abs_logp_diff"] == 0.0),
        "{metrics}"
    );
    let arguments = [
        "eval",
        &grpo,
        "--task",
        "countdown",
        "--problems",
        "5",
        "--json",
    ];
    let evaluated: Value =
        serde_json::from_str(&run(&arguments).expect_code(0).stdout).expect("JSON");
    assert_eq!(evaluated["problems"], 5);

    // The run's settings: two temperatures, a line each; and --problems comes first.
    let lines = run(&[
        "eval",
        &grpo,
        "--config",
        &config,
        "--problems",
        "5",
        "--json",
    ]);
    let lines: Vec<Value> = lines
        .expect_code(0)
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |key: &str| lines.iter().map(|l| l[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("temperature"), [1.0, 0.0]);
    assert_eq!(of("seed"), [5, 5]);
    assert_eq!(of("problems"), [5, 5]);
    assert_eq!(lines[0]["transcripts"].as_array().map(Vec::len), Some(5));

    // A run that goes on has its own copy of what it started from.
    let resumed = [
        "grpo",
        "/no/such/model",
        "--config",
        &config,
        "--out",
        &grpo,
        "--resume",
    ];
    run(&resumed).expect_code(0);
    let long = ["--set", "grpo.max_completion_tokens=64"];
    let new = scratch.path().join("new");
    let new_text = new.display().to_string();
    let arguments = ["grpo", &sft, "--config", &config, "--out", &new_text];
    let refused = run(&[&arguments[..], &long].concat()).expect_code(2);
    assert!(
        refused.stderr.contains("max_position_embeddings = 64"),
        "{}",
        refused.stderr
    );
    assert!(!new.exists(), "nothing was made");
}

#[test]
fn a_demo_keeps_out_of_a_training_run() {
    let scratch = Scratch::new();
    let config = scratch.file("run.toml", SMALL);
    let dir = scratch.path().join("run");
    let out = dir.display().to_string();
    run(&["sft", "--config", &config, "--out", &out]).expect_code(0);
    let metrics = bytes(&dir.join("metrics.jsonl"));
    let refused = run(&["demo", "--out", &out]).expect_code(2);
    assert!(
        refused.stderr.contains("holds a training run"),
        "{}",
        refused.stderr
    );
    assert!(bytes(&dir.join("metrics.jsonl")) == metrics && !dir.join("sft").exists());

    let new = scratch.path().join("new");
    let arguments = ["demo", "--out", &new.display().to_string(), "--set"];
    let refused = run(&[&arguments[..], &["eval.temperatures=[0.5]"]].concat()).expect_code(2);
    assert!(
        refused.stderr.contains("eval.temperatures"),
        "{}",
        refused.stderr
    );
    assert!(!new.exists());
}

#[test]
fn settings_with_mistakes_exit_2_and_name_them() {
    let scratch = Scratch::new();
    let out = scratch.path().join("out").display().to_string();
    for (text, change, word) in [
        (
            "[sft]\nstepz = 3\n",
            "",
            "run.toml:2: unknown key `stepz`; did you mean `steps`?",
        ),
        ("[sft\n", "", "run.toml:1"),
        (SMALL, "sft.lerning_rate=1", "unknown key `lerning_rate`"),
        (SMALL, "sft.steps=many", "--set sft.steps=many"),
        (SMALL, "model.num_experts_per_tok=9", "num_experts_per_tok"),
    ] {
        let config = scratch.file("run.toml", text);
        let changes: &[&str] = if change.is_empty() {
            &[]
        } else {
            &["--set", change]
        };
        let ran = run(&[&["sft", "--config", &config, "--out", &out], changes].concat());
        let ran = ran.expect_code(2);
        assert!(
            ran.stderr.contains(word),
            "{word} is not in: {}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    let ran = run(&["sft", "--config", "/no/run.toml", "--out", &out]).expect_code(3);
    assert!(ran.stderr.contains("/no/run.toml"), "{}", ran.stderr);
}

#[test]
fn two_trainers_in_one_directory_do_not_meet() {
    let scratch = Scratch::new();
    let config = scratch.file("run.toml", SMALL);
    let dir = scratch.path().join("run");
    let out = dir.display().to_string();
    let arguments = [
        "sft",
        "--config",
        &config,
        "--out",
        &out,
        "--set",
        "sft.steps=100000",
    ];
    let child = command(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.expect("it starts");
    wait_for_metrics(&dir);
    let second = run(&[&arguments[..], &["--resume"]].concat());
    signal(&child, "INT");
    let first = child.wait().expect("it ends");
    let second = second.expect_code(5);
    assert!(
        second.stderr.contains("is training in this directory"),
        "{}",
        second.stderr
    );
    assert_eq!(first.code(), Some(130));
}

/// The demo's JSON without what the clock and the place decide, its report before the section on
/// time, and its weights.
fn demo(out: &Path, options: &[&str]) -> (Value, String, Vec<u8>) {
    let out_text = out.display().to_string();
    let changes = CHANGES.iter().flat_map(|change| ["--set", change]);
    let mut arguments = vec!["demo", "--seed", "9", "--json", "--out", &out_text];
    arguments.extend(changes.chain(options.iter().copied()));
    let printed = run(&arguments).expect_code(0).stdout;
    let last = printed.lines().last().expect("a last line");
    let mut json: Value = serde_json::from_str(last).expect("one JSON object");
    let object = json.as_object_mut().expect("an object");
    for key in ["seconds", "checkpoint", "report"] {
        assert!(object.remove(key).is_some(), "{key}");
    }
    let report = fs::read_to_string(out.join("report.html")).expect("the report");
    let (report, _) = report
        .split_once("<h2>Time on this machine")
        .expect("the last section");
    (
        json,
        report.to_string(),
        bytes(&out.join("grpo/model.safetensors")),
    )
}

#[test]
fn the_demo_is_the_same_bytes_on_any_instruction_set_and_any_threads() {
    let scratch = Scratch::new();
    let first = demo(
        &scratch.path().join("first"),
        &["--isa", "portable", "--threads", "1"],
    );
    let second = demo(&scratch.path().join("second"), &["--threads", "3"]);
    assert_eq!(first.0, second.0);
    assert!(first.1 == second.1, "the reports differ");
    assert!(first.2 == second.2, "the weights differ");

    let json = &first.0;
    let hash = blake3::hash(&first.2).to_hex();
    assert_eq!(json["weights_blake3"], hash.as_str());
    assert_eq!(json["max_abs_logp_diff"], 0.0);
    assert_eq!(json["eval_problems"], 12);
    for name in [
        "base",
        "sft",
        "grpo",
        "base_greedy",
        "sft_greedy",
        "grpo_greedy",
    ] {
        let accuracy = json[format!("{name}_accuracy")].as_f64().expect("a share");
        let [low, high] = [0, 1].map(|end| {
            json["ci95"][name][end]
                .as_f64()
                .expect("an end of the interval")
        });
        assert!(low <= accuracy && accuracy <= high, "{name}");
    }
    let tokens = ["train_tokens", "sft_tokens", "rollout_tokens"];
    let [together, sft, rollout] = tokens.map(|key| json[key].as_u64().expect("a count"));
    assert_eq!(together, sft + rollout);
    // Prompts have 5 tokens, and each of 2 steps draws 2 problems 4 times.
    assert!(rollout > 5 * 16 && sft > 0);
    for expected in [hash.as_str(), "--seed 9", "sft.steps=6", &sft.to_string()] {
        assert!(
            first.1.contains(expected),
            "{expected} is not in the report"
        );
    }
}

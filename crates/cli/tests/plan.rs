//! `plan` as a user meets it: the numbers, the forms they come in, and what is refused.

mod fixture;

use std::fs;
use std::path::Path;

use fixture::{Scratch, run};
use serde_json::Value;

const COLUMNS: usize = 100;
/// DeepSeek-V3 as it was trained (arXiv 2412.19437).
const V3: [&str; 9] = [
    "deepseek-v3",
    "--chips",
    "h800:2048",
    "--tokens",
    "14.8e12",
    "--batch-seqs",
    "15360",
    "--precision",
    "fp8",
];
const ITS_LAYOUT: &str = "tp=1,pp=16,ep=64,cp=1,zero=1,schedule=dualpipe,recompute=selective";

fn text(arguments: &[&str]) -> String {
    run(&[&["plan"], arguments].concat()).expect_code(0).stdout
}

fn json(arguments: &[&str]) -> Value {
    let printed = text(&[arguments, &["--json"]].concat());
    serde_json::from_str(&printed).expect("one line of JSON")
}

/// What it says on standard error; nothing is printed besides.
fn refusal(arguments: &[&str], code: i32) -> String {
    let ran = run(&[&["plan"], arguments].concat()).expect_code(code);
    assert_eq!(ran.stdout, "", "{arguments:?}");
    ran.stderr
}

/// A number, or the middle one of three in order.
fn middle(value: &Value) -> f64 {
    if let Some(number) = value.as_f64() {
        return number;
    }
    let [low, mid, high] = ["low", "mid", "high"].map(|name| value[name].as_f64());
    assert!(low <= mid && mid <= high, "{value}");
    mid.unwrap_or_else(|| panic!("neither a number nor an interval: {value}"))
}

#[test]
fn the_call_of_the_issue_answers_with_every_field() {
    let options = [
        "--seq-len",
        "4096",
        "--layout",
        ITS_LAYOUT,
        "--date",
        "2024-12-01",
    ];
    let answer = json(&[&V3[..], &options].concat());
    for field in [
        "parameters_total",
        "parameters_active",
        "flops_per_token",
        "flops_total",
        "memory_bytes_per_chip",
        "step_seconds",
        "tokens_per_second_per_chip",
        "mfu",
        "chip_hours",
        "days",
        "cost_usd",
        "energy_mwh",
        "goodput",
    ] {
        assert!(middle(&answer[field]) > 0.0, "{field}: {}", answer[field]);
    }
    assert_eq!(answer["layout"]["schedule"], "dualpipe");
    assert_eq!(
        (&answer["dp"], &answer["micro_batches"]),
        (&128.into(), &120.into())
    );
    assert_eq!(answer["layout_searched"], false);
    assert_eq!(answer["export"]["class"], "3A090.a");
    assert_eq!(answer["export"]["launched_later"], false);
    let assumptions = answer["assumptions"].as_array().expect("sentences");
    assert!(assumptions.len() >= 3, "{assumptions:?}");
    assert_eq!(answer["explanations"], Value::Null);
}

#[test]
fn numbers_of_v3_are_the_published_ones() {
    let answer = json(&[&V3[..], &["--no-mtp", "--layout", ITS_LAYOUT]].concat());
    // config.json and arXiv 2505.09343, Tables 2 and 4: 671.026 B, 250.46 GFLOP per token.
    assert_eq!(answer["parameters_total"], 671_026_419_200_u64);
    assert!((middle(&answer["parameters_active"]) / 37.552e9 - 1.0).abs() < 1e-4);
    assert!((middle(&answer["flops_per_token"]) / 250.46e9 - 1.0).abs() < 1e-4);
    assert_eq!(answer["steps"], (14.8e12_f64 / 62_914_560.0).ceil());
    // What is said twice agrees: hours are days on all chips, dollars two an hour (Table 1).
    let hours = middle(&answer["chip_hours"]);
    assert!((hours / (middle(&answer["days"]) * 24.0 * 2048.0) - 1.0).abs() < 1e-9);
    assert!((middle(&answer["cost_usd"]) / (2.0 * hours) - 1.0).abs() < 1e-9);
    let parts = |field: &str| -> f64 {
        let parts = answer[field].as_array().expect("parts");
        parts.iter().map(|part| middle(&part[1])).sum()
    };
    assert!((parts("step_parts") / middle(&answer["step_seconds"]) - 1.0).abs() < 1e-9);
    let memory = middle(&answer["memory_bytes_per_chip"]);
    assert!((parts("memory_parts") / memory - 1.0).abs() < 1e-9);
    // With the module: 260.65 G.
    let with_mtp = json(&[&V3[..], &["--layout", ITS_LAYOUT]].concat());
    assert!((middle(&with_mtp["flops_per_token"]) / 260.65e9 - 1.0).abs() < 1e-4);
    let priced = json(&[&V3[..], &["--layout", ITS_LAYOUT, "--price", "4"]].concat());
    let ratio = middle(&priced["cost_usd"]) / middle(&priced["chip_hours"]);
    assert!((ratio - 4.0).abs() < 1e-9, "{ratio}");
}

#[test]
fn a_search_is_no_worse_than_a_layout_given() {
    let given = json(&[&V3[..], &["--layout", ITS_LAYOUT]].concat());
    let found = json(&V3);
    assert_eq!(found["layout_searched"], true);
    assert!(middle(&found["step_seconds"]) <= middle(&given["step_seconds"]));
    let others = found["alternatives"].as_array().expect("layouts");
    assert!(!others.is_empty());
    for other in others {
        assert!(
            middle(&other["step_seconds"]) >= middle(&found["step_seconds"]),
            "{other}"
        );
    }
}

#[test]
fn one_screen_shows_it() {
    let screen = text(&V3);
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines.len() <= 45, "{} lines: {screen}", lines.len());
    let long: Vec<&&str> = lines
        .iter()
        .filter(|line| line.chars().count() > COLUMNS)
        .collect();
    assert!(long.is_empty(), "{long:?}");
    assert!(!screen.contains('\u{1b}'), "a pipe is no terminal");
    for words in [
        "671.03 B parameters",
        "260.65 GFLOP per token",
        "products",
        "bubble",
        "activations",
        "75.2 of 80",
        "next best layouts",
        "chip-hours",
        "not legal advice",
        "$2.00 per chip-hour",
    ] {
        assert!(screen.contains(words), "{words}: {screen}");
    }
    let later = [
        "--chips",
        "h200:16384",
        "--tokens",
        "15.6T",
        "--date",
        "2024-06-01",
    ];
    let screen = text(&[&["llama-3.1-405b"], &later[..], &["--layout", "tp=8,pp=16"]].concat());
    let screen = screen.split_whitespace().collect::<Vec<&str>>().join(" ");
    assert!(
        screen.contains("launched 2024-11-18, after that date"),
        "{screen}"
    );
}

#[test]
fn every_number_says_where_it_comes_from() {
    let explained = [&V3[..], &["--layout", ITS_LAYOUT, "--explain"]].concat();
    let answer = json(&explained);
    let all = answer["explanations"].as_array().expect("explanations");
    for field in ["name", "value", "formula", "source"] {
        let empty = all
            .iter()
            .find(|one| one[field].as_str().unwrap_or_default().is_empty());
        assert_eq!(empty, None, "{field}");
    }
    let names: Vec<&str> = all.iter().filter_map(|one| one["name"].as_str()).collect();
    for name in [
        "parameters_total",
        "mfu",
        "goodput",
        "energy_mwh",
        "efficiency kernel",
    ] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let screen = text(&explained);
    assert!(screen.contains("arXiv 2407.21783"), "{screen}");
    // A line is longer only where one word is.
    let long = screen.lines().filter(|line| line.chars().count() > COLUMNS);
    assert!(
        long.clone()
            .all(|line| line.split_whitespace().count() <= 2),
        "{screen}"
    );
}

#[test]
fn models_come_from_files_too() {
    let scratch = Scratch::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/v3-mtp");
    let config = folder.join("config.json");
    let paths = [&folder, &config].map(|path| path.display().to_string());
    let recipe = ["--chips", "h100:8", "--tokens", "1e9"];
    let [by_folder, by_file] = paths
        .each_ref()
        .map(|path| json(&[&[&path[..]], &recipe[..]].concat()));
    assert_eq!(by_folder["parameters_total"], by_file["parameters_total"]);
    let facts = run(&["inspect", &paths[0], "--json"]).expect_code(0).stdout;
    let facts: Value = serde_json::from_str(&facts).expect("JSON");
    assert_eq!(by_file["parameters_active"], facts["parameters_active"]);
    // A run's own file: the sizes that are not there are the run's defaults.
    let toml = scratch.file(
        "run.toml",
        "[model]\nnum_hidden_layers = 2\nn_routed_experts = 0\n",
    );
    let one = json(&[&[&toml[..]], &recipe[..]].concat());
    let toml = scratch.file(
        "run2.toml",
        "[model]\nnum_hidden_layers = 4\nn_routed_experts = 0\n",
    );
    let two = json(&[&[&toml[..]], &recipe[..]].concat());
    let of = |answer: &Value, part: &str| answer["parameters"][part].as_u64().expect("a count");
    assert_eq!(2 * of(&one, "attention"), of(&two, "attention"));
    // Three matrices of 192 x 512 in each of two layers.
    assert_eq!(of(&one, "dense_feed_forward"), 2 * 3 * 192 * 512);
    assert_eq!(one["seq_len"], 512, "the longest that the model takes");
    let bad = scratch.file(
        "config.json",
        "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"hidden_size\": 0}",
    );
    let words = refusal(&[&[&bad[..]], &recipe[..]].concat(), 3);
    assert!(
        words.contains("config.json") && words.contains("hidden_size"),
        "{words}"
    );
    let words = refusal(&[&["./none.json"], &recipe[..]].concat(), 3);
    assert!(words.contains("no such file"), "{words}");
    // The budget of `chips` takes the same models.
    let budget = [
        "chips",
        "h800",
        "--budget",
        "1e6",
        "--model",
        "deepseek-v3",
        "--json",
    ];
    let budget: Value = serde_json::from_str(&run(&budget).expect_code(0).stdout).expect("JSON");
    assert!((middle(&budget["flops_per_token"]) / 260.65e9 - 1.0).abs() < 1e-4);
}

#[test]
fn the_page_needs_nothing_else() {
    let scratch = Scratch::new();
    let path = scratch.path().join("plan.html").display().to_string();
    let recipe = [
        "qwen3-8b", "--chips", "h100:64", "--tokens", "1T", "--html", &path,
    ];
    text(&recipe);
    let page = fs::read_to_string(&path).expect("a page");
    for load in ["src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(load), "{load}");
    }
    for part in [
        "Where the time goes",
        "Memory",
        "Cost",
        "Predicted against published",
        "prefers-color-scheme: dark",
        "width=device-width",
        "class=\"dot own\"",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    text(&recipe);
    assert_eq!(
        fs::read_to_string(&path).expect("a page"),
        page,
        "the same twice"
    );
}

#[test]
fn the_list_names_every_preset() {
    let list = json(&["--list"]);
    let list = list.as_array().expect("presets");
    let v3 = list
        .iter()
        .find(|preset| preset["name"] == "deepseek-v3")
        .expect("there");
    assert_eq!(v3["parameters_total"], 671_026_419_200_u64);
    assert!(
        list.iter()
            .all(|preset| !preset["source"].as_str().unwrap_or("").is_empty())
    );
    let screen = text(&["--list"]);
    for preset in list {
        assert!(
            screen.contains(preset["name"].as_str().expect("a name")),
            "{preset}"
        );
    }
    // A line is longer only where one word is.
    let long = screen.lines().filter(|line| line.chars().count() > COLUMNS);
    let long: Vec<&str> = long
        .filter(|line| line.split_whitespace().count() > 1)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn what_cannot_be_is_refused_with_help() {
    let with = |changes: &[&'static str]| [&V3[..], changes].concat();
    for (options, part) in [
        (
            vec!["deepsek-v3", "--chips", "h800:8", "--tokens", "1T"],
            "nearest: deepseek-v3",
        ),
        (
            vec!["deepseek-v3", "--chips", "h801:8", "--tokens", "1T"],
            "nearest: h800",
        ),
        (
            vec!["deepseek-v3", "--chips", "h800:8", "--tokens", "0"],
            "tokens: 0",
        ),
        (
            vec!["deepseek-v3", "--chips", "h800:0", "--tokens", "1T"],
            "above 0",
        ),
        (
            vec!["deepseek-v3", "--chips", "h800", "--tokens", "1T"],
            "h800:2048",
        ),
        (
            vec!["deepseek-v3", "--chips", "h800:8", "--tokens", "many"],
            "14.8e12",
        ),
        (vec!["deepseek-v3", "--chips", "h800:8"], "--tokens"),
        (with(&["--layout", "pq=3"]), "nearest is pp"),
        (with(&["--layout", "pp=7"]), "does not divide 2048 chips"),
        (with(&["--layout", "schedule=zb2p"]), "zb1p"),
        (
            with(&["--software", "megatron2022"]),
            "nearest: megatron-2022",
        ),
        (with(&["--seq-len", "0"]), "above 0"),
        (with(&["--price", "0"]), "above 0"),
        (with(&["--date", "2023-02-29"]), "does not have"),
        (with(&["--list"]), "cannot be used with"),
        (vec!["--validate", "page.txt"], ".md"),
    ] {
        let words = refusal(&options, 2);
        assert!(words.contains(part), "{options:?}: {words}");
    }
}

#[test]
fn a_cluster_that_is_too_small_says_by_how_much() {
    let words = refusal(&["deepseek-v3", "--chips", "h800:8", "--tokens", "1T"], 2);
    for part in [
        "8 x H800",
        "GB more than the 75.2 GB that can be used",
        "chips can",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let number = |text: &str| {
        text.split_whitespace()
            .last()
            .and_then(|n| n.parse::<u64>().ok())
    };
    let before = words.split(" chips can").next().and_then(number);
    let chips = format!("h800:{}", before.expect("a number of chips"));
    text(&["deepseek-v3", "--chips", &chips, "--tokens", "1T"]);
    // A layout that was asked for is shown all the same, with a warning.
    let tight = [
        "deepseek-v3",
        "--chips",
        "h800:8",
        "--tokens",
        "1T",
        "--layout",
        "tp=8",
    ];
    let ran = run(&[&["plan"], &tight[..]].concat()).expect_code(0);
    assert!(ran.stderr.contains("GB more than"), "{}", ran.stderr);
    assert!(ran.stdout.contains("IT DOES NOT FIT"), "{}", ran.stdout);
}

#[test]
fn precisions_are_those_of_who_computes() {
    let recipe = [
        "qwen3-8b",
        "--chips",
        "h100:8",
        "--tokens",
        "1T",
        "--precision",
    ];
    assert_eq!(
        json(&[&recipe[..], &["bf16"]].concat())["precision"],
        "bf16"
    );
    let words = refusal(&[&recipe[..], &["f32"]].concat(), 2);
    assert!(
        words.contains("f32 is a precision of commands that compute"),
        "{words}"
    );
    let words = refusal(&[&recipe[..], &["fp4"]].concat(), 2);
    assert!(words.contains("H100"), "{words}");
    let ran = run(&["inspect", ".", "--precision", "fp8"]).expect_code(2);
    assert!(
        ran.stderr.contains("fp8 is a precision of `plan`"),
        "{}",
        ran.stderr
    );
}

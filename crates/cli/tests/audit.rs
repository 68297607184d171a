//! `audit`: the question of January 2025 on one screen, and what is refused.

mod fixture;

use fixture::{Scratch, run};
use serde_json::Value;

const CLAIMS: [&str; 4] = [
    "deepseek-v3",
    "deepseek-r1",
    "deepseek-estate",
    "stargate-500b",
];

fn json(arguments: &[&str]) -> Value {
    let ran = run(&[arguments, &["--json"]].concat()).expect_code(0);
    serde_json::from_str(&ran.stdout).expect("JSON")
}

#[test]
fn the_question_of_january_2025_is_answered_on_one_screen() {
    for claim in CLAIMS {
        let ran = run(&["audit", claim]).expect_code(0);
        assert_eq!(ran.stderr, "");
        assert!(ran.stdout.lines().count() <= 40, "{}", ran.stdout);
        let wide = ran.stdout.lines().find(|line| line.chars().count() > 100);
        assert_eq!(wide, None);
    }
    let screen = run(&["audit", "deepseek-v3"]).expect_code(0).stdout;
    for words in [
        "2,048 H800",
        "$5.576 M",
        "54.2 days",
        "39.1 %",
        "Verdict: plausible",
        "53 interruptions",
        "Left out: research",
        "2412.19437",
    ] {
        assert!(screen.contains(words), "{words:?} in:\n{screen}");
    }
}

#[test]
fn json_holds_numbers_verdicts_and_sources() {
    let audit = json(&["audit", "deepseek-v3"]);
    assert_eq!(audit["verdict"], "plausible");
    assert_eq!(audit["claim"]["chips"][0]["count"], 2048);
    let line = |name: &str| {
        let mut lines = audit["implied"].as_array().expect("lines").iter();
        let found = lines.find(|line| line["name"] == name);
        found.unwrap_or_else(|| panic!("{name} in {audit}"))["value"].clone()
    };
    let days = line("time").as_f64().expect("one number");
    assert!((days - 2_664_000.0 / 2048.0 / 24.0).abs() < 1e-9);
    let energy = line("energy");
    assert!(energy["low"].as_f64() < energy["high"].as_f64(), "{energy}");
    let claims = json(&["audit", "--list"]);
    let names = claims.as_array().expect("claims").iter();
    let names: Vec<&str> = names.filter_map(|claim| claim["name"].as_str()).collect();
    assert_eq!(names, CLAIMS);
}

#[test]
fn a_claim_may_be_given_in_parts() {
    let parts = [
        "audit",
        "--model",
        "deepseek-v3",
        "--tokens",
        "14.8e12",
        "--precision",
        "fp8",
    ];
    for (chips, days, verdict) in [
        ("h800:2048", "54.2", "plausible"),
        ("h800:200", "54", "impossible"),
        ("h800:2048", "28.2", "implausible"),
        ("h800:1024,h100:1024", "54.2", "plausible"),
    ] {
        let audit = json(&[&parts[..], &["--chips", chips, "--days", days]].concat());
        assert_eq!(
            audit["verdict"], verdict,
            "{chips} {days}: {}",
            audit["sentence"]
        );
    }
    let open = json(&[&parts[..], &["--chips", "h800"]].concat());
    assert_eq!(open["verdict"], "not_enough");
}

#[test]
fn what_cannot_be_reckoned_is_refused_in_words() {
    for (arguments, words) in [
        (
            vec!["deepsek-v3"],
            vec!["no claim is called", "nearest: deepseek-v3"],
        ),
        (vec!["--tokens", "-1"], vec!["--tokens", "no number"]),
        (vec!["--tokens", "NaN"], vec!["--tokens", "no number"]),
        (vec!["--days", "1e30"], vec!["days: 1e30 is beyond"]),
        (vec!["--chips", "h801:8"], vec!["no chip is called", "h800"]),
        (vec!["--chips", "h800:many"], vec!["many", "h800:2048"]),
        (
            vec!["--model", "deepseek-v33"],
            vec!["no preset is called", "deepseek-v33"],
        ),
        (
            vec![
                "--chips",
                "h800:2048",
                "--days",
                "54",
                "--chip-hours",
                "5e6",
            ],
            vec!["days and chip_hours", "2.654 M", "5 M"],
        ),
        (vec![], vec!["required"]),
        (
            vec!["deepseek-v3", "--days", "3"],
            vec!["cannot be used with"],
        ),
    ] {
        let ran = run(&[&["audit"], arguments.as_slice()].concat()).expect_code(2);
        assert_eq!(ran.stdout, "");
        for word in words {
            assert!(ran.stderr.contains(word), "{word:?} in {}", ran.stderr);
        }
    }
}

#[test]
fn files_are_claims_too_and_say_where_they_are_wrong() {
    let scratch = Scratch::new();
    let good = "title = \"Mine\"\nmodel = \"deepseek-v3\"\ntokens = 14.8e12\ndays = 54.2\n\
                chips = [{ chip = \"h800\", count = 2048 }]\n";
    let file = scratch.file("mine.toml", good);
    assert_eq!(json(&["audit", &file])["claim"]["title"], "Mine");
    for (text, word) in [
        ("tokenz = 3\n", "line 1"),
        ("tokens = nan\n", "tokens"),
        ("chips = [{ chip = \"h801\", count = 1 }]\n", "h800"),
        (
            "chip_hours = 10\nusd_per_chip_hour = 2\ndollars = 30\n",
            "chip_hours and dollars",
        ),
        ("title = \"\u{1b}[2J", "line 1"),
    ] {
        let file = scratch.file("bad.toml", text);
        let ran = run(&["audit", &file]).expect_code(3);
        assert!(
            ran.stderr.contains(word) && ran.stderr.contains("bad.toml"),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
    }
    let ran = run(&["audit", &scratch.path().display().to_string()]).expect_code(3);
    assert!(ran.stderr.contains("not a regular file"), "{}", ran.stderr);
}

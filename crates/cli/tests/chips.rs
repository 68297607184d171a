//! `chips` as a user meets it: tables, one chip, filters, budgets, and what is refused.

mod fixture;
#[path = "fixture/small_model.rs"]
mod small_model;

use fixture::{Scratch, run};
use serde_json::Value;

const COLUMNS: usize = 100;

fn text(arguments: &[&str]) -> String {
    run(&[&["chips"], arguments].concat()).expect_code(0).stdout
}

fn json(arguments: &[&str]) -> Value {
    let printed = text(&[arguments, &["--json"]].concat());
    serde_json::from_str(&printed).expect("one line of JSON")
}

/// What it says on standard error; nothing is printed besides.
fn refusal(arguments: &[&str], code: i32) -> String {
    let ran = run(&[&["chips"], arguments].concat()).expect_code(code);
    assert_eq!(ran.stdout, "", "{arguments:?}");
    ran.stderr
}

fn keys(arguments: &[&str]) -> Vec<String> {
    let answer = json(arguments);
    let chips = answer["chips"].as_array().expect("chips");
    let key = |chip: &Value| chip["key"].as_str().expect("a key").to_string();
    chips.iter().map(key).collect()
}

fn class(name: &str, date: &str) -> String {
    let answer = json(&[name, "--date", date]);
    let class = &answer["chips"][0]["export"]["class"];
    class.as_str().expect("a class").to_string()
}

#[test]
fn the_table_fits_and_says_as_of_when() {
    let table = text(&[]);
    let wide: Vec<&str> = table
        .lines()
        .filter(|line| line.chars().count() > COLUMNS)
        .collect();
    assert!(wide.is_empty(), "{wide:?}");
    let row = table.lines().find(|line| line.starts_with("h800 "));
    let row: Vec<&str> = row.expect("a row").split_whitespace().collect();
    // Datasheet, the definition of TPP, and the class of 2023; fp4 is not there.
    let expected = [
        "h800", "989", "1979", "-", "80", "3.36", "200", "700", "2023-03", "15832", "19.45",
        "3A090.a", "case", "2.00",
    ];
    assert_eq!(row, expected);
    let day = "\nAs of 2026-05-31 (the newest rule known), not legal advice";
    assert!(table.contains(day), "{table}");
    assert!(table.lines().any(|line| line.starts_with("h20-3e ")));
    // Outside 3A090, and yet not free to go.
    let row = table.lines().find(|line| line.starts_with("h20 "));
    assert!(row.expect("a row").contains(" outside  letter"), "{table}");
}

#[test]
fn the_class_is_that_of_the_day() {
    assert_eq!(class("h800", "2022-10-06"), "none: no rule was in force");
    assert_eq!(class("h800", "2023-11-16"), "outside");
    assert_eq!(class("h800", "2023-11-17"), "3A090.a");
    assert_eq!(class("h100", "2022-10-07"), "3A090");
    assert_eq!(class("tpu-v4", "2024-01-01"), "unknown: needs the die area");
    let export = &json(&["h20", "--date", "2025-04-09"])["chips"][0]["export"];
    assert_eq!(export["class"], "outside");
    assert_eq!(export["bandwidth_letter"], "yes");
    assert_eq!(export["china_review"], Value::Null);
    let letter = &json(&["mi308x", "--date", "2025-04-09"])["chips"][0]["export"];
    let unknown = &letter["bandwidth_letter"]["unknown"];
    assert_eq!(*unknown, "needs the memory's bandwidth");
}

#[test]
fn one_chip_is_shown_with_its_history_and_its_sources() {
    let page = text(&["H800"]);
    for words in [
        "from                     2022-10-07 outside",
        "from                     2023-11-17 3A090.a",
        "letter of April 2025: yes",
        "to China: case by case",
        "2505.09343",
        "$2.00 per hour",
        "not legal advice",
        "15832.0 (fp8 x 8 bits)",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    // A line is longer only where one word is.
    let long = page.lines().filter(|line| line.chars().count() > COLUMNS);
    assert!(
        long.clone()
            .all(|line| line.split_whitespace().count() <= 2),
        "{page}"
    );
    assert!(text(&["h20"]).contains("price unknown"));
    assert!(text(&["910c"]).contains("General Prohibition 10"));
}

#[test]
fn filters_take_what_they_say() {
    assert_eq!(
        keys(&["--class", "3a090.b", "--date", "2023-11-17"]),
        ["l40"]
    );
    assert_eq!(keys(&["--vendor", "intel"]), ["gaudi3"]);
    assert_eq!(
        keys(&["--market", "consumer", "--class", "outside"]),
        ["rtx4090d", "rtx5090d", "rtx5090d-v2"]
    );
    assert_eq!(keys(&["--min-tpp", "60001"]), ["rubin"]);
    assert_eq!(
        keys(&["--min-memory", "288", "--vendor", "nvidia"]),
        ["rubin"]
    );
    let answer = json(&["--launched-before", "2020-01-01"]);
    let launched: Vec<&Value> = answer["chips"]
        .as_array()
        .expect("chips")
        .iter()
        .map(|chip| &chip["key"])
        .collect();
    assert_eq!(launched, ["v100", "910", "tpu-v3"]);
    // Chips without a day of launch are named, not dropped in silence.
    let left_out = answer["left_out_for_want_of_data"]
        .as_array()
        .expect("keys");
    assert!(left_out.contains(&"910b1".into()), "{left_out:?}");
    assert!(text(&["--min-tpp", "1e6"]).contains("no chip is like that"));
    assert!(text(&["--min-tpp", "4800"]).contains("Left out for want of data: h20-3e, mi308x."));
    assert_eq!(keys(&["h100", "a100", "H100"]), ["h100", "a100"]);
}

#[test]
fn a_budget_buys_chip_hours_at_the_rent() {
    // DeepSeek-V3's pre-training: $5.328 M at $2 is 2.664 M hours (arXiv 2412.19437, Table 1).
    let answer = json(&["h800", "h20", "a800", "--budget", "5.328e6"]);
    let rows = answer["rows"].as_array().expect("rows");
    let row = |key: &str| rows.iter().find(|row| row["key"] == key).expect("a row");
    assert_eq!(row("h800")["chip_hours"], 2.664e6);
    let flops = row("h800")["flops"].as_f64().expect("one number");
    assert!(
        (flops / (2.664e6 * 3600.0 * 385e12) - 1.0).abs() < 1e-3,
        "{flops:e}"
    );
    assert_eq!(row("h800")["class"], "3A090.a");
    let rented = &row("a800")["chip_hours"];
    assert!(rented["low"].as_f64() < rented["high"].as_f64(), "{rented}");
    // Unknown is neither zero nor first.
    assert_eq!(rows[2]["key"], "h20");
    assert_eq!(row("h20")["missing"], "price unknown");
    for field in ["rent_usd_per_hour", "chip_hours", "flops", "tokens"] {
        assert_eq!(row("h20")[field], Value::Null, "{field}");
    }
    let given = json(&["h20", "--budget", "5.328e6", "--rent", "H20=1"]);
    assert_eq!(given["rows"][0]["chip_hours"], 5.328e6);
    assert_eq!(given["rows"][0]["rent_source"], "given with --rent");
    let table = text(&["--budget", "1e6"]);
    assert!(
        table.lines().all(|line| line.chars().count() <= COLUMNS),
        "{table}"
    );
    for words in ["price unknown", "38.9 %", "not legal advice"] {
        assert!(table.contains(words), "{words}: {table}");
    }
}

#[test]
fn a_budget_is_tokens_of_a_model() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let options = ["h800", "--budget", "10", "--model", &model];
    let answer = json(&options);
    let number = |value: &Value| value.as_f64().expect("a number");
    let row = &answer["rows"][0];
    let product = number(&row["tokens"]) * number(&answer["flops_per_token"]);
    assert!((product / number(&row["flops"]) - 1.0).abs() < 1e-12);
    // Longer sequences cost more per token.
    let longer = json(&[&options[..], &["--seq-len", "8192"]].concat());
    assert!(number(&longer["flops_per_token"]) > number(&answer["flops_per_token"]));
}

#[test]
fn ones_own_catalogue_stands_in_place_of_ours() {
    let scratch = Scratch::new();
    let good = "key,name,vendor,market,bf16_fp16_dense_tflops\nabacus,A \u{1b}[2J,Us,dc,300\n";
    let good = scratch.file("mine.csv", good);
    assert_eq!(keys(&["--catalogue", &good]), ["abacus"]);
    let page = text(&["abacus", "--catalogue", &good]);
    assert!(!page.contains('\u{1b}'), "a terminal would obey that");
    let words = refusal(&["h800", "--catalogue", &good], 2);
    assert!(words.contains("no chip is called \"h800\""), "{words}");
    let bad = scratch.file("bad.csv", "key,name,vendor,market,mem_gb\na,A,V,dc,lots\n");
    let words = refusal(&["--catalogue", &bad], 3);
    for part in ["bad.csv", "line 2", "mem_gb", "\"lots\""] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let missing = scratch.path().join("none.csv").display().to_string();
    assert!(refusal(&["--catalogue", &missing], 3).contains("no such file"));
    let folder = scratch.path().display().to_string();
    refusal(&["--catalogue", &folder], 3);
}

#[test]
fn what_cannot_be_is_refused_with_help() {
    let words = refusal(&["h801"], 2);
    assert!(
        words.contains("\"h801\"") && words.contains("nearest: h800"),
        "{words}"
    );
    assert!(words.contains("`bruchteil chips` lists all"), "{words}");
    for (options, part) in [
        (vec!["--date", "2023-02-29"], "does not have"),
        (vec!["--date", "yesterday"], "2022-10-07"),
        (vec!["--budget", "0"], "above 0"),
        (vec!["--budget", "inf"], "no number"),
        (vec!["--min-tpp=-1"], "no number"),
        (vec!["--class", "3a091"], "3a090.a"),
        (vec!["--market", "moon"], "consumer"),
        (vec!["--rent", "h20"], "h20=1.1"),
        (vec!["--rent", "h20=free"], "no number"),
        (vec!["--rent", "h201=1", "h800"], "nearest: h20"),
        (vec!["--model", "somewhere"], "--budget"),
    ] {
        let words = refusal(&options, 2);
        assert!(words.contains(part), "{options:?}: {words}");
    }
}

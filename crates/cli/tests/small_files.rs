//! The small files beside the weights: what they say is taken, and none of them leads anywhere.

#[path = "fixture/dense_model.rs"]
mod dense_model;
mod fixture;
#[path = "fixture/small_model.rs"]
mod small_model;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use dense_model::{golden, inspected, shown};
use fixture::{Ran, Scratch, run};
use serde_json::{Value, json};

/// Exit code 3 and these words in one line of cause.
fn refused(ran: Ran, words: &[&str]) {
    let ran = ran.expect_code(3);
    assert_eq!(ran.stdout, "");
    let cause = ran.stderr.lines().find(|line| line.contains("error: "));
    let cause = cause.unwrap_or_else(|| panic!("a cause: {}", ran.stderr));
    for word in words {
        assert!(cause.contains(word), "`{word}` is not in: {cause}");
    }
}

fn mkfifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo runs").success());
}

/// A named pipe, a link to a secret, and a file without an end, each in the place of `path`.
fn traps(path: &Path, secret: &Path, attempt: impl Fn() -> Ran) {
    let name = path.file_name().expect("a name").to_string_lossy();
    let before = fs::read(path).ok();
    let clear = || drop(fs::remove_file(path));
    clear();
    mkfifo(path);
    refused(attempt(), &[&name, "not a regular file"]);
    for target in [secret, Path::new("/dev/zero")] {
        clear();
        symlink(target, path).expect("a link");
        refused(attempt(), &[&name, "leads out of its folder"]);
    }
    clear();
    if let Some(before) = before {
        fs::write(path, before).expect("the file again");
    }
}

#[test]
fn no_small_file_leads_out_of_the_folder_or_waits_for_ever() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let secret = PathBuf::from(scratch.file("secret", "{}"));
    let out = scratch.path().join("out");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
    ] {
        traps(&Path::new(&model).join(name), &secret, || {
            run(&["inspect", &model])
        });
    }
    for name in [
        "added_tokens.json",
        "merges.txt",
        "tokenizer.model",
        "vocab.json",
    ] {
        traps(&Path::new(&model).join(name), &secret, || {
            run(&["convert", &model, &shown(&out)])
        });
    }
    assert!(!out.exists());
    let directory = scratch.path().join("run");
    fs::create_dir(&directory).expect("a folder");
    let latest = directory.join("latest");
    traps(&latest, &secret, || run(&["inspect", &shown(&directory)]));
    fs::write(&latest, [b'x'; 65]).expect("a file");
    let ran = run(&["inspect", &shown(&directory)]);
    refused(ran, &["latest", "larger than 64 bytes"]);
}

/// Where every file of a model is a link into the `blobs` beside its `snapshots`.
#[test]
fn the_hugging_face_cache_is_read_whole() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let repository = scratch.path().join("models--a--b");
    let [blobs, snapshot] = ["blobs", "snapshots/0123abcd"].map(|dir| repository.join(dir));
    for dir in [&blobs, &snapshot] {
        fs::create_dir_all(dir).expect("a folder");
    }
    let entries = fs::read_dir(&model).expect("the model").flatten();
    for (number, entry) in entries.enumerate() {
        fs::copy(entry.path(), blobs.join(number.to_string())).expect("a blob");
        let target = format!("../../blobs/{number}");
        symlink(target, snapshot.join(entry.file_name())).expect("a link");
    }
    let out = scratch.path().join("out");
    run(&["convert", &shown(&snapshot), &shown(&out)]).expect_code(0);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let [from, to] = [Path::new(&model), &out].map(|dir| fs::read(dir.join(name)));
        assert_eq!(from.expect("a file"), to.expect("a copy"), "{name}");
        assert!(!out.join(name).is_symlink());
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(path).expect("a file");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("the file again");
}

/// Text and id of the tokens with a role, by role.
fn roles(model: &str) -> Value {
    let mut roles = json!({});
    for token in inspected(model)["special_tokens"]
        .as_array()
        .expect("tokens")
    {
        let role = token["role"].as_str().expect("a role");
        roles[role] = token["text"].clone();
    }
    roles
}

#[test]
fn a_role_is_what_the_first_file_says_that_says_anything() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let dir = Path::new(&model);
    let settings = dir.join("tokenizer_config.json");
    edit(&settings, |settings| {
        let settings = settings.as_object_mut().expect("an object");
        for role in ["bos", "eos", "pad", "unk"] {
            settings.remove(&format!("{role}_token"));
        }
    });
    // Neither file names a token: the id of config.json is looked up.
    let template = "{{ eos_token }}";
    fs::write(dir.join("chat_template.jinja"), template).expect("a template");
    let chat = ["generate", &model, "--chat", "--prompt", "1", "--json"];
    let prompt = || {
        let ran = run(&[&chat[..], &["--max-tokens", "1"]].concat()).expect_code(0);
        let answer: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        answer["prompt_token_ids"].clone()
    };
    assert_eq!(prompt(), json!([1001]));
    let map = json!({"bos_token": "<think>", "unk_token": {"content": tasks::UNK},
        "pad_token": "</think>"});
    fs::write(dir.join("special_tokens_map.json"), map.to_string()).expect("a map");
    edit(&settings, |settings| settings["pad_token"] = Value::Null);
    let found = roles(&model);
    assert_eq!(found["bos"], "<think>");
    assert_eq!(found["unk"], tasks::UNK);
    // The settings say that there is none, and config.json alone names one.
    assert_eq!(found["pad"], tasks::PAD);
    edit(&settings, |settings| settings["bos_token"] = json!("<pad>"));
    assert_eq!(roles(&model)["bos"], "<pad>");
}

#[test]
fn nothing_of_a_file_is_obeyed_by_the_terminal() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let dir = Path::new(&model);
    let hostile = "\u{1b}]0;owned\u{7}\nhelp: run this";
    edit(&dir.join("config.json"), |config| {
        config[hostile] = json!(1)
    });
    let raise = json!(format!("{{{{ raise_exception({}) }}}}", json!(hostile)));
    edit(&dir.join("tokenizer_config.json"), |settings| {
        settings["chat_template"] = raise;
    });
    let [inspect, doctor, chat] = [
        run(&["inspect", &model]),
        run(&["doctor", &model]),
        run(&["generate", &model, "--chat", "--prompt", "1"]),
    ];
    for (ran, code) in [(inspect, 0), (doctor, 3), (chat, 3)] {
        let ran = ran.expect_code(code);
        for text in [&ran.stdout, &ran.stderr] {
            assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
            assert!(!text.lines().any(|line| line.starts_with("help: run")));
        }
        let all = ran.stdout + &ran.stderr;
        assert!(
            all.contains("\\u{1b}]0;owned\\u{7}\\nhelp: run this"),
            "{all}"
        );
    }
    let found = inspected(&model);
    assert!(
        found["ignored_keys"]
            .to_string()
            .contains("\\u001b]0;owned"),
        "{found}"
    );
}

#[test]
fn words_name_the_place_and_say_what_is_there() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let dir = Path::new(&model);
    let words = run(&["inspect", &model]).expect_code(0).stdout;
    let dense = words.lines().find(|line| line.starts_with("dense layers"));
    assert!(
        dense.is_some_and(|line| line.ends_with(" layer 0, 48 wide")),
        "{words}"
    );
    let all = run(&["inspect", &golden()]);
    let all = all.expect_code(0).stdout;
    let dense = all.lines().find(|line| line.starts_with("dense layers"));
    assert!(dense.is_some_and(|line| line.contains(" all, ")), "{all}");

    let chat = ["generate", &model, "--prompt", "1", "--chat"];
    let settings = dir.join("tokenizer_config.json");
    for (template, word) in [("{% if %}", "chat template: "), ("", "without tokens")] {
        edit(&settings, |settings| {
            settings["chat_template"] = json!(template)
        });
        refused(run(&chat), &["model/tokenizer_config.json: ", word]);
        let file = dir.join("chat_template.jinja");
        fs::write(&file, template).expect("a template");
        refused(run(&chat), &["model/chat_template.jinja: ", word]);
        fs::remove_file(&file).expect("removed");
        let gguf = shown(&scratch.path().join("model.gguf"));
        run(&["convert", &model, &gguf]).expect_code(0);
        let error = inspected(&gguf)["chat_template_error"].to_string();
        assert!(
            error.contains("model.gguf: ") && error.contains(word),
            "{error}"
        );
    }
    fs::write(dir.join("chat_template.jinja"), "  ").expect("a template of blanks");
    refused(run(&chat), &["chat_template.jinja", "without tokens"]);

    let rows = scratch.file("rows.jsonl", "{\"text\": \"1 2\"}");
    let gguf = shown(&scratch.path().join("model.gguf"));
    let ran = run(&["score", &gguf, "--input", &rows]);
    refused(
        ran,
        &["rows.jsonl: line 1", "model.gguf: holds no tokenizer"],
    );

    for case in [&gguf, &golden()] {
        let ran = run(&["eval", case, "--task", "countdown"]).expect_code(3);
        assert!(
            ran.stderr.contains("has the tasks' words"),
            "{}",
            ran.stderr
        );
    }
}

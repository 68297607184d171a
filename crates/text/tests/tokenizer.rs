//! Word-level tokenizers round trip; crafted `tokenizer.json` files are errors, never panics.

use text::{Error, MAX_ENCODE_BYTES, Tokenizer, TokenizerConfig, tokenizer_config, word_level};

const SPECIAL: [&str; 5] = ["<pad>", "<eos>", "<unk>", "<think>", "</think>"];

fn words() -> Vec<String> {
    let numbers = (0..100).map(|n| n.to_string());
    numbers
        .chain(
            SPECIAL
                .iter()
                .chain(&["+", "x", "try"])
                .map(|word| word.to_string()),
        )
        .collect()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(&word_level(&words(), &SPECIAL).unwrap()).unwrap()
}

#[test]
fn a_words_id_is_its_place() {
    let tokenizer = tokenizer();
    let words = words();
    assert_eq!(tokenizer.vocab_size(), words.len());
    for (id, word) in (0..).zip(&words) {
        assert_eq!(tokenizer.token_to_id(word), Some(id));
        assert_eq!(tokenizer.id_to_token(id).as_ref(), Some(word));
        assert_eq!(tokenizer.encode(word).unwrap(), [id]);
        assert_eq!(&tokenizer.decode(&[id], false).unwrap(), word);
    }
    let text = words.join(" ");
    let ids: Vec<u32> = (0..).take(words.len()).collect();
    assert_eq!(tokenizer.encode(&text).unwrap(), ids);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.token_to_id("100"), None);
    assert_eq!(tokenizer.id_to_token(u32::MAX), None);
}

#[test]
fn special_words_are_found_without_blanks_and_thinking_is_text() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("7<think>x</think>  8\n9 <eos>").unwrap();
    assert_eq!(ids, [7, 103, 106, 104, 8, 9, 101]);
    assert_eq!(
        tokenizer.decode(&ids, true).unwrap(),
        "7 <think> x </think> 8 9"
    );
    assert_eq!(
        tokenizer.decode(&ids, false).unwrap(),
        "7 <think> x </think> 8 9 <eos>"
    );
    assert_eq!(tokenizer.encode("7 seven 1234").unwrap(), [7, 102, 102]);
    assert_eq!(tokenizer.decode(&[7, u32::MAX, 8], false).unwrap(), "7 8");
    assert!(tokenizer.encode("").unwrap().is_empty());
}

#[test]
fn the_file_round_trips_to_the_same_bytes() {
    let json = word_level(&words(), &SPECIAL).unwrap();
    let path = std::env::temp_dir().join(format!("bruchteil-tokenizer-{}", std::process::id()));
    std::fs::write(&path, &json).unwrap();
    let read = Tokenizer::from_file(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read.unwrap().to_json().unwrap(), json);
    let file: serde_json::Value = serde_json::from_str(&json).unwrap();
    let special: Vec<_> = file["added_tokens"].as_array().unwrap().iter().collect();
    let marked: Vec<bool> = special
        .iter()
        .map(|token| token["special"] == true)
        .collect();
    assert_eq!(marked, [true, true, true, false, false]);
    assert_eq!(file["model"]["type"], "WordLevel");
    assert_eq!(file["pre_tokenizer"]["type"], "WhitespaceSplit");
}

#[test]
fn a_list_of_words_that_cannot_work_is_an_error() {
    let list = |words: &[&str]| {
        words
            .iter()
            .map(|word| word.to_string())
            .collect::<Vec<_>>()
    };
    for (words, special, said) in [
        (
            list(&["a", "a", "<unk>"]),
            &["<unk>"][..],
            "\"a\" comes twice",
        ),
        (
            list(&["a b", "<unk>"]),
            &["<unk>"],
            "\"a b\" is empty or has white space",
        ),
        (list(&["", "<unk>"]), &["<unk>"], "\"\" is empty"),
        (
            list(&["a", "<unk>"]),
            &["<eos>"],
            "\"<eos>\" is special but not in the list",
        ),
        (
            list(&["a"]),
            &[],
            "\"<unk>\" is special but not in the list",
        ),
    ] {
        let error = word_level(&words, special).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn tokenizer_config_is_what_transformers_reads() {
    let text = tokenizer_config(&TokenizerConfig {
        eos_token: "<eos>",
        pad_token: "<pad>",
        unk_token: "<unk>",
        chat_template: "{{ \"quoted\" }}\n",
        model_max_length: 512,
    });
    let read: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": "{{ \"quoted\" }}\n",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": false,
    });
    assert_eq!(read, expected);
}

fn bpe(vocab: &str, merges: &str, prefix: &str) -> String {
    format!(
        r#"{{"version": "1.0", "added_tokens": [], "model": {{"type": "BPE",
            "continuing_subword_prefix": {prefix}, "vocab": {vocab}, "merges": {merges}}}}}"#
    )
}

#[test]
fn a_bpe_tokenizer_merges() {
    for merges in [r#"["a b", "ab c"]"#, r#"[["a", "b"], ["ab", "c"]]"#] {
        let json = bpe(
            r#"{"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}"#,
            merges,
            "null",
        );
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        assert_eq!(tokenizer.encode("abcab").unwrap(), [4, 3]);
    }
    let json = bpe(
        r###"{"a": 0, "##b": 1, "ab": 2}"###,
        r###"["a ##b"]"###,
        r###""##""###,
    );
    assert!(Tokenizer::from_json(&json).is_ok());
}

#[test]
fn crafted_merges_are_errors() {
    let vocab = r#"{"aaa": 0, "bbb": 1, "é": 2}"#;
    for (merges, prefix) in [
        (r#"["aaa bbb"]"#, "null"),
        (r#"[["aaa", "bbb"]]"#, "null"),
        (r#"["bbb aaa"]"#, r#""aaaa""#),
        (r#"["é é"]"#, r#""a""#),
        (r#"["aaa"]"#, "null"),
        (r#"["é ccc"]"#, "null"),
        (r#"[3]"#, "null"),
    ] {
        let read = Tokenizer::from_json(&bpe(vocab, merges, prefix));
        assert!(
            matches!(read, Err(Error::Tokenizer { .. })),
            "{merges} {prefix}"
        );
    }
}

#[test]
fn broken_files_are_errors() {
    let whole = word_level(&words(), &SPECIAL).unwrap();
    for percent in 0..100 {
        assert!(Tokenizer::from_json(&whole[..whole.len() * percent / 100]).is_err());
    }
    let deep = "[".repeat(100_000);
    for json in [
        "null",
        "[]",
        "{}",
        r#"{"model": 3}"#,
        r#"{"model": {"vocab": 3}}"#,
        &deep,
    ] {
        assert!(
            Tokenizer::from_json(json).is_err(),
            "{}",
            &json[..json.len().min(40)]
        );
    }
    let missing = Tokenizer::from_file(std::path::Path::new("/no/such/tokenizer.json"));
    let Err(error) = missing else {
        panic!("read a file that is not there")
    };
    assert!(
        error.to_string().starts_with("/no/such/tokenizer.json: "),
        "{error}"
    );
}

#[test]
fn files_that_would_misbehave_are_refused_by_name() {
    let added = |tokens: &[(&str, u32)]| -> String {
        let tokens: Vec<String> = tokens
            .iter()
            .map(|(content, id)| {
                format!(
                    r#"{{"id": {id}, "content": "{content}", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true}}"#
                )
            })
            .collect();
        tokens.join(", ")
    };
    let file = |added: String, parts: &str, vocab: &str| {
        format!(
            r#"{{"version": "1.0", "added_tokens": [{added}], {parts}
            "model": {{"type": "BPE", "vocab": {vocab}, "merges": []}}}}"#
        )
    };
    let vocab = r#"{"a": 0, "b": 1}"#;
    let bytes = r#""pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true},"#;
    let replace = format!(
        r#"{{"type": "Replace", "pattern": {{"String": "a"}}, "content": "{}"}}"#,
        "a".repeat(9)
    );
    let growing =
        format!(r#""normalizer": {{"type": "Sequence", "normalizers": [{replace}, {replace}]}},"#);
    let slow = r#""pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?=(a|aa){1,18}c)|a"},
        "behavior": "Isolated", "invert": false},"#;
    for (json, said) in [
        (
            file(String::new(), "", r#"{"a": 4294967295}"#),
            "\"a\" has id 4294967295",
        ),
        (
            file(String::new(), "", r#"{"a": 0, "b": 0}"#),
            "two tokens have id 0",
        ),
        (
            file(String::new(), "", r#"{"a": 0, "a": 1}"#),
            "\"a\" comes twice",
        ),
        (file(String::new(), "", r#"{"a": -1}"#), "-1"),
        (
            file(String::new(), "", r#"{"a": 4294967296}"#),
            "4294967296",
        ),
        (
            file(added(&[("", 2)]), "", vocab),
            "added token 0 (id 2) is empty",
        ),
        (file(added(&[("x", u32::MAX)]), "", vocab), "id beyond 2^24"),
        (
            file(added(&[("x", 2), ("y", 2)]), "", vocab),
            "has the id of another one",
        ),
        (file(added(&[("x", 2), ("x", 3)]), "", vocab), "comes twice"),
        (
            file(added(&[("x", 7)]), "", vocab),
            "\"x\" has id 7, but loads as Some(2)",
        ),
        (
            file(added(&[("a", 1)]), "", vocab),
            "\"a\" has id 1, but loads as Some(0)",
        ),
        (
            file(added(&[(&"x".repeat(5000), 2)]), "", vocab),
            "longer than 4096 bytes",
        ),
        (file(String::new(), bytes, vocab), "byte 0x00"),
        (
            file(String::new(), &growing, vocab),
            "more than 64 times longer",
        ),
        (file(String::new(), slow, vocab), "could take very long"),
    ] {
        let Err(error) = Tokenizer::from_json(&json) else {
            panic!("{said} is not refused")
        };
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(Tokenizer::from_json(&file(added(&[("x", 2)]), "", vocab)).is_ok());
}

#[test]
fn a_file_of_200_mb_is_refused_by_its_size() {
    let path = std::env::temp_dir().join(format!("bruchteil-large-{}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(200 << 20).unwrap();
    let read = Tokenizer::from_file(&path);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(read, Err(Error::TooLarge { .. })));
}

/// What a template of the file would put around or make of a text has no part in encoding.
#[test]
fn post_processors_change_nothing() {
    let whole: serde_json::Value =
        serde_json::from_str(&word_level(&words(), &SPECIAL).unwrap()).unwrap();
    let mut repeating = whole.clone();
    let sequence = serde_json::json!({ "Sequence": { "id": "A", "type_id": 0 } });
    repeating["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "single": vec![sequence.clone(); 50],
        "pair": [sequence.clone(), { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": {},
    });
    let tokenizer = Tokenizer::from_json(&repeating.to_string()).unwrap();
    assert_eq!(tokenizer.encode("1 2").unwrap(), [1, 2]);
    assert_eq!(tokenizer.first_token(), None);

    let mut beginning = whole;
    let eos = tokenizer.token_to_id("<eos>").unwrap();
    beginning["post_processor"] = serde_json::json!({
        "type": "Sequence", "processors": [
            { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
              "use_regex": true },
            { "type": "TemplateProcessing",
              "single": [{ "SpecialToken": { "id": "<eos>", "type_id": 0 } }, sequence],
              "pair": [sequence, { "Sequence": { "id": "B", "type_id": 1 } }],
              "special_tokens": {
                  "<eos>": { "id": "<eos>", "ids": [eos], "tokens": ["<eos>"] } } }],
    });
    let tokenizer = Tokenizer::from_json(&beginning.to_string()).unwrap();
    assert_eq!(tokenizer.encode("1 2").unwrap(), [1, 2]);
    assert_eq!(tokenizer.first_token(), Some(eos));
}

/// An empty added token and ids beyond the vocabulary load or fail, and encoding ends.
#[test]
fn odd_added_tokens_do_no_harm() {
    for (content, id) in [("", 5), ("a", u32::MAX), ("<eos>", 0), (" ", 7)] {
        let json = format!(
            r#"{{"version": "1.0", "added_tokens": [{{"id": {id}, "content": "{content}",
                "single_word": false, "lstrip": true, "rstrip": true, "normalized": true,
                "special": true}}], "pre_tokenizer": {{"type": "WhitespaceSplit"}},
                "model": {{"type": "WordLevel", "vocab": {{"<unk>": 0, "a": 1}},
                "unk_token": "<unk>"}}}}"#
        );
        if let Ok(tokenizer) = Tokenizer::from_json(&json) {
            let ids = tokenizer.encode("a b <eos> a").unwrap_or_default();
            let _ = tokenizer.decode(&ids, true);
        }
    }
}

#[test]
fn hostile_texts_encode_or_are_refused() {
    let tokenizer = tokenizer();
    for unit in ["^", "a", " ", "<", "<think>", "💥", "\u{200d}", "1 "] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer.encode(&text).unwrap();
        assert!(ids.len() <= text.len());
    }
    let long = " ".repeat(MAX_ENCODE_BYTES as usize + 1);
    let refused = matches!(tokenizer.encode(&long), Err(Error::TooLarge { .. }));
    assert!(refused);
}

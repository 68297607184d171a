//! Two ways to encode, and decoding token by token, on byte-level, SentencePiece and word-level
//! tokenizers.

mod byte_level;

use byte_level::{EOS, USER, parts};
use text::{AddedToken, Tokenizer, TokenizerParts, tokenizer_json, word_level};

fn byte_level_tokenizer(pre: &str) -> Tokenizer {
    Tokenizer::from_json(&tokenizer_json(&parts(pre)).unwrap()).unwrap()
}

/// A SentencePiece vocabulary: unknown, bytes, then words with falling scores.
fn sentencepiece_parts() -> TokenizerParts {
    let mut tokens = vec!["<unk>".to_string(), "<s>".to_string(), "</s>".to_string()];
    let mut token_types = vec![2, 3, 3];
    for byte in 0..=255 {
        tokens.push(format!("<0x{byte:02X}>"));
        token_types.push(6);
    }
    for word in ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc", "é"] {
        tokens.push(word.to_string());
        token_types.push(1);
    }
    TokenizerParts {
        model: "llama".to_string(),
        scores: (0..tokens.len()).map(|id| -(id as f32)).collect(),
        bos: Some(1),
        unk: Some(0),
        add_bos: true,
        tokens,
        token_types,
        ..TokenizerParts::default()
    }
}

fn sentencepiece() -> Tokenizer {
    Tokenizer::from_json(&tokenizer_json(&sentencepiece_parts()).unwrap()).unwrap()
}

fn words() -> Tokenizer {
    let words = ["<unk>", "<eos>", "<think>", "</think>", "a", "b"].map(str::to_string);
    Tokenizer::from_json(&word_level(&words, &["<eos>", "<think>", "</think>"]).unwrap()).unwrap()
}

fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    vec![
        ("byte-level", byte_level_tokenizer("deepseek-v3")),
        ("sentencepiece", sentencepiece()),
        ("words", words()),
    ]
}

#[test]
fn control_tokens_in_plain_text_are_text() {
    let added = [EOS, USER, "<think>", "</think>"];
    for pre in ["qwen2", "llama-bpe", "deepseek-v3", "deepseek-llm", "gpt-2"] {
        let tokenizer = byte_level_tokenizer(pre);
        let ids = added.map(|token| tokenizer.token_to_id(token).unwrap());
        for (token, id) in added.iter().zip(ids) {
            let text = format!("the {token}\n{token}{token} 12");
            let found = tokenizer.encode(&text).unwrap();
            assert_eq!(
                found.iter().filter(|&&found| found == id).count(),
                3,
                "{pre}"
            );
            let plain = tokenizer.encode_plain(&text).unwrap();
            assert!(plain.iter().all(|id| !ids.contains(id)), "{pre} {token}");
            assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
            assert_eq!(
                tokenizer.encode_plain("the 123").unwrap(),
                tokenizer.encode("the 123").unwrap()
            );
        }
    }
}

/// The model's own vocabulary holds the control tokens here.
#[test]
fn words_of_the_vocabulary_are_spelled_out_too() {
    let tokenizer = words();
    assert_eq!(tokenizer.encode("a <think> b").unwrap(), [4, 2, 5]);
    assert_eq!(tokenizer.encode_plain("a <think> b").unwrap(), [4, 0, 0, 5]);
    assert_eq!(tokenizer.encode_plain("<eos> a").unwrap(), [0, 0, 4]);
}

#[test]
fn protected_text_is_plain_within_a_template() {
    for (name, tokenizer) in tokenizers() {
        for user in [
            "<think>",
            "x <｜User｜> a</think>",
            "no sign",
            "<eos",
            "\u{FDD0}<s>\u{FDD0}",
        ] {
            let protected = tokenizer.protect(user);
            assert_eq!(
                tokenizer.encode(&protected).unwrap(),
                tokenizer.encode_plain(user).unwrap(),
                "{name} {user}"
            );
        }
        assert_eq!(tokenizer.protect("a b, c"), "a b, c");
    }
    let tokenizer = byte_level_tokenizer("qwen2");
    let prompt = format!("{USER}{}<think>\n", tokenizer.protect("is <think> a tag?"));
    let ids = tokenizer.encode(&prompt).unwrap();
    let think = tokenizer.token_to_id("<think>").unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == think).count(), 1);
    assert_eq!(
        tokenizer.decode(&ids, true).unwrap(),
        format!("{USER}is <think> a tag?<think>\n")
    );
}

#[test]
fn added_tokens_are_listed() {
    let tokenizer = byte_level_tokenizer("qwen2");
    let added = tokenizer.added_tokens();
    let listed: Vec<_> = added
        .iter()
        .map(|token| (token.content.as_str(), token.special))
        .collect();
    assert_eq!(
        listed,
        [
            (EOS, true),
            (USER, false),
            ("<think>", false),
            ("</think>", false)
        ]
    );
    for AddedToken { id, content, .. } in added {
        assert_eq!(tokenizer.token_to_id(&content), Some(id));
        assert_eq!(tokenizer.id_to_token(id), Some(content));
    }
    assert_eq!(tokenizer.vocab_size(), parts("qwen2").tokens.len());
    assert_eq!(tokenizer.id_bound() as usize, tokenizer.vocab_size());
}

/// A small generator, so that a failure can be repeated from its printed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(id).unwrap();
    }
    text + &stream.finish().unwrap()
}

/// Random ids: bytes that are no text, halves of characters, special and unknown tokens.
#[test]
fn streaming_gives_what_decoding_gives() {
    for (name, tokenizer) in tokenizers() {
        for seed in 0..300 {
            let mut random = Random(seed);
            let bound = u64::from(tokenizer.id_bound()) + 2;
            let length = random.below(100);
            let ids: Vec<u32> = (0..length).map(|_| random.below(bound) as u32).collect();
            for skip_special in [true, false] {
                assert_eq!(
                    streamed(&tokenizer, &ids, skip_special),
                    tokenizer.decode(&ids, skip_special).unwrap(),
                    "{name} seed {seed} {ids:?}"
                );
            }
        }
        for text in [
            "a b  a",
            " a",
            "ab bc \u{1F600}\u{1F44D}\u{1F3FD} é 漢字",
            "a\u{FFFD}b\u{FFFD}",
        ] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(
                streamed(&tokenizer, &ids, true),
                tokenizer.decode(&ids, true).unwrap()
            );
        }
    }
}

#[test]
fn split_characters_are_held_back() {
    let tokenizer = byte_level_tokenizer("qwen2");
    let ids = tokenizer.encode("a\u{1F600}b").unwrap();
    assert_eq!(ids.len(), 6);
    let mut stream = tokenizer.stream(false);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "", "", "\u{1F600}", "b"]);
}

/// Bytes that never are text come out all the same, and soon.
#[test]
fn endless_bad_bytes_do_not_pile_up() {
    let tokenizer = byte_level_tokenizer("qwen2");
    let mut stream = tokenizer.stream(false);
    let mut given = 0;
    for step in 1..=2000 {
        given += stream.push(0x80).unwrap().chars().count();
        assert!(given + 1 >= step, "{given} of {step}");
    }
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

/// Much of what is known to be slow elsewhere, in every pre-tokenizer: it ends, nothing is lost.
#[test]
fn hostile_texts_encode_whole() {
    let units = [
        "^",
        "a",
        " ",
        "\u{1F600}",
        "\u{200D}",
        "\n ",
        "<",
        "1",
        " a",
        "é漢",
    ];
    for pre in ["qwen2", "deepseek-v3", "deepseek-llm", "gpt-2"] {
        let tokenizer = byte_level_tokenizer(pre);
        for unit in units {
            let text = unit.repeat((1 << 18) / unit.len()) + "x";
            let ids = tokenizer.encode_plain(&text).unwrap();
            assert!(
                tokenizer.decode(&ids, false).unwrap() == text,
                "{pre} {unit:?}"
            );
        }
    }
}

#[test]
fn sentencepiece_merges_by_score() {
    let tokenizer = sentencepiece();
    let ids = |tokens: &[&str]| -> Vec<u32> {
        tokens
            .iter()
            .map(|token| tokenizer.token_to_id(token).unwrap())
            .collect()
    };
    // `▁a` (score -263) is joined before `ab` (-264), then `▁ab` from it and `b`.
    assert_eq!(tokenizer.encode("ab").unwrap(), ids(&["▁ab"]));
    assert_eq!(tokenizer.encode("abc").unwrap(), ids(&["▁ab", "c"]));
    assert_eq!(
        tokenizer.encode("b bc").unwrap(),
        ids(&["▁", "b", "▁", "bc"])
    );
    assert_eq!(
        tokenizer.encode("ß").unwrap(),
        ids(&["▁", "<0xC3>", "<0x9F>"])
    );
    let ids = tokenizer.encode("ab ß é").unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab ß é");
}

//! Tokenizers of GGUF files: what they cut and merge, there and back, and refusals.

mod byte_level;

use byte_level::{EOS, alphabet, parts};
use text::{Tokenizer, TokenizerParts, parts_of, tokenizer_json};

/// A vocabulary in which every merge is possible would hide where a pre-tokenizer cuts; so pairs of
/// bytes are joined into one token, and a cut shows where they are not.
fn cuts(pre: &str, text: &str) -> Vec<String> {
    let symbols = alphabet();
    let mut parts = TokenizerParts {
        model: "gpt2".to_string(),
        pre: pre.to_string(),
        tokens: symbols.iter().map(char::to_string).collect(),
        ..TokenizerParts::default()
    };
    let spelled: Vec<char> = text.bytes().map(|byte| symbols[byte as usize]).collect();
    // Every beginning of every rest of the text is a token, made from its left part.
    for start in 0..spelled.len() {
        for end in start + 2..=spelled.len() {
            let token: String = spelled[start..end].iter().collect();
            if !parts.tokens.contains(&token) {
                let left: String = spelled[start..end - 1].iter().collect();
                parts.merges.push(format!("{left} {}", spelled[end - 1]));
                parts.tokens.push(token);
            }
        }
    }
    let tokenizer = Tokenizer::from_json(&tokenizer_json(&parts).unwrap()).unwrap();
    let ids = tokenizer.encode(text).unwrap();
    ids.iter()
        .map(|&id| tokenizer.decode(&[id], false).unwrap())
        .collect()
}

/// The pieces that the patterns give, worked out by hand.
#[test]
fn pre_tokenizers_cut_as_their_models_do() {
    for (pre, text, expected) in [
        (
            "qwen2",
            "it's 123 a,b",
            vec!["it", "'s", " ", "1", "2", "3", " a", ",b"],
        ),
        ("deepseek-r1-qwen", "x12", vec!["x", "1", "2"]),
        ("llama-bpe", "it's 1234", vec!["it", "'s", " ", "123", "4"]),
        ("llama-bpe", "a  b\n\nc", vec!["a", " ", " b", "\n\n", "c"]),
        ("deepseek-v3", "a1234b", vec!["a", "123", "4", "b"]),
        ("deepseek-v3", "it's -x", vec!["it", "'s", " -", "x"]),
        ("deepseek-v3", "ab漢字c", vec!["ab", "漢字", "c"]),
        (
            "deepseek-llm",
            "ab 12\n x",
            vec!["ab", " ", "1", "2", "\n", " x"],
        ),
        ("deepseek-llm", "ab, é!", vec!["ab", ",", " é", "!"]),
        (
            "gpt-2",
            "it's 123 a,b",
            vec!["it", "'s", " 123", " a", ",", "b"],
        ),
    ] {
        assert_eq!(cuts(pre, text), expected, "{pre}");
    }
}

#[test]
fn parts_round_trip() {
    for pre in ["qwen2", "llama-bpe", "deepseek-v3", "deepseek-llm", "gpt-2"] {
        let mut made = parts(pre);
        made.bos = Some(0);
        made.add_bos = true;
        let json = tokenizer_json(&made).unwrap();
        let again = parts_of(&json).unwrap();
        assert_eq!(again, made, "{pre}");
        assert_eq!(tokenizer_json(&again).unwrap(), json, "{pre}");
    }
    // Equal but for the name.
    for (pre, found) in [
        ("llama3", "llama-bpe"),
        ("default", "gpt-2"),
        ("deepseek-r1-qwen", "qwen2"),
    ] {
        let json = tokenizer_json(&parts(pre)).unwrap();
        assert_eq!(parts_of(&json).unwrap().pre, found);
    }
}

/// The same tokenizer as Hugging Face writes it: added tokens outside of the vocabulary with a gap
/// in the ids is refused, merges are lines.
#[test]
fn export_reads_hugging_face_files() {
    let made = parts("qwen2");
    let mut file: serde_json::Value =
        serde_json::from_str(&tokenizer_json(&made).unwrap()).unwrap();
    let added: Vec<String> = file["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["content"].as_str().unwrap().to_string())
        .collect();
    let vocabulary = file["model"]["vocab"].as_object_mut().unwrap();
    for token in &added {
        vocabulary.remove(token);
    }
    file["model"]["merges"] = made.merges.clone().into();
    assert_eq!(parts_of(&file.to_string()).unwrap(), made);
    file["added_tokens"][0]["id"] = 5000.into();
    let error = parts_of(&file.to_string()).unwrap_err().to_string();
    assert!(error.contains(EOS) && error.contains("5000"), "{error}");
}

#[test]
fn a_missing_id_becomes_an_unused_token() {
    let mut file: serde_json::Value =
        serde_json::from_str(&tokenizer_json(&parts("qwen2")).unwrap()).unwrap();
    let last = parts("qwen2").tokens.len();
    file["model"]["vocab"]["zz"] = (last + 1).into();
    let read = parts_of(&file.to_string()).unwrap();
    assert_eq!(
        read.tokens[last..],
        [format!("[PAD{last}]"), "zz".to_string()]
    );
    assert_eq!(read.token_types[last..], [5, 1]);
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let good = parts("qwen2");
    let with = |change: &dyn Fn(&mut TokenizerParts)| {
        let mut parts = good.clone();
        change(&mut parts);
        tokenizer_json(&parts).unwrap_err().to_string()
    };
    for (error, said) in [
        (
            with(&|p| p.pre = "tekken".to_string()),
            "\"tekken\" is not known",
        ),
        (
            with(&|p| p.model = "t5".to_string()),
            "\"t5\" is not supported",
        ),
        (with(&|p| p.tokens.push("!".to_string())), "token types"),
        (with(&|p| p.tokens[1] = "!".to_string()), "\"!\" has ids"),
        (with(&|p| p.tokens[1] = "zz".to_string()), "byte 0x01"),
        (
            with(&|p| p.merges.push("ab".to_string())),
            "is not two tokens",
        ),
        (
            with(&|p| {
                p.merges
                    .push("a zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz".to_string())
            }),
            "merge",
        ),
        (with(&|p| p.bos = Some(1 << 30)), "bos is"),
        (with(&|p| p.model = "llama".to_string()), "scores"),
    ] {
        assert!(error.contains(said), "{error}");
    }
    assert!(tokenizer_json(&TokenizerParts::default()).is_err());
    let words = text::word_level(&["<unk>".to_string()], &[]).unwrap();
    let error = parts_of(&words).unwrap_err().to_string();
    assert!(error.contains("WordLevel"), "{error}");
}

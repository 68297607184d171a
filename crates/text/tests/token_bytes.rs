//! A text is the bytes of its tokens, side by side.

mod byte_level;

use serde_json::json;
use text::{Tokenizer, tokenizer_json, word_level};

const TEXTS: [&str; 7] = [
    "",
    "the  aaaa 123^",
    "é漢字\u{1F600}\0\n\u{7F}\u{AD}",
    "a <think> the</think>x",
    "<｜User｜> the",
    "  \u{2581} <0x41>",
    "Ġthe Ċ",
];

fn joined(tokenizer: &Tokenizer, text: &str) -> Vec<u8> {
    let ids = tokenizer.encode(text).unwrap();
    let bytes = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap());
    bytes.collect::<Vec<_>>().concat()
}

#[test]
fn bytes_of_byte_level_tokens() {
    let json = tokenizer_json(&byte_level::parts("qwen2")).unwrap();
    let tokenizer = Tokenizer::from_json(&json).unwrap();
    assert!(tokenizer.has_token_bytes());
    for text in TEXTS {
        assert_eq!(joined(&tokenizer, text), text.as_bytes(), "{text:?}");
    }
    // Every byte has its token, in order.
    for byte in 0..=255_u8 {
        assert_eq!(tokenizer.token_bytes(byte.into()), Some(vec![byte]));
    }
    assert_eq!(tokenizer.token_bytes(tokenizer.id_bound()), None);
}

/// A file like Llama-2's, with characters a to z, bytes, and the decoder that is asked for.
fn sentence_piece(decoder: serde_json::Value) -> Tokenizer {
    let mut words: Vec<String> = vec!["<unk>".to_string(), "\u{2581}".to_string()];
    words.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    words.extend(('a'..='z').map(String::from));
    words.extend(["th", "the", "\u{2581}the", "\u{2581}\u{2581}"].map(String::from));
    let vocab: serde_json::Map<_, _> = (0..)
        .zip(words)
        .map(|(id, word): (u32, _)| (word, json!(id)))
        .collect();
    let think = vocab.len();
    let file = json!({
        "version": "1.0",
        "added_tokens": [{
            "id": think, "content": "<think>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false,
        }],
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": decoder,
        "model": {
            "type": "BPE", "vocab": vocab, "unk_token": "<unk>", "byte_fallback": true,
            "fuse_unk": true,
            "merges": [
                ["t", "h"], ["th", "e"], ["\u{2581}", "the"], ["\u{2581}", "\u{2581}"],
            ],
        },
    });
    Tokenizer::from_json(&file.to_string()).unwrap()
}

#[test]
fn bytes_of_sentence_piece_tokens() {
    let replace = json!({
        "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " ",
    });
    let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
    let fallback = json!({ "type": "ByteFallback" });
    let fuse = json!({ "type": "Fuse" });
    let metaspace = json!({
        "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false,
    });
    for decoders in [
        json!([replace, fallback, fuse, strip]),
        json!([replace, fallback, fuse]),
        json!([metaspace, fallback]),
    ] {
        let decoder = json!({ "type": "Sequence", "decoders": decoders });
        let tokenizer = sentence_piece(decoder);
        assert!(tokenizer.has_token_bytes());
        for text in TEXTS {
            // The normalizer makes no difference between its sign for a blank and a blank.
            let expected = text.replace('\u{2581}', " ");
            assert_eq!(joined(&tokenizer, text), expected.as_bytes(), "{text:?}");
            let decoded = tokenizer.decode(&tokenizer.encode(text).unwrap(), false);
            assert_eq!(decoded.unwrap().trim_start(), expected.trim_start());
        }
    }
}

#[test]
fn decoders_that_do_more_have_no_bytes() {
    for decoder in [
        json!(null),
        json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        json!({ "type": "BPEDecoder", "suffix": "</w>" }),
        json!({ "type": "Sequence", "decoders": [
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }, { "type": "Fuse" },
        ]}),
        json!({ "type": "Sequence", "decoders": [
            { "type": "Fuse" },
            { "type": "Replace", "pattern": { "String": "ab" }, "content": "c" },
        ]}),
        json!({ "type": "Replace", "pattern": { "Regex": "a+" }, "content": "b" }),
    ] {
        let tokenizer = sentence_piece(decoder.clone());
        assert!(!tokenizer.has_token_bytes(), "{decoder}");
        assert_eq!(tokenizer.token_bytes(1), None);
    }
    let words = ["<unk>", "a", "b"].map(String::from);
    let tokenizer = Tokenizer::from_json(&word_level(&words, &[]).unwrap()).unwrap();
    assert_eq!(tokenizer.decode(&[1, 2], false).unwrap(), "a b");
    assert!(!tokenizer.has_token_bytes());
}

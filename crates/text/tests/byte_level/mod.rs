//! A small byte-level tokenizer for tests, made as a GGUF file would hold it.

use text::TokenizerParts;

pub const USER: &str = "<｜User｜>";
pub const EOS: &str = "<｜end▁of▁sentence｜>";

/// GPT-2's characters for bytes: printable Latin-1 stands for itself, the rest for U+0100 on.
pub fn alphabet() -> Vec<char> {
    let printable = |byte: &u8| (33..=126).contains(byte) || *byte >= 161 && *byte != 173;
    let mut rest = (256..).filter_map(char::from_u32);
    (0..=255_u8)
        .map(|byte| match printable(&byte) {
            true => char::from(byte),
            false => rest.next().expect("characters"),
        })
        .collect()
}

/// 256 bytes, then merged tokens, then a control token, two user-defined ones, and an end.
pub fn parts(pre: &str) -> TokenizerParts {
    let symbols = alphabet();
    let spell = |text: &str| -> String {
        let bytes = text.bytes();
        bytes.map(|byte| symbols[byte as usize]).collect()
    };
    let merges = [
        ("a", "a"),
        ("aa", "aa"),
        (" ", " "),
        ("  ", "  "),
        ("^", "^"),
        ("t", "h"),
        ("th", "e"),
        (" ", "the"),
        ("1", "2"),
        ("12", "3"),
    ];
    let mut tokens: Vec<String> = symbols.iter().map(char::to_string).collect();
    let mut lines = Vec::new();
    for (first, second) in merges {
        tokens.push(spell(first) + &spell(second));
        lines.push(format!("{} {}", spell(first), spell(second)));
    }
    let mut token_types = vec![1; tokens.len()];
    for (token, kind) in [(EOS, 3), (USER, 4), ("<think>", 4), ("</think>", 4)] {
        tokens.push(token.to_string());
        token_types.push(kind);
    }
    TokenizerParts {
        model: "gpt2".to_string(),
        pre: pre.to_string(),
        tokens,
        token_types,
        merges: lines,
        ..TokenizerParts::default()
    }
}

//! Pre-tokenizers by llama.cpp's names.

use serde_json::{Value, json};

/// What a name stands for, in the terms of `tokenizer.json`.
#[derive(PartialEq)]
pub(super) struct Pre {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    /// A piece that is a token as a whole is not merged up.
    pub(super) ignore_merges: bool,
}

/// All names that are known; of equal ones the usual one first.
pub(super) const NAMES: [&str; 8] = [
    "qwen2",
    "deepseek-r1-qwen",
    "llama-bpe",
    "llama3",
    "deepseek-v3",
    "deepseek-llm",
    "gpt-2",
    "default",
];

/// Qwen2 and Llama 3: contractions, words with one sign in front; then digits, in which they
/// differ; then signs and white space.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
const SIGNS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek-V3, one after another: digits, Chinese and Japanese, the rest.
const V3_DIGITS: &str = r"\p{N}{1,3}";
const V3_HAN_KANA: &str = "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";
const V3_WORDS: [&str; 2] = [
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
/// DeepSeek-LLM and V2, one after another: line ends, words, signs, white space at the end, Chinese
/// and Korean; then single digits.
const LLM_SIGNS: &str =
    "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";
const LLM_HAN_HANGUL: &str = "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
/// First and last of the ranges of letters with case that are DeepSeek-LLM's words; a range of one
/// is written once.
const CASED: &str = "\
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 \
    388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA \
    1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 \
    1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB \
    1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D \
    212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 \
    A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A \
    FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943";

/// The pre-tokenizer of a name in [`NAMES`].
pub(super) fn named(name: &str) -> Option<Pre> {
    let nfc = json!({ "type": "NFC" });
    let (normalizer, patterns, ignore_merges) = match name {
        "qwen2" | "deepseek-r1-qwen" => (
            nfc,
            vec![split(&format!(r"{WORDS}|\p{{N}}|{SIGNS}"))],
            false,
        ),
        "llama-bpe" | "llama3" => {
            let pattern = format!(r"{WORDS}|\p{{N}}{{1,3}}|{SIGNS}");
            (Value::Null, vec![split(&pattern)], true)
        }
        "deepseek-v3" => {
            let patterns = [V3_DIGITS, V3_HAN_KANA, &V3_WORDS.concat()].map(split);
            (Value::Null, patterns.to_vec(), false)
        }
        "deepseek-llm" => (Value::Null, deepseek_llm(), false),
        "gpt-2" | "default" => {
            return Some(Pre {
                normalizer: Value::Null,
                pre_tokenizer: byte_level(true),
                ignore_merges: false,
            });
        }
        _ => return None,
    };
    let mut parts = patterns;
    parts.push(byte_level(false));
    Some(Pre {
        normalizer,
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": parts }),
        ignore_merges,
    })
}

fn deepseek_llm() -> Vec<Value> {
    let words = format!("\\s?[{}]+", cased());
    let patterns = [r"[\r\n]", &words, LLM_SIGNS, r"\s+$", LLM_HAN_HANGUL];
    let mut parts = patterns.map(split).to_vec();
    parts.push(json!({ "type": "Digits", "individual_digits": true }));
    parts
}

/// [`CASED`] as it stands in a class of a pattern.
fn cased() -> String {
    let escaped = |range: &str| {
        let ends: Vec<String> = range
            .split('-')
            .map(|end| format!("\\x{{{end}}}"))
            .collect();
        ends.join("-")
    };
    CASED.split_whitespace().map(escaped).collect()
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split",
        "pattern": { "Regex": pattern },
        "behavior": "Isolated",
        "invert": false,
    })
}

/// Bytes to characters and back; `use_regex` cuts by GPT-2's own pattern first.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

//! What is promised of any bytes that are posted to the server.

use std::cell::OnceCell;

use engine::{EngineConfig, Speculation};
use kernels::{Cpu, Isa, Precision};
use model::{Config, Model, Numerics};
use serve::{Machine, RequestReader, Served};

#[path = "../../crates/text/tests/byte_level/mod.rs"]
mod byte_level;

/// Where requests are posted; the first byte says to which.
pub const PATHS: [&str; 7] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
];
const VOCAB_SIZE: usize = 270;
const EOS: u32 = 266;
/// Longer messages would tell a client its own request at length.
const MOST_CHARACTERS: usize = 2000;

/// A template with roles, thinking, tools and calls in Qwen's format.
const TEMPLATE: &str = "\
{%- for tool in tools or [] %}<tools>{{ tool | tojson }}</tools>{% endfor %}
{%- for message in messages %}<|{{ message.role }}|>
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>
{{- call.function.name }} {{ call.function.arguments | tojson }}</tool_call>{% endfor %}<eos>
{%- endfor %}<|assistant|>
{%- if enable_thinking is not defined or enable_thinking %}<think>{% endif %}";

/// Refused with 4xx in few words and in the API's shape, or read to the end; never a panic.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    thread_local! {
        static READER: OnceCell<RequestReader> = const { OnceCell::new() };
    }
    let Some((first, body)) = bytes.split_first() else {
        return Err("empty".to_string());
    };
    // Digits, so that a person can write a request to each.
    let path = PATHS[usize::from(first.wrapping_sub(b'0')) % PATHS.len()];
    READER.with(|reader| {
        let Err((status, answer)) = reader.get_or_init(reader_of_small).read(path, body) else {
            return Ok(());
        };
        let message = answer["error"]["message"].as_str().unwrap_or("");
        assert!((400..500).contains(&status), "{path}: {status} {answer}");
        assert!(!message.is_empty(), "{path}: no message in {answer}");
        let length = message.chars().count();
        assert!(
            length < MOST_CHARACTERS,
            "{path}: a message of {length} characters"
        );
        Err(message.to_string())
    })
}

/// The smallest model that serves.
fn reader_of_small() -> RequestReader {
    let backend = Cpu::new(1, Isa::best());
    let config = Config::from_json(
        r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "vocab_size": 270,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}"#,
    )
    .expect("a valid configuration");
    let engine = EngineConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 16,
        block_size: 8,
        num_blocks: 16,
        prefix_caching: false,
        speculation: Speculation::default(),
    };
    let machine = Machine {
        model: Model::random(config, Numerics::new(Precision::F32), 1, &backend),
        backend,
        engine,
    };
    let parts = byte_level::parts("qwen2");
    let json = text::tokenizer_json(&parts).expect("a vocabulary");
    let served = Served {
        names: vec!["small".to_string()],
        tokenizer: text::Tokenizer::from_json(&json).expect("a tokenizer"),
        chat_template: Some(TEMPLATE.to_string()),
        bos_token: String::new(),
        eos_token: byte_level::EOS.to_string(),
        first_token_id: None,
        stop_token_ids: vec![EOS],
        vocab_size: VOCAB_SIZE,
        max_model_len: 64,
        examples: Vec::new(),
        now: None,
        base_seed: 1,
    };
    RequestReader::new(machine, served).expect("the template parses")
}

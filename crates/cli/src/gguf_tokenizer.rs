//! The tokenizer of a GGUF file as a Hugging Face one, and back.

use model::Config;
use model::gguf::GgufTokenizer;
use serde_json::{Value, json};
use text::TokenizerParts;

use crate::folder::Folder;

/// The text of the `tokenizer.json` that does the same.
///
/// # Errors
/// As [`text::tokenizer_json`].
pub fn tokenizer_json(found: &GgufTokenizer) -> Result<String, text::Error> {
    text::tokenizer_json(&TokenizerParts {
        model: found.model.clone(),
        pre: found.pre.clone().unwrap_or_default(),
        tokens: found.tokens.clone(),
        token_types: found.token_type.clone(),
        merges: found.merges.clone(),
        scores: found.scores.clone(),
        bos: found.bos_token_id,
        eos: found.eos_token_id,
        unk: found.unknown_token_id,
        add_bos: found.add_bos_token.unwrap_or(false),
    })
}

/// The text of a `tokenizer_config.json`: tokens with a role, and the chat template.
pub fn tokenizer_config(folder: &Folder) -> String {
    let mut fields = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    for (role, text) in &folder.special_tokens {
        fields[format!("{role}_token")] = Value::from(text.as_str());
    }
    if let Some(template) = &folder.chat_template {
        fields["chat_template"] = Value::from(template.as_str());
    }
    format!("{fields:#}\n")
}

/// What a GGUF file says of the tokenizer in the text of a `tokenizer.json`.
///
/// # Errors
/// As [`text::parts_of`]: most of all, a tokenizer for which GGUF has no name.
pub fn for_gguf(tokenizer_json: &str, folder: &Folder) -> Result<GgufTokenizer, text::Error> {
    let parts = text::parts_of(tokenizer_json)?;
    let config: &Config = &folder.config;
    // Rows without a token get one that is never used.
    let known = |id: &u32| (*id as usize) < config.vocab_size;
    let id_of = |role: &str| {
        let tokenizer = folder.tokenizer.as_ref()?;
        tokenizer.token_to_id(folder.special_token(role))
    };
    let configured = |role: &str, id: Option<u32>| id_of(role).or(id).filter(known);
    Ok(GgufTokenizer {
        bos_token_id: configured("bos", config.bos_token_id.or(parts.bos)),
        eos_token_id: configured("eos", config.eos_token_id.first().copied()),
        padding_token_id: configured("pad", config.pad_token_id),
        unknown_token_id: configured("unk", parts.unk),
        model: parts.model,
        pre: Some(parts.pre),
        tokens: parts.tokens,
        token_type: parts.token_types,
        scores: parts.scores,
        merges: parts.merges,
        add_bos_token: Some(parts.add_bos),
        add_eos_token: None,
        add_space_prefix: None,
        chat_template: folder.chat_template.clone(),
    })
}

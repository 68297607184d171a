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
    let found = without_tokens(folder);
    let has_row = |id: &u32| (*id as usize) < folder.config.vocab_size;
    Ok(GgufTokenizer {
        bos_token_id: found.bos_token_id.or(parts.bos.filter(has_row)),
        unknown_token_id: found.unknown_token_id.or(parts.unk.filter(has_row)),
        model: parts.model,
        pre: Some(parts.pre),
        tokens: parts.tokens,
        token_type: parts.token_types,
        scores: parts.scores,
        merges: parts.merges,
        add_bos_token: Some(parts.add_bos),
        ..found
    })
}

/// The chat template, and the ids with a role as far as the model has rows for them.
pub fn without_tokens(folder: &Folder) -> GgufTokenizer {
    let config: &Config = &folder.config;
    // Rows without a token get one that is never used.
    let has_row = |id: &u32| (*id as usize) < config.vocab_size;
    let known = |role: &str, id: Option<u32>| id_of(role, folder).or(id).filter(has_row);
    let mut stops = stop_token_ids(folder).into_iter();
    GgufTokenizer {
        model: "none".to_string(),
        bos_token_id: known("bos", config.bos_token_id),
        eos_token_id: stops.next(),
        eot_token_id: stops.next(),
        eom_token_id: stops.next(),
        padding_token_id: known("pad", config.pad_token_id),
        unknown_token_id: known("unk", None),
        chat_template: folder.chat_template.clone(),
        ..GgufTokenizer::default()
    }
}

/// The ids that end a completion: the tokenizer's own first, then as `config.json` has them.
pub fn stop_token_ids(folder: &Folder) -> Vec<u32> {
    let has_row = |id: &u32| (*id as usize) < folder.config.vocab_size;
    let own = id_of("eos", folder).into_iter();
    let all = own.chain(folder.config.eos_token_id.iter().copied());
    let mut ids = Vec::new();
    for id in all.chain(folder.stop_token_ids.iter().copied()) {
        if has_row(&id) && !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

fn id_of(role: &str, folder: &Folder) -> Option<u32> {
    let tokenizer = folder.tokenizer.as_ref()?;
    tokenizer.token_to_id(folder.special_token(role))
}

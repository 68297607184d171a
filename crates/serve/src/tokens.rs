//! `/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's shapes.

use serde_json::{Value, json};

use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::logprobs::token_text;
use crate::sampling::token_ids;
use crate::service::App;

/// Of a text, or of a chat's prompt.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn tokenize(app: &App, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::new(body, "")?;
    app.check_model(&fields)?;
    let tokens = match fields.text("prompt")? {
        Some(text) => {
            let mut tokens = app.tokens(text)?;
            if fields.flag("add_special_tokens")?.unwrap_or(true) {
                app.put_first(&mut tokens);
            }
            tokens
        }
        None if fields.value("messages").is_some() => {
            Conversation::read(&fields, app.tool_format)?
                .prompt(app)?
                .token_ids
        }
        None => return Err(fields.error("prompt", "is required, or `messages`")),
    };
    let with_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let texts = || tokens.iter().map(|&id| token_text(&app.tokenizer, id));
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": app.served.max_model_len,
        "token_strs": with_texts.then(|| texts().collect::<Vec<_>>()),
        "tokens": tokens,
    }))
}

/// # Errors
/// Whatever is wrong with the request.
pub fn detokenize(app: &App, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::new(body, "")?;
    app.check_model(&fields)?;
    let tokens = fields.required("tokens")?;
    let Some(list) = tokens.as_array() else {
        return Err(wrong("tokens", tokens, "a list of token ids"));
    };
    let ids = token_ids(list, "tokens", app.served.vocab_size)?;
    Ok(json!({"prompt": app.tokenizer.decode(&ids, false)?}))
}

/// What a client needs to make prompts by itself.
pub fn tokenizer_info(app: &App) -> Value {
    let served = &app.served;
    let token = |text: &str| match text.is_empty() {
        true => Value::Null,
        false => Value::from(text),
    };
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(&served.bos_token),
        "eos_token": token(&served.eos_token),
        "pad_token": token(&served.eos_token),
        "add_bos_token": served.first_token_id.is_some(),
        "model_max_length": served.max_model_len,
        "vocab_size": served.vocab_size,
        "chat_template": served.chat_template,
    })
}

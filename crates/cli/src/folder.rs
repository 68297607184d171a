//! A model as its users see it: configuration, tokenizer, chat template, stop tokens. All of these
//! come from here, whether the model is a folder or a GGUF file.

use std::path::{Path, PathBuf};

use model::{Checkpoint, Config};
use serde_json::Value;
use text::{ChatTemplate, Message, Tokenizer};

use crate::failure::Failure;
use crate::gguf_tokenizer;

/// `tokenizer_config.json` and its like are small; larger ones are refused.
pub const LARGEST_SETTINGS: u64 = 16 << 20;
/// `latest` of a run's directory is one short line.
const LARGEST_LATEST: u64 = 64;
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Of tokens: `bos_token` and so on in `tokenizer_config.json`.
const ROLES: [&str; 4] = ["bos", "eos", "pad", "unk"];

/// Everything of a model but the weights.
pub struct Folder {
    /// The folder, or the GGUF file.
    pub path: PathBuf,
    pub config: Config,
    /// The headers of the weights, which fit the configuration, until someone takes them; `None`
    /// too where there are no weights.
    checkpoint: Option<Checkpoint>,
    pub tokenizer: Option<Tokenizer>,
    /// Why there is no tokenizer.
    pub no_tokenizer: String,
    /// The Jinja text.
    pub chat_template: Option<String>,
    /// The file that it is in.
    pub template_path: PathBuf,
    /// Texts of the tokens that have a role, such as `("eos", "</s>")`; roles without one are left
    /// out.
    pub special_tokens: Vec<(&'static str, String)>,
    /// What a text that is no chat begins with: by `add_bos_token`, or by the tokenizer's own
    /// post-processor.
    pub first_token_id: Option<u32>,
    /// Token ids that end a completion: of `config.json` and `generation_config.json`.
    pub stop_token_ids: Vec<u32>,
    /// Such ids for which the model has no row.
    pub stray_stop_token_ids: Vec<u32>,
}

/// What else than the configuration a model comes with.
struct Texts {
    /// Or why there is none.
    tokenizer: Result<Tokenizer, String>,
    chat_template: Option<String>,
    template_path: PathBuf,
    special_tokens: Vec<(&'static str, String)>,
    /// Whether a text begins with the "bos" token, where the files say.
    add_bos_token: Option<bool>,
    stop_token_ids: Vec<u32>,
}

impl Folder {
    /// Opens a model folder, the newest checkpoint of a run's directory, or a GGUF file.
    ///
    /// # Errors
    /// A file is missing or bad, or the weights do not fit the configuration. Weights, tokenizer
    /// and template may be absent.
    pub fn open(path: &Path) -> Result<Folder, Failure> {
        let mut path = newest_checkpoint(path)?;
        let checkpoint = match has_weights(&path) {
            true => Some(Checkpoint::open(&path)?),
            false => None,
        };
        let config = match &checkpoint {
            Some(found) => found.config().clone(),
            None => Config::read(&path)?,
        };
        let texts = match &checkpoint {
            Some(found) if found.is_gguf() => {
                path = found.path().to_path_buf();
                gguf_texts(found)?
            }
            _ => folder_texts(&path, &config)?,
        };
        let mut stop_token_ids = config.eos_token_id.clone();
        stop_token_ids.extend(&texts.stop_token_ids);
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        let has_row = |&id: &u32| (id as usize) < config.vocab_size;
        let (stop_token_ids, stray_stop_token_ids) = stop_token_ids.into_iter().partition(has_row);
        let first_token_id = first_token_id(&texts, &config);
        let (tokenizer, no_tokenizer) = match texts.tokenizer {
            Ok(tokenizer) => (Some(tokenizer), String::new()),
            Err(reason) => (None, reason),
        };
        Ok(Folder {
            path,
            checkpoint,
            tokenizer,
            no_tokenizer,
            chat_template: texts.chat_template,
            template_path: texts.template_path,
            first_token_id,
            special_tokens: texts.special_tokens,
            stop_token_ids,
            stray_stop_token_ids,
            config,
        })
    }

    /// The headers of the weights, where there are weights.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// The same, to make a model of; what [`Folder::checkpoint`] gives is gone then.
    ///
    /// # Errors
    /// There are no weights.
    pub fn take_checkpoint(&mut self) -> Result<Checkpoint, Failure> {
        match self.checkpoint.take() {
            Some(checkpoint) => Ok(checkpoint),
            // Says what is missing.
            None => Ok(Checkpoint::open(&self.path)?),
        }
    }

    /// Whether one file holds all of it.
    pub fn is_gguf(&self) -> bool {
        self.path.is_file()
    }

    /// The text of the token with some role, such as `eos`; empty where there is none.
    pub fn special_token(&self, role: &str) -> &str {
        let found = self.special_tokens.iter().find(|(name, _)| *name == role);
        found.map_or("", |(_, text)| text)
    }

    /// # Errors
    /// The folder has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let path = match self.is_gguf() {
                true => self.path.clone(),
                false => self.path.join(TOKENIZER),
            };
            Failure::input(&path, &self.no_tokenizer, "add one, or give token ids")
        })
    }

    /// The prompt of one user message by the chat template.
    ///
    /// # Errors
    /// There is no template, or it fails or gives nothing.
    pub fn chat_prompt(&self, user: &str) -> Result<String, Failure> {
        let prompt = self.conversation_prompt(&[Message::new("user", user)]);
        prompt.map_err(|failure| match self.chat_template {
            Some(_) => failure,
            None => failure.advise("leave out --chat, or add a template"),
        })
    }

    /// The prompt of a conversation by the chat template.
    ///
    /// # Errors
    /// There is no template, or it fails or gives nothing.
    pub fn conversation_prompt(&self, messages: &[Message]) -> Result<String, Failure> {
        let Some(template) = &self.chat_template else {
            let cause = "has no `chat_template`";
            let advice = "add a template, or complete texts with `bruchteil generate`";
            return Err(Failure::input(&self.template_path, cause, advice));
        };
        let messages: Vec<Message> = messages.iter().map(|said| self.protected(said)).collect();
        let [bos, eos] = ["bos", "eos"].map(|role| self.special_token(role));
        let prompt = ChatTemplate::new(template)
            .and_then(|template| template.render(&messages, true, bos, eos))
            .map_err(|error| Failure::text(&self.template_path, error))?;
        match prompt.is_empty() {
            true => Err(self.empty_prompt()),
            false => Ok(prompt),
        }
    }

    /// What stands for a control token in the template is text when a user writes it.
    fn protected(&self, message: &Message) -> Message {
        let mut message = message.clone();
        if let (Some(tokenizer), Some(content)) = (&self.tokenizer, &message.content)
            && message.role != "assistant"
        {
            message.content = Some(tokenizer.protect(content));
        }
        message
    }

    /// The template gives nothing that a model could go on from.
    pub fn empty_prompt(&self) -> Failure {
        let cause = "the chat template gives a prompt without tokens";
        let advice = "mend the template, or leave out --chat";
        Failure::input(&self.template_path, cause, advice)
    }

    /// The ids of a text that is no chat: with the token that the tokenizer puts first, unless the
    /// text begins with it already.
    ///
    /// # Errors
    /// The tokenizer cannot handle the text.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, text::Error> {
        let mut token_ids = tokenizer.encode(text)?;
        if let Some(first) = self.first_token_id
            && token_ids.first() != Some(&first)
        {
            token_ids.insert(0, first);
        }
        Ok(token_ids)
    }

    /// Refuses ids that the model has no row for.
    ///
    /// # Errors
    /// What is wrong, without saying where the ids came from.
    pub fn check_token_ids(&self, token_ids: &[u32]) -> Result<(), String> {
        let vocab_size = self.config.vocab_size;
        match token_ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(id) => Err(format!(
                "token id {id} is out of range: the model's ids are 0 to {}",
                vocab_size - 1
            )),
            None => Ok(()),
        }
    }
}

/// Whether there is anything that could be weights, readable or not.
fn has_weights(path: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else {
        return true;
    };
    const ENDINGS: [&str; 7] = [
        ".safetensors",
        ".safetensors.index.json",
        ".gguf",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
    ];
    entries.flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().to_lowercase();
        ENDINGS.iter().any(|ending| name.ends_with(ending))
    })
}

/// From the files beside the weights.
fn folder_texts(dir: &Path, config: &Config) -> Result<Texts, Failure> {
    let tokenizer = match read_text(dir, TOKENIZER, text::MAX_TOKENIZER_BYTES)? {
        Some(json) => Ok(Tokenizer::from_json(&json)
            .map_err(|error| Failure::text(&dir.join(TOKENIZER), error))?),
        None => Err("there is no such file".to_string()),
    };
    let settings = read_json(dir, TOKENIZER_CONFIG)?.unwrap_or_default();
    let generation = read_json(dir, "generation_config.json")?.unwrap_or_default();
    let map = read_json(dir, "special_tokens_map.json")?.unwrap_or_default();
    let special_tokens = special_tokens(&[&settings, &map], tokenizer.as_ref().ok(), config);
    let (chat_template, template_path) = chat_template(dir, &settings)?;
    Ok(Texts {
        tokenizer,
        chat_template,
        template_path,
        special_tokens: named(special_tokens),
        add_bos_token: settings["add_bos_token"].as_bool(),
        stop_token_ids: token_ids(&generation["eos_token_id"]),
    })
}

/// By the first of the files that says anything of a role, if only that there is no such token;
/// else by the ids of `config.json`.
fn special_tokens(
    files: &[&Value],
    tokenizer: Option<&Tokenizer>,
    config: &Config,
) -> [(&'static str, String); 4] {
    ROLES.map(|role| {
        let key = format!("{role}_token");
        let said = files.iter().find_map(|file| file.get(&key));
        let id = match role {
            "bos" => config.bos_token_id,
            "eos" => config.eos_token_id.first().copied(),
            _ => None,
        };
        let text = match said {
            Some(token) => Some(token_text(token)),
            None => id.and_then(|id| tokenizer?.id_to_token(id)),
        };
        (role, text.unwrap_or_default())
    })
}

/// From the keys of a GGUF file. A tokenizer of a kind that is not known here is no error: the
/// model can be run on token ids.
fn gguf_texts(checkpoint: &Checkpoint) -> Result<Texts, Failure> {
    let found = checkpoint.gguf_tokenizer()?.unwrap_or_default();
    let tokenizer = match found.tokens.is_empty() {
        true => Err("holds no tokenizer".to_string()),
        false => gguf_tokenizer::tokenizer_json(&found)
            .and_then(|json| Tokenizer::from_json(&json))
            .map_err(|error| error.to_string()),
    };
    let text = |id: Option<u32>| {
        let token = id.and_then(|id| found.tokens.get(id as usize));
        token.cloned().unwrap_or_default()
    };
    let ids = [
        found.bos_token_id,
        found.eos_token_id,
        found.padding_token_id,
        found.unknown_token_id,
    ];
    let special_tokens = std::array::from_fn(|role| (ROLES[role], text(ids[role])));
    Ok(Texts {
        tokenizer,
        special_tokens: named(special_tokens),
        add_bos_token: found.add_bos_token,
        stop_token_ids: [found.eos_token_id, found.eot_token_id, found.eom_token_id]
            .into_iter()
            .flatten()
            .collect(),
        chat_template: found.chat_template,
        template_path: checkpoint.path().to_path_buf(),
    })
}

/// The token in front of a text: as in transformers, a flag in the files outweighs the tokenizer's
/// own post-processor.
fn first_token_id(texts: &Texts, config: &Config) -> Option<u32> {
    let tokenizer = texts.tokenizer.as_ref().ok()?;
    let bos = texts.special_tokens.iter().find(|(role, _)| *role == "bos");
    let bos = bos.and_then(|(_, text)| tokenizer.token_to_id(text));
    match texts.add_bos_token {
        Some(true) => bos.or(config.bos_token_id),
        Some(false) => None,
        None => tokenizer.first_token(),
    }
}

/// Those that have a text.
fn named(tokens: [(&'static str, String); 4]) -> Vec<(&'static str, String)> {
    tokens
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .collect()
}

/// `DIR/step-N` where DIR is a run's directory whose file `latest` names it; else DIR itself.
fn newest_checkpoint(dir: &Path) -> Result<PathBuf, Failure> {
    if !dir.is_dir() || dir.join("config.json").exists() {
        return Ok(dir.to_path_buf());
    }
    let latest = read_text(dir, "latest", LARGEST_LATEST)?.unwrap_or_default();
    let step = latest.trim().strip_prefix("step-");
    Ok(match step.and_then(|step| step.parse::<u64>().ok()) {
        Some(step) => dir.join(format!("step-{step}")),
        None => dir.to_path_buf(),
    })
}

/// The JSON object of a file; `None` where there is no such file.
fn read_json(dir: &Path, name: &str) -> Result<Option<Value>, Failure> {
    let Some(text) = read_text(dir, name, LARGEST_SETTINGS)? else {
        return Ok(None);
    };
    let failed = |cause: String| {
        let advice = "fetch or export the file again";
        Failure::input(&dir.join(name), cause, advice)
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(failed("not a JSON object".to_string())),
        Err(error) => Err(failed(format!("not JSON: {error}"))),
    }
}

/// The text of a file; `None` where there is no such file.
fn read_text(dir: &Path, name: &str, largest: u64) -> Result<Option<String>, Failure> {
    let Some(bytes) = model::read_small_file_if_there(dir, name, largest)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let cause = format!("not UTF-8: {}", error.utf8_error());
        Failure::input(&dir.join(name), cause, "fetch or export the file again")
    })?;
    Ok(Some(text))
}

/// The file `chat_template.jinja`, or the field: one text, or several of which `default` counts.
/// And the file in which it is or should be.
fn chat_template(dir: &Path, settings: &Value) -> Result<(Option<String>, PathBuf), Failure> {
    if let Some(text) = read_text(dir, TEMPLATE, LARGEST_SETTINGS)? {
        return Ok((Some(text), dir.join(TEMPLATE)));
    }
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|entry| entry["name"] == "default")?;
        default["template"].as_str().map(str::to_string)
    };
    let text = match &settings["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => named(list),
        _ => None,
    };
    Ok((text, dir.join(TOKENIZER_CONFIG)))
}

/// A token's text, written as a string or as an object with `content`.
fn token_text(value: &Value) -> String {
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.unwrap_or_default().to_string()
}

/// One id or a list of them.
fn token_ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

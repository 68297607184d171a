//! A model folder as its users see it: configuration, tokenizer, chat template, stop tokens.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use model::{Config, Model, Numerics};
use serde_json::Value;
use text::{ChatTemplate, Message, Tokenizer};

use crate::failure::Failure;
use crate::settings::Settings;

/// `tokenizer_config.json` and its like are small; larger ones are refused.
const LARGEST_SETTINGS: u64 = 16 << 20;

/// Everything of a model folder but the weights.
pub struct Folder {
    pub dir: PathBuf,
    pub config: Config,
    pub tokenizer: Option<Tokenizer>,
    /// The Jinja text.
    pub chat_template: Option<String>,
    pub bos_token: String,
    pub eos_token: String,
    /// Token ids that end a completion: of `config.json` and `generation_config.json`.
    pub stop_token_ids: Vec<u32>,
}

impl Folder {
    /// Opens a model folder, or the newest checkpoint of a run's directory.
    ///
    /// # Errors
    /// A file is missing or bad. `tokenizer.json` and the template may be absent.
    pub fn open(dir: &Path) -> Result<Folder, Failure> {
        let dir = &newest_checkpoint(dir);
        let config = Config::read(dir)?;
        let path = dir.join("tokenizer.json");
        let tokenizer = if path.exists() {
            Some(Tokenizer::from_file(&path)?)
        } else {
            None
        };
        let settings = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let generation = read_json(&dir.join("generation_config.json"))?.unwrap_or_default();
        let mut stop_token_ids = config.eos_token_id.clone();
        stop_token_ids.extend(token_ids(&generation["eos_token_id"]));
        stop_token_ids.retain(|&id| (id as usize) < config.vocab_size);
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        Ok(Folder {
            dir: dir.to_path_buf(),
            config,
            tokenizer,
            chat_template: chat_template(dir, &settings)?,
            bos_token: token_text(&settings["bos_token"]),
            eos_token: token_text(&settings["eos_token"]),
            stop_token_ids,
        })
    }

    /// # Errors
    /// The folder has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let path = self.dir.join("tokenizer.json");
            Failure::input(&path, "there is no such file", "add it, or give token ids")
        })
    }

    /// The weights, ready to run. Warns of values that are not finite.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn model(&self, settings: &Settings, backend: &kernels::Cpu) -> Result<Model, Failure> {
        self.model_in(settings.numerics(), settings, backend)
    }

    /// As [`Folder::model`], in the precision of a run.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn model_in(
        &self,
        numerics: Numerics,
        settings: &Settings,
        backend: &kernels::Cpu,
    ) -> Result<Model, Failure> {
        let (model, non_finite) = Model::open(&self.dir, numerics, backend)?;
        for tensor in non_finite {
            settings
                .ui()
                .warn(format_args!("{}: {tensor}", self.dir.display()));
        }
        Ok(model)
    }

    /// The prompt of one user message by the chat template.
    ///
    /// # Errors
    /// There is no template, or it fails.
    pub fn chat_prompt(&self, user: &str) -> Result<String, Failure> {
        let Some(template) = &self.chat_template else {
            let path = self.dir.join("tokenizer_config.json");
            let advice = "leave out --chat, or add a template";
            return Err(Failure::input(&path, "has no `chat_template`", advice));
        };
        let messages = [Message::new("user", user)];
        Ok(ChatTemplate::new(template)?.render(
            &messages,
            true,
            &self.bos_token,
            &self.eos_token,
        )?)
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

/// `DIR/step-N` where DIR is a run's directory whose file `latest` names it; else DIR itself.
fn newest_checkpoint(dir: &Path) -> PathBuf {
    let latest = std::fs::read_to_string(dir.join("latest")).unwrap_or_default();
    let step = latest.trim().strip_prefix("step-");
    match step.and_then(|step| step.parse::<u64>().ok()) {
        Some(step) if !dir.join("config.json").exists() => dir.join(format!("step-{step}")),
        _ => dir.to_path_buf(),
    }
}

/// The JSON object of a file; `None` where there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, Failure> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    let advice = "fetch or export the file again";
    match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(Failure::input(path, "not a JSON object", advice)),
        Err(error) => Err(Failure::input(path, format!("not JSON: {error}"), advice)),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::input(path, format!("cannot be read: {error}"), "check the file")
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = String::new();
    file.take(LARGEST_SETTINGS + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > LARGEST_SETTINGS {
        let cause = format!("larger than {LARGEST_SETTINGS} bytes");
        return Err(Failure::input(
            path,
            cause,
            "check that it is the right file",
        ));
    }
    Ok(Some(text))
}

/// The file `chat_template.jinja`, or the field: one text, or several of which `default` counts.
fn chat_template(dir: &Path, settings: &Value) -> Result<Option<String>, Failure> {
    if let Some(text) = read_text(&dir.join("chat_template.jinja"))? {
        return Ok(Some(text));
    }
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|entry| entry["name"] == "default")?;
        default["template"].as_str().map(str::to_string)
    };
    Ok(match &settings["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => named(list),
        _ => None,
    })
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

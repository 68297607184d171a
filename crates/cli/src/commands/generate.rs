//! `generate`: complete a prompt.

use std::path::PathBuf;

use clap::Args;
use engine::{Request, SamplingParams};
use serde::Serialize;
use text::Tokenizer;

use super::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::generation::{self, Told};
use crate::settings::Settings;
use crate::weights::WeightOptions;

/// Complete a prompt
///
/// With --json: {"prompt_token_ids": [...], "completions": [{"token_ids", "text", "thinking",
/// "answer", "logprobs", "finish_reason"}]}.
#[derive(Args)]
#[command(after_help = "Example:\n  bruchteil generate demo-out/grpo --prompt '69 64 4 20' --chat")]
pub struct Generate {
    /// A Hugging Face model folder, or a GGUF file
    model: PathBuf,
    /// The text to complete
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "token_ids",
        required_unless_present = "token_ids"
    )]
    prompt: Option<String>,
    /// The tokens to complete, such as 1,2,3
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        conflicts_with = "chat"
    )]
    token_ids: Option<Vec<u32>>,
    /// Take the prompt as a user's message and apply the model's chat template
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    sampling: Sampling,
    /// How many completions to draw
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    n: u32,
    #[command(flatten)]
    weights: WeightOptions,
}

#[derive(Args)]
struct Sampling {
    /// Stop after so many tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = temperature)]
    temperature: f32,
    /// Only the likeliest tokens that hold this share together
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    top_p: f32,
    /// Only the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Only tokens at least this share as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    min_p: f32,
    /// Tokens that end a completion [default: what the model folder says]
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    stop_token_ids: Option<Vec<u32>>,
}

/// A temperature from 0 to 100.
pub fn temperature(text: &str) -> Result<f32, String> {
    in_range(text, 100.0)
}

/// A share from 0 to 1.
pub fn share(text: &str) -> Result<f32, String> {
    in_range(text, 1.0)
}

fn in_range(text: &str, limit: f32) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "not a number".to_string())?;
    if (0.0..=limit).contains(&value) {
        Ok(value)
    } else {
        Err(format!("not between 0 and {limit}"))
    }
}

#[derive(Serialize)]
struct Answer {
    prompt_token_ids: Vec<u32>,
    completions: Vec<Told>,
}

impl Generate {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let mut folder = Folder::open(&self.model)?;
        let (prompt_text, prompt) = self.prompt(&folder)?;
        let params = self.params(&folder, settings, prompt.len())?;
        generation::warn_of_unknown_words(folder.tokenizer.as_ref(), settings.ui(), &prompt);
        let backend = settings.backend();
        let numerics = settings.numerics();
        let model = self
            .weights
            .open(&mut folder, numerics, settings, &backend)?;
        let requests = (0..u64::from(self.n))
            .map(|sequence| Request {
                sequence,
                prompt: prompt.clone(),
                params: params.clone(),
            })
            .collect();
        let mut progress = settings.ui().start("generate", u64::from(self.n));
        let completions = generation::generate(&model, &backend, requests, &mut progress)?;
        let tokens: usize = completions
            .iter()
            .map(|completion| completion.token_ids.len())
            .sum();
        progress.finish(&format!("{tokens} tokens"));
        let primed = text::opens_thinking(&prompt_text);
        let tokenizer = folder.tokenizer.as_ref();
        let completions = completions
            .into_iter()
            .map(|completion| Told::new(completion, tokenizer, primed))
            .collect::<Result<Vec<Told>, Failure>>()?;
        if settings.json {
            let prompt_token_ids = prompt;
            return print_json(&Answer {
                prompt_token_ids,
                completions,
            });
        }
        print(&in_words(tokenizer, &prompt_text, &completions)?)
    }

    /// The prompt's text, empty where there is no tokenizer, and its ids.
    fn prompt(&self, folder: &Folder) -> Result<(String, Vec<u32>), Failure> {
        let (text, token_ids) = match (&self.prompt, &self.token_ids) {
            (Some(prompt), _) => {
                let text = match self.chat {
                    true => folder.chat_prompt(prompt)?,
                    false => prompt.clone(),
                };
                let tokenizer = folder.tokenizer()?;
                let token_ids = match self.chat {
                    true => tokenizer.encode(&text)?,
                    false => folder.encode(tokenizer, &text)?,
                };
                (text, token_ids)
            }
            (None, token_ids) => {
                let token_ids = token_ids.clone().unwrap_or_default();
                let text = match &folder.tokenizer {
                    Some(tokenizer) => tokenizer.decode(&token_ids, false)?,
                    None => String::new(),
                };
                (text, token_ids)
            }
        };
        if token_ids.is_empty() && self.chat {
            return Err(folder.empty_prompt());
        }
        if token_ids.is_empty() {
            return Err(Failure::usage(
                "the prompt has no tokens",
                "give at least one",
            ));
        }
        let checked = folder.check_token_ids(&token_ids);
        checked.map_err(|cause| Failure::usage(cause, "give ids of this model, or --prompt"))?;
        Ok((text, token_ids))
    }

    fn params(
        &self,
        folder: &Folder,
        settings: &Settings,
        prompt_len: usize,
    ) -> Result<SamplingParams, Failure> {
        let limit = folder.config.max_position_embeddings;
        let room = limit.saturating_sub(prompt_len);
        let max_tokens = self.sampling.max_tokens.min(room);
        if max_tokens == 0 {
            let cause = format!(
                "no room for a completion: the prompt has {prompt_len} tokens, --max-tokens is {}, \
                 the model takes {limit}",
                self.sampling.max_tokens
            );
            return Err(Failure::usage(
                cause,
                "give a shorter prompt or a larger --max-tokens",
            ));
        }
        let stop_token_ids = self.sampling.stop_token_ids.as_ref();
        Ok(SamplingParams {
            temperature: self.sampling.temperature,
            top_p: self.sampling.top_p,
            top_k: self.sampling.top_k,
            min_p: self.sampling.min_p,
            max_tokens,
            stop_token_ids: stop_token_ids.unwrap_or(&folder.stop_token_ids).clone(),
            seed: settings.seed.unwrap_or(0),
            ..SamplingParams::default()
        })
    }
}

/// What a reader sees: the completion, thinking marked, and in words where the words are ours.
fn in_words(
    tokenizer: Option<&Tokenizer>,
    prompt: &str,
    completions: &[Told],
) -> Result<String, Failure> {
    let problem = tokenizer
        .filter(|tokenizer| generation::speaks_our_words(tokenizer))
        .and_then(|_| generation::recognise(prompt));
    let mut text = String::new();
    for told in completions {
        text += &completion_in_words(told);
        if let (Some((task, problem)), Some(tokenizer)) = (&problem, tokenizer) {
            let raw = tokenizer.decode(&told.token_ids, false)?;
            let verdict = task.verify(problem, &raw);
            text += &format!("\nIn words:\n{}\n", task.explain(problem, &raw));
            text += &format!("Verdict: {}\n", verdict.reason);
        }
    }
    Ok(text)
}

fn completion_in_words(told: &Told) -> String {
    match &told.thinking {
        _ if told.text.is_empty() => {
            let ids: Vec<String> = told.token_ids.iter().map(u32::to_string).collect();
            format!("{}\n", ids.join(","))
        }
        Some(thinking) if told.text.contains(tasks::THINK_CLOSE) => {
            format!("<think> {thinking} </think>\n{}\n", told.answer)
        }
        Some(thinking) => format!("<think> {thinking}\n"),
        None => format!("{}\n", told.text),
    }
}

//! `/v1/completions`: text or tokens gone on with as they are, and scored, as evaluation harnesses
//! ask.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::PromptOutcome;
use serde::Serialize;
use serde_json::Value;
use text::AnswerPiece;

use crate::chat::{Told, finish_words, streaming};
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::{Delta, Finish, Generation, Plan, Reading, Usage};
use crate::logprobs::{TextLogprobs, TextScorer};
use crate::reply::{Head, UsageReply, json_response};
use crate::sampling::{MAX_N, MAX_TOP_LOGPROBS, sampling, token_ids};
use crate::service::{App, Arrival};
use crate::shape::{ToolChoice, grammar, shape};
use crate::stream::{self, Frames};

const MAX_PROMPTS: usize = 512;
/// OpenAI's default where `max_tokens` is not given.
const DEFAULT_TOKENS: u64 = 16;

/// A request that has been read.
pub struct Prepared {
    plan: Plan,
    head: Head,
    voice: Voice,
    stream: bool,
    include_usage: bool,
}

/// What is said of each choice.
struct Voice {
    app: Arc<App>,
    n: usize,
    prompts: Vec<PromptGiven>,
    echo: bool,
    told: Told,
}

#[derive(Clone, Debug)]
struct PromptGiven {
    text: String,
    /// Whether the first token is of the text, and not put in front of it.
    has_first: bool,
    token_ids: Vec<u32>,
}

/// # Errors
/// Whatever is wrong with the request.
pub fn prepare(app: &Arc<App>, body: &Value, arrival: Arrival) -> Result<Prepared, ApiError> {
    let fields = Fields::new(body, "")?;
    app.check_model(&fields)?;
    let n = fields.whole("n", 1..=MAX_N)?.unwrap_or(1) as usize;
    if fields
        .whole("best_of", 1..=MAX_N)?
        .is_some_and(|best_of| best_of as usize != n)
    {
        return Err(fields.error("best_of", "must equal `n` where it is given"));
    }
    for name in ["suffix", "prompt_embeds"] {
        if fields.value(name).is_some_and(|value| value != "") {
            return Err(fields.error(name, "is not supported"));
        }
    }
    let (stream, include_usage) = streaming(&fields)?;
    let mut sampling = sampling(&fields, app, app.fresh_seed(arrival.number))?;
    let logprobs = logprobs(&fields)?;
    sampling.params.top_logprobs = logprobs.unwrap_or(0);
    let echo = fields.flag("echo")?.unwrap_or(false);
    let max_tokens = fields.clamped("max_tokens", 0..=u64::from(u32::MAX))?;
    let max_tokens = max_tokens.unwrap_or(DEFAULT_TOKENS) as usize;
    if max_tokens == 0 && !echo {
        let message = "must be at least 1, or 0 together with `echo`";
        return Err(fields.error("max_tokens", message));
    }
    let structure = shape(&fields, "response_format")?;
    let grammar = grammar(app, structure, &[], &ToolChoice::None, false)?;
    let count = prompt_count(fields.required("prompt")?);
    let places = app.reserve(n * count)?;
    let prompts = prompts(app, &fields)?;
    let head = Head::new(app, "cmpl", arrival, sampling.params.seed);
    let scores_prompt = echo && (logprobs.is_some() || max_tokens == 0);
    let plan = Plan {
        prompts: prompts
            .iter()
            .map(|given| given.token_ids.clone())
            .collect(),
        n,
        sampling,
        max_tokens: Some(max_tokens),
        prompt_logprobs: scores_prompt.then_some(logprobs.unwrap_or(0)),
        reading: Reading::default(),
        thinking: None,
        grammar,
        places,
    };
    let voice = Voice {
        app: Arc::clone(app),
        n,
        prompts,
        echo,
        told: Told {
            logprobs: logprobs.is_some(),
            token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        },
    };
    Ok(Prepared {
        plan,
        head,
        voice,
        stream,
        include_usage,
    })
}

/// A number; some clients send a flag.
fn logprobs(fields: &Fields) -> Result<Option<usize>, ApiError> {
    match fields.value("logprobs") {
        Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(1)),
        _ => {
            let count = fields.whole("logprobs", 0..=MAX_TOP_LOGPROBS)?;
            Ok(count.map(|count| count as usize))
        }
    }
}

/// Without looking at what the prompts are.
fn prompt_count(prompt: &Value) -> usize {
    match prompt {
        Value::Array(list) if !list.iter().all(Value::is_number) => list.len().min(MAX_PROMPTS),
        _ => 1,
    }
}

/// A text, tokens, or a list of either.
fn prompts(app: &App, fields: &Fields) -> Result<Vec<PromptGiven>, ApiError> {
    let prompt = fields.required("prompt")?;
    let list = match prompt {
        Value::String(_) => std::slice::from_ref(prompt),
        Value::Array(list) if list.is_empty() => {
            return Err(fields.error("prompt", "is empty; give at least one token"));
        }
        Value::Array(list) if list.iter().all(Value::is_number) => std::slice::from_ref(prompt),
        Value::Array(list) if list.len() > MAX_PROMPTS => {
            let message = format!("has {} prompts; at most {MAX_PROMPTS}", list.len());
            return Err(fields.error("prompt", message));
        }
        Value::Array(list) => list,
        value => {
            return Err(wrong(
                "prompt",
                value,
                "a string, token ids, or a list of these",
            ));
        }
    };
    list.iter()
        .enumerate()
        .map(|(place, value)| {
            let path = match list.len() {
                1 => "prompt".to_string(),
                _ => format!("prompt[{place}]"),
            };
            one_prompt(app, value, &path)
        })
        .collect()
}

fn one_prompt(app: &App, value: &Value, path: &str) -> Result<PromptGiven, ApiError> {
    let given = match value {
        Value::String(text) => {
            let mut token_ids = app.encode(text)?;
            let has_first = !app.put_first(&mut token_ids);
            PromptGiven {
                text: text.clone(),
                has_first,
                token_ids,
            }
        }
        Value::Array(ids) => {
            let token_ids = token_ids(ids, path, app.served.vocab_size)?;
            PromptGiven {
                text: app.tokenizer.decode(&token_ids, false)?,
                has_first: true,
                token_ids,
            }
        }
        value => return Err(wrong(path, value, "a string or a list of token ids")),
    };
    match given.token_ids.is_empty() {
        true => Err(ApiError::field(path, "is empty; give at least one token")),
        false => Ok(given),
    }
}

/// Generates, and answers at once or as it comes.
///
/// # Errors
/// The engine refuses, or ends.
pub async fn answer(
    app: Arc<App>,
    prepared: Prepared,
    arrival: Arrival,
) -> Result<Response<Body>, ApiError> {
    let Prepared {
        plan,
        head,
        voice,
        stream,
        include_usage,
    } = prepared;
    let mut generation = Generation::start(app, plan, arrival).await?;
    let mut choices = voice.choices();
    if stream {
        let frames = TextFrames {
            head,
            voice,
            choices,
            include_usage,
        };
        return Ok(stream::response(generation, frames));
    }
    while let Some(delta) = generation.next().await {
        let delta = delta?;
        let choice = &mut choices[delta.choice];
        voice.take(choice, &delta);
    }
    let choices = choices.into_iter().enumerate();
    let reply = TextReply {
        head: &head,
        object: "text_completion",
        choices: choices.map(|(index, choice)| choice.reply(index)).collect(),
        usage: Some(UsageReply::from(generation.usage())),
    };
    Ok(json_response(&reply))
}

/// One choice, or what was added to it since it was last told.
#[derive(Default)]
struct TextChoice {
    text: String,
    logprobs: Option<TextScorer>,
    prompt_token_ids: Option<Vec<u32>>,
    token_ids: Option<Vec<u32>>,
    finish: Option<Finish>,
}

impl TextChoice {
    fn reply(mut self, index: usize) -> TextChoiceReply {
        self.told(index)
    }

    /// Gives what is there and keeps what goes on.
    fn told(&mut self, index: usize) -> TextChoiceReply {
        let (finish_reason, stop_reason) = finish_words(self.finish.as_ref());
        TextChoiceReply {
            index,
            text: std::mem::take(&mut self.text),
            logprobs: self.logprobs.as_mut().map(TextScorer::take),
            finish_reason,
            stop_reason,
            prompt_token_ids: self.prompt_token_ids.take(),
            token_ids: self.token_ids.as_mut().map(std::mem::take),
        }
    }
}

impl Voice {
    fn choices(&self) -> Vec<TextChoice> {
        let choice = |prompt: &PromptGiven| TextChoice {
            logprobs: self
                .told
                .logprobs
                .then(|| TextScorer::new(&self.app.tokenizer)),
            prompt_token_ids: self.told.token_ids.then(|| prompt.token_ids.clone()),
            token_ids: self.told.token_ids.then(Vec::new),
            ..TextChoice::default()
        };
        let choices = self.prompts.iter().flat_map(|prompt| {
            let choices = std::iter::repeat_with(move || choice(prompt));
            choices.take(self.n)
        });
        choices.collect()
    }

    fn take(&self, choice: &mut TextChoice, delta: &Delta) {
        if let Some(outcome) = &delta.prompt
            && self.echo
        {
            self.echo(choice, delta.choice, outcome);
        }
        for piece in &delta.answer {
            if let AnswerPiece::Text(text) = piece {
                choice.text += text;
            }
        }
        if let Some(logprobs) = &mut choice.logprobs {
            delta.tokens.iter().for_each(|token| logprobs.token(token));
        }
        if let Some(token_ids) = &mut choice.token_ids {
            token_ids.extend(delta.tokens.iter().map(|token| token.token_id));
        }
        choice.finish = delta.finish.clone();
    }

    fn echo(&self, choice: &mut TextChoice, number: usize, outcome: &PromptOutcome) {
        let prompt = &self.prompts[number / self.n];
        choice.text += &prompt.text;
        if let (Some(logprobs), Some(&first)) = (&mut choice.logprobs, prompt.token_ids.first()) {
            logprobs.prompt(first, prompt.has_first, &outcome.logprobs);
        }
    }
}

#[derive(Serialize)]
struct TextReply<'a> {
    #[serde(flatten)]
    head: &'a Head,
    object: &'static str,
    choices: Vec<TextChoiceReply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageReply>,
}

#[derive(Serialize)]
struct TextChoiceReply {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

struct TextFrames {
    head: Head,
    voice: Voice,
    choices: Vec<TextChoice>,
    include_usage: bool,
}

impl TextFrames {
    fn chunk(&self, choices: Vec<TextChoiceReply>, usage: Option<UsageReply>, out: &mut String) {
        let chunk = TextReply {
            head: &self.head,
            object: "text_completion",
            choices,
            usage,
        };
        stream::data(&chunk, out);
    }
}

impl Frames for TextFrames {
    fn begin(&mut self, _out: &mut String) {}

    fn delta(&mut self, delta: &Delta, out: &mut String) {
        let echoes = self.voice.echo && delta.prompt.is_some();
        if delta.is_silent() && !self.voice.told.every_token() && !echoes {
            return;
        }
        let choice = &mut self.choices[delta.choice];
        self.voice.take(choice, delta);
        let told = choice.told(delta.choice);
        self.chunk(vec![told], None, out);
    }

    fn end(&mut self, usage: Usage, out: &mut String) {
        if self.include_usage {
            self.chunk(Vec::new(), Some(UsageReply::from(usage)), out);
        }
        stream::done(out);
    }

    fn error(&mut self, error: &ApiError, out: &mut String) {
        stream::data(&error.openai(), out);
        stream::done(out);
    }
}

//! `/v1/chat/completions`

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::ScoredToken;
use serde::Serialize;
use serde_json::Value;
use text::AnswerPiece;

use crate::conversation::{Conversation, Prompted};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Delta, Finish, Generation, Plan, Reading, Usage};
use crate::guide::{Shape, Thinking};
use crate::logprobs::{ChatLogprobs, chat_logprobs};
use crate::reply::{Head, UsageReply, json_response};
use crate::sampling::{MAX_N, MAX_TOP_LOGPROBS, Sampling, sampling};
use crate::service::{App, Arrival};
use crate::shape::{ToolChoice, grammar, shape, tool_choice, tool_format};
use crate::stream::{self, Frames};

/// A request that has been read, and what to do with its deltas.
pub struct Prepared {
    plan: Plan,
    head: Head,
    n: usize,
    told: Told,
    stream: bool,
    include_usage: bool,
}

/// What is said of tokens beside their text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    pub logprobs: bool,
    /// vLLM's `return_token_ids`.
    pub token_ids: bool,
}

impl Told {
    /// Whether every token is told of, text or not.
    pub fn every_token(self) -> bool {
        self.logprobs || self.token_ids
    }

    /// The ids, where they are told.
    fn ids(self, tokens: &[ScoredToken]) -> Option<Vec<u32>> {
        let ids = tokens.iter().map(|token| token.token_id);
        self.token_ids.then(|| ids.collect())
    }
}

/// Everything that takes work: reading, rendering, encoding, compiling.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn prepare(app: &App, body: &Value, arrival: Arrival) -> Result<Prepared, ApiError> {
    let fields = Fields::new(body, "")?;
    app.check_model(&fields)?;
    let n = fields.whole("n", 1..=MAX_N)?.unwrap_or(1) as usize;
    if fields
        .whole("best_of", 1..=MAX_N)?
        .is_some_and(|best_of| best_of as usize != n)
    {
        return Err(fields.error("best_of", "must equal `n` where it is given"));
    }
    let (stream, include_usage) = streaming(&fields)?;
    let (logprobs, top_logprobs) = logprobs(&fields)?;
    let mut sampling = sampling(&fields, app, app.fresh_seed(arrival.number))?;
    sampling.params.top_logprobs = top_logprobs;
    let conversation = Conversation::read(&fields, app.tool_format)?;
    let plan = Planned {
        choice: tool_choice(&fields, &conversation.tool_names())?,
        conversation: &conversation,
        n,
        max_tokens: max_tokens(&fields)?,
        structure: shape(&fields, "response_format")?,
        parallel: fields.flag("parallel_tool_calls")?.unwrap_or(true),
        thinking_budget: thinking_budget(&fields)?,
    };
    let head = Head::new(app, "chatcmpl", arrival, sampling.params.seed);
    let plan = plan.plan(app, sampling)?;
    Ok(Prepared {
        plan,
        head,
        n,
        told: Told {
            logprobs,
            token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        },
        stream,
        include_usage,
    })
}

/// A conversation to be gone on with, in any of the APIs that have one.
pub struct Planned<'a> {
    pub conversation: &'a Conversation,
    pub n: usize,
    pub max_tokens: Option<usize>,
    pub choice: ToolChoice,
    /// The structure asked for, and the field that asks.
    pub structure: Option<(String, Shape)>,
    /// Whether several tools may be called at once.
    pub parallel: bool,
    /// Tokens of thinking at most.
    pub thinking_budget: Option<usize>,
}

impl Planned<'_> {
    /// # Errors
    /// Whatever is wrong with tools or structure; the queue is full.
    pub fn plan(self, app: &App, sampling: Sampling) -> Result<Plan, ApiError> {
        let format = tool_format(app, &self.choice)?;
        let tools = &self.conversation.tools;
        let grammar = grammar(app, self.structure, tools, &self.choice, self.parallel)?;
        let places = app.reserve(self.n)?;
        let prompted = self.conversation.prompt(app)?;
        let thinking = thinking(app, &prompted, self.thinking_budget)?;
        let splits_thinking = prompted.primed || may_open_thinking(app, &prompted);
        Ok(Plan {
            prompts: vec![prompted.token_ids],
            n: self.n,
            sampling,
            max_tokens: self.max_tokens,
            prompt_logprobs: None,
            reading: Reading {
                splits_thinking,
                primed: prompted.primed,
                tools: format.map(|format| (format, self.conversation.tool_names())),
            },
            thinking,
            grammar,
            places,
        })
    }
}

/// After how many tokens the thinking has to end: vLLM's name of the field, and Anthropic's.
///
/// # Errors
/// It is no number.
pub fn thinking_budget(fields: &Fields) -> Result<Option<usize>, ApiError> {
    let mut budget = fields.clamped("thinking_token_budget", 0..=u64::from(u32::MAX))?;
    if let Some(object) = fields.object("thinking")?
        && let Some(tokens) = object.clamped("budget_tokens", 0..=u64::from(u32::MAX))?
    {
        budget = Some(tokens);
    }
    Ok(budget.map(|tokens| tokens as usize))
}

/// Whether a completion may begin with `<think>`: the model has a token for it, and the prompt has
/// not closed the thinking already. Other models' texts are passed on as they are.
fn may_open_thinking(app: &App, prompted: &Prompted) -> bool {
    !prompted.has_thought && app.tokenizer.token_to_id("<think>").is_some()
}

/// How `</think>` ends the thinking, where the prompt opens it.
fn thinking(
    app: &App,
    prompted: &Prompted,
    budget: Option<usize>,
) -> Result<Option<Thinking>, ApiError> {
    let close = app.tokenizer.encode("</think>")?;
    if close.is_empty() || prompted.has_thought {
        return Ok(None);
    }
    Ok(Some(Thinking {
        primed: prompted.primed,
        opens: app.tokenizer.encode("<think>")?,
        close,
        budget,
    }))
}

/// `stream`, and whether the usage comes at the end.
///
/// # Errors
/// They are no flags.
pub fn streaming(fields: &Fields) -> Result<(bool, bool), ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?;
    let include_usage = match &options {
        Some(options) => options.flag("include_usage")?.unwrap_or(false),
        None => false,
    };
    Ok((stream, include_usage))
}

fn logprobs(fields: &Fields) -> Result<(bool, usize), ApiError> {
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields
        .whole("top_logprobs", 0..=MAX_TOP_LOGPROBS)?
        .unwrap_or(0);
    if top > 0 && !logprobs {
        return Err(fields.error("top_logprobs", "needs `logprobs` to be true"));
    }
    Ok((logprobs, top as usize))
}

/// Under the new name or the old one; more than there is room for is as much as there is.
fn max_tokens(fields: &Fields) -> Result<Option<usize>, ApiError> {
    let range = 1..=u64::from(u32::MAX);
    let new = fields.clamped("max_completion_tokens", range.clone())?;
    let old = fields.clamped("max_tokens", range)?;
    Ok(new.or(old).map(|tokens| tokens as usize))
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
        n,
        told,
        stream,
        include_usage,
    } = prepared;
    let prompt_token_ids = told.token_ids.then(|| plan.prompts.concat());
    let mut generation = Generation::start(Arc::clone(&app), plan, arrival).await?;
    if stream {
        let frames = ChatFrames {
            app,
            head,
            n,
            told,
            include_usage,
            prompt_token_ids,
        };
        return Ok(stream::response(generation, frames));
    }
    let mut choices: Vec<Whole> = (0..n).map(|_| Whole::default()).collect();
    while let Some(delta) = generation.next().await {
        let delta = delta?;
        choices[delta.choice].take(delta);
    }
    let reply = ChatReply {
        head: &head,
        object: "chat.completion",
        choices: choices
            .into_iter()
            .enumerate()
            .map(|(index, whole)| whole.choice(index, &app, &head, told))
            .collect(),
        usage: Some(UsageReply::from(generation.usage())),
        prompt_token_ids,
    };
    Ok(json_response(&reply))
}

/// An answer as it adds up.
#[derive(Debug, Default)]
pub struct Whole {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<(String, String)>,
    pub tokens: Vec<ScoredToken>,
    pub finish: Option<Finish>,
}

impl Whole {
    pub fn take(&mut self, delta: Delta) {
        self.reasoning += &delta.reasoning;
        for piece in delta.answer {
            match piece {
                AnswerPiece::Text(text) => self.content += &text,
                AnswerPiece::CallBegins { name, .. } => self.calls.push((name, String::new())),
                AnswerPiece::CallArguments { fragment, .. } => {
                    if let Some((_, arguments)) = self.calls.last_mut() {
                        *arguments += &fragment;
                    }
                }
            }
        }
        self.tokens.extend(delta.tokens);
        self.finish = delta.finish.or(self.finish.take());
    }

    fn choice(self, index: usize, app: &App, head: &Head, told: Told) -> ChatChoice {
        let logprobs = || chat_logprobs(&app.tokenizer, &self.tokens);
        let (logprobs, token_ids) = (told.logprobs.then(logprobs), told.ids(&self.tokens));
        let tool_calls: Vec<Call> = self
            .calls
            .into_iter()
            .enumerate()
            .map(|(place, (name, arguments))| Call {
                index: None,
                id: Some(call_id(head, index, place)),
                kind: Some("function"),
                function: Function {
                    name: Some(name),
                    arguments,
                },
            })
            .collect();
        let (finish_reason, stop_reason) = finish_words(self.finish.as_ref());
        let nothing_said = self.content.is_empty() && !tool_calls.is_empty();
        ChatChoice {
            index,
            message: Message {
                role: Some("assistant"),
                content: (!nothing_said).then_some(self.content),
                reasoning: some(&self.reasoning),
                reasoning_content: some(&self.reasoning),
                tool_calls,
            },
            logprobs,
            finish_reason,
            stop_reason,
            token_ids,
        }
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_string())
}

/// `finish_reason`, and the stop string that was met.
pub fn finish_words(finish: Option<&Finish>) -> (Option<&'static str>, Option<String>) {
    match finish {
        None => (None, None),
        Some(Finish::Stop) => (Some("stop"), None),
        Some(Finish::StopString(stop)) => (Some("stop"), Some(stop.clone())),
        Some(Finish::Length) => (Some("length"), None),
        Some(Finish::ToolCalls) => (Some("tool_calls"), None),
    }
}

/// Unique, and the same for the same call of a stream and of a whole answer.
pub fn call_id(head: &Head, choice: usize, place: usize) -> String {
    format!("call_{}_{choice}_{place}", head.token())
}

#[derive(Serialize)]
struct ChatReply<'a, C> {
    #[serde(flatten)]
    head: &'a Head,
    object: &'static str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageReply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// A message, or what is added to one.
#[derive(Default, Serialize)]
struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// vLLM's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    /// DeepSeek's name for the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
struct Call {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

struct ChatFrames {
    app: Arc<App>,
    head: Head,
    n: usize,
    told: Told,
    include_usage: bool,
    /// Until they are told, with the first chunk.
    prompt_token_ids: Option<Vec<u32>>,
}

impl ChatFrames {
    fn chunk(&mut self, choices: Vec<ChunkChoice>, usage: Option<UsageReply>, out: &mut String) {
        let chunk = ChatReply {
            head: &self.head,
            object: "chat.completion.chunk",
            choices,
            usage,
            prompt_token_ids: self.prompt_token_ids.take(),
        };
        stream::data(&chunk, out);
    }

    fn piece(&mut self, index: usize, delta: Message, out: &mut String) {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        self.chunk(vec![choice], None, out);
    }

    fn call(&self, choice: usize, piece: &AnswerPiece) -> Call {
        match piece {
            AnswerPiece::CallBegins { index, name } => Call {
                index: Some(*index),
                id: Some(call_id(&self.head, choice, *index)),
                kind: Some("function"),
                function: Function {
                    name: Some(name.clone()),
                    arguments: String::new(),
                },
            },
            AnswerPiece::CallArguments { index, fragment } => Call {
                index: Some(*index),
                id: None,
                kind: None,
                function: Function {
                    name: None,
                    arguments: fragment.clone(),
                },
            },
            AnswerPiece::Text(_) => unreachable!("text is no call"),
        }
    }
}

impl Frames for ChatFrames {
    fn begin(&mut self, out: &mut String) {
        for index in 0..self.n {
            let delta = Message {
                role: Some("assistant"),
                content: Some(String::new()),
                ..Message::default()
            };
            self.piece(index, delta, out);
        }
    }

    fn delta(&mut self, delta: &Delta, out: &mut String) {
        if delta.is_silent() && !self.told.every_token() {
            return;
        }
        let index = delta.choice;
        let mut messages = Vec::new();
        if !delta.reasoning.is_empty() {
            messages.push(Message {
                reasoning: some(&delta.reasoning),
                reasoning_content: some(&delta.reasoning),
                ..Message::default()
            });
        }
        for piece in &delta.answer {
            messages.push(match piece {
                AnswerPiece::Text(text) => Message {
                    content: Some(text.clone()),
                    ..Message::default()
                },
                call => Message {
                    tool_calls: vec![self.call(index, call)],
                    ..Message::default()
                },
            });
        }
        // The last of them carries the rest.
        let last = messages.pop().unwrap_or_default();
        for message in messages {
            self.piece(index, message, out);
        }
        let told = self.told;
        let logprobs = || chat_logprobs(&self.app.tokenizer, &delta.tokens);
        let (finish_reason, stop_reason) = finish_words(delta.finish.as_ref());
        let choice = ChunkChoice {
            index,
            delta: last,
            logprobs: told.logprobs.then(logprobs),
            finish_reason,
            stop_reason,
            token_ids: told.ids(&delta.tokens),
        };
        self.chunk(vec![choice], None, out);
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

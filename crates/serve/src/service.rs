//! What is served: a model with its texts, under its names.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};
use text::{ChatTemplate, Tokenizer, ToolFormat};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::body::Bodies;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::guard::Guard;
use crate::guide::Grammars;
use crate::metrics::Metrics;
use crate::worker::{Log, Place, Worker};

/// Longer texts are not encoded: the tokenizer needs some 300 bytes of memory for each.
const MAX_TEXT_BYTES: usize = 5 << 18;

/// Everything of a model but the weights.
pub struct Served {
    /// The first is the one that answers name; all are accepted.
    pub names: Vec<String>,
    pub tokenizer: Tokenizer,
    /// The Jinja text, where the model has one.
    pub chat_template: Option<String>,
    pub bos_token: String,
    pub eos_token: String,
    /// What a text that is no chat begins with.
    pub first_token_id: Option<u32>,
    /// Ids that end a completion.
    pub stop_token_ids: Vec<u32>,
    pub vocab_size: usize,
    /// Tokens that prompt and completion may have together.
    pub max_model_len: usize,
    /// Prompts that the page offers.
    pub examples: Vec<String>,
    /// Seconds since 1970, for templates that write a date; `None` hides it from them.
    pub now: Option<fn() -> i64>,
    /// Mixed into the seeds of requests that bring none.
    pub base_seed: u64,
}

/// How far the server is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Requests under way go on, new ones are refused.
    Draining,
    Ended,
}

/// What every handler sees.
pub struct App {
    pub served: Served,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Option<ChatTemplate>,
    pub tool_format: Option<ToolFormat>,
    /// Or why this tokenizer allows no grammars.
    pub grammars: Result<Grammars, String>,
    pub worker: Arc<Worker>,
    pub metrics: Metrics,
    pub guard: Guard,
    pub bodies: Bodies,
    pub phase: watch::Receiver<Phase>,
    pub request_time: Duration,
    /// Told of every response begun, where that is wanted.
    pub request_log: Option<Log>,
    /// Where requests are read; without one, beside everything else.
    pub reading: Option<Handle>,
    /// Bytes of text that the context cannot hold, whatever its tokens; where that is known.
    largest_text: Option<usize>,
    requests: AtomicU64,
}

impl App {
    /// # Errors
    /// The chat template does not parse.
    pub fn new(
        served: Served,
        worker: Arc<Worker>,
        guard: Guard,
        phase: watch::Receiver<Phase>,
        request_time: Duration,
        request_log: Option<Log>,
    ) -> Result<App, text::Error> {
        let template = served.chat_template.as_deref();
        let chat_template = template.map(ChatTemplate::new).transpose()?;
        let stops = &served.stop_token_ids;
        Ok(App {
            tokenizer: Arc::new(served.tokenizer.clone()),
            tool_format: template.and_then(ToolFormat::of_template),
            grammars: Grammars::new(&served.tokenizer, served.vocab_size, stops),
            chat_template,
            worker,
            metrics: Metrics::default(),
            guard,
            bodies: Bodies::new(),
            phase,
            request_time,
            request_log,
            reading: None,
            largest_text: largest_text(&served),
            requests: AtomicU64::new(0),
            served,
        })
    }

    pub fn reading_on(self, reading: Handle) -> App {
        App {
            reading: Some(reading),
            ..self
        }
    }

    /// The ids of a text, of a chat's prompt or of any other.
    ///
    /// # Errors
    /// 400 where the tokenizer fails, or the text is longer than the context can be.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        match self.largest_text {
            Some(largest) if text.len() > largest => {
                let limit = self.served.max_model_len;
                let bytes = text.len();
                let message = format!(
                    "the prompt has {bytes} bytes, which are more tokens than the {limit} that \
                     the context holds; shorten the prompt"
                );
                Err(ApiError::bad_request(message).with_code("context_length_exceeded"))
            }
            _ => self.tokens(text),
        }
    }

    /// The ids of a text of any number of tokens.
    ///
    /// # Errors
    /// 413 beyond [`MAX_TEXT_BYTES`], 400 where the tokenizer fails.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        if text.len() > MAX_TEXT_BYTES {
            let bytes = text.len();
            let message =
                format!("the text to encode has {bytes} bytes; at most {MAX_TEXT_BYTES} are read");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(self.tokenizer.encode(text)?)
    }

    /// Puts the token in front that a text which is no chat begins with, unless it is there already
    /// or the model has none. Whether it was put there.
    pub fn put_first(&self, token_ids: &mut Vec<u32>) -> bool {
        match self.served.first_token_id {
            Some(first) if token_ids.first() != Some(&first) => {
                token_ids.insert(0, first);
                true
            }
            _ => false,
        }
    }

    pub fn name(&self) -> &str {
        self.served.names.first().map_or("model", String::as_str)
    }

    /// # Errors
    /// 404 if the request names another model.
    pub fn check_model(&self, fields: &Fields) -> Result<(), ApiError> {
        match fields.text("model")? {
            Some(name) if !self.served.names.iter().any(|own| own == name) => {
                let shown: String = name.escape_debug().take(100).collect();
                let message = format!(
                    "there is no model `{shown}` here; this server has `{}`",
                    self.served.names.join("`, `")
                );
                let error = ApiError::new(StatusCode::NOT_FOUND, message);
                Err(ApiError {
                    param: Some("model".to_string()),
                    ..error.with_code("model_not_found")
                })
            }
            _ => Ok(()),
        }
    }

    /// Numbers requests, for their ids.
    pub fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// The seed of a request that brings none: never the same twice, and told in the answer.
    pub fn fresh_seed(&self, request: u64) -> u64 {
        // SplitMix64's finalizer; 53 bits survive every JSON reader.
        let mut z = self.served.base_seed ^ request.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 11
    }

    /// # Errors
    /// 429 when the queue has no room, 503 on the way out.
    pub fn reserve(&self, sequences: usize) -> Result<Vec<Place>, ApiError> {
        if *self.phase.borrow() > Phase::Serving {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        let places = self.worker.places();
        if sequences > places {
            let message = format!("asks for {sequences} sequences; at most {places} fit at once");
            return Err(ApiError::field("n", message));
        }
        self.worker.reserve(sequences).ok_or_else(|| {
            let taken = self.worker.places_taken();
            ApiError::busy(format!(
                "the queue is full: {taken} of {places} sequences are under way; try again"
            ))
        })
    }

    /// Seconds since 1970, 0 where there is no clock.
    pub fn created(&self) -> i64 {
        self.served.now.map_or(0, |now| now())
    }

    /// The entry of `/v1/models`.
    pub fn model_card(&self, name: &str) -> Value {
        json!({
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "bruchteil",
            "root": self.name(),
            "max_model_len": self.served.max_model_len,
            "limits": {
                "n": crate::sampling::MAX_N,
                "top_logprobs": crate::sampling::MAX_TOP_LOGPROBS,
                "stop": crate::sampling::MAX_STOPS,
                "body_bytes": crate::body::MAX_BODY_BYTES,
                "sequences": self.worker.places(),
            },
            "examples": self.served.examples,
        })
    }
}

/// No token has more bytes than the longest, and normalizing shortens a text to a third at most.
fn largest_text(served: &Served) -> Option<usize> {
    let ids = 0..served.tokenizer.id_bound();
    let lengths = ids.map(|id| {
        served
            .tokenizer
            .token_bytes(id)
            .map_or(0, |bytes| bytes.len())
    });
    let longest = lengths
        .max()
        .filter(|_| served.tokenizer.has_token_bytes())?;
    served.max_model_len.checked_mul(3 * longest)
}

/// When a request came, and the number it got.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub number: u64,
    pub salt: u64,
    pub client: u64,
}

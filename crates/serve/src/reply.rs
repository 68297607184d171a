//! What every answer of OpenAI's shape begins and ends with.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use serde::Serialize;

use crate::generation::Usage;
use crate::service::{App, Arrival};

/// Which program, in the field that OpenAI has for it.
const FINGERPRINT: &str = concat!("bruchteil-", env!("CARGO_PKG_VERSION"));

#[derive(Clone, Debug, Serialize)]
pub struct Head {
    pub id: String,
    pub created: i64,
    pub model: String,
    system_fingerprint: &'static str,
    /// The request again with this seed gives this answer again; as it was given, if it was.
    seed: i64,
}

impl Head {
    pub fn new(app: &App, prefix: &str, arrival: Arrival, seed: u64) -> Head {
        Head {
            // The same number never comes twice in a process, and hardly in two.
            id: format!("{prefix}-{:014x}", app.fresh_seed(!arrival.number)),
            created: app.created(),
            model: app.name().to_string(),
            system_fingerprint: FINGERPRINT,
            seed: seed.cast_signed(),
        }
    }

    #[cfg(test)]
    pub fn made_up(prefix: &str) -> Head {
        Head {
            id: format!("{prefix}-1"),
            created: 0,
            model: "small".to_string(),
            system_fingerprint: FINGERPRINT,
            seed: 1,
        }
    }

    /// The part of the id that is the request's own.
    pub fn token(&self) -> &str {
        self.id
            .rsplit_once('-')
            .map_or(&self.id, |(_, token)| token)
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct UsageReply {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct CompletionDetails {
    reasoning_tokens: usize,
}

impl From<Usage> for UsageReply {
    fn from(usage: Usage) -> UsageReply {
        UsageReply {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cached_tokens,
            },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: usage.reasoning_tokens,
            },
        }
    }
}

pub fn json_response(value: &impl Serialize) -> Response<Body> {
    let json = serde_json::to_string(value).expect("responses have string keys only");
    let mut response = Response::new(Body::from(json));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

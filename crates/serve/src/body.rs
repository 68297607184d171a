//! Bodies of requests: bounded in bytes, in time and in how many large ones there are at once.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::ApiError;

/// Larger bodies are refused. A context of 160,000 tokens is below 1 MB of text.
pub const MAX_BODY_BYTES: usize = 4 << 20;
/// Bodies beyond this need one of [`LARGE_AT_ONCE`] places to be read on, and one of
/// [`LARGE_TURNS`] before anything is made of them: then memory has a bound, and small ones always
/// find a thread.
const LARGE_BODY_BYTES: usize = 64 << 10;
const LARGE_AT_ONCE: usize = 16;
const LARGE_TURNS: usize = 1;
/// A body that has not come in this time is given up; the rest of a large one, in this.
const BODY_TIME: Duration = Duration::from_secs(30);
const LARGE_BODY_TIME: Duration = Duration::from_secs(10);
/// How long a large body waits for its place.
const PLACE_TIME: Duration = Duration::from_secs(15);

/// Reads bodies.
pub struct Bodies {
    large: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// A body, and the place that it holds if it is large.
pub struct Received {
    pub bytes: Vec<u8>,
    place: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub fn new() -> Bodies {
        Bodies {
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            turns: Arc::new(Semaphore::new(LARGE_TURNS)),
        }
    }

    /// Waits until something may be made of a body; what it gives is held meanwhile.
    pub async fn turn(&self, received: &Received) -> Option<OwnedSemaphorePermit> {
        match received.place {
            Some(_) => Arc::clone(&self.turns).acquire_owned().await.ok(),
            None => None,
        }
    }

    /// The bytes of a JSON body.
    ///
    /// # Errors
    /// 415 for another type or an encoding, 413 beyond [`MAX_BODY_BYTES`], 408 where it comes too
    /// slowly, 429 where too many large ones are there.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Received, ApiError> {
        check_type(headers)?;
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > MAX_BODY_BYTES) {
            return Err(too_large());
        }
        let mut body = Limited::new(body, MAX_BODY_BYTES);
        let mut received = Received {
            bytes: Vec::new(),
            place: None,
        };
        let mut deadline = Instant::now() + BODY_TIME;
        while let Some(frame) = timeout_at(deadline, body.frame())
            .await
            .map_err(|_| slow())?
        {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => received.bytes.extend_from_slice(&data),
                // Trailers, which say nothing here.
                Ok(Err(_)) => {}
                Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
                Err(_) => return Err(ApiError::bad_request("the body ended before its length")),
            }
            // Only what has come counts, so that promises hold no place.
            if received.place.is_none() && received.bytes.len() > LARGE_BODY_BYTES {
                received.place = Some(self.place().await?);
                deadline = Instant::now() + LARGE_BODY_TIME;
            }
        }
        Ok(received)
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = timeout(PLACE_TIME, Arc::clone(&self.large).acquire_owned()).await;
        let full = || {
            let message = format!(
                "{LARGE_AT_ONCE} large requests are being read already; try again, or send less \
                 than {LARGE_BODY_BYTES} bytes"
            );
            ApiError::busy(message)
        };
        place.ok().and_then(Result::ok).ok_or_else(full)
    }
}

fn slow() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")
}

/// # Errors
/// The bytes are no JSON, or nested more than 127 deep.
pub fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is no valid JSON: {error}")))
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    let content_type = headers.get(header::CONTENT_TYPE);
    let essence = content_type.and_then(|value| value.to_str().ok()?.split(';').next());
    match essence.map(|essence| essence.trim().to_ascii_lowercase()) {
        Some(essence) if essence == "application/json" => {}
        _ => return unsupported("send the body as `content-type: application/json`"),
    }
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            unsupported("send the body without a content-encoding")
        }
        _ => Ok(()),
    }
}

fn too_large() -> ApiError {
    let message = format!("the body is larger than {MAX_BODY_BYTES} bytes; send less");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

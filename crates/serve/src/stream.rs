//! Server-sent events: every API has its frames, and all share how they reach the client.

use std::fmt::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Response, header};
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use crate::error::ApiError;
use crate::generation::{Delta, Generation, Usage};

/// A comment goes out after so long without anything, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A write has about this many bytes at most.
const WRITE_BYTES: usize = 16 << 10;

/// How an API writes the course of a generation.
pub trait Frames: Send + Unpin + 'static {
    fn begin(&mut self, out: &mut String);
    fn delta(&mut self, delta: &Delta, out: &mut String);
    fn end(&mut self, usage: Usage, out: &mut String);
    fn error(&mut self, error: &ApiError, out: &mut String);
}

/// `data: {…}` and an empty line.
pub fn data(value: &impl Serialize, out: &mut String) {
    let json = serde_json::to_string(value).expect("responses have string keys only");
    write!(out, "data: {json}\n\n").expect("a string takes all there is");
}

/// How the older two of OpenAI's APIs end a stream.
pub fn done(out: &mut String) {
    *out += "data: [DONE]\n\n";
}

/// [`data`] with the event's name before.
pub fn event(name: &str, value: &impl Serialize, out: &mut String) {
    writeln!(out, "event: {name}").expect("a string takes all there is");
    data(value, out);
}

/// The response that streams a generation.
pub fn response<F: Frames>(generation: Generation, frames: F) -> Response<Body> {
    let mut response = Response::new(Body::new(Stream {
        generation,
        frames,
        text: String::new(),
        begun: false,
        ended: false,
        keep_alive: Box::pin(sleep(KEEP_ALIVE)),
    }));
    let headers = response.headers_mut();
    let stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, stream);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Stream<F> {
    generation: Generation,
    frames: F,
    text: String,
    begun: bool,
    ended: bool,
    keep_alive: Pin<Box<Sleep>>,
}

impl<F: Frames> Stream<F> {
    /// Writes whatever there is by now.
    fn fill(&mut self, cx: &mut Context) {
        if !self.begun {
            self.begun = true;
            self.frames.begin(&mut self.text);
        }
        while !self.ended && self.text.len() < WRITE_BYTES {
            match self.generation.poll_delta(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(delta))) => self.frames.delta(&delta, &mut self.text),
                Poll::Ready(Some(Err(error))) => {
                    self.frames.error(&error, &mut self.text);
                    self.ended = true;
                }
                Poll::Ready(None) => {
                    self.frames.end(self.generation.usage(), &mut self.text);
                    self.ended = true;
                }
            }
        }
    }
}

impl<F: Frames> HttpBody for Stream<F> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        this.fill(cx);
        if this.text.is_empty() && !this.ended && this.keep_alive.as_mut().poll(cx).is_ready() {
            this.text += ": still here\n\n";
        }
        if !this.text.is_empty() {
            this.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
            let text = std::mem::take(&mut this.text);
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))));
        }
        match this.ended {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }
}

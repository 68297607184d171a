//! Requests read as the server reads them, without a socket: for tests and fuzzing.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;

use crate::error::ApiError;
use crate::guard::{Access, Guard};
use crate::service::{App, Arrival, Phase, Served};
use crate::worker::{Log, Machine, Worker};
use crate::{Error, body, chat, completions, messages, responses, tokens};

/// Sequences that a request may ask for.
const PLACES: usize = 128;

/// Reads requests up to where the engine would take them over: JSON, fields, conversations,
/// templates, encoding, structures.
pub struct RequestReader {
    app: Arc<App>,
    worker: Arc<Worker>,
    thread: Option<JoinHandle<()>>,
}

impl RequestReader {
    /// The machine's thread is started, and computes nothing for these requests.
    ///
    /// # Errors
    /// The chat template does not parse.
    pub fn new(machine: Machine, served: Served) -> Result<RequestReader, Error> {
        let log: Log = Arc::new(|_| {});
        let (worker, thread) = Worker::start(machine, PLACES, log);
        let (_, phases) = watch::channel(Phase::Serving);
        let guard = Guard::new(Access::default());
        let time = Duration::from_secs(1);
        let app = App::new(served, Arc::clone(&worker), guard, phases, time, None);
        Ok(RequestReader {
            app: Arc::new(app.map_err(Error::Template)?),
            worker,
            thread: Some(thread),
        })
    }

    /// The body of a request that is posted to a path.
    ///
    /// # Errors
    /// Status and body of the answer that refuses it.
    pub fn read(&self, path: &str, bytes: &[u8]) -> Result<(), (u16, Value)> {
        let arrival = Arrival {
            at: Instant::now(),
            number: self.app.next_request(),
            salt: 0,
            client: 0,
        };
        let read = |body: Value| match path {
            "/v1/chat/completions" => chat::prepare(&self.app, &body, arrival).map(drop),
            "/v1/completions" => completions::prepare(&self.app, &body, arrival).map(drop),
            "/v1/responses" => responses::prepare(&self.app, &body, arrival).map(drop),
            "/v1/messages" => messages::prepare(&self.app, &body, arrival).map(drop),
            "/v1/messages/count_tokens" => messages::count_tokens(&self.app, &body).map(drop),
            "/tokenize" => tokens::tokenize(&self.app, &body).map(drop),
            "/detokenize" => tokens::detokenize(&self.app, &body).map(drop),
            _ => Err(ApiError::bad_request("nothing is posted to this path")),
        };
        let shape = match path.starts_with("/v1/messages") {
            true => ApiError::anthropic,
            false => ApiError::openai,
        };
        let outcome = body::parse(bytes).and_then(read);
        outcome.map_err(|error| (error.status.as_u16(), shape(&error)))
    }
}

impl Drop for RequestReader {
    fn drop(&mut self) {
        self.worker.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told by its own thread.
            let _ = thread.join();
        }
    }
}

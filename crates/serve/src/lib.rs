//! A model behind the OpenAI API: the only crate that knows HTTP and the shapes of its JSON.
//!
//! One thread computes ([`Machine`]); what is asked of it comes in and goes out through channels.
//! Connections are served by a few threads that never compute: reading JSON, rendering templates,
//! encoding and compiling grammars happen beside them.
//!
//! # What an answer depends on
//! The weights, the request and its seed, to the byte. Not other requests, the cache, drafts, how
//! tokens were batched, whether it was streamed, or threads.
#![forbid(unsafe_code)]

mod accept;
mod blocks;
mod body;
mod chat;
mod check;
mod completions;
mod conversation;
mod error;
mod fields;
mod generation;
mod guard;
pub mod guide;
mod logprobs;
mod messages;
mod metrics;
mod page;
mod reply;
mod responses;
mod routes;
mod sampling;
mod service;
mod shape;
mod stream;
mod tokens;
mod worker;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::sleep;

use accept::Connections;
use guard::Guard;
use service::{App, Phase};
use worker::{Condition, Worker};

pub use check::RequestReader;
pub use guard::Access;
pub use service::Served;
pub use worker::{Log, Machine};

/// Threads that serve connections.
const SERVING_THREADS: usize = 2;
/// Threads on which requests are read, at most; and how far they stand behind those that compute,
/// so that a large request does not slow what is under way.
const READING_THREADS: usize = 4;
const READING_NICENESS: i32 = 10;
/// How often the server looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);
/// After the end of the drain, for the last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    pub access: Access,
    /// Sequences that may run and wait together; more are refused with 429.
    pub places: usize,
    /// The longest a request may take.
    pub request_time: Duration,
    /// How long requests under way may go on after the word to stop.
    pub drain_time: Duration,
    /// A line for every response begun: method, path, status and time; nothing of what was said.
    pub log_requests: bool,
}

/// Why a server could not start, or ended by itself.
#[derive(Debug)]
pub enum Error {
    /// The chat template does not parse.
    Template(text::Error),
    /// The system gives no threads, or the socket is unusable.
    System(std::io::Error),
    /// The engine broke down twice.
    Engine,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Template(error) => write!(f, "{error}"),
            Error::System(error) => write!(f, "the server cannot run: {error}"),
            Error::Engine => write!(f, "the engine broke down twice; this is a bug, report it"),
        }
    }
}

impl std::error::Error for Error {}

/// Serves on a socket until `stop` says so, then lets requests under way finish in bounded time.
/// `ready` is called once the model has answered.
///
/// # Errors
/// See [`Error`].
pub fn serve(
    listener: TcpListener,
    machine: Machine,
    served: Served,
    options: Options,
    log: Log,
    ready: impl FnOnce(SocketAddr),
    stop: impl Fn() -> bool,
) -> Result<(), Error> {
    let (runtime, reading) = runtimes().map_err(Error::System)?;
    let farewell = Arc::clone(&log);
    let request_log = options.log_requests.then(|| Arc::clone(&log));
    let (worker, thread) = Worker::start(machine, options.places, log);
    let (phase, phases) = watch::channel(Phase::Serving);
    let guard = Guard::new(options.access.clone());
    let app = App::new(
        served,
        Arc::clone(&worker),
        guard,
        phases.clone(),
        options.request_time,
        request_log,
    )
    .map(|app| app.reading_on(reading.handle().clone()))
    .map_err(Error::Template);
    let outcome = app.and_then(|app| {
        runtime.block_on(async {
            listener.set_nonblocking(true).map_err(Error::System)?;
            let address = listener.local_addr().map_err(Error::System)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::System)?;
            let connections = Connections::new();
            let router = routes::router(Arc::new(app));
            let serving = connections.accept(listener, router, phases);
            let watching = async {
                while worker.condition() == Condition::Starting {
                    sleep(LOOK).await;
                }
                ready(address);
                while !stop() && worker.condition() != Condition::Broken {
                    sleep(LOOK).await;
                }
                let _ = phase.send(Phase::Draining);
            };
            tokio::join!(serving, watching);
            drained(&connections, &worker, options.drain_time, &farewell).await;
            worker.stop();
            let _ = phase.send(Phase::Ended);
            connections.closed(LAST_WORDS).await;
            match worker.condition() {
                Condition::Broken => Err(Error::Engine),
                _ => Ok(()),
            }
        })
    });
    worker.stop();
    // A thread that is stuck in a step must not keep the process.
    reading.shutdown_timeout(LAST_WORDS);
    runtime.shutdown_timeout(LAST_WORDS);
    match worker.condition() {
        Condition::Stuck => {}
        _ => drop(thread.join()),
    }
    outcome
}

/// For connections, and for the requests that come through them.
fn runtimes() -> std::io::Result<(Runtime, Runtime)> {
    let serving = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVING_THREADS)
        .enable_all()
        .build()?;
    let reading = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(READING_THREADS)
        .on_thread_start(|| {
            // Where the system refuses, requests are read at the priority of all else.
            let _ = rustix::process::nice(READING_NICENESS);
        })
        .build()?;
    Ok((serving, reading))
}

/// Waits until all connections are closed, or nothing that remains open is waited for, or the time
/// is over.
async fn drained(connections: &Connections, worker: &Worker, within: Duration, log: &Log) {
    if worker.places_taken() > 0 {
        log(&format!(
            "stopping after {} sequences under way, in {} seconds at most; a second signal ends \
             at once",
            worker.places_taken(),
            within.as_secs()
        ));
    }
    let end = Instant::now() + within;
    let mut quiet_since = Instant::now();
    while Instant::now() < end && quiet_since.elapsed() < LAST_WORDS {
        if connections.closed(LOOK).await {
            return;
        }
        if worker.places_taken() > 0 {
            quiet_since = Instant::now();
        }
    }
}

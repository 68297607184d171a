//! A conversation with a server.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use text::Piece;

use super::{Question, STOPPED};
use crate::failure::{FAILURE, Failure, Outcome};
use crate::remote::{End, Remote, Said};

const PATH: &str = "chat/completions";
/// How often the wish to stop is looked at while the server says nothing.
const LOOK: Duration = Duration::from_millis(50);
/// Pieces that wait to be shown; where the terminal is slower, the server waits.
const WAITING: usize = 256;

pub struct Server {
    remote: Arc<Remote>,
    model: String,
}

impl Server {
    pub fn new(remote: Remote, model: String) -> Server {
        let remote = Arc::new(remote);
        Server { remote, model }
    }

    pub fn name(&self) -> &str {
        &self.model
    }

    /// As [`super::Partner::answer`]. A thread reads, for reading cannot be interrupted. It ends
    /// with the next piece that nobody takes, and the connection with it.
    pub fn answer(
        &mut self,
        question: &Question,
        stop: &dyn Fn() -> bool,
        hear: &mut dyn FnMut(Piece) -> Outcome,
    ) -> Result<End, Failure> {
        let body = self.body(question);
        let remote = Arc::clone(&self.remote);
        let (sender, receiver) = mpsc::sync_channel(WAITING);
        thread::spawn(move || {
            if let Err(failure) = read(&remote, &body, &sender) {
                // Nobody listens where the user has ended the answer.
                let _ = sender.send(Err(failure));
            }
        });
        loop {
            if stop() {
                return Ok(End {
                    finish_reason: STOPPED.to_string(),
                    usage: None,
                });
            }
            match receiver.recv_timeout(LOOK) {
                Ok(Ok(Said::Piece(piece))) => hear(piece)?,
                Ok(Ok(Said::End(end))) => return Ok(end),
                Ok(Err(failure)) => return Err(failure),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let cause = "reading the server's answer failed";
                    return Err(Failure::new(FAILURE, cause, "ask again"));
                }
            }
        }
    }

    fn body(&self, question: &Question) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": question.messages,
            "seed": question.seed,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        question.knobs.write(&mut body);
        body
    }
}

/// Passes on what the server says, as long as somebody listens.
fn read(
    remote: &Remote,
    body: &Value,
    sender: &SyncSender<Result<Said, Failure>>,
) -> Result<(), Failure> {
    let mut stream = remote.stream(PATH, body)?;
    loop {
        let said = stream
            .next()
            .map_err(|words| remote.failure(PATH, words, "ask again, or look at its log"))?;
        let ends = matches!(said, Said::End(_));
        if sender.send(Ok(said)).is_err() || ends {
            return Ok(());
        }
    }
}

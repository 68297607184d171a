//! A conversation in the terminal, with a model here or with a server.

mod conversation;
mod display;
mod knobs;
mod local;
mod server;
mod session;

use text::{Message, Piece};

pub use knobs::Knobs;
pub use local::Local;
pub use server::Server;
pub use session::{Manner, Session, whole_input};

use crate::failure::{Failure, Outcome};
use crate::remote::End;

/// Who answers.
pub enum Partner {
    Local(Box<Local>),
    Server(Server),
}

/// What is asked. The same question gives the same bytes from a model here and from our server
/// with that model.
pub struct Question<'a> {
    pub messages: &'a [Message],
    pub knobs: &'a Knobs,
    pub seed: u64,
}

/// An answer, whole or as far as it came.
#[derive(Debug, Default, PartialEq)]
pub struct Reply {
    pub thinking: String,
    pub answer: String,
    pub end: End,
}

/// The finish reason where the user ended an answer.
pub const STOPPED: &str = "stopped";

impl Partner {
    /// The model's name, or its place.
    pub fn name(&self) -> &str {
        match self {
            Partner::Local(local) => local.name(),
            Partner::Server(server) => server.name(),
        }
    }

    /// Answers until the model is done or `stop` says so; `say` is given the answer as it comes.
    ///
    /// # Errors
    /// The conversation does not fit the model, the server fails, or `say` does.
    pub fn answer(
        &mut self,
        question: &Question,
        stop: &dyn Fn() -> bool,
        say: &mut dyn FnMut(&Piece) -> Outcome,
    ) -> Result<Reply, Failure> {
        let mut reply = Reply::default();
        let mut hear = |piece: Piece| {
            if piece == Piece::default() {
                return Ok(());
            }
            reply.thinking += &piece.reasoning;
            reply.answer += &piece.answer;
            say(&piece)
        };
        let end = match self {
            Partner::Local(local) => local.answer(question, stop, &mut hear),
            Partner::Server(server) => server.answer(question, stop, &mut hear),
        }?;
        reply.end = end;
        Ok(reply)
    }
}

//! What is asked of the engine, and what may be chosen on the way.

use crate::params::SamplingParams;

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Names its stream of chance: the same number, seed and prompt give the same completion.
    pub sequence: u64,
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
}

/// A request with what surrounds it.
pub struct Submission {
    pub request: Request,
    /// Blocks of the prefix cache are shared among equal salts only.
    pub cache_salt: u64,
    /// Score the prompt: the log-probability of each of its tokens but the first given those
    /// before, of the [`Raw`](crate::LogprobsOf::Raw) distribution, with so many alternatives
    /// beside it. `max_tokens` may be 0 then.
    pub prompt_logprobs: Option<usize>,
    pub constraint: Option<Box<dyn Constraint>>,
    /// Whose request it is: clients take turns, and the requests of one are taken in their order.
    pub client: u64,
}

impl From<Request> for Submission {
    /// Without a salt, scores, a constraint or a client of its own.
    fn from(request: Request) -> Submission {
        Submission {
            request,
            cache_salt: 0,
            prompt_logprobs: None,
            constraint: None,
            client: 0,
        }
    }
}

/// What the next token may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed<'a> {
    Any,
    /// Bit `id % 32` of word `id / 32` is set for ids that are allowed; ids beyond the words are
    /// not. A mask that allows no id of the vocabulary ends the completion, as `Nothing` does.
    Only(&'a [u32]),
    /// This token; one outside the vocabulary ends the completion, as `Nothing` does.
    Exactly(u32),
    /// The completion is whole: it ends here, for the reason [`Stop`](crate::FinishReason::Stop)
    /// and without a further token.
    Nothing,
}

/// What may be generated, token by token: a grammar, a budget, a form to be filled in. Each belongs
/// to one sequence. It must not panic, which would end the step of all sequences, and its answers
/// may depend on what it was told alone.
pub trait Constraint: Send {
    /// Asked once before each token is chosen.
    fn allowed(&mut self) -> Allowed<'_>;

    /// Told every token that was chosen, stop tokens included, and no other.
    fn accept(&mut self, token_id: u32);
}

/// A sequence's number among all that an engine ever took; the smaller the older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(crate) u64);

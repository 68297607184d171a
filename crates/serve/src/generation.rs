//! One request's sequences, from the engine's tokens to text: decoded, cut at stop strings, split
//! into thinking, answer and tool calls. Token by token, so that what a client sees does not depend
//! on how many tokens a step gave.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::StatusCode;
use engine::{
    FinishReason, Output, PromptOutcome, Request, SamplingParams, ScoredToken, Submission,
};
use text::{
    AnswerPiece, ReasoningSplitter, StopMatcher, StreamDecoder, Tokenizer, ToolCallSplitter,
    ToolFormat,
};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{Sleep, sleep_until};

use crate::error::ApiError;
use crate::guide::{Compiled, Failure, Guide, Thinking};
use crate::metrics::End;
use crate::sampling::Sampling;
use crate::service::{App, Arrival};
use crate::worker::{Event, Numbered, Place, Ticket, UNREAD_STEPS};

/// What a request asks of the engine, in full.
pub struct Plan {
    pub prompts: Vec<Vec<u32>>,
    /// Sequences of each prompt.
    pub n: usize,
    pub sampling: Sampling,
    /// As many as fit where none is said.
    pub max_tokens: Option<usize>,
    /// Score the prompts, with so many alternatives.
    pub prompt_logprobs: Option<usize>,
    pub reading: Reading,
    pub thinking: Option<Thinking>,
    pub grammar: Option<Compiled>,
    pub places: Vec<Place>,
}

impl Plan {
    /// What watches over one sequence, where anything has to.
    fn guide(&self, tokenizer: &Arc<Tokenizer>) -> Option<Guide> {
        let has_budget = |thinking: &Thinking| thinking.budget.is_some();
        let needed = self.grammar.is_some() || self.thinking.as_ref().is_some_and(has_budget);
        needed.then(|| {
            let guide = Guide::new(self.thinking.clone(), self.grammar.clone());
            guide.by_text(Arc::clone(tokenizer))
        })
    }
}

/// How text is made of tokens.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Split thinking from the answer; `primed` if the prompt ends inside `<think>`.
    pub splits_thinking: bool,
    pub primed: bool,
    /// Look for calls of these tools.
    pub tools: Option<(ToolFormat, Vec<String>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// With this stop string.
    StopString(String),
    Length,
    ToolCalls,
}

/// What a token, or the end, added to one choice.
#[derive(Debug, Default)]
pub struct Delta {
    pub choice: usize,
    /// With the first of a choice.
    pub prompt: Option<PromptOutcome>,
    pub reasoning: String,
    pub answer: Vec<AnswerPiece>,
    /// The tokens behind it, a stop token too.
    pub tokens: Vec<ScoredToken>,
    pub finish: Option<Finish>,
}

impl Delta {
    /// Whether a client that wants no log-probabilities has nothing to learn from it.
    pub fn is_silent(&self) -> bool {
        self.reasoning.is_empty() && self.answer.is_empty() && self.finish.is_none()
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    pub reasoning_tokens: usize,
}

/// A request under way. Dropping it cancels what is left of it.
pub struct Generation {
    app: Arc<App>,
    events: Receiver<Numbered>,
    choices: Vec<Choice>,
    /// Choices of each prompt.
    n: usize,
    ready: VecDeque<Delta>,
    open: usize,
    usage: Usage,
    arrival: Arrival,
    deadline: Pin<Box<Sleep>>,
    failed: bool,
}

impl Generation {
    /// Hands all sequences in, and waits until the engine has looked at them.
    ///
    /// # Errors
    /// 400 if a prompt is too long or anything else that the engine refuses.
    pub async fn start(
        app: Arc<App>,
        mut plan: Plan,
        arrival: Arrival,
    ) -> Result<Generation, ApiError> {
        let count = plan.prompts.len() * plan.n;
        let (sink, events) = mpsc::channel(UNREAD_STEPS * count);
        let prompt_tokens = plan.prompts.iter().map(Vec::len).sum();
        let mut places = std::mem::take(&mut plan.places).into_iter();
        let mut choices = Vec::with_capacity(count);
        for (place, prompt) in plan.prompts.iter().enumerate() {
            let max_tokens = room(&app, prompt.len(), plan.max_tokens)?;
            for i in 0..plan.n {
                let number = place * plan.n + i;
                let guide = plan.guide(&app.tokenizer);
                let failure = guide.as_ref().map(Guide::failure);
                let params = SamplingParams {
                    max_tokens,
                    ..plan.sampling.params.clone()
                };
                let submission = Submission {
                    request: Request {
                        sequence: i as u64,
                        prompt: prompt.clone(),
                        params,
                    },
                    cache_salt: arrival.salt,
                    prompt_logprobs: plan.prompt_logprobs,
                    constraint: guide.map(|guide| Box::new(guide) as _),
                    client: arrival.client,
                };
                let taken = places.next().expect("a place for every sequence");
                let ticket = app.worker.submit(submission, number, sink.clone(), taken);
                let stop = plan.sampling.stop.clone();
                choices.push(Choice::new(&app, ticket, &plan.reading, stop, failure));
            }
        }
        drop(sink);
        let deadline = tokio::time::Instant::from_std(arrival.at + app.request_time);
        let mut generation = Generation {
            events,
            open: choices.len(),
            n: plan.n,
            choices,
            ready: VecDeque::new(),
            usage: Usage {
                prompt_tokens,
                ..Usage::default()
            },
            arrival,
            deadline: Box::pin(sleep_until(deadline)),
            failed: false,
            app,
        };
        generation.accepted(count).await?;
        Ok(generation)
    }

    /// Waits for the word on every sequence; outputs of the first may come before the last's.
    async fn accepted(&mut self, count: usize) -> Result<(), ApiError> {
        let mut accepted = 0;
        while accepted < count {
            match self.events.recv().await {
                Some((_, Event::Accepted)) => accepted += 1,
                Some((_, Event::Refused(error))) => return Err(refused(&error)),
                Some((number, Event::Output(output))) => self.read(number, output)?,
                Some((_, Event::Ended(reason))) => return Err(ended(reason)),
                None => return Err(ended("the server is shutting down")),
            }
        }
        Ok(())
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The next delta; `None` after the last. After an error nothing more comes.
    pub fn poll_delta(&mut self, cx: &mut Context) -> Poll<Option<Result<Delta, ApiError>>> {
        loop {
            if self.failed {
                return Poll::Ready(None);
            }
            if let Some(delta) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(delta)));
            }
            if self.open == 0 {
                return Poll::Ready(None);
            }
            if self.deadline.as_mut().poll(cx).is_ready() {
                let seconds = self.app.request_time.as_secs();
                let message = format!("the request took longer than {seconds} seconds");
                return self.fail(ApiError::new(StatusCode::REQUEST_TIMEOUT, message));
            }
            let error = match self.events.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some((number, Event::Output(output)))) => {
                    self.read(number, output).err()
                }
                Poll::Ready(Some((_, Event::Ended(reason)))) => Some(ended(reason)),
                Poll::Ready(Some((_, Event::Refused(error)))) => Some(refused(&error)),
                Poll::Ready(Some((_, Event::Accepted))) => None,
                Poll::Ready(None) => {
                    let message = "the stream was not read fast enough and was ended";
                    Some(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
                }
            };
            if let Some(error) = error {
                return self.fail(error);
            }
        }
    }

    /// The next delta, to be awaited.
    pub async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        std::future::poll_fn(|cx| self.poll_delta(cx)).await
    }

    fn fail(&mut self, error: ApiError) -> Poll<Option<Result<Delta, ApiError>>> {
        self.failed = true;
        self.ready.clear();
        Poll::Ready(Some(Err(error)))
    }

    /// Makes deltas of a step's output.
    fn read(&mut self, number: usize, output: Output) -> Result<(), ApiError> {
        let choice = &mut self.choices[number];
        if choice.ticket.is_none() {
            // Computed before the engine heard that a stop string had ended it.
            return Ok(());
        }
        choice.time(&self.app, &self.arrival, output.tokens.len());
        // A prompt counts once, however many sequences go on from it.
        if let Some(prompt) = &output.prompt
            && number.is_multiple_of(self.n)
        {
            self.usage.cached_tokens += prompt.cached_tokens;
        }
        let mut prompt = output.prompt;
        let last = output.tokens.len();
        for (place, token) in output.tokens.into_iter().enumerate() {
            let ends = (place + 1 == last)
                .then_some(output.finish_reason)
                .flatten();
            let (delta, thought) = choice.token(number, token, ends, &self.app)?;
            self.usage.completion_tokens += 1;
            self.usage.reasoning_tokens += usize::from(thought);
            let finished = delta.finish.is_some();
            self.ready.push_back(Delta {
                prompt: prompt.take(),
                ..delta
            });
            if finished {
                break;
            }
        }
        if let Some(reason) = output.finish_reason
            && last == 0
        {
            let delta = choice.end_without_token(number, reason, prompt)?;
            self.ready.push_back(delta);
        }
        if let Some(finish) = self.ready.back().and_then(|delta| delta.finish.as_ref()) {
            choice.ticket = None;
            self.open -= 1;
            let end = match finish {
                Finish::Stop | Finish::StopString(_) => End::Stop,
                Finish::Length => End::Length,
                Finish::ToolCalls => End::ToolCalls,
            };
            self.app.metrics.finished(end, self.arrival.at.elapsed());
        }
        Ok(())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let end = match self.failed {
            true => End::Error,
            false => End::Abort,
        };
        for _ in 0..self.open {
            self.app.metrics.finished(end, self.arrival.at.elapsed());
        }
    }
}

/// Tokens that a completion of such a prompt may have.
fn room(app: &App, prompt_tokens: usize, wanted: Option<usize>) -> Result<usize, ApiError> {
    let limit = app.served.max_model_len;
    let room = limit.saturating_sub(prompt_tokens);
    if room == 0 && wanted != Some(0) || prompt_tokens > limit {
        let message = format!(
            "the prompt has {prompt_tokens} tokens and the context holds {limit}, prompt and \
             completion together; shorten the prompt"
        );
        return Err(ApiError::bad_request(message).with_code("context_length_exceeded"));
    }
    Ok(wanted.unwrap_or(room).min(room))
}

fn refused(error: &engine::Error) -> ApiError {
    ApiError::bad_request(error)
}

fn ended(reason: &str) -> ApiError {
    ApiError::unavailable(reason)
}

/// One sequence.
struct Choice {
    /// Until its end.
    ticket: Option<Ticket>,
    decoder: StreamDecoder<Arc<Tokenizer>>,
    stop: StopMatcher,
    stops: Vec<String>,
    splitter: Option<ReasoningSplitter>,
    tools: Option<ToolCallSplitter>,
    calls: usize,
    last_token: Option<Instant>,
    /// Why the guide ended the completion, if it did.
    failure: Option<Failure>,
}

impl Choice {
    fn new(
        app: &App,
        ticket: Ticket,
        reading: &Reading,
        stops: Vec<String>,
        failure: Option<Failure>,
    ) -> Choice {
        // The marks of tool calls may be special tokens.
        let skip_special = reading.tools.is_none();
        let tools = reading.tools.clone();
        Choice {
            ticket: Some(ticket),
            decoder: StreamDecoder::new(Arc::clone(&app.tokenizer), skip_special),
            stop: StopMatcher::new(stops.clone()),
            stops,
            splitter: reading
                .splits_thinking
                .then(|| ReasoningSplitter::new(reading.primed)),
            tools: tools.map(|(format, names)| ToolCallSplitter::new(format, names)),
            calls: 0,
            last_token: None,
            failure,
        }
    }

    fn time(&mut self, app: &App, arrival: &Arrival, tokens: usize) {
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => app.metrics.first_token(now - arrival.at),
            Some(last) => app.metrics.next_token((now - last) / tokens as u32),
        }
    }

    /// Takes a token; also tells whether it belongs to the thinking.
    fn token(
        &mut self,
        number: usize,
        token: ScoredToken,
        ends: Option<FinishReason>,
        app: &App,
    ) -> Result<(Delta, bool), ApiError> {
        let thought = self
            .splitter
            .as_ref()
            .is_some_and(ReasoningSplitter::is_thinking);
        // A stop token says that the text has ended, and is no part of it, whether it ends the
        // sequence or is passed over.
        let piece = match app.served.stop_token_ids.contains(&token.token_id) {
            true => String::new(),
            false => self.decoder.push(token.token_id)?,
        };
        let mut delta = Delta {
            choice: number,
            tokens: vec![token],
            ..Delta::default()
        };
        let found = self.pass(&piece, &mut delta);
        if let Some(stop) = found {
            self.finish_text(&mut delta);
            delta.finish = Some(Finish::StopString(stop));
        } else if let Some(reason) = ends {
            self.end(reason, &mut delta)?;
        }
        Ok((delta, thought))
    }

    fn end_without_token(
        &mut self,
        number: usize,
        reason: FinishReason,
        prompt: Option<PromptOutcome>,
    ) -> Result<Delta, ApiError> {
        let mut delta = Delta {
            choice: number,
            prompt,
            ..Delta::default()
        };
        self.end(reason, &mut delta)?;
        Ok(delta)
    }

    /// All that was held back, and why it ends.
    fn end(&mut self, reason: FinishReason, delta: &mut Delta) -> Result<(), ApiError> {
        if let Some(error) = self.failure.as_ref().and_then(Failure::get) {
            let message = format!("the structure asked for is beyond the limits: {error}");
            return Err(ApiError::bad_request(message));
        }
        let rest = self.decoder.clone().finish()?;
        if let Some(stop) = self.pass(&rest, delta) {
            self.finish_text(delta);
            delta.finish = Some(Finish::StopString(stop));
            return Ok(());
        }
        let held = self.stop.clone().finish();
        self.split(&held, delta);
        self.finish_text(delta);
        delta.finish = Some(match reason {
            FinishReason::Stop if self.calls > 0 => Finish::ToolCalls,
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
        });
        Ok(())
    }

    /// Passes text on up to a stop string; gives that.
    fn pass(&mut self, piece: &str, delta: &mut Delta) -> Option<String> {
        let passed = self.stop.push(piece);
        self.split(&passed.text, delta);
        passed.stop.map(|index| self.stops[index].clone())
    }

    fn split(&mut self, text: &str, delta: &mut Delta) {
        let answer = match &mut self.splitter {
            None => text.to_string(),
            Some(splitter) => {
                let piece = splitter.push(text);
                delta.reasoning += &piece.reasoning;
                piece.answer
            }
        };
        self.answer(&answer, delta);
    }

    fn finish_text(&mut self, delta: &mut Delta) {
        if let Some(splitter) = self.splitter.take() {
            let piece = splitter.finish();
            delta.reasoning += &piece.reasoning;
            self.answer(&piece.answer, delta);
        }
        if let Some(tools) = self.tools.take() {
            let pieces = tools.finish();
            self.add(pieces, delta);
        }
    }

    fn answer(&mut self, text: &str, delta: &mut Delta) {
        let pieces = match &mut self.tools {
            _ if text.is_empty() => return,
            None => vec![AnswerPiece::Text(text.to_string())],
            Some(tools) => tools.push(text),
        };
        self.add(pieces, delta);
    }

    fn add(&mut self, pieces: Vec<AnswerPiece>, delta: &mut Delta) {
        let begins = |piece: &&AnswerPiece| matches!(piece, AnswerPiece::CallBegins { .. });
        self.calls += pieces.iter().filter(begins).count();
        for piece in pieces {
            match (delta.answer.last_mut(), piece) {
                (Some(AnswerPiece::Text(text)), AnswerPiece::Text(more)) => *text += &more,
                (_, piece) => delta.answer.push(piece),
            }
        }
    }
}

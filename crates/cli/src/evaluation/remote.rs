//! Held-out accuracy of a model behind a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde::Serialize;
use serde_json::{Value, json};
use tasks::{EOS, Problem, THINK_CLOSE, THINK_OPEN};
use train::{EvalResult, Reward, Sample, Setup, wilson};

use crate::failure::{FAILURE, Failure};
use crate::progress::Ui;
use crate::remote::{Remote, Usage, finish_reason, reasoning};

/// With more requests that fail, the evaluation ends: they would bias it.
const MOST_FAILED: usize = 5;

/// Whom to ask, and how.
pub struct Asking {
    pub remote: Arc<Remote>,
    pub model: String,
    /// The task's own prompts to `/v1/completions`, instead of messages to `/v1/chat/completions`.
    pub completions: bool,
    /// Requests at one time.
    pub concurrency: usize,
}

/// A problem without an answer.
#[derive(Clone, Debug, Serialize)]
pub struct Unanswered {
    /// Its number, from 0.
    pub problem: usize,
    pub error: String,
}

/// A completion as the verifier reads it: from after `<think>`, with `<eos>` where the model ended
/// by itself.
#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    clipped: bool,
    prompt_tokens: u64,
    /// Tokens of the completion, as the server counts them.
    length: u64,
}

type Heard = (usize, Result<Answer, Failure>);

impl Asking {
    /// One completion for each problem, judged.
    ///
    /// # Errors
    /// More than a few requests fail, or all.
    pub fn evaluate(
        &self,
        setup: &Setup,
        problems: &[Problem],
        temperature: f64,
        ui: Ui,
    ) -> Result<(EvalResult, Vec<Unanswered>), Failure> {
        let bodies = problems.iter().enumerate();
        let bodies = bodies.map(|(i, problem)| self.body(setup, i, problem, temperature));
        let heard = self.ask(bodies.collect());
        let mut progress = ui.start("eval", problems.len() as u64);
        let mut answers: Vec<Option<Answer>> = Vec::new();
        answers.resize_with(problems.len(), || None);
        let (mut done, mut tokens) = (0, 0);
        let mut failed = Vec::new();
        // It ends when every thread has ended.
        for (problem, answer) in heard {
            match answer {
                Ok(answer) => {
                    tokens += answer.length;
                    answers[problem] = Some(answer);
                }
                Err(failure) => failed.push((problem, failure)),
            }
            done += 1;
            if failed.len() > MOST_FAILED || failed.len() == problems.len() {
                return Err(too_many(failed));
            }
            progress.update_tokens(done, tokens);
        }
        let answered = problems.len() - failed.len();
        progress.finish(&format!("{answered} problems answered"));
        failed.sort_by_key(|(problem, _)| *problem);
        let unanswered = failed.into_iter().map(|(problem, failure)| Unanswered {
            problem,
            error: failure.words(),
        });
        let result = summary(setup, problems, &answers, temperature);
        Ok((result, unanswered.collect()))
    }

    /// Sends each body once, so many at a time. The threads end when nobody listens any more,
    /// after the request that they wait for.
    fn ask(&self, bodies: Vec<Value>) -> Receiver<Heard> {
        let (sender, receiver) = mpsc::channel();
        let bodies = Arc::new(bodies);
        let next = Arc::new(AtomicUsize::new(0));
        let path = match self.completions {
            true => "completions",
            false => "chat/completions",
        };
        for _ in 0..self.concurrency.min(bodies.len()) {
            let (remote, bodies) = (Arc::clone(&self.remote), Arc::clone(&bodies));
            let (next, sender) = (Arc::clone(&next), sender.clone());
            thread::spawn(move || {
                loop {
                    let problem = next.fetch_add(1, Ordering::Relaxed);
                    let Some(body) = bodies.get(problem) else {
                        return;
                    };
                    let answer = remote.post(path, body).and_then(|answer| {
                        let advice = "check that the address is that of an OpenAI-compatible API";
                        read(&answer)
                            .ok_or_else(|| remote.failure(path, "the answer has no choice", advice))
                    });
                    if sender.send((problem, answer)).is_err() {
                        return;
                    }
                }
            });
        }
        receiver
    }

    fn body(&self, setup: &Setup, index: usize, problem: &Problem, temperature: f64) -> Value {
        let limit = match setup.config.eval.max_completion_tokens {
            0 => setup.task.max_completion_tokens(),
            limit => limit,
        };
        // Servers read seeds as signed numbers of 64 bits.
        let seed = setup.config.seed.wrapping_add(index as u64) & i64::MAX as u64;
        let mut body = json!({
            "model": self.model,
            "temperature": temperature,
            "max_tokens": limit,
            "seed": seed,
        });
        match self.completions {
            true => body["prompt"] = Value::from(setup.task.prompt(problem)),
            false => {
                let content = setup.task.question(problem);
                body["messages"] = json!([{"role": "user", "content": content}]);
            }
        }
        body
    }
}

/// Of a chat, or of a text. `None` where there is no completion in it.
fn read(answer: &Value) -> Option<Answer> {
    let choice = &answer["choices"][0];
    let reason = finish_reason(choice).unwrap_or_default();
    let ended = reason == "stop";
    let mut text = match choice["message"].as_object() {
        Some(_) => rejoined(&choice["message"], ended),
        None => choice["text"].as_str()?.trim().to_string(),
    };
    let words = text.split_whitespace().count() as u64;
    if ended && !text.ends_with(EOS) {
        text = format!("{text} {EOS}").trim_start().to_string();
    }
    let usage = Usage::read(&answer["usage"]);
    Some(Answer {
        text,
        clipped: reason == "length",
        prompt_tokens: usage.map_or(0, |usage| usage.prompt_tokens),
        length: usage.map_or(words, |usage| usage.completion_tokens),
    })
}

/// Thinking and answer as the model wrote them.
fn rejoined(message: &Value, ended: bool) -> String {
    let content = message["content"].as_str().unwrap_or_default().trim();
    match reasoning(message).map(str::trim) {
        // It was cut off, or ended, within its thinking.
        Some(thinking) if content.is_empty() => thinking.to_string(),
        Some(thinking) => format!("{thinking} {THINK_CLOSE} {content}")
            .trim_start()
            .to_string(),
        // The server leaves the thinking where it is.
        None if content.contains(THINK_CLOSE) || !ended => {
            let thinking = content.strip_prefix(THINK_OPEN).unwrap_or(content);
            thinking.trim_start().to_string()
        }
        // The model answers at once.
        None => format!("{THINK_CLOSE} {content}"),
    }
}

/// The same reckoning as for a model here, over the problems that were answered.
fn summary(
    setup: &Setup,
    problems: &[Problem],
    answers: &[Option<Answer>],
    temperature: f64,
) -> EvalResult {
    let mut samples = Vec::new();
    let (mut clipped, mut num_tokens) = (0, 0);
    for (problem, answer) in problems.iter().zip(answers) {
        let Some(answer) = answer else { continue };
        clipped += usize::from(answer.clipped);
        num_tokens += answer.prompt_tokens + answer.length;
        samples.push(judged(setup, problem, answer));
    }
    let n = samples.len().max(1) as f64;
    let right = samples
        .iter()
        .filter(|sample| sample.accuracy > 0.0)
        .count();
    let well_formed = samples.iter().filter(|sample| sample.format > 0.0).count();
    let lengths = || samples.iter().map(|sample| sample.length);
    EvalResult {
        problems: samples.len(),
        temperature,
        accuracy: right as f64 / n,
        ci95: wilson(right, samples.len()),
        well_formed: well_formed as f64 / n,
        mean_length: lengths().sum::<usize>() as f64 / n,
        max_length: lengths().max().unwrap_or(0),
        clipped_ratio: clipped as f64 / n,
        num_tokens,
        transcripts: {
            samples.truncate(setup.config.eval.transcripts);
            samples
        },
    }
}

fn judged(setup: &Setup, problem: &Problem, answer: &Answer) -> Sample {
    let verdict = setup.task.verify(problem, &answer.text);
    let reward = Reward::new(&verdict, setup.config.grpo.format_reward);
    Sample {
        step: 0,
        prompt: setup.task.prompt(problem),
        completion: answer.text.clone(),
        explained: setup.task.explain(problem, &answer.text),
        reason: verdict.reason.to_string(),
        accuracy: reward.accuracy,
        format: reward.format,
        reward: reward.total,
        advantage: 0.0,
        length: usize::try_from(answer.length).unwrap_or(usize::MAX),
    }
}

/// The first of many failures, which stands for all.
fn too_many(failed: Vec<(usize, Failure)>) -> Failure {
    let count = failed.len();
    let first = failed.into_iter().next();
    match first {
        Some((problem, Failure::Error { cause, advice, .. })) => {
            let cause = format!("{count} requests failed; the first, problem {problem}: {cause}");
            Failure::new(FAILURE, cause, advice)
        }
        _ => Failure::new(FAILURE, "the requests failed", "look at the server's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_and_answer_are_joined_as_the_model_wrote_them() {
        let chat = |message: Value, reason: &str| {
            let choice = json!({"message": message, "finish_reason": reason});
            json!({ "choices": [choice] })
        };
        for (answer, expected) in [
            (
                chat(json!({"content": "7 + 3", "reasoning": "1 ; 2"}), "stop"),
                "1 ; 2 </think> 7 + 3 <eos>",
            ),
            (
                chat(json!({"content": "7", "reasoning_content": ""}), "stop"),
                "</think> 7 <eos>",
            ),
            (
                chat(json!({"content": "7 +", "reasoning": "1 ; 2"}), "length"),
                "1 ; 2 </think> 7 +",
            ),
            (
                chat(json!({"content": null, "reasoning": "1 ; 2"}), "length"),
                "1 ; 2",
            ),
            (
                chat(json!({"content": "<think> 1 </think> 7"}), "stop"),
                "1 </think> 7 <eos>",
            ),
            (chat(json!({"content": "1 ; 2"}), "length"), "1 ; 2"),
            (chat(json!({"content": "7"}), "stop"), "</think> 7 <eos>"),
            (
                json!({"choices": [{"text": " 1 </think> 7", "finish_reason": "stop"}]}),
                "1 </think> 7 <eos>",
            ),
        ] {
            let found = read(&answer).expect("an answer");
            assert_eq!(found.text, expected);
            assert_eq!(found.clipped, !expected.ends_with(EOS));
        }
        assert_eq!(read(&json!({"choices": []})), None);
    }
}

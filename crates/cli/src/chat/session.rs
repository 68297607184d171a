//! Turn by turn: lines in, answers out.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use signal_hook::consts::SIGINT;
use text::Piece;

use super::conversation::{Conversation, HELP, Line};
use super::display::Display;
use super::{Knobs, Partner, Question, Reply, STOPPED};
use crate::commands::{print, print_json};
use crate::failure::{Failure, Outcome, disk};
use crate::progress::Ui;
use crate::remote::Usage;
use crate::signals::Interrupts;

/// Longer messages are refused; a tokenizer takes no longer text either.
const LONGEST_MESSAGE: u64 = text::MAX_ENCODE_BYTES;

/// How a conversation is shown.
#[derive(Clone, Copy)]
pub struct Manner {
    pub json: bool,
    pub ui: Ui,
    /// `NO_COLOR` is set.
    pub no_color: bool,
}

/// A conversation under way.
pub struct Session {
    partner: Partner,
    conversation: Conversation,
    /// A message without an answer that counts, which `/regenerate` asks again.
    unanswered: Option<String>,
    knobs: Knobs,
    seed: u64,
    /// How often the present message was answered before.
    attempt: u64,
    manner: Manner,
    interrupts: Interrupts,
}

/// An answer as one object.
#[derive(Serialize)]
struct Told<'a> {
    model: &'a str,
    thinking: Option<&'a str>,
    answer: &'a str,
    finish_reason: &'a str,
    seed: u64,
    #[serde(flatten)]
    usage: Option<Usage>,
}

impl Session {
    /// # Errors
    /// The system refuses to tell of signals.
    pub fn new(
        partner: Partner,
        system: Option<&str>,
        knobs: Knobs,
        seed: u64,
        manner: Manner,
    ) -> Result<Session, Failure> {
        Ok(Session {
            partner,
            conversation: Conversation::new(system),
            unanswered: None,
            knobs,
            seed,
            attempt: 0,
            manner,
            interrupts: Interrupts::listen()?,
        })
    }

    /// One message, one answer.
    ///
    /// # Errors
    /// The answer fails, or a signal cuts it off.
    pub fn single(&mut self, message: String) -> Outcome {
        match self.turn(message)?.end.finish_reason == STOPPED {
            true => Err(Failure::Stopped {
                signal: SIGINT,
                saved: "the answer is not whole".to_string(),
            }),
            false => Ok(()),
        }
    }

    /// Takes turns until the lines end. On a terminal what fails is shown and the conversation
    /// goes on; elsewhere it ends.
    ///
    /// # Errors
    /// Standard input or output fails; without a terminal, anything does.
    pub fn talk(&mut self) -> Outcome {
        let on_terminal = io::stdin().is_terminal();
        loop {
            let Some(line) = message_lines(&mut io::stdin().lock(), on_terminal)? else {
                if on_terminal {
                    eprintln!();
                }
                return Ok(());
            };
            if line.trim().is_empty() {
                continue;
            }
            match self.line(&line) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(failure @ Failure::Error { .. }) if on_terminal => {
                    failure.lines().iter().for_each(|line| eprintln!("{line}"));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Does what a line says; false if it says to end.
    fn line(&mut self, line: &str) -> Result<bool, Failure> {
        let mistaken = |what: String| Failure::usage(what, "/help shows what there is");
        match Line::parse(line).map_err(mistaken)? {
            Line::Say(message) => {
                self.attempt = 0;
                self.turn(message)?;
            }
            Line::New => {
                self.conversation.clear();
                self.unanswered = None;
            }
            Line::System(text) => self.conversation.set_system(text),
            Line::Regenerate => {
                let last = self
                    .unanswered
                    .take()
                    .or_else(|| self.conversation.take_back());
                let Some(message) = last else {
                    return Err(mistaken("/regenerate: nothing was said yet".to_string()));
                };
                self.attempt += 1;
                self.turn(message)?;
            }
            Line::Save(file) => self.save(Path::new(file))?,
            Line::Set("seed", value) => {
                let seed = value.parse();
                self.seed = seed.map_err(|_| mistaken(format!("seed {value}: not a number")))?;
            }
            Line::Set(name, value) => self.knobs.set(name, value).map_err(mistaken)?,
            Line::Help => print(&format!("{HELP}\n"))?,
            Line::Quit => return Ok(false),
        }
        Ok(true)
    }

    /// Asks, shows, remembers.
    fn turn(&mut self, message: String) -> Result<Reply, Failure> {
        self.unanswered = Some(message.clone());
        let started = Instant::now();
        let seed = self.seed.wrapping_add(self.attempt);
        self.interrupts.begin();
        let reply = self.shown(&message, seed);
        self.interrupts.end();
        let reply = reply?;
        if self.manner.json {
            let Reply {
                thinking,
                answer,
                end,
            } = &reply;
            print_json(&Told {
                model: self.partner.name(),
                thinking: (!thinking.is_empty()).then_some(thinking),
                answer,
                finish_reason: &end.finish_reason,
                seed,
                usage: end.usage,
            })?;
        } else {
            let seconds = started.elapsed().as_secs_f64();
            self.manner.ui.say(in_words(&reply, seconds));
        }
        // A turn that was ended before it answered would only confuse the model.
        if reply.end.finish_reason != STOPPED || !reply.answer.is_empty() {
            let (thinking, answer) = (reply.thinking.clone(), reply.answer.clone());
            self.conversation.add(message, thinking, answer);
            self.unanswered = None;
        }
        Ok(reply)
    }

    fn shown(&mut self, message: &str, seed: u64) -> Result<Reply, Failure> {
        let question = Question {
            messages: &self.conversation.with(message),
            knobs: &self.knobs,
            seed,
        };
        let stop = || self.interrupts.asked();
        if self.manner.json {
            return self.partner.answer(&question, &stop, &mut |_| Ok(()));
        }
        let on_terminal = io::stdout().is_terminal();
        let mut display = Display::new(on_terminal, self.manner.no_color);
        let mut begun = false;
        let mut say = |piece: &Piece| {
            begun = true;
            print(&display.piece(piece))
        };
        let reply = self.partner.answer(&question, &stop, &mut say);
        if begun || reply.is_ok() {
            print(&display.end())?;
        }
        reply
    }

    /// Over no file that is there.
    fn save(&self, path: &Path) -> Outcome {
        let conversation = json!({"messages": self.conversation.whole()});
        let mut text = serde_json::to_string_pretty(&conversation).unwrap_or_default();
        text.push('\n');
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(disk(path, "writing the conversation"))?;
        self.manner
            .ui
            .say(format_args!("saved: {}", path.display()));
        Ok(())
    }
}

/// What an answer took.
fn in_words(reply: &Reply, seconds: f64) -> String {
    let mut words = match &reply.end.usage {
        Some(usage) => {
            let tokens = usage.completion_tokens;
            let rate = tokens as f64 / seconds.max(1e-9);
            let mut words = format!("{tokens} tokens, {rate:.1} tokens/s");
            words += &format!("; prompt of {} tokens", usage.prompt_tokens);
            if let Some(cached) = usage.cached_tokens {
                words += &format!(", {cached} of them cached");
            }
            words
        }
        None => format!("{seconds:.1} s"),
    };
    match reply.end.finish_reason.as_str() {
        "stop" => {}
        "length" => words += "; cut off at the limit of tokens",
        STOPPED => words += "; stopped",
        other => words += &format!("; ended by the server: {}", crate::plain::plain(other)),
    }
    format!("[{words}]")
}

/// A message: a line, and those after it while they end in `\`. `None` at the end of the input.
fn message_lines(input: &mut impl BufRead, prompts: bool) -> Result<Option<String>, Failure> {
    let mut message: Option<String> = None;
    loop {
        if prompts {
            eprint!("{}", if message.is_none() { "> " } else { ". " });
        }
        let Some(line) = one_line(input)? else {
            return Ok(message);
        };
        let all = message.get_or_insert_default();
        match line.strip_suffix('\\') {
            Some(part) => {
                *all += part;
                all.push('\n');
                bounded(all.len() as u64)?;
            }
            None => {
                *all += &line;
                return Ok(message);
            }
        }
    }
}

fn one_line(input: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut bytes = Vec::new();
    input
        .take(LONGEST_MESSAGE + 1)
        .read_until(b'\n', &mut bytes)?;
    bounded(bytes.len() as u64)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let line = as_text(bytes)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(Some(line.strip_suffix('\r').unwrap_or(line).to_string()))
}

/// All of standard input as one message.
///
/// # Errors
/// It is empty, too long or no text.
pub fn whole_input() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(LONGEST_MESSAGE + 1)
        .read_to_end(&mut bytes)?;
    bounded(bytes.len() as u64)?;
    let text = as_text(bytes)?.trim_end().to_string();
    match text.is_empty() {
        true => {
            let advice = "give a message with --prompt or on standard input";
            Err(Failure::usage("standard input has no message", advice))
        }
        false => Ok(text),
    }
}

fn bounded(bytes: u64) -> Outcome {
    match bytes > LONGEST_MESSAGE {
        true => {
            let cause = format!("a message has more than {LONGEST_MESSAGE} bytes");
            Err(Failure::usage(cause, "give a shorter one"))
        }
        false => Ok(()),
    }
}

fn as_text(bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let cause = format!("the message is not UTF-8: {}", error.utf8_error());
        Failure::usage(cause, "give text")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::End;

    #[test]
    fn a_line_that_ends_in_a_backslash_goes_on() {
        let mut input = "a\nb\\\nc\r\n\nd\\".as_bytes();
        let mut messages = Vec::new();
        while let Some(message) = message_lines(&mut input, false).expect("text") {
            messages.push(message);
        }
        assert_eq!(messages, ["a", "b\nc", "", "d\n"]);
        assert!(message_lines(&mut &b"\xff\n"[..], false).is_err());
    }

    #[test]
    fn an_answer_s_cost_is_said_in_words() {
        let usage = Some(Usage {
            prompt_tokens: 5,
            cached_tokens: Some(4),
            completion_tokens: 20,
        });
        let finish_reason = "length".to_string();
        let end = End {
            finish_reason,
            usage,
        };
        let reply = Reply {
            end,
            ..Reply::default()
        };
        assert_eq!(
            in_words(&reply, 2.0),
            "[20 tokens, 10.0 tokens/s; prompt of 5 tokens, 4 of them cached; cut off at the limit \
             of tokens]"
        );
    }
}

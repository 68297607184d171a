//! A client of any server that speaks OpenAI's API.
//!
//! The key goes to the address that the user gave and nowhere else: redirects are not followed,
//! and no message shows it.

mod address;
mod answer;
mod events;
mod patience;

use std::env;
use std::io::{BufReader, ErrorKind};
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body, BodyReader, Error};

pub use address::{Address, is_url};
pub use answer::{End, Said, Stream, Usage, finish_reason, reasoning};

use crate::failure::{FAILURE, Failure, USAGE};
use crate::progress::Ui;
use answer::error_in;
use events::Events;
use patience::Patience;

/// The environment's key and address, as OpenAI's own clients name them.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";
pub const URL_VARIABLE: &str = "OPENAI_BASE_URL";
/// For a connection; what comes after may take as long as `--timeout` says.
const CONNECT: Duration = Duration::from_secs(20);
/// Kept open for the next request.
const MOST_CONNECTIONS: usize = 1024;
/// Longer answers are refused.
const LARGEST_ANSWER: u64 = 64 << 20;
/// Of an answer that is an error, so many bytes are looked at and so many characters shown.
const LARGEST_ERROR: u64 = 64 << 10;
const LONGEST_MESSAGE: usize = 400;
/// So many models of a server are named.
const MODELS_NAMED: usize = 10;

#[derive(Args, Clone)]
#[command(next_help_heading = "Servers")]
pub struct RemoteOptions {
    /// The server's key [default: the environment variable OPENAI_API_KEY]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Which of the server's models to ask [default: the only one it has]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Give up after so many seconds in which the server says nothing
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
}

impl RemoteOptions {
    /// What only a server understands, where the model is here.
    ///
    /// # Errors
    /// Exit code 2 by the name of the option.
    pub fn none_given(&self) -> Result<(), Failure> {
        let given = [
            ("--api-key", self.api_key.is_some()),
            ("--model-name", self.model_name.is_some()),
            ("--timeout", self.timeout != TIMEOUT),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((name, _)) => {
                let cause = format!("{name} is for a server, and the model is a folder or a file");
                Err(Failure::usage(
                    cause,
                    "leave it out, or give a server's address",
                ))
            }
        }
    }
}

/// Seconds of silence that are waited for, unless told otherwise.
const TIMEOUT: u32 = 600;

/// A server.
pub struct Remote {
    agent: Agent,
    address: Address,
    key: Option<String>,
}

impl Remote {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// Exit code 2: an address or a key that is none.
    pub fn new(address: &str, options: &RemoteOptions, ui: Ui) -> Result<Remote, Failure> {
        let address = Address::parse(address)?;
        let given = options.api_key.clone();
        let key = given.or_else(|| env::var(KEY_VARIABLE).ok());
        let key = key
            .map(|key| key.trim().to_string())
            .filter(|key| !key.is_empty());
        if key
            .as_ref()
            .is_some_and(|key| !key.chars().all(|c| c.is_ascii_graphic()))
        {
            let cause = "the key has characters in it that no key has";
            let advice = format!("give it with --api-key or in {KEY_VARIABLE}");
            return Err(Failure::usage(cause, advice));
        }
        if key.is_some() && !address.is_encrypted && !address.is_loopback {
            ui.warn("the key goes over the network in clear text; prefer an https address");
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(MOST_CONNECTIONS)
            .max_idle_connections_per_host(MOST_CONNECTIONS)
            .user_agent(concat!("bruchteil/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(Duration::from_secs(options.timeout.into())))
            .timeout_per_write(Some(Duration::from_secs(options.timeout.into())));
        if address.is_loopback {
            // What the environment names as proxy does not see this machine's own addresses.
            config = config.proxy(None);
        }
        let agent = config.build().new_agent();
        Ok(Remote {
            agent,
            address,
            key,
        })
    }

    /// The model that was named, or the only one that the server has.
    ///
    /// # Errors
    /// The server does not answer, or has none or several.
    pub fn model(&self, named: Option<&str>) -> Result<String, Failure> {
        if let Some(name) = named {
            return Ok(name.to_string());
        }
        let advice = "name the model with --model-name";
        let list = self.get("models")?;
        let models = list["data"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let names: Vec<&str> = models
            .iter()
            .filter_map(|model| model["id"].as_str())
            .collect();
        let url = self.address.of("models");
        match names[..] {
            [name] => Ok(name.to_string()),
            [] => {
                let cause = format!("{url}: the server names no model");
                Err(Failure::new(FAILURE, cause, advice))
            }
            _ => {
                let some: Vec<&str> = names.iter().copied().take(MODELS_NAMED).collect();
                let more = match names.len() > some.len() {
                    true => ", ...",
                    false => "",
                };
                let (count, some) = (names.len(), some.join(", "));
                let cause = format!("{url}: the server has {count} models: {some}{more}");
                Err(Failure::usage(cause, advice))
            }
        }
    }

    fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(path, self.send(path, None)?)
    }

    /// Asks for an answer at once.
    ///
    /// # Errors
    /// The server does not answer, refuses, or stays busy; its answer is no JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(path, self.send(path, Some(body))?)
    }

    /// Asks for an answer bit by bit, with the usage at its end.
    ///
    /// # Errors
    /// As [`Remote::post`].
    pub fn stream(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<Stream<BufReader<BodyReader<'static>>>, Failure> {
        let response = self.send(path, Some(body))?;
        let kind = response.body().mime_type().unwrap_or_default();
        if kind != "text/event-stream" {
            let what = format_args!("the server does not stream: it sent {kind:?}");
            let advice = "check that the address is that of an OpenAI-compatible API";
            return Err(self.failure(path, what, advice));
        }
        let body = response
            .into_body()
            .into_with_config()
            .limit(LARGEST_ANSWER);
        let reader = BufReader::new(body.reader());
        Ok(Stream::new(Events::new(reader)))
    }

    /// Sends until the server is not busy, or patience ends.
    fn send(&self, path: &str, body: Option<&Value>) -> Result<Response<Body>, Failure> {
        let body = body.map(Value::to_string);
        let mut patience = Patience::default();
        let mut may_have_gone = true;
        loop {
            let response = match self.send_once(path, body.as_deref()) {
                // A connection that was kept from the last request may be closed by now.
                Err(Error::Io(error)) if may_have_gone && has_gone(error.kind()) => {
                    may_have_gone = false;
                    continue;
                }
                response => response.map_err(|error| self.unreachable(path, &error))?,
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let is_busy = [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
            ];
            let wait = match is_busy.contains(&status) {
                true => patience.wait(text_of(&response, header::RETRY_AFTER.as_str())),
                false => None,
            };
            match wait {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(self.refused(path, response)),
            }
        }
    }

    fn send_once(&self, path: &str, body: Option<&str>) -> Result<Response<Body>, Error> {
        let url = self.address.of(path);
        let key = self.key.as_ref().map(|key| format!("Bearer {key}"));
        match body {
            None => {
                let mut request = self.agent.get(&url);
                if let Some(key) = &key {
                    request = request.header(header::AUTHORIZATION, key);
                }
                request.call()
            }
            Some(body) => {
                let mut request = self.agent.post(&url);
                if let Some(key) = &key {
                    request = request.header(header::AUTHORIZATION, key);
                }
                request.content_type("application/json").send(body)
            }
        }
    }

    fn json(&self, path: &str, response: Response<Body>) -> Result<Value, Failure> {
        let body = response
            .into_body()
            .into_with_config()
            .limit(LARGEST_ANSWER);
        let text = body.read_to_string();
        let text = text.map_err(|error| self.unreachable(path, &error))?;
        serde_json::from_str(&text).map_err(|error| {
            let advice = "check that the address is that of an OpenAI-compatible API";
            self.failure(
                path,
                format_args!("the answer is not JSON: {error}"),
                advice,
            )
        })
    }

    /// A failure that names the address and hides the key.
    pub fn failure(
        &self,
        path: &str,
        what: impl std::fmt::Display,
        advice: impl std::fmt::Display,
    ) -> Failure {
        let what = self.without_key(&what.to_string());
        Failure::new(
            FAILURE,
            format!("{}: {what}", self.address.of(path)),
            advice,
        )
    }

    fn unreachable(&self, path: &str, error: &Error) -> Failure {
        match error {
            Error::Timeout(_) => {
                let advice = "look whether the server is at work, or give a larger --timeout";
                self.failure(path, "the server does not answer in time", advice)
            }
            Error::HostNotFound => self.failure(path, "there is no such host", "check the address"),
            Error::BodyExceedsLimit(limit) => {
                let what = format_args!("the answer has more than {limit} bytes");
                self.failure(path, what, "ask for less")
            }
            Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
                let advice = "look whether the address is http or https, and at its certificate";
                self.failure(path, format_args!("no secure connection: {error}"), advice)
            }
            Error::Io(_) | Error::ConnectionFailed => {
                let advice = "start the server, such as with `bruchteil serve`, or check the \
                              address";
                self.failure(path, format_args!("no connection: {error}"), advice)
            }
            other => self.failure(path, other, "check the address, and the server's log"),
        }
    }

    /// An answer that is no success, in words.
    fn refused(&self, path: &str, response: Response<Body>) -> Failure {
        let status = response.status();
        let location = text_of(&response, header::LOCATION.as_str()).map(str::to_string);
        let body = response.into_body().into_with_config().limit(LARGEST_ERROR);
        // Without a message the status must do.
        let body = body.lossy_utf8(true).read_to_string().unwrap_or_default();
        let mut what = format!("the server answers {status}");
        match (&location, message_in(&body)) {
            (Some(location), _) if status.is_redirection() => what += &format!(" to {location}"),
            (_, Some(message)) => what += &format!(": {message}"),
            _ => {}
        }
        let (code, advice) = match status.as_u16() {
            300..=399 => (USAGE, "give the address that it names, if you trust it"),
            401 | 403 => (USAGE, "give the key with --api-key or in OPENAI_API_KEY"),
            404 | 405 => (
                USAGE,
                "check the address, which often ends in /v1, and --model-name",
            ),
            400 | 413 | 422 => (USAGE, "change what the message names"),
            429 | 503 => (FAILURE, "the server is busy: try again later"),
            _ => (FAILURE, "look at the server's log, or try again"),
        };
        let what = self.without_key(&what);
        Failure::new(code, format!("{}: {what}", self.address.of(path)), advice)
    }

    /// Servers put the key that they refuse into their messages.
    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.as_str(), "[key]"),
            None => text.to_string(),
        }
    }
}

fn has_gone(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        UnexpectedEof,
    ]
    .contains(&kind)
}

fn text_of<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// What the body of an error says, cut to what a reader will read.
fn message_in(body: &str) -> Option<String> {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let message = match &parsed {
        Some(value) => error_in(value).or_else(|| {
            let texts = ["message", "detail"];
            texts
                .iter()
                .find_map(|name| value[name].as_str().map(str::to_string))
        })?,
        // A page for people says what the status says.
        None if body.trim_start().starts_with('<') => return None,
        None => body.trim().to_string(),
    };
    let short: String = message.chars().take(LONGEST_MESSAGE).collect();
    (!short.is_empty()).then_some(short)
}

#[cfg(test)]
mod tests {
    use super::message_in;

    #[test]
    fn the_message_of_an_error_is_found_in_every_form() {
        for (body, expected) in [
            (
                r#"{"error": {"message": "no such model"}}"#,
                Some("no such model"),
            ),
            (r#"{"error": "busy"}"#, Some("busy")),
            (
                r#"{"object": "error", "message": "too long"}"#,
                Some("too long"),
            ),
            (r#"{"detail": "Not Found"}"#, Some("Not Found")),
            ("Bad Gateway\n", Some("Bad Gateway")),
            ("<!DOCTYPE html><title>404</title>", None),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(message_in(body).as_deref(), expected, "{body}");
        }
        let long = message_in(&"ü".repeat(5000)).expect("a message");
        assert_eq!(long.chars().count(), 400);
    }
}

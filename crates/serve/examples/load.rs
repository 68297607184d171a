//! Load on an OpenAI-compatible server: streams at once, and how long their tokens take.
//!
//! `cargo run --release -p serve --example load -- URL [--streams 1,8,64] [--requests N]
//! [--prompt-tokens 16] [--max-tokens 128] [--vocab 4096] [--chat] [--model NAME] [--key KEY]
//! [--seed 1] [--ramp-ms 0] [--hold-s 0] [--timeout-s 600]`
//!
//! Prompts are random token ids below `--vocab` (with `--chat`: random words), another one for each
//! request, so that no prefix is cached. For each number of `--streams` so many connections work
//! through `--requests` (default: one each), or with `--hold-s` go on for so long; `--ramp-ms`
//! spreads their beginnings. Nothing is retried. One line of JSON per number of streams:
//! `ttft_ms` is from before the connection to the first token, `itl_ms` between events with tokens,
//! `longest_gap_ms` the worst such pause of each stream, `tokens_per_s` what the server's usage
//! reports over the whole time. One thread serves all streams, so it takes little from the server.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

type Failure = Box<dyn Error>;

struct Plan {
    host: String,
    address: SocketAddr,
    streams: Vec<usize>,
    requests: Option<usize>,
    prompt_tokens: usize,
    max_tokens: usize,
    vocab: u64,
    chat: bool,
    model: Option<String>,
    key: Option<String>,
    seed: u64,
    ramp: Duration,
    hold: Duration,
    timeout: Duration,
}

/// What became of one request.
#[derive(Default)]
struct Outcome {
    /// The HTTP status, or a word for what ended the connection.
    status: String,
    first: Option<Duration>,
    gaps: Vec<Duration>,
    completion_tokens: u64,
    cached_tokens: u64,
    events: u64,
    done: bool,
}

fn main() -> Result<(), Failure> {
    let mut plan = Plan::from_args()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if plan.model.is_none() {
        let name = runtime.block_on(first_model(&plan))?;
        plan.model = Some(name);
    }
    let plan = Arc::new(plan);
    for &streams in &plan.streams {
        println!("{}", runtime.block_on(measure(&plan, streams)));
    }
    Ok(())
}

impl Plan {
    fn from_args() -> Result<Plan, Failure> {
        let mut options = BTreeMap::new();
        let mut url = None;
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                Some("chat") => _ = options.insert("chat".to_string(), String::new()),
                Some(name) => {
                    let value = args.next().ok_or(format!("{arg} needs a value"))?;
                    options.insert(name.to_string(), value);
                }
                None => url = Some(arg),
            }
        }
        let url = url.ok_or("give the server's URL, such as http://127.0.0.1:8080")?;
        let host = url
            .strip_prefix("http://")
            .ok_or("the URL starts with http://")?;
        let host = host.trim_end_matches('/').to_string();
        let mut number = |name: &str, default: u64| match options.remove(name) {
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name}: {text} is no number")),
            None => Ok(default),
        };
        let plan = Plan {
            address: host.parse().map_err(|_| "the URL is http://ADDRESS:PORT")?,
            host,
            prompt_tokens: number("prompt-tokens", 16)? as usize,
            max_tokens: number("max-tokens", 128)? as usize,
            vocab: number("vocab", 4096)?.max(1),
            seed: number("seed", 1)?,
            ramp: Duration::from_millis(number("ramp-ms", 0)?),
            hold: Duration::from_secs(number("hold-s", 0)?),
            timeout: Duration::from_secs(number("timeout-s", 600)?),
            requests: match number("requests", 0)? {
                0 => None,
                requests => Some(requests as usize),
            },
            chat: options.remove("chat").is_some(),
            model: options.remove("model"),
            key: options.remove("key"),
            streams: counts(&options.remove("streams").unwrap_or("64".into()))?,
        };
        match options.keys().next() {
            Some(name) => Err(format!("there is no --{name}").into()),
            None => Ok(plan),
        }
    }

    fn request(&self, number: u64) -> Vec<u8> {
        let mut draw = Draws::new(self.seed, number);
        let mut ids = (0..self.prompt_tokens).map(|_| draw.next() % self.vocab);
        let mut body = json!({
            "model": self.model, "max_tokens": self.max_tokens, "seed": number, "stream": true,
            "stream_options": {"include_usage": true}, "temperature": 0, "ignore_eos": true,
        });
        if self.chat {
            let words: Vec<String> = ids.map(|id| format!("w{id}")).collect();
            body["messages"] = json!([{"role": "user", "content": words.join(" ")}]);
        } else {
            body["prompt"] = Value::from_iter(&mut ids);
        }
        let path = if self.chat {
            "/v1/chat/completions"
        } else {
            "/v1/completions"
        };
        self.http("POST", path, &body.to_string())
    }

    fn http(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let key = self
            .key
            .as_ref()
            .map(|key| format!("Authorization: Bearer {key}\r\n"));
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            key.unwrap_or_default(),
            body.len()
        )
        .into_bytes()
    }
}

fn counts(text: &str) -> Result<Vec<usize>, Failure> {
    let parsed: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    let counts = parsed.map_err(|_| "--streams is a list such as 1,8,64")?;
    Ok(counts)
}

/// SplitMix64, begun anew for every request.
struct Draws(u64);

impl Draws {
    fn new(seed: u64, number: u64) -> Draws {
        Draws(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number.wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

async fn first_model(plan: &Plan) -> Result<String, Failure> {
    let mut answer = Answer::default();
    let bytes = plan.http("GET", "/v1/models", "");
    exchange(plan.address, &bytes, &mut answer, &mut |_| {}).await?;
    let models: Value = serde_json::from_slice(&answer.body)?;
    let name = models["data"][0]["id"].as_str();
    Ok(name.ok_or("/v1/models names no model")?.to_string())
}

/// So many streams at once; the figures as one JSON object.
async fn measure(plan: &Arc<Plan>, streams: usize) -> Value {
    let begun = Instant::now();
    let waiting = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let requests = plan.requests.unwrap_or(streams) as u64;
    let mut workers = JoinSet::new();
    for worker in 0..streams {
        let (plan, numbers) = (Arc::clone(plan), Arc::clone(&waiting));
        let delay = plan.ramp.mul_f64(worker as f64 / streams as f64);
        workers.spawn(async move {
            tokio::time::sleep(delay).await;
            let mut outcomes = Vec::new();
            loop {
                let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let held = !plan.hold.is_zero();
                if (held && begun.elapsed() >= plan.hold) || (!held && number >= requests) {
                    return outcomes;
                }
                let outcome = ask(&plan, number).await;
                let refused = !outcome.done;
                outcomes.push(outcome);
                if held && refused {
                    // A server that is full is asked again, but not in a tight loop.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
    }
    let outcomes: Vec<Outcome> = workers.join_all().await.into_iter().flatten().collect();
    report(plan, streams, begun.elapsed(), &outcomes)
}

async fn ask(plan: &Plan, number: u64) -> Outcome {
    let bytes = plan.request(number);
    let begun = Instant::now();
    let mut last = None;
    let mut outcome = Outcome::default();
    let mut answer = Answer::default();
    let mut on_event = |event: &[u8]| {
        if has_token(event, plan.chat) {
            let now = Instant::now();
            match last.replace(now) {
                None => outcome.first = Some(now - begun),
                Some(earlier) => outcome.gaps.push(now - earlier),
            }
            outcome.events += 1;
        } else if event == b"[DONE]" {
            outcome.done = true;
        } else if find(event, b"\"completion_tokens\"").is_some() {
            note_usage(event, &mut outcome);
        }
    };
    let exchange = exchange(plan.address, &bytes, &mut answer, &mut on_event);
    let ended = tokio::time::timeout(plan.timeout, exchange).await;
    outcome.status = match ended {
        Err(_) => "timeout".to_string(),
        Ok(Err(error)) => error.kind().to_string(),
        Ok(Ok(())) if answer.status == 200 && !outcome.done => "cut short".to_string(),
        Ok(Ok(())) => answer.status.to_string(),
    };
    outcome
}

fn note_usage(event: &[u8], outcome: &mut Outcome) {
    let chunk: Value = serde_json::from_slice(event).unwrap_or_default();
    let usage = &chunk["usage"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    outcome.completion_tokens = count(&usage["completion_tokens"]);
    outcome.cached_tokens = count(&usage["prompt_tokens_details"]["cached_tokens"]);
}

/// Whether an event carries text. It is looked at as bytes: parsing each would cost as much as a
/// small model takes for a token.
fn has_token(event: &[u8], chat: bool) -> bool {
    let filled = |name: &[u8]| {
        let at = find(event, name).map(|at| at + name.len());
        at.is_some_and(|at| event.get(at).is_some_and(|&byte| byte != b'"'))
    };
    if chat {
        filled(b"\"content\":\"") || filled(b"\"reasoning_content\":\"")
    } else {
        filled(b"\"text\":\"")
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// A response as it comes: its head, then its body in chunks or until the end.
#[derive(Default)]
struct Answer {
    status: u16,
    chunked: bool,
    /// Bytes that are not understood yet.
    raw: VecDeque<u8>,
    /// Bytes of the present chunk that are still to come; with its line end.
    left: usize,
    body: Vec<u8>,
}

impl Answer {
    /// Takes what has come; false where it is no HTTP.
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.raw.extend(bytes);
        if self.status == 0 {
            let raw = self.raw.make_contiguous();
            let Some(end) = find(raw, b"\r\n\r\n") else {
                return true;
            };
            let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
            let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
            let Some(status) = status else { return false };
            self.status = status;
            self.chunked = head.contains("transfer-encoding: chunked");
            self.raw.drain(..end + 4);
        }
        if !self.chunked {
            self.body.extend(self.raw.drain(..));
            return true;
        }
        while self.take_chunk() {}
        true
    }

    /// One size or a part of one chunk; false where more must come first.
    fn take_chunk(&mut self) -> bool {
        if self.left > 2 {
            let taken = self.raw.len().min(self.left - 2);
            self.body.extend(self.raw.drain(..taken));
            self.left -= taken;
            return taken > 0;
        }
        if self.left > 0 {
            let taken = self.raw.len().min(self.left);
            self.raw.drain(..taken);
            self.left -= taken;
            return taken > 0;
        }
        let raw = self.raw.make_contiguous();
        let Some(end) = find(raw, b"\r\n") else {
            return false;
        };
        let size = String::from_utf8_lossy(&raw[..end]).into_owned();
        self.raw.drain(..end + 2);
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        self.left = size + 2;
        size > 0
    }
}

/// Sends a request and hands on each event of its answer; the body keeps what is no event.
async fn exchange(
    address: SocketAddr,
    request: &[u8],
    answer: &mut Answer,
    on_event: &mut (dyn FnMut(&[u8]) + Send),
) -> std::io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut sent = 0;
    while sent < request.len() {
        stream.writable().await?;
        match stream.try_write(&request[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let mut buffer = vec![0; 1 << 14];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) if !answer.push(&buffer[..count]) => {
                return Err(ErrorKind::InvalidData.into());
            }
            Ok(_) => events(&mut answer.body, on_event),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn events(body: &mut Vec<u8>, on_event: &mut (dyn FnMut(&[u8]) + Send)) {
    let mut begin = 0;
    while let Some(end) = find(&body[begin..], b"\n\n") {
        if let Some(event) = body[begin..begin + end].strip_prefix(b"data: ") {
            on_event(event);
        }
        begin += end + 2;
    }
    body.drain(..begin);
}

fn report(plan: &Plan, streams: usize, wall: Duration, outcomes: &[Outcome]) -> Value {
    let mut statuses = BTreeMap::new();
    for outcome in outcomes {
        *statuses.entry(outcome.status.as_str()).or_insert(0u64) += 1;
    }
    let tokens: u64 = outcomes.iter().map(|o| o.completion_tokens).sum();
    let first = outcomes.iter().filter_map(|o| o.first).collect();
    let gaps = outcomes
        .iter()
        .flat_map(|o| o.gaps.iter().copied())
        .collect();
    let longest = outcomes.iter().filter_map(|o| o.gaps.iter().copied().max());
    json!({
        "streams": streams,
        "requests": outcomes.len(),
        "prompt_tokens": plan.prompt_tokens,
        "max_tokens": plan.max_tokens,
        "statuses": statuses,
        "wall_s": rounded(wall.as_secs_f64()),
        "completion_tokens": tokens,
        "cached_tokens": outcomes.iter().map(|o| o.cached_tokens).sum::<u64>(),
        "events": outcomes.iter().map(|o| o.events).sum::<u64>(),
        "tokens_per_s": rounded(tokens as f64 / wall.as_secs_f64()),
        "ttft_ms": percentiles(first),
        "itl_ms": percentiles(gaps),
        "longest_gap_ms": percentiles(longest.collect()),
    })
}

fn percentiles(mut times: Vec<Duration>) -> Value {
    if times.is_empty() {
        return Value::Null;
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = (share * (times.len() - 1) as f64).round() as usize;
        rounded(1e3 * times[index].as_secs_f64())
    };
    json!({"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0)})
}

fn rounded(value: f64) -> f64 {
    (1e3 * value).round() / 1e3
}

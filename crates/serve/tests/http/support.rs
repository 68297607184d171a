//! A real server with a small random model, and the plainest client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use engine::{EngineConfig, Speculation};
use kernels::{Cpu, Isa, Precision};
use model::{Config, Model, Numerics};
use serde_json::Value;
use serve::{Access, Machine, Options, Served};

pub const VOCAB_SIZE: usize = 64;
/// Ids of the words that mean something.
pub const EOS: u32 = 61;
pub const THINK_OPEN: u32 = 62;

/// Weights large enough that distributions are not flat; one MTP layer, to draft with.
pub fn config() -> Config {
    Config::from_json(
        r#"{
            "model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1,
            "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": null,
            "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 12,
            "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5,
            "num_nextn_predict_layers": 1,
            "max_position_embeddings": 512, "initializer_range": 0.25
        }"#,
    )
    .expect("a valid configuration")
}

pub fn model(backend: &Cpu) -> Model {
    Model::random(config(), Numerics::new(Precision::Bf16), 42, backend)
}

/// `w0` to `w59`, the unknown, and the words above.
pub fn tokenizer() -> text::Tokenizer {
    let mut words: Vec<String> = (0..60).map(|i| format!("w{i}")).collect();
    words.extend(["<unk>", "<eos>", "<think>", "</think>"].map(str::to_string));
    let json = text::word_level(&words, &["<eos>"]).expect("a vocabulary");
    text::Tokenizer::from_json(&json).expect("a tokenizer")
}

/// What the tests change of a server.
#[derive(Clone)]
pub struct Setting {
    pub threads: usize,
    pub engine: EngineConfig,
    pub access: Access,
    pub places: usize,
    pub drain_time: Duration,
    pub chat_template: Option<String>,
}

impl Default for Setting {
    fn default() -> Setting {
        Setting {
            threads: 2,
            engine: EngineConfig {
                max_num_seqs: 64,
                max_num_batched_tokens: 256,
                block_size: 16,
                num_blocks: 256,
                prefix_caching: true,
                speculation: Speculation::default(),
            },
            access: Access::default(),
            places: 256,
            drain_time: Duration::from_secs(20),
            chat_template: Some(text::REASONING_TEMPLATE.to_string()),
        }
    }
}

/// Stops when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), serve::Error>>>,
}

impl Server {
    pub fn start(setting: Setting) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let backend = Cpu::new(setting.threads, Isa::best());
            let machine = Machine {
                model: model(&backend),
                backend,
                engine: setting.engine,
            };
            let served = Served {
                names: vec!["small".to_string(), "alias".to_string()],
                tokenizer: tokenizer(),
                chat_template: setting.chat_template,
                bos_token: String::new(),
                eos_token: "<eos>".to_string(),
                first_token_id: None,
                stop_token_ids: vec![EOS],
                vocab_size: VOCAB_SIZE,
                max_model_len: 512,
                examples: Vec::new(),
                now: None,
                base_seed: 7,
            };
            let options = Options {
                access: setting.access,
                places: setting.places,
                request_time: Duration::from_secs(120),
                drain_time: setting.drain_time,
                log_requests: false,
            };
            let log: serve::Log = Arc::new(|line: &str| eprintln!("{line}"));
            let stop = || stopped.load(Ordering::Relaxed);
            let say = |address| ready.send(address).expect("the test waits");
            serve::serve(listener, machine, served, options, log, say, stop)
        });
        let address = is_ready.recv().expect("the server starts");
        Server {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// Asks it to stop, and waits.
    pub fn stop(&mut self) -> Result<(), serve::Error> {
        self.ask_to_stop();
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("the server does not panic")
    }

    pub fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).expect("a limit");
        stream
    }

    /// Sends bytes as they are, and reads the answer.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that refuses early may close before all is written.
        let _ = stream.write_all(request);
        Answer::read(stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.with_headers("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }

    pub fn post_text(&self, path: &str, body: &str) -> Answer {
        self.with_headers("POST", path, &[("content-type", "application/json")], body)
    }

    pub fn with_headers(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        self.raw(&request(method, path, headers, body))
    }

    /// A counter or gauge of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").text();
        let line = page.lines().find(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        });
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
        let value = line.rsplit(' ').next().expect("a value");
        value.parse().expect("a number")
    }

    /// Waits until nothing is under way and the cache belongs to nobody.
    pub fn settle(&self) {
        for _ in 0..600 {
            let busy = ["vllm:num_requests_running", "vllm:num_requests_waiting"];
            let busy: f64 = busy.iter().map(|name| self.metric(name)).sum();
            if busy == 0.0 && self.metric("vllm:kv_cache_usage_perc") == 0.0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("not idle after 12 s:\n{}", self.get("/metrics").text());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if headers.iter().all(|(name, _)| *name != "host") {
        text += "host: 127.0.0.1\r\n";
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    (text + "\r\n" + body).into_bytes()
}

/// A response in full.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    fn read(stream: TcpStream) -> Answer {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            // Closed without a word.
            return Answer {
                status: 0,
                headers: Vec::new(),
                body: Vec::new(),
            };
        }
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a header");
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_lowercase(), value.to_string())),
                None => break,
            }
        }
        let mut answer = Answer {
            status: status.expect("a status"),
            headers,
            body: Vec::new(),
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = dechunked(&mut reader);
        } else {
            let _ = reader.read_to_end(&mut answer.body);
        }
        answer
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The objects of an event stream, without the last `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let objects = data.filter(|data| *data != "[DONE]");
        let parsed = objects.map(|data| serde_json::from_str(data).expect("JSON in an event"));
        parsed.collect()
    }
}

fn dechunked(reader: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return body;
        }
        let size = usize::from_str_radix(line.trim(), 16).expect("the size of a chunk");
        let mut chunk = vec![0; size + 2];
        if reader.read_exact(&mut chunk).is_err() || size == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// The answer without what names the request rather than its result.
pub fn result(mut answer: Value) -> Value {
    for name in ["id", "created"] {
        answer.as_object_mut().expect("an object").remove(name);
    }
    if let Some(usage) = answer["usage"].as_object_mut() {
        usage.remove("prompt_tokens_details");
    }
    answer
}

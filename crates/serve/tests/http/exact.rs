//! The law over HTTP: the same request with the same seed gives the same bytes, whatever else the
//! server does and however it does it.

use crate::support::{Server, Setting, result};
use engine::{EngineConfig, Speculation};
use kernels::{Chance, Cpu, Isa, Purpose};
use model::{Activations, Batch, Targets};
use serde_json::{Value, json};

/// Requests of every kind, to both endpoints.
fn requests() -> Vec<(&'static str, Value)> {
    let mut draw = Chance::new(1, Purpose::Problem).draws(0);
    let mut words = |count: u64| -> String {
        let words: Vec<String> = (0..count).map(|_| format!("w{}", draw(60))).collect();
        words.join(" ")
    };
    let long = words(120);
    let mut requests = Vec::new();
    for seed in 0..12 {
        let prompt = match seed % 3 {
            0 => words(5 + seed),
            1 => format!("{long} {}", words(4)),
            _ => words(40),
        };
        let common = json!({
            "seed": seed,
            "temperature": ([0.0, 0.7, 1.0, 1.0][seed as usize % 4]),
            "top_p": ([1.0, 0.9][seed as usize % 2]),
            "presence_penalty": ([0.0, 0.5, -0.5][seed as usize % 3]),
            "frequency_penalty": ([0.0, 0.2][seed as usize % 2]),
            "repetition_penalty": ([1.0, 1.1][seed as usize % 2]),
            "logit_bias": {"3": 2.5, "7": -100},
            "return_token_ids": true,
            "n": 1 + seed % 3,
        });
        let mut chat = common.clone();
        chat["messages"] = json!([{"role": "user", "content": prompt}]);
        chat["max_tokens"] = json!(24);
        chat["logprobs"] = json!(true);
        chat["top_logprobs"] = json!(2);
        chat["stop"] = json!(["w5 w", "w11"]);
        requests.push(("/v1/chat/completions", chat));
        let mut text = common;
        text["prompt"] = json!(prompt);
        text["max_tokens"] = json!(20);
        text["echo"] = json!(seed % 2 == 0);
        text["logprobs"] = json!(3);
        requests.push(("/v1/completions", text));
    }
    requests
}

fn ask(server: &Server, path: &str, body: &Value) -> Value {
    let answer = server.post(path, body);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    result(answer.json())
}

/// Each request by itself, in a server that has nothing in its cache for it.
fn alone() -> Vec<Value> {
    let mut setting = Setting::default();
    setting.engine.prefix_caching = false;
    let server = Server::start(setting);
    let answers = requests().into_iter();
    answers
        .map(|(path, body)| ask(&server, path, &body))
        .collect()
}

/// All at once, on a connection each.
fn together(server: &Server) -> Vec<Value> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = requests()
            .into_iter()
            .map(|(path, body)| scope.spawn(move || ask(server, path, &body)))
            .collect();
        asked
            .into_iter()
            .map(|one| one.join().expect("an answer"))
            .collect()
    })
}

#[test]
fn the_same_request_has_one_answer() {
    let expected = alone();
    let roomy = Setting::default().engine;
    let drafting = Speculation {
        prompt_lookup: 5,
        mtp: true,
        max_num_seqs: 100,
    };
    let engines = [
        ("as it comes", 2, roomy),
        ("one thread", 1, roomy),
        ("three threads", 3, roomy),
        (
            "small chunks",
            2,
            EngineConfig {
                max_num_batched_tokens: 7,
                max_num_seqs: 7,
                ..roomy
            },
        ),
        (
            "preempted",
            2,
            EngineConfig {
                num_blocks: 34,
                ..roomy
            },
        ),
        (
            "drafts",
            2,
            EngineConfig {
                speculation: drafting,
                ..roomy
            },
        ),
        (
            "blocks of five",
            2,
            EngineConfig {
                block_size: 5,
                num_blocks: 200,
                speculation: drafting,
                ..roomy
            },
        ),
    ];
    for (name, threads, engine) in engines {
        let setting = Setting {
            threads,
            engine,
            ..Setting::default()
        };
        let server = Server::start(setting);
        for round in ["cold", "warm"] {
            let found = together(&server);
            for ((found, expected), (path, body)) in found.iter().zip(&expected).zip(requests()) {
                assert_eq!(found, expected, "{name}, {round}: {path} {body}");
            }
        }
        server.settle();
    }
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = Server::start(Setting::default());
    for (path, mut body) in requests() {
        let whole = ask(&server, path, &body);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let answer = server.post(path, &body);
        assert_eq!(
            answer.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
        let n = body["n"].as_u64().expect("a number") as usize;
        let mut texts = vec![(String::new(), String::new()); n];
        let mut token_ids = vec![Vec::new(); n];
        let mut finish = vec![Value::Null; n];
        let mut usage = Value::Null;
        for event in answer.events() {
            usage = event["usage"].clone();
            for choice in event["choices"].as_array().expect("choices") {
                let index = choice["index"].as_u64().expect("an index") as usize;
                let delta = &choice["delta"];
                let text = choice["text"].as_str().or(delta["content"].as_str());
                texts[index].0 += text.unwrap_or("");
                texts[index].1 += delta["reasoning_content"].as_str().unwrap_or("");
                let ids = choice["token_ids"].as_array().cloned().unwrap_or_default();
                token_ids[index].extend(ids);
                assert!(finish[index].is_null(), "something after the end");
                finish[index] = choice["finish_reason"].clone();
            }
        }
        for (index, choice) in whole["choices"]
            .as_array()
            .expect("choices")
            .iter()
            .enumerate()
        {
            let message = &choice["message"];
            let text = choice["text"].as_str().or(message["content"].as_str());
            assert_eq!(texts[index].0, text.unwrap_or(""), "{path}");
            let thought = message["reasoning_content"].as_str().unwrap_or("");
            assert_eq!(texts[index].1, thought, "{path}");
            assert_eq!(
                Value::from(token_ids[index].clone()),
                choice["token_ids"],
                "{path}"
            );
            assert_eq!(finish[index], choice["finish_reason"], "{path}");
        }
        for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage[name], whole["usage"][name], "{path}: {name}");
        }
    }
}

#[test]
fn the_first_of_several_choices_is_the_only_one() {
    let server = Server::start(Setting::default());
    for (path, mut body) in requests() {
        let several = ask(&server, path, &body);
        body["n"] = json!(1);
        let one = ask(&server, path, &body);
        assert_eq!(one["choices"][0], several["choices"][0], "{path}");
    }
}

/// Log-probabilities of an echoed prompt and of the tokens after it are those of one forward over
/// the whole document, which is what `score` and training compute.
#[test]
fn echoed_logprobs_are_those_of_training() {
    let server = Server::start(Setting::default());
    let backend = Cpu::new(1, Isa::best());
    let model = crate::support::model(&backend);
    for (path, body) in requests() {
        if body["echo"] != true {
            continue;
        }
        let answer = ask(&server, path, &body);
        for choice in answer["choices"].as_array().expect("choices") {
            let ids = |name: &str| -> Vec<u32> {
                let ids = choice[name].as_array().expect("ids").iter();
                ids.map(|id| id.as_u64().expect("an id") as u32).collect()
            };
            let document = [ids("prompt_token_ids"), ids("token_ids")].concat();
            let targets = Targets {
                rows: (0..document.len() as u32 - 1).collect(),
                token_ids: document[1..].to_vec(),
            };
            let mut acts = Activations::new(&model.config);
            let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
            model.forward(&backend, &Batch::documents(&[&document]), &mut acts, None);
            let (l, e) = (&mut logprobs, &mut entropies);
            model.logprobs(&backend, &mut acts, &targets, 1.0, l, e);
            let told = choice["logprobs"]["token_logprobs"]
                .as_array()
                .expect("a list");
            assert!(told[0].is_null());
            assert_eq!(told.len(), document.len());
            for (told, logprob) in told[1..].iter().zip(&logprobs) {
                let told = told.as_f64().expect("a number") as f32;
                assert_eq!(told.to_bits(), logprob.to_bits());
            }
        }
    }
}

#[test]
fn a_seed_that_the_server_chose_gives_the_answer_again() {
    let server = Server::start(Setting::default());
    let mut body = json!({"prompt": "w1 w2 w3", "max_tokens": 30, "temperature": 1.0});
    let first = ask(&server, "/v1/completions", &body);
    let second = ask(&server, "/v1/completions", &body);
    assert_ne!(first["seed"], second["seed"]);
    assert_ne!(first["choices"], second["choices"]);
    body["seed"] = first["seed"].clone();
    assert_eq!(ask(&server, "/v1/completions", &body), first);
    // Seeds may be negative, as OpenAI's clients send them.
    body["seed"] = json!(-1);
    assert_eq!(ask(&server, "/v1/completions", &body)["seed"], json!(-1));
}

#[test]
fn a_prefix_that_was_seen_costs_no_prefill() {
    let server = Server::start(Setting::default());
    let words: Vec<String> = (0..200).map(|i| format!("w{}", i * 7 % 60)).collect();
    let body = json!({"prompt": words.join(" "), "max_tokens": 1, "seed": 1});
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    let cold = server.post("/v1/completions", &body).json();
    let warm = server.post("/v1/completions", &body).json();
    assert_eq!(cached(&cold), 0);
    // Whole blocks of 16: 12 of them, and 8 tokens are left to be computed.
    assert_eq!(cached(&warm), 192);
    assert_eq!(cold["choices"], warm["choices"]);
    assert_eq!(server.metric("vllm:prefix_cache_hits_total"), 192.0);
}

/// One conversation through every API that has conversations, streamed and whole.
#[test]
fn all_apis_say_the_same() {
    let server = Server::start(Setting::default());
    for seed in 0..8 {
        let text = format!("w{seed} w7 w{}", seed * 5 % 60);
        let turn = json!([{"role": "user", "content": text}]);
        let chat = json!({"messages": turn, "seed": seed, "max_tokens": 40});
        let message = ask(&server, "/v1/chat/completions", &chat)["choices"][0]["message"].clone();
        let said = |name: &str| message[name].as_str().unwrap_or("").to_string();
        let expected = (said("reasoning"), said("content"));

        let mut body = json!({"input": text, "seed": seed, "max_output_tokens": 40});
        let answer = server.post("/v1/responses", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let parts = |answer: &Value, kind: &str| -> String {
            let items = answer["output"].as_array().expect("items").iter();
            let parts = items.flat_map(|item| item["content"].as_array().expect("content"));
            let texts = parts.filter(|part| part["type"] == kind);
            texts.filter_map(|part| part["text"].as_str()).collect()
        };
        let response = answer.json();
        let found = (
            parts(&response, "reasoning_text"),
            parts(&response, "output_text"),
        );
        assert_eq!(found, expected);
        body["stream"] = json!(true);
        let events = server.post("/v1/responses", &body).events();
        let joined = |kind: &str| -> String {
            let deltas = events.iter().filter(|event| event["type"] == kind);
            deltas.filter_map(|event| event["delta"].as_str()).collect()
        };
        let kinds = [
            "response.reasoning_text.delta",
            "response.output_text.delta",
        ];
        let [thought, text] = kinds.map(joined);
        assert_eq!((thought, text), expected);

        let mut body = json!({"messages": turn, "seed": seed, "max_tokens": 40});
        let answer = server.post("/v1/messages", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let message = answer.json();
        let blocks = |name: &str| -> String {
            let blocks = message["content"].as_array().expect("blocks").iter();
            blocks.filter_map(|block| block[name].as_str()).collect()
        };
        assert_eq!((blocks("thinking"), blocks("text")), expected);
        body["stream"] = json!(true);
        let events = server.post("/v1/messages", &body).events();
        let joined = |name: &str| -> String {
            let deltas = events.iter().map(|event| &event["delta"]);
            deltas.filter_map(|delta| delta[name].as_str()).collect()
        };
        assert_eq!((joined("thinking"), joined("text")), expected);
    }
}

/// `text_offset` says where in `text` a token stands, echoed or new.
#[test]
fn offsets_are_places_in_the_text() {
    let server = Server::start(Setting::default());
    for prompt in [json!("w1 w2 w3"), json!([1, 2, 3])] {
        let body = json!({
            "prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 9, "ignore_eos": true,
        });
        let choice = ask(&server, "/v1/completions", &body)["choices"][0].clone();
        let text: Vec<char> = choice["text"].as_str().expect("a text").chars().collect();
        let tokens = choice["logprobs"]["tokens"].as_array().expect("tokens");
        let offsets = choice["logprobs"]["text_offset"]
            .as_array()
            .expect("offsets");
        let mut shown = 0;
        for (token, offset) in tokens.iter().zip(offsets) {
            let token = token.as_str().expect("a text");
            // Special tokens of the completion have no text in it.
            if token != "<eos>" {
                let rest: String = text[offset.as_u64().expect("a place") as usize..]
                    .iter()
                    .collect();
                assert!(
                    rest.trim_start().starts_with(token),
                    "{token} at {offset}: {rest}"
                );
                shown += 1;
            }
        }
        assert!(shown > 8);
    }
}

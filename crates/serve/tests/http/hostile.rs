//! Requests as nobody should send them: an answer below 500 each time, and the next request is
//! served as if nothing had been.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use crate::support::{Server, Setting, request};
use engine::EngineConfig;
use serde_json::{Value, json};
use serve::Access;

#[track_caller]
fn assert_fine(server: &Server) {
    let body = json!({"prompt": "w1 w2", "max_tokens": 2, "seed": 1});
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.get("/health").status, 200);
}

/// An OpenAI error object, and its field.
#[track_caller]
fn refused(answer: &crate::support::Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    let error = answer.json()["error"].clone();
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty())
    );
    assert!(error["type"].is_string());
    error
}

/// Whether a request with an odd value in one field is refused; then the field is named.
#[track_caller]
fn refuses(server: &Server, path: &str, base: &Value, field: &str, value: &Value) -> bool {
    let mut body = base.clone();
    body[field] = value.clone();
    let answer = server.post(path, &body);
    let known = matches!(answer.status, 200 | 400 | 404);
    assert!(
        known,
        "{path} {field} {value}: {} {}",
        answer.status,
        answer.text()
    );
    if answer.status == 400 {
        let message = refused(&answer, 400)["message"].to_string();
        assert!(message.contains(field), "{path} {field} {value}: {message}");
    }
    answer.status == 400
}

#[test]
fn wrong_values_are_refused_by_the_name_of_their_field() {
    let server = Server::start(Setting::default());
    let odd = [
        json!(-1),
        json!(0),
        json!(1e308),
        json!("x"),
        json!([]),
        json!([[1]]),
        json!({}),
        json!(true),
        json!(4_294_967_296_u64),
        json!(u64::MAX),
        json!(0.5),
        json!({"a": {"b": 1}}),
        json!(""),
        json!([null]),
        json!("\u{0}"),
    ];
    let fields = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "best_of",
        "max_tokens",
        "seed",
        "stop",
        "max_completion_tokens",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "response_format",
        "messages",
        "model",
        "chat_template",
        "chat_template_kwargs",
        "reasoning_effort",
        "thinking",
        "thinking_token_budget",
        "stop_token_ids",
        "ignore_eos",
        "echo",
        "prompt",
        "suffix",
        "guided_regex",
        "guided_json",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "prompt_embeds",
        "return_token_ids",
        "unheard_of",
    ];
    let chat = json!({"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2});
    let text = json!({"prompt": "w1 w2", "max_tokens": 2});
    let mut refusals = 0;
    for field in fields {
        for value in &odd {
            for (path, base) in [("/v1/chat/completions", &chat), ("/v1/completions", &text)] {
                refusals += usize::from(refuses(&server, path, base, field, value));
            }
        }
    }
    assert!(refusals > 500, "only {refusals} were refused");
    server.settle();
    assert_fine(&server);
}

#[test]
fn wrong_values_to_the_other_apis_are_refused_too() {
    let server = Server::start(Setting::default());
    let odd = [
        json!(-1),
        json!(1e308),
        json!("x"),
        json!([[1]]),
        json!({"a": {"b": 1}}),
        json!([{"type": "x", "role": "user", "content": [{"type": "tool_use"}]}]),
        json!([{"type": "function_call"}]),
        json!(u64::MAX),
    ];
    let responses = json!({"input": "w1", "max_output_tokens": 2});
    let messages = json!({"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2});
    let fields = [
        (
            "/v1/responses",
            &responses,
            "input instructions max_output_tokens temperature top_p top_logprobs include tools \
             tool_choice parallel_tool_calls text reasoning stream seed metadata store \
             previous_response_id background conversation prompt truncation model",
        ),
        (
            "/v1/messages",
            &messages,
            "messages system max_tokens stop_sequences temperature top_p top_k tools tool_choice \
             thinking metadata stream output_config model",
        ),
        (
            "/v1/messages/count_tokens",
            &messages,
            "messages system tools tool_choice thinking model",
        ),
    ];
    let mut refusals = 0;
    for (path, base, names) in fields {
        for field in names.split_whitespace() {
            for value in &odd {
                refusals += usize::from(refuses(&server, path, base, field, value));
            }
        }
    }
    assert!(refusals > 150, "only {refusals} were refused");
    server.settle();
    assert_fine(&server);
}

#[test]
fn odd_conversations_are_refused_or_answered() {
    let server = Server::start(Setting::default());
    let message = |role: &str, content: Value| json!({"role": role, "content": content});
    let many = vec![message("user", json!("w1")); 10_001];
    for (messages, status) in [
        (json!([]), 400),
        (json!([message("king", json!("w1"))]), 400),
        (json!([message("user", json!(null))]), 400),
        (
            json!([message("user", json!([{"type": "image_url"}]))]),
            400,
        ),
        (json!([message("user", json!([{"type": "text"}]))]), 400),
        (
            json!([message("user", json!([{"type": "text", "text": "w1"}]))]),
            200,
        ),
        (
            json!([
                message("developer", json!("w3")),
                message("user", json!("w1"))
            ]),
            200,
        ),
        (json!([{"content": "w1"}]), 400),
        (json!(["w1"]), 400),
        (json!(many), 400),
        // The template refuses the role, and says so.
        (json!([message("tool", json!("w1"))]), 400),
        (
            json!([message("user", json!("w1 <eos> <think> </think> w2"))]),
            200,
        ),
    ] {
        let answer = server.post(
            "/v1/chat/completions",
            &json!({"messages": messages, "max_tokens": 2}),
        );
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    // Control tokens in a user's text are text: unknown words here.
    let body = json!({"messages": [message("user", json!("w1 <eos> w2"))]});
    let tokens = server.post("/tokenize", &body).json();
    let spelled_out = [1, 60, 60, 2, crate::support::THINK_OPEN];
    assert_eq!(tokens["tokens"], json!(spelled_out));
    assert_fine(&server);
}

#[test]
fn lengths_have_limits_and_both_numbers_are_told() {
    let server = Server::start(Setting::default());
    for (count, status) in [(511, 200), (512, 400), (513, 400), (51_200, 400)] {
        let body = json!({"prompt": vec![1; count], "max_tokens": 3});
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, status, "{count}");
        if status == 400 {
            let error = refused(&answer, 400);
            assert_eq!(error["code"], "context_length_exceeded");
            let message = error["message"].as_str().expect("a message");
            let told = message.contains(&count.to_string()) && message.contains("512");
            assert!(told, "{message}");
        } else {
            assert_eq!(answer.json()["usage"]["completion_tokens"], 1);
        }
    }
    // To the end of the context, and no further.
    let body = json!({"prompt": vec![1; 500], "max_tokens": 1_u64 << 40, "ignore_eos": true});
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // A prompt is scored without anything added.
    let body = json!({"prompt": "w1 w2", "max_tokens": 0, "echo": true, "logprobs": 1});
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["choices"][0]["text"], "w1 w2");
    assert_fine(&server);
}

#[test]
fn bodies_that_are_no_requests_are_refused_without_being_kept() {
    let server = Server::start(Setting::default());
    let deep = "[".repeat(200_000);
    for (body, status) in [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        ("null", 400),
        ("{\"prompt\": \"\u{fffd}", 400),
        (deep.as_str(), 400),
        (
            "{\"prompt\": \"w1\", \"prompt\": \"w2\", \"max_tokens\": 1}",
            200,
        ),
        ("{\"prompt\": \"\\ud800\", \"max_tokens\": 1}", 400),
    ] {
        let answer = server.post_text("/v1/completions", body);
        assert_eq!(answer.status, status, "{:.40}: {}", body, answer.text());
    }
    let json = ("content-type", "application/json");
    let invalid = [
        &request(
            "POST",
            "/v1/completions",
            &[json, ("content-length", "3")],
            "",
        )[..],
        b"\"\xff\"",
    ]
    .concat();
    refused(&server.raw(&invalid), 400);
    for headers in [
        vec![],
        vec![("content-type", "text/plain")],
        vec![("content-type", "application/x-www-form-urlencoded")],
        vec![json, ("content-encoding", "gzip")],
    ] {
        let answer = server.with_headers("POST", "/v1/completions", &headers, "{}");
        refused(&answer, 415);
    }
    // Refused by its length, before a byte of it is sent.
    let large = request(
        "POST",
        "/v1/completions",
        &[json, ("content-length", "99999999")],
        "",
    );
    refused(&server.raw(&large), 413);
    // And by what comes, where no length is told.
    let mut chunked = request(
        "POST",
        "/tokenize",
        &[json, ("transfer-encoding", "chunked")],
        "",
    );
    for _ in 0..160 {
        chunked.extend_from_slice(format!("{:x}\r\n", 1 << 16).as_bytes());
        chunked.extend(std::iter::repeat_n(b' ', 1 << 16));
        chunked.extend_from_slice(b"\r\n");
    }
    let status = server.raw(&chunked).status;
    assert!(matches!(status, 0 | 413), "{status}");
    assert_fine(&server);
}

#[test]
fn heads_that_are_too_much_are_refused() {
    let server = Server::start(Setting::default());
    let long = "a".repeat(1 << 20);
    let many: Vec<(String, String)> = (0..10_000)
        .map(|i| (format!("x-{i}"), "y".to_string()))
        .collect();
    let many: Vec<(&str, &str)> = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let path = format!("/{}", "a".repeat(100_000));
    for bytes in [
        request("GET", "/health", &[("x-long", &long)], ""),
        request("GET", "/health", &many, ""),
        request("GET", &path, &[], ""),
        b"GARBAGE\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
    ] {
        let status = server.raw(&bytes).status;
        assert!(status < 500, "{status}");
    }
    let both = [("content-length", "5"), ("transfer-encoding", "chunked")];
    let smuggled = request(
        "POST",
        "/tokenize",
        &both,
        "0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
    );
    assert!(server.raw(&smuggled).status < 500);
    assert_fine(&server);
}

#[test]
fn paths_and_methods_that_are_not_there_are_told_so() {
    let server = Server::start(Setting::default());
    for path in [
        "/v1",
        "//v1/models",
        "/V1/models",
        "/v1/models/",
        "/%2e%2e/etc/passwd",
        "/page/../x",
        "/page/none.js",
        "/page/%ff",
        "/v1/models/%ff",
        "/v1/models/../../x",
        "/v1/models/%2e%2e%2fx",
        "/v1/models/other",
    ] {
        refused(&server.get(path), 404);
    }
    refused(&server.get("/v1/completions"), 405);
    refused(&server.post("/metrics", &json!({})), 405);
    assert_eq!(server.get("/v1/models/small").json()["id"], "small");
    for name in ["../../x", "%2e%2e/", "/etc/passwd", "other", "\u{0}"] {
        let body = json!({"model": name, "prompt": "w1"});
        let error = refused(&server.post("/v1/completions", &body), 404);
        assert_eq!(error["code"], "model_not_found");
    }
    let body = json!({"model": "alias", "prompt": "w1", "max_tokens": 1});
    assert_eq!(
        server.post("/v1/completions", &body).json()["model"],
        "small"
    );
    let index = server.get("/");
    assert!(
        index
            .header("content-security-policy")
            .is_some_and(|policy| {
                policy.contains("default-src 'none'") && !policy.contains("unsafe")
            })
    );
}

#[test]
fn strangers_are_kept_out() {
    let setting = Setting {
        access: Access {
            api_keys: vec!["sk-secret".to_string()],
            cors_origins: vec!["https://friend.example".to_string()],
            ..Access::default()
        },
        ..Setting::default()
    };
    let server = Server::start(setting);
    refused(&server.get("/v1/models"), 401);
    refused(&server.get("/nothing"), 401);
    refused(&server.get("/v1/models?key=sk-secret"), 401);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/").status, 200);
    let key = ("authorization", "Bearer sk-secret");
    let get = |headers: &[(&str, &str)]| server.with_headers("GET", "/v1/models", headers, "");
    assert_eq!(get(&[key]).status, 200);
    assert_eq!(get(&[key, ("host", "evil.com")]).status, 403);
    let foreign = get(&[key, ("origin", "https://evil.com")]);
    assert_eq!(foreign.status, 403);
    assert_eq!(foreign.header("access-control-allow-origin"), None);
    let friendly = get(&[key, ("origin", "https://friend.example")]);
    assert_eq!(friendly.status, 200);
    let allowed = friendly.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://friend.example"));
    let preflight = [
        ("origin", "https://friend.example"),
        ("access-control-request-method", "POST"),
    ];
    let answer = server.with_headers("OPTIONS", "/v1/chat/completions", &preflight, "");
    assert_eq!(answer.status, 204);
    let preflight = [("origin", "https://evil.com"), preflight[1]];
    let answer = server.with_headers("OPTIONS", "/v1/chat/completions", &preflight, "");
    assert_eq!(answer.status, 403);
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let server = Server::start(Setting::default());
    let json = ("content-type", "application/json");
    for i in 0..60 {
        let stream = i % 2 == 0;
        let body = json!({
            "prompt": vec![1; 300], "max_tokens": 200, "ignore_eos": true, "stream": stream, "n": 3,
        });
        let mut socket = server.connect();
        let bytes = request("POST", "/v1/completions", &[json], &body.to_string());
        socket.write_all(&bytes).expect("the server reads");
        match i % 3 {
            0 => drop(socket),
            1 => {
                std::thread::sleep(Duration::from_millis(i));
                let _ = socket.shutdown(Shutdown::Both);
            }
            _ if stream => {
                let mut some = [0; 400];
                let _ = socket.read(&mut some);
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    server.settle();
    assert_fine(&server);
    server.settle();
}

#[test]
fn a_full_queue_is_said_to_be_full() {
    let roomy = Setting::default().engine;
    let setting = Setting {
        engine: EngineConfig {
            max_num_seqs: 2,
            ..roomy
        },
        places: 6,
        ..Setting::default()
    };
    let server = Server::start(setting);
    let body = json!({"prompt": "w1", "max_tokens": 400, "ignore_eos": true, "seed": 3});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = || server.post("/v1/completions", &body);
        let asked: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        asked
            .into_iter()
            .map(|one| one.join().expect("an answer"))
            .collect()
    });
    let mut served = 0;
    for answer in &answers {
        match answer.status {
            200 => {
                served += 1;
                assert_eq!(answer.json()["choices"], answers_first(&answers));
            }
            _ => {
                let error = refused(answer, 429);
                assert_eq!(error["code"], "queue_full");
                assert!(answer.header("retry-after").is_some());
            }
        }
    }
    assert!((6..40).contains(&served), "{served} were served");
    let many = json!({"prompt": "w1", "n": 7});
    refused(&server.post("/v1/completions", &many), 400);
    server.settle();
    assert_fine(&server);
}

fn answers_first(answers: &[crate::support::Answer]) -> Value {
    let first = answers.iter().find(|answer| answer.status == 200);
    first.expect("one was served").json()["choices"].clone()
}

#[test]
fn a_server_that_stops_lets_go_in_order() {
    let mut server = Server::start(Setting::default());
    let body = json!({"prompt": "w1", "max_tokens": 300, "ignore_eos": true, "stream": true});
    let json = ("content-type", "application/json");
    let bytes = request("POST", "/v1/completions", &[json], &body.to_string());
    let mut socket = server.connect();
    socket.write_all(&bytes).expect("the server reads");
    let mut begun = [0; 100];
    socket.read_exact(&mut begun).expect("the stream begins");
    server.stop().expect("a stop in order");
    let mut rest = String::new();
    socket.read_to_string(&mut rest).expect("the stream ends");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    assert!(rest.contains("[DONE]"));
}

#[test]
fn the_drain_has_an_end() {
    let setting = Setting {
        drain_time: Duration::ZERO,
        ..Setting::default()
    };
    let mut server = Server::start(setting);
    let body = json!({
        "prompt": "w1", "max_tokens": 500, "ignore_eos": true, "stream": true, "n": 100,
    });
    let json = ("content-type", "application/json");
    let bytes = request("POST", "/v1/completions", &[json], &body.to_string());
    let mut socket = server.connect();
    socket.write_all(&bytes).expect("the server reads");
    let mut begun = [0; 100];
    socket.read_exact(&mut begun).expect("the stream begins");
    server.stop().expect("a stop in order");
    let mut rest = String::new();
    let _ = socket.read_to_string(&mut rest);
    assert!(rest.contains("shutting down"), "{rest}");
}

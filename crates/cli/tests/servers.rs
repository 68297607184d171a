//! `chat` and `eval` against a server that a test plays.

mod fixture;
#[path = "fixture/mock_server.rs"]
mod mock_server;
#[path = "fixture/small_model.rs"]
mod small_model;

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fixture::{Ran, Scratch, command, ran, run};
use mock_server::{Heard, MockServer, NOTHING, Reply};
use serde_json::{Value, json};
use tasks::{Task, TraceStyle};

/// Runs with these lines as standard input.
fn told(command: &mut Command, input: &str) -> Ran {
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    ran(child.wait_with_output().expect("it ends"))
}

fn refused(ran: Ran, code: i32, words: &[&str]) {
    let ran = ran.expect_code(code);
    for word in words {
        assert!(
            ran.stderr.contains(word),
            "`{word}` is not in: {}",
            ran.stderr
        );
    }
    assert!(ran.stderr.contains("bruchteil:   help: "), "{}", ran.stderr);
    assert!(!ran.stderr.contains("broken invariant"), "{}", ran.stderr);
}

#[test]
fn an_answer_streams_in_with_its_thinking() {
    let server = MockServer::start(|_, _| Reply::answer(&["a ü", " b"], &["c", " \u{1b}漢"]));
    let url = format!("{}/v1/", server.url);
    let arguments = [
        "chat", &url, "--prompt", "1 2", "--system", "be brief", "--top-p", "0.9",
    ];
    let output = command(&arguments)
        .env("OPENAI_API_KEY", "sk-environment")
        .output();
    let found = ran(output.expect("the binary runs")).expect_code(0);
    assert_eq!(found.stdout, "<think> a ü b </think>\nc \u{1b}漢\n");
    assert!(found.stderr.contains("[3 tokens, "), "{}", found.stderr);
    assert!(
        found
            .stderr
            .contains("prompt of 5 tokens, 4 of them cached]"),
        "{}",
        found.stderr
    );
    let [heard] = &server.heard()[..] else {
        panic!("one request")
    };
    assert_eq!(heard.what, "POST /v1/chat/completions");
    assert_eq!(heard.header("authorization"), Some("Bearer sk-environment"));
    let expected = json!({
        "model": "mock-1", "stream": true, "stream_options": {"include_usage": true}, "seed": 0,
        "top_p": 0.9,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "1 2"},
        ],
    });
    assert_eq!(heard.body, expected);
}

#[test]
fn standard_input_is_one_message_and_json_one_object() {
    let server = MockServer::start(|_, _| Reply::answer(&["a"], &["b"]));
    let mut chat = command(&["chat", "--json", "--seed", "7", "--model-name", "other"]);
    let found = told(chat.env("OPENAI_BASE_URL", &server.url), "1\n2\n").expect_code(0);
    assert_eq!(found.stderr, "");
    let object: Value = serde_json::from_str(&found.stdout).expect("one object");
    let expected = json!({"model": "other", "thinking": "a", "answer": "b", "seed": 7,
        "finish_reason": "stop", "prompt_tokens": 5, "cached_tokens": 4, "completion_tokens": 3});
    assert_eq!(object, expected);
    let heard = &server.heard()[0];
    assert_eq!(
        heard.body["messages"],
        json!([{"role": "user", "content": "1\n2"}])
    );
    assert_eq!(heard.header("authorization"), None);
    let empty = told(&mut command(&["chat", &server.url]), "\n");
    refused(empty, 2, &["standard input has no message"]);
}

/// The n-th answer is `answer n`.
fn counting(_: &Heard, before: usize) -> Reply {
    let answer = format!("answer {before}");
    Reply::answer(&["hm"], &[&answer])
}

fn turns(heard: &Heard) -> Vec<&str> {
    let messages = heard.body["messages"].as_array().expect("messages");
    messages
        .iter()
        .map(|message| message["content"].as_str().expect("text"))
        .collect()
}

#[test]
fn a_conversation_goes_on_turn_by_turn() {
    let scratch = Scratch::new();
    let kept = scratch.path().join("kept.json").display().to_string();
    let server = MockServer::start(counting);
    let lines = format!(
        "one\ntwo \\\nlines\n/regenerate\n/set temperature 0.5\n/system s\n//three\n/save {kept}\n\
         /new\nfour\n/quit\nnever\n"
    );
    let mut chat = command(&["chat", &server.url, "--interactive", "--seed", "40"]);
    let found = told(&mut chat, &lines).expect_code(0);
    let answers: Vec<&str> = found
        .stdout
        .lines()
        .filter(|line| line.starts_with('a'))
        .collect();
    assert_eq!(
        answers,
        ["answer 0", "answer 1", "answer 2", "answer 3", "answer 4"]
    );
    let heard = server.heard();
    assert_eq!(turns(&heard[1]), ["one", "answer 0", "two \nlines"]);
    assert_eq!(heard[2].body["messages"], heard[1].body["messages"]);
    let three = ["s", "one", "answer 0", "two \nlines", "answer 2", "/three"];
    assert_eq!(turns(&heard[3]), three);
    assert_eq!(turns(&heard[4]), ["s", "four"]);
    let seeds: Vec<&Value> = heard.iter().map(|heard| &heard.body["seed"]).collect();
    assert_eq!(seeds, [40, 40, 41, 40, 40]);
    assert_eq!(heard[2].body.get("temperature"), None);
    assert_eq!(heard[3].body["temperature"], json!(0.5));
    let text = fs::read_to_string(&kept).expect("the conversation");
    let saved: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(saved["messages"][6]["reasoning_content"], json!("hm"));
    assert_eq!(saved["messages"][6]["content"], json!("answer 3"));

    let mine = scratch.file("mine.txt", "mine");
    let mut chat = command(&["chat", &server.url, "--interactive"]);
    refused(
        told(&mut chat, &format!("/save {mine}\n")),
        1,
        &["mine.txt", "exists"],
    );
    assert_eq!(fs::read_to_string(&mine).expect("my file"), "mine");
    for (line, word) in [
        ("/regenerate", "nothing was said"),
        ("/set heat 1", "settings are"),
        ("/nonsense", "no such command"),
    ] {
        let mut chat = command(&["chat", &server.url, "--interactive"]);
        refused(told(&mut chat, &format!("{line}\n")), 2, &[word]);
    }
}

#[test]
fn a_busy_server_is_asked_again_as_it_says() {
    let busy = |status| Reply::json(status, &json!({"error": {"message": "too many"}}));
    let server = MockServer::start(move |_, before| match before {
        0 => busy(429).with("Retry-After: 0"),
        1 => busy(503).with("Retry-After: 0.1"),
        _ => Reply::answer(&[], &["done"]),
    });
    let found = run(&["chat", &server.url, "--prompt", "1"]).expect_code(0);
    assert_eq!(found.stdout, "done\n");
    assert_eq!(server.heard().len(), 3);

    let server = MockServer::start(move |_, _| busy(429).with("Retry-After: 3600"));
    let found = run(&["chat", &server.url, "--prompt", "1"]);
    refused(found, 1, &["429", "too many", "busy"]);
    assert_eq!(server.heard().len(), 1);
}

#[test]
fn a_connection_that_went_away_is_tried_once_more() {
    let nothing = || Reply {
        status: NOTHING,
        ..Reply::stream("")
    };
    let server = MockServer::start(move |_, before| match before {
        0 => nothing(),
        _ => Reply::answer(&[], &["done"]),
    });
    let found = run(&["chat", &server.url, "--prompt", "1"]).expect_code(0);
    assert_eq!(found.stdout, "done\n");
    let server = MockServer::start(move |_, _| nothing());
    let found = run(&["chat", &server.url, "--prompt", "1"]);
    refused(found, 1, &["no connection"]);
    assert_eq!(server.heard().len(), 2);
}

/// Says `more` until nobody listens.
fn endless() -> Reply {
    let event = "data: {\"choices\": [{\"delta\": {\"content\": \"more \"}}]}\n\n";
    Reply {
        parts: vec![event.as_bytes().to_vec()],
        is_endless: true,
        ..Reply::stream("")
    }
}

/// Waits until the answer has begun, and sends SIGINT.
fn interrupt(child: &mut Child) -> BufReader<ChildStdout> {
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut begun = [0; 4];
    stdout.read_exact(&mut begun).expect("an answer");
    assert_eq!(&begun, b"more");
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status();
    assert!(sent.expect("kill runs").success());
    stdout
}

#[test]
fn an_interrupt_ends_the_answer_and_the_connection() {
    let server = MockServer::start(|_, before| match before {
        0 | 1 => endless(),
        _ => Reply::answer(&[], &["done"]),
    });
    let mut chat = command(&["chat", &server.url, "--prompt", "1"]);
    let mut child = chat
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut rest = String::new();
    interrupt(&mut child)
        .read_to_string(&mut rest)
        .expect("text");
    assert!(rest.ends_with('\n'), "{rest}");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));

    let mut chat = command(&["chat", &server.url, "--interactive"]);
    let pipes = chat.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"one\n").expect("it reads");
    let mut stdout = interrupt(&mut child);
    stdin.write_all(b"two\n").expect("it reads on");
    drop(stdin);
    stdout.read_to_string(&mut rest).expect("text");
    assert!(rest.ends_with("\ndone\n"), "{rest}");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    // What was said before the interrupt stays said.
    let turns = turns(&server.heard()[2]).len();
    assert_eq!(turns, 3);
    let patience = Instant::now();
    while server.left() < 2 {
        assert!(patience.elapsed() < Duration::from_secs(10), "nobody left");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn refusals_are_said_in_words_and_never_with_the_key() {
    for (status, words) in [
        (400, ["400", "bad sk-*** here"]),
        (401, ["401", "--api-key"]),
        (404, ["404", "--model-name"]),
        (500, ["500", "log"]),
    ] {
        let message = json!({"error": {"message": "bad sk-secret here\n\u{1b}[2J"}});
        let server = MockServer::start(move |_, _| Reply::json(status, &message));
        let arguments = [
            "chat",
            &server.url,
            "--prompt",
            "1",
            "--api-key",
            "sk-secret",
        ];
        let found = run(&arguments);
        assert_eq!(
            server.heard()[0].header("authorization"),
            Some("Bearer sk-secret")
        );
        assert!(!found.stderr.contains("sk-secret"), "{}", found.stderr);
        assert!(!found.stderr.contains('\u{1b}'), "{}", found.stderr);
        let code = if status == 500 { 1 } else { 2 };
        refused(
            found,
            code,
            &words.map(|word| word.split(" sk-***").next().unwrap_or(word)),
        );
    }
}

#[test]
fn one_of_several_models_is_to_be_named() {
    let answer = |_: &Heard, _| Reply::answer(&[], &["done"]);
    for (models, code, words) in [
        (&["small", "large"][..], 2, "2 models: small, large"),
        (&[], 1, "no model"),
    ] {
        let server = MockServer::with_models(models, answer);
        let found = run(&["chat", &server.url, "--prompt", "1"]);
        refused(found, code, &[words, "--model-name"]);
        let arguments = [
            "chat",
            &server.url,
            "--prompt",
            "1",
            "--model-name",
            "large",
        ];
        run(&arguments).expect_code(0);
        assert_eq!(server.heard()[0].body["model"], "large");
    }
}

#[test]
fn a_redirect_is_named_and_not_followed() {
    let other = MockServer::start(|_, _| Reply::answer(&[], &["no"]));
    let place = format!("{}/v1/chat/completions", other.url);
    let location = format!("Location: {place}");
    let server =
        MockServer::start(move |_, _| Reply::json(307, &json!({})).with(location.as_str()));
    let found = run(&[
        "chat",
        &server.url,
        "--prompt",
        "1",
        "--api-key",
        "sk-secret",
    ]);
    refused(found, 2, &["307", &place]);
    assert!(other.heard().is_empty());
}

#[test]
fn a_stream_that_fails_ends_in_words() {
    let begun = "data: {\"choices\": [{\"delta\": {\"content\": \"begun\"}}]}\n\n";
    let long = format!("data: {}", "a".repeat(2 << 20));
    for (tail, word) in [
        ("", "ended before the answer did"),
        (
            "data: {\"error\": {\"message\": \"out of memory\"}}\n\n",
            "out of memory",
        ),
        ("data: {\n\n", "not JSON"),
        (&long, "a line of more than 1048576 bytes"),
    ] {
        let text = format!("{begun}{tail}");
        let server = MockServer::start(move |_, _| Reply {
            parts: vec![text.clone().into_bytes()],
            ..Reply::stream("")
        });
        let found = run(&["chat", &server.url, "--prompt", "1"]);
        assert_eq!(found.stdout, "begun\n");
        refused(found, 1, &[word]);
    }
    let server = MockServer::start(|_, _| Reply::json(200, &json!({"choices": []})));
    let found = run(&["chat", &server.url, "--prompt", "1"]);
    refused(found, 1, &["does not stream"]);
}

#[test]
fn where_no_server_is() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", free.local_addr().expect("an address"));
    drop(free);
    refused(
        run(&["chat", &url, "--prompt", "1"]),
        1,
        &["no connection", &url],
    );
    let eval = ["eval", &url, "--task", "countdown"];
    refused(run(&eval), 1, &["no connection", "bruchteil serve"]);
    let eval = ["eval", "http://", "--task", "countdown"];
    refused(run(&eval), 2, &["not an address"]);
    let chat = ["chat", "http://me:secret@127.0.0.1", "--prompt", "1"];
    refused(run(&chat), 2, &["no user or password"]);
    let chat = ["chat", &url, "--prompt", "1", "--api-key", "a b"];
    refused(run(&chat), 2, &["the key"]);
    run(&["eval", &url, "--task", "countdown", "--concurrency", "0"]).expect_code(2);
    run(&["chat", &url, "--prompt", "1", "--interactive"]).expect_code(2);
}

/// Thinking and answer of a Countdown question; right ones where the first number is even and the
/// task's own working finds them.
fn worked(question: &str) -> (String, String, bool) {
    let words: Vec<u32> = question
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let (&target, numbers) = words.split_last().expect("a question");
    let numbers = numbers.to_vec();
    let is_even = numbers[0] % 2 == 0;
    let problem = tasks::Problem { numbers, target };
    let trace = tasks::Countdown::three().trace(&problem, TraceStyle::Row, &mut |_| 0);
    let Some(trace) = trace.filter(|_| is_even) else {
        // An answer that cannot be read.
        return ("~".to_string(), "?".to_string(), false);
    };
    let (thinking, answer) = trace.split_once(tasks::THINK_CLOSE).expect("both");
    let answer = answer.trim().trim_end_matches(tasks::EOS).trim();
    (thinking.trim().to_string(), answer.to_string(), true)
}

/// A chat, or a text, with the worked answer.
fn judge_me(heard: &Heard) -> Reply {
    let (thinking, answer, _) = worked(&question(heard));
    let mut choice = match heard.what.contains("/chat/") {
        true => json!({"message": {"role": "assistant", "reasoning": thinking, "content": answer}}),
        false => json!({"text": format!(" {thinking} </think> {answer}")}),
    };
    choice["finish_reason"] = json!("stop");
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 10});
    Reply::json(200, &json!({"choices": [choice], "usage": usage}))
}

fn question(heard: &Heard) -> String {
    let body = &heard.body;
    let text = body["prompt"]
        .as_str()
        .or(body["messages"][0]["content"].as_str());
    text.expect("a question").to_string()
}

#[test]
fn eval_asks_a_server_and_judges_its_answers() {
    let server = MockServer::start(|heard, _| judge_me(heard));
    let mut results = Vec::new();
    for extra in [&["--greedy"][..], &["--greedy", "--completions"]] {
        let before = server.heard().len();
        let arguments = [
            "eval",
            &server.url,
            "--task",
            "countdown",
            "--problems",
            "40",
            "--json",
        ];
        let found = run(&[&arguments[..], extra, &["--seed", "3"]].concat()).expect_code(0);
        let result: Value = serde_json::from_str(&found.stdout).expect("one object");
        let heard = &server.heard()[before..];
        assert_eq!(heard.len(), 40);
        let is_right = |heard: &&Heard| worked(&question(heard)).2;
        let right = heard.iter().filter(is_right).count();
        assert!((1..40).contains(&right), "{right}");
        assert_eq!(result["accuracy"], json!(right as f64 / 40.0));
        assert_eq!(result["well_formed"], result["accuracy"]);
        assert_eq!(result["mean_length"], json!(10.0));
        assert_eq!(result["num_tokens"], json!(600));
        assert_eq!(result["task"], json!("countdown3"));
        let mut seeds: Vec<u64> = heard
            .iter()
            .map(|heard| heard.body["seed"].as_u64().expect("a seed"))
            .collect();
        seeds.sort_unstable();
        assert_eq!(seeds, (3..43).collect::<Vec<u64>>());
        assert!(
            heard
                .iter()
                .all(|heard| heard.body["temperature"] == json!(0.0))
        );
        assert!(
            heard
                .iter()
                .all(|heard| heard.body["model"] == json!("mock-1"))
        );
        results.push(result);
    }
    assert_eq!(results[0], results[1]);
}

#[test]
fn a_greedy_result_is_that_of_the_same_model_here() {
    let scratch = Scratch::new();
    let model = small_model::write(&scratch);
    let behind = model.clone();
    let server = MockServer::start(move |heard, _| {
        let limit = heard.body["max_tokens"].to_string();
        let question = question(heard);
        let arguments = ["--temperature", "0", "--json", "--max-tokens", &limit];
        let arguments = [
            &["generate", &behind, "--chat", "--prompt", &question],
            &arguments[..],
        ];
        let found = run(&arguments.concat()).expect_code(0);
        let found: Value = serde_json::from_str(&found.stdout).expect("one object");
        let completion = &found["completions"][0];
        let count = |ids: &Value| ids.as_array().expect("ids").len();
        let message = json!({"content": completion["answer"], "reasoning": completion["thinking"]});
        let reason = &completion["finish_reason"];
        let usage = json!({"prompt_tokens": count(&found["prompt_token_ids"]),
            "completion_tokens": count(&completion["token_ids"])});
        let choice = json!({"message": message, "finish_reason": reason});
        Reply::json(200, &json!({"choices": [choice], "usage": usage}))
    });
    let eval = |model: &str| {
        let task = [
            "--task",
            "multiplication",
            "--digits",
            "1,1",
            "--problems",
            "8",
        ];
        let how = ["--greedy", "--json", "--show", "8"];
        let found = run(&[&["eval", model], &task[..], &how].concat()).expect_code(0);
        let object: Value = serde_json::from_str(&found.stdout).expect("one object");
        object
    };
    let here = eval(&model);
    assert_eq!(
        here["transcripts"].as_array().expect("transcripts").len(),
        8
    );
    assert_eq!(eval(&server.url), here);
}

#[test]
fn a_few_requests_may_fail_and_not_more() {
    let bad = || Reply::json(500, &json!({"error": {"message": "no luck"}}));
    let server = MockServer::start(move |heard, before| match before {
        3 | 5 => bad(),
        _ => judge_me(heard),
    });
    let arguments = [
        "eval",
        &server.url,
        "--task",
        "countdown",
        "--problems",
        "20",
    ];
    let found = run(&[&arguments[..], &["--concurrency", "1", "--json"]].concat()).expect_code(0);
    let result: Value = serde_json::from_str(&found.stdout).expect("one object");
    assert_eq!(result["problems"], json!(18));
    let unanswered = result["unanswered"].as_array().expect("those that failed");
    let numbers: Vec<&Value> = unanswered.iter().map(|one| &one["problem"]).collect();
    assert_eq!(numbers, [3, 5]);
    assert!(
        found.stderr.contains("problem 5: error: "),
        "{}",
        found.stderr
    );

    let server = MockServer::start(move |_, _| bad());
    for problems in ["3", "200"] {
        let arguments = [
            "eval",
            &server.url,
            "--task",
            "countdown",
            "--problems",
            problems,
        ];
        refused(run(&arguments), 1, &["requests failed", "no luck"]);
    }
    assert!(server.heard().len() < 60, "it goes on asking");
}

//! Calls of tools come out of an answer whole, however it is cut, and nothing else does.

use text::{AnswerPiece, ToolCallSplitter, ToolFormat};

const V3_CALLS: &str = "Let me see.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>\
    weather\n```json\n{\"city\": \"Köln `x` ```\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>\
    function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
const V31_CALLS: &str = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>\
    {\"city\": \"<b>\"} <｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜><｜tool▁call▁end｜>\
    <｜tool▁calls▁end｜>";

/// Format, answer, its text, and its calls.
type Case = (
    ToolFormat,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const DEEPSEEK: ToolFormat = ToolFormat::DeepSeek;
const HERMES: ToolFormat = ToolFormat::Hermes;
const LLAMA: ToolFormat = ToolFormat::Llama;

const CASES: &[Case] = &[
    (DEEPSEEK, " a < b <｜tool \n", " a < b <｜tool \n", &[]),
    (
        DEEPSEEK,
        V3_CALLS,
        "Let me see.",
        &[("weather", "{\"city\": \"Köln `x` ```\"}"), ("time", "{}")],
    ),
    (
        ToolFormat::DeepSeekV31,
        V31_CALLS,
        "",
        &[("weather", "{\"city\": \"<b>\"}"), ("time", "{}")],
    ),
    // A tool that is called `function`; one without arguments; text behind.
    (
        DEEPSEEK,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜>\n b",
        "b",
        &[("function", "{\"a\":1}")],
    ),
    (
        DEEPSEEK,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n<｜tool▁call▁end｜>",
        "",
        &[("time", "{}")],
    ),
    // Markers inside strings are strings.
    (
        ToolFormat::DeepSeekV31,
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": \"\\\"<｜tool▁call▁end｜>\"}<｜tool▁call▁end｜>",
        "",
        &[("f", "{\"a\": \"\\\"<｜tool▁call▁end｜>\"}")],
    ),
    // Ends are missing.
    (
        DEEPSEEK,
        "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{\"a\"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"b\": 1\n",
        "",
        &[("time", "{\"a\""), ("f", "{\"b\": 1")],
    ),
    // No calls: no name, no separator.
    (
        DEEPSEEK,
        "a <｜tool▁call▁begin｜> <｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "a <｜tool▁call▁begin｜> <｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        &[],
    ),
    (
        DEEPSEEK,
        "a\n<｜tool▁call▁begin｜>functi",
        "a\n<｜tool▁call▁begin｜>functi",
        &[],
    ),
    (
        HERMES,
        "Well.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \
         \"}\\\"</tool_call>\"}}\n\
         </tool_call>\n<tool_call>\n{\"arguments\": [1, {}], \"name\": \"time\"}\n</tool_call>\n",
        "Well.",
        &[
            ("weather", "{\"city\": \"}\\\"</tool_call>\"}"),
            ("time", "[1, {}]"),
        ],
    ),
    (
        HERMES,
        "<tool_call>{\"name\": \"time\"}</tool_call> and <tool_cal> more </tool_call>",
        "and <tool_cal> more </tool_call>",
        &[("time", "{}")],
    ),
    // A brace is missing; the next call is whole. Then an end that is missing.
    (
        HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}\n</tool_call>\n\
         <tool_call>{\"name\": \"g\", \"arguments\": {\"a\": 2}}\n\
         <tool_call>{\"name\": \"h\", \"arguments\": {\"a\": \"x",
        "",
        &[
            ("f", "{\"a\": 1}"),
            ("g", "{\"a\": 2}"),
            ("h", "{\"a\": \"x"),
        ],
    ),
    (
        HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \
         <tool_call>{\"name\": \"g\"}</tool_call>",
        "",
        &[("f", "{\"a\": "), ("g", "{}")],
    ),
    // No calls.
    (
        HERMES,
        "\n<tool_call> \n<b>{\"name\": 1}</tool_call> ",
        "\n<tool_call> \n<b>{\"name\": 1}</tool_call> ",
        &[],
    ),
    (
        HERMES,
        "<tool_call>\n{\"name\": \"f",
        "<tool_call>\n{\"name\": \"f",
        &[],
    ),
    (HERMES, "a <tool_", "a <tool_", &[]),
    (
        LLAMA,
        " {\"name\": \"weather\", \"parameters\": {\"city\": \"a; b\"}}; {\"name\": \"time\", \
         \"parameters\": {}};",
        "",
        &[("weather", "{\"city\": \"a; b\"}"), ("time", "{}")],
    ),
    (
        LLAMA,
        "\n<|python_tag|>{\"type\": \"function\", \"name\": \"other\", \"parameters\": {\"a\": 1}}",
        "",
        &[("other", "{\"a\": 1}")],
    ),
    (
        LLAMA,
        "Sure. <|python_tag|>{\"name\": \"time\", \"parameters\": {}} ; so",
        "Sure.; so",
        &[("time", "{}")],
    ),
    // No calls: an unknown name without the tag, an object further on, something else.
    (
        LLAMA,
        "{\"name\": \"other\", \"parameters\": {}}",
        "{\"name\": \"other\", \"parameters\": {}}",
        &[],
    ),
    (
        LLAMA,
        "is {\"name\": \"time\", \"parameters\": {}}",
        "is {\"name\": \"time\", \"parameters\": {}}",
        &[],
    ),
    (LLAMA, " {\"a\": [1, 2]} \n", " {\"a\": [1, 2]} \n", &[]),
    (
        LLAMA,
        "<|python_tag|>print(1)",
        "<|python_tag|>print(1)",
        &[],
    ),
];

/// Text and calls.
type Answer = (String, Vec<(String, String)>);

fn split<'a>(format: ToolFormat, chunks: impl Iterator<Item = &'a str>) -> Answer {
    let names = ["weather", "time"].map(String::from).to_vec();
    let mut splitter = ToolCallSplitter::new(format, names);
    let mut pieces: Vec<_> = chunks.flat_map(|chunk| splitter.push(chunk)).collect();
    pieces.extend(splitter.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            AnswerPiece::Text(piece) => {
                assert!(!piece.is_empty());
                text += &piece;
            }
            AnswerPiece::CallBegins { index, name } => {
                assert_eq!(index, calls.len());
                calls.push((name, String::new()));
            }
            AnswerPiece::CallArguments { index, fragment } => {
                assert!(!fragment.is_empty());
                assert_eq!(index + 1, calls.len());
                calls[index].1 += &fragment;
            }
        }
    }
    (text, calls)
}

fn cuts(text: &str) -> Vec<usize> {
    (0..=text.len())
        .filter(|&at| text.is_char_boundary(at))
        .collect()
}

#[test]
fn calls_are_found_at_any_cut() {
    for &(format, answer, text, calls) in CASES {
        let own = |&(name, arguments): &(&str, &str)| (name.to_string(), arguments.to_string());
        let expected = (text.to_string(), calls.iter().map(own).collect::<Vec<_>>());
        assert_eq!(split(format, [answer].into_iter()), expected, "{answer}");
        let cuts = cuts(answer);
        for (index, &first) in cuts.iter().enumerate() {
            for &second in &cuts[index..] {
                let chunks = [&answer[..first], &answer[first..second], &answer[second..]];
                assert_eq!(split(format, chunks.into_iter()), expected, "{chunks:?}");
            }
        }
        let characters = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
        assert_eq!(split(format, characters), expected, "{answer}");
    }
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut splitter = ToolCallSplitter::new(HERMES, Vec::new());
    assert_eq!(
        splitter.push("Hm. <tool_call>\n{\"name\": \"f"),
        [AnswerPiece::Text("Hm.".into())]
    );
    let begins = AnswerPiece::CallBegins {
        index: 0,
        name: "f".to_string(),
    };
    assert_eq!(splitter.push("\", \"argum"), [begins]);
    let fragment = |fragment: &str| AnswerPiece::CallArguments {
        index: 0,
        fragment: fragment.to_string(),
    };
    assert_eq!(splitter.push("ents\": {\"a\""), [fragment("{\"a\"")]);
    assert_eq!(splitter.push(": \"<"), [fragment(": \"<")]);
    assert_eq!(splitter.push("\"}}\n</tool_call>"), [fragment("\"}")]);
    assert_eq!(splitter.calls(), 1);
    assert!(splitter.finish().is_empty());
}

/// Answers put together at random from what markers and objects are made of.
#[test]
fn nonsense_is_split_alike_at_any_cut() {
    let mut state = 0x7001_u64;
    println!("seed {state:#x}");
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize
    };
    let parts = [
        "{",
        "}",
        "\"",
        "\\",
        "name",
        "\"name\"",
        ":",
        "\"arguments\"",
        ",",
        " ",
        "\n",
        "é",
        "[",
        "]",
        "1",
        ";",
        "`",
        "```",
        "```json\n",
        "<",
        "<tool_call>",
        "</tool_call>",
        "function",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "<|python_tag|>",
        "{\"name\": \"time\"",
        "\"parameters\": {",
    ];
    let mut begun = 0;
    for _ in 0..3000 {
        let answer: String = (0..random() % 20)
            .map(|_| parts[random() % parts.len()])
            .collect();
        for format in [DEEPSEEK, HERMES, LLAMA] {
            let whole = split(format, [answer.as_str()].into_iter());
            begun += whole.1.len();
            let cuts = cuts(&answer);
            let characters = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
            assert_eq!(split(format, characters), whole, "{format:?} {answer:?}");
            let at = cuts[random() % cuts.len()];
            let halves = [&answer[..at], &answer[at..]];
            assert_eq!(
                split(format, halves.into_iter()),
                whole,
                "{format:?} {halves:?}"
            );
            if format
                .markers()
                .iter()
                .all(|marker| !answer.contains(marker))
                && whole.1.is_empty()
            {
                assert_eq!(whole.0, answer, "{format:?}");
            }
        }
    }
    assert!(begun > 100, "{begun}");
}

/// Whatever never gets to be a call is given back as text after a bound, and all of it.
#[test]
fn endless_beginnings_are_text() {
    let filling = "x".repeat(3 << 20);
    for (format, start) in [
        (DEEPSEEK, "<｜tool▁call▁begin｜>"),
        (DEEPSEEK, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
        (HERMES, "<tool_call>{\"a\": \""),
        (HERMES, "<tool_call>{\"arguments\": \""),
        (LLAMA, "{\"a\": \""),
    ] {
        let answer = format!("{start}{filling}");
        let mut splitter = ToolCallSplitter::new(format, Vec::new());
        let pieces = splitter.push(&answer);
        assert_eq!(pieces, [AnswerPiece::Text(answer)], "{start}");
    }
    let mut splitter = ToolCallSplitter::new(HERMES, Vec::new());
    let white = " ".repeat(3 << 20);
    let Some(AnswerPiece::Text(given)) = splitter.push(&white).pop() else {
        panic!("white space is text at some point");
    };
    assert!(given.len() > 1 << 20);
    let nested = format!(
        "<tool_call>{{\"name\":\"f\",\"arguments\":{}",
        "[".repeat(1 << 20)
    );
    assert_eq!(
        split(HERMES, [nested.as_str()].into_iter()).1[0].1.len(),
        1 << 20
    );
}

#[test]
fn templates_name_their_format() {
    let v3 = "'<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + name + '\\n```json\\n'";
    let v31 = "'<｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>'";
    let qwen = "{{- '<tool_call>\\n{\"name\": \"' }}";
    let coder = "{{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}";
    let llama = "{{- 'Respond in the format {\"name\": function name, \"parameters\": ' }}";
    let expected = [
        (v3, Some(DEEPSEEK)),
        (v31, Some(ToolFormat::DeepSeekV31)),
        (qwen, Some(HERMES)),
        (coder, None),
        (llama, Some(LLAMA)),
        ("{{ '<|python_tag|>' }}", Some(LLAMA)),
        (text::REASONING_TEMPLATE, None),
        ("", None),
    ];
    for (template, format) in expected {
        assert_eq!(ToolFormat::of_template(template), format, "{template}");
    }
}

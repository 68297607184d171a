//! Patterns, grammars, calls of tools, thinking; and shapes made to do harm.

mod guide_fixtures;

use engine::{Allowed, Constraint};
use guide_fixtures::{Chance, Fixture, allows};
use serde_json::{Value, json};
use serve::guide::{Grammars, Guide, Shape, Thinking};
use text::{AnswerPiece, Tokenizer, ToolCallSplitter, ToolFormat, word_level};

fn regex(pattern: &str) -> Shape {
    Shape::Regex(pattern.to_string())
}

fn lark(grammar: &str) -> Shape {
    Shape::Lark(grammar.to_string())
}

#[test]
fn walks_match_their_pattern() {
    let mut chance = Chance::new(0x4E6E);
    let fixture = Fixture::plain();
    for _ in 0..20 {
        let shape = regex("[a-f]{2,4}-\\d{3}/(yes|no)");
        let text = fixture
            .walk(&mut fixture.guide(&shape), &mut chance)
            .unwrap();
        let (letters, rest) = text.split_once('-').unwrap();
        let (digits, word) = rest.split_once('/').unwrap();
        assert!((2..=4).contains(&letters.len()));
        assert!(letters.bytes().all(|byte| (b'a'..=b'f').contains(&byte)));
        assert_eq!(digits.chars().count(), 3);
        assert!(digits.chars().all(char::is_numeric), "{digits}");
        assert!(["yes", "no"].contains(&word));
        let shape = lark("start: item (\",\" item)*\nitem: /[é-ü]/ | \"the\"");
        let text = fixture
            .walk(&mut fixture.guide(&shape), &mut chance)
            .unwrap();
        for item in text.split(',') {
            let one = item.chars().next().unwrap();
            let is_letter = item.chars().count() == 1 && ('é'..='ü').contains(&one);
            assert!(is_letter || item == "the", "{text}");
        }
    }
    assert!(fixture.takes(&regex("the( aaaa)*"), "the aaaa aaaa"));
    assert!(!fixture.takes(&regex("the( aaaa)*"), "the aaa"));
    assert!(!fixture.takes(&regex("the( aaaa)+"), "the"));
    assert!(fixture.takes(&regex("a\\\\"), "a\\"));
    // Tokens that steer are not spelled by a pattern, and stop tokens are no text.
    assert!(!fixture.takes(&regex(".*"), "a<think>b"));
    assert!(fixture.takes(&regex(".*"), "a<thin"));
}

#[test]
fn masks_do_not_depend_on_other_completions() {
    let fixture = Fixture::plain();
    let shape = Shape::JsonObject;
    let masks = || {
        let mut guide = fixture.guide(&shape);
        let ids = fixture.tokenizer.encode("{\"a\": [1, \"b\"]}").unwrap();
        let mut masks = Vec::new();
        for id in ids {
            if let Allowed::Only(words) = guide.allowed() {
                masks.push(words.to_vec());
            }
            guide.accept(id);
        }
        masks
    };
    let before = masks();
    let mut chance = Chance::new(0xD07);
    for _ in 0..3 {
        fixture.walk(&mut fixture.guide(&shape), &mut chance);
    }
    assert_eq!(masks(), before);
}

fn tools() -> Vec<(String, Value)> {
    let weather = json!({
        "type": "object",
        "properties": { "city": { "type": "string", "maxLength": 8 }, "days": { "enum": [1, 7] } },
        "required": ["city"],
        "additionalProperties": false,
    });
    vec![
        ("get_weather".to_string(), weather),
        ("now".to_string(), json!({ "additionalProperties": false })),
    ]
}

/// Text and calls of an answer.
fn split(format: ToolFormat, answer: &str) -> (String, Vec<(String, String)>) {
    let names = tools().into_iter().map(|(name, _)| name).collect();
    let mut splitter = ToolCallSplitter::new(format, names);
    let mut pieces = splitter.push(answer);
    pieces.extend(splitter.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            AnswerPiece::Text(more) => text += &more,
            AnswerPiece::CallBegins { name, .. } => calls.push((name, String::new())),
            AnswerPiece::CallArguments { index, fragment } => calls[index].1 += &fragment,
        }
    }
    (text, calls)
}

const FORMATS: [ToolFormat; 4] = [
    ToolFormat::DeepSeek,
    ToolFormat::DeepSeekV31,
    ToolFormat::Hermes,
    ToolFormat::Llama,
];

fn calls_of(format: ToolFormat, at_least_one: bool, parallel: bool) -> Shape {
    Shape::ToolCalls {
        format,
        tools: tools(),
        at_least_one,
        parallel,
    }
}

fn check_call((name, arguments): &(String, String)) {
    let arguments: Value = serde_json::from_str(arguments)
        .unwrap_or_else(|error| panic!("{name}: {arguments}: {error}"));
    let map = arguments.as_object().unwrap();
    match name.as_str() {
        "get_weather" => {
            assert!(map["city"].as_str().unwrap().chars().count() <= 8);
            assert!(map.keys().all(|key| key == "city" || key == "days"));
            assert!(map.get("days").is_none_or(|days| days == 1 || days == 7));
        }
        "now" => assert!(map.is_empty()),
        other => panic!("no tool {other}"),
    }
}

#[test]
fn forced_calls_parse_back() {
    let mut chance = Chance::new(0x7001);
    for fixture in [Fixture::plain(), Fixture::with_markers()] {
        for format in FORMATS {
            let mut most = 0;
            for parallel in [false, true] {
                let shape = calls_of(format, true, parallel);
                for _ in 0..10 {
                    let walk = fixture.walk(&mut fixture.guide(&shape), &mut chance);
                    let Some(answer) = walk else {
                        continue;
                    };
                    let (text, calls) = split(format, &answer);
                    assert_eq!(text, "", "{format:?}: {answer}");
                    assert!(
                        !calls.is_empty() && (parallel || calls.len() == 1),
                        "{answer}"
                    );
                    calls.iter().for_each(check_call);
                    most = most.max(calls.len());
                }
            }
            assert!(most > 1, "{format:?}: never several calls");
        }
    }
}

/// What the models' own templates write must be possible.
#[test]
fn calls_as_the_templates_write_them_are_let_through() {
    let arguments = r#"{"city": "Köln", "days": 7}"#;
    let v3 = |name: &str, arguments: &str| {
        format!(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```\
             <｜tool▁call▁end｜>"
        )
    };
    let v31 = |name: &str, arguments: &str| {
        format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>")
    };
    let hermes = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let llama = |name: &str, arguments: &str| {
        format!("{{\"name\": \"{name}\", \"parameters\": {arguments}}}")
    };
    let both = |call: &dyn Fn(&str, &str) -> String, between: &str| {
        call("get_weather", arguments) + between + &call("now", "{}")
    };
    let wrapped = |calls: String| format!("<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>");
    let answers = [
        wrapped(both(&v3, "\n")),
        wrapped(both(&v31, "")),
        both(&hermes, "\n"),
        both(&llama, "; "),
    ];
    for fixture in [Fixture::plain(), Fixture::with_markers()] {
        for (format, answer) in FORMATS.into_iter().zip(&answers) {
            let (text, calls) = split(format, answer);
            assert_eq!((text.as_str(), calls.len()), ("", 2));
            for (at_least_one, parallel) in [(true, true), (false, true), (true, false)] {
                let shape = calls_of(format, at_least_one, parallel);
                assert_eq!(
                    fixture.takes(&shape, answer),
                    parallel,
                    "{format:?}: {answer}"
                );
                let wrong = answer.replace("Köln", "Köln and more");
                assert!(!fixture.takes(&shape, &wrong), "{format:?}");
                let free = fixture.takes(&shape, "No < tool\nis needed.");
                assert_eq!(free, !at_least_one, "{format:?}");
            }
        }
        let shape = calls_of(ToolFormat::Hermes, false, true);
        assert!(fixture.takes(&shape, &format!("Let me see.\n{}", answers[2])));
        assert!(!fixture.takes(&shape, "Let me see.\n<tool_call>\n{}\n</tool_call>"));
        assert!(!fixture.takes(&calls_of(ToolFormat::Llama, false, true), "{\"a\": 1}"));
    }
}

#[test]
fn tools_that_cannot_be_called_are_refused() {
    let fixture = Fixture::plain();
    let compile = |tools: Vec<(&str, Value)>| {
        let tools = tools
            .into_iter()
            .map(|(name, schema)| (name.to_string(), schema));
        let shape = Shape::ToolCalls {
            format: ToolFormat::Hermes,
            tools: tools.collect(),
            at_least_one: true,
            parallel: true,
        };
        fixture.grammars.compile(&shape).err()
    };
    for tools in [
        vec![],
        vec![("", json!({}))],
        vec![("a\nstart: b", json!({}))],
        vec![("a", json!({ "type": "string" }))],
        vec![("a", json!([]))],
        vec![("a", json!({ "properties": { "b": { "not": {} } } }))],
        vec![("a", json!({})); 1000],
    ] {
        let reason = compile(tools.clone());
        assert!(reason.is_some(), "{tools:?}");
        println!("{reason:?}");
    }
    assert_eq!(
        compile(vec![("a", json!(null)), ("b.c-D_1", json!({}))]),
        None
    );
}

/// Ids of `<think>` and `</think>`.
fn tags(fixture: &Fixture) -> (u32, u32) {
    let id = |tag| fixture.tokenizer.token_to_id(tag).unwrap();
    (id("<think>"), id("</think>"))
}

fn thinking(fixture: &Fixture, primed: bool, budget: Option<usize>) -> Thinking {
    let (open, close) = tags(fixture);
    Thinking {
        primed,
        opens: vec![open],
        close: vec![close],
        budget,
    }
}

#[test]
fn the_grammar_waits_for_the_end_of_thinking() {
    let fixture = Fixture::plain();
    let (open, close) = tags(&fixture);
    let shape = regex("ok");
    let ids = fixture.tokenizer.encode("x{ok").unwrap();
    for primed in [true, false] {
        let compiled = fixture.compile(&shape);
        let mut guide = Guide::new(Some(thinking(&fixture, primed, None)), Some(compiled));
        if !primed {
            assert!(allows(guide.allowed(), open) && allows(guide.allowed(), ids[2]));
            assert!(!allows(guide.allowed(), ids[0]) && !allows(guide.allowed(), close));
            guide.accept(open);
        }
        for &id in &ids {
            assert!(allows(guide.allowed(), id) && allows(guide.allowed(), close));
            assert!(
                !allows(guide.allowed(), fixture.stop),
                "an end without an answer"
            );
            guide.accept(id);
        }
        guide.accept(close);
        for &id in &ids[2..] {
            assert!(allows(guide.allowed(), id));
            assert!(!allows(guide.allowed(), ids[0]) && !allows(guide.allowed(), close));
            guide.accept(id);
        }
        assert!(matches!(guide.allowed(), Allowed::Nothing));
        assert_eq!(guide.failure().get(), None);
    }
    // A completion that does not open thinking is in its answer.
    let mut guide = Guide::new(
        Some(thinking(&fixture, false, None)),
        Some(fixture.compile(&shape)),
    );
    guide.accept(ids[2]);
    assert!(allows(guide.allowed(), ids[3]) && !allows(guide.allowed(), open));
}

#[test]
fn the_budget_ends_thinking() {
    let fixture = Fixture::plain();
    let (_, close) = tags(&fixture);
    let mut guide = Guide::new(Some(thinking(&fixture, true, Some(3))), None);
    for id in [5, 6, 7] {
        assert!(matches!(guide.allowed(), Allowed::Any));
        guide.accept(id);
    }
    assert!(matches!(guide.allowed(), Allowed::Exactly(id) if id == close));
    guide.accept(close);
    assert!(matches!(guide.allowed(), Allowed::Any));
    // A budget of nothing; thinking that ends by itself; thinking that is never opened.
    let mut guide = Guide::new(Some(thinking(&fixture, true, Some(0))), None);
    assert!(matches!(guide.allowed(), Allowed::Exactly(id) if id == close));
    let mut guide = Guide::new(Some(thinking(&fixture, true, Some(2))), None);
    for id in [5, close, 6, 7, 8] {
        assert!(matches!(guide.allowed(), Allowed::Any));
        guide.accept(id);
    }
    let mut guide = Guide::new(Some(thinking(&fixture, false, Some(1))), None);
    for id in [5, 6, 7] {
        assert!(matches!(guide.allowed(), Allowed::Any));
        guide.accept(id);
    }
}

/// Tags of several tokens: the end is found wherever it begins, and finished where it has begun.
#[test]
fn tags_of_several_tokens_are_followed() {
    let spelled = Thinking {
        primed: false,
        opens: vec![1, 2],
        close: vec![3, 3, 4],
        budget: Some(4),
    };
    let steps = |tokens: &[u32]| {
        let mut guide = Guide::new(Some(spelled.clone()), None);
        tokens.iter().for_each(|&id| guide.accept(id));
        match guide.allowed() {
            Allowed::Exactly(id) => Some(id),
            _ => None,
        }
    };
    assert_eq!(steps(&[1, 2, 9, 9, 9]), None);
    assert_eq!(steps(&[1, 2, 9, 9, 9, 9]), Some(3));
    assert_eq!(steps(&[1, 2, 9, 9, 9, 3]), Some(3));
    assert_eq!(steps(&[1, 2, 9, 9, 3, 3]), Some(4));
    assert_eq!(steps(&[1, 2, 9, 3, 3, 3]), Some(4));
    assert_eq!(steps(&[1, 2, 9, 3, 3, 3, 4]), None);
    assert_eq!(steps(&[1, 2, 3, 3, 4, 9, 9, 9, 9]), None);
    assert_eq!(steps(&[1, 9, 9, 9, 9, 9]), None);
}

#[test]
fn a_token_that_was_not_allowed_ends_the_completion() {
    let fixture = Fixture::plain();
    let mut guide = fixture.guide(&regex("ok"));
    let failure = guide.failure();
    guide.accept(fixture.tokenizer.encode("x").unwrap()[0]);
    assert!(matches!(guide.allowed(), Allowed::Nothing));
    assert!(failure.get().is_some());
}

/// Either a word why, or a grammar whose first steps are bounded; and the next one works.
#[test]
fn shapes_made_to_do_harm_are_borne() {
    let fixture = Fixture::with_markers();
    let mut chance = Chance::new(0xBAD);
    let schema = |schema: Value| Shape::JsonSchema(schema);
    let nested = |open: &str, close: &str, depth| {
        regex(&format!("{}a{}", open.repeat(depth), close.repeat(depth)))
    };
    let mut deep = json!({ "type": "null" });
    for _ in 0..60 {
        deep = json!({ "type": "array", "items": deep });
    }
    let many: Vec<String> = (0..1_000_000).map(|index| index.to_string()).collect();
    let some: Vec<String> = (0..1000).map(|index| format!("value {index}")).collect();
    let loops = json!({ "$ref": "#/$defs/a", "$defs": {
        "a": { "$ref": "#/$defs/b" }, "b": { "allOf": [{ "$ref": "#/$defs/a" }] },
    }});
    let doubled: serde_json::Map<String, Value> = (0..40)
        .map(|index| {
            let next = json!({ "$ref": format!("#/$defs/d{}", index + 1) });
            (
                format!("d{index}"),
                json!({ "allOf": [next, { "anyOf": [next, next] }] }),
            )
        })
        .chain([("d40".to_string(), json!({ "type": "null" }))])
        .collect();
    let chain: String = (0..4000)
        .map(|index| format!("r{index}: r{}\n", index + 1))
        .collect();
    let double = |name: &str| -> String {
        let rule = |index| format!("{name}{}: {name}{index} {name}{index}\n", index + 1);
        (0..40).map(rule).collect()
    };
    let (doubled_terminals, doubled_rules) = (double("T"), double("r"));
    let must_fail = [
        nested("(", ")", 60_000),
        nested("(", ")", 5_000),
        nested("[", "]", 1000),
        regex(&"a".repeat(1 << 20)),
        regex(&"a?".repeat(8000)),
        regex(""),
        regex("a\\"),
        regex("(((("),
        regex("a{1,1000000000}"),
        lark(&format!(
            "start: {}\"a\"{}",
            "(".repeat(60_000),
            ")".repeat(60_000)
        )),
        lark(&format!("start: /{}/", "a?".repeat(30_000))),
        lark("start: start"),
        lark("start: \"a\" | missing"),
        lark("start: <[99999999]>"),
        lark("\0"),
        schema(json!({ "type": "string", "description": "x".repeat(10 << 20) })),
        schema(json!({ "enum": many })),
        schema(json!({ "type": "array", "minItems": 1_000_000_000 })),
        schema(json!({ "type": "string", "pattern": "(".repeat(60_000) })),
        schema(json!({ "patternProperties": { "(".repeat(60_000): {} } })),
        schema(loops),
    ];
    for shape in &must_fail {
        let Err(reason) = fixture.grammars.compile(shape) else {
            panic!("{:.200} compiles", format!("{shape:?}"));
        };
        assert!(!reason.is_empty() && reason.len() < 1000, "{reason}");
        println!("{:.60}: {reason}", format!("{shape:?}"));
    }
    let may_work = [
        regex("(a+)+b"),
        regex("(.*){1,1000}{1,1000}"),
        regex("\\p{L}{1,10000}"),
        regex("(a|aa)*{1,60000}"),
        regex(&"a?".repeat(4000)),
        regex(&"(a|b)*c".repeat(1000)),
        regex(&format!("({})", vec!["[a-z]+"; 1000].join("|"))),
        regex(".*a.{60}"),
        lark("start: start start | \"a\""),
        lark(&format!("start: r0\n{chain}r4000: \"a\"")),
        lark("start: (\"a\" | start) ~ 60000"),
        lark(&format!("start: T40\n{doubled_terminals}T0: \"a\"?")),
        lark(&format!("start: r40\n{doubled_rules}r0: \"a\"?")),
        schema(deep),
        schema(json!({ "enum": some })),
        schema(json!({ "$ref": "#/$defs/d0", "$defs": doubled })),
        schema(json!({ "type": "array", "minItems": 1000, "maxItems": 60000 })),
        schema(json!({ "type": "string", "minLength": 60000 })),
        schema(json!({ "type": "string", "pattern": "(.*){1,1000}{1,1000}" })),
        schema(json!({ "type": "string", "pattern": "\\p{L}{1,10000}" })),
        schema(json!({ "type": "number", "multipleOf": 0.000_000_1 })),
        schema(json!({ "type": "integer", "minimum": -1e300, "maximum": 1e300 })),
    ];
    for shape in &may_work {
        let shown = format!("{shape:?}");
        match fixture.grammars.compile(shape) {
            Err(reason) => println!("{shown:.60}: {reason:.200}"),
            Ok(compiled) => {
                let mut guide = Guide::new(None, Some(compiled));
                let steps = steps(&fixture, &mut guide, &mut chance);
                println!("{shown:.60}: {steps} steps, {:?}", guide.failure().get());
            }
        }
    }
    assert!(fixture.takes(&regex("a+b"), "aab"));
}

/// A walk of at most 200 steps, which may fail, but only by ending.
fn steps(fixture: &Fixture, guide: &mut Guide, chance: &mut Chance) -> usize {
    for step in 0..200 {
        let choice = match guide.allowed() {
            Allowed::Nothing => return step,
            Allowed::Only(words) => {
                let words = words.to_vec();
                let ids =
                    (0..fixture.vocab_size as u32).filter(|&id| allows(Allowed::Only(&words), id));
                let ids: Vec<u32> = ids.collect();
                ids[chance.below(ids.len())]
            }
            Allowed::Any | Allowed::Exactly(_) => panic!("free in a grammar"),
        };
        guide.accept(choice);
    }
    200
}

#[test]
fn the_cache_is_bounded() {
    let fixture = Fixture::plain();
    let mut most = (0, 0);
    for index in 0..150 {
        fixture.compile(&regex(&format!("word {index}")));
        let (entries, bytes) = fixture.grammars.cached();
        most = (most.0.max(entries), most.1.max(bytes));
    }
    assert_eq!(most.0, 64);
    assert!(most.1 <= 64 << 20);
    // One that was used is not compiled, or kept, twice.
    let before = fixture.grammars.cached();
    fixture.compile(&regex("word 149"));
    assert_eq!(fixture.grammars.cached(), before);
    // Heavy ones make room for themselves.
    for index in 0..30 {
        let description = format!("{index}{}", "x".repeat(30_000));
        let schema = json!({ "type": "null", "description": description });
        fixture.compile(&Shape::JsonSchema(schema));
        assert!(fixture.grammars.cached().1 <= 64 << 20);
    }
    assert!(fixture.grammars.cached().0 < 30);
}

#[test]
fn models_without_grammars_say_why() {
    let words = ["<unk>", "<eos>", "a"].map(String::from);
    let json = word_level(&words, &["<eos>"]).unwrap();
    let words = Tokenizer::from_json(&json).unwrap();
    let Err(reason) = Grammars::new(&words, 3, &[1]) else {
        panic!("words are no bytes");
    };
    assert!(reason.contains("tokenizer"), "{reason}");
    let fixture = Fixture::plain();
    for stops in [&[][..], &[u32::MAX]] {
        let Err(reason) = Grammars::new(&fixture.tokenizer, fixture.vocab_size, stops) else {
            panic!("nothing ends");
        };
        assert!(reason.contains("stop token"), "{reason}");
    }
}

/// Marks that a model spells in tokens of its own choice are marks to whoever reads the text.
#[test]
fn marks_are_found_in_the_text() {
    let fixture = Fixture::plain();
    let (open, close) = tags(&fixture);
    let tokenizer = std::sync::Arc::new(fixture.tokenizer.clone());
    let spell = |text: &str| {
        let ids = fixture.tokenizer.encode_plain(text).unwrap();
        assert!(ids.len() > 1 && !ids.contains(&open) && !ids.contains(&close));
        ids
    };
    let compiled = fixture.compile(&regex("ok"));
    let waiting = Guide::new(Some(thinking(&fixture, true, None)), Some(compiled));
    let mut waiting = waiting.by_text(tokenizer.clone());
    let x = fixture.tokenizer.encode("x").unwrap()[0];
    for id in spell("x </think") {
        waiting.accept(id);
        assert!(allows(waiting.allowed(), x), "still thinking");
    }
    spell("> \n")
        .iter()
        .take(1)
        .for_each(|&id| waiting.accept(id));
    assert!(!allows(waiting.allowed(), x), "the grammar is armed");
    assert_eq!(waiting.failure().get(), None);
    // White space in front, and a mark that is spelled, open thinking like any other.
    for beginning in [vec![spell(" \n")[0], open], spell("<think>")] {
        let budget = Guide::new(Some(thinking(&fixture, false, Some(2))), None);
        let mut budget = budget.by_text(tokenizer.clone());
        for id in beginning.into_iter().chain([x, x]) {
            assert!(matches!(budget.allowed(), Allowed::Any));
            budget.accept(id);
        }
        assert!(matches!(budget.allowed(), Allowed::Exactly(id) if id == close));
    }
}

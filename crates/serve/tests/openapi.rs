//! The document at `/openapi.json` against the sources of the server: its routes, and the fields
//! that its parsers read.

use std::collections::BTreeSet;

use serde_json::Value;

const DOCUMENT: &str = include_str!("../src/openapi.json");

fn document() -> Value {
    serde_json::from_str(DOCUMENT).expect("the document is JSON")
}

/// What stands between two marks, wherever they come.
fn between<'a>(text: &'a str, begin: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(begin)
        .skip(1)
        .filter_map(move |rest| rest.split(end).next())
}

#[test]
fn the_document_has_the_routes_of_the_router_and_no_others() {
    let mut served = BTreeSet::new();
    let source = include_str!("../src/routes.rs");
    for route in between(source, ".route(", '\n') {
        let path = between(route, "\"", '"').next().expect("a path");
        let method = ["get", "post"]
            .into_iter()
            .find(|method| route.contains(&format!(" {method}(")));
        let method = method.unwrap_or_else(|| panic!("no method in {route}"));
        served.insert((path.replace("{*", "{"), method.to_string()));
    }
    let mut documented = BTreeSet::new();
    for (path, methods) in document()["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            documented.insert((path.clone(), method.clone()));
        }
    }
    assert!(served.len() >= 15, "{served:?}");
    assert_eq!(served, documented);
}

/// Every name of a property that a schema has, also behind its references.
fn names(document: &Value, schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Array(list) => list.iter().for_each(|value| names(document, value, found)),
        Value::Object(object) => {
            if let Some(Value::String(place)) = object.get("$ref") {
                let place = place.trim_start_matches('#');
                let target = document.pointer(place);
                let target = target.unwrap_or_else(|| panic!("nothing at {place}"));
                names(document, target, found);
            }
            if let Some(Value::Object(properties)) = object.get("properties") {
                found.extend(properties.keys().cloned());
            }
            object
                .values()
                .for_each(|value| names(document, value, found));
        }
        _ => {}
    }
}

/// The names of the fields that a source asks for in so many words.
fn read_in(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or(source);
    let asks = [
        "text", "flag", "list", "object", "float", "whole", "clamped", "value", "required",
    ];
    let mut found = BTreeSet::new();
    for ask in asks {
        let call = format!(".{ask}(\"");
        found.extend(between(code, &call, '"').map(str::to_string));
    }
    found
}

#[test]
fn the_document_has_the_fields_that_are_read() {
    let document = document();
    let sampling = include_str!("../src/sampling.rs");
    let shape = include_str!("../src/shape.rs");
    let chat = include_str!("../src/chat.rs");
    let conversation = include_str!("../src/conversation.rs");
    let responses = [
        include_str!("../src/responses.rs"),
        include_str!("../src/responses/input.rs"),
    ];
    let messages = [
        include_str!("../src/messages.rs"),
        include_str!("../src/messages/input.rs"),
    ];
    let routes: [(&str, Vec<&str>); 5] = [
        (
            "/v1/chat/completions",
            vec![chat, conversation, sampling, shape],
        ),
        (
            "/v1/completions",
            vec![include_str!("../src/completions.rs"), sampling],
        ),
        (
            "/v1/responses",
            vec![responses[0], responses[1], sampling, shape],
        ),
        ("/v1/messages", vec![messages[0], messages[1], sampling]),
        ("/v1/messages/count_tokens", vec![messages[1]]),
    ];
    for (path, sources) in routes {
        let schema = &document["paths"][path]["post"]["requestBody"];
        let mut documented = BTreeSet::new();
        names(&document, schema, &mut documented);
        let read: BTreeSet<String> = sources.into_iter().flat_map(read_in).collect();
        assert!(read.len() >= 6, "{path}: {read:?}");
        let missing: Vec<&String> = read.difference(&documented).collect();
        assert!(missing.is_empty(), "{path} lacks {missing:?}");
    }
}

#[test]
fn every_answer_of_every_route_is_documented() {
    let document = document();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let Some(post) = methods.get("post") else {
            assert!(methods["get"]["responses"]["403"].is_object(), "{path}");
            continue;
        };
        for status in [
            "200", "400", "401", "403", "404", "405", "408", "413", "415",
        ] {
            assert!(post["responses"][status].is_object(), "{path} {status}");
        }
        // Where sequences are asked for, there may be no room.
        let generates = post["responses"]["200"]["content"]["text/event-stream"].is_object();
        assert_eq!(generates, post["responses"]["429"].is_object(), "{path}");
        assert_eq!(generates, post["responses"]["503"].is_object(), "{path}");
    }
}

/// The value of a constant of a source.
fn constant(source: &str, name: &str) -> u64 {
    let begin = format!("const {name}: ");
    let declared = between(source, &begin, ';').next();
    let value = declared.and_then(|declared| declared.split(" = ").nth(1));
    let value = value
        .unwrap_or_else(|| panic!("no {name}"))
        .replace('_', "");
    value.parse().expect("a number")
}

#[test]
fn limits_are_those_of_the_code() {
    let document = document();
    let sampling = include_str!("../src/sampling.rs");
    let conversation = include_str!("../src/conversation.rs");
    let completions = include_str!("../src/completions.rs");
    let responses = include_str!("../src/responses.rs");
    let schemas = &document["components"]["schemas"];
    for (source, name, place) in [
        (sampling, "MAX_N", "/ChatRequest/properties/n/maximum"),
        (sampling, "MAX_N", "/TextRequest/properties/n/maximum"),
        (
            sampling,
            "MAX_TOP_LOGPROBS",
            "/ChatRequest/properties/top_logprobs/maximum",
        ),
        (
            sampling,
            "MAX_TOP_LOGPROBS",
            "/TextRequest/properties/logprobs/maximum",
        ),
        (
            sampling,
            "MAX_TOP_LOGPROBS",
            "/ResponseRequest/properties/top_logprobs/maximum",
        ),
        (sampling, "MAX_STOPS", "/Stops/anyOf/2/maxItems"),
        (sampling, "MAX_STOP_BYTES", "/Stops/anyOf/1/maxLength"),
        (
            sampling,
            "MAX_STOP_IDS",
            "/Sampling/properties/stop_token_ids/maxItems",
        ),
        (
            conversation,
            "MAX_MESSAGES",
            "/ChatRequest/properties/messages/maxItems",
        ),
        (
            conversation,
            "MAX_MESSAGES",
            "/MessageConversation/properties/messages/maxItems",
        ),
        (
            conversation,
            "MAX_MESSAGES",
            "/ResponseRequest/properties/input/anyOf/1/maxItems",
        ),
        (
            conversation,
            "MAX_TOOLS",
            "/ChatRequest/properties/tools/maxItems",
        ),
        (
            conversation,
            "MAX_TOOLS",
            "/MessageConversation/properties/tools/maxItems",
        ),
        (
            completions,
            "MAX_PROMPTS",
            "/TextRequest/properties/prompt/anyOf/2/maxItems",
        ),
        (
            responses,
            "MAX_METADATA",
            "/ResponseRequest/properties/metadata/maxProperties",
        ),
    ] {
        let documented = schemas.pointer(place).and_then(Value::as_u64);
        assert_eq!(
            documented,
            Some(constant(source, name)),
            "{name} at {place}"
        );
    }
}

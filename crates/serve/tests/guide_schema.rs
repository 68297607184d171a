//! Whatever way a walk takes through a schema's masks, it ends in JSON that fits the schema.

mod guide_fixtures;

use guide_fixtures::{Chance, Fixture};
use serde_json::{Value, json};
use serve::guide::Shape;

/// Whether a value fits a schema, for the keywords that are used here.
fn fits(value: &Value, schema: &Value, root: &Value) -> bool {
    let Some(keywords) = schema.as_object() else {
        return schema == &json!(true);
    };
    keywords
        .iter()
        .all(|(keyword, wanted)| fits_keyword(value, keyword, wanted, schema, root))
}

fn fits_keyword(
    value: &Value,
    keyword: &str,
    wanted: &Value,
    schema: &Value,
    root: &Value,
) -> bool {
    let text = value.as_str();
    let length = text.map(|text| text.chars().count() as f64);
    let number = value.as_f64();
    let items = value.as_array();
    let count = items.map(|items| items.len() as f64);
    let limit = wanted.as_f64();
    let at_least = |value: Option<f64>| value.is_none_or(|value| value >= limit.unwrap());
    let at_most = |value: Option<f64>| value.is_none_or(|value| value <= limit.unwrap());
    match keyword {
        "type" => match wanted {
            Value::Array(kinds) => kinds.iter().any(|kind| is_of_type(value, kind)),
            kind => is_of_type(value, kind),
        },
        "enum" => wanted.as_array().unwrap().contains(value),
        "const" => value == wanted,
        "anyOf" => wanted
            .as_array()
            .unwrap()
            .iter()
            .any(|schema| fits(value, schema, root)),
        "allOf" => wanted
            .as_array()
            .unwrap()
            .iter()
            .all(|schema| fits(value, schema, root)),
        "$ref" => {
            let place = wanted.as_str().unwrap().strip_prefix('#').unwrap();
            fits(value, root.pointer(place).unwrap(), root)
        }
        "minLength" => at_least(length),
        "maxLength" => at_most(length),
        "minimum" => at_least(number),
        "maximum" => at_most(number),
        "exclusiveMinimum" => number.is_none_or(|number| number > limit.unwrap()),
        "multipleOf" => number.is_none_or(|number| (number / limit.unwrap()).fract() == 0.0),
        "minItems" => at_least(count),
        "maxItems" => at_most(count),
        "prefixItems" => {
            let pairs = items.into_iter().flatten().zip(wanted.as_array().unwrap());
            pairs
                .into_iter()
                .all(|(item, schema)| fits(item, schema, root))
        }
        "items" => {
            let before = schema
                .get("prefixItems")
                .map_or(0, |first| first.as_array().unwrap().len());
            let mut rest = items.into_iter().flatten().skip(before);
            rest.all(|item| fits(item, wanted, root))
        }
        "pattern" => text.is_none_or(|text| match wanted.as_str().unwrap() {
            "^[a-f]{2,4}$" => {
                (2..=4).contains(&text.len())
                    && text.bytes().all(|byte| (b'a'..=b'f').contains(&byte))
            }
            "x" => text.contains('x'),
            other => panic!("no check for {other}"),
        }),
        "format" => text.is_none_or(|text| {
            assert_eq!(wanted, "date");
            let bytes = text.as_bytes();
            let digit = |at: usize| bytes[at].is_ascii_digit();
            bytes.len() == 10
                && bytes[4] == b'-'
                && bytes[7] == b'-'
                && [0, 1, 2, 3, 5, 6, 8, 9].into_iter().all(digit)
        }),
        "required" => value.as_object().is_none_or(|map| {
            let mut names = wanted.as_array().unwrap().iter();
            names.all(|name| map.contains_key(name.as_str().unwrap()))
        }),
        "properties" => value.as_object().is_none_or(|map| {
            let mut known = map
                .iter()
                .filter_map(|(name, value)| Some((value, wanted.get(name)?)));
            known.all(|(value, schema)| fits(value, schema, root))
        }),
        "additionalProperties" => value.as_object().is_none_or(|map| {
            let known = schema.get("properties").and_then(Value::as_object);
            let mut others = map
                .iter()
                .filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)));
            others.all(|(_, value)| fits(value, wanted, root))
        }),
        "$defs" | "description" => true,
        other => panic!("no check for {other}"),
    }
}

fn is_of_type(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("no type {other}"),
    }
}

fn schemas() -> Vec<Value> {
    vec![
        json!({ "type": "object" }),
        json!({ "type": "integer", "minimum": -3, "maximum": 120 }),
        json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 2.5 }),
        json!({ "type": "integer", "multipleOf": 7, "minimum": 0 }),
        json!({ "type": "string", "minLength": 2, "maxLength": 5 }),
        json!({ "type": "string", "pattern": "^[a-f]{2,4}$" }),
        json!({ "type": "string", "pattern": "x" }),
        json!({ "type": "string", "format": "date" }),
        json!({ "enum": ["a\"b", "é", 3, null, [1, 2], {"k": false}] }),
        json!({ "const": {"a": [true, "x\ny"]} }),
        json!({ "type": ["null", "boolean"] }),
        json!({ "type": "array", "items": { "type": "integer" }, "minItems": 1, "maxItems": 3 }),
        json!({
            "type": "array", "prefixItems": [{ "type": "string" }, { "type": "boolean" }],
            "items": false, "minItems": 2,
        }),
        json!({
            "type": "object",
            "description": "closed, with an optional member",
            "properties": {
                "name": { "type": "string" },
                "age": { "type": "integer", "minimum": 0 },
                "tags": { "type": "array", "items": { "enum": ["x", "y"] } },
            },
            "required": ["name", "age"],
            "additionalProperties": false,
        }),
        json!({
            "type": "object",
            "properties": { "z": { "type": "null" } },
            "additionalProperties": { "type": "boolean" },
        }),
        json!({
            "$ref": "#/$defs/tree",
            "$defs": { "tree": {
                "type": "object",
                "properties": {
                    "value": { "type": "integer" },
                    "next": { "anyOf": [{ "$ref": "#/$defs/tree" }, { "type": "null" }] },
                },
                "required": ["value", "next"],
                "additionalProperties": false,
            }},
        }),
        json!({
            "allOf": [
                { "type": "object", "properties": { "a": { "type": "integer" } } },
                { "required": ["a"], "properties": { "a": { "minimum": 5 } } },
            ],
        }),
    ]
}

#[test]
fn walks_end_in_what_fits() {
    let mut chance = Chance::new(0x5C4E);
    for fixture in [Fixture::plain(), Fixture::with_markers()] {
        for schema in schemas() {
            let shape = Shape::JsonSchema(schema.clone());
            let mut ended = 0;
            for _ in 0..8 {
                let Some(text) = fixture.walk(&mut fixture.guide(&shape), &mut chance) else {
                    continue;
                };
                ended += 1;
                let value: Value = match serde_json::from_str(&text) {
                    Ok(value) => value,
                    // JSON has no largest number; this reader has.
                    Err(error) if error.to_string().contains("out of range") => continue,
                    Err(error) => panic!("{schema}: {text}: {error}"),
                };
                assert!(fits(&value, &schema, &schema), "{schema}: {text}");
            }
            assert!(ended >= 4, "{schema}: {ended} walks ended");
        }
    }
}

/// A mask that allowed too little would pass the walks.
#[test]
fn what_fits_is_let_through_and_the_rest_is_not() {
    let fixture = Fixture::with_markers();
    let texts = [
        "{}",
        "3",
        "-3",
        "121",
        "2.5",
        "14",
        "0.25",
        "\"ab\"",
        "\"abcdef\"",
        "\"déjà\"",
        "\"axb\"",
        "\"2025-01-20\"",
        "\"a\\\"b\"",
        "null",
        "true",
        "[1, 2]",
        "{\"a\": [true, \"x\\ny\"]}",
        "[\"a\", false]",
        "[1, 2, 3, 4]",
        "[]",
        "{\"name\": \"é\", \"age\": 3}",
        "\n {\n  \"name\" : \"\",\n  \"age\" : 3, \"tags\": [\"x\"]\n}",
        "{\"name\": \"\", \"age\": 3, \"other\": 1}",
        "{\"z\": null, \"y\": true}",
        "{\"y\": 1}",
        "{\"value\": 1, \"next\": {\"value\": -20, \"next\": null}}",
        "{\"a\": 5}",
        "{\"a\": 4}",
        "{\"a\": 1",
        "nul",
        "{\"a\": 1}}",
        "{'a': 1}",
        "",
    ];
    let mut taken = 0;
    for schema in schemas() {
        let shape = Shape::JsonSchema(schema.clone());
        for text in texts {
            let value: Option<Value> = serde_json::from_str(text).ok();
            let expected = value.is_some_and(|value| fits(&value, &schema, &schema));
            assert_eq!(fixture.takes(&shape, text), expected, "{schema}: {text}");
            taken += usize::from(expected);
        }
    }
    assert!(taken > 20, "{taken}");
    assert!(fixture.takes(&Shape::JsonObject, "{\"a\": {\"b\": [null, 1e5]}}"));
    assert!(!fixture.takes(&Shape::JsonObject, "[{}]"));
}

/// What a schema asks for is never dropped without a word.
#[test]
fn what_is_not_supported_is_refused() {
    let fixture = Fixture::plain();
    for (schema, word) in [
        (
            json!({ "type": "array", "uniqueItems": true }),
            "uniqueItems",
        ),
        (json!({ "not": { "type": "null" } }), "not"),
        (
            json!({ "type": "array", "contains": { "const": 1 } }),
            "contains",
        ),
        (json!({ "if": { "type": "null" }, "then": false }), "if"),
        (
            json!({ "type": "string", "format": "no-such-format" }),
            "no-such-format",
        ),
        (
            json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }),
            "oneOf",
        ),
        (json!({ "$ref": "https://example.com/schema" }), "ref"),
        (json!({ "$ref": "#/$defs/none" }), "none"),
        (json!({ "type": "strin" }), "strin"),
        (
            json!({ "type": "object", "x-guidance": { "lenient": true } }),
            "x-guidance",
        ),
        (json!({ "type": "string", "pattern": "(a)\\1" }), ""),
        (json!({ "type": "string", "pattern": "(?=a)b" }), ""),
        (
            json!({ "type": "string", "minLength": 5, "maxLength": 3 }),
            "",
        ),
        (json!(false), ""),
        (json!("object"), ""),
        (json!([1]), ""),
        (json!({ "type": "object", "properties": [] }), ""),
    ] {
        let Err(reason) = fixture.grammars.compile(&Shape::JsonSchema(schema.clone())) else {
            panic!("{schema} compiles");
        };
        assert!(
            reason.contains(word) && reason.len() < 1000,
            "{schema}: {reason}"
        );
        println!("{schema}: {reason}");
    }
}

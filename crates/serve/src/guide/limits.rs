//! What is refused before any grammar is built.
//!
//! The library bounds its own work by fuel, but recurses over what it reads; so depth is checked
//! here, without recursion, along with sizes that could only be meant to hurt.

use serde_json::Value;

/// Bytes of a schema (as compact JSON) or a grammar.
const MAX_BYTES: usize = 64 << 10;
/// Bytes of one pattern: work grows faster than these.
const MAX_PATTERN_BYTES: usize = 8 << 10;
/// Levels of a schema's JSON.
const MAX_DEPTH: usize = 64;
/// Brackets inside of brackets in a pattern.
const MAX_BRACKETS: usize = 200;
/// Alternatives of one `enum`, `anyOf` or the like, and members of an object.
const MAX_LIST: usize = 1 << 10;
/// The largest number that counts something: `minItems`, `maxLength`, `{n,m}`.
const MAX_COUNT: u64 = 1 << 16;
/// The largest number of items or members that a schema may demand: each one is a rule.
const MAX_DEMAND: u64 = 1 << 10;
/// Digits of a number in a schema; `multipleOf` becomes an automaton.
const MAX_DIGITS: usize = 32;

pub(super) fn check_pattern(what: &str, pattern: &str) -> Result<(), String> {
    check_text(what, pattern, MAX_PATTERN_BYTES)
}

pub(super) fn check_grammar(grammar: &str) -> Result<(), String> {
    check_text("the grammar", grammar, MAX_BYTES)?;
    // A pattern stands on one line.
    let mut lines = grammar.lines();
    match lines.position(|line| line.len() > MAX_PATTERN_BYTES) {
        None => Ok(()),
        Some(index) => {
            let line = index + 1;
            Err(format!(
                "line {line} of the grammar has more than {MAX_PATTERN_BYTES} bytes"
            ))
        }
    }
}

fn check_text(what: &str, text: &str, limit: usize) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.len() > limit {
        let bytes = text.len();
        return Err(format!("{what} has {bytes} bytes; the limit is {limit}"));
    }
    check_nesting(what, text)?;
    check_counts(what, text)
}

/// Brackets in strings and classes are counted too, so this is only a first look: what it misses,
/// the library's own limits and the stack it compiles on have to bear.
fn check_nesting(what: &str, pattern: &str) -> Result<(), String> {
    let mut depth: usize = 0;
    for character in pattern.chars() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_BRACKETS {
            return Err(format!(
                "{what} is nested deeper than {MAX_BRACKETS} brackets"
            ));
        }
    }
    Ok(())
}

/// Repetitions like `{1,1000}` multiply where they are nested.
fn check_counts(what: &str, pattern: &str) -> Result<(), String> {
    let mut product: u64 = 1;
    for part in pattern.split('{').skip(1) {
        let inside = part.split('}').next().unwrap_or("");
        let numbers = inside.split(',').filter_map(|number| {
            let digits = number.trim();
            let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            all.then(|| digits.parse::<u64>().unwrap_or(u64::MAX))
        });
        if let Some(count) = numbers.max() {
            product = product.saturating_mul(count.max(1));
            if count > MAX_COUNT {
                return Err(format!("{what} repeats more than {MAX_COUNT} times"));
            }
        }
    }
    match product {
        0..=0xFFFF_FFFF => Ok(()),
        _ => Err(format!("{what} repeats repetitions too often")),
    }
}

pub(super) fn check_schema(schema: &Value) -> Result<(), String> {
    let mut bytes = 0;
    let mut left = vec![(schema, 0)];
    while let Some((value, depth)) = left.pop() {
        if depth > MAX_DEPTH {
            return Err(format!(
                "the schema is nested deeper than {MAX_DEPTH} levels"
            ));
        }
        bytes += 2;
        match value {
            Value::Null | Value::Bool(_) => bytes += 3,
            Value::Number(number) => {
                let digits = number.to_string().len();
                bytes += digits;
                if digits > MAX_DIGITS {
                    return Err(format!("the schema has a number of {digits} digits"));
                }
            }
            Value::String(text) => bytes += text.len(),
            Value::Array(list) => {
                check_length(list.len())?;
                left.extend(list.iter().map(|value| (value, depth + 1)));
            }
            Value::Object(map) => {
                check_length(map.len())?;
                for (key, value) in map {
                    bytes += key.len() + 4;
                    check_member(key, value)?;
                    left.push((value, depth + 1));
                }
            }
        }
        if bytes > MAX_BYTES {
            return Err(format!("the schema has more than {MAX_BYTES} bytes"));
        }
    }
    Ok(())
}

fn check_length(length: usize) -> Result<(), String> {
    match length {
        0..=MAX_LIST => Ok(()),
        _ => Err(format!(
            "the schema has a list of {length} values; the limit is {MAX_LIST}"
        )),
    }
}

/// A key of any object inside: it may be a keyword, the name of a property or a pattern.
fn check_member(key: &str, value: &Value) -> Result<(), String> {
    if key == "x-guidance" {
        return Err("\"x-guidance\" is not supported in a schema".to_string());
    }
    let limit = match key {
        "minItems" | "minProperties" | "maxProperties" => MAX_DEMAND,
        "maxItems" | "minLength" | "maxLength" => MAX_COUNT,
        "pattern" => {
            let pattern = value.as_str().unwrap_or("a");
            return check_pattern("\"pattern\"", pattern);
        }
        "patternProperties" => {
            let patterns = value.as_object().into_iter().flat_map(|map| map.keys());
            return patterns.into_iter().try_for_each(|pattern| {
                check_pattern("a pattern in \"patternProperties\"", pattern)
            });
        }
        _ => return Ok(()),
    };
    match value.as_f64() {
        Some(count) if count > limit as f64 => {
            Err(format!("\"{key}\" is {count}; the limit is {limit}"))
        }
        _ => Ok(()),
    }
}

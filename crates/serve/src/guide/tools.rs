//! Grammars of calls of tools.

use super::limits::check_schema;
use super::shape::with_spaces;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use text::ToolFormat;

/// More tools than this are refused.
const MAX_TOOLS: usize = 128;
/// Bytes of a tool's name, as OpenAI has it.
const MAX_NAME: usize = 64;

pub(super) struct Calls<'a> {
    pub(super) format: ToolFormat,
    pub(super) tools: &'a [(String, Value)],
    pub(super) at_least_one: bool,
    pub(super) parallel: bool,
    pub(super) markers: &'a BTreeMap<String, u32>,
}

impl Calls<'_> {
    /// The grammar's text, and the schema's of each tool's arguments.
    pub(super) fn lark(&self) -> Result<(String, Vec<(String, String)>), String> {
        if self.tools.is_empty() || self.tools.len() > MAX_TOOLS {
            let given = self.tools.len();
            return Err(format!(
                "{given} tools are given; from 1 to {MAX_TOOLS} work"
            ));
        }
        let mut rules = String::new();
        let mut calls = Vec::new();
        let mut schemas = Vec::new();
        for (index, (name, schema)) in self.tools.iter().enumerate() {
            check_name(name)?;
            let schema = arguments(name, schema)?;
            let spaced = with_spaces(schema.clone());
            let _ = writeln!(rules, "call{index}: {}", self.call(name, index));
            // On one line: a line's end would end the rule.
            let _ = writeln!(rules, "args{index}: %json {spaced}");
            calls.push(format!("call{index}"));
            schemas.push((name.clone(), schema.to_string()));
        }
        let lark = format!(
            "{}call: {}\n{rules}WS: /[ \\t\\r\\n]{{1,16}}/\n",
            self.start(),
            calls.join(" | ")
        );
        Ok((lark, schemas))
    }

    /// The rules for everything around single calls.
    fn start(&self) -> String {
        let (opening, between, end) = self.around();
        let more = match self.parallel {
            true => format!("({between} call)*"),
            false => String::new(),
        };
        let text = self.free_text();
        match opening {
            _ if self.at_least_one => {
                let first = opening.map_or(String::new(), |marker| self.marker(marker));
                format!("start: WS? {first} call {more} {end}\n")
            }
            None => format!("start: TEXT | call {more} {end}\nTEXT: {text}\n"),
            Some(marker) if self.markers.contains_key(marker) => {
                let first = self.marker(marker);
                format!("start: TEXT | TEXT? {first} call {more} {end}\nTEXT: {text}\n")
            }
            // Where the marker is spelled, text runs into it: both are one lexeme, which ends
            // with the first marker.
            Some(marker) => {
                let marker = escaped(marker);
                format!(
                    "start: TEXT | LEAD call {more} {end}\nTEXT: {text}\n\
                     LEAD: /(?s:.*){marker}/ & ~/(?s:.*){marker}(?s:.+)/\n"
                )
            }
        }
    }

    /// A marker: its token where there is one, else its text.
    fn marker(&self, marker: &str) -> String {
        match self.markers.get(marker) {
            Some(id) => format!("<[{id}]>"),
            None => literal(marker),
        }
    }

    /// The marker in front of all calls, what stands between two, and what after all.
    fn around(&self) -> (Option<&'static str>, String, String) {
        let markers = self.format.markers();
        match self.format {
            ToolFormat::DeepSeek => (Some(markers[0]), literal("\n"), self.marker(markers[4])),
            ToolFormat::DeepSeekV31 => (Some(markers[0]), String::new(), self.marker(markers[4])),
            ToolFormat::Hermes => {
                let (open, close) = (self.marker(markers[0]), self.marker(markers[1]));
                let between = format!("{close} {} {open}", literal("\n"));
                (Some(markers[0]), between, close)
            }
            ToolFormat::Llama => (None, literal("; "), String::new()),
        }
    }

    fn call(&self, name: &str, index: usize) -> String {
        let markers = self.format.markers();
        let arguments = format!("args{index}");
        let name_text = json!(name).to_string();
        let parts = match self.format {
            ToolFormat::DeepSeek => vec![
                self.marker(markers[1]),
                literal("function"),
                self.marker(markers[2]),
                literal(&format!("{name}\n```json\n")),
                arguments,
                literal("\n```"),
                self.marker(markers[3]),
            ],
            ToolFormat::DeepSeekV31 => vec![
                self.marker(markers[1]),
                literal(name),
                self.marker(markers[2]),
                arguments,
                self.marker(markers[3]),
            ],
            ToolFormat::Hermes => vec![
                literal(&format!("\n{{\"name\": {name_text}, \"arguments\": ")),
                arguments,
                literal("}\n"),
            ],
            ToolFormat::Llama => vec![
                literal(&format!("{{\"name\": {name_text}, \"parameters\": ")),
                arguments,
                literal("}"),
            ],
        };
        parts.join(" ")
    }

    /// Text that holds no call. Markers that are tokens are no text anyway; the others are excluded
    /// at once, because the library gives up on several exclusions of this kind.
    fn free_text(&self) -> String {
        let mut pattern = "/(?s:.+)/".to_string();
        let markers = self.format.markers().iter();
        let spelled: Vec<String> = markers
            .filter(|marker| !self.markers.contains_key(**marker))
            .map(|marker| escaped(marker))
            .collect();
        if !spelled.is_empty() {
            let _ = write!(pattern, " & ~/(?s:.*)({})(?s:.*)/", spelled.join("|"));
        }
        if self.format == ToolFormat::Llama {
            pattern += r" & ~/[ \t\r\n]*\{(?s:.*)/";
        }
        pattern
    }
}

/// Names outside of this could end a line or a marker.
fn check_name(name: &str) -> Result<(), String> {
    let right = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(right) {
        let shown: String = name.chars().take(MAX_NAME).collect();
        return Err(format!(
            "the tool's name {shown:?} is not 1 to {MAX_NAME} of a-z, A-Z, 0-9, _, - and ."
        ));
    }
    Ok(())
}

/// The schema of a tool's arguments: always of an object.
fn arguments(name: &str, schema: &Value) -> Result<Value, String> {
    check_schema(schema).map_err(|reason| format!("tool {name:?}: {reason}"))?;
    let mut schema = match schema {
        Value::Null | Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        _ => {
            return Err(format!(
                "tool {name:?}: \"parameters\" is no schema of an object"
            ));
        }
    };
    if schema.get("type").is_none() {
        schema["type"] = json!("object");
    }
    if schema["type"] != "object" {
        return Err(format!(
            "tool {name:?}: the type of \"parameters\" is not \"object\""
        ));
    }
    Ok(schema)
}

/// A string of the grammar, whose escapes are those of JSON.
fn literal(text: &str) -> String {
    json!(text).to_string()
}

/// A pattern for this text alone. A slash would end the pattern, and `\<` is the edge of a word.
fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    for character in text.chars() {
        if r"/|\.+*?()[]{}^$".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

//! Shapes of answers, as grammars in the library's language.

use super::limits::{check_grammar, check_pattern, check_schema};
use super::tools;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use text::ToolFormat;

/// White space in JSON, between its parts. Models that run into endless blank lines would
/// otherwise never come out of them.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// What an answer has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Any JSON object.
    JsonObject,
    /// JSON that fits a schema. White space may stand in front.
    JsonSchema(Value),
    /// A whole text that matches a pattern, in the syntax of Rust's `regex` without look-around.
    Regex(String),
    /// A text of a grammar in the library's dialect of Lark.
    Lark(String),
    /// Calls of tools, as the model writes them.
    ToolCalls {
        format: ToolFormat,
        /// Names, and schemas of their arguments, which are objects.
        tools: Vec<(String, Value)>,
        /// Otherwise a text without calls may stand in front of calls, or alone.
        at_least_one: bool,
        /// Several calls may follow each other.
        parallel: bool,
    },
}

/// A grammar's text: what the cache knows it by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// JSON after some white space; the schema's text.
    Json(String),
    Regex(String),
    Lark(String),
    /// A grammar of calls, with the tools' names and schemas.
    Calls(String, Vec<(String, String)>),
}

impl Shape {
    /// `markers`: added tokens that text never becomes, by their content.
    pub(super) fn source(&self, markers: &BTreeMap<String, u32>) -> Result<Source, String> {
        match self {
            Shape::JsonObject => Ok(Source::Json(json!({ "type": "object" }).to_string())),
            Shape::JsonSchema(schema) => {
                check_schema(schema)?;
                Ok(Source::Json(schema.to_string()))
            }
            Shape::Regex(pattern) => {
                check_pattern("the pattern", pattern)?;
                let slashes = pattern
                    .bytes()
                    .rev()
                    .take_while(|&byte| byte == b'\\')
                    .count();
                match slashes % 2 {
                    0 => Ok(Source::Regex(pattern.clone())),
                    _ => Err("the pattern ends with a single backslash".to_string()),
                }
            }
            Shape::Lark(grammar) => {
                check_grammar(grammar)?;
                Ok(Source::Lark(grammar.clone()))
            }
            Shape::ToolCalls {
                format,
                tools,
                at_least_one,
                parallel,
            } => {
                let calls = tools::Calls {
                    format: *format,
                    tools,
                    at_least_one: *at_least_one,
                    parallel: *parallel,
                    markers,
                };
                let (lark, schemas) = calls.lark()?;
                Ok(Source::Calls(lark, schemas))
            }
        }
    }
}

impl Source {
    pub(super) fn len(&self) -> usize {
        match self {
            Source::Json(text) | Source::Regex(text) | Source::Lark(text) => text.len(),
            Source::Calls(lark, schemas) => {
                let schemas = schemas
                    .iter()
                    .map(|(name, schema)| name.len() + schema.len());
                lark.len() + schemas.sum::<usize>()
            }
        }
    }

    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, String> {
        let schema = match self {
            Source::Regex(pattern) => return Ok(TopLevelGrammar::from_regex(pattern)),
            Source::Lark(grammar) | Source::Calls(grammar, _) => {
                return Ok(TopLevelGrammar::from_lark(grammar.clone()));
            }
            Source::Json(schema) => schema,
        };
        let schema = serde_json::from_str(schema).map_err(|error| error.to_string())?;
        let mut json = GrammarWithLexer::from_json_schema(with_spaces(schema));
        json.name = Some("json".to_string());
        let start = "start: WS? @json\nWS: /[ \\t\\r\\n]{1,16}/\n".to_string();
        Ok(TopLevelGrammar {
            grammars: vec![GrammarWithLexer::from_lark(start), json],
            max_tokens: None,
        })
    }
}

/// The schema, with white space bounded.
pub(super) fn with_spaces(mut schema: Value) -> Value {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(map) = schema.as_object_mut() {
        let options = json!({ "whitespace_pattern": JSON_SPACE });
        map.insert("x-guidance".to_string(), options);
    }
    schema
}

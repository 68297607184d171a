//! The structure that a request asks of its answer, under the names that are in use for it.

use serde_json::{Value, json};
use text::ToolFormat;

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::guide::{BUSY, Compiled, Shape};
use crate::service::App;

/// What a request says of tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    None,
    Auto,
    /// Any of the tools.
    Required,
    Named(String),
}

/// The format in the field that the API has for it, or one of vLLM's fields. A name of two parts,
/// such as `text.format`, is of a field in an object.
///
/// # Errors
/// Several at once, or one that is malformed.
pub fn shape(fields: &Fields, name: &str) -> Result<Option<(String, Shape)>, ApiError> {
    let mut found: Vec<(String, Shape)> = Vec::new();
    let format = match name.split_once('.') {
        None => fields.object(name)?,
        Some((outer, inner)) => match fields.object(outer)? {
            None => None,
            Some(object) => object.object(inner)?,
        },
    };
    if let Some(format) = format
        && let Some(shape) = response_format(&format)?
    {
        found.push((fields.path(name), shape));
    }
    let structured = fields.object("structured_outputs")?;
    let vllm = [
        (structured.clone(), ["json", "regex", "choice", "grammar"]),
        (
            Some(fields.clone()),
            [
                "guided_json",
                "guided_regex",
                "guided_choice",
                "guided_grammar",
            ],
        ),
    ];
    for (fields, names) in vllm {
        let Some(fields) = fields else { continue };
        let [json, regex, choice, grammar] = names;
        if let Some(schema) = fields.value(json) {
            found.push((
                fields.path(json),
                Shape::JsonSchema(schema_of(&fields, json, schema)?),
            ));
        }
        if let Some(pattern) = fields.text(regex)? {
            found.push((fields.path(regex), Shape::Regex(pattern.to_string())));
        }
        if let Some(choices) = fields.list(choice)? {
            found.push((fields.path(choice), one_of(choices, &fields.path(choice))?));
        }
        if let Some(grammar_text) = fields.text(grammar)? {
            found.push((fields.path(grammar), Shape::Lark(grammar_text.to_string())));
        }
    }
    if let Some(fields) = structured
        && fields.flag("json_object")? == Some(true)
    {
        found.push((fields.path("json_object"), Shape::JsonObject));
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(ApiError::field(
            &found[1].0,
            format!(
                "asks for a structure, and so does `{}`; give one",
                found[0].0
            ),
        )),
    }
}

fn response_format(format: &Fields) -> Result<Option<Shape>, ApiError> {
    match format.text("type")? {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Shape::JsonObject)),
        Some("json_schema") => {
            // The Responses API has no object of that name around it.
            let inner = format
                .object("json_schema")?
                .unwrap_or_else(|| format.clone());
            let schema = inner.required("schema")?;
            Ok(Some(Shape::JsonSchema(schema_of(
                &inner, "schema", schema,
            )?)))
        }
        Some("regex") => {
            let pattern = format.text("pattern")?;
            let pattern =
                pattern.ok_or_else(|| format.error("pattern", "is required and missing"))?;
            Ok(Some(Shape::Regex(pattern.to_string())))
        }
        Some("grammar") => {
            let grammar = format.text("grammar")?;
            let grammar =
                grammar.ok_or_else(|| format.error("grammar", "is required and missing"))?;
            Ok(Some(Shape::Lark(grammar.to_string())))
        }
        _ => {
            let expected = "one of text, json_object, json_schema, regex and grammar";
            Err(wrong(
                &format.path("type"),
                format.required("type")?,
                expected,
            ))
        }
    }
}

/// An object, a boolean, or such in a string.
fn schema_of(fields: &Fields, name: &str, schema: &Value) -> Result<Value, ApiError> {
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(schema.clone()),
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| fields.error(name, format!("is no JSON: {error}"))),
        _ => Err(wrong(&fields.path(name), schema, "a JSON schema")),
    }
}

/// One of some texts: as a pattern in which nothing has a meaning of its own.
fn one_of(choices: &[Value], path: &str) -> Result<Shape, ApiError> {
    let escaped = |(place, choice): (usize, &Value)| {
        let text = choice.as_str();
        let text = text.ok_or_else(|| wrong(&format!("{path}[{place}]"), choice, "a string"))?;
        Ok(text.chars().fold(String::new(), |mut pattern, character| {
            if !character.is_alphanumeric() && character.is_ascii() && !character.is_control() {
                pattern.push('\\');
            }
            pattern.push(character);
            pattern
        }))
    };
    let choices: Vec<String> = choices
        .iter()
        .enumerate()
        .map(escaped)
        .collect::<Result<_, ApiError>>()?;
    if choices.is_empty() {
        return Err(ApiError::field(path, "has no choices"));
    }
    Ok(Shape::Regex(choices.join("|")))
}

/// `tool_choice`: by default the model decides, if there are tools.
///
/// # Errors
/// It is malformed, or names a tool that is not there.
pub fn tool_choice(fields: &Fields, names: &[String]) -> Result<ToolChoice, ApiError> {
    let choice = match fields.value("tool_choice") {
        None if names.is_empty() => ToolChoice::None,
        None => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => {
                let value = fields.required("tool_choice")?;
                let expected = "none, auto, required or a function";
                return Err(wrong("tool_choice", value, expected));
            }
        },
        Some(value) => {
            let choice = Fields::new(value, "tool_choice")?;
            // The Responses API names the function at once.
            let function = choice.object("function")?.unwrap_or_else(|| choice.clone());
            let name = function.text("name")?;
            let name = name.ok_or_else(|| function.error("name", "is required and missing"))?;
            ToolChoice::Named(name.to_string())
        }
    };
    checked(choice, names)
}

/// # Errors
/// A tool has to be called that is not there.
pub fn checked(choice: ToolChoice, names: &[String]) -> Result<ToolChoice, ApiError> {
    match &choice {
        ToolChoice::Required if names.is_empty() => {
            let message = "requires a call, and there are no `tools`";
            Err(ApiError::field("tool_choice", message))
        }
        ToolChoice::Named(name) if !names.contains(name) => {
            let name: String = name.escape_debug().take(64).collect();
            let message = format!("names `{name}`, which is not in `tools`");
            Err(ApiError::field("tool_choice", message))
        }
        ToolChoice::Auto if names.is_empty() => Ok(ToolChoice::None),
        _ => Ok(choice),
    }
}

/// The format in which this model calls tools, if it is to look for calls.
///
/// # Errors
/// The model's chat template knows no tools.
pub fn tool_format(app: &App, choice: &ToolChoice) -> Result<Option<ToolFormat>, ApiError> {
    match (choice, app.tool_format) {
        (ToolChoice::None, _) => Ok(None),
        (_, None) => {
            let message = "cannot be used: this model's chat template knows no tools";
            Err(ApiError::field("tools", message))
        }
        (_, format) => Ok(format),
    }
}

/// The grammar of a request, if it asks for any structure.
///
/// # Errors
/// A structure beside tools, or one that cannot be compiled: never is it passed over.
pub fn grammar(
    app: &App,
    asked: Option<(String, Shape)>,
    tools: &[Value],
    choice: &ToolChoice,
    parallel: bool,
) -> Result<Option<Compiled>, ApiError> {
    let (param, shape) = match (asked, choice) {
        (None, ToolChoice::None | ToolChoice::Auto) => return Ok(None),
        (Some(asked), ToolChoice::None) => asked,
        (Some((param, _)), _) => {
            let message = "cannot be combined with tools; set `tool_choice` to none";
            return Err(ApiError::field(param, message));
        }
        (None, choice) => {
            let format = app.tool_format.expect("a format was found for this choice");
            let tools = tools.iter().filter_map(|tool| {
                let name = tool["function"]["name"].as_str()?.to_string();
                let wanted = !matches!(choice, ToolChoice::Named(only) if *only != name);
                let schema = &tool["function"]["parameters"];
                let schema = match schema.is_null() {
                    true => json!({"type": "object"}),
                    false => schema.clone(),
                };
                wanted.then_some((name, schema))
            });
            let shape = Shape::ToolCalls {
                format,
                tools: tools.collect(),
                at_least_one: true,
                parallel: parallel && *choice == ToolChoice::Required,
            };
            ("tools".to_string(), shape)
        }
    };
    let refused = |reason: &str| ApiError::field(&param, format!("cannot be used: {reason}"));
    let grammars = app.grammars.as_ref().map_err(|reason| refused(reason))?;
    grammars
        .compile(&shape)
        .map(Some)
        .map_err(|reason| match reason.as_str() {
            BUSY => ApiError::busy(reason),
            reason => refused(reason),
        })
}

//! Chat templates: Jinja text that comes with a model, so it is not trusted.
//!
//! minijinja opens no files and sees no environment. It bounds parser depth and single repeats;
//! added here: instructions (fuel), depth of calls, sizes of template and output, and the removal
//! of what pads to a width that the template chooses.

use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, StringInput, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, State};
use serde::{Deserialize, Serialize};
use std::io;

/// Longer templates are refused; published ones have at most about 20 kB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Longer outputs are refused.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Instructions of one rendering: ten thousand messages, or about 0.1 s.
const FUEL: u64 = 1_000_000;
/// Depth of macro calls.
const MAX_DEPTH: usize = 64;
/// Widest indentation.
const MAX_INDENT: usize = 256;
/// The name under which error messages show the template.
const NAME: &str = "chat_template";

/// Our own template: the user's text, then ` <think>` as the generation prompt. Earlier answers are
/// cut to what follows their last `</think>`.
pub const REASONING_TEMPLATE: &str = "\
{%- for message in messages -%}
{%- if not loop.first -%}{{- ' ' -}}{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{%- set answer = message['content'].split('</think>')[-1] -%}
{{- answer.replace(eos_token, '').strip() + ' ' + eos_token -}}
{%- elif message['role'] in ['user', 'system'] -%}
{{- message['content'].strip() -}}
{%- else -%}
{{- raise_exception('role ' + message['role'] + ' is not known: use user, system or assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' <think>' -}}{%- endif -%}
";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: &str) -> Message {
        Message {
            role: role.to_string(),
            content: content.to_string(),
        }
    }
}

/// A template that parses.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// # Errors
    /// The template is too long or does not parse.
    pub fn new(template: &str) -> Result<ChatTemplate> {
        let (bytes, limit) = (template.len() as u64, MAX_TEMPLATE_BYTES as u64);
        if bytes > limit {
            return Err(Error::TooLarge {
                what: "the chat template",
                bytes,
                limit,
            });
        }
        let mut environment = environment();
        environment
            .add_template_owned(NAME, template.to_string())
            .map_err(|error| failed(&error))?;
        Ok(ChatTemplate { environment })
    }

    /// The prompt of a conversation. `bos` and `eos` are the tokens' texts, empty where the model
    /// has none.
    ///
    /// # Errors
    /// The template fails, refuses the messages, or exceeds a limit.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
    ) -> Result<String> {
        let context = minijinja::context! {
            messages => values(messages),
            add_generation_prompt => add_generation_prompt,
            bos_token => bos,
            eos_token => eos,
        };
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| failed(&error))?;
        let mut output = Bounded { bytes: Vec::new() };
        template
            .render_captured_to(context, &mut output)
            .map_err(|error| failed(&error))?;
        String::from_utf8(output.bytes).map_err(|error| Error::Template {
            reason: error.to_string(),
        })
    }
}

fn values(messages: &[Message]) -> Value {
    let value = |message: &Message| {
        let Message { role, content } = message;
        Value::from_pairs([("role", role.as_str()), ("content", content.as_str())])
    };
    messages.iter().map(value).collect()
}

/// Settings as `transformers` has them, so that templates render the same.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("the usual delimiters do not clash"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("indent", indent);
    // They allocate as much as the template asks, and no chat template needs them.
    for filter in ["batch", "slice", "format"] {
        environment.remove_filter(filter);
    }
    environment
}

/// Python's methods of strings, lists and maps, without `format`, which pads to any width.
fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    if name == "format" {
        return Err(minijinja::Error::from(ErrorKind::UnknownMethod));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// minijinja's `indent` with a bound on the width.
fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> std::result::Result<Value, minijinja::Error> {
    let wide = [
        width,
        named.peek::<Option<usize>>("width").unwrap_or_default(),
    ];
    if wide.into_iter().flatten().any(|width| width > MAX_INDENT) {
        let reason = format!("indent is wider than {MAX_INDENT}");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason));
    }
    minijinja::filters::indent(text, width, first, blank, named)
}

fn failed(error: &minijinja::Error) -> Error {
    let message: String = error.to_string().chars().take(300).collect();
    Error::Template { reason: message }
}

/// Fails rather than grow beyond the limit.
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other(format!(
                "output is over {MAX_OUTPUT_BYTES} bytes"
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Chat templates: Jinja text that comes with a model, so it is not trusted.
//!
//! minijinja opens no files and sees no environment. What a rendering may use is bounded:
//!
//! - Work: minijinja's fuel counts instructions; the clock is looked at in every turn of a loop,
//!   call of a macro, filter, method and output. Between two looks there is at most one pass over
//!   a template of [`MAX_TEMPLATE_BYTES`] on values of bounded size.
//! - Memory: every value with a name, every result of a filter or method, and all text written or
//!   captured is counted (`chat_template/budget.rs`, called from where `chat_template/rewrite.rs`
//!   puts it). What remains is one tag's own arithmetic: at most 48 times the largest value. With
//!   a small conversation that makes about 250 MiB by reckoning, and 120 MB in the worst template
//!   of the tests; limits grow with the input.
//!
//! Refused by name at load, as no published template needs them: the operator `*` (it multiplies
//! text), `with`, `call`, `filter`, `raw` and all blocks for many templates, recursive loops, and
//! more than 48 of `+ ~ ,` in one tag.

mod budget;
mod date;
mod json;
mod message;
mod rewrite;

use crate::{Error, Result};
use budget::Budget;
pub use message::{Message, Prompt, TEMPLATE_KWARGS};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind};
use std::io;
use std::time::Duration;

/// Longer templates are refused; published ones have at most about 20 kB.
const MAX_TEMPLATE_BYTES: usize = 128 << 10;
/// Longer outputs are refused.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Instructions of one rendering, and for each message beyond.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 200;
/// Depth of macro calls.
const MAX_DEPTH: usize = 64;
/// Time of a rendering, and of the probe.
const TIME: Duration = Duration::from_secs(5);
const PROBE_TIME: Duration = Duration::from_millis(500);
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

/// A template that parses.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// # Errors
    /// The template is too long, does not parse, or has something in it that is refused.
    pub fn new(template: &str) -> Result<ChatTemplate> {
        let (bytes, limit) = (template.len() as u64, MAX_TEMPLATE_BYTES as u64);
        if bytes > limit {
            return Err(Error::TooLarge {
                what: "the chat template",
                bytes,
                limit,
            });
        }
        let checked = rewrite::rewrite(template).map_err(|refusal| Error::Template {
            reason: format!("{} (in {NAME}:{})", refusal.reason, refusal.line),
        })?;
        let mut environment = environment();
        environment
            .add_template_owned(NAME, checked)
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
        self.render_prompt(&Prompt {
            messages,
            add_generation_prompt,
            bos_token: bos,
            eos_token: eos,
            ..Prompt::default()
        })
    }

    /// The prompt of a conversation with tools and settings.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; a setting that is not of [`TEMPLATE_KWARGS`].
    pub fn render_prompt(&self, prompt: &Prompt) -> Result<String> {
        self.run(prompt, TIME)
    }

    /// Renders a fixed conversation of one turn, with less time than a request has: what a template
    /// does wrong shows when it is loaded. Gives the prompt.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], with the line.
    pub fn probe(&self) -> Result<String> {
        let prompt = Prompt {
            messages: &[Message::new("user", "Hello")],
            add_generation_prompt: true,
            bos_token: "<s>",
            eos_token: "</s>",
            ..Prompt::default()
        };
        self.run(&prompt, PROBE_TIME)
    }

    fn run(&self, prompt: &Prompt, time: Duration) -> Result<String> {
        let messages = prompt.messages.iter().map(Message::bytes).sum::<usize>();
        let tools = prompt.tools.iter().map(message::json_bytes).sum::<usize>();
        let settings = prompt
            .kwargs
            .iter()
            .map(|(_, value)| message::json_bytes(value));
        let input = messages + tools + settings.sum::<usize>();
        // A copy for each rendering: the checks that are put into it count this one alone.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * prompt.messages.len() as u64));
        Budget::new(input, time).install(&mut environment);
        if let Some(now) = prompt.now {
            environment.add_function("strftime_now", move |format: String| {
                date::strftime(now, &format)
                    .map_err(|reason| minijinja::Error::new(ErrorKind::InvalidOperation, reason))
            });
        }
        let context = context(prompt)?;
        let template = environment
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

fn context(prompt: &Prompt) -> Result<Value> {
    let none = || Value::from(());
    let tools = match prompt.tools {
        [] => none(),
        tools => Value::from(Serde(tools)),
    };
    let mut names = vec![
        (
            "messages",
            prompt.messages.iter().map(Message::value).collect(),
        ),
        ("tools", tools),
        ("documents", none()),
        (
            "add_generation_prompt",
            Value::from(prompt.add_generation_prompt),
        ),
        ("bos_token", Value::from(prompt.bos_token)),
        ("eos_token", Value::from(prompt.eos_token)),
    ];
    for (name, value) in prompt.kwargs {
        if !TEMPLATE_KWARGS.contains(name) {
            return Err(Error::Template {
                reason: format!(
                    "setting {name} is not one of {}",
                    TEMPLATE_KWARGS.join(", ")
                ),
            });
        }
        names.push((name, Value::from(Serde(value))));
    }
    Ok(Value::from_pairs(names))
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
    environment.set_recursion_limit(MAX_DEPTH);
    environment.add_function("raise_exception", raise_exception);
    budget::hide_filters(&mut environment);
    // They allocate as much as the template asks, or add up strings; no chat template needs them.
    for filter in ["batch", "slice", "format", "sum"] {
        environment.remove_filter(filter);
    }
    // It prints all there is.
    environment.remove_global("debug");
    environment
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
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

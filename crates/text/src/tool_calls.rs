//! Calls of tools in the text of an answer, as DeepSeek's, Qwen's and Llama's models write them.

mod object;
mod splitter;

pub use splitter::ToolCallSplitter;

pub(crate) const DEEPSEEK_CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub(crate) const DEEPSEEK_CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(crate) const DEEPSEEK_CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub(crate) const DEEPSEEK_CALL_END: &str = "<｜tool▁call▁end｜>";
pub(crate) const DEEPSEEK_SEP: &str = "<｜tool▁sep｜>";
pub(crate) const HERMES_OPEN: &str = "<tool_call>";
pub(crate) const HERMES_CLOSE: &str = "</tool_call>";
pub(crate) const LLAMA_TAG: &str = "<|python_tag|>";

/// How a family of models writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// DeepSeek-V3 and R1: in `<｜tool▁calls▁begin｜>…<｜tool▁calls▁end｜>`, one or more of
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`, a line with ```` ```json ````, the
    /// arguments, a line with ```` ``` ````, `<｜tool▁call▁end｜>`.
    DeepSeek,
    /// DeepSeek-V3.1 and later: as before, but each
    /// `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>`. The splitter reads
    /// both under either name; the difference is for who writes them.
    DeepSeekV31,
    /// Qwen2.5 and Qwen3, after NousResearch's Hermes: lines `<tool_call>`,
    /// `{"name": NAME, "arguments": ARGUMENTS}`, `</tool_call>`.
    Hermes,
    /// Llama-3.1: the whole answer is `{"name": NAME, "parameters": ARGUMENTS}`, possibly behind
    /// `<|python_tag|>`, and several with `;` between.
    Llama,
}

impl ToolFormat {
    /// The format that a chat template's Jinja text names; `None` if it names none.
    pub fn of_template(template: &str) -> Option<ToolFormat> {
        if template.contains(DEEPSEEK_CALL_BEGIN) {
            Some(match template.contains("```json") {
                true => ToolFormat::DeepSeek,
                false => ToolFormat::DeepSeekV31,
            })
        } else if template.contains(HERMES_OPEN) {
            // Qwen3-Coder puts XML, not JSON, between the same tags.
            (!template.contains("<function=")).then_some(ToolFormat::Hermes)
        } else if template.contains(LLAMA_TAG) || template.contains(r#"{"name": function name"#) {
            Some(ToolFormat::Llama)
        } else {
            None
        }
    }

    /// What stands in the text around and between calls, in the order of a whole answer.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            ToolFormat::DeepSeek | ToolFormat::DeepSeekV31 => &[
                DEEPSEEK_CALLS_BEGIN,
                DEEPSEEK_CALL_BEGIN,
                DEEPSEEK_SEP,
                DEEPSEEK_CALL_END,
                DEEPSEEK_CALLS_END,
            ],
            ToolFormat::Hermes => &[HERMES_OPEN, HERMES_CLOSE],
            ToolFormat::Llama => &[LLAMA_TAG],
        }
    }
}

/// A piece of an answer, in the order in which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPiece {
    Text(String),
    /// A call's name is known; its arguments come next. Calls are counted from 0.
    CallBegins {
        index: usize,
        name: String,
    },
    /// More of the JSON text of a call's arguments, byte for byte as the model wrote it.
    CallArguments {
        index: usize,
        fragment: String,
    },
}

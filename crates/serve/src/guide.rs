//! STUB until the real one arrives.
use engine::{Allowed, Constraint};
use serde_json::Value;
use text::{Tokenizer, ToolFormat};
pub struct Grammars;
#[derive(Clone)]
pub struct Compiled;
pub enum Shape {
    JsonObject,
    JsonSchema(Value),
    Regex(String),
    Lark(String),
    ToolCalls {
        format: ToolFormat,
        tools: Vec<(String, Value)>,
        at_least_one: bool,
        parallel: bool,
    },
}
#[derive(Clone)]
pub struct Thinking {
    pub close: Vec<u32>,
    pub budget: Option<usize>,
}
pub struct GuideError;
impl GuideError {
    pub fn take(&self) -> Option<String> {
        None
    }
}
pub struct Guide;
impl Grammars {
    pub fn new(_: &Tokenizer, _: usize, _: &[u32]) -> Result<Grammars, String> {
        Ok(Grammars)
    }
    pub fn compile(&self, _: &Shape) -> Result<Compiled, String> {
        Err("stub".into())
    }
}
impl Guide {
    pub fn new(_: Option<Thinking>, _: Option<&Compiled>) -> Option<(Guide, GuideError)> {
        None
    }
}
impl Constraint for Guide {
    fn allowed(&mut self) -> Allowed<'_> {
        Allowed::Any
    }
    fn accept(&mut self, _: u32) {}
}

//! What one rendering may use: sizes of values, bytes in all, and time.

use super::rewrite::{BOUND, HELD, TICK};
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

type Outcome<T> = std::result::Result<T, Error>;

/// The largest value that may have a name, in bytes, beyond twice what came in.
const MAX_VALUE: usize = 256 << 10;
/// Bytes of all values that were given names, beyond 64 times what came in.
const MAX_NAMED: usize = 48 << 20;
/// Bytes written, captured or not, beyond 16 times what came in.
const MAX_WRITTEN: usize = 48 << 20;
/// What an item of a list or map counts beside its text.
const ITEM: usize = 16;
/// How deep lists and maps may nest; values are dropped and printed recursively.
const MAX_NESTING: usize = 64;
/// Widest indentation.
const MAX_INDENT: usize = 256;
/// The names under which the library's own filters stand once ours have their places.
const PLAIN: &str = "__guard_plain_";

/// Filters whose work or result depends on the size of what they are given.
const GUARDED: [&str; 25] = [
    "capitalize",
    "dictsort",
    "e",
    "escape",
    "groupby",
    "indent",
    "items",
    "join",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "replace",
    "reverse",
    "sort",
    "split",
    "string",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
];

/// Puts the library's filters under hidden names, for the guarded ones to call.
pub(super) fn hide_filters(environment: &mut Environment) {
    macro_rules! hide {
        ($($name:ident)*) => {
            $(
                let name = concat!("__guard_plain_", stringify!($name));
                environment.add_filter(name, filters::$name);
            )*
        };
    }
    hide!(capitalize dictsort escape groupby indent items join lines list lower map max min);
    hide!(pprint replace reverse sort split string title trim unique upper);
    environment.add_filter("__guard_plain_e", filters::escape);
    environment.add_filter("__guard_plain_tojson", super::json::to_json);
}

/// Counts what a rendering uses.
pub(super) struct Budget {
    limit: usize,
    named: Counter,
    written: Counter,
    deadline: Instant,
}

struct Counter {
    used: AtomicUsize,
    limit: usize,
    what: &'static str,
}

impl Counter {
    fn add(&self, bytes: usize) -> Outcome<()> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        if used.saturating_add(bytes) > self.limit {
            return Err(refused(format!("{} over {} bytes", self.what, self.limit)));
        }
        Ok(())
    }
}

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

impl Budget {
    /// `input`: about the bytes of what the template is given.
    pub(super) fn new(input: usize, time: Duration) -> Arc<Budget> {
        let counter = |what, limit| Counter {
            used: AtomicUsize::new(0),
            limit,
            what,
        };
        Arc::new(Budget {
            limit: MAX_VALUE + 2 * input,
            named: counter("the template keeps values of", MAX_NAMED + 64 * input),
            written: counter("the template writes text of", MAX_WRITTEN + 16 * input),
            deadline: Instant::now() + time,
        })
    }

    /// Puts the checks into an environment whose templates went through `rewrite`.
    pub(super) fn install(self: &Arc<Budget>, environment: &mut Environment) {
        let budget = self.clone();
        environment.add_function(BOUND, move |value: Value| budget.bound(value, true));
        let budget = self.clone();
        environment.add_function(HELD, move |value: Value| budget.bound(value, false));
        let budget = self.clone();
        environment.add_function(TICK, move |bytes: usize| -> Outcome<()> {
            budget.clock()?;
            budget.written.add(bytes)
        });
        for name in GUARDED {
            let budget = self.clone();
            environment.add_filter(
                name,
                move |state: &mut State, arguments: Rest<ValueOrKwargs>| {
                    budget.filter(state, name, &arguments.into_values())
                },
            );
        }
        let budget = self.clone();
        environment.set_unknown_method_callback(move |state, value, name, arguments| {
            budget.method(state, value, name, arguments)
        });
        let budget = self.clone();
        environment.set_formatter(move |out, _, value| {
            budget.clock()?;
            if let Some(text) = value.as_str() {
                budget.written.add(text.len())?;
                return out.write_str(text).map_err(Error::from);
            }
            budget.size(value)?;
            let counted = write!(Counted(&budget.written, out), "{}", printed(value));
            counted.map_err(Error::from)
        });
    }

    fn clock(&self) -> Outcome<()> {
        if Instant::now() > self.deadline {
            return Err(refused("the template takes too long".to_string()));
        }
        Ok(())
    }

    fn bound(&self, value: Value, may_hold_namespace: bool) -> Outcome<Value> {
        let bytes = self.size(&value)?;
        self.named.add(bytes)?;
        if !may_hold_namespace && holds_namespace(&value) {
            return Err(refused("a namespace is put into a namespace".to_string()));
        }
        Ok(value)
    }

    /// About the bytes of a value when written out; an error beyond the limit.
    fn size(&self, value: &Value) -> Outcome<usize> {
        self.clock()?;
        let mut total = 0;
        self.add_size(value, 0, &mut total)?;
        Ok(total)
    }

    fn add_size(&self, value: &Value, depth: usize, total: &mut usize) -> Outcome<()> {
        if depth > MAX_NESTING {
            return Err(refused(format!(
                "a value nests more than {MAX_NESTING} deep"
            )));
        }
        *total += ITEM + value.as_bytes().map_or(0, <[u8]>::len);
        if *total > self.limit {
            return Err(refused(format!("a value is over {} bytes", self.limit)));
        }
        match value.kind() {
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
                for (key, value) in pairs.into_iter().flatten() {
                    self.add_size(&key, depth + 1, total)?;
                    self.add_size(&value, depth + 1, total)?;
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.add_size(&item, depth + 1, total)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn filter(&self, state: &mut State, name: &str, arguments: &[Value]) -> Outcome<Value> {
        self.arguments(name, arguments)?;
        let result = state.apply_filter(&format!("{PLAIN}{name}"), arguments)?;
        self.size(&result)?;
        Ok(result)
    }

    /// Python's methods of strings, lists and maps, without `format`, which pads to any width.
    fn method(
        &self,
        state: &mut State,
        value: &Value,
        name: &str,
        arguments: &[Value],
    ) -> Outcome<Value> {
        if name == "format" {
            return Err(Error::from(ErrorKind::UnknownMethod));
        }
        let mut all = vec![value.clone()];
        all.extend_from_slice(arguments);
        if name == "join" {
            all.reverse();
        }
        self.arguments(name, &all)?;
        let call = minijinja_contrib::pycompat::unknown_method_callback;
        let result = call(state, value, name, arguments)?;
        self.size(&result)?;
        Ok(result)
    }

    /// Checks what a filter or method is given, and what it would make of that.
    fn arguments(&self, name: &str, arguments: &[Value]) -> Outcome<()> {
        for argument in arguments {
            self.size(argument)?;
        }
        let (Some(value), rest) = (arguments.first(), arguments.get(1..).unwrap_or_default())
        else {
            return Ok(());
        };
        let text = |index: usize| rest.get(index).and_then(Value::as_str).unwrap_or_default();
        let made = match name {
            "join" => {
                let joiner = rest.iter().filter_map(Value::as_str).map(str::len).max();
                value.len().unwrap_or(0).saturating_mul(joiner.unwrap_or(0))
            }
            "replace" => {
                let found = value.to_string().matches(text(0)).count();
                found.saturating_mul(text(1).len())
            }
            "indent" => {
                let width = rest.iter().filter_map(width).max().unwrap_or(0);
                if width > MAX_INDENT {
                    return Err(refused(format!("indent is wider than {MAX_INDENT}")));
                }
                value.to_string().matches('\n').count() * width
            }
            _ => 0,
        };
        if made > self.limit {
            return Err(refused(format!(
                "{name} makes more than {} bytes",
                self.limit
            )));
        }
        Ok(())
    }
}

/// A width among the arguments of `indent`: a number, `width=`, or an indentation.
fn width(argument: &Value) -> Option<usize> {
    let named = argument.get_attr("width").unwrap_or_default();
    let values = [argument, &named];
    let number = |value: &Value| match value.kind() {
        ValueKind::Number => Some(usize::try_from(value.clone()).unwrap_or(usize::MAX)),
        _ => value.as_str().map(str::len),
    };
    values.into_iter().filter_map(number).max()
}

fn holds_namespace(value: &Value) -> bool {
    let Some(object) = value.as_object() else {
        return false;
    };
    let is_map = value.kind() == ValueKind::Map;
    let inside = || match object.try_iter_pairs().filter(|_| is_map) {
        Some(mut pairs) => pairs.any(|(_, value)| holds_namespace(&value)),
        None => value
            .try_iter()
            .is_ok_and(|mut items| items.any(|item| holds_namespace(&item))),
    };
    object.type_name().ends_with("Namespace") || inside()
}

/// Python's names for what is no string.
fn printed(value: &Value) -> Value {
    match value.kind() {
        ValueKind::None => Value::from("None"),
        ValueKind::Bool if value.is_true() => Value::from("True"),
        ValueKind::Bool => Value::from("False"),
        _ => value.clone(),
    }
}

/// Counts before it writes.
struct Counted<'a, W>(&'a Counter, &'a mut W);

impl<W: Write> Write for Counted<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.add(text.len()).map_err(|_| fmt::Error)?;
        self.1.write_str(text)
    }
}

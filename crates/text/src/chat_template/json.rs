//! `tojson` as `transformers` has it: Python's `json.dumps`, with characters as they are.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// Deeper than this is no text any more.
const MAX_INDENT: usize = 16;

/// The filter: `indent` may be a number; the other options of `transformers` are taken and ignored
/// where they say what is done anyway.
pub(super) fn to_json(
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    let wrong = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    if options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false)
    {
        return Err(wrong(
            "tojson(ensure_ascii=true) is not supported".to_string(),
        ));
    }
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) if indent > MAX_INDENT => {
            return Err(wrong(format!(
                "tojson(indent={indent}): the limit is {MAX_INDENT}"
            )));
        }
        Some(indent) => {
            let blanks = " ".repeat(indent);
            let format = PrettyFormatter::with_indent(blanks.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, format))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|error| wrong(format!("tojson: {error}")))?;
    let text = String::from_utf8(out).map_err(|error| wrong(format!("tojson: {error}")))?;
    Ok(Value::from(text))
}

/// Python's separators: a blank after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

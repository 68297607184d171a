//! The fields of a JSON object, read one by one with their ranges. Whatever is wrong names the
//! field; what nobody asks for is accepted and passed over.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object of the request, and where it is in it.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Empty for the request itself, else such as `tools[0].function`.
    path: String,
}

impl<'a> Fields<'a> {
    /// # Errors
    /// The value is no object.
    pub fn new(value: &'a Value, path: &str) -> Result<Fields<'a>, ApiError> {
        match value {
            Value::Object(object) => Ok(Fields {
                object,
                path: path.to_string(),
            }),
            _ if path.is_empty() => Err(ApiError::bad_request(format!(
                "the body must be a JSON object, not {}",
                kind(value)
            ))),
            _ => Err(wrong(path, value, "an object")),
        }
    }

    pub fn path(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        }
    }

    /// The field, unless it is absent or null.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn error(&self, name: &str, message: impl Display) -> ApiError {
        ApiError::field(self.path(name), message)
    }

    /// # Errors
    /// The field is absent or null.
    pub fn required(&self, name: &str) -> Result<&'a Value, ApiError> {
        let value = self.value(name);
        value.ok_or_else(|| self.error(name, "is required and missing"))
    }

    /// # Errors
    /// It is there and no string.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    /// # Errors
    /// It is there and neither true nor false.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// # Errors
    /// It is there and no list.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.read(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// # Errors
    /// It is there and no object.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        let value = self.value(name);
        value
            .map(|value| Fields::new(value, &self.path(name)))
            .transpose()
    }

    /// # Errors
    /// It is there and no number in the range.
    pub fn float(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let (low, high) = (range.start(), range.end());
        let expected = format!("a number from {low} to {high}");
        self.read(name, &expected, |value| {
            value.as_f64().filter(|x| range.contains(x))
        })
        // Through the decimal digits, so that 0.7 is the f32 nearest to 0.7.
        .map(|number| number.map(|x| x.to_string().parse().unwrap_or(x as f32)))
    }

    /// # Errors
    /// It is there and no whole number in the range.
    pub fn whole(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let (low, high) = (range.start(), range.end());
        let expected = match *high {
            u64::MAX => format!("a whole number of at least {low}"),
            high => format!("a whole number from {low} to {high}"),
        };
        self.read(name, &expected, |value| {
            whole(value).filter(|n| range.contains(n))
        })
    }

    /// As [`Fields::whole`]; what exceeds the range's end is taken as its end.
    ///
    /// # Errors
    /// It is there and no whole number of at least the range's beginning.
    pub fn clamped(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let (low, high) = (*range.start(), *range.end());
        let number = self.whole(name, low..=u64::MAX)?;
        Ok(number.map(|number| number.min(high)))
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        get: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match get(value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong(&self.path(name), value, expected)),
        }
    }
}

/// A whole number, also where it is written as 3.0 or beyond 64 bits.
pub fn whole(value: &Value) -> Option<u64> {
    if let Some(number) = value.as_u64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    (number.fract() == 0.0 && number >= 0.0).then_some(number as u64)
}

pub fn wrong(param: &str, value: &Value, expected: &str) -> ApiError {
    ApiError::field(param, format!("must be {expected}, not {}", shown(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Numbers and short strings as they are, the rest by its kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => format!("{text:?}"),
        _ => kind(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges_and_kinds_are_checked_and_the_field_is_named() {
        let body = json!({
            "t": 0.7, "n": 3, "whole": 3.0, "huge": 1e308, "text": "x", "null": null, "list": [],
            "inner": {"deep": -1},
        });
        let fields = Fields::new(&body, "").expect("an object");
        assert_eq!(fields.float("t", 0.0..=2.0), Ok(Some(0.7)));
        assert_eq!(fields.whole("n", 0..=5), Ok(Some(3)));
        assert_eq!(fields.whole("whole", 0..=5), Ok(Some(3)));
        assert_eq!(fields.clamped("huge", 1..=100), Ok(Some(100)));
        assert_eq!(fields.whole("null", 0..=5), Ok(None));
        assert_eq!(fields.text("absent"), Ok(None));
        let inner = fields.object("inner").expect("an object").expect("there");
        let error = inner.whole("deep", 0..=5).expect_err("below the range");
        assert_eq!(error.param.as_deref(), Some("inner.deep"));
        assert!(error.message.contains("-1"), "{}", error.message);
        for (name, wrong) in [
            ("t", fields.float("t", 0.0..=0.5).is_err()),
            ("huge", fields.whole("huge", 0..=5).is_err()),
            ("text", fields.flag("text").is_err()),
            ("list", fields.text("list").is_err()),
            ("n", fields.list("n").is_err()),
            ("inner", fields.whole("inner", 0..=5).is_err()),
        ] {
            assert!(wrong, "{name}");
        }
        assert!(Fields::new(&json!([1]), "").is_err());
    }
}

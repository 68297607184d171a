//! The fields of a `config.json`, each bounded as it is read.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::Error;

/// The ranges of crate `model`'s reader.
pub const COUNT: RangeInclusive<u64> = 1..=1 << 22;
pub const LAYERS: RangeInclusive<u64> = 1..=1 << 12;
pub const HEADS: RangeInclusive<u64> = 1..=1 << 14;
pub const VOCABULARY: RangeInclusive<u64> = 1..=1 << 24;
pub const POSITIONS: RangeInclusive<u64> = 1..=1 << 31;
pub const EXPERTS: RangeInclusive<u64> = 2..=1 << 16;
pub const SHARED_EXPERTS: RangeInclusive<u64> = 0..=1 << 10;

/// What of a value is shown in a message.
const SHOWN: usize = 60;

pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Of the table in the file, with a point at its end; empty for the file itself.
    path: String,
}

/// Enough of a value to recognise it by; a hostile one can be megabytes.
pub fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= SHOWN {
        return text;
    }
    let start: String = text.chars().take(SHOWN).collect();
    format!("{start}...")
}

impl<'a> Fields<'a> {
    pub fn new(map: &'a Map<String, Value>, path: String) -> Fields<'a> {
        Fields { map, path }
    }

    pub fn error(&self, field: &str, message: impl Into<String>) -> Error {
        Error::config(&format!("{}{field}", self.path), message)
    }

    pub fn missing(&self, names: &[&str]) -> Error {
        let others = match &names[1..] {
            [] => String::new(),
            others => format!(" (or {})", others.join(", ")),
        };
        let message = format!("absent{others}, but nothing can be counted without it");
        self.error(names[0], message)
    }

    /// The first of the names that the file has; null counts as absent.
    fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        let found = names.iter().map(|&name| Some((name, self.get(name)?)));
        found.flatten().next()
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the file says of a field that there is none.
    pub fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// A whole number under any of several names.
    pub fn optional(
        &self,
        names: &[&str],
        range: &RangeInclusive<u64>,
    ) -> Result<Option<u64>, Error> {
        let Some((name, value)) = self.find(names) else {
            return Ok(None);
        };
        self.whole(name, value, range).map(Some)
    }

    pub fn required(&self, names: &[&str], range: &RangeInclusive<u64>) -> Result<u64, Error> {
        let found = self.optional(names, range)?;
        found.ok_or_else(|| self.missing(names))
    }

    pub fn or(&self, name: &str, range: &RangeInclusive<u64>, default: u64) -> Result<u64, Error> {
        Ok(self.optional(&[name], range)?.unwrap_or(default))
    }

    pub fn whole(
        &self,
        name: &str,
        value: &Value,
        range: &RangeInclusive<u64>,
    ) -> Result<u64, Error> {
        let number = value.as_u64().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            let message = format!("{} is not a whole number in {low}..={high}", brief(value));
            self.error(name, message)
        })
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool, Error> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => {
                let message = format!("{} is not true or false", brief(other));
                Err(self.error(name, message))
            }
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                let message = format!("{} is not a name in quotes", brief(other));
                Err(self.error(name, message))
            }
        }
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.error(name, format!("{} is not a list", brief(other)))),
        }
    }

    /// A list with one entry for each layer.
    pub fn per_layer(&self, name: &str, layers: u64) -> Result<Option<&'a [Value]>, Error> {
        let list = self.list(name)?;
        match list {
            Some(list) if list.len() as u64 != layers => {
                let message = format!("{} entries for {layers} layers", list.len());
                Err(self.error(name, message))
            }
            list => Ok(list),
        }
    }

    /// A list of indices of layers.
    pub fn layer_indices(&self, name: &str) -> Result<Option<Vec<u64>>, Error> {
        let Some(list) = self.list(name)? else {
            return Ok(None);
        };
        let index = 0..=*LAYERS.end();
        let indices = list.iter().map(|value| self.whole(name, value, &index));
        indices.collect::<Result<Vec<u64>, Error>>().map(Some)
    }

    /// A table within this one.
    pub fn table(&self, name: &str) -> Result<Option<Fields<'a>>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let path = format!("{}{name}.", self.path);
                Ok(Some(Fields { map, path }))
            }
            Some(other) => Err(self.error(name, format!("{} is not an object", brief(other)))),
        }
    }
}

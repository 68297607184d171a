//! Tables that ship with the program.

use serde::de::DeserializeOwned;

use crate::error::Error;

/// All rows of a CSV table with a header; `file` is what errors call it.
///
/// # Errors
/// [`Error::Data`] with the line.
pub(crate) fn rows<T: DeserializeOwned>(file: &str, text: &str) -> Result<Vec<T>, Error> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows: Result<Vec<T>, csv::Error> = reader.deserialize().collect();
    rows.map_err(|error| Error::Data {
        file: file.to_string(),
        line: error.position().map_or(0, csv::Position::line),
        field: String::new(),
        message: error.to_string(),
    })
}

//! Rows of a JSONL file: `{"text": ...}` or `{"token_ids": [...]}`, one a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use crate::failure::Failure;
use crate::folder::Folder;

/// A longer line is refused before it is held.
const LONGEST_LINE: u64 = 16 << 20;

/// The token ids of every row, in order. Empty lines are skipped.
///
/// # Errors
/// A line that is no row, naming file and line; a file without rows.
pub fn read(path: &Path, folder: &Folder) -> Result<Vec<Vec<u32>>, Failure> {
    let file = File::open(path).map_err(|error| {
        let cause = format!("cannot be opened: {error}");
        Failure::input(path, cause, "give a JSONL file with one row a line")
    })?;
    let mut reader = BufReader::new(file);
    let mut rows = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE + 1)
            .read_until(b'\n', &mut line);
        let length = read.map_err(|error| Failure::line(path, number, error))?;
        if length == 0 {
            break;
        }
        if length as u64 > LONGEST_LINE {
            let cause = format!("longer than {LONGEST_LINE} bytes");
            return Err(Failure::line(path, number, cause));
        }
        if !line.trim_ascii().is_empty() {
            let row = row(&line, folder).map_err(|cause| Failure::line(path, number, cause))?;
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return Err(Failure::input(
            path,
            "has no rows",
            "write one JSON object a line",
        ));
    }
    Ok(rows)
}

fn row(line: &[u8], folder: &Folder) -> Result<Vec<u32>, String> {
    // Editors of some systems begin a file with this mark.
    let line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
    let row: Value = serde_json::from_slice(line).map_err(|error| format!("not JSON: {error}"))?;
    let token_ids = match (row.get("text"), row.get("token_ids")) {
        (Some(Value::String(text)), None) => encode(text, folder)?,
        (Some(_), None) => return Err("`text` is not a string".to_string()),
        (None, Some(ids)) => token_ids(ids)?,
        _ => return Err("needs either `text` or `token_ids`".to_string()),
    };
    folder.check_token_ids(&token_ids)?;
    check_length(&token_ids, folder)?;
    Ok(token_ids)
}

fn encode(text: &str, folder: &Folder) -> Result<Vec<u32>, String> {
    let Some(tokenizer) = &folder.tokenizer else {
        return Err(match folder.is_gguf() {
            true => {
                let (file, reason) = (folder.path.display(), &folder.no_tokenizer);
                format!("has `text`, but there is no tokenizer for it: {file}: {reason}")
            }
            false => "has `text`, but the model folder has no tokenizer.json".to_string(),
        });
    };
    let token_ids = folder.encode(tokenizer, text);
    token_ids.map_err(|error| error.to_string())
}

fn token_ids(value: &Value) -> Result<Vec<u32>, String> {
    let list = value.as_array().ok_or("`token_ids` is not a list")?;
    let id = |(index, id): (usize, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("`token_ids`[{index}] is no token id"))
    };
    list.iter().enumerate().map(id).collect()
}

fn check_length(token_ids: &[u32], folder: &Folder) -> Result<(), String> {
    let limit = folder.config.max_position_embeddings;
    match token_ids.len() {
        0 => Err("has no tokens".to_string()),
        length if length > limit => Err(format!("{length} tokens; the model takes {limit}")),
        _ => Ok(()),
    }
}

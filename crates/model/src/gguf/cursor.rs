//! Reads the header of a file, believing nothing: every length is held against what is left.

use std::io::Read;
use std::path::Path;

use super::value::{Array, TYPE_NAMES, Value};
use crate::error::Error;

/// Metadata and tensor descriptions of a large model take some ten million bytes.
const LARGEST_HEADER: u64 = 1 << 27;
/// A chat template takes a hundred thousand bytes.
const LARGEST_STRING: u64 = 1 << 24;
/// A vocabulary of 16 million tokens.
const LONGEST_ARRAY: u64 = 1 << 24;
/// No writer is known that nests arrays at all.
const DEEPEST_ARRAY: usize = 4;

/// A place in the header, and what is being read there.
pub(super) struct Cursor<'a, R> {
    source: R,
    path: &'a Path,
    /// Bytes read so far.
    pub at: u64,
    pub file_bytes: u64,
    /// What is being read, for errors: a key, a tensor.
    pub place: String,
}

impl<R: Read> Cursor<'_, R> {
    pub fn new(source: R, path: &Path, file_bytes: u64) -> Cursor<'_, R> {
        Cursor {
            source,
            path,
            at: 0,
            file_bytes,
            place: String::from("header"),
        }
    }

    pub fn fail(&self, message: impl AsRef<str>) -> Error {
        let message = message.as_ref();
        Error::file(self.path, format!("{}: {message}", self.place))
    }

    /// Bytes that the header can still have.
    fn left(&self) -> u64 {
        self.file_bytes.min(LARGEST_HEADER).saturating_sub(self.at)
    }

    /// Refuses `what` if the file, or any model's header, has no `bytes` bytes more.
    fn check_left(&self, bytes: u64, what: &str) -> Result<(), Error> {
        if bytes <= self.left() {
            return Ok(());
        }
        let expected = self.at.saturating_add(bytes);
        let found = self.file_bytes;
        Err(self.fail(if expected > found {
            format!(
                "truncated: {what}: at least {expected} bytes expected, {found} found; fetch the \
                 file again"
            )
        } else {
            format!("{what}: the header is longer than {LARGEST_HEADER} bytes; no model's is")
        }))
    }

    /// Refuses a count of things that cannot all be there, each of them `each` bytes or more.
    pub fn check_count(&self, count: u64, each: u64, most: u64, what: &str) -> Result<(), Error> {
        let what = format!("{count} {what}");
        if count > most {
            return Err(self.fail(format!("{what} are more than {most}")));
        }
        self.check_left(count.saturating_mul(each), &what)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.check_left(buffer.len() as u64, "the next field")?;
        self.source
            .read_exact(buffer)
            .map_err(|error| self.fail(format!("cannot be read: {error}")))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    pub fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A string of at most `longest` bytes, called `what` in errors.
    pub fn string(&mut self, longest: u64, what: &str) -> Result<String, Error> {
        let length = self.u64()?;
        self.check_count(length, 1, longest, &format!("bytes of {what}"))?;
        let mut buffer = vec![0; length as usize];
        self.fill(&mut buffer)?;
        String::from_utf8(buffer).map_err(|_| self.fail(format!("{what} is not UTF-8 text")))
    }

    fn bool(&mut self) -> Result<bool, Error> {
        match self.bytes()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.fail(format!("{other} is no truth value; 0 and 1 are"))),
        }
    }

    /// A value of the type of this number.
    pub fn value(&mut self, number: u32) -> Result<Value, Error> {
        Ok(match number {
            0 => Value::U8(u8::from_le_bytes(self.bytes()?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes()?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes()?)),
            4 => Value::U32(u32::from_le_bytes(self.bytes()?)),
            5 => Value::I32(i32::from_le_bytes(self.bytes()?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::Str(self.string(LARGEST_STRING, "text")?),
            9 => Value::Array(self.array(1)?),
            10 => Value::U64(u64::from_le_bytes(self.bytes()?)),
            11 => Value::I64(i64::from_le_bytes(self.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(self.fail(format!("type {number} is no type of a value"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Array, Error> {
        if depth > DEEPEST_ARRAY {
            let message = format!("arrays nested more than {DEEPEST_ARRAY} deep");
            return Err(self.fail(message));
        }
        let number = self.u32()?;
        let count = self.u64()?;
        // A string has at least its length, an array its type and its length.
        let least = match number {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return Err(self.fail(format!("type {number} is no type of array elements"))),
        };
        let what = format!("elements of type {}", TYPE_NAMES[number as usize]);
        self.check_count(count, least, LONGEST_ARRAY, &what)?;
        Ok(match number {
            0 => Array::U8(self.many(count, |this| this.bytes().map(u8::from_le_bytes))?),
            1 => Array::I8(self.many(count, |this| this.bytes().map(i8::from_le_bytes))?),
            2 => Array::U16(self.many(count, |this| this.bytes().map(u16::from_le_bytes))?),
            3 => Array::I16(self.many(count, |this| this.bytes().map(i16::from_le_bytes))?),
            4 => Array::U32(self.many(count, |this| this.bytes().map(u32::from_le_bytes))?),
            5 => Array::I32(self.many(count, |this| this.bytes().map(i32::from_le_bytes))?),
            6 => Array::F32(self.many(count, |this| this.bytes().map(f32::from_le_bytes))?),
            7 => Array::Bool(self.many(count, Self::bool)?),
            8 => Array::Str(self.many(count, |this| this.string(LARGEST_STRING, "text"))?),
            9 => Array::Nested(self.many(count, |this| this.array(depth + 1))?),
            10 => Array::U64(self.many(count, |this| this.bytes().map(u64::from_le_bytes))?),
            11 => Array::I64(self.many(count, |this| this.bytes().map(i64::from_le_bytes))?),
            _ => Array::F64(self.many(count, |this| this.bytes().map(f64::from_le_bytes))?),
        })
    }

    /// Grows as it reads, so that nothing is allocated for elements that do not come.
    fn many<T>(
        &mut self,
        count: u64,
        mut one: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(one(self)?);
        }
        Ok(values)
    }
}

//! An open GGUF file: its header checked from end to end, its tensors read by position.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::blocks::dequantize;
use super::cursor::Cursor;
use super::kind::GgmlType;
use super::value::{Array, Value};
use crate::error::{Error, shown};
use kernels::{Bytes, MappedFile};

/// More than any published model has; see `MAX_TENSORS` of the configuration.
const MOST_TENSORS: u64 = 1 << 17;
const MOST_KEYS: u64 = 1 << 16;
/// The format's own limit for keys.
const LONGEST_KEY: u64 = u16::MAX as u64;
/// ggml itself holds 63 bytes.
const LONGEST_NAME: u64 = 256;
const MOST_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// How much is read at once while converting to f32.
const CHUNK_BYTES: usize = 1 << 18;

/// One tensor as the header describes it, its byte range checked against shape and file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    pub name: String,
    /// Row-major, the last dimension contiguous: ggml's `ne` backwards.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
    /// First byte, from the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

impl GgufTensor {
    /// Elements of a row, the last dimension.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// How many rows it has: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

/// An open GGUF file whose header has been checked. Reading takes `&self` and moves no file
/// position, so threads may read at once.
#[derive(Debug)]
pub struct Gguf {
    pub path: PathBuf,
    pub metadata: BTreeMap<String, Value>,
    /// In the order of the file.
    pub tensors: Vec<GgufTensor>,
    index: BTreeMap<String, usize>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    File(File),
    Bytes(Vec<u8>),
}

impl Gguf {
    /// Opens a file and checks its whole header: counts, lengths, types, alignment, and that the
    /// tensors lie within the file and do not overlap. No tensor is read.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and the key or tensor.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let fail = |error: std::io::Error| Error::file(path, format!("cannot be read: {error}"));
        // A pipe would be waited for, a folder cannot be read.
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(Error::file(path, "not a regular file"));
        }
        let file = File::open(path).map_err(fail)?;
        let file_bytes = file.metadata().map_err(fail)?.len();
        let header = Header::read(BufReader::with_capacity(1 << 16, &file), path, file_bytes)?;
        Ok(header.into_gguf(path, Data::File(file)))
    }

    /// As [`open`](Gguf::open), for a file that is in memory; `path` only names it in errors.
    ///
    /// # Errors
    /// As [`open`](Gguf::open).
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Gguf, Error> {
        let header = Header::read(bytes.as_slice(), path, bytes.len() as u64)?;
        Ok(header.into_gguf(path, Data::Bytes(bytes)))
    }

    /// The number of the tensor of this name in [`tensors`](Gguf::tensors).
    pub fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// [`Error::File`] if the key is absent or no string.
    pub fn architecture(&self) -> Result<&str, Error> {
        let key = "general.architecture";
        let name = self.str(key)?;
        name.ok_or_else(|| self.bad_key(key, "is absent; the file does not say what it is"))
    }

    /// An integer of any width that fits, or `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::File`] naming the key, if its value is something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "an integer from 0 to 4294967295", |value| {
            value.integer().and_then(|value| u32::try_from(value).ok())
        })
    }

    /// A floating-point number, or `None` if the key is absent. Errors as [`u32`](Gguf::u32).
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.typed(key, "a floating-point number", Value::float)
    }

    /// A truth value, or `None` if the key is absent. Errors as [`u32`](Gguf::u32).
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A string, or `None` if the key is absent. Errors as [`u32`](Gguf::u32).
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", |value| match value {
            Value::Str(value) => Some(value.as_str()),
            _ => None,
        })
    }

    /// An array of strings, or `None` if the key is absent. Errors as [`u32`](Gguf::u32).
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, Error> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::Str(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any width, or `None` if the key is absent. Errors as
    /// [`u32`](Gguf::u32).
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })
    }

    /// An array of floating-point numbers, or `None` if the key is absent. Errors as
    /// [`u32`](Gguf::u32): integers are not taken for floats.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.typed(
            key,
            "an array of floating-point numbers",
            |value| match value {
                Value::Array(array) => array.floats(),
                _ => None,
            },
        )
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let converted = convert(value);
        if converted.is_none() {
            let found = match value.integer() {
                Some(number) => number.to_string(),
                None => value.type_name(),
            };
            return Err(self.bad_key(key, format!("is {found}; {wanted} is needed")));
        }
        Ok(converted)
    }

    /// An error that names the file and a key.
    pub(super) fn bad_key(&self, key: &str, message: impl AsRef<str>) -> Error {
        let message = message.as_ref();
        Error::file(&self.path, format!("key `{}` {message}", shown(key)))
    }

    /// An error that names the file and a tensor.
    pub(super) fn bad_tensor(&self, name: &str, message: impl AsRef<str>) -> Error {
        let message = message.as_ref();
        Error::file(&self.path, format!("tensor `{}`: {message}", shown(name)))
    }

    /// Reads `out.len()` bytes of a tensor as they are stored, from byte `start` of the tensor.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read there.
    ///
    /// # Panics
    /// If the tensor has no such bytes.
    pub fn read_bytes(&self, tensor: usize, start: u64, out: &mut [u8]) -> Result<(), Error> {
        let tensor = &self.tensors[tensor];
        assert!(
            start <= tensor.bytes && out.len() as u64 <= tensor.bytes - start,
            "{} bytes from {start} of {} bytes",
            out.len(),
            tensor.bytes
        );
        let from = tensor.offset + start;
        let result = match &self.data {
            Data::File(file) => read_at(file, out, from),
            Data::Bytes(bytes) => {
                out.copy_from_slice(&bytes[from as usize..][..out.len()]);
                Ok(())
            }
        };
        result.map_err(|error| self.bad_tensor(&tensor.name, format!("cannot be read: {error}")))
    }

    /// The whole file, mapped; a file in memory is copied. Offsets of tensors count in it.
    pub(crate) fn map(&self) -> Result<Bytes, Error> {
        match &self.data {
            Data::Bytes(bytes) => Ok(Bytes::from(bytes.clone())),
            Data::File(file) => match MappedFile::new(file) {
                Ok(map) => Ok(Bytes::from(map)),
                Err(error) => {
                    let message = format!("cannot be mapped: {error}; read it instead");
                    Err(Error::file(&self.path, message))
                }
            },
        }
    }

    /// Reads rows of a tensor and widens them: `out` is `[rows, row_len]`, where a row is the last
    /// dimension and rows are counted over all the others.
    ///
    /// # Errors
    /// [`Error::File`] naming the tensor: its type is not read here, or the file cannot be read.
    ///
    /// # Panics
    /// If there are no such rows, or `out` has another size.
    pub fn read_rows_f32(
        &self,
        tensor: usize,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let GgufTensor { name, kind, .. } = &self.tensors[tensor];
        let row_len = self.tensors[tensor].row_len();
        assert!(rows.end <= self.tensors[tensor].rows(), "no such rows");
        assert_eq!(out.len(), rows.len() * row_len, "rows and buffer differ");
        if !kind.is_read() {
            let message = format!(
                "elements of type {} are not read here; convert the file to another, such as Q8_0",
                kind.name()
            );
            return Err(self.bad_tensor(name, message));
        }
        let (len, bytes) = (kind.block_len(), kind.block_bytes());
        let blocks = CHUNK_BYTES / bytes;
        let mut chunk = vec![0; bytes * blocks.min(out.len() / len)];
        let mut start = (rows.start * (row_len / len) * bytes) as u64;
        for values in out.chunks_mut(blocks * len) {
            let stored = &mut chunk[..values.len() / len * bytes];
            self.read_bytes(tensor, start, stored)?;
            dequantize(*kind, stored, values);
            start += stored.len() as u64;
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], from: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, from)
}

#[cfg(windows)]
fn read_at(file: &File, mut out: &mut [u8], mut from: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, out, from)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[read..];
        from += read as u64;
    }
    Ok(())
}

struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: Vec<GgufTensor>,
}

impl Header {
    fn into_gguf(self, path: &Path, data: Data) -> Gguf {
        let names = self.tensors.iter().map(|tensor| tensor.name.clone());
        Gguf {
            path: path.to_path_buf(),
            metadata: self.metadata,
            index: names.zip(0..).collect(),
            tensors: self.tensors,
            data,
        }
    }

    fn read(source: impl Read, path: &Path, file_bytes: u64) -> Result<Header, Error> {
        let mut cursor = Cursor::new(source, path, file_bytes);
        check_magic(&mut cursor)?;
        let tensor_count = cursor.u64()?;
        let key_count = cursor.u64()?;
        // The least that a key with a value takes, and a tensor of one dimension.
        cursor.check_count(key_count, 14, MOST_KEYS, "keys")?;
        cursor.check_count(tensor_count, 33, MOST_TENSORS, "tensors")?;
        let mut metadata = BTreeMap::new();
        for number in 0..key_count {
            cursor.place = format!("key {number}");
            let key = cursor.string(LONGEST_KEY, "its name")?;
            cursor.place = format!("key `{}`", shown(&key));
            if metadata.contains_key(&key) {
                return Err(cursor.fail("is there twice"));
            }
            let number = cursor.u32()?;
            let value = cursor.value(number)?;
            metadata.insert(key, value);
        }
        let alignment = alignment(&mut cursor, &metadata)?;
        let mut tensors = Vec::new();
        let mut names = BTreeSet::new();
        for number in 0..tensor_count {
            cursor.place = format!("tensor {number}");
            let name = cursor.string(LONGEST_NAME, "its name")?;
            cursor.place = format!("tensor `{}`", shown(&name));
            if !names.insert(name.clone()) {
                return Err(cursor.fail("is there twice"));
            }
            tensors.push(read_tensor(&mut cursor, name, alignment)?);
        }
        // The header is no longer than the file, so the sum is far from overflowing.
        let data_start = cursor.at.next_multiple_of(alignment);
        place_tensors(&mut cursor, &mut tensors, data_start)?;
        Ok(Header { metadata, tensors })
    }
}

fn check_magic<R: Read>(cursor: &mut Cursor<R>) -> Result<(), Error> {
    let magic: [u8; 4] = cursor.bytes()?;
    if &magic != b"GGUF" {
        let hint = match &magic {
            b"vers" => "; a Git LFS pointer starts so: run `git lfs pull` in its folder",
            b"lmgg" | b"tjgg" | b"fmgg" => "; it is one of GGUF's predecessors: convert it again",
            _ => "",
        };
        return Err(cursor.fail(format!(
            "it starts with `{}`, not with `GGUF`{hint}",
            magic.escape_ascii()
        )));
    }
    let version = cursor.u32()?;
    match version {
        2 | 3 => Ok(()),
        1 => Err(cursor.fail("version 1 of GGUF is not read here; convert the model again")),
        // The version is a small number: its bytes stand the wrong way round.
        _ if version & 0xffff == 0 && version != 0 => {
            Err(cursor.fail("a big-endian GGUF file is not read here; convert it again"))
        }
        _ => Err(cursor.fail(format!(
            "version {version} of GGUF is not known; 2 and 3 are"
        ))),
    }
}

fn alignment<R: Read>(
    cursor: &mut Cursor<R>,
    metadata: &BTreeMap<String, Value>,
) -> Result<u64, Error> {
    let key = "general.alignment";
    cursor.place = format!("key `{key}`");
    let Some(value) = metadata.get(key) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let alignment = value.integer().and_then(|value| u64::try_from(value).ok());
    match alignment {
        Some(value) if value.is_power_of_two() && (8..=1 << 16).contains(&value) => Ok(value),
        _ => {
            let found = value.integer().map(|value| value.to_string());
            let found = found.unwrap_or_else(|| value.type_name());
            Err(cursor.fail(format!("{found} is not a power of two from 8 to 65536")))
        }
    }
}

/// One description; its offset still counts from the start of the data.
fn read_tensor<R: Read>(
    cursor: &mut Cursor<R>,
    name: String,
    alignment: u64,
) -> Result<GgufTensor, Error> {
    let dimensions = cursor.u32()?;
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        let message = format!("{dimensions} dimensions; 1 to {MOST_DIMENSIONS} are allowed");
        return Err(cursor.fail(message));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64()?);
    }
    shape.reverse();
    let number = cursor.u32()?;
    let offset = cursor.u64()?;
    if shape.contains(&0) {
        return Err(cursor.fail(format!("shape {shape:?} has a zero")));
    }
    let Some(kind) = GgmlType::from_number(number) else {
        return Err(cursor.fail(format!("its type {number} is not known")));
    };
    let Some(bytes) = kind.tensor_bytes(&shape) else {
        let (kind, len) = (kind.name(), kind.block_len());
        return Err(cursor.fail(format!(
            "{kind} of shape {shape:?} has no size in bytes; rows are multiples of {len}"
        )));
    };
    if bytes > cursor.file_bytes {
        let (kind, found) = (kind.name(), cursor.file_bytes);
        return Err(cursor.fail(format!(
            "truncated: {kind} of shape {shape:?} needs {bytes} bytes expected, {found} found in \
             the whole file; fetch the file again"
        )));
    }
    if !offset.is_multiple_of(alignment) {
        return Err(cursor.fail(format!(
            "it starts at byte {offset}, no multiple of {alignment}"
        )));
    }
    let dims: Result<Vec<usize>, _> = shape.iter().map(|&dim| usize::try_from(dim)).collect();
    Ok(GgufTensor {
        name,
        shape: dims.map_err(|_| cursor.fail("too large for this machine"))?,
        kind,
        offset,
        bytes,
    })
}

/// Turns offsets into places in the file, and refuses tensors that overlap or end beyond it.
fn place_tensors<R: Read>(
    cursor: &mut Cursor<R>,
    tensors: &mut [GgufTensor],
    data_start: u64,
) -> Result<(), Error> {
    for tensor in &mut *tensors {
        let end = data_start
            .checked_add(tensor.offset)
            .and_then(|start| start.checked_add(tensor.bytes));
        if end.is_none_or(|end| end > cursor.file_bytes) {
            cursor.place = format!("tensor `{}`", shown(&tensor.name));
            let expected = end.map_or_else(|| "over 2^64".to_string(), |end| end.to_string());
            let found = cursor.file_bytes;
            return Err(cursor.fail(format!(
                "truncated: {expected} bytes expected, {found} found; fetch the file again"
            )));
        }
        tensor.offset += data_start;
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            cursor.place = format!("tensor `{}`", shown(&pair[1].name));
            return Err(cursor.fail(format!("it overlaps `{}`", shown(&pair[0].name))));
        }
    }
    Ok(())
}

//! Writes a GGUF file of version 3 from start to end, without going back.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::kind::GgmlType;
use super::quantize::quantize;
use super::value::{Array, Value};
use crate::error::{Error, shown};

const ALIGNMENT: u64 = 32;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    pub name: String,
    /// Row-major; 1 to 4 dimensions, none of them zero.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
}

impl TensorPlan {
    /// Bytes of its data, without padding.
    ///
    /// # Panics
    /// If the shape is none, or a row is no whole number of blocks.
    pub fn bytes(&self) -> u64 {
        let shape: Vec<u64> = self.shape.iter().map(|&dim| dim as u64).collect();
        let sound = (1..=4).contains(&shape.len()) && !shape.contains(&0);
        let bytes = self.kind.tensor_bytes(&shape).filter(|_| sound);
        let kind = self.kind.name();
        bytes.unwrap_or_else(|| panic!("`{}`: {kind} of shape {shape:?}", self.name))
    }
}

/// Writes the header at once, then the data of the planned tensors in their order, as it comes.
/// The same input gives the same bytes.
pub struct GgufWriter<'a> {
    sink: &'a mut dyn Write,
    path: PathBuf,
    tensors: Vec<TensorPlan>,
    /// The tensor being written, and how many of its bytes are.
    current: usize,
    written: u64,
    buffer: Vec<u8>,
}

impl<'a> GgufWriter<'a> {
    /// Writes the header: `metadata` in its order, and the descriptions of `tensors`. `path` only
    /// names the file in errors. Pass a buffered sink.
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Resources`].
    ///
    /// # Panics
    /// If a key or a tensor is there twice, or a tensor has no size.
    pub fn new(
        sink: &'a mut dyn Write,
        path: &Path,
        metadata: &[(String, Value)],
        tensors: Vec<TensorPlan>,
    ) -> Result<GgufWriter<'a>, Error> {
        let keys: BTreeSet<&str> = metadata.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys.len(), metadata.len(), "a key is there twice");
        let names: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names.len(), tensors.len(), "a tensor is there twice");
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            push_str(&mut header, key);
            header.extend(value.type_number().to_le_bytes());
            push_value(&mut header, value);
        }
        let mut offset = 0u64;
        for tensor in &tensors {
            push_str(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dim in tensor.shape.iter().rev() {
                header.extend((dim as u64).to_le_bytes());
            }
            header.extend(tensor.kind.number().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut writer = GgufWriter {
            sink,
            path: path.to_path_buf(),
            tensors,
            current: 0,
            written: 0,
            buffer: Vec::new(),
        };
        writer.put(&header)?;
        Ok(writer)
    }

    /// Writes the next elements of the current tensor, whole blocks of them, and says how many
    /// bytes they became.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Resources`], or [`Error::File`] naming the tensor and a value
    /// that its type cannot hold.
    ///
    /// # Panics
    /// If the tensor has no room for them, all tensors are written, or they are no whole blocks.
    pub fn write_f32(&mut self, values: &[f32]) -> Result<usize, Error> {
        assert!(self.current < self.tensors.len(), "all tensors are written");
        let tensor = &self.tensors[self.current];
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        quantize(tensor.kind, values, &mut buffer).map_err(|message| {
            let name = shown(&tensor.name);
            Error::file(&self.path, format!("tensor `{name}`: {message}"))
        })?;
        let (result, bytes) = (self.write_bytes(&buffer), buffer.len());
        self.buffer = buffer;
        result.map(|()| bytes)
    }

    /// Writes the next bytes of the current tensor as they are to be stored.
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Resources`].
    ///
    /// # Panics
    /// If the tensor has no room for them, or all tensors are written.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        assert!(self.current < self.tensors.len(), "all tensors are written");
        let whole = self.tensors[self.current].bytes();
        assert!(
            bytes.len() as u64 <= whole - self.written,
            "tensor `{}` has no room for {} bytes more",
            self.tensors[self.current].name,
            bytes.len()
        );
        self.put(bytes)?;
        self.written += bytes.len() as u64;
        if self.written == whole {
            let padding = whole.next_multiple_of(ALIGNMENT) - whole;
            self.put(&[0; ALIGNMENT as usize][..padding as usize])?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Flushes the sink.
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Resources`].
    ///
    /// # Panics
    /// If a tensor is not whole.
    pub fn finish(self) -> Result<(), Error> {
        assert_eq!(self.current, self.tensors.len(), "a tensor is not whole");
        self.sink
            .flush()
            .map_err(|source| write_error(&self.path, source))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.sink
            .write_all(bytes)
            .map_err(|source| write_error(&self.path, source))
    }
}

fn write_error(path: &Path, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Resources {
            path: path.to_path_buf(),
            message: format!("no room left: {source}; free some and run again"),
        },
        _ => Error::Write {
            path: path.to_path_buf(),
            action: "writing",
            source,
        },
    }
}

fn push_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn push_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => out.push(*value),
        Value::I8(value) => out.extend(value.to_le_bytes()),
        Value::U16(value) => out.extend(value.to_le_bytes()),
        Value::I16(value) => out.extend(value.to_le_bytes()),
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::I32(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::Str(value) => push_str(out, value),
        Value::Array(array) => push_array(out, array),
        Value::U64(value) => out.extend(value.to_le_bytes()),
        Value::I64(value) => out.extend(value.to_le_bytes()),
        Value::F64(value) => out.extend(value.to_le_bytes()),
    }
}

fn push_array(out: &mut Vec<u8>, array: &Array) {
    fn all<T>(out: &mut Vec<u8>, values: &[T], mut one: impl FnMut(&mut Vec<u8>, &T)) {
        out.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| one(out, value));
    }
    out.extend(array.element_number().to_le_bytes());
    match array {
        Array::U8(values) => all(out, values, |out, value| out.push(*value)),
        Array::I8(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::U16(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::I16(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::U32(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::I32(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::F32(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::Bool(values) => all(out, values, |out, value| out.push(u8::from(*value))),
        Array::Str(values) => all(out, values, |out, value| push_str(out, value)),
        Array::Nested(values) => all(out, values, push_array),
        Array::U64(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::I64(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
        Array::F64(values) => all(out, values, |out, value| out.extend(value.to_le_bytes())),
    }
}

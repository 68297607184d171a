//! The safetensors container: eight bytes of header length, a JSON header, the data.
//!
//! Written here rather than taken from the `safetensors` crate, because that one neither caps the
//! number of tensors nor refuses a key given twice, and its errors do not name the tensor.
//! Format: <https://huggingface.co/docs/safetensors>.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::float::{bf16_to_f32, f16_to_f32};
use super::positioned::read_exact_at;
use crate::config::MAX_TENSORS;
use crate::error::{Error, brief_reason, shown};
use crate::open::StoredTensor;

/// The limit of the format's own implementation.
const LARGEST_HEADER: u64 = 100_000_000;
const LARGEST_RANK: usize = 8;
/// How much is read at once while converting to f32: small beside any model, large beside a seek.
const CHUNK_BYTES: usize = 1 << 20;

/// One tensor as the header describes it, its byte range checked against shape and file.
pub(crate) struct Entry {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub start: u64,
    pub bytes: u64,
}

/// An open safetensors file whose header has been checked from end to end.
pub(super) struct Reader {
    pub path: PathBuf,
    pub file: File,
    /// In the order of the data.
    pub entries: Vec<Entry>,
}

impl Reader {
    /// Checks the whole header; see [`read_header`].
    pub fn new(file: File, path: &Path) -> Result<Reader, Error> {
        let fail = |error: std::io::Error| Error::file(path, format!("cannot be read: {error}"));
        let file_bytes = file.metadata().map_err(fail)?.len();
        let entries = read_header(&file, path, file_bytes)?;
        Ok(Reader {
            path: path.to_path_buf(),
            file,
            entries,
        })
    }

    /// Hands the bytes of one tensor to `each`, in order, in chunks of whole 8-byte groups.
    pub fn stream(&self, index: usize, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        self.try_stream(index, |bytes| {
            each(bytes);
            Ok(())
        })
    }

    /// As [`stream`](Reader::stream), until `each` fails.
    pub fn try_stream<E: From<Error>>(
        &self,
        index: usize,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let entry = &self.entries[index];
        let fail = |error: std::io::Error| {
            let name = shown(&entry.name);
            Error::file(
                &self.path,
                format!("tensor `{name}` cannot be read: {error}"),
            )
        };
        let mut chunk = vec![0; CHUNK_BYTES.min(entry.bytes as usize)];
        let end = entry.start + entry.bytes;
        let mut at = entry.start;
        while at < end {
            let part = &mut chunk[..CHUNK_BYTES.min((end - at) as usize)];
            read_exact_at(&self.file, part, at).map_err(fail)?;
            each(part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Converts an F32, BF16 or F16 tensor into `out`, which has as many elements.
    pub fn read_f32(&self, index: usize, out: &mut [f32]) -> Result<(), Error> {
        let entry = &self.entries[index];
        assert_eq!(
            out.len(),
            entry.shape.iter().product::<usize>(),
            "tensor and buffer differ"
        );
        let dtype = entry.dtype.clone();
        let mut rest = out;
        self.stream(index, |bytes| {
            let (now, later) =
                std::mem::take(&mut rest).split_at_mut(bytes.len() / float_bytes(&dtype));
            widen(bytes, &dtype, now);
            rest = later;
        })
    }
}

/// Whether [`Reader::read_f32`] knows the type.
pub(super) fn is_float(dtype: &str) -> bool {
    matches!(dtype, "F32" | "BF16" | "F16")
}

/// Bytes of one element of a type that [`is_float`] knows.
pub(super) fn float_bytes(dtype: &str) -> usize {
    if dtype == "F32" { 4 } else { 2 }
}

fn widen(bytes: &[u8], dtype: &str, out: &mut [f32]) {
    if dtype == "F32" {
        for (value, four) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*four);
        }
        return;
    }
    let convert = match dtype {
        "BF16" => bf16_to_f32,
        "F16" => f16_to_f32,
        other => panic!("{other} is not a floating-point type read here"),
    };
    for (value, two) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = convert(u16::from_le_bytes(*two));
    }
}

/// Checks the header of a safetensors file that is in memory, and lists its tensors in the order of
/// their data; `path` only names the file in errors. The same code reads the files of a folder.
///
/// # Errors
/// [`Error::File`] naming what is wrong and the tensor: a length, type, shape or range that lies, a
/// name there twice, bytes that no tensor covers.
pub fn check_safetensors(bytes: &[u8], path: &Path) -> Result<Vec<StoredTensor>, Error> {
    let entries = read_header(bytes, path, bytes.len() as u64)?;
    let tensors = entries.into_iter().map(|entry| StoredTensor {
        name: entry.name,
        dtype: entry.dtype,
        shape: entry.shape,
        bytes: entry.bytes,
    });
    Ok(tensors.collect())
}

/// Reads a header from the start of a file of `file_bytes` bytes and checks all of it: no overlap,
/// no gap, nothing beyond the end, every range as long as shape and dtype say. Allocates no more
/// than a few times the header's own size.
fn read_header(mut source: impl Read, path: &Path, file_bytes: u64) -> Result<Vec<Entry>, Error> {
    let header_bytes = header_length(&mut source, path, file_bytes)?;
    let mut header = vec![0; header_bytes];
    source
        .read_exact(&mut header)
        .map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
    if header.first() != Some(&b'{') {
        return Err(Error::file(
            path,
            "the header does not start with `{`: not safetensors",
        ));
    }
    let text = std::str::from_utf8(&header)
        .map_err(|_| Error::file(path, "the header is not UTF-8; fetch the file again"))?;
    let header: Header = serde_json::from_str(text)
        .map_err(|error| Error::file(path, format!("bad header: {}", brief_reason(&error))))?;
    check_ranges(header.0, path, 8 + header_bytes as u64, file_bytes)
}

fn header_length(source: &mut impl Read, path: &Path, file_bytes: u64) -> Result<usize, Error> {
    let mut prefix = [0; 8];
    if file_bytes < 8 {
        let message = format!(
            "truncated: at least 10 bytes expected, {file_bytes} found; fetch the file again"
        );
        return Err(Error::file(path, message));
    }
    source
        .read_exact(&mut prefix)
        .map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
    if &prefix == b"version " {
        let message = "a Git LFS pointer, not the weights; run `git lfs pull` in its folder";
        return Err(Error::file(path, message));
    }
    let length = u64::from_le_bytes(prefix);
    if length > LARGEST_HEADER {
        let message = format!(
            "a header of {length} bytes is more than {LARGEST_HEADER}: not a safetensors file"
        );
        return Err(Error::file(path, message));
    }
    if length > file_bytes - 8 {
        let message = format!(
            "truncated: its header needs {} bytes expected, {file_bytes} found; fetch the file \
             again",
            length + 8
        );
        return Err(Error::file(path, message));
    }
    Ok(length as usize)
}

/// Bits of an element, or `None` if the type is unknown.
fn element_bits(dtype: &str) -> Option<u64> {
    let bits = match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    };
    Some(bits)
}

/// Bytes of a tensor, or `None` if that overflows, is no whole number, or the type is unknown.
fn tensor_bytes(shape: &[u64], dtype: &str) -> Option<u64> {
    let bits = element_bits(dtype)?;
    let elements = shape
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
    let bits = elements.checked_mul(bits)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn check_ranges(
    mut raw: Vec<(String, RawEntry)>,
    path: &Path,
    data_start: u64,
    file_bytes: u64,
) -> Result<Vec<Entry>, Error> {
    raw.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        entry.check(end).map_err(|message| {
            let name = shown(&name);
            Error::file(
                path,
                format!("tensor `{name}`: {message}; fetch the file again"),
            )
        })?;
        let (start, stop) = entry.data_offsets;
        let RawEntry { dtype, shape, .. } = entry;
        let shape = shape.0.into_iter().map(|dim| dim as usize).collect();
        // The sum cannot overflow once the file is known to reach that far; until then it may.
        let start = data_start.saturating_add(start);
        entries.push(Entry {
            name,
            dtype,
            shape,
            start,
            bytes: stop - end,
        });
        end = stop;
    }
    let expected = data_start.saturating_add(end);
    if expected > file_bytes {
        let message = format!(
            "truncated: {expected} bytes expected, {file_bytes} found; fetch the file again"
        );
        return Err(Error::file(path, message));
    }
    if expected < file_bytes {
        let message = format!(
            "{expected} bytes expected, {file_bytes} found: something was appended; do not trust \
             this file"
        );
        return Err(Error::file(path, message));
    }
    Ok(entries)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl RawEntry {
    /// Checks one entry that should begin at byte `expected_start` of the data.
    fn check(&self, expected_start: u64) -> Result<(), String> {
        let (start, end) = self.data_offsets;
        if start > end {
            return Err(format!("its bytes {start}..{end} run backwards"));
        }
        if self.shape.0.contains(&0) {
            return Err(format!("shape {:?} has a zero", self.shape.0));
        }
        let bytes = tensor_bytes(&self.shape.0, &self.dtype).ok_or_else(|| {
            let dtype = shown(&self.dtype);
            format!("{dtype} of shape {:?} has no size in bytes", self.shape.0)
        })?;
        if end - start != bytes {
            let (dtype, shape) = (&self.dtype, &self.shape.0);
            return Err(format!(
                "{dtype} of shape {shape:?} needs {bytes} bytes, the header gives it {start}..{end}"
            ));
        }
        if start != expected_start {
            let what = if start < expected_start {
                "overlap"
            } else {
                "leave a gap after"
            };
            return Err(format!(
                "its bytes {start}..{end} {what} the tensor before, which ends at {expected_start}"
            ));
        }
        Ok(())
    }
}

/// The dimensions of a tensor; a list of millions of them is refused while it is read.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == LARGEST_RANK {
                        let message = format_args!("more than {LARGEST_RANK} dimensions");
                        return Err(de::Error::custom(message));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

/// The whole header, without `__metadata__`, which nothing here needs.
struct Header(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from tensor names to descriptions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut names = BTreeSet::new();
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let shown_name = shown(&name);
                    if !names.insert(name.clone()) {
                        let message = format_args!("tensor `{shown_name}` is there twice");
                        return Err(de::Error::custom(message));
                    }
                    if names.len() as u64 > MAX_TENSORS + 1 {
                        let message = format_args!("more than {MAX_TENSORS} tensors");
                        return Err(de::Error::custom(message));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value().map_err(|error| {
                        let reason = brief_reason(&error);
                        de::Error::custom(format_args!("tensor `{shown_name}`: {reason}"))
                    })?;
                    tensors.push((name, entry));
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// A tensor to be written: its name, type and shape.
pub(crate) struct Planned<'a> {
    pub name: &'a str,
    /// A type of the format whose elements are whole bytes.
    pub dtype: &'a str,
    pub shape: &'a [usize],
}

impl Planned<'_> {
    pub fn bytes(&self) -> u64 {
        let shape: Vec<u64> = self.shape.iter().map(|&dim| dim as u64).collect();
        tensor_bytes(&shape, self.dtype).expect("a tensor that exists has a size")
    }

    /// Tensors whose elements have more bits stand first, so that each is aligned to its own.
    pub fn element_bits(&self) -> u64 {
        element_bits(self.dtype).expect("a tensor that exists has a known type")
    }
}

/// The length prefix and the header of a file that holds `tensors` one after the other. Spaces
/// fill it up, so that the data starts at a multiple of eight bytes.
pub(crate) fn header(tensors: &[Planned]) -> Vec<u8> {
    let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let name = serde_json::Value::from(tensor.name);
        let (dtype, shape) = (tensor.dtype, serde_json::Value::from(tensor.shape));
        text += &format!(
            r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#
        );
        start = end;
    }
    text.push('}');
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

//! Single safetensors files of arbitrary tensors: logits out, reference tensors in.

use std::fs::{self, File};
use std::path::Path;

use super::publish::{Disk, replace_file};
use super::safetensors::{Planned, Reader, header, is_float};
use super::weights::write_values;
use crate::error::{Error, shown};

/// A tensor of a safetensors file, in the order of the file's data.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    /// As the file says, such as `BF16`; `data` is already converted.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: TensorData,
}

/// The values of a [`NamedTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// From F32, BF16 or F16.
    F32(Vec<f32>),
    /// From I32, or from I64 where every value fits.
    I32(Vec<i32>),
}

/// Reads every tensor of a safetensors file.
///
/// # Errors
/// [`Error::File`] if the file is missing, truncated or malformed, or holds a type that is none of
/// F32, BF16, F16, I32, I64.
pub fn read_tensors(path: &Path) -> Result<Vec<NamedTensor>, Error> {
    let fail = |error: std::io::Error| Error::file(path, format!("cannot be opened: {error}"));
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    let reader = Reader::new(File::open(path).map_err(fail)?, path)?;
    (0..reader.entries.len())
        .map(|index| read_tensor(&reader, index))
        .collect()
}

fn read_tensor(reader: &Reader, index: usize) -> Result<NamedTensor, Error> {
    let entry = &reader.entries[index];
    let (name, dtype, shape) = (entry.name.clone(), entry.dtype.clone(), entry.shape.clone());
    let data = if is_float(&dtype) {
        let mut values = vec![0.0; shape.iter().product()];
        reader.read_f32(index, &mut values)?;
        TensorData::F32(values)
    } else {
        TensorData::I32(read_integers(reader, index)?)
    };
    Ok(NamedTensor {
        name,
        dtype,
        shape,
        data,
    })
}

fn read_integers(reader: &Reader, index: usize) -> Result<Vec<i32>, Error> {
    let entry = &reader.entries[index];
    let (name, dtype) = (shown(&entry.name), entry.dtype.clone());
    let mut values = Vec::with_capacity(entry.shape.iter().product());
    let mut too_large = None;
    match dtype.as_str() {
        "I32" => reader.stream(index, |bytes| {
            values.extend(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|four| i32::from_le_bytes(*four)),
            );
        })?,
        "I64" => reader.stream(index, |bytes| {
            for eight in bytes.as_chunks().0 {
                let value = i64::from_le_bytes(*eight);
                match i32::try_from(value) {
                    Ok(value) => values.push(value),
                    Err(_) => too_large = Some(value),
                }
            }
        })?,
        _ => {
            let message = format!("tensor `{name}`: {dtype} is none of F32, BF16, F16, I32, I64");
            return Err(Error::file(&reader.path, message));
        }
    }
    match too_large {
        None => Ok(values),
        Some(value) => {
            let message = format!("tensor `{name}`: {value} does not fit 32 bits");
            Err(Error::file(&reader.path, message))
        }
    }
}

/// Writes f32 tensors, given as (name, shape, values), into one safetensors file, whole or not at
/// all. The same tensors give the same bytes.
///
/// # Errors
/// As [`write_atomic`](crate::write_atomic); [`Error::Usage`] if a name is given twice.
///
/// # Panics
/// If a shape does not give the number of values, or has a zero.
pub fn write_tensors(path: &Path, tensors: &[(&str, &[usize], &[f32])]) -> Result<(), Error> {
    let mut names: Vec<&str> = tensors.iter().map(|&(name, ..)| name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::Usage(format!(
            "tensor `{}` is given twice",
            shown(pair[0])
        )));
    }
    for (name, shape, values) in tensors {
        assert!(!values.is_empty(), "tensor {name} is empty");
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "shape of tensor {name}"
        );
    }
    let planned: Vec<Planned> = tensors
        .iter()
        .map(|&(name, shape, _)| Planned {
            name,
            dtype: "F32",
            shape,
        })
        .collect();
    let header = header(&planned);
    let needed = header.len() as u64 + planned.iter().map(Planned::bytes).sum::<u64>();
    let mut disk_is_fine = |_: &'static str| Ok(());
    replace_file(
        &mut Disk::new(needed, &mut disk_is_fine),
        path,
        &mut |out| {
            out.write_all(&header)?;
            tensors
                .iter()
                .try_for_each(|(_, _, values)| write_values(out, values, "F32"))
        },
    )
}

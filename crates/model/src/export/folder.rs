//! The safetensors files of an exported folder: which tensors they hold, and their bytes.

use std::cmp::Reverse;
use std::io::{self, Write};

use super::{Progress, Report, fp8, read_into};
use crate::checkpoint::{
    Planned, Source, WeightDtype, WeightFiles, header, scale_name, small_file, write_values,
};
use crate::error::Error;
use crate::layout::{Layout, TensorSpec};
use crate::open::Checkpoint;
use serde_json::{Map, Value, json};

/// A tensor of a file to be written.
struct Part<'a> {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    content: Content<'a>,
}

/// Where the bytes of a tensor come from.
enum Content<'a> {
    /// From the tensor of this name as it is stored.
    Copied(&'a Source),
    /// From a tensor's values, as F32 or BF16.
    Values(TensorSpec),
    /// From a tensor's values, in FP8, and their scales.
    Codes(TensorSpec),
    Scales(TensorSpec),
}

impl Part<'_> {
    fn planned(&self) -> Planned<'_> {
        Planned {
            name: &self.name,
            dtype: &self.dtype,
            shape: &self.shape,
        }
    }
}

/// One file.
struct Shard<'a> {
    header: Vec<u8>,
    parts: Vec<Part<'a>>,
}

/// All files of an export.
pub(super) struct Shards<'a> {
    checkpoint: &'a Checkpoint,
    shards: Vec<Shard<'a>>,
    progress: Progress<'a>,
    /// The tensor being written.
    buffer: Vec<f32>,
}

impl<'a> Shards<'a> {
    /// Every tensor of the files, in their order.
    pub fn copied(
        checkpoint: &'a Checkpoint,
        source: &'a Source,
        shard_bytes: u64,
        report: &'a mut Report<'a>,
    ) -> Shards<'a> {
        let parts = source.entries().map(|entry| Part {
            name: entry.name.clone(),
            dtype: entry.dtype.clone(),
            shape: entry.shape.clone(),
            content: Content::Copied(source),
        });
        Shards::new(checkpoint, parts.collect(), shard_bytes, report)
    }

    /// Every tensor of the model, in the order of the layout.
    pub fn converted(
        checkpoint: &'a Checkpoint,
        layout: &Layout,
        dtype: WeightDtype,
        shard_bytes: u64,
        report: &'a mut Report<'a>,
    ) -> Shards<'a> {
        let mut parts = Vec::new();
        for (name, spec) in layout.written() {
            let mut add = |name: String, dtype: &str, shape: Vec<usize>, content: Content<'a>| {
                let dtype = dtype.to_string();
                parts.push(Part {
                    name,
                    dtype,
                    shape,
                    content,
                });
            };
            let shape = spec.shape.clone();
            if dtype == WeightDtype::Fp8 && fp8::is_quantised(spec) {
                let scales = fp8::scales_shape(&shape);
                add(name, "F8_E4M3", shape, Content::Codes(spec.clone()));
                let name = scale_name(&spec.name);
                add(name, "F32", scales, Content::Scales(spec.clone()));
            } else {
                let exact = dtype == WeightDtype::F32 || !spec.trainable;
                let dtype = if exact { "F32" } else { "BF16" };
                add(name, dtype, shape, Content::Values(spec.clone()));
            }
        }
        Shards::new(checkpoint, parts, shard_bytes, report)
    }

    fn new(
        checkpoint: &'a Checkpoint,
        parts: Vec<Part<'a>>,
        shard_bytes: u64,
        report: &'a mut Report<'a>,
    ) -> Shards<'a> {
        let total = parts.iter().map(|part| part.planned().bytes()).sum();
        let mut files: Vec<Vec<Part>> = vec![Vec::new()];
        let mut bytes = 0;
        for part in parts {
            let more = part.planned().bytes();
            if bytes > 0 && bytes + more > shard_bytes {
                files.push(Vec::new());
                bytes = 0;
            }
            bytes += more;
            files.last_mut().expect("one is there").push(part);
        }
        let shards = files.into_iter().map(|mut parts| {
            // As the format's own writer has them, so that each tensor is aligned.
            parts.sort_by_key(|part| Reverse(part.planned().element_bits()));
            let planned: Vec<Planned> = parts.iter().map(Part::planned).collect();
            Shard {
                header: header(&planned),
                parts,
            }
        });
        Shards {
            checkpoint,
            shards: shards.collect(),
            progress: Progress {
                done: 0,
                total,
                report,
            },
            buffer: Vec::new(),
        }
    }

    /// `model.safetensors.index.json`, where there are several files.
    pub fn index(&self) -> Option<(String, Vec<u8>)> {
        if self.shards.len() == 1 {
            return None;
        }
        let mut places: Vec<(&str, String)> = Vec::new();
        for (shard, file) in self.shards.iter().zip(self.names()) {
            let names = shard.parts.iter().map(|part| part.name.as_str());
            places.extend(names.map(|name| (name, file.clone())));
        }
        places.sort();
        let weight_map: Map<String, Value> = places
            .into_iter()
            .map(|(name, file)| (name.to_string(), json!(file)))
            .collect();
        let text = format!(
            "{:#}\n",
            json!({
                "metadata": {"total_size": self.progress.total},
                "weight_map": weight_map,
            })
        );
        Some(small_file("model.safetensors.index.json", text.as_bytes()))
    }

    /// Writes the bytes of one tensor.
    fn write_part(&mut self, shard: usize, part: usize, out: &mut dyn Write) -> io::Result<()> {
        let Shards {
            checkpoint,
            shards,
            progress,
            buffer,
        } = self;
        let part = &shards[shard].parts[part];
        let spec = match &part.content {
            Content::Copied(source) => {
                return source.copy(&part.name, |bytes| {
                    out.write_all(bytes)?;
                    progress.add(bytes.len())
                });
            }
            Content::Values(spec) | Content::Codes(spec) | Content::Scales(spec) => spec,
        };
        read_into(checkpoint, spec, buffer)?;
        if let Content::Values(_) = part.content {
            let dtype = if part.dtype == "F32" { "F32" } else { "BF16" };
            write_values(out, buffer, dtype)?;
            return progress.add(part.planned().bytes() as usize);
        }
        let cols = spec.shape[1];
        let Some(scales) = fp8::scales(buffer, cols) else {
            let message = format!(
                "tensor `{}` has values that are not finite, which FP8 blocks cannot hold",
                spec.name
            );
            let file = checkpoint.files.source().file_of(&spec.name);
            return Err(Error::file(file, message).into());
        };
        if let Content::Scales(_) = part.content {
            write_values(out, &scales, "F32")?;
            return progress.add(4 * scales.len());
        }
        let mut codes = Vec::new();
        let blocks = buffer.chunks(fp8::BLOCK * cols);
        for (rows, scales) in blocks.zip(scales.chunks(cols.div_ceil(fp8::BLOCK))) {
            fp8::codes(rows, cols, scales, &mut codes);
            out.write_all(&codes)?;
            progress.add(codes.len())?;
        }
        Ok(())
    }
}

impl WeightFiles for Shards<'_> {
    fn names(&self) -> Vec<String> {
        let count = self.shards.len();
        if count == 1 {
            return vec!["model.safetensors".to_string()];
        }
        let name = |number| format!("model-{number:05}-of-{count:05}.safetensors");
        (1..=count).map(name).collect()
    }

    fn bytes(&self) -> u64 {
        let headers = self.shards.iter().map(|shard| shard.header.len() as u64);
        headers.sum::<u64>() + self.progress.total
    }

    fn write(&mut self, number: usize, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.shards[number].header)?;
        for part in 0..self.shards[number].parts.len() {
            self.write_part(number, part, out)?;
        }
        Ok(())
    }
}

//! A GGUF file as a checkpoint: its tensors under their Hugging Face names, elements widened as
//! they are read where products do not know their type.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::rows::{TensorRows, TensorSource};
use super::source::repeated;
use crate::config::Config;
use crate::error::{Error, shown};
use crate::gguf::{GgmlType, Gguf, HfTensor, HfTensors, config_json};
use crate::layout::{Layout, TensorSpec};
use crate::open::StoredTensor;
use kernels::{Bytes, Dtype, ReadAt};

/// Elements widened at once.
const CHUNK: usize = 1 << 16;

/// An open GGUF file, and where each tensor is.
pub(crate) struct GgufSource {
    pub gguf: Gguf,
    tensors: BTreeMap<String, HfTensor>,
    map: Option<Bytes>,
}

impl GgufSource {
    pub fn open(path: &Path) -> Result<GgufSource, Error> {
        let gguf = Gguf::open(path)?;
        let tensors = HfTensors::new(&gguf)?.tensors;
        Ok(GgufSource {
            gguf,
            tensors,
            map: None,
        })
    }

    /// The configuration that the metadata tells.
    pub fn config(&self) -> Result<Config, Error> {
        let text = config_json(&self.gguf)?;
        Config::from_json(&text).map_err(|error| error.in_file(&self.gguf.path))
    }

    fn differences(&self, config: &Config, layout: &Layout) -> Vec<String> {
        let mut lines = Vec::new();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for spec in &layout.tensors {
            wanted.insert(spec.name.clone());
            match self.tensors.get(&spec.name) {
                None => lines.push(format!("missing: `{}` {:?}", spec.name, spec.shape)),
                Some(found) => {
                    lines.extend(wrong_shape(&spec.name, found, &spec.shape));
                    lines.extend(self.unread_type(&spec.name, found));
                }
            }
        }
        for (name, _) in repeated(config) {
            if let Some(found) = self.tensors.get(&name) {
                let embedding = [config.vocab_size, config.hidden_size];
                lines.extend(wrong_shape(&name, found, &embedding));
                wanted.insert(name);
            }
        }
        for (name, found) in &self.tensors {
            if !wanted.contains(name) && !is_harmless(name) {
                lines.push(format!("unexpected: `{}` {:?}", shown(name), found.shape));
            }
        }
        lines
    }

    fn unread_type(&self, name: &str, found: &HfTensor) -> Option<String> {
        let unread = found
            .holders(&self.gguf)
            .find(|tensor| !tensor.kind.is_read())?;
        Some(format!(
            "type: `{name}` is {}, which is not read here; convert the file to another, such as \
             Q8_0",
            unread.kind.name()
        ))
    }

    /// Where a tensor lies whose bytes products take as they are: type, tensor of the file, first
    /// byte in it.
    fn as_stored(&self, found: &HfTensor) -> Option<(Dtype, usize, u64)> {
        let (tensor, start) = found.unmoved(&self.gguf)?;
        let dtype = match found.kind {
            GgmlType::F32 => Dtype::F32,
            GgmlType::F16 => Dtype::F16,
            GgmlType::BF16 => Dtype::Bf16,
            _ => return None,
        };
        Some((dtype, tensor, start))
    }
}

/// Angles that every program computes itself.
fn is_harmless(name: &str) -> bool {
    name.ends_with("attn_rot_embd.weight")
}

fn wrong_shape(name: &str, found: &HfTensor, expected: &[usize]) -> Option<String> {
    (found.shape != expected).then(|| {
        format!(
            "shape: `{}` is {:?} in the file, {expected:?} by its metadata",
            shown(name),
            found.shape
        )
    })
}

impl TensorSource for GgufSource {
    /// The format repeats nothing: a head that is there is the head.
    fn check_copies(&self, _: &Config) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, config: &Config, layout: &Layout) -> Result<(), Error> {
        Error::mismatch(&self.gguf.path, self.differences(config, layout))
    }

    fn rows(
        &self,
        _config: &Config,
        spec: &TensorSpec,
        first_row: usize,
        rows: usize,
    ) -> Result<TensorRows<'_>, Error> {
        let found = &self.tensors[&spec.name];
        let cols = spec.shape[1..].iter().product::<usize>();
        let Some((dtype, tensor, start)) = self.as_stored(found) else {
            let reader = Widened {
                gguf: &self.gguf,
                tensor: found,
                first_row,
                cols,
            };
            return Ok(TensorRows {
                dtype: Dtype::F32,
                reader: Box::new(reader),
                mapped: None,
                scales: None,
                first_row,
            });
        };
        let row_bytes = cols * dtype.bytes();
        let start = start + (first_row * row_bytes) as u64;
        let mapped = self.map.as_ref().map(|map| {
            let from = (self.gguf.tensors[tensor].offset + start) as usize;
            map.slice(from..from + rows * row_bytes)
        });
        Ok(TensorRows {
            dtype,
            reader: Box::new(Stored {
                gguf: &self.gguf,
                tensor,
                start,
            }),
            mapped,
            scales: None,
            first_row,
        })
    }

    fn read_f32(&self, _config: &Config, spec: &TensorSpec, out: &mut [f32]) -> Result<(), Error> {
        let found = &self.tensors[&spec.name];
        found.read_rows_f32(&self.gguf, 0..found.rows(), out)
    }

    fn map(&mut self) -> Result<(), Error> {
        self.map = Some(self.gguf.map()?);
        Ok(())
    }

    fn tensors(&self) -> Vec<StoredTensor> {
        let tensors = self.tensors.iter();
        let tensors = tensors.map(|(name, found)| StoredTensor {
            name: name.clone(),
            dtype: found.kind.name().to_string(),
            shape: found.shape.clone(),
            bytes: found.stored_bytes(&self.gguf),
        });
        tensors.collect()
    }

    fn stored_bytes(&self, name: &str) -> u64 {
        let found = self.tensors.get(name);
        found.map_or(0, |found| found.stored_bytes(&self.gguf))
    }

    fn file_of(&self, _name: &str) -> &Path {
        &self.gguf.path
    }
}

/// Bytes of a tensor as the file has them.
struct Stored<'a> {
    gguf: &'a Gguf,
    tensor: usize,
    start: u64,
}

impl ReadAt for Stored<'_> {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let start = self.start + offset as u64;
        Ok(self.gguf.read_bytes(self.tensor, start, out)?)
    }
}

/// Rows of a tensor of any type, read as f32.
struct Widened<'a> {
    gguf: &'a Gguf,
    tensor: &'a HfTensor,
    first_row: usize,
    cols: usize,
}

impl ReadAt for Widened<'_> {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(4), "f32 from byte {offset}");
        let (mut at, (mut rest, [])) = (offset / 4, out.as_chunks_mut::<4>()) else {
            panic!("{} bytes of f32", out.len());
        };
        let most_rows = (CHUNK / self.cols).max(1);
        let mut values = Vec::new();
        while !rest.is_empty() {
            // Blocks share scales along a row, so whole rows are widened, and trimmed.
            let (row, column) = (at / self.cols, at % self.cols);
            let rows = (column + rest.len()).div_ceil(self.cols).min(most_rows);
            let row = self.first_row + row;
            values.resize(rows * self.cols, 0.0);
            self.tensor
                .read_rows_f32(self.gguf, row..row + rows, &mut values)?;
            let found = &values[column..];
            let (now, later) = rest.split_at_mut(found.len().min(rest.len()));
            for (four, value) in now.iter_mut().zip(found) {
                *four = value.to_le_bytes();
            }
            at += now.len();
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufWriter, Order, TensorPlan, Value, export_plan};

    /// A `q_proj` of architecture `llama` in Q8_0 and a `kv_b_proj` in parts, read from any element
    /// to any other.
    #[test]
    fn any_range_of_a_widened_tensor_is_that_of_the_whole() {
        let config = serde_json::json!({
            "model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1,
        });
        let name = "model.layers.0.self_attn.q_proj.weight";
        let plan = export_plan(&config, &[(name.to_string(), vec![8, 64])]).unwrap();
        assert_eq!(plan[0].order, Order::RopePermuted { heads: 2 });
        let metadata = [
            (
                "general.architecture".to_string(),
                Value::Str("llama".into()),
            ),
            ("llama.attention.head_count".to_string(), Value::U32(2)),
        ];
        let values: Vec<f32> = (0..512).map(|i| ((i * 37) % 255) as f32 - 127.0).collect();
        let mut bytes = Vec::new();
        let path = Path::new("widened.gguf");
        let plans: Vec<TensorPlan> = vec![plan[0].plan(GgmlType::Q8_0)];
        let mut writer = GgufWriter::new(&mut bytes, path, &metadata, plans).unwrap();
        writer.write_f32(&plan[0].arrange(&values, 64)).unwrap();
        writer.finish().unwrap();
        let gguf = Gguf::from_bytes(bytes, path).unwrap();
        let tensors = HfTensors::new(&gguf).unwrap();
        let mut whole = vec![0.0; 512];
        tensors.read_f32(name, &mut whole).unwrap();
        let close = whole.iter().zip(&values).all(|(a, b)| (a - b).abs() < 0.51);
        assert!(close, "{whole:?}");
        let reader = Widened {
            gguf: &gguf,
            tensor: &tensors.tensors[name],
            first_row: 2,
            cols: 64,
        };
        for (start, end) in [
            (0, 384),
            (0, 64),
            (64, 192),
            (3, 4),
            (60, 130),
            (383, 384),
            (5, 5),
        ] {
            let mut out = vec![0; 4 * (end - start)];
            reader.read_at(4 * start, &mut out).unwrap();
            let found: Vec<f32> = out
                .as_chunks()
                .0
                .iter()
                .map(|x| f32::from_le_bytes(*x))
                .collect();
            assert_eq!(found, whole[128 + start..128 + end], "{start}..{end}");
        }
    }
}

//! A GGUF file seen as the Hugging Face checkpoint it was made from.
//!
//! What the converters of <https://github.com/ggml-org/llama.cpp> did is undone here:
//! - `conversion/llama.py`, `LlamaModel.permute`: in architecture `llama`, the rows of each head of
//!   `q_proj` and `k_proj` go from half-split to interleaved pairs, because its rotary embedding
//!   turns neighbours (`LLAMA_ROPE_TYPE_NORM`). `conversion/qwen.py` leaves them alone (`_NEOX`),
//!   and so does `conversion/deepseek.py`: DeepSeek's own weights are interleaved.
//! - `conversion/deepseek.py`, `DeepseekV2Model.modify_tensors`: `kv_b_proj` is split per head into
//!   `attn_k_b`, transposed, and `attn_v_b`. Files made before that hold `attn_kv_b` whole.
//! - Experts are stacked into one tensor.

use std::collections::BTreeMap;
use std::ops::Range;

use super::file::{Gguf, GgufTensor};
use super::kind::GgmlType;
use super::names::{HfName, hf_name};
use crate::error::{Error, shown};

/// More than any published model has, few enough that a table of their names is small.
const MOST_TENSORS: usize = 1 << 17;

/// Architectures whose tensors are understood here.
pub(super) const ARCHITECTURES: [&str; 5] = ["llama", "qwen2", "qwen3", "qwen3moe", "deepseek2"];

/// How a Hugging Face tensor lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of the tensor of this number.
    Whole { tensor: usize },
    /// One expert of a stack `[experts, out, in]`.
    Expert { tensor: usize, expert: usize },
    /// The rows of each head stand interleaved: row `i` of the half `s` at `2 i + s`.
    RopePermuted { tensor: usize, heads: usize },
    /// `kv_b_proj` out of `attn_k_b` `[heads, kv_lora_rank, qk_nope_head_dim]`, the first rows of
    /// each head, transposed, and `attn_v_b` `[heads, v_head_dim, kv_lora_rank]`.
    KvB { k_b: usize, v_b: usize },
}

/// One tensor under its Hugging Face name.
#[derive(Clone, Debug, PartialEq)]
pub struct HfTensor {
    /// As Hugging Face has it.
    pub shape: Vec<usize>,
    /// How the elements are stored; of a joined `kv_b_proj`, the part for the keys.
    pub kind: GgmlType,
    pub part: Part,
}

/// All tensors of a GGUF file by Hugging Face name. Those without such a name keep their own.
#[derive(Debug)]
pub struct HfTensors<'a> {
    gguf: &'a Gguf,
    pub tensors: BTreeMap<String, HfTensor>,
}

/// The place in a GGUF file of row `row` of a `q_proj` or `k_proj` of `head_dim` rows a head, in
/// architecture `llama`: row `i` of the half `s` of a head stands at `2 i + s` of the head.
pub(super) fn rope_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + within % half * 2 + within / half
}

impl<'a> HfTensors<'a> {
    /// Names every tensor of the file and checks the shapes of those that are taken apart.
    /// `rope_freqs.weight` is left out: [`config_json`](super::config_json) has read it.
    ///
    /// # Errors
    /// [`Error::File`] naming the key or tensor: an unknown architecture, one part of a split
    /// model, a tensor there twice, or one whose shape does not fit its name.
    pub fn new(gguf: &'a Gguf) -> Result<HfTensors<'a>, Error> {
        let arch = known_architecture(gguf)?;
        refuse_split(gguf)?;
        let mut this = HfTensors {
            gguf,
            tensors: BTreeMap::new(),
        };
        for (number, tensor) in gguf.tensors.iter().enumerate() {
            // DeepSeek's has no such tensor; where one is, it would have to be applied.
            if tensor.name == "rope_freqs.weight" && arch != "deepseek2" {
                continue;
            }
            match hf_name(&tensor.name) {
                None => this.add(tensor.name.clone(), Part::Whole { tensor: number })?,
                Some(HfName::Whole(name)) => {
                    let part = this.permuted(arch, number, &name)?;
                    this.add(name, part)?;
                }
                Some(HfName::Experts { before, after }) => {
                    this.add_experts(number, &before, &after)?;
                }
                Some(HfName::KeyPart(name)) => this.add_kv_b(number, name)?,
                Some(HfName::ValuePart(_)) => this.check_value_part(number)?,
            }
        }
        Ok(this)
    }

    fn add(&mut self, name: String, part: Part) -> Result<(), Error> {
        let (tensor, shape) = match part {
            Part::Whole { tensor } | Part::RopePermuted { tensor, .. } => {
                (tensor, self.gguf.tensors[tensor].shape.clone())
            }
            Part::Expert { tensor, .. } => (tensor, self.gguf.tensors[tensor].shape[1..].to_vec()),
            Part::KvB { k_b, v_b } => {
                let (k, v) = (&self.gguf.tensors[k_b].shape, &self.gguf.tensors[v_b].shape);
                (k_b, vec![k[0] * (k[2] + v[1]), k[1]])
            }
        };
        let kind = self.gguf.tensors[tensor].kind;
        let described = HfTensor { shape, kind, part };
        if self.tensors.len() >= MOST_TENSORS {
            let message = format!("makes more than {MOST_TENSORS} tensors with those before it");
            return Err(self.bad(tensor, message));
        }
        if self.tensors.insert(name.clone(), described).is_some() {
            let message = format!("`{}` is in the file twice", shown(&name));
            return Err(self.bad(tensor, message));
        }
        Ok(())
    }

    fn bad(&self, tensor: usize, message: impl AsRef<str>) -> Error {
        let name = &self.gguf.tensors[tensor].name;
        self.gguf.bad_tensor(name, message)
    }

    /// [`Part::RopePermuted`] for the tensors that the converter of `llama` permutes.
    fn permuted(&self, arch: &str, tensor: usize, name: &str) -> Result<Part, Error> {
        let heads = match rope_heads(name) {
            Some(key) if arch == "llama" => head_count(self.gguf, arch, key)?,
            _ => return Ok(Part::Whole { tensor }),
        };
        let rows = self.gguf.tensors[tensor].shape[0];
        if heads == 0 || !rows.is_multiple_of(2 * heads) {
            let message = format!("{rows} rows are not {heads} heads of whole pairs");
            return Err(self.bad(tensor, message));
        }
        Ok(Part::RopePermuted { tensor, heads })
    }

    fn add_experts(&mut self, tensor: usize, before: &str, after: &str) -> Result<(), Error> {
        let shape = &self.gguf.tensors[tensor].shape;
        if shape.len() != 3 {
            let message = format!("shape {shape:?} is no stack [experts, out, in]");
            return Err(self.bad(tensor, message));
        }
        for expert in 0..shape[0] {
            let part = Part::Expert { tensor, expert };
            self.add(format!("{before}{expert}{after}"), part)?;
        }
        Ok(())
    }

    fn add_kv_b(&mut self, k_b: usize, name: String) -> Result<(), Error> {
        let other = self.gguf.tensors[k_b].name.replace("attn_k_b", "attn_v_b");
        let Some(v_b) = self.gguf.find(&other) else {
            return Err(self.bad(k_b, format!("`{}` is missing beside it", shown(&other))));
        };
        let (k, v) = (&self.gguf.tensors[k_b].shape, &self.gguf.tensors[v_b].shape);
        if k.len() != 3 || v.len() != 3 || k[0] != v[0] || k[1] != v[2] {
            let message = format!(
                "shape {k:?} and that of attn_v_b {v:?} are not [heads, kv_lora_rank, \
                 qk_nope_head_dim] and [heads, v_head_dim, kv_lora_rank]"
            );
            return Err(self.bad(k_b, message));
        }
        self.add(name, Part::KvB { k_b, v_b })
    }

    /// The values' part is read with the keys' part, which must be there.
    fn check_value_part(&self, v_b: usize) -> Result<(), Error> {
        let other = self.gguf.tensors[v_b].name.replace("attn_v_b", "attn_k_b");
        match self.gguf.find(&other) {
            Some(_) => Ok(()),
            None => Err(self.bad(v_b, format!("`{}` is missing beside it", shown(&other)))),
        }
    }

    /// Reads rows of a tensor and widens them: `out` is `[rows, row_len]`, a row being the last
    /// dimension. A tensor of one dimension is one row.
    ///
    /// # Errors
    /// [`Error::File`] naming the tensor of the file, as
    /// [`Gguf::read_rows_f32`](super::Gguf::read_rows_f32).
    ///
    /// # Panics
    /// If there is no such tensor, there are no such rows, or `out` has another size.
    pub fn read_rows_f32(
        &self,
        name: &str,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let Some(found) = self.tensors.get(name) else {
            panic!("no tensor `{name}`");
        };
        found.read_rows_f32(self.gguf, rows, out)
    }

    /// Reads a whole tensor.
    ///
    /// # Errors
    /// As [`read_rows_f32`](HfTensors::read_rows_f32).
    ///
    /// # Panics
    /// If there is no such tensor, or `out` has another size.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), Error> {
        let rows = self.tensors.get(name).map(HfTensor::rows);
        self.read_rows_f32(name, 0..rows.unwrap_or(0), out)
    }
}

impl HfTensor {
    /// How many rows it has: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The tensors of the file that hold it.
    pub(crate) fn holders<'a>(&self, gguf: &'a Gguf) -> impl Iterator<Item = &'a GgufTensor> {
        let (first, second) = match self.part {
            Part::Whole { tensor }
            | Part::Expert { tensor, .. }
            | Part::RopePermuted { tensor, .. } => (tensor, None),
            Part::KvB { k_b, v_b } => (k_b, Some(v_b)),
        };
        [Some(first), second]
            .into_iter()
            .flatten()
            .map(|number| &gguf.tensors[number])
    }

    /// Bytes of it in the file.
    pub(crate) fn stored_bytes(&self, gguf: &Gguf) -> u64 {
        let bytes: u64 = self.holders(gguf).map(|tensor| tensor.bytes).sum();
        match self.part {
            Part::Expert { tensor, .. } => bytes / gguf.tensors[tensor].shape[0] as u64,
            _ => bytes,
        }
    }

    /// The tensor of the file in which it lies without a change of order, and its first byte
    /// there; `None` where rows or columns were moved.
    pub(crate) fn unmoved(&self, gguf: &Gguf) -> Option<(usize, u64)> {
        match self.part {
            Part::Whole { tensor } => Some((tensor, 0)),
            Part::Expert { tensor, expert } => {
                Some((tensor, expert as u64 * self.stored_bytes(gguf)))
            }
            Part::RopePermuted { .. } | Part::KvB { .. } => None,
        }
    }

    /// As [`HfTensors::read_rows_f32`], of the file that it was found in.
    pub(crate) fn read_rows_f32(
        &self,
        gguf: &Gguf,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let row_len = self.shape.last().copied().unwrap_or(1);
        assert_eq!(out.len(), rows.len() * row_len, "rows and buffer differ");
        match self.part {
            Part::Whole { tensor } => gguf.read_rows_f32(tensor, rows, out),
            Part::Expert { tensor, expert } => {
                let first = expert * self.shape[0];
                gguf.read_rows_f32(tensor, first + rows.start..first + rows.end, out)
            }
            Part::RopePermuted { tensor, heads } => {
                let head_dim = self.shape[0] / heads;
                if self.shape.len() == 1 {
                    return read_permuted_vector(gguf, tensor, head_dim, rows, out);
                }
                for (row, values) in rows.zip(out.chunks_exact_mut(row_len)) {
                    let from = rope_row(row, head_dim);
                    gguf.read_rows_f32(tensor, from..from + 1, values)?;
                }
                Ok(())
            }
            Part::KvB { k_b, v_b } => read_kv_b(gguf, [k_b, v_b], rows, out),
        }
    }
}

fn read_permuted_vector(
    gguf: &Gguf,
    tensor: usize,
    head_dim: usize,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), Error> {
    let mut stored = vec![0.0; out.len()];
    gguf.read_rows_f32(tensor, rows, &mut stored)?;
    for (row, value) in out.iter_mut().enumerate() {
        *value = stored[rope_row(row, head_dim)];
    }
    Ok(())
}

/// Row `h (nope + v) + j` is column `j` of head `h` of `k_b`, or row `j - nope` of `v_b`'s.
fn read_kv_b(
    gguf: &Gguf,
    [k_b, v_b]: [usize; 2],
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), Error> {
    let k_shape = &gguf.tensors[k_b].shape;
    let (rank, nope) = (k_shape[1], k_shape[2]);
    let v_dim = gguf.tensors[v_b].shape[1];
    let mut keys = vec![0.0; rank * nope];
    let mut keys_of = None;
    for (row, values) in rows.zip(out.chunks_exact_mut(rank)) {
        let (head, within) = (row / (nope + v_dim), row % (nope + v_dim));
        if within >= nope {
            let from = head * v_dim + within - nope;
            gguf.read_rows_f32(v_b, from..from + 1, values)?;
            continue;
        }
        if keys_of != Some(head) {
            let from = head * rank..(head + 1) * rank;
            gguf.read_rows_f32(k_b, from, &mut keys)?;
            keys_of = Some(head);
        }
        for (value, row) in values.iter_mut().zip(keys.chunks_exact(nope)) {
            *value = row[within];
        }
    }
    Ok(())
}

/// The architecture, if it is one of those understood here.
pub(super) fn known_architecture(gguf: &Gguf) -> Result<&str, Error> {
    let arch = gguf.architecture()?;
    if ARCHITECTURES.contains(&arch) {
        return Ok(arch);
    }
    let message = format!(
        "is `{}`; known are {}",
        shown(arch),
        ARCHITECTURES.join(", ")
    );
    Err(gguf.bad_key("general.architecture", message))
}

fn refuse_split(gguf: &Gguf) -> Result<(), Error> {
    let key = "split.count";
    match gguf.u32(key)? {
        Some(parts @ 2..) => Err(gguf.bad_key(
            key,
            format!(
                "is {parts}: this is one part of a split model; join the parts with \
                 `llama-gguf-split --merge`"
            ),
        )),
        _ => Ok(()),
    }
}

/// The key of the number of heads of a tensor whose rows the converter of `llama` permutes.
pub(super) fn rope_heads(hf_name: &str) -> Option<&'static str> {
    let (module, _) = hf_name.rsplit_once('.')?;
    if module.ends_with("self_attn.q_proj") {
        Some("attention.head_count")
    } else if module.ends_with("self_attn.k_proj") {
        Some("attention.head_count_kv")
    } else {
        None
    }
}

/// `attention.head_count` or `attention.head_count_kv`, the latter equal to the former if absent.
/// Files may give one number for each layer; here they must agree.
pub(super) fn head_count(gguf: &Gguf, arch: &str, key: &str) -> Result<usize, Error> {
    let full = format!("{arch}.{key}");
    let found = per_layer(gguf, &full)?;
    match found {
        Some(heads) => Ok(heads),
        None if key == "attention.head_count_kv" => head_count(gguf, arch, "attention.head_count"),
        None => Err(gguf.bad_key(&full, "is absent")),
    }
}

/// An integer, or an array of one for each layer that are all the same.
pub(super) fn per_layer(gguf: &Gguf, key: &str) -> Result<Option<usize>, Error> {
    if !matches!(gguf.metadata.get(key), Some(super::Value::Array(_))) {
        return Ok(gguf.u32(key)?.map(|value| value as usize));
    }
    let values = gguf.integers(key)?.unwrap_or_default();
    match values.first() {
        Some(&first) if values.iter().all(|&value| value == first) => match u32::try_from(first) {
            Ok(value) => Ok(Some(value as usize)),
            Err(_) => Err(gguf.bad_key(key, format!("holds {first}"))),
        },
        _ => Err(gguf.bad_key(key, "differs between layers, which is not supported")),
    }
}

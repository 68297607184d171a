//! Which tensors of a GGUF file a Hugging Face checkpoint becomes, and how their elements move.
//!
//! The changes are those of llama.cpp's converters, described where they are undone: `tensors.rs`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::kind::GgmlType;
use super::metadata::Fields;
use super::names::{GgufName, gguf_name};
use super::rope::rope_freqs;
use super::tensors::{rope_heads, rope_row};
use super::writer::TensorPlan;
use crate::error::{Error, shown};

/// A tensor to be written, and the Hugging Face tensors it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    pub name: String,
    /// As it will stand in the file, row-major.
    pub shape: Vec<usize>,
    /// Read these one after the other, pass each through [`arrange`](Export::arrange), and write
    /// what comes out. Empty for [`Order::Given`].
    pub sources: Vec<String>,
    pub order: Order,
}

/// How the elements of a source become those of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// As they are.
    Same,
    /// The rows of each head interleaved: `q_proj` and `k_proj` of architecture `llama`.
    RopePermuted { heads: usize },
    /// The keys' part of `kv_b_proj`, each head transposed.
    KeyPart { nope: usize, v: usize },
    /// The values' part of `kv_b_proj`.
    ValuePart { nope: usize, v: usize },
    /// Not from a source: these elements.
    Given(Vec<f32>),
}

/// Plans the file of a model: `config` is its `config.json`, `tensors` the names and shapes of its
/// weights, in the order in which they are to be written. The stack of a layer's experts stands
/// where its first one does. Llama 3's `rope_freqs.weight` comes first.
///
/// # Errors
/// [`Error::Usage`] naming a tensor that has no place in a GGUF file, has another shape than its
/// place, or an expert that is missing; [`Error::Config`] for the configuration.
pub fn export_plan(config: &Json, tensors: &[(String, Vec<usize>)]) -> Result<Vec<Export>, Error> {
    let fields = Fields(config);
    let arch = fields.architecture()?;
    let mut plan = Vec::new();
    if let Some(divisors) = rope_freqs(config)? {
        plan.push(Export {
            name: "rope_freqs.weight".to_string(),
            shape: vec![divisors.len()],
            sources: Vec::new(),
            order: Order::Given(divisors),
        });
    }
    let shapes: BTreeMap<&str, &[usize]> = tensors
        .iter()
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    for (name, shape) in tensors {
        match gguf_name(name) {
            None => return Err(unplaced(name, "has no place in a GGUF file")),
            Some(GgufName::Expert { expert: 0, stack }) => {
                plan.push(stacked(stack, name, shape, &shapes)?);
            }
            Some(GgufName::Expert { stack, .. }) => {
                let first = expert_name(name, 0);
                if !shapes.contains_key(first.as_str()) {
                    let message = format!("is there without expert 0, for `{stack}`");
                    return Err(unplaced(name, &message));
                }
            }
            Some(GgufName::Whole(place)) if place.ends_with("attn_kv_b.weight") => {
                plan.extend(split_kv_b(fields, place, name, shape)?);
            }
            Some(GgufName::Whole(place)) => {
                let order = order(fields, arch, name, shape)?;
                plan.push(Export {
                    name: place,
                    shape: shape.clone(),
                    sources: vec![name.clone()],
                    order,
                });
            }
        }
    }
    check_experts(&plan, tensors)?;
    Ok(plan)
}

fn unplaced(name: &str, message: &str) -> Error {
    Error::Usage(format!("tensor `{}` {message}", shown(name)))
}

/// The name of another expert of the same projection.
fn expert_name(name: &str, expert: usize) -> String {
    let Some((before, after)) = name.split_once(".experts.") else {
        panic!("`{name}` is no expert's");
    };
    let (_, after) = after.split_once('.').unwrap_or(("", after));
    format!("{before}.experts.{expert}.{after}")
}

/// The stack of all experts, numbered without a gap, that have the shape of the first.
fn stacked(
    stack: String,
    first: &str,
    shape: &[usize],
    shapes: &BTreeMap<&str, &[usize]>,
) -> Result<Export, Error> {
    let names = (0..).map(|expert| expert_name(first, expert));
    let sources: Vec<String> = names
        .take_while(|name| shapes.contains_key(name.as_str()))
        .collect();
    let differs = |name: &&String| shapes[name.as_str()] != shape;
    if let Some(other) = sources.iter().find(differs) {
        return Err(unplaced(
            other,
            &format!("has another shape than `{first}`"),
        ));
    }
    Ok(Export {
        name: stack,
        shape: [&[sources.len()], shape].concat(),
        sources,
        order: Order::Same,
    })
}

/// A gap in the numbers leaves experts over.
fn check_experts(plan: &[Export], tensors: &[(String, Vec<usize>)]) -> Result<(), Error> {
    let used: std::collections::BTreeSet<&str> = plan
        .iter()
        .flat_map(|export| export.sources.iter().map(String::as_str))
        .collect();
    match tensors
        .iter()
        .find(|(name, _)| !used.contains(name.as_str()))
    {
        Some((name, _)) => Err(unplaced(name, "comes after an expert that is missing")),
        None => Ok(()),
    }
}

fn order(fields: Fields, arch: &str, name: &str, shape: &[usize]) -> Result<Order, Error> {
    let Some(key) = rope_heads(name).filter(|_| arch == "llama") else {
        return Ok(Order::Same);
    };
    let all = fields.integer("num_attention_heads")?;
    let heads = match key {
        "attention.head_count" => all,
        _ => fields.integer_or("num_key_value_heads", all)?,
    };
    if heads == 0 || !shape[0].is_multiple_of(2 * heads) {
        let message = format!("of shape {shape:?} is not {heads} heads of whole pairs");
        return Err(unplaced(name, &message));
    }
    Ok(Order::RopePermuted { heads })
}

fn split_kv_b(
    fields: Fields,
    place: String,
    name: &str,
    shape: &[usize],
) -> Result<[Export; 2], Error> {
    let heads = fields.integer("num_attention_heads")?;
    let (nope, v) = (
        fields.integer("qk_nope_head_dim")?,
        fields.integer("v_head_dim")?,
    );
    let &[rows, rank] = shape else {
        return Err(unplaced(name, &format!("has shape {shape:?}")));
    };
    if nope.checked_add(v).and_then(|both| both.checked_mul(heads)) != Some(rows) {
        let message = format!("has {rows} rows; {heads} heads of {nope} and {v} are needed");
        return Err(unplaced(name, &message));
    }
    let part = |letter: &str, shape: [usize; 3], order: Order| Export {
        name: place.replace("attn_kv_b", &format!("attn_{letter}_b")),
        shape: shape.to_vec(),
        sources: vec![name.to_string()],
        order,
    };
    Ok([
        part("k", [heads, rank, nope], Order::KeyPart { nope, v }),
        part("v", [heads, v, rank], Order::ValuePart { nope, v }),
    ])
}

impl Export {
    /// The elements for the file out of those of a whole source; `row_len` is the source's last
    /// dimension.
    ///
    /// # Panics
    /// If the elements are no whole rows, or [`Order::Given`] has no source.
    pub fn arrange<'a>(&self, elements: &'a [f32], row_len: usize) -> Cow<'a, [f32]> {
        match &self.order {
            Order::Same => Cow::Borrowed(elements),
            Order::RopePermuted { heads } => {
                // A bias is one element a row.
                let row_len = if self.shape.len() == 1 { 1 } else { row_len };
                let head_dim = elements.len() / row_len / heads;
                let mut out = vec![0.0; elements.len()];
                for (row, values) in elements.chunks_exact(row_len).enumerate() {
                    let to = rope_row(row, head_dim) * row_len;
                    out[to..to + row_len].copy_from_slice(values);
                }
                Cow::Owned(out)
            }
            Order::KeyPart { nope, v } => {
                let heads = elements.chunks_exact((nope + v) * row_len);
                let transposed = heads.flat_map(|head| {
                    (0..row_len).flat_map(move |column| {
                        (0..*nope).map(move |row| head[row * row_len + column])
                    })
                });
                Cow::Owned(transposed.collect())
            }
            Order::ValuePart { nope, v } => {
                let heads = elements.chunks_exact((nope + v) * row_len);
                Cow::Owned(
                    heads
                        .flat_map(|head| &head[nope * row_len..])
                        .copied()
                        .collect(),
                )
            }
            Order::Given(_) => panic!("`{}` has no source", self.name),
        }
    }

    /// How it is to be stored where `wanted` is asked for: F32 for vectors, for the router and for
    /// what is [given](Order::Given), as llama.cpp has them; F16 where rows are no whole blocks.
    pub fn kind(&self, wanted: GgmlType) -> GgmlType {
        let row = self.shape.last().copied().unwrap_or(1);
        if self.shape.len() == 1 || self.name.ends_with("ffn_gate_inp.weight") {
            GgmlType::F32
        } else if row.is_multiple_of(wanted.block_len()) {
            wanted
        } else {
            GgmlType::F16
        }
    }

    /// As the writer wants it.
    pub fn plan(&self, wanted: GgmlType) -> TensorPlan {
        TensorPlan {
            name: self.name.clone(),
            shape: self.shape.clone(),
            kind: self.kind(wanted),
        }
    }
}

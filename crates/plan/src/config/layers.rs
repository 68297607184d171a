//! The whole of a model out of its fields, and the attention of each layer.

use serde_json::Value;

use super::families::{Family, Flag, KvHeads, LayerNorms, Positions, QkNorm, Spans};
use super::fields::{COUNT, Fields, HEADS, LAYERS, POSITIONS, VOCABULARY, brief};
use super::mixture::feed_forwards;
use crate::error::Error;
use crate::shape::{Attention, Grouped, Indexer, Layer, Mla, Shape, Span};

const HIDDEN: [&str; 4] = ["hidden_size", "n_embd", "n_embed", "d_model"];
const NUM_LAYERS: [&str; 3] = ["num_hidden_layers", "n_layer", "n_layers"];
const NUM_HEADS: [&str; 3] = ["num_attention_heads", "n_head", "n_heads"];
const NUM_KV_HEADS: [&str; 3] = ["num_key_value_heads", "num_kv_heads", "n_head_kv"];
const HEAD_DIM: [&str; 2] = ["head_dim", "d_head"];
const MAX_POSITIONS: [&str; 6] = [
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "model_max_length",
    "seq_length",
];
const MTP: [&str; 2] = ["num_nextn_predict_layers", "num_mtp_layers"];

/// Widths of embeddings that some families project; only equal ones are counted.
const EMBEDDING_WIDTH: [&str; 2] = ["word_embed_proj_dim", "d_embed"];

/// Lightning attention's weights are known; those of other kinds of linear attention differ.
const LINEAR: &str = "linear_attention";

impl Fields<'_> {
    pub fn has(&self, flag: Flag) -> Result<bool, Error> {
        match flag {
            Flag::Always => Ok(true),
            Flag::Never => Ok(false),
            Flag::If(name, default) => self.flag(name, default),
            Flag::Unless(name, default) => Ok(!self.flag(name, default)?),
        }
    }
}

pub fn shape(fields: &Fields, family: &Family) -> Result<Shape, Error> {
    let layers = fields.required(&NUM_LAYERS, &LAYERS)?;
    let hidden = fields.required(&HIDDEN, &COUNT)?;
    refuse_projected_embeddings(fields, hidden)?;
    let norm_bias = fields.has(family.norm_bias)?;
    let max_position_embeddings = fields.optional(&MAX_POSITIONS, &POSITIONS)?;
    let mut shape = Shape {
        vocab_size: fields.required(&["vocab_size"], &VOCABULARY)?,
        hidden_size: hidden,
        blocks: Vec::new(),
        mtp_modules: if family.predicts_more {
            fields.optional(&MTP, &(0..=8))?.unwrap_or(0)
        } else {
            0
        },
        tie_word_embeddings: fields.flag("tie_word_embeddings", family.tied)?,
        learned_positions: learned_positions(fields, family, max_position_embeddings)?,
        norms: u64::from(fields.has(family.final_norm)?) + u64::from(family.embedding_norm),
        norm_vectors: u64::from(family.norm_weight) + u64::from(norm_bias),
        max_position_embeddings,
    };
    let norms = layer_norms(fields, family)?;
    let attentions = attentions(fields, family, hidden, layers)?;
    let feed_forwards = feed_forwards(fields, family, hidden, layers)?;
    for (attention, feed_forward) in attentions.into_iter().zip(feed_forwards) {
        shape.push(Layer {
            attention,
            feed_forward,
            norms,
        });
    }
    Ok(shape)
}

fn refuse_projected_embeddings(fields: &Fields, hidden: u64) -> Result<(), Error> {
    for name in EMBEDDING_WIDTH {
        let width = fields.or(name, &COUNT, hidden)?;
        if width != hidden {
            let message = format!("{width} is not supported, only the hidden size, {hidden}");
            return Err(fields.error(name, message));
        }
    }
    Ok(())
}

fn learned_positions(
    fields: &Fields,
    family: &Family,
    positions: Option<u64>,
) -> Result<u64, Error> {
    let has_table = match family.positions {
        Positions::None => None,
        Positions::Learned(more) => Some(more),
        Positions::Mpt => {
            let inner = fields.table("attn_config")?;
            let says = |name, default| match &inner {
                Some(inner) => inner.flag(name, default),
                None => Ok(default),
            };
            let learned = fields.flag("learned_pos_emb", true)?;
            let has_table = learned && !says("alibi", true)? && !says("rope", false)?;
            has_table.then_some(0)
        }
    };
    match (has_table, positions) {
        (None, _) => Ok(0),
        (Some(more), Some(positions)) => Ok(positions + more),
        (Some(_), None) => Err(fields.missing(&MAX_POSITIONS)),
    }
}

fn layer_norms(fields: &Fields, family: &Family) -> Result<u64, Error> {
    Ok(match family.layer_norms {
        LayerNorms::Two => 2,
        LayerNorms::Sandwich(name) => {
            if fields.flag(name, false)? {
                4
            } else {
                2
            }
        }
        LayerNorms::Falcon => {
            let newer = fields.flag("new_decoder_architecture", false)?;
            let parallel = fields.flag("parallel_attn", true)?;
            if newer || !parallel { 2 } else { 1 }
        }
    })
}

/// The attention of each layer.
fn attentions(
    fields: &Fields,
    family: &Family,
    hidden: u64,
    layers: u64,
) -> Result<Vec<Attention>, Error> {
    let heads = fields.required(&NUM_HEADS, &HEADS)?;
    if family.latent {
        let mla = Attention::Mla(latent(fields, family, heads)?);
        return Ok(vec![mla; layers as usize]);
    }
    let grouped = grouped(fields, family, hidden, heads)?;
    let spans = spans(fields, family, layers)?;
    let attention = |span| match span {
        // As many heads of keys as of queries, a gate on what comes out, and a norm of it.
        Span::State => Grouped {
            num_kv_heads: heads,
            vectors: heads * grouped.head_dim,
            output_gate: true,
            span,
            ..grouped.clone()
        },
        _ => Grouped {
            span,
            ..grouped.clone()
        },
    };
    let attentions = spans.into_iter().map(attention);
    Ok(attentions.map(Attention::Grouped).collect())
}

fn latent(fields: &Fields, family: &Family, num_heads: u64) -> Result<Mla, Error> {
    if fields.flag("attention_bias", false)? {
        let message = "true is not supported in latent attention; no published model has it";
        return Err(fields.error("attention_bias", message));
    }
    let ranks = ["q_lora_rank", "attention_q_lora_dim"];
    let q_lora_rank = match fields.optional(&ranks, &(0..=*COUNT.end()))? {
        None if ranks.iter().any(|rank| fields.is_null(rank)) => None,
        // Transformers would put a number in its place.
        None => {
            let message = "absent; write a number, or null or 0 for none";
            return Err(fields.error(ranks[0], message));
        }
        Some(rank) => (rank > 0).then_some(rank),
    };
    let width = |names: [&str; 2]| fields.required(&names, &COUNT);
    let indexed = family.indexed || fields.get("index_topk").is_some();
    Ok(Mla {
        num_heads,
        q_lora_rank,
        kv_lora_rank: width(["kv_lora_rank", "attention_kv_lora_dim"])?,
        qk_nope_head_dim: width(["qk_nope_head_dim", "attention_qk_dim"])?,
        qk_rope_head_dim: width(["qk_rope_head_dim", "attention_qk_rope_dim"])?,
        v_head_dim: width(["v_head_dim", "attention_v_dim"])?,
        indexer: if indexed {
            Some(indexer(fields)?)
        } else {
            None
        },
    })
}

fn indexer(fields: &Fields) -> Result<Indexer, Error> {
    Ok(Indexer {
        num_heads: fields.required(&["index_n_heads"], &HEADS)?,
        head_dim: fields.required(&["index_head_dim"], &COUNT)?,
        top_k: fields.required(&["index_topk"], &POSITIONS)?,
    })
}

/// Grouped attention over all keys.
fn grouped(
    fields: &Fields,
    family: &Family,
    hidden: u64,
    num_heads: u64,
) -> Result<Grouped, Error> {
    let num_kv_heads = kv_heads(fields, family, num_heads)?;
    let head_dim = head_dim(fields, family, hidden, num_heads)?;
    let (queries, keys) = (num_heads * head_dim, num_kv_heads * head_dim);
    let mut vectors = match family.qk_norm {
        QkNorm::None => 0,
        QkNorm::Whole => queries + keys,
        QkNorm::PerHead => 2 * head_dim,
        QkNorm::If(name) => 2 * head_dim * u64::from(fields.flag(name, false)?),
    };
    if fields.has(family.qkv_bias)? {
        vectors += queries + 2 * keys;
    }
    if fields.has(family.output_bias)? {
        vectors += hidden;
    }
    if family.sinks {
        vectors += num_heads;
    }
    if family.relative_positions {
        // One bias of queries for content and one for positions.
        vectors += 2 * queries;
    }
    Ok(Grouped {
        num_heads,
        num_kv_heads,
        head_dim,
        span: Span::Full,
        output_gate: false,
        relative_positions: family.relative_positions,
        vectors,
    })
}

fn kv_heads(fields: &Fields, family: &Family, heads: u64) -> Result<u64, Error> {
    let field = |default| {
        let kv = fields.optional(&NUM_KV_HEADS, &HEADS)?.unwrap_or(default);
        divides(fields, NUM_KV_HEADS[0], kv, heads)
    };
    match family.kv_heads {
        KvHeads::Field => field(heads),
        KvHeads::Or(_) if fields.is_null(NUM_KV_HEADS[0]) => field(heads),
        KvHeads::Or(default) => field(default),
        KvHeads::Falcon if fields.flag("new_decoder_architecture", false)? => field(heads),
        KvHeads::Falcon | KvHeads::MultiQuery => {
            let one = fields.flag("multi_query", true)?;
            Ok(if one { 1 } else { heads })
        }
        KvHeads::Mpt => {
            let Some(inner) = fields.table("attn_config")? else {
                return Ok(heads);
            };
            match inner.text("attn_type")? {
                None | Some("multihead_attention") => Ok(heads),
                Some("multiquery_attention") => Ok(1),
                Some("grouped_query_attention") => {
                    let kv = inner.required(&["kv_n_heads"], &HEADS)?;
                    divides(&inner, "kv_n_heads", kv, heads)
                }
                Some(other) => {
                    let message = format!(
                        "{} is not known; multihead_attention, multiquery_attention and \
                         grouped_query_attention are",
                        brief(&Value::from(other))
                    );
                    Err(inner.error("attn_type", message))
                }
            }
        }
    }
}

fn divides(fields: &Fields, field: &str, kv: u64, heads: u64) -> Result<u64, Error> {
    if heads.is_multiple_of(kv) {
        return Ok(kv);
    }
    let message = format!("{kv} does not divide {}, {heads}", NUM_HEADS[0]);
    Err(fields.error(field, message))
}

fn head_dim(fields: &Fields, family: &Family, hidden: u64, heads: u64) -> Result<u64, Error> {
    if let Some(given) = fields.optional(&HEAD_DIM, &COUNT)?.or(family.head_dim) {
        return Ok(given);
    }
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    let message = format!(
        "{heads} does not divide {}, {hidden}, and head_dim is absent",
        HIDDEN[0]
    );
    Err(fields.error(NUM_HEADS[0], message))
}

/// Which keys each layer attends to: by a list of the file, or by the family's rule.
fn spans(fields: &Fields, family: &Family, layers: u64) -> Result<Vec<Span>, Error> {
    if let Spans::Linear = family.spans
        && let Some(list) = fields.per_layer("attn_type_list", layers)?
    {
        let kinds = list.iter().map(|kind| {
            let full = fields.whole("attn_type_list", kind, &(0..=1))? == 1;
            Ok(if full { Span::Full } else { Span::State })
        });
        return kinds.collect();
    }
    if let Some(list) = fields.per_layer("layer_types", layers)? {
        let kinds = list.iter().map(|kind| listed(fields, family, kind));
        return kinds.collect();
    }
    match family.spans {
        Spans::Full => Ok(vec![Span::Full; layers as usize]),
        Spans::Linear => Err(fields.missing(&["attn_type_list", "layer_types"])),
        Spans::Window(_) => {
            let span = window(fields, family)?.map_or(Span::Full, Span::Window);
            Ok(vec![span; layers as usize])
        }
        Spans::Switched => {
            let first = fields.or("max_window_layers", &(0..=u64::MAX), 28)?;
            let Some(window) = window(fields, family)? else {
                return Ok(vec![Span::Full; layers as usize]);
            };
            Ok(rule(layers, Span::Window(window), |i| i < first))
        }
        Spans::Periodic { period, .. } => {
            let window = window(fields, family)?.map_or(Span::Full, Span::Window);
            Ok(rule(layers, window, |i| (i + 1).is_multiple_of(period)))
        }
        Spans::Chunked => chunked(fields, layers),
    }
}

fn rule(layers: u64, otherwise: Span, is_full: impl Fn(u64) -> bool) -> Vec<Span> {
    let layers = 0..layers;
    let span = |i| if is_full(i) { Span::Full } else { otherwise };
    layers.map(span).collect()
}

/// Layers without RoPE see everything.
fn chunked(fields: &Fields, layers: u64) -> Result<Vec<Span>, Error> {
    let chunk = chunk(fields)?;
    let name = "no_rope_layers";
    if fields.list(name)?.is_some_and(|list| !list.is_empty()) {
        let list = fields.per_layer(name, layers)?.unwrap_or_default();
        let spans = list.iter().map(|rotated| {
            let rotated = fields.whole(name, rotated, &(0..=1))? == 1;
            Ok(if rotated { chunk } else { Span::Full })
        });
        return spans.collect();
    }
    let period = fields.or("no_rope_layer_interval", &LAYERS, 4)?;
    Ok(rule(layers, chunk, |i| (i + 1).is_multiple_of(period)))
}

fn chunk(fields: &Fields) -> Result<Span, Error> {
    let name = "attention_chunk_size";
    if fields.is_null(name) {
        return Ok(Span::Full);
    }
    Ok(Span::Chunk(fields.or(name, &POSITIONS, 8192)?))
}

/// An entry of `layer_types`.
fn listed(fields: &Fields, family: &Family, kind: &Value) -> Result<Span, Error> {
    match kind.as_str().unwrap_or_default() {
        "full_attention" => Ok(Span::Full),
        "sliding_attention" => match window(fields, family)? {
            Some(window) => Ok(Span::Window(window)),
            None if matches!(family.spans, Spans::Switched) => Ok(Span::Full),
            None => Err(fields.missing(&["sliding_window"])),
        },
        "chunked_attention" => chunk(fields),
        LINEAR if matches!(family.spans, Spans::Linear) => Ok(Span::State),
        _ => {
            let message = format!(
                "{} is not known in {}; full_attention, sliding_attention and chunked_attention \
                 are",
                brief(kind),
                family.model_type
            );
            Err(fields.error("layer_types", message))
        }
    }
}

/// Keys of a window; `None`: all.
fn window(fields: &Fields, family: &Family) -> Result<Option<u64>, Error> {
    let name = "sliding_window";
    let absent = match family.spans {
        Spans::Switched if !fields.flag("use_sliding_window", false)? => return Ok(None),
        Spans::Window(absent) => absent,
        Spans::Periodic { window, .. } => Some(window),
        _ => None,
    };
    if fields.is_null(name) {
        return Ok(None);
    }
    let found = fields.optional(&[name], &POSITIONS)?;
    Ok(found.or(absent))
}

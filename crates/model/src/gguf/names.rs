//! Hugging Face's tensor names and GGUF's, one for the other.
//!
//! Source: `gguf-py/gguf/tensor_mapping.py` and `conversion/*.py` (until 2026
//! `convert_hf_to_gguf.py`) of <https://github.com/ggml-org/llama.cpp>. One table serves the
//! architectures `llama`, `qwen2`, `qwen3`, `qwen3moe` and `deepseek2`.

/// Modules outside the layers: Hugging Face's name, GGUF's.
const MODEL: [(&str, &str); 3] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// Modules of a layer: what follows `model.layers.N.`, what follows `blk.N.`.
const LAYER: [(&str, &str); 28] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    // The layer of multi-token prediction.
    ("eh_proj", "nextn.eh_proj"),
    ("embed_tokens", "nextn.embed_tokens"),
    ("enorm", "nextn.enorm"),
    ("hnorm", "nextn.hnorm"),
    ("shared_head.norm", "nextn.shared_head_norm"),
    ("shared_head.head", "nextn.shared_head_head"),
    // A parameter without `.weight` or `.bias`, which GGUF gives one.
    ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
];

/// Projections of an expert, and the stack that holds those of all experts.
const EXPERT: [(&str, &str); 3] = [
    ("gate_proj.weight", "ffn_gate_exps.weight"),
    ("up_proj.weight", "ffn_up_exps.weight"),
    ("down_proj.weight", "ffn_down_exps.weight"),
];

/// Where a Hugging Face tensor lies in a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GgufName {
    /// A tensor of this name.
    Whole(String),
    /// One expert of a stack `[experts, out, in]`.
    Expert { stack: String, expert: usize },
}

/// What a GGUF tensor is in Hugging Face's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HfName {
    /// A tensor of this name.
    Whole(String),
    /// Experts stacked `[experts, out, in]`; expert `e` is called `{before}{e}{after}`.
    Experts { before: String, after: String },
    /// The position-free keys' part of this `kv_b_proj`: `[heads, kv_lora_rank, qk_nope_head_dim]`.
    KeyPart(String),
    /// The values' part of this `kv_b_proj`: `[heads, v_head_dim, kv_lora_rank]`.
    ValuePart(String),
}

/// GGUF's name for a Hugging Face tensor, or `None` if it has none.
///
/// `kv_b_proj` gives `attn_kv_b`, its name in older files; newer ones split it, see [`HfName`].
pub fn gguf_name(hf_name: &str) -> Option<GgufName> {
    let Some(rest) = hf_name.strip_prefix("model.layers.") else {
        return renamed(hf_name, &MODEL, Way::ToGguf).map(GgufName::Whole);
    };
    let (layer, rest) = layer_number(rest)?;
    if let Some(expert) = rest.strip_prefix("mlp.experts.") {
        let (expert, projection) = layer_number(expert)?;
        let (_, stack) = EXPERT.iter().find(|(name, _)| *name == projection)?;
        let stack = format!("blk.{layer}.{stack}");
        return Some(GgufName::Expert { stack, expert });
    }
    let name = renamed(rest, &LAYER, Way::ToGguf)?;
    Some(GgufName::Whole(format!("blk.{layer}.{name}")))
}

/// The Hugging Face name of a GGUF tensor, or `None` if it has none.
pub fn hf_name(gguf_name: &str) -> Option<HfName> {
    let Some(rest) = gguf_name.strip_prefix("blk.") else {
        return renamed(gguf_name, &MODEL, Way::ToHf).map(HfName::Whole);
    };
    let (layer, rest) = layer_number(rest)?;
    if let Some((projection, _)) = EXPERT.iter().find(|(_, stack)| *stack == rest) {
        return Some(HfName::Experts {
            before: format!("model.layers.{layer}.mlp.experts."),
            after: format!(".{projection}"),
        });
    }
    let kv_b = format!("model.layers.{layer}.self_attn.kv_b_proj.weight");
    match rest {
        "attn_k_b.weight" => return Some(HfName::KeyPart(kv_b)),
        "attn_v_b.weight" => return Some(HfName::ValuePart(kv_b)),
        _ => {}
    }
    let name = renamed(rest, &LAYER, Way::ToHf)?;
    Some(HfName::Whole(format!("model.layers.{layer}.{name}")))
}

/// Which column of a table is looked up, and which is the answer.
#[derive(Clone, Copy)]
enum Way {
    ToGguf,
    ToHf,
}

/// Replaces the module's name and keeps `.weight` or `.bias`; whole names come first.
fn renamed(name: &str, table: &[(&str, &str)], way: Way) -> Option<String> {
    let look_up = |name: &str| {
        let mut columns = table.iter().map(|&(hf, gguf)| match way {
            Way::ToGguf => (hf, gguf),
            Way::ToHf => (gguf, hf),
        });
        columns.find(|(from, _)| *from == name).map(|(_, to)| to)
    };
    // Only `e_score_correction_bias` stands in the tables with its leaf.
    if name.ends_with("_bias") || name == "exp_probs_b.bias" {
        return look_up(name).map(str::to_string);
    }
    let (module, leaf) = name.rsplit_once('.')?;
    let to = look_up(module).filter(|_| leaf == "weight" || leaf == "bias")?;
    Some(format!("{to}.{leaf}"))
}

/// Splits `12.rest` into 12 and `rest`. The number is written as we would write it.
fn layer_number(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once('.')?;
    let number: usize = digits.parse().ok()?;
    (number.to_string() == digits).then_some((number, rest))
}

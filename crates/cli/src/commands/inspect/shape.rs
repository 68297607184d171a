//! Attention, experts and positions of a configuration, as JSON and in words.

use model::{Attention, Config, Moe, Rope, RopeScaling, ScoringFunc, TopkMethod};
use serde_json::{Value, json};

pub fn attention_json(config: &Config) -> Value {
    let heads = config.num_attention_heads;
    match &config.attention {
        Attention::Mla(mla) => json!({
            "kind": "mla",
            "heads": heads,
            "q_lora_rank": mla.q_lora_rank,
            "kv_lora_rank": mla.kv_lora_rank,
            "qk_nope_head_dim": mla.qk_nope_head_dim,
            "qk_rope_head_dim": mla.qk_rope_head_dim,
            "v_head_dim": mla.v_head_dim,
        }),
        Attention::Gqa(gqa) => json!({
            "kind": "gqa",
            "heads": heads,
            "key_value_heads": gqa.num_key_value_heads,
            "head_dim": gqa.head_dim,
            "qkv_bias": gqa.qkv_bias,
            "o_bias": gqa.o_bias,
            "qk_norm": gqa.qk_norm,
        }),
    }
}

pub fn attention_words(config: &Config) -> String {
    let heads = config.num_attention_heads;
    match &config.attention {
        Attention::Mla(mla) => {
            let queries = match mla.q_lora_rank {
                Some(rank) => format!("queries through {rank}"),
                None => "queries direct".to_string(),
            };
            format!(
                "latent (MLA): {heads} heads of {} and {} rotated, values of {}, latent of {}, \
                 {queries}",
                mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim, mla.kv_lora_rank
            )
        }
        Attention::Gqa(gqa) => {
            let (kv, dim) = (gqa.num_key_value_heads, gqa.head_dim);
            let mut words = match kv == heads {
                true => format!("multi-head: {heads} heads of {dim}"),
                false => format!("grouped (GQA): {heads} heads of {dim}, {kv} of keys and values"),
            };
            for (there, what) in [
                (gqa.qkv_bias, ", biases of q, k and v"),
                (gqa.o_bias, ", bias of the output"),
                (gqa.qk_norm, ", norms of q and k"),
            ] {
                words += if there { what } else { "" };
            }
            words
        }
    }
}

pub fn experts_json(config: &Config) -> Option<Value> {
    let moe = config.moe.as_ref()?;
    Some(json!({
        "routed": moe.n_routed_experts,
        "chosen": moe.num_experts_per_tok,
        "shared": moe.n_shared_experts,
        "width": moe.moe_intermediate_size,
        "scoring": scoring(moe),
        "choice": choice(moe),
        "groups": moe.n_group,
        "chosen_groups": moe.topk_group,
        "normalised": moe.norm_topk_prob,
        "scaling": moe.routed_scaling_factor,
        "dense_layers": dense_layers(config),
    }))
}

/// `scoring_func` of `config.json`.
fn scoring(moe: &Moe) -> &'static str {
    match moe.scoring_func {
        ScoringFunc::Softmax => "softmax",
        ScoringFunc::Sigmoid => "sigmoid",
    }
}

/// `topk_method` of `config.json`.
fn choice(moe: &Moe) -> &'static str {
    match moe.topk_method {
        TopkMethod::Greedy => "greedy",
        TopkMethod::GroupLimitedGreedy => "group_limited_greedy",
        TopkMethod::NoauxTc => "noaux_tc",
    }
}

/// Layers without experts, multi-token prediction not counted.
pub fn dense_layers(config: &Config) -> Vec<usize> {
    let layers = 0..config.num_hidden_layers;
    layers
        .filter(|&layer| !config.is_moe_layer(layer))
        .collect()
}

/// Which these are, and their width.
pub fn dense_words(config: &Config) -> String {
    let dense = dense_layers(config);
    let which = match dense.len() {
        0 => return "none".to_string(),
        all if all == config.num_hidden_layers => "all".to_string(),
        1 => format!("layer {}", dense[0]),
        _ => format!("layers {}", ranges(&dense)),
    };
    format!("{which}, {} wide", config.intermediate_size)
}

pub fn experts_words(config: &Config) -> String {
    match &config.moe {
        None => "none (dense)".to_string(),
        Some(moe) => format!(
            "{} routed, {} chosen, {} shared, {} wide",
            moe.n_routed_experts,
            moe.num_experts_per_tok,
            moe.n_shared_experts,
            moe.moe_intermediate_size
        ),
    }
}

pub fn routing_words(moe: &Moe) -> String {
    let mut words = format!("{} scores", scoring(moe));
    if moe.has_correction_bias() {
        words += " with a correction bias";
    }
    if moe.topk_method == TopkMethod::Greedy || moe.n_group == 1 {
        words += ", the best of all";
    } else {
        words += &format!(
            ", from the best {} of {} groups",
            moe.topk_group, moe.n_group
        );
    }
    if moe.norm_topk_prob {
        words += ", weights normalised";
    }
    if moe.routed_scaling_factor != 1.0 {
        words += &format!(", times {}", moe.routed_scaling_factor);
    }
    words
}

/// Numbers in order, runs of them shortened: "0 to 2, 5".
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<[usize; 2]> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some([_, last]) if *last + 1 == number => *last = number,
            _ => runs.push([number, number]),
        }
    }
    let shown = |[first, last]: &[usize; 2]| match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    };
    runs.iter().map(shown).collect::<Vec<_>>().join(", ")
}

pub fn rope_json(rope: &Rope) -> Value {
    let scaling = match &rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"type": "linear", "factor": factor}),
        RopeScaling::Yarn(yarn) => json!({
            "type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
            "attention_factor": yarn.attention_factor,
            "attn_factor": yarn.attn_factor,
            "truncate": yarn.truncate,
        }),
        RopeScaling::Llama3(llama) => json!({
            "type": "llama3",
            "factor": llama.factor,
            "original_max_position_embeddings": llama.original_max_position_embeddings,
            "low_freq_factor": llama.low_freq_factor,
            "high_freq_factor": llama.high_freq_factor,
        }),
    };
    json!({"theta": rope.theta, "interleave": rope.interleave, "scaling": scaling})
}

pub fn rope_words(rope: &Rope) -> String {
    let pairs = match rope.interleave {
        true => "neighbours turn together",
        false => "halves turn together",
    };
    let mut words = format!("theta {}, {pairs}", rope.theta);
    match &rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => words += &format!("; linear, times {factor}"),
        RopeScaling::Yarn(yarn) => {
            words += &format!(
                "; YaRN, {} times {} positions, beta {} to {}",
                yarn.factor, yarn.original_max_position_embeddings, yarn.beta_fast, yarn.beta_slow
            );
            for (name, value) in [
                ("mscale", yarn.mscale),
                ("mscale_all_dim", yarn.mscale_all_dim),
                ("attention_factor", yarn.attention_factor),
                ("attn_factor", yarn.attn_factor),
            ] {
                words += &value.map_or(String::new(), |value| format!(", {name} {value}"));
            }
        }
        RopeScaling::Llama3(llama) => {
            words += &format!(
                "; Llama 3, {} times {} positions, turns {} to {}",
                llama.factor,
                llama.original_max_position_embeddings,
                llama.low_freq_factor,
                llama.high_freq_factor
            );
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn runs_of_numbers_are_shortened() {
        for (numbers, text) in [
            (&[][..], ""),
            (&[4], "4"),
            (&[0, 1, 2, 5], "0 to 2, 5"),
            (&[1, 3, 4], "1, 3 to 4"),
        ] {
            assert_eq!(ranges(numbers), text);
        }
    }
}

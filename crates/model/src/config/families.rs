//! What each family's `config.json` says, and what it leaves unsaid.

use super::fields::Fields;
use super::{
    Architecture, Attention, COUNT, Config, DenseLayers, EXPERTS, Gqa, HEADS, LAYERS, Mla, Moe,
    POSITIONS, ScoringFunc, TopkMethod, VOCABULARY,
};
use crate::error::Error;
use serde_json::json;

pub(super) fn parse(text: &str) -> Result<Config, Error> {
    let mut fields = Fields::parse(text)?;
    let architecture = fields.architecture()?;
    fields.is_qwen = matches!(
        architecture,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe
    );
    fields.refuse_unsupported()?;
    let num_hidden_layers = fields.required("num_hidden_layers", &LAYERS)?;
    let num_attention_heads = fields.required("num_attention_heads", &HEADS)?;
    let hidden_size = fields.required("hidden_size", &COUNT)?;
    let attention = if architecture.is_deepseek() {
        Attention::Mla(mla(&mut fields, num_attention_heads)?)
    } else {
        Attention::Gqa(gqa(
            &mut fields,
            architecture,
            hidden_size,
            num_attention_heads,
        )?)
    };
    let moe = match architecture {
        Architecture::DeepseekV3 => deepseek_moe(&mut fields, num_hidden_layers, true)?,
        Architecture::DeepseekV2 => deepseek_moe(&mut fields, num_hidden_layers, false)?,
        Architecture::Qwen3Moe => Some(qwen3_moe(&mut fields)?),
        _ => None,
    };
    // What transformers takes where the file is silent; YaRN may go by it.
    let positions = match architecture {
        Architecture::DeepseekV3 => 4096,
        Architecture::DeepseekV2 | Architecture::Llama => 2048,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe => 32_768,
    };
    let max_position_embeddings = fields.or("max_position_embeddings", &POSITIONS, positions)?;
    // DeepSeek's own layout; the other families rotate halves.
    let interleave = match architecture {
        Architecture::DeepseekV3 => fields.boolean("rope_interleave", true)?,
        Architecture::DeepseekV2 => true,
        _ => false,
    };
    let next_layers = "num_nextn_predict_layers";
    Ok(Config {
        architecture,
        vocab_size: fields.required("vocab_size", &VOCABULARY)?,
        hidden_size,
        intermediate_size: fields.required("intermediate_size", &COUNT)?,
        num_hidden_layers,
        num_attention_heads,
        attention,
        moe,
        rope: fields.rope(interleave, max_position_embeddings)?,
        num_nextn_predict_layers: match architecture {
            Architecture::DeepseekV3 => fields.or(next_layers, &(0..=1), 0)?,
            _ => fields.or(next_layers, &(0..=0), 0)?,
        },
        rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
        tie_word_embeddings: fields.boolean("tie_word_embeddings", false)?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_id: fields.token_ids("eos_token_id")?,
        pad_token_id: fields.token_ids("pad_token_id")?.first().copied(),
        max_position_embeddings,
        initializer_range: fields.number("initializer_range", 0.02)?,
        torch_dtype: fields.torch_dtype()?,
        fp8: fields.fp8()?,
        ignored_keys: fields.leftover(),
    })
}

fn mla(fields: &mut Fields, num_attention_heads: usize) -> Result<Mla, Error> {
    let heads = num_attention_heads..=num_attention_heads;
    fields.or("num_key_value_heads", &heads, num_attention_heads)?;
    fields.only("attention_bias", &json!(false))?;
    // Of the rotated part, where the file gives it; the parts are given one by one anyhow.
    fields.or("head_dim", &COUNT, 1)?;
    Ok(Mla {
        q_lora_rank: fields.required_or_null("q_lora_rank", &COUNT)?,
        kv_lora_rank: fields.required("kv_lora_rank", &COUNT)?,
        qk_nope_head_dim: fields.required("qk_nope_head_dim", &COUNT)?,
        qk_rope_head_dim: fields.required("qk_rope_head_dim", &COUNT)?,
        v_head_dim: fields.required("v_head_dim", &COUNT)?,
    })
}

fn gqa(
    fields: &mut Fields,
    architecture: Architecture,
    hidden_size: usize,
    num_attention_heads: usize,
) -> Result<Gqa, Error> {
    let heads = 1..=num_attention_heads;
    let num_key_value_heads = match architecture {
        // Llama 1 has no such field: multi-head.
        Architecture::Llama => fields.or("num_key_value_heads", &heads, num_attention_heads)?,
        _ => fields.required("num_key_value_heads", &heads)?,
    };
    let head_dim = match architecture {
        Architecture::Qwen3 => fields.or("head_dim", &COUNT, 128)?,
        _ => fields.or("head_dim", &COUNT, hidden_size / num_attention_heads)?,
    };
    // Qwen2 has biases that its configuration does not mention.
    let bias = match architecture {
        Architecture::Qwen2 => None,
        _ => Some(fields.boolean("attention_bias", false)?),
    };
    Ok(Gqa {
        num_key_value_heads,
        head_dim,
        qkv_bias: bias.unwrap_or(true),
        o_bias: bias.unwrap_or(false),
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Qwen3Moe),
    })
}

/// A dense model leaves most of these fields out.
fn deepseek_moe(fields: &mut Fields, layers: usize, is_v3: bool) -> Result<Option<Moe>, Error> {
    let n_routed_experts = fields.or("n_routed_experts", &(0..=*EXPERTS.end()), 0)?;
    let first_k_dense_replace = fields.or("first_k_dense_replace", &(0..=usize::MAX), 0)?;
    let (scoring_func, topk_method) = scoring(fields, is_v3)?;
    if n_routed_experts == 0 || first_k_dense_replace >= layers {
        for unused in [
            "n_group",
            "topk_group",
            "n_shared_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
        ] {
            fields.or(unused, &(0..=usize::MAX), 0)?;
        }
        fields.number("routed_scaling_factor", 1.0)?;
        fields.boolean("norm_topk_prob", true)?;
        return Ok(None);
    }
    let [n_group, topk_group] = ["n_group", "topk_group"].map(|field| match topk_method {
        // The greedy choice has no groups, whatever the file says.
        TopkMethod::Greedy => fields.or(field, &(0..=usize::MAX), 1).map(|_| 1),
        _ => fields.required(field, &COUNT),
    });
    Ok(Some(Moe {
        n_routed_experts,
        n_shared_experts: if is_v3 {
            fields.required("n_shared_experts", &COUNT)?
        } else {
            fields.or("n_shared_experts", &(0..=*COUNT.end()), 0)?
        },
        num_experts_per_tok: fields.required("num_experts_per_tok", &COUNT)?,
        moe_intermediate_size: fields.required("moe_intermediate_size", &COUNT)?,
        dense_layers: DenseLayers::First(first_k_dense_replace),
        scoring_func,
        topk_method,
        n_group: n_group?,
        topk_group: topk_group?,
        norm_topk_prob: fields.boolean("norm_topk_prob", is_v3)?,
        routed_scaling_factor: fields.required_number("routed_scaling_factor")?,
    }))
}

/// Each family computes one kind of score; its file may only repeat that.
fn scoring(fields: &mut Fields, is_v3: bool) -> Result<(ScoringFunc, TopkMethod), Error> {
    let (scoring_func, topk_method) = ("scoring_func", "topk_method");
    if is_v3 {
        let sigmoid = ("sigmoid", ScoringFunc::Sigmoid);
        let noaux_tc = ("noaux_tc", TopkMethod::NoauxTc);
        return Ok((
            fields.choice(scoring_func, &[sigmoid], Some(sigmoid.1))?,
            fields.choice(topk_method, &[noaux_tc], Some(noaux_tc.1))?,
        ));
    }
    let softmax = ("softmax", ScoringFunc::Softmax);
    let greedy = ("greedy", TopkMethod::Greedy);
    let grouped = ("group_limited_greedy", TopkMethod::GroupLimitedGreedy);
    Ok((
        fields.choice(scoring_func, &[softmax], Some(softmax.1))?,
        fields.choice(topk_method, &[greedy, grouped], Some(greedy.1))?,
    ))
}

/// `num_experts` as published; transformers writes it under either of the other names, too.
fn qwen3_experts(fields: &mut Fields) -> Result<usize, Error> {
    let mut found = None;
    for spelling in ["n_routed_experts", "num_local_experts", "num_experts"] {
        let experts = fields.or(spelling, &EXPERTS, 0)?;
        if experts > 0 && found.is_some_and(|other| other != experts) {
            let message = format!("{experts} contradicts the other number of experts");
            return Err(Error::field(spelling, message));
        }
        found = found.or((experts > 0).then_some(experts));
    }
    match found {
        Some(experts) => Ok(experts),
        None => fields.required("num_experts", &EXPERTS),
    }
}

fn qwen3_moe(fields: &mut Fields) -> Result<Moe, Error> {
    let step = fields.or("decoder_sparse_step", &COUNT, 1)?;
    Ok(Moe {
        n_routed_experts: qwen3_experts(fields)?,
        n_shared_experts: 0,
        num_experts_per_tok: fields.required("num_experts_per_tok", &COUNT)?,
        moe_intermediate_size: fields.required("moe_intermediate_size", &COUNT)?,
        dense_layers: DenseLayers::Listed {
            mlp_only_layers: fields.list("mlp_only_layers", &(0..=*LAYERS.end()))?,
            decoder_sparse_step: step,
        },
        scoring_func: ScoringFunc::Softmax,
        topk_method: TopkMethod::Greedy,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: fields.boolean("norm_topk_prob", false)?,
        routed_scaling_factor: 1.0,
    })
}

//! Configurations out of GGUF metadata, and metadata out of configurations.

use std::path::Path;

use model::gguf::{
    GgmlType, Gguf, GgufWriter, TensorPlan, Value, config_json, metadata_of, rope_freqs,
};
use serde_json::{Value as Json, json};

/// A file with these keys and F32 tensors.
fn file(metadata: &[(String, Value)], tensors: &[(&str, &[usize], &[f32])]) -> Gguf {
    let plan = |&(name, shape, _): &(&str, &[usize], &[f32])| TensorPlan {
        name: name.to_string(),
        shape: shape.to_vec(),
        kind: GgmlType::F32,
    };
    let mut bytes = Vec::new();
    let path = Path::new("model.gguf");
    let plans = tensors.iter().map(plan).collect();
    let mut writer = GgufWriter::new(&mut bytes, path, metadata, plans).unwrap();
    for (_, shape, values) in tensors {
        let mut values = values.to_vec();
        values.resize(shape.iter().product(), 0.0);
        writer.write_f32(&values).unwrap();
    }
    writer.finish().unwrap();
    Gguf::from_bytes(bytes, path).unwrap()
}

fn config_of(gguf: &Gguf) -> Json {
    serde_json::from_str(&config_json(gguf).unwrap()).unwrap()
}

/// Every field of `want` stands in `found` with the same value; numbers are compared as such.
fn assert_says(found: &Json, want: &Json) {
    for (field, want) in want.as_object().unwrap() {
        let found = found.get(field).unwrap_or(&Json::Null);
        let same = match (found.as_f64(), want.as_f64()) {
            (Some(found), Some(want)) => found == want,
            _ if want.is_object() => {
                assert_says(found, want);
                true
            }
            _ => found == want,
        };
        assert!(same, "{field}: {found}, expected {want}");
    }
}

fn keys(arch: &str, integers: &[(&str, u32)], floats: &[(&str, f32)]) -> Vec<(String, Value)> {
    let mut keys = vec![("general.architecture".to_string(), Value::Str(arch.into()))];
    let integers = integers
        .iter()
        .map(|&(key, value)| (key, Value::U32(value)));
    let floats = floats.iter().map(|&(key, value)| (key, Value::F32(value)));
    keys.extend(
        integers
            .chain(floats)
            .map(|(key, value)| (format!("{arch}.{key}"), value)),
    );
    keys
}

/// The keys of DeepSeek-R1 as files of early 2025 have them: the true attention in `key_length`,
/// nothing about groups of experts.
fn early_r1() -> Vec<(String, Value)> {
    let integers = [
        ("block_count", 61),
        ("context_length", 163_840),
        ("embedding_length", 7168),
        ("feed_forward_length", 18_432),
        ("attention.head_count", 128),
        ("attention.head_count_kv", 128),
        ("expert_used_count", 8),
        ("leading_dense_block_count", 3),
        ("vocab_size", 129_280),
        ("attention.q_lora_rank", 1536),
        ("attention.kv_lora_rank", 512),
        ("attention.key_length", 192),
        ("attention.value_length", 128),
        ("expert_feed_forward_length", 2048),
        ("expert_count", 256),
        ("expert_shared_count", 1),
        ("expert_gating_func", 2),
        ("rope.dimension_count", 64),
        ("rope.scaling.original_context_length", 4096),
    ];
    let floats = [
        ("rope.freq_base", 10_000.0),
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("expert_weights_scale", 2.5),
        ("rope.scaling.factor", 40.0),
        ("rope.scaling.yarn_log_multiplier", 0.1),
    ];
    let mut keys = keys("deepseek2", &integers, &floats);
    let norm = (
        "deepseek2.expert_weights_norm".to_string(),
        Value::Bool(true),
    );
    let yarn = Value::Str("yarn".into());
    keys.extend([norm, ("deepseek2.rope.scaling.type".to_string(), yarn)]);
    keys
}

/// What the `config.json` published with DeepSeek-V3 says.
fn published_v3() -> Json {
    json!({
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": false, "first_k_dense_replace": 3, "hidden_act": "silu",
        "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
        "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
        "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280,
        "rope_scaling": {
            "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096
        },
    })
}

#[test]
fn an_early_file_of_r1_gives_the_published_configuration() {
    let embedding = ("token_embd.weight", &[129_280, 1][..], &[][..]);
    let head = ("output.weight", &[1, 1][..], &[][..]);
    let gguf = file(&early_r1(), &[embedding, head]);
    let config = config_of(&gguf);
    assert_says(&config, &published_v3());
    assert_eq!(config["num_nextn_predict_layers"], 0);
}

#[test]
fn the_published_configuration_of_v3_goes_through_a_file_and_back() {
    let published = published_v3();
    let metadata = metadata_of(&published, 0).unwrap();
    let value = |key: &str| {
        let key = format!("deepseek2.{key}");
        &metadata.iter().find(|(name, _)| *name == key).unwrap().1
    };
    // As `set_gguf_parameters` of `conversion/deepseek.py` has them.
    assert_eq!(value("attention.head_count_kv"), &Value::U32(1));
    assert_eq!(value("attention.key_length"), &Value::U32(576));
    assert_eq!(value("attention.value_length"), &Value::U32(512));
    assert_eq!(value("attention.key_length_mla"), &Value::U32(192));
    assert_eq!(value("attention.value_length_mla"), &Value::U32(128));
    assert_eq!(value("expert_group_used_count"), &Value::U32(4));
    assert_eq!(value("rope.scaling.yarn_log_multiplier"), &Value::F32(0.1));
    let embedding = ("token_embd.weight", &[129_280, 1][..], &[][..]);
    let head = ("output.weight", &[1, 1][..], &[][..]);
    assert_says(&config_of(&file(&metadata, &[embedding, head])), &published);
    let with_draft = metadata_of(&published, 1).unwrap();
    let mut want = published.clone();
    want["num_nextn_predict_layers"] = json!(1);
    assert_says(&config_of(&file(&with_draft, &[embedding, head])), &want);
}

#[test]
fn deepseek_v2_lite_and_the_dense_families_go_through_a_file_and_back() {
    let v2_lite = json!({
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
        "max_position_embeddings": 163840, "vocab_size": 30, "q_lora_rank": null,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
        "norm_topk_prob": false, "routed_scaling_factor": 1.0, "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "tie_word_embeddings": false,
        "rope_scaling": {
            "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
            "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096
        },
    });
    let qwen2 = json!({
        "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "max_position_embeddings": 131072, "vocab_size": 30, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": false,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768
        },
    });
    let qwen3 = json!({
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "max_position_embeddings": 40960, "vocab_size": 30, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000, "tie_word_embeddings": false, "attention_bias": false,
    });
    let qwen3_moe = json!({
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "head_dim": 128, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "max_position_embeddings": 40960, "vocab_size": 30,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true,
        "tie_word_embeddings": false,
        "rope_scaling": { "rope_type": "linear", "factor": 2.0 },
    });
    let tensors = [
        ("token_embd.weight", &[30, 1][..], &[][..]),
        ("output.weight", &[30, 1][..], &[][..]),
    ];
    for config in [v2_lite, qwen2, qwen3, qwen3_moe] {
        let metadata = metadata_of(&config, 0).unwrap();
        let found = config_of(&file(&metadata, &tensors));
        assert_says(&found, &config);
        let scaled = config.get("rope_scaling").is_some();
        assert_eq!(found.get("rope_scaling").is_some(), scaled);
        // transformers 5 writes the same model otherwise.
        let mut newer = config.clone();
        let fields = newer.as_object_mut().unwrap();
        let mut rope = fields.remove("rope_scaling").unwrap_or_else(|| json!({}));
        rope["rope_theta"] = fields.remove("rope_theta").unwrap();
        newer["rope_parameters"] = rope;
        if let Some(experts) = newer.as_object_mut().unwrap().remove("num_experts") {
            newer["num_local_experts"] = experts;
        }
        assert_eq!(metadata_of(&newer, 0).unwrap(), metadata);
    }
}

/// Llama 3.1's divisors by the formula of `conversion/llama.py`, in f32 as there.
fn divisors_in_f32(head_dim: usize, theta: f32, factor: f32) -> Vec<f32> {
    let (low, high, context) = (1f32, 4f32, 8192f32);
    let exponents = (0..head_dim).step_by(2);
    let frequencies = exponents.map(|i| 1.0 / theta.powf(i as f32 / head_dim as f32));
    let divisor = |frequency: f32| {
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    frequencies.map(divisor).collect()
}

fn llama_3(factor: f64) -> Json {
    json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "vocab_size": 30, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": true, "head_dim": 128,
        "attention_bias": false,
        "rope_scaling": {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
        },
    })
}

#[test]
fn llama_3s_scaling_is_told_from_its_divisors() {
    for factor in [8.0, 32.0] {
        let config = llama_3(factor);
        let theirs = divisors_in_f32(128, 500_000.0, factor as f32);
        let ours = rope_freqs(&config).unwrap().unwrap();
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= 1e-4 * theirs, "{ours}, {theirs}");
        }
        let metadata = metadata_of(&config, 0).unwrap();
        for divisors in [ours, theirs] {
            let tensors = [
                ("token_embd.weight", &[30, 1][..], &[][..]),
                ("rope_freqs.weight", &[64][..], &divisors[..]),
            ];
            assert_says(&config_of(&file(&metadata, &tensors)), &config);
        }
    }
    let metadata = metadata_of(&llama_3(8.0), 0).unwrap();
    let mut strange = divisors_in_f32(128, 500_000.0, 8.0);
    strange[40] *= 1.01;
    let tensors = [
        ("token_embd.weight", &[30, 1][..], &[][..]),
        ("rope_freqs.weight", &[64][..], &strange[..]),
    ];
    let text = config_json(&file(&metadata, &tensors))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("rope_freqs.weight") && text.contains("model.gguf"),
        "{text}"
    );
    let mut plain = llama_3(8.0);
    plain.as_object_mut().unwrap().remove("rope_scaling");
    assert_eq!(rope_freqs(&plain).unwrap(), None);
}

#[test]
fn what_metadata_lacks_or_has_wrong_is_named() {
    let tensors = [("token_embd.weight", &[30, 1][..], &[][..])];
    let metadata = metadata_of(&llama_3(8.0), 0).unwrap();
    let with = |key: &str, value: Option<Value>| {
        let mut keys = metadata.clone();
        keys.retain(|(name, _)| name != key);
        keys.extend(value.map(|value| (key.to_string(), value)));
        config_json(&file(&keys, &tensors))
    };
    let text = |value: &str| Some(Value::Str(value.to_string()));
    for (key, value, words) in [
        ("llama.block_count", None, "is absent"),
        ("llama.context_length", Some(Value::I32(-1)), "is -1"),
        ("llama.embedding_length", text("many"), "is string"),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Some(Value::F32(f32::NAN)),
            "is NaN",
        ),
        ("llama.expert_count", Some(Value::U32(8)), "without experts"),
        ("llama.rope.scaling.type", text("longrope"), "longrope"),
        ("llama.rope.scaling.type", text("yarn"), "without a factor"),
        (
            "llama.rope.dimension_count",
            Some(Value::U32(32)),
            "not supported",
        ),
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(30)), "is 30"),
    ] {
        let error = with(key, value).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 3);
        assert!(
            text.contains(key) && text.contains(words),
            "no {words:?} in: {text}"
        );
    }
    // A number for each layer is as good as one, if they agree.
    let per_layer = |values: Vec<i32>| Some(Value::Array(model::gguf::Array::I32(values)));
    let key = "llama.feed_forward_length";
    let found = with(key, per_layer(vec![7, 7])).unwrap();
    assert!(found.contains("\"intermediate_size\": 7"), "{found}");
    assert!(with(key, per_layer(vec![7, 8])).is_err());
    assert!(with(key, per_layer(vec![])).is_err());
    let empty = Gguf::from_bytes(b"GGUF\x03\0\0\0".to_vec(), Path::new("x"));
    assert!(empty.is_err());
}

/// llama.cpp multiplies 0.1 ln(factor) + 1 by the key; transformers' `attention_factor` stands for
/// the product, DeepSeek-R1-0528-Qwen3-8B's `attn_factor` for the multiplier.
#[test]
fn yarns_factor_on_attention_is_the_same_product_in_a_file() {
    for (field, value, key) in [
        ("attn_factor", 0.8782488562869419, 0.8782488562869419),
        ("attention_factor", 1.0, 0.8782488562869419),
    ] {
        let mut config = llama_3(8.0);
        config["rope_scaling"] = json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192,
        });
        config["rope_scaling"][field] = json!(value);
        let metadata = metadata_of(&config, 0).unwrap();
        let found = metadata
            .iter()
            .find(|(name, _)| name == "llama.rope.scaling.attn_factor");
        let Some((_, Value::F32(found))) = found else {
            panic!("{metadata:?}");
        };
        assert!((found - key as f32).abs() < 1e-6, "{field}: {found}");
        let tensors = [("token_embd.weight", &[30, 4][..], &[][..])];
        let read = config_of(&file(&metadata, &tensors));
        let again = read["rope_scaling"]["attn_factor"].as_f64().unwrap();
        assert!((again - key).abs() < 1e-6, "{read}");
        // As llama.cpp's converter names it.
        let mut theirs = metadata.clone();
        for (name, _) in &mut theirs {
            *name = name.replace("scaling.attn_factor", "scaling.yarn_attn_factor");
        }
        assert_eq!(config_of(&file(&theirs, &tensors)), read);
    }
}

#[test]
fn what_gguf_cannot_say_is_not_written() {
    let mut apart = published_v3();
    apart["rope_scaling"]["mscale"] = json!(0.5);
    let mut half_split = published_v3();
    half_split["rope_interleave"] = json!(false);
    let mut window = llama_3(8.0);
    window["use_sliding_window"] = json!(true);
    let mut sparse = llama_3(8.0);
    sparse["model_type"] = json!("qwen3_moe");
    sparse["norm_topk_prob"] = json!(true);
    sparse["mlp_only_layers"] = json!([1]);
    for (config, field) in [
        (apart, "mscale"),
        (half_split, "rope_interleave"),
        (window, "use_sliding_window"),
        (sparse, "mlp_only_layers"),
        (json!({ "model_type": "mamba" }), "model_type"),
        (json!({ "model_type": "llama" }), "num_hidden_layers"),
    ] {
        let error = metadata_of(&config, 0).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(field) && error.exit_code() == 2, "{text}");
    }
}

//! `config.json`: what is read, what is refused, what is counted.

use model::{Config, Error, WeightDtype};
use serde_json::{Value, json};

/// DeepSeek-V3 as published, without quantization, YaRN, expert groups and multi-token prediction.
fn deepseek_v3() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
        "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
        "n_group": 1, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_key_value_heads": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_nextn_predict_layers": 0, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 10000,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
        "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1", "use_cache": true, "vocab_size": 129280
    })
}

fn read(value: &Value) -> Result<Config, Error> {
    Config::from_json(&value.to_string())
}

fn with(field: &str, value: Value) -> Value {
    let mut config = deepseek_v3();
    config[field] = value;
    config
}

fn without(field: &str) -> Value {
    let mut config = deepseek_v3();
    config.as_object_mut().unwrap().remove(field);
    config
}

#[test]
fn deepseek_v3_has_the_published_number_of_parameters() {
    let config = read(&deepseek_v3()).unwrap();
    assert_eq!(config.ignored_keys, Vec::<String>::new());
    // The report says 671 B in all and 37 B active; these are the same sums to the last digit.
    assert_eq!(config.parameters_total(), 671_026_419_200);
    assert_eq!(config.parameters_active(), 37_552_297_472);
    let input_embedding = 129_280 * 7_168;
    assert_eq!(config.parameters_active() - input_embedding, 36_625_618_432);
}

#[test]
fn deepseek_v3_has_the_published_cache_and_training_cost() {
    let config = read(&deepseek_v3()).unwrap();
    // 70.272 KB per token in bf16: arXiv 2505.09343, Table 1.
    assert_eq!(2 * config.cache_elements_per_token(), 70_272);
    // 250 GFLOP per trained token at 4,096 causal, in the expanded form: same, Table 2. The
    // matmul part is ours, the attention part is added in the form that the table counts.
    let (heads, layers, mean_context) = (128.0, 61.0, 4097.0 / 2.0);
    let expanded = layers * heads * mean_context * 2.0 * (128.0 + 64.0 + 128.0);
    let training = 3.0 * (config.flops_per_token_forward(0.0) + expanded);
    assert!((training / 1e9 - 250.46).abs() < 0.01, "{training}");
    // The absorbed form: 576 multiply-adds for a score, 512 for a value, per head and key.
    let absorbed = config.flops_per_token_forward(10.0) - config.flops_per_token_forward(0.0);
    assert_eq!(absorbed, layers * heads * 10.0 * 2.0 * (576.0 + 512.0));
}

#[test]
fn what_is_written_reads_back_as_the_same_model() {
    for (field, value) in [
        ("vocab_size", json!(129280)),
        ("q_lora_rank", Value::Null),
        ("eos_token_id", json!([1, 2, 3])),
        ("rope_interleave", json!(false)),
    ] {
        let config = read(&with(field, value)).unwrap();
        let text = config.to_json(WeightDtype::Bf16);
        assert_eq!(Config::from_json(&text).unwrap(), config, "{field}");
        let written: Value = serde_json::from_str(&text).unwrap();
        for (key, expected) in deepseek_v3().as_object().unwrap() {
            let left_out = ["ep_size", "transformers_version", field];
            if !left_out.contains(&key.as_str()) {
                let (found, same) = (&written[key], written[key].as_f64() == expected.as_f64());
                assert!(
                    found == expected || expected.is_number() && same,
                    "{key}: {found}"
                );
            }
        }
    }
}

#[test]
fn a_dense_model_is_said_in_three_ways() {
    let too_many_dense = with("first_k_dense_replace", json!(61));
    for dense in [
        with("n_routed_experts", json!(0)),
        without("n_routed_experts"),
        too_many_dense,
    ] {
        let config = read(&dense).unwrap();
        assert_eq!(config.num_moe_layers(), 0);
        assert!((0..61).all(|layer| !config.is_moe_layer(layer)));
        assert_eq!(config.parameters_total(), config.parameters_active());
        assert_eq!(config.moe, None);
        // Transformers knows a dense layer by this field alone.
        let text = config.to_json(WeightDtype::F32);
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written["first_k_dense_replace"], 61);
        assert_eq!(Config::from_json(&text).unwrap().num_moe_layers(), 0);
    }
}

#[test]
fn rope_theta_is_read_from_either_place() {
    let mut moved = without("rope_theta");
    moved["rope_parameters"] = json!({"rope_theta": 50000.0, "rope_type": "default"});
    assert_eq!(read(&moved).unwrap().rope.theta, 50_000.0);
    assert_eq!(
        read(&with("rope_theta", json!(1e6))).unwrap().rope.theta,
        1e6
    );
    assert_eq!(read(&without("rope_theta")).unwrap().rope.theta, 10_000.0);
    moved["rope_theta"] = json!(10000);
    assert!(
        read(&moved)
            .unwrap_err()
            .to_string()
            .contains("contradicts")
    );
}

#[test]
fn unknown_keys_are_collected_and_known_harmless_ones_are_not() {
    let mut config = with("zeta_factor", json!(3));
    config["alpha_gate"] = json!("x");
    config["pretraining_tp"] = json!(1);
    config["nothing_set"] = Value::Null;
    assert_eq!(
        read(&config).unwrap().ignored_keys,
        ["alpha_gate", "zeta_factor"]
    );
}

/// Each of these must be refused with a message that names the field.
#[test]
fn bad_values_are_refused_by_name() {
    let cases = [
        ("num_hidden_layers", json!(-1)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_hidden_layers", json!(1e30)),
        ("num_hidden_layers", json!("61")),
        ("num_experts_per_tok", json!(257)),
        ("num_experts_per_tok", json!(0)),
        ("n_routed_experts", json!(-4)),
        ("n_routed_experts", json!(1)),
        ("n_routed_experts", json!(65_536)),
        ("n_shared_experts", json!(0)),
        ("moe_intermediate_size", json!(0)),
        ("routed_scaling_factor", json!(-1.0)),
        ("hidden_size", json!(4_194_305)),
        ("hidden_size", json!(7168.5)),
        ("qk_rope_head_dim", json!(63)),
        ("qk_rope_head_dim", json!(0)),
        ("q_lora_rank", json!(0)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-10000.0)),
        ("rope_theta", json!("NaN")),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(1e-300)),
        ("vocab_size", json!(0)),
        ("eos_token_id", json!(129_280)),
        ("eos_token_id", json!([1, -2])),
        ("bos_token_id", json!([1])),
        ("pad_token_id", json!(200_000)),
        ("model_type", json!("gpt2")),
        ("model_type", json!(3)),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("quantization_config", json!({"quant_method": "fp8"})),
        ("rope_scaling", json!({"type": "yarn"})),
        ("rope_scaling", json!({"type": "yarn", "factor": 0.5})),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "factor": 4}),
        ),
        ("n_group", json!(3)),
        ("n_group", json!(0)),
        ("topk_group", json!(4)),
        ("sliding_window", json!(4096)),
        ("layer_types", json!(["sliding_attention"])),
        ("num_nextn_predict_layers", json!(2)),
        ("num_mtp_layers", json!(1)),
        ("moe_layer_freq", json!(2)),
        ("scoring_func", json!("softmax")),
        ("topk_method", json!("greedy")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("attention_dropout", json!(0.1)),
        ("num_key_value_heads", json!(8)),
        ("torch_dtype", json!("float8_e4m3fn")),
        ("norm_topk_prob", json!(1)),
    ];
    for (field, value) in cases {
        let error = read(&with(field, value.clone())).expect_err(field);
        let text = error.to_string();
        assert!(
            text.contains(&format!("`{field}")),
            "{field} = {value}: {text}"
        );
        assert_eq!(error.exit_code(), 2, "no file is involved: {text}");
    }
}

#[test]
fn sizes_that_are_each_allowed_but_not_together_are_refused() {
    let mut largest = deepseek_v3();
    for field in [
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "kv_lora_rank",
    ] {
        largest[field] = json!(1 << 22);
    }
    let text = read(&largest).unwrap_err().to_string();
    assert!(text.contains("parameters"), "{text}");
    let mut many = with("n_routed_experts", json!(1 << 16));
    many["num_hidden_layers"] = json!(1 << 12);
    let text = read(&many).unwrap_err().to_string();
    assert!(text.contains("tensors"), "{text}");
}

#[test]
fn fields_that_give_a_shape_must_be_there() {
    for field in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "moe_intermediate_size",
        "n_shared_experts",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
        "routed_scaling_factor",
    ] {
        let text = read(&without(field)).expect_err(field).to_string();
        assert!(text.contains(&format!("`{field}`: absent")), "{text}");
    }
}

#[test]
fn text_that_is_not_a_json_object_is_refused() {
    let nan = deepseek_v3().to_string().replace(":10000,", ":NaN,");
    assert!(nan.contains("NaN"));
    let deep = "[".repeat(10_000);
    for text in [
        "",
        "{",
        "[]",
        "3",
        "{\"a\":1}{",
        nan.as_str(),
        deep.as_str(),
    ] {
        let error = Config::from_json(text).expect_err(text);
        assert!(error.to_string().len() < 400, "{error}");
    }
}

#[test]
fn a_file_is_named_in_the_error_and_gives_exit_code_3() {
    let dir = std::env::temp_dir().join(format!("bruchteil-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(
        dir.join("config.json"),
        with("hidden_size", json!(0)).to_string(),
    )
    .unwrap();
    let error = Config::read(&dir).unwrap_err();
    std::fs::write(dir.join("config.json"), deepseek_v3().to_string()).unwrap();
    let read_back = Config::read(&dir);
    std::fs::remove_dir_all(&dir).unwrap();
    let text = error.to_string();
    assert!(text.contains("config.json: `hidden_size`: 0"), "{text}");
    assert_eq!(error.exit_code(), 3);
    assert_eq!(read_back.unwrap().hidden_size, 7168);
    assert_eq!(
        Config::read(&dir).unwrap_err().exit_code(),
        3,
        "the folder is gone"
    );
}

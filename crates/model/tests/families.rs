//! `config.json` of every family as published: what is read from it, what is counted, and that it
//! survives being written.

use model::{Architecture, Attention, Config, DenseLayers, RopeScaling, TopkMethod, WeightDtype};
use serde_json::{Value, json};

fn read(value: &Value) -> Config {
    Config::from_json(&value.to_string()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

fn deepseek_v2_lite() -> Value {
    json!({
        "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 100000,
        "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 10944,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16,
        "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
        "pretraining_tp": 1, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 1.0,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
            "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"},
        "scoring_func": "softmax", "seq_aux": true, "tie_word_embeddings": false, "topk_group": 1,
        "topk_method": "greedy", "torch_dtype": "bfloat16", "use_cache": true,
        "v_head_dim": 128, "vocab_size": 102400
    })
}

fn qwen2_5_0_5b() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false,
        "vocab_size": 151936
    })
}

fn qwen3_0_6b() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
    })
}

fn qwen3_30b_a3b() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "bos_token_id": 151643,
        "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
        "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 151936
    })
}

fn llama_3_2_1b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256
    })
}

fn all() -> [Value; 5] {
    [
        deepseek_v2_lite(),
        qwen2_5_0_5b(),
        qwen3_0_6b(),
        qwen3_30b_a3b(),
        llama_3_2_1b(),
    ]
}

/// The numbers of elements in the published checkpoints.
#[test]
fn parameters_are_those_of_the_published_checkpoints() {
    for (config, total, active) in [
        (deepseek_v2_lite(), 15_706_484_224, 2.4e9..2.7e9),
        (qwen2_5_0_5b(), 494_032_768, 0.49e9..0.50e9),
        (qwen3_0_6b(), 596_049_920, 0.59e9..0.60e9),
        (qwen3_30b_a3b(), 30_532_122_624, 3.2e9..3.4e9),
        (llama_3_2_1b(), 1_235_814_400, 1.23e9..1.24e9),
    ] {
        let config = read(&config);
        assert_eq!(config.ignored_keys, Vec::<String>::new());
        assert_eq!(
            config.parameters_total(),
            total,
            "{:?}",
            config.architecture
        );
        let found = config.parameters_active() as f64;
        assert!(
            active.contains(&found),
            "{:?}: {found}",
            config.architecture
        );
    }
}

#[test]
fn what_is_written_reads_back_as_the_same_model() {
    for published in all() {
        let config = read(&published);
        let written = config.to_json(WeightDtype::Bf16);
        let again = Config::from_json(&written).unwrap();
        assert_eq!(again, config, "{written}");
    }
}

#[test]
fn each_family_is_read_with_what_it_leaves_unsaid() {
    let lite = read(&deepseek_v2_lite());
    let moe = lite.moe.as_ref().unwrap();
    assert_eq!(lite.architecture, Architecture::DeepseekV2);
    assert_eq!((moe.topk_method, moe.n_group), (TopkMethod::Greedy, 1));
    assert_eq!(moe.dense_layers, DenseLayers::First(1));
    assert_eq!(lite.attention.mla().q_lora_rank, None);
    assert!(lite.rope.interleave);
    // 0.1 x 0.707 ln 40 + 1, squared, over the root of 192.
    let scale = (1.0 + 0.0707 * 40f64.ln()).powi(2) / 192f64.sqrt();
    assert!((f64::from(lite.softmax_scale()) - scale).abs() < 1e-8);
    assert!((lite.rope_frequencies().factor - 1.0).abs() < 1e-12);

    let Attention::Gqa(qwen2) = read(&qwen2_5_0_5b()).attention else {
        panic!("grouped heads");
    };
    assert_eq!(
        (qwen2.head_dim, qwen2.qkv_bias, qwen2.o_bias),
        (64, true, false)
    );
    let Attention::Gqa(qwen3) = read(&qwen3_0_6b()).attention else {
        panic!("grouped heads");
    };
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!(qwen3.head_dim, 128);

    let mut sparse = qwen3_30b_a3b();
    sparse["decoder_sparse_step"] = json!(2);
    sparse["mlp_only_layers"] = json!([3]);
    let sparse = read(&sparse);
    let routed: Vec<usize> = (0..8).filter(|&i| sparse.is_moe_layer(i)).collect();
    assert_eq!(routed, [1, 5, 7]);

    let mut renamed = qwen3_30b_a3b();
    renamed["num_local_experts"] = renamed["num_experts"].take();
    assert_eq!(read(&renamed), read(&qwen3_30b_a3b()));

    let llama = read(&llama_3_2_1b());
    assert!(matches!(llama.rope.scaling, RopeScaling::Llama3(_)));
    assert!(!llama.rope.interleave);
}

/// DeepSeek-R1 as published: FP8, YaRN, groups of experts and multi-token prediction.
#[test]
fn deepseek_r1_is_read_as_published() {
    let r1: Value = serde_json::from_str(
        r#"{"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false,
"attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_deepseek.X"},
"bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
"hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
"intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
"model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1,
"n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
"num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
"num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6,
"quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
    "quant_method": "fp8", "weight_block_size": [128, 128]},
"rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
"rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
"tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
"torch_dtype": "bfloat16", "transformers_version": "4.46.3", "use_cache": true,
"v_head_dim": 128, "vocab_size": 129280}"#,
    )
    .unwrap();
    let config = read(&r1);
    assert_eq!(config.ignored_keys, Vec::<String>::new());
    assert_eq!(
        config.fp8.map(|fp8| (fp8.block, fp8.ue8m0)),
        Some(([128, 128], false))
    );
    assert_eq!(config.num_moe_layers(), 59);
    // The main model's 671 B and the 11.5 B of the extra layer, embedding and head not repeated
    // (README_WEIGHTS.md of DeepSeek-V3).
    let extra = config.parameters_total() - 671_026_419_200;
    assert!((11.4e9..11.7e9).contains(&(extra as f64)), "{extra}");
    let written = config.to_json(WeightDtype::Fp8);
    assert_eq!(Config::from_json(&written).unwrap(), config);
}

#[test]
fn what_would_compute_something_else_is_refused_by_name() {
    for (config, field, value) in [
        (qwen2_5_0_5b(), "use_sliding_window", json!(true)),
        (
            qwen3_0_6b(),
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        (llama_3_2_1b(), "mlp_bias", json!(true)),
        (llama_3_2_1b(), "hidden_act", json!("gelu")),
        (llama_3_2_1b(), "num_key_value_heads", json!(5)),
        (llama_3_2_1b(), "head_dim", json!(63)),
        (qwen3_30b_a3b(), "num_experts", json!(0)),
        (qwen3_30b_a3b(), "num_experts_per_tok", json!(129)),
        (deepseek_v2_lite(), "norm_topk_prob", json!("yes")),
        (deepseek_v2_lite(), "scoring_func", json!("sigmoid")),
        (deepseek_v2_lite(), "num_nextn_predict_layers", json!(1)),
        (deepseek_v2_lite(), "attention_bias", json!(true)),
    ] {
        let mut config = config;
        config[field] = value.clone();
        let error = Config::from_json(&config.to_string())
            .expect_err(field)
            .to_string();
        assert!(
            error.contains(&format!("`{field}")),
            "{field} = {value}: {error}"
        );
    }
    let mut unclear = deepseek_v2_lite();
    unclear["norm_topk_prob"] = json!(true);
    assert!(Config::from_json(&unclear.to_string()).is_ok());
    unclear["routed_scaling_factor"] = json!(16.0);
    let error = Config::from_json(&unclear.to_string())
        .unwrap_err()
        .to_string();
    assert!(error.contains("`norm_topk_prob`"), "{error}");
}

/// What transformers does with spellings that are met in the field.
#[test]
fn spellings_of_rope_are_read_as_transformers_reads_them() {
    let yarn = |config: &Value| match read(config).rope.scaling {
        RopeScaling::Yarn(yarn) => yarn,
        other => panic!("{other:?}"),
    };
    let mut qwen = qwen2_5_0_5b();
    qwen["rope_scaling"] = json!({"type": "yarn", "factor": 4.0});
    // Nothing inside: the model's own positions; and the field beside it comes first.
    assert_eq!(yarn(&qwen).original_max_position_embeddings, 32_768);
    qwen["rope_scaling"]["original_max_position_embeddings"] = json!(8192);
    assert_eq!(yarn(&qwen).original_max_position_embeddings, 8192);
    qwen["original_max_position_embeddings"] = json!(4096);
    assert_eq!(yarn(&qwen).original_max_position_embeddings, 4096);
    let mut llama = llama_3_2_1b();
    llama
        .as_object_mut()
        .unwrap()
        .remove("max_position_embeddings");
    assert_eq!(read(&llama).max_position_embeddings, 2048);

    for (field, value) in [
        (
            "rope_parameters",
            json!({"full_attention": {"rope_type": "yarn", "factor": 4.0}}),
        ),
        ("final_logit_softcapping", json!(30.0)),
        ("scale_emb", json!(12)),
    ] {
        let mut config = qwen2_5_0_5b();
        config[field] = value;
        assert!(Config::from_json(&config.to_string()).is_err(), "{field}");
    }
    let mut linear = deepseek_v2_lite();
    linear["rope_scaling"] = json!({"type": "linear", "factor": 4.0, "mscale_all_dim": 1.0});
    assert!(Config::from_json(&linear.to_string()).is_err());
    // A window that no layer reaches, and a padding token that is none.
    let mut windowless = qwen2_5_0_5b();
    windowless["use_sliding_window"] = json!(true);
    windowless["max_window_layers"] = json!(24);
    windowless["pad_token_id"] = json!(-1);
    assert_eq!(read(&windowless).pad_token_id, None);
    // Null is false, as in Python.
    let mut null = qwen3_30b_a3b();
    null["norm_topk_prob"] = Value::Null;
    assert!(!read(&null).moe.unwrap().norm_topk_prob);
}

/// What GGUF cannot say is refused by the name of the field rather than left out.
#[test]
fn what_gguf_cannot_say_is_refused() {
    let with = |mut config: Value, field: &str, value: Value| {
        config["rope_scaling"][field] = value;
        config
    };
    assert!(model::gguf::metadata_of(&deepseek_v2_lite(), 0).is_ok());
    let llama3 = llama_3_2_1b()["rope_scaling"].clone();
    let mut foreign = deepseek_v2_lite();
    foreign["rope_scaling"] = llama3;
    for config in [
        foreign,
        with(deepseek_v2_lite(), "truncate", json!(false)),
        with(deepseek_v2_lite(), "mscale_all_dim", json!(0.0)),
    ] {
        let error = model::gguf::metadata_of(&config, 0);
        assert!(error.is_err(), "{}", config["rope_scaling"]);
    }
    assert!(model::gguf::rope_freqs(&llama_3_2_1b()).unwrap().is_some());
    for (field, value) in [
        ("low_freq_factor", 2.0),
        ("high_freq_factor", 8.0),
        ("original_max_position_embeddings", 3000.0),
    ] {
        let config = with(llama_3_2_1b(), field, json!(value));
        assert!(model::gguf::rope_freqs(&config).is_err(), "{field}");
    }
}

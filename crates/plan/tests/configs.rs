//! Files of all kinds: what they leave unsaid, what is refused and by which name, and that none
//! can make the reader panic.

use plan::config::shape_from_json;
use plan::error::Error;
use plan::preset;
use plan::shape::{Attention, CacheWidth, Shape};
use serde_json::{Map, Value, json};

fn shape(value: &Value) -> Shape {
    shape_from_json(&value.to_string()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

fn total(value: &Value) -> u64 {
    shape(value).parameters().total()
}

fn with(base: &Value, changes: Value) -> Value {
    let mut changed = base.clone();
    for (key, value) in changes.as_object().expect("an object") {
        changed[key] = value.clone();
    }
    changed
}

fn without(base: &Value, key: &str) -> Value {
    let mut changed = base.clone();
    changed.as_object_mut().expect("an object").remove(key);
    changed
}

fn llama() -> Value {
    json!({"model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 128})
}

fn v3() -> Value {
    json!({"model_type": "deepseek_v3", "vocab_size": 1000, "hidden_size": 64,
        "intermediate_size": 96, "moe_intermediate_size": 16, "num_hidden_layers": 4,
        "num_attention_heads": 8, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
        "v_head_dim": 8, "routed_scaling_factor": 2.5, "max_position_embeddings": 128})
}

fn mixtral() -> Value {
    json!({"model_type": "mixtral", "vocab_size": 1000, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2})
}

fn opt() -> Value {
    json!({"model_type": "opt", "vocab_size": 1000, "hidden_size": 64, "ffn_dim": 256,
        "num_hidden_layers": 4, "num_attention_heads": 8, "max_position_embeddings": 128})
}

fn mpt() -> Value {
    json!({"model_type": "mpt", "vocab_size": 1000, "d_model": 64, "n_layers": 4, "n_heads": 8,
        "max_seq_len": 128, "no_bias": true, "attn_config": {"alibi": true}})
}

/// What cannot run here can be counted: these change nothing, or add what their formula says.
#[test]
fn what_does_not_run_is_counted_all_the_same() {
    let (llama, v3) = (llama(), v3());
    for changes in [
        json!({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}}),
        json!({"hidden_act": "gelu"}),
        json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        json!({"torch_dtype": "float8"}),
        json!({"final_logit_softcapping": 30.0}),
    ] {
        assert_eq!(
            shape(&with(&llama, changes.clone())),
            shape(&llama),
            "{changes}"
        );
    }
    // Biases of queries (64), keys and values (16 each), output (64); of gate, up (96) and down.
    let biased = with(&llama, json!({"attention_bias": true, "mlp_bias": true}));
    let biases = 4 * (64 + 2 * 16 + 64 + 2 * 96 + 64);
    assert_eq!(total(&biased), total(&llama) + biases);
    let windowed = with(
        &llama,
        json!({"model_type": "qwen2", "use_sliding_window": true,
        "sliding_window": 32, "max_window_layers": 3}),
    );
    let shape = shape(&windowed);
    let keys = |layer| shape.layer(layer).attention.keys_met(1000.0);
    assert_eq!([keys(2), keys(3)], [1000.0, 32.0]);
    assert_eq!(shape.blocks.len(), 2);
    // More experts than `model` makes tensors for.
    let huge = with(
        &v3,
        json!({"n_routed_experts": 4096, "num_hidden_layers": 90}),
    );
    let more = 89 * (4096 * (3 * 64 * 16) + 4096 * 64 + 4096);
    let none = with(&v3, json!({"n_routed_experts": 2, "num_hidden_layers": 90}));
    let few = 89 * (2 * (3 * 64 * 16) + 2 * 64 + 2);
    assert_eq!(total(&huge) - total(&none), more - few);
}

#[test]
fn an_indexer_adds_its_matrices_and_its_cache() {
    let indexed = with(
        &v3(),
        json!({"model_type": "deepseek_v32", "index_n_heads": 4,
        "index_head_dim": 8, "index_topk": 32}),
    );
    let (plain, sparse) = (shape(&v3()), shape(&indexed));
    let per_layer = 24 * 4 * 8 + 64 * 8 + 64 * 4 + 2 * 8;
    assert_eq!(total(&indexed), total(&v3()) + 4 * per_layer);
    let cache = |shape: &Shape| shape.cache_bytes_per_token(CacheWidth(1.0)).0;
    assert_eq!(cache(&sparse), cache(&plain) + 4.0 * 8.0);
    assert_eq!(sparse.layer(0).attention.keys_met(1000.0), 32.0);
}

#[test]
fn language_models_inside_others_are_found() {
    for name in ["text_config", "llm_config", "language_config"] {
        let mut outer = json!({"model_type": "some_vl", "vision_config": {"hidden_size": 3}});
        outer[name] = llama();
        assert_eq!(shape(&outer), shape(&llama()), "{name}");
        outer["tie_word_embeddings"] = json!(true);
        assert!(shape(&outer).tie_word_embeddings);
        outer[name]["tie_word_embeddings"] = json!(false);
        assert!(!shape(&outer).tie_word_embeddings);
    }
    let twice = json!({"thinker_config": {"text_config": llama()}});
    assert_eq!(shape(&twice), shape(&llama()));
}

#[test]
fn families_of_gpt_by_their_formulas() {
    // 12 h^2 + 13 h a layer, and the embedding once (GPT-2); OPT's positions begin at 2.
    let (h, layers) = (64, 4);
    let body = layers * (12 * h * h + 13 * h) + 2 * h + 1000 * h;
    assert_eq!(total(&opt()), body + 130 * h);
    let gpt2 = json!({"model_type": "gpt2", "vocab_size": 1000, "n_embd": 64, "n_layer": 4,
        "n_head": 8, "n_inner": null, "n_positions": 128});
    assert_eq!(total(&gpt2), body + 128 * h);
    let bloom = json!({"model_type": "bloom", "vocab_size": 1000, "n_embed": 64, "n_layer": 4,
        "num_attention_heads": 8});
    assert_eq!(total(&bloom), body + 2 * h);
    // One head of keys and values where there were eight.
    let bigcode = with(&gpt2, json!({"model_type": "gpt_bigcode"}));
    assert_eq!(total(&bigcode), body + 128 * h - layers * 2 * (h * 56 + 56));
    // No biases, two norms a layer and one behind them, no positions.
    assert_eq!(total(&mpt()), layers * (12 * h * h + 2 * h) + h + 1000 * h);
    let learned = with(&mpt(), json!({"attn_config": {"alibi": false}}));
    assert_eq!(total(&learned), total(&mpt()) + 128 * h);
    let one_head = json!({"attn_config": {"attn_type": "multiquery_attention"}});
    let keys = layers * 2 * h * 56;
    assert_eq!(total(&with(&mpt(), one_head)), total(&mpt()) - keys);
    // Falcon-7B: one norm a layer, one head of keys and values, whatever num_kv_heads says.
    let falcon = json!({"model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544,
        "num_hidden_layers": 32, "num_attention_heads": 71, "num_kv_heads": 71,
        "multi_query": true, "parallel_attn": true, "new_decoder_architecture": false,
        "bias": false, "alibi": false});
    assert_eq!(total(&falcon), 6_921_720_704);
}

#[test]
fn bad_input_is_refused_by_the_name_of_its_field() {
    let (l, d, m) = (llama(), v3(), mixtral());
    let cases = [
        (without(&l, "model_type"), "model_type"),
        (with(&l, json!({"model_type": "lama"})), "model_type"),
        (with(&l, json!({"model_type": 3})), "model_type"),
        (without(&l, "hidden_size"), "hidden_size"),
        (with(&l, json!({"hidden_size": 0})), "hidden_size"),
        (with(&l, json!({"hidden_size": -64})), "hidden_size"),
        (with(&l, json!({"hidden_size": "64"})), "hidden_size"),
        (with(&l, json!({"hidden_size": 64.5})), "hidden_size"),
        (
            with(&l, json!({"hidden_size": 1_000_000_000_000_000_000u64})),
            "hidden_size",
        ),
        (with(&l, json!({"hidden_size": 1e300})), "hidden_size"),
        (with(&l, json!({"vocab_size": 1u64 << 40})), "vocab_size"),
        (
            with(&l, json!({"num_hidden_layers": 1 << 30})),
            "num_hidden_layers",
        ),
        (
            with(&l, json!({"num_hidden_layers": []})),
            "num_hidden_layers",
        ),
        (
            with(&l, json!({"num_attention_heads": 7})),
            "num_key_value_heads",
        ),
        (
            with(&l, json!({"num_attention_heads": 0})),
            "num_attention_heads",
        ),
        (
            with(&l, json!({"num_key_value_heads": 3})),
            "num_key_value_heads",
        ),
        (
            with(&l, json!({"num_key_value_heads": 16})),
            "num_key_value_heads",
        ),
        (with(&l, json!({"head_dim": 0})), "head_dim"),
        (
            with(&l, json!({"tie_word_embeddings": "no"})),
            "tie_word_embeddings",
        ),
        (
            with(&l, json!({"layer_types": ["sliding_attention"]})),
            "layer_types",
        ),
        (
            with(&l, json!({"layer_types": vec!["ssm"; 4]})),
            "layer_types",
        ),
        (
            with(&l, json!({"layer_types": vec!["sliding_attention"; 4]})),
            "sliding_window",
        ),
        (
            with(&l, json!({"is_encoder_decoder": true})),
            "is_encoder_decoder",
        ),
        (
            with(&d, json!({"num_experts_per_tok": 9})),
            "num_experts_per_tok",
        ),
        (
            with(&d, json!({"num_experts_per_tok": 0})),
            "num_experts_per_tok",
        ),
        (with(&d, json!({"n_group": 9})), "n_group"),
        (with(&d, json!({"topk_group": 2})), "topk_group"),
        (with(&m, json!({"num_experts": 9})), "num_local_experts"),
        (with(&d, json!({"attention_bias": true})), "attention_bias"),
        (without(&d, "q_lora_rank"), "q_lora_rank"),
        (without(&d, "kv_lora_rank"), "kv_lora_rank"),
        (
            without(&d, "moe_intermediate_size"),
            "moe_intermediate_size",
        ),
        (with(&d, json!({"index_topk": 8})), "index_n_heads"),
        (
            with(&d, json!({"num_nextn_predict_layers": 1000})),
            "num_nextn_predict_layers",
        ),
        (without(&m, "num_local_experts"), "n_routed_experts"),
        (
            with(&m, json!({"num_local_experts": 0})),
            "num_local_experts",
        ),
        (
            with(&m, json!({"num_experts_per_tok": 9})),
            "num_experts_per_tok",
        ),
        (with(&m, json!({"sliding_window": "all"})), "sliding_window"),
        (
            with(&opt(), json!({"word_embed_proj_dim": 32})),
            "word_embed_proj_dim",
        ),
        (
            without(&opt(), "max_position_embeddings"),
            "max_position_embeddings",
        ),
        (with(&mpt(), json!({"attn_config": 3})), "attn_config"),
        (
            with(&mpt(), json!({"attn_config": {"attn_type": "x"}})),
            "attn_config.attn_type",
        ),
        (
            with(&mpt(), json!({"expansion_ratio": 0})),
            "expansion_ratio",
        ),
        (with(&mpt(), json!({"n_heads": 7})), "num_attention_heads"),
        (json!({"text_config": 3}), "text_config"),
        (json!({"text_config": {}}), "text_config.model_type"),
        (
            json!({"text_config": without(&l, "vocab_size")}),
            "text_config.vocab_size",
        ),
        (json!([]), "config.json"),
    ];
    for (value, expected) in cases {
        match shape_from_json(&value.to_string()) {
            Err(Error::Config { field, message }) => {
                assert_eq!(field, expected, "{message}: {value}");
                assert!(!message.is_empty() && message.len() < 800, "{message}");
            }
            other => panic!("{other:?} of {value}"),
        }
    }
    assert!(matches!(shape_from_json("{"), Err(Error::Config { .. })));
}

#[test]
fn errors_say_the_value_and_what_is_allowed() {
    let message = |value: Value| shape_from_json(&value.to_string()).unwrap_err().to_string();
    let unknown = message(with(&llama(), json!({"model_type": "qwen4"})));
    assert!(
        unknown.contains("\"qwen4\" is not known; qwen2, qwen3, "),
        "{unknown}"
    );
    assert!(unknown.contains("deepseek_v32"), "{unknown}");
    let zero = message(with(&llama(), json!({"vocab_size": 0})));
    assert_eq!(zero, "vocab_size: 0 is not a whole number in 1..=16777216");
    let odd = message(with(&llama(), json!({"num_key_value_heads": 3})));
    assert_eq!(
        odd,
        "num_key_value_heads: 3 does not divide num_attention_heads, 8"
    );
    let long = message(with(&llama(), json!({"model_type": "x".repeat(1 << 20)})));
    assert!(long.len() < 800, "{}", long.len());
}

/// Every field in its range, and still more than 64 bits hold.
#[test]
fn sizes_that_only_together_are_absurd_are_refused() {
    let most = json!({"vocab_size": 1 << 24, "hidden_size": 1 << 22,
        "intermediate_size": 1 << 22, "moe_intermediate_size": 1 << 22,
        "num_hidden_layers": 1 << 12, "num_attention_heads": 1 << 14,
        "num_key_value_heads": 1 << 14, "head_dim": 1 << 22, "n_routed_experts": 1 << 16,
        "num_experts_per_tok": 1 << 16, "n_shared_experts": 1 << 10, "q_lora_rank": 1 << 22,
        "kv_lora_rank": 1 << 22, "qk_nope_head_dim": 1 << 22, "qk_rope_head_dim": 1 << 22,
        "v_head_dim": 1 << 22, "index_n_heads": 1 << 14, "index_head_dim": 1 << 22,
        "index_topk": 1u64 << 31, "num_nextn_predict_layers": 1,
        "intermediate_size_mlp": 1 << 22, "max_position_embeddings": 1u64 << 31,
        "attn_type_list": vec![0; 1 << 12], "expansion_ratio": 1024, "use_qk_norm": true,
        "attention_bias": false, "shared_expert_intermediate_size": 1 << 22});
    let unknown = shape_from_json(r#"{"model_type": "?"}"#)
        .unwrap_err()
        .to_string();
    let list = unknown.split("; ").nth(1).expect("the known types");
    let types: Vec<&str> = list.trim_end_matches(" are").split(", ").collect();
    assert!(types.len() > 30, "{unknown}");
    for model_type in types {
        let config = with(&most, json!({"model_type": model_type}));
        match shape_from_json(&config.to_string()) {
            Err(Error::Config { field, .. }) => assert_eq!(field, "hidden_size", "{model_type}"),
            other => panic!("{model_type}: {other:?}"),
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn value(&mut self) -> Value {
        match self.below(14) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(0),
            3 => json!(1),
            4 => json!(-1),
            5 => json!(u64::MAX),
            6 => json!(1e18),
            7 => json!(0.5),
            8 => json!("sliding_attention"),
            9 => json!([]),
            10 => json!({"model_type": "llama"}),
            11 => json!(vec![self.below(3); self.below(70)]),
            12 => json!(1u64 << self.below(40)),
            _ => json!(self.below(300)),
        }
    }

    fn mutate(&mut self, config: &mut Map<String, Value>, keys: &[String]) {
        let key = keys[self.below(keys.len())].clone();
        match self.below(8) {
            0 => {
                config.remove(&key);
            }
            1 => {
                let other = keys[self.below(keys.len())].clone();
                if let Some(value) = config.get(&other).cloned() {
                    config.insert(key, value);
                }
            }
            2 => {
                let inner = Value::Object(config.clone());
                config.insert("text_config".to_string(), inner);
            }
            _ => {
                let value = self.value();
                config.insert(key, value);
            }
        }
    }
}

/// The files of presets as they are.
fn entries() -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/presets");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of presets")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let mut entries = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a text");
        let file: Value = toml::from_str(&text).expect("TOML");
        entries.extend(file["model"].as_array().expect("models").clone());
    }
    assert_eq!(
        entries.len(),
        preset::all().len(),
        "a file that is not read"
    );
    entries
}

/// Their configurations.
fn published() -> Vec<Map<String, Value>> {
    let entries = entries();
    let configs = entries.iter().map(|model| model["config"].as_object());
    configs
        .map(|config| config.expect("a table").clone())
        .collect()
}

/// With what running asks for and counting does not, `model` reads its families' presets, and
/// counts the same.
#[test]
fn presets_of_families_that_run_count_as_their_models_do() {
    let mut compared = 0;
    for (mut config, preset) in published().into_iter().zip(by_file()) {
        if config.get("q_lora_rank") == Some(&json!(0)) {
            config.insert("q_lora_rank".to_string(), Value::Null);
        }
        config.insert("routed_scaling_factor".to_string(), json!(1.0));
        let Ok(config) = model::Config::from_json(&Value::Object(config).to_string()) else {
            continue;
        };
        let shape = Shape::from(&config);
        assert_eq!(shape, preset.shape, "{}", preset.name);
        let parts = shape.parameters();
        let total = parts.total() + parts.multi_token_prediction;
        assert_eq!(total, config.parameters_total(), "{}", preset.name);
        let active = shape.active_parameters().total();
        assert_eq!(active, config.parameters_active(), "{}", preset.name);
        compared += 1;
    }
    // Llama 19, Qwen 16, DeepSeek 6 and Kimi.
    assert_eq!(compared, 42);
}

/// Presets in the order of [`published`].
fn by_file() -> Vec<&'static preset::Preset> {
    let named = |model: &Value| {
        let name = model["name"].as_str().expect("a name");
        preset::find(name).unwrap_or_else(|error| panic!("{error}"))
    };
    entries().iter().map(named).collect()
}

/// Whatever is read can be counted with; whatever is not is an error with a field.
#[test]
fn random_changes_make_errors_and_no_panics() {
    let seed = 20_250_127;
    println!("seed {seed}");
    let mut random = Random(seed);
    let configs = published();
    let mut keys: Vec<String> = configs.iter().flat_map(|c| c.keys().cloned()).collect();
    keys.sort();
    keys.dedup();
    let (mut read, mut refused) = (0, 0);
    for _ in 0..40_000 {
        let mut config = configs[random.below(configs.len())].clone();
        for _ in 0..=random.below(4) {
            random.mutate(&mut config, &keys);
        }
        let text = Value::Object(config).to_string();
        match shape_from_json(&text) {
            Ok(shape) => {
                read += 1;
                count_all(&shape, &text);
            }
            Err(Error::Config { field, message }) => {
                refused += 1;
                assert!(!field.is_empty() && !message.is_empty(), "{text}");
                assert!(message.len() < 800, "{message}");
            }
            Err(other) => panic!("{other}: {text}"),
        }
    }
    assert!(
        read > 4000 && refused > 4000,
        "{read} read, {refused} refused"
    );
}

fn count_all(shape: &Shape, text: &str) {
    let (all, active) = (shape.parameters(), shape.active_parameters());
    assert!(active.total() <= all.total(), "{text}");
    assert!(
        all.total() + all.multi_token_prediction <= 1 << 50,
        "{text}"
    );
    let flops = shape.training_flops(4096, true, true).0;
    assert!(flops.is_finite() && flops > 0.0, "{text}");
    assert!(shape.cache_bytes_per_token(CacheWidth(2.0)).0 >= 0.0);
    let layers: u64 = shape.blocks.iter().map(|blocks| blocks.count).sum();
    assert_eq!(layers, shape.num_layers());
    if let Attention::Grouped(grouped) = &shape.last_layer().attention {
        assert_eq!(grouped.num_heads % grouped.num_kv_heads, 0, "{text}");
    }
}

/// A file cut off anywhere, or with bytes exchanged, is an error or a model.
#[test]
fn damaged_texts_do_not_panic() {
    let seed = 671;
    println!("seed {seed}");
    let mut random = Random(seed);
    for config in published() {
        let text = Value::Object(config).to_string();
        for _ in 0..20 {
            let end = random.below(text.len());
            assert!(shape_from_json(&text[..end]).is_err());
            let mut bytes = text.clone().into_bytes();
            let at = random.below(bytes.len());
            bytes[at] = b"0123456789{}[]\",:-eE."[random.below(21)];
            if let Ok(damaged) = String::from_utf8(bytes)
                && let Ok(shape) = shape_from_json(&damaged)
            {
                count_all(&shape, &damaged);
            }
        }
    }
}

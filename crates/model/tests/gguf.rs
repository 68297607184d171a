//! GGUF against llama.cpp's own Python package (`golden/gguf_blocks.py`), and against itself.

use std::path::{Path, PathBuf};

use model::gguf::{
    Array, GgmlType, Gguf, GgufName, GgufTokenizer, GgufWriter, HfName, HfTensors, TensorPlan,
    Value, dequantize, export_plan, gguf_name, hf_name, quantize,
};
use serde_json::json;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/gguf")
        .join(name)
}

fn open_blocks() -> Gguf {
    Gguf::open(&golden("blocks.gguf")).unwrap()
}

fn stored(gguf: &Gguf, name: &str) -> Vec<u8> {
    let number = gguf.find(name).unwrap();
    let mut bytes = vec![0; gguf.tensors[number].bytes as usize];
    gguf.read_bytes(number, 0, &mut bytes).unwrap();
    bytes
}

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let number = gguf.find(name).unwrap();
    let tensor = &gguf.tensors[number];
    let mut out = vec![0.0; tensor.rows() * tensor.row_len()];
    gguf.read_rows_f32(number, 0..tensor.rows(), &mut out)
        .unwrap();
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_block_type_widens_as_llama_cpp_widens_it() {
    let gguf = open_blocks();
    for kind in [
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2K,
        GgmlType::Q3K,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
    ] {
        let name = format!("stored.{}", kind.name());
        assert_eq!(gguf.tensors[gguf.find(&name).unwrap()].kind, kind);
        let want = values(&gguf, &format!("want.{}", kind.name()));
        assert!(want.iter().any(|value| value.abs() > 1000.0), "{name}");
        assert_eq!(bits(&values(&gguf, &name)), bits(&want), "{name}");
        // One row alone is the row of the whole.
        let mut row = vec![0.0; kind.block_len()];
        gguf.read_rows_f32(gguf.find(&name).unwrap(), 2..3, &mut row)
            .unwrap();
        assert_eq!(bits(&row), bits(&want[2 * row.len()..3 * row.len()]));
    }
}

#[test]
fn values_narrow_as_llama_cpp_narrows_them() {
    let gguf = open_blocks();
    let input = values(&gguf, "values");
    for kind in [
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q8_0,
        GgmlType::Q4_0,
    ] {
        let mut ours = Vec::new();
        quantize(kind, &input, &mut ours).unwrap();
        let theirs = stored(&gguf, &format!("narrowed.{}", kind.name()));
        assert_eq!(ours, theirs, "{}", kind.name());
    }
}

#[test]
fn a_value_that_the_type_cannot_hold_is_refused() {
    for (kind, value) in [
        (GgmlType::Q8_0, f32::NAN),
        (GgmlType::Q4_0, f32::INFINITY),
        (GgmlType::Q8_0, 1e8),
        (GgmlType::F16, 65520.0),
    ] {
        let mut block = vec![1.0; 32];
        block[31] = value;
        let error = quantize(kind, &block, &mut Vec::new()).unwrap_err();
        assert!(error.contains("F16") || error.contains("scale"), "{error}");
    }
    for kind in [GgmlType::F32, GgmlType::BF16, GgmlType::F16] {
        let mut out = Vec::new();
        quantize(kind, &[f32::NAN, f32::NEG_INFINITY], &mut out).unwrap();
        let mut back = [0.0; 2];
        dequantize(kind, &out, &mut back);
        assert!(back[0].is_nan() && back[1] == f32::NEG_INFINITY);
    }
}

#[test]
fn metadata_of_every_type_is_read_as_the_python_writer_wrote_it() {
    let gguf = open_blocks();
    for (key, value) in [
        ("uint8", Value::U8(200)),
        ("int8", Value::I8(-100)),
        ("uint16", Value::U16(60_000)),
        ("int16", Value::I16(-30_000)),
        ("uint32", Value::U32(4_000_000_000)),
        ("int32", Value::I32(-2_000_000_000)),
        ("float32", Value::F32(0.1)),
        ("uint64", Value::U64((1 << 63) + 1)),
        ("int64", Value::I64(-(1 << 62))),
        ("float64", Value::F64(0.1)),
        ("bool", Value::Bool(true)),
        ("string", Value::Str("Bruchteil ½".to_string())),
        ("integers", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("floats", Value::Array(Array::F32(vec![0.5, -0.25]))),
        ("bools", Value::Array(Array::Bool(vec![true, false]))),
    ] {
        assert_eq!(gguf.metadata[&format!("test.{key}")], value);
    }
    let strings = gguf.strings("test.strings").unwrap().unwrap();
    assert_eq!(strings, ["a", "", "<｜User｜>"]);
    assert_eq!(gguf.u32("test.uint8").unwrap(), Some(200));
    assert_eq!(gguf.u32("test.absent").unwrap(), None);
    assert_eq!(gguf.integers("test.integers").unwrap().unwrap()[1], -2);
    assert_eq!(gguf.architecture().unwrap(), "llama");
    // Confusions of types name the key, and what it holds.
    for (error, word) in [
        (gguf.u32("test.int8").unwrap_err(), "-100"),
        (gguf.u32("test.float32").unwrap_err(), "f32"),
        (gguf.f32("test.uint8").unwrap_err(), "200"),
        (gguf.floats("test.integers").unwrap_err(), "array of i32"),
        (gguf.strings("test.string").unwrap_err(), "string"),
        (gguf.bool("test.uint8").unwrap_err(), "200"),
    ] {
        let text = error.to_string();
        assert!(
            text.contains("blocks.gguf") && text.contains("test."),
            "{text}"
        );
        assert!(text.contains(word), "no {word} in {text}");
    }
}

type Metadata = Vec<(String, Value)>;
type Tensors = Vec<(TensorPlan, Vec<f32>)>;

/// Every type of value, and tensors of several types and ranks, padded and not.
fn small_file() -> (Metadata, Tensors) {
    let nested = Array::Nested(vec![Array::U8(vec![1, 2]), Array::Str(vec!["x".into()])]);
    let metadata = vec![
        (
            "general.architecture".to_string(),
            Value::Str("llama".into()),
        ),
        ("z".to_string(), Value::U64(u64::MAX)),
        ("a".to_string(), Value::Array(nested)),
        ("e".to_string(), Value::Array(Array::F64(vec![]))),
        ("b".to_string(), Value::Array(Array::I16(vec![-1, 7]))),
        ("f".to_string(), Value::F64(-0.0)),
    ];
    let tensors = [
        ("odd", vec![3, 5], GgmlType::F32),
        ("half", vec![7], GgmlType::F16),
        ("brain", vec![2, 3, 4], GgmlType::BF16),
        ("eight", vec![2, 3, 64], GgmlType::Q8_0),
        ("four", vec![1, 32], GgmlType::Q4_0),
    ];
    let tensors = tensors.into_iter().map(|(name, shape, kind)| {
        let count = shape.iter().product();
        let name = name.to_string();
        let values = (0..count).map(|idx: usize| (idx * 7 % 16) as f32 - 8.0);
        (TensorPlan { name, shape, kind }, values.collect())
    });
    (metadata, tensors.collect())
}

fn write(metadata: &[(String, Value)], tensors: &[(TensorPlan, Vec<f32>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let plans = tensors.iter().map(|(plan, _)| plan.clone()).collect();
    let mut writer = GgufWriter::new(&mut bytes, Path::new("out.gguf"), metadata, plans).unwrap();
    for (plan, values) in tensors {
        // In two pieces where there are two blocks.
        let cut = values.len() / 2 / plan.kind.block_len() * plan.kind.block_len();
        writer.write_f32(&values[..cut]).unwrap();
        writer.write_f32(&values[cut..]).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_again() {
    let (metadata, tensors) = small_file();
    let bytes = write(&metadata, &tensors);
    assert_eq!(bytes, write(&metadata, &tensors));
    let path = std::env::temp_dir().join(format!("bruchteil-gguf-{}.gguf", std::process::id()));
    std::fs::write(&path, &bytes).unwrap();
    let from_file = Gguf::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    for gguf in [from_file, Gguf::from_bytes(bytes, Path::new("x")).unwrap()] {
        assert_eq!(gguf.metadata, metadata.iter().cloned().collect());
        assert_eq!(gguf.tensors.len(), tensors.len());
        for (read, (plan, want)) in gguf.tensors.iter().zip(&tensors) {
            assert_eq!((&read.name, &read.shape), (&plan.name, &plan.shape));
            assert_eq!(read.kind, plan.kind);
            assert!(read.offset.is_multiple_of(32));
            let found = values(&gguf, &plan.name);
            // The values are integers from -8 to 7: a scale of 8/127 alone rounds them.
            let within = if plan.kind == GgmlType::Q8_0 {
                0.04
            } else {
                0.0
            };
            for (found, want) in found.iter().zip(want) {
                assert!(
                    (found - want).abs() <= within,
                    "{}: {found}, {want}",
                    plan.name
                );
            }
        }
    }
}

#[test]
fn names_are_those_of_the_python_package() {
    let text = std::fs::read_to_string(golden("names.json")).unwrap();
    let pairs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut count = 0;
    for (arch, pairs) in pairs.as_object().unwrap() {
        for pair in pairs.as_array().unwrap() {
            let (hf, gguf) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
            let found = hf_name(gguf).unwrap_or_else(|| panic!("{arch}: no {gguf}"));
            let kv_b = "model.layers.3.self_attn.kv_b_proj.weight".to_string();
            count += 1;
            if hf.contains("mlp.experts") {
                let HfName::Experts { before, after } = found else {
                    panic!("{gguf} is no stack: {found:?}");
                };
                let expert = format!("{before}17{after}");
                assert_eq!(expert.replace("17.", ""), hf);
                let stack = gguf.to_string();
                assert_eq!(
                    gguf_name(&expert),
                    Some(GgufName::Expert { stack, expert: 17 })
                );
            } else if hf.contains("k_b_proj") {
                assert_eq!(found, HfName::KeyPart(kv_b));
            } else if hf.contains(".v_b_proj") {
                assert_eq!(found, HfName::ValuePart(kv_b));
            } else {
                assert_eq!(found, HfName::Whole(hf.to_string()), "{arch}");
                assert_eq!(gguf_name(hf), Some(GgufName::Whole(gguf.to_string())));
            }
        }
    }
    assert!(count > 70, "{count} pairs");
}

#[test]
fn names_of_biases_and_of_the_draft_layer() {
    for (hf, gguf) in [
        ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
        (
            "model.layers.61.eh_proj.weight",
            "blk.61.nextn.eh_proj.weight",
        ),
        (
            "model.layers.61.embed_tokens.weight",
            "blk.61.nextn.embed_tokens.weight",
        ),
        (
            "model.layers.61.shared_head.norm.weight",
            "blk.61.nextn.shared_head_norm.weight",
        ),
        (
            "model.layers.61.shared_head.head.weight",
            "blk.61.nextn.shared_head_head.weight",
        ),
    ] {
        assert_eq!(gguf_name(hf), Some(GgufName::Whole(gguf.to_string())));
        assert_eq!(hf_name(gguf), Some(HfName::Whole(hf.to_string())));
    }
    for name in [
        "",
        "model.layers.3",
        "model.layers.03.input_layernorm.weight",
        "model.layers.+3.input_layernorm.weight",
        "model.layers.3.input_layernorm.weight_scale_inv",
        "model.layers.3.mlp.experts.1.gate_proj.bias",
        "model.layers.3.exp_probs_b.bias",
        "rotary.inv_freq",
    ] {
        assert_eq!(gguf_name(name), None, "{name}");
    }
    for name in [
        "",
        "blk.3",
        "blk.03.attn_norm.weight",
        "rope_freqs.weight",
        "blk.1.x.weight",
    ] {
        assert_eq!(hf_name(name), None, "{name}");
    }
}

/// Weights of a tiny model under Hugging Face's names, every element different.
fn numbered(shapes: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut next = 0.0;
    let mut number = |_| {
        next += 1.0;
        next
    };
    let tensor = |&(name, shape): &(&str, &[usize])| {
        let values = (0..shape.iter().product()).map(&mut number).collect();
        (name.to_string(), shape.to_vec(), values)
    };
    shapes.iter().map(tensor).collect()
}

/// Exports, and opens what came out.
fn export(
    config: &serde_json::Value,
    arch: &str,
    keys: &[(&str, u32)],
    weights: &[(String, Vec<usize>, Vec<f32>)],
) -> Gguf {
    let shapes: Vec<_> = weights
        .iter()
        .map(|(name, shape, _)| (name.clone(), shape.clone()))
        .collect();
    let plan = export_plan(config, &shapes).unwrap();
    let mut metadata = vec![("general.architecture".to_string(), Value::Str(arch.into()))];
    metadata.extend(
        keys.iter()
            .map(|(key, value)| (format!("{arch}.{key}"), Value::U32(*value))),
    );
    let plans = plan.iter().map(|export| export.plan(GgmlType::F32));
    let mut bytes = Vec::new();
    let path = Path::new("export.gguf");
    let mut writer = GgufWriter::new(&mut bytes, path, &metadata, plans.collect()).unwrap();
    for export in &plan {
        for source in &export.sources {
            let (_, shape, values) = weights.iter().find(|(name, ..)| name == source).unwrap();
            let arranged = export.arrange(values, *shape.last().unwrap());
            writer.write_f32(&arranged).unwrap();
        }
    }
    writer.finish().unwrap();
    Gguf::from_bytes(bytes, path).unwrap()
}

/// Every tensor comes back whole, and each of its rows alone.
fn assert_comes_back(gguf: &Gguf, weights: &[(String, Vec<usize>, Vec<f32>)]) {
    let hf = HfTensors::new(gguf).unwrap();
    assert_eq!(hf.tensors.len(), weights.len());
    for (name, shape, want) in weights {
        assert_eq!(&hf.tensors[name].shape, shape, "{name}");
        let mut found = vec![0.0; want.len()];
        hf.read_f32(name, &mut found).unwrap();
        assert_eq!(&found, want, "{name}");
        let row_len = *shape.last().unwrap();
        let mut row = vec![0.0; row_len];
        for (number, want) in want.chunks_exact(row_len).enumerate() {
            hf.read_rows_f32(name, number..number + 1, &mut row)
                .unwrap();
            assert_eq!(row, want, "{name}, row {number}");
        }
    }
}

#[test]
fn llama_queries_and_keys_are_permuted_and_come_back() {
    let config = json!({
        "model_type": "llama", "hidden_size": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 6,
    });
    let weights = numbered(&[
        ("model.layers.0.self_attn.q_proj.weight", &[12, 3]),
        ("model.layers.0.self_attn.k_proj.weight", &[6, 3]),
        ("model.layers.0.self_attn.v_proj.weight", &[6, 3]),
        ("model.layers.0.self_attn.q_proj.bias", &[12]),
        ("model.layers.0.self_attn.o_proj.weight", &[3, 12]),
        ("model.embed_tokens.weight", &[5, 3]),
    ]);
    let keys = [("attention.head_count", 2), ("attention.head_count_kv", 1)];
    let gguf = export(&config, "llama", &keys, &weights);
    // reshape(heads, 2, 3, ...).swapaxes(1, 2), written out: of six rows 0 3 1 4 2 5.
    let q = &weights[0].2;
    let order = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11];
    let want: Vec<f32> = order
        .iter()
        .flat_map(|&row| q[row * 3..][..3].to_vec())
        .collect();
    assert_eq!(values(&gguf, "blk.0.attn_q.weight"), want);
    let bias: Vec<f32> = order.iter().map(|&row| weights[3].2[row]).collect();
    assert_eq!(values(&gguf, "blk.0.attn_q.bias"), bias);
    assert_eq!(values(&gguf, "blk.0.attn_v.weight"), weights[2].2);
    assert_comes_back(&gguf, &weights);
    // Qwen2's rotary embedding turns the halves themselves.
    let config = json!({ "model_type": "qwen2" });
    let gguf = export(&config, "qwen2", &keys, &weights);
    assert_eq!(&values(&gguf, "blk.0.attn_q.weight"), q);
    assert_comes_back(&gguf, &weights);
}

#[test]
fn deepseek_experts_are_stacked_and_kv_b_is_split_and_both_come_back() {
    let config = json!({
        "model_type": "deepseek_v3", "num_attention_heads": 2, "qk_nope_head_dim": 3,
        "v_head_dim": 2,
    });
    let experts: Vec<String> = (0..3)
        .map(|expert| format!("model.layers.1.mlp.experts.{expert}.down_proj.weight"))
        .collect();
    let weights = numbered(&[
        ("model.layers.1.self_attn.kv_b_proj.weight", &[10, 4]),
        (&experts[2], &[2, 5]),
        (&experts[0], &[2, 5]),
        (&experts[1], &[2, 5]),
        ("model.layers.1.mlp.gate.e_score_correction_bias", &[3]),
    ]);
    let gguf = export(&config, "deepseek2", &[], &weights);
    let kv_b = |row: usize, column: usize| weights[0].2[row * 4 + column];
    let k_b = values(&gguf, "blk.1.attn_k_b.weight");
    let v_b = values(&gguf, "blk.1.attn_v_b.weight");
    for head in 0..2 {
        for rank in 0..4 {
            for nope in 0..3 {
                assert_eq!(
                    k_b[(head * 4 + rank) * 3 + nope],
                    kv_b(head * 5 + nope, rank)
                );
            }
            for v in 0..2 {
                assert_eq!(v_b[(head * 2 + v) * 4 + rank], kv_b(head * 5 + 3 + v, rank));
            }
        }
    }
    let stack = values(&gguf, "blk.1.ffn_down_exps.weight");
    let want = [&weights[2].2[..], &weights[3].2, &weights[1].2].concat();
    assert_eq!(stack, want);
    assert_comes_back(&gguf, &weights);
}

#[test]
fn a_plan_names_what_has_no_place() {
    let config = json!({ "model_type": "qwen3_moe", "num_attention_heads": 1, "hidden_size": 2 });
    let expert = |number| format!("model.layers.0.mlp.experts.{number}.up_proj.weight");
    for (tensors, words) in [
        (
            vec![("strange".to_string(), vec![1])],
            "`strange` has no place",
        ),
        (vec![(expert(1), vec![2, 2])], "without expert 0"),
        (
            vec![(expert(0), vec![2, 2]), (expert(2), vec![2, 2])],
            "an expert that is missing",
        ),
        (
            vec![(expert(0), vec![2, 2]), (expert(1), vec![2, 4])],
            "another shape",
        ),
    ] {
        let error = export_plan(&config, &tensors).unwrap_err().to_string();
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
}

#[test]
fn a_file_whose_tensors_do_not_fit_is_refused_by_name() {
    let arch = (
        "general.architecture".to_string(),
        Value::Str("llama".into()),
    );
    let heads = ("llama.attention.head_count".to_string(), Value::U32(4));
    let tensor = |name: &str, shape: &[usize]| {
        let count = shape.iter().product();
        let (name, shape) = (name.to_string(), shape.to_vec());
        let kind = GgmlType::F32;
        (TensorPlan { name, shape, kind }, vec![1.0; count])
    };
    let split = ("split.count".to_string(), Value::U16(2));
    let other = (
        "general.architecture".to_string(),
        Value::Str("gpt2".into()),
    );
    for (metadata, tensors, words) in [
        (vec![other], vec![], "`gpt2`; known are llama"),
        (vec![arch.clone(), split], vec![], "split.count"),
        (
            vec![arch.clone(), heads],
            vec![tensor("blk.0.attn_q.weight", &[12, 2])],
            "attn_q",
        ),
        (
            vec![arch.clone()],
            vec![tensor("blk.0.attn_k.weight", &[8, 2])],
            "head_count",
        ),
        (
            vec![arch.clone()],
            vec![tensor("blk.0.ffn_up_exps.weight", &[8, 2])],
            "no stack",
        ),
        (
            vec![arch.clone()],
            vec![tensor("blk.0.attn_k_b.weight", &[1, 2, 2])],
            "is missing",
        ),
        (
            vec![arch.clone()],
            vec![tensor("blk.0.attn_v_b.weight", &[1, 2, 2])],
            "is missing",
        ),
    ] {
        let gguf = Gguf::from_bytes(write(&metadata, &tensors), Path::new("x.gguf")).unwrap();
        let error = HfTensors::new(&gguf).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        assert!(
            text.contains("x.gguf") && text.contains(words),
            "no {words:?} in: {text}"
        );
    }
}

#[test]
fn a_tokenizer_goes_through_a_file() {
    let tokenizer = GgufTokenizer {
        model: "gpt2".into(),
        pre: Some("deepseek-v3".into()),
        tokens: vec!["a".into(), "Ġb".into(), "<｜end▁of▁sentence｜>".into()],
        token_type: vec![1, 1, 3],
        merges: vec!["a Ġb".into()],
        eos_token_id: Some(2),
        add_bos_token: Some(true),
        chat_template: Some("{{ messages }}".into()),
        ..GgufTokenizer::default()
    };
    let read = |metadata: Vec<(String, Value)>| {
        let gguf = Gguf::from_bytes(write(&metadata, &[]), Path::new("t.gguf")).unwrap();
        GgufTokenizer::read(&gguf)
    };
    assert_eq!(read(tokenizer.metadata()).unwrap(), Some(tokenizer.clone()));
    assert_eq!(read(vec![]).unwrap(), None);
    let mut bad = tokenizer.clone();
    bad.token_type.pop();
    let text = read(bad.metadata()).unwrap_err().to_string();
    assert!(
        text.contains("token_type") && text.contains("2 entries for 3 tokens"),
        "{text}"
    );
    let mut bad = tokenizer;
    bad.eos_token_id = Some(3);
    let text = read(bad.metadata()).unwrap_err().to_string();
    assert!(
        text.contains("eos_token_id") && text.contains("is 3"),
        "{text}"
    );
}

//! GGUF files exported and opened: the folder's own numbers again.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use kernels::{Cpu, Isa, Precision};
use model::gguf::{GgmlType, Gguf, GgufTokenizer, GgufWriter, TensorPlan, Value};
use model::{
    Checkpoint, Error, ExportDtype, Layout, Loading, Numerics, TensorData, read_tensors,
    write_tensors,
};

mod opened;
mod reference;
#[path = "small/scratch.rs"]
mod scratch;
use opened::{Watched, logits_of, median_error};
use reference::{Golden, batch_of, cases, logits, relative_to_spread};
use scratch::Scratch;

/// What GGUF, or llama.cpp's graph, cannot say of these.
const UNSAYABLE: [(&str, &str); 3] = [
    ("deepseek_v3_half_split", "rope_interleave"),
    ("qwen3-moe", "mlp_only_layers"),
    ("v2-groups", "mscale"),
];

fn export(from: &Path, to: &Path, kind: GgmlType) -> Result<(), Error> {
    let mut watched = Watched::default();
    let checkpoint = Checkpoint::open(from).unwrap_or_else(|error| panic!("{error}"));
    checkpoint.export_gguf(to, kind, None, &mut |done, total| watched.see(done, total))?;
    watched.assert_whole();
    Ok(())
}

/// Qwen3-MoE's golden folder without its dense layer, whose tensors in F32 are the same numbers.
fn moe_throughout(dir: &Path) {
    let golden = Golden::open("qwen3-moe");
    let text = fs::read_to_string(golden.dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_hidden_layers"] = serde_json::json!(2);
    config["mlp_only_layers"] = serde_json::json!([]);
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = read_tensors(&golden.dir.join("model.safetensors")).unwrap();
    let kept = tensors.iter().filter(|t| !t.name.contains("layers.1."));
    let kept: Vec<(String, &[usize], &[f32])> = kept
        .map(|tensor| {
            let TensorData::F32(data) = &tensor.data else {
                panic!("weights are floats");
            };
            let name = tensor.name.replace("layers.2.", "layers.1.");
            (name, &tensor.shape[..], &data[..])
        })
        .collect();
    let borrowed: Vec<(&str, &[usize], &[f32])> = kept
        .iter()
        .map(|(name, shape, data)| (name.as_str(), *shape, *data))
        .collect();
    write_tensors(&dir.join("model.safetensors"), &borrowed).unwrap();
}

const MOE_THROUGHOUT: &str = "qwen3-moe throughout";

/// Every model that a GGUF file can hold.
fn sayable(scratch: &Scratch) -> Vec<(String, Golden)> {
    let mut models = Vec::new();
    for case in cases() {
        if !UNSAYABLE.iter().any(|(name, _)| *name == case) {
            models.push((case.clone(), Golden::open(&case)));
        }
    }
    let mut moe = Golden::open("qwen3-moe");
    moe.dir = scratch.join("moe");
    moe_throughout(&moe.dir);
    models.push((MOE_THROUGHOUT.to_string(), moe));
    models
}

#[test]
fn f32_files_give_the_bits_of_their_folders_read_and_mapped() {
    let scratch = Scratch::new();
    let file = scratch.join("model.gguf");
    for (case, golden) in sayable(&scratch) {
        let batch = batch_of(&golden.documents());
        let exported = export(&golden.dir, &file, GgmlType::F32);
        exported.unwrap_or_else(|error| panic!("{case}: {error}"));
        let opened = Checkpoint::open(&file).unwrap();
        assert!(opened.is_gguf() && opened.config().num_nextn_predict_layers == 0);
        assert_eq!(opened.gguf_tokenizer().unwrap(), None);
        let cpu = Cpu::new(2, Isa::best());
        let flat = golden.model(Numerics::new(Precision::F32), &cpu);
        let want = logits(&flat, &cpu, &batch);
        for loading in [Loading::Read, Loading::Map] {
            let got = logits_of(&file, Precision::F32, loading, &batch);
            if case == "qwen3-yarn" {
                // The file holds `attn_factor` in f32, the folder as a decimal.
                let error = relative_to_spread(&got, &want);
                assert!(error < 1e-5, "{case}: {error}");
            } else {
                assert!(got == want, "{case} {loading:?}");
            }
            if case != MOE_THROUGHOUT {
                let error = relative_to_spread(&got, &golden.every("logits"));
                assert!(error < 1e-4, "{case}: {error} from the reference");
            }
        }
    }
    for (case, field) in UNSAYABLE {
        let error = export(
            &Golden::open(case).dir,
            &scratch.join("no.gguf"),
            GgmlType::F32,
        );
        let text = error.unwrap_err().to_string();
        assert!(text.contains(field), "{case}: {text}");
        assert!(!scratch.join("no.gguf").exists());
    }
}

#[test]
fn narrower_files_open_and_are_close() {
    let scratch = Scratch::new();
    let file = scratch.join("model.gguf");
    // A step of Q8_0 is 1/127 of a block's largest magnitude, of Q4_0 an eighth.
    for (kind, bound) in [
        (GgmlType::F16, 0.01),
        (GgmlType::BF16, 0.05),
        (GgmlType::Q8_0, 0.1),
        (GgmlType::Q4_0, 1.4),
    ] {
        for (case, golden) in sayable(&scratch) {
            let (dir, batch) = (golden.dir.clone(), batch_of(&golden.documents()));
            export(&dir, &file, kind).unwrap();
            for tensor in Gguf::open(&file).unwrap().tensors {
                let exact = tensor.shape.len() == 1 || tensor.name.ends_with("gate_inp.weight");
                let fits = tensor.row_len().is_multiple_of(kind.block_len());
                let want = match (exact, fits) {
                    (true, _) => GgmlType::F32,
                    (_, true) => kind,
                    (_, false) => GgmlType::F16,
                };
                assert_eq!(tensor.kind, want, "{case} {}", tensor.name);
            }
            let want = logits_of(&dir, Precision::F32, Loading::Read, &batch);
            let got = logits_of(&file, Precision::F32, Loading::Read, &batch);
            let mapped = logits_of(&file, Precision::F32, Loading::Map, &batch);
            assert!(got == mapped, "{case} {}", kind.name());
            let vocab = Checkpoint::open(&dir).unwrap().config().vocab_size;
            let error = median_error(&got, &want, vocab);
            println!("{case} {}: {error:.4}", kind.name());
            assert!(error < bound, "{case} {}: {error}", kind.name());
        }
    }
}

#[test]
fn a_folder_goes_through_a_file_and_back_with_every_value() {
    let scratch = Scratch::new();
    let (file, back) = (scratch.join("model.gguf"), scratch.join("back"));
    for (case, golden) in sayable(&scratch) {
        let dir = golden.dir;
        export(&dir, &file, GgmlType::F32).unwrap();
        let opened = Checkpoint::open(&file).unwrap();
        let layout = Layout::new(opened.config());
        // All of it is F32, so that is how it is stored.
        let dtype = ExportDtype::AsStored;
        opened
            .export_folder(&back, dtype, &[], u64::MAX, &mut |_, _| {
                ControlFlow::Continue(())
            })
            .unwrap();
        let source = Checkpoint::open(&dir).unwrap();
        let (source_layout, want) = (Layout::new(source.config()), source.weights().unwrap());
        let found = Checkpoint::open(&back).unwrap();
        assert!(found.tensors().iter().all(|tensor| tensor.dtype == "F32"));
        assert_eq!(found.tensors().len(), layout.tensors.len(), "{case}");
        assert_eq!(opened.tensors().len(), layout.tensors.len(), "{case}");
        let (direct, found) = (opened.weights().unwrap(), found.weights().unwrap());
        assert!(direct.data == found.data, "{case}");
        for spec in &layout.tensors {
            let mut all = source_layout.tensors.iter();
            let same = all.find(|other| other.name == spec.name).unwrap();
            assert_eq!(same.shape, spec.shape);
            assert!(
                want.data[same.range()] == found.data[spec.range()],
                "{case} {}",
                spec.name
            );
        }
    }
}

#[test]
fn facts_of_the_tensors_are_those_of_the_file() {
    let scratch = Scratch::new();
    let file = scratch.join("model.gguf");
    export(&Golden::open("v3-fp8").dir, &file, GgmlType::Q8_0).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    let tensors = Checkpoint::open(&file).unwrap().tensors();
    let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    assert_eq!(
        bytes,
        gguf.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>()
    );
    let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap();
    let embedding = find("model.embed_tokens.weight");
    let stored = &gguf.tensors[gguf.find("token_embd.weight").unwrap()];
    assert_eq!(embedding.dtype, stored.kind.name());
    assert_eq!(
        (&embedding.shape, embedding.bytes),
        (&stored.shape, stored.bytes)
    );
    let stack = &gguf.tensors[gguf.find("blk.1.ffn_up_exps.weight").unwrap()];
    let expert = find("model.layers.1.mlp.experts.0.up_proj.weight");
    assert_eq!(expert.bytes * stack.shape[0] as u64, stack.bytes);
    assert_eq!(expert.shape, stack.shape[1..]);
}

fn tokenizer(tokens: usize) -> GgufTokenizer {
    GgufTokenizer {
        model: "gpt2".into(),
        pre: Some("qwen2".into()),
        tokens: (0..tokens).map(|id| format!("t{id}")).collect(),
        merges: vec!["t t".into()],
        eos_token_id: Some(1),
        ..GgufTokenizer::default()
    }
}

#[test]
fn a_tokenizer_goes_along_and_is_padded_to_the_embedding() {
    let scratch = Scratch::new();
    let file = scratch.join("only/model.gguf");
    fs::create_dir_all(scratch.join("only")).unwrap();
    let checkpoint = Checkpoint::open(&Golden::open("qwen2").dir).unwrap();
    let rows = checkpoint.config().vocab_size;
    let write = |tokens: usize| {
        let tokenizer = tokenizer(tokens);
        checkpoint.export_gguf(&file, GgmlType::BF16, Some(&tokenizer), &mut |_, _| {
            ControlFlow::Continue(())
        })
    };
    assert!(matches!(write(rows + 1), Err(Error::Usage(_))));
    assert!(!file.exists());
    write(rows - 2).unwrap();
    // A folder that holds one GGUF file is that file.
    let opened = Checkpoint::open(&scratch.join("only")).unwrap();
    assert_eq!(opened.path(), file);
    let found = opened.gguf_tokenizer().unwrap().unwrap();
    let mut want = tokenizer(rows - 2);
    want.tokens
        .extend([format!("[PAD{}]", rows - 2), format!("[PAD{}]", rows - 1)]);
    want.token_type = [vec![1; rows - 2], vec![5; 2]].concat();
    assert_eq!(found, want);
    assert_eq!(opened.config().eos_token_id, [1]);
    write(rows).unwrap();
    let opened = Checkpoint::open(&file).unwrap();
    assert_eq!(opened.gguf_tokenizer().unwrap(), Some(tokenizer(rows)));
    fs::copy(&file, scratch.join("only/other.gguf")).unwrap();
    let error = Checkpoint::open(&scratch.join("only"))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("2 GGUF files"), "{error}");
}

#[test]
fn without_a_tokenizer_the_file_says_so_and_keeps_the_ids() {
    let scratch = Scratch::new();
    let file = scratch.join("model.gguf");
    let dir = Golden::open("qwen3").dir;
    export(&dir, &file, GgmlType::F32).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    assert_eq!(gguf.str("tokenizer.ggml.model").unwrap(), Some("none"));
    assert_eq!(gguf.u32("general.file_type").unwrap(), Some(0));
    let (source, found) = (
        Checkpoint::open(&dir).unwrap(),
        Checkpoint::open(&file).unwrap(),
    );
    let vocab = gguf.u32("qwen3.vocab_size").unwrap();
    assert_eq!(vocab, Some(source.config().vocab_size as u32));
    assert_eq!(found.config().eos_token_id, source.config().eos_token_id);
    let error = export(&dir, &file, GgmlType::Q6K).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
}

#[test]
fn all_that_does_not_fit_is_named_at_once() {
    let scratch = Scratch::new();
    let (whole, bad) = (scratch.join("whole.gguf"), scratch.join("bad.gguf"));
    export(&Golden::open("qwen3").dir, &whole, GgmlType::F32).unwrap();
    let gguf = Gguf::open(&whole).unwrap();
    let mut plans = Vec::new();
    for tensor in &gguf.tensors {
        let mut plan = TensorPlan {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            kind: tensor.kind,
        };
        match tensor.name.as_str() {
            "blk.0.ffn_up.weight" => plan.name = "blk.0.strange.weight".to_string(),
            "blk.1.ffn_up.weight" => plan.name = "blk.0.attn_rot_embd.weight".to_string(),
            "output_norm.weight" => plan.shape = vec![2, tensor.shape[0] / 2],
            _ => {}
        }
        plans.push(plan);
    }
    let metadata: Vec<(String, Value)> = gguf
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut bytes = Vec::new();
    let mut writer = GgufWriter::new(&mut bytes, &bad, &metadata, plans).unwrap();
    for (number, tensor) in gguf.tensors.iter().enumerate() {
        let mut data = vec![0; tensor.bytes as usize];
        gguf.read_bytes(number, 0, &mut data).unwrap();
        writer.write_bytes(&data).unwrap();
    }
    writer.finish().unwrap();
    fs::write(&bad, &bytes).unwrap();
    let error = Checkpoint::open(&bad).err().unwrap();
    let Error::Mismatch { path, differences } = &error else {
        panic!("{error}");
    };
    assert_eq!((path, differences.len()), (&bad, 4), "{error}");
    let text = error.to_string();
    for part in [
        "missing: `model.layers.0.mlp.up_proj.weight`",
        "missing: `model.layers.1.mlp.up_proj.weight`",
        "unexpected: `blk.0.strange.weight`",
        "shape: `model.norm.weight` is [2, 16] in the file, [32] by its metadata",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    // Values that the configuration refuses name the file.
    let mut metadata = metadata;
    let heads = metadata
        .iter_mut()
        .find(|(key, _)| key == "qwen3.attention.head_count_kv");
    heads.unwrap().1 = Value::U32(3);
    let mut bytes = Vec::new();
    let plan = TensorPlan {
        name: "token_embd.weight".to_string(),
        shape: vec![80, 32],
        kind: GgmlType::F32,
    };
    let mut writer = GgufWriter::new(&mut bytes, &bad, &metadata, vec![plan]).unwrap();
    writer.write_f32(&[0.0; 80 * 32]).unwrap();
    writer.finish().unwrap();
    fs::write(&bad, &bytes).unwrap();
    let text = Checkpoint::open(&bad).err().unwrap().to_string();
    assert!(
        text.contains("bad.gguf") && text.contains("num_key_value_heads"),
        "{text}"
    );
}

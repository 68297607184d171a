//! Models opened for inference: every form keeps the bits that training has, or says how far it
//! rounds.

use kernels::{Cpu, Isa, Precision};
use model::{
    Activations, Batch, CachePlaces, Checkpoint, Config, ExportDtype, KeptWeights, KvCache,
    Loading, Model, Numerics, Opening, TensorData,
};
use std::ops::ControlFlow;
use std::path::Path;

mod reference;
use reference::{Golden, batch_of, cases, logits, relative_to_spread};

fn open(
    dir: &Path,
    precision: Precision,
    weights: KeptWeights,
    loading: Loading,
    cpu: &Cpu,
) -> Model {
    let opening = Opening {
        numerics: Numerics::new(precision),
        weights,
        loading,
        mtp: true,
    };
    let (mut last, mut total) = (0, 0);
    let mut progress = |done, all| {
        assert!(done >= last && done <= all, "{done} of {all} after {last}");
        (last, total) = (done, all);
    };
    let opened = Checkpoint::open(dir)
        .expect("a checkpoint")
        .model(opening, cpu, &mut progress)
        .expect("a model");
    assert!(opened.non_finite.is_empty());
    assert!(opened.weight_bytes > 0);
    assert_eq!(last, total, "all bytes were read");
    opened.model
}

#[test]
fn weights_as_stored_give_the_bits_of_flat_weights_read_and_mapped() {
    for case in cases() {
        let golden = Golden::open(&case);
        let batch = batch_of(&golden.documents());
        for precision in [Precision::F32, Precision::Bf16] {
            let flat = golden.model(Numerics::new(precision), &Cpu::new(2, Isa::best()));
            let want = logits(&flat, &Cpu::new(2, Isa::best()), &batch);
            for (isa, threads) in Isa::available().into_iter().zip([1, 2, 3, 2]) {
                let cpu = Cpu::new(threads, isa);
                for loading in [Loading::Read, Loading::Map] {
                    let kept = KeptWeights::AsStored;
                    let model = open(&golden.dir, precision, kept, loading, &cpu);
                    let got = logits(&model, &cpu, &batch);
                    assert!(got == want, "{case} {precision:?} {isa} {loading:?}");
                }
            }
        }
    }
}

/// A document over a cache: seven tokens at once, then one by one, in blocks in any order. `run`
/// gets each batch and its rows.
fn in_chunks(model: &Model, document: &[u32], run: &mut dyn FnMut(&Batch, &mut KvCache, &[u32])) {
    let (size, blocks) = (4, document.len().div_ceil(4));
    let table: Vec<u32> = (0..blocks as u32).rev().collect();
    let mut cache = KvCache::with_mtp(&model.config, blocks, size);
    let mut start = 0;
    while start < document.len() {
        let end = document.len().min(start + if start == 0 { 7 } else { 1 });
        let place = |p: usize| table[p / size] * size as u32 + (p % size) as u32;
        let batch = Batch {
            token_ids: document[start..end].to_vec(),
            positions: (start as u32..end as u32).collect(),
            cu_seqlens: vec![0, (end - start) as u32],
            context_lens: vec![end as u32],
            places: Some(CachePlaces {
                slot_mapping: (start..end).map(place).collect(),
                block_tables: table.clone(),
                blocks_per_sequence: blocks,
            }),
        };
        let rows: Vec<u32> = (0..(end - start) as u32).collect();
        run(&batch, &mut cache, &rows);
        start = end;
    }
}

#[test]
fn a_cache_gives_the_bits_of_whole_documents_in_every_family() {
    for case in cases() {
        let golden = Golden::open(&case);
        let documents = golden.documents();
        let document = documents.iter().max_by_key(|d| d.len()).expect("documents");
        let cpu = Cpu::new(2, Isa::best());
        let model = golden.model(Numerics::new(Precision::Bf16), &cpu);
        let whole = logits(&model, &cpu, &Batch::documents(&[document]));
        let mut acts = Activations::for_inference();
        let (mut got, mut chunk) = (Vec::new(), Vec::new());
        in_chunks(&model, document, &mut |batch, cache, rows| {
            model.forward(&cpu, batch, &mut acts, Some(cache));
            model.logits(&cpu, &mut acts, rows, &mut chunk);
            got.extend_from_slice(&chunk);
        });
        assert!(got == whole, "{case}");
    }
}

#[test]
fn few_bits_round_and_keep_the_law() {
    for case in cases() {
        let golden = Golden::open(&case);
        let documents = golden.documents();
        let batch = batch_of(&documents);
        let exact = golden.every("logits");
        // Errors of 1 and of 10 % per product, over the layers of these models. Where rounding
        // flips the choice of an expert a row is another one altogether, hence the median row;
        // weights read wrongly move every row by its whole spread.
        for (kept, bound) in [
            (KeptWeights::Bf16, 0.04),
            (KeptWeights::Q8, 0.15),
            (KeptWeights::Q4, 1.4),
        ] {
            let mut first: Option<Vec<f32>> = None;
            for (isa, threads) in Isa::available().into_iter().zip([1, 2, 3, 2]) {
                let cpu = Cpu::new(threads, isa);
                let model = open(&golden.dir, Precision::Bf16, kept, Loading::Read, &cpu);
                let got = logits(&model, &cpu, &batch);
                let vocab = model.config.vocab_size;
                let rows = got.chunks_exact(vocab).zip(exact.chunks_exact(vocab));
                let mut errors: Vec<f64> = rows.map(|(a, b)| relative_to_spread(a, b)).collect();
                errors.sort_by(f64::total_cmp);
                let error = errors[errors.len() / 2];
                println!("{case} {kept:?} {error:.3}");
                assert!(error < bound, "{case} {kept:?}: {error}");
                let alone = logits(&model, &cpu, &Batch::documents(&[&documents[0]]));
                assert!(
                    alone == got[..documents[0].len() * vocab],
                    "{case} {kept:?} alone"
                );
                let first = first.get_or_insert_with(|| got.clone());
                assert!(*first == got, "{case} {kept:?} {isa}");
            }
        }
    }
}

#[test]
fn a_folder_whose_multi_token_prediction_was_left_out_opens_without_it() {
    let golden = Golden::open("v3-groups-yarn");
    let dir = std::env::temp_dir().join(format!("bruchteil-no-mtp-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let text = std::fs::read_to_string(golden.dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_nextn_predict_layers"] = serde_json::json!(1);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(
        golden.dir.join("model.safetensors"),
        dir.join("model.safetensors"),
    )
    .unwrap();
    assert_eq!(Config::read(&dir).unwrap().num_nextn_predict_layers, 1);
    let cpu = Cpu::new(1, Isa::best());
    let model = open(
        &dir,
        Precision::F32,
        KeptWeights::AsStored,
        Loading::Read,
        &cpu,
    );
    assert_eq!(model.config.num_nextn_predict_layers, 0);
    let (model, _) = Model::open(&dir, Numerics::new(Precision::F32), &cpu).unwrap();
    assert_eq!(model.config.num_nextn_predict_layers, 0);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// The draft of each token, over the same cache, is that of the whole document.
#[test]
fn drafts_over_a_cache_are_those_of_whole_documents() {
    let golden = Golden::open("v3-mtp");
    let cpu = Cpu::new(2, Isa::best());
    let kept = KeptWeights::AsStored;
    let model = open(&golden.dir, Precision::Bf16, kept, Loading::Read, &cpu);
    let documents = golden.documents();
    let document = documents.iter().max_by_key(|d| d.len()).expect("documents");
    let next = |from: usize, to: usize| -> Vec<u32> {
        (from + 1..to + 1)
            .map(|i| *document.get(i).unwrap_or(&0))
            .collect()
    };
    let mut acts = Activations::for_inference();
    let batch = Batch::documents(&[document]);
    model.forward(&cpu, &batch, &mut acts, None);
    model.forward_mtp(&cpu, &batch, &next(0, document.len()), &mut acts, None);
    let (rows, mut whole): (Vec<u32>, _) = ((0..document.len() as u32).collect(), Vec::new());
    model.mtp_logits(&cpu, &mut acts, &rows, &mut whole);
    let (mut got, mut chunk, mut start) = (Vec::new(), Vec::new(), 0);
    in_chunks(&model, document, &mut |batch, cache, rows| {
        model.forward(&cpu, batch, &mut acts, Some(&mut *cache));
        let end = start + rows.len();
        model.forward_mtp(&cpu, batch, &next(start, end), &mut acts, Some(cache));
        model.mtp_logits(&cpu, &mut acts, rows, &mut chunk);
        got.extend_from_slice(&chunk);
        start = end;
    });
    assert!(got == whole);
}

/// Weights kept as bf16 are those of an export to bf16, at either precision.
#[test]
fn bf16_in_memory_is_bf16_on_disk() {
    for case in cases() {
        let golden = Golden::open(&case);
        let batch = batch_of(&golden.documents());
        let name = format!("bruchteil-bf16-{case}-{}", std::process::id());
        let out = std::env::temp_dir().join(name);
        Checkpoint::open(&golden.dir)
            .and_then(|checkpoint| {
                let (dtype, progress) = (ExportDtype::Bf16, &mut |_, _| ControlFlow::Continue(()));
                checkpoint.export_folder(&out, dtype, &[], u64::MAX, progress)
            })
            .expect("an export");
        for precision in [Precision::F32, Precision::Bf16] {
            let cpu = Cpu::new(2, Isa::best());
            let (read, map) = (Loading::Read, Loading::Map);
            let want = open(&out, precision, KeptWeights::AsStored, read, &cpu);
            let want = logits(&want, &cpu, &batch);
            for loading in [read, map] {
                let kept = open(&golden.dir, precision, KeptWeights::Bf16, loading, &cpu);
                let got = logits(&kept, &cpu, &batch);
                assert!(got == want, "{case} {precision:?} {loading:?}");
            }
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
}

/// A head that is there and is not the embedding must not be taken for it.
#[test]
fn a_tied_head_that_differs_is_refused_and_one_that_is_repeated_is_not() {
    let golden = Golden::open("llama");
    let tensors = model::read_tensors(&golden.dir.join("model.safetensors")).unwrap();
    let embedding = tensors
        .iter()
        .find(|t| t.name == "model.embed_tokens.weight")
        .unwrap();
    let TensorData::F32(embedding) = embedding.data.clone() else {
        panic!("floats");
    };
    let dir = std::env::temp_dir().join(format!("bruchteil-tied-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(golden.dir.join("config.json"), dir.join("config.json")).unwrap();
    for differs in [false, true] {
        let mut head = embedding.clone();
        if differs {
            *head.last_mut().unwrap() += 1.0;
        }
        let mut all: Vec<(&str, &[usize], &[f32])> = Vec::new();
        for tensor in &tensors {
            if let TensorData::F32(values) = &tensor.data {
                all.push((&tensor.name, &tensor.shape, values));
            }
        }
        let hidden = Config::read(&dir).unwrap().hidden_size;
        let shape = [head.len() / hidden, hidden];
        all.push(("lm_head.weight", &shape, &head));
        model::write_tensors(&dir.join("model.safetensors"), &all).unwrap();
        let opened = Model::open(
            &dir,
            Numerics::new(Precision::F32),
            &Cpu::new(1, Isa::best()),
        );
        match (differs, opened) {
            (false, opened) => assert!(opened.is_ok()),
            (true, Ok(_)) => panic!("another head was taken for the embedding"),
            (true, Err(error)) => {
                let text = error.to_string();
                assert!(text.contains("differs: `lm_head.weight`"), "{text}");
                assert_eq!(error.exit_code(), 3);
            }
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Files are read in pieces of 1 MiB; codes of FP8 go on where the piece before ended.
#[test]
fn fp8_of_several_pieces_is_read_whole() {
    let mut config = Config::read(&Golden::open("llama").dir).unwrap();
    (config.intermediate_size, config.num_hidden_layers) = (70_000, 1);
    let largest = config.intermediate_size * config.hidden_size;
    assert!(largest > 1 << 20, "{largest} codes");
    let cpu = Cpu::new(2, Isa::best());
    let numerics = Numerics::new(Precision::F32);
    let model = Model::random(config, numerics, 5, &cpu);
    let name = format!("bruchteil-pieces-{}", std::process::id());
    let (dir, out) = (
        std::env::temp_dir().join(&name),
        std::env::temp_dir().join(name + "-fp8"),
    );
    let Model { config, layout, .. } = &model;
    let dtype = model::WeightDtype::F32;
    model::write_folder(&dir, config, layout, model.params(), &[], dtype).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let exported = checkpoint.export_folder(&out, ExportDtype::Fp8, &[], u64::MAX, progress);
    exported.expect("an export");
    let batch = Batch::documents(&[&[1, 2, 3]]);
    let (flat, _) = Model::open(&out, numerics, &cpu).unwrap();
    let kept = open(
        &out,
        Precision::F32,
        KeptWeights::AsStored,
        Loading::Read,
        &cpu,
    );
    assert!(logits(&flat, &cpu, &batch) == logits(&kept, &cpu, &batch));
    for dir in [dir, out] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}

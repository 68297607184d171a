//! Folders exported: as stored byte for byte, and converted as an independent reading converts.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use kernels::{Cpu, Isa, Precision};
use model::{
    Checkpoint, Config, Error, ExportDtype, Layout, Loading, Numerics, WeightDtype, write_folder,
};

mod opened;
mod reference;
#[path = "small/scratch.rs"]
mod scratch;
use opened::{Watched, logits_of, median_error};
use reference::{Golden, batch_of, cases, logits, relative_to_spread};
use scratch::Scratch;

/// A tensor as a file has it.
#[derive(Debug, PartialEq)]
struct Raw {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Raw {
    /// F32, BF16 and F16 as f32.
    fn floats(&self) -> Vec<f32> {
        let two = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        match self.dtype.as_str() {
            "F32" => {
                let words = self.bytes.as_chunks().0.iter();
                words.map(|four| f32::from_le_bytes(*four)).collect()
            }
            "BF16" => {
                let halves = self.bytes.chunks(2).map(two);
                halves.map(|x| half::bf16::from_bits(x).to_f32()).collect()
            }
            // A power of two for each byte.
            "F8_E8M0" => self
                .bytes
                .iter()
                .map(|&b| 2f32.powi(i32::from(b) - 127))
                .collect(),
            other => panic!("{other}"),
        }
    }
}

fn safetensors_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with("model") && name.ends_with(".safetensors"))
        .collect();
    names.sort();
    names
}

/// Every tensor of a folder, by a reader that knows no more of the format than its description
/// says; each is asserted to be aligned to its element.
fn raw(dir: &Path) -> BTreeMap<String, Raw> {
    let mut tensors = BTreeMap::new();
    for file in safetensors_in(dir) {
        let bytes = fs::read(dir.join(file)).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        for (name, entry) in header.as_object().unwrap() {
            if name == "__metadata__" {
                continue;
            }
            let numbers = |field: &str| -> Vec<usize> {
                let numbers = entry[field].as_array().unwrap().iter();
                numbers.map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let (shape, range) = (numbers("shape"), numbers("data_offsets"));
            let width = (range[1] - range[0]) / shape.iter().product::<usize>();
            assert!(
                (8 + length + range[0]).is_multiple_of(width),
                "{name} is askew"
            );
            let found = Raw {
                dtype: entry["dtype"].as_str().unwrap().to_string(),
                shape,
                bytes: bytes[8 + length + range[0]..8 + length + range[1]].to_vec(),
            };
            assert!(
                tensors.insert(name.clone(), found).is_none(),
                "{name} twice"
            );
        }
    }
    tensors
}

/// The number that an e4m3 code is (arXiv 2209.05433, table 1).
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(-6),
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 7),
    };
    if code < 128 { magnitude } else { -magnitude }
}

/// The values of every tensor of a folder, FP8 in blocks of 128 x 128 expanded.
fn values(tensors: &BTreeMap<String, Raw>) -> BTreeMap<String, Vec<f32>> {
    let mut values = BTreeMap::new();
    for (name, tensor) in tensors
        .iter()
        .filter(|(name, _)| !name.ends_with("_scale_inv"))
    {
        if tensor.dtype != "F8_E4M3" {
            values.insert(name.clone(), tensor.floats());
            continue;
        }
        let scales = tensors[&format!("{name}_scale_inv")].floats();
        let cols = tensor.shape[1];
        let expanded = tensor.bytes.iter().enumerate().map(|(i, &code)| {
            let block = i / cols / 128 * cols.div_ceil(128) + i % cols / 128;
            e4m3(code) as f32 * scales[block]
        });
        values.insert(name.clone(), expanded.collect());
    }
    values
}

/// Exports, and looks at what was reported.
fn export(from: &Path, to: &Path, dtype: ExportDtype, shard_bytes: u64) {
    let mut watched = Watched::default();
    let checkpoint = Checkpoint::open(from).unwrap();
    let done = checkpoint.export_folder(to, dtype, &[], shard_bytes, &mut |done, total| {
        watched.see(done, total)
    });
    done.unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    watched.assert_whole();
}

#[test]
fn as_stored_every_byte_of_every_tensor_comes_back_in_one_file_and_in_many() {
    for case in cases() {
        let dir = Golden::open(&case).dir;
        let (scratch, want) = (Scratch::new(), raw(&dir));
        let limits = [u64::MAX, 9_000, 1];
        // A file for each tensor takes its time; one model shows it.
        for limit in limits.into_iter().take(if case == "qwen2" { 3 } else { 2 }) {
            let out = scratch.join("out");
            export(&dir, &out, ExportDtype::AsStored, limit);
            assert_eq!(raw(&out), want, "{case}");
            let config = |dir: &Path| fs::read(dir.join("config.json")).unwrap();
            assert_eq!(config(&out), config(&dir), "{case}");
            let files = safetensors_in(&out);
            let index = out.join("model.safetensors.index.json");
            if limit == u64::MAX {
                assert_eq!(files, ["model.safetensors"]);
                assert!(!index.exists());
                continue;
            }
            let first = format!("model-00001-of-{:05}.safetensors", files.len());
            assert!(files.len() > 3 && files[0] == first, "{files:?}");
            let index: serde_json::Value =
                serde_json::from_slice(&fs::read(index).unwrap()).unwrap();
            let bytes: usize = want.values().map(|tensor| tensor.bytes.len()).sum();
            assert_eq!(index["metadata"]["total_size"], bytes);
            assert_eq!(index["weight_map"].as_object().unwrap().len(), want.len());
            if limit == 1 {
                assert_eq!(files.len(), want.len(), "a file for each tensor");
            }
            // Its own reader compares the index with the files.
            Checkpoint::open(&out).unwrap();
        }
    }
}

#[test]
fn bf16_and_f32_hold_the_values_rounded_once_and_whole() {
    for case in cases() {
        let dir = Golden::open(&case).dir;
        let scratch = Scratch::new();
        let want = values(&raw(&dir));
        for dtype in [ExportDtype::F32, ExportDtype::Bf16] {
            let out = scratch.join("out");
            export(&dir, &out, dtype, u64::MAX);
            let found = raw(&out);
            for (name, tensor) in &found {
                let exact = dtype == ExportDtype::F32 || name.ends_with("e_score_correction_bias");
                assert_eq!(tensor.dtype, if exact { "F32" } else { "BF16" }, "{name}");
                let rounded = want[name].iter().map(|&value| match exact {
                    true => value,
                    false => half::bf16::from_f32(value).to_f32(),
                });
                assert!(tensor.floats().into_iter().eq(rounded), "{case} {name}");
            }
            // A repeated tied head is the only tensor that may be missing.
            for name in want.keys().filter(|name| !found.contains_key(*name)) {
                assert_eq!(name, "lm_head.weight", "{case}: {name} is gone");
            }
            let text = fs::read_to_string(out.join("config.json")).unwrap();
            assert!(!text.contains("quantization_config"), "{text}");
            let mut config = Config::read(&dir).unwrap();
            let again = Config::read(&out).unwrap();
            config.fp8 = None;
            config.torch_dtype = again.torch_dtype.clone();
            config.ignored_keys.clear();
            assert_eq!(again, config, "{case}");
            assert!(out.join("generation_config.json").exists());
        }
    }
}

#[test]
fn f32_folders_say_what_their_source_says() {
    for case in cases() {
        let golden = Golden::open(&case);
        let (scratch, batch) = (Scratch::new(), batch_of(&golden.documents()));
        let cpu = Cpu::new(2, Isa::best());
        let want = logits(
            &golden.model(Numerics::new(Precision::F32), &cpu),
            &cpu,
            &batch,
        );
        let out = scratch.join("out");
        export(&golden.dir, &out, ExportDtype::F32, 9_000);
        let got = logits_of(&out, Precision::F32, Loading::Read, &batch);
        assert!(got == want, "{case}");
        assert!(
            relative_to_spread(&got, &golden.every("logits")) < 1e-4,
            "{case}"
        );
    }
}

fn is_projection(name: &str) -> bool {
    let last = name
        .strip_suffix(".weight")
        .unwrap_or("")
        .rsplit('.')
        .next()
        .unwrap();
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    .contains(&last)
}

/// One block after the other, one element after the other, each code looked for among all.
fn quantise_naively(values: &[f32], rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let magnitudes: Vec<f64> = (0..127).map(e4m3).collect();
    let mut codes = vec![0; values.len()];
    let mut scales = Vec::new();
    for top in (0..rows).step_by(128) {
        for left in (0..cols).step_by(128) {
            let places: Vec<usize> = (top..rows.min(top + 128))
                .flat_map(|row| (left..cols.min(left + 128)).map(move |col| row * cols + col))
                .collect();
            let largest = places
                .iter()
                .fold(0f32, |most, &i| most.max(values[i].abs()));
            let scale = if largest == 0.0 { 1.0 } else { largest / 448.0 };
            scales.push(scale);
            for i in places {
                let wanted = f64::from((values[i] / scale).abs());
                let above = magnitudes.partition_point(|&m| m < wanted).clamp(1, 126);
                let (low, high) = (wanted - magnitudes[above - 1], magnitudes[above] - wanted);
                let nearest = if low < high || low == high && above % 2 == 1 {
                    above - 1
                } else {
                    above
                };
                codes[i] = nearest as u8 | if values[i].is_sign_negative() { 128 } else { 0 };
            }
        }
    }
    (codes, scales)
}

#[test]
fn fp8_blocks_are_those_of_a_naive_quantiser_and_open_again() {
    for case in cases() {
        let golden = Golden::open(&case);
        let (scratch, batch) = (Scratch::new(), batch_of(&golden.documents()));
        // FP8 itself is expanded first; its matrices are of several blocks.
        let wide = scratch.join("wide");
        export(&golden.dir, &wide, ExportDtype::F32, u64::MAX);
        let out = scratch.join("out");
        export(&wide, &out, ExportDtype::Fp8, u64::MAX);
        let (want, found) = (raw(&wide), raw(&out));
        let mut quantised = 0;
        for (name, tensor) in &want {
            let exact = tensor.floats();
            if !is_projection(name) {
                let bf16 = if name.ends_with("correction_bias") {
                    "F32"
                } else {
                    "BF16"
                };
                assert_eq!(found[name].dtype, bf16, "{name}");
                continue;
            }
            quantised += 1;
            let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
            let (codes, scales) = quantise_naively(&exact, rows, cols);
            assert_eq!(
                (&found[name].shape, &*found[name].dtype),
                (&tensor.shape, "F8_E4M3")
            );
            assert_eq!(found[name].bytes, codes, "{case} {name}");
            let stored = &found[&format!("{name}_scale_inv")];
            assert_eq!(
                stored.shape,
                [rows.div_ceil(128), cols.div_ceil(128)],
                "{name}"
            );
            assert_eq!(stored.floats(), scales, "{case} {name}");
        }
        assert_eq!(found.len(), want.len() + quantised, "{case}");
        let fp8 = Checkpoint::open(&out).unwrap().config().fp8.unwrap();
        assert_eq!((fp8.block, fp8.ue8m0), ([128, 128], false));
        let got = logits_of(&out, Precision::F32, Loading::Read, &batch);
        assert!(
            got == logits_of(&out, Precision::F32, Loading::Map, &batch),
            "{case}"
        );
        let vocab = Config::read(&out).unwrap().vocab_size;
        let error = median_error(&got, &golden.every("logits"), vocab);
        println!("{case}: {error:.3}");
        // Three bits of mantissa round by up to 1/16, of every product of every layer; weights read
        // wrongly move a row by its whole spread and more.
        assert!(error < 0.5, "{case}: {error}");
    }
}

#[test]
fn what_is_fp8_already_is_copied() {
    for case in ["v3-fp8", "v3-fp8-ue8m0"] {
        let (dir, scratch) = (Golden::open(case).dir, Scratch::new());
        let out = scratch.join("out");
        export(&dir, &out, ExportDtype::Fp8, u64::MAX);
        assert_eq!(raw(&out), raw(&dir), "{case}");
    }
}

/// A checkpoint as training writes it, with these weights changed.
fn own(dir: &Path, change: impl FnOnce(&Layout, &mut [f32])) {
    let checkpoint = Checkpoint::open(&Golden::open("v3-mtp").dir).unwrap();
    let layout = Layout::new(checkpoint.config());
    let mut weights = checkpoint.weights().unwrap().finite().unwrap();
    change(&layout, &mut weights);
    let dtype = WeightDtype::F32;
    write_folder(dir, checkpoint.config(), &layout, &weights, &[], dtype).unwrap();
}

#[test]
fn a_runs_own_checkpoint_is_copied_onto_itself_with_its_extra_files() {
    let scratch = Scratch::new();
    let dir = scratch.join("run");
    own(&dir, |_, _| ());
    let before = raw(&dir);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let extra: [(&str, &[u8]); 2] = [
        ("tokenizer.json", b"{}"),
        ("generation_config.json", b"{ }"),
    ];
    let dtype = ExportDtype::AsStored;
    checkpoint
        .export_folder(&dir, dtype, &extra, 9_000, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(raw(&dir), before);
    assert!(safetensors_in(&dir).len() > 1);
    assert_eq!(fs::read(dir.join("tokenizer.json")).unwrap(), b"{}");
    assert_eq!(
        fs::read(dir.join("generation_config.json")).unwrap(),
        b"{ }"
    );
    for taken in [
        "config.json",
        "model-00001-of-00002.safetensors",
        "../x",
        "",
    ] {
        let out = scratch.join("taken");
        let extra: [(&str, &[u8]); 1] = [(taken, b"")];
        let half = before
            .values()
            .map(|tensor| tensor.bytes.len() as u64)
            .sum::<u64>()
            * 3
            / 5;
        let done = checkpoint.export_folder(&out, dtype, &extra, half, &mut |_, _| {
            ControlFlow::Continue(())
        });
        assert!(matches!(done, Err(Error::Usage(_))), "{taken}: {done:?}");
        assert!(!out.exists());
    }
}

#[test]
fn blocks_of_zeros_are_finite_and_blocks_of_nan_are_refused_by_name() {
    let scratch = Scratch::new();
    let name = "model.layers.0.self_attn.o_proj.weight";
    let fill = |layout: &Layout, weights: &mut [f32], value: f32| {
        let spec = layout
            .tensors
            .iter()
            .find(|spec| spec.name == name)
            .unwrap();
        weights[spec.range()].fill(value);
    };
    for tiny in [0.0, -1e-43] {
        let dir = scratch.join("zero");
        own(&dir, |layout, weights| fill(layout, weights, tiny));
        let out = scratch.join("out");
        export(&dir, &out, ExportDtype::Fp8, u64::MAX);
        let found = raw(&out);
        assert!(found[name].bytes.iter().all(|code| code & 0x7f == 0));
        assert_eq!(found[&format!("{name}_scale_inv")].floats(), [1.0]);
    }
    let dir = scratch.join("nan");
    own(&dir, |layout, weights| fill(layout, weights, f32::NAN));
    let out = scratch.join("none");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let done = checkpoint.export_folder(&out, ExportDtype::Fp8, &[], 1 << 30, &mut |_, _| {
        ControlFlow::Continue(())
    });
    let error = done.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(text.contains(name) && text.contains("not finite"), "{text}");
    let mut left: Vec<_> = fs::read_dir(scratch.join("")).unwrap().flatten().collect();
    left.retain(|entry| entry.file_name().to_string_lossy().contains("none"));
    assert!(left.is_empty(), "{left:?}");
    let done = checkpoint.export_folder(&out, ExportDtype::F32, &[], 0, &mut |_, _| {
        ControlFlow::Continue(())
    });
    assert!(matches!(done, Err(Error::Usage(_))));
}

#[test]
fn an_export_stopped_at_any_report_leaves_nothing() {
    let scratch = Scratch::new();
    let checkpoint = Checkpoint::open(&Golden::open("v3-fp8").dir).unwrap();
    let (folder, file) = (scratch.join("stop/out"), scratch.join("stop/out.gguf"));
    fs::create_dir_all(scratch.join("stop")).unwrap();
    for dtype in [ExportDtype::AsStored, ExportDtype::F32] {
        for stop_at in [1, 2, 7] {
            let mut reports = 0;
            let mut report = |_, _| {
                reports += 1;
                match reports == stop_at {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            let done = match dtype {
                ExportDtype::F32 => {
                    checkpoint.export_gguf(&file, model::gguf::GgmlType::F32, None, &mut report)
                }
                dtype => checkpoint.export_folder(&folder, dtype, &[], 9_000, &mut report),
            };
            assert!(matches!(done, Err(Error::Stopped)), "{done:?}");
            assert_eq!(reports, stop_at);
            assert_eq!(fs::read_dir(scratch.join("stop")).unwrap().count(), 0);
        }
    }
}

//! Model folders and tensor files: out and in again, bit for bit.

use std::fs;

use model::{
    Config, Error, Layout, TensorData, WeightDtype, read_tensors, read_weights, recover_folder,
    write_atomic, write_folder, write_tensors,
};

#[path = "small/folder.rs"]
mod folder;
#[path = "small/scratch.rs"]
mod scratch;
mod small;
use folder::{counting_weights, write_raw, write_small};
use scratch::Scratch;
use small::small_config;

/// What lies in the folder, hidden files included.
fn names(scratch: &Scratch) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(scratch.join(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn f32_weights_come_back_bit_for_bit() {
    let scratch = Scratch::new();
    let dir = scratch.join("runs/one/model");
    let (config, layout, weights) = write_small(&dir);
    let read = read_weights(&dir, &config, &layout).unwrap();
    assert_eq!(read.finite().unwrap(), weights);
    assert_eq!(Config::read(&dir).unwrap(), config);
}

#[test]
fn bf16_keeps_the_router_bias_in_f32() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    let config = small_config();
    let layout = Layout::new(&config);
    let mut weights = counting_weights(&layout);
    let fine = 1.0 + f32::EPSILON;
    weights[layout.norm.start] = fine;
    weights[layout.trainable_len] = fine;
    write_folder(&dir, &config, &layout, &weights, &[], WeightDtype::Bf16).unwrap();
    let mut expected = weights.clone();
    expected[layout.norm.start] = 1.0;
    assert_eq!(read_weights(&dir, &config, &layout).unwrap().data, expected);
    for tensor in read_tensors(&dir.join("model.safetensors")).unwrap() {
        let bias = tensor.name.ends_with("e_score_correction_bias");
        assert_eq!(
            tensor.dtype,
            if bias { "F32" } else { "BF16" },
            "{}",
            tensor.name
        );
    }
    assert_eq!(Config::read(&dir).unwrap().torch_dtype, "bfloat16");
}

#[test]
fn the_same_model_gives_the_same_bytes_and_extra_files_are_kept() {
    let scratch = Scratch::new();
    let config = small_config();
    let layout = Layout::new(&config);
    let weights = counting_weights(&layout);
    let extras: [(&str, &[u8]); 2] = [("tokenizer.json", b"{}"), ("report.html", b"<p>")];
    for name in ["a", "b"] {
        let dir = scratch.join(name);
        write_folder(&dir, &config, &layout, &weights, &extras, WeightDtype::F32).unwrap();
    }
    for (name, bytes) in extras {
        assert_eq!(fs::read(scratch.join("a").join(name)).unwrap(), bytes);
    }
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "report.html",
    ] {
        let read = |dir: &str| fs::read(scratch.join(dir).join(name)).unwrap();
        assert_eq!(read("a"), read("b"), "{name}");
    }
    assert_eq!(fs::read_dir(scratch.join("a")).unwrap().count(), 5);
}

#[test]
fn data_starts_aligned_and_offsets_follow_the_layout() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    let (_, layout, weights) = write_small(&dir);
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(header % 8, 0);
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(json["__metadata__"]["format"], "pt");
    for spec in &layout.tensors {
        let begin = json[&spec.name]["data_offsets"][0].as_u64().unwrap() as usize;
        let first = &bytes[8 + header + begin..][..4];
        assert_eq!(first, weights[spec.offset].to_le_bytes(), "{}", spec.name);
    }
}

#[test]
fn a_folder_is_replaced_only_if_it_is_a_model() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    let (config, layout, mut weights) = write_small(&dir);
    weights[0] += 1.0;
    let write = || write_folder(&dir, &config, &layout, &weights, &[], WeightDtype::F32);
    write().unwrap();
    assert_eq!(read_weights(&dir, &config, &layout).unwrap().data, weights);
    fs::write(dir.join("thesis.txt"), "years of work").unwrap();
    let error = write().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("thesis.txt"), "{error}");
    assert!(dir.join("thesis.txt").exists());
    assert_eq!(names(&scratch), ["model"]);
}

#[test]
fn a_place_that_cannot_be_written_is_an_error_that_leaves_nothing() {
    let scratch = Scratch::new();
    fs::write(scratch.join("file"), "x").unwrap();
    let config = small_config();
    let layout = Layout::new(&config);
    let weights = counting_weights(&layout);
    for place in ["file", "file/model", "/"] {
        let dir = scratch.join(place);
        let error = write_folder(&dir, &config, &layout, &weights, &[], WeightDtype::F32);
        let error = error.expect_err(place);
        assert!(matches!(error.exit_code(), 1 | 2), "{place}: {error}");
    }
    assert_eq!(
        write_atomic(&scratch.join("file/x"), b"y")
            .unwrap_err()
            .exit_code(),
        1
    );
    assert_eq!(names(&scratch), ["file"]);
}

#[test]
fn extra_files_with_paths_or_taken_names_are_refused() {
    let scratch = Scratch::new();
    let config = small_config();
    let layout = Layout::new(&config);
    let weights = counting_weights(&layout);
    for name in [
        "../up",
        "a/b",
        "",
        ".",
        "..",
        ".hidden",
        "config.json",
        "model.safetensors",
    ] {
        let extra = [(name, &b"x"[..])];
        let dir = scratch.join("model");
        let written = write_folder(&dir, &config, &layout, &weights, &extra, WeightDtype::F32);
        assert_eq!(written.expect_err(name).exit_code(), 2, "{name}");
    }
    assert_eq!(names(&scratch), Vec::<String>::new());
}

#[test]
fn what_a_killed_writer_left_is_put_right() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    let (config, layout, weights) = write_small(&dir);
    // A process number that no running process has: above the kernel's own limit.
    let dead = 5_000_000;
    fs::rename(&dir, scratch.join(&format!(".old-model-{dead}"))).unwrap();
    fs::create_dir(scratch.join(&format!(".tmp-model-{dead}"))).unwrap();
    // Of another folder, and of a running process: not ours to touch.
    let others = [format!(".tmp-model-b-{dead}"), ".tmp-model-1".to_string()];
    others
        .iter()
        .for_each(|other| fs::create_dir(scratch.join(other)).unwrap());
    recover_folder(&dir).unwrap();
    assert_eq!(read_weights(&dir, &config, &layout).unwrap().data, weights);
    assert_eq!(names(&scratch), [".tmp-model-1", &others[0], "model"]);
}

#[test]
fn write_atomic_replaces_a_file_and_leaves_no_other() {
    let scratch = Scratch::new();
    let path = scratch.join("latest");
    write_atomic(&path, b"first").unwrap();
    fs::write(scratch.join(".tmp-latest-5000000"), "of a killed writer").unwrap();
    write_atomic(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(names(&scratch), ["latest"]);
    let folder = write_atomic(&scratch.join("."), b"x").unwrap_err();
    assert_eq!(folder.exit_code(), 2, "{folder}");
    let device = write_atomic(std::path::Path::new("/dev/null"), b"x").unwrap_err();
    assert_eq!(
        device.exit_code(),
        2,
        "a device is not replaced by a file: {device}"
    );
}

#[test]
fn tensor_files_keep_names_shapes_and_values() {
    let scratch = Scratch::new();
    let path = scratch.join("logits.safetensors");
    let values = [1.0, -2.5, f32::MIN_POSITIVE, 4.0, 5.0, f32::INFINITY];
    write_tensors(
        &path,
        &[("logits.0", &[2, 3], &values), ("a \"b\"", &[1], &[7.0])],
    )
    .unwrap();
    let tensors = read_tensors(&path).unwrap();
    let names: Vec<_> = tensors
        .iter()
        .map(|t| (t.name.as_str(), t.shape.as_slice()))
        .collect();
    assert_eq!(names, [("logits.0", &[2, 3][..]), ("a \"b\"", &[1])]);
    assert_eq!(tensors[0].data, TensorData::F32(values.to_vec()));
    let twice = write_tensors(&path, &[("x", &[1], &[0.0]), ("x", &[1], &[0.0])]);
    assert_eq!(twice.unwrap_err().exit_code(), 2);
}

#[test]
fn integers_and_half_floats_are_read() {
    let scratch = Scratch::new();
    let path = scratch.join("golden.safetensors");
    let header = r#"{"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},
        "few":{"dtype":"I32","shape":[1],"data_offsets":[16,20]},
        "half":{"dtype":"F16","shape":[1],"data_offsets":[20,22]}}"#;
    write_raw(&path, header, 22);
    let mut bytes = fs::read(&path).unwrap();
    let data = bytes.len() - 22;
    bytes[data..data + 16].copy_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0].repeat(2));
    bytes[data + 16..data + 20].copy_from_slice(&(-3i32).to_le_bytes());
    bytes[data + 20..].copy_from_slice(&0xc100u16.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let data: Vec<TensorData> = read_tensors(&path)
        .unwrap()
        .into_iter()
        .map(|t| t.data)
        .collect();
    let expected = [
        TensorData::I32(vec![7, 7]),
        TensorData::I32(vec![-3]),
        TensorData::F32(vec![-2.5]),
    ];
    assert_eq!(data, expected);
    bytes[8 + header.len() + 5] = 1;
    fs::write(&path, &bytes).unwrap();
    let error: Error = read_tensors(&path).unwrap_err();
    assert!(error.to_string().contains("`ids`"), "{error}");
}

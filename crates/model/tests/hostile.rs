//! Checkpoints that are broken, or made to do harm: a clean error that says what and where.

use std::fs;
use std::path::Path;

use model::{Config, Error, Layout, NonFinite, read_tensors, read_weights, write_tensors};
use serde_json::json;

#[path = "small/folder.rs"]
mod folder;
#[path = "small/scratch.rs"]
mod scratch;
mod small;
use folder::{counting_weights, write_raw, write_small};
use scratch::Scratch;
use small::small_config;

fn read(dir: &Path) -> Result<model::Weights, Error> {
    let config = small_config();
    read_weights(dir, &config, &Layout::new(&config))
}

fn expect_bad_file(result: Result<model::Weights, Error>, words: &[&str]) {
    let error = result
        .map(|_| ())
        .expect_err(&format!("expected {words:?}"));
    let text = error.to_string();
    assert_eq!(error.exit_code(), 3, "{text}");
    words
        .iter()
        .for_each(|word| assert!(text.contains(word), "no {word:?} in: {text}"));
}

#[test]
fn a_file_cut_anywhere_says_what_was_expected_and_found() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    write_small(&dir);
    let path = dir.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for percent in 0..100 {
        let cut = whole.len() * percent / 100;
        fs::write(&path, &whole[..cut]).unwrap();
        let found = format!("{cut} found");
        expect_bad_file(read(&dir), &["model.safetensors", "bytes expected", &found]);
    }
    fs::write(&path, [&whole[..], b"PK"].concat()).unwrap();
    let expected = format!("{} bytes expected, {} found", whole.len(), whole.len() + 2);
    expect_bad_file(read(&dir), &[&expected]);
}

#[test]
fn every_bit_flip_gives_weights_or_a_clean_error() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    write_small(&dir);
    let path = dir.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    // Every seventh byte of the header, one bit each, and so all bits in turn.
    for place in (0..header).step_by(7) {
        let mut flipped = whole.clone();
        flipped[place] ^= 1 << (place % 8);
        fs::write(&path, &flipped).unwrap();
        if let Err(error) = read(&dir) {
            assert_eq!(error.exit_code(), 3, "byte {place}: {error}");
        }
    }
}

#[test]
fn a_lie_about_the_header_length_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.join("model.safetensors");
    write_raw(&path, "{}      ", 0);
    let mut bytes = fs::read(&path).unwrap();
    let lies = [0, 7, 1 << 63, u64::MAX, bytes.len() as u64 + 1, 100_000_001];
    for length in lies {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let error = read_tensors(&path).expect_err(&length.to_string());
        assert_eq!(error.exit_code(), 3, "{error}");
    }
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(
        read_tensors(&path)
            .unwrap_err()
            .to_string()
            .contains("git lfs pull")
    );
}

#[test]
fn a_lie_in_an_entry_names_the_tensor() {
    let scratch = Scratch::new();
    let path = scratch.join("model.safetensors");
    let f32 = |shape: serde_json::Value, offsets: [u64; 2]| {
        json!({
            "dtype": "F32",
            "shape": shape,
            "data_offsets": offsets,
        })
    };
    let good = f32(json!([2]), [0, 8]);
    let cases = [
        ("overlap", f32(json!([2]), [4, 12]), "overlap"),
        ("backwards", f32(json!([2]), [16, 8]), "backwards"),
        ("gap", f32(json!([1]), [12, 16]), "gap"),
        ("wrong size", f32(json!([3]), [8, 16]), "needs 12 bytes"),
        ("zero", f32(json!([0, 2]), [8, 8]), "zero"),
        (
            "overflow",
            f32(json!([1u64 << 40, 1u64 << 40]), [8, 16]),
            "no size",
        ),
        (
            "wraps to 8",
            f32(json!([(1u64 << 62) + 2]), [8, 16]),
            "no size",
        ),
        ("negative", f32(json!([-2]), [8, 16]), "invalid value"),
        (
            "many dimensions",
            f32(json!(vec![1; 9]), [8, 12]),
            "dimensions",
        ),
        (
            "type",
            json!({"dtype": "X9", "shape": [2], "data_offsets": [8, 16]}),
            "X9",
        ),
        (
            "no dtype",
            json!({"shape": [2], "data_offsets": [8, 16]}),
            "dtype",
        ),
        (
            "more",
            json!({"dtype": "F32", "shape": [2], "data_offsets": [8, 16], "z": 1}),
            "`z`",
        ),
        ("a number", json!(3), "invalid type"),
    ];
    for (name, entry, word) in cases {
        let mut header = json!({"good": good});
        header[name] = entry;
        write_raw(&path, &header.to_string(), 8);
        let text = read_tensors(&path).expect_err(name).to_string();
        assert!(
            text.contains(&format!("`{name}`")) && text.contains(word),
            "{name}: {text}"
        );
    }
    write_raw(
        &path,
        &json!({"good": good, "past": f32(json!([2]), [8, 16])}).to_string(),
        8,
    );
    assert!(
        read_tensors(&path)
            .unwrap_err()
            .to_string()
            .contains("truncated")
    );
    let end = u64::MAX / 8 * 8;
    let huge = json!({"dtype": "U8", "shape": [end], "data_offsets": [0, end]});
    write_raw(&path, &json!({ "huge": huge }).to_string(), 8);
    assert_eq!(read_tensors(&path).unwrap_err().exit_code(), 3);
}

#[test]
fn a_header_that_is_not_plain_json_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.join("model.safetensors");
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let twice = format!(r#"{{"w":{entry},"w":{entry}}}"#);
    let deep = format!(r#"{{"w":{}"#, "[".repeat(10_000));
    let deep_metadata = format!(r#"{{"__metadata__":{}"#, "[".repeat(10_000));
    let many: Vec<String> = (0..1_000_000)
        .map(|i| format!(r#""t{i}":{entry}"#))
        .collect();
    let many = format!("{{{}}}", many.join(","));
    let flat = format!(r#"{{"w":{{"shape":[{}1]}}}}"#, "1,".repeat(20_000_000));
    for (header, word) in [
        (twice.as_str(), "`w` is there twice"),
        (&deep, "invalid type"),
        (&deep_metadata, "EOF"),
        (&many, "more than 131072 tensors"),
        (&flat, "more than 8 dimensions"),
        ("{}{}", "trailing"),
        (" {}", "does not start"),
        ("nothing", "does not start"),
    ] {
        write_raw(&path, header, 4);
        let text = read_tensors(&path).expect_err(word).to_string();
        assert!(text.contains(word), "{word}: {text}");
        assert!(text.len() < 500, "a message of {} bytes", text.len());
    }
    fs::write(&path, [&8u64.to_le_bytes()[..], b"{\"\xff\":{}}"].concat()).unwrap();
    assert!(
        read_tensors(&path)
            .unwrap_err()
            .to_string()
            .contains("UTF-8")
    );
}

#[test]
fn all_differences_are_in_one_report() {
    let scratch = Scratch::new();
    let config = small_config();
    let layout = Layout::new(&config);
    let weights = counting_weights(&layout);
    let reshaped = "model.norm.weight";
    let (missing, other) = ("lm_head.weight", "model.layers.0.mlp.up_proj.weight");
    let shape = [2, config.hidden_size / 2];
    let mut tensors: Vec<(&str, &[usize], &[f32])> = Vec::new();
    for spec in layout
        .tensors
        .iter()
        .filter(|spec| spec.name != missing && spec.name != other)
    {
        let shape = if spec.name == reshaped {
            &shape[..]
        } else {
            &spec.shape
        };
        tensors.push((&spec.name, shape, &weights[spec.range()]));
    }
    tensors.push(("model.layers.3.eh_proj.weight", &[1], &[0.0]));
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq", &[1], &[0.0]));
    write_tensors(&scratch.join("model.safetensors"), &tensors).unwrap();
    let error = read(&scratch.join("")).unwrap_err();
    let Error::Mismatch { differences, .. } = &error else {
        panic!("{error}")
    };
    let expected = [
        "missing: `model.layers.0.mlp.up_proj.weight` [12, 8]",
        "shape: `model.norm.weight` is [2, 4] in the file, [8] by config.json",
        "missing: `lm_head.weight` [20, 8]",
        "unexpected: `model.layers.3.eh_proj.weight` [1]",
    ];
    assert_eq!(differences, &expected);
    expected
        .iter()
        .for_each(|line| assert!(error.to_string().contains(line)));
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn an_edited_hidden_size_lists_every_tensor_it_touches() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    let (config, layout, _) = write_small(&dir);
    let edited = Config {
        hidden_size: 9,
        ..config
    };
    let error = read_weights(&dir, &edited, &Layout::new(&edited)).unwrap_err();
    let Error::Mismatch { differences, .. } = &error else {
        panic!("{error}")
    };
    let touched = layout
        .tensors
        .iter()
        .filter(|spec| spec.shape.contains(&8))
        .count();
    assert_eq!(differences.len(), touched);
}

#[test]
fn a_wrong_type_is_a_difference() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    write_small(&dir);
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + header_len].to_vec()).unwrap();
    let name = r#""model.norm.weight":{"dtype":""#;
    assert!(header.contains(name));
    let changed = header.replace(&format!("{name}F32"), &format!("{name}I32"));
    write_raw(&path, &changed, bytes.len() - 8 - header_len);
    expect_bad_file(read(&dir), &["1 difference", "`model.norm.weight` is I32"]);
}

#[test]
fn values_that_are_not_finite_are_counted_by_tensor() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    let (config, layout, mut weights) = write_small(&dir);
    let start = layout.lm_head.start;
    weights[start..start + 3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    model::write_folder(
        &dir,
        &config,
        &layout,
        &weights,
        &[],
        model::WeightDtype::F32,
    )
    .unwrap();
    let read = read(&dir).unwrap();
    let expected = NonFinite {
        tensor: "lm_head.weight".to_string(),
        nan: 1,
        infinite: 2,
    };
    assert_eq!(read.non_finite, [expected]);
    let error = read.finite().unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(
        error
            .to_string()
            .contains("`lm_head.weight` has 1 NaN and 2 infinite"),
        "{error}"
    );
}

/// A model in two files, and an index whose first file name is `first`.
fn write_shards(dir: &Path, first: &str) {
    let config = small_config();
    let layout = Layout::new(&config);
    let weights = counting_weights(&layout);
    let files = ["model-1.safetensors", "model-2.safetensors"];
    let mut weight_map = serde_json::Map::new();
    let half = layout.tensors.len() / 2;
    for (file, specs) in files
        .iter()
        .zip([&layout.tensors[..half], &layout.tensors[half..]])
    {
        let tensors: Vec<(&str, &[usize], &[f32])> = specs
            .iter()
            .map(|s| (s.name.as_str(), s.shape.as_slice(), &weights[s.range()]))
            .collect();
        write_tensors(&dir.join(file), &tensors).unwrap();
        let listed = if *file == files[0] { first } else { file };
        weight_map.extend(specs.iter().map(|spec| (spec.name.clone(), json!(listed))));
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn sharded_weights_are_the_same_weights() {
    let scratch = Scratch::new();
    write_shards(&scratch.join(""), "model-1.safetensors");
    let layout = Layout::new(&small_config());
    assert_eq!(
        read(&scratch.join("")).unwrap().data,
        counting_weights(&layout)
    );
}

#[test]
fn an_index_never_leads_out_of_its_folder() {
    let scratch = Scratch::new();
    let dir = scratch.join("model");
    fs::create_dir(&dir).unwrap();
    let outside = scratch.join("outside.safetensors");
    write_tensors(&outside, &[("w", &[1], &[1.0])]).unwrap();
    let absolute = outside.to_str().unwrap();
    for name in [
        "../outside.safetensors",
        absolute,
        "sub/x.safetensors",
        "..\\x.safetensors",
    ] {
        write_shards(&dir, name);
        expect_bad_file(read(&dir), &["not the plain name"]);
    }
    write_shards(&dir, "../../etc/passwd");
    expect_bad_file(read(&dir), &["passwd", "not a .safetensors file"]);
    write_shards(&dir, "gone.safetensors");
    expect_bad_file(read(&dir), &["gone.safetensors", "no such file"]);
    write_shards(&dir, "model-2.safetensors");
    expect_bad_file(read(&dir), &["missing: `model.embed_tokens.weight`"]);
}

#[cfg(unix)]
#[test]
fn links_may_not_leave_the_folder_except_into_the_cache_blobs() {
    use std::os::unix::fs::symlink;
    let scratch = Scratch::new();
    let elsewhere = scratch.join("elsewhere");
    write_small(&elsewhere);
    let dir = scratch.join("hub/models--a--b/snapshots/0123");
    let blobs = scratch.join("hub/models--a--b/blobs");
    fs::create_dir_all(&dir).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    let link = dir.join("model.safetensors");
    symlink(elsewhere.join("model.safetensors"), &link).unwrap();
    expect_bad_file(read(&dir), &["leads out of its folder"]);
    fs::copy(elsewhere.join("model.safetensors"), blobs.join("abcd")).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("../../blobs/abcd", &link).unwrap();
    assert!(read(&dir).is_ok());
    fs::remove_file(&link).unwrap();
    symlink("model.safetensors", &link).unwrap();
    expect_bad_file(read(&dir), &["cannot be opened"]);
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    expect_bad_file(read(&dir), &["not a regular file"]);
}

#[test]
fn an_index_that_disagrees_with_the_files_is_reported() {
    let scratch = Scratch::new();
    let dir = scratch.join("");
    write_shards(&dir, "model-1.safetensors");
    let path = dir.join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    index["weight_map"]["lm_head.weight"] = json!("model-1.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    expect_bad_file(read(&dir), &["misplaced: `lm_head.weight`"]);
    fs::copy(
        dir.join("model-1.safetensors"),
        dir.join("model-3.safetensors"),
    )
    .unwrap();
    index["weight_map"]["extra"] = json!("model-3.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    expect_bad_file(read(&dir), &["twice: `model.embed_tokens.weight`"]);
    for broken in [
        "",
        "[]",
        r#"{"weight_map":{}}"#,
        r#"{"weight_map":{"a":3}}"#,
    ] {
        fs::write(&path, broken).unwrap();
        expect_bad_file(read(&dir), &["index.json"]);
    }
}

#[test]
fn pickled_weights_are_refused_unread_with_the_way_to_convert_them() {
    let scratch = Scratch::new();
    fs::write(scratch.join("pytorch_model.bin"), b"\x80\x02cos\nsystem\n").unwrap();
    expect_bad_file(read(&scratch.join("")), &["pickled", "save_pretrained"]);
    let empty = Scratch::new();
    expect_bad_file(read(&empty.join("")), &["neither model.safetensors nor"]);
    expect_bad_file(read(&empty.join("gone")), &["no such folder"]);
}

//! A checkpoint far larger than what is wanted of memory: DeepSeek-V2-Lite's true shapes, 31 GB,
//! as sparse files that take next to nothing on disk.

use kernels::{Cpu, Isa, Precision};
use model::{
    Activations, Batch, Checkpoint, Config, KeptWeights, Layout, Loading, Numerics, Opening,
    TensorSpec,
};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const CONFIG: &str = r#"{"model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048,
"intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
"num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2,
"n_routed_experts": 64, "routed_scaling_factor": 1.0, "kv_lora_rank": 512, "q_lora_rank": null,
"qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "topk_method": "greedy",
"n_group": 1, "topk_group": 1, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
"norm_topk_prob": false, "scoring_func": "softmax", "max_position_embeddings": 163840,
"rope_theta": 10000, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16", "bos_token_id": 100000,
"eos_token_id": 100001, "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.707,
"mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1,
"original_max_position_embeddings": 4096}}"#;

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file of BF16 zeros, none of which is written.
fn sparse_shard(path: &Path, tensors: &[&TensorSpec]) {
    let (mut entries, mut end) = (Vec::new(), 0);
    for tensor in tensors {
        let (start, shape) = (end, &tensor.shape);
        end += 2 * tensor.len as u64;
        entries.push(format!(
            r#""{}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#,
            tensor.name
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

fn sparse_v2_lite() -> Folder {
    let name = format!("bruchteil-v2-lite-{}", std::process::id());
    // Not the system's temporary folder: where that is memory, pages that are read stay.
    let folder = Folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(folder.0.join("config.json"), CONFIG).unwrap();
    let layout = Layout::new(&Config::from_json(CONFIG).unwrap());
    let tensors: Vec<&TensorSpec> = layout.tensors.iter().collect();
    let mut index = Vec::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(4)).enumerate() {
        let file = format!("model-0000{}-of-00004.safetensors", i + 1);
        sparse_shard(&folder.0.join(&file), part);
        index.extend(part.iter().map(|t| format!(r#""{}":"{file}""#, t.name)));
    }
    let index = format!(r#"{{"weight_map":{{{}}}}}"#, index.join(","));
    std::fs::write(folder.0.join("model.safetensors.index.json"), index).unwrap();
    folder
}

/// Memory of this process that is not a file's, in bytes.
#[cfg(target_os = "linux")]
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let words = line.expect("RssAnon in status").split_whitespace();
    1024 * words.filter_map(|w| w.parse::<u64>().ok()).next().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn a_checkpoint_larger_than_memory_opens_by_map_and_computes() {
    let folder = sparse_v2_lite();
    let cpu = Cpu::new(2, Isa::best());
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    assert_eq!(checkpoint.config().parameters_total(), 15_706_484_224);
    let before = anonymous_memory();
    let opening = Opening {
        numerics: Numerics::new(Precision::Bf16),
        weights: KeptWeights::AsStored,
        loading: Loading::Map,
        mtp: false,
    };
    let opened = checkpoint.model(opening, &cpu, &mut |_, _| {}).unwrap();
    // Norms are held in f32, everything else is mapped: two bytes a parameter.
    let two_bytes = 2 * 15_706_484_224;
    assert!((two_bytes..two_bytes + 1_000_000).contains(&(opened.weight_bytes as u64)));
    let held = anonymous_memory() - before;
    assert!(held < 64 << 20, "{held} bytes held by a mapped model");

    // Zero weights make every expert equal and every logit zero; six experts of 64 are touched.
    let model = opened.model;
    let mut acts = Activations::for_inference();
    model.forward(&cpu, &Batch::documents(&[&[1, 2]]), &mut acts, None);
    let mut logits = Vec::new();
    model.logits(&cpu, &mut acts, &[1], &mut logits);
    assert!(logits.len() == 102_400 && logits.iter().all(|&logit| logit == 0.0));
    let held = anonymous_memory() - before;
    assert!(held < 256 << 20, "{held} bytes held after a step");
}

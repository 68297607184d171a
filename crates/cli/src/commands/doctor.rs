//! `doctor`: the machine, the laws of the numbers on it, and on request a model folder.

mod checks;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use kernels::{Cpu, Isa, Precision};
use model::{Activations, Batch, Config, Model, Numerics};
use serde::Serialize;

use super::{print, print_json};
use crate::failure::{FAILURE, Failure, Outcome};
use crate::memory;
use crate::plain::plain;
use crate::settings::{self, Settings};
use checks::Check;

/// Check this machine, this program, and on request a model
///
/// The self-check runs small random models, of latent and of grouped attention, on every
/// instruction set of the machine with 1, 2 and 3 threads: all must give the same bits. Exits 1
/// where something is wrong, 3 for a bad model.
#[derive(Args)]
#[command(after_help = "Example:\n  bruchteil doctor demo-out/grpo")]
pub struct Doctor {
    /// A Hugging Face model folder or GGUF file to check too
    model: Option<PathBuf>,
}

#[derive(Serialize)]
struct Findings {
    version: &'static str,
    machine: Machine,
    environment: Vec<Variable>,
    laws: Vec<Law>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model: Vec<Check>,
    healthy: bool,
}

#[derive(Serialize)]
struct Machine {
    cores: usize,
    threads: usize,
    instruction_sets: Vec<&'static str>,
    instruction_set_used: &'static str,
    precision: String,
    memory_total_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
}

/// An environment variable that this program reads.
#[derive(Serialize)]
struct Variable {
    name: &'static str,
    value: Option<String>,
    effect: &'static str,
}

/// Whether one precision gives the same bits in every way of running.
#[derive(Serialize)]
struct Law {
    precision: String,
    /// blake3 of the models' logits by the plain instructions on one thread.
    hash: String,
    ways: usize,
    /// Ways that gave other bits, as "instruction set, threads".
    differing: Vec<String>,
}

impl Doctor {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let laws: Vec<Law> = [Precision::F32, Precision::Bf16].map(law).into();
        let model = match &self.model {
            Some(path) => checks::checks(path, settings)?,
            None => Vec::new(),
        };
        let lawful = laws.iter().all(|law| law.differing.is_empty());
        let sound = model.iter().all(|check| check.good != Some(false));
        let findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            machine: machine(settings),
            environment: environment(),
            laws,
            model,
            healthy: lawful && sound,
        };
        if settings.json {
            print_json(&findings)?;
        } else {
            print(&findings.in_words())?;
        }
        match (lawful, sound) {
            (true, true) => Ok(()),
            (false, _) => Err(Failure::new(
                FAILURE,
                "results differ between instruction sets or thread counts on this machine",
                "report this list; until then use --isa portable --threads 1",
            )),
            (true, false) => {
                let dir = self.model.as_deref().unwrap_or(Path::new(""));
                Err(Failure::input(
                    dir,
                    "the model is not sound",
                    "see the lines marked BAD",
                ))
            }
        }
    }
}

fn machine(settings: &Settings) -> Machine {
    Machine {
        cores: settings::cores(),
        threads: settings.thread_count(),
        instruction_sets: Isa::available().into_iter().map(Isa::name).collect(),
        instruction_set_used: settings.isa().name(),
        precision: format!("{:?}", settings.precision()).to_lowercase(),
        memory_total_bytes: memory::total(),
        memory_available_bytes: memory::available(),
    }
}

fn environment() -> Vec<Variable> {
    let variable = |(name, effect)| Variable {
        name,
        value: std::env::var(name).ok(),
        effect,
    };
    [
        (
            settings::THREADS_VARIABLE,
            "threads when --threads is not given",
        ),
        (
            "NO_COLOR",
            "no colour in --help and in usage errors (elsewhere there is none)",
        ),
        (
            "RUST_BACKTRACE",
            "1: a bug of this program shows where it happened",
        ),
    ]
    .map(variable)
    .into()
}

/// Runs the small models in every way and compares the bits of their logits.
fn law(precision: Precision) -> Law {
    let mut hash = String::new();
    let (mut ways, mut differing) = (0, Vec::new());
    for isa in Isa::available() {
        for threads in 1..=3 {
            let found = logits_hash(precision, &Cpu::new(threads, isa));
            if ways == 0 {
                hash.clone_from(&found);
            }
            if found != hash {
                differing.push(format!("{isa}, {threads} threads"));
            }
            ways += 1;
        }
    }
    let precision = format!("{precision:?}").to_lowercase();
    Law {
        precision,
        hash,
        ways,
        differing,
    }
}

/// Sizes that no vector divides: latent attention with a dense layer, and grouped attention with
/// norms of its heads; both with experts.
const SMALL_MODELS: [&str; 2] = [
    r#"{"model_type": "deepseek_v3", "vocab_size": 131, "hidden_size": 72,
"intermediate_size": 90, "moe_intermediate_size": 34, "num_hidden_layers": 3,
"num_attention_heads": 3, "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2,
"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": null,
"kv_lora_rank": 40, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 20,
"routed_scaling_factor": 1.5, "num_nextn_predict_layers": 0, "eos_token_id": 1}"#,
    r#"{"model_type": "qwen3_moe", "vocab_size": 131, "hidden_size": 72, "intermediate_size": 90,
"moe_intermediate_size": 34, "num_hidden_layers": 2, "num_attention_heads": 6,
"num_key_value_heads": 2, "head_dim": 22, "num_experts": 6, "num_experts_per_tok": 2,
"norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
"max_position_embeddings": 256, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
"tie_word_embeddings": false, "eos_token_id": 1}"#,
];

fn logits_hash(precision: Precision, backend: &Cpu) -> String {
    let mut hasher = blake3::Hasher::new();
    for config in SMALL_MODELS {
        let config = Config::from_json(config).expect("the small models are valid");
        for logit in small_logits(config, precision, backend) {
            hasher.update(&logit.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Of two documents in one batch.
fn small_logits(config: Config, precision: Precision, backend: &Cpu) -> Vec<f32> {
    let model = Model::random(config, Numerics::new(precision), 7, backend);
    let documents: [Vec<u32>; 2] = [
        (0..37).map(|i| i * 53 % 131).collect(),
        (0..21).map(|i| i * 29 % 131).collect(),
    ];
    let batch = Batch::documents(&[documents[0].as_slice(), documents[1].as_slice()]);
    let mut acts = Activations::new(&model.config);
    model.forward(backend, &batch, &mut acts, None);
    let rows: Vec<u32> = (0..58).collect();
    let mut logits = Vec::new();
    model.logits(backend, &mut acts, &rows, &mut logits);
    logits
}

impl Findings {
    fn in_words(&self) -> String {
        let mut text = format!("bruchteil {}\n", self.version);
        let machine = &self.machine;
        let mut line = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<18} {}", plain(&value));
        };
        line(
            "cores",
            format!("{} (using {} threads)", machine.cores, machine.threads),
        );
        let sets = machine.instruction_sets.join(", ");
        line(
            "instruction sets",
            format!("{sets} (using {})", machine.instruction_set_used),
        );
        line("precision", machine.precision.clone());
        for (name, bytes) in [
            ("memory", machine.memory_total_bytes),
            ("memory available", machine.memory_available_bytes),
        ] {
            let shown = bytes.map(|bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64));
            line(name, shown.unwrap_or("unknown".to_string()));
        }
        for variable in &self.environment {
            let value = variable.value.as_deref().unwrap_or("not set");
            line(variable.name, format!("{value} ({})", variable.effect));
        }
        for law in &self.laws {
            let found = match law.differing.is_empty() {
                true => format!(
                    "good: the same bits in {} ways, {}",
                    law.ways,
                    &law.hash[..16]
                ),
                false => format!("BAD: other bits with {}", law.differing.join("; ")),
            };
            line(&format!("law in {}", law.precision), found);
        }
        for check in &self.model {
            line(check.what, check.in_words());
        }
        text
    }
}

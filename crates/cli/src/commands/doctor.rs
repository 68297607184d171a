//! `doctor`: the machine, the laws of the numbers on it, and on request a model folder.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use kernels::{Cpu, Isa, Precision};
use model::{Activations, Batch, Config, Layout, Model, Numerics};
use serde::Serialize;

use super::{print, print_json};
use crate::failure::{FAILURE, Failure, Outcome};
use crate::folder::Folder;
use crate::settings::{self, Settings};

/// Check this machine, this program, and on request a model folder
///
/// The self-check runs a small random model on every instruction set of the machine with 1, 2 and
/// 3 threads: all must give the same bits. Exits 1 where something is wrong, 3 for a bad model.
#[derive(Args)]
#[command(after_help = "Example:\n  bruchteil doctor demo-out/grpo")]
pub struct Doctor {
    /// A Hugging Face model folder to check too
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
    /// blake3 of the logits by the plain instructions on one thread.
    hash: String,
    ways: usize,
    /// Ways that gave other bits, as "instruction set, threads".
    differing: Vec<String>,
}

#[derive(Serialize)]
struct Check {
    what: &'static str,
    good: bool,
    found: String,
}

impl Doctor {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let laws: Vec<Law> = [Precision::F32, Precision::Bf16].map(law).into();
        let model = match &self.model {
            Some(dir) => checks(dir)?,
            None => Vec::new(),
        };
        let lawful = laws.iter().all(|law| law.differing.is_empty());
        let sound = model.iter().all(|check| check.good);
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
        memory_total_bytes: memory("MemTotal:"),
        memory_available_bytes: memory("MemAvailable:"),
    }
}

/// A line of Linux's table of memory, in bytes; `None` on other systems.
fn memory(field: &str) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(1024 * kibibytes)
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

/// Runs the small model in every way and compares the bits of its logits.
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

/// Every kind of layer, sizes that no vector divides, and two documents in one batch.
const SMALL_MODEL: &str = r#"{"model_type": "deepseek_v3", "vocab_size": 131, "hidden_size": 72,
"intermediate_size": 90, "moe_intermediate_size": 34, "num_hidden_layers": 3,
"num_attention_heads": 3, "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2,
"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": null,
"kv_lora_rank": 40, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 20,
"routed_scaling_factor": 1.5, "num_nextn_predict_layers": 0, "eos_token_id": 1}"#;

fn logits_hash(precision: Precision, backend: &Cpu) -> String {
    let config = Config::from_json(SMALL_MODEL).expect("the small model is valid");
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
    let bytes: Vec<u8> = logits
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    blake3::hash(&bytes).to_hex().to_string()
}

/// What can be wrong with a folder whose files can be read.
///
/// # Errors
/// A file is missing or bad, or the weights do not fit the configuration.
fn checks(dir: &Path) -> Result<Vec<Check>, Failure> {
    let folder = Folder::open(dir)?;
    let layout = Layout::new(&folder.config);
    let weights = model::read_weights(&folder.dir, &folder.config, &layout)?;
    let non_finite: Vec<String> = weights.non_finite.iter().map(ToString::to_string).collect();
    let tensors = layout.tensors.len();
    let mut checks = vec![
        Check {
            what: "shapes",
            good: true,
            found: format!("{tensors} tensors fit config.json"),
        },
        Check {
            what: "values",
            good: non_finite.is_empty(),
            found: match non_finite.is_empty() {
                true => "all finite".to_string(),
                false => non_finite.join("; "),
            },
        },
    ];
    checks.extend([tokenizer_check(&folder), template_check(&folder)]);
    checks.push(Check {
        what: "stop tokens",
        good: !folder.stop_token_ids.is_empty(),
        found: format!("{:?}", folder.stop_token_ids),
    });
    Ok(checks)
}

fn tokenizer_check(folder: &Folder) -> Check {
    let what = "tokenizer";
    let rows = folder.config.vocab_size;
    match &folder.tokenizer {
        None => Check {
            what,
            good: false,
            found: "there is no tokenizer.json".to_string(),
        },
        Some(tokenizer) => {
            let tokens = tokenizer.vocab_size();
            let eos = tokenizer.token_to_id(&folder.eos_token);
            let eos_agrees = eos.is_none_or(|id| folder.stop_token_ids.contains(&id));
            let found = match (tokens <= rows, eos_agrees) {
                (false, _) => format!("{tokens} tokens, but vocab_size is {rows}"),
                (true, false) => format!("{:?} is not a stop token", folder.eos_token),
                (true, true) => format!("{tokens} tokens for {rows} rows"),
            };
            Check {
                what,
                good: tokens <= rows && eos_agrees,
                found,
            }
        }
    }
}

fn template_check(folder: &Folder) -> Check {
    let what = "chat template";
    if folder.chat_template.is_none() {
        let found = "there is none; `generate --chat` will not work".to_string();
        return Check {
            what,
            good: true,
            found,
        };
    }
    match folder.chat_prompt("1 2 3 4") {
        Ok(prompt) => Check {
            what,
            good: true,
            found: format!("renders {prompt:?}"),
        },
        Err(failure) => Check {
            what,
            good: false,
            found: failure.lines().join(" "),
        },
    }
}

impl Findings {
    fn in_words(&self) -> String {
        let mut text = format!("bruchteil {}\n", self.version);
        let machine = &self.machine;
        let mut line = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<18} {value}");
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
            let mark = if check.good { "good" } else { "BAD" };
            line(check.what, format!("{mark}: {}", check.found));
        }
        text
    }
}

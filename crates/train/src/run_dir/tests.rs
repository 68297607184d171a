use super::*;
use crate::drive::{Control, drive};
use crate::grpo::Grpo;
use crate::sft::Sft;
use crate::testing::{backend, easy_setup};
use kernels::Cpu;

/// A directory that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("train-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn setup(every_steps: u64) -> Setup {
    easy_setup(|config| {
        config.checkpoint.every_steps = every_steps;
        config.sft.steps = 6;
        config.grpo.steps = 6;
        config.grpo.learning_rate = 1e-2;
        config.grpo.kl_coef = 0.01;
        config.grpo.refill_rounds = 1;
        config.grpo.bias_update_speed = 0.01;
        config.sft.bias_update_speed = 0.01;
        config.checkpoint.keep = 2;
    })
}

/// One of the two stages, from where its directory stands.
trait Open<'a>: Stage + Sized {
    fn open(setup: &'a Setup, run: &mut RunDir, backend: &Cpu) -> Self;
}

impl<'a> Open<'a> for Sft<'a> {
    fn open(setup: &'a Setup, run: &mut RunDir, backend: &Cpu) -> Sft<'a> {
        match run.resume().expect("resume") {
            Some((checkpoint, _)) => Sft::resume(setup, checkpoint, backend),
            None => Sft::new(setup, setup.initial_model(backend).expect("model")),
        }
    }
}

impl<'a> Open<'a> for Grpo<'a> {
    fn open(setup: &'a Setup, run: &mut RunDir, backend: &Cpu) -> Grpo<'a> {
        match run.resume().expect("resume") {
            Some((checkpoint, _)) => {
                Grpo::resume(setup, checkpoint, || run.start(), backend).expect("resume")
            }
            None => Grpo::new(setup, setup.initial_model(backend).expect("model"), backend),
        }
    }
}

/// Runs until `stop_at` in the directory.
fn run<'a, S: Open<'a>>(setup: &'a Setup, path: &Path, stop_at: u64) {
    let backend = backend();
    let mut run = RunDir::open::<S>(path, setup).expect("open");
    let mut stage = S::open(setup, &mut run, &backend);
    let mut watch = |stage: &S, _: &S::Metrics| match stage.progress().step >= stop_at {
        true => Control::Stop,
        false => Control::Continue,
    };
    drive(&mut stage, &mut run, &backend, &mut watch).expect("drive");
}

/// Steps on without saving, as a process does before it is killed.
fn run_and_die<'a, S: Open<'a>>(setup: &'a Setup, path: &Path, steps: u64) {
    let backend = backend();
    let mut run = RunDir::open::<S>(path, setup).expect("open");
    let mut stage = S::open(setup, &mut run, &backend);
    for _ in 0..steps {
        let metrics = stage.step(&backend).expect("step");
        run.log(&metrics, stage.samples()).expect("log");
    }
}

fn hash(path: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

const RESULTS: [&str; 6] = [
    "step-6/model.safetensors",
    "step-6/optimizer.safetensors",
    "step-6/state.json",
    "metrics.jsonl",
    "samples.jsonl",
    "latest",
];

/// `often` differs from `setup` in when it saves.
fn resumed_equals_uninterrupted<'a, S: Open<'a>>(setup: &'a Setup, often: &'a Setup, name: &str) {
    let (whole, parts) = (Scratch::new(&format!("{name}-whole")), Scratch::new(name));
    run::<S>(setup, &whole.0, 99);
    run::<S>(setup, &parts.0, 3);
    assert!(!parts.0.join("step-6").exists());
    // Two more steps that no checkpoint holds, and a half-written one.
    run_and_die::<S>(setup, &parts.0, 2);
    fs::create_dir(parts.0.join("saving-step-5")).expect("create");
    fs::write(parts.0.join("saving-step-5/model.safetensors"), "half").expect("write");
    fs::create_dir(parts.0.join(".tmp-saving-step-5-77")).expect("create");
    fs::write(parts.0.join(".tmp-latest-77"), "st").expect("write");
    run::<S>(often, &parts.0, 99);
    for file in RESULTS {
        assert_eq!(
            hash(&whole.0.join(file)),
            hash(&parts.0.join(file)),
            "{file}"
        );
    }
    assert_ne!(
        hash(&whole.0.join("step-0/model.safetensors")),
        hash(&whole.0.join("step-6/model.safetensors"))
    );
    let metrics = fs::read_to_string(parts.0.join("metrics.jsonl")).expect("metrics");
    let steps: Vec<u64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .map(|line| line["step"].as_u64().expect("step"))
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    let mut left = names(&parts.0).expect("list");
    left.sort();
    let logs = [
        "config.toml",
        "latest",
        "lock",
        "metrics.jsonl",
        "samples.jsonl",
    ];
    assert_eq!(left, [&logs[..], &["step-0", "step-4", "step-6"]].concat());
}

#[test]
fn a_resumed_sft_run_is_the_uninterrupted_one() {
    resumed_equals_uninterrupted::<Sft>(&setup(0), &setup(2), "sft");
}

#[test]
fn a_resumed_grpo_run_is_the_uninterrupted_one() {
    resumed_equals_uninterrupted::<Grpo>(&setup(0), &setup(2), "grpo");
}

#[test]
fn old_checkpoints_go_and_the_start_stays() {
    let (setup, scratch) = (setup(1), Scratch::new("prune"));
    run::<Sft>(&setup, &scratch.0, 99);
    assert_eq!(checkpoints(&scratch.0).expect("list"), [6, 5, 0]);
    assert_eq!(
        fs::read_to_string(scratch.0.join("latest")).expect("latest"),
        "step-6\n"
    );
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_said_so() {
    let (setup, scratch) = (setup(2), Scratch::new("damage"));
    run::<Sft>(&setup, &scratch.0, 99);
    let newest = scratch.0.join("step-6");
    for file in [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    ] {
        let path = newest.join(file);
        let intact = fs::read(&path).expect("read");
        let mut damaged = intact.clone();
        let middle = damaged.len() / 2;
        match file {
            "manifest.json" => damaged.truncate(middle),
            _ => damaged[middle] ^= 1,
        }
        fs::write(&path, &damaged).expect("write");
        let mut run = RunDir::open::<Sft>(&scratch.0, &setup).expect("open");
        let log = scratch.0.join("metrics.jsonl");
        let metrics = fs::read(&log).expect("metrics");
        let (found, notes) = run.resume().expect("resume").expect("an older one");
        assert_eq!(found.state.progress.step, 4, "{file}");
        assert_eq!(
            fs::read_to_string(&log).expect("metrics").lines().count(),
            4
        );
        assert_eq!(notes.len(), 1);
        assert!(
            notes[0].contains("step-6") && notes[0].contains(file),
            "{}",
            notes[0]
        );
        fs::write(&path, &intact).expect("write");
        fs::write(&log, metrics).expect("write");
    }
    fs::remove_dir_all(scratch.0.join("step-4")).expect("remove");
    fs::remove_dir_all(scratch.0.join("step-0")).expect("remove");
    fs::remove_file(newest.join("config.json")).expect("remove");
    let mut run = RunDir::open::<Sft>(&scratch.0, &setup).expect("open");
    let error = run.resume().err().expect("nothing whole is left");
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn a_second_trainer_is_told_who_holds_the_directory() {
    let (setup, scratch) = (setup(0), Scratch::new("lock"));
    let first = RunDir::open::<Sft>(&scratch.0, &setup).expect("open");
    let error = RunDir::open::<Sft>(&scratch.0, &setup)
        .err()
        .expect("locked");
    assert_eq!(error.exit_code(), 5);
    assert!(matches!(error, Error::Locked { pid, .. } if pid == Some(std::process::id())));
    drop(first);
    RunDir::open::<Sft>(&scratch.0, &setup).expect("free again");
}

#[test]
fn other_settings_or_another_stage_are_refused() {
    let (mut setup, scratch) = (setup(0), Scratch::new("settings"));
    run::<Sft>(&setup, &scratch.0, 2);
    setup.config.grpo.steps = 99;
    setup.config.checkpoint.keep = 7;
    RunDir::open::<Sft>(&scratch.0, &setup).expect("neither matters to sft");
    let rate = setup.config.sft.learning_rate;
    setup.config.sft.learning_rate = 0.5;
    let error = RunDir::open::<Sft>(&scratch.0, &setup)
        .err()
        .expect("refused");
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    let lines = format!("\n  was learning_rate = {rate}\n  now learning_rate = 0.5");
    assert!(text.ends_with(&lines), "{text}");
    setup.config.sft.learning_rate = rate;
    setup.config.grpo.steps = 6;
    let settings = hash(&scratch.0.join("config.toml"));
    let mut run = RunDir::open::<Grpo>(&scratch.0, &setup).expect("open");
    let error = run.resume().err().expect("a run of sft");
    assert_eq!(hash(&scratch.0.join("config.toml")), settings);
    assert!(
        error.to_string().contains("a run of sft, not grpo"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_is_a_folder_that_opens_as_a_model() {
    let (setup, scratch) = (setup(0), Scratch::new("folder"));
    run::<Sft>(&setup, &scratch.0, 1);
    let dir = scratch.0.join("step-1");
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        assert!(dir.join(file).exists(), "{file}");
    }
    let backend = backend();
    let (model, non_finite) = model::Model::open(&dir, setup.numerics(), &backend).expect("model");
    assert!(non_finite.is_empty());
    let read = Checkpoint::read(&dir).expect("checkpoint");
    assert_eq!(model.params(), read.params);
    let tokenizer = text::Tokenizer::from_file(&dir.join("tokenizer.json")).expect("tokenizer");
    assert_eq!(tokenizer.token_to_id("<eos>"), Some(setup.eos_token_id));
}

use super::place::names;
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
        let latest = fs::read_to_string(scratch.0.join("latest")).expect("latest");
        assert_eq!(latest, "step-4\n");
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

/// Opening is refused with exit code 2 and leaves every file as it was.
fn refused_and_untouched(path: &Path, setup: &Setup, named: &str) {
    let list = |path: &Path| {
        let mut names = names(path).expect("list");
        names.sort();
        names
    };
    let before = list(path);
    let error = RunDir::open::<Sft>(path, setup).err().expect("refused");
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains(named) && text.contains("choose"), "{text}");
    assert_eq!(list(path), before);
}

#[test]
fn a_directory_that_is_no_run_is_left_alone() {
    let (setup, scratch) = (setup(0), Scratch::new("strangers"));
    let photos = scratch.0.join("holiday");
    fs::create_dir_all(photos.join("saving-photos")).expect("create");
    fs::write(photos.join("saving-photos/beach.jpg"), "sand").expect("write");
    refused_and_untouched(&photos, &setup, "`saving-photos`");
    assert!(photos.join("saving-photos/beach.jpg").exists());

    let demo = scratch.0.join("demo");
    fs::create_dir(&demo).expect("create");
    fs::write(demo.join("metrics.jsonl"), "{\"step\":1}\n").expect("write");
    refused_and_untouched(&demo, &setup, "`metrics.jsonl`");
    // The same with what another program calls its lock and its settings.
    fs::write(demo.join("lock"), "held by an editor").expect("write");
    fs::write(demo.join("config.toml"), "[window]\nwidth = 80\n").expect("write");
    refused_and_untouched(&demo, &setup, "`config.toml`");
    // And with ours: without a checkpoint its steps are not known to be this run's.
    fs::write(demo.join("lock"), "77\n").expect("write");
    fs::write(demo.join("config.toml"), setup.config.to_toml()).expect("write");
    refused_and_untouched(&demo, &setup, "holds");
    let metrics = fs::read_to_string(demo.join("metrics.jsonl")).expect("metrics");
    assert_eq!(metrics, "{\"step\":1}\n");

    fs::write(scratch.0.join("file"), "text").expect("write");
    let error = RunDir::open::<Sft>(&scratch.0.join("file"), &setup).err();
    assert_eq!(error.expect("a file").exit_code(), 2);
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_again() {
    let (setup, scratch) = (setup(0), Scratch::new("early"));
    fs::create_dir(&scratch.0).expect("create");
    RunDir::open::<Sft>(&scratch.0, &setup).expect("an empty directory");
    fs::write(scratch.0.join(".tmp-config.toml-77"), "se").expect("write");
    let mut run = RunDir::open::<Sft>(&scratch.0, &setup).expect("before config.toml");
    assert!(run.resume().expect("resume").is_none());
    drop(run);
    fs::create_dir(scratch.0.join("saving-step-0")).expect("create");
    RunDir::open::<Sft>(&scratch.0, &setup).expect("before the first checkpoint");
}

#[test]
fn only_what_the_trainer_wrote_is_swept() {
    let (setup, scratch) = (setup(0), Scratch::new("sweep"));
    run::<Sft>(&setup, &scratch.0, 1);
    let theirs = [
        "saving-photos",
        "saving-step-5b",
        "saving-step-05",
        ".tmp-notes-77",
        ".tmp-latest-x",
        ".old-letters",
        ".old-step-",
        "step-by-step",
    ];
    let ours = [
        "saving-step-5",
        ".tmp-saving-step-5-77",
        ".tmp-latest-77",
        ".tmp-config.toml-77",
        ".old-step-1",
    ];
    for name in theirs.iter().chain(&ours) {
        fs::create_dir(scratch.0.join(name)).expect("create");
    }
    RunDir::open::<Sft>(&scratch.0, &setup).expect("open");
    for name in theirs {
        assert!(scratch.0.join(name).exists(), "{name}");
    }
    for name in ours {
        assert!(!scratch.0.join(name).exists(), "{name}");
    }
    assert!(scratch.0.join("step-1/manifest.json").exists());
}

#[test]
fn a_checkpoint_survives_a_kill_while_it_is_replaced() {
    let (setup, scratch) = (setup(0), Scratch::new("replace"));
    run::<Sft>(&setup, &scratch.0, 3);
    let weights = hash(&scratch.0.join("step-3/model.safetensors"));
    fs::rename(scratch.0.join("step-3"), scratch.0.join(".old-step-3")).expect("rename");
    fs::create_dir(scratch.0.join("saving-step-3")).expect("create");
    let backend = backend();
    let mut run = RunDir::open::<Sft>(&scratch.0, &setup).expect("open");
    let (found, notes) = run.resume().expect("resume").expect("a checkpoint");
    assert_eq!((found.state.progress.step, notes.len()), (3, 0));
    // Saving it once more replaces it and leaves nothing beside it.
    let stage = Sft::resume(&setup, found, &backend);
    run.save(&stage).expect("save");
    assert_eq!(hash(&scratch.0.join("step-3/model.safetensors")), weights);
    let left = names(&scratch.0).expect("list");
    assert!(
        !left
            .iter()
            .any(|name| name.starts_with(['.']) || name.starts_with("saving"))
    );
}

#[test]
fn the_tokenizer_beside_a_model_says_the_positions_of_that_model() {
    let (setup, scratch) = (setup(0), Scratch::new("positions"));
    let backend = backend();
    // The model of another run; the settings' own shape has 64.
    let other = easy_setup(|config| config.model.max_position_embeddings = 96);
    let model = other.initial_model(&backend).expect("model");
    let mut run = RunDir::open::<Grpo>(&scratch.0, &setup).expect("open");
    let dir = run.save(&Grpo::new(&setup, model, &backend)).expect("save");
    let text = fs::read_to_string(dir.join("tokenizer_config.json")).expect("read");
    let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["model_max_length"], 96);
}

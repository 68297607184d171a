//! What `sft`, `grpo` and `demo` share: the run's settings, and showing and stopping its steps.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kernels::{Backend, Cpu};
use toml::{Table, Value};
use train::{Control, GrpoMetrics, RunConfig, RunDir, SftMetrics, Stage};

use crate::failure::{BAD_INPUT, Failure};
use crate::progress::{Progress, Ui};
use crate::settings::Settings;
use crate::signals::Signals;

/// Reads a run's settings and changes them as the command line says.
///
/// # Errors
/// The file cannot be read or used, or a change names no setting.
pub fn config(path: &Path, changes: &[String], settings: &Settings) -> Result<RunConfig, Failure> {
    changed(RunConfig::read(path)?, changes, settings)
}

/// Settings with `--set`, `--seed` and `--precision` applied, in this order.
///
/// # Errors
/// A change names no setting, or gives a value that it cannot have.
pub fn changed(
    config: RunConfig,
    changes: &[String],
    settings: &Settings,
) -> Result<RunConfig, Failure> {
    let mut config = config;
    if !changes.is_empty() {
        config = with_changes(&config, changes)?;
    }
    if let Some(seed) = settings.seed {
        config.seed = seed;
    }
    if let Some(precision) = settings.precision {
        config.numerics.precision = precision.into();
    }
    config.check()?;
    Ok(config)
}

/// Applies all changes and only then validates, so that two settings that fit only each other can
/// be changed together.
fn with_changes(config: &RunConfig, changes: &[String]) -> Result<RunConfig, Failure> {
    let mut table: Table = toml::from_str(&config.to_toml()).expect("own text is TOML");
    for change in changes {
        apply(&mut table, change)?;
    }
    let source = format!("--set {}", changes.join(" --set "));
    let text = toml::to_string(&table)
        .map_err(|error| Failure::usage(format!("{source}: {error}"), "write plain values"))?;
    RunConfig::from_toml(&text, &source).map_err(Failure::from)
}

/// Applies one `a.b=c`. All settings are in the text of a configuration, so a key that is not there
/// does not exist.
fn apply(table: &mut Table, change: &str) -> Result<(), Failure> {
    let refused = |cause: String| {
        let cause = format!("--set {change}: {cause}");
        Failure::usage(cause, "write it as in `--set sft.steps=100`")
    };
    let (key, value) = change
        .split_once('=')
        .ok_or_else(|| refused("has no `=`".to_string()))?;
    *place(table, key.trim()).map_err(refused)? = value_of(value.trim());
    Ok(())
}

/// Where a dotted key's value stands.
fn place<'a>(table: &'a mut Table, key: &str) -> Result<&'a mut Value, String> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    if !table.contains_key(first) {
        let known: Vec<&str> = table.keys().map(String::as_str).collect();
        return Err(format!(
            "unknown key `{first}`; known: {}",
            known.join(", ")
        ));
    }
    match (&mut table[first], rest) {
        (value, None) => Ok(value),
        (Value::Table(inner), Some(rest)) => place(inner, rest),
        (_, Some(_)) => Err(format!("`{first}` has no keys of its own")),
    }
}

/// A TOML value; what is none is a string, so that `task.name=countdown` needs no quotes.
fn value_of(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    let value = parsed.ok().and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_string()))
}

/// Metrics as a line of progress.
pub trait Shown {
    /// Tokens since the stage began.
    fn tokens(&self) -> u64;
    fn in_words(&self) -> String;
}

impl Shown for SftMetrics {
    fn tokens(&self) -> u64 {
        self.num_tokens
    }

    fn in_words(&self) -> String {
        format!("loss {:.3}", self.loss)
    }
}

impl Shown for GrpoMetrics {
    fn tokens(&self) -> u64 {
        self.num_tokens
    }

    fn in_words(&self) -> String {
        format!(
            "reward {:.3}, length {:.1}, max|Δlogp| {}",
            self.reward, self.mean_length, self.max_abs_logp_diff
        )
    }
}

/// Shows the steps of a stage with their speed.
pub struct Watch {
    progress: Progress,
    /// When the first step shown ended, and the tokens at that time.
    start: Option<(Instant, u64)>,
    last: String,
}

impl Watch {
    pub fn new(ui: Ui, label: &str, steps: u64) -> Watch {
        Watch {
            progress: ui.start(label, steps),
            start: None,
            last: "nothing was left to do".to_string(),
        }
    }

    pub fn show(&mut self, done: u64, metrics: &impl Shown) {
        let (since, first) = *self.start.get_or_insert((Instant::now(), metrics.tokens()));
        let seconds = since.elapsed().as_secs_f64();
        self.last = metrics.in_words();
        if seconds > 0.0 {
            let tokens = metrics.tokens().saturating_sub(first) as f64;
            self.last += &format!(", {:.0} tokens/s", tokens / seconds);
        }
        self.progress.update(done, &self.last);
    }

    pub fn finish(self) {
        self.progress.finish(&self.last);
    }
}

/// Runs a stage in its directory to its end, or until a signal comes. Gives back the folder of the
/// last checkpoint.
///
/// # Errors
/// Those of the stage; [`Failure::Stopped`] after a clean save.
pub fn drive<S: Stage>(
    stage: &mut S,
    dir: &mut RunDir,
    backend: &Cpu,
    ui: Ui,
) -> Result<PathBuf, Failure>
where
    S::Metrics: Shown,
{
    let signals = Signals::listen()?;
    let mut watch = Watch::new(ui, S::NAME, stage.steps());
    let backend: &dyn Backend = backend;
    let complete = train::drive(stage, dir, backend, &mut |stage, metrics| {
        watch.show(stage.progress().step, metrics);
        match signals.received() {
            Some(_) => Control::Stop,
            None => Control::Continue,
        }
    })?;
    watch.finish();
    let saved = dir.path().join(format!("step-{}", stage.progress().step));
    match signals.received() {
        Some(signal) if !complete => {
            let saved = format!("saved {}; --resume goes on from there", saved.display());
            Err(Failure::Stopped { signal, saved })
        }
        _ => Ok(saved),
    }
}

/// Refuses to begin a run where one is, unless it is to go on.
///
/// # Errors
/// The directory holds a run and `resume` is false.
pub fn check_directory(out: &Path, resume: bool) -> Result<(), Failure> {
    if !resume && out.join("latest").exists() {
        let cause = format!("{}: holds a run already", out.display());
        return Err(Failure::usage(
            cause,
            "add --resume to go on, or choose another --out",
        ));
    }
    Ok(())
}

/// Refuses weights that are not finite: training would only spread them.
///
/// # Errors
/// Naming the first tensor.
pub fn check_finite(dir: &Path, non_finite: &[model::NonFinite]) -> Result<(), Failure> {
    match non_finite.first() {
        None => Ok(()),
        Some(tensor) => {
            let cause = format!("{}: {tensor}", dir.display());
            Err(Failure::new(
                BAD_INPUT,
                cause,
                "start from an earlier checkpoint",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: &str) -> Result<RunConfig, Failure> {
        with_changes(&RunConfig::default(), &[change.to_string()])
    }

    /// 3,000 is no multiple of the default piece, and 1,500 does not divide the default step.
    #[test]
    fn changes_are_validated_together() {
        let changes = ["sft.tokens_per_step=3000", "sft.piece_tokens=1500"];
        for change in changes {
            assert_eq!(with(change).expect_err(change).exit_code(), 2);
        }
        let mut expected = RunConfig::default();
        (expected.sft.tokens_per_step, expected.sft.piece_tokens) = (3000, 1500);
        for order in [[0, 1], [1, 0]] {
            let changes = order.map(|i| changes[i].to_string());
            let found = with_changes(&RunConfig::default(), &changes).expect("they fit");
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_change_changes_its_setting_alone() {
        let mut expected = RunConfig::default();
        expected.grpo.learning_rate = 0.25;
        assert_eq!(
            with("grpo.learning_rate=0.25").expect("a known key"),
            expected
        );
        let mut expected = RunConfig::default();
        expected.task.name = train::TaskName::Multiplication;
        assert_eq!(
            with(" task.name = multiplication").expect("a bare word"),
            expected
        );
        let mut expected = RunConfig::default();
        expected.sft.attempt_weights = vec![1.0, 2.5];
        assert_eq!(
            with("sft.attempt_weights=[1.0, 2.5]").expect("a list"),
            expected
        );
        let mut expected = RunConfig::default();
        expected.grpo.learning_rate = 1.0;
        assert_eq!(
            with("grpo.learning_rate=1").expect("a whole number"),
            expected
        );
    }

    #[test]
    fn a_change_that_names_nothing_is_a_usage_error() {
        for (change, word) in [
            ("sft.stepz=3", "unknown key `stepz`"),
            ("stf.steps=3", "unknown key `stf`"),
            ("sft.steps.more=3", "`steps` has no keys"),
            ("sft.steps", "has no `=`"),
            ("sft.steps=many", "--set sft.steps=many"),
            ("grpo.group_size=1", "at least 2"),
        ] {
            let failure = with(change).expect_err(change);
            assert_eq!(failure.exit_code(), 2);
            let lines = failure.lines().join("\n");
            assert!(lines.contains(word), "{change}: {lines}");
        }
    }
}

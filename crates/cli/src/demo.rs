//! The demo's course: what happens in which order, and what is kept of it.

mod journal;
mod place;
mod summary;

use std::path::{Path, PathBuf};
use std::time::Instant;

use kernels::Cpu;
use model::{Model, WeightDtype};
use serde::Serialize;
use tasks::Problem;
use train::{Grpo, GrpoMetrics, Setup, Sft, SftMetrics, Stage};

use crate::evaluation;
use crate::failure::{Failure, Outcome, disk};
use crate::progress::Ui;
use crate::report;
use crate::run::{Shown, Watch};
use crate::settings::Settings;
use crate::signals::Signals;
use journal::Journal;
use place::Place;
use summary::Summary;

/// From random weights to a report, and one fresh problem answered.
///
/// # Errors
/// Those of the stages and the disk; [`Failure::Stopped`] at a step after a signal.
pub fn run(setup: &Setup, settings: &Settings, out: &Path, command: String) -> Outcome {
    let backend = settings.backend();
    let mut course = Course::new(setup, settings, &backend, out)?;
    let results = course.train()?;
    let report = course.report(&results, command)?;
    // What took minutes is printed even if this last flourish fails.
    let answered = course
        .answer_a_fresh_problem(&results.model)
        .and_then(|()| course.tell(&next_commands(out)));
    if settings.json {
        let places = (course.checkpoint(), course.page());
        let seconds = course.started.elapsed().as_secs_f64();
        crate::commands::print_json(&Summary::new(&report, &results, places, seconds))?;
    }
    answered
}

/// All that the stages share.
struct Course<'a> {
    setup: &'a Setup,
    settings: &'a Settings,
    backend: &'a Cpu,
    ui: Ui,
    out: &'a Path,
    signals: Signals,
    /// For every evaluation the same.
    problems: Vec<Problem>,
    /// One held-out problem that no evaluation sees.
    fresh: Vec<Problem>,
    started: Instant,
    /// No other demo writes here meanwhile.
    _place: Place,
    /// Stage and seconds.
    times: Vec<(String, f64)>,
}

/// What the stages gave.
struct Results {
    model: Model,
    stages: [report::Stage; 3],
    sft: Vec<SftMetrics>,
    grpo: Vec<GrpoMetrics>,
    /// Worked texts that the cold start saw, and completions that RL drew.
    sft_documents: u64,
    grpo_documents: u64,
}

impl<'a> Course<'a> {
    fn new(
        setup: &'a Setup,
        settings: &'a Settings,
        backend: &'a Cpu,
        out: &'a Path,
    ) -> Result<Course<'a>, Failure> {
        let started = Instant::now();
        let count = setup.config.eval.problems;
        let mut problems = evaluation::problems(setup, count.saturating_add(1))?;
        let fresh = problems.split_off(count);
        Ok(Course {
            setup,
            settings,
            backend,
            ui: settings.ui(),
            out,
            signals: Signals::listen()?,
            problems,
            fresh,
            started,
            _place: place::take(out)?,
            times: Vec::new(),
        })
    }

    fn train(&mut self) -> Result<Results, Failure> {
        let mut journal = Journal::create(self.out)?;
        let model = self.setup.initial_model(self.backend)?;
        self.introduce(&model)?;
        let base = self.evaluate("random", &model)?;
        let mut stage = Sft::new(self.setup, model);
        let sft = self.stage("cold start", &mut stage, &mut journal)?;
        let sft_documents = stage.progress().cursor;
        let model = stage.into_model();
        self.save(&model, "sft")?;
        let cold = self.evaluate("cold start", &model)?;
        let mut stage = Grpo::new(self.setup, model, self.backend);
        let grpo = self.stage("RL", &mut stage, &mut journal)?;
        let group_size = self.setup.config.grpo.group_size as u64;
        let grpo_documents = stage.progress().cursor * group_size;
        let model = stage.into_model();
        self.save(&model, "grpo")?;
        let after = self.evaluate("after RL", &model)?;
        let stages = [base, cold, after];
        Ok(Results {
            model,
            stages,
            sft,
            grpo,
            sft_documents,
            grpo_documents,
        })
    }

    fn introduce(&self, model: &Model) -> Outcome {
        let config = &model.config;
        self.tell(&format!(
            "A DeepSeek-architecture model of {:.2} million parameters ({:.2} million active per \
             token), random weights.\nTask: {}, {} held-out problems.\n",
            config.parameters_total() as f64 / 1e6,
            config.parameters_active() as f64 / 1e6,
            self.setup.task.name(),
            self.problems.len(),
        ))
    }

    /// Accuracy at temperature 1 and greedy.
    fn evaluate(&mut self, name: &str, model: &Model) -> Result<report::Stage, Failure> {
        let start = Instant::now();
        let evaluated = |temperature| {
            let shown = (self.ui, "evaluation");
            evaluation::evaluate(
                self.setup,
                model,
                self.backend,
                &self.problems,
                temperature,
                shown,
            )
        };
        let (sampled, greedy) = (evaluated(1.0)?, evaluated(0.0)?);
        self.times
            .push((format!("evaluation, {name}"), start.elapsed().as_secs_f64()));
        self.stop_if_asked()?;
        let lines = [&sampled, &greedy].map(evaluation::in_words);
        self.tell(&format!("{name}:\n  {}\n  {}\n", lines[0], lines[1]))?;
        Ok(report::Stage {
            name: name.to_string(),
            sampled,
            greedy,
        })
    }

    /// All steps of a stage.
    fn stage<S: Stage>(
        &mut self,
        name: &str,
        stage: &mut S,
        journal: &mut Journal,
    ) -> Result<Vec<S::Metrics>, Failure>
    where
        S::Metrics: Shown + Serialize,
    {
        let start = Instant::now();
        let mut watch = Watch::new(self.ui, name, stage.steps());
        let mut all = Vec::new();
        while stage.progress().step < stage.steps() {
            let metrics = stage.step(self.backend)?;
            journal.step(S::NAME, &metrics, stage.samples())?;
            watch.show(stage.progress().step, &metrics);
            all.push(metrics);
            self.stop_if_asked()?;
        }
        watch.finish();
        self.times
            .push((name.to_string(), start.elapsed().as_secs_f64()));
        Ok(all)
    }

    fn stop_if_asked(&self) -> Outcome {
        match self.signals.received() {
            None => Ok(()),
            Some(signal) => {
                let saved = format!("what was finished is in {}", self.out.display());
                Err(Failure::Stopped { signal, saved })
            }
        }
    }

    fn save(&self, model: &Model, name: &str) -> Outcome {
        let files = self.setup.tokenizer_files()?;
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        let Model { config, layout, .. } = model;
        let dir = self.out.join(name);
        Ok(model::write_folder(
            &dir,
            config,
            layout,
            model.params(),
            &files,
            WeightDtype::F32,
        )?)
    }

    /// The model at the end.
    fn checkpoint(&self) -> PathBuf {
        self.out.join("grpo")
    }

    fn page(&self) -> PathBuf {
        self.out.join("report.html")
    }

    /// Writes the report, and gives it back.
    fn report(&self, results: &Results, command: String) -> Result<report::Report, Failure> {
        let weights = self.checkpoint().join("model.safetensors");
        let bytes = std::fs::read(&weights).map_err(disk(&weights, "reading"))?;
        let weights_blake3 = blake3::hash(&bytes).to_hex().to_string();
        let report = summary::report(self, results, command, weights_blake3);
        let path = self.page();
        model::write_atomic(&path, report.html().as_bytes())?;
        let difference = report.max_abs_logp_diff;
        if difference != 0.0 {
            let line = format_args!(
                "rollout and training log-probabilities differ by up to {difference}; \
                 `bruchteil doctor` shows whether this machine breaks a law"
            );
            self.ui.warn(line);
        }
        let text = format!(
            "Report: {}\nWeights: blake3 {}\n",
            path.display(),
            report.weights_blake3
        );
        self.tell(&text)?;
        Ok(report)
    }

    fn answer_a_fresh_problem(&self, model: &Model) -> Outcome {
        let quiet = &mut |_: engine::Progress| ();
        let result = train::evaluate(self.setup, model, self.backend, &self.fresh, 0.0, quiet)?;
        let Some(sample) = result.transcripts.first() else {
            return Ok(());
        };
        self.tell(&format!(
            "\nA fresh problem:\n{} {}\n\nIn words:\n{}\nVerdict: {}\n",
            sample.prompt, sample.completion, sample.explained, sample.reason
        ))
    }

    /// For a reader: on standard output, or beside it where that is for JSON.
    fn tell(&self, text: &str) -> Outcome {
        if self.settings.json {
            self.ui.say(text.trim_end());
            return Ok(());
        }
        crate::commands::print(text)
    }
}

fn next_commands(out: &Path) -> String {
    let out = out.display();
    format!(
        "\nNext:\n  \
         bruchteil generate {out}/grpo --chat --prompt '69 64 4 20'\n  \
         bruchteil eval {out}/grpo --task countdown --greedy --show 5\n  \
         bruchteil inspect {out}/grpo\n  \
         bruchteil sft --config runs/countdown4.toml --out runs/countdown4-sft\n"
    )
}

//! Progress and remarks, on standard error only: a bar on a terminal, plain lines elsewhere.
//!
//! Nothing here reaches a result, so the clock may be read. No colour is used, whatever `NO_COLOR`
//! says.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::plain::plain;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// What takes less is not shown.
const SHORT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Bar,
    Lines,
    Quiet,
}

/// Where progress and remarks go.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    style: Style,
}

impl Ui {
    pub fn new(style: Style) -> Ui {
        Ui { style }
    }

    /// A line that is no result.
    pub fn say(&self, line: impl Display) {
        if self.style != Style::Quiet {
            eprintln!("{line}");
        }
    }

    /// A line about something that a user ought to know.
    pub fn warn(&self, line: impl Display) {
        self.say(format_args!("warning: {}", plain(&line.to_string())));
    }

    /// Starts counting bytes; they are shown if that takes long.
    pub fn start_bytes(self, label: &'static str) -> Bytes {
        Bytes {
            ui: self,
            label,
            started: Instant::now(),
            shown: None,
            mebibytes: 0,
        }
    }

    /// Starts showing progress of `total` steps.
    pub fn start(&self, label: &str, total: u64) -> Progress {
        let bar = (self.style == Style::Bar).then(|| bar(label, total));
        let now = Instant::now();
        Progress {
            label: label.to_string(),
            total,
            bar,
            shows_lines: self.style == Style::Lines,
            started: now,
            last_line: now,
            begun_at: None,
        }
    }
}

fn bar(label: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = "{prefix:<12} {bar:28} {pos}/{len} {msg} {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(label.to_string());
    bar
}

/// Progress of one stage.
pub struct Progress {
    label: String,
    total: u64,
    bar: Option<ProgressBar>,
    shows_lines: bool,
    started: Instant,
    last_line: Instant,
    /// Steps already done when the stage began, as after a resume; they took no time here.
    begun_at: Option<u64>,
}

impl Progress {
    /// `done` steps of the total; `message` says what is measured, such as the loss.
    pub fn update(&mut self, done: u64, message: &str) {
        let begun_at = *self.begun_at.get_or_insert(done.saturating_sub(1));
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_string());
        }
        if self.shows_lines && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let left = self.seconds_left(done, begun_at);
            let Progress { label, total, .. } = self;
            eprintln!("{label}: {done}/{total} {message}, {left} left");
        }
    }

    /// As [`Progress::update`], with how many tokens were computed since the start and how fast.
    pub fn update_tokens(&mut self, done: u64, tokens: u64) {
        let seconds = self.started.elapsed().as_secs_f64();
        let mut message = format!("{tokens} tokens");
        if seconds > 0.0 {
            message += &format!(", {:.0} tokens/s", tokens as f64 / seconds);
        }
        self.update(done, &message);
    }

    fn seconds_left(&self, done: u64, begun_at: u64) -> String {
        if done == 0 {
            return "unknown time".to_string();
        }
        let passed = self.started.elapsed().as_secs_f64();
        let here = done.saturating_sub(begun_at).max(1);
        let left = passed * self.total.saturating_sub(done) as f64 / here as f64;
        match left.round() as u64 {
            seconds @ 0..=119 => format!("{seconds} s"),
            seconds @ 120..=7_199 => format!("{} min", seconds / 60),
            seconds => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        }
    }

    /// Ends the stage with one line.
    pub fn finish(self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.bar.is_some() || self.shows_lines {
            eprintln!("{}: {message}", self.label);
        }
    }
}

/// Progress of reading or writing.
pub struct Bytes {
    ui: Ui,
    label: &'static str,
    started: Instant,
    /// `None` as long as little time has passed.
    shown: Option<Progress>,
    mebibytes: u64,
}

impl Bytes {
    /// `done` bytes of `total`.
    pub fn update(&mut self, done: u64, total: u64) {
        let seconds = self.started.elapsed().as_secs_f64();
        if self.shown.is_none() && seconds < SHORT.as_secs_f64() {
            return;
        }
        let [done, total] = [done, total].map(|bytes| bytes >> 20);
        let (ui, label) = (self.ui, self.label);
        let shown = self.shown.get_or_insert_with(|| ui.start(label, total));
        let rate = done as f64 / seconds;
        shown.update(done, &format!("MiB, {rate:.0} MiB/s"));
        self.mebibytes = total;
    }

    /// Ends with one line, where anything was shown.
    pub fn finish(self) {
        if let Some(shown) = self.shown {
            let seconds = self.started.elapsed().as_secs_f64();
            shown.finish(&format!("{} MiB in {seconds:.0} s", self.mebibytes));
        }
    }
}

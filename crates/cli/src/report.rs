//! The demo's report: one HTML file that needs nothing else.
//!
//! Everything in it but the last section is a function of the command and the seed; what depends
//! on the machine stands in [`Timing`] alone.

pub mod chart;

use std::fmt::Write;

use chart::{Bar, Curve};
use train::{EvalResult, Sample};

const STYLE: &str = include_str!("report/style.css");

/// What ends every page.
pub const CLOSING: &str = "</main>\n</body>\n</html>\n";

/// What begins every page: its style is inside it, so that it needs nothing else.
pub fn opening(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(title)
    )
}

/// A model at one moment of the demo.
#[derive(Clone)]
pub struct Stage {
    /// Such as "after RL".
    pub name: String,
    /// One sample at temperature 1: pass@1.
    pub sampled: EvalResult,
    pub greedy: EvalResult,
}

/// One value a step.
pub type Series = Vec<[f64; 2]>;

pub struct Report {
    /// What reproduces it, such as `bruchteil demo --size small --seed 1`.
    pub command: String,
    pub seed: u64,
    /// Such as `countdown3`.
    pub task: String,
    /// The random model, after the cold start, after RL.
    pub stages: [Stage; 3],
    pub sft_loss: Series,
    pub reward: Series,
    /// Share of each RL step's rollouts that are right.
    pub accuracy: Series,
    /// Mean length of the rollouts in tokens.
    pub response_length: Series,
    pub compute: Compute,
    /// What the cold start was made of, in words with numbers.
    pub cold_start: String,
    /// The same compute spent without RL, in words with numbers.
    pub control: String,
    /// Largest difference between rollout and training log-probabilities, over all steps.
    pub max_abs_logp_diff: f64,
    pub weights_blake3: String,
    pub timing: Timing,
}

pub struct Compute {
    pub parameters_total: u64,
    pub parameters_active: u64,
    /// Tokens of supervised training, prompts included.
    pub sft_tokens: u64,
    /// Tokens generated and trained on in RL, prompts included.
    pub rollout_tokens: u64,
    pub trained_rollout_tokens: u64,
    pub train_flops: f64,
}

/// What the clock says: the only part that differs between machines.
pub struct Timing {
    pub machine: String,
    /// Stage and seconds.
    pub stages: Vec<(String, f64)>,
    /// Of everything, what lies between the stages too.
    pub seconds: f64,
}

/// Text made fit to stand in HTML, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high)
}

impl Report {
    /// The whole file.
    pub fn html(&self) -> String {
        [
            self.head(),
            self.tiles(),
            self.charts(),
            self.honesty(),
            self.compute(),
            self.transcripts(),
            self.reproduction(),
            self.time(),
            CLOSING.to_string(),
        ]
        .concat()
    }

    fn head(&self) -> String {
        let [base, cold, after] = self
            .stages
            .each_ref()
            .map(|stage| percent(stage.sampled.accuracy));
        let compute = &self.compute;
        format!(
            "{}<h1>A model learns to reason from nothing</h1>\n\
             <p>A DeepSeek-architecture model of {:.2} million parameters ({:.2} million active \
             per token) began with random weights ({base} right), \
             learnt from worked traces ({cold}), \
             and went on by reinforcement learning from checked answers alone ({after}). Measured \
             on {} held-out problems of {}, one sample each at temperature 1.</p>\n",
            opening("Bruchteil: a model learns to reason"),
            compute.parameters_total as f64 / 1e6,
            compute.parameters_active as f64 / 1e6,
            self.stages[2].sampled.problems,
            escape(&self.task),
        )
    }

    fn tiles(&self) -> String {
        let mut html = "<div class=\"tiles\">\n".to_string();
        for Stage {
            name,
            sampled,
            greedy,
        } in &self.stages
        {
            // Writing to a string does not fail.
            let _ = writeln!(
                html,
                "<div class=\"tile\">{}<b>{}</b><span class=\"soft\">95 %: {}<br>greedy {}</span>\
                 </div>",
                escape(name),
                percent(sampled.accuracy),
                interval(sampled.ci95),
                percent(greedy.accuracy),
            );
        }
        html + "</div>\n"
    }

    fn charts(&self) -> String {
        let mut bars = Vec::new();
        for Stage {
            name,
            sampled,
            greedy,
        } in &self.stages
        {
            for (evaluation, is_greedy) in [(sampled, false), (greedy, true)] {
                bars.push(Bar {
                    label: if is_greedy {
                        String::new()
                    } else {
                        name.clone()
                    },
                    share: evaluation.accuracy,
                    interval: evaluation.ci95,
                    greedy: is_greedy,
                });
            }
        }
        let accuracy = chart::bars("Accuracy on held-out problems, with 95 % intervals", &bars);
        let key = "<span class=\"key\"></span> one sample at T = 1, \
                   <span class=\"key greedy\"></span> greedy; lines: 95 % intervals";
        let mut html = "<h2>Curves</h2>\n<div class=\"charts\">\n".to_string();
        html += &figure("Accuracy on held-out problems", &accuracy, key);
        for (title, points, digits, caption) in [
            (
                "Reward",
                &self.reward,
                2,
                "Mean reward of each RL step's rollouts",
            ),
            (
                "Accuracy in RL",
                &self.accuracy,
                2,
                "Accuracy of each RL step's rollouts",
            ),
            (
                "Response length",
                &self.response_length,
                0,
                "Mean tokens of each RL step's rollouts",
            ),
            (
                "Loss of the cold start",
                &self.sft_loss,
                1,
                "Nats per completion token",
            ),
        ] {
            let svg = chart::curve(&Curve {
                title,
                x_label: "step",
                points,
                digits,
            });
            html += &figure(title, &svg, caption);
        }
        html + "</div>\n"
    }

    fn honesty(&self) -> String {
        let [_, cold, after] = &self.stages;
        let gained = 100.0 * (after.sampled.accuracy - cold.sampled.accuracy);
        let apart = cold.sampled.ci95[1] < after.sampled.ci95[0];
        let apart = if apart { "do not overlap" } else { "overlap" };
        format!(
            "<h2>What reinforcement learning did, and what it did not</h2>\n<ul>\n\
             <li>Pass@1 changed by {gained:+.1} points, from {} (95 %: {}) to {} (95 %: {}); the \
             intervals {apart}. Greedy: from {} to {}.</li>\n\
             <li>Completions went from {:.1} to {:.1} tokens on average, well-formed ones from {} \
             to {}.</li>\n<li>{}</li>\n<li>{}</li>\n\
             <li>The reward looked at the answer and its form alone. Wrong working that ends in a \
             right answer was rewarded all the same.</li>\n\
             <li>Rollout and training computed the same log-probabilities: the largest difference \
             over all steps was {}.</li>\n</ul>\n",
            percent(cold.sampled.accuracy),
            interval(cold.sampled.ci95),
            percent(after.sampled.accuracy),
            interval(after.sampled.ci95),
            percent(cold.greedy.accuracy),
            percent(after.greedy.accuracy),
            cold.sampled.mean_length,
            after.sampled.mean_length,
            percent(cold.sampled.well_formed),
            percent(after.sampled.well_formed),
            escape(&self.cold_start),
            escape(&self.control),
            self.max_abs_logp_diff,
        )
    }

    fn compute(&self) -> String {
        let compute = &self.compute;
        let rows = [
            ("Parameters", compute.parameters_total.to_string()),
            (
                "Parameters active per token",
                compute.parameters_active.to_string(),
            ),
            (
                "Tokens of supervised training",
                compute.sft_tokens.to_string(),
            ),
            ("Tokens of rollouts", compute.rollout_tokens.to_string()),
            (
                "Tokens of rollouts trained on",
                compute.trained_rollout_tokens.to_string(),
            ),
            (
                "Floating-point operations",
                format!("{:.3e}", compute.train_flops),
            ),
        ];
        let note = "<p class=\"soft\">Operations by formula: a forward pass for each token of a \
                    rollout, three for each token trained on. Evaluation is not counted.</p>\n";
        format!("<h2>Compute spent</h2>\n{}{note}", table(&rows))
    }

    fn transcripts(&self) -> String {
        let [_, cold, after] = &self.stages;
        let mut html = "<h2>The same problems, before and after</h2>\n".to_string();
        let pairs = cold
            .sampled
            .transcripts
            .iter()
            .zip(&after.sampled.transcripts);
        for (before, later) in pairs {
            let _ = write!(
                html,
                "<h3 class=\"problem\"><code>{}</code></h3>\n<div class=\"pair\">\n{}{}</div>\n",
                escape(&before.prompt),
                transcript(&cold.name, before),
                transcript(&after.name, later),
            );
        }
        html
    }

    fn reproduction(&self) -> String {
        let rows = [
            ("Seed", self.seed.to_string()),
            ("Weights (blake3)", self.weights_blake3.clone()),
        ];
        format!(
            "<h2>Do it again</h2>\n<pre>{}</pre>\n<p>The same command gives the same numbers and \
             the same weights on any machine, with any number of threads and any instruction \
             set.</p>\n{}",
            escape(&self.command),
            table(&rows)
        )
    }

    fn time(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        for (stage, seconds) in &self.timing.stages {
            rows.push((stage, format!("{seconds:.1} s")));
        }
        rows.push(("Together", format!("{:.1} s", self.timing.seconds)));
        format!(
            "<h2>Time on this machine</h2>\n<p class=\"soft\">{}. Only this section differs \
             between machines.</p>\n{}",
            escape(&self.timing.machine),
            table(&rows)
        )
    }
}

/// A picture with its title and what it shows, all of it HTML.
pub fn figure(title: &str, svg: &str, caption: &str) -> String {
    format!("<figure><h3>{title}</h3>\n{svg}\n<figcaption>{caption}</figcaption></figure>\n")
}

/// Names and values, which are plain text.
pub fn table(rows: &[(&str, String)]) -> String {
    let mut html = "<div class=\"scroll\"><table>\n".to_string();
    for (name, value) in rows {
        let (name, value) = (escape(name), escape(value));
        let _ = writeln!(
            html,
            "<tr><td>{name}</td><td class=\"number\">{value}</td></tr>"
        );
    }
    html + "</table></div>\n"
}

fn transcript(stage: &str, sample: &Sample) -> String {
    let right = sample.accuracy == 1.0;
    let class = if right { "right" } else { "wrong" };
    let verdict = match sample.reason.as_str() {
        reason if !right => format!("wrong: {reason}"),
        "right" => "right".to_string(),
        form => format!("right, but {form}"),
    };
    format!(
        "<div class=\"transcript\"><h3>{}: <span class=\"{class}\">{}</span></h3>\n<pre>{}</pre>\n\
         <details><summary>As the model wrote it</summary><pre>{}</pre></details></div>\n",
        escape(stage),
        escape(&verdict),
        escape(&sample.explained),
        escape(&sample.completion),
    )
}

#[cfg(test)]
mod tests;

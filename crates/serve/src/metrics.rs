//! What is counted, as Prometheus reads it. Names are vLLM's where the meaning is the same.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::worker::Worker;

/// Upper ends of the buckets of the histograms, in seconds.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

#[derive(Debug, Default)]
struct Histogram {
    counts: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, seconds: f64) {
        let bucket = SECONDS.partition_point(|&end| end < seconds);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[derive(Debug, Default)]
struct Counted {
    first_token: Histogram,
    next_token: Histogram,
    request: Histogram,
    /// stop, length, tool_calls, abort, error
    finished: [u64; 5],
    /// By status.
    responses: BTreeMap<u16, u64>,
}

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stop,
    Length,
    ToolCalls,
    Abort,
    Error,
}

const ENDS: [&str; 5] = ["stop", "length", "tool_calls", "abort", "error"];

/// Counters of requests; those of the engine are asked for when they are shown.
#[derive(Debug, Default)]
pub struct Metrics {
    counted: Mutex<Box<Counted>>,
}

impl Metrics {
    pub fn first_token(&self, after: Duration) {
        self.with(|counted| counted.first_token.observe(after.as_secs_f64()));
    }

    pub fn next_token(&self, after: Duration) {
        self.with(|counted| counted.next_token.observe(after.as_secs_f64()));
    }

    /// A sequence has come to its end, so long after its request came.
    pub fn finished(&self, end: End, after: Duration) {
        self.with(|counted| {
            counted.finished[end as usize] += 1;
            counted.request.observe(after.as_secs_f64());
        });
    }

    pub fn responded(&self, status: u16) {
        self.with(|counted| {
            *counted.responses.entry(status).or_default() += 1;
        });
    }

    fn with(&self, change: impl FnOnce(&mut Counted)) {
        change(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The text format, version 0.0.4.
    pub fn text(&self, worker: &Worker, model_name: &str) -> String {
        let label = model_name
            .replace('\\', r"\\")
            .replace('"', "\\\"")
            .replace('\n', r"\n");
        let mut page = Page {
            text: String::new(),
            label: format!("model_name=\"{label}\""),
        };
        let stats = worker.stats();
        let used = stats.num_blocks - stats.free_blocks;
        let usage = used as f64 / stats.num_blocks.max(1) as f64;
        page.gauge(
            "num_requests_running",
            "Sequences in the batch",
            stats.running,
        );
        page.gauge("num_requests_waiting", "Sequences that wait", stats.waiting);
        page.gauge(
            "kv_cache_usage_perc",
            "Cache in use by sequences, from 0 to 1",
            usage,
        );
        let blocks = "Blocks of the cache that keep prefixes for later";
        page.gauge("kv_cache_kept_blocks", blocks, stats.cached_blocks);
        page.counter("prompt_tokens", "Tokens of prompts", stats.prompt_tokens);
        page.counter(
            "generation_tokens",
            "Tokens generated",
            stats.generated_tokens,
        );
        let asked = "Tokens of prompts looked up in the prefix cache";
        page.counter("prefix_cache_queries", asked, stats.prompt_tokens);
        page.counter("prefix_cache_hits", "Of these, found", stats.cached_tokens);
        let preempted = "Times that a sequence lost its blocks";
        page.counter("num_preemptions", preempted, stats.preemptions);
        let (drafts, accepted) = (stats.draft_tokens, stats.accepted_draft_tokens);
        page.counter(
            "spec_decode_num_draft_tokens",
            "Tokens guessed ahead",
            drafts,
        );
        page.counter(
            "spec_decode_num_accepted_tokens",
            "Of these, right",
            accepted,
        );
        page.counter("engine_steps", "Batches computed", stats.steps);
        self.with(|counted| page.counted(counted));
        page.text
    }
}

struct Page {
    text: String,
    label: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP vllm:{name} {help}."));
        self.line(format_args!("# TYPE vllm:{name} {kind}"));
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.text, "{line}").expect("a string takes all there is");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(format_args!(
            "vllm:{name}{{{}}} {value}",
            self.label.clone()
        ));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(&format!("{name}_total"), "counter", help);
        self.line(format_args!(
            "vllm:{name}_total{{{}}} {value}",
            self.label.clone()
        ));
    }

    fn counted(&mut self, counted: &Counted) {
        let name = "request_success_total";
        self.head(name, "counter", "Sequences that ended, by reason");
        let label = self.label.clone();
        for (reason, count) in ENDS.into_iter().zip(counted.finished) {
            self.line(format_args!(
                "vllm:{name}{{{label},finished_reason=\"{reason}\"}} {count}"
            ));
        }
        let name = "http_responses_total";
        self.head(name, "counter", "Responses begun, by status");
        for (status, count) in &counted.responses {
            self.line(format_args!(
                "vllm:{name}{{{label},status=\"{status}\"}} {count}"
            ));
        }
        let first = "Time from a request to its first token";
        self.histogram("time_to_first_token_seconds", first, &counted.first_token);
        let next = "Time between two tokens of a sequence";
        self.histogram("inter_token_latency_seconds", next, &counted.next_token);
        let whole = "Time from a request to its last token";
        self.histogram("e2e_request_latency_seconds", whole, &counted.request);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let label = self.label.clone();
        let mut count = 0;
        for (end, here) in SECONDS.into_iter().zip(histogram.counts) {
            count += here;
            self.line(format_args!(
                "vllm:{name}_bucket{{{label},le=\"{end}\"}} {count}"
            ));
        }
        let (count, sum) = (histogram.count, histogram.sum);
        self.line(format_args!(
            "vllm:{name}_bucket{{{label},le=\"+Inf\"}} {count}"
        ));
        self.line(format_args!("vllm:{name}_sum{{{label}}} {sum}"));
        self.line(format_args!("vllm:{name}_count{{{label}}} {count}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_and_including_its_ends() {
        let mut histogram = Histogram::default();
        for seconds in [0.0005, 0.001, 0.0011, 4.0, 1000.0] {
            histogram.observe(seconds);
        }
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 1));
        assert_eq!((histogram.counts[11], histogram.count), (1, 5));
        let mut page = Page {
            text: String::new(),
            label: "m=\"x\"".to_string(),
        };
        page.histogram("h", "Help", &histogram);
        for line in [
            "# TYPE vllm:h histogram",
            "vllm:h_bucket{m=\"x\",le=\"0.0025\"} 3",
            "vllm:h_bucket{m=\"x\",le=\"300\"} 4",
            "vllm:h_bucket{m=\"x\",le=\"+Inf\"} 5",
            "vllm:h_count{m=\"x\"} 5",
        ] {
            assert!(page.text.lines().any(|found| found == line), "{line}");
        }
    }
}

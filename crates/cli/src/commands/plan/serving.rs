//! `plan --serve`: tokens a second and dollars a million tokens.

mod machine;

use std::fmt::Write;

use clap::Args;
use model::Config;
use plan::chip::{self, Chip};
use plan::error::Error;
use plan::interval::Interval;
use plan::quantity::{Bytes, Dollars, DollarsPerChipSecond, Seconds, TokensPerSecond};
use plan::serving::{CACHE_HITS, CONTEXT, Decode, Here, Origin, PROMPT, Prefill, Served, Service};
use plan::shape::Shape;
use serde::Serialize;

use crate::commands::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::lines::{WIDTH, wrapped};
use crate::memory::shown;
use crate::plain::plain;
use crate::settings::Settings;

/// Sequences at once on this machine, where nobody says.
const USUAL_BATCH: u64 = 8;
/// What DeepSeek serves on; taken where no chip is named.
const USUAL_CHIP: &str = "h800";

/// What users do, and on which chips; the defaults are DeepSeek's day of 2025-02-27.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "With --serve")]
pub struct ServingOptions {
    /// Chips that share one copy of the model for prompts [default: searched]
    #[arg(long, value_name = "N")]
    prefill_ep: Option<u64>,
    /// Chips that share one copy of the model for answers [default: searched]
    #[arg(long, value_name = "N")]
    decode_ep: Option<u64>,
    /// Mean tokens that an answer's tokens look back on [default: 4989]
    #[arg(long, value_name = "TOKENS")]
    context: Option<u64>,
    /// Mean tokens of a prompt [default: 4383]
    #[arg(long, value_name = "TOKENS")]
    prompt_tokens: Option<u64>,
    /// Share of prompt tokens whose cache is at hand [default: 0.5625, 342 of 608]
    #[arg(long, value_name = "SHARE")]
    cache_hits: Option<f64>,
    /// Guess a second token by multi-token prediction; it is right with this share
    #[arg(long, value_name = "SHARE")]
    acceptance: Option<f64>,
    /// Tokens a second that each user gets at least [default: as many users as memory holds]
    #[arg(long, value_name = "RATE")]
    per_user: Option<f64>,
    /// Sequences at once on this machine, with --chips here [default: 8]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=65_536))]
    batch: Option<u64>,
}

impl ServingOptions {
    /// The first of them that was given.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            ("--prefill-ep", self.prefill_ep.is_some()),
            ("--decode-ep", self.decode_ep.is_some()),
            ("--context", self.context.is_some()),
            ("--prompt-tokens", self.prompt_tokens.is_some()),
            ("--cache-hits", self.cache_hits.is_some()),
            ("--acceptance", self.acceptance.is_some()),
            ("--per-user", self.per_user.is_some()),
            ("--batch", self.batch.is_some()),
        ];
        given
            .into_iter()
            .find_map(|(name, given)| given.then_some(name))
    }

    fn context(&self) -> u64 {
        self.context.unwrap_or(CONTEXT)
    }

    fn prompt(&self) -> u64 {
        self.prompt_tokens.unwrap_or(PROMPT)
    }
}

/// What is asked besides the model.
pub struct Asked<'a> {
    /// H800s in any number where there is none.
    pub cluster: Option<(&'a Chip, u64)>,
    /// Dollars for a chip and an hour; `None`: what the catalogue knows.
    pub price: Option<f64>,
    /// Whether to say where each number comes from, which `--json` always does.
    pub explain: bool,
    pub options: &'a ServingOptions,
}

/// One JSON object.
#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    chip: &'a str,
    context_tokens: u64,
    prompt_tokens: u64,
    cache_hits: f64,
    acceptance: Option<f64>,
    #[serde(flatten)]
    served: &'a Served,
}

/// What `shape` takes to serve on at most so many chips.
///
/// # Errors
/// What cannot be asked, 2; a model that the chips cannot hold, 2.
pub fn run(shape: &Shape, title: &str, asked: &Asked, settings: &Settings) -> Outcome {
    let chip = match asked.cluster {
        Some((chip, _)) => chip,
        None => chip::find(USUAL_CHIP)?,
    };
    let mut service = asked.service(shape, chip, settings)?;
    if let Some((_, chips)) = asked.cluster {
        service.chips = chips;
    }
    let served = service.serve().map_err(refused)?;
    if settings.json {
        return print_json(&Answer {
            model: title,
            chip: &chip.key,
            context_tokens: service.context,
            prompt_tokens: service.prompt,
            cache_hits: service.cache_hits,
            acceptance: service.acceptance,
            served: &served,
        });
    }
    let mut text = in_words(title, &service, &served);
    if asked.explain {
        text.push_str(&explained(&served.origins));
    }
    print(&text)
}

/// What a model that this program runs does on this machine, of which memory and arithmetic are
/// measured first, about a second each.
///
/// # Errors
/// What cannot be asked, 2.
pub fn run_here(
    config: &Config,
    title: &str,
    options: &ServingOptions,
    settings: &Settings,
) -> Outcome {
    let width = machine::stored_width(config, settings.precision());
    let asked = [
        options.batch.unwrap_or(USUAL_BATCH),
        options.context(),
        options.prompt(),
    ];
    let found = machine::predicted(config, width, asked, settings).map_err(refused)?;
    if settings.json {
        #[derive(Serialize)]
        struct AnswerHere<'a> {
            model: &'a str,
            chip: &'static str,
            context_tokens: u64,
            prompt_tokens: u64,
            threads: usize,
            #[serde(flatten)]
            here: &'a Here,
        }
        return print_json(&AnswerHere {
            model: title,
            chip: "here",
            context_tokens: options.context(),
            prompt_tokens: options.prompt(),
            threads: settings.thread_count(),
            here: &found,
        });
    }
    print(&here_in_words(title, options, settings, &found))
}

impl Asked<'_> {
    fn service<'a>(
        &self,
        shape: &'a Shape,
        chip: &'a Chip,
        settings: &Settings,
    ) -> Result<Service<'a>, Failure> {
        let usual = Service::new(shape, chip);
        let price = |usd: f64| Interval::exact(DollarsPerChipSecond::from_hourly(usd));
        let options = self.options;
        Ok(Service {
            prefill_chips: options.prefill_ep,
            decode_chips: options.decode_ep,
            context: options.context(),
            prompt: options.prompt(),
            cache_hits: options.cache_hits.unwrap_or(CACHE_HITS),
            acceptance: options.acceptance,
            per_user: options.per_user,
            hourly: self.price.map(price).or(usual.hourly),
            precision: match settings.precision {
                None => usual.precision,
                Some(_) => settings.planned_precision()?,
            },
            ..usual
        })
    }
}

fn refused(error: Error) -> Failure {
    let advice = match &error {
        Error::DoesNotFit(_) => "give more chips, others, or a lower --precision",
        Error::Chip(_) => "choose another chip or --precision; `bruchteil chips` lists them",
        Error::UnknownChip { .. } => "`bruchteil chips` lists all",
        _ => "`bruchteil plan --help` shows what the options take",
    };
    Failure::usage(error, advice)
}

/// A name, and what it is for prompts and for answers.
type Line = (&'static str, String, String);

fn in_words(title: &str, service: &Service, served: &Served) -> String {
    let guess = match service.acceptance {
        Some(share) => format!("; second token guessed, {:.0} % right", 100.0 * share),
        None => String::new(),
    };
    let name = format!(
        "{title} on {}, {}",
        service.chip.name,
        service.precision.name()
    );
    let users = format!(
        "prompts of {} tokens, {:.1} % of them cached; answers look back on {}{guess}",
        service.prompt,
        100.0 * service.cache_hits,
        service.context,
    );
    let mut text = paragraph(&plain(&name)) + &paragraph(&users) + "\n";
    let heading = (
        "",
        "prompts (prefill)".to_string(),
        "answers (decode)".to_string(),
    );
    let lines = [heading]
        .into_iter()
        .chain(lines(&served.prefill, &served.decode));
    for (name, prefill, decode) in lines {
        let line = format!("{name:<24}{prefill:<38}{decode}");
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push('\n');
    text + &paragraph(
        "In brackets: 0.58 to 1.38 of the prediction, the bounds of the eight published services \
         that it was compared with. A full pool; idle hours give less. A node is 8 chips.",
    )
}

fn lines(prefill: &Prefill, decode: &Decode) -> Vec<Line> {
    let mut lines = rates(prefill, decode);
    let exchange = |seconds: Seconds, hidden: bool| match (seconds > Seconds::ZERO, hidden) {
        (false, _) => "none".to_string(),
        (true, true) => format!("{}, behind compute", milli(seconds)),
        (true, false) => format!("{}, not hidden", milli(seconds)),
    };
    lines.push((
        "compute of a pass",
        milli(prefill.compute_seconds),
        milli(decode.compute_seconds),
    ));
    lines.push((
        "exchange of a pass",
        exchange(prefill.exchange_seconds, true),
        exchange(decode.exchange_seconds, decode.overlapped),
    ));
    let (held, kept) = (
        &prefill.memory_bytes_per_chip,
        &decode.memory_bytes_per_chip,
    );
    for (name, held, kept) in [
        ("weights on a chip", held.weights, kept.weights),
        ("cache on a chip", held.cache, kept.cache),
        ("activations on a chip", held.activations, kept.activations),
    ] {
        lines.push((name, sized(held), sized(kept)));
    }
    lines
}

fn milli(seconds: Seconds) -> String {
    format!("{:.1} ms", 1e3 * seconds.0)
}

/// As chips' memories are counted: 1 GB is 1e9 bytes.
fn sized(bytes: Bytes) -> String {
    match bytes.0 {
        bytes if bytes >= 1e8 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.2} MB", bytes / 1e6),
    }
}

fn rates(prefill: &Prefill, decode: &Decode) -> Vec<Line> {
    let (p, d) = (prefill, decode);
    let layout = |chips: u64, tp: u64| match tp {
        1 => format!("{chips}"),
        tp => format!("{chips}, tensor parallel {tp}"),
    };
    let rate = |rate: Interval<TokensPerSecond>| ranged(rate.map(|rate| rate.0));
    let none = || "-".to_string();
    vec![
        (
            "chips of one copy",
            layout(p.chips, p.tensor_parallel),
            layout(d.chips, d.tensor_parallel),
        ),
        (
            "tokens/s per node",
            rate(p.tokens_per_second_per_node),
            rate(d.tokens_per_second_per_node),
        ),
        (
            "tokens/s per chip",
            rate(p.tokens_per_second_per_chip),
            rate(d.tokens_per_second_per_chip),
        ),
        (
            "tokens/s per user",
            none(),
            rate(d.tokens_per_second_per_user),
        ),
        (
            "time per token",
            none(),
            format!("{} ms", ranged(d.seconds_per_token.map(|s| 1e3 * s.0))),
        ),
        (
            "at once on a chip",
            format!("2 x {} tokens", p.micro_batch_tokens),
            format!("{:.1} sequences", d.sequences_per_chip),
        ),
        (
            "$ per million tokens",
            cost(p.usd_per_million_tokens),
            cost(d.usd_per_million_tokens),
        ),
    ]
}

fn cost(dollars: Option<Interval<Dollars>>) -> String {
    match dollars {
        None => "price unknown".to_string(),
        Some(dollars) => ranged(dollars.map(|dollars| dollars.0)),
    }
}

/// Three digits that matter.
fn ranged(interval: Interval<f64>) -> String {
    let Interval { low, mid, high } = interval;
    let number = |value: f64| match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value if value >= 0.01 => format!("{value:.3}"),
        value => format!("{value:.1e}"),
    };
    if low == high {
        return number(mid);
    }
    format!("{} ({} to {})", number(mid), number(low), number(high))
}

fn explained(origins: &[Origin]) -> String {
    let mut text = String::from("\nWhere the numbers come from\n");
    for origin in origins {
        let _ = writeln!(text, "{}: {}", origin.name, plain(&origin.value));
        for line in [&origin.formula, &origin.source] {
            for part in wrapped(&plain(line), WIDTH - 4) {
                let _ = writeln!(text, "    {part}");
            }
        }
    }
    text
}

/// Lines of a terminal, with an end.
fn paragraph(text: &str) -> String {
    wrapped(text, WIDTH).join("\n") + "\n"
}

fn here_in_words(
    title: &str,
    options: &ServingOptions,
    settings: &Settings,
    found: &Here,
) -> String {
    let heading = format!(
        "{title} on this machine, {} threads; context {}, prompt {}",
        settings.thread_count(),
        options.context(),
        options.prompt()
    );
    let mut text = paragraph(&plain(&heading)) + "\n";
    let machine = &found.machine;
    let rate =
        |rate: Interval<TokensPerSecond>| format!("{} tokens/s", ranged(rate.map(|rate| rate.0)));
    for (name, value) in [
        (
            "reads, measured",
            format!("{:.1} GB/s", machine.bandwidth.0 / 1e9),
        ),
        (
            "products, measured",
            format!("{:.0} GFLOP/s", machine.peak.0 / 1e9),
        ),
        (
            "weights that a token reads",
            shown(found.weight_bytes.0 as u64),
        ),
        ("prompts (prefill)", rate(found.prefill)),
        ("answers, one alone", rate(found.decode_alone)),
    ] {
        let _ = writeln!(text, "{name:<28}{value}");
    }
    let name = format!("answers, {} at once", found.batch);
    let _ = writeln!(text, "{name:<28}{}", rate(found.decode_batch));
    text.push('\n');
    text + &paragraph(
        "An upper bound: reading and computing at once; in brackets, one after the other. Norms, \
         softmax, sampling and waiting for threads come on top: next to nothing where weights are \
         hundreds of megabytes, most of the time where they fit a cache.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chip_is_answered_within_a_hundred_columns() {
        let shape = &plan::preset::find("deepseek-v3").expect("a preset").shape;
        let mut answered = 0;
        for chip in chip::catalogue() {
            let service = Service {
                chips: 8192,
                acceptance: Some(0.85),
                ..Service::new(shape, chip)
            };
            let served = match service.serve() {
                Ok(served) => served,
                // Too little is published of some; in 16 bits small memories hold too little.
                Err(Error::Chip(_)) => continue,
                Err(Error::DoesNotFit(_)) if chip.memory.expect("known").0 < 40e9 => continue,
                Err(error) => panic!("{}: {error}", chip.key),
            };
            answered += 1;
            let mut text = in_words("DeepSeek-V3", &service, &served);
            assert_eq!(text.contains("price unknown"), chip.hourly.is_none());
            text.push_str(&explained(&served.origins));
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", chip.key);
            }
        }
        assert!(answered > 20, "{answered} chips");
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        assert_eq!(
            ranged(Interval::new(0.0612, 0.25, 12.34)),
            "0.250 (0.061 to 12.3)"
        );
        assert_eq!(ranged(Interval::exact(73_700.4)), "73700");
        assert_eq!(wrapped("a bb ccc dddd", 4), ["a bb", "ccc", "dddd"]);
    }
}

//! Where each number of a plan comes from: its formula, what went into it, and whose word that is.

use plan::campaign::{CHECKPOINT, FAILURES_PER_CHIP_DAY, POWER_SHARE, RESTART};
use plan::efficiency::{Efficiency, Entry, entries};
use plan::memory::USABLE;
use plan::training::Plan;
use serde::Serialize;

use super::answer::Answer;
use super::words;
use crate::lines::{WIDTH, wrapped};
use crate::numbers::{counted, grouped, short, spanned};
use crate::plain::plain;

/// One number.
#[derive(Serialize)]
pub struct Explanation {
    pub name: String,
    pub value: String,
    /// With the inputs in it.
    pub formula: String,
    pub source: String,
}

/// One number a paragraph, wrapped, the further lines set in.
pub fn text(answer: &Answer) -> String {
    let mut lines = vec!["Where each number comes from".to_string()];
    for Explanation {
        name,
        value,
        formula,
        source,
    } in all(answer)
    {
        let line = plain(&format!("{name}: {value} = {formula} [{source}]"));
        let wrapped = wrapped(&line, WIDTH - 2);
        let set_in = wrapped.iter().enumerate();
        lines.extend(set_in.map(|(index, line)| match index {
            0 => line.clone(),
            _ => format!("  {line}"),
        }));
    }
    lines.join("\n") + "\n"
}

/// All of them, in the order of the table; the efficiencies last.
pub fn all(answer: &Answer) -> Vec<Explanation> {
    let mut all = model(answer);
    all.extend(memory(answer));
    all.extend(step_parts(answer));
    all.extend(step(answer));
    all.extend(failures(&answer.plan));
    all.extend(run(answer));
    all.extend(entries().iter().map(efficiency));
    all
}

fn line(name: &str, value: String, formula: String, source: &str) -> Explanation {
    Explanation {
        name: name.to_string(),
        value,
        formula,
        source: source.to_string(),
    }
}

fn model(answer: &Answer) -> Vec<Explanation> {
    let (plan, shape) = (&answer.plan, &answer.request.shape);
    let parts = &plan.parameters;
    let sum = [
        ("embedding", parts.embedding),
        ("attention", parts.attention),
        ("dense feed-forward", parts.dense_feed_forward),
        ("shared experts", parts.shared_experts),
        ("routed experts", parts.routed_experts),
        ("router", parts.router),
        ("norms and biases", parts.norms_and_biases),
        ("head", parts.head),
    ];
    let sum = sum.iter().filter(|(_, count)| *count > 0);
    let sum: Vec<String> = sum
        .map(|(name, count)| format!("{name} {}", grouped(*count as f64)))
        .collect();
    let products = shape.matmul_flops(answer.with_mtp()).0;
    let core = shape.core_flops(plan.seq_len, true, answer.with_mtp()).0;
    let counting = "counted like arXiv 2505.09343, Table 2: causal, nothing computed again";
    vec![
        line(
            "parameters_total",
            grouped(plan.parameters_total as f64),
            sum.join(" + "),
            &answer.source,
        ),
        line(
            "parameters_active",
            grouped(plan.parameters_active as f64),
            "the same, of the routed experts only those that a token visits".to_string(),
            &answer.source,
        ),
        line(
            "flops_per_token",
            format!("{:.5e}", plan.flops_per_token),
            format!(
                "3 x ({:.5e} in products, 2 for each parameter met, + {core:.5e} in attention over \
                 {} keys on average)",
                products,
                short((plan.seq_len as f64 + 1.0) / 2.0)
            ),
            counting,
        ),
        line(
            "flops_total",
            format!("{:.4e}", plan.flops_total),
            format!("flops_per_token x {} tokens", counted(plan.tokens)),
            "--tokens",
        ),
    ]
}

fn memory(answer: &Answer) -> Vec<Explanation> {
    let (plan, software) = (&answer.plan, answer.request.software.unwrap_or_default());
    let formula = |name: &str| match name {
        "weights" => "2 bytes x parameters of the stage / (tp, experts ep); zero=3 divides them \
                      by dp; DualPipe holds two stages"
            .to_string(),
        "gradients" => format!(
            "{} bytes x the same; zero=2 and 3 divide them by dp",
            software.gradient_bytes
        ),
        "optimizer" => format!(
            "(4 for the master + 2 x {} for Adam's moments) x parameters; zero=1 on divides them \
             by dp, experts by their copies",
            software.moment_bytes
        ),
        "activations" => "bytes that a layer keeps of a token x tokens of a micro-batch x \
                          micro-batches in flight"
            .to_string(),
        "workspace" => {
            "4 bytes x the largest matrix outside the experts / tp, its gradient before \
                        it is added; zero=3 adds what is gathered of a layer"
                .to_string()
        }
        _ => "6 bytes x tokens of a micro-batch x vocabulary / tp".to_string(),
    };
    let source = "arXiv 2205.05198, section 4, with MLA and experts; arXiv 1910.02054";
    let gigabytes = |bytes: f64| format!("{:.2} GB", bytes / 1e9);
    let mut all: Vec<Explanation> = plan
        .memory_parts
        .iter()
        .map(|(name, bytes)| {
            line(
                &format!("memory, {name}"),
                gigabytes(*bytes),
                formula(name),
                source,
            )
        })
        .collect();
    let chip = answer.chip();
    all.push(line(
        "memory that can be used",
        gigabytes(plan.memory_usable_bytes),
        format!(
            "{USABLE} x {} of the chip: driver, libraries and exchange buffers take the rest",
            gigabytes(chip.memory.map_or(0.0, |memory| memory.0))
        ),
        &chip.source,
    ));
    all
}

fn step_parts(answer: &Answer) -> Vec<Explanation> {
    // Every part is that many times what its formula says.
    let slowdown = match answer.request.software {
        Some(software) => format!("; x {} of the software", software.slowdown),
        None => String::new(),
    };
    let parts = answer
        .plan
        .step_parts
        .iter()
        .filter(|(_, seconds)| *seconds > 0.0);
    parts
        .map(|(name, seconds)| {
            let (formula, inputs) = of_part(name);
            let inputs: Vec<String> = inputs.iter().map(|&input| value_of(input)).collect();
            let inputs = match inputs.as_slice() {
                [] => String::new(),
                inputs => format!("; {}", inputs.join(", ")),
            };
            let name = format!("step, {name}");
            let value = format!("{} s", short(*seconds));
            let source = "rates: the chip's data sheet; shares: below";
            line(&name, value, format!("{formula}{inputs}{slowdown}"), source)
        })
        .collect()
}

/// How a part of a step is reckoned, and by which efficiencies.
fn of_part(name: &str) -> (&'static str, Vec<Efficiency>) {
    use Efficiency as E;
    match name {
        "products" => (
            "operations of products, those computed again too / (peak in the precision x the \
             chip's best measured share of it x clocks), waves of tiles rounded up",
            vec![
                E::Clocks,
                E::Tail,
                E::TileGrowth,
                E::Unmeasured,
                E::MatmulFp4,
            ],
        ),
        "attention" => (
            "causal operations / (16-bit peak x share), backward two and a half times as many",
            vec![E::AttentionForward, E::AttentionBackward, E::Flash2],
        ),
        "elementwise" => (
            "bytes of norms, activation functions, rotation, routing / (bandwidth x share)",
            vec![E::Memory],
        ),
        "starting kernels" => ("kernels x seconds of each", vec![E::Kernel, E::Launch]),
        "tensor exchange" => (
            "bytes gathered and scattered / (link x share), less what products hide",
            vec![E::ScaleUp, E::ScaleOut, E::Exposed],
        ),
        "expert exchange" => (
            "bytes to and from experts on other chips / (link x share), less what is hidden",
            vec![E::ScaleUp, E::ScaleOut, E::Exposed],
        ),
        "between stages" => (
            "bytes of the stream passed on / (link x share)",
            vec![E::ScaleUp, E::ScaleOut],
        ),
        "bubble" => (
            "what the schedule leaves idle while a pipeline fills and empties (arXiv 2412.19437, \
             Table 2); the other parts are those of the busiest stage",
            vec![],
        ),
        "data exchange" => (
            "bytes of gradients and weights / (link x share), less what backward passes hide",
            vec![E::ScaleUp, E::ScaleOut, E::Exposed],
        ),
        _ => (
            "bytes of weights, masters, moments and gradients / (bandwidth x share)",
            vec![E::Memory],
        ),
    }
}

fn snake(name: Efficiency) -> String {
    let value = serde_json::to_value(name).expect("a name");
    value.as_str().expect("a name is a string").to_string()
}

fn value_of(name: Efficiency) -> String {
    let entry = entries().iter().find(|entry| entry.name == name);
    let value = entry.expect("all are there").value;
    format!("{} {}", snake(name), short(value))
}

fn efficiency(entry: &Entry) -> Explanation {
    let how = match entry.fitted {
        true => "found by fitting all published steps at once",
        false => "taken from, or reasoned as, the source says",
    };
    let name = format!("efficiency {}", snake(entry.name));
    line(&name, short(entry.value), how.to_string(), &entry.source)
}

fn step(answer: &Answer) -> Vec<Explanation> {
    let plan = &answer.plan;
    let spread = match answer.request.software {
        Some(_) => {
            "nineteen in twenty published steps, each without itself; `bruchteil plan --validate \
             FILE` shows all"
        }
        None => {
            "nine in ten published steps of any software by the default's prediction; --software \
             narrows it"
        }
    };
    let bounds = answer.request.spread();
    let peak = answer.chip().bf16.map_or(0.0, |peak| peak.0 / 1e12);
    let [seconds, rate, mfu] = first_three(plan);
    vec![
        line(
            "step_seconds",
            seconds,
            format!("the parts together x {} to {}", bounds.low, bounds.high),
            spread,
        ),
        line(
            "tokens_per_second_per_chip",
            rate,
            format!(
                "{} sequences x {} tokens / step_seconds / {} chips",
                plan.batch_seqs, plan.seq_len, plan.chips
            ),
            "--batch-seqs, --seq-len, --chips",
        ),
        line(
            "mfu",
            mfu,
            format!(
                "flops_per_token x tokens_per_second_per_chip / {} TFLOPS",
                short(peak)
            ),
            &answer.chip().source,
        ),
    ]
}

fn first_three(plan: &Plan) -> [String; 3] {
    let mut results = words::results(plan).into_iter().map(|line| line.value);
    [(); 3].map(|()| results.next().unwrap_or_default())
}

fn failures(plan: &Plan) -> Vec<Explanation> {
    let run = &plan.campaign;
    let rate = spanned(&FAILURES_PER_CHIP_DAY, "", |rate| format!("{rate:.2e}"));
    let [save, restart] =
        [CHECKPOINT, RESTART].map(|time| spanned(&time.map(|time| time.0), " s", short));
    vec![
        line(
            "hours_between_failures",
            spanned(&run.hours_between_failures, " h", short),
            format!(
                "24 h / ({rate} failures per chip and day x {} chips)",
                plan.chips
            ),
            "mid: 419 in 54 days on 16,384 H100, arXiv 2407.21783, 3.3.4; low and high: arXiv \
             2410.21680",
        ),
        line(
            "checkpoint_seconds",
            spanned(&run.checkpoint_seconds, " s", short),
            format!("root of (2 x {save} to save x time between failures)"),
            "Young 1974: what loses least",
        ),
        line(
            "goodput",
            spanned(&run.goodput, " %", |share| format!("{:.1}", 100.0 * share)),
            format!(
                "1 - save / checkpoint_seconds - checkpoint_seconds / 2 / time between failures - \
                 {restart} to come back / the same"
            ),
            "the fast ends give the 90 % and more of arXiv 2407.21783, 3.3.4",
        ),
    ]
}

fn run(answer: &Answer) -> Vec<Explanation> {
    let (plan, chip) = (&answer.plan, answer.chip());
    let results = words::results(plan);
    let value = |name: &str| {
        let found = results.iter().find(|line| line.name == name);
        found.map(|line| line.value.clone()).unwrap_or_default()
    };
    let share = spanned(&POWER_SHARE, "", short);
    let power = chip
        .power
        .map_or_else(|| "unknown".to_string(), |power| short(power.0));
    vec![
        line(
            "steps",
            grouped(plan.campaign.steps),
            format!(
                "{} tokens / ({} x {})",
                counted(plan.tokens),
                plan.batch_seqs,
                plan.seq_len
            ),
            "--tokens, --batch-seqs, --seq-len",
        ),
        line(
            "days",
            value("days"),
            "tokens / (tokens_per_second_per_chip x chips x goodput) / 86,400 s".to_string(),
            "worst with worst, best with best",
        ),
        line(
            "chip_hours",
            value("chip-hours"),
            format!("days x 24 x {} chips", plan.chips),
            "--chips",
        ),
        line(
            "energy_mwh",
            value("energy"),
            format!("chip_hours x {power} W x {share}, host and network included"),
            "arXiv 2305.06161 and 2211.02001, Olmo 3: 280 of 400 W, 400 of 400 W, 640 of 700 W",
        ),
        line(
            "cost_usd",
            value("cost"),
            format!("chip_hours x {}", words::price(&answer.request)),
            "rent of chips alone: no people, no failed runs, no research before",
        ),
    ]
}

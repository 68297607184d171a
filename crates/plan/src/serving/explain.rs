//! Where each number of a service comes from.

use serde::Serialize;

use super::pool::CACHE_BYTES;
use super::{Decode, KERNEL_SECONDS, NODE, Prefill, READ_SHARE, Service};
use crate::efficiency::{Efficiency, entries};
use crate::shape::CacheWidth;

/// One number, how it came about, and who says so.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Origin {
    pub name: &'static str,
    pub value: String,
    pub formula: String,
    pub source: String,
}

fn origin(name: &'static str, value: String, formula: &str, source: &str) -> Origin {
    Origin {
        name,
        value,
        formula: formula.to_string(),
        source: source.to_string(),
    }
}

pub(super) fn origins(service: &Service, prefill: &Prefill, decode: &Decode) -> Vec<Origin> {
    let mut origins = of_chip(service);
    origins.extend(of_users(service));
    origins.extend(of_prefill(service, prefill));
    origins.extend(of_decode(service, decode));
    let shares = [
        Efficiency::Clocks,
        Efficiency::Tail,
        Efficiency::AttentionForward,
        Efficiency::ScaleUp,
        Efficiency::ScaleOut,
        Efficiency::Exposed,
    ];
    let used = entries().iter().filter(|e| shares.contains(&e.name));
    origins.extend(used.map(|entry| {
        let name = serde_json::to_value(entry.name).unwrap_or_default();
        let name = name.as_str().unwrap_or_default();
        origin(
            "efficiency",
            format!("{name} {}", entry.value),
            "shared with training, fitted to no service",
            &entry.source,
        )
    }));
    let own = [
        (
            "memory",
            READ_SHARE,
            "of the bandwidth, for weights and caches read in order",
        ),
        (
            "kernel",
            KERNEL_SECONDS,
            "seconds for each kernel, replayed by a graph",
        ),
    ];
    origins.extend(own.map(|(name, value, what)| {
        let value = format!("{name} {value}");
        origin(
            "efficiency",
            value,
            what,
            "github.com/ai-dynamo/aiconfigurator systems/*.yaml",
        )
    }));
    origins
}

fn of_chip(service: &Service) -> Vec<Origin> {
    let chip = service.chip;
    let mut origins = Vec::new();
    let giga = |value: f64| format!("{:.1} GB/s", value / 1e9);
    if let Some(peak) = service.precision.peak(chip) {
        let name = service.precision.name();
        let value = format!("{:.1} TFLOP/s in {name}", peak.0 / 1e12);
        origins.push(origin("peak", value, "data sheet, dense", &chip.source));
    }
    let same = "the same entry of the catalogue as the peak's";
    let links = [
        ("memory bandwidth", chip.memory_bandwidth, "data sheet"),
        (
            "scale-up link",
            chip.scale_up,
            "per direction, inside a domain",
        ),
    ];
    for (name, rate, formula) in links {
        if let Some(rate) = rate {
            origins.push(origin(name, giga(rate.0), formula, same));
        }
    }
    match chip.scale_out {
        Some(rate) => {
            let formula = "per direction, between domains";
            origins.push(origin("scale-out link", giga(rate.0), formula, same));
        }
        None => origins.push(origin(
            "scale-out link",
            "50.0 GB/s".to_string(),
            "assumed: 400 Gbit/s",
            "the catalogue names none",
        )),
    }
    if let Some(price) = service.hourly {
        let (low, mid, high) = (price.low.hourly(), price.mid.hourly(), price.high.hourly());
        let value = format!("${mid:.2} an hour and chip ({low:.2} to {high:.2})");
        let asked = service.hourly != chip.hourly;
        let source = if asked {
            "as asked"
        } else {
            &chip.hourly_source
        };
        origins.push(origin("rent", value, "rate x hours", source));
    }
    origins
}

fn of_users(service: &Service) -> Vec<Origin> {
    let report = "github.com/deepseek-ai/open-infra-index 202502, day 6, or as asked";
    let cache = service.shape.cache_bytes_per_token(CacheWidth(CACHE_BYTES));
    let mut origins = vec![
        origin(
            "mean cached length",
            format!("{} tokens", service.context),
            "mean over answers of what a token looks back on",
            report,
        ),
        origin(
            "mean prompt",
            format!("{} tokens", service.prompt),
            "context / (1 + output / (2 x input)) = 4,989 / (1 + 84 / 608)",
            report,
        ),
        origin(
            "cache hits",
            format!("{:.1} % of prompt tokens", 100.0 * service.cache_hits),
            "342 of 608 billion",
            report,
        ),
        origin(
            "cache per token",
            format!("{} bytes", cache.0),
            "cached values per layer x layers x 2 bytes",
            "arXiv 2505.09343, table 1",
        ),
    ];
    if let Some(acceptance) = service.acceptance {
        origins.push(origin(
            "tokens of a step",
            format!("{}", 1.0 + acceptance),
            "1 + acceptance of the guessed token; both go through the model",
            "arXiv 2412.19437, section 5.4.3: 85 to 90 %",
        ));
    }
    origins
}

fn of_prefill(service: &Service, prefill: &Prefill) -> Vec<Origin> {
    let rate = prefill.tokens_per_second_per_chip.mid.0;
    vec![
        origin(
            "prefill compute",
            format!("{:.1} ms", 1e3 * prefill.compute_seconds.0),
            "products, attention, elementwise and kernels of one micro-batch",
            "plan::layer_time, forward",
        ),
        origin(
            "prefill exchange",
            format!("{:.1} ms", 1e3 * prefill.exchange_seconds.0),
            "tokens x domains met x hidden x 3 bytes / link",
            "arXiv 2412.19437, section 3.2.2",
        ),
        origin(
            "input tokens/s per node",
            format!("{:.0}", NODE * rate),
            "8 x micro-batch / (max(compute, exchange) + exposed x min) / (1 - hits)",
            "arithmetic",
        ),
        dollars("dollars per million input tokens", service, rate),
    ]
}

fn of_decode(service: &Service, decode: &Decode) -> Vec<Origin> {
    let rate = decode.tokens_per_second_per_chip.mid.0;
    let holding = &decode.memory_bytes_per_chip;
    vec![
        origin(
            "sequences per chip",
            format!("{:.1}", decode.sequences_per_chip),
            "the most that memory and the wanted tokens/s per user leave",
            "Little's law on the roofline",
        ),
        origin(
            "memory per chip",
            format!("{:.1} GB", holding.total().0 / 1e9),
            "weights + cache of all sequences + activations, of 94 % of the memory",
            "plan::memory::USABLE",
        ),
        origin(
            "decode compute",
            format!("{:.2} ms", 1e3 * decode.compute_seconds.0),
            "a product: max(operations / rate, bytes / memory); experts met: E (1 - (1 - k/E)^n)",
            "roofline; MLA absorbed, arXiv 2405.04434, section 2.1",
        ),
        origin(
            "decode exchange",
            format!("{:.2} ms", 1e3 * decode.exchange_seconds.0),
            "(1 + 2 bytes) x tokens x experts x hidden / link, each layer",
            "arXiv 2505.09343, section 2.3.2",
        ),
        origin(
            "output tokens/s per node",
            format!("{:.0}", NODE * rate),
            "8 x sequences x tokens of a step / step",
            "arithmetic",
        ),
        dollars("dollars per million output tokens", service, rate),
    ]
}

fn dollars(name: &'static str, service: &Service, rate: f64) -> Origin {
    let value = match service.hourly {
        Some(price) => format!("${:.3}", price.mid.0 / rate * 1e6),
        None => "price unknown".to_string(),
    };
    let formula = "rent / 3600 / (tokens/s per chip) x 1e6";
    origin(name, value, formula, "arithmetic")
}

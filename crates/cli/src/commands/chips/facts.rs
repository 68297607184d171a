//! What is known of a chip, as JSON with units in the names.

use plan::export::Classification;
use plan::quantity::{BytesPerSecond, FlopsPerSecond};
use serde_json::{Value, json};

use super::Entry;

/// A number without the digits that a change of units leaves behind.
pub fn tidy(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// A number as short as it is, or "-".
pub fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_string(), |value| tidy(value).to_string())
}

/// All of it, and the class.
pub fn json(entry: &Entry<'_>) -> Value {
    let Entry { chip, export } = entry;
    let tera = |rate: Option<FlopsPerSecond>| rate.map(|rate| tidy(rate.0 / 1e12));
    let giga = |bandwidth: Option<BytesPerSecond>| bandwidth.map(|value| tidy(value.0 / 1e9));
    json!({
        "key": chip.key,
        "name": chip.name,
        "vendor": chip.vendor,
        "market": chip.market,
        "prc_origin": chip.prc_origin,
        "launch": chip.launch,
        "bf16_tflops": tera(chip.bf16),
        "fp8_tflops": tera(chip.fp8),
        "int8_tops": tera(chip.int8),
        "fp4_tflops": tera(chip.fp4),
        "memory_gb": chip.memory.map(|memory| tidy(memory.0 / 1e9)),
        "memory_kind": chip.memory_kind,
        "memory_gb_per_second": giga(chip.memory_bandwidth),
        "scale_up_link": chip.scale_up_link,
        "scale_up_gb_per_second": giga(chip.scale_up),
        "scale_up_total_gb_per_second": giga(chip.scale_up_total),
        "scale_up_chips": chip.scale_up_chips,
        "scale_out_gb_per_second": giga(chip.scale_out),
        "power_watts": chip.power,
        "power_kind": chip.power_kind,
        "die_mm2": chip.die_mm2,
        "die_note": chip.die_note,
        "price_usd": chip.price,
        "rent_usd_per_hour": chip.hourly.map(|rent| rent.map(|rent| tidy(rent.hourly()))),
        "rent_source": chip.hourly_source,
        "gemm_bf16_share": chip.gemm_bf16,
        "gemm_fp8_share": chip.gemm_fp8,
        "source": chip.source,
        "notes": chip.notes,
        "export": export_json(export),
    })
}

/// As the library has it, numbers tidied.
fn export_json(export: &Classification) -> Value {
    json!({
        "as_of": export.as_of,
        "rule": export.rule,
        "class": export.class,
        "controlled": export.class.is_controlled(),
        "tpp": export.total_processing_performance.map(tidy),
        "performance_density": export.performance_density.map(tidy),
        "notified_exception": export.notified_exception,
        "bandwidth_letter": export.bandwidth_letter,
        "china_review": export.china_review,
        "notes": export.notes,
    })
}

//! The models that are known by name.

use plan::preset::{self, Preset};
use serde_json::{Value, json};

use crate::commands::{print, print_json};
use crate::failure::Outcome;
use crate::lines::{WIDTH, wrapped};
use crate::settings::Settings;

pub fn show(settings: &Settings) -> Outcome {
    if settings.json {
        return print_json(&preset::all().iter().map(json).collect::<Vec<Value>>());
    }
    let mut text = format!(
        "{:<30} {:<36} {:>9} {:>9}  {}\n",
        "name", "model", "total B", "active B", "since"
    );
    text.extend(preset::all().iter().map(line));
    text.push_str("\nAny other model by its config.json. --json names aliases and sources.\n");
    print(&text)
}

fn billions(count: u64) -> f64 {
    count as f64 / 1e9
}

fn line(preset: &Preset) -> String {
    let shape = &preset.shape;
    let first = format!(
        "{:<30} {:<36} {:>9.3} {:>9.3}  {}\n",
        preset.name,
        preset.title.chars().take(36).collect::<String>(),
        billions(shape.parameters().total()),
        billions(shape.active_parameters().total()),
        preset.published,
    );
    let source = wrapped(&preset.source, WIDTH - 4);
    let source = source.iter().map(|line| format!("    {line}\n"));
    std::iter::once(first).chain(source).collect()
}

fn json(preset: &Preset) -> Value {
    json!({
        "name": preset.name,
        "aliases": preset.aliases,
        "title": preset.title,
        "published": preset.published,
        "parameters_total": preset.shape.parameters().total(),
        "parameters_active": preset.shape.active_parameters().total(),
        "published_total_b": preset.total_b,
        "published_active_b": preset.active_b,
        "source": preset.source,
    })
}

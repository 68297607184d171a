//! Models that are known by name: the data files in `presets/`, one entry each with its source.

use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use crate::config::shape_from_value;
use crate::error::Error;
use crate::nearest::{nearest, simplified};
use crate::shape::Shape;

/// Name and text of each file.
const FILES: [(&str, &str); 10] = [
    ("deepseek", include_str!("../presets/deepseek.toml")),
    ("llama", include_str!("../presets/llama.toml")),
    ("qwen", include_str!("../presets/qwen.toml")),
    ("mistral", include_str!("../presets/mistral.toml")),
    ("moonshot", include_str!("../presets/moonshot.toml")),
    ("openai", include_str!("../presets/openai.toml")),
    ("olmo", include_str!("../presets/olmo.toml")),
    ("mosaic", include_str!("../presets/mosaic.toml")),
    ("megatron", include_str!("../presets/megatron.toml")),
    ("others", include_str!("../presets/others.toml")),
];

/// A model known by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    pub name: String,
    /// Other names: of models with the same shape, too.
    pub aliases: Vec<String>,
    pub title: String,
    /// Year and month.
    pub published: String,
    /// Where the shape was published.
    pub source: String,
    /// Billions of parameters as published.
    pub total_b: Option<f64>,
    /// Billions of active parameters as published, by whichever way of counting.
    pub active_b: Option<f64>,
    pub shape: Shape,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    aliases: Vec<String>,
    title: String,
    published: String,
    source: String,
    total_b: Option<f64>,
    active_b: Option<f64>,
    /// A `config.json`.
    config: Value,
}

/// Every preset, in the order of the files.
///
/// # Panics
/// If a file that ships with the program cannot be read; the tests read all of them.
pub fn all() -> &'static [Preset] {
    static PRESETS: OnceLock<Vec<Preset>> = OnceLock::new();
    PRESETS.get_or_init(|| {
        let presets = FILES.iter().flat_map(|(file, text)| read(file, text));
        presets.collect()
    })
}

fn read(file: &str, text: &str) -> Vec<Preset> {
    let parsed: File = match toml::from_str(text) {
        Ok(parsed) => parsed,
        Err(error) => panic!("presets/{file}.toml: {error}"),
    };
    let presets = parsed.model.into_iter().map(|entry| Preset {
        shape: match shape_from_value(&entry.config) {
            Ok(shape) => shape,
            Err(error) => panic!("presets/{file}.toml: {}: {error}", entry.name),
        },
        name: entry.name,
        aliases: entry.aliases,
        title: entry.title,
        published: entry.published,
        source: entry.source,
        total_b: entry.total_b,
        active_b: entry.active_b,
    });
    presets.collect()
}

/// The preset of a name or alias; case, spaces, points and hyphens count for nothing.
///
/// # Errors
/// [`Error::UnknownModel`] with the names that are spelt alike.
pub fn find(name: &str) -> Result<&'static Preset, Error> {
    let wanted = simplified(name);
    let found = all()
        .iter()
        .find(|preset| preset.names().any(|own| simplified(own) == wanted));
    found.ok_or_else(|| Error::UnknownModel {
        name: name.to_string(),
        nearest: nearest(name, all().iter().flat_map(Preset::names)),
    })
}

impl Preset {
    /// The name, then the aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let aliases = self.aliases.iter().map(String::as_str);
        std::iter::once(self.name.as_str()).chain(aliases)
    }
}

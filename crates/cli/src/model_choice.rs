//! The model that a planning command is asked about: a preset by name, or a file.

use std::path::Path;

use plan::config::shape_from_json;
use plan::error::Error;
use plan::preset;
use plan::shape::Shape;
use train::{RunConfig, Setup};

use crate::failure::Failure;
use crate::folder::{Folder, LARGEST_SETTINGS};
use crate::small_text;

const CONFIG: &str = "config.json";
const ADVICE: &str = "give a preset (`bruchteil plan --list`), a config.json, a Hugging Face \
                      folder, a GGUF file, or the TOML file of a run";

/// A model as far as arithmetic on it goes.
pub struct Chosen {
    /// What people call it, or the file that it came from.
    pub title: String,
    pub shape: Shape,
    /// Where its sizes are written.
    pub source: String,
}

/// Finds a model: what looks like a path is one where it exists; else the name of a preset; else a
/// file or folder of that name here.
///
/// # Errors
/// Neither; then the presets spelt alike are named. A file that holds no model.
pub fn choose(text: &str) -> Result<Chosen, Failure> {
    let path = Path::new(text);
    if looks_like_path(text) && path.exists() {
        return from_path(path);
    }
    match preset::find(text) {
        Ok(preset) => Ok(Chosen {
            title: preset.title.clone(),
            shape: preset.shape.clone(),
            source: preset.source.clone(),
        }),
        Err(_) if path.exists() => from_path(path),
        Err(Error::UnknownModel { nearest, .. }) if looks_like_path(text) && nearest.is_empty() => {
            Err(Failure::input(path, "no such file or folder", ADVICE))
        }
        Err(error) => Err(error.into()),
    }
}

fn looks_like_path(text: &str) -> bool {
    let endings = [".json", ".toml", ".gguf"];
    text.contains(['/', '\\']) || endings.iter().any(|ending| text.ends_with(ending))
}

fn from_path(path: &Path) -> Result<Chosen, Failure> {
    if !path.is_file() && !path.is_dir() {
        return Err(Failure::input(path, "neither a file nor a folder", ADVICE));
    }
    let shape = match path.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => from_run(path)?,
        Some("gguf") => Shape::from(&Folder::open(path)?.config),
        _ if path.is_file() => from_config(path)?,
        // Of more families than this program runs, so the file itself is read.
        _ if path.join(CONFIG).is_file() => from_config(&path.join(CONFIG))?,
        _ => Shape::from(&Folder::open(path)?.config),
    };
    Ok(Chosen {
        title: title(path),
        shape,
        source: path.display().to_string(),
    })
}

/// The last part of a path that says something.
fn title(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let own = name(&whole).filter(|own| own != CONFIG);
    let own = own.or_else(|| whole.parent().and_then(name));
    own.unwrap_or_else(|| path.display().to_string())
}

fn from_config(path: &Path) -> Result<Shape, Failure> {
    let text = small_text::read(path, LARGEST_SETTINGS, ADVICE)?;
    shape_from_json(&text)
        .map_err(|error| Failure::input(path, error, "mend that field, or fetch the file again"))
}

/// The model that a run starts from nothing, with the vocabulary of our tasks.
fn from_run(path: &Path) -> Result<Shape, Failure> {
    let setup = Setup::new(RunConfig::read(path)?)?;
    Ok(Shape::from(&setup.model_config()?))
}

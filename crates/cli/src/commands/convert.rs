//! `convert`: a model in another form.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use model::gguf::{GgmlType, GgufTokenizer};
use model::{Checkpoint, Error as ModelError, ExportDtype};
use serde::Serialize;

use super::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::folder::{Folder, LARGEST_SETTINGS};
use crate::gguf_tokenizer;
use crate::progress::Ui;
use crate::settings::Settings;
use crate::signals::Signals;

/// What a folder holds beside configuration and weights, and what is carried over of it.
const CARRIED: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
/// Bytes of one file of weights, as Hugging Face's tools have them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Write a model in another form: a Hugging Face folder, or one GGUF file
///
/// OUT is a folder unless it ends in .gguf. Tokenizer and chat template come along. No more than
/// one tensor is in memory. OUT appears whole or not at all; a folder or file of that name is
/// replaced if it is a model. SIGINT and SIGTERM stop it, and nothing is left behind.
#[derive(Args)]
#[command(
    after_help = "Example:\n  bruchteil convert demo-out/grpo demo-fp8 --dtype fp8\n  bruchteil \
convert DeepSeek-R1-Distill-Qwen-1.5B r1-1.5b.gguf --gguf q8_0"
)]
pub struct Convert {
    /// A Hugging Face model folder, the directory of a run, or a GGUF file
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// Type of the weights in a folder [default: as-stored]
    #[arg(long, value_name = "TYPE", value_enum, conflicts_with = "gguf")]
    dtype: Option<Dtype>,
    /// Type of the matrices in a GGUF file [default: bf16]
    #[arg(long, value_name = "TYPE", value_enum)]
    gguf: Option<Gguf>,
    /// Begin another file of weights before this many bytes, in a folder [default: 5000000000]
    #[arg(long, value_name = "N", conflicts_with = "gguf")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    shard_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// Byte for byte; from GGUF: f32 where all of it is, else bf16
    AsStored,
    F32,
    Bf16,
    /// DeepSeek's: e4m3 in blocks of 128 x 128
    Fp8,
}

impl From<Dtype> for ExportDtype {
    fn from(dtype: Dtype) -> ExportDtype {
        match dtype {
            Dtype::AsStored => ExportDtype::AsStored,
            Dtype::F32 => ExportDtype::F32,
            Dtype::Bf16 => ExportDtype::Bf16,
            Dtype::Fp8 => ExportDtype::Fp8,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gguf {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_0")]
    Q4,
}

impl From<Gguf> for GgmlType {
    fn from(kind: Gguf) -> GgmlType {
        match kind {
            Gguf::F32 => GgmlType::F32,
            Gguf::F16 => GgmlType::F16,
            Gguf::Bf16 => GgmlType::BF16,
            Gguf::Q8 => GgmlType::Q8_0,
            Gguf::Q4 => GgmlType::Q4_0,
        }
    }
}

#[derive(Serialize)]
struct Converted<'a> {
    model: &'a Path,
    /// All files together.
    bytes: u64,
    /// Whether a tokenizer came along.
    tokenizer: bool,
}

impl Convert {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let ending = self.out.extension().unwrap_or_default();
        let to_gguf = ending.eq_ignore_ascii_case("gguf");
        self.check_options(to_gguf)?;
        let mut folder = Folder::open(&self.input)?;
        check_apart(&folder.path, &self.out)?;
        let checkpoint = folder.take_checkpoint()?;
        let tokenizer = match to_gguf {
            true => self.write_gguf(&folder, &checkpoint, settings.ui())?,
            false => self.write_folder(&folder, &checkpoint, settings.ui())?,
        };
        let (model, out) = (self.out.as_path(), self.out.display());
        if settings.json {
            let bytes = size(model);
            return print_json(&Converted {
                model,
                bytes,
                tokenizer,
            });
        }
        print(&format!("model: {out}\nnext:\n  bruchteil inspect {out}\n"))
    }

    fn check_options(&self, to_gguf: bool) -> Outcome {
        let option = match (to_gguf, self.gguf, self.dtype, self.shard_bytes) {
            (false, Some(_), ..) => "--gguf",
            (true, _, Some(_), _) => "--dtype",
            (true, _, _, Some(_)) => "--shard-bytes",
            _ => return Ok(()),
        };
        let out = self.out.display();
        let (cause, advice) = match to_gguf {
            true => (
                format!("{option} is for folders, and {out} ends in .gguf"),
                "use --gguf for the type of a GGUF file",
            ),
            false => (
                format!("{option} is for GGUF files, and {out} does not end in .gguf"),
                "use --dtype for the type of a folder, or let OUT end in .gguf",
            ),
        };
        Err(Failure::usage(cause, advice))
    }

    /// Says whether a tokenizer came along.
    fn write_folder(
        &self,
        folder: &Folder,
        checkpoint: &Checkpoint,
        ui: Ui,
    ) -> Result<bool, Failure> {
        let files = match folder.is_gguf() {
            true => gguf_files(folder, checkpoint)?,
            false => carried(&folder.path)?,
        };
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (*name, bytes.as_slice()))
            .collect();
        let dtype = self.dtype.unwrap_or(Dtype::AsStored).into();
        let shard_bytes = self.shard_bytes.unwrap_or(SHARD_BYTES);
        stoppable(ui, |show| {
            checkpoint.export_folder(&self.out, dtype, &files, shard_bytes, show)
        })?;
        Ok(files.iter().any(|(name, _)| *name == "tokenizer.json"))
    }

    /// Says whether a tokenizer came along.
    fn write_gguf(
        &self,
        folder: &Folder,
        checkpoint: &Checkpoint,
        ui: Ui,
    ) -> Result<bool, Failure> {
        let tokenizer = gguf_tokenizer(folder, checkpoint, ui)?;
        let kind = self.gguf.unwrap_or(Gguf::Bf16).into();
        let written = stoppable(ui, |show| {
            let written = checkpoint.export_gguf(&self.out, kind, tokenizer.as_ref(), show);
            written.map_err(|error| match error {
                ModelError::Config { path: None, .. } => ModelError::Usage(format!(
                    "{}: {error}; GGUF cannot hold this model, write a folder instead",
                    folder.path.display()
                )),
                other => other,
            })
        });
        written?;
        Ok(tokenizer.is_some_and(|tokenizer| !tokenizer.tokens.is_empty()))
    }
}

/// Runs what writes, with its progress shown, until a signal comes. What stops so removes what it
/// began.
fn stoppable(
    ui: Ui,
    write: impl FnOnce(&mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<(), ModelError>,
) -> Outcome {
    let signals = Signals::listen()?;
    let mut progress = ui.start_bytes("write");
    let written = write(&mut |done, total| {
        progress.update(done, total);
        match signals.received() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    });
    match (written, signals.received()) {
        (Err(ModelError::Stopped), Some(signal)) => {
            let saved = "nothing was written".to_string();
            Err(Failure::Stopped { signal, saved })
        }
        (written, _) => {
            progress.finish();
            Ok(written?)
        }
    }
}

/// Refuses to write where the model is read.
fn check_apart(input: &Path, out: &Path) -> Outcome {
    match (fs::canonicalize(input), fs::canonicalize(out)) {
        (Ok(from), Ok(to)) if from == to => {
            let cause = format!("{}: is what would be read", out.display());
            Err(Failure::usage(cause, "choose another OUT"))
        }
        _ => Ok(()),
    }
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// The files of [`CARRIED`] that there are.
fn carried(dir: &Path) -> Result<Files, Failure> {
    let mut files = Vec::new();
    for name in CARRIED {
        let largest = match name {
            "tokenizer.json" => text::MAX_TOKENIZER_BYTES,
            _ => LARGEST_SETTINGS,
        };
        let bytes = model::read_small_file_if_there(dir, name, largest)?;
        files.extend(bytes.map(|bytes| (name, bytes)));
    }
    Ok(files)
}

/// Tokenizer and template of a GGUF file as the files of a folder.
fn gguf_files(folder: &Folder, checkpoint: &Checkpoint) -> Result<Files, Failure> {
    let Some(found) = checkpoint.gguf_tokenizer()? else {
        return Ok(Vec::new());
    };
    let config = gguf_tokenizer::tokenizer_config(folder);
    let mut files = vec![("tokenizer_config.json", config.into_bytes())];
    if !found.tokens.is_empty() {
        let json = gguf_tokenizer::tokenizer_json(&found)?;
        files.push(("tokenizer.json", json.into_bytes()));
    }
    Ok(files)
}

/// What a GGUF file says of the tokenizer. One that GGUF cannot hold is left out, with a warning:
/// its template and the ids with a role go along even so.
fn gguf_tokenizer(
    folder: &Folder,
    checkpoint: &Checkpoint,
    ui: Ui,
) -> Result<Option<GgufTokenizer>, Failure> {
    if folder.is_gguf() {
        return Ok(checkpoint.gguf_tokenizer()?);
    }
    let left_out = gguf_tokenizer::stop_token_ids(folder)
        .len()
        .saturating_sub(3);
    if left_out > 0 {
        ui.warn(format_args!(
            "GGUF names three tokens that end a completion; {left_out} more are left out"
        ));
    }
    let without = "the GGUF file can be run on token ids alone";
    let found = match &folder.tokenizer {
        Some(tokenizer) => gguf_tokenizer::for_gguf(&tokenizer.to_json()?, folder)
            .map_err(|error| format!("the tokenizer is left out: {error}; {without}")),
        None => Err(format!("there is no tokenizer.json: {without}")),
    };
    Ok(Some(found.unwrap_or_else(|warning| {
        ui.warn(warning);
        gguf_tokenizer::without_tokens(folder)
    })))
}

/// Of a file, or of the files in a folder.
fn size(path: &Path) -> u64 {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| length(entry.path())).sum(),
        Err(_) => length(path.to_path_buf()),
    }
}

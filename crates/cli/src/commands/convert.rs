//! `convert`: a model in another form.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use model::gguf::{GgmlType, GgufTokenizer};
use model::{Checkpoint, Error as ModelError, ExportDtype};
use serde::Serialize;

use super::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::gguf_tokenizer;
use crate::progress::Ui;
use crate::settings::Settings;

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
/// None of them is larger.
const LARGEST_CARRIED: u64 = 256 << 20;
/// Bytes of one file of weights, as Hugging Face's tools have them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Write a model in another form: a Hugging Face folder, or one GGUF file
///
/// OUT is a folder unless it ends in .gguf. Tokenizer and chat template come along. No more than
/// one tensor is in memory. OUT appears whole or not at all; a folder or file of that name is
/// replaced if it is a model.
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
}

impl Convert {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let ending = self.out.extension().unwrap_or_default();
        let to_gguf = ending.eq_ignore_ascii_case("gguf");
        self.check_options(to_gguf)?;
        let mut folder = Folder::open(&self.input)?;
        check_apart(&folder.path, &self.out)?;
        let checkpoint = folder.take_checkpoint()?;
        match to_gguf {
            true => self.write_gguf(&folder, &checkpoint, settings.ui())?,
            false => self.write_folder(&folder, &checkpoint, settings.ui())?,
        }
        let (model, out) = (self.out.as_path(), self.out.display());
        if settings.json {
            let bytes = size(model);
            return print_json(&Converted { model, bytes });
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

    fn write_folder(&self, folder: &Folder, checkpoint: &Checkpoint, ui: Ui) -> Outcome {
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
        let mut progress = ui.start_bytes("write");
        let mut show = |done, total| progress.update(done, total);
        checkpoint.export_folder(&self.out, dtype, &files, shard_bytes, &mut show)?;
        progress.finish();
        Ok(())
    }

    fn write_gguf(&self, folder: &Folder, checkpoint: &Checkpoint, ui: Ui) -> Outcome {
        let tokenizer = gguf_tokenizer(folder, checkpoint, ui)?;
        let kind = self.gguf.unwrap_or(Gguf::Bf16).into();
        let mut progress = ui.start_bytes("write");
        let mut show = |done, total| progress.update(done, total);
        let written = checkpoint.export_gguf(&self.out, kind, tokenizer.as_ref(), &mut show);
        progress.finish();
        written.map_err(|error| match error {
            ModelError::Config { path: None, .. } => {
                let cause = format!("{}: {error}", folder.path.display());
                Failure::usage(cause, "GGUF cannot hold this model; write a folder instead")
            }
            other => other.into(),
        })
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
        let path = dir.join(name);
        let failed = |error: std::io::Error| {
            let cause = format!("cannot be read: {error}");
            Failure::input(&path, cause, "check the file, or take it away")
        };
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        let read = file.take(LARGEST_CARRIED + 1).read_to_end(&mut bytes);
        if read.map_err(failed)? as u64 > LARGEST_CARRIED {
            let cause = format!("larger than {LARGEST_CARRIED} bytes");
            return Err(Failure::input(
                &path,
                cause,
                "check that it is the right file",
            ));
        }
        files.push((name, bytes));
    }
    Ok(files)
}

/// Tokenizer and template of a GGUF file as the files of a folder.
fn gguf_files(folder: &Folder, checkpoint: &Checkpoint) -> Result<Files, Failure> {
    let Some(found) = checkpoint.gguf_tokenizer()? else {
        return Ok(Vec::new());
    };
    let json = gguf_tokenizer::tokenizer_json(&found)?;
    let config = gguf_tokenizer::tokenizer_config(folder);
    Ok(vec![
        ("tokenizer.json", json.into_bytes()),
        ("tokenizer_config.json", config.into_bytes()),
    ])
}

/// The tokenizer for a GGUF file. One that GGUF cannot hold is left out, with a warning.
fn gguf_tokenizer(
    folder: &Folder,
    checkpoint: &Checkpoint,
    ui: Ui,
) -> Result<Option<GgufTokenizer>, Failure> {
    if folder.is_gguf() {
        return Ok(checkpoint.gguf_tokenizer()?);
    }
    let Some(tokenizer) = &folder.tokenizer else {
        ui.warn("there is no tokenizer.json: the GGUF file can be run on token ids alone");
        return Ok(None);
    };
    match gguf_tokenizer::for_gguf(&tokenizer.to_json()?, folder) {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(error) => {
            let without = "the GGUF file can be run on token ids alone";
            ui.warn(format_args!(
                "the tokenizer is left out: {error}; {without}"
            ));
            Ok(None)
        }
    }
}

/// Of a file, or of the files in a folder.
fn size(path: &Path) -> u64 {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| length(entry.path())).sum(),
        Err(_) => length(path.to_path_buf()),
    }
}

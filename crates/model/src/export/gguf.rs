//! A checkpoint as one GGUF file, in the shape that llama.cpp reads.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use super::{Progress, Report, read_into};
use crate::checkpoint::{Disk, WeightDtype, refuse_dangling_link, replace_file};
use crate::config::Config;
use crate::error::Error;
use crate::gguf::{
    Export, GgmlType, GgufTokenizer, GgufWriter, Order, TensorPlan, Value, export_plan, metadata_of,
};
use crate::layout::{Layout, TensorSpec};
use crate::open::Checkpoint;

/// Elements narrowed at once: whole blocks of every type.
const CHUNK: usize = 1 << 16;
/// A token that is there only because the embedding has a row for it, as llama.cpp's converters
/// number them (`get_vocab_base` in `conversion/base.py`).
const UNUSED: i32 = 5;

impl Checkpoint {
    /// Writes one GGUF file: matrices in `kind` (F32, F16, BF16, Q8_0 or Q4_0; F16 where rows are
    /// no whole blocks), norms, biases and the router in F32. The file appears whole or not at
    /// all; `progress` is told bytes written and bytes in all, and may stop it. A file that is
    /// there is replaced if it is empty or GGUF.
    ///
    /// Multi-token prediction is left out: llama.cpp refuses its tensors in `deepseek2`. Rows of
    /// the embedding beyond the tokenizer's tokens get unused tokens. Without a tokenizer, or with
    /// one that has no tokens, the file says that it has none, and can be run on token ids alone.
    ///
    /// llama.cpp opens `deepseek2` without `q_lora_rank` only with as many layers as published
    /// models of that kind have (27 among them).
    ///
    /// # Errors
    /// [`Error::Config`] for what GGUF cannot say of the model, [`Error::Usage`] for a type that is
    /// not written, a tokenizer with more tokens than rows, or a place that is no GGUF file's;
    /// [`Error::File`] for a tensor that cannot be read or a value that `kind` cannot hold;
    /// [`Error::Resources`] and [`Error::Write`] for the disk; [`Error::Stopped`].
    pub fn export_gguf(
        &self,
        out: &Path,
        kind: GgmlType,
        tokenizer: Option<&GgufTokenizer>,
        progress: &mut Report,
    ) -> Result<(), Error> {
        let mut disk_is_fine = |_: &'static str| Ok(());
        self.write_gguf(out, kind, tokenizer, progress, &mut disk_is_fine)
    }

    /// `before` is called before every change to the disk.
    fn write_gguf(
        &self,
        out: &Path,
        kind: GgmlType,
        tokenizer: Option<&GgufTokenizer>,
        progress: &mut Report,
        before: &mut dyn FnMut(&'static str) -> io::Result<()>,
    ) -> Result<(), Error> {
        let file_type = file_type(kind)?;
        refuse_others(out)?;
        let mut config = self.config().clone();
        config.num_nextn_predict_layers = 0;
        let layout = Layout::new(&config);
        let json = serde_json::from_str(&config.to_json(WeightDtype::F32));
        let json = json.expect("the text was just made");
        let shapes: Vec<_> = layout
            .tensors
            .iter()
            .map(|spec| (spec.name.clone(), spec.shape.clone()))
            .collect();
        let plan = export_plan(&json, &shapes)?;
        let mut metadata = metadata_of(&json, 0)?;
        metadata.push(("general.file_type".to_string(), Value::U32(file_type)));
        metadata.extend(match tokenizer {
            Some(tokenizer) if tokenizer.tokens.is_empty() => tokenizer.metadata(),
            Some(tokenizer) => padded(tokenizer, config.vocab_size)?.metadata(),
            None => no_tokenizer(&config),
        });
        let plans: Vec<TensorPlan> = plan.iter().map(|export| export.plan(kind)).collect();
        let mut file = File {
            checkpoint: self,
            specs: &layout.tensors,
            exports: &plan,
            progress: Progress {
                done: 0,
                total: plans.iter().map(TensorPlan::bytes).sum(),
                report: progress,
            },
        };
        let needed = header_bytes(out, &metadata, &plans)? + file.progress.total;
        replace_file(&mut Disk::new(needed, before), out, &mut |sink| {
            let writer = GgufWriter::new(sink, out, &metadata, plans.clone());
            file.write(writer.map_err(write_failure)?)
        })
    }
}

/// `general.file_type`: `enum llama_ftype` in `llama.h`.
fn file_type(kind: GgmlType) -> Result<u32, Error> {
    match kind {
        GgmlType::F32 => Ok(0),
        GgmlType::F16 => Ok(1),
        GgmlType::Q4_0 => Ok(2),
        GgmlType::Q8_0 => Ok(7),
        GgmlType::BF16 => Ok(32),
        other => Err(Error::Usage(format!(
            "{} is not written to GGUF; F32, F16, BF16, Q8_0 and Q4_0 are",
            other.name()
        ))),
    }
}

/// A file is replaced only if nothing is lost by it but a model.
fn refuse_others(out: &Path) -> Result<(), Error> {
    refuse_dangling_link(out)?;
    let refused = |message: String| Err(Error::Usage(format!("{}: {message}", out.display())));
    // Looked at before it is opened: opening a named pipe would wait for ever.
    match fs::metadata(out) {
        Err(_) => return Ok(()),
        Ok(found) if found.is_file() => {}
        Ok(_) => return refused("not a regular file, so not replaced".to_string()),
    }
    let mut start = Vec::new();
    let read = fs::File::open(out).and_then(|file| file.take(4).read_to_end(&mut start));
    match read {
        Err(error) => refused(format!("cannot be looked into: {error}, so not replaced")),
        Ok(0) => Ok(()),
        Ok(_) if start == *b"GGUF" => Ok(()),
        Ok(_) => refused("is no GGUF file, so not replaced; choose another name".to_string()),
    }
}

fn padded(tokenizer: &GgufTokenizer, rows: usize) -> Result<GgufTokenizer, Error> {
    let known = tokenizer.tokens.len();
    if known > rows {
        return Err(Error::Usage(format!(
            "the tokenizer has {known} tokens, the embedding {rows} rows; give the tokenizer that \
             belongs to the model"
        )));
    }
    let mut padded = tokenizer.clone();
    let unused = (known..rows).map(|id| format!("[PAD{id}]"));
    padded.tokens.extend(unused);
    if known < rows && padded.token_type.is_empty() {
        padded.token_type = vec![1; known];
    }
    if !padded.token_type.is_empty() {
        padded.token_type.resize(rows, UNUSED);
    }
    if !padded.scores.is_empty() {
        padded.scores.resize(rows, -1000.0);
    }
    Ok(padded)
}

/// What `llama-vocab.cpp` takes for a model of token ids alone; it counts `vocab_size` of them.
fn no_tokenizer(config: &Config) -> Vec<(String, Value)> {
    let id = |name: &str, id: Option<u32>| {
        id.map(|id| (format!("tokenizer.ggml.{name}"), Value::U32(id)))
    };
    let model = (
        "tokenizer.ggml.model".to_string(),
        Value::Str("none".into()),
    );
    [
        Some(model),
        id("bos_token_id", config.bos_token_id),
        id("eos_token_id", config.eos_token_id.first().copied()),
        id("eot_token_id", config.eos_token_id.get(1).copied()),
        id("eom_token_id", config.eos_token_id.get(2).copied()),
        id("padding_token_id", config.pad_token_id),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn header_bytes(
    out: &Path,
    metadata: &[(String, Value)],
    plans: &[TensorPlan],
) -> Result<u64, Error> {
    let mut header = Vec::new();
    GgufWriter::new(&mut header, out, metadata, plans.to_vec())?;
    let padding = plans
        .iter()
        .map(|plan| plan.bytes().next_multiple_of(32) - plan.bytes());
    Ok(header.len() as u64 + padding.sum::<u64>())
}

/// A failure of the disk goes back to where the bytes needed are known.
fn write_failure(error: Error) -> io::Error {
    match error {
        Error::Write { source, .. } => source,
        Error::Resources { .. } => ErrorKind::StorageFull.into(),
        other => other.into(),
    }
}

/// The tensors of the file, and where they come from.
struct File<'a> {
    checkpoint: &'a Checkpoint,
    specs: &'a [TensorSpec],
    exports: &'a [Export],
    progress: Progress<'a>,
}

impl File<'_> {
    fn write(&mut self, mut writer: GgufWriter) -> io::Result<()> {
        let specs: BTreeMap<&str, &TensorSpec> = self
            .specs
            .iter()
            .map(|spec| (spec.name.as_str(), spec))
            .collect();
        let mut buffer = Vec::new();
        for export in self.exports {
            if let Order::Given(values) = &export.order {
                self.narrow(&mut writer, values)?;
            }
            for source in &export.sources {
                let spec = specs[source.as_str()];
                read_into(self.checkpoint, spec, &mut buffer)?;
                let row_len = spec.shape.last().copied().unwrap_or(1);
                self.narrow(&mut writer, &export.arrange(&buffer, row_len))?;
            }
        }
        writer.finish().map_err(write_failure)
    }

    fn narrow(&mut self, writer: &mut GgufWriter, values: &[f32]) -> io::Result<()> {
        for chunk in values.chunks(CHUNK) {
            let bytes = writer.write_f32(chunk).map_err(write_failure)?;
            self.progress.add(bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

    #[test]
    fn a_full_disk_at_any_step_leaves_the_old_file_and_says_how_much_is_needed() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/v3-fp8");
        let checkpoint = Checkpoint::open(&golden).unwrap();
        let name = format!("bruchteil-gguf-full-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let out = dir.join("model.gguf");
        checkpoint
            .export_gguf(&out, GgmlType::F32, None, &mut |_, _| CONTINUE)
            .unwrap();
        let needed = format!("{} bytes needed", fs::metadata(&out).unwrap().len());
        fs::write(&out, b"GGUF, old").unwrap();
        let mut failures = 0;
        loop {
            let mut steps = 0;
            let mut last = "";
            let done = checkpoint.write_gguf(
                &out,
                GgmlType::F32,
                None,
                &mut |_, _| CONTINUE,
                &mut |step| {
                    (steps, last) = (steps + 1, step);
                    if steps == failures + 1 {
                        return Err(ErrorKind::StorageFull.into());
                    }
                    Ok(())
                },
            );
            let Err(error) = done else { break };
            failures += 1;
            assert_eq!(error.exit_code(), 4, "{error}");
            assert!(error.to_string().contains(&needed), "{error}: {needed}");
            let in_place = last == "syncing the folder";
            assert_eq!(
                fs::read(&out).unwrap() == b"GGUF, old",
                !in_place,
                "step {failures}"
            );
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "step {failures}");
        }
        assert!(failures > 4, "{failures} steps");
        fs::remove_dir_all(&dir).unwrap();
    }
}

//! What can be wrong with a model whose files can be read.

use std::path::Path;

use kernels::Cpu;
use model::{
    Activations, Batch, Checkpoint, Config, KeptWeights, Loading, Model, NonFinite, Opening,
};
use serde::Serialize;
use text::Tokenizer;

use crate::failure::Failure;
use crate::folder::Folder;
use crate::memory;
use crate::settings::Settings;
use crate::weights;

/// Tensors named where values are not finite.
const NAMED: usize = 20;

#[derive(Serialize)]
pub struct Check {
    pub what: &'static str,
    /// `None` if it was not looked at.
    pub good: Option<bool>,
    pub found: String,
}

impl Check {
    fn new(what: &'static str, good: bool, found: impl Into<String>) -> Check {
        Check {
            what,
            good: Some(good),
            found: found.into(),
        }
    }

    /// What was found; marked only where something was looked at.
    pub fn in_words(&self) -> String {
        let mark = match self.good {
            Some(true) => "good: ",
            Some(false) => "BAD: ",
            None => "",
        };
        format!("{mark}{}", self.found)
    }
}

/// # Errors
/// A file is missing or bad, or the weights do not fit the configuration.
pub fn checks(path: &Path, settings: &Settings) -> Result<Vec<Check>, Failure> {
    let mut folder = Folder::open(path)?;
    let checkpoint = folder.take_checkpoint()?;
    let tensors = checkpoint.tensors().len();
    let mut checks = vec![Check::new(
        "shapes",
        true,
        format!("{tensors} tensors fit the configuration"),
    )];
    checks.extend(multi_token_prediction(&folder, &checkpoint)?);
    checks.extend(values(checkpoint, settings)?);
    checks.extend([tokenizer(&folder), template(&folder), stop_tokens(&folder)]);
    Ok(checks)
}

/// Whether the layer that `config.json` names is there, and what it brings along.
fn multi_token_prediction(
    folder: &Folder,
    checkpoint: &Checkpoint,
) -> Result<Option<Check>, Failure> {
    let what = "token prediction";
    let named = match folder.is_gguf() {
        true => folder.config.num_nextn_predict_layers,
        false => Config::read(&folder.path)?.num_nextn_predict_layers,
    };
    if named == 0 {
        return Ok(None);
    }
    if folder.config.num_nextn_predict_layers == 0 {
        let found = "config.json names a layer that the files do not have; it is left out";
        return Ok(Some(Check::new(what, true, found)));
    }
    let layer = folder.config.num_hidden_layers;
    let tensors = checkpoint.tensors();
    let copied = |part: &str| {
        let name = format!("model.layers.{layer}.{part}.weight");
        tensors.iter().any(|tensor| tensor.name == name)
    };
    let copies = match (copied("embed_tokens"), copied("shared_head.head")) {
        (false, false) => "without copies of embedding and head",
        (true, true) => "with copies of embedding and head, in place of which the model's serve",
        _ => "with one of the copies of embedding and head, in place of which the model's serves",
    };
    let found = format!("layer {layer} predicts the token after the next, {copies}");
    Ok(Some(Check::new(what, true, found)))
}

/// Reads all weights and runs a few tokens through them. A model larger than the memory is mapped,
/// and its values are not looked at.
fn values(checkpoint: Checkpoint, settings: &Settings) -> Result<Vec<Check>, Failure> {
    let mut opening = Opening {
        numerics: settings.numerics(),
        weights: KeptWeights::AsStored,
        loading: Loading::Read,
        mtp: true,
    };
    let needed = weights::needed_bytes(&checkpoint, &opening);
    let fits = memory::available().is_none_or(|available| needed <= available);
    if !fits {
        opening.loading = Loading::Map;
    }
    let backend = settings.backend();
    let mut progress = settings.ui().start_bytes("read");
    let opened = checkpoint.model(opening, &backend, &mut |done, total| {
        progress.update(done, total);
    })?;
    progress.finish();
    let what = "values";
    let values = match (fits, opened.non_finite.as_slice()) {
        (false, _) => {
            let size = memory::shown(needed);
            let found = format!("not looked at: {size} of weights do not fit in memory");
            let good = None;
            Check { what, good, found }
        }
        (true, []) => Check::new(what, true, "all finite"),
        (true, tensors) => Check::new(what, false, in_words(tensors)),
    };
    Ok(vec![values, forward(&opened.model, &backend)])
}

fn in_words(tensors: &[NonFinite]) -> String {
    let named: Vec<String> = tensors
        .iter()
        .take(NAMED)
        .map(NonFinite::to_string)
        .collect();
    match tensors.len().saturating_sub(NAMED) {
        0 => named.join("; "),
        more => format!("{}; and {more} more tensors", named.join("; ")),
    }
}

/// The logits of a few tokens.
fn forward(model: &Model, backend: &Cpu) -> Check {
    let vocab_size = model.config.vocab_size as u32;
    let count = model.config.max_position_embeddings.min(8) as u32;
    let token_ids: Vec<u32> = (0..count).map(|i| i * 7919 % vocab_size).collect();
    let mut acts = Activations::for_inference();
    model.forward(backend, &Batch::documents(&[&token_ids]), &mut acts, None);
    let mut logits = Vec::new();
    model.logits(backend, &mut acts, &[count - 1], &mut logits);
    match logits.iter().filter(|logit| !logit.is_finite()).count() {
        0 => Check::new(
            "forward",
            true,
            format!("logits of {count} tokens are finite"),
        ),
        bad => Check::new(
            "forward",
            false,
            format!("{bad} logits of {count} tokens are not finite"),
        ),
    }
}

fn tokenizer(folder: &Folder) -> Check {
    let what = "tokenizer";
    let Some(tokenizer) = &folder.tokenizer else {
        let found = match folder.is_gguf() {
            true => folder.no_tokenizer.as_str(),
            false => "there is no tokenizer.json",
        };
        return Check::new(what, false, found);
    };
    let (tokens, rows) = (tokenizer.vocab_size(), folder.config.vocab_size);
    if tokens > rows {
        return Check::new(
            what,
            false,
            format!("{tokens} tokens, but vocab_size is {rows}"),
        );
    }
    let wrong = wrong_ids(folder, tokenizer);
    match wrong.is_empty() {
        true => Check::new(what, true, format!("{tokens} tokens for {rows} rows")),
        false => Check::new(what, false, wrong.join("; ")),
    }
}

/// What of a tokenizer's ids does not fit the model.
fn wrong_ids(folder: &Folder, tokenizer: &Tokenizer) -> Vec<String> {
    let mut wrong = Vec::new();
    let config = &folder.config;
    let (bound, rows) = (tokenizer.id_bound(), config.vocab_size);
    if bound as usize > rows {
        wrong.push(format!(
            "ids go up to {}, but vocab_size is {rows}",
            bound - 1
        ));
    }
    let bos = config.bos_token_id.iter().map(|id| ("bos_token_id", id));
    let eos = config.eos_token_id.iter().map(|id| ("eos_token_id", id));
    for (field, &id) in bos.chain(eos).filter(|(_, id)| !has(tokenizer, **id)) {
        wrong.push(format!(
            "{field} is {id}, which the tokenizer does not have"
        ));
    }
    for (role, text) in &folder.special_tokens {
        match tokenizer.token_to_id(text) {
            None => wrong.push(format!(
                "the {role} token {text:?} is not in the vocabulary"
            )),
            Some(id) if *role == "eos" && !folder.stop_token_ids.contains(&id) => {
                wrong.push(format!("{text:?} is not a stop token"));
            }
            Some(_) => {}
        }
    }
    wrong
}

fn has(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer.id_to_token(id).is_some()
}

fn template(folder: &Folder) -> Check {
    let what = "chat template";
    if folder.chat_template.is_none() {
        return Check::new(what, true, "there is none; `generate --chat` will not work");
    }
    match folder.chat_prompt("1 2 3 4") {
        Ok(prompt) => Check::new(what, true, format!("renders {prompt:?}")),
        Err(failure) => Check::new(what, false, failure.words()),
    }
}

fn stop_tokens(folder: &Folder) -> Check {
    let what = "stop tokens";
    if let [stray, ..] = folder.stray_stop_token_ids[..] {
        let found = format!("{stray} of generation_config.json is beyond vocab_size");
        return Check::new(what, false, found);
    }
    let found = format!("{:?}", folder.stop_token_ids);
    Check::new(what, !folder.stop_token_ids.is_empty(), found)
}

#[cfg(test)]
mod tests {
    use super::Check;

    #[test]
    fn only_what_was_looked_at_is_called_good() {
        for (good, words) in [
            (Some(true), "good: as it is"),
            (Some(false), "BAD: as it is"),
            (None, "as it is"),
        ] {
            let found = "as it is".to_string();
            let what = "values";
            assert_eq!(Check { what, good, found }.in_words(), words);
        }
    }
}

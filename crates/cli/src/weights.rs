//! How a model's weights are opened for inference: their form, where they lie, and what to do with
//! values that are not finite.

use clap::{Args, ValueEnum};
use kernels::{Cpu, Precision};
use model::{Checkpoint, KeptWeights, Loading, Model, Numerics, Opening, StoredTensor};

use crate::failure::{BAD_INPUT, Failure, RESOURCES};
use crate::folder::Folder;
use crate::memory;
use crate::settings::Settings;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Weights")]
pub struct WeightOptions {
    /// Form in memory; q8 and q4 are smaller and faster, and round
    #[arg(long, value_name = "FORM", value_enum, default_value = "as-stored")]
    weights: Form,
    /// Read them, or map the file, which opens models larger than memory
    #[arg(long, value_name = "HOW", value_enum, default_value = "read")]
    load: Load,
    /// Refuse weights that are NaN or infinite instead of warning
    #[arg(long)]
    strict: bool,
    /// Open multi-token prediction too.
    #[arg(skip)]
    mtp: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// The type of the file: bf16, f32 or FP8; blocks of a GGUF file are widened
    AsStored,
    /// 16 bits
    Bf16,
    /// 8 bits in blocks of 32
    Q8,
    /// 4 bits in blocks of 32
    Q4,
}

impl From<Form> for KeptWeights {
    fn from(form: Form) -> KeptWeights {
        match form {
            Form::AsStored => KeptWeights::AsStored,
            Form::Bf16 => KeptWeights::Bf16,
            Form::Q8 => KeptWeights::Q8,
            Form::Q4 => KeptWeights::Q4,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Into memory
    Read,
    /// Pages come from the file when they are touched; it must not change meanwhile
    Map,
}

impl From<Load> for Loading {
    fn from(load: Load) -> Loading {
        match load {
            Load::Read => Loading::Read,
            Load::Map => Loading::Map,
        }
    }
}

impl WeightOptions {
    /// What only a model here understands, where a server has it.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn none_given(&self) -> Result<(), Failure> {
        if self.weights == Form::AsStored && self.load == Load::Read && !self.strict {
            return Ok(());
        }
        let cause = "--weights, --load and --strict are for a model here, and a server has its own";
        Err(Failure::usage(
            cause,
            "leave them out, or give a model's folder",
        ))
    }

    /// The same, and on request for models that guess a token ahead.
    pub fn with_mtp(self, mtp: bool) -> WeightOptions {
        WeightOptions { mtp, ..self }
    }

    /// The model, ready to run. Warns of values that are not finite.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Checkpoint::model`]; the weights do not fit in memory; with
    /// `--strict`, a value is not finite.
    pub fn open(
        &self,
        folder: &mut Folder,
        numerics: Numerics,
        settings: &Settings,
        backend: &Cpu,
    ) -> Result<Model, Failure> {
        if self.strict && self.load == Load::Map {
            let cause = "--strict looks at every value, which --load map is there to avoid";
            return Err(Failure::usage(cause, "leave out one of the two"));
        }
        let opening = Opening {
            numerics,
            weights: self.weights.into(),
            loading: self.load.into(),
            mtp: self.mtp,
        };
        let checkpoint = folder.take_checkpoint()?;
        let unknown = &folder.config.ignored_keys;
        if !unknown.is_empty() {
            let (path, keys) = (folder.path.display(), unknown.join(", "));
            settings.ui().warn(format_args!(
                "{path}: keys of config.json that mean nothing here: {keys}"
            ));
        }
        check_room(folder, &checkpoint, &opening)?;
        let mut progress = settings.ui().start_bytes("load");
        let opened = checkpoint.model(opening, backend, &mut |done, total| {
            progress.update(done, total);
        })?;
        progress.finish();
        let path = folder.path.display();
        match opened.non_finite.first() {
            Some(tensor) if self.strict => {
                let count = opened.non_finite.len();
                let cause = format!("{path}: {tensor}; {count} tensors are not finite");
                let advice = "fetch the file again, or leave out --strict";
                return Err(Failure::new(BAD_INPUT, cause, advice));
            }
            _ => {}
        }
        for tensor in &opened.non_finite {
            settings.ui().warn(format_args!("{path}: {tensor}"));
        }
        Ok(opened.model)
    }
}

/// Refuses weights that would fill the memory, before any are read.
///
/// # Errors
/// Exit code 4, with both numbers.
fn check_room(folder: &Folder, checkpoint: &Checkpoint, opening: &Opening) -> Result<(), Failure> {
    let needed = needed_bytes(checkpoint, opening);
    let Some(available) = memory::available().filter(|&available| available < needed) else {
        return Ok(());
    };
    let cause = format!(
        "{}: the weights need {} of memory, and {} are available",
        folder.path.display(),
        memory::shown(needed),
        memory::shown(available)
    );
    let advice = match opening.loading {
        Loading::Read => {
            "--load map leaves them in the file; --weights q8 or q4 makes them smaller"
        }
        Loading::Map => "--weights as-stored leaves them in the file",
    };
    Err(Failure::new(RESOURCES, cause, advice))
}

/// Bytes of memory that the weights take at least.
pub fn needed_bytes(checkpoint: &Checkpoint, opening: &Opening) -> u64 {
    let config = checkpoint.config();
    let tensors = checkpoint.tensors();
    let wanted = tensors
        .iter()
        .filter(|tensor| opening.mtp || !config.is_mtp_tensor(&tensor.name));
    let bytes = wanted.map(|tensor| match tensor.name.as_str() {
        // Its rows are looked up as they are in the file, unless it is the head too.
        "model.embed_tokens.weight" if !config.tie_word_embeddings => match opening.loading {
            Loading::Read => tensor.bytes,
            Loading::Map => 0,
        },
        _ => kept_bytes(tensor, opening),
    });
    bytes.sum()
}

/// What one tensor takes, never more than it does.
fn kept_bytes(tensor: &StoredTensor, opening: &Opening) -> u64 {
    let elements: u64 = tensor.shape.iter().map(|&size| size as u64).product();
    let dtype = tensor.dtype.as_str();
    // GGUF's blocks are expanded.
    let stays = matches!(dtype, "F32" | "F16" | "BF16" | "F8_E4M3");
    let in_file = opening.loading == Loading::Map;
    match (opening.weights, opening.numerics.precision) {
        (KeptWeights::AsStored, _) if in_file && stays => 0,
        (KeptWeights::Bf16, _) if in_file && dtype == "BF16" => 0,
        // In f32, f16 is widened.
        (KeptWeights::AsStored, Precision::F32) if stays && dtype != "F16" => tensor.bytes,
        (KeptWeights::AsStored, Precision::F32) => 4 * elements,
        (KeptWeights::AsStored, Precision::Bf16) if stays => tensor.bytes.min(2 * elements),
        (KeptWeights::AsStored | KeptWeights::Bf16, _) => 2 * elements,
        (KeptWeights::Q8, _) => elements / 32 * 34,
        (KeptWeights::Q4, _) => elements / 32 * 18,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening_of(weights: KeptWeights, loading: Loading) -> Opening {
        Opening {
            numerics: Numerics::new(Precision::Bf16),
            weights,
            loading,
            mtp: false,
        }
    }

    #[test]
    fn a_tensor_takes_the_bytes_of_its_form() {
        let tensor = |dtype: &str, bytes| StoredTensor {
            name: "model.layers.0.mlp.up_proj.weight".to_string(),
            dtype: dtype.to_string(),
            shape: vec![64, 96],
            bytes,
        };
        let tensors = [
            tensor("F32", 4 * 6144),
            tensor("BF16", 2 * 6144),
            tensor("F8_E4M3", 6144),
            tensor("Q4_K", 6144 / 256 * 144),
        ];
        for (kept, expected) in [
            (KeptWeights::AsStored, [12288, 12288, 6144, 12288]),
            (KeptWeights::Bf16, [12288; 4]),
            (KeptWeights::Q8, [6528; 4]),
            (KeptWeights::Q4, [3456; 4]),
        ] {
            let opening = opening_of(kept, Loading::Read);
            let found = tensors
                .each_ref()
                .map(|tensor| kept_bytes(tensor, &opening));
            assert_eq!(found, expected, "{kept:?}");
        }
        let mapped = opening_of(KeptWeights::Bf16, Loading::Map);
        let found = tensors.each_ref().map(|tensor| kept_bytes(tensor, &mapped));
        assert_eq!(found, [12288, 0, 12288, 12288]);
        let mapped = opening_of(KeptWeights::AsStored, Loading::Map);
        let found = tensors.each_ref().map(|tensor| kept_bytes(tensor, &mapped));
        assert_eq!(found, [0, 0, 0, 12288]);
    }
}

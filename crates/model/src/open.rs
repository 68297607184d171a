//! Opening a checkpoint for inference: matrices in the form that products read, nothing twice.

use crate::block::{Maker, Role};
use crate::checkpoint::float::{bf16_to_f32, f32_to_bf16};
use crate::checkpoint::{
    Counting, Expanded, GgufSource, NonFinite, Rounded, Source, TensorSource, Weights, read_all,
};
use crate::config::{Architecture, Config};
use crate::error::{Error, shown};
use crate::gguf::GgufTokenizer;
use crate::layout::{Layout, TensorSpec};
use crate::model::{Model, Numerics};
use crate::params::{Params, Vectors};
use kernels::{Backend, Dtype, Keep, ReadAt, RowSource, StoredMatrix, Weight};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How the weights of an opened model are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeptWeights {
    /// In the type of the file: bf16, f32, or FP8 with its scales.
    #[default]
    AsStored,
    /// Rounded to bf16 where the file has more, norms and the router too; FP8 expanded. The
    /// numbers of [`ExportDtype::Bf16`](crate::ExportDtype::Bf16).
    Bf16,
    /// Eight bits in blocks of 32, which rounds; the router and the latent's projections stay.
    Q8,
    /// Four bits in blocks of 32.
    Q4,
}

/// Where the bytes of an opened model are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loading {
    /// In memory of this process, whatever happens to the file.
    #[default]
    Read,
    /// In the mapped file: pages come when they are touched and may go again, so a model larger
    /// than memory opens. The file must not change meanwhile.
    Map,
}

/// How to open a model for inference.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub numerics: Numerics,
    pub weights: KeptWeights,
    pub loading: Loading,
    /// Whether multi-token prediction is opened too, where the checkpoint has it.
    pub mtp: bool,
}

/// A model opened for inference, and what was found on the way.
pub struct Opened {
    pub model: Model,
    /// Not looked for in a mapped file.
    pub non_finite: Vec<NonFinite>,
    /// Bytes of weights in memory or mapped.
    pub weight_bytes: usize,
}

/// A tensor as its file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// The Hugging Face name.
    pub name: String,
    /// The name in the file's format, such as `BF16` or `Q4_K`.
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// A checkpoint on disk whose headers have been read and found to fit its configuration.
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    pub(crate) files: Files,
}

/// Where the weights are.
pub(crate) enum Files {
    Folder(Source),
    Gguf(GgufSource),
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a GGUF file, or a folder that holds one GGUF file and no
    /// safetensors. Nothing of the model's size is read or allocated.
    ///
    /// # Errors
    /// What is missing, mis-shaped or unreadable, by file and tensor, all at once.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let gguf = gguf_file(path)?;
        let (path, mut config, files) = match gguf {
            Some(file) => {
                let source = GgufSource::open(&file)?;
                (file, source.config()?, Files::Gguf(source))
            }
            None => {
                let config = Config::read(path)?;
                (
                    path.to_path_buf(),
                    config,
                    Files::Folder(Source::open(path)?),
                )
            }
        };
        reconcile_mtp(&mut config, files.source());
        files.source().check(&config, &Layout::new(&config))?;
        Ok(Checkpoint {
            path,
            config,
            files,
        })
    }

    /// The folder, or the GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the weights are in a GGUF file, which holds configuration and tokenizer too.
    pub fn is_gguf(&self) -> bool {
        matches!(self.files, Files::Gguf(_))
    }

    /// What a GGUF file says of its tokenizer; `None` if it has neither tokens nor a chat template,
    /// and for a folder, whose tokenizer is in files of its own.
    ///
    /// # Errors
    /// Its keys do not fit each other, by file and key.
    pub fn gguf_tokenizer(&self) -> Result<Option<GgufTokenizer>, Error> {
        match &self.files {
            Files::Folder(_) => Ok(None),
            Files::Gguf(source) => GgufTokenizer::read(&source.gguf),
        }
    }

    /// What the weights are of: as `config.json` says, but for a multi-token prediction layer that
    /// the files do not have.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every tensor of the files, in the order of their names.
    pub fn tensors(&self) -> Vec<StoredTensor> {
        self.files.source().tensors()
    }

    /// All weights in f32, for training.
    ///
    /// # Errors
    /// A tensor cannot be read, or memory does not suffice.
    pub fn weights(&self) -> Result<Weights, Error> {
        let layout = Layout::new(&self.config);
        self.files.source().check_copies(&self.config)?;
        read_all(self.files.source(), &self.config, &layout, &self.path)
    }

    /// The model for inference. `progress` is told bytes read and bytes in all.
    ///
    /// # Errors
    /// A tensor cannot be read, or a file cannot be mapped.
    pub fn model(
        mut self,
        opening: Opening,
        backend: &dyn Backend,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Opened, Error> {
        if opening.loading == Loading::Map {
            self.files.source_mut().map()?;
        }
        if !opening.mtp {
            self.config.num_nextn_predict_layers = 0;
        }
        self.files.source().check_copies(&self.config)?;
        let layout = Layout::new(&self.config);
        Loader::new(
            &self.config,
            &layout,
            self.files.source(),
            opening,
            backend,
            progress,
        )
        .load()
    }
}

impl Files {
    pub fn source(&self) -> &dyn TensorSource {
        match self {
            Files::Folder(source) => source,
            Files::Gguf(source) => source,
        }
    }

    fn source_mut(&mut self) -> &mut dyn TensorSource {
        match self {
            Files::Folder(source) => source,
            Files::Gguf(source) => source,
        }
    }
}

/// The GGUF file that a path means: itself, or the only one of a folder without safetensors.
fn gguf_file(path: &Path) -> Result<Option<PathBuf>, Error> {
    let ends_with = |path: &Path, ending: &str| {
        let found = path.extension().and_then(OsStr::to_str);
        found.is_some_and(|found| found.eq_ignore_ascii_case(ending))
    };
    if !path.is_dir() {
        let is_one = path.is_file() && ends_with(path, "gguf");
        return Ok(is_one.then(|| path.to_path_buf()));
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let file = entry.path();
        if ends_with(&file, "safetensors") || file.ends_with("model.safetensors.index.json") {
            return Ok(None);
        }
        if ends_with(&file, "gguf") {
            found.push(file);
        }
    }
    if found.len() > 1 {
        let message = format!(
            "holds {} GGUF files; give the path of one (the parts of a split model are joined \
             with `llama-gguf-split --merge`)",
            found.len()
        );
        return Err(Error::file(path, message));
    }
    Ok(found.pop())
}

/// Programs that do not know multi-token prediction save a model without its tensors and leave
/// the field in the configuration: then there is none. Others leave out the field, whose default
/// is one layer: then there is one if its tensors are there.
fn reconcile_mtp(config: &mut Config, source: &dyn TensorSource) {
    if config.num_nextn_predict_layers == 0 {
        let layer = config.num_hidden_layers;
        let is_there = source.has(&format!("model.layers.{layer}.eh_proj.weight"));
        let can_be = config.architecture == Architecture::DeepseekV3;
        config.num_nextn_predict_layers = usize::from(is_there && can_be);
        return;
    }
    let layout = Layout::new(config);
    let tensors = layout.tensors.iter();
    let mut own = tensors.filter(|spec| config.is_mtp_tensor(&spec.name));
    if own.all(|spec| !source.has(&spec.name)) {
        config.num_nextn_predict_layers = 0;
    }
}

/// Reads the tensors of a checkpoint one after the other.
struct Loader<'a> {
    config: &'a Config,
    layout: &'a Layout,
    source: &'a dyn TensorSource,
    opening: Opening,
    backend: &'a dyn Backend,
    progress: &'a mut dyn FnMut(u64, u64),
    read: u64,
    total: u64,
    weight_bytes: usize,
    non_finite: BTreeMap<String, NonFinite>,
}

impl<'a> Loader<'a> {
    fn new(
        config: &'a Config,
        layout: &'a Layout,
        source: &'a dyn TensorSource,
        opening: Opening,
        backend: &'a dyn Backend,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Loader<'a> {
        let bytes = layout
            .tensors
            .iter()
            .map(|spec| source.stored_bytes(&spec.name));
        Loader {
            total: bytes.sum(),
            config,
            layout,
            source,
            opening,
            backend,
            progress,
            read: 0,
            weight_bytes: 0,
            non_finite: BTreeMap::new(),
        }
    }

    fn load(mut self) -> Result<Opened, Error> {
        let params = Params::Vectors(self.vectors()?);
        self.weight_bytes += params.bytes();
        let embed = self.embedding()?;
        let (config, layout) = (self.config.clone(), self.layout.clone());
        let numerics = self.opening.numerics;
        let model = Model::make(config, layout, numerics, params, embed, &mut self)?;
        Ok(Opened {
            model,
            non_finite: self.non_finite.into_values().collect(),
            weight_bytes: self.weight_bytes,
        })
    }

    /// Norms and biases.
    fn vectors(&mut self) -> Result<Vectors, Error> {
        let mut vectors = Vectors::default();
        let layout = self.layout;
        for spec in layout.tensors.iter().filter(|spec| spec.shape.len() == 1) {
            let values = vectors.push(&spec.range());
            self.source.read_f32(self.config, spec, values)?;
            if let Some(found) = NonFinite::count(spec, values) {
                self.non_finite.insert(spec.name.clone(), found);
            }
            if self.opening.weights == KeptWeights::Bf16 && spec.trainable {
                round_to_bf16(values);
            }
            self.count_read(spec);
        }
        Ok(vectors)
    }

    /// The input embedding, whose rows are looked up; `None` where the head serves for it.
    fn embedding(&mut self) -> Result<Option<Weight>, Error> {
        if self.config.tie_word_embeddings {
            return Ok(None);
        }
        let range = self.layout.embed_tokens.clone();
        let shape = [self.config.vocab_size, self.config.hidden_size];
        self.take_over(range, shape, Role::Embedding).map(Some)
    }

    fn count_read(&mut self, spec: &TensorSpec) {
        self.read += self.source.stored_bytes(&spec.name);
        (self.progress)(self.read, self.total);
    }

    /// The form for a matrix of some type and role.
    fn keep(&self, role: Role, dtype: Dtype, mapped: bool) -> Keep {
        let as_stored = self.opening.weights == KeptWeights::AsStored || dtype == Dtype::Bf16;
        match (role, self.opening.weights) {
            (Role::Embedding, _) => Keep::Rows,
            (Role::Projection | Role::Head, KeptWeights::Q8) => Keep::Q8,
            (Role::Projection | Role::Head, KeptWeights::Q4) => Keep::Q4,
            _ if mapped && as_stored => Keep::Rows,
            // Its bytes are kept, and expanded as products touch them.
            (Role::Projection, _) if dtype == Dtype::F8E4m3 && as_stored => Keep::Rows,
            (Role::KeyUp, _) => Keep::PanelsTransposed,
            _ => Keep::Panels,
        }
    }

    /// Takes over a tensor, or some rows of it.
    fn take_over(
        &mut self,
        range: Range<usize>,
        [rows, cols]: [usize; 2],
        role: Role,
    ) -> Result<Weight, Error> {
        let spec = self.layout.tensor_at(&range);
        let first_row = (range.start - spec.offset) / cols;
        let found = self.source.rows(self.config, spec, first_row, rows)?;
        let counting = Counting::new(&*found.reader, found.dtype);
        let to_bf16 = self.opening.weights == KeptWeights::Bf16;
        // Rows of one head begin anywhere in a block.
        let part_of_block = matches!(role, Role::KeyUp | Role::ValueUp);
        let expanded = found.scales.as_ref().filter(|_| part_of_block || to_bf16);
        let expanded = expanded.map(|scales| Expanded {
            codes: &counting,
            scales,
            first_row: found.first_row,
            cols,
        });
        let (reader, dtype): (&dyn ReadAt, Dtype) = match &expanded {
            Some(expanded) => (expanded, Dtype::F32),
            None => (&counting, found.dtype),
        };
        let rounded = (to_bf16 && dtype != Dtype::Bf16).then_some(Rounded {
            values: reader,
            dtype,
        });
        let (reader, dtype): (&dyn ReadAt, Dtype) = match &rounded {
            Some(rounded) => (rounded, Dtype::Bf16),
            None => (reader, dtype),
        };
        let as_it_is = expanded.is_none() && rounded.is_none();
        let keep = self.keep(role, dtype, found.mapped.is_some() && as_it_is);
        let matrix = StoredMatrix {
            rows,
            cols,
            dtype,
            source: match &found.mapped {
                Some(bytes) if as_it_is && keep == Keep::Rows => RowSource::Memory(bytes.clone()),
                _ => RowSource::Reader(reader),
            },
            scales: found.scales.clone().filter(|_| as_it_is),
        };
        let precision = role.precision(self.opening.numerics);
        let stored = self.backend.store(&matrix, keep, precision);
        let weight = stored.map_err(|error| {
            let message = format!("tensor `{}` cannot be read: {error}", shown(&spec.name));
            Error::file(self.source.file_of(&spec.name), message)
        })?;
        if let Some(found) = counting.found(&spec.name) {
            let sum = self.non_finite.entry(spec.name.clone()).or_default();
            sum.tensor = found.tensor;
            sum.nan += found.nan;
            sum.infinite += found.infinite;
        }
        self.weight_bytes += weight.bytes();
        if range.end == spec.offset + spec.len {
            self.count_read(spec);
        }
        Ok(weight)
    }
}

/// Each value as bf16 has it.
fn round_to_bf16(values: &mut [f32]) {
    for value in values {
        *value = bf16_to_f32(f32_to_bf16(*value));
    }
}

impl Maker for Loader<'_> {
    fn weight(
        &mut self,
        range: Range<usize>,
        shape: [usize; 2],
        role: Role,
    ) -> Result<Weight, Error> {
        self.take_over(range, shape, role)
    }
}

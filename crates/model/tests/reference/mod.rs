//! What `golden/` says, and how far from it a result is.

use kernels::Backend;
use model::{Activations, Batch, Model, Numerics, TensorData, read_tensors};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

/// Every folder of `golden/` with a model in it.
pub fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(root()).expect("golden/").flatten();
    let models = entries.filter(|e| e.path().join("golden.safetensors").exists());
    let mut names: Vec<_> = models
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 16, "golden cases: {names:?}");
    names
}

pub struct Golden {
    pub dir: PathBuf,
    pub tensors: BTreeMap<String, TensorData>,
}

impl Golden {
    pub fn open(case: &str) -> Golden {
        let dir = root().join(case);
        let tensors = read_tensors(&dir.join("golden.safetensors")).expect("golden file");
        Golden {
            dir,
            tensors: tensors.into_iter().map(|t| (t.name, t.data)).collect(),
        }
    }

    pub fn floats(&self, name: &str) -> &[f32] {
        match self.tensors.get(name) {
            Some(TensorData::F32(data)) => data,
            _ => panic!("no f32 tensor `{name}` in {}", self.dir.display()),
        }
    }

    /// A tensor of every document, one after the other.
    pub fn every(&self, name: &str) -> Vec<f32> {
        let documents = 0..self.documents().len();
        documents
            .flat_map(|i| self.floats(&format!("{name}.{i}")).to_vec())
            .collect()
    }

    pub fn documents(&self) -> Vec<Vec<u32>> {
        let ids = (0..).map_while(|i| self.tensors.get(&format!("input_ids.{i}")));
        ids.map(|t| match t {
            TensorData::I32(data) => data.iter().map(|&id| id as u32).collect(),
            TensorData::F32(_) => panic!("input_ids are integers"),
        })
        .collect()
    }

    pub fn model(&self, numerics: Numerics, backend: &dyn Backend) -> Model {
        let (model, non_finite) = Model::open(&self.dir, numerics, backend).expect("golden model");
        assert!(non_finite.is_empty());
        model
    }
}

pub fn batch_of(documents: &[Vec<u32>]) -> Batch {
    Batch::documents(&documents.iter().map(|d| &d[..]).collect::<Vec<_>>())
}

pub fn logits(model: &Model, backend: &dyn Backend, batch: &Batch) -> Vec<f32> {
    let mut acts = Activations::for_inference();
    model.forward(backend, batch, &mut acts, None);
    let rows: Vec<u32> = (0..batch.tokens() as u32).collect();
    let mut logits = Vec::new();
    model.logits(backend, &mut acts, &rows, &mut logits);
    logits
}

pub fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// The greatest difference over the standard deviation of what is wanted.
pub fn relative_to_spread(got: &[f32], want: &[f32]) -> f64 {
    let n = want.len() as f64;
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let spread = norm(want.iter().map(|&x| f64::from(x) - mean)) / n.sqrt();
    let worst = got
        .iter()
        .zip(want)
        .map(|(a, b)| f64::from((a - b).abs()))
        .fold(0.0, f64::max);
    worst / spread
}

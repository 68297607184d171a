//! The model: one forward for training, prefill and decoding, and its backward.

use crate::activations::{Activations, Gradients};
use crate::batch::{Batch, KvCache};
use crate::checkpoint::{NonFinite, read_weights};
use crate::config::Config;
use crate::error::Error;
use crate::layout::{Layout, MlpOffsets, TensorSpec};
use crate::mla::{Mla, MlaWeights};
use crate::mlp::{Mlp, MlpWeights};
use kernels::{
    Backend, Chance, HeadGradient, Mat, MatMut, PackedWeight, Precision, Purpose, RopeTable,
};
use std::path::Path;

/// How matrix products round their operands. Everything else is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numerics {
    pub precision: Precision,
    /// The head decides log-probabilities, which RL divides: f32 unless there is a reason.
    pub head_precision: Precision,
}

impl Numerics {
    /// Products at `precision`, the head in f32.
    pub fn new(precision: Precision) -> Numerics {
        Numerics {
            precision,
            head_precision: Precision::F32,
        }
    }
}

/// Weights of one configuration, as they are and as the products need them.
pub struct Model {
    pub config: Config,
    pub layout: Layout,
    pub numerics: Numerics,
    params: Vec<f32>,
    layers: Vec<(MlaWeights, MlpWeights)>,
    head: PackedWeight,
    rope: RopeTable,
}

/// Rows of the last forward and the token whose log-probability is asked after each.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    pub rows: Vec<u32>,
    pub token_ids: Vec<u32>,
}

/// What a backward is asked for and what it reports.
pub struct Loss<'a> {
    pub targets: &'a Targets,
    pub temperature: f32,
    /// d loss / d log-probability of each target.
    pub dlogprobs: &'a [f32],
    /// Factor of the sequence-wise balance loss.
    pub balance_loss_alpha: f32,
    /// Written: the same bits as [`Model::logprobs`] gives.
    pub logprobs: &'a mut Vec<f32>,
    pub entropies: &'a mut Vec<f32>,
}

impl Model {
    /// Normal weights of deviation `initializer_range`, norms of one, biases of zero.
    pub fn random(config: Config, numerics: Numerics, seed: u64, backend: &dyn Backend) -> Model {
        let layout = Layout::new(&config);
        let mut params = vec![0.0; layout.total_len];
        let chance = Chance::new(seed, Purpose::InitialWeights);
        for (i, tensor) in layout.tensors.iter().enumerate() {
            let values = &mut params[tensor.range()];
            if is_norm(tensor) {
                values.fill(1.0);
            } else if tensor.trainable {
                for (j, x) in values.iter_mut().enumerate() {
                    let normal = chance.normal(i as u64, j as u32);
                    *x = (config.initializer_range * normal) as f32;
                }
            }
        }
        Model::from_params(config, params, numerics, backend)
    }

    /// A model with the given flat weights ([`Layout`]).
    ///
    /// # Panics
    /// If the number of weights is not the layout's.
    pub fn from_params(
        config: Config,
        params: Vec<f32>,
        numerics: Numerics,
        backend: &dyn Backend,
    ) -> Model {
        let layout = Layout::new(&config);
        assert_eq!(params.len(), layout.total_len, "weights of the layout");
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                (
                    MlaWeights::new(&config, numerics),
                    MlpWeights::new(&config, numerics, i),
                )
            })
            .collect();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let head = PackedWeight::new(vocab, hidden, numerics.head_precision);
        let positions = config.max_position_embeddings;
        let rope = RopeTable::new(config.rope_theta, config.qk_rope_head_dim, positions);
        let mut model = Model {
            config,
            layout,
            numerics,
            params,
            layers,
            head,
            rope,
        };
        model.pack(backend);
        model
    }

    /// Opens a Hugging Face folder. Weights that are not finite are named beside the model.
    ///
    /// # Errors
    /// What is missing, mis-shaped or unreadable, by file and tensor.
    pub fn open(
        dir: &Path,
        numerics: Numerics,
        backend: &dyn Backend,
    ) -> Result<(Model, Vec<NonFinite>), Error> {
        let config = Config::read(dir)?;
        let weights = read_weights(dir, &config, &Layout::new(&config))?;
        let model = Model::from_params(config, weights.data, numerics, backend);
        Ok((model, weights.non_finite))
    }

    /// All weights, flat, as [`Layout`] orders them.
    pub fn params(&self) -> &[f32] {
        &self.params
    }

    /// Changes the weights, then repacks them.
    pub fn update(&mut self, backend: &dyn Backend, change: impl FnOnce(&mut [f32])) {
        change(&mut self.params);
        self.pack(backend);
    }

    fn pack(&mut self, backend: &dyn Backend) {
        for ((mla, mlp), at) in self.layers.iter_mut().zip(&self.layout.layers) {
            mla.pack(backend, &self.config, at, &self.params);
            mlp.pack(backend, &self.config, at, &self.params);
        }
        let head = Mat::new(
            &self.params[self.layout.lm_head.clone()],
            self.config.hidden_size,
        );
        backend.pack(head, &mut self.head);
    }

    fn mla<'a>(&'a self, backend: &'a dyn Backend) -> Mla<'a> {
        let Model {
            config,
            numerics,
            rope,
            params,
            ..
        } = self;
        Mla {
            config,
            numerics: *numerics,
            backend,
            rope,
            params,
        }
    }

    fn mlp<'a>(&'a self, backend: &'a dyn Backend) -> Mlp<'a> {
        let Model {
            config,
            numerics,
            params,
            ..
        } = self;
        Mlp {
            config,
            numerics: *numerics,
            backend,
            params,
        }
    }

    /// Hidden states of every token, after the final norm. With a cache, the latents of the batch
    /// are written to it and attention reads from it.
    ///
    /// # Panics
    /// If a token id or position is out of range, or the batch's parts disagree.
    pub fn forward(
        &self,
        backend: &dyn Backend,
        batch: &Batch,
        acts: &mut Activations,
        mut cache: Option<&mut KvCache>,
    ) {
        let (hidden, n) = (self.config.hidden_size, batch.tokens());
        assert_eq!(batch.positions.len(), n, "a position for every token");
        acts.resize(&self.config, n);

        // 0. embedding
        let embed = &self.params[self.layout.embed_tokens.clone()];
        let first = MatMut::new(&mut acts.residual[0], hidden);
        backend.embedding(&batch.token_ids, embed, first);

        // 1. layers
        let (mla, mlp) = (self.mla(backend), self.mlp(backend));
        let (kept, residuals) = (acts.layers.len(), acts.residual.len());
        for (i, (weights, at)) in self.layers.iter().zip(&self.layout.layers).enumerate() {
            let layer = &mut acts.layers[i % kept];
            let residual = &acts.residual[i % residuals];
            let cache = cache.as_deref_mut().map(|cache| (cache, i));
            mla.forward(&weights.0, at, batch, residual, layer, cache);
            mlp.forward(
                &weights.1,
                at,
                layer,
                &mut acts.residual[(i + 1) % residuals],
            );
        }

        // 2. hidden = norm(last residual)
        let last = Mat::new(&acts.residual[self.layers.len() % residuals], hidden);
        let weight = &self.params[self.layout.norm.clone()];
        let eps = self.config.rms_norm_eps as f32;
        let to = MatMut::new(&mut acts.hidden, hidden);
        backend.rmsnorm(last, weight, eps, to, &mut acts.inv_rms);
    }

    /// Full logits `[rows, vocab_size]` of chosen rows of the last forward.
    pub fn logits(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        rows: &[u32],
        logits: &mut Vec<f32>,
    ) {
        let vocab = self.config.vocab_size;
        logits.resize(rows.len() * vocab, 0.0);
        let x = self.gather(backend, acts, rows);
        backend.matmul_nt(x, &self.head, MatMut::new(logits, vocab), false);
    }

    /// The log-probability of each target and the entropy before it, in nats.
    pub fn logprobs(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        targets: &Targets,
        temperature: f32,
        logprobs: &mut Vec<f32>,
        entropies: &mut Vec<f32>,
    ) {
        let outcome = [logprobs, entropies];
        self.apply_head(backend, acts, targets, temperature, outcome, None);
    }

    /// Step 3, log-probabilities = head(rows of hidden), with its gradient where that is asked for.
    fn apply_head(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        targets: &Targets,
        temperature: f32,
        outcome: [&mut Vec<f32>; 2],
        gradient: Option<HeadGradient>,
    ) {
        let outcome = outcome.map(|values| {
            values.resize(targets.rows.len(), 0.0);
            &mut values[..]
        });
        let mut room = std::mem::take(&mut acts.logits);
        let x = self.gather(backend, acts, &targets.rows);
        let (head, ids) = (&self.head, &targets.token_ids);
        backend.head(x, head, ids, temperature, &mut room, outcome, gradient);
        acts.logits = room;
    }

    /// Writes d.normed, zero in the rows that have no target.
    fn apply_head_backward(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        loss: Loss,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let hidden = self.config.hidden_size;
        let gradient = HeadGradient {
            dlogprobs: loss.dlogprobs,
            dhidden: MatMut::new(&mut d.head_rows, hidden),
            dweight: &mut grads[self.layout.lm_head.clone()],
        };
        let (targets, temperature, gradient) = (loss.targets, loss.temperature, Some(gradient));
        let outcome = [loss.logprobs, loss.entropies];
        self.apply_head(backend, acts, targets, temperature, outcome, gradient);
        d.normed.fill(0.0);
        let dnormed = MatMut::new(&mut d.normed, hidden);
        backend.write_rows(Mat::new(&d.head_rows, hidden), &targets.rows, dnormed);
    }

    fn gather<'a>(
        &self,
        backend: &dyn Backend,
        acts: &'a mut Activations,
        rows: &[u32],
    ) -> Mat<'a> {
        let hidden = self.config.hidden_size;
        acts.head_rows.resize(rows.len() * hidden, 0.0);
        let from = Mat::new(&acts.hidden, hidden);
        backend.gather_rows(from, rows, MatMut::new(&mut acts.head_rows, hidden));
        Mat::new(&acts.head_rows, hidden)
    }

    /// The gradient of Σ dlogprobs · logprobs + the balance loss of every MoE layer, added to
    /// `grads` (`layout.trainable_len`). Returns the balance loss.
    ///
    /// # Panics
    /// If the last forward of `acts` was not over `batch`, kept no layers, or read a cache.
    pub fn backward(
        &self,
        backend: &dyn Backend,
        batch: &Batch,
        acts: &mut Activations,
        loss: Loss,
        grads: &mut [f32],
    ) -> f32 {
        self.check_backward(batch, acts, grads);
        let (hidden, alpha) = (self.config.hidden_size, loss.balance_loss_alpha);
        let mut d = acts.gradients.take().unwrap_or_default();
        d.resize(&self.config, batch.tokens(), loss.targets.rows.len());

        // 3. log-probabilities = head(rows of hidden)
        self.apply_head_backward(backend, acts, loss, &mut d, grads);

        // 2. hidden = norm(last residual)
        backend.rmsnorm_backward(
            Mat::new(&acts.residual[self.layers.len()], hidden),
            &self.params[self.layout.norm.clone()],
            &acts.inv_rms,
            Mat::new(&d.normed, hidden),
            MatMut::new(&mut d.residual, hidden),
            false,
            &mut grads[self.layout.norm.clone()],
        );

        // 1. layers, last to first
        let (mla, mlp) = (self.mla(backend), self.mlp(backend));
        let mut balance_loss = 0.0;
        let layers = self.layers.iter().zip(&self.layout.layers);
        for (i, (weights, at)) in layers.enumerate().rev() {
            let (layer, residual) = (&acts.layers[i], &acts.residual[i]);
            balance_loss += mlp.backward(&weights.1, at, batch, alpha, layer, &mut d, grads);
            mla.backward(&weights.0, at, batch, residual, layer, &mut d, grads);
        }

        // 0. embedding
        let dresidual = Mat::new(&d.residual, hidden);
        let dembed = &mut grads[self.layout.embed_tokens.clone()];
        backend.embedding_backward(&batch.token_ids, dresidual, dembed);
        acts.gradients = Some(d);
        balance_loss
    }

    fn check_backward(&self, batch: &Batch, acts: &Activations, grads: &[f32]) {
        assert!(
            acts.keeps_layers(),
            "these activations keep nothing for a backward"
        );
        assert!(batch.places.is_none(), "no gradient flows through a cache");
        assert_eq!(
            acts.tokens(),
            batch.tokens(),
            "the forward was over another batch"
        );
        assert_eq!(grads.len(), self.layout.trainable_len, "size of grads");
    }

    /// Adds the tokens routed to each expert in the last forward: `[moe_layers, n_routed_experts]`.
    pub fn add_expert_loads(&self, acts: &Activations, loads: &mut [u64]) {
        let experts = self.config.n_routed_experts;
        let moe_layers = (0..self.layers.len()).filter(|&i| self.config.is_moe_layer(i));
        for (layer, loads) in moe_layers.zip(loads.chunks_exact_mut(experts.max(1))) {
            let offsets = acts.layers[layer].moe.offsets.windows(2);
            offsets
                .zip(loads)
                .for_each(|(o, load)| *load += u64::from(o[1] - o[0]));
        }
    }

    /// Auxiliary-loss-free balancing: each expert's selection bias moves by `speed` towards the
    /// mean load (DeepSeek-V3, section 2.1.2). Never between a rollout and its training forward.
    pub fn update_expert_bias(&mut self, loads: &[u64], speed: f32) {
        let experts = self.config.n_routed_experts;
        let moe = self.layout.layers.iter().filter_map(|at| match &at.mlp {
            MlpOffsets::Moe(moe) => Some(moe.e_score_correction_bias.clone()),
            MlpOffsets::Dense(_) => None,
        });
        for (range, loads) in moe.zip(loads.chunks_exact(experts.max(1))) {
            let total: u64 = loads.iter().sum();
            for (bias, &load) in self.params[range].iter_mut().zip(loads) {
                // load against total / experts, without rounding.
                match (load * experts as u64).cmp(&total) {
                    std::cmp::Ordering::Less => *bias += speed,
                    std::cmp::Ordering::Greater => *bias -= speed,
                    std::cmp::Ordering::Equal => {}
                }
            }
        }
    }
}

fn is_norm(tensor: &TensorSpec) -> bool {
    tensor.trainable && tensor.shape.len() == 1
}

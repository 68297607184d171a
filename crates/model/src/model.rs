//! The model: one forward for training, prefill and decoding, and its backward.

use crate::activations::{Activations, Gradients};
use crate::batch::{Batch, KvCache};
use crate::block::{BlockWeights, Maker, Pass, Role, pack};
use crate::checkpoint::NonFinite;
use crate::config::Config;
use crate::error::Error;
use crate::layout::{Layout, MlpOffsets, TensorSpec};
use crate::mtp::{MtpLoss, MtpWeights};
use crate::open::Checkpoint;
use crate::params::Params;
use kernels::{
    Backend, Chance, HeadGradient, Mat, MatMut, Precision, Purpose, RopeAngles, RopeFrequencies,
    Weight,
};
use std::ops::Range;
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
    pub(crate) params: Params,
    /// The input embedding where it is neither flat nor the head.
    embed: Option<Weight>,
    layers: Vec<BlockWeights>,
    pub(crate) mtp: Option<MtpWeights>,
    head: Weight,
    rope: RopeFrequencies,
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
    /// What the multi-token prediction adds, after [`Model::forward_mtp`].
    pub mtp: Option<MtpLoss<'a>>,
}

/// Empty weights, which training fills again and again.
struct Empty(Numerics);

impl Maker for Empty {
    fn weight(
        &mut self,
        _: Range<usize>,
        [out, input]: [usize; 2],
        role: Role,
    ) -> Result<Weight, Error> {
        Ok(Weight::new(out, input, role.precision(self.0)))
    }
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
            } else if tensor.shape.len() > 1 {
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
        let params = Params::Flat(params);
        let made = Model::make(config, layout, numerics, params, None, &mut Empty(numerics));
        let mut model = made.expect("empty weights need no file");
        model.pack(backend);
        model
    }

    pub(crate) fn make(
        config: Config,
        layout: Layout,
        numerics: Numerics,
        params: Params,
        embed: Option<Weight>,
        maker: &mut dyn Maker,
    ) -> Result<Model, Error> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let layers = layout.layers.iter();
        let layers = layers.map(|at| BlockWeights::make(&config, at, maker));
        let layers = layers.collect::<Result<_, _>>()?;
        let mtp = match &layout.mtp {
            Some(at) => Some(MtpWeights::make(&config, at, maker)?),
            None => None,
        };
        let head = maker.weight(layout.lm_head.clone(), [vocab, hidden], Role::Head)?;
        Ok(Model {
            rope: config.rope_frequencies(),
            config,
            layout,
            numerics,
            params,
            embed,
            layers,
            mtp,
            head,
        })
    }

    /// Opens a checkpoint for training. Weights that are not finite are named beside the model.
    ///
    /// # Errors
    /// What is missing, mis-shaped or unreadable, by file and tensor.
    pub fn open(
        dir: &Path,
        numerics: Numerics,
        backend: &dyn Backend,
    ) -> Result<(Model, Vec<NonFinite>), Error> {
        let checkpoint = Checkpoint::open(dir)?;
        let (config, weights) = (checkpoint.config().clone(), checkpoint.weights()?);
        let model = Model::from_params(config, weights.data, numerics, backend);
        Ok((model, weights.non_finite))
    }

    /// All weights, flat, as [`Layout`] orders them.
    ///
    /// # Panics
    /// If the model was opened for inference.
    pub fn params(&self) -> &[f32] {
        self.params.flat()
    }

    /// Changes the weights, then repacks them.
    ///
    /// # Panics
    /// If the model was opened for inference.
    pub fn update(&mut self, backend: &dyn Backend, change: impl FnOnce(&mut [f32])) {
        change(self.params.flat_mut());
        self.pack(backend);
    }

    fn pack(&mut self, backend: &dyn Backend) {
        let (config, p) = (&self.config, self.params.flat());
        for (block, at) in self.layers.iter_mut().zip(&self.layout.layers) {
            block.pack(backend, config, at, p);
        }
        if let (Some(mtp), Some(at)) = (&mut self.mtp, &self.layout.mtp) {
            mtp.pack(backend, config, at, p);
        }
        pack(backend, p, self.layout.lm_head.clone(), &mut self.head);
    }

    pub(crate) fn pass<'a>(&'a self, backend: &'a dyn Backend, angles: &'a RopeAngles) -> Pass<'a> {
        Pass {
            config: &self.config,
            numerics: self.numerics,
            backend,
            params: &self.params,
            angles,
        }
    }

    /// Rows of the input embedding.
    pub(crate) fn embed(&self, backend: &dyn Backend, token_ids: &[u32], to: &mut [f32]) {
        let to = MatMut::new(to, self.config.hidden_size);
        match (&self.params, &self.embed) {
            (Params::Flat(all), _) => {
                backend.embedding(token_ids, &all[self.layout.embed_tokens.clone()], to);
            }
            (Params::Vectors(_), embed) => {
                backend.embedding_of(token_ids, embed.as_ref().unwrap_or(&self.head), to);
            }
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
        let n = batch.tokens();
        assert_eq!(batch.positions.len(), n, "a position for every token");
        let limit = self.config.max_position_embeddings;
        let last = batch.positions.iter().max().map_or(0, |&p| p as usize);
        assert!(last < limit, "position {last} of a model of {limit}");
        acts.resize(&self.config, n);
        backend.rope_angles(&batch.positions, &self.rope, &mut acts.angles);

        // 0. embedding
        self.embed(backend, &batch.token_ids, &mut acts.residual[0]);

        // 1. layers
        let pass = self.pass(backend, &acts.angles);
        let (kept, residuals) = (acts.layers.len(), acts.residual.len());
        for (i, (weights, at)) in self.layers.iter().zip(&self.layout.layers).enumerate() {
            let layer = &mut acts.layers[i % kept];
            let mut out = std::mem::take(&mut acts.residual[(i + 1) % residuals]);
            let residual = &acts.residual[i % residuals];
            let cache = cache.as_deref_mut().map(|cache| (cache, i));
            pass.forward(weights, at, batch, residual, layer, cache, &mut out);
            acts.residual[(i + 1) % residuals] = out;
        }

        // 2. hidden = norm(last residual)
        let last = &acts.residual[self.layers.len() % residuals];
        pass.norm(&self.layout.norm, last, &mut acts.hidden, &mut acts.inv_rms);
    }

    /// Full logits `[rows, vocab_size]` of chosen rows of the last forward.
    pub fn logits(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        rows: &[u32],
        logits: &mut Vec<f32>,
    ) {
        self.logits_of(backend, acts, Of::Model, rows, logits);
    }

    pub(crate) fn logits_of(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        of: Of,
        rows: &[u32],
        logits: &mut Vec<f32>,
    ) {
        let vocab = self.config.vocab_size;
        logits.resize(rows.len() * vocab, 0.0);
        let x = self.gather(backend, acts, of, rows);
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
        self.apply_head(
            backend,
            acts,
            Of::Model,
            targets,
            temperature,
            outcome,
            None,
        );
    }

    /// Step 3, log-probabilities = head(rows of hidden), with its gradient where that is asked for.
    pub(crate) fn apply_head(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        of: Of,
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
        let x = self.gather(backend, acts, of, &targets.rows);
        let (head, ids) = (&self.head, &targets.token_ids);
        backend.head(x, head, ids, temperature, &mut room, outcome, gradient);
        acts.logits = room;
    }

    /// Writes d.normed, zero in the rows that have no target.
    pub(crate) fn apply_head_backward(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        of: Of,
        targets: &Targets,
        temperature: f32,
        dlogprobs: &[f32],
        outcome: [&mut Vec<f32>; 2],
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let hidden = self.config.hidden_size;
        d.head_rows.resize(targets.rows.len() * hidden, 0.0);
        let gradient = Some(HeadGradient {
            dlogprobs,
            dhidden: MatMut::new(&mut d.head_rows, hidden),
            dweight: &mut grads[self.layout.lm_head.clone()],
        });
        self.apply_head(backend, acts, of, targets, temperature, outcome, gradient);
        d.normed.fill(0.0);
        let dnormed = MatMut::new(&mut d.normed, hidden);
        backend.write_rows(Mat::new(&d.head_rows, hidden), &targets.rows, dnormed);
    }

    pub(crate) fn gather<'a>(
        &self,
        backend: &dyn Backend,
        acts: &'a mut Activations,
        of: Of,
        rows: &[u32],
    ) -> Mat<'a> {
        let hidden = self.config.hidden_size;
        acts.head_rows.resize(rows.len() * hidden, 0.0);
        let from = match of {
            Of::Model => &acts.hidden,
            Of::Mtp => &acts.mtp.hidden,
        };
        let to = MatMut::new(&mut acts.head_rows, hidden);
        backend.gather_rows(Mat::new(from, hidden), rows, to);
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
        d.resize(&self.config, batch.tokens());

        // 4. what multi-token prediction says about the hidden states
        let predicts_more = loss.mtp.is_some();
        if let Some(mtp) = loss.mtp {
            self.mtp_backward(backend, batch, acts, mtp, loss.temperature, &mut d, grads);
        }

        // 3. log-probabilities = head(rows of hidden)
        let (targets, temperature, dlogprobs) = (loss.targets, loss.temperature, loss.dlogprobs);
        let outcome = [loss.logprobs, loss.entropies];
        self.apply_head_backward(
            backend,
            acts,
            Of::Model,
            targets,
            temperature,
            dlogprobs,
            outcome,
            &mut d,
            grads,
        );
        if predicts_more {
            backend.add_assign(&mut d.normed, &d.hidden);
        }

        // 2. hidden = norm(last residual)
        backend.rmsnorm_backward(
            Mat::new(&acts.residual[self.layers.len()], hidden),
            self.params.get(&self.layout.norm),
            &acts.inv_rms,
            Mat::new(&d.normed, hidden),
            MatMut::new(&mut d.residual, hidden),
            false,
            &mut grads[self.layout.norm.clone()],
        );

        // 1. layers, last to first
        let pass = self.pass(backend, &acts.angles);
        let mut balance_loss = 0.0;
        let layers = self.layers.iter().zip(&self.layout.layers);
        for (i, (weights, at)) in layers.enumerate().rev() {
            let (layer, residual) = (&acts.layers[i], &acts.residual[i]);
            balance_loss +=
                pass.backward(weights, at, batch, alpha, residual, layer, &mut d, grads);
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

    /// Adds the tokens routed to each expert in the last forward: `[moe_layers, n_routed_experts]`,
    /// multi-token prediction last, if it was computed.
    pub fn add_expert_loads(&self, acts: &Activations, loads: &mut [u64]) {
        let experts = self.config.n_routed_experts();
        let layers = acts.layers.iter().chain([&acts.mtp.layer]);
        let moe_layers = layers
            .enumerate()
            .filter(|&(i, _)| self.config.is_moe_layer(i));
        for ((_, layer), loads) in moe_layers.zip(loads.chunks_exact_mut(experts.max(1))) {
            let offsets = layer.moe.offsets.windows(2);
            offsets
                .zip(loads)
                .for_each(|(o, load)| *load += u64::from(o[1] - o[0]));
        }
    }

    /// Auxiliary-loss-free balancing: each expert's selection bias moves by `speed` towards the
    /// mean load (DeepSeek-V3, section 2.1.2). Never between a rollout and its training forward.
    pub fn update_expert_bias(&mut self, loads: &[u64], speed: f32) {
        let experts = self.config.n_routed_experts();
        let params = self.params.flat_mut();
        let moe = self.layout.blocks().filter_map(|at| match &at.mlp {
            MlpOffsets::Moe(moe) => Some(moe.e_score_correction_bias.clone()),
            MlpOffsets::Dense(_) => None,
        });
        for (range, loads) in moe.zip(loads.chunks_exact(experts.max(1))) {
            let total: u64 = loads.iter().sum();
            for (bias, &load) in params[range].iter_mut().zip(loads) {
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
    tensor.shape.len() == 1 && tensor.name.ends_with("norm.weight")
}

/// Whose hidden states the head is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Model,
    Mtp,
}

//! Multi-token prediction of depth 1 (DeepSeek-V3, section 2.2): one more block, fed with the
//! model's hidden state of token i and the embedding of token i + 1, predicts token i + 2. In
//! training it adds a loss; in inference it drafts.
//!
//! The hidden state is the one after the model's final norm, and the embedding's half of `eh_proj`
//! comes first: so the weights are laid out that DeepSeek published, whatever the order in the
//! paper's equation 21.

use crate::activations::{Activations, Gradients};
use crate::batch::{Batch, KvCache};
use crate::block::{BlockWeights, Maker, Role, pack};
use crate::config::Config;
use crate::error::Error;
use crate::layout::MtpOffsets;
use crate::model::{Model, Of, Targets};
use kernels::{Backend, Mat, MatMut, Weight};

/// The loss of multi-token prediction, in terms of [`Model::forward_mtp`].
pub struct MtpLoss<'a> {
    /// As given to [`Model::forward_mtp`].
    pub next_token_ids: &'a [u32],
    /// Rows of the batch, and the token two after each.
    pub targets: &'a Targets,
    /// d loss / d log-probability of each target.
    pub dlogprobs: &'a [f32],
    pub logprobs: &'a mut Vec<f32>,
    pub entropies: &'a mut Vec<f32>,
}

/// The packed weights of multi-token prediction.
pub(crate) struct MtpWeights {
    eh_proj: Weight,
    block: BlockWeights,
}

impl MtpWeights {
    pub fn make(
        config: &Config,
        at: &MtpOffsets,
        maker: &mut dyn Maker,
    ) -> Result<MtpWeights, Error> {
        let shape = [config.hidden_size, 2 * config.hidden_size];
        Ok(MtpWeights {
            eh_proj: maker.weight(at.eh_proj.clone(), shape, Role::Projection)?,
            block: BlockWeights::make(config, &at.layer, maker)?,
        })
    }

    /// Repacks after a change of the weights.
    pub fn pack(&mut self, backend: &dyn Backend, config: &Config, at: &MtpOffsets, p: &[f32]) {
        pack(backend, p, at.eh_proj.clone(), &mut self.eh_proj);
        self.block.pack(backend, config, &at.layer, p);
    }
}

/// Names under which a checkpoint repeats the model's embedding and head for multi-token
/// prediction.
pub(crate) fn shared_copies(num_hidden_layers: usize) -> [String; 2] {
    let layer = num_hidden_layers;
    ["embed_tokens", "shared_head.head"].map(|part| format!("model.layers.{layer}.{part}.weight"))
}

impl Config {
    /// Whether a tensor of this name is of multi-token prediction, the layer behind the last.
    pub fn is_mtp_tensor(&self, name: &str) -> bool {
        name.starts_with(&format!("model.layers.{}.", self.num_hidden_layers))
    }
}

impl Model {
    fn mtp_parts(&self) -> (&MtpWeights, &MtpOffsets) {
        match (&self.mtp, &self.layout.mtp) {
            (Some(weights), Some(at)) => (weights, at),
            _ => panic!("this model predicts one token at a time"),
        }
    }

    /// Multi-token prediction of every row, after [`Model::forward`] over the same batch.
    /// `next_token_ids` follow each token; the last of a document has none, any id will do there,
    /// and its row says nothing.
    ///
    /// # Panics
    /// If the model has no such layer or the last forward was over another batch.
    pub fn forward_mtp(
        &self,
        backend: &dyn Backend,
        batch: &Batch,
        next_token_ids: &[u32],
        acts: &mut Activations,
        cache: Option<&mut KvCache>,
    ) {
        let ((weights, at), hidden) = (self.mtp_parts(), self.config.hidden_size);
        let tokens = batch.tokens();
        assert_eq!(
            (next_token_ids.len(), acts.tokens()),
            (tokens, tokens),
            "one batch"
        );
        let mut mtp = std::mem::take(&mut acts.mtp);
        mtp.resize(&self.config, tokens);

        // 1. embedding of the next tokens
        self.embed(backend, next_token_ids, &mut mtp.embedded);

        // 2. joined = [norm(embedding), norm(hidden)]
        let eps = self.config.rms_norm_eps as f32;
        for (i, (weight, x, inv_rms)) in [
            (&at.enorm, &mtp.embedded, &mut mtp.embedded_inv_rms),
            (&at.hnorm, &acts.hidden, &mut mtp.hidden_inv_rms),
        ]
        .into_iter()
        .enumerate()
        {
            let half = MatMut::new(&mut mtp.joined, 2 * hidden).columns(i * hidden, hidden);
            let weight = self.params.get(weight);
            backend.rmsnorm(Mat::new(x, hidden), weight, eps, half, inv_rms);
        }

        // 3. residual = W joined
        let [before, after] = &mut mtp.residual;
        let joined = Mat::new(&mtp.joined, 2 * hidden);
        backend.matmul_nt(joined, &weights.eh_proj, MatMut::new(before, hidden), false);

        // 4. block
        let pass = self.pass(backend, &acts.angles);
        let cache = cache.map(|cache| (cache, self.config.num_hidden_layers));
        let (block, layer) = (&weights.block, &mut mtp.layer);
        pass.forward(block, &at.layer, batch, before, layer, cache, after);

        // 5. hidden = norm(residual)
        pass.norm(&at.norm, after, &mut mtp.hidden, &mut mtp.inv_rms);
        acts.mtp = mtp;
    }

    /// Full logits `[rows, vocab_size]` of chosen rows of the last [`Model::forward_mtp`]: of the
    /// token after the next.
    pub fn mtp_logits(
        &self,
        backend: &dyn Backend,
        acts: &mut Activations,
        rows: &[u32],
        logits: &mut Vec<f32>,
    ) {
        self.logits_of(backend, acts, Of::Mtp, rows, logits);
    }

    /// Writes d.hidden, the gradient of the model's hidden states.
    pub(crate) fn mtp_backward(
        &self,
        backend: &dyn Backend,
        batch: &Batch,
        acts: &mut Activations,
        loss: MtpLoss,
        temperature: f32,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let ((weights, at), hidden) = (self.mtp_parts(), self.config.hidden_size);
        let (targets, dlogprobs) = (loss.targets, loss.dlogprobs);
        let outcome = [loss.logprobs, loss.entropies];
        self.apply_head_backward(
            backend,
            acts,
            Of::Mtp,
            targets,
            temperature,
            dlogprobs,
            outcome,
            d,
            grads,
        );
        let mtp = &acts.mtp;

        // 5. hidden = norm(residual)
        backend.rmsnorm_backward(
            Mat::new(&mtp.residual[1], hidden),
            self.params.get(&at.norm),
            &mtp.inv_rms,
            Mat::new(&d.normed, hidden),
            MatMut::new(&mut d.residual, hidden),
            false,
            &mut grads[at.norm.clone()],
        );

        // 4. block. Rows without a next token would count in its balance loss, so it has none.
        let pass = self.pass(backend, &acts.angles);
        let (block, before) = (&weights.block, &mtp.residual[0]);
        pass.backward(block, &at.layer, batch, 0.0, before, &mtp.layer, d, grads);

        // 3. residual = W joined
        let dy = Mat::new(&d.residual, hidden);
        let joined = Mat::new(&mtp.joined, 2 * hidden);
        let dweight = &mut grads[at.eh_proj.clone()];
        backend.matmul_tn(dy, joined, self.numerics.precision, dweight);
        let djoined = MatMut::new(&mut d.joined, 2 * hidden);
        backend.matmul_nn(dy, &weights.eh_proj, djoined, false);

        // 2. joined = [norm(embedding), norm(hidden)]
        self.join_backward(backend, at, acts, d, grads);

        // 1. embedding of the next tokens
        let dembed = &mut grads[self.layout.embed_tokens.clone()];
        backend.embedding_backward(loss.next_token_ids, Mat::new(&d.normed, hidden), dembed);
    }

    /// d.normed, of the embeddings, and d.hidden from d.joined.
    fn join_backward(
        &self,
        backend: &dyn Backend,
        at: &MtpOffsets,
        acts: &Activations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (mtp, hidden) = (&acts.mtp, self.config.hidden_size);
        let djoined = Mat::new(&d.joined, 2 * hidden);
        for (i, (weight, x, inv_rms, dx)) in [
            (
                &at.enorm,
                &mtp.embedded,
                &mtp.embedded_inv_rms,
                &mut d.normed,
            ),
            (&at.hnorm, &acts.hidden, &mtp.hidden_inv_rms, &mut d.hidden),
        ]
        .into_iter()
        .enumerate()
        {
            let (x, dx) = (Mat::new(x, hidden), MatMut::new(dx, hidden));
            let (dy, dweight) = (
                djoined.columns(i * hidden, hidden),
                &mut grads[weight.clone()],
            );
            let weight = self.params.get(weight);
            backend.rmsnorm_backward(x, weight, inv_rms, dy, dx, false, dweight);
        }
    }
}

//! The feed-forward half of a layer: dense SwiGLU, or DeepSeekMoE (DeepSeek-V3, section 2.1.2) with
//! shared experts, sigmoid scores and a bias that steers selection only.

use crate::activations::{Gradients, LayerActivations, MoeActivations, SwigluActivations};
use crate::batch::Batch;
use crate::config::Config;
use crate::layout::{LayerOffsets, MlpOffsets, MoeOffsets, SwigluOffsets};
use crate::model::Numerics;
use kernels::{Backend, Mat, MatMut, PackedWeight, Precision, Routing};

/// The packed weights of one feed-forward half.
pub(crate) enum MlpWeights {
    Dense(SwigluWeights),
    Moe(MoeWeights),
}

pub(crate) struct SwigluWeights {
    gate_proj: PackedWeight,
    up_proj: PackedWeight,
    down_proj: PackedWeight,
}

pub(crate) struct MoeWeights {
    gate: PackedWeight,
    experts_gate_proj: Vec<PackedWeight>,
    experts_up_proj: Vec<PackedWeight>,
    experts_down_proj: Vec<PackedWeight>,
    /// `None` without shared experts.
    shared: Option<SwigluWeights>,
}

impl MlpWeights {
    pub fn new(config: &Config, numerics: Numerics, layer: usize) -> MlpWeights {
        let hidden = config.hidden_size;
        if !config.is_moe_layer(layer) {
            let width = config.intermediate_size;
            return MlpWeights::Dense(SwigluWeights::new(hidden, width, numerics.precision));
        }
        let (width, shared) = (
            config.moe_intermediate_size,
            config.moe_intermediate_size * config.n_shared_experts,
        );
        let experts = |out, input| {
            let one = PackedWeight::new(out, input, numerics.precision);
            vec![one; config.n_routed_experts]
        };
        MlpWeights::Moe(MoeWeights {
            // The router decides which weights are used at all: always f32.
            gate: PackedWeight::new(config.n_routed_experts, hidden, Precision::F32),
            experts_gate_proj: experts(width, hidden),
            experts_up_proj: experts(width, hidden),
            experts_down_proj: experts(hidden, width),
            shared: (shared > 0).then(|| SwigluWeights::new(hidden, shared, numerics.precision)),
        })
    }

    /// Repacks after a change of the weights.
    pub fn pack(&mut self, backend: &dyn Backend, config: &Config, at: &LayerOffsets, p: &[f32]) {
        let hidden = config.hidden_size;
        match (self, &at.mlp) {
            (MlpWeights::Dense(weights), MlpOffsets::Dense(at)) => weights.pack(backend, at, p),
            (MlpWeights::Moe(weights), MlpOffsets::Moe(at)) => {
                backend.pack(Mat::new(&p[at.gate.clone()], hidden), &mut weights.gate);
                for (range, packed) in [
                    (&at.experts_gate_proj, &mut weights.experts_gate_proj),
                    (&at.experts_up_proj, &mut weights.experts_up_proj),
                    (&at.experts_down_proj, &mut weights.experts_down_proj),
                ] {
                    let each = range.len() / packed.len();
                    for (weight, packed) in p[range.clone()].chunks_exact(each).zip(packed) {
                        backend.pack(Mat::new(weight, packed.in_features()), packed);
                    }
                }
                if let Some(shared) = &mut weights.shared {
                    shared.pack(backend, &at.shared, p);
                }
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
    }
}

impl SwigluWeights {
    fn new(hidden: usize, width: usize, precision: Precision) -> SwigluWeights {
        SwigluWeights {
            gate_proj: PackedWeight::new(width, hidden, precision),
            up_proj: PackedWeight::new(width, hidden, precision),
            down_proj: PackedWeight::new(hidden, width, precision),
        }
    }

    fn pack(&mut self, backend: &dyn Backend, at: &SwigluOffsets, p: &[f32]) {
        for (range, packed) in [
            (&at.gate_proj, &mut self.gate_proj),
            (&at.up_proj, &mut self.up_proj),
            (&at.down_proj, &mut self.down_proj),
        ] {
            backend.pack(Mat::new(&p[range.clone()], packed.in_features()), packed);
        }
    }

    /// out += W_down (silu(W_gate x) * W_up x).
    fn forward(&self, backend: &dyn Backend, x: Mat, acts: &mut SwigluActivations, out: MatMut) {
        let width = self.gate_proj.out_features();
        acts.resize(x.rows * width);
        let SwigluActivations { gate, up, product } = acts;
        // 1. gate, up
        backend.matmul_nt(x, &self.gate_proj, MatMut::new(gate, width), false);
        backend.matmul_nt(x, &self.up_proj, MatMut::new(up, width), false);
        // 2. product = silu(gate) * up
        let to = MatMut::new(product, width);
        backend.swiglu(Mat::new(gate, width), Mat::new(up, width), to);
        // 3. out += W_down product
        backend.matmul_nt(Mat::new(product, width), &self.down_proj, out, true);
    }

    /// dx is written.
    fn backward(
        &self,
        backend: &dyn Backend,
        at: &SwigluOffsets,
        precision: Precision,
        x: Mat,
        acts: &SwigluActivations,
        dout: Mat,
        d: &mut SwigluActivations,
        mut dx: MatMut,
        grads: &mut [f32],
    ) {
        let width = self.gate_proj.out_features();
        d.resize(x.rows * width);
        // 3. out += W_down product
        let product = Mat::new(&acts.product, width);
        backend.matmul_tn(dout, product, precision, &mut grads[at.down_proj.clone()]);
        backend.matmul_nn(
            dout,
            &self.down_proj,
            MatMut::new(&mut d.product, width),
            false,
        );
        // 2. product = silu(gate) * up
        let (gate, up) = (Mat::new(&acts.gate, width), Mat::new(&acts.up, width));
        let (dgate, dup) = (
            MatMut::new(&mut d.gate, width),
            MatMut::new(&mut d.up, width),
        );
        backend.swiglu_backward(gate, up, Mat::new(&d.product, width), dgate, dup);
        // 1. gate, up
        let (dgate, dup) = (Mat::new(&d.gate, width), Mat::new(&d.up, width));
        backend.matmul_tn(dup, x, precision, &mut grads[at.up_proj.clone()]);
        backend.matmul_nn(dup, &self.up_proj, dx.reborrow(), false);
        backend.matmul_tn(dgate, x, precision, &mut grads[at.gate_proj.clone()]);
        backend.matmul_nn(dgate, &self.gate_proj, dx, true);
    }
}

/// What every layer's feed-forward half shares.
pub(crate) struct Mlp<'a> {
    pub config: &'a Config,
    pub numerics: Numerics,
    pub backend: &'a dyn Backend,
    pub params: &'a [f32],
}

impl Mlp<'_> {
    fn routing(&self) -> Routing {
        Routing {
            experts: self.config.n_routed_experts,
            top_k: self.config.num_experts_per_tok,
            norm_topk_prob: self.config.norm_topk_prob,
            scale: self.config.routed_scaling_factor as f32,
        }
    }

    /// out = middle + mlp(norm(middle)).
    pub fn forward(
        &self,
        weights: &MlpWeights,
        at: &LayerOffsets,
        acts: &mut LayerActivations,
        out: &mut [f32],
    ) {
        let hidden = self.config.hidden_size;
        // 1. h = norm(x)
        let weight = &self.params[at.post_attention_layernorm.clone()];
        let (x, h) = (
            Mat::new(&acts.middle, hidden),
            MatMut::new(&mut acts.mlp_input, hidden),
        );
        let eps = self.config.rms_norm_eps as f32;
        self.backend
            .rmsnorm(x, weight, eps, h, &mut acts.mlp_inv_rms);
        // 2. out = x + mlp(h)
        out.copy_from_slice(&acts.middle);
        match (weights, &at.mlp) {
            (MlpWeights::Dense(weights), _) => {
                let (h, out) = (Mat::new(&acts.mlp_input, hidden), MatMut::new(out, hidden));
                weights.forward(self.backend, h, &mut acts.mlp, out);
            }
            (MlpWeights::Moe(weights), MlpOffsets::Moe(at)) => {
                self.experts(weights, at, acts, MatMut::new(out, hidden));
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
    }

    /// out += shared experts + weighted routed experts.
    fn experts(
        &self,
        weights: &MoeWeights,
        at: &MoeOffsets,
        acts: &mut LayerActivations,
        mut out: MatMut,
    ) {
        let (backend, config) = (self.backend, self.config);
        let hidden = config.hidden_size;
        let h = Mat::new(&acts.mlp_input, hidden);
        let moe = &mut acts.moe;
        moe.resize(config, h.rows);
        let routing = self.routing();
        // 1. logits = W_gate h
        let logits = MatMut::new(&mut moe.logits, routing.experts);
        backend.matmul_nt(h, &weights.gate, logits, false);
        // 2. scores, experts and their weights
        self.route(at, moe);
        // 3. rows sorted by expert
        let (ids, offsets) = (&moe.expert_ids, &mut moe.offsets);
        backend.dispatch(ids, &routing, offsets, &mut moe.token_of, &mut moe.slot_of);
        backend.gather_rows(h, &moe.token_of, MatMut::new(&mut moe.input, hidden));
        // 4. SwiGLU of each expert
        self.swiglu_of_experts(weights, moe);
        // 5. out += shared
        if let Some(shared) = &weights.shared {
            shared.forward(backend, h, &mut acts.mlp, out.reborrow());
        }
        // 6. out += weighted experts
        let output = Mat::new(&moe.output, hidden);
        backend.combine(output, &moe.slot_of, &moe.expert_weights, out);
    }

    /// The gradient of the residual stream, d.residual, from after the layer to its middle; adds
    /// the sequence-wise balance loss, whose value is returned.
    pub fn backward(
        &self,
        weights: &MlpWeights,
        at: &LayerOffsets,
        batch: &Batch,
        balance_loss_alpha: f32,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) -> f32 {
        let (backend, hidden) = (self.backend, self.config.hidden_size);
        let precision = self.numerics.precision;
        let mut balance_loss = 0.0;
        // 2. out = x + mlp(h)
        match (weights, &at.mlp) {
            (MlpWeights::Dense(weights), MlpOffsets::Dense(at)) => {
                let (h, dout) = (
                    Mat::new(&acts.mlp_input, hidden),
                    Mat::new(&d.residual, hidden),
                );
                let dh = MatMut::new(&mut d.normed, hidden);
                let (acts, d) = (&acts.mlp, &mut d.mlp);
                weights.backward(backend, at, precision, h, acts, dout, d, dh, grads);
            }
            (MlpWeights::Moe(weights), MlpOffsets::Moe(at)) => {
                balance_loss =
                    self.experts_backward(weights, at, batch, balance_loss_alpha, acts, d, grads);
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
        // 1. h = norm(x)
        backend.rmsnorm_backward(
            Mat::new(&acts.middle, hidden),
            &self.params[at.post_attention_layernorm.clone()],
            &acts.mlp_inv_rms,
            Mat::new(&d.normed, hidden),
            MatMut::new(&mut d.residual, hidden),
            true,
            &mut grads[at.post_attention_layernorm.clone()],
        );
        balance_loss
    }

    /// d.normed from d.residual; returns the balance loss.
    fn experts_backward(
        &self,
        weights: &MoeWeights,
        at: &MoeOffsets,
        batch: &Batch,
        balance_loss_alpha: f32,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) -> f32 {
        let (backend, hidden) = (self.backend, self.config.hidden_size);
        let (precision, moe) = (self.numerics.precision, &acts.moe);
        let h = Mat::new(&acts.mlp_input, hidden);
        let dout = Mat::new(&d.residual, hidden);
        // 6. out += weighted experts
        let output = Mat::new(&moe.output, hidden);
        let (weighted, to) = (&moe.expert_weights, MatMut::new(&mut d.moe_output, hidden));
        backend.combine_backward(
            dout,
            output,
            &moe.slot_of,
            weighted,
            to,
            &mut d.expert_weights,
        );
        // 5. out += shared
        if let Some(shared) = &weights.shared {
            let (acts, dmlp) = (&acts.mlp, &mut d.mlp);
            let dh = MatMut::new(&mut d.normed, hidden);
            shared.backward(
                backend, &at.shared, precision, h, acts, dout, dmlp, dh, grads,
            );
        } else {
            d.normed.fill(0.0);
        }
        // 4. SwiGLU of each expert
        self.swiglu_of_experts_backward(weights, at, moe, d, grads);
        // 3. rows sorted by expert
        let (dinput, dh) = (
            Mat::new(&d.moe_input, hidden),
            MatMut::new(&mut d.normed, hidden),
        );
        backend.scatter_add(dinput, &moe.slot_of, dh);
        // 2. scores, experts and their weights
        let balance_loss = self.route_backward(batch, balance_loss_alpha, moe, d);
        // 1. logits = W_gate h
        let dlogits = Mat::new(&d.logits, self.config.n_routed_experts);
        backend.matmul_tn(dlogits, h, Precision::F32, &mut grads[at.gate.clone()]);
        let dh = MatMut::new(&mut d.normed, hidden);
        backend.matmul_nn(dlogits, &weights.gate, dh, true);
        balance_loss
    }

    fn route(&self, at: &MoeOffsets, moe: &mut MoeActivations) {
        let routing = self.routing();
        self.backend.router(
            Mat::new(&moe.logits, routing.experts),
            &self.params[at.e_score_correction_bias.clone()],
            &routing,
            &mut moe.scores,
            &mut moe.expert_ids,
            &mut moe.expert_weights,
        );
    }

    /// d.logits from d.expert_weights and the balance loss, which is returned.
    fn route_backward(
        &self,
        batch: &Batch,
        balance_loss_alpha: f32,
        moe: &MoeActivations,
        d: &mut Gradients,
    ) -> f32 {
        let (backend, routing) = (self.backend, self.routing());
        let (scores, ids) = (&moe.scores, &moe.expert_ids);
        let (cu_seqlens, alpha) = (&batch.cu_seqlens, balance_loss_alpha);
        let balance_loss =
            backend.balance_loss(scores, ids, &routing, cu_seqlens, alpha, &mut d.scores);
        let (dweights, dscores) = (&d.expert_weights, &d.scores);
        backend.router_backward(scores, ids, dweights, &routing, dscores, &mut d.logits);
        balance_loss
    }

    /// output = W_down (silu(W_gate x) * W_up x) of each expert over its own rows.
    fn swiglu_of_experts(&self, weights: &MoeWeights, moe: &mut MoeActivations) {
        let (backend, config) = (self.backend, self.config);
        let (hidden, width) = (config.hidden_size, config.moe_intermediate_size);
        let (input, offsets) = (Mat::new(&moe.input, hidden), &moe.offsets);
        let SwigluActivations { gate, up, product } = &mut moe.swiglu;
        // 1. gate, up
        let to = MatMut::new(gate, width);
        backend.grouped_matmul_nt(input, &weights.experts_gate_proj, offsets, to, false);
        let to = MatMut::new(up, width);
        backend.grouped_matmul_nt(input, &weights.experts_up_proj, offsets, to, false);
        // 2. product = silu(gate) * up
        let to = MatMut::new(product, width);
        backend.swiglu(Mat::new(gate, width), Mat::new(up, width), to);
        // 3. output = W_down product
        let (product, to) = (
            Mat::new(product, width),
            MatMut::new(&mut moe.output, hidden),
        );
        backend.grouped_matmul_nt(product, &weights.experts_down_proj, offsets, to, false);
    }

    /// d.moe_input from d.moe_output.
    fn swiglu_of_experts_backward(
        &self,
        weights: &MoeWeights,
        at: &MoeOffsets,
        moe: &MoeActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) {
        let (backend, config, precision) = (self.backend, self.config, self.numerics.precision);
        let (hidden, width) = (config.hidden_size, config.moe_intermediate_size);
        let (input, offsets) = (Mat::new(&moe.input, hidden), &moe.offsets);
        let SwigluActivations { gate, up, product } = &moe.swiglu;
        // 3. output = W_down product
        let (dy, product) = (Mat::new(&d.moe_output, hidden), Mat::new(product, width));
        let to = &mut grads[at.experts_down_proj.clone()];
        backend.grouped_matmul_tn(dy, product, offsets, precision, to);
        let to = MatMut::new(&mut d.moe.product, width);
        backend.grouped_matmul_nn(dy, &weights.experts_down_proj, offsets, to, false);
        // 2. product = silu(gate) * up
        let (gate, up) = (Mat::new(gate, width), Mat::new(up, width));
        let (dgate, dup) = (
            MatMut::new(&mut d.moe.gate, width),
            MatMut::new(&mut d.moe.up, width),
        );
        backend.swiglu_backward(gate, up, Mat::new(&d.moe.product, width), dgate, dup);
        // 1. gate, up
        let (dgate, dup) = (Mat::new(&d.moe.gate, width), Mat::new(&d.moe.up, width));
        let to = &mut grads[at.experts_up_proj.clone()];
        backend.grouped_matmul_tn(dup, input, offsets, precision, to);
        let to = MatMut::new(&mut d.moe_input, hidden);
        backend.grouped_matmul_nn(dup, &weights.experts_up_proj, offsets, to, false);
        let to = &mut grads[at.experts_gate_proj.clone()];
        backend.grouped_matmul_tn(dgate, input, offsets, precision, to);
        let to = MatMut::new(&mut d.moe_input, hidden);
        backend.grouped_matmul_nn(dgate, &weights.experts_gate_proj, offsets, to, true);
    }
}

//! The feed-forward half of a layer: dense SwiGLU, or DeepSeekMoE (DeepSeek-V3, section 2.1.2) with
//! shared experts and, in V3, sigmoid scores and a bias that steers selection only.

use crate::activations::{Gradients, LayerActivations, MoeActivations, SwigluActivations};
use crate::batch::Batch;
use crate::block::{Maker, Pass, Role, pack};
use crate::config::{Config, Moe, ScoringFunc, TopkMethod};
use crate::error::Error;
use crate::layout::{MlpOffsets, MoeOffsets, SwigluOffsets};
use kernels::{
    Backend, ExpertGroups, GroupScore, Mat, MatMut, Precision, Routing, Scoring, Weight,
};
use std::ops::{Deref, Range};

/// The packed weights of one feed-forward half.
pub(crate) enum MlpWeights {
    Dense(SwigluWeights),
    Moe(MoeWeights),
}

pub(crate) struct SwigluWeights {
    gate_proj: Weight,
    up_proj: Weight,
    down_proj: Weight,
}

pub(crate) struct MoeWeights {
    gate: Weight,
    experts_gate_proj: Vec<Weight>,
    experts_up_proj: Vec<Weight>,
    experts_down_proj: Vec<Weight>,
    /// `None` without shared experts.
    shared: Option<SwigluWeights>,
}

impl MlpWeights {
    pub fn make(
        config: &Config,
        at: &MlpOffsets,
        maker: &mut dyn Maker,
    ) -> Result<MlpWeights, Error> {
        let hidden = config.hidden_size;
        match (at, &config.moe) {
            (MlpOffsets::Dense(at), _) => {
                Ok(MlpWeights::Dense(SwigluWeights::make(hidden, at, maker)?))
            }
            (MlpOffsets::Moe(at), Some(moe)) => {
                Ok(MlpWeights::Moe(MoeWeights::make(hidden, moe, at, maker)?))
            }
            _ => unreachable!("configuration and layout belong together"),
        }
    }

    /// Repacks after a change of the weights.
    pub fn pack(&mut self, backend: &dyn Backend, at: &MlpOffsets, p: &[f32]) {
        match (self, at) {
            (MlpWeights::Dense(weights), MlpOffsets::Dense(at)) => weights.pack(backend, at, p),
            (MlpWeights::Moe(weights), MlpOffsets::Moe(at)) => weights.pack(backend, at, p),
            _ => unreachable!("weights and layout come from one configuration"),
        }
    }
}

/// The parts of a block of experts' matrices, `each` long.
fn parts(range: &Range<usize>, each: usize) -> impl Iterator<Item = Range<usize>> {
    range
        .clone()
        .step_by(each)
        .map(move |start| start..start + each)
}

impl MoeWeights {
    fn make(
        hidden: usize,
        moe: &Moe,
        at: &MoeOffsets,
        maker: &mut dyn Maker,
    ) -> Result<MoeWeights, Error> {
        let width = moe.moe_intermediate_size;
        let gate = maker.weight(
            at.gate.clone(),
            [moe.n_routed_experts, hidden],
            Role::Router,
        )?;
        let mut experts = |range: &Range<usize>, shape: [usize; 2]| {
            parts(range, width * hidden)
                .map(|part| maker.weight(part, shape, Role::Projection))
                .collect::<Result<Vec<_>, _>>()
        };
        let experts_gate_proj = experts(&at.experts_gate_proj, [width, hidden])?;
        let experts_up_proj = experts(&at.experts_up_proj, [width, hidden])?;
        let experts_down_proj = experts(&at.experts_down_proj, [hidden, width])?;
        let shared = match &at.shared {
            Some(at) => Some(SwigluWeights::make(hidden, at, maker)?),
            None => None,
        };
        Ok(MoeWeights {
            gate,
            experts_gate_proj,
            experts_up_proj,
            experts_down_proj,
            shared,
        })
    }

    fn pack(&mut self, backend: &dyn Backend, at: &MoeOffsets, p: &[f32]) {
        pack(backend, p, at.gate.clone(), &mut self.gate);
        for (range, experts) in [
            (&at.experts_gate_proj, &mut self.experts_gate_proj),
            (&at.experts_up_proj, &mut self.experts_up_proj),
            (&at.experts_down_proj, &mut self.experts_down_proj),
        ] {
            for (part, expert) in parts(range, range.len() / experts.len()).zip(experts) {
                pack(backend, p, part, expert);
            }
        }
        if let (Some(shared), Some(at)) = (&mut self.shared, &at.shared) {
            shared.pack(backend, at, p);
        }
    }
}

impl SwigluWeights {
    fn make(
        hidden: usize,
        at: &SwigluOffsets,
        maker: &mut dyn Maker,
    ) -> Result<SwigluWeights, Error> {
        let width = at.gate_proj.len() / hidden;
        let mut new =
            |range: &Range<usize>, shape| maker.weight(range.clone(), shape, Role::Projection);
        Ok(SwigluWeights {
            gate_proj: new(&at.gate_proj, [width, hidden])?,
            up_proj: new(&at.up_proj, [width, hidden])?,
            down_proj: new(&at.down_proj, [hidden, width])?,
        })
    }

    fn pack(&mut self, backend: &dyn Backend, at: &SwigluOffsets, p: &[f32]) {
        for (range, packed) in [
            (&at.gate_proj, &mut self.gate_proj),
            (&at.up_proj, &mut self.up_proj),
            (&at.down_proj, &mut self.down_proj),
        ] {
            pack(backend, p, range.clone(), packed);
        }
    }

    /// out += W_down (silu(W_gate x) * W_up x).
    fn forward(&self, backend: &dyn Backend, x: Mat, acts: &mut SwigluActivations, out: MatMut) {
        let width = self.gate_proj.out_features();
        acts.resize(x.rows * width);
        let SwigluActivations { gate, up, product } = acts;
        // 1. gate, up
        let gate_up = &mut [
            (&self.gate_proj, MatMut::new(gate, width)),
            (&self.up_proj, MatMut::new(up, width)),
        ];
        backend.matmul_nt_each(x, gate_up);
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

/// The feed-forward halves of a pass's layers.
pub(crate) struct Mlp<'a>(pub &'a Pass<'a>);

impl<'a> Deref for Mlp<'a> {
    type Target = Pass<'a>;

    fn deref(&self) -> &Pass<'a> {
        self.0
    }
}

impl Moe {
    /// The router's rules.
    fn routing(&self) -> Routing {
        let score = match self.topk_method {
            TopkMethod::GroupLimitedGreedy => GroupScore::Greatest,
            TopkMethod::NoauxTc | TopkMethod::Greedy => GroupScore::SumOfTwoGreatest,
        };
        Routing {
            experts: self.n_routed_experts,
            top_k: self.num_experts_per_tok,
            scoring: match self.scoring_func {
                ScoringFunc::Softmax => Scoring::Softmax,
                ScoringFunc::Sigmoid => Scoring::Sigmoid,
            },
            groups: (self.n_group > 1).then_some(ExpertGroups {
                count: self.n_group,
                kept: self.topk_group,
                score,
            }),
            norm_topk_prob: self.norm_topk_prob,
            scale: self.routed_scaling_factor as f32,
        }
    }
}

impl Mlp<'_> {
    fn moe(&self) -> &Moe {
        self.config
            .moe
            .as_ref()
            .expect("a layer of experts has a mixture")
    }

    fn routing(&self) -> Routing {
        self.moe().routing()
    }

    /// out += mlp(acts.mlp_input).
    pub fn forward(
        &self,
        weights: &MlpWeights,
        at: &MlpOffsets,
        acts: &mut LayerActivations,
        out: &mut [f32],
    ) {
        let hidden = self.config.hidden_size;
        let out = MatMut::new(out, hidden);
        match (weights, at) {
            (MlpWeights::Dense(weights), _) => {
                let h = Mat::new(&acts.mlp_input, hidden);
                weights.forward(self.backend, h, &mut acts.mlp, out);
            }
            (MlpWeights::Moe(weights), MlpOffsets::Moe(at)) => {
                self.experts(weights, at, acts, out);
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
        let (backend, hidden) = (self.backend, self.config.hidden_size);
        let h = Mat::new(&acts.mlp_input, hidden);
        let moe = &mut acts.moe;
        moe.resize(hidden, self.moe(), h.rows);
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

    /// d.normed from d.residual, which stays; adds the sequence-wise balance loss, whose value is
    /// returned.
    pub fn backward(
        &self,
        weights: &MlpWeights,
        at: &MlpOffsets,
        batch: &Batch,
        balance_loss_alpha: f32,
        acts: &LayerActivations,
        d: &mut Gradients,
        grads: &mut [f32],
    ) -> f32 {
        match (weights, at) {
            (MlpWeights::Dense(weights), MlpOffsets::Dense(at)) => {
                let (hidden, precision) = (self.config.hidden_size, self.numerics.precision);
                let h = Mat::new(&acts.mlp_input, hidden);
                let dout = Mat::new(&d.residual, hidden);
                let dh = MatMut::new(&mut d.normed, hidden);
                let (acts, d) = (&acts.mlp, &mut d.mlp);
                weights.backward(self.backend, at, precision, h, acts, dout, d, dh, grads);
                0.0
            }
            (MlpWeights::Moe(weights), MlpOffsets::Moe(at)) => {
                self.experts_backward(weights, at, batch, balance_loss_alpha, acts, d, grads)
            }
            _ => unreachable!("weights and layout come from one configuration"),
        }
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
        if let (Some(shared), Some(at)) = (&weights.shared, &at.shared) {
            let (acts, dmlp) = (&acts.mlp, &mut d.mlp);
            let dh = MatMut::new(&mut d.normed, hidden);
            shared.backward(backend, at, precision, h, acts, dout, dmlp, dh, grads);
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
        let dlogits = Mat::new(&d.logits, self.moe().n_routed_experts);
        backend.matmul_tn(dlogits, h, Precision::F32, &mut grads[at.gate.clone()]);
        let dh = MatMut::new(&mut d.normed, hidden);
        backend.matmul_nn(dlogits, &weights.gate, dh, true);
        balance_loss
    }

    fn route(&self, at: &MoeOffsets, moe: &mut MoeActivations) {
        let routing = self.routing();
        self.backend.router(
            Mat::new(&moe.logits, routing.experts),
            self.params.get(&at.e_score_correction_bias),
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
        let backend = self.backend;
        let (hidden, width) = (self.config.hidden_size, self.moe().moe_intermediate_size);
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
        let (backend, precision) = (self.backend, self.numerics.precision);
        let (hidden, width) = (self.config.hidden_size, self.moe().moe_intermediate_size);
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

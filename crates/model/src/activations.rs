//! Everything a forward pass leaves behind, and room for the gradients of it: named, shaped, and
//! allocated once.

use crate::config::Config;

/// Buffers of one batch. They grow to the largest batch seen and are never allocated again.
pub struct Activations {
    /// Input of each layer, and the output of the last: `[tokens, hidden_size]` each. Two that
    /// alternate where nothing is kept for a backward.
    pub(crate) residual: Vec<Vec<f32>>,
    pub(crate) layers: Vec<LayerActivations>,
    /// After the final norm, `[tokens, hidden_size]`.
    pub(crate) hidden: Vec<f32>,
    pub(crate) inv_rms: Vec<f32>,
    /// Rows of `hidden` handed to the head.
    pub(crate) head_rows: Vec<f32>,
    /// Logits of a chunk of rows.
    pub(crate) logits: Vec<f32>,
    pub(crate) gradients: Option<Gradients>,
    keeps_layers: bool,
    tokens: usize,
}

/// What one layer leaves behind; T tokens, H heads.
#[derive(Default)]
pub(crate) struct LayerActivations {
    /// After input_layernorm, `[T, hidden_size]`.
    pub attention_input: Vec<f32>,
    pub attention_inv_rms: Vec<f32>,
    /// `[T, q_lora_rank]` before and after its norm; empty without q_lora_rank.
    pub q_a: Vec<f32>,
    pub q_a_inv_rms: Vec<f32>,
    pub q_a_normed: Vec<f32>,
    /// `[T, H * qk_head_dim]`, rotated.
    pub q: Vec<f32>,
    /// `[T, kv_lora_rank + qk_rope_head_dim]` as projected.
    pub kv_a: Vec<f32>,
    pub kv_a_inv_rms: Vec<f32>,
    /// The same, normed and rotated: what the cache holds.
    pub latent: Vec<f32>,
    /// Queries against the latent, `[T, H * (kv_lora_rank + qk_rope_head_dim)]`.
    pub q_latent: Vec<f32>,
    /// Weighted latents, `[T, H * kv_lora_rank]`.
    pub out_latent: Vec<f32>,
    pub attention_stats: Vec<f32>,
    /// `[T, H * v_head_dim]`
    pub attention_out: Vec<f32>,
    /// The residual stream between attention and MLP, `[T, hidden_size]`.
    pub middle: Vec<f32>,
    /// After post_attention_layernorm, `[T, hidden_size]`.
    pub mlp_input: Vec<f32>,
    pub mlp_inv_rms: Vec<f32>,
    /// The dense MLP, or the shared experts.
    pub mlp: SwigluActivations,
    pub moe: MoeActivations,
}

/// `[rows, width]` each.
#[derive(Default)]
pub(crate) struct SwigluActivations {
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub product: Vec<f32>,
}

/// Routing of T tokens to k of E experts; S = T k rows sorted by expert.
#[derive(Default)]
pub(crate) struct MoeActivations {
    /// `[T, E]`
    pub logits: Vec<f32>,
    pub scores: Vec<f32>,
    /// `[T, k]`
    pub expert_ids: Vec<u32>,
    pub expert_weights: Vec<f32>,
    /// `[E + 1]`
    pub offsets: Vec<u32>,
    /// `[S]`
    pub token_of: Vec<u32>,
    /// `[T, k]`
    pub slot_of: Vec<u32>,
    /// `[S, hidden_size]`
    pub input: Vec<f32>,
    /// `[S, moe_intermediate_size]`
    pub swiglu: SwigluActivations,
    /// `[S, hidden_size]`
    pub output: Vec<f32>,
}

/// Gradients of activations: one set, used by layer after layer. Names as above.
#[derive(Default)]
pub(crate) struct Gradients {
    pub residual: Vec<f32>,
    pub normed: Vec<f32>,
    pub head_rows: Vec<f32>,
    pub q_a: Vec<f32>,
    pub q_a_normed: Vec<f32>,
    pub q: Vec<f32>,
    pub kv_a: Vec<f32>,
    pub latent: Vec<f32>,
    pub values: Vec<f32>,
    pub q_latent: Vec<f32>,
    pub out_latent: Vec<f32>,
    pub attention_out: Vec<f32>,
    pub mlp: SwigluActivations,
    pub moe: SwigluActivations,
    pub moe_input: Vec<f32>,
    pub moe_output: Vec<f32>,
    pub expert_weights: Vec<f32>,
    pub scores: Vec<f32>,
    pub logits: Vec<f32>,
}

impl Activations {
    /// Keeps every layer, so that a backward can follow.
    pub fn new(config: &Config) -> Activations {
        Activations::keeping(config.num_hidden_layers, config.num_hidden_layers + 1, true)
    }

    /// Keeps one layer at a time: for generating and scoring.
    pub fn for_inference() -> Activations {
        Activations::keeping(1, 2, false)
    }

    fn keeping(layers: usize, residuals: usize, keeps_layers: bool) -> Activations {
        Activations {
            residual: vec![Vec::new(); residuals],
            layers: (0..layers).map(|_| LayerActivations::default()).collect(),
            hidden: Vec::new(),
            inv_rms: Vec::new(),
            head_rows: Vec::new(),
            logits: Vec::new(),
            gradients: keeps_layers.then(Gradients::default),
            keeps_layers,
            tokens: 0,
        }
    }

    /// Tokens of the last forward.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn keeps_layers(&self) -> bool {
        self.keeps_layers
    }

    /// Shapes every buffer for a batch.
    pub(crate) fn resize(&mut self, config: &Config, tokens: usize) {
        self.tokens = tokens;
        let hidden = tokens * config.hidden_size;
        self.residual.iter_mut().for_each(|r| r.resize(hidden, 0.0));
        self.hidden.resize(hidden, 0.0);
        self.inv_rms.resize(tokens, 0.0);
        self.layers
            .iter_mut()
            .for_each(|layer| layer.resize(config, tokens));
    }
}

impl LayerActivations {
    fn resize(&mut self, config: &Config, tokens: usize) {
        let heads = config.num_attention_heads;
        let latent = config.kv_lora_rank + config.qk_rope_head_dim;
        let hidden = config.hidden_size;
        let q_lora_rank = config.q_lora_rank.unwrap_or(0);
        for (buffer, width) in [
            (&mut self.attention_input, hidden),
            (&mut self.attention_inv_rms, 1),
            (&mut self.q_a, q_lora_rank),
            (&mut self.q_a_inv_rms, 1),
            (&mut self.q_a_normed, q_lora_rank),
            (&mut self.q, heads * config.qk_head_dim()),
            (&mut self.kv_a, latent),
            (&mut self.kv_a_inv_rms, 1),
            (&mut self.latent, latent),
            (&mut self.q_latent, heads * latent),
            (&mut self.out_latent, heads * config.kv_lora_rank),
            (&mut self.attention_stats, heads * 2),
            (&mut self.attention_out, heads * config.v_head_dim),
            (&mut self.middle, hidden),
            (&mut self.mlp_input, hidden),
            (&mut self.mlp_inv_rms, 1),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
    }
}

impl SwigluActivations {
    pub fn resize(&mut self, elements: usize) {
        for buffer in [&mut self.gate, &mut self.up, &mut self.product] {
            buffer.resize(elements, 0.0);
        }
    }
}

impl MoeActivations {
    pub fn resize(&mut self, config: &Config, tokens: usize) {
        let experts = config.n_routed_experts;
        let sorted = tokens * config.num_experts_per_tok;
        self.logits.resize(tokens * experts, 0.0);
        self.scores.resize(tokens * experts, 0.0);
        self.expert_ids.resize(sorted, 0);
        self.expert_weights.resize(sorted, 0.0);
        self.offsets.resize(experts + 1, 0);
        self.token_of.resize(sorted, 0);
        self.slot_of.resize(sorted, 0);
        self.input.resize(sorted * config.hidden_size, 0.0);
        self.swiglu.resize(sorted * config.moe_intermediate_size);
        self.output.resize(sorted * config.hidden_size, 0.0);
    }
}

impl Gradients {
    pub fn resize(&mut self, config: &Config, tokens: usize, head_rows: usize) {
        let heads = config.num_attention_heads;
        let latent = config.kv_lora_rank + config.qk_rope_head_dim;
        let hidden = config.hidden_size;
        let q_lora_rank = config.q_lora_rank.unwrap_or(0);
        for (buffer, width) in [
            (&mut self.residual, hidden),
            (&mut self.normed, hidden),
            (&mut self.q_a, q_lora_rank),
            (&mut self.q_a_normed, q_lora_rank),
            (&mut self.q, heads * config.qk_head_dim()),
            (&mut self.kv_a, latent),
            (&mut self.latent, latent),
            (&mut self.values, config.kv_lora_rank),
            (&mut self.q_latent, heads * latent),
            (&mut self.out_latent, heads * config.kv_lora_rank),
            (&mut self.attention_out, heads * config.v_head_dim),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
        self.head_rows.resize(head_rows * hidden, 0.0);
        if config.num_moe_layers() > 0 {
            let sorted = tokens * config.num_experts_per_tok;
            self.moe.resize(sorted * config.moe_intermediate_size);
            self.moe_input.resize(sorted * hidden, 0.0);
            self.moe_output.resize(sorted * hidden, 0.0);
            self.expert_weights.resize(sorted, 0.0);
            self.scores.resize(tokens * config.n_routed_experts, 0.0);
            self.logits.resize(tokens * config.n_routed_experts, 0.0);
        }
    }
}

//! Everything a forward pass leaves behind, and room for the gradients of it: named, shaped, and
//! allocated once.

use crate::config::{Attention, Config, Moe};
use kernels::RopeAngles;

/// Buffers of one batch. They grow to the largest batch seen and are never allocated again.
pub struct Activations {
    /// Of the batch's positions.
    pub(crate) angles: RopeAngles,
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
    pub(crate) mtp: MtpActivations,
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
    /// `[T, H * qk_head_dim]` (or `head_dim`), rotated.
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
    /// Of grouped heads, K of them: `[T, K * head_dim]`, keys rotated.
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// Queries and keys before their norms; empty without `q_norm` and `k_norm`.
    pub q_raw: Vec<f32>,
    pub k_raw: Vec<f32>,
    /// `[T * H]` and `[T * K]`
    pub q_inv_rms: Vec<f32>,
    pub k_inv_rms: Vec<f32>,
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

/// What multi-token prediction leaves behind.
#[derive(Default)]
pub(crate) struct MtpActivations {
    /// Embeddings of the next tokens, `[T, hidden_size]`.
    pub embedded: Vec<f32>,
    pub embedded_inv_rms: Vec<f32>,
    pub hidden_inv_rms: Vec<f32>,
    /// Both, normed, side by side: `[T, 2 hidden_size]`.
    pub joined: Vec<f32>,
    /// Input and output of the block, `[T, hidden_size]`.
    pub residual: [Vec<f32>; 2],
    pub layer: LayerActivations,
    /// After the block's norm, `[T, hidden_size]`.
    pub hidden: Vec<f32>,
    pub inv_rms: Vec<f32>,
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
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub q_raw: Vec<f32>,
    pub k_raw: Vec<f32>,
    pub attention_out: Vec<f32>,
    /// Of multi-token prediction: the joined norms, and what they say about the hidden states.
    pub joined: Vec<f32>,
    pub hidden: Vec<f32>,
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
            angles: RopeAngles::default(),
            residual: vec![Vec::new(); residuals],
            layers: (0..layers).map(|_| LayerActivations::default()).collect(),
            hidden: Vec::new(),
            inv_rms: Vec::new(),
            head_rows: Vec::new(),
            logits: Vec::new(),
            mtp: MtpActivations::default(),
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
    pub fn resize(&mut self, config: &Config, tokens: usize) {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        for (buffer, width) in [
            (&mut self.attention_input, hidden),
            (&mut self.attention_inv_rms, 1),
            (&mut self.attention_stats, heads * 2),
            (&mut self.middle, hidden),
            (&mut self.mlp_input, hidden),
            (&mut self.mlp_inv_rms, 1),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
        let widths = AttentionWidths::new(config);
        for (buffer, width) in [
            (&mut self.q_a, widths.q_lora_rank),
            (&mut self.q_a_inv_rms, 1),
            (&mut self.q_a_normed, widths.q_lora_rank),
            (&mut self.q, widths.q),
            (&mut self.kv_a, widths.latent),
            (&mut self.kv_a_inv_rms, 1),
            (&mut self.latent, widths.latent),
            (&mut self.q_latent, heads * widths.latent),
            (&mut self.out_latent, heads * widths.kv_lora_rank),
            (&mut self.k, widths.kv),
            (&mut self.v, widths.kv),
            (&mut self.q_raw, widths.q_raw),
            (&mut self.k_raw, widths.k_raw),
            (&mut self.q_inv_rms, heads),
            (&mut self.k_inv_rms, widths.kv_heads),
            (&mut self.attention_out, widths.out),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
    }
}

/// Widths of what attention leaves behind; 0 for what the model's kind of attention lacks.
#[derive(Default)]
struct AttentionWidths {
    q: usize,
    out: usize,
    q_lora_rank: usize,
    kv_lora_rank: usize,
    latent: usize,
    kv_heads: usize,
    kv: usize,
    q_raw: usize,
    k_raw: usize,
}

impl AttentionWidths {
    fn new(config: &Config) -> AttentionWidths {
        let heads = config.num_attention_heads;
        match &config.attention {
            Attention::Mla(mla) => AttentionWidths {
                q: heads * mla.qk_head_dim(),
                out: heads * mla.v_head_dim,
                q_lora_rank: mla.q_lora_rank.unwrap_or(0),
                kv_lora_rank: mla.kv_lora_rank,
                latent: mla.latent_width(),
                ..AttentionWidths::default()
            },
            Attention::Gqa(gqa) => {
                let (kv_heads, dim) = (gqa.num_key_value_heads, gqa.head_dim);
                let [q, kv] = [heads * dim, kv_heads * dim];
                let [q_raw, k_raw] = if gqa.qk_norm { [q, kv] } else { [0, 0] };
                AttentionWidths {
                    q,
                    out: q,
                    kv_heads,
                    kv,
                    q_raw,
                    k_raw,
                    ..AttentionWidths::default()
                }
            }
        }
    }
}

impl MtpActivations {
    pub fn resize(&mut self, config: &Config, tokens: usize) {
        let hidden = config.hidden_size;
        let [before, after] = &mut self.residual;
        for (buffer, width) in [
            (&mut self.embedded, hidden),
            (&mut self.embedded_inv_rms, 1),
            (&mut self.hidden_inv_rms, 1),
            (&mut self.joined, 2 * hidden),
            (before, hidden),
            (after, hidden),
            (&mut self.hidden, hidden),
            (&mut self.inv_rms, 1),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
        self.layer.resize(config, tokens);
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
    pub fn resize(&mut self, hidden_size: usize, moe: &Moe, tokens: usize) {
        let experts = moe.n_routed_experts;
        let sorted = tokens * moe.num_experts_per_tok;
        self.logits.resize(tokens * experts, 0.0);
        self.scores.resize(tokens * experts, 0.0);
        self.expert_ids.resize(sorted, 0);
        self.expert_weights.resize(sorted, 0.0);
        self.offsets.resize(experts + 1, 0);
        self.token_of.resize(sorted, 0);
        self.slot_of.resize(sorted, 0);
        self.input.resize(sorted * hidden_size, 0.0);
        self.swiglu.resize(sorted * moe.moe_intermediate_size);
        self.output.resize(sorted * hidden_size, 0.0);
    }
}

impl Gradients {
    pub fn resize(&mut self, config: &Config, tokens: usize) {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let predicts_more = config.num_nextn_predict_layers.min(1);
        let widths = AttentionWidths::new(config);
        for (buffer, width) in [
            (&mut self.residual, hidden),
            (&mut self.normed, hidden),
            (&mut self.q_a, widths.q_lora_rank),
            (&mut self.q_a_normed, widths.q_lora_rank),
            (&mut self.q, widths.q),
            (&mut self.kv_a, widths.latent),
            (&mut self.latent, widths.latent),
            (&mut self.values, widths.kv_lora_rank),
            (&mut self.q_latent, heads * widths.latent),
            (&mut self.out_latent, heads * widths.kv_lora_rank),
            (&mut self.k, widths.kv),
            (&mut self.v, widths.kv),
            (&mut self.q_raw, widths.q_raw),
            (&mut self.k_raw, widths.k_raw),
            (&mut self.attention_out, widths.out),
            (&mut self.joined, predicts_more * 2 * hidden),
            (&mut self.hidden, predicts_more * hidden),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
        if let Some(moe) = &config.moe {
            let sorted = tokens * moe.num_experts_per_tok;
            self.moe.resize(sorted * moe.moe_intermediate_size);
            self.moe_input.resize(sorted * hidden, 0.0);
            self.moe_output.resize(sorted * hidden, 0.0);
            self.expert_weights.resize(sorted, 0.0);
            self.scores.resize(tokens * moe.n_routed_experts, 0.0);
            self.logits.resize(tokens * moe.n_routed_experts, 0.0);
        }
    }
}

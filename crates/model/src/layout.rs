//! Where each weight lives: one flat buffer of `f32`, and the Hugging Face name of every part.
//!
//! One buffer makes the optimizer, the gradient norm, a checkpoint and a hash each a single walk.
//! Gradients and optimizer moments use a second buffer of the same layout, `trainable_len` long.

use std::ops::Range;

use crate::config::Config;

/// Every tensor starts at a multiple of this many floats: one cache line, one AVX-512 register.
const ALIGNMENT: usize = 16;

/// One tensor of the checkpoint and its place in the flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// The Hugging Face name, such as `model.layers.0.self_attn.o_proj.weight`.
    pub name: String,
    /// Row-major; a matrix is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// First float of the tensor in the flat buffer.
    pub offset: usize,
    /// Product of `shape`.
    pub len: usize,
    /// False for `e_score_correction_bias`, which the balancing rule moves and no gradient does.
    pub trainable: bool,
}

impl TensorSpec {
    /// The tensor's place in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// The flat buffer of a model: all tensors in order, and typed access for the forward pass.
///
/// Trainable tensors come first, in the order in which the forward pass uses them, then the router
/// biases. The experts of a layer lie side by side by kind without padding, so that all
/// `gate_proj` of a layer are one `[n_routed_experts, moe_intermediate_size, hidden_size]` block.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Ordered by offset.
    pub tensors: Vec<TensorSpec>,
    /// `[vocab_size, hidden_size]`
    pub embed_tokens: Range<usize>,
    pub layers: Vec<LayerOffsets>,
    /// `[hidden_size]`
    pub norm: Range<usize>,
    /// `[vocab_size, hidden_size]`
    pub lm_head: Range<usize>,
    /// Floats before the first buffer that is not trained, padding included.
    pub trainable_len: usize,
    /// Floats in the whole buffer, padding included. Padding is zero and stays zero.
    pub total_len: usize,
}

/// The weights of one decoder layer as ranges of the flat buffer.
#[derive(Clone, Debug)]
pub struct LayerOffsets {
    /// `[hidden_size]`
    pub input_layernorm: Range<usize>,
    pub query: QueryOffsets,
    /// `[kv_lora_rank + qk_rope_head_dim, hidden_size]`
    pub kv_a_proj_with_mqa: Range<usize>,
    /// `[kv_lora_rank]`
    pub kv_a_layernorm: Range<usize>,
    /// `[num_attention_heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]`
    pub kv_b_proj: Range<usize>,
    /// `[hidden_size, num_attention_heads * v_head_dim]`
    pub o_proj: Range<usize>,
    /// `[hidden_size]`
    pub post_attention_layernorm: Range<usize>,
    pub mlp: MlpOffsets,
}

/// The query projection, with and without `q_lora_rank`.
#[derive(Clone, Debug)]
pub enum QueryOffsets {
    Direct {
        /// `[num_attention_heads * qk_head_dim, hidden_size]`
        q_proj: Range<usize>,
    },
    LowRank {
        /// `[q_lora_rank, hidden_size]`
        q_a_proj: Range<usize>,
        /// `[q_lora_rank]`
        q_a_layernorm: Range<usize>,
        /// `[num_attention_heads * qk_head_dim, q_lora_rank]`
        q_b_proj: Range<usize>,
    },
}

#[derive(Clone, Debug)]
pub enum MlpOffsets {
    /// Width `intermediate_size`.
    Dense(SwigluOffsets),
    Moe(MoeOffsets),
}

/// A SwiGLU block of some `width`.
#[derive(Clone, Debug)]
pub struct SwigluOffsets {
    /// `[width, hidden_size]`
    pub gate_proj: Range<usize>,
    /// `[width, hidden_size]`
    pub up_proj: Range<usize>,
    /// `[hidden_size, width]`
    pub down_proj: Range<usize>,
}

#[derive(Clone, Debug)]
pub struct MoeOffsets {
    /// The router, `[n_routed_experts, hidden_size]`.
    pub gate: Range<usize>,
    /// `[n_routed_experts]`; beyond `trainable_len`.
    pub e_score_correction_bias: Range<usize>,
    /// `[n_routed_experts, moe_intermediate_size, hidden_size]`
    pub experts_gate_proj: Range<usize>,
    /// `[n_routed_experts, moe_intermediate_size, hidden_size]`
    pub experts_up_proj: Range<usize>,
    /// `[n_routed_experts, hidden_size, moe_intermediate_size]`
    pub experts_down_proj: Range<usize>,
    /// All shared experts as one block of width `moe_intermediate_size * n_shared_experts`.
    pub shared: SwigluOffsets,
}

impl Layout {
    /// Lays out the model of `config`.
    ///
    /// # Panics
    /// If `config` does not pass [`Config::validate`], which also bounds the number of tensors.
    pub fn new(config: &Config) -> Layout {
        if let Err(error) = config.validate() {
            panic!("a layout needs a valid configuration: {error}");
        }
        let mut builder = Builder {
            tensors: Vec::new(),
            end: 0,
        };
        let vocabulary = [config.vocab_size, config.hidden_size];
        let embed_tokens = builder.push("model.embed_tokens.weight".to_string(), &vocabulary);
        let mut layers: Vec<LayerOffsets> = (0..config.num_hidden_layers)
            .map(|layer| builder.layer(config, layer))
            .collect();
        let norm = builder.push("model.norm.weight".to_string(), &[config.hidden_size]);
        let lm_head = builder.push("lm_head.weight".to_string(), &vocabulary);
        let trainable_len = builder.align();
        builder.router_biases(config, &mut layers);
        let total_len = builder.align();
        let tensors = builder.tensors;
        Layout {
            tensors,
            embed_tokens,
            layers,
            norm,
            lm_head,
            trainable_len,
            total_len,
        }
    }
}

struct Builder {
    tensors: Vec<TensorSpec>,
    end: usize,
}

impl Builder {
    fn align(&mut self) -> usize {
        self.end = self.end.next_multiple_of(ALIGNMENT);
        self.end
    }

    fn push(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        self.align();
        self.push_unaligned(name, shape)
    }

    fn push_unaligned(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        let (offset, len) = (self.end, shape.iter().product());
        self.tensors.push(TensorSpec {
            name,
            shape: shape.to_vec(),
            offset,
            len,
            trainable: true,
        });
        self.end = offset + len;
        offset..self.end
    }

    fn layer(&mut self, config: &Config, layer: usize) -> LayerOffsets {
        let hidden = config.hidden_size;
        let heads = config.num_attention_heads;
        let prefix = format!("model.layers.{layer}");
        let attention = format!("{prefix}.self_attn");
        let input_layernorm = self.push(format!("{prefix}.input_layernorm.weight"), &[hidden]);
        let query = self.query(config, &attention);
        let latent = config.kv_lora_rank + config.qk_rope_head_dim;
        let kv_a_proj_with_mqa = self.push(
            format!("{attention}.kv_a_proj_with_mqa.weight"),
            &[latent, hidden],
        );
        let kv_a_layernorm = self.push(
            format!("{attention}.kv_a_layernorm.weight"),
            &[config.kv_lora_rank],
        );
        let expanded = heads * (config.qk_nope_head_dim + config.v_head_dim);
        let kv_b_proj = self.push(
            format!("{attention}.kv_b_proj.weight"),
            &[expanded, config.kv_lora_rank],
        );
        let o_proj = self.push(
            format!("{attention}.o_proj.weight"),
            &[hidden, heads * config.v_head_dim],
        );
        let post_attention_layernorm = self.push(
            format!("{prefix}.post_attention_layernorm.weight"),
            &[hidden],
        );
        let mlp = self.mlp(config, layer, &format!("{prefix}.mlp"));
        LayerOffsets {
            input_layernorm,
            query,
            kv_a_proj_with_mqa,
            kv_a_layernorm,
            kv_b_proj,
            o_proj,
            post_attention_layernorm,
            mlp,
        }
    }

    fn query(&mut self, config: &Config, attention: &str) -> QueryOffsets {
        let queries = config.num_attention_heads * config.qk_head_dim();
        let Some(rank) = config.q_lora_rank else {
            let shape = [queries, config.hidden_size];
            return QueryOffsets::Direct {
                q_proj: self.push(format!("{attention}.q_proj.weight"), &shape),
            };
        };
        QueryOffsets::LowRank {
            q_a_proj: self.push(
                format!("{attention}.q_a_proj.weight"),
                &[rank, config.hidden_size],
            ),
            q_a_layernorm: self.push(format!("{attention}.q_a_layernorm.weight"), &[rank]),
            q_b_proj: self.push(format!("{attention}.q_b_proj.weight"), &[queries, rank]),
        }
    }

    fn mlp(&mut self, config: &Config, layer: usize, mlp: &str) -> MlpOffsets {
        let hidden = config.hidden_size;
        if !config.is_moe_layer(layer) {
            return MlpOffsets::Dense(self.swiglu(mlp, hidden, config.intermediate_size));
        }
        let width = config.moe_intermediate_size;
        let gate = self.push(
            format!("{mlp}.gate.weight"),
            &[config.n_routed_experts, hidden],
        );
        let experts_gate_proj = self.experts(config, mlp, "gate_proj", [width, hidden]);
        let experts_up_proj = self.experts(config, mlp, "up_proj", [width, hidden]);
        let experts_down_proj = self.experts(config, mlp, "down_proj", [hidden, width]);
        let shared_experts = format!("{mlp}.shared_experts");
        MlpOffsets::Moe(MoeOffsets {
            gate,
            // Placed by `router_biases`, after all that is trained.
            e_score_correction_bias: 0..0,
            experts_gate_proj,
            experts_up_proj,
            experts_down_proj,
            shared: self.swiglu(&shared_experts, hidden, width * config.n_shared_experts),
        })
    }

    fn swiglu(&mut self, prefix: &str, hidden: usize, width: usize) -> SwigluOffsets {
        SwigluOffsets {
            gate_proj: self.push(format!("{prefix}.gate_proj.weight"), &[width, hidden]),
            up_proj: self.push(format!("{prefix}.up_proj.weight"), &[width, hidden]),
            down_proj: self.push(format!("{prefix}.down_proj.weight"), &[hidden, width]),
        }
    }

    /// One kind of matrix of all experts, side by side.
    fn experts(
        &mut self,
        config: &Config,
        mlp: &str,
        kind: &str,
        shape: [usize; 2],
    ) -> Range<usize> {
        let start = self.align();
        for expert in 0..config.n_routed_experts {
            self.push_unaligned(format!("{mlp}.experts.{expert}.{kind}.weight"), &shape);
        }
        start..self.end
    }

    fn router_biases(&mut self, config: &Config, layers: &mut [LayerOffsets]) {
        for (layer, offsets) in layers.iter_mut().enumerate() {
            if let MlpOffsets::Moe(moe) = &mut offsets.mlp {
                let name = format!("model.layers.{layer}.mlp.gate.e_score_correction_bias");
                moe.e_score_correction_bias = self.push(name, &[config.n_routed_experts]);
                let bias = self.tensors.last_mut().expect("a tensor was just pushed");
                bias.trainable = false;
            }
        }
    }
}

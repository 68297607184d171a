//! Where each weight lives: one flat buffer of `f32`, and the Hugging Face name of every part.
//!
//! One buffer makes the optimizer, the gradient norm, a checkpoint and a hash each a single walk.
//! Gradients and optimizer moments use a second buffer of the same layout, `trainable_len` long.

use std::ops::Range;

use crate::config::{Attention, Config, Gqa, Mla, Moe};
use crate::mtp;

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
    /// `[vocab_size, hidden_size]`; that of `embed_tokens` where they are tied.
    pub lm_head: Range<usize>,
    /// Multi-token prediction, where there is any.
    pub mtp: Option<MtpOffsets>,
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
    pub attention: AttentionOffsets,
    /// `[hidden_size]`
    pub post_attention_layernorm: Range<usize>,
    pub mlp: MlpOffsets,
}

#[derive(Clone, Debug)]
pub enum AttentionOffsets {
    Mla(MlaOffsets),
    Gqa(GqaOffsets),
}

#[derive(Clone, Debug)]
pub struct MlaOffsets {
    pub query: QueryOffsets,
    /// `[kv_lora_rank + qk_rope_head_dim, hidden_size]`
    pub kv_a_proj_with_mqa: Range<usize>,
    /// `[kv_lora_rank]`
    pub kv_a_layernorm: Range<usize>,
    /// `[num_attention_heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]`
    pub kv_b_proj: Range<usize>,
    /// `[hidden_size, num_attention_heads * v_head_dim]`
    pub o_proj: Range<usize>,
}

#[derive(Clone, Debug)]
pub struct GqaOffsets {
    /// `[num_attention_heads * head_dim, hidden_size]`
    pub q_proj: LinearOffsets,
    /// `[num_key_value_heads * head_dim, hidden_size]`
    pub k_proj: LinearOffsets,
    /// `[num_key_value_heads * head_dim, hidden_size]`
    pub v_proj: LinearOffsets,
    /// `[hidden_size, num_attention_heads * head_dim]`
    pub o_proj: LinearOffsets,
    /// `q_norm` and `k_norm`, `[head_dim]` each.
    pub qk_norm: Option<[Range<usize>; 2]>,
}

/// A projection, with a bias or without.
#[derive(Clone, Debug)]
pub struct LinearOffsets {
    pub weight: Range<usize>,
    pub bias: Option<Range<usize>>,
}

/// Multi-token prediction of depth 1 (DeepSeek-V3, section 2.2): layer `num_hidden_layers` of a
/// checkpoint. Its embedding and head are the model's own.
#[derive(Clone, Debug)]
pub struct MtpOffsets {
    /// Of the next token's embedding, `[hidden_size]`.
    pub enorm: Range<usize>,
    /// Of the hidden state, `[hidden_size]`.
    pub hnorm: Range<usize>,
    /// `[hidden_size, 2 hidden_size]`, the embedding's columns first.
    pub eh_proj: Range<usize>,
    pub layer: LayerOffsets,
    /// `shared_head.norm`, `[hidden_size]`.
    pub norm: Range<usize>,
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
    /// `[n_routed_experts]`, beyond `trainable_len`; empty where nothing corrects the scores.
    pub e_score_correction_bias: Range<usize>,
    /// `[n_routed_experts, moe_intermediate_size, hidden_size]`
    pub experts_gate_proj: Range<usize>,
    /// `[n_routed_experts, moe_intermediate_size, hidden_size]`
    pub experts_up_proj: Range<usize>,
    /// `[n_routed_experts, hidden_size, moe_intermediate_size]`
    pub experts_down_proj: Range<usize>,
    /// All shared experts as one block of width `moe_intermediate_size * n_shared_experts`.
    pub shared: Option<SwigluOffsets>,
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
        let lm_head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => builder.push("lm_head.weight".to_string(), &vocabulary),
        };
        let mut mtp = (config.num_nextn_predict_layers > 0).then(|| builder.mtp(config));
        let trainable_len = builder.align();
        let blocks = layers
            .iter_mut()
            .chain(mtp.as_mut().map(|mtp| &mut mtp.layer));
        for (layer, offsets) in blocks.enumerate() {
            builder.router_bias(config, layer, offsets);
        }
        let total_len = builder.align();
        let tensors = builder.tensors;
        Layout {
            tensors,
            embed_tokens,
            layers,
            norm,
            lm_head,
            mtp,
            trainable_len,
            total_len,
        }
    }

    /// Every block, the one of multi-token prediction last.
    pub fn blocks(&self) -> impl Iterator<Item = &LayerOffsets> {
        self.layers
            .iter()
            .chain(self.mtp.as_ref().map(|mtp| &mtp.layer))
    }

    /// What a checkpoint file holds, by name: every tensor, then embedding and head once more for
    /// multi-token prediction, as DeepSeek's checkpoints have them.
    pub(crate) fn written(&self) -> impl Iterator<Item = (String, &TensorSpec)> {
        let own = self.tensors.iter().map(|spec| (spec.name.clone(), spec));
        let repeats = usize::from(self.mtp.is_some());
        let names = mtp::shared_copies(self.layers.len()).into_iter();
        let copies = names.zip([&self.embed_tokens, &self.lm_head]);
        let copies = copies.map(|(name, range)| (name, self.tensor_at(range)));
        own.chain(copies.take(2 * repeats))
    }

    /// The tensor that a range of the flat buffer belongs to.
    ///
    /// # Panics
    /// If none does.
    pub fn tensor_at(&self, range: &Range<usize>) -> &TensorSpec {
        let after = self
            .tensors
            .partition_point(|spec| spec.offset <= range.start);
        let spec = &self.tensors[after - 1];
        assert!(
            range.end <= spec.offset + spec.len,
            "{range:?} in {}",
            spec.name
        );
        spec
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
        let prefix = format!("model.layers.{layer}");
        let input_layernorm = self.push(format!("{prefix}.input_layernorm.weight"), &[hidden]);
        let self_attn = format!("{prefix}.self_attn");
        let attention = match &config.attention {
            Attention::Mla(mla) => AttentionOffsets::Mla(self.mla(config, mla, &self_attn)),
            Attention::Gqa(gqa) => AttentionOffsets::Gqa(self.gqa(config, gqa, &self_attn)),
        };
        let post_attention_layernorm = self.push(
            format!("{prefix}.post_attention_layernorm.weight"),
            &[hidden],
        );
        let mlp = self.mlp(config, layer, &format!("{prefix}.mlp"));
        LayerOffsets {
            input_layernorm,
            attention,
            post_attention_layernorm,
            mlp,
        }
    }

    fn mla(&mut self, config: &Config, mla: &Mla, at: &str) -> MlaOffsets {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let query = self.query(config, mla, at);
        let latent = [mla.latent_width(), hidden];
        let kv_a_proj_with_mqa = self.push(format!("{at}.kv_a_proj_with_mqa.weight"), &latent);
        let rank = mla.kv_lora_rank;
        let kv_a_layernorm = self.push(format!("{at}.kv_a_layernorm.weight"), &[rank]);
        let expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim);
        let kv_b_proj = self.push(format!("{at}.kv_b_proj.weight"), &[expanded, rank]);
        let out = [hidden, heads * mla.v_head_dim];
        let o_proj = self.push(format!("{at}.o_proj.weight"), &out);
        MlaOffsets {
            query,
            kv_a_proj_with_mqa,
            kv_a_layernorm,
            kv_b_proj,
            o_proj,
        }
    }

    fn query(&mut self, config: &Config, mla: &Mla, attention: &str) -> QueryOffsets {
        let queries = config.num_attention_heads * mla.qk_head_dim();
        let Some(rank) = mla.q_lora_rank else {
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

    fn gqa(&mut self, config: &Config, gqa: &Gqa, at: &str) -> GqaOffsets {
        let (hidden, dim) = (config.hidden_size, gqa.head_dim);
        let queries = config.num_attention_heads * dim;
        let keys = gqa.num_key_value_heads * dim;
        let [q_proj, k_proj, v_proj] = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]
            .map(|(name, out)| self.linear(&format!("{at}.{name}"), [out, hidden], gqa.qkv_bias));
        let o_proj = self.linear(&format!("{at}.o_proj"), [hidden, queries], gqa.o_bias);
        let qk_norm = gqa.qk_norm.then(|| {
            ["q_norm", "k_norm"].map(|name| self.push(format!("{at}.{name}.weight"), &[dim]))
        });
        GqaOffsets {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            qk_norm,
        }
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> LinearOffsets {
        let weight = self.push(format!("{name}.weight"), &shape);
        let bias = bias.then(|| self.push(format!("{name}.bias"), &shape[..1]));
        LinearOffsets { weight, bias }
    }

    fn mtp(&mut self, config: &Config) -> MtpOffsets {
        let (hidden, layer) = (config.hidden_size, config.num_hidden_layers);
        let prefix = format!("model.layers.{layer}");
        MtpOffsets {
            enorm: self.push(format!("{prefix}.enorm.weight"), &[hidden]),
            hnorm: self.push(format!("{prefix}.hnorm.weight"), &[hidden]),
            eh_proj: self.push(format!("{prefix}.eh_proj.weight"), &[hidden, 2 * hidden]),
            layer: self.layer(config, layer),
            norm: self.push(format!("{prefix}.shared_head.norm.weight"), &[hidden]),
        }
    }

    fn mlp(&mut self, config: &Config, layer: usize, mlp: &str) -> MlpOffsets {
        let hidden = config.hidden_size;
        let Some(moe) = config.moe.as_ref().filter(|_| config.is_moe_layer(layer)) else {
            return MlpOffsets::Dense(self.swiglu(mlp, hidden, config.intermediate_size));
        };
        let width = moe.moe_intermediate_size;
        let gate = self.push(
            format!("{mlp}.gate.weight"),
            &[moe.n_routed_experts, hidden],
        );
        let experts_gate_proj = self.experts(moe, mlp, "gate_proj", [width, hidden]);
        let experts_up_proj = self.experts(moe, mlp, "up_proj", [width, hidden]);
        let experts_down_proj = self.experts(moe, mlp, "down_proj", [hidden, width]);
        let shared = moe.n_shared_experts > 0;
        MlpOffsets::Moe(MoeOffsets {
            gate,
            // Placed by `router_bias`, after all that is trained.
            e_score_correction_bias: 0..0,
            experts_gate_proj,
            experts_up_proj,
            experts_down_proj,
            shared: shared
                .then(|| self.swiglu(&format!("{mlp}.shared_experts"), hidden, moe.shared_width())),
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
    fn experts(&mut self, moe: &Moe, mlp: &str, kind: &str, shape: [usize; 2]) -> Range<usize> {
        let start = self.align();
        for expert in 0..moe.n_routed_experts {
            self.push_unaligned(format!("{mlp}.experts.{expert}.{kind}.weight"), &shape);
        }
        start..self.end
    }

    fn router_bias(&mut self, config: &Config, layer: usize, offsets: &mut LayerOffsets) {
        let (MlpOffsets::Moe(at), Some(moe)) = (&mut offsets.mlp, &config.moe) else {
            return;
        };
        if moe.has_correction_bias() {
            let name = format!("model.layers.{layer}.mlp.gate.e_score_correction_bias");
            at.e_score_correction_bias = self.push(name, &[moe.n_routed_experts]);
            let bias = self.tensors.last_mut().expect("a tensor was just pushed");
            bias.trainable = false;
        }
    }
}

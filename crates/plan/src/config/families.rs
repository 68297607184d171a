//! What a `model_type` says without writing it: a row for each family, as the difference to a
//! family that it descends from.
//!
//! Source: the configuration and modelling classes of Hugging Face transformers, and the model
//! repositories' own code where a family has its own.

use super::mixture::{Mixture, RoutedLayers, Shared};

/// A property that a family has, has not, or leaves to a field.
#[derive(Clone, Copy)]
pub enum Flag {
    Always,
    Never,
    /// The field, and what its absence means.
    If(&'static str, bool),
    /// As [`Flag::If`], of a field that says the opposite; the second is the field's default.
    Unless(&'static str, bool),
}

/// Of the heads of keys and values.
#[derive(Clone, Copy)]
pub enum KvHeads {
    /// `num_key_value_heads`; as many as queries' where it is absent.
    Field,
    /// The same, with a number of the family's own where it is absent.
    Or(u64),
    /// `num_kv_heads` counts in Falcon's newer blocks alone.
    Falcon,
    /// One, unless `multi_query` is false.
    MultiQuery,
    /// By `attn_config` of MPT.
    Mpt,
}

#[derive(Clone, Copy)]
pub enum QkNorm {
    None,
    /// One norm, as wide as a head, for all heads of queries, and one for keys.
    PerHead,
    /// As wide as all heads together.
    Whole,
    /// Per head, if the field says so.
    If(&'static str),
}

/// Which keys the layers attend to where no list says so.
#[derive(Clone, Copy)]
pub enum Spans {
    Full,
    /// A window on all layers; the number is what the absent field means, null being none.
    Window(Option<u64>),
    /// Windows from layer `max_window_layers` on, if `use_sliding_window`; without it,
    /// `sliding_window` says nothing.
    Switched,
    /// A window, but for the last layer of every so many.
    Periodic {
        period: u64,
        window: u64,
    },
    /// Chunks, but for the last layer of every `no_rope_layer_interval`.
    Chunked,
    /// Linear attention, but for layers that a list names.
    Linear,
}

/// Width of a dense feed-forward block.
#[derive(Clone, Copy)]
pub enum Width {
    Required,
    /// Four times the hidden size where the file does not say.
    FourTimes,
    /// `expansion_ratio` times the hidden size.
    Expansion,
    /// Under the name that experts do not use.
    Named(&'static str),
}

/// A table of positions that are learned.
#[derive(Clone, Copy)]
pub enum Positions {
    None,
    /// As many as positions, and so many more.
    Learned(u64),
    /// Unless `attn_config` has another kind.
    Mpt,
}

#[derive(Clone, Copy)]
pub enum LayerNorms {
    Two,
    /// One in parallel blocks, two in newer ones.
    Falcon,
    /// Four, if the field says so.
    Sandwich(&'static str),
}

#[derive(Clone, Copy)]
pub struct Family {
    pub model_type: &'static str,
    /// What an absent `tie_word_embeddings` means.
    pub tied: bool,
    /// Whether attention is latent, and whether an indexer must come with it.
    pub latent: bool,
    pub indexed: bool,
    pub kv_heads: KvHeads,
    /// `None`: the hidden size divided by the heads.
    pub head_dim: Option<u64>,
    pub qkv_bias: Flag,
    pub output_bias: Flag,
    pub qk_norm: QkNorm,
    /// A number per head that a softmax may spend its weight on.
    pub sinks: bool,
    pub relative_positions: bool,
    pub spans: Spans,
    pub gated: bool,
    pub width: Width,
    pub mlp_bias: Flag,
    pub mixture: Option<Mixture>,
    pub norm_weight: bool,
    pub norm_bias: Flag,
    pub layer_norms: LayerNorms,
    pub final_norm: Flag,
    pub embedding_norm: bool,
    pub positions: Positions,
    pub predicts_more: bool,
}

const LLAMA: Family = Family {
    model_type: "llama",
    tied: false,
    latent: false,
    indexed: false,
    kv_heads: KvHeads::Field,
    head_dim: None,
    qkv_bias: Flag::If("attention_bias", false),
    output_bias: Flag::If("attention_bias", false),
    qk_norm: QkNorm::None,
    sinks: false,
    relative_positions: false,
    spans: Spans::Full,
    gated: true,
    width: Width::Required,
    mlp_bias: Flag::If("mlp_bias", false),
    mixture: None,
    norm_weight: true,
    norm_bias: Flag::Never,
    layer_norms: LayerNorms::Two,
    final_norm: Flag::Always,
    embedding_norm: false,
    positions: Positions::None,
    predicts_more: false,
};

const MISTRAL: Family = Family {
    model_type: "mistral",
    kv_heads: KvHeads::Or(8),
    qkv_bias: Flag::Never,
    output_bias: Flag::Never,
    mlp_bias: Flag::Never,
    spans: Spans::Window(Some(4096)),
    ..LLAMA
};

const QWEN2: Family = Family {
    model_type: "qwen2",
    qkv_bias: Flag::Always,
    output_bias: Flag::Never,
    mlp_bias: Flag::Never,
    spans: Spans::Switched,
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    head_dim: Some(128),
    qk_norm: QkNorm::PerHead,
    spans: Spans::Switched,
    mlp_bias: Flag::Never,
    ..LLAMA
};

/// Norms follow what they normalise; there are as many.
const OLMO2: Family = Family {
    model_type: "olmo2",
    qk_norm: QkNorm::Whole,
    mlp_bias: Flag::Never,
    ..LLAMA
};

/// Norms without weights, and a feed-forward half without a gate.
const NANOCHAT: Family = Family {
    model_type: "nanochat",
    gated: false,
    mlp_bias: Flag::Never,
    norm_weight: false,
    ..LLAMA
};

const GPT2: Family = Family {
    model_type: "gpt2",
    tied: true,
    qkv_bias: Flag::Always,
    output_bias: Flag::Always,
    gated: false,
    width: Width::FourTimes,
    mlp_bias: Flag::Always,
    norm_bias: Flag::Always,
    positions: Positions::Learned(0),
    ..LLAMA
};

const OPT: Family = Family {
    model_type: "opt",
    qkv_bias: Flag::If("enable_bias", true),
    output_bias: Flag::If("enable_bias", true),
    mlp_bias: Flag::If("enable_bias", true),
    width: Width::Required,
    // Its embedding of positions begins at index 2.
    positions: Positions::Learned(2),
    final_norm: Flag::If("do_layer_norm_before", true),
    ..GPT2
};

const FALCON: Family = Family {
    model_type: "falcon",
    kv_heads: KvHeads::Falcon,
    qkv_bias: Flag::If("bias", false),
    output_bias: Flag::If("bias", false),
    mlp_bias: Flag::If("bias", false),
    layer_norms: LayerNorms::Falcon,
    positions: Positions::None,
    ..GPT2
};

const MPT: Family = Family {
    model_type: "mpt",
    kv_heads: KvHeads::Mpt,
    qkv_bias: Flag::Unless("no_bias", true),
    output_bias: Flag::Unless("no_bias", true),
    mlp_bias: Flag::Unless("no_bias", true),
    norm_bias: Flag::Unless("no_bias", true),
    width: Width::Expansion,
    positions: Positions::Mpt,
    ..GPT2
};

const TRANSFO_XL: Family = Family {
    model_type: "transfo-xl",
    qkv_bias: Flag::Never,
    output_bias: Flag::Never,
    relative_positions: true,
    width: Width::Required,
    final_norm: Flag::Never,
    positions: Positions::None,
    ..GPT2
};

const MIXTRAL: Family = Family {
    model_type: "mixtral",
    spans: Spans::Window(None),
    mixture: Some(Mixture::EVERYWHERE),
    ..MISTRAL
};

const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    head_dim: None,
    mixture: Some(Mixture::QWEN),
    ..QWEN3
};

const GPT_OSS: Family = Family {
    model_type: "gpt_oss",
    head_dim: Some(64),
    qkv_bias: Flag::If("attention_bias", true),
    output_bias: Flag::If("attention_bias", true),
    sinks: true,
    spans: Spans::Periodic {
        period: 2,
        window: 128,
    },
    mlp_bias: Flag::Always,
    mixture: Some(Mixture {
        router_bias: true,
        ..Mixture::EVERYWHERE
    }),
    ..LLAMA
};

const LLAMA4: Family = Family {
    model_type: "llama4_text",
    head_dim: Some(128),
    spans: Spans::Chunked,
    width: Width::Named("intermediate_size_mlp"),
    mlp_bias: Flag::Never,
    mixture: Some(Mixture {
        layers: RoutedLayers::Interleaved,
        shared: Shared::One,
        ..Mixture::EVERYWHERE
    }),
    ..LLAMA
};

const DEEPSEEK_V2: Family = Family {
    model_type: "deepseek_v2",
    latent: true,
    mlp_bias: Flag::Never,
    mixture: Some(Mixture {
        shared: Shared::Experts(Some(0)),
        router_bias: false,
        ..Mixture::DEEPSEEK
    }),
    ..LLAMA
};

const DEEPSEEK_V3: Family = Family {
    model_type: "deepseek_v3",
    mixture: Some(Mixture::DEEPSEEK),
    predicts_more: true,
    ..DEEPSEEK_V2
};

const PANGU: Family = Family {
    model_type: "pangu_ultra_moe",
    layer_norms: LayerNorms::Sandwich("sandwich_norm"),
    mixture: Some(Mixture {
        layers: RoutedLayers::After(3),
        router_bias: false,
        ..Mixture::DEEPSEEK
    }),
    ..DEEPSEEK_V3
};

const GLM4_MOE: Family = Family {
    model_type: "glm4_moe",
    output_bias: Flag::Never,
    qk_norm: QkNorm::If("use_qk_norm"),
    mlp_bias: Flag::Never,
    mixture: Some(Mixture {
        layers: RoutedLayers::After(1),
        shared: Shared::Experts(Some(1)),
        ..Mixture::DEEPSEEK
    }),
    predicts_more: true,
    ..LLAMA
};

const MINIMAX: Family = Family {
    model_type: "minimax",
    qkv_bias: Flag::Never,
    output_bias: Flag::Never,
    mlp_bias: Flag::Never,
    spans: Spans::Linear,
    mixture: Some(Mixture {
        shared: Shared::Width("shared_intermediate_size"),
        ..Mixture::EVERYWHERE
    }),
    ..LLAMA
};

/// Every family that is known.
pub const FAMILIES: [Family; 34] = [
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    Family {
        model_type: "smollm3",
        tied: true,
        spans: Spans::Switched,
        ..LLAMA
    },
    Family {
        model_type: "phi3",
        kv_heads: KvHeads::Field,
        spans: Spans::Window(None),
        ..MISTRAL
    },
    OLMO2,
    Family {
        model_type: "olmo3",
        spans: Spans::Periodic {
            period: 4,
            window: 4096,
        },
        ..OLMO2
    },
    Family {
        model_type: "baichuan",
        kv_heads: KvHeads::Field,
        spans: Spans::Full,
        ..MISTRAL
    },
    NANOCHAT,
    Family {
        model_type: "nemotron",
        gated: false,
        norm_bias: Flag::Always,
        ..LLAMA
    },
    GPT2,
    Family {
        model_type: "gpt_bigcode",
        kv_heads: KvHeads::MultiQuery,
        ..GPT2
    },
    Family {
        model_type: "gpt_neox",
        tied: false,
        qkv_bias: Flag::If("attention_bias", true),
        output_bias: Flag::If("attention_bias", true),
        width: Width::Required,
        positions: Positions::None,
        ..GPT2
    },
    OPT,
    Family {
        model_type: "bloom",
        embedding_norm: true,
        positions: Positions::None,
        ..GPT2
    },
    FALCON,
    MPT,
    TRANSFO_XL,
    MIXTRAL,
    QWEN3_MOE,
    Family {
        model_type: "qwen2_moe",
        mixture: Some(Mixture {
            shared: Shared::Behind("shared_expert_intermediate_size"),
            ..Mixture::QWEN
        }),
        ..QWEN2
    },
    Family {
        model_type: "olmoe",
        mixture: Some(Mixture::EVERYWHERE),
        ..OLMO2
    },
    GPT_OSS,
    LLAMA4,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    Family {
        model_type: "kimi_k2",
        ..DEEPSEEK_V3
    },
    Family {
        model_type: "deepseek_v32",
        indexed: true,
        ..DEEPSEEK_V3
    },
    PANGU,
    GLM4_MOE,
    MINIMAX,
    Family {
        model_type: "minimax_text_01",
        ..MINIMAX
    },
    Family {
        model_type: "minimax_m1",
        ..MINIMAX
    },
];
